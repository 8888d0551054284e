"""A signals file as arrays that the kernels of ``extract`` walk.

Built once at start, read-only from then on; the columns of each table are named below, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I64, U8
from schemas.custom.model import (
    DIGITS_MAX,
    Bits,
    BlockRule,
    CanRule,
    Field,
    Number,
    Signal,
    SignalsFile,
)
from schemas.custom.text import FLAWS_BYTES, VALUE_BYTES

F64 = NDArray[np.float64]

_I64_MAX: Final = 2**63 - 1
_EXACT_MAX: Final = 2**53  # beyond it a double has no units any more
_ROUNDED_DIGITS_MAX: Final = 9

# rules: one a VIN prefix and rule, the most particular of a block type first
(
    R_CAN, R_EDITION, R_VIN_AT, R_VIN_BYTES, R_FIRST, R_COUNT,  # FIRST, COUNT: fields of a block, ids of a can block
    R_HEAD, R_ID_AT, R_ID_BYTES, R_LENGTH_AT, R_LENGTH_BYTES, R_LENGTH_CODE, R_DATA_AT, R_DATA_BYTES, R_TAIL, R_LITTLE,
    R_MASK, R_COLUMNS,
) = range(18)  # fmt: skip
I_KEY, I_FIRST, I_COUNT, I_COLUMNS = range(4)  # ids of a rule, ascending by key
(
    F_SLOT, F_BYTE, F_SIZE, F_LITTLE, F_SHIFT, F_BITS, F_NUMBER, F_EXACT, F_MUL, F_ADD, F_LOW, F_HIGH, F_DIGITS,
    F_SENTINEL, F_SENTINELS, F_CONDITION, F_CONDITIONS, F_COLUMNS,
) = range(18)  # fmt: skip
D_MUL, D_ADD, D_LOW, D_HIGH, D_COLUMNS = range(5)  # of a field that is not exact: doubles
S_RAW, S_STATE, S_COLUMNS = range(3)
# conditions: alternatives of one GROUP follow each other, groups must all hold
C_GROUP, C_BYTE, C_SIZE, C_LITTLE, C_SHIFT, C_BITS, C_LOW, C_HIGH, C_COLUMNS = range(9)

ID_BITS: Final = 0x1FFF_FFFF
STANDARD_MAX: Final = 0x7FF  # the highest CAN id of 11 bits
CODE_BYTES: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64)  # of a length code (ISO 11898-1)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Kernel tables of a file, and its signals by slot.

    rule_of (257,) i64: first rule of each block type and, one further, its end · vins (bytes,) u8 · labels (bytes,)
    u8 and label_at (K + 1,) i64: the signals' names as JSON keys, ``"name":``.
    """

    file: SignalsFile
    signals: tuple[Signal, ...]
    rules: I64
    rule_of: I64
    vins: U8
    ids: I64
    fields: I64
    doubles: F64
    sentinels: I64
    conditions: I64
    labels: U8
    label_at: I64

    @property
    def slots(self) -> int:
        return len(self.signals)

    @property
    def text_max(self) -> int:
        """Most bytes that one row's text can take."""
        return len(self.labels) + VALUE_BYTES * self.slots + FLAWS_BYTES


class _Rows:
    """Rows of the tables as they grow."""

    def __init__(self) -> None:
        self.rules: list[list[int]] = []
        self.ids: list[list[int]] = []
        self.fields: list[list[int]] = []
        self.doubles: list[list[float]] = []
        self.sentinels: list[list[int]] = []
        self.conditions: list[list[int]] = []

    def put_fields(self, fields: Iterable[Field], slot_of: dict[str, int]) -> tuple[int, int]:
        first = len(self.fields)
        for field in fields:
            row, doubles = _field_row(field)
            row[F_SLOT] = slot_of[field.signal]
            row[F_SENTINEL], row[F_SENTINELS] = len(self.sentinels), len(field.sentinels)
            self.sentinels += [[_signed(raw), int(state)] for raw, state in field.sentinels]
            row[F_CONDITION] = len(self.conditions)
            for group, condition in enumerate(field.conditions):
                for low, high in _runs(condition.values):
                    self.conditions.append([group, *_bits(condition.bits), low, high])
            row[F_CONDITIONS] = len(self.conditions) - row[F_CONDITION]
            self.fields.append(row)
            self.doubles.append(doubles)
        return first, len(self.fields) - first


def compile_tables(file: SignalsFile) -> Compiled:
    """The tables of ``file``."""
    slot_of = {name: slot for slot, name in enumerate(file.signals)}
    rows = _Rows()
    vins = bytearray()
    keyed: list[tuple[tuple[int, int, int], list[int]]] = []
    rules: tuple[BlockRule | CanRule, ...] = (*file.blocks, *file.can)
    for rule in rules:
        row = _block_row(rule, rows, slot_of) if isinstance(rule, BlockRule) else _can_row(rule, rows, slot_of)
        row[R_EDITION] = rule.match.edition
        for vin in rule.match.vins or ("",):
            # the longer prefix, then a named edition: what is said more particularly goes first
            key = (rule.match.block, -len(vin), 0 if rule.match.edition else 1)
            mine = list(row)
            mine[R_VIN_AT], mine[R_VIN_BYTES] = len(vins), len(vin)
            vins += vin.encode("ascii")
            keyed.append((key, mine))
    keyed.sort(key=lambda pair: pair[0])
    rule_of = np.searchsorted(np.array([key[0] for key, _ in keyed], np.int64), np.arange(257)).astype(np.int64)
    labels = [f'"{name}":'.encode() for name in file.signals]
    return Compiled(
        file=file,
        signals=tuple(file.signals.values()),
        rules=_table([row for _, row in keyed], R_COLUMNS),
        rule_of=rule_of,
        vins=np.frombuffer(bytearray(vins or b"\0"), np.uint8),
        ids=_table(rows.ids, I_COLUMNS),
        fields=_table(rows.fields, F_COLUMNS),
        doubles=np.array(rows.doubles, np.float64).reshape(-1, D_COLUMNS),
        sentinels=_table(rows.sentinels, S_COLUMNS),
        conditions=_table(rows.conditions, C_COLUMNS),
        labels=np.frombuffer(bytearray(b"".join(labels) or b"\0"), np.uint8),
        label_at=np.cumsum([0, *map(len, labels)], dtype=np.int64),
    )


def _table(rows: list[list[int]], columns: int) -> I64:
    return np.array(rows, np.int64).reshape(-1, columns)


def _block_row(rule: BlockRule, rows: _Rows, slot_of: dict[str, int]) -> list[int]:
    row = [0] * R_COLUMNS
    row[R_FIRST], row[R_COUNT] = rows.put_fields(rule.fields, slot_of)
    return row


def _can_row(rule: CanRule, rows: _Rows, slot_of: dict[str, int]) -> list[int]:
    row, layout = [0] * R_COLUMNS, rule.layout
    row[R_CAN], row[R_FIRST], row[R_COUNT] = 1, len(rows.ids), len(rule.messages)
    row[R_HEAD:R_COLUMNS] = [
        layout.head, layout.id_at, layout.id_bytes, layout.length_at, layout.length_bytes, int(layout.length_is_code),
        layout.data_at, layout.data_bytes, layout.tail, int(layout.little), layout.id_mask,
    ]  # fmt: skip
    for message in sorted(rule.messages, key=lambda message: message.key):
        rows.ids.append([message.key, *rows.put_fields(message.fields, slot_of)])
    return row


def _bits(bits: Bits) -> tuple[int, ...]:
    return bits.byte, bits.size, int(bits.little), bits.shift, bits.count


def _signed(raw: int) -> int:
    """A pattern of 64 bits as the i64 that has it."""
    return raw - (1 << 64) if raw > _I64_MAX else raw


def _runs(values: frozenset[int]) -> list[tuple[int, int]]:
    """{1, 2, 3, 7} → (1, 3), (7, 7)."""
    runs: list[tuple[int, int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return runs


def decimals_of(value: Decimal) -> int:
    """1.50 → 1, 0.125 → 3, 100 → 0."""
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def _field_row(field: Field) -> tuple[list[int], list[float]]:
    """A field's row, slot and spans still open.

    Exact where it can be: raw · mul + add in whole steps of 10**-digits.  A float, or a factor with so many decimals
    that the product leaves 64 bits, is reckoned in doubles and rounded to what they can hold.
    """
    row = [0] * F_COLUMNS
    row[F_BYTE : F_BITS + 1] = _bits(field.bits)
    row[F_NUMBER] = int(field.number)
    digits = max(decimals_of(field.scale), decimals_of(field.offset))
    if field.number < Number.FLOAT32 and digits <= DIGITS_MAX:
        low, high = (max(-_I64_MAX, min(_I64_MAX, end)) for end in field.raw_bounds())
        mul, add = int(field.scale * 10**digits), int(field.offset * 10**digits)
        if max(abs(low * mul), abs(high * mul), abs(low * mul + add), abs(high * mul + add), abs(mul)) <= _I64_MAX:
            row[F_EXACT], row[F_MUL], row[F_ADD], row[F_LOW], row[F_HIGH], row[F_DIGITS] = (
                1,
                mul,
                add,
                low,
                high,
                digits,
            )
            return row, [0.0] * D_COLUMNS
    digits = _rounded_digits(field)
    row[F_DIGITS] = digits
    low_d, high_d = -float(_EXACT_MAX), float(_EXACT_MAX)
    if field.low is not None and field.high is not None:
        low_d = max(low_d, float(math.ceil(field.low * 10**digits)))
        high_d = min(high_d, float(math.floor(field.high * 10**digits)))
    return row, [float(field.scale * 10**digits), float(field.offset * 10**digits), low_d, high_d]


def _rounded_digits(field: Field) -> int:
    if field.number >= Number.FLOAT32:
        wanted = max(field.decimals, decimals_of(field.scale), decimals_of(field.offset))
        most = max(abs(end) for end in (field.low or Decimal(0), field.high or Decimal(0)))
    else:
        wanted = _ROUNDED_DIGITS_MAX
        most = max(abs(end * field.scale + field.offset) for end in field.raw_bounds())
    room = int(math.log10(_EXACT_MAX / (float(most) + 1)))
    return max(0, min(wanted, room, _ROUNDED_DIGITS_MAX))
