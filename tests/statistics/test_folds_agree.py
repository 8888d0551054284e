"""Each fold against its twin, and each fold cut anywhere against itself in one go: exactly equal, both."""

from __future__ import annotations

from types import ModuleType
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.statistics.records import Records
from services.statistics import drive, quality
from tests.statistics.make_records import Run, cut, same, same_findings
from tests.statistics.strategies import fleets

FOLDS = {"quality": (quality,), "drive": (quality, drive)}
KERNELS = {"quality": "fold_quality", "drive": "fold_drive"}


def folded(records: Records, modules: tuple[ModuleType, ...], twin: bool = False, cuts: tuple[int, ...] = ()) -> Run:
    run = Run(records, cut(records, cuts=cuts))
    run.fold(*modules[:-1])
    last = modules[-1]
    name = KERNELS[last.__name__.rpartition(".")[2]]
    chosen = getattr(last, name)
    with patch.object(last, name, chosen.twin if twin else chosen.compiled):
        return run.fold(last)


def equal(a: Run, b: Run) -> bool:
    return (
        same(a.hours, b.hours)
        and same(a.tallies, b.tallies)
        and same(a.gap_limit_s, b.gap_limit_s)
        and same(a.mode, b.mode)
        and all(same(a.state[name], b.state[name]) for name in a.state)
        and same_findings(a, b)
    )


@pytest.mark.parametrize("fold", FOLDS)
@settings(max_examples=60, deadline=None)
@given(fleets())
def test_kernel_and_twin_agree(fold: str, records: Records) -> None:
    assert equal(folded(records, FOLDS[fold]), folded(records, FOLDS[fold], twin=True))


@pytest.mark.parametrize("fold", FOLDS)
@settings(max_examples=60, deadline=None)
@given(fleets(), st.data())
def test_cut_anywhere_is_the_same_as_in_one_go(fold: str, records: Records, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(1, max(1, records.n - 1)), max_size=20))
    assert equal(folded(records, FOLDS[fold]), folded(records, FOLDS[fold], cuts=tuple(cuts)))


@pytest.mark.parametrize("fold", FOLDS)
@settings(max_examples=10, deadline=None)
@given(fleets(records_max=60))
def test_every_record_a_job_of_its_own(fold: str, records: Records) -> None:
    assert equal(folded(records, FOLDS[fold]), folded(records, FOLDS[fold], cuts=tuple(range(records.n))))
