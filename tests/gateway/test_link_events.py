"""What is told of connections: who came, who was refused and why, who went, and that it stays bounded."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from schemas.link_events import Event
from schemas.mqtt.packets import Will
from services.gateway.events import WAITING_MAX
from services.settings import Settings
from services.store.directory import MemoryDirectory
from tests.gateway.playing import OTHER, VIN, Running, Start, broken, connect, login, logout, publish, report
from tests.gateway.test_gbt import platform_login


async def settled(run: Running, *wanted: tuple[str, str, str]) -> None:
    """Wait until exactly these events (event, cause, VIN) are durable."""

    async def there() -> bool:
        return await run.told() == list(wanted)

    try:
        await run.until(there)
    except TimeoutError:
        assert await run.told() == list(wanted)


async def test_a_vehicles_day(start: Start) -> None:
    run = await start()
    client = await run.vehicle(edition=25)
    client.send(report(edition=25))
    await client.read(31)
    client.close()
    await settled(run, ("connected", "", VIN), ("closed", "peer", VIN))
    first, last = await run.events()
    assert first.peer.startswith("127.0.0.1:")
    assert (first.detail, first.door, last.peer) == ("GB/T 32960 edition 2025", 1, first.peer)


async def test_logout_and_login_again_on_one_connection(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(login() + logout() + login() + logout())
    await client.read(4 * 31)
    client.close()
    await settled(
        run, ("connected", "", VIN), ("connected", "", VIN), ("closed", "logout", VIN)
    )  # fmt: skip


async def test_a_vehicle_that_nobody_knows(start: Start) -> None:
    run = await start(MemoryDirectory({VIN}), registry="allowlist")
    client = await run.client("gbt32960")
    client.send(login(OTHER))
    await client.read(31)
    mqtt = await run.client("mqtt")
    mqtt.send(connect(OTHER))
    assert (await mqtt.rest())[3] == 5
    client.close()
    await settled(run, ("refused", "unknown_vin", OTHER), ("refused", "unknown_vin", OTHER))
    assert [one.door for one in await run.events()] == [1, 2]


async def test_a_wrong_password(start: Start) -> None:
    run = await start(MemoryDirectory({VIN}, {VIN: "right"}), mqtt={"auth": "password"})
    client = await run.client("mqtt")
    client.send(connect(VIN, 5, username=VIN, password=b"wrong"))
    await client.rest()
    await settled(run, ("refused", "bad_password", VIN))
    (event,) = await run.events()
    assert event.client == VIN
    assert "wrong user name" in event.detail


async def test_a_platforms_wrong_password(start: Start) -> None:
    run = await start(gbt32960={"platform_users": {"city": SecretStr("secret")}})
    client = await run.client("gbt32960")
    client.send(platform_login(password="guess"))
    await client.read(31)
    await settled(run, ("refused", "bad_login", "PLATFORM000000001"))


async def test_no_room(start: Start) -> None:
    run = await start(limits={"connections_max": 1})
    first = await run.vehicle()
    second = await run.client("gbt32960")
    second.send(login(OTHER))
    assert (await second.rest())[3] == 2
    await settled(run, ("connected", "", VIN), ("refused", "limit", OTHER))
    first.close()


async def test_silence(start: Start) -> None:
    run = await start(limits={"first_packet_timeout_s": 1.0, "idle_timeout_s": 0.3})
    mute = await run.client("gbt32960")
    assert await mute.rest() == b""
    client = await run.vehicle()
    assert await client.rest() == b""
    await settled(run, ("refused", "no_login", ""), ("connected", "", VIN), ("closed", "timeout", VIN))


@pytest.mark.parametrize("version", [4, 5])
async def test_an_mqtt_vehicle_says_goodbye_or_vanishes(start: Start, version: int) -> None:
    run = await start()
    will = Will("vehicles/offline", b"gone")
    client = await run.mqtt(version=version, will=will)
    client.send(b"\xe0\x00")
    assert await client.rest() == b""
    await settled(run, ("connected", "", VIN), ("closed", "goodbye", VIN))
    client = await run.mqtt(version=version, will=will)
    client.close()
    await settled(
        run, ("connected", "", VIN), ("closed", "goodbye", VIN),
        ("connected", "", VIN), ("closed", "peer", VIN), ("will", "peer", VIN),
    )  # fmt: skip
    assert (await run.events())[-1].detail == "vehicles/offline"


async def test_breaking_the_protocol(start: Start) -> None:
    run = await start()
    early = await run.client("mqtt")
    early.send(publish(report()))  # no CONNECT before it
    await early.rest()
    client = await run.mqtt(version=5)
    client.send(publish(report(), qos=1, packet_id=1, version=5, retain=True))
    await client.rest()
    await settled(run, ("refused", "violation", ""), ("connected", "", VIN), ("closed", "violation", VIN))
    assert "retained" in (await run.events())[-1].detail


async def test_errors_are_told_once_and_then_counted(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(broken(report()) * 40)
    await client.read(40 * 31)
    client.send(report(OTHER))
    await client.read(31)
    client.close()
    await settled(
        run, ("connected", "", VIN), ("error", "bad_bcc", VIN), ("error", "bad_bcc", VIN),
        ("error", "foreign_vin", VIN), ("closed", "peer", VIN),
    )  # fmt: skip
    assert [one.times for one in await run.events()] == [1, 1, 39, 1, 1]
    assert (await run.events())[1].detail == "answered with 0x02"


async def test_mqtt_frames_that_are_kept_as_dead_letters(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    client.send(publish(broken(report())))
    await client.read(4)
    await settled(run, ("connected", "", VIN), ("error", "bad_bcc", VIN))
    assert (await run.events())[1].detail == ""


async def test_only_so_many_a_second(start: Start) -> None:
    run = await start(link_events_per_s_max=0)
    client = await run.vehicle()
    client.send(report())
    await client.read(31)
    assert await run.events() == []


async def test_no_more_wait_than_memory_allows(start: Start) -> None:
    run = await start(link_events_per_s_max=3 * WAITING_MAX)
    run.journal.away = True
    events = run.gateway._events
    for _ in range(WAITING_MAX + 500):
        events.tell(Event.CLOSED, 1, "peer", vin=VIN)
    assert len(run.gateway._committer.filling.events) <= WAITING_MAX
    assert run.gateway._committer.in_flight_bytes < 200 * WAITING_MAX
    run.journal.away = False


async def test_a_stopped_gateway_says_so(start: Start) -> None:
    run = await start()
    await run.vehicle()
    await run.mqtt(OTHER, will=Will("x", b""))
    await run.gateway.drain(5.0)
    assert sorted(await run.told()) == [
        ("closed", "shutdown", VIN), ("closed", "shutdown", OTHER), ("connected", "", VIN), ("connected", "", OTHER)
    ]  # fmt: skip


def test_settings() -> None:
    assert Settings.read().gateway.link_events_per_s_max == 200
