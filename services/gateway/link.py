"""One connection's socket: bytes into the shared arena, answers out, reading held back when it must be.

What the bytes mean is the door's business.  A link never copies received bytes into an object of its
own, but for an incomplete packet that waits for its rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from services.certificates import names_of

if TYPE_CHECKING:
    from services.gateway.intake import Door, Intake

# Reasons for not reading a socket; it is read while none is set.
HELD: Final = 1  # too much waits for the journal
BLOCKED: Final = 2  # the peer does not take its answers
WAITING: Final = 4  # a password is being verified
TURN: Final = 8  # it has had its share of this tick
RATED: Final = 16  # it has sent more than a vehicle may in this time

READ_BYTES: Final = 64 * 1024
# A connection that sends without end gets this much per tick, so that the others get theirs.
TURN_BYTES: Final = 256 * 1024
# One that has not said who it is has a CONNECT or a login to send: of more, little is read at a time.
READ_NEW_BYTES: Final = 4 * 1024
TURN_NEW_BYTES: Final = 16 * 1024
# While held back each connection is read once more before it notices; little, as there may be many.
READ_HELD_BYTES: Final = 256
# Answers the peer has not taken before we stop reading from it.
WRITE_HIGH_BYTES: Final = 64 * 1024


class Link(asyncio.BufferedProtocol):
    """A connection of ``door``.  ``slot`` is its row in ``Connections``, -1 before and after."""

    # A dict of so many attributes takes 2 kB, half of what an idle connection costs.
    __slots__ = (
        "_at", "_made", "_pauses", "_soon", "_transport", "address", "carry", "client", "denied", "door", "edition",
        "ended_by_us", "ending_told", "errors", "extra", "identified", "intake", "known_as", "limited_s", "names",
        "peer", "penalty", "proven", "secure", "segment", "slot", "source", "tick", "uncounted", "vin",
    )  # fmt: skip

    def __init__(self, door: Door) -> None:
        self.door = door
        self.intake: Intake = door.intake
        self.slot = -1
        self.vin = ""  # the vehicle or platform it speaks for, once proven
        self.known_as = ""  # the last one it spoke for, for events told after a logout
        self.edition = 0  # GB/T: that of its login
        self.errors: tuple[str, float, int] = ("", 0.0, 0)  # reason of its last refused frame, since when, how many
        self.ending_told = False
        self.client = ""  # MQTT client id
        self.peer = ""
        self.secure = False  # over TLS
        self.names: frozenset[str] = frozenset()  # whom the peer's verified certificate is for
        self.carry = b""  # an incomplete packet
        self.tick = -1  # the tick in which it has a segment, and which
        self.segment = 0
        self.source: tuple[Any, int] = (None, 0)  # the group in which it is named as a source, and its number there
        self.ended_by_us = False
        self.extra: Any = None  # what the door keeps per connection
        self.address = ""  # what its limits are counted by; "": it has none
        self.proven = False  # it has said who it is, and may speak for it
        self.identified: Callable[[], None] | None = None  # said once, when it has
        self.denied = ""  # cause for which it is refused as soon as it has said what it wants
        self.limited_s = -1e9  # when its being limited was last told
        self.uncounted: Callable[[], None] | None = None  # said once, when it is gone
        self.penalty: Callable[[], None] | None = None  # said when it was ended for what it sent
        self._at = 0
        self._pauses = 0
        self._soon: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._made = False

    # -- asyncio -----------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made = True
        self._transport = cast("asyncio.Transport", transport)
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) and len(name) >= 2 else ""
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        encrypted = transport.get_extra_info("ssl_object")
        if encrypted is not None:
            self.secure = True
            self.names = names_of(encrypted.getpeercert())
        self.door.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the arena decides
        intake = self.intake
        at = intake.cursor
        if self.carry and self.tick != intake.tick_number:
            carried = len(self.carry)
            intake.view[at : at + carried] = self.carry
            at += carried
        self._at = at
        room = READ_BYTES if self.proven else READ_NEW_BYTES
        return intake.view[at : at + (READ_HELD_BYTES if intake.held else room)]

    def buffer_updated(self, nbytes: int) -> None:
        self.intake.received(self, self._at, nbytes)

    def eof_received(self) -> bool:
        self.door.ended(self)
        # Answers to what came before still go out; the door closes behind them. TLS has no half-open connection:
        # there what is not answered yet is sent again by the peer.
        return not self.secure

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the peer's ways of going do not differ
        if self.slot >= 0:
            self.door.closed(self)
        self._transport = None
        self._uncount()

    def prove(self) -> None:
        """It has said who it is, and may speak for it."""
        self.proven = True
        if self.identified is not None:
            self.identified()
            self.identified = None

    def never_came(self) -> None:
        """The socket was taken; unless ``connection_made`` was called, that was all."""
        if not self._made:
            self._uncount()

    def _uncount(self) -> None:
        if self.uncounted is not None:
            self.uncounted()
            self.uncounted = None

    def pause_writing(self) -> None:
        self.pause(BLOCKED)
        if self.slot >= 0:
            self.intake.meters.blocked_since_s[self.slot] = self.intake.clock()

    def resume_writing(self) -> None:
        self.resume(BLOCKED)
        if self.slot >= 0:
            self.intake.meters.blocked_since_s[self.slot] = float("inf")

    # -- for the door ------------------------------------------------------------------------------
    def write(self, data: bytes) -> None:
        if self._soon:
            data = b"".join((*self._soon, data))
            self._soon.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_soon(self, data: bytes) -> None:
        """Write at the end of the tick, together with what else is written by then."""
        if not self._soon:
            self.intake.unwritten.append(self)
        self._soon.append(data)

    def flush(self) -> None:
        if self._soon:
            self.write(b"")

    def close(self) -> None:
        """End the connection once what was written has left."""
        self.flush()
        self.ended_by_us = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now, whatever the peer has not taken."""
        self.ended_by_us = True
        if self._transport is not None:
            self._transport.abort()

    def pause(self, why: int) -> None:
        if not self._pauses and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._pauses |= why

    def resume(self, why: int) -> None:
        if not self._pauses & why:
            return
        self._pauses &= ~why
        if not self._pauses and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            if self.slot >= 0:
                self.intake.meters.read_again(self.slot, self.intake.clock())

    @property
    def rated(self) -> bool:
        """It is not read for now because it has sent too much."""
        return bool(self._pauses & RATED)

    @property
    def closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()
