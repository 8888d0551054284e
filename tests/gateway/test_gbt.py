"""The GB/T 32960 door: replies byte for byte, the login rule, refusals, ends (clause 6, annex B)."""

from __future__ import annotations

import asyncio
import struct
import time

import pytest
from pydantic import SecretStr

from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.times import read_time
from services.store.directory import MemoryDirectory
from tests.gateway.playing import (
    OTHER,
    PARTITIONS,
    TIME,
    VIN,
    Running,
    Start,
    broken,
    login,
    logout,
    report,
)


def spec_reply(request: bytes, flag: int, unit: bytes | None = None) -> bytes:
    """The short reply, written out from clause 6.3.2: same mark, command and identification, the time, N, BCC."""
    unit = request[24:30] if unit is None else unit
    body = request[2:3] + bytes((flag,)) + request[4:21] + b"\x01" + struct.pack(">H", len(unit)) + unit
    check = 0
    for byte in body:
        check ^= byte
    return request[:2] + body + bytes((check,))


def platform_login(user: str = "city", password: str = "secret", edition: int = 16) -> bytes:  # noqa: S107
    unit = TIME + b"\0\1" + user.encode().ljust(12, b"\0") + password.encode().ljust(20, b"\0") + b"\x01"
    return build_frame(edition, 0x05, 0xFE, "PLATFORM000000001", 1, unit)


PLATFORM_LOGOUT = build_frame(16, 0x06, 0xFE, "PLATFORM000000001", 1, TIME + b"\0\1")
USERS = {"gbt32960": {"platform_users": {"city": SecretStr("secret")}}}


# -- a vehicle's day -------------------------------------------------------------------------------
@pytest.mark.parametrize("edition", [16, 25])
async def test_a_session_is_answered_as_the_standard_has_it(start: Start, edition: int) -> None:
    run = await start()
    client = await run.client("gbt32960")
    day = [login(edition=edition), report(edition=edition), report(edition=edition, command=3), logout(edition=edition)]
    for request in day:
        client.send(request)
        await client.expect(spec_reply(request, 0x01))
    assert await run.kept() == [("", frame) for frame in day]
    assert set((await run.frames()).door.tolist()) == {1}


async def test_known_reply_bytes(start: Start) -> None:
    """One reply in full, checked by hand: N = 6, encryption 1, XOR of the bytes from the command on."""
    run = await start()
    client = await run.vehicle()
    client.send(report())
    expected = bytes.fromhex("2323 02 01 4c4e42534342334634 4a57303030303031 01 0006 1a0304050607".replace(" ", ""))
    check = 0
    for byte in expected[2:]:
        check ^= byte
    await client.expect(expected + bytes((check,)))


async def test_heartbeat_and_time_sync_are_answered_at_once(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    run.journal.gate.clear()  # nothing becomes durable
    heartbeat = build_frame(16, 0x07, 0xFE, VIN, 1, b"")
    sync = build_frame(16, 0x08, 0xFE, VIN, 1, b"")
    client.send(heartbeat + sync)
    await client.expect(spec_reply(heartbeat, 1, b""))
    answer = await client.read(31)
    assert answer == spec_reply(sync, 1, answer[24:30])
    told = read_time(answer[24:30])
    assert told is not None
    assert abs(told.timestamp() - time.time()) < 60
    run.journal.gate.set()
    assert await run.kept() == [("", login())]


async def test_replies_are_never_answered_nor_kept(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(build_frame(16, 0x80, 0x01, VIN, 1, TIME) + spec_reply(report(), 1) + report())
    await client.expect(spec_reply(report(), 1))
    assert await run.kept() == [("", login()), ("", report())]


async def test_both_editions_on_one_connection(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(report(edition=25) + report(edition=16))
    await client.expect(spec_reply(report(edition=25), 1) + spec_reply(report(edition=16), 1))


async def test_one_byte_at_a_time(start: Start) -> None:
    run = await start()
    client = await run.client("gbt32960")
    await client.send_bytewise(login() + report())
    await client.expect(spec_reply(login(), 1) + spec_reply(report(), 1))
    assert await run.kept() == [("", login()), ("", report())]


async def test_many_glued_together(start: Start) -> None:
    run = await start()
    client = await run.client("gbt32960")
    reports = [report(second=k % 60, body=bytes(300)) for k in range(2000)]
    client.send(login() + b"".join(reports))
    await client.expect(spec_reply(login(), 1) + b"".join(spec_reply(one, 1) for one in reports))
    assert await run.kept() == [("", login())] + [("", one) for one in reports]


async def test_errors_only_says_nothing_to_good_reports(start: Start) -> None:
    run = await start(gbt32960={"ack": "errors-only"})
    client = await run.vehicle()  # logins are answered all the same
    client.send(report() + report(command=3) + broken(report()))
    await client.expect(spec_reply(broken(report()), 2))
    assert len(await run.kept()) == 4


async def test_custom_commands_are_kept_and_answered(start: Start) -> None:
    run = await start()
    exchange = build_frame(16, 0xC5, 0xFE, VIN, 1, TIME + b"x")
    client = await run.client("gbt32960")
    client.send(exchange)
    await client.expect(spec_reply(exchange, 2))
    client.send(login() + exchange)
    await client.expect(spec_reply(login(), 1) + spec_reply(exchange, 1))
    assert [reason for reason, _ in await run.kept()] == ["not_logged_in", "", ""]


# -- who may speak ---------------------------------------------------------------------------------
async def test_login_comes_first(start: Start) -> None:
    run = await start()
    client = await run.client("gbt32960")
    for request in (report(), logout(), PLATFORM_LOGOUT):
        client.send(request)
        await client.expect(spec_reply(request, 2))
    client.send(login() + report())
    await client.expect(spec_reply(login(), 1) + spec_reply(report(), 1))
    client.send(logout() + report(second=9))
    await client.expect(spec_reply(logout(), 1) + spec_reply(report(second=9), 2))
    reasons = sorted(reason for reason, _ in await run.kept())
    assert reasons == ["", "", "", "not_logged_in", "not_logged_in", "not_logged_in", "not_logged_in"]


async def test_login_may_be_optional(start: Start) -> None:
    run = await start(gbt32960={"login": "optional"})
    client = await run.client("gbt32960")
    client.send(report() + report(second=8) + report(OTHER))
    await client.expect(spec_reply(report(), 1) + spec_reply(report(second=8), 1) + spec_reply(report(OTHER), 2))
    again = await run.client("gbt32960")
    again.send(report(second=9))
    await again.expect(spec_reply(report(second=9), 1))
    assert await client.rest() == b""  # replaced, as after a login


async def test_without_a_login_the_vin_must_still_be_one(start: Start) -> None:
    run = await start(MemoryDirectory({VIN}), registry="allowlist", gbt32960={"login": "optional"})
    client = await run.client("gbt32960")
    client.send(report(OTHER) + report(b"\x01" * 17) + report())
    await client.expect(spec_reply(report(OTHER), 2) + spec_reply(report(b"\x01" * 17), 2) + spec_reply(report(), 1))
    assert sorted(reason for reason, _ in await run.kept()) == ["", "bad_vin", "unknown_vin"]


async def test_a_vehicle_speaks_for_itself_only(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(report(OTHER) + login(OTHER) + logout(OTHER) + report())
    await client.expect(
        spec_reply(report(OTHER), 2)
        + spec_reply(login(OTHER), 2)
        + spec_reply(logout(OTHER), 2)
        + spec_reply(report(), 1)
    )
    assert sorted(reason for reason, _ in await run.kept()) == ["", "", *["foreign_vin"] * 3]


@pytest.mark.parametrize(("edition", "flag"), [(16, 0x02), (25, 0x04)])
async def test_allowlist(start: Start, edition: int, flag: int) -> None:
    run = await start(MemoryDirectory({VIN}), registry="allowlist")
    client = await run.client("gbt32960")
    client.send(login(OTHER, edition) + login(VIN, edition))
    await client.expect(spec_reply(login(OTHER, edition), flag) + spec_reply(login(VIN, edition), 1))
    assert sorted(await run.kept()) == [("", login(VIN, edition)), ("unknown_vin", login(OTHER, edition))]


@pytest.mark.parametrize(
    ("request_", "flag", "reason"),
    [
        (build_frame(16, 0x01, 0xFE, b"\xff" * 17, 1, login()[24:-1]), 2, "bad_vin"),
        (build_frame(16, 0x01, 0xFE, VIN, 1, TIME), 2, "structure"),
        (build_frame(25, 0x01, 0xFE, VIN, 1, TIME), 6, "structure"),
        (build_frame(16, 0x80, 0xFE, VIN, 1, TIME), 2, "unknown_command"),
        (build_frame(16, 0x33, 0xFE, VIN, 1, TIME), 2, "unknown_command"),
    ],
)
async def test_a_refused_frame_is_answered_and_kept(start: Start, request_: bytes, flag: int, reason: str) -> None:
    run = await start()
    client = await run.client("gbt32960")
    client.send(request_)
    await client.expect(spec_reply(request_, flag))
    assert await run.kept() == [(reason, request_)]


async def test_a_short_code_padded_with_zeros_is_an_identification(start: Start) -> None:
    run = await start()
    client = await run.vehicle("TERMINAL7")
    client.send(report("TERMINAL7"))
    await client.expect(spec_reply(report("TERMINAL7"), 1))


async def test_takeover(start: Start) -> None:
    run = await start()
    old = await run.vehicle()
    new = await run.vehicle()
    assert await old.rest() == b""
    new.send(report())
    await new.expect(spec_reply(report(), 1))
    # the same vehicle may speak both protocols at once
    mqtt = await run.mqtt()
    mqtt.send(b"\xc0\x00")
    await mqtt.expect(b"\xd0\x00")
    new.send(report(second=9))
    await new.expect(spec_reply(report(second=9), 1))


# -- platforms -------------------------------------------------------------------------------------
async def test_a_platform_speaks_for_many(start: Start) -> None:
    run = await start(**USERS)
    client = await run.client("gbt32960")
    client.send(platform_login())
    await client.expect(spec_reply(platform_login(), 1))
    session = [login(VIN), login(OTHER), report(VIN), report(OTHER), logout(VIN), report(b"\x05" * 17)]
    client.send(b"".join(session))
    await client.expect(b"".join(spec_reply(one, 1) for one in session[:5]) + spec_reply(session[5], 2))
    client.send(PLATFORM_LOGOUT + report())
    await client.expect(spec_reply(PLATFORM_LOGOUT, 1) + spec_reply(report(), 2))
    kept = await run.kept()
    assert sorted(reason for reason, _ in kept if reason) == ["bad_vin", "not_logged_in"]
    frames = await run.frames()
    assert len({int(p) for p in frames.partition}) > 1
    for vin in (VIN, OTHER):
        found = {int(frames.partition[i]) for i in range(frames.n) if frames.frame(i)[4:21] == vin.encode()}
        assert len(found) == 1


async def test_a_password_is_not_journaled(start: Start) -> None:
    run = await start(**USERS)
    client = await run.client("gbt32960")
    client.send(platform_login(password="guess") + platform_login())
    await client.expect(spec_reply(platform_login(password="guess"), 2) + spec_reply(platform_login(), 1))
    kept = await run.kept()
    assert [reason for reason, _ in kept] == ["bad_login", ""]
    for _, frame in kept:
        assert b"secret" not in frame
        assert b"guess" not in frame
        assert frame == platform_login(password="*" * 20)


@pytest.mark.parametrize("user", ["nobody", ""])
async def test_unknown_platform_user(start: Start, user: str) -> None:
    for users in (USERS, {}):
        run = await start(**{door: dict(values) for door, values in users.items()})
        client = await run.client("gbt32960")
        request = platform_login(user, "")
        client.send(request + report())
        await client.expect(spec_reply(request, 2) + spec_reply(report(), 2))


async def test_a_platform_under_an_allowlist(start: Start) -> None:
    run = await start(MemoryDirectory({VIN}), registry="allowlist", **USERS)
    client = await run.client("gbt32960")
    client.send(platform_login() + report(VIN) + report(OTHER) + report(OTHER, edition=25))
    await client.expect(
        spec_reply(platform_login(), 1)
        + spec_reply(report(VIN), 1)
        + spec_reply(report(OTHER), 2)
        + spec_reply(report(OTHER, edition=25), 4)
    )
    assert sorted(reason for reason, _ in await run.kept()) == ["", "", "unknown_vin", "unknown_vin"]
    frames = await run.frames()
    assert {frames.sources[int(s) - 1]["client"] for s in frames.source if s} == {"PLATFORM000000001"}


async def test_a_source_says_who_it_was_at_the_time(start: Start) -> None:
    run = await start()
    client = await run.client("gbt32960")
    client.send(b"early" + login() + b"late" + report())
    await client.expect(spec_reply(login(), 1) + spec_reply(report(), 1))
    frames = await run.frames()
    named = {frames.frame(i): frames.sources[int(frames.source[i]) - 1]["vin"] for i in range(4) if frames.reason[i]}
    assert named == {b"early": "", b"late": VIN}


# -- damage ----------------------------------------------------------------------------------------
async def test_bad_bcc_is_answered_and_the_connection_lives(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(broken(report()) + report())
    await client.expect(spec_reply(broken(report()), 2) + spec_reply(report(), 1))
    assert (await run.kept())[1:] == [("bad_bcc", broken(report())), ("", report())]
    frames = await run.frames()
    assert frames.detail.tolist() == [0, len(report()) - 1, 0]


async def test_garbage_then_good(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(b"\x00\x01#noise$" + report() + b"$#" * 30 + report(second=9))
    await client.expect(spec_reply(report(), 1) + spec_reply(report(second=9), 1))
    assert sorted(await run.kept()) == sorted(
        [
            ("", login()),
            ("garbage", b"\x00\x01#noise$"),
            ("", report()),
            ("garbage", b"$#" * 30),
            ("", report(second=9)),
        ]
    )


async def test_oversize(start: Start) -> None:
    run = await start(limits={"frame_bytes_max": 100})
    client = await run.vehicle()
    big = report(body=bytes(100))
    client.send(big + report(body=bytes(10)))
    await client.expect(spec_reply(big, 2, b"") + spec_reply(report(body=bytes(10)), 1))
    kept = await run.kept()
    assert [reason for reason, _ in kept] == ["", "oversize", "garbage", ""]
    assert b"".join(frame for _, frame in kept[1:3]) == big


async def test_a_frame_cut_by_the_end_of_the_stream(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(report() + report(second=9)[:40])
    client.writer.write_eof()
    assert await client.rest() == spec_reply(report(), 1)
    assert await run.kept() == [("", login()), ("", report()), ("bad_length", report(second=9)[:40])]


async def test_a_frame_cut_by_a_reset(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    client.send(report()[:40])
    await run.until(lambda: run.gateway._intake._carry_bytes == 40)
    client.writer.transport.abort()

    async def there() -> bool:
        return ("bad_length", report()[:40]) in await run.kept()

    await run.until(there)
    assert run.gateway._intake._carry_bytes == 0


async def test_silence_is_ended(start: Start) -> None:
    run = await start(limits={"first_packet_timeout_s": 1.0, "idle_timeout_s": 0.3})
    mute = await run.client("gbt32960")
    client = await run.vehicle()
    assert await mute.rest() == b""
    assert await client.rest() == b""
    assert run.gateway.gbt32960.by_vin == {}


async def test_rows_are_used_again(start: Start) -> None:
    run = await start()
    for _ in range(3):
        clients = await asyncio.gather(*(run.vehicle(f"LNBSCB3F4JW{i:06d}") for i in range(30)))
        for client in clients:
            client.close()
        await run.until(lambda: run.gateway._connections.count == 0)
    assert len(run.gateway._connections.links) == 1024


async def test_more_connections_than_the_first_rows(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.connections._FIRST_ROWS", 4)
    run: Running = await start()
    clients = await asyncio.gather(*(run.vehicle(f"LNBSCB3F4JW{i:06d}") for i in range(21)))
    for i, client in enumerate(clients):
        client.send(report(f"LNBSCB3F4JW{i:06d}"))
    for i, client in enumerate(clients):
        await client.expect(spec_reply(report(f"LNBSCB3F4JW{i:06d}"), 1))
    assert len(run.gateway._connections.links) == 32
    assert len(await run.kept()) == 42
    assert set((await run.frames()).partition.tolist()) <= set(range(PARTITIONS))
