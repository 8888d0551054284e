"""Who may connect: the registry of vehicles and their password hashes.

The gateway asks through the ``VehicleDirectory`` seam; an operator changes it with :func:`add_vehicles` and
:func:`set_password`.  Passwords are kept as argon2id hashes only, and never logged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import psycopg
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from schemas.batch import VIN_BYTES
from schemas.seams import Registered
from services.database import AWAY, Connection, Line
from services.errors import StoreUnavailable, UsageError

# argon2-cffi's defaults (RFC 9106, low memory): about 30 ms, which is what makes guessing dear. A gateway that
# many vehicles reconnect to at once keeps the outcome of a verification for a while.
_HASHER: Final = PasswordHasher()
# For the memory twin only: the cheapest argon2 there is, so that a test of hundreds of vehicles is quick.
_CHEAP: Final = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)

# Statistics are grouped by what is known of a vehicle: they hear of every change.
CAN_TOUCH: Final = "SELECT to_regprocedure('statistics_touch_days(bigint[])') IS NOT NULL"
TOUCH: Final = "SELECT statistics_touch_days(%s::bigint[])"

# What the registry holds, in a word: 0.2 s for a million vehicles, from the index alone.
_VERSION: Final = """
    SELECT count(*) || '/' || coalesce(bit_xor(hashtextextended(vin, 0)), 0) FROM vehicles WHERE registered
"""
# All of it in one value: a row each would be a Python object each, a million times, in the sockets' process.
_REGISTERED: Final = """
    SELECT coalesce(
        string_agg(convert_to(vin, 'UTF8') || substr(%b::bytea, 1, 17 - length(vin)), ''::bytea ORDER BY vin), ''::bytea
    )
    FROM vehicles WHERE registered
"""
_ALL_TIMEOUT_S: Final = 60.0

_VIN: Final = re.compile(r"[!-~]{1,17}")
_PASSWORD_BYTES_MAX: Final = 1024


def hash_password(password: str) -> str:
    """Argon2id hash of ``password``, with its parameters and salt.  Raises ``UsageError``."""
    if not password or len(password.encode()) > _PASSWORD_BYTES_MAX:
        raise UsageError(f"a password has 1 to {_PASSWORD_BYTES_MAX} bytes")
    return _HASHER.hash(password)


def verify_password(password_hash: str, password: str) -> bool:
    """Whether ``password`` is the one that was hashed; takes tens of milliseconds by design."""
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


class PostgresDirectory:
    """The ``VehicleDirectory`` of ``schemas.seams`` on PostgreSQL.

    A connection for the registry as a whole and one for single vehicles, which do not wait for it; opened when
    first asked.
    """

    def __init__(self, dsn: str) -> None:
        self._line = Line(dsn, "nevstream directory", StoreUnavailable, default_transaction_read_only="on")
        self._all = Line(
            dsn, "nevstream registry", StoreUnavailable, _ALL_TIMEOUT_S, default_transaction_read_only="on"
        )

    async def registered(self, version: str = "") -> Registered | None:
        """VINs in the registry, None when it still is ``version``.  Raises ``StoreUnavailable``."""

        async def run(connection: Connection) -> Registered | None:
            row = await (await connection.execute(_VERSION)).fetchone()
            assert row is not None
            (found,) = row
            if found == version:
                return None
            # read after its version: what changes in between is found at the next look
            row = await (await connection.execute(_REGISTERED, [bytes(VIN_BYTES)], binary=True)).fetchone()
            assert row is not None
            return Registered(np.frombuffer(row[0], f"S{VIN_BYTES}"), found)

        return await self._all.call(run)

    async def password_hash(self, vin: str) -> str | None:
        """Hash of the vehicle's password, None when it has none.  Raises ``StoreUnavailable``."""
        if not _VIN.fullmatch(vin):
            return None  # nobody's: what a peer claims need not even be text that PostgreSQL takes

        async def run(connection: Connection) -> str | None:
            cursor = await connection.execute("SELECT password_hash FROM vehicles WHERE vin = %s", [vin])
            row = await cursor.fetchone()
            return row[0] if row else None

        return await self._line.call(run)

    async def close(self) -> None:
        await self._line.close()
        await self._all.close()


def add_vehicles(dsn: str, vins: Iterable[str]) -> int:
    """Put ``vins`` in the registry; returns how many were not in it before.

    All or none.  Raises ``UsageError`` naming the first VIN that is none, ``StoreUnavailable``.
    """
    wanted = sorted({_checked(vin) for vin in vins})
    rows = _execute(
        dsn,
        "INSERT INTO vehicles AS v (vin, registered, registered_at)"
        " SELECT vin, true, now() FROM unnest(%s::text[]) AS vin"
        " ON CONFLICT (vin) DO UPDATE SET registered = true, retired_at = NULL,"
        " registered_at = coalesce(v.registered_at, now()) WHERE NOT v.registered RETURNING vehicle_id",
        wanted,
    )
    if rows and _execute(dsn, CAN_TOUCH)[0][0]:
        _execute(dsn, TOUCH, [number for (number,) in rows])
    return len(rows)


def set_password(dsn: str, vin: str, password: str) -> None:
    """Set the password that the vehicle connects with; an unknown vehicle is registered with it.

    Raises ``UsageError``, ``StoreUnavailable``.
    """
    _execute(
        dsn,
        "INSERT INTO vehicles (vin, registered, registered_at, password_hash) VALUES (%s, true, now(), %s)"
        " ON CONFLICT (vin) DO UPDATE SET password_hash = excluded.password_hash RETURNING 1",
        _checked(vin),
        hash_password(password),
    )


def _checked(vin: str) -> str:
    if not _VIN.fullmatch(vin):
        raise UsageError(f"{vin!r} is not a VIN: 1 to 17 printable ASCII characters without spaces")
    return vin


def _execute(dsn: str, statement: str, *arguments: Any) -> list[Any]:
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
            return connection.execute(statement, arguments).fetchall()
    except AWAY as error:
        raise StoreUnavailable(f"the database is away: {str(error).strip()}") from error


class MemoryDirectory:
    """The directory in memory, for tests: ``vins`` are registered, ``passwords`` VIN → password in clear."""

    def __init__(self, vins: Iterable[str] = (), passwords: Mapping[str, str] | None = None) -> None:
        self.away = False
        self.vins = set(vins)
        self.hashes = {vin: _CHEAP.hash(password) for vin, password in (passwords or {}).items()}

    async def registered(self, version: str = "") -> Registered | None:
        self._check()
        vins = sorted(vin.encode("ascii") for vin in self.vins)
        found = b" ".join(vins).decode()
        return None if found == version else Registered(np.array(vins, f"S{VIN_BYTES}"), found)

    async def password_hash(self, vin: str) -> str | None:
        self._check()
        return self.hashes.get(vin)

    async def close(self) -> None:
        """Nothing to release."""

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("the directory in memory was told to be away")
