"""The lists of a report (cells, temps, motors, faults), kept as the wire has them, unpacked for people.

``cells`` and ``temps`` begin with their count of packs, ``motors`` with its count of motors, ``faults``
with the count of storage-device faults.  Layouts, ranges and sentinels come from the edition tables of
``schemas.gbt32960``.  A list that ends early is read as far as it goes: the decoder has noted it, and
nothing here fails on stored bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import NOTES
from schemas.gbt32960.commands import Edition
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.layout import Block, Each, Field, Values
from schemas.gbt32960.reading import Reading, Scope, Torn, count_of, read_field, read_parts
from schemas.signals import SIGNALS, State


@dataclass(frozen=True, slots=True)
class Pack:
    """One pack's list: the ``raw`` values of ``item``; ``first`` is the number of the first of them."""

    no: int
    raw: NDArray[np.integer[Any]]
    item: Field
    first: int = 1
    total: int | None = None
    voltage_v: float | None = None
    current_a: float | None = None

    def values(self) -> list[float | int | None]:
        """In the item's unit; None where the raw value is a sentinel or out of range."""
        num = self.raw.astype(np.int64) * self.item.mul + self.item.add
        good: list[float | int | None] = (num if self.item.div == 1 else num / self.item.div).tolist()
        for i in self._without_value():
            good[i] = None
        return good

    def flaws(self) -> dict[int, str]:
        """Number of each value that is none, and why."""
        return {self.first + int(i): self.item.judge(int(self.raw[i]))[0].name.lower() for i in self._without_value()}

    def _without_value(self) -> NDArray[np.intp]:
        return np.nonzero((self.raw < self.item.lo) | (self.raw > self.item.hi))[0]


def _block(name: str, edition: int) -> Block:
    """A block of an edition's table; an edition that this version does not know is read as the newest."""
    table = EDITIONS.get(edition) or EDITIONS[Edition.E2025]
    return next(block for block in table.blocks.values() if block.name == name)


def _value(scope: Scope, name: str) -> float | int | None:
    """The value of a field by its raw name, None when it has none or the edition has no such field."""
    reading = scope.get(name)
    if not isinstance(reading, Reading):
        return None
    state, num = reading.field.judge(reading.raw)
    if state is not State.VALID:
        return None
    return num if reading.field.div == 1 else num / reading.field.div


def _items(block: Block, data: bytes) -> tuple[Each, int]:
    """The structures that a block lists, and how many of them it announces."""
    count, each = block.parts
    assert isinstance(count, Field)
    assert isinstance(each, Each)
    return each, count_of(read_field(count, data, 0, len(data)))


def _packs(block: Block, data: bytes | None) -> Iterable[tuple[Scope, NDArray[np.integer[Any]], Field]]:
    """Of each pack its own figures, its raw values (not judged), and what they are."""
    if not data:
        return
    each, count = _items(block, data)
    *head, values = each.parts
    assert isinstance(values, Values)
    width, at = values.item.width, 1
    for _ in range(count):
        try:
            scope, at = read_parts(tuple(head), data, at, len(data))
        except Torn:
            return
        counted = scope[values.count]
        assert isinstance(counted, Reading)
        n = min(count_of(counted), (len(data) - at) // width)
        yield scope, np.frombuffer(data, ">u2" if width == 2 else np.uint8, n, at), values.item
        at += n * width


def cell_packs(cells: bytes | None, edition: int) -> list[Pack]:
    """Packs of a cell-voltage block (2016 table B.6, 2025 table 12)."""
    return [
        Pack(
            no=scope.raw("no"),
            raw=raw,
            item=item,
            # a first cell that breaks the standard (0 is seen) is read as 1; 2025 has no such field
            first=int(_value(scope, "first_cell") or 1),
            total=None if (total := _value(scope, "cell_total")) is None else int(total),
            voltage_v=_value(scope, "voltage"),
            current_a=_value(scope, "current"),
        )
        for scope, raw, item in _packs(_block("cell_voltages", edition), cells)
    ]


def temp_packs(temps: bytes | None, edition: int) -> list[Pack]:
    """Packs of a temperature block (2016 table B.8, 2025 table 14)."""
    block = _block("cell_temperatures", edition)
    return [Pack(no=scope.raw("no"), raw=raw, item=item) for scope, raw, item in _packs(block, temps)]


def motors(data: bytes | None, edition: int) -> list[dict[str, Any]]:
    """Every drive motor of a report that lists more than one (2016 table 11, 2025 table 16)."""
    if not data:
        return []
    each, count = _items(_block("drive_motor", edition), data)
    found, at = [], 1
    for _ in range(count):
        try:
            scope, at = read_parts(each.parts, data, at, len(data))
        except Torn:
            break
        found.append({part.name: _value(scope, part.raw) for part in each.parts if isinstance(part, Field)})
    return found


FAULT_GROUPS: Final = ("pack", "motor", "engine", "other")


def faults(data: bytes | None, edition: int) -> dict[str, list[Any]]:
    """Fault codes by system as hex, and for 2025 the general alarms with their level (7.7)."""
    found: dict[str, list[Any]] = {}
    at = 0
    for group in (*FAULT_GROUPS, *(("general",) if edition == 25 else ())):
        if not data or at >= len(data):
            break
        count, size = data[at], 2 if group == "general" else 4
        at += 1
        count = min(0 if count >= 0xFE else count, (len(data) - at) // size)
        codes = [data[at + i * size : at + (i + 1) * size] for i in range(count)]
        at += count * size
        if group == "general":
            found[group] = [{"flag": code[0], "level": code[1]} for code in codes]
        else:
            found[group] = [code.hex() for code in codes]
    return found


def flaws(data: bytes | None) -> dict[str, str]:
    """Signals without a trustworthy value, by name: pairs of signal index and state."""
    pairs = zip(data[::2], data[1::2], strict=False) if data else ()
    return {
        SIGNALS[index].name if index < len(SIGNALS) else f"signal_{index}": State(state).name.lower()
        for index, state in pairs
        if state in State.__members__.values()
    }


def notes(value: int | None) -> list[str]:
    return [name for bit, name in NOTES if value and value & bit]


def merged(packs: Iterable[Pack]) -> list[dict[str, Any]]:
    """Packs of a report whose cell lists may be split over frames: one entry per pack number.

    ``missing`` counts the cells of the pack that no frame has brought.
    """
    by_no: dict[int, list[Pack]] = {}
    for pack in packs:
        by_no.setdefault(pack.no, []).append(pack)
    answer = []
    for no, parts in by_no.items():
        length = max(part.first - 1 + len(part.raw) for part in parts)
        cells: list[float | int | None] = [None] * length
        reasons: dict[int, str] = {}
        seen = np.zeros(length, bool)
        for part in parts:
            begin = part.first - 1
            cells[begin : begin + len(part.raw)] = part.values()
            seen[begin : begin + len(part.raw)] = True
            reasons |= part.flaws()
        total = max((part.total for part in parts if part.total is not None), default=None)
        answer.append(
            {
                "no": no,
                "voltage_v": parts[0].voltage_v,
                "current_a": parts[0].current_a,
                "cell_total": total,
                "cells_v": cells,
                "cells_missing": max(total or 0, length) - int(seen.sum()),
                "flaws": {str(cell): state for cell, state in sorted(reasons.items())},
            }
        )
    return answer
