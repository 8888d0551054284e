"""Rows of telemetry as answered: their columns, and their values read from what is stored.

A flaw is null, times carry an offset, units are in the names.  The files they go into are in ``exports.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import orjson
from starlette.responses import Response

from schemas.batch import Door
from schemas.gbt32960.commands import command_name
from schemas.signals import INDEX, SIGNALS, aggregates
from services.web import blocks, own
from services.web.exports import Column
from services.web.parameters import Field

KINDS: Final = {kind: command_name(kind) for kind in (2, 3)}
EDITIONS: Final = {16: 2016, 25: 2025, 0: None}  # 0: no frame of the standard, a JSON sample
DOORS: Final = {int(door): "gbt32960" if door is Door.GBT_TCP else door.name.lower() for door in Door}


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


# -- columns -----------------------------------------------------------------------------------------
def columns(fields: Sequence[Field], bucketed: bool) -> list[Column]:
    """Columns of an answer, in order; the key columns come first."""
    if not bucketed:
        keys = [Column("time", "time"), Column("kind", "kind"), Column("part", "smallint")]
        return [*keys, *(Column(f.name, _kind(f), f.unit, f.text) for f in fields)]
    found: list[Column] = [Column("time", "time"), Column("count", "bigint")]
    for field in fields:
        for each in own.AGGREGATES if field.kind == own.KIND else aggregates(SIGNALS[INDEX[field.name]]):
            if each == "count":
                found.append(Column(f"{field.name}_count", "bigint"))
            elif field.kind == own.KIND:
                found.append(Column(f"{field.name}_{each}", own.KIND, field.unit))
            else:
                kind = "double precision" if each == "avg" else SIGNALS[INDEX[field.name]].sql
                found.append(Column(f"{field.name}_{each}", kind, field.unit))
    return found


def _kind(field: Field) -> str:
    return SIGNALS[INDEX[field.name]].sql if field.kind == "signal" else field.kind


def _reader(name: str, kind: str, zone: ZoneInfo) -> Callable[[Any, int], Any] | None:
    """How a stored value becomes an answered one (given it and the row's edition); None: as it is."""
    if kind == "time":
        return lambda value, _: value.astimezone(zone) if value else None
    if kind == "double precision" and name.endswith("_avg"):
        # a mean of reals carries their binary noise: three digits beyond the signal's own are kept
        digits = len(str(SIGNALS[INDEX[name.removesuffix("_avg")]].div)) + 2
        return lambda value, _: None if value is None else round(value, digits)
    return _READERS.get(kind)


_READERS: Final[Mapping[str, Callable[[Any, int], Any]]] = {
    "kind": lambda value, _: KINDS.get(value, str(value)),
    "door": lambda value, _: DOORS.get(value, str(value)),
    "edition": lambda value, _: EDITIONS.get(value, value),
    "notes": lambda value, _: blocks.notes(value),
    "flaws": lambda value, _: blocks.flaws(value),
    "cells": lambda value, edition: [pack.values() for pack in blocks.cell_packs(value, edition)] if value else None,
    "temps": lambda value, edition: [pack.values() for pack in blocks.temp_packs(value, edition)] if value else None,
}


def answered(
    rows: Sequence[tuple[Any, ...]], shape: Sequence[Column], zone: ZoneInfo, editions: Sequence[int]
) -> list[list[Any]]:
    """Columns of values as answered, from rows as stored (in the same order as ``shape``)."""
    stored = list(zip(*rows, strict=True)) if rows else [()] * len(shape)
    answer: list[list[Any]] = []
    for column, values in zip(shape, stored, strict=True):
        read = _reader(column.name, column.kind, zone)
        answer.append([read(*pair) for pair in zip(values, editions, strict=True)] if read else list(values))
    return answer


# -- bodies ------------------------------------------------------------------------------------------
def json_rows(shape: Sequence[Column], values: Sequence[list[Any]]) -> list[dict[str, Any]]:
    names = [column.name for column in shape]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def isoformat(time: datetime | None) -> str | None:
    return time.isoformat() if time else None
