"""The bridge behind brokers of other makers: rumqttd (the package iotcore) and amqtt, both among the dev dependencies.

rumqttd has one listener for each version and does not answer the other's clients; amqtt speaks 3.1.1 alone.  So both
show how ``version = "auto"`` finds out.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from schemas.mqtt.topics import uplink
from tests.gateway.playing import PATIENCE_S, VIN, Start, report

aiomqtt = pytest.importorskip("aiomqtt", reason="aiomqtt is not installed")
pytestmark = pytest.mark.slow

COUNT = 100
FRAMES = [report(second=k % 60, body=k.to_bytes(2, "big") + bytes(58)) for k in range(COUNT)]

RUMQTTD = """
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[{version}.1]
name = "one"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = 20480
max_inflight_count = 500
dynamic_filters = true
"""
RUN_RUMQTTD = "import sys; from iotcore import Broker; Broker(config_path=sys.argv[1]).run_forever()"
RUN_AMQTT = """
import asyncio, sys
from amqtt.broker import Broker
async def run():
    broker = Broker({"listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:" + sys.argv[1]}},
                     "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}})
    await broker.start()
    await asyncio.Event().wait()
asyncio.run(run())
"""


@asynccontextmanager
async def running(name: str, version: str, folder: Path) -> AsyncIterator[int]:
    """The broker on a port of its own."""
    package = {"rumqttd": "iotcore", "amqtt": "amqtt"}[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (pip install {package})")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    config = folder / "rumqttd.toml"
    config.write_text(RUMQTTD.format(version=version, port=port), "utf-8")
    line = ["-c", RUN_RUMQTTD, str(config)] if name == "rumqttd" else ["-c", RUN_AMQTT, str(port)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *line, stdin=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert process.returncode is None, f"{name} ended; its message is above"
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    await writer.wait_closed()
                    break
                await asyncio.sleep(0.05)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()


@pytest.mark.parametrize(
    ("name", "listener", "spoken"), [("rumqttd", "v4", "3.1.1"), ("rumqttd", "v5", "5"), ("amqtt", "", "3.1.1")]
)
@pytest.mark.parametrize("qos", [1, 2])
async def test_every_message_comes_through(
    start: Start, name: str, listener: str, spoken: str, qos: int, tmp_path: Path
) -> None:
    async with running(name, listener, tmp_path) as port:
        url = f"mqtt://127.0.0.1:{port}"
        run = await start(bridge={"url": url, "qos": qos, "retry_first_s": 0.02, "connect_timeout_s": 2.0})
        assert run.gateway.bridge is not None
        (line,) = run.gateway.bridge.lines
        await run.until(lambda: line.established)
        protocol = aiomqtt.ProtocolVersion.V5 if spoken == "5" else aiomqtt.ProtocolVersion.V311
        async with aiomqtt.Client("127.0.0.1", port, protocol=protocol, identifier="car") as client:
            for frame in FRAMES:
                await client.publish(uplink(VIN), frame, qos=qos, timeout=PATIENCE_S)

        async def all_there() -> bool:
            return len(await run.kept()) >= COUNT

        await run.until(all_there)
        assert {frame for _, frame in await run.kept()} == set(FRAMES)
        assert any(f"MQTT {spoken}" in one.detail for one in await run.events())
        await run.gateway.drain(5.0)
