"""What is asked of one vehicle's statistics: sessions, days, hours, its battery, and the telemetry behind a session.

Reads only, bounded by limits and by the time-out of the connections.  Column names come from ``schemas.statistics``
and from the signal catalogue, never from a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final, LiteralString, Protocol

from psycopg import sql

from schemas.seams import Table
from schemas.signals import INDEX as SIGNAL
from schemas.statistics.measures import INDEX as MEASURE
from schemas.statistics.measures import TALLIES
from schemas.statistics.sessions import FINDINGS, TABLE

# What a day has besides its measures; an hour has none of it.
DAY_ONLY: Final = (
    "nominal_s", "range_rest_p50_mv", "range_rest_p95_mv", "range_driving_p50_mv", "range_driving_p95_mv",
    "range_charge_end_p50_mv", "range_charge_end_p95_mv", "first_at", "last_at", "edition",
    *(tally.name for tally in TALLIES),
)  # fmt: skip
_ID: Final = {"trips": "trip_id", "charges": "charge_id"}

_FACTS: Final = sql.SQL(
    """
    SELECT f.*, s.time AS telemetry_at, c.day AS open_day, c.through_at,
           least(c.newest_at, s.time) AS newest_at  -- a logout is later than what was measured
    FROM vehicle_facts f LEFT JOIN vehicle_state s USING (vehicle_id)
    LEFT JOIN statistics_checkpoints c USING (vehicle_id)
    WHERE f.vehicle_id = %(id)s
    """
)


def _session_columns(table: str) -> sql.Composed:
    names = [name.removesuffix("_s") + "_at" if kind == "timestamptz" else name
             for name, kind in FINDINGS[TABLE[table]].columns]  # fmt: skip
    return sql.SQL(", ").join(
        sql.SQL("x.{}").format(sql.Identifier(name)) for name in (_ID[table], "revision", "day", "settled_on", *names)
    )


_SESSIONS: Final = sql.SQL(
    """
    SELECT {columns}, d.nominal_s FROM {table} x LEFT JOIN vehicle_day d USING (vehicle_id, day)
    WHERE x.vehicle_id = %(id)s AND {condition} ORDER BY x.start_at, x.{key} LIMIT %(limit)s
    """
)
_STARTED: Final[LiteralString] = """
    x.start_at >= %(since)s AND x.start_at < %(until)s AND (x.start_at, x.{key}) > (%(time)s, %(number)s)
"""
_TOUCHING: Final[LiteralString] = "x.start_at < %(until)s AND x.end_at > %(since)s"
_ONE: Final[LiteralString] = "x.{key} = %(number)s"

_DAYS: Final = sql.SQL(
    """
    SELECT day {columns} FROM vehicle_day
    WHERE vehicle_id = %(id)s AND day >= %(first)s AND day <= %(last)s ORDER BY day LIMIT %(limit)s
    """
)
_HOURS: Final = sql.SQL(
    """
    SELECT hour {columns} FROM vehicle_hour
    WHERE vehicle_id = %(id)s AND hour >= %(since)s AND hour < %(until)s ORDER BY hour LIMIT %(limit)s
    """
)
_RESENDS: Final = sql.SQL(
    """
    SELECT day, duplicates, conflicts FROM vehicle_resends
    WHERE vehicle_id = %(id)s AND day >= %(first)s AND day <= %(last)s ORDER BY day
    """
)
_CAPACITIES: Final = sql.SQL(
    """
    SELECT charge_id, start_at, odometer_km, start_soc_pct, end_soc_pct, capacity_ah, mean_temp_c FROM charges
    WHERE vehicle_id = %(id)s AND capacity_ah IS NOT NULL ORDER BY start_at, charge_id LIMIT %(limit)s
    """
)
_CAPACITY_MONTHS: Final = sql.SQL(
    """
    SELECT month, charges, capacity_ah, p25_ah, p75_ah, odometer_km FROM battery_capacity
    WHERE vehicle_id = %(id)s ORDER BY month
    """
)
_THROUGHPUT: Final = sql.SQL(
    """
    SELECT sum(discharge_ah) AS discharge_ah, sum(charge_ah) AS charge_ah, sum(covered_s) AS covered_s,
           sum(gap_s) AS gap_s, min(day) AS first_day, max(day) AS last_day, count(*) AS days
    FROM vehicle_day WHERE vehicle_id = %(id)s
    """
)
_BY_DAY: Final = {
    "cell_outliers": sql.SQL(
        """
        SELECT day, cell, usable_rows, z_rows, robust_rows, deviation_mv FROM cell_outliers
        WHERE vehicle_id = %(id)s AND day >= %(first)s AND day <= %(last)s ORDER BY day, cell LIMIT %(limit)s
        """
    ),
    "dc_resistance": sql.SQL(
        """
        SELECT day, temp_class_c, samples, median_mohm, soc_mean_pct, temp_mean_c FROM dc_resistance
        WHERE vehicle_id = %(id)s AND day >= %(first)s AND day <= %(last)s
        ORDER BY day, temp_class_c LIMIT %(limit)s
        """
    ),
    "cell_rests": sql.SQL(
        """
        SELECT day, start_at, end_at, cell, drop_mv_per_day, median_drop_mv_per_day, settled_on FROM cell_rests
        WHERE vehicle_id = %(id)s AND day >= %(first)s AND day <= %(last)s ORDER BY start_at LIMIT %(limit)s
        """
    ),
    "alarm_episodes": sql.SQL(
        """
        SELECT day, episode_id, start_at, end_at, source, code, level, records, value_min, value_max, settled_on
        FROM alarm_episodes
        WHERE vehicle_id = %(id)s AND day >= %(first)s AND day <= %(last)s ORDER BY start_at, episode_id
        LIMIT %(limit)s
        """
    ),
}
_GAPS: Final = sql.SQL(
    """
    SELECT previous AS start_at, time AS end_at FROM (
        SELECT time, lag(time) OVER (ORDER BY time) AS previous FROM telemetry
        WHERE vehicle_id = %(id)s AND time >= %(since)s AND time < %(until)s
    ) t WHERE time - previous > make_interval(secs => %(gap_s)s) ORDER BY time LIMIT %(limit)s
    """
)
_SPAN: Final = sql.SQL(
    """
    SELECT min(time) AS first_at, max(time) AS last_at FROM telemetry
    WHERE vehicle_id = %(id)s AND time >= %(since)s AND time < %(until)s
    """
)
# Several rows may tell of one second; of each field the first that has it counts, as everywhere in the statistics.
# Thinned by whole seconds: a row is values of one second, never a mixture.
_POINTS: Final = sql.SQL(
    """
    SELECT time {outer} FROM (
        SELECT *, row_number() OVER (
            PARTITION BY floor(extract(epoch FROM time) / %(step_s)s::integer) ORDER BY time
        ) AS place
        FROM (
            SELECT time {inner} FROM telemetry
            WHERE vehicle_id = %(id)s AND time >= %(since)s AND time <= %(until)s {condition}
            GROUP BY time
        ) merged
    ) numbered WHERE place = 1 ORDER BY time LIMIT %(limit)s
    """
)
_FIRST: Final = sql.SQL("(array_agg({0} ORDER BY kind, part) FILTER (WHERE {0} IS NOT NULL))[1] AS {0}")
_LOCATED: Final = sql.SQL(
    "AND longitude_deg IS NOT NULL AND latitude_deg IS NOT NULL AND location_valid IS DISTINCT FROM 0"
)


class Runs(Protocol):
    """The connections of ``Queries``; ``binary``: how values travel."""

    async def run(
        self, query: sql.SQL | sql.Composed, parameters: Mapping[str, Any], *, binary: bool = False
    ) -> Table: ...

    async def close(self) -> None: ...


class SessionQueries:
    """The part of ``Queries`` that asks for one vehicle's statistics; it has its connections from there."""

    _connections: Runs

    async def vehicle_facts(self, vehicle_id: int) -> Mapping[str, Any] | None:
        table = await self._connections.run(_FACTS, {"id": vehicle_id})
        return table.dicts()[0] if table.rows else None

    async def sessions(
        self,
        table: str,
        vehicle_id: int,
        *,
        since: datetime,
        until: datetime,
        after: tuple[datetime, int] | None,
        limit: int,
    ) -> Table:
        time, number = after or (since, -1)
        given = {"since": since, "until": until, "time": time, "number": number, "limit": limit}
        return await self._sessions(table, vehicle_id, _STARTED, given)

    async def sessions_touching(
        self, table: str, vehicle_id: int, *, since: datetime, until: datetime, limit: int
    ) -> Table:
        return await self._sessions(table, vehicle_id, _TOUCHING, {"since": since, "until": until, "limit": limit})

    async def session(self, table: str, vehicle_id: int, number: int) -> Mapping[str, Any] | None:
        found = await self._sessions(table, vehicle_id, _ONE, {"number": number, "limit": 1})
        return found.dicts()[0] if found.rows else None

    async def _sessions(self, table: str, vehicle_id: int, condition: LiteralString, given: Mapping[str, Any]) -> Table:
        key = sql.Identifier(_ID[table])
        query = _SESSIONS.format(
            columns=_session_columns(table),
            table=sql.Identifier(table),
            key=key,
            condition=sql.SQL(condition).format(key=key),
        )
        return await self._connections.run(query, {"id": vehicle_id, **given})

    async def vehicle_days(
        self, vehicle_id: int, *, first: date, last: date, columns: Sequence[str], limit: int
    ) -> Table:
        unknown = [name for name in columns if name not in MEASURE and name not in DAY_ONLY]
        assert not unknown, f"not columns of vehicle_day: {unknown}"
        given = {"id": vehicle_id, "first": first, "last": last, "limit": limit}
        return await self._connections.run(_DAYS.format(columns=_listed(columns)), given)

    async def vehicle_hours(
        self, vehicle_id: int, *, since: datetime, until: datetime, columns: Sequence[str], limit: int
    ) -> Table:
        unknown = [name for name in columns if name not in MEASURE]
        assert not unknown, f"not columns of vehicle_hour: {unknown}"
        given = {"id": vehicle_id, "since": since, "until": until, "limit": limit}
        return await self._connections.run(_HOURS.format(columns=_listed(columns)), given)

    async def resends(self, vehicle_id: int, *, first: date, last: date) -> Table:
        return await self._connections.run(_RESENDS, {"id": vehicle_id, "first": first, "last": last})

    async def capacities(self, vehicle_id: int, *, limit: int) -> Table:
        return await self._connections.run(_CAPACITIES, {"id": vehicle_id, "limit": limit})

    async def capacity_months(self, vehicle_id: int) -> Table:
        return await self._connections.run(_CAPACITY_MONTHS, {"id": vehicle_id})

    async def throughput(self, vehicle_id: int) -> Mapping[str, Any]:
        return (await self._connections.run(_THROUGHPUT, {"id": vehicle_id})).dicts()[0]

    async def findings_by_day(self, table: str, vehicle_id: int, *, first: date, last: date, limit: int) -> Table:
        given = {"id": vehicle_id, "first": first, "last": last, "limit": limit}
        return await self._connections.run(_BY_DAY[table], given)

    async def data_gaps(self, vehicle_id: int, *, since: datetime, until: datetime, gap_s: float, limit: int) -> Table:
        given = {"id": vehicle_id, "since": since, "until": until, "gap_s": gap_s, "limit": limit}
        return await self._connections.run(_GAPS, given)

    async def data_span(
        self, vehicle_id: int, *, since: datetime, until: datetime
    ) -> tuple[datetime | None, datetime | None]:
        row = (await self._connections.run(_SPAN, {"id": vehicle_id, "since": since, "until": until})).rows[0]
        return row[0], row[1]

    async def points(
        self,
        vehicle_id: int,
        *,
        since: datetime,
        until: datetime,
        columns: Sequence[str],
        step_s: int,
        located: bool,
        limit: int,
    ) -> Table:
        unknown = [name for name in columns if name not in SIGNAL]
        assert not unknown, f"not signals: {unknown}"
        query = _POINTS.format(
            outer=_listed(columns),
            inner=sql.Composed([sql.SQL(", ") + _FIRST.format(sql.Identifier(name)) for name in columns]),
            condition=_LOCATED if located else sql.SQL(""),
        )
        given = {"id": vehicle_id, "since": since, "until": until, "step_s": step_s, "limit": limit}
        return await self._connections.run(query, given)


def _listed(columns: Sequence[str]) -> sql.Composed:
    return sql.Composed([sql.SQL(", ") + sql.Identifier(name) for name in columns])
