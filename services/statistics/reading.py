"""Telemetry read back: a binary COPY, as the server sends it, into arrays, by one kernel.

What the statistics need of a row and no more.  It must never build an object per row, and never decide what a value
means: that is :mod:`services.statistics.making`.

Format: PostgreSQL's COPY page, "Binary Format": signature, flags, extension length; per tuple a field count (i16), per
field a length (i32, -1 = NULL) and the bytes in network order; a count of -1 at the end.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,return-value,assignment"

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from schemas.jit import compiled, kernel
from schemas.signals import INDEX, SIGNALS
from schemas.statistics.columns import COLUMNS, HEAD, TAIL
from schemas.statistics.records import F64, FIELDS, I32, I64, U8

LIST_CELLS, LIST_PROBES, LIST_FLAWS = range(3)

_HEADER_BYTES: Final = 19
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000
_EPOCH_S: Final = _POSTGRES_EPOCH_US // 1_000_000
_ROW_BYTES_MIN: Final = 2 + 3 * 12 + 3 * 6 + 4 * (len(FIELDS) + len(TAIL))
_TYPES: Final = {"smallint": 2, "integer": 4, "bigint": 8, "real": 5, "double precision": 9}
_SMALLINT, _INTEGER, _BIGINT, _REAL, _DOUBLE = 2, 4, 8, 5, 9
# Column type and divisor of each field: a real is put back on its step, 65.300003 is 653 / 10
FIELD_TYPES: Final[I64] = np.array([(_TYPES[SIGNALS[INDEX[name]].sql], SIGNALS[INDEX[name]].div) for name in FIELDS])


@dataclass(slots=True)
class Rows:
    """``n`` telemetry rows by (window, time, kind, part), as they came.

    window (n,) i32 · time_s (n,) i64 · received_us (n,) i64 microseconds since 1970 UTC · kind, edition (n,) u8 · part
    (n,) i32 · x (n, len(FIELDS)) f64, NaN where NULL · lists (n, 3, 2) i64: begin and length in data (bytes,) u8 of
    cells, temps and flaws, length 0 where NULL.
    """

    window: I32
    time_s: I64
    received_us: I64
    kind: U8
    part: I32
    edition: U8
    x: F64
    lists: I64
    data: U8

    @property
    def n(self) -> int:
        return len(self.time_s)

    def take(self, keep: Any) -> Rows:
        """The rows that ``keep`` selects; ``data`` is shared."""
        return Rows(
            self.window[keep], self.time_s[keep], self.received_us[keep], self.kind[keep], self.part[keep],
            self.edition[keep], self.x[keep], self.lists[keep], self.data,
        )  # fmt: skip


def _parse_twin(
    data: U8, types: I64, window: I32, time_s: I64, received_us: I64, kind: U8, part: I32, edition: U8, x: F64,
    lists: I64,
) -> int:  # fmt: skip
    raw = data.tobytes()
    at, n = _HEADER_BYTES, 0
    while True:
        (count,) = struct.unpack_from(">h", raw, at)
        at += 2
        if count == -1:
            return n if at == len(raw) else -1
        if count != len(COLUMNS):
            return -1
        spans = []
        for _ in range(count):
            (size,) = struct.unpack_from(">i", raw, at)
            at += 4
            spans.append((at, size))
            at += max(size, 0)
        head = [int.from_bytes(raw[begin : begin + size], "big", signed=True) for begin, size in spans[: len(HEAD)]]
        window[n], kind[n], edition[n] = head[0], head[3], head[5]
        time_s[n] = head[1] // 1_000_000 + _EPOCH_S
        received_us[n], part[n] = head[2] + _POSTGRES_EPOCH_US, head[4] & 0xFFFF
        for field, (begin, size) in enumerate(spans[len(HEAD) : len(HEAD) + len(FIELDS)]):
            body, (form, div) = raw[begin : begin + size], types[field]
            if size == -1:
                x[n, field] = np.nan
            elif form in (_REAL, _DOUBLE):
                (value,) = struct.unpack(">f" if form == _REAL else ">d", body)
                x[n, field] = np.floor(value * div + 0.5) / div if div > 1 else value
            else:
                x[n, field] = int.from_bytes(body, "big", signed=True)
        for k, (begin, size) in enumerate(spans[-len(TAIL) :]):
            lists[n, k] = begin, max(size, 0)
        n += 1


@compiled
def _int16(data: U8, at: Any) -> Any:
    return np.int64(np.int16(np.uint16(data[at]) << np.uint16(8) | np.uint16(data[at + 1])))


@compiled
def _uint32(data: U8, at: Any) -> Any:
    return (
        np.uint32(data[at]) << np.uint32(24)
        | np.uint32(data[at + 1]) << np.uint32(16)
        | np.uint32(data[at + 2]) << np.uint32(8)
        | np.uint32(data[at + 3])
    )


@compiled
def _uint64(data: U8, at: Any) -> Any:
    return np.uint64(_uint32(data, at)) << np.uint64(32) | np.uint64(_uint32(data, at + 4))


@kernel(twin=_parse_twin)
def parse(
    data: U8, types: I64, window: I32, time_s: I64, received_us: I64, kind: U8, part: I32, edition: U8, x: F64,
    lists: I64,
) -> int:  # fmt: skip
    """The tuples of ``data`` into the arrays of :class:`Rows`; returns how many, -1 when it is not such a stream."""
    one = np.empty(1, np.uint32)
    two = np.empty(1, np.uint64)
    at = np.int64(_HEADER_BYTES)
    n = np.int64(0)
    fields = len(types)
    while at + 2 <= len(data):
        count = _int16(data, at)
        at += 2
        if count == -1:
            return n if at == len(data) else np.int64(-1)
        if count != fields + 9:
            return np.int64(-1)
        window[n] = np.int32(np.int64(_uint64(data, at + 4)))
        # Whole seconds: telemetry has no others. Before 2000 the quotient must round down, as it does here.
        time_s[n] = np.int64(_uint64(data, at + 16)) // 1_000_000 + _EPOCH_S
        received_us[n] = np.int64(_uint64(data, at + 28)) + _POSTGRES_EPOCH_US
        kind[n] = np.uint8(_int16(data, at + 40))
        part[n] = np.int32(_int16(data, at + 46) & 0xFFFF)
        edition[n] = np.uint8(_int16(data, at + 52))
        at += 54
        for field in range(fields):
            size = np.int64(np.int32(_uint32(data, at)))
            at += 4
            if size < 0:
                x[n, field] = np.nan
                continue
            form = types[field, 0]
            div = types[field, 1]
            if form == _SMALLINT:
                x[n, field] = _int16(data, at)
            elif form == _INTEGER:
                x[n, field] = np.int32(_uint32(data, at))
            elif form == _BIGINT:
                x[n, field] = np.int64(_uint64(data, at))
            else:
                if form == _REAL:
                    one[0] = _uint32(data, at)
                    value = np.float64(one.view(np.float32)[0])
                else:
                    two[0] = _uint64(data, at)
                    value = two.view(np.float64)[0]
                x[n, field] = np.floor(value * div + 0.5) / div if div > 1 else value
            at += size
        for k in range(3):
            size = np.int64(np.int32(_uint32(data, at)))
            at += 4
            lists[n, k, 0] = at
            lists[n, k, 1] = max(size, np.int64(0))
            at += max(size, np.int64(0))
        n += 1
    return np.int64(-1)


def rows_of(data: bytearray) -> Rows:
    """The rows of one COPY of :data:`COLUMNS`."""
    raw = np.frombuffer(data, np.uint8)
    most = len(raw) // _ROW_BYTES_MIN + 1  # memory that is not written to is not taken
    rows = Rows(
        np.empty(most, np.int32), np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.uint8),
        np.empty(most, np.int32), np.empty(most, np.uint8), np.empty((most, len(FIELDS))),
        np.empty((most, len(TAIL), 2), np.int64), raw,
    )  # fmt: skip
    n = int(
        parse(
            raw, FIELD_TYPES, rows.window, rows.time_s, rows.received_us, rows.kind, rows.part, rows.edition, rows.x,
            rows.lists,
        )
    )  # fmt: skip
    assert n >= 0, "the server's COPY is not of the columns that were asked for"
    return rows.take(slice(0, n))


def empty_stream() -> bytearray:
    """A COPY without a row."""
    return bytearray(b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\xff\xff")


def warm() -> None:
    """Compile this module's kernel."""
    rows_of(empty_stream())
