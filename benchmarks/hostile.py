"""What honest vehicles feel of an attack: their ack times quiet and under it, as a ratio, in one run.

200 vehicles send a report each second (MQTT, QoS 1) all the time.  Quiet stretches and stretches under an attack take
turns, three of each, and the medians of their p99 are compared, because a machine's own mood changes within a minute.
Attacks that connect over and over are also made on a bystander, a port of this machine that is not the gateway: what
that costs the vehicles is the machine's share, not the gateway's doing (``elsewhere_ratio``).
The attackers (``attacks.py``) run on the same two cores at the lowest priority and come from other addresses; the
gateway's limits are its defaults.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any, Final

from benchmarks.attacks import ATTACKS, Attacker, Bystander
from benchmarks.crowd import Crowd, Remote
from benchmarks.journey import running_system
from benchmarks.runner import Progress

VEHICLES: Final = 200
EVERY_S: Final = 1.0
_TURNS: Final = 3
_CALM_S: Final = 1.0
_ELSEWHERE: Final = ("garbage", "reconnect")


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{"worst_ratio", "worst_attack", "unanswered", "attacks": {name: {quiet_p99_ms, p99_ms, ratio...}}}."""
    seconds, turns = (4.0, 1) if quick else (4.5, _TURNS)
    attacks: dict[str, Any] = {}
    with running_system(progress) as system:
        mqtt, gbt = system.addresses["mqtt"][1], system.addresses["gbt32960"][1]
        with Remote(Crowd(mqtt, VEHICLES)) as vehicles:
            vehicles.do("connect", count=VEHICLES)
            vehicles.do("steady", seconds=2.0, every_s=EVERY_S)
            for name in ATTACKS:
                calm, under, did, elsewhere, did_elsewhere = [], [], [], [], []
                for _ in range(turns):
                    calm.append(vehicles.do("steady", seconds=seconds, every_s=EVERY_S))
                    attacker = Attacker(name, mqtt, gbt, seconds + 0.5)
                    under.append(vehicles.do("steady", seconds=seconds, every_s=EVERY_S))
                    did.append(attacker.end())
                    time.sleep(_CALM_S)
                    if name in _ELSEWHERE:
                        bystander = Bystander()
                        attacker = Attacker(name, *bystander.ports, seconds + 0.5)
                        elsewhere.append(vehicles.do("steady", seconds=seconds, every_s=EVERY_S))
                        did_elsewhere.append(attacker.end())
                        bystander.end()
                        time.sleep(_CALM_S)
                quiet = round(median(one["p99_ms"] for one in calm), 2)
                p99 = round(median(one["p99_ms"] for one in under), 2)
                ratio = round(p99 / quiet, 2)
                attacks[name] = {
                    "quiet_p99_ms": quiet, "p99_ms": p99, "ratio": ratio, "quiet": calm, "under": under, "did": did,
                }  # fmt: skip
                if elsewhere:
                    beside = round(median(one["p99_ms"] for one in elsewhere), 2)
                    attacks[name] |= {
                        "elsewhere_p99_ms": beside, "elsewhere_ratio": round(beside / quiet, 2), "elsewhere": elsewhere,
                        "did_elsewhere": did_elsewhere,
                    }  # fmt: skip
                    progress(f"{name} on a bystander: p99 {beside} ms: {beside / quiet:.2f} x; {did_elsewhere[-1]}")
                progress(f"{name}: p99 {quiet} ms quiet, {p99} ms under it: {ratio} x; {did[-1]}")
    worst = max(attacks, key=lambda name: attacks[name]["ratio"])
    return {
        "worst_ratio": attacks[worst]["ratio"],
        "quiet_p99_ms": max(one["quiet_p99_ms"] for one in attacks.values()),
        "unanswered": sum(stretch["unanswered"] for one in attacks.values() for stretch in one["under"]),
        "attacks": attacks,
        "goals": {"worst_ratio": "<= 2", "unanswered": "0"},
        "notes": [f"{name}: p99 {one['quiet_p99_ms']} → {one['p99_ms']} ms" for name, one in attacks.items()]
        + [f"worst: {worst}", "attackers share the machine's cores, at the lowest priority"],
        "settings": {"vehicles": VEHICLES, "every_s": EVERY_S, "seconds": seconds, "turns": turns},
    }
