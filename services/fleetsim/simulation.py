"""A running simulation: vehicles, their clocks, and the chunks they send.

``prepare()`` makes everything that needs no connection; ``run()`` connects, sends, waits for what is
outstanding, and says what happened.  The data clock may run faster than the wall clock (``speed``), but never
ahead of it: a report from the future would rightly be refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from schemas.batch import I64
from services.errors import UsageError
from services.fleetsim import faults, wire
from services.fleetsim.aiomqtt_vehicle import AiomqttVehicle
from services.fleetsim.chunks import CHUNK_BYTES, Chunks, Segment
from services.fleetsim.client import READ_BYTES, ClientSettings, Vehicle
from services.fleetsim.gbt_vehicle import GbtVehicle
from services.fleetsim.mqtt_vehicle import MqttVehicle
from services.fleetsim.sockets import allow_sockets
from services.fleetsim.stats import Stats
from services.fleetsim.vehicle import Fleet, make_fleet, spread_plants

TICK_S: Final = 0.02
CHUNKS_ALIVE_MAX: Final = 3
MQTT_VERSIONS: Final = ("3.1.1", "5", "mixed")
CLIENTS: Final = ("fast", "aiomqtt")
PARKED: Final = ("report", "sleep")
_THERMAL_SPAN_S: Final = 3600  # when nobody says how long it goes on


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """What to simulate.  Raises ``UsageError`` naming the wrong setting.

    vehicles, seed, model (None = the whole catalogue) · mqtt_share of the vehicles, the others speak GB/T over TCP ·
    mqtt_version "3.1.1", "5" or "mixed" · period_s between reports on the data clock · speed: data seconds per
    wall second, None = as fast as answers come · reports per vehicle, None = until ``duration_s`` or stopped ·
    start_s of the data clock (since 1970 UTC), None = so that the last report is of now · faults: a preset or odds ·
    parked "report", or "sleep": a parked vehicle that is not plugged in falls silent after ten minutes · weak: how many
    vehicles have a weak cell (None: 3 %, drawn) · thermal: how many batteries go up in the second half ·
    drain_s: how long to wait for answers at the end · client "fast" or "aiomqtt" (MQTT vehicles, slow).
    """

    vehicles: int = 200
    seed: int = 1
    model: str | None = None
    mqtt_share: float = 0.5
    mqtt_version: str = "mixed"
    period_s: int = 10
    speed: float | None = 1.0
    reports: int | None = None
    duration_s: float | None = None
    start_s: int | None = None
    faults: str | Mapping[str, float] = "none"
    parked: str = "report"
    weak: int | None = None
    thermal: int = 0
    drain_s: float = 60.0
    truth: Path | None = None
    client: str = "fast"
    prepare_all: bool = False
    line: ClientSettings = field(default_factory=ClientSettings)

    def __post_init__(self) -> None:
        checks = (
            (self.vehicles >= 1, "vehicles", "at least 1"),
            (0.0 <= self.mqtt_share <= 1.0, "mqtt_share", "0 to 1"),
            (self.mqtt_version in MQTT_VERSIONS, "mqtt_version", ", ".join(MQTT_VERSIONS)),
            (self.period_s >= 1, "period_s", "whole seconds, at least 1"),
            (self.speed is None or self.speed > 0, "speed", "above 0, or none for as fast as possible"),
            (self.reports is None or self.reports >= 1, "reports", "at least 1"),
            (self.duration_s is None or self.duration_s > 0, "duration_s", "above 0"),
            (self.line.window >= 1, "window", "at least 1"),
            (self.line.window <= 30_000, "window", "at most 30000, or MQTT packet ids would meet themselves"),
            (self.parked in PARKED, "parked", " or ".join(PARKED)),
            (self.weak is None or 0 <= self.weak <= self.vehicles, "weak", "no more than there are vehicles"),
            (
                0 <= self.thermal <= self.vehicles - (self.weak or 0),
                "thermal",
                "no more than vehicles without weak cell",
            ),
            (self.client in CLIENTS, "client", ", ".join(CLIENTS)),
            (not self.prepare_all or self.reports is not None, "prepare_all", "with a number of reports only"),
        )
        for good, name, allowed in checks:
            if not good:
                raise UsageError(f"simulate: {name} is {getattr(self, name, self.line.window)!r}: use {allowed}")
        try:
            faults.odds_of(self.faults)
        except ValueError as error:
            raise UsageError(f"simulate: {error}") from error


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What happened.

    complete: every message sent was answered · expected_stored, expected_rejected: of what was answered, the
    rows that must be there and the frames that must have been refused (what was sent and not answered may be there
    as well) · stats: the counts of ``Stats`` · planned: those of everything that was made, faults by name.
    """

    complete: bool
    vehicles: int
    sent: int
    acked: int
    resent: int
    refused: int
    expected_stored: int
    expected_rejected: int
    seconds: float
    frames_per_s: float
    first_sent_monotonic: float | None
    last_acked_monotonic: float | None
    ack_p50_ms: float | None
    ack_p99_ms: float | None
    connects: int
    drops: int
    planned: Mapping[str, int]
    stats: Mapping[str, Any]
    last_error: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def speech_of(vehicles: int, mqtt_share: float, mqtt_version: str) -> I64:
    """How each vehicle speaks (``wire.MQTT_311`` ...); ``mqtt_share`` of them over MQTT, spread evenly."""
    # vehicle v speaks MQTT when the share's running sum passes a whole number
    share = np.floor(np.arange(1, vehicles + 1) * mqtt_share) > np.floor(np.arange(vehicles) * mqtt_share)
    nth = np.cumsum(share)
    five = {"3.1.1": np.zeros(vehicles, bool), "5": np.ones(vehicles, bool), "mixed": nth % 2 == 0}[mqtt_version]
    return np.where(share, np.where(five, wire.MQTT_5, wire.MQTT_311), wire.GBT_TCP).astype(np.int64)


class Simulation:
    """One run.  ``stats`` may be read at any time, from the loop's thread."""

    def __init__(self, settings: SimulationSettings) -> None:
        self.settings = settings
        self.stats = Stats(vehicles=settings.vehicles)
        self.vehicles: list[Vehicle | AiomqttVehicle] = []
        self._stopping = asyncio.Event()
        self._released = asyncio.Event()
        self._made: list[list[Segment]] = []
        self._chunks: Chunks | None = None
        self._start_s = 0
        self._fault: BaseException | None = None
        self._phase_s = np.zeros(settings.vehicles)

    # -- before the clock ------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Vehicles and first frames, all frames with ``prepare_all``; compiles the kernels.  CPU-bound."""
        s = self.settings
        span = (s.reports or 0) * s.period_s
        now = int(time.time())
        if s.start_s is not None:
            self._start_s = s.start_s
        elif s.speed == 1.0:
            self._start_s = now
        elif s.reports is not None:
            self._start_s = now - span
        else:  # faster than the clock without end: from a day back, until it has caught up
            self._start_s = now - 86_400
        try:
            plants = spread_plants(
                s.vehicles, s.weak, s.thermal, s.parked == "sleep", self._start_s, span or _THERMAL_SPAN_S
            )
            fleet = make_fleet(s.vehicles, s.seed, s.model, plants)
        except ValueError as error:
            raise UsageError(f"simulate: {error}") from error
        # vehicles do not all report in the same second
        self._phase_s = np.floor(np.arange(s.vehicles) * (s.period_s / s.vehicles))
        speech = speech_of(s.vehicles, s.mqtt_share, s.mqtt_version)
        self._chunks = Chunks(
            fleet, self._start_s + self._phase_s.astype(np.int64), s.period_s, speech, faults.odds_of(s.faults),
            s.reports,
            1 << 62 if s.prepare_all else CHUNK_BYTES,
        )  # fmt: skip
        self._chunks.on_release = self._released.set
        allow_sockets(s.vehicles, "simulate")
        self.vehicles = list(self._line_up(fleet, speech))
        # a short first chunk, so that a fleet that reports every 10 s starts at once
        self._made.append(self._chunks.make(None if s.prepare_all else 8))

    def _line_up(self, fleet: Fleet, speech: I64) -> Iterator[Vehicle | AiomqttVehicle]:
        line, buffer = self.settings.line, bytearray(READ_BYTES)
        for v, vin in enumerate(fleet.vins):
            if speech[v] == wire.GBT_TCP:
                made = GbtVehicle(v, vin, line, self.stats, buffer, fleet.edition(v))
                if self.settings.start_s is not None:
                    made.now = partial(self._data_now, made)
                yield made
            elif self.settings.client == "aiomqtt":
                yield AiomqttVehicle(v, vin, line, self.stats, 5 if speech[v] == wire.MQTT_5 else 4)
            else:
                yield MqttVehicle(v, vin, line, self.stats, buffer, 5 if speech[v] == wire.MQTT_5 else 4)

    def _data_now(self, vehicle: Vehicle) -> float:
        """The data clock of a vehicle whose time was given: the second after its last report."""
        first_s = self._start_s + int(self._phase_s[vehicle.index])
        return first_s + max(vehicle.reported - 1, 0) * self.settings.period_s + (vehicle.reported > 0)

    @property
    def vins(self) -> list[str]:
        return [vehicle.vin for vehicle in self.vehicles]

    @property
    def frame_bytes(self) -> float:
        """Mean size of the prepared messages' frames."""
        assert self._chunks is not None
        return self._chunks.frame_bytes

    # -- the run -----------------------------------------------------------------------------------------
    def stop(self) -> None:
        """Send nothing new; ``run`` ends when what was sent is answered, or after ``drain_s``."""
        self._stopping.set()

    async def run(self) -> SimulationResult:
        """Connect and send until the reports are sent, ``duration_s`` is over, or ``stop`` is called."""
        if self._chunks is None:
            await asyncio.to_thread(self.prepare)
        assert self._chunks is not None
        chunks, s = self._chunks, self.settings
        begun = time.monotonic()
        complete = True
        gate = asyncio.Semaphore(s.line.connecting_max)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._wrong)
        lives: list[asyncio.Task[None]] = []
        with ThreadPoolExecutor(1, "fleetsim") as executor:
            async with asyncio.TaskGroup() as group:
                lives = [group.create_task(vehicle.live(gate), name=vehicle.vin) for vehicle in self.vehicles]
                helpers = [
                    group.create_task(self._supply(executor), name="supply"),
                    group.create_task(self._clock(), name="clock"),
                    group.create_task(self._watch(), name="watch"),
                ]
                complete = await self._until_over(lives)
                for task in (*helpers, *lives):
                    task.cancel()
        loop.set_exception_handler(None)
        if self._fault is not None:
            raise self._fault
        for vehicle in self.vehicles:
            vehicle.settle_rest()
        if s.truth is not None:
            self._write_truth(s.truth)
        return self._result(time.monotonic() - begun, complete, chunks)

    def _wrong(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception inside a protocol callback is ours: it would only be logged, and the vehicle hang."""
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            loop.default_exception_handler(context)
            return
        self._fault = error
        self._stopping.set()

    async def _until_over(self, lives: list[asyncio.Task[None]]) -> bool:
        """Wait for the end; True when every message sent has its answer."""
        stopped = asyncio.create_task(self._stopping.wait())
        over = asyncio.create_task(asyncio.wait(lives))
        try:
            await asyncio.wait((over, stopped), timeout=self.settings.duration_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            stopped.cancel()
        self._stopping.set()
        if self._fault is None and not all(task.done() for task in lives):
            for vehicle in self.vehicles:
                vehicle.stop()
            await asyncio.wait(lives, timeout=self.settings.drain_s)
        return all(task.done() for task in lives)

    async def _supply(self, executor: ThreadPoolExecutor) -> None:
        """Keep chunks coming, a bounded number of them."""
        assert self._chunks is not None
        chunks, loop = self._chunks, asyncio.get_running_loop()
        while True:
            for segments in self._made:
                for vehicle, segment in zip(self.vehicles, segments, strict=True):
                    vehicle.add(segment)
            self._made.clear()
            if chunks.exhausted:
                for vehicle in self.vehicles:
                    vehicle.finish()
                return
            while chunks.alive >= CHUNKS_ALIVE_MAX:
                self._released.clear()
                await self._released.wait()
            if self._stopping.is_set():
                return
            self._made.append(await loop.run_in_executor(executor, chunks.make))
            if self._stopping.is_set():
                return

    async def _clock(self) -> None:
        """Tell vehicles what is due."""
        s = self.settings
        if s.speed is None:
            for vehicle in self.vehicles:
                vehicle.allow(1 << 60)
            return
        begun, wall = time.monotonic(), time.time()
        told = np.zeros(len(self.vehicles), np.int64)
        while not self._stopping.is_set():
            passed = time.monotonic() - begun
            if s.speed == 1.0 and s.start_s is None:
                data_now = wall + passed
            elif s.start_s is None:
                data_now = min(self._start_s + passed * s.speed, wall + passed)
            else:
                data_now = self._start_s + passed * s.speed
            due = np.floor((data_now - self._start_s - self._phase_s) / s.period_s).astype(np.int64) + 1
            for v in np.flatnonzero(due > told).tolist():
                self.vehicles[v].allow(int(due[v]))
            told = np.maximum(told, due)
            await asyncio.sleep(TICK_S)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for vehicle in self.vehicles:
                vehicle.watch(now)

    # -- afterwards ----------------------------------------------------------------------------------------
    def _write_truth(self, path: Path) -> None:
        assert self._chunks is not None
        with path.open("wb") as file:
            reported = np.array([vehicle.reported for vehicle in self.vehicles], np.int64)
            for line in self._chunks.truth(reported):
                file.write(orjson.dumps(line) + b"\n")

    def _result(self, seconds: float, complete: bool, chunks: Chunks) -> SimulationResult:
        stats, planned = self.stats, dict(chunks.counts)
        busy = (stats.last_acked or 0.0) - (stats.first_sent or 0.0)
        snapshot = stats.snapshot()
        return SimulationResult(
            complete=complete,
            vehicles=len(self.vehicles),
            sent=stats.sent,
            acked=stats.acked,
            resent=stats.resent,
            refused=stats.refused,
            expected_stored=stats.rows,
            expected_rejected=stats.rejects,
            seconds=round(seconds, 3),
            frames_per_s=round(stats.acked / busy, 1) if busy > 0 else 0.0,
            first_sent_monotonic=stats.first_sent,
            last_acked_monotonic=stats.last_acked,
            ack_p50_ms=snapshot["ack_p50_ms"],
            ack_p99_ms=snapshot["ack_p99_ms"],
            connects=stats.connects,
            drops=stats.drops,
            planned=planned,
            stats=snapshot,
            last_error=stats.last_error,
        )
