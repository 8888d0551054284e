"""``nevstream soak``: the whole system under faults, and whether every frame is accounted for in the end."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from services.terminal import JsonOption, err, out

_DSN_VARIABLE: Final = "NEVSTREAM_SOAK_DSN"


def soak(
    vehicles: Annotated[int, typer.Option(min=1, help="Simulated vehicles, half over MQTT and half over TCP.")] = 200,
    minutes: Annotated[float, typer.Option(min=0.2, help="How long faults come.")] = 10.0,
    seed: Annotated[int, typer.Option(help="The same seed is the same fleet and the same schedule of faults.")] = 1,
    faults: Annotated[int | None, typer.Option(min=0, help="How many faults (default: 27 a minute).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="48 vehicles, 30 faults, done within two minutes.")] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the account to this file: JSON if it ends so, else text.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run everything with a fleet, kill, pause and cut at random, and reckon up: nothing lost, nothing twice.

    Works in a directory of its own that is removed afterwards; or on the empty database that NEVSTREAM_SOAK_DSN
    names.  Ctrl-C ends the faults and goes on to the reckoning, a second one ends it all.  Exit code 1 when anything
    was lost, doubled, or is not as it should be.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from services.soak import report as reports
    from services.soak.run import SoakSettings
    from services.soak.run import soak as run

    if "NEVSTREAM_LOG" not in os.environ:  # else every fault would be told of several times
        os.environ["NEVSTREAM_LOG"] = "CRITICAL"
        logging.getLogger().setLevel("CRITICAL")
    dsn = os.environ.get(_DSN_VARIABLE)
    settings = SoakSettings.short(seed, dsn) if quick else SoakSettings(vehicles, minutes, seed, False, faults, dsn=dsn)
    stop = threading.Event()

    def end(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # everything is stopped and removed on the way out
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True
    ) as bar:
        task = bar.add_task("starting", total=None)

        def show(now: dict[str, Any]) -> None:
            if now["phase"] != "faults":
                bar.update(task, description=now["phase"], total=None)
                return
            bar.update(
                task,
                description=f"{now['done']} of {now['planned']} faults ({now['kills']} kills) · {now['newest']} · "
                f"{now['connected']} connected · acked {now['acked']:,}",
                total=1.0,
                completed=now["share"],
            )

        result = run(settings, show, stop) | {"at": datetime.now(UTC).isoformat(timespec="seconds")} | _beside()
    if report is not None:
        body = json.dumps(result, indent=1) + "\n" if report.suffix == ".json" else reports.text(result)
        report.write_text(body, "utf-8")
    if as_json:
        print(json.dumps(result))
    else:
        print(reports.text(result), end="")
        if report is not None:
            out.print(f"written to {report}", highlight=False)
    if not reports.passed(result):
        raise typer.Exit(1)


def _beside() -> dict[str, Any]:
    """Commit and machine, when this is a checkout."""
    try:
        runner = importlib.import_module("benchmarks.runner")
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", "benchmarks.runner"):
            raise
        return {}
    return {"commit": runner.commit(), "machine": runner.machine()}
