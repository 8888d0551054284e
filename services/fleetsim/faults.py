"""What goes wrong between a vehicle and the platform: one table of names and odds.

In: the plan of a chunk (which vehicle reports when).  Out: the same plan with faults in it, and how
many of each, so that what is sent, what must be stored and what must be refused is known to the frame.
Nothing is drawn from a stateful generator; the same seed gives the same faults.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I32, I64, U8
from schemas.jit import compiled
from schemas.signals import INDEX, State
from services.fleetsim.model import Samples
from services.fleetsim.noise import uniform


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.  ``odds`` per report in the preset "dirty"; of outages and bursts, that one begins."""

    name: str
    odds: float
    demo_odds: float
    meaning: str


# The odds of "dirty" are of the order that real fleets show; "demo" is a little realism without rejects.
FAULTS: Final[tuple[Fault, ...]] = (
    Fault("loss", 0.004, 0.0005, "the report is never sent"),
    Fault("duplicate", 0.004, 0.0005, "the report is sent twice, as a message of its own"),
    Fault("disorder", 0.006, 0.0005, "the report changes places with the next one"),
    Fault("wrong_clock", 0.0005, 0.0, "the report is dated 2000 or 2099: must be refused"),
    Fault("sentinel", 0.010, 0.002, "a few fields read abnormal (0xFE..) or invalid (0xFF..)"),
    Fault(
        "corrupt", 0.0005, 0.0, "a byte of the data unit is changed on the way, the check byte is not: must be refused"
    ),
    Fault("outage", 0.0010, 0.0002, "no link for some reports, which come afterwards as reissues (0x03)"),
    Fault("burst", 0.0003, 0.00005, "level-3 alarm: 1 Hz from 30 s before (as 0x03) to 30 s after"),
    Fault("blackout", 0.0, 0.0, "no link for six hours; its reports come afterwards as reissues, between live ones"),
)
LOSS, DUPLICATE, DISORDER, WRONG_CLOCK, SENTINEL, CORRUPT, OUTAGE, BURST, BLACKOUT = range(1, len(FAULTS) + 1)
NAMES: Final = tuple(fault.name for fault in FAULTS)
PRESETS: Final[Mapping[str, Mapping[str, float]]] = {
    "none": {},
    "demo": {fault.name: fault.demo_odds for fault in FAULTS},
    "dirty": {fault.name: fault.odds for fault in FAULTS},
}

ROW, REFUSED, REPEATED = 0, 1, 2
OUTAGE_REPORTS_MAX: Final = 12
BLACKOUT_S: Final = 6 * 3600
REISSUES_PER_REPORT: Final = 20  # after a blackout: reissues must not hold up live data
BURST_S: Final = 30  # before and after (clause 2016 5.3, 2025 the same)
_DRAW: Final = 1 << 20  # number of the draw, apart from those of the physics
YEAR_2000_S: Final = 946_700_000
YEAR_2099_S: Final = 4_072_000_000


def odds_of(faults: str | Mapping[str, float]) -> dict[str, float]:
    """Odds by name from a preset's name or a table.  Raises ``ValueError`` for an unknown name or odds outside 0..1."""
    if isinstance(faults, str):
        if faults not in PRESETS:
            raise ValueError(f"no fault preset {faults!r}: use {', '.join(PRESETS)}")
        return dict(PRESETS[faults])
    for name, odds in faults.items():
        if name not in NAMES:
            raise ValueError(f"no fault {name!r}: there are {', '.join(NAMES)}")
        if not 0.0 <= odds <= 1.0:
            raise ValueError(f"odds of {name} are {odds}: they are a probability, 0 to 1")
    if sum(faults.values()) > 1.0:
        raise ValueError(f"the odds add up to {sum(faults.values())}: a report has one fault at most, so at most 1")
    return dict(faults)


@dataclass(slots=True)
class Plan:
    """Reports of a chunk, vehicle by vehicle, and the order in which they are sent.

    bounds (vehicles + 1,) into time_s (n,) i64, rising per vehicle · command (n,) u8 · fault (n,) u8 (0, or a
    number of ``FAULTS``) · alarm (n,) u8 1 where the level-3 alarm is up · due (k,) i64 how many base reports of
    the chunk must be due before the message may go · emitted (k,) rows in the order of sending, emitted_bounds
    (vehicles + 1,) · fate (k,) u8 what becomes of each message: ``ROW``, ``REFUSED``, ``REPEATED`` (the row is
    there already).  counts: reports by fault, and ``reports``, ``messages``, ``stored``, ``rejected``.
    """

    bounds: I64
    time_s: I64
    command: U8
    fault: U8
    alarm: U8
    emitted_bounds: I64
    emitted: I64
    due: I64
    fate: U8
    counts: dict[str, int] = field(default_factory=dict)


@compiled
def _draw(seed: int, vehicles: int, first: int, last: int, edges: np.ndarray, out: U8) -> None:
    for v in range(vehicles):
        for k in range(first, last):
            dice = uniform(seed, v, k, _DRAW)
            kind = 0
            for f in range(len(edges)):
                if dice < edges[f]:
                    kind = f + 1
                    break
            out[v, k - first] = kind


@compiled
def _black_out(marks: U8, first: int, reports: int, until: I64) -> int:
    """Carry blackouts on over their reports; returns how many begin.

    until (vehicles,): the base report with which the link is back.
    """
    begun = 0
    for v in range(len(marks)):
        for k in range(marks.shape[1]):
            if marks[v, k] == BLACKOUT and first + k >= until[v]:
                until[v] = first + k + reports
                begun += 1
            if first + k < until[v]:
                marks[v, k] = BLACKOUT
    return begun


def make_plan(
    seed: int, odds: Mapping[str, float], first_s: I64, period_s: int, first: int, last: int,
    black_until: I64 | None = None,
) -> Plan:  # fmt: skip
    """Plan of base reports ``first..last - 1``; vehicle v's k-th is at ``first_s[v] + k * period_s``.

    black_until (vehicles,) remembers blackouts from one chunk to the next: the same array each time.
    """
    vehicles, per = len(first_s), last - first
    marks = np.zeros((vehicles, per), np.uint8)
    black = 0
    if any(odds.values()):
        edges = np.cumsum([odds.get(name, 0.0) for name in NAMES])
        _draw(seed, vehicles, first, last, edges, marks)
        if odds.get("blackout"):
            until = np.zeros(vehicles, np.int64) if black_until is None else black_until
            black = _black_out(marks, first, max(BLACKOUT_S // period_s, 1), until)
    base = first_s[:, None] + np.arange(first, last, dtype=np.int64)[None, :] * period_s
    if not marks.any():
        rows = vehicles * per
        bounds = np.arange(vehicles + 1, dtype=np.int64) * per
        return Plan(
            bounds, base.ravel(), np.full(rows, 2, np.uint8), np.zeros(rows, np.uint8), np.zeros(rows, np.uint8),
            bounds.copy(), np.arange(rows, dtype=np.int64), np.tile(np.arange(1, per + 1, dtype=np.int64), vehicles),
            np.full(rows, ROW, np.uint8), {"reports": rows, "messages": rows, "stored": rows, "rejected": 0},
        )  # fmt: skip
    plan = _faulty(seed, marks, base, period_s)
    plan.counts["blackout"] = black
    return plan


def _faulty(seed: int, marks: U8, base: I64, period_s: int) -> Plan:
    """The slow way, vehicle by vehicle where there is a fault."""
    vehicles, per = marks.shape
    times: list[I64] = []
    commands: list[U8] = []
    faults: list[U8] = []
    alarms: list[U8] = []
    orders: list[I64] = []
    dues: list[I64] = []
    counts = dict.fromkeys(NAMES, 0)
    at = 0
    for v in range(vehicles):
        if (marks[v] == BLACKOUT).all():
            time_s, command, fault = base[v], np.full(per, 3, np.uint8), marks[v]
            alarm = np.zeros(per, np.uint8)
            order, due = np.arange(per, dtype=np.int64), np.arange(1, per + 1, dtype=np.int64)
        elif marks[v].any():
            time_s, command, fault, alarm, order, due = _one(seed, v, marks[v], base[v], period_s, counts)
        else:
            time_s, command = base[v], np.full(per, 2, np.uint8)
            fault = alarm = np.zeros(per, np.uint8)
            order, due = np.arange(per, dtype=np.int64), np.arange(1, per + 1, dtype=np.int64)
        times.append(time_s)
        commands.append(command)
        faults.append(fault)
        alarms.append(alarm)
        orders.append(order + at)
        dues.append(due)
        at += len(time_s)
    fault, emitted = np.concatenate(faults), np.concatenate(orders)
    fate = np.full(len(emitted), REPEATED, np.uint8)
    fate[np.unique(emitted, return_index=True)[1]] = ROW
    fate[(fault[emitted] == WRONG_CLOCK) | (fault[emitted] == CORRUPT)] = REFUSED
    counts |= {
        "reports": vehicles * per,
        "messages": len(emitted),
        "stored": int((fate == ROW).sum()),
        "rejected": int((fate == REFUSED).sum()),
    }
    return Plan(
        np.concatenate([[0], np.cumsum([len(t) for t in times])]).astype(np.int64), np.concatenate(times),
        np.concatenate(commands), fault, np.concatenate(alarms),
        np.concatenate([[0], np.cumsum([len(o) for o in orders])]).astype(np.int64), emitted, np.concatenate(dues),
        fate, counts,
    )  # fmt: skip


def _one(
    seed: int, vehicle: int, marks: U8, base: I64, period_s: int, counts: dict[str, int]
) -> tuple[I64, U8, U8, U8, I64, I64]:
    """Times, commands, faults, alarms, order and due counts of one vehicle's chunk."""
    per = len(marks)
    marks = marks.copy()
    marks[-1] = 0 if marks[-1] in (DISORDER, OUTAGE, CORRUPT) else marks[-1]  # these need a report after them
    held = np.zeros(per, np.int64)  # base report after which a held one goes out, 0 = at once
    k = 0
    while k < per:
        if marks[k] == OUTAGE:
            length = 2 + int(uniform(seed, vehicle, int(base[k]), _DRAW + 1) * (OUTAGE_REPORTS_MAX - 2))
            until = min(k + length, per - 1)
            held[k:until] = until
            marks[k:until] = OUTAGE
            marks[until] = 0
            counts["outage"] += 1
            k = until
        k += 1
    # (time, command, fault, alarm, base report after which it goes, order within)
    rows: list[tuple[int, int, int, int, int, int]] = []
    alarm_until = -1
    seconds = {int(t) for t in base}
    for k in range(per):
        at, mark = int(base[k]), int(marks[k])
        if mark == BURST:
            counts["burst"] += 1
            earliest = max(at - BURST_S, int(base[0]))
            rows.extend((t, 3, BURST, 0, k, 1) for t in range(earliest, at) if t not in seconds)
            latest = min(at + BURST_S, int(base[-1]) + period_s - 1)
            later = [t for t in range(at + 1, latest + 1) if t not in seconds]
            rows.extend((t, 2, BURST, 1, k + (t - at) // period_s, 1) for t in later)
            alarm_until = at + BURST_S
            seconds.update(range(earliest, latest + 1))
        command = 3 if mark in (OUTAGE, BLACKOUT) else 2
        rows.append((at, command, mark, int(at <= alarm_until), held[k] or k, 2 if held[k] else 0))
        if mark not in (0, OUTAGE, BURST, BLACKOUT):
            counts[NAMES[mark - 1]] += 1
    rows.sort(key=lambda row: row[0])
    table = np.array(rows, np.int64)
    order = np.lexsort((table[:, 0], table[:, 5], table[:, 4]))
    due = np.minimum(table[order, 4] + 1, per)
    emitted: list[int] = []
    dues: list[int] = []
    for row, when in zip(order.tolist(), due.tolist(), strict=True):
        mark = int(table[row, 2])
        if mark == LOSS:
            continue
        emitted.append(row)
        dues.append(when)
        if mark == DUPLICATE:
            emitted.append(row)
            dues.append(when)
    for i in range(len(emitted) - 1):
        if table[emitted[i], 2] == DISORDER and emitted[i + 1] != emitted[i]:
            emitted[i], emitted[i + 1] = emitted[i + 1], emitted[i]
            dues[i] = dues[i + 1] = max(dues[i], dues[i + 1])
    return (
        table[:, 0].copy(), table[:, 1].astype(np.uint8), table[:, 2].astype(np.uint8), table[:, 3].astype(np.uint8),
        np.array(emitted, np.int64), np.maximum.accumulate(np.array(dues, np.int64)) if dues else np.empty(0, np.int64),
    )  # fmt: skip


# Which signals a sensor may lose, and how.
_LOSABLE: Final = tuple(
    INDEX[name]
    for name in ("speed_kmh", "soc_pct", "motor_temp_c", "motor_controller_temp_c", "motor_speed_rpm", "dcdc_state")
)
_LEVEL, _FLAGS = INDEX["alarm_level"], INDEX["alarm_flags"]
_INSULATION_FLAG: Final = 1 << 11


def blemish(plan: Plan, samples: Samples, seed: int) -> I64:
    """Put sentinels and alarms into ``samples``; returns the time each report claims (n,)."""
    claimed = plan.time_s
    for row in np.flatnonzero(plan.fault == SENTINEL).tolist():
        v, t = int(samples.vehicle[row]), int(plan.time_s[row])
        for draw in range(1 + int(uniform(seed, v, t, _DRAW + 2) * 3)):
            pick = _LOSABLE[int(uniform(seed, v, t, _DRAW + 3 + draw) * len(_LOSABLE))]
            dead = uniform(seed, v, t, _DRAW + 8 + draw) < 0.5
            samples.state[row, pick] = State.INVALID if dead else State.ABNORMAL
            samples.num[row, pick] = 0
        cell = int(uniform(seed, v, t, _DRAW + 12) * samples.cell_count[row])
        samples.cells[row, cell] = 0xFFFF if uniform(seed, v, t, _DRAW + 13) < 0.5 else 0xFFFE
    raised = np.flatnonzero(plan.alarm)
    samples.num[raised, _LEVEL] = 3
    samples.num[raised, _FLAGS] |= _INSULATION_FLAG
    wrong = np.flatnonzero(plan.fault == WRONG_CLOCK)
    if len(wrong):
        claimed = claimed.copy()
        claimed[wrong] = np.where(plan.time_s[wrong] % 2, YEAR_2099_S, YEAR_2000_S) + plan.time_s[wrong] % 10_000_000
    return claimed


def corrupt(plan: Plan, frames: U8, start: I64, length: I32, seed: int) -> None:
    """Change one byte of each frame that is to be damaged, behind the time, so that VIN and time still read."""
    for row in np.flatnonzero(plan.fault == CORRUPT).tolist():
        begin, end = int(start[row]) + 30, int(start[row] + length[row]) - 1
        where = begin + int(uniform(seed, row, int(plan.time_s[row]), _DRAW + 20) * (end - begin))
        frames[where] ^= 1 << int(uniform(seed, row, int(plan.time_s[row]), _DRAW + 21) * 8)


def keep(plan: Plan, kept: NDArray[np.bool_]) -> None:
    """Take messages out of the plan: kept (k,), one for each of ``plan.emitted``.  The counts follow."""
    vehicle = np.repeat(np.arange(len(plan.emitted_bounds) - 1), np.diff(plan.emitted_bounds))[kept]
    gone = plan.fate[~kept]
    plan.counts["messages"] -= len(gone)
    plan.counts["stored"] -= int((gone == ROW).sum())
    plan.counts["rejected"] -= int((gone == REFUSED).sum())
    plan.emitted, plan.due, plan.fate = plan.emitted[kept], plan.due[kept], plan.fate[kept]
    sizes = np.bincount(vehicle, minlength=len(plan.emitted_bounds) - 1)
    plan.emitted_bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


class Blackouts:
    """Frames that wait for a link, from one chunk to the next."""

    def __init__(self, vehicles: int) -> None:
        self.until = np.zeros(vehicles, np.int64)  # for make_plan
        self._held: list[deque[bytes]] = [deque() for _ in range(vehicles)]

    def hold(self, plan: Plan, frames: U8, start: I64, length: I32, last: bool) -> tuple[U8, I64, I32]:
        """Keep the frames of blackouts, and put those whose link is back behind live ones (at the end: all of them).

        ``plan``'s messages and counts follow; returns the frames with those added that come from earlier chunks.
        """
        black = plan.fault[plan.emitted] == BLACKOUT
        if not black.any() and not any(self._held):
            return frames, start, length
        extra: list[bytes] = []
        emitted: list[I64] = []
        dues: list[I64] = []
        fates: list[U8] = []
        sizes = []
        for v, held in enumerate(self._held):
            low, high = int(plan.emitted_bounds[v]), int(plan.emitted_bounds[v + 1])
            rows, due, fate = plan.emitted[low:high], plan.due[low:high], plan.fate[low:high]
            if held or black[low:high].any():
                order: list[tuple[int, int, int]] = []
                for row, when, what, dark in zip(
                    rows.tolist(), due.tolist(), fate.tolist(), black[low:high].tolist(), strict=True
                ):
                    if dark:
                        held.append(frames[start[row] : start[row] + length[row]].tobytes())
                        continue
                    order.append((row, when, what))
                    for _ in range(min(len(held), REISSUES_PER_REPORT)):
                        order.append((len(start) + len(extra), when, ROW))
                        extra.append(held.popleft())
                while last and held:
                    order.append((len(start) + len(extra), int(due[-1]) if len(due) else 1, ROW))
                    extra.append(held.popleft())
                table = np.array(order, np.int64).reshape(-1, 3)
                rows, due, fate = table[:, 0].copy(), table[:, 1].copy(), table[:, 2].astype(np.uint8)
            emitted.append(rows)
            dues.append(due)
            fates.append(fate)
            sizes.append(len(rows))
        change = sum(sizes) - len(plan.emitted)
        plan.counts["messages"] += change
        plan.counts["stored"] += change
        plan.emitted, plan.due, plan.fate = np.concatenate(emitted), np.concatenate(dues), np.concatenate(fates)
        plan.emitted_bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        if not extra:
            return frames, start, length
        more = np.array([len(frame) for frame in extra], np.int32)
        begin = len(frames) + np.concatenate([[0], np.cumsum(more[:-1], dtype=np.int64)])
        joined = np.concatenate([frames, np.frombuffer(b"".join(extra), np.uint8)])
        return joined, np.concatenate([start, begin]), np.concatenate([length, more])


def expected(counts: Mapping[str, int]) -> tuple[int, int]:
    """(rows that must be stored, frames that must be refused) of everything planned."""
    return counts.get("stored", 0), counts.get("rejected", 0)
