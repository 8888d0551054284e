"""Events of connections that are too old, dropped; they explain the present, they are no archive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from services.database import Connection, Line
from services.errors import StoreUnavailable

# A bounded piece at a time, so that no transaction holds many rows for long.
_AT_ONCE: Final = 20_000
_PRUNE: Final = """
    DELETE FROM link_events WHERE (origin, number) IN (
        SELECT origin, number FROM link_events WHERE occurred_at < %s ORDER BY occurred_at LIMIT %s
        FOR UPDATE SKIP LOCKED
    )
"""


class LinkEventsKept:
    """Keeps ``link_events`` within its age.  One connection, opened when first needed."""

    def __init__(self, dsn: str) -> None:
        self._line = Line(dsn, "nevstream link events", StoreUnavailable, 60.0)

    async def prune(self, age_max_days: int, now: datetime | None = None) -> int:
        """Drop what is older; returns how many.  Raises ``StoreUnavailable``."""
        before = (now or datetime.now(UTC)) - timedelta(days=age_max_days)

        async def run(connection: Connection) -> int:
            return (await connection.execute(_PRUNE, [before, _AT_ONCE])).rowcount

        dropped = 0
        while True:
            gone = await self._line.call(run)
            dropped += gone
            if gone < _AT_ONCE:
                return dropped

    async def close(self) -> None:
        await self._line.close()
