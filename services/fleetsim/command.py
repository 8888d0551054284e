"""The simulator as one call: arguments in, result out.  The command line only shows what this says."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvloop

from services.fleetsim.client import ClientSettings
from services.fleetsim.simulation import Simulation, SimulationResult, SimulationSettings

Progress = Callable[[Mapping[str, Any]], None]


def simulate(
    *,
    host: str = "127.0.0.1",
    mqtt_port: int = 1883,
    gbt_port: int = 32960,
    vehicles: int = 200,
    seed: int = 1,
    model: str | None = None,
    mqtt_share: float = 0.5,
    mqtt_version: str = "mixed",
    period_s: int = 10,
    speed: float | None = 1.0,
    reports: int | None = None,
    duration_s: float | None = None,
    window: int = 10,
    faults: str | Mapping[str, float] = "none",
    parked: str = "report",
    weak: int | None = None,
    thermal: int = 0,
    client: str = "fast",
    password: str | None = None,
    reissue: bool = False,
    ack_timeout_s: float = 60.0,
    drain_s: float = 60.0,
    start_s: int | None = None,
    truth: Path | None = None,
    progress: Progress | None = None,
    progress_every_s: float = 0.5,
    handle_signals: bool = True,
) -> SimulationResult:
    """Run a fleet against a platform until it is done, ``duration_s`` is over, or SIGINT or SIGTERM comes.

    ``progress`` is called with ``Stats.snapshot()`` plus ``sent_per_s``, ``acked_per_s`` and ``last_error`` every
    ``progress_every_s``.  See ``SimulationSettings`` for the arguments.  Raises ``UsageError``.
    """
    settings = SimulationSettings(
        vehicles=vehicles, seed=seed, model=model, mqtt_share=mqtt_share, mqtt_version=mqtt_version, period_s=period_s,
        speed=speed, reports=reports, duration_s=duration_s, start_s=start_s, faults=faults, drain_s=drain_s,
        truth=truth, client=client, parked=parked, weak=weak, thermal=thermal,
        line=ClientSettings(
            host=host, mqtt_port=mqtt_port, gbt_port=gbt_port, window=window, password=password, reissue=reissue,
            ack_timeout_s=ack_timeout_s,
        ),
    )  # fmt: skip
    return uvloop.run(_run(settings, progress, progress_every_s, handle_signals))


async def _run(
    settings: SimulationSettings, progress: Progress | None, every_s: float, handle_signals: bool
) -> SimulationResult:
    simulation = Simulation(settings)
    loop = asyncio.get_running_loop()
    if handle_signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, simulation.stop)
    shown = asyncio.create_task(_show(simulation, progress, every_s)) if progress else None
    try:
        return await simulation.run()
    finally:
        if shown is not None:
            shown.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await shown


async def _show(simulation: Simulation, progress: Progress, every_s: float) -> None:
    sent = acked = 0
    while True:
        await asyncio.sleep(every_s)
        values = simulation.stats.snapshot()
        values["sent_per_s"] = round((values["sent"] - sent) / every_s, 1)
        values["acked_per_s"] = round((values["acked"] - acked) / every_s, 1)
        values["last_error"] = simulation.stats.last_error
        sent, acked = values["sent"], values["acked"]
        progress(values)
