"""An ack means durable: acks wait for the journal, survive its absence, and memory stays bounded meanwhile."""

from __future__ import annotations

import asyncio
import logging

import pytest
from prometheus_client import REGISTRY

from services.errors import PortInUse, SettingsError
from services.gateway.server import Gateway
from services.journal.memory import MemoryJournal
from services.settings import Settings
from services.store.directory import MemoryDirectory
from tests.gateway.playing import OTHER, PATIENCE_S, VIN, Start, broken, login, publish, report
from tests.gateway.test_gbt import spec_reply

pytestmark = pytest.mark.slow

ACK_1 = bytes.fromhex("40020001")


async def test_acks_are_withheld_while_the_journal_is_blocked(start: Start) -> None:
    run = await start()
    mqtt, gbt = await run.mqtt(), await run.vehicle()
    run.journal.gate.clear()
    mqtt.send(publish(report(), 1) + publish(broken(report()), 2) + b"\xc0\x00")
    gbt.send(report() + broken(report()))
    # the ping is answered, so what came before it has been scanned; nothing else may be on the wire
    await mqtt.expect(b"\xd0\x00")
    await run.until(lambda: gbt_scanned(run))
    mqtt.send(b"\xc0\x00")
    await mqtt.expect(b"\xd0\x00")
    assert await run.kept() == [("", login())]
    run.journal.gate.set()
    await mqtt.expect(ACK_1 + bytes.fromhex("40020002"))
    await gbt.expect(spec_reply(report(), 1) + spec_reply(broken(report()), 2))
    assert len(await run.kept()) == 5


def gbt_scanned(run) -> bool:
    return run.gateway._committer.in_flight_bytes >= 4 * len(report())


async def test_a_journal_that_fails_and_recovers_loses_nothing(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    run = await start()
    client = await run.mqtt()
    run.journal.away = True
    with caplog.at_level(logging.INFO, "nevstream.gateway"):
        for k in range(5):
            client.send(publish(report(second=k), 1 + k))
            client.send(b"\xc0\x00")
            await client.expect(b"\xd0\x00")
        await asyncio.sleep(0.2)  # several attempts fail meanwhile
        run.journal.away = False
        await client.expect(b"".join(bytes((0x40, 2, 0, 1 + k)) for k in range(5)))
    assert await run.kept() == [("", report(second=k)) for k in range(5)]
    episodes = [record.message for record in caplog.records if "the journal is" in record.message]
    assert len(episodes) == 2, episodes  # away once, back once, however many attempts
    assert "nothing was lost" in episodes[1]


async def test_sockets_are_not_read_while_too_much_waits(start: Start) -> None:
    limit = 1024 * 1024
    run = await start(limits={"in_flight_bytes_max": limit})
    clients = [await run.vehicle(f"LNBSCB3F4JW{i:06d}") for i in range(4)]
    run.journal.gate.clear()
    count = 1000
    sent = []
    for i, client in enumerate(clients):
        frames = [report(f"LNBSCB3F4JW{i:06d}", second=k % 60, body=bytes(2000)) for k in range(count)]
        sent.append(frames)
        client.send(b"".join(frames))  # 8 MB in all
    await run.until(lambda: run.gateway._intake.held)
    links = run.gateway._connections.all()
    await run.until(lambda: sum(bool(link._pauses) for link in links) >= 1)
    await asyncio.sleep(0.1)
    # one tick's arena more than the limit at most, and a last sip per connection
    assert run.gateway._committer.in_flight_bytes < limit + 5 * 1024 * 1024
    run.journal.gate.set()
    for client, frames in zip(clients, sent, strict=True):
        await client.expect(b"".join(spec_reply(one, 1) for one in frames))
    assert not run.gateway._intake.held
    assert (await run.frames()).n == 4 * count + 4


async def test_silence_of_our_own_making_ends_no_connection(start: Start) -> None:
    run = await start(limits={"in_flight_bytes_max": 1024 * 1024, "idle_timeout_s": 0.6})
    client = await run.vehicle()
    run.journal.gate.clear()
    frames = [report(second=k % 60, body=bytes(2000)) for k in range(1000)]
    client.send(b"".join(frames))
    await run.until(lambda: run.gateway._intake.held)
    await asyncio.sleep(1.3)
    run.journal.gate.set()
    await client.expect(b"".join(spec_reply(one, 1) for one in frames))


async def test_a_peer_that_takes_no_answers_is_not_read(start: Start) -> None:
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
    await run.until(lambda: bool(link._pauses))
    sending.cancel()
    client.reader._transport.resume_reading()  # type: ignore[attr-defined]
    while link._pauses:
        assert await asyncio.wait_for(client.reader.read(1 << 20), PATIENCE_S)


async def test_incomplete_packets_are_bounded(start: Start) -> None:
    run = await start(limits={"in_flight_bytes_max": 1024 * 1024})
    half = publish(bytes(200_000))[:180_000]
    clients = []
    for i in range(8):
        vin = f"LNBSCB3F4JW{i:06d}"
        clients.append(await run.mqtt(vin))
        clients[-1].send(half)
    await run.until(lambda: run.gateway._connections.count < 8)
    assert run.gateway._intake._carry_bytes <= 1024 * 1024


async def test_drain_answers_what_had_arrived(start: Start) -> None:
    run = await start()
    mqtt, five, gbt = await run.mqtt(), await run.mqtt(OTHER, 5), await run.vehicle()
    run.journal.gate.clear()
    mqtt.send(publish(report(), 1))
    gbt.send(report())
    await run.until(lambda: run.gateway._committer.in_flight_bytes >= 2 * len(report()))
    draining = asyncio.create_task(run.gateway.drain(10.0))
    await asyncio.sleep(0)
    run.journal.gate.set()
    await draining
    assert await mqtt.rest() == ACK_1
    assert await gbt.rest() == spec_reply(report(), 1)
    assert (await five.rest()).startswith(b"\xe0")
    assert (await run.frames()).n == 3
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*run.gateway.addresses["mqtt"])


async def test_drain_gives_up_on_a_journal_that_is_away(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    run = await start()
    client = await run.mqtt()
    run.journal.away = True
    client.send(publish(report(), 1))
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    await run.gateway.drain(0.05)
    assert await client.rest() == b""  # never answered
    assert "none of them was answered" in caplog.text


async def test_port_in_use(start: Start) -> None:
    run = await start()
    port = run.gateway.addresses["gbt32960"][1]
    settings = Settings.read(overrides={"gateway": {"mqtt": {"port": 0}, "gbt32960": {"port": port}}})
    second = Gateway(settings, MemoryJournal(8), MemoryDirectory())
    with pytest.raises(PortInUse) as caught:
        await second.start()
    text = str(caught.value)
    assert f"127.0.0.1:{port}" in text
    assert "gateway.gbt32960.port" in text
    assert "NEVSTREAM_GATEWAY__GBT32960__PORT" in text


async def test_an_address_that_is_not_ours(start: Start) -> None:
    settings = Settings.read(overrides={"gateway": {"mqtt": {"port": 0, "host": "192.0.2.1"}}})
    with pytest.raises(SettingsError, match=r"gateway\.mqtt\.host"):
        await Gateway(settings, MemoryJournal(8), MemoryDirectory()).start()


async def test_a_closed_door_is_not_opened(start: Start) -> None:
    run = await start(mqtt={"enabled": False})
    assert list(run.gateway.addresses) == ["gbt32960"]


async def test_a_fault_of_ours_closes_everything(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    run = await start()
    client = await run.mqtt()

    async def faulty(records: object) -> list[int]:
        raise ZeroDivisionError("a fault")

    run.gateway._committer._journal.append = faulty  # type: ignore[method-assign]
    client.send(publish(report(), 1))
    assert await client.rest() == b""
    with pytest.raises(ZeroDivisionError):
        await run.gateway.wait()
    assert "gateway commits failed" in caplog.text
    with pytest.raises(ZeroDivisionError):
        await run.gateway.drain(0.01)


async def test_metrics_count_every_frame_once(start: Start) -> None:
    def sample(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"nevstream_gateway_{name}", labels) or 0.0

    def counts() -> list[float]:
        return [
            sample("frames_received_total", door="mqtt"),
            sample("frames_refused_total", door="mqtt", reason="bad_bcc"),
            sample("frames_acked_total", door="mqtt"),
            sample("received_bytes_total", door="mqtt"),
            sample("ack_seconds_count", door="mqtt"),
        ]

    run = await start()
    client = await run.mqtt()
    before = counts()
    packet = publish(report() + broken(report()) + report(second=8), 1)
    client.send(packet)
    await client.expect(ACK_1)
    assert [b - a for a, b in zip(before, counts(), strict=True)] == [2, 1, 3, len(packet), 1]
    assert sample("connections", door="mqtt") == 1
    assert sample("in_flight_bytes") == 0


async def test_processes_share_a_port(start: Start) -> None:
    first = await start(processes=2)
    port = first.gateway.addresses["mqtt"][1]
    second = await start(processes=2, mqtt={"port": port})
    assert second.gateway.addresses["mqtt"][1] == port
