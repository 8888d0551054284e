"""Rows of the statistics tables put there with SQL, as the worker would have left them, for answers to be made from.

Each function takes what its test is about and fills the rest with what the table needs.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg import sql

ZONE = ZoneInfo("Asia/Shanghai")


def insert(db: psycopg.Connection[Any], table: str, returning: str | None = None, **values: Any) -> int:
    """Insert a row; the value of ``returning``, or 0."""
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) {}").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(sql.Placeholder() * len(values)),
        sql.SQL("RETURNING {}").format(sql.Identifier(returning)) if returning else sql.SQL(""),
    )
    cursor = db.execute(statement, list(values.values()))
    row = cursor.fetchone() if returning else None
    return int(row[0]) if row else 0


def local_day(time: datetime) -> date:
    return time.astimezone(ZONE).date()


def checkpoint(db: psycopg.Connection[Any], vehicle_id: int, newest_at: datetime, **values: Any) -> None:
    """The vehicle's statistics tell up to ``newest_at`` and are folded for good up to 120 s before it."""
    given: dict[str, Any] = {
        "day": local_day(newest_at), "through_at": newest_at - timedelta(seconds=120), "layout": 1,
        "inverted": False, "state": b"",
    }  # fmt: skip
    insert(db, "statistics_checkpoints", vehicle_id=vehicle_id, newest_at=newest_at, **given | values)


def day(db: psycopg.Connection[Any], vehicle_id: int, when: date, **measures: Any) -> None:
    """A row of vehicle_day; measures that are not given are NULL."""
    begin = datetime(when.year, when.month, when.day, tzinfo=ZONE)
    given: dict[str, Any] = {
        "first_at": begin, "last_at": begin + timedelta(hours=23), "edition": 16, "layout": 1,
    }  # fmt: skip
    insert(db, "vehicle_day", vehicle_id=vehicle_id, day=when, **given | measures)


def hour(db: psycopg.Connection[Any], vehicle_id: int, begin: datetime, **measures: Any) -> None:
    insert(db, "vehicle_hour", vehicle_id=vehicle_id, hour=begin, day=local_day(begin), **measures)


def _session(
    db: psycopg.Connection[Any], table: str, key: str, vehicle_id: int, start: datetime, end: datetime, **values: Any
) -> int:
    given: dict[str, Any] = {
        "day": local_day(start), "settled_on": local_day(end), "end_cause": 1,
        "records": round((end - start).total_seconds() / 10) + 1, "covered_s": (end - start).total_seconds(),
    }  # fmt: skip
    return insert(db, table, key, vehicle_id=vehicle_id, start_at=start, end_at=end, **given | values)


def trip(db: psycopg.Connection[Any], vehicle_id: int, start: datetime, end: datetime, **values: Any) -> int:
    """A trip that is settled unless ``settled_on=None``; returns its id."""
    return _session(db, "trips", "trip_id", vehicle_id, start, end, **values)


def charge(db: psycopg.Connection[Any], vehicle_id: int, start: datetime, end: datetime, **values: Any) -> int:
    """A charge that is settled unless ``settled_on=None``; returns its id."""
    return _session(db, "charges", "charge_id", vehicle_id, start, end, **{"runs": 1, "end_cause": 6} | values)


def episode(
    db: psycopg.Connection[Any], vehicle_id: int, start: datetime, end: datetime, source: int, code: int, **values: Any
) -> int:
    """An alarm episode; source 1: standard flag, code = bit; 2: platform rule, code = its number."""
    given: dict[str, Any] = {"day": local_day(start), "settled_on": local_day(end), "level": 1, "records": 3}
    return insert(
        db, "alarm_episodes", "episode_id", vehicle_id=vehicle_id, start_at=start, end_at=end, source=source, code=code,
        **given | values,
    )  # fmt: skip


def finding(db: psycopg.Connection[Any], table: str, vehicle_id: int, when: date, **values: Any) -> None:
    """A row of cell_outliers, dc_resistance or cell_rests."""
    given: dict[str, Any] = {
        "start_at": datetime(when.year, when.month, when.day, tzinfo=ZONE), "settled_on": when,
    }  # fmt: skip
    insert(db, table, vehicle_id=vehicle_id, day=when, **given | values)


def capacity(db: psycopg.Connection[Any], vehicle_id: int, month: date, charges: int, ah: float, **values: Any) -> None:
    given: dict[str, Any] = {"p25_ah": ah - 1, "p75_ah": ah + 1}
    insert(
        db, "battery_capacity", vehicle_id=vehicle_id, month=month, charges=charges, capacity_ah=ah, **given | values
    )


def resends(db: psycopg.Connection[Any], vehicle_id: int, when: date, duplicates: int, conflicts: int = 0) -> None:
    insert(db, "vehicle_resends", vehicle_id=vehicle_id, day=when, duplicates=duplicates, conflicts=conflicts)
