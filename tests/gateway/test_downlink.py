"""Commands on their way down, over real sockets: sent, answered, sent again, given up, handed back.

The clock of a resend is set back by hand, so that no test waits for one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.reference import decode_frame
from schemas.mqtt.packets import (
    Subscribe,
    Unsubscribe,
    encode_puback,
    encode_subscribe,
    encode_unsubscribe,
    parse_publish,
)
from schemas.mqtt.topics import downlink, matches
from services.gateway.downlink import Downlink, Flight
from services.store.commands import MemoryCommands
from tests.gateway.playing import OTHER, VIN, Client, Running, Start, login, logout, publish, report
from tests.gateway.test_gbt import spec_reply

GOLDEN = {one["id"]: bytes.fromhex(one["hex"]) for one in json.loads(
    (Path(__file__).parents[1] / "gbt32960/data/frames.json").read_text("utf-8")
)}  # fmt: skip
QUICK = {"commands": {"poll_s": 0.01}}
QUERY = {"params": ["storage_period_ms", "report_period"]}


async def ask(queue: MemoryCommands, kind: str = "query", body: dict[str, Any] | None = None, **more: Any) -> int:
    return await queue.enqueue(
        more.pop("vin", VIN), kind, QUERY if body is None else body, by="test", expires_s=60, **more
    )


def answer_to(frame: bytes, flag: int, params: bytes = b"") -> bytes:
    """What a terminal answers: the time of the request, and the values when it was a query."""
    return build_frame(16 if frame[0] == 0x23 else 25, frame[2], flag, frame[4:21], 1, frame[24:30] + params)


def down_of(run: Running) -> Downlink:
    assert run.gateway.downlink is not None
    return run.gateway.downlink


async def state(run: Running, queue: MemoryCommands, number: int, wanted: str) -> dict[str, Any]:
    await run.until(lambda: queue.rows[number]["state"] == wanted)
    return queue.rows[number]


async def late(run: Running, vin: str = VIN) -> Flight:
    """Let the time for an answer pass."""
    await run.until(lambda: vin in down_of(run).flights)
    flight = down_of(run).flights[vin]
    flight.sent_s -= 1000
    return flight


async def command(client: Client) -> bytes:
    head = await client.read(24)
    return head + await client.read(int.from_bytes(head[22:24], "big") + 1)


# -- over GB/T 32960 -------------------------------------------------------------------------------
@pytest.mark.parametrize("edition", [16, 25])
@pytest.mark.parametrize("flag", [0x01, 0xFE])  # some terminals answer a query with the flag of a command
async def test_a_query_and_its_values(start: Start, edition: int, flag: int) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.vehicle(edition=edition)
    number = await ask(queue)
    sent = await command(client)
    tree = decode_frame(sent)
    assert (tree["edition"], tree["cmd"], tree["ack"], tree["vin"]) == (str(2000 + edition), 0x80, 0xFE, VIN)
    assert tree["body"]["ids"] == [1, 2]
    assert tree["bcc_ok"]
    values = b"\x02\x01\x13\x88\x02" + (b"\x00\x0a" if edition == 16 else b"\x0a")
    client.send(answer_to(sent, flag, values) + report(edition=edition))
    await client.expect(spec_reply(report(edition=edition), 1))  # an answer is never answered
    row = await state(run, queue, number, "answered")
    assert (row["ack"], row["attempts"]) == (flag, 1)
    assert {one["name"]: one["value"] for one in row["answer"]["params"]} == {
        "storage_period_ms": 5000, "report_period": 10
    }  # fmt: skip
    kept = [frame for reason, frame in await run.kept() if not reason]
    assert kept == [login(edition=edition), answer_to(sent, flag, values), report(edition=edition)]
    assert down_of(run).flights == {}


@pytest.mark.parametrize(
    ("kind", "body", "byte"),
    [("set", {"params": {"report_period": 10}}, 0x81), ("control", {"control": "reset"}, 0x82)],
)
async def test_set_and_control(start: Start, kind: str, body: dict[str, Any], byte: int) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.vehicle()
    good, bad = await ask(queue, kind, body), await ask(queue, kind, body)
    first = await command(client)
    assert first[2] == byte
    client.send(answer_to(first, 0x01))
    await state(run, queue, good, "answered")
    client.send(answer_to(await command(client), 0x02))  # one at a time: the second came behind the answer
    row = await state(run, queue, bad, "failed")
    assert row["error"] == "the terminal answered 0x02 (error)"


async def test_another_projects_answer(start: Start) -> None:
    """EMQX's terminal answers a query with flag 0xFE, and five values."""
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    reply = GOLDEN["emqx-param-query-reply"]
    client = await run.vehicle("LTEST000000000001")
    number = await ask(queue, vin="LTEST000000000001")
    await command(client)
    client.send(reply)
    row = await state(run, queue, number, "answered")
    assert [one["name"] for one in row["answer"]["params"]][-1] == "public_domain"


async def test_one_in_flight_per_vehicle_and_each_gets_its_own(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    one, two = await run.vehicle(VIN), await run.vehicle(OTHER)
    numbers = [await ask(queue), await ask(queue, vin=OTHER), await ask(queue)]
    sent = {VIN: await command(one), OTHER: await command(two)}
    assert queue.rows[numbers[2]]["state"] == "queued"
    two.send(answer_to(sent[OTHER], 1))
    one.send(answer_to(sent[VIN], 1))
    one.send(answer_to(await command(one), 1))
    for number in numbers:
        await state(run, queue, number, "answered")


async def test_unanswered_it_goes_out_three_times(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.vehicle()
    number = await ask(queue, "control", {"control": "reset"})
    first = await command(client)
    for attempt in (2, 3):
        await late(run)
        assert await command(client) == first
        await run.until(lambda attempt=attempt: queue.rows[number]["attempts"] == attempt)
    await late(run)
    row = await state(run, queue, number, "failed")
    assert row["error"] == "no answer after 3 attempts"
    client.send(answer_to(first, 1) + report())  # too late: passed over
    await client.expect(spec_reply(report(), 1))
    assert row["state"] == "failed"


async def test_a_late_answer_to_the_first_attempt_counts(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.vehicle()
    number = await ask(queue)
    first = await command(client)
    await late(run)
    await command(client)
    client.send(answer_to(first, 1))
    assert (await state(run, queue, number, "answered"))["attempts"] == 2


async def test_a_broken_connection_queues_it_again(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.vehicle()
    number = await ask(queue)
    await command(client)
    client.close()
    row = await state(run, queue, number, "queued")
    assert row["error"] == "the connection broke before the answer"
    again = await run.vehicle()
    again.send(answer_to(await command(again), 1))
    assert (await state(run, queue, number, "answered"))["attempts"] == 2


async def test_a_vehicle_that_logs_out_is_sent_nothing_more(start: Start) -> None:
    """The connection may stay, and the next vehicle log in over it: it must not get what was meant for another."""
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.vehicle()
    number = await ask(queue)
    await command(client)
    client.send(logout())
    await client.expect(spec_reply(logout(), 1))
    client.send(login(OTHER))
    await client.expect(spec_reply(login(OTHER), 1))
    row = await state(run, queue, number, "queued")
    assert row["error"] == "the vehicle left before the answer"
    assert down_of(run).flights == {}
    client.send(report(OTHER))
    await client.expect(spec_reply(report(OTHER), 1))  # and no command before it


async def test_a_client_that_unsubscribes_is_sent_nothing_more(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await subscribed(run, 4, downlink(VIN))
    number = await ask(queue)
    await published(client, 4)
    client.send(encode_unsubscribe(Unsubscribe(8, (downlink(VIN),)), 4))
    await client.expect(b"\xb0\x02\x00\x08")
    assert (await state(run, queue, number, "queued"))["error"] == "the vehicle left before the answer"


async def test_nobody_connected_nothing_asked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    asked: list[int] = []
    queued = queue.queued

    async def counted(after: int, limit: int) -> list[tuple[int, str]]:
        asked.append(after)
        return await queued(after, limit)

    monkeypatch.setattr(queue, "queued", counted)
    for _ in range(3):
        await down_of(run).turn()
    assert asked == []
    await run.vehicle()
    await down_of(run).turn()
    assert asked


async def test_a_stopping_gateway_hands_back(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.vehicle()
    number = await ask(queue)
    await command(client)
    await run.gateway.drain(5.0)
    assert queue.rows[number]["state"] == "queued"


async def test_who_is_away_waits_and_holds_up_nobody(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.downlink._PAGE", 2)
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    waiting = [await ask(queue, vin=OTHER) for _ in range(5)]
    client = await run.vehicle()
    number = await ask(queue)
    client.send(answer_to(await command(client), 1))
    await state(run, queue, number, "answered")
    assert {queue.rows[one]["state"] for one in waiting} == {"queued"}


async def test_what_cannot_be_sent_in_this_edition_fails(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    await run.vehicle(edition=25)
    number = await ask(queue, "set", {"params": {"report_period": 600}})
    row = await state(run, queue, number, "failed")
    assert "is not 1 to 30 (edition 2025)" in row["error"]
    assert row["attempts"] == 0


async def test_the_store_away(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.vehicle()
    number = await ask(queue)
    sent = await command(client)
    queue.away = True
    client.send(answer_to(sent, 1) + report())
    await client.expect(spec_reply(report(), 1))  # frames do not care
    await run.until(lambda: bool(down_of(run)._away))
    queue.away = False
    await state(run, queue, number, "answered")


async def test_a_command_that_comes_up_instead_of_an_answer(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.vehicle()
    await ask(queue)
    sent = await command(client)
    client.send(sent)  # a terminal that echoes what it gets
    await client.expect(spec_reply(sent, 2))
    assert VIN in down_of(run).flights


# -- over MQTT -------------------------------------------------------------------------------------
async def subscribed(run: Running, version: int, topic: str, qos: int = 1) -> Client:
    client = await run.mqtt(version=version)
    client.send(encode_subscribe(Subscribe(7, ((topic, qos),)), version))
    suback = await client.read(5 if version == 4 else 6)
    assert suback[-1] == min(qos, 1)
    return client


async def published(client: Client, version: int) -> Any:
    first = (await client.read(1))[0]
    length = (await client.read(1))[0]
    return parse_publish(first, await client.read(length), version)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("topic", [downlink(VIN), f"nev/v1/{VIN}/down/#", f"nev/v1/{VIN}/down/+"])
async def test_over_mqtt(start: Start, version: int, topic: str) -> None:
    queue = MemoryCommands()
    queue.editions[VIN] = 25
    run = await start(queue=queue, **QUICK)
    client = await subscribed(run, version, topic)
    number = await ask(queue)
    message = await published(client, version)
    assert (message.topic, message.qos) == (downlink(VIN), 1)
    assert message.payload[:4] == b"$$\x80\xfe"
    client.send(encode_puback(message.packet_id, version=version))
    await run.until(lambda: bool(queue.rows[number]["delivered"]))
    assert queue.rows[number]["state"] == "sent"
    reply = answer_to(message.payload, 1, b"\x01\x02\x0a")
    client.send(publish(report(second=8) + reply + report(second=9), version=version))
    await client.expect(b"\x40\x02\x00\x01")
    row = await state(run, queue, number, "answered")
    assert row["answer"]["params"] == [{"id": 2, "name": "report_period", "value": 10}]
    assert ("", reply) in await run.kept()


async def test_mqtt_with_qos_0_and_without_a_subscription(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    client = await run.mqtt()
    number = await ask(queue)
    client.send(b"\xc0\x00")
    await client.expect(b"\xd0\x00")
    assert queue.rows[number]["state"] == "queued"
    client.send(encode_subscribe(Subscribe(7, ((downlink(VIN), 0),)), 4))
    await client.read(5)
    message = await published(client, 4)
    assert (message.qos, message.packet_id) == (0, 0)
    client.send(publish(answer_to(message.payload, 1)))
    await state(run, queue, number, "answered")


async def test_the_link_that_speaks_the_standard_goes_first(start: Start) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    await subscribed(run, 4, downlink(VIN))
    client = await run.vehicle()
    number = await ask(queue)
    client.send(answer_to(await command(client), 1))
    await state(run, queue, number, "answered")


async def test_a_puback_for_nothing_does_no_harm(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    client.send(encode_puback(9) * 3 + publish(report()))
    await client.expect(b"\x40\x02\x00\x01")


@pytest.mark.parametrize(
    ("topic_filter", "topic", "held"),
    [
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/b", "a/b", True),
        ("a/b/c", "a/b", False),
        ("a/b", "a/c", False),
        ("#", "a", True),
    ],
)
def test_filters(topic_filter: str, topic: str, held: bool) -> None:
    assert matches(topic_filter, topic) is held
