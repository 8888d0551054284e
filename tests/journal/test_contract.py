"""One contract for every journal: what ``schemas.seams`` promises of writer and reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from services.errors import JournalUnavailable
from services.journal.kafka import KafkaJournal
from services.journal.memory import MemoryJournal
from services.journal.postgres import PostgresJournal

Journal = MemoryJournal | PostgresJournal | KafkaJournal
PARTITIONS = 4
FROM_START = dict.fromkeys(range(PARTITIONS), -1)


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.database), "tansu", "apache_kafka"])
async def journal(request: pytest.FixtureRequest) -> AsyncIterator[Journal]:
    if request.param == "memory":
        made: Journal = MemoryJournal(PARTITIONS)
    elif request.param in ("tansu", "apache_kafka"):
        topic = request.getfixturevalue("new_topic")()
        made = KafkaJournal(request.getfixturevalue(request.param).settings(topic), PARTITIONS)
    else:
        made = PostgresJournal(request.getfixturevalue("dsn"), PARTITIONS)
    await made.open()
    yield made
    await made.close()


async def test_empty(journal: Journal) -> None:
    assert await journal.read(FROM_START, 1000) == []
    assert await journal.read({}, 1000) == []
    assert await journal.ends() == {}
    assert await journal.append([]) == []


async def test_what_is_appended_is_read(journal: Journal) -> None:
    bodies = [b"", b"a", bytes(range(256)) * 400, b"\0" * 9000]
    offsets = await journal.append([(2, body) for body in bodies])
    found = await journal.read(FROM_START, 1 << 20)
    assert [(r.partition, r.offset, r.body) for r in found] == [(2, o, b) for o, b in zip(offsets, bodies, strict=True)]
    assert all(type(record.body) is bytes for record in found)


async def test_offsets_rise_within_a_partition(journal: Journal) -> None:
    offsets: dict[int, list[int]] = {}
    for _ in range(3):
        for partition, offset in zip(
            [1, 0, 1, 3], await journal.append([(p, b"x") for p in (1, 0, 1, 3)]), strict=True
        ):
            assert offset >= 0
            offsets.setdefault(partition, []).append(offset)
    for kept in offsets.values():
        assert kept == sorted(set(kept))
    assert await journal.ends() == {partition: kept[-1] for partition, kept in offsets.items()}


async def test_reading_goes_on_after_an_offset(journal: Journal) -> None:
    offsets = await journal.append([(0, b"a"), (1, b"b"), (0, b"c")])
    found = await journal.read({0: offsets[0], 1: offsets[1]}, 1000)
    assert [record.body for record in found] == [b"c"]
    assert await journal.read({0: offsets[2], 1: offsets[1]}, 1000) == []


async def test_only_the_partitions_asked_for(journal: Journal) -> None:
    await journal.append([(0, b"a"), (1, b"b"), (2, b"c")])
    assert {record.partition for record in await journal.read({0: -1, 2: -1}, 1000)} == {0, 2}


async def test_a_read_is_bounded_but_never_empty_handed(journal: Journal) -> None:
    await journal.append([(n % PARTITIONS, bytes(1000)) for n in range(40)])
    assert len(await journal.read(FROM_START, 10)) == 1
    some = await journal.read(FROM_START, 5000)
    assert 1 <= len(some) <= 6


async def test_reading_in_steps_reads_everything_once(journal: Journal) -> None:
    sent = [(n * 7 % PARTITIONS, f"record {n}".encode()) for n in range(100)]
    offsets = await journal.append(sent)
    after = dict(FROM_START)
    seen: list[tuple[int, int, bytes]] = []
    while records := await journal.read(after, 200):
        for record in records:
            assert record.offset > after[record.partition]
            after[record.partition] = record.offset
            seen.append((record.partition, record.offset, record.body))
    assert sorted(seen) == sorted((p, o, b) for (p, b), o in zip(sent, offsets, strict=True))


async def test_no_partition_starves(journal: Journal) -> None:
    """A reader far behind on one partition still sees what is old in the others."""
    await journal.append([(1, b"old")])
    await journal.append([(0, bytes(1000)) for _ in range(50)])
    assert b"old" in [record.body for record in await journal.read(FROM_START, 3000)]


async def test_a_partition_that_is_not_there(journal: Journal) -> None:
    with pytest.raises(ValueError, match=f"partition {PARTITIONS} is not one"):
        await journal.append([(0, b"a"), (PARTITIONS, b"b")])
    assert await journal.ends() == {}  # all or none


async def test_calls_at_once(journal: Journal) -> None:
    offsets = await asyncio.gather(*(journal.append([(n % PARTITIONS, b"%d" % n)]) for n in range(30)))
    assert len({(n % PARTITIONS, offset) for n, (offset,) in enumerate(offsets)}) == 30
    after, found = dict(FROM_START), set()
    while records := await journal.read(after, 1 << 20):
        after.update((record.partition, record.offset) for record in records)
        found |= {record.body for record in records}
    assert found == {b"%d" % n for n in range(30)}


async def test_offsets_at_a_time(journal: Journal) -> None:
    """A bound for each partition: nothing beyond it is older, nothing before it younger."""
    before = datetime.now(UTC) - timedelta(seconds=60)
    offsets = await journal.append([(1, b"a"), (2, b"b")])
    found = await journal.offsets_at(before)
    assert found[1] <= offsets[0]
    assert found[2] <= offsets[1]
    await journal.append([(1, b"c")])
    assert (await journal.offsets_at(before))[1] == found[1]
    later = await journal.offsets_at(datetime.now(UTC) + timedelta(seconds=60))
    assert not later.keys() & {1, 2}


async def test_memory_away_and_held_back() -> None:
    journal = MemoryJournal(1)
    journal.away = True
    with pytest.raises(JournalUnavailable):
        await journal.append([(0, b"a")])
    journal.away = False
    journal.gate.clear()
    append = asyncio.ensure_future(journal.append([(0, b"b")]))
    await asyncio.sleep(0)
    assert await journal.ends() == {}
    journal.gate.set()
    assert len(await append) == 1
