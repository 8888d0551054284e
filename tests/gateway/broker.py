"""A broker whose every packet a test decides on, for the bridge's exact rules; and mosquitto, where it is installed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

from schemas.mqtt.packets import Connect, Publish, encode_publish, encode_suback, packet, parse_connect, parse_subscribe
from schemas.mqtt.wire import V5, PacketType, properties
from tests.gateway.playing import PATIENCE_S, VIN, uplink


class Peer:
    """One connection of the bridge, from the broker's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.connect = Connect("")
        self.filters: tuple[tuple[str, int], ...] = ()

    async def packet(self) -> tuple[int, bytes]:
        """(first byte, body) of the next packet."""
        async with asyncio.timeout(PATIENCE_S):
            first, size, shift = (await self.reader.readexactly(1))[0], 0, 0
            while True:
                byte = (await self.reader.readexactly(1))[0]
                size |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return first, await self.reader.readexactly(size)

    async def hear(self, first: int) -> bytes:
        """Body of the next packet but pings, which must begin with ``first``."""
        while True:
            got, body = await self.packet()
            if got != PacketType.PINGREQ << 4:
                assert got == first, (hex(got), body)
                return body
            self.send(packet(PacketType.PINGRESP, b""))

    def send(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.writer.write(chunk)

    async def greet(self, code: int = 0, present: bool = False, **values: Any) -> Connect:
        """Take the CONNECT and answer it."""
        self.connect = parse_connect(await self.hear(PacketType.CONNECT << 4))
        more = properties(values) if self.connect.version == V5 else b""
        self.send(packet(PacketType.CONNACK, bytes((present, code)) + more))
        return self.connect

    async def subscribed(self, *codes: int) -> tuple[tuple[str, int], ...]:
        """Take the SUBSCRIBE and grant it."""
        asked = parse_subscribe(await self.hear(PacketType.SUBSCRIBE << 4 | 2), self.connect.version)
        self.filters = asked.filters
        granted = codes or [options & 3 for _, options in asked.filters]
        self.send(encode_suback(asked.packet_id, granted, self.connect.version))
        return asked.filters

    async def ready(self, present: bool = False, **values: Any) -> Peer:
        await self.greet(0, present, **values)
        await self.subscribed()
        return self

    def publish(self, payload: bytes, packet_id: int = 1, topic: str = uplink(VIN), qos: int = 1, **more: Any) -> None:
        self.send(encode_publish(Publish(topic, payload, qos, packet_id if qos else 0, **more), self.connect.version))

    async def quiet(self) -> None:
        """All that was sent has been read, and nothing but the answer to a question of ours came back."""
        self.send(packet(PacketType.SUBACK, b"\0\1" + (b"\0" if self.connect.version == V5 else b"")))

    def close(self) -> None:
        self.writer.close()


class Broker:
    """Listens; each connection of the bridge is a :class:`Peer` to be asked for."""

    def __init__(self) -> None:
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.all: list[Peer] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    async def listen(self, context: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._opened, "127.0.0.1", self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _opened(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.all.append(peer)
        self.peers.put_nowait(peer)

    async def peer(self) -> Peer:
        return await asyncio.wait_for(self.peers.get(), PATIENCE_S)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for peer in self.all:
            peer.close()
        await asyncio.gather(*(peer.writer.wait_closed() for peer in self.all), return_exceptions=True)


def mosquitto_program() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class Mosquitto:
    """Debian's broker on a port of its own, its sessions kept over a kill; ``lines`` go into its configuration."""

    def __init__(self, program: str, folder: Path, *lines: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port: int = sock.getsockname()[1]
        config = folder / "mosquitto.conf"
        self.argv = [program, "-c", str(config)]
        given = [f"listener {self.port} 127.0.0.1", "max_queued_messages 0", "persistence true", "autosave_interval 1",
                 "autosave_on_changes true", f"persistence_location {folder}/", "log_type error"]  # fmt: skip
        if not any(line.startswith("allow_anonymous") for line in lines):
            given.append("allow_anonymous true")
        if os.geteuid() == 0:
            given.append("user root")
        config.write_text("\n".join([*given, *lines]) + "\n", "utf-8")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self.argv)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert self._process.returncode is None, "mosquitto ended; its message is above"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    async def stop(self, kill: bool = False) -> None:
        if self._process is not None and self._process.returncode is None:
            (self._process.kill if kill else self._process.terminate)()
            await asyncio.wait_for(self._process.wait(), PATIENCE_S)
        self._process = None
