"""What several days say of a cell: the views over the battery's findings."""

from __future__ import annotations

from datetime import date, timedelta

import psycopg
import pytest

pytestmark = pytest.mark.database

FIRST = date(2026, 6, 1)


def test_an_outlier_persists_from_its_third_day_on(dsn: str) -> None:
    days = {  # cell: (usable, z rows, robust rows, mV) of each of its days
        1: [(100, 50, 0, -12.0), (100, 0, 60, -20.0), (10, 5, 5, -11.0)],
        2: [(100, 100, 100, -50.0)] * 2,  # two days
        3: [(100, 100, 100, 9.9)] * 3,  # too near
        4: [(100, 49, 49, 30.0)] * 3,  # too rare
        5: [(100, 80, 80, 30.0)] * 4,
    }
    with psycopg.connect(dsn) as db:
        for cell, lines in days.items():
            for k, (usable, z, robust, off) in enumerate(lines):
                day = FIRST + timedelta(k)
                db.execute(
                    "INSERT INTO cell_outliers (vehicle_id, day, settled_on, start_at, cell, usable_rows, z_rows,"
                    " robust_rows, deviation_mv) VALUES (7, %s, %s, %s, %s, %s, %s, %s, %s)",
                    (day, day, day, cell, usable, z, robust, off),
                )
        found = db.execute("SELECT cell, days, first_day, last_day, deviation_mv FROM persistent_outliers ORDER BY 1")
        assert found.fetchall() == [
            (1, 3, FIRST, FIRST + timedelta(2), -12.0),
            (5, 4, FIRST, FIRST + timedelta(3), 30.0),
        ]


def test_three_rests_warn_of_a_cell(dsn: str) -> None:
    rests = {1: [(9.0, 4.0), (5.0, 0.0), (30.0, 1.0)], 2: [(40.0, 1.0)] * 2, 3: [(8.0, 4.0)] * 3}
    with psycopg.connect(dsn) as db:
        for cell, lines in rests.items():
            for k, (drop, median) in enumerate(lines):
                day = FIRST + timedelta(k)
                db.execute(
                    "INSERT INTO cell_rests (vehicle_id, day, settled_on, start_at, end_at, cell, drop_mv_per_day,"
                    " median_drop_mv_per_day) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                    (cell, day, day, day, day, cell, drop, median),
                )
        found = db.execute("SELECT vehicle_id, cell, rests, excess_mv_per_day FROM self_discharging_cells")
        assert found.fetchall() == [(1, 1, 3, 5.0)]
