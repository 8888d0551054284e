"""What the pipeline's tests are fed with: arrays filled at random, and frames written by hand.

Random arrays compare kernels with their twins, no codec involved.  Frames come from the tables of the
standard or from other projects' recordings, never from our own encoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import reduce
from operator import xor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.batch import VAR_COLUMNS, Batch, Codec, Door, Frames
from schemas.journal.record import encode_record
from schemas.signals import SIGNAL_COUNT, State

NOW_US = 1_780_000_000_000_000  # 2026-05-28


def bare_frames(n: int, data: np.ndarray, received_us: np.ndarray | None = None) -> Frames:
    """``n`` accepted frames without bytes of their own, in one record of partition 0."""
    return Frames(
        data=data,
        start=np.zeros(n, np.int64),
        length=np.zeros(n, np.int32),
        received_us=np.full(n, NOW_US, np.int64) if received_us is None else received_us,
        door=np.ones(n, np.uint8),
        codec=np.ones(n, np.uint8),
        reason=np.zeros(n, np.uint8),
        detail=np.zeros(n, np.uint32),
        source=np.zeros(n, np.uint32),
        partition=np.zeros(n, np.int32),
        offset=np.zeros(n, np.int64),
        position=np.arange(n, dtype=np.int32),
    )


def random_batch(n: int, seed: int, columns: int = SIGNAL_COUNT, flaws: bool = True) -> tuple[Frames, Batch]:
    """``n`` reports with about ``columns`` signals each, every state and extreme values among them."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, 4096, np.uint8)
    frames = bare_frames(n, data)
    frames.received_us[:] += rng.integers(0, 10_000_000, n)
    frames.door[:] = rng.integers(1, 5, n)
    batch = Batch.empty(n, 4096)
    batch.kind[:] = rng.integers(2, 4, n)
    batch.edition[:] = rng.choice([16, 25], n)
    batch.reason[:] = 0
    batch.detail[:] = 0
    batch.notes[:] = rng.choice([0, 0, 1, 32], n)
    batch.time_s[:] = NOW_US // 1_000_000 - rng.integers(0, 1_000_000, n)
    batch.part[:] = rng.choice([0, 0, 0, 201], n)
    batch.digest[:] = rng.integers(-(2**63), 2**63 - 1, n, np.int64)
    batch.state[:] = 0
    batch.state[:, :columns] = rng.choice([1, 1, 1, 0, 2, 3, 4, 5] if flaws else [1], (n, columns))
    known = (batch.state == State.VALID) | (batch.state == State.SUSPECT)
    batch.num[:] = np.where(known, rng.integers(-32768, 32768, (n, SIGNAL_COUNT)), 0)
    batch.var[:, :, 0] = rng.integers(0, 2048, (n, len(VAR_COLUMNS)))
    batch.var[:, :, 1] = rng.choice([0, 0, 1, 7, 200], (n, len(VAR_COLUMNS)))
    batch.heap[:4096] = rng.integers(0, 256, 4096, np.uint8)
    text = b'{"door_count":4}'
    batch.extra_text = np.frombuffer(bytearray(text), np.uint8)
    batch.extra[:, 1] = rng.choice([0, len(text)], n) if flaws else 0
    return frames, batch


# -- frames by hand, from the tables of the standard (not from our encoder) ------------------------------


@dataclass(frozen=True)
class Sent:
    """One frame as a journal record carries it."""

    frame: bytes
    received_s: float
    reason: int = 0
    detail: int = 0
    source: dict[str, str] | None = None
    codec: int = Codec.GBT32960
    door: int = Door.GBT_TCP


def frame_of(vin: str, command: int, unit: bytes, mark: bytes = b"##", ack: int = 0xFE, encryption: int = 1) -> bytes:
    """Clause 6, table 2."""
    body = (
        bytes([command, ack])
        + vin.encode().ljust(17, b"\0")
        + bytes([encryption])
        + len(unit).to_bytes(2, "big")
        + unit
    )
    return mark + body + bytes([reduce(xor, body)])


def beijing(second: int) -> bytes:
    at = datetime.fromtimestamp(second, timezone(timedelta(hours=8)))
    return bytes([at.year - 2000, at.month, at.day, at.hour, at.minute, at.second])


def vehicle_block(speed: int = 653, soc: int = 80, charge_state: int = 3, current: int = 10500) -> bytes:
    """2016 table 9: started, electric, odometer 12345.6 km, 385.4 V, DC-DC working, gear D with driving force."""
    return (
        bytes([0x01, 1, charge_state, 1]) + speed.to_bytes(2, "big") + (123456).to_bytes(4, "big")
        + (3854).to_bytes(2, "big") + current.to_bytes(2, "big") + bytes([soc, 1, 0x2E])
        + (5000).to_bytes(2, "big") + bytes([30, 0])
    )  # fmt: skip


def cells_block(cells_mv: list[int], first: int = 1, total: int | None = None) -> bytes:
    """2016 tables B.5 and B.6, one subsystem."""
    voltage = round(sum(cells_mv) / 100).to_bytes(2, "big")
    return (
        bytes([0x08, 1, 1]) + voltage + (10500).to_bytes(2, "big") + (total or len(cells_mv)).to_bytes(2, "big")
        + first.to_bytes(2, "big") + bytes([len(cells_mv)]) + b"".join(cell.to_bytes(2, "big") for cell in cells_mv)
    )  # fmt: skip


def report_frame(vin: str, second: int, kind: int = 2, **values: int) -> bytes:
    """A 2016 report with the vehicle block."""
    return frame_of(vin, kind, beijing(second) + vehicle_block(**values))


def record_of(sent: Sequence[Sent]) -> bytes:
    """A journal record of these frames."""
    sources = [one.source or {} for one in sent]
    refused = None
    if any(one.reason for one in sent):
        refused = (
            np.array([one.reason for one in sent], np.uint8),
            np.array([one.detail for one in sent], np.uint32),
            np.array([i + 1 if one.source else 0 for i, one in enumerate(sent)], np.uint32),
            sources,
        )
    return encode_record(
        b"".join(one.frame for one in sent),
        np.array([len(one.frame) for one in sent], np.uint32),
        np.array([round(one.received_s * 1e6) for one in sent], np.int64),
        np.array([one.door for one in sent], np.uint8),
        np.array([one.codec for one in sent], np.uint8),
        refused,
    )


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The builders above, for test modules (which cannot import this one)."""
    return SimpleNamespace(
        Sent=Sent,
        frame=frame_of,
        beijing=beijing,
        vehicle=vehicle_block,
        cells=cells_block,
        report=report_frame,
        record=record_of,
    )


@pytest.fixture(scope="session")
def golden() -> dict[str, dict[str, Any]]:
    """Frames recorded by other projects, by id."""
    file = Path(__file__).parents[1] / "gbt32960" / "data" / "frames.json"
    return {entry["id"]: entry for entry in json.loads(file.read_text("utf-8"))}


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., tuple[Frames, Batch]]:
    return random_batch
