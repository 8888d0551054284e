"""How fast rows of decoded batches reach PostgreSQL, and what the database alone could take.

Batches are decoded before the clock starts.  Then, in turn and on the same rows: the kernel that writes PostgreSQL's
binary format by itself (``encode``); encoding and COPY of each batch in a transaction of its own by the sink
(``rows``); the sink's whole transaction, with vehicle states, ledger, changes and journal positions (``commit``);
and one bare COPY of the very same bytes from memory into an identical table, in one transaction: the ceiling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, Final

import psycopg
from psycopg import sql

from benchmarks.journey import _settle, _twin_table
from benchmarks.passes import percentiles_ms, rate, seconds_of
from benchmarks.rows import PARTITIONS, database, groups
from benchmarks.runner import Progress
from schemas.batch import CopyStream, RowBatch
from schemas.seams import StoredRecord
from services.pipeline.batching import Decoded, Prepared, Streams, build, decode
from services.pipeline.rows import HEADER, TELEMETRY, TRAILER, StreamBuffer
from services.pipeline.vehicles import VehicleTable
from services.settings import Settings
from services.store.postgres import PostgresSink

VEHICLES: Final = 500
GOAL_RATIO: Final = 0.8
_BLOCK: Final = 1 << 20


def bare(stream: CopyStream) -> bytes:
    """The rows of a stream without signature and trailer."""
    return bytes(stream.data)[len(HEADER) : -len(TRAILER)]


class Batches:
    """Decoded batches of one load, and what the pipeline makes of them."""

    def __init__(self) -> None:
        self.decoded: list[Decoded] = []
        self.prepared: list[Prepared] = []
        self.table = VehicleTable()
        self._buffer = StreamBuffer("telemetry", TELEMETRY, sparse=True)

    async def prepare(self, sink: PostgresSink, reports: int, batch_rows: int, seed: int) -> None:
        """Every batch ready to commit, as the pipeline hands it over; registers the vehicles."""
        pipeline = Settings().pipeline
        after = dict.fromkeys(range(PARTITIONS), -1)
        for offset, group in enumerate(groups(VEHICLES, reports, batch_rows, seed)):
            records = [StoredRecord(partition, offset, body) for partition, body in group.records()]
            moved = {record.partition: (after[record.partition], offset) for record in records}
            after.update(dict.fromkeys(moved, offset))
            decoded = decode(records, self.table, pipeline.clock_future_max_s, pipeline.clock_past_max_days)
            ids = await sink.register(decoded.new_vins)
            self.prepared.append(build(decoded, ids, self.table, moved, Streams()))
            self.decoded.append(decoded)

    @property
    def rows(self) -> int:
        return sum(len(one.lines) for one in self.decoded)

    def encode(self, at: int) -> CopyStream:
        """The stream of batch ``at``, valid until the next call."""
        one = self.decoded[at]
        stream = self._buffer.write(one.frames, one.batch, one.lines, self.table.vehicle_id[one.rows])
        assert stream is not None
        return stream

    def encode_all(self) -> None:
        for at in range(len(self.decoded)):
            self.encode(at)


def copy_only(stream: CopyStream, days: Sequence[int]) -> RowBatch:
    """A transaction that holds telemetry and nothing else."""
    return RowBatch(stream, None, None, days, (), (), {}, {})


def ceiling(connection: psycopg.Connection[Any], dsn: str, columns: Sequence[str], stream: bytes) -> float:
    """Seconds of one COPY of ``stream`` into an empty table like ``telemetry``."""
    _twin_table(connection, "bench_copy")
    _settle(connection)
    statement = sql.SQL("COPY bench_copy ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with psycopg.connect(dsn) as other:
        begun = time.perf_counter()
        with other.cursor().copy(statement) as copy:
            for at in range(0, len(stream), _BLOCK):
                copy.write(stream[at : at + _BLOCK])
        other.commit()
        seconds = time.perf_counter() - begun
    connection.execute("DROP TABLE bench_copy")
    return seconds


async def _timed(work: Sequence[Callable[[], Awaitable[Any]]]) -> tuple[float, list[float]]:
    """Seconds of all, and of each."""
    each = []
    begun = time.perf_counter()
    for one in work:
        at = time.perf_counter()
        await one()
        each.append(time.perf_counter() - at)
    return time.perf_counter() - begun, each


async def _measure(dsn: str, reports: int, batch_rows: int, repeats: int, progress: Progress) -> dict[str, Any]:
    sink = PostgresSink(dsn, Settings())
    await sink.open()
    batches = Batches()
    await batches.prepare(sink, reports, batch_rows, 7)
    prepared = batches.prepared
    assert all(one.rows.late is None for one in prepared), "the benchmark's own rows take the fast path"
    days = sorted({day for one in prepared for day in one.rows.days})
    columns = batches.encode(0).columns
    for at in range(len(batches.decoded)):
        assert batches.encode(at).columns == columns, "batches of one load have the same columns"
    whole = HEADER + b"".join(bare(batches.encode(at)) for at in range(len(batches.decoded))) + TRAILER
    encode_s = seconds_of(batches.encode_all, max(repeats, 5), 2)

    async def copy_one(at: int) -> None:
        await sink.commit(copy_only(batches.encode(at), days))

    async def commit_one(at: int) -> None:
        one = prepared[at].rows
        await sink.commit(replace(one, telemetry=batches.encode(at)))

    found: dict[str, list[float]] = {"rows": [], "commit": [], "bare": []}
    transactions: dict[str, list[float]] = {}
    with psycopg.connect(dsn, autocommit=True) as connection:

        def empty() -> None:
            for table in ("telemetry", "vehicle_state", "ledger", "journal_positions", "statistics_changes"):
                connection.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table)))
            _settle(connection)

        async def by_sink(name: str, one: Callable[[int], Awaitable[None]]) -> float:
            seconds, each = await _timed([partial(one, at) for at in range(len(prepared))])
            stored = connection.execute("SELECT count(*) FROM telemetry").fetchone()
            assert stored == (batches.rows,), f"{stored} rows stored of {batches.rows}"
            transactions[name] = [*transactions.get(name, ()), *each]
            return seconds

        async def by_copy() -> float:
            return ceiling(connection, dsn, columns, whole)

        ways: dict[str, Callable[[], Awaitable[float]]] = {
            "rows": partial(by_sink, "rows", copy_one), "commit": partial(by_sink, "commit", commit_one),
            "bare": by_copy,
        }  # fmt: skip
        for way in ways.values():  # the warm-up
            empty()
            await way()
        transactions.clear()
        for repeat in range(repeats):
            first = repeat % len(ways)  # each goes first, second and last in its turn: none profits from its place
            for name in [*ways][first:] + [*ways][:first]:
                empty()
                found[name].append(await ways[name]())
            told = ", ".join(f"{name} {batches.rows / values[-1]:,.0f}" for name, values in found.items())
            progress(f"{repeat + 1}/{repeats}, rows/s: {told}")
    await sink.close()
    return _figures(batches.rows, len(prepared), len(columns), len(whole), encode_s, found, transactions["commit"])


def _figures(
    rows: int, batches: int, columns: int, size: int, encode_s: list[float], found: dict[str, list[float]],
    transactions: list[float],
) -> dict[str, Any]:  # fmt: skip
    # pairs of one repeat were taken one after the other: their ratio suffers least from other work
    ratios = [bare_s / rows_s for rows_s, bare_s in zip(found["rows"], found["bare"], strict=True)]
    commits = [bare_s / commit_s for commit_s, bare_s in zip(found["commit"], found["bare"], strict=True)]
    return {
        **rate(rows, found["rows"], "rows_per_s"),
        **rate(rows, found["bare"], "copy_rows_per_s"),
        "copy_ratio": round(median(ratios), 3),
        **rate(rows, found["commit"], "commit_rows_per_s"),
        "commit_ratio": round(median(commits), 3),
        **rate(rows, encode_s, "encode_rows_per_s"),
        "encode_share": round(median(encode_s) / median(found["rows"]), 3),
        **percentiles_ms(transactions, "commit_"),
        "rows": rows,
        "columns": columns,
        "row_bytes": round(size / rows, 1),
        "goals": {"copy_ratio": f">= {GOAL_RATIO}"},
        "runs": {name: [round(rows / seconds, 1) for seconds in values] for name, values in found.items()},
        "batches": batches,
    }


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{rows_per_s, copy_rows_per_s, copy_ratio, commit_rows_per_s, commit_ratio, encode_rows_per_s, ...}."""
    reports, batch_rows, repeats = (40, 10_000, 1) if quick else (400, 20_000, 6)
    with database() as dsn:
        figures = asyncio.run(_measure(dsn, reports, batch_rows, repeats, progress))
    return figures | {
        "notes": [],
        "settings": {
            "vehicles": VEHICLES, "reports": reports, "batch_rows": batch_rows, "repeats": repeats,
            "synchronous_commit": "off (the sink's own), on for the bare COPY: one commit",
        },
    }  # fmt: skip
