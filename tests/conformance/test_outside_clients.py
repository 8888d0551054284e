"""Clients that others wrote, doing all that the door serves: paho, aiomqtt, gmqtt, MQTT.js, mosquitto_pub and _sub."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.gbt32960.frame import build_frame
from schemas.mqtt.topics import downlink, uplink
from schemas.mqtt.wire import Code
from services.store.commands import MemoryCommands
from services.store.directory import MemoryDirectory
from tests.conformance.drivers import DRIVERS, Driver, MqttJs, Options, Tap, needed
from tests.conformance.talking import OWN, ask
from tests.gateway.certs import make
from tests.gateway.playing import OTHER, PATIENCE_S, VIN, Running, Start, report

pytestmark = pytest.mark.slow

MQTT_JS = "mqtt@5.16.0"
QUICK = {"commands": {"poll_s": 0.01}}
Open = Callable[..., Awaitable[Driver]]


@pytest.fixture(scope="session")
def mqtt_js(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MQTT.js, by npm into a folder of its own."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("MQTT.js needs node and npm (Debian: apt install nodejs npm)")
    folder = tmp_path_factory.mktemp("npm")
    line = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", MQTT_JS]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm could not fetch {MQTT_JS}: no answer in 60 s")
    if done.returncode:
        pytest.skip(f"npm could not fetch {MQTT_JS}: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "node_modules/mqtt"


@pytest.fixture(params=list(DRIVERS))
def kind(request: pytest.FixtureRequest) -> type[Driver]:
    needed(request.param)
    if request.param == MqttJs.name:
        MqttJs.module = request.getfixturevalue("mqtt_js")
    return DRIVERS[request.param]


@pytest.fixture
async def client(kind: type[Driver]) -> AsyncIterator[Open]:
    """Make a client of ``kind``, not yet connected; it is closed at the end."""
    made: list[Driver] = []

    async def make_one(run: Running, version: int, **more: Any) -> Driver:
        host, port = more.pop("address", None) or run.gateway.addresses["mqtt_tls" if more.get("tls") else "mqtt"]
        made.append(kind(Options(host, port, version, **more)))
        return made[-1]

    yield make_one
    for one in made:
        with contextlib.suppress(TimeoutError):  # some wait for acknowledgements that a failed test holds back
            await asyncio.wait_for(one.close(), 30)


@pytest.fixture
async def tap() -> AsyncIterator[Tap]:
    made = Tap()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make(tmp_path_factory.mktemp("certs"))


def door_tls(certs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"port": 0, "cert_file": certs["cert_file"], "key_file": certs["key_file"]} | more


both = pytest.mark.parametrize("version", [4, 5])


async def is_kept(run: Running, frames: list[bytes]) -> None:
    """Wait until these frames, and no others, are durable; each at least once."""

    async def there() -> bool:
        return {frame for reason, frame in await run.kept() if not reason} == set(frames)

    await run.until(there)
    assert [reason for reason, _ in await run.kept() if reason] == []


# -- up --------------------------------------------------------------------------------------------
@both
async def test_publishes_at_every_qos(start: Start, client: Open, version: int) -> None:
    run = await start()
    one = await client(run, version)
    assert await one.connect() == 0
    frames = [report(second=k) for k in range(12)]
    for k, frame in enumerate(frames):
        assert await one.publish(uplink(VIN), frame, k % 3) == 0
    await is_kept(run, frames)


async def test_topic_aliases(start: Start, client: Open) -> None:
    run = await start()
    one = await client(run, 5)
    assert await one.connect() == 0
    frames = [report(second=k) for k in range(3)]
    await one.publish(uplink(VIN), frames[0], 1, alias=3)
    for frame in frames[1:]:
        await one.publish("", frame, 1, alias=3)
    await is_kept(run, frames)


async def test_receive_maximum(start: Start, client: Open, tap: Tap, kind: type[Driver]) -> None:
    """paho and aiomqtt keep to it by an option, the user of MQTT.js has to, gmqtt raises beyond one less."""
    run = await start(mqtt={"receive_maximum": 4})
    one = await client(run, 5, address=await tap.open(run.gateway.addresses["mqtt"]), inflight=4)
    assert await one.connect() == 0
    run.journal.gate.clear()
    frames = [report(second=k) for k in range(20)]
    most = {"MQTT.js": 4, "gmqtt": 3}.get(kind.name, 20)
    room = asyncio.Semaphore(most)

    async def publish(frame: bytes) -> None:
        async with room:
            await one.publish(uplink(VIN), frame, 1)

    publishing = [asyncio.create_task(publish(frame)) for frame in frames]
    await run.until(lambda: len(tap.publishes(0)) == min(most, 4))
    run.journal.gate.set()
    await asyncio.gather(*publishing)
    await is_kept(run, frames)
    assert (len(tap.sent), len(tap.publishes(0))) == (1, 20)


@both
@pytest.mark.parametrize("qos", [1, 2])
async def test_reconnects_and_sends_again(
    start: Start, client: Open, tap: Tap, kind: type[Driver], version: int, qos: int
) -> None:
    """The wire is cut before an acknowledgement; no frame is lost, and what is sent again (paho: with DUP) is taken."""
    if kind.resends_not:
        pytest.skip(f"{kind.name} {kind.resends_not}")
    run = await start()
    one = await client(run, version, address=await tap.open(run.gateway.addresses["mqtt"]), reconnect=True)
    assert await one.connect() == 0
    run.journal.gate.clear()
    frames = [report(second=k) for k in range(3)]
    publishing = [asyncio.create_task(one.publish(uplink(VIN), frame, qos)) for frame in frames]
    await run.until(lambda: len(tap.publishes(0)) == 3)
    tap.cut()
    run.journal.gate.set()
    await asyncio.gather(*publishing)
    await is_kept(run, frames)
    assert tap.publishes(0) == [0x30 | qos << 1] * 3
    assert tap.publishes(1)[:3] == [0x30 | kind.dup | qos << 1] * 3


# -- who may ---------------------------------------------------------------------------------------
@both
async def test_a_wrong_password(start: Start, client: Open, version: int) -> None:
    run = await start(MemoryDirectory(passwords={VIN: "right"}), mqtt={"auth": "password"})
    wrong = await client(run, version, client_id="phone", username=VIN, password="wrong")
    # paho says 0x86 for return code 4 of 3.1.1, too
    assert await wrong.connect() in ((Code.BAD_USER_NAME_OR_PASSWORD,) if version == 5 else (4, 0x86))
    right = await client(run, version, client_id="phone", username=VIN, password="right")
    assert await right.connect() == 0


@both
async def test_tls(start: Start, client: Open, certs: dict[str, Any], version: int) -> None:
    run = await start(mqtt={"tls": door_tls(certs)})
    one = await client(run, version, tls={"ca": certs["client_ca_file"]})
    assert await one.connect() == 0
    await one.publish(uplink(VIN), report(), 1)
    await is_kept(run, [report()])


@both
async def test_tls_with_a_client_certificate(start: Start, client: Open, certs: dict[str, Any], version: int) -> None:
    tls = door_tls(certs, client_certificate="required", client_ca_file=certs["client_ca_file"])
    run = await start(mqtt={"auth": "certificate", "tls": tls})
    mine = {"ca": certs["client_ca_file"], **certs["vehicles"][VIN]}
    one = await client(run, version, tls=mine)
    assert await one.connect() == 0
    await one.publish(uplink(VIN), report(), 1)
    await is_kept(run, [report()])
    other = await client(run, version, client_id=OTHER, tls=mine)
    assert await other.connect() in ((Code.NOT_AUTHORIZED,) if version == 5 else (5, 0x87))


# -- sessions --------------------------------------------------------------------------------------
@both
async def test_a_will(start: Start, client: Open, version: int) -> None:
    run = await start()
    one = await client(run, version, will=("vehicles/offline", b"gone"))
    assert await one.connect() == 0
    await one.vanish()

    async def there() -> bool:
        return ("will", "peer", VIN) in await run.told()

    await run.until(there)
    assert (await run.events())[-1].detail == "vehicles/offline"


@both
async def test_goodbye(start: Start, client: Open, version: int) -> None:
    run = await start()
    one = await client(run, version, will=("vehicles/offline", b"gone"))
    assert await one.connect() == 0
    await one.close()

    async def there() -> bool:
        return ("closed", "goodbye", VIN) in await run.told()

    await run.until(there)
    assert [event for event, _, _ in await run.told() if event == "will"] == []


@both
async def test_a_take_over(start: Start, client: Open, kind: type[Driver], version: int) -> None:
    run = await start()
    old, new = await client(run, version), await client(run, version)
    assert await old.connect() == 0
    assert await new.connect() == 0
    code = await old.ended()
    if version == 5 and kind.name in ("paho", "MQTT.js"):  # the others do not say
        assert code == Code.SESSION_TAKEN_OVER
    await new.publish(uplink(VIN), report(), 1)
    await is_kept(run, [report()])


# -- down ------------------------------------------------------------------------------------------
@both
async def test_a_command_comes_down(start: Start, client: Open, version: int) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    one = await client(run, version)
    assert await one.connect() == 0
    assert await one.subscribe(OWN, 1) == [1]
    number = await ask(queue)
    topic, frame = await one.message()
    assert topic == downlink(VIN)
    await run.until(lambda: bool(queue.rows[number]["delivered"]))  # its PUBACK
    answer = build_frame(
        16 if frame[0] == 0x23 else 25, frame[2], 1, frame[4:21], 1, frame[24:30] + b"\x01\x02\x00\x0a"
    )
    await one.publish(uplink(VIN), answer, 1)
    await run.until(lambda: queue.rows[number]["state"] == "answered")


# -- mosquitto_pub and mosquitto_sub ---------------------------------------------------------------
def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt install mosquitto-clients)")
    return found


async def mosquitto(
    run: Running, name: str, version: int, *more: str, door: str = "mqtt"
) -> asyncio.subprocess.Process:
    host, port = run.gateway.addresses[door]
    return await asyncio.create_subprocess_exec(
        program(name), "-h", host, "-p", str(port), "-V", {4: "mqttv311", 5: "mqttv5"}[version], *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip


async def finished(process: asyncio.subprocess.Process) -> tuple[int, bytes]:
    """(exit code, all that it said)."""
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out + err


@both
@pytest.mark.parametrize("qos", ["0", "1", "2"])
async def test_mosquitto_pub(start: Start, tmp_path: Path, version: int, qos: str) -> None:
    run = await start()
    (tmp_path / "frame").write_bytes(report())
    more = ["-D", "publish", "topic-alias", "2"] if version == 5 else []
    line = ["-i", VIN, "-t", uplink(VIN), "-q", qos, "-f", str(tmp_path / "frame"), *more]
    assert await finished(await mosquitto(run, "mosquitto_pub", version, *line)) == (0, b"")
    await is_kept(run, [report()])


@both
async def test_mosquitto_pub_with_a_wrong_password(start: Start, version: int) -> None:
    run = await start(MemoryDirectory(passwords={VIN: "right"}), mqtt={"auth": "password"})
    line = ["-i", "phone", "-u", VIN, "-t", uplink(VIN), "-q", "1", "-m", "x"]
    code, said = await finished(await mosquitto(run, "mosquitto_pub", version, *line, "-P", "wrong"))
    assert code != 0
    assert b"password" in said.lower() or b"not authorised" in said.lower()
    code, said = await finished(await mosquitto(run, "mosquitto_pub", version, *line, "-P", "right"))
    assert (code, said) == (0, b"")


@both
@pytest.mark.parametrize("mutual", [False, True])
async def test_mosquitto_pub_over_tls(
    start: Start, certs: dict[str, Any], tmp_path: Path, version: int, mutual: bool
) -> None:
    more = {"client_certificate": "required", "client_ca_file": certs["client_ca_file"]} if mutual else {}
    run = await start(mqtt={"auth": "certificate" if mutual else "open", "tls": door_tls(certs, **more)})
    (tmp_path / "frame").write_bytes(report())
    mine = certs["vehicles"][VIN]
    shown = ["--cert", mine["cert"], "--key", mine["key"]] if mutual else []
    line = ["-i", VIN, "-t", uplink(VIN), "-q", "1", "-f", str(tmp_path / "frame"), "--cafile", certs["client_ca_file"]]
    process = await mosquitto(run, "mosquitto_pub", version, *line, *shown, door="mqtt_tls")
    assert await finished(process) == (0, b"")
    await is_kept(run, [report()])


@both
async def test_mosquitto_sub_receives_a_command(start: Start, version: int) -> None:
    queue = MemoryCommands()
    run = await start(queue=queue, **QUICK)
    line = ["-i", VIN, "-t", OWN, "-q", "2", "-C", "1", "-F", "%t %q %x"]
    process = await mosquitto(run, "mosquitto_sub", version, *line)
    number = await ask(queue)
    code, said = await finished(process)
    assert code == 0
    topic, qos, payload = said.decode().split()
    assert (topic, qos) == (downlink(VIN), "1")
    assert bytes.fromhex(payload)[4:21] == VIN.encode()
    await run.until(lambda: bool(queue.rows[number]["delivered"]))


@both
async def test_mosquitto_sub_to_what_is_not_its_own(start: Start, version: int) -> None:
    run = await start()
    code, said = await finished(await mosquitto(run, "mosquitto_sub", version, "-i", VIN, "-t", "#", "-C", "1"))
    assert b"denied" in said, (code, said)


@both
async def test_mosquitto_sub_vanishes_and_is_taken_over(start: Start, version: int) -> None:
    run = await start()
    line = ["-i", VIN, "-t", OWN, "-q", "1", "--will-topic", "vehicles/offline", "--will-payload", "gone"]
    first = await mosquitto(run, "mosquitto_sub", version, *line)

    def is_there(peers: int) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return [event for event, _, _ in await run.told()].count("connected") == peers

        return look

    await run.until(is_there(1))
    second = await mosquitto(run, "mosquitto_sub", version, *line)
    await run.until(is_there(2))
    with contextlib.suppress(ProcessLookupError):  # told why, it has gone; if not, it would come back
        first.kill()
    await first.wait()

    async def replaced() -> bool:
        told = await run.told()
        return ("replaced", "taken_over", VIN) in told and ("will", "taken_over", VIN) in told

    await run.until(replaced)
    second.kill()
    await second.wait()

    async def gone() -> bool:
        return [event for event, _, _ in await run.told()].count("will") >= 2

    await run.until(gone)
