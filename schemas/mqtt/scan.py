"""Kernels that find MQTT packets in a buffer of received bytes, and their plain twins.

They read one packet at a time by offsets and make no copy; the gateway's tick and the simulator's
acknowledgement reader are loops around them.  What they say must equal what ``schemas.mqtt.packets``
says of the same bytes.  They must never look beyond ``end``.
"""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np

from schemas.batch import I32, U8
from schemas.jit import compiled, kernel
from schemas.mqtt.packets import parse_puback, parse_publish
from schemas.mqtt.wire import V5, V311, Code, MqttError, PacketType

# Status of next_packet.
NEED_MORE: Final = 0
PACKET: Final = 1
MALFORMED: Final = 2
TOO_LARGE: Final = 3

# Why scan_acks stopped.
ACKS_NEED_MORE: Final = 0
ACKS_OTHER: Final = 1  # a packet other than PUBACK begins here
ACKS_MALFORMED: Final = 2
ACKS_FULL: Final = 3  # the output arrays are full

# A byte must be widened before it is shifted; as Any, so that the arithmetic reads as plain integers do.
_i64: Any = np.int64

_PUBACK_FIRST: Final = int(PacketType.PUBACK) << 4
_MALFORMED_PACKET: Final = int(Code.MALFORMED_PACKET)
_PROTOCOL_ERROR: Final = int(Code.PROTOCOL_ERROR)
_TOPIC_NAME_INVALID: Final = int(Code.TOPIC_NAME_INVALID)


# -- twins -----------------------------------------------------------------------------------------
def _next_packet_twin(data: U8, at: int, end: int, bytes_max: int) -> tuple[int, int, int]:
    size = 0
    for used in range(1, 5):
        if at + used >= end:
            return NEED_MORE, 0, 0
        byte = int(data[at + used])
        size += (byte & 0x7F) << 7 * (used - 1)
        if byte < 0x80:
            body = at + used + 1
            if body + size - at > bytes_max:
                return TOO_LARGE, body, body + size
            return (PACKET, body, body + size) if body + size <= end else (NEED_MORE, 0, 0)
    return MALFORMED, 0, 0


def _publish_at_twin(data: U8, first: int, body: int, after: int, five: bool) -> tuple[int, int, int, int, int, int]:
    raw = bytes(data[body:after])
    try:
        found = parse_publish(first, raw, V5 if five else V311)
    except MqttError as error:
        return int(error.code), 0, 0, 0, 0, 0
    alias = int(found.properties.get("topic_alias", 0))
    topic_bytes = len(found.topic.encode())
    return 0, body + 2, topic_bytes, found.packet_id, after - len(found.payload), alias


def _scan_acks_twin(data: U8, at: int, end: int, five: bool, ids: I32, codes: U8) -> tuple[int, int, int]:
    n = 0
    while True:
        status, body, after = _next_packet_twin(data, at, end, 1 << 28)
        if status == NEED_MORE:
            return n, at, ACKS_NEED_MORE
        if status != PACKET:
            return n, at, ACKS_MALFORMED
        if data[at] != _PUBACK_FIRST:
            return n, at, ACKS_OTHER
        if n == len(ids):
            return n, at, ACKS_FULL
        try:
            ack = parse_puback(bytes(data[body:after]), V5 if five else V311)
        except MqttError:
            return n, at, ACKS_MALFORMED
        ids[n], codes[n] = ack.packet_id, ack.code
        n += 1
        at = after


# -- kernels ---------------------------------------------------------------------------------------
@kernel(twin=_next_packet_twin)
def next_packet(data: U8, at: int, end: int, bytes_max: int) -> tuple[int, int, int]:
    """Delimit the packet at ``data[at:end]``: (status, begin of its body, offset behind it).

    NEED_MORE: the bytes end within it.  TOO_LARGE: the whole packet exceeds ``bytes_max``, said as soon as
    its fixed header is there.  MALFORMED: a remaining length of more than four bytes (clause 1.5.5).
    """
    size = 0
    for used in range(1, 5):
        if at + used >= end:
            return NEED_MORE, 0, 0
        byte = _i64(data[at + used])
        size += (byte & 0x7F) << (7 * (used - 1))
        if byte < 0x80:
            body = at + used + 1
            if body + size - at > bytes_max:
                return TOO_LARGE, body, body + size
            if body + size > end:
                return NEED_MORE, 0, 0
            return PACKET, body, body + size
    return MALFORMED, 0, 0


@compiled
def _text_status(data: U8, begin: int, end: int) -> int:
    """0 for good MQTT text (clause 1.5.4), 1 when it also holds + or #, 2 when it is not UTF-8 or holds U+0000."""
    wild = 0
    at = begin
    while at < end:
        byte = _i64(data[at])
        at += 1
        if byte < 0x80:
            if byte == 0:
                return 2
            if byte == 0x2B or byte == 0x23:
                wild = 1
            continue
        if byte < 0xC2 or byte > 0xF4:
            return 2
        more = 1 + (byte >= 0xE0) + (byte >= 0xF0)
        if at + more > end:
            return 2
        second = _i64(data[at])
        # overlong forms, surrogates and code points beyond U+10FFFF all show in the second byte
        low = 0xA0 if byte == 0xE0 else (0x90 if byte == 0xF0 else 0x80)
        high = 0x9F if byte == 0xED else (0x8F if byte == 0xF4 else 0xBF)
        if second < low or second > high:
            return 2
        for k in range(1, more):
            if data[at + k] & 0xC0 != 0x80:
                return 2
        at += more
    return wild


@compiled
def _varint(data: U8, at: int, end: int) -> tuple[int, int]:
    """Variable byte integer at ``at`` (clause 1.5.5) and the offset behind it; -1 when it is cut off or too long."""
    value = 0
    for shift in range(0, 28, 7):
        if at >= end:
            break
        byte = _i64(data[at])
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return -1, at


@compiled
def _publish_properties(data: U8, at: int, end: int) -> tuple[int, int, int]:
    """Walk the properties of a PUBLISH at ``at``: (0 or reason code, offset behind them, topic alias or 0)."""
    length, at = _varint(data, at, end)
    if length < 0:
        return _MALFORMED_PACKET, 0, 0
    if length == 0:
        return 0, at, 0
    if at + length > end:
        return _MALFORMED_PACKET, 0, 0
    end = at + length
    alias = 0
    seen = 0
    while at < end:
        # identifiers are variable byte integers; every defined one fits a single byte
        number = _i64(data[at])
        at += 1
        kind = 0  # 1 byte · 2 u16 · 4 u32 · 5 varint · 6 string · 7 binary · 8 pair
        here = True
        if number == 0x01:
            kind = 1
        elif number == 0x02:
            kind = 4
        elif number == 0x03 or number == 0x08:
            kind = 6
        elif number == 0x09:
            kind = 7
        elif number == 0x23:
            kind = 2
        elif number == 0x26:
            kind = 8
        else:  # properties of other packets: parsed for their size, then a protocol error
            here = False
            if number == 0x11 or number == 0x18 or number == 0x27:
                kind = 4
            elif number == 0x13 or number == 0x21 or number == 0x22:
                kind = 2
            elif number == 0x17 or number == 0x19 or number == 0x24 or number == 0x25 or (0x28 <= number <= 0x2A):
                kind = 1
            elif number == 0x12 or number == 0x15 or number == 0x1A or number == 0x1C or number == 0x1F:
                kind = 6
            elif number == 0x16:
                kind = 7
            elif number == 0x0B:
                kind = 5
            else:
                return _MALFORMED_PACKET, 0, 0
        value = 1
        if kind <= 4:
            if at + kind > end:
                return _MALFORMED_PACKET, 0, 0
            value = 0
            for k in range(kind):
                value = value << 8 | _i64(data[at + k])
            at += kind
        elif kind == 5:
            value, at = _varint(data, at, end)
            if value < 0:
                return _MALFORMED_PACKET, 0, 0
        else:
            for _ in range(2 if kind == 8 else 1):
                if at + 2 > end:
                    return _MALFORMED_PACKET, 0, 0
                size = _i64(data[at]) << 8 | _i64(data[at + 1])
                at += 2
                if at + size > end:
                    return _MALFORMED_PACKET, 0, 0
                if kind != 7:
                    text = _text_status(data, at, at + size)
                    if text == 2:
                        return _MALFORMED_PACKET, 0, 0
                    if number == 0x08 and (text == 1 or size == 0):
                        value = 0  # no topic name
                at += size
        if not here:
            return _PROTOCOL_ERROR, 0, 0
        if number == 0x26:
            continue
        if seen >> number & 1:
            return _PROTOCOL_ERROR, 0, 0
        seen |= _i64(1) << number
        if (number == 0x01 and value > 1) or ((number == 0x23 or number == 0x08) and value == 0):
            return _PROTOCOL_ERROR, 0, 0
        if number == 0x23:
            alias = value
    return 0, at, alias


@kernel(twin=_publish_at_twin)
def publish_at(data: U8, first: int, body: int, after: int, five: bool) -> tuple[int, int, int, int, int, int]:
    """Fields of the PUBLISH whose body is ``data[body:after]`` and whose first byte is ``first``.

    Returns (0 or the reason code of what is wrong, topic offset, topic bytes, packet id or 0, payload
    offset, topic alias or 0).  What an alias stands for is the caller's part.
    """
    qos = first >> 1 & 3
    if qos == 3 or (qos == 0 and first & 8 != 0):
        return _MALFORMED_PACKET, 0, 0, 0, 0, 0
    if body + 2 > after:
        return _MALFORMED_PACKET, 0, 0, 0, 0, 0
    topic_bytes = _i64(data[body]) << 8 | _i64(data[body + 1])
    topic = body + 2
    at = topic + topic_bytes
    if at > after:
        return _MALFORMED_PACKET, 0, 0, 0, 0, 0
    text = _text_status(data, topic, at)
    if text != 0:
        return (_TOPIC_NAME_INVALID if text == 1 else _MALFORMED_PACKET), 0, 0, 0, 0, 0
    packet_id = 0
    if qos != 0:
        if at + 2 > after:
            return _MALFORMED_PACKET, 0, 0, 0, 0, 0
        packet_id = _i64(data[at]) << 8 | _i64(data[at + 1])
        at += 2
        if packet_id == 0:
            return _PROTOCOL_ERROR, 0, 0, 0, 0, 0
    alias = 0
    if five:
        status, at, alias = _publish_properties(data, at, after)
        if status != 0:
            return status, 0, 0, 0, 0, 0
    if topic_bytes == 0 and alias == 0:
        return _PROTOCOL_ERROR, 0, 0, 0, 0, 0
    return 0, topic, topic_bytes, packet_id, at, alias


@kernel(twin=_scan_acks_twin)
def scan_acks(data: U8, at: int, end: int, five: bool, ids: I32, codes: U8) -> tuple[int, int, int]:
    """A client's side: read PUBACKs from ``data[at:end]`` into ``ids`` and ``codes``.

    Returns (number read, offset of the first byte not used, why it stopped: ACKS_*).
    """
    n = 0
    while True:
        # the four-byte form is nearly all there is
        if at + 4 <= end and data[at] == _PUBACK_FIRST and data[at + 1] == 2 and n < len(ids):
            ids[n] = np.int32(data[at + 2]) << 8 | np.int32(data[at + 3])
            codes[n] = 0
            n += 1
            at += 4
            continue
        status, body, after = _next_packet(data, at, end, 1 << 28)
        if status == NEED_MORE:
            return n, at, ACKS_NEED_MORE
        if status != PACKET:
            return n, at, ACKS_MALFORMED
        if data[at] != _PUBACK_FIRST:
            return n, at, ACKS_OTHER
        if n == len(ids):
            return n, at, ACKS_FULL
        size = after - body
        if size < 2 or (not five and size != 2):
            return n, at, ACKS_MALFORMED
        if size > 3:
            # reason string and user properties: delimited by their length; the text itself is not looked at
            length = _i64(data[body + 3])
            if length < 0x80 and body + 4 + length != after:
                return n, at, ACKS_MALFORMED
        ids[n] = np.int32(data[body]) << 8 | np.int32(data[body + 1])
        codes[n] = data[body + 2] if size > 2 else 0
        n += 1
        at = after


# Kernels call each other's compiled form whatever NEVSTREAM_KERNELS says.
_next_packet = cast("Any", next_packet).compiled


def warm() -> None:
    """Compile every kernel of this module with the types it is called with."""
    data = np.zeros(16, np.uint8)
    next_packet(data, 0, 0, 16)
    publish_at(data, 0x30, 0, 0, True)
    scan_acks(data, 0, 0, True, np.zeros(1, np.int32), np.zeros(1, np.uint8))
