"""Commands beside reports: the rule table and its document, activation, key exchange, the same VIN twice.

The golden frames are recordings of other projects (``tests/gbt32960/data/README.md``).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from schemas.gbt32960.commands import Command
from schemas.gbt32960.frame import build_frame
from services.gateway import gbt_rules
from services.gateway.connections import State
from services.store.directory import MemoryDirectory
from tests.gateway.playing import OTHER, TIME, VIN, Start, broken, login, logout, report
from tests.gateway.test_gbt import platform_login, spec_reply

GOLDEN = {one["id"]: bytes.fromhex(one["hex"]) for one in json.loads(
    (Path(__file__).parents[1] / "gbt32960/data/frames.json").read_text("utf-8")
)}  # fmt: skip
ACTIVATION = GOLDEN["emqx-activation-2025"]
ACTIVATED = GOLDEN["emqx-activation-result-2025"]
KEY_EXCHANGE = GOLDEN["emqx-keyexchange-2025"]
CHIP_VIN = "VIN12345678901234"


def not_activated() -> bytes:
    frame = ACTIVATED[:24] + b"\x02\x02"
    check = 0
    for byte in frame[2:]:
        check ^= byte
    return frame + bytes((check,))


# -- the table --------------------------------------------------------------------------------------
def test_the_committed_document_is_the_generated_one() -> None:
    committed = Path(gbt_rules.__file__).parent / "SESSION.md"
    assert committed.read_text("utf-8") == gbt_rules.document(), (
        "run: python -m services.gateway.gbt_rules > services/gateway/SESSION.md"
    )


def test_every_command_has_a_rule_in_every_state() -> None:
    table = gbt_rules.actions(True)
    for half, edition in enumerate(gbt_rules.EDITIONS):
        for command in Command:
            for state in (State.NEW, State.VEHICLE, State.PLATFORM):
                action = int(table[state, 256 * half + command])
                assert action >= gbt_rules.REFUSE or action in gbt_rules._ACTION_TEXT, (edition, command)
    # reserved in 2016, and never sent up: refused
    unknown = gbt_rules._UNKNOWN_COMMAND
    for command in (0x09, 0x0A, 0x0B, 0x83, 0xFF, 0x00):
        assert (table[: State.WAITING, command] == unknown).all()
    assert (table[: State.WAITING, 256 + 0x0A] == unknown).all()


def test_what_changes_the_state_is_drawn() -> None:
    stopping = {
        command for rule in gbt_rules.RULES for command in rule.commands if gbt_rules.ASK_STOP in
        (rule.new, rule.vehicle, rule.platform)
    }  # fmt: skip
    assert stopping == set(gbt_rules.NEXT)
    drawn = gbt_rules.diagram()
    assert "VEHICLE --> NEW: 0x04" in drawn
    assert "NEW --> PLATFORM: 0x05" in drawn


# -- activation and keys ---------------------------------------------------------------------------
async def test_activation_is_answered_by_a_command_of_its_own(start: Start) -> None:
    run = await start()
    client = await run.client("gbt32960")
    client.send(ACTIVATION)
    await client.expect(ACTIVATED)
    client.send(ACTIVATED[:3] + b"\x01" + ACTIVATED[4:-1] + bytes((ACTIVATED[-1] ^ 0xFF,)))  # its reply to 0x0A
    client.send(login(CHIP_VIN, 25))
    await client.expect(spec_reply(login(CHIP_VIN, 25), 1))
    assert await run.kept() == [("", ACTIVATION), ("", login(CHIP_VIN, 25))]
    first = (await run.events())[0]
    assert (first.event, first.cause, first.vin, first.detail) == (
        "activation", "activated", CHIP_VIN, "chip CHIP123456789012"
    )  # fmt: skip


async def test_activation_is_answered_once_durable(start: Start) -> None:
    run = await start()
    client = await run.client("gbt32960")
    heartbeat = build_frame(25, 0x07, 0xFE, CHIP_VIN, 1, b"")
    run.journal.gate.clear()
    client.send(ACTIVATION + heartbeat)
    await client.expect(spec_reply(heartbeat, 1, b""))  # overtakes, as it is not journaled
    run.journal.gate.set()
    await client.expect(ACTIVATED)


@pytest.mark.parametrize(
    ("section", "cause"),
    [({"registry": "allowlist"}, "unknown_vin"), ({"gbt32960": {"activation": "refuse"}}, "refused")],
)
async def test_activation_refused(start: Start, section: dict[str, object], cause: str) -> None:
    run = await start(MemoryDirectory({VIN}), **section)
    client = await run.client("gbt32960")
    client.send(ACTIVATION)
    await client.expect(not_activated())
    assert await run.kept() == [("", ACTIVATION)]
    assert (await run.told())[0] == ("activation", cause, CHIP_VIN)


async def test_activation_that_does_not_parse(start: Start) -> None:
    run = await start()
    client = await run.client("gbt32960")
    cut = build_frame(25, 0x09, 0xFE, CHIP_VIN, 1, ACTIVATION[24:60])
    sealed = build_frame(25, 0x09, 0xFE, CHIP_VIN, 3, bytes(32))
    old = build_frame(16, 0x09, 0xFE, CHIP_VIN, 1, ACTIVATION[24:-1])
    client.send(cut + sealed + old)
    await client.expect(spec_reply(cut, 6) + spec_reply(sealed, 7, b"") + spec_reply(old, 2))
    assert sorted(reason for reason, _ in await run.kept()) == ["encrypted", "structure", "unknown_command"]


async def test_key_exchange_is_kept_and_answered(start: Start) -> None:
    run = await start()
    client = await run.client("gbt32960")
    client.send(KEY_EXCHANGE)
    await client.expect(spec_reply(KEY_EXCHANGE, 1, b""))
    assert await run.kept() == [("", KEY_EXCHANGE)]


# -- flags of the 2025 edition ---------------------------------------------------------------------
async def test_damage_has_a_flag_of_its_own_in_2025(start: Start) -> None:
    run = await start(gbt32960={"ack": "errors-only"})
    client = await run.vehicle(edition=25)
    bad = broken(report(edition=25))
    client.send(report(edition=25) + bad + broken(report()))
    await client.expect(spec_reply(bad, 6) + spec_reply(broken(report()), 2))


async def test_a_query_that_comes_up_is_no_command(start: Start) -> None:
    run = await start()
    client = await run.vehicle()
    query = build_frame(16, 0x80, 0xFE, VIN, 1, TIME + b"\x01\x01")
    late = build_frame(16, 0x80, 0x01, VIN, 1, TIME)  # an answer that nobody waits for
    client.send(query + late + report())
    await client.expect(spec_reply(query, 2) + spec_reply(report(), 1))
    assert sorted(reason for reason, _ in await run.kept()) == ["", "", "unknown_command"]


# -- the same VIN twice ----------------------------------------------------------------------------
async def test_same_vin_replaces(start: Start) -> None:
    run = await start()
    old = await run.vehicle()
    new = await run.vehicle()
    assert await old.rest() == b""
    peer = "{}:{}".format(*new.writer.get_extra_info("sockname"))
    events = await run.events()
    assert [(one.event, one.by_peer) for one in events] == [
        ("connected", ""), ("replaced", peer), ("connected", "")
    ]  # fmt: skip


@pytest.mark.parametrize("edition", [16, 25])
async def test_same_vin_may_be_refused(start: Start, edition: int) -> None:
    run = await start(gbt32960={"same_vin": "refuse"})
    old = await run.vehicle(edition=edition)
    new = await run.client("gbt32960")
    new.send(login(edition=edition))
    await new.expect(spec_reply(login(edition=edition), 3))
    old.send(login(edition=edition))  # its own once more is no second one
    await old.expect(spec_reply(login(edition=edition), 1))
    old.send(logout(edition=edition))
    await old.expect(spec_reply(logout(edition=edition), 1))
    new.send(login(edition=edition))
    await new.expect(spec_reply(login(edition=edition), 1))
    assert [reason for reason, _ in await run.kept()].count("vin_in_use") == 1
    assert await run.told() == [
        ("connected", "", VIN), ("refused", "vin_in_use", VIN), ("connected", "", VIN)
    ]  # fmt: skip


async def test_a_platform_carries_many_and_logs_out(start: Start) -> None:
    run = await start(gbt32960={"platform_users": {"city": SecretStr("secret")}})
    client = await run.client("gbt32960")
    logout_2025 = build_frame(25, 0x06, 0xFE, "PLATFORM000000001", 1, TIME + b"\0\1")
    day = [platform_login(edition=25)]
    for vin in (VIN, OTHER):
        day += [login(vin, 25), report(vin, 25), build_frame(25, 0xC0, 0xFE, vin, 1, TIME), logout(vin, 25)]
    day.append(logout_2025)
    client.send(b"".join(day))
    await client.expect(b"".join(spec_reply(one, 1) for one in day))
    client.close()
    await run.until(lambda: run.gateway._connections.count == 0)

    async def told() -> bool:
        return await run.told() == [
            ("connected", "", "PLATFORM000000001"), ("closed", "logout", "PLATFORM000000001")
        ]  # fmt: skip

    await run.until(told)
