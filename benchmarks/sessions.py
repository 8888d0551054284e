"""How fast records become statistics on one core: the four folds, each and together, beside their twins.

A seeded fleet of vehicles that drive, charge and park through a day at one record every ten seconds, made before the
clock starts. ``plain`` records have no lists, ``lists`` have 96 cells and 24 probes each. What is timed is what the
worker calls (``run`` of each fold, in order), with fresh states and accumulators for every pass; reading telemetry
and writing tables are another matter. The twins run over the first records of the same fleet. The clock is the
thread's CPU time: nothing here waits, and what else the machine does meanwhile is not the folds' affair.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from types import ModuleType
from typing import Any, Final

import numpy as np

from benchmarks.runner import Progress
from schemas.statistics.measures import MEASURES, SUM, TALLY_WIDTH
from schemas.statistics.records import DAY_ENDS, FIELDS, GOES_ON, HOUR_ENDS, PEEK, Jobs, Records
from services.statistics import alarms, battery, drive, quality

FOLDS: Final[tuple[ModuleType, ...]] = (quality, drive, battery, alarms)
SEED: Final = 32960
MIDNIGHT: Final = 1_780_243_200  # in UTC+8
CADENCE_S: Final = 10
DAY_RECORDS: Final = 86_400 // CADENCE_S
CELLS, PROBES = 96, 24
_COLUMN: Final = {name: position for position, name in enumerate(FIELDS)}


def day_of_a_vehicle(vehicle: int, rng: np.random.Generator, lists: bool, records: int = DAY_RECORDS) -> Records:
    """One vehicle's day: parked, to work and back, charged at night; 2 % of its records are lost."""
    n = DAY_RECORDS
    hour = np.arange(n) * CADENCE_S / 3600
    away = rng.uniform(-1, 1)
    driving = ((hour > 7 + away) & (hour < 8.2 + away)) | ((hour > 17 + away) & (hour < 18.5 + away))
    charging = hour > 21 + away / 2
    stop = rng.random(n // 12 + 1).repeat(12)[:n] < 0.2
    speed = np.where(driving & ~stop, np.clip(rng.normal(45, 20, n), 1, 120), 0.0)
    current = np.where(driving, np.where(stop, 3.0, rng.normal(35, 50, n)), np.where(charging, -40.0, 1.0))
    soc = np.clip(90 - np.cumsum(current) * CADENCE_S / 3600 / 1.6, 0, 100)
    x = np.full((n, len(FIELDS)), np.nan)
    spread = rng.normal(0, 0.004, CELLS)
    mean_v = 3.4 + soc / 250
    values: dict[str, Any] = {
        "vehicle_state": np.where(driving | charging, 1, 2), "charge_state": np.where(charging, 1, 3), "run_mode": 1,
        "speed_kmh": np.round(speed, 1), "odometer_km": np.floor((30_000 + np.cumsum(speed) / 360) * 10) / 10,
        "total_voltage_v": np.round(mean_v * CELLS, 1), "total_current_a": np.round(current, 1),
        "soc_pct": np.floor(soc), "dcdc_state": 1, "gear": 14,
        "insulation_resistance_kohm": rng.integers(4000, 5000, n),
        "location_valid": 1, "longitude_deg": 116 + np.cumsum(speed) / 360 / 85, "latitude_deg": 39.9,
        "max_cell_voltage_v": np.round(mean_v + spread.max(), 3),
        "min_cell_voltage_v": np.round(mean_v + spread.min(), 3),
        "max_temp_c": 31, "min_temp_c": 27, "alarm_level": (rng.random(n) < 0.002) * 1.0,
        "alarm_flags": np.where(rng.random(n) < 0.002, 2.0, 0.0),
    }  # fmt: skip
    for name, value in values.items():
        x[:, _COLUMN[name]] = value
    cells, probes = np.zeros(0, np.int32), np.zeros(0, np.int16)
    cell_span = probe_span = np.zeros((n, 2), np.int64)
    if lists:
        for name, value in (("pack_cell_total", CELLS), ("cell_count", CELLS), ("probe_count", PROBES)):
            x[:, _COLUMN[name]] = value
        table = np.round((mean_v[:, None] + spread + rng.normal(0, 0.0007, (n, CELLS))) * 1000).astype(np.int32)
        heat = rng.integers(27, 32, (n, PROBES)).astype(np.int16)
        x[:, _COLUMN["cell_max_v"]] = x[:, _COLUMN["max_cell_voltage_v"]] = table.max(1) / 1000
        x[:, _COLUMN["cell_min_v"]] = x[:, _COLUMN["min_cell_voltage_v"]] = table.min(1) / 1000
        x[:, _COLUMN["cell_sum_v"]] = table.sum(1) / 1000
        x[:, _COLUMN["probe_max_c"]], x[:, _COLUMN["probe_min_c"]] = heat.max(1), heat.min(1)
    keep = np.flatnonzero(rng.random(n) >= 0.02)[:records]
    n = len(keep)
    if lists:
        cells, probes = np.ascontiguousarray(table[keep].ravel()), np.ascontiguousarray(heat[keep].ravel())
        ends = np.arange(1, n + 1)
        cell_span = np.stack([(ends - 1) * CELLS, ends * CELLS], 1)
        probe_span = np.stack([(ends - 1) * PROBES, ends * PROBES], 1)
    one, none = np.ones(n, np.int32), np.zeros(n, np.int32)
    return Records(
        np.full(n, vehicle, np.int32), MIDNIGHT + keep * CADENCE_S, np.full(n, 2, np.uint8),
        np.ascontiguousarray(x[keep]), one, none, none, none, np.full(n, 200_000), np.ascontiguousarray(cell_span[:n]),
        cells, np.ascontiguousarray(probe_span[:n]), probes, np.zeros((n, 2), np.int64), np.zeros(0, np.uint8),
    )  # fmt: skip


def fleet(vehicles: int, lists: bool, records: int = DAY_RECORDS) -> Records:
    """A day of each of ``vehicles``, at most ``records`` records of each."""
    rng = np.random.default_rng(SEED)
    parts = [day_of_a_vehicle(vehicle, rng, lists, records) for vehicle in range(vehicles)]
    joined: dict[str, Any] = {}
    for name in Records.__dataclass_fields__:
        arrays = [getattr(part, name) for part in parts]
        if name.endswith("_span"):
            flat = {"cell_span": "cells", "probe_span": "probes", "flaw_span": "flaws"}[name]
            begins = np.cumsum([0] + [len(getattr(part, flat)) for part in parts])
            arrays = [array + begin for array, begin in zip(arrays, begins, strict=False)]
        joined[name] = np.ascontiguousarray(np.concatenate(arrays))
    return Records(**joined)


def hours_of(records: Records) -> Jobs:
    """A job for each vehicle and hour; each vehicle's last one peeks, as when the newest records are looked at."""
    hour = records.time_s // 3600
    new = np.flatnonzero((np.diff(hour, prepend=-1) != 0) | (np.diff(records.vehicle, prepend=-1) != 0))
    end = np.append(new[1:], records.n)
    vehicle = records.vehicle[new]
    last = np.append(vehicle[1:] != vehicle[:-1], True)
    close = np.where(last, PEEK, HOUR_ENDS).astype(np.uint8)
    assert (close != DAY_ENDS).all()
    assert (close != GOES_ON).all()
    return Jobs(
        new, end, vehicle, np.arange(len(new), dtype=np.int32), vehicle.copy(), records.time_s[new] // 3600 * 3600,
        np.full(len(new), MIDNIGHT), np.ones(len(new)), close,
    )  # fmt: skip


@contextmanager
def as_twin(module: ModuleType) -> Iterator[None]:
    """The fold's plain-Python twin in the place of its kernel."""
    name = f"fold_{module.__name__.rpartition('.')[2]}"
    kernel = getattr(module, name)
    setattr(module, name, kernel.twin)
    try:
        yield
    finally:
        setattr(module, name, kernel)


def one_pass(records: Records, jobs: Jobs, slow: bool = False) -> tuple[list[float], int]:
    """Seconds that each fold took, and how much they found."""
    vehicles = int(records.vehicle[-1]) + 1
    hours = np.tile([0.0 if measure.op == SUM else np.nan for measure in MEASURES], (jobs.n, 1))
    tallies = np.zeros((vehicles, TALLY_WIDTH), np.int64)
    gap_limit_s, mode = np.zeros(records.n), np.zeros(records.n, np.uint8)
    seconds, found = [], 0
    for module in FOLDS:
        state = np.tile(module.initial_state(), (vehicles, 1))
        per_record: Sequence[Any] = (gap_limit_s,) if module is quality else (gap_limit_s, mode)
        begun = time.thread_time()
        if slow:
            with as_twin(module):
                findings = module.run(records, jobs, *per_record, state, hours, tallies)
        else:
            findings = module.run(records, jobs, *per_record, state, hours, tallies)
        seconds.append(time.thread_time() - begun)
        found += len(findings)
    return seconds, found


def measure(name: str, records: Records, few: Records, repeats: int, progress: Progress) -> dict[str, Any]:
    """{case, records_per_s, twin_records_per_s, ratio, folds: [the same for each]}, medians of ``repeats`` passes."""
    jobs, few_jobs = hours_of(records), hours_of(few)
    one_pass(few, few_jobs)
    passes = [one_pass(records, jobs) for _ in range(repeats)]
    assert passes[0][1] > 0, "the fleet neither drove nor charged"
    slow, _ = one_pass(few, few_jobs, slow=True)

    def figures(seconds: float, slow_seconds: float) -> dict[str, Any]:
        fast, twin = records.n / seconds, few.n / slow_seconds
        return {
            "records_per_s": round(fast), "ns_per_record": round(1e9 / fast, 1), "twin_records_per_s": round(twin),
            "ratio": round(fast / twin, 1),
        }  # fmt: skip

    folds = [
        {"fold": module.__name__.rpartition(".")[2], **figures(median(one[0][i] for one in passes), slow[i])}
        for i, module in enumerate(FOLDS)
    ]
    together = figures(median(sum(one[0]) for one in passes), sum(slow))
    for line in (*folds, {"fold": "together", **together}):
        progress(
            f"{name} {line['fold']}: {line['records_per_s']:,} records/s, twin {line['twin_records_per_s']:,}, "
            f"ratio {line['ratio']:,}"
        )
    return {"case": name, "records": records.n, "found": passes[0][1], **together, "folds": folds}


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{records_per_s (all folds, no lists), baseline_records_per_s (twins), ratio, lists_records_per_s, cases[]}."""
    vehicles, listed, few, repeats = (8, 2, 400, 3) if quick else (40, 8, 2_000, 9)
    for module in FOLDS:
        module.warm()
    plain = measure("plain", fleet(vehicles, False), fleet(1, False, few), repeats, progress)
    lists = measure("lists", fleet(listed, True), fleet(1, True, few), repeats, progress)
    return {
        "records_per_s": plain["records_per_s"],
        "baseline_records_per_s": plain["twin_records_per_s"],
        "ratio": plain["ratio"],
        "lists_records_per_s": lists["records_per_s"],
        "lists_baseline_records_per_s": lists["twin_records_per_s"],
        "lists_ratio": lists["ratio"],
        "cases": [plain, lists],
        "settings": {
            "seed": SEED, "vehicles": vehicles, "vehicles_with_lists": listed, "cells": CELLS, "probes": PROBES,
            "cadence_s": CADENCE_S, "records_twin": few, "repeats": repeats, "cores_used": 1,
            "clock": "thread CPU time",
        },
        "notes": [],
    }  # fmt: skip
