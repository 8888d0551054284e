"""Webhooks on real sockets and a real database: signed, tried again, given up, never lost, never twice at will."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from services.errors import SettingsError
from services.settings import Settings, WebhookTargets
from services.store.alarm_events import AlarmEvents
from services.store.alarm_outbox import PostgresOutbox
from services.store.alarms import PostgresAlarms
from services.webhooks.sender import Webhooks, masked, retry_after_s, trusted
from services.webhooks.targets import Refused, allowed, resolved
from tests import statistics_rows as made
from tests.gateway.certs import make
from tests.web.rows import vehicle
from tests.webhooks.receiver import OK, receiver, status

Db = psycopg.Connection[Any]
SECRET = "0123456789abcdef-key"
NOW = datetime.now(UTC).replace(microsecond=0)


def settings(url: str, *, hooks: list[dict[str, Any]] | None = None, **alarms: Any) -> Settings:
    quick = {"webhook_retry_first_s": 0.01, "webhook_timeout_s": 5.0, "publish_every_s": 0.05}
    given = hooks or [{"name": "desk", "url": url, "secret": SECRET}]
    return Settings.read(overrides={"alarms": {**quick, **alarms, "webhooks": given}})


@asynccontextmanager
async def sender(dsn: str, given: Settings, **more: Any) -> AsyncIterator[Webhooks]:
    outbox = PostgresOutbox(dsn)
    opened = Webhooks(given.alarms, outbox, **more)
    yield opened
    await opened.close()
    await outbox.close()


@asynccontextmanager
async def running(dsn: str, given: Settings) -> AsyncIterator[Webhooks]:
    """A sender at work, as in the pipeline process."""
    stop = asyncio.Event()
    async with sender(dsn, given) as opened:
        task = asyncio.create_task(opened.run(stop))
        yield opened
        stop.set()
        await asyncio.wait_for(task, 60)


async def raised(dsn: str, db: Db, given: Settings, count: int = 1, **values: Any) -> list[int]:
    """Episodes, and the news of them in the outbox."""
    row = db.execute("SELECT vehicle_id FROM vehicles LIMIT 1").fetchone()
    one = row[0] if row else vehicle(db, "LHOOK000000000001", registered=True, fleet="north", model="E1")
    numbers = [
        made.episode(db, one, NOW - timedelta(minutes=n + 1), NOW, 1, 11, **{"settled_on": None, "level": 3} | values)
        for n in range(count)
    ]
    await published(dsn, given)
    return numbers


async def published(dsn: str, given: Settings) -> None:
    events = AlarmEvents(dsn, ZoneInfo("Asia/Shanghai"), given.alarms.hooks(), given.alarms.webhook_news_max_h)
    await events.publish()
    await events.close()


def states(db: Db) -> list[tuple[str, int]]:
    return db.execute("SELECT state, attempts FROM alarm_deliveries ORDER BY event_id, hook").fetchall()


async def until(db: Db, condition: str) -> None:
    """Wait until the database says so: there is no event for what a loop of its own writes."""
    async with asyncio.timeout(60):
        while db.execute(f"SELECT {condition} FROM alarm_deliveries").fetchone() != (True,):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def settled(db: Db) -> None:
    """Wait until no delivery waits."""
    await until(db, "bool_and(state <> 'waiting')")


# -- what is sent ------------------------------------------------------------------------------------
async def test_one_event_as_it_arrives(dsn: str, db: Db) -> None:
    async with receiver() as there:
        given = settings(there.url)
        (number,) = await raised(dsn, db, given)
        async with sender(dsn, given, now=lambda: 1_800_000_000.9) as desk:
            (hook,) = given.alarms.webhooks
            assert await desk.deliver(hook) == 1
            assert await desk.deliver(hook) == 0
    (got,) = there.got
    assert got.head == "POST /hook?key=secret-in-the-url HTTP/1.1"
    assert got.headers["host"] == f"127.0.0.1:{there.port}"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-nevstream-event"] == "raised"
    assert got.headers["x-nevstream-timestamp"] == "1800000000"
    expected = hmac.new(SECRET.encode(), b"1800000000." + got.body, hashlib.sha256).hexdigest()
    assert got.headers["x-nevstream-signature"] == f"v1={expected}"
    document = got.json
    assert (document["event"], document["id"]) == ("raised", got.headers["x-nevstream-event-id"])
    assert (document["alarm"]["id"], document["alarm"]["vin"]) == (number, "LHOOK000000000001")
    assert (document["alarm"]["name"], document["alarm"]["text_zh"]) == ("insulation", "绝缘报警")
    assert states(db) == [("delivered", 1)]


async def test_whom_it_is_sent_to(dsn: str, db: Db) -> None:
    async with receiver() as grave, receiver() as south, receiver() as closed:
        base = {"secret": SECRET}
        given = settings("", hooks=[
            {"name": "grave", "url": grave.url, "min_level": 2, "events": ["raised", "changed"], **base},
            {"name": "south", "url": south.url, "fleets": ["south"], **base},
            {"name": "closed", "url": closed.url, "models": ["E1"], "events": ["ended"], **base},
        ])  # fmt: skip
        (number,) = await raised(dsn, db, given, level=1)
        db.execute("UPDATE alarm_episodes SET level = 3")
        await published(dsn, given)
        db.execute("UPDATE alarm_episodes SET settled_on = %s", [NOW.date()])
        await published(dsn, given)
        async with running(dsn, given):
            await settled(db)
    assert [(got.json["event"], got.json["alarm"]["level"]) for got in grave.got] == [("changed", 3)]
    assert south.got == []
    assert [got.json["event"] for got in closed.got] == ["ended"]
    assert number


# -- when it does not work ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (status(500), "HTTP 500"),
        (status(404), "HTTP 404"),
        (status(302, "Location: http://127.0.0.1:1/elsewhere"), "HTTP 302"),  # not followed
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "RemoteProtocolError"),
        (b"HTTP/1.1 200", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
        (None, "no answer within 0.3 s"),
    ],
)
async def test_a_failure_is_tried_again(
    dsn: str, db: Db, answer: bytes | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "services.webhooks")

    async with receiver(always=answer) as there:
        given = settings(there.url, webhook_timeout_s=0.3 if answer is None else 5.0)
        await raised(dsn, db, given)
        async with sender(dsn, given) as desk:
            (hook,) = given.alarms.webhooks
            assert await desk.deliver(hook) == 1
            row = db.execute("SELECT state, attempts, error FROM alarm_deliveries").fetchone()
            assert row is not None
            assert row[:2] == ("waiting", 1)
            assert said in row[2]
            there.always = OK
            db.execute("UPDATE alarm_deliveries SET due_at = now()")
            assert await desk.deliver(hook) == 1
        assert states(db) == [("delivered", 2)]
        # the same event, by the same id
        assert len(there.got) == 2
        assert len({got.headers["x-nevstream-event-id"] for got in there.got}) == 1
    assert "secret-in-the-url" not in caplog.text
    assert SECRET not in caplog.text


async def test_a_receiver_that_is_not_there_yet(dsn: str, db: Db) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    given = settings(f"http://127.0.0.1:{port}/hook")
    await raised(dsn, db, given, 3)
    async with running(dsn, given):
        await until(db, "min(attempts) >= 2")
        (error,) = db.execute("SELECT error FROM alarm_deliveries LIMIT 1").fetchone() or ("",)
        assert "ConnectError" in error
        async with receiver(port) as there:
            await settled(db)
            assert sorted(got.json["id"] for got in there.got) == ["1", "2", "3"]


async def test_given_up_and_said_and_sent_anew(dsn: str, db: Db, caplog: pytest.LogCaptureFixture) -> None:
    async with receiver(always=status(500)) as there:
        given = settings(there.url, webhook_attempts_max=3)
        await raised(dsn, db, given)
        async with running(dsn, given):
            await settled(db)
            assert states(db) == [("dead", 3)]
            assert "was not told of event 1 (raised): HTTP 500; given up after 3 attempts" in caplog.text
            there.always = OK
            desk = PostgresAlarms(dsn)
            assert await desk.retry_dead("desk") == 1
            await desk.close()
            await settled(db)
    assert states(db) == [("delivered", 1)]


async def test_too_old_is_given_up(dsn: str, db: Db) -> None:
    async with receiver(always=status(503)) as there:
        given = settings(there.url, webhook_age_max_h=2)
        await raised(dsn, db, given)
        db.execute("UPDATE alarm_deliveries SET created_at = now() - interval '3 hours'")
        async with sender(dsn, given) as desk:
            await desk.deliver(given.alarms.webhooks[0])
    assert db.execute("SELECT state, error FROM alarm_deliveries").fetchone() == (
        "dead", "HTTP 503; given up after 3.0 h (alarms.webhook_age_max_h)"
    )  # fmt: skip


def test_waits_double_up_to_the_cap() -> None:
    alarms = settings("http://127.0.0.1:1", webhook_retry_first_s=5, webhook_retry_max_s=900).alarms
    assert [retry_after_s(n, alarms, 0.5) for n in (1, 2, 3, 8, 9, 10_000)] == [5, 10, 20, 640, 900, 900]
    assert retry_after_s(1, alarms, 0.0) == 4.5
    assert retry_after_s(1, alarms, 1.0) == 5.5


@pytest.mark.parametrize(("asked", "wait_s"), [("30", 30), ("86400", 900), ("1", 5), ("soon", 5), ("-5", 5)])
async def test_a_receiver_may_ask_for_time(dsn: str, db: Db, asked: str, wait_s: float) -> None:
    async with receiver(always=status(429, f"Retry-After: {asked}")) as there:
        given = settings(there.url, webhook_retry_first_s=5)
        await raised(dsn, db, given)
        async with sender(dsn, given, chance=lambda: 0.5) as desk:
            await desk.deliver(given.alarms.webhooks[0])
    (due,) = db.execute("SELECT extract(epoch FROM due_at - now()) FROM alarm_deliveries").fetchone() or (0,)
    assert wait_s - 5 < due <= wait_s


# -- at least once, in order, bounded ----------------------------------------------------------------
async def test_killed_before_it_was_written_down(dsn: str, db: Db) -> None:
    async with receiver() as there:
        given = settings(there.url)
        await raised(dsn, db, given, 2)
        (hook,) = given.alarms.webhooks
        there.hold = asyncio.Event()
        async with sender(dsn, given) as desk:
            task = asyncio.create_task(desk.deliver(hook))
            await there.wait(2)
            task.cancel()  # the receiver has them, the database does not know
            await asyncio.gather(task, return_exceptions=True)
        there.hold.set()
        assert states(db) == [("waiting", 1), ("waiting", 1)]
        async with sender(dsn, given) as after:  # the process that comes next
            assert await after.deliver(hook) == 0  # the lease is not over
            db.execute("UPDATE alarm_deliveries SET due_at = now()")
            assert await after.deliver(hook) == 2
    assert sorted(got.headers["x-nevstream-event-id"] for got in there.got) == ["1", "1", "2", "2"]
    assert states(db) == [("delivered", 2), ("delivered", 2)]


async def test_two_senders_send_once(dsn: str, db: Db) -> None:
    async with receiver() as there:
        given = settings(there.url)
        await raised(dsn, db, given, 60)
        async with running(dsn, given), running(dsn, given):
            await settled(db)
    ids = [got.headers["x-nevstream-event-id"] for got in there.got]
    assert len(ids) == len(set(ids)) == 60


async def test_events_of_an_episode_arrive_in_order(dsn: str, db: Db) -> None:
    async with receiver(script=[status(500)] * 7) as there:
        given = settings(there.url)
        await raised(dsn, db, given, 5, level=1)
        db.execute("UPDATE alarm_episodes SET level = 2")
        await published(dsn, given)
        db.execute("UPDATE alarm_episodes SET settled_on = %s", [NOW.date()])
        await published(dsn, given)
        async with running(dsn, given):
            await settled(db)
    arrived: dict[int, list[str]] = {}
    for got in there.got[7:]:
        arrived.setdefault(got.json["alarm"]["id"], []).append(got.json["event"])
    for told in arrived.values():
        assert told in (
            ["raised", "changed", "ended"],
            ["changed", "ended"],
            ["ended"],
        )  # after a 500, from where it was
    assert sum(map(len, arrived.values())) == 15


async def test_attempts_at_once_are_bounded(dsn: str, db: Db) -> None:
    async with receiver() as there:
        there.hold = asyncio.Event()
        given = settings(there.url, webhook_concurrency=3)
        await raised(dsn, db, given, 12)
        async with running(dsn, given):
            await there.wait(3)
            await asyncio.sleep(0.2)
            assert len(there.got) == 3
            there.hold.set()
            await settled(db)
    assert there.at_once_max == 3
    assert len(there.got) == 12


async def test_a_slow_hook_delays_no_other(dsn: str, db: Db) -> None:
    async with receiver(always=None) as slow, receiver() as quick:
        given = settings("", hooks=[
            {"name": "slow", "url": slow.url, "secret": SECRET}, {"name": "quick", "url": quick.url, "secret": SECRET},
        ], webhook_timeout_s=3.0)  # fmt: skip
        await raised(dsn, db, given, 10)
        async with running(dsn, given):
            await quick.wait(10)
            assert len(slow.got) <= 4


# -- where it may go ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("address", "any_of", "public"),
    [
        ("127.0.0.1", True, False), ("10.1.2.3", True, False), ("192.168.1.1", True, False), ("fd00::1", True, False),
        ("::1", True, False), ("8.8.8.8", True, True), ("2001:4860:4860::8888", True, True),
        ("169.254.169.254", False, False), ("fe80::1", False, False), ("100.100.100.200", False, False),
        ("fd00:ec2::254", False, False), ("0.0.0.0", False, False), ("::", False, False), ("224.0.0.1", False, False),
        ("::ffff:169.254.169.254", False, False), ("::ffff:10.0.0.1", True, False), ("100.64.0.1", True, False),
    ],
)  # fmt: skip
def test_addresses(address: str, any_of: bool, public: bool) -> None:
    found = ipaddress.ip_address(address)
    assert allowed(found, WebhookTargets.ANY) is any_of
    assert allowed(found, WebhookTargets.PUBLIC) is public


async def test_the_connection_goes_to_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [[(2, 1, 6, "", ("169.254.169.254", 443)), (2, 1, 6, "", ("93.184.216.34", 443))],
               [(2, 1, 6, "", ("10.0.0.1", 443))], [(10, 1, 6, "", ("2001:db8::1", 443, 0, 0))]]  # fmt: skip

    async def looked_up(*_: Any, **__: Any) -> Any:
        return answers.pop(0)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", looked_up)
    target = await resolved("https://hooks.example.org/a?b=c", WebhookTargets.PUBLIC)
    assert target == ("https://93.184.216.34:443/a?b=c", "hooks.example.org", "hooks.example.org")
    with pytest.raises(Refused, match=r"leads to 10\.0\.0\.1, which alarms\.webhook_targets = 'public'"):
        await resolved("https://hooks.example.org/a", WebhookTargets.PUBLIC)
    target = await resolved("https://hooks.example.org:8443", WebhookTargets.ANY)
    assert target == ("https://[2001:db8::1]:8443/", "hooks.example.org:8443", "hooks.example.org")


async def test_refused_addresses_are_not_called(dsn: str, db: Db) -> None:
    async with receiver() as there:
        given = settings(there.url, webhook_targets="public")
        await raised(dsn, db, given)
        async with sender(dsn, given) as desk:
            await desk.deliver(given.alarms.webhooks[0])
    assert there.got == []
    (error,) = db.execute("SELECT error FROM alarm_deliveries").fetchone() or ("",)
    assert "127.0.0.1" in error


async def test_no_proxy_of_the_environment(dsn: str, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as there, receiver() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        given = settings(there.url)
        await raised(dsn, db, given)
        async with sender(dsn, given) as desk:
            await desk.deliver(given.alarms.webhooks[0])
    assert (len(there.got), len(proxy.got)) == (1, 0)


async def test_a_trial_is_in_no_outbox(dsn: str, db: Db) -> None:
    async with receiver(script=[OK, status(401)]) as there:
        given = settings(there.url)
        async with sender(dsn, given) as desk:
            (hook,) = given.alarms.webhooks
            good, bad = await desk.test(hook), await desk.test(hook)
    assert (good.status, good.error) == (200, None)
    assert (bad.status, bad.error) == (401, "HTTP 401")
    assert there.got[0].json == {"id": "0", "event": "test", "occurred_at": there.got[0].json["occurred_at"],
                                 "alarm": None}  # fmt: skip
    assert states(db) == []


def test_what_is_shown_of_a_url() -> None:
    assert masked("https://hooks.example.org:8443/robot/send?access_token=abc") == "https://hooks.example.org:8443/…"


# -- over TLS ----------------------------------------------------------------------------------------
async def test_a_certificate_must_be_that_of_the_name(
    dsn: str, db: Db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_files = make(tmp_path, "--host", "hooks.example.org")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(made_files["cert_file"], made_files["key_file"])
    loop, real = asyncio.get_running_loop(), asyncio.get_running_loop().getaddrinfo

    async def at_home(host: Any, port: int, **more: Any) -> Any:
        return await real("127.0.0.1" if str(host).endswith("example.org") else host, port, **more)

    monkeypatch.setattr(loop, "getaddrinfo", at_home)
    async with receiver(tls=server) as there:
        hooks = [
            {"name": name, "url": f"https://{name}.example.org:{there.port}/", "secret": SECRET}
            for name in ("hooks", "other")
        ]
        given = settings("", hooks=hooks, webhook_ca_file=made_files["client_ca_file"])
        await raised(dsn, db, given)
        async with sender(dsn, given) as desk:
            for hook in given.alarms.webhooks:
                await desk.deliver(hook)
        strict = settings("", hooks=hooks)  # the public authorities do not know this one
        db.execute("UPDATE alarm_deliveries SET due_at = now()")
        async with sender(dsn, strict) as desk:
            await desk.deliver(strict.alarms.webhooks[1])
    assert [got.headers["host"] for got in there.got] == [f"hooks.example.org:{there.port}"]
    found = dict(db.execute("SELECT hook, state FROM alarm_deliveries").fetchall())
    assert found == {"hooks": "delivered", "other": "waiting"}
    (error,) = db.execute("SELECT error FROM alarm_deliveries WHERE hook = 'other'").fetchone() or ("",)
    assert "CERTIFICATE_VERIFY_FAILED" in error


def test_an_authority_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="webhook_ca_file"):
        trusted(str(tmp_path / "none.pem"))
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match="webhook_ca_file"):
        trusted(str(tmp_path / "bad.pem"))
