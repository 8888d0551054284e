"""Vehicles on the line: windows, answers in any shape, reconnects, resends, farewells."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from schemas.gbt32960.commands import Ack, Command
from schemas.gbt32960.times import time_bytes
from services.errors import UsageError
from services.fleetsim import simulation as simulation_module
from services.fleetsim.client import ClientSettings
from services.fleetsim.command import simulate
from services.fleetsim.simulation import Simulation, SimulationResult, SimulationSettings
from tests.fleetsim.fake_platform import FakePlatform

pytestmark = pytest.mark.slow

START_S = 1_780_000_000


def settings(platform: FakePlatform, line: dict[str, Any] | None = None, **values: Any) -> SimulationSettings:
    given: dict[str, Any] = {"vehicles": 6, "reports": 20, "speed": None, "start_s": START_S, "seed": 3} | values
    return SimulationSettings(
        line=ClientSettings(mqtt_port=platform.mqtt_port, gbt_port=platform.gbt_port, **(line or {})), **given
    )


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until ``condition`` holds: what is waited for has no event of its own."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def run(platform: FakePlatform, line: dict[str, Any] | None = None, **values: Any) -> SimulationResult:
    return await Simulation(settings(platform, line, **values)).run()


async def test_every_report_is_sent_once_and_answered() -> None:
    async with FakePlatform() as platform:
        result = await run(platform)
    assert result.complete
    assert (result.sent, result.acked, result.resent, result.expected_stored) == (120, 120, 0, 120)
    assert set(platform.counts().values()) == {1}
    assert len(platform.counts()) == 120
    assert platform.versions == {4, 5}
    assert len(platform.logins) == 3  # half of the vehicles
    assert platform.logouts == 6
    assert result.ack_p50_ms is not None


async def test_a_vehicle_whose_days_are_given_logs_in_and_out_on_them() -> None:
    async with FakePlatform() as platform:
        await run(platform, mqtt_share=0.0, vehicles=3)
    # three vehicles share the ten seconds of a period: 0, 3, 6
    firsts = {time_bytes(START_S + phase) for phase in (0, 3, 6)}
    lasts = {time_bytes(START_S + phase + 19 * 10 + 1) for phase in (0, 3, 6)}
    assert {frame[24:30] for frame in platform.logins} == firsts
    assert {frame[24:30] for frame in platform.farewells} == lasts


@pytest.mark.parametrize("pieces", [1, 5, 33])
async def test_answers_cut_into_pieces(pieces: int) -> None:
    async with FakePlatform(pieces=pieces) as platform:
        result = await run(platform, reports=7)
    assert (result.complete, result.acked, result.resent) == (True, 42, 0)
    assert result.stats["unexpected"] == 0


async def test_answers_out_of_order() -> None:
    async with FakePlatform(reverse=True) as platform:
        result = await run(platform)
    assert (result.complete, result.acked, result.resent, result.stats["unexpected"]) == (True, 120, 0, 0)


async def test_long_replies_of_2016_annex_b() -> None:
    async with FakePlatform(style="long") as platform:
        result = await run(platform, mqtt_share=0.0)
    assert (result.complete, result.acked) == (True, 120)


async def test_error_replies_end_a_message_and_are_counted() -> None:
    async with FakePlatform(ack=Ack.ERROR) as platform:
        result = await run(platform, mqtt_share=0.0)
    assert (result.complete, result.acked, result.refused) == (True, 120, 120)


@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_what_was_not_answered_is_sent_again_after_the_connection_is_lost(share: float) -> None:
    async with FakePlatform(on_message=lambda count: count % 13 != 0 or count > 100) as platform:
        result = await run(platform, mqtt_share=share)
    counts = platform.counts()
    assert result.complete
    assert len(counts) == 120
    assert result.drops > 0
    assert result.resent > 0
    assert sum(counts.values()) <= result.sent + result.resent
    if share == 1.0:
        again = [one for one in platform.received if one.dup]
        assert again
        first = {}
        for one in platform.received:
            assert one.dup or (one.vin, one.frame) not in first, "a repeated PUBLISH carries DUP"
            first[one.vin, one.frame] = one


async def test_resent_as_reissue_when_asked() -> None:
    async with FakePlatform(on_message=lambda count: count != 15) as platform:
        result = await run(platform, {"reissue": True}, mqtt_share=0.0, vehicles=1)
    assert result.complete
    kinds = {one.frame[2] for one in platform.received}
    assert kinds == {Command.REALTIME, Command.REISSUE}
    for one in platform.received:
        check = 0
        for byte in one.frame[2:-1]:
            check ^= byte
        assert check == one.frame[-1]


async def test_platform_restart_in_the_middle_loses_nothing() -> None:
    platform = FakePlatform()
    halfway = asyncio.Event()

    def note(count: int) -> bool:
        if count == 150:
            halfway.set()
        return not halfway.is_set() or platform.connections > 20

    platform.on_message = note
    await platform.start()
    simulation = Simulation(settings(platform, vehicles=20))
    running = asyncio.create_task(simulation.run())
    await halfway.wait()
    await platform.stop()
    await platform.start()
    platform.on_message = lambda _count: True
    result = await running
    await platform.stop()
    assert result.complete
    assert result.acked == 400
    assert len(platform.counts()) == 400


async def test_never_more_than_the_window_unanswered() -> None:
    async with FakePlatform() as platform:
        simulation = Simulation(settings(platform, {"window": 3}, vehicles=2))
        seen: list[int] = []

        def look(_count: int) -> bool:
            seen.extend(vehicle.unanswered for vehicle in simulation.vehicles)  # type: ignore[union-attr]
            return True

        platform.on_message = look
        await simulation.run()
    assert max(seen) <= 3


async def test_stop_waits_for_what_is_in_the_air() -> None:
    async with FakePlatform() as platform:
        simulation = Simulation(settings(platform, reports=None, vehicles=4))
        platform.on_message = lambda count: simulation.stop() is None if count == 100 else True
        result = await simulation.run()
    assert result.complete
    assert result.sent == result.acked == len(platform.counts())
    assert platform.logouts == 4


async def test_stopped_early_the_expected_rows_are_of_what_was_answered() -> None:
    async with FakePlatform() as platform:
        simulation = Simulation(settings(platform, reports=None, vehicles=6, faults={"duplicate": 0.1, "loss": 0.05}))
        platform.on_message = lambda count: simulation.stop() is None if count == 1000 else True
        result = await simulation.run()
    assert result.complete
    assert result.acked == len(platform.received)
    assert result.expected_stored == len(platform.counts()) < result.acked


async def test_truth_ends_with_the_last_report_sent(tmp_path: Path) -> None:
    async with FakePlatform() as platform:
        truth = tmp_path / "truth.jsonl"
        simulation = Simulation(settings(platform, reports=None, vehicles=2, truth=truth))
        platform.on_message = lambda count: simulation.stop() is None if count == 300 else True
        await simulation.run()
    last = {one.vin: max(x.frame[24:30] for x in platform.received if x.vin == one.vin) for one in platform.received}
    for line in map(orjson.loads, truth.read_bytes().splitlines()):
        assert time_bytes(line["end_s"]) <= last[line["vin"]]
        if line["what"] == "vehicle":
            assert time_bytes(line["end_s"]) == last[line["vin"]]


async def test_mqtt_5_receive_maximum_outranks_the_window() -> None:
    async with FakePlatform(receive_maximum=2) as platform:
        simulation = Simulation(settings(platform, {"window": 8}, vehicles=1, mqtt_share=1.0, mqtt_version="5"))
        seen: list[int] = []
        platform.on_message = lambda _count: seen.append(simulation.vehicles[0].unanswered) is None  # type: ignore[union-attr]
        result = await simulation.run()
    assert result.complete
    assert max(seen) <= 2


async def test_a_platform_that_never_answers_ends_after_drain() -> None:
    async with FakePlatform() as platform:
        platform.on_message = lambda _count: False
        result = await run(platform, vehicles=2, duration_s=0.1, drain_s=0.1)
    assert not result.complete
    assert result.acked == 0


async def test_nobody_listens() -> None:
    line = ClientSettings(mqtt_port=1, gbt_port=1)
    result = await Simulation(
        SimulationSettings(vehicles=2, reports=2, speed=None, start_s=START_S, duration_s=0.2, drain_s=0.1, line=line)
    ).run()
    assert result.sent == 0
    assert result.stats["failures"] >= 2
    assert "127.0.0.1:1" in result.last_error


async def test_paced_by_the_data_clock() -> None:
    async with FakePlatform() as platform:
        # 20 reports of 10 s at 1000-fold speed last 0.19 s; without pacing the window would let them go at once
        result = await run(platform, {"window": 100}, vehicles=2, speed=1000.0)
    assert result.complete
    assert result.last_acked_monotonic is not None
    assert result.first_sent_monotonic is not None
    assert result.last_acked_monotonic - result.first_sent_monotonic > 0.15


async def test_paced_over_many_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a chunk that is due must not carry the next chunk along (seen with 5,000 vehicles)."""
    monkeypatch.setattr(simulation_module, "CHUNK_BYTES", 420 * 3 * 4)  # of four, four and one report
    async with FakePlatform() as platform:
        result = await run(platform, {"window": 7}, vehicles=3, reports=9, speed=400.0)
    assert result.complete
    assert len(platform.received) == len(platform.counts()) == 27
    for vin in {one.vin for one in platform.received}:
        times = [one.frame[24:30] for one in platform.received if one.vin == vin]
        assert times == [time_bytes(START_S + phase_of(vin) + 10 * k) for k in range(9)]


def phase_of(vin: str) -> int:
    """Three vehicles report a third of the period after each other."""
    return int(vin[-6:]) * 10 // 3


async def test_heartbeat_and_ping_when_idle() -> None:
    async with FakePlatform() as platform:
        simulation = Simulation(settings(platform, {"idle_s": 10.0}, vehicles=2, period_s=3600, speed=1.0))
        done = asyncio.Event()
        platform.on_message = lambda count: done.set() is None if count == 1 else True
        running = asyncio.create_task(simulation.run())
        await done.wait()
        await until(lambda: simulation.stats.connected == 2)
        for vehicle in simulation.vehicles:
            vehicle.watch(time.monotonic() + 11)
        await until(lambda: platform.beats == 2)
        simulation.stop()
        result = await running
    assert result.complete
    assert result.stats["unexpected"] == 0


async def test_aiomqtt_vehicles() -> None:
    async with FakePlatform() as platform:
        result = await run(platform, {"password": "secret"}, vehicles=2, reports=3, mqtt_share=1.0, client="aiomqtt")
    assert result.complete
    assert len(platform.counts()) == 6
    assert platform.passwords == {b"secret"}


def test_simulate_from_plain_code(tmp_path: Path) -> None:
    platform = FakePlatform()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(platform.start(), loop).result()
    ports = {"mqtt_port": platform.mqtt_port, "gbt_port": platform.gbt_port}
    shown: list[Any] = []
    truth = tmp_path / "truth.jsonl"
    result = simulate(
        vehicles=4,
        reports=10,
        speed=None,
        start_s=START_S,
        truth=truth,
        progress=shown.append,
        progress_every_s=0.01,
        **ports,
    )
    asyncio.run_coroutine_threadsafe(platform.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert result.complete
    assert len(platform.counts()) == 40
    lines = [orjson.loads(line) for line in truth.read_bytes().splitlines()]
    assert [line["what"] for line in lines].count("vehicle") == 4
    assert orjson.loads(orjson.dumps(result.as_dict()))["sent"] == 40


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"vehicles": 0}, "vehicles"),
        ({"mqtt_share": 1.5}, "mqtt_share"),
        ({"speed": 0.0}, "speed"),
        ({"mqtt_version": "3.1"}, "mqtt_version"),
        ({"faults": "everything"}, "preset"),
        ({"faults": {"loss": 2.0}}, "loss"),
        ({"client": "paho"}, "client"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        SimulationSettings(**values)
