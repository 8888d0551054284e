"""The load, as a process of its own: makes every frame beforehand, says so, and sends when told.

``python -m benchmarks.generator '{"vehicles": 500, ...}'`` prints one JSON line when it is ready, waits for
a line on stdin, sends, and prints the simulation's result.  Times are ``time.monotonic``, which all
processes of a machine share.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import uvloop

from services.fleetsim.client import ClientSettings
from services.fleetsim.simulation import Simulation, SimulationSettings

# The typical frame: 2016 edition, 96 cells, 20 probes, all eight report blocks of a car, about 330 bytes.
MODEL = "sedan-ncm-96"


@dataclass(frozen=True, slots=True)
class Load:
    """``vehicles`` connections, each sending ``reports`` frames with ``window`` un-answered at most.

    ``speed``: data seconds per second, hence ``vehicles`` x ``speed`` / ``period_s`` frames a second; None: as fast as
    answers come.
    """

    vehicles: int
    reports: int
    window: int
    seed: int
    mqtt_share: float = 1.0
    mqtt_version: str = "3.1.1"
    period_s: int = 10
    host: str = "127.0.0.1"
    mqtt_port: int = 0
    gbt_port: int = 0
    drain_s: float = 120.0
    speed: float | None = None

    @property
    def frames(self) -> int:
        return self.vehicles * self.reports


class Generator:
    """The generator's process, from outside.  A context manager: the process is ended with it."""

    def __init__(self, load: Load) -> None:
        self.load = load
        values = {name: getattr(load, name) for name in load.__dataclass_fields__}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generator", json.dumps(values)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ready(self) -> dict[str, Any]:
        """Wait until every frame is made; {"frame_bytes": mean size, "vins": [...]}."""
        return self._line()

    def go(self) -> None:
        """Send."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for the last answer; the ``SimulationResult`` as a dict."""
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with exit code {self._process.wait()}; its message is above")
        found: dict[str, Any] = json.loads(line)
        return found


def main(argument: str) -> None:
    load = Load(**json.loads(argument))
    simulation = Simulation(
        SimulationSettings(
            vehicles=load.vehicles,
            seed=load.seed,
            model=MODEL,
            mqtt_share=load.mqtt_share,
            mqtt_version=load.mqtt_version,
            period_s=load.period_s,
            speed=load.speed,
            reports=load.reports,
            drain_s=load.drain_s,
            prepare_all=True,
            line=ClientSettings(
                host=load.host,
                mqtt_port=load.mqtt_port,
                gbt_port=load.gbt_port,
                window=load.window,
                ack_timeout_s=load.drain_s,
            ),
        )
    )
    simulation.prepare()
    gc.collect()
    gc.freeze()  # what was made lives to the end; to look through it again and again took a ninth of this process
    print(json.dumps({"frame_bytes": simulation.frame_bytes, "vins": simulation.vins}), flush=True)
    sys.stdin.readline()
    print(json.dumps(uvloop.run(simulation.run()).as_dict()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
