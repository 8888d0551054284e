"""What is asked of the fleet: sums and distributions of cohorts, grouped and filtered, and the lists of vehicles.

Reads ``cohort_*``, ``vehicle_brief``, sessions and states; never telemetry. A kept period costs as many rows as there
are cohorts. Names of columns come from ``schemas.statistics.cohorts``, never from a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final, LiteralString

from psycopg import sql

from schemas.seams import Table
from schemas.statistics import cohorts
from schemas.statistics.cohorts import DAY, DIMENSIONS, SCALAR, SPREAD, STATES
from schemas.statistics.sketch import counted
from schemas.statistics.windows import Block, start_of
from services.store.sessions_queries import Runs

EDITION: Final[LiteralString] = "(ARRAY['unknown', '2016', '2025', 'none'])[(p.cohort_id & 3) + 1]"
_JOIN: Final = sql.SQL("JOIN cohort_facts f ON f.facts_id = p.cohort_id >> 2")
_BLOCKS: Final = sql.SQL('(p.span, p.start) IN (SELECT * FROM unnest(%(spans)s::"char"[], %(starts)s::date[]))')
_FILTERS: Final = {
    name: sql.SQL("AND {} = ANY(%(" + name + ")s)").format(
        sql.SQL(EDITION) if name == "edition" else sql.Identifier("f", name)
    )
    for name in DIMENSIONS
}


PAIRED: Final = 2  # dimensions that distributions of weeks, months and years are joined by beforehand; days by one
SEPARATOR: Final = sql.SQL("chr(31)")
START: Final = "start"  # as a key besides the dimensions: figures period by period


def _key(name: str) -> sql.Composable:
    if name == START:
        return sql.SQL("p.start")
    return sql.SQL(EDITION) if name == "edition" else sql.Identifier("f", name)


def _keys(by: Sequence[str]) -> sql.Composed:
    assert set(by) <= {START, *DIMENSIONS}, by
    return sql.Composed([sql.SQL("{} AS {}, ").format(_key(name), sql.Identifier(name)) for name in by])


def _group(by: Sequence[str], more: LiteralString = "") -> sql.Composable:
    parts = [*map(_key, by), *([sql.SQL(more)] if more else [])]
    return sql.SQL("GROUP BY ") + sql.SQL(", ").join(parts) if parts else sql.SQL("")


def _where(filters: Mapping[str, Sequence[str]]) -> sql.Composed:
    return sql.SQL(" ").join(_FILTERS[name] for name in filters)


_SUMS: Final = sql.SQL(
    "SELECT {keys} {sums} max(p.newest_at) AS newest_at FROM cohort_period p {join} WHERE {blocks} {where} {group}"
)
_SPREADS: Final = sql.SQL(
    """
    SELECT {keys} p.spread, string_agg(p.counts, ''::bytea) AS counts
    FROM cohort_spread p {join} WHERE {blocks} AND p.spread = ANY(%(spreads)s) {where} {group}
    """
)
_JOINED_SPREADS: Final = sql.SQL(
    """
    SELECT {keys} p.spread, string_agg(p.counts, ''::bytea) AS counts FROM group_spread p
    WHERE {blocks} AND p.spread = ANY(%(spreads)s) AND p.dimension = %(dimension)s {where} {group}
    """
)
_ACCESS: Final = sql.SQL(
    """
    SELECT {keys} coalesce(sum(p.joined - p.retired) FILTER (WHERE {until}), 0)::bigint AS accessed,
           (coalesce(sum(p.joined) FILTER (WHERE {until}), 0)
            - coalesce(sum(p.joined) FILTER (WHERE {before}), 0))::bigint AS joined,
           (coalesce(sum(p.retired) FILTER (WHERE {until}), 0)
            - coalesce(sum(p.retired) FILTER (WHERE {before}), 0))::bigint AS retired
    FROM cohort_access p {join}
    WHERE (p.span = 'Y' OR p.span = 'M' AND p.start >= least(%(until_year)s, %(before_year)s)
           OR p.span = 'D' AND (p.start BETWEEN %(until_month)s AND %(until)s
                                OR p.start BETWEEN %(before_month)s AND %(before)s)) {where} {group}
    """
)
_PREFIX: Final[LiteralString] = (
    "p.span = 'Y' AND p.start < %({0}_year)s OR p.span = 'M' AND p.start >= %({0}_year)s AND p.start < %({0}_month)s "
    "OR p.span = 'D' AND p.start >= %({0}_month)s AND p.start <= %({0})s"
)
_STATES: Final = sql.SQL(
    """
    SELECT {keys} {sums} p.day FROM cohort_state p {join}
    WHERE p.day BETWEEN (SELECT max(start) FROM cohort_counted WHERE span = 'S' AND start <= %(first)s) AND %(last)s
    {where} {group}
    """
)
_JOINING: Final = sql.SQL(
    """
    SELECT {keys} sum(p.joined)::bigint AS joined, sum(p.retired)::bigint AS retired FROM cohort_access p {join}
    WHERE p.span = 'D' AND p.start BETWEEN %(first)s AND %(last)s {where} {group}
    """
)
# A union over a million vehicles holds them all at once: in 4 MB of memory it would go by the disk, and take 15 s and
# more. Few at a time, in a line of their own, so that they do not keep the other questions waiting.
UNIONS_MAX: Final = 2
UNIONS_TIMEOUT_S: Final = 60.0
UNIONS_SETTINGS: Final = "-c work_mem=256MB -c jit=off"
# Of windows that are no kept period: each vehicle once, in the cohort of its last day.
_VEHICLES: Final = sql.SQL(
    """
    SELECT vehicle_id, (max((start - date '1970-01-01')::bigint << 32 | cohort_id) & 4294967295)::integer AS cohort_id,
           bit_or(flags) AS flags, sum(charges) AS charges, sum(distance_km) AS distance_km, sum(cycles) AS cycles
    FROM vehicle_brief p WHERE {blocks} GROUP BY vehicle_id
    """
).format(blocks=_BLOCKS)
_DISTINCT: Final = sql.SQL("SELECT {keys} {counts} FROM ({vehicles}) p {join} WHERE true {where} {group}")
_VEHICLE_BINS: Final = sql.SQL(
    """
    SELECT {keys} sketch_bin({value}) AS bin, count(*) AS count FROM ({vehicles}) p {join}
    WHERE {value} IS NOT NULL {where} {group}
    """
)
VEHICLE_VALUES: Final[Mapping[str, LiteralString]] = {
    "vehicle_km": "p.distance_km", "vehicle_charges": "p.charges::double precision", "vehicle_cycles": "p.cycles",
}  # fmt: skip
_COMPUTED: Final = sql.SQL(
    """
    SELECT min(p.computed_at) AS computed_at, max(p.newest_at) AS newest_at, count(*) AS blocks,
           (SELECT count(*) FROM statistics_days d LEFT JOIN cohort_counted c ON c.span = 'D' AND c.start = d.day
            WHERE d.day BETWEEN %(first)s AND %(last)s AND c.changes IS DISTINCT FROM d.changes) AS days_changed
    FROM cohort_counted p WHERE {blocks}
    """
).format(blocks=_BLOCKS)
_GROUPS: Final = sql.SQL("SELECT DISTINCT {keys} 1 AS one FROM cohort_facts f WHERE true {where}")

# -- lists ---------------------------------------------------------------------------------------------
_VEHICLE_FACTS: Final[LiteralString] = """
    f.vin, f.model, f.fleet, f.region, f.usage, f.battery_supplier, f.chemistry
"""
_LIST_FILTERS: Final = {
    name: (
        sql.SQL("AND (ARRAY['unknown', '2016', '2025', 'none'])[g.edition + 1] = ANY(%(edition)s)")
        if name == "edition"
        else sql.SQL("AND {} = ANY({})").format(sql.Identifier("f", name), sql.Placeholder(name))
    )
    for name in DIMENSIONS
}
# By VIN, so that pages have neither holes nor doubles while vehicles come and go.
_OFFLINE: Final = sql.SQL(
    """
    SELECT {facts}, s.time AS newest_data_time, s.received_at AS last_received_at, f.registered_at, f.first_seen_at
    FROM vehicle_facts f LEFT JOIN vehicle_state s USING (vehicle_id) LEFT JOIN vehicle_groups g USING (vehicle_id)
    WHERE f.vin > %(after)s AND (f.retired_at IS NULL OR f.retired_at > %(now)s)
      AND coalesce(s.time, f.registered_at, f.first_seen_at, '-infinity') < %(before)s {where}
    ORDER BY f.vin LIMIT %(limit)s
    """
)
_FREQUENT: Final = sql.SQL(
    """
    SELECT {facts}, e.episodes, e.level_3, e.first_at, e.last_at, e.alarms
    FROM (
        SELECT vehicle_id, sum(n)::bigint AS episodes, sum(level_3)::bigint AS level_3, min(first_at) AS first_at,
               max(last_at) AS last_at, jsonb_agg(jsonb_build_array(source, code, n) ORDER BY n DESC, source, code)
                   AS alarms
        FROM (SELECT vehicle_id, source, code, count(*) AS n, count(*) FILTER (WHERE level >= 3) AS level_3,
                     min(start_at) AS first_at, max(start_at) AS last_at
              FROM alarm_episodes
              WHERE day BETWEEN %(first)s AND %(last)s AND level >= %(level)s AND source IN (1, 2)
                AND NOT (source = 2 AND code = 20)
              GROUP BY vehicle_id, source, code) c
        GROUP BY vehicle_id HAVING sum(n) >= %(least)s
    ) e JOIN vehicle_facts f USING (vehicle_id) LEFT JOIN vehicle_groups g USING (vehicle_id)
    WHERE f.vin > %(after)s {where} ORDER BY f.vin LIMIT %(limit)s
    """
)
# A cell of the grid by its number, so that pages go by it; parked = off, or standing and not charging. Cells with
# too few vehicles of any kind go first, so that only the others' vehicles are looked up.
_CLUSTERS: Final = sql.SQL(
    """
    WITH parked AS MATERIALIZED (
        SELECT vehicle_id, floor(latitude_deg / %(size)s)::integer AS "row",
               floor(longitude_deg / %(size)s)::integer AS "column"
        FROM vehicle_state
        WHERE latitude_deg IS NOT NULL AND longitude_deg IS NOT NULL AND location_valid IS DISTINCT FROM 0
          AND time >= %(since)s AND coalesce(speed_kmh, 0) = 0 AND charge_state IS DISTINCT FROM 1
          AND (vehicle_state IS DISTINCT FROM 1 OR time < %(still)s)
    ), crowded AS MATERIALIZED (
        SELECT "row", "column" FROM parked WHERE ("row", "column") > (%(row)s, %(column)s)
        GROUP BY 1, 2 HAVING count(*) >= %(least)s
    )
    SELECT p."row", p."column", count(*) AS vehicles, avg(s.latitude_deg) AS latitude_deg,
           avg(s.longitude_deg) AS longitude_deg, count(*) FILTER (WHERE s.alarm_level > 0) AS with_alarm,
           min(s.time) AS oldest_data_time, max(s.time) AS newest_data_time,
           (array_agg(f.vin ORDER BY f.vin))[:%(vins)s] AS vins
    FROM crowded c JOIN parked p USING ("row", "column") JOIN vehicle_state s USING (vehicle_id)
    JOIN vehicle_facts f USING (vehicle_id) LEFT JOIN vehicle_groups g USING (vehicle_id)
    WHERE (f.retired_at IS NULL OR f.retired_at > %(now)s) {where}
    GROUP BY 1, 2 HAVING count(*) >= %(least)s ORDER BY 1, 2 LIMIT %(limit)s
    """
)
_OUTLIERS: Final = sql.SQL(
    """
    SELECT {facts}, c.cell, c.days, c.first_day, c.last_day, c.deviation_mv
    FROM (SELECT vehicle_id, cell, count(*) AS days, min(day) AS first_day, max(day) AS last_day,
                 percentile_disc(0.5) WITHIN GROUP (ORDER BY deviation_mv) AS deviation_mv
          FROM cell_outliers
          WHERE day BETWEEN %(first)s AND %(last)s AND greatest(z_rows, robust_rows) >= 0.5 * usable_rows
            AND usable_rows > 0 AND abs(deviation_mv) >= 10
          GROUP BY vehicle_id, cell HAVING count(*) >= %(least)s) c
    JOIN vehicle_facts f USING (vehicle_id) LEFT JOIN vehicle_groups g USING (vehicle_id)
    WHERE (f.vin, c.cell) > (%(after)s, %(cell)s) {where} ORDER BY f.vin, c.cell LIMIT %(limit)s
    """
)
_FAILING: Final = sql.SQL(
    """
    SELECT {facts}, f.cells, f.probes, c.failed, c.totals, c.failures, c.cells_seen, c.probes_seen,
           (SELECT count(*) FROM vehicle_checks w
            WHERE w.vehicle_id = c.vehicle_id AND w.week IN (%(week)s::date - 7, %(week)s::date - 14)) + 1 AS in_a_row
    FROM vehicle_checks c JOIN vehicle_facts f USING (vehicle_id) LEFT JOIN vehicle_groups g USING (vehicle_id)
    WHERE c.week = %(week)s AND f.vin > %(after)s {where} ORDER BY f.vin LIMIT %(limit)s
    """
)


class FleetQueries:
    """The part of ``Queries`` that asks for the fleet's statistics; it has its connections from there."""

    _connections: Runs
    _unions: Runs  # for windows that are no kept period

    async def fleet_sums(
        self, blocks: Sequence[Block], names: Sequence[str], *, by: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> Table:
        sums = [
            sql.SQL("coalesce(sum(p.{0}), 0)::{1} AS {0}, ").format(sql.Identifier(name), sql.SQL(SCALAR[name].sql))
            for name in names
        ]  # fmt: skip
        query = _SUMS.format(
            keys=_keys(by), sums=sql.Composed(sums), join=_JOIN, blocks=_BLOCKS, where=_where(filters),
            group=_group(by),
        )  # fmt: skip
        return await self._connections.run(query, {**_given(blocks), **filters}, binary=True)

    async def fleet_spreads(
        self, blocks: Sequence[Block], names: Sequence[str], *, by: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> Table:
        given = {**_given(blocks), "spreads": [SPREAD[name].id for name in names], **filters}
        of = [name for name in DIMENSIONS if name in by or name in filters]
        if len(of) <= (1 if any(span == DAY for span, _ in blocks) else PAIRED):  # joined already
            return await self._joined_spreads(given, of, by, filters)
        query = _SPREADS.format(
            keys=_keys(by), join=_JOIN, blocks=_BLOCKS, where=_where(filters), group=_group(by, "p.spread")
        )
        return await self._connections.run(query, given, binary=True)

    async def _joined_spreads(
        self, given: Mapping[str, Any], of: Sequence[str], by: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> Table:
        values = {
            name: sql.SQL("split_part(p.value, {}, {})").format(SEPARATOR, sql.Literal(n))
            for n, name in enumerate(of, 1)
        }
        columns = [sql.SQL("p.start") if name == START else values[name] for name in by]
        names = zip(columns, by, strict=True)
        query = _JOINED_SPREADS.format(
            keys=sql.Composed([sql.SQL("{} AS {}, ").format(column, sql.Identifier(name)) for column, name in names]),
            blocks=_BLOCKS,
            where=sql.Composed(
                [sql.SQL("AND {} = ANY({}) ").format(values[name], sql.Placeholder(name)) for name in filters]
            ),
            group=sql.SQL("GROUP BY ") + sql.SQL(", ").join([*columns, sql.SQL("p.spread")]),
        )
        return await self._connections.run(query, {**given, "dimension": ",".join(of)}, binary=True)

    async def fleet_access(
        self, first: date, last: date, *, by: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> Table:
        before = date.fromordinal(first.toordinal() - 1)
        given: dict[str, Any] = {}
        for name, day in (("until", last), ("before", before)):
            given |= {name: day, f"{name}_month": start_of("M", day), f"{name}_year": start_of("Y", day)}
        query = _ACCESS.format(
            keys=_keys(by), join=_JOIN, where=_where(filters), group=_group(by),
            until=sql.SQL(_PREFIX.format("until")), before=sql.SQL(_PREFIX.format("before")),
        )  # fmt: skip
        return await self._connections.run(query, {**given, **filters}, binary=True)

    async def fleet_joining(
        self, first: date, last: date, *, by: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> Table:
        query = _JOINING.format(keys=_keys(by), join=_JOIN, where=_where(filters), group=_group(by))
        return await self._connections.run(query, {"first": first, "last": last, **filters}, binary=True)

    async def fleet_states(
        self, first: date, last: date, *, by: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> Table:
        sums = [sql.SQL("coalesce(sum(p.{0}), 0)::bigint AS {0}, ").format(sql.Identifier(name)) for name in STATES]
        query = _STATES.format(
            keys=_keys(by), sums=sql.Composed(sums), join=_JOIN, where=_where(filters), group=_group(by, "p.day")
        )
        return await self._connections.run(query, {"first": first, "last": last, **filters}, binary=True)

    async def fleet_vehicles(
        self, blocks: Sequence[Block], *, by: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> Table:
        counts = sql.SQL(", ").join(
            sql.SQL("count(*) FILTER (WHERE p.flags & {} <> 0) AS {}").format(sql.Literal(flags), sql.Identifier(name))
            for name, flags in cohorts.FLAGS_OF.items()
        )
        query = _DISTINCT.format(
            keys=_keys(by), counts=counts, vehicles=_VEHICLES, join=_JOIN, where=_where(filters), group=_group(by)
        )
        return await self._unions.run(query, {**_given(blocks), **filters}, binary=True)

    async def fleet_vehicle_spread(
        self, blocks: Sequence[Block], name: str, *, by: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> Table:
        query = _VEHICLE_BINS.format(
            keys=_keys(by), value=sql.SQL(VEHICLE_VALUES[name]), vehicles=_VEHICLES, join=_JOIN, where=_where(filters),
            group=_group(by, "bin"),
        )  # fmt: skip
        found = await self._unions.run(query, {**_given(blocks), **filters}, binary=True)
        bins: dict[tuple[Any, ...], dict[int, int]] = {}
        for *key, position, count in found.rows:
            bins.setdefault(tuple(key), {})[position] = count
        rows = [(*key, SPREAD[name].id, counted(each)) for key, each in bins.items()]
        return Table((*by, "spread", "counts"), rows)

    async def fleet_computed(self, blocks: Sequence[Block], first: date, last: date) -> Mapping[str, Any]:
        found = await self._connections.run(_COMPUTED, {**_given(blocks), "first": first, "last": last})
        return found.dicts()[0]

    async def fleet_groups(self, by: Sequence[str], filters: Mapping[str, Sequence[str]]) -> Table:
        """Known values of dimensions other than the edition."""
        names = [name for name in by if name != "edition"]
        kept = {name: values for name, values in filters.items() if name != "edition"}
        return await self._connections.run(_GROUPS.format(keys=_keys(names), where=_where(kept)), kept)

    async def offline_vehicles(
        self, *, before: datetime, now: datetime, filters: Mapping[str, Sequence[str]], after: str, limit: int
    ) -> Table:
        given = {"before": before, "now": now, "after": after, "limit": limit, **filters}
        return await self._connections.run(_listed(_OFFLINE, filters), given)

    async def frequent_alarms(
        self,
        *,
        first: date,
        last: date,
        least: int,
        level: int,
        filters: Mapping[str, Sequence[str]],
        after: str,
        limit: int,
    ) -> Table:
        given = {
            "first": first, "last": last, "least": least, "level": level, "after": after, "limit": limit, **filters,
        }  # fmt: skip
        return await self._connections.run(_listed(_FREQUENT, filters), given)

    async def clusters(
        self,
        *,
        size_deg: float,
        least: int,
        since: datetime,
        still: datetime,
        now: datetime,
        filters: Mapping[str, Sequence[str]],
        after: tuple[int, int],
        vins: int,
        limit: int,
    ) -> Table:
        given = {
            "size": size_deg, "least": least, "since": since, "still": still, "now": now, "row": after[0],
            "column": after[1], "vins": vins, "limit": limit, **filters,
        }  # fmt: skip
        return await self._connections.run(_listed(_CLUSTERS, filters), given)

    async def outlier_cells(
        self,
        *,
        first: date,
        last: date,
        least_days: int,
        filters: Mapping[str, Sequence[str]],
        after: tuple[str, int],
        limit: int,
    ) -> Table:
        given = {
            "first": first, "last": last, "least": least_days, "after": after[0], "cell": after[1], "limit": limit,
            **filters,
        }  # fmt: skip
        return await self._connections.run(_listed(_OUTLIERS, filters), given)

    async def failing_vehicles(
        self, week: date, *, filters: Mapping[str, Sequence[str]], after: str, limit: int
    ) -> Table:
        given = {"week": week, "after": after, "limit": limit, **filters}
        return await self._connections.run(_listed(_FAILING, filters), given)


def _given(blocks: Sequence[Block]) -> dict[str, Any]:
    return {"spans": [span for span, _ in blocks], "starts": [start for _, start in blocks]}


def _listed(query: sql.SQL, filters: Mapping[str, Sequence[str]]) -> sql.Composed:
    where = sql.SQL(" ").join(_LIST_FILTERS[name] for name in filters)
    return query.format(facts=sql.SQL(_VEHICLE_FACTS), where=where)
