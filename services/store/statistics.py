"""The store's side of the statistics: what has changed, telemetry read back, and days swapped in one transaction.

The ``StatisticsStore`` of ``schemas.seams``.  Its rows come from the kernels as numbers; this module knows the tables
(0014) and no formula.  It must never leave a day half old and half new, and never touch a row that stays as it is.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult

from schemas.statistics.work import FAR_S, Carry, Checkpoint, Claim, Standing, Swap, Swapped, Window
from services.database import AWAY, KEEPALIVE, era, met_dead, session_options
from services.errors import StoreUnavailable
from services.settings import Settings
from services.store import statistics_statements as sql
from services.store.changes import SHARES, write_changes
from services.store.statistics_swap import mark_for_rebuild, swap_days

log = logging.getLogger(__name__)
T = TypeVar("T")
Connection = psycopg.Connection[Any]

_LOCK: Final = 7236329  # advisory, with the share as its second number
_STATEMENT_TIMEOUT_S: Final = 300
_STALE_AT_ONCE: Final = 100_000


def _guarded(method: Callable[..., T]) -> Callable[..., T]:
    """A lost or unwilling server as ``StoreUnavailable``; the next call has a new connection, and holds no share."""

    @functools.wraps(method)
    def run(self: PostgresStatistics, *given: Any, **named: Any) -> T:
        try:
            return method(self, *given, **named)
        except (*AWAY, psycopg.errors.SerializationFailure) as error:
            met_dead(self._dsn, self._era, self._connection, error)
            self.close()
            raise StoreUnavailable(f"the database is away (nevstream statistics): {str(error).strip()}") from error
        except BaseException:
            self.close()
            raise

    return run


class PostgresStatistics:
    """One connection, used by one thread."""

    def __init__(self, dsn: str, settings: Settings) -> None:
        self._dsn = dsn
        self._era = 0
        self._connect_timeout_s = max(1, round(settings.database.connect_timeout_s))
        self._logout_past_s = settings.pipeline.clock_past_max_days * 86_400
        self._logout_future_s = settings.pipeline.clock_future_max_s
        self._connection: Connection | None = None
        self._held: set[int] = set()

    @_guarded
    def hold(self, shares: Sequence[int]) -> list[int]:
        if self._era != era(self._dsn):  # only here: a new connection in the midst of a cycle would hold no share
            self.close()
        connection = self._connected()
        for share in shares:
            if share not in self._held:
                row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [_LOCK, share]).fetchone()
                if row is not None and row[0]:
                    self._held.add(share)
        return sorted(self._held.intersection(shares))

    @_guarded
    def claim(self, shares: Sequence[int], *, urgent: bool, limit: int) -> Claim:
        rows = (
            self._connected()
            .execute(sql.CLAIM_URGENT if urgent else sql.CLAIM, [list(shares), limit], binary=True)
            .fetchall()
        )
        ids, from_s, to_s = (np.frombuffer(b"".join(row[i] for row in rows), "<i8").astype(np.int64) for i in (1, 2, 3))
        return Claim([row[0] for row in rows], ids, from_s, to_s, max((row[4] for row in rows), default=0.0))

    @_guarded
    def standings(self, vehicle_ids: Sequence[int]) -> list[Standing]:
        rows = self._connected().execute(sql.STANDINGS, [list(vehicle_ids)], binary=True).fetchall()
        return [Standing(row[0], row[1], Checkpoint(*row[2:]) if row[2] is not None else None) for row in rows]

    @_guarded
    def telemetry(self, windows: Sequence[Window]) -> bytearray:
        return _copied(self._connected(), sql.READ, _window_columns(windows))

    @_guarded
    def logouts(self, windows: Sequence[Window]) -> NDArray[np.int64]:
        rows = (
            self._connected()
            .execute(
                sql.LOGOUTS, [*_window_columns(windows)[:3], self._logout_past_s, self._logout_future_s], binary=True
            )
            .fetchall()
        )
        return np.array(rows, np.int64).reshape(-1, 3)

    @_guarded
    def carries_before(self, days: Sequence[tuple[int, int]], layout: int) -> dict[int, Carry]:
        rows = self._connected().execute(sql.CARRY_BEFORE, [*_columns(days, 2), layout], binary=True).fetchall()
        return {vehicle_id: Carry(day, state) for vehicle_id, day, state in rows}

    @_guarded
    def carries(self, days: Sequence[tuple[int, int, int]], layout: int) -> dict[int, list[Carry]]:
        found: dict[int, list[Carry]] = {}
        rows = self._connected().execute(sql.CARRIES, [layout, *_columns(days, 3)], binary=True).fetchall()
        for vehicle_id, day, state in rows:
            found.setdefault(vehicle_id, []).append(Carry(day, state))
        return found

    @_guarded
    def swap(self, swap: Swap) -> Swapped:
        connection = self._connected()
        with connection.transaction():
            return swap_days(connection, swap)

    @_guarded
    def mark_stale(self, layout: int) -> int:
        connection, n = self._connected(), 0
        last = 0
        while True:
            with connection.transaction():
                rows = connection.execute(sql.STALE, [last, layout, _STALE_AT_ONCE]).fetchall()
                mark_for_rebuild(connection, rows)
            n += len(rows)
            if len(rows) < _STALE_AT_ONCE:
                return n
            last = rows[-1][0]

    @_guarded
    def behind(self, shares: Sequence[int]) -> tuple[int, float]:
        row = self._connected().execute(sql.BEHIND, [list(shares)]).fetchone()
        assert row is not None
        return row[0], row[1]

    @_guarded
    def rebuild(self, vin: str | None, from_s: int) -> int:
        """Ask for everything from ``from_s`` on to be computed again, of one vehicle or of all; returns how many."""
        connection = self._connected()
        with connection.transaction():
            rows = connection.execute(sql.WITH_DATA, [vin, vin]).fetchall()
            write_changes(connection, None, [(vehicle_id, from_s, FAR_S) for (vehicle_id,) in rows])
        return len(rows)

    @_guarded
    def status(self) -> dict[str, Any]:
        """What waits, and how far the statistics are."""
        cursor = self._connected().execute(sql.STATUS)
        row = cursor.fetchone()
        assert row is not None
        assert cursor.description is not None
        return {column.name: value for column, value in zip(cursor.description, row, strict=True)}

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._held.clear()
        if connection is not None:
            connection.close()

    def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self._held.clear()
        self._era = era(self._dsn)
        options = session_options(
            self._dsn,
            synchronous_commit="off",  # a lost swap is a change that is still there, and is done again
            statement_timeout=str(_STATEMENT_TIMEOUT_S * 1000),
            TimeZone="UTC",
            jit="off",
            work_mem="64MB",
            # as for the sink: everything here looks up a chunk's vehicles by key
            enable_seqscan="off",
            enable_hashjoin="off",
            enable_mergejoin="off",
        )
        connection = psycopg.connect(
            self._dsn, autocommit=True, connect_timeout=self._connect_timeout_s,
            application_name="nevstream statistics", options=options, prepare_threshold=1, **KEEPALIVE,
        )  # fmt: skip
        self._connection = connection
        connection.execute(sql.TEMPORARY, prepare=False)
        return connection


def _copied(connection: Connection, statement: psycopg.sql.Composed, values: Sequence[Any]) -> bytearray:
    """Everything that a COPY TO STDOUT sends.

    libpq hands it out row by row; psycopg's own loop takes 15 microseconds for each, which was half of a rebuild.
    """
    text = psycopg.ClientCursor(connection).mogrify(statement, values)
    begun = connection.pgconn.exec_(text.encode())
    if begun.status != ExecStatus.COPY_OUT:
        raise _failure(connection, begun)
    data = bytearray()
    while True:
        size, piece = connection.pgconn.get_copy_data(0)
        if size <= 0:
            break
        data += piece
    while (result := connection.pgconn.get_result()) is not None:
        if result.status != ExecStatus.COMMAND_OK:
            raise _failure(connection, result)
    return data


def _failure(connection: Connection, result: PGresult) -> psycopg.Error:
    """What a result says; that of a server which has gone has no code, and would be any database error."""
    failure = psycopg.errors.error_from_result(result)
    if connection.pgconn.status == ConnStatus.BAD:
        return psycopg.OperationalError(str(failure))
    return failure


def _columns(rows: Sequence[tuple[Any, ...]], n: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(n)]


def _window_columns(windows: Sequence[Window]) -> list[list[int]]:
    return [
        [window.vehicle_id for window in windows], [window.after_s for window in windows],
        [window.until_s for window in windows], [window.rows_max for window in windows],
    ]  # fmt: skip


assert SHARES == 8, "the documentation of the tables says so"
