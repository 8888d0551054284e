"""From a vehicle's socket to a row: nothing acked is missing, nothing is stored twice, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from services.topology import System
from tests.e2e.conftest import Fleet, acked, caught_up, ledger, until

pytestmark = [pytest.mark.slow, pytest.mark.database]

VEHICLES, REPORTS = 500, 60


def _rows(db: psycopg.Connection[Any]) -> tuple[int, int, int]:
    """(rows, distinct (vehicle, time), vehicles that have exactly REPORTS rows)"""
    row = db.execute(
        "SELECT count(*), count(DISTINCT (vehicle_id, time)), (SELECT count(*) FROM"
        " (SELECT 1 FROM telemetry GROUP BY vehicle_id HAVING count(*) = %s) complete) FROM telemetry",
        [REPORTS],
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


@pytest.mark.parametrize("victim", ["gateway-0", "pipeline-0", "both"])
def test_every_report_once_while_processes_are_killed(
    dsn: str,
    db: psycopg.Connection[Any],
    start_system: Callable[..., System],
    start_fleet: Callable[..., Fleet],
    victim: str,
) -> None:
    system = start_system(dsn)
    fleet = start_fleet(system, "--vehicles", str(VEHICLES), "--reports", str(REPORTS), "--speed", "0", "--window", "2")
    victims = ["gateway-0", "pipeline-0"] if victim == "both" else [victim]

    for share in (0.2, 0.5):
        until("the fleet is under way", lambda share=share: acked(system) > share * VEHICLES * REPORTS)
        killed = {name: system.pids[name] for name in victims}
        for pid in killed.values():
            os.kill(pid, signal.SIGKILL)
        until(
            "the killed ones are back",
            lambda killed=killed: (
                system.children_ready and all(system.pids.get(name, pid) != pid for name, pid in killed.items())
            ),
        )

    account = fleet.result()
    until("the journal is stored", lambda: caught_up(db))

    assert (account["sent"], account["acked"], account["complete"]) == (VEHICLES * REPORTS, VEHICLES * REPORTS, True)
    assert _rows(db) == (VEHICLES * REPORTS, VEHICLES * REPORTS, VEHICLES)
    if victim != "pipeline-0":
        assert account["drops"] > 0, "the kill came too late to prove anything"
    booked = ledger(db)
    assert booked["rows"] == VEHICLES * REPORTS
    assert booked["rejected"] == booked["conflicts"] == 0
    assert booked["frames"] == sum(booked[k] for k in ("rows", "duplicates", "sessions", "other"))


def test_faults_of_a_dirty_fleet_are_all_accounted_for(
    dsn: str, db: psycopg.Connection[Any], start_system: Callable[..., System], start_fleet: Callable[..., Fleet]
) -> None:
    system = start_system(dsn)
    account = start_fleet(
        system, "--vehicles", "60", "--reports", "200", "--speed", "0", "--faults", "dirty", "--seed", "3"
    ).result()
    until("the journal is stored", lambda: caught_up(db))

    booked = ledger(db)
    assert account["planned"]["corrupt"] > 0
    assert account["planned"]["wrong_clock"] > 0
    assert booked["rows"] == account["expected_stored"]
    assert booked["rejected"] == account["expected_rejected"]
    found = db.execute("SELECT count(*) FROM dead_letters").fetchone()
    assert found == (account["expected_rejected"],)


def test_the_database_is_away_in_the_middle(
    tmp_path_factory: pytest.TempPathFactory,
    reachable_dir: Any,
    start_system: Callable[..., System],
    start_fleet: Callable[..., Fleet],
) -> None:
    system = start_system(None, database={"data_dir": reachable_dir / "away"})
    fleet = start_fleet(system, "--vehicles", "100", "--reports", "150", "--speed", "0", "--window", "2")
    until("the fleet is under way", lambda: acked(system) > 3000)

    with psycopg.connect(system.dsn, autocommit=True) as db:
        postmaster = db.execute("SELECT pg_read_file('postmaster.pid')").fetchone()
        assert postmaster is not None
    os.kill(int(postmaster[0].split()[0]), signal.SIGKILL)

    account = fleet.result()
    with psycopg.connect(system.dsn, autocommit=True) as db:
        until("the journal is stored", lambda: caught_up(db))
        booked = ledger(db)
    assert (account["acked"], account["complete"]) == (15_000, True)
    assert booked["rows"] == 15_000
    assert booked["rejected"] == booked["conflicts"] == 0
