"""Where vehicles are: clusters and single vehicles against counting one by one, filters of the list, tenants."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest

from schemas.map_view import CELLS_MAX, CELLS_PER_TILE
from schemas.seams import Table
from services.errors import StoreUnavailable
from services.store.queries import Queries
from services.store.vehicle_map import VehicleMap, column, curve, fitting
from services.web.map import MapAnswer, zoom_of
from services.web.models import VehiclePage
from services.web.scope import ScopedQueries
from services.web.where import WORLD
from tests.fix_db import Databases
from tests.web import rows
from tests.web.conftest import client_of
from tests.web.test_problems import problem

pytestmark = pytest.mark.database
N = 400
EDGES = [(180.0, 10.0), (-180.0, 10.0), (179.99, -10.0), (-179.99, -10.0), (0.0, 90.0), (0.0, -90.0), (0.0, 0.0)]


def _made() -> list[dict[str, Any]]:
    """Vehicles in three towns and at the world's edges; some without a position, some that never reported."""
    rng = np.random.default_rng(11)
    towns = [(116.4, 39.9), (121.5, 31.2), (113.3, 23.1)]
    made = []
    for number in range(N):
        town = towns[number % 3]
        longitude, latitude = rng.normal(town[0], 0.3), rng.normal(town[1], 0.2)
        if number < len(EDGES):
            longitude, latitude = EDGES[number]
        facts = {
            "model": [None, "E1", "E2"][number % 3], "fleet": [None, "north", "south", "west"][number % 4],
            "region": ["BJ", "SH"][number % 2],
        }  # fmt: skip
        state = {
            "vehicle_state": [1, 2, 3, None][rng.integers(0, 4)], "charge_state": [1, 3, 3, None][rng.integers(0, 4)],
            "speed_kmh": 0, "soc_pct": int(rng.integers(0, 101)) if number % 9 else None,
            "alarm_level": [0, 0, 0, 1, 2, 3, None][rng.integers(0, 7)],
            "longitude_deg": None if number % 50 == 49 else float(longitude),
            "latitude_deg": None if number % 50 == 49 else float(latitude), "location_valid": 1,
        }  # fmt: skip
        age_s = int(rng.integers(1, 600))
        made.append(
            {"vin": f"LMAP{number:013}", **facts, "state": None if number % 40 == 39 else state, "age_s": age_s}
        )
    return made


MADE = _made()


def _fill(db: psycopg.Connection[Any]) -> None:
    for each in MADE:
        number = rows.vehicle(db, each["vin"], **{name: each[name] for name in ("model", "fleet", "region")})
        if each["state"] is not None:
            rows.state(db, number, rows.NOW - timedelta(seconds=each["age_s"]), 1, **each["state"])


@pytest.fixture(scope="module")
def map_dsn(databases: Databases) -> Iterator[str]:
    with databases.filled(_fill) as created:
        yield created


@pytest.fixture
async def asked(map_dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    queries = Queries(map_dsn)
    async with client_of(queries) as made:
        yield made
    await queries.close()


def doing(each: dict[str, Any]) -> str:
    state = each["state"]
    if state is None:
        return "never_reported"
    if state["charge_state"] == 1:
        return "charging"
    return {1: "driving", 2: "parked", 3: "parked"}.get(state["vehicle_state"], "unknown")


def within(each: dict[str, Any], bbox: tuple[float, float, float, float]) -> bool:
    state = each["state"]
    if state is None or state["longitude_deg"] is None:
        return False
    west, south, east, north = bbox
    x, y = state["longitude_deg"], state["latitude_deg"]
    return bool(south <= y <= north and (west <= x <= east if west <= east else x >= west or x <= east))


BOXES = ["-180,-90,180,90", "115,39,118,41", "170,-20,-170,20", "121.3,31,121.7,31.5", "-10,-90,10,90"]
FACTS: list[dict[str, str]] = [{}, {"fleet": "north"}, {"fleet": "south,unknown", "model": "E1"}, {"region": "SH"}]


@pytest.mark.parametrize("box", BOXES)
async def test_single_vehicles_are_those_within(asked: httpx.AsyncClient, box: str) -> None:
    bbox = tuple(map(float, box.split(",")))
    for facts in FACTS:
        answer = await asked.get("/v1/map", params={"bbox": box, "vehicles_max": 2000, **facts})
        told = MapAnswer.model_validate(answer.json())
        wanted = [
            each for each in MADE
            if within(each, bbox) and all((each[k] or "unknown") in v.split(",") for k, v in facts.items())  # type: ignore[arg-type]
        ]  # fmt: skip
        assert [one.vin for one in told.vehicles] == [each["vin"] for each in wanted]
        assert told.matched == len(wanted)
        assert not told.clusters
        assert {one.vin: one.activity for one in told.vehicles} == {each["vin"]: doing(each) for each in wanted}


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("zoom", [0, 3, 9, 20])
async def test_clusters_add_up(asked: httpx.AsyncClient, box: str, zoom: int) -> None:
    bbox = tuple(map(float, box.split(",")))
    answer = await asked.get("/v1/map", params={"bbox": box, "vehicles_max": 0, "zoom": zoom, "region": "BJ"})
    told = MapAnswer.model_validate(answer.json())
    wanted = [each for each in MADE if within(each, bbox) and each["region"] == "BJ"]  # type: ignore[arg-type]
    counted = Counter(doing(each) for each in wanted)
    assert sum(cluster.count for cluster in told.clusters) == told.matched == len(wanted)
    for name in ("driving", "charging", "parked", "unknown"):
        assert sum(getattr(cluster, name) for cluster in told.clusters) == counted[name]
    assert sum(cluster.reporting for cluster in told.clusters) == sum(each["age_s"] <= 300 for each in wanted)
    assert sum(c.alarms for c in told.clusters) == sum((each["state"]["alarm_level"] or 0) > 0 for each in wanted)
    cells = Counter(_cell(each["state"], told.zoom) for each in wanted)
    assert sorted(cells.values()) == sorted(cluster.count for cluster in told.clusters)
    for cluster in told.clusters:
        assert cluster.west - 1e-4 <= cluster.longitude_deg <= cluster.east + 1e-4
        assert cluster.south - 1e-4 <= cluster.latitude_deg <= cluster.north + 1e-4
    assert told.unlocated == sum(
        e["state"] is not None and e["state"]["longitude_deg"] is None and e["region"] == "BJ" for e in MADE
    )


def _cell(state: dict[str, Any], zoom: int) -> tuple[int, int]:
    """Web Mercator by the book: tile coordinates at ``zoom``, four cells an edge."""
    edge = CELLS_PER_TILE * 2**zoom
    latitude = math.radians(max(-85.0511287798066, min(85.0511287798066, state["latitude_deg"])))
    x = (state["longitude_deg"] + 180) / 360
    y = (1 - math.log(math.tan(latitude) + 1 / math.cos(latitude)) / math.pi) / 2
    return min(edge - 1, int(x * edge)), min(edge - 1, max(0, int(y * edge)))


LISTS: list[tuple[dict[str, Any], Any]] = [
    ({"soc_below": 20}, lambda e: e["state"] is not None and e["state"]["soc_pct"] is not None
        and e["state"]["soc_pct"] < 20),
    ({"activity": "charging"}, lambda e: doing(e) == "charging"),
    ({"activity": "parked,unknown"}, lambda e: doing(e) in ("parked", "unknown")),
    ({"alarm_level_min": 2}, lambda e: e["state"] is not None and (e["state"]["alarm_level"] or 0) >= 2),
    ({"bbox": "115,39,118,41"}, lambda e: within(e, (115, 39, 118, 41))),
    ({"bbox": "170,-20,-170,20"}, lambda e: within(e, (170, -20, -170, 20))),
    ({"reporting": "true"}, lambda e: e["state"] is not None and e["age_s"] <= 300),
    ({"fleet": "unknown,west", "model": "E2"}, lambda e: e["fleet"] in (None, "west") and e["model"] == "E2"),
    ({"fleet": "north", "soc_below": 50, "activity": "driving", "reporting": "true", "reporting_within_s": 100},
        lambda e: e["fleet"] == "north" and doing(e) == "driving" and e["age_s"] <= 100
        and e["state"]["soc_pct"] is not None and e["state"]["soc_pct"] < 50),
]  # fmt: skip


@pytest.mark.parametrize(("given", "is_wanted"), LISTS, ids=[str(given) for given, _ in LISTS])
async def test_the_list_has_filters(asked: httpx.AsyncClient, given: dict[str, Any], is_wanted: Any) -> None:
    found: list[str] = []
    params: dict[str, Any] | None = {**given, "limit": 7}
    path = "/v1/vehicles"
    while path:
        page = VehiclePage.model_validate((await asked.get(path, params=params)).json())
        found += [one.vin for one in page.vehicles]
        path, params = page.next or "", None
    assert found == [each["vin"] for each in MADE if is_wanted(each)]
    assert found


@pytest.mark.parametrize(
    ("path", "query", "says"),
    [
        ("/v1/map", "bbox=1,2,3", "not a box"), ("/v1/map", "bbox=0,5,1,5", "not below"),
        ("/v1/map", "bbox=nan,1,2,3", "outside"), ("/v1/map", "activity=flying", "none of them"),
        ("/v1/map", "zoom=21", "zoom"), ("/v1/map", "fleet=,", "names nothing"), ("/v1/map", "boxx=1", "did you mean"),
        ("/v1/vehicles", "soc_below=-1", "soc_below"), ("/v1/vehicles", "bbox=x", "not a box"),
        ("/v1/vehicles", "reporting=no", "reporting"),
    ],
)  # fmt: skip
async def test_what_cannot_be_read_is_refused(asked: httpx.AsyncClient, path: str, query: str, says: str) -> None:
    assert says in problem(await asked.get(f"{path}?{query}"), 422).detail


async def test_a_tenant_sees_its_fleets_only(map_dsn: str) -> None:
    queries = Queries(map_dsn)
    scoped = ScopedQueries(queries, ["north"])
    async with client_of(scoped) as client:
        ours = {each["vin"] for each in MADE if each["fleet"] == "north"}
        for query in ("", "?fleet=north,south", "?region=BJ,SH"):
            told = (await client.get(f"/v1/map{query}")).json()
            assert told["vehicles"]
            assert {one["vin"] for one in told["vehicles"]} <= ours
        told = (await client.get("/v1/map?vehicles_max=0")).json()
        assert told["matched"] == sum(within(e, WORLD) for e in MADE if e["fleet"] == "north")
        assert (await client.get("/v1/map?fleet=south")).json()["matched"] == 0
        listed = (await client.get("/v1/vehicles?fleet=north,south&limit=1000")).json()["vehicles"]
        assert {one["vin"] for one in listed} == ours
    await queries.close()


def test_zooms() -> None:
    assert zoom_of(WORLD) == 2
    assert zoom_of((179.0, 0, -179.0, 1)) == zoom_of((10.0, 0, 12.0, 1))
    assert zoom_of((10.0, 0, 10.0, 1)) == 20
    for zoom in range(21):
        lower = fitting(WORLD, zoom)
        assert lower == min(zoom, 3)
        assert (CELLS_PER_TILE * 2**lower + 1) ** 2 <= 1.2 * CELLS_MAX
    assert fitting((10, 10, 10.01, 10.01), 15) == 15


def test_neighbours_on_the_curve_are_cells() -> None:
    rng = np.random.default_rng(3)
    longitude, latitude = rng.uniform(-180, 180, 500), rng.uniform(-85, 85, 500)
    place = curve(longitude, latitude)
    for zoom in (0, 5, 12, 20):
        cells = (place >> np.uint64(2 * (24 - zoom - 2))).tolist()
        books = [_cell({"longitude_deg": a, "latitude_deg": b}, zoom) for a, b in zip(longitude, latitude, strict=True)]
        assert len(set(cells)) == len(set(books)) == len(set(zip(cells, books, strict=True)))


class Clocked:
    """A database whose positions are none, and how often they were asked for."""

    def __init__(self) -> None:
        self.now, self.asked, self.away, self.took = 0.0, 0, False, 0.0

    async def run(self, query: Any, *_: Any, **__: Any) -> Table:
        if self.away:
            raise StoreUnavailable("away")
        text = query.as_string()
        if "FROM vehicle_state" in text:
            self.asked += 1
            self.now += self.took
            return Table(tuple("abcde"), [(None,) * 5])
        return Table(("a", "b"), [(None, None)] if "array_send" in text else [])


async def test_positions_are_read_while_somebody_asks_and_a_tenth_of_the_time() -> None:
    database = Clocked()
    kept = VehicleMap(database.run, lambda: database.now)
    database.took = 1.0

    async def ask() -> int:
        view = await kept.view({}, wanted=_everywhere(), zoom=0, vehicles_max=0, reporting_since=rows.NOW)
        assert view.matched == 0
        if kept._reading is not None:
            await kept._reading
        return database.asked

    assert await ask() == 1
    database.now += 8.9  # it took one second: nine of rest
    assert await ask() == 1
    database.now += 0.2
    assert await ask() == 2
    database.away = True
    database.now += 30
    with pytest.raises(StoreUnavailable):  # the answer was there; what fails is the reading that the test waits for
        await ask()
    database.now += 40  # too old to be answered
    with pytest.raises(StoreUnavailable):
        await kept.view({}, wanted=_everywhere(), zoom=0, vehicles_max=0, reporting_since=rows.NOW)
    database.away = False
    assert await ask() == 3
    await kept.close()


def _everywhere() -> Any:
    from schemas.map_view import MapFilter

    return MapFilter(WORLD)


def test_arrays_as_sent() -> None:
    # PostgreSQL: SELECT array_send(ARRAY[1, -2]::int2[])
    sent = bytes.fromhex("000000010000000000000015000000020000000100000002000100000002fffe")
    assert column(sent, "i2").tolist() == [1, -2]
    assert column(None, "f8").tolist() == []
