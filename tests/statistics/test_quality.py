"""Completeness and verification: the numbers of the rules (3.2 to 3.4), and the edges around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schemas.signals import INDEX as SIGNAL
from schemas.signals import State
from schemas.statistics.measures import CHECKS
from schemas.statistics.records import DAY_ENDS, FIELDS, KIND_LOGOUT, KIND_REPORT, NO_CELL, Records
from services.statistics import quality
from services.statistics.quality_layout import MODES, NOMINAL_S, SEEN
from tests.statistics.make_records import COLUMN, DAY, MIDNIGHT, Run, chosen, cut, joined, same, series

NOON = MIDNIGHT + 12 * 3600
WHOLE = {
    "vehicle_state": 1.0, "charge_state": 3.0, "run_mode": 1.0, "speed_kmh": 60.0, "odometer_km": 1000.0,
    "total_voltage_v": 350.0, "total_current_a": 20.0, "soc_pct": 50.0, "dcdc_state": 1.0, "gear": 14.0,
    "insulation_resistance_kohm": 5000.0,
}  # fmt: skip


def folded(records: Records, **how: Any) -> Run:
    return Run(records, cut(records, **how)).fold(quality)


def sent(begin: float = 0, end: float = 3600, step: int = 10, **how: Any) -> Records:
    return series(NOON + np.arange(begin, end + step, step), **(WHOLE | how))


def check(run: Run, name: str, day: int = 0) -> tuple[int, int]:
    """How many were looked at, and how many failed."""
    at = CHECKS.index(name)
    return run.tally("check_total", day)[at], run.tally("check_failed", day)[at]


# -- 3.3: expected, missing, coverage ------------------------------------------------------------------------


def test_a_regular_hour_misses_nothing() -> None:
    day = folded(sent()).day()
    assert day["records"] == day["expected"] == 361
    assert (day["covered_s"], day["missing_s"], day["gap_s"]) == (3600, 0, 0)
    assert np.isnan(day["gap_max_s"])


def test_every_third_record_lost_is_a_third_missing() -> None:
    whole = sent(DAY, DAY + 3600)
    thinned = chosen(whole, np.arange(whole.n) % 3 != 1)
    day = folded(joined([sent(speed_kmh=0.0), thinned])).day(1)  # the day before set the interval
    assert day["expected"] == pytest.approx(361)
    assert 1 - day["records"] / day["expected"] == pytest.approx(120 / 361)
    assert day["missing_s"] == 120 * 10
    assert day["covered_s"] == 3600


def test_a_hole_while_running_is_due() -> None:
    day = folded(joined([sent(0, 600), sent(2400, 3000)])).day()
    assert day["expected"] == pytest.approx(301)
    assert (day["missing_s"], day["gap_s"], day["gap_max_s"], day["covered_s"]) == (1790, 1800, 1800, 1200)
    assert day["covered_s"] / (day["covered_s"] + day["gap_s"]) == pytest.approx(0.4)


def test_what_is_reissued_fills_the_hole() -> None:
    records = sent()
    late = records.time_s > NOON + 1800
    records.reissued[:] = late
    records.late[:] = late
    day = folded(records).day()
    assert day["records"] == day["expected"] == 361
    assert (day["reissued"], day["late"], day["missing_s"]) == (180, 180, 0)


@pytest.mark.parametrize(
    ("before", "odometer_km", "expected"),
    [
        ({"speed_kmh": 0.0}, 1000.0, 122),  # parked, and still there: two spans
        ({"speed_kmh": 0.0}, 1000.7, 361),  # it drove meanwhile
        ({"speed_kmh": 0.0}, 1000.6, 122),  # it woke up, and rolled until its next report was due
        ({"speed_kmh": 0.0}, np.nan, 122),
        ({"speed_kmh": 0.0, "charge_state": 1.0}, 1000.0, 361),  # a charging vehicle sends
        ({"speed_kmh": np.nan, "vehicle_state": 2.0}, 1000.0, 122),
        ({"speed_kmh": np.nan}, 1000.0, 361),
        ({}, 1000.0, 361),
    ],
)
def test_nothing_is_due_from_a_parked_vehicle(before: dict[str, float], odometer_km: float, expected: int) -> None:
    run = folded(joined([sent(0, 600, **before), sent(3000, 3600, odometer_km=odometer_km)]))
    assert run.day()["expected"] == pytest.approx(expected)


def test_nothing_is_due_after_a_logout() -> None:
    logout = series([NOON + 605], kind=KIND_LOGOUT)
    run = folded(joined([sent(0, 600), logout, sent(3000, 3600)]))
    day = run.day()
    assert (day["records"], day["expected"], day["missing_s"]) == (122, 122, 0)
    assert (day["rows"], day["gap_s"]) == (122, 2400)
    assert not np.isnan(run.gap_limit_s).any()
    back_at_once = folded(joined([sent(0, 600), logout, sent(620, 1200)])).day()
    assert back_at_once["expected"] == 61 + 59
    assert back_at_once["covered_s"] == 1200


def test_only_a_logout() -> None:
    run = folded(series([NOON, NOON + 5], kind=KIND_LOGOUT))
    day = run.day()
    assert day["records"] == day["expected"] == day["covered_s"] == 0
    assert run.gap_limit_s.tolist() == [120, 120]


def test_rows_and_repeats_are_counted() -> None:
    day = folded(sent(0, 90, rows=3, repeated=2, reissued=1)).day()
    assert (day["records"], day["rows"], day["repeated"], day["reissued"]) == (10, 30, 20, 10)


def test_an_interval_belongs_to_the_hour_it_ends_in() -> None:
    run = folded(sent(3595, 3615, 20))
    assert [run.hour(h)["expected"] for h in (0, 1)] == [1, 1]
    assert [run.hour(h)["covered_s"] for h in (0, 1)] == [0, 20]


# -- nominal interval and gap limit ---------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "limit"), [(1, 60), (10, 60), (15, 60), (20, 80), (30, 120), (60, 240), (90, 120)])
def test_gap_limit_on_the_first_day(step: int, limit: int) -> None:
    run = folded(sent(0, 3600, step))
    assert run.gap_limit_s[0] == 120  # nothing known: 30 s
    assert run.gap_limit_s[-1] == limit


def test_the_running_mode_prefers_the_shorter_of_equals() -> None:
    steps = [20, 30, 30, 20, 20]
    run = folded(series(NOON + np.cumsum([0, *steps]), **WHOLE))
    assert run.gap_limit_s.tolist() == [120, 80, 80, 120, 80, 80]


def test_nominal_is_the_usual_mode_of_seven_days() -> None:
    def day(number: int, step: int) -> Records:
        return sent(number * DAY, number * DAY + 3600, step)

    steps = [10, 10, 30, 30, 30, 10, 20, 20, 20, 20, 20]
    run = folded(joined([day(number, step) for number, step in enumerate(steps)]), last=DAY_ENDS)
    first = np.flatnonzero(np.diff(run.records.time_s, prepend=0) > 3600)
    # from the second day on: the days before decide, at most seven of them, the smaller of equals
    assert (run.gap_limit_s[first] / 4).tolist()[1:] == [15, 15, 15, 15, 30, 15, 15, 30, 20, 20]
    assert run.state["quality"][0, MODES:SEEN].tolist() == [30, 10, 20, 20, 20, 20, 20]
    assert run.state["quality"][0, NOMINAL_S] == 20


def test_days_without_an_interval_leave_no_mode() -> None:
    run = folded(joined([sent(), *(series([NOON + k * DAY], **WHOLE) for k in range(1, 12))]), last=DAY_ENDS)
    assert run.gap_limit_s[-1] == 60
    assert np.isnan(run.state["quality"][0, MODES : SEEN - 1]).all()


def test_a_late_burst_at_one_hertz_does_not_change_the_interval() -> None:
    run = folded(joined([sent(0, 3600), sent(3601, 3660, 1)]))
    assert run.gap_limit_s[-1] == 60
    assert run.day()["missing_s"] == 0
    assert run.tally("interval_s")[10] == 360
    assert run.tally("interval_s")[1] == 60


# -- fields ---------------------------------------------------------------------------------------------------


def test_fields_with_a_value_and_fields_with_a_code() -> None:
    records = sent(
        0, 40,
        flaws=[
            (1, SIGNAL["soc_pct"], State.INVALID), (1, SIGNAL["speed_kmh"], State.ABNORMAL),
            (2, SIGNAL["soc_pct"], State.OUT_OF_RANGE), (3, SIGNAL["soc_pct"], State.SUSPECT),
            (3, SIGNAL["motor_no"], State.INVALID), (4, 250, State.INVALID),
        ],
    )  # fmt: skip
    records.x[1, COLUMN["speed_kmh"]] = np.nan
    records.x[1:3, COLUMN["soc_pct"]] = np.nan
    run = folded(records)
    valid = dict(zip(FIELDS, run.tally("field_valid"), strict=True))
    flawed = dict(zip(FIELDS, run.tally("field_flawed"), strict=True))
    assert (valid["soc_pct"], valid["speed_kmh"], valid["gear"], valid["cell_max_v"]) == (3, 4, 5, 0)
    assert {name: count for name, count in flawed.items() if count} == {"soc_pct": 2, "speed_kmh": 1}
    assert check(run, "mandatory_fields") == (5, 2)


def test_a_record_without_the_vehicle_block_is_not_asked_for_it() -> None:
    run = folded(series(NOON + np.arange(5), probe_max_c=20.0, alarm_level=0.0))
    assert check(run, "mandatory_fields") == (0, 0)
    wrong = folded(series([NOON], flaws=[(0, SIGNAL["gear"], State.INVALID)]))
    assert check(wrong, "mandatory_fields") == (1, 1)


# -- 3.4 ------------------------------------------------------------------------------------------------------


def test_list_sizes_that_change() -> None:
    cells = [[3600] * n for n in (96, 96, 95, 96, 0, 96)]
    probes = [[20] * n for n in (24, 24, 24, 24, 24, 23)]
    assert check(folded(sent(0, 50, cells_mv=cells, probes_c=probes)), "list_sizes") == (6, 3)


@pytest.mark.parametrize(
    ("highest", "lowest", "total", "failed"),
    [(3.705, 3.595, 1, 0), (3.706, 3.6, 1, 1), (3.7, 3.594, 1, 1), (np.nan, np.nan, 0, 0), (np.nan, 3.6, 1, 0)],
)
def test_reported_extremes_against_the_list(highest: float, lowest: float, total: int, failed: int) -> None:
    run = folded(
        series([NOON], cells_mv=[[NO_CELL, 3650, 3700, 3600]], max_cell_voltage_v=highest, min_cell_voltage_v=lowest)
    )
    assert check(run, "extremes") == (total, failed)


@pytest.mark.parametrize(
    ("volts", "cells", "pack_cells", "total", "failed"),
    [
        (360.0, [3600] * 100, 100, 1, 0), (353.0, [3600] * 100, np.nan, 1, 0), (352.9, [3600] * 100, 100, 1, 1),
        (367.4, [3600] * 100, 100, 1, 1), (360.0, [*[3600] * 99, NO_CELL], 100, 0, 0), (360.0, [3600] * 50, 100, 0, 0),
        (np.nan, [3600] * 100, 100, 0, 0), (0.0, [3600] * 100, 100, 0, 0),
    ],
)  # fmt: skip
def test_pack_voltage_against_the_sum(
    volts: float, cells: list[int], pack_cells: float, total: int, failed: int
) -> None:
    run = folded(series([NOON], cells_mv=[cells], total_voltage_v=volts, pack_cell_total=pack_cells))
    assert check(run, "pack_voltage") == (total, failed)


@pytest.mark.parametrize(
    ("second", "failed"), [(1000.0, 0), (1001.6, 0), (1001.7, 1), (999.9, 1), (np.nan, None), (0.0, None)]
)
def test_odometer_never_falls_nor_jumps(second: float, failed: int | None) -> None:
    run = folded(sent(0, 10, odometer_km=[1000.0, second]))  # 220 km/h for 10 s are 0.61 km, and 1 km more
    assert check(run, "odometer") == ((0, 0) if failed is None else (1, failed))


@pytest.mark.parametrize(
    ("dt", "soc", "result"), [(60, 55, (1, 0)), (60, 56, (1, 1)), (60, 44, (1, 1)), (61, 90, (0, 0))]
)
def test_soc_steps(dt: int, soc: float, result: tuple[int, int]) -> None:
    assert check(folded(sent(0, dt, dt, soc_pct=[50.0, soc])), "soc_steps") == result


def test_charging_current_and_its_sign() -> None:
    amps = [-60.0, -0.1, 0.0, 1.0, 1.1, np.nan, 20.0]
    states = [1.0] * 6 + [3.0]
    run = folded(sent(0, 60, charge_state=states, total_current_a=amps))
    assert check(run, "charging_current") == (5, 3)
    assert run.tally("charging_sign") == [5, 1]
    inverted = folded(sent(0, 60, charge_state=states, total_current_a=amps), sign=-1.0)
    assert inverted.tally("charging_sign") == [5, 1]  # of what the vehicle sent: -60 A here was +60 A there
    assert check(inverted, "charging_current") == (5, 3)


@pytest.mark.parametrize(("scale", "failed"), [(1.0, 0), (0.92, 0), (0.88, 1), (1.12, 1)])
def test_distance_by_odometer_and_by_position(scale: float, failed: int) -> None:
    t = np.arange(361)
    km = t * 10 / 60
    per_degree = 6371.0088 * np.pi / 180 * np.cos(np.radians(40))
    where = {"longitude_deg": 116 + scale * km / per_degree, "latitude_deg": 40.0, "location_valid": 1.0}
    run = folded(sent(odometer_km=np.floor(km * 10) / 10 + 500, **where))
    assert check(run, "distance") == (1, failed)
    assert check(folded(sent(odometer_km=np.floor(km) + 500, **where)), "distance") == (1, failed)
    assert check(folded(sent(odometer_km=km / 4 + 500, **where)), "distance") == (0, 0)  # 15 km: not judged
    assert check(folded(sent(odometer_km=km + 500, **(where | {"location_valid": 0.0}))), "distance") == (0, 0)


def test_a_wandering_fix_at_standstill_is_no_distance() -> None:
    rng = np.random.default_rng(1)
    km = np.arange(361) * 10 / 60
    east = np.concatenate([116 + km / 85.4, 116 + km[-1] / 85.4 + rng.normal(0, 1e-3, 361)])
    parts = joined([
        sent(odometer_km=km + 500, longitude_deg=east[:361], latitude_deg=39.83),
        sent(3610, 7210, odometer_km=km[-1] + 500, speed_kmh=0.0, longitude_deg=east[361:], latitude_deg=39.83),
    ])  # fmt: skip
    assert check(folded(parts), "distance") == (1, 0)


@pytest.mark.parametrize(("late_us", "failed"), [(0, 0), (-60_000_000, 0), (-60_000_001, 1), (10**12, 0)])
def test_clock(late_us: int, failed: int) -> None:
    assert check(folded(series([NOON], late_us=late_us)), "clock") == (1, failed)


# -- edges ----------------------------------------------------------------------------------------------------


def test_records_that_tell_nothing_are_records() -> None:
    run = folded(series(NOON + np.arange(0, 3610, 10)))
    day = run.day()
    assert day["records"] == day["expected"] == 361
    assert run.tally("field_valid") == [0] * len(FIELDS)
    assert [check(run, name)[0] for name in CHECKS if name != "clock"] == [0] * 8


def test_a_peek_changes_nothing_that_a_days_end_does_not() -> None:
    records = joined([sent(), sent(DAY, DAY + 3600)])
    a, b = folded(records, last=DAY_ENDS), folded(records)
    assert same(a.hours, b.hours)
    assert same(a.tallies, b.tallies)


def test_two_histories_that_end_alike_leave_the_same_state() -> None:
    """What a recompute needs to stop."""
    later = [sent(k * DAY, k * DAY + 600, odometer_km=2000.0) for k in range(1, 9)]
    a = folded(joined([sent(0, 600), *later]), last=DAY_ENDS)
    b = folded(joined([sent(0, 3600, 30, soc_pct=20.0), *later]), last=DAY_ENDS)
    assert same(a.state["quality"], b.state["quality"])


def test_vehicles_do_not_mix() -> None:
    both = folded(joined([sent(kind=KIND_REPORT), sent(0, 600, 30, vehicle=1)]))
    alone = folded(sent(0, 600, 30))
    assert both.hour(2)["expected"] == alone.hour(0)["expected"]
    assert same(both.tallies[1], alone.tallies[0])
