"""Reckoning up: what is there, what is missing and of whom, and when waiting is over.  The API is told what to say."""

from __future__ import annotations

from typing import Any

import pytest

from services.errors import UsageError
from services.load import reconcile as module
from services.load.reconcile import Api, Counts, Reconciled, check_fresh, reconcile

VINS = ["LNEVA0001", "LNEVA0002", "LNEVA0003"]
NOTHING = Counts(0, 0, {})


class Told(Api):
    """An API whose answers are given: counts one after the other (the last for ever), lag, reports by VIN."""

    def __init__(self, counts: list[Counts], lag_s: float | None = 0.0, there: dict[str, int] | None = None) -> None:
        super().__init__(None)
        self._counts, self._lag, self._there = counts, lag_s, there or {}

    def counts(self, prefix: str) -> Counts:
        assert prefix == "LNEVA"
        return self._counts.pop(0) if len(self._counts) > 1 else self._counts[0]

    def lag_s(self) -> float | None:
        return self._lag

    def by_vehicle(self, prefix: str) -> dict[str, int]:
        assert prefix == "LNEVA"
        return self._there


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STILL_S", "_POLL_S"):
        monkeypatch.setattr(module, name, 0.01)


def reckoned(api: Api, acked: list[int], sent: int | None = None, before: Counts = NOTHING) -> Reconciled:
    account: dict[str, Any] = {"acked": sum(acked), "sent": sum(acked) if sent is None else sent}
    account["by_vehicle"] = {"acked": acked}
    return reconcile(api, "LNEVA", VINS, before, account, lambda _: None, patience_s=0.05)


def test_it_waits_until_everything_is_worked_off() -> None:
    found = reckoned(Told([Counts(3, 10, {}), Counts(3, 20, {}), Counts(3, 30, {})]), [10, 10, 10])
    assert (found.ok, found.stored, found.missing) == (True, 30, 0)
    assert "all 30 that were acked are there" in found.words


def test_what_was_refused_with_a_reason_is_accounted_for() -> None:
    found = reckoned(
        Told([Counts(3, 28, {"bad_bcc": 1, "clock_past": 6})]), [10, 10, 10], before=Counts(1, 0, {"clock_past": 5})
    )
    assert (found.ok, found.stored, found.rejected) == (True, 28, 2)
    assert found.rejected_by_reason == {"bad_bcc": 1, "clock_past": 1}


def test_what_was_sent_and_never_answered_may_be_there() -> None:
    found = reckoned(Told([Counts(3, 31, {})]), [10, 10, 10], sent=32)
    assert found.ok
    assert "1 of them were sent and never answered" in found.words


def test_what_is_missing_is_said_with_the_vehicles_and_where_to_look() -> None:
    found = reckoned(Told([Counts(3, 27, {})], there={VINS[0]: 10, VINS[1]: 8, VINS[2]: 9}), [10, 10, 10])
    assert (found.ok, found.missing) == (False, 3)
    assert f"most of {VINS[1]} (2), {VINS[2]} (1)" in found.words
    assert "dead-letters" in found.words


def test_a_system_that_does_not_move_is_not_waited_for_for_ever() -> None:
    found = reckoned(Told([Counts(3, 5, {})], lag_s=90.0), [10, 10, 10])
    assert (found.ok, found.missing, found.lag_s) == (False, 25, 90.0)
    assert "90 s behind and does not move" in found.words


def test_without_a_word_about_lag_the_counts_decide() -> None:
    assert reckoned(Told([Counts(3, 5, {}), Counts(3, 30, {})], lag_s=None), [10, 10, 10]).ok


def test_more_than_was_sent_is_somebody_elses() -> None:
    found = reckoned(Told([Counts(3, 40, {})]), [10, 10, 10])
    assert (found.ok, found.surplus) == (False, 10)
    assert "somebody else" in found.words


def test_vehicles_that_have_reports_already_are_not_used_again() -> None:
    with pytest.raises(UsageError, match="another --seed"):
        check_fresh(Told([Counts(3, 5, {})]), "LNEVA", 1)
    assert check_fresh(Told([NOTHING]), "LNEVA", 1) == NOTHING
