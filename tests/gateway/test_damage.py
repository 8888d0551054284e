"""Bytes that were damaged, cut, glued or huge: refused, counted, answered; and nothing beside them is lost."""

from __future__ import annotations

import asyncio
import itertools
from functools import reduce
from operator import xor
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.gbt32960.frame import build_frame
from schemas.mqtt.packets import PINGREQ, PINGRESP
from tests.gateway.playing import OTHER, VIN, Client, Start, broken, login, publish
from tests.gateway.storing import BLOCK, dated, ledger, stored, time_bytes
from tests.gateway.test_gbt import spec_reply

pytestmark = pytest.mark.slow

FLIPS = 5_000
GLUED = 1_000
LARGEST = 65_556  # header, 65,531 bytes of data unit, check byte


def flipped(frame: bytes, bit: int) -> bytes:
    changed = bytearray(frame)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def replies_in(stream: bytes) -> list[bytes]:
    """The answers in what came back; each is whole and its check byte is right."""
    found, at = [], 0
    while at < len(stream):
        end = at + 25 + int.from_bytes(stream[at + 22 : at + 24], "big")
        answer = stream[at:end]
        assert answer[:2] in (b"##", b"$$")
        assert reduce(xor, answer[2:]) == 0, answer.hex()
        found.append(answer)
        at = end
    return found


async def everything(client: Client, data: bytes) -> bytes:
    """Send ``data``, say that this is all, and read until the gateway has answered it."""
    reading = asyncio.create_task(client.rest())
    for at in range(0, len(data), 50_000):
        client.writer.write(data[at : at + 50_000])
        await client.writer.drain()
    client.writer.write_eof()
    return await reading


# -- one flipped bit -----------------------------------------------------------------------------------
async def test_one_flipped_bit_in_each_of_5000_frames(start: Start) -> None:
    """Damaged and good frames alternate.  Of a single flipped bit nothing passes: the check byte covers all but the
    start mark, and a start mark that is none makes the frame garbage.  A length that grew swallows nothing."""
    rng = Random(32960)
    run = await start()
    sent: list[bytes] = []
    good: list[bytes] = []
    damaged: list[bytes] = []
    bits: set[int] = set()
    for k in range(FLIPS):
        edition = rng.choice((16, 25))
        one = dated(2 * k, edition=edition)
        bit = k % (8 * len(one)) if k < 8 * len(one) else rng.randrange(8 * len(one))  # every bit at least once
        bits.add(bit)
        damaged.append(flipped(one, bit))
        good.append(dated(2 * k + 1, edition=rng.choice((16, 25))))
        sent += [damaged[-1], good[-1]]
    # a length that grew by half of all it can be is settled once so many bytes have come: they are good frames
    tail = [dated(2 * FLIPS + k) for k in range(1 + LARGEST // len(good[0]))]
    sent += tail
    client = await run.client("gbt32960")
    stream = await everything(client, login() + b"".join(sent))
    assert len(bits) >= 8 * min(map(len, damaged))

    # not a byte is lost, none is kept twice, and every good frame is one by itself
    kept = await run.kept()
    assert b"".join(frame for _, frame in kept) == login() + b"".join(sent)
    accepted = [frame for reason, frame in kept if not reason]
    assert accepted == [login(), *good, *tail]
    assert {reason for reason, _ in kept} == {"", "bad_bcc", "garbage", "oversize"} - (
        set() if any(reason == "oversize" for reason, _ in kept) else {"oversize"}
    )

    # answers: each accepted frame 0x01; each refused one that is a command by its own word, the edition's error
    expected = []
    for reason, frame in kept:
        if not reason:
            expected.append(spec_reply(frame, 0x01))
        elif reason != "garbage" and frame[3] == 0xFE:
            flag = 0x02 if frame[:2] == b"##" else 0x06
            expected.append((frame[:3], flag, frame[4:21]))
    answers = replies_in(stream)
    assert len(answers) == len(expected)
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer == wanted if isinstance(wanted, bytes) else (answer[:3], answer[3], answer[4:21]) == wanted

    sink = await stored(run)
    refused = sum(bool(reason) for reason, _ in kept)
    assert refused >= FLIPS
    assert ledger(sink, "rows") == len(good) + len(tail)
    assert ledger(sink, "rejected") == refused == len(sink.dead_letters)
    assert ledger(sink, "frames") - ledger(sink, "other") == len(kept)  # other: the events of the connection
    assert len(sink.vehicles) == 1  # a VIN with a flipped bit makes no vehicle


@pytest.mark.parametrize("version", [4, 5])
async def test_one_flipped_bit_over_mqtt(start: Start, version: int) -> None:
    """A payload is one damaged frame, or a damaged one between two good ones: acknowledged, and the link lives."""
    rng = Random(1883)
    run = await start()
    client = await run.mqtt(version=version)
    payloads = []
    for k in range(500):
        edition = rng.choice((16, 25))
        one = dated(3 * k, edition=edition)
        bad = flipped(one, rng.randrange(8 * len(one)))
        payloads.append(bad if k % 2 else dated(3 * k + 1) + bad + dated(3 * k + 2))
    for k, payload in enumerate(payloads):
        client.send(publish(payload, 1 + k, version=version))
    for k in range(len(payloads)):
        await client.expect(b"\x40\x02" + (1 + k).to_bytes(2, "big"))
    client.send(PINGREQ)
    await client.expect(PINGRESP)
    kept = await run.kept()
    assert b"".join(frame for _, frame in kept) == b"".join(payloads)
    sink = await stored(run)
    assert ledger(sink, "rows") == 500  # a length that grew took the good frame behind it along, once
    assert ledger(sink, "rejected") == sum(bool(reason) for reason, _ in kept) >= 500


# -- fragments ------------------------------------------------------------------------------------------
async def test_the_cut_of_a_stream_makes_no_difference(start: Start) -> None:
    """Good, damaged and foreign frames and noise, whole and byte by byte: the same kept, the same answered."""
    rng = Random(7)
    pieces = [login(edition=25)]
    for k in range(40):
        one = dated(k, edition=rng.choice((16, 25)), command=rng.choice((2, 3)))
        pieces.append(one)
        if k % 3 == 0:
            pieces.append(broken(one))
        if k % 4 == 0:
            pieces.append(rng.randbytes(rng.randrange(1, 30)).replace(b"#", b"-").replace(b"$", b"-"))
        if k % 5 == 0:
            pieces.append(dated(k, OTHER))
    stream = b"".join(pieces)

    async def outcome(bytewise: bool) -> tuple[bytes, list[tuple[str, bytes]]]:
        run = await start()
        client = await run.client("gbt32960")
        if bytewise:
            reading = asyncio.create_task(client.rest())
            await client.send_bytewise(stream)
            client.writer.write_eof()
            answers = await reading
        else:
            answers = await everything(client, stream)
        joined: list[tuple[str, bytes]] = []  # garbage that came in two reads is two records of one run
        for reason, frame in await run.kept():
            if reason == "garbage" and joined and joined[-1][0] == "garbage":
                joined[-1] = (reason, joined[-1][1] + frame)
            else:
                joined.append((reason, frame))
        return answers, joined

    whole, cut = await outcome(False), await outcome(True)
    assert cut[0] == whole[0]
    assert sorted(cut[1]) == sorted(whole[1])


async def test_mqtt_packets_in_fragments_of_one_byte(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    stream = b"".join(publish(dated(k) + broken(dated(k)), 1 + k) for k in range(20))
    await client.send_bytewise(stream)
    for k in range(20):
        await client.expect(b"\x40\x02" + (1 + k).to_bytes(2, "big"))
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "rejected")) == (20, 20)


# -- the largest and the many -----------------------------------------------------------------------------
def largest(second: int, edition: int) -> bytes:
    """A report of 65,531 bytes of data unit: the vehicle block, then one custom block (0x80, with its length)."""
    room = 65_531 - 6 - len(BLOCK[edition]) - 3
    unit = time_bytes(second) + BLOCK[edition] + b"\x80" + room.to_bytes(2, "big") + bytes(range(256)) * 256
    frame = build_frame(edition, 2, 0xFE, VIN, 1, unit[:65_531])
    assert len(frame) == LARGEST
    return frame


@pytest.mark.parametrize("edition", [16, 25])
@pytest.mark.parametrize("piece", [LARGEST, 4096, 1000])
async def test_frames_of_64_kib(start: Start, edition: int, piece: int) -> None:
    run = await start()
    client = await run.vehicle(edition=edition)
    frames = [largest(0, edition), dated(1, edition=edition), largest(2, edition), broken(largest(3, edition))]
    stream = b"".join(frames)
    for at in range(0, len(stream), piece):
        client.send(stream[at : at + piece])
        await asyncio.sleep(0)
    await client.expect(b"".join(spec_reply(one, 1) for one in frames[:3]))
    await client.expect(spec_reply(frames[3], 2 if edition == 16 else 6))
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "rejected")) == (3, 1)
    rest = [len(row["rest"]) for row in sink.telemetry.values() if row.get("rest")]
    assert rest == [65_531 - 6 - len(BLOCK[edition])] * 2
    assert [len(letter.frame) for letter in sink.dead_letters.values()] == [LARGEST]


async def test_frames_of_64_kib_over_mqtt(start: Start) -> None:
    run = await start()
    client = await run.mqtt()
    client.send(publish(largest(0, 16) + largest(1, 25) + dated(2), 1), publish(broken(largest(3, 16)), 2))
    await client.expect(bytes.fromhex("4002000140020002"))
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "rejected")) == (3, 1)


@pytest.mark.parametrize("door", ["gbt32960", "mqtt"])
async def test_1000_glued_frames(start: Start, door: str) -> None:
    """In one write; over MQTT in one PUBLISH."""
    run = await start()
    frames = [dated(k, edition=16 if k % 2 else 25) for k in range(GLUED)]
    if door == "mqtt":
        client = await run.mqtt()
        client.send(publish(b"".join(frames), 1))
        await client.expect(bytes.fromhex("40020001"))
    else:
        client = await run.vehicle()
        client.send(b"".join(frames))
        await client.expect(b"".join(spec_reply(one, 1) for one in frames))
    sink = await stored(run)
    assert ledger(sink, "rows") == GLUED == len(sink.telemetry)


# -- garbage ---------------------------------------------------------------------------------------------
_PIECES = [
    login(), dated(0), dated(1, edition=25), broken(dated(2)), b"##", b"$$\x02\xfe", b"\x10", b"\x30\x07",
    b"\x00\x04MQTT", PINGREQ, publish(dated(3)), b"\xff\xff\xff\xff", b"\x82\x05\x00\x01\x00\x00\x00",
]  # fmt: skip
_garbage = st.lists(st.one_of(st.sampled_from(_PIECES), st.binary(max_size=40)), max_size=10).map(b"".join)
_names = itertools.count(1)


@pytest.mark.parametrize("door", ["gbt32960", "mqtt"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
async def test_no_garbage_brings_a_door_down(start: Start, door: str, data: st.DataObject) -> None:
    """Whatever is sent, before the login and after it: the connection is answered or ended, and the next one works."""
    run = await start()
    bad = await run.client(door)
    if data.draw(st.booleans()):
        bad = await run.vehicle(OTHER) if door == "gbt32960" else await run.mqtt(OTHER)
    await everything(bad, data.draw(_garbage))
    good = await run.vehicle() if door == "gbt32960" else await run.mqtt()
    good.send(dated(0) if door == "gbt32960" else publish(dated(0)))
    await good.expect(spec_reply(dated(0), 1) if door == "gbt32960" else bytes.fromhex("40020001"))
    assert not any(task.done() for task in run.gateway._tasks)
    await stored(run)
    await run.gateway.drain(5)
