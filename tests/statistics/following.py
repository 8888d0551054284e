"""Statistics of a real database, brought up to date by hand, and what must not depend on how it came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from services.settings import Settings
from services.statistics.folds import Fold, folds
from services.statistics.visit import Bounds
from services.statistics.worker import Statistics
from services.store.statistics import PostgresStatistics
from tests.pipeline.running import put, stored

TABLES = (
    "vehicle_hour", "vehicle_day", "trips", "charges", "alarm_episodes", "cell_outliers", "dc_resistance", "cell_rests",
    "battery_capacity", "statistics_signs",
)  # fmt: skip
# Ids and revisions tell a history, and so do the times at which something was done.
HISTORY = {"vehicle_id", "trip_id", "charge_id", "episode_id", "revision", "raised_at"}


def settings_of(**statistics: Any) -> Settings:
    return Settings.model_validate(
        {
            "pipeline": {"idle_sleep_ms": 1.0, "clock_past_max_days": 3650}, "journal": {"partitions": 4},
            "statistics": statistics,
        }
    )  # fmt: skip


async def send(dsn: str, sent: Sequence[Any], settings: Settings) -> None:
    """Frames through journal and pipeline into the store."""
    await put(dsn, sent)
    await stored(dsn, settings)


def follow(
    dsn: str, settings: Settings, used: Sequence[Fold] | None = None, bounds: Bounds | None = None, cycles: int = 10_000
) -> None:
    """A statistics process from start to end: as many cycles, or until nothing is left to do."""
    store = PostgresStatistics(dsn, settings)
    try:
        used = folds(settings.statistics.alarm_rules) if used is None else used
        worker = Statistics(settings, store, used, bounds=bounds)
        while cycles and worker.cycle():
            cycles -= 1
    finally:
        store.close()


def content(db: psycopg.Connection[Any]) -> dict[str, list[tuple[Any, ...]]]:
    """The tables, as rows that two databases must have in common."""
    found = {}
    for table in TABLES:
        cursor = db.execute(f"SELECT v.vin, t.* FROM {table} t JOIN vehicles v USING (vehicle_id)")
        names = [column.name for column in cursor.description or ()]
        taken = [i for i, name in enumerate(names) if name not in HISTORY]
        rows = [tuple(_plain(row[i]) for i in taken) for row in cursor.fetchall()]
        found[table] = [tuple(names[i] for i in taken), *sorted(rows, key=repr)]
    return found


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def assert_same(got: dict[str, list[tuple[Any, ...]]], wanted: dict[str, list[tuple[Any, ...]]]) -> None:
    """Says the first column that differs, in which row."""
    for table in TABLES:
        names, *rows = got[table]
        _, *others = wanted[table]
        assert len(rows) == len(others), f"{table}: {len(rows)} rows, {len(others)} wanted"
        for row, other in zip(rows, others, strict=True):
            wrong = {
                name: (a, b) for name, a, b in zip(names, row, other, strict=True) if a != b and repr(a) != repr(b)
            }
            assert not wrong, f"{table} {row[:3]}: {wrong}"
