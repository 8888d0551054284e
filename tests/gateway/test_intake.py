"""The arena under unusual orders of reading, and admission when the store is not what it should be."""

from __future__ import annotations

import asyncio
import logging

import pytest

from services.gateway.link import Link
from services.store.directory import MemoryDirectory
from tests.gateway.playing import OTHER, VIN, Start, connect, login, report
from tests.gateway.test_gbt import USERS, platform_login, spec_reply


def arrives(link: Link, data: bytes) -> None:
    """What the event loop does when ``data`` is read from the link's socket."""
    room = link.get_buffer(-1)
    room[: len(data)] = data
    link.buffer_updated(len(data))


async def test_reads_of_two_connections_that_alternate_within_a_tick(start: Start) -> None:
    run = await start()
    one, two = await run.vehicle(VIN), await run.vehicle(OTHER)
    first, second = run.gateway.gbt32960.by_vin[VIN], run.gateway.gbt32960.by_vin[OTHER]
    a, b = report(VIN) + report(VIN, second=8), report(OTHER)
    arrives(first, a[:100])
    arrives(second, b[:20])
    arrives(first, a[100:110])  # not behind its earlier bytes any more
    arrives(first, a[110:])
    arrives(second, b[20:])
    await one.expect(spec_reply(report(VIN), 1) + spec_reply(report(VIN, second=8), 1))
    await two.expect(spec_reply(b, 1))
    assert run.gateway._intake._carry_bytes == 0
    assert len(await run.kept()) == 5


async def test_an_arena_that_fills_up_is_emptied_at_once(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    link = run.gateway.gbt32960.by_vin[VIN]
    frames = b"".join(report(second=k % 60, body=bytes(500)) for k in range(100))
    tick = run.gateway._intake.tick_number
    while run.gateway._intake.tick_number == tick:
        arrives(link, frames)
    assert run.gateway._intake.cursor == 0
    await client.read(31 * 100)


async def test_bytes_read_just_before_the_connection_is_lost_count(start: Start) -> None:
    run = await start()
    await run.vehicle()
    link = run.gateway.gbt32960.by_vin[VIN]
    assert link._transport is not None
    link._transport.abort()  # the loop will say so in its next turn; here it is said before the tick
    arrives(link, report())
    link.connection_lost(None)

    async def there() -> bool:
        return ("", report()) in await run.kept()

    await run.until(there)


async def test_stopping_while_a_password_is_verified(start: Start) -> None:
    directory = MemoryDirectory(passwords={VIN: "pw"})
    run = await start(directory, mqtt={"auth": "password"})
    asked, never = asyncio.Event(), asyncio.Event()

    async def slow(vin: str) -> str | None:
        asked.set()
        await never.wait()
        return None

    directory.password_hash = slow  # type: ignore[method-assign]
    client = await run.client("mqtt")
    client.send(connect(VIN, username=VIN, password=b"pw"))
    await asyncio.wait_for(asked.wait(), 60)
    await run.gateway.drain(1.0)
    assert await client.rest() == b""


async def test_a_client_that_does_not_wait_for_its_password(start: Start) -> None:
    directory = MemoryDirectory(passwords={VIN: "pw"})
    run = await start(directory, mqtt={"auth": "password"})
    asked, go = asyncio.Event(), asyncio.Event()
    right = directory.hashes[VIN]

    async def slow(vin: str) -> str | None:
        asked.set()
        await go.wait()
        return right

    directory.password_hash = slow  # type: ignore[method-assign]
    client = await run.client("mqtt")
    client.send(connect(VIN, username=VIN, password=b"pw"))
    await asyncio.wait_for(asked.wait(), 60)
    for link in run.gateway._connections.all():
        link.abort()
    await run.until(lambda: run.gateway._connections.count == 0)
    go.set()
    await run.until(lambda: not run.gateway.mqtt._verifications)
    assert run.gateway.mqtt.by_vin == {}


async def test_a_stored_hash_that_is_not_argon2(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    directory = MemoryDirectory(passwords={VIN: "pw"})
    directory.hashes[VIN] = "plain"
    run = await start(directory, mqtt={"auth": "password"})
    client = await run.client("mqtt")
    client.send(connect(VIN, username=VIN, password=b"pw"))
    assert await client.rest() == bytes.fromhex("20020004")
    assert f"password hash of {VIN} is not argon2" in caplog.text
    assert "plain" not in caplog.text


async def test_an_allowlist_outlives_the_store(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    run = await start(MemoryDirectory({VIN}), registry="allowlist", registry_refresh_s=0.01)
    run.directory.away = True
    with caplog.at_level(logging.WARNING, "nevstream.gateway"):
        await run.until(lambda: "the last one read still holds" in caplog.text)
    client = await run.client("gbt32960")
    client.send(login() + login(OTHER))
    await client.expect(spec_reply(login(), 1) + spec_reply(login(OTHER), 2))


async def test_a_platform_under_an_empty_allowlist(start: Start) -> None:
    run = await start(MemoryDirectory(), registry="allowlist", **USERS)
    client = await run.client("gbt32960")
    client.send(platform_login() + report())
    await client.expect(spec_reply(platform_login(), 1) + spec_reply(report(), 2))
