"""What a signals file says, once it is known to be right.  Loaders make these; ``tables`` compiles them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Final

from schemas.signals import State

CUSTOM_TYPES: Final = range(0x80, 0xFF)  # block types that the standard leaves to the maker
EXTENDED: Final = 1 << 31  # set in a CAN message's key when its id has 29 bits, as SocketCAN has it
FLAWS_KEY: Final = "_flaws"  # where extra says which signals have no value, and why
SIGNALS_MAX: Final = 4096
DIGITS_MAX: Final = 18  # decimals of a scale, an offset, a bound: ten to that power is the largest in 64 bits


class Number(IntEnum):
    """How the bits of a field are read."""

    UNSIGNED = 0
    SIGNED = 1  # two's complement
    FLOAT32 = 2  # IEEE 754
    FLOAT64 = 3


@dataclass(frozen=True, slots=True)
class Bits:
    """Which bits of a body: ``size`` bytes from ``byte`` on, ``little`` or big endian, the lowest ``shift``
    (0..7) of them left out, ``count`` taken.  No byte is named that holds none of the bits.
    """

    byte: int
    size: int
    little: bool
    shift: int
    count: int

    @property
    def end(self) -> int:
        return self.byte + self.size

    def positions(self) -> set[tuple[int, int]]:
        """Each bit as (byte, bit with 0 the least significant)."""
        order = range(self.size) if self.little else range(self.size - 1, -1, -1)
        low_to_high = [(self.byte + i, bit) for i in order for bit in range(8)]
        return set(low_to_high[self.shift : self.shift + self.count])


def bits_of(byte: int, size: int, little: bool, bit: int, count: int) -> Bits:
    """``count`` bits from ``bit`` on (0 the least significant) of the integer in ``size`` bytes at ``byte``."""
    low = bit // 8
    used = (bit % 8 + count + 7) // 8
    return Bits(byte + low if little else byte + size - low - used, used, little, bit % 8, count)


@dataclass(frozen=True, slots=True)
class Condition:
    """The bits hold one of these values: a multiplexer."""

    bits: Bits
    values: frozenset[int]


@dataclass(frozen=True, slots=True)
class Field:
    """Where a signal comes from, and what its raw value means: raw · scale + offset, in [low, high].

    ``low`` and ``high`` are in the signal's unit, None = what the bits can hold.  ``sentinels`` are raw bit
    patterns; ``conditions`` must all hold for the field to be there.
    """

    signal: str
    bits: Bits
    number: Number
    scale: Decimal
    offset: Decimal
    low: Decimal | None
    high: Decimal | None
    sentinels: tuple[tuple[int, State], ...] = ()
    conditions: tuple[Condition, ...] = ()
    decimals: int = 0  # at least so many, for floats

    def raw_bounds(self) -> tuple[int, int]:
        """Lowest and highest raw value of an integer field whose value lies in its range."""
        count = self.bits.count
        first, last = (
            (-(1 << count - 1), (1 << count - 1) - 1) if self.number is Number.SIGNED else (0, (1 << count) - 1)
        )
        if self.low is not None and self.high is not None:
            ends = sorted(
                (Fraction(end) - Fraction(self.offset)) / Fraction(self.scale) for end in (self.low, self.high)
            )
            first, last = max(first, math.ceil(ends[0])), min(last, math.floor(ends[1]))
        return first, last


@dataclass(frozen=True, slots=True)
class Signal:
    """A named quantity; several fields may bring it (models that put it in different places)."""

    name: str
    unit: str
    text: str
    codes: Mapping[int, str] = field(default_factory=dict)
    low: Decimal | None = None
    high: Decimal | None = None
    source: str = ""  # for people: where it comes from


@dataclass(frozen=True, slots=True)
class Match:
    """Which blocks a rule is for.  ``vins`` are prefixes, () = every vehicle; ``edition`` 16, 25 or 0 = both."""

    block: int
    vins: tuple[str, ...]
    edition: int

    def meets(self, other: Match) -> bool:
        """Whether some one vehicle may send frames with both."""
        if self.edition and other.edition and self.edition != other.edition:
            return False
        mine, theirs = self.vins or ("",), other.vins or ("",)
        return any(a.startswith(b) or b.startswith(a) for a in mine for b in theirs)


@dataclass(frozen=True, slots=True)
class BlockRule:
    match: Match
    name: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class CanLayout:
    """How a block carries CAN frames: ``head`` bytes, then frames one after the other.

    Offsets are from the frame's begin; ``length_at`` -1 = none, every frame has ``data_bytes``;
    ``data_bytes`` -1 = as many as the length says.  ``length_is_code``: a DLC, of which 9..15 mean 12..64.
    """

    head: int
    id_at: int
    id_bytes: int
    length_at: int
    length_bytes: int
    length_is_code: bool
    data_at: int
    data_bytes: int
    tail: int
    little: bool
    id_mask: int


@dataclass(frozen=True, slots=True)
class CanMessage:
    """``key`` is the id, masked, with ``EXTENDED`` set for a 29-bit one."""

    key: int
    name: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class CanRule:
    match: Match
    name: str
    layout: CanLayout
    messages: tuple[CanMessage, ...]


@dataclass(frozen=True, slots=True)
class JsonField:
    """A field of a JSON sample that the catalogue does not have, by the name that it has there."""

    source: str
    signal: str
    scale: Decimal
    offset: Decimal
    low: Decimal | None
    high: Decimal | None


@dataclass(frozen=True, slots=True)
class SignalsFile:
    """A whole file.  ``signals`` by name, in the order of the file."""

    path: str
    signals: Mapping[str, Signal]
    blocks: tuple[BlockRule, ...]
    can: tuple[CanRule, ...]
    json: tuple[JsonField, ...]


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing that is wrong, where, and how to put it right."""

    line: int
    column: int
    text: str
    file: str = ""


class SignalsFileError(ValueError):
    """A signals file that cannot be used; the message has a line for each mistake."""

    def __init__(self, path: str, mistakes: list[Mistake]) -> None:
        self.path = path
        self.mistakes = sorted(mistakes)
        super().__init__("\n".join(f"{m.file or path}:{m.line}:{m.column}: {m.text}" for m in self.mistakes))
