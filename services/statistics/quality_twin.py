"""What the fold ``quality`` means, in plain Python: the specification of its kernel, for tests and for debugging."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

from schemas.signals import State
from schemas.statistics.measures import CHECKS, INDEX, TALLY_BEGIN
from schemas.statistics.records import DAY_ENDS, FIELDS, KIND_LOGOUT, NO_CELL
from services.statistics import quality_layout as columns

_FLAWED: Final = (State.ABNORMAL, State.INVALID, State.OUT_OF_RANGE)
_NAN: Final = math.nan


class _Vehicle:
    """One vehicle's state by name; written back when the job is done."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.time, self.logged_out, self.resting = (
            state[columns.TIME],
            state[columns.LOGGED_OUT],
            state[columns.RESTING],
        )
        self.odometer, self.odometer_time = state[columns.ODOMETER_KM], state[columns.ODOMETER_TIME]
        self.soc, self.speed = state[columns.SOC_PCT], state[columns.SPEED_KMH]
        self.longitude, self.latitude = state[columns.LONGITUDE_DEG], state[columns.LATITUDE_DEG]
        self.cell_list, self.probe_list = state[columns.CELL_LIST], state[columns.PROBE_LIST]
        self.by_odometer, self.by_position = state[columns.BY_ODOMETER_KM], state[columns.BY_POSITION_KM]
        self.nominal = state[columns.NOMINAL_S]
        self.modes = [float(mode) for mode in state[columns.MODES : columns.SEEN] if not math.isnan(mode)]
        seen = state[columns.SEEN : columns.STATE]
        self.seen = Counter({second: int(count) for second, count in enumerate(seen, 1) if count})

    def write(self) -> None:
        state = self.state
        state[columns.TIME], state[columns.LOGGED_OUT], state[columns.RESTING] = (
            self.time,
            self.logged_out,
            self.resting,
        )
        state[columns.ODOMETER_KM], state[columns.ODOMETER_TIME] = self.odometer, self.odometer_time
        state[columns.SOC_PCT], state[columns.SPEED_KMH] = self.soc, self.speed
        state[columns.LONGITUDE_DEG], state[columns.LATITUDE_DEG] = self.longitude, self.latitude
        state[columns.CELL_LIST], state[columns.PROBE_LIST] = self.cell_list, self.probe_list
        state[columns.BY_ODOMETER_KM], state[columns.BY_POSITION_KM] = self.by_odometer, self.by_position
        state[columns.NOMINAL_S], state[columns.MODE_S] = self.nominal, _most_frequent(self.seen)
        state[columns.MODES : columns.SEEN] = [_NAN] * (7 - len(self.modes)) + self.modes
        state[columns.SEEN : columns.STATE] = [self.seen[second] for second in range(1, 61)]


def _most_frequent(counts: Counter[Any]) -> float:
    """The key with the highest count, the smaller one of equals; NaN without any."""
    return float(min(counts, key=lambda key: (-counts[key], key))) if counts else _NAN


def _apart_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    q = ((a[1] + b[1]) * 0.5 * (math.pi / 180)) ** 2
    cosine = 1.0 - q * (0.5 - q * (1 / 24 - q * (1 / 720 - q * (1 / 40320 - q * (1 / 3628800)))))
    north, east = b[1] - a[1], (b[0] - a[0]) * cosine
    return math.sqrt(north * north + east * east) * columns.EARTH_KM_PER_DEG


def fold_quality(
    time_s: Any, kind: Any, x: Any, rows: Any, reissued: Any, repeated: Any, late: Any, late_us: Any,
    cell_span: Any, cells: Any, probe_span: Any, flaw_span: Any, flaws: Any,
    begin: Any, end: Any, vehicle: Any, hour: Any, day: Any, sign: Any, close: Any, field_of_signal: Any,
    gap_limit_s: Any, state: Any, hours: Any, tallies: Any,
) -> None:  # fmt: skip
    """See ``quality.fold_quality``."""
    for j in range(len(begin)):
        v = _Vehicle(state[vehicle[j]])

        def add(measure: str, value: float, j: int = j) -> None:
            hours[hour[j], INDEX[measure]] += value

        def count(tally: str, at: int, value: int = 1, j: int = j) -> None:
            tallies[day[j], TALLY_BEGIN[tally] + at] += value

        def most(measure: str, value: float, j: int = j) -> None:
            before = hours[hour[j], INDEX[measure]]
            hours[hour[j], INDEX[measure]] = value if math.isnan(before) else max(before, value)

        def check(name: str, failed: Any) -> None:
            count("check_total", CHECKS.index(name))
            count("check_failed", CHECKS.index(name), int(failed))

        for k in range(begin[j], end[j]):
            now = float(time_s[k])
            if kind[k] == KIND_LOGOUT:
                last = columns.NOMINAL_UNKNOWN_S if math.isnan(v.nominal) else v.nominal
                gap_limit_s[k] = max(columns.GAP_S, 4 * last)
                v.logged_out = 1.0
                continue
            field = {name: float(value) for name, value in zip(FIELDS, x[k], strict=True)}
            first = math.isnan(v.time)
            dt = 0.0 if first else now - v.time
            if not first and dt <= 60:
                count("interval_s", int(dt))
                if dt > 0:
                    v.seen[int(dt)] += 1
            candidates = (_most_frequent(Counter(v.modes)), _most_frequent(v.seen), columns.NOMINAL_UNKNOWN_S)
            nominal = v.nominal = next(mode for mode in candidates if not math.isnan(mode))
            limit = gap_limit_s[k] = max(columns.GAP_S, 4 * nominal)

            add("records", 1)
            add("rows", rows[k])
            add("reissued", reissued[k])
            add("repeated", repeated[k])
            add("late", late[k])

            odometer = _NAN if field["odometer_km"] == 0 and v.odometer > 0 else field["odometer_km"]
            rise = odometer - v.odometer
            implausible = rise < 0 or rise > 220.0 * (now - v.odometer_time) / 3600.0 + 1.0
            if not math.isnan(rise):
                check("odometer", implausible)

            if first:
                add("expected", 1)
            else:
                if dt <= limit:
                    add("covered_s", dt)
                else:
                    add("gap_s", dt)
                    most("gap_max_s", dt)
                nothing_due = v.logged_out or (dt > limit and v.resting and not rise > columns.WOKE_KM_PER_S * nominal)
                add("expected", 1 if nothing_due else dt / nominal)
                if not nothing_due and dt > 1.5 * nominal:
                    add("missing_s", dt - nominal)

            known = [not math.isnan(field[name]) for name in FIELDS]
            for f, is_known in enumerate(known):
                count("field_valid", f, int(is_known))
            told = any(known[: columns.MANDATORY])
            pairs = flaws[flaw_span[k, 0] : flaw_span[k, 1]].tolist()
            for signal, what in zip(pairs[::2], pairs[1::2], strict=False):
                if field_of_signal[signal] >= 0 and what in _FLAWED:
                    count("field_flawed", int(field_of_signal[signal]))
                    told = told or field_of_signal[signal] < columns.MANDATORY
            if told:
                check("mandatory_fields", not all(known[: columns.MANDATORY]))

            listed = cells[cell_span[k, 0] : cell_span[k, 1]].tolist()
            probes = int(probe_span[k, 1] - probe_span[k, 0])
            if listed or probes:
                check(
                    "list_sizes",
                    (listed and v.cell_list > 0 and v.cell_list != len(listed))
                    or (probes and v.probe_list > 0 and v.probe_list != probes),
                )
                v.cell_list = float(len(listed)) if listed else v.cell_list
                v.probe_list = float(probes) if probes else v.probe_list
                if listed:
                    most("cells_listed", len(listed))
                if probes:
                    most("probes_listed", probes)
            measured = [cell for cell in listed if cell != NO_CELL]
            if measured:
                pairs = [
                    (field["max_cell_voltage_v"], max(measured)),
                    (field["min_cell_voltage_v"], min(measured)),
                ]
                reported = [(math.floor(volts * 1000 + 0.5), mv) for volts, mv in pairs if not math.isnan(volts)]
                if reported:
                    check("extremes", any(abs(told_mv - mv) > 5 for told_mv, mv in reported))
            one_pack = math.isnan(field["pack_cell_total"]) or field["pack_cell_total"] == len(listed)
            volts = field["total_voltage_v"]
            if listed and len(measured) == len(listed) and volts > 0 and one_pack:
                check("pack_voltage", abs(volts - sum(measured) / 1000) > 0.02 * volts)

            if not first and dt <= 60 and not math.isnan(field["soc_pct"] - v.soc):
                check("soc_steps", abs(field["soc_pct"] - v.soc) > 5)

            current, speed = field["total_current_a"], field["speed_kmh"]
            if field["charge_state"] == 1 and not math.isnan(current):
                check("charging_current", not current < 0)
                count("charging_sign", 0)
                count("charging_sign", 1, int(current * sign[j] > 1))

            fix = (field["longitude_deg"], field["latitude_deg"])
            if field["location_valid"] == 0:
                fix = (_NAN, _NAN)
            apart = _apart_km((v.longitude, v.latitude), fix)
            paired = not first and dt <= limit and v.odometer_time == v.time
            if paired and not math.isnan(apart) and not math.isnan(rise) and not implausible:
                v.by_odometer += rise
                if speed > 0 or v.speed > 0:
                    v.by_position += apart

            check("clock", late_us[k] < -60_000_000)

            charging = field["charge_state"] == 1 or (math.isnan(field["charge_state"]) and current < -1 and speed == 0)
            still = speed == 0 or (field["vehicle_state"] == 2 and not speed > 0)
            v.resting = float(still and not charging)
            if not math.isnan(odometer):
                v.odometer, v.odometer_time = odometer, now
            v.time, v.logged_out, v.soc, v.speed = now, 0.0, field["soc_pct"], speed
            v.longitude, v.latitude = fix

        if close[j] >= DAY_ENDS:
            if v.by_odometer >= columns.JUDGED_KM:
                check("distance", abs(v.by_position - v.by_odometer) > 0.1 * v.by_odometer)
            v.by_odometer = v.by_position = 0.0
            if v.seen:
                v.modes = [*v.modes, _most_frequent(v.seen)][-7:]
                v.seen = Counter()
        v.write()
