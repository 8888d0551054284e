"""The statistics stage's loop: what has changed → visits, chunk by chunk → swaps.

Everything in memory is a cache of the store: whenever the outcome of anything is unknown it is dropped, and the
changes, which are still there, are taken on again.  A visit that is made twice comes to the same.  Vehicles whose rows
may raise
an alarm are looked for about every second, also between the chunks of a long cycle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from schemas.seams import StatisticsStore
from schemas.statistics.work import Claim
from services import metrics
from services.errors import StoreUnavailable
from services.settings import Settings
from services.statistics.calendar import Calendar
from services.statistics.folds import Fold, layout_of
from services.statistics.visit import Bounds, Visitor

log = logging.getLogger(__name__)

SHARES: Final = 8
_CHUNK: Final = 500  # vehicles of a swap
_CLAIM: Final = 2000  # change records taken on at a time
_URGENT_EVERY_S: Final = 1.0
_URGENT_REST: Final = 4  # times what the last urgent pass took: a fleet of alarms must not starve all others
_URGENT_REST_MAX_S: Final = 5.0
_STALE_EVERY_S: Final = 600.0
_RETRY_FIRST_S: Final = 0.2
_RETRY_MAX_S: Final = 5.0
_JOIN_S: Final = 3600


class Statistics:
    """Keeps the statistics of its shares of the vehicles (vehicle_id % 8) up to date."""

    def __init__(
        self, settings: Settings, store: StatisticsStore, folds: Sequence[Fold], index: int = 0,
        bounds: Bounds | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings = settings.statistics
        self._store = store
        self._shares = [share for share in range(SHARES) if share % settings.statistics.processes == index]
        self.layout = layout_of(folds, settings.time_zone)
        self._visitor = Visitor(
            store, folds, Calendar(settings.time_zone), self.layout, settings.statistics.reorder_s, bounds
        )
        self._clock = clock
        self._stopping = threading.Event()
        self._urgent_at = 0.0
        self._stale_at = 0.0
        self._waiting: list[asyncio.Future[None]] = []
        self._hurry = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop``; the chunk under way is finished, the rest is left for the next run."""
        loop = asyncio.get_running_loop()
        watching = asyncio.create_task(self._watch(stop), name="statistics stop")
        retry_s, due = _RETRY_FIRST_S, 0.0
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="statistics") as thread:
                while not stop.is_set():
                    try:
                        asked = len(self._waiting)
                        if asked or self._clock() >= due:
                            due = self._clock() + self._settings.every_s
                            if await loop.run_in_executor(thread, self.cycle):
                                due = 0.0  # more of the same is there
                            elif asked:
                                self._caught_up(asked)
                        else:
                            await loop.run_in_executor(thread, self.urgent)
                        retry_s = _RETRY_FIRST_S
                    except StoreUnavailable as error:
                        metrics.STATISTICS_RESTARTS.inc()
                        log.warning("%s; trying again in %.1f s", error, retry_s)
                        await _wait(stop, retry_s)
                        retry_s, due = min(_RETRY_MAX_S, 2 * retry_s), 0.0
                        continue
                    if not self._waiting and due > self._clock():
                        self._hurry.clear()
                        pause = min(_URGENT_EVERY_S, due - self._clock())
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self._hurry.wait(), pause)
        finally:
            watching.cancel()
            for future in self._waiting:
                future.cancel()

    async def caught_up(self) -> None:
        """Return once a look at the changes that began after this call has found none that is left to do."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._hurry.set()
        await future

    def cycle(self) -> bool:
        """Do everything that waits now, in the caller's thread; True when there was something."""
        held = self._held()
        if self._clock() >= self._stale_at:
            self._stale_at = self._clock() + _STALE_EVERY_S
            if n := self._store.mark_stale(self.layout):
                log.warning("%d vehicles have statistics of another kind; they are computed again", n)
        claim = self._store.claim(held, urgent=False, limit=_CLAIM)
        self._show(claim, held)
        return self._take_on(claim, "regular")

    def urgent(self) -> bool:
        """The same for changes that may be alarms."""
        if self._clock() < self._urgent_at:
            return False
        begun = self._clock()
        done = self._take_on(self._store.claim(self._held(), urgent=True, limit=_CLAIM), "urgent")
        rest = min(_URGENT_REST_MAX_S, _URGENT_REST * (self._clock() - begun))
        self._urgent_at = self._clock() + max(_URGENT_EVERY_S, rest)
        return done

    # -- in the thread ----------------------------------------------------------------------------------

    def _held(self) -> list[int]:
        return self._store.hold(self._shares)

    def _take_on(self, claim: Claim, cause: str) -> bool:
        if not claim.change_ids:
            return False
        dirty = spans_of(claim)
        vehicles = sorted(dirty)
        judge: list[int] = []
        for at in range(0, max(1, len(vehicles)), _CHUNK):
            if self._stopping.is_set():
                return True
            if at and cause == "regular":
                self.urgent()
            chunk = {vehicle: dirty[vehicle] for vehicle in vehicles[at : at + _CHUNK]}
            with metrics.STATISTICS_SECONDS.labels("fold").time():
                outcome = self._visitor.visit(chunk)
            judge += outcome.rebuilt
            if at + _CHUNK >= len(vehicles):
                outcome.swap.done, outcome.swap.judge = claim.change_ids, judge
            with metrics.STATISTICS_SECONDS.labels("swap").time():
                swapped = self._store.swap(outcome.swap)
            judge += swapped.signs
            metrics.STATISTICS_VEHICLES.labels(cause).inc(len(chunk))
            metrics.STATISTICS_RECORDS.inc(outcome.records)
            metrics.STATISTICS_DAYS.inc(swapped.days)
            for flip in swapped.flips:
                log.warning(
                    "%s reports charging as %s current (%d of %d records of parked charging are above +1 A): it is "
                    "read %s from now on, and the statistics are computed again",
                    f"model {flip.model}" if flip.model is not None else f"vehicle {flip.vin}",
                    "positive" if flip.inverted else "negative", flip.above, flip.charging,
                    "inverted" if flip.inverted else "as it is",
                )  # fmt: skip
        return True

    def _show(self, claim: Claim, held: Sequence[int]) -> None:
        if len(claim.change_ids) < _CLAIM:
            waiting, oldest_s = len(claim.change_ids), claim.oldest_s
        else:
            waiting, oldest_s = self._store.behind(held)
        metrics.STATISTICS_CHANGES.set(waiting)
        metrics.STATISTICS_LAG_SECONDS.set(oldest_s)

    # -- in the loop ------------------------------------------------------------------------------------

    def _caught_up(self, asked: int) -> None:
        for future in self._waiting[:asked]:
            if not future.done():
                future.set_result(None)
        del self._waiting[:asked]

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopping.set()
        self._hurry.set()


def spans_of(claim: Claim) -> dict[int, list[tuple[int, int]]]:
    """Vehicle → spans of seconds that have changed, those within an hour of each other as one."""
    order = np.lexsort((claim.from_s, claim.vehicle_id))
    return _joined(
        zip(claim.vehicle_id[order].tolist(), claim.from_s[order].tolist(), claim.to_s[order].tolist(), strict=True)
    )


def _joined(lines: Iterable[tuple[int, int, int]]) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for vehicle, begin, end in lines:
        spans = found.setdefault(vehicle, [])
        if spans and begin <= spans[-1][1] + _JOIN_S:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((begin, end))
    return found


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
