"""A fleet metric's answer, put together: which sums and distributions to ask for, and the rows made of them.

Periods of one span are asked for together, with their first day as a key, so that a series costs one query of each
kind.  A window that is no kept period is put together from years, months and days; vehicles are then counted from their
days (``vehicle_brief``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final

from schemas.fleet_queries import FleetQueries
from schemas.seams import Table
from schemas.statistics import cohorts
from schemas.statistics.cohorts import DISTINCT, SCALAR, SPREADS, STATES, WEEKLY
from schemas.statistics.fleet import figure_rows
from schemas.statistics.metrics import ACCESS, DAYS_PER_MONTH, LENGTHS, Metric, needs
from schemas.statistics.windows import Window, start_of

START: Final = "start"
BASE: Final = ("vehicles", "covered_s", "gap_s")  # with every answer
MONTHLY: Final = ("capacity_ah", "soh_pct")  # kept by month and year only
_SPREAD_NAMES: Final = {spread.id: spread.name for spread in SPREADS}

Filters = Mapping[str, Sequence[str]]
Key = tuple[Any, ...]


@dataclass(slots=True)
class Group:
    """What is known of one group in one window."""

    sums: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, bytes] = field(default_factory=dict)
    newest_at: datetime | None = None

    def add(self, other: Mapping[str, Any]) -> None:
        for name, value in other.items():
            if name == "newest_at":
                if value is not None and (self.newest_at is None or value > self.newest_at):
                    self.newest_at = value
            else:
                self.sums[name] = self.sums.get(name, 0) + value


class Asking:
    """Gathers what the figures of ``metrics`` need, for ``windows`` (of one kept span, or a single one of none)."""

    def __init__(
        self,
        queries: FleetQueries,
        metrics: Sequence[Metric],
        windows: Sequence[Window],
        *,
        by: Sequence[str],
        filters: Filters,
        today: date,
    ) -> None:
        self._queries, self._windows, self._by, self._filters, self._today = queries, windows, by, filters, today
        self.groups: dict[Key, Group] = {}
        self._kept = windows[0].span
        sums: set[str] = set(BASE)
        spreads: set[str] = set()
        for metric in metrics:
            more_sums, more_spreads = needs(metric)
            sums |= more_sums
            spreads |= more_spreads
        self._scalars = [name for name in SCALAR if name in sums]
        self._spreads = [name for name in cohorts.SPREAD if name in spreads]
        self._access = bool(sums & {*ACCESS})
        self._states = bool(sums & STATES.keys())

    async def gather(self) -> dict[Key, Group]:
        """(first day of the window, dimensions...) → what is known of it."""
        tasks = [self._sums(), self._distinct(), self._weekly(), self._accessed(), self._standing(), self._shapes()]
        await asyncio.gather(*tasks)
        if not self._by:
            for window in self._windows:
                self._at(window.first, ())
        for key, group in self.groups.items():
            for name in (*self._scalars, *(ACCESS if self._access else ()), *(STATES if self._states else ())):
                group.sums.setdefault(name, 0)
            self._lengths(key[0], group)
        return self.groups

    def _lengths(self, first: date, group: Group) -> None:
        """Of a window that is not over only the days so far count."""
        window = next(window for window in self._windows if window.first == first)
        over = window.last <= self._today
        days = window.days if over else max(0, (self._today - window.first).days + 1)
        months = window.months if over else days / DAYS_PER_MONTH
        group.sums |= dict(zip(LENGTHS, (days, months), strict=True))

    def _at(self, start: date, key: Key) -> Group:
        return self.groups.setdefault((start, *key), Group())

    def _take(self, table: Table, start: date | None = None) -> None:
        """Add a table's rows to their groups; ``start``: of all of them, else it is a column."""
        keys = len(self._by) + (start is None)
        for row in table.rows:
            key = row[:keys]
            group = self._at(key[0], key[1:]) if start is None else self._at(start, key)
            group.add(dict(zip(table.columns[keys:], row[keys:], strict=True)))

    def _keys(self) -> tuple[Sequence[str], date | None]:
        return ([START, *self._by], None) if self._kept else (self._by, self._windows[0].first)

    def _names(self, how: str) -> list[str]:
        return [name for name in self._scalars if SCALAR[name].how == how]

    def _blocks(self) -> list[tuple[str, date]]:
        return [block for window in self._windows for block in window.blocks()]

    async def _sums(self) -> None:
        by, start = self._keys()
        names = [name for name in self._scalars if SCALAR[name].how == "added" or (self._kept and
                 SCALAR[name].how == DISTINCT)]  # fmt: skip
        self._take(await self._queries.fleet_sums(self._blocks(), names, by=by, filters=self._filters), start)

    async def _distinct(self) -> None:
        if self._kept:
            return
        window = self._windows[0]
        found = await self._queries.fleet_vehicles(window.vehicle_blocks(), by=self._by, filters=self._filters)
        wanted = set(self._names(DISTINCT))
        keys = len(self._by)
        for row in found.rows:
            counts = dict(zip(found.columns[keys:], row[keys:], strict=True))
            self._at(window.first, row[:keys]).add({name: n for name, n in counts.items() if name in wanted})

    async def _weekly(self) -> None:
        """Figures of weeks, for the windows that they tell of."""
        scalars = self._names(WEEKLY)
        spreads = [name for name in self._spreads if cohorts.SPREAD[name].how == WEEKLY]
        if not scalars and not spreads:
            return
        weeks = {window.first: window.weeks() for window in self._windows}
        blocks = [("W", week) for week in sorted({week for each in weeks.values() for week in each})]
        if not blocks:
            return
        by = [START, *self._by]
        sums, shapes = await asyncio.gather(
            self._queries.fleet_sums(blocks, scalars, by=by, filters=self._filters),
            self._queries.fleet_spreads(blocks, spreads, by=by, filters=self._filters),
        )
        for start, mine in weeks.items():
            for week, *key, number, counts in shapes.rows:
                if week in mine:
                    self._shape(self._at(start, tuple(key)), number, counts)
            for row in sums.dicts():
                if row.pop(START) in mine:
                    key = [row.pop(name) for name in self._by]
                    self._at(start, tuple(key)).add(row)

    async def _accessed(self) -> None:
        if not self._access:
            return
        first, last = self._windows[0].first, min(self._windows[-1].last, max(self._today, self._windows[0].first))
        if len(self._windows) == 1:
            found = await self._queries.fleet_access(first, last, by=self._by, filters=self._filters)
            self._take(found, first)
            return
        before, moved = await asyncio.gather(
            self._queries.fleet_access(first, first, by=self._by, filters=self._filters),
            self._queries.fleet_joining(first, last, by=[START, *self._by], filters=self._filters),
        )
        standing = {
            tuple(row[name] for name in self._by): row["accessed"] - row["joined"] + row["retired"]
            for row in before.dicts()
        }
        rows = moved.dicts()
        for key in {*standing, *(tuple(row[name] for name in self._by) for row in rows)}:
            accessed = standing.get(key, 0)
            mine = [row for row in rows if tuple(row[name] for name in self._by) == key]
            for window in self._windows:
                inside = [row for row in mine if window.first <= row[START] <= window.last]
                joined, retired = (sum(row[name] for row in inside) for name in ("joined", "retired"))
                accessed += joined - retired
                self._at(window.first, key).add({"accessed": accessed, "joined": joined, "retired": retired})

    async def _standing(self) -> None:
        """States of the newest day up to each window's end."""
        if not self._states:
            return
        ends = [min(window.last, self._today) for window in self._windows]
        found = await self._queries.fleet_states(ends[0], ends[-1], by=self._by, filters=self._filters)
        rows = found.dicts()
        days = sorted({row["day"] for row in rows})
        for window, end in zip(self._windows, ends, strict=True):
            newest = next((day for day in reversed(days) if day <= end), None)
            for row in rows:
                if row["day"] == newest:
                    key = tuple(row[name] for name in self._by)
                    self._at(window.first, key).add({name: row[name] for name in STATES})

    async def _shapes(self) -> None:
        names = [name for name in self._spreads if cohorts.SPREAD[name].how != WEEKLY]
        monthly = [name for name in names if name in MONTHLY and self._kept not in ("M", "Y")]
        single = [name for name in names if not self._kept and cohorts.SPREAD[name].how == DISTINCT]
        plain = [name for name in names if name not in monthly and name not in single]
        by, start = self._keys()
        if plain:
            found = await self._queries.fleet_spreads(self._blocks(), plain, by=by, filters=self._filters)
            for row in found.rows:
                *key, number, counts = row
                group = self._at(key[0], tuple(key[1:])) if start is None else self._at(start, tuple(key))
                self._shape(group, number, counts)
        for name in single:
            if name not in MONTHLY:
                blocks = self._windows[0].vehicle_blocks()
                found = await self._queries.fleet_vehicle_spread(blocks, name, by=self._by, filters=self._filters)
                self._spread_rows(found, self._windows[0].first)
        if monthly:
            for window in self._windows:
                month = start_of("M", min(window.last, max(self._today, window.first)))
                found = await self._queries.fleet_spreads([("M", month)], monthly, by=self._by, filters=self._filters)
                self._spread_rows(found, window.first)

    def _spread_rows(self, table: Table, start: date) -> None:
        for *key, number, counts in table.rows:
            self._shape(self._at(start, tuple(key)), number, counts)

    @staticmethod
    def _shape(group: Group, number: int, counts: bytes) -> None:
        name = _SPREAD_NAMES[number]
        group.spreads[name] = group.spreads.get(name, b"") + counts


def rows_of(metric: Metric, key: Mapping[str, Any], group: Group, local: Any, digits: int = 12) -> list[dict[str, Any]]:
    """Rows of one metric and group: its keys, the figures, and what they are of."""
    covered, gaps = group.sums["covered_s"], group.sums["gap_s"]
    about = {
        "vehicles": group.sums["vehicles"],
        "coverage": round(covered / (covered + gaps), 6) if covered + gaps > 0 else None,
        "newest_data_time": local(group.newest_at),
    }
    rows = []
    for row in figure_rows(metric, group.sums, group.spreads):
        text, histogram = row.pop("text"), row.pop("histogram")
        rounded = {name: _significant(value, digits) for name, value in row.items()}
        rows.append({**key, "metric": metric.id, **rounded, **about, "text": text, "histogram": histogram})
    return rows


def _significant(value: Any, digits: int) -> Any:
    """Without the noise of binary fractions."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
