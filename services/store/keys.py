"""The table of keys: read by pipelines, written by an operator (``nevstream keys``) and by key exchanges.

Secrets leave this module in :class:`schemas.keyring.Key` only, which does not print them.  A key that cannot be
opened is left out and said; frames that need it are dead letters (``encrypted``) until it can be.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import psycopg

from schemas.keyring import ExchangedKey, Key, Keyring, Purpose, Scope
from services.database import AWAY, Connection, Line
from services.errors import StoreUnavailable, UsageError
from services.settings import Encryption
from services.store.sealing import CannotOpen, Sealer

log = logging.getLogger(__name__)

_COLUMNS: Final = "owner, scope, purpose, algorithm, secret, sealed_with, valid_from, valid_to"
_ALL: Final = f"SELECT {_COLUMNS} FROM vehicle_keys ORDER BY key_id"  # noqa: S608 - a constant
_VERSION: Final = "SELECT version FROM key_changes"
_CHANGE: Final = "UPDATE key_changes SET version = version + 1"
_INSERT: Final = """
    INSERT INTO vehicle_keys (owner, scope, purpose, algorithm, secret, sealed_with, fingerprint, valid_from, valid_to,
                              source, from_frame)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING key_id
"""
_LIST: Final = """
    SELECT key_id, owner, scope, purpose, algorithm, fingerprint, sealed_with, valid_from, valid_to, source, from_frame,
           added_at
    FROM vehicle_keys WHERE %(owner)s::text IS NULL OR owner = %(owner)s ORDER BY owner, key_id LIMIT %(limit)s
"""
_REMOVE: Final = "DELETE FROM vehicle_keys WHERE key_id = ANY(%s) RETURNING key_id"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A line of the table without its secret."""

    key_id: int
    owner: str
    scope: Scope
    purpose: Purpose
    algorithm: int
    fingerprint: str
    sealed_with: str | None
    valid_from: datetime | None
    valid_to: datetime | None
    source: str
    from_frame: str | None
    added_at: datetime


class PostgresKeys:
    """The ``KeyStore`` of ``schemas.keyring`` on PostgreSQL: one connection, opened when first asked."""

    def __init__(self, dsn: str, settings: Encryption) -> None:
        self._line = Line(dsn, "nevstream keys", StoreUnavailable, 60.0, default_transaction_read_only="on")
        self._sealer = Sealer.of(settings)
        self._version = -1

    async def changed(self) -> bool:
        async def run(connection: Connection) -> int:
            return int(_one(await (await connection.execute(_VERSION)).fetchone()))

        return await self._line.call(run) != self._version

    async def keyring(self) -> Keyring:
        async def run(connection: Connection) -> tuple[int, list[Any]]:
            # The version first: a change in between is then seen as one the next time.
            version = int(_one(await (await connection.execute(_VERSION)).fetchone()))
            return version, await (await connection.execute(_ALL)).fetchall()

        version, rows = await self._line.call(run)
        ring = _ring(rows, self._sealer)
        self._version = version
        return ring

    async def close(self) -> None:
        await self._line.close()


def load(dsn: str, settings: Encryption) -> Keyring:
    """All keys that can be opened, for programs without a loop.  Raises ``StoreUnavailable``, ``SettingsError``."""
    sealer = Sealer.of(settings)
    with _connected(dsn) as connection:
        return _ring(connection.execute(_ALL).fetchall(), sealer)


def add(dsn: str, settings: Encryption, key: Key) -> int | None:
    """Store ``key``; its id, None when it is there already.  Raises ``StoreUnavailable``, ``SettingsError``."""
    sealer = Sealer.of(settings)
    with _connected(dsn) as connection, connection.transaction():
        row = connection.execute(_INSERT, _values(key, sealer, "operator", None)).fetchone()
        if row is not None:
            connection.execute(_CHANGE)
    return None if row is None else int(row[0])


def stored(dsn: str, owner: str | None = None, limit: int = 10_000) -> list[StoredKey]:
    """The keys without their secrets, by owner.  Raises ``StoreUnavailable``."""
    with _connected(dsn) as connection:
        rows = connection.execute(_LIST, {"owner": owner, "limit": limit}).fetchall()
    return [
        StoredKey(row[0], row[1], Scope(row[2]), Purpose(row[3]), row[4], bytes(row[5]).hex(), *row[6:]) for row in rows
    ]


def remove(dsn: str, key_ids: Sequence[int]) -> int:
    """Delete these keys, all or none.  Raises ``UsageError`` naming those that are not there, ``StoreUnavailable``."""
    with _connected(dsn) as connection, connection.transaction():
        gone = {row[0] for row in connection.execute(_REMOVE, [list(key_ids)]).fetchall()}
        if missing := sorted(set(key_ids) - gone):
            raise UsageError(f"there is no key {', '.join(map(str, missing))}; nothing was removed")
        connection.execute(_CHANGE)
    return len(gone)


def store_exchanged(connection: psycopg.Connection[Any], keys: Iterable[ExchangedKey], sealer: Sealer) -> None:
    """Keys that vehicles exchanged, in the caller's transaction; one that is there already stays."""
    with connection.cursor() as cursor:
        cursor.executemany(
            _INSERT.replace(" RETURNING key_id", ""),
            [_values(one.key, sealer, "exchange", f"{one.partition}-{one.offset}-{one.position}") for one in keys],
        )


def _values(key: Key, sealer: Sealer, source: str, from_frame: str | None) -> list[Any]:
    return [
        key.owner, str(key.scope), str(key.purpose), key.algorithm, sealer.seal(key), sealer.name,
        sealer.fingerprint(key), key.valid_from, key.valid_to, source, from_frame,
    ]  # fmt: skip


def _ring(rows: Iterable[tuple[Any, ...]], sealer: Sealer) -> Keyring:
    ring = Keyring()
    closed: dict[str, int] = {}
    for owner, scope, purpose, algorithm, secret, sealed_with, valid_from, valid_to in rows:
        key = Key(owner, Scope(scope), Purpose(purpose), algorithm, b"", valid_from, valid_to)
        try:
            ring.add(replace(key, secret=sealer.open(key, bytes(secret), sealed_with)))
        except CannotOpen as error:
            closed[str(error)] = closed.get(str(error), 0) + 1
    for why, n in closed.items():
        log.error("%d keys of vehicles are left out: each is closed, %s", n, why)
    return ring


def _one(row: Any) -> Any:
    assert row is not None, "a statement that always answers did not"
    return row[0]


@contextmanager
def _connected(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
            yield connection
    except AWAY as error:
        raise StoreUnavailable(f"the database is away: {str(error).strip()}") from error
