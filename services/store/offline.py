"""The offline rule: an episode for each registered vehicle from which nothing has come for long, until it reports.

It goes by the platform's clock and the arrival of the newest report.  It must never take the platform's own silence
for a vehicle's: after a pause of its own looking it first watches for a while.  Running it twice changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from schemas.alarms import SOURCE_ABSENCE
from schemas.statistics.rules import OFFLINE, RULE
from services.database import Connection, Line
from services.errors import StoreUnavailable

_TIMEOUT_S: Final = 120.0

_WATCH: Final = """
    INSERT INTO alarm_watch AS w (watching_since, looked_at) VALUES (%(now)s, %(now)s)
    ON CONFLICT (single) DO UPDATE SET looked_at = excluded.looked_at, watching_since =
        CASE WHEN w.looked_at < %(now)s - make_interval(secs => %(pause_s)s) THEN %(now)s ELSE w.watching_since END
    RETURNING watching_since
"""
_END: Final = """
    UPDATE alarm_episodes e SET revision = e.revision + 1, end_at = x.at,
        settled_on = (x.at AT TIME ZONE %(zone)s)::date
    FROM (
        SELECT o.episode_id, greatest(o.start_at, CASE WHEN s.received_at > o.start_at THEN s.received_at
                                                       ELSE %(now)s END) AS at
        FROM alarm_episodes o JOIN vehicles v USING (vehicle_id) LEFT JOIN vehicle_state s USING (vehicle_id)
        WHERE o.source = %(source)s AND o.settled_on IS NULL
          AND (s.received_at > o.start_at OR NOT v.registered OR v.retired_at IS NOT NULL OR v.upload <> 'periodic')
    ) x
    WHERE e.episode_id = x.episode_id AND e.settled_on IS NULL
"""
_RAISE: Final = """
    INSERT INTO alarm_episodes (vehicle_id, day, start_at, end_at, source, code, level, records, late, longitude_deg,
                                latitude_deg)
    SELECT v.vehicle_id, (s.received_at AT TIME ZONE %(zone)s)::date, s.received_at, s.received_at, %(source)s,
           %(code)s, %(level)s, 0, 0, s.longitude_deg, s.latitude_deg
    FROM vehicles v JOIN vehicle_state s USING (vehicle_id)
    WHERE v.registered AND v.retired_at IS NULL AND v.upload = 'periodic'
      AND s.received_at < %(now)s - make_interval(secs => %(after_s)s)
      AND NOT EXISTS (SELECT FROM alarm_episodes o WHERE o.vehicle_id = v.vehicle_id AND o.source = %(source)s
                      AND o.settled_on IS NULL)
    ORDER BY s.received_at, v.vehicle_id
    ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look did.  ``watching``: False while the rule does not raise because it has not watched long enough."""

    raised: int
    ended: int
    watching: bool


class OfflineRule:
    """One connection, opened when first needed."""

    def __init__(self, dsn: str, zone: str) -> None:
        self._line = Line(dsn, "nevstream offline rule", StoreUnavailable, _TIMEOUT_S)
        self._zone = zone

    async def look(self, after_h: float, *, grace_s: float, pause_s: float, now: datetime | None = None) -> Looked:
        """End and raise what is due.  Raises ``StoreUnavailable``.

        ``pause_s``: a look that comes later than this after the last one begins to watch anew, and nothing is
        raised for ``grace_s`` from then on.
        """
        now = now or datetime.now(UTC)
        rule = RULE[OFFLINE]
        given = {
            "now": now, "zone": self._zone, "after_s": after_h * 3600, "pause_s": pause_s,
            "source": SOURCE_ABSENCE, "code": rule.number, "level": rule.level,
        }  # fmt: skip

        async def run(connection: Connection) -> Looked:
            async with connection.transaction():
                row = await (await connection.execute(_WATCH, given)).fetchone()
                assert row is not None
                watching = (now - row[0]).total_seconds() >= grace_s
                ended = (await connection.execute(_END, given)).rowcount
                raised = (await connection.execute(_RAISE, given)).rowcount if watching else 0
            return Looked(raised, ended, watching)

        return await self._line.call(run)

    async def close(self) -> None:
        await self._line.close()
