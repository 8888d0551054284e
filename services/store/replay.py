"""A replay against what is stored: staged in temporary tables, compared, and on request applied day by day.

Comparing writes nothing but temporary tables.  Applying is one transaction per UTC day of collection time, so
whatever ends it leaves whole days, old or new.  It must never touch journal positions, and never doubles or loses
what the pipeline stores meanwhile:

* A row is rewritten only where vehicle, time, kind, part **and digest** are those of the frame that was decoded
  again: a contradicting report that has taken its place meanwhile stays.  ``received_at`` and ``door`` stay.
* Rows come and go, and the ledger moves, only behind the fence that the pipeline's own commits pass: its rows of
  ``journal_positions``, taken first and in order.  Days on which rows only change need no fence.

frames = rows + duplicates + conflicts + rejected + sessions + other holds in the ledger before and after: a dead
letter that is read moves from ``rejected``, a row that is deleted moves to it and becomes a dead letter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.errors import DeadlockDetected

from schemas.batch import Login
from schemas.replayed import Redecoded
from schemas.seams import KnownVehicles, LetterId
from services.database import AWAY, KEEPALIVE, session_options
from services.errors import StoreUnavailable, UsageError
from services.settings import Settings
from services.store import replay_statements, statements
from services.store.changes import LOGOUT, LOGOUT_AFTER_S, Entry, write_changes
from services.store.columns import LEDGER
from services.store.postgres import known_vehicles, login_columns

log = logging.getLogger(__name__)
Connection = psycopg.Connection[Any]

EXAMPLES_MAX: Final = 3
_TRIES: Final = 5  # a day that met the pipeline in a circle of locks
_PIECE_BYTES: Final = 1 << 20
_ONE_APPLIES: Final = (7236328, 3)


@dataclass(frozen=True, slots=True)
class FieldDiff:
    """One field: rows in which its value is another, is there where none was, is gone; examples of each kind."""

    field: str
    changed: int
    new: int
    gone: int
    examples: Sequence[tuple[str, datetime, Any, Any]]  # VIN, time, stored, decoded now


@dataclass(frozen=True, slots=True)
class Diff:
    """Stored rows against the frames decoded again.

    decoded: rows that the frames make · compared: of these, stored from the same frame · changed: of these,
    different · from_letters: rows out of dead letters · moved: stored under another time, kind or part · restored:
    not stored at all · gone: stored, and refused now · letters: (reason code, what it becomes) → dead letters.
    """

    decoded: int
    compared: int
    changed: int
    from_letters: int
    moved: int
    restored: int
    gone: int
    fields: Sequence[FieldDiff]
    letters: Mapping[tuple[int, str], int]

    @property
    def same(self) -> bool:
        return not (self.changed or self.from_letters or self.moved or self.restored or self.gone or self.letters)


@dataclass(slots=True)
class DayApplied:
    """What the transaction of one day did; ``letters`` are dead letters that are read now."""

    day: date
    updated: int = 0
    inserted: int = 0
    deleted: int = 0
    letters: int = 0
    duplicates: int = 0
    conflicts: int = 0


@dataclass(slots=True)
class _Moves:
    """What a day adds to the ledger's lines and to the vehicles' report counts."""

    ledger: dict[int, dict[str, int]] = field(default_factory=dict)
    reports: dict[int, int] = field(default_factory=dict)

    def book(self, partition: int, name: str, n: int) -> None:
        line = self.ledger.setdefault(partition, dict.fromkeys(LEDGER, 0))
        line[name] += n

    def report(self, vehicle_id: int, n: int) -> None:
        self.reports[vehicle_id] = self.reports.get(vehicle_id, 0) + n


class ReplayStore:
    """One connection that stages a replay, compares it and applies it.  Not for use beside an event loop's work."""

    def __init__(self, dsn: str, settings: Settings) -> None:
        self._partitions = settings.journal.partitions
        self._past = timedelta(days=settings.pipeline.clock_past_max_days)
        self._future = timedelta(seconds=settings.pipeline.clock_future_max_s)
        self._logins: dict[LetterId, Login] = {}
        self._range: dict[str, Any] = {}
        try:
            self._connection = psycopg.connect(
                dsn, autocommit=True, connect_timeout=max(1, round(settings.database.connect_timeout_s)),
                application_name="nevstream replay", options=session_options(dsn, jit="off", TimeZone="UTC"),
                **KEEPALIVE,
            )  # fmt: skip
            self._connection.execute(replay_statements.TABLES, prepare=False)
        except AWAY as error:
            raise StoreUnavailable(f"the database is away (nevstream replay): {str(error).strip()}") from error

    def close(self) -> None:
        self._connection.close()

    def positions(self) -> dict[int, int]:
        """How far each partition is stored: what lies beyond is the pipeline's to decode."""
        return dict(self._connection.execute('SELECT partition, "offset" FROM journal_positions').fetchall())

    def known_vehicles(self) -> KnownVehicles:
        return known_vehicles(self._connection)

    def letters(self, since: datetime, until: datetime, vin: str | None) -> tuple[dict[LetterId, bool], list[LetterId]]:
        """Dead letters that arrived in [since, until) → still open; and where requeued ones lie the second time."""
        rows = self._connection.execute(
            'SELECT partition, "offset", position, requeued_at IS NULL AND replayed_at IS NULL, requeued_as'
            " FROM dead_letters WHERE received_at >= %s AND received_at < %s AND (%s::text IS NULL OR vin = %s)",
            [since, until, vin, vin],
        ).fetchall()
        again = [tuple(map(int, row[4].split("-"))) for row in rows if row[4] is not None]
        return {(row[0], row[1], row[2]): row[3] for row in rows}, [(a, b, c) for a, b, c in again]

    def stage(self, batch: Redecoded) -> None:
        """Keep one batch in the temporary tables."""
        connection = self._connection
        with connection.transaction(), connection.cursor() as cursor:
            if batch.new:
                cursor.executemany(
                    "INSERT INTO replay_new VALUES (%s, %s) ON CONFLICT DO NOTHING", list(batch.new.items())
                )
            if batch.rows is not None and batch.rows.rows:
                statement = sql.SQL("COPY replay_rows ({}) FROM STDIN (FORMAT BINARY)").format(
                    sql.SQL(", ").join(map(sql.Identifier, batch.rows.columns))
                )
                data = memoryview(batch.rows.data)
                with cursor.copy(statement) as copy:
                    for at in range(0, len(data), _PIECE_BYTES):
                        copy.write(data[at : at + _PIECE_BYTES])
            if batch.readable:
                with cursor.copy("COPY replay_readable FROM STDIN") as copy:
                    for one in batch.readable:
                        time, kind, part = one.key or (None, None, None)
                        when = datetime.fromtimestamp(time, UTC) if time is not None else None
                        day = (when or (one.login.time if one.login else one.received)).astimezone(UTC).date()
                        copy.write_row(
                            (*one.letter, one.became, one.received, one.vehicle_id, when, kind, part, one.digest, day)
                        )
                        if one.login is not None:
                            self._logins[one.letter] = one.login
            if batch.unreadable:
                with cursor.copy(
                    'COPY replay_unreadable (partition, "offset", position, received_at, reason, detail, door, codec,'
                    " vin, peer, client, frame, digest) FROM STDIN"
                ) as copy:
                    for lost in batch.unreadable:
                        a = lost.letter
                        copy.write_row(
                            (a.partition, a.offset, a.position, a.received, a.reason, a.detail, a.door, a.codec,
                             a.vin, a.peer, a.client, a.frame, lost.digest)
                        )  # fmt: skip

    def register(self) -> int:
        """Make vehicles of the staged strangers, for an apply; returns how many."""
        connection = self._connection
        with connection.transaction():
            strangers = dict(connection.execute("SELECT vin, vehicle_id FROM replay_new").fetchall())
            if not strangers:
                return 0
            vins = list(strangers)
            connection.execute(statements.REGISTER, [vins])
            ids = [row[0] for row in connection.execute(statements.VEHICLE_IDS, [vins]).fetchall()]
            for table in ("replay_rows", "replay_readable"):
                connection.execute(
                    sql.SQL(
                        "UPDATE {} r SET vehicle_id = n.id FROM unnest(%s::bigint[], %s::bigint[]) AS n (old, id)"
                        " WHERE r.vehicle_id = n.old"
                    ).format(sql.Identifier(table)),
                    [list(strangers.values()), ids],
                )
        return len(strangers)

    def compare(self, since: datetime, until: datetime) -> Diff:
        """Compare what was staged with what is stored; call it once, after the last ``stage``."""
        connection = self._connection
        self._run(replay_statements.BEST)
        bounds = connection.execute("SELECT min(time), max(time) FROM replay_best").fetchone()
        assert bounds is not None
        slack = timedelta(days=2)
        self._range = {
            "first": bounds[0] or since, "last": bounds[1] or until,
            "early": min(bounds[0] or since, since - self._past) - slack,
            "late": max(bounds[1] or until, until + self._future) + slack,
        }  # fmt: skip
        for statement in (replay_statements.CHANGED, replay_statements.ABSENT, replay_statements.GONE):
            self._run(statement)
        with connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            counted = connection.execute(replay_statements.COUNTS, self._range).fetchone()
            rows = connection.execute(replay_statements.ROWS).fetchone()
            assert counted is not None
            assert rows is not None
            fields = []
            for index, name in enumerate(replay_statements.DECODED):
                changed, new, gone = counted[1 + 3 * index : 4 + 3 * index]
                if changed or new or gone:
                    examples = connection.execute(
                        replay_statements.examples(name), {**self._range, "most": EXAMPLES_MAX}
                    ).fetchall()
                    fields.append(FieldDiff(name, changed, new, gone, [tuple(row) for row in examples]))
            letters = {(row[0], row[1]): row[2] for row in connection.execute(replay_statements.REASONS).fetchall()}
        decoded, changed, from_letters, moved, restored, gone = rows
        return Diff(decoded, counted[0], changed, from_letters, moved, restored, gone, fields, letters)

    def days(self, *, delete: bool) -> list[date]:
        """Days that an apply has something to do for."""
        found = self._connection.execute(
            "SELECT day FROM replay_changed UNION SELECT day FROM replay_readable"
            " UNION SELECT day FROM replay_absent WHERE NOT moved OR %(delete)s"
            " UNION SELECT day FROM replay_gone WHERE %(delete)s ORDER BY 1",
            {"delete": delete},
        ).fetchall()
        return [day for (day,) in found]

    def claim(self) -> None:
        """Be the only replay that applies.  Raises ``UsageError``."""
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s, %s)", _ONE_APPLIES).fetchone()
        if row is None or not row[0]:
            raise UsageError("another replay is being applied to this database: wait for it to end")

    def apply(self, day: date, *, delete: bool) -> DayApplied:
        """Rewrite one day in one transaction.  Call :meth:`claim` and :meth:`compare` before."""
        begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
        given = {
            "day": day, "begin": begin, "end": begin + timedelta(days=1), "delete": delete,
            "partitions": self._partitions,
        }  # fmt: skip
        self._connection.execute("SELECT ensure_telemetry_days(%s, %s)", [day, day])
        for attempt in range(1, _TRIES + 1):
            try:
                with self._connection.transaction():
                    return self._apply(given)
            except DeadlockDetected:
                if attempt == _TRIES:
                    raise
                log.info("%s and the pipeline waited for each other; beginning the day again", day)
        raise AssertionError("unreachable")

    def _apply(self, given: Mapping[str, Any]) -> DayApplied:
        connection, done, moves = self._connection, DayApplied(given["day"]), _Moves()
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM replay_readable WHERE day = %(day)s)"
            " OR EXISTS (SELECT FROM replay_absent WHERE day = %(day)s AND (NOT moved OR %(delete)s))"
            " OR (%(delete)s AND EXISTS (SELECT FROM replay_gone WHERE day = %(day)s))",
            given,
        ).fetchone()
        assert row is not None
        fenced = row[0]
        if fenced:
            connection.execute(replay_statements.FENCE)
        done.updated = connection.execute(replay_statements.UPDATE, given).rowcount
        if fenced:
            connection.execute("TRUNCATE replay_marked, replay_pending")
            self._read_letters(given, done, moves)
            if given["delete"]:
                self._delete(given, done, moves)
            for vehicle_id, partition, n, duplicates, conflicts in connection.execute(
                replay_statements.COUNT_PENDING, given
            ).fetchall():
                moves.book(partition, "rows", n - duplicates - conflicts)
                moves.book(partition, "duplicates", duplicates)
                moves.book(partition, "conflicts", conflicts)
                moves.report(vehicle_id, n - duplicates - conflicts)
                done.duplicates += duplicates
                done.conflicts += conflicts
            written = connection.execute(replay_statements.INSERT, given).fetchall()
            done.inserted = len(written)
            for (vehicle_id,) in written:
                moves.report(vehicle_id, 0)
        connection.execute(replay_statements.REFRESH_STATES, given)
        connection.execute(statements.MARK_DAYS, [[given["day"]], [-1]])
        if moves.reports:
            ids = sorted(moves.reports)
            reports = [moves.reports[key] for key in ids]
            connection.execute(replay_statements.RENEW_STATES, {"ids": ids, "reports": reports})
            connection.execute(replay_statements.FORGET_STATES, {"ids": ids})
        if moves.ledger:
            lines = sorted(moves.ledger.items())
            columns = [[key for key, _ in lines], *([line[name] for _, line in lines] for name in LEDGER)]
            connection.execute(statements.ADD_TO_LEDGER, columns)
        changed = connection.execute(replay_statements.STATISTICS, given).fetchall()
        write_changes(connection, None, [*changed, *self._logouts()])
        return done

    def _logouts(self) -> list[Entry]:
        """Logouts among the letters of the day that were read, with the ids that their vehicles have now."""
        rows = self._connection.execute(
            'SELECT l.vehicle_id, l.time FROM replay_marked m JOIN logins l USING (partition, "offset", position)'
            " WHERE l.command = %s AND l.vehicle_id IS NOT NULL",
            [LOGOUT],
        ).fetchall()
        seconds = [(vehicle_id, int(time.timestamp()) + LOGOUT_AFTER_S) for vehicle_id, time in rows]
        return [(vehicle_id, second, second) for vehicle_id, second in seconds]

    def _read_letters(self, given: Mapping[str, Any], done: DayApplied, moves: _Moves) -> None:
        """Mark the letters that are read now, and write those that are logins."""
        connection = self._connection
        connection.execute(replay_statements.MARK, given)
        marked = connection.execute(
            'SELECT r.partition, r."offset", r.position, r.became FROM replay_readable r'
            ' JOIN replay_marked USING (partition, "offset", position)'
        ).fetchall()
        done.letters = len(marked)
        logins = []
        for partition, offset, position, became in marked:
            moves.book(partition, "rejected", -1)
            if became != "rows":  # those are booked by what the row turns out to be
                moves.book(partition, became, 1)
            if login := self._logins.get((partition, offset, position)):
                logins.append(login)
        connection.execute(replay_statements.PENDING_LETTERS)
        if logins:
            connection.execute(statements.INSERT_LOGINS, login_columns(logins))
            connection.execute(
                "UPDATE logins l SET vehicle_id = v.vehicle_id FROM vehicles v, replay_marked m"
                ' WHERE l.partition = m.partition AND l."offset" = m."offset" AND l.position = m.position'
                " AND v.vin = l.vin AND l.command IN (1, 4)"
            )

    def _delete(self, given: Mapping[str, Any], done: DayApplied, moves: _Moves) -> None:
        """Rows that moved (they come again under their new key) and rows that no longer decode."""
        connection = self._connection
        moved = connection.execute(replay_statements.DELETE_MOVED, given).fetchall()
        for (vehicle_id,) in moved:
            moves.report(vehicle_id, -1)
        if moved:
            for partition, n in connection.execute(
                "SELECT journal_partition(v.vin, %s), count(*) FROM unnest(%s::bigint[]) AS a (vehicle_id)"
                " JOIN vehicles v USING (vehicle_id) GROUP BY 1",
                [self._partitions, [vehicle_id for (vehicle_id,) in moved]],
            ).fetchall():
                moves.book(partition, "rows", -n)
        gone = connection.execute(replay_statements.DELETE_GONE, given).fetchall()
        for vehicle_id, partition in gone:
            moves.report(vehicle_id, -1)
            moves.book(partition, "rows", -1)
            moves.book(partition, "rejected", 1)
        done.deleted = len(moved) + len(gone)

    def _run(self, statement: sql.SQL | sql.Composed | str) -> None:
        """Several statements with the bounds of this replay written into them (a script takes no parameters)."""
        text = statement if isinstance(statement, str) else statement.as_string(self._connection)
        for name, value in self._range.items():
            text = text.replace(f"%({name})s", sql.Literal(value).as_string(self._connection))
        for one in text.split(";"):
            self._connection.execute(one.encode())
