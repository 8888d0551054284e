"""Partitions that change hands as pipelines run: a zombie's transaction is refused, an owner begins from the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.batch import Committed, RowBatch
from schemas.keys import partition_of_vin
from services.errors import PositionsMoved
from services.journal.memory import MemoryJournal
from services.pipeline import worker
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.memory import MemorySink

T0 = 1_780_000_000
PARTITIONS = 4
VINS = [f"LTEST{i:012}" for i in range(12)]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_RETRY_FIRST_S", 0.001)


class Dealt:
    """``schemas.shares.Shares`` in a test's hands: ``deal`` a share; ``refusals`` and ``free`` tell what came back."""

    def __init__(self) -> None:
        self._share: tuple[int, ...] = ()
        self._changed = asyncio.Event()
        self.moved = True
        self.free = asyncio.Event()
        self.refusals = 0

    def deal(self, *partitions: int) -> None:
        self._share = partitions
        self.moved = True
        self._changed.set()

    async def next(self, stop: asyncio.Event) -> Sequence[int]:
        self.let_go()
        while not stop.is_set():
            if self._changed.is_set() and self._share:
                self._changed.clear()
                self.free.clear()
                self.moved = False
                return self._share
            await asyncio.sleep(0.001)
        return ()

    def let_go(self) -> None:
        self.free.set()

    def refused(self) -> None:
        self.refusals += 1
        self.moved = True


async def put(make: SimpleNamespace, journal: MemoryJournal, second: int) -> None:
    for vin in VINS:
        sent = make.Sent(make.report(vin, T0 + second), T0 + second + 1.0)
        await journal.append([(partition_of_vin(vin, PARTITIONS), make.record([sent]))])


def pipeline_of(journal: MemoryJournal, sink: Any, shares: Dealt) -> Pipeline:
    settings = Settings.model_validate({"pipeline": {"idle_sleep_ms": 1.0}, "journal": {"partitions": PARTITIONS}})
    return Pipeline(settings, journal, sink, (), clock=lambda: T0 + 100.0, shares=shares)


def rows(sink: MemorySink) -> int:
    return len(sink.telemetry)


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - of tables in memory
            await asyncio.sleep(0.002)


async def test_shares_move_between_pipelines(make: SimpleNamespace) -> None:
    journal, first = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    second = first.beside()
    one, two = Dealt(), Dealt()
    stop = asyncio.Event()
    await put(make, journal, 0)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline_of(journal, first, one).run(stop))
        tasks.create_task(pipeline_of(journal, second, two).run(stop))
        one.deal(0, 1, 2, 3)
        await until(lambda: rows(first) == len(VINS))
        one.deal()  # taken back: it lets go, and stores nothing more
        await one.free.wait()
        await put(make, journal, 10)
        two.deal(0, 1)
        one.deal(2, 3)
        await until(lambda: rows(first) == 2 * len(VINS))
        one.deal(0, 1)
        two.deal(2, 3)
        await put(make, journal, 20)
        await until(lambda: rows(first) == 3 * len(VINS))
        stop.set()
    assert one.refusals == two.refusals == 0
    assert sum(line["rows"] for line in first.ledger.values()) == 3 * len(VINS)
    assert {name: n for line in first.ledger.values() for name, n in line.items() if name == "duplicates" and n} == {}


async def test_a_zombies_transaction_is_refused(make: SimpleNamespace) -> None:
    """It was away in front of its commit; the new owner has claimed its partitions and stored nothing of them yet."""

    class Zombie:
        """A sink whose commits wait to be woken."""

        def __init__(self, sink: MemorySink) -> None:
            self._sink = sink
            self.asleep, self.woken = asyncio.Event(), asyncio.Event()
            self.refused: list[PositionsMoved] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sink, name)

        async def commit(self, batch: RowBatch, *, keep: bool = True) -> Committed:
            self.asleep.set()
            await self.woken.wait()
            try:
                return await self._sink.commit(batch, keep=keep)
            except PositionsMoved as error:
                self.refused.append(error)
                raise

    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    zombie, other = Zombie(sink), sink.beside()
    one, two = Dealt(), Dealt()
    stop = asyncio.Event()
    await put(make, journal, 0)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline_of(journal, zombie, one).run(stop))
        one.deal(0, 1, 2, 3)
        await zombie.asleep.wait()
        await other.claim([0, 1, 2, 3])
        zombie.woken.set()
        await until(lambda: one.refusals)
        assert rows(sink) == 0
        assert "another process has claimed" in str(zombie.refused[0])
        tasks.create_task(pipeline_of(journal, other, two).run(stop))
        two.deal(0, 1, 2, 3)
        await until(lambda: rows(sink) == len(VINS))
        await put(make, journal, 10)
        await until(lambda: rows(sink) == 2 * len(VINS))
        assert one.refusals == len(zombie.refused) == 1  # it waits for a new share
        one.deal(0)
        two.deal(1, 2, 3)
        await put(make, journal, 20)
        await until(lambda: rows(sink) == 3 * len(VINS))
        stop.set()
    assert sum(line["rows"] for line in sink.ledger.values()) == sum(line["frames"] for line in sink.ledger.values())
