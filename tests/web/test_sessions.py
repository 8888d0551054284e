"""Trips and charges as answered: figures that follow from rows, pages, formats, and what the registry lacks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openpyxl
import psycopg
import pyarrow.parquet as pq
import pytest

from services.store.queries import Queries
from services.web.sessions import ChargePage, OneCharge, OneTrip, TripPage
from tests import statistics_rows as made
from tests.fix_db import Databases
from tests.web import rows
from tests.web.conftest import asking, client_of
from tests.web.test_problems import problem

KNOWN, UNKNOWN, EMPTY = "LSESS000000000001", "LSESS000000000002", "LSESS000000000003"
START = datetime(2026, 11, 20, 0, 0, tzinfo=UTC)  # 08:00 in Shanghai
HOUR = timedelta(hours=1)
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"


def fleet(db: psycopg.Connection[Any]) -> None:
    """The test vectors of the rules (4.3, 4.4), and trips enough for pages."""
    known = rows.vehicle(db, KNOWN, registered=True, battery_kwh=52.5, battery_ah=150)
    unknown = rows.vehicle(db, UNKNOWN)
    rows.vehicle(db, EMPTY)
    made.checkpoint(db, known, rows.NOW - timedelta(minutes=1))
    for vehicle in (known, unknown):
        # 350 V, 20 A, 60 km/h for an hour at 10 s: 7.000 kWh, 11.667 kWh/100 km
        made.trip(
            db, vehicle, START, START + HOUR, distance_km=60.0, untracked_km=0.0, moving_s=3600.0, out_kwh=8.0,
            regen_kwh=1.0, consumption_kwh=7.0, consumption_km=60.0, start_soc_pct=80, end_soc_pct=66,
            start_odometer_km=1000.0, end_odometer_km=1060.0, speed_max_kmh=61.5, start_longitude_deg=116.4,
            start_latitude_deg=39.9, end_longitude_deg=117.0, end_latitude_deg=39.9,
        )  # fmt: skip
        # two more hours of which the first sends nothing would be two trips; here: 300 s of a trip not covered
        made.trip(
            db, vehicle, START + 2 * HOUR, START + 3 * HOUR, covered_s=3300.0, distance_km=60.0, untracked_km=5.0,
            moving_s=1650.0, consumption_kwh=5.0, consumption_km=55.0, out_kwh=5.0, regen_kwh=0.0, start_soc_pct=66,
            end_soc_pct=40,
        )  # fmt: skip
        # 60 A, 350 V, 1 h, 20 → 60 % of 150 Ah: 21.0 kWh, 60.0 Ah, fast
        made.charge(
            db, vehicle, START + 4 * HOUR, START + 5 * HOUR, energy_kwh=21.0, charge_ah=60.0, start_soc_pct=20,
            end_soc_pct=60, mean_power_kw=21.0, max_power_kw=21.0, middle_power_kw=21.0, middle_coverage=1.0,
            mean_temp_c=25.0, max_temp_c=30.0, capacity_ah=150.0, odometer_km=1120.0,
        )  # fmt: skip
        made.charge(
            db, vehicle, START + 6 * HOUR, START + 10 * HOUR, energy_kwh=12.0, charge_ah=34.0, start_soc_pct=10,
            end_soc_pct=33, mean_power_kw=3.0, max_power_kw=3.3, middle_power_kw=3.0, middle_coverage=1.0,
        )  # fmt: skip
        made.charge(
            db, vehicle, START + 11 * HOUR, START + 12 * HOUR, covered_s=1200.0, middle_power_kw=30.0,
            middle_coverage=0.4, start_soc_pct=33, end_soc_pct=96,
        )  # fmt: skip
    made.trip(
        db, known, rows.NOW - timedelta(minutes=20), rows.NOW - timedelta(minutes=1), settled_on=None, end_cause=0,
        distance_km=0.6, moving_s=900.0, consumption_kwh=0.1, consumption_km=0.6, revision=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sessions_dsn(databases: Databases) -> Iterator[str]:
    with databases.filled(fleet) as created:
        yield created


@pytest.fixture
async def api(sessions_dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(sessions_dsn) as client:
        yield client


async def get(client: httpx.AsyncClient, path: str, **parameters: Any) -> dict[str, Any]:
    answer = await client.get(path, params=parameters or None)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def path_of(vin: str, what: str) -> str:
    return f"/v1/vehicles/{vin}/{what}"


# -- trips -------------------------------------------------------------------------------------------
async def test_trips_carry_what_follows_from_them(api: httpx.AsyncClient) -> None:
    page = await get(api, path_of(KNOWN, "trips"))
    TripPage.model_validate(page)
    first, second, last = page["trips"]
    assert (page["count"], page["next"], page["vin"]) == (3, None, KNOWN)
    assert (first["start_at"], first["end_at"]) == ("2026-11-20T08:00:00+08:00", "2026-11-20T09:00:00+08:00")
    assert (first["duration_s"], first["coverage"], first["end_cause"]) == (3600, 1.0, "off")
    assert (first["mean_speed_kmh"], first["mean_moving_speed_kmh"]) == (60, 60)
    assert first["kwh_per_100km"] == pytest.approx(11.667, abs=5e-4)
    assert first["gross_kwh_per_100km"] == pytest.approx(8 / 0.6, abs=5e-4)
    assert (first["regen_ratio"], first["soc_used_pct"]) == (0.125, 14)
    assert (first["energy_by_soc_kwh"], first["energy_check"]) == (7.35, "agrees")
    assert (first["settled"], first["in_progress"], first["revision"]) == (True, False, 1)
    # 13.65 kWh by SOC against 5.0 measured: 300 s of it are not covered
    assert (second["energy_check"], second["coverage"]) == ("differs", round(3300 / 3600, 6))
    assert (second["mean_speed_kmh"], second["mean_moving_speed_kmh"]) == (60, 120)
    assert (last["settled"], last["in_progress"], last["revision"], last["end_cause"]) == (False, True, 3, "open")
    assert last["kwh_per_100km"] is None, "below 1 km there is no consumption"


async def test_answers_say_how_new_they_are_and_what_the_units_are(api: httpx.AsyncClient) -> None:
    page = await get(api, path_of(KNOWN, "trips"))
    assert page["newest_data_time"] == "2026-11-24T11:59:00+08:00"
    assert page["settled_through"] == "2026-11-24T11:57:00+08:00"
    assert page["coverage"] == round((3600 + 3300 + 1140) / (3600 + 3600 + 1140), 6)
    assert page["needs"] == []
    units = {column["name"]: column["unit"] for column in page["columns"]}
    assert list(units) == list(page["trips"][0])
    assert (units["kwh_per_100km"], units["duration_s"], units["start_soc_pct"]) == ("kWh/100 km", "s", "%")
    assert all(column["text"] for column in page["columns"])


async def test_what_the_registry_lacks_is_named_and_not_guessed(api: httpx.AsyncClient) -> None:
    trips = await get(api, path_of(UNKNOWN, "trips"))
    assert [trip["energy_check"] for trip in trips["trips"]] == [None, None]
    assert [need["fact"] for need in trips["needs"]] == ["battery_kwh"]
    assert "battery_kwh" in trips["needs"][0]["how_to_fix"]
    charges = await get(api, path_of(UNKNOWN, "charges"))
    assert [(c["speed"], c["speed_unknown_for"]) for c in charges["charges"]] == [
        ("fast", None),
        ("unknown", "battery_kwh"),
        ("unknown", "coverage"),
    ]
    assert any("C-rate" in purpose for purpose in charges["needs"][0]["for"])
    assert charges["newest_data_time"] is None, "nothing of it is folded"


async def test_charges_carry_what_follows_from_them(api: httpx.AsyncClient) -> None:
    page = await get(api, path_of(KNOWN, "charges"))
    ChargePage.model_validate(page)
    fast, slow, gappy = page["charges"]
    assert (fast["speed"], fast["c_rate_per_h"], fast["deep"], fast["soc_rise_pct"]) == ("fast", 0.4, False, 40)
    assert (fast["energy_kwh"], fast["charge_ah"], fast["capacity_ah"]) == (21, 60, 150)
    assert (slow["speed"], slow["deep"], slow["coverage"]) == ("slow", True, 1)
    assert (gappy["speed"], gappy["deep"], gappy["coverage"]) == ("unknown", True, round(1 / 3, 6))


async def test_small_batteries_are_judged_by_c_rate(db: psycopg.Connection[Any], queries: Queries) -> None:
    for vin, kwh in (("LSMALL00000000001", 10.0), ("LSMALL00000000002", 15.0), ("LSMALL00000000003", 20.0)):
        vehicle = rows.vehicle(db, vin, battery_kwh=kwh)
        made.charge(db, vehicle, START, START + HOUR, middle_power_kw=4.0, middle_coverage=1.0)
    async with client_of(queries) as client:
        found = [
            (await get(client, path_of(f"LSMALL0000000000{n}", "charges")))["charges"][0]["speed"] for n in (1, 2, 3)
        ]
    assert found == ["fast", "slow", "slow"]


async def test_a_models_battery_counts_where_the_vehicle_has_none(
    db: psycopg.Connection[Any], queries: Queries
) -> None:
    made.insert(db, "models", model="M1", battery_kwh=50.0)
    vehicle = rows.vehicle(db, KNOWN, model="M1")
    made.charge(db, vehicle, START, START + HOUR, middle_power_kw=10.0, middle_coverage=1.0)
    async with client_of(queries) as client:
        page = await get(client, path_of(KNOWN, "charges"))
    assert (page["charges"][0]["speed"], page["charges"][0]["c_rate_per_h"], page["needs"]) == ("slow", 0.2, [])


async def test_one_session_by_its_id(api: httpx.AsyncClient) -> None:
    for table, model in (("trips", OneTrip), ("charges", OneCharge)):
        word = table[:-1]
        listed = (await get(api, path_of(KNOWN, table)))[table][0]
        one = await get(api, path_of(KNOWN, f"{table}/{listed[f'{word}_id']}"))
        model.model_validate(one)
        assert one[word] == listed
        assert one["units"]["duration_s"] == "s"
        # another vehicle's session is not found under this one
        found = problem(await api.get(path_of(EMPTY, f"{table}/{listed[f'{word}_id']}")), 404)
        assert found.type.endswith(f"no-such-{word}")


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_pages_have_no_holes_and_no_doubles(api: httpx.AsyncClient, limit: int) -> None:
    whole = (await get(api, path_of(KNOWN, "trips")))["trips"]
    seen: list[dict[str, Any]] = []
    page = await get(api, path_of(KNOWN, "trips"), limit=limit)
    while True:
        seen += page["trips"]
        assert page["count"] <= limit
        if page["next"] is None:
            break
        page = await get(api, page["next"])
    assert seen == whole


async def test_the_range_is_half_open_and_by_start(api: httpx.AsyncClient) -> None:
    wanted = {"from": "2026-11-20T08:00", "to": "2026-11-20T10:00"}
    assert len((await get(api, path_of(KNOWN, "trips"), **wanted))["trips"]) == 1
    wanted = {"from": "2026-11-20T08:00:01", "to": "2026-11-20T10:00:01"}
    assert len((await get(api, path_of(KNOWN, "trips"), **wanted))["trips"]) == 1
    # a life of a vehicle can be asked for at once
    assert (await get(api, path_of(KNOWN, "trips"), **{"from": "2016-01-01"}))["count"] == 3


async def test_a_vehicle_without_sessions_answers_with_none(api: httpx.AsyncClient) -> None:
    for table in ("trips", "charges"):
        page = await get(api, path_of(EMPTY, table))
        assert (page[table], page["count"], page["coverage"], page["newest_data_time"]) == ([], 0, None, None)
        for kind in ("csv", "xlsx", "parquet"):
            assert (await api.get(path_of(EMPTY, table), params={"format": kind})).status_code == 200


# -- what cannot be asked ------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["trips", "charges", "trips/1", "charges/1", "trips/1/track", "charges/1/curve",
                                  "days", "hours", "completeness", "timeline", "battery"])  # fmt: skip
async def test_a_vehicle_that_is_not_known(api: httpx.AsyncClient, what: str) -> None:
    found = problem(await api.get(path_of("LNONE000000000001", what)), 404)
    assert found.type.endswith("no-such-vehicle")


@pytest.mark.parametrize(
    ("what", "query", "says"),
    [
        ("trips", "from=yesterday", ["from", "yesterday", "ISO 8601"]),
        ("trips", "from=2026-11-25&to=2026-11-24", ["from", "before"]),
        ("trips", "from=1990-01-01", ["from", "7320 days"]),
        ("trips", "limit=0", ["limit"]),
        ("trips", "limit=100000", ["web.rows_max"]),
        ("trips", "cursor=abc", ["cursor", "next_cursor"]),
        ("charges", "cursor=1-2-3", ["cursor"]),
        ("trips", "format=pdf", ["format", "pdf", "json, csv, xlsx or parquet"]),
        ("trips", "form=csv", ["form", "did you mean format"]),
        ("trips/0", "", ["trip_id"]),
        ("trips/x", "", ["trip_id"]),
        ("days", "from=2026-13-01", ["from", "2026-13-01", "local day"]),
        ("days", "from=2026-11-02&to=2026-11-01", ["from", "after"]),
        ("days", "fields=distance", ["distance", "did you mean", "distance_km"]),
        ("days", "cursor=5", ["cursor"]),
        ("hours", "fields=soc_s", ["soc_s", "per day only"]),
        ("completeness", "by=week", ["by", "week", "day or hour"]),
        ("timeline", "day=2199-01-01", ["day", "has not begun"]),
        ("timeline", "day=today", ["day", "local day"]),
        ("battery", "table=cells", ["table", "capacity, spread"]),
    ],
)
async def test_what_cannot_be_used_is_refused_with_a_reason(
    api: httpx.AsyncClient, what: str, query: str, says: list[str]
) -> None:
    answer = await api.get(f"{path_of(KNOWN, what)}?{query}")
    found = problem(answer, 422)
    for text in says:
        assert text in f"{found.detail} {found.how_to_fix}"


# -- formats -------------------------------------------------------------------------------------------
async def test_csv_says_what_json_says(api: httpx.AsyncClient) -> None:
    expected = await get(api, path_of(KNOWN, "trips"), limit=2)
    answer = await api.get(path_of(KNOWN, "trips"), params={"limit": 2}, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv; header=present; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="trips-{KNOWN}.csv"'
    assert answer.headers["x-next-cursor"] == expected["next_cursor"]
    assert answer.headers["x-newest-data-time"] == expected["newest_data_time"]
    found = list(csv.DictReader(io.StringIO(answer.text)))
    for got, row in zip(found, expected["trips"], strict=True):
        assert list(got) == list(row)
        assert (got["start_at"], got["day"], got["settled"]) == (row["start_at"], row["day"], "true")
        assert float(got["kwh_per_100km"]) == row["kwh_per_100km"]
        assert (got["start_odometer_km"] or None) == (
            None if row["start_odometer_km"] is None else str(row["start_odometer_km"])
        )


async def test_excel_has_types_units_and_what_the_answer_says_of_itself(api: httpx.AsyncClient) -> None:
    expected = await get(api, path_of(KNOWN, "trips"))
    answer = await api.get(path_of(KNOWN, "trips"), params={"format": "xlsx"})
    assert answer.headers["content-type"] == XLSX
    book = openpyxl.load_workbook(io.BytesIO(answer.content))
    sheet = book["data"]
    heads = [cell.value for cell in sheet[1]]
    assert heads[:1] + heads[4:7] == ["trip_id", "in_progress", "start_at [Asia/Shanghai]", "end_at [Asia/Shanghai]"]
    assert "kwh_per_100km [kWh/100 km]" in heads
    names = [head.split(" ")[0] for head in heads]
    assert names == list(expected["trips"][0])
    for got, row in zip(sheet.iter_rows(min_row=2, values_only=True), expected["trips"], strict=True):
        cells = dict(zip(names, got, strict=True))
        assert cells["start_at"] == datetime.fromisoformat(row["start_at"]).replace(tzinfo=None)
        assert cells["day"] == datetime.fromisoformat(row["day"])
        assert cells["settled"] is row["settled"]
        assert cells["end_cause"] == row["end_cause"]
        assert cells["kwh_per_100km"] == row["kwh_per_100km"]
        assert isinstance(cells["trip_id"], int)
    about = {row[0]: row[2] for row in book["about"].iter_rows(values_only=True) if row[0] and not row[1]}
    assert (about["vin"], about["newest_data_time"]) == (KNOWN, expected["newest_data_time"])
    described = {row[0]: row[1] for row in book["about"].iter_rows(values_only=True) if row[1]}
    assert described["distance_km"] == "km"


async def test_parquet_has_types_and_units(api: httpx.AsyncClient) -> None:
    expected = await get(api, path_of(KNOWN, "charges"))
    answer = await api.get(
        path_of(KNOWN, "charges"), headers={"Accept": "application/vnd.apache.parquet, application/json;q=0.5"}
    )
    table = pq.read_table(io.BytesIO(answer.content))
    assert [str(table.schema.field(name).type) for name in ("charge_id", "day", "start_at", "deep", "energy_kwh")] == [
        "int64", "date32[day]", "timestamp[us, tz=Asia/Shanghai]", "bool", "double",
    ]  # fmt: skip
    assert table.schema.field("energy_kwh").metadata[b"unit"] == b"kWh"
    assert json.loads(table.schema.metadata[b"nevstream"])["vin"] == KNOWN
    for got, row in zip(table.to_pylist(), expected["charges"], strict=True):
        assert got["start_at"] == datetime.fromisoformat(row["start_at"])
        assert {name: got[name] for name in ("speed", "deep", "energy_kwh", "coverage")} == {
            name: row[name] for name in ("speed", "deep", "energy_kwh", "coverage")
        }


async def test_a_vin_cannot_become_a_formula(db: psycopg.Connection[Any], queries: Queries) -> None:
    """A VIN comes from the wire; in a sheet it is text, whatever it begins with."""
    vin = "=HYPERLINK(1)"
    vehicle = rows.vehicle(db, vin)
    made.trip(db, vehicle, START, START + HOUR)
    async with client_of(queries) as client:
        answer = await client.get(path_of(vin, "trips"), params={"format": "xlsx"})
    assert answer.headers["content-disposition"] == 'attachment; filename="trips--HYPERLINK-1-.xlsx"'
    sheet = openpyxl.load_workbook(io.BytesIO(answer.content))["about"]
    [cell] = [row[2] for row in sheet.iter_rows() if row[0].value == "vin"]
    assert (cell.value, cell.data_type) == (vin, "s")
