"""The lists of a report (cells, temps, motors, faults), kept as the wire has them, unpacked for people.

``cells`` and ``temps`` begin with their count of packs, ``motors`` with its count of motors, ``faults``
with the count of storage-device faults (GB/T 32960.3 clauses 7.8, 7.9, 7.10, 7.2, 7.7 of our reference).
A list that ends early is read as far as it goes: the decoder has noted it, and nothing here fails on
stored bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import NOTES
from schemas.signals import SIGNALS, State

_CURRENT_BIAS: Final = {16: 10_000, 25: 30_000}  # raw tenths of an ampere
_CELL_MAX, _TEMP_MAX = 60_000, 250  # largest raw value that is one


@dataclass(frozen=True, slots=True)
class Pack:
    """One pack's list: ``raw`` values at ``width`` bytes each; ``first`` is the number of the first of them."""

    no: int
    raw: NDArray[np.integer[Any]]
    width: int
    first: int = 1
    total: int | None = None
    voltage_v: float | None = None
    current_a: float | None = None

    def values(self) -> list[float | int | None]:
        """Volts or degrees Celsius; None where the raw value is a sentinel or out of range."""
        if self.width == 2:
            good: list[float | int | None] = (self.raw / 1000).tolist()
        else:
            good = (self.raw.astype(np.int64) - 40).tolist()
        for i in np.nonzero(self.raw > self.highest)[0]:
            good[i] = None
        return good

    @property
    def highest(self) -> int:
        return _CELL_MAX if self.width == 2 else _TEMP_MAX

    def flaws(self) -> dict[int, str]:
        """Number of each value that is none, and why."""
        return {
            self.first + int(i): _sentinel(int(self.raw[i]), self.width) for i in np.nonzero(self.raw > self.highest)[0]
        }


def _sentinel(raw: int, width: int) -> str:
    ones = (1 << 8 * width) - 1
    return {ones: "invalid", ones - 1: "abnormal"}.get(raw, "out_of_range")


def _scaled(raw: int, highest: int, bias: int, div: int) -> float | None:
    return (raw - bias) / div if raw <= highest else None


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def cell_packs(cells: bytes | None, edition: int) -> list[Pack]:
    """Packs of a cell-voltage block (7.8, 7.9)."""
    found: list[Pack] = []
    if not cells or cells[0] >= 0xFE:
        return found
    head = 10 if edition == 16 else 7
    at = 1
    for _ in range(cells[0]):
        if at + head > len(cells):
            break
        total = _word(cells, at + 5)
        first, count = (_word(cells, at + 7), cells[at + 9]) if edition == 16 else (1, total)
        if edition != 16 and total >= 0xFFFE:
            count = 0
        count = min(count, (len(cells) - at - head) // 2)
        highest = (10_000, 20_000) if edition == 16 else (60_000, 60_000)
        found.append(
            Pack(
                no=cells[at],
                raw=np.frombuffer(cells, ">u2", count, at + head),
                width=2,
                first=first if 1 <= first <= 65_531 else 1,
                total=total if total < 0xFFFE else None,
                voltage_v=_scaled(_word(cells, at + 1), highest[0], 0, 10),
                current_a=_scaled(_word(cells, at + 3), highest[1], _CURRENT_BIAS[16 if edition == 16 else 25], 10),
            )
        )
        at += head + 2 * count
    return found


def temp_packs(temps: bytes | None) -> list[Pack]:
    """Packs of a temperature block (7.10), the same in both editions."""
    found: list[Pack] = []
    if not temps or temps[0] >= 0xFE:
        return found
    at = 1
    for _ in range(temps[0]):
        if at + 3 > len(temps):
            break
        count = _word(temps, at + 1)
        count = min(0 if count >= 0xFFFE else count, len(temps) - at - 3)
        found.append(Pack(no=temps[at], raw=np.frombuffer(temps, np.uint8, count, at + 3), width=1))
        at += 3 + count
    return found


# name, bytes, largest valid raw, bias, divisor (7.2)
_MOTOR: Final[Mapping[int, tuple[tuple[str, int, int, int, int], ...]]] = {
    16: (
        ("no", 1, 253, 0, 1), ("state", 1, 4, 0, 1), ("controller_temp_c", 1, 250, 40, 1),
        ("speed_rpm", 2, 65_531, 20_000, 1), ("torque_nm", 2, 65_531, 20_000, 10), ("temp_c", 1, 250, 40, 1),
        ("input_voltage_v", 2, 60_000, 0, 10), ("bus_current_a", 2, 20_000, 10_000, 10),
    ),
    25: (
        ("no", 1, 253, 0, 1), ("state", 1, 4, 0, 1), ("controller_temp_c", 1, 250, 40, 1),
        ("speed_rpm", 2, 65_531, 32_000, 1), ("torque_nm", 4, 400_000, 200_000, 10), ("temp_c", 1, 250, 40, 1),
    ),
}  # fmt: skip


def motors(data: bytes | None, edition: int) -> list[dict[str, Any]]:
    """Every drive motor of a report that lists more than one (7.2)."""
    if not data or data[0] >= 0xFE:
        return []
    layout = _MOTOR[16 if edition == 16 else 25]
    size = sum(width for _, width, *_ in layout)
    found = []
    for begin in range(1, min(1 + data[0] * size, len(data) - size + 1), size):
        motor: dict[str, Any] = {}
        at = begin
        for name, width, highest, bias, div in layout:
            raw = int.from_bytes(data[at : at + width], "big")
            at += width
            value = _scaled(raw, highest, bias, div)
            motor[name] = int(value) if value is not None and div == 1 else value
        found.append(motor)
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
