"""What a visit does: which days it touches, what keeps its id, what is urgent, what a wrong clock cannot do."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from services.statistics.folds import folds
from services.statistics.worker import Statistics
from services.store.statistics import PostgresStatistics
from tests.pipeline.conftest import Sent, report_frame
from tests.statistics.following import assert_same, content, follow, send, settings_of
from tests.statistics.lives import DAY_S, MIDNIGHT, life, logout

pytestmark = pytest.mark.database

SETTINGS = settings_of()


def _days(db: psycopg.Connection[Any]) -> dict[int, int]:
    """Day since the first → how often it has been changed."""
    rows = db.execute("SELECT day - date '2026-06-01', changes FROM statistics_days").fetchall()
    return dict(rows)


def _physical(db: psycopg.Connection[Any], table: str, column: str) -> dict[Any, Any]:
    """Where each row lies: another place, another version of the row."""
    return dict(db.execute(f"SELECT {column}::text, ctid::text || xmin::text FROM {table}").fetchall())


async def test_late_frames_change_their_day_and_no_other(dsn: str, db: psycopg.Connection[Any]) -> None:
    frames = life(0, 4).sent
    # six minutes of the second day's drive in the morning come when all the rest is there
    begin, end = MIDNIGHT + DAY_S + 7.65 * 3600, MIDNIGHT + DAY_S + 7.75 * 3600
    late = [one for one in frames if begin <= one.received_s < end]
    assert len(late) > 10
    await send(dsn, [one for one in frames if one not in late], SETTINGS)
    follow(dsn, SETTINGS)
    before, trips = _days(db), dict(db.execute("SELECT trip_id, revision FROM trips").fetchall())
    hours = _physical(db, "vehicle_hour", "hour")
    rows = _physical(db, "vehicle_day", "day")

    await send(dsn, late, SETTINGS)
    follow(dsn, SETTINGS)

    assert {day: n - before[day] for day, n in _days(db).items() if n != before[day]} == {1: 1}
    changed = {hour for hour, place in _physical(db, "vehicle_hour", "hour").items() if hours[hour] != place}
    assert len(changed) <= 2
    assert {day for day, place in _physical(db, "vehicle_day", "day").items() if rows[day] != place} == {"2026-06-02"}
    after = dict(db.execute("SELECT trip_id, revision FROM trips").fetchall())
    assert set(after) == set(trips), "every trip keeps its id"
    assert {trip for trip in trips if after[trip] != trips[trip]} == {
        trip
        for (trip,) in db.execute(
            "SELECT trip_id FROM trips WHERE start_at < to_timestamp(%s) AND end_at > to_timestamp(%s)", [end, begin]
        )
    }


async def test_frames_that_fill_a_trip_apart_leave_one_id(dsn: str, db: psycopg.Connection[Any]) -> None:
    """Two pieces of a drive, with more than the gap that ends a trip between them, become one when the rest comes."""
    frames = life(0, 2).sent
    begin, end = MIDNIGHT + 7.62 * 3600, MIDNIGHT + 7.85 * 3600
    middle = [one for one in frames if begin <= one.received_s < end]
    await send(dsn, [one for one in frames if one not in middle], SETTINGS)
    follow(dsn, SETTINGS)
    morning = "SELECT trip_id, revision FROM trips WHERE start_at < to_timestamp(%s) ORDER BY start_at"
    apart = db.execute(morning, [MIDNIGHT + 9 * 3600]).fetchall()
    assert len(apart) == 2

    await send(dsn, middle, SETTINGS)
    follow(dsn, SETTINGS)
    ((trip_id, revision),) = db.execute(morning, [MIDNIGHT + 9 * 3600]).fetchall()
    assert trip_id in [trip for trip, _ in apart]
    assert revision == 2


async def test_what_people_did_about_an_alarm_survives(dsn: str, db: psycopg.Connection[Any]) -> None:
    frames = life(0, 2).sent
    await send(dsn, [one for one in frames if one.received_s % 7 > 1], SETTINGS)
    follow(dsn, SETTINGS)
    db.execute("UPDATE alarm_episodes SET acknowledged_at = now(), acknowledged_by = 'Li', note = 'seen'")
    said = dict(db.execute("SELECT episode_id, raised_at FROM alarm_episodes").fetchall())
    assert len(said) > 5
    await send(dsn, frames, SETTINGS)
    follow(dsn, SETTINGS)
    rows = db.execute("SELECT episode_id, raised_at, acknowledged_by, note FROM alarm_episodes").fetchall()
    kept = [row for row in rows if row[0] in said]
    assert len(kept) > len(said) / 2
    assert all(row[1:] == (said[row[0]], "Li", "seen") for row in kept)


async def test_a_logout_after_midnight_makes_no_day(dsn: str, db: psycopg.Connection[Any]) -> None:
    await send(dsn, life(0, 1).sent, SETTINGS)
    (last_s,) = db.execute("SELECT extract(epoch FROM max(time))::bigint FROM telemetry").fetchone()
    db.execute("TRUNCATE telemetry, statistics_changes, vehicle_state")
    midnight = MIDNIGHT + DAY_S
    shifted = life(0, 1, start_s=MIDNIGHT + midnight - 2 - last_s)  # its last record is of two seconds before
    await send(dsn, [*shifted.sent, logout(shifted.vin, midnight + 1, midnight + 2.0)], SETTINGS)
    follow(dsn, SETTINGS)
    assert db.execute("SELECT max(day - date '2026-06-01') FROM vehicle_day").fetchone() == (0,)
    before = content(db)
    follow(dsn, SETTINGS)
    db.execute("UPDATE statistics_checkpoints SET layout = 0")  # from the beginning
    follow(dsn, SETTINGS)
    assert_same(content(db), before)


async def test_a_visit_without_news_touches_nothing(dsn: str, db: psycopg.Connection[Any]) -> None:
    await send(dsn, life(0, 2).sent, SETTINGS)
    follow(dsn, SETTINGS)
    before = {
        table: _physical(db, table, column)
        for table, column in (("vehicle_hour", "hour"), ("vehicle_day", "day"), ("trips", "trip_id"))
    }
    days = _days(db)
    with PostgresStatistics_(dsn) as store:
        assert store.rebuild(None, 0) == 1
    follow(dsn, SETTINGS)
    assert db.execute("SELECT count(*) FROM statistics_changes").fetchone() == (0,)
    for table, column in (("vehicle_hour", "hour"), ("vehicle_day", "day"), ("trips", "trip_id")):
        assert _physical(db, table, column) == before[table]
    assert _days(db) == days


class PostgresStatistics_(PostgresStatistics):  # noqa: N801
    """Closed at the end of a block."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, SETTINGS)

    def __enter__(self) -> PostgresStatistics_:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def test_a_clock_wrong_by_years_poisons_nothing(dsn: str, db: psycopg.Connection[Any]) -> None:
    """Reports of another year are dead letters; a logout of another year is passed over; the rest is as without."""
    frames = life(0, 2).sent
    pipeline = SETTINGS.pipeline.model_copy(update={"clock_past_max_days": 30})
    strict = SETTINGS.model_copy(update={"pipeline": pipeline})
    half = len(frames) // 2
    now = frames[half].received_s
    vin = "LSTATS00000000000"
    wrong = [Sent(report_frame(vin, round(now) + years * 365 * DAY_S), now) for years in (-6, -1, 1, 9)]
    from tests.statistics.lives import logout

    wrong += [logout(vin, round(now) + years * 365 * DAY_S, now) for years in (-6, 9)]
    await send(dsn, [*frames[:half], *wrong, *frames[half:]], strict)
    follow(dsn, strict)
    assert db.execute("SELECT count(*) FROM dead_letters").fetchone() == (4,)
    assert db.execute("SELECT count(*) FROM logins WHERE abs(extract(year FROM time) - 2026) > 1").fetchone() == (2,)
    got = content(db)
    newest = db.execute("SELECT extract(epoch FROM newest_at)::bigint FROM statistics_checkpoints").fetchone()
    assert newest is not None
    assert abs(newest[0] - frames[-1].received_s) < 60
    db.execute("TRUNCATE journal, journal_positions, telemetry, logins, vehicle_state, statistics_changes,"
               " statistics_checkpoints, statistics_signs, vehicle_hour, vehicle_day, trips, charges, alarm_episodes,"
               " cell_outliers, dc_resistance, cell_rests, battery_capacity")  # fmt: skip
    await send(dsn, frames, strict)
    follow(dsn, strict)
    assert_same(got, content(db))


async def test_an_alarm_does_not_wait_for_the_cycle(dsn: str, db: psycopg.Connection[Any]) -> None:
    settings = settings_of(every_s=3600.0)
    store = PostgresStatistics(dsn, settings)
    worker, stop = Statistics(settings, store, folds()), asyncio.Event()
    frames = life(0, 1).sent
    task = asyncio.create_task(worker.run(stop))
    await worker.caught_up()  # the first cycle is over, the next one is an hour away
    await send(dsn, frames, settings)
    assert db.execute("SELECT count(*) > 0 FROM statistics_changes WHERE urgent").fetchone() == (True,)
    async with asyncio.timeout(60):
        while db.execute("SELECT count(*) FROM alarm_episodes").fetchone() == (0,):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    stop.set()
    await task
    store.close()


async def test_own_values_of_alarm_rules_compute_the_alarms_again(dsn: str, db: psycopg.Connection[Any]) -> None:
    def speeding() -> int:
        (n,) = db.execute("SELECT count(*) FROM alarm_episodes WHERE source = 2 AND code = 8").fetchone()
        return int(n)

    await send(dsn, life(0, 1).sent, SETTINGS)
    follow(dsn, SETTINGS)
    assert speeding() == 0
    (fastest,) = db.execute("SELECT max(speed_max_kmh) FROM vehicle_day").fetchone()
    low = {"threshold": fastest / 2, "clear": fastest / 2, "needs_records": 1}
    follow(dsn, settings_of(alarm_rules={"speed_limit": low}))
    assert speeding() > 0
    follow(dsn, SETTINGS)
    assert speeding() == 0


async def test_the_worker_waits_for_a_database_that_is_away(dsn: str, db: psycopg.Connection[Any]) -> None:
    settings = settings_of(every_s=0.1)
    store = PostgresStatistics(dsn, settings)
    worker, stop = Statistics(settings, store, folds()), asyncio.Event()
    frames = life(0, 1).sent
    task = asyncio.create_task(worker.run(stop))
    await worker.caught_up()
    killed = db.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'nevstream statistics'"
        " AND datname = current_database()"
    ).fetchone()
    assert killed == (1,)
    await send(dsn, frames, settings)
    await worker.caught_up()
    stop.set()
    await task
    store.close()
    assert db.execute("SELECT count(*) FROM vehicle_day").fetchone() == (2,)


async def test_a_share_has_one_worker(dsn: str) -> None:
    with PostgresStatistics_(dsn) as one, PostgresStatistics_(dsn) as other:
        assert one.hold(range(8)) == list(range(8))
        assert other.hold(range(8)) == []
        one.close()
        async with asyncio.timeout(60):  # the server sees it in its own time
            while other.hold([3, 5]) != [3, 5]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_resends_are_counted_by_local_day(dsn: str, db: psycopg.Connection[Any]) -> None:
    frames = [one for one in life(0, 2).sent if one.frame[2] == 2]
    again = [one for one in frames if MIDNIGHT + DAY_S - 600 < one.received_s < MIDNIGHT + DAY_S + 900]
    await send(dsn, frames, SETTINGS)
    await send(dsn, again, SETTINGS)
    rows = db.execute("SELECT day::text, duplicates, conflicts FROM vehicle_resends ORDER BY day").fetchall()
    before = sum(one.received_s < MIDNIGHT + DAY_S for one in again)
    assert rows == [("2026-06-01", before, 0), ("2026-06-02", len(again) - before, 0)]
