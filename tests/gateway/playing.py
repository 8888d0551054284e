"""What the gateway's tests play with: hand-made frames and packets, sockets with patience, a running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from schemas.batch import Codec, Frames
from schemas.gbt32960.frame import build_frame
from schemas.journal.record import decode_records
from schemas.link_events import LinkEvent, decode
from schemas.mqtt.packets import Connect, Publish, encode_connect, encode_publish
from schemas.mqtt.topics import uplink
from schemas.reasons import reason_name
from services.gateway.server import Gateway
from services.journal.memory import MemoryJournal
from services.store.directory import MemoryDirectory

PARTITIONS = 8
VIN = "LNBSCB3F4JW000001"
OTHER = "LNBSCB3F4JW000002"
TIME = bytes((26, 3, 4, 5, 6, 7))
PATIENCE_S = 60.0  # long enough for a busy machine; no test waits this long when all is well


def report(vin: str = VIN, edition: int = 16, command: int = 0x02, body: bytes = bytes(60), second: int = 7) -> bytes:
    return build_frame(edition, command, 0xFE, vin, 1, TIME[:5] + bytes((second,)) + body)


def login(vin: str = VIN, edition: int = 16, serial: int = 1) -> bytes:
    packs = b"\0\0" if edition == 16 else b"\0"
    return build_frame(edition, 0x01, 0xFE, vin, 1, TIME + serial.to_bytes(2, "big") + b"89860012345678901234" + packs)


def logout(vin: str = VIN, edition: int = 16, serial: int = 1) -> bytes:
    return build_frame(edition, 0x04, 0xFE, vin, 1, TIME + serial.to_bytes(2, "big"))


def broken(frame: bytes) -> bytes:
    """The frame with a wrong check byte."""
    return frame[:-1] + bytes((frame[-1] ^ 0xFF,))


def connect(vin: str = VIN, version: int = 4, **more: Any) -> bytes:
    return encode_connect(Connect(vin, version, **more))


def publish(payload: bytes, packet_id: int = 1, vin: str = VIN, version: int = 4, **more: Any) -> bytes:
    topic = more.pop("topic", uplink(vin))
    qos = more.pop("qos", 1)
    return encode_publish(Publish(topic, payload, qos, packet_id if qos else 0, **more), version)


class Client:
    """A plain socket with patience."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.writer.write(chunk)

    async def send_bytewise(self, data: bytes) -> None:
        """Each byte in a write of its own, with a turn of the loop between."""
        for k in range(len(data)):
            self.writer.write(data[k : k + 1])
            await asyncio.sleep(0)

    async def read(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), PATIENCE_S)

    async def expect(self, data: bytes) -> None:
        assert await self.read(len(data)) == data

    async def rest(self) -> bytes:
        """Everything until the gateway closes."""
        try:
            return await asyncio.wait_for(self.reader.read(-1), PATIENCE_S)
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self.writer.close()


class Running:
    """A gateway that runs, its journal and its directory."""

    def __init__(self, gateway: Gateway, journal: MemoryJournal, directory: MemoryDirectory) -> None:
        self.gateway = gateway
        self.journal = journal
        self.directory = directory
        self.clients: list[Client] = []

    async def client(self, door: str) -> Client:
        made = Client(*await asyncio.open_connection(*self.gateway.addresses[door]))
        self.clients.append(made)
        return made

    async def mqtt(self, vin: str = VIN, version: int = 4, **more: Any) -> Client:
        """A client that is connected, its CONNACK read."""
        made = await self.client("mqtt")
        made.send(connect(vin, version, **more))
        head = await made.read(2)
        body = await made.read(head[1])
        assert body[1] == 0, body
        return made

    async def vehicle(self, vin: str = VIN, edition: int = 16) -> Client:
        """A GB/T client that is logged in, the reply read."""
        made = await self.client("gbt32960")
        made.send(login(vin, edition))
        assert (await made.read(31))[3] == 1
        return made

    async def frames(self) -> Frames:
        """All frames that are durable, in order within a partition; events lie in records of their own."""
        records = await self.journal.read(dict.fromkeys(range(PARTITIONS), -1), 1 << 30)
        return decode_records([one for one in records if not (decode_records([one]).codec == Codec.EVENT).any()])

    async def events(self) -> list[LinkEvent]:
        """All events of connections that are durable, in the order in which they were told."""
        frames = decode_records(await self.journal.read(dict.fromkeys(range(PARTITIONS), -1), 1 << 30))
        lines = [i for i in range(frames.n) if frames.codec[i] == Codec.EVENT]
        found = [decode(frames.frame(i), int(frames.received_us[i]), int(frames.door[i])) for i in lines]
        return sorted((one for one in found if one is not None), key=lambda event: event.number)

    async def told(self) -> list[tuple[str, str, str]]:
        """(event, cause, VIN) of every event."""
        return [(one.event, one.cause, one.vin) for one in await self.events()]

    async def kept(self) -> list[tuple[str, bytes]]:
        """(reason name or "", bytes) of every frame in the journal."""
        frames = await self.frames()
        return [
            (reason_name(int(frames.reason[i])) if frames.reason[i] else "", frames.frame(i)) for i in range(frames.n)
        ]

    async def until(self, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Let the loop turn until ``condition`` holds."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = condition()
                if not isinstance(found, bool):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.001)


Start = Callable[..., Awaitable[Running]]
