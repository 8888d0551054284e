"""A small fleet's statistics, put into their tables by hand, as the statistics worker would have left them."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg

from schemas.statistics.measures import TALLIES
from services.store.cohorts import Cohorts
from tests.web.rows import insert, vehicle

ZONE = ZoneInfo("Asia/Shanghai")


def at(day: date, hour: int = 12, minute: int = 0, second: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=ZONE)


def changed(db: psycopg.Connection[Any], day: date) -> None:
    db.execute(
        "INSERT INTO statistics_days VALUES (%s, 1) ON CONFLICT (day) DO UPDATE SET changes = statistics_days.changes"
        " + 1",
        [day],
    )


def vehicle_day(db: psycopg.Connection[Any], vehicle_id: int, day: date, **values: Any) -> None:
    """A day with 100 real-time records at 10 s and nothing else; ``values`` replace and add."""
    given: dict[str, Any] = {
        "records": 100, "rows": 100, "reissued": 0, "repeated": 0, "late": 0, "expected": 100.0, "missing_s": 0.0,
        "covered_s": 990.0, "gap_s": 0.0, "distance_km": 0.0, "edition": 16, "first_at": at(day, 8),
        "last_at": at(day, 20), "layout": 1,
    }  # fmt: skip
    for tally in TALLIES:
        given.setdefault(tally.name, [0] * tally.size)
    insert(db, "vehicle_day", vehicle_id=vehicle_id, day=day, **given | values)
    changed(db, day)


def trip(db: psycopg.Connection[Any], vehicle_id: int, start: datetime, minutes: float, **values: Any) -> None:
    given = {"records": 10, "settled_on": start.date(), "end_cause": 1}
    day = start.astimezone(ZONE).date()
    insert(
        db, "trips", vehicle_id=vehicle_id, day=day, start_at=start, end_at=start + timedelta(minutes=minutes),
        **given | values,
    )  # fmt: skip
    changed(db, day)


def charge(db: psycopg.Connection[Any], vehicle_id: int, start: datetime, minutes: float, **values: Any) -> None:
    given = {"records": 10, "settled_on": start.date(), "end_cause": 6}
    day = start.astimezone(ZONE).date()
    insert(
        db, "charges", vehicle_id=vehicle_id, day=day, start_at=start, end_at=start + timedelta(minutes=minutes),
        **given | values,
    )  # fmt: skip
    changed(db, day)


def episode(db: psycopg.Connection[Any], vehicle_id: int, start: datetime, **values: Any) -> None:
    given = {"records": 3, "source": 1, "code": 11, "level": 2, "end_at": start + timedelta(minutes=1)}
    day = start.astimezone(ZONE).date()
    insert(db, "alarm_episodes", vehicle_id=vehicle_id, day=day, start_at=start, **given | values)
    changed(db, day)


def car(db: psycopg.Connection[Any], vin: str, joined: date, **values: Any) -> int:
    return vehicle(db, vin, registered=True, registered_at=at(joined, 0), **values)


async def aggregated(dsn: str, now: datetime) -> list[tuple[str, date]]:
    made = Cohorts(dsn, "Asia/Shanghai", lambda: now)
    try:
        return await made.aggregate()
    finally:
        await made.close()
