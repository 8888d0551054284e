"""The alarms fold again, slow and obvious: what ``alarms.fold_alarms`` must equal in every bit.

It walks every code at every record and asks for everything anew; it is read by whoever wants to know what the rule is,
and run by the tests.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Final

import numpy as np

from schemas.statistics.measures import INDEX, TALLY_BEGIN
from schemas.statistics.records import (
    ALARM_FLAGS,
    ALARM_LEVEL,
    CELL_MIN,
    CURRENT,
    DAY_ENDS,
    DCDC,
    F64,
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
    Q_NONE,
    Q_SOC,
    Q_SPEED,
    Q_TEMP_MAX,
    Q_TEMP_SPREAD,
    Q_VOLTAGE,
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
)
from schemas.statistics.sessions import TABLE
from services.statistics import alarms_layout as a
from services.statistics.battery_layout import PACK_V_MIN
from services.statistics.pack import CELL_HIGH_MV, CELL_LOW_MV, cell_extremes_twin, temperatures_twin

_EVIDENCE: Final = (a.DROP_S, a.HOT_S, a.RISE_S, a.SLOPE_S, a.FAULT_S)


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


class _Code:
    """One flag or rule of one vehicle: a view of its block in the state."""

    def __init__(self, state: F64, code: int) -> None:
        self.block = state[code * a.BLOCK : (code + 1) * a.BLOCK]
        self.code = code

    @property
    def begun(self) -> bool:
        return bool(self.block[a.START_S] > 0)

    @property
    def raised(self) -> bool:
        return bool(self.block[a.RAISED] > 0)

    def forget(self) -> None:
        self.block[:] = 0

    def episode(self, job: int, settled_s: float) -> list[float]:
        block = self.block
        source, code = (SOURCE_FLAG, self.code) if self.code < FLAGS else (SOURCE_RULE, self.code - FLAGS + 1)
        return [
            job, TABLE["alarm_episodes"], settled_s, block[a.START_S], block[a.LAST_ON_S], source, code,
            block[a.LEVEL], block[a.RECORDS], block[a.LATE], block[a.VALUE_MIN], block[a.VALUE_MAX],
            block[a.LONGITUDE], block[a.LATITUDE],
        ]  # fmt: skip


class _Twin:
    """One vehicle while its records are folded."""

    def __init__(self, state: F64, rules: F64, found: list[list[float]]) -> None:
        self.state = state
        self.rules = rules
        self.found = found
        self.codes = [_Code(state, code) for code in range(a.CODES)]

    def close_all(self, job: int, settled_s: float, forget: bool) -> None:
        for code in self.codes:
            if code.raised:
                self.found.append(code.episode(job, settled_s))
            if forget:
                code.forget()

    def step(
        self, code: _Code, on: bool | None, now_s: int, gap_s: float, job: int, level: float, value: float,
        late: bool, needs_records: float, needs_s: float, clear_s: float,
    ) -> None:  # fmt: skip
        block = code.block
        silent = now_s - block[a.SEEN_S] > gap_s
        over = block[a.OFF_S] > 0 and now_s - block[a.OFF_S] >= clear_s
        if code.begun and (silent or over):
            if code.raised:
                self.found.append(code.episode(job, now_s))
            code.forget()
        if on:
            if not code.begun:
                block[a.START_S], block[a.LATE] = now_s, late
                block[[a.VALUE_MIN, a.VALUE_MAX, a.LONGITUDE, a.LATITUDE]] = np.nan
            block[a.LAST_ON_S] = block[a.SEEN_S] = now_s
            block[a.OFF_S] = 0
            block[a.RECORDS] += 1
            block[a.LEVEL] = max(_known([block[a.LEVEL], level]))
            if not math.isnan(value):
                block[a.VALUE_MIN] = min(_known([block[a.VALUE_MIN], value]))
                block[a.VALUE_MAX] = max(_known([block[a.VALUE_MAX], value]))
            place = self.state[[a.LAST_LONGITUDE, a.LAST_LATITUDE]]
            if math.isnan(block[a.LONGITUDE]) and place.any():
                block[[a.LONGITUDE, a.LATITUDE]] = place
            enough = 0 < needs_records <= block[a.RECORDS]
            long_enough = 0 < needs_s <= now_s - block[a.START_S]
            if enough or long_enough:
                block[a.RAISED] = 1
        elif on is not None and code.begun:
            block[a.SEEN_S] = now_s
            if not code.raised:
                code.forget()
            elif block[a.OFF_S] == 0:
                block[a.OFF_S] = now_s

    def outlier(self, code: _Code, rule: F64, listed: list[int]) -> float | None:
        """How far the furthest cell is off in mV, when that passes; None when it does not."""
        state = self.state
        usable = {c: u for c, u in enumerate(listed[: a.CELLS_MAX]) if CELL_LOW_MV <= u <= CELL_HIGH_MV}
        if len(usable) < a.OUTLIER_CELLS:
            return None
        median = statistics.median(usable.values())
        off = {c: abs(u - median) for c, u in usable.items()}
        mad = statistics.median(off.values())
        cell = max(off, key=lambda c: off[c])
        if not (
            off[cell] >= (rule[R_CLEAR] if code.raised else rule[R_THRESHOLD])
            and 4.0 * off[cell] > rule[R_MORE] * 1.4826 * (4.0 * mad)
        ):
            return None
        if not code.raised:
            if code.begun and state[a.OUTLIER_CELL] != cell + 1:
                code.forget()
            state[a.OUTLIER_CELL] = cell + 1
        return float(off[cell])

    def evidence(self, now_s: int, gap_s: float, hot: float, probes: list[int], lowest_mv: float, fault: bool) -> bool:
        """Does the evidence up to this record make a thermal event (4.10)?"""
        state = self.state
        rule = self.rules[THERMAL_EVENT - 1]
        limit = rule[R_THRESHOLD]
        drop, rise, rate, held_s = rule[R_MORE : R_MORE + 4].tolist()
        before_s = state[a.LAST_S] if now_s - state[a.LAST_S] <= gap_s else -1.0
        slots = [
            (state[a.SLOT_TEMP_AT + slot], state[a.SLOT_CELL_AT + slot])
            for slot in range(a.SLOTS)
            if state[a.SLOT_TIME_AT + slot] > 0 and now_s - state[a.SLOT_TIME_AT + slot] <= a.WINDOW_S
        ]
        temps, cells = _known(temp for temp, _ in slots), _known(cell for _, cell in slots)
        if not temps and state[a.TEMP_S] > 0 and now_s - state[a.TEMP_S] <= gap_s:
            temps = [state[a.TEMP_PAIR_C]]
        if not cells and state[a.CELL_S] > 0 and now_s - state[a.CELL_S] <= gap_s:
            cells = [state[a.CELL_MV]]
        base = min(temps, default=math.nan)
        if cells and lowest_mv < (1 - drop) * max(cells):
            state[a.DROP_S] = now_s
        if fault:
            state[a.FAULT_S] = now_s
        believed = False
        if not math.isnan(hot):
            if state[a.PENDING_S] > 0:
                in_time = now_s - state[a.PENDING_S] <= max(a.WINDOW_S, gap_s)
                believed = in_time and hot >= state[a.PENDING_BASE_C] + 0.5 * rise
                if in_time and not believed:
                    state[[a.HOT_S, a.RISE_S]] = 0
                if not believed:
                    state[a.PENDING_S] = 0
            if hot >= limit:
                state[a.HOT_S] = now_s
            if hot - base >= rise:
                state[a.RISE_S] = now_s
            self.climb(now_s, gap_s, hot, rate, held_s)
        there = {
            column: state[column] > 0 and (now_s - state[column] <= a.WINDOW_S or state[column] == before_s)
            for column in _EVIDENCE
        }
        by_others = there[a.SLOPE_S] or there[a.FAULT_S]
        event = (
            believed
            or (there[a.DROP_S] and (there[a.RISE_S] or by_others))
            or (there[a.HOT_S] and by_others)
        )  # fmt: skip
        now = now_s in (state[a.HOT_S], state[a.RISE_S])
        if not event and there[a.HOT_S] and there[a.RISE_S] and now:
            event = sum(probe >= base + a.OTHER_PROBE_C for probe in probes) >= 2
            if not event and state[a.PENDING_S] == 0:
                state[[a.PENDING_S, a.PENDING_C, a.PENDING_BASE_C]] = now_s, hot, base
        self.remember(now_s, gap_s, hot, lowest_mv)
        return bool(event)

    def climb(self, now_s: int, gap_s: float, hot: float, rate: float, held_s: float) -> None:
        """A rise that is held, minute by minute."""
        state = self.state
        span_s = now_s - state[a.RATE_S]
        if state[a.RATE_S] == 0 or span_s > a.RATE_SPAN_S + gap_s:
            state[[a.RATE_S, a.RATE_C, a.CLIMB_S]] = now_s, hot, 0
        elif span_s >= a.RATE_SPAN_S:
            if (hot - state[a.RATE_C]) / span_s * 60 >= rate:
                state[a.CLIMB_S] = state[a.CLIMB_S] or state[a.RATE_S]
                if now_s - state[a.CLIMB_S] >= held_s:
                    state[a.SLOPE_S] = now_s
            else:
                state[a.CLIMB_S] = 0
            state[[a.RATE_S, a.RATE_C]] = now_s, hot

    def remember(self, now_s: int, gap_s: float, hot: float, lowest_mv: float) -> None:
        state = self.state
        slot = now_s // a.SLOT_S % a.SLOTS
        times, temps, cells = (slot + first for first in (a.SLOT_TIME_AT, a.SLOT_TEMP_AT, a.SLOT_CELL_AT))
        if state[times] // a.SLOT_S != now_s // a.SLOT_S:
            state[[times, temps, cells]] = now_s, np.nan, np.nan
        if not math.isnan(hot):
            recent = state[a.TEMP_S] > 0 and now_s - state[a.TEMP_S] <= gap_s
            pair = max(hot, state[a.TEMP_C]) if recent else hot
            state[temps] = min(_known([state[temps], pair]))
            state[[a.TEMP_S, a.TEMP_C, a.TEMP_PAIR_C]] = now_s, hot, pair
        if not math.isnan(lowest_mv):
            state[cells] = max(_known([state[cells], lowest_mv]))
            state[[a.CELL_S, a.CELL_MV]] = now_s, lowest_mv

    def forget_stale(self) -> None:
        state = self.state
        for column in _EVIDENCE:
            if state[a.LAST_S] - state[column] > a.WINDOW_S and state[column] != state[a.LAST_S]:
                state[column] = 0
        for slot in range(a.SLOTS):
            if state[a.LAST_S] - state[a.SLOT_TIME_AT + slot] > a.WINDOW_S:
                state[[a.SLOT_TIME_AT + slot, a.SLOT_TEMP_AT + slot, a.SLOT_CELL_AT + slot]] = 0
        if state[a.PENDING_S] == 0:
            state[[a.PENDING_C, a.PENDING_BASE_C]] = 0
        for time_of, *others in (
            (a.DATA_S, a.HELD_FLAGS, a.HELD_LEVEL), (a.RATE_S, a.RATE_C, a.CLIMB_S),
            (a.TEMP_S, a.TEMP_C, a.TEMP_PAIR_C), (a.CELL_S, a.CELL_MV),
        ):  # fmt: skip
            if state[a.LAST_S] - state[time_of] > a.STALE_S:
                state[[time_of, *others]] = 0

    def insulation_per_v(self, now_s: int, insulation: float, voltage: float) -> float:
        """Ω/V, NaN where it is not to be rated (4.9)."""
        state = self.state
        if not insulation >= 0:
            return math.nan
        if state[a.PINNED_SINCE_S] == 0 or insulation != state[a.PINNED_AT]:
            state[[a.PINNED_AT, a.PINNED_SINCE_S]] = insulation, now_s
        elif state[a.PINNED_SINCE_S] > 0 and now_s - state[a.PINNED_SINCE_S] >= a.PINNED_S:
            state[a.PINNED_SINCE_S] = -1
        measured = state[a.PINNED_SINCE_S] > 0 and insulation < a.PINNED_KOHM and voltage >= PACK_V_MIN
        return insulation * 1000 / voltage if measured else math.nan


def _raw_lowest(x: F64, i: int, listed: list[int]) -> float:
    positive = [float(u) for u in listed if u > 0]
    if positive:
        return min(positive)
    for column in (REPORTED_CELL_MIN, CELL_MIN):
        if x[i, column] > 0:
            return float(math.floor(x[i, column] * 1000 + 0.5))
    return math.nan


def fold_alarms_twin(
    time_s: I64, kind: U8, x: F64, late_us: I64, cell_span: I64, cells: I32, probe_span: I64, probes: I16,
    begin: I64, end: I64, vehicle: I32, hour: I32, day: I32, close: U8, rules: F64,
    gap_limit_s: F64, state: F64, hours: F64, tallies: I64, findings: F64,
) -> int:  # fmt: skip
    found: list[list[float]] = []
    for job in range(len(begin)):
        mine = state[vehicle[job]]
        twin = _Twin(mine, rules, found)
        measured = hours[hour[job]]
        for i in range(int(begin[job]), int(end[job])):
            now_s, gap_s = int(time_s[i]), float(gap_limit_s[i])
            if kind[i] == KIND_LOGOUT:
                twin.close_all(job, now_s, forget=True)
                mine[[a.LAST_S, a.HELD_FLAGS, a.HELD_LEVEL, a.OPEN_FLAGS, a.OPEN_RULES, a.OUTLIER_CELL]] = 0
                continue
            level, told = float(x[i, ALARM_LEVEL]), float(x[i, ALARM_FLAGS])
            flags = int(told) if 0 <= told < a.ALL_ONES else None
            if now_s - mine[a.DATA_S] > gap_s:
                mine[[a.HELD_FLAGS, a.HELD_LEVEL]] = 0
            dt = now_s - int(mine[a.LAST_S])
            if mine[a.LAST_S] > 0 and dt <= gap_s and (mine[a.HELD_FLAGS] > 0 or mine[a.HELD_LEVEL] > 0):
                measured[INDEX["alarm_s"]] += dt
                for bit in range(FLAGS):
                    tallies[day[job], TALLY_BEGIN["flag_s"] + bit] += dt * (int(mine[a.HELD_FLAGS]) >> bit & 1)
            if flags is not None:
                mine[a.HELD_FLAGS], mine[a.DATA_S] = flags, now_s
            if not math.isnan(level):
                mine[a.HELD_LEVEL], mine[a.DATA_S] = level, now_s
                column = INDEX["alarm_level_max"]
                measured[column] = max(_known([measured[column], level]))
            place = float(x[i, LONGITUDE]), float(x[i, LATITUDE])
            if not math.isnan(sum(place)) and any(place):
                mine[a.LAST_LONGITUDE], mine[a.LAST_LATITUDE] = place
            listed = cells[cell_span[i, 0] : cell_span[i, 1]].tolist()
            probe_list = probes[probe_span[i, 0] : probe_span[i, 1]].tolist()
            hot, cold = temperatures_twin(x, i, probes, *probe_span[i].tolist())
            lowest, highest, missing = cell_extremes_twin(x, i, cells, *cell_span[i].tolist())
            known = lowest >= 0
            q = {
                Q_NONE: math.nan, Q_CELL_DEVIATION: math.nan, Q_TEMP_MAX: hot, Q_TEMP_SPREAD: hot - cold,
                Q_CELL_MAX: highest / 1000 if known else math.nan, Q_CELL_MIN: lowest / 1000 if known else math.nan,
                Q_CELL_RANGE: float(highest - lowest) if known else math.nan, Q_VOLTAGE: float(x[i, VOLTAGE]),
                Q_CURRENT: float(x[i, CURRENT]), Q_SOC: float(x[i, SOC]), Q_SPEED: float(x[i, SPEED]),
                Q_DCDC: float(x[i, DCDC]), Q_ALARM_LEVEL: level, Q_INSULATION: float(x[i, INSULATION]),
                Q_INSULATION_PER_V: twin.insulation_per_v(now_s, float(x[i, INSULATION]), float(x[i, VOLTAGE])),
            }  # fmt: skip
            late = bool(late_us[i] > a.LATE_US)
            for bit in range(FLAGS):
                on = None if flags is None else bool(flags >> bit & 1)
                twin.step(
                    twin.codes[bit], on, now_s, gap_s, job, level, q[FLAG_QUANTITY[bit]], late, 1, 0, a.FLAG_CLEAR_S
                )
            fault_is_new = False
            for number, rule in enumerate(rules, 1):
                code = twin.codes[FLAGS + number - 1]
                raised = code.raised
                value, rule_level = q[int(rule[R_QUANTITY])], float(rule[R_LEVEL])
                on = None
                event = False
                threshold = float(rule[R_CLEAR] if raised else rule[R_THRESHOLD])
                if rule[R_TEST] == AT_LEAST:
                    on = None if math.isnan(value) else value >= threshold
                elif rule[R_TEST] == BELOW:
                    on = None if math.isnan(value) else value < threshold
                elif number == CELL_OUTLIER:
                    if missing >= 0:
                        off = twin.outlier(code, rule, listed)
                        on = off is not None
                        value = off if off is not None else math.nan
                elif number == THERMAL_EVENT:
                    lowest_mv = _raw_lowest(x, i, listed)
                    event = twin.evidence(now_s, gap_s, hot, probe_list, lowest_mv, fault_is_new)
                    if flags is not None:
                        hot_flag, thermal_flag = (flags >> b & 1 for b in (FLAG_HIGH_TEMPERATURE, FLAG_THERMAL_EVENT))
                        severe = level >= a.TOLD_LEVEL
                        event = event or bool(
                            (hot_flag and severe) or (thermal_flag and (severe or math.isnan(level)))
                        )  # fmt: skip
                    if event:
                        on = True
                    elif flags is not None or not math.isnan(hot):
                        on = raised and hot >= rule[R_CLEAR]
                elif number == LEVEL_WITHOUT_FLAG and flags is not None and not math.isnan(level):
                    on, rule_level = flags == 0 and level >= rule[R_THRESHOLD], level
                twin.step(
                    code, on, now_s, gap_s, job, rule_level, value, late, rule[R_NEEDS_RECORDS], rule[R_NEEDS_S],
                    rule[R_CLEAR_S],
                )  # fmt: skip
                if number == INSULATION_FAULT:
                    fault_is_new = not raised and code.raised
                if event:
                    block = code.block
                    if not raised and 0 < mine[a.PENDING_S] < block[a.START_S]:
                        block[a.START_S] = mine[a.PENDING_S]
                        block[a.RECORDS] += 1
                        block[a.VALUE_MAX] = max(_known([block[a.VALUE_MAX], mine[a.PENDING_C]]))
                    mine[a.PENDING_S] = 0
                if number == CELL_OUTLIER and not code.begun:
                    mine[a.OUTLIER_CELL] = 0
            mine[a.OPEN_FLAGS] = sum(1 << bit for bit in range(FLAGS) if twin.codes[bit].begun)
            mine[a.OPEN_RULES] = sum(1 << r for r in range(len(FOLD_RULES)) if twin.codes[FLAGS + r].begun)
            mine[a.LAST_S] = now_s
        if close[job] == PEEK:
            twin.close_all(job, math.nan, forget=False)
        elif close[job] == DAY_ENDS:
            twin.forget_stale()
    if len(found) > len(findings):
        return -len(found)
    for line, row in zip(found, findings, strict=False):
        row[:] = np.nan
        row[: len(line)] = line
    return len(found)
