"""Connections that are held, and all of them coming back at once.

The gateway process's memory with none, 1,000 and 10,000 idle MQTT connections (50,000 where the limit of open files
allows it): its own pages (private memory), kernel buffers are not in it.  Then all 10,000 vanish in the midst of
sending and come back at once: the time until each has its report acknowledged, and whether all of these are stored.
Vehicles, gateway, pipeline and database share the machine and its loopback.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.crowd import Crowd, Remote, files_max
from benchmarks.journey import running_system
from benchmarks.runner import Progress
from services.topology import System

STORM: Final = 10_000
SOURCES: Final = 4  # addresses that the vehicles come from, as from carriers' NATs
_SPARE_FILES: Final = 500
_SETTLE_S: Final = 1.5
_LIMIT_S: Final = 60.0


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{"mb_for_10000", "kb_per_connection", "storm_seconds", "lost"...}; ``quick``: 1,000 and 10,000, one storm."""
    allowed = files_max() - _SPARE_FILES
    steps = [count for count in ((1000, STORM) if quick else (1000, STORM, 50_000)) if count <= allowed]
    notes = []
    if not quick and 50_000 not in steps:
        notes.append(f"50,000 connections were not tried: {resource.getrlimit(resource.RLIMIT_NOFILE)[1]} open files")
    held: dict[str, dict[str, Any]] = {}
    with running_system(progress) as system:
        crowd = Crowd(system.addresses["mqtt"][1], max(steps), sources=SOURCES)
        with Remote(crowd) as vehicles, psycopg.connect(system.dsn, autocommit=True) as db:
            vehicles.do("connect", count=100)  # what the first ones cost is not theirs
            vehicles.do("report")
            empty = _memory(system)
            progress(f"gateway with 100 connections: {empty:.1f} MB")
            for count in steps[:2]:
                took = vehicles.do("connect", count=count)
                held[str(count)] = _held(system, empty, count - 100, took["seconds"], progress)
            storms = []
            for _ in range(1 if quick else 3):
                found = vehicles.do("storm")
                storms.append(round(found["seconds"], 2))
                progress(f"storm of {steps[-1] if quick else STORM:,}: all served again in {storms[-1]} s")
            after = _memory(system)
            for count in steps[2:]:
                took = vehicles.do("connect", count=count)
                held[str(count)] = _held(system, empty, count - 100, took["seconds"], progress)
            account = vehicles.do("account")
            stored = _stored(db, account["acked"])
            vehicles.do("leave")
    most = held[str(STORM)]
    return {
        "mb_for_10000": most["mb"],
        "kb_per_connection": most["kb_each"],
        "connect_per_s": most["per_s"],
        "storm_seconds": max(storms),
        "acked": account["acked"],
        "stored": stored,
        "lost": max(0, account["acked"] - stored),
        "mb_after_storms": round(after - empty, 1),
        "held": held,
        "storms": storms,
        "goals": {"mb_for_10000": "<= 200", "storm_seconds": "<= 30", "lost": "0"},
        "notes": notes,
        "settings": {
            "steps": steps,
            "keep_alive_s": crowd.keep_alive_s,
            "protocol": "MQTT 3.1.1",
            "storm": STORM,
            "addresses": SOURCES,
        },
    }


def _memory(system: System) -> float:
    """Private memory of the gateway process, MB, once it has settled."""
    time.sleep(_SETTLE_S)
    text = Path(f"/proc/{system.pids['gateway-0']}/smaps_rollup").read_text("ascii")
    kb = sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Private_Clean", "Private_Dirty")))
    return kb / 1024


def _held(system: System, empty: float, more: int, seconds: float, progress: Progress) -> dict[str, Any]:
    mb = _memory(system) - empty
    progress(
        f"{more + 100:,} connections: {mb:.1f} MB more, {1024 * mb / more:.2f} KB each; connected in {seconds:.1f} s"
    )
    return {"mb": round(mb, 1), "kb_each": round(1024 * mb / more, 2), "per_s": round(more / max(seconds, 1e-3))}


def _stored(db: psycopg.Connection[Any], wanted: int) -> int:
    """Distinct reports of the crowd that are rows, once as many as ``wanted`` are or nothing moves any more."""
    deadline = time.monotonic() + _LIMIT_S
    while True:
        row = db.execute(
            "SELECT count(DISTINCT (vehicle_id, time)) FROM telemetry"
            " WHERE vehicle_id IN (SELECT vehicle_id FROM vehicles WHERE vin LIKE 'LBENCH%')"
        ).fetchone()
        assert row is not None
        if row[0] >= wanted or time.monotonic() > deadline:
            return int(row[0])
        time.sleep(0.5)
