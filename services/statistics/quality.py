"""Completeness and verification: what came, what was due, and what contradicts itself (3.3, 3.4).

Reads every record once, in time order, and writes the gap limit that the other folds go by. It never looks at
what a vehicle did (that is ``drive``), at the registry, or at the clock on the wall.

Conventions of this project [P], where the rules leave room:

* The nominal interval of a day is the most frequent of the daily modes of the last seven days with data (the
  smaller one of equals); before the first of them the mode of today so far, the record at hand included. Only
  intervals of 1 to 60 s count for a mode; a day without one has none. Nothing known: 30 s.
* A span of records that are due one after the other counts ``span / nominal + 1``: each interval adds its part
  to the hour in which it ends, the first record of a span adds the 1. A span ends at a logout, and at a gap
  before which the vehicle neither drove nor charged, unless the odometer shows that it drove in it: further than one
  nominal interval at 220 km/h, as a vehicle that wakes up may roll before its first report.
* An interval of more than 1.5 nominal adds ``dt - nominal`` to ``missing_s``.
* Check 8 compares odometer and position over the same intervals (both known at both ends, within the gap limit),
  and judges days of 20 km or more: an odometer in whole kilometres is off by up to 1 km.
* An odometer of 0 after a larger value is missing (3.1), so check 5 does not see it.

Considered, not done: today's intervals read back from the tally instead of being kept in the state (a fold must not
depend on who else fills an accumulator); intervals above 60 s counted as 60 (a day with a few long gaps is no day of
one-minute reports). Measured, and lost: cells by their position in ``cells`` instead of by a slice, which is not
vectorised: 100 ns a record for 15.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from schemas.jit import compiled, kernel
from schemas.signals import State
from schemas.statistics.measures import INDEX, TALLY_BEGIN, TALLY_WIDTH
from schemas.statistics.records import (
    CHARGE_STATE,
    CURRENT,
    DAY_ENDS,
    F64,
    FIELDS,
    I32,
    I64,
    KIND_LOGOUT,
    LATITUDE,
    LOCATION_VALID,
    LONGITUDE,
    NO_CELL,
    ODOMETER,
    PACK_CELLS,
    REPORTED_CELL_MAX,
    REPORTED_CELL_MIN,
    SOC,
    SPEED,
    U8,
    VEHICLE_STATE,
    VOLTAGE,
    Jobs,
    Records,
)
from schemas.statistics.sessions import FINDING_WIDTH
from services.statistics import quality_twin
from services.statistics.quality_layout import (
    BY_ODOMETER_KM,
    BY_POSITION_KM,
    CELL_LIST,
    EARTH_KM_PER_DEG,
    FIELD_OF_SIGNAL,
    GAP_S,
    JUDGED_KM,
    LATITUDE_DEG,
    LAYOUT,
    LOGGED_OUT,
    LONGITUDE_DEG,
    MANDATORY,
    MODE_S,
    MODES,
    NOMINAL_S,
    NOMINAL_UNKNOWN_S,
    ODOMETER_KM,
    ODOMETER_TIME,
    PROBE_LIST,
    RESTING,
    SEEN,
    SOC_PCT,
    SPEED_KMH,
    STATE,
    TIME,
    WOKE_KM_PER_S,
    initial_state,
)

_ABNORMAL, _OUT_OF_RANGE = int(State.ABNORMAL), int(State.OUT_OF_RANGE)
_FIELDS: Final = len(FIELDS)
_RECORDS, _ROWS, _REISSUED, _REPEATED, _LATE, _EXPECTED, _MISSING_S, _COVERED_S, _GAP_S, _GAP_MAX_S, _CELLS, _PROBES = (
    INDEX[name]
    for name in (
        "records", "rows", "reissued", "repeated", "late", "expected", "missing_s", "covered_s", "gap_s", "gap_max_s",
        "cells_listed", "probes_listed",
    )
)  # fmt: skip
_INTERVAL_S, _VALID, _FLAWED, _TOTAL, _FAILED, _SIGN = (
    TALLY_BEGIN[name]
    for name in ("interval_s", "field_valid", "field_flawed", "check_total", "check_failed", "charging_sign")
)
(
    _CHECK_FIELDS, _CHECK_LISTS, _CHECK_EXTREMES, _CHECK_PACK, _CHECK_ODOMETER, _CHECK_SOC, _CHECK_CURRENT,
    _CHECK_DISTANCE, _CHECK_CLOCK,
) = range(9)  # fmt: skip


@compiled
def _usual_mode(state: Any) -> float:
    """The most frequent of the last days' modes, the smaller one of equals; NaN without any."""
    best = np.nan
    most = 0
    for i in range(MODES, SEEN):
        if np.isnan(state[i]):
            continue
        count = 0
        for k in range(MODES, SEEN):
            if state[k] == state[i]:
                count += 1
        if count > most or (count == most and state[i] < best):
            most = count
            best = state[i]
    return best


@compiled
def _apart_km(longitude_a: float, latitude_a: float, longitude_b: float, latitude_b: float) -> float:
    """Distance of two near positions; the cosine as a polynomial, as libraries differ in the last bit of theirs."""
    middle = (latitude_a + latitude_b) * 0.5 * (np.pi / 180)
    q = middle * middle
    cosine = 1.0 - q * (0.5 - q * (1 / 24 - q * (1 / 720 - q * (1 / 40320 - q * (1 / 3628800)))))
    north = latitude_b - latitude_a
    east = (longitude_b - longitude_a) * cosine
    return np.sqrt(north * north + east * east) * EARTH_KM_PER_DEG  # type: ignore[no-any-return]


@kernel(twin=quality_twin.fold_quality)
def fold_quality(
    time_s: I64, kind: U8, x: F64, rows: I32, reissued: I32, repeated: I32, late: I32, late_us: I64,
    cell_span: I64, cells: I32, probe_span: I64, flaw_span: I64, flaws: U8,
    begin: I64, end: I64, vehicle: I32, hour: I32, day: I32, sign: F64, close: U8, field_of_signal: I64,
    gap_limit_s: F64, state: F64, hours: F64, tallies: I64,
) -> None:  # fmt: skip
    for j in range(len(begin)):
        s = state[vehicle[j]]
        h = hours[hour[j]]
        y = tallies[day[j]]
        usual = _usual_mode(s)
        for k in range(begin[j], end[j]):
            now = np.float64(time_s[k])
            known_before = not np.isnan(s[TIME])
            dt = now - s[TIME] if known_before else 0.0
            if kind[k] == KIND_LOGOUT:
                nominal = s[NOMINAL_S] if not np.isnan(s[NOMINAL_S]) else NOMINAL_UNKNOWN_S
                gap_limit_s[k] = max(GAP_S, 4.0 * nominal)
                s[LOGGED_OUT] = 1.0
                continue

            # cadence
            if known_before and dt <= 60.0:
                seconds = np.int64(dt)
                y[_INTERVAL_S + seconds] += 1
                if seconds > 0:
                    at = SEEN + seconds - 1
                    s[at] += 1.0
                    if np.isnan(s[MODE_S]):
                        s[MODE_S] = dt
                    else:
                        most = s[SEEN + np.int64(s[MODE_S]) - 1]
                        if s[at] > most or (s[at] == most and dt < s[MODE_S]):
                            s[MODE_S] = dt
            nominal = usual
            if np.isnan(nominal):
                nominal = s[MODE_S]
            if np.isnan(nominal):
                nominal = NOMINAL_UNKNOWN_S
            s[NOMINAL_S] = nominal
            limit = max(GAP_S, 4.0 * nominal)
            gap_limit_s[k] = limit

            # what came
            h[_RECORDS] += 1.0
            h[_ROWS] += rows[k]
            h[_REISSUED] += reissued[k]
            h[_REPEATED] += repeated[k]
            h[_LATE] += late[k]

            # odometer, and check 5
            odometer = x[k, ODOMETER]
            odometer_before = s[ODOMETER_KM]
            if odometer == 0.0 and odometer_before > 0.0:
                odometer = np.nan
            rise = odometer - odometer_before
            implausible = False
            if not np.isnan(rise):
                implausible = rise < 0.0 or rise > 220.0 * (now - s[ODOMETER_TIME]) / 3600.0 + 1.0
                y[_TOTAL + _CHECK_ODOMETER] += 1
                y[_FAILED + _CHECK_ODOMETER] += implausible
            from_last = s[ODOMETER_TIME] == s[TIME]

            # what was due
            if known_before:
                if dt <= limit:
                    h[_COVERED_S] += dt
                else:
                    h[_GAP_S] += dt
                    if not (h[_GAP_MAX_S] >= dt):
                        h[_GAP_MAX_S] = dt
                if s[LOGGED_OUT] == 1.0 or (dt > limit and s[RESTING] == 1.0 and not rise > WOKE_KM_PER_S * nominal):
                    h[_EXPECTED] += 1.0
                else:
                    h[_EXPECTED] += dt / nominal
                    if dt > 1.5 * nominal:
                        h[_MISSING_S] += dt - nominal
            else:
                h[_EXPECTED] += 1.0

            # fields, and check 1
            for f in range(_FIELDS):
                y[_VALID + f] += x[k, f] == x[k, f]
            have = 0
            for f in range(MANDATORY):
                have += x[k, f] == x[k, f]
            told = have > 0
            for i in range(flaw_span[k, 0], flaw_span[k, 1] - 1, 2):
                f = field_of_signal[flaws[i]]
                if f >= 0 and flaws[i + 1] >= _ABNORMAL and flaws[i + 1] <= _OUT_OF_RANGE:
                    y[_FLAWED + f] += 1
                    told = told or f < MANDATORY
            if told:
                y[_TOTAL + _CHECK_FIELDS] += 1
                y[_FAILED + _CHECK_FIELDS] += have < MANDATORY

            # lists: checks 2, 3, 4
            cell_count = cell_span[k, 1] - cell_span[k, 0]
            probe_count = probe_span[k, 1] - probe_span[k, 0]
            if cell_count > 0 or probe_count > 0:
                changed = (cell_count > 0 and s[CELL_LIST] != cell_count and s[CELL_LIST] > 0) or (
                    probe_count > 0 and s[PROBE_LIST] != probe_count and s[PROBE_LIST] > 0
                )
                y[_TOTAL + _CHECK_LISTS] += 1
                y[_FAILED + _CHECK_LISTS] += changed
                if cell_count > 0:
                    s[CELL_LIST] = cell_count
                    if not h[_CELLS] >= cell_count:
                        h[_CELLS] = cell_count
                if probe_count > 0:
                    if not h[_PROBES] >= probe_count:
                        h[_PROBES] = probe_count
                    s[PROBE_LIST] = probe_count
            if cell_count > 0:
                listed = cells[cell_span[k, 0] : cell_span[k, 1]]
                total_mv = np.int64(0)
                lowest = np.int32(1_000_000)
                highest = np.int32(NO_CELL)
                missing = 0
                for c in range(len(listed)):  # over a slice from 0: the compiler sees no negative index, and vectorises
                    cell = listed[c]
                    total_mv += cell
                    highest = max(highest, cell)
                    lowest = min(lowest, cell if cell != NO_CELL else np.int32(1_000_000))
                    missing += cell == NO_CELL
                off = False
                looked = False
                if highest != NO_CELL:
                    if not np.isnan(x[k, REPORTED_CELL_MAX]):
                        looked = True
                        off = abs(np.floor(x[k, REPORTED_CELL_MAX] * 1000.0 + 0.5) - highest) > 5.0
                    if not np.isnan(x[k, REPORTED_CELL_MIN]):
                        looked = True
                        off = off or abs(np.floor(x[k, REPORTED_CELL_MIN] * 1000.0 + 0.5) - lowest) > 5.0
                y[_TOTAL + _CHECK_EXTREMES] += looked
                y[_FAILED + _CHECK_EXTREMES] += off
                voltage = x[k, VOLTAGE]
                pack_cells = x[k, PACK_CELLS]
                if missing == 0 and voltage > 0.0 and (np.isnan(pack_cells) or pack_cells == cell_count):
                    y[_TOTAL + _CHECK_PACK] += 1
                    y[_FAILED + _CHECK_PACK] += abs(voltage - total_mv / 1000.0) > 0.02 * voltage

            # SOC steps: check 6
            soc = x[k, SOC]
            if known_before and dt <= 60.0 and not np.isnan(soc) and not np.isnan(s[SOC_PCT]):
                y[_TOTAL + _CHECK_SOC] += 1
                y[_FAILED + _CHECK_SOC] += abs(soc - s[SOC_PCT]) > 5.0

            # charging current: check 7, and its raw sign (3.2)
            current = x[k, CURRENT]
            if x[k, CHARGE_STATE] == 1.0 and not np.isnan(current):
                y[_TOTAL + _CHECK_CURRENT] += 1
                y[_FAILED + _CHECK_CURRENT] += not current < 0.0
                y[_SIGN] += 1
                y[_SIGN + 1] += current * sign[j] > 1.0

            # odometer against position, for check 8
            speed = x[k, SPEED]
            longitude, latitude = x[k, LONGITUDE], x[k, LATITUDE]
            if x[k, LOCATION_VALID] == 0.0:
                longitude = latitude = np.nan
            apart = _apart_km(s[LONGITUDE_DEG], s[LATITUDE_DEG], longitude, latitude)
            if known_before and dt <= limit and from_last and not (np.isnan(apart) or np.isnan(rise) or implausible):
                s[BY_ODOMETER_KM] += rise
                if speed > 0.0 or s[SPEED_KMH] > 0.0:  # a fix wanders at standstill
                    s[BY_POSITION_KM] += apart

            # clock: check 9
            y[_TOTAL + _CHECK_CLOCK] += 1
            y[_FAILED + _CHECK_CLOCK] += late_us[k] < -60_000_000

            charging = x[k, CHARGE_STATE] == 1.0 or (np.isnan(x[k, CHARGE_STATE]) and current < -1.0 and speed == 0.0)
            off_or_still = x[k, VEHICLE_STATE] == 2.0 or speed == 0.0
            s[RESTING] = 1.0 if off_or_still and not charging and not speed > 0.0 else 0.0
            if not np.isnan(odometer):
                s[ODOMETER_KM] = odometer
                s[ODOMETER_TIME] = now
            s[TIME] = now
            s[LOGGED_OUT] = 0.0
            s[SOC_PCT] = soc
            s[SPEED_KMH] = speed
            s[LONGITUDE_DEG] = longitude
            s[LATITUDE_DEG] = latitude

        if close[j] >= DAY_ENDS:
            if s[BY_ODOMETER_KM] >= JUDGED_KM:
                y[_TOTAL + _CHECK_DISTANCE] += 1
                y[_FAILED + _CHECK_DISTANCE] += abs(s[BY_POSITION_KM] - s[BY_ODOMETER_KM]) > 0.1 * s[BY_ODOMETER_KM]
            s[BY_ODOMETER_KM] = 0.0
            s[BY_POSITION_KM] = 0.0
            if not np.isnan(s[MODE_S]):
                for i in range(MODES, SEEN - 1):
                    s[i] = s[i + 1]
                s[SEEN - 1] = s[MODE_S]
                s[MODE_S] = np.nan
                for i in range(SEEN, STATE):
                    s[i] = 0.0


def run(records: Records, jobs: Jobs, gap_limit_s: F64, state: F64, hours: F64, tallies: I64) -> F64:
    """Fold ``records``: fills gap_limit_s (n,), moves state (v, STATE), adds to hours and tallies. Finds nothing."""
    fold_quality(
        records.time_s, records.kind, records.x, records.rows, records.reissued, records.repeated, records.late,
        records.late_us, records.cell_span, records.cells, records.probe_span, records.flaw_span, records.flaws,
        jobs.begin, jobs.end, jobs.vehicle, jobs.hour, jobs.day, jobs.sign, jobs.close, FIELD_OF_SIGNAL,
        gap_limit_s, state, hours, tallies,
    )  # fmt: skip
    return np.empty((0, FINDING_WIDTH))


def warm() -> None:
    """Compile this module's kernel."""
    nothing, none, no_bytes = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8)
    spans, numbers = np.zeros((0, 2), np.int64), np.zeros(0)
    records = Records(
        none, nothing, no_bytes, np.zeros((0, _FIELDS)), none, none, none, none, nothing, spans, none, spans,
        np.zeros(0, np.int16), spans, no_bytes,
    )  # fmt: skip
    jobs = Jobs(nothing, nothing, none, none, none, nothing, nothing, numbers, no_bytes)
    run(records, jobs, numbers, np.zeros((0, STATE)), np.zeros((0, len(INDEX))), np.zeros((0, TALLY_WIDTH), np.int64))


__all__ = ["LAYOUT", "STATE", "fold_quality", "initial_state", "run", "warm"]
