"""With TimescaleDB telemetry is a hypertable, and everything else is the same text and the same answer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from services.store import statements
from services.store.columns import TELEMETRY
from services.store.migrations import migrate, newest_migration
from services.store.queries import Queries

pytestmark = [pytest.mark.database, pytest.mark.slow]

NOON = datetime(2026, 11, 24, 4, 0, tzinfo=UTC)
VIN = "LTEST000000000001"


@pytest.fixture(scope="module")
def migrated(timescale_dsn: str) -> str:
    migrate(timescale_dsn)
    return timescale_dsn


@pytest.fixture
def ts(migrated: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("TRUNCATE telemetry, vehicles, vehicle_state CASCADE")
        yield connection


def _vehicle(ts: psycopg.Connection[Any]) -> int:
    row = ts.execute("INSERT INTO vehicles (vin) VALUES (%s) RETURNING vehicle_id", [VIN]).fetchone()
    assert row is not None
    return int(row[0])


def _report(ts: psycopg.Connection[Any], table: str, vehicle: int, time: datetime, digest: int, soc: int) -> None:
    ts.execute(
        f"INSERT INTO {table} (vehicle_id, time, received_at, kind, part, edition, door, digest, soc_pct, speed_kmh)"
        " VALUES (%s, %s, %s, 2, 0, 16, 1, %s, %s, 65.3)",
        [vehicle, time, time, digest, soc],
    )


def test_telemetry_is_a_hypertable_with_a_chunk_a_day(ts: psycopg.Connection[Any]) -> None:
    vehicle = _vehicle(ts)
    assert ts.execute("SELECT ensure_telemetry_days('2026-11-22', '2026-11-24')").fetchone() == (0,)

    for day in range(3):
        _report(ts, "telemetry", vehicle, NOON - timedelta(days=day), day, 50)

    chunks = ts.execute("SELECT count(*) FROM show_chunks('telemetry')").fetchone()
    dimension = ts.execute(
        "SELECT column_name, time_interval FROM timescaledb_information.dimensions WHERE hypertable_name = 'telemetry'"
    ).fetchone()
    assert chunks == (3,)
    assert dimension == ("time", timedelta(days=1))


def test_a_report_is_there_once(ts: psycopg.Connection[Any]) -> None:
    vehicle = _vehicle(ts)
    _report(ts, "telemetry", vehicle, NOON, 1, 50)

    with pytest.raises(psycopg.errors.UniqueViolation):
        _report(ts, "telemetry", vehicle, NOON, 2, 60)


def test_late_rows_merge_as_on_plain_postgresql(ts: psycopg.Connection[Any]) -> None:
    vehicle = _vehicle(ts)
    _report(ts, "telemetry", vehicle, NOON, 5, 50)
    ts.execute("DROP TABLE IF EXISTS late_telemetry, batch_state")
    ts.execute(statements.TEMPORARY, prepare=False)

    with ts.transaction():
        for time, digest, soc in (
            (NOON, 5, 50),  # a resend
            (NOON, 3, 49),  # a contradiction with the smaller digest: it stays
            (NOON, 9, 51),  # a contradiction with the larger one
            (NOON - timedelta(days=2), 7, 48),  # new, of a day that has no chunk yet
        ):
            _report(ts, "late_telemetry", vehicle, time, digest, soc)
        counted = ts.execute(statements.COUNT_LATE, [8, "Asia/Shanghai"]).fetchall()
        ts.execute(statements.merge_late(TELEMETRY))

    stored = ts.execute("SELECT time, digest, soc_pct FROM telemetry ORDER BY time").fetchall()
    assert [(row[0], row[2], row[3], row[4]) for row in counted] == [(vehicle, NOON.date(), 1, 2)]
    assert stored == [(NOON - timedelta(days=2), 7, 48), (NOON, 3, 49)]


async def test_the_api_s_questions_are_the_same_text(migrated: str, ts: psycopg.Connection[Any]) -> None:
    vehicle = _vehicle(ts)
    for minute in range(10):
        _report(ts, "telemetry", vehicle, NOON + timedelta(minutes=minute), minute, 50 + minute)
    ts.execute(
        "INSERT INTO vehicle_state (vehicle_id, time, received_at, kind, part, edition, door, soc_pct, reports)"
        " VALUES (%s, %s, %s, 2, 0, 16, 1, 59, 10)",
        [vehicle, NOON + timedelta(minutes=9), NOON],
    )
    ts.close()  # one connection is all there is

    queries = Queries(migrated, connections_max=1)
    try:
        newest = await queries.report(vehicle, NOON + timedelta(minutes=9))
        raw = await queries.telemetry(
            vehicle, since=NOON, until=NOON + timedelta(hours=1), columns=["soc_pct"], after=None, limit=100
        )
        overview = await queries.overview(reporting_since=NOON - timedelta(hours=1))
        health = await queries.health()
    finally:
        await queries.close()

    assert len(newest.rows) == 1
    assert len(raw.rows) == 10
    assert overview["vehicles"] == 1
    assert health.schema_applied == newest_migration()
