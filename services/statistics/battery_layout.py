"""The battery fold's limits and the columns of its state, for the kernel and its twin alike."""

from __future__ import annotations

from typing import Final

LAYOUT: Final = 1

CELLS_MAX: Final = 512
OUTLIERS_MAX: Final = 32  # cells reported a day
OUTLIER_MV: Final = 10  # closer to the median than this is no outlier, whatever the score [P]
OUTLIER_SHARE: Final = 100  # reported from 1 / 100 of the day's usable records
QUIET_A, QUIET_S = 2.0, 300  # at rest: below this current for so long (4.7)
PACK_V_MIN: Final = 60.0  # no judgement of insulation below (4.9)
RATE_MIN_S, RATE_MAX_S = 10, 60  # a rise of temperature is measured over so long; 1 °C in 1 s is a rounding [P]
CHARGE_PAUSE_S, CHARGE_MIN_S, CHARGE_END_S = 600, 120, 300  # runs that are one charge; shortest; its end (4.4, 4.7)
RING, RING_STEP_S = 64, 5  # records kept of a charge's end
STEP_A, STEP_S, STEP_SOC = 30.0, 2, (20.0, 80.0)  # resistance is measured over such steps (4.11)
CLASSES, CLASS_BEGIN_C, CLASS_C = 9, -20, 10
BINS, BIN_RATIO = 96, 1.08
BIN_EDGES_OHM: Final = tuple(0.0005 * BIN_RATIO**step for step in range(BINS + 1))
BIN_PARTS: Final = 65_536  # a value's place within its bin
COUNT_ONE: Final = 1 << 33  # a bin holds COUNT_ONE * count + sum of places: below 2**53 with a day's 86 400
TEMP_HOLD_S: Final = 600  # a step without a temperature of its own takes the last one
REST_S, REST_RELAX_S = 21_600, 3600  # shortest rest; until then a later record is the better "before" (4.12) [P]
REST_KM, REST_SOC = 0.1, 3.0  # a "rest" over which more changed was none: the vehicle was used meanwhile
Z_ONE, ROBUST_ONE = 1, 1 << 17  # three counts of at most 86 400 in one number: z rows, robust rows, either
EITHER_ONE: Final = 1 << 34

# State, one row per vehicle. Times are 0 when there is none.
LAST_S, LAST_VOLTAGE, LAST_CURRENT, RATE_S, RATE_C, HOLD_S, HOLD_C, QUIET_SINCE_S = range(8)
CHARGE_BEGIN_S, CHARGE_LAST_S, RING_COUNT, USABLE = range(8, 12)
REST_BEGIN_S, REST_ODOMETER, REST_SOC_PCT, BEFORE_S, BEFORE_CELLS, AFTER_S, AFTER_CELL, AFTER_DROP, AFTER_MEDIAN = (
    range(12, 21)
)
RING_AT: Final = 21  # (time * RANGE_BINS + bin) of the last records while charging
SOC_AT: Final = RING_AT + RING  # sums by class of temperature
TEMP_AT: Final = SOC_AT + CLASSES
BIN_AT: Final = TEMP_AT + CLASSES
BEFORE_AT: Final = BIN_AT + CLASSES * BINS  # mV of each cell at the begin of the rest, 0 = missing
FLAGGED_AT: Final = BEFORE_AT + CELLS_MAX  # the three counts of each cell
OFF_AT: Final = FLAGGED_AT + CELLS_MAX  # sum of 2 (u - median) of these records
STATE: Final = OFF_AT + CELLS_MAX
