"""Frames that nobody can store: found, put aside with what they raised, and everything else goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from schemas.batch import Committed, RowBatch
from schemas.keys import partition_of_vin
from schemas.reasons import CODE
from schemas.seams import StoredRecord
from schemas.signals import INDEX
from services.errors import StoreUnavailable
from services.journal.memory import MemoryJournal
from services.pipeline import batching, poison, worker
from services.pipeline.poison import Aside, store_apart
from services.pipeline.rejects import RejectShare, TooManyRejectsError
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.copyformat import decode_copy
from services.store.memory import MemorySink
from tests.pipeline.running import put, settings_of, stored

PARTITIONS = 4
T0 = 1_780_000_000
VIN = "LTEST000000000001"
OTHER = "LTEST000000000002"
ODD = 77  # the SOC of a report that raises


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_RETRY_FIRST_S", 0.001)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class PoisonSink(MemorySink):
    """Raises for every batch that holds a report with SOC ``ODD``, as a database does that does not take a value."""

    def __init__(self, error: Callable[[], Exception] = lambda: ValueError("no such state of charge")) -> None:
        super().__init__(PARTITIONS)
        self.error = error
        self.tried = 0

    async def commit(self, batch: RowBatch, *, keep: bool = True) -> Committed:
        self.tried += 1
        for stream in (batch.telemetry, batch.late):
            if stream is not None and any(row["soc_pct"] == ODD for row in decode_copy(stream)):
                raise self.error()
        return await super().commit(batch, keep=keep)


def pipeline_of(journal: MemoryJournal, sink: MemorySink, **changes: Any) -> Pipeline:
    config = Settings.model_validate({"pipeline": {"idle_sleep_ms": 1.0, **changes}})
    return Pipeline(config, journal, sink, range(PARTITIONS), clock=lambda: T0 + 100.0)


@contextlib.asynccontextmanager
async def running(pipeline: Pipeline) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline.run(stop), name="pipeline")
        yield
        stop.set()


async def drained(journal: MemoryJournal, sink: MemorySink, **changes: Any) -> None:
    pipeline = pipeline_of(journal, sink, **changes)
    async with asyncio.timeout(60), running(pipeline):
        await pipeline.caught_up()


async def filled(make: SimpleNamespace, odd: set[tuple[str, int]], per_record: int = 7) -> MemoryJournal:
    """Sixty reports of each of two vehicles; those in ``odd`` are poison."""
    journal = MemoryJournal(PARTITIONS)
    for vin in (VIN, OTHER):
        sent = [make.Sent(make.report(vin, T0 + i, soc=ODD if (vin, i) in odd else 50), T0 + i) for i in range(60)]
        for at in range(0, len(sent), per_record):
            await journal.append([(partition_of_vin(vin, PARTITIONS), make.record(sent[at : at + per_record]))])
    return journal


def total(sink: MemorySink, name: str) -> int:
    return sum(line[name] for line in sink.ledger.values())


@pytest.mark.parametrize(
    "error",
    [
        lambda: ValueError("no such state of charge"),
        lambda: AssertionError("COPY telemetry took 3 rows of 4"),
        lambda: psycopg.errors.NumericValueOutOfRange("smallint out of range"),
        lambda: psycopg.errors.NotNullViolation("null value in column time"),
        lambda: psycopg.errors.ProgramLimitExceeded("row is too big: size 9000, maximum size 8160"),
    ],
    ids=["ours", "asserted", "data error", "constraint", "too large"],
)
@pytest.mark.parametrize("frames_max", [10, 20_000])
async def test_a_frame_that_cannot_be_stored_is_put_aside_and_the_rest_goes_on(
    make: SimpleNamespace, error: Callable[[], Exception], frames_max: int, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {(VIN, 0), (VIN, 33), (VIN, 34), (OTHER, 59)}
    journal, sink = await filled(make, odd), PoisonSink(error)
    restarts = metric("nevstream_pipeline_restarts_total", cause="poison")
    letters = metric("nevstream_pipeline_dead_letters_total", reason="poison")
    await drained(journal, sink, batch_frames_max=frames_max)
    kept = {(letter.vin, letter.received) for letter in sink.dead_letters.values()}
    assert kept == {(vin, datetime.fromtimestamp(T0 + i, UTC)) for vin, i in odd}
    for letter in sink.dead_letters.values():
        assert letter.reason == CODE["poison"]
        assert letter.frame == make.report(letter.vin, int(letter.received.timestamp()), soc=ODD)
        assert str(error()) in (letter.error or "")
        assert type(error()).__name__ in (letter.error or "")
    assert len(sink.telemetry) == total(sink, "rows") == 120 - len(odd)
    assert (total(sink, "frames"), total(sink, "rejected")) == (120, len(odd))
    assert {state["reports"] for state in sink.states.values()} == {57, 59}
    assert await sink.positions(range(PARTITIONS)) == {p: (await journal.ends()).get(p, -1) for p in range(PARTITIONS)}
    assert metric("nevstream_pipeline_restarts_total", cause="poison") > restarts
    assert metric("nevstream_pipeline_dead_letters_total", reason="poison") == letters + len(odd)
    assert "frame 0 of it is poison" in caplog.text


@pytest.mark.parametrize("step", ["decode", "build"])
async def test_a_fault_of_ours_before_the_commit(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    odd = {(VIN, 5), (OTHER, 17)}
    journal, sink = await filled(make, odd), MemorySink(PARTITIONS)
    name = "validate" if step == "decode" else "classify"
    plain = getattr(batching, name)

    def faulty(*arguments: Any) -> Any:
        batch = arguments[1] if step == "decode" else arguments[0]
        lines = range(len(batch.kind)) if step == "decode" else arguments[1]
        if any(batch.kind[line] == 2 and batch.num[line, INDEX["soc_pct"]] == ODD for line in lines):
            raise IndexError("index 99 is out of bounds for axis 0 with size 64")
        return plain(*arguments)

    monkeypatch.setattr(batching, name, faulty)
    await drained(journal, sink)
    assert len(sink.dead_letters) == 2
    assert {letter.vin for letter in sink.dead_letters.values()} == {VIN, OTHER}
    assert all("IndexError: index 99" in (letter.error or "") for letter in sink.dead_letters.values())
    assert len(sink.telemetry) == 118


async def test_what_raised_once_is_stored_the_second_time(make: SimpleNamespace) -> None:
    class Moody(MemorySink):
        raised = False

        async def commit(self, batch: RowBatch, *, keep: bool = True) -> Committed:
            if not self.raised and batch.telemetry is not None:
                self.raised = True
                raise MemoryError("for a moment")
            return await super().commit(batch, keep=keep)

    journal, sink = await filled(make, set()), Moody(PARTITIONS)
    await drained(journal, sink, batch_frames_max=10)
    assert len(sink.telemetry) == 120
    assert not sink.dead_letters


async def test_the_store_may_be_away_while_poison_is_looked_for(make: SimpleNamespace) -> None:
    class Away(PoisonSink):
        async def commit(self, batch: RowBatch, *, keep: bool = True) -> Committed:
            if self.tried % 3 == 2:
                self.tried += 1
                raise StoreUnavailable("told to fail")
            return await super().commit(batch, keep=keep)

    journal, sink = await filled(make, {(VIN, 20)}, per_record=4), Away()
    await drained(journal, sink)
    assert len(sink.telemetry) == 119
    assert len(sink.dead_letters) == 1


async def test_what_is_no_frame_s_doing_puts_nothing_aside(make: SimpleNamespace) -> None:
    """A fault that meets a record without any frame as well: the process ends, and nothing is lost or put aside."""

    class Broken(MemorySink):
        async def commit(self, batch: RowBatch, *, keep: bool = True) -> Committed:  # noqa: ARG002
            raise RuntimeError("the ledger has gone mad")

    journal, sink = await filled(make, set()), Broken(PARTITIONS)
    with pytest.raises(RuntimeError, match="the ledger has gone mad"):
        await pipeline_of(journal, sink).run(asyncio.Event())
    assert not sink.dead_letters
    assert await sink.positions(range(PARTITIONS)) == dict.fromkeys(range(PARTITIONS), -1)


async def test_a_record_of_which_nothing_can_be_stored_is_put_aside_whole(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, sink = await filled(make, set(), per_record=20), MemorySink(PARTITIONS)
    plain = batching.decode_records

    def faulty(records: Any) -> Any:
        if any(record.partition == partition_of_vin(VIN, PARTITIONS) and record.offset == 1 for record in records):
            raise OverflowError("a size that cannot be")
        return plain(records)

    monkeypatch.setattr(batching, "decode_records", faulty)
    await drained(journal, sink)
    (letter,) = sink.dead_letters.values()
    (partition, offset, position) = next(iter(sink.dead_letters))
    assert (partition, offset, position) == (partition_of_vin(VIN, PARTITIONS), 1, 0)
    assert letter.reason == CODE["poison"]
    assert "OverflowError" in (letter.error or "")
    (wanted,) = (record for record in await journal.read({partition: -1}, 1 << 30) if record.offset == 1)
    assert letter.frame == wanted.body
    assert len(sink.telemetry) == 100


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    bad=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=8),
    pair=st.none() | st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(5, 8)),
)
def test_what_is_put_aside_is_what_raises(
    make: SimpleNamespace, sizes: list[int], bad: set[tuple[int, int]], pair: tuple[int, int, int] | None
) -> None:
    """Also two frames that raise only together: one of them is enough."""
    records = [StoredRecord(0, n, make.record([make.Sent(b"x", T0)] * size)) for n, size in enumerate(sizes)]
    done: dict[int, set[int]] = {}

    async def store(pile: Any, aside: Aside | None, keep: bool) -> None:
        assert aside is None or len(pile) == 1
        for record in pile:
            out = set(aside.frames) if aside is not None else set()
            left = set(range(sizes[record.offset])) - out
            if any(record.offset == n and at in left for n, at in bad):
                raise KeyError("poison")
            if pair is not None and record.offset == pair[0] and set(pair[1:]) <= left:
                raise KeyError("two of them")
        if keep:
            for record in pile:
                assert record.offset not in done, "once"
                done[record.offset] = set(aside.frames) if aside is not None else set()

    asyncio.run(store_apart(records, store, asyncio.Event()))
    assert list(done) == list(range(len(sizes))), "in order"
    for n, out in done.items():
        sure = {at for m, at in bad if m == n and at < sizes[n]}
        assert sure <= out
        spare = out - sure
        assert len(spare) <= 1
        if spare:
            assert pair is not None
            assert spare <= set(pair[1:])
            assert pair[0] == n


async def test_a_record_full_of_poison_costs_a_bounded_number_of_attempts(make: SimpleNamespace) -> None:
    record = StoredRecord(0, 0, make.record([make.Sent(b"x", T0)] * 5000))
    attempts, aside_in_the_end = 0, Aside()

    async def store(pile: Any, aside: Aside | None, keep: bool) -> None:
        nonlocal attempts, aside_in_the_end
        attempts += 1
        if aside is None or len(aside.frames) < 5000:
            raise KeyError("poison")
        if keep:
            aside_in_the_end = aside

    await store_apart([record], store, asyncio.Event())
    assert attempts <= poison._ATTEMPTS_MAX + 5
    assert len(aside_in_the_end.frames) == 5000
    assert aside_in_the_end.frames[4999].startswith("not tried: ")


# -- too much of it ----------------------------------------------------------------------------------------


def vins(n: int) -> list[bytes]:
    return [b"LTEST%012d" % i for i in range(n)]


def counted(share: RejectShare, frames: int, refused: dict[bytes, int], times: int = 1) -> None:
    for _ in range(times):
        share.check(frames, refused)
        share.add(frames, refused)


def test_the_share_of_rejects_is_of_the_newest_frames() -> None:
    share = RejectShare(0.5, 1000)
    counted(share, 100, dict.fromkeys(vins(100), 1), 9)
    with pytest.raises(TooManyRejectsError, match=r"100% of the newest 1,000 frames are refused, from 100 vehicles"):
        share.check(100, dict.fromkeys(vins(100), 1))
    calm = RejectShare(0.5, 1000)
    counted(calm, 100, dict.fromkeys(vins(50), 1), 20)
    counted(calm, 100, {}, 9)
    counted(calm, 100, dict.fromkeys(vins(100), 1))
    for refusing in range(4):
        counted(calm, 100, dict.fromkeys(vins(100), 1))
        assert calm._refused.total() == 100 * (refusing + 2)
    with pytest.raises(TooManyRejectsError, match="60%"):
        calm.check(100, dict.fromkeys(vins(100), 1))
    counted(RejectShare(1.0, 1000), 1000, dict.fromkeys(vins(1000), 1), 20)


def test_a_batch_that_is_begun_anew_counts_once() -> None:
    share = RejectShare(0.5, 1000)
    for _ in range(50):
        share.check(900, dict.fromkeys(vins(900), 1))


def test_one_vehicle_cannot_stop_the_others() -> None:
    counted(RejectShare(0.5, 1000), 1000, {b"LTEST000000000001": 1000}, 50)


def ids(begin: int, end: int) -> NDArray[np.int64]:
    return np.arange(begin, end, dtype=np.int64)


def test_a_few_vehicles_cannot_stop_a_larger_fleet() -> None:
    share = RejectShare(0.5, 1000)
    for _ in range(50):
        share.check(1000, dict.fromkeys(vins(8), 120), ids(8, 17), ids(0, 8))
        share.add(1000, dict.fromkeys(vins(8), 120), ids(8, 17), ids(0, 8))
    share.check(1000, dict.fromkeys(vins(200), 5), ids(200, 400), ids(0, 200))
    with pytest.raises(TooManyRejectsError, match="from 208 vehicles"):
        RejectShare(0.5, 1000).check(1040, dict.fromkeys(vins(208), 5), ids(208, 408), ids(0, 208))


def test_a_flood_of_a_few_finds_the_others_remembered() -> None:
    """The honest ones have a report in a batch now and then, the flood fills whole windows."""
    share = RejectShare(0.5, 1000, clock=lambda: 0.0)
    share.add(200, {}, ids(10, 210))
    for _ in range(50):
        share.check(1000, dict.fromkeys(vins(10), 100), ids(10, 11), ids(0, 10))
        share.add(1000, dict.fromkeys(vins(10), 100), ids(10, 11), ids(0, 10))


def test_a_fleet_whose_frames_are_all_refused_from_now_on_stops_it_by_and_by() -> None:
    now_s = 0.0
    share = RejectShare(0.5, 1000, clock=lambda: now_s)
    share.add(10_000, {}, ids(0, 10_000))
    for begin in range(0, 5000, 500):
        now_s += 1.0
        share.check(1000, dict.fromkeys(vins(500), 2), wrong=ids(begin, begin + 500))
        share.add(1000, dict.fromkeys(vins(500), 2), wrong=ids(begin, begin + 500))
    now_s += 1.0
    share.add(1000, dict.fromkeys(vins(500), 2), wrong=ids(5000, 5500))
    with pytest.raises(TooManyRejectsError, match="from 5,500 vehicles"):
        share.check(1000, dict.fromkeys(vins(500), 2))


def test_what_was_good_long_ago_does_not_stand_for_ever() -> None:
    now_s = 0.0
    share = RejectShare(0.5, 1000, clock=lambda: now_s)
    share.add(1000, {}, ids(0, 1000))
    now_s = 599.0
    share.check(2000, dict.fromkeys(vins(20), 100), wrong=ids(2000, 2020))
    now_s = 602.0
    with pytest.raises(TooManyRejectsError, match="from 20 vehicles"):
        share.check(2000, dict.fromkeys(vins(20), 100), wrong=ids(2000, 2020))


async def test_a_pipeline_that_refuses_most_stops_and_loses_nothing(
    make: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)

    async def fleet(second: int, per_vehicle: int = 5) -> None:
        for i in range(20):
            sent = [make.Sent(make.report(f"LTEST{i:012}", second + k), T0 + k) for k in range(per_vehicle)]
            await journal.append([(i % PARTITIONS, make.record(sent))])

    await fleet(T0 - 1000)
    await fleet(T0 - 900)
    await fleet(946_684_800, 20)  # everybody's clock has jumped
    why: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    config = Settings.model_validate(
        {"pipeline": {"idle_sleep_ms": 1.0, "reject_window_frames": 300, "batch_frames_max": 50}}
    )
    pipeline = Pipeline(config, journal, sink, range(PARTITIONS), clock=lambda: T0 + 100.0, on_halt=why.set_result)
    async with asyncio.timeout(60), running(pipeline):
        assert "are refused, from 10 vehicles" in await why
        assert metric("nevstream_pipeline_halted") == 1
    assert metric("nevstream_pipeline_halted") == 0
    assert "the pipeline has stopped" in caplog.text
    refused = len(sink.dead_letters)
    assert 100 <= refused <= 250, "those before the limit was passed"
    # put right: a new process takes what is left
    await drained(journal, sink, clock_past_max_days=36_500, reject_window_frames=300)
    assert len(sink.telemetry) == 600 - refused
    assert len(sink.dead_letters) == refused


async def test_what_the_doors_refuse_does_not_stop_the_pipeline(make: SimpleNamespace) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    for i in range(4):
        await journal.append([(i, make.record([make.Sent(b"\1\2\3", T0, CODE["garbage"])] * 500))])
        requeued = [make.Sent(make.report(f"LTEST{n:012}", 946_684_800), T0, door=4) for n in range(500)]
        await journal.append([(i, make.record(requeued))])
    await drained(journal, sink, reject_window_frames=100)
    assert total(sink, "rejected") == 4000


# -- with a real database ------------------------------------------------------------------------------


@pytest.mark.database
async def test_a_value_that_the_database_does_not_take(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any]
) -> None:
    db.execute("SELECT ensure_telemetry_days('2026-05-28', '2026-05-28')")
    db.execute("ALTER TABLE telemetry_20260528 ADD CONSTRAINT odd CHECK (soc_pct <> 77)")
    sent = [
        make.Sent(make.report(vin, T0 + i, soc=ODD if (vin, i) in {(VIN, 7), (OTHER, 0)} else 50), T0 + i)
        for i in range(30)
        for vin in (VIN, OTHER)
    ]
    await put(dsn, sent)
    async with asyncio.timeout(60):
        await stored(dsn, settings_of(clock_past_max_days=3650))
    found = db.execute("SELECT vin, reason, error FROM dead_letters ORDER BY vin").fetchall()
    assert [row[:2] for row in found] == [(VIN, CODE["poison"]), (OTHER, CODE["poison"])]
    assert all('violates check constraint "odd"' in row[2] for row in found)
    assert db.execute("SELECT count(*), count(DISTINCT (vehicle_id, time)) FROM telemetry").fetchone() == (58, 58)
    assert db.execute("SELECT sum(frames), sum(rows), sum(rejected) FROM ledger").fetchone() == (60, 58, 2)
    assert db.execute("SELECT sum(reports) FROM vehicle_state").fetchone() == (58,)


@pytest.mark.database
async def test_a_table_that_is_missing_is_waited_for(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the frames' fault: none of them is put aside."""
    db.execute("ALTER TABLE logins RENAME TO logins_away")
    login = make.frame(VIN, 1, make.beijing(T0) + b"\0\1" + b"89860000000000000000" + b"\0\0")
    await put(dsn, [make.Sent(login, T0), make.Sent(make.report(VIN, T0), T0)])
    waited = asyncio.Event()
    plain = Pipeline._pause

    async def pause(self: Pipeline, error: Exception, stop: asyncio.Event) -> None:
        assert "nevstream migrate" in str(error)
        waited.set()
        await plain(self, error, stop)

    monkeypatch.setattr(Pipeline, "_pause", pause)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(stored(dsn, settings_of(clock_past_max_days=3650)))
        await waited.wait()
        db.execute("ALTER TABLE logins_away RENAME TO logins")
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (1,)
    assert db.execute("SELECT count(*) FROM logins").fetchone() == (1,)
    assert db.execute("SELECT count(*) FROM dead_letters").fetchone() == (0,)
