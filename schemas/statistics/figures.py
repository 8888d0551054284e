"""Figures derived when somebody asks, from what the folds have found and what the registry knows.

Pure functions of numbers; None is "not known" and is never turned into 0. They hold no data and ask nothing.
Section numbers are of the project's statistics rules; tags: [A] the standard's own text, [B] two sources, [C] one,
[P] a convention of this project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

FAST_KW: Final = 20.0  # 4.4 [P]
FAST_PER_H: Final = 0.3  # 4.4 [P]: C-rate, for vehicles under SMALL_KWH
SMALL_KWH: Final = 20.0
COVERAGE_MIN: Final = 0.5  # of the middle half of a charge; below it nothing is said of its speed
DEEP_START_PCT: Final = 15.0  # 4.4 [C]
DEEP_END_PCT: Final = 94.0
CONSUMPTION_KM_MIN: Final = 1.0  # 4.3: no consumption below it
SOC_CHECK: Final = 0.2  # 4.3: two estimates of a trip's energy may differ by this much
BASELINE_CHARGES: Final = 10  # 4.5 [P]
OUTLIER_SHARE, OUTLIER_DAYS, OUTLIER_MV = 0.5, 3, 10.0  # 4.7 [P]
SELF_DISCHARGE_MV_PER_DAY, SELF_DISCHARGE_RESTS = 5.0, 3  # 4.12 [P]
INSULATION_FAULT, INSULATION_WARN = 100.0, 500.0  # 4.9 [A]: Ω/V, DC circuit; AC circuit conductively joined
INSULATION_MAX_KOHM: Final = 60_000.0  # the field's largest value: "not measured" when it never moves
INSULATION_CONSTANT_DAYS: Final = 60  # a value that has not moved for so many days with data is no measurement [P]


class Speed(StrEnum):
    FAST = "fast"
    SLOW = "slow"
    UNKNOWN = "unknown"


def ratio(part: float | None, whole: float | None) -> float | None:
    """``part`` ÷ ``whole``; None when either is not known or ``whole`` is not above 0."""
    return None if part is None or whole is None or whole <= 0 else part / whole


def per_100km(energy_kwh: float | None, distance_km: float | None) -> float | None:
    """kWh/100 km over the same intervals; None below 1 km (4.3)."""
    if energy_kwh is None or distance_km is None or distance_km < CONSUMPTION_KM_MIN:
        return None
    return 100.0 * energy_kwh / distance_km


def charge_speed(
    middle_power_kw: float | None, middle_coverage: float | None, battery_kwh: float | None
) -> tuple[Speed, str | None]:
    """Fast or slow, by the mean power of the middle half (4.4 [P]), and why nothing can be said.

    The protocol does not say AC or DC. Small vehicles (under 20 kWh) are judged by C-rate, so that below 20 kW the
    battery's size has to be known.
    """
    if middle_power_kw is None or middle_coverage is None or middle_coverage < COVERAGE_MIN:
        return Speed.UNKNOWN, "coverage"
    if middle_power_kw >= FAST_KW:
        return Speed.FAST, None
    if battery_kwh is None:
        return Speed.UNKNOWN, "battery_kwh"
    small = battery_kwh < SMALL_KWH
    return (Speed.FAST if small and middle_power_kw / battery_kwh >= FAST_PER_H else Speed.SLOW), None


def deep(start_soc_pct: float | None, end_soc_pct: float | None) -> bool | None:
    """Started below 15 % or ended above 94 % (4.4 [C]); None when the end that decides is not known."""
    if start_soc_pct is not None and start_soc_pct < DEEP_START_PCT:
        return True
    if end_soc_pct is not None and end_soc_pct > DEEP_END_PCT:
        return True
    return None if start_soc_pct is None or end_soc_pct is None else False


def energy_by_soc(start_soc_pct: float | None, end_soc_pct: float | None, battery_kwh: float | None) -> float | None:
    """kWh that the fall of SOC stands for (4.3): ΔSOC/100 × energy of the battery."""
    if start_soc_pct is None or end_soc_pct is None or battery_kwh is None:
        return None
    return (start_soc_pct - end_soc_pct) / 100.0 * battery_kwh


def energies_differ(measured_kwh: float | None, by_soc_kwh: float | None, battery_kwh: float | None) -> bool | None:
    """Whether the two estimates of a trip's energy differ by more than 20 % (4.3).

    A difference that whole-number SOC alone explains (one point of the battery) is none.
    """
    if measured_kwh is None or by_soc_kwh is None or battery_kwh is None:
        return None
    return abs(measured_kwh - by_soc_kwh) > max(SOC_CHECK * abs(by_soc_kwh), battery_kwh / 100.0)


# -- capacity ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Line:
    """A robust line y = at_zero + slope·x: Theil-Sen. ``low`` and ``high`` bound the slope (95 %, Kendall)."""

    slope: float
    at_zero: float
    low: float | None
    high: float | None
    points: int


LINE_POINTS_MAX: Final = 1_000  # more are thinned evenly: the pairs go with the square


def theil_sen(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """The median of the slopes of all pairs with different x; None with fewer than three points, or one x.

    Sen, P. K. (1968), J. American Statistical Association 63, 1379-1389; bounds from the normal approximation of
    Kendall's statistic, None where they reach beyond the slopes that there are.
    """
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(xs) > LINE_POINTS_MAX:
        kept = np.linspace(0, len(xs) - 1, LINE_POINTS_MAX).round().astype(np.int64)
        xs, ys = xs[kept], ys[kept]
    n = len(xs)
    if n < 3:
        return None
    i, j = np.triu_indices(n, 1)
    apart = xs[j] != xs[i]
    slopes = np.sort((ys[j][apart] - ys[i][apart]) / (xs[j][apart] - xs[i][apart]))
    if not len(slopes):
        return None
    slope = float(np.median(slopes))
    reach = 1.959964 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18.0)
    below, above = math.floor((len(slopes) - reach) / 2), math.ceil((len(slopes) + reach) / 2)
    within = below >= 1 and above + 1 <= len(slopes)
    return Line(
        slope,
        float(np.median(ys - slope * xs)),
        float(slopes[below - 1]) if within else None,
        float(slopes[above]) if within else None,
        n,
    )


@dataclass(frozen=True, slots=True)
class Capacity:
    """Ah as the median of ``charges`` charges; ``error_ah``: half width of about 95 %."""

    capacity_ah: float
    p25_ah: float
    p75_ah: float
    charges: int
    error_ah: float


def capacity_of(capacities_ah: Sequence[float], soc_rises_pct: Sequence[float]) -> Capacity | None:
    """The median of charges, and how far it can be off.

    The error joins the scatter, 1.57 × interquartile range ÷ √n (McGill, Tukey, Larsen 1978, American Statistician
    32, 12-16: about 95 % for a median), and what whole-number SOC does to each value, ±1/ΔSOC (4.5), as if
    independent between charges.
    """
    if not capacities_ah:
        return None
    values = np.asarray(capacities_ah, np.float64)
    n = len(values)
    p25, middle, p75 = (float(v) for v in np.percentile(values, (25, 50, 75)))
    scatter = 1.57 * (p75 - p25) / math.sqrt(n)
    rises = [rise for rise in soc_rises_pct if rise > 0]
    rounding = middle * float(np.median([1.0 / rise for rise in rises])) / math.sqrt(n) if rises else 0.0
    return Capacity(middle, p25, p75, n, math.hypot(scatter, rounding))


# -- verdicts ----------------------------------------------------------------------------------------
class Insulation(StrEnum):
    GOOD = "good"
    WARNING = "warning"  # below 500 Ω/V
    FAULT = "fault"  # below 100 Ω/V
    NOT_MEASURED = "not_measured"  # one constant value, or pinned at the field's maximum
    NO_DATA = "no_data"


def insulation_measured(daily_minima_kohm: Sequence[float]) -> bool:
    """False when the values tell of no measurement: all at the field's maximum, or constant for 60 days (4.9)."""
    if not daily_minima_kohm:
        return False
    low, high = min(daily_minima_kohm), max(daily_minima_kohm)
    return not (low >= INSULATION_MAX_KOHM or (low == high and len(daily_minima_kohm) >= INSULATION_CONSTANT_DAYS))


def insulation_verdict(ohm_per_v: float | None) -> Insulation:
    """Of a resistance per volt that has been held (4.9 [A]); packs under 60 V have none and get no verdict."""
    if ohm_per_v is None:
        return Insulation.NO_DATA
    if ohm_per_v < INSULATION_FAULT:
        return Insulation.FAULT
    return Insulation.WARNING if ohm_per_v < INSULATION_WARN else Insulation.GOOD


def outlier_day(outlier_rows: int | None, usable_rows: int | None, deviation_mv: float | None) -> bool:
    """Whether a cell counts as outlier on a day: in half of the usable rows, and 10 mV from the median (4.7 [P])."""
    if not usable_rows or outlier_rows is None or deviation_mv is None:
        return False
    return outlier_rows >= OUTLIER_SHARE * usable_rows and abs(deviation_mv) >= OUTLIER_MV
