# ruff: noqa: F405 - names of drive_layout
"""Trips (4.2): what one record whose mode is certain does to the trip at hand. Parts of the fold ``drive``.

A trip's sums are kept twice: up to its last driving record, and what came since, which is added when it drives on and
dropped when the trip is over. Nothing here reads the arrays of records.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from schemas.jit import compiled
from schemas.statistics.measures import INDEX
from schemas.statistics.records import CHARGING, DRIVING, F64
from schemas.statistics.sessions import FINDING_WIDTH, GAP, OPEN, STARTED_CHARGING, STOPPED, SWITCHED_OFF, TABLE
from services.statistics.drive_layout import *  # noqa: F403 - its columns are these functions' variables

_TABLE: Final = TABLE["trips"]
_DROPPED: Final = INDEX["trips_dropped"]


@compiled
def end_trip(s: Any, h: Any, settled_s: float, cause: int, findings: F64, found: int, job: int) -> int:
    """Write the trip in ``s`` if it is one, else count it as dropped (an open one is not counted); how many found."""
    ticked_m = s[WAITING + S_M] - s[WAITING + S_UNTRACKED_M]
    metres = s[SUMS + S_M] + ticked_m
    if metres < TRIP_M and s[TRIP_END] - s[TRIP_START] < TRIP_S:
        if cause != OPEN:
            h[_DROPPED] += 1.0
        return found
    if found < len(findings):
        f = findings[found]
        for i in range(FINDING_WIDTH):
            f[i] = np.nan
        f[0] = job
        f[1] = _TABLE
        f[2] = settled_s
        f[3] = s[TRIP_START]
        f[4] = s[TRIP_END]
        f[5] = cause
        f[6] = s[SUMS + S_RECORDS]
        f[7] = metres / 1000.0
        f[8] = s[SUMS + S_UNTRACKED_M] / 1000.0
        f[9] = s[SUMS + S_COVERED_S]
        f[10] = s[SUMS + S_MOVING_S]
        f[11] = s[SUMS + S_OUT_KWH]
        f[12] = s[SUMS + S_REGEN_KWH]
        f[13] = s[SUMS + S_USED_M] / 1000.0
        f[14] = s[SUMS + S_USED_KWH]
        f[15] = s[TRIP_SOC_START]
        f[16] = s[TRIP_SOC_END]
        f[17] = s[TRIP_ODOMETER_START]
        f[18] = s[TRIP_ODOMETER_NOW] if ticked_m > 0.0 else s[TRIP_ODOMETER_END]
        f[19] = s[TRIP_SPEED_MAX]
        f[20] = s[TRIP_LONGITUDE_START]
        f[21] = s[TRIP_LATITUDE_START]
        f[22] = s[TRIP_LONGITUDE_END]
        f[23] = s[TRIP_LATITUDE_END]
    return found + 1


@compiled
def _clear_trip(s: Any) -> None:
    for i in range(TRIP_START, TRIP_LATITUDE_NOW + 1):
        s[i] = np.nan
    for i in range(SUMS, PENDING_ROW):
        s[i] = 0.0


@compiled
def trip(
    r: Any, s: Any, h: Any, mode: int, first: bool, dt: float, covered: bool, used_from: float, used_m: float,
    used_kwh: float, findings: F64, found: int, job: int,
) -> int:  # fmt: skip
    now = r[R_TIME]
    driving = mode == DRIVING
    rise_m = r[R_RISE_M]
    gap_rise_m = rise_m if r[R_RISE_IN_GAP] != 0.0 else 0.0
    if s[TRIP_START] == s[TRIP_START]:
        stopped = s[TRIP_STOP] == s[TRIP_STOP]
        stood = rise_m == 0.0 and r[R_ODOMETER] == r[R_ODOMETER]  # since the record before, as the odometer says
        off = r[R_OFF] != 0.0 and not driving
        # it drove in a gap that does not split, and stands again
        drove = not driving and mode != CHARGING and not off and not covered and dt <= SPLIT_S and rise_m > 0.0
        long_stop = stopped and now - s[TRIP_STOP] >= STOP_S
        cause = OPEN
        if dt > SPLIT_S:
            cause = STOPPED if stopped and stood else GAP
        elif mode == CHARGING:
            cause = STARTED_CHARGING
        elif off:
            cause = SWITCHED_OFF
        elif long_stop and ((not driving and not drove) or (driving and not covered and stood)):
            cause = STOPPED
        if cause != OPEN:
            if covered and not driving and gap_rise_m == 0.0 and rise_m > 0.0:
                s[WAITING + S_M] += rise_m
                s[TRIP_ODOMETER_NOW] = r[R_ODOMETER]
            found = end_trip(s, h, now, cause, findings, found, job)
            _clear_trip(s)
        else:
            s[WAITING + S_RECORDS] += 1.0
            s[WAITING + S_M] += rise_m
            s[WAITING + S_UNTRACKED_M] += gap_rise_m
            if covered:
                s[WAITING + S_COVERED_S] += dt
                s[WAITING + S_MOVING_S] += r[R_MOVING_S]
            if r[R_ELECTRIC_S] > 0.0 and now - r[R_ELECTRIC_S] >= s[TRIP_START]:
                if r[R_KWH] > 0.0:
                    s[WAITING + S_OUT_KWH] += r[R_KWH]
                else:
                    s[WAITING + S_REGEN_KWH] -= r[R_KWH]
            if used_from >= s[TRIP_START]:
                s[WAITING + S_USED_M] += used_m
                s[WAITING + S_USED_KWH] += used_kwh
            if r[R_SOC] == r[R_SOC]:
                s[TRIP_SOC_NOW] = r[R_SOC]
            if r[R_ODOMETER] == r[R_ODOMETER]:
                s[TRIP_ODOMETER_NOW] = r[R_ODOMETER]
            if r[R_LONGITUDE] == r[R_LONGITUDE]:
                s[TRIP_LONGITUDE_NOW] = r[R_LONGITUDE]
                s[TRIP_LATITUDE_NOW] = r[R_LATITUDE]
            if driving or drove:
                for i in range(9):
                    s[SUMS + i] += s[WAITING + i]
                    s[WAITING + i] = 0.0
                s[TRIP_END] = now
                s[TRIP_STOP] = now if drove else np.nan
                s[TRIP_SOC_END] = s[TRIP_SOC_NOW]
                s[TRIP_ODOMETER_END] = s[TRIP_ODOMETER_NOW]
                s[TRIP_LONGITUDE_END] = s[TRIP_LONGITUDE_NOW]
                s[TRIP_LATITUDE_END] = s[TRIP_LATITUDE_NOW]
                if s[TRIP_SOC_START] != s[TRIP_SOC_START]:
                    s[TRIP_SOC_START] = s[TRIP_SOC_NOW]
                if s[TRIP_ODOMETER_START] != s[TRIP_ODOMETER_START]:
                    s[TRIP_ODOMETER_START] = s[TRIP_ODOMETER_NOW]
                if s[TRIP_LONGITUDE_START] != s[TRIP_LONGITUDE_START]:
                    s[TRIP_LONGITUDE_START] = s[TRIP_LONGITUDE_NOW]
                    s[TRIP_LATITUDE_START] = s[TRIP_LATITUDE_NOW]
                if not (s[TRIP_SPEED_MAX] >= r[R_SPEED]) and r[R_SPEED] == r[R_SPEED]:
                    s[TRIP_SPEED_MAX] = r[R_SPEED]
            elif not stopped:
                s[TRIP_STOP] = now
            return found
    if driving:
        s[TRIP_START] = s[TRIP_END] = now
        s[TRIP_SPEED_MAX] = r[R_SPEED]
        s[TRIP_SOC_START] = s[TRIP_SOC_END] = s[TRIP_SOC_NOW] = r[R_SOC]
        s[TRIP_ODOMETER_START] = s[TRIP_ODOMETER_END] = s[TRIP_ODOMETER_NOW] = r[R_ODOMETER]
        if covered and not first and gap_rise_m == 0.0 and rise_m > 0.0:  # it came rolling into this record
            s[SUMS + S_M] = rise_m
            s[TRIP_ODOMETER_START] = r[R_ODOMETER_BEFORE]
        s[TRIP_LONGITUDE_START] = s[TRIP_LONGITUDE_END] = s[TRIP_LONGITUDE_NOW] = r[R_LONGITUDE]
        s[TRIP_LATITUDE_START] = s[TRIP_LATITUDE_END] = s[TRIP_LATITUDE_NOW] = r[R_LATITUDE]
        s[SUMS + S_RECORDS] = 1.0
    return found
