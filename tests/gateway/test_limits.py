"""Limits at the doors: each acts, is told to the peer in its protocol's words, counted, and kept as an event.

No test waits for a clock where a deadline can be set back instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from prometheus_client import REGISTRY

from schemas.mqtt.packets import parse_connack, parse_disconnect
from schemas.mqtt.wire import V5, Code
from services.gateway import server
from services.gateway.accepting import Acceptor, Bucket, Crowd
from services.gateway.link import BLOCKED, RATED
from services.gateway.metering import Meters
from services.settings import Limits, Settings
from tests.gateway.certs import make
from tests.gateway.playing import OTHER, VIN, Client, Running, Start, broken, connect, login, publish, report
from tests.gateway.test_gbt import USERS, platform_login, spec_reply

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SWEEP_S", 0.005)
    monkeypatch.setattr(server, "_REFILL_S", 0.01)


def reached(limit: str, door: str = "mqtt") -> float:
    return REGISTRY.get_sample_value("nevstream_gateway_limits_reached_total", {"door": door, "limit": limit}) or 0.0


async def connack(client: Client) -> Any:
    head = await client.read(2)
    return parse_connack(await client.read(head[1]), V5)


async def disconnected(client: Client) -> tuple[int, str]:
    """(code, reason) of the DISCONNECT that ends the connection."""
    rest = await client.rest()
    at = rest.index(b"\xe0")
    found = parse_disconnect(rest[at + 2 :], V5)
    return found.code, found.properties["reason_string"]


# -- connections -------------------------------------------------------------------------------------
async def test_connections_of_one_address(start: Start) -> None:
    run = await start(limits={"connections_per_address_max": 2})
    before = reached("connections_per_address_max"), reached("connections_per_address_max", "gbt32960")
    first = await run.mqtt()
    await run.vehicle(OTHER)
    five, gbt = await run.client("mqtt"), await run.client("gbt32960")
    five.send(connect("LNBSCB3F4JW000003", 5))
    answer = await connack(five)
    assert answer.code == Code.QUOTA_EXCEEDED
    assert "too many connections from your address" in answer.properties["reason_string"]
    gbt.send(login("LNBSCB3F4JW000004"))
    assert (await gbt.rest())[3] == 2
    older = await run.client("mqtt")
    older.send(connect("LNBSCB3F4JW000005"))
    assert (await older.rest())[3] == 3  # 3.1.1: server unavailable
    assert reached("connections_per_address_max") - before[0] == 2
    assert reached("connections_per_address_max", "gbt32960") - before[1] == 1
    first.close()
    await run.until(lambda: run.gateway._crowd.total == 1)
    await run.mqtt("LNBSCB3F4JW000003")
    assert [(e, c) for e, c, _ in await run.told()].count(("refused", "address_limit")) == 3


async def test_a_load_balancers_address_is_not_counted(start: Start) -> None:
    run = await start(
        limits={
            "connections_per_address_max": 1,
            "connects_per_address_per_s_max": 1,
            "unlimited_addresses": ["127.0.0.0/8"],
        }
    )
    for k in range(30):
        await run.mqtt(f"LNBSCB3F4JW{k:06d}")


async def test_reconnecting_too_often(start: Start) -> None:
    """Some of what is too much is told, and the rest is closed."""
    run = await start(limits={"connects_per_address_per_s_max": 1})
    before = reached("connects_per_address_per_s_max")
    await run.mqtt(OTHER)
    run.gateway._crowd._buckets["127.0.0.1"].tokens = -1000.0
    told = await run.client("mqtt")
    told.send(connect(VIN, 5))
    answer = await connack(told)
    assert answer.code == Code.CONNECTION_RATE_EXCEEDED
    run.gateway._pace.told.tokens = -1000.0
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await (await run.client("mqtt")).read(1)
    assert reached("connects_per_address_per_s_max") - before == 2


async def test_a_silent_one_that_is_refused_is_closed(start: Start) -> None:
    run = await start(limits={"connections_max": 1, "first_packet_timeout_s": 0.05})
    await run.mqtt()
    assert await (await run.client("gbt32960")).rest() == b""
    assert ("refused", "limit", "") in await run.told()


async def test_what_is_too_fast_for_the_process_waits(start: Start) -> None:
    """Nobody is refused: 60 connections at 100 per second, of which 16 at once."""
    run = await start(limits={"connects_per_s_max": 100})
    before = reached("connects_per_s_max")
    await asyncio.gather(*(run.mqtt(f"LNBSCB3F4JW{k:06d}") for k in range(60)))
    assert run.gateway._connections.count == 60
    assert reached("connects_per_s_max") > before


def test_what_counts_as_one_address() -> None:
    crowd = Crowd(Limits(unlimited_addresses=("10.0.0.0/8", "2001:db8::/32")))
    assert crowd.address("192.0.2.7") == "192.0.2.7" == crowd.address("::ffff:192.0.2.7")
    assert crowd.address("2a00:1:2:3::1") == crowd.address("2a00:1:2:3:ffff::9%eth0") != crowd.address("2a00:1:2:4::1")
    assert crowd.address("10.200.0.1") == "" == crowd.address("2001:db8:1::1")


def test_a_crowd_is_forgotten() -> None:
    crowd = Crowd(Limits(connections_per_address_max=2, connects_per_address_per_s_max=0))
    for _ in range(2):
        assert crowd.refuses("a", 0.0) == ""
        crowd.came("a")
    assert crowd.refuses("a", 0.0) == "address_limit"
    assert crowd.refuses("b", 0.0) == ""
    crowd.went("a")
    assert crowd.refuses("a", 0.0) == ""
    crowd.went("a")
    assert (crowd.total, crowd._open) == (0, {})


def test_a_bucket() -> None:
    bucket = Bucket(2.0, 3.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait_s() == 0.5
    assert (bucket.take(0.5), bucket.take(0.5)) == (True, False)
    assert all(Bucket(0.0, 0.0, 0.0).take(0.0) for _ in range(5))


async def test_no_file_descriptors_left(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await start()
    (acceptor,) = [one for one in run.gateway._acceptors if one.name == "mqtt"]

    class Full:
        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    listener = acceptor._listener
    acceptor._rest()
    monkeypatch.setattr(acceptor, "_listener", Full())
    monkeypatch.setattr("services.gateway.accepting._NO_ROOM_PAUSE_S", 1000.0)
    assert Acceptor._take(acceptor) is None
    gauge = {"listener": "mqtt"}
    assert REGISTRY.get_sample_value("nevstream_gateway_accepting", gauge) == 0
    monkeypatch.setattr(acceptor, "_listener", listener)
    acceptor._read()
    await run.mqtt()
    assert REGISTRY.get_sample_value("nevstream_gateway_accepting", gauge) == 1


# -- TLS handshakes ----------------------------------------------------------------------------------
async def test_a_handshake_that_dribbles_is_ended(start: Start, tmp_path: Any) -> None:
    made = make(tmp_path)
    secured = {"port": 0, "cert_file": made["cert_file"], "key_file": made["key_file"]}
    run = await start(mqtt={"tls": secured}, limits={"handshake_timeout_s": 0.2})
    before = reached("handshake_timeout_s", "mqtt_tls")
    reader, writer = await asyncio.open_connection(*run.gateway.addresses["mqtt_tls"])
    writer.write(b"\x16\x03\x01")
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(-1), 60) == b""
    writer.close()
    await run.until(lambda: reached("handshake_timeout_s", "mqtt_tls") == before + 1)
    await run.until(lambda: run.gateway._crowd.total == 0)
    assert ("refused", "handshake", "") in await run.told()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_old_handshakes_give_way(start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path)
    monkeypatch.setattr("services.gateway.accepting._HANDSHAKE_OLD_S", 0.0)
    secured = {"port": 0, "cert_file": made["cert_file"], "key_file": made["key_file"]}
    run = await start(mqtt={"tls": secured}, limits={"handshakes_max": 2})
    held = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, run.gateway.addresses["mqtt_tls"])
        held.append(sock)
    (tls,) = [one for one in run.gateway._acceptors if one.name == "mqtt_tls"]
    await run.until(lambda: reached("handshakes_max", "mqtt_tls") >= 2)
    assert len(tls._tasks) <= 2
    for sock in held:
        sock.close()


# -- rates -------------------------------------------------------------------------------------------
async def test_too_many_frames_are_held_back_and_none_is_lost(start: Start) -> None:
    run = await start(limits={"frames_per_s_max": 100})  # 500 at once
    before = reached("frames_per_s_max")
    fast, slow = await run.mqtt(), await run.mqtt(OTHER)
    for first in range(1, 801, 100):
        fast.send(b"".join(publish(report(), k) for k in range(first, first + 100)))
        slow.send(publish(report(OTHER), first, OTHER))
        await slow.expect(b"\x40\x02" + first.to_bytes(2, "big"))
    for k in range(1, 801):
        await fast.expect(b"\x40\x02" + k.to_bytes(2, "big"))
    assert reached("frames_per_s_max") > before
    told = await run.told()
    assert told.count(("limited", "frames_per_s", VIN)) == 1
    assert ("limited", "frames_per_s", OTHER) not in told


async def test_too_many_bytes_are_held_back(start: Start) -> None:
    run = await start(limits={"bytes_per_s_max": 100_000})  # half a megabyte at once
    client = await run.vehicle()
    link = run.gateway.gbt32960.by_vin[VIN]
    frames = [report(second=k % 60, body=bytes(20_000)) for k in range(40)]
    client.send(*frames)
    await run.until(lambda: bool(link._pauses & RATED))
    for frame in frames:
        await client.expect(spec_reply(frame, 1))
    assert [reason for reason, _ in await run.kept()] == [""] * 41


async def test_packets_that_are_no_frames_count_too(start: Start) -> None:
    run = await start(limits={"frames_per_s_max": 10})
    client = await run.mqtt()
    client.send(*(publish(b"", k, topic=f"nev/v1/{VIN}/x") for k in range(1, 60)))
    await run.until(lambda: bool(run.gateway.mqtt.by_vin[VIN]._pauses & RATED))


async def test_a_platform_has_no_rate_of_one_vehicle(start: Start) -> None:
    run = await start(**USERS, limits={"frames_per_s_max": 1, "bytes_per_s_max": 1000})
    client = await run.client("gbt32960")
    client.send(platform_login())
    await client.read(31)
    frames = [report(f"LNBSCB3F4JW{k:06d}") for k in range(300)]
    client.send(*frames)
    for frame in frames:
        await client.expect(spec_reply(frame, 1))
    assert not run.gateway._intake._rated


async def test_held_back_is_not_silent(start: Start) -> None:
    """Who may not send for longer than the idle timeout is not ended for its silence."""
    run = await start(limits={"frames_per_s_max": 40, "idle_timeout_s": 0.5})
    client = await run.vehicle()
    frames = [report(second=k % 60) for k in range(270)]  # some 1.7 s beyond the 200 at once
    client.send(*frames)
    for frame in frames:
        await client.expect(spec_reply(frame, 1))


async def test_nothing_but_garbage_is_ended_after_it_is_kept(start: Start) -> None:
    run = await start(limits={"refused_bytes_max": 1_048_576})
    client = await run.client("gbt32960")
    before = reached("refused_bytes_max", "gbt32960")
    client.send(bytes(40_000))
    assert await client.rest() == b""
    assert reached("refused_bytes_max", "gbt32960") == before + 1
    assert ("refused", "refused_in_a_row", "") in await run.told()
    await run.gateway._committer.flushed()
    assert {reason for reason, _ in await run.kept()} == {"garbage"}


async def test_a_good_frame_begins_the_count_anew(start: Start) -> None:
    run = await start(limits={"refused_bytes_max": 65_556, "bytes_per_s_max": 0})
    client = await run.mqtt(VIN, 5)
    bad = broken(report(body=bytes(20_000)))
    for k in range(1, 9):
        client.send(publish(bad, 2 * k, version=5) + publish(report(), 2 * k + 1, version=5))
        await client.read(8)
    client.send(*(publish(bad, 100 + k, version=5) for k in range(4)))
    code, text = await disconnected(client)
    assert code == Code.QUOTA_EXCEEDED
    assert "gateway.limits.refused_bytes_max" in text


# -- slow peers --------------------------------------------------------------------------------------
def set_back(run: Running, name: str, vin: str, seconds: float) -> None:
    link = run.gateway.mqtt.by_vin.get(vin) or run.gateway.gbt32960.by_vin[vin]
    getattr(run.gateway._intake.meters, name)[link.slot] -= seconds


async def test_a_packet_that_never_becomes_whole(start: Start) -> None:
    run = await start()
    client = await run.mqtt(VIN, 5)
    packet = publish(report(), 1, version=5)
    client.send(packet[:20])
    slot = run.gateway.mqtt.by_vin[VIN].slot
    meters = run.gateway._intake.meters
    await run.until(lambda: bool(meters.partial_since_s[slot] < float("inf")))
    since = meters.partial_since_s[slot]
    for k in range(20, 40):  # trickling does not put it off
        client.send(packet[k : k + 1])
        await asyncio.sleep(0)
    await run.until(lambda: len(run.gateway.mqtt.by_vin[VIN].carry) == 40)
    assert meters.partial_since_s[slot] == since
    set_back(run, "partial_since_s", VIN, 61.0)
    code, text = await disconnected(client)
    assert code == Code.IMPLEMENTATION_SPECIFIC
    assert "packet_timeout_s" in text
    assert ("closed", "slow_sender", VIN) in await run.told()


async def test_a_packet_that_becomes_whole_in_time_leaves_no_deadline(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    packet = publish(report(), 1)
    client.send(packet[:20])
    slot = run.gateway.mqtt.by_vin[VIN].slot
    meters = run.gateway._intake.meters
    await run.until(lambda: bool(meters.partial_since_s[slot] < float("inf")))
    first = meters.partial_since_s[slot]
    client.send(packet[20:] + packet[:30])  # the next one begins
    await client.expect(b"\x40\x02\x00\x01")
    await run.until(lambda: bool(first < meters.partial_since_s[slot] < float("inf")))
    client.send(packet[30:])
    await client.expect(b"\x40\x02\x00\x01")
    assert meters.partial_since_s[slot] == float("inf")


async def test_a_frame_that_never_becomes_whole_is_kept_as_far_as_it_came(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(report()[:40])
    slot = run.gateway.gbt32960.by_vin[VIN].slot
    await run.until(lambda: bool(run.gateway._intake.meters.partial_since_s[slot] < float("inf")))
    set_back(run, "partial_since_s", VIN, 61.0)
    await client.rest()
    await run.until(lambda: run.gateway._connections.count == 0)
    await run.gateway._committer.flushed()
    assert ("bad_length", report()[:40]) in await run.kept()


async def test_a_peer_that_takes_no_answers_is_ended(start: Start) -> None:
    run = await start(limits={"frames_per_s_max": 0, "bytes_per_s_max": 0})
    client = await run.vehicle()
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    link = run.gateway.gbt32960.by_vin[VIN]
    frames = b"".join(report(second=k % 60, body=b"") for k in range(2000))

    async def send() -> None:  # until the sockets' buffers take no more answers
        while True:
            client.send(frames)
            await client.writer.drain()
            await asyncio.sleep(0)

    sending = asyncio.create_task(send())
    await run.until(lambda: bool(link._pauses & BLOCKED))
    sending.cancel()
    before = reached("answer_timeout_s", "gbt32960")
    set_back(run, "blocked_since_s", VIN, 121.0)
    await run.until(lambda: run.gateway._connections.count == 0)
    assert reached("answer_timeout_s", "gbt32960") == before + 1
    await run.gateway._committer.flushed()
    assert ("closed", "answers_unread", VIN) in await run.told()


# -- the arrays --------------------------------------------------------------------------------------
def test_meters_grow_and_forget() -> None:
    import numpy as np

    meters = Meters(Limits(bytes_per_s_max=10, frames_per_s_max=2, refused_bytes_max=65_556), 1)
    meters.open(0)
    assert meters.spend(np.array([0]), np.array([51])).tolist() == [0]
    assert meters.short_of(0) == "bytes_per_s_max"
    meters.fit(3)
    meters.open(2)
    meters.count(np.array([2] * 11))
    assert meters.spend(np.array([2]), np.array([0])).tolist() == [2]
    assert meters.short_of(2) == "frames_per_s_max"
    meters.fill(0.5)
    assert (meters.may_go_on(0), meters.may_go_on(2)) == (True, True)
    meters.fill(1000.0)
    assert (meters.bytes[0], meters.frames[2], meters.bytes[1]) == (50.0, 10.0, 0.0)


def test_every_limit_is_documented() -> None:
    text = Settings.model_fields["gateway"].annotation.model_fields["limits"].annotation.model_fields  # type: ignore[union-attr]
    assert all(field.description for field in text.values())
