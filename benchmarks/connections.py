"""Connections that are held, and all of them coming back at once.

*One gateway process*: its memory with none, 1,000 and 10,000 idle MQTT connections: its own pages (private memory),
kernel buffers are not in it.  Then all 10,000 vanish in the midst of sending and come back at once: the time until each
has its report acknowledged, and whether all of these are stored.

*Several*: 1,000, 10,000 and 50,000 connections on gateway processes that share the port, from several processes of
vehicles and several loopback addresses, because the limit of open files is one of each process.  With ``quick``
neither the 50,000 nor these processes.

Vehicles, gateways, pipeline and database share the machine and its loopback.
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.crowd import Crowd, Remote, files_max
from benchmarks.journey import running_system
from benchmarks.runner import Progress
from services.topology import System

STORM: Final = 10_000
MOST: Final = 50_000
STEPS: Final = (1_000, STORM, MOST)
SOURCES: Final = 4  # addresses that the vehicles come from, as from carriers' NATs
_SPARE_FILES: Final = 500
_SEVERAL_SOURCES: Final = 16
_SETTLE_S: Final = 1.5
_LIMIT_S: Final = 60.0


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{"mb_for_10000", "kb_per_connection", "kb_at_50000", "storm_seconds", "lost"...}; see above."""
    allowed = files_max() - _SPARE_FILES
    steps = [count for count in STEPS[:2] if count <= allowed]
    notes: list[str] = []
    held: dict[str, dict[str, Any]] = {}
    with running_system(progress, gateway={"processes": 1}) as system:
        crowd = Crowd(system.addresses["mqtt"][1], max(steps), sources=SOURCES)
        with Remote(crowd) as vehicles, psycopg.connect(system.dsn, autocommit=True) as db:
            vehicles.do("connect", count=100)  # what the first ones cost is not theirs
            vehicles.do("report")
            empty = _memory(system)
            progress(f"gateway with 100 connections: {empty:.1f} MB")
            for count in steps:
                took = vehicles.do("connect", count=count)
                held[str(count)] = _held(system, empty, count - 100, took["seconds"], progress)
            storms = []
            for _ in range(1 if quick else 3):
                found = vehicles.do("storm")
                storms.append(round(found["seconds"], 2))
                progress(f"storm of {STORM:,}: all served again in {storms[-1]} s")
            after = _memory(system)
            account = vehicles.do("account")
            stored = _stored(db, account["acked"])
            vehicles.do("leave")
    several: dict[str, Any] = {}
    if not quick:
        several = _several(allowed, progress, notes)
    most = held[str(STORM)]
    at_most = several.get("held", {}).get(str(MOST))
    return {
        "mb_for_10000": most["mb"],
        "kb_per_connection": most["kb_each"],
        "connect_per_s": most["per_s"],
        "kb_at_50000": at_most and at_most["kb_each"],
        "mb_for_50000": at_most and at_most["mb"],
        "storm_seconds": max(storms),
        "acked": account["acked"],
        "stored": stored,
        "lost": max(0, account["acked"] - stored),
        "mb_after_storms": round(after - empty, 1),
        "held": held,
        "storms": storms,
        "several": several,
        "goals": {"mb_for_10000": "<= 200", "storm_seconds": "<= 30", "lost": "0"}
        | ({} if quick else {"kb_at_50000": "<= 4"}),
        "notes": notes,
        "settings": {
            "steps": steps,
            "keep_alive_s": crowd.keep_alive_s,
            "protocol": "MQTT 3.1.1",
            "storm": STORM,
            "addresses": SOURCES,
        },
    }


def _several(allowed: int, progress: Progress, notes: list[str]) -> dict[str, Any]:
    """Memory of all gateway processes together at each of ``STEPS``, as many as the limit of open files asks for."""
    # a quarter more than needed: the kernel deals connections by a hash, not evenly; a process has 16 addresses' worth
    processes = math.ceil(1.25 * MOST / allowed)
    each = MOST // processes
    held: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        system = stack.enter_context(running_system(progress, gateway={"processes": processes}))
        crowds = [
            stack.enter_context(
                Remote(Crowd(system.addresses["mqtt"][1], each, first=k * each, sources=_SEVERAL_SOURCES))
            )
            for k in range(processes)
        ]

        def connect(count: int) -> float:
            for crowd in crowds:
                crowd.begin("connect", count=count // processes)
            return max(float(crowd.end()["seconds"]) for crowd in crowds)

        def report() -> float:
            for crowd in crowds:
                crowd.begin("report")
            return max(float(crowd.end()["seconds"]) for crowd in crowds)

        first = 100 * processes
        connect(first)
        report()
        empty = _memory(system)
        for count in STEPS:
            held[str(count)] = _held(system, empty, count - first, connect(count), progress, first)
        open_now = sum(_open_files(system, f"gateway-{k}") for k in range(processes))
        if open_now < MOST:
            notes.append(f"of {MOST:,} connections {open_now:,} were open at the end")
        spoke = report()
        progress(f"a report of each of {MOST:,}: acknowledged in {spoke:.1f} s")
        after = _memory(system) - empty
        for crowd in crowds:
            crowd.do("leave")
    return {
        "gateway_processes": processes,
        "vehicle_processes": processes,
        "addresses": _SEVERAL_SOURCES,
        "held": held,
        "all_report_seconds": round(spoke, 1),
        "mb_after_reports": round(after, 1),
    }


def _open_files(system: System, name: str) -> int:
    return len(list(Path(f"/proc/{system.pids[name]}/fd").iterdir()))


def _memory(system: System) -> float:
    """Private memory of the gateway processes, MB, once they have settled."""
    time.sleep(_SETTLE_S)
    kb = 0
    for name, pid in system.pids.items():
        if name.startswith("gateway"):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
            lines = [line.split() for line in text.splitlines()]
            kb += sum(int(line[1]) for line in lines if line[0] in ("Private_Clean:", "Private_Dirty:"))
    return kb / 1024


def _held(
    system: System, empty: float, more: int, seconds: float, progress: Progress, before: int = 100
) -> dict[str, Any]:
    mb = _memory(system) - empty
    progress(
        f"{more + before:,} connections: {mb:.1f} MB more, {1024 * mb / more:.2f} KB each; connected in {seconds:.1f} s"
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
