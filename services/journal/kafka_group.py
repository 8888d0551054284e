"""The consumer group of the pipeline processes: who works on which partitions, as Kafka deals them.

Membership only.  Records are read by ``kafka.py`` and positions live in the store, so the group's consumer is
paused on all it is given and never commits an offset.  Membership is static (``group.instance.id``): a process
that is started again within the session time-out gets its partitions back, and nobody else is disturbed.

It must never be taken for ownership: a process that was paused past its session believes for a while that it
still has its partitions.  What it tries to store then is refused by the store (``Sink.claim``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition, errors

from services.errors import NevstreamError
from services.journal.kafka_line import connection_options, speaking
from services.settings import Kafka

log = logging.getLogger(__name__)

# How long the group waits for a commit under way before partitions move on; the store keeps the owners apart anyway.
_LET_GO_MAX_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.5
_REBALANCE_S: Final = 60.0


def member_name(kafka: Kafka, index: int) -> str:
    """``group.instance.id`` of the pipeline process ``index`` of this machine."""
    host = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in socket.gethostname())
    return f"{kafka.member or host}-pipeline-{index}"


class KafkaGroup:
    """The ``Shares`` of ``schemas.shares`` in a consumer group of Kafka.  ``member`` is unique in the group."""

    def __init__(self, kafka: Kafka, member: str) -> None:
        self._kafka = kafka
        self._member = member
        self._consumer: AIOKafkaConsumer | None = None
        self._share: tuple[int, ...] | None = None  # None: being dealt
        self._given = False
        self._refused_s: float | None = None
        self._let_go = asyncio.Event()
        self._let_go.set()
        self._dealt = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Join the group.  Raises ``SettingsError``, ``JournalUnavailable``."""
        if self._consumer is None:
            await self._join()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="kafka group")

    async def close(self) -> None:
        """Stop being alive.  A static member does not leave: its partitions wait for it a session time-out long."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
        self._let_go.set()
        await self._leave()

    # -- Shares ----------------------------------------------------------------------------------

    @property
    def moved(self) -> bool:
        return not self._given

    async def next(self, stop: asyncio.Event) -> Sequence[int]:
        self._given = False
        self._let_go.set()
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                self._dealt.clear()
                if self._share and self._refused_s is None:
                    self._given = True
                    self._let_go.clear()
                    log.info("this process (%s) works on the partitions %s", self._member, list(self._share))
                    return self._share
                dealt = asyncio.ensure_future(self._dealt.wait())
                await asyncio.wait((stopped, dealt), return_when=asyncio.FIRST_COMPLETED)
                dealt.cancel()
        finally:
            stopped.cancel()
        return ()

    def let_go(self) -> None:
        self._given = False
        self._let_go.set()

    def refused(self) -> None:
        if self._given:  # else it is about a share that Kafka has taken back already
            self._given = False
            self._refused_s = time.monotonic()

    # -- the group -------------------------------------------------------------------------------

    async def _revoked(self, partitions: Iterable[int]) -> None:
        self._share, self._given = None, False
        with contextlib.suppress(TimeoutError):
            patience_s = min(_LET_GO_MAX_S, self._kafka.session_timeout_s / 3)
            await asyncio.wait_for(self._let_go.wait(), patience_s)
        log.info("the partitions %s are dealt anew", sorted(partitions))

    def _assigned(self, partitions: Iterable[int]) -> None:
        self._share, self._given, self._refused_s = tuple(sorted(partitions)), False, None
        self._dealt.set()
        if not self._share:
            log.info("this process (%s) has no partition: there are as many processes as that", self._member)

    async def _join(self) -> None:
        kafka = self._kafka
        session_ms = round(kafka.session_timeout_s * 1000)
        consumer = AIOKafkaConsumer(
            **connection_options(kafka, self._member),
            group_id=kafka.group,
            group_instance_id=self._member,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=max(100, session_ms // 10),
            rebalance_timeout_ms=round(max(_REBALANCE_S, kafka.session_timeout_s) * 1000),
            enable_auto_commit=False,
            auto_offset_reset="latest",
        )
        try:
            with speaking(kafka, "join the group"):
                await asyncio.wait_for(consumer.start(), 2 * kafka.request_timeout_s)
                consumer.subscribe(topics=[kafka.topic], listener=_Listener(self, consumer))
        except BaseException:
            with contextlib.suppress(errors.KafkaError):
                await consumer.stop()
            raise
        self._consumer = consumer

    async def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(errors.KafkaError, TimeoutError):
                await asyncio.wait_for(consumer.stop(), self._kafka.request_timeout_s)

    async def _watch(self) -> None:
        """Join again when membership has failed, or when the store knows of another owner and Kafka tells of none."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                if self._consumer is None:
                    await self._join()
                    continue
                await self._consumer.getmany(timeout_ms=0)  # brings nothing: it is where errors are told
                waited_s = 0.0 if self._refused_s is None else time.monotonic() - self._refused_s
                if waited_s <= self._kafka.session_timeout_s:
                    continue
                log.warning("another process stores what Kafka gave to this one (%s): joining again", self._member)
            except (errors.KafkaError, NevstreamError) as error:
                log.warning("this process (%s) has lost its place in the group: %s; joining again", self._member, error)
            self._share, self._given = None, False
            await self._leave()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Hears of each rebalance; of a consumer that was given up, nothing."""

    def __init__(self, group: KafkaGroup, consumer: AIOKafkaConsumer) -> None:
        self._group = group
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._group._revoked(one.partition for one in revoked)  # noqa: SLF001 - two halves of one thing

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        parts = list(assigned)
        self._consumer.pause(*parts)  # before anything is fetched
        self._group._assigned(one.partition for one in parts)  # noqa: SLF001
