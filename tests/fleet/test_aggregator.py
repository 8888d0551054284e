"""The aggregator: built up change by change it ends as if made at once, and nobody about fleets reads telemetry."""

from __future__ import annotations

from datetime import date, timedelta
from functools import partial
from random import Random
from typing import Any

import psycopg
import pytest

from schemas.statistics.metrics import METRICS
from services.store.queries import Queries
from tests.fleet.days import aggregated, at, car, charge, episode, trip, vehicle_day
from tests.web.conftest import client_of
from tests.web.rows import NOW, insert, state

pytestmark = pytest.mark.database

TABLES = {
    "cohort_period": "span, start, cohort_id", "cohort_spread": "span, start, spread, cohort_id",
    "group_spread": "span, start, spread, dimension, value", "cohort_state": "day, cohort_id",
    "cohort_access": "span, start, cohort_id", "vehicle_brief": "span, start, vehicle_id",
    "vehicle_checks": "week, vehicle_id",
}  # fmt: skip
FIRST = date(2025, 12, 20)


def contents(db: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    return {
        table: db.execute(f"SELECT * FROM {table} ORDER BY {key}").fetchall()
        for table, key in TABLES.items()
    }  # fmt: skip


def made(rng: Random, db: psycopg.Connection[Any], vehicle_id: int, day: date) -> None:
    """A day of a vehicle with everything that there can be."""
    tallies = {name: [rng.randrange(5) for _ in range(size)] for name, size in (
        ("field_valid", 28), ("field_flawed", 28), ("temp_driving", 50), ("temp_charging", 50),
        ("check_total", 9), ("check_failed", 9))}  # fmt: skip
    vehicle_day(
        db, vehicle_id, day, records=rng.randrange(1, 200), distance_km=rng.random() * 100,
        edition=rng.choice((16, 25)), consumption_km=rng.random() * 50, consumption_kwh=rng.random() * 10,
        out_kwh=rng.random() * 10,
        regen_kwh=rng.random(), insulation_min_kohm=rng.random() * 100, insulation_min_ohm_per_v=rng.random() * 600,
        discharge_ah=rng.random() * 90, range_rest_p50_mv=rng.random() * 60, **tallies,
    )  # fmt: skip
    for _ in range(rng.randrange(3)):
        trip(db, vehicle_id, at(day, rng.randrange(24)), rng.random() * 90, distance_km=rng.random() * 60,
             moving_s=rng.random() * 1000, start_soc_pct=rng.randrange(101),
             end_soc_pct=rng.randrange(101))  # fmt: skip
    if rng.random() < 0.5:
        charge(db, vehicle_id, at(day, rng.randrange(24)), 60, energy_kwh=rng.random() * 40, start_soc_pct=20,
               end_soc_pct=rng.randrange(101), middle_power_kw=rng.random() * 60, middle_coverage=0.8)  # fmt: skip
    for _ in range(rng.randrange(4)):
        episode(db, vehicle_id, at(day, rng.randrange(24)), code=rng.randrange(28), level=rng.randrange(4))
    insert(db, "vehicle_hour", vehicle_id=vehicle_id, hour=at(day, 7), day=day, driving_s=rng.random() * 3600)


def rows(db: psycopg.Connection[Any], order: Random | None) -> list[tuple[int, date]]:
    """Eight vehicles, and the (vehicle, day) that have data, in the order in which they will come."""
    for k in range(3):
        db.execute("INSERT INTO models (model, battery_kwh, battery_ah) VALUES (%s, 50, 140)", [f"M{k}"])
    ids = [car(db, f"LORDER{k:011d}", FIRST, model=f"M{k % 3}", region=("a", "b")[k % 2]) for k in range(8)]
    found = [(vehicle_id, FIRST + timedelta(days=d)) for vehicle_id in ids for d in range(0, 30, 1 + vehicle_id % 4)]
    if order is not None:
        order.shuffle(found)
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_in_whatever_order_days_come(databases: Any, seed: int) -> None:
    ends = []
    for order in (None, Random(seed)):
        dsn = databases.create(migrated=True)
        with psycopg.connect(dsn, autocommit=True) as db:
            days = rows(db, order)
            size = len(days) if order is None else 37
            for begin in range(0, len(days), size):
                for vehicle_id, day in days[begin : begin + size]:
                    made(Random(vehicle_id * 1000 + day.toordinal()), db, vehicle_id, day)
                await aggregated(dsn, NOW)
            assert await aggregated(dsn, NOW) == []
            ends.append(contents(db))
        databases.drop(dsn)
    # cohorts are numbered as they are found: the same vehicles in both, as they are registered first
    for table in TABLES:
        assert ends[0][table] == ends[1][table], table
        assert ends[0][table], table


async def test_only_what_has_changed_is_made_again(db: psycopg.Connection[Any], dsn: str) -> None:
    one = car(db, "LONE0000000000001", FIRST)
    for d in (0, 1, 40):
        vehicle_day(db, one, FIRST + timedelta(days=d))
    first = await aggregated(dsn, NOW)
    assert {span for span, _ in first} == {"D", "W", "M", "Y", "S"}
    vehicle_day(db, car(db, "LTWO0000000000002", FIRST), FIRST + timedelta(days=40))
    again = await aggregated(dsn, NOW)
    day = FIRST + timedelta(days=40)
    assert [entry for entry in again if entry[0] in "DWMY"] == [
        ("D", day), ("W", date(2026, 1, 26)), ("M", date(2026, 1, 1)), ("Y", date(2026, 1, 1)),
    ]  # fmt: skip
    assert {start for span, start in again if span == "S"} == {day}  # today's 90 days do not reach back to it


async def test_a_vehicle_that_appears_with_its_day(db: psycopg.Connection[Any], dsn: str) -> None:
    """Data older than the registration count, and make the vehicle accessed from then on."""
    one = car(db, "LONE0000000000001", date(2026, 11, 1))
    await aggregated(dsn, NOW)
    vehicle_day(db, one, date(2026, 10, 6))
    await aggregated(dsn, NOW)
    found = db.execute("SELECT start, joined FROM cohort_access WHERE span = 'D' AND joined > 0").fetchall()
    assert found == [(date(2026, 10, 6), 1)]


async def test_another_process_aggregates(db: psycopg.Connection[Any], dsn: str) -> None:
    vehicle_day(db, car(db, "LONE0000000000001", FIRST), FIRST)
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(7236328, 5)")
        assert await aggregated(dsn, NOW) == []
    assert await aggregated(dsn, NOW) != []


class Watched(Queries):
    """Keeps every query and its parameters."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.asked: list[tuple[Any, Any]] = []
        for connections in (self._connections, self._unions):
            connections.run = partial(self._watched, connections.run)  # type: ignore[method-assign]

    async def _watched(self, run: Any, query: Any, parameters: Any, **options: Any) -> Any:
        self.asked.append((query, parameters))
        return await run(query, parameters, **options)


async def test_no_fleet_query_touches_telemetry(db: psycopg.Connection[Any], dsn: str) -> None:
    """The plan of every query behind every path, by EXPLAIN."""
    one = car(db, "LONE0000000000001", FIRST, model="M1")
    for d in (0, 1, 40):
        made(Random(d), db, one, FIRST + timedelta(days=d))
    state(db, one, NOW - timedelta(days=100), 1)
    db.execute("SELECT ensure_telemetry_days(%s, %s)", [date(2026, 1, 1), date(2026, 1, 3)])
    await aggregated(dsn, NOW)
    queries = Watched(dsn)
    windows = ("at=2026-01", "at=2026", "at=2026-W02", "from=2025-12-22&to=2026-01-29")
    paths = [
        f"metrics/{metric.id}?{window}{by}"
        for metric in METRICS for window in windows for by in ("", "&by=model,region", "&model=M1")
    ]  # fmt: skip
    paths += [f"series?metric={metric.id}&per=day&from=2026-01-01&to=2026-01-31&by=model" for metric in METRICS]
    paths += ["report/year?year=2026", "lists/offline", "lists/frequent-alarms", "lists/clusters",
              "lists/outlier-cells", "verification"]  # fmt: skip
    async with client_of(queries) as client:
        for path in paths:
            assert (await client.get(f"/v1/fleet/{path}")).status_code == 200, path
    await queries.close()
    assert len(queries.asked) > 500
    seen = set()
    for query, parameters in queries.asked:
        plan = "\n".join(line for (line,) in db.execute(b"EXPLAIN " + query.as_bytes(db), parameters).fetchall())
        assert "telemetry" not in plan, plan
        seen |= {word for word in plan.split() if word.startswith(("cohort_", "vehicle_", "group_"))}
    assert {"cohort_period", "vehicle_brief"} <= seen  # the plans are plans


def test_nothing_that_is_asked_or_made_names_telemetry() -> None:
    from services.store import cohort_statements, fleet

    for module in (cohort_statements, fleet):
        for name, value in vars(module).items():
            text = value if isinstance(value, str) else repr(value)
            if not name.startswith("__"):
                assert "telemetry" not in text.lower(), name
