"""How fast JSON samples become columns on one core: the batch decoder, and ``loads`` with a loop over the fields.

The same samples for all, made before the clock starts.  ``json`` and ``orjson`` are the loop that one would write:
each field appended to a column, nothing checked.  ``checked`` is the loop that judges every value as the decoder
does (its reference).  ``parse`` is ``orjson.loads`` alone, which the decoder calls too.  A binary report beside
them says what the slow door costs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, Final

import numpy as np
import orjson

from benchmarks import decode
from benchmarks.passes import rate, seconds_of
from benchmarks.runner import Progress
from benchmarks.samples import bms, decode_all, frames_of, telemetry
from schemas.batch import Codec
from schemas.samples.reference import read_sample

# name → (topic's codec, one sample, samples a payload)
CASES: Final[dict[str, tuple[int, Callable[[Random, int], dict[str, Any]], int]]] = {
    "telemetry": (Codec.JSON_TELEMETRY, telemetry, 1),
    "telemetry_arrays": (Codec.JSON_TELEMETRY, telemetry, 100),
    "bms": (Codec.JSON_BMS, bms, 1),
}


def columns_of(texts: list[bytes], loads: Callable[[bytes], Any]) -> int:
    """The obvious loop: one list per field that has a value, then arrays; how many samples."""
    columns: dict[str, list[float]] = {}
    lines: dict[str, list[int]] = {}
    lists = []
    for line, text in enumerate(texts):
        sample = loads(text)
        lists += [(line, name, np.array(sample.pop(name))) for name in ("cells_v", "temps_c") if name in sample]
        for name, value in sample.items():
            columns.setdefault(name, []).append(value)
            lines.setdefault(name, []).append(line)
    made = {name: (np.array(lines[name]), np.array(values)) for name, values in columns.items()}
    return len(made["time"][0])


def measure(case: str, count: int, repeats: int) -> dict[str, Any]:
    """Samples per second by way."""
    codec, make, together = CASES[case]
    rng = Random(7)  # noqa: S311 - the same numbers each time
    texts = [json.dumps(make(rng, k)).encode() for k in range(count)]
    payloads = texts
    if together > 1:
        payloads = [b"[" + b",".join(texts[k : k + together]) + b"]" for k in range(0, count, together)]
    frames = frames_of(payloads, codec)
    ways: dict[str, Callable[[], int]] = {
        "ours": lambda: decode_all(frames),
        "parse": lambda: sum(orjson.loads(text) is not None for text in texts),
        "orjson": lambda: columns_of(texts, orjson.loads),
        "json": lambda: columns_of(texts, json.loads),
        "checked": lambda: sum(read_sample(text) is not None for text in texts),
    }
    found: dict[str, Any] = {"case": case, "sample_bytes": len(texts[0]), "samples": count}
    for name, work in ways.items():
        assert work() == count, f"{name} does not read every sample of the benchmark's own"
        found |= rate(count, seconds_of(work, repeats, 0), "samples_per_s" if name == "ours" else f"{name}_per_s")
    found["ratio"] = round(found["samples_per_s"] / found["json_per_s"], 2)
    found["ratio_checked"] = round(found["samples_per_s"] / found["checked_per_s"], 2)
    return found


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{samples_per_s, baseline_samples_per_s, ratio (telemetry, one a payload), times_binary, cases[]}."""
    count, repeats = (2_000, 3) if quick else (20_000, 7)
    cases = []
    for case in CASES:
        cases.append(measure(case, count // 4 if case == "bms" else count, repeats))
        one = cases[-1]
        progress(
            f"{case}, {one['sample_bytes']} bytes, samples/s: ours {one['samples_per_s']:,.0f}, json.loads and a loop "
            f"{one['json_per_s']:,.0f}, orjson {one['orjson_per_s']:,.0f}, with the same checks "
            f"{one['checked_per_s']:,.0f}, orjson.loads alone {one['parse_per_s']:,.0f}"
        )
    rng = Random(32960)  # noqa: S311 - values of frames
    binary = [decode.frame("typical", 16, rng) for _ in range(count)]
    work, _ = decode.kernels(binary)
    frames = rate(count, seconds_of(work, repeats))["per_s"]
    first = cases[0]
    return {
        "samples_per_s": first["samples_per_s"],
        "baseline_samples_per_s": first["json_per_s"],
        "ratio": first["ratio"],
        "binary_frames_per_s": frames,
        "times_binary": round(frames / first["samples_per_s"], 1),
        "cases": cases,
        "notes": [],
        "settings": {"samples": count, "samples_bms": count // 4, "repeats": repeats, "cores_used": 1},
    }
