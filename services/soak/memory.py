"""How memory moves: samples of every process, and the slope within their lives.

A process that is killed begins anew, so only what happens within one life counts, and not its first seconds.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

_ANON: Final = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)
# Loading, the first batches of every kind, and the allocator's first arenas.
_YOUNG_S: Final = 10.0
_SAMPLES_MIN: Final = 10

Life = list[tuple[float, float]]  # (monotonic seconds, MB)


def anonymous_mb(pid: int) -> float | None:
    """Memory of its own that a process holds, MB; None when it has ended."""
    try:
        found = _ANON.search(Path(f"/proc/{pid}/status").read_text("ascii"))
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def slope_mb_per_min(lives: Iterable[Life]) -> float | None:
    """The slope that all lives have in common (each with a level of its own), MB a minute; None: too few samples."""
    above = below = 0.0
    n = 0
    for life in lives:
        old = [(at, mb) for at, mb in life if at - life[0][0] >= _YOUNG_S]
        if len(old) < 3:
            continue
        n += len(old)
        at_mean = sum(at for at, _ in old) / len(old)
        mb_mean = sum(mb for _, mb in old) / len(old)
        above += sum((at - at_mean) * (mb - mb_mean) for at, mb in old)
        below += sum((at - at_mean) ** 2 for at, _ in old)
    return 60 * above / below if n >= _SAMPLES_MIN and below > 0 else None


class MemoryWatch:
    """Samples the processes that ``pids`` names, once a second, until stopped."""

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._lives: dict[tuple[str, int], Life] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(1.0):
            for name, pid in self._pids().items():
                mb = anonymous_mb(pid)
                if mb is not None:
                    self._lives.setdefault((name, pid), []).append((time.monotonic(), mb))

    def slope(self, *roles: str) -> float | None:
        """Slope of the processes of these roles, MB a minute for each of them."""
        found = slope_mb_per_min(life for (name, _), life in self._lives.items() if name.startswith(roles))
        return None if found is None else round(found, 3)

    def most_mb(self) -> dict[str, float]:
        """By role, the most that any of its processes held."""
        most: dict[str, float] = {}
        for (name, _), life in self._lives.items():
            role = name.partition("-")[0]
            most[role] = max(most.get(role, 0.0), round(max(mb for _, mb in life), 1))
        return most
