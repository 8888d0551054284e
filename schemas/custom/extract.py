"""Custom blocks of a batch to named values, and those to ``extra``.

Reads what the decoder kept in ``rest``; it never refuses a report: a block that is shorter than a field lacks
that field, a CAN frame that is cut off ends the list.  A later block or frame of the same report overwrites an
earlier one's values.  Only rows with a custom block that some rule is for are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I64, NOTE_CUSTOM_BLOCK, NOTE_TRUNCATED, REST, U8, Batch, Frames
from schemas.custom import tables as t
from schemas.custom.extract_twin import extract_twin
from schemas.custom.model import EXTENDED, Number, Signal
from schemas.custom.tables import F64, Compiled
from schemas.custom.text import write_text
from schemas.gbt32960.frame import AT_VIN
from schemas.jit import compiled, kernel
from schemas.signals import State

_ABSENT, _VALID, _INVALID, _OUT = (int(s) for s in (State.ABSENT, State.VALID, State.INVALID, State.OUT_OF_RANGE))
_SIGNED, _FLOAT32, _FLOAT64 = int(Number.SIGNED), int(Number.FLOAT32), int(Number.FLOAT64)
_EXTENDED: Final = EXTENDED
_CELLS: Final = 1 << 18  # values worked on at a time: bounds memory, whatever the file


@compiled
def _raw(data: U8, begin: Any, size: Any, little: Any, shift: Any, bits: Any) -> Any:
    """An unsigned field of up to 64 bits that may lie in nine bytes."""
    low = np.uint64(shift)
    value = np.uint64(0)
    if little:
        value = np.uint64(data[begin]) >> low
        for i in range(1, size):
            value |= np.uint64(data[begin + i]) << (np.uint64(8 * i) - low)
    else:
        for i in range(size - 1):
            value = (value << np.uint64(8)) | np.uint64(data[begin + i])
        value = (value << (np.uint64(8) - low)) | (np.uint64(data[begin + size - 1]) >> low)
    if bits < 64:
        value &= (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    return value


@compiled
def _word(data: U8, begin: Any, size: Any, little: Any) -> Any:
    value = np.int64(0)
    for i in range(size):
        value = value << 8 | np.int64(data[begin + (size - 1 - i if little else i)])
    return value


@compiled
def _selected(data: U8, begin: Any, end: Any, conditions: I64, first: Any, count: Any) -> bool:
    group = np.int64(-1)
    holds = True
    for i in range(first, first + count):
        if conditions[i, t.C_GROUP] != group:
            if not holds:
                return False
            group = conditions[i, t.C_GROUP]
            holds = False
        at = begin + conditions[i, t.C_BYTE]
        size = conditions[i, t.C_SIZE]
        if at + size <= end:
            raw = _raw(data, at, size, conditions[i, t.C_LITTLE], conditions[i, t.C_SHIFT], conditions[i, t.C_BITS])
            holds |= np.uint64(conditions[i, t.C_LOW]) <= raw and raw <= np.uint64(conditions[i, t.C_HIGH])
    return holds


@compiled
def _read_fields(
    data: U8, begin: Any, end: Any, first: Any, count: Any,
    fields: I64, doubles: F64, sentinels: I64, conditions: I64, line: Any, num: I64, digits: U8, state: U8,
    word: Any, single: Any, double: Any,
) -> None:  # fmt: skip
    for f in range(first, first + count):
        at = begin + fields[f, t.F_BYTE]
        if at + fields[f, t.F_SIZE] > end:
            continue
        conditioned = fields[f, t.F_CONDITIONS]
        if conditioned and not _selected(data, begin, end, conditions, fields[f, t.F_CONDITION], conditioned):
            continue
        bits = fields[f, t.F_BITS]
        raw = _raw(data, at, fields[f, t.F_SIZE], fields[f, t.F_LITTLE], fields[f, t.F_SHIFT], bits)
        known = np.int64(_VALID)
        value = np.int64(0)
        for s in range(fields[f, t.F_SENTINEL], fields[f, t.F_SENTINEL] + fields[f, t.F_SENTINELS]):
            if raw == np.uint64(sentinels[s, t.S_RAW]):
                known = sentinels[s, t.S_STATE]
        if known == _VALID:
            kind = fields[f, t.F_NUMBER]
            number = np.int64(raw)
            if kind == _SIGNED and bits < 64:
                spare = np.int64(64 - bits)
                number = (number << spare) >> spare
            if fields[f, t.F_EXACT]:
                # an unsigned number of 64 bits with its highest bit set is beyond every bound
                beyond = kind != _SIGNED and number < 0
                if not beyond and fields[f, t.F_LOW] <= number and number <= fields[f, t.F_HIGH]:
                    value = number * fields[f, t.F_MUL] + fields[f, t.F_ADD]
                else:
                    known = np.int64(_OUT)
            else:
                if kind == _FLOAT32:
                    word[0] = np.uint64(raw) & np.uint64(0xFFFF_FFFF)
                    real = np.float64(single[0])
                elif kind == _FLOAT64:
                    word[0] = raw
                    real = double[0]
                elif kind == _SIGNED:
                    real = np.float64(number)
                else:
                    real = np.float64(raw)
                product = np.rint(real * doubles[f, t.D_MUL] + doubles[f, t.D_ADD])
                if np.isnan(product):
                    known = np.int64(_INVALID)
                elif doubles[f, t.D_LOW] <= product and product <= doubles[f, t.D_HIGH]:
                    value = np.int64(product)
                else:
                    known = np.int64(_OUT)
        slot = fields[f, t.F_SLOT]
        num[line, slot] = value
        digits[line, slot] = fields[f, t.F_DIGITS]
        state[line, slot] = known


@compiled
def _find_id(ids: I64, first: Any, count: Any, key: Any) -> Any:
    low, high = first, first + count
    while low < high:
        middle = (low + high) >> 1
        if ids[middle, t.I_KEY] < key:
            low = middle + 1
        else:
            high = middle
    return low if low < first + count and ids[low, t.I_KEY] == key else np.int64(-1)


@kernel(twin=extract_twin)
def _extract(
    data: U8, vin_at: I64, edition: U8, notes: Any, rest: I64, heap: U8,
    rules: I64, rule_of: I64, vins: U8, ids: I64, fields: I64, doubles: F64, sentinels: I64, conditions: I64,
    num: I64, digits: U8, state: U8,
) -> None:  # fmt: skip
    """Fill num (n, K) i64, digits (n, K) u8 (value = num / 10**digits) and state (n, K) u8 of ``n`` lines.

    vin_at (n,) i64 where each line's VIN begins in ``data`` · edition (n,) u8 · notes (n,) i16 · rest (n, 2) i64
    spans in ``heap``; the tables are those of ``Compiled``.
    """
    num[:] = 0
    digits[:] = 0
    state[:] = _ABSENT
    word = np.zeros(1, np.uint64)
    single = word.view(np.float32)
    double = word.view(np.float64)
    for line in range(len(vin_at)):
        at = rest[line, 0]
        stop = at + rest[line, 1]
        truncated = (notes[line] & NOTE_TRUNCATED) != 0
        while at + 3 <= stop:
            kind = np.int64(heap[at])
            begin = at + 3
            end = begin + (np.int64(heap[at + 1]) << 8 | np.int64(heap[at + 2]))
            at = end
            if end > stop or (truncated and end == stop):
                break  # the last one of a truncated report was cut off: kept with its length word, or in pieces
            rule = np.int64(-1)
            for r in range(rule_of[kind], rule_of[kind + 1]):
                if rules[r, t.R_EDITION] != 0 and rules[r, t.R_EDITION] != edition[line]:
                    continue
                same = True
                for i in range(rules[r, t.R_VIN_BYTES]):
                    same &= data[vin_at[line] + i] == vins[rules[r, t.R_VIN_AT] + i]
                if same:
                    rule = np.int64(r)
                    break
            if rule < 0:
                continue
            if rules[rule, t.R_CAN] == 0:
                _read_fields(
                    heap, begin, end, rules[rule, t.R_FIRST], rules[rule, t.R_COUNT],
                    fields, doubles, sentinels, conditions, line, num, digits, state, word, single, double,
                )  # fmt: skip
                continue
            little = rules[rule, t.R_LITTLE]
            frame = begin + rules[rule, t.R_HEAD]
            while True:
                room = rules[rule, t.R_DATA_BYTES]
                body = frame + rules[rule, t.R_DATA_AT]
                if body + max(room, 0) + rules[rule, t.R_TAIL] > end:
                    break
                length = room
                if rules[rule, t.R_LENGTH_AT] >= 0:
                    length = _word(heap, frame + rules[rule, t.R_LENGTH_AT], rules[rule, t.R_LENGTH_BYTES], little)
                    if rules[rule, t.R_LENGTH_CODE]:
                        length = np.int64(t.CODE_BYTES[min(length, 15)])
                    if room < 0:
                        room = length
                    length = min(length, room)
                if body + room + rules[rule, t.R_TAIL] > end:
                    break
                can_id = _word(heap, frame + rules[rule, t.R_ID_AT], rules[rule, t.R_ID_BYTES], little)
                plain = can_id & t.ID_BITS
                key = plain & rules[rule, t.R_MASK]
                if can_id & _EXTENDED or plain > t.STANDARD_MAX:
                    key |= _EXTENDED
                found = _find_id(ids, rules[rule, t.R_FIRST], rules[rule, t.R_COUNT], key)
                if found >= 0:
                    _read_fields(
                        heap, body, body + length, ids[found, t.I_FIRST], ids[found, t.I_COUNT],
                        fields, doubles, sentinels, conditions, line, num, digits, state, word, single, double,
                    )  # fmt: skip
                frame = body + room + rules[rule, t.R_TAIL]


# -- a batch ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """What a batch brought: rows with signals, and flaws by (slot, state)."""

    signals: tuple[Signal, ...]
    rows: int = 0
    flaws: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, len(State)), np.int64))

    def named_flaws(self) -> dict[tuple[str, str], int]:
        """(signal, state) → how many rows."""
        return {
            (self.signals[slot].name, State(state).name.lower()): int(self.flaws[slot, state])
            for slot, state in np.argwhere(self.flaws).tolist()
        }


class Extractor:
    """The signals file at work.  ``add_extra`` is what the pipeline calls."""

    def __init__(self, tables: Compiled) -> None:
        self.tables = tables
        self._types = np.zeros(256, bool)
        self._types[:] = np.diff(tables.rule_of) > 0
        self._chunk = max(1, _CELLS // max(1, tables.slots))

    def values(self, frames: Frames, batch: Batch, lines: I64) -> tuple[I64, U8, U8]:
        """num, digits and state, each (len(lines), slots): see the kernel."""
        n, tables = len(lines), self.tables
        num = np.empty((n, tables.slots), np.int64)
        digits, state = np.empty((n, tables.slots), np.uint8), np.empty((n, tables.slots), np.uint8)
        _extract(
            frames.data, frames.start[lines] + AT_VIN, batch.edition[lines], batch.notes[lines],
            np.ascontiguousarray(batch.var[lines, REST]), batch.heap,
            tables.rules, tables.rule_of, tables.vins, tables.ids, tables.fields, tables.doubles, tables.sentinels,
            tables.conditions, num, digits, state,
        )  # fmt: skip
        return num, digits, state

    def add_extra(self, frames: Frames, batch: Batch, lines: I64) -> Found:
        """Put the signals of the reports ``lines`` into ``batch.extra``; lines that have extra already keep theirs."""
        tables = self.tables
        found = Found(tables.signals, flaws=np.zeros((tables.slots, len(State)), np.int64))
        if not len(tables.rules):
            return found
        wanted = lines[(batch.notes[lines] & NOTE_CUSTOM_BLOCK) != 0]
        if not len(wanted):
            return found
        texts = [batch.extra_text]
        used = len(batch.extra_text)
        for at in range(0, len(wanted), self._chunk):
            some = wanted[at : at + self._chunk]
            num, digits, state = self.values(frames, batch, some)
            out = np.empty(len(some) * tables.text_max + 1, np.uint8)
            span = np.empty((len(some), 2), np.int64)
            size = int(write_text(num, digits, state, tables.labels, tables.label_at, out, span))
            span[:, 0] += used
            batch.extra[some] = span
            texts.append(out[:size])
            used += size
            found.rows += int((span[:, 1] > 0).sum())
            for flaw in (State.ABNORMAL, State.INVALID, State.OUT_OF_RANGE):
                found.flaws[:, flaw] += (state == flaw).sum(axis=0)
        batch.extra_text = np.concatenate(texts)
        return found


def warm() -> None:
    """Compile this module's kernels."""
    from schemas.custom.load import loads

    tables = t.compile_tables(loads('[[block]]\ntype = 0x80\n[[block.signal]]\nname = "warm"\nbyte = 0\n'))
    byte, wide = np.zeros(32, np.uint8), np.zeros(1, np.int64)
    frames = Frames(byte, wide, np.zeros(1, np.int32), wide, byte, byte, byte, np.zeros(1, np.uint32),
                    np.zeros(1, np.uint32), np.zeros(1, np.int32), wide, np.zeros(1, np.int32))  # fmt: skip
    batch = Batch.empty(1, 16)
    batch.notes[:], batch.edition[:], batch.var[:] = NOTE_CUSTOM_BLOCK, 16, 0
    batch.var[0, REST] = 0, 4
    batch.heap[:4] = 0x80, 0, 1, 7
    Extractor(tables).add_extra(frames, batch, wide)
