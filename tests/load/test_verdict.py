"""What held a load back, on given numbers."""

from __future__ import annotations

from dataclasses import replace

from services.load.verdict import Measured, judge

EASY = Measured(
    planned=100_000, sent=100_000, acked=100_000, running=0.2, queued=0.05, starved=0.0, window=0.0, offline=0.0,
    unsent=0.0,
)  # fmt: skip
BEHIND = replace(EASY, sent=60_000, acked=59_000)


def test_what_is_sent_as_planned_is_limited_by_the_plan() -> None:
    assert judge(EASY)["limited_by"] == "plan"
    assert judge(replace(EASY, sent=98_001))["limited_by"] == "plan"
    assert judge(replace(EASY, running=0.99))["limited_by"] == "plan"  # busy, but it managed


def test_full_windows_and_an_idle_generator_are_the_targets_doing() -> None:
    said = judge(replace(BEHIND, running=0.3, window=0.97, unsent=0.03))
    assert said["limited_by"] == "target"
    assert "97% of the late frames waited for answers" in said["because"]
    assert said["evidence"]["loop_waiting_share"] == 0.65
    assert said["evidence"]["reached"] == 0.6


def test_vehicles_without_a_connection_are_the_targets_doing() -> None:
    said = judge(replace(BEHIND, offline=0.8, window=0.2))
    assert (said["limited_by"], "80%" in said["because"]) == ("target", True)


def test_a_loop_that_never_waits_is_the_limit_itself_even_if_windows_are_full() -> None:
    said = judge(replace(BEHIND, running=0.93, queued=0.02, window=1.0))
    assert said["limited_by"] == "generator"
    assert "--processes" in said["because"]
    assert judge(replace(BEHIND, running=0.93, queued=None, window=1.0))["limited_by"] == "generator"


def test_a_loop_that_gets_no_processor_is_the_limit_and_says_who_has_it() -> None:
    said = judge(replace(BEHIND, running=0.4, queued=0.55, window=1.0))
    assert said["limited_by"] == "generator"
    assert "waited 55% of it for a processor that others had" in said["because"]


def test_frames_that_are_not_made_in_time_are_the_generators_doing() -> None:
    said = judge(replace(BEHIND, starved=0.4, window=0.6))
    assert said["limited_by"] == "generator"
    assert "40%" in said["because"]


def test_frames_that_could_go_and_do_not_are_the_generators_doing() -> None:
    assert judge(replace(BEHIND, running=0.6, unsent=0.9, window=0.1))["limited_by"] == "generator"


def test_nothing_planned_is_no_division_by_zero() -> None:
    none = replace(EASY, planned=0, sent=0, acked=0)
    assert judge(none)["limited_by"] == "plan"
    assert judge(none)["evidence"]["reached"] is None
