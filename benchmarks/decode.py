"""How fast frames become columns on one core: the kernels, their twin, and rtm-con, a decoder by others.

The same frames for all three, of three sizes and both editions, written by hand from the tables of the standard.
rtm-con gives a tree of Python objects, the kernels arrays of what the system stores: the ratio says what a
pipeline pays per report, not that one of them is badly written.
"""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable
from functools import reduce
from operator import xor
from random import Random
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks import samples
from benchmarks.runner import Progress
from schemas.batch import Batch, Codec
from schemas.gbt32960.decode import decode_frames, decode_reports
from schemas.gbt32960.tables import TABLES

SIZES: Final = ("small", "typical", "large")
EDITIONS: Final = (16, 25)
_CELLS: Final = {"typical": (96,), "large": (200, 200)}  # cells of each pack
_PROBES: Final = {"typical": (20,), "large": (125, 125)}


def frame(size: str, edition: int, rng: Random) -> bytes:
    """One report: vehicle block, and but for the small one motor, location, extremes (2016), alarm, cells, probes.

    A 2025 report ends in a signature block, without which rtm-con does not read it.
    """

    def u16(low: int, high: int) -> bytes:
        return rng.randint(low, high).to_bytes(2, "big")

    time_ = bytes((26, rng.randint(1, 12), rng.randint(1, 28), rng.randint(0, 23), rng.randint(0, 59), 30))
    unit = time_ + b"\x01\x01\x03\x01" + u16(0, 1200) + rng.randint(0, 9_999_999).to_bytes(4, "big") + u16(3000, 4200)
    unit += u16(10_000, 12_000) + bytes((rng.randint(5, 100), 1, 0x2E)) + u16(500, 9000)
    unit += bytes((30, 0)) if edition == 16 else b""
    location = rng.randint(110_000_000, 120_000_000).to_bytes(4, "big") + (30_000_000).to_bytes(4, "big")
    if size != "small":
        torque = u16(20_000, 22_000) if edition == 16 else b"\x00\x03" + u16(0, 60_000)
        unit += b"\x02\x01\x01\x01\x5a" + u16(20_000, 30_000) + torque + b"\x50"
        unit += u16(3000, 4000) + u16(10_000, 11_000) if edition == 16 else b""
        unit += b"\x05\x00" + (b"\x01" if edition == 25 else b"") + location
        unit += b"\x06\x01\x05\x0f\x00\x01\x07\x0e\x00\x01\x02\x46\x01\x03\x40" if edition == 16 else b""
        unit += (b"\x07" if edition == 16 else b"\x06") + bytes(9 if edition == 16 else 10)
        packs = _CELLS[size]
        unit += bytes((0x08 if edition == 16 else 0x07, len(packs)))
        for number, cells in enumerate(packs, 1):
            unit += bytes((number,)) + u16(3000, 4200) + u16(10_000, 11_000) + cells.to_bytes(2, "big")
            unit += b"\x00\x01" + bytes((cells,)) if edition == 16 else b""
            unit += b"".join(u16(3500, 3700) for _ in range(cells))
        unit += bytes((0x09 if edition == 16 else 0x08, len(packs)))
        for number, probes in enumerate(_PROBES[size], 1):
            unit += bytes((number,)) + probes.to_bytes(2, "big") + bytes(rng.randint(60, 75) for _ in range(probes))
    elif edition == 16:
        unit += b"\x05\x00" + location
    unit += b"\xff\x02\x00\x04\x01\x02\x03\x04\x00\x02\x05\x06" if edition == 25 else b""
    vin = f"LBENCH{rng.randint(0, 10**11 - 1):011d}".encode()
    body = b"\x02\xfe" + vin + b"\x01" + len(unit).to_bytes(2, "big") + unit
    return (b"##" if edition == 16 else b"$$") + body + bytes((reduce(xor, body),))


def rtm_con() -> Any:
    """rtm-con's message structure, without its spreadsheet and window parts (they want openpyxl and tkinter)."""
    window = types.ModuleType("rtm_con.msg_to_gui")
    window.MessageAnalyzer = None  # type: ignore[attr-defined]
    sys.modules.setdefault("rtm_con.msg_to_gui", window)
    sys.modules.setdefault("rtm_con.msg_to_excel", None)  # type: ignore[arg-type]
    from rtm_con.msg_format import msg

    return msg


def kernels(frames: list[bytes]) -> tuple[Callable[[], None], Batch]:
    """What decodes all of ``frames`` once, and where it puts them."""
    data = np.frombuffer(bytearray(b"".join(frames)), np.uint8)
    length = np.array([len(one) for one in frames], np.int32)
    start = np.zeros(len(frames), np.int64)
    np.cumsum(length[:-1], out=start[1:])
    codec, reason = np.full(len(frames), Codec.GBT32960, np.uint8), np.zeros(len(frames), np.uint8)
    out = Batch.empty(len(frames), len(data))
    return lambda: decode_frames(data, start, length, codec, reason, out), out


def twin(frames: list[bytes]) -> Callable[[], None]:
    data = np.frombuffer(bytearray(b"".join(frames)), np.uint8)
    length = np.array([len(one) for one in frames], np.int32)
    start = np.zeros(len(frames), np.int64)
    np.cumsum(length[:-1], out=start[1:])
    out, skip = Batch.empty(len(frames), len(data)), np.zeros(len(frames), np.uint8)
    slow: Any = decode_reports
    return lambda: slow.twin(
        data, start, length, skip, TABLES.fields, TABLES.groups, TABLES.blocks, TABLES.derived,
        out.kind, out.edition, out.reason, out.detail, out.notes, out.time_s, out.part, out.digest,
        out.num, out.state, out.var, out.heap,
    )  # fmt: skip


def _rate(work: Callable[[], None], count: int, repeats: int) -> float:
    work()
    rates = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        rates.append(count / (time.perf_counter() - begun))
    return median(rates)


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{frames_per_s (kernels), baseline_frames_per_s ratio, twin_frames_per_s, cases[], json_cases[]}."""
    many, few, repeats = (5_000, 50, 5) if quick else (20_000, 300, 15)
    try:
        judge = rtm_con()
    except ImportError:
        judge = None
    cases: list[dict[str, Any]] = []
    for size in SIZES:
        for edition in EDITIONS:
            rng = Random(32960)  # noqa: S311 - values of frames
            frames = [frame(size, edition, rng) for _ in range(many)]
            work, out = kernels(frames)
            fast = _rate(work, many, repeats)
            assert (out.kind == 2).all(), "a frame of the benchmark's own was not read"
            assert (out.notes & 1 == 0).all(), "a block of the benchmark's own runs past its frame"
            slow = _rate(twin(frames[:few]), few, 3)

            def parse(frames: list[bytes] = frames) -> None:
                for one in frames[:few]:
                    judge.parse(one)

            baseline = _rate(parse, few, 3) if judge is not None else None
            cases.append(
                {
                    "size": size,
                    "edition": 2000 + edition,
                    "frame_bytes": len(frames[0]),
                    "cells": sum(_CELLS.get(size, ())),
                    "frames_per_s": round(fast, 1),
                    "mb_per_s": round(fast * len(frames[0]) / 1e6, 1),
                    "twin_frames_per_s": round(slow, 1),
                    "baseline_frames_per_s": None if baseline is None else round(baseline, 1),
                    "ratio": None if baseline is None else round(fast / baseline, 1),
                }
            )
            told = "not installed" if baseline is None else f"{baseline:,.0f}"
            progress(
                f"{size} {2000 + edition}, {len(frames[0])} bytes, frames/s: kernels {fast:,.0f}, twin {slow:,.0f}, "
                f"rtm-con {told}"
            )
    json_cases = samples.measure(samples.SAMPLES // 4 if quick else samples.SAMPLES)
    for case in json_cases:
        progress(
            f"JSON {case['case']}: {case['samples_per_s']:,} samples/s, json.loads {case['baseline_samples_per_s']:,}"
        )
    (typical,) = (case for case in cases if (case["size"], case["edition"]) == ("typical", 2016))
    return {
        "frames_per_s": typical["frames_per_s"],
        "baseline_frames_per_s": typical["baseline_frames_per_s"],
        "ratio": typical["ratio"],
        "twin_frames_per_s": typical["twin_frames_per_s"],
        "cases": cases,
        "json_cases": json_cases,
        "settings": {"frames": many, "frames_slow": few, "repeats": repeats, "cores_used": 1},
        "notes": [] if judge is not None else ["rtm-con is not installed (pip install rtm-con): no baseline"],
    }
