"""What is told of alarm episodes: the difference between them and what was told last, as events in one order.

Whoever writes episodes leaves their ids in ``alarm_touched`` (a trigger, without lock or look-up).  ``publish`` takes
them, compares, and writes events and the deliveries to webhooks in one transaction, one process at a time.  So an
event is told once, whatever is killed when, and whether a recompute rewrote the rows or not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import orjson
from psycopg import sql

from schemas.alarms import (
    ACKNOWLEDGE,
    ACKNOWLEDGED,
    CHANGED,
    CLOSED,
    ENDED,
    EPISODE_COLUMNS,
    RAISED,
    WITHDRAWN,
    Hook,
    described,
)
from services import metrics
from services.database import Connection, Line
from services.errors import StoreUnavailable
from services.store.alarms import EPISODE, JOINED

log = logging.getLogger(__name__)

_AT_ONCE: Final = 500  # touched lines of one transaction
_PRUNED_AT_ONCE: Final = 5_000
_TIMEOUT_S: Final = 30.0

_ALONE: Final = "SELECT pg_try_advisory_xact_lock(7236328, 18)"
_TAKE: Final = """
    WITH taken AS (
        DELETE FROM alarm_touched WHERE number IN (SELECT number FROM alarm_touched ORDER BY number LIMIT %s)
        RETURNING number, episode_id
    ) SELECT episode_id, count(*) FROM taken GROUP BY episode_id ORDER BY min(number)
"""
_NOW: Final = sql.SQL(
    """
    SELECT {episode} FROM alarm_episodes e {joined} WHERE e.episode_id = ANY (%s)
    """
).format(episode=EPISODE, joined=JOINED)
_TOLD: Final = """
    SELECT a.episode_id, a.vehicle_id, a.source, a.code, a.start_at, a.end_at, a.level, a.over, a.withdrawn_at,
           v.vin, v.model, v.fleet, v.region, v.plate, s.edition
    FROM alarm_announced a JOIN vehicles v USING (vehicle_id) LEFT JOIN vehicle_state s USING (vehicle_id)
    WHERE a.episode_id = ANY (%s)
"""
_ACTIONS: Final = """
    UPDATE alarm_actions SET told = true WHERE episode_id = ANY (%s) AND NOT told
    RETURNING action_id, episode_id, action, acted_at, acted_by, note
"""
_TELL: Final = """
    INSERT INTO alarm_events (occurred_at, event, episode_id, level, body)
    SELECT occurred_at, event, episode_id, level, body::json
    FROM unnest(%s::timestamptz[], %s::text[], %s::bigint[], %s::smallint[], %s::text[])
         WITH ORDINALITY AS a (occurred_at, event, episode_id, level, body, n) ORDER BY n
    RETURNING event_id
"""
_ANNOUNCE: Final = """
    INSERT INTO alarm_announced (episode_id, vehicle_id, source, code, start_at, end_at, level, over, withdrawn_at)
    SELECT episode_id, vehicle_id, source, code, start_at, end_at, level, settled_on IS NOT NULL, NULL
    FROM alarm_episodes WHERE episode_id = ANY (%s)
    ON CONFLICT (episode_id) DO UPDATE SET start_at = excluded.start_at, end_at = excluded.end_at,
        level = excluded.level, over = excluded.over, withdrawn_at = NULL
"""
_WITHDRAW: Final = "UPDATE alarm_announced SET withdrawn_at = %s WHERE episode_id = ANY (%s)"
_DELIVER: Final = """
    INSERT INTO alarm_deliveries (event_id, hook, episode_id, due_at, created_at)
    SELECT event_id, hook, episode_id, now(), now()
    FROM unnest(%s::bigint[], %s::text[], %s::bigint[]) AS a (event_id, hook, episode_id)
"""
_PRUNE: Final = """
    DELETE FROM alarm_events WHERE event_id IN (
        SELECT n.event_id FROM alarm_events n WHERE n.occurred_at < %s AND NOT EXISTS (
            SELECT FROM alarm_deliveries d WHERE d.event_id = n.event_id AND d.state = 'waiting')
        ORDER BY n.occurred_at LIMIT %s)
"""
_PRUNE_WITHDRAWN: Final = """
    DELETE FROM alarm_announced WHERE episode_id IN (
        SELECT episode_id FROM alarm_announced WHERE withdrawn_at < %s ORDER BY withdrawn_at LIMIT %s)
"""


class AlarmEvents:
    """Publishes; one connection, opened when first needed."""

    def __init__(self, dsn: str, zone: ZoneInfo, hooks: Sequence[Hook] = (), deliver_within_h: float = 48.0) -> None:
        """``deliver_within_h``: what was over longer ago than this (a rebuild of old days) goes to no webhook."""
        self._line = Line(dsn, "nevstream alarm events", StoreUnavailable, _TIMEOUT_S)
        self._zone, self._hooks, self._within = zone, tuple(hooks), timedelta(hours=deliver_within_h)

    async def publish(self, now: datetime | None = None) -> int:
        """Tell what there is to tell; returns the number of events.  Raises ``StoreUnavailable``."""
        told = 0
        while True:
            taken, events = await self._line.call(lambda connection: self._once(connection, now))
            told += events
            if taken < _AT_ONCE:
                return told

    async def prune(self, age_max_days: int, now: datetime | None = None) -> int:
        """Drop old events with their deliveries, and what was told of withdrawn episodes; returns how many events."""
        before = (now or datetime.now(UTC)) - timedelta(days=age_max_days)
        dropped = 0
        for statement in (_PRUNE, _PRUNE_WITHDRAWN):

            async def run(connection: Connection, statement: Any = statement) -> int:
                return (await connection.execute(statement, [before, _PRUNED_AT_ONCE])).rowcount

            while True:
                gone = await self._line.call(run)
                dropped += gone if statement is _PRUNE else 0
                if gone < _PRUNED_AT_ONCE:
                    break
        return dropped

    async def close(self) -> None:
        await self._line.close()

    async def _once(self, connection: Connection, now: datetime | None) -> tuple[int, int]:
        async with connection.transaction():
            row = await (await connection.execute(_ALONE)).fetchone()
            if row is None or not row[0]:
                return 0, 0  # another process is at it
            lines = await (await connection.execute(_TAKE, [_AT_ONCE])).fetchall()
            taken, ids = sum(count for _, count in lines), [number for number, _ in lines]
            if not ids:
                return 0, 0
            there = {row["episode_id"]: row for row in await _rows(connection, _NOW, ids)}
            before = {row["episode_id"]: row for row in await _rows(connection, _TOLD, ids)}
            actions: dict[int, list[dict[str, Any]]] = {}
            for action in sorted(await _rows(connection, _ACTIONS, ids), key=lambda each: int(each["action_id"])):
                actions.setdefault(action["episode_id"], []).append(action)
            events = [
                event
                for number in ids
                for event in self._news(
                    there.get(number), before.get(number), actions.get(number, []), now or datetime.now(UTC)
                )
            ]
            await self._write(connection, events, now or datetime.now(UTC))
            await connection.execute(_ANNOUNCE, [list(there)])
            gone = [number for number in ids if number not in there and number in before]
            await connection.execute(_WITHDRAW, [now or datetime.now(UTC), gone])
        for event in events:
            metrics.ALARM_EVENTS.labels(event["event"]).inc()
        return taken, len(events)

    def _news(
        self,
        row: Mapping[str, Any] | None,
        told: Mapping[str, Any] | None,
        actions: Sequence[Mapping[str, Any]],
        now: datetime,
    ) -> list[dict[str, Any]]:
        """Events of one episode, in the order in which they are told."""
        if row is None:
            if told is None or told["withdrawn_at"] is not None:
                return []  # it came and went unseen, or was withdrawn before
            shown = dict.fromkeys(EPISODE_COLUMNS) | {name: told[name] for name in told if name in EPISODE_COLUMNS}
            shown |= {"settled_on": now.date(), "revision": 0, "records": 0}
            return [self._event(WITHDRAWN, now, shown)]
        found: list[dict[str, Any]] = []
        over = row["settled_on"] is not None
        if told is None or told["withdrawn_at"] is not None:
            found.append(self._event(RAISED, now, row))
            was_over = False
        else:
            was_over = told["over"]
            changes: dict[str, Any] = {}
            if row["level"] != told["level"]:
                changes["level"] = [told["level"], row["level"]]
            if was_over and not over:
                changes["active"] = [False, True]
            if changes:
                found.append(self._event(CHANGED, now, row, changes=changes))
        for action in actions:
            event = ACKNOWLEDGED if action["action"] == ACKNOWLEDGE else CLOSED
            found.append(self._event(event, action["acted_at"], row, by=action["acted_by"], note=action["note"]))
        if over and not was_over:
            found.append(self._event(ENDED, now, row))
        return found

    def _event(self, event: str, at: datetime, row: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        alarm = described(row, lambda time: time.astimezone(self._zone) if time else None)
        return {"event": event, "at": at, "row": row, "alarm": alarm, "body": {**more, "alarm": alarm}}

    async def _write(self, connection: Connection, events: Sequence[Mapping[str, Any]], now: datetime) -> None:
        if not events:
            return
        cursor = await connection.execute(
            _TELL,
            [
                [event["at"] for event in events],
                [event["event"] for event in events],
                [event["row"]["episode_id"] for event in events],
                [event["row"]["level"] for event in events],
                [orjson.dumps(event["body"]).decode() for event in events],
            ],
        )
        numbers = [row[0] for row in await cursor.fetchall()]
        out = [
            (number, hook.name, event["row"]["episode_id"])
            for number, event in zip(numbers, events, strict=True)
            if event["alarm"]["active"] is True or event["row"]["end_at"] >= now - self._within
            for hook in self._hooks
            if hook.wants(event["event"], event["alarm"])
        ]
        if out:
            await connection.execute(_DELIVER, [list(column) for column in zip(*out, strict=True)])


async def _rows(connection: Connection, statement: Any, ids: Sequence[int]) -> list[dict[str, Any]]:
    cursor = await connection.execute(statement, [list(ids)])
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]
