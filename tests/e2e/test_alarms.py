"""An alarm from a vehicle's frame to a webhook, to a person and back, with the process that tells of it killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from schemas.gbt32960.frame import build_frame
from services.topology import System
from tests.e2e.conftest import until

pytestmark = [pytest.mark.slow, pytest.mark.database]

VIN, SECRET = "LALARME2E00000001", "0123456789abcdef-key"


@pytest.fixture
def desk() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver of webhooks that answers every second request with 500; its URL and what it has taken."""
    taken: list[dict[str, Any]] = []
    asked = [0]

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked[0] += 1
            if asked[0] % 2:
                self.send_response(500)
            else:
                taken.append(json.loads(body))
                self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", taken
    server.shutdown()
    thread.join()
    server.server_close()


def frame(command: int, time: datetime, rest: bytes) -> bytes:
    here = time.astimezone(UTC) + timedelta(hours=8)
    stamp = bytes([here.year - 2000, here.month, here.day, here.hour, here.minute, here.second])
    return build_frame(16, command, 0xFE, VIN, 1, stamp + rest)


def alarm(level: int, flags: int) -> bytes:
    """The alarm block of GB/T 32960.3-2016 table 19: level, general flags, no fault codes."""
    return bytes([7, level]) + flags.to_bytes(4, "big") + bytes(4)


def test_from_a_frame_to_a_person_and_back(
    dsn: str, start_system: Callable[..., System], desk: tuple[str, list[dict[str, Any]]]
) -> None:
    subprocess.run([sys.executable, "-m", "services.topology", "warm", "common", "statistics"], check=True)
    url, taken = desk
    hook = {"name": "desk", "url": url, "secret": SECRET}
    alarms = {"webhooks": [hook], "webhook_retry_first_s": 0.1, "publish_every_s": 0.1}
    system = start_system(dsn, statistics={"every_s": 0.5}, alarms=alarms)
    base = "http://{}:{}".format(*system.addresses["web"])

    def ask(path: str, body: dict[str, Any] | None = None) -> Any:
        answer = httpx.get(base + path) if body is None else httpx.post(base + path, json=body)
        return answer.raise_for_status().json()

    def told() -> list[str]:
        return [each["event"] for each in taken]

    now = datetime.now(UTC)
    with socket.create_connection(system.addresses["gbt32960"]) as vehicle:
        vehicle.sendall(frame(1, now, (1).to_bytes(2, "big") + b"89860000000000000001" + bytes([1, 0])))
        vehicle.sendall(frame(2, now, alarm(2, 1 << 11)))
        until("the desk is told of it", lambda: told() == ["raised"])
        (first,) = taken
        assert (first["alarm"]["vin"], first["alarm"]["name"], first["alarm"]["level"]) == (VIN, "insulation", 2)
        number = first["alarm"]["id"]
        assert [one["id"] for one in ask(f"/v1/vehicles/{VIN}/alarms")["alarms"]] == [number]

        ask(f"/v1/alarms/{number}/acknowledge", {"by": "li", "note": "driver called"})
        os.kill(system.pids["pipeline-0"], signal.SIGKILL)  # it tells of alarms, too
        vehicle.sendall(frame(2, now + timedelta(seconds=10), alarm(3, 1 << 11)))
        until("acknowledged and worse are told", lambda: {"acknowledged", "changed"} <= set(told()))
        ask(f"/v1/alarms/{number}/close", {"by": "wu"})
        until("closed is told", lambda: "closed" in told())

    by_id = {each["id"]: each for each in taken}  # a receiver that keeps ids
    assert sorted(each["event"] for each in by_id.values()) == ["acknowledged", "changed", "closed", "raised"]
    (changed,) = (each for each in by_id.values() if each["event"] == "changed")
    assert changed["changes"] == {"level": [2, 3]}
    whole = ask(f"/v1/alarms/{number}")
    assert (whole["state"], whole["level"], whole["acknowledged_by"], whole["closed_by"]) == ("closed", 3, "li", "wu")
    assert {each["state"] for each in whole["deliveries"]} == {"delivered"}
    assert max(each["attempts"] for each in whole["deliveries"]) > 1
