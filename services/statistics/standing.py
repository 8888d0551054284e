"""Where one vehicle's fold stands, in the middle of a day or between two: as arrays, and as the bytes that are stored.

A *carry* is the folds' state at a day's end.  A *checkpoint* is more: state in the middle of a day with what that day
has gathered so far, so that the fold goes on as if it had never stopped.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from schemas.statistics.measures import FIRST, LAST, MAX, MEASURES, MIN, SUM, TALLY_WIDTH
from schemas.statistics.records import F64, I64
from schemas.statistics.sessions import FINDING_WIDTH

_SQUEEZE: Final = 1  # zlib's level: states are mostly zeros
_HEAD: Final = 5
_WIDTH: Final = len(MEASURES)
BLANK: Final[F64] = np.array([0.0 if measure.op == SUM else np.nan for measure in MEASURES])
_OPS: Final = np.array([(SUM, MIN, MAX, FIRST, LAST).index(measure.op) for measure in MEASURES])


@dataclass(slots=True)
class OpenDay:
    """A day that has begun: first and last record, edition of the last, its begun hour, and what was gathered.

    so_far (measures,): the hours that are over, joined · hour (measures,): the begun one · tallies (TALLY_WIDTH,) ·
    findings: those settled on this day.
    """

    day: int
    first_s: int
    last_s: int
    edition: int
    hour_s: int
    so_far: F64
    hour: F64
    tallies: I64
    findings: list[F64] = field(default_factory=list)


def join(day: F64, hour: F64) -> F64:
    """An hour (or several, after one another) added to what a day has so far; always in the order of time."""
    keep = np.isnan(day)
    out = np.where(_OPS == 0, day + hour, day)
    out = np.where(_OPS == 1, np.fmin(day, hour), out)
    out = np.where(_OPS == 2, np.fmax(day, hour), out)
    out = np.where((_OPS == 3) & keep, hour, out)
    return np.where((_OPS == 4) & ~np.isnan(hour), hour, out)


def pack_carry(states: Sequence[F64]) -> bytes:
    """States of all folds as a carry."""
    return zlib.compress(np.concatenate(states).tobytes(), _SQUEEZE)


def unpack_carry(data: bytes, sizes: Sequence[int]) -> list[F64]:
    """The states again."""
    return _split(np.frombuffer(bytearray(zlib.decompress(data)), np.float64), sizes)


def pack_checkpoint(states: Sequence[F64], day: OpenDay | None) -> bytes:
    """States and the open day, if there is one, as the bytes of a checkpoint."""
    if day is None:
        return zlib.compress(np.concatenate([np.full(_HEAD, np.nan), *states]).tobytes(), _SQUEEZE)
    head = np.array([day.day, day.first_s, day.last_s, day.edition, day.hour_s], np.float64)
    parts = [head, *states, day.so_far, day.hour, day.tallies.view(np.float64), *day.findings]
    return zlib.compress(np.concatenate(parts).tobytes(), _SQUEEZE)


def unpack_checkpoint(data: bytes, sizes: Sequence[int]) -> tuple[list[F64], OpenDay | None]:
    """What :func:`pack_checkpoint` has packed."""
    values = np.frombuffer(bytearray(zlib.decompress(data)), np.float64)
    states = _split(values[_HEAD : _HEAD + sum(sizes)], sizes)
    if np.isnan(values[0]):
        return states, None
    day, first_s, last_s, edition, hour_s = (int(value) for value in values[:_HEAD])
    at = _HEAD + sum(sizes)
    so_far, hour = values[at : at + _WIDTH], values[at + _WIDTH : at + 2 * _WIDTH]
    at += 2 * _WIDTH
    tallies = values[at : at + TALLY_WIDTH].view(np.int64)
    findings = list(values[at + TALLY_WIDTH :].reshape(-1, FINDING_WIDTH))
    return states, OpenDay(day, first_s, last_s, edition, hour_s, so_far, hour, tallies, findings)


def _split(values: F64, sizes: Sequence[int]) -> list[F64]:
    assert len(values) == sum(sizes), f"a state of {len(values)} numbers for folds of {sum(sizes)}: raise a LAYOUT"
    return [part.copy() for part in np.split(values, np.cumsum(sizes)[:-1])]
