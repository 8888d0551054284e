"""Alarm episodes for people: lists, one with its story, figures of handling, and acknowledge and close.

Episodes are found by the statistics worker and the offline rule; here they are read, and only what people did is
written.  Reads go over read-only connections of their own, so that a long list never holds up an acknowledgement.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from schemas.alarms import (
    ACKNOWLEDGED,
    CLOSED,
    EPISODE_COLUMNS,
    MOVES,
    OPEN,
    WHY_NOT,
    Acted,
    AlarmFilter,
    Targets,
    state_of,
)
from schemas.seams import Table
from services.database import Connection, Line
from services.errors import StoreUnavailable
from services.store.queries import Connections

log = logging.getLogger(__name__)

_ACT_AT_ONCE: Final = 200  # episodes locked at once; the statistics worker waits for no more than these
_DEADLOCKS_MAX: Final = 3

_FACTS: Final[Mapping[str, LiteralString]] = {
    "vin": "v.vin", "model": "v.model", "fleet": "v.fleet", "region": "v.region", "plate": "v.plate",
    # of the day it began on; the vehicle's newest report when that day is not folded yet
    "edition": "coalesce(d.edition, s.edition)",
}  # fmt: skip
EPISODE: Final = sql.SQL(", ").join(
    sql.SQL("{} AS {}").format(sql.SQL(_FACTS[name]), sql.Identifier(name))
    if name in _FACTS
    else sql.SQL("e.{}").format(sql.Identifier(name))
    for name in EPISODE_COLUMNS
)
JOINED: Final = sql.SQL(
    """
    JOIN vehicles v ON v.vehicle_id = e.vehicle_id
    LEFT JOIN vehicle_state s ON s.vehicle_id = e.vehicle_id
    LEFT JOIN vehicle_day d ON d.vehicle_id = e.vehicle_id AND d.day = e.day
    """
)
_PAGE: Final = sql.SQL(
    """
    SELECT {episode} FROM alarm_episodes e {joined} WHERE {wanted} AND (e.start_at, e.episode_id) < (%(at)s, %(id)s)
    ORDER BY e.start_at DESC, e.episode_id DESC LIMIT %(limit)s
    """
)
_ONE: Final = sql.SQL("SELECT {episode} FROM alarm_episodes e {joined} WHERE e.episode_id = %(id)s").format(
    episode=EPISODE, joined=JOINED
)
_WITHDRAWN: Final = sql.SQL("SELECT withdrawn_at FROM alarm_announced WHERE episode_id = %(id)s")
_ACTIONS: Final = sql.SQL(
    "SELECT action, acted_at, acted_by, note, level FROM alarm_actions WHERE episode_id = %(id)s ORDER BY action_id"
)
_TOLD: Final = sql.SQL(
    """
    SELECT event_id, occurred_at, event, level FROM alarm_events WHERE episode_id = %(id)s
    ORDER BY event_id DESC LIMIT 200
    """
)
_DELIVERIES: Final = sql.SQL(
    """
    SELECT d.event_id, d.hook, d.state, d.attempts, d.created_at, d.finished_at, d.status, d.error
    FROM alarm_events n JOIN alarm_deliveries d USING (event_id) WHERE n.episode_id = %(id)s
    ORDER BY d.event_id DESC, d.hook LIMIT 200
    """
)
_DUE: Final = sql.SQL(
    """
    SELECT e.start_at + make_interval(secs => %(minutes)s * 60) AS acknowledge_due_at,
           alarm_close_due(e.start_at, %(days)s, %(zone)s) AS close_due_at,
           (SELECT count(*) FROM alarm_episodes o WHERE o.vehicle_id = e.vehicle_id AND o.source = e.source
            AND o.code = e.code AND o.start_at >= e.start_at - interval '30 days' AND o.start_at < e.start_at) AS alike
    FROM alarm_episodes e WHERE e.episode_id = %(id)s
    """
)
QUANTILES: Final = ("p5", "median", "p95")
_STATE: Final = sql.SQL(
    "CASE WHEN e.closed_at IS NOT NULL THEN 'closed' WHEN e.acknowledged_at IS NOT NULL THEN 'acknowledged' "
    "ELSE 'open' END"
)
_UNHANDLED: Final = sql.SQL(
    """
    SELECT e.level, {state} AS state, count(*) AS episodes, count(DISTINCT e.vehicle_id) AS vehicles,
           count(*) FILTER (WHERE e.settled_on IS NULL) AS active, min(e.start_at) AS oldest_at
    FROM alarm_episodes e {joined} WHERE e.closed_at IS NULL AND {wanted} GROUP BY 1, 2 ORDER BY 1 DESC, 2
    """
)
_LEVELS: Final = sql.SQL(
    """
    SELECT e.level, {state} AS state, count(*) AS episodes, count(DISTINCT e.vehicle_id) AS vehicles,
           count(*) FILTER (WHERE e.settled_on IS NULL) AS active
    FROM alarm_episodes e {joined} WHERE {wanted} GROUP BY 1, 2 ORDER BY 1 DESC, 2
    """
)
# Named by the edition of one of its vehicles: to ask all of them would cost more than the counting.
_KINDS: Final = sql.SQL(
    """
    SELECT k.*, s.edition
    FROM (SELECT e.source, e.code, count(*) AS episodes, count(DISTINCT e.vehicle_id) AS vehicles,
                 max(e.level) AS level_max, count(*) FILTER (WHERE e.settled_on IS NULL) AS active,
                 count(*) FILTER (WHERE e.acknowledged_at IS NULL) AS open, min(e.vehicle_id) AS vehicle_id,
                 percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM e.end_at - e.start_at)::float8)
                     FILTER (WHERE e.settled_on IS NOT NULL) AS duration_median_s
          FROM alarm_episodes e {joined} WHERE {wanted} GROUP BY 1, 2 ORDER BY episodes DESC, 1, 2 LIMIT %(limit)s) k
    LEFT JOIN vehicle_state s USING (vehicle_id) ORDER BY k.episodes DESC, k.source, k.code
    """
)
# Of episodes that are due (handled, or past their time): how many were handled in time.
_HANDLING: Final = sql.SQL(
    """
    SELECT count(*) AS episodes, count(DISTINCT vehicle_id) AS vehicles,
           count(acknowledged_at) AS acknowledged, count(closed_at) AS closed, {times},
           count(*) FILTER (WHERE acknowledged_at IS NOT NULL OR ack_due < %(now)s) AS acknowledge_due,
           count(*) FILTER (WHERE acknowledged_at <= ack_due) AS acknowledged_in_time,
           count(*) FILTER (WHERE closed_at IS NOT NULL OR close_due < %(now)s) AS close_due,
           count(*) FILTER (WHERE closed_at <= close_due) AS closed_in_time
    FROM (SELECT e.vehicle_id, e.acknowledged_at, e.closed_at,
                 extract(epoch FROM e.acknowledged_at - e.start_at)::float8 / 60 AS start_to_acknowledged_min,
                 extract(epoch FROM e.acknowledged_at - e.raised_at)::float8 / 60 AS raised_to_acknowledged_min,
                 extract(epoch FROM e.closed_at - e.start_at)::float8 / 3600 AS start_to_closed_h,
                 extract(epoch FROM e.closed_at - e.acknowledged_at)::float8 / 3600 AS acknowledged_to_closed_h,
                 e.start_at + make_interval(secs => %(minutes)s * 60) AS ack_due,
                 alarm_close_due(e.start_at, %(days)s, %(zone)s) AS close_due
          FROM alarm_episodes e {joined} WHERE {wanted}) h
    """
)
TIMES: Final = (
    "start_to_acknowledged_min", "raised_to_acknowledged_min", "start_to_closed_h", "acknowledged_to_closed_h",
)  # fmt: skip
_TIMES: Final = sql.SQL(", ").join(
    sql.SQL("percentile_cont(ARRAY[0.05, 0.5, 0.95]) WITHIN GROUP (ORDER BY {0}) AS {1}, avg({0}) AS {2}").format(
        sql.Identifier(name), sql.Identifier(f"{name}_quantiles"), sql.Identifier(f"{name}_mean")
    )
    for name in TIMES
)
_EVENTS: Final = sql.SQL(
    """
    SELECT event_id, occurred_at, event, body,
           (SELECT v.fleet FROM vehicles v WHERE v.vin = body -> 'alarm' ->> 'vin') AS fleet
    FROM alarm_events WHERE event_id > %(after)s
    ORDER BY event_id LIMIT %(limit)s
    """
)
_BOUNDS: Final = sql.SQL(
    "SELECT coalesce(min(event_id), 0) AS oldest, coalesce(max(event_id), 0) AS newest FROM alarm_events"
)
_HOOKS: Final = sql.SQL(
    """
    SELECT h.hook, h.waiting, h.delivered, h.dead, h.oldest_waiting_at, h.last_delivered_at,
           x.status AS last_status, x.error AS last_error, x.at AS last_error_at
    FROM (SELECT hook, count(*) FILTER (WHERE state = 'waiting') AS waiting,
                 count(*) FILTER (WHERE state = 'delivered') AS delivered,
                 count(*) FILTER (WHERE state = 'dead') AS dead,
                 min(created_at) FILTER (WHERE state = 'waiting') AS oldest_waiting_at,
                 max(finished_at) FILTER (WHERE state = 'delivered') AS last_delivered_at
          FROM alarm_deliveries GROUP BY hook) h
    LEFT JOIN LATERAL (
        SELECT status, error, coalesce(finished_at, due_at) AS at FROM alarm_deliveries d
        WHERE d.hook = h.hook AND d.error IS NOT NULL ORDER BY event_id DESC LIMIT 1
    ) x ON true ORDER BY h.hook
    """
)
_LOCK_EPISODES: Final = """
    SELECT episode_id, level, acknowledged_at, closed_at FROM alarm_episodes WHERE episode_id = ANY (%s)
    ORDER BY episode_id FOR UPDATE
"""
_MARK: Final[Mapping[str, LiteralString]] = {
    ACKNOWLEDGED: "UPDATE alarm_episodes SET acknowledged_at = %(now)s, acknowledged_by = %(by)s, "
    "note = coalesce(%(note)s, note) WHERE episode_id = ANY (%(ids)s)",
    CLOSED: "UPDATE alarm_episodes SET closed_at = %(now)s, closed_by = %(by)s, "
    "note = coalesce(%(note)s, note) WHERE episode_id = ANY (%(ids)s)",
}
_ACTED: Final = """
    INSERT INTO alarm_actions (episode_id, action, acted_at, acted_by, note, level)
    SELECT episode_id, %(action)s, %(now)s, %(by)s, %(note)s, level FROM alarm_episodes
    WHERE episode_id = ANY (%(ids)s) ORDER BY episode_id
"""
_RETRY: Final = """
    UPDATE alarm_deliveries SET state = 'waiting', attempts = 0, created_at = now(), due_at = now(),
        finished_at = NULL
    WHERE state = 'dead' AND (%(hook)s::text IS NULL OR hook = %(hook)s)
"""
_STATES: Final[Mapping[str, LiteralString]] = {
    OPEN: "e.acknowledged_at IS NULL",
    ACKNOWLEDGED: "(e.acknowledged_at IS NOT NULL AND e.closed_at IS NULL)",
    CLOSED: "e.closed_at IS NOT NULL",
}
_CONDITIONS: Final[Mapping[str, LiteralString]] = {
    "since": "e.start_at >= %(since)s",
    "until": "e.start_at < %(until)s",
    "vehicle_id": "e.vehicle_id = %(vehicle_id)s",
    "vin": "e.vehicle_id = (SELECT vehicle_id FROM vehicles WHERE vin = %(vin)s)",
    "model": "coalesce(v.model, 'unknown') = %(model)s",
    "fleet": "coalesce(v.fleet, 'unknown') = %(fleet)s",
    "region": "coalesce(v.region, 'unknown') = %(region)s",
    "fleets": "v.fleet = ANY (%(fleets)s)",
    "level_min": "e.level >= %(level_min)s",
    "source": "e.source = %(source)s",
}


def conditions(wanted: AlarmFilter) -> tuple[sql.Composable, dict[str, Any]]:
    """The WHERE of a filter over ``e`` and JOINED, and its parameters."""
    terms: list[sql.Composable] = [
        sql.SQL(term) for name, term in _CONDITIONS.items() if getattr(wanted, name) is not None
    ]
    given = {name: value for name in _CONDITIONS if (value := getattr(wanted, name)) is not None}
    if wanted.fleets is not None:
        given["fleets"] = list(wanted.fleets)
    if wanted.states is not None:
        states = [sql.SQL(_STATES[state]) for state in wanted.states]
        terms.append(sql.SQL("({})").format(sql.SQL(" OR ").join(states)) if states else sql.SQL("false"))
    if wanted.active is not None:
        terms.append(sql.SQL("e.settled_on IS NULL" if wanted.active else "e.settled_on IS NOT NULL"))
    if wanted.codes is not None:
        terms.append(sql.SQL("(e.source, e.code) IN (SELECT * FROM unnest(%(sources)s::int[], %(codes)s::int[]))"))
        given |= {"sources": [source for source, _ in wanted.codes], "codes": [code for _, code in wanted.codes]}
    return sql.SQL(" AND ").join(terms) if terms else sql.SQL("true"), given


class PostgresAlarms:
    """``AlarmDesk`` of ``schemas.alarms``."""

    def __init__(self, dsn: str, *, connections_max: int = 4, statement_timeout_s: float = 15.0) -> None:
        self._asking = Connections(dsn, connections_max, 5.0, statement_timeout_s)
        self._line = Line(dsn, "nevstream alarms", StoreUnavailable)

    # -- asking ------------------------------------------------------------------------------------
    async def page(self, wanted: AlarmFilter, *, after: tuple[datetime, int] | None, limit: int) -> Table:
        where, given = conditions(wanted)
        at, number = after or ("infinity", 2**63 - 1)
        query = _PAGE.format(episode=EPISODE, joined=JOINED, wanted=where)
        return await self._asking.run(query, {**given, "at": at, "id": number, "limit": limit})

    async def episode(self, episode_id: int) -> Mapping[str, Any] | None:
        return _first(await self._asking.run(_ONE, {"id": episode_id}))

    async def story(self, episode_id: int, targets: Targets) -> Mapping[str, Any]:
        given = {"id": episode_id}
        due = _first(await self._asking.run(_DUE, given | _targets(targets))) or {}
        withdrawn = _first(await self._asking.run(_WITHDRAWN, given)) or {}
        return {
            "withdrawn_at": withdrawn.get("withdrawn_at"),
            "acknowledge_due_at": due.get("acknowledge_due_at"),
            "close_due_at": due.get("close_due_at"),
            "alike_30d": due.get("alike", 0),
            "actions": (await self._asking.run(_ACTIONS, given)).dicts(),
            "events": (await self._asking.run(_TOLD, given)).dicts()[::-1],
            "deliveries": (await self._asking.run(_DELIVERIES, given)).dicts()[::-1],
        }

    async def summary(self, wanted: AlarmFilter, targets: Targets, now: datetime, limit: int) -> Mapping[str, Any]:
        given = {**_targets(targets), "now": now, "limit": limit}
        # of whenever it began: what waits for somebody does not grow less by being old
        ever = dataclasses.replace(wanted, since=None, until=None)
        handling = _first(await self._counted(_HANDLING, wanted, given))
        assert handling is not None
        for name in TIMES:
            quantiles = handling.pop(f"{name}_quantiles") or (None, None, None)
            handling |= {f"{name}_{word}": value for word, value in zip(QUANTILES, quantiles, strict=True)}
        return {
            "unhandled": (await self._counted(_UNHANDLED, ever, given)).dicts(),
            "levels": (await self._counted(_LEVELS, wanted, given)).dicts(),
            "kinds": (await self._counted(_KINDS, wanted, given)).dicts(),
            "handling": handling,
        }

    async def _counted(self, query: sql.SQL, wanted: AlarmFilter, given: Mapping[str, Any]) -> Table:
        """Episodes of a filter counted; the registry is joined only when the filter asks for it."""
        where, values = conditions(wanted)
        by_facts = any(each is not None for each in (wanted.model, wanted.fleet, wanted.region, wanted.fleets))
        joined = sql.SQL("JOIN vehicles v ON v.vehicle_id = e.vehicle_id" if by_facts else "")
        query_made = query.format(joined=joined, wanted=where, state=_STATE, times=_TIMES)
        return await self._asking.run(query_made, {**given, **values})

    async def events(self, after: int, limit: int) -> Table:
        return await self._asking.run(_EVENTS, {"after": after, "limit": limit})

    async def event_bounds(self) -> tuple[int, int]:
        row = _first(await self._asking.run(_BOUNDS, {}))
        assert row is not None
        return row["oldest"], row["newest"]

    async def hooks(self) -> Table:
        return await self._asking.run(_HOOKS, {})

    # -- doing -------------------------------------------------------------------------------------
    async def act(self, action: str, episodes: Sequence[int], *, by: str, note: str | None = None) -> list[Acted]:
        wanted = sorted(set(episodes))
        found: dict[int, Acted] = {}
        for at in range(0, len(wanted), _ACT_AT_ONCE):
            some = wanted[at : at + _ACT_AT_ONCE]

            async def run(connection: Connection, some: list[int] = some) -> list[Acted]:
                return await _act(connection, action, some, by, note)

            found.update({acted.episode_id: acted for acted in await self._line.call(run)})
        return [found[number] for number in episodes]

    async def retry_dead(self, hook: str | None) -> int:
        async def run(connection: Connection) -> int:
            return (await connection.execute(_RETRY, {"hook": hook})).rowcount

        return await self._line.call(run)

    async def close(self) -> None:
        await self._asking.close()
        await self._line.close()


async def _act(connection: Connection, action: str, some: Sequence[int], by: str, note: str | None) -> list[Acted]:
    """One transaction; begun anew when it and the statistics worker waited for each other."""
    for attempt in itertools.count(1):
        try:
            async with connection.transaction():
                return await _acted(connection, action, some, by, note)
        except psycopg.errors.DeadlockDetected:
            if attempt == _DEADLOCKS_MAX:
                raise
    raise AssertionError


async def _acted(connection: Connection, action: str, some: Sequence[int], by: str, note: str | None) -> list[Acted]:
    cursor = await connection.execute(_LOCK_EPISODES, [list(some)])
    names = [column.name for column in cursor.description or ()]
    rows = {row[0]: dict(zip(names, row, strict=True)) for row in await cursor.fetchall()}
    outcome: list[Acted] = []
    done: list[int] = []
    after = next(state for (_, each), state in MOVES.items() if each == action and state is not None)
    for number in some:
        if number not in rows:
            outcome.append(Acted(number, "missing", None, "there is no such episode"))
            continue
        state = state_of(rows[number])
        then = MOVES[state, action]
        if then is None:
            outcome.append(Acted(number, "refused", state, WHY_NOT[state, action]))
        elif then == state:
            outcome.append(Acted(number, "repeated", state))
        else:
            done.append(number)
            outcome.append(Acted(number, "done", then))
    if done:
        # the clock's time and not the transaction's: it may have waited for the rows
        row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
        assert row is not None
        given = {"ids": done, "action": action, "by": by, "note": note, "now": row[0]}
        await connection.execute(_ACTED, given)
        await connection.execute(_MARK[after], given)
        log.info("%s: %s %d alarm episodes", by, action, len(done))
    return outcome


def _targets(targets: Targets) -> dict[str, Any]:
    return {"minutes": targets.acknowledge_min, "days": targets.close_working_days, "zone": targets.time_zone}


def _first(table: Table) -> dict[str, Any] | None:
    rows = table.dicts()
    return rows[0] if rows else None
