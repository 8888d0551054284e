"""Scenarios: which vehicle reports when, as arithmetic.  No clock, no socket; everything is a function of the settings.

A plan covers the vehicles of one process out of all of them.  Seconds count from the start of the load; a vehicle's
reports are numbered from 0.  ``due_s`` says when a report is collected, ``count`` how many are by then, ``sendable``
how many may go out, which is fewer while a link is cut.  Together the vehicles of all processes report at the wanted
rate: nothing depends on how they are divided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I64

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

PEAKS: Final = ((8.0, 1.3), (18.0, 1.7))  # of the day that commute presses into the duration: hour, width
STORM_AT: Final = 0.4  # of the duration
QUIET_S: Final = 1.0  # before and after a storm's reports nobody else reports: a report a second and vehicle at most
PLUGGED_SHARE: Final = 0.8  # of the vehicles plug in
PLUG_FROM, PLUG_TO = 0.1, 0.6  # of the duration: when they do, most in the middle
CHARGING_FACTOR: Final = 3.0  # charging vehicles report so many times as often
OUTAGE_FROM, OUTAGE_TO = 0.35, 0.6  # of the duration
OUTAGE_SHARE: Final = 0.3  # of the vehicles lose their link
CATCH_UP: Final = 4.0  # afterwards they send so many times as fast as they collect, until nothing is left
_NEVER: Final = -1.0


@dataclass(frozen=True, slots=True)
class Cut:
    """At ``at_s`` the links of ``who`` (vehicles,) are lost, and cannot come back before ``until_s``."""

    at_s: float
    until_s: float
    who: Flags


class Plan:
    """``part``: the vehicles' numbers, out of ``vehicles``."""

    def __init__(self, part: I64, vehicles: int, duration_s: float) -> None:
        self.part = part
        self.vehicles = vehicles
        self.duration_s = duration_s
        self.cuts: list[Cut] = []
        self._outage: Cut | None = None

    # -- what a scenario says ------------------------------------------------------------------------
    def due_s(self, vehicle: I64, k: I64) -> F64:
        """When report ``k`` (n,) of ``vehicle`` (n,) (index into ``part``) is collected."""
        raise NotImplementedError

    def count(self, at_s: float) -> I64:
        """(vehicles of the part,): reports collected by then."""
        raise NotImplementedError

    def earliest(self) -> F64:
        """(vehicles of the part,): the least of ``due_s - k`` over a vehicle's reports."""
        raise NotImplementedError

    @property
    def per_vehicle_max(self) -> float:
        """The most reports of a vehicle per second, at any time."""
        raise NotImplementedError

    def charging(self, vehicle: I64, due_s: F64) -> Flags:  # noqa: ARG002 - most scenarios have none
        return np.zeros(len(vehicle), bool)

    # -- what follows from it ------------------------------------------------------------------------
    @property
    def total(self) -> int:
        """Reports of the part."""
        return int(self.count(self.duration_s).sum())

    def cut_off(self, share: float, from_s: float, to_s: float, seed: int) -> None:
        """Take ``share`` of all links away from ``from_s`` to ``to_s``."""
        rank = np.random.default_rng(seed + 1).permutation(self.vehicles)[self.part]
        self._outage = Cut(from_s, to_s, rank < share * self.vehicles)
        self.cuts.append(self._outage)

    def sendable(self, at_s: float) -> I64:
        """(vehicles of the part,): reports that may have been sent by then; in order, so what was held goes first."""
        collected = self.count(at_s)
        if self._outage is None or at_s < self._outage.at_s:
            return collected
        out = self._outage
        behind_s = min(at_s, out.at_s + CATCH_UP * max(at_s - out.until_s, 0.0))
        return np.where(out.who, self.count(behind_s), collected)

    def late(self, vehicle: I64, due_s: F64) -> Flags:
        """Is the report collected while its vehicle has no link?"""
        if self._outage is None:
            return np.zeros(len(vehicle), bool)
        return self._outage.who[vehicle] & (due_s >= self._outage.at_s) & (due_s < self._outage.until_s)

    def data_times(self, vehicle: I64, k: I64, start_s: int) -> I64:
        """The time in report ``k``, when the load starts at ``start_s`` (since 1970 UTC); never after it is due.

        A vehicle that reports once a second at most dates its reports as it sends them.  A faster one would run ahead
        of the clock: its reports are a second apart all the same, and begin as long before now as that takes.
        """
        if self.per_vehicle_max <= 1.0:
            return start_s + np.floor(self.due_s(vehicle, k)).astype(np.int64)
        return start_s + np.floor(self.earliest()).astype(np.int64)[vehicle] + k

    def back_s(self) -> float:
        """How long before the start the first report is dated."""
        if self.per_vehicle_max <= 1.0:
            return 0.0
        return float(-np.floor(self.earliest().min()))

    def slices(self, frames: int) -> list[float]:
        """Seconds that cut the plan into parts of about so many frames; the first is 0, the last the duration."""
        at = np.linspace(0.0, self.duration_s, 257)
        made = np.array([self.count(float(t)).sum() for t in at], np.float64)
        parts = max(int(np.ceil(made[-1] / frames)), 1)
        inner = np.interp(made[-1] * np.arange(1, parts) / parts, made, at)
        return [0.0, *np.unique(inner).tolist(), self.duration_s]


class Together(Plan):
    """All vehicles follow one curve: frame g is vehicle g mod N's, and due when the curve reaches g + 1/2.

    seconds (n,) and frames (n,): the curve, straight in between; a jump is two points of one second.
    """

    def __init__(self, part: I64, vehicles: int, seconds: F64, frames: F64) -> None:
        super().__init__(part, vehicles, float(seconds[-1]))
        self._seconds, self._frames = seconds, frames

    def due_s(self, vehicle: I64, k: I64) -> F64:
        found: F64 = np.interp(self.part[vehicle] + k * self.vehicles + 0.5, self._frames, self._seconds)
        return found

    def count(self, at_s: float) -> I64:
        seconds, frames = self._seconds, self._frames
        i = min(int(np.searchsorted(seconds, at_s, "right")) - 1, len(seconds) - 1)
        reached = frames[i]
        if i + 1 < len(seconds):
            reached = frames[i] + (at_s - seconds[i]) / (seconds[i + 1] - seconds[i]) * (frames[i + 1] - frames[i])
        found: I64 = np.maximum(np.floor((reached - self.part - 0.5) / self.vehicles) + 1, 0).astype(np.int64)
        return found

    def earliest(self) -> F64:
        least = float((self._seconds - self._frames / self.vehicles).min())  # of something straight: at a corner
        found: F64 = least + (self.part + 0.5) / self.vehicles
        return found

    @property
    def per_vehicle_max(self) -> float:
        span, more = np.diff(self._seconds), np.diff(self._frames)
        for i in np.flatnonzero(span == 0):  # a jump: no other report of a vehicle may be within a second of it
            if (more[[i - 1, i + 1]] > 0).any() or (span[[i - 1, i + 1]] < QUIET_S).any():
                return float("inf")
        return float((more[span > 0] / span[span > 0]).max() / self.vehicles)


class Wave(Plan):
    """Each vehicle at a rate of its own, and from the second it is plugged in at a higher one.

    plugged_s (all vehicles,): when; the duration for those that do not plug in.
    """

    def __init__(self, part: I64, vehicles: int, duration_s: float, frames: float, plugged_s: F64) -> None:
        super().__init__(part, vehicles, duration_s)
        self._slow = frames / float((plugged_s + CHARGING_FACTOR * (duration_s - plugged_s)).sum())
        self._plugged_s = plugged_s[part]
        self._phase = (part + 0.5) / vehicles

    def due_s(self, vehicle: I64, k: I64) -> F64:
        plugged, slow = self._plugged_s[vehicle], self._slow
        turn = self._phase[vehicle] + k
        before = turn / slow
        after = plugged + (turn - slow * plugged) / (CHARGING_FACTOR * slow)
        return np.where(before < plugged, before, after)

    def count(self, at_s: float) -> I64:
        after = np.maximum(at_s - self._plugged_s, 0.0)
        turns = self._slow * (at_s - after + CHARGING_FACTOR * after)
        found: I64 = np.maximum(np.floor(turns - self._phase) + 1, 0).astype(np.int64)
        return found

    def earliest(self) -> F64:
        corner = self._plugged_s - self._slow * self._plugged_s
        end = self.duration_s - self._slow * (
            self._plugged_s + CHARGING_FACTOR * (self.duration_s - self._plugged_s)
        )  # fmt: skip
        return np.minimum(np.minimum(corner, end), 0.0) + self._phase

    @property
    def per_vehicle_max(self) -> float:
        return CHARGING_FACTOR * self._slow

    def charging(self, vehicle: I64, due_s: F64) -> Flags:
        found: Flags = due_s >= self._plugged_s[vehicle]
        return found

    def charging_since(self) -> I64:
        """(vehicles of the part,): number of the first report that is one of charging."""
        return np.maximum(np.ceil(self._slow * self._plugged_s - self._phase), 0).astype(np.int64)


# -- the scenarios -------------------------------------------------------------------------------------
def _steady(part: I64, vehicles: int, rate: float, duration_s: float, seed: int) -> Plan:  # noqa: ARG001
    return Together(part, vehicles, np.array([0.0, duration_s]), np.array([0.0, rate * duration_s]))


def _commute(part: I64, vehicles: int, rate: float, duration_s: float, seed: int) -> Plan:  # noqa: ARG001
    hours = np.linspace(0.0, 24.0, 289)
    weight = np.full(len(hours), 0.3)
    for peak, width in PEAKS:
        weight += 1.6 * np.exp(-(((hours - peak) / width) ** 2) / 2)
    made = np.concatenate([[0.0], np.cumsum((weight[1:] + weight[:-1]) / 2)])
    return Together(part, vehicles, hours / 24.0 * duration_s, made / made[-1] * rate * duration_s)


def _storm(part: I64, vehicles: int, rate: float, duration_s: float, seed: int) -> Plan:  # noqa: ARG001
    at, quiet = STORM_AT * duration_s, min(QUIET_S, 0.05 * duration_s)
    others = rate * duration_s
    before = others * (at - quiet) / (duration_s - 2 * quiet)
    plan = Together(
        part, vehicles, np.array([0.0, at - quiet, at, at, at + quiet, duration_s]),
        np.array([0.0, before, before, before + vehicles, before + vehicles, others + vehicles]),
    )  # fmt: skip
    plan.cuts.append(Cut(at, at, np.ones(len(part), bool)))
    return plan


def _night_charging(part: I64, vehicles: int, rate: float, duration_s: float, seed: int) -> Plan:
    rank = (np.random.default_rng(seed).permutation(vehicles) + 0.5) / vehicles / PLUGGED_SHARE
    # quantiles of a triangle: few at first, most in the middle
    shape = np.where(rank < 0.5, np.sqrt(rank / 2), 1 - np.sqrt(np.maximum(1 - rank, 0.0) / 2))
    plugged = np.where(rank < 1.0, (PLUG_FROM + (PLUG_TO - PLUG_FROM) * shape) * duration_s, duration_s)
    return Wave(part, vehicles, duration_s, rate * duration_s, plugged)


def _outage(part: I64, vehicles: int, rate: float, duration_s: float, seed: int) -> Plan:
    plan = _steady(part, vehicles, rate, duration_s, seed)
    plan.cut_off(OUTAGE_SHARE, OUTAGE_FROM * duration_s, OUTAGE_TO * duration_s, seed)
    return plan


SCENARIOS: Final[Mapping[str, tuple[Callable[[I64, int, float, float, int], Plan], str]]] = {
    "steady": (_steady, "the same rate all the time"),
    "commute": (_commute, "a day with two peaks, at 8 and 18 hours, pressed into the duration; the rate is its mean"),
    "storm": (_storm, "steady; at 40 % of the time every link is lost at once, and each vehicle has a report to send"),
    "night-charging": (
        _night_charging,
        "four of five vehicles plug in between 10 and 60 % of the time, and then report charging, three times as often",
    ),
    "outage": (
        _outage,
        "steady; three of ten links are away from 35 to 60 % of the time, what they held comes afterwards, in order",
    ),
}


def make_plan(scenario: str, part: I64, vehicles: int, rate: float, duration_s: float, seed: int) -> Plan:
    """The plan of vehicles ``part`` out of ``vehicles``, at ``rate`` frames per second of all of them on average."""
    return SCENARIOS[scenario][0](part, vehicles, rate, duration_s, seed)
