"""The command ``nevstream``: what people type, and what they read on the terminal.

Only talks and calls; the work is in the stages.  Stages are imported inside their command so that
``nevstream --help`` answers at once.  Exit codes: ``services.errors``.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import signal
import sys
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from services import (
    cli_alarms,
    cli_audit,
    cli_certs,
    cli_command,
    cli_credits,
    cli_dead_letters,
    cli_doctor,
    cli_flaws,
    cli_fleet,
    cli_keys,
    cli_load,
    cli_registry,
    cli_replay,
    cli_schema,
    cli_signals,
    cli_soak,
    cli_statistics,
    cli_tokens,
    cli_vehicle,
)
from services.api_client import ask
from services.errors import NevstreamError, UsageError
from services.settings import Settings, sample
from services.terminal import ApiOption, ConfigOption, JsonOption, database, err, out

if TYPE_CHECKING:
    from services.topology import System

app = typer.Typer(
    name="nevstream",
    help="Telemetry ingestion and statistics for connected NEV fleets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
vehicles_app = typer.Typer(help="The vehicle registry.", no_args_is_help=True)
app.add_typer(vehicles_app, name="vehicles")
cli_registry.register(vehicles_app)
cli_vehicle.register(vehicles_app)
app.add_typer(cli_registry.models_app, name="models")
app.add_typer(cli_fleet.app, name="fleet")
app.add_typer(cli_credits.app, name="credits")
app.add_typer(cli_alarms.app, name="alarms")
app.add_typer(cli_dead_letters.app, name="dead-letters")
app.add_typer(cli_command.app, name="command")
app.add_typer(cli_signals.app, name="signals")
app.add_typer(cli_statistics.app, name="statistics")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_certs.app, name="certs")
app.add_typer(cli_tokens.app, name="tokens")
app.command()(cli_tokens.audit)
app.command(name="replay")(cli_replay.replay)
app.command()(cli_schema.schema)
app.command()(cli_flaws.flaws)
app.command()(cli_soak.soak)
app.command()(cli_load.load)

_HEX = re.compile(rb"(?:0x)?[0-9a-fA-F\s:]+")


# -- running it --------------------------------------------------------------------------------------


def _announce(system: System) -> None:
    """Where to look, after a start."""
    names = {
        "web": "dashboard and API",
        "mqtt": "MQTT",
        "mqtt_tls": "MQTT over TLS",
        "gbt32960": "GB/T 32960",
        "gbt32960_tls": "GB/T 32960 over TLS",
    }
    table = Table.grid(padding=(0, 2))
    web = "https" if system.settings.web.tls.enabled else "http"
    schemes = {"web": web, "mqtt": "mqtt", "mqtt_tls": "mqtts", "gbt32960": "tcp", "gbt32960_tls": "tls"}
    for key, name in names.items():
        if key in system.addresses:
            host, port = system.addresses[key]
            table.add_row(f"  {name}", f"[bold]{schemes[key]}://{host}:{port}[/bold]")
    if "web" in system.addresses:
        host, port = system.addresses["web"]
        table.add_row("  API description", f"{web}://{host}:{port}/openapi.json")
    out.print(table)


def _narrate(name: str, facts: dict[str, Any]) -> None:
    """Progress of a start, a line each."""
    if name == "compiling":
        if facts["seconds"] > 1.0:
            out.print(f"  compiling (first run only): {facts['step']} {facts['seconds']:.1f} s", highlight=False)
    elif name == "database":
        out.print(f"  PostgreSQL started in {facts['seconds']:.1f} s", highlight=False)
    elif name == "migrated" and facts["applied"]:
        out.print(f"  schema: applied {', '.join(facts['applied'])}", highlight=False)
    elif name == "halted":
        err.print(f"  [red]{facts['child']} has stopped:[/red] {escape(facts['message'])}", highlight=False)
    elif name == "exited":
        err.print(f"  [yellow]{facts.get('child', 'a process')} ended and is started again[/yellow]")


def _stop_event() -> threading.Event:
    """An event that SIGINT or SIGTERM sets; a second one ends the process at once."""
    stop = threading.Event()

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def _memory_mb(pids: dict[str, int], roles: tuple[str, ...]) -> float:
    """Resident memory (proportional share) of the processes of these roles, MB."""
    total = 0
    for name, pid in pids.items():
        if name.startswith(roles):
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
            except OSError:  # it ended meanwhile
                continue
            found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
            total += int(found[1]) if found else 0
    return total / 1024


def _run_system(
    settings: Settings, seconds: float | None, fleet: Any = None, prepare: Callable[[System], None] | None = None
) -> None:
    """Start everything, show rates until told to stop, stop everything.  ``prepare`` runs before the fleet starts."""
    from services.topology import System

    stop = _stop_event()
    out.print("[bold]nevstream[/bold] starting")
    system = System(settings, on_event=_narrate, cancel=stop)
    try:
        system.start()
        took = f"ready in {system.start_seconds:.1f} s"
        if system.compile_seconds > 1:
            took += f" (compiling took {system.compile_seconds:.1f} s of it, this once)"
        out.print(f"  [green]{took}[/green]", highlight=False)
        _announce(system)
        if prepare is not None:
            prepare(system)
        if fleet is not None and not fleet.start(system):
            out.print("  the simulated fleet compiles its own kernels (first run only) and then connects")
        out.print("  Ctrl-C stops everything")
        from services.watch import watch

        watch(
            system,
            stop,
            out,
            seconds=seconds,
            fleet=fleet,
            memory_mb=lambda: _memory_mb(system.pids, ("gateway", "pipeline")),
        )
    finally:
        if fleet is not None:
            fleet.stop()
        system.stop()
    out.print("stopped; no process is left behind")


GatewaysOption = Annotated[
    int | None, typer.Option("--gateways", min=1, max=64, help="Gateway processes (default: chosen from the cores).")
]
PipelinesOption = Annotated[
    int | None, typer.Option("--pipelines", min=1, max=64, help="Pipeline processes (default: chosen from the cores).")
]


def _processes(gateways: int | None, pipelines: int | None) -> dict[str, Any]:
    """What --gateways and --pipelines say, over the settings."""
    given = {"gateway": gateways, "pipeline": pipelines}
    return {section: {"processes": count} for section, count in given.items() if count is not None}


@app.command()
def up(
    config: ConfigOption = None,
    gateways: GatewaysOption = None,
    pipelines: PipelinesOption = None,
    seconds: Annotated[float | None, typer.Option(help="Stop by itself after this long.")] = None,
) -> None:
    """Run gateway, pipeline, API and the embedded PostgreSQL on this machine."""
    _run_system(Settings.read(config, _processes(gateways, pipelines)), seconds)


@app.command()
def demo(
    config: ConfigOption = None,
    vehicles: Annotated[int, typer.Option(min=1, help="Vehicles, half over MQTT and half over GB/T 32960.")] = 200,
    period: Annotated[int, typer.Option(min=1, help="Seconds between two reports of a vehicle.")] = 1,
    gateways: GatewaysOption = None,
    pipelines: PipelinesOption = None,
    seconds: Annotated[float | None, typer.Option(help="Stop by itself after this long.")] = None,
) -> None:
    """`up`, and a simulated fleet that drives and charges against it."""
    from services.watch import FleetProcess

    def prepare(system: System) -> None:
        done = cli_registry.register_simulated(system.dsn, vehicles)
        out.print(
            f"  registry: {done.lines:,} simulated vehicles, {done.inserted + done.changed:,} of them new or changed"
        )

    settings = Settings.read(config, _processes(gateways, pipelines))
    _run_system(settings, seconds, FleetProcess(vehicles, period), prepare)


@app.command()
def migrate(config: ConfigOption = None) -> None:
    """Bring the database named in database.dsn to this version's schema."""
    from services.store.migrations import migrate as apply

    applied = apply(database(Settings.read(config)))
    out.print("applied " + ", ".join(applied) if applied else "nothing to do: the schema is current", highlight=False)


@app.command()
def config(
    show: Annotated[
        bool, typer.Option("--current", help="Print the settings in force, secrets masked, as JSON.")
    ] = False,
    file: ConfigOption = None,
) -> None:
    """Print the documented settings file, every option with its default."""
    if show:
        print(Settings.read(file).model_dump_json(indent=2))
    else:
        print(sample(), end="")


# -- frames -------------------------------------------------------------------------------------------


def _frames_of(source: str) -> list[bytes]:
    """Frames from HEX, from a file with one hex frame a line, from raw bytes in a file, or ``-``."""
    typed = source.encode("ascii", "replace")
    if source == "-":
        content = sys.stdin.buffer.read()
    elif _HEX.fullmatch(typed) and len(typed) >= 4:
        content = typed
    else:
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise UsageError(
                f"{source!r} is neither hex digits nor a readable file ({error.strerror}); "
                "give a frame as 2323…, the path of a file with frames, or - for standard input"
            ) from error
    if content[:2] in (b"##", b"$$"):
        return _split(content)
    frames = []
    for number, line in enumerate(content.split(b"\n"), 1):
        digits = re.sub(rb"[\s:]|^0x", b"", line.split(b"#", 1)[0].strip())
        if not digits:
            continue
        try:
            frames.append(bytes.fromhex(digits.decode("ascii")))
        except ValueError as error:
            raise UsageError(f"{source}: line {number} is not hex: {error}") from error
    if not frames:
        raise UsageError(f"{source}: no frame in it")
    return frames


def _split(stream: bytes) -> list[bytes]:
    """The frames of a byte stream, the refused ones too; an incomplete one at the end as it is."""
    import numpy as np

    from schemas.gbt32960.frame import GARBAGE, NEED_MORE, next_frame

    data = np.frombuffer(bytearray(stream), np.uint8)
    frames, at = [], 0
    while at < len(data):
        kind, start, length = next_frame(data, at, len(data), len(data))
        if kind == NEED_MORE:
            frames.append(stream[start:])
            break
        if kind != GARBAGE:
            frames.append(stream[start : start + length])
        at = start + length
    return frames


@app.command()
def decode(
    source: Annotated[str, typer.Argument(metavar="HEX|FILE", help="A frame in hex, a file of them, or - for stdin.")],
    as_json: JsonOption = False,
) -> None:
    """Explain GB/T 32960 frames byte by byte (both editions); exit code 1 when one is not valid."""
    from schemas.gbt32960.explain import explain
    from schemas.gbt32960.reference import decode_frame

    valid = True
    for number, frame in enumerate(_frames_of(source)):
        tree = decode_frame(frame)
        valid = valid and bool(tree["bcc_ok"]) and bool(tree["length_ok"])
        if as_json:
            print(json.dumps(tree, ensure_ascii=False))
            continue
        if number:
            out.print()
        title = f"{len(frame)} bytes"
        if tree["cmd"] is not None:
            title = f"{tree['edition']} · command 0x{tree['cmd']:02x} · {tree['vin']} · {title}"
        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for column in ("offset", "bytes", "field", "raw", "value", "unit", "clause", ""):
            table.add_column(
                column, justify="right" if column in ("offset", "raw", "value") else "left", overflow="fold"
            )
        for row in explain(frame):
            shown = row.bytes_hex if len(row.bytes_hex) <= 24 else row.bytes_hex[:22] + "…"
            table.add_row(
                str(row.offset), shown, row.field, row.raw, row.value, row.unit, row.clause,
                f"[red]{row.problem}[/red]" if row.problem else "",
            )  # fmt: skip
        out.print(table)
    if not valid:
        raise typer.Exit(1)


# -- asking the running system -------------------------------------------------------------------------


@vehicles_app.command("list")
def vehicles_list(
    search: Annotated[str | None, typer.Argument(help="Beginning of the VIN.")] = None,
    activity: Annotated[
        str | None, typer.Option(help="Only those that do this: driving, charging, parked, unknown; with commas.")
    ] = None,
    soc_below: Annotated[int | None, typer.Option(min=0, max=101, help="Only those with a lower SOC, in %.")] = None,
    alarm_level: Annotated[
        int | None, typer.Option(min=0, max=3, help="Only those at this alarm level or higher.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only these models, with commas.")] = None,
    fleet: Annotated[str | None, typer.Option(help="Only these fleets, with commas.")] = None,
    bbox: Annotated[str | None, typer.Option(help="Only within west,south,east,north in degrees.")] = None,
    reporting: Annotated[bool, typer.Option("--reporting", help="Only those that reported within 5 minutes.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    api: ApiOption = None,
    as_json: JsonOption = False,
) -> None:
    """List vehicles with their newest report."""
    page = ask(
        api, "/v1/vehicles", vin=search, activity=activity, soc_below=soc_below, alarm_level_min=alarm_level,
        model=model, fleet=fleet, bbox=bbox, reporting="true" if reporting else None, limit=limit,
    )  # fmt: skip
    if as_json:
        print(json.dumps(page, ensure_ascii=False))
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    shown = {
        "VIN": "vin",
        "last report": "last_data_time",
        "activity": "activity",
        "SOC %": "soc_pct",
        "km/h": "speed_kmh",
        "V": "total_voltage_v",
        "A": "total_current_a",
        "km": "odometer_km",
        "alarm": "alarm_level",
        "reports": "reports",
    }
    for title in shown:
        left = title in ("VIN", "last report", "activity")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for item in page["vehicles"]:
        table.add_row(*("" if item[key] is None else str(item[key]) for key in shown.values()))
    out.print(table if page["vehicles"] else "no such vehicle")


@vehicles_app.command("add")
def vehicles_add(
    vins: Annotated[list[str], typer.Argument(help="VINs to put into the registry (allowlist).")],
    config: ConfigOption = None,
) -> None:
    """Register vehicles, so that a gateway with registry = "allowlist" lets them in."""
    from services.store.directory import add_vehicles

    added = add_vehicles(database(Settings.read(config)), vins)
    out.print(f"{added} of {len(vins)} newly registered", highlight=False)


@vehicles_app.command("set-password")
def vehicles_set_password(vin: str, config: ConfigOption = None) -> None:
    """Set a vehicle's MQTT password; it is asked for, or read from standard input."""
    from services.store.directory import set_password

    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    if not password:
        raise UsageError("an empty password is no password; type one, or pipe it in on one line")
    set_password(database(Settings.read(config)), vin, password)
    out.print(f"password of {vin} set", highlight=False)


app.command()(cli_doctor.doctor)


@app.command()
def latest(vin: str, api: ApiOption = None, as_json: JsonOption = False) -> None:
    """Show the newest report of a vehicle, every signal of it."""
    report = ask(api, f"/v1/vehicles/{urllib.parse.quote(vin, safe='')}/latest")
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    from schemas.signals import INDEX, SIGNALS

    out.print(f"[bold]{report['vin']}[/bold]  {report['time']}", highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_column()
    for name, value in report.get("signals", {}).items():
        if value is not None:
            unit = SIGNALS[INDEX[name]].unit if name in INDEX else ""
            table.add_row(name, str(value), unit)
    out.print(table)


# -- load and proof --------------------------------------------------------------------------------------


@app.command()
def simulate(
    host: Annotated[str, typer.Option(help="Address of the platform.")] = "127.0.0.1",
    mqtt_port: Annotated[int, typer.Option(help="Its MQTT port.")] = 1883,
    gbt_port: Annotated[int, typer.Option(help="Its GB/T 32960 port.")] = 32960,
    vehicles: Annotated[int, typer.Option(min=1, help="Vehicles.")] = 200,
    mqtt_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share over MQTT; the others speak GB/T over TCP.")
    ] = 0.5,
    mqtt_version: Annotated[str, typer.Option(help="3.1.1, 5 or mixed.")] = "mixed",
    period: Annotated[
        int, typer.Option(min=1, help="Seconds between two reports of a vehicle, on its own clock.")
    ] = 10,
    speed: Annotated[float, typer.Option(min=0, help="Vehicle seconds per second; 0 = as fast as answers come.")] = 1.0,
    reports: Annotated[int | None, typer.Option(min=1, help="Reports per vehicle (default: until stopped).")] = None,
    duration: Annotated[float | None, typer.Option(help="Stop after so many seconds.")] = None,
    window: Annotated[int, typer.Option(min=1, help="Un-answered reports a vehicle may have.")] = 10,
    faults: Annotated[str, typer.Option(help="none, demo or dirty.")] = "none",
    parked: Annotated[str, typer.Option(help="report, or sleep: parked vehicles fall silent.")] = "report",
    weak: Annotated[int | None, typer.Option(help="Vehicles with a weak cell (default: 3 % of them).")] = None,
    thermal: Annotated[int, typer.Option(help="Vehicles whose battery goes up, in the second half.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed is the same fleet.")] = 1,
    model: Annotated[str | None, typer.Option(help="One model of the simulator's catalogue (default: all).")] = None,
    reissue: Annotated[bool, typer.Option(help="Send what a lost link left un-answered as 0x03 (GB/T).")] = False,
    client: Annotated[str, typer.Option(help="fast, or aiomqtt for the MQTT vehicles (slow).")] = "fast",
    truth: Annotated[Path | None, typer.Option(help="Write what really happened to this file (JSON lines).")] = None,
    registry: Annotated[
        Path | None,
        typer.Option("--registry", metavar="FILE.csv", help="Only write the fleet's registry, and FILE-models.csv."),
    ] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while it runs.")] = False,
) -> None:
    """Drive simulated vehicles against a platform, over MQTT and GB/T 32960.

    A password for MQTT is taken from NEVSTREAM_SIMULATE_PASSWORD.  Exit code 1 when something that was sent
    was never answered.
    """
    if registry is not None:
        cli_registry.write_simulated(registry, vehicles, seed, model)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from schemas import kernel_cache
    from services.fleetsim.command import simulate as run

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), console=err, disable=quiet, transient=not as_json
    ) as bar:
        task = bar.add_task("preparing vehicles")

        def show(now: Any) -> None:
            if now["connected"]:
                kernel_cache.mark_warm(kernel_cache.mode(), "fleetsim")
            p99 = now["ack_p99_ms"]
            bar.update(
                task,
                description=f"{now['connected']:,} of {now['vehicles']:,} connected · sent {now['sent']:,} · "
                f"acked {now['acked']:,} ({now['acked_per_s']:,.0f}/s) · ack p99 "
                f"{'–' if p99 is None else f'{p99:,.0f} ms'}"
                + (f" · {now['last_error']}" if now["connected"] < now["vehicles"] and now["last_error"] else ""),
            )

        result = run(
            host=host, mqtt_port=mqtt_port, gbt_port=gbt_port, vehicles=vehicles, seed=seed, model=model,
            mqtt_share=mqtt_share, mqtt_version=mqtt_version, period_s=period, speed=speed or None, reports=reports,
            duration_s=duration, window=window, faults=faults, client=client, reissue=reissue, truth=truth,
            parked=parked, weak=weak, thermal=thermal,
            password=os.environ.get("NEVSTREAM_SIMULATE_PASSWORD"), progress=show,
        )  # fmt: skip
    if as_json:
        print(json.dumps(result.as_dict()))
    elif not quiet:
        out.print(
            f"sent {result.sent:,} reports of {result.vehicles:,} vehicles in {result.seconds:.1f} s "
            f"({result.frames_per_s:,.0f}/s), acked {result.acked:,}, refused {result.refused:,}; "
            f"ack p50 {result.ack_p50_ms} ms, p99 {result.ack_p99_ms} ms",
            highlight=False,
        )
    if not result.complete:
        if not quiet:
            err.print(f"[yellow]not everything was answered[/yellow] {result.last_error}", highlight=False)
        raise typer.Exit(1)


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="Benchmark to run; none lists them.")] = None,
    as_json: JsonOption = False,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, for a first impression.")] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Make the READMEs' tables anew from benchmarks/results/*.json.")
    ] = False,
) -> None:
    """Run a benchmark against its baseline on this machine."""
    try:
        runner = importlib.import_module("benchmarks.runner")
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", "benchmarks.runner"):
            raise
        raise UsageError("benchmarks are in the source checkout, not in the package: run this from a clone") from error
    if tables:
        for changed in importlib.import_module("benchmarks.tables").write():
            out.print(str(changed), highlight=False)
        return
    if name is None:
        for known, text in runner.available().items():
            out.print(f"  [bold]{known:12}[/bold] {text}", highlight=False)
        return
    result = runner.run(name, quick=quick, progress=lambda line: err.print(f"  {line}", highlight=False))
    if as_json:
        print(json.dumps(result))
    else:
        out.print(runner.table(result))


def main() -> None:
    """Entry point: messages instead of tracebacks for everything that is not our own mistake."""
    logging.basicConfig(level=os.environ.get("NEVSTREAM_LOG", "WARNING"), format="%(levelname)s %(name)s: %(message)s")
    command = typer.main.get_command(app)
    cli_audit.install(command)
    try:
        command()
    except NevstreamError as error:
        # a message may hold brackets, such as [[block]]
        err.print(f"[red]nevstream:[/red] {escape(str(error))}", highlight=False, markup=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # the reader (`| head`) went away: not an error; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
