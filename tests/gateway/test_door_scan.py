"""The doors, scanned: every topic of another VIN, and identifications made to do harm. All of it is refused."""

from __future__ import annotations

from functools import reduce
from operator import xor
from typing import Final

import pytest

from schemas.gbt32960.frame import build_frame
from schemas.mqtt.packets import Subscribe, encode_subscribe, parse_connack, parse_suback
from schemas.mqtt.topics import BMS, GBT32960, PREFIX, TELEMETRY
from services.store.directory import MemoryDirectory
from tests.gateway.playing import OTHER, TIME, VIN, Start, connect, login, publish, report

pytestmark = pytest.mark.slow

UP: Final = (GBT32960, TELEMETRY, BMS)
NOT_ITS_OWN: Final = (
    f"nev/v1/{OTHER}/down/#", f"nev/v1/{OTHER}/down/gbt32960", f"nev/v1/{OTHER}/gbt32960", f"nev/v1/{OTHER}/#",
    "nev/v1/+/down/#", "nev/v1/#", "#", "+/+/+/down/#", f"nev/v1/{VIN}/../{OTHER}/down/#", f"nev/v1/{VIN}/#",
    f"nev/v1/{VIN}/gbt32960", "$SYS/#", f"$share/all/nev/v1/{OTHER}/down/#", f"nev/v1/{VIN.lower()}/down/#",
)  # fmt: skip
# 17 bytes each, as both protocols have it.
HARMFUL: Final = (
    b"' OR 1=1; --xxxxx", b"'; DROP TABLE v--", b"../../etc/passwd\0", b"a\r\nSet-Cookie:xyz", b"LTEST\0LTEST000001",
    "LTESTÄ0000000001".encode(), "ＬＴＥＳＴ０".encode()[:17], b"\xff" * 17, b"\0" * 17, b"%s%(vin)s{}${7*7}",
    b"LTEST 00000000001", b"\x7f" * 17,
)  # fmt: skip


@pytest.mark.parametrize("version", [4, 5])
async def test_no_topic_of_another_vin_takes_anything(start: Start, version: int) -> None:
    run = await start()
    for number, level in enumerate(UP, 1):
        client = await run.mqtt(version=version)
        topic = (PREFIX + OTHER.encode() + level).decode()
        body = report(OTHER) if level == GBT32960 else b'{"speed_kmh": 1}'
        client.send(publish(body, number, topic=topic, version=version))
        if version == 5:
            await client.expect(bytes((0x40, 3, 0, number, 0x87)))
        else:
            assert await client.rest() == b""
    await run.gateway._committer.flushed()
    assert {reason for reason, _ in await run.kept()} == {"foreign_vin"}


@pytest.mark.parametrize("version", [4, 5])
async def test_no_topic_but_its_own_is_subscribed_to(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(encode_subscribe(Subscribe(1, tuple((one, 1) for one in NOT_ITS_OWN)), version))
    head = await client.read(2)
    codes = parse_suback(await client.read(head[1]), version).codes
    assert len(codes) == len(NOT_ITS_OWN)
    assert all(code >= 0x80 for code in codes)


@pytest.mark.parametrize("vin", HARMFUL)
async def test_a_harmful_vin_is_not_let_in_by_mqtt(start: Start, vin: bytes) -> None:
    """Under an allowlist no such name is known; where anybody may come, only what could be a VIN is one."""
    run = await start(MemoryDirectory(vins=[VIN]), registry="allowlist")
    client = await run.client("mqtt")
    template = connect("Q" * len(vin), 5)
    client.send(template.replace(b"Q" * len(vin), vin))
    answer = await client.rest()
    if answer:
        assert answer[0] == 0x20
        assert parse_connack(answer[2:], 5).code >= 0x80
    assert not run.gateway.mqtt.by_vin


@pytest.mark.parametrize("vin", HARMFUL)
async def test_a_harmful_vin_is_not_let_in_by_gbt(start: Start, vin: bytes) -> None:
    run = await start(MemoryDirectory(vins=[VIN]), registry="allowlist")
    client = await run.client("gbt32960")
    frame = bytearray(login())
    frame[4:21] = vin
    frame[-1] = reduce(xor, frame[2:-1])
    client.send(bytes(frame))
    assert (await client.read(31))[3] in (2, 4)
    assert not run.gateway.gbt32960.by_vin
    await run.gateway._committer.flushed()
    assert {reason for reason, _ in await run.kept()} <= {"bad_vin", "unknown_vin"}


async def test_one_speaks_for_no_other_on_a_vehicles_link(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    others = [
        report(OTHER),
        report(OTHER, command=0x03),
        build_frame(16, 0x04, 0xFE, OTHER, 1, TIME + b"\0\1"),
        login(OTHER),
    ]
    for frame in others:
        client.send(frame)
        assert (await client.read(31))[3] == 2
    await run.gateway._committer.flushed()
    assert [reason for reason, _ in await run.kept()].count("foreign_vin") == len(others)
    assert set(run.gateway.gbt32960.by_vin) == {VIN}
