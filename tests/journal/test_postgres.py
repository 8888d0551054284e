"""The PostgreSQL journal where memory has no say: order between writers, crashes, days, lost connections."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.errors import JournalUnavailable, SettingsError, UsageError
from services.journal.postgres import PostgresJournal
from services.store.embedded import EmbeddedServer
from services.store.migrations import migrate

WAITING = """
    SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

pytestmark = pytest.mark.database


async def test_the_number_of_partitions_is_fixed(dsn: str) -> None:
    first = PostgresJournal(dsn, 4)
    await first.open()
    await first.open()
    await first.close()
    second = PostgresJournal(dsn, 8)
    with pytest.raises(SettingsError, match=r"journal.partitions is 8, but this database was set up with 4"):
        await second.open()
    await second.close()


async def test_a_database_that_was_never_migrated(empty_dsn: str) -> None:
    journal = PostgresJournal(empty_dsn, 4)
    with pytest.raises(UsageError, match="nevstream migrate"):
        await journal.open()
    await journal.close()


async def test_a_database_that_is_away() -> None:
    journal = PostgresJournal("postgresql://nobody@127.0.0.1:1/nothing", 4)
    for _ in range(2):  # the second is answered without a connection attempt
        with pytest.raises(JournalUnavailable, match="the database is away"):
            await journal.append([(0, b"a")])
    await journal.close()


async def test_two_writers_and_a_reader_that_misses_nothing(dsn: str) -> None:
    """Were an offset to become visible before a lower one, the reader would step over that one for ever."""
    writers = [PostgresJournal(dsn, 2), PostgresJournal(dsn, 2)]
    reader = PostgresJournal(dsn, 2)
    rounds = 60
    done = asyncio.Event()

    async def write(name: int) -> None:
        for n in range(rounds):
            await writers[name].append([(n % 2, b"%d/%d" % (name, n)), (0, b"more")])

    async def follow() -> list[bytes]:
        after = {0: -1, 1: -1}
        seen: list[bytes] = []
        while True:
            last = done.is_set()
            records = await reader.read(after, 1 << 20)
            for record in records:
                after[record.partition] = record.offset
                seen.append(record.body)
            if last and not records:
                return seen

    async with asyncio.TaskGroup() as group:
        following = group.create_task(follow())
        async with asyncio.TaskGroup() as writing:
            writing.create_task(write(0))
            writing.create_task(write(1))
        done.set()
    seen = following.result()
    assert seen.count(b"more") == 2 * rounds
    assert {body for body in seen if body != b"more"} == {b"%d/%d" % (w, n) for w in (0, 1) for n in range(rounds)}
    for journal in (*writers, reader):
        await journal.close()


async def test_days(dsn: str, db: psycopg.Connection[Any]) -> None:
    """Offsets carry their day; tomorrow's partition is there today; a clock that steps back changes nothing."""
    journal = PostgresJournal(dsn, 1)
    (offset,) = await journal.append([(0, b"a")])
    today = db.execute("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date - date '1970-01-01'").fetchone()
    assert (offset >> 32,) == today
    tables = db.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'journal'::regclass").fetchone()
    assert tables == (2,)
    tomorrow = (offset >> 32) + 1 << 32
    db.execute("SELECT setval('journal_offsets', %s)", [tomorrow + 5])  # as if yesterday's clock had been a day ahead
    assert await journal.append([(0, b"b")]) == [tomorrow + 6]
    assert [record.body for record in await journal.read({0: -1}, 100)] == [b"a", b"b"]
    assert [record.body for record in await journal.read({0: offset}, 100)] == [b"b"]
    await journal.close()


async def test_a_cut_connection_is_made_anew(dsn: str, db: psycopg.Connection[Any]) -> None:
    journal = PostgresJournal(dsn, 1)
    await journal.append([(0, b"a")])
    await journal.read({0: -1}, 100)
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'nevstream journal%'"
    )
    with pytest.raises(JournalUnavailable):
        await journal.append([(0, b"b")])
    assert [record.body for record in await journal.read({0: -1}, 100)] == [b"a"]  # its connection is not tried
    await journal.append([(0, b"b")])
    assert [record.body for record in await journal.read({0: -1}, 100)] == [b"a", b"b"]
    await journal.close()


async def test_a_cancelled_append_leaves_a_usable_journal(dsn: str, db: psycopg.Connection[Any]) -> None:
    journal = PostgresJournal(dsn, 1)
    await journal.append([(0, b"a")])
    with db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(7236328, 1)")  # another gateway in the middle of its commit
        blocked = asyncio.ensure_future(journal.append([(0, b"b")]))
        while db.execute(WAITING).fetchone() == (0,):  # noqa: ASYNC110 - the event is in the server
            await asyncio.sleep(0.005)
        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
    await journal.append([(0, b"c")])
    assert (await journal.read({0: -1}, 100))[-1].body == b"c"
    await journal.close()


@pytest.fixture
def own_server(reachable_dir: Path, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of this test's own, which may be killed; its disk is waited for."""
    server = EmbeddedServer(reachable_dir / tmp_path.name, options={"shared_buffers": "64MB"})
    migrate(server.start())
    yield server
    server.stop()


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(own_server: EmbeddedServer) -> None:
    journal = PostgresJournal(own_server.dsn, 2)
    acknowledged: list[tuple[int, int, bytes]] = []
    uncertain: set[bytes] = set()
    enough = asyncio.Event()

    async def write() -> None:
        for n in range(100_000):
            records = [(p, b"%d/%d" % (p, n) + bytes(3000)) for p in (0, 1)]
            try:
                offsets = await journal.append(records)
            except JournalUnavailable:
                uncertain.update(body for _, body in records)
                return
            acknowledged.extend((p, offset, body) for (p, body), offset in zip(records, offsets, strict=True))
            if n == 20:
                enough.set()

    writing = asyncio.ensure_future(write())
    await enough.wait()
    assert own_server.pid is not None
    os.kill(own_server.pid, signal.SIGKILL)
    await writing
    await journal.close()
    assert await asyncio.to_thread(own_server.wait_ended, 30)
    await asyncio.to_thread(own_server.start)
    journal = PostgresJournal(own_server.dsn, 2)
    after = {0: -1, 1: -1}
    found: list[tuple[int, int, bytes]] = []
    while records := await journal.read(after, 1 << 22):
        after.update((record.partition, record.offset) for record in records)
        found += [(record.partition, record.offset, record.body) for record in records]
    assert set(acknowledged) <= set(found)
    assert {body for *_, body in found} - {body for *_, body in acknowledged} <= uncertain
    assert len(found) == len(set(found))
    (offset,) = await journal.append([(0, b"after the crash")])
    assert offset > max(offset for _, offset, _ in found)
    await journal.close()


async def test_an_append_whose_answer_was_lost_is_there_once(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = PostgresJournal(dsn, 4)
    await journal.open()
    execute, lose = psycopg.AsyncConnection.execute, [True]

    async def lost_once(self: psycopg.AsyncConnection[Any], query: Any, *arguments: Any, **options: Any) -> Any:
        cursor = await execute(self, query, *arguments, **options)
        if lose and "journal_append" in query:
            lose.pop()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return cursor

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", lost_once)
    records = [(0, b"one"), (3, b"two")]
    with pytest.raises(JournalUnavailable):
        await journal.append(records)
    offsets = await journal.append(list(records))
    again = await journal.append(list(records))  # after a success the same bytes are new records

    stored = await journal.read({0: -1, 3: -1}, 1 << 20)
    await journal.close()
    assert not lose
    assert sorted(record.offset for record in stored) == [*offsets, *again]


async def test_an_append_that_never_arrived_is_there_after_the_second_try(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = PostgresJournal(dsn, 1)
    await journal.open()
    execute, lose = psycopg.AsyncConnection.execute, [True]

    async def lost_once(self: psycopg.AsyncConnection[Any], query: Any, *arguments: Any, **options: Any) -> Any:
        if lose and "journal_append" in query:
            lose.pop()
            raise psycopg.OperationalError("could not send data to server")
        return await execute(self, query, *arguments, **options)

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", lost_once)
    with pytest.raises(JournalUnavailable):
        await journal.append([(0, b"one")])
    offsets = await journal.append([(0, b"one")])

    stored = await journal.read({0: -1}, 1 << 20)
    await journal.close()
    assert [record.offset for record in stored] == offsets
