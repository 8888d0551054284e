"""Alarm episodes: when they begin, end and are the same; the platform's rules; what is a thermal event and what not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from schemas.statistics import rules
from schemas.statistics.records import DAY_ENDS, KIND_LOGOUT, NO_CELL, NO_PROBE, PARKED
from services.statistics import alarms
from services.statistics import alarms_layout as a
from tests.statistics.make_records import DAY, MIDNIGHT, Run, cut, series

NOON = MIDNIGHT + DAY // 2
INSULATION = 1 << 11


def fold(times: Any, gap_s: float = 120, **columns: Any) -> Run:
    records = series([NOON + t for t in times], **{"alarm_flags": 0, "alarm_level": 0, **columns})
    run = Run(records, cut(records))
    run.gap_limit_s[:] = gap_s
    run.mode[:] = PARKED
    return run.fold(alarms)


def episodes(run: Run, source: int, code: int) -> list[dict[str, float]]:
    found = run.found("alarm_episodes")
    return [one for one in found if (one["source"], one["code"]) == (source, code)]


def spans(run: Run, source: int, code: int) -> list[tuple[float, float, float]]:
    """(begin, end, settled) in seconds from noon; settled None = open."""
    return [
        (one["start_s"] - NOON, one["end_s"] - NOON, -1 if math.isnan(one["settled_s"]) else one["settled_s"] - NOON)
        for one in episodes(run, source, code)
    ]


def flagged(times: list[int], on: list[Any], **columns: Any) -> list[tuple[float, float, float]]:
    """Spans of the insulation flag that is ``on`` (None: no alarm data) at ``times``."""
    flags = [np.nan if one is None else INSULATION * one for one in on]
    return spans(fold(times, alarm_flags=flags, **columns), rules.SOURCE_FLAG, 11)


# -- flags (5)


@pytest.mark.parametrize(
    ("times", "on", "said"),
    [
        ([0, 10, 20, 30], [0, 1, 1, 0], [(10, 20, -1)]),
        ([0, 10, 69, 70], [1, 0, 0, 0], [(0, 0, 70)]),  # 0 for 60 s
        ([0, 10, 60, 69], [1, 0, 0, 1], [(0, 69, -1)]),  # back within 60 s: the same
        ([0, 10, 70, 80], [1, 0, 1, 0], [(0, 0, 70), (70, 70, -1)]),  # back after 60 s: another
        ([0, 100, 200], [1, 1, 1], [(0, 200, -1)]),  # sparse, never seen at 0
        ([0, 121], [1, 1], [(0, 0, 121), (121, 121, -1)]),  # silent beyond the gap limit: offline
        ([0, 60, 120, 180], [1, None, None, 1], [(0, 0, 180), (180, 180, -1)]),  # no alarm data for as long
        ([0, 60, 120, 180], [1, None, 1, 1], [(0, 180, -1)]),
        ([0, 10], [0, 0], []),
    ],
)
def test_when_an_episode_begins_and_ends(times: list[int], on: list[Any], said: list[Any]) -> None:
    assert flagged(times, on) == said


def test_a_logout_ends_what_is_open() -> None:
    assert flagged([0, 10, 20, 30], [1, 1, 0, 1], kind=[2, 2, KIND_LOGOUT, 2]) == [(0, 10, 20), (30, 30, -1)]


def test_what_an_episode_keeps() -> None:
    run = fold(
        [0, 10, 20, 30],
        alarm_flags=[0, 2, 2, 2],
        alarm_level=[3, 1, 2, np.nan],
        max_temp_c=[90, 57, 61, 59],
        min_temp_c=50,
        longitude_deg=[np.nan, np.nan, 116.5, 117],
        latitude_deg=[np.nan, np.nan, 39.5, 40],
        late_us=[0, 60_000_001, 0, 0],
    )
    (one,) = episodes(run, rules.SOURCE_FLAG, rules.FLAG_HIGH_TEMPERATURE)
    assert (one["level"], one["records"], one["late"]) == (2, 3, 1)
    assert (one["value_min"], one["value_max"]) == (57, 61)
    assert (one["longitude_deg"], one["latitude_deg"]) == (116.5, 39.5)  # the first that is known


def test_late_is_more_than_60_s() -> None:
    run = fold([0], alarm_flags=1, late_us=60_000_000)
    assert [one["late"] for one in episodes(run, rules.SOURCE_FLAG, 0)] == [0]


def test_flags_of_all_ones_are_no_data() -> None:
    for ones in (0xFFFF_FFFF, 0xFFFF_FFFE):
        assert fold([0, 10], alarm_flags=ones, alarm_level=np.nan).found("alarm_episodes") == []
    assert len(fold([0, 10], alarm_flags=1 << 31).found("alarm_episodes")) == 1


def test_time_under_alarm() -> None:
    run = fold([0, 10, 40, 50, 300], alarm_flags=[0, 1, 3, 0, 0], alarm_level=[0, 1, 2, 0, 3])
    assert run.day()["alarm_s"] == 40
    assert run.day()["alarm_level_max"] == 3
    assert run.tally("flag_s")[:3] == [40, 10, 0]


def test_a_level_without_a_flag_is_the_makers_own_fault() -> None:
    run = fold([0, 10, 20], alarm_level=[0, 2, 3])
    (one,) = episodes(run, rules.SOURCE_RULE, rules.LEVEL_WITHOUT_FLAG)
    assert (one["start_s"] - NOON, one["level"]) == (10, 3)
    assert run.day()["alarm_s"] == 10
    assert episodes(fold([0, 10], alarm_level=2, alarm_flags=1), rules.SOURCE_RULE, rules.LEVEL_WITHOUT_FLAG) == []


# -- thresholds (4.8, 4.9)


def test_temperature_levels_need_two_records() -> None:
    run = fold(range(0, 60, 10), max_temp_c=[54, 55, 61, 54, 52, 60], min_temp_c=50)
    assert spans(run, rules.SOURCE_RULE, rules.TEMPERATURE_HIGH) == [(10, 50, -1)]  # 54 has not cleared it
    assert spans(run, rules.SOURCE_RULE, rules.TEMPERATURE_VERY_HIGH) == []  # 61 was alone
    assert [one["level"] for one in episodes(run, rules.SOURCE_RULE, rules.TEMPERATURE_HIGH)] == [1]


def test_the_spread_of_probes() -> None:
    run = fold([0, 10], probes_c=[[20, 35, NO_PROBE], [20, 35, -40]])
    (one,) = episodes(run, rules.SOURCE_RULE, rules.TEMPERATURE_SPREAD)
    assert (one["value_min"], one["value_max"]) == (15, 15)


@pytest.mark.parametrize(
    ("kohm", "volts", "step_s", "low", "fault"),
    [
        ([200, 200, 200], 400, 10, 0, 0),
        ([199, 199, 199], 400, 10, 1, 0),
        ([40, 40, 40], 400, 10, 1, 0),
        ([39, 39, 39], 400, 10, 1, 1),
        ([39, 39], 400, 10, 0, 0),  # a single dip, or two
        ([39, 39], 400, 30, 1, 1),  # or for 30 s
        ([39, 5000, 39, 39], 400, 10, 0, 0),  # not in a row
        ([1, 1, 1], 59, 10, 0, 0),  # no judgement below 60 V
    ],
)
def test_insulation(kohm: list[float], volts: float, step_s: int, low: int, fault: int) -> None:
    run = fold([step_s * k for k in range(len(kohm))], insulation_resistance_kohm=kohm, total_voltage_v=volts)
    assert len(episodes(run, rules.SOURCE_RULE, rules.INSULATION_LOW)) == low
    assert len(episodes(run, rules.SOURCE_RULE, rules.INSULATION_FAULT)) == fault


def test_one_constant_for_months_is_not_measured() -> None:
    times = list(range(0, 40 * DAY, 3600)) + [40 * DAY + 10 * k for k in range(4)]
    kohm = [10.0] * (len(times) - 3) + [11, 12, 11]
    run = fold(times, gap_s=3600, insulation_resistance_kohm=kohm, total_voltage_v=400)
    first, second = episodes(run, rules.SOURCE_RULE, rules.INSULATION_FAULT)
    assert first["end_s"] - NOON < 30 * DAY
    assert second["start_s"] - NOON == 40 * DAY + 10  # it moves: it is measured


def test_speed() -> None:
    assert spans(fold([0, 10, 20], speed_kmh=[129.9, 130, 135]), rules.SOURCE_RULE, rules.SPEED_LIMIT) == [(10, 20, -1)]
    table = rules.rule_array({"speed_limit": {"threshold": 80, "clear": 75}})
    records = series([NOON, NOON + 10], speed_kmh=81)
    run = Run(records, cut(records))
    found = alarms.run(
        records, run.jobs, np.full(2, 60.0), run.mode, alarms.initial_state()[None, :], run.hours, run.tallies, table
    )
    assert len(found) == 1


# -- a cell that stands off (4.7)


def cells_off(mv: int, seconds: int, other_at: int = -1) -> Run:
    rows = [[3700, 3701, 3702, 3703, 3704, 3705, 3706, 3707 - mv] for _ in range(seconds // 10 + 1)]
    if other_at >= 0:
        for row in rows[other_at:]:
            row[0], row[7] = 3703 - mv, 3703
    return fold(range(0, seconds + 1, 10), cells_mv=rows)


def test_a_cell_off_for_300_s() -> None:
    (one,) = episodes(cells_off(80, 300), rules.SOURCE_RULE, rules.CELL_OUTLIER)
    assert (one["start_s"], one["value_max"]) == (NOON, 75.5)  # 3627 against the median of the eight, 3702.5
    assert episodes(cells_off(80, 290), rules.SOURCE_RULE, rules.CELL_OUTLIER) == []
    assert episodes(cells_off(45, 600), rules.SOURCE_RULE, rules.CELL_OUTLIER) == []
    assert episodes(cells_off(80, 580, other_at=29), rules.SOURCE_RULE, rules.CELL_OUTLIER) == []  # two by turns


# -- thermal event (4.10)


def thermal(times: Any, **columns: Any) -> list[tuple[float, float, float]]:
    return spans(fold(times, **columns), rules.SOURCE_RULE, rules.THERMAL_EVENT)


def probes(hottest: list[float], others: int = 0) -> list[list[int]]:
    """Lists of four probes: one at ``hottest``, of the rest ``others`` just as hot, the others at 30 °C."""
    return [[int(hot), *[int(hot)] * others, *[30] * (3 - others)] for hot in hottest]


def test_a_rise_of_two_probes_is_believed_at_once() -> None:
    assert thermal([0, 10, 20], probes_c=probes([30, 45, 61], 1)) == [(20, 20, -1)]


def test_a_cell_and_a_probe_are_believed_at_once() -> None:
    cells = [[3700] * 8, [3700] * 7 + [2700]]
    assert thermal([0, 10], probes_c=probes([30, 60]), cells_mv=cells) == [(10, 10, -1)]
    # the limit is not even needed then
    assert thermal([0, 10], probes_c=[[20] * 4, [50, 20, 20, 20]], cells_mv=cells) == [(10, 10, -1)]


def test_the_peak_may_lie_in_one_record_and_sink_again() -> None:
    (event,) = episodes(
        fold([0, 30, 60], probes_c=probes([30, 95, 62])), rules.SOURCE_RULE, rules.THERMAL_EVENT
    )  # fmt: skip
    assert (event["start_s"] - NOON, event["records"], event["value_max"]) == (30, 2, 95)


@pytest.mark.parametrize(
    "columns",
    [
        {"probes_c": probes([30, 210, 30])},  # one probe at its limit for one record
        {"probes_c": [[30] * 4, [NO_PROBE] * 4, [30] * 4]},
        {"probes_c": [[62] * 4, [-40, NO_PROBE, -40, 30], [62] * 4]},  # a dip of the list is no base of a rise
        {"probes_c": probes([59, 60, 61])},  # hot in summer
        {"probes_c": probes([30, 30, 30]), "cells_mv": [[3700] * 4, [3700, 3700, 3700, 900], [3700] * 4]},
        {"probes_c": probes([30, 30, 30]), "cells_mv": [[3700] * 4, [3700, 3700, 3700, NO_CELL], [3700] * 4]},
        {"max_temp_c": [61, 61, 61], "min_temp_c": 60, "total_voltage_v": 400,
         "insulation_resistance_kohm": [5000, 10, 5000]},  # one dip of insulation is no fault
        {"min_cell_voltage_v": [3.7, 0, 3.7], "max_cell_voltage_v": 3.7, "max_temp_c": 30, "min_temp_c": 29},
    ],
    ids=["spike", "lost", "dip of probes", "summer", "cell dips", "cell missing", "insulation dips", "cell at 0"],
)  # fmt: skip
def test_dirt_and_summer_are_no_thermal_event(columns: dict[str, Any]) -> None:
    assert thermal([0, 10, 20], **columns) == []


def test_a_cell_below_what_is_usable_counts() -> None:
    """Raw values, before cleaning: a cell that is shorted to 0.2 V is no longer usable, and is the evidence."""
    cells = [[3700] * 12, [3700] * 11 + [200]]
    assert thermal([0, 10], probes_c=probes([30, 61]), cells_mv=cells) == [(10, 10, -1)]


def test_evidence_must_lie_within_sixty_seconds() -> None:
    def at(second: int) -> list[Any]:
        times = [0, 10, second]
        cells = [[3700] * 4, [3700, 3700, 3700, 2000], [3700, 3700, 3700, 2000]]
        return thermal(times, gap_s=50, cells_mv=cells, probes_c=probes([30, 30, 65]))

    assert at(50)
    assert not at(120)


def test_two_records_where_they_are_sparser() -> None:
    cells = [[3700] * 4, [3700, 3700, 3700, 2000]]
    assert thermal([0, 90], gap_s=120, cells_mv=cells, probes_c=probes([30, 65])) == [(90, 90, -1)]
    assert thermal([0, 130], gap_s=120, cells_mv=cells, probes_c=probes([30, 65])) == []


def test_a_rise_held_for_three_minutes() -> None:
    times = list(range(0, 200, 10))
    temps = [48 + t * 3 / 60 for t in times]
    assert thermal(times, max_temp_c=np.floor(temps), min_temp_c=30) == []  # not yet at 60 °C
    warmer = [52 + t * 3 / 60 for t in times]
    assert thermal(times, max_temp_c=warmer, min_temp_c=30) == [(180, 190, -1)]


def test_a_new_insulation_fault_in_a_hot_pack() -> None:
    kohm = [5000, 20, 20, 20, 20]
    said = thermal(range(0, 50, 10), max_temp_c=61, min_temp_c=58, total_voltage_v=400, insulation_resistance_kohm=kohm)
    assert said == [(30, 40, -1)]  # with its third record


@pytest.mark.parametrize(
    ("flags", "level", "said"),
    [(2, 3, True), (2, 2, False), (1 << 23, 4, True), (1 << 23, np.nan, True), (1 << 23, 1, False),
     (INSULATION, 3, False),
     ((1 << 32) - 1, 3, False)],
)  # fmt: skip
def test_what_the_vehicle_says_itself(flags: float, level: float, said: bool) -> None:
    assert bool(thermal([0], alarm_flags=flags, alarm_level=level)) is said


def test_it_is_one_event_until_the_pack_is_cool_for_ten_minutes() -> None:
    times = list(range(0, 1500, 30))
    temps = [30 if t == 0 else 90 if t < 300 else 54 for t in times]
    ((begin, end, settled),) = thermal(times, probes_c=[[temp, temp] for temp in temps])
    assert (begin, end, settled) == (30, 270, 900)


def test_parked_and_reissued_burn_too() -> None:
    run = fold([0, 10], kind=3, late_us=10**9, total_current_a=0, speed_kmh=0, probes_c=probes([30, 80], 2))
    (one,) = episodes(run, rules.SOURCE_RULE, rules.THERMAL_EVENT)
    assert (one["late"], one["level"]) == (1, 3)


# -- the state


def test_a_quiet_day_leaves_no_codes_behind() -> None:
    records = series([NOON, NOON + 10, NOON + 200], alarm_flags=[1, 0, 0], alarm_level=0, max_temp_c=20, min_temp_c=19)
    run = Run(records, cut(records, last=DAY_ENDS))
    run.gap_limit_s[:] = 200
    run.fold(alarms)
    assert not run.state["alarms"][0, : a.CODES * a.BLOCK].any()


def test_findings_grow_when_there_are_more_than_room_was_made_for() -> None:
    flags = [0xFFFF if k % 2 else 0 for k in range(400)]
    run = fold(range(0, 400 * 60, 60), alarm_flags=flags, alarm_level=0)
    assert len(run.findings["alarms"]) == 200 * 16
    assert run.day()["alarm_s"] == 199 * 60
    assert run.tally("flag_s")[0] == 199 * 60
