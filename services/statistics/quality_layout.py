"""State of a vehicle between two records of the fold ``quality``: what its columns are, and the limits it goes by.

Kernel and twin share it; neither may keep anything elsewhere.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.signals import INDEX as SIGNAL_INDEX
from schemas.signals import SIGNAL_COUNT
from schemas.statistics.records import F64, FIELDS, I64, INSULATION, VEHICLE_STATE

LAYOUT: Final = 1

# Columns of the state. NaN: not known yet.
(
    TIME,  # of the last record
    LOGGED_OUT,  # 1: a logout came after it
    RESTING,  # 1: at the last record the vehicle neither drove nor charged
    ODOMETER_KM, ODOMETER_TIME,  # last reading
    SOC_PCT, SPEED_KMH,  # of the last record
    LONGITUDE_DEG, LATITUDE_DEG,  # of the last record, NaN without a fix
    CELL_LIST, PROBE_LIST,  # last lengths
    BY_ODOMETER_KM, BY_POSITION_KM,  # of today, for check 8
    NOMINAL_S,  # interval that counted as due at the last record
    MODE_S,  # most frequent interval of today so far
) = range(15)  # fmt: skip
MODES: Final = 15  # seven columns: modes of the last days with data, the newest last
SEEN: Final = MODES + 7  # sixty columns: intervals of today by seconds, 1..60
STATE: Final = SEEN + 60

NOMINAL_UNKNOWN_S: Final = 30.0
GAP_S: Final = 60.0
JUDGED_KM: Final = 20.0
WOKE_KM_PER_S: Final = 220.0 / 3600.0
MANDATORY: Final = INSULATION + 1  # vehicle block (7.1): the first fields of FIELDS
EARTH_KM_PER_DEG: Final = 6371.0088 * np.pi / 180
assert FIELDS.index("vehicle_state") == VEHICLE_STATE == 0

# field of FIELDS by position in schemas.signals, -1: none of them
FIELD_OF_SIGNAL: Final[I64] = np.full(256, -1, np.int64)
for _position, _name in enumerate(FIELDS):
    FIELD_OF_SIGNAL[SIGNAL_INDEX[_name]] = _position
assert len(FIELD_OF_SIGNAL) >= SIGNAL_COUNT


def initial_state() -> F64:
    """State of a vehicle that nothing is known of, (STATE,) f64."""
    state = np.zeros(STATE)
    state[[TIME, ODOMETER_KM, ODOMETER_TIME, SOC_PCT, SPEED_KMH, LONGITUDE_DEG, LATITUDE_DEG]] = np.nan
    state[[CELL_LIST, PROBE_LIST, NOMINAL_S, MODE_S]] = np.nan
    state[MODES:SEEN] = np.nan
    return state
