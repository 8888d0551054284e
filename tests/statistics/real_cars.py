"""Two real cars: their records as they would be on the wire, and what pandas makes of them.

The statistics' rules (tests/data/real/README.md says where the data are from) once more, with whole-column operations
and without a look at the kernels: what both agree on is the rule, not a habit of one of them.  Input to either side is
what a GB/T 32960 frame can carry of a row (SOC in whole percent, currents in 0.1 A), so that they may be held together
closely.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from schemas.gbt32960.encode import encode_reports, frame_bytes_max
from schemas.signals import INDEX, SIGNAL_COUNT, SIGNALS, State

DATA: Final = Path(__file__).parents[1] / "data" / "real"
ZONE: Final = "Asia/Shanghai"
ALL_ONES_MV: Final = 65_535


@dataclass(frozen=True)
class Car:
    """One car's file, and how its columns are to be read (see the data's README)."""

    name: str
    vin: str
    nominal_s: int
    cells: tuple[str, ...]
    probes: tuple[str, ...]
    probe_bias: int  # of the file: 0 for °C, 40 for the raw byte

    @property
    def gap_s(self) -> int:
        return max(60, 4 * self.nominal_s)

    def file(self) -> pd.DataFrame:
        return pd.read_csv(DATA / f"{self.name}.csv.gz", parse_dates=["tboxTime"])


CARS: Final = (
    Car("car1", "LREALCAR000000001", 1, tuple(f"V_{i}" for i in range(1, 97)),
        tuple(f"T_{i}" for i in range(1, 25)), 0),
    # the "mean" reads like one more cell and probe in front of the others
    Car("car2", "LREALCAR000000002", 30, ("BMSCellVoltageM", *(f"V_{i}" for i in range(1, 89))),
        ("BMSProbeTempM", *(f"T_{i}" for i in range(1, 20))), 40),
)  # fmt: skip


@dataclass(frozen=True)
class Wire:
    """A car's rows as frames carry them: ``num`` and ``state`` as in schemas.batch, cells in mV, temperatures + 40."""

    time_s: np.ndarray[Any, Any]
    num: np.ndarray[Any, Any]
    state: np.ndarray[Any, Any]
    cells: np.ndarray[Any, Any]
    temps: np.ndarray[Any, Any]


def wire(car: Car) -> Wire:
    """What a frame can say of each row.  A field that the file does not have (vehicle state) is sent as invalid."""
    rows = car.file()
    n = len(rows)
    num, state = np.zeros((n, SIGNAL_COUNT), np.int32), np.zeros((n, SIGNAL_COUNT), np.uint8)

    def put(name: str, values: Any) -> None:
        num[:, INDEX[name]] = np.floor(np.asarray(values, float) * SIGNALS[INDEX[name]].div + 0.5)
        state[:, INDEX[name]] = State.VALID

    put("speed_kmh", rows["vehSpeed"])
    put("odometer_km", rows["vehOdo"])
    put("total_voltage_v", rows["BMSBatteryVoltage"])
    put("total_current_a", rows["BMSBatteryCurrent"])
    put("soc_pct", rows["vehBMSPackSOC"])
    put("max_cell_voltage_v", rows["BMSCellVoltageMax"])
    put("min_cell_voltage_v", rows["BMSCellVoltageMin"])
    put("max_temp_c", rows["BMSProbeTempMax"])
    put("min_temp_c", rows["BMSProbeTempMin"])
    put("pack_voltage_v", rows["BMSBatteryVoltage"])
    put("pack_current_a", rows["BMSBatteryCurrent"])
    if "BMSChargeStatus" in rows:
        put("charge_state", rows["BMSChargeStatus"])
        put("alarm_level", rows["BMSWarningInformation"])
        put("insulation_resistance_kohm", rows["insulationResistance"] * 1000)
    # 66.535 V is the field's all ones and a volt that the source added: back to what was on the wire
    cells = np.minimum(np.floor(rows[list(car.cells)].to_numpy() * 1000 + 0.5), ALL_ONES_MV).astype(np.uint16)
    temps = np.floor(rows[list(car.probes)].to_numpy() + 40 - car.probe_bias + 0.5).clip(0, 255).astype(np.uint8)
    time_s = (rows["tboxTime"].dt.tz_localize(ZONE).astype("datetime64[s, UTC]").astype("int64")).to_numpy()
    return Wire(time_s, num, state, cells, temps)


def frames(car: Car, rows: Wire) -> list[bytes]:
    """GB/T 32960 frames (edition 2016, 0x02), one a row, in the file's order."""
    n = len(rows.time_s)
    vin = np.tile(np.frombuffer(car.vin.encode(), np.uint8), (n, 1))
    out = np.empty(n * frame_bytes_max(rows.cells.shape[1], rows.temps.shape[1], 0), np.uint8)
    start, length = np.empty(n, np.int64), np.empty(n, np.int32)
    encode_reports(16, 2, vin, rows.time_s, rows.num, rows.state, rows.cells, rows.temps, out, start, length)
    return [out[a : a + size].tobytes() for a, size in zip(start.tolist(), length.tolist(), strict=True)]


# -- the same statistics with pandas -----------------------------------------------------------------------


def table(car: Car, rows: Wire) -> pd.DataFrame:
    """Records in order, one a second (the first row of a second wins), with their states (4.1)."""

    def column(name: str) -> Any:
        values = rows.num[:, INDEX[name]] / SIGNALS[INDEX[name]].div
        return np.where(rows.state[:, INDEX[name]] == State.VALID, values, np.nan)

    data = pd.DataFrame(
        {
            "t": rows.time_s,
            "v": column("speed_kmh"),
            "o": column("odometer_km"),
            "u": column("total_voltage_v"),
            "i": column("total_current_a"),
            "soc": column("soc_pct"),
            "charge_state": column("charge_state"),
            "hottest": rows.temps.max(axis=1).astype(float) - 40,
            "coldest": rows.temps.min(axis=1).astype(float) - 40,
        }
    )
    data = data.drop_duplicates("t").sort_values("t").reset_index(drop=True)
    data["dt"] = data["t"].diff()
    data["covered"] = data["dt"] <= car.gap_s
    # an odometer in 0.1 km steps back by one now and then: what counts is the highest so far
    data["o"] = data["o"].cummax()
    data["rise"] = data["o"].diff().fillna(0.0)
    rising = (data["rise"] > 0) & data["covered"]
    known = data["charge_state"].notna()
    charging = (known & (data["charge_state"] == 1)) | (~known & (data["i"] < -1) & (data["v"] == 0))
    data["state"] = np.select([charging, (data["v"] > 0) | rising], ["charging", "driving"], "parked")
    before, after = data["state"].shift(1), data["state"].shift(-1)
    odd = (before == after) & (data["state"] != before) & (data["t"].shift(-1) - data["t"].shift(1) <= 60)
    # an odd record's neighbour is not odd itself: the first of two that would be is
    odd &= ~(odd.shift(1, fill_value=False) & (data["state"].shift(1) != data["state"]))
    data.loc[odd, "state"] = before[odd]
    power = data["u"] * data["i"]
    data["kwh"] = ((power + power.shift(1)) / 2 * data["dt"] / 3.6e6).where(data["covered"], 0.0)
    data["ah"] = ((data["i"] + data["i"].shift(1)) / 2 * data["dt"] / 3600).where(data["covered"], 0.0)
    return data


def totals(data: pd.DataFrame) -> dict[str, float]:
    """Energy and distance (4.3): consumption over covered intervals, neither end of them charging."""
    charging = data["state"] == "charging"
    both, neither = charging & charging.shift(1, fill_value=False), ~charging & ~charging.shift(1, fill_value=True)
    used = data[neither & data["covered"]]
    return {
        "distance_km": float(data["rise"].sum()),
        "untracked_km": float(data["rise"][~data["covered"]].sum()),
        "consumption_km": float(used["rise"].sum()),
        "consumption_kwh": float(used["kwh"].sum()),
        "charge_kwh": float(-data["kwh"][both & (data["kwh"] < 0)].sum()),
        "charge_ah": float(-data["ah"][both & (data["ah"] < 0)].sum()),
        "covered_s": float(data["dt"][data["covered"]].sum()),
        "records": float(len(data)),
        "per_100km": float(100 * used["kwh"].sum() / used["rise"].sum()) if used["rise"].sum() >= 1 else float("nan"),
    }


def _groups(data: pd.DataFrame, state: str) -> Iterator[tuple[int, int]]:
    """Runs of records in one state, as positions [first, last]."""
    inside = (data["state"] == state).to_numpy()
    edges = np.flatnonzero(np.diff(inside.astype(int), prepend=0, append=0))
    yield from zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True)


def _split_inside(data: pd.DataFrame, first: int, last: int, gap_s: float) -> list[tuple[int, int]]:
    """A run cut at gaps longer than ``gap_s``."""
    cuts = np.flatnonzero(data["dt"].to_numpy()[first + 1 : last + 1] > gap_s) + first + 1
    return list(zip([first, *cuts.tolist()], [*(cuts - 1).tolist(), last], strict=True))


def trips(car: Car, data: pd.DataFrame) -> pd.DataFrame:
    """Runs of driving and stops under 300 s, no gap over 600 s in them (4.2)."""
    t, o, dt = data["t"].to_numpy(), data["o"].to_numpy(), data["dt"].to_numpy()
    charging = (data["state"] == "charging").to_numpy()
    # what the odometer shows of a gap that does not split is driving too (4.1)
    drove = (data["rise"] > 0) & (data["dt"] <= 600) & ~data["covered"] & (data["state"] == "parked")
    moving = data.assign(state=data["state"].mask(drove, "driving"))
    whole: list[tuple[int, int]] = []
    for run_first, run_last in _groups(moving, "driving"):
        for first, last in _split_inside(data, run_first, run_last, 600):
            if whole:
                before = whole[-1][1]
                between = slice(before + 1, first)
                # the stop as it was seen; to the next drive when the odometer shows that the car stood until then
                seen = range(before + 1, first)
                stood_on = bool(seen) and dt[first] > car.gap_s and o[first] == o[first - 1]
                stop_s = (t[first] if stood_on else t[first - 1]) - t[before + 1] if seen else 0
                gap = (dt[before + 1 : first + 1] > 600).any()
                if not (gap or charging[between].any() or stop_s >= 300):
                    whole[-1] = (whole[-1][0], last)
                    continue
            whole.append((first, last))
    rows = [
        {
            "start_s": t[a], "end_s": t[b], "distance_km": o[b] - o[a],
            "kept": o[b] - o[a] >= 0.5 or t[b] - t[a] >= 300,
        }
        for a, b in whole
    ]  # fmt: skip
    return pd.DataFrame(rows)


def charges(car: Car, data: pd.DataFrame) -> pd.DataFrame:
    """Runs of charging at most 600 s apart, SOC not lower, moved less than 0.1 km (4.4); capacity (4.5)."""
    t, soc = data["t"].to_numpy(), data["soc"].to_numpy()
    moved, gaps = data["rise"].cumsum().to_numpy(), data["dt"].to_numpy()
    full = (data["soc"] >= 100) & (data["i"].abs() < 1)
    active = data.assign(state=data["state"].where(~full | (data["state"] != "charging"), "full"))
    whole: list[tuple[int, int]] = []
    for run_first, run_last in _groups(active, "charging"):
        for first, last in _split_inside(data, run_first, run_last, 600):
            if whole:
                before = whole[-1][1]
                near = t[first] - t[before] <= 600 and moved[first] - moved[before] < 0.1
                if near and not soc[first] < soc[before]:
                    whole[-1] = (whole[-1][0], last)
                    continue
            whole.append((first, last))
    rows = []
    for a, b in whole:
        inside = data.iloc[a + 1 : b + 1]
        kwh, ah = -inside["kwh"].sum(), -inside["ah"].sum()
        gained, seconds = soc[b] - soc[a], t[b] - t[a]
        coverage = inside["dt"][inside["covered"]].sum() / seconds if seconds else 0.0
        mean_temp = (data["hottest"] + data["coldest"]).iloc[a : b + 1].mean() / 2
        good = gained >= 30 and coverage >= 0.95 and mean_temp >= 10
        rows.append(
            {
                "start_s": t[a], "end_s": t[b], "energy_kwh": kwh, "charge_ah": ah, "start_soc_pct": soc[a],
                "end_soc_pct": soc[b], "kept": seconds >= 120 and (gained >= 1 or kwh >= 0.1),
                "capacity_ah": 100 * ah / gained if good else np.nan, "gap": gaps[a + 1 : b + 1].max() if b > a else 0,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
