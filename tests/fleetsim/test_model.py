"""What a simulated vehicle does: the laws it keeps, and that it does the same whoever asks, and how."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.signals import INDEX, State
from services.fleetsim.model import FleetModel, Samples
from services.fleetsim.vehicle import CATALOGUE, P_CAPACITY_AH, P_WEAK_CELL, check_digit, make_fleet

T0 = 1_780_000_000
DAY_S = 86_400


def value(samples: Samples, name: str, div: float = 1.0) -> np.ndarray:
    return samples.num[:, INDEX[name]] / div


@pytest.fixture(scope="module")
def day() -> tuple[FleetModel, Samples]:
    """Sixty vehicles, a day, every 10 s."""
    model = FleetModel(make_fleet(60, 11), T0)
    return model, model.samples(T0 + np.arange(0, DAY_S, 10))


@pytest.fixture(scope="module")
def hour() -> tuple[FleetModel, Samples]:
    """Thirty vehicles, an hour, every second: integrals without gaps."""
    model = FleetModel(make_fleet(30, 5), T0)
    return model, model.samples(T0 + np.arange(3601))


def test_vins_are_valid_unique_and_of_their_seed() -> None:
    one, two = make_fleet(300, 1), make_fleet(300, 2)
    vins = [*one.vins, *two.vins]
    assert len(set(vins)) == 600
    for vin in vins:
        assert len(vin) == 17
        assert vin.startswith("LNEV")
        assert not set(vin) & set("IOQ")
        assert vin[8] == check_digit(vin)
    assert make_fleet(300, 1).vins == one.vins


@pytest.mark.parametrize(
    ("vin", "digit"),
    # published examples: GB 16735's own is not free; these two are the customary test VINs of ISO 3779
    [("1M8GDM9AXKP042788", "X"), ("11111111111111111", "1")],
)
def test_check_digit(vin: str, digit: str) -> None:
    assert check_digit(vin) == digit


def test_a_vehicle_is_the_same_in_a_larger_fleet_and_in_other_chunks() -> None:
    times = T0 + np.arange(0, 1200, 10)
    few = FleetModel(make_fleet(3, 9), T0).samples(times)
    many = FleetModel(make_fleet(20, 9), T0)
    first, second = many.samples(times[:50]), many.samples(times[50:])
    for v in range(3):
        rows = few.num[v * 120 : (v + 1) * 120]
        assert (rows[:50] == first.num[v * 50 : (v + 1) * 50]).all()
        assert (rows[50:] == second.num[v * 70 : (v + 1) * 70]).all()
    cells = CATALOGUE[many.fleet.model[0]].cells
    assert (few.cells[:50, :cells] == first.cells[:50, :cells]).all()


def test_looking_more_often_changes_nothing() -> None:
    fine = FleetModel(make_fleet(5, 9), T0)
    coarse = FleetModel(make_fleet(5, 9), T0)
    a, b = fine.samples(T0 + np.arange(601)), coarse.samples(T0 + np.arange(0, 601, 60))
    for v in range(5):
        assert (a.num[v * 601 : (v + 1) * 601 : 60] == b.num[v * 11 : (v + 1) * 11]).all()


def test_another_seed_is_another_fleet() -> None:
    times = T0 + np.arange(0, 100, 10)
    assert (
        FleetModel(make_fleet(5, 1), T0).samples(times).num != FleetModel(make_fleet(5, 2), T0).samples(times).num
    ).any()


def test_charge_energy_and_soc_agree(hour: tuple[FleetModel, Samples]) -> None:
    model, samples = hour
    n = 3601
    truth = [line for line in model.truth() if line["what"] == "vehicle"]
    for v, line in enumerate(truth):
        rows = slice(v * n, (v + 1) * n)
        volts = samples.num[rows, INDEX["total_voltage_v"]] / 10
        amps = samples.num[rows, INDEX["total_current_a"]] / 10
        # a sample shows the second that ends at it, so the sum over samples 1..n-1 is the integral
        kwh = float((volts * amps)[1:].sum() / 3.6e6)
        ah = float(amps[1:].sum() / 3600)
        net_kwh = line["discharged_kwh"] - line["regenerated_kwh"] - line["charged_kwh"]
        net_ah = line["discharged_ah"] - line["charged_ah"]
        # the wire's 0.1 A is coarse beside the 0.3 A of a parked car: half a step for an hour is 0.018 kWh
        assert kwh == pytest.approx(net_kwh, abs=0.02 + 0.003 * abs(net_kwh))
        assert ah == pytest.approx(net_ah, abs=0.05)
        capacity = float(model.fleet.params[v, P_CAPACITY_AH])
        assert line["start_soc_pct"] - line["end_soc_pct"] == pytest.approx(100 * net_ah / capacity, abs=0.01)


def test_odometer_follows_speed(hour: tuple[FleetModel, Samples]) -> None:
    _, samples = hour
    n = 3601
    for v in range(30):
        rows = slice(v * n, (v + 1) * n)
        speed = value(samples, "speed_kmh", 10)[rows]
        odometer = value(samples, "odometer_km", 10)[rows]
        assert (np.diff(odometer) >= 0).all()
        driven = float(((speed[1:] + speed[:-1]) / 2).sum() / 3600)
        assert odometer[-1] - odometer[0] == pytest.approx(driven, abs=0.25)


def test_every_value_is_in_the_range_of_the_standard(day: tuple[FleetModel, Samples]) -> None:
    _, samples = day
    for name, low, high in (
        ("speed_kmh", 0, 2200),
        ("odometer_km", 0, 9_999_999),
        ("total_voltage_v", 2000, 10_000),
        ("total_current_a", -10_000, 10_000),
        ("soc_pct", 0, 100),
        ("insulation_resistance_kohm", 0, 60_000),
        ("accelerator_pct", 0, 100),
        ("brake_pct", 0, 100),
        ("motor_speed_rpm", 0, 15_000),
        ("motor_torque_nm", -20_000, 45_531),
        ("motor_temp_c", -40, 210),
        ("longitude_deg", 73_000_000, 136_000_000),
        ("latitude_deg", 18_000_000, 54_000_000),
        ("alarm_level", 0, 3),
    ):
        found = value(samples, name)
        assert found.min() >= low, name
        assert found.max() <= high, name
    assert set(np.unique(samples.state).tolist()) <= {State.ABSENT, State.VALID}


def test_states_go_together(day: tuple[FleetModel, Samples]) -> None:
    _, samples = day
    speed, charge = value(samples, "speed_kmh"), value(samples, "charge_state")
    vehicle, gear = value(samples, "vehicle_state"), samples.num[:, INDEX["gear"]]
    current = value(samples, "total_current_a")
    assert set(np.unique(charge).tolist()) == {1, 3, 4}
    assert (speed[charge == 1] == 0).all()
    assert (current[charge == 1] <= 0).all()
    assert (gear[vehicle == 2] == 15).all()
    assert ((gear[vehicle == 1] & 15) == 14).all()
    assert (speed[vehicle == 2] == 0).all()
    assert not ((gear & 16 > 0) & (gear & 32 > 0)).any()  # braking and driving force at once


def test_cells_add_up_and_spread_as_real_ones(day: tuple[FleetModel, Samples]) -> None:
    model, samples = day
    pack = value(samples, "total_voltage_v", 10)
    assert np.abs(samples.cells.sum(axis=1) / 1000 - pack).max() <= 0.051
    spread = value(samples, "cell_max_v") - value(samples, "cell_min_v")
    sound = model.fleet.params[samples.vehicle, P_WEAK_CELL] < 0
    assert 15 <= np.median(spread[sound]) <= 30
    assert np.median(samples.num[:, INDEX["probe_max_c"]] - samples.num[:, INDEX["probe_min_c"]]) <= 4


def test_a_weak_cell_stands_out() -> None:
    fleet = make_fleet(200, 3)
    weak = np.flatnonzero(fleet.params[:, P_WEAK_CELL] >= 0)
    assert 1 <= len(weak) <= 20
    samples = FleetModel(fleet, T0).samples(T0 + np.arange(0, 600, 60))
    for v in weak.tolist():
        rows = samples.cells[v * 10 : (v + 1) * 10, : CATALOGUE[fleet.model[v]].cells]
        # not always: its higher resistance lifts it while energy is recovered
        assert (rows.argmin(axis=1) == int(fleet.params[v, P_WEAK_CELL])).mean() >= 0.7


def test_regeneration_and_consumption_are_of_this_world(day: tuple[FleetModel, Samples]) -> None:
    model, _ = day
    by_usage: dict[str, list[tuple[float, float, float]]] = {}
    for line in model.truth():
        if line["what"] == "vehicle" and line["distance_km"] > 10:
            by_usage.setdefault(line["usage"], []).append(
                (
                    line["distance_km"],
                    100 * (line["discharged_kwh"] - line["regenerated_kwh"]) / line["distance_km"],
                    line["regenerated_kwh"] / line["discharged_kwh"],
                )
            )
    assert 11 <= np.mean([kwh for _, kwh, _ in by_usage["private"]]) <= 20
    assert 11 <= np.mean([kwh for _, kwh, _ in by_usage["taxi"]]) <= 18
    assert 55 <= np.mean([kwh for _, kwh, _ in by_usage["bus"]]) <= 85
    assert 0.10 <= np.mean([share for lines in by_usage.values() for _, _, share in lines]) <= 0.25
    assert 140 <= np.mean([km for km, _, _ in by_usage["bus"]]) <= 260


def test_truth_of_trips_and_charges(day: tuple[FleetModel, Samples]) -> None:
    model, _ = day
    lines = list(model.truth())
    trips = [line for line in lines if line["what"] == "trip"]
    charges = [line for line in lines if line["what"] == "charge"]
    assert trips
    assert charges
    capacity = {line["vin"]: line["capacity_ah"] for line in lines if line["what"] == "vehicle"}
    for line in charges:
        gained = line["end_soc_pct"] - line["start_soc_pct"]
        assert gained > 0
        assert line["energy_kwh"] < 0
        assert -line["charge_ah"] / gained * 100 == pytest.approx(capacity[line["vin"]], rel=0.01)
        assert line["distance_km"] == 0
    for line in trips:
        assert line["on_s"] <= line["start_s"] < line["end_s"]
        assert line["distance_km"] > 0
    ends = {}
    for line in sorted(trips + charges, key=lambda line: line["start_s"]):
        assert line["start_s"] >= ends.get(line["vin"], 0)
        ends[line["vin"]] = line["end_s"]


@pytest.mark.parametrize("vehicles", [0, -1, 1_000_001])
def test_fleet_size_is_bounded(vehicles: int) -> None:
    with pytest.raises(ValueError, match="vehicles"):
        make_fleet(vehicles, 1)


def test_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="sedan-ncm-96"):
        make_fleet(1, 1, "rocket")
