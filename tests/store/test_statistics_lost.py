"""The statistics' reader loses its server in the middle: that is the database being away, and nothing else."""

from __future__ import annotations

import os
import socket

import pytest

from services.errors import StoreUnavailable
from services.settings import Settings
from services.store.statistics import PostgresStatistics

pytestmark = pytest.mark.database


def test_a_server_that_has_gone_is_away(dsn: str) -> None:
    """libpq's result then has no code (found by the soak: PostgreSQL killed while the statistics read)."""
    store = PostgresStatistics(dsn, Settings())
    assert store.telemetry([]) is not None
    assert store._connection is not None
    with socket.socket(fileno=os.dup(store._connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    with pytest.raises(StoreUnavailable, match="the database is away"):
        store.telemetry([])
    assert store.telemetry([]) is not None, "the next call has a new connection"
    store.close()
