"""Scan kernels: equal to their twins, on good bytes, cut bytes and any bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.mqtt import scan
from schemas.mqtt.packets import Connect, Publish, encode_connect, encode_puback, encode_publish
from schemas.mqtt.wire import V5, V311, varint

text = st.text(max_size=6)
topics = st.one_of(st.sampled_from(["nev/v1/x", "a/b", "", "a/#", "+", "车"]), text)
properties = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {},
        optional={
            "payload_format_indicator": st.integers(0, 2),
            "message_expiry_interval": st.integers(0, 2**32 - 1),
            "content_type": text,
            "response_topic": topics,
            "correlation_data": st.binary(max_size=5),
            "subscription_identifier": st.sampled_from([0, 1, 300, 268_435_455]),
            "topic_alias": st.integers(0, 3),
            "user_property": st.lists(st.tuples(text, text), min_size=1, max_size=2),
            "maximum_qos": st.integers(0, 1),
            "reason_string": text,
            "server_keep_alive": st.integers(0, 9),
            "session_expiry_interval": st.integers(0, 9),
            "authentication_data": st.binary(max_size=3),
        },
    ),
)


@st.composite
def publishes(draw: st.DrawFn) -> tuple[bytes, bool]:
    five = draw(st.booleans())
    publish = Publish(
        draw(topics),
        draw(st.binary(max_size=20)),
        draw(st.integers(0, 3)),
        draw(st.integers(0, 65535)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(properties) if five else {},
    )
    raw = bytearray(encode_publish(publish, V5 if five else V311))
    if draw(st.booleans()):  # damage one byte
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw), five


def array(raw: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(raw or b"\0"), np.uint8)


@settings(max_examples=400, deadline=None)
@given(publishes())
@example((bytes.fromhex("30070003e0a0800000"), True))  # three-byte text, smallest
@example((bytes.fromhex("30070003e09fbf0000"), True))  # overlong
@example((bytes.fromhex("30060003eda08000"), True))  # surrogate
@example((bytes.fromhex("30070004f48fbfbf00"), True))  # U+10FFFF
@example((bytes.fromhex("30070004f490808000"), True))  # beyond it
@example((bytes.fromhex("300a0001610526000000ff"), True))  # pair cut by the property length
@example((bytes.fromhex("3012 0008 6e65762f76312f78 07 9100 0000000000"), True))  # an identifier in two bytes
def test_publish_at(packet: tuple[bytes, bool]) -> None:
    raw, five = packet
    data = array(raw)
    status, body, after = scan.next_packet.compiled(data, 0, len(raw), 1 << 20)
    assert (status, body, after) == scan.next_packet.twin(data, 0, len(raw), 1 << 20)
    if status == scan.PACKET:
        args = (data, raw[0], body, after, five)
        assert scan.publish_at.compiled(*args) == scan.publish_at.twin(*args)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=12), st.integers(0, 3), st.sampled_from([4, 127, 130, 1 << 28]))
@example(b"\x30\xff\xff\xff\x7f", 0, 1 << 28)
@example(b"\x30\xff\xff\xff\xff\x01", 0, 1 << 28)
@example(b"\x30\x02ab", 0, 4)
@example(b"\x30\x03abc", 0, 4)
def test_next_packet_on_any_bytes(raw: bytes, at: int, bytes_max: int) -> None:
    args = (array(raw), min(at, len(raw)), len(raw), bytes_max)
    assert scan.next_packet.compiled(*args) == scan.next_packet.twin(*args)


def test_a_packet_too_large_is_known_from_its_header() -> None:
    raw = b"\x30" + varint(1000)
    assert scan.next_packet(array(raw), 0, len(raw), 1002)[0] == scan.TOO_LARGE
    assert scan.next_packet(array(raw), 0, len(raw), 1003)[0] == scan.NEED_MORE


@st.composite
def ack_streams(draw: st.DrawFn) -> tuple[bytes, bool]:
    five = draw(st.booleans())
    parts = draw(
        st.lists(
            st.one_of(
                st.tuples(st.integers(1, 65535), st.sampled_from([0, 0, 0x87])).map(
                    lambda t: encode_puback(t[0], t[1], V5 if five else V311)
                ),
                st.just(b"\xd0\x00"),
                st.just(bytes.fromhex("4006000a87021f00")),
                st.just(bytes.fromhex("4004000a8700")),
            ),
            max_size=8,
        )
    )
    raw = b"".join(parts)
    return raw[: draw(st.integers(0, len(raw)))], five


@settings(max_examples=200, deadline=None)
@given(ack_streams(), st.integers(0, 6))
def test_scan_acks(stream: tuple[bytes, bool], room: int) -> None:
    raw, five = stream
    found = []
    for scanner in (scan.scan_acks.compiled, scan.scan_acks.twin):
        ids, codes = np.zeros(room, np.int32), np.zeros(room, np.uint8)
        n, at, why = scanner(array(raw), 0, len(raw), five, ids, codes)
        found.append((n, at, why, ids[:n].tolist(), codes[:n].tolist()))
    if found[0] != found[1]:
        # the kernel delimits an answer's properties without reading them; the twin refuses their contents
        assert raw[found[1][1] :].startswith(bytes.fromhex("4006000a87021f00"))


@pytest.mark.parametrize("cut", range(13))
def test_acks_cut_anywhere_are_read_in_the_end(cut: int) -> None:
    raw = encode_puback(1) + encode_puback(2, 0x87, V5) + encode_puback(3)
    ids, codes = np.zeros(8, np.int32), np.zeros(8, np.uint8)
    n, at, why = scan.scan_acks(array(raw[:cut]), 0, cut, True, ids, codes)
    assert why == scan.ACKS_NEED_MORE
    rest, end, _ = scan.scan_acks(array(raw), at, len(raw), True, ids[n:], codes[n:])
    assert end == len(raw)
    assert ids[: n + rest].tolist() == [1, 2, 3]
    assert codes[: n + rest].tolist() == [0, 0x87, 0]


def test_something_else_stops_the_ack_scan() -> None:
    raw = encode_puback(9) + encode_connect(Connect("x"))
    ids, codes = np.zeros(4, np.int32), np.zeros(4, np.uint8)
    assert scan.scan_acks(array(raw), 0, len(raw), False, ids, codes) == (1, 4, scan.ACKS_OTHER)
