"""A vehicle that publishes through the aiomqtt library: slow, and for that reason believable.

For trying a gateway with somebody else's client.  One message at a time, each awaited until its PUBACK;
about a hundredth of the rate of ``MqttVehicle``.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from importlib import import_module
from typing import Any

from schemas.mqtt.packets import parse_publish, split
from schemas.mqtt.wire import V5
from services.errors import UsageError
from services.fleetsim import faults
from services.fleetsim.chunks import Segment
from services.fleetsim.client import BACKOFF_FIRST_S, BACKOFF_MAX_S, ClientSettings
from services.fleetsim.stats import Stats


def require_aiomqtt() -> Any:
    """The library.  Raises ``UsageError`` when it is not installed (it is no dependency of nevstream)."""
    try:
        return import_module("aiomqtt")
    except ImportError as error:
        raise UsageError("simulate --client aiomqtt needs the aiomqtt library: pip install aiomqtt") from error


class AiomqttVehicle:
    """The same outside as ``client.Vehicle``."""

    def __init__(self, index: int, vin: str, settings: ClientSettings, stats: Stats, version: int) -> None:
        self.index = index
        self.vin = vin
        self.settings = settings
        self.stats = stats
        self.version = version
        self.limit = 0
        self.closing = False
        self.reported = 0
        self._library = require_aiomqtt()
        self._segments: deque[Segment] = deque()
        self._at = 0  # within the first segment
        self._news = asyncio.Event()

    def add(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._news.set()

    def allow(self, limit: int) -> None:
        self.limit = limit
        self._news.set()

    def finish(self) -> None:
        self.closing = True
        self._news.set()

    def stop(self) -> None:
        """Send nothing new: the message in the air is awaited, the rest is let go."""
        self.limit = -1
        self.finish()

    def settle_rest(self) -> None:
        """The simulation is over: count what was sent of the segment in hand, let the rest go."""
        while self._segments:
            self._count(self._segments[0], self._at)
            self._segments.popleft().done()
            self._at = 0

    def _count(self, segment: Segment, answered: int) -> None:
        self.stats.rows += segment.fates.count(faults.ROW, 0, answered)
        self.stats.rejects += segment.fates.count(faults.REFUSED, 0, answered)

    def watch(self, now: float) -> None:
        """Nothing to do: the library keeps its connection alive itself."""

    async def live(self, gate: asyncio.Semaphore) -> None:
        attempt = 0
        while not self._over():
            try:
                await self._session(gate)
                attempt = 0
            except self._library.MqttError as error:
                attempt += 1
                self.stats.failures += 1
                self.stats.last_error = f"{self.vin}: {error}"
                await asyncio.sleep(min(BACKOFF_FIRST_S * 2 ** min(attempt, 10), BACKOFF_MAX_S))
        self.stats.finished += 1

    def _over(self) -> bool:
        while self._segments and self._at >= self._segments[0].count:
            self._count(self._segments[0], self._at)
            self._segments.popleft().done()
            self._at = 0
        return self.closing and (not self._segments or self.limit < 0)

    async def _session(self, gate: asyncio.Semaphore) -> None:
        async with gate:
            client = self._library.Client(
                self.settings.host, self.settings.mqtt_port, identifier=self.vin, username=self.vin,
                password=self.settings.password, keepalive=self.settings.keep_alive_s,
                protocol=self._library.ProtocolVersion(self.version), timeout=self.settings.ack_timeout_s,
            )  # fmt: skip
            await client.__aenter__()
        self.stats.connects += 1
        self.stats.connected += 1
        try:
            while not self._over():
                if not self._segments or self._segments[0].due[self._at] > self.limit:
                    self._news.clear()
                    await self._news.wait()
                    continue
                segment = self._segments[0]
                found = split(segment.data[segment.begin(self._at) : segment.ends[self._at]].tobytes())
                assert found is not None
                publish = parse_publish(found[0], found[1], V5 if self.version == V5 else 4)
                sent = time.monotonic()
                if self.stats.first_sent is None:
                    self.stats.first_sent = sent
                await client.publish(publish.topic, publish.payload, qos=1)
                self.reported = segment.due[self._at]
                self._at += 1
                self.stats.sent += 1
                self.stats.acked += 1
                self.stats.last_acked = time.monotonic()
                self.stats.latencies.add(self.stats.last_acked - sent, 1)
        finally:
            self.stats.connected -= 1
            await client.__aexit__(None, None, None)
