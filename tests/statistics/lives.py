"""Frames of vehicles that live some days: drives (one over midnight), charges, stops, alarms, an outage, logouts.

For tests of the whole way from frames to statistics.  Whether frames are decoded rightly is another test's matter, so
the frames come from this project's encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import xor
from typing import Any, Final

import numpy as np

from schemas.batch import VIN_BYTES
from schemas.gbt32960.encode import encode_reports
from schemas.signals import INDEX, SIGNAL_COUNT, State
from tests.pipeline.conftest import Sent, beijing

DAY_S: Final = 86_400
# 2026-06-01 00:00 in Asia/Shanghai
MIDNIGHT: Final = int(datetime(2026, 5, 31, 16, tzinfo=UTC).timestamp())
CELLS: Final = 24
PROBES: Final = 6
# hour it begins, minutes, what: of every day. The last one goes on into the next day.
PLAN: Final = (
    (0.4, 20, "park"), (7.5, 25, "drive"), (9.0, 12, "park"), (12.0, 40, "charge"), (15.0, 10, "park"),
    (17.0, 20, "drive"), (17.4, 6, "park"), (17.6, 12, "drive"), (20.0, 30, "charge"), (23.7, 40, "drive"),
)  # fmt: skip


@dataclass(frozen=True)
class Life:
    """One vehicle's frames, in the order of time."""

    vin: str
    sent: list[Sent]


def logout(vin: str, second: int, received_s: float) -> Sent:
    """Clause 7.6: time and serial number."""
    unit = beijing(second) + (7).to_bytes(2, "big")
    body = bytes([0x04, 0xFE]) + vin.encode().ljust(17, b"\0") + bytes([1]) + len(unit).to_bytes(2, "big") + unit
    return Sent(b"##" + body + bytes([reduce(xor, body)]), received_s)


def life(
    number: int, days: int, seed: int = 1, step_s: int = 20, edition: int = 16, inverted: bool = False,
    outage: tuple[float, float] | None = None, start_s: int = MIDNIGHT,
) -> Life:  # fmt: skip
    """``outage``: hours since the start between which frames come later, as reissues; logouts end each third stop."""
    rng = np.random.default_rng([seed, number])
    vin = f"LSTATS{number:011}"
    columns: dict[str, list[Any]] = {name: [] for name in ("time", "what", "begin")}
    for day in range(days):
        for hour, minutes, what in PLAN:
            begin = start_s + day * DAY_S + round(hour * 3600) + int(rng.integers(0, 300))
            for second in range(begin, begin + minutes * 60, step_s):
                columns["time"].append(second)
                columns["what"].append(what)
                columns["begin"].append(begin)
    time_s = np.array(columns["time"], np.int64)
    order = np.argsort(time_s, kind="stable")
    time_s, what = time_s[order], np.array(columns["what"])[order]
    keep = np.concatenate([[True], time_s[1:] > time_s[:-1]]) & (rng.random(len(time_s)) > 0.02)
    time_s, what = time_s[keep], what[keep]
    n = len(time_s)
    drives, charges = what == "drive", what == "charge"
    dt = np.diff(time_s, prepend=time_s[0])
    speed = np.where(drives & (rng.random(n) > 0.05), rng.integers(200, 900, n), 0)
    odometer = 100_000 + np.cumsum(np.where(drives & (dt < 300), speed * dt / 3600, 0)).astype(np.int64)
    soc = np.clip(60 + np.cumsum(np.where(charges, 0.02, np.where(drives, -0.02, 0)) * np.minimum(dt, 60)), 5, 100)
    current_a = np.where(charges, -40.0, np.where(drives, rng.integers(-30, 120, n), 0.5))
    if inverted:
        current_a = -current_a
    num, state = np.zeros((n, SIGNAL_COUNT), np.int32), np.zeros((n, SIGNAL_COUNT), np.uint8)

    def put(name: str, values: Any) -> None:
        num[:, INDEX[name]] = values
        state[:, INDEX[name]] = State.VALID

    put("vehicle_state", np.where(drives, 1, 2))
    put("charge_state", np.where(charges, 1, 3))
    put("run_mode", 1)
    put("speed_kmh", speed)
    put("odometer_km", odometer)
    put("total_voltage_v", 3800 + soc.astype(np.int64))
    put("total_current_a", np.round(current_a * 10))
    put("soc_pct", soc.astype(np.int64))
    put("dcdc_state", 1)
    put("gear", 0)
    put("insulation_resistance_kohm", np.where(rng.random(n) < 0.01, 20, 5000))
    put("location_valid", 1)
    put("longitude_deg", 121_400_000 + (odometer - 100_000) * 10)
    put("latitude_deg", 31_200_000)
    put("alarm_level", np.where(rng.random(n) < 0.01, 2, 0))
    put("alarm_flags", np.where(num[:, INDEX["alarm_level"]] > 0, 1 << int(rng.integers(0, 8)), 0))
    put("pack_fault_count", 0)
    put("motor_fault_count", 0)
    put("engine_fault_count", 0)
    put("other_fault_count", 0)
    put("pack_count", 1)
    put("pack_voltage_v", 3800 + soc.astype(np.int64))
    put("pack_current_a", np.round(current_a * 10))
    put("pack_cell_total", CELLS)
    put("cell_count", CELLS)
    put("probe_count", PROBES)
    cells = (3600 + 4 * soc[:, None] + rng.integers(0, 12, (n, CELLS))).astype(np.uint16)
    cells[:, 3] -= 60
    cells[rng.random((n, CELLS)) < 0.001] = 0xFFFF
    temps = (40 + 25 + rng.integers(0, 4, (n, PROBES))).astype(np.uint8)
    waiting = np.zeros(n, bool)
    if outage is not None:
        waiting = (time_s >= start_s + outage[0] * 3600) & (time_s < start_s + outage[1] * 3600)
    commands = np.where(waiting, 3, 2).astype(np.uint8)
    received = np.where(waiting, start_s + (outage or (0, 0))[1] * 3600 + (time_s - time_s[0]) / 1e4, time_s + 0.4)
    out = np.zeros(n * 400, np.uint8)
    start, length = np.zeros(n, np.int64), np.zeros(n, np.int32)
    ids = np.tile(np.frombuffer(vin.encode().ljust(VIN_BYTES, b"\0"), np.uint8), (n, 1))
    encode_reports(edition, commands, ids, time_s, num, state, cells, temps, out, start, length)
    raw = out.tobytes()
    sent = [Sent(raw[start[i] : start[i] + length[i]], float(received[i])) for i in range(n)]
    ends = np.flatnonzero((dt[1:] > 600) & ~drives[:-1])[::3]
    sent += [logout(vin, int(time_s[i]), float(received[i]) + 0.1) for i in ends]
    return Life(vin, sorted(sent, key=lambda one: one.received_s))


def local(second: int) -> datetime:
    """For messages."""
    return datetime.fromtimestamp(second, UTC) + timedelta(hours=8)
