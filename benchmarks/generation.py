"""How fast the simulator makes frames: physics, faults, encoding and packet streams, with no socket."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from benchmarks.runner import Progress
from services.fleetsim import faults, wire
from services.fleetsim.chunks import Chunks
from services.fleetsim.vehicle import make_fleet

VEHICLES = 500
START_S = 1_780_000_000


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{frames_per_s, dirty_frames_per_s, frame_bytes, runs}: 96-cell frames, 10 s apart on the data clock."""
    reports, repeats = (100, 2) if quick else (400, 5)
    figures: dict[str, Any] = {}
    for name, preset in (("frames_per_s", "none"), ("dirty_frames_per_s", "dirty")):
        chunks = Chunks(
            make_fleet(VEHICLES, 1, "sedan-ncm-96"), np.full(VEHICLES, START_S, np.int64), 10,
            np.full(VEHICLES, wire.MQTT_311, np.int64), faults.odds_of(preset), None, 1 << 62,
        )  # fmt: skip
        chunks.make(1)
        rates = []
        for _ in range(repeats):
            begun = time.perf_counter()
            segments = chunks.make(reports)
            rates.append(sum(segment.count for segment in segments) / (time.perf_counter() - begun))
        figures[name] = round(median(rates), 1)
        figures["packet_bytes"] = round(sum(len(s.data) for s in segments) / sum(s.count for s in segments), 1)
        progress(f"{preset}: {figures[name]:,.0f} frames/s")
    return figures | {"settings": {"vehicles": VEHICLES, "reports": reports, "repeats": repeats}}
