"""What the store knows about one vehicle's connection and data, for the doctor: facts, no judgement.

Every query looks at one vehicle through an index and is bounded; ``services.web.diagnosis`` draws the conclusions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg import sql

from schemas.seams import Table

LIVE_REPORTS: Final = 50  # newest reports from which the clock's offset is told
_DAY: Final = timedelta(days=1)

# What is known of the VIN: it may be in no registry and still be in events and dead letters.
_VEHICLE: Final = sql.SQL(
    """
    SELECT v.vehicle_id, v.registered, v.password_hash IS NOT NULL AS has_password, v.first_seen_at,
           s.time AS last_time, s.received_at AS last_received_at, s.reports, s.edition, s.door
    FROM vehicles v LEFT JOIN vehicle_state s USING (vehicle_id) WHERE v.vin = %(vin)s
    """
)
# The newest event of each kind, and how many there were in the last day.
_EVENTS: Final = sql.SQL(
    """
    SELECT e.*, day.n AS in_a_day
    FROM unnest(ARRAY['connected', 'refused', 'replaced', 'closed', 'will', 'error', 'activation']) AS kind (event)
    CROSS JOIN LATERAL (
        SELECT event, occurred_at, cause, door, peer, client, by_peer, detail, origin, number FROM link_events
        WHERE vin = %(vin)s AND link_events.event = kind.event ORDER BY occurred_at DESC, number DESC LIMIT 1
    ) e
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(times), 0)::bigint AS n FROM (
            SELECT times FROM link_events
            WHERE vin = %(vin)s AND link_events.event = kind.event AND occurred_at >= %(day_ago)s LIMIT 10000
        ) few
    ) day
    """
)
_LETTERS: Final = sql.SQL(
    """
    SELECT reason, count(*) AS in_a_day, max(received_at) AS last_at,
           (array_agg(substring(frame FROM 1 FOR 30) ORDER BY received_at DESC))[1] AS head,
           (array_agg(partition || '-' || "offset" || '-' || position ORDER BY received_at DESC))[1] AS id
    FROM (SELECT * FROM dead_letters WHERE vin = %(vin)s AND received_at >= %(day_ago)s
          ORDER BY received_at DESC LIMIT 10000) few
    GROUP BY reason ORDER BY last_at DESC
    """
)
_LAST_LETTER: Final = sql.SQL(
    """
    SELECT reason, received_at, peer, partition || '-' || "offset" || '-' || position AS id
    FROM dead_letters WHERE vin = %(vin)s ORDER BY received_at DESC LIMIT 1
    """
)
_LAST_LOGIN: Final = sql.SQL(
    """
    SELECT command, received_at, time, edition, door FROM logins WHERE vehicle_id = %(id)s
    ORDER BY received_at DESC, partition DESC, "offset" DESC, position DESC LIMIT 1
    """
)
# How far behind its arrival a report is dated: delay of the line and error of the clock together.
_CLOCK: Final = sql.SQL(
    """
    SELECT count(*) AS reports, min(late_s) AS least_s, max(late_s) AS most_s,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY late_s) AS median_s
    FROM (SELECT extract(epoch FROM received_at - time)::double precision AS late_s FROM telemetry
          WHERE vehicle_id = %(id)s AND kind = 2 AND time BETWEEN %(day_before_last)s AND %(last)s
          ORDER BY time DESC LIMIT %(live)s) newest
    """
)
# Gaps between neighbouring reports of the day. The usual interval is the most frequent gap, in whole seconds; a gap of
# half an hour is a parked vehicle, not a hole.
_GAPS: Final = sql.SQL(
    """
    WITH seen AS (
        SELECT time, extract(epoch FROM time - lag(time) OVER (ORDER BY time))::double precision AS gap_s
        FROM (SELECT DISTINCT time FROM telemetry
              WHERE vehicle_id = %(id)s AND time >= %(day_ago)s AND time <= %(now)s
              ORDER BY time DESC LIMIT 100000) times
    ), usual AS (SELECT mode() WITHIN GROUP (ORDER BY round(gap_s)) AS interval_s FROM seen WHERE gap_s > 0)
    SELECT count(*) AS reports, min(time) AS first, max(time) AS last, min(interval_s) AS interval_s,
           coalesce(sum(greatest(round(gap_s / greatest(interval_s, 1)) - 1, 0)) FILTER (WHERE gap_s < 1800), 0)::bigint
               AS missing
    FROM seen CROSS JOIN usual
    """
)
_BACKLOG: Final = sql.SQL(
    """
    SELECT count(*) AS records, min(appended_at) AS oldest FROM (
        SELECT j.appended_at FROM (
            SELECT journal_partition(%(vin)s, value::integer) AS partition FROM settings_fixed
            WHERE name = 'journal.partitions'
        ) own
        CROSS JOIN LATERAL (
            SELECT coalesce((SELECT "offset" FROM journal_positions WHERE partition = own.partition), -1) AS stored
        ) at
        JOIN journal j ON j.partition = own.partition AND j."offset" > at.stored LIMIT 1000
    ) waiting
    """
)
# The newest that was told of each of the bridge's connections; they bear no VIN, door 3 is Door.MQTT_BRIDGE.
_BRIDGE: Final = sql.SQL(
    """
    SELECT DISTINCT ON (client) client, event, occurred_at, cause, door, peer, by_peer, detail FROM (
        SELECT * FROM link_events
        WHERE door = 3 AND vin IS NULL AND event IN ('connected', 'refused', 'closed')
        ORDER BY occurred_at DESC LIMIT 1000
    ) newest
    ORDER BY client, occurred_at DESC, number DESC
    """
)
_COMMANDS: Final = sql.SQL(
    """
    SELECT command_id, command, state, attempts, created_at, sent_at, error FROM commands
    WHERE vin = %(vin)s ORDER BY command_id DESC LIMIT 1
    """
)

Run = Callable[[sql.SQL | sql.Composed, Mapping[str, Any]], Awaitable[Table]]


async def facts(run: Run, vin: str, now: datetime) -> dict[str, Any]:
    """Facts about ``vin`` at ``now``.

    Keys: ``vehicle`` (None when no such row), ``events`` (event → newest), ``letters`` (of the last day by
    reason, newest first), ``last_letter``, ``last_login``, ``clock`` and ``gaps`` (None without reports),
    ``backlog`` (records of the vehicle's partition that are not stored yet), ``bridge`` (newest event of each of its
    connections), ``last_command``.
    """
    given: dict[str, Any] = {"vin": vin, "now": now, "day_ago": now - _DAY}
    vehicle = _one(await run(_VEHICLE, given))
    found: dict[str, Any] = {
        "vehicle": vehicle,
        "events": {row["event"]: row for row in (await run(_EVENTS, given)).dicts()},
        "letters": (await run(_LETTERS, given)).dicts(),
        "last_letter": _one(await run(_LAST_LETTER, given)),
        "backlog": _one(await run(_BACKLOG, given)),
        "bridge": (await run(_BRIDGE, given)).dicts(),
        "last_command": _one(await run(_COMMANDS, given)),
        "last_login": None,
        "clock": None,
        "gaps": None,
    }
    if vehicle is not None:
        given["id"] = vehicle["vehicle_id"]
        found["last_login"] = _one(await run(_LAST_LOGIN, given))
        if vehicle["last_time"] is not None:
            bounds = {"day_before_last": vehicle["last_time"] - _DAY, "last": vehicle["last_time"]}
            found["clock"] = _one(await run(_CLOCK, {**given, **bounds, "live": LIVE_REPORTS}))
            found["gaps"] = _one(await run(_GAPS, given))
    return found


def _one(table: Table) -> dict[str, Any] | None:
    return table.dicts()[0] if table.rows else None
