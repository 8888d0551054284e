"""Tokens of the API and the audit log in PostgreSQL.

A token's secret is seen here once, when it is made; the table has its digest.  The audit log is only added to, and
dropped by age.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from schemas.access import FLEETS_MAX, NAME, NO_FLEET, TOKENS_MAX, Entry, Role, Token, digest_of, new_token
from schemas.seams import Table
from services.database import Connection, Line
from services.errors import StoreUnavailable, UsageError

_COLUMNS: Final = "token_id, name, role, fleets, created_at, created_by, expires_at, last_used_at, revoked_at"
_VALID: Final = "(revoked_at IS NULL OR revoked_at > now()) AND (expires_at IS NULL OR expires_at > now())"
_TOKENS: Final = f"SELECT {_COLUMNS}, digest FROM api_tokens WHERE {_VALID} ORDER BY token_id LIMIT {TOKENS_MAX}"  # noqa: S608 - constants
_LISTED: Final = f"SELECT {_COLUMNS}, ''::bytea FROM api_tokens ORDER BY token_id LIMIT 100000"  # noqa: S608 - constants
_COUNT: Final = f"SELECT count(*), count(*) FILTER (WHERE name = %s) FROM api_tokens WHERE {_VALID}"  # noqa: S608 - constants
_ADD: Final = f"""
    INSERT INTO api_tokens (name, digest, role, fleets, expires_at, created_by) VALUES (%s, %s, %s, %s, %s, %s)
    RETURNING {_COLUMNS}, ''::bytea
"""  # noqa: S608 - constants
_REVOKE: Final = f"""
    UPDATE api_tokens SET revoked_at = now() WHERE {_VALID} AND (name = %(name)s OR token_id::text = %(name)s)
    RETURNING {_COLUMNS}, ''::bytea
"""  # noqa: S608 - constants
_OLDER: Final = f"""
    SELECT {_COLUMNS}, ''::bytea FROM api_tokens WHERE {_VALID} AND name = %s ORDER BY token_id DESC FOR UPDATE
"""  # noqa: S608 - constants
_END_LATER: Final = """
    UPDATE api_tokens SET revoked_at = least(revoked_at, now() + make_interval(secs => %s)) WHERE token_id = ANY (%s)
"""
_USED: Final = """
    UPDATE api_tokens t SET last_used_at = greatest(t.last_used_at, u.at)
    FROM unnest(%s::bigint[], %s::timestamptz[]) AS u (id, at) WHERE t.token_id = u.id
"""
_LOCK: Final = (7236328, 20)  # one change of the tokens at a time, so that no name is given twice


def _token(row: tuple[Any, ...]) -> Token:
    number, name, role, fleets, *times, digest = row
    created_at, created_by, expires_at, last_used_at, revoked_at = times
    return Token(
        number, name, Role(role), None if fleets is None else tuple(fleets), created_at, created_by, expires_at,
        last_used_at, revoked_at, bytes(digest),
    )  # fmt: skip


def checked(name: str, role: Role, fleets: Sequence[str] | None) -> None:
    """Raises ``UsageError`` for what cannot be a token."""
    if not NAME.fullmatch(name) or name.isdigit():
        raise UsageError(
            f"{name!r} cannot name a token: 1 to 64 letters, digits and . _ @ -, beginning with a letter or digit, "
            "and not digits only (those are ids)"
        )
    if fleets is None:
        return
    if role is Role.ADMIN:
        raise UsageError("an admin sees every vehicle: leave the fleets out, or use the role operate")
    if not 1 <= len(fleets) <= FLEETS_MAX or not all(0 < len(one) <= 100 and "\0" not in one for one in fleets):
        raise UsageError(f"fleets are 1 to {FLEETS_MAX} names of up to 100 characters, as the registry has them")
    if NO_FLEET in fleets:
        raise UsageError(f"{NO_FLEET!r} is how vehicles without a fleet are counted; no token can be for it alone")


class PostgresTokens:
    """``TokenDesk`` of ``schemas.access``; one connection, opened when first needed."""

    def __init__(self, dsn: str) -> None:
        self._line = Line(dsn, "nevstream tokens", StoreUnavailable)

    async def tokens(self) -> list[Token]:
        return await self._rows(_TOKENS)

    async def listed(self) -> list[Token]:
        return await self._rows(_LISTED)

    async def add(
        self, name: str, role: Role, fleets: Sequence[str] | None, expires_at: datetime | None, *, by: str
    ) -> tuple[Token, str]:
        checked(name, role, fleets)

        async def run(connection: Connection) -> tuple[Token, str]:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", _LOCK)
                count = await (await connection.execute(_COUNT, [name])).fetchone()
                assert count is not None
                if count[1]:
                    raise UsageError(f"there is a valid token named {name}: rotate or revoke it, or use another name")
                if count[0] >= TOKENS_MAX:
                    raise UsageError(f"there are {count[0]:,} valid tokens, which is the most: revoke some")
                return await _made(connection, name, role, fleets, expires_at, by)

        return await self._line.call(run)

    async def revoke(self, name: str) -> list[Token]:
        async def run(connection: Connection) -> list[Token]:
            return [_token(row) for row in await (await connection.execute(_REVOKE, {"name": name})).fetchall()]

        return await self._line.call(run)

    async def rotate(self, name: str, *, overlap_s: float, expires_at: datetime | None, by: str) -> tuple[Token, str]:
        async def run(connection: Connection) -> tuple[Token, str]:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", _LOCK)
                older = [_token(row) for row in await (await connection.execute(_OLDER, [name])).fetchall()]
                if not older:
                    raise UsageError(f"there is no valid token named {name}: see `nevstream tokens list`")
                await connection.execute(_END_LATER, [overlap_s, [one.token_id for one in older]])
                return await _made(connection, name, older[0].role, older[0].fleets, expires_at, by)

        return await self._line.call(run)

    async def used(self, at: dict[int, datetime]) -> None:
        async def run(connection: Connection) -> None:
            await connection.execute(_USED, [list(at), list(at.values())])

        await self._line.call(run)

    async def close(self) -> None:
        await self._line.close()

    async def _rows(self, query: str) -> list[Token]:
        async def run(connection: Connection) -> list[Token]:
            return [_token(row) for row in await (await connection.execute(query.encode())).fetchall()]

        return await self._line.call(run)


async def _made(
    connection: Connection, name: str, role: Role, fleets: Sequence[str] | None, expires_at: datetime | None, by: str
) -> tuple[Token, str]:
    secret = new_token()
    given = [name, digest_of(secret), role.value, None if fleets is None else list(fleets), expires_at, by]
    row = await (await connection.execute(_ADD, given)).fetchone()
    assert row is not None
    return _token(row), secret


# -- the audit log -------------------------------------------------------------------------------------
_RECORD: Final = """
    INSERT INTO audit (who, token_id, origin, action, target, change, status, outcome)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""
_ENTRIES: Final = """
    SELECT audit_id, at, who, token_id, origin, action, target, change, status, outcome FROM audit
    WHERE audit_id < %(before)s AND (%(who)s::text IS NULL OR who = %(who)s)
      AND (%(since)s::timestamptz IS NULL OR at >= %(since)s) AND (%(until)s::timestamptz IS NULL OR at < %(until)s)
    ORDER BY audit_id DESC LIMIT %(limit)s
"""
_PRUNE: Final = "DELETE FROM audit WHERE at < now() - make_interval(days => %s)"


class PostgresAudit:
    """``AuditDesk`` of ``schemas.access``."""

    def __init__(self, dsn: str) -> None:
        self._line = Line(dsn, "nevstream audit", StoreUnavailable)

    async def record(self, entry: Entry) -> None:
        texts = [_storable(text) for text in (entry.who, entry.origin, entry.action, entry.target)]
        change = None if entry.change is None else _storable(entry.change)
        given = [texts[0], entry.token_id, *texts[1:], change, entry.status, entry.outcome]

        async def run(connection: Connection) -> None:
            await connection.execute(_RECORD, given)

        await self._line.call(run)

    async def entries(
        self, *, who: str | None, since: datetime | None, until: datetime | None, before: int | None, limit: int
    ) -> Table:
        given = {
            "who": who, "since": since, "until": until, "before": 2**63 - 1 if before is None else before,
            "limit": limit,
        }  # fmt: skip

        async def run(connection: Connection) -> Table:
            cursor = await connection.execute(_ENTRIES, given)
            return Table(tuple(column.name for column in cursor.description or ()), await cursor.fetchall())

        return await self._line.call(run)

    async def prune(self, age_max_days: int) -> int:
        async def run(connection: Connection) -> int:
            return (await connection.execute(_PRUNE, [age_max_days])).rowcount

        return await self._line.call(run)

    async def close(self) -> None:
        await self._line.close()


def _storable(text: str) -> str:
    """What PostgreSQL can keep, a line long: no NUL, no lone surrogate."""
    return text.replace("\0", "\u2400").encode("utf-8", "replace").decode()
