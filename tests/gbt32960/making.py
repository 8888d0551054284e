"""Random reports written from the edition tables: what the tests feed to kernel, twin and outside judges.

Values are mostly in range, sometimes a sentinel, sometimes anything; lists have any length that the
counts can say.
"""

from __future__ import annotations

from random import Random

import numpy as np

from schemas.batch import Batch, Codec
from schemas.gbt32960.decode import decode_reports
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.frame import NEED_MORE, build_frame, next_frame
from schemas.gbt32960.layout import Block, Each, Field, Kind, Part, Values
from schemas.gbt32960.tables import TABLES


def raw_value(rng: Random, field: Field, wild: float) -> int:
    """A raw value: in range, or with odds ``wild`` a sentinel or anything."""
    if rng.random() >= wild:
        return rng.randint(field.lo, field.hi)
    return rng.choice((field.ones, field.ones - 1, 0, field.hi + 1 & field.ones, rng.randint(0, field.ones)))


def write_parts(rng: Random, parts: tuple[Part, ...], wild: float, list_max: int, honest: bool = False) -> bytes:
    """Bytes of ``parts``; lists are as long as their count says, 0 at a sentinel (``honest``: counts never are one)."""
    out = b""
    lengths: dict[str, int] = {}
    for part in parts:
        if isinstance(part, Field):
            raw = raw_value(rng, part, wild)
            if part.kind is Kind.COUNT:
                if honest or rng.random() < 0.95:
                    raw = min(rng.choice((0, 1, 1, 2, rng.randint(0, list_max))), part.hi)
                raw = raw if raw >= part.ones - 1 else min(raw, list_max)
                lengths[part.raw] = 0 if raw >= part.ones - 1 else raw
            out += raw.to_bytes(part.width, "big")
        elif isinstance(part, Values):
            for _ in range(lengths[part.count]):
                out += raw_value(rng, part.item, wild).to_bytes(part.item.width, "big")
        else:
            inner = list_max if lengths[part.count] < 4 else min(list_max, 8)
            for _ in range(lengths[part.count]):
                out += write_parts(rng, part.parts, wild, inner, honest)
    return out


def write_block(rng: Random, block: Block, wild: float = 0.15, list_max: int = 400, honest: bool = False) -> bytes:
    """A block with its type byte; structures are few, inner lists up to ``list_max`` long."""
    has_structures = any(isinstance(part, Each) for part in block.parts)
    if not has_structures:
        return bytes([block.type]) + write_parts(rng, block.parts, wild, list_max, honest)
    count_field, each = (part for part in block.parts[-2:])
    assert isinstance(count_field, Field)
    assert isinstance(each, Each)
    if len(block.parts) > 2 or (not honest and rng.random() < 0.05):
        return bytes([block.type]) + write_parts(rng, block.parts, wild, min(list_max, 20), honest)
    n = rng.choice((0, 1, 1, 1, 1, 2, 3, 5))
    items = b"".join(
        write_parts(rng, each.parts, wild, list_max if n < 3 else min(list_max, 60), honest) for _ in range(n)
    )
    return bytes([block.type, n]) + items


def other_block(rng: Random, edition: int) -> bytes:
    """A custom, unknown or signature block."""
    size = rng.randint(0, 40)
    custom = bytes([rng.randint(0x80, 0xFE)]) + size.to_bytes(2, "big") + rng.randbytes(size)
    overrun = bytes([rng.randint(0x80, 0xFE)]) + (60_000).to_bytes(2, "big") + rng.randbytes(size)
    unknown = bytes([rng.choice((0x00, 0x0A, 0x2F, 0x33, 0x7F))]) + rng.randbytes(size)
    r, s = rng.randint(0, 70), rng.randint(0, 70)
    signature = (
        bytes([0xFF, rng.randint(0, 4)])
        + r.to_bytes(2, "big")
        + rng.randbytes(r)
        + s.to_bytes(2, "big")
        + rng.randbytes(s)
        + rng.randbytes(rng.choice((0, 0, 3)))
    )
    return rng.choice((custom, custom, overrun, unknown, signature if edition == 25 else custom))


def time_bytes(rng: Random) -> bytes:
    return bytes(
        [
            rng.randint(0, 99),
            rng.randint(1, 12),
            rng.randint(1, 28),
            rng.randint(0, 23),
            rng.randint(0, 59),
            rng.randint(0, 59),
        ]
    )


def report(rng: Random, edition: int, wild: float = 0.15, others: float = 0.3, repeats: bool = True) -> bytes:
    """A whole report frame: some of the edition's blocks in any order, and perhaps others."""
    types = list(EDITIONS[edition].blocks)
    chosen = rng.sample(types, rng.randint(1, len(types)))
    if repeats and rng.random() < 0.15:
        chosen.append(rng.choice(chosen))
    unit = time_bytes(rng)
    for kind in chosen:
        unit += write_block(rng, EDITIONS[edition].blocks[kind], wild)
        if rng.random() < others / len(chosen):
            unit += other_block(rng, edition)
    return build_frame(edition, rng.choice((2, 2, 3)), 0xFE, f"LTEST{rng.randint(0, 10**12 - 1):012d}", 1, unit[:65531])


def rechecked(frame: bytes) -> bytes:
    """The frame with its length and check byte made right again after its bytes were changed."""
    body = bytearray(frame)
    body[22:24] = (len(body) - 25).to_bytes(2, "big")
    check = 0
    for byte in body[2:-1]:
        check ^= byte
    body[-1] = check
    return bytes(body)


def decoded(frames: list[bytes], function=decode_reports) -> tuple[Batch, np.ndarray]:
    """``frames`` through the kernel or its twin; the arrays start out full of rubbish."""
    data = np.frombuffer(bytearray(b"".join(frames) or b"\0"), np.uint8)
    length = np.array([len(frame) for frame in frames], np.int32)
    start = np.zeros(len(frames), np.int64)
    np.cumsum(length[:-1], out=start[1:])
    out = Batch.empty(len(frames), len(data))
    for name in Batch.__slots__:
        getattr(out, name).view(np.uint8)[...] = 0xA5
    arrays = [getattr(out, name) for name in Batch.__slots__[: Batch.__slots__.index("heap") + 1]]  # the codec's own
    used = function(data, start, length, np.zeros(len(frames), np.uint8), *TABLES, *arrays)
    out.heap = out.heap[:used]
    return out, data


def codec_column(n: int) -> np.ndarray:
    return np.full(n, Codec.GBT32960, np.uint8)


def run_on_garbage() -> None:
    """Random, damaged and senseless frames through whatever kernels the environment chose."""
    rng = Random(7)
    for _ in range(60):
        frames = []
        for _ in range(8):
            frame = bytearray(report(rng, rng.choice((16, 25))))
            for _ in range(rng.randint(0, 6)):
                frame[rng.randint(30, len(frame) - 1)] = rng.choice((0, 1, 254, 255, rng.randint(0, 255)))
            cut = rng.randint(0, len(frame) - 31)
            frames.append(rechecked(bytes(frame[: len(frame) - cut])))
            frames.append(rechecked(bytes(frame[:30]) + rng.randbytes(rng.randint(0, 80)) + b"0"))
            frames.append(rng.randbytes(rng.randint(0, 60)))
        decoded(frames)
        stream = np.frombuffer(bytearray(b"".join(frames)), np.uint8)
        at = 0
        while at < len(stream):
            kind, begin, size = next_frame(stream, at, len(stream), 4096)
            if kind == NEED_MORE:
                break
            at = begin + size


if __name__ == "__main__":
    run_on_garbage()
    print("clean")
