"""Flawed signals, counted by UTC day: whole days at a time, from the rows as they are.

Counting as rows are stored was tried on paper and left: a late report can take the place of another, a replay
rewrites, a rate depends on the neighbour, and terminals that never have a value for some signal would add a line
per vehicle and signal to every transaction.  So the transaction only says that a day has changed
(``telemetry_days``), and a day whose number of changes is not the one it was counted with is counted again.
The counts are exact for that moment, and the table says which days have changed since.
"""

from __future__ import annotations

import logging
import time
from datetime import date
from functools import partial
from typing import Any, Final

from services.database import Connection, Line
from services.errors import StoreUnavailable

log = logging.getLogger(__name__)

_ONE_COUNTS: Final = (7236328, 4)
_TIMEOUT_S: Final = 6 * 3600.0  # a day is read whole: 20 s per million reports that carry every rated signal

_CHANGED: Final = """
    SELECT d.day FROM telemetry_days d LEFT JOIN signal_flaw_days c USING (day)
    GROUP BY d.day, c.changes HAVING c.changes IS DISTINCT FROM sum(d.changes) ORDER BY d.day DESC
"""
_COUNT: Final = """
    INSERT INTO signal_flaws (day, vehicle_id, signal, state, count)
    SELECT %(day)s, vehicle_id, signal, state, sum(count) FROM count_signal_flaws(%(day)s) GROUP BY 2, 3, 4
"""
_COUNTED: Final = """
    INSERT INTO signal_flaw_days (day, changes, reports)
    SELECT %(day)s, (SELECT sum(changes) FROM telemetry_days WHERE day = %(day)s),
           (SELECT count(*) FROM telemetry WHERE time >= %(day)s::timestamp AT TIME ZONE 'UTC'
                                             AND time < (%(day)s + 1)::timestamp AT TIME ZONE 'UTC')
    ON CONFLICT (day) DO UPDATE SET changes = excluded.changes, reports = excluded.reports, counted_at = now()
"""


class FlawCounter:
    """Counts the days that have changed.  One connection, opened when first needed."""

    def __init__(self, dsn: str) -> None:
        # sorts of a whole day: more memory than the default, for this one connection
        self._line = Line(dsn, "nevstream data quality", StoreUnavailable, _TIMEOUT_S, jit="off", work_mem="128MB")

    async def count(self) -> list[date]:
        """Count every day that has changed, newest first; returns them.  Raises ``StoreUnavailable``.

        Each is one transaction with one view of the database.  Where another process counts, nothing is done.
        """

        async def claim(connection: Connection) -> list[date]:
            (claimed,) = await _row(connection, "SELECT pg_try_advisory_lock(%s, %s)", _ONE_COUNTS)
            if not claimed:
                return []
            return [day for (day,) in await (await connection.execute(_CHANGED)).fetchall()]

        async def free(connection: Connection) -> None:
            await connection.execute("SELECT pg_advisory_unlock(%s, %s)", _ONE_COUNTS)

        days = await self._line.call(claim)
        if not days:
            await self._line.call(free)
            return days
        try:
            for day in days:
                begun = time.monotonic()
                await self._line.call(partial(_count_day, day))
                log.info("counted the flawed signals of %s in %.1f s", day, time.monotonic() - begun)
        finally:
            await self._line.call(free)
        return days

    async def close(self) -> None:
        await self._line.close()


async def _count_day(day: date, connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")  # rows and changes of one moment
        await connection.execute("DELETE FROM signal_flaws WHERE day = %s", [day])
        await connection.execute(_COUNT, {"day": day})
        await connection.execute(_COUNTED, {"day": day})


async def _row(connection: Connection, statement: str, values: tuple[Any, ...]) -> Any:
    row = await (await connection.execute(statement.encode(), values)).fetchone()
    assert row is not None
    return row
