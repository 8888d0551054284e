"""Statistics of a running system: kill -9 at any time costs nothing, and every row is told of in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from services.topology import System
from tests.e2e.conftest import Fleet, acked, caught_up, until

pytestmark = [pytest.mark.slow, pytest.mark.database]

VEHICLES, REPORTS = 60, 400


def statistics_caught_up(db: psycopg.Connection[Any]) -> bool:
    """Is everything stored, and told of in the statistics?  A change is there until the swap that settles it."""
    return caught_up(db) and db.execute("SELECT NOT EXISTS (SELECT FROM statistics_changes)").fetchone() == (True,)


def test_statistics_survive_being_killed(
    dsn: str, db: psycopg.Connection[Any], start_system: Callable[..., System], start_fleet: Callable[..., Fleet]
) -> None:
    # beforehand, or the kills would only ever meet the compiler
    subprocess.run([sys.executable, "-m", "services.topology", "warm", "common", "statistics"], check=True)
    system = start_system(dsn, statistics={"every_s": 0.5, "processes": 2})
    fleet = start_fleet(system, "--vehicles", str(VEHICLES), "--reports", str(REPORTS), "--speed", "0", "--window", "2")
    for share in (0.1, 0.4, 0.7, 1.0):
        until("the fleet is under way", lambda share=share: acked(system) >= share * VEHICLES * REPORTS)
        for name in ("statistics-0", "statistics-1"):
            if name in system.pids:
                os.kill(system.pids[name], signal.SIGKILL)
        until("it is back", lambda: {"statistics-0", "statistics-1"} <= set(system.pids))
    fleet.result()
    until("the statistics have followed", lambda: statistics_caught_up(db))
    until("all is up again", lambda: system.children_ready)

    row = db.execute(
        "SELECT (SELECT sum(rows) FROM vehicle_day), (SELECT sum(rows) FROM vehicle_hour),"
        " (SELECT count(*) FROM telemetry),"
        " (SELECT count(DISTINCT vehicle_id) FROM vehicle_day), (SELECT count(*) FROM statistics_checkpoints)"
    ).fetchone()
    assert row is not None
    assert row == (VEHICLES * REPORTS, VEHICLES * REPORTS, VEHICLES * REPORTS, VEHICLES, VEHICLES)
