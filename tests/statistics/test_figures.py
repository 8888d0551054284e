"""Figures that are derived when asked: one row per fact of the rules."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from schemas.statistics import figures
from schemas.statistics.figures import Insulation, Speed


@pytest.mark.parametrize(
    ("energy", "distance", "expected"),
    [
        (7.0, 60.0, 11.6667),  # 350 V, 20 A, 60 km/h for an hour (4.3)
        (14.0, 120.0, 11.6667),  # and over 120 covered km of a drive with an hour of silence in it
        (-1.0, 2.0, -50.0),  # downhill
        (1.0, 0.99, None),
        (None, 60.0, None),
        (7.0, None, None),
    ],
)
def test_consumption(energy: float | None, distance: float | None, expected: float | None) -> None:
    found = figures.per_100km(energy, distance)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-4))


def test_a_ratio_without_a_denominator_is_unknown_and_never_nought() -> None:
    assert figures.ratio(0.0, 0.0) is None
    assert figures.ratio(None, 1.0) is None
    assert figures.ratio(1.0, None) is None
    assert figures.ratio(0.0, 2.0) == 0.0


@pytest.mark.parametrize(
    ("kw", "coverage", "battery", "speed", "for_want_of"),
    [
        (21.0, 1.0, 52.5, Speed.FAST, None),  # the rules' test (4.4)
        (21.0, 1.0, None, Speed.FAST, None),  # 20 kW are fast for any battery
        (20.0, 0.5, None, Speed.FAST, None),
        (19.99, 1.0, 52.5, Speed.SLOW, None),
        (19.99, 1.0, None, Speed.UNKNOWN, "battery_kwh"),
        (3.3, 1.0, 11.0, Speed.FAST, None),  # 0.3 per hour
        (3.3, 1.0, 11.1, Speed.SLOW, None),
        (7.0, 1.0, 20.0, Speed.SLOW, None),  # 0.35 per hour, but not a small battery
        (45.0, 0.49, 52.5, Speed.UNKNOWN, "coverage"),
        (None, 1.0, 52.5, Speed.UNKNOWN, "coverage"),
        (45.0, None, 52.5, Speed.UNKNOWN, "coverage"),
    ],
)
def test_fast_or_slow(
    kw: float | None, coverage: float | None, battery: float | None, speed: Speed, for_want_of: str | None
) -> None:
    assert figures.charge_speed(kw, coverage, battery) == (speed, for_want_of)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(14.9, 50, True), (15, 94, False), (50, 94.1, True), (None, 95, True), (14, None, True), (50, None, None),
     (None, 50, None)],
)  # fmt: skip
def test_deep(start: float | None, end: float | None, expected: bool | None) -> None:
    assert figures.deep(start, end) is expected


@pytest.mark.parametrize(
    ("measured", "start", "end", "battery", "expected"),
    [
        (7.0, 80, 66, 52.5, False),  # 7.35 by SOC
        (9.0, 80, 66, 52.5, True),
        (5.0, 66, 40, 52.5, True),
        (0.4, 80, 80, 52.5, False),  # no point of SOC gone: up to one may be
        (0.6, 80, 80, 52.5, True),
        (None, 80, 66, 52.5, None),
        (7.0, None, 66, 52.5, None),
        (7.0, 80, 66, None, None),
    ],
)
def test_two_estimates_of_a_trips_energy(
    measured: float | None, start: float | None, end: float | None, battery: float | None, expected: bool | None
) -> None:
    by_soc = figures.energy_by_soc(start, end, battery)
    assert figures.energies_differ(measured, by_soc, battery) is expected


# -- Theil-Sen ---------------------------------------------------------------------------------------
def slow_slopes(x: list[float], y: list[float]) -> list[float]:
    return sorted((y[j] - y[i]) / (x[j] - x[i]) for i in range(len(x)) for j in range(i) if x[i] != x[j])


def test_the_line_goes_through_points_that_lie_on_one() -> None:
    line = figures.theil_sen([0, 1000, 5000], [150.0, 149.9, 149.5])
    assert line is not None
    assert (line.slope, line.at_zero) == (pytest.approx(-1e-4), pytest.approx(150.0))
    assert (line.low, line.high) == (None, None), "three points bound nothing"


def test_the_line_is_the_median_of_all_slopes_and_shrugs_at_outliers() -> None:
    chance = random.Random(5)
    x = sorted(chance.uniform(0, 200_000) for _ in range(60))
    y = [150 - 1e-4 * odometer + chance.gauss(0, 0.5) for odometer in x]
    for wrong in (5, 17, 40):
        y[wrong] = 400.0
    line = figures.theil_sen(x, y)
    assert line is not None
    slopes = slow_slopes(x, y)
    assert line.slope == pytest.approx(statistics.median(slopes))
    assert line.at_zero == pytest.approx(statistics.median(v - line.slope * u for u, v in zip(x, y, strict=True)))
    assert line.low is not None
    assert line.high is not None
    assert line.low < -1e-4 < line.high
    # Kendall's bounds by hand: C = 1.96 √(n(n-1)(2n+5)/18) slopes between them
    reach = 1.959964 * math.sqrt(60 * 59 * 125 / 18)
    assert line.low == slopes[math.floor((1770 - reach) / 2) - 1]
    assert line.high == slopes[math.ceil((1770 + reach) / 2)]


def test_the_slope_agrees_with_a_textbook() -> None:
    """The cloud-seeding data of Hollander and Wolfe, Nonparametric Statistical Methods, chapter 9."""
    line = figures.theil_sen([1, 2, 3, 4, 5], [1.26, 1.27, 1.12, 1.16, 1.03])
    assert line is not None
    assert line.slope == pytest.approx(-0.05625)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1, 2], [1, 2]), ([7, 7, 7], [1, 2, 3])])
def test_too_little_for_a_line(x: list[float], y: list[float]) -> None:
    assert figures.theil_sen(x, y) is None


def test_many_points_are_thinned() -> None:
    n = 3 * figures.LINE_POINTS_MAX
    line = figures.theil_sen(list(range(n)), [150 - 0.01 * i for i in range(n)])
    assert line is not None
    assert (line.points, line.slope) == (figures.LINE_POINTS_MAX, pytest.approx(-0.01))


# -- capacity, cells, insulation ---------------------------------------------------------------------
def test_capacity_of_charges_with_its_error() -> None:
    found = figures.capacity_of([148.0, 150.0, 151.0, 152.0], [40, 40, 50, 50])
    assert found is not None
    assert (found.capacity_ah, found.charges) == (150.5, 4)
    assert (found.p25_ah, found.p75_ah) == (149.5, 151.25)
    rounding = 150.5 * (1 / 40 + 1 / 50) / 2 / 2
    assert found.error_ah == pytest.approx(math.hypot(1.57 * 1.75 / 2, rounding))
    assert figures.capacity_of([], []) is None


@pytest.mark.parametrize(
    ("ohm_per_v", "expected"),
    [(None, Insulation.NO_DATA), (99.9, Insulation.FAULT), (100, Insulation.WARNING), (499.9, Insulation.WARNING),
     (500, Insulation.GOOD)],
)  # fmt: skip
def test_insulation_floors(ohm_per_v: float | None, expected: Insulation) -> None:
    assert figures.insulation_verdict(ohm_per_v) is expected


@pytest.mark.parametrize(
    ("minima", "measured"),
    [([60_000.0, 60_000.0], False), ([65_000.0], False), ([2_500.0] * 59, True), ([2_500.0] * 60, False),
     ([2_500.0] * 80 + [2_400.0], True), ([], False)],
)  # fmt: skip
def test_values_that_never_move_are_no_measurement(minima: list[float], measured: bool) -> None:
    assert figures.insulation_measured(minima) is measured


@pytest.mark.parametrize(
    ("outlier", "usable", "deviation", "expected"),
    [(50, 100, -10.0, True), (49, 100, -50.0, False), (90, 100, 9.9, False), (0, 0, 50.0, False),
     (None, 100, 50.0, False), (100, 100, None, False)],
)  # fmt: skip
def test_a_cell_counts_on_a_day(
    outlier: int | None, usable: int | None, deviation: float | None, expected: bool
) -> None:
    assert figures.outlier_day(outlier, usable, deviation) is expected
