"""Custom blocks as the decoder leaves them, and rows of extra as they come out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.batch import NOTE_CUSTOM_BLOCK, REST, Batch, Frames
from schemas.custom.extract import Extractor
from schemas.custom.load import loads
from schemas.custom.tables import Compiled, compile_tables
from schemas.gbt32960.frame import AT_VIN

VIN = "LTEST000000000001"
Block = tuple[int, bytes]


def batch_of(rows: Sequence[tuple[str, int, Sequence[Block]]], notes: int = NOTE_CUSTOM_BLOCK) -> tuple[Frames, Batch]:
    """Reports of (VIN, edition, blocks) as decoded: blocks in ``rest``."""
    n = len(rows)
    header = 24
    data = np.zeros(max(1, n * header), np.uint8)
    zero8, zero32 = np.zeros(n, np.uint8), np.zeros(n, np.uint32)
    frames = Frames(
        data,
        np.arange(n, dtype=np.int64) * header,
        np.full(n, header, np.int32),
        np.zeros(n, np.int64),
        zero8,
        zero8 + 1,
        zero8,
        zero32,
        zero32,
        np.zeros(n, np.int32),
        np.zeros(n, np.int64),
        np.arange(n, dtype=np.int32),
    )
    kept = [
        b"".join(bytes([kind]) + len(body).to_bytes(2, "big") + body for kind, body in blocks) for _, _, blocks in rows
    ]
    batch = Batch.empty(n, sum(map(len, kept)))
    batch.notes[:], batch.var[:], batch.state[:] = notes, 0, 0
    at = 0
    for i, (vin, edition, _) in enumerate(rows):
        data[i * header + AT_VIN :][:17] = np.frombuffer(vin.encode().ljust(17, b"\0"), np.uint8)
        batch.edition[i] = edition
        batch.heap[at : at + len(kept[i])] = np.frombuffer(kept[i], np.uint8)
        batch.var[i, REST] = at, len(kept[i])
        at += len(kept[i])
    return frames, batch


def extra_of(batch: Batch) -> list[dict[str, Any] | None]:
    """What each row's column would hold; numbers as text, so that a digit too many shows."""
    spans = batch.extra.tolist()
    texts = [batch.extra_text[begin : begin + length].tobytes() for begin, length in spans]
    return [json.loads(text, parse_float=str) if text else None for text in texts]


def decoded(tables: Compiled | str, blocks: Sequence[Block], vin: str = VIN, edition: int = 16, **more: Any) -> Any:
    """The extra of one report."""
    tables = compile_tables(loads(tables)) if isinstance(tables, str) else tables
    frames, batch = batch_of([(vin, edition, blocks)], **more)
    Extractor(tables).add_extra(frames, batch, np.arange(1))
    return extra_of(batch)[0]


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    return SimpleNamespace(batch=batch_of, column=extra_of, decoded=decoded, VIN=VIN)
