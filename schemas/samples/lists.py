"""Cell voltages and probe temperatures of samples: to the bytes that the columns ``cells`` and ``temps`` keep.

The bytes are those of the 2025 edition's blocks (tables 11 to 14): packs with up to 65,531 values each, every value
with its own sentinel, so that whatever reads the lists of a frame reads these.  A value that is wrong becomes a
sentinel in its place and never moves its neighbours.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from schemas.batch import I64, Batch
from schemas.samples import fields as f
from schemas.signals import INDEX, State

Flaw = Callable[[int, str, str], None]  # line, path, what is wrong
Told = Callable[[str, str], None]  # path below the list, what is wrong

_NUMBERS: Final = {int, float}
_KNOWN: Final = (int(State.VALID), int(State.SUSPECT))
_VALID: Final = int(State.VALID)
_NONE: Final = 0xFFFF  # "invalid" at the width of a WORD
_ODD: Final = 0xFFFD  # beyond the range, and no sentinel
_VOLTAGE, _CURRENT = INDEX["pack_voltage_v"], INDEX["pack_current_a"]
_CURRENT_BIAS: Final = 30_000
_CURRENT_RAW_MAX: Final = 60_000
_VOLTAGE_RAW_MAX: Final = 60_000


@dataclass(frozen=True, slots=True)
class _Pack:
    no: int
    count: int
    path: str  # of its values, below the list
    voltage: int = _NONE  # raw, 0xFFFF when the pack does not say
    current: int = _NONE


class Lists:
    """The lists of one kind (``cells`` or temperatures) of a batch's samples, one after the other."""

    def __init__(self, *, cells: bool) -> None:
        self._cells = cells
        self._key = f.CELLS if cells else f.TEMPS
        self._values: list[Any] = []
        self._packs: list[list[_Pack]] = []
        self._lines: list[int] = []
        self._tell: list[Told] = []

    def take(self, line: int, value: Any, tell: Told) -> None:
        """One sample's list: numbers, lists of numbers, or packs {"no", "cells_v" | "temps_c", ...}."""
        if type(value) is not list:
            tell("", "wrong_type")
            return
        if not value:
            return
        packs: list[_Pack] = []
        if type(value[0]) not in (list, dict):
            self._add(packs, _Pack(1, len(value), ""), value)
        elif len(value) > f.PACKS_MAX:
            tell("", "out_of_range")
            return
        else:
            for k, item in enumerate(value):
                self._take_pack(packs, k, item, tell)
        self._packs.append(packs)
        self._lines.append(line)
        self._tell.append(tell)

    def _add(self, packs: list[_Pack], pack: _Pack, values: list[Any]) -> None:
        packs.append(pack)
        self._values += values

    def _take_pack(self, packs: list[_Pack], k: int, item: Any, tell: Told) -> None:
        """A pack that is wrong keeps its place with no values, so that the others keep their numbers."""
        if type(item) is list:
            self._add(packs, _Pack(k + 1, len(item), f"[{k}]"), item)
            return
        if type(item) is not dict:
            tell(f"[{k}]", "wrong_type")
            self._add(packs, _Pack(k + 1, 0, ""), [])
            return
        no = item.pop("no", k + 1)
        if type(no) is not int or not 1 <= no <= f.PACKS_MAX:
            tell(f"[{k}].no", "wrong_type" if type(no) is not int else "out_of_range")
            no = k + 1
        values = item.pop(self._key, None)
        if type(values) is not list:
            if values is not None:
                tell(f"[{k}].{self._key}", "wrong_type")
            values = []
        voltage = current = _NONE
        if self._cells:
            voltage = _raw(item.pop("voltage_v", None), 0, _VOLTAGE_RAW_MAX, tell, f"[{k}].voltage_v")
            current = _raw(item.pop("current_a", None), _CURRENT_BIAS, _CURRENT_RAW_MAX, tell, f"[{k}].current_a")
        for name in item:
            tell(f"[{k}].{name}", "unknown_field")
        self._add(packs, _Pack(no, len(values), f"[{k}].{self._key}", voltage, current), values)

    def finish(self, out: Batch, flaw: Flaw) -> Iterator[tuple[int, bytes]]:
        """Judge all values at once; yields (line, body) and puts what follows from the lists into ``out``."""
        if not self._lines:
            return
        raw = self._judged()
        blob = raw.astype(">u2").tobytes() if self._cells else raw.astype(np.uint8).tobytes()
        width = 2 if self._cells else 1
        lines = np.array(self._lines, np.int64)
        counts = np.array([sum(pack.count for pack in packs) for packs in self._packs], np.int64)
        self._derive(out, lines, counts, raw, flaw)
        at = 0
        for line, packs in zip(self._lines, self._packs, strict=True):
            parts = [bytes((len(packs),))]
            if self._cells:
                packs[0] = _with_signals(packs[0], out, line)
            for pack in packs:
                if self._cells:
                    parts.append(struct.pack(">BHHH", pack.no, pack.voltage, pack.current, pack.count))
                else:
                    parts.append(struct.pack(">BH", pack.no, pack.count))
                end = at + pack.count * width
                parts.append(blob[at:end])
                at = end
            yield line, b"".join(parts)

    def _judged(self) -> I64:
        values = self._values
        words: dict[int, str] = {}
        if not set(map(type, values)) <= _NUMBERS:
            for at, value in enumerate(values):
                if type(value) not in _NUMBERS:
                    values[at] = math.nan
                    words[at] = "" if value is None else "wrong_type"  # null: this cell was not measured
        number = np.array(values, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._cells:
                step, most = np.rint(number * f.CELL_DIV), f.CELL_RAW_MAX
                odd, none = _ODD, _NONE
            else:
                step, most = np.rint(number) + f.PROBE_BIAS_C, f.PROBE_RAW_MAX
                odd, none = _ODD & 0xFF, _NONE & 0xFF
            fits = (step >= 0) & (step <= most)
        finite = np.isfinite(number)
        raw = np.where(fits, np.where(fits, step, 0), np.where(finite, odd, none)).astype(np.int64)
        bad = np.flatnonzero(~fits)
        if len(bad):
            self._tell_of(bad, finite, words)
        return raw

    def _tell_of(self, bad: I64, finite: Any, words: dict[int, str]) -> None:
        """Name the wrong values by their paths."""
        ends = np.cumsum([pack.count for packs in self._packs for pack in packs])
        owner = [(tell, pack) for packs, tell in zip(self._packs, self._tell, strict=True) for pack in packs]
        for at in bad.tolist():
            which = int(np.searchsorted(ends, at, side="right"))
            tell, pack = owner[which]
            word = words.get(at, "out_of_range" if finite[at] else "not_finite")
            if word:
                tell(f"{pack.path}[{at - (int(ends[which]) - pack.count)}]", word)

    def _derive(self, out: Batch, lines: I64, counts: I64, raw: I64, flaw: Flaw) -> None:
        """Signals of the lists; a value of 0 V or -40 °C is a filler and no measurement, as in frames."""
        most = f.CELL_RAW_MAX if self._cells else f.PROBE_RAW_MAX
        good = (raw >= 1) & (raw <= most)
        has = counts > 0
        starts = (np.cumsum(counts) - counts)[has]
        n = len(lines)
        valid, high, low, total = (np.zeros(n, np.int64) for _ in range(4))
        if has.any():
            valid[has] = np.add.reduceat(good.astype(np.int64), starts)
            high[has] = np.maximum.reduceat(np.where(good, raw, -1), starts)
            low[has] = np.minimum.reduceat(np.where(good, raw, 1 << 40), starts)
            total[has] = np.add.reduceat(np.where(good, raw, 0), starts)
        bias = 0 if self._cells else -f.PROBE_BIAS_C
        measured = valid > 0
        everywhere = np.ones(n, bool)
        if self._cells:
            firsts = np.array([packs[0].count for packs in self._packs], np.int64)
            packs = np.array([len(packs) for packs in self._packs], np.int64)
            rows: tuple[tuple[str, I64, Any], ...] = (
                ("pack_count", packs, everywhere), ("pack_cell_total", firsts, firsts > 0),
                ("cell_count", counts, everywhere), ("cell_max_v", high, measured), ("cell_min_v", low, measured),
                ("cell_sum_v", total, measured),
            )  # fmt: skip
        else:
            rows = (
                ("probe_count", counts, everywhere), ("probe_max_c", high + bias, measured),
                ("probe_min_c", low + bias, measured),
            )  # fmt: skip
        for name, value, known in rows:
            signal = INDEX[name]
            where, num = lines[known], value[known]
            said = np.isin(out.state[where, signal], _KNOWN)
            for line in where[said & (out.num[where, signal] != num)].tolist():
                flaw(line, f"$.{name}", "contradicts_list")
            out.num[where, signal] = num
            out.state[where, signal] = _VALID


def _with_signals(pack: _Pack, out: Batch, line: int) -> _Pack:
    """The first pack's own figures and the signals for them: each from the other where only one is given."""
    voltage, current = pack.voltage, pack.current
    if voltage <= _VOLTAGE_RAW_MAX:
        _fill(out, line, _VOLTAGE, voltage)
    elif out.state[line, _VOLTAGE] == _VALID:
        voltage = int(out.num[line, _VOLTAGE])
    if current <= _CURRENT_RAW_MAX:
        _fill(out, line, _CURRENT, current - _CURRENT_BIAS)
    elif out.state[line, _CURRENT] == _VALID:
        current = int(out.num[line, _CURRENT]) + _CURRENT_BIAS
    return replace(pack, voltage=voltage, current=current)


def _fill(out: Batch, line: int, signal: int, num: int) -> None:
    if out.state[line, signal] == State.ABSENT:
        out.num[line, signal] = num
        out.state[line, signal] = _VALID


def _raw(value: Any, bias: int, most: int, tell: Told, path: str) -> int:
    """Tenths of a pack's voltage or current as the wire has them."""
    if value is None:
        return _NONE
    if type(value) not in _NUMBERS:
        tell(path, "wrong_type")
        return _NONE
    if not math.isfinite(value):
        tell(path, "not_finite")
        return _NONE
    raw = round(value * 10) + bias if abs(value) < 1e6 else -1
    if not 0 <= raw <= most:
        tell(path, "out_of_range")
        return _ODD
    return raw
