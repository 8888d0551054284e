"""What a batch tells the statistics: kernel against twin, and what counts as urgent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import Batch, Frames
from schemas.signals import INDEX, State
from schemas.statistics.rules import (
    AT_LEAST,
    Q_INSULATION_PER_V,
    Q_SPEED,
    Q_TEMP_MAX,
    Q_TEMP_SPREAD,
    RULES,
    SPECIAL,
)
from services.pipeline import changes
from services.pipeline.vehicles import Classified, VehicleTable


def _run(function: Callable[..., int], batch: Batch, lines: Any, rows: Any, vehicles: int) -> list[list[int]]:
    n = len(lines)
    seat = np.zeros(vehicles, np.int32)
    columns = [*(np.zeros(n, np.int64) for _ in range(3)), np.zeros(n, np.uint8)]
    found = function(lines, rows, batch.time_s, batch.num, batch.state, seat, *columns)
    assert not seat.any()
    return [column[:found].tolist() for column in columns]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), vehicles=st.integers(1, 8))
def test_kernel_is_its_twin(make_batch: Callable[..., tuple[Frames, Batch]], seed: int, n: int, vehicles: int) -> None:
    _, batch = make_batch(n, seed)
    rng = np.random.default_rng(seed)
    near = rng.integers(-3, 4, (n, 12))  # values about the limits, so that both sides of each are met
    for k, name in enumerate(("probe_max_c", "probe_min_c", "max_temp_c", "cell_min_v", "cell_max_v", "speed_kmh")):
        limit = (changes.HOT_C, changes.HOT_C - changes.SPREAD_C, changes.HOT_C, 2000, 2500, changes.SPEED_RAW)[k]
        batch.num[:, INDEX[name]] = limit + near[:, k]
    batch.num[:, INDEX["alarm_level"]] = 0
    batch.num[:, INDEX["alarm_flags"]] = rng.choice([0, 0, 0, -(2**31)], n)
    lines, rows = np.arange(n), rng.integers(0, vehicles, n)
    fast = getattr(changes._changes, "compiled", changes._changes)
    assert _run(fast, batch, lines, rows, vehicles) == _run(changes._changes_twin, batch, lines, rows, vehicles)


@pytest.mark.parametrize(
    ("values", "urgent"),
    [
        ({}, False),
        ({"alarm_level": 0, "alarm_flags": 0}, False),
        ({"alarm_level": 1}, True),
        ({"alarm_flags": -(2**31)}, True),  # bit 31: the DWORD as i32
        ({"probe_max_c": 49, "probe_min_c": 40}, False),
        ({"probe_max_c": 50}, True),
        ({"max_temp_c": 55}, True),
        ({"probe_max_c": 40, "probe_min_c": 25}, True),  # a spread of 15 °C
        ({"cell_min_v": 1990}, True),
        ({"cell_min_v": 3700, "cell_max_v": 3720}, False),
        ({"cell_min_v": 2775, "cell_max_v": 3700}, True),  # one of many has fallen by a quarter
        ({"insulation_resistance_kohm": 190, "total_voltage_v": 4000}, True),  # 475 ohm per volt
        ({"insulation_resistance_kohm": 5000, "total_voltage_v": 4000}, False),
        ({"insulation_resistance_kohm": 190}, False),
        ({"speed_kmh": 1800}, True),
    ],
)
def test_urgent(values: dict[str, int], urgent: bool) -> None:
    batch = Batch.empty(1, 1)
    batch.time_s[:] = 5
    batch.num[:], batch.state[:] = 0, 0
    for name, value in values.items():
        batch.num[0, INDEX[name]], batch.state[0, INDEX[name]] = value, State.VALID
    table = VehicleTable(4)
    table.vehicle_id[2] = 77
    line, row, none = np.zeros(1, np.int64), np.full(1, 2, np.int64), np.zeros(0, np.int64)
    fast = changes.changes_of(batch, Classified(line, row, none, none, line, row, line), table)
    assert fast is not None
    assert (fast.vehicle_id.tolist(), fast.from_s.tolist(), fast.to_s.tolist()) == ([77], [5], [5])
    assert (fast.urgent.tolist(), fast.late_urgent.tolist()) == ([int(urgent)], [])
    late = changes.changes_of(batch, Classified(none, none, line, row, line, row, line), table)
    assert (late.late_urgent.tolist() if late is not None else []) == [77] * urgent


def test_rules_of_the_platform_are_urgent() -> None:
    """A row at the threshold of a rule must be among the urgent ones, or its alarm would wait for the next cycle."""
    limits = {
        Q_TEMP_MAX: changes.HOT_C, Q_TEMP_SPREAD: changes.SPREAD_C, Q_SPEED: changes.SPEED_RAW / 10,
        Q_INSULATION_PER_V: changes.OHM_PER_V,
    }  # fmt: skip
    by_threshold = [rule for rule in RULES if rule.test != SPECIAL]
    assert {rule.quantity for rule in by_threshold} == set(limits)
    for rule in by_threshold:
        limit = limits[rule.quantity]
        assert rule.threshold >= limit if rule.test == AT_LEAST else rule.threshold <= limit, rule.name
