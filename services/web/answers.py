"""Rows as the client wants them: JSON, CSV or Parquet.

The values are the same in all three: a flaw is null, times carry an offset, units are in the names.
Encoding is CPU work and runs beside the event loop (``asyncio.to_thread``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from zoneinfo import ZoneInfo

import orjson
from starlette.requests import Request
from starlette.responses import Response

from schemas.batch import Door
from schemas.gbt32960.commands import command_name
from schemas.signals import INDEX, SIGNALS, aggregates
from services.web import blocks, own
from services.web.parameters import Field
from services.web.problems import ProblemError, bad_parameter

KINDS: Final = {kind: command_name(kind) for kind in (2, 3)}
EDITIONS: Final = {16: 2016, 25: 2025, 0: None}  # 0: no frame of the standard, a JSON sample
DOORS: Final = {int(door): "gbt32960" if door is Door.GBT_TCP else door.name.lower() for door in Door}


class Format(StrEnum):
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


MEDIA_TYPES: Final = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv",
    Format.PARQUET: "application/vnd.apache.parquet",
}


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def format_wanted(request: Request, given: str | None) -> Format:
    """``?format=`` when there is one, else the best of the Accept header that we have."""
    if given is not None:
        try:
            return Format(given)
        except ValueError:
            raise bad_parameter("format", given, "is not a format of this path", "json, csv or parquet") from None
    accept = request.headers.get("accept", "*/*")
    wanted = []
    for position, part in enumerate(accept.split(",")):
        name, *options = (piece.strip().lower() for piece in part.split(";"))
        weight = next((option[2:] for option in options if option.startswith("q=")), "1")
        wanted.append((-_weight(weight), position, name))
    for weight_below_zero, _, name in sorted(wanted):
        if weight_below_zero == 0:
            continue
        for kind, media_type in MEDIA_TYPES.items():
            if name in (media_type, "*/*", media_type.split("/")[0] + "/*"):
                return kind
    raise ProblemError(
        406, "not-acceptable", "No such format", f"Accept: {accept[:200]} names no format that this path has.",
        f"Accept one of {', '.join(MEDIA_TYPES.values())}, or give format=json, csv or parquet.",
    )  # fmt: skip


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


# -- columns -----------------------------------------------------------------------------------------
Column = tuple[str, str]  # name as answered, and kind: an SQL type of the catalogue, or one of those below


def columns(fields: Sequence[Field], bucketed: bool) -> list[Column]:
    """Names and kinds of an answer's columns, in order; the key columns come first."""
    if not bucketed:
        return [("time", "time"), ("kind", "kind"), ("part", "smallint"), *((f.name, _kind(f)) for f in fields)]
    found: list[Column] = [("time", "time"), ("count", "bigint")]
    for field in fields:
        if field.kind == own.KIND:
            found += [(f"{field.name}_{each}", "bigint" if each == "count" else own.KIND) for each in own.AGGREGATES]
            continue
        signal = SIGNALS[INDEX[field.name]]
        kinds = {"avg": "double precision", "count": "bigint"}
        found += [(f"{signal.name}_{each}", kinds.get(each, signal.sql)) for each in aggregates(signal)]
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
    for (name, kind), values in zip(shape, stored, strict=True):
        read = _reader(name, kind, zone)
        answer.append([read(*pair) for pair in zip(values, editions, strict=True)] if read else list(values))
    return answer


# -- bodies ------------------------------------------------------------------------------------------
def json_rows(shape: Sequence[Column], values: Sequence[list[Any]]) -> list[dict[str, Any]]:
    names = [name for name, _ in shape]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def csv_body(shape: Sequence[Column], values: Sequence[list[Any]]) -> bytes:
    """RFC 4180, UTF-8, a header line.  Lists: values with spaces, packs with | between; flaws as name=state."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([name for name, _ in shape])
    writers = [_CSV.get(kind) for _, kind in shape]
    plain = [[write(v) for v in column] if write else column for write, column in zip(writers, values, strict=True)]
    writer.writerows(zip(*plain, strict=True))
    return text.getvalue().encode()


def _csv_lists(packs: list[list[Any]] | None) -> str:
    return "|".join(" ".join("" if v is None else str(v) for v in pack) for pack in packs or ())


_CSV: Final[Mapping[str, Callable[[Any], str]]] = {
    "time": lambda value: value.isoformat() if value else "",
    "notes": lambda value: " ".join(value),
    "flaws": lambda value: " ".join(f"{name}={state}" for name, state in value.items()),
    "cells": _csv_lists,
    "temps": _csv_lists,
}


def parquet_body(
    shape: Sequence[Column], values: Sequence[list[Any]], zone: ZoneInfo, about: Mapping[str, Any]
) -> bytes:
    """One row group, zstd; ``about`` goes into the file's metadata under ``nevstream`` as JSON."""
    import pyarrow as pa  # here, because its memory is only needed by those who ask for it
    import pyarrow.parquet as pq

    types = {
        "smallint": pa.int16(), "integer": pa.int32(), "bigint": pa.int64(), "real": pa.float32(),
        "double precision": pa.float64(), "time": pa.timestamp("us", tz=str(zone)), "kind": pa.string(),
        "door": pa.string(), "edition": pa.int16(), "notes": pa.list_(pa.string()),
        own.KIND: pa.float64(), "flaws": pa.map_(pa.string(), pa.string()), "cells": pa.list_(pa.list_(pa.float32())),
        "temps": pa.list_(pa.list_(pa.int16())),
    }  # fmt: skip
    arrays = []
    for (_, kind), column in zip(shape, values, strict=True):
        plain = [list(value.items()) for value in column] if kind == "flaws" else column
        arrays.append(pa.array(plain, types[kind]))
    schema = pa.schema([(name, types[kind]) for name, kind in shape], metadata={"nevstream": orjson.dumps(about)})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def isoformat(time: datetime | None) -> str | None:
    return time.isoformat() if time else None
