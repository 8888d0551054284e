"""Random lives for the battery and alarms folds: what they look at, at its limits, with its dirt."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.statistics.records import CHARGING, DRIVING, KIND_LOGOUT, KIND_REPORT, NO_CELL, NO_PROBE, PARKED, Records
from tests.statistics.make_records import DAY, MIDNIGHT, joined, series

Life = tuple[Records, NDArray[np.float64], NDArray[np.uint8]]  # records, gap_limit_s, mode


def battery_life(seed: int, vehicle: int = 0, records: int = 200, dirt: float = 0.05) -> Life:
    """One vehicle for some days: long rests, charges, steps at 1 Hz, cells that stand off, values at every limit."""
    rng = np.random.default_rng(seed)
    cadence = int(rng.choice([1, 2, 5, 10, 30]))
    cells = int(rng.choice([1, 2, 11, 12, 40, 600], p=[0.1, 0.1, 0.2, 0.3, 0.25, 0.05]))
    spread = int(rng.choice([1, 3, 12, 60]))
    offsets = rng.integers(-spread, spread + 1, cells)
    offsets[rng.integers(0, cells, 2)] -= int(rng.choice([0, 10, 40, 120]))
    leak = rng.random(cells) * float(rng.choice([0, 0, 20]))  # mV lost per rest
    now = MIDNIGHT + DAY - int(rng.integers(0, 4 * 3600))
    mode, left, soc, temp, level_mv, odometer = PARKED, 0, 60.0, 25.0, 3700, 1000.0
    out: dict[str, list[Any]] = {}
    for _ in range(records):
        if left <= 0:
            mode = int(rng.choice([0, DRIVING, CHARGING, PARKED]))
            left = int(rng.choice([1, 3, 10, 40]))
        left -= 1
        step = cadence if rng.random() < 0.9 else int(rng.choice([1, 59, 61, 120, 300, 601, 3700, 23_000, 40_000]))
        if mode == PARKED and rng.random() < 0.3:
            step = int(rng.choice([600, 3600, 7200, 22_000]))
            level_mv -= int(step / 3600)
            offsets = offsets - (leak * (step > 7000)).astype(np.int64)
        now += step
        current = {
            DRIVING: rng.choice([0, 30, 100, -60, 150]), CHARGING: rng.choice([-100, -60, -1.9, 0]),
        }.get(mode, rng.choice([0, 0.5, 1.9, 2.0, -1.9, 5], p=[0.5, 0.2, 0.15, 0.05, 0.05, 0.05]))  # fmt: skip
        voltage = 360 - float(rng.choice([0.01, 0.05, 0.2])) * current if rng.random() < 0.95 else 55.0
        temp = float(np.clip(temp + rng.choice([0, 0, 0, 1, -1, 4, 30, -30]), -40, 120))
        if mode == DRIVING:
            odometer += 0.3
        soc = float(np.clip(soc + rng.choice([0, 0, -1, 1, 5]), 0, 100))
        listed = level_mv + offsets + rng.integers(-1, 2, cells)
        for _missing in range(int(rng.choice([0, 1, 5, 6], p=[0.9, 0.06, 0.02, 0.02]))):
            listed[rng.integers(0, cells)] = rng.choice([NO_CELL, 499, 4501])
        if rng.random() < 0.05:
            listed[rng.integers(0, cells)] = rng.choice([500, 2000, 4500])
        hot, cold = int(temp), int(temp - rng.choice([0, 1, 3, 14, 15, 20]))
        probes = [hot, cold, max(cold, hot - 1), *([int(rng.choice([NO_PROBE, -40, 210]))] * (rng.random() < dirt))]
        values = {
            "time_s": now, "mode": mode, "kind": KIND_LOGOUT if rng.random() < dirt / 4 else KIND_REPORT,
            "gap_limit_s": float(rng.choice([60, 120])), "late_us": int(rng.choice([0, 10**6, 60_000_000, 60_000_001])),
            "total_voltage_v": voltage, "total_current_a": float(current), "soc_pct": soc, "odometer_km": odometer,
            "insulation_resistance_kohm": float(rng.choice([0, 35, 36, 40, 180, 181, 2000, 60_000])),
            "speed_kmh": float(rng.choice([0, 60, 129.9, 130, 124])) if mode == DRIVING else 0.0,
            "max_temp_c": float(hot), "min_temp_c": float(cold), "max_cell_voltage_v": 3.71, "min_cell_voltage_v": 3.69,
            "longitude_deg": 116.0 + now % 1000 / 1000, "latitude_deg": 39.9, "dcdc_state": 1.0, "location_valid": 1.0,
            "alarm_level": float(rng.choice([0, 1, 2, 3, 4], p=[0.7, 0.1, 0.1, 0.07, 0.03])),
            "alarm_flags": float(rng.choice([0, 1, 2, 1 << 23, (1 << 31) + 5, (1 << 32) - 1],
                                            p=[0.7, 0.1, 0.1, 0.04, 0.04, 0.02])),
        }  # fmt: skip
        for name in ("total_current_a", "total_voltage_v", "soc_pct", "odometer_km", "max_temp_c", "alarm_flags",
                     "alarm_level", "insulation_resistance_kohm", "longitude_deg", "max_cell_voltage_v"):  # fmt: skip
            if rng.random() < dirt:
                values[name] = np.nan
        has_cells, has_probes = rng.random() > 2 * dirt, rng.random() > 2 * dirt
        for name, value in (*values.items(), ("cells_mv", listed.tolist() if has_cells else []),
                            ("probes_c", probes if has_probes else [])):  # fmt: skip
            out.setdefault(name, []).append(value)
    gap_limit_s = np.array(out.pop("gap_limit_s"), np.float64)
    modes = np.array(out.pop("mode"), np.uint8)
    return series(out.pop("time_s"), vehicle=vehicle, **out), gap_limit_s, modes


def battery_fleets(vehicles_max: int = 2, records_max: int = 250) -> st.SearchStrategy[Life]:
    """One or two such vehicles."""

    def build(seed: int, sizes: list[int], dirt: float) -> Life:
        lives = [battery_life(seed + 7919 * i, i, size, dirt) for i, size in enumerate(sizes)]
        return (
            joined([one[0] for one in lives]),
            np.concatenate([one[1] for one in lives]),
            np.concatenate([one[2] for one in lives]),
        )

    return st.builds(
        build,
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(1, records_max), min_size=1, max_size=vehicles_max),
        st.sampled_from([0.0, 0.05, 0.3]),
    )


__all__ = ["Life", "battery_fleets", "battery_life"]
