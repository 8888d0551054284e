"""Two gateways and two pipelines: partitions are dealt, nothing is lost or twice, statistics tell of all rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from services.metrics import totals
from services.topology import System
from tests.e2e.conftest import Fleet, caught_up, ledger, until

pytestmark = [pytest.mark.slow, pytest.mark.database]

VEHICLES, REPORTS = 80, 150


def test_two_gateways_and_two_pipelines(
    dsn: str, db: psycopg.Connection[Any], start_system: Callable[..., System], start_fleet: Callable[..., Fleet]
) -> None:
    system = start_system(
        dsn, gateway={"processes": 2}, pipeline={"processes": 2}, statistics={"every_s": 0.5, "processes": 2}
    )
    assert {"gateway-0", "gateway-1", "pipeline-0", "pipeline-1"} <= set(system.pids)
    assert system._supervisor is not None
    dealt = [system._supervisor.children[f"pipeline-{k}"].facts["partitions"] for k in range(2)]
    assert dealt == [[0, 2, 4, 6], [1, 3, 5, 7]]

    arguments = (
        "--vehicles",
        str(VEHICLES),
        "--reports",
        str(REPORTS),
        "--speed",
        "0",
        "--window",
        "2",
        "--faults",
        "dirty",
    )
    account = start_fleet(system, *arguments, "--seed", "5").result()
    until("the journal is stored", lambda: caught_up(db))
    until(
        "the statistics have followed",
        lambda: db.execute("SELECT NOT EXISTS (SELECT FROM statistics_changes)").fetchone() == (True,),
    )

    booked = ledger(db)
    assert booked["rows"] == account["expected_stored"]
    assert booked["rejected"] == account["expected_rejected"]
    assert booked["frames"] == sum(count for name, count in booked.items() if name != "frames")
    rows = db.execute(
        "SELECT count(*), count(DISTINCT (vehicle_id, time, kind, part)), count(DISTINCT vehicle_id),"
        " (SELECT sum(reports) FROM vehicle_state), (SELECT sum(rows) FROM vehicle_day) FROM telemetry"
    ).fetchone()
    stored = account["expected_stored"]
    assert rows == (stored, stored, VEHICLES, stored, stored)
    worked = db.execute("SELECT count(*) FROM ledger WHERE frames > 0").fetchone()
    assert worked == (8,), "every partition has frames, and each pipeline half of them"
    files = {file.name.rsplit("_", 1)[-1].removesuffix(".db") for file in system.metrics_dir.glob("counter_*.db")}
    assert {str(system.pids[f"gateway-{k}"]) for k in range(2)} <= files
    assert totals(system.metrics_dir)["nevstream_gateway_frames_acked_total"] >= stored
