"""The SQL of :mod:`services.store.replay`, by name, with what each relies on."""

from __future__ import annotations

from typing import Final, LiteralString

from psycopg import sql

from services.store.columns import KEY, TELEMETRY, VEHICLE_STATE

# What decoding decides; the others say which report it is and how it came.
DECODED: Final = tuple(name for name in TELEMETRY if name not in (*KEY, "digest", "received_at", "door"))

TABLES: Final = """
    SET client_min_messages = warning;
    CREATE TEMPORARY TABLE replay_rows (LIKE telemetry);
    CREATE TEMPORARY TABLE replay_new (vehicle_id bigint PRIMARY KEY, vin text NOT NULL);
    CREATE TEMPORARY TABLE replay_readable (
        partition integer, "offset" bigint, position integer, became text, received_at timestamptz,
        vehicle_id bigint, time timestamptz, kind smallint, part smallint, digest bigint, day date
    );
    CREATE TEMPORARY TABLE replay_unreadable (LIKE dead_letters, digest bigint NOT NULL);
    CREATE TEMPORARY TABLE replay_marked (partition integer, "offset" bigint, position integer);
    CREATE TEMPORARY TABLE replay_pending (vehicle_id bigint, time timestamptz, kind smallint, part smallint,
                                           digest bigint)
"""

# Of one key the smallest digest stands, as in the sink; of one digest the first to arrive.
BEST: Final = """
    CREATE TEMPORARY TABLE replay_best AS
    SELECT DISTINCT ON (vehicle_id, time, kind, part) *, (time AT TIME ZONE 'UTC')::date AS day FROM replay_rows
    ORDER BY vehicle_id, time, kind, part, digest, received_at;
    CREATE INDEX ON replay_best (vehicle_id, time, kind, part);
    CREATE INDEX ON replay_best (day);
    CREATE INDEX ON replay_rows (vehicle_id, time, kind, part);
    ANALYZE replay_best; ANALYZE replay_rows; ANALYZE replay_readable; ANALYZE replay_unreadable
"""
_SAME_KEY: Final = sql.SQL("t.vehicle_id = b.vehicle_id AND t.time = b.time AND t.kind = b.kind AND t.part = b.part")


def _row(prefix: LiteralString) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("{}.{}").format(sql.SQL(prefix), sql.Identifier(name)) for name in DECODED)


CHANGED: Final = sql.SQL(
    "CREATE TEMPORARY TABLE replay_changed AS SELECT b.vehicle_id, b.time, b.kind, b.part, b.digest, b.day"
    " FROM replay_best b JOIN telemetry t ON {same} AND t.digest = b.digest"
    " WHERE t.time BETWEEN %(first)s AND %(last)s AND ROW({stored}) IS DISTINCT FROM ROW({fresh});"
    "CREATE INDEX ON replay_changed (day); ANALYZE replay_changed"
).format(same=_SAME_KEY, stored=_row("t"), fresh=_row("b"))

# Rows that the frames would make and that are not there, or stand behind a report that loses against them. What
# was stored under another key from the very same frame has moved; what is a dead letter's is counted with it.
ABSENT: Final = sql.SQL(
    "CREATE TEMPORARY TABLE replay_absent AS"
    " SELECT b.vehicle_id, b.time, b.kind, b.part, b.digest, b.day, t.vehicle_id IS NULL AS free,"
    "        false AS moved, NULL::timestamptz AS old_time, NULL::smallint AS old_kind, NULL::smallint AS old_part,"
    "        EXISTS (SELECT FROM replay_readable r WHERE r.vehicle_id = b.vehicle_id AND r.time = b.time"
    "                AND r.kind = b.kind AND r.part = b.part AND r.digest = b.digest) AS letter"
    " FROM replay_best b"
    " LEFT JOIN telemetry t ON {same} AND t.time BETWEEN %(first)s AND %(last)s"
    " WHERE t.vehicle_id IS NULL OR b.digest < t.digest;"
    "CREATE INDEX ON replay_absent (vehicle_id, time, kind, part); CREATE INDEX ON replay_absent (day);"
    "ANALYZE replay_absent;"
    "UPDATE replay_absent a SET moved = true, old_time = m.time, old_kind = m.kind, old_part = m.part FROM ("
    "  SELECT DISTINCT ON (o.vehicle_id, o.time, o.kind, o.part) o.time, o.kind, o.part,"
    "         r.vehicle_id, r.time AS new_time, r.kind AS new_kind, r.part AS new_part, r.digest"
    "  FROM replay_absent x JOIN replay_rows r USING (vehicle_id, time, kind, part, digest)"
    "  JOIN telemetry o ON o.vehicle_id = r.vehicle_id AND o.received_at = r.received_at AND o.digest = r.digest"
    "  WHERE x.free AND NOT x.letter AND o.time BETWEEN %(early)s AND %(late)s"
    "    AND NOT EXISTS (SELECT FROM replay_rows f WHERE f.vehicle_id = o.vehicle_id AND f.time = o.time"
    "                    AND f.kind = o.kind AND f.part = o.part)"
    "  ORDER BY o.vehicle_id, o.time, o.kind, o.part, r.time, r.kind, r.part) m"
    " WHERE a.vehicle_id = m.vehicle_id AND a.time = m.new_time AND a.kind = m.new_kind AND a.part = m.new_part"
    "   AND a.digest = m.digest"
).format(same=_SAME_KEY)
GONE: Final = sql.SQL(
    "CREATE TEMPORARY TABLE replay_gone AS"
    " SELECT DISTINCT ON (t.vehicle_id, t.time, t.kind, t.part) t.vehicle_id, t.time, t.kind, t.part, t.digest,"
    "        (t.time AT TIME ZONE 'UTC')::date AS day,"
    '        u.partition, u."offset", u.position, u.reason'
    " FROM replay_unreadable u JOIN vehicles v ON v.vin = u.vin"
    " JOIN telemetry t ON t.vehicle_id = v.vehicle_id AND t.received_at = u.received_at AND t.digest = u.digest"
    " WHERE t.time BETWEEN %(early)s AND %(late)s"
    "   AND NOT EXISTS (SELECT FROM replay_rows b WHERE {same})"
    ' ORDER BY t.vehicle_id, t.time, t.kind, t.part, u.partition, u."offset", u.position;'
    "CREATE INDEX ON replay_gone (day); ANALYZE replay_gone"
).format(same=_SAME_KEY)

COUNTS: Final = sql.SQL(
    "SELECT count(*) AS compared, {counts} FROM replay_best b JOIN telemetry t ON {same}"
    " AND t.digest = b.digest WHERE t.time BETWEEN %(first)s AND %(last)s"
).format(
    same=_SAME_KEY,
    counts=sql.SQL(", ").join(
        sql.SQL(
            "count(*) FILTER (WHERE t.{0} <> b.{0}), count(*) FILTER (WHERE t.{0} IS NULL AND b.{0} IS NOT NULL),"
            " count(*) FILTER (WHERE t.{0} IS NOT NULL AND b.{0} IS NULL)"
        ).format(sql.Identifier(name))
        for name in DECODED
    ),
)
_EXAMPLES: Final = sql.SQL(
    "SELECT v.vin, b.time, t.{0}, b.{0} FROM replay_changed c JOIN replay_best b USING (vehicle_id, time, kind, part)"
    " JOIN telemetry t ON {same} AND t.digest = b.digest JOIN vehicles v ON v.vehicle_id = b.vehicle_id"
    " WHERE t.time BETWEEN %(first)s AND %(last)s AND t.{0} IS DISTINCT FROM b.{0}"
    " ORDER BY b.time, v.vin, b.kind, b.part LIMIT %(most)s"
)


def examples(name: str) -> sql.Composed:
    """Rows in which a field differs, the earliest first."""
    return _EXAMPLES.format(sql.Identifier(name), same=_SAME_KEY)


ROWS: Final = """
    SELECT (SELECT count(*) FROM replay_best), (SELECT count(*) FROM replay_changed),
           (SELECT count(*) FROM replay_absent WHERE letter), (SELECT count(*) FROM replay_absent WHERE moved),
           (SELECT count(*) FROM replay_absent WHERE NOT letter AND NOT moved), (SELECT count(*) FROM replay_gone)
"""
REASONS: Final = """
    SELECT d.reason, r.became, count(*) FROM replay_readable r JOIN dead_letters d USING (partition, "offset", position)
    GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
"""

# -- applying a day -------------------------------------------------------------------------------------

FENCE: Final = "SELECT count(*) FROM (SELECT FROM journal_positions ORDER BY partition FOR UPDATE) p"
UPDATE: Final = sql.SQL(
    "UPDATE telemetry t SET {set} FROM replay_best b JOIN replay_changed c USING (vehicle_id, time, kind, part)"
    " WHERE c.day = %(day)s AND {same} AND t.digest = b.digest AND t.time >= %(begin)s AND t.time < %(end)s"
).format(
    same=_SAME_KEY, set=sql.SQL(", ").join(sql.SQL("{0} = b.{0}").format(sql.Identifier(name)) for name in DECODED)
)
MARK: Final = """
    WITH marked AS (
        UPDATE dead_letters d SET replayed_at = now() FROM replay_readable r
        WHERE r.day = %(day)s AND r.partition = d.partition AND r."offset" = d."offset" AND r.position = d.position
          AND d.requeued_at IS NULL AND d.replayed_at IS NULL
        RETURNING d.partition, d."offset", d.position
    ) INSERT INTO replay_marked SELECT * FROM marked
"""
PENDING_LETTERS: Final = """
    INSERT INTO replay_pending SELECT r.vehicle_id, r.time, r.kind, r.part, r.digest
    FROM replay_readable r JOIN replay_marked m USING (partition, "offset", position) WHERE r.became = 'rows'
"""
# The old row of a report that has moved, found by the frame's digest, so that a stranger in its place stays.
DELETE_MOVED: Final = """
    WITH moved AS (
        DELETE FROM telemetry t USING replay_absent a
        WHERE a.day = %(day)s AND a.moved AND t.vehicle_id = a.vehicle_id AND t.time = a.old_time
          AND t.kind = a.old_kind AND t.part = a.old_part AND t.digest = a.digest
        RETURNING a.vehicle_id, a.time, a.kind, a.part, a.digest
    ) INSERT INTO replay_pending SELECT * FROM moved RETURNING vehicle_id
"""
DELETE_GONE: Final = """
    WITH gone AS (
        DELETE FROM telemetry t USING replay_gone g
        WHERE g.day = %(day)s AND t.vehicle_id = g.vehicle_id AND t.time = g.time AND t.kind = g.kind
          AND t.part = g.part AND t.digest = g.digest AND t.time >= %(begin)s AND t.time < %(end)s
        RETURNING g.vehicle_id, g.partition, g."offset", g.position
    ), kept AS (
        INSERT INTO dead_letters (partition, "offset", position, received_at, reason, detail, door, codec, vin, peer,
                                  client, frame)
        SELECT u.partition, u."offset", u.position, u.received_at, u.reason, u.detail, u.door, u.codec, u.vin, u.peer,
               u.client, u.frame
        FROM replay_unreadable u JOIN gone USING (partition, "offset", position) ON CONFLICT DO NOTHING
    )
    SELECT vehicle_id, partition FROM gone
"""
# As COUNT_LATE of the sink: against what is stored, or else the first of them.
COUNT_PENDING: Final = """
    SELECT k.vehicle_id, journal_partition(v.vin, %(partitions)s),
           sum(k.n)::bigint, sum(k.n - k.d + same.n)::bigint,
           sum(k.d - CASE WHEN t.digest IS NULL THEN 1 ELSE same.n END)::bigint
    FROM (SELECT vehicle_id, time, kind, part, count(*) AS n, count(DISTINCT digest) AS d,
                 array_agg(DISTINCT digest) AS digests
          FROM replay_pending GROUP BY vehicle_id, time, kind, part) k
    JOIN vehicles v USING (vehicle_id)
    LEFT JOIN LATERAL (
        SELECT s.digest FROM telemetry s
        WHERE s.vehicle_id = k.vehicle_id AND s.time = k.time AND s.kind = k.kind AND s.part = k.part LIMIT 1
    ) t ON true
    CROSS JOIN LATERAL (SELECT coalesce((t.digest = ANY (k.digests))::integer, 0)) AS same (n)
    GROUP BY k.vehicle_id, v.vin
"""
_NAMES: Final = sql.SQL(", ").join(map(sql.Identifier, TELEMETRY))
INSERT: Final = sql.SQL(
    "INSERT INTO telemetry ({names}) SELECT {names} FROM replay_best b WHERE b.day = %(day)s AND ("
    "  EXISTS (SELECT FROM replay_pending p WHERE p.vehicle_id = b.vehicle_id AND p.time = b.time"
    "          AND p.kind = b.kind AND p.part = b.part AND p.digest = b.digest)"
    "  OR EXISTS (SELECT FROM replay_absent a WHERE a.day = %(day)s AND NOT a.moved AND NOT a.letter"
    "             AND a.vehicle_id = b.vehicle_id AND a.time = b.time AND a.kind = b.kind AND a.part = b.part))"
    " ORDER BY {key} ON CONFLICT ({key}) DO UPDATE SET {replace} WHERE excluded.digest < telemetry.digest"
    " RETURNING vehicle_id"
).format(
    names=_NAMES,
    key=sql.SQL(", ").join(map(sql.Identifier, KEY)),
    replace=sql.SQL(", ").join(
        sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in TELEMETRY if name not in KEY
    ),
)
# What an apply of the day may have changed, for the statistics: rather too much than too little, they look themselves.
STATISTICS: Final = """
    SELECT vehicle_id, extract(epoch FROM min(time))::bigint, extract(epoch FROM max(time))::bigint FROM (
        SELECT vehicle_id, time FROM replay_changed WHERE day = %(day)s
        UNION ALL SELECT vehicle_id, time FROM replay_pending
        UNION ALL SELECT vehicle_id, time FROM replay_absent WHERE day = %(day)s AND (NOT moved OR %(delete)s)
        UNION ALL SELECT vehicle_id, old_time FROM replay_absent WHERE day = %(day)s AND moved AND %(delete)s
        UNION ALL SELECT vehicle_id, time FROM replay_gone WHERE day = %(day)s AND %(delete)s
    ) r GROUP BY vehicle_id, (time AT TIME ZONE 'UTC')::date
"""
_STATE: Final = tuple(name for name in VEHICLE_STATE if name not in ("vehicle_id", "reports"))
_STATE_NAMES: Final = sql.SQL(", ").join(map(sql.Identifier, _STATE))
# Behind the fence: the newest row there is, and how many rows more or fewer.
RENEW_STATES: Final = sql.SQL(
    "INSERT INTO vehicle_state AS s (vehicle_id, {names}, reports)"
    " SELECT a.vehicle_id, {newest}, a.reports FROM unnest(%(ids)s::bigint[], %(reports)s::bigint[])"
    "   AS a (vehicle_id, reports)"
    " CROSS JOIN LATERAL (SELECT * FROM telemetry t WHERE t.vehicle_id = a.vehicle_id"
    "                     ORDER BY t.time DESC, t.kind DESC, t.part DESC LIMIT 1) t"
    " ORDER BY a.vehicle_id"
    " ON CONFLICT (vehicle_id) DO UPDATE SET {taken}, reports = s.reports + excluded.reports"
).format(
    names=_STATE_NAMES,
    newest=sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in _STATE),
    taken=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in _STATE),
)
FORGET_STATES: Final = """
    DELETE FROM vehicle_state s WHERE vehicle_id = ANY (%(ids)s)
    AND NOT EXISTS (SELECT FROM telemetry t WHERE t.vehicle_id = s.vehicle_id)
"""
# Without the fence: only where the state still is the rewritten row. A newer one that the pipeline has just
# written is seen once its lock is gone, and stays.
REFRESH_STATES: Final = sql.SQL(
    "UPDATE vehicle_state s SET {taken} FROM replay_changed c JOIN telemetry t"
    "  ON t.vehicle_id = c.vehicle_id AND t.time = c.time AND t.kind = c.kind AND t.part = c.part"
    " WHERE c.day = %(day)s AND t.time >= %(begin)s AND t.time < %(end)s"
    "   AND s.vehicle_id = t.vehicle_id AND s.time = t.time AND s.kind = t.kind AND s.part = t.part"
).format(taken=sql.SQL(", ").join(sql.SQL("{0} = t.{0}").format(sql.Identifier(name)) for name in _STATE))
