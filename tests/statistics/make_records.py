"""Records and jobs from simple columns: what the tests of the statistics folds feed to kernel and twin.

``series`` makes the records of one vehicle, ``joined`` puts vehicles together, ``cut`` makes the jobs (vehicle ×
local hour, cut further where asked), ``Run`` holds what a chain of folds reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.statistics.measures import FIRST, INDEX, LAST, MAX, MEASURES, MIN, SUM, TALLIES, TALLY_BEGIN, TALLY_WIDTH
from schemas.statistics.records import (
    DAY_ENDS,
    FIELDS,
    GOES_ON,
    HOUR_ENDS,
    KIND_LOGOUT,
    KIND_REPORT,
    NO_CELL,
    NO_PROBE,
    PEEK,
    Jobs,
    Records,
)
from schemas.statistics.sessions import FINDINGS, SESSION_HEAD, TABLE

DAY: Final = 86_400
ZONE_S: Final = 8 * 3600  # UTC+8
MIDNIGHT: Final = 1_780_243_200  # 2026-06-01 00:00 in UTC+8: a local day's begin
COLUMN: Final = {name: position for position, name in enumerate(FIELDS)}


def series(
    time_s: ArrayLike,
    *,
    vehicle: int = 0,
    kind: ArrayLike = KIND_REPORT,
    cells_mv: ArrayLike | Sequence[Sequence[int]] | None = None,
    probes_c: ArrayLike | Sequence[Sequence[int]] | None = None,
    flaws: Iterable[tuple[int, int, int]] = (),
    reissued: ArrayLike = 0,
    repeated: ArrayLike = 0,
    late: ArrayLike = 0,
    late_us: ArrayLike = 0,
    rows: ArrayLike = 1,
    **fields: ArrayLike,
) -> Records:
    """Records of one vehicle, in the order of ``time_s`` (n,).

    ``fields`` by name of FIELDS: a number for all records or one value each; absent = missing everywhere.
    cells_mv, probes_c: a list per record (an empty one: none). flaws: (record, signal position, State).
    A record of KIND_LOGOUT has every field missing and no rows.
    """
    times = np.ascontiguousarray(time_s, np.int64)
    n = len(times)

    def column(value: ArrayLike, dtype: Any) -> NDArray[Any]:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype), (n,)))

    x = np.full((n, len(FIELDS)), np.nan)
    for name, value in fields.items():
        x[:, COLUMN[name]] = np.broadcast_to(np.asarray(value, np.float64), (n,))
    kinds = column(kind, np.uint8).copy()
    x[kinds == KIND_LOGOUT] = np.nan
    number = column(rows, np.int32).copy()
    number[kinds == KIND_LOGOUT] = 0
    cell_span, cells = _lists(cells_mv, n, np.int32)
    probe_span, probes = _lists(probes_c, n, np.int16)
    pairs: list[list[int]] = [[] for _ in range(n)]
    for record, signal, state in flaws:
        pairs[record] += [signal, state]
    flaw_span, flaw_bytes = _lists(pairs, n, np.uint8)
    return Records(
        column(vehicle, np.int32), times, kinds, x, number, column(reissued, np.int32), column(repeated, np.int32),
        column(late, np.int32), column(late_us, np.int64), cell_span, cells, probe_span, probes, flaw_span, flaw_bytes,
    )  # fmt: skip


def _lists(values: Any, n: int, dtype: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    span = np.zeros((n, 2), np.int64)
    if values is None:
        return span, np.zeros(0, dtype)
    lengths = [len(one) for one in values]
    assert len(lengths) == n
    span[:, 1] = np.cumsum(lengths)
    span[:, 0] = span[:, 1] - lengths
    flat = [np.asarray(one, dtype) for one in values]
    return span, np.ascontiguousarray(np.concatenate(flat) if flat else np.zeros(0), dtype)


def joined(parts: Sequence[Records]) -> Records:
    """Several vehicles (in rising order of ``vehicle``), or parts of one in time order, as one set of records."""

    def stack(name: str) -> NDArray[Any]:
        return np.ascontiguousarray(np.concatenate([getattr(part, name) for part in parts]))

    def spans(span: str, values: str) -> NDArray[np.int64]:
        shifts = np.cumsum([0] + [len(getattr(part, values)) for part in parts])
        return np.ascontiguousarray(
            np.concatenate([getattr(part, span) + shift for part, shift in zip(parts, shifts, strict=False)])
        )

    return Records(
        stack("vehicle"), stack("time_s"), stack("kind"), stack("x"), stack("rows"), stack("reissued"),
        stack("repeated"), stack("late"), stack("late_us"), spans("cell_span", "cells"), stack("cells"),
        spans("probe_span", "probes"), stack("probes"), spans("flaw_span", "flaws"), stack("flaws"),
    )  # fmt: skip


def chosen(records: Records, keep: ArrayLike) -> Records:
    """The records at ``keep`` (mask or positions), lists and all."""
    at = np.arange(records.n)[np.asarray(keep)]
    lists = {}
    for span, values in (("cell_span", "cells"), ("probe_span", "probes"), ("flaw_span", "flaws")):
        old, flat = getattr(records, span), getattr(records, values)
        lists[span], lists[values] = _lists([flat[begin:end] for begin, end in old[at]], len(at), flat.dtype)
    plain = ("vehicle", "time_s", "kind", "x", "rows", "reissued", "repeated", "late", "late_us")
    return Records(**{name: np.ascontiguousarray(getattr(records, name)[at]) for name in plain}, **lists)


def cut(
    records: Records, *, zone_s: int = ZONE_S, sign: float = 1.0, last: int = PEEK, cuts: Iterable[int] = ()
) -> Jobs:
    """Jobs for all of ``records``: one per vehicle and local hour, hours and days numbered over all vehicles.

    ``cuts``: records before which a job is cut in two (GOES_ON). ``last``: how each vehicle's last job closes.
    """
    at = set(cuts)
    lines: list[list[float]] = []
    hour = day = -1
    before: tuple[int, int, int] | None = None  # vehicle, local day, local hour
    for k in range(records.n):
        local = int(records.time_s[k]) + zone_s
        now = (int(records.vehicle[k]), local // DAY, local // 3600)
        if before is None or now != before or k in at:
            if before is not None:
                same = now == before
                ends = HOUR_ENDS if now[:2] == before[:2] else DAY_ENDS if now[0] == before[0] else last
                lines[-1][8] = GOES_ON if same else ends
            hour += before is None or now != before
            day += before is None or now[:2] != before[:2]
            lines.append([k, k, now[0], hour, day, now[2] * 3600 - zone_s, now[1] * DAY - zone_s, sign, last])
        lines[-1][1] = k + 1
        before = now
    table = np.array(lines, np.float64).reshape(-1, 9)

    def column(position: int, dtype: Any) -> NDArray[Any]:
        return np.ascontiguousarray(table[:, position].astype(dtype))

    return Jobs(
        column(0, np.int64), column(1, np.int64), column(2, np.int32), column(3, np.int32), column(4, np.int32),
        column(5, np.int64), column(6, np.int64), column(7, np.float64), column(8, np.uint8),
    )  # fmt: skip


def empty_hours(count: int) -> NDArray[np.float64]:
    """``count`` rows of hour accumulators as they begin: 0 for sums, NaN for the rest."""
    return np.tile([0.0 if measure.op == SUM else np.nan for measure in MEASURES], (count, 1))


def states(module: ModuleType, vehicles: int) -> NDArray[np.float64]:
    """(vehicles, STATE) of a fold, as it begins."""
    return np.tile(module.initial_state(), (vehicles, 1))


@dataclass
class Run:
    """What folds over one set of records and jobs read and write; ``fold`` calls them in turn."""

    records: Records
    jobs: Jobs
    hours: NDArray[np.float64] = field(init=False)
    tallies: NDArray[np.int64] = field(init=False)
    gap_limit_s: NDArray[np.float64] = field(init=False)
    mode: NDArray[np.uint8] = field(init=False)
    state: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    findings: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hours = empty_hours(int(self.jobs.hour.max(initial=-1)) + 1)
        self.tallies = np.zeros((int(self.jobs.day.max(initial=-1)) + 1, TALLY_WIDTH), np.int64)
        self.gap_limit_s = np.full(self.records.n, np.nan)
        self.mode = np.zeros(self.records.n, np.uint8)

    @property
    def vehicles(self) -> int:
        return int(self.records.vehicle.max(initial=-1)) + 1

    def fold(self, *modules: ModuleType) -> Run:
        """Run quality, drive, battery, alarms (as many as given, in this order) through their ``run``."""
        for module in modules:
            name = module.__name__.rpartition(".")[2]
            per_record = {"quality": (self.gap_limit_s,)}.get(name, (self.gap_limit_s, self.mode))
            state = self.state.setdefault(name, states(module, self.vehicles))
            self.findings[name] = module.run(self.records, self.jobs, *per_record, state, self.hours, self.tallies)
        return self

    def hour(self, position: int) -> dict[str, float]:
        """The measures of one hour by name."""
        return {measure.name: float(self.hours[position, INDEX[measure.name]]) for measure in MEASURES}

    def day(self, position: int = 0) -> dict[str, float]:
        """The measures of one day: its hours joined by ``op``."""
        rows = sorted({int(h) for h, d in zip(self.jobs.hour, self.jobs.day, strict=True) if d == position})
        return {
            measure.name: _joined(self.hours[rows, INDEX[measure.name]], measure.op) for measure in MEASURES
        }  # an hour's rows are in time order

    def tally(self, name: str, position: int = 0) -> list[int]:
        """One tally of one day."""
        size = next(tally.size for tally in TALLIES if tally.name == name)
        return [int(v) for v in self.tallies[position, TALLY_BEGIN[name] : TALLY_BEGIN[name] + size]]

    def found(self, table: str, fold: str | None = None) -> list[dict[str, float]]:
        """Findings of one table, each as a mapping of its columns (and job, settled_s)."""
        return named(np.concatenate([f for name, f in self.findings.items() if fold in (None, name)]), table)


def named(findings: NDArray[np.float64], table: str) -> list[dict[str, float]]:
    """Rows of ``findings`` that belong to ``table``, by column name."""
    columns = (*SESSION_HEAD, *(name for name, _ in FINDINGS[TABLE[table]].columns))
    rows = findings[findings[:, SESSION_HEAD.index("table")] == TABLE[table]]
    return [dict(zip(columns, (float(v) for v in row), strict=False)) for row in rows]


def _joined(values: NDArray[np.float64], op: str) -> float:
    known = values[~np.isnan(values)]
    if op == SUM:
        total = 0.0
        for value in values:
            total += float(value)
        return total
    if not len(known):
        return float("nan")
    return float({MIN: min, MAX: max, FIRST: lambda v: v[0], LAST: lambda v: v[-1]}[op](known))


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Exactly equal, NaN equal to NaN."""
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def same_findings(a: Run, b: Run) -> bool:
    """The same findings in the same order, whatever jobs they were found in (the hours are compared instead)."""

    def plain(run: Run) -> Mapping[str, NDArray[np.float64]]:
        out = {}
        for name, found in run.findings.items():
            out[name] = found.copy()
            out[name][:, 0] = run.jobs.hour[found[:, 0].astype(np.int64)]
        return out

    mine, theirs = plain(a), plain(b)
    return mine.keys() == theirs.keys() and all(same(mine[name], theirs[name]) for name in mine)


__all__ = [
    "COLUMN", "DAY", "MIDNIGHT", "NO_CELL", "NO_PROBE", "ZONE_S", "Run", "chosen", "cut", "empty_hours", "joined",
    "named", "same", "same_findings", "series", "states",
]  # fmt: skip
