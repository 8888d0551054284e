"""Commands on their way down to connected vehicles: claimed, sent, sent again, matched with their answers.

Section 10 of the timing rules: unanswered, a command goes out again after a while, and ends after three times.
One is in flight per vehicle, over GB/T 32960 TCP when the vehicle is logged in there, else over MQTT when it has
subscribed to its downlink.  It must never hold up frames: it polls once in a while, and while the store is away
nothing is sent and what is known waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from schemas.downlink import Claimed, CommandQueue, Outcome
from schemas.gbt32960.commands import Ack, Edition, ack_name
from schemas.gbt32960.downlink import KINDS, DownlinkError, build_command
from schemas.gbt32960.frame import AT_ACK, AT_COMMAND
from schemas.gbt32960.reference import decode_frame
from services import metrics
from services.errors import StoreUnavailable
from services.gateway.link import Link
from services.settings import Commands

log = logging.getLogger("nevstream.gateway")

_PAGE: Final = 500
_TIDY_EVERY_S: Final = 10.0
# A claimed command that nobody has touched for so much longer than a resend takes: its gateway is gone.
_STALE_AFTER: Final = 3.0


class Lower(Protocol):
    """A door, as far as it sends commands."""

    number: int

    @property
    def by_vin(self) -> Mapping[str, Link]:
        """Who is connected, subscribed or not."""
        ...

    def reachable(self, vin: str) -> Link | None:
        """The connection over which ``vin`` can be sent a command now."""
        ...

    def lower(self, link: Link, frame: bytes) -> None:
        """Send a command's frame."""
        ...


@dataclass(slots=True)
class Flight:
    """A command that has been sent and not been answered."""

    claimed: Claimed
    door: Lower
    link: Link
    serial: int
    frame: bytes
    attempts: int
    sent_s: float
    delivered: bool = field(default=False)


class Downlink:
    """``doors`` in order of preference; ``origin`` is this process's name in the table; ``clock`` the loop's."""

    def __init__(
        self,
        queue: CommandQueue,
        doors: Sequence[Lower],
        origin: int,
        settings: Commands,
        serial_of: Callable[[Link], int],
        clock: Callable[[], float],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._queue = queue
        self._doors = doors
        self._origin = origin
        self._settings = settings
        self._serial_of = serial_of
        self._clock = clock
        self._now = now
        self.flights: dict[str, Flight] = {}
        self._outcomes: list[Outcome] = []
        self._after = 0
        self._tidied_s = float("-inf")
        self._wake = asyncio.Event()
        self._away = False

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.poll_s)
            self._wake.clear()
            await self.turn()

    async def turn(self) -> None:
        """Write what is known, send again what is overdue, claim and send what is queued for those who are here."""
        try:
            self._resend()
            await self._write()
            if self._clock() - self._tidied_s >= _TIDY_EVERY_S:
                await self._queue.tidy(_STALE_AFTER * self._settings.resend_s, self._settings.attempts_max)
                self._tidied_s = self._clock()
            await self._claim()
            await self._write()
        except StoreUnavailable as error:
            if not self._away:
                log.warning("commands to vehicles wait until the store is back: %s", error)
            self._away = True
            return
        if self._away:
            log.info("the store is back: commands to vehicles go on")
            self._away = False

    async def hand_back(self) -> None:
        """The gateway stops: what is in flight is queued again, for whoever the vehicle connects to next."""
        for flight in list(self.flights.values()):
            most = self._settings.attempts_max
            self._end(flight, "queued" if flight.attempts < most else "failed", error="the gateway was stopped")
        try:
            await self._write()
        except StoreUnavailable as error:
            log.warning("commands in flight could not be handed back, they are found again later: %s", error)

    def answered(self, link: Link, frame: bytes) -> bool:
        """Whether ``frame`` answers the command that is in flight to ``link``'s vehicle; it is settled then."""
        flight = self.flights.get(link.vin)
        if flight is None or frame[AT_COMMAND] != KINDS[flight.claimed.kind]:
            return False
        tree = decode_frame(frame)
        ack, body = frame[AT_ACK], tree["body"]
        if ack == Ack.COMMAND and not (body and "params" in body):
            return False  # a command of its own, not an answer sent with the wrong flag
        good = ack in (Ack.SUCCESS, Ack.COMMAND)
        self._end(
            flight,
            "answered" if good else "failed",
            ack=ack,
            answer=body if body is not None else {"unreadable": tree.get("error", "")},
            answer_frame=frame,
            error=None if good else f"the terminal answered 0x{ack:02x} ({ack_name(ack)})",
        )
        self._wake.set()
        return True

    def delivered(self, link: Link) -> None:
        """MQTT: the client has acknowledged the publish."""
        flight = self.flights.get(link.vin)
        if flight is not None and flight.link is link and not flight.delivered:
            flight.delivered = True
            self._outcomes.append(self._outcome(flight, "sent", delivered=True))
            self._wake.set()

    # -- inside ------------------------------------------------------------------------------------
    def _resend(self) -> None:
        most = self._settings.attempts_max
        for flight in list(self.flights.values()):
            link = flight.link
            gone = link.slot < 0 or self._serial_of(link) != flight.serial or link.closing or link.ending_told
            if gone:
                error = "the connection broke before the answer"
                self._end(flight, "queued" if flight.attempts < most else "failed", error=error)
            elif flight.door.reachable(flight.claimed.vin) is not link:
                # logged out or unsubscribed: the connection may be another vehicle's by now
                error = "the vehicle left before the answer"
                self._end(flight, "queued" if flight.attempts < most else "failed", error=error)
            elif self._clock() - flight.sent_s >= self._settings.resend_s:
                if flight.attempts >= most:
                    self._end(flight, "failed", error=f"no answer after {flight.attempts} attempts")
                    continue
                flight.attempts += 1
                flight.sent_s = self._clock()
                flight.door.lower(flight.link, flight.frame)
                self._outcomes.append(self._outcome(flight, "sent", resent=True))
                metrics.COMMANDS_SENT.inc()

    async def _claim(self) -> None:
        if not any(door.by_vin for door in self._doors):
            return
        page = await self._queue.queued(self._after, _PAGE)
        # the next page next time, from the beginning again after the last: vehicles that are away hold up nobody
        self._after = page[-1][0] if len(page) == _PAGE else 0
        room = self._settings.in_flight_max - len(self.flights)
        here = [number for number, vin in page if vin not in self.flights and self._reachable(vin)][: max(0, room)]
        for claimed in await self._queue.claim(here, self._origin) if here else ():
            self._send(claimed)

    def _reachable(self, vin: str) -> tuple[Lower, Link] | None:
        for door in self._doors:
            if (link := door.reachable(vin)) is not None:
                return door, link
        return None

    def _send(self, claimed: Claimed) -> None:
        found = self._reachable(claimed.vin)
        if found is None:
            again = Outcome(claimed.command_id, "queued", claimed.attempts - 1)
            self._outcomes.append(again)
            return
        door, link = found
        edition = claimed.edition or link.edition or Edition.E2016
        try:
            frame = build_command(claimed.kind, claimed.body, edition, claimed.vin, int(self._now()))
        except DownlinkError as error:
            self._outcomes.append(Outcome(claimed.command_id, "failed", claimed.attempts - 1, error=str(error)))
            return
        flight = Flight(claimed, door, link, self._serial_of(link), frame, claimed.attempts, self._clock())
        self.flights[claimed.vin] = flight
        door.lower(link, frame)
        self._outcomes.append(self._outcome(flight, "sent"))
        metrics.COMMANDS_SENT.inc()

    def _outcome(self, flight: Flight, state: str, **more: object) -> Outcome:
        return Outcome(
            flight.claimed.command_id, state, flight.attempts, flight.door.number, flight.frame, **more  # type: ignore[arg-type]
        )  # fmt: skip

    def _end(self, flight: Flight, state: str, **more: object) -> None:
        del self.flights[flight.claimed.vin]
        self._outcomes.append(self._outcome(flight, state, **more))
        metrics.COMMANDS_ENDED.labels(state).inc()

    async def _write(self) -> None:
        if self._outcomes:
            writing, self._outcomes = self._outcomes, []
            try:
                await self._queue.record(writing, self._origin)
            except BaseException:
                self._outcomes = writing + self._outcomes
                raise
