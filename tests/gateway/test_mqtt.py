"""The MQTT door, byte by byte: CONNECT and its refusals, publishes and their fate, sessions and their ends."""

from __future__ import annotations

import asyncio

import pytest

from schemas.gbt32960.frame import build_frame
from schemas.mqtt.packets import (
    PINGREQ,
    PINGRESP,
    Subscribe,
    Unsubscribe,
    Will,
    encode_disconnect,
    encode_subscribe,
    encode_unsubscribe,
    parse_connack,
    parse_disconnect,
    split,
)
from schemas.mqtt.wire import V5, Code, varint
from services.store.directory import MemoryDirectory
from tests.gateway.playing import OTHER, VIN, Client, Start, broken, connect, publish, report

ACK_1 = bytes.fromhex("40020001")
CONNACK_OK = bytes.fromhex("20020000")


async def connack(client: Client):
    """The CONNACK of MQTT 5 that comes next."""
    head = await client.read(2)
    assert head[0] == 0x20
    return parse_connack(await client.read(head[1]), V5)


async def goodbye(client: Client):
    """The DISCONNECT of MQTT 5 that ends the connection."""
    rest = await client.rest()
    at = 0
    while (found := split(rest, at)) is not None:
        first, body, at = found
        if first == 0xE0:
            assert at == len(rest)
            return parse_disconnect(body, V5)
    raise AssertionError(f"no DISCONNECT in {rest.hex()}")


# -- the way of a good publish ---------------------------------------------------------------------
@pytest.mark.parametrize("version", [4, 5])
async def test_publish_is_durable_then_acknowledged(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 1, version=version))
    await client.expect(ACK_1)
    assert await run.kept() == [("", report())]
    frames = await run.frames()
    assert frames.door.tolist() == [2]
    assert frames.received_us[0] > 1_600_000_000_000_000


async def test_several_frames_in_one_publish_are_one_ack(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    frames = [report(second=k, edition=edition) for k in range(5) for edition in (16, 25)]
    client.send(publish(b"".join(frames), 513))
    await client.expect(bytes.fromhex("40020201"))
    assert await run.kept() == [("", frame) for frame in frames]


async def test_qos_0_is_journaled_without_an_answer(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    client.send(publish(report(), qos=0), publish(report(second=8), 2))
    await client.expect(bytes.fromhex("40020002"))
    assert len(await run.kept()) == 2


async def test_everything_in_one_write_with_the_connect(start: Start) -> None:
    run = await start()
    client = await run.client("mqtt")
    client.send(connect() + publish(report(), 1) + PINGREQ + publish(report(second=8), 2))
    await client.expect(CONNACK_OK + PINGRESP + ACK_1 + bytes.fromhex("40020002"))


async def test_one_byte_at_a_time(start: Start) -> None:
    run = await start()
    client = await run.client("mqtt")
    await client.send_bytewise(connect(version=5) + publish(report(), 1, version=5) + PINGREQ)
    assert (await connack(client)).code == 0
    assert await client.read(6) in (ACK_1 + PINGRESP, PINGRESP + ACK_1)
    assert await run.kept() == [("", report())]


async def test_acks_keep_the_order_of_publishes_and_of_their_connection(start: Start) -> None:
    run = await start()
    clients = [await run.mqtt(f"LNBSCB3F4JW{i:06d}") for i in range(40)]
    for i, client in enumerate(clients):
        vin = f"LNBSCB3F4JW{i:06d}"
        client.send(b"".join(publish(report(vin, second=k), 1 + k, vin) for k in range(10)))
    for client in clients:
        await client.expect(b"".join(bytes((0x40, 2, 0, 1 + k)) for k in range(10)))
    frames = await run.frames()
    assert frames.n == 400
    seen: dict[bytes, list[int]] = {}
    partitions: dict[bytes, set[int]] = {}
    for i in range(frames.n):
        frame = frames.frame(i)
        seen.setdefault(frame[4:21], []).append(frame[29])
        partitions.setdefault(frame[4:21], set()).add(int(frames.partition[i]))
    assert all(seconds == list(range(10)) for seconds in seen.values())
    assert all(len(found) == 1 for found in partitions.values())
    assert len(set.union(*partitions.values())) > 1


async def test_every_ping_is_answered(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    client.send(PINGREQ * 5000 + publish(report(), 1) + PINGREQ)
    answers = await client.read(2 * 5001 + 4)
    assert answers.count(PINGRESP) == 5001
    assert answers.endswith((ACK_1, ACK_1 + PINGRESP))


def platform_login(password: bytes) -> bytes:
    """What makes no sense under a vehicle's topic, and holds a secret (6.3)."""
    unit = bytes.fromhex("1a0b181100000001") + b"city".ljust(12, b"\0") + password.ljust(20, b"\0") + b"\x01"
    return build_frame(16, 0x05, 0xFE, VIN.encode(), 1, unit)


# -- refused, kept, acknowledged -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("payload", "kept"),
    [
        (broken(report()), [("bad_bcc", broken(report()))]),
        (report()[:-10], [("bad_length", report()[:-10])]),
        (report()[:9], [("bad_length", report()[:9])]),
        (b"no frame", [("garbage", b"no frame")]),
        (b"zz" + report() + b"z", [("garbage", b"zz"), ("", report()), ("garbage", b"z")]),
        (report(OTHER), [("foreign_vin", report(OTHER))]),
        (platform_login(b"secret"), [("unknown_command", platform_login(b"*" * 20))]),
        (report() + report(OTHER) + report(), [("", report()), ("foreign_vin", report(OTHER)), ("", report())]),
        (b"", []),
    ],
)
async def test_a_refused_payload_is_kept_with_its_reason_and_acknowledged(
    start: Start, payload: bytes, kept: list[tuple[str, bytes]]
) -> None:
    run = await start()
    client = await run.mqtt()
    client.send(publish(payload, 1))
    await client.expect(ACK_1)
    assert await run.kept() == kept
    frames = await run.frames()
    for i in range(frames.n):
        if frames.reason[i]:
            source = frames.sources[int(frames.source[i]) - 1]
            assert source["vin"] == VIN
            assert source["client"] == VIN
            assert source["peer"].startswith("127.0.0.1:")
        else:
            assert frames.source[i] == 0


async def test_an_oversize_frame_is_kept_with_its_reason(start: Start) -> None:
    run = await start(limits={"frame_bytes_max": 64})
    client = await run.mqtt()
    client.send(publish(report(), 1))
    await client.expect(ACK_1)
    assert (await run.kept())[0] == ("oversize", report()[:24])


@pytest.mark.parametrize("topic", ["some/topic", f"nev/v1/{VIN}/telemetry9", f"nev/v1/{VIN}", "nev/v1/", "车/1"])
async def test_unknown_topic(start: Start, topic: str) -> None:
    run = await start()
    client = await run.mqtt()
    client.send(publish(b"{}", 1, topic=topic), publish(report(), 2))
    await client.expect(ACK_1 + bytes.fromhex("40020002"))
    assert sorted(await run.kept()) == [("", report()), ("unknown_topic", b"{}")]


async def test_foreign_topic_mqtt5_is_told_and_lives(start: Start) -> None:
    run = await start()
    client = await run.mqtt(version=5)
    client.send(publish(report(OTHER), 1, OTHER, version=5), publish(report(), 2, version=5))
    await client.expect(bytes.fromhex("4003000187 40020002"))
    assert sorted(await run.kept()) == [("", report()), ("foreign_vin", report(OTHER))]


async def test_foreign_topic_3_1_1_is_closed(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    client.send(publish(report(OTHER), 1, OTHER), publish(report(), 2))
    assert await client.rest() == b""
    await run.until(lambda: _kept_is(run, [("foreign_vin", report(OTHER))]))


async def _kept_is(run, expected: list[tuple[str, bytes]]) -> bool:
    return await run.kept() == expected


# -- CONNECT ---------------------------------------------------------------------------------------
async def test_connack_of_mqtt_5_says_what_there_is(start: Start) -> None:
    run = await start(mqtt={"keep_alive_max_s": 100, "receive_maximum": 20})
    client = await run.client("mqtt")
    client.send(connect("", 5, username=VIN, keep_alive_s=600, properties={"session_expiry_interval": 60}))
    found = await connack(client)
    assert (found.code, found.session_present) == (0, False)
    assert found.properties == {
        "session_expiry_interval": 0,
        "receive_maximum": 20,
        "retain_available": 0,
        "maximum_packet_size": 262_144,
        "assigned_client_identifier": f"nevstream-{VIN}",
        "topic_alias_maximum": 16,
        "subscription_identifier_available": 0,
        "shared_subscription_available": 0,
        "server_keep_alive": 100,
    }


async def test_the_vin_may_be_the_user_name_or_the_client_id(start: Start) -> None:
    run = await start()
    for vin, more in ((VIN, {"username": "someone"}), ("phone-1", {"username": VIN})):
        client = await run.client("mqtt")
        client.send(connect(vin, **more), publish(report(), 1))
        await client.expect(CONNACK_OK + ACK_1)


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (connect("monitor"), "20020002"),
        (connect("", clean_start=False, username=VIN), "20020002"),
        (connect("LNBSCB3F4JW/00001"), "20020002"),
        (bytes.fromhex("100C00044D5154540302003C0000"), "20020001"),  # level 3
        (bytes.fromhex("100C00044D5154540402003C0005"), ""),  # client id cut short: closed without a word
        (publish(report()), ""),  # not a CONNECT
        (PINGREQ, ""),
        (b"\x30\xff\xff\xff\xff\x7f", ""),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4, ""),
    ],
)
async def test_a_refused_3_1_1_connect(start: Start, packet: bytes, answer: str) -> None:
    run = await start()
    client = await run.client("mqtt")
    client.send(packet)
    assert (await client.rest()).hex() == answer
    assert await run.kept() == []


@pytest.mark.parametrize(
    ("packet", "code", "text"),
    [
        (connect("monitor", 5), Code.CLIENT_IDENTIFIER_NOT_VALID, "VIN of 17 characters"),
        (
            connect(VIN, 5, properties={"authentication_method": "SCRAM-SHA-1"}),
            Code.BAD_AUTHENTICATION_METHOD,
            "user name and a password",
        ),
        (bytes.fromhex("100D00044D5154540602003C000000"), Code.UNSUPPORTED_PROTOCOL_VERSION, "level 6"),
        (bytes.fromhex("100E00044D5154540502003C01FF0000"), Code.MALFORMED_PACKET, "property"),
    ],
)
async def test_a_refused_mqtt_5_connect_is_told_why(start: Start, packet: bytes, code: Code, text: str) -> None:
    run = await start()
    client = await run.client("mqtt")
    client.send(packet)
    found = await connack(client)
    assert found.code == code
    assert text in found.properties["reason_string"]
    assert await client.rest() == b""


async def test_allowlist(start: Start) -> None:
    run = await start(MemoryDirectory({VIN}), registry="allowlist", registry_refresh_s=0.01)
    known = await run.mqtt()
    for version, answer in ((4, bytes.fromhex("20020005")), (5, b"")):
        stranger = await run.client("mqtt")
        stranger.send(connect(OTHER, version))
        if version == 5:
            found = await connack(stranger)
            assert found.code == Code.NOT_AUTHORIZED
            assert "registry" in found.properties["reason_string"]
        assert await stranger.rest() == answer
    # the registry is read again: who was taken out goes, who was put in may come
    run.directory.vins = {OTHER}
    assert await known.rest() == b""
    await run.mqtt(OTHER)


async def test_allowlist_while_the_store_is_away(start: Start) -> None:
    directory = MemoryDirectory({VIN})
    directory.away = True
    run = await start(directory, registry="allowlist", registry_refresh_s=0.01)
    client = await run.client("mqtt")
    client.send(connect())
    assert await client.rest() == bytes.fromhex("20020003")
    directory.away = False

    async def lets_in() -> bool:
        again = await run.client("mqtt")
        again.send(connect())
        return (await again.read(4)) == CONNACK_OK

    await run.until(lets_in)


async def test_passwords(start: Start) -> None:
    run = await start(MemoryDirectory(passwords={VIN: "right"}), mqtt={"auth": "password"})
    for _ in range(2):  # the second time from the cache
        client = await run.client("mqtt")
        client.send(connect("any", username=VIN, password=b"right") + publish(report(), 1))
        await client.expect(CONNACK_OK + ACK_1)
    for wrong in (
        {"username": VIN, "password": b"wrong"},
        {"username": VIN},
        {"username": OTHER, "password": b"right"},
        {},
    ):
        client = await run.client("mqtt")
        client.send(connect(VIN, **wrong) + publish(report(), 1))
        assert await client.rest() == bytes.fromhex("20020004")
        client = await run.client("mqtt")
        client.send(connect(VIN, 5, **wrong))
        found = await connack(client)
        assert found.code == Code.BAD_USER_NAME_OR_PASSWORD
        assert found.properties["reason_string"]
    assert len(await run.kept()) == 2


async def test_a_changed_password_is_not_taken_from_the_cache(start: Start) -> None:
    run = await start(MemoryDirectory(passwords={VIN: "old"}), mqtt={"auth": "password"})
    first = await run.client("mqtt")
    first.send(connect(VIN, username=VIN, password=b"old"))
    await first.expect(CONNACK_OK)
    run.directory.hashes = MemoryDirectory(passwords={VIN: "new"}).hashes
    second = await run.client("mqtt")
    second.send(connect(VIN, username=VIN, password=b"old"))
    assert await second.rest() == bytes.fromhex("20020004")


async def test_password_while_the_store_is_away(start: Start) -> None:
    run = await start(MemoryDirectory(passwords={VIN: "right"}), mqtt={"auth": "password"})
    run.directory.away = True
    client = await run.client("mqtt")
    client.send(connect(VIN, username=VIN, password=b"right"))
    assert await client.rest() == bytes.fromhex("20020003")


async def test_takeover(start: Start) -> None:
    run = await start()
    old_5 = await run.mqtt(version=5)
    old_4 = await run.mqtt()
    assert (await goodbye(old_5)).code == Code.SESSION_TAKEN_OVER
    new = await run.mqtt(version=5)
    assert await old_4.rest() == b""
    new.send(publish(report(), 1, version=5))
    await new.expect(ACK_1)


async def test_an_ack_is_not_sent_to_the_connection_that_replaced_its_own(start: Start) -> None:
    run = await start()
    old = await run.mqtt()
    run.journal.gate.clear()
    old.send(publish(report(), 77))
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    new = await run.mqtt()
    assert await old.rest() == b""
    run.journal.gate.set()
    new.send(publish(report(second=9), 1))
    await new.expect(ACK_1)
    assert len(await run.kept()) == 2


# -- the rest of a session -------------------------------------------------------------------------
async def test_subscriptions(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    own, foreign = f"nev/v1/{VIN}/down/#", f"nev/v1/{OTHER}/down/#"
    client.send(encode_subscribe(Subscribe(7, ((own, 2), (foreign, 1), ("#", 0)))))
    await client.expect(bytes.fromhex("90050007018080"))
    client.send(encode_unsubscribe(Unsubscribe(8, (own,))))
    await client.expect(bytes.fromhex("b0020008"))


async def test_subscriptions_of_mqtt_5(start: Start) -> None:
    run = await start()
    client = await run.mqtt(version=5)
    own, foreign = f"nev/v1/{VIN}/down/#", f"nev/v1/{OTHER}/down/#"
    client.send(encode_subscribe(Subscribe(7, ((own, 0), (foreign, 1), ("$share/g/x", 0))), V5))
    await client.expect(bytes.fromhex("9006000700 00879E"))
    client.send(encode_unsubscribe(Unsubscribe(8, (own, foreign)), V5))
    await client.expect(bytes.fromhex("b0050008000011"))
    client.send(encode_subscribe(Subscribe(9, ((own, 0),), {"subscription_identifier": 3}), V5))
    assert (await goodbye(client)).code == Code.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED


async def test_will_is_kept_until_a_clean_goodbye(start: Start) -> None:
    run = await start()
    client = await run.mqtt(will=Will("last/words", b"bye", 1))
    link = run.gateway.mqtt.by_vin[VIN]
    session = link.extra
    assert session.will == Will("last/words", b"bye", 1)
    client.send(encode_disconnect(4))
    assert await client.rest() == b""
    assert session.will is None


VIOLATIONS = [
    (bytes.fromhex("62020000"), Code.MALFORMED_PACKET),
    (bytes.fromhex("60020001"), Code.MALFORMED_PACKET),
    (publish(report(), 1, version=5, retain=True), Code.RETAIN_NOT_SUPPORTED),
    (publish(report(), 1, version=5, properties={"topic_alias": 17}), Code.TOPIC_ALIAS_INVALID),
    (publish(report(), 1, version=5, topic="", properties={"topic_alias": 1}), Code.PROTOCOL_ERROR),
    (publish(report(), 1, version=5, topic="nev/#"), Code.TOPIC_NAME_INVALID),
    (connect(VIN, 5), Code.PROTOCOL_ERROR),
    (bytes.fromhex("50020001"), Code.PROTOCOL_ERROR),
    (bytes.fromhex("F000"), Code.PROTOCOL_ERROR),
    (bytes.fromhex("8006000700000000"), Code.MALFORMED_PACKET),
    (bytes.fromhex("8202000700"), Code.MALFORMED_PACKET),
    (b"\x30\xff\xff\xff\xff", Code.MALFORMED_PACKET),
    (b"\x32" + varint(300_000) + b"\0\x21", Code.PACKET_TOO_LARGE),
]


@pytest.mark.parametrize(("packet", "code"), VIOLATIONS)
async def test_a_violation_ends_the_connection_with_its_code(start: Start, packet: bytes, code: Code) -> None:
    run = await start()
    client = await run.mqtt(version=5)
    client.send(packet)
    found = await goodbye(client)
    assert found.code == code
    assert found.properties["reason_string"]


@pytest.mark.parametrize("packet", [bytes.fromhex("62020000"), connect(), b"\x32" + varint(300_000) + b"\0\x21"])
async def test_a_violation_of_3_1_1_is_closed(start: Start, packet: bytes) -> None:
    run = await start()
    client = await run.mqtt()
    client.send(packet)
    assert await client.rest() == b""


@pytest.mark.parametrize("version", [4, 5])
async def test_exactly_once_is_received_after_it_is_durable(start: Start, version: int) -> None:
    """MQTT-4.3.3: PUBREC for the publish, again for its repetition, then PUBCOMP for every PUBREL."""
    run = await start()
    client = await run.mqtt(version=version)
    run.journal.gate.clear()
    client.send(publish(report(), 7, version=version, qos=2))
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    assert await run.kept() == []
    run.journal.gate.set()
    await client.expect(bytes.fromhex("50020007"))
    client.send(publish(report(), 7, version=version, qos=2, dup=True))
    await client.expect(bytes.fromhex("50020007"))
    client.send(bytes.fromhex("62020007"))
    await client.expect(bytes.fromhex("70020007"))
    client.send(bytes.fromhex("62020007"))  # the PUBCOMP was lost on its way
    await client.expect(bytes.fromhex("70020007"))
    client.send(publish(report(second=8), 7, version=version, qos=2), publish(report(second=9), 8, version=version))
    await client.expect(bytes.fromhex("50020007" + "40020008"))
    # what came twice lies in the journal twice, and is stored once (tests/pipeline)
    assert await run.kept() == [("", report()), ("", report()), ("", report(second=8)), ("", report(second=9))]


async def test_a_topic_alias_stands_for_its_topic_on_its_connection(start: Start) -> None:
    """MQTT-3.3.2-8 and following."""
    run = await start()
    client = await run.mqtt(version=5)
    sample = b'{"time": "2026-03-04T05:06:07Z", "soc_pct": 50}'
    client.send(
        publish(report(), 1, version=5, properties={"topic_alias": 1}),
        publish(sample, 2, version=5, topic=f"nev/v1/{VIN}/telemetry", properties={"topic_alias": 16}),
        publish(report(second=8), 3, version=5, topic="", properties={"topic_alias": 1}),
        publish(sample, 4, version=5, topic="", properties={"topic_alias": 16}),
        publish(report(second=9), 5, version=5, properties={"topic_alias": 16}),  # from now on another topic
        publish(report(second=10), 6, version=5, topic="", properties={"topic_alias": 16}),
    )
    for k in range(1, 7):
        await client.expect(b"\x40\x02" + k.to_bytes(2, "big"))
    json = VIN.encode() + sample
    expected = [report(), json, report(second=8), json, report(second=9), report(second=10)]
    assert await run.kept() == [("", frame) for frame in expected]
    again = await run.mqtt(version=5)  # the same row or another: nothing is left of the aliases
    again.send(publish(report(), 1, version=5, topic="", properties={"topic_alias": 1}))
    assert (await goodbye(again)).code == Code.PROTOCOL_ERROR


async def test_a_refused_publish_at_qos_2_ends_with_its_pubrec(start: Start) -> None:
    run = await start()
    client = await run.mqtt(version=5)
    client.send(publish(report(OTHER), 3, version=5, qos=2, topic=f"nev/v1/{OTHER}/gbt32960"))
    await client.expect(bytes.fromhex("5003000387"))
    assert [reason for reason, _ in await run.kept()] == ["foreign_vin"]


async def test_an_oversize_publish_is_kept_as_far_as_it_came(start: Start) -> None:
    run = await start(limits={"packet_bytes_max": 200})
    client = await run.mqtt()
    client.send(publish(report(body=bytes(300)), 1))
    assert await client.rest() == b""

    async def there() -> bool:
        return [reason for reason, _ in await run.kept()] == ["oversize"]

    await run.until(there)


async def test_receive_maximum(start: Start) -> None:
    run = await start(mqtt={"receive_maximum": 3})
    client = await run.mqtt(version=5)
    run.journal.gate.clear()
    client.send(b"".join(publish(report(second=k), 1 + k, version=5) for k in range(3)))
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    run.journal.gate.set()
    await client.expect(b"".join(bytes((0x40, 2, 0, 1 + k)) for k in range(3)))
    run.journal.gate.clear()
    client.send(b"".join(publish(report(second=k), 1 + k, version=5) for k in range(4)))
    assert (await goodbye(client)).code == Code.RECEIVE_MAXIMUM_EXCEEDED


async def test_silence_is_ended(start: Start) -> None:
    run = await start(limits={"first_packet_timeout_s": 1.0})
    mute = await run.client("mqtt")
    assert await mute.rest() == b""
    client = await run.mqtt(version=5, keep_alive_s=1)
    assert (await goodbye(client)).code == Code.KEEP_ALIVE_TIMEOUT


async def test_dribble_does_not_put_off_the_first_packet(start: Start) -> None:
    run = await start(limits={"first_packet_timeout_s": 0.2})
    client = await run.client("mqtt")

    async def dribble() -> None:
        for byte in connect(will=Will("t", bytes(5000))):
            client.send(bytes((byte,)))
            await asyncio.sleep(0.01)

    task = asyncio.create_task(dribble())
    assert await client.rest() == b""
    task.cancel()


async def test_connections_max(start: Start) -> None:
    run = await start(limits={"connections_max": 1})
    first = await run.mqtt()
    second = await run.client("mqtt")
    second.send(connect(OTHER, 5))
    answer = await second.rest()
    assert (answer[3], b"all connections of this gateway are taken" in answer) == (Code.QUOTA_EXCEEDED, True)
    first.close()
    await run.until(lambda: run.gateway._connections.count == 0)
    await run.mqtt()
