"""Days, hours, completeness and the timeline of a day."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import openpyxl
import psycopg
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.statistics.measures import MEASURES, TALLIES
from services.store.queries import Queries
from services.web.completeness import DayLedger
from services.web.days import DayPage, HourPage
from services.web.timeline import Timeline, laid
from tests import statistics_rows as made
from tests.fix_db import Databases
from tests.web import rows
from tests.web.conftest import asking, client_of
from tests.web.test_sessions import get, path_of

VIN, ON_CHANGE, EMPTY = "LDAYS000000000001", "LDAYS000000000002", "LDAYS000000000003"
TODAY = date(2026, 11, 24)  # of rows.NOW, noon in Shanghai
MIDNIGHT = datetime(2026, 11, 23, 16, tzinfo=UTC)


def fleet(db: psycopg.Connection[Any]) -> None:
    one = rows.vehicle(db, VIN)
    two = rows.vehicle(db, ON_CHANGE, upload="on_change")
    rows.vehicle(db, EMPTY)
    for vehicle in (one, two):
        made.checkpoint(db, vehicle, rows.NOW - timedelta(minutes=2))
        for number in (10, 9, 8, 2, 1, 0):  # days ago; none in between
            made.day(
                db, vehicle, TODAY - timedelta(days=number), records=8000 + number, rows=8100, reissued=81, repeated=9,
                late=90, expected=8640.0, missing_s=600.0, covered_s=80_000.0, gap_s=6_400.0, gap_max_s=3_000.0,
                distance_km=100.0 + number, consumption_kwh=12.0, consumption_km=96.0, out_kwh=15.0, regen_kwh=3.0,
                standing_kwh=0.6, standing_s=7200.0, soc_min_pct=20.0, nominal_s=10.0, soc_s=list(range(10)),
            )  # fmt: skip
        for number in range(5):
            made.hour(
                db, vehicle, MIDNIGHT + timedelta(hours=number), records=300, rows=310, reissued=0, repeated=0,
                late=1, expected=360.0, missing_s=600.0, covered_s=3000.0, gap_s=600.0, distance_km=float(number),
            )  # fmt: skip
    made.resends(db, one, TODAY, duplicates=90, conflicts=2)


@pytest.fixture(scope="module")
def days_dsn(databases: Databases) -> Iterator[str]:
    with databases.filled(fleet) as created:
        yield created


@pytest.fixture
async def api(days_dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(days_dsn) as client:
        yield client


# -- days and hours ----------------------------------------------------------------------------------
async def test_days_are_what_is_kept_and_ratios_are_of_their_parts(api: httpx.AsyncClient) -> None:
    page = await get(api, path_of(VIN, "days"))
    DayPage.model_validate(page)
    assert (page["from"], page["to"], page["count"], page["exempt"]) == ("2026-10-26", "2026-11-24", 6, None)
    last = page["days"][-1]
    assert (last["day"], last["settled"], page["days"][-2]["settled"]) == ("2026-11-24", False, True)
    assert (last["records"], last["distance_km"], last["kwh_per_100km"]) == (8000, 100, 12.5)
    assert last["coverage"] == round(80_000 / 86_400, 6)
    assert last["missing_rate"] == round(1 - 8000 / 8640, 6)
    assert last["charge_kwh"] is None, "not known is not nought"
    assert page["coverage"] == round(80_000 / 86_400, 6)


async def test_every_measure_can_be_asked_for(api: httpx.AsyncClient) -> None:
    catalogue = (await get(api, "/v1/measures"))["measures"]
    names = [measure["name"] for measure in catalogue]
    assert {measure.name for measure in MEASURES} | {tally.name for tally in TALLIES} <= set(names)
    page = await get(api, path_of(VIN, "days"), fields="all")
    tallies = {tally.name for tally in TALLIES}
    assert list(page["days"][0])[2:] == [name for name in names if name not in tallies]
    page = await get(api, path_of(VIN, "days"), fields=",".join(names))
    DayPage.model_validate(page)
    assert list(page["days"][0])[2:] == names == page["fields"]
    assert page["days"][0]["soc_s"] == list(range(10))
    assert page["days"][0]["edition"] == 2016
    assert page["days"][0]["standing_kw"] == 0.3
    hourly = [measure["name"] for measure in catalogue if measure["by"] == "hour"]
    page = await get(api, path_of(VIN, "hours"), fields=",".join(hourly))
    HourPage.model_validate(page)
    assert list(page["hours"][0])[2:] == hourly


async def test_hours_of_a_range(api: httpx.AsyncClient) -> None:
    wanted = {"from": "2026-11-24T01:00", "to": "2026-11-24T03:00", "fields": "distance_km, coverage"}
    page = await get(api, path_of(VIN, "hours"), **wanted)
    assert page["hours"] == [
        {"hour": f"2026-11-24T0{n}:00:00+08:00", "settled": False, "distance_km": n, "coverage": round(5 / 6, 6)}
        for n in (1, 2)
    ]


@pytest.mark.parametrize("what", ["days", "hours"])
async def test_pages_have_no_holes_and_no_doubles(api: httpx.AsyncClient, what: str) -> None:
    whole = (await get(api, path_of(VIN, what)))[what]
    seen: list[dict[str, Any]] = []
    page = await get(api, path_of(VIN, what), limit=2)
    while True:
        seen += page[what]
        if page["next"] is None:
            break
        page = await get(api, page["next"])
    assert seen == whole
    assert len(whole) in (5, 6)


async def test_days_in_the_other_formats(api: httpx.AsyncClient) -> None:
    wanted = {"fields": "distance_km,soc_s,first_at,edition"}
    expected = (await get(api, path_of(VIN, "days"), **wanted))["days"]
    found = list(
        csv.DictReader(io.StringIO((await api.get(path_of(VIN, "days"), params={**wanted, "format": "csv"})).text))
    )
    assert [row["soc_s"] for row in found] == ["0 1 2 3 4 5 6 7 8 9"] * 6
    table = pq.read_table(
        io.BytesIO((await api.get(path_of(VIN, "days"), params={**wanted, "format": "parquet"})).content)
    )
    assert [row["soc_s"] for row in table.to_pylist()] == [row["soc_s"] for row in expected]
    assert [row["day"].isoformat() for row in table.to_pylist()] == [row["day"] for row in expected]
    content = (await api.get(path_of(VIN, "days"), params={**wanted, "format": "xlsx"})).content
    sheet = openpyxl.load_workbook(io.BytesIO(content))["data"]
    assert [cell.value for cell in sheet[1]] == [
        "day", "settled", "distance_km [km]", "soc_s [s]", "first_at [Asia/Shanghai]", "edition",
    ]  # fmt: skip
    assert sheet["C2"].value == 110
    assert sheet["F2"].value == 2016


# -- completeness ------------------------------------------------------------------------------------
async def test_the_ledger_of_days(api: httpx.AsyncClient) -> None:
    page = await get(api, path_of(VIN, "completeness"), **{"from": "2026-11-01"})
    DayLedger.model_validate(page)
    assert [row["day"] for row in page["days"]] == [f"2026-11-{d}" for d in range(14, 25)]
    assert [row["state"] for row in page["days"]] == ["settled"] * 3 + ["no_data"] * 5 + ["settled"] * 2 + ["open"]
    empty, last = page["days"][4], page["days"][-1]
    assert (empty["received"], empty["expected"], empty["missing_rate"], empty["coverage"]) == (0, None, None, None)
    assert last == {
        "day": "2026-11-24", "state": "open", "expected": 8640, "received": 8000,
        "missing_rate": round(1 - 8000 / 8640, 6), "missing_s": 600, "covered_s": 80_000, "gap_s": 6_400,
        "gap_max_s": 3_000, "coverage": round(80_000 / 86_400, 6), "rows": 8100, "reissued": 81, "late": 90,
        "repeated": 9, "duplicates": 90, "conflicts": 2, "nominal_s": 10,
    }  # fmt: skip
    total = page["total"]
    assert (total["rows"], total["duplicates"], total["expected"]) == (6 * 8100, 90, 6 * 8640)
    assert total["missing_rate"] == round(1 - (48_030 / (6 * 8640)), 6)
    assert total["reissued_rate"] == 0.01
    assert total["duplicate_rate"] == round(90 / (6 * 8100 + 90), 6)


async def test_the_ledger_of_hours(api: httpx.AsyncClient) -> None:
    page = await get(api, path_of(VIN, "completeness"), by="hour", **{"from": "2026-11-24"})
    assert [row["hour"][11:13] for row in page["hours"]] == ["00", "01", "02", "03", "04"]
    assert page["hours"][0]["missing_rate"] == round(1 - 300 / 360, 6)
    assert "duplicates" not in page["hours"][0], "they are counted per day"
    assert page["total"]["received"] == 1500
    first = await get(api, path_of(VIN, "completeness"), by="hour", limit=2, **{"from": "2026-11-24"})
    second = await get(api, first["next"])
    assert first["hours"] + second["hours"] == page["hours"][:4]


async def test_pages_of_the_ledger(api: httpx.AsyncClient) -> None:
    whole = (await get(api, path_of(VIN, "completeness"), **{"from": "2026-11-14"}))["days"]
    seen: list[dict[str, Any]] = []
    page = await get(api, path_of(VIN, "completeness"), limit=4, **{"from": "2026-11-14"})
    while True:
        seen += page["days"]
        if page["next"] is None:
            break
        page = await get(api, page["next"])
    assert seen == whole


async def test_pages_before_the_first_day_lead_on_to_it(api: httpx.AsyncClient) -> None:
    """A range that begins before the vehicle did must not end with its first, empty page."""
    page = await get(api, path_of(VIN, "completeness"), limit=5, **{"from": "2026-10-01"})
    seen = page["days"]
    for _ in range(20):
        if page["next"] is None:
            break
        page = await get(api, page["next"])
        seen += page["days"]
    assert len(seen) == 11


async def test_vehicles_that_send_on_change_are_exempt_and_it_is_said(api: httpx.AsyncClient) -> None:
    for what in ("completeness", "days"):
        page = await get(api, path_of(ON_CHANGE, what))
        assert page["exempt"].startswith("on_change")
        assert {row["missing_rate"] for row in page["days"]} == {None}
        assert {row["expected"] for row in page["days"]} == {None}
    assert (await get(api, path_of(ON_CHANGE, "completeness")))["total"]["expected"] is None


async def test_a_vehicle_without_statistics(api: httpx.AsyncClient) -> None:
    for what, key in (("days", "days"), ("hours", "hours"), ("completeness", "days")):
        page = await get(api, path_of(EMPTY, what))
        assert (page[key], page["count"], page["coverage"], page["next"]) == ([], 0, None, None)


# -- timeline ----------------------------------------------------------------------------------------
def moment(hours: float) -> datetime:
    return MIDNIGHT + timedelta(hours=hours)


@pytest.fixture
async def day_of(db: psycopg.Connection[Any], queries: Queries) -> AsyncIterator[httpx.AsyncClient]:
    """01:00 to 09:00 at 10 min (nominal 300 s, so that 20 min are a gap): a gap, a trip, a charge, parked."""
    rows.days(db, MIDNIGHT.date(), TODAY)
    for vin, upload in ((VIN, "periodic"), (ON_CHANGE, "on_change")):
        one = rows.vehicle(db, vin, upload=upload)
        made.checkpoint(db, one, moment(9))
        made.day(db, one, TODAY, nominal_s=300.0)
        for minute in range(60, 9 * 60 + 1, 10):
            if not 120 < minute < 180:  # nothing between 2 and 3
                rows.report(db, one, moment(minute / 60), speed_kmh=0.0)
        made.trip(db, one, moment(1.5), moment(3.5))
        made.charge(db, one, moment(4), moment(6))
        made.charge(db, one, moment(-3), moment(-1))  # the day before
    async with client_of(queries) as client:
        yield client


async def test_a_day_end_to_end(day_of: httpx.AsyncClient) -> None:
    page = await get(day_of, path_of(VIN, "timeline"))
    Timeline.model_validate(page)
    assert page["gap_limit_s"] == 1200
    assert [(s["state"], s["start_at"][11:16], s["end_at"][11:16]) for s in page["segments"]] == [
        ("gap", "00:00", "01:00"),
        ("parked", "01:00", "01:30"),
        ("driving", "01:30", "02:00"),
        ("gap", "02:00", "03:00"),
        ("driving", "03:00", "03:30"),
        ("parked", "03:30", "04:00"),
        ("charging", "04:00", "06:00"),
        ("parked", "06:00", "09:00"),
        ("gap", "09:00", "12:00"),
    ]
    driving = [s["trip_id"] for s in page["segments"] if s["state"] == "driving"]
    assert len(set(driving)) == 1
    assert driving[0] is not None
    assert page["seconds"] == {"gap": 5 * 3600, "parked": 4 * 3600, "driving": 3600, "charging": 7200}
    assert page["coverage"] == round(7 / 12, 6)
    assert page["ends_at"] == "2026-11-24T12:00:00+08:00", "the day is not over"


async def test_gaps_are_normal_for_vehicles_that_send_on_change(day_of: httpx.AsyncClient) -> None:
    page = await get(day_of, path_of(ON_CHANGE, "timeline"), day="2026-11-24")
    assert [s["state"] for s in page["segments"]] == ["gap", "parked", "driving", "parked", "charging", "parked", "gap"]
    assert page["exempt"].startswith("on_change")


async def test_a_day_without_data_is_one_gap(day_of: httpx.AsyncClient) -> None:
    page = await get(day_of, path_of(VIN, "timeline"), day="2026-11-01")
    assert [(s["state"], s["duration_s"]) for s in page["segments"]] == [("gap", 86_400)]
    assert page["coverage"] == 0


async def test_what_is_stored_but_not_folded_yet_is_pending(db: psycopg.Connection[Any], queries: Queries) -> None:
    rows.days(db, MIDNIGHT.date(), TODAY)
    one = rows.vehicle(db, VIN)
    for second in range(0, 1801, 30):
        rows.report(db, one, moment(8) + timedelta(seconds=second))
    made.checkpoint(db, one, moment(8) + timedelta(seconds=600))
    async with client_of(queries) as client:
        page = await get(client, path_of(VIN, "timeline"))
    assert [(s["state"], s["start_at"][11:16]) for s in page["segments"]] == [
        ("gap", "00:00"), ("parked", "08:00"), ("pending", "08:10"), ("gap", "08:30"),
    ]  # fmt: skip


async def test_a_record_that_is_not_due_yet_is_no_gap(db: psycopg.Connection[Any], queries: Queries) -> None:
    rows.days(db, MIDNIGHT.date(), TODAY)
    one = rows.vehicle(db, VIN)
    for second in range(0, 1801, 30):
        rows.report(db, one, rows.NOW - timedelta(seconds=1850 - second))
    made.checkpoint(db, one, rows.NOW - timedelta(seconds=50))
    async with client_of(queries) as client:
        page = await get(client, path_of(VIN, "timeline"))
    assert [s["state"] for s in page["segments"]] == ["gap", "parked"]
    assert page["ends_at"] == "2026-11-24T11:59:10+08:00"


layers = st.lists(
    st.tuples(st.integers(-5, 30), st.integers(-5, 30), st.sampled_from("abc"), st.none(), st.none()), max_size=8
)


@given(layers)
def test_laying_layers_agrees_with_second_by_second(given_layers: list[tuple[int, int, str, None, None]]) -> None:
    begin, end = moment(0), moment(0) + timedelta(seconds=24)
    seconds = [begin + timedelta(seconds=n) for n in range(24)]
    found = list(
        laid(
            [
                (begin + timedelta(seconds=a), begin + timedelta(seconds=b), s, None, None)
                for a, b, s, *_ in given_layers
            ],
            begin,
            end,
        )
    )
    expected = [
        next((state for a, b, state, *_ in reversed(given_layers) if a <= n < b), "gap") for n in range(len(seconds))
    ]
    assert [next(s[2] for s in found if s[0] <= time < s[1]) for time in seconds] == expected
    assert (found[0][0], found[-1][1]) == (begin, end)
    assert all(one[1] == two[0] and one[2] != two[2] for one, two in pairwise(found))
