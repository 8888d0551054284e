"""Who asks the API and what they may: tokens, roles, tenants, and the record of what was changed.

A token is 256 random bits, so what is kept of it is its plain SHA-256: slow hashes (argon2, as for passwords) protect
secrets that somebody could guess, and nobody guesses 256 bits.  It makes a request cost a microsecond and not 50 ms.
A token with fleets is a tenant's: for it there are no vehicles but those of these fleets.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from schemas.seams import Table

PREFIX: Final = "nst_"
_TOKEN: Final = re.compile(r"nst_[A-Za-z0-9_-]{43}", re.ASCII)
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
TOKENS_MAX: Final = 10_000  # that are neither revoked nor expired
FLEETS_MAX: Final = 1_000  # of one token
NO_FLEET: Final = "unknown"  # how statistics call vehicles without a fleet: nobody's, so no token is for them


class Role(StrEnum):
    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        return _RANK[self] >= _RANK[needed]


_RANK: Final = {Role.READ: 0, Role.OPERATE: 1, Role.ADMIN: 2}


def new_token() -> str:
    """A token nobody has; it is shown once, and kept as :func:`digest_of` it only."""
    return PREFIX + secrets.token_urlsafe(32)


def well_formed(token: str) -> bool:
    return _TOKEN.fullmatch(token) is not None


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True)
class Token:
    """A line of the table.  ``fleets`` None: every vehicle."""

    token_id: int
    name: str
    role: Role
    fleets: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    digest: bytes = b""

    def state(self, now: datetime) -> str:
        if self.revoked_at is not None and self.revoked_at <= now:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, once that is known."""

    token_id: int
    name: str
    role: Role
    fleets: tuple[str, ...] | None
    expires_at: datetime | None


class TokenDesk(Protocol):
    """Every method raises ``StoreUnavailable``."""

    async def tokens(self) -> list[Token]:
        """All that are neither revoked nor expired, with their digests."""
        ...

    async def listed(self) -> list[Token]:
        """All there ever were, by id, without their digests."""
        ...

    async def add(
        self, name: str, role: Role, fleets: Sequence[str] | None, expires_at: datetime | None, *, by: str
    ) -> tuple[Token, str]:
        """A new token and its secret.  Raises ``UsageError`` when the name is taken or cannot be one."""
        ...

    async def revoke(self, name: str) -> list[Token]:
        """End every valid token of this name (or with this id); those that were ended."""
        ...

    async def rotate(self, name: str, *, overlap_s: float, expires_at: datetime | None, by: str) -> tuple[Token, str]:
        """A new token of the same name, role and fleets; the older ones end after ``overlap_s``.

        Raises ``UsageError`` when there is no valid token of this name.
        """
        ...

    async def used(self, at: dict[int, datetime]) -> None:
        """Remember when tokens were last used."""
        ...

    async def close(self) -> None: ...


# -- what was changed by whom ------------------------------------------------------------------------
LOCAL: Final = "local"  # who asks while the API does not: this machine
CHANGE_MAX: Final = 500  # characters of what changed
_SECRET: Final = re.compile(r"pass|secret|token|key|frame", re.IGNORECASE)  # frames are long, and may hold passwords


@dataclass(frozen=True, slots=True)
class Entry:
    """One change, tried or done."""

    who: str
    origin: str
    action: str
    target: str
    status: int
    change: str | None = None
    token_id: int | None = None

    @property
    def outcome(self) -> str:
        return "done" if self.status < 400 else "refused" if self.status < 500 else "failed"


class AuditDesk(Protocol):
    """Every method raises ``StoreUnavailable``."""

    async def record(self, entry: Entry) -> None: ...

    async def entries(
        self, *, who: str | None, since: datetime | None, until: datetime | None, before: int | None, limit: int
    ) -> Table:
        """The newest first, with ids below ``before``."""
        ...

    async def prune(self, age_max_days: int) -> int:
        """Drop older ones; returns how many."""
        ...

    async def close(self) -> None: ...


def without_secrets(value: Any) -> Any:
    """``value`` of a JSON document with everything blotted out that is named like a secret."""
    if isinstance(value, dict):
        return {str(name): "…" if _SECRET.search(str(name)) else without_secrets(item) for name, item in value.items()}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value
