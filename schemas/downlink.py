"""The seam between those who ask for a command to a vehicle and the gateway that sends it.

``queued`` → ``sent`` (by the gateway that holds the vehicle) → ``answered`` or ``failed``; ``expired`` when nobody
could send it in time.  A command whose connection breaks goes back to ``queued``.  One is in flight per vehicle.
What is asked for is the ``body`` of ``schemas.gbt32960.downlink``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.seams import Table

OPEN_MAX: int = 100  # commands of one vehicle that are not finished


@dataclass(frozen=True, slots=True)
class Claimed:
    """A command that this gateway is to send.  ``edition`` None: neither asked for nor known of the vehicle."""

    command_id: int
    vin: str
    kind: str
    body: Mapping[str, Any]
    edition: int | None
    attempts: int  # with the one that is due now


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a claimed command.  ``resent``: it has just gone out once more."""

    command_id: int
    state: str
    attempts: int
    door: int | None = None
    frame: bytes | None = None
    resent: bool = False
    delivered: bool = False
    ack: int | None = None
    answer: Mapping[str, Any] | None = None
    answer_frame: bytes | None = None
    error: str | None = None


class CommandQueue(Protocol):
    """The gateway's side.  Every method raises ``StoreUnavailable``."""

    async def queued(self, after: int, limit: int) -> list[tuple[int, str]]:
        """(id, VIN) of queued commands beyond id ``after``, in order of id, none of them expired."""
        ...

    async def claim(self, ids: Sequence[int], origin: int) -> list[Claimed]:
        """Mark these as sent by ``origin``, those that are still queued and whose vehicle has none in flight."""
        ...

    async def record(self, outcomes: Sequence[Outcome], origin: int) -> None:
        """Write what became of them; one that is no longer ``origin``'s is left alone."""
        ...

    async def tidy(self, stale_s: float, attempts_max: int) -> None:
        """Expire what is overdue; queue again, or fail, what a gateway that is gone had sent."""
        ...

    async def close(self) -> None: ...


class CommandDesk(Protocol):
    """The operator's side.  Every method raises ``StoreUnavailable``."""

    async def enqueue(
        self, vin: str, kind: str, body: Mapping[str, Any], *, by: str, expires_s: float, edition: int | None = None
    ) -> int:
        """Queue a command; returns its id.  Raises ``UsageError`` when ``OPEN_MAX`` of the vehicle are open."""
        ...

    async def commands(self, vin: str, *, before: int | None, limit: int) -> Table:
        """Commands of a vehicle, newest first, with ids below ``before``."""
        ...

    async def close(self) -> None: ...
