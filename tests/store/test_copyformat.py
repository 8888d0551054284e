"""The slow COPY codec against the server's own streams, and against damage."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from schemas.batch import CopyStream
from services.store.columns import VEHICLE_STATE
from services.store.copyformat import decode_copy, encode_copy

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {
        "vehicle_id": 7,
        "time": NOON,
        "digest": -5,
        "soc_pct": 80,
        "speed_kmh": 1.5,
        "odometer_km": 0.1,
        "cells": b"\0\xff",
    },
    {"vehicle_id": 8, "time": datetime(1999, 1, 1, tzinfo=UTC), "digest": 2**63 - 1, "cells": b""},
]
COLUMNS = ("vehicle_id", "time", "digest", "soc_pct", "speed_kmh", "odometer_km", "cells")


@pytest.mark.database
def test_the_server_writes_the_same_bytes(db: psycopg.Connection[Any]) -> None:
    stream = encode_copy("telemetry", COLUMNS, ROWS)
    db.execute("CREATE TEMPORARY TABLE t (n serial, LIKE telemetry)")
    db.execute("ALTER TABLE t ALTER received_at DROP NOT NULL, ALTER kind DROP NOT NULL, ALTER part DROP NOT NULL,"
               " ALTER edition DROP NOT NULL, ALTER door DROP NOT NULL")  # fmt: skip
    names = ", ".join(COLUMNS)
    with db.cursor() as cursor:
        with cursor.copy(f"COPY t ({names}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(stream.data)
        with cursor.copy(f"COPY (SELECT {names} FROM t ORDER BY n) TO STDOUT (FORMAT BINARY)") as copy:
            assert b"".join(copy) == stream.data


def test_there_and_back() -> None:
    decoded = decode_copy(encode_copy("telemetry", COLUMNS, ROWS))
    assert decoded == [{name: row.get(name) for name in COLUMNS} for row in ROWS]
    assert decode_copy(encode_copy("vehicle_state", list(VEHICLE_STATE), [])) == []


GOOD = encode_copy("telemetry", ("vehicle_id", "soc_pct"), [{"vehicle_id": 1, "soc_pct": 2}])
DATA = bytes(GOOD.data)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (CopyStream("telemetry", GOOD.columns, 1, b"PGCOPX" + DATA[6:]), "not with the binary signature"),
        (CopyStream("telemetry", GOOD.columns, 1, DATA[:-2]), "ends at byte"),
        (CopyStream("telemetry", GOOD.columns, 1, DATA[:30]), "ends at byte"),
        (CopyStream("telemetry", GOOD.columns, 1, DATA + b"x"), "1 bytes after the trailer"),
        (CopyStream("telemetry", GOOD.columns, 2, DATA), "1 rows in the stream, 2 announced"),
        (CopyStream("telemetry", ("vehicle_id",), 1, DATA), "row 0 has 2 fields for 1 columns"),
        (CopyStream("telemetry", ("soc_pct", "vehicle_id"), 1, DATA), r"soc_pct \(smallint\) has 8 bytes, it takes 2"),
        (CopyStream("telemetry", ("vehicle_id", "nothing"), 1, DATA), "no such column 'nothing'"),
        (CopyStream("logins", GOOD.columns, 1, DATA), "not a table written by COPY"),
    ],
)
def test_what_the_server_would_refuse(stream: CopyStream, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_copy(stream)
