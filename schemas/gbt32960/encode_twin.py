"""The encoder kernel's twin: reports written block by block from the edition tables, in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.batch import I32, I64, U8, U32
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.layout import BIT_KINDS, Block, Each, Field, Kind, Values
from schemas.gbt32960.times import time_bytes
from schemas.signals import INDEX, State


def encode_reports_twin(
    edition: U8, command: U8, vin: U8, time_s: I64, num: I32, state: U8, cells_mv: Any, temps_raw: U8, codes: U32,
    first_cell: int, fields: I64, groups: I64, blocks: I64, derived: I64, out: U8, start: I64, length: I32,
) -> int:  # fmt: skip
    """As ``encode.write_reports``; the table arrays are not looked at, the edition tables are."""
    del fields, groups, blocks, derived
    at = 0
    for i in range(len(time_s)):
        known = {name: (State(int(state[i, position])), int(num[i, position])) for name, position in INDEX.items()}
        lists = {
            "cells_v": [int(value) for value in cells_mv[i]],
            "temps_c": [int(value) for value in temps_raw[i]],
            "pack_faults": [int(value) for value in codes[i] if value],
        }
        unit = time_bytes(int(time_s[i]))
        for kind, block in sorted(EDITIONS[int(edition[i])].blocks.items()):
            if _sent(block, known, lists):
                unit += bytes([kind]) + _write(block, known, lists, first_cell)
        frame = build_frame(int(edition[i]), int(command[i]), 0xFE, vin[i].tobytes(), 1, unit)
        out[at : at + len(frame)] = np.frombuffer(frame, np.uint8)
        start[i], length[i] = at, len(frame)
        at += len(frame)
    return at


Known = dict[str, tuple[State, int]]
Lists = dict[str, list[int]]


def _sent(block: Block, known: Known, lists: Lists) -> bool:
    if block.name == "cell_voltages":
        return bool(lists["cells_v"])
    if block.name == "cell_temperatures":
        return bool(lists["temps_c"])
    if block.name == "drive_motor":
        fields = list(block.groups())[1]
    elif block.fixed or block.name == "alarm":
        fields = next(block.groups())
    else:
        return False  # fuel-cell probes, stacks and supercapacitor lists are not simulated
    return any(field.signal is not None and known[field.signal][0] is not State.ABSENT for field in fields)


def _write(block: Block, known: Known, lists: Lists, first_cell: int) -> bytes:
    out = b""
    for part in block.parts:
        if isinstance(part, Each):
            if not part.flat:
                for inner in part.parts:
                    out += _write_part(inner, known, lists, first_cell) if isinstance(inner, Field | Values) else b""
        else:
            out += _write_part(part, known, lists, first_cell)
    return out


def _write_part(part: Field | Values, known: Known, lists: Lists, first_cell: int) -> bytes:
    if isinstance(part, Values):
        return b"".join(value.to_bytes(part.item.width, "big") for value in lists.get(part.key, []))
    return _raw(part, known, lists, first_cell).to_bytes(part.width, "big")


def _raw(field: Field, known: Known, lists: Lists, first_cell: int) -> int:
    """What goes on the wire for one field."""
    made = {
        "count": 1,
        "frame_cells": len(lists["cells_v"]),
        "first_cell": first_cell,
        "probe_count": len(lists["temps_c"]),
        "pack_fault_count": len(lists["pack_faults"]),
    }
    if field.raw in made:
        return made[field.raw]
    if field.raw == "cell_total" and (field.kind is Kind.COUNT or known["pack_cell_total"][0] is State.ABSENT):
        return len(lists["cells_v"])
    if field.raw == "no" and (field.signal is None or known[field.signal][0] is State.ABSENT):
        return 1
    if field.kind is Kind.COUNT:
        return 0  # the other fault lists
    if field.kind is Kind.STATUS:
        status = 0 if known["location_valid"] == (State.VALID, 1) else 1
        for bit, name in ((2, "latitude_deg"), (4, "longitude_deg")):
            if known[name][0] in (State.VALID, State.SUSPECT) and known[name][1] < 0:
                status |= bit
        return status
    assert field.signal is not None
    state, num = known[field.signal]
    if state in (State.VALID, State.SUSPECT):
        raw = ((abs(num) if field.kind is Kind.DEGREES else num) - field.add) // field.mul
        return raw & field.ones
    if field.kind in BIT_KINDS:
        return field.invalid_bits
    return {State.ABNORMAL: field.ones - 1, State.OUT_OF_RANGE: field.hi + 1}.get(state, field.ones)
