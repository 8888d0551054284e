"""Tables as files: kinds and units of rows that declare none, what Excel cannot hold, bounds, the format asked for."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import openpyxl
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from services.web import exports
from services.web.exports import Column, Format, document_answer, format_wanted, shape_of, unit_of
from services.web.problems import ProblemError
from tests.web import rows

ZONE = ZoneInfo("Asia/Shanghai")
NOW = datetime(2026, 11, 24, 4, 0, tzinfo=UTC)
TELEMETRY = f"/v1/vehicles/{rows.VIN}/telemetry"


def asking(accept: str | None = None) -> Request:
    headers = [(b"accept", accept.encode())] if accept else []
    return Request({"type": "http", "headers": headers, "query_string": b""})


def sheet(shape: list[Column], values: list[list[Any]], **about: Any) -> Any:
    return openpyxl.load_workbook(io.BytesIO(exports.xlsx_body(shape, values, ZONE, about)))


# -- rows that declare nothing -------------------------------------------------------------------------
ROWS: list[dict[str, Any]] = [
    {"vin": "A", "distance_km": 1, "share": None, "at": NOW, "day": date(2026, 11, 24), "ok": True, "list": [1, 2]},
    {"vin": "B", "distance_km": 1.5, "share": 0.5, "at": None, "day": None, "ok": None, "list": [], "more": {"a": 1}},
]


def test_kinds_are_read_off_values_and_units_off_names() -> None:
    assert [(c.name, c.kind, c.unit) for c in shape_of(ROWS)] == [
        ("vin", "text", ""), ("distance_km", "double precision", "km"), ("share", "double precision", ""),
        ("at", "time", ""), ("day", "date", ""), ("ok", "bool", ""), ("list", "json", ""), ("more", "json", ""),
    ]  # fmt: skip
    assert shape_of([]) == []
    assert [c.kind for c in shape_of([{"a": 1}, {"a": "x"}, {"b": None}])] == ["json", "text"]


@pytest.mark.parametrize(
    ("name", "unit"),
    [("kwh_per_100km", "kWh/100 km"), ("mean_speed_kmh", "km/h"), ("charge_kwh", "kWh"), ("start_soc_pct", "%"),
     ("lowest_ohm_per_v", "Ω/V"), ("insulation_min_kohm", "kΩ"), ("covered_s", "s"), ("vehicles", ""), ("kwh", "kWh"),
     ("value_min", "")],
)  # fmt: skip
def test_the_unit_of_a_name(name: str, unit: str) -> None:
    assert unit_of(name) == unit


@pytest.mark.parametrize("kind", list(Format))
async def test_a_document_as_a_file(kind: Format) -> None:
    document = {"rows": ROWS, "count": 2, "next_cursor": "7", "next": "/v1/x?cursor=7", "newest_data_time": NOW}
    answer = await document_answer(asking(), kind, document, "rows", zone=ZONE, name="a name/..")
    if kind == Format.JSON:
        assert json.loads(bytes(answer.body))["rows"][1]["more"] == {"a": 1}
        return
    assert answer.headers["content-disposition"] == f'attachment; filename="a-name-...{kind}"'
    assert (answer.headers["x-next-cursor"], answer.headers["link"]) == ("7", '</v1/x?cursor=7>; rel="next"')
    assert answer.headers["x-newest-data-time"] == NOW.isoformat()
    body = io.BytesIO(bytes(answer.body))
    if kind == Format.CSV:
        found = list(csv.DictReader(io.StringIO(body.read().decode())))
        assert [row["list"] for row in found] == ["[1,2]", "[]"]
        assert [row["more"] for row in found] == ["", '{"a":1}']
        assert [row["ok"] for row in found] == ["true", ""]
    elif kind == Format.PARQUET:
        assert [row["distance_km"] for row in pq.read_table(body).to_pylist()] == [1.0, 1.5]
    else:
        data = openpyxl.load_workbook(body)["data"]
        assert [cell.value for cell in data[1]][1] == "distance_km [km]"
        assert [cell.value for cell in data[3]] == ["B", 1.5, 0.5, None, None, None, "[]", '{"a":1}']


def test_decimals_keep_their_digits() -> None:
    shape = shape_of([{"credits": Decimal("0.580")}])
    assert exports.csv_body(shape, [[Decimal("0.580")]]).decode().splitlines()[1] == "0.580"
    table = pq.read_table(io.BytesIO(exports.parquet_body(shape, [[Decimal("0.580")]], ZONE, {})))
    assert table.to_pylist() == [{"credits": 0.58}]
    assert sheet(shape, [[Decimal("0.580")]])["data"]["A2"].value == 0.58


# -- Excel ---------------------------------------------------------------------------------------------
def test_what_excel_cannot_hold() -> None:
    shape = [Column("n", "bigint"), Column("x", "double precision", "V"), Column("t", "time"), Column("s", "text")]
    book = sheet(
        shape,
        [[2**53, 2**60, None], [float("nan"), float("inf"), 1.5], [NOW, None, NOW], ["=1+1", "http://x", "y" * 40_000]],
        vin="=A",
    )
    data = book["data"]
    assert [cell.value for cell in data["A"]] == ["n", 2**53, str(2**60), None]
    assert [cell.value for cell in data["B"]] == ["x [V]", None, None, 1.5]
    assert data["C1"].value == "t [Asia/Shanghai]"
    assert data["C2"].value == datetime(2026, 11, 24, 12)
    assert [cell.data_type for cell in data["D"]] == ["s"] * 4, "no text becomes a formula or a link"
    assert data["D3"].hyperlink is None
    assert len(data["D4"].value) == 32_767
    assert (book["about"]["C1"].value, book["about"]["C1"].data_type) == ("=A", "s")


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.floats(),
            st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
        ),
        max_size=5,
    )
)
@example([(None, 9.999999999999992e307, None), (None, 1.7976931348623157e308, None)])
def test_any_row_can_be_written_and_read(found: list[tuple[Any, ...]]) -> None:
    columns = [list(column) for column in zip(*found, strict=True)] if found else [[], [], []]
    data = sheet([Column("a", "bigint"), Column("b", "double precision"), Column("c", "text")], columns)["data"]
    lines = data.iter_rows(min_row=2, max_row=len(found) + 1, values_only=True) if found else ()
    for (whole, real, _), cells in zip(found, lines, strict=True):
        assert cells[0] == (None if whole is None else whole if abs(whole) <= 2**53 else str(whole))
        if real is None or real != real or abs(real) == float("inf"):
            assert cells[1] is None
        elif abs(real) > 9.99999999999999e307:  # the largest that Excel takes
            assert cells[1] == str(real)
        else:
            assert cells[1] == pytest.approx(real, rel=1e-14)


async def test_a_workbook_is_bounded(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.web.telemetry.XLSX_CELLS_MAX", 100)
    wanted = {"from": "2026-11-24T11:00", "fields": "soc_pct,speed_kmh", "format": "xlsx"}
    assert (await client.get(TELEMETRY, params={**wanted, "limit": 20})).status_code == 200
    refused = await client.get(TELEMETRY, params={**wanted, "limit": 21})
    assert refused.status_code == 422
    assert "105 cells" in refused.json()["detail"]
    assert "smaller limit" in refused.json()["how_to_fix"]


async def test_telemetry_as_a_workbook(client: httpx.AsyncClient) -> None:
    wanted = {"from": "2026-11-24T11:00", "fields": "speed_kmh,soc_pct,flaws,cells_v,temps_c,edition", "limit": 20}
    expected = (await client.get(TELEMETRY, params=wanted)).json()
    answer = await client.get(TELEMETRY, params={**wanted, "format": "xlsx"})
    assert answer.headers["content-disposition"] == f'attachment; filename="telemetry-{rows.VIN}.xlsx"'
    assert answer.headers["x-next-cursor"] == expected["next_cursor"]
    head, *lines = openpyxl.load_workbook(io.BytesIO(answer.content))["data"].iter_rows(values_only=True)
    assert head == (
        "time [Asia/Shanghai]", "kind", "part", "speed_kmh [km/h]", "soc_pct [%]", "flaws", "cells_v [V]",
        "temps_c [°C]", "edition",
    )  # fmt: skip
    for got, row in zip(lines, expected["rows"], strict=True):
        assert got[0] == datetime.fromisoformat(row["time"]).replace(tzinfo=None)
        assert (got[3], got[4], got[8]) == (row["speed_kmh"], row["soc_pct"], 2016)
        assert dict(pair.split("=") for pair in got[5].split()) == row["flaws"]
        assert [float(v) for v in got[6].split(" ")] == row["cells_v"][0]


@pytest.mark.parametrize(
    ("path", "key"),
    [("/v1/vehicles", "vehicles"), (f"/v1/vehicles/{rows.VIN}/logins", "logins"), ("/v1/data-quality/flaws", "groups")],
)
async def test_other_lists_as_files(client: httpx.AsyncClient, path: str, key: str) -> None:
    expected = (await client.get(path)).json()[key]
    for kind in ("csv", "xlsx", "parquet"):
        answer = await client.get(path, params={"format": kind})
        assert answer.status_code == 200, answer.text
        if kind == "csv":
            found = list(csv.DictReader(io.StringIO(answer.text)))
            assert len(found) == len(expected)
        elif kind == "parquet":
            assert pq.read_table(io.BytesIO(answer.content)).num_rows == len(expected)
        else:
            assert openpyxl.load_workbook(io.BytesIO(answer.content))["data"].max_row == max(1, len(expected) + 1)


# -- which format --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "json"),
        ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xlsx"),
        ("text/csv;q=0.4, application/vnd.apache.parquet;q=0.6", "parquet"),
        ("text/*", "csv"),
    ],
)
def test_the_accept_header(accept: str | None, kind: str) -> None:
    assert format_wanted(asking(accept), None) == kind
    assert format_wanted(asking(accept), "csv") == "csv", "the parameter outranks it"


def test_a_format_that_there_is_not() -> None:
    with pytest.raises(ProblemError, match="is not a format of this path") as caught:
        format_wanted(asking(), "xls")
    assert "json, csv, xlsx or parquet" in caught.value.how_to_fix
    with pytest.raises(ProblemError, match="names no format"):
        format_wanted(asking("image/png"), None)
