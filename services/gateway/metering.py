"""What each connection may still send, and since when it keeps others waiting: arrays with the rows of ``Connections``.

Spent once per tick for all connections that sent, filled a few times per second for all.  Nothing here
touches a socket.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I64
from services.settings import Limits

# A vehicle may send so many seconds' worth at once: what it kept while it was in a tunnel.
BURST_S: Final = 5.0
# Before a connection has said who it is, it has this share of ``refused_bytes_max``.
NEW_SHARE: Final = 1 / 64

F64 = NDArray[np.float64]


class Meters:
    """Rows as in ``Connections``; they grow with ``fit``.

    bytes and frames f64 (what may still be sent; below 0: wait) · their most f64 (inf: no limit) · refused f64 (bytes
    of refused frames since the last good one) · refused_most f64 · partial_since_s f64 (inf: no incomplete packet) ·
    blocked_since_s f64 (inf: the peer takes its answers); times on the loop's clock.
    """

    def __init__(self, limits: Limits, rows: int) -> None:
        self.bytes_per_s = float(limits.bytes_per_s_max)
        self.frames_per_s = float(limits.frames_per_s_max)
        self._bytes_burst = max(BURST_S * self.bytes_per_s, 1.0) if self.bytes_per_s else np.inf
        self._frames_burst = max(BURST_S * self.frames_per_s, 1.0) if self.frames_per_s else np.inf
        self._refused_max = float(limits.refused_bytes_max)
        self._packet_timeout_s = limits.packet_timeout_s
        self._answer_timeout_s = limits.answer_timeout_s
        self.bytes: F64 = np.zeros(rows)
        self.bytes_most: F64 = np.zeros(rows)
        self.frames: F64 = np.zeros(rows)
        self.frames_most: F64 = np.zeros(rows)
        self.refused: F64 = np.zeros(rows)
        self.refused_most: F64 = np.zeros(rows)
        self.partial_since_s: F64 = np.full(rows, np.inf)
        self.blocked_since_s: F64 = np.full(rows, np.inf)

    def fit(self, rows: int) -> None:
        if rows <= len(self.bytes):
            return
        for name in ("bytes", "bytes_most", "frames", "frames_most", "refused", "refused_most"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(rows - len(getattr(self, name)))]))
        for name in ("partial_since_s", "blocked_since_s"):
            setattr(self, name, np.concatenate([getattr(self, name), np.full(rows - len(getattr(self, name)), np.inf)]))

    def open(self, slot: int) -> None:
        self.bytes[slot] = self.bytes_most[slot] = self._bytes_burst
        self.frames[slot] = self.frames_most[slot] = self._frames_burst
        self.refused[slot] = 0.0
        self.refused_most[slot] = self._refused_max * NEW_SHARE
        self.partial_since_s[slot] = np.inf
        self.blocked_since_s[slot] = np.inf

    def close(self, slot: int) -> None:
        self.partial_since_s[slot] = np.inf
        self.blocked_since_s[slot] = np.inf

    def known(self, slot: int) -> None:
        """The connection has said who it is."""
        self.refused_most[slot] = self._refused_max

    def platform(self, slot: int) -> None:
        """It speaks for a fleet: no rate of one vehicle holds, and not that of refusals either."""
        self.bytes[slot] = self.bytes_most[slot] = self.frames[slot] = self.frames_most[slot] = np.inf
        self.refused_most[slot] = np.inf

    # -- rates -------------------------------------------------------------------------------------
    def spend(self, slots: I64, consumed: I64) -> I64:
        """``consumed`` bytes of each of ``slots`` (each once) were scanned; returns those that must wait now."""
        self.bytes[slots] -= consumed
        return slots[(self.bytes[slots] < 0) | (self.frames[slots] < 0)]

    def count(self, slots: I64) -> None:
        """One frame or packet of each of ``slots``, which may repeat."""
        np.subtract.at(self.frames, slots, 1.0)

    def judge(self, slots: I64, lengths: I64, good: NDArray[np.bool_]) -> I64:
        """Frames of one tick, refused where not ``good``; returns the slots with too much refused in a row.

        A good frame anywhere in the tick begins the count anew.
        """
        bad = ~good
        np.add.at(self.refused, slots[bad], lengths[bad])
        self.refused[slots[good]] = 0.0
        mine = slots[bad]
        over: I64 = np.unique(mine[self.refused[mine] > self.refused_most[mine]])
        return over

    def fill(self, seconds: float) -> None:
        """``seconds`` have passed."""
        np.minimum(self.bytes + seconds * self.bytes_per_s, self.bytes_most, out=self.bytes)
        np.minimum(self.frames + seconds * self.frames_per_s, self.frames_most, out=self.frames)

    def may_go_on(self, slot: int) -> bool:
        return bool(self.bytes[slot] >= 0 and self.frames[slot] >= 0)

    def short_of(self, slot: int) -> str:
        """The setting whose tokens are spent."""
        return "bytes_per_s_max" if self.bytes[slot] < 0 else "frames_per_s_max"

    # -- deadlines ---------------------------------------------------------------------------------
    def partial(self, slots: I64, begun: I64, now_s: float) -> None:
        """After a tick: ``slots`` hold an incomplete packet; ``begun``: it begins in this tick."""
        fresh = slots[begun | (self.partial_since_s[slots] == np.inf)]
        self.partial_since_s[fresh] = now_s

    def whole(self, slots: I64) -> None:
        self.partial_since_s[slots] = np.inf

    def read_again(self, slot: int, now_s: float) -> None:
        """Its socket was not read for a while: an incomplete packet has its time from now."""
        if self.partial_since_s[slot] != np.inf:
            self.partial_since_s[slot] = now_s

    def all_read_again(self, now_s: float) -> None:
        self.partial_since_s[self.partial_since_s != np.inf] = now_s

    def slow(self, now_s: float) -> list[int]:
        """Slots whose packet has not become whole in time."""
        found: list[int] = np.flatnonzero(now_s - self.partial_since_s > self._packet_timeout_s).tolist()
        return found

    def deaf(self, now_s: float) -> list[int]:
        """Slots whose peer has not taken its answers in time."""
        found: list[int] = np.flatnonzero(now_s - self.blocked_since_s > self._answer_timeout_s).tolist()
        return found
