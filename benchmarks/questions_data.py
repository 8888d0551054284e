"""A seeded fleet whose every value is known, as frames in the order in which they arrive: late, twice, reissued.

For ``benchmarks.questions`` and ``tests/questions``.  The arrays are what the oracle counts; the frames are made of
them and go the real way.  Reports are never lost two in a row, so that what is covered and what is a gap does not
depend on the interval that the statistics take for nominal.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg

from schemas.batch import VIN_BYTES, Codec, Door
from schemas.gbt32960.encode import encode_reports
from schemas.journal.record import encode_record
from schemas.keys import partition_of_vin
from schemas.signals import INDEX, SIGNAL_COUNT, State

DAY_S: Final = 86_400
ZONE_S: Final = 8 * 3600
FIRST: Final = date(2026, 6, 1)
START_S: Final = int(datetime(2026, 5, 31, 16, tzinfo=UTC).timestamp())  # its midnight in Asia/Shanghai
CELLS: Final = 8
GAP_PERIODS: Final = 4  # of the statistics: covered is what lies no further apart (3.3)
MODELS: Final = (("M0", 50.0, 13.0), ("M1", 75.0, 16.0), ("M2", 90.0, 19.0))  # battery, certified consumption
FLEETS: Final = ("East", "North", "South", "West")
LONG, BREAKDOWN_S = 0, 1800
# (hour it begins, minutes, what) of a day; the silence between is a vehicle asleep
_PLANS: Final[tuple[tuple[tuple[float, int, str], ...], ...]] = (
    ((1.0, 100, "charge"), (7.2, 45, "drive"), (12.0, 30, "park"), (17.5, 50, "drive")),
    ((0.5, 40, "park"), (6.0, 235, "drive"), (11.0, 235, "drive"), (16.0, 235, "drive"), (20.5, 150, "charge")),  # long
    ((8.0, 60, "drive"), (9.0, 90, "park"), (15.0, 40, "drive"), (22.7, 130, "drive")),  # over midnight
    ((6.5, 180, "drive"), (12.0, 120, "charge"), (18.0, 95, "drive"), (21.0, 178, "park")),
)


@dataclass(frozen=True, slots=True)
class Fleet:
    """``column[name]``: one value a report, by vehicle and time; ``v``: whose; whole numbers as on the wire."""

    vins: list[str]
    model: list[int]
    fleet: list[str]
    v: Any
    time: Any
    column: dict[str, Any]
    segments: list[list[tuple[int, int, str]]]  # of a vehicle: begin, end, what
    breakdowns: list[list[tuple[int, int]]]
    period_s: int
    days: int


def make(vehicles: int, days: int, period_s: int, seed: int) -> Fleet:
    rng = np.random.default_rng(seed)
    parts: list[dict[str, Any]] = []
    all_segments, all_breakdowns = [], []
    for number in range(vehicles):
        plan = _PLANS[(number + seed) % len(_PLANS)]
        found = _life(rng, number, plan, days, period_s)
        parts.append(found[0])
        all_segments.append(found[1])
        all_breakdowns.append(found[2])
    v = np.concatenate([np.full(len(part["time"]), i) for i, part in enumerate(parts)])
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    time = joined.pop("time")
    return Fleet(
        [f"LQUEST{seed % 1000:03}{n:08}" for n in range(vehicles)],
        [n % len(MODELS) for n in range(vehicles)],
        [FLEETS[n // 2 % len(FLEETS)] for n in range(vehicles)],
        v, time, joined, all_segments, all_breakdowns, period_s, days,
    )  # fmt: skip


def _life(rng: Any, number: int, plan: Any, days: int, period_s: int) -> tuple[dict[str, Any], Any, Any]:
    segments = []
    for day in range(days):
        for hour, minutes, what in plan:
            begin = START_S + day * DAY_S + round(hour * 3600) + int(rng.integers(0, 10)) * period_s
            segments.append((begin, begin + minutes * 60, what))
    end_s = START_S + days * DAY_S
    segments = [(a, min(b, end_s), what) for a, b, what in segments]
    times, doing = [], []
    for at, (begin, end, what) in enumerate(segments):
        until = min(end, segments[at + 1][0]) if at + 1 < len(segments) else end
        seconds = np.arange(begin, until, period_s)
        lost = rng.random(len(seconds)) < 0.03
        lost[[0, -1]] = False
        keep = ~(lost & ~np.roll(lost, 1))
        times.append(seconds[keep])
        doing.append(np.full(keep.sum(), {"drive": 1, "charge": 2, "park": 3}[what]))
    time, what = np.concatenate(times), np.concatenate(doing)
    n = len(time)
    dt = np.diff(time, prepend=time[0])
    near = dt <= GAP_PERIODS * period_s
    drive, charge = what == 1, what == 2
    speed = np.where(drive & (rng.random(n) > 0.05), rng.integers(300, 900, n), 0)
    rise = np.where(near & drive, np.where(speed > 0, speed, 400) * dt, 0) / 3600  # in tenths of a km
    odometer = 100_000 + np.floor(np.cumsum(rise)).astype(np.int64)
    battery = MODELS[number % len(MODELS)][1]
    volts = 3600 + rng.integers(0, 200, n)
    amperes = np.where(drive, rng.integers(-200, 1800, n), np.where(charge, rng.integers(-900, -500, n), 5))
    kw = volts * amperes / 1e5
    soc = np.empty(n)
    level = 40.0 + rng.integers(0, 50)
    for i in range(n):  # a battery that somebody fills before it is empty
        level = min(100.0, max(3.0, level - (kw[i] * dt[i] / 3600 / battery * 60 if near[i] else 0)))
        soc[i] = level
    weak, poor = number % 5 == 1, number % 4 == 2
    cell_min = 3700 + rng.integers(0, 10, n)
    cell_max = cell_min + rng.integers(8, 30, n) + (95 if weak else 0)
    insulation = np.full(n, 5000)
    if poor:
        insulation[rng.random(n) < 0.02] = 150
    flags, alarm = np.zeros(n, np.int64), np.zeros(n, np.int64)
    breakdowns = []
    for begin, end, _ in segments:
        if end - begin >= 4 * BREAKDOWN_S and rng.random() < 0.3:
            start = begin + period_s * int(rng.integers(5, (end - begin - BREAKDOWN_S) // period_s - 5))
            at = (time >= start) & (time < start + BREAKDOWN_S)
            flags[at], alarm[at] = 1 << (number % 5), 2 + number % 2
            breakdowns.append((start, start + BREAKDOWN_S))
        elif rng.random() < 0.3:
            at = np.flatnonzero((time >= begin) & (time < end))
            if len(at):
                one = at[len(at) // 2]
                flags[one], alarm[one] = 1 << (8 + number % 4), 1
    return (
        {
            "time": time, "vehicle_state": np.where(drive, 1, 2), "charge_state": np.where(charge, 1, 3),
            "speed_kmh": speed, "odometer_km": odometer, "total_voltage_v": volts, "total_current_a": amperes,
            "soc_pct": np.floor(soc).astype(np.int64), "insulation_resistance_kohm": insulation, "alarm_level": alarm,
            "alarm_flags": flags, "longitude_deg": 116_000_000 + number * 50_000 + (odometer - 100_000) * 20,
            "latitude_deg": np.full(n, 31_000_000 + number * 40_000), "cell_max_mv": cell_max, "cell_min_mv": cell_min,
        },
        segments, breakdowns,
    )  # fmt: skip


# -- frames ------------------------------------------------------------------------------------------
def frames(fleet: Fleet, seed: int, pieces: int = 6) -> list[list[tuple[int, bytes]]]:
    """Journal records (partition of 4, body) in ``pieces`` appends: 5 % late, 3 % twice, outages as reissues."""
    rng = np.random.default_rng([seed, 7])
    n = len(fleet.time)
    num, state = np.zeros((n, SIGNAL_COUNT), np.int32), np.zeros((n, SIGNAL_COUNT), np.uint8)
    for name, values in fleet.column.items():
        if name in INDEX:
            num[:, INDEX[name]], state[:, INDEX[name]] = values, State.VALID
    fixed = {
        "run_mode": 1, "dcdc_state": 1, "gear": 0, "location_valid": 1, "pack_fault_count": 0, "motor_fault_count": 0,
        "engine_fault_count": 0, "other_fault_count": 0, "pack_count": 1, "pack_cell_total": CELLS, "cell_count": CELLS,
        "probe_count": 2,
    }  # fmt: skip
    for name, value in fixed.items():
        num[:, INDEX[name]], state[:, INDEX[name]] = value, State.VALID
    for pack, total in (("pack_voltage_v", "total_voltage_v"), ("pack_current_a", "total_current_a")):
        num[:, INDEX[pack]], state[:, INDEX[pack]] = fleet.column[total], State.VALID
    cells = np.repeat(fleet.column["cell_min_mv"][:, None] + 4, CELLS, axis=1).astype(np.uint16)
    cells[:, 0], cells[:, 5] = fleet.column["cell_min_mv"], fleet.column["cell_max_mv"]
    temps = np.full((n, 2), 65, np.uint8)
    waits = np.zeros(n, bool)
    received = fleet.time + 0.4
    for number in range(len(fleet.vins)):  # a link that is down for three hours, once
        begin = START_S + int(rng.integers(0, fleet.days * 24 - 4)) * 3600
        held = (fleet.v == number) & (fleet.time >= begin) & (fleet.time < begin + 3 * 3600)
        waits |= held
        received[held] = begin + 3 * 3600 + np.arange(held.sum()) / 100
    late = rng.random(n) < 0.05
    received[late] += rng.uniform(60, 30_000, late.sum())
    ids = np.frombuffer(b"".join(vin.encode().ljust(VIN_BYTES, b"\0") for vin in fleet.vins), np.uint8)
    out = np.zeros(n * 300, np.uint8)
    start, length = np.zeros(n, np.int64), np.zeros(n, np.int32)
    encode_reports(
        16, np.where(waits, 3, 2).astype(np.uint8), np.ascontiguousarray(ids.reshape(-1, VIN_BYTES)[fleet.v]),
        fleet.time, num, state, cells, temps, out, start, length,
    )  # fmt: skip
    raw = out.tobytes()
    twice = np.flatnonzero(rng.random(n) < 0.03)
    order = np.concatenate([np.arange(n), twice])
    arrival = np.concatenate([received, received[twice] + rng.uniform(1, 5000, len(twice))])
    order = order[np.argsort(arrival, kind="stable")]
    when = np.sort(arrival, kind="stable")
    partition = np.array([partition_of_vin(vin, 4) for vin in fleet.vins])[fleet.v[order]]
    appends = []
    for piece in np.array_split(np.arange(len(order)), pieces):
        records = [
            (p, _record(raw, start, length, order[of], when[of]))
            for p in range(4)
            for of in np.array_split(piece[partition[piece] == p], max(1, len(piece) // 8000))
            if len(of)
        ]
        appends.append(records)
    return appends


def _record(raw: bytes, start: Any, length: Any, which: Any, when: Any) -> bytes:
    n = len(which)
    return encode_record(
        b"".join(raw[start[i] : start[i] + length[i]] for i in which), length[which].astype(np.uint32),
        np.round(when * 1e6).astype(np.int64), np.full(n, Door.GBT_TCP, np.uint8), np.full(n, Codec.GBT32960, np.uint8),
        None,
    )  # fmt: skip


def register(db: psycopg.Connection[Any], fleet: Fleet) -> None:
    """What an operator knows of the fleet; before its frames come."""
    for name, battery, certified in MODELS:
        db.execute(
            "INSERT INTO models (model, category, powertrain, battery_kwh, certified_kwh_per_100km)"
            " VALUES (%s, 'passenger', 'BEV', %s, %s)", (name, battery, certified),
        )  # fmt: skip
    for vin, model, of in zip(fleet.vins, fleet.model, fleet.fleet, strict=True):
        db.execute(
            "INSERT INTO vehicles (vin, registered, registered_at, model, fleet, region)"
            " VALUES (%s, true, %s, %s, %s, 'R')",
            (vin, datetime(2026, 1, 1, tzinfo=UTC), MODELS[model][0], of),
        )


def day_of(fleet_day: int) -> date:
    return FIRST + timedelta(days=fleet_day)
