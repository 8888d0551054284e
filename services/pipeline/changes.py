"""What a batch means for the statistics: which vehicles have news, from which second on, and whether it is urgent.

One pass over the reports, beside the hot path's others.  *Urgent* is a superset of the alarm rules: cheap
comparisons within one row, so that a vehicle with a possible alarm is visited at once and all others in their turn.
It must never decide whether there is an alarm.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.batch import I32, I64, U8, Batch, Changes
from schemas.jit import kernel
from schemas.signals import INDEX, State
from services.pipeline.vehicles import Classified, VehicleTable

_VALID, _SUSPECT = int(State.VALID), int(State.SUSPECT)
_LEVEL, _FLAGS = INDEX["alarm_level"], INDEX["alarm_flags"]
_HOTTEST, _COLDEST, _HOTTEST_TOLD = INDEX["probe_max_c"], INDEX["probe_min_c"], INDEX["max_temp_c"]
_LOWEST, _HIGHEST, _LOWEST_TOLD = INDEX["cell_min_v"], INDEX["cell_max_v"], INDEX["min_cell_voltage_v"]
_INSULATION, _VOLTAGE, _SPEED = INDEX["insulation_resistance_kohm"], INDEX["total_voltage_v"], INDEX["speed_kmh"]

# Numbers as they travel (``num``). Rules: 55 °C, spread of 15 °C, insulation below 500 Ω/V, a cell that has fallen
# by a quarter (at first one of many: it shows against the highest), speed of 130 km/h.
HOT_C: Final = 50
SPREAD_C: Final = 12
CELL_LOW_MV: Final = 2000
SPEED_RAW: Final = 1250
_CELL_SHARE: Final = 80  # % of the highest cell
OHM_PER_V: Final = 600


def _known(state: U8, line: int, signal: int) -> bool:
    return state[line, signal] in (State.VALID, State.SUSPECT)


def _urgent_twin(num: I32, state: U8, line: int) -> bool:
    def value(signal: int) -> int | None:
        return int(num[line, signal]) if _known(state, line, signal) else None

    level, flags = value(_LEVEL), value(_FLAGS)
    hottest, coldest, told = value(_HOTTEST), value(_COLDEST), value(_HOTTEST_TOLD)
    lowest, highest, lowest_told = value(_LOWEST), value(_HIGHEST), value(_LOWEST_TOLD)
    insulation, voltage, speed = value(_INSULATION), value(_VOLTAGE), value(_SPEED)
    return bool(
        level
        or flags
        or (hottest is not None and hottest >= HOT_C)
        or (told is not None and told >= HOT_C)
        or (hottest is not None and coldest is not None and hottest - coldest >= SPREAD_C)
        or (lowest is not None and lowest < CELL_LOW_MV)
        or (lowest_told is not None and lowest_told < CELL_LOW_MV)
        or (lowest is not None and highest is not None and lowest * 100 < highest * _CELL_SHARE)
        or (insulation is not None and voltage is not None and insulation * 10_000 < voltage * OHM_PER_V)
        or (speed is not None and speed >= SPEED_RAW)
    )


def _changes_twin(
    lines: I64, rows: I64, time_s: I64, num: I32, state: U8, seat: I32,  # noqa: ARG001
    vehicle: I64, from_s: I64, to_s: I64, urgent: U8,
) -> int:  # fmt: skip
    found: dict[int, list[int]] = {}
    for line, row in zip(lines.tolist(), rows.tolist(), strict=True):
        second, near = int(time_s[line]), int(_urgent_twin(num, state, line))
        first, last, was = found.get(row, [second, second, 0])
        found[row] = [min(first, second), max(last, second), was | near]
    for place, (row, (first, last, near)) in enumerate(found.items()):
        vehicle[place], from_s[place], to_s[place], urgent[place] = row, first, last, near
    return len(found)


@kernel(twin=_changes_twin)
def _changes(
    lines: I64, rows: I64, time_s: I64, num: I32, state: U8, seat: I32,
    vehicle: I64, from_s: I64, to_s: I64, urgent: U8,
) -> int:  # fmt: skip
    """Vehicles of ``lines`` in order of appearance; returns how many.  seat is 0 on entry and on exit."""
    n = np.int64(0)
    for k in range(len(lines)):
        line, row = lines[k], rows[k]
        second = time_s[line]
        if seat[row] == 0:
            vehicle[n], from_s[n], to_s[n], urgent[n] = row, second, second, 0
            n += 1
            seat[row] = np.int32(n)
        place = np.int64(seat[row]) - 1
        from_s[place] = min(from_s[place], second)
        to_s[place] = max(to_s[place], second)
        if urgent[place]:
            continue
        hottest = state[line, _HOTTEST] == _VALID or state[line, _HOTTEST] == _SUSPECT
        coldest = state[line, _COLDEST] == _VALID or state[line, _COLDEST] == _SUSPECT
        told = state[line, _HOTTEST_TOLD] == _VALID or state[line, _HOTTEST_TOLD] == _SUSPECT
        lowest = state[line, _LOWEST] == _VALID or state[line, _LOWEST] == _SUSPECT
        highest = state[line, _HIGHEST] == _VALID or state[line, _HIGHEST] == _SUSPECT
        low_told = state[line, _LOWEST_TOLD] == _VALID or state[line, _LOWEST_TOLD] == _SUSPECT
        insulation = state[line, _INSULATION] == _VALID or state[line, _INSULATION] == _SUSPECT
        voltage = state[line, _VOLTAGE] == _VALID or state[line, _VOLTAGE] == _SUSPECT
        speed = state[line, _SPEED] == _VALID or state[line, _SPEED] == _SUSPECT
        level = state[line, _LEVEL] == _VALID or state[line, _LEVEL] == _SUSPECT
        flags = state[line, _FLAGS] == _VALID or state[line, _FLAGS] == _SUSPECT
        if (
            (level and num[line, _LEVEL] != 0)
            or (flags and num[line, _FLAGS] != 0)
            or (hottest and num[line, _HOTTEST] >= HOT_C)
            or (told and num[line, _HOTTEST_TOLD] >= HOT_C)
            or (hottest and coldest and num[line, _HOTTEST] - num[line, _COLDEST] >= SPREAD_C)
            or (lowest and num[line, _LOWEST] < CELL_LOW_MV)
            or (low_told and num[line, _LOWEST_TOLD] < CELL_LOW_MV)
            or (lowest and highest and np.int64(num[line, _LOWEST]) * 100 < np.int64(num[line, _HIGHEST]) * _CELL_SHARE)
            or (
                insulation
                and voltage
                and np.int64(num[line, _INSULATION]) * 10_000 < np.int64(num[line, _VOLTAGE]) * OHM_PER_V
            )
            or (speed and num[line, _SPEED] >= SPEED_RAW)
        ):
            urgent[place] = 1
    for k in range(len(lines)):
        seat[rows[k]] = 0
    return n  # type: ignore[return-value]  # numba: an i64, so that there is one signature


def changes_of(batch: Batch, sorted_out: Classified, table: VehicleTable) -> Changes | None:
    """What the reports of a batch change; None when there are none."""
    nothing = np.zeros(0, np.int64)
    found = []
    for lines, rows in ((sorted_out.fast, sorted_out.fast_row), (sorted_out.late, sorted_out.late_row)):
        n = len(lines)
        if not n:
            found.append((nothing, nothing, nothing, np.zeros(0, np.uint8)))
            continue
        vehicle, from_s, to_s, urgent = (*(np.empty(n, np.int64) for _ in range(3)), np.empty(n, np.uint8))
        m = _changes(lines, rows, batch.time_s, batch.num, batch.state, table.seat, vehicle, from_s, to_s, urgent)
        found.append((table.vehicle_id[vehicle[:m]], from_s[:m], to_s[:m], urgent[:m]))
    (ids, from_s, to_s, urgent), (late_ids, _, _, late_urgent) = found
    late_urgent_ids = late_ids[late_urgent != 0]
    if not len(ids) and not len(late_urgent_ids):
        return None
    return Changes(ids, from_s, to_s, urgent, late_urgent_ids)


def warm() -> None:
    """Compile this module's kernel."""
    batch, line = Batch.empty(1, 1), np.zeros(1, np.int64)
    batch.state[:] = 0
    changes_of(batch, Classified(line, line, line, line, line, line, line), VehicleTable(4))
