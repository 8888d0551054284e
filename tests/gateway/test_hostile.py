"""Who means harm, and whether everybody else is served meanwhile.  No time is asserted: the tests wait for answers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import socket
import struct

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import Codec
from schemas.mqtt.topics import PREFIX, TELEMETRY
from services.gateway import server
from tests.gateway.playing import OTHER, VIN, Client, Running, Start, connect, login, publish, report
from tests.gateway.storing import ledger, stored

pytestmark = pytest.mark.slow

HONEST = [f"LNBSCB3F4JW9{i:05d}" for i in range(4)]


class Honest:
    """Vehicles at both doors that send a report after the other, each waiting for its answer."""

    def __init__(self, run: Running) -> None:
        self.run = run
        self.clients: list[tuple[str, Client, bool]] = []
        self.served = 0

    async def come(self) -> Honest:
        for i, vin in enumerate(HONEST):
            over_mqtt = i % 2 == 0
            self.clients.append((vin, await (self.run.mqtt(vin) if over_mqtt else self.run.vehicle(vin)), over_mqtt))
        return self

    async def drive(self, times: int = 25) -> None:
        for k in range(1, times + 1):
            for vin, client, over_mqtt in self.clients:
                client.send(publish(report(vin), k, vin) if over_mqtt else report(vin))
                answer = await client.read(4 if over_mqtt else 31)
                assert answer[:2] == (b"\x40\x02" if over_mqtt else b"##")
                self.served += 1


async def until_closed(client: Client) -> None:
    with contextlib.suppress(ConnectionError):
        await client.rest()


async def test_slow_loris(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SWEEP_S", 0.01)
    run = await start(limits={"first_packet_timeout_s": 1.0})
    honest = await Honest(run).come()
    slow = [await run.client("mqtt" if i % 2 else "gbt32960") for i in range(60)]

    async def dribble(client: Client, data: bytes) -> None:
        for k in range(len(data) - 1):
            client.send(data[k : k + 1])
            await asyncio.sleep(0.05)

    dribbling = [
        asyncio.create_task(dribble(one, connect(OTHER) if i % 2 else login(OTHER))) for i, one in enumerate(slow)
    ]
    await honest.drive()
    await asyncio.gather(*(until_closed(one) for one in slow))  # each is ended, however it trickles
    for task in dribbling:
        task.cancel()
    await honest.drive(5)
    assert run.gateway._connections.count == len(HONEST)


async def test_a_byte_at_a_time_from_vehicles(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SWEEP_S", 0.01)
    run = await start(limits={"packet_timeout_s": 1.0})
    honest = await Honest(run).come()
    slow = [await run.mqtt(f"LNBSCB3F4JW8{i:05d}") for i in range(30)]

    async def dribble(client: Client) -> None:
        for byte in publish(bytes(5000)):
            client.send(bytes((byte,)))
            await asyncio.sleep(0.01)

    dribbling = [asyncio.create_task(dribble(one)) for one in slow]
    await honest.drive()
    await asyncio.gather(*(until_closed(one) for one in slow))
    for task in dribbling:
        task.cancel()
    await honest.drive(5)
    assert {cause for event, cause, vin in await run.told() if event == "closed"} == {"slow_sender"}


async def test_garbage_from_many(start: Start) -> None:
    run = await start(limits={"connects_per_address_per_s_max": 0})
    honest = await Honest(run).come()
    noise = random.Random(7).randbytes(200_000)
    stop = asyncio.Event()

    async def pour(door: str) -> int:
        times = 0
        while not stop.is_set():
            times += 1
            reader, writer = await asyncio.open_connection(*run.gateway.addresses[door])
            with contextlib.suppress(OSError):
                while not writer.transport.is_closing() and not stop.is_set():
                    writer.write(noise)
                    await writer.drain()
                    await asyncio.sleep(0)
            writer.transport.abort()
            reader.feed_eof()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        return times

    pouring = [asyncio.create_task(pour(door)) for door in ("mqtt", "gbt32960") * 4]
    await honest.drive()
    stop.set()
    assert sum(await asyncio.gather(*pouring)) > len(pouring)  # they were closed, and came back
    await honest.drive(3)


async def test_a_flood_of_reconnects(start: Start) -> None:
    run = await start(limits={"connects_per_address_per_s_max": 5})  # 100 at once
    honest = await Honest(run).come()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    async def knock() -> None:
        while not stop.is_set():
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with contextlib.suppress(OSError):
                    await loop.sock_connect(sock, run.gateway.addresses["mqtt"])
                    await loop.sock_sendall(sock, connect(OTHER))
            await asyncio.sleep(0)

    knocking = [asyncio.create_task(knock()) for _ in range(10)]
    await honest.drive()
    await run.until(lambda: run.gateway._crowd._buckets["127.0.0.1"].tokens < 1)
    stop.set()
    await asyncio.gather(*knocking)
    await honest.drive(3)
    await run.until(lambda: run.gateway._connections.count == run.gateway._crowd.total == len(HONEST))


def bombs() -> list[bytes]:
    size = 100_000
    return [
        b"[" * size,
        b'{"a":' * (size // 5) + b"1" + b"}" * (size // 5),
        b'{"time":1e999999999,"speed_kmh":' + b"9" * size + b"}",
        b"[" + b"1e999," * (size // 6) + b"1]",
        b'{"' + b"\\u0000" * (size // 6) + b'":1}',
        b"[" + b"{}," * (size // 3) + b"{}]",
        b'"' + b"\xff" * size + b'"',
    ]


async def test_json_bombs_are_dead_letters_and_nothing_else(start: Start) -> None:
    run = await start()
    honest = await Honest(run).come()
    client = await run.mqtt()
    for k, bomb in enumerate(bombs(), 1):
        client.send(publish(bomb, k, topic=(PREFIX + VIN.encode() + TELEMETRY).decode()))
        await client.expect(b"\x40\x02" + k.to_bytes(2, "big"))
    await honest.drive(5)
    sink = await stored(run)
    assert len([letter for letter in sink.dead_letters.values() if letter.codec == Codec.JSON_TELEMETRY]) == len(
        bombs()
    )
    assert ledger(sink, "rejected") >= len(bombs())


async def test_what_looks_compressed_is_a_dead_letter(start: Start) -> None:
    """Vehicles' payloads are never unpacked, so there is nothing that a bomb could become."""
    run = await start()
    client = await run.mqtt()
    packed = [gzip.compress(bytes(50_000_000)), zstandard.compress(bytes(50_000_000))]
    for k, body in enumerate(packed, 1):
        client.send(publish(body, k, topic=(PREFIX + VIN.encode() + TELEMETRY).decode()))
        await client.expect(b"\x40\x02" + k.to_bytes(2, "big"))
    sink = await stored(run)
    assert ledger(sink, "rejected") == len(packed)


async def test_a_journal_away_and_200_that_push(start: Start) -> None:
    """Memory is bounded by in_flight_bytes_max, acks pause, and on return everything drains in order."""
    limit = 2 * 1024 * 1024
    run = await start(limits={"in_flight_bytes_max": limit})
    clients = [await run.vehicle(f"LNBSCB3F4JW{i:06d}") for i in range(200)]
    run.journal.away = True
    frames = [
        [report(f"LNBSCB3F4JW{i:06d}", second=k, body=bytes(2000)) for k in range(20)] for i in range(len(clients))
    ]  # 8 MB
    for client, mine in zip(clients, frames, strict=True):
        client.send(*mine)
    await run.until(lambda: run.gateway._intake.held)
    most = 0
    for _ in range(50):
        await asyncio.sleep(0.005)
        most = max(most, run.gateway._committer.in_flight_bytes + run.gateway._intake._carry_bytes)
    # the arena of one tick, and a last sip from each connection
    assert most < limit + 4 * 1024 * 1024 + 200 * 64 * 1024
    assert most == run.gateway._committer.in_flight_bytes + run.gateway._intake._carry_bytes  # it does not grow
    seconds, cause = run.gateway._committer.lag()
    assert (seconds > 0, cause) == (True, "journal_away")
    assert not any(client.reader._buffer for client in clients)  # type: ignore[attr-defined]  # nobody is answered
    run.journal.away = False
    for client, mine in zip(clients, frames, strict=True):
        for frame in mine:
            answer = await client.read(31)
            assert answer[24:30] == frame[24:30]  # in the order in which they were sent
    kept = [body for reason, body in await run.kept() if not reason and body[2] == 2]
    for i, mine in enumerate(frames):
        vin = f"LNBSCB3F4JW{i:06d}".encode()
        assert [body for body in kept if body[4:21] == vin] == mine
    await run.until(lambda: run.gateway._committer.lag() == (0.0, "working"))


async def test_a_slow_journal_is_told_as_such(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.commit._SLOW_S", 0.0)
    run = await start(limits={"in_flight_bytes_max": 1024 * 1024})
    client = await run.vehicle()
    run.journal.gate.clear()
    client.send(report())
    await run.until(lambda: run.gateway._committer.lag()[1] == "journal_slow")
    run.journal.gate.set()
    await client.read(31)
    await run.until(lambda: run.gateway._committer.lag() == (0.0, "working"))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 70_000)), max_size=30))
def test_meters_never_pass_their_bounds(events: list[tuple[int, bool, int]]) -> None:
    import numpy as np

    from services.gateway.metering import Meters
    from services.settings import Limits

    meters = Meters(Limits(bytes_per_s_max=1000, frames_per_s_max=10), 4)
    for slot in range(4):
        meters.open(slot)
    for slot, good, size in events:
        one = np.array([slot])
        meters.count(one)
        meters.judge(one, np.array([size]), np.array([good]))
        meters.spend(one, np.array([size]))
        meters.fill(0.5)
        assert (meters.bytes <= 5000).all()
        assert (meters.frames <= 50).all()
        assert not good or meters.refused[slot] == 0
