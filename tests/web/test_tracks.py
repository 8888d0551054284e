"""The way of a trip and the course of a charge: points, gaps, coordinates, thinning, GPX and GeoJSON."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openpyxl
import psycopg
import pyarrow.parquet as pq
import pytest

from services.store.queries import Queries
from services.web.tracks import Curve, Track
from tests import statistics_rows as made
from tests.fix_db import Databases
from tests.web import rows
from tests.web.conftest import asking, client_of
from tests.web.test_problems import problem
from tests.web.test_sessions import get, path_of

VIN, INVERTED = "LTRACK00000000001", "LTRACK00000000002"
START = datetime(2026, 11, 23, 16, 0, tzinfo=UTC)  # midnight in Shanghai
GPX = "{http://www.topografix.com/GPX/1/1}"
TRIP_S, CHARGE_S = 900, 1800
# seconds of the trip without a report, and without a valid position
SILENT, BLIND = range(310, 500), range(700, 800)


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def fleet(db: psycopg.Connection[Any]) -> None:
    rows.days(db, START.date(), START.date() + timedelta(days=1))
    one = rows.vehicle(db, VIN, battery_kwh=50.0)
    made.checkpoint(db, one, at(3600 + CHARGE_S))
    made.day(db, one, made.local_day(START), nominal_s=10.0)
    made.trip(db, one, START, at(TRIP_S), distance_km=12.0, covered_s=700.0)
    for second in range(0, TRIP_S + 1, 10):
        if second in SILENT:
            continue
        rows.report(
            db, one, at(second), speed_kmh=50.0 + second % 7, soc_pct=80 - second // 300,
            odometer_km=1000 + second / 60, longitude_deg=round(116.4 + second * 1e-4, 6),
            latitude_deg=round(39.9 - second * 1e-5, 6),
            coord_sys=2, location_valid=0 if second in BLIND else 1,
        )  # fmt: skip
    # a reissue of a second, and a second part with cells only: still one point
    rows.report(db, one, at(20), kind=3, longitude_deg=1.0, latitude_deg=1.0, location_valid=1)
    rows.report(db, one, at(30), part=1, cell_max_v=3.9)
    charge(db, one, 3600)
    two = rows.vehicle(db, INVERTED, current_inverted=True)
    charge(db, two, 3600, sign=1)
    made.trip(db, two, at(10), at(10))
    rows.report(db, two, at(10), longitude_deg=116.0, latitude_deg=39.0)  # one point, 2016: coordinates not said


def charge(db: psycopg.Connection[Any], vehicle: int, begin: int, sign: int = -1) -> None:
    made.charge(db, vehicle, at(begin), at(begin + CHARGE_S), energy_kwh=10.5, covered_s=CHARGE_S)
    for second in range(0, CHARGE_S + 1, 30):
        rows.report(
            db, vehicle, at(begin + second), vehicle_state=2, charge_state=1, soc_pct=20 + second // 60,
            total_voltage_v=350.0, total_current_a=sign * 60.0, max_temp_c=30, cell_max_v=3.8, cell_min_v=3.75,
        )  # fmt: skip
        # the other half of the second comes in a frame of its own
        rows.report(db, vehicle, at(begin + second), part=1, probe_max_c=31, probe_min_c=25)


@pytest.fixture(scope="module")
def tracks_dsn(databases: Databases) -> Iterator[str]:
    with databases.filled(fleet) as created:
        yield created


@pytest.fixture
async def api(tracks_dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(tracks_dsn) as client:
        yield client


async def track_path(client: httpx.AsyncClient, vin: str = VIN) -> str:
    [trip] = (await get(client, path_of(vin, "trips")))["trips"]
    return path_of(vin, f"trips/{trip['trip_id']}/track")


VALID = [s for s in range(0, TRIP_S + 1, 10) if s not in SILENT and s not in BLIND]


async def test_points_are_those_with_a_valid_position_once_a_second(api: httpx.AsyncClient) -> None:
    answer = await get(api, await track_path(api))
    Track.model_validate(answer)
    assert [datetime.fromisoformat(point["time"]) for point in answer["points"]] == [at(s) for s in VALID]
    assert answer["coordinates"] == {"gcj02": len(VALID)}
    assert (answer["count"], answer["step_s"], answer["gap_limit_s"]) == (len(VALID), 1, 60)
    third = answer["points"][2]
    assert (third["longitude_deg"], third["speed_kmh"]) == (116.402, 56.0), "the report, not its reissue"
    assert answer["coverage"] == round(700 / 900, 6)


async def test_gaps_begin_new_segments(api: httpx.AsyncClient) -> None:
    answer = await get(api, await track_path(api))
    assert answer["segments"] == 3
    by_segment = {n: [p for p in answer["points"] if p["segment"] == n] for n in (1, 2, 3)}
    assert [len(points) for points in by_segment.values()] == [
        len([s for s in VALID if s <= 300]),
        len([s for s in VALID if 500 <= s < 700]),
        len([s for s in VALID if s >= 800]),
    ]


async def test_gpx_is_what_its_schema_asks_for(api: httpx.AsyncClient) -> None:
    path = await track_path(api)
    answer = await api.get(path, params={"format": "gpx"})
    assert answer.headers["content-type"] == "application/gpx+xml"
    assert answer.headers["content-disposition"].endswith('.gpx"')
    root = ET.fromstring(answer.content)  # noqa: S314 - ours
    assert (root.tag, root.get("version"), root.get("creator")) == (f"{GPX}gpx", "1.1", "nevstream")
    assert [child.tag for child in root] == [f"{GPX}metadata", f"{GPX}trk"]
    metadata = root[0]
    assert [child.tag for child in metadata] == [f"{GPX}{name}" for name in ("name", "desc", "time", "bounds")]
    assert "gcj02" in (metadata.findtext(f"{GPX}desc") or ""), "who draws it must know that it is not WGS-84"
    bounds = {name: float(value) for name, value in metadata[3].attrib.items()}
    assert bounds["minlon"] == pytest.approx(116.4)
    assert bounds["maxlon"] == pytest.approx(116.4 + TRIP_S * 1e-4)
    segments = root.findall(f"{GPX}trk/{GPX}trkseg")
    points = root.findall(f".//{GPX}trkpt")
    assert (len(segments), len(points)) == (3, len(VALID))
    assert [child.tag for child in points[0]] == [f"{GPX}time", f"{GPX}extensions"]
    for point, second in zip(points, VALID, strict=True):
        assert -90 <= float(point.attrib["lat"]) <= 90
        assert -180 <= float(point.attrib["lon"]) <= 180
        time = point.findtext(f"{GPX}time") or ""
        assert time.endswith("Z")
        assert datetime.fromisoformat(time) == at(second)
    # elements of others are only allowed in extensions, and in a namespace of their own
    others = [el for el in root.iter() if not el.tag.startswith(GPX)]
    assert others
    assert all(el.tag.startswith("{urn:nevstream:gpx:1}") for el in others)


async def test_geojson_is_lines_of_longitude_and_latitude(api: httpx.AsyncClient) -> None:
    path = await track_path(api)
    answer = await api.get(path, headers={"Accept": "application/geo+json"})
    assert answer.headers["content-type"] == "application/geo+json"
    found = answer.json()
    assert found["type"] == "FeatureCollection"
    assert [feature["geometry"]["type"] for feature in found["features"]] == ["LineString"] * 3
    first = found["features"][0]
    assert first["geometry"]["coordinates"][1] == [116.401, 39.8999]
    assert len(first["properties"]["coordTimes"]) == len(first["geometry"]["coordinates"])
    assert first["properties"]["coordinates"] == ["gcj02"]
    assert "not converted" in found["note"]
    assert found["bbox"][0] == 116.4


async def test_one_point_is_a_point(api: httpx.AsyncClient) -> None:
    path = await track_path(api, INVERTED)
    [feature] = (await api.get(path, params={"format": "geojson"})).json()["features"]
    assert feature["geometry"] == {"type": "Point", "coordinates": [116.0, 39.0]}
    assert (await get(api, path))["coordinates"] == {"not said": 1}


async def test_a_track_without_positions_is_empty_and_valid(db: psycopg.Connection[Any], queries: Queries) -> None:
    rows.days(db, START.date(), START.date())
    vehicle = rows.vehicle(db, VIN)
    trip = made.trip(db, vehicle, START, at(60))
    rows.report(db, vehicle, at(10), speed_kmh=10.0)
    async with client_of(queries) as client:
        path = path_of(VIN, f"trips/{trip}/track")
        answer = await get(client, path)
        assert (answer["points"], answer["segments"]) == ([], 0)
        root = ET.fromstring((await client.get(path, params={"format": "gpx"})).content)  # noqa: S314 - ours
        assert root.findall(f".//{GPX}trkpt") == []
        assert (await client.get(path, params={"format": "geojson"})).json()["features"] == []


async def test_thinned_points_are_rows_as_they_were(api: httpx.AsyncClient) -> None:
    path = await track_path(api)
    whole = {point["time"]: point for point in (await get(api, path))["points"]}
    thin = await get(api, path, step_s=30)
    assert thin["step_s"] == 30
    assert len(thin["points"]) == len({at(s).timestamp() // 30 for s in VALID})
    for point in thin["points"]:
        same = whole[point["time"]]
        assert {**point, "segment": 0} == {**same, "segment": 0}
    assert thin["segments"] == 3, "thinning neither hides gaps nor makes any"


async def test_an_answer_is_bounded_by_thinning_and_says_so(tracks_dsn: str) -> None:
    queries = Queries(tracks_dsn)
    async with client_of(queries, rows_max=20) as client:
        answer = await get(client, await track_path(client))
        assert answer["step_s"] == 46
        assert answer["count"] <= 21
    await queries.close()


async def test_tracks_as_tables(api: httpx.AsyncClient) -> None:
    path = await track_path(api)
    table = pq.read_table(io.BytesIO((await api.get(path, params={"format": "parquet"})).content))
    assert table.num_rows == len(VALID)
    assert json.loads(table.schema.metadata[b"nevstream"])["coordinates"] == {"gcj02": len(VALID)}
    book = openpyxl.load_workbook(io.BytesIO((await api.get(path, params={"format": "xlsx"})).content))
    assert book["data"].max_row == len(VALID) + 1
    refused = problem(await api.get(path, params={"format": "kml"}), 422)
    assert "geojson or gpx" in refused.how_to_fix
    assert "segment" in (await api.get(path, params={"format": "csv"})).text.splitlines()[0]


# -- curves ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("vin", [VIN, INVERTED])
async def test_curve_of_a_charge(api: httpx.AsyncClient, vin: str) -> None:
    """Power is positive into the battery, whatever sign the vehicle reports; a second's frames are one point."""
    [charge] = (await get(api, path_of(vin, "charges")))["charges"]
    answer = await get(api, path_of(vin, f"charges/{charge['charge_id']}/curve"))
    Curve.model_validate(answer)
    assert (answer["count"], answer["segments"], answer["coverage"]) == (CHARGE_S // 30 + 1, 1, 1.0)
    for number, point in enumerate(answer["points"]):
        assert (point["elapsed_s"], point["soc_pct"]) == (30 * number, 20 + number // 2)
        assert (point["power_kw"], point["total_voltage_v"], point["total_current_a"]) == (21.0, 350.0, -60.0)
        assert (point["temp_max_c"], point["temp_min_c"], point["cell_max_v"]) == (31, 25, 3.8)


async def test_curve_with_a_gap(db: psycopg.Connection[Any], queries: Queries) -> None:
    rows.days(db, START.date(), START.date())
    vehicle = rows.vehicle(db, VIN)
    charge = made.charge(db, vehicle, START, at(600))
    for second in (0, 30, 60, 300, 330, 600):
        rows.report(db, vehicle, at(second), total_voltage_v=None if second == 30 else 350.0, total_current_a=0.0)
    async with client_of(queries) as client:
        answer = await get(client, path_of(VIN, f"charges/{charge}/curve"))
    assert [point["segment"] for point in answer["points"]] == [1, 1, 1, 2, 2, 3]
    assert [point["power_kw"] for point in answer["points"]] == [0.0, None, 0.0, 0.0, 0.0, 0.0]
    assert "-0" not in json.dumps([point["power_kw"] for point in answer["points"]])
