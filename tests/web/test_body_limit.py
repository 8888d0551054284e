"""A body that is too long is answered, however its length is told or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from services.settings import Settings
from services.store.queries import Queries
from services.web.body_limit import SHEETS, BodyLimit
from services.web.server import serve
from tests.web import rows
from tests.web.conftest import client_of

MOST = 2048
PATH = f"/v1/registry/vehicles/{rows.VIN}"


async def _echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def echoing() -> httpx.AsyncClient:
    paths = ["/", *SHEETS]
    inner = Starlette(routes=[Route(path, _echo, methods=["GET", "POST"]) for path in paths])
    transport = httpx.ASGITransport(app=BodyLimit(inner, MOST))
    return httpx.AsyncClient(transport=transport, base_url="http://nevstream")


async def pieces(length: int, size: int = 100) -> AsyncIterator[bytes]:
    for at in range(0, length, size):
        yield b"x" * min(size, length - at)


def refused(answer: httpx.Response, most: int) -> None:
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["type"] == "urn:nevstream:problem:too-long"
    assert f"{most:,} bytes" in found["detail"]
    assert "web.body_bytes_max" in found["how_to_fix"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("length", [0, 1, MOST, MOST + 1, 10 * MOST])
async def test_to_the_byte(length: int, chunked: bool) -> None:
    async with echoing() as client:
        answer = await client.post("/", content=pieces(length) if chunked else b"x" * length)
    if length <= MOST:
        assert answer.text == str(length)
    else:
        refused(answer, MOST)


async def test_a_length_that_is_announced_is_not_waited_for() -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async with echoing() as client:
        for method in ("POST", "GET"):
            length = {"Content-Length": "9" * 30}
            refused(await client.request(method, "/", content=never(), headers=length), MOST)


async def test_sheets_have_their_own_limit() -> None:
    async with echoing() as client:
        for path in SHEETS:
            assert (await client.post(path, content=pieces(5 * MOST))).text == str(5 * MOST)


@pytest.mark.parametrize("chunked", [False, True])
async def test_over_a_socket(fleet_dsn: str, chunked: bool) -> None:
    settings = Settings.read(overrides={"web": {"body_bytes_max": MOST}})
    stop = asyncio.Event()
    address: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, Queries(fleet_dsn), stop, port=0, started=address.set_result))
        host, port = await address
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60) as client:
            body = pieces(MOST + 1) if chunked else b"x" * (MOST + 1)
            headers = {"Content-Type": "application/json"}
            refused(await client.patch(PATH, content=body, headers=headers), MOST)
            assert (await client.get("/v1/vehicles")).status_code == 200
        stop.set()


async def test_the_default(fleet_dsn: str) -> None:
    queries = Queries(fleet_dsn)
    most = Settings().web.body_bytes_max
    async with client_of(queries) as client:
        refused(await client.patch(PATH, content=pieces(most + 1, 65_536)), most)
        assert (await client.patch(PATH, content=b"x" * most)).status_code != 413
    await queries.close()
