"""What must hold whatever a vehicle sends: kernel and twin could be wrong together, these would say so."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given, settings

from schemas.statistics.measures import INDEX
from schemas.statistics.records import DAY_ENDS, HOUR_ENDS, Jobs, Records
from services.statistics import drive, quality
from tests.statistics.make_records import Run, chosen, cut, same
from tests.statistics.strategies import fleets

EPSILON = 1e-6


def total(run: Run, *names: str) -> float:
    return float(sum(run.hours[:, INDEX[name]].sum() for name in names))


@settings(max_examples=60, deadline=None)
@given(fleets())
def test_parts_are_no_larger_than_the_whole(records: Records) -> None:
    run = Run(records, cut(records)).fold(quality, drive)
    trips, charges = run.found("trips"), run.found("charges")
    assert total(run, "driving_s", "charging_s", "parked_s") <= total(run, "covered_s") + EPSILON
    assert total(run, "moving_s") <= total(run, "covered_s") + EPSILON
    assert total(run, "standing_s") <= total(run, "parked_s") + EPSILON
    assert total(run, "consumption_km", "untracked_km") <= total(run, "distance_km") + EPSILON
    assert sum(trip["distance_km"] for trip in trips) <= total(run, "distance_km") + EPSILON
    assert sum(trip["untracked_km"] for trip in trips) <= total(run, "untracked_km") + EPSILON
    assert sum(trip["consumption_km"] for trip in trips) <= total(run, "consumption_km") + EPSILON
    assert sum(trip["records"] for trip in trips) <= total(run, "records")
    assert total(run, "records") <= total(run, "expected") + total(run, "records") * 60  # nominal is 1..60 s
    for session in (*trips, *charges):
        duration = session["end_s"] - session["start_s"]
        assert 0 <= session["covered_s"] <= duration
        assert math.isnan(session["settled_s"]) or session["settled_s"] > session["end_s"]
        assert session["records"] >= 1
    for trip in trips:
        assert 0 <= trip["moving_s"] <= trip["covered_s"]
        assert trip["distance_km"] >= trip["untracked_km"] >= 0
        assert trip["distance_km"] >= 0.5 or trip["end_s"] - trip["start_s"] >= 300
        assert trip["out_kwh"] >= 0
        assert trip["regen_kwh"] >= 0
    for charge in charges:
        assert charge["end_s"] - charge["start_s"] >= 120
        assert 0 <= charge["middle_coverage"] <= 1 + EPSILON
        assert math.isnan(charge["capacity_ah"]) or charge["end_soc_pct"] - charge["start_soc_pct"] >= 30


@settings(max_examples=60, deadline=None)
@given(fleets())
def test_sessions_of_a_kind_follow_each_other(records: Records) -> None:
    run = Run(records, cut(records)).fold(quality, drive)
    for table in ("trips", "charges"):
        for vehicle in range(run.vehicles):
            mine = [one for one in run.found(table) if run.jobs.vehicle[int(one["job"])] == vehicle]
            for earlier, later in itertools.pairwise(mine):
                assert earlier["end_s"] < later["start_s"]
                assert later["start_s"] >= earlier["settled_s"]
            assert all(not math.isnan(one["settled_s"]) for one in mine[:-1])


@settings(max_examples=60, deadline=None)
@given(fleets())
def test_what_is_settled_is_settled_in_its_hour(records: Records) -> None:
    run = Run(records, cut(records)).fold(quality, drive)
    for session in (*run.found("trips"), *run.found("charges")):
        begin = run.jobs.hour_start_s[int(session["job"])]
        assert math.isnan(session["settled_s"]) or begin <= session["settled_s"] < begin + 3600


def _first(jobs: Jobs, count: int) -> Jobs:
    return Jobs(**{name: getattr(jobs, name)[:count].copy() for name in Jobs.__dataclass_fields__})


@settings(max_examples=60, deadline=None)
@given(fleets(vehicles_max=1))
def test_nothing_depends_on_what_comes_after_its_hour(records: Records) -> None:
    """Hours and what is settled in them are the same when later records are not known yet."""
    whole = Run(records, cut(records)).fold(quality, drive)
    ends = np.flatnonzero(np.isin(whole.jobs.close, (HOUR_ENDS, DAY_ENDS)))
    if not len(ends):
        return
    kept = int(ends[len(ends) // 2]) + 1
    early = Run(chosen(records, np.arange(whole.jobs.end[kept - 1])), _first(whole.jobs, kept)).fold(quality, drive)
    assert same(early.hours, whole.hours[: len(early.hours)])
    assert same(early.gap_limit_s, whole.gap_limit_s[: early.records.n])
    assert same(early.mode, whole.mode[: early.records.n])
    known = whole.findings["drive"][whole.findings["drive"][:, 0] < kept]
    assert same(early.findings["drive"], known)
