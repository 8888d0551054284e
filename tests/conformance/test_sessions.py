"""PING, DISCONNECT, keep-alive, wills, take-over, errors: clauses 3.1.2.5, 3.1.2.10, 3.1.4, 3.12, 3.14 and 4.13."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.mqtt.packets import Will, encode_disconnect, packet, split
from schemas.mqtt.wire import V5, Code, PacketType
from services.store.directory import MemoryDirectory
from tests.conformance.proofs import proves
from tests.conformance.talking import (
    OWN,
    PINGREQ,
    PINGRESP,
    ack,
    alive,
    connack,
    ends,
    opened,
    raw_publish,
    refused,
    subscribe,
)
from tests.gateway.playing import OTHER, VIN, Running, Start, connect, publish, report

WILL = Will("vehicles/offline", b"gone", 1)


async def told(run: Running, *wanted: str) -> None:
    """Wait until these events, apart from wills and connects, are durable."""

    async def there() -> bool:
        return [event for event, _, _ in await run.told() if event != "connected"] == list(wanted)

    try:
        await run.until(there)
    except TimeoutError:
        assert [event for event, _, _ in await run.told() if event != "connected"] == list(wanted)


# -- PING ------------------------------------------------------------------------------------------
@proves("3.12.4-1", "3.12.4-1")
async def test_ping(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    for times in (1, 2, 500):
        client.send(PINGREQ * times)
        await client.expect(PINGRESP * times)


# -- keep-alive ------------------------------------------------------------------------------------
async def _patience(start: Start, version: int, asked: int) -> tuple[float, dict[str, Any]]:
    run = await start(mqtt={"keep_alive_max_s": 100})
    client = await run.client("mqtt")
    client.send(connect(VIN, version, keep_alive_s=asked))
    found = await connack(client, version)
    return float(run.gateway._connections.timeout_s[run.gateway.mqtt.by_vin[VIN].slot]), found.properties


@proves("3.1.2-24", "3.1.2-22")
@pytest.mark.parametrize(("asked", "granted"), [(1, 1), (60, 60), (100, 100), (101, 100), (0, 100), (65_535, 100)])
async def test_one_and_a_half_times_keep_alive(start: Start, version: int, asked: int, granted: int) -> None:
    patience, properties = await _patience(start, version, asked)
    assert patience == 1.5 * granted
    if version == V5:
        assert properties.get("server_keep_alive") == (granted if granted != asked else None)


@proves(v5="3.2.2-22")
async def test_the_clients_keep_alive_holds_where_no_other_is_told(start: Start, version: int) -> None:
    patience, properties = await _patience(start, version, 77)
    assert (patience, "server_keep_alive" in properties) == (115.5, False)


@proves("3.1.2-24", "3.1.2-22 3.14.2-1")
async def test_silence_ends_the_connection(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version, keep_alive_s=1, will=WILL)
    await ends(client, version, Code.KEEP_ALIVE_TIMEOUT)
    await told(run, "closed", "will")  # as if the network had failed


# -- DISCONNECT ------------------------------------------------------------------------------------
@proves("3.14.4-3 3.1.2-10", "3.14.4-3 3.1.2-10")
async def test_goodbye_discards_the_will(start: Start, version: int) -> None:
    run = await start()
    for sent in (b"\xe0\x00",) if version != V5 else (b"\xe0\x00", b"\xe0\x01\x00", b"\xe0\x02\x00\x00"):
        client = await run.mqtt(version=version, will=WILL)
        client.send(sent)
        assert await client.rest() == b""  # and nothing is answered
    await told(run, *["closed"] * (1 if version != V5 else 3))


@proves(v5="3.1.2-8 3.1.2-10")
async def test_goodbye_with_another_code_keeps_the_will(start: Start, version: int) -> None:
    run = await start()
    for code in (Code.DISCONNECT_WITH_WILL, Code.UNSPECIFIED_ERROR, Code.IMPLEMENTATION_SPECIFIC):
        client = await run.mqtt(version=version, will=WILL)
        client.send(encode_disconnect(version, code))
        assert await client.rest() == b""
    await told(run, *["closed", "will"] * 3)


@proves("3.14.4-2", "3.14.4-1")
async def test_what_follows_disconnect_does_not_count(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), version=version, qos=0) + b"\xe0\x00" + publish(report(second=9), 2, version=version))
    assert await client.rest() == b""

    async def there() -> bool:
        return await run.kept() == [("", report())]

    await run.until(there)


async def test_a_session_that_was_to_end_cannot_be_kept_by_disconnect(start: Start) -> None:
    run = await start()
    client = await run.mqtt(version=V5)
    client.send(encode_disconnect(V5, 0, {"session_expiry_interval": 10}))
    await ends(client, V5, Code.PROTOCOL_ERROR)
    client = await run.mqtt(version=V5, properties={"session_expiry_interval": 10})
    client.send(encode_disconnect(V5, 0, {"session_expiry_interval": 20}))
    assert await client.rest() == b""


@pytest.mark.parametrize("body", ["00 05", "00 03 21 0001", "00 00 00", "00 05 1F 0002 FFFF"])
async def test_a_disconnect_that_is_wrong(start: Start, body: str) -> None:
    run = await start()
    client = await run.mqtt(version=V5)
    client.send(packet(PacketType.DISCONNECT, bytes.fromhex(body)))
    await ends(client, V5, Code.MALFORMED_PACKET, Code.PROTOCOL_ERROR)


@proves(v5="3.14.4-1 3.14.4-2 3.14.2-1 3.14.2-2 4.13.2-1")
async def test_the_gateways_disconnect_is_its_last_packet(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    run.journal.gate.clear()
    client.send(publish(report(), 1, version=version))
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    client.send(b"\xd0\x00" + PINGREQ)
    properties = await ends(client, version, Code.PROTOCOL_ERROR)
    run.journal.gate.set()  # the PUBACK that is due now has nowhere to go
    assert set(properties) == {"reason_string"}
    await run.until(lambda: run.gateway._committer.in_flight_bytes == 0)


@proves(v5="3.14.2-3 3.1.2-24")
async def test_disconnect_keeps_to_the_clients_packet_size(start: Start, version: int) -> None:
    run = await start()
    for most, with_text in ((45, False), (300, True)):
        client, _ = await opened(run, connect(VIN, version, properties={"maximum_packet_size": most}), version)
        client.send(publish(report(), 1, version=version, retain=True))
        rest = await client.rest()
        found = split(rest)
        assert found is not None
        assert (found[0], found[1][0], found[2] <= most) == (0xE0, Code.RETAIN_NOT_SUPPORTED, True)
        assert (len(rest) > 10) is with_text


@proves(v5="3.1.2-29")
async def test_problem_information_is_not_wanted(start: Start, version: int) -> None:
    """Nothing but CONNACK and DISCONNECT ever has a reason string, wanted or not."""
    run = await start()
    for wanted in (0, 1):
        asked = {"request_problem_information": wanted}
        client, _ = await opened(run, connect(VIN, version, properties=asked), version)
        client.send(publish(report(OTHER), 1, version=version, topic=f"nev/v1/{OTHER}/gbt32960"))
        await client.expect(bytes.fromhex("40 03 0001 87"))
        client.send(publish(report(OTHER), 2, version=version, qos=2, topic=f"nev/v1/{OTHER}/gbt32960"))
        await client.expect(bytes.fromhex("50 03 0002 87"))
        client.send(subscribe(("a/b", 0), version=version))
        await client.expect(bytes.fromhex("90 04 0007 00 87"))


# -- wills -----------------------------------------------------------------------------------------
@proves("3.1.2-8", "3.1.2-7")
async def test_a_will_is_kept_and_told_when_the_client_vanishes(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version, will=WILL)
    assert run.gateway.mqtt.by_vin[VIN].extra.will == WILL
    client.close()
    await told(run, "closed", "will")
    assert (await run.events())[-1].detail == WILL.topic


@proves("3.1.2-8", "3.1.2-8")
async def test_a_will_is_told_when_the_protocol_is_broken(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version, will=WILL)
    client.send(b"\xd0\x00")
    await client.rest()
    await told(run, "closed", "will")


@proves("3.1.2-12", "3.1.2-7")
async def test_without_a_will_none_is_told(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.close()
    await told(run, "closed")


@proves("3.1.2-8", "3.1.2-8")
async def test_a_will_is_told_on_take_over(start: Start, version: int) -> None:
    run = await start()
    old = await run.mqtt(version=version, will=WILL)
    await run.mqtt(version=version)
    await ends(old, version, Code.SESSION_TAKEN_OVER)
    await told(run, "replaced", "will")


@proves(v5="3.1.3-9")
async def test_a_client_that_is_back_before_its_will_delay(start: Start, version: int) -> None:
    run = await start()
    will = Will("vehicles/offline", b"gone", properties={"will_delay_interval": 60})
    old = await run.mqtt(version=version, will=will)
    await run.mqtt(version=version, clean_start=False)
    await ends(old, version, Code.SESSION_TAKEN_OVER)
    await told(run, "replaced")


# -- take-over -------------------------------------------------------------------------------------
@proves("3.1.4-2", "3.1.4-3")
async def test_the_older_connection_is_closed(start: Start, version: int) -> None:
    run = await start()
    old = await run.mqtt(version=version)
    new = await run.mqtt(version=version)
    await ends(old, version, Code.SESSION_TAKEN_OVER)
    new.send(publish(report(), 1, version=version))
    await new.expect(ack(0x40))


@proves("3.1.2-6 4.1.0-2", "3.1.2-4 4.1.0-2")
async def test_nothing_of_a_session_passes_to_the_next(start: Start, version: int) -> None:
    run = await start()
    old = await run.mqtt(version=version)
    old.send(subscribe((OWN, 1), version=version))
    await old.read(5 + (version == V5))
    await run.mqtt(version=version)
    assert run.gateway.mqtt.reachable(VIN) is None  # it would have to subscribe anew


# -- errors ----------------------------------------------------------------------------------------
@proves("4.8.0-1", "4.13.1-1 4.13.2-1")
async def test_what_was_good_before_an_error_is_kept(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 1, version=version, qos=0) + raw_publish(b"a/#", b"", version))
    await ends(client, version, Code.TOPIC_NAME_INVALID)

    async def there() -> bool:
        return await run.kept() == [("", report())]

    await run.until(there)


async def test_a_vehicle_that_leaves_the_registry_is_told(start: Start) -> None:
    run = await start(MemoryDirectory({VIN}), registry="allowlist", registry_refresh_s=0.01)
    client = await run.mqtt(version=V5)
    run.directory.vins = {OTHER}
    assert "registry" in (await ends(client, V5, Code.NOT_AUTHORIZED))["reason_string"]


@proves(v5="3.14.0-1 4.12.0-4")
async def test_no_disconnect_before_connack(start: Start, version: int) -> None:
    run = await start(MemoryDirectory(passwords={VIN: "right"}), mqtt={"auth": "password"})
    client = await run.client("mqtt")
    client.send(connect(VIN, version, username=VIN, password=b"wrong") + b"\xd0\x00")
    await refused(client, version, Code.BAD_USER_NAME_OR_PASSWORD)


async def test_a_stopping_gateway_says_so(start: Start) -> None:
    run = await start()
    clients = [await run.mqtt(version=V5), await run.mqtt(OTHER, version=4)]
    drained = asyncio.create_task(run.gateway.drain(5.0))
    await ends(clients[0], V5, Code.SERVER_SHUTTING_DOWN)
    await ends(clients[1], 4)
    await drained


@proves("7.0.0-2")
async def test_nothing_beyond_the_specification_is_asked_for(start: Start, version: int) -> None:
    """Plain packets of the specification's figures are enough; outside clients show it in test_outside_clients.py."""
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 1, version=version))
    await client.expect(ack(0x40))
    await alive(client)
