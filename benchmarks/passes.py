"""Repeats of one piece of work: warmed apart, timed one by one, told as a median with its spread.

Nothing here knows what is measured.  Other work on the machine can only slow a pass down, so the spread says how
much the median is to be trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def seconds_of(work: Callable[[], object], repeats: int, warm: int = 1) -> list[float]:
    """Seconds of each of ``repeats`` passes, after ``warm`` that do not count."""
    for _ in range(warm):
        work()
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return found


def rate(count: int, seconds: Sequence[float], name: str = "per_s") -> dict[str, Any]:
    """Median rate of passes over ``count`` items each, and the 5th and 95th percentile of the passes' rates."""
    rates = count / np.array(seconds)
    return {
        name: round(float(np.median(rates)), 1),
        f"{name}_p05": round(float(np.percentile(rates, 5)), 1),
        f"{name}_p95": round(float(np.percentile(rates, 95)), 1),
    }


def percentiles_ms(seconds: Sequence[float] | np.ndarray, prefix: str = "") -> dict[str, float]:
    """p50, p90, p99, p99.9 and the largest, in milliseconds."""
    values = np.asarray(seconds) * 1000.0
    found = {f"{prefix}p{percent:g}_ms": round(float(np.percentile(values, percent)), 2) for percent in (50, 90, 99)}
    return found | {
        f"{prefix}p999_ms": round(float(np.percentile(values, 99.9)), 2),
        f"{prefix}max_ms": round(float(values.max()), 2),
    }
