"""The judge of `bench truth`, judged on sessions whose answer is plain."""

from __future__ import annotations

import pytest

from benchmarks.agreement import (
    Session,
    charge_doubt,
    error_pct,
    found_of,
    join_doubtful,
    match,
    percentile,
    trip_doubt,
)


def s(start: float, end: float, vin: str = "A", doubtful: bool = False) -> Session:
    return Session(vin, start, end, doubtful)


@pytest.mark.parametrize(
    ("true", "found", "pairs", "missed", "false", "f1"),
    [
        ([s(0, 100)], [s(10, 110)], 1, 0, 0, 1.0),
        ([s(0, 100)], [s(50, 150)], 0, 1, 1, 0.0),  # a third of the union
        ([s(0, 100)], [s(0, 100, "B")], 0, 1, 1, 0.0),
        ([s(0, 100), s(150, 250)], [s(0, 250)], 0, 2, 1, 0.0),  # two taken for one
        ([s(0, 300), s(350, 400)], [s(0, 400)], 1, 1, 0, 2 / 3),  # the longer one is found
        ([s(0, 400)], [s(0, 300), s(350, 400)], 1, 0, 1, 2 / 3),  # one taken for two
        ([s(0, 100), s(200, 300)], [s(0, 100)], 1, 1, 0, 2 / 3),
        ([s(0, 100, doubtful=True)], [], 0, 0, 0, None),
        ([s(0, 100, doubtful=True), s(200, 300)], [s(0, 100), s(200, 300)], 2, 0, 0, 1.0),
        ([], [s(0, 1)], 0, 0, 1, 0.0),
        ([s(0, 60), s(50, 110)], [s(48, 110), s(0, 55)], 2, 0, 0, 1.0),  # the better overlap first
    ],
)
def test_matching(
    true: list[Session], found: list[Session], pairs: int, missed: int, false: int, f1: float | None
) -> None:
    result = match(true, found)
    assert (len(result.pairs), len(result.missed), len(result.false)) == (pairs, missed, false)
    assert result.f1 == (None if f1 is None else pytest.approx(f1))


@pytest.mark.parametrize(
    ("km", "seconds", "expected"),
    [(5, 900, (True, False)), (0.55, 100, (True, True)), (0.3, 310, (True, True)), (0.3, 200, (False, True)),
     (0.1, 400, (True, False))],
)  # fmt: skip
def test_trips_near_the_limit_are_doubtful(km: float, seconds: int, expected: tuple[bool, bool]) -> None:
    assert trip_doubt({"distance_km": km, "start_s": 0, "end_s": seconds}, 30) == expected


@pytest.mark.parametrize(
    ("gained", "kwh", "seconds", "expected"),
    [(40, 25, 3600, (True, False)), (1.2, 0.4, 400, (True, False)), (0.9, 0.08, 400, (True, True)),
     (0.1, 0.01, 400, (False, True)), (30, 20, 130, (True, True)), (30, 20, 50, (False, True))],
)  # fmt: skip
def test_charges_near_the_limit_are_doubtful(
    gained: float, kwh: float, seconds: int, expected: tuple[bool, bool]
) -> None:
    line = {"start_s": 0, "end_s": seconds, "start_soc_pct": 30.0, "end_soc_pct": 30.0 + gained, "energy_kwh": -kwh}
    assert charge_doubt(line, 30) == expected


def drive(start: float, end: float, on: int | None = 0) -> Session:
    return Session("A", start, end, False, None if on is None else {"on_s": on})


@pytest.mark.parametrize(
    ("second", "found", "left"),
    [
        (drive(1310, 2000), [s(0, 2000)], 1),  # 310 s at 10 s: seen from inside
        (drive(1310, 2000), [s(0, 1000), s(1310, 2000)], 2),
        (drive(1331, 2000), [s(0, 2000)], 2),  # longer than that is no matter of doubt
        (drive(1310, 2000, on=1), [s(0, 2000)], 2),  # the key was turned
        (drive(1310, 2000, on=None), [s(0, 2000)], 2),
    ],
)
def test_a_stop_that_reports_cannot_decide_does_not_count(second: Session, found: list[Session], left: int) -> None:
    true = join_doubtful([drive(0, 1000), second], found, 10)
    assert len(true) == left
    assert (match(true, found).f1 == 1.0) == (left == len(found))


def test_errors_and_sets() -> None:
    assert error_pct(101, 100) == pytest.approx(1)
    assert error_pct(-99, -100) == pytest.approx(1)
    assert error_pct(1, 0) is None
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([0, 10], 95) == pytest.approx(9.5)
    assert percentile([], 50) is None
    assert found_of({1, 2}, {2, 3}) == {"planted": 2, "found": 1, "false": 1, "recall": 0.5, "precision": 0.5}
    assert found_of(set(), set())["recall"] is None
