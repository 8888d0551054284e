"""The writer: one transaction per batch holds rows, vehicle state, events, ledger and journal positions.

It promises exactly once: the batch and the positions up to which it was read are stored together or not
at all, and only when nobody else has moved them.  It must never write part of a batch, and never try a
batch again whose outcome is unknown: the caller starts again from what the store says.

``synchronous_commit`` is off here, on purpose.  A crash may lose the newest transactions, but as a whole:
rows, counts and positions of a suffix.  The frames are in the journal, which does wait for the disk, so the
pipeline reads them again from the position that survived.  What is gained: a batch does not wait for a
flush, and flushes happen in larger pieces (PostgreSQL manual, "Asynchronous Commit").
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, TypeVar

import numpy as np
import psycopg
from psycopg import sql
from psycopg.errors import (
    CheckViolation,
    InsufficientPrivilege,
    InvalidSchemaName,
    LockNotAvailable,
    ProgramLimitExceeded,
    UndefinedColumn,
    UndefinedFunction,
    UndefinedTable,
    UniqueViolation,
)

from schemas.batch import VIN_BYTES, Committed, CopyStream, Login, RowBatch
from schemas.seams import KnownVehicles
from services.database import AWAY, KEEPALIVE, era, met_dead, session_options
from services.errors import PositionsMoved, SchemaMissing, StoreUnavailable
from services.settings import Settings
from services.store import statements
from services.store.changes import Entry, logouts_of, write_changes
from services.store.columns import COPIED, LEDGER
from services.store.keys import store_exchanged
from services.store.sealing import Sealer

log = logging.getLogger(__name__)
T = TypeVar("T")
Connection = psycopg.Connection[Any]

_EPOCH: Final = date(1970, 1, 1)
# A whole batch in one COPY and a merge of as many rows fit in this; past it the batch is given up and read again.
_STATEMENT_TIMEOUT_S: Final = 120
_NOT_OURS: Final = (UndefinedTable, UndefinedColumn, UndefinedFunction, InvalidSchemaName, InsufficientPrivilege)
# How long an owner of partitions may take to end its transaction once another has them.
_CLAIM_PATIENCE_MS: Final = 5000
# COPY data are handed to libpq in pieces of this size: it keeps a copy of what the socket does not take.
_PIECE_BYTES: Final = 1 << 20
_KNOWN_AT_ONCE: Final = 100_000  # 3.3 MB


class PostgresSink:
    """The ``Sink`` of ``schemas.seams``.  One connection, used by one thread; calls queue behind each other."""

    def __init__(self, dsn: str, settings: Settings) -> None:
        self._dsn = dsn
        self._connect_timeout_s = max(1, round(settings.database.connect_timeout_s))
        self._days_ahead = settings.database.partitions_ahead_days
        self._partitions = settings.journal.partitions
        self._time_zone = settings.time_zone
        self._sealer = Sealer.of(settings.encryption)
        self._connection: Connection | None = None
        self._era = 0
        self._days: set[int] = set()  # partitions known to be there
        self._epochs: dict[int, int] = {}  # of the journal's partitions that were claimed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")

    async def open(self) -> None:
        """Connect and make the day partitions from yesterday on.  Raises ``StoreUnavailable``."""
        await self._run(lambda connection: self._make_days(connection, ()))

    async def claim(self, partitions: Sequence[int]) -> None:
        """From now on only this sink commits to ``partitions``, and to no others; see ``schemas.seams.Sink``."""

        owner = f"{socket.gethostname()} pid {os.getpid()}"

        def once(connection: Connection) -> None:
            with connection.transaction():
                connection.execute("SET LOCAL synchronous_commit = on")  # a crash must not bring an old owner back
                connection.execute(f"SET LOCAL lock_timeout = {_CLAIM_PATIENCE_MS}")
                found = connection.execute(statements.CLAIM, [owner, sorted(partitions)]).fetchall()
            self._epochs = dict(found)

        def run(connection: Connection) -> None:
            try:
                once(connection)
            except LockNotAvailable:
                # Its process is paused, or its line is cut: it would hold the partitions for as long as that lasts.
                ended = connection.execute(statements.END_OWNERS, [list(partitions)]).fetchall()
                log.warning(
                    "the owner of partitions before does not end its transaction; ended its session (%s)",
                    ", ".join(str(pid) for pid, _ in ended) or "it has none",
                )
                once(connection)

        await self._run(run)

    async def positions(self, partitions: Sequence[int]) -> dict[int, int]:
        def run(connection: Connection) -> dict[int, int]:
            found = connection.execute(statements.POSITIONS, [list(partitions)]).fetchall()
            return {**dict.fromkeys(partitions, -1), **dict(found)}

        return await self._run(run)

    async def known_vehicles(self) -> KnownVehicles:
        """Every vehicle: one COPY whose rows are all of one size, read as one array (1 M rows: seconds)."""
        return await self._run(known_vehicles)

    async def register(self, vins: Sequence[str]) -> list[int]:
        def run(connection: Connection) -> list[int]:
            with connection.transaction():
                connection.execute(statements.REGISTER, [list(vins)])
                found = connection.execute(statements.VEHICLE_IDS, [list(vins)]).fetchall()
            return [vehicle_id for (vehicle_id,) in found]

        return await self._run(run) if vins else []

    async def commit(self, batch: RowBatch, *, keep: bool = True) -> Committed:
        """Write ``batch`` in one transaction; see ``schemas.seams.Sink``.

        Should a row of ``telemetry`` be stored already (the caller's table of vehicles was behind), the
        whole batch goes through the merge instead, and the row counts as what it is.
        """
        return await self._run(lambda connection: self._commit(connection, batch, keep=keep))

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown()

    # -- in the thread ---------------------------------------------------------------------------

    async def _run(self, work: Callable[[Connection], T]) -> T:
        def run() -> T:
            try:
                return work(self._connected())
            except ProgramLimitExceeded:
                self._drop()  # a row that is too large: of class OperationalError, and no matter of waiting
                raise
            except AWAY as error:
                met_dead(self._dsn, self._era, self._connection, error)
                self._drop()
                raise StoreUnavailable(f"the database is away (nevstream store): {str(error).strip()}") from error
            except _NOT_OURS as error:
                # not the frames' fault either: nothing is put aside because a table is missing
                self._drop()
                raise SchemaMissing(
                    f"the database is not as nevstream made it: {str(error).strip()}; run `nevstream migrate`, "
                    "or give this user its rights back"
                ) from error
            except PositionsMoved:
                raise
            except BaseException:
                self._drop()
                raise

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _connected(self) -> Connection:
        if self._connection is not None:
            if not self._connection.closed and self._era == era(self._dsn):
                return self._connection
            self._drop()
        self._era = era(self._dsn)
        options = session_options(
            self._dsn,
            synchronous_commit="off",
            statement_timeout=str(_STATEMENT_TIMEOUT_S * 1000),
            jit="off",
            # Every statement here looks up a batch's rows by key. A plan made while a table was empty would
            # read or join all of it, and be kept when it is large: so index look-ups, whatever the statistics.
            enable_seqscan="off",
            enable_hashjoin="off",
            enable_mergejoin="off",
        )
        connection = psycopg.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=self._connect_timeout_s,
            application_name="nevstream store",
            options=options,
            prepare_threshold=1,
            **KEEPALIVE,
        )
        self._connection = connection
        self._days.clear()
        connection.execute(statements.TEMPORARY, prepare=False)
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _make_days(self, connection: Connection, days: Iterable[int]) -> None:
        today = (datetime.now(UTC).date() - _EPOCH).days
        missing = {*days, *range(today - 1, today + self._days_ahead + 1)} - self._days
        if missing:
            wanted = [_EPOCH + timedelta(days=day) for day in sorted(missing)]
            (made,) = _row(connection.execute(statements.MAKE_DAYS, [wanted]))
            if made:
                log.info("made %d day partitions of telemetry, %s to %s", made, wanted[0], wanted[-1])
            self._days |= missing

    def _commit(self, connection: Connection, batch: RowBatch, *, keep: bool) -> Committed:
        for partition, counts in batch.counts.items():
            if unknown := set(counts) - set(LEDGER):
                raise ValueError(
                    f"the ledger of partition {partition} has no column {sorted(unknown)}; it has {LEDGER}"
                )
        self._make_days(connection, batch.days)
        try:
            return self._write(connection, batch, merge_all=False, keep=keep)
        except CheckViolation as error:
            if "no partition of relation" not in str(error):
                raise
            self._days.clear()  # somebody dropped a day that we had seen
            self._make_days(connection, batch.days)
            return self._write(connection, batch, merge_all=False, keep=keep)
        except UniqueViolation as error:
            log.warning("a row that should be new is stored already, merging the whole batch: %s", str(error).strip())
            return self._write(connection, batch, merge_all=True, keep=keep)

    def _write(self, connection: Connection, batch: RowBatch, *, merge_all: bool, keep: bool) -> Committed:
        clock = _Clock()
        with connection.transaction(force_rollback=not keep):
            _own(connection, batch.positions, self._epochs)
            _fence(connection, batch.positions)
            clock.lap("fence")
            late = [batch.late]
            if merge_all:
                late.append(batch.telemetry)
            elif batch.telemetry is not None:
                _copy(connection, batch.telemetry)
            clock.lap("copy")
            not_new, merged = self._merge(connection, [stream for stream in late if stream is not None and stream.rows])
            clock.lap("late")
            _apply_states(connection, batch.states, not_new)
            clock.lap("states")
            if batch.days:
                days = [_EPOCH + timedelta(days=day) for day in batch.days]
                connection.execute(statements.MARK_DAYS, [days, sorted(batch.positions)])
            _write_events(connection, batch)
            if batch.keys:
                store_exchanged(connection, batch.keys, self._sealer)
            _write_ledger(connection, batch.counts, not_new)
            _write_changes(connection, batch, merged, merge_all=merge_all)
            clock.lap("events")
        clock.lap("commit")
        given = sum(stream.rows for stream in (batch.telemetry, batch.late) if stream is not None)
        duplicates = sum(row.duplicates for row in not_new)
        conflicts = sum(row.conflicts for row in not_new)
        return Committed(given - duplicates - conflicts, duplicates, conflicts, clock.seconds)

    def _merge(self, connection: Connection, late: list[CopyStream]) -> tuple[list[_NotNew], list[Entry]]:
        """Late rows into telemetry; per vehicle, how many of them were not new, and where those lie that were."""
        if not late:
            return [], []
        for stream in late:
            _copy(connection, stream, "late_telemetry")
        found = connection.execute(statements.COUNT_LATE, [self._partitions, self._time_zone]).fetchall()
        columns = [name for name in COPIED["telemetry"] if any(name in stream.columns for stream in late)]
        written = connection.execute(statements.merge_late(columns)).fetchall()
        if not found:
            return [], written
        connection.execute(
            statements.ADD_RESENDS, _columns((vehicle_id, day, *counts) for vehicle_id, _, day, *counts in found)
        )
        sums: dict[tuple[int, int], _NotNew] = {}
        for vehicle_id, partition, _, duplicates, conflicts in found:
            row = sums.setdefault((vehicle_id, partition), _NotNew(vehicle_id, partition, 0, 0))
            row.duplicates += duplicates
            row.conflicts += conflicts
        return list(sums.values()), written


class _NotNew:
    """Reports of one vehicle in a batch that did not become rows."""

    __slots__ = ("conflicts", "duplicates", "partition", "vehicle_id")

    def __init__(self, vehicle_id: int, partition: int, duplicates: int, conflicts: int) -> None:
        self.vehicle_id, self.partition, self.duplicates, self.conflicts = vehicle_id, partition, duplicates, conflicts


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._at
        self._at = now


def _row(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    assert row is not None, "a statement that always answers did not"
    return row


def _own(connection: Connection, positions: Mapping[int, tuple[int, int]], epochs: Mapping[int, int]) -> None:
    """Refuse what another owner has claimed since; nobody can until this transaction ends."""
    if not epochs or not positions:
        return
    mine = sorted(positions)
    assert mine[0] in epochs, "what is committed was claimed"
    found = connection.execute(statements.OWNED, [mine, [epochs[partition] for partition in mine]]).fetchall()
    if lost := set(mine) - {partition for (partition,) in found}:
        raise PositionsMoved(f"another process has claimed partitions {sorted(lost)}: what this one read is not stored")


def _fence(connection: Connection, positions: Mapping[int, tuple[int, int]]) -> None:
    """Move the positions, in partition order; an owner that was overtaken finds them elsewhere."""
    if not positions:
        return
    moves = [(partition, previous, new) for partition, (previous, new) in sorted(positions.items())]
    (moved,) = _row(connection.execute(statements.MOVE_POSITIONS, list(map(list, zip(*moves, strict=True)))))
    if moved != len(moves):
        found = dict(connection.execute(statements.POSITIONS, [list(positions)]).fetchall())
        wrong = [
            f"partition {partition} is stored up to {found.get(partition, -1)}, this batch begins after {previous}"
            for partition, previous, _ in moves
            if found.get(partition, -1) != previous
        ]
        raise PositionsMoved(f"another pipeline writes here: {'; '.join(wrong) or 'it has just moved the positions'}")


def _copy(connection: Connection, stream: CopyStream, table: str | None = None) -> None:
    assert stream.table in COPIED, f"{stream.table} is not written by COPY"
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table or stream.table), sql.SQL(", ").join(map(sql.Identifier, stream.columns))
    )
    data = memoryview(stream.data)
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for at in range(0, len(data), _PIECE_BYTES):
                copy.write(data[at : at + _PIECE_BYTES])
        taken = cursor.rowcount
    assert taken == stream.rows, f"COPY {stream.table} took {taken} rows of {stream.rows}"


def _apply_states(connection: Connection, states: CopyStream | None, not_new: list[_NotNew]) -> None:
    if states is not None and states.rows:
        _copy(connection, states, "batch_state")
        connection.execute(statements.UPSERT_STATES)
    if not_new:
        ids = [row.vehicle_id for row in not_new]
        connection.execute(statements.TAKE_BACK_REPORTS, [ids, [row.duplicates + row.conflicts for row in not_new]])
        if contested := [row.vehicle_id for row in not_new if row.conflicts]:
            connection.execute(statements.REFRESH_STATES, [contested])


def _write_events(connection: Connection, batch: RowBatch) -> None:
    if batch.logins:
        connection.execute(statements.INSERT_LOGINS, login_columns(batch.logins))
    if batch.dead_letters:
        connection.execute(
            statements.INSERT_DEAD_LETTERS,
            _columns(
                (
                    row.partition, row.offset, row.position, row.received, row.reason, row.detail, row.door, row.codec,
                    _text(row.vin), _text(row.peer), _text(row.client), row.frame, _text(row.error),
                )
                for row in batch.dead_letters
            ),
        )  # fmt: skip
    if batch.link_events:
        connection.execute(
            statements.INSERT_LINK_EVENTS,
            _columns(
                (
                    row.origin, row.number, row.occurred, row.event, row.cause or None, row.door,
                    *(_text(text or None) for text in (row.vin, row.peer, row.client, row.by_peer, row.detail)),
                    row.times,
                )
                for row in batch.link_events
            ),
        )  # fmt: skip


def login_columns(logins: Iterable[Login]) -> list[list[Any]]:
    """The arguments of ``statements.INSERT_LOGINS``."""
    return _columns(
        (
            row.partition, row.offset, row.position, row.received, row.time, row.command, row.edition, row.door,
            _text(row.vin), row.vehicle_id, row.serial, _text(row.iccid),
            statements.SEPARATOR.join(_text(code) or "" for code in row.pack_codes), _text(row.username),
        )
        for row in logins
    )  # fmt: skip


def _write_changes(connection: Connection, batch: RowBatch, merged: list[Entry], *, merge_all: bool) -> None:
    """Tell the statistics what this transaction has changed."""
    changes = batch.changes
    urgent = changes.late_urgent if changes is not None else None
    if changes is not None and merge_all:  # the merge has said of these rows, too, which of them are news
        urgent = np.concatenate([changes.late_urgent, changes.vehicle_id[changes.urgent != 0]])
    write_changes(connection, None if merge_all else changes, [*merged, *logouts_of(batch.logins)], urgent)


def _write_ledger(connection: Connection, counts: Mapping[int, Mapping[str, int]], not_new: list[_NotNew]) -> None:
    lines = {partition: {name: added.get(name, 0) for name in LEDGER} for partition, added in counts.items()}
    for row in not_new:
        line = lines.setdefault(row.partition, dict.fromkeys(LEDGER, 0))
        line["duplicates"] += row.duplicates
        line["conflicts"] += row.conflicts
        line["rows"] -= row.duplicates + row.conflicts
    if lines:
        connection.execute(
            statements.ADD_TO_LEDGER,
            _columns((partition, *(line[name] for name in LEDGER)) for partition, line in sorted(lines.items())),
        )


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _text(text: str | None) -> str | None:
    """What a peer claimed, as PostgreSQL can keep it: no NUL, no lone surrogates."""
    if text is None:
        return None
    return (
        text.replace("\0", "\u2400")
        .replace(statements.SEPARATOR, "\u241f")
        .encode("utf-8", "backslashreplace")
        .decode()
    )


def known_vehicles(connection: Connection) -> KnownVehicles:
    """Every vehicle with its newest report, some 100,000 ids at a time, all of one moment."""
    pieces = []
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SET LOCAL enable_seqscan = on")  # this one does read everything
        connection.execute("SET LOCAL enable_hashjoin = on")
        connection.execute("SET LOCAL enable_mergejoin = on")
        (last,) = _row(connection.execute(statements.VEHICLE_ID_MAX))
        for begin in range(0, last + 1, _KNOWN_AT_ONCE):
            bounds = [bytes(VIN_BYTES), begin, begin + _KNOWN_AT_ONCE]
            (piece,) = _row(connection.execute(statements.KNOWN_VEHICLES, bounds, binary=True))
            pieces.append(piece or b"")
    rows = np.frombuffer(b"".join(pieces), statements.KNOWN_ROW)
    vin = np.ascontiguousarray(rows["vin"])
    return KnownVehicles(vin, rows["vehicle_id"].astype(np.int64), rows["last_key"].astype(np.int64))
