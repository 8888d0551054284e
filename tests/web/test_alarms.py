"""/v1/alarms: lists, stories, handling and its refusals, figures, the catalogue, and the live stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import psycopg
import pytest

from schemas.alarms import Hook
from services.settings import Settings
from services.store.alarm_events import AlarmEvents
from services.store.alarms import PostgresAlarms
from services.store.queries import Queries
from services.web.alarm_models import AlarmDetail, AlarmPage, AlarmSummary, Done, DoneToMany
from services.web.alarm_rules import AlarmRules
from services.web.app import create_app
from services.web.server import serve
from tests import statistics_rows as made
from tests.web import rows
from tests.web.test_problems import problem

Db = psycopg.Connection[Any]
NOW, HOUR, MINUTE = rows.NOW, timedelta(hours=1), timedelta(minutes=1)
VIN, OTHER = rows.VIN, rows.CHARGING
ZONE = ZoneInfo("Asia/Shanghai")


@asynccontextmanager
async def client_of(dsn: str, peer: str = "127.0.0.1", **web: Any) -> AsyncIterator[httpx.AsyncClient]:
    queries, alarms = Queries(dsn), PostgresAlarms(dsn)
    app = create_app(Settings.read(overrides={"web": web}), queries, now=lambda: NOW, alarms=alarms)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as opened:
        yield opened
    await queries.close()
    await alarms.close()


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(dsn) as opened:
        yield opened


@pytest.fixture
def alarms(db: Db) -> dict[str, int]:
    """Three episodes, the oldest first: a grave one going on, one that is over, one of another vehicle."""
    one = rows.vehicle(db, VIN, registered=True, fleet="north", model="E1", region="BJ")
    two = rows.vehicle(db, OTHER, registered=True)
    made.day(db, one, made.local_day(NOW), edition=16)
    begin = NOW - 3 * HOUR
    return {
        "grave": made.episode(
            db, one, begin, begin + HOUR, 1, 11, level=3, settled_on=None, value_min=40.0, value_max=900.0,
            raised_at=begin + MINUTE,
        ),
        "over": made.episode(db, one, begin + HOUR, begin + HOUR + MINUTE, 2, 1, value_max=56.0),
        "other": made.episode(db, two, begin + 2 * HOUR, begin + 2 * HOUR + MINUTE, 1, 5, settled_on=None),
    }  # fmt: skip


async def listed(client: httpx.AsyncClient, path: str = "/v1/alarms", **params: Any) -> list[int]:
    answer = await client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return [each.id for each in AlarmPage.model_validate(answer.json()).alarms]


# -- asking ------------------------------------------------------------------------------------------
async def test_lists_and_pages(client: httpx.AsyncClient, alarms: dict[str, int]) -> None:
    grave, over, other = alarms.values()
    assert await listed(client) == [other, over, grave]
    for params, expected in (
        ({"state": "closed"}, []), ({"state": "open,closed"}, [other, over, grave]), ({"active": "false"}, [over]),
        ({"vin": VIN}, [over, grave]), ({"fleet": "unknown"}, [other]), ({"level": 2}, [grave]),
        ({"code": "insulation"}, [grave]), ({"code": "11", "source": "flag"}, [grave]),
        ({"code": "temperature_high"}, [over]), ({"source": "rule"}, [over]), ({"source": "absence"}, []),
        ({"from": "2026-11-24T10:00", "to": "2026-11-24T11:00"}, [over]),
    ):  # fmt: skip
        assert await listed(client, **params) == expected, params
    assert await listed(client, f"/v1/vehicles/{VIN}/alarms", level=1) == [over, grave]
    first = (await client.get("/v1/alarms", params={"limit": 2, "level": 1})).json()
    assert [each["id"] for each in first["alarms"]] == [other, over]
    second = (await client.get(first["next"])).json()
    assert [each["id"] for each in second["alarms"]] == [grave]
    assert second["next"] is None


async def test_an_episode_is_told_by_name_and_edition(client: httpx.AsyncClient, alarms: dict[str, int]) -> None:
    answer = await client.get(f"/v1/alarms/{alarms['grave']}")
    whole = AlarmDetail.model_validate(answer.json())
    assert (whole.name, whole.text_zh, whole.edition, whole.level) == ("insulation", "绝缘报警", 2016, 3)
    assert (whole.quantity, whole.unit, whole.value_min) == ("insulation_resistance_kohm", "kΩ", 40.0)
    assert (whole.active, whole.end_at, whole.state) == (True, None, "open")
    assert (whole.acknowledged_in_time, whole.closed_in_time) == (False, None)  # 15 minutes are over, 10 days are not
    assert whole.start_at.isoformat() == "2026-11-24T09:00:00+08:00"
    path, _, query = whole.telemetry.partition("?")
    assert path == f"/v1/vehicles/{VIN}/telemetry"
    assert "from=2026-11-24T08:55:00%2B08:00" in query
    assert (await client.get(whole.telemetry)).status_code == 200


async def test_csv(client: httpx.AsyncClient, alarms: dict[str, int]) -> None:
    answer = await client.get("/v1/alarms", params={"format": "csv"})
    head, *lines = answer.text.splitlines()
    assert head.startswith("id,vin,model,fleet")
    assert len(lines) == len(alarms)


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/v1/alarms?state=done", 422, "open, acknowledged, closed"),
        ("/v1/alarms?code=insulaton", 422, "did you mean insulation"),
        ("/v1/alarms?code=11", 422, "of which source"),
        ("/v1/alarms?level=4", 422, "level"),
        ("/v1/alarms?vim=x", 422, "did you mean vin"),
        ("/v1/alarms?cursor=x", 422, "cursor"),
        ("/v1/alarms?from=2026-11-25&to=2026-11-24", 422, "before"),
        ("/v1/alarms/0", 422, "id"),
        ("/v1/alarms/x", 422, "id"),
        ("/v1/alarms/99", 404, "no episode 99"),
        ("/v1/vehicles/NOBODY/alarms", 404, "NOBODY"),
        ("/v1/alarms/stream?after=-1", 422, "after"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, path: str, status: int, told: str) -> None:
    answer = await client.get(path)
    problem(answer, status)
    assert told in answer.text


async def test_catalogue(client: httpx.AsyncClient) -> None:
    found = AlarmRules.model_validate((await client.get("/v1/alarms/rules")).json())
    flags = {flag.code: flag for flag in found.flags}
    assert (flags[5].name_2016, flags[5].name_2025) == ("cell_over_voltage", "min_parallel_unit_over_voltage")
    assert flags[23].name_2016 is None
    assert set(range(19)) <= set(flags)  # table of 7.13, GB/T 32960.3-2016
    offline = next(rule for rule in found.rules if rule.name == "offline")
    assert (offline.source, offline.values) == ("absence", {"after_h": 168.0})
    assert all(rule.tag in ("[A]", "[B]", "[C]", "[D]", "[P]", "[M]") for rule in found.rules)


async def test_summary(client: httpx.AsyncClient, alarms: dict[str, int]) -> None:
    await client.post(f"/v1/alarms/{alarms['over']}/acknowledge", json={})
    found = (await client.get("/v1/alarms/summary")).json()
    AlarmSummary.model_validate(found)
    assert (found["episodes"], found["vehicles"]) == (3, 2)
    assert [(row["level"], row["state"], row["episodes"]) for row in found["levels"]] == [
        (3, "open", 1), (1, "acknowledged", 1), (1, "open", 1)
    ]  # fmt: skip
    assert {row["name"]: row["episodes"] for row in found["kinds"]} == {
        "insulation": 1, "min_parallel_unit_over_voltage": 1, "temperature_high": 1
    }  # fmt: skip
    handling = found["handling"]
    assert (handling["acknowledged"], handling["acknowledge_due"]) == (1, 3)
    assert handling["close_due"] == 0
    assert handling["closed_in_time_share"] is None
    assert handling["targets_tag"] == "[C]"


# -- doing -------------------------------------------------------------------------------------------
async def test_from_open_to_closed(client: httpx.AsyncClient, alarms: dict[str, int]) -> None:
    path = f"/v1/alarms/{alarms['grave']}"
    refused = await client.post(f"{path}/close", json={"by": "wu"})
    problem(refused, 409)
    assert "is open: it was not acknowledged yet" in refused.json()["detail"]
    first = Done.model_validate((await client.post(f"{path}/acknowledge", json={"by": "li", "note": "called"})).json())
    again = Done.model_validate((await client.post(f"{path}/acknowledge", json={"by": "wu", "note": "me too"})).json())
    assert (first.outcome, again.outcome) == ("done", "repeated")
    assert again.alarm == first.alarm
    assert (again.alarm.acknowledged_by, again.alarm.note) == ("li", "called")
    closed = Done.model_validate((await client.post(f"{path}/close", json={"by": "wu"})).json())
    assert (closed.outcome, closed.alarm.state, closed.alarm.active) == ("done", "closed", True)
    problem(await client.post(f"{path}/acknowledge", json={}), 409)
    whole = AlarmDetail.model_validate((await client.get(path)).json())
    assert [(action.action, action.by, action.note) for action in whole.actions] == [
        ("acknowledge", "li", "called"), ("close", "wu", None)
    ]  # fmt: skip


async def test_two_ackers_at_once(client: httpx.AsyncClient, alarms: dict[str, int]) -> None:
    path = f"/v1/alarms/{alarms['grave']}/acknowledge"
    answers = await asyncio.gather(*(client.post(path, json={"by": f"n{number}"}) for number in range(8)))
    outcomes = [answer.json()["outcome"] for answer in answers]
    assert sorted(outcomes) == ["done"] + ["repeated"] * 7
    assert {answer.json()["alarm"]["acknowledged_by"] for answer in answers} == {f"n{outcomes.index('done')}"}


async def test_many(client: httpx.AsyncClient, alarms: dict[str, int]) -> None:
    grave, over, other = alarms.values()
    await client.post(f"/v1/alarms/{grave}/acknowledge", json={})
    await client.post(f"/v1/alarms/{other}/acknowledge", json={})
    await client.post(f"/v1/alarms/{other}/close", json={})
    answer = await client.post("/v1/alarms/acknowledge", json={"ids": [grave, over, other, 99, over], "by": "li"})
    found = DoneToMany.model_validate(answer.json())
    assert [(each.id, each.outcome) for each in found.results] == [
        (grave, "repeated"), (over, "done"), (other, "refused"), (99, "missing")
    ]  # fmt: skip
    assert (found.done, found.repeated, found.refused, found.missing) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("acknowledge", {"ids": []}, 422), ("acknowledge", {"ids": list(range(1, 1002))}, 422),
        ("acknowledge", {"ids": [0]}, 422), ("acknowledge", {"ids": [1], "who": "x"}, 422), ("acknowledge", {}, 422),
        ("1/acknowledge", {"by": ""}, 422), ("1/acknowledge", {"by": "x" * 101}, 422),
        ("1/acknowledge", {"note": "a\0"}, 422), ("1/close", {"by": "x"}, 404),
    ],
)  # fmt: skip
async def test_what_cannot_be_done(client: httpx.AsyncClient, path: str, body: Any, status: int) -> None:
    problem(await client.post(f"/v1/alarms/{path}", json=body), status)


async def test_who_may_act(dsn: str, alarms: dict[str, int]) -> None:
    path = f"/v1/alarms/{alarms['grave']}/acknowledge"
    for peer, web in (("10.0.0.9", {}), ("127.0.0.1", {"host": "0.0.0.0"}), ("127.0.0.1", {"allow_changes": False})):
        async with client_of(dsn, peer, **web) as client:
            problem(await client.post(path, json={}), 403)
            problem(await client.post("/v1/alarms/acknowledge", json={"ids": [1]}), 403)
            assert (await client.get("/v1/alarms")).status_code == 200  # looking is allowed
    async with client_of(dsn) as client:
        problem(await client.post(path, json={}, headers={"Origin": "https://evil.example"}), 403)
        problem(await client.post(path, content="{}"), 415)


async def test_without_a_desk(dsn: str) -> None:
    queries = Queries(dsn)
    app = create_app(Settings.read(), queries, now=lambda: NOW)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
        for path in ("/v1/alarms", "/v1/alarms/1", "/v1/alarms/summary", "/v1/alarms/stream"):
            problem(await client.get(path), 403)
    await queries.close()


async def test_a_withdrawn_one_is_told_apart(
    dsn: str, db: Db, client: httpx.AsyncClient, alarms: dict[str, int]
) -> None:
    events = AlarmEvents(dsn, ZONE)
    await events.publish()
    db.execute("DELETE FROM alarm_episodes WHERE episode_id = %s", [alarms["grave"]])
    await events.publish()
    await events.close()
    answer = await client.get(f"/v1/alarms/{alarms['grave']}")
    problem(answer, 404)
    assert answer.json()["type"].endswith("alarm-withdrawn")
    problem(await client.post(f"/v1/alarms/{alarms['grave']}/acknowledge", json={}), 404)


# -- live --------------------------------------------------------------------------------------------
class Listener:
    """A client of the stream on a real socket; events are read as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, str]:
        """The next event that is not a comment: its fields."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(60):
            async for text in self._lines:
                if text:
                    name, _, value = text.partition(":")
                    if name:
                        fields[name] = value.strip()
                elif "data" in fields:
                    return fields
                else:
                    fields = {}
        raise EOFError


@asynccontextmanager
async def served(dsn: str, **alarms: Any) -> AsyncIterator[str]:
    """The API on a socket; its base URL."""
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    settings = Settings.read(overrides={"web": {"port": 0}, "alarms": alarms})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.web.server.GRACE_S", 600.0)  # what holds up a stop fails the test
        serving = serve(settings, Queries(dsn), stop, started=address.set_result, alarms=PostgresAlarms(dsn))
        running = asyncio.create_task(serving)
        await asyncio.sleep(0)  # it reads it when it begins
    try:
        host, port = await asyncio.wait_for(address, 60)
        yield f"http://{host}:{port}"
    finally:
        stop.set()
        async with asyncio.timeout(60):  # streams do not hold up a stop
            await running


@asynccontextmanager
async def listening(base: str, query: str = "", last: str | None = None) -> AsyncIterator[Listener]:
    headers = {} if last is None else {"Last-Event-ID": last}
    async with (
        httpx.AsyncClient(base_url=base, timeout=60) as client,
        client.stream("GET", f"/v1/alarms/stream{query}", headers=headers) as response,
    ):
        yield Listener(response)


@pytest.fixture
async def events(dsn: str) -> AsyncIterator[AlarmEvents]:
    opened = AlarmEvents(dsn, ZONE, [Hook("x", 0, frozenset())])
    yield opened
    await opened.close()


async def test_news_as_they_come(dsn: str, db: Db, alarms: dict[str, int], events: AlarmEvents) -> None:
    await events.publish()
    async with served(dsn) as base, listening(base) as all_of, listening(base, "?level=3") as grave_only:
        assert all_of.response.headers["content-type"].startswith("text/event-stream")
        assert all_of.response.headers["cache-control"] == "no-cache"
        await asyncio.sleep(0)
        async with listening(base, "?after=0") as from_the_start:
            old = [json.loads((await from_the_start.next())["data"]) for _ in range(4)]
            assert [each["event"] for each in old] == ["raised", "raised", "ended", "raised"]
        db.execute("UPDATE alarm_episodes SET level = 2 WHERE episode_id = %s", [alarms["other"]])
        await events.publish()
        async with httpx.AsyncClient(base_url=base, timeout=60) as client:
            done = await client.post(f"/v1/alarms/{alarms['grave']}/acknowledge", json={"by": "li"})
            assert done.status_code == 200, done.text
        await events.publish()
        first = await all_of.next()
        assert (first["event"], json.loads(first["data"])["changes"]) == ("changed", {"level": [1, 2]})
        second = await all_of.next()
        assert json.loads(second["data"])["by"] == "li"
        only = await grave_only.next()
        assert only == second


async def test_resumed_without_hole_or_repetition(
    dsn: str, db: Db, alarms: dict[str, int], events: AlarmEvents
) -> None:
    seen: list[str] = []
    async with served(dsn) as base:
        async with listening(base, "?after=0") as listener:
            await events.publish()
            seen += [(await listener.next())["id"] for _ in range(2)]
        # gone: meanwhile more is told than one reading brings
        one = db.execute("SELECT vehicle_id FROM vehicles LIMIT 1").fetchone()
        assert one is not None
        for number in range(250):
            made.episode(db, one[0], NOW + number * MINUTE, NOW + number * MINUTE, 2, 3, settled_on=None)
        await events.publish()
        async with listening(base, last=seen[-1]) as listener:
            seen += [(await listener.next())["id"] for _ in range(252)]
    async with served(dsn) as base, listening(base, last=seen[-1]) as listener:  # and over a restart
        db.execute("UPDATE alarm_episodes SET level = 3 WHERE episode_id = %s", [alarms["over"]])
        await events.publish()
        seen.append((await listener.next())["id"])
    told = [str(number) for (number,) in db.execute("SELECT event_id FROM alarm_events ORDER BY 1").fetchall()]
    assert seen == told


async def test_what_is_kept_no_longer_is_said(dsn: str, db: Db, alarms: dict[str, int], events: AlarmEvents) -> None:
    await events.publish()
    db.execute("DELETE FROM alarm_events WHERE event_id <= 2")
    async with served(dsn) as base:
        async with listening(base, last="1") as listener:
            missed = await listener.next()
            assert (missed["event"], json.loads(missed["data"])) == ("missed", {"after": 1, "oldest": 3, "newest": 4})
            assert (await listener.next())["id"] == "3"
        async with listening(base, last="900") as listener:  # of another database
            assert (await listener.next())["event"] == "missed"
            db.execute("UPDATE alarm_episodes SET level = 3 WHERE episode_id = %s", [alarms["over"]])
            await events.publish()
            assert (await listener.next())["id"] == "5"


async def test_clients_are_bounded(dsn: str) -> None:
    async with served(dsn, stream_clients_max=1) as base:
        async with listening(base) as first:
            assert await anext(first._lines) == "retry: 3000"
            async with listening(base) as second:
                assert second.response.status_code == 503
                assert second.response.headers["retry-after"]
        async with asyncio.timeout(60):  # the place of one that has gone is free again
            while True:
                async with listening(base) as third:
                    if third.response.status_code == 200:
                        break


async def test_a_heartbeat_while_nothing_happens(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.web.alarm_feed.HEARTBEAT_S", 0.05)
    async with served(dsn) as base, listening(base) as listener:
        async with asyncio.timeout(60):
            lines = [await anext(listener._lines) for _ in range(4)]
        assert lines == ["retry: 3000", "", ": nothing new", ""]
