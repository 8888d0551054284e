"""Alarm episodes in the store: filters, handling, news of them, the offline rule, and the outbox."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import psycopg
import pytest

from schemas.alarms import (
    ACKNOWLEDGE,
    CLOSE,
    MOVES,
    STATES,
    WHY_NOT,
    Acted,
    AlarmFilter,
    Hook,
    Sent,
    Targets,
    codes_named,
    kind_of,
)
from schemas.statistics.measures import MEASURES, TALLY_WIDTH
from schemas.statistics.work import FAR_S, DayRows, FoundRow, HourRows, Range, Swap
from services.settings import Settings
from services.store.alarm_events import AlarmEvents
from services.store.alarm_outbox import PostgresOutbox
from services.store.alarms import PostgresAlarms
from services.store.offline import Looked, OfflineRule
from services.store.statistics import PostgresStatistics
from tests import statistics_rows as made
from tests.web.rows import state, vehicle

Db = psycopg.Connection[Any]
ZONE = ZoneInfo("Asia/Shanghai")
NOW = datetime.now(UTC).replace(microsecond=0)
TARGETS = Targets(15, 10, "Asia/Shanghai")
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ALL = frozenset({"raised", "changed", "ended", "withdrawn", "acknowledged", "closed"})


@pytest.fixture
async def desk(dsn: str) -> AsyncIterator[PostgresAlarms]:
    opened = PostgresAlarms(dsn)
    yield opened
    await opened.close()


@pytest.fixture
async def events(dsn: str) -> AsyncIterator[AlarmEvents]:
    hooks = [
        Hook("all", 0, ALL), Hook("grave", 3, frozenset({"raised", "changed"})),
        Hook("north", 1, ALL, fleets=frozenset({"north"})),
    ]  # fmt: skip
    opened = AlarmEvents(dsn, ZONE, hooks, 48.0)
    yield opened
    await opened.close()


@pytest.fixture
async def outbox(dsn: str) -> AsyncIterator[PostgresOutbox]:
    opened = PostgresOutbox(dsn)
    yield opened
    await opened.close()


def car(db: Db, number: int = 1, **values: Any) -> int:
    return vehicle(db, f"LALARM{number:011}", registered=True, **values)


def episode(db: Db, of: int, ago: timedelta = HOUR, source: int = 1, code: int = 11, **values: Any) -> int:
    """One that is still going on, unless ``settled_on`` is given."""
    start = NOW - ago
    return made.episode(db, of, start, start + 10 * MINUTE, source, code, **{"settled_on": None} | values)


async def ids(desk: PostgresAlarms, **wanted: Any) -> list[int]:
    return [row["episode_id"] for row in (await desk.page(AlarmFilter(**wanted), after=None, limit=100)).dicts()]


# -- lists -------------------------------------------------------------------------------------------
async def test_filters(db: Db, desk: PostgresAlarms) -> None:
    north = car(db, 1, fleet="north", model="E1", region="BJ")
    other = car(db, 2)
    a = episode(db, north, 3 * HOUR, level=3)
    b = episode(db, north, 2 * HOUR, source=2, code=1, settled_on=NOW.date())
    c = episode(db, other, HOUR, source=3, code=20)
    await desk.act(ACKNOWLEDGE, [a, b], by="li")
    await desk.act(CLOSE, [b], by="li")
    assert await ids(desk) == [c, b, a]  # the newest start first
    for wanted, found in (
        ({"states": ["open"]}, [c]), ({"states": ["acknowledged", "closed"]}, [b, a]), ({"states": []}, []),
        ({"active": True}, [c, a]), ({"active": False}, [b]),
        ({"since": NOW - 2 * HOUR}, [c, b]), ({"until": NOW - 2 * HOUR}, [a]),
        ({"vehicle_id": other}, [c]), ({"vin": "LALARM00000000001"}, [b, a]), ({"vin": "nobody"}, []),
        ({"model": "E1"}, [b, a]), ({"fleet": "unknown"}, [c]), ({"region": "BJ", "level_min": 2}, [a]),
        ({"source": 2}, [b]), ({"codes": [(1, 11), (3, 20)]}, [c, a]), ({"codes": codes_named("offline")}, [c]),
        ({"fleet": "north", "states": ["closed"], "active": False, "level_min": 1}, [b]),
    ):  # fmt: skip
        assert await ids(desk, **wanted) == found, wanted
    first = (await desk.page(AlarmFilter(), after=None, limit=2)).dicts()
    rest = await desk.page(AlarmFilter(), after=(first[1]["start_at"], first[1]["episode_id"]), limit=2)
    assert [row["episode_id"] for row in rest.dicts()] == [a]


async def test_edition_of_the_day_then_of_the_newest_report(db: Db, desk: PostgresAlarms) -> None:
    one = car(db)
    number = episode(db, one, code=5)

    async def edition() -> Any:
        found = await desk.episode(number)
        assert found is not None
        return found["edition"]

    assert await edition() is None
    state(db, one, NOW, 1, edition=25)
    assert await edition() == 25
    made.day(db, one, made.local_day(NOW - HOUR), edition=16)
    assert await edition() == 16
    assert await desk.episode(number + 1) is None


@pytest.mark.parametrize(
    ("source", "code", "edition", "name", "zh"),
    [
        (1, 5, 16, "cell_over_voltage", "单体电池过压报警"),
        (1, 5, 25, "min_parallel_unit_over_voltage", "单体电池过压报警"),
        (1, 19, 16, "reserved_19", "预留位 19"),  # the 2016 edition ends at bit 18
        (1, 19, 25, "motor_overspeed", "驱动电机超速报警"),
        (1, 31, None, "reserved_31", "预留位 31"),
        (1, 77, 16, "reserved_77", "预留位 77"),
        (2, 7, 16, "thermal_event", None),
        (3, 20, None, "offline", "车辆长期离线"),
        (2, 99, 25, "rule_99", "未知规则"),
        (9, 99, 25, "source_99", "未知规则"),
    ],
)
def test_names(source: int, code: int, edition: int | None, name: str, zh: str | None) -> None:
    kind = kind_of(source, code, edition)
    assert kind.name == name
    assert zh is None or kind.zh == zh
    if not name.startswith(("reserved", "rule_", "source_")):
        assert (source, code) in codes_named(name)


# -- handling ----------------------------------------------------------------------------------------
def test_every_move_is_in_the_table() -> None:
    assert set(MOVES) == set(itertools.product(STATES, (ACKNOWLEDGE, CLOSE)))
    assert {move for move, after in MOVES.items() if after is None} == set(WHY_NOT)


async def test_every_move(db: Db, desk: PostgresAlarms) -> None:
    one = car(db)
    before = {"open": [], "acknowledged": [ACKNOWLEDGE], "closed": [ACKNOWLEDGE, CLOSE]}
    for (start, action), after in MOVES.items():
        number = episode(db, one)
        for step in before[start]:
            await desk.act(step, [number], by="first")
        (acted,) = await desk.act(action, [number], by="second", note="seen")
        if after is None:
            assert acted == Acted(number, "refused", start, WHY_NOT[start, action])
        else:
            assert acted == Acted(number, "repeated" if after == start else "done", after)
        row = await desk.episode(number)
        assert row is not None
        who = {"acknowledge": row["acknowledged_by"], "close": row["closed_by"]}[action]
        assert (
            who
            == {"done": "second", "repeated": "first", "refused": None if action == CLOSE else "first"}[acted.outcome]
        )
        assert row["note"] == ("seen" if acted.outcome == "done" else None)


async def test_history_and_what_is_due(db: Db, desk: PostgresAlarms) -> None:
    one = car(db)
    episode(db, one, 3 * DAY)
    episode(db, one, 31 * DAY)
    number = episode(db, one, 20 * MINUTE, level=2)
    await desk.act(ACKNOWLEDGE, [number], by="li", note="driver called")
    db.execute("UPDATE alarm_episodes SET level = 3 WHERE episode_id = %s", [number])
    await desk.act(CLOSE, [number], by="wu", note="pack replaced")
    story = await desk.story(number, TARGETS)
    assert [(each["action"], each["acted_by"], each["note"], each["level"]) for each in story["actions"]] == [
        ("acknowledge", "li", "driver called", 2), ("close", "wu", "pack replaced", 3)
    ]  # fmt: skip
    assert story["acknowledge_due_at"] == NOW - 5 * MINUTE
    assert story["close_due_at"] > NOW + 13 * DAY
    assert story["alike_30d"] == 1
    assert story["withdrawn_at"] is None


async def test_bulk_tells_of_each(db: Db, desk: PostgresAlarms) -> None:
    one = car(db)
    numbers = [episode(db, one) for _ in range(450)]  # more than are locked at once
    await desk.act(ACKNOWLEDGE, numbers[:2], by="li")
    await desk.act(CLOSE, numbers[:1], by="li")
    wanted = [*numbers[::-1], 10**15]
    outcome = await desk.act(ACKNOWLEDGE, wanted, by="wu")
    assert [acted.episode_id for acted in outcome] == wanted
    assert [acted.outcome for acted in outcome[-4:]] == ["done", "repeated", "refused", "missing"]
    row = db.execute("SELECT count(*) FROM alarm_actions WHERE acted_by = 'wu'").fetchone()
    assert row == (448,)


async def test_two_at_once_do_it_once(dsn: str, db: Db) -> None:
    one = car(db)
    numbers = [episode(db, one) for _ in range(20)]
    desks = [PostgresAlarms(dsn) for _ in range(4)]
    try:
        outcomes = await asyncio.gather(
            *(each.act(ACKNOWLEDGE, numbers, by=f"desk {n}") for n, each in enumerate(desks))
        )
    finally:
        for each in desks:
            await each.close()
    for number, tries in zip(numbers, zip(*outcomes, strict=True), strict=True):
        assert sorted(acted.outcome for acted in tries) == ["done", "repeated", "repeated", "repeated"]
        winner = [acted.outcome for acted in tries].index("done")
        rows = db.execute(
            "SELECT a.acted_by, e.acknowledged_by FROM alarm_actions a JOIN alarm_episodes e USING (episode_id) "
            "WHERE episode_id = %s AND a.acted_at = e.acknowledged_at",
            [number],
        ).fetchall()
        assert rows == [(f"desk {winner}", f"desk {winner}")]


@pytest.mark.parametrize(
    ("start", "due"),
    [
        ("2026-11-23 09:30", "2026-12-07 09:30"),  # Monday
        ("2026-11-27 23:59", "2026-12-11 23:59"),  # Friday
        ("2026-11-28 10:00", "2026-12-14 00:00"),  # Saturday: counts from Monday
        ("2026-11-29 23:00", "2026-12-14 00:00"),  # Sunday
    ],
)
def test_ten_working_days(read_db: Db, start: str, due: str) -> None:
    row = read_db.execute(
        "SELECT alarm_close_due(%s::timestamp AT TIME ZONE 'Asia/Shanghai', 10, 'Asia/Shanghai') "
        "AT TIME ZONE 'Asia/Shanghai'",
        [start],
    ).fetchone()
    assert row == (datetime.fromisoformat(due),)


async def test_summary(db: Db, desk: PostgresAlarms) -> None:
    one, two = car(db, 1, fleet="north"), car(db, 2)
    fast = episode(db, one, 5 * MINUTE, level=3, settled_on=NOW.date(), raised_at=NOW - 4 * MINUTE)
    slow = episode(db, one, 60 * MINUTE, level=3, raised_at=NOW - 4 * MINUTE)
    episode(db, two, 2 * MINUTE, source=2, code=1)  # neither handled nor due
    episode(db, two, 30 * MINUTE, source=2, code=1)  # overdue
    old = episode(db, two, 90 * DAY)
    await desk.act(ACKNOWLEDGE, [fast, slow], by="li")
    await desk.act(CLOSE, [fast], by="li")
    db.execute("UPDATE alarm_episodes SET acknowledged_at = %s WHERE acknowledged_at IS NOT NULL", [NOW])
    db.execute("UPDATE alarm_episodes SET closed_at = %s WHERE closed_at IS NOT NULL", [NOW + HOUR])
    found = await desk.summary(AlarmFilter(since=NOW - DAY), TARGETS, NOW, 10)
    handling = found["handling"]
    assert (handling["episodes"], handling["vehicles"], handling["acknowledged"], handling["closed"]) == (4, 2, 2, 1)
    assert (handling["acknowledge_due"], handling["acknowledged_in_time"]) == (3, 1)
    assert (handling["close_due"], handling["closed_in_time"]) == (1, 1)
    assert float(handling["start_to_acknowledged_min_median"]) == 32.5
    assert float(handling["start_to_acknowledged_min_mean"]) == 32.5
    assert float(handling["raised_to_acknowledged_min_median"]) == 4
    assert float(handling["acknowledged_to_closed_h_median"]) == 1
    assert [(row["level"], row["state"], row["episodes"], row["active"]) for row in found["levels"]] == [
        (3, "acknowledged", 1, 1), (3, "closed", 1, 0), (1, "open", 2, 2),
    ]  # fmt: skip
    # what waits for somebody is counted whenever it began
    assert [(row["level"], row["state"], row["episodes"]) for row in found["unhandled"]] == [
        (3, "acknowledged", 1), (1, "open", 3),
    ]  # fmt: skip
    assert found["unhandled"][1]["oldest_at"] == NOW - 90 * DAY
    assert [(row["source"], row["code"], row["episodes"], row["level_max"]) for row in found["kinds"]] == [
        (1, 11, 2, 3), (2, 1, 2, 1)
    ]  # fmt: skip
    assert found["kinds"][0]["duration_median_s"] == 600
    north = await desk.summary(AlarmFilter(since=NOW - DAY, fleet="north"), TARGETS, NOW, 10)
    assert north["handling"]["episodes"] == 2
    empty = await desk.summary(AlarmFilter(since=NOW + DAY), TARGETS, NOW, 10)
    assert empty["handling"]["start_to_acknowledged_min_median"] is None
    assert old


# -- news --------------------------------------------------------------------------------------------
def told(db: Db) -> list[tuple[str, int]]:
    return db.execute("SELECT event, episode_id FROM alarm_events ORDER BY event_id").fetchall()


def waiting(db: Db) -> list[tuple[str, str]]:
    return db.execute(
        "SELECT d.hook, n.event FROM alarm_deliveries d JOIN alarm_events n USING (event_id) ORDER BY event_id, hook"
    ).fetchall()


async def test_a_life_is_told_in_order(db: Db, desk: PostgresAlarms, events: AlarmEvents) -> None:
    one = car(db, fleet="north")
    number = episode(db, one)
    assert await events.publish() == 1
    assert await events.publish() == 0
    db.execute("UPDATE alarm_episodes SET records = records + 1, end_at = now()")  # as the worker does, all the time
    assert db.execute("SELECT count(*) FROM alarm_touched").fetchone() == (0,)
    db.execute("UPDATE alarm_episodes SET level = 3")
    assert await events.publish() == 1
    await desk.act(ACKNOWLEDGE, [number], by="li", note="seen")
    await desk.act(CLOSE, [number], by="wu")
    db.execute("UPDATE alarm_episodes SET settled_on = %s", [NOW.date()])
    assert await events.publish() == 3
    assert [event for event, _ in told(db)] == ["raised", "changed", "acknowledged", "closed", "ended"]
    bodies = [row[0] for row in db.execute("SELECT body FROM alarm_events ORDER BY event_id").fetchall()]
    assert bodies[0]["alarm"]["name"] == "insulation"
    assert bodies[0]["alarm"]["start_at"].endswith("+08:00")
    assert bodies[1]["changes"] == {"level": [1, 3]}
    assert (bodies[2]["by"], bodies[2]["note"]) == ("li", "seen")
    assert bodies[4]["alarm"]["active"] is False
    assert [pair for pair in waiting(db) if pair[0] == "grave"] == [("grave", "changed")]
    assert [pair[1] for pair in waiting(db) if pair[0] == "north"] == [event for event, _ in told(db)]


async def test_a_row_written_anew_is_no_news(db: Db, events: AlarmEvents) -> None:
    one = car(db)
    number = episode(db, one)
    await events.publish()
    row = db.execute("SELECT * FROM alarm_episodes").fetchone()
    assert row is not None
    with db.transaction():  # a recompute may swap the day: delete and insert under the same id
        db.execute("DELETE FROM alarm_episodes")
        db.execute(f"INSERT INTO alarm_episodes OVERRIDING SYSTEM VALUE VALUES ({', '.join(['%s'] * len(row))})", row)
    assert await events.publish() == 0
    assert told(db) == [("raised", number)]


async def test_withdrawn_and_back(db: Db, desk: PostgresAlarms, events: AlarmEvents) -> None:
    one = car(db)
    number = episode(db, one)
    await events.publish()
    db.execute("DELETE FROM alarm_episodes")
    assert await events.publish() == 1
    assert (await desk.story(number, TARGETS))["withdrawn_at"] is not None
    (body,) = db.execute("SELECT body FROM alarm_events WHERE event = 'withdrawn'").fetchone() or (None,)
    assert body["alarm"]["vin"] == "LALARM00000000001"
    assert body["alarm"]["name"] == "insulation"
    episode_again = episode(db, one)
    unseen = episode(db, one)
    db.execute("DELETE FROM alarm_episodes WHERE episode_id = %s", [unseen])  # nobody was told of it
    await events.publish()
    assert [event for event in told(db) if event[0] != "withdrawn"] == [("raised", number), ("raised", episode_again)]
    db.execute("TRUNCATE alarm_episodes")  # a rebuild
    await events.publish()
    assert told(db)[-1] == ("withdrawn", episode_again)


async def test_an_ended_one_that_goes_on(db: Db, events: AlarmEvents) -> None:
    one = car(db)
    episode(db, one, settled_on=NOW.date())
    await events.publish()
    db.execute("UPDATE alarm_episodes SET settled_on = NULL")
    await events.publish()
    db.execute("UPDATE alarm_episodes SET settled_on = %s", [NOW.date()])
    await events.publish()
    assert [event for event, _ in told(db)] == ["raised", "ended", "changed", "ended"]


async def test_old_alarms_found_late_reach_no_hook(db: Db, events: AlarmEvents) -> None:
    one = car(db)
    episode(db, one, 10 * DAY, settled_on=(NOW - 10 * DAY).date())
    episode(db, one, 10 * DAY)  # going on since then: that is news
    await events.publish()
    assert [event for event, _ in told(db)] == ["raised", "ended", "raised"]
    assert waiting(db) == [("all", "raised")]


async def test_publishers_at_once_tell_once(dsn: str, db: Db) -> None:
    one = car(db)
    numbers = [episode(db, one) for _ in range(1200)]
    publishers = [AlarmEvents(dsn, ZONE, [Hook("all", 0, ALL)]) for _ in range(3)]
    try:
        while sum(await asyncio.gather(*(each.publish() for each in publishers))):
            pass
    finally:
        for each in publishers:
            await each.close()
    assert [number for _, number in told(db)] == numbers
    assert len(waiting(db)) == len(numbers)


async def test_killed_between_writing_and_commit_nothing_is_told_twice(
    db: Db, events: AlarmEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = car(db)
    number = episode(db, one)

    class Killed(Exception):
        pass

    async def dies(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(events, "_write", dies)
        with pytest.raises(Killed):
            await events.publish()
    assert told(db) == []
    await events.publish()
    assert told(db) == [("raised", number)]


async def test_a_writer_never_waits_for_the_publisher(dsn: str, db: Db) -> None:
    one = car(db)
    number = episode(db, one)
    with psycopg.connect(dsn) as publisher:  # in the middle of its transaction
        publisher.execute("SELECT pg_advisory_xact_lock(7236328, 18)")
        publisher.execute("DELETE FROM alarm_touched")
        publisher.execute("INSERT INTO alarm_announced SELECT episode_id, vehicle_id, source, code, start_at, end_at, "
                          "level, false FROM alarm_episodes")  # fmt: skip
        db.execute("SET lock_timeout = '2s'")
        db.execute("UPDATE alarm_episodes SET level = 2")
        db.execute("DELETE FROM alarm_episodes WHERE episode_id = %s", [number])
        episode(db, one)


async def test_pruned_by_age_but_not_while_somebody_waits(db: Db, events: AlarmEvents, desk: PostgresAlarms) -> None:
    one = car(db)
    for _ in range(3):
        episode(db, one)
    await events.publish()
    db.execute("UPDATE alarm_events SET occurred_at = now() - interval '91 days' WHERE event_id <= 2")
    db.execute("UPDATE alarm_deliveries SET state = 'delivered' WHERE event_id = 1")
    assert await desk.event_bounds() == (1, 3)
    assert await events.prune(90) == 1
    assert await desk.event_bounds() == (2, 3)
    assert [row["event_id"] for row in (await desk.events(2, 10)).dicts()] == [3]


# -- outbox ------------------------------------------------------------------------------------------
async def test_lease_fence_and_order(db: Db, events: AlarmEvents, outbox: PostgresOutbox) -> None:
    one = car(db)
    first, second = episode(db, one), episode(db, one, source=2, code=1)
    await events.publish()
    db.execute("UPDATE alarm_episodes SET level = 3 WHERE episode_id = %s", [first])
    await events.publish()
    claimed = await outbox.claim("all", 10, 60)
    # the change waits for the raise of the same episode
    assert [(each.event, each.body["alarm"]["id"]) for each in claimed] == [("raised", first), ("raised", second)]
    assert await outbox.claim("all", 10, 60) == []
    db.execute("UPDATE alarm_deliveries SET due_at = now() WHERE event_id = %s", [claimed[0].event_id])  # lease is over
    (again,) = await outbox.claim("all", 10, 60)
    assert again.attempts == 2
    await outbox.record([Sent(claimed[0].event_id, "all", 1, 200, None)])  # the first sender, too late
    assert db.execute("SELECT count(*) FROM alarm_deliveries WHERE state = 'delivered'").fetchone() == (0,)
    await outbox.record([Sent(again.event_id, "all", 2, 500, "HTTP 500", retry_s=0.0)])
    (third,) = await outbox.claim("all", 10, 60)
    await outbox.record([Sent(third.event_id, "all", 3, 200, None)])
    (change,) = await outbox.claim("all", 10, 60)
    assert (change.event, change.body["alarm"]["level"]) == ("changed", 3)
    await outbox.record([Sent(change.event_id, "all", 1, 403, "HTTP 403")])
    assert db.execute("SELECT state, status, error FROM alarm_deliveries WHERE event_id = %s AND hook = 'all'",
                      [change.event_id]).fetchone() == ("dead", 403, "HTTP 403")  # fmt: skip


async def test_status_retry_and_hooks_that_are_gone(
    db: Db, events: AlarmEvents, outbox: PostgresOutbox, desk: PostgresAlarms
) -> None:
    one = car(db)
    for level in (1, 2, 3):
        episode(db, one, level=level)
    await events.publish()
    claimed = await outbox.claim("all", 2, 60)
    await outbox.record([Sent(claimed[0].event_id, "all", 1, 200, None)])
    await outbox.record([Sent(claimed[1].event_id, "all", 1, None, "no answer")])
    hooks = {row["hook"]: row for row in (await desk.hooks()).dicts()}
    assert {name: hooks["all"][name] for name in ("waiting", "delivered", "dead", "last_error")} == {
        "waiting": 1, "delivered": 1, "dead": 1, "last_error": "no answer"
    }  # fmt: skip
    assert hooks["grave"]["waiting"] == 1
    assert await desk.retry_dead("grave") == 0
    assert await desk.retry_dead(None) == 1
    assert {each.attempts for each in await outbox.claim("all", 10, 60)} == {1}
    assert await outbox.give_up(3600) == 0
    db.execute(
        "UPDATE alarm_deliveries SET created_at = now() - interval '3 hours', due_at = now() WHERE hook = 'grave'"
    )
    assert await outbox.give_up(3600) == 1
    assert "still in the settings" in {row["hook"]: row for row in (await desk.hooks()).dicts()}["grave"]["last_error"]


# -- the offline rule --------------------------------------------------------------------------------
LONG = {"grace_s": 0.0, "pause_s": 900.0}


@pytest.fixture
async def rule(dsn: str) -> AsyncIterator[OfflineRule]:
    opened = OfflineRule(dsn, "Asia/Shanghai")
    yield opened
    await opened.close()


def silent(db: Db, number: int, ago: timedelta, **values: Any) -> int:
    one = car(db, number, **values)
    state(db, one, NOW - ago, 1, received_at=NOW - ago, longitude_deg=116.4, latitude_deg=39.9)
    return one


async def test_offline_raised_once_and_ended_by_a_report(db: Db, rule: OfflineRule, desk: PostgresAlarms) -> None:
    gone, there = silent(db, 1, 8 * DAY), silent(db, 2, 6 * DAY)
    car(db, 3)  # has never reported: nothing fell silent
    silent(db, 4, 9 * DAY, upload="on_change")
    silent(db, 5, 9 * DAY, retired_at=NOW)
    unregistered = silent(db, 6, 9 * DAY)
    db.execute("UPDATE vehicles SET registered = false WHERE vehicle_id = %s", [unregistered])
    assert await rule.look(168, now=NOW, **LONG) == Looked(1, 0, True)
    assert await rule.look(168, now=NOW + MINUTE, **LONG) == Looked(0, 0, True)
    (row,) = (await desk.page(AlarmFilter(), after=None, limit=10)).dicts()
    assert (row["vehicle_id"], row["source"], row["code"], row["level"]) == (gone, 3, 20, 1)
    assert row["start_at"] == NOW - 8 * DAY
    assert row["day"] == made.local_day(NOW - 8 * DAY)
    assert row["settled_on"] is None
    assert row["longitude_deg"] == 116.4
    db.execute("UPDATE vehicle_state SET received_at = %s WHERE vehicle_id = %s", [NOW + MINUTE, gone])
    assert await rule.look(168, now=NOW + 2 * MINUTE, **LONG) == Looked(0, 1, True)
    (row,) = (await desk.page(AlarmFilter(), after=None, limit=10)).dicts()
    assert row["end_at"] == NOW + MINUTE
    assert row["settled_on"] == made.local_day(NOW + MINUTE)
    # silent again: another episode
    assert await rule.look(168, now=NOW + 8 * DAY, **LONG) == Looked(2, 0, True)
    assert there


@pytest.mark.parametrize("change", ["retired_at = now()", "upload = 'on_change'", "registered = false"])
async def test_who_is_exempt_later_is_not_offline_any_more(db: Db, rule: OfflineRule, change: str) -> None:
    silent(db, 1, 8 * DAY)
    await rule.look(168, now=NOW, **LONG)
    db.execute(f"UPDATE vehicles SET {change}")
    assert await rule.look(168, now=NOW + HOUR / 12, **LONG) == Looked(0, 1, True)
    assert db.execute("SELECT end_at FROM alarm_episodes").fetchone() == (NOW + HOUR / 12,)


async def test_our_own_silence_is_not_the_vehicles(db: Db, rule: OfflineRule) -> None:
    silent(db, 1, 8 * DAY)
    careful = {"grace_s": 1800.0, "pause_s": 900.0}
    assert await rule.look(168, now=NOW, **careful) == Looked(0, 0, False)  # just started
    for minutes in (10, 20):
        assert await rule.look(168, now=NOW + minutes * MINUTE, **careful) == Looked(0, 0, False)
    assert await rule.look(168, now=NOW + 60 * MINUTE, **careful) == Looked(0, 0, False)  # was away for 40 minutes
    for minutes in (70, 80):
        assert await rule.look(168, now=NOW + minutes * MINUTE, **careful) == Looked(0, 0, False)
    assert await rule.look(168, now=NOW + 90 * MINUTE, **careful) == Looked(1, 0, True)


async def test_two_offline_rules_at_once(dsn: str, db: Db) -> None:
    for number in range(300):
        silent(db, number, 8 * DAY)
    watches = [OfflineRule(dsn, "Asia/Shanghai") for _ in range(3)]
    try:
        looks = await asyncio.gather(*(each.look(168, now=NOW, **LONG) for each in watches))
    finally:
        for each in watches:
            await each.close()
    assert sum(look.raised for look in looks) == 300
    assert db.execute("SELECT count(*), count(DISTINCT vehicle_id) FROM alarm_episodes").fetchone() == (300, 300)


# -- together with the statistics worker's store -----------------------------------------------------
def swapped(vehicle_id: int, *episodes: tuple[int, float, datetime, datetime, datetime | None]) -> Swap:
    """All of a vehicle's findings anew: (code, level, start, end, settled at) of standard flags."""
    none = np.zeros(0, np.int64)
    nan = float("nan")
    found = [
        FoundRow(
            vehicle_id, local(start), None if settled is None else local(settled),
            (start.timestamp(), end.timestamp(), 1.0, float(code), level, 3.0, 0.0, nan, nan, nan, nan),
        )
        for code, level, start, end, settled in episodes
    ]  # fmt: skip
    return Swap(
        [Range(vehicle_id, 0, None, 0, FAR_S)],
        HourRows(none, none, none, np.zeros((0, len(MEASURES)))),
        DayRows(none, none, none, none, none, np.zeros((0, len(MEASURES))), np.zeros((0, TALLY_WIDTH), np.int64), []),
        {"alarm_episodes": found},
        layout=1,
    )


def local(time: datetime) -> int:
    return (made.local_day(time) - date(1970, 1, 1)).days


async def test_what_the_statistics_write_is_told_and_what_people_did_stays(
    dsn: str, db: Db, desk: PostgresAlarms, events: AlarmEvents, rule: OfflineRule
) -> None:
    one = silent(db, 1, 8 * DAY)
    await rule.look(168, now=NOW, **LONG)
    store = PostgresStatistics(dsn, Settings.read())
    begin = NOW - HOUR
    try:
        store.swap(swapped(one, (11, 1.0, begin, begin + MINUTE, None)))
        await events.publish()
        (number,) = await ids(desk, source=1)
        await desk.act(ACKNOWLEDGE, [number], by="li", note="seen")
        store.swap(swapped(one, (11, 1.0, begin, begin + 2 * MINUTE, None)))  # goes on
        store.swap(swapped(one, (11, 2.0, begin, begin + 3 * MINUTE, begin + 5 * MINUTE)))  # worse, and over
        store.swap(swapped(one, (11, 2.0, begin - MINUTE, begin + 3 * MINUTE, begin + 5 * MINUTE)))  # began earlier
        await events.publish()
        row = await desk.episode(number)
        assert row is not None
        assert (row["acknowledged_by"], row["note"], row["level"]) == ("li", "seen", 2)
        assert row["start_at"] == begin - MINUTE
        assert row["revision"] == 4
        store.swap(swapped(one))  # late data: it never was
        await events.publish()
    finally:
        store.close()
    assert [event for event, of in told(db) if of == number] == [
        "raised", "changed", "acknowledged", "ended", "withdrawn"
    ]  # fmt: skip
    assert len(await ids(desk, source=3, active=True)) == 1  # the absence is not the statistics' to take away
    assert (await desk.story(number, TARGETS))["actions"][0]["note"] == "seen"
