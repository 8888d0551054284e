"""What held the load back: the plan, the target, or the generator itself.  Arithmetic on what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

REACHED: Final = 0.98  # of what was planned: the plan was the limit
IDLE_MIN: Final = 0.10  # a generator that waits less than this share of its time has none left to send more
STARVED_MAX: Final = 0.20  # share of the time in which frames were due that were not made yet


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the time from the first frame to the end of the plan; shares are 0 to 1, of the busiest process.

    running: the loop had a processor · queued: it wanted one, and others had it (None: this system does not tell) ·
    starved: frames were due that were not made yet · window, offline, unsent: what frames that were due and not sent
    waited for, as shares of them: for answers (the window was full, or the socket), for a connection, for the loop.
    """

    planned: int
    sent: int
    acked: int
    running: float
    queued: float | None
    starved: float
    window: float
    offline: float
    unsent: float

    @property
    def idle(self) -> float:
        return max(1.0 - self.running - (self.queued or 0.0), 0.0)


def judge(m: Measured) -> dict[str, Any]:
    """{"limited_by": "plan" | "target" | "generator", "because": a sentence, "evidence": the numbers}."""
    evidence = {
        "reached": round(m.sent / m.planned, 4) if m.planned else None,
        "loop_running_share": round(m.running, 3),
        "loop_queued_for_cpu_share": None if m.queued is None else round(m.queued, 3),
        "loop_waiting_share": round(m.idle, 3),
        "frames_not_made_in_time_share": round(m.starved, 3),
        "late_frames_waiting_for": {
            "answers": round(m.window, 3), "a_connection": round(m.offline, 3), "the_generator": round(m.unsent, 3),
        },
    }  # fmt: skip
    if m.sent >= REACHED * m.planned:
        return {"limited_by": "plan", "because": "everything that was due was sent in time", "evidence": evidence}
    if m.starved > STARVED_MAX:
        who = "generator"
        why = f"in {m.starved:.0%} of the time frames were due that were not made yet" + _contended(m)
    elif m.idle < IDLE_MIN:
        who = "generator"
        why = f"its loop had work {1 - m.idle:.0%} of the time"
        why += _contended(m) or ": use more --processes (and cores)"
    elif m.offline >= max(m.window, m.unsent):
        who = "target"
        why = f"vehicles had no connection: {m.offline:.0%} of the late frames waited for one"
    elif m.unsent > max(m.window, m.offline):
        who = "generator"
        why = f"{m.unsent:.0%} of the late frames could have gone out, and its loop had not come round to them"
    else:
        who = "target"
        why = (
            f"{m.window:.0%} of the late frames waited for answers to earlier ones, and the generator was idle "
            f"{m.idle:.0%} of the time"
        )
    return {"limited_by": who, "because": why, "evidence": evidence}


def _contended(m: Measured) -> str:
    """Words for a generator that has too little of the processors; "" when it has enough."""
    if m.queued is None or m.queued < m.running:
        return ""
    return f", and waited {m.queued:.0%} of it for a processor that others had: give it cores, or a machine, of its own"
