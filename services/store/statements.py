"""The SQL of :mod:`services.store.postgres`, by name, with what each relies on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from psycopg import sql

from schemas.keys import ORDER_BITS
from services.store.columns import KEY, LEDGER, TELEMETRY, VEHICLE_STATE

SEPARATOR: Final = "\x1f"  # between pack codes: an array of arrays of unequal length does not travel


def _names(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


# Once per connection. ON COMMIT DELETE ROWS: a transaction finds them empty, and nothing is left to clean up.
TEMPORARY: Final = """
    SET client_min_messages = warning;
    CREATE TEMPORARY TABLE late_telemetry (LIKE telemetry) ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE batch_state (LIKE vehicle_state) ON COMMIT DELETE ROWS
"""

MAKE_DAYS: Final = "SELECT coalesce(sum(ensure_telemetry_days(day, day)), 0) FROM unnest(%s::date[]) AS day"

# In order, so that nobody waits in a circle; pipelines have partitions of their own, a replay is -1.
MARK_DAYS: Final = """
    INSERT INTO telemetry_days AS d (day, partition, changes)
    SELECT day, partition, 1 FROM unnest(%s::date[]) AS day CROSS JOIN unnest(%s::integer[]) AS partition ORDER BY 1, 2
    ON CONFLICT (day, partition) DO UPDATE SET changes = d.changes + 1
"""

POSITIONS: Final = 'SELECT partition, "offset" FROM journal_positions WHERE partition = ANY(%s::integer[])'

# Insert where nothing was stored, else update where it stands where we think. The second owner of a partition
# waits here for the first one's commit, then finds the position moved.
MOVE_POSITIONS: Final = """
    WITH moves AS (
        SELECT * FROM unnest(%s::integer[], %s::bigint[], %s::bigint[]) AS m (partition, previous, new)
    ), begun AS (
        INSERT INTO journal_positions (partition, "offset") SELECT partition, new FROM moves WHERE previous = -1
        ON CONFLICT DO NOTHING RETURNING 1
    ), moved AS (
        UPDATE journal_positions p SET "offset" = m.new, committed_at = now() FROM moves m
        WHERE p.partition = m.partition AND p."offset" = m.previous AND m.previous <> -1 RETURNING 1
    )
    SELECT (SELECT count(*) FROM begun) + (SELECT count(*) FROM moved)
"""

# The row is waited for while the owner before commits, so a position read after this one is final.
CLAIM: Final = """
    INSERT INTO partition_owner AS o (partition, epoch, owner, backend, begun_at)
    SELECT partition, 1, %s, a.pid, a.backend_start
    FROM unnest(%s::integer[]) AS partition CROSS JOIN pg_stat_activity a WHERE a.pid = pg_backend_pid()
    ORDER BY 1
    ON CONFLICT (partition) DO UPDATE SET
        epoch = o.epoch + 1, owner = excluded.owner, backend = excluded.backend, begun_at = excluded.begun_at,
        claimed_at = now()
    RETURNING partition, epoch
"""
# Sessions of owners that stand still in the middle of a transaction.
END_OWNERS: Final = """
    SELECT a.pid, pg_terminate_backend(a.pid) FROM pg_stat_activity a
    WHERE a.pid <> pg_backend_pid() AND (a.pid, a.backend_start) IN (
        SELECT backend, begun_at FROM partition_owner WHERE partition = ANY(%s::integer[])
    )
"""
# Held until the commit: who claims these partitions meanwhile waits for it.
OWNED: Final = """
    SELECT o.partition FROM partition_owner o
    JOIN unnest(%s::integer[], %s::bigint[]) AS mine (partition, epoch) USING (partition, epoch)
    ORDER BY o.partition FOR SHARE OF o
"""

# In VIN order, so that two who register the same vehicles do not wait for each other in a circle.
REGISTER: Final = """
    INSERT INTO vehicles (vin, first_seen_at)
    SELECT DISTINCT vin COLLATE "C", now() FROM unnest(%s::text[]) AS vin ORDER BY 1
    ON CONFLICT (vin) DO UPDATE SET first_seen_at = excluded.first_seen_at WHERE vehicles.first_seen_at IS NULL
"""
VEHICLE_IDS: Final = """
    SELECT v.vehicle_id FROM unnest(%s::text[]) WITH ORDINALITY AS a (vin, n) JOIN vehicles v USING (vin) ORDER BY n
"""

VEHICLE_ID_MAX: Final = "SELECT coalesce(max(vehicle_id), 0) FROM vehicles"
# Vehicles from one id on and before another, as one value of fixed-width pieces (KNOWN_ROW): rows would come as a
# Python object each, and a COPY message each.
KNOWN_VEHICLES: Final = f"""
    SELECT string_agg(
        int8send(v.vehicle_id) || convert_to(v.vin, 'UTF8') || substr(%b::bytea, 1, 17 - length(v.vin)) || int8send(
            coalesce((extract(epoch FROM s.time)::bigint << {ORDER_BITS}) | (s.kind::bigint << 16) | s.part, 0)),
        ''::bytea)
    FROM vehicles v LEFT JOIN vehicle_state s USING (vehicle_id) WHERE v.vehicle_id >= %b AND v.vehicle_id < %b
"""  # noqa: S608 - a number of ours
KNOWN_ROW: Final = np.dtype([("vehicle_id", ">i8"), ("vin", "17u1"), ("last_key", ">i8")])

# By vehicle and local day of collection.
# Of every key among the late rows: n rows with d different digests. Against what is stored, or else the first
# of them, every further digest is a conflict and every further row of a known digest a duplicate.
# LATERAL with LIMIT: one index look-up per key; day partitions are chosen while it runs.
COUNT_LATE: Final = """
    SELECT c.vehicle_id, journal_partition(v.vin, %s::integer), c.day, c.duplicates, c.conflicts
    FROM (
        SELECT k.vehicle_id, (k.time AT TIME ZONE %s::text)::date AS day,
               sum(k.n - k.d + same.n)::bigint AS duplicates,
               sum(k.d - CASE WHEN t.digest IS NULL THEN 1 ELSE same.n END)::bigint AS conflicts
        FROM (
            SELECT vehicle_id, time, kind, part, count(*) AS n, count(DISTINCT digest) AS d,
                   array_agg(DISTINCT digest) AS digests
            FROM late_telemetry GROUP BY vehicle_id, time, kind, part
        ) k
        LEFT JOIN LATERAL (
            SELECT s.digest FROM telemetry s
            WHERE s.vehicle_id = k.vehicle_id AND s.time = k.time AND s.kind = k.kind AND s.part = k.part LIMIT 1
        ) t ON true
        CROSS JOIN LATERAL (SELECT coalesce((t.digest = ANY (k.digests))::integer, 0)) AS same (n)
        GROUP BY 1, 2
    ) c
    JOIN vehicles v USING (vehicle_id)
    WHERE c.duplicates > 0 OR c.conflicts > 0
"""

_KEY: Final = _names(KEY)
_REPLACE: Final = sql.SQL(", ").join(
    sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in TELEMETRY if name not in KEY
)


def merge_late(columns: Sequence[str]) -> sql.Composed:
    """Late rows into telemetry.  Of one key the smallest digest stays, in whatever order they come.

    Answers what was really inserted or replaced: vehicle, earliest and latest second, a line per UTC day.
    """
    return sql.SQL(
        "WITH written AS (INSERT INTO telemetry ({columns})"
        " SELECT DISTINCT ON ({key}) {columns} FROM late_telemetry ORDER BY {key}, digest"
        " ON CONFLICT ({key}) DO UPDATE SET {replace} WHERE excluded.digest < telemetry.digest"
        " RETURNING vehicle_id, extract(epoch FROM time)::bigint AS second)"
        " SELECT vehicle_id, min(second), max(second) FROM written GROUP BY vehicle_id, second / 86400"
    ).format(columns=_names(columns), key=_KEY, replace=_REPLACE)


_STATE_TAKEN: Final = [name for name in VEHICLE_STATE if name not in ("vehicle_id", "reports")]

# Never backwards: an older report only adds to the count.
UPSERT_STATES: Final = sql.SQL(
    "INSERT INTO vehicle_state AS s ({columns}) SELECT {columns} FROM batch_state ORDER BY vehicle_id"
    " ON CONFLICT (vehicle_id) DO UPDATE SET {taken}, reports = s.reports + excluded.reports"
).format(
    columns=_names(list(VEHICLE_STATE)),
    taken=sql.SQL(", ").join(
        sql.SQL(
            "{0} = CASE WHEN (excluded.time, excluded.kind, excluded.part) > (s.time, s.kind, s.part)"
            " THEN excluded.{0} ELSE s.{0} END"
        ).format(sql.Identifier(name))
        for name in _STATE_TAKEN
    ),
)

# The caller counts what it hands over; what was not new is taken back here.
TAKE_BACK_REPORTS: Final = """
    UPDATE vehicle_state s SET reports = s.reports - n.n
    FROM unnest(%s::bigint[], %s::bigint[]) AS n (vehicle_id, n) WHERE s.vehicle_id = n.vehicle_id
"""

# After a conflict the winner may be another report than the one the state was taken from.
REFRESH_STATES: Final = sql.SQL(
    "UPDATE vehicle_state s SET {taken} FROM ("
    "  SELECT t.* FROM unnest(%s::bigint[]) AS a (vehicle_id) JOIN vehicle_state c USING (vehicle_id)"
    "  CROSS JOIN LATERAL ("
    "    SELECT * FROM telemetry t WHERE t.vehicle_id = c.vehicle_id AND t.time = c.time AND t.kind = c.kind"
    "      AND t.part = c.part LIMIT 1) t"
    ") w WHERE s.vehicle_id = w.vehicle_id"
).format(taken=sql.SQL(", ").join(sql.SQL("{0} = w.{0}").format(sql.Identifier(name)) for name in _STATE_TAKEN))

# One record per share and urgency; see services.store.changes.
INSERT_CHANGES: Final = """
    INSERT INTO statistics_changes (share, urgent, vehicles, from_s, to_s)
    SELECT * FROM unnest(%b::smallint[], %b::boolean[], %b::bytea[], %b::bytea[], %b::bytea[])
"""
ADD_RESENDS: Final = """
    INSERT INTO vehicle_resends AS r (vehicle_id, day, duplicates, conflicts)
    SELECT * FROM unnest(%s::bigint[], %s::date[], %s::bigint[], %s::bigint[]) AS n (vehicle_id, day, d, c)
    ORDER BY vehicle_id, day
    ON CONFLICT (vehicle_id, day) DO UPDATE
    SET duplicates = r.duplicates + excluded.duplicates, conflicts = r.conflicts + excluded.conflicts
"""

INSERT_LOGINS: Final = """
    INSERT INTO logins (partition, "offset", position, received_at, time, command, edition, door, vin, vehicle_id,
                        serial, iccid, pack_codes, username)
    SELECT a, b, c, d, e, f, g, h, i, j, k, l, string_to_array(m, E'\\x1f'), n
    FROM unnest(%s::integer[], %s::bigint[], %s::integer[], %s::timestamptz[], %s::timestamptz[], %s::smallint[],
                %s::smallint[], %s::smallint[], %s::text[], %s::bigint[], %s::integer[], %s::text[], %s::text[],
                %s::text[])
         AS r (a, b, c, d, e, f, g, h, i, j, k, l, m, n)
    ON CONFLICT DO NOTHING
"""

INSERT_DEAD_LETTERS: Final = """
    INSERT INTO dead_letters (partition, "offset", position, received_at, reason, detail, door, codec, vin, peer,
                              client, frame, error)
    SELECT * FROM unnest(%s::integer[], %s::bigint[], %s::integer[], %s::timestamptz[], %s::smallint[], %s::bigint[],
                         %s::smallint[], %s::smallint[], %s::text[], %s::text[], %s::text[], %s::bytea[], %s::text[])
    ON CONFLICT DO NOTHING
"""

INSERT_LINK_EVENTS: Final = """
    INSERT INTO link_events (origin, number, occurred_at, event, cause, door, vin, peer, client, by_peer, detail,
                             times)
    SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[], %s::text[], %s::text[], %s::smallint[],
                         %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[])
    ON CONFLICT DO NOTHING
"""

ADD_TO_LEDGER: Final = sql.SQL(
    "INSERT INTO ledger AS l (partition, {names}) SELECT * FROM unnest(%s::integer[], {arrays})"
    " ON CONFLICT (partition) DO UPDATE SET {add}"
).format(
    names=_names(LEDGER),
    arrays=sql.SQL(", ").join([sql.SQL("%s::bigint[]")] * len(LEDGER)),
    add=sql.SQL(", ").join(sql.SQL("{0} = l.{0} + excluded.{0}").format(sql.Identifier(name)) for name in LEDGER),
)
