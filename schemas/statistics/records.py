"""Records: what the statistics kernels read. One per vehicle and collection second, made from telemetry rows.

Several rows may tell of one second (a report and its reissue, a cell list split over frames, a JSON sample of
the BMS beside one of the vehicle). They become one record here: of each field the first row that has it wins,
in the order (kind, part); cell lists are put together by their first cell number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

# Signals (schemas.signals) that the kernels read, as columns of Records.x, in their own units.
FIELDS: Final = (
    "vehicle_state", "charge_state", "run_mode", "speed_kmh", "odometer_km", "total_voltage_v", "total_current_a",
    "soc_pct", "dcdc_state", "gear", "insulation_resistance_kohm", "location_valid", "longitude_deg", "latitude_deg",
    "max_cell_voltage_v", "min_cell_voltage_v", "max_temp_c", "min_temp_c", "alarm_level", "alarm_flags",
    "pack_cell_total", "cell_count", "cell_max_v", "cell_min_v", "cell_sum_v", "probe_count", "probe_max_c",
    "probe_min_c",
)  # fmt: skip
(
    VEHICLE_STATE, CHARGE_STATE, RUN_MODE, SPEED, ODOMETER, VOLTAGE, CURRENT, SOC, DCDC, GEAR, INSULATION,
    LOCATION_VALID, LONGITUDE, LATITUDE, REPORTED_CELL_MAX, REPORTED_CELL_MIN, REPORTED_TEMP_MAX, REPORTED_TEMP_MIN,
    ALARM_LEVEL, ALARM_FLAGS, PACK_CELLS, CELL_COUNT, CELL_MAX, CELL_MIN, CELL_SUM, PROBE_COUNT, PROBE_MAX, PROBE_MIN,
) = range(len(FIELDS))  # fmt: skip

KIND_REPORT: Final = 2
KIND_REISSUE: Final = 3
KIND_LOGOUT: Final = 4  # no report: the vehicle logged out at this second; every field is missing

NO_CELL: Final = -1  # in Records.cells: not a value (sentinel, out of range, exactly 0, not in any frame of the second)
NO_PROBE: Final = -32768  # in Records.probes

# What the vehicle does at one record (4.1), before the smoothing of odd records: written by the drive kernel.
UNKNOWN, DRIVING, CHARGING, PARKED = range(4)


@dataclass(slots=True)
class Records:
    """``n`` records, by (vehicle, time); a vehicle's records are contiguous.

    vehicle (n,) i32 row of the chunk's state matrices · time_s (n,) i64 seconds since 1970 UTC · kind (n,) u8 of the
    first row · x (n, len(FIELDS)) f64, NaN = missing (absent, abnormal, invalid, out of range alike; the reasons are
    in flaws) · rows (n,) i32 telemetry rows of that second, of which reissued (n,) i32 came as 0x03, repeated (n,)
    i32 repeat a (kind, part) family without adding anything new, and late (n,) i32 arrived more than 60 s after
    they were collected · late_us (n,) i64 arrival of the first row minus collection, microseconds · cell_span (n, 2)
    i64 (begin, end) in cells (k,) i32 millivolts by cell number, NO_CELL where missing · probe_span (n, 2) i64 in
    probes (m,) i16 °C by probe number, NO_PROBE where missing · flaw_span (n, 2) i64 in flaws (f,) u8: pairs
    {signal position in schemas.signals, State} of all rows.
    total_current_a has the sign of the project (discharge positive): vehicles that are marked inverted are negated.
    """

    vehicle: I32
    time_s: I64
    kind: U8
    x: F64
    rows: I32
    reissued: I32
    repeated: I32
    late: I32
    late_us: I64
    cell_span: I64
    cells: I32
    probe_span: I64
    probes: I16
    flaw_span: I64
    flaws: U8

    @property
    def n(self) -> int:
        return len(self.time_s)


# Jobs.close
GOES_ON, HOUR_ENDS, DAY_ENDS, PEEK = range(4)


@dataclass(slots=True)
class Jobs:
    """Pieces of work for a fold, in order: one local hour of one vehicle each (or a part of that hour).

    begin, end (j,) i64: records [begin, end) · vehicle (j,) i32 row of the state matrix · hour (j,) i32 row of the
    hour accumulators · day (j,) i32 row of the day accumulators (both may repeat: an hour cut in two adds to one
    row) · hour_start_s, day_start_s (j,) i64 UTC seconds of the local hour's and day's begin · sign (j,) f64 what
    x[:, CURRENT] was multiplied with (-1: the vehicle reports charging as positive) · close (j,) u8: GOES_ON,
    HOUR_ENDS (more records of the day follow in a later hour), DAY_ENDS (records of a later day follow), PEEK (nothing
    is known to follow: finish as for DAY_ENDS, and emit what is still open as open). A fold never looks beyond the
    end of its hour: what is pending (an odd record) is settled there. Whoever peeks passes copies.
    """

    begin: I64
    end: I64
    vehicle: I32
    hour: I32
    day: I32
    hour_start_s: I64
    day_start_s: I64
    sign: F64
    close: U8

    @property
    def n(self) -> int:
        return len(self.begin)
