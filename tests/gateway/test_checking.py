"""Encrypted and signed frames judged at the door: 0x07 and 0x05 of the 2025 edition, and only where asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.gbt32960 import crypto, sm2
from schemas.gbt32960.commands import Encryption
from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.times import time_bytes
from schemas.keyring import Key, MemoryKeys, Purpose, Scope
from services.errors import StoreUnavailable
from tests.gateway.playing import VIN, Start, login, report
from tests.gateway.test_gbt import spec_reply

AES, WRONG = bytes(range(16)), bytes(16)
ON: dict[str, Any] = {"gbt32960": {"check_secrets": True}}
SCALAR = 987654321987654321


def aes(secret: bytes = AES) -> Key:
    return Key(VIN, Scope.VEHICLE, Purpose.DECRYPT, Encryption.AES, secret)


def closed(frame: bytes, secret: bytes = AES) -> bytes:
    return crypto.encrypt_frame(frame, Encryption.AES, secret)


def signed(scalar: int = SCALAR) -> bytes:
    unit = report(edition=25, body=b"\x05" + bytes(10))[24:-1]
    r, s = sm2.sign(scalar, unit)
    block = b"\xff\x01\0\x20" + r.to_bytes(32, "big") + b"\0\x20" + s.to_bytes(32, "big")
    return build_frame(25, 0x02, 0xFE, VIN, 1, unit + block)


@pytest.mark.parametrize(("edition", "flag"), [(16, 2), (25, 7)])
async def test_what_no_key_opens(start: Start, edition: int, flag: int) -> None:
    run = await start(keys=MemoryKeys([aes()]), **ON)
    client = await run.vehicle(edition=edition)
    good, bad = closed(report(edition=edition)), closed(report(edition=edition), WRONG)
    client.send(good + bad + report(edition=edition))
    await client.expect(spec_reply(good, 1, b"") + spec_reply(bad, flag, b"") + spec_reply(report(edition=edition), 1))
    assert sorted(reason for reason, _ in await run.kept()) == ["", "", "", "decryption"]
    assert ("decryption", bad) in await run.kept()  # as it came


async def test_no_key_at_all(start: Start) -> None:
    run = await start(keys=MemoryKeys(), **ON)
    client = await run.vehicle(edition=25)
    client.send(closed(report(edition=25)))
    await client.expect(spec_reply(closed(report(edition=25)), 7, b""))
    assert sorted(reason for reason, _ in await run.kept()) == ["", "encrypted"]


async def test_a_login_may_be_encrypted_too(start: Start) -> None:
    run = await start(keys=MemoryKeys([aes()]), **ON)
    client = await run.client("gbt32960")
    bad, good = closed(login(edition=25), WRONG), closed(login(edition=25))
    client.send(bad + good)
    await client.expect(spec_reply(bad, 7, b"") + spec_reply(good, 1, b""))
    assert await run.told() == [("refused", "decryption", VIN), ("connected", "", VIN)]


async def test_a_key_that_was_just_exchanged_opens_what_comes_behind_it(start: Start) -> None:
    run = await start(keys=MemoryKeys(), **ON)
    client = await run.vehicle(edition=25)
    now = datetime.now(UTC)
    times = [time_bytes(int((now + timedelta(days=days)).timestamp())) for days in (-1, 1)]
    exchange = build_frame(25, 0x0B, 0xFE, VIN, 1, b"\x03\0\x10" + AES + times[0] + times[1])
    client.send(exchange)
    await client.expect(spec_reply(exchange, 1, b""))
    client.send(closed(report(edition=25)))
    await client.expect(spec_reply(closed(report(edition=25)), 1, b""))


@pytest.mark.parametrize(("policy", "flag"), [("require", 5), ("keep", 1)])
async def test_signatures(start: Start, policy: str, flag: int) -> None:
    public = Key(VIN, Scope.VEHICLE, Purpose.VERIFY, 1, sm2.public_of(SCALAR))
    run = await start(keys=MemoryKeys([public]), encryption={"signature": policy}, **ON)
    client = await run.vehicle(edition=25)
    client.send(signed() + signed(5) + report(edition=25))
    await client.expect(spec_reply(signed(), 1) + spec_reply(signed(5), flag) + spec_reply(report(edition=25), 1))


async def test_off_by_default(start: Start) -> None:
    run = await start(keys=MemoryKeys([aes()]))
    client = await run.vehicle(edition=25)
    client.send(closed(report(edition=25), WRONG))
    await client.expect(spec_reply(closed(report(edition=25), WRONG), 1, b""))


async def test_while_no_keys_can_be_read_frames_are_taken(start: Start) -> None:
    class Away(MemoryKeys):
        async def keyring(self) -> Any:
            raise StoreUnavailable("away")

    run = await start(keys=Away(), **ON)
    client = await run.vehicle(edition=25)
    client.send(closed(report(edition=25)))
    await client.expect(spec_reply(closed(report(edition=25)), 1, b""))
