"""Frames ahead of sending: a stock made by the simulator's physics, and chunks that give it new times and VINs.

Physics costs some 3 microseconds a frame, about what a gateway needs to take one; so a few hundred vehicles are
simulated for a while before the load starts, and what is sent is their frames with the VIN, command, time and check
byte of the vehicle and second at hand.  When the stock ends it is gone through backwards, so that no value jumps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from schemas.batch import I32, I64, U8
from schemas.gbt32960.commands import Command
from schemas.signals import INDEX
from services.errors import UsageError
from services.fleetsim import wire
from services.fleetsim.chunks import Segment, cut_segments
from services.fleetsim.faults import ROW
from services.fleetsim.model import FleetModel, Samples
from services.fleetsim.vehicle import CATALOGUE, P_EDITION, make_fleet, make_vin
from services.load.plans import F64, Plan, Wave

DEFAULT_MODEL: Final = "sedan-ncm-96"  # 2016 edition, 96 cells, 20 probes: a frame of about 330 bytes
SOURCES: Final = 192  # vehicles that are simulated
STOCK_REPORTS: Final = 240  # of each
SLICE_FRAMES: Final = 24_000  # of a chunk, about
AHEAD_FRAMES: Final = 4 * SLICE_FRAMES  # made and not yet sent, besides what a cut link holds back
IN_FLIGHT_MAX: Final = 500_000  # sent and not yet answered that frames are kept for: 200 MB
_CHARGING_SPAN_S, _CHARGING_STEP_S = 6 * 3600, 30
_CHARGING_REPORTS_MIN: Final = 20
_TIME_S: Final = 1_780_000_000  # when the stock is simulated; nobody sees it


@dataclass(frozen=True, slots=True)
class Stock:
    """Encoded frames of some vehicles: bytes, start (n,), length (n,); first (s,) and count (s,) rows of each."""

    frames: U8
    start: I64
    length: I32
    first: I64
    count: I64


def make_stock(seed: int, model: str, period_s: int, *, charging: bool = False) -> Stock:
    """Frames ``period_s`` apart; or, with ``charging``, whole charges of those vehicles that charge."""
    fleet = make_fleet(SOURCES, seed, model)
    editions = fleet.params[:, P_EDITION].astype(np.int64)
    physics = FleetModel(fleet, _TIME_S)
    if charging:
        samples = physics.samples(_TIME_S + np.arange(0, _CHARGING_SPAN_S, _CHARGING_STEP_S, dtype=np.int64))
        samples, first, count = _charges(samples)
    else:
        samples = physics.samples(_TIME_S + np.arange(STOCK_REPORTS, dtype=np.int64) * period_s)
        count = np.full(SOURCES, STOCK_REPORTS, np.int64)
        first = np.arange(SOURCES, dtype=np.int64) * STOCK_REPORTS
    command = np.full(samples.n, Command.REALTIME, np.uint8)
    frames, start, length = wire.encode_samples(samples, editions, fleet.vin, command, samples.time_s, fleet.model)
    return Stock(frames, start, length, first, count)


def _charges(samples: Samples) -> tuple[Samples, I64, I64]:
    """The longest charge of each vehicle that has one worth the name."""
    on = np.concatenate([[False], samples.num[:, INDEX["charge_state"]] == 1, [False]])
    begins, ends = np.flatnonzero(~on[:-1] & on[1:]), np.flatnonzero(on[:-1] & ~on[1:])
    # a charge at the end of one vehicle's lines must not go on into the next one's
    per = _CHARGING_SPAN_S // _CHARGING_STEP_S
    ends = np.minimum(ends, (begins // per + 1) * per)
    long = ends - begins >= _CHARGING_REPORTS_MIN
    assert long.any(), "of so many vehicles some charge within six hours"
    begins, ends = begins[long], ends[long]
    rows = np.concatenate([np.arange(b, e) for b, e in zip(begins, ends, strict=True)])
    count = ends - begins
    chosen = Samples(
        *(getattr(samples, name)[rows] for name in Samples.__dataclass_fields__),
    )
    return chosen, np.concatenate([[0], np.cumsum(count[:-1])]).astype(np.int64), count.astype(np.int64)


def check_model(model: str) -> None:
    """Raise ``UsageError`` when the catalogue has no such model."""
    names = [line.name for line in CATALOGUE]
    if model not in names:
        raise UsageError(f"load: --model {model!r} is not in the catalogue: {', '.join(names)}")


def make_vins(part: I64, seed: int, model: str) -> tuple[list[str], U8]:
    """VINs of vehicles ``part``: text, and (vehicles, 17) u8.  All of a seed and model begin alike (:func:`prefix`)."""
    number = next(i for i, line in enumerate(CATALOGUE) if line.name == model)
    vins = [make_vin(seed, int(v), number) for v in part]
    return vins, np.frombuffer("".join(vins).encode("ascii"), np.uint8).reshape(len(vins), 17).copy()


def prefix(seed: int, model: str) -> str:
    """What the VINs of a load begin with, and no other seed's do but one in some 36,000."""
    return make_vins(np.zeros(1, np.int64), seed, model)[0][0][:8]


class Supply:
    """Makes the plan's chunks one after the other.  CPU-bound, in one thread at a time.

    speech (vehicles of the part,) as ``wire.encode_streams`` has it; the load starts at ``start_s``.
    """

    def __init__(self, plan: Plan, vins: U8, speech: I64, seed: int, model: str) -> None:
        n = len(plan.part)
        self.plan = plan
        self.made = 0  # frames in chunks
        self.made_until_s = 0.0
        self.frame_bytes = 0.0
        self._vins, self._speech = vins, speech
        self._slices = plan.slices(SLICE_FRAMES)
        self._next = 1
        self._before = np.zeros(n, np.int64)
        period_s = min(max(round(n and plan.duration_s * n / max(plan.total, 1)), 1), 30)
        self._driving = make_stock(seed, model, period_s)
        self._charging = make_stock(seed, model, period_s, charging=True) if isinstance(plan, Wave) else None
        self._since = plan.charging_since() if isinstance(plan, Wave) else np.zeros(n, np.int64)
        one, two = self._driving, self._charging
        self._stock = (one.frames, one.start, one.length)
        if two is not None:
            self._stock = (
                np.concatenate([one.frames, two.frames]),
                np.concatenate([one.start, two.start + len(one.frames)]),
                np.concatenate([one.length, two.length]),
            )

    @property
    def exhausted(self) -> bool:
        return self._next >= len(self._slices)

    def make(self, start_s: int, done: Callable[[], None]) -> list[tuple[int, Segment]]:
        """The next chunk: (vehicle, what it sends); ``done`` is called for each when it is answered."""
        plan, until_s = self.plan, self._slices[self._next]
        upto = plan.count(until_s)
        counts = upto - self._before
        vehicle = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        k = np.arange(len(vehicle), dtype=np.int64) - np.repeat(bounds[:-1] - self._before, counts)
        due_s = plan.due_s(vehicle, k)
        late = plan.late(vehicle, due_s) & (self._speech[vehicle] == wire.GBT_TCP)
        command = np.where(late, Command.REISSUE, Command.REALTIME).astype(np.uint8)
        time_s = plan.data_times(vehicle, k, start_s)
        row = self._rows(vehicle, k, due_s)
        frames, start, length = wire.restamp(*self._stock, row, vehicle, self._vins, command, time_s)
        order = np.arange(len(vehicle), dtype=np.int64)
        streams = wire.encode_streams(frames, start, length, bounds, order, self._speech, self._before, self._vins)
        segments = cut_segments(
            streams, bounds, self._before, k + 1, np.full(len(vehicle), ROW, np.uint8), done
        )  # fmt: skip
        self.made += len(vehicle)
        self.made_until_s = until_s
        self.frame_bytes = float(length.mean()) if len(length) else self.frame_bytes
        self._before = upto
        self._next += 1
        return [(v, segments[v]) for v in np.flatnonzero(counts).tolist()]

    def _rows(self, vehicle: I64, k: I64, due_s: F64) -> I64:
        """Which row of the stock each report is."""
        one, two = self._driving, self._charging
        number = self.plan.part[vehicle]
        source, shift = number % len(one.first), number // len(one.first) * 37
        there_and_back = 2 * one.count[source] - 2
        at = (k + shift) % there_and_back
        row: I64 = one.first[source] + np.minimum(at, there_and_back - at)
        if two is None:
            return row
        source = number % len(two.first)
        nth = np.clip(k - self._since[vehicle], 0, two.count[source] - 1)  # charged to the end: it stays there
        charging: I64 = np.where(self.plan.charging(vehicle, due_s), len(one.start) + two.first[source] + nth, row)
        return charging
