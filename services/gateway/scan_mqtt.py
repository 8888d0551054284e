"""The MQTT door's kernel: all bytes of a tick in, frames, acknowledgements and odd packets out.

The path of a PUBLISH under the connection's own topic lies here alone.  Whatever is rare (CONNECT,
SUBSCRIBE, a broken packet) is listed for Python; where Python may change what the following bytes
mean, scanning of that connection stops until it has.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,assignment,return-value"

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np

from schemas.batch import I32, I64, U8, VIN_BYTES, Codec
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
from schemas.gbt32960.frame import NEED_MORE as FRAME_NEED_MORE
from schemas.jit import compiled, kernel
from schemas.mqtt.scan import MALFORMED, NEED_MORE, TOO_LARGE, next_packet, publish_at
from schemas.mqtt.topics import BMS, GBT32960, PREFIX, TELEMETRY, UPLINK_BYTES
from schemas.mqtt.wire import Code, PacketType
from schemas.reasons import CODE as REASON
from services.gateway.columns import (
    A_CODE,
    A_FIRST,
    A_ID,
    A_SLOT,
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
from services.gateway.connections import ALIASES, State

# Slow kinds besides the packet types 1..15.
VIOLATION: Final = 16  # the peer broke the protocol: S_CODE says how
FOREIGN_TOPIC: Final = 17  # a 3.1.1 client published under another vehicle's topic

_NEW: Final = int(State.NEW)
_CONNECT: Final = int(PacketType.CONNECT)
_PUBLISH: Final = int(PacketType.PUBLISH)
_SUBSCRIBE: Final = int(PacketType.SUBSCRIBE)
_UNSUBSCRIBE: Final = int(PacketType.UNSUBSCRIBE)
_PUBACK: Final = int(PacketType.PUBACK)
_PUBREC: Final = int(PacketType.PUBREC)
_PUBREL: Final = int(PacketType.PUBREL)
_PUBCOMP: Final = int(PacketType.PUBCOMP)
_PINGREQ: Final = int(PacketType.PINGREQ)
_DISCONNECT: Final = int(PacketType.DISCONNECT)
_AUTH: Final = int(PacketType.AUTH)

_MALFORMED_PACKET: Final = int(Code.MALFORMED_PACKET)
_PROTOCOL_ERROR: Final = int(Code.PROTOCOL_ERROR)
_PACKET_TOO_LARGE: Final = int(Code.PACKET_TOO_LARGE)
_RETAIN_NOT_SUPPORTED: Final = int(Code.RETAIN_NOT_SUPPORTED)
_TOPIC_ALIAS_INVALID: Final = int(Code.TOPIC_ALIAS_INVALID)
_RECEIVE_MAXIMUM_EXCEEDED: Final = int(Code.RECEIVE_MAXIMUM_EXCEEDED)
_NOT_AUTHORIZED: Final = int(Code.NOT_AUTHORIZED)

_BAD_BCC: Final = REASON["bad_bcc"]
_BAD_LENGTH: Final = REASON["bad_length"]
_GARBAGE: Final = REASON["garbage"]
_OVERSIZE: Final = REASON["oversize"]
_FOREIGN_VIN: Final = REASON["foreign_vin"]
_UNKNOWN_TOPIC: Final = REASON["unknown_topic"]
_UNKNOWN_COMMAND: Final = REASON["unknown_command"]

# A vehicle is no platform: what would log one in has no meaning under a vehicle's topic.
_PLATFORM_LOGIN: Final = int(Command.PLATFORM_LOGIN)
_PLATFORM_LOGOUT: Final = int(Command.PLATFORM_LOGOUT)

# Topic classes.
_OWN: Final = 0
_FOREIGN: Final = 1
_UNKNOWN: Final = 2
_OWN_TELEMETRY: Final = 3  # from here on JSON
_OWN_BMS: Final = 4

_GBT32960: Final = int(Codec.GBT32960)
_JSON_TELEMETRY: Final = int(Codec.JSON_TELEMETRY)
_JSON_BMS: Final = int(Codec.JSON_BMS)

_PREFIX: Final = np.frombuffer(PREFIX, np.uint8).copy()
_SUFFIX: Final = np.frombuffer(GBT32960, np.uint8).copy()
_PREFIX_BYTES: Final = len(PREFIX)
_TELEMETRY: Final = np.frombuffer(TELEMETRY, np.uint8).copy()
_BMS: Final = np.frombuffer(BMS, np.uint8).copy()

_next_packet = cast("Any", next_packet).compiled
_next_frame = cast("Any", next_frame).compiled
_next_header = cast("Any", next_header).compiled
_publish_at = cast("Any", publish_at).compiled


# -- twin ------------------------------------------------------------------------------------------
def _topic_class_twin(topic: bytes, vin: bytes) -> int:
    if topic == PREFIX + vin + GBT32960:
        return _OWN
    if topic in (PREFIX + vin + TELEMETRY, PREFIX + vin + BMS):
        return _OWN_TELEMETRY if topic.endswith(TELEMETRY) else _OWN_BMS
    level, slash, _ = topic.removeprefix(PREFIX).partition(b"/")
    return _FOREIGN if topic.startswith(PREFIX) and slash and level != vin else _UNKNOWN


def _mqtt_scan_twin(
    arena: U8,
    segments: I64,
    limits: I64,
    state: U8,
    five: U8,
    vin: U8,
    partition: I32,
    unacked: I32,
    aliases: U8,
    frames: I64,
    acks: I64,
    slow: I64,
    counts: I64,
) -> None:
    packet_max, frame_max, receive_max, json_max = limits.tolist()
    counts[:] = 0

    def put(table: I64, which: int, *values: int) -> None:
        row = int(counts[which])
        table[row, : len(values)] = values
        counts[which] += 1

    for index in range(len(segments)):
        if segments[index, SEG_STATE] != SEG_SCAN:
            continue
        slot, at, end, _ = segments[index].tolist()
        own_vin, own_partition = bytes(vin[slot]), int(partition[slot])
        pending = int(unacked[slot])
        ended = SEG_DONE
        while True:
            if counts[2] == len(slow):
                ended = SEG_SCAN
                break
            status, body, after = next_packet(arena, at, end, packet_max)
            if status == NEED_MORE:
                break
            first = int(arena[at])
            kind = first >> 4
            violation = 0
            if status == MALFORMED:
                violation = _MALFORMED_PACKET
            elif status == TOO_LARGE:
                violation = _PACKET_TOO_LARGE
                if counts[0] == len(frames):
                    ended = SEG_SCAN
                    break
                if state[slot] != _NEW and kind == _PUBLISH:
                    kept = min(end - at, REFUSED_BYTES_MAX)
                    put(frames, 0, at, kept, slot, _OVERSIZE, 0, own_partition, 0, 0, _GBT32960)
            elif (state[slot] == _NEW and kind != _CONNECT) or (state[slot] != _NEW and kind == _CONNECT):
                violation = _PROTOCOL_ERROR
            elif kind == _PUBLISH:
                bad, topic, topic_bytes, packet_id, payload, alias = publish_at(
                    arena, first, body, after, bool(five[slot])
                )
                qos = first >> 1 & 3
                if bad:
                    violation = bad
                elif alias > ALIASES:
                    violation = _TOPIC_ALIAS_INVALID
                elif alias and not topic_bytes and not aliases[slot, alias - 1]:
                    violation = _PROTOCOL_ERROR
                elif five[slot] and first & 1:
                    violation = _RETAIN_NOT_SUPPORTED
                elif five[slot] and qos and pending >= receive_max:
                    violation = _RECEIVE_MAXIMUM_EXCEEDED
                else:
                    if counts[1] == len(acks) or counts[0] + (after - payload) // 2 + 2 > len(frames):
                        ended = SEG_SCAN
                        break
                    if topic_bytes:
                        where = _topic_class_twin(bytes(arena[topic : topic + topic_bytes]), own_vin)
                        if alias:
                            aliases[slot, alias - 1] = where + 1
                    else:
                        where = int(aliases[slot, alias - 1]) - 1
                    code = 0
                    if where == _OWN:
                        k = payload
                        while k < after:
                            found, begin, length = next_frame(arena, k, after, frame_max)
                            reason = detail = 0
                            if found == FRAME:
                                if bytes(arena[begin + AT_VIN : begin + AT_VIN + VIN_BYTES]) != own_vin:
                                    reason, detail = _FOREIGN_VIN, AT_VIN
                                elif arena[begin + AT_COMMAND] in (_PLATFORM_LOGIN, _PLATFORM_LOGOUT):
                                    reason, detail = _UNKNOWN_COMMAND, AT_COMMAND
                            elif found == BAD_BCC:
                                reason, detail = _BAD_BCC, length - 1
                            elif found == GARBAGE:
                                reason = _GARBAGE
                            elif found == OVERSIZE:
                                reason, detail = _OVERSIZE, AT_LENGTH
                            else:
                                reason, detail = _BAD_LENGTH, AT_LENGTH
                                length = next_header(arena, begin, after) - begin
                            kept = min(length, REFUSED_BYTES_MAX) if reason else length
                            put(frames, 0, begin, kept, slot, reason, detail, own_partition, 0, 0, _GBT32960)
                            k = begin + length
                    elif where >= _OWN_TELEMETRY:
                        codec = _JSON_TELEMETRY if where == _OWN_TELEMETRY else _JSON_BMS
                        over = after - payload > json_max
                        kept = min(after - payload, REFUSED_BYTES_MAX) if over else after - payload
                        reason = _OVERSIZE if over else 0
                        put(frames, 0, payload, kept, slot, reason, 0, own_partition, 0, 0, codec)
                    else:
                        reason = _FOREIGN_VIN if where == _FOREIGN else _UNKNOWN_TOPIC
                        kept = min(after - payload, REFUSED_BYTES_MAX)
                        put(frames, 0, payload, kept, slot, reason, 0, own_partition, 0, 0, _GBT32960)
                        if where == _FOREIGN:
                            code = _NOT_AUTHORIZED
                    at = after
                    if code and not five[slot]:
                        put(slow, 2, FOREIGN_TOPIC, index, payload, after - payload, code)
                        ended = SEG_ASKED
                        break
                    if qos:
                        pending += 1
                        put(acks, 1, slot, packet_id, code, _PUBREC << 4 if qos == 2 else _PUBACK << 4)
                    continue
            elif kind == _PUBREL and not (first & 15 == 2 and after - body > 2 and five[slot]):
                released = int.from_bytes(bytes(arena[body : min(body + 2, after)]), "big")
                if first & 15 != 2 or after - body != 2 or not released:
                    violation = _MALFORMED_PACKET
                elif counts[1] == len(acks):
                    ended = SEG_SCAN
                    break
                else:
                    put(acks, 1, slot, released, 0, _PUBCOMP << 4)
                    at = after
                    continue
            elif kind in (_CONNECT, _SUBSCRIBE, _UNSUBSCRIBE, _PUBACK, _PUBREL, _PINGREQ, _DISCONNECT):
                wanted = 2 if kind in (_SUBSCRIBE, _UNSUBSCRIBE, _PUBREL) else 0
                if first & 15 != wanted or (kind == _PINGREQ and after != body):
                    violation = _MALFORMED_PACKET
                elif kind == _PINGREQ and counts[2] and slow[counts[2] - 1, :2].tolist() == [_PINGREQ, index]:
                    slow[counts[2] - 1, S_CODE] += 1
                    at = after
                    continue
                else:
                    put(slow, 2, kind, index, body, after - body, 1)
                    at = after
                    if kind in (_CONNECT, _DISCONNECT):
                        ended = SEG_ASKED
                        break
                    continue
            else:
                violation = _MALFORMED_PACKET if not kind or (kind == _AUTH and first & 15) else _PROTOCOL_ERROR
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
def _ends_in(data: U8, slash: int, end: int, suffix: U8) -> bool:
    same = end - slash == len(suffix)
    if same:
        for k in range(len(suffix)):
            same &= data[slash + k] == suffix[k]
    return same


@compiled
def _topic_class(data: U8, topic: int, topic_bytes: int, vin: U8, slot: int) -> int:
    if topic_bytes <= _PREFIX_BYTES:
        return _UNKNOWN
    for k in range(_PREFIX_BYTES):
        if data[topic + k] != _PREFIX[k]:
            return _UNKNOWN
    level = topic + _PREFIX_BYTES
    end = topic + topic_bytes
    slash = level
    while slash < end and data[slash] != 0x2F:
        slash += 1
    if slash == end:
        return _UNKNOWN
    own = slash - level == VIN_BYTES
    if own:
        for k in range(VIN_BYTES):
            own &= data[level + k] == vin[slot, k]
    if not own:
        return _FOREIGN
    if topic_bytes == UPLINK_BYTES and _ends_in(data, slash, end, _SUFFIX):
        return _OWN
    if _ends_in(data, slash, end, _TELEMETRY):
        return _OWN_TELEMETRY
    if _ends_in(data, slash, end, _BMS):
        return _OWN_BMS
    return _UNKNOWN


@compiled
def _put_frame(
    frames: I64, row: int, start: int, length: int, slot: int, reason: int, detail: int, part: int, codec: int
) -> None:
    frames[row, F_START] = start
    frames[row, F_LENGTH] = length if reason == 0 else min(length, np.int64(REFUSED_BYTES_MAX))
    frames[row, F_SLOT] = slot
    frames[row, F_REASON] = reason
    frames[row, F_DETAIL] = detail
    frames[row, F_PARTITION] = part
    frames[row, F_SOURCE] = 0
    frames[row, F_ACK] = 0
    frames[row, F_CODEC] = codec


@compiled
def _scan_payload(
    arena: U8, at: int, end: int, frame_max: int, vin: U8, slot: int, part: int, frames: I64, row: int
) -> int:
    """List what a payload holds; returns the next free row of ``frames``."""
    while at < end:
        found, begin, length = _next_frame(arena, at, end, frame_max)
        reason = np.int64(0)
        detail = np.int64(0)
        if found == FRAME:
            own = True
            for k in range(VIN_BYTES):
                own &= arena[begin + AT_VIN + k] == vin[slot, k]
            if not own:
                reason = np.int64(_FOREIGN_VIN)
                detail = np.int64(AT_VIN)
            elif arena[begin + AT_COMMAND] == _PLATFORM_LOGIN or arena[begin + AT_COMMAND] == _PLATFORM_LOGOUT:
                reason = np.int64(_UNKNOWN_COMMAND)
                detail = np.int64(AT_COMMAND)
        elif found == FRAME_NEED_MORE:
            reason = np.int64(_BAD_LENGTH)
            detail = np.int64(AT_LENGTH)
            # the payload has no more: a length that was damaged must not take the frames behind it along
            length = _next_header(arena, begin, end) - begin
        elif found == BAD_BCC:
            reason = np.int64(_BAD_BCC)
            detail = length - 1
        elif found == OVERSIZE:
            reason = np.int64(_OVERSIZE)
            detail = np.int64(AT_LENGTH)
        else:
            reason = np.int64(_GARBAGE)
        _put_frame(frames, row, begin, length, slot, reason, detail, part, _GBT32960)
        row += 1
        at = begin + length
    return row


@kernel(twin=_mqtt_scan_twin)
def mqtt_scan(
    arena: U8,
    segments: I64,
    limits: I64,
    state: U8,
    five: U8,
    vin: U8,
    partition: I32,
    unacked: I32,
    aliases: U8,
    frames: I64,
    acks: I64,
    slow: I64,
    counts: I64,
) -> None:
    """Scan every segment (columns SEG_*) that is in state SEG_SCAN.

    ``limits``: bytes of a packet, bytes of a frame, receive maximum, bytes of a JSON payload.  ``state`` to
    ``aliases``: arrays of ``Connections``.  Writes ``frames`` (F_*), ``acks`` (A_*), ``slow`` (S_*; S_CODE is the
    reason code of a violation, else how many in a row) and how many of each into ``counts``; moves each segment's
    SEG_AT and SEG_STATE.  A segment left in SEG_SCAN means that a table was full: take what is there and call again.
    """
    packet_max = limits[0]
    frame_max = limits[1]
    receive_max = limits[2]
    json_max = limits[3]
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
        part = np.int64(partition[slot])
        pending = np.int64(unacked[slot])
        is_five = five[slot] != 0
        fresh = state[slot] == _NEW
        ended = np.int64(SEG_DONE)
        while True:
            if n_slow == len(slow):
                ended = np.int64(SEG_SCAN)
                break
            status, body, after = _next_packet(arena, at, end, packet_max)
            if status == NEED_MORE:
                break
            first = np.int64(arena[at])
            kind = first >> 4
            violation = np.int64(0)
            if status == MALFORMED:
                violation = np.int64(_MALFORMED_PACKET)
            elif status == TOO_LARGE:
                if n_frames == len(frames):
                    ended = np.int64(SEG_SCAN)
                    break
                violation = np.int64(_PACKET_TOO_LARGE)
                if not fresh and kind == _PUBLISH:
                    _put_frame(frames, n_frames, at, end - at, slot, np.int64(_OVERSIZE), np.int64(0), part, _GBT32960)
                    n_frames += 1
            elif fresh != (kind == _CONNECT):
                violation = np.int64(_PROTOCOL_ERROR)
            elif kind == _PUBLISH:
                bad, topic, topic_bytes, packet_id, payload, alias = _publish_at(arena, first, body, after, is_five)
                qos = first >> 1 & 3
                if bad != 0:
                    violation = np.int64(bad)
                elif alias > ALIASES:
                    violation = np.int64(_TOPIC_ALIAS_INVALID)
                elif alias != 0 and topic_bytes == 0 and aliases[slot, alias - 1] == 0:
                    violation = np.int64(_PROTOCOL_ERROR)
                elif is_five and first & 1 != 0:
                    violation = np.int64(_RETAIN_NOT_SUPPORTED)
                elif is_five and qos != 0 and pending >= receive_max:
                    violation = np.int64(_RECEIVE_MAXIMUM_EXCEEDED)
                else:
                    if n_acks == len(acks) or n_frames + (after - payload) // 2 + 2 > len(frames):
                        ended = np.int64(SEG_SCAN)
                        break
                    if topic_bytes != 0:
                        where = np.int64(_topic_class(arena, topic, topic_bytes, vin, slot))
                        if alias != 0:
                            aliases[slot, alias - 1] = where + 1
                    else:
                        where = np.int64(aliases[slot, alias - 1]) - 1
                    code = np.int64(0)
                    if where == _OWN:
                        n_frames = _scan_payload(arena, payload, after, frame_max, vin, slot, part, frames, n_frames)
                    elif where >= _OWN_TELEMETRY:
                        codec = _JSON_TELEMETRY if where == _OWN_TELEMETRY else _JSON_BMS
                        over = np.int64(_OVERSIZE) if after - payload > json_max else np.int64(0)
                        _put_frame(frames, n_frames, payload, after - payload, slot, over, np.int64(0), part, codec)
                        n_frames += 1
                    else:
                        reason = np.int64(_UNKNOWN_TOPIC)
                        if where == _FOREIGN:
                            reason = np.int64(_FOREIGN_VIN)
                            code = np.int64(_NOT_AUTHORIZED)
                        _put_frame(
                            frames, n_frames, payload, after - payload, slot, reason, np.int64(0), part, _GBT32960
                        )
                        n_frames += 1
                    at = after
                    if code != 0 and not is_five:
                        slow[n_slow, S_KIND] = FOREIGN_TOPIC
                        slow[n_slow, S_SEGMENT] = index
                        slow[n_slow, S_START] = payload
                        slow[n_slow, S_LENGTH] = after - payload
                        slow[n_slow, S_CODE] = code
                        n_slow += 1
                        ended = np.int64(SEG_ASKED)
                        break
                    if qos != 0:
                        pending += 1
                        acks[n_acks, A_SLOT] = slot
                        acks[n_acks, A_ID] = packet_id
                        acks[n_acks, A_CODE] = code
                        acks[n_acks, A_FIRST] = (_PUBREC if qos == 2 else _PUBACK) << 4
                        n_acks += 1
                    continue
            elif kind == _PUBREL and not (is_five and first & 15 == 2 and after - body > 2):
                if after - body != 2 or first & 15 != 2 or (arena[body] == 0 and arena[body + 1] == 0):
                    violation = np.int64(_MALFORMED_PACKET)
                elif n_acks == len(acks):
                    ended = np.int64(SEG_SCAN)
                    break
                else:
                    acks[n_acks, A_SLOT] = slot
                    acks[n_acks, A_ID] = np.int64(arena[body]) << 8 | np.int64(arena[body + 1])
                    acks[n_acks, A_CODE] = 0
                    acks[n_acks, A_FIRST] = _PUBCOMP << 4
                    n_acks += 1
                    at = after
                    continue
            elif kind in (_CONNECT, _SUBSCRIBE, _UNSUBSCRIBE, _PUBACK, _PUBREL, _PINGREQ, _DISCONNECT):
                # a PUBREL that comes here has a reason code
                flags = 2 if kind in (_SUBSCRIBE, _UNSUBSCRIBE, _PUBREL) else 0
                if first & 15 != flags or (kind == _PINGREQ and after != body):
                    violation = np.int64(_MALFORMED_PACKET)
                elif (
                    kind == _PINGREQ
                    and n_slow > 0
                    and slow[n_slow - 1, S_KIND] == _PINGREQ
                    and slow[n_slow - 1, S_SEGMENT] == index
                ):
                    # a flood of pings, two bytes each, must not become a flood of Python calls
                    slow[n_slow - 1, S_CODE] += 1
                    at = after
                    continue
                else:
                    slow[n_slow, S_KIND] = kind
                    slow[n_slow, S_SEGMENT] = index
                    slow[n_slow, S_START] = body
                    slow[n_slow, S_LENGTH] = after - body
                    slow[n_slow, S_CODE] = 1
                    n_slow += 1
                    at = after
                    if kind in (_CONNECT, _DISCONNECT):
                        ended = np.int64(SEG_ASKED)
                        break
                    continue
            elif kind == 0 or (kind == _AUTH and first & 15 != 0):
                violation = np.int64(_MALFORMED_PACKET)
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
    u8, i32, i64 = np.zeros(1, np.uint8), np.zeros(1, np.int32), np.zeros((0, 9), np.int64)
    vin = np.zeros((1, VIN_BYTES), np.uint8)
    aliases = np.zeros((1, ALIASES), np.uint8)
    mqtt_scan(u8, i64, np.zeros(4, np.int64), u8, u8, vin, i32, i32, aliases, i64, i64, i64, np.zeros(3, np.int64))
