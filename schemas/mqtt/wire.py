"""MQTT's numbers and primitive types: packet types, reason codes, the property table, strings and integers.

Clauses are those of MQTT 5.0 (OASIS, 2019-03-07) unless "3.1.1" is written.  Nothing here knows
what a vehicle is, and nothing here reads a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final


class PacketType(IntEnum):
    """High four bits of the first byte (clause 2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


# Low four bits that are fixed per type (clause 2.1.3); PUBLISH alone chooses its own.
FIXED_FLAGS: Final = {PacketType.PUBREL: 2, PacketType.SUBSCRIBE: 2, PacketType.UNSUBSCRIBE: 2}

V311: Final = 4
V5: Final = 5


class Code(IntEnum):
    """Reason codes of MQTT 5 (clause 2.4), those that either side of this system sends or meets."""

    SUCCESS = 0x00
    GRANTED_QOS_1 = 0x01
    DISCONNECT_WITH_WILL = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2


# What a 3.1.1 client is told in CONNACK (3.1.1, table 3.1) where a 5 client gets the code on the left.
CONNACK_311: Final[Mapping[int, int]] = {
    Code.SUCCESS: 0,
    Code.UNSUPPORTED_PROTOCOL_VERSION: 1,
    Code.CLIENT_IDENTIFIER_NOT_VALID: 2,
    Code.SERVER_UNAVAILABLE: 3,
    Code.SERVER_BUSY: 3,
    Code.QUOTA_EXCEEDED: 3,
    Code.CONNECTION_RATE_EXCEEDED: 3,
    Code.SERVER_SHUTTING_DOWN: 3,
    Code.BAD_USER_NAME_OR_PASSWORD: 4,
    Code.NOT_AUTHORIZED: 5,
    Code.BAD_AUTHENTICATION_METHOD: 5,
}

# Who may carry a property: packet types, and WILL for the properties inside CONNECT's payload.
WILL: Final = 0
_P: Final = PacketType
_REASONED: Final = (
    _P.CONNACK, _P.PUBACK, _P.PUBREC, _P.PUBREL, _P.PUBCOMP, _P.SUBACK, _P.UNSUBACK, _P.DISCONNECT, _P.AUTH,
)  # fmt: skip

# Clause 2.2.2.2: identifier → (name, type, carriers).  ``user_property`` may repeat; the rest may not.
PROPERTIES: Final[Mapping[int, tuple[str, str, tuple[int, ...]]]] = {
    0x01: ("payload_format_indicator", "byte", (_P.PUBLISH, WILL)),
    0x02: ("message_expiry_interval", "u32", (_P.PUBLISH, WILL)),
    0x03: ("content_type", "string", (_P.PUBLISH, WILL)),
    0x08: ("response_topic", "string", (_P.PUBLISH, WILL)),
    0x09: ("correlation_data", "binary", (_P.PUBLISH, WILL)),
    # of a PUBLISH, too, but only from a server that offers them: this one does not, and no client of ours asks for any
    0x0B: ("subscription_identifier", "varint", (_P.SUBSCRIBE,)),
    0x11: ("session_expiry_interval", "u32", (_P.CONNECT, _P.CONNACK, _P.DISCONNECT)),
    0x12: ("assigned_client_identifier", "string", (_P.CONNACK,)),
    0x13: ("server_keep_alive", "u16", (_P.CONNACK,)),
    0x15: ("authentication_method", "string", (_P.CONNECT, _P.CONNACK, _P.AUTH)),
    0x16: ("authentication_data", "binary", (_P.CONNECT, _P.CONNACK, _P.AUTH)),
    0x17: ("request_problem_information", "byte", (_P.CONNECT,)),
    0x18: ("will_delay_interval", "u32", (WILL,)),
    0x19: ("request_response_information", "byte", (_P.CONNECT,)),
    0x1A: ("response_information", "string", (_P.CONNACK,)),
    0x1C: ("server_reference", "string", (_P.CONNACK, _P.DISCONNECT)),
    0x1F: ("reason_string", "string", _REASONED),
    0x21: ("receive_maximum", "u16", (_P.CONNECT, _P.CONNACK)),
    0x22: ("topic_alias_maximum", "u16", (_P.CONNECT, _P.CONNACK)),
    0x23: ("topic_alias", "u16", (_P.PUBLISH,)),
    0x24: ("maximum_qos", "byte", (_P.CONNACK,)),
    0x25: ("retain_available", "byte", (_P.CONNACK,)),
    0x26: ("user_property", "pair", (_P.CONNECT, _P.PUBLISH, WILL, _P.SUBSCRIBE, _P.UNSUBSCRIBE, *_REASONED)),
    0x27: ("maximum_packet_size", "u32", (_P.CONNECT, _P.CONNACK)),
    0x28: ("wildcard_subscription_available", "byte", (_P.CONNACK,)),
    0x29: ("subscription_identifier_available", "byte", (_P.CONNACK,)),
    0x2A: ("shared_subscription_available", "byte", (_P.CONNACK,)),
}
_ID_OF: Final = {name: (number, kind) for number, (name, kind, _) in PROPERTIES.items()}

# Properties with a narrower range than their type (clause of each in brackets).
_BOOLEANS: Final = frozenset(
    {
        "payload_format_indicator",  # 3.3.2.3.2
        "request_problem_information",  # 3.1.2.11.7
        "request_response_information",  # 3.1.2.11.6
        "maximum_qos",  # 3.2.2.3.4
        "retain_available",  # 3.2.2.3.5
        "wildcard_subscription_available",
        "subscription_identifier_available",
        "shared_subscription_available",
    }
)
_NOT_ZERO: Final = frozenset({"receive_maximum", "maximum_packet_size", "topic_alias", "subscription_identifier"})

Properties = dict[str, Any]


class MqttError(ValueError):
    """The peer broke the protocol: ``code`` says how (a reason code of MQTT 5), the text where."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def malformed(message: str) -> MqttError:
    """Bytes that cannot be parsed (clause 4.13)."""
    return MqttError(Code.MALFORMED_PACKET, message)


def varint(value: int) -> bytes:
    """Variable byte integer, 0 to 268,435,455 (clause 1.5.5)."""
    assert 0 <= value <= 268_435_455
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def binary(value: bytes) -> bytes:
    """Length-prefixed bytes (clause 1.5.6)."""
    assert len(value) <= 0xFFFF
    return len(value).to_bytes(2, "big") + value


def string(value: str) -> bytes:
    """Length-prefixed UTF-8 (clause 1.5.4)."""
    return binary(value.encode("utf-8"))


class Reader:
    """A cursor over a packet's body that raises :class:`MqttError` with the offset where bytes run out."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end

    def take(self, count: int, what: str) -> bytes:
        if self.at + count > self.end:
            raise malformed(f"{what} at byte {self.at} needs {count} bytes, {self.end - self.at} are left")
        begin = self.at
        self.at += count
        return self.data[begin : self.at]

    def unsigned(self, width: int, what: str) -> int:
        return int.from_bytes(self.take(width, what), "big")

    def varint(self, what: str) -> int:
        begin, value, shift = self.at, 0, 0
        while True:
            byte = self.unsigned(1, what)
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
            shift += 7
            if shift > 21:
                raise malformed(f"{what} at byte {begin}: a variable byte integer has four bytes at most")

    def binary(self, what: str) -> bytes:
        return self.take(self.unsigned(2, what), what)

    def string(self, what: str) -> str:
        begin = self.at
        raw = self.binary(what)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise malformed(f"{what} at byte {begin} is not UTF-8: {error.reason}") from error
        if "\0" in text:
            raise malformed(f"{what} at byte {begin} holds U+0000 (clause 1.5.4)")
        return text

    @property
    def left(self) -> int:
        return self.end - self.at

    def finish(self, packet: str) -> None:
        if self.left:
            raise malformed(f"{packet} has {self.left} bytes after its last field, at byte {self.at}")

    def properties(self, carrier: int) -> Properties:
        """Property length and properties (clause 2.2.2), as {name: value}; user properties as a list of pairs."""
        length = self.varint("property length")
        if length > self.left:
            raise malformed(f"property length {length} at byte {self.at}: {self.left} bytes are left")
        outer, self.end = self.end, self.at + length
        found: Properties = {}
        while self.left:
            begin = self.at
            number = self.varint("property identifier")
            # one byte for all that are defined; 0x91 0x00 for 0x11 is not the shortest form [MQTT-1.5.5-1]
            if number not in PROPERTIES or self.at - begin > 1:
                raise malformed(f"property 0x{number:02X} at byte {begin} is not defined")
            name, kind, carriers = PROPERTIES[number]
            value = self._value(kind, name)
            if carrier not in carriers:
                raise MqttError(Code.PROTOCOL_ERROR, f"property {name} at byte {begin} does not belong in this packet")
            if name == "user_property":
                found.setdefault(name, []).append(value)
                continue
            if name in found:
                raise MqttError(Code.PROTOCOL_ERROR, f"property {name} comes twice, again at byte {begin}")
            if (name in _BOOLEANS and value > 1) or (name in _NOT_ZERO and value == 0):
                raise MqttError(Code.PROTOCOL_ERROR, f"property {name} at byte {begin} may not be {value}")
            if name == "response_topic" and (not value or "+" in value or "#" in value):
                text = f"property {name} at byte {begin} is not a topic name: {value!r}"  # clause 3.3.2.3.5
                raise MqttError(Code.PROTOCOL_ERROR, text)
            found[name] = value
        self.end = outer
        return found

    def _value(self, kind: str, name: str) -> Any:
        match kind:
            case "byte":
                return self.unsigned(1, name)
            case "u16":
                return self.unsigned(2, name)
            case "u32":
                return self.unsigned(4, name)
            case "varint":
                return self.varint(name)
            case "string":
                return self.string(name)
            case "binary":
                return self.binary(name)
            case _:
                return (self.string(name), self.string(name))


def properties(values: Mapping[str, Any] | None) -> bytes:
    """Property length and properties of ``values`` ({name of :data:`PROPERTIES`: value}), in the given order."""
    out = bytearray()
    for name, value in (values or {}).items():
        number, kind = _ID_OF[name]
        for one in value if kind == "pair" else (value,):
            out.append(number)
            match kind:
                case "byte":
                    out.append(one)
                case "u16":
                    out += one.to_bytes(2, "big")
                case "u32":
                    out += one.to_bytes(4, "big")
                case "varint":
                    out += varint(one)
                case "string":
                    out += string(one)
                case "binary":
                    out += binary(one)
                case _:
                    out += string(one[0]) + string(one[1])
    return varint(len(out)) + bytes(out)
