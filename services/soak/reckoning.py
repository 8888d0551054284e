"""What became of everything: frames against what the vehicles know, statistics against a computation of their own.

Reads a database of the soak's own; ``recompute`` throws its statistics away and makes them again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from schemas.reasons import CODE, reason_name
from services.settings import Settings

# What the statistics say of vehicles: a function of telemetry and logins alone.
TABLES: Final = (
    "vehicle_hour", "vehicle_day", "trips", "charges", "alarm_episodes", "cell_outliers", "dc_resistance", "cell_rests",
    "battery_capacity", "statistics_signs",
)  # fmt: skip
# Where the work stands; thrown away with them.
_BOOKKEEPING: Final = ("statistics_changes", "statistics_checkpoints", "statistics_days")
# Ids and revisions tell a history, and so do the times at which something was done.
_HISTORY: Final = {"vehicle_id", "trip_id", "charge_id", "episode_id", "revision", "raised_at"}
_ABSENCE: Final = 3  # episodes of the offline rule come from the clock

# What the simulated fleet plants to be refused; anything else that is refused is our doing.
PLANTED: Final = tuple(CODE[name] for name in ("bad_bcc", "clock_past", "clock_future"))

Content = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds.

    rows of telemetry and how many different (vehicle, time, kind, part) they are · rejected: different frames among
    the dead letters, letters: all of them (a frame that was sent again is refused again), by reason · ledger: its sums.
    """

    rows: int
    keys: int
    rejected: int
    letters: dict[str, int]
    unplanted: int
    ledger: dict[str, int]
    reports: int  # of vehicle_state
    day_rows: int  # of vehicle_day
    vehicles: int


def caught_up(connection: psycopg.Connection[Any]) -> bool:
    """Is everything in the journal stored?"""
    row = connection.execute(
        'SELECT count(*) FROM (SELECT partition, max("offset") AS last FROM journal GROUP BY partition) j '
        'LEFT JOIN journal_positions p USING (partition) WHERE p."offset" IS DISTINCT FROM j.last'
    ).fetchone()
    return row is not None and row[0] == 0


def told_of(connection: psycopg.Connection[Any]) -> bool:
    """Do the statistics tell of everything that is stored?"""
    return connection.execute("SELECT NOT EXISTS (SELECT FROM statistics_changes)").fetchone() == (True,)


def wait_for(
    dsn: str, condition: Callable[[psycopg.Connection[Any]], bool], patience_s: float, check: Callable[[], None]
) -> bool:
    """Wait until ``condition``, whatever happens to the connection; False after ``patience_s``."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        check()
        try:
            with psycopg.connect(dsn, autocommit=True, connect_timeout=2) as connection:
                if condition(connection):
                    return True
        except psycopg.OperationalError:
            pass  # the server is being started again
        time.sleep(0.2)
    return False


def stored(connection: psycopg.Connection[Any]) -> Stored:
    """Count what is there."""

    def one(query: str, *values: Any) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = connection.execute(query.encode(), values).fetchone()
        assert row is not None
        return row

    rows, keys = one("SELECT count(*), count(DISTINCT (vehicle_id, time, kind, part)) FROM telemetry")
    (rejected,) = one("SELECT count(DISTINCT frame) FROM dead_letters WHERE reason = ANY(%s)", list(PLANTED))
    (unplanted,) = one("SELECT count(*) FROM dead_letters WHERE reason <> ALL(%s)", list(PLANTED))
    letters = connection.execute("SELECT reason, count(*) FROM dead_letters GROUP BY 1 ORDER BY 1").fetchall()
    names = ("frames", "rows", "duplicates", "conflicts", "rejected", "sessions", "other")
    sums = one("SELECT " + ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in names) + " FROM ledger")  # noqa: S608
    return Stored(
        rows=rows,
        keys=keys,
        rejected=rejected,
        letters={reason_name(reason): n for reason, n in letters},
        unplanted=unplanted,
        ledger=dict(zip(names, sums, strict=True)),
        reports=one("SELECT coalesce(sum(reports), 0)::bigint FROM vehicle_state")[0],
        day_rows=one("SELECT coalesce(sum(rows), 0)::bigint FROM vehicle_day")[0],
        vehicles=one("SELECT count(*) FROM vehicles")[0],
    )


def content(connection: psycopg.Connection[Any]) -> Content:
    """The statistics, as rows that must come out the same whenever they are made: a row of names, then the values."""
    found: Content = {}
    for table in TABLES:
        only = sql.SQL("WHERE t.source <> {}").format(_ABSENCE) if table == "alarm_episodes" else sql.SQL("")
        cursor = connection.execute(
            sql.SQL("SELECT v.vin, t.* FROM {} t JOIN vehicles v USING (vehicle_id) {}").format(
                sql.Identifier(table), only
            )
        )
        names = [column.name for column in cursor.description or ()]
        taken = [i for i, name in enumerate(names) if name not in _HISTORY]
        rows = [tuple(_plain(row[i]) for i in taken) for row in cursor.fetchall()]
        found[table] = [tuple(names[i] for i in taken), *sorted(rows, key=repr)]
    return found


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def recompute(dsn: str, settings: Settings, check: Callable[[], None]) -> Content:
    """The statistics made anew from telemetry, in one go, by nobody disturbed."""
    from services.statistics.folds import folds
    from services.statistics.worker import Statistics
    from services.store.statistics import PostgresStatistics

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(map(sql.Identifier, (*TABLES, *_BOOKKEEPING))))
        )
    store = PostgresStatistics(dsn, settings)
    try:
        store.rebuild(None, 0)
        worker = Statistics(settings, store, folds())
        while worker.cycle():
            check()
    finally:
        store.close()
    with psycopg.connect(dsn, autocommit=True) as connection:
        return content(connection)


def differences(got: Content, wanted: Content, most: int = 5) -> list[str]:
    """Where the two differ: at most ``most`` lines."""
    found: list[str] = []
    for table in TABLES:
        names, *rows = got[table]
        others = wanted[table][1:]
        if len(rows) != len(others):
            found.append(f"{table}: {len(rows)} rows, {len(others)} when made anew")
            continue
        for row, other in zip(rows, others, strict=True):
            wrong = {n: (a, b) for n, a, b in zip(names, row, other, strict=True) if a != b and repr(a) != repr(b)}
            if wrong:
                found.append(f"{table} {row[0]} {row[1]}: {str(wrong)[:300]}")
    return found[:most]
