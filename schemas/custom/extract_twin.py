"""The specification of ``extract``'s kernel in plain Python: whole integers, one field at a time."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from schemas.batch import I64, NOTE_TRUNCATED, U8
from schemas.custom import tables as t
from schemas.custom.model import EXTENDED, Number
from schemas.custom.tables import F64
from schemas.signals import State


def _raw(body: bytes, row: Any, byte: int) -> int:
    """``row`` is (byte, size, little, shift, bits) from index ``byte`` on."""
    at, size, little, shift, bits = (int(x) for x in row[byte : byte + 5])
    whole = int.from_bytes(body[at : at + size], "little" if little else "big")
    return (whole >> shift) & ((1 << bits) - 1)


def extract_twin(
    data: U8, vin_at: I64, edition: U8, notes: Any, rest: I64, heap: U8,
    rules: I64, rule_of: I64, vins: U8, ids: I64, fields: I64, doubles: F64, sentinels: I64, conditions: I64,
    num: I64, digits: U8, state: U8,
) -> None:  # fmt: skip
    num[:], digits[:], state[:] = 0, 0, State.ABSENT
    for line in range(len(vin_at)):
        vin = data[vin_at[line] : vin_at[line] + 17].tobytes()
        kept = heap[rest[line, 0] : rest[line, 0] + rest[line, 1]].tobytes()
        blocks = []
        while len(kept) >= 3 and len(kept) >= 3 + int.from_bytes(kept[1:3], "big"):
            end = 3 + int.from_bytes(kept[1:3], "big")
            blocks.append((kept[0], kept[3:end]))
            kept = kept[end:]
        if notes[line] & NOTE_TRUNCATED and not kept:
            blocks = blocks[:-1]
        for kind, body in blocks:
            for rule in rules[rule_of[kind] : rule_of[kind + 1]]:
                prefix = vins[rule[t.R_VIN_AT] : rule[t.R_VIN_AT] + rule[t.R_VIN_BYTES]].tobytes()
                if vin.startswith(prefix) and rule[t.R_EDITION] in (0, edition[line]):
                    break
            else:
                continue
            for part, first, count in _bodies(body, rule, ids):
                for at in range(first, first + count):
                    _read_field(part, at, fields, doubles, sentinels, conditions, line, num, digits, state)


def _bodies(body: bytes, rule: I64, ids: I64) -> list[tuple[bytes, int, int]]:
    """Each part of a block that has fields, with which: the block itself, or its CAN frames."""
    if not rule[t.R_CAN]:
        return [(body, int(rule[t.R_FIRST]), int(rule[t.R_COUNT]))]
    order: Any = "little" if rule[t.R_LITTLE] else "big"
    messages = {
        int(key): (int(first), int(n)) for key, first, n in ids[rule[t.R_FIRST] : rule[t.R_FIRST] + rule[t.R_COUNT]]
    }
    found: list[tuple[bytes, int, int]] = []
    at = int(rule[t.R_HEAD])
    while True:
        room, length = int(rule[t.R_DATA_BYTES]), int(rule[t.R_DATA_BYTES])
        if at + rule[t.R_DATA_AT] + max(0, room) + rule[t.R_TAIL] > len(body):
            return found
        if rule[t.R_LENGTH_AT] >= 0:
            begin = at + int(rule[t.R_LENGTH_AT])
            length = int.from_bytes(body[begin : begin + int(rule[t.R_LENGTH_BYTES])], order)
            if rule[t.R_LENGTH_CODE]:
                length = t.CODE_BYTES[min(length, 15)]
            if room < 0:
                room = length
            length = min(length, room)
        begin = at + int(rule[t.R_DATA_AT])
        if begin + room + rule[t.R_TAIL] > len(body):
            return found
        can_id = int.from_bytes(body[at + int(rule[t.R_ID_AT]) :][: int(rule[t.R_ID_BYTES])], order)
        extended = can_id & EXTENDED or can_id & t.ID_BITS > t.STANDARD_MAX
        key = (can_id & t.ID_BITS & int(rule[t.R_MASK])) | (EXTENDED if extended else 0)
        if key in messages:
            found.append((body[begin : begin + length], *messages[key]))
        at = begin + room + int(rule[t.R_TAIL])


def _read_field(
    body: bytes, at: int, fields: I64, doubles: F64, sentinels: I64, conditions: I64, line: int,
    num: I64, digits: U8, state: U8,
) -> None:  # fmt: skip
    row = fields[at]
    if row[t.F_BYTE] + row[t.F_SIZE] > len(body):
        return
    groups: dict[int, bool] = {}
    for condition in conditions[row[t.F_CONDITION] : row[t.F_CONDITION] + row[t.F_CONDITIONS]]:
        fits = condition[t.C_BYTE] + condition[t.C_SIZE] <= len(body)
        holds = fits and condition[t.C_LOW] <= _raw(body, condition, t.C_BYTE) <= condition[t.C_HIGH]
        groups[int(condition[t.C_GROUP])] = groups.get(int(condition[t.C_GROUP]), False) or bool(holds)
    if not all(groups.values()):
        return
    raw = _raw(body, row, t.F_BYTE)
    value, known = 0, State.VALID
    for pattern, what in sentinels[row[t.F_SENTINEL] : row[t.F_SENTINEL] + row[t.F_SENTINELS]]:
        if raw == int(pattern) % (1 << 64):
            known = State(what)
    if known == State.VALID:
        number: Any = raw
        if row[t.F_NUMBER] == Number.SIGNED and raw >> (int(row[t.F_BITS]) - 1):
            number = raw - (1 << int(row[t.F_BITS]))
        elif row[t.F_NUMBER] == Number.FLOAT32:
            number = struct.unpack(">f", raw.to_bytes(4, "big"))[0]
        elif row[t.F_NUMBER] == Number.FLOAT64:
            number = struct.unpack(">d", raw.to_bytes(8, "big"))[0]
        if row[t.F_EXACT]:
            if row[t.F_LOW] <= number <= row[t.F_HIGH]:
                value = number * int(row[t.F_MUL]) + int(row[t.F_ADD])
            else:
                known = State.OUT_OF_RANGE
        else:
            mul, add, low, high = doubles[at].tolist()
            with np.errstate(all="ignore"):
                product = float(np.rint(np.float64(number) * mul + add))
            if product != product:
                known = State.INVALID
            elif low <= product <= high:
                value = int(product)
            else:
                known = State.OUT_OF_RANGE
    num[line, row[t.F_SLOT]], digits[line, row[t.F_SLOT]], state[line, row[t.F_SLOT]] = value, row[t.F_DIGITS], known
