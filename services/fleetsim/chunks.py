"""Chunks: a stretch of time of the whole fleet, encoded ahead of sending.

model → faults → frames → one stream of messages per vehicle.  All of it in kernels, in a worker
thread, so that the event loop only moves bytes.  Bounded: a chunk is released when every vehicle has
had its part answered, and only so many chunks exist at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from schemas.batch import I64, U8
from services.fleetsim import faults, histogram, wire
from services.fleetsim.model import FleetModel, Samples
from services.fleetsim.vehicle import P_EDITION, Fleet, make_fleet

CHUNK_BYTES: Final = 24 * 1024 * 1024
_MESSAGE_BYTES: Final = 420  # about, for the size of a chunk


@dataclass(slots=True, eq=False)
class Segment:
    """One vehicle's part of a chunk: messages ``first .. first + count - 1`` of its life.

    ``ends`` are offsets in ``data`` after each message, ``due`` how many base reports (counted from the
    vehicle's first) must be due before each may go, ``answers`` the answers expected, back to back,
    ``fates`` what becomes of each (``faults.ROW`` ...).
    """

    first: int
    count: int
    data: memoryview
    ends: list[int]
    due: list[int]
    answers: bytes
    fates: bytes
    done: Callable[[], None]

    def begin(self, index: int) -> int:
        """Offset where message ``index`` (within the segment) begins."""
        return self.ends[index - 1] if index else 0


def cut_segments(
    streams: tuple[U8, I64, U8, I64], bounds: I64, sequence: I64, due: I64, fate: U8, done: Callable[[], None]
) -> list[Segment]:
    """What ``wire.encode_streams`` made, vehicle by vehicle.

    bounds (vehicles + 1,) into due (k,) and fate (k,), messages in the order of sending · sequence (vehicles,) number
    of each one's first message.
    """
    data, ends, answers, answer_at = streams
    view, expected = memoryview(data.data), answers.tobytes()
    segments, at = [], 0
    for v in range(len(sequence)):
        low, high = int(bounds[v]), int(bounds[v + 1])
        end = int(ends[high - 1]) if high > low else at
        segments.append(
            Segment(
                int(sequence[v]),
                high - low,
                view[at:end],
                (ends[low:high] - at).tolist(),
                due[low:high].tolist(),
                expected[answer_at[v] : answer_at[v + 1]],
                fate[low:high].tobytes(),
                done,
            )
        )
        at = end
    return segments


class Chunks:
    """Makes the fleet's chunks one after the other.

    ``speech`` (vehicles,) says how each vehicle speaks (``wire.MQTT_311``, ``MQTT_5``, ``GBT_TCP``); vehicle
    v's report k is collected at ``first_s[v] + k * period_s``.  ``reports`` per vehicle, None without end.
    """

    def __init__(
        self, fleet: Fleet, first_s: I64, period_s: int, speech: I64, odds: Mapping[str, float], reports: int | None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:  # fmt: skip
        self.fleet = fleet
        self.model = FleetModel(fleet, int(first_s.min()))
        self.counts: Counter[str] = Counter()
        self.alive = 0  # chunks made and not yet answered by every vehicle
        self.frame_bytes = 0.0  # mean of the newest chunk
        self.made = 0  # reports per vehicle that are in chunks
        self.reports = reports
        self.on_release: Callable[[], None] = lambda: None
        self._first_s = first_s
        self._period_s = period_s
        self._speech = speech
        self._odds = odds
        self._editions = fleet.params[:, P_EDITION].astype(np.int64)
        self._sequence = np.zeros(fleet.n, np.int64)
        self._blackouts = faults.Blackouts(fleet.n)
        self._faults: list[tuple[I64, I64, U8]] = []  # vehicle, time_s, which, of every report that has one
        self._reports_per_chunk = max(1, chunk_bytes // (_MESSAGE_BYTES * fleet.n))

    def truth(self, reported: I64) -> Iterator[dict[str, Any]]:
        """The truth up to the report number ``reported[v]`` (counted from 1; 0 = none) of each vehicle.

        Chunks are made ahead of sending, so this is computed anew: the same fleet does the same again.
        """
        model = FleetModel(self.fleet, self.model.start_s)
        until = self._first_s + np.maximum(reported - 1, 0) * self._period_s
        until = np.where(reported > 0, until, model.start_s)
        model.counters_of(np.arange(self.fleet.n + 1, dtype=np.int64), until)
        yield from model.truth()
        yield from self._faults_until(until)

    def _faults_until(self, until: I64) -> Iterator[dict[str, Any]]:
        """What was done to the reports of each vehicle, by fault: spans of outages, seconds of the others."""
        if not self._faults:
            return
        vehicle, time_s, which = (np.concatenate(part) for part in zip(*self._faults, strict=True))
        order = np.lexsort((time_s, which, vehicle))
        order = order[time_s[order] <= until[vehicle[order]]]
        vehicle, time_s, which = vehicle[order], time_s[order], which[order]
        begins = np.flatnonzero(np.diff(vehicle * 256 + which, prepend=-1))
        for low, high in zip(begins, [*begins[1:], len(order)], strict=True):
            kind, times = int(which[low]), time_s[low:high]
            line = {"what": "fault", "vin": self.fleet.vins[vehicle[low]], "fault": faults.NAMES[kind - 1]}
            if kind in (faults.OUTAGE, faults.BLACKOUT):
                cuts = np.flatnonzero(np.diff(times) > self._period_s) + 1
                yield line | {"spans_s": [[int(one[0]), int(one[-1])] for one in np.split(times, cuts)]}
            else:
                yield line | {"times_s": times.tolist()}

    @property
    def exhausted(self) -> bool:
        return self.reports is not None and self.made >= self.reports

    def make(self, reports_max: int | None = None) -> list[Segment]:
        """The next chunk, a segment per vehicle (in the fleet's order).  CPU-bound; not to be run twice at once."""
        first = self.made
        last = first + min(self._reports_per_chunk, reports_max or self._reports_per_chunk)
        last = last if self.reports is None else min(last, self.reports)
        fleet, seed = self.fleet, self.fleet.seed
        plan = faults.make_plan(seed, self._odds, self._first_s, self._period_s, first, last, self._blackouts.until)
        samples = self.model.samples_of(plan.bounds, plan.time_s)
        claimed = faults.blemish(plan, samples, seed)
        if samples.silent.any():
            faults.keep(plan, samples.silent[plan.emitted] == 0)
        self._remember(plan, samples)
        frames, start, length = wire.encode_samples(
            samples, self._editions, fleet.vin, plan.command, claimed, fleet.model
        )
        faults.corrupt(plan, frames, start, length, seed)
        frames, start, length = self._blackouts.hold(plan, frames, start, length, last == self.reports)
        data, ends, answers, answer_at = wire.encode_streams(
            frames, start, length, plan.emitted_bounds, plan.emitted, self._speech, self._sequence, fleet.vin
        )
        left = fleet.n

        def done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.alive -= 1
                self.on_release()

        segments = cut_segments(
            (data, ends, answers, answer_at), plan.emitted_bounds, self._sequence, plan.due + first, plan.fate, done
        )
        self._sequence += np.diff(plan.emitted_bounds)
        self.counts.update(plan.counts)
        self.frame_bytes = float(length.mean()) if len(length) else 0.0
        self.made = last
        self.alive += 1
        return segments

    def _remember(self, plan: faults.Plan, samples: Samples) -> None:
        rows = np.flatnonzero((plan.fault > 0) & (samples.silent == 0))
        if len(rows):
            self._faults.append((samples.vehicle[rows], plan.time_s[rows], plan.fault[rows]))


def warm() -> None:
    """Compile every kernel of the simulator: a chunk of three vehicles, one per way to speak, with a fault drawn."""
    speech = np.array([wire.MQTT_311, wire.MQTT_5, wire.GBT_TCP], np.int64)
    Chunks(make_fleet(3, 1), np.full(3, 1_780_000_000, np.int64), 10, speech, {"loss": 1e-9}, 2).make()
    histogram.warm()
    wire.warm()
