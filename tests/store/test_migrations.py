"""Migrations: applied once, in order, and refused when history does not match."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from schemas.keys import partition_of_vin
from schemas.signals import SIGNALS
from services.errors import StoreUnavailable
from services.store.columns import COPIED, LEDGER
from services.store.migrations import Migration, SchemaError, apply, known_migrations, migrate, newest_migration

FIRST = Migration("0001_first", "CREATE TABLE first (a integer)")
SECOND = Migration("0002_second", "CREATE TABLE second (a integer)")
BASE = (
    FIRST,
    Migration(
        "0000_signals",
        "CREATE TABLE signals (position smallint PRIMARY KEY, name text, unit text, sql text, div integer, text text)",
    ),
)
BASE = tuple(sorted(BASE, key=lambda migration: migration.name))


def test_applies_all_in_order_then_nothing(empty_dsn: str) -> None:
    names = [migration.name for migration in known_migrations()]
    assert migrate(empty_dsn) == names == sorted(names)
    assert migrate(empty_dsn) == []
    assert newest_migration() == names[-1]


def test_two_processes_at_once(empty_dsn: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(migrate, [empty_dsn] * 3))
    assert sorted(map(len, done)) == [0, 0, len(known_migrations())]


def test_an_edited_migration_is_refused(empty_dsn: str) -> None:
    apply(empty_dsn, BASE)
    with pytest.raises(SchemaError, match="0001_first were applied to this database with other text"):
        apply(empty_dsn, (BASE[0], Migration("0001_first", "CREATE TABLE first (b integer)")))


def test_a_newer_schema_is_refused(empty_dsn: str) -> None:
    apply(empty_dsn, (*BASE, SECOND))
    with pytest.raises(SchemaError, match=r"does not know \(0002_second\)"):
        apply(empty_dsn, BASE)


def test_a_gap_is_refused(empty_dsn: str) -> None:
    apply(empty_dsn, (BASE[0], SECOND))
    with pytest.raises(SchemaError, match="0001_first was never applied"):
        apply(empty_dsn, (*BASE, SECOND))


def test_a_failing_migration_leaves_nothing(empty_dsn: str) -> None:
    broken = Migration("0002_second", "CREATE TABLE second (a integer); SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        apply(empty_dsn, (*BASE, broken))
    assert apply(empty_dsn, (*BASE, SECOND)) == ["0002_second"]


def test_a_database_that_is_away() -> None:
    with pytest.raises(StoreUnavailable, match="cannot migrate"):
        migrate("postgresql://nobody@127.0.0.1:1/nothing?connect_timeout=2")


@pytest.mark.parametrize("table", COPIED)
def test_columns_are_those_of_the_catalogue(read_db: psycopg.Connection[Any], table: str) -> None:
    found = read_db.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    ).fetchall()
    assert dict(found) == COPIED[table]
    assert [name for name, _ in found] == list(COPIED[table])


def test_ledger_columns(read_db: psycopg.Connection[Any]) -> None:
    found = read_db.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'ledger'::regclass AND attnum > 0 ORDER BY attnum"
    )
    assert [name for (name,) in found] == ["partition", *LEDGER]


def test_signals_table_is_the_catalogue(read_db: psycopg.Connection[Any]) -> None:
    found = read_db.execute("SELECT position, name, unit, sql, div, text FROM signals ORDER BY position").fetchall()
    assert found == [(i, s.name, s.unit, s.sql, s.div, s.text) for i, s in enumerate(SIGNALS)]


@pytest.mark.parametrize("vin", ["LSVTEST0000000001", "LSV", "12345678901234567", "a"])
def test_partition_of_a_vin_is_the_same_in_sql(read_db: psycopg.Connection[Any], vin: str) -> None:
    for partitions in (1, 7, 8, 4096):
        found = read_db.execute("SELECT journal_partition(%s, %s)", (vin, partitions)).fetchone()
        assert found == (partition_of_vin(vin, partitions),)


def test_days_are_made_once(db: psycopg.Connection[Any]) -> None:
    ensure = "SELECT ensure_telemetry_days('2026-02-27', %s)"
    assert db.execute(ensure, ["2026-03-01"]).fetchone() == (3,)
    assert db.execute(ensure, ["2026-03-02"]).fetchone() == (1,)
    bounds = db.execute(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'telemetry_20260301'"
    ).fetchone()
    assert bounds == ("FOR VALUES FROM ('2026-03-01 00:00:00+00') TO ('2026-03-02 00:00:00+00')",)
