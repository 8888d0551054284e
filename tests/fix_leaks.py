"""A connection to the database that a test leaves open fails that test, not a later one.

Python tells of such a connection when its memory is freed, which may be many tests later: whoever runs then would
fail, in some runs and not in others.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Generator
from typing import Any

import psycopg
import pytest

_KEPT: dict[int, tuple[weakref.ref[psycopg.AsyncConnection[Any]], asyncio.AbstractEventLoop]] = {}
_connect = psycopg.AsyncConnection.connect


async def _connect_and_keep(*given: Any, **more: Any) -> psycopg.AsyncConnection[Any]:
    connection = await _connect(*given, **more)
    _KEPT[id(connection)] = weakref.ref(connection), asyncio.get_running_loop()
    return connection


psycopg.AsyncConnection.connect = _connect_and_keep  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    yield
    left = []
    for key, (reference, loop) in list(_KEPT.items()):
        connection = reference()
        if connection is None or connection.closed:
            del _KEPT[key]
        elif loop.is_closed():  # else a fixture of more than one test has it
            del _KEPT[key]
            left.append(repr(connection))
            connection.pgconn.finish()
    assert not left, f"left open: {', '.join(left)}"
