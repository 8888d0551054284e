"""The topics vehicles use, in one place.  Nothing else may spell them out.

==============================  =========  ==============================================
``nev/v1/{vin}/gbt32960``       up         one or more GB/T 32960 frames, back to back
``nev/v1/{vin}/telemetry``      up         JSON: a sample of vehicle signals, or an array of samples
``nev/v1/{vin}/bms``            up         JSON: battery figures, likewise
``nev/v1/{vin}/down/#``         down       what the platform sends to the vehicle:
``nev/v1/{vin}/down/gbt32960``  down       one GB/T 32960 command; its answer comes up on gbt32960
==============================  =========  ==============================================
"""

from __future__ import annotations

from typing import Final

from schemas.batch import VIN_BYTES

PREFIX: Final = b"nev/v1/"
GBT32960: Final = b"/gbt32960"
TELEMETRY: Final = b"/telemetry"
BMS: Final = b"/bms"
DOWN: Final = "/down/"

# Length of nev/v1/{vin}/gbt32960: the VIN is always 17 characters here, so that topics match by position.
UPLINK_BYTES: Final = len(PREFIX) + VIN_BYTES + len(GBT32960)


def uplink(vin: str) -> str:
    """Where a vehicle publishes GB/T 32960 frames."""
    return f"{PREFIX.decode()}{vin}{GBT32960.decode()}"


def json_uplink(vin: str, level: bytes = TELEMETRY) -> str:
    """Where a vehicle publishes JSON samples: ``level`` is TELEMETRY or BMS."""
    return f"{PREFIX.decode()}{vin}{level.decode()}"


def downlink(vin: str) -> str:
    """Where a vehicle is sent GB/T 32960 commands; it subscribes to it, or to a filter that holds it."""
    return f"{PREFIX.decode()}{vin}{DOWN}gbt32960"


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription holds a topic (clause 4.7)."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(levels) or level not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)


def is_own_downlink(topic_filter: str, vin: str) -> bool:
    """Whether a subscription asks for nothing but this vehicle's own downlink."""
    own = f"{PREFIX.decode()}{vin}{DOWN}"
    if not topic_filter.startswith(own):
        return False
    levels = topic_filter[len(own) :].split("/")
    # "#" must stand alone in the last level, "+" alone in its own (clause 4.7.1)
    return (
        all(level in ("+", "#") if ("+" in level or "#" in level) else True for level in levels)
        and "#" not in levels[:-1]
    )
