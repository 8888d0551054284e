"""The bridge's kernel equals its twin: streams of a broker, cut anywhere, with tables that are nearly full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import VIN_BYTES
from schemas.mqtt.packets import encode_disconnect, encode_suback, packet
from schemas.mqtt.topics import matches
from schemas.mqtt.wire import PacketType
from services.gateway import bridge_scan
from services.gateway.bridge_topics import Patterns, match_twin
from services.gateway.columns import ACK_COLUMNS, FRAME_COLUMNS, SEG_END, SEG_STATE, SLOW_COLUMNS
from services.gateway.connections import State
from tests.gateway.playing import OTHER, PARTITIONS, VIN, broken, publish, report
from tests.gateway.test_kernels import payloads

EMPTY = 0xEE  # what output tables are filled with, so that a write too many shows
TOPICS = {"nev/v1/{vin}/gbt32960": "gbt32960", "fleet/+/{vin}/#": "telemetry", "{vin}": "bms"}
NAMES = [
    *[f"nev/v1/{VIN}/gbt32960"] * 4,
    f"nev/v1/{OTHER}/gbt32960",
    "nev/v1/short/gbt32960",
    "nev/v1//gbt32960",
    f"nev/v1/{VIN}/",
    f"fleet/a/{VIN}/b/c",
    f"fleet/a/{OTHER}",
    f"fleet/{VIN}",
    VIN,
    f"/{VIN}",
    f"é{VIN[2:]}",
    "x",
]


@st.composite
def streams(draw: st.DrawFn, version: int) -> bytes:
    good = st.builds(
        lambda payload, topic, qos, packet_id, extra: publish(
            payload, packet_id, **({"version": version, "topic": topic, "qos": qos} | extra)
        ),
        st.one_of(payloads(), st.sampled_from([b"", b"{}", b"{" + b" " * 90 + b"}", broken(report()), bytes(2000)])),
        st.sampled_from(NAMES),
        st.sampled_from([0, 1, 1, 1, 2]),
        st.integers(1, 65535),
        st.sampled_from([{}, {}, {"dup": True}, {"retain": True}, {"properties": {"topic_alias": 1}}]),
    )
    other = st.sampled_from(
        [
            packet(PacketType.PINGRESP, b""),
            packet(PacketType.CONNACK, b"\0\0"),
            encode_suback(1, (1, 1), version),
            encode_disconnect(5, 0x8B),
            packet(PacketType.PUBREL, b"\0\7"),
            packet(PacketType.PUBREL, b"\0\0"),
            packet(PacketType.PUBREL, b"\0\7\x92"),
            packet(PacketType.PUBACK, b"\0\7"),
            packet(PacketType.SUBACK, bytes(3000)),
            b"\xd0\x01\0",
            b"\xd1\x00",
            b"\x36\x03\0\1x",
            b"\x32\x02\0\5",
            b"\x32\xff\xff\xff\xff",
        ]
    )
    raw = b"".join(draw(st.lists(st.one_of(good, good, good, other), max_size=6)))
    return raw[: len(raw) - draw(st.sampled_from([0, 0, 1, 7]))]


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_the_kernel_is_its_twin(data: st.DataObject) -> None:
    version = data.draw(st.sampled_from([4, 5]))
    raws = [data.draw(streams(version)) for _ in range(data.draw(st.integers(1, 2)))]
    state = np.array([data.draw(st.sampled_from([State.NEW, State.PLATFORM, State.PLATFORM])) for _ in raws], np.uint8)
    skips = [[data.draw(st.sampled_from([0, 0, 3, 5000])), 9, data.draw(st.sampled_from([0, 0x40]))] for _ in raws]
    packet_max = data.draw(st.sampled_from([262_144, 1000]))
    room = data.draw(st.sampled_from([2500, 1100]))
    topics = Patterns(TOPICS)
    arena = np.frombuffer(b"".join(raws) + bytes(64), np.uint8).copy()
    ends = np.cumsum([len(raw) for raw in raws])
    segments = np.array(
        [(slot, end - len(raw), end, 0) for slot, (raw, end) in enumerate(zip(raws, ends, strict=True))], np.int64
    )
    limits = np.array([packet_max, 400, 80, PARTITIONS], np.int64)
    results = []
    for scan in (bridge_scan.bridge_scan.compiled, bridge_scan.bridge_scan.twin):
        own = segments.copy()
        vin = np.zeros((len(raws), VIN_BYTES), np.uint8)
        passed = np.array(skips, np.int64)
        passed[passed[:, 0] == 0] = 0
        rounds = []
        for _ in range(50):
            frames = np.full((room, FRAME_COLUMNS), EMPTY, np.int64)
            vins = np.full((room, VIN_BYTES), EMPTY, np.uint8)
            names = np.full((room, 2), EMPTY, np.int64)
            acks = np.full((3, ACK_COLUMNS), EMPTY, np.int64)
            slow = np.full((2, SLOW_COLUMNS), EMPTY, np.int64)
            counts = np.zeros(3, np.int64)
            five = np.full(len(raws), version == 5, np.uint8)
            scan(arena, own, limits, state, five, vin, passed, topics.patterns, topics.levels, topics.text, frames,
                 vins, names, acks, slow, counts)  # fmt: skip
            rounds.append([one.tolist() for one in (frames, vins, names, acks, slow, counts, own, passed)])
            own[own[:, SEG_STATE] == 2, SEG_STATE] = 0  # as after Python has handled its row
            if not (own[:, SEG_STATE] == 0).any():
                break
        else:
            pytest.fail("the scan does not come to an end")
        assert (own[:, 1] <= own[:, SEG_END]).all()
        results.append(rounds)
    assert results[0] == results[1]


@settings(max_examples=200, deadline=None)
@given(
    pattern=st.lists(st.sampled_from(["a", "b", "+", ""]), max_size=3),
    at=st.integers(0, 3),
    rest=st.booleans(),
    topic=st.lists(st.sampled_from(["a", "b", VIN, ""]), min_size=1, max_size=5),
)
def test_a_pattern_matches_what_its_subscription_does(
    pattern: list[str], at: int, rest: bool, topic: list[str]
) -> None:
    levels = [*pattern[:at], "{vin}", *pattern[at:], *(["#"] if rest else [])]
    made = Patterns({"/".join(levels): "bms"})
    name = "/".join(topic)
    found, vin_at, vin_bytes = match_twin(name.encode(), made.patterns, made.levels, made.text)
    assert (found == 0) == matches(made.filters[0], name)
    if found == 0:
        assert name[vin_at : vin_at + vin_bytes] == topic[levels.index("{vin}")]
