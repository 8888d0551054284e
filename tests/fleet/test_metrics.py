"""Fleet metrics against answers worked out by hand, over days, weeks, months, years and windows of one's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from schemas.statistics.cohorts import SCALARS, SPREADS
from schemas.statistics.measures import CHECKS
from schemas.statistics.metrics import METRICS
from services.store.queries import Queries
from services.web import fleet_models as models
from tests.fleet.days import aggregated, at, car, changed, charge, episode, trip, vehicle_day
from tests.web.conftest import client_of
from tests.web.rows import NOW, insert, state

pytestmark = pytest.mark.database


def day(n: int, month: int = 10) -> date:
    return date(2026, month, n)


async def ask(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    answer = await client.get(f"/v1/fleet/{path}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    for beginning, shape in SHAPES.items():
        if path.startswith(beginning):
            shape.model_validate(found)  # as OpenAPI says
            break
    return found


SHAPES = {
    "metrics/": models.MetricAnswer, "metrics": models.Catalogue, "series": models.MetricAnswer,
    "report/year": models.YearlyReport, "lists/clusters": models.ClusterList, "lists/": models.VehicleList,
    "verification": models.Verification,
}  # fmt: skip


async def figures(client: httpx.AsyncClient, path: str, *by: str) -> dict[Any, dict[str, Any]]:
    """figure → row; with ``by`` (groups..., figure) → row."""
    rows = (await ask(client, path))["figures"]
    return {(*(row[name] for name in by), row["figure"]) if by else row["figure"]: row for row in rows}


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    queries = Queries(dsn)
    async with client_of(queries) as made:
        yield made
    await queries.close()


def fleet(db: psycopg.Connection[Any]) -> list[int]:
    """Four cars: two EX1 in the north (one retired in November), one bus in the south, one that nobody registered."""
    db.execute(
        "INSERT INTO models (model, battery_kwh, battery_ah, chemistry, battery_supplier, cells, probes, category,"
        " certified_kwh_per_100km) VALUES ('EX1', 60, 150, 'NCM', 'CATL', 96, 24, 'passenger', 14),"
        " ('BUS9', 300, 500, 'LFP', 'BYD', 180, 40, 'bus', NULL)"
    )
    one = car(db, "LFLEET00000000001", day(1, 8), model="EX1", fleet="taxi-a", region="north", usage="taxi")
    two = car(
        db, "LFLEET00000000002", day(5), model="EX1", fleet="taxi-a", region="north", usage="taxi",
        retired_at=at(day(10, 11), 0),
    )  # fmt: skip
    bus = car(db, "LFLEET00000000003", day(1, 8), model="BUS9", fleet="city", region="south", usage="bus",
              upload="on_change")  # fmt: skip
    insert(db, "vehicles", vin="LFLEET00000000004", first_seen_at=at(day(20), 9))
    row = db.execute("SELECT vehicle_id FROM vehicles WHERE vin = 'LFLEET00000000004'").fetchone()
    assert row is not None
    return [one, two, bus, row[0]]


async def test_distance_and_online(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, two, bus, stray = fleet(db)
    vehicle_day(db, one, day(30, 9), distance_km=7)
    vehicle_day(db, one, day(6), distance_km=100, untracked_km=10)
    vehicle_day(db, one, day(7), distance_km=0)
    vehicle_day(db, two, day(6), distance_km=50.5, gap_s=10, edition=25)
    vehicle_day(db, bus, day(31), distance_km=200, rows=5, reissued=5)  # only reissues: not online
    vehicle_day(db, stray, day(1, 11), distance_km=3, edition=0)
    await aggregated(dsn, NOW)

    u1 = await figures(client, "metrics/U1?window=month&at=2026-10")
    assert u1["distance_km"]["value"] == 350.5
    assert u1["untracked_km"]["value"] == 10
    assert u1["distance_per_vehicle_km"]["value"] == pytest.approx(350.5 / 3)
    assert u1["distance_per_vehicle_km"]["denominator"] == 3
    assert u1["distance_per_vehicle_km"]["mean_of"] == "vehicles with data"
    assert u1["distance_per_vehicle_km"]["median"] == pytest.approx(100, rel=0.02)  # of 50.5, 100, 200
    assert u1["distance_per_vehicle_km"]["p5"] == pytest.approx(50.5, rel=0.02)
    assert u1["distance_per_vehicle_km"]["p95"] == pytest.approx(200, rel=0.02)
    assert u1["distance_km"]["coverage"] == pytest.approx(4 * 990 / (4 * 990 + 10), abs=1e-6)
    assert u1["distance_km"]["newest_data_time"] == "2026-10-31T20:00:00+08:00"

    u2 = await figures(client, "metrics/U2?window=month&at=2026-10")
    assert u2["distance_per_moved_day_km"]["denominator"] == 3
    assert u2["distance_per_moved_day_km"]["value"] == pytest.approx(350.5 / 3)
    assert u2["distance_per_accessed_day_km"]["denominator"] == 4 * 31  # the stray one was first seen on the 20th

    a2 = await figures(client, "metrics/A2?window=month&at=2026-10")
    assert (a2["online_rate"]["numerator"], a2["online_rate"]["denominator"]) == (2, 4)
    assert a2["online_rate"]["value"] == 50

    a1 = await figures(client, "metrics/A1?window=month&at=2026-10")
    assert [a1[name]["value"] for name in ("accessed", "new", "retired")] == [4, 2, 0]
    a1 = await figures(client, "metrics/A1?from=2026-10-06&to=2026-11-10")
    assert [a1[name]["value"] for name in ("accessed", "new", "retired")] == [3, 1, 1]
    assert (await figures(client, "metrics/A1?at=2026-07"))["accessed"]["value"] == 0
    assert (await figures(client, "metrics/A2?at=2026-07"))["online_rate"]["value"] is None

    by_model = await figures(client, "metrics/U1?at=2026-10&by=model", "model")
    assert by_model["EX1", "distance_km"]["value"] == 150.5
    assert by_model["BUS9", "distance_km"]["value"] == 200
    assert by_model["EX1", "distance_km"]["vehicles"] == 2
    assert ("unknown", "distance_km") not in by_model  # it has no data in October
    november = await figures(client, "metrics/U1?at=2026-11&by=model,edition", "model", "edition")
    assert list(november) == [("unknown", "none", name) for name in
                              ("distance_km", "untracked_km", "distance_per_vehicle_km")]  # fmt: skip
    only = await figures(client, "metrics/U1?at=2026-10&region=north,unknown&edition=2025")
    assert only["distance_km"]["value"] == 50.5


async def test_windows_add_up(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    """Across months and years, for windows that are kept and that are not, against the plain sum of days."""
    one, two, bus, stray = fleet(db)
    days: list[tuple[int, date, float]] = []
    for n, vehicle_id in enumerate((one, two, bus, stray)):
        for k in range(0, 420, 17 + n):
            km = round(1.7 * (k % 13) + n + 0.1, 3)
            when = date(2025, 11, 3) + timedelta(days=k)
            if when < NOW.date():
                days.append((vehicle_id, when, km))
                vehicle_day(db, vehicle_id, when, distance_km=km)
    await aggregated(dsn, NOW)
    windows = [
        ("window=day&at=2026-01-09", date(2026, 1, 9), date(2026, 1, 9)),
        ("at=2026-W02", date(2026, 1, 5), date(2026, 1, 11)),
        ("at=2026-02", date(2026, 2, 1), date(2026, 2, 28)),
        ("at=2026", date(2026, 1, 1), date(2026, 12, 31)),
        ("from=2025-12-20&to=2026-03-04", date(2025, 12, 20), date(2026, 3, 4)),
        ("from=2025-11-01&to=2026-11-30", date(2025, 11, 1), date(2026, 11, 30)),
        ("from=2026-05-01&to=2026-06-30", date(2026, 5, 1), date(2026, 6, 30)),
    ]  # fmt: skip
    for text, first, last in windows:
        inside = [(vehicle_id, km) for vehicle_id, when, km in days if first <= when <= last]
        per_vehicle: dict[int, float] = {}
        for vehicle_id, km in inside:
            per_vehicle[vehicle_id] = per_vehicle.get(vehicle_id, 0) + km
        found = await figures(client, f"metrics/U1?{text}")
        assert found["distance_km"]["value"] == pytest.approx(sum(km for _, km in inside), abs=1e-6), text
        row = found["distance_per_vehicle_km"]
        assert row["vehicles"] == row["denominator"] == len(per_vehicle), text
        assert row["counted"] == len(per_vehicle)
        ranked = sorted(per_vehicle.values())
        if ranked:
            assert row["median"] == pytest.approx(ranked[-(-len(ranked) // 2) - 1], rel=0.021, abs=1e-3), text
        else:
            assert row["value"] is row["median"] is None
    series = (await ask(client, "series?metric=U1&per=month&from=2025-11-10&to=2026-11-02"))["figures"]
    by_month = {row["start"]: row["value"] for row in series if row["figure"] == "distance_km"}
    assert len(by_month) == 13
    for start, value in by_month.items():
        wanted = sum(km for _, when, km in days if when.isoformat()[:7] == start[:7])
        assert value == pytest.approx(wanted, abs=1e-6)


async def test_trips(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, two, _, _ = fleet(db)
    for vehicle_id in (one, two):
        vehicle_day(db, vehicle_id, day(6))
    # 00:30 on the 6th in Shanghai is the 5th in UTC: the local day counts; a Tuesday
    trip(db, one, at(day(6), 0, 30), 30, distance_km=20, moving_s=1200, start_soc_pct=80, end_soc_pct=75)
    trip(db, one, at(day(6), 18), 60, distance_km=40, moving_s=3600, start_soc_pct=75, end_soc_pct=60)
    trip(db, two, at(day(6), 18, 59), 6, distance_km=None, start_soc_pct=None, end_soc_pct=50)
    insert(db, "vehicle_hour", vehicle_id=one, hour=at(day(6), 18), day=day(6), driving_s=3000.4)
    insert(db, "vehicle_hour", vehicle_id=two, hour=at(day(6), 19), day=day(6), driving_s=1000)
    await aggregated(dsn, NOW)
    u3 = await figures(client, "metrics/U3?window=day&at=2026-10-06")
    assert u3["trips"]["value"] == 3
    assert u3["trip_distance_km"]["value"] == 30
    assert (u3["trip_distance_km"]["denominator"], u3["trip_distance_km"]["counted"]) == (2, 2)
    assert u3["trip_duration_min"]["value"] == 32
    assert u3["trip_duration_min"]["median"] == pytest.approx(30, rel=0.02)
    assert u3["trip_speed_kmh"]["value"] == 40  # 60 km in 90 min
    assert u3["trip_moving_speed_kmh"]["value"] == 45  # in 80 min
    assert u3["trip_moving_speed_kmh"]["p95"] == pytest.approx(60, rel=0.02)
    assert (u3["trip_start_soc_pct"]["value"], u3["trip_start_soc_pct"]["counted"]) == (77.5, 2)
    assert (u3["trip_end_soc_pct"]["p5"], u3["trip_end_soc_pct"]["median"]) == (50, 60)
    u4 = await figures(client, "metrics/U4?at=2026-10")
    starts = {(h["weekday"], h["hour"]): h for h in u4["driving_starts"]["histogram"]}
    assert len(starts) == 168
    assert starts[2, 0]["count"] == 1
    assert starts[2, 18] == {"weekday": 2, "hour": 18, "count": 2, "share": pytest.approx(2 / 3)}
    times = {(h["weekday"], h["hour"]): h["share"] for h in u4["driving_time"]["histogram"]}
    assert times[2, 18] == pytest.approx(0.75)
    a3 = await figures(client, "metrics/A3?at=2026-10")
    assert [a3[name]["value"] for name in ("active", "with_trip", "with_charge")] == [2, 2, 0]


async def test_joined_beforehand_or_when_asked(
    db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient
) -> None:
    """Distributions by up to two dimensions are kept joined; by three they are joined from cohorts: no difference."""
    one, two, bus, stray = fleet(db)
    for n, vehicle_id in enumerate((one, two, bus, stray)):
        for k in range(1, 6):
            vehicle_day(db, vehicle_id, day(k), distance_km=10 * k + n, edition=(16, 25)[k % 2])
            trip(db, vehicle_id, at(day(k)), 10 * k, distance_km=10 * k + n, moving_s=60)
    await aggregated(dsn, NOW)
    every = "usage=taxi,bus,unknown"
    for by in ("model", "model,edition", "region,fleet"):
        for window in ("at=2026-10", "window=week&at=2026-10-01", "window=day&at=2026-10-02"):
            kept = (await ask(client, f"metrics/U3?{window}&by={by}"))["figures"]
            asked = (await ask(client, f"metrics/U3?{window}&by={by}&{every}&chemistry=NCM,LFP,unknown"))["figures"]
            assert kept == asked
            assert len(kept) >= 3 * 7
    assert (await figures(client, f"metrics/U3?at=2026-10&model=EX1&{every}"))["trips"]["value"] == 10


async def test_charges(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, two, _, stray = fleet(db)
    for vehicle_id in (one, two, stray):
        vehicle_day(db, vehicle_id, day(6))
    fast = {"middle_power_kw": 40.0, "middle_coverage": 0.9}
    slow = {"middle_power_kw": 7.0, "middle_coverage": 0.9}
    charge(db, one, at(day(6), 1), 60, energy_kwh=30, start_soc_pct=9, end_soc_pct=60, **fast)
    charge(db, one, at(day(6), 12), 120, energy_kwh=10, start_soc_pct=50, end_soc_pct=70, **slow)
    charge(db, two, at(day(6), 13), 60, energy_kwh=20, start_soc_pct=100, end_soc_pct=100,
           middle_power_kw=40.0, middle_coverage=0.4)  # fmt: skip
    charge(db, stray, at(day(6), 14), 60, energy_kwh=None, start_soc_pct=None, end_soc_pct=30, **slow)  # no battery_kwh
    insert(db, "vehicle_hour", vehicle_id=one, hour=at(day(6), 1), day=day(6), charge_kwh=30)
    insert(db, "vehicle_hour", vehicle_id=one, hour=at(day(6), 12), day=day(6), charge_kwh=10)
    await aggregated(dsn, NOW)
    c1 = await figures(client, "metrics/C1?at=2026-10")
    assert c1["charges"]["value"] == 4
    assert c1["charges_per_vehicle_month"]["value"] == pytest.approx(4 / 3)
    assert c1["charges_per_vehicle_month"]["p95"] == pytest.approx(2, rel=0.02)
    assert c1["charge_duration_min"]["value"] == 75
    assert (c1["charge_energy_kwh"]["value"], c1["charge_energy_kwh"]["denominator"]) == (20, 3)
    assert c1["charge_soc_rise_pct"]["value"] == pytest.approx((51 + 20 + 0) / 3)
    assert c1["charge_soc_rise_pct"]["median"] == 20
    week = await figures(client, "metrics/C1?window=week&at=2026-10-08")
    assert week["charges_per_vehicle_month"]["value"] == pytest.approx(4 / 3 / (7 / 30.436875))
    c2 = await figures(client, "metrics/C2?at=2026-10")
    start = c2["charge_start_soc_pct"]
    assert (start["value"], start["p5"], start["median"], start["p95"]) == (53, 9, 50, 100)
    assert [h["count"] for h in start["histogram"]] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert c2["charge_end_soc_pct"]["histogram"][3]["share"] == 0.25
    c3 = await figures(client, "metrics/C3?at=2026-10")
    assert (c3["fast_share"]["value"], c3["fast_share"]["denominator"]) == (50, 2)
    assert c3["fast_energy_share"]["value"] == 75
    assert c3["unknown_charges"]["value"] == 2
    c4 = await figures(client, "metrics/C4?at=2026-10")
    drawn = {h["hour"]: h["share"] for h in c4["charge_energy"]["histogram"] if h["weekday"] == 2}
    assert (drawn[1], drawn[12]) == (0.75, 0.25)


async def test_energy(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, two, bus, _ = fleet(db)
    vehicle_day(db, one, day(6), consumption_km=100, consumption_kwh=14.7, out_kwh=20, regen_kwh=4, standing_kwh=0.5,
                standing_s=36000, standing_soc_pct=1, standing_span_s=43200)  # fmt: skip
    vehicle_day(db, two, day(6), consumption_km=50, consumption_kwh=8, out_kwh=10, regen_kwh=1)
    vehicle_day(db, bus, day(6), consumption_km=0.5, consumption_kwh=1)
    await aggregated(dsn, NOW)
    e1 = await figures(client, "metrics/E1?at=2026-10&by=model", "model")
    cars = e1["EX1", "consumption_kwh_per_100km"]
    assert cars["value"] == pytest.approx(100 * 22.7 / 150)
    assert (cars["numerator"], cars["denominator"]) == (22.7, 150)
    assert cars["median"] == pytest.approx(14.7, rel=0.02)  # of vehicle-days: 14.7 and 16
    assert cars["quantiles_of"] == "vehicle-days"
    assert "weighted by distance" in cars["mean_of"]
    assert e1["EX1", "gross_kwh_per_100km"]["value"] == pytest.approx(100 * 27.7 / 150)
    assert e1["EX1", "standing_w"]["value"] == pytest.approx(50)
    assert e1["EX1", "standing_soc_pct_per_day"]["value"] == 2
    assert e1["BUS9", "consumption_kwh_per_100km"]["value"] is None  # less than 1 km
    assert e1["BUS9", "standing_w"]["value"] is None
    e2 = await figures(client, "metrics/E2?at=2026-10")
    assert e2["regeneration_ratio"]["value"] == pytest.approx(100 * 5 / 30)
    e3 = await figures(client, "metrics/E3?at=2026-10&by=model", "model")
    gap = e3["EX1", "gap_to_certified"]
    assert gap["value"] == pytest.approx(100 * (22.7 / 21 - 1))
    assert gap["median"] == pytest.approx(5, abs=2.2)
    assert e3["BUS9", "gap_to_certified"]["value"] is None  # no certified consumption


async def test_data_quality(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, two, bus, _ = fleet(db)
    valid, flawed = [0] * 28, [0] * 28
    valid[3], flawed[3], valid[7] = 90, 10, 100
    vehicle_day(db, one, day(6), records=90, expected=100.0, missing_s=360, rows=110, reissued=11, repeated=22, late=33,
                field_valid=valid, field_flawed=flawed)  # fmt: skip
    vehicle_day(db, two, day(6), records=100, expected=100.0)
    vehicle_day(db, bus, day(6), records=10, expected=1000.0, missing_s=9000)  # on change: exempt
    insert(db, "vehicle_resends", vehicle_id=one, day=day(6), duplicates=5, conflicts=2)
    changed(db, day(6))
    await aggregated(dsn, NOW)
    q1 = await figures(client, "metrics/Q1?at=2026-10")
    assert (q1["missing_rate"]["numerator"], q1["missing_rate"]["denominator"]) == (10, 200)
    assert q1["missing_rate"]["value"] == 5
    assert q1["missing_rate"]["p95"] == pytest.approx(10, rel=0.02)
    assert q1["missing_hours"]["value"] == 0.1
    assert q1["exempt_vehicle_days"]["value"] == 1
    exempt = await figures(client, "metrics/Q1?at=2026-10&usage=bus")
    assert exempt["missing_rate"]["value"] is None
    q2 = (await figures(client, "metrics/Q2?at=2026-10"))["invalid_rate"]
    assert (q2["value"], q2["numerator"], q2["denominator"]) == (5, 10, 200)
    fields = {h["name"]: h for h in q2["histogram"]}
    assert fields["speed_kmh"] == {"name": "speed_kmh", "count": 10, "of": 100, "share": 0.1}
    assert fields["soc_pct"]["share"] == 0
    assert fields["gear"]["share"] is None
    q3 = await figures(client, "metrics/Q3?at=2026-10&fleet=taxi-a")
    assert q3["duplicate_rate"]["value"] == pytest.approx(100 * 7 / 217)
    assert q3["repeated_rate"]["value"] == pytest.approx(100 * 22 / 210)
    assert q3["late_rate"]["value"] == pytest.approx(100 * 33 / 210)
    assert q3["reissued_rate"]["value"] == pytest.approx(100 * 11 / 210)


async def test_verification(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, two, bus, stray = fleet(db)
    totals = [100] * 9
    monday = day(5)

    def failing(**checks: int) -> list[int]:
        return [checks.get(name, 0) for name in CHECKS]

    # 5 of 100 is still good for the first check, over the week: 1 + 9 of 200
    vehicle_day(db, one, monday, check_total=totals, check_failed=failing(mandatory_fields=1), cells_listed=96,
                probes_listed=24)  # fmt: skip
    vehicle_day(db, one, day(11), check_total=totals, check_failed=failing(mandatory_fields=9, extremes=2))
    vehicle_day(db, two, day(6), check_total=totals, check_failed=failing(mandatory_fields=6, odometer=1))
    vehicle_day(db, bus, day(7), check_total=totals, check_failed=failing(), cells_listed=179, probes_listed=40)
    vehicle_day(db, stray, day(7), check_total=[0] * 9, check_failed=[0] * 9, cells_listed=3)  # catalogue unknown
    vehicle_day(db, two, monday - timedelta(7), check_total=totals, check_failed=failing(clock=1))
    await aggregated(dsn, NOW)
    answer = await ask(client, "verification?week=2026-10-08")
    assert answer["week"] == "2026-W41"
    assert (answer["passed"], answer["checked"], answer["pass_rate_pct"]) == (2, 4, 50)
    found = {row["vin"][-1]: row for row in answer["vehicles"]}
    assert {vin: row["failed_checks"] for vin, row in found.items()} == {
        "2": ["mandatory_fields", "odometer"], "3": ["list_sizes"],
    }  # fmt: skip
    assert found["2"]["checks"][0] == {
        "check": "mandatory_fields", "looked_at": 100, "failed": 6, "good_share_min": 0.95,
    }  # fmt: skip
    assert (found["3"]["cells_seen"], found["3"]["cells"]) == (179, 180)
    assert (found["2"]["in_a_row"], found["3"]["in_a_row"]) == (2, 1)
    by_check = {check["name"]: (check["count"], check["of"]) for check in answer["checks"]}
    assert by_check["odometer"] == (1, 3)
    page = await ask(client, "verification?week=2026-W41&limit=1")
    assert (page["count"], page["next_cursor"]) == (1, "LFLEET00000000002")
    rest = (await client.get(page["next"])).json()
    assert [row["vin"] for row in rest["vehicles"]] == ["LFLEET00000000003"]
    month = await figures(client, "metrics/Q4?at=2026-10")  # weeks that end in October: W40 (ends on the 4th) on
    assert (month["pass_rate"]["numerator"], month["pass_rate"]["denominator"]) == (2, 5)
    single = await figures(client, "metrics/Q4?window=day&at=2026-10-07")
    assert single["pass_rate"]["denominator"] == 4
    per_week = (await ask(client, "series?metric=Q4&per=week&from=2026-09-28&to=2026-10-18"))["figures"]
    assert [(row["start"], row["value"]) for row in per_week if row["figure"] == "pass_rate"] == [
        ("2026-09-28", 0.0), ("2026-10-05", 50.0), ("2026-10-12", None),
    ]  # fmt: skip


async def test_alarms(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, two, bus, _ = fleet(db)
    for vehicle_id in (one, two, bus):
        vehicle_day(db, vehicle_id, day(6), distance_km=1000)
    for k in range(10):
        episode(db, one, at(day(6), 8, k))
    episode(db, two, at(day(6), 9), level=1, code=4)
    episode(db, two, at(day(6), 10), source=2, code=7, level=3)
    episode(db, bus, at(day(6), 10), source=2, code=20, level=1)  # offline: no alarm of the vehicle
    await aggregated(dsn, NOW)
    f1 = await figures(client, "metrics/F1?at=2026-10")
    assert (f1["episodes"]["value"], f1["serious_episodes"]["value"]) == (12, 11)
    by_flag = {(h["source"], h["code"], h["level"]): h for h in f1["episodes_by_flag"]["histogram"]}
    assert by_flag["flag", 11, 2]["count"] == 10
    assert by_flag["rule", 7, 3]["name"] == "thermal_event"
    assert len(by_flag) == 3
    f2 = await figures(client, "metrics/F2?at=2026-10")
    assert f2["alarmed_per_10000_vehicles"]["value"] == pytest.approx(1e4 * 2 / 3)
    assert f2["episodes_per_10000_km"]["value"] == 40
    assert (await figures(client, "metrics/F3?window=day&at=2026-10-06"))["frequent"]["value"] == 1
    later = await ask(client, "lists/frequent-alarms?to=2026-10-12")
    assert [(row["vin"][-1], row["episodes"]) for row in later["vehicles"]] == [("1", 10)]
    assert (await ask(client, "lists/frequent-alarms?to=2026-10-13"))["vehicles"] == []
    assert (await ask(client, "lists/frequent-alarms?to=2026-10-12&usage=bus"))["vehicles"] == []

    f4 = await figures(client, "metrics/F4?at=2026-10")
    assert f4["acknowledged_min"]["value"] is None
    assert {h["name"]: h["count"] for h in f4["handling"]["histogram"]}["raised"] == 11
    # handled later: the day itself does not change. 6 October is a Tuesday: ten working days end on the 20th
    db.execute("UPDATE alarm_episodes SET acknowledged_at = start_at + interval '10 min' WHERE vehicle_id = %s", [one])
    db.execute("UPDATE alarm_episodes SET acknowledged_at = start_at + interval '30 min', closed_at = %s"
               " WHERE vehicle_id = %s AND source = 2", [at(day(20), 23), two])  # fmt: skip
    made = await aggregated(dsn, NOW)
    assert ("D", day(6)) in made
    assert ("M", day(1)) in made
    f4 = await figures(client, "metrics/F4?at=2026-10")
    assert f4["acknowledged_min"]["counted"] == 11
    assert f4["acknowledged_min"]["median"] == pytest.approx(10, rel=0.02)
    assert {h["name"]: h["count"] for h in f4["handling"]["histogram"]} == {
        "raised": 11, "acknowledged": 11, "acknowledged_in_time": 10, "closed": 1, "closed_in_time": 1,
    }  # fmt: skip
    db.execute(
        "UPDATE alarm_episodes SET closed_at = %s WHERE vehicle_id = %s AND source = 2", [at(day(21), 0, 1), two]
    )
    await aggregated(dsn, NOW)
    handling = (await figures(client, "metrics/F4?at=2026-10"))["handling"]["histogram"]
    assert handling[4]["count"] == 0


async def test_battery(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, two, bus, stray = fleet(db)
    hot = [0] * 50
    hot[13] = 4  # 25..30 °C
    vehicle_day(db, one, day(6), discharge_ah=75, temp_driving=hot, range_rest_p50_mv=20, range_rest_p95_mv=60,
                insulation_min_kohm=39, insulation_min_ohm_per_v=97.5)  # fmt: skip
    vehicle_day(db, one, day(7), discharge_ah=75, insulation_min_kohm=100, insulation_min_ohm_per_v=250)
    vehicle_day(db, two, day(6), discharge_ah=300, range_rest_p50_mv=30)
    vehicle_day(db, bus, day(6), insulation_min_kohm=60000, insulation_min_ohm_per_v=100000)  # not measured
    vehicle_day(db, stray, day(6), discharge_ah=10)
    capacity = {"charges": 3, "p25_ah": 1, "p75_ah": 1}
    insert(db, "battery_capacity", vehicle_id=one, month=day(1), capacity_ah=135, **capacity)
    insert(db, "battery_capacity", vehicle_id=one, month=day(1, 9), capacity_ah=140, **capacity)
    insert(db, "battery_capacity", vehicle_id=stray, month=day(1), capacity_ah=90, **capacity)
    for k in (4, 5, 6):
        insert(db, "cell_outliers", vehicle_id=one, day=day(k), start_at=at(day(k)), cell=17, usable_rows=100,
               z_rows=10, robust_rows=60, deviation_mv=-12)  # fmt: skip
        insert(db, "cell_outliers", vehicle_id=two, day=day(k), start_at=at(day(k)), cell=3, usable_rows=100,
               z_rows=90, robust_rows=0, deviation_mv=9)  # fmt: skip
    await aggregated(dsn, NOW)
    b1 = await figures(client, "metrics/B1?at=2026-10")
    assert b1["temp_driving"]["histogram"] == [{"from": 25.0, "to": 30.0, "count": 4, "share": 1.0}]
    assert b1["temp_charging"]["histogram"] == []
    b2 = await figures(client, "metrics/B2?at=2026-10")
    assert b2["capacity_ah"]["counted"] == 2
    assert b2["capacity_ah"]["value"] == pytest.approx((135 + 90) / 2, rel=0.02)
    assert (b2["soh_pct"]["counted"], b2["soh_pct"]["median"]) == (1, pytest.approx(90, rel=0.02))
    assert b2["cycles_per_vehicle"]["value"] == pytest.approx((1 + 2) / 3)  # the bus has a rating and 0 cycles
    year = await figures(client, "metrics/B2?at=2026")
    assert year["capacity_ah"]["counted"] == 2  # each vehicle once, its newest month
    assert year["capacity_ah"]["p95"] == pytest.approx(135, rel=0.02)
    of_day = await figures(client, "metrics/B2?at=2026-10-06")
    assert of_day["capacity_ah"]["counted"] == 2
    b3 = await figures(client, "metrics/B3?at=2026-10")
    assert b3["rest_p50_mv"]["value"] == pytest.approx(25, rel=0.02)
    assert (b3["outlier_vehicles"]["value"], b3["outlier_cells"]["value"]) == (1, 1)
    assert (await figures(client, "metrics/B3?at=2026-10-05"))["outlier_cells"]["value"] == 0
    cells = await ask(client, "lists/outlier-cells?to=2026-10-06")
    assert [(row["vin"][-1], row["cell"], row["days"]) for row in cells["vehicles"]] == [("1", 17, 3)]
    b4 = await figures(client, "metrics/B4?at=2026-10")
    assert b4["insulation_ohm_per_v"]["counted"] == 2
    assert (b4["fault_share"]["value"], b4["warning_share"]["value"]) == (50, 100)
    assert b4["fault_vehicles"]["value"] == 1


async def test_offline(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, _, bus, stray = fleet(db)
    today = date(2026, 11, 24)
    vehicle_day(db, one, today)
    vehicle_day(db, bus, today - timedelta(8))
    vehicle_day(db, stray, today - timedelta(40))
    state(db, one, at(today, 10), 1)
    state(db, bus, at(today - timedelta(8)), 1)
    state(db, stray, at(today - timedelta(40)), 1)
    await aggregated(dsn, NOW)
    a4 = await figures(client, "metrics/A4")
    # two is retired; accessed are one, bus and the stray one
    assert [a4[f"offline_{n}_days"]["value"] for n in (7, 30, 90)] == [2, 1, 0]
    earlier = await figures(client, "metrics/A4?at=2026-11-16")
    assert [earlier[f"offline_{n}_days"]["value"] for n in (7, 30, 90)] == [2, 2, 1]  # one came later
    found = await ask(client, "lists/offline?days=7")
    assert [(row["vin"][-1], row["offline_days_over"]) for row in found["vehicles"]] == [("3", 7), ("4", 30)]
    assert found["vehicles"][0]["silent_days"] == pytest.approx(8.0)
    assert [row["vin"][-1] for row in (await ask(client, "lists/offline?days=30"))["vehicles"]] == ["4"]
    # nothing comes for a day: the states go on by the calendar
    await aggregated(dsn, NOW + timedelta(days=8))


async def test_clusters(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    for k in range(30):
        vehicle_id = car(db, f"LPARK{k:012d}", day(1), region="north" if k < 25 else "south")
        parked = {"speed_kmh": 0, "vehicle_state": 2, "charge_state": 3, "location_valid": 0 if k == 29 else 1}
        state(
            db, vehicle_id, NOW - timedelta(days=1), 1, latitude_deg=31.2000 + k * 1e-6, longitude_deg=121.4, **parked
        )
    moving = car(db, "LMOVE000000000001", day(1))
    state(db, moving, NOW, 1, latitude_deg=31.2, longitude_deg=121.4, speed_kmh=30, vehicle_state=1)
    found = await ask(client, "lists/clusters")
    assert [cluster["vehicles"] for cluster in found["clusters"]] == [29]  # one has no valid position
    assert found["clusters"][0]["latitude_deg"] == pytest.approx(31.2, abs=1e-4)
    assert len(found["clusters"][0]["vins"]) == 29
    assert [c["vehicles"] for c in (await ask(client, "lists/clusters?region=north"))["clusters"]] == [25]
    assert (await ask(client, "lists/clusters?vehicles=30"))["clusters"] == []


async def test_registry_changes_remake_days(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, _, _, stray = fleet(db)
    vehicle_day(db, one, day(6), distance_km=10)
    vehicle_day(db, stray, day(7), distance_km=5)
    await aggregated(dsn, NOW)
    assert await aggregated(dsn, NOW) == []
    db.execute("UPDATE vehicles SET model = 'EX1', region = 'east' WHERE vehicle_id = %s", [stray])
    db.execute("SELECT statistics_touch_days(%s)", [[stray]])
    made = await aggregated(dsn, NOW)
    assert ("D", day(7)) in made
    assert ("D", day(6)) not in made
    by_region = await figures(client, "metrics/U1?at=2026-10&by=region", "region")
    assert by_region["east", "distance_km"]["value"] == 5
    assert ("unknown", "distance_km") not in by_region
    behind = await ask(client, "metrics/U1?at=2026-10")
    assert behind["days_changed_since"] == 0
    changed(db, day(7))
    assert (await ask(client, "metrics/U1?at=2026-10"))["days_changed_since"] == 1


async def test_yearly_report(db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient) -> None:
    one, two, bus, _ = fleet(db)
    vehicle_day(db, one, day(6), distance_km=100, consumption_km=100, consumption_kwh=15)
    vehicle_day(db, two, day(6, 11), distance_km=50, consumption_km=50, consumption_kwh=8)
    vehicle_day(db, bus, day(6), distance_km=200)
    episode(db, one, at(day(6), 8))
    await aggregated(dsn, NOW)
    report = await ask(client, "report/year?year=2026")
    rows = {(row["section"], row["group"], row["figure"]): row["value"] for row in report["figures"]}
    assert rows["vehicles", None, "accessed"] == 3
    assert rows["vehicles_by_model", "EX1", "accessed"] == 1  # two is retired by then
    assert rows["vehicles_by_region", "south", "accessed"] == 1
    assert rows["distance_per_vehicle", None, "distance_per_vehicle_km"] == pytest.approx(350 / 3)
    assert rows["distance_by_model", "EX1", "distance_km"] == 150
    assert rows["distance", None, "distance_km"] == 350
    assert rows["energy", None, "consumption_kwh_per_100km"] == pytest.approx(100 * 23 / 150)
    assert rows["energy_by_model", "EX1", "gap_to_certified"] == pytest.approx(100 * (23 / 21 - 1))
    assert rows["faults", None, "episodes"] == 1
    assert rows["by_month", "2026-11", "distance_km"] == 50
    assert {row["item"] for row in report["figures"]} == {1, 2, 3, 4, 5, 6, 7}
    sheet = await client.get("/v1/fleet/report/year?year=2026&format=csv")
    assert sheet.headers["content-type"].startswith("text/csv")
    assert sheet.text.count("\n") == len(report["figures"]) + 1


async def test_every_id_of_the_catalogue_answers(
    db: psycopg.Connection[Any], dsn: str, client: httpx.AsyncClient
) -> None:
    one, *_ = fleet(db)
    vehicle_day(db, one, day(6))
    await aggregated(dsn, NOW)
    listed = (await ask(client, "metrics"))["metrics"]
    assert [metric["id"] for metric in listed] == (
        [
            "A1",
            "A2",
            "A3",
            "A4",
            "Q1",
            "Q2",
            "Q3",
            "Q4",
            "U1",
            "U2",
            "U3",
            "U4",
            "C1",
            "C2",
            "C3",
            "C4",
            "E1",
            "E2",
            "E3",
            "F1",
            "F2",
            "F3",
            "F4",
            "B1",
            "B2",
            "B3",
            "B4",
            "P1",
        ]
    )
    for metric in listed:
        for by in ("", "&by=model,region,usage", "&by=fleet,battery_supplier,chemistry", "&by=edition"):
            answer = await ask(client, f"metrics/{metric['id']}?at=2026-10{by}")
            rows = answer["figures"]
            assert bool(rows) == (metric["id"] != "P1"), metric["id"]
            assert {row["figure"] for row in rows} == {figure["name"] for figure in metric["figures"]}
            assert all(row["certainty"].startswith("[") for row in rows)
            if metric["id"] == "P1":
                assert answer["elsewhere"]
            else:
                assert answer["computed_at"]


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("metrics/Z9", "id"), ("metrics/U1?at=2026-13", "at"), ("metrics/U1?at=2026-W60", "at"),
        ("metrics/U1?from=2026-10-02&to=2026-10-01", "from"), ("metrics/U1?to=2026-10-01", "to"),
        ("metrics/U1?window=month&from=2026-10-01", "window"), ("metrics/U1?by=colour", "by"),
        ("metrics/U1?by=model,fleet,region,usage", "by"), ("metrics/U1?modell=x", "modell"),
        ("metrics/U1?model=,", "model"), ("series?metric=U1&per=day&from=2020-01-01&to=2026-01-01", "from"),
        ("lists/offline?days=0", "days"), ("lists/clusters?cursor=x", "cursor"), ("verification?week=x", "week"),
        ("lists/outlier-cells?cursor=x", "cursor"),
    ],
)  # fmt: skip
async def test_refused(client: httpx.AsyncClient, path: str, parameter: str) -> None:
    answer = await client.get(f"/v1/fleet/{path}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == parameter
    assert answer.json()["how_to_fix"]


def test_the_tables_have_the_columns(read_db: psycopg.Connection[Any]) -> None:
    found = read_db.execute(
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'cohort_period'"
        " ORDER BY ordinal_position"
    ).fetchall()
    assert found[3:-1] == [(scalar.name, scalar.sql) for scalar in SCALARS]
    assert len(SPREADS) == len({spread.name for spread in SPREADS})
    assert {figure.name for metric in METRICS for figure in metric.figures}
