"""The bridge against a broker that the test plays: what is acknowledged when, and what happens when things end."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.batch import Codec, Door
from schemas.mqtt.packets import encode_disconnect, packet, parse_disconnect
from schemas.mqtt.topics import TELEMETRY, json_uplink, uplink
from schemas.mqtt.wire import V5, V311, Code, PacketType
from services import metrics
from services.errors import SettingsError
from services.gateway.bridge import BridgeDoor
from services.store.directory import MemoryDirectory
from tests.gateway.broker import Broker, Peer
from tests.gateway.certs import make
from tests.gateway.playing import OTHER, VIN, Running, Start, broken, report
from tests.gateway.storing import dated, ledger, stored

PUBACK = int(PacketType.PUBACK) << 4
PUBREC = int(PacketType.PUBREC) << 4
PUBREL = int(PacketType.PUBREL) << 4 | 2
PUBCOMP = int(PacketType.PUBCOMP) << 4
DISCONNECT = int(PacketType.DISCONNECT) << 4


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    made = Broker()
    await made.listen()
    yield made
    await made.close()


def bridge(broker: Broker, **more: Any) -> dict[str, Any]:
    return {"url": f"mqtt://127.0.0.1:{broker.port}", "retry_first_s": 0.01, "retry_max_s": 0.05} | more


def door(run: Running) -> BridgeDoor:
    assert run.gateway.bridge is not None
    return run.gateway.bridge


async def bridged(start: Start, broker: Broker, **more: Any) -> tuple[Running, Peer]:
    """A gateway whose bridge is connected and subscribed."""
    section = more.pop("section", {})
    version = more.get("version", "auto")
    run = await start(bridge=bridge(broker, **more), **section)
    peer = await (await broker.peer()).ready()
    assert peer.connect.version == (V311 if version == "3.1.1" else V5)
    return run, peer


# -- the conversation ------------------------------------------------------------------------------
async def test_what_is_asked_for(start: Start, broker: Broker) -> None:
    _, peer = await bridged(start, broker, username="ops", password="s3cret", share="team", session_expiry_s=77)
    connect = peer.connect
    assert (connect.client_id, connect.clean_start, connect.keep_alive_s) == ("nevstream-0-0", False, 60)
    assert (connect.username, connect.password) == ("ops", b"s3cret")
    assert connect.properties == {"session_expiry_interval": 77, "receive_maximum": 2000}
    assert peer.filters == (
        ("$share/team/nev/v1/+/gbt32960", 0x11),
        ("$share/team/nev/v1/+/telemetry", 0x11),
        ("$share/team/nev/v1/+/bms", 0x11),
    )


async def test_what_is_asked_for_in_3_1_1(start: Start, broker: Broker) -> None:
    _, peer = await bridged(start, broker, version="3.1.1", qos=2, topics={"a/{vin}/b/#": "bms"})
    assert (peer.connect.clean_start, peer.connect.username, peer.connect.password) == (False, None, None)
    assert peer.filters == (("a/+/b/#", 2),)


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_puback_only_once_durable(start: Start, broker: Broker, version: str) -> None:
    run, peer = await bridged(start, broker, version=version)
    run.journal.gate.clear()
    peer.publish(report(), 7)
    peer.publish(report(OTHER), 8, uplink(OTHER))
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not peer.reader._buffer  # type: ignore[attr-defined]
    assert await run.kept() == []
    run.journal.gate.set()
    assert await peer.hear(PUBACK) == b"\0\7"
    assert await peer.hear(PUBACK) == b"\0\10"
    frames = await run.frames()
    assert sorted(await run.kept()) == sorted([("", report()), ("", report(OTHER))])
    assert set(frames.door.tolist()) == {Door.MQTT_BRIDGE}


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_qos_2_pubrec_once_durable_then_pubcomp(start: Start, broker: Broker, version: str) -> None:
    run, peer = await bridged(start, broker, version=version, qos=2)
    run.journal.gate.clear()
    peer.publish(report(), 9, qos=2)
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    run.journal.gate.set()
    assert await peer.hear(PUBREC) == b"\0\11"
    peer.send(packet(PacketType.PUBREL, b"\0\11"))
    assert await peer.hear(PUBCOMP) == b"\0\11"
    assert await run.kept() == [("", report())]


async def test_qos_0_is_taken_and_not_answered(start: Start, broker: Broker) -> None:
    run, peer = await bridged(start, broker)
    peer.publish(report(), qos=0)
    peer.publish(report(second=8), 1)
    assert await peer.hear(PUBACK) == b"\0\1"
    assert [frame for _, frame in await run.kept()] == [report(), report(second=8)]


async def test_json_is_kept_behind_the_vin_of_its_topic(start: Start, broker: Broker) -> None:
    run, peer = await bridged(start, broker)
    for number, vin in enumerate((VIN, OTHER), 1):
        peer.publish(b'{"time": 1}', number, json_uplink(vin, TELEMETRY))
    peer.publish(report(), 3)
    for number in (1, 2, 3):
        assert await peer.hear(PUBACK) == bytes((0, number))
    frames = await run.frames()
    found = {(int(frames.codec[i]), frames.frame(i)) for i in range(frames.n)}
    assert found == {
        (Codec.JSON_TELEMETRY, VIN.encode() + b'{"time": 1}'),
        (Codec.JSON_TELEMETRY, OTHER.encode() + b'{"time": 1}'),
        (Codec.GBT32960, report()),
    }


async def test_topics_of_ones_own(start: Start, broker: Broker) -> None:
    topics = {"fleet/{vin}/up": "gbt32960", "+/cars/{vin}/#": "telemetry"}
    run, peer = await bridged(start, broker, topics=topics)
    assert [one for one, _ in peer.filters] == ["$share/nevstream/fleet/+/up", "$share/nevstream/+/cars/+/#"]
    peer.publish(report(), 1, f"fleet/{VIN}/up")
    peer.publish(b"{}", 2, f"x/cars/{OTHER}/any/thing")
    peer.publish(b"{}", 3, f"x/cars/{OTHER}")
    for number in (1, 2, 3):
        assert await peer.hear(PUBACK) == bytes((0, number))
    assert sorted(await run.kept()) == sorted([("", report()), *[("", OTHER.encode() + b"{}")] * 2])


# -- refused, and acknowledged ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("topic", "payload", "reason", "vin"),
    [
        (uplink(VIN), report(OTHER), "foreign_vin", VIN),
        (uplink(VIN), broken(report()), "bad_bcc", VIN),
        (uplink(VIN), b"noise", "garbage", VIN),
        (uplink("short"), report(), "bad_vin", ""),
        (f"nev/v1/{VIN[:-1]}\x7f/bms", b"{}", "bad_vin", ""),
        (f"nev/v1/{VIN}/else", report(), "unknown_topic", ""),
        ("elsewhere", b"", "unknown_topic", ""),
    ],
)
async def test_refused_is_a_dead_letter_and_acknowledged(
    start: Start, broker: Broker, topic: str, payload: bytes, reason: str, vin: str
) -> None:
    run, peer = await bridged(start, broker)
    peer.publish(payload, 5, topic)
    assert await peer.hear(PUBACK) == b"\0\5"
    assert await run.kept() == [(reason, payload)]
    frames = await run.frames()
    source = frames.sources[int(frames.source[0]) - 1]
    assert source["vin"] == vin
    assert source["peer"] == f"127.0.0.1:{broker.port}"
    assert source["client"] == ("nevstream-0-0" if vin else f"nevstream-0-0 {topic}")


async def test_the_allowlist_holds(start: Start, broker: Broker) -> None:
    run = await start(MemoryDirectory(vins=[VIN]), bridge=bridge(broker), registry="allowlist")
    peer = await (await broker.peer()).ready()
    peer.publish(report(), 1)
    peer.publish(report(OTHER), 2, uplink(OTHER))
    peer.publish(b"{}", 3, json_uplink(OTHER, TELEMETRY))
    for number in (1, 2, 3):
        assert await peer.hear(PUBACK) == bytes((0, number))
    assert sorted(await run.kept()) == sorted(
        [("", report()), ("unknown_vin", report(OTHER)), ("unknown_vin", OTHER.encode() + b"{}")]
    )


async def test_nothing_is_taken_before_the_allowlist_is_read(start: Start, broker: Broker) -> None:
    directory = MemoryDirectory(vins=[VIN])
    directory.away = True
    run = await start(directory, bridge=bridge(broker), registry="allowlist", registry_refresh_s=0.01)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert broker.peers.empty()
    directory.away = False
    peer = await (await broker.peer()).ready()
    peer.publish(report(), 1)
    await peer.hear(PUBACK)
    assert await run.kept() == [("", report())]


async def test_a_publish_too_large_is_passed_over_and_acknowledged(start: Start, broker: Broker) -> None:
    run, peer = await bridged(start, broker, section={"limits": {"packet_bytes_max": 4096, "frame_bytes_max": 4096}})
    huge = bytes(300_000)
    peer.publish(report(), 1)
    peer.publish(huge, 2)
    peer.publish(huge, 3, qos=2)
    peer.publish(huge, qos=0)
    peer.publish(report(second=8), 4)
    assert await peer.hear(PUBACK) == b"\0\1"
    assert await peer.hear(PUBACK) == b"\0\2"
    assert await peer.hear(PUBREC) == b"\0\3"
    assert await peer.hear(PUBACK) == b"\0\4"
    kept = await run.kept()
    assert [reason for reason, _ in kept] == ["", "oversize", "oversize", "oversize", ""]
    assert all(3900 < len(frame) < 4096 for reason, frame in kept if reason)


# -- endings ---------------------------------------------------------------------------------------
async def test_lost_and_connected_again_is_stored_once(start: Start, broker: Broker) -> None:
    run, peer = await bridged(start, broker)
    frame = dated(1)
    run.journal.gate.clear()
    peer.publish(frame, 1)
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    peer.close()  # before its acknowledgement
    again = await (await broker.peer()).ready(present=True)
    run.journal.gate.set()
    again.publish(frame, 1, dup=True)
    assert await again.hear(PUBACK) == b"\0\1"
    assert not again.reader._buffer  # type: ignore[attr-defined]  # none for the connection that is gone
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "duplicates")) == (1, 1)
    told = [(one.event, one.cause) for one in await run.events()]
    assert told == [("connected", ""), ("closed", "broker_closed"), ("connected", "")]


async def test_the_broker_away_at_first(start: Start) -> None:
    broker = Broker()
    await broker.listen()
    await broker.close()  # its port is known, and nobody listens
    before = _count("broker_unreachable")
    run = await start(bridge=bridge(broker))
    await run.until(lambda: _count("broker_unreachable") > before + 1)
    await broker.listen()
    try:
        await (await broker.peer()).ready()
        await run.until(lambda: door(run).lines[0].established)
        told = [(one.event, one.cause) for one in await run.events()]
        assert told == [("refused", "broker_unreachable"), ("connected", "")]  # once, however often it was tried
    finally:
        await broker.close()


def _count(cause: str) -> float:
    return metrics.BRIDGE_RECONNECTS.labels(cause)._value.get()


async def test_reasons_of_the_broker_are_logged(start: Start, broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nevstream.bridge")
    run, peer = await bridged(start, broker, username="u", password="do-not-tell")
    values = {"reason_string": "moved house", "server_reference": "other:1883"}
    peer.send(encode_disconnect(V5, Code.SESSION_TAKEN_OVER, values))
    refused = await broker.peer()
    await refused.greet(Code.NOT_AUTHORIZED, reason_string="not you")
    unsubscribed = await broker.peer()
    await unsubscribed.greet()
    await unsubscribed.subscribed(1, Code.NOT_AUTHORIZED, 1)
    assert await unsubscribed.hear(DISCONNECT) == b""
    await (await broker.peer()).ready()
    await run.until(lambda: door(run).rows.count == 1)
    for text in ("0x8E session taken over", "moved house", "other:1883", "gateway.bridge.client_id", "not you",
                 "0x87 not authorized", "SUBACK"):  # fmt: skip
        assert text in caplog.text
    assert "do-not-tell" not in caplog.text
    causes = [one.cause for one in await run.events() if one.cause]
    assert causes == ["broker_closed", "broker_refused"]


async def test_a_session_forgotten_by_the_broker_is_said(
    start: Start, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    run, peer = await bridged(start, broker)
    await run.until(lambda: door(run).lines[0].established)
    assert "forgotten" not in caplog.text
    peer.close()
    await (await broker.peer()).ready(present=False)
    await run.until(lambda: "forgotten" in caplog.text)
    await run.until(lambda: _told_forgotten(run))


async def _told_forgotten(run: Running) -> bool:
    return any("forgotten" in one.detail for one in await run.events())


@pytest.mark.parametrize(
    "raw",
    [
        b"\x32\x03\0\x05x",  # a topic beyond the packet
        b"\x36\x04\0\1x\0",  # QoS 3
        b"\x32\x09\0\1x\0\1\3\x23\0\1",  # a topic alias that we did not allow
        b"\x40\x02\0\1",  # PUBACK of what we never published
        b"\xf0\x00",  # AUTH
        b"\x10\x00",  # CONNECT
        b"\xff\xff\xff\xff\xff",
    ],
)
async def test_a_broken_packet_ends_the_connection_with_a_reason(start: Start, broker: Broker, raw: bytes) -> None:
    run, peer = await bridged(start, broker)
    peer.publish(report(), 1)
    peer.send(raw)
    first, body = await peer.packet()
    if first == PUBACK:  # what came before it is taken, and acknowledged when there was time; else it comes again
        first, body = await peer.packet()
    assert first == DISCONNECT
    assert parse_disconnect(body, V5).code >= 0x80
    await (await broker.peer()).ready(present=True)
    assert await run.kept() == [("", report())]


async def test_noise_of_a_broker_ends_its_connection_alone(start: Start, broker: Broker) -> None:
    run = await start(bridge=bridge(broker, retry_first_s=0.001, retry_max_s=0.002))
    seeded = random.Random(32960)
    kinds = [0x20, 0x20, 0x90, 0xE0, 0x32, 0x34, 0x62, 0xD0, 0x40, 0xF0, 0x00]
    for number in range(40):
        peer = await broker.peer()
        if number % 3:
            await peer.greet()
        if number % 3 == 2:
            await peer.subscribed()
            peer.publish(report(second=number), 1)
        for _ in range(3):
            body = seeded.randbytes(seeded.randrange(9))
            peer.send(bytes((seeded.choice(kinds), len(body))) + body)
        peer.close()
    peer = await broker.peer()
    while (await peer.greet()).version != V5:  # noise may look like a broker of 3.1.1
        assert await peer.hear(DISCONNECT) == b""
        peer = await broker.peer()
    await peer.subscribed()
    peer.publish(report(second=59), 1)
    assert await peer.hear(PUBACK) == b"\0\1"
    good = {frame for reason, frame in await run.kept() if not reason}
    # a broker that resets its connection may take with it what we had not read
    assert report(second=59) in good <= {report(second=number) for number in (*range(2, 40, 3), 59)}


async def test_drain_acknowledges_what_came_and_says_goodbye(start: Start, broker: Broker) -> None:
    run, peer = await bridged(start, broker)
    peer.publish(report(), 3)
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0 or bool(run.journal._next))
    await run.gateway.drain(5.0)
    assert await peer.hear(PUBACK) == b"\0\3"
    assert await peer.hear(DISCONNECT) == b""  # a plain one: the session stays for as long as it was asked for
    assert await peer.reader.read() == b""
    assert [(one.event, one.cause) for one in await run.events()] == [("connected", ""), ("closed", "shutdown")]


async def test_a_silent_broker_is_given_up(start: Start, broker: Broker) -> None:
    run, peer = await bridged(start, broker)
    await run.until(lambda: door(run).lines[0].established)
    door(run).alive(run.gateway._connections.all()[0], 0.0)
    body = await peer.hear(DISCONNECT)
    assert parse_disconnect(body, V5).code == Code.KEEP_ALIVE_TIMEOUT
    await (await broker.peer()).ready()


async def test_pings_are_sent(start: Start, broker: Broker) -> None:
    _, peer = await bridged(start, broker, keep_alive_s=2)
    assert await peer.packet() == (PacketType.PINGREQ << 4, b"")


# -- versions and sharing --------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["5", "3.1.1", "hangs up"])
async def test_a_broker_without_5_is_met_with_3_1_1(start: Start, broker: Broker, how: str) -> None:
    run = await start(bridge=bridge(broker))
    first = await broker.peer()
    if how == "5":
        await first.greet(Code.UNSUPPORTED_PROTOCOL_VERSION)
    else:
        await first.hear(PacketType.CONNECT << 4)
        if how == "3.1.1":
            first.send(b"\x20\x02\0\1")
        first.close()
    if how == "hangs up":  # so would a load balancer with nobody behind it: 5 is asked for twice
        doubted = await broker.peer()
        assert (await doubted.greet()).version == V311
        assert await doubted.hear(DISCONNECT) == b""
        asked_again = await broker.peer()
        await asked_again.hear(PacketType.CONNECT << 4)
        asked_again.close()
    second = await (await broker.peer()).ready()
    assert second.connect.version == V311
    assert [one for one, _ in second.filters] == ["nev/v1/+/gbt32960", "nev/v1/+/telemetry", "nev/v1/+/bms"]
    second.publish(report(), 1)
    assert await second.hear(PUBACK) == b"\0\1"
    assert await run.kept() == [("", report())]


async def test_a_broker_that_was_not_there_is_not_taken_for_an_old_one(start: Start, broker: Broker) -> None:
    run = await start(bridge=bridge(broker))
    for _ in range(3):
        (await broker.peer()).close()  # a load balancer: 5, 3.1.1 and 5 are not answered
    doubted = await broker.peer()
    assert (await doubted.greet()).version == V311
    assert await doubted.hear(DISCONNECT) == b""
    peer = await (await broker.peer()).ready()
    assert peer.connect.version == V5
    await run.until(lambda: door(run).lines[0].established)


async def test_two_connections_each_with_a_session_of_its_own(start: Start, broker: Broker) -> None:
    run = await start(bridge=bridge(broker, connections=2))
    peers = [await (await broker.peer()).ready() for _ in range(2)]
    assert {peer.connect.client_id for peer in peers} == {"nevstream-0-0", "nevstream-0-1"}
    for number, peer in enumerate(peers):
        peer.publish(report(second=number), 1)
    for peer in peers:
        assert await peer.hear(PUBACK) == b"\0\1"
    assert len(await run.kept()) == 2


@pytest.mark.parametrize("more", [{"share": ""}, {"version": "3.1.1"}])
async def test_without_sharing_one_connection_subscribes(start: Start, broker: Broker, more: dict[str, str]) -> None:
    run = await start(bridge=bridge(broker, connections=2, **more))
    peer = await (await broker.peer()).ready()
    assert peer.connect.client_id == "nevstream-0-0"
    assert not any(one.startswith("$share") for one, _ in peer.filters)
    await run.until(lambda: door(run).lines[0].established)
    assert broker.peers.empty()


async def test_a_broker_that_says_it_cannot_share(start: Start, broker: Broker) -> None:
    run = await start(bridge=bridge(broker, connections=2))
    seen: set[str] = set()
    while len(seen) < 2:
        peer = await broker.peer()
        await peer.greet(shared_subscription_available=0)
        seen.add(peer.connect.client_id)
        if peer.connect.client_id == "nevstream-0-0":
            assert not any(one.startswith("$share") for one, _ in await peer.subscribed())
        else:
            assert await peer.hear(DISCONNECT) == b""
    await run.until(lambda: door(run).lines[0].established)


# -- back-pressure ---------------------------------------------------------------------------------
async def test_the_journal_away_stops_the_reading(start: Start, broker: Broker) -> None:
    run, peer = await bridged(start, broker, section={"limits": {"in_flight_bytes_max": 1 << 20}})
    run.journal.away = True
    frame = report(body=bytes(1000))
    count = 8000  # eight times what may be in flight
    for number in range(count):
        peer.publish(frame, number % 65_535 + 1)
    await run.until(lambda: run.gateway._intake.held)
    intake = run.gateway._intake
    for _ in range(200):
        await asyncio.sleep(0)
    read = run.gateway._committer.in_flight_bytes
    for _ in range(200):
        await asyncio.sleep(0)
    assert run.gateway._committer.in_flight_bytes == read < 3 << 20
    assert intake.held
    assert not peer.reader._buffer  # type: ignore[attr-defined]  # nothing was acknowledged
    run.journal.away = False
    for number in range(count):
        assert await peer.hear(PUBACK) == (number % 65_535 + 1).to_bytes(2, "big")
    assert len(await run.kept()) == count


# -- TLS -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make(tmp_path_factory.mktemp("bridge-certs"))


def server_context(made: dict[str, Any], client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made["cert_file"], made["key_file"])
    if client:
        context.load_verify_locations(made["client_ca_file"])
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_tls_with_a_client_certificate(start: Start, made: dict[str, Any], tmp_path: Path) -> None:
    broker = Broker()
    await broker.listen(server_context(made, client=True))
    word = tmp_path / "password"
    word.write_bytes(b"pa55\n")
    files = {"ca_file": made["client_ca_file"], "cert_file": made["vehicles"][VIN]["cert"],
             "key_file": made["vehicles"][VIN]["key"]}  # fmt: skip
    try:
        run = await start(
            bridge=bridge(
                broker, url=f"mqtts://localhost:{broker.port}", username="u", password_file=str(word), **files
            )
        )
        peer = await (await broker.peer()).ready()
        assert peer.connect.password == b"pa55"
        for number in range(1, 101):  # more than one TLS record
            peer.publish(report(body=bytes(400), second=number % 60), number)
        for number in range(1, 101):
            assert await peer.hear(PUBACK) == bytes((0, number))
        assert len(await run.kept()) == 100
        await run.gateway.drain(5.0)
    finally:
        await broker.close()


async def test_a_broker_of_another_authority_is_not_believed(
    start: Start, made: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = make(tmp_path)
    broker = Broker()
    await broker.listen(server_context(stranger))
    try:
        run = await start(bridge=bridge(broker, url=f"mqtts://localhost:{broker.port}", ca_file=made["client_ca_file"]))
        await run.until(lambda: "certificate verify failed" in caplog.text)
        assert broker.peers.empty()
        await run.gateway.drain(5.0)
    finally:
        await broker.close()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"ca_file": "/nonexistent"}, "gateway.bridge.ca_file"),
        ({"cert_file": "/nonexistent"}, "gateway.bridge.cert_file"),
        ({"username": "u", "password_file": "/nonexistent"}, "gateway.bridge.password_file"),
        ({"password": "p"}, "a password without username"),
        ({"url": "http://x"}, "give mqtt://"),
        ({"url": "mqtt://me:secret@x"}, "settings of their own"),
        ({"url": "mqtt://x", "ca_file": "y"}, "certificates are for mqtts://"),
        ({"topics": {"a/b": "bms"}}, "one level must be"),
        ({"topics": {"a/{vin}/#/b": "bms"}}, "whole levels"),
        ({"topics": {"$share/g/{vin}": "bms"}}, r"without \$share"),
    ],
)
async def test_what_is_wrong_with_the_settings_is_said(start: Start, more: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as found:
        await start(bridge={"url": "mqtts://localhost:1"} | more)
    assert "secret" not in str(found.value)
