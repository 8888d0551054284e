"""The measures: every figure that is kept per vehicle and hour, and per vehicle and local day, once.

The kernels write them by position, the tables ``vehicle_hour`` and ``vehicle_day`` have a column each under the
same name (a test holds the DDL against this list), and the API describes them from here. A day is its hours
joined by ``op``, so nothing is counted twice and nothing by two rules. An interval between two records belongs to
the hour in which it ends: then a statistic never depends on what comes after its hour.

``by`` is the fold that writes it (``services/statistics``). Sources: section numbers of the project's statistics
rules; [P] marks a convention of this project where no standard fixes one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SUM, MIN, MAX, FIRST, LAST = "sum", "min", "max", "first", "last"
# An accumulator begins as: 0 for sum, NaN (nothing yet) for the others.


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. ``count``: a whole number. Energies are kWh at the battery, positive in the direction named."""

    name: str
    unit: str
    op: str
    by: str
    text: str
    count: bool = False


MEASURES: Final[tuple[Measure, ...]] = (
    # data (3.3)
    Measure("records", "", SUM, "quality", "collection seconds with a report", True),
    Measure("rows", "", SUM, "quality", "telemetry rows: reports, reissues, parts of split lists", True),
    Measure("reissued", "", SUM, "quality", "rows that came as reissue (0x03)", True),
    Measure("repeated", "", SUM, "quality", "rows that repeat a second that another row told of", True),
    Measure("late", "", SUM, "quality", "rows that arrived more than 60 s after they were collected", True),
    Measure("expected", "", SUM, "quality", "records due at the nominal interval while connected or running [P]"),
    Measure("missing_s", "s", SUM, "quality", "time without records in which some were due"),
    Measure("covered_s", "s", SUM, "quality", "time between records no further apart than the gap limit"),
    Measure("gap_s", "s", SUM, "quality", "time between records further apart than that"),
    Measure("gap_max_s", "s", MAX, "quality", "longest of these gaps"),
    Measure("cells_listed", "", MAX, "quality", "most cells in the lists of a record"),
    Measure("probes_listed", "", MAX, "quality", "most probes in the lists of a record"),
    # motion (4.1 to 4.3)
    Measure("distance_km", "km", SUM, "drive", "rise of the odometer, untracked_km included"),
    Measure("untracked_km", "km", SUM, "drive", "part of it that lies in gaps, those inside trips included"),
    Measure("odometer_falls", "", SUM, "drive", "falls of the odometer by more than 1 km", True),
    Measure("driving_s", "s", SUM, "drive", "covered time driving, short stops not included"),
    Measure("charging_s", "s", SUM, "drive", "covered time charging at standstill"),
    Measure("parked_s", "s", SUM, "drive", "covered time neither driving nor charging"),
    Measure("moving_s", "s", SUM, "drive", "covered time with speed above 0"),
    Measure("speed_max_kmh", "km/h", MAX, "drive", "highest speed"),
    Measure("consumption_km", "km", SUM, "drive", "distance over which consumption_kwh was used"),
    Measure("consumption_kwh", "kWh", SUM, "drive", "net energy out while not charging, in the same intervals (4.3)"),
    Measure("out_kwh", "kWh", SUM, "drive", "energy out of the battery while driving"),
    Measure("regen_kwh", "kWh", SUM, "drive", "energy back into it while driving"),
    Measure("standing_kwh", "kWh", SUM, "drive", "net energy out while parked"),
    Measure("standing_s", "s", SUM, "drive", "covered time parked with voltage and current known"),
    Measure("standing_soc_pct", "%", SUM, "drive", "SOC points lost from one parked record to the next, gaps included"),
    Measure("standing_span_s", "s", SUM, "drive", "time over which standing_soc_pct was lost"),
    Measure("charge_kwh", "kWh", SUM, "drive", "energy into the battery while charging"),
    Measure("discharge_ah", "Ah", SUM, "drive", "charge out of the battery, all covered intervals with net outflow"),
    Measure("charge_ah", "Ah", SUM, "drive", "charge into it while charging"),
    Measure("regen_ah", "Ah", SUM, "drive", "charge back into it while driving"),
    Measure("power_out_max_kw", "kW", MAX, "drive", "highest power out"),
    Measure("power_in_max_kw", "kW", MAX, "drive", "highest power in"),
    Measure("soc_first_pct", "%", FIRST, "drive", "first SOC"),
    Measure("soc_last_pct", "%", LAST, "drive", "last SOC"),
    Measure("soc_min_pct", "%", MIN, "drive", "lowest SOC"),
    Measure("soc_max_pct", "%", MAX, "drive", "highest SOC"),
    Measure("odometer_first_km", "km", FIRST, "drive", "first odometer reading"),
    Measure("odometer_last_km", "km", LAST, "drive", "last odometer reading"),
    Measure("trips_dropped", "", SUM, "drive", "runs of driving too short to be a trip (4.2)", True),
    Measure("charges_dropped", "", SUM, "drive", "runs of charging too small to be a charge (4.4)", True),
    # battery (4.7 to 4.9)
    Measure("temp_min_c", "°C", MIN, "battery", "lowest probe temperature"),
    Measure("temp_max_c", "°C", MAX, "battery", "highest probe temperature"),
    Measure("temp_spread_max_c", "°C", MAX, "battery", "largest difference between probes of one record"),
    Measure("temp_rise_max_c_per_min", "°C/min", MAX, "battery", "fastest rise of the hottest probe in 60 s"),
    Measure("cell_min_v", "V", MIN, "battery", "lowest cell voltage"),
    Measure("cell_max_v", "V", MAX, "battery", "highest cell voltage"),
    Measure("cell_range_max_mv", "mV", MAX, "battery", "largest difference between cells of one record"),
    Measure("cell_rows", "", SUM, "battery", "records usable for cell statistics (at most 5 cells missing)", True),
    Measure("insulation_min_kohm", "kΩ", MIN, "battery", "lowest insulation resistance"),
    Measure("insulation_min_ohm_per_v", "Ω/V", MIN, "battery", "lowest insulation per volt, pack at 60 V or more"),
    # alarms (5)
    Measure("alarm_s", "s", SUM, "alarms", "covered time with any standard flag or a level above 0"),
    Measure("alarm_level_max", "", MAX, "alarms", "highest alarm level"),
)  # fmt: skip

INDEX: Final[dict[str, int]] = {measure.name: position for position, measure in enumerate(MEASURES)}
assert len(INDEX) == len(MEASURES), "names are unique"


@dataclass(frozen=True, slots=True)
class Tally:
    """An array of whole numbers per vehicle and day: a histogram, or counts by position."""

    name: str
    size: int
    unit: str
    by: str
    text: str


# Bins of a range in millivolt: 0..63 by 1 mV, then each begins 4.5 % higher, up to 1 V and more
RANGE_BINS: Final = 128
RANGE_EDGES_MV: Final = (*range(64), *(round(64 * 1.045**step) for step in range(64)))  # where each bin begins
CHECKS: Final = (
    "mandatory_fields", "list_sizes", "extremes", "pack_voltage", "odometer", "soc_steps", "charging_current",
    "distance", "clock",
)  # fmt: skip  # weekly verification (3.4), in its order

TALLIES: Final[tuple[Tally, ...]] = (
    Tally("interval_s", 61, "", "quality", "intervals between records by whole seconds 0..60 (more: not counted)"),
    Tally("field_valid", 28, "", "quality", "records with a value, by field (schemas.statistics.records.FIELDS)"),
    Tally("field_flawed", 28, "", "quality", "rows with an abnormal, invalid or out-of-range code, by field"),
    Tally("check_total", 9, "", "quality", "records or intervals looked at, by check of 3.4"),
    Tally("check_failed", 9, "", "quality", "of these, how many failed"),
    Tally("charging_sign", 2, "", "quality", "records of parked charging: all; raw current above +1 A (3.2)"),
    Tally("soc_s", 10, "s", "drive", "covered time by SOC, ten points each (100 % in the last)"),
    Tally("temp_driving", 50, "", "battery", "records while driving by hottest probe, 5 °C each from -40"),
    Tally("temp_charging", 50, "", "battery", "records while charging by hottest probe, 5 °C each from -40"),
    Tally("spread_driving", 20, "", "battery", "records while driving by probe spread, 1 °C each, the last and more"),
    Tally("spread_charging", 20, "", "battery", "records while charging by probe spread, 1 °C each, the last and more"),
    Tally("range_rest", RANGE_BINS, "", "battery", "records at rest (|I| < 2 A for 300 s) by cell range"),
    Tally("range_driving", RANGE_BINS, "", "battery", "records while driving by cell range"),
    Tally("range_charge_end", RANGE_BINS, "", "battery", "records of the last 5 min of charges by cell range"),
    Tally("flag_s", 32, "s", "alarms", "covered time with a standard alarm flag set, by bit"),
)  # fmt: skip

TALLY_BEGIN: Final[dict[str, int]] = {}
_at = 0
for _tally in TALLIES:
    TALLY_BEGIN[_tally.name] = _at
    _at += _tally.size
TALLY_WIDTH: Final = _at


def range_quantile_mv(counts: Sequence[int], share: float) -> float | None:
    """The ``share`` quantile (0..1) of a tally of ranges, in mV: exact below 64 mV, else to about 2 %.

    None without a record. Of n records in order it is number ceil(share * n), at least the first.
    """
    wanted = max(1, math.ceil(share * sum(counts)))
    seen = 0
    for begin, end, count in zip(RANGE_EDGES_MV, (*RANGE_EDGES_MV[1:], RANGE_EDGES_MV[-1] + 1), counts, strict=True):
        seen += int(count)
        if seen >= wanted:
            return float(begin + end - 1) / 2
    return None
