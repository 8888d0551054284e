"""COPY streams: the kernel against its twin, and against the store's own reader of the format."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import jit
from schemas.batch import CELLS, REST, VAR_COLUMNS, Batch, Frames
from schemas.signals import INDEX, SIGNAL_COUNT, SIGNALS, State
from services.pipeline import rows
from services.pipeline.rows import TELEMETRY, VEHICLE_STATE, StreamBuffer
from services.store import columns as store_columns
from services.store.copyformat import decode_copy

QUICK = settings(deadline=None, max_examples=60)
MakeBatch = Callable[..., tuple[Frames, Batch]]


def stream(frames: Frames, batch: Batch, lines: np.ndarray, columns=TELEMETRY, table="telemetry", sparse=True):
    copy = StreamBuffer(table, columns, sparse, capacity=64).write(frames, batch, lines, lines + 1000, lines * 2)
    assert copy is not None
    return copy


def test_columns_and_types_are_those_of_the_store() -> None:
    types = {rows.Field.SMALLINT: "smallint", rows.Field.INTEGER: "integer", rows.Field.BIGINT: "bigint",
             rows.Field.REAL: "real", rows.Field.DOUBLE: "double precision", rows.Field.VAR: "bytea",
             rows.Field.FLAWS: "bytea", rows.Field.VEHICLE_ID: "bigint", rows.Field.DIGEST: "bigint",
             rows.Field.REPORTS: "bigint", rows.Field.TIME: "timestamp with time zone",
             rows.Field.RECEIVED_AT: "timestamp with time zone", rows.Field.EXTRA: "jsonb"}  # fmt: skip
    for ours, theirs in ((TELEMETRY, store_columns.TELEMETRY), (VEHICLE_STATE, store_columns.VEHICLE_STATE)):
        assert {column.name: types.get(column.field, "smallint") for column in ours} == dict(theirs)


@QUICK
@given(seed=st.integers(0, 2**32), n=st.integers(1, 12), columns=st.sampled_from([0, 3, 45, SIGNAL_COUNT]))
def test_kernel_and_twin_write_the_same_bytes(make_batch: MakeBatch, seed: int, n: int, columns: int) -> None:
    frames, batch = make_batch(n, seed, columns)
    lines = np.flatnonzero(np.random.default_rng(seed).integers(0, 2, n)).astype(np.int64)
    if not len(lines):
        lines = np.zeros(1, np.int64)
    for wanted, table, sparse in ((TELEMETRY, "telemetry", True), (VEHICLE_STATE, "vehicle_state", False)):
        fast = stream(frames, batch, lines, wanted, table, sparse)
        kernels = rows._copy_rows, rows._presence
        rows._copy_rows, rows._presence = (kernel.twin for kernel in kernels)
        try:
            slow = stream(frames, batch, lines, wanted, table, sparse)
        finally:
            rows._copy_rows, rows._presence = kernels
        assert fast.columns == slow.columns
        assert bytes(fast.data) == bytes(slow.data)


def test_values_are_the_nearest_floats_and_masked_ones_are_null(make_batch: MakeBatch) -> None:
    frames, batch = make_batch(200, 5)
    found = decode_copy(stream(frames, batch, np.arange(200)))
    for line, row in enumerate(found):
        flaws = b""
        for index, signal in enumerate(SIGNALS):
            state, num = batch.state[line, index], int(batch.num[line, index])
            value: float | None = num / signal.div
            if signal.sql == "real":
                value = float(np.float32(value))
            if signal.name == "alarm_flags":
                value = num & 0xFFFFFFFF
            if state not in (State.VALID, State.SUSPECT):
                value = None
            assert row[signal.name] == value, signal.name
            if state >= State.ABNORMAL:
                flaws += bytes([index, state])
        assert row["flaws"] == (flaws or None)
        assert row["notes"] == (batch.notes[line] or None)
        assert row["vehicle_id"] == line + 1000
        assert row["time"].timestamp() == batch.time_s[line]
        assert round(row["received_at"].timestamp() * 1e6) == frames.received_us[line]
        for index, name in enumerate(VAR_COLUMNS):
            begin, length = batch.var[line, index]
            kept = (batch.heap if index == REST else frames.data)[begin : begin + length].tobytes()
            assert row[name] == (kept or None)


@pytest.mark.parametrize(
    ("name", "num", "value"),
    [
        ("speed_kmh", 653, 65.3),
        ("total_current_a", -1, -0.1),
        ("total_current_a", -10000, -1000.0),
        ("odometer_km", 9999999, 999999.9),
        ("longitude_deg", -116397428, -116.397428),
        ("latitude_deg", 39909090, 39.90909),
        ("h2_max_conc_vol_pct", 1, 0.0001),
        ("alarm_flags", -(2**31), 2**31),
        ("soc_pct", 100, 100),
        ("motor_temp_c", -40, -40),
        ("motor_speed_rpm", 45531, 45531),
    ],
)
def test_one_value(make_batch: MakeBatch, name: str, num: int, value: float) -> None:
    frames, batch = make_batch(1, 1, 0)
    batch.state[0, INDEX[name]], batch.num[0, INDEX[name]] = State.VALID, num
    (row,) = decode_copy(stream(frames, batch, np.zeros(1, np.int64)))
    if SIGNALS[INDEX[name]].sql == "real":
        (value,) = struct.unpack(">f", struct.pack(">f", value))
    assert row[name] == value


def test_columns_without_a_value_are_left_out(make_batch: MakeBatch) -> None:
    frames, batch = make_batch(3, 1, 0)
    batch.notes[:] = 0
    batch.var[:] = 0
    batch.extra[:] = 0
    keys = ("vehicle_id", "time", "received_at", "kind", "part", "edition", "door", "digest")
    lines = np.arange(3)
    assert stream(frames, batch, lines).columns == keys
    batch.state[1, INDEX["soc_pct"]] = State.SUSPECT
    batch.state[2, INDEX["speed_kmh"]] = State.ABNORMAL  # no value, but a flaw
    batch.var[0, CELLS] = 5, 7
    assert stream(frames, batch, lines).columns == (*keys, "soc_pct", "cells", "flaws")
    assert stream(frames, batch, lines[:1]).columns == (*keys, "cells")
    assert stream(frames, batch, lines[:1], VEHICLE_STATE, "vehicle_state", False).columns == tuple(
        column.name for column in VEHICLE_STATE
    )
    assert StreamBuffer("telemetry", TELEMETRY, True).write(frames, batch, lines[:0], lines[:0]) is None


def test_a_buffer_grows_and_is_used_again(make_batch: MakeBatch) -> None:
    buffer = StreamBuffer("telemetry", TELEMETRY, True, capacity=16)
    for n in (1, 300, 2):
        frames, batch = make_batch(n, n)
        copy = buffer.write(frames, batch, np.arange(n), np.arange(n))
        assert copy is not None
        assert len(decode_copy(copy)) == n


@pytest.mark.skipif(jit.MODE == "reference", reason="nothing is compiled")
def test_one_signature_per_kernel(make_batch: MakeBatch) -> None:
    rows.warm()
    frames, batch = make_batch(5, 1)
    stream(frames, batch, np.arange(5))
    assert len(rows._copy_rows.compiled.signatures) == len(rows._presence.compiled.signatures) == 1
