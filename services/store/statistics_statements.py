"""The SQL of :mod:`services.store.statistics`, by name, with what each relies on.

Days travel as numbers since 1970-01-01, times as seconds.
"""

from __future__ import annotations

from typing import Final

from psycopg import sql

from schemas.statistics.columns import COLUMNS
from schemas.statistics.measures import MEASURES, TALLIES
from services.store.changes import LOGOUT, LOGOUT_AFTER_S

_DAY: Final = "(date '1970-01-01' + {})"

CLAIM: Final = """
    SELECT change_id, vehicles, from_s, to_s, extract(epoch FROM now() - changed_at)::float8
    FROM statistics_changes WHERE share = ANY (%s::smallint[]) ORDER BY change_id LIMIT %s
"""
CLAIM_URGENT: Final = CLAIM.replace("ORDER BY", "AND urgent ORDER BY")

STANDINGS: Final = """
    SELECT f.vehicle_id, f.current_inverted, c.day - date '1970-01-01', extract(epoch FROM c.through_at)::bigint,
           extract(epoch FROM c.newest_at)::bigint, c.layout, c.inverted, c.state
    FROM vehicle_facts f LEFT JOIN statistics_checkpoints c USING (vehicle_id) WHERE f.vehicle_id = ANY (%s::bigint[])
"""

# LATERAL with a LIMIT: each window is read in the order of telemetry's own index, and no further than it may be.
_WINDOWS: Final = "unnest(%s::bigint[], %s::bigint[], %s::bigint[]{}) WITH ORDINALITY AS w (id, after, until{}, n)"


def _read() -> sql.Composed:
    names = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in COLUMNS[1:])
    plain = sql.SQL(", ").join(map(sql.Identifier, COLUMNS[1:]))
    return sql.SQL(
        "COPY (SELECT w.n - 1, {names} FROM {windows}"
        " CROSS JOIN LATERAL (SELECT {plain} FROM telemetry t WHERE t.vehicle_id = w.id"
        " AND t.time > to_timestamp(w.after) AND t.time <= to_timestamp(w.until)"
        " ORDER BY t.time, t.kind, t.part LIMIT w.most) t) TO STDOUT (FORMAT BINARY)"
    ).format(names=names, plain=plain, windows=sql.SQL(_WINDOWS.format(", %s::bigint[]", ", most")))


READ: Final = _read()
LOGOUTS: Final = f"""
    SELECT DISTINCT w.n - 1, extract(epoch FROM l.time)::bigint + {LOGOUT_AFTER_S}, l.edition
    FROM {_WINDOWS.format("", "")}
    CROSS JOIN (SELECT %s::double precision AS past, %s::double precision AS future) c
    JOIN logins l ON l.vehicle_id = w.id AND l.command = {LOGOUT}
        AND l.time > to_timestamp(w.after - {LOGOUT_AFTER_S}) AND l.time <= to_timestamp(w.until - {LOGOUT_AFTER_S})
        AND l.received_at >= to_timestamp(w.after - {LOGOUT_AFTER_S} - c.future)
        AND l.time <= l.received_at + make_interval(secs => c.future)
        AND l.time >= l.received_at - make_interval(secs => c.past)
    ORDER BY 1, 2, 3
"""  # noqa: S608 - numbers of ours

CARRY_BEFORE: Final = f"""
    SELECT w.id, d.day - date '1970-01-01', CASE WHEN d.layout = w.layout THEN d.carry END
    FROM unnest(%s::bigint[], %s::integer[]) AS u (id, day) CROSS JOIN LATERAL (SELECT u.id, u.day, %s::integer) AS w (id, day, layout)
    CROSS JOIN LATERAL (SELECT * FROM vehicle_day d WHERE d.vehicle_id = w.id AND d.day < {_DAY.format("w.day")}
                        ORDER BY d.day DESC LIMIT 1) d
"""  # noqa: S608, E501
CARRIES: Final = f"""
    SELECT w.id, d.day - date '1970-01-01', CASE WHEN d.layout = %s THEN d.carry END
    FROM unnest(%s::bigint[], %s::integer[], %s::integer[]) AS w (id, first, last)
    JOIN vehicle_day d ON d.vehicle_id = w.id AND d.day BETWEEN {_DAY.format("w.first")} AND {_DAY.format("w.last")}
    ORDER BY 1, 2
"""  # noqa: S608

# -- swap ------------------------------------------------------------------------------------------------

_COUNTS: Final = {measure.name for measure in MEASURES if measure.count}
_NAMES: Final = tuple(measure.name for measure in MEASURES)
QUANTILES: Final = tuple(
    (f"{tally}_{name}_mv", tally, share)
    for tally in ("range_rest", "range_driving", "range_charge_end")
    for name, share in (("p50", 0.5), ("p95", 0.95))
)

_VALUES: Final = ", ".join(f'"{name}" double precision NOT NULL' for name in _NAMES)
TEMPORARY: Final = f"""
    SET client_min_messages = warning;
    CREATE TEMPORARY TABLE swap_ranges (
        vehicle_id bigint NOT NULL, first date NOT NULL, last date NOT NULL, from_at timestamptz NOT NULL,
        until_at timestamptz NOT NULL, open boolean NOT NULL, PRIMARY KEY (vehicle_id)
    ) ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE swap_hours (
        vehicle_id bigint NOT NULL, hour_s bigint NOT NULL, day integer NOT NULL, {_VALUES},
        PRIMARY KEY (vehicle_id, hour_s)
    ) ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE swap_days (
        vehicle_id bigint NOT NULL, day integer NOT NULL, first_s bigint NOT NULL, last_s bigint NOT NULL,
        edition bigint NOT NULL, layout bigint NOT NULL, nominal_s double precision NOT NULL,
        {", ".join(f"{name} double precision NOT NULL" for name, _, _ in QUANTILES)}, {_VALUES},
        {", ".join(f"{tally.name} integer[] NOT NULL" for tally in TALLIES)}, carry bytea,
        PRIMARY KEY (vehicle_id, day)
    ) ON COMMIT DELETE ROWS
"""
HOUR_COLUMNS: Final = ("vehicle_id", "hour_s", "day", *_NAMES)
DAY_COLUMNS: Final = (
    "vehicle_id", "day", "first_s", "last_s", "edition", "layout", "nominal_s", *(name for name, _, _ in QUANTILES),
    *_NAMES, *(tally.name for tally in TALLIES), "carry",
)  # fmt: skip

RANGES: Final = f"""
    INSERT INTO swap_ranges
    SELECT id, {_DAY.format("first")}, coalesce({_DAY.format("last")}, 'infinity'), to_timestamp(from_s),
           coalesce(to_timestamp(until_s), 'infinity'), last IS NULL
    FROM unnest(%s::bigint[], %s::integer[], %s::integer[], %s::bigint[], %s::bigint[])
         AS r (id, first, last, from_s, until_s)
"""  # noqa: S608


def _value(name: str, column: str) -> str:
    return f"nullif(s.\"{name}\", 'NaN')::{column}"


def _upsert(table: str, key: tuple[str, ...], columns: list[tuple[str, str]], stage: str) -> str:
    """Rows of ``stage`` into ``table``; one that stands there as it is stays untouched. Answers what changed."""
    names = ", ".join(f'"{name}"' for name, _ in columns)
    rest = [name for name, _ in columns if name not in key]
    mine = ", ".join(f't."{name}"' for name in rest)
    new = ", ".join(f'excluded."{name}"' for name in rest)
    return (
        f"INSERT INTO {table} AS t ({names}) SELECT {', '.join(text for _, text in columns)} FROM {stage} s"  # noqa: S608
        f" ORDER BY {', '.join(str(i + 1) for i in range(len(key)))}"
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET "
        + ", ".join(f'"{name}" = excluded."{name}"' for name in rest)
        + f" WHERE ROW({mine}) IS DISTINCT FROM ROW({new}) RETURNING t.day"
    )


UPSERT_HOURS: Final = _upsert(
    "vehicle_hour",
    ("vehicle_id", "hour"),
    [
        ("vehicle_id", "s.vehicle_id"), ("hour", "to_timestamp(s.hour_s)"), ("day", _DAY.format("s.day")),
        *((name, _value(name, "integer" if name in _COUNTS else "real")) for name in _NAMES),
    ],
    "swap_hours",
)  # fmt: skip
UPSERT_DAYS: Final = _upsert(
    "vehicle_day",
    ("vehicle_id", "day"),
    [
        ("vehicle_id", "s.vehicle_id"), ("day", _DAY.format("s.day")),
        *((name, _value(name, "integer" if name in _COUNTS else "double precision")) for name in _NAMES),
        ("nominal_s", _value("nominal_s", "real")),
        *((tally.name, f"s.{tally.name}") for tally in TALLIES),
        *((name, _value(name, "real")) for name, _, _ in QUANTILES),
        ("first_at", "to_timestamp(s.first_s)"), ("last_at", "to_timestamp(s.last_s)"),
        ("edition", "s.edition::smallint"), ("carry", "s.carry"), ("layout", "s.layout::integer"),
    ],
    "swap_days",
)  # fmt: skip
DELETE_HOURS: Final = """
    DELETE FROM vehicle_hour t USING swap_ranges r
    WHERE t.vehicle_id = r.vehicle_id AND t.hour >= r.from_at AND t.hour < r.until_at
      AND NOT EXISTS (SELECT FROM swap_hours s WHERE s.vehicle_id = t.vehicle_id
                      AND s.hour_s = extract(epoch FROM t.hour)::bigint)
    RETURNING t.day
"""
DELETE_DAYS: Final = """
    DELETE FROM vehicle_day t USING swap_ranges r
    WHERE t.vehicle_id = r.vehicle_id AND t.day BETWEEN r.first AND r.last
      AND NOT EXISTS (SELECT FROM swap_days s WHERE s.vehicle_id = t.vehicle_id
                      AND s.day = t.day - date '1970-01-01')
    RETURNING t.day
"""
# Before and after the days are swapped, subtracted and added: the sums over vehicle_day.
_SIGN_SUMS: Final = """
    SELECT d.vehicle_id, {sign} * coalesce(d.charging_sign[1], 0)::bigint,
           {sign} * coalesce(d.charging_sign[2], 0)::bigint
    FROM {rows}
"""
CHANGE_SIGNS: Final = f"""
    INSERT INTO statistics_signs AS s (vehicle_id, charging, above)
    SELECT vehicle_id, sum(charging), sum(above) FROM (
        {
    _SIGN_SUMS.format(
        sign="-1",
        rows='''swap_ranges r JOIN vehicle_day d ON d.vehicle_id = r.vehicle_id
        AND d.day BETWEEN r.first AND r.last''',
    )
}
        UNION ALL {_SIGN_SUMS.format(sign="1", rows="swap_days d")}
    ) AS c (vehicle_id, charging, above)
    GROUP BY vehicle_id HAVING sum(charging) <> 0 OR sum(above) <> 0 ORDER BY vehicle_id
    ON CONFLICT (vehicle_id) DO UPDATE SET charging = s.charging + excluded.charging, above = s.above + excluded.above
    RETURNING s.vehicle_id
"""  # noqa: S608

SAVE_CHECKPOINTS: Final = f"""
    INSERT INTO statistics_checkpoints (vehicle_id, day, through_at, newest_at, layout, inverted, state)
    SELECT id, {_DAY.format("day")}, to_timestamp(through_s), to_timestamp(newest_s), layout, inverted, state
    FROM unnest(%b::bigint[], %b::integer[], %b::bigint[], %b::bigint[], %b::integer[], %b::boolean[], %b::bytea[])
         AS c (id, day, through_s, newest_s, layout, inverted, state) ORDER BY id
    ON CONFLICT (vehicle_id) DO UPDATE SET day = excluded.day, through_at = excluded.through_at,
        newest_at = excluded.newest_at, layout = excluded.layout, inverted = excluded.inverted, state = excluded.state
"""  # noqa: S608
FORGET_CHECKPOINTS: Final = "DELETE FROM statistics_checkpoints WHERE vehicle_id = ANY (%s::bigint[])"
MARK_DAYS: Final = """
    INSERT INTO statistics_days AS d (day, changes) SELECT day, 1 FROM unnest(%s::date[]) AS day ORDER BY day
    ON CONFLICT (day) DO UPDATE SET changes = d.changes + 1
"""
DONE: Final = "DELETE FROM statistics_changes WHERE change_id = ANY (%s::bigint[])"

# Charges that are over and tell a capacity, by month of their begin; fewer than three tell nothing (4.5).
CAPACITY: Final = """
    WITH months AS (SELECT * FROM unnest(%s::bigint[], %s::date[]) AS m (vehicle_id, month)),
    found AS (
        SELECT m.vehicle_id, m.month, count(*)::integer AS charges,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY c.capacity_ah) AS capacity_ah,
               percentile_cont(0.25) WITHIN GROUP (ORDER BY c.capacity_ah) AS p25_ah,
               percentile_cont(0.75) WITHIN GROUP (ORDER BY c.capacity_ah) AS p75_ah, max(c.odometer_km) AS odometer_km
        FROM months m JOIN charges c ON c.vehicle_id = m.vehicle_id AND c.settled_on IS NOT NULL
             AND c.start_at >= m.month::timestamptz - interval '2 days'
             AND c.start_at < m.month::timestamptz + interval '1 month 2 days'
             AND c.day >= m.month AND c.day < m.month + interval '1 month' AND c.capacity_ah IS NOT NULL
        GROUP BY 1, 2 HAVING count(*) >= 3
    ), gone AS (
        DELETE FROM battery_capacity b USING months m WHERE b.vehicle_id = m.vehicle_id AND b.month = m.month
            AND NOT EXISTS (SELECT FROM found f WHERE f.vehicle_id = b.vehicle_id AND f.month = b.month)
    )
    INSERT INTO battery_capacity AS b (vehicle_id, month, charges, capacity_ah, p25_ah, p75_ah, odometer_km)
    SELECT * FROM found ORDER BY 1, 2
    ON CONFLICT (vehicle_id, month) DO UPDATE SET charges = excluded.charges, capacity_ah = excluded.capacity_ah,
        p25_ah = excluded.p25_ah, p75_ah = excluded.p75_ah, odometer_km = excluded.odometer_km
    WHERE ROW(b.charges, b.capacity_ah, b.p25_ah, b.p75_ah, b.odometer_km)
        IS DISTINCT FROM ROW(excluded.charges, excluded.capacity_ah, excluded.p25_ah, excluded.p75_ah,
                             excluded.odometer_km)
"""

# -- sign of the current (3.2) ---------------------------------------------------------------------------

# More than half of at least a hundred records of parked charging above +1 A: the model reports it inverted.
_JUDGED: Final = "sum(s.charging) >= 100 AND 2 * sum(s.above) > sum(s.charging)"
FLIP_MODELS: Final = f"""
    WITH judged AS (
        SELECT v.model, {_JUDGED} AS inverted, sum(s.charging)::bigint AS charging, sum(s.above)::bigint AS above
        FROM vehicles v JOIN statistics_signs s USING (vehicle_id)
        WHERE v.model IN (SELECT model FROM vehicles WHERE vehicle_id = ANY (%s::bigint[]) AND model IS NOT NULL)
        GROUP BY v.model
    ), flipped AS (
        INSERT INTO models AS m (model, current_inverted)
        SELECT j.model, j.inverted FROM judged j LEFT JOIN models k USING (model)
        WHERE j.inverted <> coalesce(k.current_inverted, false) ORDER BY 1
        ON CONFLICT (model) DO UPDATE SET current_inverted = excluded.current_inverted RETURNING m.model
    )
    SELECT j.model, j.inverted, j.charging, j.above FROM flipped f JOIN judged j USING (model) ORDER BY 1
"""  # noqa: S608
FLIP_VEHICLES: Final = """
    UPDATE vehicles v SET current_inverted = NOT v.current_inverted FROM statistics_signs s
    WHERE v.vehicle_id = ANY (%s::bigint[]) AND s.vehicle_id = v.vehicle_id AND v.model IS NULL
      AND v.current_inverted <> (s.charging >= 100 AND 2 * s.above > s.charging)
    RETURNING v.vin, v.current_inverted, s.charging, s.above
"""
OF_FLIPPED: Final = """
    SELECT v.vehicle_id FROM vehicles v JOIN statistics_checkpoints c USING (vehicle_id)
    WHERE v.model = ANY (%s::text[]) OR (v.model IS NULL AND v.vin = ANY (%s::text[])) ORDER BY 1
"""
STALE: Final = """
    SELECT c.vehicle_id FROM statistics_checkpoints c JOIN vehicle_facts f USING (vehicle_id)
    WHERE c.vehicle_id > %s AND (c.layout <> %s OR c.inverted <> f.current_inverted) ORDER BY 1 LIMIT %s
"""

# -- for people ------------------------------------------------------------------------------------------

BEHIND: Final = """
    SELECT count(*), coalesce(extract(epoch FROM now() - min(changed_at)), 0)::float8
    FROM statistics_changes WHERE share = ANY (%s::smallint[])
"""
WITH_DATA: Final = """
    SELECT v.vehicle_id FROM vehicles v WHERE (%s::text IS NULL OR v.vin = %s)
      AND EXISTS (SELECT FROM vehicle_state s WHERE s.vehicle_id = v.vehicle_id) ORDER BY 1
"""
STATUS: Final = """
    SELECT (SELECT count(*) FROM statistics_changes) AS changes,
           (SELECT count(*) FROM statistics_changes WHERE urgent) AS urgent,
           (SELECT extract(epoch FROM now() - min(changed_at))::float8 FROM statistics_changes) AS oldest_s,
           (SELECT count(*) FROM statistics_checkpoints) AS vehicles,
           (SELECT max(newest_at) FROM statistics_checkpoints) AS newest_at,
           (SELECT count(DISTINCT layout) FROM statistics_checkpoints) AS layouts,
           (SELECT min(day) FROM statistics_days) AS first_day, (SELECT max(day) FROM statistics_days) AS last_day
"""
