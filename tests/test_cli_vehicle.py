"""``nevstream vehicles trips|charges|battery|...``: what a person reads, and the files they get."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import openpyxl
import psycopg
import pyarrow.parquet as pq
import pytest

from services import terminal_tables
from services.errors import NevstreamError, Unavailable, UsageError
from services.store.queries import Queries
from tests.fix_api import Nevstream, api_on
from tests.fix_db import Databases
from tests.web import rows, test_battery, test_days, test_sessions, test_tracks

RANGE = ("--from", "2026-11-01", "--to", "2026-11-25")


@pytest.fixture(scope="module")
def api(databases: Databases) -> Iterator[str]:
    def fill(db: psycopg.Connection[Any]) -> None:
        for module in (test_sessions, test_tracks, test_days, test_battery):
            module.fleet(db)

    with databases.filled(fill) as created, api_on(lambda: Queries(created), lambda: rows.NOW) as base:
        yield base


@pytest.fixture
def nevstream(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nevstream:
    monkeypatch.chdir(tmp_path)  # no settings file, no running system
    return Nevstream("vehicles", api)


def words(text: str) -> str:
    return " ".join(text.split())


# -- tables ------------------------------------------------------------------------------------------
def test_trips_have_units_few_digits_and_what_they_rest_on(nevstream: Nevstream) -> None:
    shown = nevstream("trips", test_sessions.KNOWN, *RANGE)
    lines = shown.splitlines()
    assert "trip id" in lines[0]
    assert re.search(r"h:mm\s+km\s+km/h\s+km/h\s+kWh/100 km", lines[1]), lines[1]
    figures = r"1:00\s+60\.0\s+60\.0\s+61\.5\s+11\.7\s+13\.3\s+80\s+66\s+100\.0 %\s+agrees\s+off"
    assert re.search(rf"2026-11-20 08:00\s+{figures}", lines[2]), lines[2]
    assert "differs" in lines[3]
    assert "in progress" in lines[4]
    assert "–" in lines[4], "what is not known is a dash"
    assert "coverage 96.4 % · data up to 2026-11-24 11:59 · final up to 2026-11-24 11:57" in words(shown)


def test_what_the_registry_lacks_is_said_with_the_command_that_mends_it(nevstream: Nevstream) -> None:
    shown = words(nevstream("charges", test_sessions.UNKNOWN, *RANGE))
    assert "battery_kwh is not known: c_rate_per_h of charges; speed of charges below 20 kW" in shown
    assert f"nevstream vehicles set {test_sessions.UNKNOWN} battery_kwh=VALUE" in shown
    assert "no statistics yet" in shown


def test_more_than_is_shown_is_said(nevstream: Nevstream) -> None:
    shown = words(nevstream("trips", test_sessions.KNOWN, *RANGE, "--limit", "1"))
    assert "there is more" in shown
    assert "there is more" not in words(nevstream("trips", test_sessions.KNOWN, *RANGE))


def test_nothing_is_said_to_be_nothing(nevstream: Nevstream) -> None:
    assert "no trips of" in nevstream("trips", test_sessions.EMPTY, *RANGE)
    assert "no data of" in nevstream("completeness", test_sessions.EMPTY, *RANGE)
    assert "no days of" in nevstream("days", test_sessions.EMPTY, *RANGE)


def test_completeness_with_its_sum(nevstream: Nevstream) -> None:
    shown = nevstream("completeness", test_days.VIN, "--from", "2026-11-22", "--to", "2026-11-24")
    assert re.search(r"2026-11-24\s+open\s+8,640\s+8,000\s+7\.4 %\s+0:10\s+92\.6 %\s+0:50\s+81\s+90\s+90\s+10", shown)
    assert "received 24,003 of 25,920 expected, missing 7.4 %, reissued 1.0 %, late 1.1 %" in words(shown)
    exempt = words(nevstream("completeness", test_days.ON_CHANGE, *RANGE))
    assert "on_change: this vehicle sends at changes of state only" in exempt
    assert "of – expected" in exempt
    hourly = nevstream("completeness", test_days.VIN, "--hours", "--from", "2026-11-24", "--to", "2026-11-24")
    assert hourly.count("2026-11-24 0") == 5


def test_days_by_the_measures_that_are_asked_for(nevstream: Nevstream) -> None:
    shown = nevstream("days", test_days.VIN, *RANGE, "--fields", "distance_km,kwh_per_100km")
    assert re.search(r"2026-11-24\s+no\s+100\s+12\.5", shown), shown
    shown = nevstream(
        "days", test_days.VIN, "--hours", "--from", "2026-11-24", "--to", "2026-11-24", "--fields", "distance_km"
    )
    assert shown.count("2026-11-24 0") == 5, "the last day is included"


def test_a_day_as_a_line_and_a_table(nevstream: Nevstream) -> None:
    shown = nevstream("timeline", test_tracks.VIN, "2026-11-24")
    bar = shown.splitlines()[0]
    assert set(bar.rstrip()) == {"█"}
    assert [line.split()[0] for line in shown.splitlines()[4:9]] == ["driving", "gap", "driving", "gap", "charging"]
    assert "2026-11-24: driving 0:12, gap 11:18, charging 0:30" in shown


def test_a_battery_at_a_glance(nevstream: Nevstream) -> None:
    shown = nevstream("battery", test_battery.RATED, "--from", "2026-08-27", "--to", "2026-11-24")
    text = words(shown)
    assert re.search(r"health +98\.2 ± 1\.1 % of 152 Ah \(rated\), 3 charges of 2026-10", text), text
    assert "an indicator, not a warranty figure" in text
    assert "trend -1 Ah per 10,000 km (-1 to -1), 12 charges" in text
    assert "cycles 2.50 equivalent since 2026-11-20" in text
    assert "spread rest p50 5 mV, p95 20 mV" in text
    assert "insulation good" in text
    for title in ("capacity by month", "outlier cells", "resistance of the pack", "self-discharge"):
        assert title in text
    young = words(nevstream("battery", test_battery.YOUNG, "--to", "2026-11-24"))
    assert "health – no month has 3 charges" in young
    assert "battery_ah is not known" in young


def test_one_table_of_a_battery(nevstream: Nevstream) -> None:
    shown = nevstream("battery", test_battery.RATED, "--to", "2026-11-24", "--table", "outliers")
    assert re.search(r"\n7\s+yes|\n *7\s+yes", shown)
    assert "capacity by month" not in shown


def test_the_course_of_a_charge(nevstream: Nevstream) -> None:
    [charge] = json.loads(nevstream("charges", test_tracks.VIN, *RANGE, "--json"))["charges"]
    shown = nevstream("curve", test_tracks.VIN, str(charge["charge_id"]))
    assert re.search(r"2026-11-24 01:00\s+0 s\s+21\s+20\s+31\s+350\s+-60", shown), shown
    assert "there is more" in words(shown)


# -- json, csv, files ----------------------------------------------------------------------------------
def test_json_is_the_answer_of_the_api_with_all_pages(nevstream: Nevstream, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(nevstream("trips", test_sessions.KNOWN, *RANGE, "--json"))
    assert (whole["count"], whole["next"]) == (3, None)
    monkeypatch.setattr("services.api_client._PAGE", 1)
    paged = json.loads(nevstream("trips", test_sessions.KNOWN, *RANGE, "--json"))
    assert paged["trips"] == whole["trips"]
    two = json.loads(nevstream("trips", test_sessions.KNOWN, *RANGE, "--json", "--limit", "2"))
    assert two["trips"] == whole["trips"][:2]
    assert two["next"] is not None


def test_csv_on_standard_output(nevstream: Nevstream) -> None:
    found = list(csv.DictReader(io.StringIO(nevstream("trips", test_sessions.KNOWN, *RANGE, "--csv"))))
    assert [row["distance_km"] for row in found] == ["60.0", "60.0", "0.6"]
    assert found[0]["start_at"] == "2026-11-20T08:00:00+08:00"


def read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(file.read_text("utf-8"))))
    if file.suffix == ".json":
        return list(json.loads(file.read_text("utf-8"))["rows"])
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    head, *lines = openpyxl.load_workbook(file)["data"].iter_rows(values_only=True)
    return [dict(zip([str(name).split(" ")[0] for name in head], line, strict=True)) for line in lines]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet", ".xlsx"])
@pytest.mark.parametrize("what", ["trips", "charges", "days", "completeness"])
def test_files_in_the_format_of_their_name(nevstream: Nevstream, tmp_path: Path, what: str, suffix: str) -> None:
    vin = test_sessions.KNOWN if what in ("trips", "charges") else test_days.VIN
    file = tmp_path / f"out{suffix}"
    assert "rows written to" in words(nevstream(what, vin, *RANGE, "--out", str(file)))
    found = read(file)
    assert len(found) == {"trips": 3, "charges": 3, "days": 6, "completeness": 11}[what]
    assert all(row.get("coverage") not in ("", None) or row.get("state") == "no_data" for row in found)


def test_files_have_types(nevstream: Nevstream, tmp_path: Path) -> None:
    nevstream("trips", test_sessions.KNOWN, *RANGE, "--out", str(tmp_path / "t.parquet"))
    table = pq.read_table(tmp_path / "t.parquet")
    assert str(table.schema.field("start_at").type) == "timestamp[us, tz=Asia/Shanghai]"
    assert json.loads(table.schema.metadata[b"nevstream"])["vin"] == test_sessions.KNOWN
    nevstream("trips", test_sessions.KNOWN, *RANGE, "--out", str(tmp_path / "t.xlsx"))
    assert read(tmp_path / "t.xlsx")[0]["start_at"] == datetime(2026, 11, 20, 8)


@pytest.mark.parametrize("suffix", [".gpx", ".geojson", ".csv", ".xlsx", ".parquet", ".json"])
def test_the_way_of_a_trip_as_a_file(nevstream: Nevstream, tmp_path: Path, suffix: str) -> None:
    [trip] = json.loads(nevstream("trips", test_tracks.VIN, *RANGE, "--json"))["trips"]
    file = tmp_path / f"way{suffix}"
    said = nevstream("track", test_tracks.VIN, str(trip["trip_id"]), "--out", str(file))
    assert str(file) in said.replace("\n", "")
    if suffix == ".gpx":
        assert len(ET.parse(file).getroot().findall(".//{*}trkseg")) == 3  # noqa: S314 - ours
    elif suffix == ".geojson":
        assert len(json.loads(file.read_text())["features"]) == 3
    else:
        assert file.stat().st_size > 100


def test_battery_files(nevstream: Nevstream, tmp_path: Path) -> None:
    file = tmp_path / "b.xlsx"
    nevstream("battery", test_battery.RATED, "--to", "2026-11-24", "--table", "spread", "--out", str(file))
    assert len(read(file)) == 5
    text = nevstream("battery", test_battery.RATED, "--to", "2026-11-24", "--csv")
    assert [row["capacity_ah"] for row in csv.DictReader(io.StringIO(text))] == ["149.5", "149.2"]
    nevstream("battery", test_battery.RATED, "--to", "2026-11-24", "--out", str(tmp_path / "b.json"))
    assert json.loads((tmp_path / "b.json").read_text())["soh"]["method"] == "rated"


# -- what goes wrong -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trips", "LNONE000000000001"), "No vehicle LNONE000000000001 is registered"),
        (("trips", test_sessions.KNOWN, "--from", "last week"), "--from 'last week' is not a time"),
        (("days", test_sessions.KNOWN, "--from", "last week"), "--from 'last week' is not a day"),
        (("trips", test_sessions.KNOWN, "--out", "trips.pdf"), "end it in .csv, .xlsx, .parquet, .json"),
        (("trips", test_sessions.KNOWN, "--out", "no/such/dir.csv"), "No such file or directory"),
        (("days", test_days.VIN, "--fields", "distance"), "did you mean distance_km"),
        (("track", test_sessions.KNOWN, "999999", "--out", "a.gpx"), "has no trip 999999"),
        (("battery", test_battery.RATED, "--table", "cells"), "is no table of a battery"),
    ],
)
def test_mistakes_are_said_with_what_to_do(nevstream: Nevstream, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        nevstream(*arguments)
    assert says in str(caught.value)


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unavailable, match="is `nevstream up` running there"):
        Nevstream("vehicles", "http://127.0.0.1:9")("trips", test_sessions.KNOWN)
    with pytest.raises(NevstreamError, match="starts with http"):
        Nevstream("vehicles", "ftp://127.0.0.1")("trips", test_sessions.KNOWN)


def test_a_column_has_the_digits_of_its_largest() -> None:
    assert terminal_tables.digits_of([1.23456, 123.4]) == 1
    assert terminal_tables.digits_of([1, 2]) == 0
    assert terminal_tables.digits_of([]) == 0
    assert [terminal_tables.number(value, 1) for value in (1.23456, 100)] == ["1.2", "100.0"]


# -- numbers -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.0, "0"), (7, "7"), (12345, "12,345"), (12345.6, "12,346"), (123.46, "123.5"), (12.36, "12.4"),
     (1.004, "1.00"), (0.0421, "0.042"), (0.00042, "0.00042"), (-1234.6, "-1,235"), (60.0, "60")],
)  # fmt: skip
def test_numbers_are_readable(value: float, expected: str) -> None:
    assert terminal_tables.number(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (59.4, "59 s"), (60, "0:01"), (3780, "1:03"), (86_400, "24:00"), (363_000, "4.2 d")],
)
def test_durations_are_readable(seconds: float, expected: str) -> None:
    assert terminal_tables.duration(seconds) == expected
