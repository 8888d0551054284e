"""Dead letters of a dirty fleet, put back over HTTP into a running system with another setting."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from services.topology import System
from tests.e2e.conftest import Fleet, caught_up, ledger, until

pytestmark = [pytest.mark.slow, pytest.mark.database]


def test_letters_of_wrong_clocks_become_rows(
    dsn: str, db: psycopg.Connection[Any], start_system: Callable[..., System], start_fleet: Callable[..., Fleet]
) -> None:
    strict = start_system(dsn)
    arguments = ("--vehicles", "40", "--reports", "150", "--speed", "0", "--faults", "dirty", "--seed", "3")
    start_fleet(strict, *arguments).result()
    until("the journal is stored", lambda: caught_up(db))
    before = ledger(db)
    found = db.execute("SELECT count(*) FROM dead_letters WHERE reason IN (10, 11)").fetchone()
    assert found is not None
    wrong_clocks = found[0]
    assert wrong_clocks > 0
    strict.stop()

    lenient = start_system(dsn, pipeline={"clock_future_max_s": 10**10, "clock_past_max_days": 36_500})
    host, port = lenient.addresses["web"]
    for reason in ("clock_future", "clock_past"):
        request = urllib.request.Request(
            f"http://{host}:{port}/v1/dead-letters/requeue",
            json.dumps({"reason": reason}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own server
            assert json.load(answer)["skipped"] == []
    until("the requeued frames are stored", lambda: caught_up(db))

    after = ledger(db)
    # a connection's last event (other) may come after the first look
    assert after["frames"] - after["other"] == before["frames"] - before["other"] + wrong_clocks
    settled = after["rows"] + after["duplicates"] + after["conflicts"]
    assert settled == before["rows"] + before["duplicates"] + before["conflicts"] + wrong_clocks
    assert after["rejected"] == before["rejected"]
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (after["rows"],)
    assert db.execute("SELECT count(*) FROM dead_letters WHERE requeued_at IS NULL").fetchone() == (
        before["rejected"] - wrong_clocks,
    )
