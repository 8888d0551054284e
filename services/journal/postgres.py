"""The journal in a PostgreSQL table: one round trip to append, durable when it returns.

It promises what ``schemas.seams`` says of writer and reader.  It must never answer an append that may
not be on disk: ``synchronous_commit`` is set on, whatever the server's default.  The table and the SQL
function that keeps offsets in order are in ``schemas/sql/0003_journal.sql``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from schemas.journal.record import check_partitions
from schemas.seams import StoredRecord
from services import metrics
from services.database import Connection, Line
from services.errors import JournalUnavailable
from services.journal.fixed import fix

# An append waits behind those of other gateways and for the disk; past this it is given up, and tried again.
_TIMEOUT_S: Final = 10.0

# Looked at per partition and read: enough of small records to fill a batch, few enough that a reader far
# behind does not walk its whole backlog to take the first eight megabytes of it.
_RECORDS_PER_PARTITION_MAX: Final = 1024

_APPEND: Final = "SELECT journal_append(%b::uuid, %b::bigint, %b::integer[], %b::bytea[])"

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
# The day in the offset chooses the day partitions; within a day the records are small beside their bodies.
_OFFSET_AT: Final = 'SELECT min("offset") FROM journal WHERE "offset" >= %b AND appended_at >= %b'
_SECONDS_PER_DAY: Final = 86_400


class PostgresJournal:
    """Writer and reader on ``dsn``, a connection for each, opened when first needed and again when lost.

    Several processes may append and read at once.  The calls of one kind queue behind each other.
    """

    def __init__(self, dsn: str, partitions: int) -> None:
        self.partitions = partitions
        # Each append has a number of this writer's; one whose answer was lost keeps it for the next try.
        self._name = uuid.uuid4()
        self._number = 0
        self._unanswered: Sequence[tuple[int, bytes]] | None = None
        # synchronous_commit is not left to the server's configuration: it is what makes an acknowledgement true.
        self._writer = Line(dsn, "nevstream journal writer", JournalUnavailable, _TIMEOUT_S, synchronous_commit="on")
        # Day partitions are chosen while the plan runs, so one plan serves all offsets. enable_seqscan: a plan
        # made while a day is empty must not read the whole of it later.
        self._reader = Line(
            dsn, "nevstream journal reader", JournalUnavailable, _TIMEOUT_S,
            plan_cache_mode="force_generic_plan", enable_seqscan="off", jit="off",
        )  # fmt: skip

    async def open(self) -> None:
        """Check that the journal has this many partitions, or fix it so when it has none yet.

        Raises ``SettingsError`` when it was set up with another number, ``UsageError`` when the database was
        never migrated, ``JournalUnavailable``.
        """
        await fix(self._writer, {"journal.kind": "postgres", "journal.partitions": str(self.partitions)})

    async def append(self, records: Sequence[tuple[int, bytes]]) -> list[int]:
        """Make (partition, record) pairs durable, all or none; returns their offsets.

        The same records given again after ``JournalUnavailable`` are there once, whatever the first try did.
        """
        if not records:
            return []
        check_partitions(records, self.partitions)

        async def run(connection: Connection) -> int:
            # Numbered in here, where one append runs at a time.
            if self._unanswered != records:
                self._number += 1
            self._unanswered = records
            arguments = (self._name, self._number, [p for p, _ in records], [body for _, body in records])
            cursor = await connection.execute(_APPEND, arguments, prepare=True, binary=True)
            row = await cursor.fetchone()
            assert row is not None
            self._unanswered = None
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

    async def offsets_at(self, time: datetime) -> dict[int, int]:
        """Offset of the first record appended at ``time`` or later, in any partition: it bounds them all."""
        first = int(time.timestamp() // _SECONDS_PER_DAY) << 32

        async def run(connection: Connection) -> dict[int, int]:
            cursor = await connection.execute(_OFFSET_AT, [first, time], prepare=False, binary=True)
            row = await cursor.fetchone()
            assert row is not None
            return {} if row[0] is None else dict.fromkeys(range(self.partitions), int(row[0]))

        return await self._reader.call(run)

    async def close(self) -> None:
        await self._writer.close()
        await self._reader.close()
