"""Samples to bytes: GB/T 32960 frames, and the streams of packets that go down a socket.

Whole chunks at a time, ahead of sending.  What goes into a frame is the model's; how a field is coded is
the standard's (``schemas.gbt32960.encode``).
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,assignment"

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.batch import I32, I64, U8, VIN_BYTES
from schemas.gbt32960.commands import Command
from schemas.gbt32960.encode import encode_reports, frame_bytes_max, put_time
from schemas.gbt32960.frame import AT_COMMAND, AT_UNIT, AT_VIN
from schemas.gbt32960.replies import REPLY_BYTES_MAX, write_reply
from schemas.jit import compiled
from schemas.mqtt.topics import GBT32960, PREFIX, UPLINK_BYTES
from services.fleetsim.model import Samples


def encode_samples(
    samples: Samples, editions: I64, vins: U8, command: U8, time_s: I64, models: I64
) -> tuple[U8, I64, I32]:
    """Frames of ``samples``: (bytes, start (n,), length (n,)).

    editions (vehicles,) 16 or 25 · vins (vehicles, 17) · command (n,) 0x02 or 0x03 · time_s (n,) the
    time written into the frame (a wrong clock differs from ``samples.time_s``) · models (vehicles,) the
    vehicles of one number have the same cells and probes, and are encoded together.
    """
    start, length = np.empty(samples.n, np.int64), np.empty(samples.n, np.int32)
    model_of = models[samples.vehicle]
    present = np.unique(model_of)
    groups = [np.flatnonzero(model_of == model) for model in present]
    sizes = [(int(samples.cell_count[rows[0]]), int(samples.probe_count[rows[0]])) for rows in groups]
    out = np.empty(
        sum(len(rows) * frame_bytes_max(*size, 0) for rows, size in zip(groups, sizes, strict=True)), np.uint8
    )
    at = 0
    for rows, (cells, probes) in zip(groups, sizes, strict=True):
        # one model: the arrays as they are, not a copy of everything
        chosen: slice | I64 = slice(None) if len(groups) == 1 else rows
        vehicle = samples.vehicle[rows]
        begin, size = np.empty(len(rows), np.int64), np.empty(len(rows), np.int32)
        used = encode_reports(
            editions[vehicle], command[rows], vins[vehicle], time_s[rows], samples.num[chosen], samples.state[chosen],
            np.ascontiguousarray(samples.cells[chosen][:, :cells]),
            np.ascontiguousarray(samples.temps[chosen][:, :probes]),
            out[at:], begin, size,
        )  # fmt: skip
        start[rows], length[rows] = begin + at, size
        at += used
    return out[:at], start, length


# -- other times, other vehicles -----------------------------------------------------------------------
_TIME_BYTES: Final = 6


@compiled
def _copy(source: U8, begin: int, size: int, out: U8, at: int) -> int:
    for i in range(size):  # a slice assignment compiles for a second and copies no faster
        out[at + i] = source[begin + i]
    return at + size


@compiled
def _restamp(
    stock: U8, start: I64, length: I32, row: I64, vehicle: I64, vins: U8, command: U8, time_s: I64,
    out: U8, begin: I64, size: I32,
) -> int:  # fmt: skip
    at = 0
    for i in range(len(row)):
        source, count = start[row[i]], np.int64(length[row[i]])
        _copy(stock, source, count, out, at)
        last = at + count - 1
        check = np.int64(out[last]) ^ out[at + AT_COMMAND] ^ command[i]  # the check byte is the XOR of all before it
        out[at + AT_COMMAND] = command[i]
        for k in range(VIN_BYTES):
            check ^= out[at + AT_VIN + k] ^ vins[vehicle[i], k]
            out[at + AT_VIN + k] = vins[vehicle[i], k]
        for k in range(_TIME_BYTES):
            check ^= out[at + AT_UNIT + k]
        put_time(out, at + AT_UNIT, time_s[i])
        for k in range(_TIME_BYTES):
            check ^= out[at + AT_UNIT + k]
        out[last] = check
        begin[i], size[i] = at, count
        at += count
    return at


def restamp(
    stock: U8, start: I64, length: I32, row: I64, vehicle: I64, vins: U8, command: U8, time_s: I64
) -> tuple[U8, I64, I32]:
    """Frames of ``stock`` as other vehicles would have sent them at other times: (bytes, start (n,), length (n,)).

    row (n,) into ``start`` and ``length`` · vehicle (n,) into vins (vehicles, 17) · command (n,) 0x02 or 0x03 ·
    time_s (n,).  VIN, command, time and check byte change, the values of the report do not.
    """
    out = np.empty(int(length[row].sum()), np.uint8)
    begin, size = np.empty(len(row), np.int64), np.empty(len(row), np.int32)
    _restamp(stock, start, length, row, vehicle, vins, command, time_s, out, begin, size)
    return out, begin, size


@compiled
def _put(out: U8, at: int, width: int, value: int) -> int:
    for i in range(width):
        out[at + i] = (value >> (8 * (width - 1 - i))) & 0xFF
    return at + width


# -- streams ---------------------------------------------------------------------------------------
_PREFIX: Final = np.frombuffer(bytearray(PREFIX), np.uint8)
_SUFFIX: Final = np.frombuffer(bytearray(GBT32960), np.uint8)
PUBLISH_QOS1: Final = 0x32
DUP: Final = 0x08
PUBACK_BYTES: Final = 4
REPLY_BYTES: Final = REPLY_BYTES_MAX
_TOPIC: Final = UPLINK_BYTES
PACKET_IDS: Final = 65_535
MQTT_311, MQTT_5, GBT_TCP = 0, 1, 2  # how a vehicle speaks


@compiled
def _put_publish(
    frames: U8, begin: int, length: int, vin: U8, packet_id: int, five: bool, out: U8, at: int
) -> int:  # fmt: skip
    size = 2 + _TOPIC + 2 + (1 if five else 0) + length
    out[at] = PUBLISH_QOS1
    at += 1
    while True:  # remaining length, a variable byte integer (MQTT clause 1.5.5)
        byte = size & 0x7F
        size >>= 7
        out[at] = byte | (0x80 if size else 0)
        at += 1
        if size == 0:
            break
    at = _put(out, at, 2, _TOPIC)
    for i in range(len(_PREFIX)):
        out[at + i] = _PREFIX[i]
    at += len(_PREFIX)
    for i in range(VIN_BYTES):
        out[at + i] = vin[i]
    at += VIN_BYTES
    for i in range(len(_SUFFIX)):
        out[at + i] = _SUFFIX[i]
    at += len(_SUFFIX)
    at = _put(out, at, 2, packet_id)
    if five:
        out[at] = 0
        at += 1
    return _copy(frames, begin, length, out, at)


@compiled
def _put_streams(
    frames: U8, start: I64, length: I32, bounds: I64, emitted: I64, speech: I64, sequence: I64, vins: U8,
    out: U8, ends: I64, answers: U8, answer_at: I64,
) -> int:  # fmt: skip
    at, answer = 0, 0
    for v in range(len(speech)):
        answer_at[v] = answer
        for k in range(bounds[v], bounds[v + 1]):
            row = emitted[k]
            begin, size = start[row], np.int64(length[row])
            if speech[v] == GBT_TCP:
                at = _copy(frames, begin, size, out, at)
                write_reply(frames, begin, size, 1, answers, answer)
                answer += REPLY_BYTES
            else:
                packet_id = (sequence[v] + k - bounds[v]) % PACKET_IDS + 1
                at = _put_publish(frames, begin, size, vins[v], packet_id, speech[v] == MQTT_5, out, at)
                _put(answers, answer, 1, 0x40)
                _put(answers, answer + 1, 1, 2)
                _put(answers, answer + 2, 2, packet_id)
                answer += PUBACK_BYTES
            ends[k] = at
    answer_at[len(speech)] = answer
    return at


def encode_streams(
    frames: U8, start: I64, length: I32, bounds: I64, emitted: I64, speech: I64, sequence: I64, vins: U8
) -> tuple[U8, I64, U8, I64]:
    """What each vehicle sends, and what it expects in answer.

    bounds (vehicles + 1,) into ``emitted`` (k,), rows of ``start`` in the order of sending · speech (vehicles,)
    ``MQTT_311``, ``MQTT_5``, ``GBT_TCP`` · sequence (vehicles,) messages already sent (packet ids go on from there).

    Returns (bytes, ends (k,) offset after each message, answers, answer_at (vehicles + 1,) offsets into
    answers): PUBACKs of success of 4 bytes, or short success replies of 31, in the order of sending.
    """
    sizes = length[emitted].astype(np.int64)
    spoken = np.repeat(speech, np.diff(bounds))
    over = np.where(spoken == GBT_TCP, 0, 1 + 4 + 2 + UPLINK_BYTES + 2 + 1)
    out = np.empty(int((sizes + over).sum()), np.uint8)
    ends = np.empty(len(emitted), np.int64)
    answers = np.empty(int(np.where(spoken == GBT_TCP, REPLY_BYTES, PUBACK_BYTES).sum()), np.uint8)
    answer_at = np.empty(len(speech) + 1, np.int64)
    size = _put_streams(frames, start, length, bounds, emitted, speech, sequence, vins, out, ends, answers, answer_at)
    return out[:size], ends, answers, answer_at


def report_command(reissue: bool) -> int:
    """0x02, or 0x03 for data that comes late."""
    return int(Command.REISSUE if reissue else Command.REALTIME)


def warm() -> None:
    """Compile what chunks of a simulation do not use."""
    restamp(
        np.zeros(64, np.uint8), np.zeros(1, np.int64), np.full(1, 64, np.int32), np.zeros(1, np.int64),
        np.zeros(1, np.int64), np.zeros((1, VIN_BYTES), np.uint8), np.zeros(1, np.uint8), np.zeros(1, np.int64),
    )  # fmt: skip
