"""What is kept of a cohort and a period: figures that add up, counts of distinct vehicles, distributions.

A cohort is the vehicles of one model, fleet, region, usage, battery supplier, chemistry and edition. Every answer
about a fleet is a sum over cohorts, so it costs the same for a thousand vehicles and for a million. ``cohort_period``
has a column for each :class:`Scalar` (a test holds the DDL against this list), ``cohort_spread`` a row for each
:class:`Spread` that is not empty. Names and numbers here are stored: they are never given to something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from schemas.statistics.measures import CHECKS, RANGE_EDGES_MV
from schemas.statistics.records import FIELDS

DIMENSIONS: Final = ("model", "fleet", "region", "usage", "battery_supplier", "chemistry", "edition")

DAY, WEEK, MONTH, YEAR = "D", "W", "M", "Y"
SPANS: Final = (DAY, WEEK, MONTH, YEAR)

ADDED, DISTINCT, WEEKLY = "added", "distinct", "weekly"


@dataclass(frozen=True, slots=True)
class Scalar:
    """``how``: ADDED over days; DISTINCT: vehicles of the whole period, each once; WEEKLY: in rows of weeks only."""

    name: str
    how: str
    text: str
    unit: str = ""

    @property
    def sql(self) -> str:
        return "double precision" if self.unit else "bigint"


SCALARS: Final[tuple[Scalar, ...]] = (
    # data
    Scalar("vehicle_days", ADDED, "vehicle-days with data"),
    Scalar("online_days", ADDED, "vehicle-days with a real-time report"),
    Scalar("moved_days", ADDED, "vehicle-days with distance"),
    Scalar("on_change_days", ADDED, "vehicle-days of vehicles that send on change only: no missing rate"),
    Scalar("records", ADDED, "collection seconds with a report"),
    Scalar("rows", ADDED, "rows: reports, reissues, parts of split lists"),
    Scalar("reissued", ADDED, "rows that came as reissue"),
    Scalar("repeated", ADDED, "rows that repeat a second"),
    Scalar("late", ADDED, "rows that arrived more than 60 s after they were collected"),
    Scalar("duplicates", ADDED, "reports that were stored already"),
    Scalar("conflicts", ADDED, "reports of a second and kind that were stored already with other values"),
    Scalar("periodic_records", ADDED, "records of vehicles that send periodically"),
    Scalar("expected", ADDED, "records due from these", "records"),
    Scalar("missing_s", ADDED, "time without records in which some were due, of these", "s"),
    Scalar("covered_s", ADDED, "time between records no further apart than the gap limit", "s"),
    Scalar("gap_s", ADDED, "time between records further apart than that", "s"),
    # motion and energy
    Scalar("distance_km", ADDED, "rise of odometers, untracked_km included", "km"),
    Scalar("untracked_km", ADDED, "part of it that lies in gaps, without a trip", "km"),
    Scalar("driving_s", ADDED, "covered time driving", "s"),
    Scalar("charging_s", ADDED, "covered time charging at standstill", "s"),
    Scalar("parked_s", ADDED, "covered time neither driving nor charging", "s"),
    Scalar("consumption_km", ADDED, "distance over which consumption_kwh was used", "km"),
    Scalar("consumption_kwh", ADDED, "net energy out while not charging, in the same intervals", "kWh"),
    Scalar("out_kwh", ADDED, "energy out of batteries while driving", "kWh"),
    Scalar("regen_kwh", ADDED, "energy back into them while driving", "kWh"),
    Scalar("standing_kwh", ADDED, "net energy out while parked", "kWh"),
    Scalar("standing_s", ADDED, "covered time parked with voltage and current known", "s"),
    Scalar("standing_soc_pct", ADDED, "SOC points lost while parked", "%"),
    Scalar("standing_span_s", ADDED, "time over which these were lost", "s"),
    Scalar("charge_kwh", ADDED, "energy into batteries while charging", "kWh"),
    Scalar("certified_used_kwh", ADDED, "consumption_kwh of vehicles with a certified consumption", "kWh"),
    Scalar("certified_kwh", ADDED, "what these would have used at their certified consumption", "kWh"),
    Scalar("cycles", ADDED, "charge out of batteries in units of their rated capacity", "cycles"),
    Scalar("insulation_days", ADDED, "vehicle-days with an insulation resistance per volt that was measured"),
    Scalar("insulation_fault_days", ADDED, "of these, with less than 100 Ω/V at some time"),
    Scalar("insulation_warning_days", ADDED, "of these, with less than 500 Ω/V at some time"),
    # sessions, by the local day on which they start
    Scalar("trips", ADDED, "trips"),
    Scalar("trips_measured", ADDED, "trips with a distance"),
    Scalar("trip_km", ADDED, "their distance", "km"),
    Scalar("trip_s", ADDED, "duration of all trips", "s"),
    Scalar("trip_measured_s", ADDED, "duration of trips with a distance", "s"),
    Scalar("trip_moving_s", ADDED, "time with speed above 0 of trips with a distance", "s"),
    Scalar("charges", ADDED, "charges"),
    Scalar("charge_s", ADDED, "their duration", "s"),
    Scalar("charges_measured", ADDED, "charges with an energy"),
    Scalar("session_kwh", ADDED, "energy of these", "kWh"),
    Scalar("charges_soc", ADDED, "charges with SOC at both ends"),
    Scalar("soc_rise_pct", ADDED, "rise of SOC of these", "%"),
    Scalar("fast_charges", ADDED, "charges that are fast"),
    Scalar("slow_charges", ADDED, "charges that are slow; the others cannot be told"),
    Scalar("fast_kwh", ADDED, "energy of fast charges", "kWh"),
    Scalar("slow_kwh", ADDED, "energy of slow charges", "kWh"),
    Scalar("episodes", ADDED, "alarm episodes of standard flags and platform rules"),
    Scalar("serious_episodes", ADDED, "of these, of level 2 or 3"),
    # vehicles
    Scalar("vehicles", DISTINCT, "vehicles with data"),
    Scalar("online_vehicles", DISTINCT, "vehicles with a real-time report"),
    Scalar("moved_vehicles", DISTINCT, "vehicles with distance"),
    Scalar("tripped_vehicles", DISTINCT, "vehicles with a trip"),
    Scalar("charged_vehicles", DISTINCT, "vehicles with a charge"),
    Scalar("active_vehicles", DISTINCT, "vehicles with a trip or a charge"),
    Scalar("alarmed_vehicles", DISTINCT, "vehicles with an alarm episode"),
    Scalar("insulation_fault_vehicles", DISTINCT, "vehicles with less than 100 Ω/V at some time"),
    Scalar("rated_vehicles", DISTINCT, "vehicles with data and a known rated capacity"),
    # weekly verification
    Scalar("checked_vehicles", WEEKLY, "vehicles with data in the week"),
    Scalar("passed_vehicles", WEEKLY, "of these, vehicles that pass every check"),
)  # fmt: skip
SCALAR: Final[dict[str, Scalar]] = {scalar.name: scalar for scalar in SCALARS}
assert len(SCALAR) == len(SCALARS), "names are unique"

# What vehicle_brief.flags says of a vehicle and a period, by bit.
DATA, ONLINE, MOVED, TRIPPED, CHARGED, ALARMED, INSULATION, RATED = (1 << bit for bit in range(8))
FLAGS_OF: Final[dict[str, int]] = {
    "vehicles": DATA, "online_vehicles": ONLINE, "moved_vehicles": MOVED, "tripped_vehicles": TRIPPED,
    "charged_vehicles": CHARGED, "active_vehicles": TRIPPED | CHARGED, "alarmed_vehicles": ALARMED,
    "insulation_fault_vehicles": INSULATION, "rated_vehicles": RATED,
}  # fmt: skip

# What a cohort stands at on an evening (``cohort_state``), not of a period.
STATES: Final[dict[str, str]] = {
    "seen_7": "accessed vehicles with data in the 7 days up to it",
    "seen_30": "the same for 30 days",
    "seen_90": "the same for 90 days",
    "frequent_vehicles": "vehicles with at least 10 episodes of level 2 or 3 in the 7 days up to it",
    "outlier_vehicles": "vehicles with a persistent outlier cell in the 30 days up to it",
    "outlier_cells": "persistent outlier cells in the 30 days up to it",
}
FREQUENT_EPISODES, FREQUENT_DAYS, FREQUENT_LEVEL = 10, 7, 2  # F3 [P]
OUTLIER_WINDOW_DAYS: Final = 30

# Bins of a distribution.
LOG = "log"  # schemas.statistics.sketch.bin_of
POINTS = "points"  # whole units: bin = value, rounded down
HOURS = "hours"  # of the week: (ISO weekday - 1) * 24 + hour, local
NUMBERED = "numbered"  # positions of a list of names or of classes
CODES = "codes"  # of alarm episodes: :func:`episode_bin`


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution. ``over``: what is counted. ``how``: as of Scalar, DISTINCT being one value a vehicle and period.

    ``first``, ``width``: of the classes of NUMBERED bins that have a unit.
    """

    id: int
    name: str
    bins: str
    over: str
    unit: str
    text: str
    how: str = ADDED
    labels: tuple[str, ...] = ()
    first: float = 0.0
    width: float = 0.0


_DAYS, _TRIPS, _CHARGES = "vehicle-days", "trips", "charges"
SPREADS: Final[tuple[Spread, ...]] = (
    Spread(1, "day_km", LOG, _DAYS, "km", "distance of a day, days without left out"),
    Spread(2, "day_kwh_per_100km", LOG, _DAYS, "kWh/100 km", "consumption of a day, at least 1 km"),
    Spread(3, "day_regen_pct", LOG, _DAYS, "%", "energy in ÷ energy out while driving"),
    Spread(4, "day_certified_pct", LOG, _DAYS, "%", "consumption ÷ certified consumption"),
    Spread(5, "day_missing_pct", LOG, _DAYS, "%", "missing records of periodic vehicles"),
    Spread(6, "rest_p50_mv", LOG, _DAYS, "mV", "median of cell ranges at rest"),
    Spread(7, "rest_p95_mv", LOG, _DAYS, "mV", "95 % quantile of cell ranges at rest"),
    Spread(8, "driving_p50_mv", LOG, _DAYS, "mV", "median of cell ranges while driving"),
    Spread(9, "driving_p95_mv", LOG, _DAYS, "mV", "95 % quantile of cell ranges while driving"),
    Spread(10, "charge_end_p50_mv", LOG, _DAYS, "mV", "median of cell ranges in the last 5 min of charges"),
    Spread(11, "charge_end_p95_mv", LOG, _DAYS, "mV", "95 % quantile of cell ranges in the last 5 min of charges"),
    Spread(12, "insulation_kohm", LOG, _DAYS, "kΩ", "lowest insulation resistance of a day"),
    Spread(13, "insulation_ohm_per_v", LOG, _DAYS, "Ω/V", "lowest insulation resistance per volt of a day"),
    Spread(14, "day_standing_w", LOG, _DAYS, "W", "net power out while parked"),
    Spread(20, "trip_km", LOG, _TRIPS, "km", "distance"),
    Spread(21, "trip_min", LOG, _TRIPS, "min", "duration"),
    Spread(22, "trip_kmh", LOG, _TRIPS, "km/h", "mean speed, stops included"),
    Spread(23, "trip_moving_kmh", LOG, _TRIPS, "km/h", "mean speed, stops left out"),
    Spread(24, "trip_start_soc_pct", POINTS, _TRIPS, "%", "SOC at start"),
    Spread(25, "trip_end_soc_pct", POINTS, _TRIPS, "%", "SOC at end"),
    Spread(26, "trip_starts", HOURS, _TRIPS, "", "starts by hour of the week"),
    Spread(27, "driving_hours", HOURS, "seconds", "s", "driving time by hour of the week"),
    Spread(30, "charge_min", LOG, _CHARGES, "min", "duration"),
    Spread(31, "charge_kwh", LOG, _CHARGES, "kWh", "energy"),
    Spread(32, "charge_soc_rise_pct", POINTS, _CHARGES, "%", "rise of SOC"),
    Spread(33, "charge_start_soc_pct", POINTS, _CHARGES, "%", "SOC at start"),
    Spread(34, "charge_end_soc_pct", POINTS, _CHARGES, "%", "SOC at end"),
    Spread(35, "charge_starts", HOURS, _CHARGES, "", "starts by hour of the week"),
    Spread(36, "charge_hours", HOURS, "Wh", "Wh", "energy by hour of the week"),
    Spread(40, "field_valid", NUMBERED, "records", "", "records with a value", labels=FIELDS),
    Spread(41, "field_flawed", NUMBERED, "rows", "", "rows with a flawed code", labels=FIELDS),
    Spread(42, "temp_driving", NUMBERED, "records", "°C", "hottest probe while driving", first=-40, width=5),
    Spread(43, "temp_charging", NUMBERED, "records", "°C", "hottest probe while charging", first=-40, width=5),
    Spread(44, "spread_driving", NUMBERED, "records", "°C", "probe spread while driving", width=1),
    Spread(45, "spread_charging", NUMBERED, "records", "°C", "probe spread while charging", width=1),
    Spread(50, "episodes", CODES, "episodes", "", "alarm episodes by source, code and level"),
    Spread(51, "acknowledged_min", LOG, "episodes", "min", "start to acknowledged"),
    Spread(52, "closed_min", LOG, "episodes", "min", "start to closed"),
    Spread(53, "handling", NUMBERED, "episodes", "", "what became of episodes of level 2 or 3",
           labels=("raised", "acknowledged", "acknowledged_in_time", "closed", "closed_in_time")),
    Spread(60, "vehicle_km", LOG, "vehicles", "km", "distance of a vehicle in the period", DISTINCT),
    Spread(61, "vehicle_charges", LOG, "vehicles", "charges", "charges of a vehicle in the period", DISTINCT),
    Spread(62, "vehicle_cycles", LOG, "vehicles", "cycles", "equivalent cycles of a vehicle in the period", DISTINCT),
    Spread(63, "capacity_ah", LOG, "vehicles", "Ah", "capacity: newest month of the period", DISTINCT),
    Spread(64, "soh_pct", LOG, "vehicles", "%", "capacity ÷ rated capacity: newest month of the period", DISTINCT),
    Spread(70, "check_judged", NUMBERED, "vehicles", "", "vehicles that a check could judge", WEEKLY, CHECKS),
    Spread(71, "check_failed", NUMBERED, "vehicles", "", "vehicles that failed it", WEEKLY, CHECKS),
)  # fmt: skip
SPREAD: Final[dict[str, Spread]] = {spread.name: spread for spread in SPREADS}
assert len(SPREAD) == len({spread.id for spread in SPREADS}) == len(SPREADS), "names and numbers are unique"
assert len(RANGE_EDGES_MV) == 128  # ranges of cells come here as quantiles of a day

ACKNOWLEDGE_MIN: Final = 15.0  # S8 [C]
CLOSE_WORKING_DAYS: Final = 10  # S8 [C]: Monday to Friday, no holidays

EDITION_CODES: Final = {"unknown": 0, "2016": 1, "2025": 2, "none": 3}  # none: JSON samples, of no edition


def episode_bin(source: int, code: int, level: int) -> int:
    """An episode's place in the distribution ``episodes``."""
    return source << 12 | code << 2 | level


def episode_of(position: int) -> tuple[int, int, int]:
    return position >> 12, position >> 2 & 1023, position & 3


# Weekly verification (3.4 [P]): the share of records or intervals that must be good, by check.
CHECK_SHARES: Final[dict[str, float]] = {
    "mandatory_fields": 0.95, "list_sizes": 1.0, "extremes": 0.99, "pack_voltage": 0.95, "odometer": 1.0,
    "soc_steps": 1.0, "charging_current": 0.95, "distance": 1.0, "clock": 1.0,
}  # fmt: skip
assert tuple(CHECK_SHARES) == CHECKS
