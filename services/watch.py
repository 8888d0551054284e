"""The live picture on the terminal of `nevstream up` and `nevstream demo`: rates, lag, memory.

Reads what the processes publish (metrics files) and never asks them anything.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from schemas import kernel_cache
from services.errors import NevstreamError
from services.metrics import totals

if TYPE_CHECKING:
    from services.topology import System

# (shown as, metric, per second?)
_ROWS = (
    ("connections", "nevstream_gateway_connections", False),
    ("frames received", "nevstream_gateway_frames_received_total", True),
    ("frames acked (durable)", "nevstream_gateway_frames_acked_total", True),
    ("rows committed", "nevstream_pipeline_rows_total", True),
    ("duplicates", "nevstream_pipeline_duplicates_total", False),
    ("dead letters", "nevstream_pipeline_dead_letters_total", False),
    ("lag", "nevstream_pipeline_lag_seconds", False),
)


class FleetProcess:
    """The demo's simulated fleet, as a process of its own that ends with the demo."""

    def __init__(self, vehicles: int, period_s: int) -> None:
        self._vehicles, self._period_s = vehicles, period_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, system: System) -> bool:
        """Point the fleet at the running system's doors; False when it has kernels to compile before it connects."""
        argv = [sys.executable, "-m", "services.cli", "simulate", "--quiet", "--faults", "demo"]
        argv += ["--vehicles", str(self._vehicles), "--period", str(self._period_s)]
        argv += ["--mqtt-port", str(system.addresses["mqtt"][1]), "--gbt-port", str(system.addresses["gbt32960"][1])]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        return kernel_cache.is_warm(kernel_cache.mode(), "fleetsim")

    def check(self) -> None:
        """Raise when the fleet has ended by itself."""
        if self._process is not None and self._process.poll() not in (None, 0):
            raise NevstreamError(f"the simulated fleet ended with exit code {self._process.returncode}")

    def stop(self, grace_s: float = 10.0) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def watch(
    system: System,
    stop: threading.Event,
    console: Console,
    *,
    seconds: float | None,
    fleet: FleetProcess | None,
    memory_mb: Callable[[], float],
) -> None:
    """Show rates once a second until ``stop`` is set or ``seconds`` have passed.

    On a terminal the table is redrawn in place; elsewhere a line is printed every five seconds.
    """
    ends = None if seconds is None else time.monotonic() + seconds
    before, then = totals(system.metrics_dir), time.monotonic()
    lines = 0

    def wait() -> bool:
        pause = 1.0 if ends is None else max(0.0, min(1.0, ends - time.monotonic()))
        return stop.wait(pause) or (ends is not None and time.monotonic() >= ends)

    with Live(console=console, refresh_per_second=4, transient=False, auto_refresh=False) as live:
        while not wait():
            if fleet is not None:
                fleet.check()
            now, values = time.monotonic(), totals(system.metrics_dir)
            rates = {name: (values.get(name, 0.0) - before.get(name, 0.0)) / (now - then) for _, name, _ in _ROWS}
            before, then = values, now
            memory = memory_mb()
            if console.is_terminal:
                live.update(_table(values, rates, memory), refresh=True)
            elif lines % 5 == 0:
                console.print(_line(values, rates, memory), highlight=False)
            lines += 1


def _table(values: dict[str, float], rates: dict[str, float], memory: float) -> Table:
    table = Table(box=None, show_header=True, header_style="dim", pad_edge=True)
    table.add_column("")
    table.add_column("now", justify="right")
    table.add_column("total", justify="right", style="dim")
    for label, name, per_second in _ROWS:
        value = values.get(name, 0.0)
        if per_second:
            table.add_row(label, f"{rates[name]:,.0f}/s", f"{value:,.0f}")
        elif name.endswith("_seconds"):
            table.add_row(label, f"{value:.2f} s", "")
        else:
            table.add_row(label, f"{value:,.0f}", "")
    table.add_row("memory, gateway + pipeline", f"{memory:,.0f} MB", "")
    return table


def _line(values: dict[str, float], rates: dict[str, float], memory: float) -> str:
    acked, rows = "nevstream_gateway_frames_acked_total", "nevstream_pipeline_rows_total"
    return (
        f"  {values.get('nevstream_gateway_connections', 0):,.0f} connections · acked {rates[acked]:,.0f}/s · "
        f"rows {rates[rows]:,.0f}/s ({values.get(rows, 0):,.0f} in all) · lag "
        f"{values.get('nevstream_pipeline_lag_seconds', 0):.2f} s · {memory:,.0f} MB"
    )
