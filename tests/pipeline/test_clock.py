"""The system's clock steps, forward and back, in the middle: no offset, acknowledgement or age minds.

Reports are judged by the clock of their arrival (clock_future, clock_past): here they are dated by it, so that all are
good.  Ages are never below zero.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY

from schemas.batch import Codec
from schemas.journal.record import decode_records
from schemas.keys import partition_of_vin
from services.gateway import events, intake
from services.gateway.server import Gateway
from services.gateway.server import warm as warm_gateway
from services.journal.memory import MemoryJournal
from services.journal.postgres import PostgresJournal
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.directory import MemoryDirectory
from services.store.memory import MemorySink
from services.store.postgres import PostgresSink
from tests.pipeline.running import settings_of

PARTITIONS = 4
T0 = 1_780_000_000
VIN = "LTEST000000000001"
HOUR = 3600
STEPS = [0, HOUR, -HOUR, 5, -7 * 86_400, 300 * 86_400, 0]


class Clock:
    """A wall clock that steps by ``shift_s``; what passes meanwhile is not of interest."""

    def __init__(self) -> None:
        self.shift_s = 0

    def seconds(self) -> float:
        return T0 + 0.5 + self.shift_s

    def microseconds(self) -> int:
        return round(self.seconds() * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (intake, events):
        monkeypatch.setattr(module, "now_us", made.microseconds)
    return made


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


async def read_reply(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(24)
    return head + await reader.readexactly(int.from_bytes(head[22:24], "big") + 1)


async def test_a_vehicle_goes_on_while_the_gateway_s_clock_steps(make: SimpleNamespace, clock: Clock) -> None:
    warm_gateway()
    config = Settings.model_validate(
        {
            "gateway": {"mqtt": {"port": 0}, "gbt32960": {"port": 0}},
            "pipeline": {"idle_sleep_ms": 1.0},
            "journal": {"partitions": PARTITIONS},
        }
    )
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    gateway = Gateway(config, journal, MemoryDirectory())
    await gateway.start()
    sent = []
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*gateway.addresses["gbt32960"])
        login = make.frame(VIN, 1, make.beijing(T0) + b"\0\1" + b"89860000000000000000" + b"\0\0")
        writer.write(login)
        assert (await read_reply(reader))[3] == 1
        for n, shift_s in enumerate(STEPS):
            clock.shift_s = shift_s
            frames = [make.report(VIN, T0 + shift_s + n + k, speed=10 * n + k) for k in range(0, 30, 10)]
            sent += frames
            writer.write(b"".join(frames))
            for frame in frames:
                reply = await read_reply(reader)
                assert reply[2:4] == b"\2\1"
                assert reply[24:30] == frame[24:30], "each is answered, in the order of sending"
        writer.close()
        await writer.wait_closed()
        await gateway.drain(5.0)

        records = await journal.read({partition_of_vin(VIN, PARTITIONS): -1}, 1 << 30)
        assert [record.offset for record in records] == sorted({record.offset for record in records})
        frames = decode_records(records)
        reports = [
            i for i in range(frames.n) if frames.codec[i] == Codec.GBT32960 and frames.data[frames.start[i] + 2] == 2
        ]
        assert [frames.frame(i) for i in reports] == sent, "in the journal as they were sent"

        pipeline, stop = Pipeline(config, journal, sink, range(PARTITIONS), clock=clock.seconds), asyncio.Event()
        running = asyncio.create_task(pipeline.run(stop))
        await pipeline.caught_up()
        stop.set()
        await running
    assert len(sink.telemetry) == len(sent)
    assert not sink.dead_letters
    assert metric("nevstream_pipeline_lag_seconds") == 0.0


@pytest.mark.parametrize("shift_s", [HOUR, -HOUR, -300 * 86_400])
async def test_ages_are_never_below_zero(make: SimpleNamespace, shift_s: int) -> None:
    """Frames from before a step, stored after it."""
    journal = MemoryJournal(PARTITIONS)
    await journal.append([(1, make.record([make.Sent(make.report(VIN, T0 + n), T0 + n) for n in range(5)]))])
    clock, lags = Clock(), []

    class Watching(MemorySink):
        async def commit(self, batch: Any, *, keep: bool = True) -> Any:
            clock.shift_s = shift_s
            pipeline._show_lag()
            lags.append(metric("nevstream_pipeline_lag_seconds"))
            return await super().commit(batch, keep=keep)

    sink = Watching(PARTITIONS)
    before = metric("nevstream_pipeline_socket_to_row_seconds_sum")
    pipeline = Pipeline(
        Settings.model_validate({"pipeline": {"idle_sleep_ms": 1.0}}), journal, sink, range(PARTITIONS), clock.seconds
    )
    stop = asyncio.Event()
    running = asyncio.create_task(pipeline.run(stop))
    async with asyncio.timeout(60):
        await pipeline.caught_up()
    stop.set()
    await running
    assert len(sink.telemetry) == 5
    assert lags == [max(0.0, shift_s + 0.5)]
    assert metric("nevstream_pipeline_socket_to_row_seconds_sum") - before == pytest.approx(max(0.0, shift_s + 0.5))
    assert metric("nevstream_pipeline_lag_seconds") == 0.0


@pytest.mark.database
@pytest.mark.parametrize("ahead_days", [1, 400])
async def test_the_database_s_clock_was_ahead_and_is_right_again(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], ahead_days: int
) -> None:
    """Offsets hold the day of the append: they go on in the day they have reached."""
    journal = PostgresJournal(dsn, PARTITIONS)
    partition = partition_of_vin(VIN, PARTITIONS)

    def record(n: int) -> list[tuple[int, bytes]]:
        return [(partition, make.record([make.Sent(make.report(VIN, T0 + n), T0 + n)]))]

    offsets = await journal.append(record(0))
    settings = settings_of(clock_past_max_days=3650)

    async def stored_until(condition: Callable[[], bool]) -> None:
        sink = PostgresSink(dsn, settings)
        await sink.open()
        reader = PostgresJournal(dsn, PARTITIONS)
        pipeline, stop = Pipeline(settings, reader, sink, range(PARTITIONS)), asyncio.Event()
        running = asyncio.create_task(pipeline.run(stop))
        async with asyncio.timeout(60):
            await pipeline.caught_up()
        assert condition()
        stop.set()
        await running
        await sink.close()
        await reader.close()

    def rows() -> int:
        found = db.execute("SELECT count(*) FROM telemetry").fetchone()
        assert found is not None
        return int(found[0])

    await stored_until(lambda: rows() == 1)
    ahead = (offsets[0] >> 32) + ahead_days << 32
    db.execute("SELECT setval('journal_offsets', %s)", [ahead])
    db.execute(
        "SELECT ensure_journal_days((date '1970-01-01' + %s), (date '1970-01-01' + %s))", [ahead >> 32, ahead >> 32]
    )
    for n in (1, 2):
        offsets += await journal.append(record(n))
    await stored_until(lambda: rows() == 3)
    assert offsets == [offsets[0], ahead + 1, ahead + 2]
    assert db.execute('SELECT "offset" FROM journal_positions WHERE partition = %s', [partition]).fetchone() == (
        ahead + 2,
    )
    await journal.close()
