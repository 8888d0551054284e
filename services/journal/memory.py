"""The journal in memory: the twin of the PostgreSQL one, for tests and for trying things out.

It keeps the contract of ``schemas.seams`` but for the one thing it cannot: nothing survives the
process.  It must never be chosen silently (``journal.kind = "memory"`` says so in the settings).
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from datetime import datetime

from schemas.journal.record import check_partitions
from schemas.seams import StoredRecord
from services.errors import JournalUnavailable


class MemoryJournal:
    """Writer and reader at once.  Offsets rise, with gaps: one counter serves all partitions.

    Tests steer it: ``away = True`` makes every call raise ``JournalUnavailable``; clearing ``gate``
    holds appends back (not yet durable) until it is set again.
    """

    def __init__(self, partitions: int) -> None:
        if partitions < 1:
            raise ValueError(f"a journal has at least one partition, not {partitions}")
        self.partitions = partitions
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self._records: list[list[StoredRecord]] = [[] for _ in range(partitions)]
        self._appended_s: list[list[float]] = [[] for _ in range(partitions)]
        self._next = 0

    async def open(self) -> None:
        self._check()

    async def append(self, records: Sequence[tuple[int, bytes]]) -> list[int]:
        """Keep (partition, record) pairs, all or none; returns their offsets."""
        await self.gate.wait()
        self._check()
        check_partitions(records, self.partitions)
        offsets = []
        for partition, body in records:
            self._records[partition].append(StoredRecord(partition, self._next, bytes(body)))
            self._appended_s[partition].append(time.time())
            offsets.append(self._next)
            self._next += 1
        return offsets

    async def read(self, after: Mapping[int, int], bytes_max: int) -> list[StoredRecord]:
        """Records beyond ``after``, the oldest of all partitions first until ``bytes_max`` is reached."""
        self._check()
        waiting: list[StoredRecord] = []
        for partition, offset in after.items():
            kept = self._records[partition]
            waiting += kept[bisect_right(kept, offset, key=lambda record: record.offset) :]
        waiting.sort(key=lambda record: record.offset)
        found: list[StoredRecord] = []
        size = 0
        for record in waiting:
            if found and size + len(record.body) > bytes_max:
                break
            found.append(record)
            size += len(record.body)
        return sorted(found, key=lambda record: (record.partition, record.offset))

    async def ends(self) -> dict[int, int]:
        """Newest offset of each partition that has any record."""
        self._check()
        return {partition: kept[-1].offset for partition, kept in enumerate(self._records) if kept}

    async def offsets_at(self, time: datetime) -> dict[int, int]:
        """Offset of the first record appended at ``time`` or later, of each partition that has one."""
        self._check()
        found = {}
        for partition, appended in enumerate(self._appended_s):
            at = bisect_left(appended, time.timestamp())
            if at < len(appended):
                found[partition] = self._records[partition][at].offset
        return found

    async def close(self) -> None:
        """Nothing to release; the records stay, so that a test can read after a gateway has closed."""

    def _check(self) -> None:
        if self.away:
            raise JournalUnavailable("the journal in memory was told to be away")
