"""Commands over HTTP and on the command line, and all the way to a terminal and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from schemas.gbt32960.frame import build_frame
from services.cli import app as cli
from services.gateway.server import Gateway
from services.journal.memory import MemoryJournal
from services.settings import Settings
from services.store.commands import PostgresCommands
from services.store.directory import MemoryDirectory
from services.store.queries import Queries
from services.web.app import create_app
from services.web.commands import CommandPage, CommandQueued
from tests.gateway.playing import VIN, Client, login
from tests.web import rows
from tests.web.test_problems import problem

PATH = f"/v1/vehicles/{VIN}/commands"
QUERY = {"kind": "query", "body": {"params": ["report_period"]}}


@asynccontextmanager
async def client_of(dsn: str, peer: str = "127.0.0.1", **web: Any) -> AsyncIterator[httpx.AsyncClient]:
    queries, commands = Queries(dsn), PostgresCommands(dsn)
    app = create_app(Settings.read(overrides={"web": web}), queries, now=lambda: rows.NOW, commands=commands)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as made:
        yield made
    await queries.close()
    await commands.close()


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(dsn) as made:
        yield made


async def test_queued_and_listed(client: httpx.AsyncClient) -> None:
    asked = await client.post(PATH, json=QUERY)
    assert asked.status_code == 202, asked.text
    number = CommandQueued.model_validate(asked.json()).id
    reset = {"kind": "control", "body": {"control": "reset"}, "edition": 2025, "expires_s": 60}
    assert (await client.post(PATH, json=reset)).status_code == 202
    page = CommandPage.model_validate((await client.get(PATH)).json())
    assert [(one.kind, one.state, one.edition, one.created_by) for one in page.commands] == [
        ("control", "queued", 2025, "api"), ("query", "queued", None, "api")
    ]  # fmt: skip
    assert page.commands[1].id == number
    first = (await client.get(PATH, params={"limit": 1})).json()
    second = (await client.get(first["next"])).json()
    assert [one["id"] for one in second["commands"]] == [number]
    assert second["next"] is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"kind": "query", "body": {"params": ["speed"]}}, "'speed' is not a parameter"),
        ({"kind": "set", "body": {"params": {"report_period": 600}}, "edition": 2025}, "not 1 to 30"),
        ({"kind": "set", "body": {"params": {"platform_domain": "a\0"}}}, "NUL"),
        ({"kind": "fly", "body": {}}, "kind"),
        ({"kind": "query"}, "body"),
        ({**QUERY, "more": 1}, "more"),
        ({**QUERY, "edition": 2020}, "edition"),
        ({**QUERY, "expires_s": 0}, "expires_s"),
    ],
)
async def test_what_cannot_be_asked(client: httpx.AsyncClient, asked: dict[str, Any], told: str) -> None:
    answer = await client.post(PATH, json=asked)
    assert answer.status_code == 422
    assert told in answer.text


async def test_who_may_ask(dsn: str) -> None:
    for peer, web in (("10.0.0.9", {}), ("127.0.0.1", {"host": "0.0.0.0"}), ("127.0.0.1", {"allow_changes": False})):
        async with client_of(dsn, peer, **web) as client:
            problem(await client.post(PATH, json=QUERY), 403)
            assert (await client.get(PATH)).status_code == 200  # looking is allowed
    async with client_of(dsn) as client:
        problem(await client.post(PATH, json=QUERY, headers={"Origin": "https://evil.example"}), 403)


async def test_too_many_and_wrong_cursors(client: httpx.AsyncClient) -> None:
    for _ in range(100):
        await client.post(PATH, json=QUERY)
    problem(await client.post(PATH, json=QUERY), 409)
    problem(await client.get(PATH, params={"cursor": "x"}), 422)
    problem(await client.post("/v1/vehicles/a%20b/commands", json=QUERY), 422)


async def test_to_a_terminal_and_back(dsn: str, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.read(
        overrides={
            "gateway": {"mqtt": {"port": 0}, "gbt32960": {"port": 0}, "commands": {"poll_s": 0.02}},
            "journal": {"partitions": 2},
        }
    )
    queue = PostgresCommands(dsn)
    gateway = Gateway(settings, MemoryJournal(2), MemoryDirectory(), queue)
    await gateway.start()
    vehicle = Client(*await asyncio.open_connection(*gateway.addresses["gbt32960"]))
    vehicle.send(login())
    await vehicle.read(31)
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)
    arguments = ["command", "query", VIN, "report_period", "platform_domain", "--wait", "20", "--json"]
    typed = asyncio.create_task(asyncio.to_thread(CliRunner().invoke, cli, arguments))
    head = await vehicle.read(24)
    sent = head + await vehicle.read(head[23] + 1)
    assert sent[30:-1] == b"\x03\x02\x04\x05"
    values = b"\x03\x02\x00\x0a\x04\x03\x05a.b"
    vehicle.send(build_frame(16, 0x80, 0x01, VIN, 1, sent[24:30] + values))
    result = await typed
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert (told["state"], told["ack"], told["door"], told["attempts"]) == ("answered", "success", "gbt32960", 1)
    assert [one["value"] for one in told["answer"]["params"]] == [10, 3, "a.b"]
    listed = CommandPage.model_validate((await client.get(PATH)).json()).commands[0]
    assert listed.frame_hex == sent.hex()
    assert listed.answer_hex is not None
    assert listed.sent_at is not None
    vehicle.close()
    await gateway.drain(5.0)
    await queue.close()


def test_on_the_command_line(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)
    run = CliRunner().invoke
    told = run(cli, ["command", "set", VIN, "report_period=10", "platform_domain=tsp.example", "--wait", "0"])
    assert told.exit_code == 0, told.output
    assert "queued as 1" in told.output
    warning = ["command", "control", VIN, "warning", "level=2", "text=42", "--wait", "0", "--json"]
    assert json.loads(run(cli, warning).output)["body"] == {"control": "warning", "level": 2, "text": "42"}
    custom = ["command", "control", VIN, "129", "hex=0102", "--wait", "0", "--json"]
    assert json.loads(run(cli, custom).output)["body"] == {"control": 129, "hex": "0102"}
    numbers = ["command", "query", VIN, "1", "0x02", "9", "128", "--wait", "0", "--json"]
    assert json.loads(run(cli, numbers).output)["body"] == {
        "params": ["storage_period_ms", "report_period", "heartbeat_period_s", 128]
    }
    by_number = ["command", "set", VIN, "2=10", "0x05=tsp.example", "--wait", "0", "--json"]
    assert json.loads(run(cli, by_number).output)["body"] == {
        "params": {"report_period": 10, "platform_domain": "tsp.example"}
    }
    listed = run(cli, ["command", "list", VIN])
    assert "report_period=10, platform_domain=tsp.example" in listed.output
    assert run(cli, ["command", "list", "NOBODY"]).output.startswith("no command")
    for wrong in (
        ["query", VIN, "speed"],
        ["set", VIN, "x"],
        ["query", "a b", "report_period"],
        ["query", VIN, "17"],
        ["set", VIN, "7=1"],
        ["set", VIN, "2"],
    ):
        assert run(cli, ["command", *wrong, "--wait", "0"]).exit_code != 0
