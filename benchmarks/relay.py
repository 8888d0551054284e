"""mosquitto alone: the same publishers, and one subscriber that acknowledges each message and does nothing else.

What any program behind a broker can reach at most, before it has looked at a byte.  The subscriber costs next to
nothing: it knows the size of a packet and answers a read with one write.

``python -m benchmarks.relay PORT COUNT PACKET_BYTES`` prints "ready", then one JSON line when it has COUNT messages.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from benchmarks.generator import Generator, Load
from benchmarks.sending import PACKET_BYTES
from schemas.mqtt.packets import Connect, Subscribe, encode_connect, encode_subscribe
from schemas.mqtt.topics import UPLINK_BYTES
from schemas.mqtt.wire import PacketType

_READ_BYTES: Final = 1 << 20
_ID_AT: Final = 3 + 2 + UPLINK_BYTES  # fixed header with two bytes of length, topic with its length
_CONNACK_BYTES: Final = 4
_SUBACK_BYTES: Final = 5


def acks_of(packets: bytes | bytearray | memoryview, packet_bytes: int) -> bytes:
    """The PUBACKs of whole PUBLISH packets of one size that lie back to back."""
    table = np.frombuffer(packets, np.uint8).reshape(-1, packet_bytes)
    assert (table[:, 0] >> 4 == PacketType.PUBLISH).all(), "the broker sent something else than publishes"
    acks = np.empty((len(table), 4), np.uint8)
    acks[:, :2] = (PacketType.PUBACK << 4, 2)
    acks[:, 2:] = table[:, _ID_AT : _ID_AT + 2]
    return acks.tobytes()


def main(port: str, count: str, size: str) -> None:
    wanted, packet_bytes = int(count), int(size)
    with socket.create_connection(("127.0.0.1", int(port))) as line:
        line.sendall(encode_connect(Connect(client_id="relay", keep_alive_s=0)))
        _exactly(line, _CONNACK_BYTES)
        line.sendall(encode_subscribe(Subscribe(1, (("nev/v1/+/gbt32960", 1),))))
        _exactly(line, _SUBACK_BYTES)
        print("ready", flush=True)
        buffer = bytearray(_READ_BYTES)
        view, held, found = memoryview(buffer), 0, 0
        while found < wanted:
            read = line.recv_into(view[held:])
            if not read:
                raise ConnectionError(f"the broker closed the connection after {found} messages of {wanted}")
            held += read
            whole = held // packet_bytes
            if whole:
                line.sendall(acks_of(view[: whole * packet_bytes], packet_bytes))
                rest = bytes(view[whole * packet_bytes : held])
                held = len(rest)
                view[:held] = rest
                found += whole
        print(json.dumps({"finished": time.monotonic(), "messages": found}), flush=True)


def _exactly(line: socket.socket, size: int) -> None:
    while size:
        size -= len(line.recv(size))


def measure(port: int, load: Load, settle: Callable[[], None]) -> dict[str, Any]:
    """``load`` through the broker at ``port``; ``settle`` is called before the clock starts."""
    argv = [sys.executable, "-m", "benchmarks.relay", str(port), str(load.frames), str(PACKET_BYTES)]
    with (
        Generator(replace(load, mqtt_port=port)) as generator,
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as subscriber,
    ):
        try:
            assert subscriber.stdout is not None
            generator.ready()
            settle()
            if subscriber.stdout.readline().strip() != "ready":
                raise RuntimeError("the subscriber did not start; its message is above")
            generator.go()
            result = generator.result()
            line = subscriber.stdout.readline()
        finally:
            subscriber.kill()
    if not line:
        raise RuntimeError("the subscriber ended early; its message is above")
    seconds = json.loads(line)["finished"] - result["first_sent_monotonic"]
    return {"frames": load.frames, "seconds": round(seconds, 3), "frames_per_s": round(load.frames / seconds, 1)}


if __name__ == "__main__":
    main(*sys.argv[1:])
