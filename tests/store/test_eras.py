"""After a restart of the server one dead connection is met, not one after the other."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg import sql

from services import database
from services.errors import JournalUnavailable, StoreUnavailable
from services.journal.postgres import PostgresJournal
from services.settings import Settings
from services.store.directory import PostgresDirectory
from services.store.postgres import PostgresSink
from services.store.queries import Connections
from services.store.statistics import PostgresStatistics

_SLEEP = sql.SQL("SELECT pg_sleep(0.05)")
_ONE = sql.SQL("SELECT 1 AS one")


def end_all(db: psycopg.Connection[Any]) -> int:
    """As a restart of the server does to every connection."""
    ended = db.execute(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'nevstream%'"
    ).fetchone()
    assert ended is not None
    return int(ended[0])


async def test_a_pool_tries_one_dead_connection(
    dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Connections(dsn, 5, 5.0, 5.0)
    await asyncio.gather(*(pool.run(_SLEEP, {}) for _ in range(5)))
    assert len(pool._idle) == end_all(db) == 5
    tried: list[str] = []
    execute, connect = psycopg.AsyncConnection.execute, pool._connect

    async def executed(self: Any, *given: Any, **named: Any) -> Any:
        tried.append("execute")
        return await execute(self, *given, **named)

    async def connected() -> Any:
        tried.append("connect")
        return await connect()

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", executed)
    monkeypatch.setattr(pool, "_connect", connected)
    assert (await pool.run(_ONE, {})).rows == [(1,)]
    assert tried == ["execute", "connect", "execute"]
    assert len(pool._idle) == 1
    await pool.close()


async def test_one_failure_for_all_that_a_process_holds(dsn: str, db: psycopg.Connection[Any]) -> None:
    settings = Settings()
    journal, sink, directory = PostgresJournal(dsn, 4), PostgresSink(dsn, settings), PostgresDirectory(dsn)
    statistics, pool = PostgresStatistics(dsn, settings), Connections(dsn, 2, 5.0, 5.0)

    calls = (
        lambda: journal.read({0: -1}, 100),
        lambda: sink.positions([0]),
        lambda: journal.append([(0, b"a")]),
        lambda: directory.registered(),
        lambda: asyncio.to_thread(statistics.hold, [0]),
        lambda: pool.run(_ONE, {}),
    )
    for call in calls:
        await call()
    assert end_all(db) == len(calls)
    failures = 0
    for call in calls:
        try:
            await call()
        except (JournalUnavailable, StoreUnavailable):
            failures += 1
    assert failures == 1
    assert end_all(db) == len(calls) - 1  # the one that failed has none yet
    for one in (journal, sink, directory, pool):
        await one.close()
    statistics.close()


async def test_only_a_dead_connection_begins_an_era(dsn: str, db: psycopg.Connection[Any]) -> None:
    line = database.Line(dsn, "nevstream test", StoreUnavailable, 0.05)
    before = database.era(dsn)

    async def ask(connection: database.Connection) -> None:
        await connection.execute("SELECT pg_sleep(1)")

    with pytest.raises(StoreUnavailable):  # the server ends the statement; the connection lives
        await line.call(ask)
    assert database.era(dsn) == before

    async def ended(connection: database.Connection) -> None:
        await asyncio.to_thread(end_all, db)
        await connection.execute("SELECT 1")

    other = database.Line(dsn, "nevstream test", StoreUnavailable)
    for one in (line, other):
        with pytest.raises(StoreUnavailable):
            await one.call(ended)
    assert database.era(dsn) == before + 2  # each was the first of its era to be met
    await line.close()
    await other.close()
