"""Rollups of a fleet made in SQL, at two scales, for ``benchmarks.fleet``.

*Cohorts*: the tables that the fleet API reads, as they would be for a million vehicles in two thousand cohorts over a
month. *Days*: the vehicles' days and sessions themselves, fewer of them, for the aggregator to work on and for the
plain queries that it is compared with.
"""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from typing import Any, Final

import psycopg

from schemas.statistics import cohorts
from schemas.statistics.cohorts import SCALARS, SPREADS, Spread
from schemas.statistics.measures import MEASURES, TALLIES
from services.store.cohorts import join_groups

ZONE: Final = "Asia/Shanghai"
COHORTS: Final = 2_000
MONTH: Final = date(2026, 10, 1)
DAYS: Final = 30
TABLES: Final = (
    "cohort_period", "cohort_spread", "group_spread", "cohort_state", "cohort_access", "vehicle_brief",
)  # fmt: skip
TEMPLATES: Final = 50  # distributions that cohorts share; each has the bins that real ones would have


def _run(db: psycopg.Connection[Any], text: str, **given: Any) -> int:
    return db.execute(text.encode(), given).rowcount


def vehicles(db: psycopg.Connection[Any], count: int, combinations: int = COHORTS) -> None:
    """``count`` vehicles in so many combinations, joined over two years, one in a hundred retired, with a state."""
    _run(db, """
        INSERT INTO models (model, manufacturer, category, powertrain, battery_kwh, battery_ah, chemistry,
                            battery_supplier, cells, probes, certified_kwh_per_100km)
        SELECT 'M' || m, 'maker', 'passenger', 'BEV', 40 + m, 100 + m, (ARRAY['NCM', 'LFP'])[1 + m %% 2],
               (ARRAY['CATL', 'BYD', 'CALB', 'SVOLT'])[1 + m %% 4], 96, 24, 12 + m %% 5 FROM generate_series(0, 24) AS m
    """)  # fmt: skip
    _run(db, """
        INSERT INTO vehicles (vin, registered, first_seen_at, registered_at, retired_at, model, fleet, region, usage)
        SELECT 'LBENCH' || to_char(i, 'FM00000000000'), true, t, t,
               CASE WHEN i %% 100 = 7 THEN timestamptz '2026-10-15 00:00+08' END, 'M' || c %% 25,
               'fleet-' || c / 25 %% 8, 'region-' || c / 200 %% 10,
               (ARRAY['private', 'taxi', 'bus', 'logistics'])[1 + c / 25 %% 4]
        FROM (SELECT i, (i %% %(cohorts)s) AS c, timestamptz '2024-10-01 12:00+08' + i %% 700 * interval '1 day' AS t
              FROM generate_series(1, %(count)s) AS i) v
    """, cohorts=combinations, count=count)  # fmt: skip
    _run(db, """
        INSERT INTO vehicle_state (vehicle_id, time, kind, part, received_at, edition, door, speed_kmh, vehicle_state,
                                   charge_state, alarm_level, longitude_deg, latitude_deg, location_valid, reports)
        SELECT vehicle_id, timestamptz '2026-10-30 20:00+08' - vehicle_id %% 1000 * interval '1 hour', 2, 0,
               timestamptz '2026-10-30 20:00+08', 16, 1, 0, 2, 3, 0, 100 + vehicle_id %% 997 * 0.02,
               22 + vehicle_id %% 1009 * 0.02, 1, 1 FROM vehicles
    """)  # fmt: skip
    _run(db, "ANALYZE vehicles, vehicle_state, models")


# -- cohorts as they would be --------------------------------------------------------------------------
def cohort_rows(db: psycopg.Connection[Any], per_cohort: int, daily: bool) -> dict[str, int]:
    """A month (and its weeks) of every cohort, and with ``daily`` its days with their vehicles; rows by table."""
    days = [MONTH + timedelta(days=k) for k in range(DAYS)]
    _run(db, "CREATE TEMPORARY TABLE bench_cohorts AS SELECT DISTINCT facts_id * 4 + edition AS cohort_id"
             " FROM vehicle_groups")  # fmt: skip
    _templates(db)
    starts = [("M", MONTH, DAYS), *(("W", MONTH + timedelta(days=4 + 7 * k), 7) for k in range(3))]
    if daily:
        starts += [("D", day, 1) for day in days]
    for span, start, length in starts:
        columns = {scalar.name: _scalar(scalar.name, per_cohort, length) for scalar in SCALARS}
        _run(db, f"""
            INSERT INTO cohort_period (span, start, cohort_id, {", ".join(columns)}, newest_at)
            SELECT %(span)s, %(start)s, cohort_id, {", ".join(columns.values())}, timestamptz '2026-10-30 20:00+08'
            FROM bench_cohorts
        """, span=span, start=start)  # fmt: skip
        _run(db, """
            INSERT INTO cohort_spread (span, start, spread, cohort_id, counts)
            SELECT %(span)s, %(start)s, t.spread, c.cohort_id, t.counts
            FROM bench_templates t JOIN bench_cohorts c ON c.cohort_id %% %(templates)s = t.template
            WHERE t.short = (%(length)s < 7) ORDER BY t.spread, c.cohort_id
        """, span=span, start=start, length=length, templates=TEMPLATES)  # fmt: skip
        _counted(db, span, start)
    for day in days:
        _run(db, f"""
            INSERT INTO cohort_state (day, cohort_id, {", ".join(cohorts.STATES)})
            SELECT %(day)s, cohort_id, 450, 480, 490, 2, 3, 4 FROM bench_cohorts
        """, day=day)  # fmt: skip
        _counted(db, "S", day)
    _run(db, """
        INSERT INTO vehicle_brief (span, start, vehicle_id, cohort_id, flags, charges, distance_km, cycles)
        SELECT 'M', %(start)s, vehicle_id, facts_id * 4 + edition, 143, vehicle_id %% 20, vehicle_id %% 3000, 1.5
        FROM vehicle_groups ORDER BY vehicle_id
    """, start=MONTH)  # fmt: skip
    if daily:
        _run(db, """
            INSERT INTO vehicle_brief (span, start, vehicle_id, cohort_id, flags, charges, distance_km, cycles)
            SELECT 'D', d::date, vehicle_id, facts_id * 4 + edition, 143, 1, vehicle_id %% 100, 0.05
            FROM generate_series(%(start)s::timestamp, %(start)s::timestamp + interval '29 days', '1 day') AS d
            CROSS JOIN vehicle_groups ORDER BY d, vehicle_id
        """, start=MONTH)  # fmt: skip
    asyncio.run(_joined(db.info.dsn, [(span, start) for span, start, _ in starts]))
    for table in TABLES:
        db.execute(f"VACUUM ANALYZE {table}".encode())
    return {table: _count(db, table) for table in TABLES}


async def _joined(dsn: str, periods: list[tuple[str, date]]) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for span, start in periods:
            await join_groups(connection, span, start)


def _count(db: psycopg.Connection[Any], table: str) -> int:
    row = db.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def _counted(db: psycopg.Connection[Any], span: str, start: date) -> None:
    _run(db, "INSERT INTO cohort_counted VALUES (%(span)s, %(start)s, 1, 1, now(), now())", span=span, start=start)


def _scalar(name: str, per_cohort: int, days: int) -> str:
    scale = per_cohort * days if cohorts.SCALAR[name].how == cohorts.ADDED else per_cohort
    if name.endswith("_s"):
        scale *= 20_000
    elif name in ("distance_km", "trip_km", "consumption_km"):
        scale *= 60
    text = f"{scale} + cohort_id %% 97"
    return text if cohorts.SCALAR[name].unit else f"({text})::bigint"


def _width(spread: Spread, short: bool) -> tuple[int, int]:
    """(first bin, how many) of a distribution of a cohort with hundreds of vehicles."""
    if spread.bins == cohorts.LOG:
        return (190, 55) if short else (170, 130)
    if spread.bins == cohorts.POINTS:
        return 0, 101
    if spread.bins == cohorts.HOURS:
        return (24, 24) if short else (0, 168)
    if spread.bins == cohorts.CODES:
        return cohorts.episode_bin(1, 0, 1), 60
    return 0, len(spread.labels) or 16


def _templates(db: psycopg.Connection[Any]) -> None:
    _run(db, "CREATE TEMPORARY TABLE bench_templates (spread smallint, template integer, short boolean, counts bytea)")
    for short in (False, True):
        for spread in SPREADS:
            first, bins = _width(spread, short)
            _run(db, """
                INSERT INTO bench_templates
                SELECT %(spread)s, t, %(short)s,
                       string_agg(int2send((b + t %% %(slip)s)::smallint) || int8send(1 + b * 7 %% 90), ''::bytea
                                  ORDER BY b)
                FROM generate_series(0, %(templates)s - 1) AS t
                CROSS JOIN generate_series(%(first)s, %(first)s + %(bins)s - 1) AS b GROUP BY t
            """, spread=spread.id, short=short, templates=TEMPLATES, first=first, bins=bins,
                 slip=20 if spread.bins == cohorts.LOG else 1)  # fmt: skip


# -- days of vehicles ------------------------------------------------------------------------------------
def vehicle_days(db: psycopg.Connection[Any], days: int) -> int:
    """Days, hours, trips, charges and alarms of every vehicle for ``days`` days; rows of vehicle_day."""
    values = {measure.name: _measure(measure.name, measure.count) for measure in MEASURES}
    tallies = {tally.name: f"array_fill({1 + k}, ARRAY[{tally.size}])" for k, tally in enumerate(TALLIES)}
    quantiles = [f"range_{what}_p{p}_mv" for what in ("rest", "driving", "charge_end") for p in (50, 95)]
    made = _run(db, f"""
        INSERT INTO vehicle_day (vehicle_id, day, {", ".join((*values, *tallies, *quantiles))}, nominal_s, first_at,
                                 last_at, edition, layout)
        SELECT vehicle_id, d::date, {", ".join((*values.values(), *tallies.values()))},
               {", ".join(f"{10 + k} + h %% 7" for k, _ in enumerate(quantiles))}, 10,
               d AT TIME ZONE %(zone)s + interval '6 hours', d AT TIME ZONE %(zone)s + interval '20 hours', 16, 1
        FROM (SELECT d, vehicle_id, abs(hashint8(vehicle_id * 31 + extract(day FROM d)::bigint))::bigint AS h
              FROM generate_series(%(start)s::timestamp, %(start)s::timestamp + (%(days)s - 1) * interval '1 day',
                                   '1 day') AS d CROSS JOIN vehicles) v
    """, zone=ZONE, start=MONTH, days=days)  # fmt: skip
    _run(db, """
        INSERT INTO trips (vehicle_id, day, settled_on, start_at, end_at, end_cause, records, distance_km, moving_s,
                           start_soc_pct, end_soc_pct)
        SELECT vehicle_id, day, day, first_at + n * interval '4 hours', first_at + n * interval '4 hours'
               + (10 + vehicle_id %% 60) * interval '1 minute', 1, 100, 5 + vehicle_id %% 40, 600 + vehicle_id %% 900,
               80 - n * 10, 75 - n * 10 FROM vehicle_day CROSS JOIN generate_series(0, 2) AS n
    """)  # fmt: skip
    _run(db, """
        INSERT INTO charges (vehicle_id, day, settled_on, start_at, end_at, end_cause, records, energy_kwh,
                             start_soc_pct, end_soc_pct, middle_power_kw, middle_coverage)
        SELECT vehicle_id, day, day, last_at - interval '1 hour', last_at, 6, 300, 20 + vehicle_id %% 30,
               vehicle_id %% 60, 60 + vehicle_id %% 40, vehicle_id %% 90, 0.9 FROM vehicle_day WHERE vehicle_id %% 2 = 0
    """)  # fmt: skip
    _run(db, """
        INSERT INTO alarm_episodes (vehicle_id, day, start_at, end_at, source, code, level, records)
        SELECT vehicle_id, day, first_at, first_at + interval '1 minute', 1, vehicle_id %% 24, 1 + vehicle_id %% 3, 5
        FROM vehicle_day WHERE vehicle_id %% 50 = 0
    """)  # fmt: skip
    _run(db, """
        INSERT INTO vehicle_hour (vehicle_id, hour, day, driving_s, charge_kwh)
        SELECT vehicle_id, first_at + n * interval '1 hour', day, 1200, CASE WHEN n = 13 THEN 10 ELSE 0 END
        FROM vehicle_day CROSS JOIN generate_series(0, 13) AS n
    """)  # fmt: skip
    _run(db, "INSERT INTO statistics_days SELECT DISTINCT day, 1 FROM vehicle_day")
    for table in ("vehicle_day", "vehicle_hour", "trips", "charges", "alarm_episodes"):
        db.execute(f"VACUUM ANALYZE {table}".encode())
    return made


def _measure(name: str, whole: bool) -> str:
    if name in ("records", "rows"):
        return "5000 + (h %% 300)::integer"
    if name == "expected":
        return "5300"
    if name.endswith("_s"):
        return "h %% 40000"
    return "(h %% 20)::integer" if whole else "1 + h %% 97 / 1.7"


def telemetry(db: psycopg.Connection[Any], vehicles: int, every_s: int) -> int:
    """A day of raw reports of the first ``vehicles`` vehicles: what a query without any rollup has to read."""
    _run(db, "SELECT ensure_telemetry_days(%(day)s, %(day)s)", day=MONTH)
    made = _run(db, """
        INSERT INTO telemetry (vehicle_id, time, received_at, kind, part, edition, door, digest, speed_kmh,
                               odometer_km, soc_pct, total_voltage_v, total_current_a, vehicle_state, charge_state)
        SELECT v, t, t, 2, 0, 16, 1, 1, 60, 1000 + extract(epoch FROM t - timestamptz '2026-10-01 08:00+08') / 60,
               50, 350, 20, 1, 3
        FROM generate_series(1, %(vehicles)s) AS v CROSS JOIN generate_series(
            timestamptz '2026-10-01 08:00+08', timestamptz '2026-10-02 07:59:59+08', %(every)s * interval '1 second'
        ) AS t
    """, vehicles=vehicles, every=every_s)  # fmt: skip
    db.execute(b"VACUUM ANALYZE telemetry")
    return made
