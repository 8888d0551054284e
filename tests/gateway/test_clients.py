"""Clients that others wrote publish with QoS 1 and 2 and see their PUBACK: paho, aiomqtt, gmqtt, mosquitto_pub."""

from __future__ import annotations

import asyncio
import shutil
import threading

import pytest

from schemas.mqtt.topics import uplink
from services.store.directory import MemoryDirectory
from tests.gateway.playing import PATIENCE_S, VIN, Running, Start, report

pytestmark = pytest.mark.slow

COUNT = 50
FRAMES = [report(second=k % 60) for k in range(COUNT)]


async def all_there(run: Running) -> None:
    assert sorted(await run.kept()) == sorted(("", frame) for frame in FRAMES)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [4, 5])
async def test_paho(start: Start, version: int, qos: int) -> None:
    paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
    enums = pytest.importorskip("paho.mqtt.enums")
    run = await start(MemoryDirectory(passwords={VIN: "pw"}), mqtt={"auth": "password"})
    host, port = run.gateway.addresses["mqtt"]
    acked: list[int] = []
    subscribed, connected = threading.Event(), threading.Event()

    def work() -> None:
        client = paho.Client(enums.CallbackAPIVersion.VERSION2, "phone", protocol=enums.MQTTProtocolVersion(version))
        client.username_pw_set(VIN, "pw")
        client.on_publish = lambda _c, _u, mid, _code, _p: acked.append(mid)
        client.on_connect = lambda *_: connected.set()
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect(host, port)
        client.loop_start()
        assert connected.wait(PATIENCE_S)
        client.subscribe(f"nev/v1/{VIN}/down/#", 1)
        assert subscribed.wait(PATIENCE_S)
        for sent in [client.publish(uplink(VIN), frame, qos) for frame in FRAMES]:
            sent.wait_for_publish(PATIENCE_S)
            assert sent.is_published()
        client.disconnect()
        client.loop_stop()

    await asyncio.to_thread(work)
    assert len(acked) == COUNT
    await all_there(run)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [4, 5])
async def test_aiomqtt(start: Start, version: int, qos: int) -> None:
    aiomqtt = pytest.importorskip("aiomqtt", reason="aiomqtt is not installed")
    run = await start()
    host, port = run.gateway.addresses["mqtt"]
    async with aiomqtt.Client(host, port, identifier=VIN, protocol=aiomqtt.ProtocolVersion(version)) as client:
        for frame in FRAMES:
            await client.publish(uplink(VIN), frame, qos=qos, timeout=PATIENCE_S)  # returns on PUBACK or PUBCOMP
    await all_there(run)


@pytest.mark.parametrize("qos", [1, 2])
async def test_gmqtt(start: Start, qos: int) -> None:
    gmqtt = pytest.importorskip("gmqtt", reason="gmqtt is not installed")
    run = await start()
    host, port = run.gateway.addresses["mqtt"]
    unacknowledged = gmqtt.storage.PersistentStorage()
    client = gmqtt.Client(VIN, persistent_storage=unacknowledged)
    await client.connect(host, port, keepalive=60)
    for frame in FRAMES:
        client.publish(uplink(VIN), frame, qos=qos)
    await asyncio.wait_for(unacknowledged.wait_empty(), PATIENCE_S)
    await client.disconnect()
    await all_there(run)


@pytest.mark.parametrize("qos", ["1", "2"])
@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
async def test_mosquitto_pub(start: Start, version: str, qos: str, tmp_path) -> None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        pytest.skip("mosquitto_pub is not installed (Debian: apt install mosquitto-clients)")
    run = await start()
    host, port = run.gateway.addresses["mqtt"]
    file = tmp_path / "frames"
    file.write_bytes(b"".join(FRAMES))
    line = [
        program,
        "-h",
        host,
        "-p",
        str(port),
        "-i",
        VIN,
        "-t",
        uplink(VIN),
        "-q",
        qos,
        "-V",
        version,
        "-f",
        str(file),
    ]
    process = await asyncio.create_subprocess_exec(*line, stderr=asyncio.subprocess.PIPE)
    _, said = await asyncio.wait_for(process.communicate(), PATIENCE_S)  # it ends once it has its PUBACK
    assert (process.returncode, said) == (0, b"")
    await all_there(run)
    # a refusal reaches the person at the other end
    line[line.index(VIN)] = "monitor"
    process = await asyncio.create_subprocess_exec(*line, stderr=asyncio.subprocess.PIPE)
    _, said = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode != 0
    assert b"refused" in said.lower() or b"not valid" in said.lower()
