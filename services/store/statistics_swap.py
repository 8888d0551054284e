"""One swap: hours, days and findings of a chunk of vehicles put in place of what stands there.

Within the caller's transaction.  A finding that heals keeps its id: of the rows that are replaced, the one of the same
vehicle (and of the same ``within`` columns) that overlaps it longest.  What comes out as it was is not written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg
from psycopg import sql

from schemas.statistics.measures import MEASURES, RANGE_BINS, TALLIES, TALLY_BEGIN, range_quantile_mv
from schemas.statistics.records import F64, I64
from schemas.statistics.sessions import FINDINGS, Finding
from schemas.statistics.work import FAR_S, FIRST_S, Checkpoint, DayRows, Flip, FoundRow, HourRows, Swap, Swapped
from services.store import statistics_statements as statements
from services.store.changes import write_changes

Connection = psycopg.Connection[Any]

_EPOCH: Final = date(1970, 1, 1)
_COPY_HEAD: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TAIL: Final = b"\xff\xff"
_INT4_OID: Final = 23
_NULL: Final = b"\xff\xff\xff\xff"
_INTERVALS: Final = slice(TALLY_BEGIN["interval_s"] + 1, TALLY_BEGIN["interval_s"] + 61)


def swap_days(connection: Connection, swap: Swap) -> Swapped:
    """Write ``swap``; see ``schemas.seams.StatisticsStore``."""
    connection.execute(
        statements.RANGES,
        [
            [r.vehicle_id for r in swap.ranges], [r.first for r in swap.ranges], [r.last for r in swap.ranges],
            [r.from_s for r in swap.ranges], [None if r.last is None else r.until_s for r in swap.ranges],
        ],
    )  # fmt: skip
    _copy(connection, "swap_hours", statements.HOUR_COLUMNS, _hour_rows(swap.hours))
    _copy(connection, "swap_days", statements.DAY_COLUMNS, _day_rows(swap.days, swap.layout))
    signs = [vehicle_id for (vehicle_id,) in connection.execute(statements.CHANGE_SIGNS).fetchall()]
    changed: set[date] = set()
    for statement in (statements.DELETE_HOURS, statements.UPSERT_HOURS):
        changed.update(day for (day,) in connection.execute(statement).fetchall())
    days = 0
    for statement in (statements.DELETE_DAYS, statements.UPSERT_DAYS):
        rows = connection.execute(statement).fetchall()
        days += len(rows)
        changed.update(day for (day,) in rows)
    for finding in FINDINGS:
        changed |= _Found(connection, finding, swap.findings.get(finding.table, [])).swap()
    _save_checkpoints(connection, swap.checkpoints)
    if swap.follow_ups:
        write_changes(connection, None, swap.follow_ups)
    flips: list[Flip] = []
    if swap.done:
        flips = _flip_signs(connection, sorted({*swap.judge, *signs}))
        connection.execute(statements.DONE, [swap.done])
    if changed:  # last: other workers touch the same days
        connection.execute(statements.MARK_DAYS, [sorted(changed)])
    return Swapped(days, signs, flips)


def _flip_signs(connection: Connection, vehicle_ids: list[int]) -> list[Flip]:
    """Judge the sign of the current of these vehicles' models, and of those without a model (3.2)."""
    if not vehicle_ids:
        return []
    rows = connection.execute(statements.FLIP_MODELS, [vehicle_ids]).fetchall()
    flips = [Flip(model, None, inverted, n, above) for model, inverted, n, above in rows]
    rows = connection.execute(statements.FLIP_VEHICLES, [vehicle_ids]).fetchall()
    flips += [Flip(None, vin, inverted, n, above) for vin, inverted, n, above in rows]
    if flips:
        of = [[flip.model for flip in flips], [flip.vin for flip in flips]]
        mark_for_rebuild(connection, connection.execute(statements.OF_FLIPPED, of).fetchall())
    return flips


def mark_for_rebuild(connection: Connection, rows: Iterable[tuple[int]]) -> None:
    """Tell that everything of these vehicles (a column of ids) has changed."""
    write_changes(connection, None, [(vehicle_id, FIRST_S, FAR_S) for (vehicle_id,) in rows])


def _save_checkpoints(connection: Connection, checkpoints: Mapping[int, Checkpoint | None]) -> None:
    kept = sorted((key, point) for key, point in checkpoints.items() if point is not None)
    if kept:
        connection.execute(
            statements.SAVE_CHECKPOINTS,
            [
                [key for key, _ in kept], [p.day for _, p in kept], [p.through_s for _, p in kept],
                [p.newest_s for _, p in kept], [p.layout for _, p in kept], [p.inverted for _, p in kept],
                [p.state for _, p in kept],
            ],
        )  # fmt: skip
    if forgotten := [key for key, point in checkpoints.items() if point is None]:
        connection.execute(statements.FORGET_CHECKPOINTS, [forgotten])


# -- hours and days, by COPY -------------------------------------------------------------------------------


def _copy(connection: Connection, table: str, columns: Sequence[str], rows: bytes) -> None:
    if not rows:
        return
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(_COPY_HEAD + rows + _COPY_TAIL)


@functools.cache
def _hour_type() -> np.dtype[Any]:
    values = [("size", ">i4"), ("value", ">f8")]
    return np.dtype(
        [("fields", ">i2"), ("vehicle_size", ">i4"), ("vehicle", ">i8"), ("hour_size", ">i4"), ("hour", ">i8"),
         ("day_size", ">i4"), ("day", ">i4"), ("values", values, (len(MEASURES),))]
    )  # fmt: skip


def _hour_rows(hours: HourRows) -> bytes:
    rows = np.zeros(len(hours.hour_s), _hour_type())
    rows["fields"] = len(statements.HOUR_COLUMNS)
    rows["vehicle_size"], rows["hour_size"], rows["day_size"] = 8, 8, 4
    rows["vehicle"], rows["hour"], rows["day"] = hours.vehicle_id, hours.hour_s, hours.day
    rows["values"]["size"] = 8
    rows["values"]["value"] = hours.values
    return rows.tobytes()


@functools.cache
def _day_type() -> np.dtype[Any]:
    big, small, real = [("size", ">i4"), ("value", ">i8")], [("size", ">i4"), ("value", ">i4")], ">f8"
    number = [("size", ">i4"), ("value", real)]
    tallies = [
        (tally.name, [("size", ">i4"), ("head", ">i4", (5,)), ("items", small, (tally.size,))]) for tally in TALLIES
    ]
    return np.dtype(
        [("fields", ">i2"), ("vehicle", big), ("day", small), ("first", big), ("last", big), ("edition", big),
         ("layout", big), ("numbers", number, (1 + len(statements.QUANTILES) + len(MEASURES),)), *tallies]
    )  # fmt: skip


def _day_rows(days: DayRows, layout: int) -> bytes:
    rows = np.zeros(len(days.day), _day_type())
    rows["fields"] = len(statements.DAY_COLUMNS)
    for column, size, values in (
        ("vehicle", 8, days.vehicle_id), ("day", 4, days.day), ("first", 8, days.first_s), ("last", 8, days.last_s),
        ("edition", 8, days.edition), ("layout", 8, layout),
    ):  # fmt: skip
        rows[column]["size"], rows[column]["value"] = size, values
    rows["numbers"]["size"] = 8
    numbers = rows["numbers"]["value"]
    numbers[:, 0] = _nominal(days.tallies)
    for i, (_, name, share) in enumerate(statements.QUANTILES):
        numbers[:, 1 + i] = _quantiles(days.tallies, name, share)
    numbers[:, 1 + len(statements.QUANTILES) :] = days.values
    for tally in TALLIES:
        begin, part = TALLY_BEGIN[tally.name], rows[tally.name]
        part["size"] = 20 + 8 * tally.size
        part["head"] = (1, 0, _INT4_OID, tally.size, 1)  # dimensions, has NULLs, type, length, first index
        part["items"]["size"] = 4
        part["items"]["value"] = np.minimum(days.tallies[:, begin : begin + tally.size], 0x7FFF_FFFF)
    size = rows.dtype.itemsize
    fixed = rows.tobytes()
    pieces: list[bytes] = []
    for i, carry in enumerate(days.carry):
        pieces.append(fixed[i * size : (i + 1) * size])
        pieces.append(_NULL if carry is None else len(carry).to_bytes(4, "big") + carry)
    return b"".join(pieces)


def _nominal(tallies: I64) -> F64:
    """The most frequent interval of each day, the smallest of equals; NaN when there is none of 1 to 60 s."""
    counts = tallies[:, _INTERVALS]
    return np.where(counts.any(axis=1), counts.argmax(axis=1) + 1.0, np.nan)


def _quantiles(tallies: I64, tally: str, share: float) -> list[float]:
    begin = TALLY_BEGIN[tally]
    found = []
    for counts in tallies[:, begin : begin + RANGE_BINS]:
        value = range_quantile_mv(counts.tolist(), share) if counts.any() else None
        found.append(math.nan if value is None else float(value))
    return found


# -- findings ----------------------------------------------------------------------------------------------


class _Found:
    """The rows of one table: what was found now against what stands there."""

    def __init__(self, connection: Connection, finding: Finding, found: list[FoundRow]) -> None:
        self._connection, self._finding, self._found = connection, finding, found
        self._within = [[name for name, _ in finding.columns].index(name) for name in finding.within]
        self._sessions = finding.id is not None

    def swap(self) -> set[date]:
        """Returns the local days on which something has changed."""
        select, insert, update, delete = _finding_statements(self._finding)
        old = self._connection.execute(select, binary=True).fetchall()
        if not old and not self._found:
            return set()
        rows = [self._row(found) for found in self._found]
        pairs = self._matched(old, rows)
        changed: set[date] = set()
        inserts, updates = [], []
        for place, row in enumerate(rows):
            before = pairs.get(place)
            if before is None:
                inserts.append(row)
                changed.add(row[1])
            elif tuple(row) != tuple(before[1:]):
                updates.append((*row[1:], before[0]) if self._sessions else (*row[1:], *self._key(row)))
                changed.update((row[1], before[2]))
        kept = {id(before) for before in pairs.values()}
        gone = [row for row in old if id(row) not in kept]
        changed.update(row[2] for row in gone)
        with self._connection.cursor() as cursor:
            if gone:
                keys = [(row[0],) for row in gone] if self._sessions else [self._key(row[1:]) for row in gone]
                cursor.executemany(delete, keys)
            if updates:
                cursor.executemany(update, updates)
            if inserts:
                cursor.executemany(insert, inserts)
        if self._finding.table == "charges" and changed:
            touched = [*rows, *(row[1:] for row in old)]
            months = sorted({(row[0], row[1].replace(day=1)) for row in touched if row[1] in changed})
            self._connection.execute(statements.CAPACITY, [[v for v, _ in months], [m for _, m in months]])
        return changed

    def _row(self, found: FoundRow) -> list[Any]:
        """vehicle_id, day, settled_on, columns, as the table has them."""
        values: list[Any] = [found.vehicle_id, _date(found.day), _date(found.settled_on)]
        for (name, kind), value in zip(self._finding.columns, found.values, strict=False):
            if math.isnan(value):
                values.append(None)
            elif name.endswith("_s") and kind == "timestamptz":
                values.append(datetime.fromtimestamp(value, UTC))
            elif kind == "double precision":
                values.append(value)
            else:
                values.append(int(value))
        return values

    def _key(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return (row[0], row[1], *(row[3 + i] for i in self._within))

    def _matched(self, old: list[tuple[Any, ...]], rows: list[list[Any]]) -> dict[int, tuple[Any, ...]]:
        """Place in ``rows`` → the old row that it goes on from."""
        if not self._sessions:
            by_key = {self._key(row[1:]): row for row in old}
            return {place: by_key[key] for place, row in enumerate(rows) if (key := self._key(row)) in by_key}
        groups: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        for before in old:
            groups.setdefault((before[1], *(before[4 + i] for i in self._within)), []).append(before)
        overlaps = []
        for place, row in enumerate(rows):
            for before in groups.get((row[0], *(row[3 + i] for i in self._within)), ()):
                overlap = (min(row[4], before[5]) - max(row[3], before[4])).total_seconds()
                if overlap >= 0:
                    overlaps.append((-overlap, abs((row[3] - before[4]).total_seconds()), before[0], place, before))
        matched: dict[int, tuple[Any, ...]] = {}
        taken: set[int] = set()
        for _, _, key, place, before in sorted(overlaps, key=lambda one: one[:4]):
            if place not in matched and key not in taken:
                matched[place] = before
                taken.add(key)
        return matched


def _date(day: int | None) -> date | None:
    return None if day is None else _EPOCH + timedelta(days=day)


@functools.cache
def _finding_statements(finding: Finding) -> tuple[str, str, str, str]:
    """SELECT of what the ranges replace, INSERT, UPDATE, DELETE."""
    names = ["vehicle_id", "day", "settled_on", *map(_column, finding.columns)]
    key = finding.id or "vehicle_id"
    if finding.id is not None:
        where = f"{finding.id} = %s"
        revised = ", revision = revision + 1"
    else:
        within = [_column(column) for column in finding.columns if column[0] in finding.within]
        where = " AND ".join(f"{name} = %s" for name in ("vehicle_id", "day", *within))
        revised = ""
    table = finding.table
    select = (
        f"SELECT t.{key}, {', '.join(f't.{name}' for name in names)} FROM swap_ranges r JOIN {table} t"  # noqa: S608
        " ON t.vehicle_id = r.vehicle_id AND coalesce(t.settled_on, 'infinity'::date) >= r.first"
        " AND (CASE WHEN t.settled_on IS NULL THEN r.open ELSE t.settled_on <= r.last END)"
    )
    if finding.table == "alarm_episodes":  # absences are the offline rule's: no fold finds them again
        select += " AND t.source <> 3"
    insert = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))})"  # noqa: S608
    update = f"UPDATE {table} SET {', '.join(f'{name} = %s' for name in names[1:])}{revised} WHERE {where}"  # noqa: S608
    return select, insert, update, f"DELETE FROM {table} WHERE {where}"  # noqa: S608


def _column(column: tuple[str, str]) -> str:
    name, kind = column
    return name[:-2] + "_at" if kind == "timestamptz" and name.endswith("_s") else name
