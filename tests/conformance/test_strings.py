"""Strings, integers and fixed headers: clauses 1.5, 2 and 4.7 of 5.0, 1.5, 2 and 4.7 of 3.1.1."""

from __future__ import annotations

import pytest

from schemas.mqtt.packets import packet
from schemas.mqtt.wire import V5, Code, PacketType, varint
from tests.conformance.proofs import proves
from tests.conformance.talking import (
    OWN,
    ack,
    codes,
    ends,
    raw_connect,
    raw_publish,
    refused,
    subscribe,
    text,
    unsubscribe,
    vin_field,
)
from tests.gateway.playing import VIN, Start, connect, publish, report

ILL_FORMED = (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xe4\xb8", b"\x80")
NUL = (b"\0", b"a\0b")
TOPIC = f"nev/v1/{VIN}/gbt32960".encode()


async def _everywhere(start: Start, version: int, bad: tuple[bytes, ...]) -> None:
    """``bad`` in each string that a client can send."""
    run = await start()
    for one in bad:
        will_properties = b"\0" if version == V5 else b""
        for flags, payload in (
            (0x02, text(one)),
            (0x06, vin_field + will_properties + text(one) + text(b"")),
            (0x82, vin_field + text(one)),
        ):
            client = await run.client("mqtt")
            client.send(raw_connect(version, flags, payload))
            await refused(client, version, Code.MALFORMED_PACKET)
        head = b"\0\7" + (b"\0" if version == V5 else b"")
        for sent in (
            raw_publish(TOPIC + one, b"", version),
            raw_publish(one, b"", version, 0x30),
            packet(PacketType.SUBSCRIBE, head + text(b"a/" + one) + b"\0"),
            packet(PacketType.UNSUBSCRIBE, head + text(b"a/" + one)),
        ):
            client = await run.mqtt(version=version)
            client.send(sent)
            await ends(client, version, Code.MALFORMED_PACKET)
    assert await run.kept() == []


@proves(
    "1.5.3-1 3.1.3-4 3.1.3-10 3.1.3-11 3.3.2-1 3.8.3-1 3.10.3-1",
    "1.5.4-1 3.1.3-4 3.1.3-11 3.1.3-12 3.3.2-1 3.8.3-1 3.10.3-1",
)
async def test_ill_formed_utf_8(start: Start, version: int) -> None:
    await _everywhere(start, version, ILL_FORMED)


@proves("1.5.3-2 4.7.3-2", "1.5.4-2 4.7.3-2")
async def test_the_character_nul(start: Start, version: int) -> None:
    await _everywhere(start, version, NUL)


@proves("1.5.3-3 4.7.3-4", "1.5.4-3 4.7.3-4")
async def test_nothing_is_stripped_or_normalised(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    failed = Code.NOT_AUTHORIZED if version == V5 else 0x80
    for other in ("\ufeff" + OWN, OWN.upper(), OWN.replace("nev", "ne\uff56"), OWN.replace("/v1", "//v1")):
        client.send(subscribe((other, 1), version=version))
        await client.expect(codes(version, 7, failed))
    client.send(publish(report(), version=version, topic="\ufeff" + TOPIC.decode()))
    await client.expect(ack(0x40))
    assert [reason for reason, _ in await run.kept()] == ["unknown_topic"]


@proves(v5="1.5.7-1 3.3.2-13 3.3.2-19")
async def test_strings_inside_properties(start: Start, version: int) -> None:
    run = await start()
    for bad in (*ILL_FORMED, *NUL):
        field = text(bad)
        for one in (b"\x26" + field + text(b"v"), b"\x26" + text(b"k") + field, b"\x03" + field, b"\x08" + field):
            client = await run.mqtt(version=version)
            client.send(raw_publish(TOPIC, report(), version, props=varint(len(one)) + one))
            await ends(client, version, Code.MALFORMED_PACKET)
    assert await run.kept() == []


@proves(v5="1.5.5-1")
async def test_lengths_in_as_few_bytes_as_possible(start: Start, version: int) -> None:
    for value, width in ((0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (2_097_152, 4), (268_435_455, 4)):
        assert len(varint(value)) == width
    run = await start()
    client = await run.mqtt(version=version)
    # a sender that pads is understood where nothing is ambiguous: the remaining length of terminals with fixed fields
    short = publish(b"", version=version)
    client.send(short[:1] + bytes((short[1] | 0x80, 0)) + short[2:])
    await client.expect(ack(0x40))
    # a property identifier has one byte
    client.send(raw_publish(TOPIC, b"", version, props=b"\x03\x81\x00\x01"))
    await ends(client, version, Code.MALFORMED_PACKET)


@proves("4.8.0-1", "4.13.1-1")
async def test_a_remaining_length_of_five_bytes(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(b"\x30\xff\xff\xff\xff\x01")
    await ends(client, version, Code.MALFORMED_PACKET)


async def _flags(start: Start, version: int, sample: bytes) -> None:
    run = await start()
    right = sample[0] & 15
    for wrong in {0, 1, 2, 4, 8, 15} - {right}:
        client = await run.mqtt(version=version)
        client.send(bytes((sample[0] & 0xF0 | wrong,)) + sample[1:])
        await ends(client, version, Code.MALFORMED_PACKET)


@proves("2.2.2-1 2.2.2-2", "2.1.3-1")
async def test_reserved_flags(start: Start, version: int) -> None:
    asked = subscribe((OWN, 1), version=version), unsubscribe(OWN, version=version)
    for sample in (*asked, ack(0x62), ack(0x40), b"\xc0\x00", b"\xe0\x00"):
        await _flags(start, version, sample)
    run = await start()
    client = await run.client("mqtt")
    client.send(raw_connect(version, 2, vin_field, first=0x11))
    assert await client.rest() == b""


@proves("3.6.1-1", "3.6.1-1")
async def test_flags_of_pubrel(start: Start, version: int) -> None:
    await _flags(start, version, ack(0x62))


@proves("3.8.1-1", "3.8.1-1")
async def test_flags_of_subscribe(start: Start, version: int) -> None:
    await _flags(start, version, subscribe((OWN, 1), version=version))


@proves("3.10.1-1", "3.10.1-1")
async def test_flags_of_unsubscribe(start: Start, version: int) -> None:
    await _flags(start, version, unsubscribe(OWN, version=version))


@proves("3.14.1-1", "3.14.1-1")
async def test_flags_of_disconnect(start: Start, version: int) -> None:
    await _flags(start, version, b"\xe0\x00")


@proves("4.8.0-1", "4.13.1-1 4.13.2-1 3.14.2-1 3.14.2-2 3.14.4-2")
async def test_packets_that_only_servers_send_and_types_that_are_none(start: Start, version: int) -> None:
    run = await start()
    for sent, code in (
        (b"\x20\x02\x00\x00", Code.PROTOCOL_ERROR),
        (b"\x90\x03\x00\x07\x00", Code.PROTOCOL_ERROR),
        (b"\xb0\x02\x00\x07", Code.PROTOCOL_ERROR),
        (b"\xd0\x00", Code.PROTOCOL_ERROR),
        (b"\x50\x02\x00\x01", Code.PROTOCOL_ERROR),
        (b"\x70\x02\x00\x01", Code.PROTOCOL_ERROR),
        (b"\x00\x00", Code.MALFORMED_PACKET),
        (b"\xc0\x01\x00", Code.MALFORMED_PACKET),
    ):
        client = await run.mqtt(version=version)
        client.send(sent)
        told = await ends(client, version, code)
        assert "session_expiry_interval" not in told


@proves("2.3.1-1", "2.2.1-3")
async def test_packet_identifier_0(start: Start, version: int) -> None:
    run = await start()
    for sent in (
        publish(report(), 0, version=version),
        publish(report(), 0, version=version, qos=2),
        subscribe((OWN, 1), version=version, packet_id=0),
        unsubscribe(OWN, version=version, packet_id=0),
    ):
        client = await run.mqtt(version=version)
        client.send(sent)
        await ends(client, version, Code.PROTOCOL_ERROR)
    assert await run.kept() == []


@proves("4.7.3-3", "4.7.3-3")
async def test_the_longest_topic(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(raw_publish(b"x" * 65_535, report(), version))
    await client.expect(ack(0x40))
    client.send(subscribe(("x" * 65_535, 0), version=version))
    await client.expect(codes(version, 7, Code.NOT_AUTHORIZED if version == V5 else 0x80))
    assert [reason for reason, _ in await run.kept()] == ["unknown_topic"]


@proves("7.1.1-1", "4.2-1")
@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_a_stream_of_bytes_however_it_is_cut(start: Start, version: int, piece: int) -> None:
    run = await start()
    client = await run.client("mqtt")
    sent = connect(VIN, version) + b"".join(publish(report(second=k), 1 + k, version=version) for k in range(5))
    for at in range(0, len(sent), piece):
        client.send(sent[at : at + piece])
        await client.writer.drain()
    rest = b"".join(ack(0x40, 1 + k) for k in range(5))
    head = await client.read(2)
    await client.read(head[1])
    await client.expect(rest)
    assert await run.kept() == [("", report(second=k)) for k in range(5)]


@proves(v5="2.2.2-1")
async def test_a_property_length_that_is_missing(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(packet(PacketType.PUBLISH, text(TOPIC) + b"\0\1", 2))
    await ends(client, version, Code.MALFORMED_PACKET)
    client = await run.mqtt(version=version)
    client.send(subscribe((OWN, 1), version=version))
    await client.expect(bytes.fromhex("90 04 0007 00 01"))  # ours is there
