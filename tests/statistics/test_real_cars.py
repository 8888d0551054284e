"""Two real cars, replayed as GB/T 32960 frames through a gateway: what the tables then say, against pandas.

Nothing in the data was cleaned (tests/data/real/README.md): cells at the field's all ones and at 0 V, seconds told
twice with different values, holes from minutes to six days, an odometer that steps back.  ``real_cars`` computes the
same statistics from the rules with pandas; here both are held together within 1 %.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

from benchmarks import agreement as agree
from schemas.gbt32960.encode import build_login, build_logout
from schemas.statistics import figures
from schemas.statistics.rules import SOURCE_RULE, THERMAL_EVENT
from services.settings import Settings
from services.topology import System
from tests.fix_db import Databases
from tests.statistics import real_cars
from tests.statistics.real_cars import CARS, Car, Wire

pytestmark = [pytest.mark.slow, pytest.mark.database]

PATIENCE_S = 240.0
BLOCK = 500  # frames in flight


def replay(address: tuple[str, int], car: Car, rows: Wire) -> None:
    """One terminal: logs in, sends every row as 0x02 in the file's order, waits for each answer, logs out."""
    with socket.create_connection(address, 30.0) as line:
        answers = line.makefile("rb")

        def answered() -> tuple[int, int]:
            head = answers.read(24)
            answers.read(int.from_bytes(head[22:24], "big") + 1)
            return head[2], head[3]

        line.sendall(build_login(16, car.vin, int(rows.time_s[0]), 1, "89860000000000000001"))
        assert answered() == (1, 1)
        frames = real_cars.frames(car, rows)
        for begin in range(0, len(frames), BLOCK):
            block = frames[begin : begin + BLOCK]
            line.sendall(b"".join(block))
            for _ in block:
                assert answered() == (2, 1)
        line.sendall(build_logout(16, car.vin, int(rows.time_s[-1]), 1))
        assert answered() == (4, 1)


def wait_for(db: psycopg.Connection[Any], what: str, query: str) -> None:
    """Until ``query`` answers 0."""
    deadline = time.monotonic() + PATIENCE_S
    while (row := db.execute(query).fetchone()) is None or row[0]:
        assert time.monotonic() < deadline, f"{what}: {row} left after {PATIENCE_S:.0f} s"
        time.sleep(0.1)


class Replayed:
    """The database after both cars, and pandas' view of them."""

    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self.db = db
        self.wires = {car.name: real_cars.wire(car) for car in CARS}
        self.tables = {car.name: real_cars.table(car, self.wires[car.name]) for car in CARS}

    def one(self, car: Car, what: str, table: str = "vehicle_day") -> Any:
        row = self.db.execute(
            f"SELECT {what} FROM {table} WHERE vehicle_id = (SELECT vehicle_id FROM vehicles WHERE vin = %s)",
            (car.vin,),
        ).fetchone()
        assert row is not None
        return row[0]

    def sessions(self, car: Car, table: str, *columns: str) -> pd.DataFrame:
        names = ("start_at", "end_at", *columns)
        rows = self.db.execute(
            f"SELECT {', '.join(names)} FROM {table} JOIN vehicles USING (vehicle_id) WHERE vin = %s ORDER BY start_at",
            (car.vin,),
        ).fetchall()
        found = pd.DataFrame(rows, columns=list(names))
        for name in ("start", "end"):
            found[f"{name}_s"] = [int(at.timestamp()) for at in found[f"{name}_at"]]
        return found


@pytest.fixture(scope="module")
def replayed(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replayed]:
    dsn = databases.create(migrated=True)
    runtime: Path = tmp_path_factory.mktemp("run")
    settings = Settings.read(
        overrides={
            "runtime_dir": runtime,
            "database": {"dsn": dsn},
            "gateway": {"mqtt": {"port": 0}, "gbt32960": {"port": 0}},
            "web": {"port": 0},
            "pipeline": {"clock_past_max_days": 40_000},
        }
    )
    with System(settings) as system, psycopg.connect(dsn, autocommit=True) as db:
        found = Replayed(db)
        for car in CARS:
            replay(system.addresses["gbt32960"], car, found.wires[car.name])
        wait_for(
            db, "journal records",
            'SELECT count(*) FROM (SELECT partition, max("offset") AS last FROM journal GROUP BY partition) j'
            ' LEFT JOIN journal_positions p USING (partition) WHERE p."offset" IS DISTINCT FROM j.last',
        )  # fmt: skip
        wait_for(db, "changes", "SELECT count(*) FROM statistics_changes")
        yield found
    databases.drop(dsn)


@pytest.fixture(params=CARS, ids=[car.name for car in CARS])
def car(request: pytest.FixtureRequest) -> Car:
    chosen: Car = request.param
    return chosen


def test_every_second_is_there_once(replayed: Replayed, car: Car) -> None:
    rows = replayed.wires[car.name]
    assert replayed.one(car, "sum(records)") == len(np.unique(rows.time_s))
    assert replayed.one(car, "count(*)", "telemetry") == len(np.unique(rows.time_s))


@pytest.mark.parametrize(
    "measure",
    ["distance_km", "untracked_km", "consumption_km", "consumption_kwh", "charge_kwh", "charge_ah", "covered_s"],
)
def test_sums_are_those_of_pandas(replayed: Replayed, car: Car, measure: str) -> None:
    expected = real_cars.totals(replayed.tables[car.name])[measure]
    assert replayed.one(car, f"sum({measure})") == pytest.approx(expected, rel=0.01, abs=1e-6)


def test_consumption(replayed: Replayed, car: Car) -> None:
    expected = real_cars.totals(replayed.tables[car.name])["per_100km"]
    said = figures.per_100km(replayed.one(car, "sum(consumption_kwh)"), replayed.one(car, "sum(consumption_km)"))
    assert said == pytest.approx(expected, rel=0.01)
    assert 10 < expected < 16, "as cars of that size use"


def test_consumption_of_each_day(replayed: Replayed, car: Car) -> None:
    data = replayed.tables[car.name]
    local = pd.to_datetime(data["t"], unit="s", utc=True).dt.tz_convert(real_cars.ZONE).dt.date
    days = {day: real_cars.totals(part) for day, part in data.groupby(local)}
    said = dict(
        replayed.db.execute(
            "SELECT day, consumption_kwh FROM vehicle_day JOIN vehicles USING (vehicle_id)"
            " WHERE vin = %s AND records > 0",
            (car.vin,),
        ).fetchall()
    )
    assert set(said) == set(days)
    for day, expected in days.items():
        # the interval over midnight belongs to the day in which it ends; pandas' days do not have it
        assert said[day] == pytest.approx(expected["consumption_kwh"], rel=0.01, abs=0.1), day


def test_trips(replayed: Replayed, car: Car) -> None:
    expected = real_cars.trips(car, replayed.tables[car.name])
    expected = expected[expected["kept"]]
    found = replayed.sessions(car, "trips", "distance_km", "untracked_km")
    assert len(found) == pytest.approx(len(expected), rel=0.01)
    assert found["distance_km"].sum() == pytest.approx(expected["distance_km"].sum(), rel=0.01)
    matching = agree.match(
        [agree.Session(car.vin, a, b) for a, b in zip(expected["start_s"], expected["end_s"], strict=True)],
        [agree.Session(car.vin, a, b) for a, b in zip(found["start_s"], found["end_s"], strict=True)],
    )
    assert matching.f1 is not None
    # records half a minute apart leave a few stops to taste (a lone moving record between standing ones)
    assert matching.f1 >= (1.0 if car.nominal_s == 1 else 0.99)
    same = sum((a.start_s, a.end_s) == (b.start_s, b.end_s) for a, b in matching.pairs)
    assert same >= (1.0 if car.nominal_s == 1 else 0.98) * len(matching.pairs)


def test_charges_and_capacity(replayed: Replayed, car: Car) -> None:
    expected = real_cars.charges(car, replayed.tables[car.name])
    expected = expected[expected["kept"]].reset_index(drop=True)
    columns = ("energy_kwh", "charge_ah", "start_soc_pct", "end_soc_pct", "capacity_ah")
    found = replayed.sessions(car, "charges", *columns)
    assert found[["start_s", "end_s"]].to_numpy().tolist() == expected[["start_s", "end_s"]].to_numpy().tolist()
    for name in columns:
        said, true = found[name].to_numpy(float), expected[name].to_numpy(float)
        np.testing.assert_allclose(said, true, rtol=0.01, equal_nan=True)
    assert len(expected) == {"car1": 3, "car2": 0}[car.name]
    assert found["capacity_ah"].notna().sum() == {"car1": 1, "car2": 0}[car.name]


def test_cells_that_are_none_are_none(replayed: Replayed, car: Car) -> None:
    """66.535 V (all ones) and 0 V are missing, not extremes; rows with more than five such cells are left out (3.1)."""
    cells = replayed.wires[car.name].cells.astype(float)
    _, first = np.unique(replayed.wires[car.name].time_s, return_index=True)
    cells = cells[first]
    missing = (cells == 65_535) | (cells == 0)
    assert missing.any(), "there is dirt in it"
    cells[missing] = np.nan
    usable = missing.sum(axis=1) <= 5
    assert replayed.one(car, "sum(cell_rows)") == pytest.approx(usable.sum(), abs=6)
    assert replayed.one(car, "max(cell_max_v)") == pytest.approx(np.nanmax(cells) / 1000, abs=1e-3)
    assert replayed.one(car, "min(cell_min_v)") == pytest.approx(np.nanmin(cells) / 1000, abs=1e-3)
    spread = np.nanmax(cells[usable], axis=1) - np.nanmin(cells[usable], axis=1)
    assert replayed.one(car, "max(cell_range_max_mv)") == pytest.approx(spread.max(), rel=0.01)


def test_the_one_cell_that_really_drifts(replayed: Replayed, car: Car) -> None:
    """Car 2 has one cell below the others for months, as z > 3 in half of the rows of a day shows (4.7); car 1 none."""
    rows = replayed.wires[car.name]
    cells = rows.cells.astype(float)
    cells[(cells == 65_535) | (cells == 0)] = np.nan
    cells = cells[np.isnan(cells).sum(axis=1) <= 5]
    z = (cells - np.nanmean(cells, axis=1, keepdims=True)) / np.nanstd(cells, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        drifting = {int(c) + 1 for c in np.flatnonzero((np.abs(z) > 3).mean(axis=0) >= 0.5)}
    found = {
        row[0]
        for row in replayed.db.execute(
            "SELECT cell FROM cell_outliers JOIN vehicles USING (vehicle_id) WHERE vin = %s"
            " AND 2 * z_rows >= usable_rows AND abs(deviation_mv) >= 10 GROUP BY cell HAVING count(*) >= 3",
            (car.vin,),
        )
    }
    assert found == drifting
    assert len(drifting) == {"car1": 0, "car2": 1}[car.name]


def test_nothing_burns(replayed: Replayed, car: Car) -> None:
    rows = replayed.db.execute(
        "SELECT count(*) FROM alarm_episodes JOIN vehicles USING (vehicle_id)"
        " WHERE vin = %s AND source = %s AND code = %s",
        (car.vin, SOURCE_RULE, THERMAL_EVENT),
    ).fetchone()
    assert rows == (0,)


def test_holes_are_distance_without_a_trip(replayed: Replayed, car: Car) -> None:
    """Distance driven in holes is kept apart, and not divided by (4.3): else consumption reads far too low."""
    distance, untracked = replayed.one(car, "sum(distance_km)"), replayed.one(car, "sum(untracked_km)")
    energy = replayed.one(car, "sum(consumption_kwh)")
    assert untracked / distance > 0.25
    honest = real_cars.totals(replayed.tables[car.name])["per_100km"]
    assert 100 * energy / distance < 0.75 * honest
