"""Where a trip went and how a charge ran, from telemetry: points in time, as a table, GPX or GeoJSON.

Positions are as the vehicle sent them. A terminal may send GCJ-02, which lies some hundred metres off on a WGS-84 map:
the flag is kept in every format and nothing is converted. Gaps are not drawn over: they begin a new segment.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Annotated, Any, Final
from xml.sax.saxutils import escape

import orjson
from fastapi import APIRouter, Depends, Query, Request
from pydantic import AwareDatetime
from starlette.responses import Response

from services.web.exports import (
    FORMATS,
    MEDIA_TYPES,
    Column,
    FormatQuery,
    file_headers,
    format_wanted,
    table_answer,
)
from services.web.parameters import Context, Ctx, VinPath, only_known
from services.web.sessions import ChargePath, TripPath, one_session
from services.web.vehicle_answers import Subject, page_model, subject

router = APIRouter(prefix="/v1/vehicles/{vin}", tags=["sessions"], dependencies=[Depends(only_known)])

TYPES: Final[Mapping[str, str]] = {
    **MEDIA_TYPES,
    "geojson": "application/geo+json",
    "gpx": "application/gpx+xml",
}
TrackFormatQuery = Annotated[
    str | None,
    Query(
        alias="format",
        description="json, csv, xlsx, parquet, geojson or gpx; outranks the Accept header.",
        examples=["gpx"],
    ),
]
StepQuery = Annotated[
    int | None,
    Query(
        ge=1,
        le=3600,
        description="At most one point per this many seconds. Default: every point, or as few seconds as keep the "
        "answer within web.rows_max; `step_s` of the answer says which.",
    ),
]
COORDINATES: Final[Mapping[int | None, str]] = {1: "wgs84", 2: "gcj02", 3: "other", None: "not said"}

_D = "double precision"
POINT: Final = (
    Column("time", "time", "", "collection time"),
    Column("segment", "bigint", "", "from 1; a gap begins a new one"),
    Column("longitude_deg", _D, "°", "east positive"),
    Column("latitude_deg", _D, "°", "north positive"),
    Column("coordinates", "text", "", "what the report says they are: wgs84, gcj02, other, not said (2016 edition)"),
    Column("speed_kmh", _D, "km/h", "vehicle speed"),
    Column("soc_pct", _D, "%", "state of charge"),
    Column("odometer_km", _D, "km", "accumulated mileage"),
)
CURVE: Final = (
    Column("time", "time", "", "collection time"),
    Column("elapsed_s", _D, "s", "since the start of the charge"),
    Column("segment", "bigint", "", "from 1; a gap begins a new one"),
    Column("power_kw", _D, "kW", "into the battery"),
    Column("soc_pct", _D, "%", "state of charge"),
    Column("temp_max_c", _D, "°C", "highest probe"),
    Column("temp_min_c", _D, "°C", "lowest probe"),
    Column("total_voltage_v", _D, "V", "pack voltage"),
    Column("total_current_a", _D, "A", "pack current, discharge positive"),
    Column("cell_max_v", _D, "V", "highest cell voltage"),
    Column("cell_min_v", _D, "V", "lowest cell voltage"),
)

_MORE: Final[Mapping[str, Any]] = {
    "start_at": (AwareDatetime, ...),
    "end_at": (AwareDatetime, ...),
    "step_s": (int, ...),
    "gap_limit_s": (float, ...),
    "segments": (int, ...),
}
Track = page_model("Track", "points", POINT, trip_id=(int, ...), coordinates=(dict[str, int], ...), **_MORE)
Curve = page_model("Curve", "points", CURVE, charge_id=(int, ...), **_MORE)

_TRACK_FORMATS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        **FORMATS[200],
        "content": {
            **FORMATS[200]["content"],
            TYPES["geojson"]: {"schema": {"type": "object"}},
            TYPES["gpx"]: {"schema": {"type": "string"}},
        },
    }
}


# -- points ------------------------------------------------------------------------------------------
def gap_limit_s(nominal_s: float | None) -> float:
    """Records further apart than this are a gap: 60 s, or four times the vehicle's own interval (3.3 [P])."""
    return max(60.0, 4.0 * (nominal_s or 0.0))


def _step(row: Mapping[str, Any], given: int | None, ctx: Context) -> int:
    seconds: float = (row["end_at"] - row["start_at"]).total_seconds()
    fewest = max(1, math.ceil((seconds + 1) / ctx.settings.web.rows_max))
    return max(fewest, given or 1)


def _segments(times: Sequence[datetime], gap_s: float) -> Iterator[int]:
    """The segment of each point: a new one after every gap."""
    segment, before = 1, None
    for time in times:
        if before is not None and (time - before).total_seconds() > gap_s:
            segment += 1
        yield segment
        before = time


async def _points(
    ctx: Context, of: Subject, row: Mapping[str, Any], columns: Sequence[str], given: int | None, *, located: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Points of a session with their segments, and what is to be said of them."""
    step = _step(row, given, ctx)
    gap = gap_limit_s(row["nominal_s"])
    table = await ctx.queries.points(
        of.vehicle_id, since=row["start_at"], until=row["end_at"], columns=columns, step_s=step, located=located,
        limit=ctx.settings.web.rows_max + 2,
    )  # fmt: skip
    points = table.dicts()
    # thinned points lie up to two steps apart without anything missing between them
    apart = max(gap, 2.0 * step) if step > 1 else gap
    for point, segment in zip(points, _segments([point["time"] for point in points], apart), strict=True):
        point["segment"] = segment
    duration = (row["end_at"] - row["start_at"]).total_seconds()
    about = {
        "start_at": ctx.local(row["start_at"]),
        "end_at": ctx.local(row["end_at"]),
        "step_s": step,
        "gap_limit_s": gap,
        "segments": points[-1]["segment"] if points else 0,
        "count": len(points),
        "coverage": None if not duration or row["covered_s"] is None else round(row["covered_s"] / duration, 6),
        **of.as_of(ctx),
        "next_cursor": None,
        "next": None,
    }
    return points, about


# -- tracks ------------------------------------------------------------------------------------------
@router.get("/trips/{trip_id}/track", response_model=Track, responses=_TRACK_FORMATS, summary="Way of a trip")
async def track(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    trip_id: TripPath,
    step_s: StepQuery = None,
    kind: TrackFormatQuery = None,
) -> Response:
    """Points with a valid position, oldest first; `coordinates` says what the vehicle says they are.

    GPX and GeoJSON have a track segment or a line per segment. Both expect WGS-84; positions that are marked GCJ-02
    are not converted but said to be so.
    """
    wanted = format_wanted(request, kind, TYPES)
    of = await subject(ctx, vin)
    row = await one_session(ctx, "trips", of, trip_id)
    names = ("longitude_deg", "latitude_deg", "coord_sys", "speed_kmh", "soc_pct", "odometer_km")
    points, found = await _points(ctx, of, row, names, step_s, located=True)
    for point in points:
        point["time"] = ctx.local(point["time"])
        point["coordinates"] = COORDINATES.get(point.pop("coord_sys"), "other")
    said = dict(Counter(point["coordinates"] for point in points))
    about = {"vin": vin, "trip_id": trip_id, "coordinates": said, **found}
    name = f"trip-{vin}-{trip_id}"
    if wanted == "gpx":
        body = await asyncio.to_thread(gpx, points, about)
    elif wanted == "geojson":
        body = await asyncio.to_thread(geojson, points, about)
    else:
        return await table_answer(wanted, POINT, points, about, key="points", zone=ctx.zone, name=name)
    return Response(body, media_type=TYPES[wanted], headers=file_headers(about, f"{name}.{wanted}"))


def _warning(coordinates: Mapping[str, int]) -> str:
    """What a reader of a map has to know of the positions."""
    if set(coordinates) <= {"wgs84"}:
        return "Positions are WGS-84."
    said = ", ".join(f"{count} {name}" for name, count in sorted(coordinates.items()))
    return f"Positions are as the vehicle sent them, not converted to WGS-84: {said}."


def _by_segment(points: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    for segment, group in groupby(points, key=lambda point: point["segment"]):
        yield segment, list(group)


def geojson(points: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> bytes:
    """A FeatureCollection (RFC 7946) with a line per segment; a segment of one point is a Point.

    ``coordTimes``, ``speed_kmh`` and ``soc_pct`` have a value per position.
    """
    features = []
    for segment, group in _by_segment(points):
        positions = [[point["longitude_deg"], point["latitude_deg"]] for point in group]
        line = len(positions) > 1
        features.append(
            {
                "type": "Feature",
                "geometry": {
                    "type": "LineString" if line else "Point",
                    "coordinates": positions if line else positions[0],
                },
                "properties": {
                    "segment": segment,
                    "coordinates": sorted({point["coordinates"] for point in group}),
                    "coordTimes": [point["time"] for point in group],
                    **{name: [point[name] for point in group] for name in ("speed_kmh", "soc_pct")},
                },
            }
        )
    document = {"type": "FeatureCollection", "features": features, **about, "note": _warning(about["coordinates"])}
    if points:
        longitudes = [point["longitude_deg"] for point in points]
        latitudes = [point["latitude_deg"] for point in points]
        document["bbox"] = [min(longitudes), min(latitudes), max(longitudes), max(latitudes)]
    return orjson.dumps(document)


_GPX: Final = (
    '<gpx xmlns="http://www.topografix.com/GPX/1/1" xmlns:nev="urn:nevstream:gpx:1" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="http://www.topografix.com/GPX/1/1 '
    'http://www.topografix.com/GPX/1/1/gpx.xsd" version="1.1" creator="nevstream">'
)


def gpx(points: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> bytes:
    """A GPX 1.1 file with one track; the elements are in the order of its schema, times in UTC."""
    name = escape(f"{about['vin']} trip {about['trip_id']}")
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', _GPX, "<metadata>", f"<name>{name}</name>"]
    lines.append(f"<desc>{escape(_warning(about['coordinates']))}</desc>")
    lines.append(f"<time>{_utc(about['start_at'])}</time>")
    if points:
        longitudes = [point["longitude_deg"] for point in points]
        latitudes = [point["latitude_deg"] for point in points]
        lines.append(
            f'<bounds minlat="{min(latitudes):.6f}" minlon="{min(longitudes):.6f}" '
            f'maxlat="{max(latitudes):.6f}" maxlon="{max(longitudes):.6f}"/>'
        )
    lines += ["</metadata>", "<trk>", f"<name>{name}</name>"]
    for _, group in _by_segment(points):
        lines.append("<trkseg>")
        lines += map(_trkpt, group)
        lines.append("</trkseg>")
    lines += ["</trk>", "</gpx>", ""]
    return "\n".join(lines).encode()


def _trkpt(point: Mapping[str, Any]) -> str:
    more = "".join(
        f"<nev:{name}>{point[name]:g}</nev:{name}>" for name in ("speed_kmh", "soc_pct") if point[name] is not None
    )
    more += f"<nev:coordinates>{escape(point['coordinates'])}</nev:coordinates>"
    return (
        f'<trkpt lat="{point["latitude_deg"]:.6f}" lon="{point["longitude_deg"]:.6f}">'
        f"<time>{_utc(point['time'])}</time><extensions>{more}</extensions></trkpt>"
    )


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


# -- curves ------------------------------------------------------------------------------------------
@router.get("/charges/{charge_id}/curve", response_model=Curve, responses=FORMATS, summary="Course of a charge")
async def curve(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    charge_id: ChargePath,
    step_s: StepQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """Power, SOC, temperature, voltage and current over the time of a charge."""
    wanted = format_wanted(request, kind)
    of = await subject(ctx, vin)
    row = await one_session(ctx, "charges", of, charge_id)
    names = (
        "soc_pct", "total_voltage_v", "total_current_a", "probe_max_c", "probe_min_c", "max_temp_c", "min_temp_c",
        "cell_max_v", "cell_min_v", "max_cell_voltage_v", "min_cell_voltage_v",
    )  # fmt: skip
    stored, found = await _points(ctx, of, row, names, step_s, located=False)
    sign = -1.0 if of.fact("current_inverted") else 1.0
    points = [_curve_point(point, row["start_at"], sign, ctx) for point in stored]
    about = {"vin": vin, "charge_id": charge_id, **found}
    return await table_answer(
        wanted, CURVE, points, about, key="points", zone=ctx.zone, name=f"charge-{vin}-{charge_id}"
    )


def _curve_point(point: Mapping[str, Any], start: datetime, sign: float, ctx: Context) -> dict[str, Any]:
    volts, amps = point["total_voltage_v"], point["total_current_a"]
    amps = None if amps is None else amps * sign + 0.0  # no -0.0
    return {
        "time": ctx.local(point["time"]),
        "elapsed_s": (point["time"] - start).total_seconds(),
        "segment": point["segment"],
        "power_kw": None if volts is None or amps is None else round(-volts * amps / 1000.0, 4) + 0.0,
        "soc_pct": point["soc_pct"],
        "temp_max_c": _known(point, "probe_max_c", "max_temp_c"),
        "temp_min_c": _known(point, "probe_min_c", "min_temp_c"),
        "total_voltage_v": volts,
        "total_current_a": amps,
        "cell_max_v": _known(point, "cell_max_v", "max_cell_voltage_v"),
        "cell_min_v": _known(point, "cell_min_v", "min_cell_voltage_v"),
    }


def _known(point: Mapping[str, Any], *names: str) -> Any:
    """The first of these that the report has: derived from the list before what the terminal says of it."""
    return next((point[name] for name in names if point[name] is not None), None)
