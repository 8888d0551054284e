"""The pipeline's loop: journal → decode → validate → streams → one transaction, with one batch ahead.

While a batch is being committed, the next one is read and decoded in the pipeline's own thread.  All
state in memory is a cache of the store.  Whenever the outcome of anything is unknown (store or journal
away, positions moved by another owner) it is thrown away, and the work begins again from the
store's positions: that, with the offset in the transaction, is what makes a frame count once.

A batch that raises what nobody foresaw is stored apart (``poison.py``); when too much is refused, it all stops
(``rejects.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from schemas.batch import Committed
from schemas.gbt32960.check import Secrets
from schemas.gbt32960.commands import command_name
from schemas.keyring import ExchangedKey, KeyStore
from schemas.reasons import reason_name
from schemas.seams import JournalReader, Sink, StoredRecord
from schemas.shares import Shares
from schemas.signals import SIGNALS, State
from services import metrics
from services.errors import JournalUnavailable, NevstreamError, PositionsMoved, StoreUnavailable
from services.own_signals import extractor_of, samples_of
from services.pipeline.batching import REPLY, Prepared, Streams, bounded, build, decode
from services.pipeline.poison import Aside, store_apart, told
from services.pipeline.rejects import RejectShare, TooManyRejectsError
from services.pipeline.vehicles import VehicleTable
from services.settings import Settings, SignaturePolicy

log = logging.getLogger(__name__)

_RETRY_FIRST_S: Final = 0.2
_RETRY_MAX_S: Final = 5.0
_SAY_AGAIN_S: Final = 60.0  # a pipeline that has stopped says so again this often
# Journal bytes are compressed, and batch_bytes_max counts them as they lie there; this bounds what
# they may unpack to. Telemetry shrinks to about a third.
_UNPACKED_FACTOR: Final = 4

_KINDS: Final = {REPLY: "reply", 0: "link_event"}  # what no command id stands for

# Nothing committed for so long, and no error: the store is slow. How often the lag is told anew.
_SLOW_S: Final = 2.0
_TELL_LAG_S: Final = 0.5
_LAG_CAUSES: Final = {
    "store_unavailable": "store_away",
    "journal_unavailable": "journal_away",
    "positions_moved": "positions_moved",
}

_CAUSES: Final[Mapping[type[NevstreamError], str]] = {
    StoreUnavailable: "store_unavailable",
    JournalUnavailable: "journal_unavailable",
    PositionsMoved: "positions_moved",
}


class _PoisonedError(Exception):
    """Storing these records raised something that nobody foresaw: its cause."""

    def __init__(self, records: Sequence[StoredRecord]) -> None:
        super().__init__()
        self.records = records


class Pipeline:
    """Moves the frames of ``partitions`` from ``journal`` to ``sink``.  ``clock`` is Unix time in seconds.

    ``on_halt`` is told why, should the pipeline stop by itself because too much is refused.  With ``shares`` the
    partitions are what those say, and change while it runs.
    """

    def __init__(
        self,
        settings: Settings,
        journal: JournalReader,
        sink: Sink,
        partitions: Sequence[int],
        clock: Callable[[], float] = time.time,
        keys: KeyStore | None = None,
        on_halt: Callable[[str], None] = lambda why: None,
        shares: Shares | None = None,
    ) -> None:
        self._settings = settings.pipeline
        self._encryption = settings.encryption
        self._keys = keys
        self._secrets: Secrets | None = None
        self._keys_asked_at = 0.0
        self._fresh_keys: Sequence[ExchangedKey] = ()  # of the newest batch, perhaps not committed yet
        self._journal = journal
        self._sink = sink
        self._partitions = tuple(partitions)
        self._shares = shares
        self._claimed = False
        self._clock = clock
        self._own_signals = extractor_of(self._settings.signals_file)
        self._json = samples_of(self._settings.signals_file, self._settings.json_limits())
        self._waiting: list[asyncio.Future[None]] = []
        self._waits_for = ""  # why nothing moves, where that is known
        self._moved_s = time.monotonic()
        # arrival of the oldest frame of each batch that is prepared and not committed; and, after a
        # restart, of the oldest that had been
        self._in_flight_us: deque[int] = deque()
        self._held_us: int | None = None
        self._retry_s = _RETRY_FIRST_S
        self._suspects: Sequence[StoredRecord] = ()
        self._share = RejectShare(self._settings.reject_share_max, self._settings.reject_window_frames)
        self._on_halt = on_halt

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop``; a commit under way is finished, what was only read is left for the next run."""
        telling = asyncio.create_task(self._tell_lag(), name="pipeline lag")
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="pipeline") as thread:
                while not stop.is_set():
                    try:
                        if not await self._own(stop):
                            break
                        if self._suspects:
                            await self._apart(stop, thread)
                        else:
                            await self._from_the_store(stop, thread)
                    except tuple(_CAUSES) as error:
                        await self._pause(error, stop)
                    except _PoisonedError as poisoned:
                        self._suspect(poisoned)
                    except TooManyRejectsError as error:
                        await self._halt(error, stop)
        finally:
            telling.cancel()
            if self._shares is not None:
                self._shares.let_go()
            for future in self._waiting:
                future.cancel()

    async def caught_up(self) -> None:
        """Return once a read that began after this call has found the journal empty and all is committed."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    async def _own(self, stop: asyncio.Event) -> bool:
        """Be the owner of the partitions, in the store, too; False at a stop.

        Claimed before anything is read from the store: whoever had them can commit no more, so what is read holds.
        """
        if self._shares is None:
            return True
        if self._moved:
            self._suspects, self._claimed = (), False  # whoever owns them now will find what is wrong with them
            self._begin_again()
            self._in_flight_us.clear()
            self._held_us = None
            self._show_lag()
            self._partitions = tuple(await self._shares.next(stop))
            if not self._partitions:
                return False
        if not self._claimed:
            await self._sink.claim(self._partitions)
            self._claimed = True
        return True

    @property
    def _moved(self) -> bool:
        return self._shares is not None and self._shares.moved

    async def _pause(self, error: Exception, stop: asyncio.Event) -> None:
        if self._shares is not None and isinstance(error, PositionsMoved):
            self._shares.refused()
        cause = next(name for kind, name in _CAUSES.items() if isinstance(error, kind))
        metrics.PIPELINE_RESTARTS.labels(cause).inc()
        log.warning("%s; beginning again from the store in %.1f s", error, self._retry_s)
        self._waits_for = _LAG_CAUSES[cause]
        self._show_lag()
        await _wait(stop, self._retry_s)
        self._retry_s = min(_RETRY_MAX_S, 2 * self._retry_s)

    async def _from_the_store(self, stop: asyncio.Event, thread: ThreadPoolExecutor) -> None:
        """One life of the in-memory state: load it, work until ``stop`` or until something is not certain."""
        self._begin_again()
        after = await self._sink.positions(self._partitions)
        table = VehicleTable.of(await self._sink.known_vehicles())
        self._secrets = None
        self._fresh_keys = ()
        turns = (Streams(), Streams())
        unread: list[StoredRecord] = []
        committing: asyncio.Task[None] | None = None
        turn = 0
        try:
            while not (stop.is_set() or self._moved):
                asked = len(self._waiting)
                if not unread:
                    with metrics.BATCH_SECONDS.labels("read").time():
                        unread = await self._journal.read(after, self._settings.batch_bytes_max)
                if not unread and committing is None:
                    for future in self._waiting[:asked]:
                        if not future.done():
                            future.set_result(None)
                    del self._waiting[:asked]
                    self._retry_s = _RETRY_FIRST_S
                    self._held_us = None
                    self._waits_for = ""
                    self._show_lag()
                    await _wait(stop, self._settings.idle_sleep_ms / 1000)
                    continue
                prepared = None
                if unread:
                    await self._refresh_keys()
                    records, unread = bounded(
                        unread, self._settings.batch_frames_max, _UNPACKED_FACTOR * self._settings.batch_bytes_max
                    )
                    with _poison_of(records):
                        prepared = await self._prepare(records, after, table, turns[turn], thread)
                    self._share.check(prepared.offered, prepared.refused, prepared.good, prepared.wrong)
                    turn = 1 - turn
                    after.update((partition, new) for partition, (_, new) in prepared.rows.positions.items())
                if committing is not None:
                    before, committing = committing, None
                    await before
                if prepared is not None and not (stop.is_set() or self._moved):
                    committing = asyncio.create_task(self._commit(prepared, records), name="pipeline commit")
        except asyncio.CancelledError:
            if committing is not None:
                committing.cancel()
            raise
        finally:
            if committing is not None:
                # at a stop, and whatever else went wrong: a commit that has begun is seen to its end
                await committing

    def _begin_again(self) -> None:
        """What was in flight is read again: its lag goes on from the oldest frame of it."""
        if self._in_flight_us and self._held_us is None:
            self._held_us = min(self._in_flight_us)
        self._in_flight_us.clear()

    def _suspect(self, poisoned: _PoisonedError) -> None:
        cause = poisoned.__cause__
        assert cause is not None
        metrics.PIPELINE_RESTARTS.labels("poison").inc()
        log.error(
            "storing %d journal records raised an error that should not be; they are stored apart, and what raises it "
            "is put aside as a dead letter (poison): %s",
            len(poisoned.records), told(cause), exc_info=cause,
        )  # fmt: skip
        self._suspects = poisoned.records

    async def _apart(self, stop: asyncio.Event, thread: ThreadPoolExecutor) -> None:
        """Store the suspects, each attempt from what the store says, nothing ahead of it."""

        async def attempt(records: Sequence[StoredRecord], aside: Aside | None, keep: bool) -> None:
            self._begin_again()
            after = await self._sink.positions(self._partitions)
            records = [record for record in records if record.offset > after[record.partition]]
            if not records:
                return
            table = VehicleTable.of(await self._sink.known_vehicles())
            self._secrets = None  # an attempt may have left keys there
            self._fresh_keys = ()
            await self._refresh_keys()
            prepared = await self._prepare(records, after, table, Streams(), thread, aside)
            if keep:
                self._share.check(prepared.offered, prepared.refused, prepared.good, prepared.wrong)
                await self._commit(prepared)
            else:
                await self._sink.commit(prepared.rows, keep=False)
                self._retry_s = _RETRY_FIRST_S

        async def store(records: Sequence[StoredRecord], aside: Aside | None, keep: bool) -> None:
            while not (stop.is_set() or self._moved):
                try:
                    await attempt(records, aside, keep)
                    return
                except tuple(_CAUSES) as error:  # waited for here, or what is known of the suspects would be lost
                    await self._pause(error, stop)

        await store_apart(self._suspects, store, stop)
        self._suspects = ()

    async def _halt(self, error: TooManyRejectsError, stop: asyncio.Event) -> None:
        """Store nothing more until somebody ends this process; ending it ourselves would only begin it again."""
        metrics.PIPELINE_HALTED.set(1)
        self._waits_for = "halted"
        self._begin_again()
        if self._shares is not None:
            self._shares.let_go()
        self._on_halt(str(error))
        while not stop.is_set():
            log.critical("the pipeline has stopped: %s", error)
            self._show_lag()
            await _wait(stop, _SAY_AGAIN_S)
        metrics.PIPELINE_HALTED.set(0)

    async def _refresh_keys(self) -> None:
        """Load the keys at first and when some were added or removed by hand; those of vehicles come by themselves."""
        if self._keys is None:
            return
        now = time.monotonic()
        if self._secrets is not None:
            if now - self._keys_asked_at < self._encryption.refresh_s:
                return
            self._keys_asked_at = now
            if not await self._keys.changed():
                return
        ring = await self._keys.keyring()
        for exchanged in self._fresh_keys:
            ring.add(exchanged.key)
        require = self._encryption.signature is SignaturePolicy.REQUIRE
        self._secrets = Secrets(ring, self._encryption.scheme(), require)
        self._keys_asked_at = now

    async def _prepare(
        self,
        records: Sequence[StoredRecord],
        after: Mapping[int, int],
        table: VehicleTable,
        streams: Streams,
        thread: ThreadPoolExecutor,
        aside: Aside | None = None,
    ) -> Prepared:
        loop = asyncio.get_running_loop()
        settings = self._settings
        decoded = await loop.run_in_executor(
            thread, decode, records, table, settings.clock_future_max_s, settings.clock_past_max_days,
            self._own_signals, self._secrets, self._json, aside,
        )  # fmt: skip
        self._fresh_keys = decoded.keys
        ids = await self._sink.register(decoded.new_vins) if decoded.new_vins else []
        newest = {record.partition: record.offset for record in records}  # in offset order within a partition
        positions = {partition: (after[partition], offset) for partition, offset in newest.items()}
        prepared = await loop.run_in_executor(thread, build, decoded, ids, table, positions, streams)
        self._in_flight_us.append(int(self._clock() * 1e6) if prepared.oldest_us is None else prepared.oldest_us)
        self._show_lag()
        return prepared

    async def _commit(self, prepared: Prepared, records: Sequence[StoredRecord] | None = None) -> None:
        """``records``: what to suspect should it raise what nobody foresaw."""
        with metrics.BATCH_SECONDS.labels("commit").time(), _poison_of(records):
            committed = await self._sink.commit(prepared.rows)
            found = committed.rows + committed.duplicates + committed.conflicts
            assert found == prepared.reports, f"{prepared.reports} reports handed over, {found} accounted for"
        self._retry_s = _RETRY_FIRST_S
        self._count(prepared, committed)

    def _count(self, prepared: Prepared, committed: Committed) -> None:
        """Metrics of a batch, once it is certain: a batch that is done again must not count twice."""
        self._share.add(prepared.offered, prepared.refused, prepared.good, prepared.wrong)
        for kind, n in prepared.kinds.items():
            metrics.FRAMES_PROCESSED.labels(_KINDS.get(kind) or command_name(kind)).inc(n)
        refused = prepared.frames - sum(prepared.kinds.values())
        if refused:
            metrics.FRAMES_PROCESSED.labels("refused").inc(refused)
        fast = prepared.rows.telemetry.rows if prepared.rows.telemetry is not None else 0
        fast = min(fast, committed.rows)
        metrics.ROWS_WRITTEN.labels("fast").inc(fast)
        metrics.ROWS_WRITTEN.labels("late").inc(committed.rows - fast)
        metrics.DUPLICATES.inc(committed.duplicates)
        metrics.CONFLICTS.inc(committed.conflicts)
        for code, n in prepared.reasons.items():
            metrics.DEAD_LETTERS.labels(reason_name(code)).inc(n)
        for state in (State.ABNORMAL, State.INVALID, State.OUT_OF_RANGE, State.SUSPECT):
            for signal in prepared.flaws[:, state].nonzero()[0].tolist():
                metrics.SIGNAL_FLAWS.labels(SIGNALS[signal].name, state.name.lower()).inc(
                    int(prepared.flaws[signal, state])
                )
        for (name, state_name), n in prepared.own_flaws.items():
            metrics.SIGNAL_FLAWS.labels(name, state_name).inc(n)
        for step, seconds in prepared.seconds.items():
            metrics.BATCH_SECONDS.labels(step).observe(seconds)
        metrics.SOCKET_TO_ROW_SECONDS.observe(max(0.0, self._clock() - self._in_flight_us.popleft() / 1e6))
        self._held_us = None
        self._waits_for, self._moved_s = "", time.monotonic()
        self._show_lag()

    def _show_lag(self) -> None:
        oldest = min(self._in_flight_us, default=None) if self._held_us is None else self._held_us
        lag_s = 0.0 if oldest is None else max(0.0, self._clock() - oldest / 1e6)
        metrics.LAG_SECONDS.set(lag_s)
        now_s = time.monotonic()
        if oldest is None:
            self._moved_s = now_s
        cause = self._waits_for or ("store_slow" if now_s - self._moved_s > _SLOW_S else "working")
        metrics.show_lag("pipeline", lag_s, cause)

    async def _tell_lag(self) -> None:
        """Also while nothing else happens: a lag grows in silence."""
        while True:
            await asyncio.sleep(_TELL_LAG_S)
            self._show_lag()


@contextlib.contextmanager
def _poison_of(records: Sequence[StoredRecord] | None) -> Iterator[None]:
    """Whatever is raised within and is not the world's doing is these records'; None: it goes on as it is."""
    try:
        yield
    except NevstreamError:
        raise
    except Exception as error:
        if records is None:
            raise
        raise _PoisonedError(records) from error


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
