"""Telemetry: ranges, fields, pages, buckets and the three formats."""

from __future__ import annotations

import csv
import io
import json
import statistics
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pyarrow.parquet as pq
import pytest

from services.store.queries import Queries
from services.web import models
from tests.web import rows
from tests.web.conftest import client_of

PATH = f"/v1/vehicles/{rows.VIN}/telemetry"
HOUR = {"from": "2026-11-24T11:00:00+08:00", "to": "2026-11-24T12:00:00+08:00"}


async def get(client: httpx.AsyncClient, path: str = PATH, **parameters: Any) -> dict[str, Any]:
    answer = await client.get(path, params=parameters or None)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_rows_of_a_range_with_what_they_are(client: httpx.AsyncClient) -> None:
    answer = await get(client, **HOUR, fields="soc_pct,speed_kmh")
    models.Telemetry.model_validate(answer)
    assert (answer["vin"], answer["from"], answer["to"]) == (rows.VIN, HOUR["from"], HOUR["to"])
    assert (answer["fields"], answer["count"], answer["next"]) == (["soc_pct", "speed_kmh"], 360, None)
    assert answer["newest_data_time"] == "2026-11-24T11:59:50+08:00"
    assert answer["rows"][0] == {
        "time": "2026-11-24T11:00:00+08:00", "kind": "realtime", "part": 0, "soc_pct": 90, "speed_kmh": None,
    }  # fmt: skip
    assert answer["rows"][1]["speed_kmh"] == rows.driven(10)["speed_kmh"]


async def test_the_range_is_half_open(client: httpx.AsyncClient) -> None:
    answer = await get(client, **{"from": "2026-11-24T11:10:00+08:00", "to": "2026-11-24T11:10:10+08:00"})
    assert [row["time"] for row in answer["rows"]] == ["2026-11-24T11:10:00+08:00"]


@pytest.mark.parametrize(
    "given",
    [
        "2026-11-24T03:30:00Z",
        "2026-11-24T11:30:00",  # the fleet's time zone
        "2026-11-24 11:30",
        "2026-11-24T11:30:00+08:00",
        "2026-11-24T11:30:00 08:00",  # + that arrived as a space
    ],
)
async def test_times_are_read_as_people_write_them(client: httpx.AsyncClient, given: str) -> None:
    answer = await get(client, **{"from": given, "to": HOUR["to"], "limit": 1})
    assert answer["rows"][0]["time"] == "2026-11-24T11:30:00+08:00"


async def test_default_range_is_the_last_hour(client: httpx.AsyncClient) -> None:
    answer = await get(client)
    assert (answer["from"], answer["to"], answer["count"]) == (HOUR["from"], HOUR["to"], 360)


@pytest.mark.parametrize("limit", [1, 7, 359, 360, 361])
async def test_pages_have_no_holes_and_no_doubles(client: httpx.AsyncClient, limit: int) -> None:
    whole = await get(client, **HOUR, fields="odometer_km")
    seen: list[dict[str, Any]] = []
    page = await get(client, fields="odometer_km", limit=limit)
    pages = 1
    while True:
        seen += page["rows"]
        assert len(page["rows"]) <= limit
        if page["next"] is None or (limit == 1 and pages == 20):  # one by one, twenty are enough
            break
        page = await get(client, page["next"])
        pages += 1
    assert seen == whole["rows"][: len(seen)]
    assert len(seen) == (20 if limit == 1 else 360)


async def test_pages_go_through_rows_of_one_time(db: psycopg.Connection[Any], queries: Queries) -> None:
    rows.days(db, rows.NOW.date(), rows.NOW.date())
    one = rows.vehicle(db, rows.VIN)
    time = rows.NOW - timedelta(minutes=1)
    keys = [(kind, part) for kind in (2, 3) for part in (0, 1, 201)]
    for kind, part in keys:
        rows.report(db, one, time, kind=kind, part=part)
    seen: list[tuple[str, int]] = []
    async with client_of(queries) as client:
        following: str | None = f"{PATH}?limit=1"
        while following:
            page = await get(client, following)
            seen += [(row["kind"], row["part"]) for row in page["rows"]]
            following = page["next"]
    assert seen == [({2: "realtime", 3: "reissue"}[kind], part) for kind, part in keys]


async def test_lists_and_flaws(client: httpx.AsyncClient) -> None:
    answer = await get(client, **HOUR, fields="cells,temps_c,flaws,edition,door,received_at", limit=1)
    assert answer["fields"] == ["cells_v", "temps_c", "flaws", "edition", "door", "received_at"]
    [row] = answer["rows"]
    assert row["cells_v"] == [[(3700 + cell * 7 % 23) / 1000 for cell in range(96)]]
    assert row["temps_c"] == [[24, 25, 26, None]]
    assert row["flaws"] == {"insulation_resistance_kohm": "invalid", "speed_kmh": "invalid"}
    assert (row["edition"], row["door"], row["received_at"]) == (2016, "mqtt", "2026-11-24T11:00:00.120000+08:00")


async def test_all_fields(client: httpx.AsyncClient) -> None:
    answer = await get(client, **HOUR, fields="all", limit=1)
    catalogue = (await client.get("/v1/signals")).json()
    assert answer["fields"] == [signal["name"] for signal in catalogue["signals"]]
    assert list(answer["rows"][0]) == ["time", "kind", "part", *answer["fields"]]


# -- buckets -----------------------------------------------------------------------------------------
def expected_buckets(length_s: int) -> dict[datetime, list[dict[str, Any]]]:
    found: dict[datetime, list[dict[str, Any]]] = {}
    for second in range(0, 3600, 10):
        time = rows.NOW - timedelta(hours=1) + timedelta(seconds=second)
        start = datetime.fromtimestamp(time.timestamp() // length_s * length_s, UTC)
        found.setdefault(start, []).append(dict(rows.driven(second)))
    return found


@pytest.mark.parametrize(("bucket", "length_s"), [("5m", 300), ("90s", 90), ("1h", 3600)])
async def test_buckets_agree_with_python(client: httpx.AsyncClient, bucket: str, length_s: int) -> None:
    answer = await get(
        client, **HOUR, fields="speed_kmh,soc_pct,vehicle_state,alarm_flags,longitude_deg", bucket=bucket
    )
    models.Telemetry.model_validate(answer)
    expected = expected_buckets(length_s)
    assert [datetime.fromisoformat(row["time"]) for row in answer["rows"]] == sorted(expected)
    assert answer["bucket_s"] == length_s
    for row in answer["rows"]:
        reports = expected[datetime.fromisoformat(row["time"])]
        speeds = [r["speed_kmh"] for r in reports if r["speed_kmh"] is not None]
        assert (row["count"], row["speed_kmh_count"]) == (len(reports), len(speeds))
        assert row["speed_kmh_avg"] == pytest.approx(statistics.fmean(speeds), abs=1e-4)
        assert (row["speed_kmh_min"], row["speed_kmh_max"]) == (min(speeds), max(speeds))
        assert row["soc_pct_avg"] == pytest.approx(statistics.fmean(r["soc_pct"] for r in reports), abs=1e-3)
        assert row["longitude_deg_max"] == max(r["longitude_deg"] for r in reports)
        assert (row["vehicle_state_min"], row["vehicle_state_max"], row["alarm_flags_any"]) == (1, 1, 0)
        assert "vehicle_state_avg" not in row


async def test_pages_of_buckets_cut_none_in_two(client: httpx.AsyncClient) -> None:
    whole = await get(client, **HOUR, fields="speed_kmh", bucket="7m")
    seen: list[dict[str, Any]] = []
    page = await get(client, **HOUR, fields="speed_kmh", bucket="7m", limit=2)
    while True:
        seen += page["rows"]
        if page["next"] is None:
            break
        page = await get(client, page["next"])
    assert seen == whole["rows"]
    assert sum(row["count"] for row in seen) == 360


async def test_days_begin_at_the_fleets_midnight(client: httpx.AsyncClient) -> None:
    for bucket in ("1d", "6h"):
        answer = await get(client, **{"from": "2026-11-23", "to": "2026-11-25", "fields": "soc_pct", "bucket": bucket})
        assert [row["time"] for row in answer["rows"]] == [
            "2026-11-24T00:00:00+08:00" if bucket == "1d" else "2026-11-24T06:00:00+08:00"
        ]


async def test_days_follow_the_clock_changes(db: psycopg.Connection[Any], queries: Queries) -> None:
    """Berlin, 2026-10-25 has 25 hours: a report in the last of them is that day's."""
    rows.days(db, datetime(2026, 10, 24).date(), datetime(2026, 10, 27).date())
    one = rows.vehicle(db, rows.VIN)
    for time in (datetime(2026, 10, 24, 22, 30), datetime(2026, 10, 25, 22, 30), datetime(2026, 10, 25, 23, 30)):
        rows.report(db, one, time.replace(tzinfo=UTC), soc_pct=1)
    table = await queries.buckets(
        one, since=datetime(2026, 10, 24, tzinfo=UTC), until=datetime(2026, 10, 27, tzinfo=UTC),
        bucket=timedelta(days=1), time_zone="Europe/Berlin", columns=["soc_pct"], limit=10,
    )  # fmt: skip
    assert [(row[0].isoformat(), row[1]) for row in table.rows] == [
        ("2026-10-24T22:00:00+00:00", 2),
        ("2026-10-25T23:00:00+00:00", 1),
    ]


# -- formats -----------------------------------------------------------------------------------------
async def test_csv_says_what_json_says(client: httpx.AsyncClient) -> None:
    wanted = {**HOUR, "fields": "speed_kmh,soc_pct,flaws,cells_v,temps_c", "limit": 20}
    expected = await get(client, **wanted)
    answer = await client.get(PATH, params=wanted, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv; header=present; charset=utf-8"
    assert answer.headers["x-next-cursor"] == expected["next_cursor"]
    assert answer.headers["link"] == f'<{expected["next"]}>; rel="next"'
    found = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(found) == 20
    for got, row in zip(found, expected["rows"], strict=True):
        assert list(got) == list(row)
        assert (got["time"], got["kind"]) == (row["time"], "realtime")
        assert (float(got["speed_kmh"]) if got["speed_kmh"] else None) == row["speed_kmh"]
        assert dict(pair.split("=") for pair in got["flaws"].split()) == row["flaws"]
        assert [[float(v) for v in pack.split(" ")] for pack in got["cells_v"].split("|")] == row["cells_v"]
        assert got["temps_c"] == "24 25 26 "


async def test_parquet_says_what_json_says(client: httpx.AsyncClient) -> None:
    wanted = {**HOUR, "fields": "all", "limit": 20}
    expected = await get(client, **wanted)
    answer = await client.get(PATH, params={**wanted, "format": "parquet"})
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    table = pq.read_table(io.BytesIO(answer.content))
    assert table.column_names == ["time", "kind", "part", *expected["fields"]]
    assert str(table.schema.field("time").type) == "timestamp[us, tz=Asia/Shanghai]"
    about = json.loads(table.schema.metadata[b"nevstream"])
    assert (about["vin"], about["next_cursor"]) == (rows.VIN, expected["next_cursor"])
    for got, row in zip(table.to_pylist(), expected["rows"], strict=True):
        assert got["time"] == datetime.fromisoformat(row["time"])
        assert got["soc_pct"] == row["soc_pct"]
        assert got["speed_kmh"] == (None if row["speed_kmh"] is None else pytest.approx(row["speed_kmh"], rel=1e-6))
        assert got["odometer_km"] == row["odometer_km"]
        assert dict(got["flaws"]) == row["flaws"]
        assert got["cells_v"][0] == pytest.approx(row["cells_v"][0], rel=1e-6)
        assert got["temps_c"] == row["temps_c"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
async def test_an_empty_range_is_an_empty_answer(client: httpx.AsyncClient, kind: str) -> None:
    nothing = {"from": "2026-01-01", "to": "2026-01-02", "format": kind}
    for bucket in ({}, {"bucket": "1h"}):
        answer = await client.get(PATH, params={**nothing, **bucket})
        assert answer.status_code == 200, answer.text
        if kind == "parquet":
            assert pq.read_table(io.BytesIO(answer.content)).num_rows == 0
        elif kind == "csv":
            assert len(answer.text.splitlines()) == 1
        else:
            assert answer.json()["rows"] == []


async def test_buckets_as_parquet_and_csv(client: httpx.AsyncClient) -> None:
    wanted = {**HOUR, "fields": "speed_kmh,alarm_flags", "bucket": "30m"}
    expected = (await get(client, **wanted))["rows"]
    table = pq.read_table(io.BytesIO((await client.get(PATH, params={**wanted, "format": "parquet"})).content))
    assert [row["speed_kmh_avg"] for row in table.to_pylist()] == [row["speed_kmh_avg"] for row in expected]
    lines = (await client.get(PATH, params={**wanted, "format": "csv"})).text.splitlines()
    assert lines[0] == "time,count,speed_kmh_avg,speed_kmh_min,speed_kmh_max,speed_kmh_count,alarm_flags_any"
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/csv", "text/csv"),
        ("text/html, text/csv;q=0.5", "text/csv"),
        ("text/csv;q=0.2, application/json", "application/json"),
        ("application/vnd.apache.parquet", "application/vnd.apache.parquet"),
        ("*/*", "application/json"),
        ("text/csv;q=0, */*", "application/json"),
    ],
)
async def test_accept_chooses_the_format(client: httpx.AsyncClient, accept: str, kind: str) -> None:
    answer = await client.get(PATH, params={"limit": 1}, headers={"Accept": accept})
    assert answer.headers["content-type"].startswith(kind)


async def test_large_answers_are_compressed_small_ones_not(client: httpx.AsyncClient) -> None:
    assert (await client.get(PATH)).headers.get("content-encoding") == "gzip"
    assert "content-encoding" not in (await client.get("/healthz")).headers
