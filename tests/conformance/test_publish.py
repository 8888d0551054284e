"""PUBLISH and its answers, from client to gateway: clauses 3.3 to 3.7, 4.3, 4.6 and 4.9."""

from __future__ import annotations

import asyncio
import time

import pytest

from schemas.mqtt.packets import packet
from schemas.mqtt.wire import V5, Code, PacketType, varint
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.memory import MemorySink
from tests.conformance.proofs import proves
from tests.conformance.talking import (
    OWN,
    PINGREQ,
    PINGRESP,
    ack,
    alive,
    codes,
    connack,
    ends,
    opened,
    raw_publish,
    subscribe,
)
from tests.gateway.playing import OTHER, PARTITIONS, PATIENCE_S, VIN, Running, Start, connect, publish, report
from tests.pipeline.conftest import report_frame

TOPIC = f"nev/v1/{VIN}/gbt32960".encode()
ANSWER = {1: 0x40, 2: 0x50}


async def held(run: Running) -> None:
    """The journal has something to write and does not get on."""
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)


# -- the answer that QoS asks for ------------------------------------------------------------------
@proves("3.3.4-1 2.3.1-6 4.3.2-2", "3.3.4-1 2.2.1-5 4.3.2-4 3.4.2-1")
async def test_qos_1_is_answered_once_it_is_durable(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    run.journal.gate.clear()
    client.send(publish(report(), 513, version=version))
    await held(run)
    await alive(client)  # no PUBACK before it
    run.journal.gate.set()
    await client.expect(ack(0x40, 513))
    assert await run.kept() == [("", report())]


@proves("3.3.4-1 2.3.1-6 4.3.3-2", "3.3.4-1 2.2.1-5 4.3.3-8 4.3.3-11 3.5.2-1 3.7.2-1")
async def test_qos_2_is_answered_once_it_is_durable(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    run.journal.gate.clear()
    client.send(publish(report(), 513, version=version, qos=2))
    await held(run)
    await alive(client)
    run.journal.gate.set()
    await client.expect(ack(0x50, 513))
    client.send(ack(0x62, 513))
    await client.expect(ack(0x70, 513))
    assert await run.kept() == [("", report())]


@proves("3.3.4-1 2.3.1-5", "3.3.4-1 2.2.1-2")
async def test_qos_0_is_not_answered_and_has_no_identifier(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(raw_publish(TOPIC, report(), version, first=0x30))
    # two bytes where an identifier would be are payload
    client.send(raw_publish(TOPIC, b"\0\1" + report(second=8), version, first=0x30))
    client.send(publish(report(second=9), 2, version=version))
    await client.expect(ack(0x40, 2))
    assert await run.kept() == [
        ("", report()), ("garbage", b"\0\1"), ("", report(second=8)), ("", report(second=9))
    ]  # fmt: skip


@proves("4.3.2-2", "4.3.2-5")
@pytest.mark.parametrize("dup", [False, True])
async def test_after_puback_the_identifier_is_a_new_message(start: Start, version: int, dup: bool) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    for second in (1, 2):
        client.send(publish(report(second=second), 7, version=version, dup=dup))
        await client.expect(ack(0x40, 7))
    assert await run.kept() == [("", report(second=1)), ("", report(second=2))]


@proves("4.3.3-2", "4.3.3-10")
async def test_before_pubrel_the_same_message_is_answered_again(start: Start, version: int) -> None:
    """Passed on once: both copies are journaled, and stored as one row."""
    run = await start()
    client = await run.mqtt(version=version)
    now = int(time.time())
    frame = report_frame(VIN, now)
    client.send(publish(frame, 7, version=version, qos=2))
    await client.expect(ack(0x50, 7))
    client.send(publish(frame, 7, version=version, qos=2, dup=True))
    await client.expect(ack(0x50, 7))
    client.send(ack(0x62, 7))
    await client.expect(ack(0x70, 7))
    assert {one for _, one in await run.kept()} == {frame}

    settings = Settings.model_validate({"pipeline": {"idle_sleep_ms": 1.0}, "journal": {"partitions": PARTITIONS}})
    sink, stop = MemorySink(PARTITIONS), asyncio.Event()
    pipeline = Pipeline(settings, run.journal, sink, range(PARTITIONS))
    running = asyncio.create_task(pipeline.run(stop))
    await asyncio.wait_for(pipeline.caught_up(), PATIENCE_S)
    stop.set()
    await running
    assert (len(sink.telemetry), sink.dead_letters) == (1, {})


@proves("4.3.3-2", "4.3.3-12")
async def test_after_pubcomp_the_identifier_is_a_new_message(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    for second in (1, 2):
        client.send(publish(report(second=second), 7, version=version, qos=2))
        await client.expect(ack(0x50, 7))
        client.send(ack(0x62, 7))
        await client.expect(ack(0x70, 7))
    assert await run.kept() == [("", report(second=1)), ("", report(second=2))]


@proves("4.3.3-2", "4.3.3-11")
async def test_every_pubrel_is_answered(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(ack(0x62, 9) * 3)
    await client.expect(ack(0x70, 9) * 3)
    assert await run.kept() == []


@proves(v5="4.3.3-13")
async def test_expiry_does_not_break_off_qos_2(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 7, version=version, qos=2, properties={"message_expiry_interval": 0}))
    await client.expect(ack(0x50, 7))
    client.send(ack(0x62, 7))
    await client.expect(ack(0x70, 7))
    assert await run.kept() == [("", report())]


@proves(v5="4.3.3-9 3.5.2-1 3.4.2-1")
async def test_a_refusal_ends_the_exchange(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    foreign = f"nev/v1/{OTHER}/gbt32960"
    client.send(publish(report(OTHER), 3, version=version, qos=2, topic=foreign))
    await client.expect(bytes.fromhex("50 03 0003 87"))
    client.send(publish(report(), 3, version=version, qos=2))  # no PUBREL before it
    await client.expect(ack(0x50, 3))
    client.send(publish(report(OTHER), 4, version=version, topic=foreign))
    await client.expect(bytes.fromhex("40 03 0004 87"))
    assert await run.kept() == [("foreign_vin", report(OTHER)), ("", report()), ("foreign_vin", report(OTHER))]


@proves("3.3.5-2")
async def test_what_is_not_allowed_is_acknowledged_or_closed(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 1, version=version, topic="else/where"))
    await client.expect(ack(0x40))
    client.send(publish(report(OTHER), 2, version=version, topic=f"nev/v1/{OTHER}/gbt32960"))
    await ends(client, version)
    assert [reason for reason, _ in await run.kept()] == ["unknown_topic", "foreign_vin"]


@proves(v5="3.6.2-1 3.7.2-1")
async def test_pubrel_with_a_reason_code(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    for body in ("0009 00", "0009 92", "0009 00 00", "0009 92 05 1F 0002 6869"):
        client.send(packet(PacketType.PUBREL, bytes.fromhex(body)))
        await client.expect(ack(0x70, 9))
    for body, code in (
        ("0009 87", Code.PROTOCOL_ERROR),
        ("0000 00", Code.PROTOCOL_ERROR),
        ("0009 00 05", Code.MALFORMED_PACKET),
        ("0009 00 05 1F 0002 FFFF", Code.MALFORMED_PACKET),
        ("0009 00 03 21 0001", Code.PROTOCOL_ERROR),
        ("0009 00 00 00", Code.MALFORMED_PACKET),
        ("00", Code.MALFORMED_PACKET),
    ):
        client = await run.mqtt(version=version)
        client.send(packet(PacketType.PUBREL, bytes.fromhex(body)))
        await ends(client, version, code)


@proves("4.8.0-1")
async def test_pubrel_of_3_1_1_has_four_bytes(start: Start, version: int) -> None:
    run = await start()
    for body in (b"", b"\0", b"\0\0", b"\0\1\0"):
        client = await run.mqtt(version=version)
        client.send(packet(PacketType.PUBREL, body))
        await ends(client, version)


# -- order -----------------------------------------------------------------------------------------
@proves("4.6.0-2 4.6.0-3 4.6.0-5 4.6.0-6", "4.6.0-2 4.6.0-3 4.6.0-5 4.6.0-6")
async def test_answers_and_frames_keep_their_order(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    sent = [(k, 1 + k % 2) for k in range(40)]
    client.send(b"".join(publish(report(second=k), 1 + k, version=version, qos=qos) for k, qos in sent))
    await client.expect(b"".join(ack(ANSWER[qos], 1 + k) for k, qos in sent))
    assert await run.kept() == [("", report(second=k)) for k, _ in sent]


# -- flags -----------------------------------------------------------------------------------------
@proves("3.3.1-4", "3.3.1-4")
async def test_qos_3(start: Start, version: int) -> None:
    run = await start()
    for first in (0x36, 0x37, 0x3E, 0x3F):
        client = await run.mqtt(version=version)
        client.send(raw_publish(TOPIC, report(), version, first))
        await ends(client, version, Code.MALFORMED_PACKET)
    assert await run.kept() == []


@proves("3.3.1-2", "3.3.1-2")
async def test_dup_at_qos_0(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(raw_publish(TOPIC, report(), version, 0x38))
    await ends(client, version, Code.MALFORMED_PACKET)


@proves("3.3.1-5 3.3.1-11 3.3.1-12")
async def test_retain_makes_no_difference_to_3_1_1(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 1, version=version, retain=True), publish(b"", 2, version=version, retain=True))
    client.send(publish(report(second=8), 3, version=version))
    await client.expect(ack(0x40, 1) + ack(0x40, 2) + ack(0x40, 3))
    client.send(subscribe((OWN, 1), version=version))
    await client.expect(codes(version, 7, 1))
    await alive(client)  # nothing was kept for a subscriber
    assert await run.kept() == [("", report()), ("", report(second=8))]


@proves(v5="3.2.2-14")
async def test_retain_where_nothing_is_retained(start: Start, version: int) -> None:
    run = await start()
    client, found = await opened(run, connect(VIN, version), version)
    assert found.properties["retain_available"] == 0
    client.send(publish(report(), 1, version=version, retain=True))
    await ends(client, version, Code.RETAIN_NOT_SUPPORTED)
    assert await run.kept() == []


# -- topic names -----------------------------------------------------------------------------------
@proves("3.3.2-2 4.7.1-1", "3.3.2-2 4.7.0-1")
async def test_wildcards_in_a_topic_name(start: Start, version: int) -> None:
    run = await start()
    for topic in (b"nev/v1/+/gbt32960", b"#", b"nev/v1/#", b"a+", b"a#"):
        client = await run.mqtt(version=version)
        client.send(raw_publish(topic, report(), version))
        await ends(client, version, Code.TOPIC_NAME_INVALID)
    assert await run.kept() == []


@proves("4.7.3-1 3.3.2-1", "4.7.3-1 3.3.2-1")
async def test_a_topic_name_that_is_empty_or_missing(start: Start, version: int) -> None:
    run = await start()
    for sent, code in (
        (raw_publish(b"", report(), version), Code.PROTOCOL_ERROR),
        (b"\x30\x00", Code.MALFORMED_PACKET),
        (b"\x30\x03\x00\x05a", Code.MALFORMED_PACKET),
    ):
        client = await run.mqtt(version=version)
        client.send(sent)
        await ends(client, version, code)


# -- properties of 5 -------------------------------------------------------------------------------
@proves(v5="3.3.2-12 3.2.2-17 3.3.2-9")
async def test_all_aliases_that_are_allowed_and_none_above(start: Start, version: int) -> None:
    run = await start()
    client, found = await opened(run, connect(VIN, version), version)
    most = found.properties["topic_alias_maximum"]
    for alias in range(1, most + 1):
        client.send(publish(report(second=alias), alias, version=version, properties={"topic_alias": alias}))
    for alias in range(1, most + 1):
        client.send(
            publish(report(second=59), 100 + alias, version=version, topic="", properties={"topic_alias": alias})
        )
    await client.expect(b"".join(ack(0x40, k) for k in [*range(1, most + 1), *range(101, 101 + most)]))
    assert [reason for reason, _ in await run.kept()] == [""] * 2 * most
    client.send(publish(report(), 1, version=version, properties={"topic_alias": most + 1}))
    await ends(client, version, Code.TOPIC_ALIAS_INVALID)


@proves(v5="3.3.2-8")
async def test_alias_0(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 1, version=version, properties={"topic_alias": 0}))
    await ends(client, version, Code.PROTOCOL_ERROR, Code.TOPIC_ALIAS_INVALID)


@proves(v5="3.3.2-7")
async def test_aliases_end_with_their_connection(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 1, version=version, properties={"topic_alias": 1}))
    await client.expect(ack(0x40))
    client = await run.mqtt(version=version, clean_start=False)
    client.send(publish(report(), 1, version=version, topic="", properties={"topic_alias": 1}))
    await ends(client, version, Code.PROTOCOL_ERROR)


@proves(v5="3.3.2-14")
async def test_a_response_topic_is_a_topic_name(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 1, version=version, properties={"response_topic": "a/b", "correlation_data": b"\0"}))
    await client.expect(ack(0x40))
    for bad in ("a/#", "+", ""):
        client = await run.mqtt(version=version)
        client.send(publish(report(), 1, version=version, properties={"response_topic": bad}))
        await ends(client, version, Code.PROTOCOL_ERROR)
    assert await run.kept() == [("", report())]


@proves(v5="3.3.4-6")
async def test_a_client_gives_no_subscription_identifier(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(report(), 1, version=version, properties={"subscription_identifier": 3}))
    await ends(client, version, Code.PROTOCOL_ERROR)
    assert await run.kept() == []


@pytest.mark.parametrize(
    "properties",
    [
        {"payload_format_indicator": 1},
        {"message_expiry_interval": 5, "content_type": "application/octet-stream"},
        {"user_property": [("k", "v"), ("k", "w"), ("", "")]},
        {"correlation_data": bytes(200)},
    ],
)
async def test_properties_that_a_publish_may_have(start: Start, properties: dict[str, object]) -> None:
    run = await start()
    client = await run.mqtt(version=V5)
    client.send(publish(report(), 1, version=V5, properties=properties))
    await client.expect(ack(0x40))
    assert await run.kept() == [("", report())]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x02\x01\x02", Code.PROTOCOL_ERROR),  # payload format 2
        (b"\x04\x01\x01\x01\x01", Code.PROTOCOL_ERROR),  # twice
        (b"\x03\x13\x00\x05", Code.PROTOCOL_ERROR),  # of CONNACK
        (b"\x02\x7f\x00", Code.MALFORMED_PACKET),  # of nothing
        (b"\x03\x02\x00\x00", Code.MALFORMED_PACKET),  # cut short
        (b"\xff\xff\xff\xff\x7f", Code.MALFORMED_PACKET),
    ],
)
async def test_properties_that_a_publish_may_not_have(start: Start, raw: bytes, code: Code) -> None:
    run = await start()
    client = await run.mqtt(version=V5)
    client.send(raw_publish(TOPIC, report(), V5, props=raw))
    await ends(client, V5, code)
    assert await run.kept() == []


# -- bounds ----------------------------------------------------------------------------------------
@proves(v5="3.2.2-15")
async def test_packets_beyond_maximum_packet_size(start: Start, version: int) -> None:
    run = await start(limits={"packet_bytes_max": 1000})
    client, found = await opened(run, connect(VIN, version), version)
    most = found.properties["maximum_packet_size"]
    assert most == 1000
    room = most - len(publish(b"", version=version)) - 1  # a length of two bytes
    client.send(publish(bytes(room), 1, version=version))
    await client.expect(ack(0x40))
    client.send(publish(bytes(room + 1), 2, version=version))
    await ends(client, version, Code.PACKET_TOO_LARGE)
    for kind in (0x82, 0xA2, 0x40, 0xE0, 0xC0):
        client = await run.mqtt(version=version)
        client.send(bytes((kind,)) + varint(5000))  # its header says it all
        await ends(client, version, Code.PACKET_TOO_LARGE)


@proves(v5="3.3.4-7")
async def test_more_than_receive_maximum(start: Start, version: int) -> None:
    run = await start(mqtt={"receive_maximum": 3})
    client, found = await opened(run, connect(VIN, version), version)
    assert found.properties["receive_maximum"] == 3
    for turn in range(3):  # what is acknowledged makes room
        ids = range(1 + 3 * turn, 4 + 3 * turn)
        client.send(b"".join(publish(report(second=k), k, version=version, qos=1 + k % 2) for k in ids))
        await client.expect(b"".join(ack(ANSWER[1 + k % 2], k) for k in ids))
    run.journal.gate.clear()
    client.send(b"".join(publish(report(second=k), k, version=version) for k in range(1, 4)))
    client.send(publish(report(second=9), 0, version=version, qos=0))  # QoS 0 does not count
    await held(run)
    await alive(client)
    client.send(publish(report(), 4, version=version))
    await ends(client, version, Code.RECEIVE_MAXIMUM_EXCEEDED)


@proves("4.8.0-2")
async def test_the_journal_away_is_waited_for(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    run.journal.away = True
    client.send(publish(report(), 1, version=version))
    await held(run)
    await alive(client)
    run.journal.away = False
    await client.expect(ack(0x40))
    assert await run.kept() == [("", report())]


async def test_a_frame_sent_again_with_dup_after_a_reconnect(start: Start) -> None:
    """What clients do whose PUBACK was lost; equal frames are one row in the end."""
    run = await start()
    first = await run.mqtt()
    run.journal.gate.clear()
    first.send(publish(report(), 5))
    await held(run)
    first.close()
    run.journal.gate.set()
    again = await run.mqtt(clean_start=False)
    again.send(publish(report(), 5, dup=True))
    await again.expect(ack(0x40, 5))
    assert {frame for _, frame in await run.kept()} == {report()}


async def test_pings_between_publishes(start: Start) -> None:
    run = await start()
    client = await run.client("mqtt")
    client.send(connect(VIN, V5))
    assert (await connack(client)).code == 0
    client.send(*(PINGREQ + publish(report(second=k), 1 + k, version=V5) for k in range(10)))
    said = await client.read(60)
    assert said.count(PINGRESP) == 10
