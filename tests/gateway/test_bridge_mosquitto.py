"""The bridge behind a real broker, Debian's mosquitto: versions, QoS, sharing, TLS, and the broker's end."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.mqtt.topics import TELEMETRY, json_uplink, uplink
from tests.gateway.broker import Mosquitto, mosquitto_program
from tests.gateway.certs import make
from tests.gateway.playing import OTHER, PATIENCE_S, VIN, Running, Start, report
from tests.gateway.storing import dated, ledger, stored

aiomqtt = pytest.importorskip("aiomqtt", reason="aiomqtt is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        mosquitto_program() is None, reason="mosquitto is not installed (Debian: apt install mosquitto)"
    ),
]

COUNT = 200
FRAMES = [report(second=k % 60, body=k.to_bytes(2, "big") + bytes(58)) for k in range(COUNT)]
Begin = Callable[..., Awaitable[Mosquitto]]


@pytest.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[Begin]:
    running: list[Mosquitto] = []

    async def begin(*lines: str) -> Mosquitto:
        program = mosquitto_program()
        assert program is not None
        made = Mosquitto(program, tmp_path, *lines)
        running.append(made)
        await made.start()
        return made

    yield begin
    for one in running:
        await one.stop()


def bridge(broker: Mosquitto, **more: Any) -> dict[str, Any]:
    return {"url": f"mqtt://127.0.0.1:{broker.port}", "retry_first_s": 0.02, "retry_max_s": 0.2} | more


async def ready(run: Running) -> None:
    assert run.gateway.bridge is not None
    lines = run.gateway.bridge.lines
    await run.until(lambda: all(line.established for line in lines))


async def send(broker: Mosquitto, frames: Sequence[bytes], qos: int = 1, topic: str = uplink(VIN), **more: Any) -> None:
    async with aiomqtt.Client("127.0.0.1", broker.port, **more) as client:
        for frame in frames:
            await client.publish(topic, frame, qos=qos, timeout=PATIENCE_S)


async def count(run: Running) -> int:
    return len(await run.kept())


async def there(run: Running, expected: int) -> None:
    async def enough() -> bool:
        return await count(run) >= expected

    await run.until(enough)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_every_message_comes_through(start: Start, mosquitto: Begin, version: str, qos: int) -> None:
    broker = await mosquitto()
    run = await start(bridge=bridge(broker, version=version, qos=qos))
    await ready(run)
    await send(broker, FRAMES, qos)
    await send(broker, [b"{}"], qos, json_uplink(OTHER, TELEMETRY))
    await there(run, COUNT + 1)
    assert sorted(await run.kept()) == sorted([*(("", frame) for frame in FRAMES), ("", OTHER.encode() + b"{}")])


async def test_two_connections_share(start: Start, mosquitto: Begin) -> None:
    broker = await mosquitto()
    run = await start(bridge=bridge(broker, connections=2))
    await ready(run)
    await send(broker, FRAMES)
    await there(run, COUNT)
    assert sorted(await run.kept()) == sorted(("", frame) for frame in FRAMES)  # each once
    await run.gateway.drain(5.0)


async def test_what_was_not_durable_comes_again(start: Start, mosquitto: Begin) -> None:
    """The broker ends while the journal is away: after its return each frame is stored, and once."""
    broker = await mosquitto()
    run = await start(bridge=bridge(broker))
    await ready(run)
    frames = [dated(second) for second in range(COUNT)]
    run.journal.gate.clear()
    await send(broker, frames)
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    await broker.stop()
    run.journal.gate.set()
    await broker.start()

    async def all_acknowledged() -> bool:
        return await count(run) > COUNT

    await run.until(all_acknowledged)  # some of them twice in the journal
    await run.gateway.drain(PATIENCE_S)
    sink = await stored(run)
    assert ledger(sink, "rows") == COUNT
    assert ledger(sink, "duplicates") > 0


async def test_the_broker_is_killed_and_comes_back(start: Start, mosquitto: Begin) -> None:
    broker = await mosquitto()
    run = await start(bridge=bridge(broker))
    await ready(run)
    await send(broker, FRAMES[:50])
    await there(run, 50)
    await broker.stop(kill=True)
    await broker.start()
    assert run.gateway.bridge is not None

    async def twice() -> bool:
        return [event for event, _, _ in await run.told()].count("connected") == 2

    await run.until(twice)
    await send(broker, FRAMES[50:])
    await there(run, COUNT)
    assert {frame for _, frame in await run.kept()} == set(FRAMES)


async def test_what_came_while_we_were_away(start: Start, mosquitto: Begin) -> None:
    broker = await mosquitto()
    run = await start(bridge=bridge(broker))
    await ready(run)
    await send(broker, FRAMES[:20])
    await there(run, 20)
    await run.gateway.drain(5.0)
    await send(broker, FRAMES[20:])
    again = await start(bridge=bridge(broker))
    await ready(again)
    await there(again, COUNT - 20)
    assert sorted(await again.kept()) == sorted(("", frame) for frame in FRAMES[20:])

    async def told() -> bool:
        return any("session kept" in one.detail for one in await again.events())

    await again.until(told)


async def test_the_journal_away_leaves_it_with_the_broker(start: Start, mosquitto: Begin) -> None:
    broker = await mosquitto()
    run = await start(bridge=bridge(broker, receive_maximum=20))
    await ready(run)
    run.journal.away = True
    await send(broker, FRAMES)
    await run.until(lambda: int(run.gateway._connections.unacked.sum()) == 20)
    for _ in range(200):
        await asyncio.sleep(0.001)
    assert int(run.gateway._connections.unacked.sum()) == 20  # the broker keeps to receive maximum
    run.journal.away = False
    await there(run, COUNT)
    assert sorted(await run.kept()) == sorted(("", frame) for frame in FRAMES)


async def test_tls_user_and_password(start: Start, mosquitto: Begin, tmp_path: Path) -> None:
    made = make(tmp_path / "certs")
    passwords = tmp_path / "passwords"
    passwords.touch()
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed (Debian: apt install mosquitto)")
    await (await asyncio.create_subprocess_exec(tool, "-b", str(passwords), "ops", "s3cret")).wait()
    for file in (*(tmp_path / "certs").rglob("*"), passwords):
        file.chmod(0o755 if file.is_dir() else 0o644)
    broker = await mosquitto(
        "allow_anonymous false", f"password_file {passwords}", f"cafile {made['client_ca_file']}",
        f"certfile {made['cert_file']}", f"keyfile {made['key_file']}", "require_certificate true",
    )  # fmt: skip
    files = {"ca_file": made["client_ca_file"], "cert_file": made["vehicles"][VIN]["cert"],
             "key_file": made["vehicles"][VIN]["key"]}  # fmt: skip
    url = f"mqtts://localhost:{broker.port}"
    run = await start(bridge=bridge(broker, url=url, username="ops", password="s3cret", **files))
    await ready(run)
    tls = aiomqtt.TLSParameters(files["ca_file"], files["cert_file"], files["key_file"])
    async with aiomqtt.Client("localhost", broker.port, username="ops", password="s3cret", tls_params=tls) as client:
        for frame in FRAMES:
            await client.publish(uplink(VIN), frame, qos=1, timeout=PATIENCE_S)
    await there(run, COUNT)
    await run.gateway.drain(5.0)

    wrong = await start(bridge=bridge(broker, url=url, username="ops", password="wrong", **files))

    async def told() -> bool:
        return ("refused", "broker_refused", "") in await wrong.told()

    await wrong.until(told)
    await wrong.gateway.drain(5.0)
