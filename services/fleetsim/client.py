"""One vehicle's connection: what MQTT and GB/T 32960 vehicles have in common.

Messages go out in order, at most ``window`` un-answered; after a lost connection it reconnects with
backoff and sends every un-answered message again.  Nothing is given up while the simulation runs.

Fast because it does nothing per message: a window's messages lie back to back in a chunk's buffer and
leave in one write, and the answers expected for them are known beforehand, so a read is checked by one
comparison.  Whatever does not compare equal takes the slow way: parsed, answer by answer.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from services.fleetsim import faults
from services.fleetsim.chunks import Segment
from services.fleetsim.noise import uniform
from services.fleetsim.stats import Stats

READ_BYTES: Final = 256 * 1024
_REST_BYTES_MAX: Final = 1024 * 1024  # an answer longer than this is not one
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
CUT: Final = "the link was cut"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How vehicles behave on the line.

    window: un-answered messages per vehicle · ack_timeout_s: reconnect when nothing is answered for so
    long · idle_s: heartbeat or ping after so long without sending · reissue: what was not answered when a connection
    was lost goes out as 0x03 (GB/T over TCP only) · connecting_max: connection attempts at once · tls: a context to
    speak TLS with, None in the clear · sources: addresses of this machine that vehicles connect from, in turn, each
    vehicle always from the same one (one address has some 28,000 ports to a target); none: the system chooses.
    """

    host: str = "127.0.0.1"
    mqtt_port: int = 1883
    gbt_port: int = 32960
    window: int = 10
    ack_timeout_s: float = 60.0
    connect_timeout_s: float = 10.0
    idle_s: float = 25.0
    keep_alive_s: int = 60
    password: str | None = None
    reissue: bool = False
    connecting_max: int = 256
    tls: ssl.SSLContext | None = None
    sources: tuple[str, ...] = ()


class Vehicle(asyncio.BufferedProtocol):
    """A vehicle and its connection, over and over.  Subclasses speak a protocol.

    ``answer_bytes`` is the size of the answer to one message when all is well.
    """

    answer_bytes = 0

    def __init__(self, index: int, vin: str, settings: ClientSettings, stats: Stats, buffer: bytearray) -> None:
        self.index = index
        self.vin = vin
        self.settings = settings
        self.stats = stats
        self.acked = 0  # messages answered without a gap
        self.sent = 0  # messages written on this connection or answered before
        self.closing = False  # nothing more will be added
        self.limit = 0  # base reports that are due
        self.reported = 0  # base reports sent
        self.window = settings.window  # the platform may ask for less
        self.idle_s = settings.idle_s
        self.last_write = 0.0
        self.now: Callable[[], float] = time.time  # what the vehicle's own clock says, for logins and logouts
        self._buffer = memoryview(buffer)  # shared: a read is consumed before the next one begins
        self._segments: deque[Segment] = deque()  # not yet answered in full
        self._early: set[int] = set()  # answered beyond the first un-answered one
        self._again = 0  # messages below this were sent on an earlier connection
        self._in_flight: deque[tuple[int, float]] = deque()  # (sent up to, when)
        self._rest = b""
        self._why = ""  # why we gave the connection up ourselves
        self._transport: asyncio.Transport | None = None
        self._ready = False
        self._blocked = False  # the socket takes no more
        self._opened: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[None] | None = None
        self._drained = asyncio.Event()  # closing, and everything is answered
        self._link: asyncio.Event | None = None  # set when there is a network to connect through; None: there is

    # -- what a protocol adds ------------------------------------------------------------------------
    @abstractmethod
    def _greeting(self) -> bytes:
        """First bytes of a connection (CONNECT, login)."""

    @abstractmethod
    def _farewell(self) -> bytes:
        """Last bytes of a connection (DISCONNECT, logout)."""

    @abstractmethod
    def _beat(self) -> bytes:
        """PINGREQ, heartbeat."""

    @abstractmethod
    def _parse(self, data: bytes) -> int:
        """Take whole answers from ``data``; returns the bytes consumed.  Calls ``_answered`` and the like."""

    @abstractmethod
    def _repeat(self, segment: Segment, begin: int, end: int) -> bytes | memoryview:
        """Messages ``begin..end - 1`` (within the segment) as they are sent a second time."""

    @property
    @abstractmethod
    def address(self) -> tuple[str, int]: ...

    # -- from the simulation ---------------------------------------------------------------------------
    def add(self, segment: Segment) -> None:
        """More messages."""
        if segment.count:
            self._segments.append(segment)
        else:
            segment.done()
        self._pump()

    def allow(self, limit: int) -> None:
        """Base reports below ``limit`` are due."""
        self.limit = limit
        self._pump()

    def finish(self) -> None:
        """Nothing more will be added: leave when everything is answered."""
        self.closing = True
        self._check_drained()

    def stop(self) -> None:
        """Send nothing new; leave when what was sent is answered."""
        ever_sent = max(self.sent, self._again)
        while self._segments and self._segments[-1].first >= ever_sent:
            self._segments.pop().done()
        if self._segments:
            last = self._segments[-1]
            last.count = min(last.count, ever_sent - last.first)
            if self.acked >= last.first + last.count:
                self._settle(self._segments.pop())
        self.finish()

    def cut(self, until: asyncio.Event | None = None) -> None:
        """The link is gone: the connection is lost, and there is no other before ``until`` is set."""
        self._link = until
        self._drop(CUT)

    def settle_rest(self) -> None:
        """Count what was answered of segments that were not answered in full; the simulation is over."""
        for segment in self._segments:
            segment.count = max(0, min(segment.count, self.acked - segment.first))
            self._settle(segment)
        self._segments.clear()

    @property
    def unanswered(self) -> int:
        return self.sent - self.acked

    @property
    def waits_for(self) -> str:
        """What keeps a report that is due from going out: a connection, answers (or the socket), or nothing."""
        if not self._ready:
            return "offline"
        return "window" if self._blocked or self.unanswered >= self.window else "unsent"

    def watch(self, now: float) -> None:
        """Once a second or so: heartbeat when idle, give the connection up when nothing is answered."""
        if self._transport is None or not self._ready:
            return
        if self._in_flight and now - self._in_flight[0][1] > self.settings.ack_timeout_s:
            self._drop(f"no answer for {self.settings.ack_timeout_s:g} s")
        elif now - self.last_write > self.idle_s:
            self._write(self._beat())

    async def live(self, gate: asyncio.Semaphore) -> None:
        """Connect, send, reconnect, until everything is answered.  Ends with an orderly farewell."""
        attempt = 0
        while not self._drained.is_set():
            if self._link is not None:
                await self._linked(self._link)
                continue
            if not await self._connect(gate):
                attempt += 1
                pause = min(BACKOFF_FIRST_S * 2 ** min(attempt - 1, 10), BACKOFF_MAX_S)
                jitter = 0.5 + uniform(1, self.index, attempt, 0)  # not all at the same instant
                await self._pause(pause * jitter)
                continue
            attempt = 0
            assert self._lost is not None
            drained = asyncio.ensure_future(self._drained.wait())
            try:
                await asyncio.wait((self._lost, drained), return_when=asyncio.FIRST_COMPLETED)
            finally:
                drained.cancel()
        await self._leave()
        self.stats.finished += 1

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._drained.wait(), seconds)
        except TimeoutError:
            return

    async def _linked(self, link: asyncio.Event) -> None:
        """Wait for the network, or for the end."""
        waits = [asyncio.ensure_future(event.wait()) for event in (link, self._drained)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._link is link:
            self._link = None

    async def _connect(self, gate: asyncio.Semaphore) -> bool:
        loop = asyncio.get_running_loop()
        self._opened, self._lost = loop.create_future(), loop.create_future()
        async with gate:
            try:
                async with asyncio.timeout(self.settings.connect_timeout_s):
                    await loop.create_connection(
                        lambda: self,
                        *self.address,
                        ssl=self.settings.tls,
                        server_hostname=self.address[0] if self.settings.tls else None,
                        local_addr=self._source,
                    )
                    await self._opened
            except (OSError, TimeoutError) as error:
                self.stats.failures += 1
                self.stats.went_wrong(_kind_of(error))
                self.stats.last_error = (
                    f"{self.vin} to {self.address[0]}:{self.address[1]}: {error or 'no answer in time'}"
                )
                if self._transport is not None:
                    self._transport.abort()
                return False
        self.stats.connects += 1
        return True

    @property
    def _source(self) -> tuple[str, int] | None:
        sources = self.settings.sources
        return (sources[self.index % len(sources)], 0) if sources else None

    async def _leave(self) -> None:
        if self._transport is None:
            return
        assert self._lost is not None
        self._transport.write(self._farewell())
        self._transport.close()
        try:
            await asyncio.wait_for(asyncio.shield(self._lost), 5.0)
        except TimeoutError:
            self._transport.abort()

    # -- asyncio.BufferedProtocol ----------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # not isinstance: uvloop's transport is no subclass of asyncio's
        self._transport = cast("asyncio.Transport", transport)
        self._why = ""
        if self._link is not None:  # cut while it connected
            self._drop(CUT)
            return
        self._transport.set_write_buffer_limits(high=READ_BYTES)
        self._rest = b""
        self._write(self._greeting())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        why = self._why or f"connection lost: {exc or 'closed by the platform'}"
        if not self._drained.is_set():
            self.stats.last_error = f"{self.vin}: {why}"
        if self._ready and not self._drained.is_set() and why != CUT:
            self.stats.went_wrong(why)
        if self._ready:
            self.stats.connected -= 1
            self.stats.drops += not self._drained.is_set()
        self._ready = self._blocked = False
        self._again = max(self._again, self.sent)
        self.sent = self.acked
        self._early.clear()
        self._in_flight.clear()
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(ConnectionError(why))
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._pump()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        if self._segments and not self._rest and not self._early:
            segment = self._segments[0]
            done = self.acked - segment.first
            count, odd = divmod(nbytes, self.answer_bytes)
            if (
                not odd
                and self.acked + count <= self.sent
                and segment.answers.startswith(data, done * self.answer_bytes)
            ):
                self._advance(count)
                self._pump()
                return
        if self._rest:
            data = self._rest + data
        used = self._parse(data)
        self._rest = data[used:]
        if len(self._rest) > _REST_BYTES_MAX:
            self._drop(f"{len(self._rest)} bytes from the platform that are no answer")
        self._pump()

    # -- inside ------------------------------------------------------------------------------------
    def _write(self, data: bytes | memoryview) -> None:
        assert self._transport is not None
        self.last_write = time.monotonic()
        self._transport.write(data)

    def _drop(self, why: str) -> None:
        self._why = why
        if self._transport is not None:
            self._transport.abort()

    def _welcomed(self) -> None:
        """The platform has accepted the connection."""
        if self._ready:
            return
        self._ready = True
        self.stats.connected += 1
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        self._pump()

    def _answered(self, sequence: int, *, refused: bool = False) -> None:
        """Message ``sequence`` has its answer (the slow way)."""
        if refused:
            self.stats.refused += 1
        if sequence == self.acked:
            count = 1
            while self.acked + count in self._early:
                self._early.discard(self.acked + count)
                count += 1
            self._advance(count)
        elif self.acked < sequence < self.sent:
            self._early.add(sequence)
        else:
            self.stats.unexpected += 1

    def _advance(self, count: int) -> None:
        now = time.monotonic()
        before = self.acked
        self.acked += count
        self.stats.acked += count
        self.stats.last_acked = now
        while self._in_flight and before < self.acked:
            upto, when = self._in_flight[0]
            part = min(upto, self.acked) - before
            self.stats.latencies.add(now - when, part)
            before += part
            if upto > self.acked:
                break
            self._in_flight.popleft()
        while self._segments and self.acked >= self._segments[0].first + self._segments[0].count:
            self._settle(self._segments.popleft())
        self._check_drained()

    def _settle(self, segment: Segment) -> None:
        """A segment is over: its first ``count`` messages were answered."""
        self.stats.rows += segment.fates.count(faults.ROW, 0, segment.count)
        self.stats.rejects += segment.fates.count(faults.REFUSED, 0, segment.count)
        segment.done()

    def _check_drained(self) -> None:
        if self.closing and not self._segments:
            self._drained.set()

    def _pump(self) -> None:
        """Write as many messages as window, due times and socket allow."""
        if not self._ready or self._blocked:
            return
        room = self.window - (self.sent - self.acked)
        for segment in self._segments:
            while room > 0 and self.sent < segment.first + segment.count:
                count = self._write_some(segment, self.sent - segment.first, room)
                if not count:
                    return  # nothing more is due, and what comes after it is not either
                room -= count
            if room <= 0:
                return

    def _write_some(self, segment: Segment, at: int, room: int) -> int:
        """Write up to ``room`` messages of ``segment`` from ``at`` on, all new or all repeated; returns how many."""
        assert at >= 0
        end = min(at + room, segment.count)
        while end > at and segment.due[end - 1] > self.limit:
            end -= 1
        repeated = self._again > self.sent
        if repeated:
            end = min(end, self._again - segment.first)
        count = end - at
        if count <= 0:
            return 0
        if repeated:
            self.stats.resent += count
            data = self._repeat(segment, at, end)
        else:
            self.stats.sent += count
            self.reported = segment.due[end - 1]
            data = segment.data[segment.begin(at) : segment.ends[end - 1]]
        self.sent += count
        self._write(data)
        if self.stats.first_sent is None:
            self.stats.first_sent = self.last_write
        self._in_flight.append((self.sent, self.last_write))
        return count


def _kind_of(error: OSError | TimeoutError) -> str:
    """Words for a connection attempt that failed, the same for all that failed so."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, ConnectionError) and not error.errno:
        return str(error)  # ours: what the platform answered
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"connecting: {os.strerror(error.errno) if error.errno else type(error).__name__}"
