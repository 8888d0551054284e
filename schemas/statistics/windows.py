"""Windows of time that fleet figures are asked for: whole local days, and the kept periods they are put together from.

A calendar day, ISO week, month or year is one kept period. Any other window is cut into whole years, whole months and
days: additive figures are the sum over these. Knows no time zone: a day is a local day of the fleet.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from schemas.statistics.cohorts import DAY, MONTH, WEEK, YEAR
from schemas.statistics.metrics import DAYS_PER_MONTH

NAMES: Final = {"day": DAY, "week": WEEK, "month": MONTH, "year": YEAR}
DAYS_MAX: Final = 366 * 20
_ONE: Final = timedelta(days=1)

Block = tuple[str, date]


def start_of(span: str, day: date) -> date:
    """First day of the period that ``day`` lies in."""
    if span == WEEK:
        return day - timedelta(days=day.isoweekday() - 1)
    if span == MONTH:
        return day.replace(day=1)
    return day.replace(month=1, day=1) if span == YEAR else day


def end_of(span: str, start: date) -> date:
    """Last day of the period that begins with ``start``."""
    if span == WEEK:
        return start + timedelta(days=6)
    if span == MONTH:
        return start.replace(day=calendar.monthrange(start.year, start.month)[1])
    return start.replace(month=12, day=31) if span == YEAR else start


@dataclass(frozen=True, slots=True)
class Window:
    """Local days [first, last]. ``span``: the kept period that it is, None when it is none."""

    first: date
    last: date
    span: str | None = None

    @classmethod
    def of(cls, span: str, day: date) -> Window:
        """The period that ``day`` lies in."""
        first = start_of(span, day)
        return cls(first, end_of(span, first), span)

    @classmethod
    def between(cls, first: date, last: date) -> Window:
        for span in (DAY, WEEK, MONTH, YEAR):
            if first == start_of(span, first) and last == end_of(span, first):
                return cls(first, last, span)
        return cls(first, last)

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    @property
    def months(self) -> float:
        """A calendar month is 1, a year 12, other windows days ÷ 30.436875."""
        exact = {MONTH: 1.0, YEAR: 12.0}
        return exact.get(self.span or "", self.days / DAYS_PER_MONTH)

    def blocks(self) -> list[Block]:
        """The kept periods that make it up."""
        return [(self.span, self.first)] if self.span else list(_cut(self.first, self.last, (YEAR, MONTH)))

    def vehicle_blocks(self) -> list[Block]:
        """The same of periods that are kept per vehicle: months and days."""
        return list(_cut(self.first, self.last, (MONTH,)))

    def weeks(self) -> list[date]:
        """ISO weeks whose verification tells of it: those that end in it; of a shorter window the one it lies in."""
        if self.days < 7 or self.span == WEEK:
            return [start_of(WEEK, self.last)]
        week = start_of(WEEK, self.first)
        found = []
        while end_of(WEEK, week) <= self.last:
            found.append(week)
            week += timedelta(days=7)
        return found

    def parts(self, span: str) -> list[Window]:
        """Its days, weeks, months or years, each cut to the window."""
        found, day = [], self.first
        while day <= self.last:
            whole = Window.of(span, day)
            part = whole if whole.first >= self.first and whole.last <= self.last else None
            found.append(part or Window.between(max(whole.first, self.first), min(whole.last, self.last)))
            day = whole.last + _ONE
        return found


def _cut(first: date, last: date, spans: tuple[str, ...]) -> Iterator[Block]:
    day = first
    while day <= last:
        span = next((s for s in spans if start_of(s, day) == day and end_of(s, day) <= last), DAY)
        yield span, day
        day = end_of(span, day) + _ONE


_AT: Final = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?|-W(\d{2}))?", re.ASCII)


def day_at(text: str) -> date:
    """The first day of what ``2026``, ``2026-10``, ``2026-W41`` or ``2026-10-05`` names. Raises ``ValueError``."""
    match = _AT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a year, month, ISO week or day: {text}")
    year, month, day, week = match.groups()
    if week is not None:
        return date.fromisocalendar(int(year), int(week), 1)
    return date(int(year), int(month or 1), int(day or 1))
