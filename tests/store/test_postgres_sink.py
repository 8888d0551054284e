"""The PostgreSQL sink where memory has no say: lost connections, two owners, dropped days, what a row holds."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from schemas.batch import CopyStream, DeadLetter, Login, RowBatch
from services.errors import PositionsMoved, StoreUnavailable
from services.settings import Settings
from services.store.copyformat import encode_copy
from services.store.embedded import EmbeddedServer
from services.store.migrations import migrate
from services.store.postgres import PostgresSink

pytestmark = pytest.mark.database

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOTHING = RowBatch(None, None, None, (), (), (), {}, {})


def rows(vehicle_id: int, first: int, n: int) -> CopyStream:
    fixed = {"vehicle_id": vehicle_id, "kind": 2, "part": 0, "edition": 16, "door": 1}
    times = [NOON + timedelta(seconds=first + i) for i in range(n)]
    made = [fixed | {"time": time, "received_at": time, "digest": first + i} for i, time in enumerate(times)]
    return encode_copy("telemetry", list(made[0]), made)


def batch(first: int, n: int, positions: dict[int, tuple[int, int]]) -> RowBatch:
    day = int(NOON.timestamp()) // 86400
    return replace(NOTHING, telemetry=rows(1, first, n), days=[day], positions=positions)


@pytest.fixture
async def sink(dsn: str) -> AsyncIterator[PostgresSink]:
    made = PostgresSink(dsn, Settings())
    await made.open()
    yield made
    await made.close()


async def test_open_makes_days_ahead(sink: PostgresSink, db: psycopg.Connection[Any]) -> None:
    found = db.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry'::regclass").fetchone()
    assert found == (2 + Settings().database.partitions_ahead_days,)


async def test_away_at_start() -> None:
    sink = PostgresSink("postgresql://nobody@127.0.0.1:1/nothing", Settings())
    with pytest.raises(StoreUnavailable, match="the database is away"):
        await sink.open()
    await sink.close()


async def test_a_cut_connection_is_made_anew(sink: PostgresSink, db: psycopg.Connection[Any]) -> None:
    await sink.commit(batch(0, 3, {0: (-1, 1)}))
    db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nevstream store'")
    with pytest.raises(StoreUnavailable):
        await sink.commit(batch(3, 3, {0: (1, 2)}))
    assert await sink.positions([0]) == {0: 1}
    await sink.commit(batch(3, 3, {0: (1, 2)}))
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (6,)


async def test_two_owners_of_a_partition(dsn: str, sink: PostgresSink, db: psycopg.Connection[Any]) -> None:
    """Both read the same records; whoever commits second finds out, and its rows are not there."""
    other = PostgresSink(dsn, Settings())
    await other.open()
    for n in range(10):
        outcomes = await asyncio.gather(
            sink.commit(batch(n, 1, {0: (n - 1, n), 1: (n - 1, n)})),
            other.commit(batch(n, 1, {1: (n - 1, n), 0: (n - 1, n)})),
            return_exceptions=True,
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Committed", "PositionsMoved"]
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (10,)
    await other.close()


async def test_a_day_that_was_dropped(sink: PostgresSink, db: psycopg.Connection[Any]) -> None:
    await sink.commit(batch(0, 3, {}))
    db.execute("DROP TABLE telemetry_20260301")
    await sink.commit(batch(3, 3, {}))
    assert db.execute("SELECT count(*) FROM telemetry_20260301").fetchone() == (3,)


async def test_a_broken_stream_is_our_own_fault(sink: PostgresSink, db: psycopg.Connection[Any]) -> None:
    broken = replace(rows(1, 0, 2), data=bytes(rows(1, 0, 2).data)[:-5])
    with pytest.raises(psycopg.DataError):
        await sink.commit(replace(NOTHING, telemetry=broken, days=[20513], positions={0: (-1, 5)}))
    assert await sink.positions([0]) == {0: -1}
    with pytest.raises(AssertionError, match="took 2 rows of 3"):
        await sink.commit(replace(NOTHING, telemetry=replace(rows(1, 0, 2), rows=3), days=[20513]))
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (0,)


async def test_events_keep_everything(sink: PostgresSink, db: psycopg.Connection[Any]) -> None:
    login = Login(
        partition=1, offset=2**40, position=3, received=NOON, time=NOON, command=1, edition=25, door=2, vin="A",
        vehicle_id=None, serial=None, iccid=None, pack_codes=["P1", "", "P\0\x1f3"], username="ü\ud800",
    )  # fmt: skip
    letter = DeadLetter(
        partition=1, offset=2**40, position=4, received=NOON, reason=200, detail=2**32 - 1, door=1, codec=3, vin="a\0b",
        peer=None, client="c", frame=bytes(range(256)),
    )  # fmt: skip
    await sink.commit(
        replace(NOTHING, logins=[login, replace(login, position=9, pack_codes=[])], dead_letters=[letter])
    )
    stored = db.execute(
        "SELECT position, received_at, vehicle_id, pack_codes, username FROM logins ORDER BY 1"
    ).fetchall()
    assert stored == [(3, NOON, None, ["P1", "", "P\u2400\u241f3"], "ü\\ud800"), (9, NOON, None, [], "ü\\ud800")]
    found = db.execute("SELECT reason, detail, codec, vin, peer, client, frame FROM dead_letters").fetchall()
    assert found == [(200, 2**32 - 1, 3, "a\u2400b", None, "c", bytes(range(256)))]


async def test_many_known_vehicles(sink: PostgresSink, db: psycopg.Connection[Any]) -> None:
    db.execute(
        "INSERT INTO vehicles (vin, registered)"
        " SELECT 'LSV' || lpad(n::text, 14, '0'), true FROM generate_series(1, 5000) n"
    )
    known = await sink.known_vehicles()
    assert known.vin.shape == (5000, 17)
    assert known.vin.flags.writeable
    assert known.vin.flags.c_contiguous
    by_id = np.argsort(known.vehicle_id)
    assert bytes(known.vin[by_id[41]]) == b"LSV00000000000042"
    assert not known.last_key.any()
    (again,) = await sink.register(["LSV00000000000042"])
    assert again == known.vehicle_id[by_id[41]]
    assert db.execute("SELECT count(*) FROM vehicles WHERE first_seen_at IS NOT NULL").fetchone() == (1,)


async def test_rows_and_positions_agree_after_the_server_is_killed(reachable_dir: Path, tmp_path: Path) -> None:
    """With synchronous_commit off a crash may lose the newest batches, but rows and positions always agree."""
    server = EmbeddedServer(reachable_dir / tmp_path.name, options={"shared_buffers": "64MB"})
    migrate(server.start())
    sink = PostgresSink(server.dsn, Settings())
    await sink.open()
    per_batch, committed = 50, 0
    enough = asyncio.Event()

    async def write() -> None:
        nonlocal committed
        while True:
            await sink.commit(batch(committed * per_batch, per_batch, {0: (committed - 1, committed)}))
            committed += 1
            if committed == 20:
                enough.set()

    writing = asyncio.ensure_future(write())
    await enough.wait()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(StoreUnavailable):
        await writing
    assert await asyncio.to_thread(server.wait_ended, 30)
    await asyncio.to_thread(server.start)

    position = (await sink.positions([0]))[0]
    assert -1 <= position <= committed
    with psycopg.connect(server.dsn) as connection:
        assert connection.execute("SELECT count(*) FROM telemetry").fetchone() == ((position + 1) * per_batch,)
    with pytest.raises(PositionsMoved):
        await sink.commit(batch(0, 1, {0: (position + 1, position + 2)}))
    await sink.commit(batch((position + 1) * per_batch, per_batch, {0: (position, position + 1)}))
    await sink.close()
    server.stop()
