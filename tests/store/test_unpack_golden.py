"""SQL reads from a row's lists what the decoder read from the frame, for every report that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from schemas.batch import CELLS, FAULTS, MOTORS, TEMPS, Batch, Codec, Door, Frames
from schemas.gbt32960.decode import decode
from schemas.signals import INDEX, SIGNALS, State

pytestmark = pytest.mark.database

GOLDEN = [
    entry
    for entry in json.loads((Path(__file__).parent.parent / "gbt32960/data/frames.json").read_text("utf-8"))
    if entry["kind"] in ("realtime", "reissue") and entry["valid"]
]


@pytest.fixture(scope="module")
def decoded() -> tuple[Frames, Batch]:
    raw = [bytes.fromhex(entry["hex"]) for entry in GOLDEN]
    length = np.array([len(frame) for frame in raw], np.int32)
    start = np.zeros(len(raw), np.int64)
    np.cumsum(length[:-1], out=start[1:])
    zero = np.zeros(len(raw), np.uint8)
    frames = Frames(
        data=np.frombuffer(b"".join(raw), np.uint8).copy(),
        start=start,
        length=length,
        received_us=start * 0,
        door=zero + Door.MQTT,
        codec=zero + Codec.GBT32960,
        reason=zero,
        detail=zero.astype(np.uint32),
        source=zero.astype(np.uint32),
        partition=length * 0,
        offset=start * 0,
        position=length * 0,
    )
    return frames, decode(frames)


def _value(batch: Batch, line: int, name: str) -> float | None:
    """The signal as SQL has it: NULL unless valid."""
    at = INDEX[name]
    if batch.state[line, at] not in (State.VALID, State.SUSPECT):
        return None
    return float(batch.num[line, at]) / SIGNALS[at].div


def _span(frames: Frames, batch: Batch, line: int, column: int) -> bytes | None:
    begin, size = batch.var[line, column].tolist()
    return frames.data[begin : begin + size].tobytes() if size else None


@pytest.mark.parametrize("line", range(len(GOLDEN)), ids=[entry["id"] for entry in GOLDEN])
def test_lists(read_db: psycopg.Connection[Any], decoded: tuple[Frames, Batch], line: int) -> None:
    frames, batch = decoded
    if batch.reason[line]:
        return  # refused: it never becomes a row
    edition = int(batch.edition[line])

    def ask(query: str, column: int) -> list[tuple[Any, ...]] | None:
        block = _span(frames, batch, line, column)
        return None if block is None else read_db.execute(query, (block, edition), binary=True).fetchall()

    cells = ask("SELECT voltage_v FROM unpack_cells(%s, %s::smallint)", CELLS)
    if cells is not None:
        valid = [volts for (volts,) in cells if volts is not None]
        assert len(cells) == _value(batch, line, "cell_count")
        assert (max(valid) if valid else None) == _close(_value(batch, line, "cell_max_v"))
        assert (min(valid) if valid else None) == _close(_value(batch, line, "cell_min_v"))
        assert (sum(valid) if valid else None) == _close(_value(batch, line, "cell_sum_v"))
    temps = ask("SELECT temp_c FROM unpack_temps(%s, %s::smallint)", TEMPS)
    if temps is not None:
        known = [temp for (temp,) in temps if temp is not None]
        assert len(temps) == _value(batch, line, "probe_count")
        assert (max(known) if known else None) == _value(batch, line, "probe_max_c")
        assert (min(known) if known else None) == _value(batch, line, "probe_min_c")
    motors = ask("SELECT motor_state, motor_speed_rpm, motor_torque_nm FROM unpack_motors(%s, %s::smallint)", MOTORS)
    if motors is not None:
        assert len(motors) == _value(batch, line, "motor_count")
        for found, name in zip(motors[0], ("motor_state", "motor_speed_rpm", "motor_torque_nm"), strict=True):
            assert found == _close(_value(batch, line, name))
    faults = ask("SELECT list, count(*) FROM fault_codes(%s, %s::smallint) GROUP BY list", FAULTS)
    if faults is not None:
        counted = dict(faults)
        for name in ("pack", "motor", "engine", "other", "general"):
            assert counted.get(name, 0) == (_value(batch, line, f"{name}_fault_count") or 0)


def _close(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-6, abs=1e-6)


def test_there_is_something_to_compare(decoded: tuple[Frames, Batch]) -> None:
    _, batch = decoded
    for column in (CELLS, TEMPS, FAULTS):
        assert (batch.var[:, column, 1] > 0).sum() >= 2
