"""Senders that mean harm, each a process of its own: ``python -m benchmarks.attacks NAME MQTT_PORT GBT_PORT SECONDS``.

It runs at the lowest priority and from addresses of its own (127.0.0.64 and on), prints ``ready`` when it is under way
and one JSON line, what it got done, at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop
import zstandard

from benchmarks.crowd import files_max
from schemas.gbt32960.frame import build_frame
from schemas.mqtt.packets import Connect, Publish, encode_connect, encode_publish
from schemas.mqtt.topics import PREFIX, TELEMETRY, uplink

_HOST: Final = "127.0.0.1"
# What an attacker's socket holds is copied into it on the victim's cores here, and over loopback even given back by the
# victim's close(): with the kernel's own 4 MB that was all that could be measured.  A real attacker's machine has both.
_SEND_BYTES: Final = 64 * 1024


@dataclass
class Attack:
    """Where to, until when, and what was done."""

    mqtt: int
    gbt: int
    until: float
    done: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, n: int = 1) -> None:
        self.done[what] = self.done.get(what, 0) + n

    @property
    def going(self) -> bool:
        return time.monotonic() < self.until

    async def opened(self, port: int, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        try:
            sock.bind((f"127.0.0.{64 + number % 4}", 0))
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(loop.sock_connect(sock, (_HOST, port)), 10)
            made = await asyncio.open_connection(sock=sock)
        except (OSError, TimeoutError):
            sock.close()
            self.count("not_connected")
            return None
        self.count("connections")
        return made

    async def over_and_over(
        self, port: int, number: int, use: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> None:
        """Connect, ``use`` the connection until it is closed, again."""
        while self.going:
            made = await self.opened(port, number)
            if made is None:
                await asyncio.sleep(0.1)
                continue
            reader, writer = made
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await use(reader, writer)
            writer.transport.abort()
            self.count("closed")


def _vin(number: int) -> str:
    return f"LHOST{number:012d}"


async def _dribble(attack: Attack, writer: asyncio.StreamWriter, data: bytes) -> None:
    """A byte a second, for ever the same packet."""
    at = 0
    while attack.going and not writer.transport.is_closing():
        writer.write(data[at : at + 1])
        at = min(at + 1, len(data) - 2)  # never whole
        attack.count("bytes")
        await asyncio.sleep(1.0)


async def slow_loris(attack: Attack) -> None:
    """1,000 connections that never finish their CONNECT or login."""
    hello = encode_connect(Connect(_vin(0), 4))

    async def one(number: int) -> None:
        port = attack.mqtt if number % 2 else attack.gbt
        await attack.over_and_over(port, number, lambda _, writer: _dribble(attack, writer, hello))

    await asyncio.gather(*(one(k) for k in range(1000)))


async def one_byte(attack: Attack) -> None:
    """500 vehicles that are let in, then send a report at a byte per second."""

    async def one(number: int) -> None:
        async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(encode_connect(Connect(_vin(number), 4)))
            await asyncio.wait_for(reader.readexactly(4), 10)
            await _dribble(attack, writer, encode_publish(Publish(uplink(_vin(number)), bytes(400), 1, 1), 4))

        await attack.over_and_over(attack.mqtt, number, use)

    await asyncio.gather(*(one(k) for k in range(500)))


async def _pour(attack: Attack, writer: asyncio.StreamWriter, data: bytes) -> None:
    while attack.going and not writer.transport.is_closing():
        writer.write(data)
        attack.count("bytes", len(data))
        await writer.drain()


async def garbage(attack: Attack) -> None:
    """20 connections that pour random bytes into both doors, and come back when they are closed."""
    noise = random.Random(1).randbytes(64 * 1024)  # noqa: S311 - any bytes will do

    async def one(number: int) -> None:
        port = attack.mqtt if number % 2 else attack.gbt
        await attack.over_and_over(port, number, lambda _, writer: _pour(attack, writer, noise))

    await asyncio.gather(*(one(k) for k in range(20)))


async def reconnect(attack: Attack) -> None:
    """One address connects, says CONNECT and vanishes, as fast as it can."""
    hello = encode_connect(Connect(_vin(0), 4))

    async def one() -> None:
        async def use(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(hello)

        await attack.over_and_over(attack.mqtt, 0, use)

    await asyncio.gather(*(one() for _ in range(50)))


async def json_bomb(attack: Attack) -> None:
    """10 vehicles that publish JSON as deep, as wide and with numbers as long as fits, without a pause."""
    size = 200_000
    bombs = [b"[" * size, b'{"a":' * (size // 5), b'{"speed_kmh":' + b"9" * size + b"}", b"[" + b"1e999," * (size // 6)]
    await _vehicles_with(attack, bombs)


async def packed_bomb(attack: Attack) -> None:
    """10 vehicles that publish 50 and 200 MB of zeros, packed by gzip and zstd, as JSON, without a pause."""
    zeros = bytes(50_000_000)
    await _vehicles_with(attack, [gzip.compress(zeros), zstandard.compress(4 * zeros)])


async def _vehicles_with(attack: Attack, bombs: list[bytes]) -> None:
    async def one(number: int) -> None:
        vin = _vin(number)
        packets = [encode_publish(Publish(_topic(vin), bomb, 1, k + 1), 4) for k, bomb in enumerate(bombs)]

        async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(encode_connect(Connect(vin, 4)))
            await asyncio.wait_for(reader.readexactly(4), 10)
            await _pour(attack, writer, b"".join(packets))

        await attack.over_and_over(attack.mqtt, number, use)

    await asyncio.gather(*(one(k) for k in range(10)))


def _topic(vin: str) -> str:
    return (PREFIX + vin.encode() + TELEMETRY).decode()


async def flood(attack: Attack) -> None:
    """10 vehicles that send good frames without a pause and take no answers."""

    async def one(number: int) -> None:
        vin = _vin(number)
        frame = build_frame(16, 0x02, 0xFE, vin, 1, bytes((26, 1, 1, 0, 0, 0)) + bytes(300))
        packets = b"".join(encode_publish(Publish(uplink(vin), frame, 1, k + 1), 4) for k in range(500))

        async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(encode_connect(Connect(vin, 4)))
            await asyncio.wait_for(reader.readexactly(4), 10)
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001 - a deaf peer
            await _pour(attack, writer, packets)

        await attack.over_and_over(attack.mqtt, number, use)

    await asyncio.gather(*(one(k) for k in range(10)))


ATTACKS: Final = {
    one.__name__: one for one in (slow_loris, one_byte, garbage, reconnect, json_bomb, packed_bomb, flood)
}


class Attacker:
    """An attack under way; ``end`` returns what it got done."""

    def __init__(self, name: str, mqtt: int, gbt: int, seconds: float) -> None:
        argv = [sys.executable, "-m", "benchmarks.attacks", name, str(mqtt), str(gbt), str(seconds)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the attack {name} did not begin; its message is above")

    def end(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self._process.kill()
        self._process.communicate()
        found: dict[str, Any] = json.loads(line) if line else {}
        return found


class Bystander:
    """Somebody else's two ports on this machine: each connection is taken, read from once, and reset.

    An attack on it shows what its machine's share alone costs the vehicles, without a byte for the gateway.
    """

    def __init__(self) -> None:
        argv = [sys.executable, "-m", "benchmarks.attacks", "bystander"]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.ports: tuple[int, int] = tuple(json.loads(self._process.stdout.readline()))

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def _stand_by() -> None:
    listeners = [socket.create_server((_HOST, 0), backlog=1024) for _ in range(2)]
    print(json.dumps([one.getsockname()[1] for one in listeners]), flush=True)
    while True:
        for listener in select.select(listeners, [], [])[0]:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                sock.settimeout(0.1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.recv(64 * 1024)


async def _main(name: str, mqtt: int, gbt: int, seconds: float) -> None:
    files_max()
    os.nice(19)
    attack = Attack(mqtt, gbt, time.monotonic() + seconds)
    working = asyncio.create_task(ATTACKS[name](attack))
    await asyncio.sleep(min(0.5, seconds))
    print("ready", flush=True)
    await asyncio.wait((working,), timeout=seconds)
    if working.done():
        working.result()
    print(json.dumps(attack.done), flush=True)
    os._exit(0)  # connections by the thousand need no farewell


if __name__ == "__main__":
    if sys.argv[1] == "bystander":
        _stand_by()
    uvloop.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
