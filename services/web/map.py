"""/v1/map: where the fleet is now, clusters for a far view and single vehicles for a near one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, Field

from schemas.map_view import ACTIVITIES, CELLS_PER_TILE, ZOOM_MAX, MapFilter
from services.web.answers import Json
from services.web.models import Activity, Model
from services.web.parameters import Context, Ctx, only_known
from services.web.vehicles import REPORTING_WITHIN_S, WithinQuery
from services.web.vehicles import activity as activity_of
from services.web.where import WORLD, ActivityQuery, BboxQuery, FactsQuery, ReportingQuery, bbox_given, words_given

router = APIRouter(prefix="/v1/map", tags=["vehicles"], dependencies=[Depends(only_known)])

_CELLS_WIDE: Final = 16  # of a view whose zoom is not given
VEHICLES: Final = 500
VEHICLES_MAX: Final = 2000


# -- shapes, for OpenAPI -------------------------------------------------------------------------------
class MapCluster(Model):
    """The vehicles of one cell."""

    longitude_deg: float = Field(description="Mean of the members, as they send it (GCJ-02 is not converted)")
    latitude_deg: float
    west: float = Field(description="What the members span; ask for this box to look into the cluster")
    south: float
    east: float
    north: float
    count: int
    unknown: int
    driving: int
    charging: int
    parked: int
    reporting: int = Field(description="Reported within `reporting_within_s` of now")
    alarms: int = Field(description="The newest report has an alarm level of 1 to 3")


class MapVehicle(Model):
    """A vehicle and where its newest report says it is."""

    vin: str
    model: str | None
    fleet: str | None
    region: str | None
    longitude_deg: float
    latitude_deg: float
    location_valid: int | None = Field(description="1 the fix is valid, 0 the last good position is repeated")
    activity: Activity
    reporting: bool
    speed_kmh: float | None
    soc_pct: int | None
    alarm_level: int | None
    last_data_time: AwareDatetime


class MapAnswer(Model):
    """Either ``vehicles`` or ``clusters``; the other is empty."""

    bbox: list[float] = Field(description="west, south, east, north")
    zoom: int = Field(description="Zoom of the cells: as asked for, or lower where the box would have too many")
    taken_at: AwareDatetime = Field(description="When positions were read; single vehicles are as of now")
    matched: int = Field(description="Vehicles in the box that the filters let through")
    unlocated: int = Field(description="Vehicles of model, fleet and region whose newest report has no position")
    reporting_within_s: int
    clusters: list[MapCluster]
    vehicles: list[MapVehicle]


# -- parameters ----------------------------------------------------------------------------------------
def zoom_of(bbox: tuple[float, float, float, float]) -> int:
    """The zoom at which a box is about ``_CELLS_WIDE`` cells wide."""
    west, _, east, _ = bbox
    wide = (east - west if west <= east else 360 + east - west) / 360
    return max(0, min(ZOOM_MAX, math.floor(math.log2(_CELLS_WIDE / CELLS_PER_TILE / max(wide, 1e-9)))))


# -- the path ------------------------------------------------------------------------------------------
@router.get("", response_model=MapAnswer, summary="Where the vehicles are")
async def vehicle_map(
    ctx: Ctx,
    facts: FactsQuery,
    bbox: BboxQuery = None,
    zoom: Annotated[
        int | None,
        Query(
            ge=0,
            le=ZOOM_MAX,
            description=f"Zoom of the map (256-pixel tiles, Web Mercator): a tile has {CELLS_PER_TILE} × "
            f"{CELLS_PER_TILE} cells. Default: what makes the box about {_CELLS_WIDE} cells wide.",
        ),
    ] = None,
    activity: ActivityQuery = None,
    reporting: ReportingQuery = None,
    reporting_within_s: WithinQuery = REPORTING_WITHIN_S,
    vehicles_max: Annotated[
        int, Query(ge=0, le=VEHICLES_MAX, description="Up to so many vehicles are given one by one.")
    ] = VEHICLES,
) -> Json:
    """Vehicles of a view: up to `vehicles_max` one by one as of now, more of them in clusters by cell.

    Clusters are as of `taken_at`: positions are read again while somebody asks, a tenth of the time at most (a few
    seconds apart, some ten at a million vehicles).  Vehicles without a position are counted in `unlocated`.
    """
    box = bbox_given(bbox) or WORLD
    doing = words_given(activity, "activity", ACTIVITIES)
    since = ctx.now() - timedelta(seconds=reporting_within_s)
    found = await ctx.queries.map_view(
        facts,
        wanted=MapFilter(box, None if doing is None else tuple(doing), since if reporting else None),
        zoom=zoom_of(box) if zoom is None else zoom,
        vehicles_max=vehicles_max,
        reporting_since=since,
    )
    vehicles = [] if found.vehicles is None else [_vehicle(row, ctx, since) for row in found.vehicles.dicts()]
    return Json(
        {
            "bbox": list(box),
            "zoom": found.zoom,
            "taken_at": ctx.local(found.taken_at),
            "matched": found.matched,
            "unlocated": found.unlocated,
            "reporting_within_s": reporting_within_s,
            "clusters": [] if found.clusters is None else found.clusters.dicts(),
            "vehicles": vehicles,
        }
    )


def _vehicle(row: Mapping[str, Any], ctx: Context, since: Any) -> dict[str, Any]:
    same = ("vin", "model", "fleet", "region", "longitude_deg", "latitude_deg", "location_valid", "speed_kmh",
            "soc_pct", "alarm_level")  # fmt: skip
    return {
        **{name: row[name] for name in same},
        "activity": activity_of(row),
        "reporting": row["received_at"] >= since,
        "last_data_time": ctx.local(row["time"]),
    }
