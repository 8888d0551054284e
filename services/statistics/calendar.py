"""Local days and hours of the fleet's time zone, for arrays of seconds.

A day begins at local midnight, whatever the clock does, so one of 23 or 25 hours has that many.  Hours are counted
from the day's begin.  (Where a zone moves its clock by half an hour, the rest of that one day is off by it.)
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np

from schemas.statistics.records import I64

EPOCH: Final = date(1970, 1, 1)


class Calendar:
    """Days by number since 1970-01-01, local."""

    def __init__(self, time_zone: str) -> None:
        self.zone = ZoneInfo(time_zone)
        self._first = 0
        self._starts: I64 = np.zeros(0, np.int64)  # of days self._first, self._first + 1, ...

    def start_s(self, day: int) -> int:
        """Second at which a day begins."""
        at = EPOCH + timedelta(days=day)
        return int(datetime(at.year, at.month, at.day, tzinfo=self.zone).timestamp())

    def day_of(self, second: int) -> int:
        """Day of one second."""
        return number_of(datetime.fromtimestamp(second, self.zone).date())

    def days_of(self, seconds: I64) -> tuple[I64, I64]:
        """(day, second at which its hour begins) of each of ``seconds``."""
        if not len(seconds):
            return seconds.copy(), seconds.copy()
        self._cover(int(seconds.min()), int(seconds.max()))
        at = np.searchsorted(self._starts, seconds, side="right") - 1
        start = self._starts[at]
        return at + self._first, start + (seconds - start) // 3600 * 3600

    def _cover(self, low: int, high: int) -> None:
        if len(self._starts) and self._starts[0] <= low and high < self._starts[-1]:
            return
        first = (datetime.fromtimestamp(low, UTC).date() - EPOCH).days - 2
        last = (datetime.fromtimestamp(high, UTC).date() - EPOCH).days + 3
        if len(self._starts):
            first, last = min(first, self._first), max(last, self._first + len(self._starts) - 1)
        self._first = first
        self._starts = np.array([self.start_s(day) for day in range(first, last + 1)], np.int64)


def date_of(day: int) -> date:
    """The date of a day number."""
    return EPOCH + timedelta(days=day)


def number_of(day: date) -> int:
    """The number of a date."""
    return (day - EPOCH).days
