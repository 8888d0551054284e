"""How fast frames become durable in the journal and come out again: a record per partition, and a record per frame.

The same groups of frames for all ways, made beforehand.  ``batch`` is what the gateway does: one record per partition
of a group, compressed, all of them in one append, which returns when they are on disk; then the pipeline's reader takes
everything out again and unpacks it.  ``per_frame`` is the same journal with each frame for a record, all of a group
in one append; ``insert`` the statement that one would write first, an INSERT and a commit for each frame.
``memory`` is the journal in memory: what the harness itself takes.  ``kafka`` is Apache Kafka, one node, where there
are Java and Maven: acks=all, idempotent, a topic of one copy that is flushed at each append.

Another journal is measured by one more line in ``JOURNALS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg

from benchmarks.brokers import JARS, MAIN_JAR, Broker, fetch_apache, make_apache, no_apache
from benchmarks.passes import percentiles_ms, rate
from benchmarks.rows import PARTITIONS, Group, database, groups
from benchmarks.runner import Progress
from schemas.journal.record import decode_records
from schemas.seams import JournalReader, JournalWriter, StoredRecord
from services.journal.kafka import KafkaJournal
from services.journal.memory import MemoryJournal
from services.journal.postgres import PostgresJournal
from services.settings import Settings

VEHICLES: Final = 500
Records = list[tuple[int, bytes]]


class Journal(JournalWriter, JournalReader, Protocol):
    """Both ends of one."""


@contextlib.asynccontextmanager
async def _postgres(dsn: str) -> AsyncIterator[Journal]:
    journal = PostgresJournal(dsn, PARTITIONS)
    await journal.open()
    yield journal
    await journal.close()


@contextlib.asynccontextmanager
async def _memory(dsn: str) -> AsyncIterator[Journal]:  # noqa: ARG001 - it has none
    yield MemoryJournal(PARTITIONS)


def _kafka(make: Callable[[Path], Broker]) -> Callable[[str], AbstractAsyncContextManager[Journal]]:
    """A journal on a broker of its own: one copy of a topic, in the memory of this machine where there is plenty."""

    @contextlib.asynccontextmanager
    async def opened(dsn: str) -> AsyncIterator[Journal]:  # noqa: ARG001 - it has none
        with tempfile.TemporaryDirectory(prefix="nevstream-bench-") as folder:
            broker = make(Path(folder))
            await asyncio.to_thread(broker.start)
            journal = KafkaJournal(broker.settings("nevstream.bench"), PARTITIONS, "bench")
            try:
                await journal.open()
                yield journal
            finally:
                await journal.close()
                broker.close()

    return opened


# name → an open journal with nothing else in it, given a database's DSN
JOURNALS: Final[dict[str, Callable[[str], AbstractAsyncContextManager[Journal]]]] = {
    "memory": _memory,
    "postgres": _postgres,
}


def journals() -> tuple[dict[str, Callable[[str], AbstractAsyncContextManager[Journal]]], list[str]]:
    """Those that can be measured here, and why others cannot."""
    reason = no_apache()
    if reason is None and not (JARS / MAIN_JAR).exists():
        reason = fetch_apache()
    if reason is not None:
        return dict(JOURNALS), [f"kafka was not measured: {reason}"]
    return {**JOURNALS, "kafka": _kafka(make_apache)}, []


def per_frame(group: Group) -> Records:
    """Each frame by itself, as it is: nothing to make, nothing to unpack."""
    return [(partition, one) for partition, frames in group.by_partition.items() for one in frames]


# name → (a group's records, how many frames are in what was read)
WAYS: Final[dict[str, tuple[Callable[[Group], Records], Callable[[list[StoredRecord]], int]]]] = {
    "batch": (Group.records, lambda records: decode_records(records).n),
    "per_frame": (per_frame, len),
}


async def through(journal: Journal, way: str, load: Sequence[Group]) -> tuple[float, list[float], int]:
    """Append all groups, one after the other; (seconds, seconds of each, bytes).  Making the records counts."""
    each, size = [], 0
    begun = time.perf_counter()
    for group in load:
        at = time.perf_counter()
        records = WAYS[way][0](group)
        await journal.append(records)
        each.append(time.perf_counter() - at)
        size += sum(len(body) for _, body in records)
    return time.perf_counter() - begun, each, size


async def back(journal: Journal, way: str, after: dict[int, int], frames: int) -> float:
    """Seconds to read and unpack everything beyond ``after``, in the pipeline's portions."""
    after, found = dict(after), 0
    portion = Settings().pipeline.batch_bytes_max
    begun = time.perf_counter()
    while records := await journal.read(after, portion):
        found += WAYS[way][1](records)
        for record in records:
            after[record.partition] = max(after[record.partition], record.offset)
    seconds = time.perf_counter() - begun
    assert found == frames, f"{frames} frames were appended, {found} read"
    return seconds


def insert(connection: psycopg.Connection[Any], load: Sequence[Group], frames: int) -> tuple[float, int]:
    """An INSERT and a commit per frame, for ``frames`` of them; (seconds, how many)."""
    connection.execute("CREATE TABLE IF NOT EXISTS bench_frames (id bigserial PRIMARY KEY, vin text, frame bytea)")
    some = [one for group in load for of in group.by_partition.values() for one in of][:frames]
    begun = time.perf_counter()
    for one in some:
        connection.execute("INSERT INTO bench_frames (vin, frame) VALUES (%s, %s)", (one[4:21].decode(), one))
    return time.perf_counter() - begun, len(some)


async def _measure(
    name: str,
    opened: Callable[[str], AbstractAsyncContextManager[Journal]],
    way: str,
    dsn: str,
    load: Sequence[Group],
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    frames = sum(group.frames for group in load)
    written, read, each, size = [], [], [], 0
    async with opened(dsn) as journal:
        for repeat in range(-1, repeats):  # the first is the warm-up
            after = {**dict.fromkeys(range(PARTITIONS), -1), **await journal.ends()}
            seconds, appends, size = await through(journal, way, load)
            taken = await back(journal, way, after, frames)
            if repeat >= 0:
                written.append(seconds)
                read.append(taken)
                each += appends
    found = {
        "journal": name, "way": way, "frames": frames, "groups": len(load),
        **rate(frames, written, "append_frames_per_s"), **rate(frames, read, "read_frames_per_s"),
        **percentiles_ms(each, "append_"), "stored_bytes_per_frame": round(size / frames, 1),
    }  # fmt: skip
    progress(
        f"{name}, {way}: {found['append_frames_per_s']:,.0f} frames/s durable, {found['read_frames_per_s']:,.0f} read, "
        f"an append p50 {found['append_p50_ms']} ms, p99 {found['append_p99_ms']} ms"
    )
    return found


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{append_frames_per_s, read_frames_per_s (PostgreSQL, a record per partition), baseline_..., ratio, cases[]}."""
    reports, per_group, repeats, few = (24, 4_000, 1, 200) if quick else (240, 4_000, 5, 2_000)
    load = groups(VEHICLES, reports, per_group, 11)
    cases = []
    found, notes = journals()
    with database() as dsn:
        for name, opened in found.items():
            for way in WAYS:
                one = asyncio.run(_measure(name, opened, way, dsn, load, repeats, progress))
                cases.append(one)
        with psycopg.connect(dsn, autocommit=True) as connection:
            insert(connection, load, few // 10)
            runs = [insert(connection, load, few) for _ in range(repeats)]
    inserted = rate(runs[0][1], [seconds for seconds, _ in runs], "append_frames_per_s")
    progress(f"postgres, an INSERT and a commit per frame: {inserted['append_frames_per_s']:,.0f} frames/s durable")
    cases.append({"journal": "postgres", "way": "insert", "frames": few, **inserted})
    by = {(one["journal"], one["way"]): one for one in cases}
    ours, theirs = by["postgres", "batch"], by["postgres", "per_frame"]
    return {
        "append_frames_per_s": ours["append_frames_per_s"],
        "read_frames_per_s": ours["read_frames_per_s"],
        "append_p50_ms": ours["append_p50_ms"],
        "append_p99_ms": ours["append_p99_ms"],
        "baseline_append_frames_per_s": theirs["append_frames_per_s"],
        "ratio": round(ours["append_frames_per_s"] / theirs["append_frames_per_s"], 2),
        "read_ratio": round(ours["read_frames_per_s"] / theirs["read_frames_per_s"], 2),
        "insert_ratio": round(ours["append_frames_per_s"] / inserted["append_frames_per_s"], 1),
        **{
            f"{name}_ratio": round(
                by[name, "batch"]["append_frames_per_s"] / by[name, "per_frame"]["append_frames_per_s"], 2
            )
            for name in found
            if name not in JOURNALS
        },
        "cases": cases,
        "notes": notes,
        "settings": {
            "vehicles": VEHICLES, "reports": reports, "frames_per_group": per_group, "partitions": PARTITIONS,
            "repeats": repeats, "frame_bytes": round(load[0].frame_bytes / load[0].frames),
        },
    }  # fmt: skip
