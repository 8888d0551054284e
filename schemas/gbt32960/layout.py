"""The language the edition tables are written in: fields, lists, blocks.

A block is a sequence of parts, read one after the other: a :class:`Field` of fixed width, a
:class:`Values` list of one field, or an :class:`Each` list of parts; both lists take their length from
a field read before.  Decoder, validator, encoder, annotated view and documents walk the same parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from schemas.signals import INDEX, SIGNALS, State


class Kind(Enum):
    """How a field's raw value reads."""

    NUMBER = "number"
    CODE = "code"  # an enumeration, ``names`` holds the words
    COUNT = "count"  # length of a list; at a sentinel no list follows
    GEAR = "gear"  # bit field (7.12)
    FLAGS = "flags"  # alarm bits (7.13)
    STATUS = "status"  # location status bits (7.5)
    DEGREES = "degrees"  # a position whose sign is in the status bits
    PLAIN = "plain"  # a maker's code: every value means itself


# Kinds whose all-ones value is not a sentinel but a code, or bits that happen to be set.
BIT_KINDS: Final = (Kind.GEAR, Kind.FLAGS, Kind.STATUS, Kind.PLAIN)

UNITS: Final[dict[str, str]] = {
    "": "",
    "kmh": "km/h",
    "km": "km",
    "v": "V",
    "a": "A",
    "pct": "%",
    "kohm": "kΩ",
    "c": "°C",
    "rpm": "r/min",
    "nm": "N·m",
    "kg_per_100km": "kg/100 km",
    "l_per_100km": "L/100 km",
    "mg_per_kg": "mg/kg",
    "vol_pct": "vol%",
    "mpa": "MPa",
    "kpa": "kPa",
    "deg": "°",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the standard's tables.

    ``num = raw * mul + add`` and ``value = num / div`` in the unit of ``suffix``; ``lo..hi`` is the
    valid *raw* range.  ``sentinel``: the standard gives 0xFE… abnormal and 0xFF… invalid for this
    field (without it senders use them all the same, and they are read so, except in bit fields).
    ``invalid_bits``: the field is invalid when one of them is set.
    """

    raw: str  # name of the unscaled value; with the suffix that of the scaled one
    width: int  # bytes
    lo: int
    hi: int
    suffix: str = ""
    mul: int = 1
    add: int = 0
    div: int = 1
    signal: str | None = None
    sentinel: bool = True
    kind: Kind = Kind.NUMBER
    names: Mapping[int, str] = field(default_factory=dict)
    invalid_bits: int = 0

    def __post_init__(self) -> None:
        assert self.suffix in UNITS, f"{self.raw}: unit suffix {self.suffix!r} is not in UNITS"
        assert 0 <= self.lo <= self.hi <= self.ones, f"{self.raw}: range {self.lo}..{self.hi} at width {self.width}"
        if self.kind not in BIT_KINDS:
            assert self.hi < self.ones - 1, f"{self.raw}: the range reaches into the sentinels"
        if self.signal is not None:
            target = SIGNALS[INDEX[self.signal]]
            assert target.div == self.div, f"{self.raw}: div {self.div}, signal {target.name} has {target.div}"

    @property
    def name(self) -> str:
        """Key of the scaled value: ``mileage_km``."""
        return f"{self.raw}_{self.suffix}" if self.suffix else self.raw

    @property
    def unit(self) -> str:
        return UNITS[self.suffix]

    @property
    def ones(self) -> int:
        """All ones at the field's width."""
        return (1 << 8 * self.width) - 1

    def sentinel_of(self, raw: int) -> str | None:
        """Says "abnormal" or "invalid" when ``raw`` is one, else None."""
        if self.kind in BIT_KINDS:
            return None
        return {self.ones: "invalid", self.ones - 1: "abnormal"}.get(raw)

    def in_range(self, raw: int) -> bool:
        return self.lo <= raw <= self.hi

    def judge(self, raw: int) -> tuple[State, int]:
        """What ``raw`` is worth: its state, and ``num`` when it is valid (else 0)."""
        if raw & self.invalid_bits:
            return State.INVALID, 0
        sentinel = self.sentinel_of(raw)
        if sentinel is not None:
            return (State.INVALID if sentinel == "invalid" else State.ABNORMAL), 0
        if not self.in_range(raw):
            return State.OUT_OF_RANGE, 0
        return State.VALID, raw * self.mul + self.add

    def scaled(self, raw: int) -> float | int:
        """The value in its unit; whole numbers stay integers."""
        num = raw * self.mul + self.add
        return num if self.div == 1 else num / self.div


@dataclass(frozen=True, slots=True)
class Values:
    """``key``: a list of one field, as many as the field named ``count`` says."""

    key: str
    count: str
    item: Field


@dataclass(frozen=True, slots=True)
class Each:
    """``key``: a list of structures, as many as the field named ``count`` says.

    ``flat``: each is shown as a plain list of its values ([bit, level]).
    """

    key: str
    count: str
    parts: tuple[Part, ...]
    flat: bool = False


Part = Field | Values | Each


@dataclass(frozen=True, slots=True)
class Block:
    """One information type: ``parts`` in wire order, ``table`` where the standard defines it."""

    type: int
    name: str
    table: str
    parts: tuple[Part, ...]

    def groups(self) -> Iterator[tuple[Field, ...]]:
        """Runs of fields at fixed distances from each other, in wire order: what the kernels read at once."""
        yield from _groups(self.parts)

    @property
    def fixed(self) -> bool:
        """Whether the block has the same length always."""
        return all(isinstance(part, Field) for part in self.parts)


def _groups(parts: tuple[Part, ...]) -> Iterator[tuple[Field, ...]]:
    run: list[Field] = []
    for part in parts:
        if isinstance(part, Field):
            run.append(part)
            continue
        if run:
            yield tuple(run)
            run = []
        if isinstance(part, Each):
            yield from _groups(part.parts)
    if run:
        yield tuple(run)


@dataclass(frozen=True, slots=True)
class EditionTable:
    """Everything section 7.2 of one edition says: blocks by type, alarm bits, and what the types are not."""

    edition: int
    blocks: Mapping[int, Block]
    flag_names: tuple[str, ...]  # bit 0 first; bits beyond it are reserved
    has_signature: bool  # 0xFF starts a signature


CUSTOM_FIRST: Final = 0x80
CUSTOM_LAST: Final = 0xFE
SIGNATURE_TYPE: Final = 0xFF


def block_table(*blocks: Block) -> dict[int, Block]:
    """Blocks by type."""
    table = {block.type: block for block in blocks}
    assert len(table) == len(blocks), "a type is defined once"
    return table
