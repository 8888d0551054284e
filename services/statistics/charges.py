# ruff: noqa: F405 - names of drive_layout
"""Charges (4.4, 4.5): what one record whose mode is certain does to the charge at hand. Parts of the fold ``drive``.

Sums are kept up to the last charging record, and what came since, which is added when charging goes on and dropped
when the charge is over. Nothing here reads the arrays of records.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from schemas.jit import compiled
from schemas.statistics.measures import INDEX
from schemas.statistics.records import CHARGING, DRIVING, F64
from schemas.statistics.sessions import FINDING_WIDTH, GAP, OPEN, STARTED_DRIVING, STOPPED_CHARGING, TABLE
from services.statistics.drive_layout import *  # noqa: F403 - its columns are these functions' variables

_TABLE: Final = TABLE["charges"]
_DROPPED: Final = INDEX["charges_dropped"]


@compiled
def _add_to_profile(s: Any, begin_s: float, end_s: float, kwh: float) -> None:
    """Spread the energy of one interval (seconds from the charge's start) over the bins that it touches."""
    while end_s > BINS * s[CHARGE_BIN_S]:
        for first in (BIN_KWH, BIN_COVERED_S):
            for i in range(BINS // 2):
                s[first + i] = s[first + 2 * i] + s[first + 2 * i + 1]
            for i in range(BINS // 2, BINS):
                s[first + i] = 0.0
        s[CHARGE_BIN_S] *= 2.0
    width = s[CHARGE_BIN_S]
    at = np.int64(begin_s / width)
    while at < BINS and at * width < end_s:
        part = min(end_s, (at + 1) * width) - max(begin_s, at * width)
        s[BIN_COVERED_S + at] += part
        s[BIN_KWH + at] += kwh * part / (end_s - begin_s)
        at += 1


@compiled
def end_charge(s: Any, h: Any, settled_s: float, cause: int, findings: F64, found: int, job: int) -> int:
    """Write the charge in ``s`` if it is one, else count it as dropped (an open one is not counted); how many found."""
    duration = s[CHARGE_END] - s[CHARGE_START]
    soc_rise = s[CHARGE_SOC_END] - s[CHARGE_SOC_START]
    if duration < CHARGE_S or not (soc_rise >= CHARGE_SOC_PCT or s[CHARGE_ENERGY] >= CHARGE_KWH):
        if cause != OPEN:
            h[_DROPPED] += 1.0
        return found
    if found < len(findings):
        width = s[CHARGE_BIN_S]
        low, high = duration * 0.25, duration * 0.75
        middle_kwh = middle_s = 0.0
        for i in range(BINS):
            part = (min(high, (i + 1) * width) - max(low, i * width)) / width
            if part > 0.0:
                middle_kwh += s[BIN_KWH + i] * part
                middle_s += s[BIN_COVERED_S + i] * part
        f = findings[found]
        for i in range(FINDING_WIDTH):
            f[i] = np.nan
        f[0] = job
        f[1] = _TABLE
        f[2] = settled_s
        f[3] = s[CHARGE_START]
        f[4] = s[CHARGE_END]
        f[5] = cause
        f[6] = s[CHARGE_RECORDS]
        f[7] = s[CHARGE_RUNS]
        f[8] = s[CHARGE_COVERED_S]
        f[9] = s[CHARGE_ENERGY]
        f[10] = s[CHARGE_AH]
        f[11] = s[CHARGE_SOC_START]
        f[12] = s[CHARGE_SOC_END]
        if s[CHARGE_COVERED_S] > 0.0:
            f[13] = s[CHARGE_ENERGY] / (s[CHARGE_COVERED_S] / 3600.0)
        f[14] = s[CHARGE_POWER_MAX]
        if middle_s > 0.0:
            f[15] = middle_kwh / (middle_s / 3600.0)
        f[16] = middle_s / (duration * 0.5)
        mean_temp = np.nan
        if s[CHARGE_TEMPS] > 0.0:
            mean_temp = s[CHARGE_TEMP_SUM] / s[CHARGE_TEMPS]
        f[17] = mean_temp
        f[18] = s[CHARGE_TEMP_MAX]
        f[19] = s[CHARGE_ODOMETER]
        f[20] = s[CHARGE_LONGITUDE]
        f[21] = s[CHARGE_LATITUDE]
        if (
            soc_rise >= CAPACITY_SOC_PCT
            and s[CHARGE_COVERED_S] / duration >= CAPACITY_COVERAGE
            and mean_temp >= CAPACITY_TEMP_C
        ):
            f[22] = (s[CHARGE_SOC_END_AH] - s[CHARGE_SOC_START_AH]) / soc_rise * 100.0
    return found + 1


@compiled
def _clear_charge(s: Any) -> None:
    for i in range(CHARGE_START, PENDING):
        s[i] = NO_CHARGE[i - CHARGE_START]
    for i in range(BIN_KWH, STATE):
        s[i] = 0.0


@compiled
def _charging_record(r: Any, s: Any) -> None:
    """What a charging record itself says of the charge."""
    s[CHARGE_END] = r[R_TIME]
    s[CHARGE_RECORDS] += 1.0
    if r[R_SOC] == r[R_SOC]:
        if s[CHARGE_SOC_START] != s[CHARGE_SOC_START]:
            s[CHARGE_SOC_START] = r[R_SOC]
            s[CHARGE_SOC_START_AH] = s[CHARGE_AH]
        s[CHARGE_SOC_END] = r[R_SOC]
        s[CHARGE_SOC_END_AH] = s[CHARGE_AH]
    if r[R_POWER] < 0.0 and not (s[CHARGE_POWER_MAX] >= -r[R_POWER]):
        s[CHARGE_POWER_MAX] = -r[R_POWER]
    if r[R_TEMP_MEAN] == r[R_TEMP_MEAN]:
        s[CHARGE_TEMP_SUM] += r[R_TEMP_MEAN]
        s[CHARGE_TEMPS] += 1.0
    if r[R_TEMP_MAX] == r[R_TEMP_MAX] and not (s[CHARGE_TEMP_MAX] >= r[R_TEMP_MAX]):
        s[CHARGE_TEMP_MAX] = r[R_TEMP_MAX]
    if s[CHARGE_ODOMETER] != s[CHARGE_ODOMETER]:
        s[CHARGE_ODOMETER] = r[R_ODOMETER]
    if s[CHARGE_LONGITUDE] != s[CHARGE_LONGITUDE]:
        s[CHARGE_LONGITUDE] = r[R_LONGITUDE]
        s[CHARGE_LATITUDE] = r[R_LATITUDE]


@compiled
def charge(r: Any, s: Any, h: Any, mode: int, covered: bool, findings: F64, found: int, job: int) -> int:
    now = r[R_TIME]
    full = r[R_SOC] >= PLATEAU_SOC_PCT and abs(r[R_CURRENT]) < PLATEAU_A
    active = mode == CHARGING and not full
    if s[CHARGE_START] == s[CHARGE_START]:
        s[CHARGE_MOVED_M] += r[R_RISE_M]
        if mode == DRIVING:
            s[CHARGE_DROVE] = 1.0
        moved = s[CHARGE_MOVED_M] >= MOVED_M
        apart = now - s[CHARGE_END] > SPLIT_S
        lower = active and (s[CHARGE_IDLE] != 0.0 or not covered) and s[CHARGE_SOC_END] - r[R_SOC] >= LOWER_SOC_PCT
        if moved or apart or lower:
            cause = STOPPED_CHARGING
            if moved or s[CHARGE_DROVE] != 0.0:
                cause = STARTED_DRIVING
            elif apart and s[CHARGE_IDLE] == 0.0:
                cause = GAP
            found = end_charge(s, h, now, cause, findings, found, job)
            _clear_charge(s)
        else:
            begin = now - r[R_ELECTRIC_S]
            if r[R_ELECTRIC_S] > 0.0 and begin >= s[CHARGE_START]:
                s[CHARGE_WAITING_S] += r[R_ELECTRIC_S]
                s[CHARGE_WAITING_KWH] -= r[R_KWH]
                s[CHARGE_WAITING_AH] -= r[R_AH]
                _add_to_profile(s, begin - s[CHARGE_START], now - s[CHARGE_START], -r[R_KWH])
            if active:
                s[CHARGE_COVERED_S] += s[CHARGE_WAITING_S]
                s[CHARGE_ENERGY] += s[CHARGE_WAITING_KWH]
                s[CHARGE_AH] += s[CHARGE_WAITING_AH]
                s[CHARGE_WAITING_S] = s[CHARGE_WAITING_KWH] = s[CHARGE_WAITING_AH] = 0.0
                s[CHARGE_RUNS] += s[CHARGE_IDLE]
                s[CHARGE_IDLE] = s[CHARGE_DROVE] = s[CHARGE_MOVED_M] = 0.0
                _charging_record(r, s)
            else:
                s[CHARGE_IDLE] = 1.0
            return found
    if active:
        s[CHARGE_START] = now
        s[CHARGE_RUNS] = 1.0
        s[CHARGE_BIN_S] = BIN_S
        _charging_record(r, s)
    return found
