"""SUBSCRIBE, UNSUBSCRIBE and what goes down: clauses 3.8 to 3.11, 4.7, 4.8; 3.3 and 4.9 of the gateway as sender."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.mqtt.packets import Publish, encode_puback, packet
from schemas.mqtt.topics import downlink, matches
from schemas.mqtt.wire import V5, Code, PacketType
from services.gateway.downlink import Flight
from services.store.commands import MemoryCommands
from tests.conformance.proofs import proves
from tests.conformance.talking import (
    OWN,
    ack,
    alive,
    ask,
    codes,
    commanded,
    ends,
    opened,
    subscribe,
    text,
    unsubscribe,
)
from tests.gateway.playing import OTHER, VIN, Client, Running, Start, connect, publish, report

FOREIGN = f"nev/v1/{OTHER}/down/#"
QUICK = {"commands": {"poll_s": 0.01}}


def failure(version: int, code: Code = Code.NOT_AUTHORIZED) -> int:
    return code if version == V5 else 0x80


async def subscribed(
    start: Start, version: int, *filters: tuple[str, int], properties: dict[str, Any] | None = None
) -> tuple[Running, MemoryCommands, Client]:
    """A gateway with a queue of commands, and a vehicle that has subscribed to ``filters``."""
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client, _ = await opened(run, connect(VIN, version, properties=properties or {}), version)
    client.send(subscribe(*(filters or ((OWN, 1),)), version=version))
    await client.read(4 + len(filters or (0,)) + (version == V5))
    return run, queue, client


async def late(run: Running) -> Flight:
    """The time for an answer to the command has passed."""
    assert run.gateway.downlink is not None
    flights = run.gateway.downlink.flights
    await run.until(lambda: VIN in flights)
    attempts = flights[VIN].attempts
    flights[VIN].sent_s -= 1000
    await run.until(lambda: VIN not in flights or flights[VIN].attempts > attempts)
    return flights[VIN]


# -- SUBSCRIBE and SUBACK --------------------------------------------------------------------------
@proves("3.8.4-1 3.8.4-2 2.3.1-7", "3.8.4-1 3.8.4-2 2.2.1-6")
async def test_subscribe_is_answered_with_its_identifier(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    for number in (1, 513, 65_535):
        client.send(subscribe((OWN, 1), version=version, packet_id=number))
        await client.expect(codes(version, number, 1))


@proves(
    "3.8.4-4 3.8.4-5 3.9.3-1 3.9.3-2",
    "3.8.4-5 3.8.4-6 3.8.4-7 3.9.3-1 3.9.3-2",
)
async def test_a_code_for_each_filter_in_its_order(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    asked = ((FOREIGN, 0), (OWN, 2), ("a/b", 1), (downlink(VIN), 0), ("#", 2))
    client.send(subscribe(*asked, version=version))
    no = failure(version)
    await client.expect(codes(version, 7, no, 1, no, 0, no))
    shared = failure(version, Code.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED)
    client.send(subscribe((f"$share/group/{OWN}", 1), version=version))
    await client.expect(codes(version, 7, shared))


@proves("3.8.3-3", "3.8.3-2")
async def test_subscribe_without_a_filter(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(packet(PacketType.SUBSCRIBE, b"\0\7" + (b"\0" if version == V5 else b"")))
    await ends(client, version, Code.PROTOCOL_ERROR)


@proves("3.8.3-4", "3.8.3-5")
async def test_reserved_option_bits_and_qos_3(start: Start, version: int) -> None:
    run = await start()
    wrong = (0x40, 0x80, 0xC1) if version == V5 else (0x03, 0x04, 0x08, 0x10, 0x80, 0xFC)
    for options in wrong:
        client = await run.mqtt(version=version)
        client.send(subscribe((OWN, options), version=version))
        await ends(client, version, Code.MALFORMED_PACKET)
    if version == V5:
        for options in (0x03, 0x30, 0x33):  # QoS 3, retain handling 3
            client = await run.mqtt(version=version)
            client.send(subscribe((OWN, options), version=version))
            await ends(client, version, Code.PROTOCOL_ERROR)


@proves("4.7.1-2 4.7.1-3 4.7.3-1", "4.7.1-1 4.7.1-2 4.7.3-1")
async def test_wildcards_out_of_place(start: Start, version: int) -> None:
    run = await start()
    base = f"nev/v1/{VIN}/down/"
    for bad in ("", "#/a", base + "#/a", base + "a#", base + "a+", base + "+a", base + "+#", "##", "++"):
        for sent in (subscribe((bad, 1), version=version), unsubscribe(bad, version=version)):
            client = await run.mqtt(version=version)
            client.send(sent)
            await ends(client, version, Code.MALFORMED_PACKET)
    client = await run.mqtt(version=version)
    for good in (base + "#", base + "+", base + "+/+", base + "+/#", base + "a/+/b"):
        client.send(subscribe((good, 1), version=version))
        await client.expect(codes(version, 7, 1))


@proves("3.8.3-2")
async def test_filters_with_wildcards_are_served_or_refused(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(subscribe((OWN, 1), ("+/v1/#", 1), ("#", 1), version=version))
    await client.expect(codes(version, 7, 1, 0x80, 0x80))


@proves("4.7.2-1", "4.7.2-1")
async def test_a_wildcard_first_is_refused(start: Start, version: int) -> None:
    """So no filter of ours begins with a wildcard, and none can meet a topic that begins with $."""
    run = await start()
    client = await run.mqtt(version=version)
    client.send(subscribe(("#", 0), ("+/x", 0), ("$SYS/#", 0), version=version))
    await client.expect(codes(version, 7, *[failure(version)] * 3))


@proves(v5="4.8.2-1 4.8.2-2")
async def test_shared_filters_of_the_wrong_form(start: Start, version: int) -> None:
    run = await start()
    for bad in ("$share/", "$share/g", "$share//a", "$share/g/", "$share/g+/a", "$share/#/a", "$share/g/a#"):
        client = await run.mqtt(version=version)
        client.send(subscribe((bad, 1), version=version))
        await ends(client, version, Code.MALFORMED_PACKET)


@proves(v5="3.8.3-4")
async def test_no_local_on_a_shared_subscription(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(subscribe((f"$share/g/{OWN}", 0x05), version=version))
    await ends(client, version, Code.PROTOCOL_ERROR)


@proves(v5="3.8.3-3")
async def test_no_local(start: Start, version: int) -> None:
    run, _, client = await subscribed(start, version, (OWN, 0x05))
    client.send(publish(report(), 1, version=version, topic=downlink(VIN)))
    await client.expect(ack(0x40))
    await alive(client)  # it does not come back
    assert [reason for reason, _ in await run.kept()] == ["unknown_topic"]


async def test_a_subscription_identifier_is_refused(start: Start) -> None:
    run = await start()
    client = await run.mqtt(version=V5)
    client.send(packet(PacketType.SUBSCRIBE, b"\0\7\x02\x0b\x03" + text(OWN.encode()) + b"\1"))
    await ends(client, V5, Code.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED)


@proves(v5="3.1.2-24")
async def test_a_suback_beyond_the_clients_packet_size(start: Start, version: int) -> None:
    run = await start()
    client, _ = await opened(run, connect(VIN, version, properties={"maximum_packet_size": 50}), version)
    client.send(subscribe(*(("a/b", 0),) * 40, version=version))
    await client.expect(codes(version, 7, *[Code.NOT_AUTHORIZED] * 40))
    client.send(subscribe(*(("a/b", 0),) * 60, version=version))
    await ends(client, version, Code.PACKET_TOO_LARGE)


# -- UNSUBSCRIBE and UNSUBACK ----------------------------------------------------------------------
@proves(
    "3.10.4-4 3.10.4-5 3.10.4-6 2.3.1-7",
    "3.10.4-4 3.10.4-5 3.10.4-6 3.11.3-1 3.11.3-2 2.2.1-6",
)
async def test_unsubscribe_is_answered_with_its_identifier(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(subscribe((OWN, 1), (downlink(VIN), 1), version=version))
    await client.read(6 + (version == V5))
    client.send(unsubscribe("a/b", OWN, "a/b", downlink(VIN), OWN, version=version, packet_id=600))
    await client.expect(codes(version, 600, 0x11, 0, 0x11, 0, 0x11, kind=PacketType.UNSUBACK))
    client.send(unsubscribe(OWN, version=version, packet_id=601))
    await client.expect(codes(version, 601, 0x11, kind=PacketType.UNSUBACK))


@proves("3.10.3-2", "3.10.3-2")
async def test_unsubscribe_without_a_filter(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(packet(PacketType.UNSUBSCRIBE, b"\0\7" + (b"\0" if version == V5 else b"")))
    await ends(client, version, Code.PROTOCOL_ERROR)


@proves("3.10.4-1", "3.10.4-1")
async def test_filters_are_compared_character_by_character(start: Start, version: int) -> None:
    _, queue, client = await subscribed(start, version)
    for other in (downlink(VIN), OWN[:-1] + "+", OWN.lower()):  # they match the same topic, or nearly
        client.send(unsubscribe(other, version=version))
        await client.expect(codes(version, 8, 0x11, kind=PacketType.UNSUBACK))
    await ask(queue)
    assert (await commanded(client, version)).topic == downlink(VIN)


@proves("3.10.4-2", "3.10.4-2")
async def test_nothing_new_after_unsubscribe(start: Start, version: int) -> None:
    run, queue, client = await subscribed(start, version)
    client.send(unsubscribe(OWN, version=version))
    await client.expect(codes(version, 8, 0, kind=PacketType.UNSUBACK))
    number = await ask(queue)
    assert run.gateway.downlink is not None
    for _ in range(3):
        await run.gateway.downlink.turn()
    await alive(client)
    assert queue.rows[number]["state"] == "queued"


@proves("3.10.4-3", "3.10.4-3")
async def test_a_delivery_that_was_begun_is_completed(start: Start, version: int) -> None:
    run, queue, client = await subscribed(start, version)
    await ask(queue)
    sent = await commanded(client, version)
    client.send(unsubscribe(OWN, version=version))
    await client.expect(codes(version, 8, 0, kind=PacketType.UNSUBACK))
    client.send(encode_puback(sent.packet_id, version=version))
    await alive(client)
    assert run.gateway.mqtt.by_vin[VIN].extra.unacked == set()


# -- what goes down --------------------------------------------------------------------------------
@proves(
    "3.3.2-3 3.3.1-3 3.3.1-9 4.3.2-1 2.3.1-4 4.1.0-1 4.1.0-2",
    "3.3.2-3 3.3.1-3 3.3.1-8 3.3.1-12 4.3.2-1 4.3.2-2 4.3.2-3 2.2.1-4 4.1.0-1 3.1.2-27 4.9.0-1",
)
async def test_a_command_at_qos_1(start: Start, version: int) -> None:
    run, queue, client = await subscribed(start, version)
    client.send(publish(report(), 1, version=version, dup=True))  # what comes in does not colour what goes out
    await client.expect(ack(0x40))
    number = await ask(queue)
    sent = await commanded(client, version)
    assert sent == Publish(downlink(VIN), sent.payload, 1, sent.packet_id)  # no DUP, no retain, no property
    assert sent.packet_id != 0
    assert not queue.rows[number].get("delivered")
    assert run.gateway.mqtt.by_vin[VIN].extra.unacked == {sent.packet_id}
    client.send(encode_puback(sent.packet_id, version=version))
    await run.until(lambda: bool(queue.rows[number].get("delivered")))


@proves("4.3.1-1 3.8.4-6 3.3.1-2", "4.3.1-1 3.8.4-8 3.3.1-2 2.2.1-2")
async def test_a_command_at_qos_0(start: Start, version: int) -> None:
    _, queue, client = await subscribed(start, version, (OWN, 0))
    await ask(queue)
    sent = await commanded(client, version)
    assert sent == Publish(downlink(VIN), sent.payload)


@proves("3.8.4-6", "3.8.4-8 3.8.4-7")
async def test_qos_2_is_granted_and_kept_to_as_1(start: Start, version: int) -> None:
    _, queue, client = await subscribed(start, version, (OWN, 2))
    await ask(queue)
    assert (await commanded(client, version)).qos == 1


@proves("3.8.4-3", "3.8.4-3 3.8.4-4")
async def test_the_same_filter_again_replaces_the_subscription(start: Start, version: int) -> None:
    _, queue, client = await subscribed(start, version)
    client.send(subscribe((OWN, 0), version=version))
    await client.expect(codes(version, 7, 0))
    await ask(queue)
    assert (await commanded(client, version)).qos == 0  # one copy, at the new QoS
    await alive(client)


@proves("3.3.5-1", "3.3.4-2")
async def test_overlapping_subscriptions(start: Start, version: int) -> None:
    _, queue, client = await subscribed(start, version, (OWN, 0), (downlink(VIN), 1), (OWN[:-1] + "+", 0))
    await ask(queue)
    assert (await commanded(client, version)).qos == 1
    await alive(client)  # one copy


@proves(v5="3.3.1-11")
@pytest.mark.parametrize("options", [0x01, 0x11, 0x21, 0x09, 0x0D])
async def test_options_about_retained_messages(start: Start, version: int, options: int) -> None:
    _, queue, client = await subscribed(start, version, (OWN, options))
    await alive(client)  # nothing is retained, whatever the handling
    await ask(queue)
    assert not (await commanded(client, version)).retain


@proves(v5="3.1.2-26 3.3.2-11 3.1.2-27")
@pytest.mark.parametrize("most", [0, 1, 100])
async def test_no_alias_goes_down(start: Start, version: int, most: int) -> None:
    _, queue, client = await subscribed(start, version, properties={"topic_alias_maximum": most})
    await ask(queue)
    sent = await commanded(client, version)
    assert (sent.topic, sent.properties) == (downlink(VIN), {})


@proves(v5="3.3.4-9 3.3.4-10 4.9.0-1 4.9.0-2 4.9.0-3")
async def test_the_clients_receive_maximum(start: Start, version: int) -> None:
    run, queue, client = await subscribed(start, version, properties={"receive_maximum": 1})
    await ask(queue)
    first = await commanded(client, version)
    flight = await late(run)  # tried again, but not sent: one is un-acknowledged
    assert flight.attempts == 2
    client.send(publish(report(), 1, version=version))
    await client.expect(ack(0x40))  # anything else goes on
    await alive(client)
    client.send(encode_puback(first.packet_id, version=version))
    await alive(client)
    assert (await late(run)).attempts == 3
    again = await commanded(client, version)
    assert again.packet_id != first.packet_id


@proves(v5="4.4.0-1 4.4.0-2")
async def test_a_message_is_not_sent_again_by_itself(start: Start, version: int) -> None:
    """The resend of a command that was not answered is a new message with a new identifier, and DUP 0."""
    run, queue, client = await subscribed(start, version)
    number = await ask(queue)
    first = await commanded(client, version)
    client.send(encode_puback(first.packet_id, Code.IMPLEMENTATION_SPECIFIC, version))
    await alive(client)
    assert run.gateway.mqtt.by_vin[VIN].extra.unacked == set()
    assert not queue.rows[number].get("delivered")
    await late(run)
    second = await commanded(client, version)
    assert (second.packet_id != first.packet_id, second.dup, second.payload) == (True, False, first.payload)


@proves(v5="3.1.2-24 3.1.2-25")
async def test_a_command_beyond_the_clients_packet_size(start: Start, version: int) -> None:
    run, queue, client = await subscribed(start, version, properties={"maximum_packet_size": 60})
    number = await ask(queue)
    await run.until(lambda: queue.rows[number]["state"] == "sent")  # as if it had been
    await alive(client)
    assert run.gateway.mqtt.by_vin[VIN].extra.unacked == set()


@proves("4.7.1-3 4.7.3-4", "4.7.1-2 4.7.3-4")
def test_matching(version: int) -> None:
    assert matches("a/+/c", "a/b/c")
    assert matches("+", "a")
    assert matches("a/+", "a/")
    assert not matches("a/+", "a")
    assert not matches("+", "/a")
    assert not matches("a/B", "a/b")
    assert not matches("a//b", "a/b")
