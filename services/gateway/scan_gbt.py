"""The GB/T 32960 door's kernel: all bytes of a tick in, frames with their answers and odd commands out.

It walks the table of ``gbt_rules``; reports of a logged-in connection never reach Python.  A frame
whose response flag is not 0xFE is itself an answer: it is never answered, and passed over but for the
answers to commands that go down (``ANSWER``).
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,assignment,return-value"

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np

from schemas.batch import I32, I64, U8, VIN_BYTES, Codec
from schemas.gbt32960.commands import Ack
from schemas.gbt32960.frame import (
    AT_ACK,
    AT_COMMAND,
    AT_ENCRYPTION,
    AT_LENGTH,
    AT_VIN,
    BAD_BCC,
    FRAME,
    GARBAGE,
    HEADER_BYTES,
    NEED_MORE,
    OVERSIZE,
    next_frame,
    vin_ok,
)
from schemas.jit import kernel
from schemas.keys import partition_of
from schemas.reasons import CODE as REASON
from services.gateway.columns import (
    F_ACK,
    F_CODEC,
    F_DETAIL,
    F_LENGTH,
    F_PARTITION,
    F_REASON,
    F_SLOT,
    F_SOURCE,
    F_START,
    REFUSED_BYTES_MAX,
    S_CODE,
    S_KIND,
    S_LENGTH,
    S_SEGMENT,
    S_START,
    SEG_ASKED,
    SEG_AT,
    SEG_DONE,
    SEG_END,
    SEG_SCAN,
    SEG_SLOT,
    SEG_STATE,
)
from services.gateway.connections import State
from services.gateway.gbt_rules import ANSWER, ASK, BIND, COLUMNS, REFUSE, TAKE

_VEHICLE: Final = int(State.VEHICLE)
_IS_COMMAND: Final = int(Ack.COMMAND)
_DOLLAR: Final = 0x24

_BAD_BCC: Final = REASON["bad_bcc"]
_GARBAGE: Final = REASON["garbage"]
_OVERSIZE: Final = REASON["oversize"]
_FOREIGN_VIN: Final = REASON["foreign_vin"]
_GBT32960: Final = int(Codec.GBT32960)
_BAD_VIN: Final = REASON["bad_vin"]

_next_frame = cast("Any", next_frame).compiled
_vin_ok = cast("Any", vin_ok).compiled
_partition_of = cast("Any", partition_of).compiled


def _gbt_scan_twin(
    arena: U8,
    segments: I64,
    frame_max: int,
    partitions: int,
    rules: U8,
    success: U8,
    errors: U8,
    state: U8,
    vin: U8,
    partition: I32,
    frames: I64,
    slow: I64,
    counts: I64,
) -> None:
    counts[:] = 0
    for index in range(len(segments)):
        if segments[index, SEG_STATE] != SEG_SCAN:
            continue
        slot, at, end, _ = segments[index].tolist()
        ended = SEG_DONE
        while True:
            if counts[0] == len(frames) or counts[2] == len(slow):
                ended = SEG_SCAN
                break
            found, begin, length = next_frame(arena, at, end, frame_max)
            if found == NEED_MORE:
                at = begin
                break
            headed = length >= HEADER_BYTES and found != GARBAGE
            is_command = headed and arena[begin + AT_ACK] == _IS_COMMAND
            command = int(arena[begin + AT_COMMAND]) if headed else 0
            reason = detail = 0
            if found == FRAME:
                action = int(rules[state[slot], command + 256 * (arena[begin] == _DOLLAR)])
                if not is_command and action != ANSWER:
                    at = begin + length
                    continue
                if action != TAKE and action < REFUSE:
                    slow[counts[2]] = [action, index, begin, length, command]
                    counts[2] += 1
                    at = begin if action == BIND else begin + length
                    if action == ASK:
                        continue
                    ended = SEG_ASKED
                    break
                if action >= REFUSE:
                    reason, detail = action - REFUSE, AT_COMMAND
                elif state[slot] == _VEHICLE:
                    if bytes(arena[begin + AT_VIN : begin + AT_ENCRYPTION]) != bytes(vin[slot]):
                        reason, detail = _FOREIGN_VIN, AT_VIN
                elif not vin_ok(arena, begin + AT_VIN):
                    reason, detail = _BAD_VIN, AT_VIN
            elif found == BAD_BCC:
                reason, detail = _BAD_BCC, length - 1
            elif found == OVERSIZE:
                reason, detail = _OVERSIZE, AT_LENGTH
            else:
                reason = _GARBAGE
            ack = 0
            if is_command:
                ack = int(errors[reason, int(arena[begin] == _DOLLAR)] if reason else success[command])
            part = 0
            if state[slot] == _VEHICLE:
                part = int(partition[slot])
            elif length >= AT_ENCRYPTION and found != GARBAGE:
                part = int(partition_of(arena, begin + AT_VIN, partitions))
            kept = min(length, REFUSED_BYTES_MAX) if reason else length
            frames[counts[0]] = [begin, kept, slot, reason, detail, part, 0, ack, _GBT32960]
            counts[0] += 1
            at = begin + length
        segments[index, SEG_AT] = at
        segments[index, SEG_STATE] = ended
        if ended == SEG_SCAN:
            return


@kernel(twin=_gbt_scan_twin)
def gbt_scan(
    arena: U8,
    segments: I64,
    frame_max: int,
    partitions: int,
    rules: U8,
    success: U8,
    errors: U8,
    state: U8,
    vin: U8,
    partition: I32,
    frames: I64,
    slow: I64,
    counts: I64,
) -> None:
    """Scan every segment (columns SEG_*) that is in state SEG_SCAN.

    ``rules`` (STATES, COLUMNS), ``success`` (256,) and ``errors`` (256, 2) are the arrays of ``gbt_rules``; ``state``,
    ``vin`` and ``partition`` those of ``Connections``.  Writes ``frames`` (F_*) and ``slow`` (S_*, S_KIND the
    action, S_CODE the command) and their numbers into ``counts[0]`` and ``counts[2]``; moves each segment's
    SEG_AT and SEG_STATE.  A segment left in SEG_SCAN means that a table was full: empty it and call again.
    """
    n_frames = np.int64(0)
    n_slow = np.int64(0)
    full = False
    for index in range(len(segments)):
        if full:
            break
        if segments[index, SEG_STATE] != SEG_SCAN:
            continue
        slot = segments[index, SEG_SLOT]
        at = segments[index, SEG_AT]
        end = segments[index, SEG_END]
        vehicle = state[slot] == _VEHICLE
        ended = np.int64(SEG_DONE)
        while True:
            if n_frames == len(frames) or n_slow == len(slow):
                ended = np.int64(SEG_SCAN)
                break
            found, begin, length = _next_frame(arena, at, end, frame_max)
            if found == NEED_MORE:
                at = begin
                break
            headed = length >= HEADER_BYTES and found != GARBAGE
            is_command = headed and arena[begin + AT_ACK] == _IS_COMMAND
            command = np.int64(arena[begin + AT_COMMAND]) if headed else np.int64(0)
            reason = np.int64(0)
            detail = np.int64(0)
            if found == FRAME:
                column = command + 256 if arena[begin] == _DOLLAR else command
                action = np.int64(rules[state[slot], column])
                if not is_command and action != ANSWER:
                    at = begin + length
                    continue
                if action != TAKE and action < REFUSE:
                    slow[n_slow, S_KIND] = action
                    slow[n_slow, S_SEGMENT] = index
                    slow[n_slow, S_START] = begin
                    slow[n_slow, S_LENGTH] = length
                    slow[n_slow, S_CODE] = command
                    n_slow += 1
                    at = begin if action == BIND else begin + length
                    if action == ASK:
                        continue
                    ended = np.int64(SEG_ASKED)
                    break
                if action >= REFUSE:
                    reason = action - REFUSE
                    detail = np.int64(AT_COMMAND)
                elif vehicle:
                    own = True
                    for k in range(VIN_BYTES):
                        own &= arena[begin + AT_VIN + k] == vin[slot, k]
                    if not own:
                        reason = np.int64(_FOREIGN_VIN)
                        detail = np.int64(AT_VIN)
                elif not _vin_ok(arena, begin + AT_VIN):
                    reason = np.int64(_BAD_VIN)
                    detail = np.int64(AT_VIN)
            elif found == BAD_BCC:
                reason = np.int64(_BAD_BCC)
                detail = length - 1
            elif found == OVERSIZE:
                reason = np.int64(_OVERSIZE)
                detail = np.int64(AT_LENGTH)
            else:
                reason = np.int64(_GARBAGE)
            ack = np.int64(0)
            if is_command:
                if reason == 0:
                    ack = np.int64(success[command])
                else:
                    ack = np.int64(errors[reason, 1 if arena[begin] == _DOLLAR else 0])
            part = np.int64(0)
            if vehicle:
                part = np.int64(partition[slot])
            elif length >= AT_ENCRYPTION and found != GARBAGE:
                part = np.int64(_partition_of(arena, begin + AT_VIN, partitions))
            frames[n_frames, F_START] = begin
            frames[n_frames, F_LENGTH] = length if reason == 0 else min(length, np.int64(REFUSED_BYTES_MAX))
            frames[n_frames, F_SLOT] = slot
            frames[n_frames, F_REASON] = reason
            frames[n_frames, F_DETAIL] = detail
            frames[n_frames, F_PARTITION] = part
            frames[n_frames, F_SOURCE] = 0
            frames[n_frames, F_ACK] = ack
            frames[n_frames, F_CODEC] = _GBT32960
            n_frames += 1
            at = begin + length
        segments[index, SEG_AT] = at
        segments[index, SEG_STATE] = ended
        full = ended == SEG_SCAN
    counts[0] = n_frames
    counts[1] = 0
    counts[2] = n_slow


def warm() -> None:
    """Compile the kernel with the types it is called with."""
    u8, table, i64 = np.zeros(1, np.uint8), np.zeros((1, COLUMNS), np.uint8), np.zeros((0, 8), np.int64)
    vin = np.zeros((1, VIN_BYTES), np.uint8)
    gbt_scan(u8, i64, 1, 1, table, u8, table, u8, vin, np.zeros(1, np.int32), i64, i64, np.zeros(3, np.int64))
