"""Dead letters that something is done about: put into the journal again, or dropped for age and number.

A requeued frame goes through the journal like any other, with the arrival time of the original, so that
clock checks mean what they meant, under a changed setting or decoder.  It must never be marked as requeued
before the journal has it: the mark is committed after the append, and a mark that is lost means a resend,
which the pipeline counts as a duplicate.  Nothing is dropped without being counted (``dead_letters_pruned``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import numpy as np
from psycopg import sql

from schemas.batch import VIN_BYTES, Codec, Door
from schemas.journal.record import encode_record
from schemas.reasons import CODE
from schemas.samples.decode import JSON_CODECS
from schemas.seams import JournalWriter, LetterFilter, LetterId, Requeued
from services import metrics
from services.database import Connection, Line
from services.errors import StoreUnavailable, UsageError
from services.settings import Registry, Settings
from services.store.queries import letter_filter

log = logging.getLogger(__name__)

# Letters of one transaction and one append: a frame has 64 KiB at most, so this is bounded, too.
_LETTERS_AT_ONCE: Final = 500
_PRUNED_AT_ONCE: Final = 5_000
_TIMEOUT_S: Final = 60.0
_AT_VIN: Final = 4  # of the identification in a GB/T 32960 frame (table 2)

# Refused because of who sent them: the pipeline would take the frame, so putting one back is a decision of its own.
ABOUT_THE_SENDER: Final = tuple(CODE[name] for name in ("foreign_vin", "unknown_vin", "not_logged_in", "bad_login"))
_UNKNOWN_VIN: Final = CODE["unknown_vin"]

_TAKE: Final = """
    SELECT l.partition, l."offset", l.position, l.received_at, l.reason, l.codec, l.vin, l.peer, l.client, l.frame,
           l.requeued_at, l.replayed_at, coalesce(v.registered, false) AS registered
    FROM unnest(%s::integer[], %s::bigint[], %s::integer[]) AS a (partition, "offset", position)
    JOIN dead_letters l USING (partition, "offset", position) LEFT JOIN vehicles v ON v.vin = l.vin
    ORDER BY l.partition, l."offset", l.position FOR UPDATE OF l
"""
_PARTITIONS: Final = (
    "SELECT journal_partition(vin, %s::integer) FROM unnest(%s::text[]) WITH ORDINALITY AS a (vin, n) ORDER BY n"
)
_MARK: Final = """
    UPDATE dead_letters l SET requeued_at = now(), requeued_by = %s, requeued_as = a.moved, requeued_frame = %s
    FROM unnest(%s::integer[], %s::bigint[], %s::integer[], %s::text[]) AS a (partition, "offset", position, moved)
    WHERE l.partition = a.partition AND l."offset" = a."offset" AND l.position = a.position
"""
_OPEN: Final = sql.SQL(
    """
    SELECT partition, "offset", position FROM dead_letters WHERE true {filters} AND (NOT reason = ANY (%(sender)s))
    ORDER BY received_at, partition, "offset", position LIMIT %(limit)s
    """
)
_PRUNE: Final = """
    WITH doomed AS (
        SELECT partition, "offset", position FROM dead_letters WHERE received_at < %(before)s
        ORDER BY received_at, partition, "offset", position LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM dead_letters l USING doomed d
        WHERE l.partition = d.partition AND l."offset" = d."offset" AND l.position = d.position
        RETURNING l.reason, l.replayed_at
    ), counted AS (
        INSERT INTO dead_letters_pruned AS p (reason, letters, replayed)
        SELECT reason, count(*), count(replayed_at) FROM gone GROUP BY reason
        ON CONFLICT (reason) DO UPDATE SET letters = p.letters + excluded.letters,
            replayed = p.replayed + excluded.replayed, pruned_at = now()
    )
    SELECT count(*) FROM gone
"""


class _Letter(NamedTuple):
    partition: int
    offset: int
    position: int
    received_at: datetime
    reason: int
    codec: int
    vin: str | None
    peer: str | None
    client: str | None
    frame: bytes
    requeued_at: datetime | None
    replayed_at: datetime | None
    registered: bool

    @property
    def id(self) -> LetterId:
        return self.partition, self.offset, self.position


@dataclass(frozen=True, slots=True)
class Pruned:
    """Letters dropped for their age, for their number, and how many are left."""

    age: int
    size: int
    kept: int


class Letters:
    """The ``LetterDesk`` of ``schemas.seams`` on PostgreSQL; appends through ``journal``, which it does not close."""

    def __init__(self, dsn: str, journal: JournalWriter, settings: Settings) -> None:
        self._line = Line(dsn, "nevstream letters", StoreUnavailable, _TIMEOUT_S)
        self._journal = journal
        self._partitions = settings.journal.partitions
        self._allowlist = settings.gateway.registry is Registry.ALLOWLIST

    async def requeue(
        self, letters: Sequence[LetterId], *, by: str, frame: bytes | None = None, again: bool = False
    ) -> Requeued:
        """Append the frames of ``letters`` to the journal and mark them; see ``schemas.seams.LetterDesk``.

        Raises ``UsageError`` when ``frame`` is given for more than one.
        """
        if frame is not None and len(letters) != 1:
            raise UsageError(f"an edited frame replaces the bytes of one dead letter, {len(letters)} were named")
        wanted = sorted(set(letters))
        frames: dict[LetterId, LetterId] = {}
        skipped: dict[LetterId, str] = {}
        for at in range(0, len(wanted), _LETTERS_AT_ONCE):
            some = wanted[at : at + _LETTERS_AT_ONCE]

            async def run(connection: Connection, some: list[LetterId] = some) -> Requeued:
                return await self._requeue(connection, some, by, frame, again)

            done = await self._line.call(run)
            frames.update(done.frames)
            skipped.update(done.skipped)
        return Requeued(frames, skipped)

    async def requeue_all(self, wanted: LetterFilter, *, by: str, limit: int) -> Requeued:
        """Requeue the open letters of a filter; see ``schemas.seams.LetterDesk``."""
        given, filters = letter_filter(replace(wanted, open=True))
        sender = list(ABOUT_THE_SENDER) if wanted.reason is None else []

        # Chosen before the first is requeued: one that is refused again comes back as a new letter, and would match.
        async def run(connection: Connection) -> list[LetterId]:
            cursor = await connection.execute(
                _OPEN.format(filters=filters), {**given, "sender": sender, "limit": limit}
            )
            return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]

        return await self.requeue(await self._line.call(run), by=by)

    async def prune(self, age_max_days: int, rows_max: int, now: datetime | None = None) -> Pruned:
        """Drop letters that arrived more than ``age_max_days`` ago, then the oldest beyond ``rows_max``.

        Counts them in ``dead_letters_pruned`` in the same transaction, in the metrics and in the log.
        """
        before = (now or datetime.now(UTC)) - timedelta(days=age_max_days)
        age = await self._drop(before, None)
        kept = await self._line.call(_count)
        size = await self._drop(None, kept - rows_max) if kept > rows_max else 0
        kept -= size
        metrics.DEAD_LETTERS_KEPT.set(kept)
        for cause, n in (("age", age), ("size", size)):
            metrics.DEAD_LETTERS_PRUNED.labels(cause).inc(n)
        if age or size:
            log.warning(
                "dropped %d dead letters older than %d days and %d beyond the %d that are kept; %d are left "
                "(dead_letters.age_max_days, dead_letters.rows_max)", age, age_max_days, size, rows_max, kept,
            )  # fmt: skip
        return Pruned(age, size, kept)

    async def close(self) -> None:
        await self._line.close()

    async def _drop(self, before: datetime | None, most: int | None) -> int:
        dropped = 0
        while most is None or dropped < most:
            now = _PRUNED_AT_ONCE if most is None else min(_PRUNED_AT_ONCE, most - dropped)

            async def run(connection: Connection, now: int = now) -> int:
                cursor = await connection.execute(
                    _PRUNE, {"before": before or datetime.max.replace(tzinfo=UTC), "most": now}
                )
                row = await cursor.fetchone()
                assert row is not None
                return int(row[0])

            found = await self._line.call(run)
            dropped += found
            if found < now:
                break
        return dropped

    async def _requeue(
        self, connection: Connection, letters: Sequence[LetterId], by: str, frame: bytes | None, again: bool
    ) -> Requeued:
        async with connection.transaction():
            cursor = await connection.execute(_TAKE, _columns(letters))
            found = [_Letter(*row) for row in await cursor.fetchall()]
            skipped = dict.fromkeys(letters, "there is no such dead letter")
            good: list[_Letter] = []
            for letter in found:
                del skipped[letter.id]
                if why := self._why_not(letter, frame, again):
                    skipped[letter.id] = why
                else:
                    good.append(letter)
            if not good:
                return Requeued({}, skipped)
            moved = await self._append(connection, good, frame)
            marks = ["-".join(map(str, moved[letter.id])) for letter in good]
            await connection.execute(_MARK, [by, frame, *_columns([letter.id for letter in good]), marks])
        log.info("%s requeued %d dead letters, %d skipped", by, len(moved), len(skipped))
        return Requeued(moved, skipped)

    def _why_not(self, letter: _Letter, frame: bytes | None, again: bool) -> str | None:
        """Why this letter cannot be requeued; None when it can."""
        if letter.replayed_at is not None and not again:
            return f"a replay has made a row of it at {letter.replayed_at.isoformat(timespec='seconds')}"
        if letter.requeued_at is not None and not again:
            return f"it was requeued at {letter.requeued_at.isoformat(timespec='seconds')}"
        if letter.codec not in set(Codec) and frame is None:
            return "it is a damaged journal record and not a frame; give the frame that it should have been"
        if not (letter.frame if frame is None else frame):
            return "it has no bytes"
        if letter.reason == _UNKNOWN_VIN and self._allowlist and not letter.registered:
            return f"{letter.vin} is not in the registry: `nevstream vehicles add {letter.vin}` first"
        return None

    async def _append(
        self, connection: Connection, letters: Sequence[_Letter], frame: bytes | None
    ) -> Mapping[LetterId, LetterId]:
        """One record a partition; returns where each letter's frame now lies."""
        by_partition: dict[int, list[_Letter]] = {}
        vins = [_speaks_for(letter, frame) for letter in letters]
        cursor = await connection.execute(_PARTITIONS, [self._partitions, vins])
        for letter, (partition,) in zip(letters, await cursor.fetchall(), strict=True):
            where = letter.partition % self._partitions if partition is None else partition
            by_partition.setdefault(where, []).append(letter)
        records = [(partition, _record(some, frame)) for partition, some in sorted(by_partition.items())]
        offsets = await self._journal.append(records)
        return {
            letter.id: (partition, offset, position)
            for (partition, _), offset in zip(records, offsets, strict=True)
            for position, letter in enumerate(by_partition[partition])
        }


async def _count(connection: Connection) -> int:
    row = await (await connection.execute("SELECT count(*) FROM dead_letters")).fetchone()
    assert row is not None
    return int(row[0])


def _speaks_for(letter: _Letter, frame: bytes | None) -> str | None:
    """The vehicle in the frame, which decides the partition; None when it cannot be read."""
    body = letter.frame if frame is None else frame
    if letter.codec in JSON_CODECS or (frame is None and letter.codec != Codec.GBT32960):
        return letter.vin
    code = body[_AT_VIN : _AT_VIN + VIN_BYTES].rstrip(b"\0") if len(body) >= _AT_VIN + VIN_BYTES else b""
    return code.decode("ascii") if code and all(0x20 <= byte <= 0x7E for byte in code) else None


def _edited(letter: _Letter, frame: bytes) -> bytes:
    """What a person gives in a frame's place; of a JSON sample the text is enough, its VIN is the letter's."""
    if letter.codec not in JSON_CODECS or frame[:VIN_BYTES] == letter.frame[:VIN_BYTES]:
        return frame
    return letter.frame[:VIN_BYTES] + frame


def _record(letters: Sequence[_Letter], frame: bytes | None) -> bytes:
    """A journal record of these letters' frames: accepted again, from the peers that sent them."""
    n = len(letters)
    bodies = [letter.frame if frame is None else _edited(letter, frame) for letter in letters]
    codecs = [
        letter.codec if frame is None or letter.codec in JSON_CODECS else int(Codec.GBT32960) for letter in letters
    ]
    return encode_record(
        b"".join(bodies),
        np.array([len(body) for body in bodies], np.uint32),
        np.array([(letter.received_at - _EPOCH) // timedelta(microseconds=1) for letter in letters], np.int64),
        np.full(n, Door.REQUEUE, np.uint8),
        np.array(codecs, np.uint8),
        (
            np.zeros(n, np.uint8),
            np.zeros(n, np.uint32),
            np.arange(1, n + 1, dtype=np.uint32),
            [
                {"peer": a.peer or "", "vin": (a.vin or "") if frame is None else "", "client": a.client or ""}
                for a in letters
            ],
        ),
    )


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
