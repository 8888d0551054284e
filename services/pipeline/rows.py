"""Binary COPY streams for ``telemetry`` and ``vehicle_state``, written by one kernel from the arrays.

A stream has only the columns that some row of it has a value for: a fleet that never sends fuel-cell
blocks pays nothing for them, here, on the wire and in the server.  The types must be those of the
DDL; a test holds them against the store's own list.

Format: PostgreSQL's COPY page, "Binary Format": signature, flags, extension length; per tuple a field
count (i16), per field a length (i32, -1 = NULL) and the bytes in network order; a count of -1 at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np

from schemas.batch import I16, I32, I64, REST, U8, VAR_COLUMNS, Batch, CopyStream, Frames
from schemas.jit import compiled, kernel
from schemas.signals import INDEX, SIGNAL_COUNT, SIGNALS, State

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01 UTC, from where PostgreSQL counts, in Unix time
_SLACK: Final = 64


class Field(IntEnum):
    """Where a column's value comes from, and its type on the wire."""

    VEHICLE_ID = 0  # bigint
    TIME = 1  # timestamptz
    RECEIVED_AT = 2  # timestamptz
    KIND = 3  # smallint, as are the next three
    PART = 4
    EDITION = 5
    DOOR = 6
    DIGEST = 7  # bigint
    NOTES = 8  # smallint, NULL when 0
    REPORTS = 9  # bigint
    VAR = 10  # bytea, index = which of VAR_COLUMNS
    FLAWS = 11  # bytea
    EXTRA = 12  # jsonb: a version byte, then the text
    SMALLINT = 13  # signals from here on, index = which of SIGNALS
    INTEGER = 14
    BIGINT = 15
    REAL = 16
    DOUBLE = 17


_SQL_FIELD: Final = {
    "smallint": Field.SMALLINT,
    "integer": Field.INTEGER,
    "bigint": Field.BIGINT,
    "real": Field.REAL,
    "double precision": Field.DOUBLE,
}

# numba freezes plain module integers into the kernel
_VEHICLE_ID, _TIME, _RECEIVED_AT = int(Field.VEHICLE_ID), int(Field.TIME), int(Field.RECEIVED_AT)
_KIND, _PART, _EDITION, _DOOR = int(Field.KIND), int(Field.PART), int(Field.EDITION), int(Field.DOOR)
_DIGEST, _NOTES, _REPORTS, _VAR, _FLAWS, _EXTRA = (
    int(f) for f in (Field.DIGEST, Field.NOTES, Field.REPORTS, Field.VAR, Field.FLAWS, Field.EXTRA)
)
_SMALLINT, _INTEGER, _BIGINT, _REAL = int(Field.SMALLINT), int(Field.INTEGER), int(Field.BIGINT), int(Field.REAL)
_VALID, _SUSPECT, _ABNORMAL = int(State.VALID), int(State.SUSPECT), int(State.ABNORMAL)
_REST: Final = REST


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a stream: ``index`` is a signal or a variable-length column, see :class:`Field`."""

    name: str
    field: Field
    index: int = 0
    div: int = 1


def _signal(name: str) -> Column:
    signal = SIGNALS[INDEX[name]]
    return Column(name, _SQL_FIELD[signal.sql], INDEX[name], signal.div)


_KEYS: Final = (
    Column("vehicle_id", Field.VEHICLE_ID),
    Column("time", Field.TIME),
    Column("received_at", Field.RECEIVED_AT),
    Column("kind", Field.KIND),
    Column("part", Field.PART),
    Column("edition", Field.EDITION),
    Column("door", Field.DOOR),
)

TELEMETRY: Final[tuple[Column, ...]] = (
    *_KEYS,
    Column("digest", Field.DIGEST),
    Column("notes", Field.NOTES),
    *(_signal(signal.name) for signal in SIGNALS),
    *(Column(name, Field.VAR, index) for index, name in enumerate(VAR_COLUMNS)),
    Column("flaws", Field.FLAWS),
    Column("extra", Field.EXTRA),
)

VEHICLE_STATE: Final[tuple[Column, ...]] = (
    *_KEYS,
    *(_signal(name) for name in (
        "speed_kmh", "odometer_km", "soc_pct", "total_voltage_v", "total_current_a", "vehicle_state", "charge_state",
        "alarm_level", "alarm_flags", "longitude_deg", "latitude_deg", "location_valid",
    )),
    Column("reports", Field.REPORTS),
)  # fmt: skip

_BYTES_MAX: Final = {  # of a field with its length word; bytea apart
    **dict.fromkeys((Field.KIND, Field.PART, Field.EDITION, Field.DOOR, Field.NOTES, Field.SMALLINT), 6),
    **dict.fromkeys((Field.INTEGER, Field.REAL, Field.VAR, Field.FLAWS), 8),
    Field.EXTRA: 5,
}


# -- which columns, and how large ------------------------------------------------------------------------


def _presence_twin(lines: I64, notes: I16, state: U8, var: I64, signals: U8, sizes: I64) -> None:
    for line in lines:
        values = state[line]
        for signal in range(SIGNAL_COUNT):
            if values[signal] in (State.VALID, State.SUSPECT):
                signals[signal] = 1
        sizes[0] += notes[line] != 0
        sizes[1] += 2 * sum(int(value) >= State.ABNORMAL for value in values)
        for index in range(len(VAR_COLUMNS)):
            sizes[2 + index] += var[line, index, 1]


@kernel(twin=_presence_twin)
def _presence(lines: I64, notes: I16, state: U8, var: I64, signals: U8, sizes: I64) -> None:
    """signals (SIGNAL_COUNT,) u8 := 1 where some line has a value; sizes (7,) i64 += lines with notes,
    bytes of flaws, bytes of each variable-length column."""
    for k in range(len(lines)):
        line = lines[k]
        flawed = np.int64(0)
        for signal in range(SIGNAL_COUNT):
            value = state[line, signal]
            signals[signal] |= np.uint8(value == _VALID) | np.uint8(value == _SUSPECT)
            flawed += np.uint8(value >= _ABNORMAL)
        if notes[line] != 0:
            sizes[0] += 1
        sizes[1] += 2 * flawed
        for index in range(_REST + 1):
            sizes[2 + index] += var[line, index, 1]


# -- the stream ----------------------------------------------------------------------------------------


def _copy_rows_twin(
    data: U8, received_us: I64, door: U8, lines: I64, vehicle_id: I64, reports: I64, columns: I64,
    kind: U8, edition: U8, notes: I16, time_s: I64, part: I16, digest: I64, num: I32, state: U8, var: I64, heap: U8,
    extra: I64, extra_text: U8, out: U8,
) -> int:  # fmt: skip
    at = len(HEADER)

    def put(body: bytes) -> None:
        nonlocal at
        out[at : at + len(body)] = np.frombuffer(body, np.uint8)
        at += len(body)

    for k, line in enumerate(lines.tolist()):
        put(struct.pack(">h", len(columns)))
        for field, index, div in columns.tolist():
            value = int(num[line, index]) if field >= Field.SMALLINT else 0
            if field >= Field.SMALLINT and state[line, index] not in (State.VALID, State.SUSPECT):
                body = None
            elif field == Field.VEHICLE_ID:
                body = struct.pack(">q", vehicle_id[k])
            elif field == Field.TIME:
                body = struct.pack(">q", int(time_s[line]) * 1_000_000 - _POSTGRES_EPOCH_US)
            elif field == Field.RECEIVED_AT:
                body = struct.pack(">q", int(received_us[line]) - _POSTGRES_EPOCH_US)
            elif field in (Field.KIND, Field.PART, Field.EDITION, Field.DOOR):
                sources: dict[int, Any] = {Field.KIND: kind, Field.PART: part, Field.EDITION: edition, Field.DOOR: door}
                body = struct.pack(">h", sources[field][line])
            elif field == Field.DIGEST:
                body = struct.pack(">q", digest[line])
            elif field == Field.NOTES:
                body = struct.pack(">h", notes[line]) if notes[line] else None
            elif field == Field.REPORTS:
                body = struct.pack(">q", reports[k])
            elif field == Field.VAR:
                begin, length = var[line, index].tolist()
                kept = heap if index == REST else data
                body = kept[begin : begin + length].tobytes() if length else None
            elif field == Field.FLAWS:
                flaws = [(signal, int(s)) for signal, s in enumerate(state[line]) if s >= State.ABNORMAL]
                body = bytes(byte for flaw in flaws for byte in flaw) or None
            elif field == Field.EXTRA:
                begin, length = extra[line].tolist()
                body = b"\x01" + extra_text[begin : begin + length].tobytes() if length else None
            elif field == Field.SMALLINT:
                body = struct.pack(">h", value)
            elif field == Field.INTEGER:
                body = struct.pack(">i", value)
            elif field == Field.BIGINT:
                body = struct.pack(">q", value & 0xFFFF_FFFF)  # alarm_flags, the one unsigned signal
            elif field == Field.REAL:
                body = struct.pack(">f", value / div)
            else:
                body = struct.pack(">d", value / div)
            put(struct.pack(">i", -1) if body is None else struct.pack(">i", len(body)) + body)
    return at


@compiled
def _put16(out: U8, at: Any, value: Any) -> None:
    # Written low to high with unsigned indices, these become one byte swap and one store.
    bits = np.uint16(value)
    out[at] = np.uint8(bits >> np.uint16(8))
    out[at + np.uint64(1)] = np.uint8(bits)


@compiled
def _put32(out: U8, at: Any, value: Any) -> None:
    bits = np.uint32(value)
    out[at] = np.uint8(bits >> np.uint32(24))
    out[at + np.uint64(1)] = np.uint8(bits >> np.uint32(16))
    out[at + np.uint64(2)] = np.uint8(bits >> np.uint32(8))
    out[at + np.uint64(3)] = np.uint8(bits)


@compiled
def _put64(out: U8, at: Any, value: Any) -> None:
    bits = np.uint64(value)
    out[at] = np.uint8(bits >> np.uint64(56))
    out[at + np.uint64(1)] = np.uint8(bits >> np.uint64(48))
    out[at + np.uint64(2)] = np.uint8(bits >> np.uint64(40))
    out[at + np.uint64(3)] = np.uint8(bits >> np.uint64(32))
    out[at + np.uint64(4)] = np.uint8(bits >> np.uint64(24))
    out[at + np.uint64(5)] = np.uint8(bits >> np.uint64(16))
    out[at + np.uint64(6)] = np.uint8(bits >> np.uint64(8))
    out[at + np.uint64(7)] = np.uint8(bits)


@kernel(twin=_copy_rows_twin)
def _copy_rows(
    data: U8, received_us: I64, door: U8, lines: I64, vehicle_id: I64, reports: I64, columns: I64,
    kind: U8, edition: U8, notes: I16, time_s: I64, part: I16, digest: I64, num: I32, state: U8, var: I64, heap: U8,
    extra: I64, extra_text: U8, out: U8,
) -> int:  # fmt: skip
    # The cursor is unsigned: numba then leaves out the test for negative indices, which halves the time.
    at = np.uint64(19)
    two, four, six, eight, twelve = np.uint64(2), np.uint64(4), np.uint64(6), np.uint64(8), np.uint64(12)
    count = len(columns)
    for k in range(len(lines)):
        line = lines[k]
        _put16(out, at, count)
        at += two
        for c in range(count):
            field = columns[c, 0]
            index = columns[c, 1]
            if field >= _SMALLINT:
                known = state[line, index]
                if known != _VALID and known != _SUSPECT:
                    _put32(out, at, -1)
                    at += four
                    continue
                value = num[line, index]
                if field == _SMALLINT:
                    _put32(out, at, 2)
                    _put16(out, at + four, value)
                    at += six
                elif field == _REAL:
                    _put32(out, at, 4)
                    real = np.float32(np.float64(value) / np.float64(columns[c, 2]))
                    _put32(out, at + four, real.view(np.uint32))
                    at += eight
                elif field == _INTEGER:
                    _put32(out, at, 4)
                    _put32(out, at + four, value)
                    at += eight
                elif field == _BIGINT:
                    _put32(out, at, 8)
                    _put64(out, at + four, np.uint32(value))
                    at += twelve
                else:
                    _put32(out, at, 8)
                    double = np.float64(np.float64(value) / np.float64(columns[c, 2]))
                    _put64(out, at + four, double.view(np.uint64))
                    at += twelve
            elif field == _VAR:
                begin = np.uint64(var[line, index, 0])
                length = np.uint64(var[line, index, 1])
                if length == 0:
                    _put32(out, at, -1)
                    at += four
                    continue
                _put32(out, at, length)
                at += four
                # Two loops rather than one over "heap or data": each becomes a memcpy-like vector loop.
                if index == _REST:
                    for i in range(length):
                        out[at + i] = heap[begin + i]
                else:
                    for i in range(length):
                        out[at + i] = data[begin + i]
                at += length
            elif field == _FLAWS:
                begin = at
                at += four
                for signal in range(SIGNAL_COUNT):
                    flaw = state[line, signal]
                    if flaw >= _ABNORMAL:
                        out[at] = np.uint8(signal)
                        out[at + np.uint64(1)] = flaw
                        at += two
                if at == begin + four:
                    _put32(out, begin, -1)
                else:
                    _put32(out, begin, at - begin - four)
            elif field == _EXTRA:
                begin = np.uint64(extra[line, 0])
                length = np.uint64(extra[line, 1])
                if length == 0:
                    _put32(out, at, -1)
                    at += four
                    continue
                _put32(out, at, length + np.uint64(1))
                at += four
                out[at] = 1
                at += np.uint64(1)
                for i in range(length):
                    out[at + i] = extra_text[begin + i]
                at += length
            elif field in (_VEHICLE_ID, _TIME, _RECEIVED_AT, _DIGEST, _REPORTS):
                if field == _VEHICLE_ID:
                    big = vehicle_id[k]
                elif field == _TIME:
                    big = time_s[line] * 1_000_000 - _POSTGRES_EPOCH_US
                elif field == _RECEIVED_AT:
                    big = received_us[line] - _POSTGRES_EPOCH_US
                elif field == _DIGEST:
                    big = digest[line]
                else:
                    big = reports[k]
                _put32(out, at, 8)
                _put64(out, at + four, big)
                at += twelve
            elif field == _NOTES and notes[line] == 0:
                _put32(out, at, -1)
                at += four
            else:
                if field == _KIND:
                    small = np.int16(kind[line])
                elif field == _PART:
                    small = part[line]
                elif field == _EDITION:
                    small = np.int16(edition[line])
                elif field == _DOOR:
                    small = np.int16(door[line])
                else:
                    small = notes[line]
                _put32(out, at, 2)
                _put16(out, at + four, small)
                at += six
    return np.int64(at)  # type: ignore[return-value]  # numba: an i64, so that there is one signature


class StreamBuffer:
    """Memory that streams of one table are written into, one after the other; grows, never shrinks.

    ``sparse`` leaves out the columns that no row has a value for.  The stream handed out is valid until
    the next ``write``.
    """

    def __init__(self, table: str, columns: Sequence[Column], sparse: bool, capacity: int = 1 << 16) -> None:
        self.table = table
        self._columns = tuple(columns)
        self._sparse = sparse
        self._out: U8 = np.empty(capacity, np.uint8)

    def write(
        self, frames: Frames, batch: Batch, lines: I64, vehicle_id: I64, reports: I64 | None = None
    ) -> CopyStream | None:
        """The stream of ``lines``, whose vehicles are ``vehicle_id`` (same length); None when there are none.

        ``reports`` (same length) is for the column of that name.
        """
        if not len(lines):
            return None
        signals = np.zeros(SIGNAL_COUNT, np.uint8)
        sizes = np.zeros(2 + len(VAR_COLUMNS), np.int64)
        _presence(lines, batch.notes, batch.state, batch.var, signals, sizes)
        extra_bytes = int(batch.extra[lines, 1].sum()) if len(batch.extra_text) else 0
        columns = [
            column
            for column in self._columns
            if not self._sparse or (extra_bytes if column.field == Field.EXTRA else _present(column, signals, sizes))
        ]
        table = np.array([(column.field, column.index, column.div) for column in columns], np.int64)
        row_max = 2 + sum(_BYTES_MAX.get(column.field, 12) for column in columns)
        need = len(HEADER) + len(lines) * row_max + int(sizes[1:].sum()) + extra_bytes + len(TRAILER) + _SLACK
        if need > len(self._out):
            self._out = np.empty(need + need // 4, np.uint8)
        out = self._out
        out[: len(HEADER)] = np.frombuffer(HEADER, np.uint8)
        end = _copy_rows(
            frames.data, frames.received_us, frames.door, lines, vehicle_id,
            lines if reports is None else reports, table,
            batch.kind, batch.edition, batch.notes, batch.time_s, batch.part, batch.digest,
            batch.num, batch.state, batch.var, batch.heap, batch.extra, batch.extra_text, out,
        )  # fmt: skip
        out[end : end + 2] = 255
        assert end + 2 <= need, f"a {self.table} stream of {end + 2} bytes in room for {need}"
        return CopyStream(self.table, tuple(column.name for column in columns), len(lines), out.data[: end + 2])


def _present(column: Column, signals: U8, sizes: I64) -> bool:
    if column.field >= Field.SMALLINT:
        return bool(signals[column.index])
    if column.field == Field.VAR:
        return bool(sizes[2 + column.index])
    if column.field == Field.NOTES:
        return bool(sizes[0])
    if column.field == Field.FLAWS:
        return bool(sizes[1])
    return True


def warm() -> None:
    """Compile this module's kernels."""
    small, word, wide = np.zeros(1, np.uint8), np.zeros(1, np.uint32), np.zeros(1, np.int64)
    number = np.zeros(1, np.int32)
    frames = Frames(small, wide, number, wide, small, small, small, word, word, number, wide, number)
    batch = Batch.empty(1, 1)
    for array in (batch.notes, batch.time_s, batch.state, batch.var):
        array[:] = 0
    line = np.zeros(1, np.int64)
    StreamBuffer("telemetry", TELEMETRY, sparse=True).write(frames, batch, line, line)
