"""The battery and alarms folds against their twins, and cut anywhere against in one go: exactly equal."""

from __future__ import annotations

from types import ModuleType
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.statistics import alarms, battery
from tests.statistics.battery_lives import Life, battery_fleets
from tests.statistics.make_records import Run, cut, same, same_findings

KERNELS = {"battery": (battery, "fold_battery"), "alarms": (alarms, "fold_alarms")}


def folded(life: Life, fold: str, twin: bool = False, cuts: tuple[int, ...] = ()) -> Run:
    records, gap_limit_s, mode = life
    module: ModuleType
    module, name = KERNELS[fold]
    run = Run(records, cut(records, cuts=cuts))
    run.gap_limit_s, run.mode = gap_limit_s, mode
    chosen = getattr(module, name)
    with patch.object(module, name, chosen.twin if twin else chosen.compiled):
        return run.fold(module)


def equal(a: Run, b: Run, fold: str) -> bool:
    return (
        same(a.hours, b.hours)
        and same(a.tallies, b.tallies)
        and same(a.state[fold], b.state[fold])
        and same_findings(a, b)
    )


@pytest.mark.parametrize("fold", KERNELS)
@settings(max_examples=40, deadline=None)
@given(battery_fleets())
def test_kernel_and_twin_agree(fold: str, life: Life) -> None:
    assert equal(folded(life, fold), folded(life, fold, twin=True), fold)


@pytest.mark.parametrize("fold", KERNELS)
@settings(max_examples=40, deadline=None)
@given(battery_fleets(), st.data())
def test_cut_anywhere_is_the_same_as_in_one_go(fold: str, life: Life, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(1, max(1, life[0].n - 1)), max_size=20))
    assert equal(folded(life, fold), folded(life, fold, cuts=tuple(cuts)), fold)


@pytest.mark.parametrize("fold", KERNELS)
@settings(max_examples=10, deadline=None)
@given(battery_fleets(records_max=60))
def test_every_record_a_job_of_its_own(fold: str, life: Life) -> None:
    assert equal(folded(life, fold), folded(life, fold, cuts=tuple(range(life[0].n))), fold)
