"""What a replay hands from the decoder to the store: frames of the journal, decoded again.

``services/pipeline/replay.py`` makes it, ``services/store/replay.py`` compares and applies it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.batch import CopyStream, DeadLetter, Login
from schemas.seams import LetterId


@dataclass(frozen=True, slots=True)
class Readable:
    """A dead letter that can be read now.  ``key``: (time_s, kind, part) of the row that it becomes, None for no row.

    ``became`` is its column of the ledger: rows, sessions or other · vehicle_id: as in :class:`Redecoded`, or None.
    """

    letter: LetterId
    became: str
    received: datetime
    vehicle_id: int | None
    key: tuple[int, int, int] | None
    digest: int
    login: Login | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A frame that is refused now and was not, with the digest that its row would be stored under."""

    letter: DeadLetter
    digest: int


@dataclass(frozen=True, slots=True)
class Redecoded:
    """One batch of journal records.

    rows: telemetry, or None; its memory is used again by the next batch · new: provisional (negative) vehicle id →
    VIN that the store did not know · readable, unreadable: against the dead letters that are there · frames: how
    many lie in the range · refused: of these, how many are dead letters still · damaged: records that cannot be
    read · upto: newest arrival, microseconds.
    """

    rows: CopyStream | None
    new: Mapping[int, str]
    readable: Sequence[Readable]
    unreadable: Sequence[Unreadable]
    frames: int
    refused: int
    damaged: int
    upto: int
