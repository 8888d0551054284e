"""Fleet metrics over a million vehicles: how long each takes by month, and what the same costs without cohorts.

Three parts, each on a database of its own server: *answers* - every metric of the catalogue through the HTTP API (no
socket), the whole fleet, by model, and by region and usage, on the tables as they would be for 1,000,000 vehicles in
2,000 cohorts; *making* - the aggregator on vehicles' days, and the same metrics afterwards against plain SQL over these
days (``vehicle_day``, ``trips``...); *raw* - a day's distance and energy from telemetry, the query without any rollup.
The plain queries get the same answers, which is checked, and the same machine.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import httpx
import psycopg

from benchmarks import fleet_rows
from benchmarks.runner import Progress
from schemas.statistics.metrics import METRICS
from services.settings import Settings
from services.store.cohorts import Cohorts
from services.store.embedded import EmbeddedServer
from services.store.migrations import migrate
from services.store.queries import Queries
from services.web.app import create_app

NOW: Final = datetime(2026, 11, 2, 4, tzinfo=UTC)
GROUPINGS: Final = ("", "&by=model", "&by=region,usage")
_NO_WAIT: Final = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "8GB"}  # rows are made once, not kept

# The plain form of some metrics: SQL over the vehicles' days and sessions, grouped by model.
PLAIN: Final[dict[str, tuple[str, str]]] = {
    "U1": ("distance_km", """
        SELECT f.model, sum(d.distance_km) FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id)
        WHERE d.day BETWEEN %(first)s AND %(last)s GROUP BY 1"""),
    "A2": ("online_rate", """
        SELECT f.model, count(DISTINCT vehicle_id) FILTER (WHERE d.rows > d.reissued) FROM vehicle_day d
        JOIN vehicle_facts f USING (vehicle_id) WHERE d.day BETWEEN %(first)s AND %(last)s GROUP BY 1"""),
    "E1": ("consumption_kwh_per_100km", """
        SELECT f.model, 100 * sum(d.consumption_kwh) / sum(d.consumption_km), percentile_disc(ARRAY[0.05, 0.5, 0.95])
               WITHIN GROUP (ORDER BY 100 * d.consumption_kwh / d.consumption_km)
        FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id)
        WHERE d.day BETWEEN %(first)s AND %(last)s GROUP BY 1"""),
    "U3": ("trip_distance_km", """
        SELECT f.model, avg(t.distance_km),
               percentile_disc(ARRAY[0.05, 0.5, 0.95]) WITHIN GROUP (ORDER BY t.distance_km)
        FROM trips t JOIN vehicle_facts f USING (vehicle_id)
        WHERE t.day BETWEEN %(first)s AND %(last)s GROUP BY 1"""),
    "B1": ("temp_driving", """
        SELECT f.model, u.bin, sum(u.n) FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id)
        CROSS JOIN LATERAL unnest(d.temp_driving) WITH ORDINALITY AS u (n, bin)
        WHERE d.day BETWEEN %(first)s AND %(last)s GROUP BY 1, 2"""),
}  # fmt: skip
_RAW: Final = """
    SELECT count(DISTINCT vehicle_id), sum(km), sum(kwh) FROM (
        SELECT vehicle_id, max(odometer_km) - min(odometer_km) AS km,
               sum(total_voltage_v * total_current_a * dt) / 3.6e6 AS kwh
        FROM (SELECT vehicle_id, odometer_km, total_voltage_v, total_current_a,
                     extract(epoch FROM time - lag(time) OVER (PARTITION BY vehicle_id ORDER BY time)) AS dt
              FROM telemetry WHERE time >= timestamptz '2026-10-01 00:00+08'
                               AND time < timestamptz '2026-10-02 00:00+08') t GROUP BY vehicle_id) v
"""


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """The figures: ``metrics`` by id (p50_ms, p95_ms, ratio), the slowest, the aggregator's rates."""
    scale = {
        "vehicles": 1_000_000, "repeats": 5 if quick else 15, "day_vehicles": 2_000 if quick else 10_000, "days": 30,
        "telemetry_vehicles": 50 if quick else 200, "own_window": not quick,
    }  # fmt: skip
    answers, tables = _with_server(lambda dsn: _answers(dsn, scale, progress))
    making, plain = _with_server(lambda dsn: _making(dsn, scale, progress))
    for name, found in plain.items():
        answers[name] |= found
    months = [found["p95_ms"] for name, found in answers.items() if name in {metric.id for metric in METRICS}]
    slowest = max((name for name in answers if name in {m.id for m in METRICS}), key=lambda n: answers[n]["p95_ms"])
    ratios = [found["ratio"] for found in plain.values()]
    return {
        "p95_ms_max": max(months),
        "p95_ms_median": round(median(months), 1),
        "slowest_metric": slowest,
        "ratio_median": round(median(ratios), 1),
        **making,
        "metrics": answers,
        "tables": tables,
        "notes": [
            f"slowest metric by month: {slowest}, p95 {answers[slowest]['p95_ms']} ms",
            f"plain SQL is compared at {scale['day_vehicles']:,} vehicles × {scale['days']} days",
        ],
        "settings": scale,
    }


def _with_server(work: Callable[[str], Any]) -> Any:
    home = Path(tempfile.mkdtemp(prefix="nevstream-bench-"))
    home.chmod(0o711)  # the database's unprivileged user must reach its directory
    server = EmbeddedServer(home / "pg", options=_NO_WAIT)
    try:
        dsn = server.start()
        migrate(dsn)
        return work(dsn)
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


# -- answers ---------------------------------------------------------------------------------------------
def _answers(dsn: str, scale: dict[str, Any], progress: Progress) -> tuple[dict[str, Any], dict[str, int]]:
    begun = time.monotonic()
    with psycopg.connect(dsn, autocommit=True) as db:
        fleet_rows.vehicles(db, scale["vehicles"])
        progress(f"{scale['vehicles']:,} vehicles made in {time.monotonic() - begun:.0f} s")
        begun = time.monotonic()
        asyncio.run(_groups(dsn))
        progress(f"sorted into cohorts in {time.monotonic() - begun:.1f} s")
        begun = time.monotonic()
        tables = fleet_rows.cohort_rows(db, scale["vehicles"] // fleet_rows.COHORTS, scale["own_window"])
        progress(f"cohort rows made in {time.monotonic() - begun:.0f} s: {tables}")
    return asyncio.run(_measured(dsn, scale["repeats"], scale["own_window"], progress)), tables


async def _groups(dsn: str) -> None:
    made = Cohorts(dsn, fleet_rows.ZONE, lambda: NOW)
    try:
        await made.aggregate()
    finally:
        await made.close()


async def _measured(dsn: str, repeats: int, own_window: bool, progress: Progress) -> dict[str, Any]:
    queries = Queries(dsn)
    app = create_app(Settings.read(), queries, now=lambda: NOW)
    found: dict[str, Any] = {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://bench") as client:
        for metric in METRICS:
            if metric.elsewhere is None:
                paths = [f"/v1/fleet/metrics/{metric.id}?at=2026-10{by}" for by in GROUPINGS]
                found[metric.id] = await _timed(client, paths, repeats)
                progress(f"{metric.id}: p50 {found[metric.id]['p50_ms']} ms, p95 {found[metric.id]['p95_ms']} ms")
        others = {
            "lists/offline": "/v1/fleet/lists/offline", "lists/clusters": "/v1/fleet/lists/clusters?vehicles=2",
            "verification": "/v1/fleet/verification?week=2026-W41",
        }  # fmt: skip
        if own_window:
            others |= {
                "series U1 by day": "/v1/fleet/series?metric=U1&per=day&from=2026-10-01&to=2026-10-30",
                "U1 of 20 days of its own": "/v1/fleet/metrics/U1?from=2026-10-03&to=2026-10-22",
            }
        for name, path in others.items():
            found[name] = await _timed(client, [path], 3)
            progress(f"{name}: p50 {found[name]['p50_ms']} ms")
    await queries.close()
    return found


async def _timed(client: httpx.AsyncClient, paths: list[str], repeats: int) -> dict[str, Any]:
    """Each path so often, the first time of each apart: it fills caches."""
    times = []
    for n in range(repeats + 1):
        for path in paths:
            begun = time.perf_counter()
            answer = await client.get(path)
            spent = 1000 * (time.perf_counter() - begun)
            answer.raise_for_status()
            if n:
                times.append(spent)
    return {"p50_ms": round(median(times), 1), "p95_ms": round(quantiles(times, n=20)[-1], 1), "requests": len(times)}


# -- making ----------------------------------------------------------------------------------------------
def _making(dsn: str, scale: dict[str, Any], progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    with psycopg.connect(dsn, autocommit=True) as db:
        fleet_rows.vehicles(db, scale["day_vehicles"], scale["day_vehicles"] // 100)
        begun = time.monotonic()
        rows = fleet_rows.vehicle_days(db, scale["days"])
        progress(f"{rows:,} vehicle-days made in {time.monotonic() - begun:.0f} s")
        begun = time.monotonic()
        asyncio.run(_groups(dsn))
        spent = time.monotonic() - begun
        progress(f"aggregated in {spent:.1f} s: {rows / spent:,.0f} vehicle-days/s")
        begun = time.monotonic()
        db.execute(b"UPDATE statistics_days SET changes = changes + 1 WHERE day = %s", [date(2026, 10, 30)])
        asyncio.run(_groups(dsn))
        again = time.monotonic() - begun
        plain = {name: _against(db, dsn, name) for name in PLAIN}
        for name, found in plain.items():
            progress(f"{name}: cohorts {found['small_p50_ms']} ms, plain SQL {found['plain_p50_ms']} ms")
        reports = fleet_rows.telemetry(db, scale["telemetry_vehicles"], 10)
        raw = _repeated(lambda: db.execute(_RAW).fetchall(), 3)
        progress(f"telemetry: {reports:,} reports read in {raw:.0f} ms for one figure of one day")
    making = {
        "aggregated_vehicle_days_per_s": round(rows / spent), "one_day_again_s": round(again, 2),
        "raw_ms_per_vehicle_day": round(raw / scale["telemetry_vehicles"], 3),
    }  # fmt: skip
    return making, plain


def _repeated(work: Callable[[], Any], times: int) -> float:
    spent = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        spent.append(1000 * (time.perf_counter() - begun))
    return median(spent)


def _against(db: psycopg.Connection[Any], dsn: str, name: str) -> dict[str, Any]:
    """A metric by model, from cohorts and by plain SQL on the same days."""
    figure, query = PLAIN[name]
    given = {"first": date(2026, 10, 1), "last": date(2026, 10, 31)}
    rows: list[Any] = []
    plain = _repeated(lambda: rows.append(db.execute(query.encode(), given).fetchall()), 3)

    async def ours() -> tuple[float, list[dict[str, Any]]]:
        queries = Queries(dsn)
        app = create_app(Settings.read(), queries, now=lambda: NOW)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://bench") as client:
            path = f"/v1/fleet/metrics/{name}?at=2026-10&by=model"
            timed = await _timed(client, [path], 5)
            figures = (await client.get(path)).json()["figures"]
        await queries.close()
        return timed["p50_ms"], [row for row in figures if row["figure"] == figure]

    mine, answered = asyncio.run(ours())
    _same(name, rows[-1], answered)
    return {"small_p50_ms": mine, "plain_p50_ms": round(plain, 1), "ratio": round(plain / mine, 1)}


def _same(name: str, plain: list[tuple[Any, ...]], answered: list[dict[str, Any]]) -> None:
    """Both ways say the same: sums to nine digits, quantiles within the sketch's two per cent."""
    ours = {row["model"]: row for row in answered}
    for model, value, *more in plain:
        row = ours[model]
        if name == "B1":
            bins = {int((each["from"] + 40) / 5) + 1: each["count"] for each in row["histogram"]}
            assert bins[value] == more[0], (name, model, value)
            continue
        told = row["numerator"] if name == "A2" else row["value"]
        assert abs(told - float(value)) <= 1e-9 * abs(float(value)) + 1e-6, (name, model, told, value)
        for quantile, wanted in zip(("p5", "median", "p95"), more[0] if more else (), strict=False):
            assert abs(row[quantile] - wanted) <= 0.0201 * abs(wanted), (name, model, quantile, row[quantile], wanted)
