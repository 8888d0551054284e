"""How fast bytes of sockets become packets on one core: the gateway's own kernels, no socket in between.

What a tick of the gateway sees is made beforehand: an arena in which the bytes of 100 connections lie, each ending
inside a packet.  ``packets`` is the scan (packets found, identity, frame length and BCC checked); ``tick`` adds what
the gateway does with them (frames copied into the group that waits for the journal, answers written).  Beside them, on
the same bytes: the parser that one would write in Python, and the packet readers of paho-mqtt, gmqtt and rtm-con.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from math import inf
from operator import xor
from random import Random
from typing import Any, Final, cast

import numpy as np

from benchmarks.decode import frame
from benchmarks.parsers import PARSERS
from benchmarks.passes import rate, seconds_of
from benchmarks.runner import Progress
from schemas.batch import I64, U8
from schemas.mqtt.packets import Publish, encode_publish
from schemas.mqtt.topics import GBT32960, PREFIX
from services.gateway.columns import (
    ACK_COLUMNS,
    FRAME_COLUMNS,
    SEG_SCAN,
    SEG_STATE,
    SEGMENT_COLUMNS,
    SLOW_COLUMNS,
)
from services.gateway.connections import Connections, State
from services.gateway.gbt_rules import actions, error_flags, success_flags
from services.gateway.group import Group
from services.gateway.scan_gbt import gbt_scan
from services.gateway.scan_mqtt import mqtt_scan
from services.settings import Settings

CONNECTIONS: Final = 100
PARTITIONS: Final = 8
ARENA_BYTES: Final = 4 * 1024 * 1024  # as the gateway's own
SIZES: Final = ("small", "typical")
GOAL_PACKETS_PER_S: Final = 3_000_000
_TABLE_ROWS: Final = 65_536  # as the gateway's own
_BCC_AT: Final = 2


def with_vin(one: bytes, vin: bytes) -> bytes:
    """A frame under another VIN."""
    body = one[_BCC_AT:4] + vin + one[21:-1]
    return one[:2] + body + bytes((reduce(xor, body),))


@dataclass(slots=True)
class Arena:
    """What lies in the arena at the beginning of a tick: bytes, segments (SEG_*), and the connections they are of."""

    data: U8
    segments: I64
    rows: Connections
    packets: int
    packet_bytes: int
    streams: list[bytes] = field(default_factory=list)  # the same, per connection


def fill(door: str, size: str, arena_bytes: int, rng: Random) -> Arena:
    """An arena full of reports (2016) of ``CONNECTIONS`` vehicles; ``door``: mqtt (3.1.1, QoS 1) or gbt32960."""
    rows = Connections(CONNECTIONS, PARTITIONS)
    one = frame(size, 16, rng)
    segments = np.empty((CONNECTIONS, SEGMENT_COLUMNS), np.int64)
    made: list[bytes] = []
    count = at = 0
    for number in range(CONNECTIONS):
        vin = b"LBENCH%011d" % number
        slot = rows.open(cast("Any", object()), 0.0, inf)
        assert slot is not None
        rows.bind(slot, State.VEHICLE, vin)
        reports = [with_vin(frame(size, 16, rng), vin) for _ in range(20)]
        topic = f"{PREFIX.decode()}{vin.decode()}{GBT32960.decode()}"
        each = max(1, arena_bytes // CONNECTIONS // (len(one) + (40 if door == "mqtt" else 0)))
        packets = [reports[k % len(reports)] for k in range(each + 1)]
        if door == "mqtt":
            packets = [encode_publish(Publish(topic, body, 1, k + 1)) for k, body in enumerate(packets)]
        made.append(b"".join(packets)[: -(len(packets[-1]) // 2)])  # the last one is not all there yet
        segments[number] = (slot, at, at + len(made[-1]), SEG_SCAN)
        at += len(made[-1])
        count += each
        packet_bytes = len(packets[0])
    return Arena(np.frombuffer(bytearray(b"".join(made)), np.uint8), segments, rows, count, packet_bytes, made)


def scanner(door: str, arena: Arena) -> tuple[Callable[[], int], Callable[[], int]]:
    """(scan, tick): each goes over the whole arena once and says how many frames were accepted."""
    settings = Settings().gateway
    rows = arena.rows
    frames = np.empty((_TABLE_ROWS, FRAME_COLUMNS), np.int64)
    acks = np.empty((_TABLE_ROWS, ACK_COLUMNS), np.int64)
    slow = np.empty((4096, SLOW_COLUMNS), np.int64)
    counts = np.zeros(3, np.int64)
    segments = arena.segments.copy()
    limits = np.array(
        [settings.limits.packet_bytes_max, settings.limits.frame_bytes_max, 65_535, settings.limits.json_bytes_max],
        np.int64,
    )
    rules, success, errors = actions(True), success_flags(True), error_flags()
    group = Group()

    def kernel() -> None:
        if door == "mqtt":
            mqtt_scan(
                arena.data, segments, limits, rows.state, rows.five, rows.vin, rows.partition, rows.unacked,
                rows.aliases, frames, acks, slow, counts,
            )  # fmt: skip
        else:
            gbt_scan(
                arena.data, segments, settings.limits.frame_bytes_max, PARTITIONS, rules, success, errors, rows.state,
                rows.vin, rows.partition, frames, slow, counts,
            )  # fmt: skip

    def over(take: Callable[[int], None]) -> int:
        np.copyto(segments, arena.segments)
        found = 0
        while True:
            kernel()
            n = int(counts[0])
            found += n
            take(n)
            if not (segments[:, SEG_STATE] == SEG_SCAN).any():
                return found

    def keep(n: int) -> None:
        group.absorb(arena.data, frames, n, 1 if door == "mqtt" else 2, 1, 0.0, rows.vin)
        if door == "mqtt":
            group.answer_publishes(acks, int(counts[1]), rows.serial, rows.unacked)
        else:
            group.answer_frames(arena.data, frames, n, rows.serial)

    def tick() -> int:
        group.clear()
        rows.unacked[:] = 0
        return over(keep)

    return lambda: over(lambda n: None), tick


def measure(door: str, size: str, arena_bytes: int, repeats: int, few: int, notes: list[str]) -> dict[str, Any]:
    """One case; the others go over ``few`` connections' bytes, each three times."""
    arena = fill(door, size, arena_bytes, Random(32960))  # noqa: S311 - values of frames
    scan, tick = scanner(door, arena)
    assert scan() == tick() == arena.packets, "the kernels did not accept the benchmark's own packets"
    case = {
        "door": door, "size": size, "packet_bytes": arena.packet_bytes, "packets": arena.packets,
        **rate(arena.packets, seconds_of(scan, repeats, 2), "packets_per_s"),
        **rate(arena.packets, seconds_of(tick, repeats, 2), "tick_packets_per_s"),
    }  # fmt: skip
    case["mb_per_s"] = round(case["packets_per_s"] * arena.packet_bytes / 1e6, 1)
    streams = arena.streams[:few]
    each = arena.packets // CONNECTIONS
    others: dict[str, float] = {}
    for name, parse in PARSERS[door].items():
        try:
            assert parse(streams[:1]) == each, f"{name} does not find the packets that the kernels find"
        except ImportError:
            notes.append(f"{name} is not installed: not measured")
            continue
        others[name] = rate(each * len(streams), seconds_of(lambda parse=parse: parse(streams), 3, 0))["per_s"]  # type: ignore[misc]
    case["others_packets_per_s"] = others
    case["baseline_packets_per_s"] = others["python"]
    case["ratio"] = round(case["packets_per_s"] / others["python"], 1)
    return case


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{packets_per_s, ratio (MQTT, typical frames, against the obvious parser), gbt32960_packets_per_s, cases[]}."""
    arena_bytes, repeats, few = (ARENA_BYTES // 4, 15, 1) if quick else (ARENA_BYTES, 101, 5)
    notes: list[str] = []
    cases = []
    for door in PARSERS:
        for size in SIZES:
            case = measure(door, size, arena_bytes, repeats, few, notes)
            cases.append(case)
            told = ", ".join(f"{name} {value:,.0f}" for name, value in case["others_packets_per_s"].items())
            progress(
                f"{door} {size}, {case['packet_bytes']} bytes, packets/s: kernels {case['packets_per_s']:,.0f}, "
                f"with copies and answers {case['tick_packets_per_s']:,.0f}, {told}"
            )
    typical = {case["door"]: case for case in cases if case["size"] == "typical"}
    return {
        "packets_per_s": typical["mqtt"]["packets_per_s"],
        "baseline_packets_per_s": typical["mqtt"]["baseline_packets_per_s"],
        "ratio": typical["mqtt"]["ratio"],
        "gbt32960_packets_per_s": typical["gbt32960"]["packets_per_s"],
        "gbt32960_ratio": typical["gbt32960"]["ratio"],
        "goals": {
            "packets_per_s": f">= {GOAL_PACKETS_PER_S:,}",
            "gbt32960_packets_per_s": f">= {GOAL_PACKETS_PER_S:,}",
        },
        "cases": cases,
        "notes": notes,
        "settings": {
            "connections": CONNECTIONS, "arena_bytes": arena_bytes, "repeats": repeats, "cores_used": 1,
            "mqtt": "3.1.1, QoS 1", "connections_for_the_others": few,
        },
    }  # fmt: skip
