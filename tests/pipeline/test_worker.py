"""The whole pipeline between a journal and a sink in memory: what comes out, whatever goes wrong in between."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from schemas.batch import Committed, RowBatch
from schemas.keys import partition_of_vin
from schemas.reasons import CODE
from schemas.seams import StoredRecord
from schemas.signals import INDEX, SIGNALS, State
from services.errors import JournalUnavailable, PositionsMoved, StoreUnavailable
from services.journal.memory import MemoryJournal
from services.pipeline import worker
from services.pipeline.batching import bounded
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.memory import MemorySink

PARTITIONS = 4
T0 = 1_780_000_000
VIN = "LTEST000000000001"
OTHER = "LTEST000000000002"
Tables = dict[str, Any]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_RETRY_FIRST_S", 0.001)


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


async def drained(journal: MemoryJournal, sink: MemorySink, **changes: Any) -> MemorySink:
    """Everything in the journal, moved to the sink by a pipeline of its own."""
    pipeline = pipeline_of(journal, sink, **changes)
    async with running(pipeline):
        await pipeline.caught_up()
    return sink


async def put(make: SimpleNamespace, journal: MemoryJournal, sent: Sequence[Any], per_record: int = 1000) -> None:
    """Append ``sent`` as the gateway would: by partition of the VIN, so many frames a record."""
    by_partition: dict[int, list[Any]] = {}
    for one in sent:
        vin = one.frame[4:21].rstrip(b"\0").decode("ascii", "replace")
        partition = partition_of_vin(vin, PARTITIONS) if vin.isascii() else 0
        by_partition.setdefault(partition, []).append(one)
    for partition, frames in by_partition.items():
        for at in range(0, len(frames), per_record):
            await journal.append([(partition, make.record(frames[at : at + per_record]))])


def ledger(sink: MemorySink) -> Counter[str]:
    total: Counter[str] = Counter()
    for line in sink.ledger.values():
        parts = sum(line[name] for name in ("rows", "duplicates", "conflicts", "rejected", "sessions", "other"))
        assert line["frames"] == parts, line
        total.update(line)
    return +total  # without the zeros


def content(sink: MemorySink) -> Tables:
    """What must not depend on the order of arrival: ids are the sink's, and resends arrive when they do."""
    vin_of = {vehicle_id: vin for vin, vehicle_id in sink.vehicles.items()}

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in row.items() if v is not None and k not in ("vehicle_id", "received_at", "door")}
        return {**kept, "vin": vin_of[row["vehicle_id"]]}

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["vin"], row["time"], row["kind"], row["part"]

    return {
        "telemetry": sorted((plain(row) for row in sink.telemetry.values()), key=order),
        "states": sorted((plain(row) for row in sink.states.values()), key=order),
        "vehicles": sorted(sink.vehicles),
        "ledger": ledger(sink),
    }


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# -- one frame of each kind ----------------------------------------------------------------------------


async def test_reports_become_rows_and_state(make: SimpleNamespace) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    await put(make, journal, [
        make.Sent(make.report(VIN, T0), T0 + 1.5),
        make.Sent(make.report(OTHER, T0, kind=3, speed=0xFFFE, soc=0xFF), T0 + 2),
        make.Sent(make.report(VIN, T0 + 10, speed=0, soc=79), T0 + 11),
    ])  # fmt: skip
    await drained(journal, sink)
    assert sorted(sink.vehicles) == [VIN, OTHER]
    rows = sorted(sink.telemetry.values(), key=lambda row: (row["vehicle_id"] != sink.vehicles[VIN], row["time"]))
    first, second, third = rows
    assert first["time"] == datetime.fromtimestamp(T0, UTC)
    assert first["received_at"] == datetime.fromtimestamp(T0, UTC) + timedelta(seconds=1.5)
    assert (first["kind"], first["part"], first["edition"], first["door"]) == (2, 0, 16, 1)
    assert first["speed_kmh"] == pytest.approx(65.3, abs=1e-5)
    assert (first["odometer_km"], first["soc_pct"], first["total_current_a"]) == (12345.6, 80, 50.0)
    assert second["speed_kmh"] == 0
    assert third["speed_kmh"] is None
    assert third["soc_pct"] is None
    assert third["flaws"] == bytes([INDEX["speed_kmh"], State.ABNORMAL, INDEX["soc_pct"], State.INVALID])
    state = sink.states[sink.vehicles[VIN]]
    assert (state["soc_pct"], state["reports"], state["time"]) == (79, 2, second["time"])
    assert ledger(sink) == {"frames": 3, "rows": 3}


async def test_frames_recorded_by_others(make: SimpleNamespace, golden: dict[str, dict[str, Any]]) -> None:
    """Every golden frame ends somewhere, with the values that its publishers say."""
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    sent, wanted = [], Counter[str]()
    for name, entry in golden.items():
        frame = bytes.fromhex(entry["hex"])
        when = entry["expect"].get("body.time")
        received = datetime.fromisoformat(when).timestamp() + 5 if when else T0
        sent.append(make.Sent(frame, received))
        wanted["frames"] += 1
        if not entry["valid"]:
            wanted["rejected"] += 1
            assert name in ("36n-platform-logout-bad-bcc", "gk-platform-login")
    await put(make, journal, sent)
    await drained(journal, sink)
    counts = ledger(sink)
    assert counts["frames"] == len(golden)
    letters = {letter.frame: letter for letter in sink.dead_letters.values()}
    assert letters[bytes.fromhex(golden["36n-platform-logout-bad-bcc"]["hex"])].reason == CODE["bad_bcc"]
    assert letters[bytes.fromhex(golden["gk-platform-login"]["hex"])].reason == CODE["bad_length"]
    assert letters[bytes.fromhex(golden["jtne-login-aes128"]["hex"])].reason == CODE["encrypted"]

    found = 0
    for row in sink.telemetry.values():
        vin = next(vin for vin, vehicle_id in sink.vehicles.items() if vehicle_id == row["vehicle_id"])
        for entry in golden.values():
            expect = entry["expect"]
            if (
                expect.get("vin") != vin
                or "body.infos.0.speed_kmh" not in expect
                or entry["kind"] not in ("realtime", "reissue")
            ):
                continue
            if datetime.fromisoformat(expect["body.time"]) != row["time"]:
                continue
            for path, column in (("speed_kmh", "speed_kmh"), ("mileage_km", "odometer_km"), ("soc_pct", "soc_pct")):
                value = expect.get(f"body.infos.0.{path}")
                if value is not None:
                    found += 1
                    assert row.get(column) == (None if isinstance(value, str) else pytest.approx(value, rel=1e-6)), (
                        entry["id"]
                    )
    assert found >= 6


async def test_sessions(make: SimpleNamespace, golden: dict[str, dict[str, Any]]) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    names = [
        "36n-login-2codes",
        "36n-logout",
        "36n-login-ack",
        "emqx-login-2025",
        "yz-platform-login",
        "rtm-26-plt-logout2025",
    ]
    await put(make, journal, [make.Sent(bytes.fromhex(golden[name]["hex"]), T0) for name in names])
    await drained(journal, sink)
    logins = {(login.command, login.edition): login for login in sink.logins.values()}
    assert len(sink.logins) == 5, "a reply is no session"
    expect = golden["36n-login-2codes"]["expect"]
    login = logins[1, 16]
    assert login.vin == expect["vin"]
    assert login.vehicle_id == sink.vehicles[login.vin]
    assert login.serial == expect["body.serial"]
    assert login.iccid == expect["body.iccid"]
    assert login.pack_codes == expect["body.codes"]
    assert login.time == datetime.fromisoformat(expect["body.time"])
    assert logins[1, 25].pack_codes == ["PACK12345678901234567890"], "a list per BMS becomes one"
    assert logins[4, 16].serial == golden["36n-logout"]["expect"]["body.serial"]
    platform = logins[5, 16]
    assert platform.username == golden["yz-platform-login"]["expect"]["body.username"]
    assert platform.vehicle_id is None
    password = bytes.fromhex(golden["yz-platform-login"]["hex"])[44:64].rstrip(b"\0").decode()
    assert len(password) > 3
    assert password not in repr(platform)
    assert platform.vin not in sink.vehicles, "a platform is no vehicle"
    counts = ledger(sink)
    assert (counts["sessions"], counts["other"], counts["rejected"]) == (5, 1, 0)


async def test_heartbeats_and_time_syncs_are_counted_and_no_more(make: SimpleNamespace) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    await put(make, journal, [make.Sent(make.frame(VIN, command, b""), T0) for command in (7, 8)])
    await drained(journal, sink)
    assert ledger(sink)["other"] == 2
    assert not sink.vehicles
    assert not sink.dead_letters


@pytest.mark.parametrize(
    ("frame", "reason", "detail"),
    [
        (lambda make: make.report(VIN, 946_684_800 + 3600), "clock_past", 24),
        (lambda make: make.report(VIN, 4_070_908_800), "clock_future", 24),
        (lambda make: make.report(VIN, T0 + 500), "clock_future", 24),
        (lambda make: make.frame(VIN, 2, bytes([26, 2, 30, 1, 1, 1]) + make.vehicle()), "bad_time", 24),
        (lambda make: make.frame(VIN, 2, bytes([26, 13, 1, 1, 1, 1]) + make.vehicle()), "bad_time", 24),
        (lambda make: make.frame(VIN, 2, bytes([26, 5, 1, 24, 1, 1]) + make.vehicle()), "bad_time", 24),
        (lambda make: make.frame(VIN, 2, make.beijing(T0)), "structure", 30),
        (lambda make: make.frame(VIN, 1, make.beijing(T0) + b"\0\1"), "structure", 24),
        (lambda make: make.frame(VIN, 2, make.beijing(T0) + make.vehicle(), encryption=3), "encrypted", 21),
        (lambda make: make.frame(VIN, 0x70, b""), "unknown_command", 2),
        (lambda make: make.report(VIN, T0)[:-1] + b"\0", "bad_bcc", 51),
        (lambda make: make.report(VIN, T0)[:40], "bad_length", 22),
        (lambda make: make.frame("L\tEST", 2, make.beijing(T0) + make.vehicle()), "bad_vin", 4),
        (lambda make: b"no frame at all", "bad_length", 15),
    ],
)
async def test_a_frame_that_cannot_be_a_row_is_kept_with_its_reason(
    make: SimpleNamespace, frame: Callable[[SimpleNamespace], bytes], reason: str, detail: int
) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    raw = frame(make)
    before = metric("nevstream_pipeline_dead_letters_total", reason=reason)
    await journal.append([(1, make.record([make.Sent(make.report(OTHER, T0), T0), make.Sent(raw, T0 + 7.25)]))])
    await drained(journal, sink)
    (letter,) = sink.dead_letters.values()
    assert (letter.reason, letter.detail, letter.frame) == (CODE[reason], detail, raw)
    assert (letter.partition, letter.offset, letter.position) == (1, 0, 1)
    assert letter.received == datetime.fromtimestamp(T0 + 7.25, UTC)
    assert letter.vin == (None if reason == "bad_vin" or len(raw) < 21 else VIN)
    assert ledger(sink) == {"frames": 2, "rows": 1, "rejected": 1}
    assert metric("nevstream_pipeline_dead_letters_total", reason=reason) == before + 1
    assert list(sink.vehicles) == [OTHER], "a refused frame makes no vehicle"


async def test_frames_refused_at_the_door_keep_what_is_known_of_their_sender(make: SimpleNamespace) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    source = {"peer": "192.0.2.1:40000", "vin": OTHER, "client": "c\0l"}
    await journal.append([(2, make.record([
        make.Sent(make.report(VIN, T0), T0, CODE["foreign_vin"], 4, source, door=2),
        make.Sent(b"\0\xff\0", T0, CODE["garbage"]),
        make.Sent(b'{"soc_pct": 80}', T0, codec=98, door=2),
        make.Sent(b"?", T0, codec=99, door=2),
    ]))])  # fmt: skip
    await drained(journal, sink)
    foreign, garbage, json_frame, odd = (sink.dead_letters[2, 0, i] for i in range(4))
    assert (foreign.reason, foreign.detail, foreign.door) == (CODE["foreign_vin"], 4, 2)
    assert (foreign.vin, foreign.peer, foreign.client) == (OTHER, "192.0.2.1:40000", "c\0l")
    assert (garbage.reason, garbage.vin, garbage.peer, garbage.frame) == (CODE["garbage"], None, None, b"\0\xff\0")
    assert json_frame.reason == odd.reason == CODE["unknown_topic"]
    assert json_frame.vin is None
    assert not sink.vehicles
    assert ledger(sink)["rejected"] == 4


async def test_contradictions_mark_and_do_not_refuse(make: SimpleNamespace) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    before = metric("nevstream_pipeline_signal_flaws_total", signal="speed_kmh", state="suspect")
    await put(make, journal, [make.Sent(make.report(VIN, T0, charge_state=1, current=9000), T0)])
    await drained(journal, sink)
    (row,) = sink.telemetry.values()
    assert row["speed_kmh"] == pytest.approx(65.3, abs=1e-5)
    flaws = {SIGNALS[signal].name: state for signal, state in zip(row["flaws"][::2], row["flaws"][1::2], strict=True)}
    assert flaws == {"charge_state": State.SUSPECT, "speed_kmh": State.SUSPECT}
    assert metric("nevstream_pipeline_signal_flaws_total", signal="speed_kmh", state="suspect") == before + 1


async def test_parts_of_one_second_are_rows_of_their_own(make: SimpleNamespace) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    unit = make.beijing(T0)
    second = make.frame(VIN, 2, unit + make.cells([3300] * 184, first=201, total=384))
    first = make.frame(VIN, 2, unit + make.vehicle() + make.cells([3301] * 200, total=384))
    await put(make, journal, [make.Sent(frame, T0) for frame in (second, first, second)])
    await drained(journal, sink)
    by_part = {row["part"]: row for row in sink.telemetry.values()}
    assert {part: row["cell_count"] for part, row in by_part.items()} == {0: 200, 201: 184}
    assert ledger(sink)["duplicates"] == 1


# -- order, repetition, batches ------------------------------------------------------------------------

REPORT = st.tuples(
    st.sampled_from([VIN, OTHER, "LTEST000000000003"]),
    st.integers(0, 6),
    st.sampled_from([2, 3]),
    st.sampled_from([10, 20, 0xFFFE]),
)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), reports=st.lists(REPORT, min_size=1, max_size=16, unique_by=lambda report: report[:3]))
def test_order_repetition_and_batches_do_not_matter(
    make: SimpleNamespace, data: st.DataObject, reports: list[Any]
) -> None:
    again = data.draw(st.lists(st.sampled_from(reports), max_size=6))
    shuffled = data.draw(st.permutations(reports + again))
    frames_max, per_record = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))

    async def end(order: list[Any], **changes: Any) -> Tables:
        journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
        sent = [make.Sent(make.report(vin, T0 + s, kind, speed=speed), T0 + 60) for vin, s, kind, speed in order]
        await put(make, journal, sent, per_record)
        return content(await drained(journal, sink, **changes))

    plain = asyncio.run(end(sorted(reports, key=lambda report: report[1])))
    found = asyncio.run(end(shuffled, batch_frames_max=frames_max))
    for name in ("telemetry", "states", "vehicles"):
        assert found[name] == plain[name], name
    assert found["ledger"]["rows"] == plain["ledger"]["rows"] == len(reports)
    assert found["ledger"]["duplicates"] == len(again)


@settings(deadline=None, max_examples=15)
@given(data=st.data(), speeds=st.lists(st.integers(0, 2200), min_size=2, max_size=5, unique=True))
def test_of_conflicting_reports_the_same_one_wins(
    make: SimpleNamespace, data: st.DataObject, speeds: list[int]
) -> None:
    async def end(order: list[int], frames_max: int) -> Tables:
        journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
        await put(make, journal, [make.Sent(make.report(VIN, T0, speed=speed), T0) for speed in order], 1)
        return content(await drained(journal, sink, batch_frames_max=frames_max))

    plain = asyncio.run(end(speeds, 100))
    found = asyncio.run(end(data.draw(st.permutations(speeds)), data.draw(st.integers(1, 3))))
    assert found["telemetry"] == plain["telemetry"]
    assert found["states"] == plain["states"]
    assert found["ledger"]["conflicts"] == len(speeds) - 1


# -- what goes wrong -----------------------------------------------------------------------------------


class FailingSink(MemorySink):
    """Fails the commits whose numbers are in ``failures``: before anything is written, or after all of it."""

    def __init__(self, failures: dict[int, tuple[type[Exception], bool]]) -> None:
        super().__init__(PARTITIONS)
        self.failures = failures
        self.tried = 0

    async def commit(self, batch: RowBatch) -> Committed:
        number, self.tried = self.tried, self.tried + 1
        if number in self.failures:
            error, written = self.failures[number]
            if written:
                await super().commit(batch)
            raise error("told to fail")
        await asyncio.sleep(0)
        return await super().commit(batch)


class FailingJournal(MemoryJournal):
    """Fails every second read."""

    reads = 0

    async def read(self, after: Any, bytes_max: int) -> Any:
        self.reads += 1
        if self.reads % 2:
            raise JournalUnavailable("told to fail")
        return await super().read(after, bytes_max)


def traffic(make: SimpleNamespace) -> list[Any]:
    sent = [
        make.Sent(make.report(vin, T0 + second, speed=10 * second), T0 + second)
        for second in range(12)
        for vin in (VIN, OTHER)
    ]
    late = [
        make.Sent(make.report(VIN, T0 + 5, kind=3), T0 + 20),
        make.Sent(make.report(VIN, T0 + 5, speed=50), T0 + 21),
    ]
    odd = [make.Sent(make.report(VIN, 946_684_800), T0), make.Sent(make.frame(OTHER, 7, b""), T0)]
    login = make.frame(VIN, 1, make.beijing(T0) + b"\0\1" + b"89860000000000000000" + b"\0\0")
    return [*sent, *late, *odd, make.Sent(login, T0)]


@pytest.mark.parametrize("written", [False, True], ids=["nothing was written", "everything was written"])
@pytest.mark.parametrize("error", [StoreUnavailable, PositionsMoved])
@pytest.mark.parametrize("numbers", [[0], [1], [2, 3, 4], [0, 2, 5]])
async def test_a_commit_that_fails_is_done_again_once(
    make: SimpleNamespace, error: type[Exception], written: bool, numbers: list[int]
) -> None:
    journal, plain = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    await put(make, journal, traffic(make), 3)
    await drained(journal, plain)
    sink = FailingSink(dict.fromkeys(numbers, (error, written)))
    cause = {StoreUnavailable: "store_unavailable", PositionsMoved: "positions_moved"}[error]
    before = metric("nevstream_pipeline_restarts_total", cause=cause)
    rows_before = metric("nevstream_pipeline_rows_total", path="fast") + metric(
        "nevstream_pipeline_rows_total", path="late"
    )
    await drained(journal, sink, batch_frames_max=5)
    assert sink.tried > len(numbers)
    assert content(sink) == content(plain)
    assert sink.dead_letters == plain.dead_letters
    assert metric("nevstream_pipeline_restarts_total", cause=cause) == before + len(numbers)
    if not written:
        rows = metric("nevstream_pipeline_rows_total", path="fast") + metric(
            "nevstream_pipeline_rows_total", path="late"
        )
        assert rows - rows_before == len(plain.telemetry), "what is done again is not counted again"


async def test_a_journal_that_comes_and_goes(make: SimpleNamespace) -> None:
    journal, plain, sink = FailingJournal(PARTITIONS), MemorySink(PARTITIONS), MemorySink(PARTITIONS)
    await put(make, journal, traffic(make), 3)
    steady = MemoryJournal(PARTITIONS)
    await put(make, steady, traffic(make), 3)
    await drained(steady, plain)
    await drained(journal, sink, batch_frames_max=5)
    assert content(sink) == content(plain)


async def test_a_store_that_is_away_at_start_is_waited_for(make: SimpleNamespace) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    await put(make, journal, [make.Sent(make.report(VIN, T0), T0)])
    sink.away = True
    before = metric("nevstream_pipeline_restarts_total", cause="store_unavailable")
    pipeline = pipeline_of(journal, sink)
    async with running(pipeline):
        async with asyncio.timeout(60):
            while metric("nevstream_pipeline_restarts_total", cause="store_unavailable") < before + 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        sink.away = False
        await pipeline.caught_up()
    assert len(sink.telemetry) == 1


async def test_another_owner_of_the_partitions(make: SimpleNamespace) -> None:
    """Two pipelines on the same partitions: each frame is a row once, whoever commits it."""
    journal, plain, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS), FailingSink({})
    await put(make, journal, traffic(make), 2)
    await drained(journal, plain)
    one, two = pipeline_of(journal, sink, batch_frames_max=3), pipeline_of(journal, sink, batch_frames_max=4)
    async with running(one), running(two):
        await asyncio.gather(one.caught_up(), two.caught_up())
    assert content(sink) == content(plain)


async def test_killed_between_read_and_commit(make: SimpleNamespace) -> None:
    journal, plain = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    await put(make, journal, traffic(make), 3)
    await drained(journal, plain)

    class Killed(MemorySink):
        async def commit(self, batch: RowBatch) -> Committed:
            if len(self.commits) == 2 and not reached.is_set():
                reached.set()
                await asyncio.Event().wait()
            return await super().commit(batch)

    reached, sink = asyncio.Event(), Killed(PARTITIONS)
    victim = asyncio.create_task(pipeline_of(journal, sink, batch_frames_max=4).run(asyncio.Event()))
    await reached.wait()
    victim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await victim
    assert len(sink.commits) == 2
    await drained(journal, sink)
    assert content(sink) == content(plain)


@pytest.mark.parametrize(
    "damage", [lambda body: body[:10], lambda body: body[:-1] + bytes([body[-1] ^ 1]), lambda body: b""]
)
async def test_a_damaged_record_is_put_aside_and_the_rest_goes_on(
    make: SimpleNamespace, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    good = [make.record([make.Sent(make.report(VIN, T0 + i), T0 + i)]) for i in range(3)]
    bad = damage(good[1])
    await journal.append([(0, good[0]), (0, bad), (0, good[2]), (3, bad)])
    await drained(journal, sink)
    assert len(sink.telemetry) == 2
    assert [(letter.partition, letter.offset) for letter in sink.dead_letters.values()] == [(0, 1), (3, 3)]
    for letter in sink.dead_letters.values():
        assert (letter.reason, letter.frame, letter.vin) == (CODE["torn_record"], bad, None)
        assert f"partition {letter.partition} offset {letter.offset}" in (letter.error or "")
    assert ledger(sink) == {"frames": 4, "rows": 2, "rejected": 2}
    assert await sink.positions(range(PARTITIONS)) == {0: 2, 1: -1, 2: -1, 3: 3}
    assert "partition 0 offset 1" in caplog.text


async def test_a_stop_finishes_the_commit_under_way(make: SimpleNamespace) -> None:
    journal = MemoryJournal(PARTITIONS)
    await put(make, journal, traffic(make), 2)
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(MemorySink):
        async def commit(self, batch: RowBatch) -> Committed:
            begun.set()
            await go_on.wait()
            return await super().commit(batch)

    sink = Slow(PARTITIONS)
    stop = asyncio.Event()
    task = asyncio.create_task(pipeline_of(journal, sink, batch_frames_max=4).run(stop))
    await begun.wait()
    stop.set()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    await task
    assert len(sink.commits) == 1


async def test_the_next_batch_is_decoded_while_one_is_committed(make: SimpleNamespace) -> None:
    journal = MemoryJournal(PARTITIONS)
    await put(make, journal, [make.Sent(make.report(f"LTEST{i:012}", T0), T0) for i in range(8)], 1)
    registered = asyncio.Event()

    class Watching(MemorySink):
        async def register(self, vins: Sequence[str]) -> list[int]:
            if self.vehicles:
                registered.set()
            return await super().register(vins)

        async def commit(self, batch: RowBatch) -> Committed:
            await registered.wait()  # of the second batch, while the first is being committed
            return await super().commit(batch)

    sink = await drained(journal, Watching(PARTITIONS), batch_frames_max=4)
    assert len(sink.telemetry) == 8


async def test_lag_is_the_age_of_the_oldest_frame_not_committed(make: SimpleNamespace) -> None:
    journal = MemoryJournal(PARTITIONS)
    await put(make, journal, [make.Sent(make.report(VIN, T0 + i), T0 + 40 + 10 * i) for i in range(2)], 1)
    seen: list[float] = []

    class Watching(MemorySink):
        async def commit(self, batch: RowBatch) -> Committed:
            seen.append(metric("nevstream_pipeline_lag_seconds"))
            if len(seen) == 1:
                raise StoreUnavailable("told to fail")
            return await super().commit(batch)

    await drained(journal, Watching(PARTITIONS), batch_frames_max=1)
    assert seen[:2] == [60.0, 60.0]
    assert seen[-1] in (50.0, 60.0)
    assert metric("nevstream_pipeline_lag_seconds") == 0.0


async def test_a_flood_of_refused_frames_goes_through_in_bounded_batches(make: SimpleNamespace) -> None:
    journal = MemoryJournal(PARTITIONS)
    sent = [make.Sent(b"\1\2\3", T0, CODE["garbage"])] * 500
    for _ in range(20):
        await journal.append([(0, make.record(sent))])
    sink = await drained(journal, MemorySink(PARTITIONS), batch_frames_max=1000)
    assert ledger(sink)["rejected"] == 10_000
    assert len(sink.commits) == 10


def test_a_batch_is_bounded_by_what_it_unpacks_to(make: SimpleNamespace) -> None:
    small = make.record([make.Sent(make.report(VIN, T0), T0)])
    large = make.record([make.Sent(bytes(1000), T0, CODE["garbage"])] * 100)
    assert len(large) < 2000, "it shrinks to next to nothing"
    records = [StoredRecord(0, i, body) for i, body in enumerate([large, small, small, large, b"damaged", small])]

    def sizes(frames_max: int, bytes_max: int) -> list[int]:
        found, rest = [], records
        while rest:
            taken, rest = bounded(rest, frames_max, bytes_max)
            found.append(len(taken))
        return found

    assert sizes(1000, 10**6) == [6]
    assert sizes(102, 10**6) == [3, 3]
    assert sizes(1, 10**6) == [1, 1, 1, 1, 2], "a damaged record has no frames"
    assert sizes(1000, 1000) == [1, 2, 1, 2]
