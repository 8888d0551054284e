"""Frames for simulated vehicles: reports by the edition tables, thousands at a time, and session frames one by one.

Never test the decoder on these alone: both read the same tables, so a wrong scale would agree with itself.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,return-value,assignment"

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.batch import I32, I64, U8, U32, VIN_BYTES
from schemas.gbt32960 import tables as t
from schemas.gbt32960.commands import Ack, Command, Edition, Encryption
from schemas.gbt32960.encode_twin import encode_reports_twin
from schemas.gbt32960.frame import AT_UNIT, FRAME_BYTES_MIN, bcc_compiled, build_frame
from schemas.gbt32960.times import BEIJING_OFFSET_S, time_bytes
from schemas.jit import compiled, kernel
from schemas.signals import INDEX, SIGNAL_COUNT, State

U16 = NDArray[np.uint16]

_ABSENT: Final = int(State.ABSENT)
_VALID: Final = int(State.VALID)
_SUSPECT: Final = int(State.SUSPECT)
_ABNORMAL: Final = int(State.ABNORMAL)
_OUT_OF_RANGE: Final = int(State.OUT_OF_RANGE)

_MOTOR_NO: Final = INDEX["motor_no"]
_CELL_TOTAL: Final = INDEX["pack_cell_total"]
_LAST_TYPE: Final = 0x32
CELLS_MAX_2016: Final = 200  # of one pack in one frame
# Header, time, every fixed block of the larger edition, list heads, check byte; lists come on top.
_FIXED_BYTES_MAX: Final = 256
YEARS: Final = (946_656_000, 4_102_416_000)  # Beijing time of 2000-01-01 and of 2100-01-01, seconds since 1970 UTC


def frame_bytes_max(cells: int, probes: int, faults: int) -> int:
    """An upper bound of one report's bytes: ``out`` of :func:`encode_reports` needs ``n`` times as many."""
    return _FIXED_BYTES_MAX + 2 * cells + probes + 4 * faults


def encode_reports(
    edition: ArrayLike,
    command: ArrayLike,
    vin: U8,
    time_s: I64,
    num: I32,
    state: U8,
    cells_mv: U16,
    temps_raw: U8,
    out: U8,
    start: I64,
    length: I32,
    fault_codes: U32 | None = None,
    first_cell: int = 1,
) -> int:
    """Write ``n`` report frames back to back into ``out``; returns the bytes written.

    ``edition`` and ``command`` are numbers or (n,) arrays; vin (n, 17) u8 zero padded; time_s (n,) seconds
    since 1970 UTC; num and state (n, SIGNAL_COUNT) as in ``Batch``; cells_mv (n, cells) u16 in mV and
    temps_raw (n, probes) u8 in °C + 40, one pack, raw values and sentinels as they are to be sent;
    fault_codes (n, k) u32, sent as storage-device faults, 0 = none.  ``start`` and ``length`` (n,) are filled.

    A block is sent when one of its signals is not ABSENT: in the order of type numbers, with one motor; the
    list blocks when there are cells or probes.  A signal that is ABSENT in a block that is sent goes as
    invalid (bit fields as 0), OUT_OF_RANGE as the first value above the range.  ``first_cell`` numbers the
    first of ``cells_mv`` in a pack split over frames (2016).  Raises ``ValueError`` when ``out`` is too
    small, a time has no byte for its year, or a 2016 frame would hold more than 200 cells.
    """
    n = len(time_s)
    editions = np.ascontiguousarray(np.broadcast_to(np.asarray(edition, np.uint8), n)).copy()
    commands = np.ascontiguousarray(np.broadcast_to(np.asarray(command, np.uint8), n)).copy()
    codes = np.zeros((n, 0), np.uint32) if fault_codes is None else fault_codes
    cells, probes, faults = cells_mv.shape[1], temps_raw.shape[1], codes.shape[1]
    needed = n * frame_bytes_max(cells, probes, faults)
    if len(out) < needed:
        raise ValueError(f"out has {len(out)} bytes, {n} frames may need {needed}: see frame_bytes_max")
    if cells > CELLS_MAX_2016 and (editions == Edition.E2016).any():
        raise ValueError(f"{cells} cells in one 2016 frame: at most {CELLS_MAX_2016}, send the rest with first_cell")
    if faults > 252:
        raise ValueError(f"{faults} fault codes in one frame: at most 252")
    if n and not (time_s.min() >= YEARS[0] and time_s.max() < YEARS[1]):
        raise ValueError(f"times {time_s.min()}..{time_s.max()}: the year is one byte, 2000 to 2099")
    return write_reports(
        editions, commands, vin, time_s, num, state, cells_mv, temps_raw, codes, first_cell,
        t.TABLES.fields, t.TABLES.groups, t.TABLES.blocks, t.TABLES.derived, out, start, length,
    )  # fmt: skip


# --- kernels -----------------------------------------------------------------------------------------


@compiled
def _put(out: U8, at: int, width: int, raw: int) -> None:
    for i in range(width):
        out[at + i] = np.uint8(raw >> (8 * (width - 1 - i)) & 0xFF)


@compiled
def put_time(out: U8, at: int, time_s: int) -> None:
    """Six bytes of Beijing time; days to a date with the year begun in March."""
    local = time_s + BEIJING_OFFSET_S
    days = local // 86400
    second = local - days * 86400
    shifted = days + 719468  # since 0000-03-01
    era = shifted // 146097  # of 400 years
    in_era = shifted - era * 146097
    year_in_era = (in_era - in_era // 1460 + in_era // 36524 - in_era // 146096) // 365
    day_of_year = in_era - (365 * year_in_era + year_in_era // 4 - year_in_era // 100)
    year = year_in_era + era * 400 - 2000
    month = (5 * day_of_year + 2) // 153
    out[at + 2] = np.uint8(day_of_year - (153 * month + 2) // 5 + 1)
    calendar_month = month + 3 if month < 10 else month - 9
    out[at + 1] = np.uint8(calendar_month)
    out[at] = np.uint8(year + (1 if calendar_month <= 2 else 0))
    out[at + 3] = np.uint8(second // 3600)
    out[at + 4] = np.uint8(second // 60 % 60)
    out[at + 5] = np.uint8(second % 60)


@compiled
def _any_present(group: int, fields: I64, groups: I64, state: U8) -> bool:
    first = groups[group, 0]
    for row in range(first, first + groups[group, 1]):  # noqa: SIM110 - numba has no any() over a generator
        if state[fields[row, 0]] != _ABSENT:
            return True
    return False


@compiled
def _write_group(out: U8, at: int, group: int, fields: I64, groups: I64, num: I32, state: U8) -> int:
    """Write a group's signals at ``out[at:]``, other fields as 0; returns the end."""
    end: int = at + groups[group, 2]
    for i in range(at, end):
        out[i] = 0
    first = groups[group, 0]
    for row in range(first, first + groups[group, 1]):
        signal = fields[row, 0]
        mask = fields[row, 2]
        bits = fields[row, 4] == mask  # a bit field: the whole width is its range
        what = state[signal]
        if what in (_VALID, _SUSPECT):
            raw = (np.int64(num[signal]) - fields[row, 6]) // fields[row, 5] & mask
        elif bits:
            raw = fields[row, 7]  # only the "not valid" bit, where the field has one
        elif what == _ABNORMAL:
            raw = mask - 1
        elif what == _OUT_OF_RANGE:
            raw = fields[row, 3] + fields[row, 4] + 1
        else:
            raw = mask
        width = 1 if mask == 0xFF else (2 if mask == 0xFFFF else 4)
        _put(out, at + fields[row, 1] + 4 - width, width, raw)
    return end


@compiled
def _write_unit(
    at: int, i: int, blocks: I64, num: I32, state: U8, cells_mv: U16, temps_raw: U8, codes: U32, first_cell: int,
    fields: I64, groups: I64, derived: I64, out: U8,
) -> int:  # fmt: skip
    """The blocks of frame ``i`` at ``out[at:]``; returns the end."""
    for kind in range(1, _LAST_TYPE + 1):
        layout = blocks[kind, 0]
        group = blocks[kind, 1]
        if layout == t.UNKNOWN or layout == t.FUEL_CELL or layout == t.STACKS or layout == t.SUPERCAP:
            continue
        if layout == t.CELLS:
            n = cells_mv.shape[1]
            if n == 0:
                continue
            out[at] = kind
            out[at + 1] = 1
            head = at + 2
            at = _write_group(out, head, group + 1, fields, groups, num, state)
            out[head] = 1
            short_count = blocks[kind, 3] == 1
            if short_count:
                if state[_CELL_TOTAL] == _ABSENT:
                    _put(out, at - 5, 2, n)
                _put(out, at - 3, 2, first_cell)
                out[at - 1] = n
            else:
                _put(out, at - 2, 2, n)
            for k in range(n):
                out[at] = np.uint8(cells_mv[i, k] >> 8)
                out[at + 1] = np.uint8(cells_mv[i, k] & 0xFF)
                at += 2
            continue
        if layout == t.TEMPS:
            n = temps_raw.shape[1]
            if n == 0:
                continue
            out[at] = kind
            out[at + 1] = 1
            out[at + 2] = 1
            _put(out, at + 3, 2, n)
            at += 5
            for k in range(n):
                out[at + k] = temps_raw[i, k]
            at += n
            continue
        if layout == t.MOTORS:
            if not _any_present(group + 1, fields, groups, state):
                continue
            out[at] = kind
            out[at + 1] = 1
            begin = at + 2
            at = _write_group(out, begin, group + 1, fields, groups, num, state)
            if state[_MOTOR_NO] == _ABSENT:
                out[begin] = 1
            continue
        if not _any_present(group, fields, groups, state):
            continue
        out[at] = kind
        body = at + 1
        at = _write_group(out, body, group, fields, groups, num, state)
        if layout == t.LOCATION:
            # The fields hold magnitudes; sign and validity are status bits.
            status = np.int64(0 if num[derived[t.FIX]] == 1 and state[derived[t.FIX]] == _VALID else 1)
            for which, bit in ((t.LATITUDE, 2), (t.LONGITUDE, 4)):
                place = at - 4 if which == t.LATITUDE else at - 8
                signal = derived[which]
                if state[signal] == _VALID or state[signal] == _SUSPECT:
                    _put(out, place, 4, abs(np.int64(num[signal])))
                    if num[signal] < 0:
                        status |= bit
            out[body] = status
        elif layout == t.ALARM:
            at -= 1
            faults = np.int64(0)
            place = at
            at += 1
            for k in range(codes.shape[1]):
                if codes[i, k] != 0:
                    _put(out, at, 4, np.int64(codes[i, k]))
                    at += 4
                    faults += 1
            out[place] = faults
            for _ in range(1, blocks[kind, 2]):
                out[at] = 0
                at += 1
    return at


@kernel(twin=encode_reports_twin)
def write_reports(
    edition: U8, command: U8, vin: U8, time_s: I64, num: I32, state: U8, cells_mv: U16, temps_raw: U8, codes: U32,
    first_cell: int, fields: I64, groups: I64, blocks: I64, derived: I64, out: U8, start: I64, length: I32,
) -> int:  # fmt: skip
    """The kernel under :func:`encode_reports`, which checks its arguments."""
    at = np.int64(0)
    for i in range(len(time_s)):
        begin = at
        mark = 0x23 if edition[i] == 16 else 0x24
        out[at] = mark
        out[at + 1] = mark
        out[at + 2] = command[i]
        out[at + 3] = 0xFE
        for k in range(VIN_BYTES):
            out[at + 4 + k] = vin[i, k]
        out[at + 21] = 1
        put_time(out, at + AT_UNIT, time_s[i])
        row = 0 if edition[i] == 16 else 1
        at = _write_unit(
            begin + AT_UNIT + 6, i, blocks[row], num[i], state[i], cells_mv, temps_raw, codes, first_cell,
            fields, groups, derived, out,
        )  # fmt: skip
        _put(out, begin + 22, 2, at - begin - AT_UNIT)
        out[at] = bcc_compiled(out, begin + 2, at)
        at += 1
        start[i] = begin
        length[i] = at - begin
    return at


# --- sessions ------------------------------------------------------------------------------------------


def _string(text: str, width: int, what: str) -> bytes:
    raw = text.encode("gb18030")
    if len(raw) > width:
        raise ValueError(f"{what} {text!r} is {len(raw)} bytes, the field has {width}")
    return raw.ljust(width, b"\0")


def build_login(edition: int, vin: str, time_s: int, serial: int, iccid: str, pack_codes: Sequence[str] = ()) -> bytes:
    """Vehicle login 0x01 (table 6).  2016: codes of one length; 2025: one BMS with a 24-byte code per pack."""
    unit = time_bytes(time_s) + serial.to_bytes(2, "big") + _string(iccid, 20, "ICCID")
    if edition == Edition.E2016:
        width = max((len(code) for code in pack_codes), default=0)
        unit += bytes([len(pack_codes), width]) + b"".join(_string(code, width, "pack code") for code in pack_codes)
    else:
        unit += bytes([1, len(pack_codes)]) + b"".join(_string(code, 24, "pack code") for code in pack_codes)
    return build_frame(edition, Command.LOGIN, Ack.COMMAND, vin, Encryption.NONE, unit)


def build_logout(edition: int, vin: str, time_s: int, serial: int) -> bytes:
    """Vehicle logout 0x04; ``serial`` is that of the login."""
    unit = time_bytes(time_s) + serial.to_bytes(2, "big")
    return build_frame(edition, Command.LOGOUT, Ack.COMMAND, vin, Encryption.NONE, unit)


def build_heartbeat(edition: int, vin: str) -> bytes:
    """Heartbeat 0x07: an empty data unit."""
    return build_frame(edition, Command.HEARTBEAT, Ack.COMMAND, vin, Encryption.NONE, b"")


def build_time_sync(edition: int, vin: str) -> bytes:
    """Terminal time sync 0x08: an empty data unit."""
    return build_frame(edition, Command.TIME_SYNC, Ack.COMMAND, vin, Encryption.NONE, b"")


def build_platform_login(edition: int, code: str, time_s: int, serial: int, username: str, password: str) -> bytes:
    """Platform login 0x05 (2016 table 21, 2025 table 29); ``code`` is the platform's identification."""
    unit = time_bytes(time_s) + serial.to_bytes(2, "big")
    unit += _string(username, 12, "user name") + _string(password, 20, "password") + bytes([Encryption.NONE])
    return build_frame(edition, Command.PLATFORM_LOGIN, Ack.COMMAND, code, Encryption.NONE, unit)


def build_platform_logout(edition: int, code: str, time_s: int, serial: int) -> bytes:
    """Platform logout 0x06; ``serial`` is that of the login."""
    unit = time_bytes(time_s) + serial.to_bytes(2, "big")
    return build_frame(edition, Command.PLATFORM_LOGOUT, Ack.COMMAND, code, Encryption.NONE, unit)


def warm() -> None:
    """Compile the kernels of this module with the types they are called with."""
    encode_reports(
        16, 2, np.full((1, VIN_BYTES), 0x41, np.uint8), np.full(1, 1_700_000_000, np.int64),
        np.zeros((1, SIGNAL_COUNT), np.int32), np.zeros((1, SIGNAL_COUNT), np.uint8),
        np.zeros((1, 1), np.uint16), np.zeros((1, 1), np.uint8),
        np.zeros(frame_bytes_max(1, 1, 0), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.int32),
    )  # fmt: skip


assert FRAME_BYTES_MIN == AT_UNIT + 1
