"""A platform small enough to be obviously right: answers every message, remembers it, and can be made to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.gbt32960.commands import Ack, Command
from schemas.gbt32960.replies import reply
from schemas.mqtt.packets import encode_connack, encode_puback, parse_connect, parse_publish, split
from schemas.mqtt.wire import PacketType


@dataclass
class Received:
    vin: str
    frame: bytes
    connection: int
    dup: bool = False


@dataclass
class FakePlatform:
    """``on_message`` is told the number of messages so far and may return False: cut the connection, answer nothing."""

    on_message: Callable[[int], bool] = lambda _count: True
    ack: int = Ack.SUCCESS
    style: str = "short"
    pieces: int = 0  # split answers into pieces of so many bytes
    receive_maximum: int = 0  # told to MQTT 5 clients
    reverse: bool = False  # answer what came in one read in the opposite order
    received: list[Received] = field(default_factory=list)
    logins: list[bytes] = field(default_factory=list)
    logouts: int = 0
    farewells: list[bytes] = field(default_factory=list)  # logout frames
    beats: int = 0
    connections: int = 0
    mqtt_port: int = 0
    gbt_port: int = 0
    versions: set[int] = field(default_factory=set)
    passwords: set[bytes | None] = field(default_factory=set)
    _servers: list[asyncio.Server] = field(default_factory=list)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def __aenter__(self) -> FakePlatform:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        for name, serve in (("mqtt_port", self._mqtt), ("gbt_port", self._gbt)):
            server = await asyncio.start_server(serve, "127.0.0.1", getattr(self, name))
            setattr(self, name, server.sockets[0].getsockname()[1])
            self._servers.append(server)

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._servers.clear()
        while self._writers:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def _send(self, writer: asyncio.StreamWriter, answers: list[bytes]) -> None:
        data = b"".join(reversed(answers) if self.reverse else answers)
        step = self.pieces or len(data) or 1
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            if self.pieces:
                await asyncio.sleep(0)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, take: Callable[..., int | None]
    ) -> None:
        self.connections += 1
        number, rest = self.connections, b""
        self._writers.add(writer)
        try:
            while data := await reader.read(65536):
                answers: list[bytes] = []
                rest += data
                used = take(rest, answers, number)
                if used is None:
                    writer.transport.abort()
                    return
                rest = rest[used:]
                await self._send(writer, answers)
        except ConnectionError:
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _mqtt(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = 4
        vin = ""

        def take(data: bytes, answers: list[bytes], number: int) -> int | None:
            nonlocal version, vin
            at = 0
            while (found := split(data, at)) is not None:
                first, body, at = found
                kind = first >> 4
                if kind == PacketType.CONNECT:
                    connect = parse_connect(body)
                    version, vin = connect.version, connect.client_id
                    self.versions.add(version)
                    self.passwords.add(connect.password)
                    asked = {"receive_maximum": self.receive_maximum} if self.receive_maximum else None
                    answers.append(encode_connack(version, 0, asked))
                elif kind == PacketType.PUBLISH:
                    publish = parse_publish(first, body, version)
                    assert publish.topic == f"nev/v1/{vin}/gbt32960"
                    assert publish.qos == 1
                    self.received.append(Received(vin, publish.payload, number, publish.dup))
                    if not self.on_message(len(self.received)):
                        return None
                    answers.append(encode_puback(publish.packet_id))
                elif kind == PacketType.PINGREQ:
                    self.beats += 1
                    answers.append(b"\xd0\x00")
                elif kind == PacketType.DISCONNECT:
                    self.logouts += 1
            return at

        await self._serve(reader, writer, take)

    async def _gbt(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def take(data: bytes, answers: list[bytes], number: int) -> int | None:
            at = 0
            while len(data) - at >= 25:
                length = 25 + int.from_bytes(data[at + 22 : at + 24], "big")
                if len(data) - at < length:
                    break
                frame = data[at : at + length]
                at += length
                command = frame[2]
                if command == Command.LOGIN:
                    self.logins.append(frame)
                elif command == Command.LOGOUT:
                    self.logouts += 1
                    self.farewells.append(frame)
                elif command == Command.HEARTBEAT:
                    self.beats += 1
                else:
                    self.received.append(Received(frame[4:21].decode("ascii"), frame, number))
                    if not self.on_message(len(self.received)):
                        return None
                ack = self.ack if command in (Command.REALTIME, Command.REISSUE) else Ack.SUCCESS
                answers.append(reply(frame, ack, self.style))
            return at

        await self._serve(reader, writer, take)

    def counts(self) -> dict[tuple[str, bytes], int]:
        """How often each (vehicle, time bytes) came."""
        found: dict[tuple[str, bytes], int] = {}
        for one in self.received:
            key = (one.vin, one.frame[24:30])
            found[key] = found.get(key, 0) + 1
        return found
