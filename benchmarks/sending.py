"""How fast the simulator sends: the harness against a sink that only counts bytes and acknowledges.

What the journey's generator could do if the platform cost nothing; it shares the machine with the sink.
``python -m benchmarks.sending PACKET_BYTES`` is the sink: it prints its port and serves until stdin ends.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from statistics import median
from typing import Any, Final

import uvloop

from benchmarks.generator import Generator, Load
from benchmarks.runner import Progress
from schemas.mqtt.packets import encode_connack, encode_puback, split

VEHICLES: Final = 500
PACKET_BYTES: Final = 370  # PUBLISH of the typical frame: 330 bytes, topic of 33, packet id, headers
_IDS: Final = 65_535


class Sink(asyncio.Protocol):
    """Takes PUBLISH packets of one known size; PUBACKs come from a table, by the number of bytes received."""

    acks = b"".join(encode_puback(number) for number in range(1, _IDS + 1))

    def __init__(self, packet_bytes: int) -> None:
        self._packet_bytes = packet_bytes
        self._connected = False
        self._bytes = 0
        self._acked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if not self._connected:
            found = split(data)
            assert found is not None, "CONNECT comes in one piece over loopback"
            self._connected = True
            self._transport.write(encode_connack(4, 0))
            data = data[found[2] :]
        self._bytes += len(data)
        whole = self._bytes // self._packet_bytes
        while self._acked < whole:
            first = self._acked % _IDS
            count = min(whole - self._acked, _IDS - first)
            self._transport.write(self.acks[4 * first : 4 * (first + count)])
            self._acked += count


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{frames_per_s, mb_per_s, ack_p99_ms}: MQTT 3.1.1, QoS 1, 500 connections, per window."""
    reports, repeats = (200, 1) if quick else (600, 3)
    argv = [sys.executable, "-m", "benchmarks.sending", str(PACKET_BYTES)]
    figures: dict[str, Any] = {}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sink:
        try:
            assert sink.stdout is not None
            port = int(sink.stdout.readline())
            for window in (1, 10, 100):
                results = []
                for repeat in range(repeats):
                    load = Load(VEHICLES, reports, window, 900 + repeat, mqtt_port=port)
                    with Generator(load) as generator:
                        generator.ready()
                        generator.go()
                        results.append(generator.result())
                assert all(one["acked"] == load.frames for one in results)
                figures[f"window_{window}_frames_per_s"] = round(median(one["frames_per_s"] for one in results), 1)
                figures[f"window_{window}_ack_p99_ms"] = median(one["ack_p99_ms"] for one in results)
                progress(f"window {window}: {figures[f'window_{window}_frames_per_s']:,.0f} frames/s")
        finally:
            sink.kill()
    return figures | {"settings": {"vehicles": VEHICLES, "reports": reports, "repeats": repeats}}


async def _serve(packet_bytes: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Sink(packet_bytes), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
