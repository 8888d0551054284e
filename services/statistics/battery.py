"""The battery fold: temperatures, cells, insulation and resistance of each vehicle, hour by hour (4.7 to 4.12).

It fills the measures and tallies marked ``battery`` and finds

``cell_outliers``  cells that stood off the others in at least 1 % of a day's usable records (4.7)
``dc_resistance``  median of a day by class of temperature (4.11)
``cell_rests``     the cell that fell most over a rest of six hours or more (4.12)

A missing cell stays missing; a record with more than five of them is no witness for cells (3.1). Nothing here looks
beyond the record in hand, and nothing is summed over a lifetime: what a new day does not need is zero in the state.

Bounds: of a list longer than CELLS_MAX the first CELLS_MAX cells are judged one by one (all of them count for the
extremes); at most OUTLIERS_MAX cells a day are reported, those with most records; resistance is kept for
-20..69 °C and 0.5..807 mΩ; the last five minutes of a charge hold at most one record per five seconds.

Scores are compared in whole numbers: z > 3 is (n·u - S)² > 9·(n·Q - S²) with S and Q the sums of u and u², so no
rounding decides, and two compilers cannot disagree. Tried and lost, for the median of 96 cells: numpy.median (0.9 µs),
numpy.partition (1.2 µs), insertion sort (1.6 µs); counting takes 0.14 µs. numpy.sort and numpy.searchsorted were as
fast as the loops that stand here and cost 2 s of compilation. A day's resistances as values that are thinned by halves
were not even tried: where the current alternates, one of its two directions would be all that is left.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from schemas.jit import compiled, kernel
from schemas.statistics.measures import INDEX, MEASURES, RANGE_BINS, RANGE_EDGES_MV, TALLY_BEGIN, TALLY_WIDTH
from schemas.statistics.records import (
    CHARGING,
    CURRENT,
    DAY_ENDS,
    DRIVING,
    F64,
    FIELDS,
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
    Jobs,
    Records,
)
from schemas.statistics.sessions import FINDING_WIDTH, TABLE
from services.statistics import battery_layout as b
from services.statistics.battery_twin import fold_battery_twin
from services.statistics.pack import CELL_HIGH_MV, CELL_LOW_MV, cell_extremes, temperatures, twice_median

_H_TEMP_MIN, _H_TEMP_MAX, _H_SPREAD, _H_RISE = (
    INDEX[name] for name in ("temp_min_c", "temp_max_c", "temp_spread_max_c", "temp_rise_max_c_per_min")
)
_H_CELL_MIN, _H_CELL_MAX, _H_RANGE, _H_ROWS = (
    INDEX[name] for name in ("cell_min_v", "cell_max_v", "cell_range_max_mv", "cell_rows")
)
_H_INSULATION, _H_PER_V = INDEX["insulation_min_kohm"], INDEX["insulation_min_ohm_per_v"]
_T_TEMP_DRIVING, _T_TEMP_CHARGING = TALLY_BEGIN["temp_driving"], TALLY_BEGIN["temp_charging"]
_T_SPREAD_DRIVING, _T_SPREAD_CHARGING = TALLY_BEGIN["spread_driving"], TALLY_BEGIN["spread_charging"]
_T_REST, _T_DRIVING, _T_CHARGE_END = (TALLY_BEGIN[name] for name in ("range_rest", "range_driving", "range_charge_end"))
# floats: a whole number that is written out is a type of its own, and _emit would be compiled for each
_OUTLIERS, _RESISTANCE, _RESTS = (float(TABLE[name]) for name in ("cell_outliers", "dc_resistance", "cell_rests"))
_RANGE_EDGES: Final = np.array(RANGE_EDGES_MV, np.float64)
_BIN_EDGES: Final = np.array(b.BIN_EDGES_OHM, np.float64)
_SOC_LOW, _SOC_HIGH = b.STEP_SOC
_COUNTS: Final = 2 * (CELL_HIGH_MV - CELL_LOW_MV) + 1


STATE: Final = b.STATE
LAYOUT: Final = b.LAYOUT


def initial_state() -> F64:
    """The state of a vehicle of which nothing is known, (STATE,) f64."""
    return np.zeros(b.STATE, np.float64)


@compiled
def _most(so_far: float, value: float) -> float:
    if so_far >= value:  # not max(): the first value replaces NaN
        return so_far
    return value


@compiled
def _least(so_far: float, value: float) -> float:
    if so_far <= value:
        return so_far
    return value


@compiled
def _emit(
    findings: F64, at: int, job: int, table: float, settled_s: float, start_s: float, b: float, c: float, d: float,
    e: float, f: float,
) -> int:  # fmt: skip
    """Write a finding when there is room; the count goes on without, so that the caller learns what is needed."""
    if at < len(findings):
        for column in range(FINDING_WIDTH):
            findings[at, column] = np.nan
        findings[at, 0] = job
        findings[at, 1] = table
        findings[at, 2] = settled_s
        findings[at, 3] = start_s
        findings[at, 4] = b
        findings[at, 5] = c
        findings[at, 6] = d
        findings[at, 7] = e
        findings[at, 8] = f
    return at + 1


@compiled
def _clear(state: F64, begin: int, end: int) -> None:
    for column in range(begin, end):
        state[column] = 0.0


@compiled
def _bin(edges: F64, value: float) -> int:
    """In which bin a value lies: [edges[k], edges[k + 1]); -1 below all, len(edges) - 1 from the last edge on."""
    low, high = -1, len(edges)
    while high - low > 1:
        middle = (low + high) // 2
        if edges[middle] <= value:
            low = middle
        else:
            high = middle
    return low


@compiled
def _end_rest(state: F64, findings: F64, at: int, job: int, settled_s: float) -> int:
    if state[b.AFTER_S] > 0.0:
        at = _emit(
            findings, at, job, _RESTS, settled_s, state[b.BEFORE_S], state[b.AFTER_S], state[b.AFTER_CELL],
            state[b.AFTER_DROP], state[b.AFTER_MEDIAN], np.nan,
        )  # fmt: skip
    if state[b.BEFORE_S] > 0.0:
        _clear(state, b.BEFORE_AT, b.BEFORE_AT + b.CELLS_MAX)
    _clear(state, b.REST_BEGIN_S, b.AFTER_MEDIAN + 1)
    return at


@compiled
def _end_charge(state: F64, tallies: I64) -> None:
    """Count the records of the charge's last five minutes, and forget them."""
    last_s = state[b.CHARGE_LAST_S]
    if last_s - state[b.CHARGE_BEGIN_S] >= b.CHARGE_MIN_S:
        for slot in range(b.RING):
            kept = int(state[b.RING_AT + slot])
            if kept > 0 and kept // RANGE_BINS >= last_s - b.CHARGE_END_S:
                tallies[_T_CHARGE_END + kept % RANGE_BINS] += 1
    _clear(state, b.RING_AT, b.RING_AT + b.RING)
    state[b.CHARGE_BEGIN_S] = 0.0
    state[b.CHARGE_LAST_S] = 0.0
    state[b.RING_COUNT] = 0.0


@compiled
def _judge_cells(
    cells: I32, begin: int, n: int, used: int, lowest: int, row: I32, off: I32, counts: I32, state: F64
) -> None:
    """Count the cells that stand off in this record (4.7): cells[begin:begin + n], of them ``used`` are values.

    row, off (b.CELLS_MAX,) and counts are scratch; counts is zeros before and after.
    """
    total, squares = np.int64(0), np.int64(0)
    if used == n:
        for c in range(n):
            value = cells[begin + c]
            row[c] = value
            total += value - lowest
            squares += np.int64(value - lowest) * (value - lowest)
    else:
        at = 0
        for c in range(n):
            value = cells[begin + c]
            if value >= CELL_LOW_MV and value <= CELL_HIGH_MV:
                row[at] = value
                at += 1
                total += value - lowest
                squares += np.int64(value - lowest) * (value - lowest)
    median2 = twice_median(row, used, lowest, counts)
    furthest = 0
    for k in range(used):
        distance = abs(2 * row[k] - median2)
        off[k] = distance
        furthest = max(furthest, distance)
    if furthest < 2 * b.OUTLIER_MV:
        return
    mad4 = twice_median(off, used, int(np.int64(0)), counts)  # 4 · MAD
    variance = used * squares - total * total  # n² · variance
    k = -1
    for c in range(n):
        value = cells[begin + c]
        if value < CELL_LOW_MV or value > CELL_HIGH_MV:
            continue
        k += 1
        if off[k] < 2 * b.OUTLIER_MV:
            continue
        deviation = used * np.int64(value - lowest) - total
        by_z = deviation * deviation > 9 * variance
        # |u - median| > 3 · 1.4826 · MAD; all others alike (MAD 0): 10 mV decide alone
        by_robust = 2.0 * off[k] > 3.0 * 1.4826 * mad4
        if by_z or by_robust:
            state[b.FLAGGED_AT + c] += b.EITHER_ONE + (b.Z_ONE if by_z else 0) + (b.ROBUST_ONE if by_robust else 0)
            state[b.OFF_AT + c] += 2 * np.int64(value) - median2


@compiled
def _rest_record(cells: I32, begin: int, n: int, time_s: int, row: I32, counts: I32, state: F64) -> None:
    """A record at rest with a usable list: keep it as "before", or as the latest "after" (4.12)."""
    since_s = time_s - state[b.REST_BEGIN_S]
    if state[b.BEFORE_S] == 0.0 or (since_s <= b.REST_RELAX_S and state[b.AFTER_S] == 0.0):
        state[b.BEFORE_S] = time_s
        if state[b.BEFORE_CELLS] > n:
            state[b.BEFORE_AT + n : b.BEFORE_AT + int(state[b.BEFORE_CELLS])] = 0.0
        state[b.BEFORE_CELLS] = n
        for c in range(n):
            value = cells[begin + c]
            state[b.BEFORE_AT + c] = value if value >= CELL_LOW_MV and value <= CELL_HIGH_MV else 0
        return
    if since_s < b.REST_S or state[b.BEFORE_CELLS] != n:
        return
    most, most_at, least, used = -(1 << 30), -1, int(np.int64(1 << 30)), int(np.int64(0))
    for c in range(n):
        value = cells[begin + c]
        before = np.int32(state[b.BEFORE_AT + c])
        if before > 0 and value >= CELL_LOW_MV and value <= CELL_HIGH_MV:
            drop = before - value
            row[used] = drop
            used += 1
            least = min(least, drop)
            if drop > most:
                most = drop
                most_at = c
    if used < 2:
        return
    median2 = twice_median(row, used, least, counts)
    days = (time_s - state[b.BEFORE_S]) / 86_400.0
    state[b.AFTER_S] = time_s
    state[b.AFTER_CELL] = most_at + 1
    state[b.AFTER_DROP] = most / days
    state[b.AFTER_MEDIAN] = 0.5 * median2 / days


@compiled
def _keep_step(state: F64, resistance_ohm: float, temp_c: float, soc_pct: float) -> None:
    """Put one resistance into the histogram of its class of temperature (4.11)."""
    group = int(np.floor((temp_c - b.CLASS_BEGIN_C) / b.CLASS_C))
    if group < 0 or group >= b.CLASSES:
        return
    place = _bin(_BIN_EDGES, resistance_ohm)
    if place < 0 or place >= b.BINS:
        return
    edge = _BIN_EDGES[place]
    part = int(np.floor((resistance_ohm - edge) / (_BIN_EDGES[place + 1] - edge) * b.BIN_PARTS))
    state[b.BIN_AT + group * b.BINS + place] += b.COUNT_ONE + part
    state[b.SOC_AT + group] += soc_pct
    state[b.TEMP_AT + group] += temp_c


@compiled
def _most_rows(packed: int) -> int:
    return max(packed % b.ROBUST_ONE, packed // b.ROBUST_ONE % b.ROBUST_ONE)


@compiled
def _rank(state: F64, c: int) -> int:
    """Most records first, then the lower cell, in one number."""
    return int(state[b.FLAGGED_AT + c]) // b.EITHER_ONE * b.CELLS_MAX + b.CELLS_MAX - 1 - c


@compiled
def _forget_stale(state: F64) -> None:
    """What no later record can use is zero, so that a corrected day ends like the one before it."""
    if state[b.LAST_S] - state[b.RATE_S] > b.RATE_MAX_S:
        state[b.RATE_S] = 0.0
        state[b.RATE_C] = 0.0
    if state[b.LAST_S] - state[b.HOLD_S] > b.TEMP_HOLD_S:
        state[b.HOLD_S] = 0.0
        state[b.HOLD_C] = 0.0


@compiled
def _close_day(state: F64, findings: F64, at: int, job: int, day_start_s: float, settled_s: float) -> int:
    """Emit the day's cells and resistances, and forget the day."""
    usable = int(state[b.USABLE])
    if usable > 0:
        # the OUTLIERS_MAX cells with most records, in the order of their numbers: find the least that is in
        floor = 0
        over = 0
        for c in range(b.CELLS_MAX):
            if b.OUTLIER_SHARE * _most_rows(int(state[b.FLAGGED_AT + c])) >= usable:
                over += 1
        if over > b.OUTLIERS_MAX:
            floor = 1 << 62
            for _ in range(
                b.OUTLIERS_MAX
            ):  # the next lower one, so many times: rare, and numpy's sort takes 1 s to compile
                below = 0
                for c in range(b.CELLS_MAX):
                    rank = _rank(state, c)
                    if rank < floor:
                        below = max(below, rank)
                floor = below
        for c in range(b.CELLS_MAX):
            packed = int(state[b.FLAGGED_AT + c])
            if packed == 0:
                continue
            z_rows = packed % b.ROBUST_ONE
            robust_rows = packed // b.ROBUST_ONE % b.ROBUST_ONE
            either = packed // b.EITHER_ONE
            if b.OUTLIER_SHARE * max(z_rows, robust_rows) < usable or _rank(state, c) < floor:
                continue
            at = _emit(
                findings, at, job, _OUTLIERS, settled_s, day_start_s, float(c + 1), float(usable), float(z_rows),
                float(robust_rows),
                0.5 * state[b.OFF_AT + c] / either,
            )  # fmt: skip
        _clear(state, b.FLAGGED_AT, b.FLAGGED_AT + b.CELLS_MAX)
        _clear(state, b.OFF_AT, b.OFF_AT + b.CELLS_MAX)
        state[b.USABLE] = 0.0
    for group in range(b.CLASSES):
        begin = b.BIN_AT + group * b.BINS
        samples = 0
        for place in range(b.BINS):
            samples += int(state[begin + place]) // b.COUNT_ONE
        if samples == 0:
            continue
        seen = 0
        place = -1
        while 2 * seen < samples:
            place += 1
            seen += int(state[begin + place]) // b.COUNT_ONE
        held = int(state[begin + place])
        # within the bin: evenly around the mean of its values, as far as its edges; so equal values are exact
        count = held // b.COUNT_ONE
        mean = (held % b.COUNT_ONE / count + 0.5) / b.BIN_PARTS
        along = (0.5 * samples - (seen - count)) / count
        part = mean + (2.0 * along - 1.0) * min(mean, 1.0 - mean)
        edge = _BIN_EDGES[place]
        at = _emit(
            findings, at, job, _RESISTANCE, settled_s, day_start_s, float(b.CLASS_BEGIN_C + b.CLASS_C * group),
            float(samples),
            1000.0 * (edge + part * (_BIN_EDGES[place + 1] - edge)), state[b.SOC_AT + group] / samples,
            state[b.TEMP_AT + group] / samples,
        )  # fmt: skip
        _clear(state, begin, begin + b.BINS)
        state[b.SOC_AT + group] = 0.0
        state[b.TEMP_AT + group] = 0.0
    return at


@kernel(twin=fold_battery_twin)
def fold_battery(
    time_s: I64, kind: U8, x: F64, cell_span: I64, cells: I32, probe_span: I64, probes: I16,
    begin: I64, end: I64, vehicle: I32, hour: I32, day: I32, day_start_s: I64, close: U8,
    gap_limit_s: F64, mode: U8, state: F64, hours: F64, tallies: I64, findings: F64,
) -> int:  # fmt: skip
    """Fold the records of ``begin..end`` of each job into state, hours, tallies and findings.

    The arrays are those of Records and Jobs. Returns the number of findings, or minus the number of lines that
    would be needed when ``findings`` is too short (everything else is then to be thrown away).
    """
    row = np.empty(b.CELLS_MAX, np.int32)
    off = np.empty(b.CELLS_MAX, np.int32)
    counts = np.zeros(_COUNTS, np.int32)
    found = int(np.int64(0))  # not 0: a plain number is a type of its own, and what takes it would be compiled twice
    for job in range(len(begin)):
        mine = state[vehicle[job]]
        measured = hours[hour[job]]
        tallied = tallies[day[job]]
        for i in range(begin[job], end[job]):
            if kind[i] == KIND_LOGOUT:
                continue
            now_s = time_s[i]
            doing = mode[i]
            dt = now_s - int(mine[b.LAST_S]) if mine[b.LAST_S] > 0.0 else -1
            covered = dt > 0 and dt <= gap_limit_s[i]
            voltage = x[i, VOLTAGE]
            current = x[i, CURRENT]
            # -- temperatures (4.8)
            hot, cold = temperatures(x, i, probes, probe_span[i, 0], probe_span[i, 1])
            if hot == hot:
                measured[_H_TEMP_MAX] = _most(measured[_H_TEMP_MAX], hot)
                measured[_H_TEMP_MIN] = _least(measured[_H_TEMP_MIN], cold)
                spread = hot - cold
                measured[_H_SPREAD] = _most(measured[_H_SPREAD], spread)
                if doing in (DRIVING, CHARGING):
                    warm_bin = min(max(int(np.floor((hot + 40.0) / 5.0)), 0), 49)
                    spread_bin = min(int(np.floor(spread)), 19)
                    tallied[(_T_TEMP_DRIVING if doing == DRIVING else _T_TEMP_CHARGING) + warm_bin] += 1
                    tallied[(_T_SPREAD_DRIVING if doing == DRIVING else _T_SPREAD_CHARGING) + spread_bin] += 1
                span_s = now_s - mine[b.RATE_S]
                if mine[b.RATE_S] > 0.0 and span_s >= b.RATE_MIN_S and span_s <= b.RATE_MAX_S:
                    rise = (hot - mine[b.RATE_C]) / span_s * 60.0
                    measured[_H_RISE] = _most(measured[_H_RISE], rise)
                if mine[b.RATE_S] == 0.0 or span_s >= b.RATE_MIN_S:
                    mine[b.RATE_S] = now_s
                    mine[b.RATE_C] = hot
                mine[b.HOLD_S] = now_s
                mine[b.HOLD_C] = 0.5 * (hot + cold)
            # -- insulation (4.9)
            insulation = x[i, INSULATION]
            if insulation >= 0.0:
                measured[_H_INSULATION] = _least(measured[_H_INSULATION], insulation)
                if voltage >= b.PACK_V_MIN:
                    per_v = insulation * 1000.0 / voltage
                    measured[_H_PER_V] = _least(measured[_H_PER_V], per_v)
            # -- resistance (4.11)
            if dt > 0 and dt <= b.STEP_S:
                step = current - mine[b.LAST_CURRENT]
                soc = x[i, SOC]
                if abs(step) >= b.STEP_A and soc >= _SOC_LOW and soc <= _SOC_HIGH and mine[b.HOLD_S] > 0.0:
                    resistance = -(voltage - mine[b.LAST_VOLTAGE]) / step
                    if resistance > 0.0 and now_s - mine[b.HOLD_S] <= b.TEMP_HOLD_S:
                        _keep_step(mine, resistance, mine[b.HOLD_C], soc)
            # -- at rest?
            if current == current:
                if abs(current) < b.QUIET_A:
                    if mine[b.QUIET_SINCE_S] == 0.0 or not covered:
                        mine[b.QUIET_SINCE_S] = now_s
                else:
                    mine[b.QUIET_SINCE_S] = 0.0
            elif not covered:
                mine[b.QUIET_SINCE_S] = 0.0
            # -- cells (4.7)
            first, last = cell_span[i, 0], cell_span[i, 1]
            lowest, highest, missing = cell_extremes(x, i, cells, first, last)
            judged = min(last - first, b.CELLS_MAX)
            range_bin = -1
            if lowest >= 0:
                measured[_H_CELL_MIN] = _least(measured[_H_CELL_MIN], lowest / 1000.0)
                measured[_H_CELL_MAX] = _most(measured[_H_CELL_MAX], highest / 1000.0)
                apart = highest - lowest
                measured[_H_RANGE] = _most(measured[_H_RANGE], float(apart))
                range_bin = apart
                if apart >= 64:
                    range_bin = _bin(_RANGE_EDGES, float(apart))
                if mine[b.QUIET_SINCE_S] > 0.0 and now_s - mine[b.QUIET_SINCE_S] >= b.QUIET_S:
                    tallied[_T_REST + range_bin] += 1
                if doing == DRIVING:
                    tallied[_T_DRIVING + range_bin] += 1
                if missing >= 0:
                    measured[_H_ROWS] += 1.0
                    mine[b.USABLE] += 1.0
                    if apart >= b.OUTLIER_MV:
                        used = judged - missing
                        if last - first > b.CELLS_MAX:
                            used = 0
                            for c in range(first, first + judged):
                                if cells[c] >= CELL_LOW_MV and cells[c] <= CELL_HIGH_MV:
                                    used += 1
                        _judge_cells(cells, first, judged, used, lowest, row, off, counts, mine)
            # -- the end of a charge
            if doing == CHARGING:
                if mine[b.CHARGE_LAST_S] > 0.0 and now_s - mine[b.CHARGE_LAST_S] > b.CHARGE_PAUSE_S:
                    _end_charge(mine, tallied)
                if mine[b.CHARGE_BEGIN_S] == 0.0:
                    mine[b.CHARGE_BEGIN_S] = now_s
                mine[b.CHARGE_LAST_S] = now_s
                if range_bin >= 0:
                    kept = int(mine[b.RING_COUNT])
                    newest = int(mine[b.RING_AT + (kept - 1) % b.RING]) // RANGE_BINS if kept > 0 else 0
                    if now_s - newest >= b.RING_STEP_S:
                        mine[b.RING_AT + kept % b.RING] = now_s * RANGE_BINS + range_bin
                        mine[b.RING_COUNT] = kept + 1
            elif mine[b.CHARGE_LAST_S] > 0.0 and (doing == DRIVING or now_s - mine[b.CHARGE_LAST_S] > b.CHARGE_PAUSE_S):
                _end_charge(mine, tallied)
            # -- rests (4.12)
            if doing in (DRIVING, CHARGING) or abs(current) >= b.QUIET_A:
                if mine[b.REST_BEGIN_S] > 0.0:
                    found = _end_rest(mine, findings, found, job, float(now_s))
            elif doing == PARKED:
                odometer = x[i, ODOMETER]
                soc = x[i, SOC]
                if mine[b.REST_BEGIN_S] > 0.0 and (
                    odometer - mine[b.REST_ODOMETER] > b.REST_KM or abs(soc - mine[b.REST_SOC_PCT]) > b.REST_SOC
                ):
                    found = _end_rest(mine, findings, found, job, float(now_s))
                if mine[b.REST_BEGIN_S] == 0.0:
                    mine[b.REST_BEGIN_S] = now_s
                    mine[b.REST_ODOMETER] = odometer
                    mine[b.REST_SOC_PCT] = soc
                if missing >= 0:
                    _rest_record(cells, first, judged, now_s, row, counts, mine)
            mine[b.LAST_S] = now_s
            mine[b.LAST_VOLTAGE] = voltage
            mine[b.LAST_CURRENT] = current
        if close[job] >= DAY_ENDS:
            settled_s = mine[b.LAST_S] if close[job] == DAY_ENDS else np.nan
            _forget_stale(mine)
            found = _close_day(mine, findings, found, job, float(day_start_s[job]), settled_s)
            if close[job] == PEEK:
                found = _end_rest(mine, findings, found, job, np.nan)
    return found if found <= len(findings) else -found


def run(records: Records, jobs: Jobs, gap_limit_s: F64, mode: U8, state: F64, hours: F64, tallies: I64) -> F64:
    """Fold ``records`` as ``jobs`` say; returns the findings, (m, FINDING_WIDTH) f64.

    The room is enough by count: a day ends with so many cells, classes and at most one rest, and an hour cannot end
    two rests, which last six hours each.
    """
    closing = int(np.count_nonzero(jobs.close >= DAY_ENDS))
    findings = np.empty((jobs.n + closing * (b.OUTLIERS_MAX + b.CLASSES + 1), FINDING_WIDTH), np.float64)
    found = fold_battery(
        records.time_s, records.kind, records.x, records.cell_span, records.cells, records.probe_span, records.probes,
        jobs.begin, jobs.end, jobs.vehicle, jobs.hour, jobs.day, jobs.day_start_s, jobs.close,
        gap_limit_s, mode, state, hours, tallies, findings,
    )  # fmt: skip
    assert found >= 0, f"more findings ({-found}) than {jobs.n} hours of which {closing} end a day can have"
    return findings[:found].copy()


def warm() -> None:
    """Compile this module's kernels."""
    one = np.zeros(1, np.int64)
    small = np.zeros(1, np.int32)
    code = np.zeros(1, np.uint8)
    fold_battery(
        one, code, np.full((1, len(FIELDS)), math.nan), np.zeros((1, 2), np.int64), small, np.zeros((1, 2), np.int64),
        np.zeros(1, np.int16), one, one, small, small, small, one, code, np.zeros(1), code, initial_state()[None, :],
        np.zeros((1, len(MEASURES))), np.zeros((1, TALLY_WIDTH), np.int64), np.zeros((1, FINDING_WIDTH)),
    )  # fmt: skip
