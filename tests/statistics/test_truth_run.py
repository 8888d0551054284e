"""`bench truth` small: a faulty fleet through the whole system, the statistics held against the fleet's own truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import runner, truth
from services.settings import Settings
from services.topology import System
from tests.fix_db import Databases

pytestmark = [pytest.mark.slow, pytest.mark.database, pytest.mark.timeout(900)]

SIZE = truth.Size(vehicles=12, days=4, period_s=20, weak=2, thermal=1, seed=7, blackouts_per_day=0.2)


@pytest.fixture(scope="module")
def result(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    dsn = databases.create(migrated=True)
    settings = Settings.read(
        overrides={
            "runtime_dir": tmp_path_factory.mktemp("run"),
            "database": {"dsn": dsn},
            "gateway": {"mqtt": {"port": 0}, "gbt32960": {"port": 0}},
            "web": {"port": 0},
            "pipeline": {"clock_past_max_days": 40_000},
        }
    )
    with System(settings) as system:
        yield truth.through(dsn, system.addresses["mqtt"][1], system.addresses["gbt32960"][1], SIZE, lambda _line: None)
    databases.drop(dsn)


@pytest.mark.parametrize("table", ["trips", "charges"])
def test_sessions_are_found(result: dict[str, Any], table: str) -> None:
    assert result[table]["true"] >= 20
    assert result[table]["f1"] >= 0.99, result[table]["examples"]
    assert result[table]["start_off_p95_s"] <= 3 * SIZE.period_s
    assert result[table]["end_off_p95_s"] <= 3 * SIZE.period_s


def test_distance_and_energy_over_covered_intervals(result: dict[str, Any]) -> None:
    sums = result["sums"]
    assert result["distance_error_pct"] <= 0.1
    assert sums["distance_km"]["error_pct"] <= 0.1
    assert sums["covered_s"]["error_pct"] == 0
    assert sums["charge_kwh"]["error_pct"] <= 0.1
    assert sums["charge_ah"]["error_pct"] <= 0.1
    # a dozen vehicles' stop and go every 20 s is a sample: the system must add nothing to its error
    assert sums["consumption_kwh"]["system_pct"] <= 0.1
    assert result["energy_error_pct"] <= 2


def test_each_day_has_its_own(result: dict[str, Any]) -> None:
    days = result["days"]
    assert days["of"] >= SIZE.vehicles * SIZE.days - 4  # a vehicle that burnt has fewer
    # an interval over midnight belongs to one day, and its odometer ticks in 0.1 km
    assert days["distance_off_km"]["p50"] <= 0.1
    assert days["distance_off_km"]["p100"] <= 0.1 + 2 * SIZE.period_s * 100 / 3600
    assert days["charge_off_kwh"]["p95"] <= 2


def test_capacity(result: dict[str, Any]) -> None:
    assert result["capacity"]["error"]["of"] >= 4
    assert result["capacity"]["error"]["max_pct"] <= 2


def test_what_was_planted_is_found_and_nothing_else(result: dict[str, Any]) -> None:
    weak, thermal = result["weak_cells"], result["thermal"]
    assert (weak["planted"], weak["recall"], weak["precision"]) == (2, 1, 1)
    assert (thermal["planted"], thermal["found"], thermal["false"]) == (1, 1, 0)


def test_completeness(result: dict[str, Any]) -> None:
    found = result["completeness"]
    assert found["records"] == found["records_true"] == result["records"]
    assert found["reissued"] == found["reissued_true"] > 0
    assert found["error_points"] <= 0.05
    assert found["missing_s"] == pytest.approx(found["missing_true_s"], rel=0.01)


def test_goals_name_figures_that_there_are(result: dict[str, Any]) -> None:
    for name in truth.GOALS:
        assert runner._at(result, name) is not None, name
