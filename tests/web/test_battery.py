"""The battery of a vehicle: capacity and health with method and error, cells, resistance, rests, insulation."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterator
from datetime import date, datetime, timedelta
from typing import Any

import httpx
import openpyxl
import psycopg
import pyarrow.parquet as pq
import pytest

from schemas.statistics.measures import RANGE_BINS
from schemas.statistics.rules import INSULATION_FAULT, INSULATION_LOW
from services.store.queries import Queries
from services.web.battery import Battery
from services.web.battery_parts import weighted_median
from tests import statistics_rows as made
from tests.fix_db import Databases
from tests.web import rows
from tests.web.conftest import asking, client_of
from tests.web.test_sessions import get, path_of

RATED, BASELINE, YOUNG, FAULTY = (f"LBATT00000000000{n}" for n in (1, 2, 3, 4))
TODAY = date(2026, 11, 24)


def noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=made.ZONE)


def histogram(**counts: int) -> list[int]:
    """Records by millivolt: mv20=5 are five of 20 mV."""
    bins = [0] * RANGE_BINS
    for name, count in counts.items():
        bins[int(name.removeprefix("mv"))] = count
    return bins


def charges(db: psycopg.Connection[Any], vehicle: int, number: int, first: date) -> None:
    """A charge every tenth day, capacity 150 Ah less 1 Ah per 10,000 km, 1,000 km between them."""
    for n in range(number):
        day = first + timedelta(days=10 * n)
        made.charge(
            db, vehicle, noon(day), noon(day) + timedelta(hours=2), odometer_km=1000.0 * n, start_soc_pct=20,
            end_soc_pct=70, capacity_ah=150.0 - 0.1 * n, mean_temp_c=25.0,
        )  # fmt: skip
    # one that allows none
    made.charge(db, vehicle, noon(first) + timedelta(hours=5), noon(first) + timedelta(hours=6), start_soc_pct=60)


def fleet(db: psycopg.Connection[Any]) -> None:
    rated = rows.vehicle(db, RATED, battery_ah=152.0, battery_kwh=55.0, cells=96, chemistry="NCM")
    baseline = rows.vehicle(db, BASELINE)
    young = rows.vehicle(db, YOUNG)
    for vehicle, number in ((rated, 12), (baseline, 12), (young, 9)):
        made.checkpoint(db, vehicle, rows.NOW)
        charges(db, vehicle, number, date(2026, 7, 31))
    for vehicle in (rated, baseline):
        made.capacity(db, vehicle, date(2026, 9, 1), 3, 149.5, odometer_km=4000.0)
        made.capacity(db, vehicle, date(2026, 10, 1), 3, 149.2, odometer_km=7000.0)
    for number in range(5):
        day = TODAY - timedelta(days=number)
        made.day(
            db, rated, day, discharge_ah=76.0, charge_ah=80.0, covered_s=80_000.0, gap_s=4_000.0, cell_rows=500,
            cell_range_max_mv=60.0, range_rest=histogram(mv5=90, mv20=10), range_driving=histogram(mv30=100),
            range_rest_p50_mv=5.0, range_rest_p95_mv=20.0, insulation_min_kohm=2000.0 + number,
            insulation_min_ohm_per_v=5000.0 + number,
        )  # fmt: skip
        # cell 7: persistent by both; cell 9: far off, but in too few rows; cell 11: by the robust score alone
        made.finding(
            db, "cell_outliers", rated, day, cell=7, usable_rows=100, z_rows=80, robust_rows=90, deviation_mv=-30.0
        )
        made.finding(
            db, "cell_outliers", rated, day, cell=9, usable_rows=100, z_rows=20, robust_rows=20, deviation_mv=-90.0
        )
        if number < 3:
            made.finding(
                db, "cell_outliers", rated, day, cell=11, usable_rows=100, z_rows=0, robust_rows=50, deviation_mv=12.0
            )
        made.finding(
            db, "dc_resistance", rated, day, temp_class_c=20, samples=10 * (number + 1), median_mohm=30.0 + number,
            soc_mean_pct=50.0, temp_mean_c=22.0,
        )  # fmt: skip
        made.finding(
            db, "cell_rests", rated, day, start_at=noon(day), end_at=noon(day) + timedelta(hours=8), cell=7,
            drop_mv_per_day=9.0 if number < 3 else 4.0, median_drop_mv_per_day=2.0,
        )  # fmt: skip
    faulty = rows.vehicle(db, FAULTY)
    for number, per_v in enumerate((80.0, 300.0, 90.0, 4000.0)):
        made.day(
            db, faulty, TODAY - timedelta(days=number), insulation_min_kohm=per_v * 0.4, insulation_min_ohm_per_v=per_v
        )
    made.episode(db, faulty, noon(TODAY), noon(TODAY) + timedelta(minutes=5), 2, INSULATION_FAULT, value_min=80.0)
    made.episode(db, faulty, noon(TODAY - timedelta(days=1)), noon(TODAY), 2, INSULATION_LOW, value_min=300.0)
    made.episode(db, faulty, noon(TODAY), noon(TODAY), 1, INSULATION_FAULT)  # a standard flag of the same number


@pytest.fixture(scope="module")
def battery_dsn(databases: Databases) -> Iterator[str]:
    with databases.filled(fleet) as created:
        yield created


@pytest.fixture
async def api(battery_dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(battery_dsn) as client:
        yield client


async def test_the_answer_is_what_it_is_described_as(api: httpx.AsyncClient) -> None:
    for vin in (RATED, BASELINE, YOUNG, FAULTY):
        answer = await get(api, path_of(vin, "battery"))
        Battery.model_validate(answer)
        for table, part in (
            ("outliers", "outliers"),
            ("resistance", "resistance"),
            ("self_discharge", "self_discharge"),
        ):
            names = [column["name"] for column in answer["columns"][table]]
            assert all(list(row) == names for row in answer[part])


async def test_health_against_the_rated_capacity(api: httpx.AsyncClient) -> None:
    answer = await get(api, path_of(RATED, "battery"))
    assert (answer["from"], answer["to"]) == ("2026-08-27", "2026-11-24")
    assert answer["rated"]["battery_ah"] == 152
    soh = answer["soh"]
    assert (soh["method"], soh["reference_ah"], soh["month"], soh["charges"]) == ("rated", 152, "2026-10-01", 3)
    assert soh["soh_pct"] == round(149.2 / 1.52, 3)
    # three charges of October: 149.3, 149.2, 149.1; ΔSOC 50
    scatter, rounding = 1.57 * 0.1 / 3**0.5, 149.2 / 50 / 3**0.5
    assert soh["error_pct"] == pytest.approx((scatter**2 + rounding**2) ** 0.5 / 1.52, abs=2e-3)
    assert (soh["why_not"], answer["needs"]) == (None, [])


async def test_capacity_by_month_and_its_line(api: httpx.AsyncClient) -> None:
    capacity = (await get(api, path_of(RATED, "battery")))["capacity"]
    assert capacity["accepted_charges"] == 12
    assert [(m["month"], m["charges"], m["capacity_ah"], m["p25_ah"], m["p75_ah"]) for m in capacity["months"]] == [
        ("2026-09-01", 3, 149.5, 148.5, 150.5),
        ("2026-10-01", 3, 149.2, 148.2, 150.2),
    ]
    line = capacity["line"]
    assert (line["slope_ah_per_10000km"], line["at_zero_ah"], line["charges"]) == (-1, 150, 12)
    assert (line["slope_low"], line["slope_high"]) == (-1, -1)
    assert (line["odometer_from_km"], line["odometer_to_km"]) == (0, 11_000)


@pytest.mark.parametrize(("count", "apart_km", "line"), [(4, 5_000, False), (5, 200, False), (5, 250, True)])
async def test_few_charges_or_kilometres_make_no_trend(
    db: psycopg.Connection[Any], queries: Queries, count: int, apart_km: int, line: bool
) -> None:
    one = rows.vehicle(db, RATED)
    for n in range(count):
        start = noon(TODAY - timedelta(days=n))
        made.charge(db, one, start, start + timedelta(hours=1), odometer_km=1e4 - apart_km * n, capacity_ah=150.0)
    async with client_of(queries) as client:
        found = (await get(client, path_of(RATED, "battery")))["capacity"]
    assert (found["line"] is not None) is line


async def test_the_first_ten_charges_stand_in_for_a_rated_capacity(api: httpx.AsyncClient) -> None:
    answer = await get(api, path_of(BASELINE, "battery"))
    soh = answer["soh"]
    assert (soh["method"], soh["reference_ah"]) == ("baseline_relative", 149.55)
    assert soh["soh_pct"] == round(100 * 149.2 / 149.55, 3)
    assert answer["needs"][0]["fact"] == "battery_ah"
    assert answer["cycles"]["method"] == "baseline_relative"


async def test_what_cannot_be_said_has_a_reason(api: httpx.AsyncClient) -> None:
    answer = await get(api, path_of(YOUNG, "battery"))
    assert (answer["soh"]["soh_pct"], answer["soh"]["method"]) == (None, None)
    assert "no month has 3 charges" in answer["soh"]["why_not"]
    assert answer["cycles"]["equivalent_cycles"] is None
    assert answer["insulation"]["verdict"] == "no_data"
    assert answer["spread"]["rest"] == {"p50_mv": None, "p95_mv": None, "records": 0}


async def test_equivalent_cycles_are_not_floored(api: httpx.AsyncClient) -> None:
    cycles = (await get(api, path_of(RATED, "battery")))["cycles"]
    assert (cycles["equivalent_cycles"], cycles["discharge_ah"]) == (2.5, 380)
    assert (cycles["since"], cycles["days"]) == ("2026-11-20", 5)
    assert cycles["coverage"] == round(80 / 84, 6)


async def test_spread_of_the_range_is_of_all_its_records(api: httpx.AsyncClient) -> None:
    spread = (await get(api, path_of(RATED, "battery"), **{"from": "2026-11-22"}))["spread"]
    assert spread["rest"] == {"p50_mv": 5, "p95_mv": 20, "records": 300}
    assert spread["driving"] == {"p50_mv": 30, "p95_mv": 30, "records": 300}
    assert spread["charge_end"]["records"] == 0
    assert [day["range_rest_p95_mv"] for day in spread["days"]] == [20] * 3


async def test_persistent_cells_first(api: httpx.AsyncClient) -> None:
    outliers = (await get(api, path_of(RATED, "battery")))["outliers"]
    assert [(o["cell"], o["persistent"], o["days_z"], o["days_robust"], o["days"]) for o in outliers] == [
        (7, True, 5, 5, 5), (11, True, 0, 3, 3), (9, False, 0, 0, 5),
    ]  # fmt: skip
    assert (outliers[0]["deviation_mv"], outliers[0]["first_day"]) == (-30, "2026-11-20")
    shorter = (await get(api, path_of(RATED, "battery"), **{"from": "2026-11-23"}))["outliers"]
    assert not any(o["persistent"] for o in shorter), "two days do not make one persistent"


async def test_resistance_by_month_and_class(api: httpx.AsyncClient) -> None:
    answer = await get(api, path_of(RATED, "battery"))
    # 30..34 mΩ with 10..50 samples: half of 150 is reached at 33
    assert answer["resistance"] == [
        {"month": "2026-11-01", "temp_class_c": 20, "median_mohm": 33, "samples": 150, "days": 5,
         "soc_mean_pct": 50, "temp_mean_c": 22}
    ]  # fmt: skip
    assert weighted_median([3.0, 1.0, 2.0], [1, 5, 1]) == 1.0


async def test_self_discharge_warns_at_three_rests(api: httpx.AsyncClient) -> None:
    [rest] = (await get(api, path_of(RATED, "battery")))["self_discharge"]
    assert (rest["cell"], rest["warning"], rest["rests"], rest["rests_beyond"]) == (7, True, 5, 3)
    assert (rest["excess_max_mv_per_day"], rest["excess_median_mv_per_day"]) == (7, 7)
    assert rest["last_rest_at"] == "2026-11-24T12:00:00+08:00"
    [rest] = (await get(api, path_of(RATED, "battery"), **{"from": "2026-11-23"}))["self_discharge"]
    assert (rest["warning"], rest["rests_beyond"]) == (False, 2)


async def test_insulation_is_judged_by_what_has_held(api: httpx.AsyncClient) -> None:
    good = (await get(api, path_of(RATED, "battery")))["insulation"]
    assert (good["verdict"], good["lowest_kohm"], good["lowest_ohm_per_v"]) == ("good", 2000, 5000)
    fault = (await get(api, path_of(FAULTY, "battery")))["insulation"]
    assert (fault["verdict"], fault["lowest_ohm_per_v"]) == ("fault", 80)
    assert [held["rule"] for held in fault["held"]] == ["insulation_low", "insulation_fault"]
    assert fault["days_with_dips"] == 1, "a single low value counts as a dip, not as a fault"
    before = (await get(api, path_of(FAULTY, "battery"), to="2026-11-23"))["insulation"]
    assert before["verdict"] == "warning"
    dip = (await get(api, path_of(FAULTY, "battery"), to="2026-11-22"))["insulation"]
    assert (dip["verdict"], dip["days_with_dips"]) == ("good", 1)


async def test_a_value_that_never_moves_is_reported_and_not_rated(
    db: psycopg.Connection[Any], queries: Queries
) -> None:
    one = rows.vehicle(db, RATED)
    for number in range(3):
        made.day(
            db, one, TODAY - timedelta(days=number), insulation_min_kohm=60_000.0, insulation_min_ohm_per_v=150_000.0
        )
    async with client_of(queries) as client:
        found = (await get(client, path_of(RATED, "battery")))["insulation"]
    assert (found["verdict"], found["lowest_kohm"]) == ("not_measured", 60_000)


@pytest.mark.parametrize(
    ("table", "count"),
    [("capacity", 2), ("spread", 5), ("outliers", 3), ("resistance", 1), ("self_discharge", 1), ("insulation", 5)],
)
async def test_files_hold_one_table(api: httpx.AsyncClient, table: str, count: int) -> None:
    path = path_of(RATED, "battery")
    columns = (await get(api, path))["columns"][table]
    text = (await api.get(path, params={"table": table, "format": "csv"})).text
    found = list(csv.DictReader(io.StringIO(text)))
    assert (len(found), list(found[0])) == (count, [column["name"] for column in columns])
    parquet = pq.read_table(io.BytesIO((await api.get(path, params={"table": table, "format": "parquet"})).content))
    assert (parquet.num_rows, parquet.column_names) == (count, [column["name"] for column in columns])
    answer = await api.get(path, params={"table": table, "format": "xlsx"})
    assert answer.headers["content-disposition"] == f'attachment; filename="battery-{RATED}-{table}.xlsx"'
    assert openpyxl.load_workbook(io.BytesIO(answer.content))["data"].max_row == count + 1
