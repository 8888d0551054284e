"""A fleet as a function of (seed, time), and the truth about it.

In: vehicles, seed, and for each vehicle the seconds at which it is looked at.  Out: signal arrays as
``schemas.batch.Batch`` has them, cells in mV, probe temperatures raw.  It sends nothing and knows no
wire format.  The truth (trips, charges, energy, capacity) is kept so that statistics can be checked
against it.
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
from services.fleetsim.physics import E_VEHICLE, EVENT_COUNT, MODE_SHORTEST_S, STATE_COUNT
from services.fleetsim.vehicle import CATALOGUE, CITIES, P_CAPACITY_AH, P_CELLS, P_PROBES, P_WEAK_CELL, Fleet

U16 = NDArray[np.uint16]


@dataclass(slots=True)
class Samples:
    """What vehicles say at their times, vehicle by vehicle.

    vehicle (n,) i64 index into the fleet · time_s (n,) i64 · num, state (n, SIGNAL_COUNT) ·
    cells (n, cells_max) u16 mV and cell_count (n,) i64 · temps (n, probes_max) u8 raw and probe_count (n,) i64.
    """

    vehicle: I64
    time_s: I64
    num: I32
    state: U8
    cells: U16
    cell_count: I64
    temps: U8
    probe_count: I64

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
        )  # fmt: skip
        last = np.where(counts > 0, times[np.maximum(bounds[1:] - 1, 0)] if n else 0, self.now)
        seconds = int(np.maximum(last - self.now, 0).sum())
        events = np.empty((seconds // MODE_SHORTEST_S + fleet.n + 1, EVENT_COUNT))
        written = physics.look(
            fleet.params, fleet.cell_offset_mv, fleet.seed, 0, bounds, times, self.states, self.now, events,
            samples.num, samples.state, samples.cells, samples.temps,
        )  # fmt: skip
        if written:
            self._events.append(events[:written].copy())
        return samples

    def truth(self) -> Iterator[dict[str, Any]]:
        """Trips and charges that have ended, then a line per vehicle: what a statistic should find."""
        fleet, names = self.fleet, {physics.DRIVING: "trip", physics.CHARGING: "charge"}
        events = np.concatenate(self._events) if self._events else np.empty((0, EVENT_COUNT))
        for line in events[np.lexsort((events[:, physics.E_START_S], events[:, E_VEHICLE]))].tolist():
            yield {
                "what": names[line[physics.E_MODE]],
                "vin": fleet.vins[int(line[E_VEHICLE])],
                "start_s": int(line[physics.E_START_S]),
                "end_s": int(line[physics.E_END_S]),
                "start_soc_pct": round(100 * line[physics.E_START_SOC], 3),
                "end_soc_pct": round(100 * line[physics.E_END_SOC], 3),
                "distance_km": round(line[physics.E_DISTANCE_M] / 1000, 4),
                "energy_kwh": round(line[physics.E_ENERGY_J] / 3.6e6, 5),
                "charge_ah": round(line[physics.E_CHARGE_AS] / 3600, 5),
            }
        for v, vin in enumerate(fleet.vins):
            first, last, model = self.first_states[v], self.states[v], CATALOGUE[fleet.model[v]]
            yield {
                "what": "vehicle",
                "vin": vin,
                "model": model.name,
                "usage": model.usage.name.lower(),
                "chemistry": model.chemistry.name,
                "city": CITIES[fleet.city[v]][0],
                "edition": model.edition,
                "cells": model.cells,
                "capacity_ah": round(float(fleet.params[v, P_CAPACITY_AH]), 3),
                "rated_capacity_ah": model.capacity_ah,
                "weak_cell": int(fleet.params[v, P_WEAK_CELL]) + 1 or None,
                "start_s": self.start_s,
                "end_s": int(self.now[v]),
                "start_soc_pct": round(100 * float(first[physics.S_SOC]), 3),
                "end_soc_pct": round(100 * float(last[physics.S_SOC]), 3),
                "distance_km": round(float(last[physics.S_ODOMETER_M] - first[physics.S_ODOMETER_M]) / 1000, 4),
                "discharged_kwh": round(float(last[physics.S_OUT_J]) / 3.6e6, 5),
                "regenerated_kwh": round(float(last[physics.S_BACK_J]) / 3.6e6, 5),
                "charged_kwh": round(float(last[physics.S_CHARGED_J]) / 3.6e6, 5),
                "discharged_ah": round(float(last[physics.S_OUT_AS]) / 3600, 5),
                "charged_ah": round(float(last[physics.S_CHARGED_AS]) / 3600, 5),
            }
