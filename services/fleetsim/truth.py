"""What really happened to a fleet, line by line, in the words of the statistics that should find it.

In: the events and states that the physics kept.  Out: dicts for the truth file (README: what each line means).  The
rules by which a drive is a trip and runs are a charge are those of the statistics, applied to every second of the
model instead of to what was reported of it; nothing here has read a report.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.fleetsim import physics as ph
from services.fleetsim.vehicle import CATALOGUE, CITIES, P_CAPACITY_AH, P_WEAK_CELL, Fleet

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

DAY_S: Final = 86_400
TRIP_KM_MIN, TRIP_S_MIN = 0.5, 300  # one of both makes a trip (4.2)
CHARGE_S_MIN, CHARGE_SOC_MIN, CHARGE_KWH_MIN = 120, 1, 0.1  # the first, and one of the others (4.4)
MERGE_S_MAX, MERGE_KM_MAX = 600, 0.1  # runs of charging so near to each other are one charge (4.4)


def truth_lines(fleet: Fleet, start_s: int, now: I64, first: F64, states: F64, events: F64) -> Iterator[dict[str, Any]]:
    """Trips and charges, fires, days, vehicles: those of each vehicle together, by time.

    now (n,): the second up to which each vehicle's truth goes · first, states (n, STATE_COUNT): at ``start_s``, and
    then · events (k, EVENT_COUNT) in any order.
    """
    order = np.lexsort((events[:, ph.E_START_S], events[:, ph.E_VEHICLE]))
    events = events[order]
    bounds = np.searchsorted(events[:, ph.E_VEHICLE], np.arange(fleet.n + 1))
    for v, vin in enumerate(fleet.vins):
        own = events[bounds[v] : bounds[v + 1]]
        yield from _trips(vin, own[own[:, ph.E_WHAT] == ph.DRIVING], states[v])
        yield from _charges(vin, own[own[:, ph.E_WHAT] == ph.CHARGING], states[v], int(now[v]))
        for line in own[own[:, ph.E_WHAT] == ph.BURNT]:
            yield {"what": "thermal_event", "vin": vin, "start_s": int(line[ph.E_START_S])}
        midnights = own[own[:, ph.E_WHAT] == ph.MIDNIGHT]
        yield from _days(vin, start_s, int(now[v]), first[v], states[v], midnights)
        yield _vehicle(fleet, v, start_s, int(now[v]), first[v], states[v])


def _session(what: str, vin: str, line: F64, is_open: bool) -> dict[str, Any]:
    return {
        "what": what,
        "vin": vin,
        "start_s": int(line[ph.E_START_S]),
        "end_s": int(line[ph.E_END_S]),
        "open": is_open,
        "start_soc_pct": round(100 * float(line[ph.E_START_SOC]), 3),
        "end_soc_pct": round(100 * float(line[ph.E_END_SOC]), 3),
        "distance_km": round(float(line[ph.E_DISTANCE_M]) / 1000, 4),
        "energy_kwh": round(float(line[ph.E_ENERGY_J]) / 3.6e6, 5),
        "charge_ah": round(float(line[ph.E_CHARGE_AS]) / 3600, 5),
    }


def _trips(vin: str, lines: F64, state: F64) -> Iterator[dict[str, Any]]:
    found = [(line, False) for line in lines]
    if state[ph.S_MODE] == ph.DRIVING and state[ph.S_RUN_S] > 0:
        line = np.zeros(ph.EVENT_COUNT)
        line[[ph.E_START_S, ph.E_START_SOC, ph.E_ON_S]] = state[[ph.S_RUN_S, ph.S_RUN_SOC, ph.S_BEGUN_S]]
        line[[ph.E_END_S, ph.E_END_SOC]] = state[[ph.S_LAST_S, ph.S_LAST_SOC]]
        line[ph.E_DISTANCE_M] = state[ph.S_LAST_M] - state[ph.S_RUN_M]
        line[ph.E_ENERGY_J] = state[ph.S_LAST_J] - state[ph.S_RUN_J]
        line[ph.E_CHARGE_AS] = state[ph.S_LAST_AS] - state[ph.S_RUN_AS]
        found.append((line, True))
    for line, is_open in found:
        trip = _session("trip", vin, line, is_open)
        long = trip["distance_km"] >= TRIP_KM_MIN or trip["end_s"] - trip["start_s"] >= TRIP_S_MIN
        yield trip | {"kept": long, "on_s": int(line[ph.E_ON_S])}


def _soc_shown(soc: float) -> int:
    """As reported: whole percent."""
    return int(soc * 100.0 + 0.5)


def _charges(vin: str, lines: F64, state: F64, now: int) -> Iterator[dict[str, Any]]:
    """Runs of charging, those that are one charge by rule put together."""
    found = [(line, False) for line in lines]
    if state[ph.S_MODE] == ph.CHARGING and now > state[ph.S_BEGUN_S]:
        line = np.zeros(ph.EVENT_COUNT)
        line[[ph.E_START_S, ph.E_START_SOC, ph.E_ON_S, ph.E_START_M]] = state[
            [ph.S_BEGUN_S, ph.S_BEGUN_SOC, ph.S_BEGUN_S, ph.S_BEGUN_M]
        ]
        line[[ph.E_END_S, ph.E_END_SOC]] = now, state[ph.S_SOC]
        line[ph.E_ENERGY_J] = state[ph.S_OUT_J] - state[ph.S_BACK_J] - state[ph.S_CHARGED_J] - state[ph.S_BEGUN_J]
        line[ph.E_CHARGE_AS] = state[ph.S_OUT_AS] - state[ph.S_CHARGED_AS] - state[ph.S_BEGUN_AS]
        found.append((line, True))
    at = 0
    while at < len(found):
        whole, is_open = found[at][0].copy(), found[at][1]
        runs = 1
        while at + runs < len(found):
            line, line_open = found[at + runs]
            near = line[ph.E_START_S] - whole[ph.E_END_S] <= MERGE_S_MAX
            still = line[ph.E_START_M] - whole[ph.E_START_M] < 1000 * MERGE_KM_MAX
            if not (near and still and _soc_shown(line[ph.E_START_SOC]) >= _soc_shown(whole[ph.E_END_SOC])):
                break
            whole[[ph.E_END_S, ph.E_END_SOC]] = line[[ph.E_END_S, ph.E_END_SOC]]
            whole[[ph.E_ENERGY_J, ph.E_CHARGE_AS]] += line[[ph.E_ENERGY_J, ph.E_CHARGE_AS]]
            is_open, runs = line_open, runs + 1
        at += runs
        charge = _session("charge", vin, whole, is_open)
        gained = _soc_shown(whole[ph.E_END_SOC]) - _soc_shown(whole[ph.E_START_SOC])
        long = charge["end_s"] - charge["start_s"] >= CHARGE_S_MIN
        yield charge | {
            "kept": long and (gained >= CHARGE_SOC_MIN or charge["energy_kwh"] <= -CHARGE_KWH_MIN),
            "runs": runs,
        }


def _counted(state: F64) -> F64:
    """The counters of a state, as a midnight has them."""
    out = np.zeros(ph.COUNTERS)
    out[ph.C_ODOMETER_M], out[ph.C_OUT_J], out[ph.C_BACK_J] = state[[ph.S_ODOMETER_M, ph.S_OUT_J, ph.S_BACK_J]]
    out[ph.C_CHARGED_J], out[ph.C_STOOD_J], out[ph.C_OUT_AS] = state[[ph.S_CHARGED_J, ph.S_STOOD_J, ph.S_OUT_AS]]
    out[ph.C_CHARGED_AS], out[ph.C_MOVING_S], out[ph.C_CHARGING_S], out[ph.C_SOC] = state[
        [ph.S_CHARGED_AS, ph.S_MOVING_S, ph.S_CHARGING_S, ph.S_SOC]
    ]
    return out


def sums(counters: F64) -> dict[str, float]:
    """What a difference of two counters says, in the units of the statistics' measures."""
    return {
        "distance_km": round(float(counters[ph.C_ODOMETER_M]) / 1000, 4),
        "consumption_kwh": round(float(counters[ph.C_OUT_J] - counters[ph.C_BACK_J]) / 3.6e6, 5),
        "out_kwh": round(float(counters[ph.C_OUT_J] - counters[ph.C_STOOD_J]) / 3.6e6, 5),
        "regen_kwh": round(float(counters[ph.C_BACK_J]) / 3.6e6, 5),
        "standing_kwh": round(float(counters[ph.C_STOOD_J]) / 3.6e6, 5),
        "charge_kwh": round(float(counters[ph.C_CHARGED_J]) / 3.6e6, 5),
        "discharge_ah": round(float(counters[ph.C_OUT_AS]) / 3600, 5),
        "charge_ah": round(float(counters[ph.C_CHARGED_AS]) / 3600, 5),
        "moving_s": float(counters[ph.C_MOVING_S]),
        "charging_s": float(counters[ph.C_CHARGING_S]),
    }


def _days(vin: str, start_s: int, now: int, first: F64, last: F64, midnights: F64) -> Iterator[dict[str, Any]]:
    cuts = [(start_s, _counted(first))]
    cuts += [
        (int(line[ph.E_START_S]), line[ph.E_COUNTERS : ph.E_COUNTERS + ph.COUNTERS])
        for line in midnights
        if line[ph.E_START_S] > start_s
    ]
    if now > cuts[-1][0]:
        cuts.append((now, _counted(last)))
    for (begin, before), (end, after) in pairwise(cuts):
        day = datetime.fromtimestamp(begin + ph.LOCAL_OFFSET_S, UTC).date().isoformat()
        yield {"what": "day", "vin": vin, "day": day, "start_s": begin, "end_s": end, **sums(after - before)}


def _vehicle(fleet: Fleet, v: int, start_s: int, now: int, first: F64, last: F64) -> dict[str, Any]:
    model = CATALOGUE[fleet.model[v]]
    weak = int(fleet.params[v, P_WEAK_CELL]) + 1 or None
    return {
        "what": "vehicle",
        "vin": fleet.vins[v],
        "model": model.name,
        "usage": model.usage.name.lower(),
        "chemistry": model.chemistry.name,
        "city": CITIES[fleet.city[v]][0],
        "edition": model.edition,
        "cells": model.cells,
        "capacity_ah": round(float(fleet.params[v, P_CAPACITY_AH]), 3),
        "rated_capacity_ah": model.capacity_ah,
        "weak_cell": weak,
        "weak_since_s": start_s if weak else None,
        "start_s": start_s,
        "end_s": now,
        "start_soc_pct": round(100 * float(first[ph.S_SOC]), 3),
        "end_soc_pct": round(100 * float(last[ph.S_SOC]), 3),
        "distance_km": round(float(last[ph.S_ODOMETER_M] - first[ph.S_ODOMETER_M]) / 1000, 4),
        "discharged_kwh": round(float(last[ph.S_OUT_J]) / 3.6e6, 5),
        "regenerated_kwh": round(float(last[ph.S_BACK_J]) / 3.6e6, 5),
        "charged_kwh": round(float(last[ph.S_CHARGED_J]) / 3.6e6, 5),
        "discharged_ah": round(float(last[ph.S_OUT_AS]) / 3600, 5),
        "charged_ah": round(float(last[ph.S_CHARGED_AS]) / 3600, 5),
    }
