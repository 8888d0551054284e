"""CONNECT and CONNACK: clauses 3.1, 3.2 and 4.12 of 5.0, 3.1 and 3.2 of 3.1.1."""

from __future__ import annotations

import pytest

from schemas.mqtt.packets import Will, encode_connack
from schemas.mqtt.wire import V5, Code, string
from services.store.directory import MemoryDirectory
from tests.conformance.proofs import proves
from tests.conformance.talking import (
    PINGREQ,
    PINGRESP,
    ack,
    alive,
    connack,
    ends,
    opened,
    raw_connect,
    refused,
    text,
    vin_field,
)
from tests.gateway.playing import OTHER, VIN, Start, connect, publish, report

TOPIC = string("vehicles/offline")


# -- the first packet ------------------------------------------------------------------------------
@proves("3.1.0-1", "3.1.0-1 3.2.0-1 3.14.0-1")
async def test_anything_before_connect_ends_without_a_word(start: Start, version: int) -> None:
    run = await start()
    for packet in (
        publish(report(), version=version),
        PINGREQ,
        b"\xf0\x00",
        b"\xe0\x00",
        b"\x82\x05\x00\x07\x00\x01a\x00",
    ):
        client = await run.client("mqtt")
        client.send(packet)
        assert await client.rest() == b""
    assert await run.kept() == []


@proves("3.1.0-2", "3.1.0-2 3.2.0-2")
async def test_a_second_connect_is_a_violation(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(connect(version=version))
    await ends(client, version, Code.PROTOCOL_ERROR)  # a DISCONNECT, and no second CONNACK before it


@proves("3.2.0-1 3.1.4-4", "3.1.4-5 3.2.0-1 3.2.0-2")
async def test_connack_comes_first_and_once(start: Start, version: int) -> None:
    run = await start(MemoryDirectory(passwords={VIN: "right"}), mqtt={"auth": "password"})
    client = await run.client("mqtt")
    # the password takes its time, what follows waits for it
    client.send(connect(VIN, version, username=VIN, password=b"right") + publish(report(), version=version) + PINGREQ)
    assert (await connack(client, version)).code == 0
    assert sorted([await client.read(2), await client.read(2), await client.read(2)]) == sorted(
        [PINGRESP, ack(0x40)[:2], ack(0x40)[2:]]
    )
    await alive(client)


# -- the variable header ---------------------------------------------------------------------------
@proves("3.1.2-1 3.1.2-2 3.2.2-4 3.2.2-5", "3.1.2-1 3.1.2-2 3.2.2-6 3.2.2-7")
async def test_other_protocols_and_versions_are_told_so_and_closed(start: Start, version: int) -> None:
    run = await start()
    strange = [
        raw_connect(version, 2, vin_field, name=b"MQTX"),
        raw_connect(version, 2, vin_field, name=b"mqtt"),
        raw_connect(version, 2, vin_field, level=6 if version == V5 else 3),
    ]
    if version != V5:
        strange.append(raw_connect(4, 2, vin_field, name=b"MQIsdp", level=3))
    for packet in strange:
        client = await run.client("mqtt")
        client.send(packet + publish(report(), version=version))
        await refused(client, version, Code.UNSUPPORTED_PROTOCOL_VERSION, 1)
    assert await run.kept() == []


BAD_FLAGS = {
    "reserved": (0x03, vin_field),
    "will QoS without will": (0x0A, vin_field),
    "will retain without will": (0x22, vin_field),
    "will QoS 3": (0x1E, vin_field + TOPIC + TOPIC),
}


async def _refuses(start: Start, version: int, flags: int, payload: bytes) -> None:
    """The CONNECT does not conform: closed, MQTT 5 with a CONNACK, 3.1.1 without."""
    run = await start()
    client = await run.client("mqtt")
    client.send(raw_connect(version, flags, payload))
    await refused(client, version, Code.MALFORMED_PACKET)


@proves("3.1.2-3", "3.1.2-3")
async def test_the_reserved_flag(start: Start, version: int) -> None:
    await _refuses(start, version, *BAD_FLAGS["reserved"])


@proves("3.1.2-11 3.1.2-13 3.1.2-15", "3.1.2-11 3.1.2-13")
async def test_will_qos_and_retain_need_a_will(start: Start, version: int) -> None:
    for name in ("will QoS without will", "will retain without will"):
        await _refuses(start, version, *BAD_FLAGS[name])


@proves("3.1.2-14", "3.1.2-12")
async def test_will_qos(start: Start, version: int) -> None:
    will_properties = b"\0" if version == V5 else b""
    await _refuses(start, version, 0x1E, vin_field + will_properties + TOPIC + TOPIC)
    run = await start()
    for qos in (0, 1, 2):
        await run.mqtt(version=version, will=Will("vehicles/offline", b"", qos))


@proves("3.1.2-9 3.1.2-11", "3.1.2-9")
async def test_will_fields_go_with_their_flag(start: Start, version: int) -> None:
    will_properties = b"\0" if version == V5 else b""
    for payload in (b"", will_properties, will_properties + TOPIC):  # they are missing, or stop half-way
        await _refuses(start, version, 0x06, vin_field + payload)
    await _refuses(start, version, 0x02, vin_field + will_properties + TOPIC + TOPIC)  # they are there without it


@proves("3.1.2-18 3.1.2-19", "3.1.2-16 3.1.2-17")
async def test_the_user_name_goes_with_its_flag(start: Start, version: int) -> None:
    await _refuses(start, version, 0x02, vin_field + string("user"))
    await _refuses(start, version, 0x82, vin_field)


@proves("3.1.2-20 3.1.2-21", "3.1.2-18 3.1.2-19")
async def test_the_password_goes_with_its_flag(start: Start, version: int) -> None:
    await _refuses(start, version, 0x82, vin_field + string("user") + string("password"))
    await _refuses(start, version, 0xC2, vin_field + string("user"))


@proves("3.1.2-22")
async def test_no_password_without_a_user_name(start: Start, version: int) -> None:
    await _refuses(start, version, 0x42, vin_field + string("password"))


async def test_mqtt_5_allows_a_password_without_a_user_name(start: Start) -> None:
    run = await start()
    await opened(run, raw_connect(V5, 0x42, vin_field + string("password")), V5)


# -- the payload -----------------------------------------------------------------------------------
@proves("3.1.3-1", "3.1.3-1")
async def test_payload_fields_in_their_order(start: Start, version: int) -> None:
    run = await start(MemoryDirectory(passwords={VIN: "right"}), mqtt={"auth": "password"})
    will_properties = b"\0" if version == V5 else b""
    payload = string("phone") + will_properties + TOPIC + text(b"gone") + vin_field + text(b"right")
    client, _ = await opened(run, raw_connect(version, 0xC6, payload), version)
    link = run.gateway.mqtt.by_vin[VIN]
    assert (link.client, link.extra.will) == ("phone", Will("vehicles/offline", b"gone"))
    await alive(client)


@proves("3.1.3-3 3.1.4-1", "3.1.3-3 3.1.4-1")
async def test_no_client_identifier_at_all(start: Start, version: int) -> None:
    for payload in (b"", b"\0", b"\0\x05LNB"):
        await _refuses(start, version, 0x02, payload)


@proves("3.1.4-1 3.2.2-6", "3.1.4-1 4.13.2-1")
async def test_bytes_behind_the_last_field(start: Start, version: int) -> None:
    await _refuses(start, version, 0x02, vin_field + b"\0")


@proves("3.1.3-5", "3.1.3-5")
async def test_client_identifiers_of_letters_and_digits(start: Start, version: int) -> None:
    run = await start()
    every = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for client_id in ("a", every[:23], every[23:46], every[-23:], every):
        client, _ = await opened(run, connect(client_id, version, username=VIN), version)
        await alive(client)


@proves("3.1.3-6 3.1.3-7", "3.1.3-6 3.1.3-7 3.2.2-16")
async def test_an_empty_client_identifier(start: Start, version: int) -> None:
    run = await start()
    client, first = await opened(run, connect("", version, username=VIN), version)
    _, second = await opened(run, connect("", version, username=OTHER), version)
    await alive(client)
    if version == V5:
        given = [one.properties["assigned_client_identifier"] for one in (first, second)]
        assert len(set(given)) == 2
        assert run.gateway.mqtt.by_vin[VIN].client == given[0]


@proves("3.1.3-7 3.1.3-8 3.2.2-4 3.2.2-5")
async def test_an_empty_client_identifier_wants_clean_session(start: Start, version: int) -> None:
    run = await start()
    client = await run.client("mqtt")
    client.send(connect("", version, username=VIN, clean_start=False))
    await refused(client, version, 0, 2)


@proves("3.1.3-9 3.2.2-5", "3.1.3-8 3.2.2-7 3.2.2-8")
async def test_a_refused_client_identifier(start: Start, version: int) -> None:
    run = await start()
    client = await run.client("mqtt")
    client.send(connect("monitor", version))
    await refused(client, version, Code.CLIENT_IDENTIFIER_NOT_VALID, 2)


@proves("3.1.3-2", "3.1.3-2")
async def test_the_vin_is_who_a_session_belongs_to(start: Start, version: int) -> None:
    run = await start()
    one, _ = await opened(run, connect("same", version, username=VIN), version)
    other, _ = await opened(run, connect("same", version, username=OTHER), version)
    await alive(one)  # two vehicles, though with one client identifier
    await alive(other)


# -- who may connect -------------------------------------------------------------------------------
@proves("3.1.4-5 3.2.2-4 3.2.2-5", "3.1.4-2 3.1.4-6 3.2.2-6 3.2.2-7 3.2.2-8 4.13.2-1")
async def test_a_wrong_password_and_what_follows_it(start: Start, version: int) -> None:
    run = await start(MemoryDirectory(passwords={VIN: "right"}), mqtt={"auth": "password"})
    client = await run.client("mqtt")
    client.send(connect(VIN, version, username=VIN, password=b"wrong") + publish(report(), version=version) + PINGREQ)
    await refused(client, version, Code.BAD_USER_NAME_OR_PASSWORD, 4)
    assert await run.kept() == []


@proves("3.1.4-5 3.2.2-5", "3.1.4-2 3.1.4-6 3.2.2-7")
async def test_a_vehicle_that_is_not_registered(start: Start, version: int) -> None:
    run = await start(MemoryDirectory({OTHER}), registry="allowlist")
    client = await run.client("mqtt")
    client.send(connect(VIN, version) + publish(report(), version=version))
    await refused(client, version, Code.NOT_AUTHORIZED, 5)
    assert await run.kept() == []


@proves(v5="4.12.0-1 4.12.0-4 3.1.4-6")
async def test_an_authentication_method(start: Start, version: int) -> None:
    run = await start()
    client = await run.client("mqtt")
    asked = {"authentication_method": "SCRAM-SHA-1", "authentication_data": b"x"}
    client.send(connect(VIN, version, properties=asked) + publish(report(), version=version))
    await refused(client, version, Code.BAD_AUTHENTICATION_METHOD)
    assert await run.kept() == []


@proves(v5="4.12.0-6")
async def test_no_method_no_auth(start: Start, version: int) -> None:
    run = await start()
    client, found = await opened(run, connect(VIN, version), version)
    assert not {"authentication_method", "authentication_data"} & found.properties.keys()
    await alive(client)  # and no AUTH came in between


@proves(v5="4.12.0-7 3.15.1-1")
async def test_auth_without_a_method(start: Start, version: int) -> None:
    run = await start()
    for packet, code in ((b"\xf0\x00", Code.PROTOCOL_ERROR), (b"\xf0\x01\x19", Code.PROTOCOL_ERROR),
                         (b"\xf1\x00", Code.MALFORMED_PACKET), (b"\xff\x01\x18", Code.MALFORMED_PACKET)):  # fmt: skip
        client = await run.mqtt(version=version)
        client.send(packet)
        await ends(client, version, code)


# -- sessions --------------------------------------------------------------------------------------
@proves("3.1.2-6 3.1.4-3 3.2.2-1", "3.1.2-4 3.1.4-4 3.2.2-2 3.2.2-1")
async def test_a_clean_start(start: Start, version: int) -> None:
    run = await start()
    client, found = await opened(run, connect(VIN, version, clean_start=True), version)
    assert not found.session_present
    await alive(client)


@proves("3.1.2-4 3.1.2-5 3.2.2-3", "3.1.2-6 3.2.2-3 4.1.0-2")
async def test_no_session_is_left_to_resume(start: Start, version: int) -> None:
    run = await start()
    asked = {"session_expiry_interval": 3600} if version == V5 else {}
    for _ in range(2):
        client, found = await opened(run, connect(VIN, version, clean_start=False, properties=asked), version)
        assert not found.session_present
        if version == V5:
            assert found.properties["session_expiry_interval"] == 0
        client.send(b"\xe0\x00")
        await client.rest()


# -- what CONNACK says -----------------------------------------------------------------------------
@proves(v5="3.2.2-1 3.2.2-9 3.2.2-22 2.2.2-1 3.1.2-28")
async def test_a_plain_connack(start: Start, version: int) -> None:
    run = await start()
    client = await run.client("mqtt")
    client.send(connect(VIN, version, keep_alive_s=60, properties={"request_response_information": 0}))
    found = await connack(client)
    assert (found.code, found.session_present) == (0, False)
    unknown = {"maximum_qos", "server_keep_alive", "response_information", "assigned_client_identifier"}
    assert not unknown & found.properties.keys()
    assert run.gateway._connections.timeout_s[run.gateway.mqtt.by_vin[VIN].slot] == 90
    # none at all: the property length is there, and 0
    assert encode_connack(V5, 0) == bytes.fromhex("2003000000")


@proves(v5="3.2.2-13")
async def test_a_retained_will(start: Start, version: int) -> None:
    run = await start()
    client = await run.client("mqtt")
    client.send(connect(VIN, version, will=Will("vehicles/offline", b"", retain=True)))
    assert "retain" in (await refused(client, version, Code.RETAIN_NOT_SUPPORTED))["reason_string"]


@proves("3.1.2-17")
async def test_a_retained_will_of_3_1_1_is_a_will(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version, will=Will("vehicles/offline", b"", retain=True))
    await alive(client)


@proves(v5="3.2.2-19 3.1.2-24")
async def test_connack_keeps_to_the_clients_packet_size(start: Start, version: int) -> None:
    run = await start()
    for most, told in ((30, bytes.fromhex("2003008500")), (5, bytes.fromhex("2003008500")), (4, b"")):
        client = await run.client("mqtt")
        client.send(connect("monitor", version, properties={"maximum_packet_size": most}))
        assert await client.rest() == told
    # what a good CONNACK has to say cannot be left out
    client = await run.client("mqtt")
    client.send(connect(VIN, version, properties={"maximum_packet_size": 20}))
    assert await client.rest() == bytes.fromhex("2003009500")


@pytest.mark.parametrize(
    "properties",
    [
        b"\x05\x11\0\0\0",  # longer than what is there
        b"\x03\x21\0\0",  # receive maximum 0
        b"\x05\x27\0\0\0\0",  # maximum packet size 0
        b"\x02\x17\x02",  # request problem information 2
        b"\x02\x19\x02",
        b"\x03\x23\0\x01",  # of another packet
        b"\x02\x7f\x00",  # of none
        b"\x06\x21\0\x01\x21\0\x01",  # twice
        b"\x04\x16\0\x01x",  # data without a method
    ],
)
async def test_properties_of_connect_that_are_wrong(start: Start, properties: bytes) -> None:
    run = await start()
    client = await run.client("mqtt")
    body = string("MQTT") + b"\x05\x02\0\x3c" + properties + vin_field
    client.send(b"\x10" + bytes((len(body),)) + body)
    found = await connack(client)
    assert found.code in (Code.MALFORMED_PACKET, Code.PROTOCOL_ERROR)
    assert found.properties["reason_string"]
    assert await client.rest() == b""
