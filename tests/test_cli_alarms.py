"""``nevstream alarms`` on a real database, against a running API, and with a receiver of webhooks."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from click.testing import Result
from typer.testing import CliRunner

from services.cli import app
from services.errors import NevstreamError, Unavailable, UsageError
from services.store.alarm_events import AlarmEvents
from tests import statistics_rows as made
from tests.web.rows import vehicle
from tests.web.test_alarms import served
from tests.webhooks.receiver import OK, receiver, status

Db = psycopg.Connection[Any]
VIN, SECRET = "LCLIALARM00000001", "0123456789abcdef-key"


@pytest.fixture(autouse=True)
def _here(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)


@pytest.fixture
def episodes(db: Db) -> list[int]:
    """A grave one that goes on, and one that is over."""
    one = vehicle(db, VIN, registered=True, fleet="north", model="E1")
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)  # not of import: a suite takes its time
    return [
        made.episode(db, one, begin, begin + timedelta(minutes=5), 1, 11, level=3, settled_on=None, value_min=40.0,
                     value_max=900.0, longitude_deg=116.4, latitude_deg=39.9),
        made.episode(db, one, begin + timedelta(hours=1), begin + timedelta(hours=1, minutes=5), 2, 1, value_max=56.0),
    ]  # fmt: skip


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["alarms", *map(str, arguments)])
    if code == 0 and result.exception:
        raise result.exception
    assert isinstance(result.exception, NevstreamError) or result.exit_code == code, result.output
    return result


def told(*arguments: Any) -> Any:
    return json.loads(run(*arguments, "--json").output)


def refused(*arguments: Any) -> str:
    error = run(*arguments, code=2).exception
    assert isinstance(error, UsageError), error
    return str(error)


def test_the_list_and_its_filters(episodes: list[int]) -> None:
    grave, over = episodes
    assert [one["id"] for one in told()["alarms"]] == [over, grave]
    for words, expected in (
        (["--level", "2"], [grave]), (["--over"], [over]), (["--active"], [grave]), (["--code", "insulation"], [grave]),
        (["--state", "closed"], []), (["--from", "90m"], [over]), (["--to", "90m"], [grave]), (["--vin", "X"], []),
        (["--fleet", "north", "--model", "E1", "--region", "unknown", "--source", "rule"], [over]),
        (["--limit", "1"], [over]),
    ):  # fmt: skip
        assert [one["id"] for one in told(*words)["alarms"]] == expected, words
    shown = run().output
    for word in (VIN, "insulation", "goes on", "40 to 900 kΩ", "temperature_high", "56 °C", "open", "5 min"):
        assert word in shown
    assert "no alarms" in run("--level", "3", "--over").output
    assert "did you mean insulation" in refused("--code", "insulaton")
    assert "'done' is not a state" in refused("--state", "done")
    assert "--from" in refused("--from", "yesterday-ish")


def test_from_open_to_closed(episodes: list[int]) -> None:
    grave, over = map(str, episodes)
    assert "not closed: it was not acknowledged yet" in run("close", grave, code=1).output
    done = told("ack", grave, over, "--by", "li", "--note", "driver called")
    assert (done["done"], done["refused"]) == (2, 0)
    assert "was acknowledged before" in run("ack", grave, "--by", "wu").output
    assert "closed" in run("close", grave, "--by", "wu", "--note", "pack replaced").output
    mixed = run("ack", grave, over, "999", "--by", "wu", "--json", code=1)
    assert [each["outcome"] for each in json.loads(mixed.output)["results"]] == ["refused", "repeated", "missing"]
    shown = run("show", grave).output
    for word in ("insulation", "level 3", "绝缘报警", "acknowledge by li: driver called", "close by wu: pack replaced",
                 "116.40000, 39.90000", "goes on", "E1", "[C]"):  # fmt: skip
        assert word in shown
    whole = told("show", grave)
    assert (whole["state"], whole["acknowledged_by"], whole["note"]) == ("closed", "li", "pack replaced")
    assert "There is no episode 999" in refused("show", "999")
    assert "--by" in refused("ack", grave, "--by", " ")
    assert "ids" in refused("ack", str(2**63))


def test_summary(episodes: list[int]) -> None:
    run("ack", str(episodes[0]), "--by", "li")
    found = told("summary")
    assert (found["episodes"], found["handling"]["acknowledged"]) == (2, 1)
    assert found["handling"]["start_to_acknowledged_min"]["median"] >= 120
    shown = run("summary").output
    assert "2 episodes of 1 vehicles" in shown
    assert "acknowledged: 1, median 12" in shown
    assert "0.0 % of those due within 15 min" in shown
    assert "waiting: level 3, acknowledged: 1" in shown
    assert told("summary", "--to", "90m", "--from", "1d")["episodes"] == 1


def test_rules() -> None:
    found = told("rules")
    assert {rule["name"] for rule in found["rules"]} >= {"thermal_event", "offline", "speed_limit"}
    shown = run("rules").output
    assert "insulation" in shown
    assert "[P]" in shown


# -- live --------------------------------------------------------------------------------------------
async def test_watch_follows_and_resumes(dsn: str, db: Db, episodes: list[int]) -> None:
    events = AlarmEvents(dsn, ZoneInfo("Asia/Shanghai"))
    await events.publish()
    async with served(dsn) as base:
        old = await asyncio.to_thread(run, "watch", "--api", base, "--after", "0", "--count", "3", "--json")
        told_of = [json.loads(text) for text in old.output.splitlines()]
        assert [each["event"] for each in told_of] == ["raised", "raised", "ended"]
        following = asyncio.create_task(
            asyncio.to_thread(run, "watch", "--api", base, "--after", told_of[-1]["id"], "--level", "2", "--count", "1")
        )
        db.execute("UPDATE alarm_episodes SET level = 2 WHERE episode_id = %s", [episodes[1]])
        await events.publish()
        shown = (await asyncio.wait_for(following, 60)).output
        assert "changed" in shown
        assert "level 1 → 2" in shown
        wrong = await asyncio.to_thread(run, "watch", "--api", base, "--code", "nothing", code=2)
        assert isinstance(wrong.exception, UsageError)
        assert "no flag or rule has this name" in str(wrong.exception)
    await events.close()
    gone = await asyncio.to_thread(run, "watch", "--api", base, code=3)
    assert isinstance(gone.exception, Unavailable)


# -- webhooks ----------------------------------------------------------------------------------------
def hooks(monkeypatch: pytest.MonkeyPatch, **urls: str) -> None:
    given = [{"name": name, "url": url, "secret": SECRET} for name, url in urls.items()]
    monkeypatch.setenv("NEVSTREAM_ALARMS__WEBHOOKS", json.dumps(given))


async def test_webhooks_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver(always=OK) as good, receiver(always=status(403)) as bad:
        hooks(monkeypatch, good=good.url, bad=bad.url)
        both = await asyncio.to_thread(run, "webhooks", "test", "--json", code=1)
        assert [(one["name"], one["status"]) for one in json.loads(both.output)["webhooks"]] == [
            ("good", 200), ("bad", 403)
        ]  # fmt: skip
        alone = await asyncio.to_thread(run, "webhooks", "test", "good")
    assert "HTTP 200" in alone.output
    assert "secret-in-the-url" not in both.output + alone.output
    assert [got.json["event"] for got in good.got] == ["test", "test"]
    assert "no webhook other" in refused("webhooks", "test", "other")


async def test_webhooks_status_and_retry(
    dsn: str, db: Db, episodes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "alarms.webhooks is empty" in (await asyncio.to_thread(run, "webhooks", "status")).output
    hooks(monkeypatch, desk="https://hooks.example.org/robot?access_token=secret-in-the-url")
    from services.settings import Settings

    events = AlarmEvents(dsn, ZoneInfo("Asia/Shanghai"), Settings.read().alarms.hooks())
    await events.publish()
    await events.close()
    db.execute("UPDATE alarm_deliveries SET state = 'dead', error = 'HTTP 500', finished_at = now() WHERE event_id = 1")
    shown = (await asyncio.to_thread(run, "webhooks", "status")).output
    assert "https://hooks.example.org/…" in shown
    assert "HTTP 500" in shown
    assert "secret-in-the-url" not in shown
    found = (await asyncio.to_thread(told, "webhooks", "status"))["webhooks"]
    assert [(one["name"], one["in_settings"], one["waiting"], one["dead"]) for one in found] == [("desk", True, 2, 1)]
    assert await asyncio.to_thread(told, "webhooks", "retry", "desk") == {"retried": 1}
    monkeypatch.delenv("NEVSTREAM_ALARMS__WEBHOOKS")
    gone = (await asyncio.to_thread(run, "webhooks", "status")).output
    assert "not in the settings" in gone
