"""PostgreSQL's binary COPY format, read and written slowly and plainly.

For the memory sink and for tests: the pipeline writes the same format in a kernel.  Source: the
"Binary Format" section of PostgreSQL's COPY page; 11-byte signature, flags, extension length, then per
tuple a field count (i16) and per field a length (i32, -1 = NULL) and the bytes, ended by a count of -1.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from schemas.batch import CopyStream
from services.store.columns import COPIED

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL counts microseconds from here

_FORMATS: Final = {
    "smallint": struct.Struct(">h"),
    "integer": struct.Struct(">i"),
    "bigint": struct.Struct(">q"),
    "real": struct.Struct(">f"),
    "double precision": struct.Struct(">d"),
    "timestamp with time zone": struct.Struct(">q"),
}


def decode_copy(stream: CopyStream) -> list[dict[str, Any]]:
    """Rows of ``stream`` as column → value; timestamps are aware datetimes, bytea is bytes, jsonb what it says.

    Raises ``ValueError`` where the server would: bad signature, unknown column, a field of the wrong
    width, a wrong field count, a missing trailer; and where the stream's own ``rows`` is wrong.
    """
    data = bytes(stream.data)
    types = [_type_of(stream.table, column) for column in stream.columns]
    if data[: len(HEADER)] != HEADER:
        raise ValueError(f"COPY {stream.table}: the stream starts {data[:19].hex()}, not with the binary signature")
    at = len(HEADER)
    rows: list[dict[str, Any]] = []
    try:
        while True:
            (count,) = struct.unpack_from(">h", data, at)
            at += 2
            if count == -1:
                break
            if count != len(types):
                raise ValueError(f"COPY {stream.table}: row {len(rows)} has {count} fields for {len(types)} columns")
            row: dict[str, Any] = {}
            for column, sql in zip(stream.columns, types, strict=True):
                (size,) = struct.unpack_from(">i", data, at)
                at += 4
                if size == -1:
                    row[column] = None
                    continue
                row[column] = _value(stream.table, column, sql, data[at : at + size], size)
                at += size
            rows.append(row)
    except struct.error as error:
        raise ValueError(f"COPY {stream.table}: the stream ends at byte {at} inside row {len(rows)}") from error
    if at != len(data):
        raise ValueError(f"COPY {stream.table}: {len(data) - at} bytes after the trailer")
    if len(rows) != stream.rows:
        raise ValueError(f"COPY {stream.table}: {len(rows)} rows in the stream, {stream.rows} announced")
    return rows


def encode_copy(table: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> CopyStream:
    """A stream of ``rows`` (missing columns are NULL): the slow way to make one."""
    types = [_type_of(table, column) for column in columns]
    out = bytearray(HEADER)
    count = 0
    for row in rows:
        count += 1
        out += struct.pack(">h", len(types))
        for column, sql in zip(columns, types, strict=True):
            value = row.get(column)
            if value is None:
                out += b"\xff\xff\xff\xff"
                continue
            if sql == "bytea":
                body = bytes(value)
            elif sql == "jsonb":
                body = b"\x01" + json.dumps(value).encode()
            elif sql.startswith("timestamp"):
                body = _FORMATS[sql].pack((value - _EPOCH) // timedelta(microseconds=1))
            else:
                body = _FORMATS[sql].pack(value)
            out += struct.pack(">i", len(body)) + body
    return CopyStream(table, tuple(columns), count, bytes(out + TRAILER))


def _type_of(table: str, column: str) -> str:
    known = COPIED.get(table)
    if known is None:
        raise ValueError(f"COPY {table}: not a table written by COPY ({', '.join(COPIED)})")
    if column not in known:
        raise ValueError(f"COPY {table}: no such column {column!r}")
    return known[column]


def _value(table: str, column: str, sql: str, body: bytes, size: int) -> Any:
    if sql == "bytea":
        if len(body) != size:
            raise struct.error
        return body
    if sql == "jsonb":
        if len(body) != size:
            raise struct.error
        if body[:1] != b"\x01":
            raise ValueError(f"COPY {table}: {column} is jsonb of version {body[:1].hex()}, the server reads 01")
        return json.loads(body[1:])
    form = _FORMATS[sql]
    if size != form.size:
        raise ValueError(f"COPY {table}: {column} ({sql}) has {size} bytes, it takes {form.size}")
    (value,) = form.unpack(body)
    return _EPOCH + timedelta(microseconds=value) if sql.startswith("timestamp") else value
