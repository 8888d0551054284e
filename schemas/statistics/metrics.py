"""The fleet metrics A1 to P1 as data: definition, figures, source, and how sure the definition is.

A figure is ``factor * numerator / denominator + offset`` over sums of ``schemas.statistics.cohorts``, and None where
the denominator is 0 (never 0). Its distribution gives median and quantiles beside the mean, and ``over`` says of what:
a mean over trips is not the mean of vehicles' means. The API, the command line and the documentation are made from
this table; nothing about a metric is written elsewhere.

Tags: [A] the text was read, [B] two sources agree, [C] one source, [D] common knowledge, [P] this project's
convention. Sources S1... are those of the project's statistics rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from schemas.statistics.cohorts import SCALAR, SPREAD, STATES

# Besides scalars and states, expressions may name: accessed (vehicles at the window's end), joined and retired (in
# it), days and months (its length; a calendar month is 1, other windows days / 30.436875).
ACCESS: Final = ("accessed", "joined", "retired")
LENGTHS: Final = ("days", "months")
DAYS_PER_MONTH: Final = 365.2425 / 12
_TERM: Final = re.compile(r"([+-]?)\s*([a-z][a-z_0-9]*)(?:\s*\*\s*([a-z]+))?")


def terms(expression: str) -> list[tuple[int, str, str | None]]:
    """``a + b - c * days`` as (sign, name, name to multiply with)."""
    found, at = [], 0
    text = expression.replace(" ", "")
    while at < len(text):
        match = _TERM.match(text, at)
        assert match, f"not a sum of names: {expression}"
        found.append((-1 if match[1] == "-" else 1, match[2], match[3]))
        at = match.end()
    return found


def names_in(expression: str) -> set[str]:
    return {name for _, first, second in terms(expression) for name in (first, second) if name}


def evaluated(expression: str, values: Mapping[str, float]) -> float:
    return sum(sign * values[first] * (values[second] if second else 1) for sign, first, second in terms(expression))


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a metric.

    ``spread``: its distribution, from which come quantiles (times ``spread_factor`` plus ``spread_offset``), and the
    mean when there is no ``numerator``. ``histogram``: the distribution itself is the answer. ``mean``: of what
    ``value`` is the mean. ``least``: smaller values read as this. ``need``: smallest usable denominator.
    """

    name: str
    unit: str
    text: str
    numerator: str | None = None
    denominator: str | None = None
    factor: float = 1.0
    offset: float = 0.0
    least: float | None = None
    need: float = 0.0
    mean: str = ""
    spread: str | None = None
    spread_offset: float = 0.0
    histogram: str | None = None
    against: tuple[str, ...] = ()  # distributions whose sum a bin's share is of; none: of all bins together
    of_first: bool = False  # shares are of the first bin
    tag: str = ""

    @property
    def formula(self) -> str:
        """As people read it."""
        if self.histogram is not None:
            return f"distribution of {self.histogram}"
        if self.numerator is None:
            return f"mean of the distribution {self.spread}"
        text = self.numerator if self.denominator is None else f"({self.numerator}) / ({self.denominator})"
        text = text if self.factor == 1 else f"{self.factor:g} * {text}"
        text = text if not self.offset else f"{text} {'+' if self.offset > 0 else '-'} {abs(self.offset):g}"
        return text if self.least is None else f"max({self.least:g}, {text})"


@dataclass(frozen=True, slots=True)
class Metric:
    """``lists``: path of the list that belongs to it; ``elsewhere``: the path that answers it instead of figures."""

    id: str
    name: str
    definition: str
    source: str
    tag: str
    figures: tuple[Figure, ...]
    lists: str | None = None
    elsewhere: str | None = None
    note: str | None = None


def _pct(name: str, text: str, numerator: str, denominator: str, **more: object) -> Figure:
    return Figure(name, "%", text, numerator, denominator, 100.0, **more)  # type: ignore[arg-type]


_TRIP, _CHARGE, _DAY, _FLEET = "all trips", "all charges", "vehicle-days", "the fleet: ratio of sums"
_VEHICLE: Final = "vehicles with data"

METRICS: Final[tuple[Metric, ...]] = (
    Metric("A1", "accessed vehicles", "distinct vehicles ever registered or seen and not retired, at the window's end",
           "S3", "[A]", (
        Figure("accessed", "vehicles", "accessed at the window's end", "accessed"),
        Figure("new", "vehicles", "registered or first seen in the window", "joined"),
        Figure("retired", "vehicles", "retired in the window", "retired"),
    )),
    Metric("A2", "online rate", "vehicles with at least one real-time record in the window ÷ accessed vehicles at its "
           "end; the wording of the official definition was not seen", "S3, S4", "[P]", (
        _pct("online_rate", "vehicles with a real-time record ÷ accessed vehicles", "online_vehicles", "accessed"),
    )),
    Metric("A3", "active vehicles", "vehicles with at least one trip or one charge in the window", "S4", "[P]", (
        Figure("active", "vehicles", "with a trip or a charge", "active_vehicles"),
        Figure("with_trip", "vehicles", "with a trip", "tripped_vehicles"),
        Figure("with_charge", "vehicles", "with a charge", "charged_vehicles"),
        _pct("active_rate", "active ÷ accessed vehicles", "active_vehicles", "accessed"),
    )),
    Metric("A4", "long-offline vehicles", "accessed vehicles without data in the last 7, 30, 90 days up to the "
           "window's end, or up to the newest day counted", "S2", "[B]", (
        Figure("offline_7_days", "vehicles", "without data for 7 days or more", "accessed - seen_7"),
        Figure("offline_30_days", "vehicles", "without data for 30 days or more", "accessed - seen_30"),
        Figure("offline_90_days", "vehicles", "without data for 90 days or more", "accessed - seen_90"),
    ), lists="/v1/fleet/lists/offline"),
    Metric("Q1", "missing rate", "1 − received ÷ expected records while connected or running; vehicles that send on "
           "change only are exempt", "S3; 3.3 [P]", "[P]", (
        _pct("missing_rate", "records that were due and are missing", "expected - periodic_records", "expected",
             least=0.0, mean=_FLEET, spread="day_missing_pct"),
        Figure("missing_hours", "h", "time without records in which some were due", "missing_s", factor=1 / 3600),
        Figure("exempt_vehicle_days", "vehicle-days", "of vehicles that send on change only", "on_change_days"),
    )),
    Metric("Q2", "invalid-value rate", "fields holding an abnormal or invalid code, or out of range ÷ fields received, "
           "per field", "3.1", "[A]", (
        Figure("invalid_rate", "%", "by field", histogram="field_flawed", against=("field_flawed", "field_valid")),
    )),
    Metric("Q3", "duplicate, late, reissued", "records with a repeated (vehicle, time, type); arrival − data time > "
           "60 s; reissue command", "3.3", "[A]", (
        _pct("duplicate_rate", "reports that were stored already ÷ reports", "duplicates + conflicts",
             "rows + duplicates + conflicts"),
        _pct("repeated_rate", "rows that repeat a second of another row ÷ rows", "repeated", "rows"),
        _pct("late_rate", "rows that arrived more than 60 s late ÷ rows", "late", "rows"),
        _pct("reissued_rate", "rows that came as reissue ÷ rows", "reissued", "rows"),
    )),
    Metric("Q4", "verification pass rate", "vehicles passing all nine checks ÷ vehicles with data, by ISO week: of a "
           "day or week the week it lies in, of a longer window the vehicle-weeks of the weeks that end in it",
           "S3, S6; 3.4 [P]", "[P]", (
        _pct("pass_rate", "passed ÷ checked", "passed_vehicles", "checked_vehicles"),
        Figure("failed", "vehicles", "by check: failed ÷ those that it could judge", histogram="check_failed",
               against=("check_judged",)),
    ), lists="/v1/fleet/verification"),
    Metric("U1", "distance", "odometer, last − first valid of each segment (resets handled), untracked distance "
           "included", "S1, S4", "[A]", (
        Figure("distance_km", "km", "of all vehicles", "distance_km"),
        Figure("untracked_km", "km", "of it in gaps, without a trip", "untracked_km"),
        Figure("distance_per_vehicle_km", "km", "per vehicle with data", "distance_km", "vehicles", mean=_VEHICLE,
               spread="vehicle_km"),
    )),
    Metric("U2", "distance per vehicle-day", "Σ distance ÷ Σ vehicle-days on which the vehicle moved; and per accessed "
           "vehicle and day", "S4", "[A]", (
        Figure("distance_per_moved_day_km", "km/d", "per vehicle-day with distance", "distance_km", "moved_days",
               mean="vehicle-days with distance", spread="day_km"),
        Figure("distance_per_accessed_day_km", "km/d", "per accessed vehicle and day of the window", "distance_km",
               "accessed * days", mean="accessed vehicles × days"),
    )),
    Metric("U3", "trips", "trips by the day they start on: distance, duration, speed, SOC", "S4; 4.2 [P]", "[A]", (
        Figure("trips", "trips", "trips", "trips"),
        Figure("trip_distance_km", "km", "distance per trip", "trip_km", "trips_measured", mean=_TRIP,
               spread="trip_km"),
        Figure("trip_duration_min", "min", "duration per trip", "trip_s", "trips", 1 / 60, mean=_TRIP,
               spread="trip_min"),
        Figure("trip_speed_kmh", "km/h", "mean speed with stops: Σ distance ÷ Σ duration", "trip_km",
               "trip_measured_s", 3600.0, mean=_FLEET, spread="trip_kmh"),
        Figure("trip_moving_speed_kmh", "km/h", "mean speed without stops: Σ distance ÷ Σ time moving", "trip_km",
               "trip_moving_s", 3600.0, mean=_FLEET, spread="trip_moving_kmh"),
        Figure("trip_start_soc_pct", "%", "SOC at start", mean=_TRIP, spread="trip_start_soc_pct"),
        Figure("trip_end_soc_pct", "%", "SOC at end", mean=_TRIP, spread="trip_end_soc_pct"),
    )),
    Metric("U4", "driving by hour and weekday", "share of driving starts and of driving time by local hour of the "
           "week, 24 × 7", "S4", "[A]", (
        Figure("driving_starts", "share", "trips that start in the hour", histogram="trip_starts"),
        Figure("driving_time", "share", "driving time in the hour", histogram="driving_hours"),
    )),
    Metric("C1", "charges", "charges per vehicle-month; duration, energy, rise of SOC per charge, by the day they "
           "start on", "S4", "[A]", (
        Figure("charges", "charges", "charges", "charges"),
        Figure("charges_per_vehicle_month", "charges", "÷ (vehicles with data × months)", "charges",
               "vehicles * months", mean=_VEHICLE, spread="vehicle_charges", tag="[P]"),
        Figure("charge_duration_min", "min", "duration per charge", "charge_s", "charges", 1 / 60, mean=_CHARGE,
               spread="charge_min"),
        Figure("charge_energy_kwh", "kWh", "energy into the battery per charge", "session_kwh", "charges_measured",
               mean=_CHARGE, spread="charge_kwh"),
        Figure("charge_soc_rise_pct", "%", "rise of SOC per charge", "soc_rise_pct", "charges_soc", mean=_CHARGE,
               spread="charge_soc_rise_pct"),
    ), note="quantiles of charges_per_vehicle_month are of charges per vehicle in the window"),
    Metric("C2", "SOC at charge start and end", "histogram by ten points, mean, quantiles", "S4", "[A]", (
        Figure("charge_start_soc_pct", "%", "SOC at start", mean=_CHARGE, spread="charge_start_soc_pct",
               histogram="charge_start_soc_pct"),
        Figure("charge_end_soc_pct", "%", "SOC at end", mean=_CHARGE, spread="charge_end_soc_pct",
               histogram="charge_end_soc_pct"),
    )),
    Metric("C3", "fast share", "fast ÷ (fast + slow), by charges and by energy; charges that cannot be told are left "
           "out and counted", "S4; 4.4 [P]", "[P]", (
        _pct("fast_share", "of charges", "fast_charges", "fast_charges + slow_charges"),
        _pct("fast_energy_share", "of energy", "fast_kwh", "fast_kwh + slow_kwh"),
        Figure("unknown_charges", "charges", "neither can be told", "charges - fast_charges - slow_charges"),
    )),
    Metric("C4", "charging by hour", "share of charges by local hour of their start, and of energy by the hour it was "
           "drawn in", "S4", "[A]", (
        Figure("charge_starts", "share", "charges that start in the hour", histogram="charge_starts"),
        Figure("charge_energy", "share", "energy drawn in the hour", histogram="charge_hours"),
    )),
    Metric("E1", "consumption", "net battery energy while not charging ÷ distance, over the same covered intervals; "
           "battery side, without charger losses", "S1, S4; 4.3", "[A]", (
        Figure("consumption_kwh_per_100km", "kWh/100 km", "net, regeneration subtracted", "consumption_kwh",
               "consumption_km", 100.0, need=1.0, mean="the fleet: ratio of sums (weighted by distance)",
               spread="day_kwh_per_100km"),
        Figure("gross_kwh_per_100km", "kWh/100 km", "regeneration not subtracted", "consumption_kwh + regen_kwh",
               "consumption_km", 100.0, need=1.0, mean=_FLEET),
        Figure("standing_w", "W", "net power out while parked", "standing_kwh", "standing_s", 3.6e6, mean=_FLEET,
               spread="day_standing_w", tag="[P]"),
        Figure("standing_soc_pct_per_day", "%/d", "SOC points lost per day parked", "standing_soc_pct",
               "standing_span_s", 86400.0, mean=_FLEET, tag="[P]"),
        Figure("consumption_km", "km", "distance that this is of", "consumption_km"),
    )),
    Metric("E2", "regeneration ratio", "energy in while driving ÷ energy out while driving", "[P]", "[P]", (
        _pct("regeneration_ratio", "in ÷ out while driving", "regen_kwh", "out_kwh", mean=_FLEET,
             spread="day_regen_pct"),
    )),
    Metric("E3", "gap to certified", "consumption ÷ certified consumption − 1, of vehicles whose certified consumption "
           "is known; ask for it by model", "[P]", "[P]", (
        _pct("gap_to_certified", "consumption ÷ certified − 1", "certified_used_kwh", "certified_kwh", offset=-100.0,
             mean=_FLEET, spread="day_certified_pct", spread_offset=-100.0),
    )),
    Metric("F1", "alarm episodes", "episodes of standard flags and platform rules, by flag and level", "S7; section 5",
           "[A]", (
        Figure("episodes", "episodes", "all", "episodes"),
        Figure("serious_episodes", "episodes", "of level 2 or 3", "serious_episodes"),
        Figure("episodes_by_flag", "episodes", "by flag or rule and level", histogram="episodes"),
    )),
    Metric("F2", "alarm rate", "vehicles with an episode per 10,000 vehicles online; episodes per 10,000 km", "S4",
           "[P]", (
        Figure("alarmed_per_10000_vehicles", "1/10⁴", "vehicles with an episode ÷ vehicles online", "alarmed_vehicles",
               "online_vehicles", 1e4),
        Figure("episodes_per_10000_km", "1/10⁴ km", "episodes ÷ distance", "episodes", "distance_km", 1e4, need=1.0),
    )),
    Metric("F3", "frequent-alarm vehicles", "vehicles with at least 10 episodes of level 2 or 3 in the 7 days up "
           "to the window's end, or to the newest day counted", "S2", "[P]", (
        Figure("frequent", "vehicles", "with at least 10 episodes in 7 days", "frequent_vehicles"),
        _pct("frequent_rate", "÷ accessed vehicles", "frequent_vehicles", "accessed"),
    ), lists="/v1/fleet/lists/frequent-alarms"),
    Metric("F4", "handling time", "episode start → acknowledged → closed, episodes of level 2 or 3; in time: "
           "acknowledged within 15 min, closed within 10 working days (Monday to Friday)", "S8", "[C]", (
        Figure("acknowledged_min", "min", "start to acknowledged", mean="acknowledged episodes",
               spread="acknowledged_min"),
        Figure("closed_min", "min", "start to closed", mean="closed episodes", spread="closed_min"),
        Figure("handling", "episodes", "what became of them; shares are of all raised", histogram="handling",
               of_first=True),
    )),
    Metric("B1", "temperature distribution", "hottest probe by 5 °C and spread of probes by 1 °C, records while "
           "driving and while charging", "S4", "[A]", (
        Figure("temp_driving", "share", "hottest probe while driving", histogram="temp_driving"),
        Figure("temp_charging", "share", "hottest probe while charging", histogram="temp_charging"),
        Figure("spread_driving", "share", "probe spread while driving", histogram="spread_driving"),
        Figure("spread_charging", "share", "probe spread while charging", histogram="spread_charging"),
    )),
    Metric("B2", "capacity, SOH, equivalent cycles", "median capacity of a month's accepted charges, newest month of "
           "the window; ÷ rated capacity; charge out ÷ rated capacity", "S9, S10; 4.5, 4.6", "[A]", (
        Figure("capacity_ah", "Ah", "of vehicles", mean="vehicles with a capacity", spread="capacity_ah"),
        Figure("soh_pct", "%", "capacity ÷ rated capacity", mean="vehicles with capacity and rated capacity",
               spread="soh_pct"),
        Figure("cycles_per_vehicle", "cycles", "equivalent cycles in the window, unfloored", "cycles",
               "rated_vehicles", mean="vehicles with a rated capacity", spread="vehicle_cycles"),
    ), note="of a window shorter than a month: capacity and SOH of the months it touches"),
    Metric("B3", "cell spread and outlier cells", "difference between cells of a record: each vehicle-day's median and "
           "95 % quantile at rest, while driving, at charge end; persistent outliers in the 30 days up to the window's "
           "end", "S11, S12; 4.7", "[A]", (
        *(Figure(name, "mV", SPREAD[name].text, mean=_DAY, spread=name) for name in (
            "rest_p50_mv", "rest_p95_mv", "driving_p50_mv", "driving_p95_mv", "charge_end_p50_mv",
            "charge_end_p95_mv")),
        Figure("outlier_vehicles", "vehicles", "with a persistent outlier cell", "outlier_vehicles", tag="[P]"),
        Figure("outlier_cells", "cells", "persistent outlier cells", "outlier_cells", tag="[P]"),
    ), lists="/v1/fleet/lists/outlier-cells"),
    Metric("B4", "insulation floor", "lowest insulation of each vehicle-day; floor 100 Ω/V (DC), 500 Ω/V where an AC "
           "circuit is conductively joined; values at the field's maximum are not measurements", "S13", "[A]", (
        Figure("insulation_kohm", "kΩ", "lowest of a day", mean=_DAY, spread="insulation_kohm"),
        Figure("insulation_ohm_per_v", "Ω/V", "lowest of a day per volt", mean=_DAY, spread="insulation_ohm_per_v"),
        _pct("fault_share", "vehicle-days below 100 Ω/V", "insulation_fault_days", "insulation_days"),
        _pct("warning_share", "vehicle-days below 500 Ω/V", "insulation_warning_days", "insulation_days"),
        Figure("fault_vehicles", "vehicles", "below 100 Ω/V at some time", "insulation_fault_vehicles"),
    )),
    Metric("P1", "NEV and CAFC credit estimate", "from approval values of models and counts of vehicles; telemetry "
           "never enters", "S14-S24", "[B]", (), elsewhere="/v1/credits/fleet"),
)  # fmt: skip
METRIC: Final[dict[str, Metric]] = {metric.id: metric for metric in METRICS}
assert len(METRIC) == len(METRICS), "ids are unique"


def needs(metric: Metric) -> tuple[set[str], set[str]]:
    """Names of the sums, and of the distributions, that a metric is made of."""
    sums: set[str] = set()
    spreads: set[str] = set()
    for figure in metric.figures:
        for expression in (figure.numerator, figure.denominator):
            if expression is not None:
                sums |= names_in(expression)
        spreads |= {name for name in (figure.spread, figure.histogram, *figure.against) if name is not None}
    return sums, spreads


for _metric in METRICS:
    _sums, _spreads = needs(_metric)
    assert _sums <= SCALAR.keys() | STATES.keys() | {*ACCESS, *LENGTHS}, f"{_metric.id}: {_sums}"
    assert _spreads <= SPREAD.keys(), f"{_metric.id}: {_spreads}"
