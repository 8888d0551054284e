"""The arena that all sockets of a process read into, and the tick that empties it.

Once per turn of the event loop one kernel per door scans everything that arrived, whatever the
number of connections; its frames and answers go to the group that waits for the journal, odd packets
to the door's Python.  After a tick the arena is empty.  Nothing here knows a protocol.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

import numpy as np

from schemas.batch import I64, U8
from services import metrics
from services.gateway.columns import (
    F_ACK,
    F_LENGTH,
    F_REASON,
    F_SLOT,
    F_SOURCE,
    F_START,
    FRAME_COLUMNS,
    S_SEGMENT,
    SEG_AT,
    SEG_END,
    SEG_SCAN,
    SEG_SLOT,
    SEG_STATE,
    SEGMENT_COLUMNS,
    SLOW_COLUMNS,
)
from services.gateway.commit import Committer, now_us
from services.gateway.connections import Connections, State
from services.gateway.link import HELD, RATED, READ_BYTES, TURN, TURN_BYTES, TURN_NEW_BYTES, Link
from services.gateway.metering import Meters
from services.gateway.strangers import Strangers

log = logging.getLogger("nevstream.gateway")

_ARENA_BYTES: Final = 4 * 1024 * 1024
_SLOW_ROWS: Final = 4096

_GOES_ON: Final = (State.NEW, State.VEHICLE, State.PLATFORM)


class Door(Protocol):
    """A protocol's part of the gateway."""

    intake: Intake
    name: str
    number: int
    segments: list[int]  # this tick's, four integers each: slot, at, end, SEG_SCAN
    fresh_bytes: int  # read in this tick

    def passed_over(self, link: Link, frame: U8, reason: int, ack: int) -> None: ...
    def opened(self, link: Link) -> None: ...
    def ended(self, link: Link) -> None: ...
    def closed(self, link: Link) -> None: ...
    def end(self, link: Link, cause: str = "") -> None: ...
    def erred(self, link: Link, reason: int, ack: int) -> None: ...
    def overdue(self, link: Link) -> None: ...
    def dismiss(self, link: Link, cause: str, setting: str, text: str) -> None: ...
    def limited(self, link: Link, setting: str) -> None: ...
    def shut_down(self, link: Link) -> None: ...
    def scan(self, arena: U8, segments: I64) -> tuple[int, int]:
        """Run the kernel, refuse what it could not know; returns (frames, slow rows), keeps the rest."""
        ...

    def settle(self, frames: int) -> None:
        """Take frames and answers into the filling group."""
        ...

    def handle(self, link: Link, segment: I64, kind: int, start: int, length: int, code: int) -> None:
        """One slow row.  May move ``segment``'s SEG_AT, change the connection's state, close it."""
        ...


class Intake:
    """The arena and its tick, shared by the doors of a process."""

    def __init__(
        self,
        connections: Connections,
        meters: Meters,
        committer: Committer,
        packet_bytes_max: int,
        carry_bytes_max: int,
        entries_max: int,
        loop: asyncio.AbstractEventLoop,
        strangers: Strangers,
    ) -> None:
        # One more incomplete packet and one more read always fit behind the mark.
        self._full_at = max(_ARENA_BYTES, packet_bytes_max)
        self.arena: U8 = np.empty(self._full_at + 2 * (packet_bytes_max + READ_BYTES), np.uint8)
        self.view = memoryview(self.arena.data)
        self.cursor = 0
        self.tick_number = 0
        self.held = False
        self.connections = connections
        self.meters = meters
        self.committer = committer
        self.clock = loop.time
        self.doors: list[Door] = []
        self.frames: I64 = np.empty((entries_max, FRAME_COLUMNS), np.int64)
        self.slow: I64 = np.empty((_SLOW_ROWS, SLOW_COLUMNS), np.int64)
        self.now_s = loop.time()
        self.received_us = now_us()
        self._loop = loop
        self._strangers = strangers
        self._scheduled = False
        self.unwritten: list[Link] = []  # those with answers for the end of the tick
        self._held_links: list[Link] = []
        self._turned: list[Link] = []
        self._rated: list[tuple[Link, int]] = []  # those that have sent too much, and their serial
        self._carry_bytes = 0
        self._carry_bytes_max = carry_bytes_max

    def received(self, link: Link, at: int, nbytes: int) -> None:
        """``nbytes`` of ``link`` lie in the arena at ``at``, right behind its carried bytes if it has any."""
        door = link.door
        door.fresh_bytes += nbytes
        segments = door.segments
        if link.tick != self.tick_number:
            begin = at
            if link.carry:
                begin -= len(link.carry)
                self._carry_bytes -= len(link.carry)
                link.carry = b""
            link.tick = self.tick_number
            link.segment = len(segments)
            segments += (link.slot, begin, at + nbytes, SEG_SCAN)
        elif segments[link.segment + SEG_END] == at:
            segments[link.segment + SEG_END] = at + nbytes
        else:
            # Another connection was read in between: scan all of that first, then these bytes.
            fresh = bytes(self.view[at : at + nbytes])
            self.tick()
            self.feed(link, fresh)
            return
        self.cursor = at + nbytes
        share = TURN_BYTES if link.proven else TURN_NEW_BYTES
        if segments[link.segment + SEG_END] - segments[link.segment + SEG_AT] >= share:
            link.pause(TURN)
            self._turned.append(link)
        if self.held:
            link.pause(HELD)
            self._held_links.append(link)
        if self.cursor >= self._full_at:
            self.tick()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.tick)

    def feed(self, link: Link, fresh: bytes) -> None:
        """Put bytes into the arena as if they had just been read, behind ``link``'s carried ones."""
        at = self.cursor
        if link.tick != self.tick_number and link.carry:
            self.view[at : at + len(link.carry)] = link.carry
            at += len(link.carry)
        self.view[at : at + len(fresh)] = fresh
        self.received(link, at, len(fresh))

    def tick(self) -> None:
        """Scan what arrived.  Leaves the arena empty and the group ready to be committed."""
        self._scheduled = False
        self.now_s = self._loop.time()
        self.received_us = now_us()
        self.tick_number += 1
        for door in self.doors:
            if door.segments:
                segments = np.array(door.segments, np.int64).reshape(-1, SEGMENT_COLUMNS)
                door.segments.clear()
                self._scan(door, segments)
        self.cursor = 0
        for link in self.unwritten:
            link.flush()
        self.unwritten.clear()
        self.committer.kick()
        if self._turned:
            for link in self._turned:
                link.resume(TURN)
            self._turned.clear()

    def _scan(self, door: Door, segments: I64) -> None:
        rows = self.connections
        slots = segments[:, SEG_SLOT]
        state = rows.state[slots]
        # Bytes that prove nothing do not put off the deadline for the first packet.
        rows.last_seen_s[slots[state != State.NEW]] = self.now_s
        metrics.BYTES_RECEIVED.labels(door.name).inc(door.fresh_bytes)
        door.fresh_bytes = 0
        closing = state >= State.WAITING
        if closing.any():
            segments[closing, SEG_STATE] = -1
        begun = segments[:, SEG_AT].copy()
        while True:
            n_frames, n_slow = door.scan(self.arena, segments)
            if n_frames:
                self._judge(n_frames)
                n_frames = self._name_sources(n_frames)
            door.settle(n_frames)
            if n_slow:
                self.meters.count(slots[self.slow[:n_slow, S_SEGMENT]])
            for kind, index, start, length, code in self.slow[:n_slow].tolist():
                segment = segments[index]
                link = rows.links[int(segment[SEG_SLOT])]
                assert link is not None  # a row is freed in connection_lost, never within a tick
                door.handle(link, segment, kind, start, length, code)
                if rows.state[link.slot] not in _GOES_ON:
                    segment[SEG_STATE] = -1
                elif segment[SEG_STATE] > 1:
                    segment[SEG_STATE] = SEG_SCAN
            if not (segments[:, SEG_STATE] == SEG_SCAN).any():
                break
        left = segments[:, SEG_AT] < segments[:, SEG_END]
        moved = segments[:, SEG_AT] != begun
        self.meters.whole(slots[~left])
        if left.any():
            self.meters.partial(slots[left], moved[left], self.now_s)
            for slot, at, end, _ in segments[left].tolist():
                link = rows.links[slot]
                if link is not None and rows.state[slot] != State.CLOSING:
                    self._keep(link, at, end)
        for slot in self.meters.spend(slots, segments[:, SEG_AT] - begun).tolist():
            link = rows.links[slot]
            if link is not None and rows.state[slot] != State.CLOSING:
                self._slow_down(link)

    def _judge(self, n: int) -> None:
        """Count frames, and end connections that send nothing but what is refused."""
        frames = self.frames[:n]
        slots = frames[:, F_SLOT]
        self.meters.count(slots)
        good = frames[:, F_REASON] == 0
        if good.all():
            self.meters.refused[slots] = 0.0
            return
        for slot in self.meters.judge(slots, frames[:, F_LENGTH], good).tolist():
            self._overdone(slot)

    def refuses(self, link: Link, length: int) -> None:
        """Count a refused frame that Python looked at, as ``_judge`` does."""
        slots = np.array([link.slot])
        if len(self.meters.judge(slots, np.array([length]), np.array([False]))):
            self._overdone(link.slot)

    def _overdone(self, slot: int) -> None:
        link = self.connections.links[slot]
        if link is not None:
            text = "nothing but refused frames (gateway.limits.refused_bytes_max)"
            self._loop.call_soon(self._dismiss, link, int(self.connections.serial[slot]), text)

    def _dismiss(self, link: Link, serial: int, text: str) -> None:
        """Once its answers are on their way: what it has sent is kept, and it is told so."""
        if link.slot < 0 or self.connections.serial[link.slot] != serial:
            return
        if self.connections.state[link.slot] != State.CLOSING:
            link.door.dismiss(link, "refused_in_a_row", "refused_bytes_max", text)

    def _slow_down(self, link: Link) -> None:
        """It has sent more than a vehicle may: not read until ``refill`` finds that it may again."""
        link.door.limited(link, self.meters.short_of(link.slot))
        link.pause(RATED)
        self._rated.append((link, int(self.connections.serial[link.slot])))

    def refill(self, seconds: float) -> None:
        """``seconds`` have passed: fill the meters, read those again that may go on."""
        self.meters.fill(seconds)
        if not self._rated:
            return
        waiting, self._rated = self._rated, []
        for link, serial in waiting:
            if link.slot < 0 or self.connections.serial[link.slot] != serial:
                continue
            if self.meters.may_go_on(link.slot):
                self.connections.last_seen_s[link.slot] = self._loop.time()  # it was we who did not listen
                link.resume(RATED)
            else:
                self._rated.append((link, serial))

    def _keep(self, link: Link, at: int, end: int) -> None:
        """Keep an incomplete packet until its rest arrives."""
        if self._carry_bytes + end - at > self._carry_bytes_max:
            # Too many half packets: the one that would go beyond the bound pays for it.
            metrics.CONNECTIONS_REFUSED.labels(link.door.name, "memory").inc()
            log.warning("%s: %d bytes of incomplete packets are held, closing %s", link.door.name, end - at, link.peer)
            metrics.LIMITS_REACHED.labels(link.door.name, "in_flight_bytes_max").inc()
            link.door.end(link, "memory")
            return
        link.carry = bytes(self.view[at:end])
        self._carry_bytes += end - at

    def forget(self, link: Link) -> None:
        """``link`` is gone: its carried bytes no longer count."""
        self._carry_bytes -= len(link.carry)
        link.carry = b""

    def _name_sources(self, n: int) -> int:
        """Say where refused frames came from; accepted ones cost one look at a column.

        Those of strangers beyond their budget are passed over, and taken out.  Returns how many frames are left.
        """
        refused = np.flatnonzero(self.frames[:n, F_REASON])
        if not len(refused):
            return n
        beyond: list[int] = []
        for row in refused.tolist():
            frame = self.frames[row]
            link = self.connections.links[int(frame[F_SLOT])]
            assert link is not None
            reason, ack = int(frame[F_REASON]), int(frame[F_ACK])
            if self.keeps(link):
                frame[F_SOURCE] = self.source_of(link)
                link.door.erred(link, reason, ack)
            else:
                begin = int(frame[F_START])
                link.door.passed_over(link, self.arena[begin : begin + int(frame[F_LENGTH])], reason, ack)
                beyond.append(row)
        if beyond:
            left = np.delete(self.frames[:n], beyond, axis=0)
            n = len(left)
            self.frames[:n] = left
        return n

    def keeps(self, link: Link) -> bool:
        """May one more refused frame of ``link`` be kept?  Always, when it is known whose it is."""
        return link.proven or self._strangers.keeps(link.address, self.now_s)

    def source_of(self, link: Link) -> int:
        """Number of ``link`` among the sources of the filling group."""
        group = self.committer.filling
        group.refused += 1
        if link.source[0] is not group.sources:
            group.sources.append({"peer": link.peer, "vin": link.vin, "client": link.client})
            link.source = (group.sources, len(group.sources))
        return link.source[1]

    def hold(self, held: bool) -> None:
        """Stop reading sockets (each at its next bytes), or read them again."""
        self.held = held
        if not held:
            links, self._held_links = self._held_links, []
            now_s = self._loop.time()
            self.meters.all_read_again(now_s)
            for link in links:
                if link.slot >= 0:
                    self.connections.last_seen_s[link.slot] = now_s  # it was we who did not listen
                    link.resume(HELD)
