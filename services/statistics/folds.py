"""The folds in their order, behind one signature, and what is done before them.

Each is a module beside this one (quality, drive, battery, alarms); the worker takes them as a list and knows no more
of them than :class:`Fold` says.
"""

# mypy: disable-error-code="arg-type,return-value,assignment"

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from schemas.jit import kernel
from schemas.statistics.measures import MEASURES, TALLIES
from schemas.statistics.records import F64, I32, I64, ODOMETER, U8, Jobs, Records
from schemas.statistics.rules import rule_array
from schemas.statistics.sessions import FINDING_WIDTH, FINDINGS

Run = Callable[[Records, Jobs, F64, U8, F64, F64, I64], F64]


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold.  run(records, jobs, gap_limit_s, mode, state, hours, tallies) → findings (m, FINDING_WIDTH)."""

    name: str
    state: int
    layout: int
    initial_state: Callable[[], F64]
    run: Run


def _odometer_twin(x: F64, begin: I64, end: I64, vehicle: I32, state: F64) -> None:
    for first, stop, row in zip(begin.tolist(), end.tolist(), vehicle.tolist(), strict=True):
        for k in range(first, stop):
            if x[k, ODOMETER] > 0:
                state[row, 0] = 1
            elif x[k, ODOMETER] == 0 and state[row, 0]:
                x[k, ODOMETER] = np.nan


@kernel(twin=_odometer_twin)
def _odometer(x: F64, begin: I64, end: I64, vehicle: I32, state: F64) -> None:
    """An odometer of 0 after a larger value is missing (3.1 [M]); state (v, 1): one was seen."""
    for j in range(len(begin)):
        row = vehicle[j]
        for k in range(begin[j], end[j]):
            if x[k, ODOMETER] > 0:
                state[row, 0] = 1
            elif x[k, ODOMETER] == 0 and state[row, 0] != 0:
                x[k, ODOMETER] = np.nan


def _clean(records: Records, jobs: Jobs, _gap: F64, _mode: U8, state: F64, _hours: F64, _tallies: I64) -> F64:
    _odometer(records.x, jobs.begin, jobs.end, jobs.vehicle, state)
    return np.empty((0, FINDING_WIDTH))


CLEAN: Final = Fold("clean", 1, 1, lambda: np.zeros(1), _clean)


def folds(alarm_rules: Mapping[str, Mapping[str, float]] | None = None) -> tuple[Fold, ...]:
    """All of them, in order.  ``alarm_rules``: an operator's own values of rules; other values, another layout."""
    from services.statistics import alarms, battery, drive, quality

    def quality_run(r: Records, j: Jobs, gap: F64, _mode: U8, state: F64, hours: F64, tallies: I64) -> F64:
        return quality.run(r, j, gap, state, hours, tallies)

    rules = rule_array(alarm_rules)

    def alarms_run(r: Records, j: Jobs, gap: F64, mode: U8, state: F64, hours: F64, tallies: I64) -> F64:
        return alarms.run(r, j, gap, mode, state, hours, tallies, rules)

    own = zlib.crc32(rules.tobytes()) if alarm_rules else 0
    runs: tuple[tuple[Any, int, Run], ...] = (
        (quality, quality.LAYOUT, quality_run),
        (drive, drive.LAYOUT, drive.run),
        (battery, battery.LAYOUT, battery.run),
        (alarms, alarms.LAYOUT + own, alarms_run),
    )
    return (
        CLEAN,
        *(Fold(m.__name__.rsplit(".", 1)[-1], m.STATE, layout, m.initial_state, run) for m, layout, run in runs),
    )


def layout_of(used: Sequence[Fold], time_zone: str) -> int:
    """A number that is another one when stored states, or the days they belong to, mean something else."""
    said = (
        1, time_zone, [(fold.name, fold.state, fold.layout) for fold in used],
        [(m.name, m.op) for m in MEASURES], [(t.name, t.size) for t in TALLIES],
        [(f.table, f.columns) for f in FINDINGS],
    )  # fmt: skip
    return zlib.crc32(repr(said).encode()) & 0x7FFF_FFFF


def warm() -> None:
    """Compile this module's kernel."""
    nothing = np.zeros(0, np.int64)
    _odometer(np.zeros((0, 1)), nothing, nothing, np.zeros(0, np.int32), np.zeros((0, 1)))
