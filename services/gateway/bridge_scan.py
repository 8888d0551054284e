"""The bridge's kernel: what brokers sent in a tick, in; frames, acknowledgements and odd packets, out.

As ``scan_mqtt``, from the client's end of the line: every PUBLISH says by its topic whose it is.  A publish that is
larger than a packet may be is a dead letter and is acknowledged, for the broker would send it again for ever;
its bytes beyond the first ones are passed over as they come.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,assignment,return-value"

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np

from schemas.batch import I64, U8, VIN_BYTES, Codec
from schemas.gbt32960.commands import Command
from schemas.gbt32960.frame import (
    AT_COMMAND,
    AT_LENGTH,
    AT_VIN,
    BAD_BCC,
    FRAME,
    GARBAGE,
    OVERSIZE,
    next_frame,
    next_header,
)
from schemas.jit import compiled, kernel
from schemas.keys import partition_of
from schemas.mqtt.scan import MALFORMED, NEED_MORE, TOO_LARGE, next_packet, publish_at
from schemas.mqtt.wire import Code, PacketType
from schemas.reasons import CODE as REASON
from services.gateway.bridge_topics import (
    LEVEL_AT,
    LEVEL_BYTES,
    LEVEL_KIND,
    LITERAL,
    PATTERN_AT,
    PATTERN_CODEC,
    PATTERN_LEVELS,
    REST,
    VIN,
    match_twin,
)
from services.gateway.columns import (
    A_CODE,
    A_FIRST,
    A_ID,
    A_SLOT,
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
from services.gateway.scan_mqtt import VIOLATION, _put_frame, _scan_payload

# A publish that is passed over: bytes of it that are still to come, and its answer when they have.
SKIP_BYTES: Final = 0
SKIP_ID: Final = 1
SKIP_FIRST: Final = 2  # first byte of the answer, 0 for none
SKIP_COLUMNS: Final = 3

_NEW: Final = int(State.NEW)
_CONNACK: Final = int(PacketType.CONNACK)
_PUBLISH: Final = int(PacketType.PUBLISH)
_PUBACK: Final = int(PacketType.PUBACK)
_PUBREC: Final = int(PacketType.PUBREC)
_PUBREL: Final = int(PacketType.PUBREL)
_PUBCOMP: Final = int(PacketType.PUBCOMP)
_SUBACK: Final = int(PacketType.SUBACK)
_PINGRESP: Final = int(PacketType.PINGRESP)
_DISCONNECT: Final = int(PacketType.DISCONNECT)

_MALFORMED_PACKET: Final = int(Code.MALFORMED_PACKET)
_PROTOCOL_ERROR: Final = int(Code.PROTOCOL_ERROR)
_PACKET_TOO_LARGE: Final = int(Code.PACKET_TOO_LARGE)
_TOPIC_ALIAS_INVALID: Final = int(Code.TOPIC_ALIAS_INVALID)

_BAD_BCC: Final = REASON["bad_bcc"]
_BAD_LENGTH: Final = REASON["bad_length"]
_GARBAGE: Final = REASON["garbage"]
_OVERSIZE: Final = REASON["oversize"]
_FOREIGN_VIN: Final = REASON["foreign_vin"]
_BAD_VIN: Final = REASON["bad_vin"]
_UNKNOWN_TOPIC: Final = REASON["unknown_topic"]
_UNKNOWN_COMMAND: Final = REASON["unknown_command"]
_PLATFORM: Final = (int(Command.PLATFORM_LOGIN), int(Command.PLATFORM_LOGOUT))

_GBT32960: Final = int(Codec.GBT32960)

_next_packet = cast("Any", next_packet).compiled
_publish_at = cast("Any", publish_at).compiled
_partition_of = cast("Any", partition_of).compiled


# -- twin ------------------------------------------------------------------------------------------
def _payload_twin(payload: bytes, frame_max: int, vin: bytes) -> list[tuple[int, int, int, int]]:
    """(offset, bytes, reason, detail) of what lies in a payload of GB/T 32960 frames."""
    data = np.frombuffer(payload, np.uint8).copy()
    found: list[tuple[int, int, int, int]] = []
    at = 0
    while at < len(payload):
        kind, begin, length = next_frame(data, at, len(payload), frame_max)
        reason = detail = 0
        if kind == FRAME:
            if payload[begin + AT_VIN : begin + AT_VIN + VIN_BYTES] != vin:
                reason, detail = _FOREIGN_VIN, AT_VIN
            elif payload[begin + AT_COMMAND] in _PLATFORM:
                reason, detail = _UNKNOWN_COMMAND, AT_COMMAND
        elif kind == BAD_BCC:
            reason, detail = _BAD_BCC, length - 1
        elif kind == GARBAGE:
            reason = _GARBAGE
        elif kind == OVERSIZE:
            reason, detail = _OVERSIZE, AT_LENGTH
        else:
            reason, detail = _BAD_LENGTH, AT_LENGTH
            length = next_header(data, begin, len(payload)) - begin
        found.append((int(begin), int(length), int(reason), int(detail)))
        at = begin + length
    return found


def _bridge_scan_twin(
    arena: U8,
    segments: I64,
    limits: I64,
    state: U8,
    five: U8,
    vin: U8,
    skips: I64,
    patterns: I64,
    levels: I64,
    text: U8,
    frames: I64,
    vins: U8,
    topics: I64,
    acks: I64,
    slow: I64,
    counts: I64,
) -> None:
    packet_max, frame_max, json_max, partitions = limits.tolist()
    counts[:] = 0

    def put(table: I64, which: int, *values: int) -> None:
        row = int(counts[which])
        table[row, : len(values)] = values
        counts[which] += 1

    def put_frame(
        start: int, length: int, slot: int, reason: int, detail: int, codec: int, own: bytes, topic: int, size: int
    ) -> None:
        row = int(counts[0])
        who = np.frombuffer(own, np.uint8)
        vins[row] = who
        topics[row] = topic, size
        kept = min(length, REFUSED_BYTES_MAX) if reason else length
        put(frames, 0, start, kept, slot, reason, detail, partition_of(who, 0, partitions), 0, 0, codec)

    for index in range(len(segments)):
        if segments[index, SEG_STATE] != SEG_SCAN:
            continue
        slot, at, end, _ = segments[index].tolist()
        is_five = bool(five[slot])
        ended = SEG_DONE
        while True:
            if counts[2] == len(slow) or counts[1] == len(acks) or counts[0] == len(frames):
                ended = SEG_SCAN
                break
            if skips[slot, SKIP_BYTES]:
                passed = min(int(skips[slot, SKIP_BYTES]), end - at)
                skips[slot, SKIP_BYTES] -= passed
                at += passed
                if skips[slot, SKIP_BYTES]:
                    break
                if skips[slot, SKIP_FIRST]:
                    put(acks, 1, slot, int(skips[slot, SKIP_ID]), 0, int(skips[slot, SKIP_FIRST]))
                continue
            status, body, after = next_packet(arena, at, end, packet_max)
            if status == NEED_MORE:
                break
            first = int(arena[at])
            kind = first >> 4
            violation = 0
            head = min(after, at + packet_max)
            if status == MALFORMED:
                violation = _MALFORMED_PACKET
            elif (state[slot] == _NEW) != (kind == _CONNACK):
                violation = _PROTOCOL_ERROR
            elif status == TOO_LARGE and kind != _PUBLISH:
                violation = _PACKET_TOO_LARGE
            elif kind == _PUBLISH:
                if end < head:
                    break
                bad, topic, topic_bytes, packet_id, payload, alias = publish_at(arena, first, body, head, is_five)
                qos = first >> 1 & 3
                if bad:
                    violation = _PACKET_TOO_LARGE if status == TOO_LARGE else bad
                elif alias:
                    violation = _TOPIC_ALIAS_INVALID
                else:
                    if counts[0] + (head - payload) // 2 + 2 > len(frames):
                        ended = SEG_SCAN
                        break
                    name = bytes(arena[topic : topic + topic_bytes])
                    found, vin_at, vin_bytes = match_twin(name, patterns, levels, text)
                    own = name[vin_at : vin_at + vin_bytes]
                    named = found >= 0 and vin_bytes == VIN_BYTES and all(0x21 <= byte <= 0x7E for byte in own)
                    if not named:
                        own = bytes(VIN_BYTES)
                    vin[slot] = np.frombuffer(own, np.uint8)
                    where = topic, topic_bytes
                    codec = int(patterns[found, PATTERN_CODEC]) if named else _GBT32960
                    reason = 0
                    if status == TOO_LARGE:
                        reason = _OVERSIZE
                    elif found < 0:
                        reason = _UNKNOWN_TOPIC
                    elif not named:
                        reason = _BAD_VIN
                    if not reason and codec == _GBT32960:
                        for begin, length, why, detail in _payload_twin(bytes(arena[payload:after]), frame_max, own):
                            put_frame(payload + begin, length, slot, why, detail, codec, own, *where)
                    else:
                        if not reason and after - payload > json_max:
                            reason = _OVERSIZE
                        put_frame(payload, head - payload, slot, reason, 0, codec, own, *where)
                    answer = (_PUBREC << 4 if qos == 2 else _PUBACK << 4) if qos else 0
                    if status == TOO_LARGE:
                        skips[slot] = after - head, packet_id, answer
                    elif answer:
                        put(acks, 1, slot, packet_id, 0, answer)
                    at = head
                    continue
            elif kind == _PUBREL:
                released = int.from_bytes(bytes(arena[body : min(body + 2, after)]), "big")
                if first & 15 != 2 or after - body < 2 or not released or (after - body > 2 and not is_five):
                    violation = _MALFORMED_PACKET
                else:
                    put(acks, 1, slot, released, 0, _PUBCOMP << 4)
                    at = after
                    continue
            elif kind == _PINGRESP and after == body and first & 15 == 0:
                at = after
                continue
            elif kind in (_CONNACK, _SUBACK, _DISCONNECT) and first & 15 == 0:
                put(slow, 2, kind, index, body, after - body, 0)
                at = after
                ended = SEG_ASKED
                break
            else:
                violation = _PROTOCOL_ERROR
            put(slow, 2, VIOLATION, index, at, end - at, violation)
            at = end
            ended = SEG_ASKED
            break
        segments[index, SEG_AT] = at
        segments[index, SEG_STATE] = ended
        if ended == SEG_SCAN:
            return  # out of room: the caller empties the tables and comes back


# -- kernel ----------------------------------------------------------------------------------------
@compiled
def _match(data: U8, topic: int, end: int, patterns: I64, levels: I64, text: U8) -> tuple[int, int, int]:
    """As ``match_twin``, with the VIN level's offset in ``data``."""
    for index in range(len(patterns)):
        at = np.int64(topic)
        vin_at = np.int64(0)
        vin_bytes = np.int64(0)
        same = True
        rest = False
        first = patterns[index, PATTERN_AT]
        for k in range(first, first + patterns[index, PATTERN_LEVELS]):
            kind = levels[k, LEVEL_KIND]
            if kind == REST:
                rest = True
                break
            if at > end:
                same = False
                break
            stop = at
            while stop < end and data[stop] != 0x2F:
                stop += 1
            if kind == LITERAL:
                if stop - at != levels[k, LEVEL_BYTES]:
                    same = False
                    break
                begin = levels[k, LEVEL_AT]
                for j in range(stop - at):
                    same &= data[at + j] == text[begin + j]
                if not same:
                    break
            elif kind == VIN:
                vin_at = at
                vin_bytes = stop - at
            at = stop + 1
        if same and (rest or at == end + 1):
            return np.int64(index), vin_at, vin_bytes
    return np.int64(-1), np.int64(0), np.int64(0)


@kernel(twin=_bridge_scan_twin)
def bridge_scan(
    arena: U8,
    segments: I64,
    limits: I64,
    state: U8,
    five: U8,
    vin: U8,
    skips: I64,
    patterns: I64,
    levels: I64,
    text: U8,
    frames: I64,
    vins: U8,
    topics: I64,
    acks: I64,
    slow: I64,
    counts: I64,
) -> None:
    """Scan every segment (columns SEG_*) that is in state SEG_SCAN.

    ``limits``: bytes of a packet, bytes of a frame, bytes of a JSON payload, partitions.  ``vin`` (slots, 17) of a
    slot is overwritten with the VIN of the topic at hand.  ``skips`` (slots, SKIP_*) lives as long as the connection.
    Writes ``frames`` (F_*) and in step with them ``vins`` (n, 17: whom the topic names, zeros when nobody) and
    ``topics`` (n, 2: offset and bytes of the topic in the arena); ``acks`` (A_*), ``slow`` (S_*), and how many of
    frames, acks and slow into ``counts``.  A segment left in SEG_SCAN means that a table was full.
    """
    packet_max = limits[0]
    frame_max = limits[1]
    json_max = limits[2]
    partitions = limits[3]
    n_frames = np.int64(0)
    n_acks = np.int64(0)
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
        is_five = five[slot] != 0
        fresh = state[slot] == _NEW
        ended = np.int64(SEG_DONE)
        while True:
            if n_slow == len(slow) or n_acks == len(acks) or n_frames == len(frames):
                ended = np.int64(SEG_SCAN)
                break
            if skips[slot, SKIP_BYTES] != 0:
                passed = min(skips[slot, SKIP_BYTES], end - at)
                skips[slot, SKIP_BYTES] -= passed
                at += passed
                if skips[slot, SKIP_BYTES] != 0:
                    break
                if skips[slot, SKIP_FIRST] != 0:
                    acks[n_acks, A_SLOT] = slot
                    acks[n_acks, A_ID] = skips[slot, SKIP_ID]
                    acks[n_acks, A_CODE] = 0
                    acks[n_acks, A_FIRST] = skips[slot, SKIP_FIRST]
                    n_acks += 1
                continue
            status, body, after = _next_packet(arena, at, end, packet_max)
            if status == NEED_MORE:
                break
            first = np.int64(arena[at])
            kind = first >> 4
            violation = np.int64(0)
            head = min(np.int64(after), at + packet_max)
            if status == MALFORMED:
                violation = np.int64(_MALFORMED_PACKET)
            elif fresh != (kind == _CONNACK):
                violation = np.int64(_PROTOCOL_ERROR)
            elif status == TOO_LARGE and kind != _PUBLISH:
                violation = np.int64(_PACKET_TOO_LARGE)
            elif kind == _PUBLISH:
                if end < head:
                    break  # of a publish that is too large so much is kept, and its topic and identifier are in it
                bad, topic, topic_bytes, packet_id, payload, alias = _publish_at(arena, first, body, head, is_five)
                qos = first >> 1 & 3
                if bad != 0:
                    violation = np.int64(_PACKET_TOO_LARGE if status == TOO_LARGE else bad)
                elif alias != 0:
                    violation = np.int64(_TOPIC_ALIAS_INVALID)
                else:
                    if n_frames + (head - payload) // 2 + 2 > len(frames):
                        ended = np.int64(SEG_SCAN)
                        break
                    found, vin_at, vin_bytes = _match(arena, topic, topic + topic_bytes, patterns, levels, text)
                    named = found >= 0 and vin_bytes == VIN_BYTES
                    if named:
                        for k in range(VIN_BYTES):
                            named &= arena[vin_at + k] >= 0x21 and arena[vin_at + k] <= 0x7E
                    for k in range(VIN_BYTES):
                        vin[slot, k] = arena[vin_at + k] if named else np.uint8(0)
                    part = np.int64(_partition_of(vin[slot], 0, partitions))
                    codec = patterns[found, PATTERN_CODEC] if named else np.int64(_GBT32960)
                    reason = np.int64(0)
                    if status == TOO_LARGE:
                        reason = np.int64(_OVERSIZE)
                    elif found < 0:
                        reason = np.int64(_UNKNOWN_TOPIC)
                    elif not named:
                        reason = np.int64(_BAD_VIN)
                    row = n_frames
                    if reason == 0 and codec == _GBT32960:
                        n_frames = _scan_payload(arena, payload, after, frame_max, vin, slot, part, frames, n_frames)
                    else:
                        if reason == 0 and after - payload > json_max:
                            reason = np.int64(_OVERSIZE)
                        _put_frame(frames, n_frames, payload, head - payload, slot, reason, np.int64(0), part, codec)
                        n_frames += 1
                    while row < n_frames:
                        for k in range(VIN_BYTES):
                            vins[row, k] = vin[slot, k]
                        topics[row, 0] = topic
                        topics[row, 1] = topic_bytes
                        row += 1
                    answer = np.int64(0)
                    if qos != 0:
                        answer = np.int64((_PUBREC if qos == 2 else _PUBACK) << 4)
                    if status == TOO_LARGE:
                        skips[slot, SKIP_BYTES] = after - head
                        skips[slot, SKIP_ID] = packet_id
                        skips[slot, SKIP_FIRST] = answer
                    elif answer != 0:
                        acks[n_acks, A_SLOT] = slot
                        acks[n_acks, A_ID] = packet_id
                        acks[n_acks, A_CODE] = 0
                        acks[n_acks, A_FIRST] = answer
                        n_acks += 1
                    at = head
                    continue
            elif kind == _PUBREL:
                short = after - body < 2 or (after - body > 2 and not is_five)
                if short or first & 15 != 2 or (arena[body] == 0 and arena[body + 1] == 0):
                    violation = np.int64(_MALFORMED_PACKET)
                else:
                    acks[n_acks, A_SLOT] = slot
                    acks[n_acks, A_ID] = np.int64(arena[body]) << 8 | np.int64(arena[body + 1])
                    acks[n_acks, A_CODE] = 0
                    acks[n_acks, A_FIRST] = _PUBCOMP << 4
                    n_acks += 1
                    at = np.int64(after)
                    continue
            elif kind == _PINGRESP and after == body and first & 15 == 0:
                at = np.int64(after)
                continue
            elif kind in (_CONNACK, _SUBACK, _DISCONNECT) and first & 15 == 0:
                slow[n_slow, S_KIND] = kind
                slow[n_slow, S_SEGMENT] = index
                slow[n_slow, S_START] = body
                slow[n_slow, S_LENGTH] = after - body
                slow[n_slow, S_CODE] = 0
                n_slow += 1
                at = np.int64(after)
                ended = np.int64(SEG_ASKED)
                break
            else:
                violation = np.int64(_PROTOCOL_ERROR)
            slow[n_slow, S_KIND] = VIOLATION
            slow[n_slow, S_SEGMENT] = index
            slow[n_slow, S_START] = at
            slow[n_slow, S_LENGTH] = end - at
            slow[n_slow, S_CODE] = violation
            n_slow += 1
            at = end
            ended = np.int64(SEG_ASKED)
            break
        segments[index, SEG_AT] = at
        segments[index, SEG_STATE] = ended
        full = ended == SEG_SCAN
    counts[0] = n_frames
    counts[1] = n_acks
    counts[2] = n_slow


def warm() -> None:
    """Compile the kernel with the types it is called with."""
    u8, i64 = np.zeros(1, np.uint8), np.zeros((0, 9), np.int64)
    vin = np.zeros((1, VIN_BYTES), np.uint8)
    limits, counts = np.zeros(4, np.int64), np.zeros(3, np.int64)
    bridge_scan(u8, i64, limits, u8, u8, vin, i64, i64, i64, u8, i64, vin, i64, i64, i64, counts)
