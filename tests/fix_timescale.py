"""TimescaleDB for the SQL that needs it: ``NEVSTREAM_TEST_TIMESCALE_DSN``, else its WebAssembly build under Node.js.

The WebAssembly build (``tests/timescale``, installed by npm once a session) takes one connection and no COPY.
Where neither can be had the tests are skipped, and say what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

FILES = Path(__file__).parent / "timescale"
INSTALL_TIMEOUT_S = 180


@pytest.fixture(scope="session")
def timescale_dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """DSN of an empty database that has the extension."""
    given = os.environ.get("NEVSTREAM_TEST_TIMESCALE_DSN")
    if given:
        name = f"nevstream_timescale_{os.getpid()}"
        with psycopg.connect(given, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        dsn = make_conninfo(given, dbname=name)
        with psycopg.connect(dsn, autocommit=True) as made:
            made.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        yield dsn
        with psycopg.connect(given, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        return
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("needs NEVSTREAM_TEST_TIMESCALE_DSN, or Node.js and npm (apt-get install nodejs npm)")
    folder = tmp_path_factory.mktemp("timescale")
    for file in ("package.json", "server.mjs"):
        shutil.copy(FILES / file, folder)
    install = [npm, "install", "--no-audit", "--no-fund", "--legacy-peer-deps"]
    try:
        subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(
            f"npm cannot install TimescaleDB's WebAssembly build here ({error}); set NEVSTREAM_TEST_TIMESCALE_DSN"
        )
    with subprocess.Popen(
        [node, "server.mjs"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port.isdigit(), "the server did not start; its words are above"
        dsn = f"host=127.0.0.1 port={port} user=postgres password=postgres dbname=postgres sslmode=disable"
        with psycopg.connect(dsn, autocommit=True) as made:
            made.execute("CREATE EXTENSION timescaledb")
        yield dsn
        server.stdin.close()
        server.wait(30)
