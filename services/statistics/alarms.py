"""The alarms fold: episodes of the vehicle's own alarm flags and of the platform's rules (4.8 to 4.10, 5).

An episode of a flag begins with the record in which it is 1 and ends when it has been 0 for 60 s, when no alarm data
have come for longer than the gap limit, or when the vehicle logs out; ``end_s`` is the last record with the flag. A
flag that comes back within the 60 s is the same episode. Records are in order of their own time, so a reissued one
belongs to the episode of its time and is not counted twice; an episode whose first record came more than 60 s after
it was collected is marked late. Flags that are all ones are no data.

The rules are those of ``schemas/statistics/rules.py``. Two things here are more than a threshold:

*Thermal event* (4.10): the evidence (a cell that lost a quarter, a hot probe; a rise of 30 °C, a rise held for three
minutes, a new insulation fault) must fall into 60 s or, when records are sparser, into two neighbours. Values are
taken raw, a cell of 0.2 V and a probe of 210 °C count; only what the protocol calls no value is out. A sensor that is
loose must not call the fire brigade: a rise that one single probe shows, and nothing else, is raised with its next
reading, when that has not fallen back by half; and the base of a rise is the higher of two neighbouring readings,
so that one dip is no base. Two probes, a cell and a probe, or the vehicle itself are believed at once.

*Not measured* (4.9): insulation at the field's maximum, or the same constant for 30 days, is not rated.

Nothing looks beyond the record in hand; nothing is kept over a lifetime: what no later record can use is zero when
the day ends. The last minute is kept as the extremes of five seconds each: at records 5 s apart and more that is exact,
at 1 Hz the window is 55 to 60 s. Tried and lost: walking all 41 codes at every record (1.6 M records/s; with the two
masks of open codes 7 M).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from schemas.jit import compiled, kernel
from schemas.statistics.measures import INDEX, MEASURES, TALLY_BEGIN, TALLY_WIDTH
from schemas.statistics.records import (
    ALARM_FLAGS,
    ALARM_LEVEL,
    CELL_MIN,
    CURRENT,
    DAY_ENDS,
    DCDC,
    F64,
    FIELDS,
    I16,
    I32,
    I64,
    INSULATION,
    KIND_LOGOUT,
    LATITUDE,
    LONGITUDE,
    PEEK,
    REPORTED_CELL_MIN,
    SOC,
    SPEED,
    U8,
    VOLTAGE,
    Jobs,
    Records,
)
from schemas.statistics.rules import (
    AT_LEAST,
    BELOW,
    CELL_OUTLIER,
    FLAG_HIGH_TEMPERATURE,
    FLAG_QUANTITY,
    FLAG_THERMAL_EVENT,
    FLAGS,
    FOLD_RULES,
    INSULATION_FAULT,
    LEVEL_WITHOUT_FLAG,
    Q_ALARM_LEVEL,
    Q_CELL_DEVIATION,
    Q_CELL_MAX,
    Q_CELL_MIN,
    Q_CELL_RANGE,
    Q_CURRENT,
    Q_DCDC,
    Q_INSULATION,
    Q_INSULATION_PER_V,
    Q_SOC,
    Q_SPEED,
    Q_TEMP_MAX,
    Q_TEMP_SPREAD,
    Q_VOLTAGE,
    QUANTITIES,
    R_CLEAR,
    R_CLEAR_S,
    R_LEVEL,
    R_MORE,
    R_NEEDS_RECORDS,
    R_NEEDS_S,
    R_QUANTITY,
    R_TEST,
    R_THRESHOLD,
    SOURCE_FLAG,
    SOURCE_RULE,
    THERMAL_EVENT,
    rule_array,
)
from schemas.statistics.sessions import FINDING_WIDTH, TABLE
from services.statistics import alarms_layout as a
from services.statistics.alarms_twin import fold_alarms_twin
from services.statistics.battery_layout import PACK_V_MIN
from services.statistics.pack import (
    CELL_HIGH_MV,
    CELL_LOW_MV,
    cell_extremes,
    temperatures,
    twice_median,
)

STATE: Final = a.STATE
LAYOUT: Final = a.LAYOUT
RULES: Final = rule_array()

_RULES: Final = len(FOLD_RULES)
_H_ALARM, _H_LEVEL = INDEX["alarm_s"], INDEX["alarm_level_max"]
_T_FLAGS: Final = TALLY_BEGIN["flag_s"]
_EPISODES: Final = TABLE["alarm_episodes"]
_FLAG_QUANTITY: Final = np.array(FLAG_QUANTITY, np.int64)
_THERMAL: Final = THERMAL_EVENT - 1  # rows of the rule array
_OUTLIER: Final = CELL_OUTLIER - 1
_FAULT: Final = INSULATION_FAULT - 1
_UNFLAGGED: Final = LEVEL_WITHOUT_FLAG - 1
_COUNTS: Final = 2 * (CELL_HIGH_MV - CELL_LOW_MV) + 1
NOT_ON, ON, UNKNOWN = 0, 1, -1


def initial_state() -> F64:
    """The state of a vehicle of which nothing is known, (STATE,) f64."""
    return np.zeros(a.STATE, np.float64)


@compiled
def _forget(state: F64, code: int) -> None:
    for column in range(code * a.BLOCK, (code + 1) * a.BLOCK):
        state[column] = 0.0


@compiled
def _close(state: F64, code: int, findings: F64, found: int, job: int, settled_s: float) -> int:
    """Emit the episode of ``code`` if it was ever raised, and forget it; returns how many findings there are now.

    A settled_s of NaN: it goes on, and is kept.
    """
    at = code * a.BLOCK
    if state[at + a.RAISED] > 0.0:
        if found < len(findings):
            for column in range(FINDING_WIDTH):
                findings[found, column] = np.nan
            findings[found, 0] = job
            findings[found, 1] = _EPISODES
            findings[found, 2] = settled_s
            findings[found, 3] = state[at + a.START_S]
            findings[found, 4] = state[at + a.LAST_ON_S]
            findings[found, 5] = SOURCE_FLAG if code < FLAGS else SOURCE_RULE
            findings[found, 6] = code if code < FLAGS else code - FLAGS + 1
            findings[found, 7] = state[at + a.LEVEL]
            findings[found, 8] = state[at + a.RECORDS]
            findings[found, 9] = state[at + a.LATE]
            findings[found, 10] = state[at + a.VALUE_MIN]
            findings[found, 11] = state[at + a.VALUE_MAX]
            findings[found, 12] = state[at + a.LONGITUDE]
            findings[found, 13] = state[at + a.LATITUDE]
        found += 1
    if settled_s == settled_s:
        _forget(state, code)
    return found


@compiled
def _step(
    state: F64, code: int, on: int, now_s: int, gap_s: float, level: float, value: float, late: int,
    needs_records: float, needs_s: float, clear_s: float, findings: F64, found: int, job: int,
) -> int:  # fmt: skip
    """One record for one code: ``on`` is ON, NOT_ON, or UNKNOWN when the record does not say."""
    at = code * a.BLOCK
    if state[at + a.START_S] > 0.0 and (
        now_s - state[at + a.SEEN_S] > gap_s or (state[at + a.OFF_S] > 0.0 and now_s - state[at + a.OFF_S] >= clear_s)
    ):
        found = _close(state, code, findings, found, job, float(now_s))
    if on == ON:
        if state[at + a.START_S] == 0.0:
            state[at + a.START_S] = now_s
            state[at + a.LATE] = late
            state[at + a.VALUE_MIN] = np.nan
            state[at + a.VALUE_MAX] = np.nan
            state[at + a.LONGITUDE] = np.nan
            state[at + a.LATITUDE] = np.nan
        state[at + a.LAST_ON_S] = now_s
        state[at + a.SEEN_S] = now_s
        state[at + a.OFF_S] = 0.0
        state[at + a.RECORDS] += 1.0
        if level > state[at + a.LEVEL]:
            state[at + a.LEVEL] = level
        if value == value:
            if not (state[at + a.VALUE_MIN] <= value):
                state[at + a.VALUE_MIN] = value
            if not (state[at + a.VALUE_MAX] >= value):
                state[at + a.VALUE_MAX] = value
        if state[at + a.LONGITUDE] != state[at + a.LONGITUDE] and (
            state[a.LAST_LONGITUDE] != 0.0 or state[a.LAST_LATITUDE] != 0.0
        ):
            state[at + a.LONGITUDE] = state[a.LAST_LONGITUDE]
            state[at + a.LATITUDE] = state[a.LAST_LATITUDE]
        if (needs_records > 0.0 and state[at + a.RECORDS] >= needs_records) or (
            needs_s > 0.0 and now_s - state[at + a.START_S] >= needs_s
        ):
            state[at + a.RAISED] = 1.0
    elif on == NOT_ON and state[at + a.START_S] > 0.0:
        state[at + a.SEEN_S] = now_s
        if state[at + a.RAISED] == 0.0:
            _forget(state, code)  # not in a row
        elif state[at + a.OFF_S] == 0.0:
            state[at + a.OFF_S] = now_s
    return found


@compiled
def _furthest_cell(cells: I32, begin: int, n: int, lowest: int, row: I32, off: I32, counts: I32) -> Any:
    """(position, 2 · |u - median|, 4 · MAD) of the usable cell that is furthest from the median; -1 with too few."""
    used = int(np.int64(0))
    for c in range(n):
        value = cells[begin + c]
        if value >= CELL_LOW_MV and value <= CELL_HIGH_MV:
            row[used] = value
            used += 1
    if used < a.OUTLIER_CELLS:
        return -1, 0, 0
    median2 = twice_median(row, used, lowest, counts)
    furthest, at, k = -1, -1, 0
    for c in range(n):
        value = cells[begin + c]
        if value >= CELL_LOW_MV and value <= CELL_HIGH_MV:
            off[k] = abs(2 * value - median2)
            if off[k] > furthest:
                furthest = off[k]
                at = c
            k += 1
    return at, furthest, twice_median(off, used, int(np.int64(0)), counts)


@compiled
def _raw_lowest_cell(x: F64, i: int, cells: I32, begin: int, end: int) -> float:
    """Lowest cell of record ``i`` in mV as it came, NaN when unknown: exactly 0 is no reading, 200 mV is one."""
    lowest = 1 << 30
    for c in range(begin, end):
        value = cells[c]
        if value > 0:
            lowest = min(lowest, value)
    if lowest < 1 << 30:
        return float(lowest)
    if x[i, REPORTED_CELL_MIN] > 0.0:
        return float(np.floor(x[i, REPORTED_CELL_MIN] * 1000.0 + 0.5))
    if x[i, CELL_MIN] > 0.0:
        return float(np.floor(x[i, CELL_MIN] * 1000.0 + 0.5))
    return np.nan


@compiled
def _there(evidence_s: float, now_s: int, before_s: float) -> bool:
    """Is evidence of ``evidence_s`` within 60 s of now, or of the record before?"""
    return evidence_s > 0.0 and (now_s - evidence_s <= a.WINDOW_S or evidence_s == before_s)


@compiled
def _thermal(
    state: F64, rule: F64, now_s: int, gap_s: float, hot: float, warm_probes: I16, begin: int, end: int,
    lowest_mv: float, fault_is_new: int,
) -> bool:  # fmt: skip
    """Does the evidence up to this record make a thermal event (4.10)? Keeps what later records need."""
    before_s = state[a.LAST_S] if now_s - state[a.LAST_S] <= gap_s else -1.0
    base = np.nan
    highest_mv = np.nan
    for slot in range(a.SLOTS):
        if state[a.SLOT_TIME_AT + slot] > 0.0 and now_s - state[a.SLOT_TIME_AT + slot] <= a.WINDOW_S:
            temp_c = state[a.SLOT_TEMP_AT + slot]
            if temp_c == temp_c and not (base <= temp_c):
                base = temp_c
            cell_mv = state[a.SLOT_CELL_AT + slot]
            if cell_mv == cell_mv and not (highest_mv >= cell_mv):
                highest_mv = cell_mv
    if base != base and state[a.TEMP_S] > 0.0 and now_s - state[a.TEMP_S] <= gap_s:
        base = state[a.TEMP_PAIR_C]
    if highest_mv != highest_mv and state[a.CELL_S] > 0.0 and now_s - state[a.CELL_S] <= gap_s:
        highest_mv = state[a.CELL_MV]
    limit, drop, rise, rate, held_s = (
        rule[R_THRESHOLD], rule[R_MORE], rule[R_MORE + 1], rule[R_MORE + 2], rule[R_MORE + 3],
    )  # fmt: skip
    if lowest_mv < (1.0 - drop) * highest_mv:
        state[a.DROP_S] = now_s
    if fault_is_new != 0:
        state[a.FAULT_S] = now_s
    believed = False
    if hot == hot:
        # a lone probe's rise: does its next reading bear it out?
        if state[a.PENDING_S] > 0.0:
            in_time = now_s - state[a.PENDING_S] <= max(float(a.WINDOW_S), gap_s)
            if in_time and hot >= state[a.PENDING_BASE_C] + 0.5 * rise:
                believed = True
            elif in_time:
                state[a.HOT_S] = 0.0
                state[a.RISE_S] = 0.0
                state[a.PENDING_S] = 0.0
            else:
                state[a.PENDING_S] = 0.0
        if hot >= limit:
            state[a.HOT_S] = now_s
        if hot - base >= rise:
            state[a.RISE_S] = now_s
        # a rise held: minute by minute
        span_s = now_s - state[a.RATE_S]
        if state[a.RATE_S] == 0.0 or span_s > a.RATE_SPAN_S + gap_s:
            state[a.RATE_S] = now_s
            state[a.RATE_C] = hot
            state[a.CLIMB_S] = 0.0
        elif span_s >= a.RATE_SPAN_S:
            if (hot - state[a.RATE_C]) / span_s * 60.0 >= rate:
                if state[a.CLIMB_S] == 0.0:
                    state[a.CLIMB_S] = state[a.RATE_S]
                if now_s - state[a.CLIMB_S] >= held_s:
                    state[a.SLOPE_S] = now_s
            else:
                state[a.CLIMB_S] = 0.0
            state[a.RATE_S] = now_s
            state[a.RATE_C] = hot
    dropped = _there(state[a.DROP_S], now_s, before_s)
    hot_now = _there(state[a.HOT_S], now_s, before_s)
    risen = _there(state[a.RISE_S], now_s, before_s)
    more = _there(state[a.SLOPE_S], now_s, before_s) or _there(state[a.FAULT_S], now_s, before_s)
    event = believed or (dropped and (risen or more)) or (hot_now and more)
    if not event and hot_now and risen and (state[a.HOT_S] == now_s or state[a.RISE_S] == now_s):
        others = 0
        for p in range(begin, end):
            if warm_probes[p] >= base + a.OTHER_PROBE_C:
                others += 1
        if others >= 2:
            event = True
        elif state[a.PENDING_S] == 0.0:
            state[a.PENDING_S] = now_s
            state[a.PENDING_C] = hot
            state[a.PENDING_BASE_C] = base
    # what the next records compare with
    slot = now_s // a.SLOT_S % a.SLOTS
    if state[a.SLOT_TIME_AT + slot] // a.SLOT_S != now_s // a.SLOT_S:
        state[a.SLOT_TIME_AT + slot] = now_s
        state[a.SLOT_TEMP_AT + slot] = np.nan
        state[a.SLOT_CELL_AT + slot] = np.nan
    if hot == hot:
        pair = hot
        if state[a.TEMP_S] > 0.0 and now_s - state[a.TEMP_S] <= gap_s:
            pair = max(hot, state[a.TEMP_C])
        if not (state[a.SLOT_TEMP_AT + slot] <= pair):
            state[a.SLOT_TEMP_AT + slot] = pair
        state[a.TEMP_S] = now_s
        state[a.TEMP_C] = hot
        state[a.TEMP_PAIR_C] = pair
    if lowest_mv == lowest_mv:
        if not (state[a.SLOT_CELL_AT + slot] >= lowest_mv):
            state[a.SLOT_CELL_AT + slot] = lowest_mv
        state[a.CELL_S] = now_s
        state[a.CELL_MV] = lowest_mv
    return event


@compiled
def _forget_stale(state: F64) -> None:
    """At a day's end: what no later record can use is zero, so that a corrected day ends like the one before it."""
    last_s = state[a.LAST_S]
    for column in (a.DROP_S, a.HOT_S, a.RISE_S, a.SLOPE_S, a.FAULT_S):
        if state[column] != last_s and last_s - state[column] > a.WINDOW_S:
            state[column] = 0.0
    for slot in range(a.SLOTS):
        if last_s - state[a.SLOT_TIME_AT + slot] > a.WINDOW_S:
            state[a.SLOT_TIME_AT + slot] = 0.0
            state[a.SLOT_TEMP_AT + slot] = 0.0
            state[a.SLOT_CELL_AT + slot] = 0.0
    if state[a.PENDING_S] == 0.0:
        state[a.PENDING_C] = 0.0
        state[a.PENDING_BASE_C] = 0.0
    if last_s - state[a.DATA_S] > a.STALE_S:
        state[a.DATA_S] = 0.0
        state[a.HELD_FLAGS] = 0.0
        state[a.HELD_LEVEL] = 0.0
    if last_s - state[a.RATE_S] > a.STALE_S:
        state[a.RATE_S] = 0.0
        state[a.RATE_C] = 0.0
        state[a.CLIMB_S] = 0.0
    if last_s - state[a.TEMP_S] > a.STALE_S:
        state[a.TEMP_S] = 0.0
        state[a.TEMP_C] = 0.0
        state[a.TEMP_PAIR_C] = 0.0
    if last_s - state[a.CELL_S] > a.STALE_S:
        state[a.CELL_S] = 0.0
        state[a.CELL_MV] = 0.0


@compiled
def _close_all(state: F64, findings: F64, found: int, job: int, settled_s: float) -> int:
    """Close whatever is open; with a settled_s of NaN only emit it, as open."""
    if state[a.OPEN_FLAGS] == 0.0 and state[a.OPEN_RULES] == 0.0:
        return found
    for code in range(a.CODES):
        if state[code * a.BLOCK + a.START_S] > 0.0:
            found = _close(state, code, findings, found, job, settled_s)
    if settled_s == settled_s:
        state[a.OPEN_FLAGS] = 0.0
        state[a.OPEN_RULES] = 0.0
    return found


@kernel(twin=fold_alarms_twin)
def fold_alarms(
    time_s: I64, kind: U8, x: F64, late_us: I64, cell_span: I64, cells: I32, probe_span: I64, probes: I16,
    begin: I64, end: I64, vehicle: I32, hour: I32, day: I32, close: U8, rules: F64,
    gap_limit_s: F64, state: F64, hours: F64, tallies: I64, findings: F64,
) -> int:  # fmt: skip
    """Fold the records of ``begin..end`` of each job into state, hours, tallies and findings.

    The arrays are those of Records and Jobs; ``rules`` is that of :func:`schemas.statistics.rules.rule_array`. Returns
    the number of findings, or minus the number of lines that would be needed when ``findings`` is too short
    (everything else is then to be thrown away).
    """
    row = np.empty(a.CELLS_MAX, np.int32)
    off = np.empty(a.CELLS_MAX, np.int32)
    counts = np.zeros(_COUNTS, np.int32)
    q = np.full(len(QUANTITIES), np.nan)
    # a plain 0 would be a type of its own, and every function it is passed to would be compiled twice
    found = int(np.int64(0))
    nothing = int(np.int64(0))
    for job in range(len(begin)):
        mine = state[vehicle[job]]
        measured = hours[hour[job]]
        for i in range(begin[job], end[job]):
            now_s = time_s[i]
            gap_s = gap_limit_s[i]
            if kind[i] == KIND_LOGOUT:
                found = _close_all(mine, findings, found, job, float(now_s))
                mine[a.LAST_S] = 0.0
                mine[a.HELD_FLAGS] = 0.0
                mine[a.HELD_LEVEL] = 0.0
                mine[a.OUTLIER_CELL] = 0.0
                continue
            level = x[i, ALARM_LEVEL]
            flags = np.int64(-1)
            if x[i, ALARM_FLAGS] >= 0.0 and x[i, ALARM_FLAGS] < a.ALL_ONES:
                flags = np.int64(x[i, ALARM_FLAGS])
            # -- time under alarm: what was said holds until the next word, at most the gap limit
            if now_s - mine[a.DATA_S] > gap_s:
                mine[a.HELD_FLAGS] = 0.0
                mine[a.HELD_LEVEL] = 0.0
            if (mine[a.HELD_FLAGS] > 0.0 or mine[a.HELD_LEVEL] > 0.0) and mine[a.LAST_S] > 0.0:
                dt = now_s - np.int64(mine[a.LAST_S])
                if dt <= gap_s:
                    measured[_H_ALARM] += dt
                    held = np.int64(mine[a.HELD_FLAGS])
                    for bit in range(FLAGS):
                        if held >> bit & 1:
                            tallies[day[job], _T_FLAGS + bit] += dt
            if flags >= 0:
                mine[a.HELD_FLAGS] = flags
                mine[a.DATA_S] = now_s
            if level == level:
                mine[a.HELD_LEVEL] = level
                mine[a.DATA_S] = now_s
                if not (measured[_H_LEVEL] >= level):
                    measured[_H_LEVEL] = level
            # -- figures
            longitude = x[i, LONGITUDE]
            latitude = x[i, LATITUDE]
            if longitude == longitude and latitude == latitude and (longitude != 0.0 or latitude != 0.0):
                mine[a.LAST_LONGITUDE] = longitude
                mine[a.LAST_LATITUDE] = latitude
            hot, cold = temperatures(x, i, probes, probe_span[i, 0], probe_span[i, 1])
            lowest, highest, missing = cell_extremes(x, i, cells, cell_span[i, 0], cell_span[i, 1])
            q[Q_TEMP_MAX] = hot
            q[Q_TEMP_SPREAD] = hot - cold
            known = lowest >= 0
            q[Q_CELL_MAX] = highest / 1000.0 if known else np.nan
            q[Q_CELL_MIN] = lowest / 1000.0 if known else np.nan
            q[Q_CELL_RANGE] = float(highest - lowest) if known else np.nan
            q[Q_CELL_DEVIATION] = np.nan
            q[Q_VOLTAGE] = x[i, VOLTAGE]
            q[Q_CURRENT] = x[i, CURRENT]
            q[Q_SOC] = x[i, SOC]
            q[Q_SPEED] = x[i, SPEED]
            q[Q_DCDC] = x[i, DCDC]
            q[Q_ALARM_LEVEL] = level
            insulation = x[i, INSULATION]
            q[Q_INSULATION] = insulation
            q[Q_INSULATION_PER_V] = np.nan
            if insulation >= 0.0:
                if insulation != mine[a.PINNED_AT] or mine[a.PINNED_SINCE_S] == 0.0:
                    mine[a.PINNED_AT] = insulation
                    mine[a.PINNED_SINCE_S] = now_s
                elif mine[a.PINNED_SINCE_S] > 0.0 and now_s - mine[a.PINNED_SINCE_S] >= a.PINNED_S:
                    mine[a.PINNED_SINCE_S] = -1.0  # not measured, until it moves
                if mine[a.PINNED_SINCE_S] > 0.0 and insulation < a.PINNED_KOHM and x[i, VOLTAGE] >= PACK_V_MIN:
                    q[Q_INSULATION_PER_V] = insulation * 1000.0 / x[i, VOLTAGE]
            late = 1 if late_us[i] > a.LATE_US else 0
            # -- the vehicle's own flags (5)
            open_flags = np.int64(mine[a.OPEN_FLAGS])
            if flags > 0 or open_flags > 0:
                either = open_flags if flags < 0 else open_flags | flags
                for bit in range(FLAGS):
                    if either >> bit & 1:
                        on = UNKNOWN if flags < 0 else int(flags >> bit & 1)
                        found = _step(
                            mine, bit, on, now_s, gap_s, level, q[_FLAG_QUANTITY[bit]], late, 1.0, 0.0,
                            a.FLAG_CLEAR_S, findings, found, job,
                        )  # fmt: skip
                        if mine[bit * a.BLOCK + a.START_S] > 0.0:
                            open_flags |= np.int64(1) << bit
                        else:
                            open_flags &= ~(np.int64(1) << bit)
                mine[a.OPEN_FLAGS] = open_flags
            # -- the platform's rules
            open_rules = np.int64(mine[a.OPEN_RULES])
            fault_is_new = nothing
            event = False
            for r in range(_RULES):
                rule = rules[r]
                code = FLAGS + r
                at = code * a.BLOCK
                raised = mine[at + a.RAISED] > 0.0
                value = q[np.int64(rule[R_QUANTITY])]
                rule_level = rule[R_LEVEL]
                on = UNKNOWN
                if rule[R_TEST] == AT_LEAST:
                    if value == value:
                        on = ON if value >= (rule[R_CLEAR] if raised else rule[R_THRESHOLD]) else NOT_ON
                elif rule[R_TEST] == BELOW:
                    if value == value:
                        on = ON if value < (rule[R_CLEAR] if raised else rule[R_THRESHOLD]) else NOT_ON
                elif r == _OUTLIER:
                    if missing >= 0:
                        on = NOT_ON
                        enough = rule[R_CLEAR] if raised else rule[R_THRESHOLD]
                        if highest - lowest >= enough:
                            cell, off2, mad4 = _furthest_cell(
                                cells, cell_span[i, 0], min(cell_span[i, 1] - cell_span[i, 0], a.CELLS_MAX), lowest,
                                row, off, counts,
                            )  # fmt: skip
                            if cell >= 0 and off2 >= 2.0 * enough and 2.0 * off2 > rule[R_MORE] * 1.4826 * mad4:
                                on = ON
                                value = 0.5 * off2
                                if not raised and mine[at + a.START_S] > 0.0 and mine[a.OUTLIER_CELL] != cell + 1:
                                    _forget(mine, code)  # another cell: it has to last anew
                                if not raised:
                                    mine[a.OUTLIER_CELL] = cell + 1
                elif r == _THERMAL:
                    event = _thermal(
                        mine, rule, now_s, gap_s, hot, probes, probe_span[i, 0], probe_span[i, 1],
                        float(lowest) if missing == 0
                        else _raw_lowest_cell(x, i, cells, cell_span[i, 0], cell_span[i, 1]), fault_is_new,
                    )  # fmt: skip
                    if flags > 0 and not event:
                        event = (flags >> FLAG_HIGH_TEMPERATURE & 1 == 1 and level >= a.TOLD_LEVEL) or (
                            flags >> FLAG_THERMAL_EVENT & 1 == 1 and (level >= a.TOLD_LEVEL or level != level)
                        )
                    if event:
                        on = ON
                    elif hot == hot or flags >= 0:
                        on = ON if raised and hot >= rule[R_CLEAR] else NOT_ON
                elif r == _UNFLAGGED and flags >= 0 and level == level:
                    on = ON if flags == 0 and level >= rule[R_THRESHOLD] else NOT_ON
                    rule_level = level
                if on != ON and open_rules >> r & 1 == 0:
                    continue
                found = _step(
                    mine, code, on, now_s, gap_s, rule_level, value, late, rule[R_NEEDS_RECORDS], rule[R_NEEDS_S],
                    rule[R_CLEAR_S], findings, found, job,
                )  # fmt: skip
                if r == _FAULT:
                    fault_is_new = nothing + (not raised and mine[at + a.RAISED] > 0.0)
                if r == _THERMAL and event:
                    # raised by the reading after: it began with the one before
                    if not raised and mine[a.PENDING_S] > 0.0 and mine[a.PENDING_S] < mine[at + a.START_S]:
                        mine[at + a.START_S] = mine[a.PENDING_S]
                        mine[at + a.RECORDS] += 1.0
                        if not (mine[at + a.VALUE_MAX] >= mine[a.PENDING_C]):
                            mine[at + a.VALUE_MAX] = mine[a.PENDING_C]
                    mine[a.PENDING_S] = 0.0
                if r == _OUTLIER and mine[at + a.START_S] == 0.0:
                    mine[a.OUTLIER_CELL] = 0.0
                if mine[at + a.START_S] > 0.0:
                    open_rules |= np.int64(1) << r
                else:
                    open_rules &= ~(np.int64(1) << r)
            mine[a.OPEN_RULES] = open_rules
            mine[a.LAST_S] = now_s
        if close[job] == PEEK:
            found = _close_all(mine, findings, found, job, np.nan)
        elif close[job] == DAY_ENDS:
            _forget_stale(mine)
    return found if found <= len(findings) else -found


def run(
    records: Records, jobs: Jobs, gap_limit_s: F64, mode: U8, state: F64, hours: F64, tallies: I64, rules: F64 = RULES
) -> F64:  # fmt: skip
    """Fold ``records`` as ``jobs`` say; returns the findings, (m, FINDING_WIDTH) f64.

    ``mode`` is not read: alarms hold whatever the vehicle does. Flags that flicker for hours can end more episodes
    than there is room for at first; then all is done again from copies, which is rare.
    """
    del mode
    room = records.n // 4 + jobs.n + 64
    while True:
        findings = np.empty((room, FINDING_WIDTH), np.float64)
        mine, measured, tallied = (
            state.copy(),
            hours[:, [_H_ALARM, _H_LEVEL]],
            tallies[:, _T_FLAGS : _T_FLAGS + FLAGS].copy(),
        )
        found = fold_alarms(
            records.time_s, records.kind, records.x, records.late_us, records.cell_span, records.cells,
            records.probe_span, records.probes, jobs.begin, jobs.end, jobs.vehicle, jobs.hour, jobs.day, jobs.close,
            rules, gap_limit_s, state, hours, tallies, findings,
        )  # fmt: skip
        if found >= 0:
            return findings[:found].copy()
        state[:], hours[:, [_H_ALARM, _H_LEVEL]] = mine, measured
        tallies[:, _T_FLAGS : _T_FLAGS + FLAGS] = tallied
        room = -found


def warm() -> None:
    """Compile this module's kernels."""
    one = np.zeros(1, np.int64)
    small = np.zeros(1, np.int32)
    code = np.zeros(1, np.uint8)
    spans = np.zeros((1, 2), np.int64)
    fold_alarms(
        one, code, np.full((1, len(FIELDS)), math.nan), one, spans, small, spans, np.zeros(1, np.int16), one, one,
        small, small, small, code, RULES, np.zeros(1), initial_state()[None, :], np.zeros((1, len(MEASURES))),
        np.zeros((1, TALLY_WIDTH), np.int64), np.zeros((1, FINDING_WIDTH)),
    )  # fmt: skip
