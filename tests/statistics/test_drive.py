"""Motion, energy, trips and charges: the numbers of the rules (4.1 to 4.6), and the edges around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schemas.statistics.records import (
    CHARGING,
    DAY_ENDS,
    DRIVING,
    KIND_LOGOUT,
    KIND_REPORT,
    PARKED,
    UNKNOWN,
    Records,
)
from schemas.statistics.sessions import (
    GAP,
    OPEN,
    STARTED_CHARGING,
    STARTED_DRIVING,
    STOPPED,
    STOPPED_CHARGING,
    SWITCHED_OFF,
)
from services.statistics import drive, quality
from tests.statistics.make_records import DAY, MIDNIGHT, Run, chosen, cut, joined, same, series

NOON = MIDNIGHT + 12 * 3600
ON = {"vehicle_state": 1.0, "charge_state": 3.0}


def folded(records: Records, **how: Any) -> Run:
    return Run(records, cut(records, **how)).fold(quality, drive)


def times(begin: float, end: float, step: int = 10) -> np.ndarray:
    """Seconds from NOON, the end included."""
    return NOON + np.arange(begin, end + step, step)


def driven(begin: float, end: float, step: int = 10, odometer_km: float = 1000.0, **fields: Any) -> Records:
    """60 km/h, 350 V, 20 A; the odometer in tenths, ``odometer_km`` at ``begin``."""
    t = times(begin, end, step)
    values = ON | {
        "speed_kmh": 60.0, "odometer_km": np.floor((odometer_km * 60 + t - t[0]) / 6) / 10, "total_voltage_v": 350.0,
        "total_current_a": 20.0, "soc_pct": 50.0,
    }  # fmt: skip
    return series(t, **(values | fields))


def stood(begin: float, end: float, step: int = 10, odometer_km: Any = 1000.0, **fields: Any) -> Records:
    values = ON | {
        "speed_kmh": 0.0, "odometer_km": odometer_km, "total_voltage_v": 350.0, "total_current_a": 0.0, "soc_pct": 50.0,
    }  # fmt: skip
    return series(times(begin, end, step), **(values | fields))


def charged(begin: float, end: float, soc: tuple[float, float], step: int = 10, **fields: Any) -> Records:
    """60 A into 350 V, SOC in whole points from first to last."""
    t = times(begin, end, step)
    values = {
        "vehicle_state": 1.0, "charge_state": 1.0, "speed_kmh": 0.0, "odometer_km": 1000.0, "total_voltage_v": 350.0,
        "total_current_a": -60.0, "soc_pct": np.floor(np.linspace(*soc, len(t)) + 1e-9), "probe_max_c": 27.0,
        "probe_min_c": 23.0,
    }  # fmt: skip
    return series(t, **(values | fields))


def trip(run: Run) -> dict[str, float]:
    (found,) = run.found("trips")
    return found


def charge(run: Run) -> dict[str, float]:
    (found,) = run.found("charges")
    return found


# -- 4.3 ------------------------------------------------------------------------------------------------------


def per_100km(day: dict[str, float]) -> float:
    return 100 * day["consumption_kwh"] / day["consumption_km"]


def test_an_hour_at_constant_power() -> None:
    day = folded(driven(0, 3600)).day()
    assert day["consumption_kwh"] == pytest.approx(7.000, abs=1e-9)
    assert day["out_kwh"] == pytest.approx(7.000, abs=1e-9)
    assert day["discharge_ah"] == pytest.approx(20.00, abs=1e-9)
    assert per_100km(day) == pytest.approx(11.667, abs=5e-4)
    assert day["distance_km"] == pytest.approx(60)
    assert day["moving_s"] == day["driving_s"] == 3600
    assert day["speed_max_kmh"] == 60
    assert day["power_out_max_kw"] == 7


def test_every_third_record_removed_changes_nothing() -> None:
    whole = driven(0, 3600)
    thinned = chosen(whole, np.arange(whole.n) % 3 != 1)
    assert thinned.n < whole.n
    a, b = folded(whole), folded(thinned)
    for name in ("consumption_kwh", "consumption_km", "distance_km", "discharge_ah", "out_kwh", "driving_s"):
        assert b.day()[name] == pytest.approx(a.day()[name], abs=1e-9), name
    assert trip(b)["consumption_kwh"] == pytest.approx(trip(a)["consumption_kwh"], abs=1e-9)


def test_a_silent_hour_is_untracked_and_leaves_consumption_alone() -> None:
    run = folded(joined([driven(0, 3600), driven(7200, 10_800, odometer_km=1120.0)]))
    day = run.day()
    assert day["consumption_km"] == pytest.approx(120)
    assert day["untracked_km"] == pytest.approx(60)
    assert day["distance_km"] == pytest.approx(180)
    assert per_100km(day) == pytest.approx(11.667, abs=5e-4)
    first, second = run.found("trips")
    assert (first["end_cause"], second["end_cause"]) == (GAP, OPEN)
    assert first["settled_s"] == NOON + 7200
    assert [t["distance_km"] for t in (first, second)] == pytest.approx([60, 60])
    assert [t["untracked_km"] for t in (first, second)] == [0, 0]


@pytest.mark.parametrize("resolution", [0.1, 1.0])
def test_coarse_odometers_do_not_bias_consumption(resolution: float) -> None:
    """Forty drives of 7.3 km with silence between them: ticks at the ends of stretches even out."""
    parts, odometer = [], 500.0
    for begin in range(0, 80_000, 2000):
        t = times(begin, begin + 440)
        km = np.floor((odometer + (t - t[0]) / 60) / resolution + 1e-9) * resolution
        parts.append(stood(begin, begin + 440, speed_kmh=60.0, odometer_km=km, total_current_a=20.0))
        odometer += 440 / 60 + 0.37
    run = folded(joined(parts))
    km = sum(run.day(d)["consumption_km"] for d in range(len(run.tallies)))
    kwh = sum(run.day(d)["consumption_kwh"] for d in range(len(run.tallies)))
    assert 100 * kwh / km == pytest.approx(11.667, rel=0.02)


def test_energy_waits_for_the_odometer() -> None:
    """The odometer on every third record only: nothing is lost, nothing is counted for one side alone."""
    whole = driven(0, 3600)
    whole.x[np.arange(whole.n) % 3 != 0, 4] = np.nan
    day = folded(whole).day()
    assert day["consumption_km"] == pytest.approx(60)
    assert day["consumption_kwh"] == pytest.approx(7)


def test_odometer_and_current_on_different_records() -> None:
    """JSON samples of vehicle and BMS, a second apart: the distance lags by that second, at both ends alike."""
    t = times(0, 3600)
    vehicle = series(t, **ON, speed_kmh=60.0, odometer_km=np.floor(6000 + (t - NOON) / 6) / 10)
    bms = series(t + 1, total_voltage_v=350.0, total_current_a=20.0, soc_pct=50.0)
    both = joined([vehicle, bms])
    run = folded(chosen(both, np.argsort(both.time_s, kind="stable")))
    day = run.day()
    assert day["consumption_km"] == pytest.approx(60, abs=0.2)
    assert per_100km(day) == pytest.approx(11.667, rel=2e-3)
    assert trip(run)["records"] == 2 * len(t)  # the BMS second tells no state: it has the one before
    assert set(run.mode) == {DRIVING}


def test_records_without_current_take_their_distance_with_them() -> None:
    records = driven(0, 3600)
    records.x[100:200, 6] = np.nan
    day = folded(records).day()
    assert day["distance_km"] == pytest.approx(60)
    assert per_100km(day) == pytest.approx(11.667, rel=6e-3)
    assert day["consumption_km"] < 45


def test_regeneration_and_net() -> None:
    t = times(0, 3600)
    amps = np.where(np.arange(len(t)) % 40 < 20, 40.0, -20.0)
    day = folded(driven(0, 3600, total_current_a=amps)).day()
    assert day["out_kwh"] - day["regen_kwh"] == pytest.approx(day["consumption_kwh"])
    assert day["regen_kwh"] == pytest.approx(9 * 19 * 10 * 7 / 3600)  # an interval counts by its own sign
    assert day["regen_ah"] == pytest.approx(9 * 19 * 10 * 20 / 3600)
    assert day["power_in_max_kw"] == pytest.approx(7)


def test_standing_consumption() -> None:
    t = times(0, 7200)
    run = folded(stood(0, 7200, total_current_a=2.0, soc_pct=np.where(np.arange(len(t)) < 300, 60.0, 59.0)))
    day = run.day()
    assert day["standing_kwh"] == pytest.approx(1.4)
    assert day["standing_s"] == day["parked_s"] == 7200
    assert (day["standing_soc_pct"], day["standing_span_s"]) == (1, 7200)
    assert day["consumption_kwh"] == pytest.approx(1.4)  # net while not charging
    assert day["out_kwh"] == 0
    assert run.found("trips") == []


def test_soc_is_lost_in_silence_too_but_not_when_the_vehicle_was_used() -> None:
    def pair(after: dict[str, float]) -> dict[str, float]:
        return folded(joined([stood(0, 0), series([NOON + 20_000], **(ON | {"speed_kmh": 0.0} | after))])).day()

    lost = pair({"odometer_km": 1000.0, "soc_pct": 48.0})
    assert (lost["standing_soc_pct"], lost["standing_span_s"]) == (2, 20_000)
    for after in (
        {"odometer_km": 1003.0, "soc_pct": 48.0},
        {"odometer_km": 1000.0, "soc_pct": 70.0},
        {"soc_pct": 48.0},
    ):
        assert pair(after)["standing_span_s"] == 0


def test_odometer_that_is_replaced_begins_a_new_segment() -> None:
    t = times(0, 3600)
    km = np.where(t - NOON < 1800, 50_000 + (t - NOON) / 60, 5 + (t - NOON - 1800) / 60)
    km = np.floor(km * 10) / 10
    day = folded(stood(0, 3600, speed_kmh=60.0, odometer_km=km, total_current_a=20.0)).day()
    assert day["odometer_falls"] == 1
    assert day["distance_km"] == pytest.approx(60, abs=0.5)
    assert per_100km(day) == pytest.approx(11.667, rel=0.01)


@pytest.mark.parametrize("wrong", [np.nan, 0.0, 999_999.9, 12.0, 1003.5])
def test_one_wrong_odometer_reading_costs_nothing(wrong: float) -> None:
    records = driven(0, 3600)
    records.x[250, 4] = wrong  # 1041.6 were right
    day = folded(records).day()
    assert day["distance_km"] == pytest.approx(60)
    assert day["odometer_falls"] == 0
    assert day["consumption_km"] == pytest.approx(60)


def test_small_steps_back_do_not_add_up() -> None:
    t = times(0, 3600)
    km = 1000 + np.where(np.arange(len(t)) % 2 == 0, 0.0, 0.1)
    day = folded(stood(0, 3600, odometer_km=km)).day()
    assert day["distance_km"] == pytest.approx(0.1)
    assert day["odometer_falls"] == 0


# -- 4.1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({"charge_state": 1.0, "speed_kmh": 0.0}, CHARGING),
        ({"charge_state": 2.0, "speed_kmh": 0.0}, DRIVING),
        ({"charge_state": 2.0, "speed_kmh": 30.0, "total_current_a": -50.0}, DRIVING),
        ({"charge_state": 3.0, "speed_kmh": 0.0, "total_current_a": -50.0}, PARKED),
        ({"charge_state": 4.0}, PARKED),
        ({"speed_kmh": 0.0, "total_current_a": -1.1}, CHARGING),
        ({"speed_kmh": 0.0, "total_current_a": -1.0}, PARKED),
        ({"speed_kmh": 0.1, "total_current_a": -50.0}, DRIVING),
        ({"total_current_a": -50.0}, UNKNOWN),
        ({"vehicle_state": 2.0}, PARKED),
        ({"soc_pct": 50.0}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_mode_of_one_record(fields: dict[str, float], mode: int) -> None:
    assert folded(series([NOON], **fields)).mode.tolist() == [mode]


def test_a_rising_odometer_is_driving() -> None:
    run = folded(series(times(0, 20), charge_state=3.0, speed_kmh=0.0, odometer_km=[5.0, 5.0, 5.1]))
    assert run.mode.tolist() == [PARKED, PARKED, DRIVING]


def test_a_logout_tells_nothing() -> None:
    run = folded(series(times(0, 20), kind=[KIND_REPORT, KIND_LOGOUT, KIND_REPORT], charge_state=3.0, speed_kmh=0.0))
    assert run.mode.tolist() == [PARKED, UNKNOWN, PARKED]
    assert run.day()["parked_s"] == 20


def test_one_odd_record_takes_its_neighbours_state() -> None:
    speeds = np.full(61, 60.0)
    speeds[30] = 0.0
    run = folded(series(times(0, 600), charge_state=3.0, speed_kmh=speeds))
    assert run.mode[30] == PARKED  # as it arrived
    assert run.day()["driving_s"] == 600
    assert trip(run)["moving_s"] == 590


def test_two_odd_records_are_a_stop_and_so_is_one_long_one() -> None:
    speeds = np.full(61, 60.0)
    speeds[30:32] = 0.0
    assert folded(series(times(0, 600), charge_state=3.0, speed_kmh=speeds)).day()["parked_s"] == 20
    speeds = np.full(21, 60.0)
    speeds[10] = 0.0
    assert folded(series(times(0, 620, 31), charge_state=3.0, speed_kmh=speeds)).day()["parked_s"] == 31
    assert folded(series(times(0, 600, 30), charge_state=3.0, speed_kmh=speeds)).day()["parked_s"] == 0


def test_an_odd_record_at_the_end_of_its_hour_stays_what_it_was() -> None:
    speeds = np.full(61, 60.0)
    t = NOON + 3600 - 300 + np.arange(61) * 10 - 5
    odd = int(np.flatnonzero(t < NOON + 3600)[-1])
    speeds[odd] = 0.0
    assert folded(series(t, charge_state=3.0, speed_kmh=speeds)).day()["parked_s"] == 10


# -- 4.2 ------------------------------------------------------------------------------------------------------


def test_a_trip_and_all_its_figures() -> None:
    t = times(0, 900)
    run = folded(joined([
        stood(-300, -10),
        driven(0, 900, soc_pct=np.where(np.arange(len(t)) < 50, 50.0, 49.0), location_valid=1,
               longitude_deg=116 + np.arange(len(t)) / 1000, latitude_deg=40.0),
        stood(910, 1300, odometer_km=1015.0),
    ]))  # fmt: skip
    found = trip(run)
    assert (found["start_s"], found["end_s"], found["end_cause"]) == (NOON, NOON + 900, STOPPED)
    assert found["settled_s"] == NOON + 910 + 300
    assert found["records"] == 91
    assert found["distance_km"] == pytest.approx(15)
    assert (found["start_odometer_km"], found["end_odometer_km"]) == (1000, 1015)
    assert (found["covered_s"], found["moving_s"]) == (900, 900)
    assert found["out_kwh"] == pytest.approx(1.75)
    assert found["consumption_km"] == pytest.approx(15)
    assert found["consumption_kwh"] == pytest.approx(1.75)
    assert (found["start_soc_pct"], found["end_soc_pct"]) == (50, 49)
    assert (found["start_longitude_deg"], found["end_longitude_deg"]) == pytest.approx((116, 116.09))
    assert found["speed_max_kmh"] == 60


@pytest.mark.parametrize(("stop_s", "trips"), [(280, 1), (310, 2)])
def test_stops_shorter_than_five_minutes_do_not_split(stop_s: int, trips: int) -> None:
    end = 910 + stop_s
    run = folded(
        joined([driven(0, 900), stood(910, end, odometer_km=1015), driven(end + 10, end + 900, odometer_km=1015)])
    )
    assert len(run.found("trips")) == trips
    assert sum(t["distance_km"] for t in run.found("trips")) == pytest.approx(run.day()["distance_km"])


def test_switching_off_ends_a_trip() -> None:
    off = stood(910, 950, odometer_km=1015, vehicle_state=2.0)
    run = folded(joined([driven(0, 900), off, driven(960, 1800, odometer_km=1015)]))
    assert [(t["end_cause"], t["end_s"] - NOON) for t in run.found("trips")] == [(SWITCHED_OFF, 900), (OPEN, 1800)]


def test_one_record_that_says_off_while_driving_does_not() -> None:
    states = np.ones(91)
    states[40] = 2.0
    assert trip(folded(driven(0, 900, vehicle_state=states)))["end_cause"] == OPEN


def test_charging_ends_a_trip() -> None:
    run = folded(joined([driven(0, 900, odometer_km=985), charged(910, 1500, (50, 53))]))
    assert trip(run)["end_cause"] == STARTED_CHARGING
    assert trip(run)["settled_s"] == NOON + 910
    assert charge(run)["start_s"] == NOON + 910


@pytest.mark.parametrize(("gap_s", "trips"), [(600, 1), (601, 2)])
def test_gaps_longer_than_ten_minutes_split(gap_s: int, trips: int) -> None:
    begin = 900 + gap_s
    run = folded(joined([driven(0, 900), driven(begin, begin + 900, odometer_km=1015 + gap_s / 60)]))
    found = run.found("trips")
    assert len(found) == trips
    inside = gap_s / 60 if trips == 1 else 0.0
    assert sum(t["untracked_km"] for t in found) == pytest.approx(inside, abs=0.11)
    assert run.day()["untracked_km"] == pytest.approx(gap_s / 60, abs=0.11)
    assert sum(t["consumption_km"] for t in found) == pytest.approx(30, abs=0.2)


def test_a_stop_goes_on_in_a_gap_unless_the_odometer_rose() -> None:
    def after(odometer_km: float) -> list[float]:
        parts = [driven(0, 900), stood(910, 950, odometer_km=1015), driven(1450, 2400, odometer_km=odometer_km)]
        return [t["end_cause"] for t in folded(joined(parts)).found("trips")]

    assert after(1015) == [STOPPED, OPEN]
    assert after(1020) == [OPEN]


def test_parking_and_falling_silent_is_a_stop_not_a_gap() -> None:
    run = folded(joined([driven(0, 900), stood(910, 950, odometer_km=1015), stood(30_000, 30_100, odometer_km=1015)]))
    assert trip(run)["end_cause"] == STOPPED
    assert trip(run)["end_s"] == NOON + 900


def test_short_runs_are_counted_not_kept() -> None:
    run = folded(joined([driven(0, 20), stood(30, 400, odometer_km=1000.3)]))
    assert run.found("trips") == []
    assert run.day()["trips_dropped"] == 1
    assert run.day()["distance_km"] == pytest.approx(0.3)
    creeping = folded(joined([driven(0, 300, odometer_km=7, speed_kmh=1.0), stood(310, 700, odometer_km=12)]))
    assert trip(creeping)["end_s"] == NOON + 300
    half = folded(joined([driven(0, 30), stood(40, 400, odometer_km=1000.5)]))
    assert trip(half)["distance_km"] == 0.5  # the tick came as it stood


def test_what_is_open_and_short_is_neither_told_nor_dropped() -> None:
    run = folded(driven(0, 20))
    assert run.found("trips") == []
    assert run.day()["trips_dropped"] == 0


def test_a_late_tick_belongs_to_the_trip_that_made_it() -> None:
    t = times(910, 1300)
    km = np.where(t - NOON < 1000, 1014.0, 1015.0)
    whole = driven(0, 900)
    whole.x[:, 4] = np.floor(whole.x[:, 4]).clip(max=1014)
    run = folded(joined([whole, stood(910, 1300, odometer_km=km)]))
    found = trip(run)
    assert (found["end_s"], found["end_cause"]) == (NOON + 900, STOPPED)
    assert found["distance_km"] == run.day()["distance_km"] == 15
    assert found["end_odometer_km"] == 1015


def test_a_tick_long_after_is_distance_without_a_trip() -> None:
    t = times(910, 2000)
    run = folded(joined([driven(0, 900), stood(910, 2000, odometer_km=np.where(t - NOON < 1900, 1015.0, 1016.0))]))
    assert trip(run)["distance_km"] == pytest.approx(15)
    assert run.day()["distance_km"] == pytest.approx(16)
    assert run.day()["untracked_km"] == 0
    assert run.day()["trips_dropped"] == 0


def test_midnight_inside_a_trip_a_charge_and_a_stop() -> None:
    shift = 12 * 3600 - 600  # ten minutes before midnight
    run = folded(joined([
        driven(shift, shift + 570), stood(shift + 580, shift + 620, odometer_km=1009.5),
        driven(shift + 630, shift + 1200, odometer_km=1009.5),
    ]))  # fmt: skip
    assert len(run.tallies) == 2
    found = trip(run)
    assert (found["end_s"] - found["start_s"], found["records"]) == (1200, 121)
    assert found["distance_km"] == pytest.approx(run.day(0)["distance_km"] + run.day(1)["distance_km"]) == 19.0
    assert found["consumption_kwh"] == pytest.approx(sum(run.day(d)["consumption_kwh"] for d in (0, 1)), abs=1e-9)
    run = folded(charged(shift, shift + 3600, (20, 60)))
    assert charge(run)["energy_kwh"] == pytest.approx(21)
    assert run.day(0)["charge_kwh"] + run.day(1)["charge_kwh"] == pytest.approx(21)
    assert run.day(0)["charge_kwh"] == pytest.approx(3.5, abs=0.06)


def test_an_interval_belongs_to_the_hour_it_ends_in() -> None:
    run = folded(driven(3590, 3610, 20))
    assert [run.hour(h)["driving_s"] for h in (0, 1)] == [0, 20]
    assert [run.hour(h)["consumption_kwh"] for h in (0, 1)] == [0, pytest.approx(7 * 20 / 3600)]


# -- 4.4, 4.5 -------------------------------------------------------------------------------------------------


def test_an_hour_of_charging() -> None:
    run = folded(charged(0, 3600, (20, 60)))
    found = charge(run)
    assert found["energy_kwh"] == pytest.approx(21.0)
    assert found["charge_ah"] == pytest.approx(60.0)
    assert (found["start_soc_pct"], found["end_soc_pct"]) == (20, 60)
    assert found["covered_s"] / (found["end_s"] - found["start_s"]) == 1
    assert found["mean_power_kw"] == pytest.approx(21)
    assert found["max_power_kw"] == 21
    assert found["middle_power_kw"] == pytest.approx(21)  # 20 kW or more: fast
    assert found["middle_coverage"] == pytest.approx(1)
    assert found["capacity_ah"] == pytest.approx(150)
    assert (found["mean_temp_c"], found["max_temp_c"]) == (25, 27)
    assert (found["runs"], found["records"], found["odometer_km"]) == (1, 361, 1000)
    day = run.day()
    assert day["charge_kwh"] == pytest.approx(21)
    assert day["charge_ah"] == pytest.approx(60)
    assert day["charging_s"] == 3600
    assert day["consumption_kwh"] == day["discharge_ah"] == 0
    assert day["power_in_max_kw"] == 21


def test_a_hole_in_a_charge() -> None:
    whole = charged(0, 3600, (20, 60))
    t = whole.time_s - NOON
    found = charge(folded(chosen(whole, (t <= 1500) | (t >= 1800))))
    assert found["covered_s"] / (found["end_s"] - found["start_s"]) == pytest.approx(0.917, abs=5e-4)
    assert found["charge_ah"] == pytest.approx(55)
    assert np.isnan(found["capacity_ah"])
    assert found["runs"] == 1
    assert found["middle_coverage"] == pytest.approx(1 - 300 / 1800, abs=0.01)
    assert found["middle_power_kw"] == pytest.approx(21)


@pytest.mark.parametrize(
    ("change", "capacity"),
    [
        ({}, 150.0), ({"soc": (20, 50)}, 200.0), ({"soc": (20, 49)}, None),
        ({"probe_max_c": 12.0, "probe_min_c": 8.0}, 150.0),
        ({"probe_max_c": 11.0, "probe_min_c": 8.0}, None), ({"probe_max_c": np.nan, "probe_min_c": np.nan}, None),
        ({"probe_max_c": np.nan, "max_temp_c": 20.0, "min_temp_c": 18.0}, 150.0),
        ({"probe_max_c": 215.0, "probe_min_c": -40.0}, None),
    ],
)  # fmt: skip
def test_capacity_wants_soc_temperature_and_coverage(change: dict[str, Any], capacity: float | None) -> None:
    change = dict(change)
    found = charge(folded(charged(0, 3600, change.pop("soc", (20, 60)), **change)))
    assert found["capacity_ah"] == pytest.approx(capacity) if capacity else np.isnan(found["capacity_ah"])


@pytest.mark.parametrize(
    ("pause_s", "between", "odometer_km", "charges", "cause"),
    [
        (590, 40, 1000.0, 1, None),
        (620, 40, 1000.0, 2, STOPPED_CHARGING),
        (300, 39, 1000.0, 2, STOPPED_CHARGING),
        (300, 40, 1000.1, 2, STARTED_DRIVING),
    ],
)
def test_runs_of_charging_are_merged(
    pause_s: int, between: float, odometer_km: float, charges: int, cause: int | None
) -> None:
    end = 1800 + pause_s
    run = folded(joined([
        charged(0, 1800, (20, 40)),
        stood(1810, end - 10, odometer_km=odometer_km, soc_pct=40.0),
        charged(end, end + 1800, (between, 60), odometer_km=odometer_km),
    ]))  # fmt: skip
    found = run.found("charges")
    assert len(found) == charges
    if charges == 1:
        assert found[0]["runs"] == 2
        # the pause is covered too, and each edge of it is half an interval of charging current
        assert found[0]["covered_s"] == found[0]["end_s"] - found[0]["start_s"]
        assert found[0]["charge_ah"] == pytest.approx(60 + 60 * 10 / 3600)
    else:
        assert found[0]["end_cause"] == cause
        assert found[0]["end_s"] == NOON + 1800
        assert [c["runs"] for c in found] == [1, 1]


def test_a_silent_charger_is_a_gap() -> None:
    run = folded(joined([charged(0, 1800, (20, 40)), charged(2500, 4000, (45, 60))]))
    first, second = run.found("charges")
    assert (first["end_cause"], first["settled_s"]) == (GAP, NOON + 2500)
    assert second["start_s"] == NOON + 2500


@pytest.mark.parametrize(
    ("seconds", "amps", "soc", "kept"),
    [
        (120, -60, (20, 21), 1),
        (110, -60, (20, 21), 0),
        (120, -60, (20, 20), 1),
        (120, -1, (20, 20), 0),
        (120, -1, (20, 21), 1),
    ],
)  # fmt: skip
def test_which_charges_are_kept(seconds: int, amps: float, soc: tuple[float, float], kept: int) -> None:
    run = folded(joined([charged(0, seconds, soc, total_current_a=amps), stood(seconds + 10, seconds + 700)]))
    assert len(run.found("charges")) == kept
    assert run.day()["charges_dropped"] == 1 - kept


def test_the_full_plateau_adds_nothing() -> None:
    full = charged(1810, 12_000, (100, 100), total_current_a=-0.2)
    run = folded(joined([charged(0, 1800, (80, 99)), full, stood(12_010, 12_100, soc_pct=100.0)]))
    found = charge(run)
    assert (found["end_s"], found["end_cause"]) == (NOON + 1800, STOPPED_CHARGING)
    assert found["charge_ah"] == pytest.approx(30)
    assert run.day()["charges_dropped"] == 0
    only = folded(joined([full, stood(12_010, 12_100, soc_pct=100.0)]))
    assert only.found("charges") == []
    assert only.day()["charges_dropped"] == 0


def test_charging_without_a_charge_state() -> None:
    """Real cars: no charge state at all; parked and current flows in."""
    run = folded(joined([
        driven(0, 900, odometer_km=985, charge_state=np.nan), charged(910, 4510, (20, 60), charge_state=np.nan),
        driven(4520, 5000, charge_state=np.nan),
    ]))  # fmt: skip
    found = charge(run)
    assert (found["start_s"], found["end_s"], found["end_cause"]) == (NOON + 910, NOON + 4510, STARTED_DRIVING)
    assert found["charge_ah"] == pytest.approx(60)
    assert len(run.found("trips")) == 2


def test_middle_power_leaves_out_the_ends() -> None:
    t = times(0, 3600)
    amps = -np.where((t - NOON < 900) | (t - NOON > 2700), 10.0, 100.0)
    found = charge(folded(charged(0, 3600, (20, 60), total_current_a=amps)))
    assert found["middle_power_kw"] == pytest.approx(35, rel=0.02)
    assert found["mean_power_kw"] == pytest.approx(19.25, rel=0.02)


def test_a_charge_that_goes_on_for_two_days_keeps_its_middle() -> None:
    t = times(0, 2 * DAY, 60)
    amps = np.where((t - NOON < DAY / 2) | (t - NOON > 1.5 * DAY), -1.0, -3.0)
    found = charge(folded(charged(0, 2 * DAY, (10, 90), 60, total_current_a=amps)))
    assert found["middle_power_kw"] == pytest.approx(1.05, rel=0.03)
    assert found["middle_coverage"] == pytest.approx(1)


# -- edges ----------------------------------------------------------------------------------------------------


def test_one_record_and_none_that_says_anything() -> None:
    assert folded(driven(0, 0)).day()["covered_s"] == 0
    nothing = folded(series(times(0, 3600)))
    day = nothing.day()
    assert day["records"] == 361
    assert set(nothing.mode) == {UNKNOWN}
    for name in ("driving_s", "parked_s", "charging_s", "distance_km", "consumption_kwh", "moving_s"):
        assert day[name] == 0
    for name in ("soc_first_pct", "speed_max_kmh", "odometer_last_km", "power_out_max_kw"):
        assert np.isnan(day[name])


def test_no_records_at_all_still_close() -> None:
    records = driven(0, 900)
    jobs = cut(records, last=DAY_ENDS)
    run = Run(records, jobs).fold(quality, drive)
    assert run.found("trips") == []  # a trip lives on over the day's end
    jobs.begin[:] = jobs.end[:] = records.n
    jobs.close[:] = 3
    peeked = Run(records, jobs)
    peeked.state = {name: state.copy() for name, state in run.state.items()}
    peeked.fold(quality, drive)
    assert trip(peeked)["end_cause"] == OPEN


def test_two_histories_that_end_alike_leave_the_same_state() -> None:
    """What a recompute needs to stop: the carry of a later day does not remember an earlier one."""
    rest = stood(4000, 30 * 3600, step=30, odometer_km=1090)
    a = folded(joined([driven(0, 2000), rest]), last=DAY_ENDS)
    b = folded(joined([driven(0, 900), charged(1000, 1900, (20, 30), odometer_km=1030.0), rest]), last=DAY_ENDS)
    assert same(a.state["drive"], b.state["drive"])


def test_time_by_soc() -> None:
    t = times(0, 600)
    run = folded(stood(0, 600, soc_pct=np.where(np.arange(len(t)) < 31, 100.0, 9.0)))
    assert run.tally("soc_s") == [300, 0, 0, 0, 0, 0, 0, 0, 0, 300]
    assert (run.day()["soc_first_pct"], run.day()["soc_last_pct"]) == (100, 9)
    assert (run.day()["soc_min_pct"], run.day()["soc_max_pct"]) == (9, 100)


def test_findings_that_do_not_fit_are_counted() -> None:
    records = joined([driven(0, 900), driven(2000, 2900, odometer_km=1030), driven(4000, 4900, odometer_km=1060)])
    run = folded(records)
    jobs = run.jobs
    states = np.tile(drive.initial_state(), (1, 1))
    for fold in (drive.fold_drive.compiled, drive.fold_drive.twin):
        found = fold(
            records.time_s, records.kind, records.x, jobs.begin, jobs.end, jobs.vehicle, jobs.hour, jobs.day,
            jobs.close, run.gap_limit_s, run.mode, states.copy(), run.hours, run.tallies,
            np.empty((1, run.findings["drive"].shape[1])),
        )  # fmt: skip
        assert found == -3
