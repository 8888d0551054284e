"""How well found sessions and sums agree with the truth: matching, F1, errors.  Pure functions, no database.

The matching rule: a found and a true session of one vehicle are the same when their overlap is at least half of the
time that both span together (intersection over union), one to one, the longest overlaps first.  A true session so near
to the limit below which it is dropped that reports ``period_s`` apart cannot decide it is *doubtful*: it counts neither
way.  Nor can they decide whether a stop of 300 s to three reports more, which they see the inside of, splits a drive:
the two trips count as one where they are found as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

IOU_MIN: Final = 0.5
ODOMETER_STEP_KM: Final = 0.1
STOP_S: Final = 300.0  # splits a drive (4.2)


@dataclass(frozen=True, slots=True)
class Session:
    """A trip or charge.  ``doubtful`` of true ones only; ``figures`` are carried along for comparing."""

    vin: str
    start_s: float
    end_s: float
    doubtful: bool = False
    figures: Mapping[str, Any] | None = None


def iou(a: Session, b: Session) -> float:
    """Intersection over union in time, 0 when they do not touch."""
    inside = min(a.end_s, b.end_s) - max(a.start_s, b.start_s)
    return max(inside, 0.0) / max(max(a.end_s, b.end_s) - min(a.start_s, b.start_s), 1.0)


@dataclass(slots=True)
class Matching:
    """Pairs, and what is left over on either side."""

    pairs: list[tuple[Session, Session]]  # true, found
    missed: list[Session]
    false: list[Session]

    @property
    def f1(self) -> float | None:
        hits = sum(not true.doubtful for true, _ in self.pairs)
        wrong = len(self.missed) + len(self.false)
        return 2 * hits / (2 * hits + wrong) if hits + wrong else None

    def as_dict(self) -> dict[str, Any]:
        hits = sum(not true.doubtful for true, _ in self.pairs)
        return {
            "f1": round_(self.f1, 5),
            "true": hits + len(self.missed),
            "found": hits + len(self.false),
            "matched": hits,
            "missed": len(self.missed),
            "false": len(self.false),
            "doubtful": len(self.pairs) - hits,
        }


def match(true: Iterable[Session], found: Iterable[Session]) -> Matching:
    """Match by overlap (see the module's first lines)."""
    by_vin: dict[str, tuple[list[Session], list[Session]]] = {}
    for one in true:
        by_vin.setdefault(one.vin, ([], []))[0].append(one)
    for one in found:
        by_vin.setdefault(one.vin, ([], []))[1].append(one)
    result = Matching([], [], [])
    for trues, founds in by_vin.values():
        trues.sort(key=lambda s: s.start_s)
        founds.sort(key=lambda s: s.start_s)
        candidates, first = [], 0
        for i, one in enumerate(trues):
            while first < len(founds) and founds[first].end_s < one.start_s:
                first += 1
            for j in range(first, len(founds)):
                if founds[j].start_s > one.end_s:
                    break
                share = iou(one, founds[j])
                if share >= IOU_MIN:
                    candidates.append((-share, i, j))
        left, right = set(range(len(trues))), set(range(len(founds)))
        for _, i, j in sorted(candidates):
            if i in left and j in right:
                left.discard(i)
                right.discard(j)
                result.pairs.append((trues[i], founds[j]))
        result.missed += [trues[i] for i in sorted(left) if not trues[i].doubtful]
        result.false += [founds[j] for j in sorted(right)]
    return result


def join_doubtful(true: Sequence[Session], found: Sequence[Session], period_s: float) -> list[Session]:
    """The true trips, those of one drive put together that a doubtful stop parts and that were found as one."""
    founds: dict[str, list[Session]] = {}
    for one in found:
        founds.setdefault(one.vin, []).append(one)
    result: list[Session] = []
    for one in sorted(true, key=lambda s: (s.vin, s.start_s)):
        before = result[-1] if result else None
        if before is not None and before.vin == one.vin and _drive(before) == _drive(one):
            whole = Session(one.vin, before.start_s, one.end_s, False, {"on_s": _drive(one)})

            def best(session: Session, vin: str = one.vin) -> float:
                return max((iou(session, other) for other in founds.get(vin, [])), default=0.0)

            doubtful = one.start_s - before.end_s <= STOP_S + 3 * period_s
            if doubtful and best(whole) >= max(IOU_MIN, best(before), best(one)):
                result[-1] = whole
                continue
        result.append(one)
    return result


def _drive(session: Session) -> Any:
    """When the key was turned; None (equal to nothing) when that is not known."""
    on_s = (session.figures or {}).get("on_s")
    return object() if on_s is None else on_s


def trip_doubt(line: Mapping[str, Any], period_s: float) -> tuple[bool, bool]:
    """(may be found, doubtful) of a trip in the truth file."""
    km, seconds = line["distance_km"], line["end_s"] - line["start_s"]
    surely = km >= 0.5 + ODOMETER_STEP_KM or seconds >= 300 + 2 * period_s
    never = km < 0.5 - ODOMETER_STEP_KM and seconds < 300 - 2 * period_s
    return not never, not surely


def charge_doubt(line: Mapping[str, Any], period_s: float) -> tuple[bool, bool]:
    """(may be found, doubtful) of a charge in the truth file."""
    seconds = line["end_s"] - line["start_s"]
    gained, kwh = line["end_soc_pct"] - line["start_soc_pct"], -line["energy_kwh"]
    surely = seconds >= 120 + 2 * period_s and (gained >= 2 or kwh >= 0.15)
    never = seconds < 120 - 2 * period_s or (gained < 0.5 and kwh < 0.05)
    return not never, not surely


def error_pct(found: float, true: float) -> float | None:
    """|found - true| in percent of true; None when true is 0."""
    return 100.0 * abs(float(found) - float(true)) / abs(float(true)) if true else None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """By linear interpolation; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100.0
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """How errors (percent) are spread over vehicles or sessions."""
    return {
        "of": len(values),
        "p50_pct": round_(percentile(values, 50)),
        "p95_pct": round_(percentile(values, 95)),
        "max_pct": round_(max(values, default=None)),
    }


def round_(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def found_of(planted: set[Any], found: set[Any]) -> dict[str, Any]:
    """Recall and precision of a set of planted things; null where there was nothing to find, or nothing found."""
    hits = len(planted & found)
    return {
        "planted": len(planted),
        "found": hits,
        "false": len(found - planted),
        "recall": round_(hits / len(planted)) if planted else None,
        "precision": round_(hits / len(found)) if found else None,
    }
