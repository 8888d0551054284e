"""What both doors share: rows opened and freed, one connection per vehicle, ends and deadlines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from schemas.batch import I64, Codec
from schemas.gbt32960.frame import AT_VIN, FRAME_BYTES_MIN
from schemas.gbt32960.replies import reply
from schemas.keys import partition_of
from schemas.link_events import Event
from schemas.reasons import reason_name
from services import metrics
from services.gateway.admission import Admission
from services.gateway.columns import (
    F_ACK,
    F_CODEC,
    F_DETAIL,
    F_LENGTH,
    F_PARTITION,
    F_REASON,
    F_SLOT,
    F_SOURCE,
    F_START,
    FRAME_COLUMNS,
)
from services.gateway.connections import Connections, State
from services.gateway.events import Events
from services.gateway.intake import Intake
from services.gateway.link import Link
from services.settings import Settings

log = logging.getLogger("nevstream.gateway")

# A connection that we have ended has this long to take its last bytes.
_LINGER_S: Final = 10.0
# One that is to be refused has this long to say what it wants.
_DENIED_S: Final = 2.0
# A connection that is held back again and again is one event per this long.
_LIMITED_APART_S: Final = 10.0

# Ends of connections that had not said who they are, for which their address may make fewer new ones.
_PENALTIES: Final = ("violation", "slow_sender", "refused_in_a_row")

# What a peer is told that is refused for a limit, by cause.
DENIALS: Final = {
    "limit": "all connections of this gateway are taken: try again later",
    "address_limit": "too many connections from your address: try again later",
    "connect_rate": "too many new connections from your address: try again later",
}


class BaseDoor:
    """Subclasses name themselves and bring ``scan``, ``settle``, ``handle``, ``told`` and ``ended``."""

    name: str
    number: int
    of_vehicles = True  # each connection is one vehicle's, so the limits of one vehicle hold

    def __init__(self, settings: Settings, intake: Intake, admission: Admission, events: Events) -> None:
        self.settings = settings
        self.limits = settings.gateway.limits
        self.intake = intake
        self.admission = admission
        self.events = events
        self.rows: Connections = intake.connections
        self.meters = intake.meters
        self.segments: list[int] = []
        self.fresh_bytes = 0
        self.by_vin: dict[str, Link] = {}
        self.counts: I64 = np.zeros(3, np.int64)
        # ``downlink.py``: what may answer a command that went down, and whether it does; a PUBACK; is anything awaited
        self.answered: Callable[[Link, bytes], bool] = lambda link, frame: False
        self.delivered: Callable[[Link], None] = lambda link: None
        self.waits_for_answers: Callable[[], bool] = lambda: False
        self._open = metrics.CONNECTIONS.labels(self.name)
        self._one: I64 = np.zeros((1, FRAME_COLUMNS), np.int64)
        self._one[0, F_CODEC] = Codec.GBT32960

    def factory(self) -> Link:
        return Link(self)  # type: ignore[arg-type]  # the concrete doors complete the protocol

    # -- the life of a connection ------------------------------------------------------------------
    def opened(self, link: Link) -> None:
        timeout_s = self.limits.first_packet_timeout_s
        slot = self.rows.open(link, self.intake.clock(), min(timeout_s, _DENIED_S) if link.denied else timeout_s)
        if slot is None:
            self.turn_away(link, "limit")
            link.abort()
            return
        link.slot = slot
        self.meters.fit(len(self.rows.links))
        self.meters.open(slot)
        if not self.of_vehicles:
            self.meters.platform(slot)
            link.prove()
        self._open.inc()

    def closed(self, link: Link) -> None:
        """The socket is gone: what it had sent is still scanned, then its row is free."""
        if link.tick == self.intake.tick_number:
            self.intake.tick()
        if not link.ended_by_us and self.rows.state[link.slot] != State.CLOSING:
            self.left_over(link)
        self.gone(link, "peer")
        self.intake.forget(link)
        self.unbind(link)
        self.meters.close(link.slot)
        self.rows.close(link.slot)
        link.slot = -1
        self._open.dec()

    def ended(self, link: Link) -> None:
        """The peer will send no more; answers to what it sent still go out."""
        if link.slot < 0:
            link.close()
            return
        if link.tick == self.intake.tick_number:
            self.intake.tick()
        if self.rows.state[link.slot] != State.CLOSING:
            self.left_over(link)
            self.gone(link, "peer")
            self.shut(link)
        self.intake.committer.after_commit(link.close)

    def left_over(self, link: Link) -> None:
        """The stream ended; ``link.carry`` is what never became whole."""

    def shut(self, link: Link) -> None:
        """From now on nothing that comes in counts."""
        self.rows.state[link.slot] = State.CLOSING
        self.rows.last_seen_s[link.slot] = self.intake.now_s
        self.rows.timeout_s[link.slot] = _LINGER_S
        self.meters.close(link.slot)

    def end(self, link: Link, cause: str = "", detail: str = "") -> None:
        """Close a connection from our side; bytes already written still leave.  ``cause`` "": it has been told."""
        if cause:
            self.gone(link, cause, detail)
        if link.slot >= 0:
            self.shut(link)
        link.close()

    def closed_unheard(self, cause: str, peer: str, address: str) -> None:
        """A connection was closed before it became one of ours."""
        self.refused(cause)
        self.events.tell(Event.REFUSED, self.number, cause, peer=peer, address=address)

    def dismiss(self, link: Link, cause: str, setting: str, text: str) -> None:
        """End a connection that has reached a limit; ``text`` for who can be told."""
        metrics.LIMITS_REACHED.labels(self.name, setting).inc()
        if link.known_as:
            self.refused(cause)
        else:
            self.turn_away(link, cause, detail=text)
        self.farewell(link, cause, text)

    def farewell(self, link: Link, cause: str, text: str) -> None:
        """Tell a peer why it is dismissed, where there are words for it, and close."""
        self.end(link, cause, text)

    def limited(self, link: Link, setting: str) -> None:
        """A connection is not read for a while because it sends too fast."""
        metrics.LIMITS_REACHED.labels(self.name, setting).inc()
        now_s = self.intake.now_s
        if now_s - link.limited_s >= _LIMITED_APART_S:
            link.limited_s = now_s
            self.events.tell(Event.LIMITED, self.number, setting.removesuffix("_max"), link=link)

    def slow(self, link: Link) -> None:
        """A packet has not become whole in time."""
        text = "a packet or frame must be whole in time (gateway.limits.packet_timeout_s)"
        self.dismiss(link, "slow_sender", "packet_timeout_s", text)

    def deaf(self, link: Link) -> None:
        """The peer does not take its answers: there is no telling it."""
        metrics.LIMITS_REACHED.labels(self.name, "answer_timeout_s").inc()
        self.refused("answers_unread")
        self.gone(link, "answers_unread")
        link.abort()

    def refused(self, cause: str) -> None:
        metrics.CONNECTIONS_REFUSED.labels(self.name, cause).inc()

    # -- what is told of it ------------------------------------------------------------------------
    def turn_away(self, link: Link, cause: str, vin: str = "", detail: str = "") -> None:
        """A connection, or a login on it, is refused."""
        if cause in _PENALTIES and link.penalty is not None:
            link.penalty()
        self.refused(cause)
        self.events.tell(Event.REFUSED, self.number, cause, link=link, vin=vin, detail=detail)

    def gone(self, link: Link, cause: str, detail: str = "") -> bool:
        """A connection that had spoken for somebody ends.  Told once; returns whether it was now."""
        if link.ending_told or not link.known_as:
            return False
        link.ending_told = True
        self.events.settle_errors(self.number, link)
        if cause == "peer" and self.rows.state[link.slot] == State.NEW:
            cause = "logout"
        self.events.tell(Event.CLOSED, self.number, cause, link=link, detail=detail)
        return True

    def erred(self, link: Link, reason: int, ack: int) -> None:
        """A frame was refused, and answered with ``ack`` where that is not 0."""
        self.events.erred(self.number, link, reason_name(reason), f"answered with 0x{ack:02x}" if ack else "")

    # -- vehicles ----------------------------------------------------------------------------------
    def certified(self, link: Link, *names: str, required: bool) -> str:
        """Why ``link`` may not speak for who has these ``names``, going by its TLS certificate; "" when it may."""
        if not link.names:
            return "a client certificate that names the VIN is required here (TLS)" if required else ""
        if link.names.isdisjoint(name.upper() for name in names):
            return f"the client certificate is for {', '.join(sorted(link.names)[:3])[:120]}"
        return ""

    def bind(self, link: Link, state: State, identification: bytes, timeout_s: float, how: str) -> None:
        """``link`` speaks for ``identification`` (17 bytes) from now on; an older connection of the same is closed.

        ``how`` is told: protocol, version or edition.
        """
        vin = identification.rstrip(b"\0").decode("ascii")
        again = link.vin == vin
        self.unbind(link)
        older = self.by_vin.get(vin)
        self.by_vin[vin] = link
        link.vin = link.known_as = vin
        self.rows.bind(link.slot, state, identification)
        self.meters.known(link.slot)
        link.prove()
        self.alive(link, timeout_s)
        if older is not None:
            self.refused("taken_over")
            self.events.settle_errors(self.number, older)
            self.events.tell(Event.REPLACED, self.number, "taken_over", link=older, by_peer=link.peer)
            older.ending_told = True
            self.replaced(older)
        if not again:
            link.ending_told = False
            self.events.tell(Event.CONNECTED, self.number, link=link, detail=how)

    def unbind(self, link: Link) -> None:
        if link.vin and self.by_vin.get(link.vin) is link:
            del self.by_vin[link.vin]
        link.vin = ""
        link.source = (None, 0)  # frames refused from now on name what it is from now on

    def alive(self, link: Link, timeout_s: float) -> None:
        """Count the connection's silence from now, against ``timeout_s``."""
        self.rows.last_seen_s[link.slot] = self.intake.now_s
        self.rows.timeout_s[link.slot] = timeout_s

    def replaced(self, link: Link) -> None:
        """The same vehicle has connected anew."""
        self.end(link)

    def overdue(self, link: Link) -> None:
        """Silent for too long."""
        self.silent(link)
        self.end(link)

    def silent(self, link: Link) -> None:
        """Tell that ``link`` is ended for its silence."""
        new = self.rows.state[link.slot] == State.NEW
        setting = "first_packet_timeout_s" if new and not link.known_as else "idle_timeout_s"
        metrics.LIMITS_REACHED.labels(self.name, setting).inc()
        if new and not link.known_as:
            self.events.tell(Event.REFUSED, self.number, link.denied or "no_login", link=link)
        self.refused("timeout")
        self.gone(link, "timeout")

    def unregistered(self) -> None:
        """The registry has changed: vehicles that are no longer in it go."""
        for vin in self.admission.unknown(self.by_vin):
            self.refused("unknown_vin")
            self.end(self.by_vin[vin], "unknown_vin")

    def passed_over(self, link: Link, frame: Any, reason: int, ack: int) -> None:
        """A refused frame of a stranger that is not kept: counted, answered with ``ack`` (0: not), told of in sum."""
        name = reason_name(reason)
        metrics.FRAMES_REFUSED.labels(self.name, name).inc()
        metrics.FRAMES_NOT_KEPT.labels(self.name, name).inc()
        if ack:
            link.write_soon(reply(frame.tobytes(), ack))
        self.events.passed_over(self.number, link, name)

    # -- one frame at a time -----------------------------------------------------------------------
    def take(
        self,
        link: Link,
        frame: Any,
        reason: int = 0,
        detail: int = 0,
        ack: int = 0,
        told: bool = True,
    ) -> None:
        """Journal one frame (a u8 array) that Python looked at, answered with ``ack`` once durable (0: not).

        ``told``: a refusal is an event.  One of a stranger beyond its address's budget is answered and counted only.
        """
        if reason:
            self.intake.refuses(link, len(frame))
            if not self.intake.keeps(link):
                self.passed_over(link, frame, reason, ack)
                return
        group = self.intake.committer.filling
        row = self._one[0]
        row[F_START] = 0
        row[F_LENGTH] = len(frame)
        row[F_SLOT] = link.slot
        row[F_REASON] = reason
        row[F_DETAIL] = detail
        named = len(frame) >= FRAME_BYTES_MIN
        row[F_PARTITION] = (
            partition_of(frame, AT_VIN, self.rows.partitions) if named else self.rows.partition[link.slot]
        )
        row[F_SOURCE] = self.intake.source_of(link) if reason else 0
        if reason and told:
            self.erred(link, reason, ack)
        row[F_ACK] = ack
        group.absorb(frame, self._one, 1, self.number, self.intake.received_us, self.intake.now_s)
        if ack:
            group.answer_frames(frame, self._one, 1, self.rows.serial)
