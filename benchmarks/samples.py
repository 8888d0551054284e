"""How fast JSON samples become columns: the batch decoder, and ``json.loads`` with a loop over the fields.

Part of ``nevstream bench decode``: one process, samples made before the clock starts, the best of five passes over
20,000 samples (other work on the machine can only slow a pass down).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from schemas.batch import Batch, Codec, Frames
from schemas.samples.decode import Decoder, split_payloads
from schemas.samples.reference import read_sample

VIN = b"LNBSCB3F4JW000001"
SAMPLES = 20_000
PASSES = 5


def telemetry(rng: random.Random, k: int) -> dict[str, Any]:
    """A time and 20 signals, as a telematics unit sends them each second."""
    return {
        "time": 1_780_000_000_000 + 1000 * k, "vehicle_state": 1, "charge_state": 3, "run_mode": 1,
        "speed_kmh": round(rng.uniform(0, 120), 1), "odometer_km": round(rng.uniform(0, 1e5), 1),
        "total_voltage_v": round(rng.uniform(300, 400), 1), "total_current_a": round(rng.uniform(-100, 200), 1),
        "soc_pct": rng.randint(0, 100), "dcdc_state": 1, "gear": 14, "insulation_resistance_kohm": 5000,
        "accelerator_pct": rng.randint(0, 100), "brake_pct": 0, "motor_speed_rpm": rng.randint(0, 9000),
        "motor_torque_nm": round(rng.uniform(-10, 200), 1), "motor_temp_c": 60, "location_valid": 1,
        "longitude_deg": round(rng.uniform(100, 120), 6), "latitude_deg": round(rng.uniform(20, 40), 6),
        "alarm_level": 0,
    }  # fmt: skip


def bms(rng: random.Random, k: int) -> dict[str, Any]:
    """96 cells and 24 probes."""
    return {
        "time": 1_780_000_000_000 + 1000 * k, "total_voltage_v": 350.2, "soc_pct": 50,
        "cells_v": [round(rng.uniform(3, 4), 3) for _ in range(96)], "temps_c": [25] * 24,
    }  # fmt: skip


def frames_of(payloads: list[bytes], codec: int) -> Frames:
    """Payloads as the pipeline reads them from the journal."""
    bodies = [VIN + payload for payload in payloads]
    n = len(bodies)
    length = np.array([len(body) for body in bodies], np.int32)
    start = np.zeros(n, np.int64)
    start[1:] = np.cumsum(length)[:-1]
    small, word, zeros = np.zeros(n, np.uint8), np.zeros(n, np.uint32), np.zeros(n, np.int64)
    number = np.arange(n, dtype=np.int32)
    data = np.frombuffer(bytearray(b"".join(bodies)), np.uint8)
    return Frames(
        data, start, length, zeros, small, np.full(n, codec, np.uint8), small, word, word, number * 0, zeros, number
    )


def decode_all(frames: Frames) -> int:
    """From payloads to the filled columns; how many samples were taken."""
    decoder = Decoder()
    lines, samples = split_payloads(frames, decoder.limits, 4)
    batch = Batch.empty(lines.n, len(lines.data))
    for array in (batch.kind, batch.reason, batch.detail, batch.state, batch.var):
        array[:] = 0
    decoder.decode(lines, samples, batch)
    return int((batch.reason == 0).sum())


def rate(work: Callable[[], int], n: int) -> float:
    best = float("inf")
    for _ in range(PASSES):
        begun = time.perf_counter()
        assert work() == n
        best = min(best, time.perf_counter() - begun)
    return n / best


def measure(n: int = SAMPLES) -> list[dict[str, Any]]:
    """Samples per second on one core, by case."""
    rng, found = random.Random(7), []  # noqa: S311 - the same numbers each time
    for name, codec, make, count in (
        ("telemetry, 20 signals", Codec.JSON_TELEMETRY, telemetry, n),
        ("telemetry, arrays of 100", Codec.JSON_TELEMETRY, telemetry, n),
        ("bms, 96 cells, 24 probes", Codec.JSON_BMS, bms, n // 5),
    ):
        texts = [json.dumps(make(rng, k)).encode() for k in range(count)]
        payloads = texts
        if "arrays" in name:
            payloads = [b"[" + b",".join(texts[k : k + 100]) + b"]" for k in range(0, count, 100)]
        frames = frames_of(payloads, codec)
        decode_all(frames)
        ours = rate(lambda frames=frames: decode_all(frames), count)  # type: ignore[misc]
        plain = rate(lambda texts=texts: sum(read_sample(text) is not None for text in texts), count)  # type: ignore[misc]
        found.append({
            "case": name, "sample_bytes": len(texts[0]), "samples_per_s": round(ours),
            "baseline_samples_per_s": round(plain), "ratio": round(ours / plain, 1),
        })  # fmt: skip
    return found
