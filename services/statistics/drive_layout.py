"""State of a vehicle between two records of the fold ``drive``: what its columns are, and the limits it goes by.

Kernel and twin share it; neither may keep anything elsewhere. What belongs to a trip or a charge goes back to its
beginning when that is over, so that two histories that end alike leave the same state.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.statistics.records import F64

LAYOUT: Final = 1

ODD_S: Final = 60.0  # 4.1: one odd record between equal states
CARRY_S: Final = 300.0  # a record that tells no state has the one before, for this long [P]
STOP_S: Final = 300.0  # 4.2: a stop that ends a trip
SPLIT_S: Final = 600.0  # 4.2, 4.4: a gap that ends a trip or a charge; runs of charging closer than this are one
TRIP_M: Final = 500.0
TRIP_S: Final = 300.0
MOVED_M: Final = 100.0  # 4.4: runs of charging at one odometer
FALL_M: Final = 1000.0  # 4.3
SPEED_MAX_KMH: Final = 220.0  # 3.4 (5): a rise faster than this (and FALL_M more) is not driven
LOWER_SOC_PCT: Final = 1.0  # 4.4: "SOC not lower"
CHARGE_S: Final = 120.0
CHARGE_SOC_PCT: Final = 1.0
CHARGE_KWH: Final = 0.1
PLATEAU_SOC_PCT: Final = 100.0  # 4.5: full, and no current: adds no charge
PLATEAU_A: Final = 1.0
CAPACITY_SOC_PCT: Final = 30.0
CAPACITY_COVERAGE: Final = 0.95
CAPACITY_TEMP_C: Final = 10.0
BINS: Final = 32  # of a charge's profile: they double their width when it grows beyond them
BIN_S: Final = 16.0

# A record on its way through the fold: what is kept of it while it waits for the next one (4.1).
(
    R_TIME, R_LIMIT_S, R_MODE, R_OFF,
    R_SPEED, R_MOVING_S,
    R_ODOMETER, R_ODOMETER_BEFORE,  # km, NaN without a usable reading
    R_RISE_M, R_RISE_IN_GAP, R_RESET,
    R_POWER, R_CURRENT,  # kW (NaN unless voltage and current are known), A
    R_ELECTRIC_S, R_KWH, R_AH,  # interval from the record before with both known; 0: none within the limit
    R_SOC, R_LONGITUDE, R_LATITUDE, R_TEMP_MEAN, R_TEMP_MAX,
) = range(21)  # fmt: skip
ROW: Final = 21

(
    # as records arrive
    TIME, SPEED_KMH, MODE, KNOWN_TIME,
    ODOMETER, ODOMETER_TIME, ODOMETER_GAP, SUSPECT, SUSPECT_TIME, SUSPECT_GAP,
    ELECTRIC_TIME, POWER, CURRENT_A,
    # as they are settled
    SETTLED_TIME, SETTLED_MODE,
    MODES_SINCE,  # bits: modes since the last record with voltage and current, that one included
    USED_FROM, USED_KWH, USED_M, USED_READING,  # consumption since the odometer reading before
    REST_SOC, REST_TIME, REST_GAP,
    # the trip
    TRIP_START, TRIP_END, TRIP_STOP, TRIP_SPEED_MAX,
    TRIP_SOC_START, TRIP_SOC_END, TRIP_SOC_NOW, TRIP_ODOMETER_START, TRIP_ODOMETER_END, TRIP_ODOMETER_NOW,
    TRIP_LONGITUDE_START, TRIP_LATITUDE_START, TRIP_LONGITUDE_END, TRIP_LATITUDE_END, TRIP_LONGITUDE_NOW,
    TRIP_LATITUDE_NOW,
    # the charge
    CHARGE_START, CHARGE_END, CHARGE_IDLE, CHARGE_DROVE, CHARGE_MOVED_M, CHARGE_RECORDS, CHARGE_RUNS,
    CHARGE_COVERED_S, CHARGE_ENERGY, CHARGE_AH, CHARGE_WAITING_S, CHARGE_WAITING_KWH, CHARGE_WAITING_AH,
    CHARGE_SOC_START, CHARGE_SOC_START_AH, CHARGE_SOC_END, CHARGE_SOC_END_AH,
    CHARGE_POWER_MAX, CHARGE_TEMP_SUM, CHARGE_TEMPS, CHARGE_TEMP_MAX, CHARGE_ODOMETER, CHARGE_LONGITUDE,
    CHARGE_LATITUDE, CHARGE_BIN_S,
    PENDING,  # 1: the record below waits for the next one
    _COLUMNS,
) = range(66)  # fmt: skip
# Sums of a trip up to its last driving record, and of what came since (added when it drives on, or dropped)
SUMS: Final = _COLUMNS
(S_RECORDS, S_M, S_UNTRACKED_M, S_COVERED_S, S_MOVING_S, S_OUT_KWH, S_REGEN_KWH, S_USED_M, S_USED_KWH) = range(9)
WAITING: Final = SUMS + 9
PENDING_ROW: Final = WAITING + 9
BIN_KWH: Final = PENDING_ROW + ROW
BIN_COVERED_S: Final = BIN_KWH + BINS
STATE: Final = BIN_COVERED_S + BINS

_UNKNOWN_AT_FIRST: Final = (
    TIME, SPEED_KMH, KNOWN_TIME, ODOMETER, ODOMETER_TIME, SUSPECT, SUSPECT_TIME, ELECTRIC_TIME, POWER, CURRENT_A,
    SETTLED_TIME, USED_FROM, REST_SOC, REST_TIME, *range(TRIP_START, TRIP_LATITUDE_NOW + 1), CHARGE_START, CHARGE_END,
    CHARGE_SOC_START, CHARGE_SOC_END, CHARGE_POWER_MAX, CHARGE_TEMP_MAX, CHARGE_ODOMETER, CHARGE_LONGITUDE,
    CHARGE_LATITUDE,
)  # fmt: skip


def initial_state() -> F64:
    """State of a vehicle that nothing is known of, (STATE,) f64."""
    state = np.zeros(STATE)
    state[list(_UNKNOWN_AT_FIRST)] = np.nan
    return state


NO_TRIP: Final[F64] = initial_state()[TRIP_START : TRIP_LATITUDE_NOW + 1]
NO_CHARGE: Final[F64] = initial_state()[CHARGE_START : CHARGE_BIN_S + 1]
