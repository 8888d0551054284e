"""What the fold ``drive`` means, in plain Python: the specification of its kernel, for tests and for debugging."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any, Final

from schemas.statistics.measures import INDEX, TALLY_BEGIN
from schemas.statistics.records import CHARGING, DRIVING, FIELDS, GOES_ON, KIND_LOGOUT, PARKED, PEEK, UNKNOWN
from schemas.statistics.sessions import (
    FINDINGS,
    GAP,
    OPEN,
    STARTED_CHARGING,
    STARTED_DRIVING,
    STOPPED,
    STOPPED_CHARGING,
    SWITCHED_OFF,
    TABLE,
)
from services.statistics import drive_layout as columns

_NAN: Final = math.nan
_SUMS: Final = ("records", "m", "untracked_m", "covered_s", "moving_s", "out_kwh", "regen_kwh", "used_m", "used_kwh")
_TIME_OF_MODE: Final = {DRIVING: "driving_s", CHARGING: "charging_s", PARKED: "parked_s"}


def _known(value: float) -> bool:
    return not math.isnan(value)


def _first_known(*values: float) -> float:
    return next((value for value in values if _known(value)), _NAN)


@dataclass
class _Row:
    """A record on its way, in the order of its columns in the state."""

    time: float
    limit: float
    mode: float
    off: float
    speed: float
    moving_s: float
    odometer: float = _NAN
    odometer_before: float = _NAN
    rise_m: float = 0.0
    rise_in_gap: float = 0.0
    reset: float = 0.0
    power: float = _NAN
    current: float = _NAN
    electric_s: float = 0.0
    kwh: float = 0.0
    ah: float = 0.0
    soc: float = _NAN
    longitude: float = _NAN
    latitude: float = _NAN
    temp_mean: float = _NAN
    temp_max: float = _NAN


class _Vehicle:
    """The state's columns as attributes (``trip_start`` is column TRIP_START), read and written where they lie."""

    state: Any

    def __init__(self, state: Any) -> None:
        object.__setattr__(self, "state", state)

    def __getattr__(self, name: str) -> float:
        return float(self.state[getattr(columns, name.upper())])

    def __setattr__(self, name: str, value: float) -> None:
        self.state[getattr(columns, name.upper())] = value

    def sums(self, begin: int) -> dict[str, float]:
        return {name: float(self.state[begin + i]) for i, name in enumerate(_SUMS)}

    def set_sums(self, begin: int, sums: dict[str, float]) -> None:
        self.state[begin : begin + len(_SUMS)] = [sums[name] for name in _SUMS]

    def begin_again(self, ranges: tuple[tuple[int, int], ...]) -> None:
        for begin, end in ranges:
            self.state[begin:end] = columns.initial_state()[begin:end]


class _Fold:
    """One job: where its hour is, and what has been found."""

    def __init__(self, vehicle: _Vehicle, hour: Any, soc_s: Any, findings: Any, found: int, job: int) -> None:
        self.v, self.hour, self.soc_s, self.findings, self.found, self.job = vehicle, hour, soc_s, findings, found, job

    def add(self, measure: str, value: float) -> None:
        self.hour[INDEX[measure]] += value

    def raise_to(self, measure: str, value: float) -> None:
        old = self.hour[INDEX[measure]]
        self.hour[INDEX[measure]] = value if math.isnan(old) else max(old, value)

    def lower_to(self, measure: str, value: float) -> None:
        old = self.hour[INDEX[measure]]
        self.hour[INDEX[measure]] = value if math.isnan(old) else min(old, value)

    def first_and_last(self, stem: str, unit: str, value: float) -> None:
        if math.isnan(self.hour[INDEX[f"{stem}_first_{unit}"]]):
            self.hour[INDEX[f"{stem}_first_{unit}"]] = value
        self.hour[INDEX[f"{stem}_last_{unit}"]] = value

    def write(self, table: str, settled: float, **values: float) -> None:
        if self.found < len(self.findings):
            line = [values.get(name, _NAN) for name, _ in FINDINGS[TABLE[table]].columns]
            row = self.findings[self.found]
            row[:] = _NAN
            row[: 3 + len(line)] = [self.job, TABLE[table], settled, *line]
        self.found += 1

    # -- as a record arrives

    def arrive(self, now: float, limit: float, field: dict[str, float]) -> _Row:
        v = self.v
        dt = _NAN if math.isnan(v.time) else now - v.time
        covered = dt <= limit
        if not covered:
            v.odometer_gap = v.suspect_gap = 1.0
        speed, current, soc = field["speed_kmh"], field["total_current_a"], field["soc_pct"]
        moving_s = (0.5 * dt if speed > 0 else 0.0) + (0.5 * dt if v.speed_kmh > 0 else 0.0)
        row = _Row(now, limit, UNKNOWN, float(field["vehicle_state"] == 2), speed, moving_s, current=current, soc=soc)
        self.odometer(field["odometer_km"], row)

        row.power = field["total_voltage_v"] * current / 1000
        if _known(row.power):
            since = now - v.electric_time
            if since <= limit:
                row.electric_s = since
                row.kwh = (v.power + row.power) * 0.5 * since / 3600
                row.ah = (v.current_a + current) * 0.5 * since / 3600
                self.add("discharge_ah", max(0.0, row.ah))
            v.electric_time, v.power, v.current_a = now, row.power, current
            self.raise_to("power_out_max_kw" if row.power >= 0 else "power_in_max_kw", abs(row.power))

        if _known(soc):
            self.first_and_last("soc", "pct", soc)
            self.lower_to("soc_min_pct", soc)
            self.raise_to("soc_max_pct", soc)
            if covered:
                self.soc_s[min(9, max(0, int(soc / 10)))] += int(dt)

        if covered:
            self.add("moving_s", moving_s)
        if _known(speed):
            self.raise_to("speed_max_kmh", speed)
        v.speed_kmh = speed

        if field["location_valid"] != 0 and _known(field["latitude_deg"]):
            row.longitude, row.latitude = field["longitude_deg"], field["latitude_deg"]
        for hottest, coldest in (("max_temp_c", "min_temp_c"), ("probe_max_c", "probe_min_c")):  # the list's own last
            high, low = (value if -40 < value < 215 else _NAN for value in (field[hottest], field[coldest]))
            if hottest == "max_temp_c" or (_known(high) and _known(low)):
                row.temp_max, row.temp_mean = high, (high + low) * 0.5

        mode = self.raw_mode(field, covered and row.rise_m > 0 and not row.rise_in_gap)
        if mode != UNKNOWN:
            v.known_time = now
        elif covered and now - v.known_time <= columns.CARRY_S:
            mode = int(v.mode)
        v.mode, v.time, row.mode = mode, now, mode
        return row

    @staticmethod
    def raw_mode(field: dict[str, float], rising: bool) -> int:
        charge_state, speed, off = field["charge_state"], field["speed_kmh"], field["vehicle_state"] == 2
        if charge_state == 1 or (math.isnan(charge_state) and field["total_current_a"] < -1 and speed == 0):
            return CHARGING
        if speed > 0 or rising or (charge_state == 2 and not off):
            return DRIVING
        return PARKED if speed == 0 or off or charge_state == 4 else UNKNOWN

    def odometer(self, reading: float, row: _Row) -> None:
        v = self.v
        row.odometer_before = v.odometer
        if math.isnan(reading) or (reading == 0 and v.odometer > 0):
            return

        def rise_from(before: float) -> float:
            return math.floor((reading - before) * 1000 + 0.5)

        def fastest(since: float) -> float:
            return columns.SPEED_MAX_KMH / 3.6 * (row.time - since) + columns.FALL_M

        if _known(v.odometer):
            rise, gap = float(rise_from(v.odometer)), v.odometer_gap
            if not -columns.FALL_M <= rise <= fastest(v.odometer_time):
                if math.isnan(v.suspect) or not 0 <= rise_from(v.suspect) <= fastest(v.suspect_time):
                    v.suspect, v.suspect_time, v.suspect_gap = reading, row.time, 0.0
                    return
                rise, gap = float(rise_from(v.suspect)), v.suspect_gap
                self.add("odometer_falls", float(v.suspect < v.odometer))
                row.reset, row.odometer_before = 1.0, v.suspect
            if rise > 0:
                row.rise_m, row.rise_in_gap = rise, float(gap)
                self.add("distance_km", rise / 1000)
                self.add("untracked_km", rise / 1000 if gap else 0.0)
        v.odometer = reading if row.reset or math.isnan(v.odometer) else max(reading, v.odometer)
        v.odometer_time, v.odometer_gap = row.time, 0.0
        v.suspect, v.suspect_time, v.suspect_gap = _NAN, _NAN, 0.0
        row.odometer = reading
        self.first_and_last("odometer", "km", reading)

    # -- when its mode is certain

    def settle(self, row: _Row, mode: int) -> None:
        v = self.v
        dt = _NAN if math.isnan(v.settled_time) else row.time - v.settled_time
        covered = dt <= row.limit
        if covered:
            for end in (int(v.settled_mode), mode):
                if end != UNKNOWN:
                    self.add(_TIME_OF_MODE[end], 0.5 * dt)

        modes = {m for m in range(4) if int(v.modes_since) >> m & 1} | {mode}
        if row.electric_s > 0:
            self.energy(row, modes)
        v.modes_since = 1 << mode if _known(row.power) else sum(1 << m for m in modes)
        used = self.consumption(row, mode, covered, CHARGING in modes)
        self.rest(row, mode, covered)
        self.charge(row, mode, covered)
        self.trip(row, mode, dt, covered, used)
        v.settled_time, v.settled_mode = row.time, mode

    def energy(self, row: _Row, modes: set[int]) -> None:
        if modes == {CHARGING}:
            self.add("charge_kwh", max(0.0, -row.kwh))
            self.add("charge_ah", max(0.0, -row.ah))
        elif CHARGING not in modes and DRIVING in modes:
            self.add("out_kwh", max(0.0, row.kwh))
            self.add("regen_kwh", max(0.0, -row.kwh))
            self.add("regen_ah", max(0.0, -row.ah))
        elif modes == {PARKED}:
            self.add("standing_kwh", row.kwh)
            self.add("standing_s", row.electric_s)

    def consumption(self, row: _Row, mode: int, covered: bool, charged: bool) -> tuple[float, float, float]:
        """Since when, metres, kWh: what is settled at this record; (NaN, 0, 0): nothing."""
        v = self.v
        used = (_NAN, 0.0, 0.0)
        if not covered or mode == CHARGING or row.reset:
            v.used_from, v.used_kwh, v.used_m, v.used_reading = _NAN, 0.0, 0.0, 0.0
        if _known(row.odometer):
            v.used_reading = 1.0
            v.used_m += 0.0 if row.rise_in_gap else row.rise_m
        if math.isnan(row.power):
            return used
        if row.electric_s > 0 and not charged:
            v.used_kwh += row.kwh
        else:
            v.used_from = _NAN
        if v.used_reading:
            if _known(v.used_from):
                used = (v.used_from, v.used_m, v.used_kwh)
                self.add("consumption_km", v.used_m / 1000)
                self.add("consumption_kwh", v.used_kwh)
            v.used_from, v.used_kwh, v.used_m, v.used_reading = row.time, 0.0, 0.0, 0.0
        return used

    def rest(self, row: _Row, mode: int, covered: bool) -> None:
        v = self.v
        if mode in (DRIVING, CHARGING):
            v.rest_soc, v.rest_time, v.rest_gap = _NAN, _NAN, 0.0
            return
        gap = bool(v.rest_gap) or not covered
        v.rest_gap = float(gap)
        if mode == UNKNOWN or math.isnan(row.soc):
            return
        lost = v.rest_soc - row.soc
        stood = row.rise_m == 0 and _known(row.odometer) and _known(row.odometer_before) and not row.reset
        if _known(lost) and (not gap or (lost >= 0 and stood)):
            self.add("standing_soc_pct", lost)
            self.add("standing_span_s", row.time - v.rest_time)
        v.rest_soc, v.rest_time, v.rest_gap = row.soc, row.time, 0.0

    # -- trips

    def trip(self, row: _Row, mode: int, dt: float, covered: bool, used: tuple[float, float, float]) -> None:
        v = self.v
        driving = mode == DRIVING
        gap_rise = row.rise_m if row.rise_in_gap else 0.0
        if _known(v.trip_start):
            stood = row.rise_m == 0 and _known(row.odometer)
            off = bool(row.off) and not driving
            drove = mode in (PARKED, UNKNOWN) and not off and not covered and dt <= columns.SPLIT_S and row.rise_m > 0
            long_stop = row.time - v.trip_stop >= columns.STOP_S
            cause = OPEN
            if dt > columns.SPLIT_S:
                cause = STOPPED if _known(v.trip_stop) and stood else GAP
            elif mode == CHARGING:
                cause = STARTED_CHARGING
            elif off:
                cause = SWITCHED_OFF
            elif long_stop and (not covered and stood if driving else not drove):
                cause = STOPPED
            if cause == OPEN:
                self.trip_goes_on(row, dt, covered, gap_rise, used)
                if driving or drove:
                    self.trip_drove(row, stands=drove)
                elif math.isnan(v.trip_stop):
                    v.trip_stop = row.time
                return
            if covered and not driving and gap_rise == 0 and row.rise_m > 0:
                waiting = v.sums(columns.WAITING)
                waiting["m"] += row.rise_m
                v.set_sums(columns.WAITING, waiting)
                v.trip_odometer_now = row.odometer
            self.end_trip(row.time, cause)
            v.begin_again(
                ((columns.TRIP_START, columns.TRIP_LATITUDE_NOW + 1), (columns.SUMS, columns.PENDING_ROW)),
            )
        if driving:
            sums = dict.fromkeys(_SUMS, 0.0) | {"records": 1.0}
            v.trip_start = v.trip_end = row.time
            v.trip_speed_max = row.speed
            v.trip_soc_start = v.trip_soc_end = v.trip_soc_now = row.soc
            v.trip_odometer_start = v.trip_odometer_end = v.trip_odometer_now = row.odometer
            if covered and gap_rise == 0 and row.rise_m > 0:
                sums["m"], v.trip_odometer_start = row.rise_m, row.odometer_before
            v.trip_longitude_start = v.trip_longitude_end = v.trip_longitude_now = row.longitude
            v.trip_latitude_start = v.trip_latitude_end = v.trip_latitude_now = row.latitude
            v.set_sums(columns.SUMS, sums)

    def trip_goes_on(
        self, row: _Row, dt: float, covered: bool, gap_rise: float, used: tuple[float, float, float]
    ) -> None:
        v = self.v
        waiting = v.sums(columns.WAITING)
        waiting["records"] += 1
        waiting["m"] += row.rise_m
        waiting["untracked_m"] += gap_rise
        if covered:
            waiting["covered_s"] += dt
            waiting["moving_s"] += row.moving_s
        if row.electric_s > 0 and row.time - row.electric_s >= v.trip_start:
            waiting["out_kwh"] += max(0.0, row.kwh)
            waiting["regen_kwh"] += max(0.0, -row.kwh)
        if used[0] >= v.trip_start:
            waiting["used_m"] += used[1]
            waiting["used_kwh"] += used[2]
        v.set_sums(columns.WAITING, waiting)
        v.trip_soc_now = _first_known(row.soc, v.trip_soc_now)
        v.trip_odometer_now = _first_known(row.odometer, v.trip_odometer_now)
        if _known(row.longitude):
            v.trip_longitude_now, v.trip_latitude_now = row.longitude, row.latitude

    def trip_drove(self, row: _Row, stands: bool) -> None:
        v = self.v
        sums, waiting = v.sums(columns.SUMS), v.sums(columns.WAITING)
        v.set_sums(columns.SUMS, {name: sums[name] + waiting[name] for name in _SUMS})
        v.set_sums(columns.WAITING, dict.fromkeys(_SUMS, 0.0))
        v.trip_end, v.trip_stop = row.time, row.time if stands else _NAN
        v.trip_soc_end, v.trip_odometer_end = v.trip_soc_now, v.trip_odometer_now
        v.trip_longitude_end, v.trip_latitude_end = v.trip_longitude_now, v.trip_latitude_now
        v.trip_soc_start = _first_known(v.trip_soc_start, v.trip_soc_now)
        v.trip_odometer_start = _first_known(v.trip_odometer_start, v.trip_odometer_now)
        if math.isnan(v.trip_longitude_start):
            v.trip_longitude_start, v.trip_latitude_start = v.trip_longitude_now, v.trip_latitude_now
        if _known(row.speed):
            v.trip_speed_max = row.speed if math.isnan(v.trip_speed_max) else max(v.trip_speed_max, row.speed)

    def end_trip(self, settled: float, cause: int) -> None:
        v = self.v
        sums, waiting = v.sums(columns.SUMS), v.sums(columns.WAITING)
        ticked = waiting["m"] - waiting["untracked_m"]
        metres = sums["m"] + ticked
        if metres < columns.TRIP_M and v.trip_end - v.trip_start < columns.TRIP_S:
            self.add("trips_dropped", float(cause != OPEN))
            return
        self.write(
            "trips", settled, start_s=v.trip_start, end_s=v.trip_end, end_cause=cause, records=sums["records"],
            distance_km=metres / 1000, untracked_km=sums["untracked_m"] / 1000, covered_s=sums["covered_s"],
            moving_s=sums["moving_s"], out_kwh=sums["out_kwh"], regen_kwh=sums["regen_kwh"],
            consumption_km=sums["used_m"] / 1000, consumption_kwh=sums["used_kwh"], start_soc_pct=v.trip_soc_start,
            end_soc_pct=v.trip_soc_end, start_odometer_km=v.trip_odometer_start,
            end_odometer_km=v.trip_odometer_now if ticked > 0 else v.trip_odometer_end, speed_max_kmh=v.trip_speed_max,
            start_longitude_deg=v.trip_longitude_start, start_latitude_deg=v.trip_latitude_start,
            end_longitude_deg=v.trip_longitude_end, end_latitude_deg=v.trip_latitude_end,
        )  # fmt: skip

    # -- charges

    def charge(self, row: _Row, mode: int, covered: bool) -> None:
        v = self.v
        full = row.soc >= columns.PLATEAU_SOC_PCT and abs(row.current) < columns.PLATEAU_A
        active = mode == CHARGING and not full
        if _known(v.charge_start):
            v.charge_moved_m += row.rise_m
            if mode == DRIVING:
                v.charge_drove = 1.0
            moved = v.charge_moved_m >= columns.MOVED_M
            apart = row.time - v.charge_end > columns.SPLIT_S
            lower = active and (v.charge_idle or not covered) and v.charge_soc_end - row.soc >= columns.LOWER_SOC_PCT
            if not (moved or apart or lower):
                self.charge_goes_on(row, active)
                return
            cause = STOPPED_CHARGING
            if moved or v.charge_drove:
                cause = STARTED_DRIVING
            elif apart and not v.charge_idle:
                cause = GAP
            self.end_charge(row.time, cause)
            v.begin_again(((columns.CHARGE_START, columns.PENDING), (columns.BIN_KWH, columns.STATE)))
        if active:
            v.charge_start, v.charge_runs, v.charge_bin_s = row.time, 1.0, columns.BIN_S
            self.charging_record(row)

    def charge_goes_on(self, row: _Row, active: bool) -> None:
        v = self.v
        begin = row.time - row.electric_s
        if row.electric_s > 0 and begin >= v.charge_start:
            v.charge_waiting_s += row.electric_s
            v.charge_waiting_kwh -= row.kwh
            v.charge_waiting_ah -= row.ah
            self.profile(begin - v.charge_start, row.time - v.charge_start, -row.kwh)
        if not active:
            v.charge_idle = 1.0
            return
        v.charge_covered_s += v.charge_waiting_s
        v.charge_energy += v.charge_waiting_kwh
        v.charge_ah += v.charge_waiting_ah
        v.charge_waiting_s = v.charge_waiting_kwh = v.charge_waiting_ah = 0.0
        v.charge_runs += v.charge_idle
        v.charge_idle = v.charge_drove = v.charge_moved_m = 0.0
        self.charging_record(row)

    def charging_record(self, row: _Row) -> None:
        v = self.v
        v.charge_end = row.time
        v.charge_records += 1
        if _known(row.soc):
            if math.isnan(v.charge_soc_start):
                v.charge_soc_start, v.charge_soc_start_ah = row.soc, v.charge_ah
            v.charge_soc_end, v.charge_soc_end_ah = row.soc, v.charge_ah
        if row.power < 0:
            v.charge_power_max = max(-row.power, _first_known(v.charge_power_max, 0.0))
        if _known(row.temp_mean):
            v.charge_temp_sum += row.temp_mean
            v.charge_temps += 1
        if _known(row.temp_max):
            v.charge_temp_max = max(row.temp_max, _first_known(v.charge_temp_max, row.temp_max))
        v.charge_odometer = _first_known(v.charge_odometer, row.odometer)
        if math.isnan(v.charge_longitude):
            v.charge_longitude, v.charge_latitude = row.longitude, row.latitude

    def profile(self, begin: float, end: float, kwh: float) -> None:
        v, bins = self.v, columns.BINS
        energy = v.state[columns.BIN_KWH : columns.BIN_KWH + bins]
        covered = v.state[columns.BIN_COVERED_S : columns.BIN_COVERED_S + bins]
        while end > bins * v.charge_bin_s:
            for values in (energy, covered):
                values[:] = [*(values[::2] + values[1::2]), *[0.0] * (bins // 2)]
            v.charge_bin_s *= 2
        width = v.charge_bin_s
        for at in range(bins):
            if at >= int(begin / width) and at * width < end:
                part = min(end, (at + 1) * width) - max(begin, at * width)
                covered[at] += part
                energy[at] += kwh * part / (end - begin)

    def end_charge(self, settled: float, cause: int) -> None:
        v = self.v
        duration, soc_rise = v.charge_end - v.charge_start, v.charge_soc_end - v.charge_soc_start
        charged = soc_rise >= columns.CHARGE_SOC_PCT or v.charge_energy >= columns.CHARGE_KWH
        if duration < columns.CHARGE_S or not charged:
            self.add("charges_dropped", float(cause != OPEN))
            return
        middle_kwh = middle_s = 0.0
        for at in range(columns.BINS):
            begin, end = at * v.charge_bin_s, (at + 1) * v.charge_bin_s
            part = (min(duration * 0.75, end) - max(duration * 0.25, begin)) / v.charge_bin_s
            if part > 0:
                middle_kwh += float(v.state[columns.BIN_KWH + at]) * part
                middle_s += float(v.state[columns.BIN_COVERED_S + at]) * part
        mean_temp = v.charge_temp_sum / v.charge_temps if v.charge_temps else _NAN
        capacity = _NAN
        covered = v.charge_covered_s / duration >= columns.CAPACITY_COVERAGE
        if soc_rise >= columns.CAPACITY_SOC_PCT and covered and mean_temp >= columns.CAPACITY_TEMP_C:
            capacity = (v.charge_soc_end_ah - v.charge_soc_start_ah) / soc_rise * 100
        self.write(
            "charges", settled, start_s=v.charge_start, end_s=v.charge_end, end_cause=cause, records=v.charge_records,
            runs=v.charge_runs, covered_s=v.charge_covered_s, energy_kwh=v.charge_energy, charge_ah=v.charge_ah,
            start_soc_pct=v.charge_soc_start, end_soc_pct=v.charge_soc_end,
            mean_power_kw=v.charge_energy / (v.charge_covered_s / 3600) if v.charge_covered_s > 0 else _NAN,
            max_power_kw=v.charge_power_max, middle_power_kw=middle_kwh / (middle_s / 3600) if middle_s > 0 else _NAN,
            middle_coverage=middle_s / (duration * 0.5), mean_temp_c=mean_temp, max_temp_c=v.charge_temp_max,
            odometer_km=v.charge_odometer, longitude_deg=v.charge_longitude, latitude_deg=v.charge_latitude,
            capacity_ah=capacity,
        )  # fmt: skip


def fold_drive(
    time_s: Any, kind: Any, x: Any, begin: Any, end: Any, vehicle: Any, hour: Any, day: Any, close: Any,
    gap_limit_s: Any, mode: Any, state: Any, hours: Any, tallies: Any, findings: Any,
) -> int:  # fmt: skip
    """See ``drive.fold_drive``."""
    found = 0
    soc_begin = TALLY_BEGIN["soc_s"]
    for j in range(len(begin)):
        v = _Vehicle(state[vehicle[j]])
        fold = _Fold(v, hours[hour[j]], tallies[day[j], soc_begin : soc_begin + 10], findings, found, j)
        waiting = v.state[columns.PENDING_ROW : columns.PENDING_ROW + columns.ROW]

        def settle_pending(mode_of: int | None = None, v: _Vehicle = v, fold: _Fold = fold, w: Any = waiting) -> None:
            row = _Row(*(float(value) for value in w))
            v.pending = 0.0
            w[:] = 0.0
            fold.settle(row, int(row.mode) if mode_of is None else mode_of)

        for k in range(begin[j], end[j]):
            if kind[k] == KIND_LOGOUT:
                mode[k] = UNKNOWN
                continue
            row = fold.arrive(float(time_s[k]), float(gap_limit_s[k]), dict(zip(FIELDS, map(float, x[k]), strict=True)))
            mode[k] = row.mode
            if v.pending:
                odd = row.mode == v.settled_mode and row.time - v.settled_time <= columns.ODD_S
                settle_pending(int(v.settled_mode) if odd else None)
            if v.settled_mode not in (UNKNOWN, row.mode) and row.time - v.settled_time < columns.ODD_S:
                v.pending = 1.0
                waiting[:] = astuple(row)
            else:
                fold.settle(row, int(row.mode))
        if close[j] != GOES_ON and v.pending:
            settle_pending()
        if close[j] == PEEK:
            if _known(v.trip_start):
                fold.end_trip(_NAN, OPEN)
            if _known(v.charge_start):
                fold.end_charge(_NAN, OPEN)
        found = fold.found
    return found if found <= len(findings) else -found
