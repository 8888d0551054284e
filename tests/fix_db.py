"""Databases for tests: one server a session, one database a test.

The server is the embedded one, or ``NEVSTREAM_TEST_DSN`` (a role that may create databases).  ``dsn`` is
a copy of a migrated template, which takes a fraction of the time of migrating.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from services.store.embedded import EmbeddedServer
from services.store.migrations import migrate

# Nothing of these databases outlives the session, so the disk need not be waited for.  Tests of what
# survives a crash start a server of their own, without these.
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_wal_senders": "0",
    "max_wal_size": "512MB",
    "shared_buffers": "256MB",
    "wal_level": "minimal",
}
MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own in it, where databases are made in a quarter of the time
MEMORY_MIN = 6 * 2**30  # bytes that must be free there


def pytest_report_header() -> str:
    where = "NEVSTREAM_TEST_DSN" if os.environ.get("NEVSTREAM_TEST_DSN") else "embedded PostgreSQL"
    return f"nevstream: database {where}"


@pytest.fixture(scope="session")
def reachable_dir() -> Iterator[Path]:
    """A directory that an unprivileged user can enter (pytest's own temporary directories are closed to it)."""
    path = Path(tempfile.mkdtemp(prefix="nevstream-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def server_dir(reachable_dir: Path) -> Iterator[Path]:
    """Where the server of the tests has its files: in memory where there is plenty, else on disk."""
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_MIN):
        yield reachable_dir
        return
    for left in MEMORY.glob("nevstream-test-*"):  # by a session that was killed
        if not Path(f"/proc/{left.name.rpartition('-')[2]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    path = MEMORY / f"nevstream-test-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


class Databases:
    """Creates and drops databases on one server."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._admin = psycopg.connect(dsn, autocommit=True)
        self._numbers = itertools.count(1)
        self._template: str | None = None

    def create(self, migrated: bool) -> str:
        """DSN of a new database."""
        if migrated and self._template is None:
            self._template = self._create("template0")
            migrate(self._dsn_of(self._template))
        return self._dsn_of(self._create(self._template if migrated and self._template else "template0"))

    @contextmanager
    def filled(self, fill: Callable[[psycopg.Connection[Any]], None]) -> Iterator[str]:
        """DSN of a migrated database with what ``fill`` puts into it, until the block ends."""
        created = self.create(migrated=True)
        with psycopg.connect(created) as connection:
            fill(connection)
        yield created
        self.drop(created)

    def drop(self, dsn: str) -> None:
        self._run("DROP DATABASE IF EXISTS {} WITH (FORCE)", psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])

    def close(self) -> None:
        if self._template is not None:
            self.drop(self._dsn_of(self._template))
        self._admin.close()

    def _create(self, template: str) -> str:
        name = f"nevstream_test_{os.getpid()}_{next(self._numbers)}"
        # files are copied as they are: the default writes every page to the log
        self._run("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, template)
        return name

    def _run(self, statement: str, *names: Any) -> None:
        self._admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _dsn_of(self, name: str) -> str:
        return make_conninfo(self._dsn, dbname=name)


@pytest.fixture(scope="session")
def databases(server_dir: Path) -> Iterator[Databases]:
    given = os.environ.get("NEVSTREAM_TEST_DSN")
    server = None if given else EmbeddedServer(server_dir / "pg", options=FAST)
    made = Databases(given or server.start())
    yield made
    made.close()
    if server:
        server.stop()


@pytest.fixture
def dsn(databases: Databases) -> Iterator[str]:
    """DSN of a fresh, migrated database."""
    created = databases.create(migrated=True)
    yield created
    databases.drop(created)


@pytest.fixture
def empty_dsn(databases: Databases) -> Iterator[str]:
    """DSN of a fresh database with nothing in it."""
    created = databases.create(migrated=False)
    yield created
    databases.drop(created)


@pytest.fixture(scope="session")
def read_db(databases: Databases) -> Iterator[psycopg.Connection[Any]]:
    """A read-only connection to a migrated database that all tests share: for SQL that changes nothing."""
    created = databases.create(migrated=True)
    with psycopg.connect(created, autocommit=True, options="-c default_transaction_read_only=on") as connection:
        yield connection
    databases.drop(created)


@pytest.fixture
def db(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to ``dsn`` in autocommit, to look and to prepare."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection
