"""The tick's kernels equal their twins: streams of good, broken and foreign items, cut anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import Codec, Frames
from schemas.journal.record import decode_records
from schemas.mqtt.packets import (
    PINGREQ,
    Subscribe,
    encode_disconnect,
    encode_puback,
    encode_subscribe,
)
from schemas.mqtt.wire import varint
from schemas.seams import StoredRecord
from services.gateway import gather, scan_gbt, scan_mqtt
from services.gateway.columns import (
    ACK_COLUMNS,
    F_ACK,
    F_LENGTH,
    F_SLOT,
    FRAME_COLUMNS,
    GROUP_COLUMNS,
    SEG_END,
    SEG_STATE,
    SLOW_COLUMNS,
    SPAN_COLUMNS,
    SPAN_SERIAL,
)
from services.gateway.connections import ALIASES, STATES, State
from services.gateway.gbt_rules import COLUMNS, EDITIONS, RULES, actions, error_flags, success_flags, table
from services.gateway.group import Group
from tests.gateway.playing import OTHER, PARTITIONS, VIN, broken, connect, login, logout, publish, report
from tests.gateway.test_gbt import PLATFORM_LOGOUT, platform_login

EMPTY = 0xEE  # what output tables are filled with, so that a write too many shows


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    item = st.sampled_from(
        [
            report(),
            report(edition=25),
            report(OTHER),
            broken(report()),
            b"noise",
            report()[:30],
            b"##",
            report(body=bytes(200)),
        ]
    )
    return b"".join(draw(st.lists(item, max_size=4)))


@st.composite
def mqtt_streams(draw: st.DrawFn, five: bool) -> bytes:
    version = 5 if five else 4
    topics = [f"nev/v1/{VIN}/gbt32960"] * 4 + [
        f"nev/v1/{OTHER}/gbt32960",
        f"nev/v1/{VIN}/else",
        f"nev/v1/{VIN}/telemetry",
        f"nev/v1/{VIN}/bms",
        f"nev/v1/{OTHER}/bms",
        "nev/v1/",
        "x",
        "nev/+/x",
        f"nev/v1/{VIN}",
    ]
    numbers = (1, 2, 16, 17) if five else ()
    aliased = [{"properties": {"topic_alias": k}} | more for k in numbers for more in ({}, {"topic": ""})]
    good = st.builds(
        lambda payload, topic, qos, packet_id, extra: publish(
            payload, packet_id, **({"version": version, "topic": topic, "qos": qos} | extra)
        ),
        payloads(),
        st.sampled_from(topics),
        st.sampled_from([0, 1, 1, 1, 2]),
        st.integers(1, 65535),
        st.sampled_from([{}, {}, {}, {"dup": True}, {"retain": True}, *aliased]),
    )
    other = st.sampled_from(
        [
            PINGREQ,
            connect(version=version),
            encode_subscribe(Subscribe(3, (("a", 0),)), version),
            encode_disconnect(version),
            encode_puback(1),
            b"\x30\xff\xff\xff\xff",
            b"\x32" + varint(5000) + b"\0\x21",
            b"\xc1\x00",
            b"\xc0\x01\x00",
            b"\x40\x02\x00\x01",
            b"\x41\x02\x00\x01",
            b"\x62\x02\x01\x02",
            b"\x62\x02\x00\x00",
            b"\x62\x03\x00\x07\x92",
            b"\x62\x04\x00\x07\x00\x00",
            b"\x63\x03\x00\x07\x92",
            b"\xf0\x00",
            b"\xf2\x01\x18",
            b"\x00\x00",
            b"\x60\x02\x00\x07",
            b"\x62\x01\x00",
            b"\x50\x02\x00\x07",
        ]
    )
    raw = b"".join(draw(st.lists(st.one_of(good, good, good, other), max_size=6)))
    return raw[: len(raw) - draw(st.sampled_from([0, 0, 1, 7]))]


@st.composite
def gbt_streams(draw: st.DrawFn) -> bytes:
    items = [
        report(),
        report(edition=25),
        report(command=3),
        report(OTHER),
        report(b"\x01" * 17),
        broken(report()),
        broken(report(edition=25)),
        b"noise",
        login(),
        logout(),
        platform_login(),
        PLATFORM_LOGOUT,
        report(command=7, body=b""),
        report(command=8),
        report(command=9, edition=25),
        report(command=0x80),
        report(command=0xC4),
        report(body=bytes(500)),
        report()[:3] + b"\x01" + report()[4:],
    ]
    raw = b"".join(draw(st.lists(st.sampled_from(items), max_size=8)))
    return raw[: len(raw) - draw(st.sampled_from([0, 0, 1, 30]))]


def segments_of(streams: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """An arena with the streams one after the other, and a segment for each: slot i has stream i."""
    arena = np.frombuffer(bytearray(b"".join(streams) + bytes(64)), np.uint8)
    ends = np.cumsum([len(one) for one in streams])
    rows = [[i, int(end) - len(one), int(end), 0] for i, (one, end) in enumerate(zip(streams, ends, strict=True))]
    return arena, np.array(rows, np.int64).reshape(-1, 4)


def tables(n_frames: int, n_slow: int) -> list[np.ndarray]:
    return [
        np.full((n_frames, FRAME_COLUMNS), EMPTY, np.int64),
        np.full((8, ACK_COLUMNS), EMPTY, np.int64),
        np.full((n_slow, SLOW_COLUMNS), EMPTY, np.int64),
        np.zeros(3, np.int64),
    ]


VINS = np.frombuffer(bytearray(VIN.encode() * 3), np.uint8).reshape(3, 17)


@settings(max_examples=250, deadline=None)
@given(st.data(), st.booleans(), st.sampled_from([400, 4096]), st.sampled_from([3, 1000]), st.sampled_from([250, 2000]))
def test_mqtt_scan(data: st.DataObject, five: bool, packet_max: int, receive_max: int, n_frames: int) -> None:
    streams = data.draw(st.lists(mqtt_streams(five), min_size=1, max_size=3))
    n_slow = data.draw(st.integers(1, 6))
    found = []
    for scan in (scan_mqtt.mqtt_scan.compiled, scan_mqtt.mqtt_scan.twin):
        arena, segments = segments_of(streams)
        if len(streams) > 1:
            segments[0, SEG_STATE] = data.draw(st.sampled_from([0, -1])) if not found else found[0][0]
        frames, acks, slow, counts = tables(n_frames, n_slow)
        skipped = int(segments[0, SEG_STATE])
        state = np.array([State.VEHICLE, State.NEW, State.VEHICLE], np.uint8)
        aliases = np.zeros((3, ALIASES), np.uint8)
        aliases[2, 1] = 1
        scan(
            arena,
            segments,
            np.array([packet_max, 300, receive_max, 150], np.int64),
            state,
            np.full(3, five, np.uint8),
            VINS,
            np.array([1, 2, 3], np.int32),
            np.array([0, 0, 1], np.int32),
            aliases,
            frames,
            acks,
            slow,
            counts,
        )
        found.append(
            (
                skipped,
                segments.tolist(),
                counts.tolist(),
                frames.tolist(),
                acks.tolist(),
                slow.tolist(),
                aliases.tolist(),
            )
        )
    assert found[0] == found[1]


@settings(max_examples=250, deadline=None)
@given(
    st.lists(gbt_streams(), min_size=1, max_size=3), st.booleans(), st.booleans(), st.integers(1, 40), st.integers(1, 5)
)
def test_gbt_scan(streams: list[bytes], required: bool, answers: bool, n_frames: int, n_slow: int) -> None:
    found = []
    for scan in (scan_gbt.gbt_scan.compiled, scan_gbt.gbt_scan.twin):
        arena, segments = segments_of(streams)
        frames, _, slow, counts = tables(n_frames, n_slow)
        scan(
            arena,
            segments,
            300,
            PARTITIONS,
            actions(required),
            success_flags(answers),
            error_flags(),
            np.array([State.VEHICLE, State.NEW, State.PLATFORM], np.uint8),
            VINS,
            np.array([1, 2, 3], np.int32),
            frames,
            slow,
            counts,
        )
        found.append((segments.tolist(), counts.tolist(), frames.tolist(), slow.tolist()))
    assert found[0] == found[1]


def test_every_rule_reaches_the_table() -> None:
    made = actions(True)
    assert made.shape == (STATES, COLUMNS)
    for rule in RULES:
        for half, edition in enumerate(EDITIONS):
            for command in rule.commands if edition in rule.editions else ():
                by_state = [rule.new, rule.vehicle, rule.platform]
                assert made[:3, 256 * half + command].tolist() == by_state


rows_of_frames = st.lists(
    st.tuples(
        st.integers(0, 2),  # slot
        st.sampled_from([0, 0, 0, 1, 3]),  # reason
        st.integers(0, PARTITIONS - 1),
        st.sampled_from([0, 1, 2]),  # ack
        st.integers(24, 80),  # length
    ),
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(rows_of_frames)
def test_absorb_group_and_answer(items: list[tuple[int, int, int, int, int]]) -> None:
    arena = np.frombuffer(bytearray((report() * 40)[: 100 * 20]), np.uint8)
    frames = np.zeros((max(1, len(items)), FRAME_COLUMNS), np.int64)
    for i, (slot, reason, partition, ack, length) in enumerate(items):
        frames[i] = [85 * i, length, slot, reason, 4 if reason else 0, partition, 1 if reason else 0, ack, 1 + i % 3]
    n = len(items)
    serial = np.array([7, 5, 9], np.int64)
    found = []
    for which in ("compiled", "twin"):
        data = np.full(4000, EMPTY, np.uint8)
        rows = np.full((32, GROUP_COLUMNS), EMPTY, np.int64)
        end = getattr(gather.absorb, which)(arena, frames, n, VINS, 1, 123, 0, data, rows)
        out = np.full(4000, EMPTY, np.uint8)
        spans = np.full((32, SPAN_COLUMNS), EMPTY, np.int64)
        answered = getattr(gather.write_replies, which)(arena, frames, n, serial, 0, 0, out, spans)
        ordered = np.full(4000, EMPTY, np.uint8)
        length, received = np.zeros(n, np.uint32), np.zeros(n, np.int64)
        small, large = np.zeros((3, n), np.uint8), np.zeros((2, n), np.uint32)
        bounds = np.zeros((PARTITIONS + 1, 2), np.int64)
        getattr(gather.by_partition, which)(data, rows, n, ordered, length, received, small, large, bounds)
        order = np.argsort(spans[: answered[1], SPAN_SERIAL], kind="stable")
        merged = np.full((32, SPAN_COLUMNS), EMPTY, np.int64)
        merged_bytes = np.full(4000, EMPTY, np.uint8)
        gone = np.array([7, -1, 9], np.int64)  # the connection in slot 1 has gone
        count = getattr(gather.merge_spans, which)(out, spans, order, gone, merged_bytes, merged, np.zeros(3, np.int32))
        arrays = (data, rows, out, spans, ordered, length, received, small, large, bounds, merged, merged_bytes)
        found.append([end, tuple(int(v) for v in answered), count, *(array.tolist() for array in arrays)])
    assert found[0] == found[1]
    assert found[0][0] == sum(item[4] + (17 if i % 3 else 0) for i, item in enumerate(items))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(1, 65535), st.sampled_from([0, 0, 0x87]), st.sampled_from([0x40, 0x50, 0x70])
        ),
        max_size=20,
    )
)
def test_pubacks(items: list[tuple[int, int, int, int]]) -> None:
    acks = np.array([*items, (0, 0, 0, 0)], np.int64)
    serial = np.array([7, 5, 9], np.int64)
    found = []
    for which in ("compiled", "twin"):
        out = np.full(200, EMPTY, np.uint8)
        spans = np.full((32, SPAN_COLUMNS), EMPTY, np.int64)
        unacked = np.zeros(3, np.int32)
        answered = getattr(gather.write_pubacks, which)(acks, len(items), serial, 0, 0, out, spans, unacked)
        found.append([tuple(int(v) for v in answered), out.tolist(), spans.tolist(), unacked.tolist()])
    assert found[0] == found[1]
    five = b"".join(bytes((first,)) + encode_puback(packet_id, code, 5)[1:] for _, packet_id, code, first in items)
    assert bytes(found[0][1][: len(five)]) == five
    assert found[0][3] == [sum(first != 0x70 for slot, *_, first in items if slot == k) for k in range(3)]


def in_group(items: list[tuple[int, int, int, int, int]]) -> Frames:
    """The items through a group and its records, as the pipeline reads them."""
    group = Group()
    arena = np.frombuffer(bytearray(report(body=bytes(range(200)))), np.uint8)
    frames = np.zeros((max(1, len(items)), FRAME_COLUMNS), np.int64)
    for i, (slot, reason, partition, _, length) in enumerate(items):
        source = 0
        if reason:
            group.sources.append({"peer": f"peer {i}", "vin": VIN, "client": ""})
            group.refused += 1
            source = len(group.sources)
        frames[i] = [i, length, slot, reason, 4 if reason else 0, partition, source, 0, Codec.GBT32960]
        group.absorb(arena, frames[i : i + 1], 1, 2, 1000 + i, 0.0)
    stored = [StoredRecord(partition, k, body) for k, (partition, body) in enumerate(group.records(PARTITIONS))]
    accepted, refused = group.counts()
    assert sum(accepted.values()) + sum(refused.values()) == len(items)
    assert sum(refused.values()) == sum(1 for item in items if item[1])
    return decode_records(stored)


@settings(max_examples=100, deadline=None)
@given(rows_of_frames)
def test_records_hold_every_frame_with_its_own_source(items: list[tuple[int, int, int, int, int]]) -> None:
    frames = in_group(items)
    arena = report(body=bytes(range(200)))
    assert frames.n == len(items)
    order = sorted(range(len(items)), key=lambda i: items[i][2])  # by partition, arrival order kept
    for k, i in enumerate(order):
        _, reason, partition, _, length = items[i]
        assert frames.frame(k) == arena[i : i + length]
        assert (int(frames.partition[k]), int(frames.reason[k])) == (partition, reason)
        assert int(frames.received_us[k]) == 1000 + i
        if reason:
            assert frames.sources[int(frames.source[k]) - 1]["peer"] == f"peer {i}"
        else:
            assert frames.source[k] == 0


def test_columns_are_what_the_tables_have() -> None:
    assert max(F_ACK, F_LENGTH, F_SLOT) < FRAME_COLUMNS
    assert SEG_END < 4


def test_the_readme_has_the_rule_table() -> None:
    text = (Path(scan_gbt.__file__).parent / "README.md").read_text("utf-8")
    assert table() in text
