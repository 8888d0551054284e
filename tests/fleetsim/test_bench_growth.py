"""The input of bench growth: whole frames, of the vehicles whose turn it is, each after its vehicle's last."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np

from benchmarks.growth import Fleet
from schemas.batch import Batch, Codec
from schemas.gbt32960.decode import decode_frames


def test_frames_are_valid_and_their_clocks_advance() -> None:
    begun = datetime(2026, 11, 24, 10, tzinfo=UTC)
    fleet, seen = Fleet(7, begun), defaultdict(list)
    for turn, first, count in ((np.arange(7)[::-1], 0, 20), (np.arange(3), 0, 9), (np.arange(7)[::-1], 20, 15)):
        frames = fleet.reports(turn, first, count)
        n, length = frames.shape
        data, batch = frames.reshape(-1), Batch.empty(n, frames.size)
        decode_frames(
            data, np.arange(n) * length, np.full(n, length, np.int32), np.full(n, Codec.GBT32960, np.uint8),
            np.zeros(n, np.uint8), batch,
        )  # fmt: skip
        assert (batch.kind == 2).all()
        assert not batch.reason.any()
        assert not np.bitwise_xor.reduce(frames[:, 2:], axis=1).any()
        for k in range(n):
            seen[bytes(frames[k, 4:21])].append(datetime.fromtimestamp(int(batch.time_s[k]), UTC))
    assert len(seen) == 7
    for times in seen.values():
        assert times[0] == begun
        assert all(timedelta(0) < b - a <= timedelta(seconds=2) for a, b in pairwise(times))
