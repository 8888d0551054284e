"""Tables as files: CSV, Excel and Parquet beside JSON, one way for every path that answers with rows.

The values are the same in all four: what is not known is empty, times carry the fleet's offset (Excel has none:
there they are local, and the header says so), units are in the header or in the names.  A file is a page: bounded
by the request's limit, with the cursor of the next one in its headers.  Writing is CPU work and runs beside the
event loop.
"""

from __future__ import annotations

import asyncio
import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import orjson
from fastapi import Query, Request
from starlette.responses import Response

from services.web.problems import ProblemError, bad_parameter


class Format(StrEnum):
    JSON = "json"
    CSV = "csv"
    XLSX = "xlsx"
    PARQUET = "parquet"


MEDIA_TYPES: Final[Mapping[str, str]] = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv",
    Format.XLSX: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    Format.PARQUET: "application/vnd.apache.parquet",
}
FormatQuery = Annotated[
    str | None,
    Query(alias="format", description="json, csv, xlsx or parquet; outranks the Accept header.", examples=["csv"]),
]
FORMATS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {
            "text/csv": {"schema": {"type": "string"}},
            MEDIA_TYPES[Format.XLSX]: {"schema": {"type": "string", "format": "binary"}},
            MEDIA_TYPES[Format.PARQUET]: {"schema": {"type": "string", "format": "binary"}},
        },
        "headers": {
            "X-Next-Cursor": {"description": "As `next_cursor` in JSON; none at the end", "schema": {"type": "string"}},
            "Link": {"description": "Path of the next page, rel=next", "schema": {"type": "string"}},
            "X-Newest-Data-Time": {"description": "As `newest_data_time` in JSON", "schema": {"type": "string"}},
        },
    }
}  # fmt: skip


class Column(NamedTuple):
    """A column of a table.

    ``kind``: an SQL type (smallint, integer, bigint, real, double precision), ``text``, ``bool``, ``date``, ``time``
    (aware), ``integers`` (a list), ``json`` (anything else), or one of the lists of a telemetry row.
    """

    name: str
    kind: str
    unit: str = ""
    text: str = ""

    def described(self) -> dict[str, str]:
        return {"name": self.name, "kind": self.kind, "unit": self.unit, "text": self.text}


def format_wanted(request: Request, given: str | None, types: Mapping[str, str] = MEDIA_TYPES) -> str:
    """``?format=`` when there is one, else the best of the Accept header among ``types`` (name to media type)."""
    *most, last = types
    names = f"{', '.join(most)} or {last}"
    if given is not None:
        if given not in types:
            raise bad_parameter("format", given, "is not a format of this path", names)
        return given
    accept = request.headers.get("accept", "*/*")
    wanted = []
    for position, part in enumerate(accept.split(",")):
        name, *options = (piece.strip().lower() for piece in part.split(";"))
        weight = next((option[2:] for option in options if option.startswith("q=")), "1")
        wanted.append((-_weight(weight), position, name))
    for weight_below_zero, _, name in sorted(wanted):
        if weight_below_zero == 0:
            continue
        for kind, media_type in types.items():
            if name in (media_type, "*/*", media_type.split("/")[0] + "/*"):
                return str(kind)
    raise ProblemError(
        406, "not-acceptable", "No such format", f"Accept: {accept[:200]} names no format that this path has.",
        f"Accept one of {', '.join(types.values())}, or give format={names}.",
    )  # fmt: skip


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


# -- answers -----------------------------------------------------------------------------------------
async def table_answer(
    wanted: str,
    shape: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    *,
    key: str,
    zone: ZoneInfo,
    name: str,
) -> Response:
    """``rows`` in the format that :func:`format_wanted` found.

    JSON is ``about`` with the rows under ``key`` and the ``columns`` that say their units.  In a file, ``about``
    is the second sheet (Excel) or the metadata ``nevstream`` (Parquet); CSV has rows only.  ``name``: of the file,
    without its suffix.
    """
    if wanted == Format.JSON:
        document = {**about, "columns": [column.described() for column in shape], key: rows}
        return Response(orjson.dumps(document, default=_jsonable), media_type=MEDIA_TYPES[Format.JSON])
    values = [[row.get(column.name) for row in rows] for column in shape]
    body = await asyncio.to_thread(body_of, wanted, shape, values, zone, about, xlsx_cells_max=XLSX_CELLS_MAX)
    return Response(body, media_type=media_type_of(wanted), headers=file_headers(about, f"{name}.{wanted}"))


async def document_answer(
    request: Request, given: str | None, document: Mapping[str, Any], key: str, *, zone: ZoneInfo, name: str
) -> Response:
    """An answer that is ready as JSON, in the format asked for: the list under ``key`` is its table.

    For paths whose rows have no declared columns: kinds are read off the values, units off the names.
    """
    wanted = format_wanted(request, given)
    if wanted == Format.JSON:
        return Response(orjson.dumps(document, default=_jsonable), media_type=MEDIA_TYPES[Format.JSON])
    rows = document[key]
    about = {word: value for word, value in document.items() if word != key}
    return await table_answer(wanted, shape_of(rows), rows, about, key=key, zone=zone, name=name)


def file_headers(about: Mapping[str, Any], filename: str) -> dict[str, str]:
    """What a file cannot say inside itself: its name, where the next page is, how new the data are."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", filename)
    headers = {"Content-Disposition": f'attachment; filename="{safe}"'}
    if about.get("next_cursor"):
        headers["X-Next-Cursor"] = str(about["next_cursor"])
    if about.get("next"):
        headers["Link"] = f'<{about["next"]}>; rel="next"'
    if newest := about.get("newest_data_time"):
        headers["X-Newest-Data-Time"] = newest.isoformat() if isinstance(newest, datetime) else str(newest)
    return headers


def media_type_of(wanted: str) -> str:
    return MEDIA_TYPES[wanted] + ("; header=present" if wanted == Format.CSV else "")


def body_of(
    wanted: str,
    shape: Sequence[Column],
    values: Sequence[Sequence[Any]],
    zone: ZoneInfo,
    about: Mapping[str, Any],
    *,
    xlsx_cells_max: int | None = None,
) -> bytes:
    """A file of these columns; ``values`` are column by column, times aware.

    Raises ``ProblemError`` for a workbook of more than ``xlsx_cells_max`` cells: it takes the time of a query.
    """
    if wanted == Format.CSV:
        return csv_body(shape, values)
    if wanted == Format.XLSX:
        cells = len(shape) * (len(values[0]) if values else 0)
        if xlsx_cells_max is not None and cells > xlsx_cells_max:
            raise bad_parameter(
                "format", "xlsx", f"would be a workbook of {cells:,} cells, more than {xlsx_cells_max:,}",
                "csv or parquet, or ask for fewer fields or a smaller limit",
            )  # fmt: skip
        return xlsx_body(shape, values, zone, about)
    return parquet_body(shape, values, zone, about)


def _jsonable(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)  # Decimal: its digits as they are


# -- columns of rows that declare none ---------------------------------------------------------------
# The last words of a name that ends in its unit, as names here do.
_UNITS: Final[Mapping[str, str]] = {
    "kwh_per_100km": "kWh/100 km", "c_per_min": "°C/min", "mv_per_day": "mV/d", "ohm_per_v": "Ω/V", "kohm": "kΩ",
    "mohm": "mΩ", "kmh": "km/h", "kwh": "kWh", "km": "km", "ah": "Ah", "kw": "kW", "mv": "mV", "pct": "%", "deg": "°",
    "s": "s", "h": "h", "v": "V", "a": "A", "c": "°C",
}  # fmt: skip


def unit_of(name: str) -> str:
    """The unit that a name ends in, "" for none."""
    return next((unit for ending, unit in _UNITS.items() if f"_{name}".endswith(f"_{ending}")), "")


def shape_of(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Columns of rows without a declared shape: every name, in order of appearance."""
    kinds: dict[str, str | None] = {}
    for row in rows:
        for name, value in row.items():
            found = _kind(value)
            before = kinds.get(name)
            if found is None or found == before:
                kinds.setdefault(name, found)
            elif before is None:
                kinds[name] = found
            else:
                kinds[name] = "double precision" if {before, found} == {"bigint", "double precision"} else "json"
    return [Column(name, kind or "text", unit_of(name)) for name, kind in kinds.items()]


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    for kind, types in _KINDS:
        if isinstance(value, types):
            return kind
    return "json"


_KINDS: Final[tuple[tuple[str, type], ...]] = (
    ("bool", bool), ("bigint", int), ("double precision", float), ("double precision", Decimal), ("time", datetime),
    ("date", date), ("text", str),
)  # fmt: skip


# -- CSV ---------------------------------------------------------------------------------------------
def csv_body(shape: Sequence[Column], values: Sequence[Sequence[Any]]) -> bytes:
    """RFC 4180, UTF-8, a header line.  Lists: values with spaces, packs with | between; flaws as name=state."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([column.name for column in shape])
    writer.writerows(zip(*[_plain(column.kind, each) for column, each in zip(shape, values, strict=True)], strict=True))
    return text.getvalue().encode()


def _plain(kind: str, values: Sequence[Any]) -> Sequence[Any]:
    write = _TEXTS.get(kind)
    return [None if value is None else write(value) for value in values] if write else values


def _packs(packs: list[list[Any]] | None) -> str:
    return "|".join(" ".join("" if v is None else str(v) for v in pack) for pack in packs or ())


_TEXTS: Final[Mapping[str, Callable[[Any], str]]] = {
    "time": lambda value: str(value.isoformat()),
    "date": lambda value: str(value.isoformat()),
    "bool": lambda value: "true" if value else "false",
    "notes": " ".join,
    "flaws": lambda value: " ".join(f"{name}={state}" for name, state in value.items()),
    "cells": _packs,
    "temps": _packs,
    "integers": lambda value: " ".join(map(str, value)),
    "json": lambda value: value if isinstance(value, str) else orjson.dumps(value, default=_jsonable).decode(),
}


# -- Parquet -----------------------------------------------------------------------------------------
def parquet_body(
    shape: Sequence[Column], values: Sequence[Sequence[Any]], zone: ZoneInfo, about: Mapping[str, Any]
) -> bytes:
    """One row group, zstd.

    ``about`` goes into the file's metadata under ``nevstream`` as JSON; a column's unit and text into its own.
    """
    import pyarrow as pa  # here, because its memory is only needed by those who ask for it
    import pyarrow.parquet as pq

    types = {
        "smallint": pa.int16(), "integer": pa.int32(), "bigint": pa.int64(), "real": pa.float32(),
        "double precision": pa.float64(), "time": pa.timestamp("us", tz=str(zone)), "date": pa.date32(),
        "bool": pa.bool_(), "text": pa.string(), "json": pa.string(), "integers": pa.list_(pa.int64()),
        "kind": pa.string(), "door": pa.string(), "edition": pa.int16(), "notes": pa.list_(pa.string()),
        "extra": pa.float64(), "flaws": pa.map_(pa.string(), pa.string()), "cells": pa.list_(pa.list_(pa.float32())),
        "temps": pa.list_(pa.list_(pa.int16())),
    }  # fmt: skip
    arrays = []
    for column, each in zip(shape, values, strict=True):
        plain: Sequence[Any] = each
        if column.kind == "flaws":
            plain = [list(value.items()) for value in each]
        elif column.kind == "json":
            plain = _plain("json", each)
        elif column.kind == "double precision":
            plain = [None if value is None else float(value) for value in each]  # a Decimal, too
        arrays.append(pa.array(plain, types[column.kind]))
    fields = [
        pa.field(
            column.name,
            types[column.kind],
            metadata={word: text for word, text in (("unit", column.unit), ("text", column.text)) if text} or None,
        )
        for column in shape
    ]
    schema = pa.schema(fields, metadata={"nevstream": orjson.dumps(about, default=_jsonable)})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue()


# -- Excel -------------------------------------------------------------------------------------------
XLSX_CELLS_MAX: Final = 500_000  # of an answer: some seconds of work
_EXACT: Final = 2**53  # beyond it a whole number is not what Excel shows
_NUMBER_MAX: Final = 9.99999999999999e307  # of a cell
_WIDTH_MAX: Final = 40
_NUMBERS: Final = frozenset({"smallint", "integer", "bigint", "real", "double precision", "extra", "edition"})


def xlsx_body(
    shape: Sequence[Column], values: Sequence[Sequence[Any]], zone: ZoneInfo, about: Mapping[str, Any]
) -> bytes:
    """A workbook of two sheets: the rows under ``name [unit]``, and what the answer says about itself.

    Rows are written as they come (the memory does not grow with them).  Texts are never formulas.  Times are in
    ``zone``, as Excel knows no other; a whole number beyond 2^53 is text, so that no digit is lost,
    and so is what no cell can hold.
    """
    import xlsxwriter

    sink = io.BytesIO()
    book = xlsxwriter.Workbook(
        sink,
        {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False},
    )
    styles = {
        "head": book.add_format({"bold": True, "bottom": 1}),
        "time": book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"}),
        "date": book.add_format({"num_format": "yyyy-mm-dd"}),
    }
    sheet = book.add_worksheet("data")
    sheet.freeze_panes(1, 0)
    heads = [_head(column, zone) for column in shape]
    for position, (column, head) in enumerate(zip(shape, heads, strict=True)):
        wide = {"time": 20, "date": 12}.get(column.kind, 9)
        sheet.set_column(position, position, min(_WIDTH_MAX, max(wide, len(head) + 2)))
    for position, head in enumerate(heads):
        sheet.write_string(0, position, head, styles["head"])
    columns = [_cells(column.kind, each, zone) for column, each in zip(shape, values, strict=True)]
    writers = [_writer(sheet, column.kind, styles) for column in shape]
    count = 0
    for count, row in enumerate(zip(*columns, strict=True), 1):
        for position, (write, value) in enumerate(zip(writers, row, strict=True)):
            if value is not None:
                write(count, position, value)
    if shape:
        sheet.autofilter(0, 0, max(count, 1), len(shape) - 1)
    _about_sheet(book.add_worksheet("about"), about, shape, styles["head"])
    book.close()
    return sink.getvalue()


def _head(column: Column, zone: ZoneInfo) -> str:
    unit = str(zone) if column.kind == "time" else column.unit
    return f"{column.name} [{unit}]" if unit else column.name


def _cells(kind: str, values: Sequence[Any], zone: ZoneInfo) -> Sequence[Any]:
    """Values as a sheet can have them; None is an empty cell."""
    if kind == "time":
        return [value.astimezone(zone).replace(tzinfo=None) if value else None for value in values]
    if kind in _NUMBERS:
        return [value if value is None or math.isfinite(value) else None for value in values]
    if kind in ("date", "bool"):
        return values
    return _plain(kind, values)


def _writer(sheet: Any, kind: str, styles: Mapping[str, Any]) -> Callable[[int, int, Any], Any]:
    def number(row: int, column: int, value: float) -> None:
        if abs(value) > (_EXACT if isinstance(value, int) else _NUMBER_MAX):
            sheet.write_string(row, column, str(value))
        else:
            sheet.write_number(row, column, value)

    if kind in ("time", "date"):
        return lambda row, column, value: sheet.write_datetime(row, column, value, styles[kind])
    if kind == "bool":
        return lambda row, column, value: sheet.write_boolean(row, column, value)
    if kind in _NUMBERS:
        return number
    return lambda row, column, value: sheet.write_string(row, column, str(value)[:_TEXT_MAX])


_TEXT_MAX: Final = 32_767  # characters of a cell


def _about_sheet(sheet: Any, about: Mapping[str, Any], shape: Sequence[Column], head: Any) -> None:
    sheet.set_column(0, 0, 26)
    sheet.set_column(1, 1, 14)
    sheet.set_column(2, 2, 90)
    at = 0
    for name, value in about.items():
        if name != "columns" and value is not None:
            sheet.write_string(at, 0, name)
            sheet.write_string(at, 2, _TEXTS["json"](_said(value))[:_TEXT_MAX])
            at += 1
    at += 1
    for position, word in enumerate(("column", "unit", "meaning")):
        sheet.write_string(at, position, word, head)
    for number, column in enumerate(shape, at + 1):
        for position, word in enumerate((column.name, column.unit, column.text)):
            sheet.write_string(number, position, word)


def _said(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (datetime, date)) else value
