"""Events of connections on their way to the journal: told here, written with the next group, bounded.

At most so many per second and process, and so many that wait: the rest is counted in a metric, never kept.
An event must never hold up a frame, and no answer waits for one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from schemas.keys import partition_of_vin
from schemas.link_events import Event, LinkEvent, encode
from services import metrics
from services.gateway.commit import Committer, now_us
from services.gateway.link import Link
from services.gateway.strangers import Strangers

# While the journal is away events wait with the frames; more than this of them are not worth the memory.
WAITING_MAX: Final = 10_000
# One connection that sends nothing but bad frames is one event per reason and this long, with a count.
ERRORS_APART_S: Final = 10.0


class Events:
    """``origin`` names this process in what it tells; ``clock`` is the loop's."""

    def __init__(
        self,
        committer: Committer,
        partitions: int,
        per_s_max: int,
        clock: Callable[[], float],
        strangers: Strangers,
    ) -> None:
        self.origin = secrets.randbits(62)
        self._committer = committer
        self._partitions = partitions
        self._per_s_max = per_s_max
        self._clock = clock
        self._strangers = strangers
        self._number = 0
        self._second = 0
        self._told = 0

    def tell(
        self,
        event: Event,
        door: int,
        cause: str = "",
        *,
        link: Link | None = None,
        vin: str = "",
        by_peer: str = "",
        detail: str = "",
        times: int = 1,
        peer: str = "",
        address: str = "",
    ) -> None:
        """One event, of ``link``'s peer and client; ``vin`` where the link does not speak for it (yet).

        ``peer`` and ``address`` where there is no link.  Refusals of strangers have a budget by address; their errors
        come with frames that are kept, and those have one.
        """
        if link is not None and not link.proven:
            address = link.address
        if address and event is not Event.ERROR and not self._strangers.tells(address, self._clock()):
            metrics.LINK_EVENTS_DROPPED.inc()
            return
        second = int(self._clock())
        if second != self._second:
            self._second, self._told = second, 0
        waiting = self._committer.filling.events
        if self._told >= self._per_s_max or len(waiting) >= WAITING_MAX:
            metrics.LINK_EVENTS_DROPPED.inc()
            return
        self._told += 1
        self._number += 1
        named = vin or (link.known_as if link is not None else "")
        payload = encode(
            LinkEvent(
                self.origin, self._number, _UNUSED, event, door, cause, named,
                link.peer if link is not None else peer, link.client if link is not None else "",
                by_peer, detail, times,
            )
        )  # fmt: skip
        partition = partition_of_vin(named, self._partitions) if _can_be_vin(named) else 0
        waiting.append((partition, now_us(), door, payload))
        self._committer.filling.event_bytes += len(payload)
        metrics.LINK_EVENTS.labels(event.value).inc()
        self._committer.kick()

    def erred(self, door: int, link: Link, reason: str, detail: str = "") -> None:
        """A frame of ``link`` was refused; told at once the first time, then counted for a while."""
        now_s = self._clock()
        before, since_s, times = link.errors
        if before == reason and now_s - since_s < ERRORS_APART_S:
            link.errors = (before, since_s, times + 1)
            return
        self.settle_errors(door, link)
        self.tell(Event.ERROR, door, reason, link=link, detail=detail)
        link.errors = (reason, now_s, 0)

    def passed_over(self, door: int, link: Link, reason: str) -> None:
        """A refused frame of a stranger was not kept; told now and then, with how many there were."""
        times = self._strangers.passed_over(link.address, self._clock())
        if times:
            self.tell(Event.ERROR, door, "not_kept", link=link, times=times, detail=f"the last one: {reason}")

    def settle_errors(self, door: int, link: Link) -> None:
        """Tell what has been counted since the last telling."""
        reason, _, times = link.errors
        if times:
            self.tell(Event.ERROR, door, reason, link=link, times=times)
        link.errors = ("", 0.0, 0)


_UNUSED: Final = datetime(1970, 1, 1, tzinfo=UTC)  # the record itself says when


def _can_be_vin(text: str) -> bool:
    return 0 < len(text) <= 17 and text.isascii()
