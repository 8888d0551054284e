"""Many plain vehicles in one process, told what to do line by line: connect, send, vanish, come back.

``python -m benchmarks.crowd '{"port": 1883, "vehicles": 1000, ...}'`` reads commands from stdin (a JSON object a line)
and answers each with a JSON line.  A vehicle is an MQTT 3.1.1 client with one report in flight at most and a few
hundred bytes of memory, so that what is measured is the gateway.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import uvloop

from schemas.gbt32960.frame import build_frame
from schemas.mqtt.packets import Connect, Publish, encode_connect, encode_publish
from schemas.mqtt.topics import uplink

_BEIJING: Final = timezone(timedelta(hours=8))
# A vehicle block by table 9 of the 2016 edition: started, electric, 65.3 km/h, 385.4 V, 50 A, 80 %.
_BLOCK: Final = bytes.fromhex("01 01 03 01 028d 0001e240 0f0e 2904 50 01 2e 1388 1e 00")
_CONNACK: Final = b"\x20\x02\x00\x00"
_PUBACK_BYTES: Final = 4
_RETRY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Crowd:
    """``vehicles`` on ``host``:``port``, VINs from ``first`` on; from ``sources`` addresses of 127.0.0.0/8."""

    port: int
    vehicles: int
    first: int = 0
    sources: int = 1
    keep_alive_s: int = 1200
    host: str = "127.0.0.1"


class Member(asyncio.Protocol):
    """One vehicle: connects, and sends a report whenever it is told to; counts what is acknowledged."""

    __slots__ = ("acked", "fleet", "number", "refused", "sent_at", "served", "transport", "vin", "wanted")

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet = fleet
        self.number = number
        self.vin = f"LBENCH{number:011d}"
        self.transport: Any = None
        self.wanted = 0  # reports that were to be sent
        self.acked = 0
        self.sent_at = 0.0
        self.served = False  # CONNACK read on this connection
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(encode_connect(Connect(self.vin, 4, keep_alive_s=self.fleet.crowd.keep_alive_s)))

    def data_received(self, data: bytes) -> None:
        if not self.served:
            if data[:4] != _CONNACK:
                self.refused += 1
                return  # the gateway closes
            self.served = True
            self.fleet.served += 1
            data = data[4:]
            self.send()
        for _ in range(len(data) // _PUBACK_BYTES):
            self.acked += 1
            self.fleet.acked(self)
            self.send()

    def send(self) -> None:
        """The next report, or the one that was never acknowledged again."""
        if not self.served or self.acked >= self.wanted:
            return
        at = self.fleet.begun + timedelta(seconds=self.acked)
        moment = bytes((at.year - 2000, at.month, at.day, at.hour, at.minute, at.second))
        frame = build_frame(16, 0x02, 0xFE, self.vin, 1, moment + _BLOCK)
        self.sent_at = time.monotonic()
        self.transport.write(encode_publish(Publish(uplink(self.vin), frame, 1, self.acked % 65_535 + 1), 4))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it comes back, whatever it was
        self.transport = None
        if self.served:
            self.served = False
            self.fleet.served -= 1
        self.fleet.lost(self)


class Fleet:
    """The members, and what is known of them."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.begun = datetime.now(_BEIJING) - timedelta(hours=20)
        self.members = [Member(self, crowd.first + k) for k in range(crowd.vehicles)]
        self.served = 0
        self.attempts = 0
        self.staying = True
        self.latencies: list[float] = []
        self._pending = 0
        self._moved = asyncio.Event()

    async def _connect(self, member: Member, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(pause_s)
        source = (f"127.0.0.{1 + member.number % self.crowd.sources}", 0) if self.crowd.sources > 1 else None
        while self.staying:
            self.attempts += 1
            try:
                await loop.create_connection(lambda: member, self.crowd.host, self.crowd.port, local_addr=source)
                return  # should it be lost, ``lost`` begins anew
            except OSError:
                await asyncio.sleep(_RETRY_S)

    def lost(self, member: Member) -> None:
        if self.staying:
            self._begin(member, _RETRY_S if member.refused else 0.0)
            member.refused = 0

    def _begin(self, member: Member, pause_s: float = 0.0) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(member, pause_s))
        _TASKS.add(task)
        task.add_done_callback(_TASKS.discard)

    def acked(self, member: Member) -> None:
        self.latencies.append(time.monotonic() - member.sent_at)
        self._pending -= 1
        if self._pending <= 0:
            self._moved.set()

    # -- commands --------------------------------------------------------------------------------------
    async def connect(self, count: int) -> dict[str, Any]:
        """The first ``count`` are connected; {"seconds"}."""
        begun = time.monotonic()
        for member in self.members[:count]:
            if member.transport is None:
                self._begin(member)
        await _until(lambda: self.served >= count)
        return {"seconds": time.monotonic() - begun, "attempts": self.attempts}

    async def report(self, wait: bool = True) -> dict[str, Any]:
        """Each that is connected sends a report; with ``wait`` until all are acknowledged."""
        begun = time.monotonic()
        self._moved.clear()
        members = [member for member in self.members if member.served]
        self._pending += len(members)
        for member in members:
            member.wanted += 1
            if member.wanted == member.acked + 1:
                member.send()
        if wait:
            await self._moved.wait()
        return {"seconds": time.monotonic() - begun}

    async def storm(self) -> dict[str, Any]:
        """All send, all vanish at once in the midst of it, all come back; until each has a report acknowledged."""
        count = self.served
        await self.report(wait=False)
        for member in self.members:
            if member.transport is not None:
                member.transport.abort()
        begun = time.monotonic()
        attempts = self.attempts
        await asyncio.sleep(0.05)  # all of them are told that they are gone
        await _until(lambda: self.served >= count and self._pending <= 0)
        return {"seconds": time.monotonic() - begun, "attempts": self.attempts - attempts}

    async def steady(self, seconds: float, every_s: float) -> dict[str, Any]:
        """Each sends a report every ``every_s``, their turns spread; {"acks", "p50_ms", "p99_ms", "max_ms"}."""
        self.latencies.clear()
        begun = time.monotonic()
        members = self.members
        step = every_s / len(members)
        turn = 0
        while (now := time.monotonic() - begun) < seconds:
            while turn * step <= now:
                member = members[turn % len(members)]
                if member.wanted == member.acked:
                    member.wanted += 1
                    self._pending += 1
                    member.send()
                turn += 1
            await asyncio.sleep(0.002)
        await _until(lambda: self._pending <= 0, 20.0)
        times = sorted(self.latencies) or [float("nan")]
        return {
            "acks": len(self.latencies),
            "unanswered": self._pending,
            "p50_ms": round(1000 * times[len(times) // 2], 2),
            "p99_ms": round(1000 * times[int(0.99 * (len(times) - 1))], 2),
            "max_ms": round(1000 * times[-1], 2),
        }

    def account(self) -> dict[str, Any]:
        return {"acked": sum(member.acked for member in self.members), "vehicles": len(self.members)}

    def leave(self) -> None:
        self.staying = False
        for member in self.members:
            if member.transport is not None:
                member.transport.abort()


_TASKS: set[asyncio.Task[None]] = set()


async def _until(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Look again and again; whether it came true in time."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:  # noqa: ASYNC110 - thousands of connections, one look
        await asyncio.sleep(0.01)
    return condition()


def files_max() -> int:
    """Raise the limit of open files as far as it goes; what it is then."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Remote:
    """A crowd in a process of its own; a context manager."""

    def __init__(self, crowd: Crowd) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.crowd", json.dumps(asdict(crowd))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, command: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the crowd ended with exit code {self._process.wait()}; its message is above")
        found: dict[str, Any] = json.loads(line)
        return found

    def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.begin(command, **arguments)
        return self.end()


async def _obey(crowd: Crowd) -> None:
    files_max()
    fleet = Fleet(crowd)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        wanted = json.loads(line)
        command = wanted.pop("do")
        if command == "account":
            answer = fleet.account()
        elif command == "leave":
            fleet.leave()
            answer = {}
        else:
            answer = await getattr(fleet, command)(**wanted)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(_obey(Crowd(**json.loads(sys.argv[1]))))
