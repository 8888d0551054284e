"""The SQL of :mod:`services.store.cohorts`: from vehicles' days and sessions to cohorts and periods.

Sums are taken over whole millionths, so that they come out the same in whatever order rows are read, and add up
exactly from days to years. Bins and stored distributions are those of ``schemas.statistics.sketch``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from schemas.statistics import cohorts
from schemas.statistics.cohorts import (
    ACKNOWLEDGE_MIN,
    CHECK_SHARES,
    CLOSE_WORKING_DAYS,
    FLAGS_OF,
    SCALAR,
    SPREAD,
    STATES,
)
from schemas.statistics.figures import (
    COVERAGE_MIN,
    FAST_KW,
    FAST_PER_H,
    INSULATION_FAULT,
    INSULATION_MAX_KOHM,
    INSULATION_WARN,
    OUTLIER_DAYS,
    OUTLIER_MV,
    OUTLIER_SHARE,
    SMALL_KWH,
)
from schemas.statistics.measures import CHECKS, TALLIES
from schemas.statistics.rules import OFFLINE, SOURCE_FLAG, SOURCE_RULE
from schemas.statistics.sketch import BIN_SQL

ALARM: Final = f"source IN ({SOURCE_FLAG}, {SOURCE_RULE}) AND NOT (source = {SOURCE_RULE} AND code = {OFFLINE})"


def exact(expression: str, where: str = "") -> str:
    """The sum of a figure in whole millionths."""
    kept = f" FILTER (WHERE {where})" if where else ""
    return f"coalesce(sum(({expression} * 1e6)::bigint){kept}, 0)::double precision / 1e6"


def count(where: str) -> str:
    return f"count(*) FILTER (WHERE {where})"


def total(expression: str, where: str = "") -> str:
    kept = f" FILTER (WHERE {where})" if where else ""
    return f"coalesce(sum({expression}){kept}, 0)::bigint"


_EDITION: Final = "CASE {} WHEN 16 THEN 1 WHEN 25 THEN 2 WHEN 0 THEN 3 ELSE 0 END"
_FACTS: Final = ("model", "fleet", "region", "usage", "battery_supplier", "chemistry")
_GROUP: Final = (
    "facts_id", "edition", "joined_on", "retired_on", "periodic", "battery_kwh", "battery_ah",
    "certified_kwh_per_100km", "cells", "probes",
)  # fmt: skip
_REMAKES: Final = tuple(name for name in _GROUP if name not in ("edition", "joined_on", "retired_on"))

# -- who there is --------------------------------------------------------------------------------------
NEW_FACTS: Final = f"""
    INSERT INTO cohort_facts ({", ".join(_FACTS)})
    SELECT DISTINCT {", ".join(_FACTS)} FROM vehicle_facts v
    WHERE NOT EXISTS (SELECT FROM cohort_facts f WHERE {" AND ".join(f"f.{n} = v.{n}" for n in _FACTS)})
    ORDER BY {", ".join(_FACTS)}  -- so that their numbers do not depend on the plan
"""  # noqa: S608 - names of this file; an identity value is not burnt for each that is there already
GROUP_CHANGES: Final = f"""
    CREATE TEMPORARY TABLE group_changes ON COMMIT DROP AS
    SELECT n.*, o.vehicle_id IS NOT NULL
                AND ({", ".join(f"n.{name}" for name in _REMAKES)})
                    IS DISTINCT FROM ({", ".join(f"o.{name}" for name in _REMAKES)}) AS remakes,
           CASE WHEN n.retired_on IS DISTINCT FROM o.retired_on THEN least(n.retired_on, o.retired_on) END AS retires
    FROM (
        SELECT v.vehicle_id, f.facts_id, ({_EDITION.format("s.edition")})::smallint AS edition,
               (least(v.registered_at, v.first_seen_at) AT TIME ZONE %(zone)s)::date AS joined_on,
               (v.retired_at AT TIME ZONE %(zone)s)::date AS retired_on, v.upload = 'periodic' AS periodic,
               v.battery_kwh, v.battery_ah, v.certified_kwh_per_100km, v.cells, v.probes
        FROM vehicle_facts v JOIN cohort_facts f USING ({", ".join(_FACTS)})
        LEFT JOIN vehicle_state s USING (vehicle_id)
    ) n LEFT JOIN vehicle_groups o USING (vehicle_id)
    WHERE o.vehicle_id IS NULL OR ({", ".join(f"n.{name}" for name in _GROUP)})
                                  IS DISTINCT FROM ({", ".join(f"o.{name}" for name in _GROUP)})
"""  # noqa: S608
SAVE_GROUPS: Final = f"""
    INSERT INTO vehicle_groups (vehicle_id, {", ".join(_GROUP)})
    SELECT vehicle_id, {", ".join(_GROUP)} FROM group_changes
    ON CONFLICT (vehicle_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _GROUP)}
"""  # noqa: S608
REMAKE_DAYS: Final = """
    UPDATE cohort_counted SET changes = -1 WHERE span = 'D' AND start IN (
        SELECT DISTINCT d.day FROM group_changes g JOIN vehicle_day d USING (vehicle_id) WHERE g.remakes)
"""
REMAKE_STATES: Final = """
    UPDATE cohort_counted SET changes = -1
    WHERE span = 'S' AND start >= (SELECT min(retires) FROM group_changes)
"""
ACCESS_NOW: Final = """
    CREATE TEMPORARY TABLE access_now ON COMMIT DROP AS
    WITH known AS (
        SELECT facts_id * 4 + edition AS cohort_id, retired_on,
               coalesce(least(joined_on, first_day), date '1970-01-01') AS joined_on
        FROM vehicle_groups
    ), moves AS (
        SELECT cohort_id, joined_on AS day, 1 AS joined, 0 AS retired FROM known
        UNION ALL SELECT cohort_id, greatest(retired_on, joined_on), 0, 1 FROM known WHERE retired_on IS NOT NULL
    )
    SELECT s.span, s.start, m.cohort_id, sum(m.joined)::bigint AS joined, sum(m.retired)::bigint AS retired
    FROM moves m CROSS JOIN LATERAL (VALUES
        ('D'::"char", m.day), ('M', date_trunc('month', m.day)::date), ('Y', date_trunc('year', m.day)::date)
    ) AS s (span, start) GROUP BY 1, 2, 3
"""
ACCESS_DROP: Final = """
    DELETE FROM cohort_access a WHERE NOT EXISTS (
        SELECT FROM access_now n WHERE (n.span, n.start, n.cohort_id, n.joined, n.retired)
                                       = (a.span, a.start, a.cohort_id, a.joined, a.retired))
"""
ACCESS_ADD: Final = "INSERT INTO cohort_access SELECT * FROM access_now ON CONFLICT DO NOTHING"

# -- a day ---------------------------------------------------------------------------------------------
FIRST_DAYS: Final = """
    UPDATE vehicle_groups g SET first_day = d.day FROM vehicle_day d
    WHERE d.day = %(day)s AND d.vehicle_id = g.vehicle_id AND (g.first_day IS NULL OR g.first_day > d.day)
"""
_MEASURED: Final = f"d.insulation_min_ohm_per_v IS NOT NULL AND d.insulation_min_kohm < {INSULATION_MAX_KOHM}"
_FLAGS: Final[Mapping[int, str]] = {
    cohorts.DATA: "true",
    cohorts.ONLINE: "d.rows > d.reissued",
    cohorts.MOVED: "d.distance_km > 0",
    cohorts.TRIPPED: "t.vehicle_id IS NOT NULL",
    cohorts.CHARGED: "c.charges > 0",
    cohorts.ALARMED: "a.vehicle_id IS NOT NULL",
    cohorts.INSULATION: f"{_MEASURED} AND d.insulation_min_ohm_per_v < {INSULATION_FAULT}",
    cohorts.RATED: "g.battery_ah IS NOT NULL",
}
BRIEF: Final = f"""
    INSERT INTO vehicle_brief (span, start, vehicle_id, cohort_id, flags, charges, distance_km, cycles)
    SELECT 'D', d.day, d.vehicle_id, g.facts_id * 4 + {_EDITION.format("d.edition")},
           {" | ".join(f"CASE WHEN {when} THEN {bit} ELSE 0 END" for bit, when in _FLAGS.items())},
           coalesce(c.charges, 0), coalesce(d.distance_km, 0), coalesce(d.discharge_ah, 0) / g.battery_ah
    FROM vehicle_day d JOIN vehicle_groups g USING (vehicle_id)
    LEFT JOIN (SELECT DISTINCT vehicle_id FROM trips WHERE day = %(day)s) t USING (vehicle_id)
    LEFT JOIN (SELECT vehicle_id, count(*)::integer AS charges FROM charges WHERE day = %(day)s GROUP BY 1) c
        USING (vehicle_id)
    LEFT JOIN (SELECT DISTINCT vehicle_id FROM alarm_episodes WHERE day = %(day)s AND {ALARM}) a USING (vehicle_id)
    WHERE d.day = %(day)s
"""  # noqa: S608
_DAYS: Final = """
    vehicle_brief b JOIN vehicle_day d ON d.vehicle_id = b.vehicle_id AND d.day = b.start
    JOIN vehicle_groups g ON g.vehicle_id = b.vehicle_id
"""
_OF_DAY: Final = "b.span = 'D' AND b.start = %(day)s"
_DUE: Final = "g.periodic AND d.expected > 0"
_DAY_COLUMNS: Final[Mapping[str, str]] = {
    "vehicle_days": "count(*)",
    "online_days": count(f"b.flags & {cohorts.ONLINE} <> 0"),
    "moved_days": count(f"b.flags & {cohorts.MOVED} <> 0"),
    "on_change_days": count("NOT g.periodic"),
    **{name: total(f"d.{name}") for name in ("records", "rows", "reissued", "repeated", "late")},
    "duplicates": total("r.duplicates"),
    "conflicts": total("r.conflicts"),
    "periodic_records": total("d.records", _DUE),
    "expected": exact("d.expected", _DUE),
    "missing_s": exact("d.missing_s", _DUE),
    **{
        name: exact(f"d.{name}")
        for name in (
            "covered_s", "gap_s", "distance_km", "untracked_km", "driving_s", "charging_s", "parked_s",
            "consumption_km", "consumption_kwh", "out_kwh", "regen_kwh", "standing_kwh", "standing_s",
            "standing_soc_pct", "standing_span_s", "charge_kwh",
        )
    },
    "certified_used_kwh": exact("d.consumption_kwh", "g.certified_kwh_per_100km IS NOT NULL"),
    "certified_kwh": exact("g.certified_kwh_per_100km * d.consumption_km / 100"),
    "cycles": exact("b.cycles"),
    "insulation_days": count(_MEASURED),
    "insulation_fault_days": count(f"{_MEASURED} AND d.insulation_min_ohm_per_v < {INSULATION_FAULT}"),
    "insulation_warning_days": count(f"{_MEASURED} AND d.insulation_min_ohm_per_v < {INSULATION_WARN}"),
    **{name: count(f"b.flags & {flags} <> 0") for name, flags in FLAGS_OF.items()},
}  # fmt: skip
_TRIP_S: Final = "extract(epoch FROM t.end_at - t.start_at)::double precision"
_TRIP_COLUMNS: Final[Mapping[str, str]] = {
    "trips": "count(*)",
    "trips_measured": "count(t.distance_km)",
    "trip_km": exact("t.distance_km"),
    "trip_s": exact(_TRIP_S),
    "trip_measured_s": exact(_TRIP_S, "t.distance_km IS NOT NULL"),
    "trip_moving_s": exact("t.moving_s", "t.distance_km IS NOT NULL"),
}
_CHARGE_S: Final = "extract(epoch FROM t.end_at - t.start_at)::double precision"
_TOLD: Final = f"t.middle_coverage >= {COVERAGE_MIN} AND t.middle_power_kw IS NOT NULL"
_FAST: Final = (
    f"{_TOLD} AND (t.middle_power_kw >= {FAST_KW}"
    f" OR g.battery_kwh < {SMALL_KWH} AND t.middle_power_kw / g.battery_kwh >= {FAST_PER_H})"
)
_SLOW: Final = (
    f"{_TOLD} AND t.middle_power_kw < {FAST_KW} AND g.battery_kwh IS NOT NULL"
    f" AND NOT (g.battery_kwh < {SMALL_KWH} AND t.middle_power_kw / g.battery_kwh >= {FAST_PER_H})"
)
_BOTH_SOC: Final = "t.start_soc_pct IS NOT NULL AND t.end_soc_pct IS NOT NULL"
_CHARGE_COLUMNS: Final[Mapping[str, str]] = {
    "charges": "count(*)",
    "charge_s": exact(_CHARGE_S),
    "charges_measured": "count(t.energy_kwh)",
    "session_kwh": exact("t.energy_kwh"),
    "charges_soc": count(_BOTH_SOC),
    "soc_rise_pct": exact("(t.end_soc_pct - t.start_soc_pct)", _BOTH_SOC),
    "fast_charges": count(_FAST),
    "slow_charges": count(_SLOW),
    "fast_kwh": exact("t.energy_kwh", _FAST),
    "slow_kwh": exact("t.energy_kwh", _SLOW),
}
_ALARM_COLUMNS: Final[Mapping[str, str]] = {
    "episodes": "count(*)",
    "serious_episodes": count(f"t.level >= {cohorts.FREQUENT_LEVEL}"),
}
_MADE: Final = {*_DAY_COLUMNS, *_TRIP_COLUMNS, *_CHARGE_COLUMNS, *_ALARM_COLUMNS}
assert {name for name, scalar in SCALAR.items() if scalar.how != cohorts.WEEKLY} == _MADE

DAY: Final = f"""
    INSERT INTO cohort_period (span, start, cohort_id, {", ".join(_DAY_COLUMNS)}, newest_at)
    SELECT 'D', b.start, b.cohort_id, {", ".join(_DAY_COLUMNS.values())}, max(d.last_at)
    FROM {_DAYS} LEFT JOIN vehicle_resends r ON r.vehicle_id = d.vehicle_id AND r.day = d.day
    WHERE {_OF_DAY} GROUP BY b.start, b.cohort_id
"""  # noqa: S608
# A session in the cohort of its vehicle's day; without one (an alarm that the platform raised) in the vehicle's own.
_COHORT: Final = "coalesce(b.cohort_id, g.facts_id * 4 + g.edition)"
_JOINED: Final = """
    t JOIN vehicle_groups g USING (vehicle_id)
    LEFT JOIN vehicle_brief b ON b.span = 'D' AND b.start = %(day)s AND b.vehicle_id = t.vehicle_id
"""


def _sessions(table: str, columns: Mapping[str, str], where: str = "true") -> str:
    return f"""
        INSERT INTO cohort_period (span, start, cohort_id, {", ".join(columns)})
        SELECT 'D', %(day)s, {_COHORT}, {", ".join(columns.values())} FROM {table} {_JOINED}
        WHERE t.day = %(day)s AND {where} GROUP BY 3
        ON CONFLICT (span, start, cohort_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in columns)}
    """  # noqa: S608


SESSIONS: Final = (
    _sessions("trips", _TRIP_COLUMNS),
    _sessions("charges", _CHARGE_COLUMNS),
    _sessions("alarm_episodes", _ALARM_COLUMNS, ALARM),
)


def _id(name: str) -> int:
    return SPREAD[name].id


def _values(values: Mapping[str, str]) -> str:
    """Values of distributions, as rows: number, whether its bins are logarithmic, value or NULL."""
    return ", ".join(
        f"({_id(name)}, {'true' if SPREAD[name].bins == cohorts.LOG else 'false'}, ({value})::double precision)"
        for name, value in values.items()
    )


_BIN: Final = f"CASE WHEN v.log THEN {BIN_SQL.format(x='v.x')} ELSE floor(v.x)::integer END"


def _hour(column: str) -> str:
    local = f"({column} AT TIME ZONE %(zone)s)"
    return f"((extract(isodow FROM {local}) - 1) * 24 + extract(hour FROM {local}))"


_DAY_VALUES: Final[Mapping[str, str]] = {
    "day_km": "CASE WHEN d.distance_km > 0 THEN d.distance_km END",
    "day_kwh_per_100km": "CASE WHEN d.consumption_km >= 1 THEN 100 * d.consumption_kwh / d.consumption_km END",
    "day_regen_pct": "CASE WHEN d.out_kwh >= 0.1 THEN 100 * d.regen_kwh / d.out_kwh END",
    "day_certified_pct": "CASE WHEN d.consumption_km >= 1 THEN 100 * (100 * d.consumption_kwh / d.consumption_km)"
    " / g.certified_kwh_per_100km END",
    "day_missing_pct": f"CASE WHEN {_DUE} THEN 100 * greatest(0, 1 - d.records / d.expected) END",
    **{f"{name}_mv": f"d.range_{name}_mv" for name in (
        "rest_p50", "rest_p95", "driving_p50", "driving_p95", "charge_end_p50", "charge_end_p95")},
    "insulation_kohm": f"CASE WHEN d.insulation_min_kohm < {INSULATION_MAX_KOHM} THEN d.insulation_min_kohm END",
    "insulation_ohm_per_v": f"CASE WHEN {_MEASURED} THEN d.insulation_min_ohm_per_v END",
    "day_standing_w": "CASE WHEN d.standing_s >= 3600 THEN 3.6e6 * d.standing_kwh / d.standing_s END",
}  # fmt: skip
_TRIP_VALUES: Final[Mapping[str, str]] = {
    "trip_km": "t.distance_km",
    "trip_min": f"{_TRIP_S} / 60",
    "trip_kmh": f"CASE WHEN t.end_at > t.start_at THEN 3600 * t.distance_km / {_TRIP_S} END",
    "trip_moving_kmh": "CASE WHEN t.moving_s > 0 THEN 3600 * t.distance_km / t.moving_s END",
    "trip_start_soc_pct": "t.start_soc_pct",
    "trip_end_soc_pct": "t.end_soc_pct",
    "trip_starts": _hour("t.start_at"),
}
_CHARGE_VALUES: Final[Mapping[str, str]] = {
    "charge_min": f"{_CHARGE_S} / 60",
    "charge_kwh": "t.energy_kwh",
    "charge_soc_rise_pct": f"CASE WHEN {_BOTH_SOC} THEN t.end_soc_pct - t.start_soc_pct END",
    "charge_start_soc_pct": "t.start_soc_pct",
    "charge_end_soc_pct": "t.end_soc_pct",
    "charge_starts": _hour("t.start_at"),
}
_VEHICLE_VALUES: Final[Mapping[str, str]] = {
    "vehicle_km": "p.distance_km", "vehicle_charges": "p.charges", "vehicle_cycles": "p.cycles",
}  # fmt: skip
_SUMMED: Final = tuple(tally for tally in TALLIES if tally.name in SPREAD)
_PACKED: Final = "string_agg(int2send(bin::smallint) || int8send(n::bigint), ''::bytea ORDER BY bin)"


def _counted(cohort: str, source: str, values: Mapping[str, str]) -> str:
    return f"""
        SELECT {cohort} AS cohort_id, v.spread, {_BIN} AS bin, count(*) AS n
        FROM {source} CROSS JOIN LATERAL (VALUES {{values}}) AS v (spread, log, x)
        WHERE {{where}} AND v.x IS NOT NULL GROUP BY 1, 2, 3
    """.replace("{values}", _values(values))  # noqa: S608


def _hours(name: str, value: str) -> str:
    return f"""
        SELECT b.cohort_id, {_id(name)}, ({_hour("h.hour")})::integer, sum(round({value})::bigint)
        FROM vehicle_hour h JOIN vehicle_brief b ON b.span = 'D' AND b.start = h.day AND b.vehicle_id = h.vehicle_id
        WHERE h.day = %(day)s AND {value} > 0 GROUP BY 1, 2, 3
    """  # noqa: S608


# Every element summed by itself: a tenth of what unnesting them first costs.
_TALLIES: Final = f"""
    SELECT s.cohort_id, u.spread, (u.place - 1)::integer, u.n
    FROM (
        SELECT b.cohort_id, {
    ", ".join(f"ARRAY[{', '.join(f'sum(d.{t.name}[{k + 1}])' for k in range(t.size))}] AS {t.name}" for t in _SUMMED)
}
        FROM {_DAYS} WHERE {_OF_DAY} GROUP BY b.cohort_id
    ) s CROSS JOIN LATERAL (
        {" UNION ALL ".join(f"SELECT {_id(t.name)}, * FROM unnest(s.{t.name}) WITH ORDINALITY" for t in _SUMMED)}
    ) AS u (spread, n, place) WHERE u.n > 0
"""  # noqa: S608
_EPISODES: Final = f"""
    SELECT {_COHORT}, {_id("episodes")}, (t.source::integer << 12) | (t.code::integer << 2) | t.level, count(*)
    FROM alarm_episodes {_JOINED} WHERE t.day = %(day)s AND {ALARM} AND t.code BETWEEN 0 AND 1023
      AND t.level BETWEEN 0 AND 3 GROUP BY 1, 2, 3
"""  # noqa: S608
_DAY_SPREADS: Final = " UNION ALL ".join(
    [
        _counted("b.cohort_id", _DAYS, _DAY_VALUES).replace("{where}", _OF_DAY),
        _counted(_COHORT, f"trips {_JOINED}", _TRIP_VALUES).replace("{where}", "t.day = %(day)s"),
        _counted(_COHORT, f"charges {_JOINED}", _CHARGE_VALUES).replace("{where}", "t.day = %(day)s"),
        _counted("p.cohort_id", "vehicle_brief p", _VEHICLE_VALUES).replace(
            "{where}", "p.span = 'D' AND p.start = %(day)s"
        ),
        _hours("driving_hours", "h.driving_s"),
        _hours("charge_hours", "h.charge_kwh * 1000"),
        _TALLIES,
        _EPISODES,
    ]
)
DAY_SPREADS: Final = f"""
    INSERT INTO cohort_spread (span, start, spread, cohort_id, counts)
    SELECT 'D', %(day)s, spread, cohort_id, {_PACKED}
    FROM ({_DAY_SPREADS}) AS c (cohort_id, spread, bin, n) WHERE n > 0 GROUP BY spread, cohort_id ORDER BY 3, 4
"""  # noqa: S608

# -- handling of alarms, which changes without the day changing ------------------------------------------
HANDLING_IDS: Final = tuple(_id(name) for name in ("acknowledged_min", "closed_min", "handling"))
_MINUTES: Final = "extract(epoch FROM t.{} - t.start_at)::double precision / 60"
_LOCAL: Final = "(t.{} AT TIME ZONE %(zone)s)::date"
_FIRST, _LAST = _LOCAL.format("start_at"), _LOCAL.format("closed_at")
_WORKING_DAYS: Final = f"generate_series({_FIRST} + 1, {_LAST}, interval '1 day')"
_WORKING: Final = f"""
    {_LAST} - {_FIRST} <= {CLOSE_WORKING_DAYS * 7 // 5 + 2}
    AND (SELECT count(*) FROM {_WORKING_DAYS} AS day WHERE extract(isodow FROM day) < 6) <= {CLOSE_WORKING_DAYS}
"""  # noqa: S608
_HANDLED: Final = f"""
    (0, true), (1, t.acknowledged_at IS NOT NULL),
    (2, {_MINUTES.format("acknowledged_at")} <= {ACKNOWLEDGE_MIN}), (3, t.closed_at IS NOT NULL),
    (4, t.closed_at IS NOT NULL AND {_WORKING})
"""
_SERIOUS: Final = f"t.day = %(day)s AND t.level >= {cohorts.FREQUENT_LEVEL} AND {ALARM}"
_HANDLING_VALUES: Final = {
    name: f"greatest(0, {_MINUTES.format(column)})"
    for name, column in (("acknowledged_min", "acknowledged_at"), ("closed_min", "closed_at"))
}
_HANDLING: Final = f"""
    {
    _counted(
        _COHORT,
        f"alarm_episodes {_JOINED}",
        {
            name: f"CASE WHEN t.{column} IS NOT NULL THEN {_HANDLING_VALUES[name]} END"
            for name, column in (("acknowledged_min", "acknowledged_at"), ("closed_min", "closed_at"))
        },
    ).replace("{where}", _SERIOUS)
}
    UNION ALL
    SELECT {_COHORT}, {_id("handling")}, w.place, count(*)
    FROM alarm_episodes {_JOINED} CROSS JOIN LATERAL (VALUES {_HANDLED}) AS w (place, so)
    WHERE {_SERIOUS} AND w.so GROUP BY 1, 2, 3
"""  # noqa: S608
HANDLING: Final = f"""
    INSERT INTO cohort_spread (span, start, spread, cohort_id, counts)
    SELECT 'D', %(day)s, spread, cohort_id, {_PACKED}
    FROM ({_HANDLING}) AS c (cohort_id, spread, bin, n) GROUP BY spread, cohort_id
"""  # noqa: S608

# -- weeks, months, years --------------------------------------------------------------------------------
PERIOD_VEHICLES: Final = """
    CREATE TEMPORARY TABLE period_vehicles ON COMMIT DROP AS
    SELECT vehicle_id, (max((start - date '1970-01-01')::bigint << 32 | cohort_id) & 4294967295)::integer AS cohort_id,
           bit_or(flags) AS flags, sum(charges)::integer AS charges,
           sum(round(distance_km * 1e6)::bigint)::double precision / 1e6 AS distance_km,
           sum(round(cycles * 1e9)::bigint)::double precision / 1e9 AS cycles
    FROM vehicle_brief WHERE span = %(part)s AND start BETWEEN %(start)s AND %(end)s GROUP BY vehicle_id
"""
BRIEF_MONTH: Final = """
    INSERT INTO vehicle_brief (span, start, vehicle_id, cohort_id, flags, charges, distance_km, cycles)
    SELECT 'M', %(start)s, vehicle_id, cohort_id, flags, charges, distance_km, cycles FROM period_vehicles
    ORDER BY vehicle_id
"""
_ADDED: Final = [name for name, scalar in SCALAR.items() if scalar.how == cohorts.ADDED]
PERIOD: Final = f"""
    INSERT INTO cohort_period (span, start, cohort_id, {", ".join((*_ADDED, *FLAGS_OF))}, newest_at)
    SELECT %(span)s, %(start)s, cohort_id, {", ".join(f"a.{name}" for name in _ADDED)},
           {", ".join(f"coalesce(v.{name}, 0)" for name in FLAGS_OF)}, a.newest_at
    FROM (
        SELECT cohort_id, max(newest_at) AS newest_at, {
    ", ".join(f"{exact(name) if SCALAR[name].unit else total(name)} AS {name}" for name in _ADDED)
}
        FROM cohort_period WHERE span = %(part)s AND start BETWEEN %(start)s AND %(end)s GROUP BY cohort_id
    ) a LEFT JOIN (
        SELECT cohort_id, {", ".join(f"{count(f'flags & {flags} <> 0')} AS {name}" for name, flags in FLAGS_OF.items())}
        FROM period_vehicles GROUP BY cohort_id
    ) v USING (cohort_id)
"""  # noqa: S608
PARTS: Final = """
    SELECT cohort_id, string_agg(counts, ''::bytea) AS counts FROM cohort_spread
    WHERE span = %(part)s AND start BETWEEN %(start)s AND %(end)s AND spread = %(spread)s
    GROUP BY cohort_id ORDER BY cohort_id
"""
# What a period's cohorts are: their dimensions, in order.
PERIOD_COHORTS: Final = f"""
    SELECT c.cohort_id, {", ".join(f"c.{name}" for name in cohorts.DIMENSIONS)} FROM cohorts c
    WHERE c.cohort_id IN (SELECT cohort_id FROM cohort_spread WHERE span = %(span)s AND start = %(start)s)
    ORDER BY c.cohort_id
"""  # noqa: S608
PERIOD_SPREADS: Final = """
    SELECT DISTINCT spread FROM cohort_spread
    WHERE span = %(span)s AND start = %(start)s AND (%(spreads)s::smallint[] IS NULL OR spread = ANY(%(spreads)s))
    ORDER BY spread
"""
PERIOD_COUNTS: Final = """
    SELECT cohort_id, counts FROM cohort_spread WHERE span = %(span)s AND start = %(start)s AND spread = %(spread)s
    ORDER BY cohort_id
"""
MERGED_IDS: Final = tuple(spread.id for spread in cohorts.SPREADS if spread.how == cohorts.ADDED)
_CAPACITY: Final = f"""
    SELECT coalesce(p.cohort_id, g.facts_id * 4 + g.edition), v.spread, {_BIN}, count(*)
    FROM (SELECT DISTINCT ON (vehicle_id) vehicle_id, capacity_ah FROM battery_capacity
          WHERE month BETWEEN %(start)s AND %(end)s ORDER BY vehicle_id, month DESC) c
    JOIN vehicle_groups g USING (vehicle_id) LEFT JOIN period_vehicles p USING (vehicle_id)
    CROSS JOIN LATERAL (VALUES {
    _values({"capacity_ah": "c.capacity_ah", "soh_pct": "100 * c.capacity_ah / g.battery_ah"})
}) AS v (spread, log, x)
    WHERE v.x IS NOT NULL AND %(span)s IN ('M', 'Y') GROUP BY 1, 2, 3
"""  # noqa: S608
VEHICLE_SPREADS: Final = f"""
    INSERT INTO cohort_spread (span, start, spread, cohort_id, counts)
    SELECT %(span)s, %(start)s, spread, cohort_id, {_PACKED}
    FROM ({_counted("p.cohort_id", "period_vehicles p", _VEHICLE_VALUES).replace("{where}", "true")}
          UNION ALL {_CAPACITY}) AS c (cohort_id, spread, bin, n) GROUP BY spread, cohort_id
"""  # noqa: S608

# -- the weekly verification -------------------------------------------------------------------------------
_SIZES: Final = CHECKS.index("list_sizes")
_VERDICTS: Final = " | ".join(
    f"CASE WHEN failures[{k + 1}] > totals[{k + 1}] * {1 - CHECK_SHARES[name]:.6g}::numeric"
    + (" OR cells_seen <> g.cells OR probes_seen <> g.probes" if k == _SIZES else "")
    + f" THEN {1 << k} ELSE 0 END"
    for k, name in enumerate(CHECKS)
)


def _checks(column: str) -> str:
    sums = (f"coalesce(sum(d.{column}[{k + 1}]), 0)" for k in range(len(CHECKS)))
    return f"ARRAY[{', '.join(sums)}]::bigint[]"


WEEK_CHECKS: Final = f"""
    CREATE TEMPORARY TABLE week_checks ON COMMIT DROP AS
    SELECT vehicle_id, cohort_id, {_VERDICTS} AS failed, totals, failures, cells_seen, probes_seen
    FROM (
        SELECT p.vehicle_id, p.cohort_id, {_checks("check_total")} AS totals, {_checks("check_failed")} AS failures,
               max(d.cells_listed)::integer AS cells_seen, max(d.probes_listed)::integer AS probes_seen
        FROM period_vehicles p JOIN vehicle_day d USING (vehicle_id)
        WHERE d.day BETWEEN %(start)s AND %(end)s GROUP BY p.vehicle_id, p.cohort_id
    ) s JOIN vehicle_groups g USING (vehicle_id)
"""  # noqa: S608
FAILING: Final = """
    INSERT INTO vehicle_checks (week, vehicle_id, cohort_id, failed, totals, failures, cells_seen, probes_seen)
    SELECT %(start)s, vehicle_id, cohort_id, failed, totals, failures, cells_seen, probes_seen FROM week_checks
    WHERE failed <> 0
"""
PASSED: Final = """
    UPDATE cohort_period p SET checked_vehicles = c.checked, passed_vehicles = c.passed
    FROM (SELECT cohort_id, count(*) AS checked, count(*) FILTER (WHERE failed = 0) AS passed FROM week_checks
          GROUP BY cohort_id) c
    WHERE p.span = 'W' AND p.start = %(start)s AND p.cohort_id = c.cohort_id
"""
CHECK_SPREADS: Final = f"""
    INSERT INTO cohort_spread (span, start, spread, cohort_id, counts)
    SELECT 'W', %(start)s, spread, cohort_id, {_PACKED} FROM (
        SELECT cohort_id, v.spread, k AS bin, count(*) AS n
        FROM week_checks CROSS JOIN generate_series(0, {len(CHECKS) - 1}) AS k
        CROSS JOIN LATERAL (VALUES ({_id("check_judged")}, totals[k + 1] > 0),
                                   ({_id("check_failed")}, failed >> k & 1 = 1)) AS v (spread, so)
        WHERE v.so GROUP BY 1, 2, 3
    ) c GROUP BY spread, cohort_id
"""  # noqa: S608

# -- where cohorts stand on an evening ---------------------------------------------------------------------
_STATE_COLUMNS: Final = tuple(STATES)
STATE: Final = f"""
    INSERT INTO cohort_state (day, cohort_id, {", ".join(_STATE_COLUMNS)})
    SELECT %(day)s, g.facts_id * 4 + g.edition,
           count(*) FILTER (WHERE s.day > %(day)s::date - 7 AND {{accessed}}),
           count(*) FILTER (WHERE s.day > %(day)s::date - 30 AND {{accessed}}),
           count(*) FILTER (WHERE s.day IS NOT NULL AND {{accessed}}),
           count(*) FILTER (WHERE f.vehicle_id IS NOT NULL),
           count(*) FILTER (WHERE o.vehicle_id IS NOT NULL), coalesce(sum(o.cells), 0)
    FROM vehicle_groups g
    CROSS JOIN LATERAL (SELECT max(day) AS day FROM vehicle_day d
                        WHERE d.vehicle_id = g.vehicle_id AND d.day <= %(day)s AND d.day > %(day)s::date - 90) s
    LEFT JOIN (SELECT vehicle_id FROM alarm_episodes
               WHERE day BETWEEN %(day)s::date - {cohorts.FREQUENT_DAYS - 1} AND %(day)s
                 AND level >= {cohorts.FREQUENT_LEVEL} AND {ALARM}
               GROUP BY vehicle_id HAVING count(*) >= {cohorts.FREQUENT_EPISODES}) f USING (vehicle_id)
    LEFT JOIN (SELECT vehicle_id, count(*) AS cells FROM (
                   SELECT vehicle_id, cell FROM cell_outliers
                   WHERE day BETWEEN %(day)s::date - {cohorts.OUTLIER_WINDOW_DAYS - 1} AND %(day)s
                     AND usable_rows > 0 AND greatest(z_rows, robust_rows) >= {OUTLIER_SHARE} * usable_rows
                     AND abs(deviation_mv) >= {OUTLIER_MV}
                   GROUP BY vehicle_id, cell HAVING count(*) >= {OUTLIER_DAYS}) c GROUP BY vehicle_id) o
        USING (vehicle_id)
    GROUP BY 2
""".replace("{accessed}", "(g.retired_on IS NULL OR g.retired_on > %(day)s)")  # noqa: S608

# -- what is behind ----------------------------------------------------------------------------------------
STALE_DAYS: Final = """
    SELECT d.day FROM statistics_days d LEFT JOIN cohort_counted c ON c.span = 'D' AND c.start = d.day
    WHERE c.changes IS DISTINCT FROM d.changes ORDER BY d.day DESC
"""
STALE_STATES: Final = """
    SELECT w.start, w.wanted FROM (
        SELECT start, (sum(builds) OVER (ORDER BY start RANGE BETWEEN interval '89 days' PRECEDING AND CURRENT ROW))
                          ::bigint AS wanted
        FROM (SELECT start, sum(builds) AS builds FROM (
                  SELECT start, builds FROM cohort_counted WHERE span = 'D'
                  UNION ALL SELECT %(today)s, 0 WHERE EXISTS (SELECT FROM cohort_counted WHERE span = 'D')
              ) u WHERE start <= %(today)s GROUP BY start) d
    ) w LEFT JOIN cohort_counted c ON c.span = 'S' AND c.start = w.start
    WHERE c.changes IS DISTINCT FROM w.wanted ORDER BY w.start DESC
"""
STALE_PERIODS: Final = """
    SELECT p.span::text, p.start, p.wanted FROM (
        SELECT s.span, s.start, sum(d.builds)::bigint AS wanted
        FROM cohort_counted d CROSS JOIN LATERAL (VALUES
            ('W'::"char", date_trunc('week', d.start)::date), ('M', date_trunc('month', d.start)::date),
            ('Y', date_trunc('year', d.start)::date)
        ) AS s (span, start) WHERE d.span = 'D' GROUP BY 1, 2
    ) p LEFT JOIN cohort_counted c ON c.span = p.span AND c.start = p.start
    WHERE c.changes IS DISTINCT FROM p.wanted ORDER BY strpos('WMY', p.span::text), p.start DESC
"""
COUNTED: Final = """
    INSERT INTO cohort_counted AS c (span, start, changes, builds, computed_at, newest_at)
    VALUES (%(span)s, %(start)s, %(changes)s, 1, now(),
            (SELECT max(newest_at) FROM cohort_period WHERE span = %(span)s AND start = %(start)s))
    ON CONFLICT (span, start) DO UPDATE SET changes = excluded.changes, builds = c.builds + 1,
        computed_at = excluded.computed_at, newest_at = excluded.newest_at
"""
