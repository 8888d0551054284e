"""Vehicles behind a broker: everything is stored once, while the gateways that take it from there are killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.metrics import totals
from services.topology import System
from tests.e2e.conftest import Fleet, acked, caught_up, ledger, until
from tests.gateway.broker import Mosquitto, mosquitto_program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.database,
    pytest.mark.skipif(
        mosquitto_program() is None, reason="mosquitto is not installed (Debian: apt install mosquitto)"
    ),
]

VEHICLES, REPORTS = 200, 100


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    program = mosquitto_program()
    assert program is not None
    made = Mosquitto(program, tmp_path)
    process = subprocess.Popen(made.argv)
    yield made
    process.kill()
    process.wait()


def connections(system: System) -> float:
    return totals(system.metrics_dir).get("nevstream_gateway_bridge_connections", 0.0)


def test_every_report_behind_a_broker_once_while_gateways_are_killed(
    dsn: str,
    db: psycopg.Connection[Any],
    broker: Mosquitto,
    start_system: Callable[..., System],
    start_fleet: Callable[..., Fleet],
) -> None:
    bridge = {"url": f"mqtt://127.0.0.1:{broker.port}", "connections": 2, "retry_first_s": 0.1}
    system = start_system(dsn, gateway={"processes": 2, "bridge": bridge})
    until("the bridge is connected", lambda: connections(system) == 4)
    # the fleet knows nothing of us: its door is the broker
    system.addresses["mqtt"] = ("127.0.0.1", broker.port)
    fleet = start_fleet(
        system, "--vehicles", str(VEHICLES), "--reports", str(REPORTS), "--speed", "0", "--window", "2",
        "--mqtt-share", "1",
    )  # fmt: skip
    for share, victim in ((0.1, "gateway-0"), (0.3, "gateway-1"), (0.5, "gateway-0")):
        until("messages come", lambda share=share: acked(system) > share * VEHICLES * REPORTS)
        before = system.pids[victim]
        os.kill(before, signal.SIGKILL)
        until("it is back", lambda victim=victim, before=before: system.pids.get(victim, before) != before)
        until("all are ready", lambda: system.children_ready)

    account = fleet.result()
    assert account["acked"] == VEHICLES * REPORTS  # by the broker
    until(
        "everything is stored",
        lambda: db.execute("SELECT count(*) FROM telemetry").fetchone() == (VEHICLES * REPORTS,) and caught_up(db),
    )
    booked = ledger(db)
    assert booked["rows"] == VEHICLES * REPORTS
    assert booked["rejected"] == booked["conflicts"] == 0
    assert booked["frames"] == sum(booked[name] for name in ("rows", "duplicates", "sessions", "other"))
    assert db.execute("SELECT DISTINCT door FROM telemetry").fetchall() == [(3,)]
    until("the bridge is whole again", lambda: connections(system) == 4)
