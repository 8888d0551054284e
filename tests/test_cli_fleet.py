"""``nevstream fleet ...``: figures, series, the yearly report and the lists, as a person reads them and as files."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import openpyxl
import psycopg
import pyarrow.parquet as pq
import pytest

from services.cli_fleet import sparkline
from services.errors import UsageError
from services.store.cohorts import Cohorts
from services.store.queries import Queries
from tests import statistics_rows as made
from tests.fix_api import Nevstream, api_on
from tests.fix_db import Databases
from tests.web import rows

TODAY = date(2026, 11, 24)  # of rows.NOW, noon in Shanghai
MODELS = {"E1": 3, "E2": 2}
FIELDS = 28


def noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=made.ZONE)


def fleet(db: psycopg.Connection[Any]) -> None:
    """Three E1 and two E2, a trip and a charge a day for ten days; one silent, one alarmed, one with a bad cell."""
    ids = []
    for model, count in MODELS.items():
        for number in range(count):
            vin = f"L{model}00000000000{number:03}"
            vehicle = rows.vehicle(
                db, vin, registered=True, registered_at=noon(date(2026, 1, 1)), model=model, region="BJ",
                battery_kwh=50.0, battery_ah=150.0,
            )  # fmt: skip
            ids.append(vehicle)
            for ago in range(10):
                _day(db, vehicle, TODAY - timedelta(days=ago), km=100.0 if model == "E1" else 50.0)
            silent = model == "E2" and number == 1
            rows.state(
                db, vehicle, rows.NOW - timedelta(days=40 if silent else 0, minutes=20), 100, speed_kmh=0.0, soc_pct=50,
                vehicle_state=2, charge_state=3, longitude_deg=116.4001, latitude_deg=39.9001, location_valid=1,
            )  # fmt: skip
    for number in range(12):
        start = noon(TODAY - timedelta(days=1)) + timedelta(minutes=10 * number)
        made.episode(db, ids[0], start, start + timedelta(minutes=1), 1, 11, level=2)
    for ago in range(4):
        made.finding(
            db, "cell_outliers", ids[1], TODAY - timedelta(days=ago), cell=17, usable_rows=100, z_rows=90,
            robust_rows=90, deviation_mv=-42.0,
        )  # fmt: skip
    for ago in range(10):
        made.insert(db, "statistics_days", day=TODAY - timedelta(days=ago), changes=1)


def _day(db: psycopg.Connection[Any], vehicle: int, day: date, km: float) -> None:
    counts = {"field_valid": [8_000] * FIELDS, "field_flawed": [80] * FIELDS, "check_total": [100] * 9,
              "check_failed": [0] * 9}  # fmt: skip
    made.day(
        db, vehicle, day, records=8_000, rows=8_000, reissued=80, repeated=0, late=40, expected=8_640.0,
        missing_s=600.0, covered_s=80_000.0, gap_s=6_400.0, distance_km=km, untracked_km=0.0, driving_s=7_200.0,
        consumption_kwh=0.12 * km, consumption_km=km, out_kwh=0.15 * km, regen_kwh=0.03 * km, charge_kwh=0.12 * km,
        standing_kwh=0.5, standing_s=70_000.0, discharge_ah=30.0, charge_ah=30.0, nominal_s=10.0, **counts,
    )  # fmt: skip
    made.hour(db, vehicle, noon(day), records=300, driving_s=3_600.0, charge_kwh=2.0)
    start = noon(day) - timedelta(hours=3)
    made.trip(
        db, vehicle, start, start + timedelta(hours=2), distance_km=km, moving_s=6_000.0, out_kwh=0.15 * km,
        regen_kwh=0.03 * km, consumption_kwh=0.12 * km, consumption_km=km, start_soc_pct=80, end_soc_pct=56,
    )  # fmt: skip
    made.charge(
        db, vehicle, start + timedelta(hours=5), start + timedelta(hours=6), energy_kwh=0.12 * km, charge_ah=30.0,
        start_soc_pct=56, end_soc_pct=80, middle_power_kw=30.0 if km > 60 else 6.0, middle_coverage=1.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def api(databases: Databases) -> Iterator[str]:
    created = databases.create(migrated=True)
    with psycopg.connect(created) as connection:
        fleet(connection)

    async def count() -> None:
        cohorts = Cohorts(created, "Asia/Shanghai", lambda: rows.NOW)
        await cohorts.aggregate()
        await cohorts.close()

    asyncio.run(count())
    with api_on(lambda: Queries(created), lambda: rows.NOW) as base:
        yield base
    databases.drop(created)


@pytest.fixture
def nevstream(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nevstream:
    monkeypatch.chdir(tmp_path)
    return Nevstream("fleet", api)


def words(text: str) -> str:
    return " ".join(text.split())


# -- metrics -------------------------------------------------------------------------------------------
def test_the_catalogue_with_how_sure_each_is(nevstream: Nevstream) -> None:
    shown = words(nevstream("metrics"))
    for name in ("A1", "Q4", "U3", "C2", "E1", "F4", "B4", "P1"):
        assert f" {name} " in f" {shown} "
    assert "[A] the text was read" in shown
    assert "/v1/credits" in shown


def test_a_metric_with_what_it_is_made_of(nevstream: Nevstream) -> None:
    shown = nevstream("metric", "u1", "--at", "2026-11")
    assert "U1 distance 2026-11-01 to 2026-11-30, goes on" in words(shown)
    # 3 × 100 km and 2 × 50 km a day, for ten days
    assert re.search(r"distance_km\s+4,000\s+km\s", shown), shown
    assert re.search(r"distance_per_vehicle_km\s+800\s+km\s+[\d,]+.*\s4,000\s+5\s+5\s+92\.6 %\s+\[A\]", shown), shown
    assert re.search(r"data up to 2026-11-24 \d\d:\d\d · computed ", words(shown))


def test_groups_and_filters(nevstream: Nevstream) -> None:
    shown = nevstream("metric", "U1", "--at", "2026-11", "--by", "model")
    assert re.search(r"E1\s+distance_km\s+3,000", shown)
    assert re.search(r"E2\s+distance_km\s+1,000", shown)
    shown = nevstream("metric", "U1", "--at", "2026-11", "--only", "model=E2", "--only", "region=BJ")
    assert re.search(r"distance_km\s+1,000\s", shown)
    both = nevstream("metric", "U1", "--at", "2026-11", "--only", "model=E1", "--only", "model=E2")
    assert re.search(r"distance_km\s+4,000\s", both)


def test_distributions_as_bars_and_as_a_map_of_hours(nevstream: Nevstream) -> None:
    shown = nevstream("metric", "C2", "--at", "2026-11")
    assert re.search(r"50 to 60\s+50\s+100\.0 %\s+█{40}", shown), shown
    shown = nevstream("metric", "U4", "--at", "2026-11")
    assert re.search(r"Mon  .*██", shown), shown
    assert "most: " in shown
    shown = nevstream("metric", "F1", "--at", "2026-11")
    assert re.search(r"\(level 2\)\s+12\s+100\.0 %", shown), shown


def test_a_metric_that_is_answered_elsewhere_says_where(nevstream: Nevstream) -> None:
    assert "see /v1/credits" in nevstream("metric", "P1", "--at", "2026-11")


def test_nothing_is_a_dash_and_not_nought(nevstream: Nevstream) -> None:
    shown = nevstream("metric", "E1", "--at", "2020-01")
    assert re.search(r"consumption_kwh_per_100km\s+–\s+kWh/100 km", shown), shown
    assert "2020-01-01 to 2020-01-31" in shown


def test_a_series_is_a_row_a_period_and_a_line(nevstream: Nevstream) -> None:
    shown = nevstream("series", "U1", "--from", "2026-11-15", "--to", "2026-11-24")
    assert len(re.findall(r"2026-11-\d\d\s+400", shown)) == 10, shown
    assert "▁▁▁▁▁▁▁▁▁▁" in shown
    shown = nevstream("series", "U1", "--per", "month", "--from", "2026-10-01", "--figure", "distance_km")
    assert re.search(r"2026-11-01\s+4,000\s+5\s", shown), shown
    by = nevstream("series", "U1", "--from", "2026-11-24", "--by", "model", "--figure", "distance_km")
    assert re.search(r"2026-11-24\s+E1\s+300", by), by


def test_a_line_of_values() -> None:
    assert sparkline([0, None, 50, 100]) == "▁ ▅█"
    assert sparkline([3, 3]) == "▁▁"


def test_the_yearly_report_has_its_seven_figures(nevstream: Nevstream) -> None:
    shown = nevstream("report", "year", "2026")
    assert [number for number in "1234567" if not re.search(rf"(?m)^{number}\. ", shown)] == []
    assert re.search(r"E1\s+3,000", shown), shown
    assert "accidents are not in telemetry" in words(shown)


# -- lists ---------------------------------------------------------------------------------------------
def test_vehicles_that_have_been_silent(nevstream: Nevstream) -> None:
    shown = nevstream("offline", "--days", "30")
    assert re.search(r"LE200000000000001\s+E2\s+unknown\s+BJ\s+2026-10-15 11:40\s", shown), shown
    assert shown.count("LE") == 1
    assert "no vehicle has been silent for 90 days" in nevstream("offline", "--days", "90")


def test_vehicles_with_frequent_alarms(nevstream: Nevstream) -> None:
    shown = nevstream("frequent-alarms")
    assert re.search(r"LE100000000000000\s+E1\s+unknown\s+BJ\s+12\s+0\s", shown), shown
    assert "× 12" in shown
    assert "no vehicle has frequent alarms" in nevstream("frequent-alarms", "--episodes", "13")


def test_places_where_vehicles_stand_together(nevstream: Nevstream) -> None:
    shown = nevstream("clusters", "--vehicles", "4")
    assert re.search(r"\s4\s+39\.90010\s+116\.40010", shown), shown
    assert "nowhere" in nevstream("clusters")


def test_cells_that_stand_out(nevstream: Nevstream) -> None:
    shown = nevstream("outlier-cells")
    assert re.search(r"LE100000000000001\s+E1\s+unknown\s+BJ\s+17\s+4\s+-42\s+2026-11-21\s+2026-11-24", shown), shown


def test_the_weekly_verification(nevstream: Nevstream) -> None:
    shown = words(nevstream("verification", "2026-W47"))
    assert re.search(r"2026-W47: \d+\.\d % passed, \d of 5 vehicles \[P\]", shown), shown
    assert "mandatory_fields" in shown


# -- files ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet", ".json"])
def test_files(nevstream: Nevstream, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"f{suffix}"
    for arguments, count in (
        (("metric", "U1", "--at", "2026-11", "--by", "model"), 6),
        (("series", "A2", "--from", "2026-11-20"), 5),
        (("offline", "--days", "30"), 1),
        (("report", "year", "2026"), None),
    ):
        nevstream(*arguments, "--out", str(file))
        found = read(file)
        assert found, arguments
        assert count is None or len(found) == count, arguments


def read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(file.read_text("utf-8"))))
    if file.suffix == ".json":
        document = json.loads(file.read_text("utf-8"))
        return list(document.get("figures") or document["vehicles"])
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    head, *lines = openpyxl.load_workbook(file)["data"].iter_rows(values_only=True)
    return [dict(zip(map(str, head), line, strict=True)) for line in lines]


def test_lists_are_typed_by_their_names(nevstream: Nevstream, tmp_path: Path) -> None:
    nevstream("offline", "--days", "30", "--out", str(tmp_path / "o.parquet"))
    table = pq.read_table(tmp_path / "o.parquet")
    assert str(table.schema.field("newest_data_time").type).startswith("timestamp[us")
    assert str(table.schema.field("silent_days").type) == "double"


def test_json_and_csv(nevstream: Nevstream) -> None:
    document = json.loads(nevstream("metric", "U1", "--at", "2026-11", "--json"))
    assert document["id"] == "U1"
    lines = list(csv.DictReader(io.StringIO(nevstream("metric", "U1", "--at", "2026-11", "--csv"))))
    assert [line["figure"] for line in lines] == [row["figure"] for row in document["figures"]]
    lines = list(csv.DictReader(io.StringIO(nevstream("outlier-cells", "--csv"))))
    assert [line["cell"] for line in lines] == ["17"]
    assert json.loads(nevstream("clusters", "--vehicles", "2", "--json"))["count"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("metric", "Z9"), "is not a metric"),
        (("metric", "U1", "--by", "colour"), "is not what vehicles are grouped by"),
        (("metric", "U1", "--only", "colour=red"), "give NAME=VALUE, with a NAME of model"),
        (("metric", "U1", "--only", "model"), "give NAME=VALUE"),
        (("metric", "U1", "--at", "soon"), "is no period"),
        (("series", "U1", "--from", "2026-11-20", "--figure", "speed"), "is not one of distance_km"),
        (("offline", "--out", "a.doc"), "end it in .csv"),
        (("verification", "last"), "is no period"),
    ],
)
def test_mistakes_are_said_with_what_to_do(nevstream: Nevstream, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        nevstream(*arguments)
    assert says in str(caught.value)
