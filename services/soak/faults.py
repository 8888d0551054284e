"""What is done to a running system, and when: one table of odds, one seeded schedule.

Knows no process; ``injector.py`` carries it out.  The same seed, length and faults are the same schedule.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.  ``odds``: its weight among all; ``lasts_s``: from, to, for those that are taken back.

    ``kill``: it ends a process with SIGKILL.  ``needs``: what it cannot be without ("server": a PostgreSQL of our own,
    whose processes are our children; "superuser").
    """

    name: str
    odds: float
    meaning: str
    lasts_s: tuple[float, float] = (0.0, 0.0)
    kill: bool = False
    needs: str = ""


FAULTS: Final[tuple[Fault, ...]] = (
    Fault("kill_gateway", 16, "SIGKILL to a gateway process", kill=True),
    Fault("kill_pipeline", 16, "SIGKILL to a pipeline process", kill=True),
    Fault("kill_statistics", 10, "SIGKILL to a statistics process", kill=True),
    Fault("kill_web", 8, "SIGKILL to the API's process", kill=True),
    Fault("kill_postgres", 5, "SIGKILL to PostgreSQL's first process: all of it ends", kill=True, needs="server"),
    Fault(
        "kill_backend", 5, "SIGKILL to one connection's process: PostgreSQL ends all and recovers", kill=True,
        needs="server",
    ),
    Fault("stop_gateway", 2, "SIGTERM to a gateway process: it drains and is started again"),
    Fault("stop_pipeline", 2, "SIGTERM to a pipeline process: it ends its commit and is started again"),
    Fault("pause_gateway", 2, "SIGSTOP to a gateway process, then SIGCONT", (1.0, 4.0)),
    Fault("pause_pipeline", 2, "SIGSTOP to a pipeline process, then SIGCONT", (1.0, 4.0)),
    Fault("pause_statistics", 1, "SIGSTOP to a statistics process, then SIGCONT", (1.0, 4.0)),
    Fault("pause_postgres", 2, "SIGSTOP to every process of PostgreSQL, then SIGCONT", (1.0, 4.0), needs="server"),
    Fault("slow_disk", 2, "every commit of PostgreSQL waits 0.1 s longer", (3.0, 6.0), needs="superuser"),
    Fault("cut_line", 4, "a third of the vehicles' connections is reset, in the middle of whatever they carry"),
    Fault("cut_database", 3, "every connection to the database is ended by the server"),
    Fault("reconnect_storm", 2, "every vehicle's connection is reset at once"),
)  # fmt: skip
BY_NAME: Final = {fault.name: fault for fault in FAULTS}


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come: seconds from the beginning, which, for how long, and a number to choose the victim with."""

    at_s: float
    name: str
    lasts_s: float
    choice: int


def schedule(seed: int, seconds: float, count: int, without: Collection[str] = ()) -> list[Planned]:
    """``count`` faults over ``seconds``, in order of time; kinds in proportion to their odds, each at least once
    where there are enough.  ``without``: names that cannot be.
    """
    rng = random.Random(seed)  # noqa: S311 - a schedule, no secret
    kinds = [fault for fault in FAULTS if fault.name not in without]
    deck = _deck(kinds, count)
    rng.shuffle(deck)
    step = seconds / max(1, count)
    return [
        Planned(
            at_s=round((n + rng.random()) * step, 3),
            name=fault.name,
            lasts_s=round(rng.uniform(*fault.lasts_s), 3),
            choice=rng.randrange(1 << 30),
        )
        for n, fault in enumerate(deck)
    ]


def _deck(kinds: Sequence[Fault], count: int) -> list[Fault]:
    """``count`` faults by their odds: whole parts first, then the largest remainders; rare ones once all the same."""
    total = sum(fault.odds for fault in kinds)
    shares = [fault.odds / total * count for fault in kinds]
    numbers = [max(1, int(share)) if count >= len(kinds) else int(share) for share in shares]
    order = sorted(range(len(kinds)), key=lambda k: numbers[k] - shares[k])
    at = 0
    while sum(numbers) < count:
        numbers[order[at % len(order)]] += 1
        at += 1
    while sum(numbers) > count:
        numbers[max(range(len(kinds)), key=lambda k: numbers[k])] -= 1
    return [fault for fault, number in zip(kinds, numbers, strict=True) for _ in range(number)]
