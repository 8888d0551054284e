"""The journal in a Kafka topic: one Kafka record a partition batch, acknowledged by all in-sync copies.

It promises what ``schemas.seams`` says of writer and reader, across machines.  It must never answer an append
before every record of it is acknowledged (``acks=all``), nor send a record again whose first try may still be
under way: an append that took too long stays pending, and the same records given again wait for the same answer.
Kafka's idempotence then keeps a retry on the wire from being there twice; a broker without it is told of in the log.

A group commit is not atomic over partitions: of an append that failed, some records may be readable.  They are not
acknowledged before all are, and the next try sends only the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import AIOKafkaProducer, errors
from aiokafka.structs import RecordMetadata

from schemas.journal.record import RecordError, check_partitions, split_record
from schemas.keys import partition_of_vin
from schemas.seams import StoredRecord
from services import metrics
from services.database import Connection, Line
from services.errors import JournalUnavailable, SettingsError
from services.journal.fixed import fix
from services.journal.kafka_line import EARLIEST, LATEST, Fetched, KafkaLine, connection_options, speaking
from services.journal.kafka_topic import ensure_topic
from services.settings import Idempotence, Kafka

log = logging.getLogger(__name__)

# Kafka's own overhead of a batch with one record, and room to spare.
_BATCH_OVERHEAD_BYTES: Final = 512
# What a fetch asks of a broker at least: small reads would fetch the same batch again and again.
_FETCH_BYTES_MIN: Final = 4 * 1024 * 1024
_PARTITION_BYTES_MIN: Final = 256 * 1024
_GIVE_UP_S: Final = 5.0
# What says that a broker has no producer ids to give.
_NOT_IDEMPOTENT: Final = (
    errors.UnknownError,
    errors.IncompatibleBrokerVersion,
    errors.UnsupportedVersionError,
    NotImplementedError,
)

_Sent = asyncio.Future[RecordMetadata]


@dataclass(slots=True)
class _Append:
    """An append under way: its parts (index of the record, partition, body) and what has been answered."""

    records: Sequence[tuple[int, bytes]]
    parts: list[tuple[int, int, bytes]]
    sent: list[_Sent | None] = field(default_factory=list)
    offsets: list[int | None] = field(default_factory=list)


@dataclass(slots=True)
class _Ahead:
    """Records of a partition that were fetched and not taken yet; they are all there are in [begin, end)."""

    begin: int
    end: int
    records: deque[Fetched]


class KafkaJournal:
    """Writer and reader of ``kafka.topic`` with ``partitions``; connects when first needed.

    ``client`` ends the client ids, so that a broker's log tells which process speaks.  Several processes may
    append and read at once.  Appends of one journal queue behind each other: one is in flight.  ``dsn`` is the
    database that has the positions in this topic; without one, nobody looks whether it has those of another.
    """

    def __init__(self, kafka: Kafka, partitions: int, client: str = "journal", dsn: str = "") -> None:
        self.partitions = partitions
        self._kafka = kafka
        self._client = client
        self._dsn = dsn
        self._line = KafkaLine(kafka, f"{client}-reader")
        self._producer: AIOKafkaProducer | None = None
        self._idempotent: bool | None = None
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._pending: _Append | None = None
        self._ahead: dict[int, _Ahead] = {}
        self._turn = 0

    @property
    def idempotent(self) -> bool | None:
        """Whether the broker sees to it that a retry is there once; None before the first append."""
        return self._idempotent

    async def open(self) -> None:
        """Make or check the topic, and see that the database is of this one.

        Raises ``SettingsError`` when it does not fit, ``UsageError`` when the database was never migrated,
        ``JournalUnavailable``.
        """
        if self._dsn:
            line = Line(self._dsn, "nevstream journal", JournalUnavailable)
            try:
                await fix(
                    line,
                    {
                        "journal.kind": "kafka",
                        "journal.partitions": str(self.partitions),
                        "journal.kafka.topic": self._kafka.topic,
                    },
                )
            finally:
                await line.close()
        await ensure_topic(self._kafka, self.partitions)

    # -- writer ----------------------------------------------------------------------------------

    async def append(self, records: Sequence[tuple[int, bytes]]) -> list[int]:
        """Make (partition, record) pairs durable; returns their offsets, of a record in parts that of the first.

        The same records given again after ``JournalUnavailable`` are there once, if the broker is idempotent.
        """
        if not records:
            return []
        check_partitions(records, self.partitions)
        begun = time.perf_counter()
        try:
            async with self._writing:
                offsets = await self._append(records)
        except JournalUnavailable:
            metrics.APPEND_FAILURES.inc()
            raise
        metrics.APPEND_SECONDS.observe(time.perf_counter() - begun)
        metrics.APPENDED_BYTES.inc(sum(len(body) for _, body in records))
        return offsets

    async def _append(self, records: Sequence[tuple[int, bytes]]) -> list[int]:
        append = self._pending
        if append is None or append.records != records:
            parts = self._parts(records)
            append = _Append(records, parts, [None] * len(parts), [None] * len(parts))
            self._pending = append
        producer = await self._started()
        with speaking(self._kafka, "append"):
            for number, (_, partition, body) in enumerate(append.parts):
                if append.sent[number] is None and append.offsets[number] is None:
                    answer = await asyncio.wait_for(
                        producer.send(self._kafka.topic, body, key=b"%d" % partition, partition=partition),
                        self._kafka.request_timeout_s,
                    )
                    answer.add_done_callback(_seen)
                    append.sent[number] = answer
        waiting = [answer for answer in append.sent if answer is not None]
        await asyncio.wait(waiting, timeout=self._kafka.request_timeout_s)
        await self._answers(append)
        self._pending = None
        first: dict[int, int] = {}
        for (index, _, _), offset in zip(append.parts, append.offsets, strict=True):
            assert offset is not None
            first.setdefault(index, offset)
        return [first[index] for index in range(len(records))]

    async def _answers(self, append: _Append) -> None:
        """Take what has been answered; raises unless that is all."""
        failure: BaseException | None = None
        unanswered = 0
        for number, answer in enumerate(append.sent):
            if answer is None:
                continue
            if not answer.done():
                unanswered += 1
            elif answer.cancelled() or answer.exception() is not None:
                failure = asyncio.CancelledError() if answer.cancelled() else answer.exception()
                append.sent[number] = None  # it failed for good: the next try sends it again
            else:
                append.offsets[number], append.sent[number] = answer.result().offset, None
        if failure is not None:
            if isinstance(failure, (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)):
                raise JournalUnavailable(
                    "Kafka refuses a record for its size: the topic's max.message.bytes is below journal.kafka."
                    f"message_bytes_max = {self._kafka.message_bytes_max}; raise the one or lower the other"
                ) from failure
            if not isinstance(failure, errors.KafkaError):
                failure = errors.KafkaError(str(failure) or type(failure).__name__)
            if not unanswered:  # a producer that has met what it cannot retry may be done for
                await self._end_producer()
            with speaking(self._kafka, "append"):
                raise failure
        if unanswered:
            raise JournalUnavailable(
                f"Kafka at {self._kafka.brokers} has not acknowledged {unanswered} of {len(append.parts)} records "
                f"within {self._kafka.request_timeout_s:g} s: brokers are away, or fewer in-sync copies than "
                "min.insync.replicas; still trying"
            )

    def _parts(self, records: Sequence[tuple[int, bytes]]) -> list[tuple[int, int, bytes]]:
        bound = self._kafka.message_bytes_max - _BATCH_OVERHEAD_BYTES
        parts: list[tuple[int, int, bytes]] = []
        for index, (partition, body) in enumerate(records):
            bodies = [body]
            if len(body) > bound:
                try:
                    bodies = split_record(body, bound)
                except RecordError as error:
                    raise ValueError(f"a record of {len(body)} bytes that cannot be divided: {error}") from error
            parts += [(index, partition, part) for part in bodies]
        return parts

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = await self._start(self._idempotent is not False)
        return self._producer

    async def _start(self, idempotent: bool) -> AIOKafkaProducer:
        kafka = self._kafka
        producer = AIOKafkaProducer(
            **connection_options(kafka, f"{self._client}-writer"),
            acks="all",
            enable_idempotence=idempotent,
            compression_type=None if kafka.compression.value == "none" else kafka.compression.value,
            max_batch_size=kafka.message_bytes_max,
            max_request_size=kafka.message_bytes_max,
        )
        try:
            with speaking(kafka, "append"):
                try:
                    await asyncio.wait_for(producer.start(), 2 * kafka.request_timeout_s)
                except _NOT_IDEMPOTENT as error:
                    if not idempotent:
                        raise
                    if kafka.idempotence is Idempotence.REQUIRED:
                        raise SettingsError(
                            f"the broker at {kafka.brokers} has no idempotent producers ({type(error).__name__}), and "
                            'journal.kafka.idempotence is "required"; set it to "auto", or use Apache Kafka'
                        ) from error
                    log.warning(
                        "the broker at %s has no idempotent producers (%s): an append whose answer is lost may be "
                        "there twice; its reports are then stored once, and counted as duplicates",
                        kafka.brokers, type(error).__name__,
                    )  # fmt: skip
                    await _stopped(producer, 1.0)
                    return await self._start(False)
        except BaseException:
            await _stopped(producer, 1.0)
            raise
        self._idempotent = idempotent
        return producer

    # -- reader ----------------------------------------------------------------------------------

    async def read(self, after: Mapping[int, int], bytes_max: int) -> list[StoredRecord]:
        """Records beyond ``after``, the oldest of all partitions first until ``bytes_max`` is reached."""
        if not after:
            return []
        async with self._reading:
            ready = self._ready(after)
            if not ready:
                await self._fetch(after, bytes_max)
                ready = self._ready(after)
            return _taken(ready, bytes_max)

    def _ready(self, after: Mapping[int, int]) -> list[_Ahead]:
        """What is here of the partitions in ``after``; what lies elsewhere is forgotten."""
        ready = []
        for partition, offset in after.items():
            ahead, begin = self._ahead.get(partition), offset + 1
            if ahead is None:
                continue
            if not ahead.begin <= begin <= ahead.end:
                del self._ahead[partition]
                continue
            while ahead.records and ahead.records[0].offset < begin:
                ahead.records.popleft()
            ahead.begin = begin
            if ahead.records:
                ready.append(ahead)
        return ready

    async def _fetch(self, after: Mapping[int, int], bytes_max: int) -> None:
        for partition in self._ahead.keys() - after.keys():
            del self._ahead[partition]
        begins = {}
        for partition, offset in after.items():
            ahead = self._ahead.get(partition)
            begins[partition] = max(offset + 1, ahead.end) if ahead is not None else offset + 1
        # Brokers fill an answer in the order of the request: each partition is first in its turn.
        order = sorted(begins)
        self._turn = (self._turn + 1) % len(order)
        begins = {partition: begins[partition] for partition in order[self._turn :] + order[: self._turn]}
        whole = max(bytes_max, _FETCH_BYTES_MIN)
        answers = await self._line.fetch(begins, whole, max(whole // len(begins), _PARTITION_BYTES_MIN))
        lost = [partition for partition, answer in answers.items() if not answer.known]
        if lost:
            moved = await self._start_over({partition: begins[partition] for partition in lost})
            answers |= await self._line.fetch(moved, whole, max(whole // len(moved), _PARTITION_BYTES_MIN))
        for partition, answer in answers.items():
            if answer.records:
                self._ahead[partition] = _Ahead(
                    after[partition] + 1, answer.records[-1].offset + 1, deque(answer.records)
                )

    async def _start_over(self, begins: Mapping[int, int]) -> dict[int, int]:
        """Where to read on when Kafka has not the offsets asked for: retention took them, or it is another topic."""
        first = await self._line.offsets(list(begins), EARLIEST)
        end = await self._line.offsets(list(begins), LATEST)
        moved = {}
        for partition, begin in begins.items():
            if begin > end[partition]:
                raise JournalUnavailable(
                    f"partition {partition} of the topic {self._kafka.topic!r} ends at offset {end[partition]}, but "
                    f"what lies before {begin} is stored already: the topic was made anew, or brokers have lost "
                    "acknowledged records. Nothing is read until somebody has looked: bring the topic back, or start "
                    "with a new database"
                )
            if begin:
                gone = first[partition] - begin
                metrics.JOURNAL_LOST.inc(gone)
                log.error(
                    "partition %d of the topic %r begins at offset %d, and what lies before %d is stored: %d records "
                    "went by Kafka's retention before they were read; raise journal.kafka.retention_days and the "
                    "topic's retention.ms",
                    partition, self._kafka.topic, first[partition], begin, gone,
                )  # fmt: skip
            moved[partition] = first[partition]
        return moved

    async def ends(self) -> dict[int, int]:
        """Newest offset of each partition that has any record."""
        everything = range(self.partitions)
        first = await self._line.offsets(everything, EARLIEST)
        end = await self._line.offsets(everything, LATEST)
        return {partition: end[partition] - 1 for partition in everything if end[partition] > first[partition]}

    async def offsets_at(self, time: datetime) -> dict[int, int]:
        """Offset of the first record appended at ``time`` or later, of each partition that has one."""
        found = await self._line.offsets(range(self.partitions), max(0, round(time.timestamp() * 1000)))
        return {partition: offset for partition, offset in found.items() if offset >= 0}

    async def backlog(self, vin: str) -> dict[str, Any]:
        """``records`` of the vehicle's partition that are not stored yet, and when the ``oldest`` was appended.

        Raises ``JournalUnavailable``, also when the database does not tell what is stored.
        """
        partition = partition_of_vin(vin, self.partitions)
        line = Line(self._dsn, "nevstream journal", JournalUnavailable)

        async def stored(connection: Connection) -> int:
            cursor = await connection.execute(
                'SELECT "offset" FROM journal_positions WHERE partition = %s', [partition]
            )
            row = await cursor.fetchone()
            return -1 if row is None else int(row[0])

        try:
            begin = await line.call(stored) + 1
        finally:
            await line.close()
        end = (await self._line.offsets([partition], LATEST))[partition]
        begin = max(begin, (await self._line.offsets([partition], EARLIEST))[partition])
        if begin >= end:
            return {"records": 0, "oldest": None}
        first = (await self._line.fetch({partition: begin}, 1, 1))[partition].records[:1]
        oldest = datetime.fromtimestamp(first[0].at_ms / 1000, UTC) if first else None
        return {"records": end - begin, "oldest": oldest}

    async def close(self) -> None:
        await self._end_producer()
        await self._line.close()

    async def _end_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            unanswered = self._pending is not None and any(
                answer is not None and not answer.done() for answer in self._pending.sent
            )
            await _stopped(producer, 0.0 if unanswered else self._kafka.request_timeout_s)


def _seen(answer: _Sent) -> None:
    """An append that was given up has nobody to look at its failure."""
    if not answer.cancelled():
        answer.exception()


async def _stopped(producer: AIOKafkaProducer, patience_s: float) -> None:
    """End a producer; what is not delivered after ``patience_s`` is not waited for any more."""
    stopping = asyncio.ensure_future(producer.stop())
    await asyncio.wait([stopping], timeout=patience_s)
    if not stopping.done():
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        # its stop() would wait for ever, and it has no other way
        await asyncio.wait([asyncio.ensure_future(producer._sender.close())], timeout=_GIVE_UP_S)  # noqa: SLF001
        await producer.client.close()
        return
    if (error := stopping.exception()) is not None:
        log.debug("a producer ended with %s", error)


def _taken(ready: Sequence[_Ahead], bytes_max: int) -> list[StoredRecord]:
    """The oldest heads of ``ready`` up to ``bytes_max``, at least one; in offset order within a partition."""
    heads = [(ahead.records[0].at_ms, number) for number, ahead in enumerate(ready)]
    heapq.heapify(heads)
    found: list[StoredRecord] = []
    size = 0
    while heads:
        _, number = heapq.heappop(heads)
        waiting = ready[number].records
        record = waiting[0]
        if found and size + len(record.body) > bytes_max:
            break
        waiting.popleft()
        ready[number].begin = record.offset + 1
        found.append(StoredRecord(record.partition, record.offset, record.body))
        size += len(record.body)
        if waiting:
            heapq.heappush(heads, (waiting[0].at_ms, number))
    return sorted(found, key=lambda record: (record.partition, record.offset))
