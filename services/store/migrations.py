"""Schema migrations: the files of ``schemas/sql``, applied once, in order, and never edited afterwards.

Plain SQL on PostgreSQL 15 or later.  Each file runs in one transaction together with the note that it
has run, under an advisory lock, so that processes which start at once do not meet.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import psycopg

from schemas.checks import RATES
from schemas.signals import SIGNALS
from services.errors import NevstreamError, StoreUnavailable

log = logging.getLogger(__name__)

VERSION_MIN: Final = 150000
_LOCK: Final = (7236328, 0)

_RATES_SINCE: Final = "0010_data_quality"

_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        name       text COLLATE "C" PRIMARY KEY,
        checksum   text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


class SchemaError(NevstreamError):
    """The database's schema is not one that this program can bring up to date."""


@dataclass(frozen=True, slots=True)
class Migration:
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@cache
def known_migrations() -> tuple[Migration, ...]:
    """Every migration of this program, in order."""
    found = [entry for entry in (files("schemas") / "sql").iterdir() if entry.name.endswith(".sql")]
    assert found, "the package schemas has come without its sql files"
    return tuple(
        Migration(entry.name.removesuffix(".sql"), entry.read_text("utf-8"))
        for entry in sorted(found, key=lambda entry: entry.name)
    )


def newest_migration() -> str:
    """Name of the migration that this program needs to find in a database."""
    return known_migrations()[-1].name


def migrate(dsn: str) -> list[str]:
    """Bring the database up to date; returns the names of the migrations applied now, in order.

    Raises ``SchemaError`` (applied migrations were edited, or are newer than this program; server too
    old), ``StoreUnavailable``.
    """
    return apply(dsn, known_migrations())


def apply(dsn: str, migrations: tuple[Migration, ...]) -> list[str]:
    """:func:`migrate` with given migrations."""
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
            _check_server(connection)
            connection.execute("SET client_min_messages = warning")
            connection.execute("SELECT pg_advisory_lock(%s, %s)", _LOCK)
            connection.execute(_TABLE)
            applied: dict[str, str] = dict(
                connection.execute("SELECT name, checksum FROM schema_migrations").fetchall()
            )
            _check_applied(applied, migrations)
            done = []
            for migration in migrations:
                if migration.name in applied:
                    continue
                with connection.transaction():
                    connection.execute(migration.text, prepare=False)
                    connection.execute(
                        "INSERT INTO schema_migrations (name, checksum) VALUES (%s, %s)",
                        (migration.name, migration.checksum),
                    )
                done.append(migration.name)
                log.info("applied migration %s", migration.name)
            _write_signals(connection)
            if any(migration.name == _RATES_SINCE for migration in migrations):
                _write_rates(connection)
            return done
    except psycopg.OperationalError as error:
        raise StoreUnavailable(f"cannot migrate the database: {str(error).strip()}") from error


def _check_server(connection: psycopg.Connection[Any]) -> None:
    version = connection.info.server_version
    if version < VERSION_MIN:
        raise SchemaError(
            f"the database is PostgreSQL {version // 10000}; nevstream needs {VERSION_MIN // 10000} or later: "
            "upgrade it, or unset database.dsn to use the embedded one"
        )


def _check_applied(applied: dict[str, str], migrations: tuple[Migration, ...]) -> None:
    ours = {migration.name: migration.checksum for migration in migrations}
    if newer := sorted(set(applied) - set(ours)):
        raise SchemaError(
            f"the database has migrations that this nevstream does not know ({', '.join(newer)}): "
            "it was migrated by a newer version; run that one, or restore the backup made before"
        )
    if edited := sorted(name for name, checksum in applied.items() if ours[name] != checksum):
        raise SchemaError(
            f"migrations {', '.join(edited)} were applied to this database with other text than this nevstream has: "
            "an applied migration is never edited; install the unchanged version, and put changes into a new file"
        )
    missing = [name for name in ours if name not in applied]
    if applied and missing and missing[0] < max(applied):
        raise SchemaError(
            f"migration {missing[0]} was never applied, yet {max(applied)} was: new ones only ever go at the end"
        )


def _write_signals(connection: psycopg.Connection[Any]) -> None:
    """The catalogue as a table, for SQL that names signals; written only where it differs."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO signals AS s (position, name, unit, sql, div, text) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (position) DO UPDATE SET name = excluded.name, unit = excluded.unit, sql = excluded.sql,"
            " div = excluded.div, text = excluded.text WHERE s IS DISTINCT FROM excluded",
            [(i, s.name, s.unit, s.sql, s.div, s.text) for i, s in enumerate(SIGNALS)],
        )


def _write_rates(connection: psycopg.Connection[Any]) -> None:
    """The thresholds that ``rate_flaws`` reads; when they changed, every day is to be counted again."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM rate_limits WHERE signal <> ALL(%s)", ([rate.signal for rate in RATES],))
        changed = cursor.rowcount
        for rate in RATES:
            cursor.execute(
                "INSERT INTO rate_limits AS r (signal, rises_per_s, falls_per_s, slack, gap_max_s, above, source)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (signal) DO UPDATE SET"
                " rises_per_s = excluded.rises_per_s, falls_per_s = excluded.falls_per_s, slack = excluded.slack,"
                " gap_max_s = excluded.gap_max_s, above = excluded.above, source = excluded.source"
                " WHERE r IS DISTINCT FROM excluded",
                (
                    rate.signal, rate.rises_per_s, rate.falls_per_s, rate.slack, rate.gap_max_s, rate.above,
                    rate.source,
                ),
            )  # fmt: skip
            changed += cursor.rowcount
        if changed:
            cursor.execute("UPDATE signal_flaw_days SET changes = -1")
