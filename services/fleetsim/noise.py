"""Randomness as a function: every draw is a hash of (seed, vehicle, second, number of the draw).

So a vehicle does the same whatever the others do, in whatever chunks it is computed, and however
often.  Never a generator with a state.
"""

from __future__ import annotations

import math

import numpy as np

from schemas.jit import compiled


@compiled
def uniform(seed: int, who: int, when: int, which: int) -> float:
    """A number in [0, 1): splitmix64 over the four integers."""
    mixed = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ np.uint64(who)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed = (mixed ^ np.uint64(when)) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    mixed = (mixed + np.uint64(which)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return float(mixed >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def normal(seed: int, who: int, when: int, which: int) -> float:
    """A standard normal number (Box-Muller); uses the draws ``which`` and ``which + 1``."""
    a = uniform(seed, who, when, which)
    b = uniform(seed, who, when, which + 1)
    return math.sqrt(-2.0 * math.log(1.0 - a)) * math.cos(2.0 * math.pi * b)
