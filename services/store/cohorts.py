"""Keeps the cohorts' figures in step with the vehicles' days: whole periods at a time, each in one transaction.

``statistics_days`` says how often a day's statistics have changed; a day whose number is not the one it was made from
is made anew, then the weeks, months and years it lies in, from days and months.  So whatever order changes come in, the
tables end as if made once, and ``cohort_counted.computed_at`` says of when they are.  It reads what the statistics
worker has written, never telemetry, and writes nothing that anyone else writes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from functools import partial
from itertools import combinations
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from schemas.statistics.cohorts import DAY, DIMENSIONS, MONTH, WEEK, YEAR
from schemas.statistics.sketch import grouped, merged
from schemas.statistics.windows import end_of
from services.database import Connection, Line
from services.errors import StoreUnavailable
from services.store import cohort_statements as statements
from services.store.fleet import PAIRED

log = logging.getLogger(__name__)

_ONE_AGGREGATES: Final = (7236328, 5)
_TIMEOUT_S: Final = 6 * 3600.0  # a day of a million vehicles is minutes of sums
STATE: Final = "S"  # span of cohort_counted for cohort_state

Made = tuple[str, date]


class Cohorts:
    """Brings the cohorts' tables up to date.  One connection, opened when first needed; ``zone``: the fleet's."""

    def __init__(self, dsn: str, zone: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        # Sums over a whole day: more memory than the default, for this one connection. Of rows that it has just written
        # the planner knows nothing and takes them for a few: a loop over them would be vehicles × vehicles.
        self._line = Line(
            dsn, "nevstream cohorts", StoreUnavailable, _TIMEOUT_S, jit="off", work_mem="256MB", enable_nestloop="off"
        )
        self._zone = ZoneInfo(zone)
        self._now = now
        self._known: tuple[int, int] | None = None  # vehicles: how many, newest id, when last looked through

    async def aggregate(self, most: int | None = None) -> list[Made]:
        """Make up to ``most`` periods that are behind (None: all), newest first; returns (span, first day) of each.

        Raises ``StoreUnavailable``.  Where another process does it, nothing is done.
        """
        if not await self._line.call(_claim):
            return []
        made: list[Made] = []
        try:
            today = self._now().astimezone(self._zone).date()
            moved = await self._line.call(self._groups)
            joined = False
            for (day,) in (await self._rows(statements.STALE_DAYS))[:most]:
                joined |= await self._timed(DAY, day, self._day, made)
            for (day,) in await self._rows("SELECT DISTINCT day FROM cohort_handled ORDER BY day DESC"):
                await self._timed(DAY, day, self._handled, made)
            if moved or joined:
                await self._line.call(_access)
            for day, wanted in await self._rows(statements.STALE_STATES, today=today):
                await self._timed(STATE, day, partial(self._state, wanted=wanted), made)
            for span, start, wanted in await self._rows(statements.STALE_PERIODS):
                await self._timed(span, start, partial(self._period, span=span, wanted=wanted), made)
        finally:
            await self._line.call(_free)
        return made

    async def close(self) -> None:
        await self._line.close()

    async def _rows(self, query: str, **given: Any) -> list[tuple[Any, ...]]:
        async def read(connection: Connection) -> list[tuple[Any, ...]]:
            return await (await connection.execute(query.encode(), given)).fetchall()

        return await self._line.call(read)

    async def _timed(
        self, span: str, start: date, make: Callable[..., Awaitable[bool]], made: list[Made]
    ) -> bool:  # fmt: skip
        begun = time.monotonic()
        changed = await self._line.call(partial(make, start))
        made.append((span, start))
        log.info("made %s %s of the cohorts in %.1f s", span, start, time.monotonic() - begun)
        return changed

    # -- who there is ----------------------------------------------------------------------------------
    async def _groups(self, connection: Connection) -> bool:
        """Look vehicles up again where something says that they have changed; whether any has."""
        async with connection.transaction():
            touched = (await connection.execute(b"DELETE FROM cohort_touched")).rowcount
            row = await (
                await connection.execute(
                    b"SELECT (SELECT coalesce(max(vehicle_id), 0) FROM vehicles), "
                    b"(SELECT coalesce(sum(changes), 0)::bigint FROM statistics_days)"
                )
            ).fetchone()
            if not touched and row == self._known:
                return False
            await _save_groups(connection, self._zone.key)
            changes = (await connection.execute(b"SELECT count(*) FROM group_changes")).fetchone
            found = await changes()
        self._known = row
        return bool(found and found[0])

    # -- periods ---------------------------------------------------------------------------------------
    async def _day(self, day: date, connection: Connection) -> bool:
        """Make a day; whether it is the first one of some vehicle."""
        given = {"day": day, "zone": self._zone.key}
        async with connection.transaction():
            await _snapshot(connection)
            row = await (
                await connection.execute(
                    b"SELECT (SELECT changes FROM statistics_days WHERE day = %(day)s), "
                    b"EXISTS (SELECT FROM vehicle_day d LEFT JOIN vehicle_groups g USING (vehicle_id) "
                    b"WHERE d.day = %(day)s AND g.vehicle_id IS NULL)",
                    given,
                )
            ).fetchone()
            assert row is not None
            if row[1]:
                await _save_groups(connection, self._zone.key)
            first = (await connection.execute(statements.FIRST_DAYS.encode(), given)).rowcount > 0
            await _forget(connection, DAY, day, ("vehicle_brief", "cohort_period", "cohort_spread", "group_spread"))
            await connection.execute(b"DELETE FROM cohort_handled WHERE day = %(day)s", given)
            for text in (
                statements.BRIEF, statements.DAY, *statements.SESSIONS, statements.DAY_SPREADS, statements.HANDLING,
            ):  # fmt: skip
                await connection.execute(text.encode(), given)
            await join_groups(connection, DAY, day)
            await _counted(connection, DAY, day, row[0])
        return bool(first or row[1])

    async def _handled(self, day: date, connection: Connection) -> bool:
        """Make the handling of a day's alarms anew, and nothing else of it."""
        spreads = list(statements.HANDLING_IDS)
        given = {"day": day, "zone": self._zone.key, "spreads": spreads}
        async with connection.transaction():
            await _snapshot(connection)
            await connection.execute(b"DELETE FROM cohort_handled WHERE day = %(day)s", given)
            for table in (b"cohort_spread", b"group_spread"):
                await connection.execute(
                    b"DELETE FROM " + table + b" WHERE span = 'D' AND start = %(day)s AND spread = ANY(%(spreads)s)",
                    given,
                )
            await connection.execute(statements.HANDLING.encode(), given)
            await join_groups(connection, DAY, day, spreads)
            await connection.execute(
                b"UPDATE cohort_counted SET builds = builds + 1 WHERE span = 'D' AND start = %(day)s", given
            )
        return False

    async def _state(self, day: date, connection: Connection, *, wanted: int) -> bool:
        given = {"day": day}
        async with connection.transaction():
            await _snapshot(connection)
            await connection.execute(b"DELETE FROM cohort_state WHERE day = %(day)s", given)
            await connection.execute(statements.STATE.encode(), given)
            await _counted(connection, STATE, day, wanted)
        return False

    async def _period(self, start: date, connection: Connection, *, span: str, wanted: int) -> bool:
        """Make a week, month or year from its days or months."""
        given: dict[str, Any] = {
            "span": span, "start": start, "end": end_of(span, start), "part": MONTH if span == YEAR else DAY,
        }  # fmt: skip
        async with connection.transaction():
            await _snapshot(connection)
            await _forget(connection, span, start, ("vehicle_brief", "cohort_period", "cohort_spread", "group_spread"))
            await connection.execute(statements.PERIOD_VEHICLES.encode(), given)
            await connection.execute(b"ANALYZE period_vehicles")
            if span == MONTH:
                await connection.execute(statements.BRIEF_MONTH.encode(), given)
            await connection.execute(statements.PERIOD.encode(), given)
            await connection.execute(statements.VEHICLE_SPREADS.encode(), given)
            if span == WEEK:
                await connection.execute(b"DELETE FROM vehicle_checks WHERE week = %(start)s", given)
                for text in (
                    statements.WEEK_CHECKS, statements.FAILING, statements.PASSED, statements.CHECK_SPREADS,
                ):  # fmt: skip
                    await connection.execute(text.encode(), given)
            for spread in statements.MERGED_IDS:
                await _merge(connection, {**given, "spread": spread})
            await join_groups(connection, span, start)
            await _counted(connection, span, start, wanted)
        return False


async def _claim(connection: Connection) -> bool:
    row = await (await connection.execute(b"SELECT pg_try_advisory_lock(%s, %s)", _ONE_AGGREGATES)).fetchone()
    return bool(row and row[0])


async def _free(connection: Connection) -> None:
    await connection.execute(b"SELECT pg_advisory_unlock(%s, %s)", _ONE_AGGREGATES)


async def _snapshot(connection: Connection) -> None:
    """Days, sessions and what they are counted from, of one moment."""
    await connection.execute(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


async def _save_groups(connection: Connection, zone: str) -> None:
    """What the registry knows, compared with what was known: differences saved, the days they change marked."""
    await connection.execute(statements.NEW_FACTS.encode())
    await connection.execute(statements.GROUP_CHANGES.encode(), {"zone": zone})
    for text in (statements.SAVE_GROUPS, statements.REMAKE_DAYS, statements.REMAKE_STATES):
        await connection.execute(text.encode())


async def _access(connection: Connection) -> None:
    """Who joined and retired when, again."""
    async with connection.transaction():
        for text in (statements.ACCESS_NOW, statements.ACCESS_DROP, statements.ACCESS_ADD):
            await connection.execute(text.encode())


async def _forget(connection: Connection, span: str, start: date, tables: tuple[str, ...]) -> None:
    for table in tables:
        await connection.execute(f"DELETE FROM {table} WHERE span = %s AND start = %s".encode(), [span, start])  # noqa: S608


async def _counted(connection: Connection, span: str, start: date, changes: int | None) -> None:
    await connection.execute(
        statements.COUNTED.encode(), {"span": span, "start": start, "changes": -1 if changes is None else changes}
    )


async def _merge(connection: Connection, given: dict[str, Any]) -> None:
    """One distribution of the parts of a period, joined by cohort."""
    cursor = await connection.execute(statements.PARTS.encode(), given, binary=True)
    parts = await cursor.fetchall()
    joined = await asyncio.to_thread(_shorter, parts)
    async with (
        connection.cursor() as writing,
        writing.copy(b"COPY cohort_spread (span, start, spread, cohort_id, counts) FROM STDIN") as copy,
    ):
        for cohort, counts in joined:
            await copy.write_row((given["span"], given["start"], given["spread"], cohort, counts))


def _shorter(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows whose last value is a distribution, with each bin once."""
    return [(*key, merged(counts)) for *key, counts in rows]


class _Grouping(NamedTuple):
    """Cohorts by the values of some dimensions: ``group`` of each cohort, and what each group's values are."""

    dimension: str
    values: list[str]
    group: NDArray[np.int64]


def _groupings(cohorts: list[tuple[Any, ...]], most: int) -> list[_Grouping]:
    found = []
    for places in [places for size in range(most + 1) for places in combinations(range(len(DIMENSIONS)), size)]:
        values = [chr(31).join(facts[place] for place in places) for _, *facts in cohorts]
        number = {value: n for n, value in enumerate(sorted(set(values)))}
        dimension = ",".join(DIMENSIONS[place] for place in places)
        found.append(_Grouping(dimension, list(number), np.array([number[value] for value in values], np.int64)))
    return found


def _grouped(
    cohorts: list[tuple[Any, ...]], groupings: list[_Grouping], rows: list[tuple[int, bytes]]
) -> list[tuple[str, str, bytes]]:
    """(dimension, value, counts) of one distribution."""
    place = {cohort: n for n, (cohort, *_) in enumerate(cohorts)}
    kept = [(place[cohort], counts) for cohort, counts in rows if cohort in place]
    at = np.array([n for n, _ in kept], np.int64)
    counts = [each for _, each in kept]
    return [
        (grouping.dimension, value, joined)
        for grouping in groupings
        for value, joined in zip(
            grouping.values, grouped(counts, grouping.group[at], len(grouping.values)), strict=True
        )
        if joined
    ]


async def join_groups(connection: Connection, span: str, start: date, spreads: list[int] | None = None) -> None:
    """The period's distributions, or some of them, for the whole fleet, by each dimension, and by pairs of them."""
    given: dict[str, Any] = {"span": span, "start": start, "spreads": spreads}
    cohorts = await (await connection.execute(statements.PERIOD_COHORTS.encode(), given)).fetchall()
    groupings = _groupings(cohorts, 1 if span == DAY else PAIRED)
    for (spread,) in await (await connection.execute(statements.PERIOD_SPREADS.encode(), given)).fetchall():
        cursor = await connection.execute(statements.PERIOD_COUNTS.encode(), {**given, "spread": spread}, binary=True)
        joined = await asyncio.to_thread(_grouped, cohorts, groupings, await cursor.fetchall())
        async with (
            connection.cursor() as writing,
            writing.copy(b"COPY group_spread (span, start, spread, dimension, value, counts) FROM STDIN") as copy,
        ):
            for dimension, value, counts in joined:
                await copy.write_row((span, start, spread, dimension, value, counts))
