"""The API on a database with a small fleet in it, called without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from services.settings import Settings
from services.store.queries import Queries
from services.web.app import create_app
from tests.fix_db import Databases
from tests.web import rows


def client_of(queries: Any, **web: Any) -> httpx.AsyncClient:
    app = create_app(Settings.read(overrides={"web": web}), queries, now=lambda: rows.NOW)
    # what the app raises is what its server would log: the client sees the answer
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://nevstream")


@asynccontextmanager
async def asking(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API on this database."""
    queries = Queries(dsn)
    async with client_of(queries) as client:
        yield client
    await queries.close()


@pytest.fixture
async def queries(dsn: str) -> AsyncIterator[Queries]:
    made = Queries(dsn)
    yield made
    await made.close()


@pytest.fixture(scope="session")
def fleet_dsn(databases: Databases) -> Iterator[str]:
    """A database with the fleet in it, for all tests that only read."""
    with databases.filled(rows.fleet) as created:
        yield created


@pytest.fixture
async def client(fleet_dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """The API on :func:`fleet_dsn`."""
    queries = Queries(fleet_dsn)
    async with client_of(queries) as made:
        yield made
    await queries.close()
