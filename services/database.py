"""One connection to PostgreSQL that is replaced when it is lost: what journal and directory have in common.

Knows no SQL.  It must never try a statement twice: whether a lost one took effect is the caller's to know.

When the server was restarted, every connection of a process is dead, and each of them would be met in turn, with a
pause for each.  So the first that proves dead begins a new *era* of its database, and whoever holds one of an older
era replaces it before it is used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

from services.errors import Unavailable

T = TypeVar("T")
Connection = psycopg.AsyncConnection[Any]

# Lost connections, time-outs, a full disk (OperationalError); a server that has become a standby (InternalError).
AWAY: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)

# A peer whose machine is gone says nothing: the kernel asks it, and gives up after about half a minute.
KEEPALIVE: Final[dict[str, Any]] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

_CONNECT_TIMEOUT_S: Final = 5
# After a failed connection the next attempt waits 0.1 s, doubling up to 2 s; callers meanwhile hear at once
# that the database is away, and keep what they have.
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 2.0


# Losses of connections by DSN, in this process.
_eras: dict[str, int] = {}
# The server says goodbye in its own words, before the line is closed.
_GOODBYES: Final = (
    psycopg.errors.AdminShutdown, psycopg.errors.CrashShutdown, psycopg.errors.CannotConnectNow,
    psycopg.errors.DatabaseDropped, psycopg.errors.IdleSessionTimeout,
)  # fmt: skip


def era(dsn: str) -> int:
    """The era in which a connection to ``dsn`` that is opened now was opened."""
    return _eras.get(dsn, 0)


def met_dead(dsn: str, opened_in: int, connection: psycopg.BaseConnection[Any] | None, error: BaseException) -> None:
    """Using a connection of era ``opened_in`` has failed: if because it is dead, all of that era count as dead."""
    dead = connection is not None and (connection.closed or isinstance(error, _GOODBYES))
    if dead and isinstance(error, AWAY) and opened_in == era(dsn):
        _eras[dsn] = opened_in + 1


def session_options(dsn: str, **settings: str) -> str:
    """libpq's ``options``: those of ``dsn``, then server settings of this session."""
    given = conninfo_to_dict(dsn).get("options") or ""
    return " ".join([str(given), *(f"-c {name}={value}" for name, value in settings.items())]).strip()


class Line:
    """One statement at a time, each its own transaction (autocommit).

    ``unavailable`` is what ``call`` raises when the database is away or does not answer in ``timeout_s``.
    """

    def __init__(
        self, dsn: str, name: str, unavailable: type[Unavailable], timeout_s: float = 10.0, **settings: str
    ) -> None:
        self._dsn, self._name, self._unavailable, self._timeout_s = dsn, name, unavailable, timeout_s
        self._options = session_options(dsn, statement_timeout=str(round(timeout_s * 1000)), **settings)
        self._connection: Connection | None = None
        self._era = 0
        self._lock = asyncio.Lock()
        self._failures = 0
        self._not_before = 0.0
        self._why = ""

    async def call(self, run: Callable[[Connection], Awaitable[T]]) -> T:
        """``run`` with the connection; after a failure the next call has a new one."""
        async with self._lock:
            try:
                connection = await self._connected()
                # Longer than the server's own limit: this one is for a server that no longer answers.
                async with asyncio.timeout(self._timeout_s + 5.0):
                    return await run(connection)
            except (*AWAY, TimeoutError) as error:
                met_dead(self._dsn, self._era, self._connection, error)
                await self._drop()
                why = str(error).strip() or "no answer"
                raise self._unavailable(f"the database is away ({self._name}): {why}") from error
            except BaseException:
                # Cancelled or worse in the middle of a statement: the connection's state is unknown.
                await self._drop()
                raise

    async def close(self) -> None:
        async with self._lock:
            await self._drop()

    async def _connected(self) -> Connection:
        if self._connection is not None:
            if not self._connection.closed and self._era == era(self._dsn):
                return self._connection
            await self._drop()
        if time.monotonic() < self._not_before:
            raise psycopg.OperationalError(self._why)
        self._era = era(self._dsn)
        try:
            self._connection = await psycopg.AsyncConnection.connect(
                self._dsn,
                autocommit=True,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name=self._name,
                options=self._options,
                **KEEPALIVE,
            )
        except psycopg.OperationalError as error:
            self._not_before = time.monotonic() + min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2**self._failures)
            self._failures += 1
            self._why = str(error)
            raise
        self._failures = 0
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                await connection.close()
