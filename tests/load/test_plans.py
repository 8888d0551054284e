"""Scenarios as arithmetic: everybody's reports, in order, at the rate, never of the future, however divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.load import plans
from services.load.plans import SCENARIOS, Plan, Wave, make_plan
from services.load.worker import part_of

START_S = 1_780_000_000
LOADS = st.tuples(
    st.sampled_from(sorted(SCENARIOS)), st.integers(1, 60), st.floats(1.0, 900.0), st.floats(2.0, 90.0),
    st.integers(0, 1000),
)  # fmt: skip


def whole(scenario: str, vehicles: int, rate: float, duration_s: float, seed: int) -> Plan:
    return make_plan(scenario, part_of(vehicles, 1, 0), vehicles, rate, duration_s, seed)


def reports(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """(vehicle, k) of every report."""
    counts = plan.count(plan.duration_s)
    vehicle = np.repeat(np.arange(len(counts)), counts)
    return vehicle, np.arange(len(vehicle)) - np.repeat(np.cumsum(counts) - counts, counts)


@given(LOADS)
@settings(max_examples=60)
def test_as_many_as_the_rate_says(load: tuple[str, int, float, float, int]) -> None:
    scenario, vehicles, rate, duration_s, _ = load
    extra = vehicles if scenario == "storm" else 0
    slack = 1 if scenario != "night-charging" else vehicles  # each vehicle rounds for itself
    assert abs(whole(*load).total - (rate * duration_s + extra)) <= slack


@given(LOADS)
@settings(max_examples=60)
def test_due_times_rise_and_agree_with_the_counts(load: tuple[str, int, float, float, int]) -> None:
    plan = whole(*load)
    vehicle, k = reports(plan)
    due = plan.due_s(vehicle, k)
    same = np.diff(vehicle) == 0
    assert (np.diff(due)[same] >= -1e-9).all()
    assert len(due) == 0 or (due.min() >= 0 and due.max() <= plan.duration_s + 1e-6)
    for share in (0.0, 0.2, plans.STORM_AT, 0.5, 0.77, 1.0):
        at = share * plan.duration_s
        counted = np.bincount(vehicle[due <= at], minlength=len(plan.part))
        close = np.bincount(vehicle[np.abs(due - at) < 1e-6], minlength=len(plan.part))
        assert (np.abs(plan.count(at) - counted) <= close).all()


@given(LOADS)
@settings(max_examples=60)
def test_no_report_is_of_the_future_and_none_is_dated_as_another(load: tuple[str, int, float, float, int]) -> None:
    plan = whole(*load)
    vehicle, k = reports(plan)
    if not len(vehicle):
        return
    times = plan.data_times(vehicle, k, START_S)
    assert (times <= START_S + plan.due_s(vehicle, k) + 1e-6).all()
    assert (np.diff(times)[np.diff(vehicle) == 0] >= 1).all()
    assert times.min() >= START_S - plan.back_s() - 1


@given(LOADS, st.integers(2, 5))
@settings(max_examples=40)
def test_however_many_processes_it_is_the_same_load(
    load: tuple[str, int, float, float, int], processes: int
) -> None:  # fmt: skip
    scenario, vehicles, rate, duration_s, seed = load
    one = whole(*load)
    parts = [
        make_plan(scenario, part_of(vehicles, processes, i), vehicles, rate, duration_s, seed) for i in range(processes)
    ]
    for at in (0.3 * duration_s, 0.55 * duration_s, duration_s):
        assert np.concatenate([part.count(at) for part in parts]).tolist() == one.count(at).tolist()
        assert np.concatenate([part.sendable(at) for part in parts]).tolist() == one.sendable(at).tolist()


@given(LOADS)
@settings(max_examples=40)
def test_what_may_be_sent_never_falls_and_is_all_in_the_end(load: tuple[str, int, float, float, int]) -> None:
    plan = whole(*load)
    before = np.zeros(len(plan.part), np.int64)
    for at in np.linspace(0, plan.duration_s, 50):
        now = plan.sendable(float(at))
        assert (now >= before).all()
        assert (now <= plan.count(float(at))).all()
        before = now
    assert before.sum() == plan.total


@given(LOADS, st.integers(1, 5000))
@settings(max_examples=30)
def test_slices_cut_the_plan(load: tuple[str, int, float, float, int], frames: int) -> None:
    plan = whole(*load)
    cuts = plan.slices(frames)
    assert cuts[0] == 0.0
    assert cuts[-1] == plan.duration_s
    assert sorted(cuts) == cuts


def test_commute_has_two_peaks() -> None:
    plan = whole("commute", 100, 500.0, 240.0, 1)
    made = np.array([plan.count(float(hour) * 10).sum() for hour in range(25)])
    rates = np.diff(made) / 10
    assert rates[[7, 8, 17, 18]].min() > 2 * rates[[0, 1, 2, 12, 13, 23]].max()


def test_a_storm_has_a_report_of_each_for_the_moment_when_all_links_are_lost() -> None:
    plan = whole("storm", 50, 25.0, 60.0, 1)
    cut = plan.cuts[0]
    assert cut.who.all()
    assert cut.until_s == cut.at_s
    gained = plan.count(cut.at_s + 0.5) - plan.count(cut.at_s - 0.5)
    assert (gained == 1).all()


def test_night_charging_reports_three_times_as_often_once_plugged_in() -> None:
    plan = whole("night-charging", 200, 400.0, 100.0, 1)
    assert isinstance(plan, Wave)
    early, late = plan.count(10.0), plan.count(100.0) - plan.count(90.0)
    plugged = plan.charging(np.arange(200), np.full(200, 99.9))
    assert plugged.sum() == 200 * plans.PLUGGED_SHARE
    assert late[plugged].mean() == pytest.approx(3 * early[plugged].mean(), rel=0.2)
    assert late[~plugged].mean() == pytest.approx(early[~plugged].mean(), rel=0.2)
    since, (vehicle, k) = plan.charging_since(), reports(plan)
    assert (plan.charging(vehicle, plan.due_s(vehicle, k)) == (k >= since[vehicle])).all()


def test_an_outage_holds_the_reports_of_its_links_and_lets_them_go_in_order() -> None:
    plan = whole("outage", 100, 200.0, 100.0, 1)
    cut = plan.cuts[0]
    assert cut.who.sum() == 100 * plans.OUTAGE_SHARE
    held = plan.count(cut.until_s) - plan.sendable(cut.until_s)
    assert (held[~cut.who] == 0).all()
    assert (held[cut.who] == (plan.count(cut.until_s) - plan.count(cut.at_s))[cut.who]).all()
    assert (held[cut.who] > 0).all()
    caught_up_s = (plans.CATCH_UP * cut.until_s - cut.at_s) / (plans.CATCH_UP - 1)
    assert (plan.sendable(caught_up_s + 0.01) == plan.count(caught_up_s + 0.01)).all()
    vehicle, k = reports(plan)
    late = plan.late(vehicle, plan.due_s(vehicle, k))
    assert np.bincount(vehicle[late], minlength=100).tolist() == held.tolist()
