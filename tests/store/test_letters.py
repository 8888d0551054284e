"""Dead letters put back and pruned, on a real database with a journal beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from schemas.batch import Door
from schemas.journal.record import decode_records
from schemas.keys import partition_of_vin
from schemas.reasons import CODE
from schemas.seams import LetterFilter, LetterId, StoredRecord
from services.errors import JournalUnavailable, UsageError
from services.journal.memory import MemoryJournal
from services.settings import Settings
from services.store.letters import Letters

pytestmark = pytest.mark.database

VIN = "LTEST000000000001"
NOW = datetime(2026, 11, 24, 4, 0, 0, 123456, tzinfo=UTC)


def settings_of(**changes: Any) -> Settings:
    return Settings.model_validate({"journal": {"partitions": 4}, **changes})


def frame_of(vin: str, n: int = 0) -> bytes:
    return b"##\x02\xfe" + vin.encode().ljust(17, b"\0") + bytes([1, 0, 1, n, 0])


def letter(
    db: psycopg.Connection[Any], offset: int, *, reason: str = "clock_past", vin: str | None = VIN,
    frame: bytes | None = None, received: datetime = NOW, codec: int = 1, partition: int = 0,
) -> LetterId:  # fmt: skip
    db.execute(
        'INSERT INTO dead_letters (partition, "offset", position, received_at, reason, detail, door, codec, vin, peer,'
        " client, frame) VALUES (%s, %s, 2, %s, %s, 24, 1, %s, %s, '10.0.0.7:5', 'c1', %s)",
        [partition, offset, received, CODE[reason], codec, vin, frame or frame_of(vin or "X", offset)],
    )  # fmt: skip
    return partition, offset, 2


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal(4)


@pytest.fixture
async def letters(dsn: str, journal: MemoryJournal) -> AsyncIterator[Letters]:
    made = Letters(dsn, journal, settings_of())
    yield made
    await made.close()


async def records(journal: MemoryJournal) -> list[StoredRecord]:
    return await journal.read(dict.fromkeys(range(4), -1), 1 << 30)


def states(db: psycopg.Connection[Any]) -> Sequence[Any]:
    return db.execute('SELECT "offset", requeued_by, requeued_as FROM dead_letters ORDER BY 1').fetchall()


async def test_a_frame_goes_back_as_it_came(
    db: psycopg.Connection[Any], letters: Letters, journal: MemoryJournal
) -> None:
    key = letter(db, 7)
    done = await letters.requeue([key], by="anna")
    (record,) = await records(journal)
    frames = decode_records([record])
    assert record.partition == partition_of_vin(VIN, 4)
    assert frames.frame(0) == frame_of(VIN, 7)
    assert frames.received_us.tolist() == [int(NOW.timestamp()) * 1_000_000 + 123456]
    assert (frames.door.tolist(), frames.codec.tolist(), frames.reason.tolist()) == ([Door.REQUEUE], [1], [0])
    assert frames.sources[frames.source[0] - 1] == {"peer": "10.0.0.7:5", "vin": VIN, "client": "c1"}
    place = (record.partition, record.offset, 0)
    assert (done.frames, done.skipped) == ({key: place}, {})
    assert states(db) == [(7, "anna", "-".join(map(str, place)))]


async def test_twice_is_once_unless_asked(
    db: psycopg.Connection[Any], letters: Letters, journal: MemoryJournal
) -> None:
    key = letter(db, 7)
    await letters.requeue([key], by="a")
    second = await letters.requeue([key], by="b")
    assert second.frames == {}
    assert "it was requeued at" in second.skipped[key]
    assert len(await records(journal)) == 1
    assert len((await letters.requeue([key], by="b", again=True)).frames) == 1


async def test_two_at_once_append_once(
    db: psycopg.Connection[Any], dsn: str, letters: Letters, journal: MemoryJournal
) -> None:
    keys = [letter(db, offset) for offset in range(20)]
    other = Letters(dsn, journal, settings_of())
    done = await asyncio.gather(letters.requeue(keys, by="a"), other.requeue(keys, by="b"))
    await other.close()
    assert sum(len(one.frames) for one in done) == 20
    assert sum(decode_records([record]).n for record in await records(journal)) == 20


async def test_an_edited_frame_keeps_both(
    db: psycopg.Connection[Any], letters: Letters, journal: MemoryJournal
) -> None:
    key, other = letter(db, 7, vin="LTEST00000000000X"), letter(db, 8)
    edited = frame_of(VIN, 9)
    with pytest.raises(UsageError, match="one dead letter, 2 were named"):
        await letters.requeue([key, other], by="a", frame=edited)
    await letters.requeue([key], by="a", frame=edited)
    (record,) = await records(journal)
    assert decode_records([record]).frame(0) == edited
    assert record.partition == partition_of_vin(VIN, 4), "the partition is the edited frame's"
    row = db.execute('SELECT frame, requeued_frame FROM dead_letters WHERE "offset" = 7').fetchone()
    assert row == (frame_of("LTEST00000000000X", 7), edited)


async def test_nothing_is_marked_when_the_journal_is_away(
    db: psycopg.Connection[Any], letters: Letters, journal: MemoryJournal
) -> None:
    key = letter(db, 7)
    journal.away = True
    with pytest.raises(JournalUnavailable):
        await letters.requeue([key], by="a")
    assert states(db) == [(7, None, None)]
    journal.away = False
    assert len((await letters.requeue([key], by="a")).frames) == 1


async def test_a_lost_mark_is_a_resend(
    db: psycopg.Connection[Any], letters: Letters, journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = letter(db, 7)
    append = journal.append

    async def durable_and_then_the_line_is_cut(given: Any) -> list[int]:
        await append(given)
        raise JournalUnavailable("no answer")

    monkeypatch.setattr(journal, "append", durable_and_then_the_line_is_cut)
    with pytest.raises(JournalUnavailable):
        await letters.requeue([key], by="a")
    assert states(db) == [(7, None, None)]
    monkeypatch.undo()
    await letters.requeue([key], by="a")
    first, second = await records(journal)
    assert first.body == second.body, "the pipeline sees the same report twice"


async def test_what_cannot_go_back_says_why(
    db: psycopg.Connection[Any], dsn: str, letters: Letters, journal: MemoryJournal
) -> None:
    damaged, missing = letter(db, 1, codec=0, frame=b"NJ.."), (0, 99, 2)
    stranger = letter(db, 2, reason="unknown_vin")
    done = await letters.requeue([damaged, missing], by="a")
    assert "damaged journal record" in done.skipped[damaged]
    assert "no such dead letter" in done.skipped[missing]

    strict = Letters(dsn, journal, settings_of(gateway={"registry": "allowlist"}))
    assert "nevstream vehicles add" in (await strict.requeue([stranger], by="a")).skipped[stranger]
    db.execute("INSERT INTO vehicles (vin, registered) VALUES (%s, true)", [VIN])
    assert len((await strict.requeue([stranger], by="a")).frames) == 1
    await strict.close()


async def test_a_filter_takes_the_open_ones_oldest_first(
    db: psycopg.Connection[Any], letters: Letters, journal: MemoryJournal
) -> None:
    keys = [letter(db, offset, received=NOW - timedelta(minutes=offset)) for offset in range(5)]
    other = letter(db, 10, vin="LTEST000000000002")
    forged = letter(db, 11, reason="foreign_vin")
    await letters.requeue([keys[4]], by="a")
    done = await letters.requeue_all(LetterFilter(vin=VIN), by="a", limit=2)
    assert set(done.frames) == {keys[3], keys[2]}
    done = await letters.requeue_all(LetterFilter(since=NOW - timedelta(seconds=90)), by="a", limit=100)
    assert set(done.frames) == {keys[1], keys[0], other}, "not what was refused because of who sent it"
    done = await letters.requeue_all(LetterFilter(reason=CODE["foreign_vin"]), by="a", limit=100)
    assert set(done.frames) == {forged}
    assert (await letters.requeue_all(LetterFilter(), by="a", limit=100)).frames == {}


async def test_many_go_in_several_appends(
    db: psycopg.Connection[Any], letters: Letters, journal: MemoryJournal
) -> None:
    db.execute(
        'INSERT INTO dead_letters (partition, "offset", position, received_at, reason, detail, door, codec, vin, frame)'
        " SELECT n %% 4, n, 0, %s, 11, 0, 1, 1, NULL, '##' FROM generate_series(1, 1200) n",
        [NOW],
    )
    done = await letters.requeue_all(LetterFilter(), by="a", limit=10_000)
    assert len(done.frames) == len(set(done.frames.values())) == 1200
    appended = await records(journal)
    assert sum(decode_records([record]).n for record in appended) == 1200
    assert {record.partition for record in appended} == {0, 1, 2, 3}


async def test_pruning_by_age_and_number_is_counted(db: psycopg.Connection[Any], letters: Letters) -> None:
    for offset in range(10):
        letter(db, offset, reason="bad_bcc" if offset % 2 else "garbage", received=NOW - timedelta(days=offset))
    db.execute('UPDATE dead_letters SET replayed_at = now() WHERE "offset" = 9')
    done = await letters.prune(7, 5, now=NOW)
    assert (done.age, done.size, done.kept) == (2, 3, 5)
    assert [row[0] for row in states(db)] == [0, 1, 2, 3, 4], "the newest stay"
    counted = db.execute("SELECT reason, letters, replayed FROM dead_letters_pruned ORDER BY 1").fetchall()
    assert counted == [(CODE["bad_bcc"], 3, 1), (CODE["garbage"], 2, 0)]
    assert await letters.prune(7, 5, now=NOW) == type(done)(0, 0, 5)


async def test_pruning_says_so(db: psycopg.Connection[Any], letters: Letters, caplog: pytest.LogCaptureFixture) -> None:
    letter(db, 1, received=NOW - timedelta(days=100))
    await letters.prune(90, 100, now=NOW)
    assert "dropped 1 dead letters older than 90 days" in caplog.text
