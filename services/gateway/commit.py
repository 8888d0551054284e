"""Group commit: one journal append in flight, the next group filling meanwhile.

An answer leaves only from here, and only after ``append`` has returned.  When the journal is away the
group is kept and tried again; it is never dropped and never answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from schemas.batch import Door
from schemas.reasons import reason_name
from schemas.seams import JournalWriter
from services import metrics
from services.errors import JournalUnavailable
from services.gateway.connections import Connections
from services.gateway.group import Group

log = logging.getLogger("nevstream.gateway")

_RETRY_FIRST_S: Final = 0.05
_RETRY_MAX_S: Final = 2.0
# An append that takes longer is why frames wait.
_SLOW_S: Final = 1.0

# Compressing a large group takes milliseconds; zstd lets go of the GIL, so a thread keeps sockets moving.
_THREAD_FROM_BYTES: Final = 128 * 1024

DOOR_NAMES: Final = {int(Door.MQTT): "mqtt", int(Door.GBT_TCP): "gbt32960", int(Door.MQTT_BRIDGE): "mqtt_bridge"}


class Committer:
    """Owns the two groups.  ``filling`` takes frames and answers; ``kick`` says that it has some."""

    def __init__(
        self,
        journal: JournalWriter,
        connections: Connections,
        partitions: int,
        in_flight_bytes_max: int,
        clock: Callable[[], float],
        hold: Callable[[bool], None],
    ) -> None:
        self.filling = Group()
        self._spare = Group()
        self._journal = journal
        self._connections = connections
        self._partitions = partitions
        self._bytes_max = in_flight_bytes_max
        self._clock = clock
        self._hold = hold
        self._held = False
        self._writing_bytes = 0
        self._writing_since_s: float | None = None  # since when an append is under way
        self._writing_oldest_s: float | None = None
        self._away = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._after: list[Callable[[], None]] = []

    def kick(self) -> None:
        """Called at the end of each tick: commit what there is, and hold sockets back when it is too much."""
        if not self.filling.empty or self._after:
            self._idle.clear()
            self._wake.set()
        if not self._held and self.in_flight_bytes >= self._bytes_max:
            self._held = True
            metrics.READING_PAUSED.set(1)
            for door in DOOR_NAMES.values():
                metrics.LIMITS_REACHED.labels(door, "in_flight_bytes_max").inc()
            self._hold(True)
            log.warning(
                "%d bytes wait for the journal (limit %d, gateway.limits.in_flight_bytes_max): sockets are not read "
                "until half of them are durable",
                self.in_flight_bytes,
                self._bytes_max,
            )

    @property
    def in_flight_bytes(self) -> int:
        return self._writing_bytes + self.filling.held_bytes

    def lag(self) -> tuple[float, str]:
        """Seconds that the oldest frame has waited for the journal, and why; ``metrics.LAG_CAUSES``."""
        now_s = self._clock()
        waiting = [*self.filling.oldest_s.values()]
        if self._writing_oldest_s is not None:
            waiting.append(self._writing_oldest_s)
        if self._away:
            cause = "journal_away"
        elif self._writing_since_s is not None and now_s - self._writing_since_s > _SLOW_S:
            cause = "journal_slow"
        else:
            cause = "in_flight" if self._held else "working"
        return max(0.0, now_s - min(waiting)) if waiting else 0.0, cause

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run ``action`` once everything that is in the filling group now has been answered."""
        self._after.append(action)
        self.kick()

    async def flushed(self) -> None:
        """Returns when nothing waits for the journal."""
        await self._idle.wait()

    async def run(self) -> None:
        """Commit group after group, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not self.filling.empty or self._after:
                group, self.filling = self.filling, self._spare
                after, self._after = self._after, []
                self._writing_bytes = group.held_bytes
                self._writing_oldest_s = min(group.oldest_s.values(), default=None)
                if group.n or group.events:
                    if group.data_bytes >= _THREAD_FROM_BYTES:
                        records = await asyncio.to_thread(group.records, self._partitions)
                    else:
                        records = group.records(self._partitions)
                    await self._append(records)
                self._answer(group)
                self._count(group)
                group.clear()
                self._spare = group
                self._writing_bytes = 0
                self._writing_oldest_s = None
                for action in after:
                    action()
                metrics.IN_FLIGHT_BYTES.set(self.in_flight_bytes)
                if self._held and self.in_flight_bytes < self._bytes_max // 2:
                    self._held = False
                    metrics.READING_PAUSED.set(0)
                    log.info("the journal has caught up: sockets are read again")
                    self._hold(False)
            if not self._wake.is_set():
                self._idle.set()

    async def _append(self, records: list[tuple[int, bytes]]) -> None:
        delay_s, begun_s = _RETRY_FIRST_S, None
        while True:
            self._writing_since_s = self._clock()
            try:
                await self._journal.append(records)
            except JournalUnavailable as error:
                self._away = True
                if begun_s is None:
                    begun_s = self._clock()
                    log.warning("the journal is away, frames are kept and not answered until it is back: %s", error)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _RETRY_MAX_S)
                continue
            self._away, self._writing_since_s = False, None
            if begun_s is not None:
                log.info("the journal is back after %.1f s; nothing was lost", self._clock() - begun_s)
            return

    def _answer(self, group: Group) -> None:
        rows = self._connections
        view, merged = group.merged_answers(rows.serial, rows.unacked)
        links = rows.links
        for slot, _, begin, end, _ in merged:
            link = links[slot]
            if link is not None:
                link.write(bytes(view[begin:end]))

    def _count(self, group: Group) -> None:
        if not group.n:
            return
        now_s = self._clock()
        for door, oldest_s in group.oldest_s.items():
            metrics.ACK_SECONDS.labels(DOOR_NAMES[door]).observe(max(0.0, now_s - oldest_s))
        accepted, refused = group.counts()
        for door, count in accepted.items():
            metrics.FRAMES_RECEIVED.labels(DOOR_NAMES[door]).inc(count)
            metrics.FRAMES_ACKED.labels(DOOR_NAMES[door]).inc(count)
        for (door, reason), count in refused.items():
            metrics.FRAMES_REFUSED.labels(DOOR_NAMES[door], reason_name(reason)).inc(count)
            metrics.FRAMES_ACKED.labels(DOOR_NAMES[door]).inc(count)


def now_us() -> int:
    """Microseconds since 1970 UTC."""
    return time.time_ns() // 1000
