"""Benchmarks of single stages: what they compare does the same work, and results have what the tables ask for."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np
import pytest

from benchmarks import copy, journal, json_samples, latency, parsers, passes, relay, rows, scan
from benchmarks.sending import PACKET_BYTES
from schemas.mqtt.packets import Publish, encode_puback, encode_publish
from schemas.seams import StoredRecord
from services.pipeline.rows import HEADER, TRAILER
from services.settings import Settings
from services.store.copyformat import decode_copy
from services.store.postgres import PostgresSink


# -- scan --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("door", list(parsers.PARSERS))
@pytest.mark.parametrize("size", scan.SIZES)
def test_kernels_and_parsers_find_the_same_packets(door: str, size: str) -> None:
    arena = scan.fill(door, size, 100_000, Random(1))
    once, tick = scan.scanner(door, arena)
    assert once() == tick() == once() == arena.packets
    for name, parse in parsers.PARSERS[door].items():
        assert parse(arena.streams) == arena.packets, name


def test_the_plain_parser_refuses_what_the_kernel_refuses() -> None:
    vin = b"LBENCH00000000001"
    good = scan.with_vin(scan.frame("small", 16, Random(1)), vin)
    assert parsers.python_frame(memoryview(good), vin)
    assert not parsers.python_frame(memoryview(good), b"LBENCH00000000002")
    assert not parsers.python_frame(memoryview(good[:-1] + bytes([good[-1] ^ 1])), vin)
    assert not parsers.python_frame(memoryview(good[:-1]), vin)


def test_scan_has_its_figures() -> None:
    notes: list[str] = []
    case = scan.measure("gbt32960", "small", 50_000, 2, 1, notes)
    assert case["packets_per_s_p05"] <= case["packets_per_s"] <= case["packets_per_s_p95"]
    assert case["ratio"] == pytest.approx(case["packets_per_s"] / case["baseline_packets_per_s"], rel=0.1)


# -- JSON ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", list(json_samples.CASES))
def test_json_has_its_figures(case: str) -> None:
    found = json_samples.measure(case, 100, 1)
    assert found["samples"] == 100
    assert {"samples_per_s", "json_per_s", "orjson_per_s", "checked_per_s", "parse_per_s"} <= set(found)


def test_the_json_loop_keeps_every_field() -> None:
    texts = [json.dumps({"time": k, "speed_kmh": 1.5, "cells_v": [3.6]}).encode() for k in range(3)]
    assert json_samples.columns_of(texts, json.loads) == 3


# -- journal -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def load() -> list[rows.Group]:
    return rows.groups(20, 4, 40, 5)


def test_a_load_comes_in_groups_that_hold_every_frame(load: list[rows.Group]) -> None:
    assert [group.frames for group in load] == [40, 40]
    for group in load:
        assert group.frame_bytes == sum(len(frames) for frames, _ in group.joined.values())
        assert all(b"".join(frames) == group.joined[p][0] for p, frames in group.by_partition.items())


@pytest.mark.parametrize("name", [*journal.JOURNALS])
@pytest.mark.parametrize("way", journal.WAYS)
async def test_what_was_appended_is_read(name: str, way: str, load: list[rows.Group], dsn: str) -> None:
    async with journal.JOURNALS[name](dsn) as opened:
        seconds, each, size = await journal.through(opened, way, load)
        assert len(each) == len(load)
        assert seconds >= sum(each)
        assert size > 0
        await journal.back(opened, way, dict.fromkeys(range(rows.PARTITIONS), -1), 80)


# -- copy ----------------------------------------------------------------------------------------------------
async def test_the_same_rows_by_every_way(dsn: str) -> None:
    sink = PostgresSink(dsn, Settings())
    await sink.open()
    batches = copy.Batches()
    await batches.prepare(sink, 2, copy.VEHICLES, 7)
    assert batches.rows == 2 * copy.VEHICLES
    stream = batches.encode(0)
    body = copy.bare(stream)
    assert HEADER + body + TRAILER == bytes(stream.data)
    assert len(decode_copy(stream)) == copy.VEHICLES
    done = await sink.commit(copy.copy_only(stream, batches.prepared[0].rows.days))
    assert done.rows == copy.VEHICLES
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection:
        assert copy.ceiling(connection, dsn, stream.columns, HEADER + body + TRAILER) > 0
    await sink.close()


# -- latency -------------------------------------------------------------------------------------------------
def test_only_what_was_added_counts() -> None:
    def told(ten: float, all_: float) -> dict[str, list[tuple[dict[str, str], float]]]:
        name = f"{latency.ACK}_bucket"
        return {name: [({"door": "mqtt", "le": "0.01"}, ten), ({"door": "mqtt", "le": "+Inf"}, all_)]}

    found = latency.since(told(5, 9), told(15, 19))
    assert latency.spread_of(found, latency.ACK) == {"count": 10, "p50_ms": 5.0, "p99_ms": 9.9}


def test_medians_of_a_share() -> None:
    runs = [{"frames_per_s": n, "ack_p99_ms": 10.0 * n, "lost": 1} for n in (3, 1, 2)]
    found = latency._middle(50, 2.0, runs)
    assert (found["frames_per_s"], found["ack_p99_ms"], found["lost"], found["share_pct"]) == (2, 20.0, 3, 50)


# -- relay ---------------------------------------------------------------------------------------------------
def test_the_relay_answers_every_publish() -> None:
    topic, payload = "nev/v1/LBENCH00000000001/gbt32960", bytes(330)
    packets = [encode_publish(Publish(topic, payload, 1, number)) for number in (1, 258, 65_535)]
    assert {len(packet) for packet in packets} == {PACKET_BYTES}
    assert relay.acks_of(b"".join(packets), PACKET_BYTES) == b"".join(map(encode_puback, (1, 258, 65_535)))


# -- passes --------------------------------------------------------------------------------------------------
def test_rates_and_percentiles() -> None:
    assert passes.rate(10, [1.0, 2.0, 5.0]) == {"per_s": 5.0, "per_s_p05": 2.3, "per_s_p95": 9.5}
    found = passes.percentiles_ms(np.arange(101) / 1000, "x_")
    assert (found["x_p50_ms"], found["x_p99_ms"], found["x_max_ms"]) == (50.0, 99.0, 100.0)
    calls: list[int] = []
    assert len(passes.seconds_of(lambda: calls.append(1), 3, 2)) == 3
    assert len(calls) == 5


def test_a_record_of_a_group_is_one_that_is_read(load: list[rows.Group]) -> None:
    records: list[Any] = [StoredRecord(partition, 0, body) for partition, body in load[0].records()]
    assert journal.WAYS["batch"][1](records) == load[0].frames
