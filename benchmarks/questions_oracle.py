"""What the answers are, counted with NumPy over the values that went into the frames; no database, no SQL.

An answer is {key: values}.  ``slack``: by how much ours may be off, per key, where it counts seconds and the question
buckets of ten minutes; ``doubtful``: keys so near a limit that they may be in ours or not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import numpy as np

from benchmarks.questions_data import DAY_S, GAP_PERIODS, MODELS, START_S, Fleet, day_of

BUCKET_S: Final = 600
Answers = dict[Any, tuple[Any, ...]]


@dataclass(slots=True)
class Truth:
    rows: Answers
    slack: dict[Any, float] = field(default_factory=dict)
    doubtful: set[Any] = field(default_factory=set)


def parameters(fleet: Fleet, seed: int) -> dict[str, Any]:
    """What is asked for: a vehicle, a fleet, ten minutes, four hours, a day."""
    rng = np.random.default_rng([seed, 3])
    day = int(rng.integers(0, fleet.days))
    ten = START_S + int(rng.integers(6 * 6, fleet.days * 144 - 6)) * 600
    four = START_S + day * DAY_S + int(rng.integers(6, 12)) * 3600
    at = {"ten_since": ten, "ten_until": ten + 600, "since": four, "until": four + 4 * 3600,
          "day_since": START_S + day * DAY_S, "day_until": START_S + (day + 1) * DAY_S}  # fmt: skip
    return {
        "vin": fleet.vins[int(rng.integers(0, len(fleet.vins)))],
        "fleet": fleet.fleet[int(rng.integers(0, len(fleet.vins)))],
        "day": day_of(day), "gap_s": GAP_PERIODS * fleet.period_s,
        **{name: datetime.fromtimestamp(second, UTC) for name, second in at.items()},
    }  # fmt: skip


class Oracle:
    """All answers about ``fleet`` for the parameters ``given``."""

    def __init__(self, fleet: Fleet, given: dict[str, Any]) -> None:
        self.fleet, self.given = fleet, given
        self.of = [np.flatnonzero(fleet.v == v) for v in range(len(fleet.vins))]
        self.last = [at[-1] for at in self.of]
        self.c = fleet.column

    def answer(self, name: str) -> Truth:
        made = getattr(self, name.replace("-", "_"))()
        return made if isinstance(made, Truth) else Truth(made)

    def _fleet(self, every: bool = False) -> Iterator[int]:
        wanted = self.given["fleet"]
        return (v for v in range(len(self.fleet.vins)) if every or self.fleet.fleet[v] == wanted)

    def _model(self, v: int) -> str:
        return MODELS[self.fleet.model[v]][0]

    # -- newest
    def _places(self, which: Any) -> Answers:
        at = {v: self.last[v] for v in which}
        return {
            (self.fleet.vins[v],): (self.c["longitude_deg"][i] / 1e6, self.c["latitude_deg"][i] / 1e6)
            for v, i in at.items()
        }

    def single_last_loc(self) -> Answers:
        return self._places([self.fleet.vins.index(self.given["vin"])])

    def last_loc(self) -> Answers:
        return self._places(self._fleet())

    def last_location(self) -> Answers:
        return self._places(self._fleet(True))

    def _low(self, which: Any, below: int) -> Answers:
        soc = self.c["soc_pct"]
        return {(self.fleet.vins[v],): (int(soc[self.last[v]]),) for v in which if soc[self.last[v]] < below}

    def low_fuel(self) -> Answers:
        return self._low(self._fleet(), 10)

    def low_soc(self) -> Answers:
        return self._low(self._fleet(True), 20)

    def high_load(self) -> Answers:
        found = {}
        for v in self._fleet():
            load = self._kw()[self.last[v]] / MODELS[self.fleet.model[v]][1]
            if load > 0.9:
                found[self.fleet.vins[v],] = (load,)
        return found

    def parked_and_charging(self) -> Answers:
        charging = [v for v in self._fleet(True) if self.c["charge_state"][self.last[v]] == 1]
        return {(self.fleet.vins[v],): (int(self.c["soc_pct"][self.last[v]]),) for v in charging}

    # -- buckets
    def _kw(self) -> Any:
        return self.c["total_voltage_v"] * self.c["total_current_a"] / 1e5

    def _buckets(self, v: int, values: Any, since: int = 0, until: int = 1 << 40) -> tuple[Any, Any]:
        """(begin of each bucket that has reports, mean of ``values`` in it)."""
        at = self.of[v][(self.fleet.time[self.of[v]] >= since) & (self.fleet.time[self.of[v]] < until)]
        bucket, number = np.unique(self.fleet.time[at] // BUCKET_S * BUCKET_S, return_inverse=True)
        return bucket, np.bincount(number, values[at]) / np.maximum(1, np.bincount(number))

    def _day(self, second: Any) -> date:
        return day_of(int((second - START_S) // DAY_S))

    def stationary_trucks(self) -> Answers:
        a, b = (int(self.given[name].timestamp()) for name in ("ten_since", "ten_until"))
        found = {}
        for v in self._fleet():
            at = self.of[v][(self.fleet.time[self.of[v]] >= a) & (self.fleet.time[self.of[v]] < b)]
            if len(at) and self.c["speed_kmh"][at].mean() / 10 < 1:
                found[self.fleet.vins[v],] = ()
        return found

    def _long(self, since: str, until: str, more_than: int) -> Truth:
        a, b = (int(self.given[name].timestamp()) for name in (since, until))
        found, doubtful = {}, set()
        for v in self._fleet():
            driven = int((self._buckets(v, self.c["speed_kmh"], a, b)[1] / 10 > 1).sum())
            drives = sum(what == "drive" and begin < b and end > a for begin, end, what in self.fleet.segments[v])
            if driven > more_than:
                found[self.fleet.vins[v],] = ()
            if abs(driven - more_than) <= 2 * drives:  # each drive's first and last bucket
                doubtful.add((self.fleet.vins[v],))
        return Truth(found, doubtful=doubtful)

    def long_driving_sessions(self) -> Truth:
        return self._long("since", "until", 22)

    def long_daily_sessions(self) -> Truth:
        return self._long("day_since", "day_until", 60)

    def avg_daily_driving_duration(self) -> Truth:
        truth = Truth({})
        for v in self._fleet(True):
            bucket, speed = self._buckets(v, self.c["speed_kmh"])
            days = np.unique((bucket - START_S) // DAY_S)
            key = (self.fleet.fleet[v], self._model(v), self.fleet.vins[v])
            truth.rows[key] = (float((speed / 10 > 1).sum()) / 6 / len(days),)
            drives = sum(what == "drive" for _, _, what in self.fleet.segments[v]) + len(
                days
            )  # one may lie over midnight
            truth.slack[key] = 2 * drives / 6 / len(days)
        return truth

    def avg_daily_driving_session(self) -> Truth:
        truth, lengths = Truth({}), defaultdict(list)
        for v in self._fleet(True):
            bucket, speed = self._buckets(v, self.c["speed_kmh"])
            for run in _runs(bucket[speed / 10 > 5]):
                lengths[self.fleet.vins[v], self._day(run[0])].append(len(run) * BUCKET_S)
        for key, seconds in lengths.items():
            truth.rows[key] = (float(np.mean(seconds)),)
            truth.slack[key] = 2 * BUCKET_S
        return truth

    def daily_activity(self) -> Truth:
        truth = Truth({})
        count: dict[Any, int] = defaultdict(int)
        for v in self._fleet(True):
            bucket, level = self._buckets(v, self.c["alarm_level"])
            for second in bucket[level < 1]:
                count[self._day(second), self.fleet.fleet[v], self._model(v)] += 1
            for each in (self.fleet.segments[v], self.fleet.breakdowns[v]):
                for begin, end, *_ in each:
                    for second in {self._day(begin), self._day(end - 1)}:
                        key = (second, self.fleet.fleet[v], self._model(v))
                        truth.slack[key] = truth.slack.get(key, 0) + 2 / 144
        truth.rows = {key: (n / 144,) for key, n in count.items()}
        return truth

    def breakdown_frequency(self) -> Answers:
        count: dict[Any, int] = defaultdict(int)
        for v in self._fleet(True):
            bucket, broken = self._buckets(v, (self.c["alarm_level"] >= 2).astype(float))
            count[self._model(v),] += len(list(_runs(bucket[broken >= 0.5])))
        return {key: (n,) for key, n in count.items() if n}

    # -- what lies between reports
    def _used(self, v: int) -> tuple[Any, Any, Any]:
        """(kWh, km, day) of the intervals that are covered and in which nothing is plugged in."""
        at = self.of[v]
        time, kw = self.fleet.time[at], self._kw()[at]
        dt, plugged = np.diff(time), self.c["charge_state"][at] == 1
        use = (dt <= GAP_PERIODS * self.fleet.period_s) & ~plugged[1:] & ~plugged[:-1]
        kwh = (kw[1:] + kw[:-1]) / 2 * dt / 3600
        return kwh[use], np.diff(self.c["odometer_km"][at])[use] / 10, ((time[1:] - START_S) // DAY_S)[use]

    def avg_vs_projected_fuel_consumption(self) -> Answers:
        sums: dict[Any, Any] = defaultdict(lambda: np.zeros(3))
        for v in self._fleet(True):
            kwh, km, _ = self._used(v)
            sums[self.fleet.fleet[v],] += (kwh.sum(), km.sum(), km.sum() * MODELS[self.fleet.model[v]][2])
        return {key: (100 * kwh / km, certified / km) for key, (kwh, km, certified) in sums.items()}

    def energy_against_certified(self) -> Answers:
        sums: dict[Any, Any] = defaultdict(lambda: np.zeros(2))
        for v in self._fleet(True):
            kwh, km, _ = self._used(v)
            sums[self.fleet.model[v]] += (kwh.sum(), km.sum())
        return {(MODELS[m][0],): (100 * kwh / km / MODELS[m][2] - 1,) for m, (kwh, km) in sums.items()}

    def avg_load(self) -> Answers:
        loads = defaultdict(list)
        for v in self._fleet(True):
            kwh, _, day = self._used(v)
            for each in np.unique((self.fleet.time[self.of[v]] - START_S) // DAY_S):
                loads[self.fleet.fleet[v], self._model(v)].append(
                    kwh[day == each].sum() / MODELS[self.fleet.model[v]][1]
                )
        return {key: (float(np.mean(each)),) for key, each in loads.items()}

    # -- by day
    def _by_day(self, v: int, values: Any, how: Any) -> dict[date, float]:
        day = (self.fleet.time[self.of[v]] - START_S) // DAY_S
        return {day_of(int(d)): float(how(values[self.of[v]][day == d])) for d in np.unique(day)}

    def cell_imbalance(self) -> Answers:
        apart = self.c["cell_max_mv"] - self.c["cell_min_mv"]
        found: Answers = {}
        for v in self._fleet(True):
            found |= {(self.fleet.vins[v], d): (mv,) for d, mv in self._by_day(v, apart, np.max).items() if mv >= 80}
        return found

    def weak_insulation(self) -> Answers:
        per_v = self.c["insulation_resistance_kohm"] * 1e4 / self.c["total_voltage_v"]
        found: Answers = {}
        for v in self._fleet(True):
            found |= {(self.fleet.vins[v], d): (r,) for d, r in self._by_day(v, per_v, np.min).items() if r < 500}
        return found

    def long_driving(self) -> Answers:
        count: dict[Any, int] = defaultdict(int)
        for v in self._fleet(True):
            moving = self.fleet.time[self.of[v]][self.c["speed_kmh"][self.of[v]] > 0]
            for drive in np.split(moving, np.flatnonzero(np.diff(moving) >= 300) + 1):
                if drive[-1] - drive[0] > 7200:
                    count[self.fleet.vins[v], self._day(drive[0])] += 1
        return {key: (n,) for key, n in count.items()}

    def alarm_frequency(self) -> Answers:
        count: dict[Any, int] = defaultdict(int)
        for v in self._fleet(True):
            for bit in range(32):
                on = self.fleet.time[self.of[v]][self.c["alarm_flags"][self.of[v]] >> bit & 1 == 1]
                if len(on):
                    count[self._model(v), bit] += 1 + int((np.diff(on) > 120).sum())
        return {key: (n,) for key, n in count.items()}


def _runs(bucket: Any) -> Iterator[Any]:
    """Neighbouring buckets."""
    return (run for run in np.split(bucket, np.flatnonzero(np.diff(bucket) != BUCKET_S) + 1) if len(run))


# -- comparing -----------------------------------------------------------------------------------------
def answers(rows: list[tuple[Any, ...]], keys: int) -> Answers:
    found = {tuple(row[:keys]): tuple(_plain(value) for value in row[keys:]) for row in rows}
    assert len(found) == len(rows), "a key came twice"
    return found


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def differences(found: Answers, truth: Truth, ours: bool, relative: float = 1e-6) -> list[str]:
    """What disagrees; ``ours`` may be off by the truth's slack."""
    wrong = []
    doubtful = truth.doubtful if ours else set()
    for key in sorted({*found} ^ {*truth.rows}, key=repr):
        if key in doubtful or (ours and key in truth.slack and not (found.get(key) or (0,))[0] > truth.slack[key]):
            continue
        wrong.append(f"{key} is {'not wanted: ' + str(found[key]) if key in found else 'missing'}")
    for key in found.keys() & truth.rows.keys():
        slack = truth.slack.get(key, 0.0) if ours else 0.0
        for a, b in zip(found[key], truth.rows[key], strict=True):
            if abs(a - b) > relative * max(1.0, abs(b)) + slack:
                wrong.append(f"{key}: {a} instead of {b} (± {slack})")
    return wrong
