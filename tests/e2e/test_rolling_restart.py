"""Two gateway processes on one port, restarted one by one while a fleet drives: no acknowledged frame is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from services.topology import System
from tests.e2e.conftest import Fleet, acked, caught_up, ledger, until

pytestmark = [pytest.mark.slow, pytest.mark.database]


def asked(system: System, path: str) -> tuple[int, dict[str, Any]]:
    host, port = system.addresses["web"]
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def answered(system: System, door: str) -> bool:
    """Does a new connection find somebody who listens, at the second attempt at the latest?

    The kernel resets what it queued for a socket between that socket's last accept and its close
    (unless the machine has ``net.ipv4.tcp_migrate_req=1``): the next attempt goes to the other process.
    """
    for _ in range(2):
        with contextlib.suppress(ConnectionError):
            socket.create_connection(system.addresses[door], 5).close()
            return True
    return False


def test_gateways_restart_one_by_one_under_a_fleet(
    dsn: str, db: psycopg.Connection[Any], start_system: Callable[..., System], start_fleet: Callable[..., Fleet]
) -> None:
    system = start_system(dsn, gateway={"processes": 2})
    until("it is ready", lambda: asked(system, "/readyz")[0] == 200)
    assert asked(system, "/v1/system")[1]["gateway"]["listeners"] == {"mqtt": 2, "gbt32960": 2}
    arguments = ("--vehicles", "60", "--reports", "200", "--speed", "150", "--period", "10", "--seed", "11")
    fleet = start_fleet(system, *arguments)
    refused = 0
    for name in ("gateway-0", "gateway-1"):
        done = acked(system)
        until("the fleet is acknowledged", lambda done=done: acked(system) > done + 300)  # type: ignore[misc]
        pid = system.pids[name]
        os.kill(pid, signal.SIGTERM)
        while system.pids.get(name) in (pid, None):
            refused += not (answered(system, "mqtt") and answered(system, "gbt32960"))
        system.wait_ready()
        until("both listen again", lambda: asked(system, "/v1/system")[1]["gateway"]["listeners"]["mqtt"] == 2)
    result = fleet.result()
    assert result["acked"] == result["sent"] > 0, result
    until("the journal is stored", lambda: caught_up(db))
    found = ledger(db)
    assert found["frames"] == sum(found[name] for name in found if name != "frames")
    assert found["rejected"] == 0
    distinct = db.execute("SELECT count(*), count(DISTINCT (vehicle_id, time, kind, part)) FROM telemetry").fetchone()
    assert distinct == (60 * 200, 60 * 200)
    assert refused == 0, f"{refused} new connections found nobody, while one of two processes was there all the time"
    assert asked(system, "/readyz")[0] == 200


def test_not_ready_without_a_gateway(dsn: str, start_system: Callable[..., System]) -> None:
    """One process that is stopped: nobody takes vehicles, and readiness says so until it is back."""
    system = start_system(dsn)
    until("it is ready", lambda: asked(system, "/readyz")[0] == 200)
    pid = system.pids["gateway-0"]
    os.kill(pid, signal.SIGKILL)
    until(
        "it is noticed", lambda: asked(system, "/readyz")[0] == 503 or system.pids.get("gateway-0") not in (pid, None)
    )
    assert asked(system, "/healthz")[0] == 200
    system.wait_ready()
    until("it is ready again", lambda: asked(system, "/readyz")[0] == 200)
