"""What became of everything: frames against what the vehicles know, statistics against a computation of their own.

Reads a database of the soak's own; ``recompute`` throws its statistics away and makes them again.
"""

from __future__ import annotations

import asyncio
import math
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
# The fleet's figures by cohort: a function of the former and of the registry. A cohort's number is a matter of who came
# first, so it is replaced by what it stands for.
COHORTS: Final = ("cohort_access", "cohort_period", "cohort_spread", "cohort_state", "group_spread")
OF_COHORTS_BY_VEHICLE: Final = ("vehicle_groups", "vehicle_brief", "vehicle_checks")
ALL: Final = (*TABLES, *COHORTS, *OF_COHORTS_BY_VEHICLE)
_COHORT_BOOKS: Final = ("cohort_facts", "cohort_counted", "cohort_touched", "cohort_handled")
# Where the work stands; thrown away with them.
_BOOKKEEPING: Final = ("statistics_changes", "statistics_checkpoints", "statistics_days")
# Ids and revisions tell a history, and so do the times at which something was done.
_HISTORY: Final = {"vehicle_id", "trip_id", "charge_id", "episode_id", "revision", "raised_at", "cohort_id", "facts_id"}
_FACTS: Final = "model, fleet, region, usage, battery_supplier, chemistry"
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
    for table in ALL:
        cursor = connection.execute(_rows_of(table))
        names = [column.name for column in cursor.description or ()]
        taken = [i for i, name in enumerate(names) if name not in _HISTORY]
        rows = [tuple(_plain(row[i]) for i in taken) for row in cursor.fetchall()]
        found[table] = [tuple(names[i] for i in taken), *sorted(rows, key=repr)]
    return found


def _rows_of(table: str) -> sql.Composed:
    """A table's rows behind whose they are: a VIN, the facts of a cohort as one text, or both."""
    name = sql.Identifier(table)
    vin = sql.SQL("SELECT v.vin, t.* FROM {} t JOIN vehicles v USING (vehicle_id) {}")
    if table in TABLES:
        only = sql.SQL("WHERE t.source <> {}").format(_ABSENCE) if table == "alarm_episodes" else sql.SQL("")
        return vin.format(name, only)
    facts = sql.SQL("concat_ws('/', {}) AS facts").format(sql.SQL(_FACTS))
    if table == "vehicle_groups":
        return sql.SQL(
            "SELECT v.vin, f.facts, t.* FROM vehicle_groups t JOIN vehicles v USING (vehicle_id) "
            "JOIN (SELECT facts_id, {} FROM cohort_facts) f USING (facts_id)"
        ).format(facts)
    if table in OF_COHORTS_BY_VEHICLE:
        return sql.SQL(
            "SELECT v.vin, c.facts, c.edition AS of_edition, t.* FROM {} t JOIN vehicles v USING (vehicle_id) "
            "JOIN (SELECT cohort_id, edition, {} FROM cohorts) c USING (cohort_id)"
        ).format(name, facts)
    if table == "group_spread":
        return sql.SQL("SELECT t.* FROM {} t").format(name)
    return sql.SQL(
        "SELECT c.facts, c.edition AS of_edition, t.* FROM {} t "
        "JOIN (SELECT cohort_id, edition, {} FROM cohorts) c USING (cohort_id)"
    ).format(name, facts)


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def recompute(dsn: str, settings: Settings, check: Callable[[], None]) -> Content:
    """The statistics and the fleet's figures made anew from telemetry, in one go, by nobody disturbed."""
    from services.statistics.folds import folds
    from services.statistics.worker import Statistics
    from services.store.statistics import PostgresStatistics

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("TRUNCATE {}").format(
                sql.SQL(", ").join(map(sql.Identifier, (*ALL, *_BOOKKEEPING, *_COHORT_BOOKS)))
            )
        )
    store = PostgresStatistics(dsn, settings)
    try:
        store.rebuild(None, 0)
        worker = Statistics(settings, store, folds())
        while worker.cycle():
            check()
    finally:
        store.close()
    aggregate(dsn, settings)
    with psycopg.connect(dsn, autocommit=True) as connection:
        return content(connection)


def aggregate(dsn: str, settings: Settings) -> None:
    """Bring the fleet's figures up to date with the statistics."""
    from services.store.cohorts import Cohorts

    async def run() -> None:
        cohorts = Cohorts(dsn, settings.time_zone)
        try:
            while await cohorts.aggregate():
                pass
        finally:
            await cohorts.close()

    with psycopg.connect(dsn, autocommit=True) as connection:  # of the clock's doing, and not made anew
        connection.execute(
            "WITH gone AS (DELETE FROM alarm_episodes WHERE source = %s RETURNING day) "
            "UPDATE statistics_days SET changes = changes + 1 WHERE day IN (SELECT day FROM gone)",
            [_ABSENCE],
        )
    asyncio.run(run())


def differences(got: Content, wanted: Content, most: int = 5) -> list[str]:
    """Where the two differ: at most ``most`` lines."""
    found: list[str] = []
    for table in ALL:
        names, *rows = got[table]
        others = wanted[table][1:]
        if len(rows) != len(others):
            found.append(f"{table}: {len(rows)} rows, {len(others)} when made anew")
            continue
        for row, other in zip(rows, others, strict=True):
            wrong = {n: (a, b) for n, a, b in zip(names, row, other, strict=True) if not _same(table, a, b)}
            if wrong:
                found.append(f"{table} {row[0]} {row[1]}: {str(wrong)[:300]}")
    return found[:most]


def _same(table: str, a: Any, b: Any) -> bool:
    """Value for value; sums over vehicles, which PostgreSQL adds up in any order, to ten digits."""
    if table not in TABLES and isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-10, abs_tol=1e-9) or repr(a) == repr(b)
    return bool(a == b) or repr(a) == repr(b)
