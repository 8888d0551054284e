"""MQTT 3.1.1 and 5 packets, encoded and parsed, for either end of the line.

The plain way: one object per packet.  It serves whatever is rare (CONNECT, SUBSCRIBE, a client's
side) and is the specification of the scan kernels in ``schemas.mqtt.scan``.  It must never be
called once per PUBLISH on the gateway's hot path.

Parsers take the packet's body (the bytes after the fixed header) and raise
:class:`~schemas.mqtt.wire.MqttError`, which carries the reason code to answer with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.mqtt.wire import (
    CONNACK_311,
    FIXED_FLAGS,
    V5,
    V311,
    WILL,
    Code,
    MqttError,
    PacketType,
    Properties,
    Reader,
    binary,
    malformed,
    properties,
    string,
    varint,
)

PINGREQ: Final = b"\xc0\x00"
PINGRESP: Final = b"\xd0\x00"
SHARE: Final = "$share/"


@dataclass(frozen=True, slots=True)
class Will:
    """What the server is to publish when the client goes without a DISCONNECT (clause 3.1.2.5)."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Connect:
    """CONNECT (clause 3.1).  ``version`` is 4 for 3.1.1 and 5 for 5."""

    client_id: str
    version: int = V311
    clean_start: bool = True
    keep_alive_s: int = 60
    username: str | None = None
    password: bytes | None = None
    will: Will | None = None
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Connack:
    """CONNACK (clause 3.2).  ``code`` is a 3.1.1 return code when the version is 4."""

    code: int
    session_present: bool = False
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Publish:
    """PUBLISH (clause 3.3).  ``packet_id`` is 0 at QoS 0."""

    topic: str
    payload: bytes
    qos: int = 0
    packet_id: int = 0
    dup: bool = False
    retain: bool = False
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """PUBACK, PUBREC, PUBREL, PUBCOMP: one packet id and, in 5, a reason code (clauses 3.4-3.7)."""

    packet_id: int
    code: int = Code.SUCCESS
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subscribe:
    """SUBSCRIBE (clause 3.8): (topic filter, options byte) pairs; the QoS is the options' low two bits."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """UNSUBSCRIBE (clause 3.10)."""

    packet_id: int
    filters: tuple[str, ...]
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Codes:
    """SUBACK or UNSUBACK: one code per filter (clauses 3.9, 3.11)."""

    packet_id: int
    codes: tuple[int, ...]
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Disconnect:
    """DISCONNECT (clause 3.14)."""

    code: int = Code.SUCCESS
    properties: Properties = field(default_factory=dict)


# -- framing ---------------------------------------------------------------------------------------
def packet(kind: PacketType, body: bytes, flags: int | None = None) -> bytes:
    """A whole packet: fixed header (clause 2.1) and body."""
    low = FIXED_FLAGS.get(kind, 0) if flags is None else flags
    return bytes((kind << 4 | low,)) + varint(len(body)) + body


def split(data: bytes, at: int = 0) -> tuple[int, bytes, int] | None:
    """(first byte, body, offset after it) of the packet at ``at``; None while it is incomplete."""
    size, shift = 0, 0
    for used in range(1, 5):
        if at + used >= len(data):
            return None
        byte = data[at + used]
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            begin = at + used + 1
            return (data[at], data[begin : begin + size], begin + size) if begin + size <= len(data) else None
    raise malformed(f"remaining length at byte {at + 1}: a variable byte integer has four bytes at most")


# -- CONNECT, CONNACK ------------------------------------------------------------------------------
def encode_connect(connect: Connect) -> bytes:
    """CONNECT of a client."""
    will = connect.will
    flags = (
        (0x80 if connect.username is not None else 0)
        | (0x40 if connect.password is not None else 0)
        | (0x04 | will.qos << 3 | (0x20 if will.retain else 0) if will else 0)
        | (0x02 if connect.clean_start else 0)
    )
    five = connect.version == V5
    body = string("MQTT") + bytes((connect.version, flags)) + connect.keep_alive_s.to_bytes(2, "big")
    body += properties(connect.properties) if five else b""
    body += string(connect.client_id)
    if will:
        body += (properties(will.properties) if five else b"") + string(will.topic) + binary(will.payload)
    body += string(connect.username) if connect.username is not None else b""
    body += binary(connect.password) if connect.password is not None else b""
    return packet(PacketType.CONNECT, body)


def connect_version(body: bytes) -> int:
    """Protocol level a CONNECT asks for, whatever the rest of it is worth; 4 when it cannot be read."""
    name_bytes = int.from_bytes(body[:2], "big")
    return body[2 + name_bytes] if len(body) > 2 + name_bytes else V311


def parse_connect(body: bytes) -> Connect:
    """CONNECT with every field checked; raises UNSUPPORTED_PROTOCOL_VERSION for any but 3.1.1 and 5."""
    reader = Reader(body)
    name = reader.binary("protocol name")
    version = reader.unsigned(1, "protocol level")
    if name != b"MQTT" or version not in (V311, V5):
        raise MqttError(
            Code.UNSUPPORTED_PROTOCOL_VERSION,
            f"protocol {name.decode('latin-1')!r} level {version}: this listener speaks MQTT 3.1.1 (level 4) and 5",
        )
    flags = reader.unsigned(1, "connect flags")
    if flags & 1:
        raise malformed("connect flags: the reserved bit 0 is set (clause 3.1.2.3)")
    will_qos = flags >> 3 & 3
    if will_qos == 3 or (not flags & 0x04 and flags & 0x38):
        raise malformed(f"connect flags 0x{flags:02X}: will QoS {will_qos} or retain without a will (clause 3.1.2.6)")
    if version == V311 and flags & 0x40 and not flags & 0x80:
        raise malformed("connect flags: a password without a user name (3.1.1, clause 3.1.2.9)")
    keep_alive_s = reader.unsigned(2, "keep alive")
    found = reader.properties(PacketType.CONNECT) if version == V5 else {}
    if "authentication_data" in found and "authentication_method" not in found:
        raise MqttError(Code.PROTOCOL_ERROR, "authentication data without a method (clause 3.1.2.11.10)")
    client_id = reader.string("client identifier")
    will = None
    if flags & 0x04:
        will_properties = reader.properties(WILL) if version == V5 else {}
        topic = reader.string("will topic")
        if not topic or "+" in topic or "#" in topic:
            raise malformed(f"will topic {topic!r} is not a topic name (clause 4.7)")
        will = Will(topic, reader.binary("will payload"), will_qos, bool(flags & 0x20), will_properties)
    username = reader.string("user name") if flags & 0x80 else None
    password = reader.binary("password") if flags & 0x40 else None
    reader.finish("CONNECT")
    return Connect(client_id, version, bool(flags & 0x02), keep_alive_s, username, password, will, found)


def encode_connack(version: int, code: int, values: Mapping[str, Any] | None = None) -> bytes:
    """CONNACK of a server without stored sessions; ``code`` is MQTT 5's, translated for a 3.1.1 client."""
    if version == V5:
        return packet(PacketType.CONNACK, bytes((0, code)) + properties(values))
    return packet(PacketType.CONNACK, bytes((0, CONNACK_311.get(code, 5))))


def parse_connack(body: bytes, version: int) -> Connack:
    """CONNACK as a client reads it."""
    reader = Reader(body)
    flags = reader.unsigned(1, "acknowledge flags")
    if flags & 0xFE:
        raise malformed(f"acknowledge flags 0x{flags:02X} has reserved bits set (clause 3.2.2.1)")
    code = reader.unsigned(1, "reason code")
    found = reader.properties(PacketType.CONNACK) if version == V5 else {}
    reader.finish("CONNACK")
    return Connack(code, bool(flags & 1), found)


# -- PUBLISH and its answers -----------------------------------------------------------------------
def encode_publish(publish: Publish, version: int = V311) -> bytes:
    """PUBLISH of a client."""
    flags = (8 if publish.dup else 0) | publish.qos << 1 | (1 if publish.retain else 0)
    body = string(publish.topic)
    body += publish.packet_id.to_bytes(2, "big") if publish.qos else b""
    body += properties(publish.properties) if version == V5 else b""
    return packet(PacketType.PUBLISH, body + publish.payload, flags)


def parse_publish(first: int, body: bytes, version: int) -> Publish:
    """PUBLISH; ``first`` is the fixed header's first byte.  QoS 2 is parsed, refusing it is the caller's part."""
    qos = first >> 1 & 3
    if qos == 3 or (qos == 0 and first & 8):
        raise malformed(f"PUBLISH flags 0x{first & 15:X}: QoS 3, or DUP at QoS 0 (clause 3.3.1)")
    reader = Reader(body)
    topic = reader.string("topic name")
    if "+" in topic or "#" in topic:
        raise MqttError(Code.TOPIC_NAME_INVALID, f"topic name {topic!r} holds a wildcard (clause 3.3.2.1)")
    packet_id = 0
    if qos:
        packet_id = reader.unsigned(2, "packet identifier")
        if packet_id == 0:
            raise MqttError(Code.PROTOCOL_ERROR, "packet identifier 0 (clause 2.2.1)")
    found = reader.properties(PacketType.PUBLISH) if version == V5 else {}
    if not topic and "topic_alias" not in found:
        raise MqttError(Code.PROTOCOL_ERROR, "an empty topic name without an alias (clause 3.3.2.1)")
    return Publish(topic, reader.take(reader.left, "payload"), qos, packet_id, bool(first & 8), bool(first & 1), found)


def encode_puback(packet_id: int, code: int = Code.SUCCESS, version: int = V311) -> bytes:
    """PUBACK: four bytes, or five with a code other than success (5 only, clause 3.4.2.1)."""
    body = packet_id.to_bytes(2, "big")
    return packet(PacketType.PUBACK, body + bytes((code,)) if version == V5 and code else body)


def parse_puback(body: bytes, version: int) -> Acknowledgement:
    """PUBACK; PUBREC, PUBREL and PUBCOMP have the same shape."""
    reader = Reader(body)
    packet_id = reader.unsigned(2, "packet identifier")
    code = reader.unsigned(1, "reason code") if version == V5 and reader.left else Code.SUCCESS
    found = reader.properties(PacketType.PUBACK) if version == V5 and reader.left else {}
    reader.finish("PUBACK")
    return Acknowledgement(packet_id, code, found)


# -- SUBSCRIBE, UNSUBSCRIBE ------------------------------------------------------------------------
def encode_subscribe(subscribe: Subscribe, version: int = V311) -> bytes:
    body = subscribe.packet_id.to_bytes(2, "big") + (properties(subscribe.properties) if version == V5 else b"")
    return packet(PacketType.SUBSCRIBE, body + b"".join(string(f) + bytes((o,)) for f, o in subscribe.filters))


def parse_subscribe(body: bytes, version: int) -> Subscribe:
    """SUBSCRIBE with at least one filter."""
    reader = Reader(body)
    packet_id = _identifier(reader)
    found = reader.properties(PacketType.SUBSCRIBE) if version == V5 else {}
    filters = []
    while reader.left:
        topic_filter = reader.string("topic filter")
        options = reader.unsigned(1, "subscription options")
        reserved = options & (0xC0 if version == V5 else 0xFC)
        if reserved or (version == V311 and options & 3 == 3):
            raise malformed(f"subscription options 0x{options:02X} (clause 3.8.3.1)")
        if options & 3 == 3 or options >> 4 & 3 == 3:
            text = f"subscription options 0x{options:02X}: QoS 3, or retain handling 3 (clause 3.8.3.1)"
            raise MqttError(Code.PROTOCOL_ERROR, text)
        check_filter(topic_filter, version)
        if version == V5 and options & 4 and topic_filter.startswith(SHARE):
            raise MqttError(Code.PROTOCOL_ERROR, "no local on a shared subscription (clause 3.8.3.1)")
        filters.append((topic_filter, options))
    if not filters:
        raise MqttError(Code.PROTOCOL_ERROR, "SUBSCRIBE without a topic filter (clause 3.8.3)")
    return Subscribe(packet_id, tuple(filters), found)


def check_filter(topic_filter: str, version: int) -> None:
    """Raise for what is no topic filter (clause 4.7): "#" not at the end, a wildcard that shares its level, nothing."""
    levels = topic_filter.split("/")
    if version == V5 and topic_filter.startswith(SHARE):
        if len(levels) < 3 or not levels[1] or "+" in levels[1] or "#" in levels[1] or levels[2:] == [""]:
            raise malformed(f"topic filter {topic_filter!r} is not $share/name/filter (clause 4.8.2)")
        levels = levels[2:]
    if not topic_filter or "#" in levels[:-1] or any(len(one) > 1 and ("+" in one or "#" in one) for one in levels):
        raise malformed(f"topic filter {topic_filter!r} is empty or has a wildcard out of place (clause 4.7)")


def encode_suback(packet_id: int, codes: Sequence[int], version: int = V311) -> bytes:
    """SUBACK; failures are 0x80 for a 3.1.1 client, whatever the code (3.1.1, clause 3.9.3)."""
    told = codes if version == V5 else [min(128, code) for code in codes]
    body = packet_id.to_bytes(2, "big") + (b"\0" if version == V5 else b"") + bytes(told)
    return packet(PacketType.SUBACK, body)


def parse_suback(body: bytes, version: int) -> Codes:
    reader = Reader(body)
    packet_id = _identifier(reader)
    found = reader.properties(PacketType.SUBACK) if version == V5 else {}
    return Codes(packet_id, tuple(reader.take(reader.left, "codes")), found)


def encode_unsubscribe(unsubscribe: Unsubscribe, version: int = V311) -> bytes:
    body = unsubscribe.packet_id.to_bytes(2, "big") + (properties(unsubscribe.properties) if version == V5 else b"")
    return packet(PacketType.UNSUBSCRIBE, body + b"".join(string(f) for f in unsubscribe.filters))


def parse_unsubscribe(body: bytes, version: int) -> Unsubscribe:
    reader = Reader(body)
    packet_id = _identifier(reader)
    found = reader.properties(PacketType.UNSUBSCRIBE) if version == V5 else {}
    filters = []
    while reader.left:
        filters.append(reader.string("topic filter"))
        check_filter(filters[-1], version)
    if not filters:
        raise MqttError(Code.PROTOCOL_ERROR, "UNSUBSCRIBE without a topic filter (clause 3.10.3)")
    return Unsubscribe(packet_id, tuple(filters), found)


def encode_unsuback(packet_id: int, codes: Sequence[int], version: int = V311) -> bytes:
    """UNSUBACK; 3.1.1 has no codes in it."""
    body = packet_id.to_bytes(2, "big") + (b"\0" + bytes(codes) if version == V5 else b"")
    return packet(PacketType.UNSUBACK, body)


def parse_unsuback(body: bytes, version: int) -> Codes:
    reader = Reader(body)
    packet_id = _identifier(reader)
    found = reader.properties(PacketType.UNSUBACK) if version == V5 else {}
    return Codes(packet_id, tuple(reader.take(reader.left, "codes")), found)


# -- DISCONNECT ------------------------------------------------------------------------------------
def encode_disconnect(version: int, code: int = Code.SUCCESS, values: Mapping[str, Any] | None = None) -> bytes:
    """DISCONNECT; two bytes in 3.1.1 (which only clients may send) and for a plain success in 5."""
    if version == V5 and (code or values):
        return packet(PacketType.DISCONNECT, bytes((code,)) + (properties(values) if values else b""))
    return packet(PacketType.DISCONNECT, b"")


def parse_disconnect(body: bytes, version: int) -> Disconnect:
    reader = Reader(body)
    code = reader.unsigned(1, "reason code") if version == V5 and reader.left else Code.SUCCESS
    found = reader.properties(PacketType.DISCONNECT) if version == V5 and reader.left else {}
    reader.finish("DISCONNECT")
    return Disconnect(code, found)


def _identifier(reader: Reader) -> int:
    packet_id = reader.unsigned(2, "packet identifier")
    if packet_id == 0:
        raise MqttError(Code.PROTOCOL_ERROR, "packet identifier 0 (clause 2.2.1)")
    return packet_id
