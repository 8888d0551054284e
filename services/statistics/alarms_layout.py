"""The alarms fold's limits and the columns of its state, for the kernel and its twin alike."""

from __future__ import annotations

from typing import Final

from schemas.statistics.rules import FLAGS, FOLD_RULES

LAYOUT: Final = 1

CODES: Final = FLAGS + len(FOLD_RULES)  # code of the state: flag bit, or FLAGS + rule number - 1
FLAG_CLEAR_S: Final = 60.0  # an episode of a flag ends when it was 0 for so long (5)
LATE_US: Final = 60_000_000  # an episode that began with a record as late as this is marked late
ALL_ONES: Final = 0xFFFF_FFFE  # flags from here on are the "abnormal" and "invalid" of a DWORD, not alarms
CELLS_MAX: Final = 512  # cells of a list that the live outlier rule looks at
OUTLIER_CELLS: Final = 4  # fewer cells have no median to speak of
PINNED_S: Final = 30 * 86_400  # insulation that has been one constant for so long is not measured (4.9) [P]
PINNED_KOHM: Final = 60_000.0  # the field's maximum: not measured either
TOLD_LEVEL: Final = 3  # a thermal flag at this level always counts (4.10)
WINDOW_S: Final = 60  # evidence of a thermal event must lie so close together, or in two records (4.10)
SLOTS, SLOT_S = 16, 5  # the window in state: the least of each five seconds; WINDOW_S / SLOT_S + 1 of them are in use
RATE_SPAN_S: Final = 60  # a held rise is measured minute by minute
OTHER_PROBE_C: Final = 10.0  # a second probe that is so much warmer makes a rise more than one bad sensor [P]
STALE_S: Final = 3600  # at a day's end what is older is zero: beyond any gap limit (240 s at most), of no use

# State, one row per vehicle; times are 0 when there is none.
# First the codes, one block each, zeros while nothing is pending or open:
START_S, LAST_ON_S, OFF_S, SEEN_S, LEVEL, RECORDS, LATE, VALUE_MIN, VALUE_MAX, LONGITUDE, LATITUDE, RAISED = range(12)
BLOCK: Final = 12
_AT: Final = CODES * BLOCK
(
    LAST_S, DATA_S, HELD_FLAGS, HELD_LEVEL, LAST_LONGITUDE, LAST_LATITUDE, OPEN_FLAGS, OPEN_RULES, PINNED_SINCE_S,
    PINNED_AT, OUTLIER_CELL, DROP_S, HOT_S, RISE_S, SLOPE_S, FAULT_S, PENDING_S, PENDING_C, PENDING_BASE_C, RATE_S,
    RATE_C, CLIMB_S, TEMP_S, TEMP_C, TEMP_PAIR_C, CELL_S, CELL_MV,
) = range(_AT, _AT + 27)  # fmt: skip
# OPEN_…: bits of the codes that are pending or open · DROP…FAULT: when each kind of evidence was last there
# PENDING: a rise of one probe that its next reading must confirm · CLIMB: since when every minute has risen enough
SLOT_TIME_AT: Final = _AT + 27
SLOT_TEMP_AT: Final = SLOT_TIME_AT + SLOTS  # lowest (of the higher of two neighbours) hottest probe
SLOT_CELL_AT: Final = SLOT_TEMP_AT + SLOTS  # highest of the lowest cell
STATE: Final = SLOT_CELL_AT + SLOTS
