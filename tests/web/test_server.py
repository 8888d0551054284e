"""The server: answers on a socket, stops when told to, and says when the port is taken."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import uvloop

from services.certificates import Certificates
from services.errors import PortInUse, UsageError
from services.settings import Settings
from services.store.queries import Queries
from services.web import server
from services.web.server import bind, serve
from tests.gateway.certs import client_context, make
from tests.web import rows


async def test_answers_and_stops(db: psycopg.Connection[Any], dsn: str) -> None:
    rows.vehicle(db, rows.VIN)
    stop = asyncio.Event()
    address: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(Settings(), Queries(dsn), stop, port=0, started=address.set_result))
    host, port = await address
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60) as client:
        answer = await client.get("/v1/vehicles")
        assert answer.json()["count"] == 1
        assert "server" not in answer.headers
    stop.set()
    await serving
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))


def test_runs_on_the_loop_that_production_has(fleet_dsn: str) -> None:
    async def once() -> int:
        stop = asyncio.Event()
        address: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(Settings(), Queries(fleet_dsn), stop, port=0, started=address.set_result))
            host, port = await address
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60) as client:
                count: int = (await client.get("/v1/vehicles")).json()["count"]
            stop.set()
        return count

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(once()) == 4


async def test_https_with_a_certificate(fleet_dsn: str, tmp_path: Path) -> None:
    made = make(tmp_path)
    settings = Settings.read(overrides={"web": {"tls": {"cert_file": made["cert_file"], "key_file": made["key_file"]}}})
    stop = asyncio.Event()
    address: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, Queries(fleet_dsn), stop, port=0, started=address.set_result))
        _, port = await address
        async with httpx.AsyncClient(
            base_url=f"https://localhost:{port}", verify=client_context(made), timeout=60
        ) as client:
            assert (await client.get("/v1/vehicles")).json()["count"] == 4
        async with httpx.AsyncClient(timeout=60) as stranger:
            with pytest.raises(httpx.ConnectError):
                await stranger.get(f"https://localhost:{port}/v1/vehicles")
            with pytest.raises(httpx.RemoteProtocolError):
                await stranger.get(f"http://127.0.0.1:{port}/v1/vehicles")
        stop.set()


async def test_new_certificates_serve_the_next_handshake(
    fleet_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path)
    settings = Settings.read(overrides={"web": {"tls": {"cert_file": made["cert_file"], "key_file": made["key_file"]}}})
    used: list[Certificates] = []

    def remembered(*given: Any) -> Certificates:
        used.append(Certificates(*given))
        return used[-1]

    monkeypatch.setattr(server, "Certificates", remembered)
    stop = asyncio.Event()
    address: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

    async def shown() -> bytes:
        _, writer = await asyncio.open_connection("localhost", port, ssl=client_context(made))
        found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        return found

    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, Queries(fleet_dsn), stop, port=0, started=address.set_result))
        _, port = await address
        before = await shown()
        make(tmp_path)  # the same authority signs a new one
        assert used[0].look()
        assert await shown() != before
        stop.set()


async def test_port_in_use_is_said_before_anything_starts() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"{port}.*web.port"):
            await serve(Settings(), Queries("host=127.0.0.1 port=1"), asyncio.Event(), port=port)


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(UsageError, match=r"web\.host"):
        bind("192.0.2.1", 0)
    with pytest.raises(UsageError, match=r"web\.host"):
        bind("no such host", 0)
