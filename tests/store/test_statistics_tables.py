"""The DDL of the statistics against what the kernels write: schemas/statistics/measures.py and sessions.py."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from schemas.statistics.measures import MEASURES, TALLIES
from schemas.statistics.sessions import FINDINGS, Finding

pytestmark = pytest.mark.database


def _columns(db: psycopg.Connection[Any], table: str) -> dict[str, str]:
    return dict(
        db.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [table],
        ).fetchall()
    )


@pytest.mark.parametrize(("table", "number"), [("vehicle_hour", "real"), ("vehicle_day", "double precision")])
def test_there_is_a_column_for_every_measure(read_db: psycopg.Connection[Any], table: str, number: str) -> None:
    found = _columns(read_db, table)
    wanted = {measure.name: "integer" if measure.count else number for measure in MEASURES}
    assert {name: found.get(name) for name in wanted} == wanted
    assert list(wanted) == [name for name in found if name in wanted], "in the order of the list"


def test_there_is_an_array_for_every_tally(read_db: psycopg.Connection[Any]) -> None:
    found = _columns(read_db, "vehicle_day")
    assert {tally.name: found.get(tally.name) for tally in TALLIES} == dict.fromkeys(
        (tally.name for tally in TALLIES), "integer[]"
    )


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.table)
def test_there_is_a_table_for_every_finding(read_db: psycopg.Connection[Any], finding: Finding) -> None:
    found = _columns(read_db, finding.table)
    wanted = {"vehicle_id": "bigint", "day": "date", "settled_on": "date"}
    for name, kind in finding.columns:
        is_time = kind == "timestamptz"
        wanted[name.removesuffix("_s") + "_at" if is_time else name] = "timestamp with time zone" if is_time else kind
    assert {name: found.get(name) for name in wanted} == wanted
    if finding.id is None:
        key = read_db.execute(
            "SELECT array_agg(a.attname::text ORDER BY array_position(i.indkey::smallint[], a.attnum)) FROM pg_index i"
            " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::smallint[])"
            " WHERE i.indrelid = %s::regclass AND i.indisprimary",
            [finding.table],
        ).fetchone()
        assert key is not None
        assert key[0] == ["vehicle_id", "day", *(name.replace("start_s", "start_at") for name in finding.within)]
    else:
        assert found[finding.id] == "bigint"
        assert found["revision"] == "integer"
