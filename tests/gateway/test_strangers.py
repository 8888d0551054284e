"""What connections that have not said who they are leave behind: a budget for it, and none of it silent."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from services.gateway.accepting import Crowd
from services.gateway.strangers import BURST_S, TOGETHER, Strangers
from services.settings import Limits
from tests.gateway.playing import OTHER, Start, broken, login, report
from tests.gateway.test_gbt import spec_reply


def counted(name: str, reason: str) -> float:
    labels = {"door": "gbt32960", "reason": reason}
    return REGISTRY.get_sample_value(f"nevstream_gateway_frames_{name}_total", labels) or 0.0


def test_a_budget_by_address_and_for_all() -> None:
    strangers = Strangers(2.0, 0.0)
    at_once = int(2 * BURST_S)
    assert sum(strangers.keeps("a", 0.0) for _ in range(100)) == at_once
    assert sum(strangers.keeps("b", 0.0) for _ in range(100)) == at_once
    assert sum(strangers.keeps("a", 1.0) for _ in range(100)) == 2
    everybody = int(TOGETHER * (at_once + 2)) - 2 * at_once - 2
    assert sum(strangers.keeps(f"c{k}", 1.0) for k in range(1000)) == everybody
    assert all(strangers.keeps("", 1.0) for _ in range(1000))  # gateway.limits.unlimited_addresses
    assert all(Strangers(0.0, 0.0).tells("a", 0.0) for _ in range(1000))


def test_how_many_were_passed_over_is_told_now_and_then() -> None:
    strangers = Strangers(1.0, 0.0)
    assert [strangers.passed_over("a", at) for at in (0.0, 1.0, 9.0, 10.0, 11.0)] == [1, 0, 0, 3, 0]


def test_an_address_that_sends_nothing_good_waits_longer_each_time() -> None:
    crowd = Crowd(Limits(connects_per_address_per_s_max=500))
    assert crowd.refuses("a", 0.0) == ""
    bad = 0
    while crowd.refuses("a", 0.0) == "":
        crowd.penalize("a")
        bad += 1
    assert bad < 15  # not 476, as if each counted for 20
    crowd._buckets["a"].tokens = 1.0
    assert crowd.refuses("a", 0.0) == ""
    crowd.penalize("a")
    assert crowd.refuses("a", 9.9) == "connect_rate"
    assert crowd.refuses("a", 10.1) == ""


def test_vehicles_behind_the_same_address_do_not_pay_for_one_that_misbehaves() -> None:
    crowd = Crowd(Limits(connects_per_address_per_s_max=500))
    crowd.refuses("nat", 0.0)
    crowd.came("nat")
    crowd.identified("nat")
    for _ in range(100):
        assert crowd.refuses("nat", 0.0) == ""
        crowd.penalize("nat")
    crowd.went("nat", identified=True)
    assert (crowd._open, crowd._identified) == ({}, {})


@pytest.mark.slow
async def test_garbage_beyond_the_budget_is_counted_and_told(start: Start) -> None:
    run = await start(limits={"strangers_kept_per_s_max": 1, "connects_per_address_per_s_max": 0})
    refused, unkept = counted("refused", "garbage"), counted("not_kept", "garbage")
    vehicle = await run.vehicle()
    for _ in range(25):
        client = await run.client("gbt32960")
        client.send(bytes(20_000))
        assert await client.rest() == b""
    await run.gateway._committer.flushed()
    kept = [reason for reason, _ in await run.kept()].count("garbage")
    beyond = counted("not_kept", "garbage") - unkept
    assert 10 <= kept < counted("refused", "garbage") - refused == kept + beyond
    assert ("error", "not_kept", "") in await run.told()
    for k in range(15):  # whoever has been identified is not measured
        vehicle.send(broken(report(second=k)))
        assert (await vehicle.read(31))[3] == 2
    assert [reason for reason, _ in await run.kept()].count("bad_bcc") == 15


@pytest.mark.slow
async def test_a_refused_login_beyond_the_budget_is_answered(start: Start) -> None:
    run = await start(registry="allowlist", limits={"strangers_kept_per_s_max": 1})
    client = await run.client("gbt32960")
    for k in range(20):
        client.send(login(OTHER, serial=k))
        await client.expect(spec_reply(login(OTHER, serial=k), 2))
    await run.gateway._committer.flushed()
    assert 10 <= [reason for reason, _ in await run.kept()].count("unknown_vin") < 20
    assert counted("not_kept", "unknown_vin") > 0


@pytest.mark.slow
async def test_nothing_but_refused_logins_is_ended(start: Start) -> None:
    run = await start(registry="allowlist", limits={"refused_bytes_max": 65_556})  # 1,024 bytes of a stranger
    client = await run.client("gbt32960")
    client.send(*(login(OTHER, serial=k) for k in range(100)))
    answers = await client.rest()
    assert 15 < len(answers) // 31 <= 100
    assert ("refused", "refused_in_a_row", "") in await run.told()
