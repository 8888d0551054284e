"""`bench sessions` folds a fleet that does what it says, and reports what its document names."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import sessions
from benchmarks.runner import run
from schemas.statistics.sessions import TABLE
from services.statistics import drive, quality
from tests.statistics.make_records import Run


def test_the_fleet_drives_charges_and_parks() -> None:
    records = sessions.fleet(2, lists=True)
    jobs = sessions.hours_of(records)
    folded = Run(records, jobs).fold(quality, drive)
    tables = folded.findings["drive"][:, 1]
    assert (tables == TABLE["trips"]).sum() >= 4
    assert (tables == TABLE["charges"]).sum() >= 2
    day = folded.day(1)
    assert day["records"] / day["expected"] == pytest.approx(0.98, abs=0.02)
    assert 20 < day["distance_km"] < 300
    assert 5 < 100 * day["consumption_kwh"] / day["consumption_km"] < 60
    assert set(np.diff(records.cell_span).ravel()) == {sessions.CELLS}


def test_the_same_fleet_every_time() -> None:
    a, b = sessions.fleet(1, False, 500), sessions.fleet(1, False, 500)
    np.testing.assert_array_equal(a.x, b.x)


@pytest.mark.slow
def test_the_result_has_what_the_document_says() -> None:
    result = run("sessions", quick=True)
    assert result["ratio"] == pytest.approx(result["records_per_s"] / result["baseline_records_per_s"], rel=0.01)
    for case in result["cases"]:
        assert [fold["fold"] for fold in case["folds"]] == ["quality", "drive", "battery", "alarms"]
        assert all(fold["ratio"] > 0 for fold in case["folds"])
    plain, lists = result["cases"]
    assert plain["found"] > 0
    assert lists["records"] < plain["records"]
