"""What reports are checked against: every threshold of the system, in one place, each with its source.

``CHECKS`` look at one report and mark its signals ``SUSPECT`` as it is stored (``services.pipeline.validate``).
``RATES`` compare a report with the vehicle's one before.  Which one that is can still change, as long as late
reports may come, so these marks are no part of the row: they are worked out from the rows that are there, by
the SQL function ``rate_flaws``, whose thresholds are this table, written into ``rate_limits`` by the migrations.
Ranges of single fields are the standard's own, in ``schemas/gbt32960/edition*.py``; clocks are settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Rule(IntEnum):
    """How a check compares ``a`` (and ``b``) with its threshold."""

    ABOVE = 0  # a > threshold
    EXCEEDS = 1  # a - b > threshold
    DIFFERS = 2  # |a - b| > threshold
    DIFFERS_PERMILLE = 3  # |a - b| > threshold/1000 * |b|


class Lists(IntEnum):
    """Which lists of the report must be complete and valid before a check may speak."""

    NONE = 0
    CELLS = 1  # every cell of every pack listed is in this report, and valid
    ONE_PACK = 2  # CELLS, and there is exactly one pack
    PROBES = 3  # every probe listed is valid


@dataclass(frozen=True, slots=True)
class Check:
    """One contradiction: when it holds, ``a`` (and ``b``, unless derived by the decoder) become SUSPECT.

    threshold in ``unit`` · only_if (signal, value): the check is silent unless that signal is valid
    and has that value; it is marked as well, being one side of the contradiction.
    """

    name: str
    rule: Rule
    a: str
    b: str | None
    threshold: float
    unit: str
    lists: Lists
    only_if: tuple[str, int] | None
    source: str


CHECKS: Final[tuple[Check, ...]] = (
    Check("pack_voltage_against_cell_sum", Rule.DIFFERS_PERMILLE, "pack_voltage_v", "cell_sum_v", 20, "‰",
          Lists.ONE_PACK, None, "series connection; 2 % covers 0.1 V steps, 1 mV steps and sampling skew of a second"),
    Check("highest_cell_against_list", Rule.DIFFERS, "max_cell_voltage_v", "cell_max_v", 0.005, "V",
          Lists.CELLS, None, "2016 table 16 against table B.6; 5 steps of 1 mV"),
    Check("lowest_cell_against_list", Rule.DIFFERS, "min_cell_voltage_v", "cell_min_v", 0.005, "V",
          Lists.CELLS, None, "2016 table 16 against table B.6; 5 steps of 1 mV"),
    Check("highest_probe_against_list", Rule.DIFFERS, "max_temp_c", "probe_max_c", 1, "°C",
          Lists.PROBES, None, "2016 table 16 against table B.8; one step of 1 °C"),
    Check("lowest_probe_against_list", Rule.DIFFERS, "min_temp_c", "probe_min_c", 1, "°C",
          Lists.PROBES, None, "2016 table 16 against table B.8; one step of 1 °C"),
    Check("lowest_cell_above_highest", Rule.EXCEEDS, "min_cell_voltage_v", "max_cell_voltage_v", 0, "V",
          Lists.NONE, None, "2016 table 16"),
    Check("lowest_probe_above_highest", Rule.EXCEEDS, "min_temp_c", "max_temp_c", 0, "°C",
          Lists.NONE, None, "2016 table 16"),
    Check("lowest_supercap_cell_above_highest", Rule.EXCEEDS, "supercap_min_cell_voltage_v",
          "supercap_max_cell_voltage_v", 0, "V", Lists.NONE, None, "2025 table 26"),
    Check("lowest_supercap_probe_above_highest", Rule.EXCEEDS, "supercap_min_temp_c", "supercap_max_temp_c", 0, "°C",
          Lists.NONE, None, "2025 table 26"),
    Check("discharge_while_charging", Rule.ABOVE, "total_current_a", None, 1, "A",
          Lists.NONE, ("charge_state", 1), "state 1: parked charging, its current is negative; 1 A covers offset"),
    Check("moving_while_parked_charging", Rule.ABOVE, "speed_kmh", None, 0, "km/h",
          Lists.NONE, ("charge_state", 1), "charge state 1 is parked charging"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rate:
    """A signal may rise and fall by so much a second, and by ``slack`` whatever the time, between two reports.

    Compared are the values of a vehicle's reports that follow each other in collection time and are at most
    ``gap_max_s`` apart, on one UTC day, both of them above ``above`` (None: any).  All in the signal's unit.
    """

    signal: str
    rises_per_s: float
    falls_per_s: float
    slack: float
    gap_max_s: int
    above: float | None
    source: str


_BRAKING: Final = "tyres hold about 1.2 g, 42 km/h a second; 50 leaves room for the sampling of a second"
_PACK_TEMP: Final = (
    "cells weigh too much for more: thermal runaway is called at 1 °C a second (GB 38031 annex C) and is meant to pass "
    "up to ten times that; slack 2 covers steps of 1 °C"
)
_MOTOR_TEMP: Final = "windings and power modules heat by a few °C a second at peak load; slack 2 covers steps of 1 °C"

RATES: Final[tuple[Rate, ...]] = (
    Rate("speed_kmh", 50, 50, 1, 60, None, _BRAKING),
    Rate("odometer_km", 0.14, 0, 0.2, 86_400, None,
         "500 km/h is the largest speed of either edition (2025 table 11); it never falls; slack: two steps of 0.1 km"),
    Rate("soc_pct", 0.5, 0.5, 2, 600, None,
         "18 C, three times the fastest charge there is; slack 2 covers steps of 1 % and small recalibrations"),
    Rate("total_voltage_v", 100, 100, 20, 60, 60,
         "a pack sags by a tenth in a second at its power limit; below 60 V (class A, GB 18384) contactors are open"),
    Rate("max_temp_c", 10, 10, 2, 60, None, _PACK_TEMP),
    Rate("min_temp_c", 10, 10, 2, 60, None, _PACK_TEMP),
    Rate("probe_max_c", 10, 10, 2, 60, None, _PACK_TEMP),
    Rate("probe_min_c", 10, 10, 2, 60, None, _PACK_TEMP),
    Rate("motor_temp_c", 20, 20, 2, 60, None, _MOTOR_TEMP),
    Rate("motor_controller_temp_c", 20, 20, 2, 60, None, _MOTOR_TEMP),
)  # fmt: skip
