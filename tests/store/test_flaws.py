"""Flawed signals counted by day, and values that moved too fast: from the rows as they are, however they came."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any

import psycopg
import pytest

from schemas.checks import CHECKS, RATES
from schemas.signals import INDEX, State
from services.store.flaws import FlawCounter
from services.store.migrations import migrate
from tests.pipeline.conftest import Sent, report_frame
from tests.pipeline.running import put, settings_of, stored

pytestmark = pytest.mark.database

VIN, OTHER = "LTEST000000000001", "LTEST000000000002"
DAY = date(2026, 5, 28)
T0 = int(datetime(2026, 5, 28, 6, tzinfo=UTC).timestamp())
Counts = dict[tuple[str, str, str, str], int]
RATED = {rate.signal: rate for rate in RATES}
SETTINGS = {"clock_past_max_days": 36500, "clock_future_max_s": 10**9}


async def counted(dsn: str) -> list[date]:
    counter = FlawCounter(dsn)
    try:
        return await counter.count()
    finally:
        await counter.close()


def counts(db: psycopg.Connection[Any]) -> Counts:
    """(day, VIN, signal, state) → count."""
    found = db.execute(
        "SELECT day::text, vin, signal, state, count FROM signal_flaws JOIN vehicles USING (vehicle_id)"
    ).fetchall()
    return {(day, vin, signal, state): n for day, vin, signal, state, n in found}


async def through(dsn: str, frames: list[bytes], batches: int = 1) -> None:
    """The frames, in this order and so many commits, as the pipeline stores them."""
    size = -(-len(frames) // batches)
    for at in range(0, len(frames), size):
        await put(dsn, [Sent(frame, T0 + 5) for frame in frames[at : at + size]])
        await stored(dsn, settings_of(**SETTINGS))


def insert(
    db: psycopg.Connection[Any], vehicle_id: int, second: float, kind: int = 2, part: int = 0, **values: Any
) -> None:
    names = ", ".join(values)
    db.execute("SELECT ensure_telemetry_days(%s, %s)", [DAY - timedelta(1), DAY + timedelta(1)])
    at = datetime.fromtimestamp(T0 + second, UTC)
    db.execute(
        f"INSERT INTO telemetry (vehicle_id, time, received_at, kind, part, edition, door, digest, {names})"
        f" VALUES (%s, %s, %s, %s, %s, 16, 1, 1{', %s' * len(values)})",
        [vehicle_id, at, at, kind, part, *values.values()],
    )


def moved(db: psycopg.Connection[Any], vehicle_id: int | None = 1) -> list[tuple[float, str]]:
    """(second, signal) of every value that moved too fast."""
    found = db.execute(
        "SELECT extract(epoch FROM time)::float8 - %s, signal FROM rate_flaws(%s, %s, %s) ORDER BY 1, 2",
        [T0, vehicle_id, datetime.fromtimestamp(T0 - 200_000, UTC), datetime.fromtimestamp(T0 + 200_000, UTC)],
    ).fetchall()
    return [(second, signal) for second, signal in found]


# -- the table ------------------------------------------------------------------------------------------
def test_every_threshold_is_a_signal_with_a_source() -> None:
    assert len(RATED) == len(RATES)
    for rate in RATES:
        assert rate.signal in INDEX
        assert rate.source
        assert rate.slack > 0
        assert rate.rises_per_s > 0
    assert all(check.source for check in CHECKS)


def test_the_database_has_the_table(db: psycopg.Connection[Any]) -> None:
    found = db.execute("SELECT signal, rises_per_s, falls_per_s, slack, gap_max_s, above, source FROM rate_limits")
    assert {row[0]: row[1:] for row in found.fetchall()} == {
        rate.signal: (rate.rises_per_s, rate.falls_per_s, rate.slack, rate.gap_max_s, rate.above, rate.source)
        for rate in RATES
    }


@pytest.mark.parametrize("signal", RATED)
def test_the_function_knows_every_signal_of_the_table(db: psycopg.Connection[Any], signal: str) -> None:
    """At the threshold nothing is said; one step of the signal beyond it, both ways, it is."""
    rate = RATED[signal]
    low, step = (rate.above or 0) + 100.0, 1 if signal.endswith(("_c", "_pct")) else 0.1
    if signal == "soc_pct":
        low = 20.0
    for vehicle_id, (first, second) in enumerate(
        [
            (low, low + rate.rises_per_s * 10 + rate.slack),
            (low, low + rate.rises_per_s * 10 + rate.slack + step),
            (low + rate.falls_per_s * 10 + rate.slack, low),
            (low + rate.falls_per_s * 10 + rate.slack + step, low),
        ],
        1,
    ):
        insert(db, vehicle_id, 0, **{signal: first})
        insert(db, vehicle_id, 10, **{signal: second})
    assert [len(moved(db, vehicle_id)) for vehicle_id in (1, 2, 3, 4)] == [0, 1, 0, 1]
    assert moved(db, None) == [(10.0, signal)] * 2


def test_what_is_compared_with_what(db: psycopg.Connection[Any]) -> None:
    insert(db, 1, 0, speed_kmh=0)
    insert(db, 1, 1, total_voltage_v=400)  # a report without a speed stands between
    insert(db, 1, 2, speed_kmh=200, total_voltage_v=0)  # contactors open
    insert(db, 1, 2, kind=3, speed_kmh=0)  # the same second: no rate
    insert(db, 1, 63, speed_kmh=220)  # too long ago
    insert(db, 2, 64, speed_kmh=0)  # another vehicle
    insert(db, 1, 20 * 3600, odometer_km=5)  # the next UTC day
    insert(db, 1, 3, odometer_km=10)
    assert moved(db) == [(2.0, "speed_kmh")]


# -- counts ----------------------------------------------------------------------------------------------
def journey() -> list[bytes]:
    """Two vehicles, half an hour each: sentinels, values out of range, contradictions, and speeds that jump."""
    rng = Random(5)
    frames = []
    for vin in (VIN, OTHER):
        for k in range(60):
            speed = rng.choice((600, 610, 620, 620, 0xFFFE, 0xFFFF, 3000, 2100))
            soc = rng.choice((80, 80, 81, 0xFF, 120))
            charging = rng.choice((3, 3, 3, 1))
            frames.append(report_frame(vin, T0 + 2 * k, speed=speed, soc=soc, charge_state=charging))
        # two reports of one second that contradict each other: one of them is stored, whichever came first
        frames += [report_frame(vin, T0 + 7, speed=speed) for speed in (0xFFFF, 650)]
    return frames


def expected(db: psycopg.Connection[Any]) -> Counts:
    """The counts that the rows themselves say, worked out here."""
    found: Counts = {}
    names = list(INDEX)
    rows = db.execute(
        "SELECT (time AT TIME ZONE 'UTC')::date::text, vin, flaws FROM telemetry JOIN vehicles USING (vehicle_id)"
    ).fetchall()
    for day, vin, flaws in rows:
        for signal, state in zip((flaws or b"")[::2], (flaws or b"")[1::2], strict=True):
            key = (day, vin, names[signal], State(state).name.lower())
            found[key] = found.get(key, 0) + 1
    previous: dict[str, tuple[datetime, float]] = {}
    for vin, at, speed in db.execute(
        "SELECT vin, time, speed_kmh FROM telemetry JOIN vehicles USING (vehicle_id) WHERE speed_kmh IS NOT NULL"
        " ORDER BY vin, time"
    ).fetchall():
        if vin in previous:
            gap = (at - previous[vin][0]).total_seconds()
            if gap <= 60 and abs(speed - previous[vin][1]) > 50 * gap + 1:
                key = (str(DAY), vin, "speed_kmh", "rate")
                found[key] = found.get(key, 0) + 1
        previous[vin] = at, speed
    return found


async def test_any_order_and_any_repetition_ends_in_the_same_counts(dsn: str, db: psycopg.Connection[Any]) -> None:
    frames = journey()
    Random(1).shuffle(frames)
    await through(dsn, frames + frames[:40], batches=3)
    assert DAY in await counted(dsn)
    found = {key: n for key, n in counts(db).items() if key[2] in ("speed_kmh", "soc_pct", "charge_state")}
    assert found == {key: n for key, n in expected(db).items() if key[2] in ("speed_kmh", "soc_pct", "charge_state")}
    assert {state for _, _, _, state in found} == {"abnormal", "invalid", "out_of_range", "suspect", "rate"}
    before = counts(db)
    Random(2).shuffle(frames)
    db.execute("TRUNCATE telemetry, telemetry_days, signal_flaws, signal_flaw_days")
    db.execute("DELETE FROM vehicle_state")
    await through(dsn, frames, batches=5)
    await counted(dsn)
    assert counts(db) == before


async def test_only_what_changed_is_counted_again(dsn: str, db: psycopg.Connection[Any]) -> None:
    await through(dsn, [report_frame(VIN, T0, soc=0xFF), report_frame(VIN, T0 - 86_400, soc=0xFF)])
    assert set(await counted(dsn)) >= {DAY, DAY - timedelta(1)}
    assert await counted(dsn) == []
    await through(dsn, [report_frame(VIN, T0 - 86_399, soc=0xFE)])  # late, for the day before
    assert await counted(dsn) == [DAY - timedelta(1)]
    soc = {key: n for key, n in counts(db).items() if key[2] == "soc_pct"}
    assert soc == {
        (str(DAY), VIN, "soc_pct", "invalid"): 1,
        (str(DAY - timedelta(1)), VIN, "soc_pct", "invalid"): 1,
        (str(DAY - timedelta(1)), VIN, "soc_pct", "abnormal"): 1,
    }
    reports = dict(db.execute("SELECT day, reports FROM signal_flaw_days WHERE reports > 0").fetchall())
    assert reports == {DAY: 1, DAY - timedelta(1): 2}


async def test_signals_of_a_file_are_counted_by_name(dsn: str, db: psycopg.Connection[Any]) -> None:
    db.execute("INSERT INTO vehicles (vin) VALUES (%s)", [VIN])
    insert(db, 1, 0, extra='{"doors": 4, "_flaws": {"tyre_kpa": "invalid", "cabin_c": "nonsense"}}')
    insert(db, 1, 1, extra='{"_flaws": 7}')
    db.execute("INSERT INTO telemetry_days VALUES (%s, 0, 1)", [DAY])
    await counted(dsn)
    assert counts(db) == {(str(DAY), VIN, "tyre_kpa", "invalid"): 1}


async def test_another_threshold_means_counting_again(dsn: str, db: psycopg.Connection[Any]) -> None:
    await through(dsn, [report_frame(VIN, T0)])
    await counted(dsn)
    db.execute("UPDATE rate_limits SET slack = 99 WHERE signal = 'soc_pct'")
    assert await counted(dsn) == []
    migrate(dsn)  # puts back what this program says
    assert DAY in await counted(dsn)


async def test_one_at_a_time(dsn: str, db: psycopg.Connection[Any]) -> None:
    await through(dsn, [report_frame(VIN, T0)])
    db.execute("SELECT pg_advisory_lock(7236328, 4)")
    assert await counted(dsn) == []
    db.execute("SELECT pg_advisory_unlock(7236328, 4)")
    assert DAY in await counted(dsn)
