"""The registry in PostgreSQL: sheets merged in one transaction, single changes, lists.

A sheet is copied into a temporary table and merged by one statement, so that 100,000 lines take seconds; one
vehicle is a sheet of one line.  What changes facts that statistics are grouped by tells the statistics so in the
same transaction.  It must never touch a vehicle that the sheet does not name, but to retire it when asked.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg import sql

from schemas.registry.columns import MODELS, VEHICLES, Column, Sheet
from schemas.registry.desk import Imported, Retired, VehicleFilter
from schemas.registry.sheet import Parsed
from schemas.seams import Table
from services.database import Connection, Line
from services.errors import SchemaMissing, StoreUnavailable, UsageError
from services.store.directory import CAN_TOUCH, TOUCH

T = TypeVar("T")
log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 10.0
_BULK_TIMEOUT_S: Final = 600.0
_LOCK: Final = (7236328, 17)  # one change of the registry at a time: two sheets must not meet half way
_UNKNOWN_MODELS_MAX: Final = 50
# Retiring what a sheet does not name comes after the merge, so it may still meet the pipeline; nothing was written
# then, and the same again does the same.
_DEADLOCKS_MAX: Final = 3
_RETIRE_SHARE_MAX: Final = 0.5

_OWN: Final = tuple(column.name for column in VEHICLES.columns if column.name in {c.name for c in MODELS.columns})
_VEHICLE: Final = f"""
    SELECT v.vehicle_id, v.vin, v.registered, v.retired_at, v.first_seen_at, {", ".join(f"v.{c.name}" for c in VEHICLES.columns)},
           m.model IS NOT NULL AS model_known, {", ".join(f"coalesce(v.{name}, m.{name}) AS eff_{name}" for name in _OWN)}
    FROM vehicles v LEFT JOIN models m USING (model)
"""  # noqa: S608, E501 - names of ours
_STATES: Final = {
    "registered": "v.registered",
    "retired": "v.retired_at IS NOT NULL",
    "seen": "NOT v.registered AND v.retired_at IS NULL",
}
_MODEL_COLUMNS: Final = ", ".join(f"m.{column.name}" for column in MODELS.all)
_MODELS: Final = f"""
    SELECT {_MODEL_COLUMNS}, m.updated_at,
           (SELECT count(*) FROM vehicles v WHERE v.model = m.model AND v.registered
            AND (%s::text[] IS NULL OR v.fleet = ANY (%s))) AS vehicles
    FROM models m
    WHERE (%s::text[] IS NULL
           OR EXISTS (SELECT FROM vehicles o WHERE o.model = m.model AND o.registered AND o.fleet = ANY (%s)))
"""  # noqa: S608 - names of ours
_RETIRE: Final = """
    WITH gone AS (
        UPDATE vehicles SET registered = false, retired_at = now()
        WHERE vin = ANY (%s) AND retired_at IS NULL RETURNING vin, vehicle_id
    ) SELECT vin, vehicle_id FROM gone
"""
_REGISTRATIONS: Final = f"""
    SELECT v.model AS named, v.vehicles, {_MODEL_COLUMNS}
    FROM (SELECT model, count(*) AS vehicles FROM vehicles
          WHERE coalesce(registered_at, CASE WHEN registered THEN first_seen_at END) >= %s
            AND coalesce(registered_at, CASE WHEN registered THEN first_seen_at END) < %s
            AND (%s::text[] IS NULL OR fleet = ANY (%s))
          GROUP BY model) v
    LEFT JOIN models m USING (model) ORDER BY v.model NULLS LAST
"""  # noqa: S608 - names of ours


class PostgresRegistry:
    """``RegistryDesk`` of ``schemas.registry.desk``; a connection for sheets and one for the rest."""

    def __init__(self, dsn: str) -> None:
        self._line = Line(dsn, "nevstream registry", StoreUnavailable, _TIMEOUT_S)
        self._bulk = Line(dsn, "nevstream registry import", StoreUnavailable, _BULK_TIMEOUT_S)

    # -- changes -----------------------------------------------------------------------------------
    async def load(
        self, parsed: Parsed, *, dry_run: bool = False, retire_missing: bool = False, retire_most: bool = False
    ) -> Imported:
        if retire_missing and parsed.sheet is not VEHICLES:
            raise UsageError("only vehicles are retired")
        if retire_missing and not parsed.rows:
            raise UsageError("the file names no vehicle: retiring all that are not in it would retire every one")
        return await self._called(
            self._bulk, lambda connection: _load(connection, parsed, dry_run, retire_missing, retire_most)
        )

    async def change(
        self, sheet: Sheet, key: str, values: Mapping[str, Any], *, whole: bool, create: bool
    ) -> Imported | None:
        given, row = 0, []
        for n, column in enumerate(sheet.columns):
            if column.name in values or (whole and column.clears):
                given |= 1 << n
            row.append(values.get(column.name, column.cleared))
        parsed = Parsed(sheet, rows=[(1, given, key, *row)], lines=2)

        async def run(connection: Connection) -> Imported | None:
            if not create and not await _there(connection, sheet, key):
                return None
            return await _load(connection, parsed, False, False, False, register=create)

        return await self._called(self._line, run)

    async def retire(self, vins: Sequence[str]) -> Retired:
        async def run(connection: Connection) -> Retired:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", _LOCK)
                rows = await (await connection.execute(_RETIRE, [list(vins)])).fetchall()
                await _touch(connection, [number for _, number in rows])
                known = await connection.execute("SELECT vin FROM vehicles WHERE vin = ANY (%s)", [list(vins)])
                there = {vin for (vin,) in await known.fetchall()}
            gone = {vin for vin, _ in rows}
            return Retired(
                tuple(vin for vin in vins if vin in gone),
                tuple(vin for vin in vins if vin in there - gone),
                tuple(vin for vin in vins if vin not in there),
            )

        return await self._called(self._line, run)

    async def drop_model(self, name: str) -> bool:
        async def run(connection: Connection) -> bool:
            async with connection.transaction():
                gone = await connection.execute("DELETE FROM models WHERE model = %s", [name])
                if gone.rowcount:
                    await _touch_models(connection, [name])
                return gone.rowcount > 0

        return await self._called(self._line, run)

    # -- questions ---------------------------------------------------------------------------------
    async def vehicles(self, wanted: VehicleFilter, *, after: str, limit: int) -> Table:
        conditions, given = ["v.vin > %s"], [cast("Any", after)]
        if wanted.prefix:
            conditions.append("v.vin >= %s AND v.vin < %s")
            given += [wanted.prefix, wanted.prefix + "\x7f"]
        for name in ("model", "fleet", "region", "usage"):
            if (value := getattr(wanted, name)) is not None:
                conditions.append(f"v.{name} = %s")
                given.append(value)
        if wanted.fleets is not None:
            conditions.append("v.fleet = ANY (%s)")
            given.append(list(wanted.fleets))
        if wanted.state is not None:
            conditions.append(_STATES[wanted.state])
        query = f"{_VEHICLE} WHERE {' AND '.join(conditions)} ORDER BY v.vin LIMIT %s"
        return await self._table(query, [*given, limit])

    async def vehicle(self, vin: str) -> Mapping[str, Any] | None:
        rows = (await self._table(f"{_VEHICLE} WHERE v.vin = %s", [vin])).dicts()
        return rows[0] if rows else None

    async def models(self, *, prefix: str, after: str, limit: int, fleets: Sequence[str] | None = None) -> Table:
        query = f"{_MODELS} AND m.model > %s AND starts_with(m.model, %s) ORDER BY m.model LIMIT %s"
        return await self._table(query, [*_listed(fleets, 4), after, prefix, limit])

    async def model(self, name: str, *, fleets: Sequence[str] | None = None) -> Mapping[str, Any] | None:
        rows = (await self._table(f"{_MODELS} AND m.model = %s", [*_listed(fleets, 4), name])).dicts()
        return rows[0] if rows else None

    async def registrations(self, since: datetime, until: datetime, *, fleets: Sequence[str] | None = None) -> Table:
        return await self._table(_REGISTRATIONS, [since, until, *_listed(fleets, 2)])

    async def close(self) -> None:
        await self._line.close()
        await self._bulk.close()

    async def _table(self, query: str, given: Sequence[Any]) -> Table:
        async def run(connection: Connection) -> Table:
            cursor = await connection.execute(query.encode(), given)
            return Table(tuple(column.name for column in cursor.description or ()), await cursor.fetchall())

        return await self._called(self._line, run)

    async def _called(self, line: Line, run: Callable[[Connection], Awaitable[T]]) -> T:
        async def tried(connection: Connection) -> T:
            for _ in range(_DEADLOCKS_MAX):
                try:
                    return await run(connection)
                except psycopg.errors.DeadlockDetected:
                    log.info("the registry and another writer waited for each other: once more")
            return await run(connection)

        try:
            return await line.call(tried)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            raise SchemaMissing("the database has not the schema of this version: run `nevstream migrate`") from error


def _listed(fleets: Sequence[str] | None, times: int) -> list[list[str] | None]:
    return [None if fleets is None else list(fleets)] * times


# -- merging a sheet ------------------------------------------------------------------------------------------
def _merge(sheet: Sheet, register: bool) -> tuple[sql.Composed, sql.Composed, sql.Composed]:
    """Statements: the temporary table, what a merge would do, the merge.

    The merge goes through the keys in order, new ones and known ones in one pass, as the pipeline does when it
    registers vehicles: two passes would wait for it in a circle.
    """
    vehicles = sheet is VEHICLES
    identify, key = sql.Identifier, sql.Identifier(sheet.key.name)

    def after(n: int, column: Column) -> sql.Composed:
        return sql.SQL("CASE WHEN g.given & {bit} <> 0 THEN g.{name} ELSE t.{name} END").format(
            bit=sql.Literal(1 << n), name=identify(column.name)
        )

    def merged(n: int, column: Column) -> sql.Composable:
        if column.name == "registered_at" and register:
            # registered before there was a date: since it was first seen
            return sql.SQL(
                "coalesce(g.registered_at, t.registered_at, CASE WHEN t.registered THEN t.first_seen_at END, now())"
            )
        if column.cleared is None:
            return after(n, column)
        return sql.SQL("coalesce({}, {})").format(after(n, column), sql.Literal(column.cleared))

    columns = [identify(column.name) for column in sheet.columns]
    differs = sql.SQL("({}) IS DISTINCT FROM ({})").format(
        sql.SQL(", ").join(sql.SQL("t.{}").format(column) for column in columns),
        sql.SQL(", ").join(after(n, column) for n, column in enumerate(sheet.columns)),
    )
    values: list[sql.Composable] = [merged(n, column) for n, column in enumerate(sheet.columns)]
    extra = sql.SQL(", updated_at = now()")
    if vehicles:
        columns.append(identify("registered"))
        values.append(sql.SQL("true" if register else "coalesce(t.registered, false)"))
        extra = sql.SQL(", retired_at = NULL" if register else "")
        if register:
            differs = sql.SQL("(NOT t.registered OR t.retired_at IS NOT NULL OR {})").format(differs)
    parts = {
        "table": identify(sheet.name), "key": key, "differs": differs, "extra": extra,
        "identity": sql.SQL("i.{}").format(identify("vehicle_id") if vehicles else key),
        "names": sql.SQL(", ").join(columns),
        "values": sql.SQL(", ").join(values),
        "assigned": sql.SQL(", ").join(sql.SQL("{} = excluded.{}").format(column, column) for column in columns),
        "typed": sql.SQL(", ").join(
            sql.SQL("{} " + column.sql).format(identify(column.name)) for column in sheet.columns
        ),
        "counted": sql.SQL(", ").join(
            sql.SQL("count(*) FILTER (WHERE t.{key} IS NOT NULL AND t.{name} IS DISTINCT FROM {after})").format(
                key=key, name=identify(column.name), after=after(n, column)
            )
            for n, column in enumerate(sheet.columns)
        ),
        "reinstated": sql.SQL("count(t.retired_at)") if vehicles and register else sql.SQL("0"),
    }  # fmt: skip
    return (
        sql.SQL(
            "CREATE TEMP TABLE registry_given"
            ' (line integer, given integer, {key} text COLLATE "C" PRIMARY KEY, {typed}) ON COMMIT DROP'
        ).format(**parts),
        sql.SQL(
            "SELECT count(*) FILTER (WHERE t.{key} IS NULL), count(*) FILTER (WHERE t.{key} IS NOT NULL AND {differs}),"
            " {reinstated}, {counted} FROM registry_given g LEFT JOIN {table} t USING ({key})"
        ).format(**parts),
        sql.SQL(
            "INSERT INTO {table} AS i ({key}, {names}) SELECT g.{key}, {values}"
            " FROM registry_given g LEFT JOIN {table} t USING ({key}) WHERE t.{key} IS NULL OR {differs}"
            " ORDER BY g.{key} ON CONFLICT ({key}) DO UPDATE SET {assigned}{extra}"
            " RETURNING {identity}, i.xmax = 0"  # a row that was there has the lock of this statement on it
        ).format(**parts),
    )


async def _load(
    connection: Connection, parsed: Parsed, dry_run: bool, retire_missing: bool, retire_most: bool,
    register: bool = True,
) -> Imported:  # fmt: skip
    sheet = parsed.sheet
    made, looked, merge = _merge(sheet, register)
    retired: list[int] = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", _LOCK)
        await connection.execute(made)
        names = sql.SQL(", ").join(map(sql.Identifier, ("line", "given", *(column.name for column in sheet.all))))
        async with connection.cursor().copy(sql.SQL("COPY registry_given ({}) FROM STDIN").format(names)) as copy:
            for row in parsed.rows:
                await copy.write_row(row)
        await connection.execute("ANALYZE registry_given")
        counts = await (await connection.execute(looked)).fetchone()
        assert counts is not None
        inserted, changed, reinstated, *by_column = counts
        unknown = await _unknown_models(connection) if sheet is VEHICLES else {}
        if retire_missing:
            retired = await _missing(connection, retire_most)
        if not dry_run:
            rows = await (await connection.execute(merge)).fetchall()
            added = [one for one, new in rows if new]
            other = [one for one, new in rows if not new]
            inserted, changed = len(added), len(other)
            if retired:
                await connection.execute(
                    "UPDATE vehicles SET registered = false, retired_at = now() WHERE vehicle_id = ANY (%s)", [retired]
                )
            if sheet is VEHICLES:
                await _touch(connection, [*other, *retired])  # a new one has no days yet
            else:
                await _touch_models(connection, [*added, *other])
    return Imported(
        lines=len(parsed.rows),
        inserted=inserted,
        changed=changed,
        unchanged=len(parsed.rows) - inserted - changed,
        reinstated=reinstated,
        retired=len(retired),
        columns={column.name: n for column, n in zip(sheet.columns, by_column, strict=True) if n},
        unknown_models=unknown,
        dry_run=dry_run,
    )


async def _there(connection: Connection, sheet: Sheet, key: str) -> bool:
    query = sql.SQL("SELECT 1 FROM {} WHERE {} = %s").format(sql.Identifier(sheet.name), sql.Identifier(sheet.key.name))
    return await (await connection.execute(query, [key])).fetchone() is not None


async def _unknown_models(connection: Connection) -> dict[str, int]:
    rows = await connection.execute(
        "SELECT model, count(*) FROM registry_given g WHERE model IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM models m WHERE m.model = g.model)"
        " GROUP BY model ORDER BY count(*) DESC, model LIMIT %s",
        [_UNKNOWN_MODELS_MAX],
    )
    return dict(await rows.fetchall())


async def _missing(connection: Connection, retire_most: bool) -> list[int]:
    """Registered vehicles that the sheet does not name."""
    rows = await connection.execute(
        "SELECT vehicle_id, EXISTS (SELECT FROM registry_given g WHERE g.vin = v.vin) FROM vehicles v WHERE registered"
    )
    registered = await rows.fetchall()
    missing = [number for number, there in registered if not there]
    if not retire_most and len(missing) > _RETIRE_SHARE_MAX * len(registered):
        raise UsageError(
            f"{len(missing):,} of {len(registered):,} registered vehicles are not in the file and would be retired: "
            "say --retire-most when the file really is the whole registry"
        )
    return missing


async def _touch(connection: Connection, vehicles: Sequence[int]) -> None:
    """Tell the statistics that what groups these vehicles has changed."""
    if not vehicles:
        return
    row = await (await connection.execute(CAN_TOUCH)).fetchone()
    if row and row[0]:
        await connection.execute(TOUCH, [list(vehicles)])


async def _touch_models(connection: Connection, models: Sequence[str]) -> None:
    if models:
        rows = await connection.execute("SELECT vehicle_id FROM vehicles WHERE model = ANY (%s)", [list(models)])
        await _touch(connection, [number for (number,) in await rows.fetchall()])
