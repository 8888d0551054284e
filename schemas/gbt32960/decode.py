"""Frames to columns: the hot path.  One pass, table driven, no Python object per frame.

The kernel walks each report's blocks by the arrays of ``tables`` and writes one line of a ``Batch`` per
frame.  It trusts nothing: lengths, check byte and every count are verified before a byte is read, so that a
replayed journal or a hostile frame can only produce a reason, a note, or an absent signal.  Its twin in
``decode_twin`` does the same from the reference decoder's blocks.

What becomes of what the columns cannot hold: ``rest`` keeps, verbatim as {type u8, length u16, body}, custom
blocks (body without the length word), signatures, second blocks of a type, fuel-cell probes, stacks,
supercapacitor lists, and everything from a block on that cannot be delimited (type byte, then all that
follows it).  Bytes after the signature are kept under type 0x00.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,return-value,assignment"

from __future__ import annotations

from typing import Final

import numpy as np

from schemas import batch as b
from schemas.batch import I16, I32, I64, U8, U32, Batch, Codec, Frames
from schemas.gbt32960 import tables as t
from schemas.gbt32960.decode_twin import decode_reports_twin
from schemas.gbt32960.digest import digest_compiled
from schemas.gbt32960.frame import AT_UNIT, FRAME_BYTES_MIN, bcc_compiled, vin_ok_compiled
from schemas.gbt32960.times import BAD_TIME, time_s_of_compiled
from schemas.jit import compiled, kernel
from schemas.reasons import CODE
from schemas.signals import State

_ABSENT: Final = int(State.ABSENT)
_VALID: Final = int(State.VALID)
_ABNORMAL: Final = int(State.ABNORMAL)
_INVALID: Final = int(State.INVALID)
_OUT_OF_RANGE: Final = int(State.OUT_OF_RANGE)

_BAD_BCC: Final = CODE["bad_bcc"]
_BAD_LENGTH: Final = CODE["bad_length"]
_GARBAGE: Final = CODE["garbage"]
_BAD_VIN: Final = CODE["bad_vin"]
_BAD_TIME: Final = CODE["bad_time"]
_STRUCTURE: Final = CODE["structure"]
_UNKNOWN_COMMAND: Final = CODE["unknown_command"]
_ENCRYPTED: Final = CODE["encrypted"]

_CELLS, _TEMPS, _MOTORS, _FAULTS, _REST = b.CELLS, b.TEMPS, b.MOTORS, b.FAULTS, b.REST
_TIME_BYTES: Final = 6
_PART_MAX: Final = 32_767
_FIRST_CELL_AT: Final = 7  # in a pack of the 2016 cell block: number, voltage, current, total come before it


def decode_frames(data: U8, start: I64, length: I32, codec: U8, skip_reason: U8, out: Batch) -> None:
    """Decode frames ``data[start:start+length]`` into the lines of ``out`` (``Batch.empty(n, data_bytes)``).

    Lines whose ``codec`` is not GBT32960 or whose ``skip_reason`` is not 0 are left with kind 0, all else
    of them zero.  A line that the decoder refuses has kind 0, a reason and the byte offset of the trouble.
    Where a signal is ABSENT its ``num`` is undefined; where it is anything but VALID, ``num`` is 0.
    ``data`` must be writable and C-contiguous (another array type would be compiled anew).
    """
    skip = ((codec != Codec.GBT32960) | (skip_reason != 0)).astype(np.uint8)
    decode_reports(
        data, start, length, skip,
        t.TABLES.fields, t.TABLES.groups, t.TABLES.blocks, t.TABLES.derived,
        out.kind, out.edition, out.reason, out.detail, out.notes, out.time_s, out.part, out.digest,
        out.num, out.state, out.var, out.heap,
    )  # fmt: skip


def decode(frames: Frames) -> Batch:
    """Decode all of ``frames`` into a batch of their own."""
    out = Batch.empty(frames.n, int(frames.length.sum(dtype=np.int64)))
    decode_frames(frames.data, frames.start, frames.length, frames.codec, frames.reason, out)
    return out


# --- fields ----------------------------------------------------------------------------------------


@compiled
def _read_group(data: U8, at: int, group: int, fields: I64, groups: I64, line: int, num: I32, state: U8) -> int:
    """Read a group's fields at ``data[at:]`` into the line that begins at ``line``; returns how many were out of range.

    Four bytes that end with the field are read whatever its width, then masked: no branch on the width,
    and the frame header in front makes it safe.
    """
    wrong = np.int64(0)
    first = groups[group, 0]
    for row in range(first, first + groups[group, 1]):
        p = np.uint64(at + fields[row, 1])
        word = np.uint32(data[p]) << np.uint32(24) | np.uint32(data[p + np.uint64(1)]) << np.uint32(16)
        word |= np.uint32(data[p + np.uint64(2)]) << np.uint32(8) | np.uint32(data[p + np.uint64(3)])
        mask = fields[row, 2]
        raw = np.int64(word) & mask
        signal = np.uint64(line + fields[row, 0])
        offset = raw - fields[row, 3]
        if offset >= 0 and offset <= fields[row, 4] and raw & fields[row, 7] == 0:
            num[signal] = np.int32(raw * fields[row, 5] + fields[row, 6])
            state[signal] = _VALID
            continue
        num[signal] = 0
        if raw & fields[row, 7] or raw == mask:
            state[signal] = _INVALID
        elif raw == mask - 1:
            state[signal] = _ABNORMAL
        else:
            state[signal] = _OUT_OF_RANGE
            wrong += 1
    return wrong


@compiled
def _u16(data: U8, at: int) -> int:
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])


@compiled
def _count8(data: U8, at: int) -> int:
    """A count byte: 0 at a sentinel, because no list follows then."""
    n = np.int64(data[at])
    return n if n < 0xFE else np.int64(0)


@compiled
def _count16(data: U8, at: int) -> int:
    n = _u16(data, at)
    return n if n < 0xFFFE else np.int64(0)


# --- where blocks end: -1 when they run past the data unit -------------------------------------------


@compiled
def _each_end(data: U8, body: int, end: int, item_bytes: int, inner_width: int, value_bytes: int) -> int:
    """End of a counted list of structures, each with an inner list counted by its last one or two bytes."""
    if body >= end:
        return np.int64(-1)
    at = body + 1
    for _ in range(_count8(data, body)):
        at += item_bytes
        if at > end:
            return np.int64(-1)
        if inner_width == 1:
            at += _count8(data, at - 1) * value_bytes
        elif inner_width == 2:
            at += _count16(data, at - 2) * value_bytes
        if at > end:
            return np.int64(-1)
    return at


@compiled
def _alarm_end(data: U8, body: int, end: int, lists: int) -> int:
    """End of an alarm block: four lists of DWORDs, and in 2025 one of byte pairs."""
    at = body + 5
    for i in range(lists):
        if at >= end:
            return np.int64(-1)
        at += 1 + _count8(data, at) * (4 if i < 4 else 2)
    return at if at <= end else np.int64(-1)


@compiled
def _signature_end(data: U8, body: int, end: int) -> int:
    at = body + 1
    for _ in range(2):
        if at + 2 > end:
            return np.int64(-1)
        at += 2 + _u16(data, at)
    return at if at <= end else np.int64(-1)


# --- lists -----------------------------------------------------------------------------------------


@compiled
def _cell_stats(data: U8, at: int, n: int, stats: I64) -> None:
    """Add ``n`` cell voltages to ``stats`` = [cells, valid, max, min, sum] (mV)."""
    valid = np.uint32(0)
    highest = np.uint32(0)
    lowest = np.uint32(0xFFFF)
    total = np.uint32(0)  # 32,767 cells of 60,000 mV fit
    first = np.uint64(at)
    for i in range(np.uint64(n)):
        p = first + i + i
        raw = np.uint32(data[p]) << np.uint32(8) | np.uint32(data[p + np.uint64(1)])
        # Unsigned: 0 wraps to the top, so one comparison asks for 1..60000.
        ok = np.uint32(raw - np.uint32(1)) < np.uint32(60_000)
        high = raw if ok else np.uint32(0)
        low = raw if ok else np.uint32(0xFFFF)
        valid += np.uint32(ok)
        highest = max(highest, high)
        lowest = min(lowest, low)
        total += high
    stats[0] += n
    stats[1] += np.int64(valid)
    stats[2] = max(stats[2], np.int64(highest))
    stats[3] = min(stats[3], np.int64(lowest))
    stats[4] += np.int64(total)


@compiled
def _probe_stats(data: U8, at: int, n: int, stats: I64) -> None:
    """Add ``n`` probe temperatures to ``stats`` = [probes, valid, max, min, -] (raw)."""
    valid = np.uint32(0)
    highest = np.uint8(0)
    lowest = np.uint8(0xFF)
    first = np.uint64(at)
    for i in range(np.uint64(n)):
        raw = data[first + i]
        ok = np.uint8(raw - np.uint8(1)) < np.uint8(250)
        valid += np.uint32(ok)
        highest = max(highest, raw if ok else np.uint8(0))
        lowest = min(lowest, raw if ok else np.uint8(0xFF))
    stats[0] += n
    stats[1] += np.int64(valid)
    stats[2] = max(stats[2], np.int64(highest))
    stats[3] = min(stats[3], np.int64(lowest))


@compiled
def _list_stats(data: U8, body: int, item_bytes: int, inner_width: int, value_bytes: int, stats: I64) -> None:
    """Statistics over the inner lists of all packs of a block whose end has been checked."""
    stats[0] = stats[1] = stats[2] = stats[4] = 0
    stats[3] = 0xFFFF
    at = body + 1
    for _ in range(_count8(data, body)):
        at += item_bytes
        n = _count8(data, at - 1) if inner_width == 1 else _count16(data, at - 2)
        if value_bytes == 2:
            _cell_stats(data, at, n, stats)
        else:
            _probe_stats(data, at, n, stats)
        at += n * value_bytes


@compiled
def _put(signal: int, valid: bool, value: int, num: I32, state: U8) -> None:
    num[signal] = np.int32(value) if valid else np.int32(0)
    state[signal] = _VALID if valid else _INVALID


@compiled
def _keep(data: U8, kind: int, begin: int, end: int, heap: U8, heap_at: int) -> int:
    """Append {type, length, body} to the heap; returns where the next goes."""
    n = end - begin
    heap[heap_at] = kind
    heap[heap_at + 1] = n >> 8
    heap[heap_at + 2] = n & 0xFF
    for i in range(n):
        heap[heap_at + 3 + i] = data[begin + i]
    return heap_at + 3 + n


# --- one data unit -----------------------------------------------------------------------------------


@compiled
def _read_blocks(
    data: U8, begin: int, end: int, blocks: I64, first_row: int, fields: I64, groups: I64, derived: I64,
    line: int, num: I32, state: U8, spans: int, var: I64, heap: U8, heap_at: int, stats: I64, found: I64,
) -> int:  # fmt: skip
    """Read the blocks of ``data[begin:end]`` into one line; returns the heap's next free byte.

    ``num`` and ``state`` are flat, the line begins at ``line``; so are ``var`` (at ``spans``) and ``blocks``
    (the edition at ``first_row``): views made per frame cost a quarter of all the time.

    ``found`` = [torn, misled, notes, part]: where the block begins that runs past the end (-1: none
    does), where the list block right before it begins when its own values are impossible (-1: they are
    not), note bits, first cell of the first pack.
    """
    at = np.int64(begin)
    seen = np.uint64(0)
    notes = np.int64(0)
    misled = np.int64(-1)
    found[0] = -1
    found[3] = 0
    while at < end:
        kind = np.int64(data[at])
        body = at + 1
        row = first_row + 5 * kind
        layout = blocks[row]
        group = blocks[row + 1]

        if layout == t.UNKNOWN:
            heap_at = _keep(data, kind, body, end, heap, heap_at)
            notes |= b.NOTE_UNKNOWN_BLOCK
            break
        if layout == t.CUSTOM:
            after = np.int64(-1)
            if body + 2 <= end:
                after = body + 2 + _u16(data, body)
            if after < 0 or after > end:
                heap_at = _keep(data, kind, body, end, heap, heap_at)
                notes |= b.NOTE_TRUNCATED
                break
            heap_at = _keep(data, kind, body + 2, after, heap, heap_at)
            notes |= b.NOTE_CUSTOM_BLOCK
            misled = np.int64(-1)
            at = after
            continue

        # Where does it end?  Nothing of it is used before that is known.
        if layout == t.FIXED or layout == t.LOCATION:
            after = body + groups[group, 2]
        elif layout == t.FUEL_CELL:
            after = body + groups[group, 2]
            if after <= end:
                after += _count16(data, after - 2) + groups[group + 1, 2]
        elif layout == t.ALARM:
            after = _alarm_end(data, body, end, blocks[row + 2])
        elif layout == t.SUPERCAP:
            after = body + groups[group, 2]
            if after <= end:
                after += _count16(data, after - 2) * 2 + 2
                if after <= end:
                    after += _count16(data, after - 2)
        elif layout == t.SIGNATURE:
            after = _signature_end(data, body, end)
        else:
            after = _each_end(data, body, end, blocks[row + 2], blocks[row + 3], blocks[row + 4])
        if after < 0 or after > end:
            found[0] = at
            break

        if layout == t.SIGNATURE:
            heap_at = _keep(data, kind, body, after, heap, heap_at)
            notes |= b.NOTE_SIGNATURE
            if after < end:
                heap_at = _keep(data, 0, after, end, heap, heap_at)
                notes |= b.NOTE_TRAILING
            break
        bit = np.uint64(1) << np.uint64(kind)
        if seen & bit:
            heap_at = _keep(data, kind, body, after, heap, heap_at)
            notes |= b.NOTE_REPEATED_BLOCK
            misled = np.int64(-1)
            at = after
            continue
        seen |= bit

        wrong = np.int64(0)
        if groups[group, 1] > 0:
            wrong = _read_group(data, body, group, fields, groups, line, num, state)
        if layout == t.FIXED:
            wrong = np.int64(0)
        elif layout == t.LOCATION:
            wrong = np.int64(0)
            status = data[body]
            num[line + derived[t.FIX]] = 1 - (status & 1)
            if status & 4:
                num[line + derived[t.LONGITUDE]] = -num[line + derived[t.LONGITUDE]]
            if status & 2:
                num[line + derived[t.LATITUDE]] = -num[line + derived[t.LATITUDE]]
        elif layout == t.FUEL_CELL:
            second = after - groups[group + 1, 2]
            wrong += _read_group(data, second, group + 1, fields, groups, line, num, state)
            if after - body > groups[group, 2] + groups[group + 1, 2]:
                heap_at = _keep(data, kind, body, after, heap, heap_at)
        elif layout == t.ALARM:
            faults = _count8(data, body + 5)
            p = body + 6 + 4 * faults
            for i in range(1, blocks[row + 2]):
                n = _count8(data, p)
                if data[p] == 0:
                    # As nearly always: a call of _read_group costs more than this.
                    signal = line + fields[groups[group + i, 0], 0]
                    num[signal] = 0
                    state[signal] = _VALID
                else:
                    wrong += _read_group(data, p, group + i, fields, groups, line, num, state)
                faults += n
                p += 1 + n * (4 if i < 4 else 2)
            if faults > 0:
                var[spans + 2 * _FAULTS] = body + 5
                var[spans + 2 * _FAULTS + 1] = after - body - 5
        elif layout == t.SUPERCAP:
            second = body + groups[group, 2] + _count16(data, body + groups[group, 2] - 2) * 2
            wrong += _read_group(data, second, group + 1, fields, groups, line, num, state)
            if after - body > groups[group, 2] + 2:
                heap_at = _keep(data, kind, body, after, heap, heap_at)
        else:
            n = _count8(data, body)
            if n > 0 and groups[group + 1, 1] > 0:
                wrong += _read_group(data, body + 1, group + 1, fields, groups, line, num, state)
            if layout == t.MOTORS:
                if n > 1:
                    var[spans + 2 * _MOTORS] = body
                    var[spans + 2 * _MOTORS + 1] = after - body
            elif layout == t.STACKS:
                if n > 0:
                    heap_at = _keep(data, kind, body, after, heap, heap_at)
            else:
                which = _CELLS if layout == t.CELLS else _TEMPS
                var[spans + 2 * which] = body
                var[spans + 2 * which + 1] = after - body
                if data[body] < 0xFE:
                    _list_stats(data, body, blocks[row + 2], blocks[row + 3], blocks[row + 4], stats)
                    any_valid = stats[1] > 0
                    if layout == t.CELLS:
                        _put(line + derived[t.CELL_COUNT], True, stats[0], num, state)
                        if stats[0] > 0:
                            _put(line + derived[t.CELL_MAX], any_valid, stats[2], num, state)
                            _put(line + derived[t.CELL_MIN], any_valid, stats[3], num, state)
                            _put(line + derived[t.CELL_SUM], any_valid, stats[4], num, state)
                        if n > 0 and blocks[row + 3] == 1:
                            first_cell = _count16(data, body + 1 + _FIRST_CELL_AT)
                            if first_cell > 1:
                                found[3] = min(first_cell, _PART_MAX)
                    else:
                        _put(line + derived[t.PROBE_COUNT], True, stats[0], num, state)
                        if stats[0] > 0:
                            _put(line + derived[t.PROBE_MAX], any_valid, stats[2] - 40, num, state)
                            _put(line + derived[t.PROBE_MIN], any_valid, stats[3] - 40, num, state)
        misled = at if wrong > 0 else np.int64(-1)
        at = after
    found[1] = misled
    found[2] = notes
    return heap_at


# --- frames ------------------------------------------------------------------------------------------


@compiled
def _check_header(data: U8, at: int, n: int) -> tuple[int, int]:
    """(reason, detail) of a whole frame before its data unit is looked at; (0, 0) when all is well."""
    if n < FRAME_BYTES_MIN or at < 0 or at + n > len(data):
        return np.int64(_BAD_LENGTH), np.int64(min(n, 22))
    mark = data[at]
    if (mark != 0x23 and mark != 0x24) or data[at + 1] != mark:
        return np.int64(_GARBAGE), np.int64(0)
    if _u16(data, at + 22) + FRAME_BYTES_MIN != n:
        return np.int64(_BAD_LENGTH), np.int64(22)
    if bcc_compiled(data, at + 2, at + n - 1) != data[at + n - 1]:
        return np.int64(_BAD_BCC), np.int64(n - 1)
    command = data[at + 2]
    last_uplink = 0x08 if mark == 0x23 else 0x0B
    if not ((command >= 0x01 and command <= last_uplink) or (command >= 0x80 and command <= 0x82)):
        return np.int64(_UNKNOWN_COMMAND), np.int64(2)
    if data[at + 3] != 0xFE and (command == 0x02 or command == 0x03):
        # A reply to a report, sent up: it reports nothing.
        return np.int64(_UNKNOWN_COMMAND), np.int64(3)
    if not vin_ok_compiled(data, at + 4):
        return np.int64(_BAD_VIN), np.int64(4)
    if data[at + 21] != 1 and n > FRAME_BYTES_MIN:
        return np.int64(_ENCRYPTED), np.int64(21)
    return np.int64(0), np.int64(0)


@kernel(twin=decode_reports_twin)
def decode_reports(
    data: U8, start: I64, length: I32, skip: U8, fields: I64, groups: I64, blocks: I64, derived: I64,
    kind: U8, edition: U8, reason: U8, detail: U32, notes: I16, time_s: I64, part: I16, digest: I64,
    num: I32, state: U8, var: I64, heap: U8,
) -> int:  # fmt: skip
    """Decode ``len(start)`` frames into the arrays of a ``Batch``; returns the bytes used of ``heap``."""
    heap_at = np.int64(0)
    stats = np.zeros(5, np.int64)
    found = np.zeros(4, np.int64)
    flat_num = num.reshape(-1)
    flat_state = state.reshape(-1)
    flat_var = var.reshape(-1)
    all_blocks = blocks.reshape(-1)
    for i in range(len(start)):
        kind[i] = 0
        edition[i] = 0
        reason[i] = 0
        detail[i] = 0
        notes[i] = 0
        time_s[i] = 0
        part[i] = 0
        digest[i] = 0
        line = i * num.shape[1]
        spans = i * 2 * var.shape[1]
        for k in range(np.uint64(line), np.uint64(line + num.shape[1])):
            flat_state[k] = 0
        for k in range(np.uint64(spans), np.uint64(spans + 2 * var.shape[1])):
            flat_var[k] = 0
        if skip[i]:
            continue
        at = start[i]
        n = np.int64(length[i])
        why, where = _check_header(data, at, n)
        if why == 0:
            command = data[at + 2]
            timed = command <= 0x06 or command == 0x09 or command >= 0x80
            when = np.int64(0)
            if timed:
                if n < FRAME_BYTES_MIN + _TIME_BYTES:
                    # A reply may leave the time out; a command may not.
                    if data[at + 3] == 0xFE:
                        why, where = np.int64(_STRUCTURE), np.int64(AT_UNIT)
                else:
                    when = time_s_of_compiled(data, at + AT_UNIT)
                    if when == BAD_TIME:
                        why, where = np.int64(_BAD_TIME), np.int64(AT_UNIT)
        if why == 0 and (command == 0x02 or command == 0x03):
            first_row = 0 if data[at] == 0x23 else 256 * 5
            begin = at + AT_UNIT + _TIME_BYTES
            end = at + n - 1
            heap_first = heap_at
            heap_at = _read_blocks(
                data, begin, end, all_blocks, first_row, fields, groups, derived,
                line, flat_num, flat_state, spans, flat_var, heap, heap_at, stats, found,
            )  # fmt: skip
            torn = found[0]
            if torn >= 0:
                if found[1] >= 0:
                    # The list before it was no list: take its values back.
                    torn = found[1]
                    state[i, :] = 0
                    var[i, :, :] = 0
                    heap_at = _read_blocks(
                        data, begin, torn, all_blocks, first_row, fields, groups, derived,
                        line, flat_num, flat_state, spans, flat_var, heap, heap_first, stats, found,
                    )  # fmt: skip
                if torn > begin:
                    heap_at = _keep(data, data[torn], torn + 1, end, heap, heap_at)
                    found[2] |= b.NOTE_TRUNCATED
            if begin == end or torn == begin:
                why, where = np.int64(_STRUCTURE), begin - at
                state[i, :] = 0
                var[i, :, :] = 0
                heap_at = heap_first
            else:
                notes[i] = found[2]
                part[i] = found[3]
                if heap_at > heap_first:
                    var[i, _REST, 0] = heap_first
                    var[i, _REST, 1] = heap_at - heap_first
        reason[i] = why
        detail[i] = where
        if why == 0:
            kind[i] = command
            edition[i] = 16 if data[at] == 0x23 else 25
            time_s[i] = when
            digest[i] = digest_compiled(data, at + AT_UNIT, at + n - 1)
    return heap_at


def warm() -> None:
    """Compile the kernels of this module with the types they are called with."""
    frame = bytearray.fromhex("232307fe4c54455354303030303030303030303039010000ab")
    decode_frames(
        np.frombuffer(frame, np.uint8), np.zeros(1, np.int64), np.full(1, len(frame), np.int32),
        np.full(1, Codec.GBT32960, np.uint8), np.zeros(1, np.uint8), Batch.empty(1, len(frame)),
    )  # fmt: skip
