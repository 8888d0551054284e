"""What a simulation counts while it runs: one object, read by whoever shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from services.fleetsim.histogram import Latencies

_KINDS_MAX: Final = 32  # of errors that are told apart


@dataclass(slots=True)
class Stats:
    """Counts of one simulation.  Messages are reports on their way: PUBLISHes or GB/T frames.

    sent: first transmissions · resent: repeated after a reconnect · acked: answered, with whatever · refused:
    answered with an error · connects, failures (attempts that came to nothing), drops (connections lost) · errors: what
    went wrong with connections, by kind.
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
    errors: Counter[str] = field(default_factory=Counter)

    def went_wrong(self, kind: str) -> None:
        """Count an error by its kind; what is beyond the bound is counted together."""
        self.errors[kind if kind in self.errors or len(self.errors) < _KINDS_MAX else "other"] += 1

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
