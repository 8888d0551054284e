"""A whole system as processes on free ports, and the fleet that drives against it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.metrics import totals
from services.settings import Settings
from services.topology import System

PATIENCE_S = 120.0

# One gateway and one pipeline, whatever the cores: tests stop them by name.
ANY_PORTS: dict[str, Any] = {
    "gateway": {"processes": 1, "mqtt": {"port": 0}, "gbt32960": {"port": 0}},
    "pipeline": {"processes": 1},
    "web": {"port": 0},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def until(said: str, condition: Callable[[], bool]) -> None:
    """Wait for a state that other processes reach in their own time; fails after two minutes."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {said}"
        time.sleep(0.05)


@pytest.fixture
def start_system(tmp_path: Path) -> Iterator[Callable[..., System]]:
    """``start_system(dsn, **settings)``: a started :class:`System`, stopped at the end of the test."""
    started: list[System] = []

    def start(dsn: str | None, **overrides: Any) -> System:
        values: dict[str, Any] = {"runtime_dir": tmp_path / "run"}
        if dsn is not None:
            values["database"] = {"dsn": dsn}
        system = System(Settings.read(overrides=merged(merged(ANY_PORTS, values), overrides)))
        started.append(system)
        system.start()
        return system

    yield start
    for system in started:
        system.stop()


class Fleet:
    """`nevstream simulate` against a system, as a process of its own."""

    def __init__(self, system: System, *arguments: str) -> None:
        self.argv = [sys.executable, "-m", "services.cli", "simulate", "--json", "--quiet"]
        self.argv += ["--mqtt-port", str(system.addresses["mqtt"][1])]
        self.argv += ["--gbt-port", str(system.addresses["gbt32960"][1]), *arguments]
        self.process = subprocess.Popen(self.argv, stdout=subprocess.PIPE, text=True)

    def result(self) -> dict[str, Any]:
        """Wait for the end; the simulator's own account."""
        said, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, f"simulate ended with {self.process.returncode}: {said}"
        answer: dict[str, Any] = json.loads(said)
        return answer


@pytest.fixture
def start_fleet() -> Iterator[Callable[..., Fleet]]:
    fleets: list[Fleet] = []

    def start(system: System, *arguments: str) -> Fleet:
        fleets.append(Fleet(system, *arguments))
        return fleets[-1]

    yield start
    for fleet in fleets:
        if fleet.process.poll() is None:
            fleet.process.kill()
        fleet.process.wait()
        if fleet.process.stdout is not None:
            fleet.process.stdout.close()


def acked(system: System) -> float:
    return totals(system.metrics_dir).get("nevstream_gateway_frames_acked_total", 0.0)


def ledger(db: psycopg.Connection[Any]) -> dict[str, int]:
    """The store's account of every frame, summed over partitions."""
    names = ("frames", "rows", "duplicates", "conflicts", "rejected", "sessions", "other")
    row = db.execute(
        "SELECT " + ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in names) + " FROM ledger"
    ).fetchone()
    assert row is not None
    return dict(zip(names, row, strict=True))


def caught_up(db: psycopg.Connection[Any]) -> bool:
    """Is everything in the journal stored?"""
    row = db.execute(
        'SELECT count(*) FROM (SELECT partition, max("offset") AS last FROM journal GROUP BY partition) j '
        'LEFT JOIN journal_positions p USING (partition) WHERE p."offset" IS DISTINCT FROM j.last'
    ).fetchone()
    return row is not None and row[0] == 0
