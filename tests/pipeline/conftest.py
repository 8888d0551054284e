"""Frames and batches filled at random, for comparing kernels with their twins (no codec involved)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from schemas.batch import VAR_COLUMNS, Batch, Frames
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
    return frames, batch


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., tuple[Frames, Batch]]:
    return random_batch
