"""One process of a load: its share of the vehicles, their connections and frames.

``python -m services.load.worker '{"settings": {...}, "index": 0}'`` talks JSON lines with ``services.load.run``:
it tells ``{"connected": n}`` while it connects; on ``{"prepare": start}`` (the second, since 1970, that data clocks are
set by) makes the first frames and tells ``{"ready": ...}``; on ``{"go": time.monotonic()}`` sends, and tells
``{"now": {...}}`` twice a second; ``{"stop": true}``, or the end of the plan, ends with ``{"result": {...}}``.
Times are ``time.monotonic``, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvloop

from schemas.batch import I64
from services.errors import NevstreamError
from services.fleetsim import wire
from services.fleetsim.client import READ_BYTES, ClientSettings, Vehicle
from services.fleetsim.gbt_vehicle import GbtVehicle
from services.fleetsim.mqtt_vehicle import MqttVehicle
from services.fleetsim.simulation import speech_of
from services.fleetsim.sockets import allow_sockets
from services.fleetsim.stats import Stats
from services.fleetsim.vehicle import CATALOGUE
from services.load.plans import Cut, make_plan
from services.load.settings import LoadSettings
from services.load.supply import AHEAD_FRAMES, IN_FLIGHT_MAX, Supply, make_vins

TICK_S: Final = 0.01
_TICK_PER_VEHICLE_S: Final = 4e-6  # looking at every vehicle takes a while: rarely enough to be a small share
TELL_S: Final = 0.5
_PASSWORD: Final = "NEVSTREAM_LOAD_PASSWORD"  # noqa: S105 - a variable's name


def part_of(vehicles: int, processes: int, index: int) -> I64:
    """Numbers of the vehicles of process ``index``."""
    bounds = [vehicles * i // processes for i in range(processes + 1)]
    return np.arange(bounds[index], bounds[index + 1], dtype=np.int64)


class ThreadTimes:
    """Seconds that this thread had a processor, and that it wanted one in vain (None where that is not told)."""

    def __init__(self) -> None:
        self._file = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")

    def read(self) -> tuple[float, float | None]:
        try:
            running, queued, _ = self._file.read_text("ascii").split()
        except (OSError, ValueError):
            return time.thread_time(), None
        return int(running) / 1e9, int(queued) / 1e9


class Worker:
    def __init__(self, settings: LoadSettings, index: int) -> None:
        s = self.settings = settings
        part = part_of(s.vehicles, s.processes, index)
        self.stats = Stats(vehicles=len(part))
        self.plan = make_plan(s.scenario, part, s.vehicles, s.rate, s.duration_s, s.seed)
        self.vins, vin = make_vins(part, s.seed, s.model)
        self._speech = speech_of(s.vehicles, s.mqtt_share, s.mqtt_version)[part]
        self.supply = Supply(self.plan, vin, self._speech, s.seed, s.model)
        allow_sockets(len(part), "load")
        self.vehicles = list(self._line_up(part))
        self._stopping = asyncio.Event()
        self._released = asyncio.Event()
        self._fault: BaseException | None = None
        self._start_s = 0
        self._begun = 0.0
        # besides what may be in flight: whoever gets answers must find frames
        self._ahead_max = AHEAD_FRAMES + min(s.window * len(part), IN_FLIGHT_MAX)
        self._held_up: dict[str, float] = {"window": 0.0, "offline": 0.0, "unsent": 0.0}
        self._starved_s = 0.0
        self._planned = 0  # due by now, as far as links are there
        self._told_counts: I64 = np.zeros_like(self.stats.latencies.counts)
        self._storms: list[dict[str, Any]] = []
        self._times = ThreadTimes()
        self._usage: dict[str, Any] = {"running": 0.0, "queued": 0.0, "cpu": 0.0}

    def _line_up(self, part: I64) -> Iterator[Vehicle]:
        s = self.settings
        tls = ssl.create_default_context(cafile=s.ca) if s.tls else None
        line = ClientSettings(
            host=s.host, mqtt_port=s.mqtt_port, gbt_port=s.gbt_port, window=s.window, ack_timeout_s=s.ack_timeout_s,
            password=os.environ.get(_PASSWORD), tls=tls, sources=s.sources,
        )  # fmt: skip
        edition = next(one.edition for one in CATALOGUE if one.name == s.model)
        buffer = bytearray(READ_BYTES)
        for number, vin, speech in zip(part.tolist(), self.vins, self._speech.tolist(), strict=True):
            if speech == wire.GBT_TCP:
                yield GbtVehicle(number, vin, line, self.stats, buffer, edition)
            else:
                yield MqttVehicle(number, vin, line, self.stats, buffer, 5 if speech == wire.MQTT_5 else 4)

    # -- the talk with the parent ----------------------------------------------------------------------
    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._wrong)
        said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        threading.Thread(target=_listen, args=(loop, said), name="listen", daemon=True).start()
        gate = asyncio.Semaphore(self.vehicles[0].settings.connecting_max)
        with ThreadPoolExecutor(1, "supply") as executor:
            lives = [asyncio.create_task(vehicle.live(gate), name=vehicle.vin) for vehicle in self.vehicles]
            helpers = [
                asyncio.create_task(self._watch(), name="watch"),
                asyncio.create_task(self._tell(), name="tell"),
            ]
            try:
                running: list[asyncio.Task[None]] = []
                over = asyncio.create_task(self._stopping.wait(), name="over")
                while not over.done():
                    heard = asyncio.create_task(said.get())
                    await asyncio.wait((heard, over), return_when=asyncio.FIRST_COMPLETED)
                    if not heard.done():
                        heard.cancel()
                        break
                    order = heard.result()
                    if "prepare" in order:
                        self._start_s = int(order["prepare"])
                        await self._make(executor)
                        tell(ready={"frame_bytes": self.supply.frame_bytes, "back_s": self.plan.back_s()})
                    elif "go" in order:
                        self._begun = float(order["go"])
                        running = [
                            asyncio.create_task(self._supply(executor), name="supply"),
                            asyncio.create_task(self._clock(), name="clock"),
                        ]
                    elif "stop" in order:
                        self._stopping.set()
                await self._end(lives, running)
            finally:
                for task in (*helpers, *lives):
                    task.cancel()
                await asyncio.gather(*helpers, *lives, return_exceptions=True)
        if self._fault is not None:
            raise self._fault
        self._tell_now()
        tell(result=self._result(complete=all(vehicle.unanswered == 0 for vehicle in self.vehicles)))

    async def _end(self, lives: list[asyncio.Task[None]], running: list[asyncio.Task[None]]) -> None:
        """Send nothing new, wait for answers."""
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for vehicle in self.vehicles:
            vehicle.stop()
        if self._fault is None:
            await asyncio.wait(lives, timeout=self.settings.drain_s)
        for vehicle in self.vehicles:
            vehicle.settle_rest()

    def _wrong(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception inside a protocol callback is ours: it would only be logged, and the vehicle hang."""
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            return
        self._fault = error
        self._stopping.set()

    # -- frames ----------------------------------------------------------------------------------------
    def _done(self) -> None:
        self._released.set()

    async def _make(self, executor: ThreadPoolExecutor) -> None:
        """The next chunk, and to the vehicles with it."""
        loop = asyncio.get_running_loop()
        for v, segment in await loop.run_in_executor(executor, self.supply.make, self._start_s, self._done):
            self.vehicles[v].add(segment)

    async def _supply(self, executor: ThreadPoolExecutor) -> None:
        """Keep frames coming, a bounded number of them ahead of the answers."""
        while not self.supply.exhausted:
            while self._ahead() >= self._ahead_max:
                self._released.clear()
                try:
                    await asyncio.wait_for(self._released.wait(), 0.05)
                except TimeoutError:
                    continue
            await self._make(executor)

    def _ahead(self) -> int:
        """Frames made and not answered, but for those that a cut link holds back."""
        until_s = self.supply.made_until_s
        held = int((self.plan.count(until_s) - self.plan.sendable(until_s)).sum()) if self.plan.cuts else 0
        return self.supply.made - self.stats.acked - held

    async def _clock(self) -> None:
        """Tell vehicles what is due, cut links when the plan says so, see what is late and why."""
        tick_s = max(TICK_S, _TICK_PER_VEHICLE_S * len(self.vehicles))
        told = np.zeros(len(self.vehicles), np.int64)
        cuts = sorted(self.plan.cuts, key=lambda cut: cut.at_s)
        cpu, (ran, queued) = time.process_time(), self._times.read()
        looked = time.monotonic()
        await asyncio.sleep(max(self._begun - time.monotonic(), 0.0))
        while True:
            now_s = min(time.monotonic() - self._begun, self.settings.duration_s)
            while cuts and cuts[0].at_s <= now_s:
                self._cut(cuts.pop(0))
            due = self.plan.sendable(now_s)
            for v in np.flatnonzero(due > told).tolist():
                self.vehicles[v].allow(int(due[v]))
            told = due
            self._planned = int(due.sum())
            if self._planned > self.supply.made and self._ahead() < self._ahead_max:  # else it waits for answers
                self._starved_s += tick_s
            if time.monotonic() - looked >= TELL_S / 2:
                looked = time.monotonic()
                self._look(due)
            self._serve_storms()
            ran_now, queued_now = self._times.read()
            self._usage = {
                "running": ran_now - ran,
                "queued": None if queued is None or queued_now is None else queued_now - queued,
                "cpu": time.process_time() - cpu,
                "seconds": now_s,
            }
            if now_s >= self.settings.duration_s:
                break
            await asyncio.sleep(tick_s)
        while not all(storm["seconds"] is not None for storm in self._storms):
            await asyncio.sleep(TICK_S)
            self._serve_storms()
            if time.monotonic() - self._begun > self.settings.duration_s + self.settings.drain_s:
                break
        self._stopping.set()

    def _look(self, due: I64) -> None:
        """Frames that are due and not sent: what do they wait for?"""
        late = due - np.fromiter((vehicle.reported for vehicle in self.vehicles), np.int64, len(self.vehicles))
        for v in np.flatnonzero(late > 0).tolist():
            self._held_up[self.vehicles[v].waits_for] += int(late[v])

    # -- links -------------------------------------------------------------------------------------------
    def _cut(self, cut: Cut) -> None:
        """Take links away; for a moment only (a storm), or until the plan gives them back."""
        chosen = [self.vehicles[v] for v in np.flatnonzero(cut.who).tolist()]
        back: asyncio.Event | None = None
        if cut.until_s > cut.at_s:
            back = asyncio.Event()
            delay = self._begun + cut.until_s - time.monotonic()
            asyncio.get_running_loop().call_later(max(delay, 0.0), back.set)
        else:
            self._storms.append(
                {"at_s": cut.at_s, "vehicles": len(chosen), "seconds": None, "begun": time.monotonic(),
                 "left": [(vehicle, vehicle.acked) for vehicle in chosen]}
            )  # fmt: skip
        for vehicle in chosen:
            vehicle.cut(back)

    def _serve_storms(self) -> None:
        for storm in self._storms:
            if storm["seconds"] is None:
                storm["left"] = [(vehicle, acked) for vehicle, acked in storm["left"] if vehicle.acked <= acked]
                if not storm["left"]:
                    storm["seconds"] = round(time.monotonic() - storm["begun"], 3)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for vehicle in self.vehicles:
                vehicle.watch(now)

    # -- what is told --------------------------------------------------------------------------------------
    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            self._tell_now()

    def _tell_now(self) -> None:
        counts = self.stats.latencies.counts
        new = counts - self._told_counts
        self._told_counts = counts.copy()
        buckets = np.flatnonzero(new)
        tell(
            now=self._counts() | {"planned": self._planned, "latencies": [buckets.tolist(), new[buckets].tolist()]},
        )

    def _counts(self) -> dict[str, Any]:
        stats = self.stats
        names = ("connected", "sent", "resent", "acked", "refused", "connects", "failures", "drops", "unexpected")
        values: dict[str, Any] = {name: getattr(stats, name) for name in names}
        return values | {"errors": dict(stats.errors), "max_ms": stats.latencies.max_ms, "last_error": stats.last_error}

    def _result(self, *, complete: bool) -> dict[str, Any]:
        return {
            "complete": complete,
            "planned": self._planned,
            "first_sent": self.stats.first_sent,
            "last_acked": self.stats.last_acked,
            "usage": self._usage,
            "starved_s": self._starved_s,
            "held_up": self._held_up,
            "storms": [{k: storm[k] for k in ("at_s", "vehicles", "seconds")} | {"unserved": len(storm["left"])}
                       for storm in self._storms],
            "acked_by_vehicle": [vehicle.acked for vehicle in self.vehicles],
            "sent_by_vehicle": [vehicle.reported for vehicle in self.vehicles],
        }  # fmt: skip


def _listen(loop: asyncio.AbstractEventLoop, said: asyncio.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(said.put_nowait, json.loads(line))
    loop.call_soon_threadsafe(said.put_nowait, {"stop": True})  # the parent is gone


def tell(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def main(argv: list[str]) -> int:
    from services.lifecycle import end_with_parent

    end_with_parent()
    given = json.loads(argv[0])
    try:
        worker = Worker(LoadSettings(**given["settings"]), given["index"])
        tell(made=len(worker.vehicles))
        uvloop.run(worker.run())
    except (NevstreamError, OSError) as error:
        tell(failed=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
