"""The folds against a simulated fleet's own truth: no database, every record where it belongs.

What they find is held against what happened second by second (``services/fleetsim/truth.py``), at the cadence, loss and
rounding of reports.  A fleet so small knows energy to half a percent only, however it is added up: a drive between
traffic lights, seen every 10 or 30 s, is a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from benchmarks import agreement as agree
from benchmarks.truth import Size, covered_sums
from schemas.signals import INDEX as SIGNAL
from schemas.signals import SIGNALS, State
from schemas.statistics import figures
from schemas.statistics.measures import INDEX
from schemas.statistics.records import FIELDS, KIND_REPORT, NO_CELL, Records
from schemas.statistics.rules import SOURCE_RULE, THERMAL_EVENT
from services.fleetsim import faults
from services.fleetsim.model import FleetModel, Samples
from services.statistics import alarms, battery, drive, quality
from tests.statistics.make_records import Run, cut

pytestmark = pytest.mark.slow

LOSS = 0.02
# fields that sensors lost, single cells gone, level-3 bursts at 1 Hz, and a level 3 that flickers
DIRT = {"sentinel": 0.01, "burst": 0.0003}


def records_of(samples: Samples, at: Any) -> Records:
    """The samples at positions ``at`` as records, without a wire between."""
    n = len(at)
    x = np.full((n, len(FIELDS)), np.nan)
    for position, name in enumerate(FIELDS):
        valid = samples.state[at, SIGNAL[name]] == State.VALID
        x[valid, position] = samples.num[at, SIGNAL[name]][valid] / SIGNALS[SIGNAL[name]].div

    def lists(values: Any, count: Any, dtype: Any) -> tuple[Any, Any]:
        ends = np.cumsum(count)
        inside = np.arange(values.shape[1]) < count[:, None]
        return np.stack([ends - count, ends], axis=1), np.ascontiguousarray(values[inside].astype(dtype))

    cell_span, cells = lists(samples.cells[at], samples.cell_count[at], np.int32)
    cells[cells > 60_000] = NO_CELL  # as the decoder has it
    probe_span, probes = lists(samples.temps[at].astype(np.int16) - 40, samples.probe_count[at], np.int16)
    none = np.zeros(n, np.int32)
    return Records(
        samples.vehicle[at].astype(np.int32), samples.time_s[at].astype(np.int64), np.full(n, KIND_REPORT, np.uint8), x,
        np.ones(n, np.int32), none, none.copy(), none.copy(), np.zeros(n, np.int64), cell_span, cells, probe_span,
        probes, np.zeros((n, 2), np.int64), np.zeros(0, np.uint8),
    )  # fmt: skip


@dataclass
class Week:
    """A fleet, what it reported, what the folds made of it, and the truth."""

    size: Size
    model: FleetModel
    run: Run
    truth: list[dict[str, Any]]
    due: int  # reports at the period, those of bursts not included
    lost: int

    def vin(self, finding: dict[str, float]) -> str:
        return self.model.fleet.vins[int(self.run.jobs.vehicle[int(finding["job"])])]

    def lines(self, what: str) -> list[dict[str, Any]]:
        return [line for line in self.truth if line["what"] == what]

    def total(self, measure: str) -> float:
        return float(np.nansum(self.run.hours[:, INDEX[measure]]))

    def matched(self, table: str) -> agree.Matching:
        what, doubt = {"trips": ("trip", agree.trip_doubt), "charges": ("charge", agree.charge_doubt)}[table]
        found = [
            agree.Session(self.vin(one), one["start_s"], one["end_s"], False, one)
            for one in self.run.found(table, "drive")
        ]
        true = []
        for line in self.lines(what):
            possible, doubtful = doubt(line, self.size.period_s)
            if possible:
                true.append(agree.Session(line["vin"], line["start_s"], line["end_s"], doubtful, line))
        return agree.match(agree.join_doubtful(true, found, self.size.period_s), found)


@pytest.fixture(
    scope="module",
    params=[(10, "report", {}), (30, "sleep", {}), (15, "report", DIRT)],
    ids=["10s-report", "30s-sleep", "15s-dirty"],
)
def week(request: pytest.FixtureRequest) -> Week:
    period_s, parked, odds = request.param
    size = Size(15, 5, period_s, 2, 1, parked=parked)
    model = size.model()
    first_s = np.full(size.vehicles, size.start_s, np.int64)
    plan = faults.make_plan(size.seed, odds, first_s, period_s, 0, size.reports)
    samples = model.samples_of(plan.bounds, plan.time_s)
    faults.blemish(plan, samples, size.seed)
    said = samples.silent == 0
    lost = np.random.default_rng(1).random(samples.n) < LOSS
    records = records_of(samples, np.flatnonzero(said & ~lost))
    run = Run(records, cut(records)).fold(quality, drive, battery, alarms)
    due = said & ((samples.time_s - size.start_s) % period_s == 0)
    return Week(size, model, run, list(model.truth()), int(due.sum()), int((due & lost).sum()))


@pytest.mark.parametrize("table", ["trips", "charges"])
def test_every_session_is_found_and_no_other(week: Week, table: str) -> None:
    matching = week.matched(table)
    assert len(matching.pairs) >= 20
    assert (matching.missed, matching.false) == ([], [])
    # from the first to the last report of it, one of which may be lost; a crawl of seconds may lie between two reports
    edges = [
        (found.start_s - true.start_s, true.end_s - found.end_s)
        for true, found in matching.pairs
        if not (true.figures or {}).get("open", False)
    ]
    off = np.array(edges) / week.size.period_s
    assert off.min() >= -2  # a tick of the odometer behind the last turn of the wheels
    assert (off <= 2).mean() >= 0.98
    assert np.median(off) <= 1


def test_energy_and_distance_over_covered_intervals(week: Week) -> None:
    records, model = week.run.records, week.size.model()
    bounds = np.searchsorted(records.vehicle, np.arange(model.fleet.n + 1)).astype(np.int64)
    counters = model.counters_of(bounds, records.time_s)
    true, sampled = np.zeros(6), np.zeros(2)
    for v in range(model.fleet.n):
        rows = slice(int(bounds[v]), int(bounds[v + 1]))
        sums, energies, _ = covered_sums(counters[rows], records.time_s[rows], week.size.gap_s)
        true, sampled = true + sums, sampled + energies
    kilometres, distance, used, charged, ampere_hours, covered = true
    assert week.total("covered_s") == covered
    assert week.total("distance_km") == pytest.approx(distance, rel=1e-3)
    assert week.total("consumption_km") == pytest.approx(kilometres, rel=1e-3)
    assert week.total("charge_kwh") == pytest.approx(charged, rel=1e-3)
    assert week.total("charge_ah") == pytest.approx(ampere_hours, rel=1e-3)
    # between seconds that nobody reported it is the sample that errs, not the sum
    assert week.total("consumption_kwh") == pytest.approx(sampled[0], rel=2e-3)
    assert week.total("consumption_kwh") == pytest.approx(used, rel=0.02)
    parts = week.total("out_kwh") - week.total("regen_kwh") + week.total("standing_kwh")
    assert week.total("consumption_kwh") == pytest.approx(parts, rel=1e-3)


def test_capacity(week: Week) -> None:
    values: dict[str, list[float]] = {}
    for true, found in week.matched("charges").pairs:
        assert found.figures is not None
        if not np.isnan(found.figures["capacity_ah"]):
            values.setdefault(true.vin, []).append(found.figures["capacity_ah"])
    capacity = {line["vin"]: line["capacity_ah"] for line in week.lines("vehicle")}
    errors = [np.median(found) / capacity[vin] - 1 for vin, found in values.items() if len(found) >= 3]
    assert len(errors) >= 5
    assert max(map(abs, errors)) <= 0.02
    assert abs(np.mean(errors)) <= 0.005


def test_the_planted_weak_cells_are_the_outliers(week: Week) -> None:
    days: dict[tuple[str, int], int] = {}
    for one in week.run.found("cell_outliers", "battery"):
        if figures.outlier_day(int(one["z_rows"]), int(one["usable_rows"]), one["deviation_mv"]):
            key = (week.vin(one), int(one["cell"]))
            days[key] = days.get(key, 0) + 1
    planted = {(line["vin"], line["weak_cell"]) for line in week.lines("vehicle") if line["weak_cell"]}
    assert len(planted) == 2
    assert {key for key, count in days.items() if count >= figures.OUTLIER_DAYS} == planted


def test_the_fire_is_raised_and_nothing_else_is_one(week: Week) -> None:
    (fire,) = week.lines("thermal_event")
    raised = [
        one for one in week.run.found("alarm_episodes", "alarms")
        if (one["source"], one["code"]) == (SOURCE_RULE, THERMAL_EVENT)
    ]  # fmt: skip
    assert [week.vin(one) for one in raised] == [fire["vin"]]
    assert 0 <= raised[0]["start_s"] - fire["start_s"] <= 60 + 2 * week.size.period_s
    assert raised[0]["level"] == 3


def test_what_is_missing_is_what_was_lost(week: Week) -> None:
    assert week.total("records") == week.run.records.n
    # a loss at the edge of a sleep cannot be seen, and waking up shifts the count by a part of an interval
    assert week.total("expected") == pytest.approx(week.due, rel=0.005)
    assert week.total("missing_s") == pytest.approx(week.lost * week.size.period_s, rel=0.15)
