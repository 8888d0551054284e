"""What passes between the statistics worker and its store: changes, windows, checkpoints, and a swap.

Days are numbers since 1970-01-01 in the fleet's local calendar, times whole seconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from schemas.statistics.measures import MEASURES, TALLY_WIDTH
from schemas.statistics.records import F64, I64

FIRST_S: Final = 0  # before every collection second: the pipeline's clock check refuses older ones
FAR_S: Final = 1 << 40  # after every one


@dataclass(frozen=True, slots=True)
class Claim:
    """Changes that a worker has taken on: lines (m,) i64 of vehicle, earliest and latest second, and their records.

    ``oldest_s``: age of the oldest record in seconds, by the database's clock.
    """

    change_ids: list[int]
    vehicle_id: I64
    from_s: I64
    to_s: I64
    oldest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a vehicle's fold stands: see ``statistics_checkpoints``."""

    day: int
    through_s: int
    newest_s: int
    layout: int
    inverted: bool
    state: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """A vehicle as the store has it: how its current is to be read, and its checkpoint."""

    vehicle_id: int
    inverted: bool
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True)
class Window:
    """Records of a vehicle in (after_s, until_s], at most ``rows_max`` rows of them, the earliest."""

    vehicle_id: int
    after_s: int
    until_s: int
    rows_max: int


@dataclass(frozen=True, slots=True)
class Carry:
    """State at the end of a day; None for the newest day, or when the day is of another layout."""

    day: int
    state: bytes | None


@dataclass(frozen=True, slots=True)
class Range:
    """What a swap replaces of a vehicle: days [first, last] (last None: all that follow), hours from ``from_s`` on."""

    vehicle_id: int
    first: int
    last: int | None
    from_s: int
    until_s: int


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A finding on its way to a table: ``values`` as in its ``Finding.columns``, NaN = NULL."""

    vehicle_id: int
    day: int
    settled_on: int | None
    values: tuple[float, ...]


@dataclass(slots=True)
class HourRows:
    vehicle_id: I64
    hour_s: I64
    day: I64
    values: F64  # (h, len(MEASURES))


@dataclass(slots=True)
class DayRows:
    vehicle_id: I64
    day: I64
    first_s: I64
    last_s: I64
    edition: I64
    values: F64  # (d, len(MEASURES))
    tallies: I64  # (d, TALLY_WIDTH)
    carry: Sequence[bytes | None]

    def __post_init__(self) -> None:
        assert self.values.shape == (len(self.day), len(MEASURES))
        assert self.tallies.shape == (len(self.day), TALLY_WIDTH)


@dataclass(slots=True)
class Swap:
    """One transaction: what stands in the tables afterwards for the vehicles and days of ``ranges``."""

    ranges: list[Range]
    hours: HourRows
    days: DayRows
    findings: dict[str, list[FoundRow]]  # by table
    layout: int
    checkpoints: dict[int, Checkpoint | None] = field(default_factory=dict)  # None: the vehicle has no records left
    follow_ups: list[tuple[int, int, int]] = field(default_factory=list)  # still to be done: vehicle, seconds from, to
    done: list[int] = field(default_factory=list)  # change records that are settled with this swap
    judge: list[int] = field(default_factory=list)  # with ``done``: whose say in the sign of the current has changed


@dataclass(frozen=True, slots=True)
class Flip:
    """A model, or a vehicle without one, whose current has turned out to be the other way round."""

    model: str | None
    vin: str | None
    inverted: bool
    charging: int
    above: int


@dataclass(frozen=True, slots=True)
class Swapped:
    """What a swap changed: rows of ``vehicle_day``, vehicles with other records of charging, signs that it turned."""

    days: int
    signs: list[int]
    flips: list[Flip]
