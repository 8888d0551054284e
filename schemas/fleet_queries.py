"""What the API asks about the fleet: a part of ``Queries`` (``schemas.seams``), in a file of its own.

``by`` are names of ``schemas.statistics.cohorts.DIMENSIONS``, and ``start`` for figures period by period; answers have
these columns first. ``filters``: dimension → values, any of which will do. ``blocks``: kept periods (span, first day).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from schemas.seams import Table

Filters = Mapping[str, Sequence[str]]
Blocks = Sequence[tuple[str, date]]


class FleetQueries(Protocol):
    """Bounded and reading only; telemetry is never read. Raises as ``Queries`` does."""

    async def fleet_sums(self, blocks: Blocks, names: Sequence[str], *, by: Sequence[str], filters: Filters) -> Table:
        """Sums of scalars over ``blocks``, and newest_at."""
        ...

    async def fleet_spreads(
        self, blocks: Blocks, names: Sequence[str], *, by: Sequence[str], filters: Filters
    ) -> Table:
        """Distributions: spread (its number), counts (``schemas.statistics.sketch``, bins may repeat)."""
        ...

    async def fleet_access(self, first: date, last: date, *, by: Sequence[str], filters: Filters) -> Table:
        """Vehicles accessed at the end of ``last``; joined, retired in [first, last]."""
        ...

    async def fleet_joining(self, first: date, last: date, *, by: Sequence[str], filters: Filters) -> Table:
        """joined, retired by day of [first, last], when ``by`` has ``start``."""
        ...

    async def fleet_states(self, first: date, last: date, *, by: Sequence[str], filters: Filters) -> Table:
        """States and their day: those of [first, last], and the newest before ``first``."""
        ...

    async def fleet_vehicles(self, blocks: Blocks, *, by: Sequence[str], filters: Filters) -> Table:
        """Distinct vehicles of months and days together, by what they did."""
        ...

    async def fleet_vehicle_spread(self, blocks: Blocks, name: str, *, by: Sequence[str], filters: Filters) -> Table:
        """The distribution of one value per vehicle over months and days together, as :meth:`fleet_spreads`."""
        ...

    async def fleet_computed(self, blocks: Blocks, first: date, last: date) -> Mapping[str, Any]:
        """computed_at (oldest), newest_at, blocks (how many are there), days_changed (changed since, of the window)."""
        ...

    async def offline_vehicles(
        self, *, before: datetime, now: datetime, filters: Filters, after: str, limit: int
    ) -> Table:
        """Vehicles not retired whose newest data are older than ``before``, by VIN."""
        ...

    async def frequent_alarms(
        self, *, first: date, last: date, least: int, level: int, filters: Filters, after: str, limit: int
    ) -> Table:
        """Vehicles with ``least`` episodes of ``level`` or more that start on days [first, last], by VIN."""
        ...

    async def clusters(
        self,
        *,
        size_deg: float,
        least: int,
        since: datetime,
        still: datetime,
        now: datetime,
        filters: Filters,
        after: tuple[int, int],
        vins: int,
        limit: int,
    ) -> Table:
        """Cells of a grid in which ``least`` vehicles or more are parked, by cell.

        Positions since ``since``; one that is not off counts as parked when its last report is before ``still``.
        """
        ...

    async def outlier_cells(
        self, *, first: date, last: date, least_days: int, filters: Filters, after: tuple[str, int], limit: int
    ) -> Table:
        """Cells that were outliers on ``least_days`` days of [first, last], by VIN and cell."""
        ...

    async def failing_vehicles(self, week: date, *, filters: Filters, after: str, limit: int) -> Table:
        """Vehicles that failed the week's verification, by VIN; in_a_row: weeks running, at most 3."""
        ...
