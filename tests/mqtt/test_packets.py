"""Packets against the examples printed in the MQTT specifications (figure numbers are those of 3.1.1 and 5.0)."""

from __future__ import annotations

import pytest

from schemas.mqtt.packets import (
    Acknowledgement,
    Codes,
    Connack,
    Connect,
    Disconnect,
    Publish,
    Subscribe,
    Unsubscribe,
    Will,
    connect_version,
    encode_connack,
    encode_connect,
    encode_disconnect,
    encode_puback,
    encode_publish,
    encode_suback,
    encode_subscribe,
    encode_unsuback,
    encode_unsubscribe,
    parse_connack,
    parse_connect,
    parse_disconnect,
    parse_puback,
    parse_publish,
    parse_suback,
    parse_subscribe,
    parse_unsuback,
    parse_unsubscribe,
    split,
)
from schemas.mqtt.wire import V5, V311, Code, MqttError, Reader, string, varint


def from_hex(text: str) -> bytes:
    return bytes.fromhex(text.replace("|", " "))


# 3.1.1 figure 3.6 and 5.0 figure 3-6 give the variable header (user name, password, will QoS 1, clean, 10 s).
CONNECT_311 = from_hex(
    "10 25 | 0004 4D515454 04 CE 000A | 0003 636172 | 0003 772F74 | 0003 627965 | 0004 75736572 | 0004 70617373"
)
CONNECT_5 = from_hex(
    "10 2C | 0004 4D515454 05 CE 000A 05 110000000A | 0003 636172"
    "| 00 0003 772F74 | 0003 627965 | 0004 75736572 | 0004 70617373"
)
WILL = Will("w/t", b"bye", 1)

WHOLE = [
    (CONNECT_311, Connect("car", V311, True, 10, "user", b"pass", WILL), V311),
    (CONNECT_5, Connect("car", V5, True, 10, "user", b"pass", WILL, {"session_expiry_interval": 10}), V5),
    (from_hex("20 02 00 00"), Connack(0), V311),
    (from_hex("20 02 01 00"), Connack(0, True), V311),
    (from_hex("20 02 00 05"), Connack(5), V311),
    (from_hex("20 05 00 87 02 24 01"), Connack(0x87, False, {"maximum_qos": 1}), V5),
    # 3.1.1 figure 3.11: topic a/b, packet identifier 10
    (from_hex("32 08 0003 612F62 000A FF"), Publish("a/b", b"\xff", 1, 10), V311),
    (from_hex("3B 07 0003 612F62 000A"), Publish("a/b", b"", 1, 10, True, True), V311),
    (from_hex("30 06 0003 612F62 FF"), Publish("a/b", b"\xff"), V311),
    # 5.0 figure 3-9: the same with no properties
    (from_hex("32 08 0003 612F62 000A 00"), Publish("a/b", b"", 1, 10), V5),
    (
        from_hex("32 13 0003 612F62 000A 0A 01 01 26 0001 6B 0002 7676 FF"),
        Publish("a/b", b"\xff", 1, 10, properties={"payload_format_indicator": 1, "user_property": [("k", "vv")]}),
        V5,
    ),
    (from_hex("40 02 000A"), Acknowledgement(10), V311),
    (from_hex("40 02 000A"), Acknowledgement(10), V5),
    (from_hex("40 03 000A 87"), Acknowledgement(10, 0x87), V5),
    # 3.1.1 figures 3.21-3.23: a/b at QoS 1, c/d at QoS 2
    (from_hex("82 0E 000A 0003 612F62 01 0003 632F64 02"), Subscribe(10, (("a/b", 1), ("c/d", 2))), V311),
    (from_hex("82 0F 000A 00 0003 612F62 01 0003 632F64 02"), Subscribe(10, (("a/b", 1), ("c/d", 2))), V5),
    # 3.1.1 figure 3.26: granted 0, granted 2, failure
    (from_hex("90 05 000A 00 02 80"), Codes(10, (0, 2, 0x80)), V311),
    (from_hex("90 05 000A 00 01 87"), Codes(10, (1, 0x87)), V5),
    (from_hex("A2 0C 000A 0003 612F62 0003 632F64"), Unsubscribe(10, ("a/b", "c/d")), V311),
    (from_hex("A2 0D 000A 00 0003 612F62 0003 632F64"), Unsubscribe(10, ("a/b", "c/d")), V5),
    (from_hex("B0 02 000A"), Codes(10, ()), V311),
    (from_hex("B0 05 000A 00 00 11"), Codes(10, (0, 0x11)), V5),
    (from_hex("E0 00"), Disconnect(), V311),
    (from_hex("E0 00"), Disconnect(), V5),
    (from_hex("E0 01 04"), Disconnect(4), V5),
    (from_hex("E0 07 8E 05 1F 0002 6E6F"), Disconnect(0x8E, {"reason_string": "no"}), V5),
]  # fmt: skip


def parse(raw: bytes, version: int, kind: type) -> object:
    found = split(raw)
    assert found is not None
    first, body, after = found
    assert after == len(raw)
    if kind is Publish:
        return parse_publish(first, body, version)
    if kind is Connect:
        return parse_connect(body)
    if kind is Codes:
        return {0x90: parse_suback, 0xB0: parse_unsuback}[first](body, version)
    parsers = {
        Connack: parse_connack,
        Acknowledgement: parse_puback,
        Subscribe: parse_subscribe,
        Unsubscribe: parse_unsubscribe,
        Disconnect: parse_disconnect,
    }
    return parsers[kind](body, version)


def encode(packet: object, version: int, raw: bytes) -> bytes:
    match packet:
        case Connect():
            return encode_connect(packet)
        case Publish():
            return encode_publish(packet, version)
        case Acknowledgement():
            return encode_puback(packet.packet_id, packet.code, version)
        case Subscribe():
            return encode_subscribe(packet, version)
        case Unsubscribe():
            return encode_unsubscribe(packet, version)
        case Codes():
            return (encode_suback if raw[0] == 0x90 else encode_unsuback)(packet.packet_id, packet.codes, version)
        case Disconnect():
            return encode_disconnect(version, packet.code, packet.properties)
    raise AssertionError(packet)


@pytest.mark.parametrize(("raw", "packet", "version"), WHOLE, ids=lambda v: v.hex() if isinstance(v, bytes) else "")
def test_a_packet_is_read_as_the_specification_has_it(raw: bytes, packet: object, version: int) -> None:
    assert parse(raw, version, type(packet)) == packet


@pytest.mark.parametrize(("raw", "packet", "version"), [row for row in WHOLE if not isinstance(row[1], Connack)])
def test_a_packet_is_written_as_the_specification_has_it(raw: bytes, packet: object, version: int) -> None:
    assert encode(packet, version, raw) == raw


@pytest.mark.parametrize(("raw", "packet", "version"), WHOLE)
def test_a_packet_cut_anywhere_is_incomplete_not_wrong(raw: bytes, packet: object, version: int) -> None:
    for cut in range(len(raw)):
        assert split(raw[:cut]) is None


# Codes of MQTT 5 as a 3.1.1 client is told them (3.1.1, table 3.1).
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (Code.SUCCESS, 0),
        (Code.UNSUPPORTED_PROTOCOL_VERSION, 1),
        (Code.CLIENT_IDENTIFIER_NOT_VALID, 2),
        (Code.SERVER_UNAVAILABLE, 3),
        (Code.BAD_USER_NAME_OR_PASSWORD, 4),
        (Code.NOT_AUTHORIZED, 5),
    ],
)
def test_connack_is_translated_for_3_1_1(code: Code, told: int) -> None:
    assert encode_connack(V311, code, {"reason_string": "never sent"}) == bytes((0x20, 2, 0, told))
    assert encode_connack(V5, code) == bytes((0x20, 3, 0, code, 0))


def test_suback_of_3_1_1_knows_one_failure() -> None:
    assert encode_suback(1, [1, 0x87, 0x9E], V311) == from_hex("90 05 0001 01 80 80")
    assert encode_suback(1, [1, 0x87], V5) == from_hex("90 05 0001 00 01 87")


# Table 1-1 of 5.0 (2.4 of 3.1.1).
@pytest.mark.parametrize(
    ("value", "raw"),
    [
        (0, "00"),
        (127, "7F"),
        (128, "80 01"),
        (16_383, "FF 7F"),
        (16_384, "80 80 01"),
        (2_097_151, "FF FF 7F"),
        (2_097_152, "80 80 80 01"),
        (268_435_455, "FF FF FF 7F"),
    ],
)
def test_variable_byte_integers(value: int, raw: str) -> None:
    assert varint(value) == from_hex(raw)
    assert Reader(from_hex(raw)).varint("length") == value


def test_string_of_the_specification() -> None:
    raw = from_hex("0005 41 F0AA9B94")  # clause 1.5.4, figure 1-2
    assert Reader(raw).string("topic") == "A\U0002a6d4"
    assert string("A\U0002a6d4") == raw


BROKEN = [
    # CONNECT
    ("10 0C 0004 4D515454 03 02 003C 0000", Connect, Code.UNSUPPORTED_PROTOCOL_VERSION, "level 3"),
    ("10 0E 0006 4D5149736470 03 02 003C 0000", Connect, Code.UNSUPPORTED_PROTOCOL_VERSION, "MQIsdp"),
    ("10 0C 0004 4D515454 06 02 003C 0000", Connect, Code.UNSUPPORTED_PROTOCOL_VERSION, "level 6"),
    ("10 0C 0004 4D515454 04 03 003C 0000", Connect, Code.MALFORMED_PACKET, "reserved"),
    ("10 0C 0004 4D515454 04 1A 003C 0000", Connect, Code.MALFORMED_PACKET, "will"),
    ("10 0C 0004 4D515454 04 42 003C 0000", Connect, Code.MALFORMED_PACKET, "password without"),
    ("10 0C 0004 4D515454 04 02 003C 0005", Connect, Code.MALFORMED_PACKET, "client identifier at byte 12"),
    ("10 0D 0004 4D515454 04 02 003C 0000 00", Connect, Code.MALFORMED_PACKET, "after its last field"),
    ("10 0E 0004 4D515454 05 02 003C 01 FF 0000", Connect, Code.MALFORMED_PACKET, "property identifier"),
    ("10 10 0004 4D515454 05 02 003C 03 13 0001 0000", Connect, Code.PROTOCOL_ERROR, "server_keep_alive"),
    ("10 13 0004 4D515454 05 02 003C 06 21 0001 21 0001 0000", Connect, Code.PROTOCOL_ERROR, "twice"),
    ("10 10 0004 4D515454 05 02 003C 03 21 0000 0000", Connect, Code.PROTOCOL_ERROR, "may not be 0"),
    ("10 11 0004 4D515454 05 02 003C 04 16 0001 AA 0000", Connect, Code.PROTOCOL_ERROR, "without a method"),
    # PUBLISH
    ("36 07 0003 612F62 000A", Publish, Code.MALFORMED_PACKET, "QoS 3"),
    ("38 05 0003 612F62", Publish, Code.MALFORMED_PACKET, "DUP"),
    ("32 07 0003 612F62 0000", Publish, Code.PROTOCOL_ERROR, "identifier 0"),
    ("30 05 0003 612F23", Publish, Code.TOPIC_NAME_INVALID, "wildcard"),
    ("30 05 0003 61C080", Publish, Code.MALFORMED_PACKET, "UTF-8"),
    ("30 05 0003 610062", Publish, Code.MALFORMED_PACKET, r"U\+0000"),
    ("30 05 0004 612F62", Publish, Code.MALFORMED_PACKET, "topic name at byte 2"),
    ("30 02 0000", Publish, Code.PROTOCOL_ERROR, "alias"),
    # SUBSCRIBE, UNSUBSCRIBE
    ("82 02 000A", Subscribe, Code.PROTOCOL_ERROR, "without a topic filter"),
    ("82 08 000A 0003 612F62 03", Subscribe, Code.MALFORMED_PACKET, "options"),
    ("82 08 0000 0003 612F62 01", Subscribe, Code.PROTOCOL_ERROR, "identifier 0"),
    ("A2 02 000A", Unsubscribe, Code.PROTOCOL_ERROR, "without a topic filter"),
    ("E0 01 00", Disconnect, Code.MALFORMED_PACKET, "after its last field"),
]


@pytest.mark.parametrize(("raw", "kind", "code", "text"), BROKEN, ids=lambda v: v if isinstance(v, str) else "")
def test_a_broken_packet_is_named(raw: str, kind: type, code: Code, text: str) -> None:
    with pytest.raises(MqttError, match=text) as caught:
        parse(from_hex(raw), V311, kind)
    assert caught.value.code == code


def test_remaining_length_of_five_bytes() -> None:
    with pytest.raises(MqttError, match="four bytes"):
        split(from_hex("30 80 80 80 80 01"))


def test_version_of_a_broken_connect() -> None:
    assert connect_version(CONNECT_5[2:]) == V5
    assert connect_version(CONNECT_311[2:]) == V311
    assert connect_version(b"") == V311
