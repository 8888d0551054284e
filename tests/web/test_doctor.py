"""The doctor, end to end: real sockets, the journal and the store in a database, then a question.

Each test lets a vehicle do one thing wrong (or nothing), and reads the first sentence.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from schemas.gbt32960.times import time_bytes
from services.cli import app
from services.gateway.server import Gateway
from services.journal.postgres import PostgresJournal
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.directory import PostgresDirectory, add_vehicles, set_password
from services.store.link_events import LinkEventsKept
from services.store.postgres import PostgresSink
from services.store.queries import Queries
from services.web.diagnosis import DiagnosisModel
from services.web.doctor import Finding, Severity, diagnose
from tests.gateway.broker import Broker
from tests.gateway.playing import OTHER, VIN, Client, broken, connect, login, report
from tests.web import rows
from tests.web.conftest import client_of

PARTITIONS = 2


class Site:
    """A gateway, and on demand a pipeline, on one database."""

    def __init__(self, dsn: str, gateway: dict[str, Any]) -> None:
        doors = {door: {"port": 0, **gateway.pop(door, {})} for door in ("mqtt", "gbt32960")}
        self.dsn = dsn
        self.settings = Settings.read(
            overrides={"gateway": {**gateway, **doors}, "journal": {"partitions": PARTITIONS}}
        )
        self.journal = PostgresJournal(dsn, PARTITIONS)
        self.directory = PostgresDirectory(dsn)
        self.gateway = Gateway(self.settings, self.journal, self.directory)
        self.queries = Queries(dsn)

    async def client(self, door: str) -> Client:
        return Client(*await asyncio.open_connection(*self.gateway.addresses[door]))

    async def vehicle(self, vin: str = VIN) -> Client:
        made = await self.client("gbt32960")
        made.send(login(vin))
        assert (await made.read(31))[3] == 1
        return made

    async def empty(self) -> None:
        """Wait until the gateway has seen everybody go."""
        async with asyncio.timeout(60):
            while self.gateway._connections.count:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)

    async def stored(self) -> None:
        """Stop the gateway in good order and store all it has journaled."""
        await self.gateway.drain(5.0)
        sink = PostgresSink(self.dsn, self.settings)
        pipeline = Pipeline(self.settings, self.journal, sink, range(PARTITIONS))
        stop = asyncio.Event()
        task = asyncio.create_task(pipeline.run(stop))
        await asyncio.wait_for(pipeline.caught_up(), 60)
        stop.set()
        await task
        await sink.close()

    async def close(self) -> None:
        await self.gateway.drain(5.0)
        await self.journal.close()
        await self.directory.close()
        await self.queries.close()

    async def doctor(self, vin: str = VIN, later: timedelta = timedelta(0)) -> list[Finding]:
        now = datetime.now(UTC) + later
        return diagnose(vin, await self.queries.diagnosis(vin, now=now), self.settings, now)


Begin = Callable[..., Awaitable[Site]]


@pytest.fixture
async def site(dsn: str) -> AsyncIterator[Begin]:
    made: list[Site] = []

    async def begin(**gateway: Any) -> Site:
        one = Site(dsn, gateway)
        made.append(one)
        await one.journal.open()
        await one.gateway.start()
        return one

    yield begin
    for one in made:
        await one.close()


def now_report(offset_s: int = 0, vin: str = VIN) -> bytes:
    """A report that is dated now, or so far from it."""
    return dated(int(time.time()) + offset_s, vin)


async def test_a_bridge_that_is_down_is_the_cause(site: Begin) -> None:
    broker = Broker()
    await broker.listen()
    one = await site(bridge={"url": f"mqtt://127.0.0.1:{broker.port}", "retry_first_s": 60.0})
    peer = await (await broker.peer()).ready()
    peer.publish(now_report(), 1)
    await peer.hear(0x40)
    await broker.close()
    await one.empty()
    await one.stored()
    fine = await one.doctor()
    assert fine[0].code == "fine"
    (bridge,) = [finding for finding in fine if finding.code == "bridge"]
    assert "0 of 1" in bridge.sentence
    assert "ended the bridge's connection" in bridge.sentence
    silent = await one.doctor(later=timedelta(hours=1))
    assert silent[0].code == "bridge_lost"
    assert f"127.0.0.1:{broker.port}" in silent[0].sentence
    stranger = await one.doctor(OTHER, timedelta(hours=1))
    assert f"the broker 127.0.0.1:{broker.port}" in stranger[0].to_do


def dated(second: int, vin: str = VIN) -> bytes:
    frame = report(vin, body=b"\x05" + bytes(9))  # one location block
    body = bytearray(frame[:24] + time_bytes(second) + frame[30:-1])
    check = 0
    for byte in body[2:]:
        check ^= byte
    return bytes(body) + bytes((check,))


async def test_never_seen(site: Begin) -> None:
    one = await site()
    first, *rest = await one.doctor()
    assert (first.code, first.severity) == ("never_seen", Severity.ERROR)
    assert first.sentence.startswith(f"{VIN} has never reached this system")
    assert "MQTT 127.0.0.1" in first.to_do
    assert {finding.code for finding in rest} == {"registry", "journal"}
    add_vehicles(one.dsn, [VIN])
    assert "it is in the registry" in (await one.doctor())[0].sentence


async def test_wrong_password(site: Begin) -> None:
    one = await site(mqtt={"auth": "password"})
    add_vehicles(one.dsn, [VIN])
    set_password(one.dsn, VIN, "right")
    client = await one.client("mqtt")
    client.send(connect(VIN, 5, username=VIN, password=b"wrong"))
    await client.rest()
    client.close()
    await one.stored()
    first = (await one.doctor())[0]
    assert (first.code, first.severity) == ("bad_password", Severity.ERROR)
    assert first.sentence.startswith(f"{VIN} is not let in: wrong user name or password.")
    assert "127.0.0.1:" in first.evidence["peer"]
    assert f"nevstream vehicles set-password {VIN}" in first.to_do
    assert "right" not in str(first)


async def test_not_in_the_allowlist(site: Begin) -> None:
    one = await site(registry="allowlist")
    client = await one.client("gbt32960")
    client.send(login())
    await client.read(31)
    client.close()
    await one.stored()
    first = (await one.doctor())[0]
    assert first.code == "not_in_allowlist"
    assert "it tried" in first.sentence
    assert f"nevstream vehicles add {VIN}" in first.to_do


async def test_replaced_again_and_again(site: Begin) -> None:
    one = await site()
    clients = [await one.vehicle() for _ in range(4)]
    clients[-1].send(now_report())
    await clients[-1].read(31)
    await one.stored()
    for client in clients:
        client.close()
    first = (await one.doctor())[0]
    assert (first.code, first.severity) == ("replaced", Severity.ERROR)
    assert "3 times in the last day" in first.sentence
    peers = ["{}:{}".format(*client.writer.get_extra_info("sockname")) for client in clients[-2:]]
    assert (first.evidence["peer"], first.evidence["by_peer"]) == tuple(peers)


async def test_a_wrong_clock(site: Begin) -> None:
    one = await site()
    client = await one.vehicle()
    for _ in range(3):
        client.send(now_report(7200))
        await client.read(31)
    client.close()
    await one.stored()
    first = (await one.doctor())[0]
    assert (first.code, first.severity) == ("dead_letters_clock_future", Severity.ERROR)
    assert "dated 2 h ahead of its arrival" in first.sentence
    assert first.evidence["in_a_day"] == 3
    assert abs(first.evidence["clock_offset_s"] - 7200) < 60
    assert "time sync" in first.to_do


async def test_a_clock_that_is_a_little_wrong(site: Begin) -> None:
    one = await site()
    client = await one.vehicle()
    for k in range(12):
        client.send(now_report(200 + k))
        await client.read(31)
    client.close()
    await one.stored()
    found = {finding.code: finding for finding in await one.doctor()}
    assert next(iter(found)) == "fine"
    assert found["clock"].severity is Severity.WARNING
    assert "in the future: the terminal's clock is ahead" in found["clock"].sentence


async def test_silent_since(site: Begin) -> None:
    one = await site()
    client = await one.vehicle()
    client.send(now_report())
    await client.read(31)
    client.close()
    await asyncio.wait_for(client.writer.wait_closed(), 60)
    await one.empty()
    await one.stored()
    first = (await one.doctor(later=timedelta(hours=5)))[0]
    assert first.code == "silent"
    assert first.sentence.startswith(f"{VIN} is silent since 5 h: its last report came 5 h ago")
    assert "the vehicle or the network ended the connection" in first.sentence
    assert first.evidence["cause"] == "peer"


async def test_connected_and_mute(site: Begin) -> None:
    one = await site()
    client = await one.vehicle()
    await one.gateway._committer.flushed()
    one.gateway._stop_listening()
    sink = PostgresSink(one.dsn, one.settings)
    pipeline = Pipeline(one.settings, one.journal, sink, range(PARTITIONS))
    stop = asyncio.Event()
    task = asyncio.create_task(pipeline.run(stop))
    await asyncio.wait_for(pipeline.caught_up(), 60)
    stop.set()
    await task
    await sink.close()
    first = (await one.doctor())[0]
    assert first.code == "connected_no_reports"
    assert "has never sent a report that could be stored" in first.sentence
    client.close()


async def test_fine(site: Begin) -> None:
    one = await site()
    client = await one.vehicle()
    second = int(time.time())
    for k in range(30):
        client.send(dated(second - 30 + k))
    await client.read(30 * 31)
    client.close()
    await one.stored()
    findings = await one.doctor()
    assert (findings[0].code, findings[0].severity) == ("fine", Severity.OK)
    assert findings[0].sentence.startswith(f"{VIN} is reporting: its newest report came")
    assert all(finding.severity <= Severity.INFO for finding in findings), findings
    found = {finding.code: finding for finding in findings}
    assert "0.0% of its reports are missing" in found["missing_share"].sentence
    assert found["missing_share"].evidence["interval_s"] == 1
    assert "succeeded (GB/T 32960 edition 2016)" in found["last_login"].sentence


async def test_holes_and_errors_beside_good_reports(site: Begin) -> None:
    one = await site()
    client = await one.vehicle()
    second = int(time.time())
    for k in range(30):
        if not 10 <= k < 20:
            client.send(dated(second - 30 + k))
    client.send(broken(report()))
    await client.read(21 * 31)
    client.close()
    await one.stored()
    found = {finding.code: finding for finding in await one.doctor()}
    assert next(iter(found)) == "fine"
    assert found["missing_share"].severity is Severity.WARNING
    assert found["missing_share"].evidence["missing"] == 10
    assert "answered with 0x02" in found["last_error_answer"].sentence
    assert found["dead_letters_bad_bcc"].severity is Severity.WARNING


async def test_a_pipeline_that_is_behind(site: Begin) -> None:
    one = await site()
    client = await one.vehicle()
    client.send(now_report())
    await client.read(31)
    client.close()
    await one.gateway.drain(5.0)  # journaled, and nobody stores it
    first = (await one.doctor(later=timedelta(minutes=10)))[0]
    assert first.code == "backlog"
    assert "the pipeline is behind by 10 min" in first.sentence


# -- over HTTP and on the command line -------------------------------------------------------------
async def test_over_http(fleet_dsn: str) -> None:
    queries = Queries(fleet_dsn)
    async with client_of(queries) as client:
        for vin in (rows.VIN, rows.SILENT, "NOBODYKNOWS000001"):
            answer = await client.get(f"/v1/vehicles/{vin}/diagnosis")
            assert answer.status_code == 200, answer.text
            found = DiagnosisModel.model_validate(answer.json())
            assert found.verdict == found.findings[0].sentence
            assert vin in found.verdict
        assert (await client.get("/v1/vehicles/a%20b/diagnosis")).status_code == 422
    await queries.close()


def test_on_the_command_line(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)
    told = CliRunner().invoke(app, ["doctor", OTHER, "--evidence"])
    assert told.exit_code == 1
    assert "has never reached this system" in told.output
    told = CliRunner().invoke(app, ["doctor", OTHER, "--json"])
    assert json.loads(told.output)["severity"] == "error"
    assert CliRunner().invoke(app, ["doctor", "a b"]).exit_code != 0


# -- retention -------------------------------------------------------------------------------------
async def test_old_events_are_dropped(dsn: str, db: psycopg.Connection[Any]) -> None:
    now = datetime.now(UTC)
    for number, days in enumerate((1, 89, 91, 400)):
        rows.insert(
            db, "link_events", origin=1, number=number, occurred_at=now - timedelta(days=days), event="closed", door=1
        )  # fmt: skip
    kept = LinkEventsKept(dsn)
    assert await kept.prune(90) == 2
    assert await kept.prune(90) == 0
    await kept.close()
    assert db.execute("SELECT count(*) FROM link_events").fetchone() == (2,)
