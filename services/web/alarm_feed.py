"""News of alarms for those who listen: one reader of the events table per process, however many clients.

Every client has only a cursor.  The reader keeps the newest events in memory and wakes whoever waits; a client that
has fallen behind them, or resumes at an old id, reads the table itself.  So a slow client costs nothing, misses
nothing, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from schemas.alarms import AlarmDesk, event_document
from services import metrics
from services.errors import Unavailable
from services.web.problems import RETRY_AFTER_S, ProblemError

log = logging.getLogger(__name__)

POLL_S: Final = 0.5
HEARTBEAT_S: Final = 15.0  # proxies close connections that say nothing for long
_AWAY_S: Final = 2.0
_RECENT_MAX: Final = 2_000
_AT_ONCE: Final = 200


class Told(NamedTuple):
    """An event: its id, its name, and the document that webhooks get, too."""

    event_id: int
    event: str
    document: dict[str, Any]
    fleet: str | None = None  # of the vehicle, when the event was read


class Missed(NamedTuple):
    """Events after ``after`` are no longer kept (or never were): the client has to read the list again."""

    after: int
    oldest: int
    newest: int


class AlarmFeed:
    """``follow`` is the whole of it.  ``close`` ends every client, for a process that stops."""

    def __init__(self, desk: AlarmDesk, clients_max: int) -> None:
        self._desk, self._clients_max = desk, clients_max
        self._recent: deque[Told] = deque()
        self._complete_from = 0  # every event beyond this id is in _recent
        self._newest = 0
        self._moved = asyncio.Event()
        self._clients = 0
        self._closed = False
        self._reader: asyncio.Task[None] | None = None

    @property
    def clients(self) -> int:
        return self._clients

    def check(self) -> None:
        """Raises ``ProblemError`` (503) when there is no place left."""
        if self._clients >= self._clients_max:
            raise ProblemError(
                503, "too-many-listeners", "Too many clients listen already",
                f"{self._clients} clients follow the stream, which is the most (alarms.stream_clients_max).",
                "Close one, raise the setting, or ask /v1/alarms every now and then.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )  # fmt: skip

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[None]:
        """A place among the clients, after :meth:`check`."""
        self._clients += 1
        metrics.ALARM_STREAM_CLIENTS.inc()
        try:
            self._start()
            yield
        finally:
            self._clients -= 1
            metrics.ALARM_STREAM_CLIENTS.dec()
            if not self._clients and self._reader is not None:
                self._reader.cancel()
                self._reader = None

    async def follow(self, after: int | None, fleets: Sequence[str] | None) -> AsyncIterator[list[Told] | Missed]:
        """Events beyond ``after`` (None: from now on) as they come; an empty list now and then when none do.

        ``fleets``: only events of vehicles of these, for a tenant; None: all.  Only within :meth:`client`.  Ends when
        the feed is closed.
        """
        oldest, newest = await self._bounds()
        cursor = newest if after is None else after
        if cursor > newest or (0 < cursor < oldest - 1):
            yield Missed(cursor, oldest, newest)
            cursor = newest if cursor > newest else oldest - 1
        while not self._closed:
            moved = self._moved
            try:
                batch = await self._beyond(cursor)
            except Unavailable:
                batch = []  # the reader says it in the log; the client is none the worse for waiting
            if batch:
                cursor = batch[-1].event_id
                yield [told for told in batch if fleets is None or told.fleet in fleets]
                continue
            try:
                await asyncio.wait_for(moved.wait(), HEARTBEAT_S)
            except TimeoutError:
                yield []

    def close(self) -> None:
        self._closed = True
        self._wake()

    # -- inside ------------------------------------------------------------------------------------
    def _start(self) -> None:
        if self._reader is None or self._reader.done():
            self._recent.clear()
            self._newest = -1
            self._reader = asyncio.create_task(self._read(), name="alarm stream")

    async def _bounds(self) -> tuple[int, int]:
        while True:
            try:
                return await self._desk.event_bounds()
            except Unavailable:
                await asyncio.sleep(_AWAY_S)

    async def _read(self) -> None:
        away = False
        while not self._closed:
            try:
                if self._newest < 0:
                    _, self._newest = await self._desk.event_bounds()
                    self._complete_from = self._newest
                    self._wake()
                found = _told((await self._desk.events(self._newest, _AT_ONCE)).dicts())
            except Unavailable as error:
                if not away:
                    log.warning("the stream of alarms waits: %s", error)
                away = True
                await asyncio.sleep(_AWAY_S)
                continue
            away = False
            if found:
                self._recent.extend(found)
                while len(self._recent) > _RECENT_MAX:
                    self._complete_from = self._recent.popleft().event_id
                self._newest = found[-1].event_id
                self._wake()
            if len(found) < _AT_ONCE:
                await asyncio.sleep(POLL_S)

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _beyond(self, cursor: int) -> list[Told]:
        """The next events, from memory if they are all there; [] when there are none."""
        if cursor >= self._newest:
            return []
        if cursor < self._complete_from:
            return _told((await self._desk.events(cursor, _AT_ONCE)).dicts())
        return [told for told in self._recent if told.event_id > cursor][:_AT_ONCE]


def _told(rows: list[dict[str, Any]]) -> list[Told]:
    return [
        Told(
            row["event_id"],
            row["event"],
            event_document(row["event_id"], row["occurred_at"].isoformat(), row["event"], row["body"]),
            row.get("fleet"),
        )
        for row in rows
    ]


def line(told: Told) -> bytes:
    """An event as server-sent events have it."""
    data = orjson.dumps(told.document).decode()
    return f"id: {told.event_id}\nevent: {told.event}\ndata: {data}\n\n".encode()
