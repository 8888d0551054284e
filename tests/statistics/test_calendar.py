"""Local days and hours: of 24 hours, and of 23 and 25."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.statistics.calendar import EPOCH, Calendar, date_of, number_of


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@settings(deadline=None, max_examples=100)
@given(
    zone=st.sampled_from(["Asia/Shanghai", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/Santiago"]),
    seconds=st.lists(st.integers(1_500_000_000, 1_900_000_000), min_size=1, max_size=5),
)
def test_days_are_those_of_the_zone(zone: str, seconds: list[int]) -> None:
    calendar = Calendar(zone)
    days, hours = calendar.days_of(np.array(seconds, np.int64))
    for second, day, hour in zip(seconds, days.tolist(), hours.tolist(), strict=True):
        local = datetime.fromtimestamp(second, ZoneInfo(zone))
        assert date_of(day) == local.date()
        assert calendar.day_of(second) == day == number_of(local.date())
        assert calendar.start_s(day) <= hour <= second < hour + 3600
        assert second < calendar.start_s(day + 1)
        assert (hour - calendar.start_s(day)) % 3600 == 0


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Asia/Shanghai", "2026-03-29", 24), ("Europe/Berlin", "2026-03-29", 23), ("Europe/Berlin", "2026-10-25", 25),
        ("America/Santiago", "2026-09-06", 23),  # the clock moves at midnight: the day begins at 01:00
    ],
)  # fmt: skip
def test_days_of_other_lengths(zone: str, day: str, hours: int) -> None:
    calendar = Calendar(zone)
    number = number_of(datetime.fromisoformat(day).date())
    begin, end = calendar.start_s(number), calendar.start_s(number + 1)
    assert end - begin == hours * 3600
    days, starts = calendar.days_of(np.arange(begin, end, 600, dtype=np.int64))
    assert set(days.tolist()) == {number}
    assert len(set(starts.tolist())) == hours


def test_an_hour_that_comes_twice_is_two_hours() -> None:
    calendar = Calendar("Europe/Berlin")
    seconds = np.array([_seconds("2026-10-25T00:30"), _seconds("2026-10-25T01:30")], np.int64)  # 02:30 both times
    days, hours = calendar.days_of(seconds)
    assert days[0] == days[1]
    assert (hours - seconds).tolist() == [-1800, -1800]


def test_day_zero() -> None:
    assert date_of(0) == EPOCH
    assert number_of(EPOCH + timedelta(days=3)) == 3
    assert Calendar("Asia/Shanghai").day_of(0) == 0
