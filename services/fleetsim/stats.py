"""What a simulation counts while it runs: one object, read by whoever shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

_STEPS_PER_OCTAVE: Final = 8
_FIRST_S: Final = 1e-5
_BUCKETS: Final = 200


class Latencies:
    """Percentiles of seconds from buckets an eighth of an octave (9 %) wide; nothing is kept per message."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS

    def add(self, seconds: float, count: int) -> None:
        at = int(_STEPS_PER_OCTAVE * math.log2(seconds / _FIRST_S)) if seconds > _FIRST_S else 0
        self._counts[min(at, _BUCKETS - 1)] += count

    def percentile_ms(self, percent: float) -> float | None:
        """Upper edge of the bucket that holds the percentile; None while there is nothing."""
        total = sum(self._counts)
        if not total:
            return None
        wanted, seen = total * percent / 100.0, 0
        for at, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                return float(f"{_FIRST_S * 2 ** ((at + 1) / _STEPS_PER_OCTAVE) * 1000:.3g}")
        raise AssertionError("the counts add up to their total")


@dataclass(slots=True)
class Stats:
    """Counts of one simulation.  Messages are reports on their way: PUBLISHes or GB/T frames.

    sent: first transmissions · resent: repeated after a reconnect · acked: answered, with whatever · refused:
    answered with an error · connects, failures (attempts that came to nothing), drops (connections lost).
    """

    vehicles: int = 0
    connected: int = 0
    finished: int = 0
    sent: int = 0
    resent: int = 0
    acked: int = 0
    refused: int = 0
    rows: int = 0  # of what was answered: rows that must be stored
    rejects: int = 0  # of what was answered: frames that must have been refused
    connects: int = 0
    failures: int = 0
    drops: int = 0
    unexpected: int = 0  # answers that belong to nothing we sent
    first_sent: float | None = None  # time.monotonic() of the first report's first byte
    last_acked: float | None = None
    last_error: str = ""
    latencies: Latencies = field(default_factory=Latencies)

    def snapshot(self) -> dict[str, Any]:
        """The counts as plain values, with ``ack_p50_ms`` and ``ack_p99_ms``."""
        names = (
            "vehicles",
            "connected",
            "finished",
            "sent",
            "resent",
            "acked",
            "refused",
            "connects",
            "failures",
            "drops",
        )
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        values["unexpected"] = self.unexpected
        values["ack_p50_ms"] = self.latencies.percentile_ms(50)
        values["ack_p99_ms"] = self.latencies.percentile_ms(99)
        return values
