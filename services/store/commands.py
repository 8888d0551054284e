"""Commands to vehicles in PostgreSQL: queued by people, sent by the gateway that holds the vehicle.

It promises that a command is never in two hands: claims and outcomes are single statements that look at the
state they leave.  The frames themselves are the gateway's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from schemas.downlink import OPEN_MAX, Claimed, Outcome
from schemas.gbt32960.downlink import KIND_OF, KINDS
from schemas.seams import Table
from services.database import Connection, Line
from services.errors import StoreUnavailable, UsageError

_COLUMNS: Final = (
    "command_id, vin, command, edition, body, state, attempts, created_at, created_by, expires_at, sent_at, "
    "delivered_at, finished_at, door, ack, answer, frame, answer_frame, error"
)
_ENQUEUE: Final = """
    INSERT INTO commands (vin, command, edition, body, created_by, expires_at)
    SELECT %(vin)s, %(command)s, %(edition)s, %(body)s, %(by)s, now() + make_interval(secs => %(expires_s)s)
    WHERE (SELECT count(*) FROM commands WHERE vin = %(vin)s AND state IN ('queued', 'sent')) < %(most)s
    RETURNING command_id
"""
_PAGE: Final = f"""
    SELECT {_COLUMNS} FROM commands WHERE vin = %s AND command_id < %s ORDER BY command_id DESC LIMIT %s
"""  # noqa: S608 - names of ours
_QUEUED: Final = """
    SELECT command_id, vin FROM commands
    WHERE state = 'queued' AND command_id > %s AND expires_at > now() ORDER BY command_id LIMIT %s
"""
# The oldest of each vehicle; a second one waits until the first has ended.
_CLAIM: Final = """
    WITH due AS (
        SELECT DISTINCT ON (c.vin) c.command_id FROM commands c
        WHERE c.command_id = ANY (%(ids)s) AND c.state = 'queued' AND c.expires_at > now()
          AND NOT EXISTS (SELECT FROM commands o WHERE o.vin = c.vin AND o.state = 'sent')
        ORDER BY c.vin, c.command_id
    )
    UPDATE commands c SET state = 'sent', attempts = attempts + 1, sent_at = now(), gateway = %(origin)s, error = NULL
    FROM due WHERE c.command_id = due.command_id AND c.state = 'queued'
    RETURNING c.command_id, c.vin, c.command, c.body,
        coalesce(c.edition, (SELECT s.edition FROM vehicles v JOIN vehicle_state s USING (vehicle_id)
                             WHERE v.vin = c.vin)), c.attempts
"""
_RECORD: Final = """
    UPDATE commands SET state = %(state)s, attempts = %(attempts)s, door = coalesce(%(door)s, door),
        frame = coalesce(%(frame)s, frame), ack = %(ack)s, answer = %(answer)s, answer_frame = %(answer_frame)s,
        error = %(error)s,
        sent_at = CASE WHEN %(resent)s THEN now() ELSE sent_at END,
        delivered_at = CASE WHEN %(delivered)s THEN coalesce(delivered_at, now()) ELSE delivered_at END,
        finished_at = CASE WHEN %(state)s IN ('answered', 'failed') THEN now() END
    WHERE command_id = %(command_id)s AND gateway = %(origin)s AND state = 'sent'
"""
_EXPIRE: Final = """
    UPDATE commands SET state = 'expired', finished_at = now(), error = coalesce(error, 'the vehicle did not connect')
    WHERE state = 'queued' AND expires_at <= now()
"""
_RESCUE: Final = """
    UPDATE commands SET state = CASE WHEN attempts < %(most)s THEN 'queued' ELSE 'failed' END,
        finished_at = CASE WHEN attempts < %(most)s THEN NULL ELSE now() END,
        error = 'the gateway that had sent it is gone'
    WHERE state = 'sent' AND sent_at < now() - make_interval(secs => %(stale_s)s)
"""
_PRUNE: Final = """
    DELETE FROM commands
    WHERE state NOT IN ('queued', 'sent') AND created_at < now() - make_interval(days => %s)
"""


class PostgresCommands:
    """``CommandQueue`` and ``CommandDesk`` of ``schemas.downlink``; one connection, opened when first needed."""

    def __init__(self, dsn: str) -> None:
        self._line = Line(dsn, "nevstream commands", StoreUnavailable)

    # -- for those who ask -------------------------------------------------------------------------
    async def enqueue(
        self, vin: str, kind: str, body: Mapping[str, Any], *, by: str, expires_s: float, edition: int | None = None
    ) -> int:
        given = {
            "vin": vin, "command": int(KINDS[kind]), "edition": edition, "body": Jsonb(dict(body)), "by": by,
            "expires_s": expires_s, "most": OPEN_MAX,
        }  # fmt: skip

        async def run(connection: Connection) -> int | None:
            row = await (await connection.execute(_ENQUEUE, given)).fetchone()
            return row[0] if row else None

        made = await self._line.call(run)
        if made is None:
            raise UsageError(f"{OPEN_MAX} commands of {vin} are open already: wait until they are sent or expire")
        return made

    async def commands(self, vin: str, *, before: int | None, limit: int) -> Table:
        async def run(connection: Connection) -> Table:
            cursor = await connection.execute(_PAGE, [vin, 2**63 - 1 if before is None else before, limit])
            return Table(tuple(column.name for column in cursor.description or ()), await cursor.fetchall())

        return await self._line.call(run)

    async def prune(self, age_max_days: int) -> int:
        """Drop finished commands that are older; returns how many."""

        async def run(connection: Connection) -> int:
            return (await connection.execute(_PRUNE, [age_max_days])).rowcount

        return await self._line.call(run)

    # -- for the gateway ---------------------------------------------------------------------------
    async def queued(self, after: int, limit: int) -> list[tuple[int, str]]:
        async def run(connection: Connection) -> list[tuple[int, str]]:
            return await (await connection.execute(_QUEUED, [after, limit])).fetchall()

        return await self._line.call(run)

    async def claim(self, ids: Sequence[int], origin: int) -> list[Claimed]:
        async def run(connection: Connection) -> list[Claimed]:
            try:
                cursor = await connection.execute(_CLAIM, {"ids": list(ids), "origin": origin})
            except psycopg.errors.UniqueViolation:
                return []  # another gateway has claimed one of the same vehicle at this moment: next turn
            return [
                Claimed(number, vin, KIND_OF[command], body, edition, attempts)
                for number, vin, command, body, edition, attempts in await cursor.fetchall()
            ]

        return await self._line.call(run)

    async def record(self, outcomes: Sequence[Outcome], origin: int) -> None:
        rows = [
            {
                **{name: getattr(outcome, name) for name in Outcome.__slots__},
                "answer": None if outcome.answer is None else Jsonb(_storable(outcome.answer)),
                "origin": origin,
            }
            for outcome in outcomes
        ]

        async def run(connection: Connection) -> None:
            async with connection.transaction():
                for row in rows:
                    await connection.execute(_RECORD, row)

        await self._line.call(run)

    async def tidy(self, stale_s: float, attempts_max: int) -> None:
        async def run(connection: Connection) -> None:
            await connection.execute(_EXPIRE)
            await connection.execute(_RESCUE, {"stale_s": stale_s, "most": attempts_max})

        await self._line.call(run)

    async def close(self) -> None:
        await self._line.close()


def _storable(value: Any) -> Any:
    """What a terminal answered, as a jsonb can keep it: no NUL in texts."""
    if isinstance(value, str):
        return value.replace("\0", "\u2400")
    if isinstance(value, Mapping):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


class MemoryCommands:
    """The twin in memory, for tests of the gateway.  ``away = True`` makes every call raise; ``rows`` by id."""

    def __init__(self) -> None:
        self.away = False
        self.rows: dict[int, dict[str, Any]] = {}
        self.editions: dict[str, int] = {}  # of a vehicle's newest report

    async def enqueue(
        self, vin: str, kind: str, body: Mapping[str, Any], *, by: str, expires_s: float, edition: int | None = None
    ) -> int:
        self._check()
        if sum(row["vin"] == vin and row["state"] in ("queued", "sent") for row in self.rows.values()) >= OPEN_MAX:
            raise UsageError(f"{OPEN_MAX} commands of {vin} are open already: wait until they are sent or expire")
        number = len(self.rows) + 1
        self.rows[number] = {
            "command_id": number, "vin": vin, "command": int(KINDS[kind]), "edition": edition, "body": dict(body),
            "state": "queued" if expires_s > 0 else "expired", "attempts": 0, "created_by": by,
            "ack": None, "answer": None, "error": None, "delivered": False, "gateway": None,
        }  # fmt: skip
        return number

    async def commands(self, vin: str, *, before: int | None, limit: int) -> Table:
        self._check()
        wanted = [
            row for row in self.rows.values() if row["vin"] == vin and (before is None or row["command_id"] < before)
        ]
        found = sorted(wanted, key=lambda row: -int(row["command_id"]))[:limit]
        return Table(tuple(found[0]) if found else (), [tuple(row.values()) for row in found])

    async def queued(self, after: int, limit: int) -> list[tuple[int, str]]:
        self._check()
        found = [(n, row["vin"]) for n, row in sorted(self.rows.items()) if row["state"] == "queued" and n > after]
        return found[:limit]

    async def claim(self, ids: Sequence[int], origin: int) -> list[Claimed]:
        self._check()
        claimed = []
        busy = {row["vin"] for row in self.rows.values() if row["state"] == "sent"}
        for number in sorted(ids):
            row = self.rows[number]
            if row["state"] == "queued" and row["vin"] not in busy:
                busy.add(row["vin"])
                row.update(state="sent", attempts=row["attempts"] + 1, gateway=origin, error=None)
                edition = row["edition"] or self.editions.get(row["vin"])
                claimed.append(
                    Claimed(number, row["vin"], KIND_OF[row["command"]], row["body"], edition, row["attempts"])
                )
        return claimed

    async def record(self, outcomes: Sequence[Outcome], origin: int) -> None:
        self._check()
        for outcome in outcomes:
            row = self.rows[outcome.command_id]
            if row["gateway"] == origin and row["state"] == "sent":
                row.update(
                    state=outcome.state, attempts=outcome.attempts, ack=outcome.ack, answer=outcome.answer,
                    error=outcome.error, delivered=row["delivered"] or outcome.delivered,
                )  # fmt: skip

    async def tidy(self, stale_s: float, attempts_max: int) -> None:  # noqa: ARG002 - there is no clock here
        self._check()

    async def close(self) -> None:
        """Nothing to release."""

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("the commands in memory were told to be away")
