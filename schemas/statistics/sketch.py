"""Distributions that add up: counts by bin, from which quantiles come, over any days and any groups of vehicles.

A value falls into a bin by itself alone, so the distribution of a whole is the sum of its parts' whatever the split:
days join to months, cohorts to fleets. The bins of a sketch are logarithmic (DDSketch: Masson, Rim, Lee 2019, PVLDB 12,
2195-2205): every quantile lies within ``ERROR`` of the value that has this rank, from 0.001 up to beyond 10^9. Bins
of one point each (SOC) are exact for whole numbers.

Stored as ``bytes``: records of RECORD, (bin i16, count i64) big-endian. Putting two after one another is already
their sum; :func:`merged` only makes it shorter. SQL makes the same with ``int2send(bin) || int8send(count)``, and
:data:`BIN_SQL` is :func:`bin_of` there. Nothing here knows what is being counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ERROR: Final = 0.02  # relative, of a quantile
_GAMMA: Final = (1 + ERROR) / (1 - ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
LEAST: Final = 1e-3  # smaller ones count as 0
_SHIFT: Final = 1 - math.ceil(math.log(LEAST) / _LOG_GAMMA)  # LEAST falls into bin 1
MOST: Final = 20_000  # no bin lies beyond +-MOST; far beyond any figure here

# ``{x}``: an SQL expression, double precision and not NULL.
BIN_SQL: Final = (
    f"CASE WHEN abs({{x}}) < {LEAST} THEN 0 ELSE sign({{x}})::integer * least({MOST}, "
    f"greatest(1, ceil(ln(abs({{x}})) / {_LOG_GAMMA!r})::integer + {_SHIFT})) END"
)

RECORD: Final = np.dtype([("bin", ">i2"), ("count", ">i8")])
Counts = NDArray[np.int64]


def bin_of(value: float) -> int:
    """The bin of a finite value: 0 for about zero, negative ones for negative values."""
    size = abs(value)
    if size < LEAST:
        return 0
    position = min(MOST, max(1, math.ceil(math.log(size) / _LOG_GAMMA) + _SHIFT))
    return position if value > 0 else -position


def value_of(position: int) -> float:
    """The value that stands for a bin: within ERROR of everything in it."""
    if position == 0:
        return 0.0
    value: float = 2 * _GAMMA ** (abs(position) - _SHIFT) / (_GAMMA + 1)
    return value if position > 0 else -value


def counted(bins: Mapping[int, int]) -> bytes:
    """Counts by bin as they are stored."""
    records = np.array(sorted(bins.items()), np.int64).reshape(-1, 2)
    return _packed(records[:, 0], records[:, 1])


def unpacked(data: bytes) -> tuple[Counts, Counts]:
    """(bins (n,) ascending, counts (n,)), each bin once, none with count 0."""
    records = np.frombuffer(data, RECORD)
    bins = records["bin"].astype(np.int64)
    if not len(bins):
        return bins, bins
    low = int(bins.min())
    if low == (high := int(bins.max())):
        total = int(records["count"].sum())
        return (bins[:1], np.array([total], np.int64)) if total else (bins[:0], bins[:0])
    counts = records["count"].astype(np.int64)
    if counts.sum(dtype=np.float64) < 2**53:  # as doubles they are exact, and ten times as fast
        sums = np.bincount(bins - low, counts, high - low + 1).astype(np.int64)
    else:
        sums = np.zeros(high - low + 1, np.int64)
        np.add.at(sums, bins - low, counts)
    found = np.flatnonzero(sums)
    return found + low, sums[found]


def merged(data: bytes) -> bytes:
    """The same counts, each bin once, in order."""
    return _packed(*unpacked(data))


_DENSE_MAX: Final = 1 << 24  # cells of a table of groups by bins


def grouped(distributions: Sequence[bytes], group: NDArray[np.int64], groups: int) -> list[bytes]:
    """The sums of ``distributions`` by ``group`` (n,), numbers below ``groups``; b"" for a group without any."""
    records = np.frombuffer(b"".join(distributions), RECORD)
    if not len(records):
        return [b""] * groups
    of = np.repeat(group, [len(each) // RECORD.itemsize for each in distributions])
    bins, counts = records["bin"].astype(np.int64), records["count"].astype(np.int64)
    low = int(bins.min())
    width = int(bins.max()) - low + 1
    if groups * width > _DENSE_MAX or counts.sum(dtype=np.float64) >= 2**53:
        order = np.argsort(of, kind="stable")
        ends = np.searchsorted(of[order], np.arange(1, groups))
        return [merged(records[piece].tobytes()) for piece in np.split(order, ends)]
    sums = np.bincount(of * width + (bins - low), counts, groups * width).astype(np.int64).reshape(groups, width)
    return [_packed(found + low, row[found]) for row in sums for found in (np.flatnonzero(row),)]


def _packed(bins: Any, counts: Any) -> bytes:
    records = np.empty(len(bins), RECORD)
    records["bin"], records["count"] = bins, counts
    return records.tobytes()


def ranked(bins: Counts, counts: Counts, share: float) -> int | None:
    """The bin of the ``share`` quantile (0..1): of n values in order number ceil(share * n), at least the first."""
    ends = np.cumsum(counts)
    if not len(ends) or ends[-1] <= 0:
        return None
    # a share such as 0.05 is a little more than it says: 0.05 * 20 must be 1
    wanted = max(1, math.ceil(share * int(ends[-1]) - 1e-9))
    return int(bins[int(np.searchsorted(ends, wanted))])
