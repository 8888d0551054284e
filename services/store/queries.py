"""Every question the API asks of the database, by name, in plain SQL with parameters.

Reads only: the sessions are read-only, and have a statement time-out.  Column names come from the
signal catalogue, never from a request; values travel as parameters.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final, LiteralString
from zoneinfo import ZoneInfo

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from schemas.map_view import MapFilter, MapView
from schemas.seams import FlawFilter, LetterFilter, StoreHealth, Table
from schemas.signals import INDEX, SIGNALS, aggregates
from schemas.state_filter import StateFilter
from services.database import era, met_dead
from services.errors import QueryTooSlow, SchemaMissing, StoreUnavailable
from services.store import diagnosis
from services.store.fleet import UNIONS_MAX, UNIONS_SETTINGS, UNIONS_TIMEOUT_S, FleetQueries
from services.store.migrations import newest_migration
from services.store.sessions_queries import SessionQueries
from services.store.state_filters import conditions
from services.store.vehicle_map import VehicleMap

# What a telemetry row has besides its signals; both lists together are all that may be asked for.
ROW_COLUMNS: Final = (
    "received_at", "edition", "door", "notes", "flaws", "cells", "temps", "motors", "faults", "rest", "extra",
)  # fmt: skip
KEY: Final = ("time", "kind", "part")
_COLUMNS: Final = frozenset(ROW_COLUMNS) | frozenset(INDEX)
_EXTRA: Final = re.compile(r"extra\.[a-z][a-z0-9_]*", re.ASCII)  # a signal of a signals file
_EXTRA_AGGREGATES: Final = ("avg", "min", "max", "count")

COUNT_MAX: Final = 10_000  # logins and dead letters of one vehicle are counted up to here

_STATE: Final = (
    "time", "kind", "part", "received_at", "edition", "door", "speed_kmh", "odometer_km", "soc_pct",
    "total_voltage_v", "total_current_a", "vehicle_state", "charge_state", "alarm_level", "alarm_flags",
    "longitude_deg", "latitude_deg", "location_valid", "reports",
)  # fmt: skip

_VEHICLE_COLUMNS: Final = sql.SQL(
    "v.vehicle_id, v.vin, v.registered, v.first_seen_at, v.model, v.fleet, v.region, {}"
).format(sql.SQL(", ").join(sql.SQL("s.{0}").format(sql.Identifier(name)) for name in _STATE))

_VEHICLES: Final = sql.SQL(
    """
    SELECT {} FROM vehicles v LEFT JOIN vehicle_state s USING (vehicle_id)
    WHERE v.vin > %(after)s AND starts_with(v.vin, %(prefix)s) {} {}
    ORDER BY v.vin LIMIT %(limit)s
    """
)
_OF_FLEETS: Final = sql.SQL("AND v.fleet = ANY (%(fleets)s)")

_VEHICLE: Final = sql.SQL(
    """
    SELECT {}, v.password_hash IS NOT NULL AS has_password
    FROM vehicles v LEFT JOIN vehicle_state s USING (vehicle_id)
    WHERE v.vin = %(vin)s
    """
).format(_VEHICLE_COLUMNS)

_VEHICLE_COUNTS: Final = sql.SQL(
    """
    SELECT (SELECT count(*) FROM (SELECT FROM logins WHERE vehicle_id = %(id)s LIMIT %(most)s) l) AS logins,
           (SELECT count(*) FROM (SELECT FROM dead_letters WHERE vin = %(vin)s LIMIT %(most)s) d) AS dead_letters
    """
)

# A VIN is ASCII, so all that begin so lie between the prefix and the prefix with the last ASCII character: an index
# in the order of bytes (COLLATE "C") has them side by side, which it cannot know of starts_with.
_PREFIX_COUNTS: Final = sql.SQL(
    """
    SELECT count(*) AS vehicles, count(s.time) AS ever_reported, coalesce(sum(s.reports), 0)::bigint AS reports,
           max(s.time) AS newest_data_time
    FROM vehicles v LEFT JOIN vehicle_state s USING (vehicle_id)
    WHERE v.vin >= %(prefix)s AND v.vin < %(prefix)s || chr(127)
      AND (%(fleets)s::text[] IS NULL OR v.fleet = ANY (%(fleets)s))
    """
)
_PREFIX_LETTERS: Final = sql.SQL(
    """
    SELECT reason, count(*) AS letters FROM dead_letters
    WHERE vin >= %(prefix)s AND vin < %(prefix)s || chr(127)
      AND (%(fleets)s::text[] IS NULL OR vin IN (SELECT w.vin FROM vehicles w WHERE w.fleet = ANY (%(fleets)s)))
    GROUP BY reason ORDER BY reason
    """
)

_REPORT: Final = sql.SQL(
    """
    SELECT {columns} FROM telemetry
    WHERE vehicle_id = %(id)s AND time = %(time)s
    ORDER BY kind, part LIMIT 512
    """
).format(columns=sql.SQL(", ").join(map(sql.Identifier, (*KEY, *ROW_COLUMNS, *INDEX))))

_TELEMETRY: Final = sql.SQL(
    """
    SELECT {columns} FROM telemetry
    WHERE vehicle_id = %(id)s AND time >= %(since)s AND time < %(until)s
      AND (time, kind, part) > (%(time)s, %(kind)s, %(part)s)
    ORDER BY time, kind, part LIMIT %(limit)s
    """
)

_BUCKETS: Final = sql.SQL(
    """
    SELECT {start} AS time, count(*) AS count {aggregates}
    FROM telemetry
    WHERE vehicle_id = %(id)s AND time >= %(since)s AND time < %(until)s
    GROUP BY 1 ORDER BY 1 LIMIT %(limit)s
    """
)
# Whole days follow the clock on the wall; shorter buckets are of equal length whatever the clock does.
_START_DAYS: Final = sql.SQL(
    "date_bin(%(bucket)s, time AT TIME ZONE %(zone)s, timestamp '2000-01-01') AT TIME ZONE %(zone)s"
)
_START: Final = sql.SQL("date_bin(%(bucket)s, time, timestamp '2000-01-01' AT TIME ZONE %(zone)s)")
_AGGREGATES: Final[Mapping[str, LiteralString]] = {
    "avg": "avg({column}::double precision)",  # the mean of reals as PostgreSQL has it is a double anyway
    "min": "min({column})",
    "max": "max({column})",
    "count": "count({column})",
    "any": "bit_or({column})",
}

_LOGINS: Final = sql.SQL(
    """
    SELECT partition, "offset", position, received_at, time, command, edition, door, vin, serial, iccid, pack_codes,
           username
    FROM logins
    WHERE vehicle_id = %(id)s {beyond}
    ORDER BY received_at DESC, partition DESC, "offset" DESC, position DESC LIMIT %(limit)s
    """
)

_LETTER_COLUMNS: Final = sql.SQL(
    'partition, "offset", position, received_at, reason, detail, door, codec, vin, peer, client, '
    "error, length(frame) AS frame_bytes, requeued_at, requeued_by, requeued_as, replayed_at"
)
_DEAD_LETTERS: Final = sql.SQL(
    """
    SELECT {columns} FROM dead_letters WHERE true {filters} {beyond}
    ORDER BY received_at DESC, partition DESC, "offset" DESC, position DESC LIMIT %(limit)s
    """
)
_DEAD_LETTER: Final = sql.SQL(
    """
    SELECT l.*, CASE
        WHEN l.requeued_as IS NULL THEN NULL
        WHEN EXISTS (SELECT FROM dead_letters d
                     WHERE d.partition = split_part(l.requeued_as, '-', 1)::integer
                       AND d."offset" = split_part(l.requeued_as, '-', 2)::bigint
                       AND d.position = split_part(l.requeued_as, '-', 3)::integer) THEN 'refused'
        WHEN EXISTS (SELECT FROM journal_positions p
                     WHERE p.partition = split_part(l.requeued_as, '-', 1)::integer
                       AND p."offset" >= split_part(l.requeued_as, '-', 2)::bigint) THEN 'accepted'
        ELSE 'waiting' END AS outcome,
        (SELECT e.peer FROM link_events e
         WHERE e.vin = l.vin AND e.event = 'connected' AND e.door = l.door AND e.occurred_at <= l.received_at
         ORDER BY e.occurred_at DESC LIMIT 1) AS connected_from
    FROM (SELECT {columns}, frame, requeued_frame FROM dead_letters
          WHERE partition = %(partition)s AND "offset" = %(offset)s AND position = %(position)s) l
    """
).format(columns=_LETTER_COLUMNS)
_LETTER_FRAMES: Final = sql.SQL(
    """
    SELECT {columns}, frame FROM dead_letters WHERE true {filters} {beyond}
    ORDER BY received_at, partition, "offset", position LIMIT %(limit)s
    """
)
_AFTER: Final = sql.SQL(
    'AND (received_at, partition, "offset", position) > (%(time)s, %(partition)s, %(offset)s, %(position)s)'
)
# By what dead letters are counted: keys, what they are joined with. A terminal's firmware has no field of its own
# in the standard; what is the same for all terminals of a build is taken for it: the edition of the last login, who
# issued the SIM (first seven digits of the ICCID) and maker, product and type of its packs (first seven characters
# of the coding of GB/T 34014).
_LAST_LOGIN: Final[LiteralString] = """
    LEFT JOIN LATERAL (
        SELECT s.edition, left(s.iccid, 7) AS iccid, left(s.pack_codes[1], 7) AS packs FROM logins s
        WHERE s.vehicle_id = v.vehicle_id AND s.command = 1 ORDER BY s.received_at DESC LIMIT 1
    ) login ON true
"""
_COUNTED: Final[Mapping[str, tuple[LiteralString, LiteralString]]] = {
    "reason": ("reason", ""),
    "vin": ("vin", ""),
    "model": ("v.model", "LEFT JOIN vehicles v USING (vin)"),
    "firmware": (
        "login.edition, login.iccid, login.packs",
        "LEFT JOIN vehicles v USING (vin) " + _LAST_LOGIN,
    ),
}
# Counted by vehicle first, so that a vehicle's login is looked up once and not once a letter.
_LETTER_COUNTS: Final = sql.SQL(
    """
    SELECT {keys}, sum(n)::bigint AS letters, count(DISTINCT vin) AS vehicles, min(first) AS first, max(last) AS last
    FROM (SELECT reason, vin, count(*) AS n, min(received_at) AS first, max(received_at) AS last
          FROM dead_letters WHERE true {filters} GROUP BY reason, vin) l {joined}
    GROUP BY {keys} ORDER BY letters DESC, {keys} LIMIT %(limit)s
    """
)
_LETTER_FILTERS: Final[Mapping[str, LiteralString]] = {
    "reason": "AND reason = %(reason)s",
    "vin": "AND vin = %(vin)s",
    "since": "AND received_at >= %(since)s",
    "until": "AND received_at < %(until)s",
    "open": "AND (requeued_at IS NULL AND replayed_at IS NULL) = %(open)s",
    "fleets": "AND vin IN (SELECT w.vin FROM vehicles w WHERE w.fleet = ANY (%(fleets)s))",
}
# The keys of flawed signals: as of dead letters, but that a count is of a vehicle that is known.
_FLAWS_BY: Final[Mapping[str, tuple[LiteralString, LiteralString]]] = {
    "signal": ("", ""),
    "model": ("v.model,", ""),
    "firmware": ("login.edition, login.iccid, login.packs,", _LAST_LOGIN),
    "vin": ("v.vin,", ""),
}
_FLAW_COUNTS: Final = sql.SQL(
    """
    SELECT {keys} signal, state, sum(n)::bigint AS flaws, count(*) AS vehicles
    FROM (SELECT vehicle_id, signal, state, sum(count) AS n FROM signal_flaws
          WHERE day >= %(since)s AND day <= %(until)s {filters} GROUP BY 1, 2, 3) f
    JOIN vehicles v USING (vehicle_id) {joined}
    GROUP BY {keys} signal, state ORDER BY flaws DESC, {keys} signal, state LIMIT %(limit)s
    """
)
_FLAW_FILTERS: Final[Mapping[str, LiteralString]] = {
    "signal": "AND signal = %(signal)s",
    "state": "AND state = %(state)s",
    "vin": "AND vehicle_id = (SELECT w.vehicle_id FROM vehicles w WHERE w.vin = %(vin)s)",
    "fleets": "AND vehicle_id IN (SELECT w.vehicle_id FROM vehicles w WHERE w.fleet = ANY (%(fleets)s))",
}
FLAW_COUNTS: Final = tuple(_FLAWS_BY)
_FLAW_DAYS: Final = sql.SQL(
    """
    SELECT day, c.reports, c.counted_at, c.changes IS DISTINCT FROM d.changes AS changed_since
    FROM (SELECT day, sum(changes) AS changes FROM telemetry_days
          WHERE day >= %(since)s AND day <= %(until)s GROUP BY day) d
    LEFT JOIN signal_flaw_days c USING (day)
    WHERE c.reports IS DISTINCT FROM 0 OR c.changes IS DISTINCT FROM d.changes ORDER BY day
    """
)
_RATE_FLAWS: Final = sql.SQL(
    """
    SELECT time, kind, part, signal, previous_time, previous_value, value
    FROM rate_flaws(%(id)s, %(since)s, %(until)s) ORDER BY time, kind, part, signal LIMIT %(limit)s
    """
)
LETTER_COUNTS: Final = tuple(_COUNTED)
_BEYOND: Final = sql.SQL(
    'AND (received_at, partition, "offset", position) < (%(time)s, %(partition)s, %(offset)s, %(position)s)'
)

# Charging is charging while parked: a hybrid's engine or a brake that feeds the pack is driving.
_FLEET: Final = sql.SQL(
    """
    SELECT (SELECT count(*) FROM vehicles v WHERE true {of_fleets}) AS vehicles,
           count(*) AS ever_reported,
           count(*) FILTER (WHERE now_on) AS reporting,
           count(*) FILTER (WHERE now_on AND charge_state = 1) AS charging,
           count(*) FILTER (WHERE now_on AND charge_state IS DISTINCT FROM 1 AND vehicle_state = 1) AS driving,
           count(*) FILTER (WHERE now_on AND charge_state IS DISTINCT FROM 1 AND vehicle_state IN (2, 3)) AS parked,
           max(time) AS newest_data_time,
           max(received_at) AS newest_received_at
    FROM (SELECT s.*, s.received_at >= %(reporting_since)s AS now_on FROM vehicle_state s {joined}) state
    """
)
_JOINED_FLEETS: Final = sql.SQL("JOIN vehicles v USING (vehicle_id) WHERE true {}")
_LEDGER: Final = sql.SQL(
    """
    SELECT coalesce(sum(frames), 0)::bigint AS frames, coalesce(sum(rows), 0)::bigint AS rows,
           coalesce(sum(duplicates), 0)::bigint AS duplicates, coalesce(sum(conflicts), 0)::bigint AS conflicts,
           coalesce(sum(rejected), 0)::bigint AS rejected, coalesce(sum(sessions), 0)::bigint AS sessions,
           coalesce(sum(other), 0)::bigint AS other
    FROM ledger
    """
)


_SCHEMA: Final = sql.SQL("SELECT max(name) FROM schema_migrations")


class Connections:
    """A few read-only connections, opened when needed, the last used first."""

    def __init__(
        self, dsn: str, most: int, connect_timeout_s: float, statement_timeout_s: float, settings: str = ""
    ) -> None:
        self._dsn = dsn
        self._era = era(dsn)  # of all that lie idle
        given = conninfo_to_dict(dsn)
        timeout = f"{settings} -c statement_timeout={round(statement_timeout_s * 1000)}"
        session = f"{timeout} -c default_transaction_read_only=on -c TimeZone=UTC"
        given["options"] = f"{given.get('options') or ''} {session}".strip()
        given.setdefault("application_name", "nevstream web")
        self._given: dict[str, Any] = given
        self._idle: list[psycopg.AsyncConnection[tuple[Any, ...]]] = []
        self._free = asyncio.Semaphore(most)
        self._most = most
        self._wait_s = connect_timeout_s
        self._closed = False

    async def run(self, query: sql.SQL | sql.Composed, parameters: Mapping[str, Any], *, binary: bool = False) -> Table:
        """``binary``: how values travel; for bytes it halves what has to be sent."""
        if self._closed:
            raise StoreUnavailable("the queries are closed: this process is stopping")
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise StoreUnavailable(
                f"all {self._most} database connections of the API were busy for {self._wait_s:g} s: "
                "ask less at once, or start another API process"
            ) from error
        try:
            return await self._run(query, parameters, binary)
        finally:
            self._free.release()

    async def _run(self, query: sql.SQL | sql.Composed, parameters: Mapping[str, Any], binary: bool) -> Table:
        while True:
            if self._era != era(self._dsn):
                await self._renew()
            opened_in, kept = self._era, bool(self._idle)
            connection = self._idle.pop() if kept else await self._connect()
            try:
                cursor = await connection.execute(query, parameters, binary=binary)
                rows = await cursor.fetchall()
                answer = Table(tuple(column.name for column in cursor.description or ()), rows)
            except psycopg.errors.QueryCanceled as error:
                await connection.close()
                raise QueryTooSlow("the database ended the query after its time-out") from error
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
                await connection.close()
                raise SchemaMissing(
                    "the database has not the schema of this version: run `nevstream migrate`"
                ) from error
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                met_dead(self._dsn, opened_in, connection, error)
                await connection.close()
                if kept:
                    continue  # the server was restarted while the connection lay idle; reads may be asked again
                raise StoreUnavailable(f"the database went away: {_first_line(error)}") from error
            except BaseException:
                await connection.close()  # cancelled or wrong: the connection's state is not known
                raise
            if self._closed or opened_in != self._era:  # meanwhile: nobody comes for it any more
                await connection.close()
            else:
                self._idle.append(connection)
            return answer

    async def _renew(self) -> None:
        """One has proved dead, here or elsewhere in this process: none that lies idle is tried."""
        idle, self._idle, self._era = self._idle, [], era(self._dsn)
        for connection in idle:
            await connection.close()

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        try:
            # not wait_for: in Python 3.11 it may lose the connection of a caller who is cancelled in that instant
            async with asyncio.timeout(self._wait_s):
                return await psycopg.AsyncConnection.connect(**self._given, autocommit=True, prepare_threshold=None)
        except TimeoutError as error:
            raise StoreUnavailable(f"no connection to the database within {self._wait_s:g} s") from error
        except psycopg.OperationalError as error:
            raise StoreUnavailable(f"no connection to the database: {_first_line(error)}") from error

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            await self._idle.pop().close()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class Queries(SessionQueries, FleetQueries):
    """The ``Queries`` of ``schemas.seams`` on PostgreSQL.

    At most ``connections_max`` queries run at once; the others wait ``connect_timeout_s`` and are then
    refused with ``StoreUnavailable``.  A query that runs ``statement_timeout_s`` ends as ``QueryTooSlow``.
    Connections are opened when first needed, so that the API starts while the database is away.
    ``backlog`` tells what waits of a vehicle, where the journal is not a table of this database.
    """

    def __init__(
        self,
        dsn: str,
        *,
        backlog: Callable[[str], Awaitable[Mapping[str, Any]]] | None = None,
        connections_max: int = 8,
        connect_timeout_s: float = 5.0,
        statement_timeout_s: float = 15.0,
    ) -> None:
        self._connections = Connections(dsn, connections_max, connect_timeout_s, statement_timeout_s)
        self._unions = Connections(dsn, UNIONS_MAX, UNIONS_TIMEOUT_S, UNIONS_TIMEOUT_S, UNIONS_SETTINGS)
        self._map = VehicleMap(self._connections.run)
        self._backlog = backlog

    async def vehicles(
        self,
        *,
        prefix: str,
        after: str,
        limit: int,
        fleets: Sequence[str] | None = None,
        wanted: StateFilter | None = None,
    ) -> Table:
        where, values = conditions(wanted or StateFilter())
        query = _VEHICLES.format(_VEHICLE_COLUMNS, sql.SQL("") if fleets is None else _OF_FLEETS, where)
        given = {"prefix": prefix, "after": after, "limit": limit, "fleets": _listed(fleets)}
        return await self._connections.run(query, given | values)

    async def vehicle(self, vin: str) -> Mapping[str, Any] | None:
        return _one(await self._connections.run(_VEHICLE, {"vin": vin}))

    async def vehicle_counts(self, vehicle_id: int, vin: str) -> Mapping[str, Any]:
        given = {"id": vehicle_id, "vin": vin, "most": COUNT_MAX}
        return _one(await self._connections.run(_VEHICLE_COUNTS, given)) or {}

    async def prefix_counts(self, prefix: str, *, fleets: Sequence[str] | None = None) -> Mapping[str, Any]:
        given = {"prefix": prefix, "fleets": _listed(fleets)}
        found = _one(await self._connections.run(_PREFIX_COUNTS, given)) or {}
        letters = await self._connections.run(_PREFIX_LETTERS, given)
        return {**found, "refused": dict(letters.rows)}

    async def report(self, vehicle_id: int, time: datetime) -> Table:
        return await self._connections.run(_REPORT, {"id": vehicle_id, "time": time})

    async def telemetry(
        self,
        vehicle_id: int,
        *,
        since: datetime,
        until: datetime,
        columns: Sequence[str],
        after: tuple[datetime, int, int] | None,
        limit: int,
    ) -> Table:
        time, kind, part = after or (since, -1, -1)
        since = max(since, time)  # what lies before is not looked into: whole partitions of it
        query = _TELEMETRY.format(columns=sql.SQL(", ").join(map(_selected, (*KEY, *_known(columns)))))
        given = {
            "id": vehicle_id,
            "since": since,
            "until": until,
            "time": time,
            "kind": kind,
            "part": part,
            "limit": limit,
        }
        return await self._connections.run(query, given)

    async def buckets(
        self,
        vehicle_id: int,
        *,
        since: datetime,
        until: datetime,
        bucket: timedelta,
        time_zone: str,
        columns: Sequence[str],
        limit: int,
    ) -> Table:
        ZoneInfo(time_zone)  # a wrong one stops here rather than in SQL
        wanted = [
            sql.SQL(", {} AS {}").format(
                sql.SQL(_AGGREGATES[kind]).format(column=_column(name)), sql.Identifier(f"{name}_{kind}")
            )
            for name in _known(columns)
            for kind in (_EXTRA_AGGREGATES if _EXTRA.fullmatch(name) else aggregates(SIGNALS[INDEX[name]]))
        ]
        start = _START if bucket % timedelta(days=1) else _START_DAYS
        query = _BUCKETS.format(start=start, aggregates=sql.Composed(wanted))
        given = {"id": vehicle_id, "since": since, "until": until, "bucket": bucket, "zone": time_zone, "limit": limit}
        return await self._connections.run(query, given)

    async def logins(self, vehicle_id: int, *, after: tuple[datetime, int, int, int] | None, limit: int) -> Table:
        query = _LOGINS.format(beyond=_BEYOND if after else sql.SQL(""))
        return await self._connections.run(query, {"id": vehicle_id, "limit": limit, **_record_key(after)})

    async def dead_letters(
        self,
        *,
        reason: int | None,
        vin: str | None,
        since: datetime | None,
        until: datetime | None,
        after: tuple[datetime, int, int, int] | None,
        limit: int,
    ) -> Table:
        return await self.dead_letter_page(LetterFilter(reason, vin, since, until), after=after, limit=limit)

    async def dead_letter_page(
        self, wanted: LetterFilter, *, after: tuple[datetime, int, int, int] | None, limit: int
    ) -> Table:
        """As :meth:`dead_letters`, by a filter."""
        given, filters = letter_filter(wanted)
        query = _DEAD_LETTERS.format(columns=_LETTER_COLUMNS, filters=filters, beyond=_BEYOND if after else sql.SQL(""))
        return await self._connections.run(query, {**given, "limit": limit, **_record_key(after)})

    async def dead_letter(self, partition: int, offset: int, position: int) -> Mapping[str, Any] | None:
        key = {"partition": partition, "offset": offset, "position": position}
        return _one(await self._connections.run(_DEAD_LETTER, key))

    async def dead_letter_frames(
        self, wanted: LetterFilter, *, after: tuple[datetime, int, int, int] | None, limit: int
    ) -> Table:
        given, filters = letter_filter(wanted)
        query = _LETTER_FRAMES.format(columns=_LETTER_COLUMNS, filters=filters, beyond=_AFTER if after else sql.SQL(""))
        return await self._connections.run(query, {**given, "limit": limit, **_record_key(after)})

    async def dead_letter_counts(self, wanted: LetterFilter, *, by: str, limit: int) -> Table:
        keys, joined = _COUNTED[by]
        given, filters = letter_filter(wanted)
        query = _LETTER_COUNTS.format(keys=sql.SQL(keys), joined=sql.SQL(joined), filters=filters)
        return await self._connections.run(query, {**given, "limit": limit})

    async def flaw_counts(self, wanted: FlawFilter, *, by: str, limit: int) -> Table:
        keys, joined = _FLAWS_BY[by]
        given = {name: getattr(wanted, name) for name in ("since", "until", *_FLAW_FILTERS)}
        given["fleets"] = _listed(wanted.fleets)
        filters = sql.SQL(" ").join(sql.SQL(text) for name, text in _FLAW_FILTERS.items() if given[name] is not None)
        query = _FLAW_COUNTS.format(keys=sql.SQL(keys), joined=sql.SQL(joined), filters=filters)
        return await self._connections.run(query, {**given, "limit": limit})

    async def flaw_days(self, since: date, until: date) -> Table:
        return await self._connections.run(_FLAW_DAYS, {"since": since, "until": until})

    async def rate_flaws(self, vehicle_id: int, *, since: datetime, until: datetime, limit: int) -> Table:
        return await self._connections.run(
            _RATE_FLAWS, {"id": vehicle_id, "since": since, "until": until, "limit": limit}
        )

    async def overview(self, *, reporting_since: datetime, fleets: Sequence[str] | None = None) -> Mapping[str, Any]:
        nothing = sql.SQL("")
        query = _FLEET.format(
            of_fleets=nothing if fleets is None else _OF_FLEETS,
            joined=nothing if fleets is None else _JOINED_FLEETS.format(_OF_FLEETS),
        )
        given = {"reporting_since": reporting_since, "fleets": _listed(fleets)}
        fleet = _one(await self._connections.run(query, given))
        # frames are counted by partition and not by vehicle
        ledger = _one(await self._connections.run(_LEDGER, {})) if fleets is None else None
        return {**(fleet or {}), "ledger": ledger}

    async def diagnosis(self, vin: str, *, now: datetime) -> Mapping[str, Any]:
        found = await diagnosis.facts(self._connections.run, vin, now)
        return found if self._backlog is None else {**found, "backlog": await self._backlog(vin)}

    async def map_view(
        self,
        filters: Mapping[str, Sequence[str]],
        *,
        wanted: MapFilter,
        zoom: int,
        vehicles_max: int,
        reporting_since: datetime,
    ) -> MapView:
        return await self._map.view(
            filters, wanted=wanted, zoom=zoom, vehicles_max=vehicles_max, reporting_since=reporting_since
        )

    async def health(self) -> StoreHealth:
        try:
            table = await self._connections.run(_SCHEMA, {})
        except SchemaMissing:
            return StoreHealth(None, newest_migration())
        return StoreHealth(table.rows[0][0], newest_migration())

    async def close(self) -> None:
        await self._map.close()
        await self._connections.close()
        await self._unions.close()


def letter_filter(wanted: LetterFilter) -> tuple[dict[str, Any], sql.Composed]:
    """Parameters of ``wanted``, and its conditions: a piece of SQL that goes after ``WHERE true``."""
    given = {name: getattr(wanted, name) for name in _LETTER_FILTERS} | {"fleets": _listed(wanted.fleets)}
    return given, sql.SQL(" ").join(sql.SQL(text) for name, text in _LETTER_FILTERS.items() if given[name] is not None)


def _known(columns: Sequence[str]) -> Sequence[str]:
    unknown = [name for name in columns if name not in _COLUMNS and not _EXTRA.fullmatch(name)]
    assert not unknown, f"not telemetry columns: {unknown}"  # the API checks; a request never gets here
    return columns


def _column(name: str) -> sql.Identifier | sql.Composed:
    """A column; or ``extra.<name>``, a number in the column ``extra``, NULL when it is none."""
    if not _EXTRA.fullmatch(name):
        return sql.Identifier(name)
    key = sql.Literal(name.removeprefix("extra."))
    return sql.SQL("CASE WHEN jsonb_typeof(extra -> {0}) = 'number' THEN (extra ->> {0})::double precision END").format(
        key
    )


def _selected(name: str) -> sql.Composed:
    return sql.SQL("{} AS {}").format(_column(name), sql.Identifier(name))


def _record_key(after: tuple[datetime, int, int, int] | None) -> dict[str, Any]:
    return dict(zip(("time", "partition", "offset", "position"), after, strict=True)) if after else {}


def _listed(fleets: Sequence[str] | None) -> list[str] | None:
    return None if fleets is None else list(fleets)  # psycopg sends a list as an array, a tuple as a record


def _one(table: Table) -> Mapping[str, Any] | None:
    return table.dicts()[0] if table.rows else None
