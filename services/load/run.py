"""A load from start to end: its processes, what they tell while it runs, and the account of it.

Knows no socket and no frame: those are the workers'.  A worker is a child process that ends with this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from schemas import kernel_cache
from schemas.batch import I64
from services.errors import NevstreamError
from services.fleetsim import chunks
from services.fleetsim.histogram import BUCKETS, percentile_ms
from services.load.settings import LoadSettings
from services.load.verdict import Measured, judge

Progress = Callable[[Mapping[str, Any]], None]

_LEAD_S: Final = 0.2  # between "go" and the first frame: every process has heard it by then
_PREPARE_S: Final = 120.0
_FIRST_S: Final = 20.0  # until the first vehicle has a connection
_POLL_S: Final = 0.1
_SERIES_MAX: Final = 3600  # seconds told one by one; of a longer run the newest
_SUMS: Final = (
    "connected", "planned", "sent", "resent", "acked", "refused", "connects", "failures", "drops", "unexpected",
)  # fmt: skip


class Child:
    """A worker, and the newest that it told."""

    def __init__(self, settings: LoadSettings, index: int, heard: queue.Queue[int]) -> None:
        self.now: dict[str, Any] = dict.fromkeys(_SUMS, 0) | {"errors": {}, "max_ms": None, "last_error": ""}
        self.ready: dict[str, Any] | None = None
        self.made = False
        self.result: dict[str, Any] | None = None
        self.failed = ""
        self.latencies: I64 = np.zeros(BUCKETS, np.int64)
        self._index, self._heard = index, heard
        self._lock = threading.Lock()
        given = {"settings": settings.as_dict(), "index": index}
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "services.load.worker",
                json.dumps(given),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which tells its children
        )
        self._thread = threading.Thread(target=self._listen, name=f"load {index}", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                said = json.loads(line)
                if "now" in said:
                    buckets, counts = said["now"].pop("latencies")
                    with self._lock:
                        self.latencies[buckets] += np.array(counts, np.int64)
                        self.now |= said["now"]
                self.made = self.made or "made" in said
                self.ready = said.get("ready", self.ready)
                self.result = said.get("result", self.result)
                self.failed = said.get("failed", self.failed)
        self._heard.put(self._index)  # it has ended

    def tell(self, **order: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it has ended, which is noticed elsewhere

    def snapshot(self) -> tuple[dict[str, Any], I64]:
        with self._lock:
            return dict(self.now), self.latencies.copy()

    def check(self) -> None:
        """Raise when it has ended without a result."""
        if self.result is None and self._process.poll() is not None:
            self._thread.join(5.0)
            if self.result is None:
                raise NevstreamError(
                    self.failed or f"a process of the load ended with exit code {self._process.returncode}"
                )

    def end(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(5.0 if self.result is not None else 0.1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()


class Run:
    """One load.  ``stop`` ends it early: nothing new is sent, answers are waited for, and the account is made."""

    def __init__(
        self, settings: LoadSettings, progress: Progress, stop: threading.Event, lag: Callable[[], float | None]
    ) -> None:
        self._s = settings
        self._progress = progress
        self._stop = stop
        self._lag = lag
        self._children: list[Child] = []
        self._series: list[dict[str, Any]] = []
        self._begun = 0.0
        self._last: tuple[float, dict[str, Any], I64] = (0.0, {}, np.zeros(BUCKETS, np.int64))

    def run(self) -> dict[str, Any]:
        """The account: see the stage's README.  Raises ``NevstreamError`` when a process fails."""
        _compile(self._progress)
        heard: queue.Queue[int] = queue.Queue()
        begun = time.monotonic()
        try:
            self._children = [Child(self._s, index, heard) for index in range(self._s.processes)]
            connect_s = self._connect()
            started_at = datetime.now(UTC)
            if not self._stop.is_set():
                self._start()
                self._watch()
            self._finish()
            account = self._account(started_at, connect_s)
            account["seconds_in_all"] = round(time.monotonic() - begun, 3)
            return account
        finally:
            for child in self._children:
                child.end()

    # -- phases ----------------------------------------------------------------------------------------
    def _wait(self, phase: str, until: Callable[[], bool], seconds: float) -> bool:
        """Wait for all children; False when told to stop, or after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not until():
            for child in self._children:
                child.check()
            if self._stop.is_set() or time.monotonic() > deadline:
                return False
            now, _ = self._sum()
            self._progress({"phase": phase, "vehicles": self._s.vehicles, **now})
            time.sleep(_POLL_S)
        return True

    def _connect(self) -> float:
        self._wait("making vehicles and frames", lambda: all(child.made for child in self._children), _PREPARE_S)
        begun = time.monotonic()
        self._wait("connecting", lambda: self._sum()[0]["connected"] > 0, _FIRST_S)
        now, _ = self._sum()
        if not now["connected"] and not self._stop.is_set():
            raise NevstreamError(
                f"load: none of {self._s.vehicles:,} vehicles got a connection within {_FIRST_S:g} s: "
                f"{_kinds(now['errors_by_kind'])}. Does the target listen there, and let these vehicles in? The last "
                f"was {now['last_error'] or 'no answer at all'}"
            )
        self._wait("connecting", lambda: self._sum()[0]["connected"] >= self._s.vehicles, self._s.connect_s)
        return time.monotonic() - begun

    def _start(self) -> None:
        for child in self._children:
            child.tell(prepare=int(time.time()))
        if not self._wait("making the first frames", lambda: all(c.ready for c in self._children), _PREPARE_S):
            return
        self._begun = time.monotonic() + _LEAD_S
        for child in self._children:
            child.tell(go=self._begun)
        self._last = (self._begun, *self._sum())

    def _watch(self) -> None:
        """Until every child has its result, or we are told to stop."""
        following = self._begun + 1.0
        while not self._stop.is_set() and not all(child.result for child in self._children):
            for child in self._children:
                child.check()
            time.sleep(_POLL_S)
            if time.monotonic() >= following:
                following += 1.0
                self._second()

    def _second(self) -> None:
        """A second has passed: one line of the series, and what is shown."""
        at, before, latencies_before = self._last
        moment = time.monotonic()
        now, latencies = self._sum()
        self._last = (moment, now, latencies)
        passed = max(moment - at, 1e-3)
        new = latencies - latencies_before
        line = {
            "s": round(moment - self._begun, 1),
            "planned_per_s": round((now["planned"] - before["planned"]) / passed, 1),
            "sent_per_s": round((now["sent"] - before["sent"]) / passed, 1),
            "acked_per_s": round((now["acked"] - before["acked"]) / passed, 1),
            "in_flight": now["sent"] - now["acked"],
            "behind_plan": max(now["planned"] - now["sent"], 0),
            "connected": now["connected"],
            # not the connections that the scenario itself cut
            "errors": sum(now["errors_by_kind"].values()) + now["refused"] + now["unexpected"],
            "ack_p50_ms": percentile_ms(new, 50),
            "ack_p99_ms": percentile_ms(new, 99),
            "api_lag_s": self._lag(),
        }
        self._series.append(line)
        del self._series[:-_SERIES_MAX]
        behind_s = line["behind_plan"] / self._s.rate
        self._progress(
            {"phase": "sending", "vehicles": self._s.vehicles, "duration_s": self._s.duration_s, **now, **line,
             "behind_s": behind_s}
        )  # fmt: skip

    def _finish(self) -> None:
        for child in self._children:
            child.tell(stop=True)
        deadline = time.monotonic() + self._s.drain_s + 30.0
        while not all(child.result for child in self._children):
            for child in self._children:
                child.check()
            if time.monotonic() > deadline:
                raise NevstreamError("load: a process did not end in time; nothing is known of what it sent")
            now, _ = self._sum()
            self._progress({"phase": "waiting for answers", "vehicles": self._s.vehicles, **now})
            time.sleep(_POLL_S)

    # -- sums --------------------------------------------------------------------------------------------
    def _sum(self) -> tuple[dict[str, Any], I64]:
        parts = [child.snapshot() for child in self._children]
        total: dict[str, Any] = {name: sum(now[name] for now, _ in parts) for name in _SUMS}
        total["errors_by_kind"] = dict(sum((Counter(now["errors"]) for now, _ in parts), Counter()))
        total["last_error"] = next((now["last_error"] for now, _ in parts if now["last_error"]), "")
        longest = [now["max_ms"] for now, _ in parts if now["max_ms"] is not None]
        total["max_ms"] = max(longest, default=None)
        return total, sum((latencies for _, latencies in parts), np.zeros(BUCKETS, np.int64))

    def _account(self, started_at: datetime, connect_s: float) -> dict[str, Any]:
        now, latencies = self._sum()
        results = [child.result for child in self._children if child.result is not None]
        assert len(results) == len(self._children), "each child has told"
        firsts = [r["first_sent"] for r in results if r["first_sent"] is not None]
        lasts = [r["last_acked"] for r in results if r["last_acked"] is not None]
        sending_s = max((r["usage"].get("seconds", 0.0) for r in results), default=0.0)
        acking_s = max(lasts) - min(firsts) if firsts and lasts else 0.0
        verdict = judge(_measured(results, sum(r["planned"] for r in results), now))
        ready = next((child.ready for child in self._children if child.ready), {"frame_bytes": 0.0, "back_s": 0.0})
        return {
            "settings": {k: v for k, v in self._s.as_dict().items() if k != "mine"},
            "started_at": started_at.isoformat(timespec="seconds"),
            "seconds": round(sending_s, 3),
            "connect_seconds": round(connect_s, 3),
            "ended_early": self._stop.is_set(),
            "complete": all(r["complete"] for r in results),
            "first_report_dated_s_before_start": ready["back_s"],
            "planned": sum(r["planned"] for r in results),
            "sent": now["sent"],
            "acked": now["acked"],
            "refused": now["refused"],
            "unanswered": now["sent"] - now["acked"],
            "resent": now["resent"],
            "rate_wanted": self._s.rate,
            "rate_sent": round(now["sent"] / sending_s, 1) if sending_s else 0.0,
            "rate_acked": round(now["acked"] / acking_s, 1) if acking_s > 0 else 0.0,
            "frame_bytes": round(ready["frame_bytes"], 1),
            "ack_p50_ms": percentile_ms(latencies, 50, now["max_ms"]),
            "ack_p95_ms": percentile_ms(latencies, 95, now["max_ms"]),
            "ack_p99_ms": percentile_ms(latencies, 99, now["max_ms"]),
            "ack_max_ms": now["max_ms"],
            "connects": now["connects"],
            "reconnects": max(now["connects"] - self._s.vehicles, 0),
            "connections_lost": now["drops"],
            "connections_failed": now["failures"],
            "unexpected_answers": now["unexpected"],
            "errors": now["errors_by_kind"],
            "last_error": now["last_error"],
            "storm": _storm(results),
            **verdict,
            "generator": {
                "processes": self._s.processes,
                "cpu_seconds": round(sum(r["usage"]["cpu"] for r in results), 2),
                "cpu_share_of_machine": round(
                    sum(r["usage"]["cpu"] for r in results) / sending_s / (os.cpu_count() or 1), 3
                ) if sending_s else 0.0,
            },
            "series": self._series,
            "by_vehicle": {
                "acked": [n for r in results for n in r["acked_by_vehicle"]],
                "sent": [n for r in results for n in r["sent_by_vehicle"]],
            },
        }  # fmt: skip


def _kinds(errors: Mapping[str, int]) -> str:
    """The commonest errors, in words."""
    common = sorted(errors.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{kind} ({count:,} times)" for kind, count in common) or "nobody answered"


def _measured(results: list[dict[str, Any]], planned: int, now: Mapping[str, Any]) -> Measured:
    """What the verdict goes by: the busiest process's times, everybody's late frames."""

    def share(r: Mapping[str, Any], seconds: float) -> float:
        return float(seconds / r["usage"]["seconds"]) if r["usage"].get("seconds") else 0.0

    busiest = max(results, key=lambda r: share(r, r["usage"]["running"] + (r["usage"]["queued"] or 0.0)))
    queued = busiest["usage"]["queued"]
    late: Counter[str] = Counter()
    for r in results:
        late.update({k: v for k, v in r["held_up"].items() if v})
    all_late = late.total() or 1
    return Measured(
        planned=planned,
        sent=now["sent"],
        acked=now["acked"],
        running=share(busiest, busiest["usage"]["running"]),
        queued=None if queued is None else share(busiest, queued),
        starved=max(share(r, r["starved_s"]) for r in results),
        window=late["window"] / all_late,
        offline=late["offline"] / all_late,
        unsent=late["unsent"] / all_late,
    )


def _storm(results: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How long it took until every vehicle that was cut off had a report acked; None where there was no storm."""
    storms = [storm for r in results for storm in r["storms"]]
    if not storms:
        return None
    seconds = [storm["seconds"] for storm in storms]
    return {
        "at_s": storms[0]["at_s"],
        "vehicles": sum(storm["vehicles"] for storm in storms),
        "unserved": sum(storm["unserved"] for storm in storms),
        "seconds_until_all_served": None if None in seconds else max(seconds),
    }


def _compile(progress: Progress) -> None:
    """Kernels are compiled by one process before there are several: numba's cache does not bear two writers."""
    if not kernel_cache.is_warm(kernel_cache.mode(), "fleetsim"):
        progress({"phase": "compiling (first run only)"})
    chunks.warm()
    kernel_cache.mark_warm(kernel_cache.mode(), "fleetsim")
