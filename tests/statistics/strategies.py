"""Random lives of vehicles, dirt and all, for the comparison of kernels with their twins."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from schemas.statistics.records import FIELDS, KIND_LOGOUT, KIND_REISSUE, KIND_REPORT, NO_CELL, Records
from tests.statistics.make_records import DAY, MIDNIGHT, joined, series


def life(seed: int, vehicle: int = 0, records: int = 300, dirt: float = 0.05, lists: bool = True) -> Records:
    """One vehicle driving, charging, parked, silent, in turns over some days around midnight, seeded."""
    rng = np.random.default_rng(seed)
    cadence = int(rng.choice([1, 10, 20, 30]))
    whole_km = bool(rng.random() < 0.3)
    tells_charging = bool(rng.random() < 0.7)
    now = MIDNIGHT + DAY - int(rng.integers(0, 4 * 3600))
    odometer, soc, longitude = float(rng.integers(0, 50_000)), float(rng.integers(10, 100)), 116.3
    times, kinds = [], []
    rows: dict[str, list[float]] = {name: [] for name in FIELDS}
    doing, left, strong, warm = "driving", 0, 0.0, 25.0
    for _ in range(records):
        if left <= 0:
            doing = str(rng.choice(["driving", "parked", "charging", "silent", "off"]))
            left = int(rng.choice([1, 2, 5, 20, 60, 200]))
            strong, warm = float(rng.uniform(20, 200)), float(rng.choice([5, 25]))
            if rng.random() < dirt / 4:  # another instrument
                odometer = float(rng.integers(0, 50_000))
        left -= 1
        step = cadence if rng.random() < 0.9 else cadence * int(rng.integers(1, 12))
        if doing == "silent":
            step = int(rng.choice([70, 250, 400, 700, 4000, 30_000, 100_000], p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.05]))
            left = 0
        now += step
        speed = float(np.round(rng.uniform(0, 90), 1)) if doing == "driving" and rng.random() < 0.8 else 0.0
        current = {"driving": rng.uniform(-80, 150), "charging": rng.uniform(-1.1, 0) * strong}.get(
            doing, rng.uniform(0, 2)
        )
        if doing == "driving" or (doing == "silent" and rng.random() < 0.5):
            odometer += speed * step / 3600 if doing == "driving" else step / 90
        soc = float(np.clip(soc - current * step / 3600 / 1.5, 0, 100))
        longitude += speed * step / 3600 / 85
        values = {
            "vehicle_state": 2 if doing == "off" else 1,
            "charge_state": (1 if doing == "charging" else 3) if tells_charging else np.nan,
            "run_mode": 1, "speed_kmh": speed,
            "odometer_km": np.floor(odometer) if whole_km else np.floor(odometer * 10) / 10,
            "total_voltage_v": np.round(rng.uniform(300, 400), 1), "total_current_a": np.round(current, 1),
            "soc_pct": np.floor(soc), "dcdc_state": 1, "gear": 14, "insulation_resistance_kohm": rng.integers(30, 5000),
            "location_valid": float(rng.random() < 0.9), "longitude_deg": longitude, "latitude_deg": 39.9,
            "max_cell_voltage_v": 3.7, "min_cell_voltage_v": 3.6, "max_temp_c": 30, "min_temp_c": 20,
            "alarm_level": float(rng.choice([0, 0, 0, 1, 2, 3])), "alarm_flags": float(rng.choice([0, 0, 1, 6, 2**18])),
            "probe_max_c": np.round(warm + rng.uniform(0, 30)), "probe_min_c": np.round(warm - rng.uniform(0, 15)),
        }  # fmt: skip
        if rng.random() < dirt:  # one field goes wrong
            name = str(rng.choice(list(values)))
            values[name] = float(rng.choice([np.nan, 0.0, -40.0, 1.0, 2.0, 250.0, 6553.5, 1e6]))
        if rng.random() < dirt:  # a part of the report is not there
            for name in rng.choice(list(values), 9, replace=False):
                values[str(name)] = np.nan
        times.append(now)
        kinds.append(KIND_LOGOUT if rng.random() < dirt / 4 else rng.choice([KIND_REPORT, KIND_REISSUE], p=[0.9, 0.1]))
        for name in FIELDS:
            rows[name].append(float(values.get(name, np.nan)))
    n = len(times)
    extra: dict[str, Any] = {}
    if lists:
        cells = int(rng.integers(1, 16))
        table = rng.integers(3600, 3700, (n, cells))
        table[rng.random((n, cells)) < dirt / 4] = NO_CELL
        extra["cells_mv"] = [row if rng.random() > dirt else row[: cells // 2] for row in table]
        extra["probes_c"] = [rng.integers(-10, 60, 6) if rng.random() > dirt else [] for _ in range(n)]
        extra["flaws"] = [
            (int(k), int(rng.integers(0, 120)), int(rng.integers(1, 6))) for k in np.flatnonzero(rng.random(n) < dirt)
        ]
    return series(
        times, vehicle=vehicle, kind=kinds, rows=rng.integers(1, 4, n), reissued=rng.integers(0, 2, n),
        repeated=rng.integers(0, 2, n), late=rng.integers(0, 2, n), late_us=rng.integers(-10**8, 10**8, n), **extra,
        **rows,
    )  # fmt: skip


def fleets(vehicles_max: int = 3, records_max: int = 400) -> st.SearchStrategy[Records]:
    """Records of one to three vehicles."""
    return st.builds(
        lambda seed, sizes, dirt, lists: joined(
            [life(seed + 7919 * i, i, size, dirt, lists) for i, size in enumerate(sizes)]
        ),
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(1, records_max), min_size=1, max_size=vehicles_max),
        st.sampled_from([0.0, 0.05, 0.4]),
        st.booleans(),
    )


__all__ = ["fleets", "life"]
