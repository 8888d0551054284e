"""The histogram kernel against its twin, and percentiles against sorted values."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.fleetsim.histogram import BUCKETS, Latencies, bucket_of, percentile_ms, record, upper_edges_ms

TIMES = st.integers(0, 1 << 45)


@given(st.lists(st.tuples(TIMES, st.integers(1, 1000)), min_size=1, max_size=50))
@settings(max_examples=80)
def test_the_kernel_and_its_twin_agree(given: list[tuple[int, int]]) -> None:
    counts, wanted = np.zeros(BUCKETS, np.int64), np.zeros(BUCKETS, np.int64)
    times, weights = (np.array(part, np.int64) for part in zip(*given, strict=True))
    assert record(times, weights, counts) == times.max()
    for time, weight in given:
        wanted[bucket_of(time)] += weight
    assert counts.tolist() == wanted.tolist()


@given(st.integers(0, (1 << 36) - 1))
@settings(max_examples=200)
def test_a_time_lies_in_its_bucket_to_three_percent(time: int) -> None:
    edges = upper_edges_ms() * 1000
    bucket = bucket_of(time)
    assert time < edges[bucket]
    assert bucket == 0 or time >= edges[bucket - 1]
    assert edges[bucket] - time <= max(1.0, time / 31)


def test_buckets_have_no_holes() -> None:
    assert (np.diff(upper_edges_ms()) > 0).all()


def test_percentiles_of_seconds() -> None:
    latencies = Latencies()
    assert latencies.percentile_ms(50) is None
    assert latencies.max_ms is None
    for ms in range(1, 1001):
        latencies.add(ms / 1000, 10)
    for percent in (50, 95, 99):
        found = latencies.percentile_ms(percent)
        assert found is not None
        assert abs(found - percent * 10) <= percent * 10 * 0.04
    assert latencies.max_ms == 1000.0
    assert latencies.percentile_ms(100) == 1000.0
    assert int(latencies.counts.sum()) == 10_000
    assert percentile_ms(latencies.counts * 0, 50) is None
