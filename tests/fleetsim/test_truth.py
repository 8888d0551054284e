"""The truth is true: held against the model's own seconds, counted again in another way."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from schemas.signals import INDEX
from services.fleetsim import faults, truth, wire
from services.fleetsim import physics as ph
from services.fleetsim.chunks import Chunks
from services.fleetsim.model import FleetModel, Samples
from services.fleetsim.vehicle import Plants, make_fleet, spread_plants

T0 = 1_780_000_000
SPAN_S = 20_000
VEHICLES, SEED = 24, 24


@pytest.fixture(scope="module")
def seconds() -> tuple[FleetModel, Samples]:
    """Every second of eight hours, so that nothing about a trip has to be guessed."""
    model = FleetModel(make_fleet(VEHICLES, SEED), T0)
    return model, model.samples(T0 + np.arange(SPAN_S + 1))


def of(lines: list[dict[str, Any]], what: str, vin: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["what"] == what and line["vin"] == vin]


def runs(moving: np.ndarray, on: np.ndarray) -> list[tuple[int, int]]:
    """[first, last] moving second of each trip: stops of 300 s or the key end it."""
    found: list[tuple[int, int]] = []
    for second in np.flatnonzero(moving).tolist():
        if found and second - found[-1][1] <= 300 and on[found[-1][1] : second].all():
            found[-1] = (found[-1][0], second)
        else:
            found.append((second, second))
    return found


def test_trips_are_those_of_the_odometer_and_the_key(seconds: tuple[FleetModel, Samples]) -> None:
    model, samples = seconds
    lines, n, checked = list(model.truth()), SPAN_S + 1, 0
    for v, vin in enumerate(model.fleet.vins):
        rows = slice(v * n, (v + 1) * n)
        speed = samples.num[rows, INDEX["speed_kmh"]]
        on = samples.num[rows, INDEX["vehicle_state"]] == 1
        # a sample shows the second that ends with it: a change of speed is a second of motion
        expected = runs((speed[1:] + speed[:-1]) > 0, on[1:])
        trips = of(lines, "trip", vin)
        assert len(trips) == len(expected)
        for trip, (first, last) in zip(trips, expected, strict=True):
            # speeds are rounded to 0.1 km/h, so a crawl may be missed at either end
            assert trip["start_s"] - T0 == pytest.approx(first, abs=3)
            assert trip["end_s"] - T0 == pytest.approx(last + 1, abs=3)
            rows_of_trip = slice(v * n + trip["start_s"] - T0, v * n + trip["end_s"] - T0 + 1)
            odometer = samples.num[rows_of_trip, INDEX["odometer_km"]] / 10
            assert trip["distance_km"] == pytest.approx(odometer[-1] - odometer[0], abs=0.11)
            assert trip["kept"] == (trip["distance_km"] >= 0.5 or trip["end_s"] - trip["start_s"] >= 300)
            checked += 1
    assert checked > 40


def test_what_is_under_way_at_the_end_is_open(seconds: tuple[FleetModel, Samples]) -> None:
    model, samples = seconds
    lines, n, opened = list(model.truth()), SPAN_S + 1, Counter()
    for v, vin in enumerate(model.fleet.vins):
        last = samples.num[(v + 1) * n - 1]
        for what, under_way in (
            ("trip", last[INDEX["vehicle_state"]] == 1),
            ("charge", last[INDEX["charge_state"]] == 1),
        ):
            open_ones = [line for line in of(lines, what, vin) if line["open"]]
            assert len(open_ones) <= 1
            if open_ones:
                assert under_way
                assert of(lines, what, vin)[-1] is open_ones[0]
                opened[what] += 1
    assert opened["trip"] >= 1
    assert opened["charge"] >= 1


def test_days_add_up_to_the_vehicle(seconds: tuple[FleetModel, Samples]) -> None:
    model, _ = seconds
    lines = list(model.truth())
    for vin in model.fleet.vins:
        days, (vehicle,) = of(lines, "day", vin), of(lines, "vehicle", vin)
        assert [one["end_s"] for one in days[:-1]] == [one["start_s"] for one in days[1:]]
        assert (days[0]["start_s"], days[-1]["end_s"]) == (vehicle["start_s"], vehicle["end_s"])
        assert all((one["start_s"] + ph.LOCAL_OFFSET_S) % 86_400 == 0 for one in days[1:])

        def total(name: str, days: list[dict[str, Any]] = days) -> float:
            return sum(day[name] for day in days)

        assert total("distance_km") == pytest.approx(vehicle["distance_km"], abs=1e-3)
        assert total("charge_kwh") == pytest.approx(vehicle["charged_kwh"], abs=1e-4)
        assert total("regen_kwh") == pytest.approx(vehicle["regenerated_kwh"], abs=1e-4)
        assert total("out_kwh") + total("standing_kwh") == pytest.approx(vehicle["discharged_kwh"], abs=1e-4)
        assert total("consumption_kwh") == pytest.approx(
            vehicle["discharged_kwh"] - vehicle["regenerated_kwh"], abs=1e-4
        )


def test_counters_are_what_samples_lead_to(seconds: tuple[FleetModel, Samples]) -> None:
    model, _ = seconds
    again = FleetModel(make_fleet(VEHICLES, SEED), T0)
    times = T0 + np.arange(0, SPAN_S + 1, 100)
    counters = again.counters_of(np.arange(VEHICLES + 1) * len(times), np.tile(times, VEHICLES))
    assert list(again.truth()) == list(model.truth())
    assert (counters[:, ph.C_OUT_J] >= counters[:, ph.C_STOOD_J]).all()
    last = counters[len(times) - 1 :: len(times)]
    assert (last[:, ph.C_CHARGED_J] == model.states[:, ph.S_CHARGED_J]).all()


def charge_line(start: int, end: int, start_soc: float, end_soc: float, metres: float = 0.0) -> np.ndarray:
    line = np.zeros(ph.EVENT_COUNT)
    line[[ph.E_START_S, ph.E_END_S, ph.E_START_SOC, ph.E_END_SOC, ph.E_START_M]] = (
        start,
        end,
        start_soc,
        end_soc,
        metres,
    )
    line[ph.E_ENERGY_J], line[ph.E_CHARGE_AS] = -3.6e6 * 10, -3600 * 30
    return line


@pytest.mark.parametrize(
    ("second", "charges"),
    [
        (charge_line(10_600, 12_000, 0.5, 0.6), 1),  # 600 s later, SOC the same
        (charge_line(10_601, 12_000, 0.5, 0.6), 2),  # longer apart
        (charge_line(10_100, 12_000, 0.48, 0.6), 2),  # SOC lower
        (charge_line(10_100, 12_000, 0.497, 0.6), 1),  # lower, and not as it is reported
        (charge_line(10_100, 12_000, 0.5, 0.6, 100.0), 2),  # elsewhere
    ],
)
def test_runs_of_charging_near_each_other_are_one_charge(second: np.ndarray, charges: int) -> None:
    found = list(truth._charges("V", np.stack([charge_line(9_000, 10_000, 0.4, 0.5), second]), np.zeros(46), 20_000))
    assert [line["runs"] for line in found] == [2] if charges == 1 else [1, 1]
    assert sum(line["energy_kwh"] for line in found) == pytest.approx(-20)
    assert sum(line["charge_ah"] for line in found) == pytest.approx(-60)


def test_a_planted_fire_is_one_by_the_rule_and_there_is_no_other() -> None:
    plants = spread_plants(12, 1, 2, False, T0, 40_000)
    fleet = make_fleet(12, 5, plants=plants)
    model = FleetModel(fleet, T0)
    times = T0 + np.arange(0, 86_400, 10)
    samples = model.samples(times)
    fires = {line["vin"]: line["start_s"] for line in model.truth() if line["what"] == "thermal_event"}
    assert set(fires) == {fleet.vins[v] for v in plants.thermal}
    hottest = samples.num[:, INDEX["probe_max_c"]].reshape(12, -1)
    lowest = samples.num[:, INDEX["cell_min_v"]].reshape(12, -1)
    silent = samples.silent.reshape(12, -1)
    for v, vin in enumerate(fleet.vins):
        rise = hottest[v, 6:] - hottest[v, :-6]
        drop = 1 - lowest[v, 6:] / lowest[v, :-6]
        burning = (rise >= 30) & ((drop > 0.25) | (hottest[v, 6:] >= 60))
        if vin not in fires:
            assert not burning.any()
            assert hottest[v].max() < 60
            assert not silent[v].any()
            continue
        first = times[6:][burning][0]
        assert plants.thermal[v] <= fires[vin] < first <= fires[vin] + 70
        assert samples.num.reshape(12, len(times), -1)[v, times > fires[vin], INDEX["speed_kmh"]].max() == 0
        assert (silent[v] == (times > fires[vin] + 600)).all()


def test_sleeping_vehicles_say_nothing_unless_plugged_in() -> None:
    fleet = make_fleet(20, 5, plants=Plants(sleep_s=600))
    samples = FleetModel(fleet, T0).samples(T0 + np.arange(0, 86_400, 30))
    num, silent = samples.num, samples.silent == 1
    assert 0.2 < silent.mean() < 0.9
    assert (num[silent, INDEX["charge_state"]] == 3).all()
    assert (num[silent, INDEX["speed_kmh"]] == 0).all()
    # awake: charging, driving, or parked for ten minutes at most
    parked = (num[:, INDEX["vehicle_state"]] == 2) & (num[:, INDEX["charge_state"]] == 3) & ~silent
    for v in range(20):
        row = parked[v * 2880 : (v + 1) * 2880].astype(int)
        longest = max((len(part) for part in "".join(map(str, row)).split("0")), default=0)
        assert longest <= 600 / 30 + 1


def test_a_parked_current_is_right_on_average() -> None:
    model = FleetModel(make_fleet(20, 5), T0)
    samples = model.samples(T0 + np.arange(0, 86_400, 10))
    parked = (samples.num[:, INDEX["vehicle_state"]] == 2) & (samples.num[:, INDEX["charge_state"]] != 1)
    watts = samples.num[parked][:, [INDEX["total_current_a"], INDEX["total_voltage_v"]]].prod(axis=1) / 100
    assert watts.mean() == pytest.approx(120, rel=0.02)


def chunks_of(odds: dict[str, float], reports: int, vehicles: int = 6, plants: Plants | None = None) -> Chunks:
    speech = np.full(vehicles, wire.GBT_TCP, np.int64)
    return Chunks(make_fleet(vehicles, 3, plants=plants), np.full(vehicles, T0, np.int64), 60, speech, odds, reports)


def sent(chunks: Chunks, per_chunk: int) -> dict[str, list[tuple[int, bytes]]]:
    """Per VIN (command, time) of each frame, in the order of sending; over as many chunks as it takes."""
    found: dict[str, list[tuple[int, bytes]]] = {vin: [] for vin in chunks.fleet.vins}
    while not chunks.exhausted:
        for vin, segment in zip(chunks.fleet.vins, chunks.make(per_chunk), strict=True):
            for at, end in pairwise([0, *segment.ends]):
                frame = segment.data[at:end].tobytes()
                assert frame[4:21] == vin.encode()
                found[vin].append((frame[2], frame[24:30]))
    return found


def test_a_blackout_lasts_six_hours_over_chunks_and_loses_nothing() -> None:
    chunks = chunks_of({"blackout": 0.0008}, 2000)
    frames = sent(chunks, 150)
    lines = [line for line in chunks.truth(np.full(6, 2000, np.int64)) if line["what"] == "fault"]
    assert chunks.counts["blackout"] >= 3
    spans = {line["vin"]: line["spans_s"] for line in lines}
    assert sum(len(one) for one in spans.values()) == chunks.counts["blackout"]
    for vin, one in frames.items():
        assert len(one) == len(set(one)) == 2000
        assert sum(command == 3 for command, _ in one) == sum((b - a) // 60 + 1 for a, b in spans.get(vin, []))
        live = [time for command, time in one if command == 2]
        assert live == sorted(live)
    longest = [(b - a) // 60 + 1 for one in spans.values() for a, b in one]
    assert max(longest) == 360
    whole = next(vin for vin, one in spans.items() if one[0][1] - one[0][0] == 359 * 60 and one[0][1] < T0 + 1900 * 60)
    commands = [command for command, _ in frames[whole]]
    begin = commands.index(3)
    assert commands[begin - 1] == 2, "live data first"
    assert commands[begin : begin + 21] == [3] * 20 + [2], "and between"


def test_every_fault_is_in_the_truth_with_its_time() -> None:
    chunks = chunks_of({"loss": 0.02, "duplicate": 0.02, "disorder": 0.05}, 900)
    sent(chunks, 200)
    lines = [line for line in chunks.truth(np.full(6, 900, np.int64)) if line["what"] == "fault"]
    for name in ("loss", "duplicate", "disorder"):
        assert sum(len(line["times_s"]) for line in lines if line["fault"] == name) == chunks.counts[name] > 50
    early = [line for line in chunks.truth(np.full(6, 450, np.int64)) if line["what"] == "fault"]
    assert max(max(line["times_s"]) for line in early) <= T0 + 449 * 60


def test_a_sleeping_vehicle_is_left_out_of_the_frames_and_of_the_counts() -> None:
    chunks = chunks_of({"duplicate": 0.05, "loss": 0.02}, 1440, plants=Plants(sleep_s=600))
    frames = sent(chunks, 100)
    total = sum(len(one) for one in frames.values())
    assert total == chunks.counts["messages"] < 0.9 * 6 * 1440
    assert sum(len(set(one)) for one in frames.values()) == faults.expected(chunks.counts)[0]
