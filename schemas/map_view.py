"""What a map is told of the fleet: clusters by cell where there are many vehicles, single ones where there are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from schemas.seams import Table

MAP_DIMENSIONS: Final = ("model", "fleet", "region")
# By position: what a vehicle's newest report says that it does.
ACTIVITIES: Final = ("unknown", "driving", "charging", "parked")
ZOOM_MAX: Final = 20
CELLS_PER_TILE: Final = 4  # of an edge: a tile of 256 pixels has 4 × 4 cells
CELLS_MAX: Final = 4096  # of an answer; a zoom that would need more is lowered


@dataclass(frozen=True, slots=True)
class MapFilter:
    """Which vehicles a map shows.

    ``bbox``: west, south, east, north in degrees; west > east crosses the date line.
    ``activities``: of :data:`ACTIVITIES`, None for all.  ``received_since``: newest report arrived then or later.
    """

    bbox: tuple[float, float, float, float]
    activities: tuple[str, ...] | None = None
    received_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class MapView:
    """``vehicles`` (as of now) when they are few, else ``clusters`` (as of ``taken_at``); the other is None.

    ``clusters``: longitude_deg and latitude_deg (mean), west, south, east, north (what the members span), count,
    driving, charging, parked, unknown, reporting, alarms.  ``matched``: vehicles within; ``unlocated``: vehicles of the
    filters whose newest report has no position, wherever they are.
    """

    taken_at: datetime
    zoom: int
    matched: int
    unlocated: int
    clusters: Table | None
    vehicles: Table | None


class MapQueries(Protocol):
    """A part of :class:`schemas.seams.Queries`."""

    async def map_view(
        self,
        filters: Mapping[str, Sequence[str]],
        *,
        wanted: MapFilter,
        zoom: int,
        vehicles_max: int,
        reporting_since: datetime,
    ) -> MapView:
        """The vehicles of ``filters`` (of :data:`MAP_DIMENSIONS`) in a box; up to ``vehicles_max`` one by one."""
        ...
