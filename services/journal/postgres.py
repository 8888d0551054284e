"""The journal in a PostgreSQL table: one round trip to append, durable when it returns.

It promises what ``schemas.seams`` says of writer and reader.  It must never answer an append that may
not be on disk: ``synchronous_commit`` is set on, whatever the server's default.  The table and the SQL
function that keeps offsets in order are in ``schemas/sql/0003_journal.sql``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

from schemas.seams import StoredRecord
from services import metrics
from services.errors import JournalUnavailable, SettingsError, UsageError

log = logging.getLogger(__name__)
T = TypeVar("T")
Connection = psycopg.AsyncConnection[Any]

# An append waits behind those of other gateways and for the disk; past this it is given up, and tried again.
_STATEMENT_TIMEOUT_S: Final = 10.0
_CONNECT_TIMEOUT_S: Final = 5
# After a failed connection the next attempt waits 0.1 s, doubling up to 2 s; callers meanwhile hear at once
# that the journal is away, and keep their frames.
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 2.0

# Looked at per partition and read: enough of small records to fill a batch, few enough that a reader far
# behind does not walk its whole backlog to take the first eight megabytes of it.
_RECORDS_PER_PARTITION_MAX: Final = 1024

# Lost connections, time-outs, a full disk (OperationalError); a server that has become a standby (InternalError).
_AWAY: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, TimeoutError)

_APPEND: Final = "SELECT journal_append(%b::integer[], %b::bytea[])"

# The oldest of all partitions first, up to the byte budget. The sizes are read off the TOAST pointers: only
# the bodies that are sent are fetched.
_READ: Final = """
    SELECT partition, "offset", body FROM (
        SELECT r.partition, r."offset", r.body,
               sum(octet_length(r.body)) OVER (ORDER BY r."offset") - octet_length(r.body) AS before
        FROM unnest(%b::integer[], %b::bigint[]) AS a (partition, "offset")
        CROSS JOIN LATERAL (
            SELECT j.partition, j."offset", j.body FROM journal j
            WHERE j.partition = a.partition AND j."offset" > a."offset"
            ORDER BY j."offset" LIMIT %b
        ) r
    ) waiting
    WHERE before < %b ORDER BY partition, "offset"
"""
_ENDS: Final = """
    SELECT p, e."offset" FROM generate_series(0, %b - 1) AS p
    CROSS JOIN LATERAL (SELECT "offset" FROM journal WHERE partition = p ORDER BY "offset" DESC LIMIT 1) e
"""


class PostgresJournal:
    """Writer and reader on ``dsn``, a connection for each, opened when first needed and again when lost.

    Several processes may append and read at once.  The calls of one kind queue behind each other.
    """

    def __init__(self, dsn: str, partitions: int) -> None:
        self.partitions = partitions
        self._writer = _Line(dsn, "nevstream journal writer", read_only=False)
        self._reader = _Line(dsn, "nevstream journal reader", read_only=True)

    async def open(self) -> None:
        """Check that the journal has this many partitions, or fix it so when it has none yet.

        Raises ``SettingsError`` when it was set up with another number, ``UsageError`` when the database was
        never migrated, ``JournalUnavailable``.
        """
        try:
            fixed = await self._writer.call(self._fix_partitions)
        except psycopg.errors.UndefinedTable as error:
            raise UsageError("the database has no journal yet: run `nevstream migrate`") from error
        if fixed != self.partitions:
            raise SettingsError(
                f"journal.partitions is {self.partitions}, but this database was set up with {fixed}, and every "
                f"vehicle's frames lie where that number put them: set journal.partitions = {fixed}, "
                "or start with a new database"
            )

    async def append(self, records: Sequence[tuple[int, bytes]]) -> list[int]:
        """Make (partition, record) pairs durable, all or none; returns their offsets."""
        if not records:
            return []
        for partition, _ in records:
            if not 0 <= partition < self.partitions:
                raise ValueError(f"partition {partition} is not one of the journal's {self.partitions}")
        arguments = ([partition for partition, _ in records], [body for _, body in records])

        async def run(connection: Connection) -> int:
            cursor = await connection.execute(_APPEND, arguments, prepare=True, binary=True)
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0])

        begun = time.perf_counter()
        try:
            first = await self._writer.call(run)
        except JournalUnavailable:
            metrics.APPEND_FAILURES.inc()
            raise
        metrics.APPEND_SECONDS.observe(time.perf_counter() - begun)
        metrics.APPENDED_BYTES.inc(sum(len(body) for _, body in records))
        return list(range(first, first + len(records)))

    async def read(self, after: Mapping[int, int], bytes_max: int) -> list[StoredRecord]:
        """Records beyond ``after``, the oldest of all partitions first until ``bytes_max`` is reached."""
        if not after:
            return []
        arguments = (list(after), list(after.values()), _RECORDS_PER_PARTITION_MAX, bytes_max)

        async def run(connection: Connection) -> list[StoredRecord]:
            cursor = await connection.execute(_READ, arguments, prepare=True, binary=True)
            return [StoredRecord(*row) for row in await cursor.fetchall()]

        return await self._reader.call(run)

    async def ends(self) -> dict[int, int]:
        """Newest offset of each partition that has any record."""

        async def run(connection: Connection) -> dict[int, int]:
            cursor = await connection.execute(_ENDS, [self.partitions], prepare=True, binary=True)
            return dict(await cursor.fetchall())

        return await self._reader.call(run)

    async def close(self) -> None:
        await self._writer.close()
        await self._reader.close()

    async def _fix_partitions(self, connection: Connection) -> int:
        await connection.execute(
            "INSERT INTO settings_fixed (name, value) VALUES ('journal.partitions', %s) ON CONFLICT DO NOTHING",
            [str(self.partitions)],
        )
        cursor = await connection.execute("SELECT value FROM settings_fixed WHERE name = 'journal.partitions'")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


class _Line:
    """One connection that is replaced when it is lost; one statement at a time, each its own transaction."""

    def __init__(self, dsn: str, name: str, *, read_only: bool) -> None:
        self._dsn, self._name = dsn, name
        given = conninfo_to_dict(dsn).get("options") or ""
        # Not left to the server's configuration: this is what makes an acknowledgement true.
        durable = "off" if read_only else "on"
        self._options = (
            f"{given} -c statement_timeout={round(_STATEMENT_TIMEOUT_S * 1000)} -c synchronous_commit={durable}"
            # Day partitions are chosen while the plan runs; a plan made for one set of offsets serves all.
            " -c jit=off -c plan_cache_mode=force_generic_plan"
        )
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._failures = 0
        self._not_before = 0.0
        self._why = ""

    async def call(self, run: Callable[[Connection], Awaitable[T]]) -> T:
        """``run`` with the connection.  Raises ``JournalUnavailable``; the connection is then a new one next time."""
        async with self._lock:
            try:
                connection = await self._connected()
                async with asyncio.timeout(_STATEMENT_TIMEOUT_S + 5.0):
                    return await run(connection)
            except _AWAY as error:
                await self._drop()
                why = str(error).strip() or "no answer"
                raise JournalUnavailable(f"the journal is away ({self._name}): {why}") from error
            except BaseException:
                # Cancelled or worse in the middle of a statement: its outcome is unknown, the connection is not reused.
                await self._drop()
                raise

    async def close(self) -> None:
        async with self._lock:
            await self._drop()

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if time.monotonic() < self._not_before:
            raise psycopg.OperationalError(self._why)
        try:
            self._connection = await psycopg.AsyncConnection.connect(
                self._dsn,
                autocommit=True,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name=self._name,
                options=self._options,
            )
        except psycopg.OperationalError as error:
            pause = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2**self._failures)
            self._failures += 1
            self._not_before = time.monotonic() + pause
            self._why = str(error)
            raise
        self._failures = 0
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                await connection.close()
