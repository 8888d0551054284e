"""Payloads to frames as the journal has them, and through the decoder; rows as people would write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from schemas.batch import CELLS, TEMPS, Batch, Codec, Frames
from schemas.reasons import reason_name
from schemas.samples.decode import Decoder, Samples, split_payloads
from schemas.samples.split import Limits
from schemas.signals import SIGNALS, State

VIN = "LNBSCB3F4JW000001"


def frames_of(payloads: Sequence[bytes], codec: int = Codec.JSON_TELEMETRY, vin: str = VIN) -> Frames:
    bodies = [vin.encode() + payload for payload in payloads]
    n = len(bodies)
    length = np.array([len(body) for body in bodies], np.int32)
    start = np.zeros(n, np.int64)
    start[1:] = np.cumsum(length)[:-1]
    return Frames(
        data=np.frombuffer(bytearray(b"".join(bodies)), np.uint8), start=start, length=length,
        received_us=np.zeros(n, np.int64), door=np.full(n, 2, np.uint8), codec=np.full(n, codec, np.uint8),
        reason=np.zeros(n, np.uint8), detail=np.zeros(n, np.uint32), source=np.zeros(n, np.uint32),
        partition=np.zeros(n, np.int32), offset=np.zeros(n, np.int64), position=np.arange(n, dtype=np.int32),
    )  # fmt: skip


def decoded(frames: Frames, decoder: Decoder | None = None) -> tuple[Frames, Samples, Batch]:
    decoder = decoder or Decoder(limits=Limits())
    frames, samples = split_payloads(frames, decoder.limits, 4)
    batch = Batch.empty(frames.n, len(frames.data))
    for array in (batch.kind, batch.reason, batch.detail, batch.notes, batch.state, batch.var, batch.num, batch.digest):
        array[:] = 0
    decoder.decode(frames, samples, batch)
    return frames, samples, batch


def row(frames: Frames, batch: Batch, line: int) -> dict[str, Any]:
    """Everything that line has: {"refused": (reason, offset)} or the row."""
    if batch.reason[line]:
        return {"refused": (reason_name(int(batch.reason[line])), int(batch.detail[line]))}
    begin, length = batch.extra[line].tolist()
    extra = orjson.loads(batch.extra_text[begin : begin + length].tobytes()) if length else {}
    signals, flaws = {}, {}
    for index, signal in enumerate(SIGNALS):
        state = int(batch.state[line, index])
        num = int(batch.num[line, index])
        if state == State.VALID:
            if signal.name == "alarm_flags":
                num &= 0xFFFF_FFFF
            signals[signal.name] = num if signal.div == 1 else num / signal.div
        elif state:
            flaws[signal.name] = State(state).name.lower()
    lists = {}
    for name, column in (("cells", CELLS), ("temps", TEMPS)):
        begin, length = batch.var[line, column].tolist()
        if length:
            lists[name] = frames.data[begin : begin + length].tobytes()
    paths = extra.pop("_flaws", {})
    return {
        "time": int(batch.time_s[line]), "kind": int(batch.kind[line]), "part": int(batch.part[line]),
        "edition": int(batch.edition[line]), "signals": signals, "flaws": flaws, "paths": paths, "extra": extra,
        "digest": int(batch.digest[line]), **lists,
    }  # fmt: skip


def rows(payloads: Sequence[Any], codec: int = Codec.JSON_TELEMETRY, decoder: Decoder | None = None) -> list[Any]:
    """Rows of payloads given as bytes, or as what becomes JSON."""
    raw = [one if isinstance(one, bytes) else orjson.dumps(one) for one in payloads]
    frames, _, batch = decoded(frames_of(raw, codec), decoder)
    return [row(frames, batch, line) for line in range(frames.n)]
