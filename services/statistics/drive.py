# ruff: noqa: F405 - names of drive_layout
"""Motion, energy, trips and charges: one pass in time order (4.1 to 4.5).

Records arrive, get their mode, and are settled one behind the other: a record whose mode differs from the one before
waits (in the state) for the next record, or for the end of its hour, in case it is the odd one that takes its
neighbours' mode. Everything that depends on modes happens when a record is settled, the rest as it arrives; both
lie in the same hour. It never looks beyond the end of an hour, and keeps no sums over a lifetime.

Conventions of this project [P], where the rules leave room:

* ``mode`` of a record that tells neither speed nor state is that of the record before, for up to 300 s.
  The odometer "rises" where it does so within the gap limit.
* Covered time goes to the modes of both ends, half each. Energy goes to an interval's mode: charging or parked when
  both ends are, driving when one is and none charges; between charging and anything else it belongs to nobody.
  Voltage and current may lie on other records than the odometer: energy is integrated from one record that has both
  to the next, if within the gap limit.
* The odometer may tick once a kilometre, long after the metre that made it. Consumption is settled at each reading
  inside an unbroken covered stretch, energy waits for it; gaps, charging and records without current break the
  stretch, and what waits then counts for neither side. So the ticks at both ends of a stretch err without bias.
* A fall of up to 1 km is no fall: distance waits until the odometer is past its mark. A reading that fell further, or
  rose faster than 220 km/h, counts only when the next one agrees with it; then a new segment starts there.
* A tick while a stop may still be part of the trip is the trip's. Rises in gaps are ``untracked_km``; a trip that
  goes on through a gap (at most 600 s) says how much of that is its own.
* A stop that began before a gap goes on in it, unless the odometer rose.
* A charge reaches from its first charging record to its last; pauses between runs are inside, with their energy.
  "SOC not lower" between runs: by less than a whole point, as most vehicles know no finer (a real car that tells
  tenths lost one in a pause of three minutes).
* Records of the plateau (SOC 100 %, below 1 A) neither begin nor prolong a charge.
* The middle half of a charge is read from a profile of 32 bins, which double their width as it grows.
* Capacity takes SOC and charge at the first and the last charging record that tell the SOC.

Considered, not done: a fall of the odometer as a new segment at its first reading (one wrong reading then costs the
distance on both sides of it); a trip's energy with the interval before its first driving record (energy of the start,
hardly any of its kilometres); an interval in the state of its end alone (half of each start would be standing
consumption). Measured, and lost: a view of the record's fields, ``x[k]``, for ``x[k, FIELD]``: no faster; slice
assignments, whose error message is compiled too: two seconds of compile time; ``charge`` and ``trip`` called for every
record: 110 ns a record for 68; ``_settle`` called in two places: half a second of compile time, no faster.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from schemas.jit import compiled, kernel
from schemas.statistics.measures import INDEX, TALLY_BEGIN, TALLY_WIDTH
from schemas.statistics.records import (
    CHARGE_STATE,
    CHARGING,
    CURRENT,
    DRIVING,
    F64,
    FIELDS,
    GOES_ON,
    I32,
    I64,
    KIND_LOGOUT,
    LATITUDE,
    LOCATION_VALID,
    LONGITUDE,
    ODOMETER,
    PARKED,
    PEEK,
    PROBE_MAX,
    PROBE_MIN,
    REPORTED_TEMP_MAX,
    REPORTED_TEMP_MIN,
    SOC,
    SPEED,
    U8,
    UNKNOWN,
    VEHICLE_STATE,
    VOLTAGE,
    Jobs,
    Records,
)
from schemas.statistics.sessions import FINDING_WIDTH, OPEN
from services.statistics import drive_twin
from services.statistics.charges import charge, end_charge
from services.statistics.drive_layout import *  # noqa: F403 - its columns are this kernel's variables
from services.statistics.drive_layout import LAYOUT, STATE, initial_state
from services.statistics.trips import end_trip, trip

_SOC_S: Final = TALLY_BEGIN["soc_s"]
(
    _DISTANCE_KM, _UNTRACKED_KM, _FALLS, _DRIVING_S, _CHARGING_S, _PARKED_S, _MOVING_S, _SPEED_MAX, _USED_KM,
    _USED_KWH, _OUT_KWH, _REGEN_KWH, _STANDING_KWH, _STANDING_S, _STANDING_SOC, _STANDING_SPAN_S, _CHARGE_KWH,
    _DISCHARGE_AH, _CHARGE_AH, _REGEN_AH, _POWER_OUT_MAX, _POWER_IN_MAX, _SOC_FIRST, _SOC_LAST, _SOC_MIN, _SOC_MAX,
    _ODOMETER_FIRST, _ODOMETER_LAST,
) = (
    INDEX[name]
    for name in (
        "distance_km", "untracked_km", "odometer_falls", "driving_s", "charging_s", "parked_s", "moving_s",
        "speed_max_kmh", "consumption_km", "consumption_kwh", "out_kwh", "regen_kwh", "standing_kwh", "standing_s",
        "standing_soc_pct", "standing_span_s", "charge_kwh", "discharge_ah", "charge_ah", "regen_ah",
        "power_out_max_kw", "power_in_max_kw", "soc_first_pct", "soc_last_pct", "soc_min_pct", "soc_max_pct",
        "odometer_first_km", "odometer_last_km",
    )
)  # fmt: skip
_CHARGING_BIT, _DRIVING_BIT, _PARKED_BIT = 1 << CHARGING, 1 << DRIVING, 1 << PARKED
_TIME_OF_MODE: Final = np.array([-1, _DRIVING_S, _CHARGING_S, _PARKED_S])


# -- one record whose mode is certain -----------------------------------------------------------------------


@compiled
def _settle(r: Any, s: Any, h: Any, mode: int, findings: F64, found: int, job: int) -> int:
    now = r[R_TIME]
    first = np.isnan(s[SETTLED_TIME])
    dt = 0.0 if first else now - s[SETTLED_TIME]
    covered = not first and dt <= r[R_LIMIT_S]
    if covered:
        before = np.int64(s[SETTLED_MODE])
        if before != UNKNOWN:
            h[_TIME_OF_MODE[before]] += 0.5 * dt
        if mode != UNKNOWN:
            h[_TIME_OF_MODE[mode]] += 0.5 * dt

    # energy, from one record with voltage and current to the next
    electric = r[R_POWER] == r[R_POWER]
    kwh, ah = r[R_KWH], r[R_AH]
    modes = np.int64(s[MODES_SINCE]) | (1 << mode)
    charged = modes & _CHARGING_BIT != 0
    if r[R_ELECTRIC_S] > 0.0:
        if modes == _CHARGING_BIT:
            if kwh < 0.0:
                h[_CHARGE_KWH] -= kwh
            if ah < 0.0:
                h[_CHARGE_AH] -= ah
        elif charged:
            pass
        elif modes & _DRIVING_BIT != 0:
            if kwh > 0.0:
                h[_OUT_KWH] += kwh
            else:
                h[_REGEN_KWH] -= kwh
            if ah < 0.0:
                h[_REGEN_AH] -= ah
        elif modes == _PARKED_BIT:
            h[_STANDING_KWH] += kwh
            h[_STANDING_S] += r[R_ELECTRIC_S]
    s[MODES_SINCE] = (1 << mode) if electric else modes

    # consumption: energy and distance over the same intervals
    used_from, used_m, used_kwh = np.nan, 0.0, 0.0
    if not covered or mode == CHARGING or r[R_RESET] != 0.0:
        s[USED_FROM] = np.nan
        s[USED_KWH] = s[USED_M] = s[USED_READING] = 0.0
    if r[R_ODOMETER] == r[R_ODOMETER]:
        s[USED_READING] = 1.0
        if r[R_RISE_IN_GAP] == 0.0:
            s[USED_M] += r[R_RISE_M]
    if electric:
        if r[R_ELECTRIC_S] > 0.0 and not charged:
            s[USED_KWH] += kwh
        else:
            s[USED_FROM] = np.nan
        if s[USED_READING] != 0.0:
            if s[USED_FROM] == s[USED_FROM]:
                used_from, used_m, used_kwh = s[USED_FROM], s[USED_M], s[USED_KWH]
                h[_USED_KM] += used_m / 1000.0
                h[_USED_KWH] += used_kwh
            s[USED_FROM] = now
            s[USED_KWH] = s[USED_M] = s[USED_READING] = 0.0

    # SOC lost at rest
    if mode == PARKED:
        gap = s[REST_GAP] != 0.0 or not covered
        if r[R_SOC] == r[R_SOC]:
            lost = s[REST_SOC] - r[R_SOC]
            stood = r[R_RISE_M] == 0.0 and r[R_ODOMETER] == r[R_ODOMETER] and r[R_RESET] == 0.0
            if lost == lost and (not gap or (lost >= 0.0 and stood and r[R_ODOMETER_BEFORE] == r[R_ODOMETER_BEFORE])):
                h[_STANDING_SOC] += lost
                h[_STANDING_SPAN_S] += now - s[REST_TIME]
            s[REST_SOC] = r[R_SOC]
            s[REST_TIME] = now
            s[REST_GAP] = 0.0
        else:
            s[REST_GAP] = 1.0 if gap else 0.0
    elif mode == UNKNOWN:
        if not covered:
            s[REST_GAP] = 1.0
    else:
        s[REST_SOC] = s[REST_TIME] = np.nan
        s[REST_GAP] = 0.0

    # most records belong to neither: the calls alone cost as much as all the rest here
    if mode == CHARGING or s[CHARGE_START] == s[CHARGE_START]:
        found = charge(r, s, h, mode, covered, findings, found, job)
    if mode == DRIVING or s[TRIP_START] == s[TRIP_START]:
        found = trip(r, s, h, mode, first, dt, covered, used_from, used_m, used_kwh, findings, found, job)
    s[SETTLED_TIME] = now
    s[SETTLED_MODE] = mode
    return found


# -- one record as it arrives ---------------------------------------------------------------------------------


@compiled
def _odometer(reading: float, now: float, s: Any, h: Any, r: Any) -> None:
    """Take one odometer reading (4.3) into the state and the hour, and what it means into the row."""
    r[R_ODOMETER] = np.nan
    r[R_ODOMETER_BEFORE] = s[ODOMETER]
    r[R_RISE_M] = r[R_RISE_IN_GAP] = r[R_RESET] = 0.0
    if np.isnan(reading) or (reading == 0.0 and s[ODOMETER] > 0.0):
        return
    if s[ODOMETER] == s[ODOMETER]:
        rise_m = np.floor((reading - s[ODOMETER]) * 1000.0 + 0.5)
        gap = s[ODOMETER_GAP]
        if rise_m < -FALL_M or rise_m > SPEED_MAX_KMH / 3.6 * (now - s[ODOMETER_TIME]) + FALL_M:
            rise_m = np.floor((reading - s[SUSPECT]) * 1000.0 + 0.5)
            if not (rise_m >= 0.0 and rise_m <= SPEED_MAX_KMH / 3.6 * (now - s[SUSPECT_TIME]) + FALL_M):
                s[SUSPECT] = reading
                s[SUSPECT_TIME] = now
                s[SUSPECT_GAP] = 0.0
                return
            r[R_RESET] = 1.0
            if s[SUSPECT] < s[ODOMETER]:
                h[_FALLS] += 1.0
            gap = s[SUSPECT_GAP]
            r[R_ODOMETER_BEFORE] = s[SUSPECT]
        if rise_m > 0.0:
            r[R_RISE_M] = rise_m
            h[_DISTANCE_KM] += rise_m / 1000.0
            if gap != 0.0:
                r[R_RISE_IN_GAP] = 1.0
                h[_UNTRACKED_KM] += rise_m / 1000.0
    if r[R_RESET] != 0.0 or not (reading < s[ODOMETER]):
        s[ODOMETER] = reading
    s[ODOMETER_TIME] = now
    s[ODOMETER_GAP] = 0.0
    s[SUSPECT] = s[SUSPECT_TIME] = np.nan
    s[SUSPECT_GAP] = 0.0
    r[R_ODOMETER] = reading
    if h[_ODOMETER_FIRST] != h[_ODOMETER_FIRST]:
        h[_ODOMETER_FIRST] = reading
    h[_ODOMETER_LAST] = reading


@compiled
def _clear(row: Any) -> None:
    for i in range(ROW):  # a slice assignment would compile its error message too: a second of compile time
        row[i] = 0.0


@compiled
def _temperature(value: float) -> float:
    """Probe temperature; NaN at the field's ends, which are no measurement (3.1)."""
    return value if value > -40.0 and value < 215.0 else np.nan


@kernel(twin=drive_twin.fold_drive)
def fold_drive(
    time_s: I64, kind: U8, x: F64, begin: I64, end: I64, vehicle: I32, hour: I32, day: I32, close: U8,
    gap_limit_s: F64, mode: U8, state: F64, hours: F64, tallies: I64, findings: F64,
) -> int:  # fmt: skip
    # np.int64: a plain 0 or OPEN is a type of its own to numba, and everything below would be compiled for it as well
    found: Any = np.int64(0)
    still_open: Any = np.int64(OPEN)
    r = np.empty(ROW)
    for j in range(len(begin)):
        s = state[vehicle[j]]
        h = hours[hour[j]]
        waiting = s[PENDING_ROW : PENDING_ROW + ROW]
        for k in range(begin[j], end[j]):
            if kind[k] == KIND_LOGOUT:
                mode[k] = UNKNOWN
                continue
            now = np.float64(time_s[k])
            limit = gap_limit_s[k]
            first = np.isnan(s[TIME])
            dt = 0.0 if first else now - s[TIME]
            covered = not first and dt <= limit
            if not covered:
                s[ODOMETER_GAP] = s[SUSPECT_GAP] = 1.0
            r[R_TIME] = now
            r[R_LIMIT_S] = limit
            _odometer(x[k, ODOMETER], now, s, h, r)

            # voltage and current
            voltage, current = x[k, VOLTAGE], x[k, CURRENT]
            power = voltage * current / 1000.0
            r[R_POWER] = power
            r[R_CURRENT] = current
            r[R_ELECTRIC_S] = r[R_KWH] = r[R_AH] = 0.0
            if power == power:
                since = now - s[ELECTRIC_TIME]
                if since <= limit:
                    r[R_ELECTRIC_S] = since
                    r[R_KWH] = (s[POWER] + power) * 0.5 * since / 3600.0
                    ah = (s[CURRENT_A] + current) * 0.5 * since / 3600.0
                    r[R_AH] = ah
                    if ah > 0.0:
                        h[_DISCHARGE_AH] += ah
                s[ELECTRIC_TIME] = now
                s[POWER] = power
                s[CURRENT_A] = current
                if power >= 0.0:
                    if not (h[_POWER_OUT_MAX] >= power):
                        h[_POWER_OUT_MAX] = power
                elif not (h[_POWER_IN_MAX] >= -power):
                    h[_POWER_IN_MAX] = -power

            # SOC
            soc = x[k, SOC]
            r[R_SOC] = soc
            if soc == soc:
                if h[_SOC_FIRST] != h[_SOC_FIRST]:
                    h[_SOC_FIRST] = h[_SOC_MIN] = h[_SOC_MAX] = soc
                h[_SOC_LAST] = soc
                h[_SOC_MIN] = min(h[_SOC_MIN], soc)
                h[_SOC_MAX] = max(h[_SOC_MAX], soc)
                if covered:
                    tallies[day[j], _SOC_S + min(9, max(0, int(soc / 10.0)))] += int(dt)

            # speed
            speed = x[k, SPEED]
            r[R_SPEED] = speed
            r[R_MOVING_S] = 0.0
            if speed > 0.0:
                r[R_MOVING_S] += 0.5 * dt
            if s[SPEED_KMH] > 0.0:
                r[R_MOVING_S] += 0.5 * dt
            if covered:
                h[_MOVING_S] += r[R_MOVING_S]
            if speed == speed and not (h[_SPEED_MAX] >= speed):
                h[_SPEED_MAX] = speed
            s[SPEED_KMH] = speed

            # place and temperature
            fixed = x[k, LOCATION_VALID] != 0.0 and x[k, LATITUDE] == x[k, LATITUDE]
            r[R_LONGITUDE] = x[k, LONGITUDE] if fixed else np.nan
            r[R_LATITUDE] = x[k, LATITUDE] if fixed else np.nan
            hottest, coldest = _temperature(x[k, PROBE_MAX]), _temperature(x[k, PROBE_MIN])
            if np.isnan(hottest) or np.isnan(coldest):
                hottest, coldest = _temperature(x[k, REPORTED_TEMP_MAX]), _temperature(x[k, REPORTED_TEMP_MIN])
            r[R_TEMP_MAX] = hottest
            r[R_TEMP_MEAN] = (hottest + coldest) * 0.5

            # mode (4.1)
            charge_state, is_off = x[k, CHARGE_STATE], x[k, VEHICLE_STATE] == 2.0
            rising = covered and r[R_RISE_M] > 0.0 and r[R_RISE_IN_GAP] == 0.0
            r[R_OFF] = 1.0 if is_off else 0.0
            if charge_state == 1.0 or (np.isnan(charge_state) and current < -1.0 and speed == 0.0):
                now_mode = CHARGING
            elif speed > 0.0 or rising or (charge_state == 2.0 and not is_off):
                now_mode = DRIVING
            elif speed == 0.0 or is_off or charge_state == 4.0:
                now_mode = PARKED
            else:
                now_mode = UNKNOWN
            if now_mode != UNKNOWN:
                s[KNOWN_TIME] = now
            elif covered and now - s[KNOWN_TIME] <= CARRY_S:
                now_mode = int(s[MODE])
            s[MODE] = now_mode
            s[TIME] = now
            mode[k] = now_mode
            r[R_MODE] = now_mode

            # the odd record between equal ones: what waits is settled first, then this one, unless it waits itself
            # (in a loop, so that the compiler sees one call)
            for waited in (True, False):
                if waited:
                    if s[PENDING] == 0.0:
                        continue
                    s[PENDING] = 0.0
                    odd = s[SETTLED_MODE] == now_mode and now - s[SETTLED_TIME] <= ODD_S
                    row, row_mode = waiting, now_mode if odd else int(waiting[R_MODE])
                elif s[SETTLED_MODE] == UNKNOWN or s[SETTLED_MODE] == now_mode or now - s[SETTLED_TIME] >= ODD_S:
                    row, row_mode = r, now_mode
                else:
                    s[PENDING] = 1.0
                    for i in range(ROW):
                        waiting[i] = r[i]
                    break
                found = _settle(row, s, h, row_mode, findings, found, j)
                if waited:
                    _clear(waiting)

        if close[j] != GOES_ON and s[PENDING] != 0.0:
            s[PENDING] = 0.0
            found = _settle(waiting, s, h, int(waiting[R_MODE]), findings, found, j)
            _clear(waiting)
        if close[j] == PEEK:
            if s[TRIP_START] == s[TRIP_START]:
                found = end_trip(s, h, np.nan, still_open, findings, found, j)
            if s[CHARGE_START] == s[CHARGE_START]:
                found = end_charge(s, h, np.nan, still_open, findings, found, j)
    return int(found) if found <= len(findings) else -int(found)


def run(records: Records, jobs: Jobs, gap_limit_s: F64, mode: U8, state: F64, hours: F64, tallies: I64) -> F64:
    """Fold ``records``: fills mode (n,), moves state (v, STATE), adds to hours and tallies.

    Returns the trips and charges found, (m, FINDING_WIDTH), in the order in which they were certain.
    """
    # Every session begins at a record of its own, in here or (one trip and one charge) before; and is written once,
    # open ones too.
    findings = np.empty((records.n + 4 * jobs.n, FINDING_WIDTH))
    found = fold_drive(
        records.time_s, records.kind, records.x, jobs.begin, jobs.end, jobs.vehicle, jobs.hour, jobs.day, jobs.close,
        gap_limit_s, mode, state, hours, tallies, findings,
    )  # fmt: skip
    assert found >= 0, (found, len(findings))
    return findings[:found].copy()


def warm() -> None:
    """Compile this module's kernel."""
    nothing, none, no_bytes, numbers = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(0)
    fold_drive(
        nothing, no_bytes, np.zeros((0, len(FIELDS))), nothing, nothing, none, none, none, no_bytes, numbers, no_bytes,
        np.zeros((0, STATE)), np.zeros((0, len(INDEX))), np.zeros((0, TALLY_WIDTH), np.int64),
        np.empty((0, FINDING_WIDTH)),
    )  # fmt: skip


__all__ = ["LAYOUT", "STATE", "fold_drive", "initial_state", "run", "warm"]
