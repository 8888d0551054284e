"""What the battery fold says of cells, temperatures, insulation, resistance and rests: the rules' own vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from schemas.statistics.measures import RANGE_EDGES_MV, range_quantile_mv
from schemas.statistics.records import CHARGING, DAY_ENDS, DRIVING, KIND_LOGOUT, NO_CELL, NO_PROBE, PARKED, PEEK
from services.statistics import battery
from services.statistics import battery_layout as b
from services.statistics.battery_twin import scores
from tests.statistics.make_records import DAY, MIDNIGHT, Run, cut, series

NOON = MIDNIGHT + DAY // 2
PACK = [3700] * 95 + [3650]  # 4.7's vector: 96 cells, the last 50 mV low


def fold(times: Any, mode: Any = PARKED, last: int = PEEK, gap_s: float = 60, **columns: Any) -> Run:
    records = series(times, **columns)
    run = Run(records, cut(records, last=last))
    run.gap_limit_s[:] = gap_s
    run.mode[:] = mode
    return run.fold(battery)


def every(step_s: int, count: int, start: int = NOON) -> list[int]:
    return [start + step_s * k for k in range(count)]


# -- cells (4.7)


def test_one_cell_of_96_is_50_mv_low() -> None:
    said = scores(PACK)
    assert said["range_mv"] == 50
    assert said["z"][95] == pytest.approx(-math.sqrt(95))  # -9.75: as far as z can be with 96 cells
    assert said["robust_z"] == [None] * 96  # MAD 0
    (found,) = fold(every(10, 6), cells_mv=[PACK] * 6).found("cell_outliers")
    assert (found["cell"], found["usable_rows"], found["z_rows"], found["robust_rows"]) == (96, 6, 6, 6)
    assert found["deviation_mv"] == -50
    assert math.isnan(found["settled_s"])
    assert found["start_s"] == MIDNIGHT


def test_all_cells_equal() -> None:
    assert scores([3700] * 96)["z"] == [None] * 96
    run = fold(every(10, 6), cells_mv=[[3700] * 96] * 6)
    assert run.found("cell_outliers") == []
    assert run.day()["cell_range_max_mv"] == 0
    assert run.day()["cell_rows"] == 6


@pytest.mark.parametrize(
    ("low_mv", "found"), [(3691, False), (3690, True), (3500, True)], ids=["9 mV", "10 mV", "200 mV"]
)
def test_ten_millivolt_are_the_least(low_mv: int, found: bool) -> None:
    assert bool(fold(every(10, 3), cells_mv=[[3700] * 95 + [low_mv]] * 3).found("cell_outliers")) is found


def test_two_bad_cells_mask_each_other_from_z_but_not_from_the_robust_form() -> None:
    cells = [3700, 3701, 3702, 3703, 3704, 3705, 3706, 3707, 3500, 3500]
    found = fold(every(10, 3), cells_mv=[cells] * 3).found("cell_outliers")
    assert [(one["cell"], one["z_rows"], one["robust_rows"]) for one in found] == [(9, 0, 3), (10, 0, 3)]


def test_z_alone_needs_eleven_cells() -> None:
    # spread so wide that the robust form says nothing; n = 10 cannot pass |z| 3, n = 12 can
    def rows(n: int) -> list[tuple[float, float]]:
        found = fold(every(10, 1), cells_mv=[[3700] * (n - 1) + [3600]]).found("cell_outliers")
        return [(one["z_rows"], one["robust_rows"]) for one in found]

    assert rows(10) == [(0, 1)]
    assert rows(12) == [(1, 1)]


@pytest.mark.parametrize(
    ("missing", "usable"), [([], 1), ([NO_CELL] * 5, 1), ([NO_CELL] * 6, 0), ([499], 1), ([4501] * 6, 0)]
)
def test_up_to_five_missing_cells_stay_missing(missing: list[int], usable: int) -> None:
    run = fold(every(10, 1), cells_mv=[[*missing, *[3700] * 40, 3650]])
    assert run.day()["cell_rows"] == usable
    found = run.found("cell_outliers")
    assert [one["cell"] for one in found] == [len(missing) + 41] * usable  # numbers count the missing ones
    if usable:
        assert run.day()["cell_min_v"] == 3.65  # 0.499 V and the sentinel are no lowest cell


def test_only_cells_that_stand_off_in_a_hundredth_of_the_records() -> None:
    once = [[*[3700] * 19, 3650]] + [[3700] * 20] * 99
    assert len(fold(every(10, 100), cells_mv=once).found("cell_outliers")) == 1
    assert fold(every(10, 101), cells_mv=[*once, [3700] * 20]).found("cell_outliers") == []


def test_no_more_cells_a_day_than_the_bound_the_worst_of_them() -> None:
    cells = np.full((20, 200), 3700)
    for c in range(50):
        cells[: 20 - c // 5, c] = 3600
    found = fold(every(10, 20), cells_mv=cells).found("cell_outliers")
    assert [one["cell"] for one in found] == list(range(1, b.OUTLIERS_MAX + 1))


def test_a_longer_list_than_the_bound_is_judged_up_to_it() -> None:
    long = [3700] * b.CELLS_MAX + [3600] * 3
    long[7] = 3650
    run = fold(every(10, 2), cells_mv=[long] * 2)
    assert [one["cell"] for one in run.found("cell_outliers")] == [8]
    assert run.day()["cell_min_v"] == 3.6


def test_a_day_forgets_its_cells() -> None:
    times = [MIDNIGHT + DAY - 20, MIDNIGHT + DAY - 10, MIDNIGHT + DAY, MIDNIGHT + DAY + 10]
    run = fold(times, cells_mv=[PACK, PACK, [3700] * 96, PACK])
    first, second = run.found("cell_outliers")
    assert (first["usable_rows"], first["robust_rows"], first["settled_s"]) == (2, 2, MIDNIGHT + DAY - 10)
    assert (second["usable_rows"], second["robust_rows"], second["start_s"]) == (2, 1, MIDNIGHT + DAY)
    ended = fold(times[:2], last=DAY_ENDS, cells_mv=[PACK] * 2)
    kept = ended.state["battery"][0, b.FLAGGED_AT :]
    assert not kept.any()
    assert ended.state["battery"][0, b.USABLE] == 0


def test_a_logout_is_no_record() -> None:
    run = fold(every(10, 3), kind=[2, KIND_LOGOUT, 2], cells_mv=[PACK, [], PACK])
    assert run.day()["cell_rows"] == 2


def test_extremes_as_reported_without_a_usable_list() -> None:
    run = fold(every(10, 3), mode=DRIVING, max_cell_voltage_v=[3.72, 65.535, 3.71], min_cell_voltage_v=[3.70, 3.69, 0])
    assert run.day()["cell_range_max_mv"] == 20
    assert run.day()["cell_rows"] == 0
    assert run.tally("range_driving")[20] == 1
    assert sum(run.tally("range_driving")) == 1  # all ones and exactly 0 V are missing


# -- ranges by what the vehicle does


def test_range_at_rest_counts_after_300_s_below_2_a() -> None:
    run = fold(every(60, 8), total_current_a=[2, 1.9, -1.9, 0, 0, 0, 0, 0], cells_mv=[PACK] * 8)
    assert run.tally("range_rest")[50] == 2  # quiet from the second record on; the seventh is 300 s later
    again = fold(every(60, 6), total_current_a=0, cells_mv=[PACK] * 6, gap_s=59)
    assert sum(again.tally("range_rest")) == 0  # what lies between is not known to be quiet


def test_the_end_of_a_charge_is_its_last_five_minutes() -> None:
    charging, n = [CHARGING] * 60, 60
    rows = [[3700] * 95 + [3700 - k] for k in range(n)]
    gone_on = fold(every(10, n), mode=charging, cells_mv=rows)
    assert sum(gone_on.tally("range_charge_end")) == 0  # it may go on
    times = [*every(10, n), NOON + 590 + 601]
    ended = fold(times, mode=[*charging, PARKED], cells_mv=[*rows, [3700] * 96])
    counted = [place for place, count in enumerate(ended.tally("range_charge_end")) if count]
    assert sum(ended.tally("range_charge_end")) == 31
    assert counted == list(range(29, 60))
    driven = fold([*every(10, n), NOON + 600], mode=[*charging, DRIVING], cells_mv=[*rows, [3700] * 96])
    assert driven.tally("range_charge_end") == ended.tally("range_charge_end")
    brief = fold([*every(10, 10), NOON + 100], mode=[*[CHARGING] * 10, DRIVING], cells_mv=[PACK] * 11)
    assert sum(brief.tally("range_charge_end")) == 0  # shorter than a charge can be


def test_a_pause_does_not_end_a_charge() -> None:
    times = [*every(10, 30), *every(10, 30, NOON + 800)]
    modes = [CHARGING] * 30 + [CHARGING] * 29 + [DRIVING]
    run = fold(times, mode=modes, cells_mv=[[3700] * 96] * 30 + [PACK] * 30)
    assert run.tally("range_charge_end")[50] == 29
    assert sum(run.tally("range_charge_end")) == 29


@pytest.mark.parametrize(("value", "place"), [(0, 0), (63, 63), (64, 64), (66, 64), (67, 65), (1024, 127), (4000, 127)])
def test_bins_of_the_range(value: int, place: int) -> None:
    run = fold([NOON], mode=DRIVING, cells_mv=[[500, 500 + value]])
    assert run.tally("range_driving")[place] == 1


def test_quantiles_of_a_range() -> None:
    tally = [0] * len(RANGE_EDGES_MV)
    assert range_quantile_mv(tally, 0.5) is None
    tally[12], tally[20] = 95, 5
    assert range_quantile_mv(tally, 0.5) == 12
    assert range_quantile_mv(tally, 0.95) == 12
    assert range_quantile_mv(tally, 0.96) == 20
    assert list(RANGE_EDGES_MV) == sorted(set(RANGE_EDGES_MV))


# -- temperature (4.8)


def test_temperatures_of_the_list_without_sensors_that_are_not_there() -> None:
    run = fold(every(10, 2), mode=[DRIVING, CHARGING], probes_c=[[30, 33, NO_PROBE, -40], [-40, NO_PROBE]],
               max_temp_c=[90, 41], min_temp_c=[-40, 40])  # fmt: skip
    assert (run.day()["temp_max_c"], run.day()["temp_min_c"], run.day()["temp_spread_max_c"]) == (41, 30, 3)
    assert run.tally("temp_driving")[(33 + 40) // 5] == 1
    assert run.tally("temp_charging")[(41 + 40) // 5] == 1
    assert (run.tally("spread_driving")[3], run.tally("spread_charging")[1]) == (1, 1)


def test_histograms_end_in_their_last_bin() -> None:
    run = fold([NOON], mode=DRIVING, probes_c=[[210, -39]])
    assert (run.tally("temp_driving")[49], run.tally("spread_driving")[19]) == (1, 1)


@pytest.mark.parametrize(
    ("times", "temps", "rate"),
    [
        ([0, 30], [20, 23], 6.0),
        ([0, 60], [20, 23], 3.0),
        ([0, 61], [20, 40], math.nan),
        ([0, 1], [20, 21], math.nan),  # 60 °C/min would be a rounding
        ([0, 5, 10], [20, 24, 25], 30.0),
        ([0, 30, 60], [20, 18, 19], 2.0),
    ],
)
def test_the_rate_of_a_rise(times: list[int], temps: list[float], rate: float) -> None:
    said = fold([NOON + t for t in times], max_temp_c=temps, min_temp_c=10).day()["temp_rise_max_c_per_min"]
    assert said == pytest.approx(rate, nan_ok=True)


# -- insulation (4.9)


def test_insulation_per_volt_from_60_v_on() -> None:
    run = fold(every(10, 3), insulation_resistance_kohm=[40, 5, 200], total_voltage_v=[400, 59.9, 400])
    assert run.day()["insulation_min_ohm_per_v"] == 100
    assert run.day()["insulation_min_kohm"] == 5


# -- resistance (4.11)


def steps(count: int = 100, step_s: int = 1, amps: float = 100, ohm: float = 0.05, **more: Any) -> Run:
    current = np.array([amps * (k % 2) for k in range(count)])
    columns = {"soc_pct": 50, "max_temp_c": 25, "min_temp_c": 25, **more}
    return fold(every(step_s, count), total_current_a=current, total_voltage_v=400 - ohm * current, **columns)


def test_fifty_milliohm() -> None:
    (found,) = steps().found("dc_resistance")
    assert found["median_mohm"] == pytest.approx(50.0, abs=0.001)
    assert (found["samples"], found["temp_class_c"]) == (99, 20)
    assert (found["soc_mean_pct"], found["temp_mean_c"]) == (50, 25)


@pytest.mark.parametrize(
    "changed",
    [{"amps": 29.9}, {"step_s": 3}, {"soc_pct": 19}, {"soc_pct": 81}, {"ohm": -0.05}, {"ohm": 0.0},
     {"max_temp_c": np.nan}, {"max_temp_c": 75, "min_temp_c": 75}, {"ohm": 0.9}],
    ids=["small step", "3 s", "SOC 19", "SOC 81", "negative", "zero", "no temperature", "75 °C", "900 mΩ"],
)  # fmt: skip
def test_steps_that_say_nothing(changed: dict[str, Any]) -> None:
    assert steps(**changed).found("dc_resistance") == []


def test_the_median_of_many_is_within_a_hundredth() -> None:
    rng = np.random.default_rng(4)
    true = rng.normal(0.030, 0.005, 2000)
    current = np.where(np.arange(4000) % 2, 100.0, 0.0)
    voltage = 400 - np.repeat(true, 2) * current
    run = fold(
        every(1, 4000), total_current_a=current, total_voltage_v=voltage, soc_pct=50, max_temp_c=25, min_temp_c=25
    )
    (found,) = run.found("dc_resistance")
    resistances = -np.diff(voltage) / np.diff(current)
    assert found["median_mohm"] == pytest.approx(1000 * np.median(resistances), rel=0.01)


def test_classes_of_temperature() -> None:
    temps = np.where(np.arange(100) < 50, -3.0, 12.0)
    found = steps(max_temp_c=temps, min_temp_c=temps).found("dc_resistance")
    assert [(one["temp_class_c"], one["samples"]) for one in found] == [(-10, 49), (10, 50)]


# -- rests (4.12)


def rest(hours: float, last_mode: int = DRIVING, **columns: Any) -> Run:
    """Parked with a record at its begin and one ``hours`` later; then the vehicle drives off."""
    times = [NOON, NOON + int(hours * 3600), NOON + int(hours * 3600) + 10]
    before, after = [3700] * 96, [3698] * 96
    after[40] = 3688
    given = {"total_current_a": [0, 0, 20], "soc_pct": 60, "odometer_km": 100, "cells_mv": [before, after, after]}
    return fold(times, mode=[PARKED, PARKED, last_mode], **{**given, **columns})


def test_the_cell_that_fell_most() -> None:
    (found,) = rest(8).found("cell_rests")
    assert (found["cell"], found["start_s"], found["end_s"]) == (41, NOON, NOON + 8 * 3600)
    assert found["settled_s"] == NOON + 8 * 3600 + 10
    assert found["drop_mv_per_day"] == pytest.approx(36)
    assert found["median_drop_mv_per_day"] == pytest.approx(6)


@pytest.mark.parametrize(
    "changed",
    [{"odometer_km": [100, 101, 101]}, {"soc_pct": [60, 64, 64]}, {"soc_pct": [60, 40, 40]},
     {"total_current_a": [0, 2.0, 20]}, {"total_current_a": [2.0, 0, 20]}],
    ids=["moved", "charged", "used", "awake at its end", "awake at its begin"],
)  # fmt: skip
def test_rests_that_were_none(changed: dict[str, Any]) -> None:
    assert rest(8, **changed).found("cell_rests") == []


def test_shorter_than_six_hours() -> None:
    assert rest(5.99).found("cell_rests") == []
    assert len(rest(6).found("cell_rests")) == 1


def test_a_rest_that_goes_on_is_open() -> None:
    (found,) = rest(8, last_mode=PARKED, total_current_a=0).found("cell_rests")
    assert math.isnan(found["settled_s"])
    assert found["end_s"] == NOON + 8 * 3600 + 10


def test_the_first_hour_relaxes() -> None:
    times = [NOON, NOON + 1800, NOON + 9 * 3600, NOON + 9 * 3600 + 10]
    rows = [[3710] * 39 + [3760], [3700] * 40, [3700] * 40, [3700] * 40]
    run = fold(times, mode=[PARKED, PARKED, PARKED, DRIVING], total_current_a=0, soc_pct=60, cells_mv=rows)
    (found,) = run.found("cell_rests")
    assert (found["start_s"], found["drop_mv_per_day"]) == (NOON + 1800, 0)


def test_missing_cells_have_no_drop() -> None:
    before, after = [3700] * 96, [3699] * 96
    before[3], after[9], after[11] = NO_CELL, 0, 3690
    (found,) = rest(8, cells_mv=[before, after, after]).found("cell_rests")
    assert found["cell"] == 12
