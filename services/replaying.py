"""Journal → decoder → comparison → store, once over a stretch of time: what ``nevstream replay`` runs.

Joins the stages as ``topology`` does for the running system; the work is in ``pipeline/replay.py`` and
``store/replay.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from schemas.gbt32960.check import Secrets
from schemas.keys import partition_of_vin
from schemas.seams import StoredRecord
from services.journal.choice import journal_of
from services.pipeline.replay import Redecoder, records_between
from services.settings import Settings, SignaturePolicy
from services.store import keys
from services.store.replay import DayApplied, Diff, ReplayStore

log = logging.getLogger(__name__)

# Frames are appended after they arrived: at once, unless the journal was away. The clocks of a gateway and of the
# database may differ; and a gateway holds frames back while the journal is away, as long as its memory lasts.
_CLOCKS_APART: Final = timedelta(hours=1)
_HELD_BACK: Final = timedelta(days=1)


@dataclass(slots=True)
class Replayed:
    """What a replay read, found and did."""

    since: datetime
    until: datetime
    vin: str | None
    frames: int = 0
    refused: int = 0
    unreadable: int = 0
    damaged: int = 0
    diff: Diff | None = None
    applied: list[DayApplied] = field(default_factory=list)


async def replay(
    settings: Settings,
    dsn: str,
    since: datetime,
    until: datetime,
    *,
    vin: str | None = None,
    apply: bool = False,
    delete: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Replayed:
    """Decode what arrived in [since, until) again and compare it with what is stored; ``apply`` rewrites it.

    ``delete``: rows that moved or no longer decode are removed, too.  ``progress`` hears what is being done and
    how much of it, 0 to 1.  Frames that the pipeline has not stored yet are left to it.  Raises ``UsageError``,
    ``StoreUnavailable``, ``JournalUnavailable``.
    """
    tell = progress or (lambda what, share: None)
    journal = journal_of(settings, dsn, "replay")
    store = ReplayStore(dsn, settings)
    result = Replayed(since, until, vin)
    try:
        await journal.open()
        if apply:
            store.claim()
        ends = store.positions()
        if vin is not None:
            mine = partition_of_vin(vin, settings.journal.partitions)
            ends = {partition: offset for partition, offset in ends.items() if partition == mine}
        letters, again = store.letters(since, until, vin)
        encryption = settings.encryption
        require = encryption.signature is SignaturePolicy.REQUIRE
        secrets = Secrets(keys.load(dsn, encryption), encryption.scheme(), require)
        decoder = Redecoder(settings.pipeline, store.known_vehicles(), letters, since, until, vin, secrets)

        def take(records: Sequence[StoredRecord]) -> None:
            batch = decoder.batch(records)
            store.stage(batch)
            result.frames += batch.frames
            result.refused += batch.refused
            result.unreadable += len(batch.unreadable)
            result.damaged += batch.damaged
            whole = (until - since).total_seconds()
            tell("reading the journal", min(1.0, max(0.0, (batch.upto / 1e6 - since.timestamp()) / whole)))

        first = await journal.offsets_at(since - _CLOCKS_APART)
        last = await journal.offsets_at(until + _HELD_BACK)
        upto = {p: min(end, last.get(p, end + 1) - 1) for p, end in ends.items()}
        after = {p: first[p] - 1 for p in upto if p in first}
        if after:
            async for records in records_between(journal, after, upto, settings.pipeline):
                take(records)
        # A requeued frame keeps its arrival and lies where it was put the second time.
        for partition, offset in sorted({(p, o) for p, o, _ in again}):
            if upto.get(partition, -1) < offset <= ends.get(partition, -1):
                take(await journal.read({partition: offset - 1}, 1))
        if apply:
            store.register()
        tell("comparing", 0.0)
        result.diff = store.compare(since, until)
        if apply:
            days = store.days(delete=delete)
            for number, day in enumerate(days):
                tell(f"rewriting {day}", number / len(days))
                result.applied.append(store.apply(day, delete=delete))
        tell("done", 1.0)
    finally:
        store.close()
        await journal.close()
    return result
