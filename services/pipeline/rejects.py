"""How many of the newest frames are refused here; past a limit the pipeline stops.

A wrong setting, a lost key, a clock that jumped or a fault of ours can refuse every frame of a fleet.  Each would
become a dead letter and be acknowledged all the same; it is better to leave them in the journal and to call for help.
It must never be a lever for a few vehicles: one VIN counts for a tenth of the window at most, and as long as more
vehicles have good reports than are refused, it is those few that are wrong.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Final

from services.errors import NevstreamError

_ONE_VEHICLE: Final = 10  # what one vehicle counts for: this part of the window


class TooManyRejectsError(NevstreamError):
    """More of the newest frames are refused than ``pipeline.reject_share_max`` allows."""


class RejectShare:
    """The share of refused frames among the newest ``window`` or more; ``share_max`` 1 = no limit."""

    def __init__(self, share_max: float, window: int) -> None:
        self._share_max, self._window = share_max, window
        self._batches: deque[tuple[int, Mapping[bytes, int], int]] = deque()
        self._frames = 0
        self._refused: Counter[bytes] = Counter()

    def check(self, frames: int, refused: Mapping[bytes, int], good: int = 0) -> None:
        """Raise ``TooManyRejectsError`` when a batch is not to be stored: so many frames, and those refused by VIN.

        ``good``: vehicles that have reports in the batch which are not refused.
        """
        if self._share_max >= 1 or not frames:
            return
        total, by_vin = self._frames + frames, self._refused + Counter(refused)
        left_out = 0
        for gone, of_them, _ in self._batches:
            if total - gone < self._window:
                break
            total -= gone
            by_vin.subtract(of_them)
            left_out += 1
        good = max(good, *(of for *_, of in list(self._batches)[left_out:]), 0)
        if total < self._window:
            return
        by_vin = +by_vin
        most = max(1, total // _ONE_VEHICLE)
        share = sum(min(n, most) for n in by_vin.values()) / total
        if share > self._share_max and len(by_vin) > good:
            raise TooManyRejectsError(
                f"{share:.0%} of the newest {total:,} frames are refused, from {len(by_vin):,} vehicles; "
                f"pipeline.reject_share_max allows {self._share_max:.0%}. Nothing more is stored, frames wait in the "
                "journal. See why with `nevstream dead-letters list`, put it right, and restart the pipeline; or set "
                "pipeline.reject_share_max = 1 if these frames shall become dead letters"
            )

    def add(self, frames: int, refused: Mapping[bytes, int], good: int = 0) -> None:
        """Count a batch that is stored: one that is begun anew must not count twice."""
        if self._share_max >= 1 or not frames:
            return
        self._batches.append((frames, refused, good))
        self._frames += frames
        self._refused.update(refused)
        while self._frames - self._batches[0][0] >= self._window:
            gone, of_them, _ = self._batches.popleft()
            self._frames -= gone
            self._refused.subtract(of_them)
        self._refused = +self._refused
