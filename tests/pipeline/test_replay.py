"""A replay on a real database: what it says is different, what it writes, and what the pipeline stores meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from services.errors import UsageError
from services.journal.postgres import PostgresJournal
from services.pipeline import batching
from services.replaying import Replayed
from services.replaying import replay as replay_range
from services.settings import Settings
from services.store.letters import Letters
from services.store.replay import ReplayStore
from tests.fix_db import Databases
from tests.pipeline.running import put, settings_of, stored

pytestmark = pytest.mark.database

VIN, OTHER, NEW = "LTEST000000000001", "LTEST000000000002", "LTEST000000000003"
DAY = 86_400
# A replay looks for records near the arrival of their frames, so these arrive now, but not close to midnight: each
# test says what belongs to which day.
NOW = datetime.now(UTC).replace(microsecond=0)
T0 = int(NOW.timestamp()) - 600
T0 -= max(0, 1000 + T0 % DAY - (DAY - 6000)) if T0 % DAY > DAY - 7000 else 0
T0 -= T0 % DAY + 8000 if T0 % DAY < 1000 else 0
SINCE, UNTIL = datetime.fromtimestamp(T0, UTC) - timedelta(hours=1), NOW + timedelta(hours=2)
LEDGER = ("frames", "rows", "duplicates", "conflicts", "rejected", "sessions", "other")


async def replayed(dsn: str, settings: Settings | None = None, **how: Any) -> Replayed:
    return await replay_range(settings or settings_of(), dsn, SINCE, UNTIL, **how)


def content(db: psycopg.Connection[Any]) -> dict[str, Any]:
    """All that must be as if it had been decoded so at first; ids of vehicles are each database's own."""
    with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        tables: dict[str, Any] = {}
        for table in ("telemetry", "vehicle_state"):
            rows = cursor.execute(f"SELECT v.vin, t.* FROM {table} t JOIN vehicles v USING (vehicle_id)").fetchall()
            for row in rows:
                del row["vehicle_id"]
            tables[table] = sorted(rows, key=lambda row: (row["vin"], row["time"], row["kind"], row["part"]))
        return tables


def ledger(db: psycopg.Connection[Any]) -> dict[str, int]:
    """Totals; every line must add up, and the rejected are the letters that are there and no rows."""
    for line in db.execute(f"SELECT {', '.join(LEDGER)} FROM ledger").fetchall():
        assert line[0] == sum(line[1:]), line
        assert min(line) >= 0, line
    row = db.execute("SELECT " + ", ".join(f"sum({name})::bigint" for name in LEDGER) + " FROM ledger").fetchone()
    assert row is not None
    found = dict(zip(LEDGER, row, strict=True))
    counted = db.execute(
        "SELECT (SELECT count(*) FROM telemetry), (SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL),"
        " (SELECT coalesce(sum(reports), 0) FROM vehicle_state)"
    ).fetchone()
    assert counted == (found["rows"], found["rejected"], found["rows"])
    return found


def positions(db: psycopg.Connection[Any]) -> list[Any]:
    return db.execute('SELECT partition, "offset" FROM journal_positions ORDER BY 1').fetchall()


@pytest.fixture
def other_db(databases: Databases) -> Iterator[tuple[str, psycopg.Connection[Any]]]:
    """A second database, to decode the same frames freshly."""
    created = databases.create(migrated=True)
    with psycopg.connect(created, autocommit=True) as connection:
        yield created, connection
    databases.drop(created)


@pytest.fixture
def frames(make: SimpleNamespace) -> list[Any]:
    """Two vehicles over three days, one report sent twice, a login, a heartbeat and a frame that is none."""
    sent = []
    for vin in (VIN, OTHER):
        for back in (2 * DAY, DAY, 0):
            sent += [make.Sent(make.report(vin, T0 - back + s, kind=3, speed=600 + s), T0 + s + 1) for s in range(5)]
    broken = bytearray(make.report(VIN, T0 + 50))
    broken[-1] ^= 1
    login = make.beijing(T0) + b"\0\1" + b"8" * 20 + b"\0\0"
    return [
        *sent, sent[3], make.Sent(bytes(broken), T0 + 51, reason=1, detail=len(broken) - 1),
        make.Sent(make.frame(VIN, 1, login), T0), make.Sent(make.frame(OTHER, 7, b""), T0),
    ]  # fmt: skip


@pytest.fixture
def wrong_scale(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Speed stored ten times too high until the returned function is called."""
    right = batching.TELEMETRY
    wrong = tuple(replace(column, div=1) if column.name == "speed_kmh" else column for column in right)
    monkeypatch.setattr(batching, "TELEMETRY", wrong)
    return lambda: monkeypatch.setattr(batching, "TELEMETRY", right)


async def test_a_wrong_scale_is_shown_and_repaired(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], frames: list[Any],
    wrong_scale: Callable[[], None], other_db: tuple[str, psycopg.Connection[Any]],
) -> None:  # fmt: skip
    await put(dsn, frames)
    await stored(dsn, settings_of())
    wrong_scale()
    before, booked, where = content(db), ledger(db), positions(db)

    result = await replayed(dsn)
    diff = result.diff
    assert diff is not None
    assert (result.frames, result.refused, result.unreadable) == (34, 1, 0)
    assert (diff.decoded, diff.compared, diff.changed) == (30, 30, 30)
    assert (diff.from_letters, diff.moved, diff.restored, diff.gone, diff.letters) == (0, 0, 0, 0, {})
    (field,) = diff.fields
    assert (field.field, field.changed, field.new, field.gone) == ("speed_kmh", 30, 0, 0)
    vin, time, old, new = field.examples[0]
    assert (vin, time.timestamp(), old, new) == (VIN, T0 - 2 * DAY, 600.0, 60.0)
    assert (content(db), ledger(db), positions(db)) == (before, booked, where), "a diff writes nothing"

    applied = (await replayed(dsn, apply=True)).applied
    assert [(day.updated, day.inserted, day.deleted) for day in applied] == [(10, 0, 0)] * 3
    fresh_dsn, fresh = other_db
    await put(fresh_dsn, frames)
    await stored(fresh_dsn, settings_of())
    assert content(db) == content(fresh)
    assert (ledger(db), positions(db)) == (booked, where)

    again = await replayed(dsn, apply=True)
    assert again.diff is not None
    assert again.diff.same
    assert again.applied == []


async def test_range_and_vehicle(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], frames: list[Any], wrong_scale: Callable[[], None]
) -> None:
    await put(dsn, frames)
    await stored(dsn, settings_of())
    wrong_scale()
    one = (await replayed(dsn, vin=OTHER)).diff
    assert one is not None
    assert one.changed == 15
    assert {example[0] for example in one.fields[0].examples} == {OTHER}
    begin = datetime.fromtimestamp(T0 + 3, UTC)  # frames of second 2 and later arrived from then on
    some = await replay_range(settings_of(), dsn, begin, UNTIL, apply=True)
    assert some.diff is not None
    assert some.diff.changed == 18
    rest = await replayed(dsn)
    assert rest.diff is not None
    assert rest.diff.changed == 12


async def test_frames_that_the_pipeline_has_not_stored_are_left_to_it(
    make: SimpleNamespace, dsn: str, frames: list[Any]
) -> None:
    await put(dsn, frames)
    nothing = await replayed(dsn, apply=True)
    assert nothing.frames == 0
    await stored(dsn, settings_of())
    await put(dsn, [make.Sent(make.report(NEW, T0), T0 + 1)])
    later = await replayed(dsn, apply=True)
    assert later.diff is not None
    assert later.diff.same


async def test_dead_letters_become_rows_under_another_setting(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], other_db: tuple[str, psycopg.Connection[Any]]
) -> None:
    ahead = T0 + 5000
    sent = [
        make.Sent(make.report(VIN, T0), T0 + 1),
        make.Sent(make.report(VIN, ahead), T0 + 2),  # clock_future, newer than what is stored
        make.Sent(make.report(VIN, ahead), T0 + 3),  # the same again
        make.Sent(make.report(VIN, ahead, speed=1), T0 + 4),  # and a contradiction
        make.Sent(make.report(NEW, ahead), T0 + 5),  # clock_future, and nobody knows the vehicle
    ]
    await put(dsn, sent)
    await stored(dsn, settings_of())
    assert ledger(db)["rejected"] == 4

    lenient = settings_of(clock_future_max_s=10_000)
    seen = (await replayed(dsn, lenient)).diff
    assert seen is not None
    assert (seen.from_letters, seen.letters) == (2, {(10, "rows"): 4})
    assert db.execute("SELECT count(*) FROM vehicles WHERE vin = %s", [NEW]).fetchone() == (0,), "a diff writes nothing"

    done = (await replayed(dsn, lenient, apply=True)).applied
    assert sum(day.letters for day in done) == 4
    assert sum(day.inserted for day in done) == 2
    fresh_dsn, fresh = other_db
    await put(fresh_dsn, sent)
    await stored(fresh_dsn, lenient)
    assert content(db) == content(fresh)
    assert ledger(db) == ledger(fresh)
    assert ledger(db)["rejected"] == 0
    assert db.execute("SELECT count(*) FROM dead_letters WHERE replayed_at IS NOT NULL").fetchone() == (4,)

    again = (await replayed(dsn, lenient, apply=True)).diff
    assert again is not None
    assert again.same


async def test_rows_that_no_longer_decode_stay_unless_asked(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], other_db: tuple[str, psycopg.Connection[Any]]
) -> None:
    sent = [
        make.Sent(make.report(VIN, T0), T0 + 1),
        make.Sent(make.report(VIN, T0 + 500), T0 + 2),
        make.Sent(make.report(OTHER, T0 + 500), T0 + 3),
    ]
    await put(dsn, sent)
    lenient, strict = settings_of(clock_future_max_s=1000), settings_of(clock_future_max_s=60)
    await stored(dsn, lenient)
    before = content(db)

    result = await replayed(dsn, strict, apply=True)
    assert result.diff is not None
    assert (result.unreadable, result.diff.gone, result.diff.changed) == (2, 2, 0)
    assert content(db) == before

    result = await replayed(dsn, strict, apply=True, delete=True)
    assert sum(day.deleted for day in result.applied) == 2
    fresh_dsn, fresh = other_db
    await put(fresh_dsn, sent)
    await stored(fresh_dsn, strict)
    assert ledger(db) == ledger(fresh)
    assert content(db) == content(fresh)
    reasons = db.execute("SELECT reason, detail, vin FROM dead_letters ORDER BY vin").fetchall()
    assert reasons == fresh.execute("SELECT reason, detail, vin FROM dead_letters ORDER BY vin").fetchall()

    await replayed(dsn, lenient, apply=True)
    assert content(db) == before
    assert ledger(db)["rows"] == 3


async def test_rows_under_a_wrong_time_move(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], frames: list[Any],
    monkeypatch: pytest.MonkeyPatch, other_db: tuple[str, psycopg.Connection[Any]],
) -> None:  # fmt: skip
    right = batching.decode_frames

    def an_hour_behind(data: Any, start: Any, length: Any, codec: Any, reason: Any, out: Any) -> None:
        right(data, start, length, codec, reason, out)
        out.time_s[:] -= 3600

    monkeypatch.setattr(batching, "decode_frames", an_hour_behind)
    await put(dsn, frames)
    await stored(dsn, settings_of())
    monkeypatch.setattr(batching, "decode_frames", right)
    before = content(db)

    result = await replayed(dsn, apply=True)
    assert result.diff is not None
    assert (result.diff.moved, result.diff.restored, result.diff.changed) == (30, 0, 0)
    assert content(db) == before, "a row that moved is not stored twice"

    await replayed(dsn, apply=True, delete=True)
    fresh_dsn, fresh = other_db
    await put(fresh_dsn, frames)
    await stored(fresh_dsn, settings_of())
    assert content(db)["telemetry"] == content(fresh)["telemetry"]
    assert content(db)["vehicle_state"] == content(fresh)["vehicle_state"]
    assert ledger(db) == ledger(fresh)


async def test_what_arrives_during_the_rewrite_is_neither_lost_nor_doubled(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], frames: list[Any], wrong_scale: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch, other_db: tuple[str, psycopg.Connection[Any]],
) -> None:  # fmt: skip
    await put(dsn, frames)
    await stored(dsn, settings_of())
    wrong_scale()
    late = [  # contradictions of stored reports (some of which win), a resend, and something new for each day
        *(make.Sent(make.report(VIN, T0 - back + s, kind=3, speed=900 + s), T0 + 100) for s in range(5)
          for back in (0, DAY, 2 * DAY)),
        frames[0],
        *(make.Sent(make.report(VIN, T0 - back + 20, kind=3), T0 + 100) for back in (0, DAY, 2 * DAY)),
    ]  # fmt: skip
    await put(dsn, late)
    compare = ReplayStore.compare

    def compare_then_more(self: ReplayStore, since: datetime, until: datetime) -> Any:
        diff = compare(self, since, until)
        thread = threading.Thread(target=lambda: asyncio.run(stored(dsn, settings_of())))
        thread.start()
        thread.join()
        return diff

    monkeypatch.setattr(ReplayStore, "compare", compare_then_more)
    await replayed(dsn, apply=True)
    monkeypatch.undo()

    fresh_dsn, fresh = other_db
    await put(fresh_dsn, [*frames, *late])
    await stored(fresh_dsn, settings_of())
    assert content(db) == content(fresh)
    assert ledger(db) == ledger(fresh)


async def test_the_pipeline_waits_at_the_fence_of_a_day_with_new_rows(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same report comes by the replay and, at the same moment, by the pipeline: one row, one duplicate."""
    await put(dsn, [make.Sent(make.report(VIN, T0), T0 + 1), make.Sent(make.report(VIN, T0 + 5000), T0 + 2)])
    await stored(dsn, settings_of())
    lenient = settings_of(clock_future_max_s=10_000)
    await put(dsn, [make.Sent(make.report(VIN, T0 + 5000), T0 + 3)])
    running: list[threading.Thread] = []
    applying = ReplayStore._apply

    def apply_while_it_runs(self: ReplayStore, given: Any) -> Any:
        done = applying(self, given)
        assert self._connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        thread = threading.Thread(target=lambda: asyncio.run(stored(dsn, lenient)))
        thread.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while db.execute(waiting).fetchone() == (0,):
            assert thread.is_alive(), "the pipeline did not wait"
        running.append(thread)
        return done

    monkeypatch.setattr(ReplayStore, "_apply", apply_while_it_runs)
    await replayed(dsn, lenient, apply=True)
    running[0].join()
    found = ledger(db)
    assert (found["rows"], found["duplicates"], found["rejected"]) == (2, 1, 0)


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_killed_in_the_middle_leaves_whole_days(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any], frames: list[Any], wrong_scale: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch, at: int,
) -> None:  # fmt: skip
    await put(dsn, frames)
    await stored(dsn, settings_of())
    wrong_scale()
    applying = ReplayStore._apply
    calls = []

    def killed(self: ReplayStore, given: Any) -> Any:
        done = applying(self, given)
        calls.append(given["day"])
        if len(calls) == at + 1:
            db.execute("SELECT pg_terminate_backend(%s)", [self._connection.info.backend_pid])
            self._connection.execute("SELECT 1")
        return done

    monkeypatch.setattr(ReplayStore, "_apply", killed)
    with pytest.raises(psycopg.OperationalError):
        await replayed(dsn, apply=True)
    monkeypatch.undo()
    days = db.execute(
        "SELECT count(*) FILTER (WHERE speed_kmh > 500), count(*) FROM telemetry"
        " GROUP BY (time AT TIME ZONE 'UTC')::date ORDER BY (time AT TIME ZONE 'UTC')::date"
    ).fetchall()
    assert days == [(0, 10)] * at + [(10, 10)] * (3 - at)
    await replayed(dsn, apply=True)
    assert db.execute("SELECT count(*) FROM telemetry WHERE speed_kmh > 500").fetchone() == (0,)


async def test_only_one_replay_applies(dsn: str, db: psycopg.Connection[Any]) -> None:
    db.execute("SELECT pg_advisory_lock(7236328, 3)")
    with pytest.raises(UsageError, match="another replay"):
        await replayed(dsn, apply=True)


async def test_after_a_requeue_there_is_nothing_to_replay(
    make: SimpleNamespace, dsn: str, db: psycopg.Connection[Any]
) -> None:
    await put(dsn, [make.Sent(make.report(VIN, T0 + 5000), T0 + 1)])
    await stored(dsn, settings_of())
    lenient = settings_of(clock_future_max_s=10_000)
    journal = PostgresJournal(dsn, 4)
    letters = Letters(dsn, journal, lenient)
    key = db.execute('SELECT partition, "offset", position FROM dead_letters').fetchone()
    assert key is not None
    done = await letters.requeue([(key[0], key[1], key[2])], by="me")
    assert len(done.frames) == 1
    await stored(dsn, lenient)
    found = (await replayed(dsn, lenient)).diff
    assert found is not None
    assert found.same
    assert (found.decoded, found.compared) == (1, 1)
    await letters.close()
    await journal.close()
