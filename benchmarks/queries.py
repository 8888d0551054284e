"""What a dashboard asks, through the HTTP API (no socket), with a million vehicles known, beside the same in plain SQL.

The map, lists, one vehicle's page, its day raw and in buckets, a fleet metric.  ``plain`` is what somebody would write
without what is kept for the question: the map counted from ``vehicle_state`` by SQL, the newest report looked up in
telemetry.  Telemetry has a day of the first vehicles only, so what plain SQL reads there is a small part of what a
million vehicles would have.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import httpx
import psycopg

from benchmarks import fleet_rows
from benchmarks.fleet import _groups as sorted_into_cohorts
from benchmarks.runner import Progress
from services.settings import Settings
from services.store.embedded import EmbeddedServer
from services.store.migrations import migrate
from services.store.queries import Queries
from services.web.app import create_app

NOW: Final = datetime(2026, 10, 30, 12, 2, tzinfo=UTC)
DAY: Final = "from=2026-10-01T08:00:00%2B08:00&to=2026-10-02T08:00:00%2B08:00"
VIN: Final = "LBENCH00000000017"
_NO_WAIT: Final = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "8GB"}  # rows are made once, not kept

# name → path of the API, and the plain question (None: it is the same one)
QUESTIONS: Final[Mapping[str, tuple[str, str | None]]] = {
    "map, everywhere": ("/v1/map", """
        SELECT floor(longitude_deg / 5), floor(latitude_deg / 5), count(*), avg(longitude_deg), avg(latitude_deg),
               count(*) FILTER (WHERE charge_state = 1), count(*) FILTER (WHERE vehicle_state = 1) FROM vehicle_state
        GROUP BY 1, 2"""),
    "map, a province": ("/v1/map?bbox=118,29,123,33", """
        SELECT floor(longitude_deg * 3), floor(latitude_deg * 3), count(*), avg(longitude_deg), avg(latitude_deg),
               count(*) FILTER (WHERE charge_state = 1), count(*) FILTER (WHERE vehicle_state = 1) FROM vehicle_state
        WHERE longitude_deg BETWEEN 118 AND 123 AND latitude_deg BETWEEN 29 AND 33 GROUP BY 1, 2"""),
    "map, one fleet": ("/v1/map?fleet=fleet-3", """
        SELECT floor(longitude_deg / 5), floor(latitude_deg / 5), count(*), avg(longitude_deg), avg(latitude_deg)
        FROM vehicle_state JOIN vehicles v USING (vehicle_id) WHERE v.fleet = 'fleet-3' GROUP BY 1, 2"""),
    "map, some streets": ("/v1/map?bbox=121.48,31.21,121.505,31.232&vehicles_max=2000", """
        SELECT v.vin, s.* FROM vehicle_state s JOIN vehicles v USING (vehicle_id)
        WHERE longitude_deg BETWEEN 121.48 AND 121.505 AND latitude_deg BETWEEN 31.21 AND 31.232"""),
    "overview": ("/v1/overview", None),
    "vehicles, a page of 100": ("/v1/vehicles?limit=100&vin=LBENCH000005", None),
    "vehicles, SOC below 10 %": ("/v1/vehicles?soc_below=10", """
        SELECT * FROM (SELECT DISTINCT ON (vehicle_id) * FROM telemetry ORDER BY vehicle_id, time DESC) n
        WHERE soc_pct < 10"""),
    "vehicles, alarm of level 3": ("/v1/vehicles?alarm_level_min=3", None),
    "vehicles, a fleet, charging, SOC below 15 %": ("/v1/vehicles?fleet=fleet-3&activity=charging&soc_below=15", None),
    "a vehicle": (f"/v1/vehicles/{VIN}", None),
    "a vehicle's newest report": (f"/v1/vehicles/{VIN}/latest", """
        SELECT DISTINCT ON (vehicle_id) * FROM telemetry
        WHERE vehicle_id = (SELECT vehicle_id FROM vehicles WHERE vin = %(vin)s) ORDER BY vehicle_id, time DESC"""),
    "telemetry, a page of 1000": (f"/v1/vehicles/{VIN}/telemetry?{DAY}&limit=1000", None),
    "telemetry, a day in 5 min": (f"/v1/vehicles/{VIN}/telemetry?{DAY}&bucket=5m&fields=speed_kmh,soc_pct", None),
    "telemetry, a day raw, two fields": (
        f"/v1/vehicles/{VIN}/telemetry?{DAY}&limit=8640&fields=speed_kmh,soc_pct", None),
    "a vehicle's trips of a month": (f"/v1/vehicles/{VIN}/trips?from=2026-10-01&to=2026-10-31", None),
    "a vehicle's days of a month": (f"/v1/vehicles/{VIN}/days?from=2026-10-01&to=2026-10-30", """
        SELECT (time AT TIME ZONE 'Asia/Shanghai')::date, count(*), max(odometer_km) - min(odometer_km), min(soc_pct)
        FROM telemetry WHERE vehicle_id = (SELECT vehicle_id FROM vehicles WHERE vin = %(vin)s) GROUP BY 1"""),
    "fleet metric: distance of a month by model": ("/v1/fleet/metrics/U1?at=2026-10&by=model", None),
}  # fmt: skip


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """``questions`` by name: p50_ms, p95_ms, bytes of the answer, plain_ms."""
    scale = {"vehicles": 1_000_000, "telemetry_vehicles": 50 if quick else 200, "repeats": 10 if quick else 40}
    home = Path(tempfile.mkdtemp(prefix="nevstream-bench-"))
    home.chmod(0o711)  # the database's unprivileged user must reach its directory
    server = EmbeddedServer(home / "pg", options=_NO_WAIT)
    try:
        dsn = server.start()
        migrate(dsn)
        return measure(dsn, scale, progress)
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def measure(dsn: str, scale: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """As :func:`run`, on a migrated database of its own."""
    rows = prepare(dsn, scale, progress)
    found, first_map_ms = asyncio.run(_measured(dsn, scale["repeats"], progress))
    with psycopg.connect(dsn, autocommit=True) as db:
        for name, (_, plain) in QUESTIONS.items():
            if plain is not None:
                found[name]["plain_ms"] = _plain(db, plain)
                found[name]["ratio"] = round(found[name]["plain_ms"] / found[name]["p50_ms"], 1)
    return {
        "p95_ms_max": max(each["p95_ms"] for each in found.values()),
        "p50_ms_median": round(median(each["p50_ms"] for each in found.values()), 1),
        "first_map_ms": first_map_ms,
        "slowest": max(found, key=lambda name: float(found[name]["p95_ms"])),
        "questions": found,
        "settings": scale | {"telemetry_rows": rows},
    }


def prepare(dsn: str, scale: dict[str, Any], progress: Progress) -> int:
    """Put in what there is to ask about, unless it is there; rows of telemetry."""
    begun = time.monotonic()
    with psycopg.connect(dsn, autocommit=True) as db:
        if not _count(db, "trips"):
            if not _count(db, "vehicles"):
                fleet_rows.vehicles(db, scale["vehicles"])
            _lively(db)
            asyncio.run(sorted_into_cohorts(dsn))
            fleet_rows.cohort_rows(db, scale["vehicles"] // fleet_rows.COHORTS, daily=False)
            fleet_rows.telemetry(db, scale["telemetry_vehicles"], 10)
            _one_life(db)
        rows = _count(db, "telemetry")
    progress(f"{scale['vehicles']:,} vehicles and {rows:,} reports made in {time.monotonic() - begun:.0f} s")
    return rows


def _count(db: psycopg.Connection[Any], table: str) -> int:
    row = db.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def _lively(db: psycopg.Connection[Any]) -> None:
    """States as of a fleet in twenty towns, each with its own SOC, doing and alarms."""
    db.execute(b"""
        UPDATE vehicle_state SET
            longitude_deg = 101 + h % 20 * 7 % 20
                            + hashint8extended(vehicle_id, 1) % 1000 * (hashint8extended(vehicle_id, 2) % 1000) / 2e6,
            latitude_deg = 23 + h % 20 * 3 % 20 * 0.8
                           + hashint8extended(vehicle_id, 3) % 1000 * (hashint8extended(vehicle_id, 4) % 1000) / 2e6,
            soc_pct = abs(hashint8extended(vehicle_id, 5)) % 101,
            vehicle_state = 1 + abs(hashint8extended(vehicle_id, 6)) % 2,
            charge_state = CASE WHEN abs(hashint8extended(vehicle_id, 7)) % 8 = 0 THEN 1 ELSE 3 END,
            alarm_level = CASE WHEN abs(hashint8extended(vehicle_id, 8)) % 1000 = 0 THEN 1 + vehicle_id % 3 ELSE 0 END,
            received_at = timestamptz '2026-10-30 20:00+08' - vehicle_id % 400 * interval '1 second'
        FROM (SELECT vehicle_id AS id, abs(hashint8extended(vehicle_id, 0)) AS h FROM vehicles) r WHERE id = vehicle_id
    """)
    # a dense town, so that some streets have hundreds
    db.execute(b"""
        UPDATE vehicle_state
        SET longitude_deg = 121.4 + vehicle_id % 2003 * 1e-4, latitude_deg = 31.1 + vehicle_id % 2011 * 1e-4
        WHERE vehicle_id % 10 = 0
    """)
    db.execute(b"VACUUM FULL vehicle_state")
    db.execute(b"VACUUM ANALYZE vehicle_state")


def _one_life(db: psycopg.Connection[Any]) -> None:
    """The vehicle that is looked at: a state that telemetry has, thirty days, ninety trips."""
    given = {"vin": VIN}
    db.execute(b"""
        UPDATE vehicle_state s SET time = t.time FROM (
            SELECT vehicle_id, max(time) AS time FROM telemetry
            WHERE vehicle_id = (SELECT vehicle_id FROM vehicles WHERE vin = %(vin)s) GROUP BY 1
        ) t WHERE s.vehicle_id = t.vehicle_id""", given)  # fmt: skip
    db.execute(b"""
        INSERT INTO vehicle_day (vehicle_id, day, records, rows, expected, covered_s, distance_km, driving_s, first_at,
                                 last_at, edition, layout)
        SELECT vehicle_id, d::date, 8000, 8000, 8640, 80000, 120, 9000, d AT TIME ZONE 'Asia/Shanghai',
               d AT TIME ZONE 'Asia/Shanghai' + interval '23 hours', 16, 1
        FROM generate_series(timestamp '2026-10-01', timestamp '2026-10-30', '1 day') AS d, vehicles WHERE vin = %(vin)s
    """, given)  # fmt: skip
    db.execute(b"""
        INSERT INTO trips (vehicle_id, day, settled_on, start_at, end_at, end_cause, records, distance_km, moving_s,
                           start_soc_pct, end_soc_pct)
        SELECT vehicle_id, day, day, first_at + n * interval '4 hours', first_at + n * interval '4.5 hours', 1, 180,
               22, 1500, 80 - 10 * n, 75 - 10 * n FROM vehicle_day CROSS JOIN generate_series(1, 3) AS n
    """)  # fmt: skip
    db.execute(b"VACUUM ANALYZE trips, vehicle_day")


async def _measured(dsn: str, repeats: int, progress: Progress) -> tuple[dict[str, Any], float]:
    queries = Queries(dsn)
    app = create_app(Settings.read(overrides={"web": {"rows_max": 10_000}}), queries, now=lambda: NOW)
    found: dict[str, Any] = {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://bench", timeout=60) as client:
        begun = time.perf_counter()
        (await client.get("/v1/map")).raise_for_status()
        first_map_ms = round(1000 * (time.perf_counter() - begun), 1)
        for name, (path, _) in QUESTIONS.items():
            spent, size = [], 0
            for n in range(repeats + 1):
                begun = time.perf_counter()
                answer = await client.get(path)
                if n:
                    spent.append(1000 * (time.perf_counter() - begun))
                answer.raise_for_status()
                size = len(answer.content)
            found[name] = {
                "p50_ms": round(median(spent), 1), "p95_ms": round(quantiles(spent, n=20)[-1], 1), "bytes": size,
            }  # fmt: skip
            progress(f"{name}: p50 {found[name]['p50_ms']} ms, p95 {found[name]['p95_ms']} ms, {size:,} bytes")
    await queries.close()
    return found, first_map_ms


def _plain(db: psycopg.Connection[Any], text: str) -> float:
    spent = []
    for _ in range(3):
        begun = time.perf_counter()
        db.execute(text.encode(), {"vin": VIN}).fetchall()
        spent.append(1000 * (time.perf_counter() - begun))
    return round(median(spent), 1)
