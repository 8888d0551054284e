"""How many of the newest frames are refused here; past a limit the pipeline stops.

A wrong setting, a lost key, a clock that jumped or a fault of ours can refuse every frame of a fleet.  Each would
become a dead letter and be acknowledged all the same; it is better to leave them in the journal and to call for help.
It must never be a lever for a few vehicles, however much they send: one VIN counts for a tenth of the window at most,
and as long as more vehicles were last heard with good reports than were last refused, it is those few that are wrong.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I64
from services.errors import NevstreamError

_ONE_VEHICLE: Final = 10  # what one vehicle counts for: this part of the window
_STANDING_S: Final = 600.0  # so long a vehicle stands for what it was last heard with
_COUNTED_S: Final = 1.0  # a count over all vehicles is good for so long
_NOBODY: Final[I64] = np.zeros(0, np.int64)
_IDS_MAX: Final = 1 << 26  # ids beyond are not followed: the arrays would be half a gigabyte


class TooManyRejectsError(NevstreamError):
    """More of the newest frames are refused than ``pipeline.reject_share_max`` allows."""


class Standing:
    """Who was last heard with good reports, and who was last refused: two times by vehicle id, 8 bytes a vehicle."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun_s = clock() - 1.0
        self._good_s: NDArray[np.float32] = np.zeros(1024, np.float32)  # since the start; 0 = never
        self._wrong_s: NDArray[np.float32] = np.zeros(1024, np.float32)
        self._count = (0, 0)
        self._not_before_s = 0.0

    def heard(self, good: I64, wrong: I64) -> None:
        """Vehicle ids of a batch; who is in both has good reports."""
        now_s = np.float32(self._clock() - self._begun_s)
        for ids, times in ((wrong, "_wrong_s"), (good, "_good_s")):
            followed = ids[ids < _IDS_MAX]
            if len(followed):
                held = getattr(self, times)
                if (last := int(followed.max())) >= len(held):
                    held = np.concatenate((held, np.zeros(max(last + 1 - len(held), len(held)), np.float32)))
                    setattr(self, times, held)
                held[followed] = now_s

    def count(self) -> tuple[int, int]:
        """(vehicles that stand as good, as refused); up to a second old."""
        now_s = self._clock()
        if now_s >= self._not_before_s:
            self._not_before_s = now_s + _COUNTED_S
            both = min(len(self._good_s), len(self._wrong_s))
            good, wrong = self._good_s, self._wrong_s
            since = np.float32(max(now_s - self._begun_s - _STANDING_S, 1e-6))
            better = good[:both] >= wrong[:both]
            self._count = (
                int((better & (good[:both] >= since)).sum() + (good[both:] >= since).sum()),
                int((~better & (wrong[:both] >= since)).sum() + (wrong[both:] >= since).sum()),
            )
        return self._count


class RejectShare:
    """The share of refused frames among the newest ``window`` or more; ``share_max`` 1 = no limit."""

    def __init__(self, share_max: float, window: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._share_max, self._window = share_max, window
        self._batches: deque[tuple[int, Mapping[bytes, int]]] = deque()
        self._frames = 0
        self._refused: Counter[bytes] = Counter()
        self._standing = Standing(clock)

    def check(self, frames: int, refused: Mapping[bytes, int], good: I64 = _NOBODY, wrong: I64 = _NOBODY) -> None:
        """Raise ``TooManyRejectsError`` when a batch is not to be stored: so many frames, and those refused by VIN.

        ``good``: ids of vehicles that have reports in the batch which are not refused; ``wrong``: of known ones that
        have refused frames.
        """
        if self._share_max >= 1 or not frames:
            return
        total, by_vin = self._frames + frames, self._refused + Counter(refused)
        for gone, of_them in self._batches:
            if total - gone < self._window:
                break
            total -= gone
            by_vin.subtract(of_them)
        if total < self._window:
            return
        by_vin = +by_vin
        most = max(1, total // _ONE_VEHICLE)
        share = sum(min(n, most) for n in by_vin.values()) / total
        if share <= self._share_max:
            return
        standing_good, standing_wrong = self._standing.count()
        refusing = max(len(by_vin), standing_wrong, len(wrong))
        if refusing > max(standing_good, len(good)):
            raise TooManyRejectsError(
                f"{share:.0%} of the newest {total:,} frames are refused, from {refusing:,} vehicles; "
                f"pipeline.reject_share_max allows {self._share_max:.0%}. Nothing more is stored, frames wait in the "
                "journal. See why with `nevstream dead-letters list`, put it right, and restart the pipeline; or set "
                "pipeline.reject_share_max = 1 if these frames shall become dead letters"
            )

    def add(self, frames: int, refused: Mapping[bytes, int], good: I64 = _NOBODY, wrong: I64 = _NOBODY) -> None:
        """Count a batch that is stored: one that is begun anew must not count twice."""
        if self._share_max >= 1 or not frames:
            return
        self._standing.heard(good, wrong)
        self._batches.append((frames, refused))
        self._frames += frames
        self._refused.update(refused)
        while self._frames - self._batches[0][0] >= self._window:
            gone, of_them = self._batches.popleft()
            self._frames -= gone
            self._refused.subtract(of_them)
        self._refused = +self._refused
