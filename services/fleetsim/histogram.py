"""How long answers took: a histogram of fine buckets, filled by a kernel, thousands of times at once.

Each octave of microseconds has 32 buckets, so a percentile is right to 3 %, from a microsecond to a day, in 8 KB
whatever the number of messages.  Histograms add up, over processes and over seconds.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,assignment"

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I64
from schemas.jit import compiled

_STEPS: Final = 32  # per octave
_OCTAVES: Final = 32  # above 32 microseconds
BUCKETS: Final = _STEPS * (_OCTAVES + 1)
_WAITING_MAX: Final = 4096


def bucket_of(microseconds: int) -> int:
    """The bucket of a time; the kernel's twin."""
    if microseconds < _STEPS:
        return max(microseconds, 0)
    octave = microseconds.bit_length() - _STEPS.bit_length()
    return min(_STEPS * octave + (microseconds >> octave), BUCKETS - 1)


@compiled
def record(microseconds: I64, weights: I64, counts: I64) -> int:
    """Add ``weights`` (n,) to the buckets of ``microseconds`` (n,) in ``counts`` (BUCKETS,); the longest of them."""
    longest = 0
    for i in range(len(microseconds)):
        left = microseconds[i]
        longest = max(longest, left)
        octave = 0
        while left >= 2 * _STEPS:
            left >>= 1
            octave += 1
        counts[min(_STEPS * octave + max(left, 0), BUCKETS - 1)] += weights[i]
    return longest


def upper_edges_ms() -> NDArray[np.float64]:
    """Where each bucket ends, in milliseconds."""
    bucket = np.arange(BUCKETS)
    octave = np.maximum(bucket // _STEPS - 1, 0)
    edges: NDArray[np.float64] = np.ldexp(bucket - octave * _STEPS + 1.0, octave) / 1000.0
    return edges


_EDGES_MS: Final = upper_edges_ms()


def percentile_ms(counts: I64, percent: float, max_ms: float | None = None) -> float | None:
    """Upper edge of the bucket that holds the percentile, but no more than ``max_ms``; None of nothing."""
    total = int(counts.sum())
    if not total:
        return None
    at = int(np.searchsorted(np.cumsum(counts), max(total * percent / 100.0, 1.0)))
    edge = float(_EDGES_MS[at])
    return float(f"{edge if max_ms is None else min(edge, max_ms):.3g}")


class Latencies:
    """Seconds that answers took, and their percentiles; nothing is kept per message but for a moment."""

    def __init__(self) -> None:
        self._counts = np.zeros(BUCKETS, np.int64)
        self._longest_us = 0
        self._seconds: list[float] = []
        self._weights: list[int] = []

    def add(self, seconds: float, count: int) -> None:
        """``count`` answers came after so long."""
        self._seconds.append(seconds)
        self._weights.append(count)
        if len(self._seconds) >= _WAITING_MAX:
            self._flush()

    def _flush(self) -> None:
        if self._seconds:
            times = (np.array(self._seconds, np.float64) * 1e6).astype(np.int64)
            longest = record(times, np.array(self._weights, np.int64), self._counts)
            self._longest_us = max(self._longest_us, int(longest))
            self._seconds.clear()
            self._weights.clear()

    @property
    def counts(self) -> I64:
        """(BUCKETS,), of everything so far."""
        self._flush()
        return self._counts

    @property
    def max_ms(self) -> float | None:
        """The longest; None while there is nothing."""
        return round(self._longest_us / 1000.0, 3) if self.counts.any() else None

    def percentile_ms(self, percent: float) -> float | None:
        """To 3 %; None while there is nothing."""
        return percentile_ms(self.counts, percent, self._longest_us / 1000.0)


def warm() -> None:
    """Compile the kernel."""
    record(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(BUCKETS, np.int64))
