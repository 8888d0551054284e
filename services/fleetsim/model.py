"""A fleet as a function of (seed, time), and the truth about it.

In: vehicles, seed, and for each vehicle the seconds at which it is looked at.  Out: signal arrays as
``schemas.batch.Batch`` has them, cells in mV, probe temperatures raw.  It sends nothing and knows no
wire format.  What happened is kept, so that statistics can be checked against it (``truth``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I32, I64, U8
from schemas.signals import SIGNAL_COUNT
from services.fleetsim import physics
from services.fleetsim.physics import EVENT_COUNT, MODE_SHORTEST_S, STATE_COUNT
from services.fleetsim.truth import DAY_S, truth_lines
from services.fleetsim.vehicle import P_CELLS, P_PROBES, Fleet

U16 = NDArray[np.uint16]


@dataclass(slots=True)
class Samples:
    """What vehicles say at their times, vehicle by vehicle.

    vehicle (n,) i64 index into the fleet · time_s (n,) i64 · num, state (n, SIGNAL_COUNT) ·
    cells (n, cells_max) u16 mV and cell_count (n,) i64 · temps (n, probes_max) u8 raw and probe_count (n,) i64 ·
    silent (n,) u8: 1 where the vehicle would not report at all (asleep, burnt).
    """

    vehicle: I64
    time_s: I64
    num: I32
    state: U8
    cells: U16
    cell_count: I64
    temps: U8
    probe_count: I64
    silent: U8

    @property
    def n(self) -> int:
        return len(self.time_s)


class FleetModel:
    """The vehicles of ``fleet`` from second ``start_s`` (since 1970 UTC) on."""

    def __init__(self, fleet: Fleet, start_s: int) -> None:
        self.fleet = fleet
        self.start_s = start_s
        self.now = np.full(fleet.n, start_s, np.int64)
        self.states = np.zeros((fleet.n, STATE_COUNT))
        self._events: list[NDArray[np.float64]] = []
        for v in range(fleet.n):
            physics.begin(fleet.params[v], self.states[v], start_s, fleet.seed, v)
        self.first_states = self.states.copy()

    def samples(self, times: I64) -> Samples:
        """Every vehicle at the same rising ``times`` (k,): n·k lines, vehicle by vehicle."""
        n, k = self.fleet.n, len(times)
        return self.samples_of(np.arange(n + 1, dtype=np.int64) * k, np.tile(times.astype(np.int64), n))

    def samples_of(self, bounds: I64, times: I64) -> Samples:
        """Vehicle v at ``times[bounds[v]:bounds[v + 1]]``, rising and not before what it was asked last."""
        fleet, n = self.fleet, len(times)
        counts = np.diff(bounds)
        vehicle = np.repeat(np.arange(fleet.n, dtype=np.int64), counts)
        cells_max, probes_max = int(fleet.params[:, P_CELLS].max()), int(fleet.params[:, P_PROBES].max())
        samples = Samples(
            vehicle, times, np.empty((n, SIGNAL_COUNT), np.int32), np.empty((n, SIGNAL_COUNT), np.uint8),
            np.zeros((n, cells_max), np.uint16), fleet.params[vehicle, P_CELLS].astype(np.int64),
            np.zeros((n, probes_max), np.uint8), fleet.params[vehicle, P_PROBES].astype(np.int64),
            np.zeros(n, np.uint8),
        )  # fmt: skip
        events = self._room(bounds, times)
        written = physics.look(
            fleet.params, fleet.cell_offset_mv, fleet.seed, 0, bounds, times, self.states, self.now, events,
            samples.num, samples.state, samples.cells, samples.temps, samples.silent,
        )  # fmt: skip
        self._events.append(events[:written].copy())
        return samples

    def counters_of(self, bounds: I64, times: I64) -> NDArray[np.float64]:
        """The counters (n, ``physics.COUNTERS``) at seconds as for :meth:`samples_of`: what is true between reports."""
        counters = np.empty((len(times), physics.COUNTERS))
        events = self._room(bounds, times)
        written = physics.trace(
            self.fleet.params, self.fleet.seed, 0, bounds, times, self.states, self.now, events, counters
        )
        self._events.append(events[:written].copy())
        return counters

    def _room(self, bounds: I64, times: I64) -> NDArray[np.float64]:
        """An array that holds the events up to ``times``."""
        last = np.where(np.diff(bounds) > 0, times[np.maximum(bounds[1:] - 1, 0)] if len(times) else 0, self.now)
        seconds = np.maximum(last - self.now, 0)
        # a trip or charge a minute at most, a midnight a day, each begun before; and one fire
        most = seconds // MODE_SHORTEST_S + seconds // DAY_S + 4
        return np.empty((int(most.sum()), EVENT_COUNT))

    def truth(self) -> Iterator[dict[str, Any]]:
        """What a statistic should find, up to the second each vehicle was looked at last: see ``truth``."""
        events = np.concatenate(self._events) if self._events else np.empty((0, EVENT_COUNT))
        return truth_lines(self.fleet, self.start_s, self.now, self.first_states, self.states, events)
