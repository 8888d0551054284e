"""Deliveries to webhooks in PostgreSQL: claimed with a lease, recorded with a fence, never forgotten silently.

A delivery that its sender does not record (it was killed, the database went away) is due again when its lease ends:
at least once.  Of one episode and hook, the next event waits until the one before is delivered or dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from schemas.alarms import Delivery, Sent
from services.database import Connection, Line
from services.errors import StoreUnavailable

_CLAIM: Final = """
    WITH due AS (
        SELECT d.event_id, d.hook FROM alarm_deliveries d
        WHERE d.hook = %(hook)s AND d.state = 'waiting' AND d.due_at <= now() AND NOT EXISTS (
            SELECT FROM alarm_deliveries o WHERE o.hook = d.hook AND o.episode_id = d.episode_id
            AND o.state = 'waiting' AND o.event_id < d.event_id)
        ORDER BY d.due_at, d.event_id LIMIT %(most)s FOR UPDATE SKIP LOCKED
    )
    UPDATE alarm_deliveries d SET attempts = d.attempts + 1, due_at = now() + make_interval(secs => %(lease_s)s)
    FROM due, alarm_events n
    WHERE d.event_id = due.event_id AND d.hook = due.hook AND n.event_id = d.event_id
    RETURNING d.event_id, d.hook, d.attempts, d.created_at, n.occurred_at, n.event, n.body
"""
_RECORD: Final = """
    UPDATE alarm_deliveries SET
        state = CASE WHEN %(error)s::text IS NULL THEN 'delivered' WHEN %(retry_s)s::float8 IS NULL THEN 'dead'
                     ELSE 'waiting' END,
        finished_at = CASE WHEN %(retry_s)s::float8 IS NULL THEN now() END,
        due_at = CASE WHEN %(retry_s)s::float8 IS NULL THEN due_at
                      ELSE now() + make_interval(secs => %(retry_s)s::float8) END,
        status = %(status)s, error = %(error)s
    WHERE event_id = %(event_id)s AND hook = %(hook)s AND state = 'waiting' AND attempts = %(attempts)s
"""
_ORPHANS: Final = """
    UPDATE alarm_deliveries SET state = 'dead', finished_at = now(),
        error = coalesce(error || '; ', '') || 'nobody sent it in time: is the webhook still in the settings?'
    WHERE state = 'waiting' AND due_at < now() AND created_at < now() - make_interval(secs => %s)
"""
_ORPHAN_AFTER_S: Final = 3600.0  # beyond the age at which a sender itself gives up


class PostgresOutbox:
    """``Outbox`` of ``schemas.alarms``; one connection, opened when first needed."""

    def __init__(self, dsn: str) -> None:
        self._line = Line(dsn, "nevstream webhooks", StoreUnavailable)

    async def claim(self, hook: str, most: int, lease_s: float) -> list[Delivery]:
        async def run(connection: Connection) -> list[Delivery]:
            cursor = await connection.execute(_CLAIM, {"hook": hook, "most": most, "lease_s": lease_s})
            found = [Delivery(*row) for row in await cursor.fetchall()]
            return sorted(found, key=lambda delivery: delivery.event_id)

        return await self._line.call(run)

    async def record(self, sent: Sequence[Sent]) -> None:
        rows = [{name: getattr(each, name) for name in Sent.__slots__} for each in sent]

        async def run(connection: Connection) -> None:
            async with connection.transaction():
                for row in rows:
                    await connection.execute(_RECORD, row)

        await self._line.call(run)

    async def give_up(self, age_max_s: float) -> int:
        """End deliveries that no sender takes any more (their hook was removed); returns how many."""

        async def run(connection: Connection) -> int:
            return (await connection.execute(_ORPHANS, [age_max_s + _ORPHAN_AFTER_S])).rowcount

        return await self._line.call(run)

    async def close(self) -> None:
        await self._line.close()
