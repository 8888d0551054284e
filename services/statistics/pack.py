"""What one record says of the battery pack: the extremes of its probes and of its cells.

Shared by the battery fold and the alarms fold, so that both mean the same by "the hottest probe". Each function has
its plain-Python twin below it. A cell or probe that is missing is never filled in: that would hide faults (3.1).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from schemas.jit import compiled
from schemas.statistics.records import (
    CELL_MAX,
    CELL_MIN,
    F64,
    I16,
    I32,
    PROBE_MAX,
    PROBE_MIN,
    REPORTED_CELL_MAX,
    REPORTED_CELL_MIN,
    REPORTED_TEMP_MAX,
    REPORTED_TEMP_MIN,
)

CELL_LOW_MV, CELL_HIGH_MV = 500, 4500  # a usable Li-ion cell (3.1); else missing
PROBE_LOW_C, PROBE_HIGH_C = -39, 210  # exactly -40 is an open sensor, not a temperature (3.1)
CELLS_MISSING_MAX: Final = 5  # a record with more is left out of cell statistics (3.1)


@compiled
def temperatures(x: F64, i: int, probes: I16, begin: int, end: int) -> Any:
    """(hottest, coldest) probe of record ``i``, °C, NaN when unknown: of the list, else as reported, else derived."""
    hot = PROBE_LOW_C - 1
    cold = PROBE_HIGH_C + 1
    for p in range(begin, end):
        value = probes[p]
        if value >= PROBE_LOW_C and value <= PROBE_HIGH_C:
            hot = max(hot, value)
            cold = min(cold, value)
    if hot >= PROBE_LOW_C:
        return float(hot), float(cold)
    high = x[i, REPORTED_TEMP_MAX]
    low = x[i, REPORTED_TEMP_MIN]
    if high >= low and low >= PROBE_LOW_C and high <= PROBE_HIGH_C:
        return high, low
    high = x[i, PROBE_MAX]
    low = x[i, PROBE_MIN]
    if high >= low and low >= PROBE_LOW_C and high <= PROBE_HIGH_C:
        return high, low
    return math.nan, math.nan


def temperatures_twin(x: F64, i: int, probes: I16, begin: int, end: int) -> tuple[float, float]:
    listed = [float(value) for value in probes[begin:end] if PROBE_LOW_C <= value <= PROBE_HIGH_C]
    if listed:
        return max(listed), min(listed)
    for top, bottom in ((REPORTED_TEMP_MAX, REPORTED_TEMP_MIN), (PROBE_MAX, PROBE_MIN)):
        high, low = float(x[i, top]), float(x[i, bottom])
        if PROBE_LOW_C <= low <= high <= PROBE_HIGH_C:
            return high, low
    return math.nan, math.nan


@compiled
def cell_extremes(x: F64, i: int, cells: I32, begin: int, end: int) -> Any:
    """(lowest mV, highest mV, missing cells) of record ``i``.

    Of the list when at most CELLS_MISSING_MAX of its cells are missing; ``missing`` is then 0..5. Else -1 is
    ``missing``, and the extremes are the reported ones, or, without any list, the derived ones; -1 when unknown.
    """
    lowest = 1 << 30
    highest = 0
    for c in range(begin, end):  # min and max alone: the compiler makes vector instructions of it
        value = cells[c]
        lowest = min(lowest, value)
        highest = max(highest, value)
    if end > begin and lowest >= CELL_LOW_MV and highest <= CELL_HIGH_MV:
        return lowest, highest, 0
    if end > begin:
        lowest = 1 << 30
        highest = 0
        missing = 0
        for c in range(begin, end):
            value = cells[c]
            if value < CELL_LOW_MV or value > CELL_HIGH_MV:
                missing += 1
            else:
                lowest = min(lowest, value)
                highest = max(highest, value)
        if missing <= CELLS_MISSING_MAX and highest > 0:
            return lowest, highest, missing
    high = np.floor(x[i, REPORTED_CELL_MAX] * 1000.0 + 0.5)
    low = np.floor(x[i, REPORTED_CELL_MIN] * 1000.0 + 0.5)
    if high >= low and low >= CELL_LOW_MV and high <= CELL_HIGH_MV:
        return int(low), int(high), -1
    if end == begin:
        high = np.floor(x[i, CELL_MAX] * 1000.0 + 0.5)
        low = np.floor(x[i, CELL_MIN] * 1000.0 + 0.5)
        if high >= low and low >= CELL_LOW_MV and high <= CELL_HIGH_MV:
            return int(low), int(high), -1
    return -1, -1, -1


def cell_extremes_twin(x: F64, i: int, cells: I32, begin: int, end: int) -> tuple[int, int, int]:
    listed = cells[begin:end].tolist()
    usable = [value for value in listed if CELL_LOW_MV <= value <= CELL_HIGH_MV]
    if usable and len(listed) - len(usable) <= CELLS_MISSING_MAX:
        return min(usable), max(usable), len(listed) - len(usable)
    choices = [(REPORTED_CELL_MAX, REPORTED_CELL_MIN)] + [(CELL_MAX, CELL_MIN)] * (not listed)
    for top, bottom in choices:
        if math.isnan(x[i, top]) or math.isnan(x[i, bottom]):
            continue
        high, low = math.floor(x[i, top] * 1000 + 0.5), math.floor(x[i, bottom] * 1000 + 0.5)
        if CELL_LOW_MV <= low <= high <= CELL_HIGH_MV:
            return low, high, -1
    return -1, -1, -1


@compiled
def twice_median(values: I32, n: int, lowest: int, counts: I32) -> int:
    """Sum of the two middle ones of values[:n] (twice the middle one when n is odd): exact, in whole numbers.

    counts (at least highest - lowest + 1,) zeros, and zeros again afterwards. Counting beats sorting here: cells of
    a pack lie within some tens of millivolt of each other, so 96 increments and a walk over about half of that range
    are all there is to do.
    """
    for i in range(n):
        counts[values[i] - lowest] += 1
    seen = 0
    at = -1
    while seen <= (n - 1) // 2:
        at += 1
        seen += counts[at]
    first = at
    while seen <= n // 2:
        at += 1
        seen += counts[at]
    for i in range(n):
        counts[values[i] - lowest] = 0
    return first + at + 2 * lowest


def twice_median_twin(values: list[int]) -> int:
    ordered = sorted(values)
    return ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]
