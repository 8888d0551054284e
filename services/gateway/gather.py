"""Kernels that move a tick's frames and answers into the group that waits for the journal.

After them the arena is free again.  Each is a plain loop; the twins say the same with slices and
lists.  They trust their callers for room: a group grows before it is written to.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,assignment,return-value"

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np

from schemas.batch import I32, I64, U8, U32, VIN_BYTES, Codec
from schemas.gbt32960.frame import FRAME_BYTES_MIN
from schemas.gbt32960.replies import write_reply
from schemas.jit import kernel
from schemas.mqtt.wire import PacketType
from services.gateway.columns import (
    A_CODE,
    A_FIRST,
    A_ID,
    A_SLOT,
    ACK_COLUMNS,
    F_ACK,
    F_CODEC,
    F_DETAIL,
    F_LENGTH,
    F_PARTITION,
    F_REASON,
    F_SLOT,
    F_SOURCE,
    F_START,
    G_CODEC,
    G_DETAIL,
    G_DOOR,
    G_LENGTH,
    G_PARTITION,
    G_REASON,
    G_RECEIVED,
    G_SOURCE,
    G_START,
    GROUP_COLUMNS,
    SPAN_ACKS,
    SPAN_BEGIN,
    SPAN_END,
    SPAN_SERIAL,
    SPAN_SLOT,
)

PUBACK_BYTES_MAX: Final = 5
_GBT32960: Final = int(Codec.GBT32960)
_PUBCOMP: Final = int(PacketType.PUBCOMP) << 4

_write_reply = cast("Any", write_reply).compiled


# -- twins -----------------------------------------------------------------------------------------
def _absorb_twin(
    arena: U8, frames: I64, n: int, vin: U8, door: int, received_us: int, at: int, data: U8, rows: I64
) -> int:
    for i, frame in enumerate(frames[:n].tolist()):
        begin, length = frame[F_START], frame[F_LENGTH]
        body = bytes(arena[begin : begin + length])
        if frame[F_CODEC] != _GBT32960:
            body = bytes(vin[frame[F_SLOT]]) + body
        data[at : at + len(body)] = np.frombuffer(body, np.uint8)
        rows[i] = [
            at, len(body), received_us, door, frame[F_REASON], frame[F_DETAIL], frame[F_PARTITION], frame[F_SOURCE],
            frame[F_CODEC],
        ]  # fmt: skip
        at += len(body)
    return at


def _write_pubacks_twin(
    acks: I64, n: int, serial: I64, at: int, n_spans: int, out: U8, spans: I64, unacked: I32
) -> tuple[int, int]:
    last = None
    for slot, packet_id, code, first in acks[:n].tolist():
        answer = bytes((first, 3 if code else 2, *packet_id.to_bytes(2, "big"))) + (bytes((code,)) if code else b"")
        if slot != last:
            spans[n_spans] = [slot, serial[slot], at, at, 0]
            n_spans += 1
            last = slot
        out[at : at + len(answer)] = np.frombuffer(answer, np.uint8)
        at += len(answer)
        spans[n_spans - 1, SPAN_END] = at
        if first != _PUBCOMP:
            spans[n_spans - 1, SPAN_ACKS] += 1
            unacked[slot] += 1
    return at, n_spans


def _write_replies_twin(
    arena: U8, frames: I64, n: int, serial: I64, at: int, n_spans: int, out: U8, spans: I64
) -> tuple[int, int]:
    last = None
    for frame in frames[:n].tolist():
        if not frame[F_ACK]:
            continue
        slot = frame[F_SLOT]
        if slot != last:
            spans[n_spans] = [slot, serial[slot], at, at, 0]
            n_spans += 1
            last = slot
        at += int(write_reply(arena, frame[F_START], max(frame[F_LENGTH], FRAME_BYTES_MIN), frame[F_ACK], out, at))
        spans[n_spans - 1, SPAN_END] = at
    return at, n_spans


def _by_partition_twin(
    data: U8, rows: I64, n: int, out: U8, length: U32, received: I64, small: U8, large: U32, bounds: I64
) -> None:
    order = sorted(range(n), key=lambda i: int(rows[i, G_PARTITION]))
    at = 0
    for k, i in enumerate(order):
        row = rows[i].tolist()
        begin = row[G_START]
        out[at : at + row[G_LENGTH]] = data[begin : begin + row[G_LENGTH]]
        at += row[G_LENGTH]
        length[k], received[k] = row[G_LENGTH], row[G_RECEIVED]
        small[:, k] = row[G_DOOR], row[G_REASON], row[G_CODEC]
        large[:, k] = row[G_DETAIL], row[G_SOURCE]
    for partition in range(len(bounds)):
        members = [i for i in range(n) if rows[i, G_PARTITION] < partition]
        bounds[partition] = [len(members), sum(int(rows[i, G_LENGTH]) for i in members)]


def _merge_spans_twin(data: U8, spans: I64, order: I64, serial: I64, out: U8, merged: I64, unacked: I32) -> int:
    n = at = 0
    for span in spans[order].tolist():
        slot, number, begin, end, acks = span
        if serial[slot] != number:
            continue  # that connection is gone
        if n == 0 or merged[n - 1, SPAN_SERIAL] != number:
            merged[n] = [slot, number, at, at, 0]
            n += 1
        out[at : at + end - begin] = data[begin:end]
        at += end - begin
        merged[n - 1, SPAN_END] = at
        merged[n - 1, SPAN_ACKS] += acks
        unacked[slot] -= acks
    return n


# -- kernels ---------------------------------------------------------------------------------------
@kernel(twin=_absorb_twin)
def absorb(arena: U8, frames: I64, n: int, vin: U8, door: int, received_us: int, at: int, data: U8, rows: I64) -> int:
    """Copy ``n`` frames (columns F_*) from the arena to ``data[at:]`` and describe them in ``rows`` (columns G_*).

    A JSON payload does not say whose it is: the connection's VIN, from ``vin`` (slots, 17), goes in front of it.
    ``rows`` begins at the group's next free row.  Returns the offset behind the last byte.
    """
    for i in range(n):
        begin = np.uint64(frames[i, F_START])
        length = np.uint64(frames[i, F_LENGTH])
        to = np.uint64(at)
        head = np.int64(0)
        if frames[i, F_CODEC] != _GBT32960:
            slot = frames[i, F_SLOT]
            for j in range(VIN_BYTES):
                data[at + j] = vin[slot, j]
            head = np.int64(VIN_BYTES)
            to += np.uint64(VIN_BYTES)
        for k in range(length):
            data[to + k] = arena[begin + k]
        rows[i, G_START] = at
        rows[i, G_LENGTH] = frames[i, F_LENGTH] + head
        rows[i, G_RECEIVED] = received_us
        rows[i, G_DOOR] = door
        rows[i, G_REASON] = frames[i, F_REASON]
        rows[i, G_DETAIL] = frames[i, F_DETAIL]
        rows[i, G_PARTITION] = frames[i, F_PARTITION]
        rows[i, G_SOURCE] = frames[i, F_SOURCE]
        rows[i, G_CODEC] = frames[i, F_CODEC]
        at += frames[i, F_LENGTH] + head
    return at


@kernel(twin=_write_pubacks_twin)
def write_pubacks(
    acks: I64, n: int, serial: I64, at: int, n_spans: int, out: U8, spans: I64, unacked: I32
) -> tuple[int, int]:
    """Write the PUBACKs, PUBRECs and PUBCOMPs of ``acks`` (columns A_*) to ``out[at:]``, one span per run of a slot.

    Counts publishes as un-acked of their connection.  Returns (offset behind them, number of spans).
    """
    last = np.int64(-1)
    for i in range(n):
        slot = acks[i, A_SLOT]
        if slot != last:
            spans[n_spans, SPAN_SLOT] = slot
            spans[n_spans, SPAN_SERIAL] = serial[slot]
            spans[n_spans, SPAN_BEGIN] = at
            spans[n_spans, SPAN_ACKS] = 0
            n_spans += 1
            last = slot
        code = acks[i, A_CODE]
        out[at] = acks[i, A_FIRST]
        out[at + 1] = 3 if code != 0 else 2
        out[at + 2] = acks[i, A_ID] >> 8
        out[at + 3] = acks[i, A_ID] & 0xFF
        at += 4
        if code != 0:
            out[at] = code
            at += 1
        spans[n_spans - 1, SPAN_END] = at
        if acks[i, A_FIRST] != _PUBCOMP:
            spans[n_spans - 1, SPAN_ACKS] += 1
            unacked[slot] += 1
    return at, n_spans


@kernel(twin=_write_replies_twin)
def write_replies(
    arena: U8, frames: I64, n: int, serial: I64, at: int, n_spans: int, out: U8, spans: I64
) -> tuple[int, int]:
    """Write the GB/T replies that ``frames`` ask for (F_ACK) to ``out[at:]``, one span per run of a slot.

    A refused frame may be no more than its header; its reply needs no more.  Returns (offset, spans).
    """
    last = np.int64(-1)
    for i in range(n):
        ack = frames[i, F_ACK]
        if ack == 0:
            continue
        slot = frames[i, F_SLOT]
        if slot != last:
            spans[n_spans, SPAN_SLOT] = slot
            spans[n_spans, SPAN_SERIAL] = serial[slot]
            spans[n_spans, SPAN_BEGIN] = at
            spans[n_spans, SPAN_ACKS] = 0
            n_spans += 1
            last = slot
        length = max(frames[i, F_LENGTH], np.int64(FRAME_BYTES_MIN))
        at += _write_reply(arena, frames[i, F_START], length, ack, out, at)
        spans[n_spans - 1, SPAN_END] = at
    return at, n_spans


@kernel(twin=_by_partition_twin)
def by_partition(
    data: U8, rows: I64, n: int, out: U8, length: U32, received: I64, small: U8, large: U32, bounds: I64
) -> None:
    """Put a group's frames in order of partition, arrival order kept within one (a counting sort).

    ``small`` (3, n): door, reason, codec · ``large`` (2, n): detail, source · ``bounds`` (partitions + 1, 2):
    index of each partition's first frame and offset of its first byte in ``out``.
    """
    partitions = len(bounds) - 1
    bounds[:, :] = 0
    for i in range(n):
        bounds[rows[i, G_PARTITION] + 1, 0] += 1
        bounds[rows[i, G_PARTITION] + 1, 1] += rows[i, G_LENGTH]
    for p in range(partitions):
        bounds[p + 1, 0] += bounds[p, 0]
        bounds[p + 1, 1] += bounds[p, 1]
    following = bounds.copy()
    for i in range(n):
        p = rows[i, G_PARTITION]
        k = following[p, 0]
        to = np.uint64(following[p, 1])
        begin = np.uint64(rows[i, G_START])
        for j in range(np.uint64(rows[i, G_LENGTH])):
            out[to + j] = data[begin + j]
        following[p, 0] += 1
        following[p, 1] += rows[i, G_LENGTH]
        length[k] = rows[i, G_LENGTH]
        received[k] = rows[i, G_RECEIVED]
        small[0, k] = rows[i, G_DOOR]
        small[1, k] = rows[i, G_REASON]
        small[2, k] = rows[i, G_CODEC]
        large[0, k] = rows[i, G_DETAIL]
        large[1, k] = rows[i, G_SOURCE]


@kernel(twin=_merge_spans_twin)
def merge_spans(data: U8, spans: I64, order: I64, serial: I64, out: U8, merged: I64, unacked: I32) -> int:
    """Gather the answers of each connection that is still there: one stretch of ``out`` and one row each.

    ``order`` sorts ``spans`` by serial, stable.  Takes the acks off ``unacked``.  Returns the rows.
    """
    n = 0
    at = np.int64(0)
    for k in range(len(order)):
        i = order[k]
        slot = spans[i, SPAN_SLOT]
        number = spans[i, SPAN_SERIAL]
        if serial[slot] != number:
            continue
        if n == 0 or merged[n - 1, SPAN_SERIAL] != number:
            merged[n, SPAN_SLOT] = slot
            merged[n, SPAN_SERIAL] = number
            merged[n, SPAN_BEGIN] = at
            merged[n, SPAN_ACKS] = 0
            n += 1
        for j in range(spans[i, SPAN_BEGIN], spans[i, SPAN_END]):
            out[at] = data[j]
            at += 1
        merged[n - 1, SPAN_END] = at
        merged[n - 1, SPAN_ACKS] += spans[i, SPAN_ACKS]
        unacked[slot] -= spans[i, SPAN_ACKS]
    return n


def warm() -> None:
    """Compile every kernel of this module with the types it is called with."""
    data = np.zeros(64, np.uint8)
    rows = np.zeros((1, GROUP_COLUMNS), np.int64)
    serial = np.zeros(1, np.int64)
    unacked = np.zeros(1, np.int32)
    absorb(data, rows, 0, np.zeros((1, VIN_BYTES), np.uint8), 1, 1, 0, data, rows)
    write_pubacks(np.zeros((1, ACK_COLUMNS), np.int64), 0, serial, 0, 0, data, np.zeros((1, 5), np.int64), unacked)
    write_replies(data, rows, 0, serial, 0, 0, data, np.zeros((1, 5), np.int64))
    small, large = np.zeros((3, 1), np.uint8), np.zeros((2, 1), np.uint32)
    by_partition(data, rows, 0, data, large[0], serial, small, large, np.zeros((2, 2), np.int64))
    none = np.zeros(0, np.int64)
    merge_spans(data, np.zeros((1, 5), np.int64), none, serial, data, np.zeros((1, 5), np.int64), unacked)
