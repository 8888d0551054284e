"""The battery fold again, slow and obvious: what ``battery.fold_battery`` must equal in every bit.

Rationals decide about scores, ``statistics.median`` about the middle, dictionaries hold a day. It is read by whoever
wants to know what the rule is, and run by the tests.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from fractions import Fraction

import numpy as np

from schemas.statistics.measures import INDEX, RANGE_BINS, RANGE_EDGES_MV, TALLY_BEGIN
from schemas.statistics.records import (
    CHARGING,
    CURRENT,
    DAY_ENDS,
    DRIVING,
    F64,
    I16,
    I32,
    I64,
    INSULATION,
    KIND_LOGOUT,
    ODOMETER,
    PARKED,
    PEEK,
    SOC,
    U8,
    VOLTAGE,
)
from schemas.statistics.sessions import FINDINGS, TABLE
from services.statistics import battery_layout as b
from services.statistics.pack import CELL_HIGH_MV, CELL_LOW_MV, cell_extremes_twin, temperatures_twin


def scores(cells_mv: list[int]) -> dict[str, list[float | None] | float | None]:
    """Range, mean, sd, z and robust z of one record's usable cells, as in 4.7 (for reading; the fold compares exactly).

    mV. z is None when all are equal, the robust one when at least half are (MAD 0).
    """
    mean, sd = statistics.fmean(cells_mv), statistics.pstdev(cells_mv)
    median = statistics.median(cells_mv)
    mad = statistics.median(abs(u - median) for u in cells_mv)
    return {
        "range_mv": float(max(cells_mv) - min(cells_mv)),
        "mean_mv": mean,
        "sd_mv": sd,
        "z": [(u - mean) / sd if sd > 0 else None for u in cells_mv],
        "robust_z": [(u - median) / (1.4826 * mad) if mad > 0 else None for u in cells_mv],
    }


def outliers(cells_mv: dict[int, int]) -> dict[int, tuple[bool, bool, Fraction]]:
    """Cells of one record that stand off: (by z, by robust z, u - median in mV), by position (4.7).

    Off by 10 mV at least, and |z| > 3 or |robust z| > 3; with MAD 0 the 10 mV alone are the robust form.
    """
    values = [Fraction(u) for u in cells_mv.values()]
    mean = sum(values) / len(values)
    variance = sum((u - mean) ** 2 for u in values) / len(values)
    median = statistics.median(values)
    mad = statistics.median(abs(u - median) for u in values)
    found = {}
    for cell, u in cells_mv.items():
        if abs(u - median) >= b.OUTLIER_MV:
            by_z = (u - mean) ** 2 > 9 * variance
            by_robust = float(4 * abs(u - median)) > 3.0 * 1.4826 * float(4 * mad)
            if by_z or by_robust:
                found[cell] = by_z, by_robust, u - median
    return found


class _Twin:
    """One vehicle while its records are folded."""

    def __init__(self, state: F64, measured: F64, tallied: I64, found: list[list[float]]) -> None:
        self.state = state
        self.measured = measured
        self.tallied = tallied
        self.found = found

    def least(self, name: str, value: float) -> None:
        old = self.measured[INDEX[name]]
        self.measured[INDEX[name]] = value if math.isnan(old) else min(old, value)

    def most(self, name: str, value: float) -> None:
        old = self.measured[INDEX[name]]
        self.measured[INDEX[name]] = value if math.isnan(old) else max(old, value)

    def count(self, tally: str, place: int) -> None:
        self.tallied[TALLY_BEGIN[tally] + place] += 1

    def emit(self, job: int, table: str, settled_s: float, **columns: float) -> None:
        names = [name for name, _ in FINDINGS[TABLE[table]].columns]
        self.found.append([job, TABLE[table], settled_s, *(columns[name] for name in names)])

    # -- temperatures and insulation

    def temperature(self, now_s: int, doing: int, hot: float, cold: float) -> None:
        state = self.state
        self.most("temp_max_c", hot)
        self.least("temp_min_c", cold)
        self.most("temp_spread_max_c", hot - cold)
        if doing in (DRIVING, CHARGING):
            name = "driving" if doing == DRIVING else "charging"
            self.count(f"temp_{name}", min(max(math.floor((hot + 40) / 5), 0), 49))
            self.count(f"spread_{name}", min(math.floor(hot - cold), 19))
        anchor_s = state[b.RATE_S]
        if anchor_s > 0 and b.RATE_MIN_S <= now_s - anchor_s <= b.RATE_MAX_S:
            self.most("temp_rise_max_c_per_min", (hot - state[b.RATE_C]) / (now_s - anchor_s) * 60.0)
        if anchor_s == 0 or now_s - anchor_s >= b.RATE_MIN_S:
            state[b.RATE_S], state[b.RATE_C] = now_s, hot
        state[b.HOLD_S], state[b.HOLD_C] = now_s, 0.5 * (hot + cold)

    # -- resistance

    def step(self, now_s: int, voltage: float, current: float, soc: float) -> None:
        state = self.state
        delta = current - state[b.LAST_CURRENT]
        low, high = b.STEP_SOC
        if not (abs(delta) >= b.STEP_A and low <= soc <= high):
            return
        resistance = -(voltage - state[b.LAST_VOLTAGE]) / delta
        if not resistance > 0 or state[b.HOLD_S] == 0 or now_s - state[b.HOLD_S] > b.TEMP_HOLD_S:
            return
        group = math.floor((state[b.HOLD_C] - b.CLASS_BEGIN_C) / b.CLASS_C)
        place = bisect_right(b.BIN_EDGES_OHM, resistance) - 1
        if 0 <= group < b.CLASSES and 0 <= place < b.BINS:
            edge, following = b.BIN_EDGES_OHM[place : place + 2]
            part = math.floor((resistance - edge) / (following - edge) * b.BIN_PARTS)
            state[b.BIN_AT + group * b.BINS + place] += b.COUNT_ONE + part
            state[b.SOC_AT + group] += soc
            state[b.TEMP_AT + group] += state[b.HOLD_C]

    # -- charges

    def end_charge(self) -> None:
        state = self.state
        last_s = state[b.CHARGE_LAST_S]
        if last_s - state[b.CHARGE_BEGIN_S] >= b.CHARGE_MIN_S:
            for kept in state[b.RING_AT : b.RING_AT + b.RING].tolist():
                at_s, place = divmod(int(kept), RANGE_BINS)
                if kept > 0 and at_s >= last_s - b.CHARGE_END_S:
                    self.count("range_charge_end", place)
        state[b.RING_AT : b.RING_AT + b.RING] = 0
        state[[b.CHARGE_BEGIN_S, b.CHARGE_LAST_S, b.RING_COUNT]] = 0

    def charge(self, now_s: int, doing: int, place: int | None) -> None:
        state = self.state
        paused_long = state[b.CHARGE_LAST_S] > 0 and now_s - state[b.CHARGE_LAST_S] > b.CHARGE_PAUSE_S
        if state[b.CHARGE_LAST_S] > 0 and (paused_long or doing == DRIVING):
            self.end_charge()
        if doing != CHARGING:
            return
        if state[b.CHARGE_BEGIN_S] == 0:
            state[b.CHARGE_BEGIN_S] = now_s
        state[b.CHARGE_LAST_S] = now_s
        if place is not None:
            newest_s = int(state[b.RING_AT : b.RING_AT + b.RING].max()) // RANGE_BINS
            if now_s - newest_s >= b.RING_STEP_S:
                state[b.RING_AT + int(state[b.RING_COUNT]) % b.RING] = now_s * RANGE_BINS + place
                state[b.RING_COUNT] += 1

    # -- rests

    def end_rest(self, job: int, settled_s: float) -> None:
        state = self.state
        if state[b.AFTER_S] > 0:
            self.emit(
                job, "cell_rests", settled_s, start_s=state[b.BEFORE_S], end_s=state[b.AFTER_S],
                cell=state[b.AFTER_CELL], drop_mv_per_day=state[b.AFTER_DROP],
                median_drop_mv_per_day=state[b.AFTER_MEDIAN],
            )  # fmt: skip
        state[b.BEFORE_AT : b.BEFORE_AT + b.CELLS_MAX] = 0
        state[b.REST_BEGIN_S : b.AFTER_MEDIAN + 1] = 0

    def rest(self, job: int, now_s: int, odometer: float, soc: float, listed: list[int] | None) -> None:
        state = self.state
        if state[b.REST_BEGIN_S] > 0:
            used = odometer - state[b.REST_ODOMETER] > b.REST_KM or abs(soc - state[b.REST_SOC_PCT]) > b.REST_SOC
            if used:
                self.end_rest(job, now_s)
        if state[b.REST_BEGIN_S] == 0:
            state[b.REST_BEGIN_S], state[b.REST_ODOMETER], state[b.REST_SOC_PCT] = now_s, odometer, soc
        if listed is None:
            return
        since_s = now_s - state[b.REST_BEGIN_S]
        values = [u if CELL_LOW_MV <= u <= CELL_HIGH_MV else 0 for u in listed]
        if state[b.BEFORE_S] == 0 or (since_s <= b.REST_RELAX_S and state[b.AFTER_S] == 0):
            state[b.BEFORE_S], state[b.BEFORE_CELLS] = now_s, len(values)
            state[b.BEFORE_AT : b.BEFORE_AT + b.CELLS_MAX] = values + [0] * (b.CELLS_MAX - len(values))
            return
        if since_s < b.REST_S or len(values) != state[b.BEFORE_CELLS]:
            return
        before = state[b.BEFORE_AT : b.BEFORE_AT + len(values)].tolist()
        drops = {c: int(old) - new for c, (old, new) in enumerate(zip(before, values, strict=True)) if old and new}
        if len(drops) >= 2:
            cell = max(drops, key=lambda c: drops[c])
            days = (now_s - state[b.BEFORE_S]) / 86_400
            state[b.AFTER_S], state[b.AFTER_CELL], state[b.AFTER_DROP] = now_s, cell + 1, drops[cell] / days
            state[b.AFTER_MEDIAN] = statistics.median(drops.values()) / days

    # -- cells

    def cells(self, listed: list[int]) -> None:
        state = self.state
        state[b.USABLE] += 1
        usable = {c: u for c, u in enumerate(listed[: b.CELLS_MAX]) if CELL_LOW_MV <= u <= CELL_HIGH_MV}
        if not usable:
            return
        for cell, (by_z, by_robust, off) in outliers(usable).items():
            state[b.FLAGGED_AT + cell] += b.Z_ONE * by_z + b.ROBUST_ONE * by_robust + b.EITHER_ONE
            state[b.OFF_AT + cell] += float(2 * off)

    # -- the day's end

    def close_day(self, job: int, day_start_s: int, settled_s: float) -> None:
        state = self.state
        usable = int(state[b.USABLE])
        cells = {}
        for c, packed in enumerate(state[b.FLAGGED_AT : b.FLAGGED_AT + b.CELLS_MAX].tolist()):
            if packed:
                either, rest = divmod(int(packed), b.EITHER_ONE)
                robust_rows, z_rows = divmod(rest, b.ROBUST_ONE)
                cells[c] = either, z_rows, robust_rows
        many = {c: three for c, three in cells.items() if max(three[1:]) * b.OUTLIER_SHARE >= usable}
        if len(many) > b.OUTLIERS_MAX:
            ranked = sorted(cells, key=lambda c: (-cells[c][0], c))[: b.OUTLIERS_MAX]
            many = {c: many[c] for c in ranked if c in many}
        for c in sorted(many):
            either, z_rows, robust_rows = many[c]
            self.emit(
                job, "cell_outliers", settled_s, start_s=day_start_s, cell=c + 1, usable_rows=usable, z_rows=z_rows,
                robust_rows=robust_rows, deviation_mv=0.5 * state[b.OFF_AT + c] / either,
            )  # fmt: skip
        for group in range(b.CLASSES):
            bins = state[b.BIN_AT + group * b.BINS : b.BIN_AT + (group + 1) * b.BINS]
            held = [divmod(int(packed), b.COUNT_ONE) for packed in bins.tolist()]
            samples = sum(count for count, _ in held)
            if samples:
                middle = [place for place, (count, _) in enumerate(held) for _ in range(count)][(samples - 1) // 2]
                count, parts = held[middle]
                edge, following = b.BIN_EDGES_OHM[middle : middle + 2]
                mean = (parts / count + 0.5) / b.BIN_PARTS
                rank = (0.5 * samples - sum(one for one, _ in held[:middle])) / count
                part = mean + (2.0 * rank - 1.0) * min(mean, 1.0 - mean)
                self.emit(
                    job, "dc_resistance", settled_s, start_s=day_start_s,
                    temp_class_c=b.CLASS_BEGIN_C + b.CLASS_C * group, samples=samples,
                    median_mohm=1000.0 * (edge + part * (following - edge)),
                    soc_mean_pct=state[b.SOC_AT + group] / samples, temp_mean_c=state[b.TEMP_AT + group] / samples,
                )  # fmt: skip
        state[b.FLAGGED_AT : b.OFF_AT + b.CELLS_MAX] = 0
        state[b.SOC_AT : b.BIN_AT + b.CLASSES * b.BINS] = 0
        state[b.USABLE] = 0


def fold_battery_twin(
    time_s: I64, kind: U8, x: F64, cell_span: I64, cells: I32, probe_span: I64, probes: I16,
    begin: I64, end: I64, vehicle: I32, hour: I32, day: I32, day_start_s: I64, close: U8,
    gap_limit_s: F64, mode: U8, state: F64, hours: F64, tallies: I64, findings: F64,
) -> int:  # fmt: skip
    found: list[list[float]] = []
    for job in range(len(begin)):
        mine = state[vehicle[job]]
        twin = _Twin(mine, hours[hour[job]], tallies[day[job]], found)
        for i in range(int(begin[job]), int(end[job])):
            if kind[i] == KIND_LOGOUT:
                continue
            now_s, doing = int(time_s[i]), int(mode[i])
            voltage, current, soc, odometer = (float(x[i, field]) for field in (VOLTAGE, CURRENT, SOC, ODOMETER))
            dt = now_s - int(mine[b.LAST_S]) if mine[b.LAST_S] > 0 else -1
            covered = 0 < dt <= gap_limit_s[i]
            hot, cold = temperatures_twin(x, i, probes, *probe_span[i].tolist())
            if not math.isnan(hot):
                twin.temperature(now_s, doing, hot, cold)
            insulation = float(x[i, INSULATION])
            if insulation >= 0:
                twin.least("insulation_min_kohm", insulation)
                if voltage >= b.PACK_V_MIN:
                    twin.least("insulation_min_ohm_per_v", insulation * 1000 / voltage)
            if 0 < dt <= b.STEP_S:
                twin.step(now_s, voltage, current, soc)
            quiet = abs(current) < b.QUIET_A
            loud = abs(current) >= b.QUIET_A  # neither, when the current is unknown
            if loud or (math.isnan(current) and not covered):
                mine[b.QUIET_SINCE_S] = 0
            elif quiet and (mine[b.QUIET_SINCE_S] == 0 or not covered):
                mine[b.QUIET_SINCE_S] = now_s
            first, last = cell_span[i].tolist()
            lowest, highest, missing = cell_extremes_twin(x, i, cells, first, last)
            place = None
            if lowest >= 0:
                twin.least("cell_min_v", lowest / 1000)
                twin.most("cell_max_v", highest / 1000)
                twin.most("cell_range_max_mv", highest - lowest)
                place = bisect_right(RANGE_EDGES_MV, highest - lowest) - 1
                if mine[b.QUIET_SINCE_S] > 0 and now_s - mine[b.QUIET_SINCE_S] >= b.QUIET_S:
                    twin.count("range_rest", place)
                if doing == DRIVING:
                    twin.count("range_driving", place)
            listed = cells[first:last].tolist() if missing >= 0 else None
            if listed is not None:
                twin.measured[INDEX["cell_rows"]] += 1
                twin.cells(listed)
            twin.charge(now_s, doing, place)
            if doing in (DRIVING, CHARGING) or loud:
                twin.end_rest(job, now_s)
            elif doing == PARKED:
                twin.rest(job, now_s, odometer, soc, listed[: b.CELLS_MAX] if listed else None)
            mine[b.LAST_S], mine[b.LAST_VOLTAGE], mine[b.LAST_CURRENT] = now_s, voltage, current
        if close[job] >= DAY_ENDS:
            settled_s = float(mine[b.LAST_S]) if close[job] == DAY_ENDS else math.nan
            for time_of, value, limit_s in ((b.RATE_S, b.RATE_C, b.RATE_MAX_S), (b.HOLD_S, b.HOLD_C, b.TEMP_HOLD_S)):
                if mine[b.LAST_S] - mine[time_of] > limit_s:
                    mine[[time_of, value]] = 0
            twin.close_day(job, int(day_start_s[job]), settled_s)
            if close[job] == PEEK:
                twin.end_rest(job, math.nan)
    if len(found) > len(findings):
        return -len(found)
    for line, row in zip(found, findings, strict=False):
        row[:] = np.nan
        row[: len(line)] = line
    return len(found)
