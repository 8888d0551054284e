"""The encoder: equal to its twin, read back by decoder and outside judge; session frames against golden ones."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.gbt32960 import encode as e
from schemas.gbt32960.decode import decode_reports
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.layout import Kind
from schemas.gbt32960.reference import decode_frame
from schemas.gbt32960.tables import TABLES
from schemas.signals import INDEX, SIGNAL_COUNT, State
from tests.gbt32960.making import decoded

GOLDEN = {entry["id"]: entry for entry in json.loads((Path(__file__).parent / "data" / "frames.json").read_text())}


def second(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def signals_of(edition: int):
    """(signal, field) of the blocks that the simulator sends."""
    for block in EDITIONS[edition].blocks.values():
        if not block.fixed and block.name not in ("drive_motor", "alarm", "cell_voltages"):
            continue
        for group in block.groups():
            for field in group:
                if field.signal is not None and field.kind is not Kind.COUNT:
                    yield field.signal, field


def samples(rng: np.random.Generator, edition: int, n: int, states: list[int]):
    """Random in-range numbers in random states."""
    num = np.zeros((n, SIGNAL_COUNT), np.int32)
    state = np.zeros((n, SIGNAL_COUNT), np.uint8)
    for signal, field in signals_of(edition):
        raw = rng.integers(field.lo, field.hi, n, endpoint=True)
        values = raw * field.mul + field.add
        if field.kind is Kind.STATUS:
            values = raw & 1
        if field.kind is Kind.DEGREES:
            values = np.where(rng.random(n) < 0.3, -values, values)
        if field.invalid_bits:
            values &= ~field.invalid_bits
        column = INDEX[signal]
        state[:, column] = rng.choice(states, n)
        as_i32 = (values & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
        num[:, column] = np.where(state[:, column] == State.VALID, as_i32, 0)
    return num, state


def written(function, edition: int, n: int, rng, states, cells: int, probes: int, faults: int, times=None):
    num, state = samples(rng, edition, n, states)
    vin = np.frombuffer(b"".join(f"LTEST{i:012d}".encode() for i in range(n)), np.uint8).reshape(n, 17).copy()
    time_s = rng.integers(*e.YEARS, n) if times is None else times
    cells_mv = rng.integers(0, 65536, (n, cells)).astype(np.uint16)
    temps = rng.integers(0, 256, (n, probes)).astype(np.uint8)
    codes = rng.integers(0, 3, (n, faults)).astype(np.uint32)
    out = np.full(n * e.frame_bytes_max(cells, probes, faults), 0xA5, np.uint8)
    start, length = np.zeros(n, np.int64), np.zeros(n, np.int32)
    editions, commands = np.full(n, edition, np.uint8), np.full(n, 2, np.uint8)
    used = function(editions, commands, vin, time_s, num, state, cells_mv, temps, codes, 1, *TABLES, out, start, length)
    frames = [out[s : s + k].tobytes() for s, k in zip(start, length, strict=True)]
    assert b"".join(frames) == out[:used].tobytes()
    return frames, num, state, time_s, cells_mv


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([16, 25]), st.integers(0, 200), st.integers(0, 60), st.integers(0, 5))
def test_kernel_equals_twin(seed, edition, cells, probes, faults):
    states = [0, 0, 1, 1, 1, 2, 3, 4]
    fast = written(e.write_reports.compiled, edition, 3, np.random.default_rng(seed), states, cells, probes, faults)
    slow = written(e.write_reports.twin, edition, 3, np.random.default_rng(seed), states, cells, probes, faults)
    assert fast[0] == slow[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([16, 25]))
def test_what_was_written_is_read_back(seed, edition):
    frames, num, state, time_s, cells_mv = written(
        e.write_reports.compiled, edition, 4, np.random.default_rng(seed), [1], 96, 24, 2
    )
    out, _ = decoded(frames, decode_reports.compiled)
    assert not out.reason.any()
    np.testing.assert_array_equal(out.time_s, time_s)
    for signal, _field in signals_of(edition):
        column = INDEX[signal]
        if signal in ("pack_fault_count", "pack_cell_total"):
            continue
        np.testing.assert_array_equal(out.state[:, column], state[:, column], err_msg=signal)
        np.testing.assert_array_equal(out.num[:, column], num[:, column], err_msg=signal)
    np.testing.assert_array_equal(out.num[:, INDEX["cell_count"]], 96)
    good = np.where((cells_mv >= 1) & (cells_mv <= 60_000), cells_mv, 0)
    np.testing.assert_array_equal(out.num[:, INDEX["cell_max_v"]], good.max(1))


def test_every_day_of_the_century_is_written_right():
    days = np.arange(e.YEARS[0], e.YEARS[1], 86_400, np.int64)
    times = days + np.random.default_rng(5).integers(0, 86_400, len(days))
    rng = np.random.default_rng(1)
    frames, *_ = written(e.write_reports.compiled, 25, len(days), rng, [1], 0, 0, 0, times)
    assert frames[0][24:27] == bytes([0, 1, 1])
    out, _ = decoded(frames, decode_reports.compiled)
    np.testing.assert_array_equal(out.time_s, times)


def test_session_frames_are_those_of_others():
    """Field by field what golden frames of other projects hold, so byte for byte the same frames."""
    golden = GOLDEN["36n-login-2codes"]
    made = e.build_login(
        16, "LTEST000000000003", second("2018-06-05T11:44:29+08:00"), 1, "89860000000000000001", ["LT001", "LT002"]
    )
    assert made.hex() == golden["hex"]
    made = e.build_login(
        25, "VIN12345678901234", second("2025-01-01T10:30:00+08:00"), 1, "12345678901234567890",
        ["PACK12345678901234567890"],
    )  # fmt: skip
    assert made.hex() == GOLDEN["emqx-login-2025"]["hex"]
    made = e.build_logout(16, "LTEST000000000006", second("2018-06-22T16:21:21+08:00"), 70)
    assert made.hex() == GOLDEN["36n-logout"]["hex"]
    assert e.build_heartbeat(16, "LTEST000000000009").hex() == GOLDEN["36n-heartbeat"]["hex"]
    assert e.build_time_sync(16, "LTEST000000000012").hex() == GOLDEN["py-timesync"]["hex"]
    made = e.build_platform_login(
        25, "LTEST000000000002", second("2025-10-27T20:02:02+08:00"), 2050, "LTESTUSER001", "LTESTPASSWORD0000001"
    )
    assert made.hex() == GOLDEN["rtm-24-plt-login2025"]["hex"]
    made = e.build_platform_logout(25, "LTEST000000000002", second("2025-10-27T20:02:02+08:00"), 2050)
    assert made.hex() == GOLDEN["rtm-26-plt-logout2025"]["hex"]


def call(**changed):
    n, cells = changed.pop("n", 1), changed.pop("cells", 4)
    arguments = {
        "edition": 16,
        "command": 2,
        "vin": np.full((n, 17), 65, np.uint8),
        "time_s": np.full(n, 1_800_000_000, np.int64),
        "num": np.zeros((n, SIGNAL_COUNT), np.int32),
        "state": np.zeros((n, SIGNAL_COUNT), np.uint8),
        "cells_mv": np.full((n, cells), 3900, np.uint16),
        "temps_raw": np.full((n, 2), 65, np.uint8),
        "out": np.zeros(n * e.frame_bytes_max(cells, 2, 0), np.uint8),
        "start": np.zeros(n, np.int64),
        "length": np.zeros(n, np.int32),
    } | changed
    used = e.encode_reports(**arguments)
    return arguments["out"][:used].tobytes()


def test_second_part_of_a_split_pack():
    tree = decode_frame(call(first_cell=201))
    assert tree["bcc_ok"]
    assert [info["name"] for info in tree["body"]["infos"]] == ["cell_voltages", "cell_temperatures"]
    assert tree["body"]["infos"][0]["packs"][0]["first_cell"] == 201


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"out": np.zeros(10, np.uint8)}, "frame_bytes_max"),
        ({"cells": 201}, "200"),
        ({"time_s": np.zeros(1, np.int64)}, "2000 to 2099"),
        ({"fault_codes": np.ones((1, 253), np.uint32), "out": np.zeros(9999, np.uint8)}, "252"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        call(**changed)
