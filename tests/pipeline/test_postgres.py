"""The pipeline between the PostgreSQL journal and the PostgreSQL sink."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from schemas.keys import partition_of_vin
from schemas.reasons import CODE
from schemas.signals import INDEX, State
from services.journal.postgres import PostgresJournal
from services.pipeline import worker
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.postgres import PostgresSink

pytestmark = pytest.mark.database

PARTITIONS = 3
T0 = 1_780_000_000
VINS = [f"LTEST{i:012}" for i in range(4)]
TABLES = ("telemetry", "vehicle_state", "logins", "dead_letters", "ledger", "journal_positions", "journal", "vehicles")


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_RETRY_FIRST_S", 0.01)


async def run(make: SimpleNamespace, dsn: str, sent: Sequence[Any], per_record: int = 1000, **changes: Any) -> None:
    """Append ``sent`` and run a pipeline until all of it is stored."""
    config = Settings.model_validate(
        {"pipeline": {"idle_sleep_ms": 1.0, **changes}, "journal": {"partitions": PARTITIONS}}
    )
    journal, sink = PostgresJournal(dsn, PARTITIONS), PostgresSink(dsn, config)
    await journal.open()
    by_partition: dict[int, list[Any]] = {}
    for one in sent:
        vin = one.frame[4:21].rstrip(b"\0").decode()
        by_partition.setdefault(partition_of_vin(vin, PARTITIONS), []).append(one)
    for partition, frames in by_partition.items():
        for at in range(0, len(frames), per_record):
            await journal.append([(partition, make.record(frames[at : at + per_record]))])
    pipeline, stop = Pipeline(config, journal, sink, range(PARTITIONS)), asyncio.Event()
    task = asyncio.create_task(pipeline.run(stop))
    await pipeline.caught_up()
    stop.set()
    await task
    await sink.close()
    await journal.close()


def rows_of(db: psycopg.Connection[Any], query: str) -> list[dict[str, Any]]:
    cursor = db.execute(query)
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def content(db: psycopg.Connection[Any]) -> dict[str, Any]:
    """What must not depend on the order of arrival."""
    volatile = ("vehicle_id", "received_at", "door")
    return {
        table: [
            {name: value for name, value in row.items() if name not in volatile and value is not None}
            for row in rows_of(
                db, f"SELECT v.vin, t.* FROM {table} t JOIN vehicles v USING (vehicle_id) ORDER BY 1, time, kind, part"
            )
        ]
        for table in ("telemetry", "vehicle_state")
    }


def ledger(db: psycopg.Connection[Any]) -> dict[str, int]:
    names = ("frames", "rows", "duplicates", "conflicts", "rejected", "sessions", "other")
    for line in rows_of(db, "SELECT * FROM ledger"):
        assert line["frames"] == sum(line[name] for name in names[1:])
    (total,) = rows_of(db, "SELECT " + ", ".join(f"sum({name})::int AS {name}" for name in names) + " FROM ledger")
    return {name: n for name, n in total.items() if n}


async def test_every_kind_of_frame(make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any]) -> None:
    unit = make.beijing(T0)
    login = make.frame(VINS[0], 1, unit + b"\0\7" + b"89860000000000000001" + b"\2\3" + b"AB1A\0B")
    platform = make.frame(
        "PLATFORM-1", 5, unit + b"\0\1" + b"user".ljust(12, b"\0") + b"secret".ljust(20, b"\0") + b"\1"
    )
    frames = [
        make.Sent(login, T0),
        make.Sent(platform, T0),
        make.Sent(make.report(VINS[0], T0, speed=0xFFFF), T0 + 0.25),
        make.Sent(make.frame(VINS[1], 3, unit + make.vehicle() + make.cells([3300, 3301, 0xFFFE])), T0 + 1),
        make.Sent(make.report(VINS[0], T0 + 1), T0 + 2),
        make.Sent(make.report(VINS[0], T0 + 1), T0 + 3),
        make.Sent(make.report(VINS[2], 946_684_800), T0),
        make.Sent(
            make.report(VINS[2], T0),
            T0,
            CODE["unknown_vin"],
            4,
            {"peer": "192.0.2.1:9", "vin": VINS[2], "client": "a\0b"},
        ),
        make.Sent(make.frame(VINS[0], 7, b""), T0),
    ]
    await run(make, dsn, frames)
    assert ledger(db) == {"frames": 9, "rows": 3, "duplicates": 1, "rejected": 2, "sessions": 2, "other": 1}
    first, second = rows_of(
        db, f"SELECT t.* FROM telemetry t JOIN vehicles v USING (vehicle_id) WHERE vin = '{VINS[0]}' ORDER BY time"
    )
    assert (first["speed_kmh"], second["speed_kmh"]) == (None, pytest.approx(65.3, abs=1e-5))
    assert first["flaws"] == bytes([INDEX["speed_kmh"], State.INVALID])
    assert (first["time"].timestamp(), first["received_at"].timestamp()) == (T0, T0 + 0.25)
    assert (second["odometer_km"], second["soc_pct"], second["total_voltage_v"]) == (12345.6, 80, pytest.approx(385.4))
    (reissue,) = rows_of(db, "SELECT * FROM telemetry WHERE kind = 3")
    assert (reissue["cell_count"], reissue["cell_max_v"], reissue["cells"]) == (
        3,
        pytest.approx(3.301),
        make.cells([3300, 3301, 0xFFFE])[1:],
    )
    letters = rows_of(db, "SELECT * FROM dead_letters ORDER BY reason")
    assert [(letter["reason"], letter["vin"]) for letter in letters] == [
        (CODE["unknown_vin"], VINS[2]),
        (CODE["clock_past"], VINS[2]),
    ]
    assert "\0" not in letters[0]["client"]
    vehicle, other = rows_of(db, "SELECT * FROM logins ORDER BY command")
    assert (vehicle["vin"], vehicle["serial"], vehicle["iccid"]) == (VINS[0], 7, "89860000000000000001")
    assert (other["vehicle_id"], other["username"]) == (None, "user")
    assert rows_of(db, "SELECT vin FROM vehicles ORDER BY vin") == [{"vin": VINS[0]}, {"vin": VINS[1]}]
    states = {row["vehicle_id"]: row for row in rows_of(db, "SELECT * FROM vehicle_state")}
    assert states[second["vehicle_id"]]["reports"] == 2
    assert states[second["vehicle_id"]]["time"] == second["time"]


REPORT = st.tuples(st.sampled_from(VINS), st.integers(0, 5), st.sampled_from([2, 3]), st.sampled_from([10, 20, 0xFFFE]))


@settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(reports=st.lists(REPORT, min_size=1, max_size=14), seed=st.integers(0, 999), frames_max=st.integers(1, 9))
def test_order_repetition_and_batches_do_not_matter(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], reports: list[Any], seed: int, frames_max: int
) -> None:
    """Conflicts (one key, two speeds) among the reports are meant."""
    shuffled = reports + reports[: len(reports) // 2]
    random.Random(seed).shuffle(shuffled)
    found = []
    for order, changes in ((reports, {}), (shuffled, {"batch_frames_max": frames_max})):
        db.execute(f"TRUNCATE {', '.join(TABLES)}")
        sent = [make.Sent(make.report(vin, T0 + s, kind, speed=speed), T0 + 60) for vin, s, kind, speed in order]
        asyncio.run(run(make, dsn, sent, per_record=3, **changes))
        assert ledger(db)["frames"] == len(order)
        found.append(content(db))
    assert found[0] == found[1]


async def test_the_line_to_the_store_is_cut_again_and_again(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any]
) -> None:
    """Backends are ended while the pipeline works: every frame is a row once."""
    sent = [make.Sent(make.report(vin, T0 + second), T0 + second) for second in range(150) for vin in VINS]
    cause = {"cause": "store_unavailable"}
    before = REGISTRY.get_sample_value("nevstream_pipeline_restarts_total", cause) or 0

    def restarts() -> float:
        return (REGISTRY.get_sample_value("nevstream_pipeline_restarts_total", cause) or 0) - before

    await run(make, dsn, sent[:1])  # so that a table is there to be wrong about
    working = asyncio.create_task(run(make, dsn, sent[1:], per_record=5, batch_frames_max=5))
    while restarts() < 3 and not working.done():
        await asyncio.to_thread(
            db.execute,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'nevstream store'",
        )
        await asyncio.sleep(0.02)
    await working
    assert restarts() >= 1
    assert ledger(db) == {"frames": len(sent), "rows": len(sent)}
    (states,) = rows_of(db, "SELECT sum(reports)::int AS n FROM vehicle_state")
    assert states["n"] == len(sent)
    (telemetry,) = rows_of(db, "SELECT count(*) AS n FROM telemetry")
    assert telemetry["n"] == len(sent)
