"""``nevstream load``: many vehicles at a given rate against a system of one's own, and what became of every frame."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.errors import NevstreamError, Unavailable, UsageError
from services.settings import Settings
from services.terminal import ApiOption, JsonOption, err, out

_DURATION: Final = re.compile(r"(\d{1,7}(?:\.\d+)?)(s|m|h|)", re.ASCII)
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_LAG_EVERY_S: Final = 1.0


def load(
    vehicles: Annotated[int, typer.Option(help="Vehicles, each with a connection of its own.")] = 1000,
    rate: Annotated[float, typer.Option(help="Frames per second of all of them together, on average.")] = 1000.0,
    protocol: Annotated[str, typer.Option(help="mqtt, gbt32960 or mixed.")] = "mqtt",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="HOST, HOST:PORT, or HOST:MQTTPORT,GBTPORT (default: the system that runs from this directory).",
        ),
    ] = None,
    scenario: Annotated[str, typer.Option(help="steady, commute, storm, night-charging or outage.")] = "steady",
    duration: Annotated[str, typer.Option(metavar="TIME", help="How long to send: 90, 90s, 10m, 2h.")] = "60s",
    processes: Annotated[int | None, typer.Option(help="Processes that send (default: as many as it takes).")] = None,
    window: Annotated[int, typer.Option(help="Un-answered frames a vehicle may have.")] = 10,
    seed: Annotated[
        int | None, typer.Option(help="Which vehicles (default: new ones each time); it is in the report.")
    ] = None,
    mqtt_version: Annotated[str, typer.Option(help="3.1.1, 5 or mixed.")] = "3.1.1",
    model: Annotated[str, typer.Option(help="Model of the catalogue: how large frames are.")] = "sedan-ncm-96",
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS.")] = False,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Authority to believe (PEM).")] = None,
    mine: Annotated[
        bool, typer.Option("--yes-this-is-my-system", help="The target may be another machine; nobody else's.")
    ] = False,
    api: ApiOption = None,
    as_json: JsonOption = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the account to this file (JSON).")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while it runs.")] = False,
) -> None:
    """Put a load on a system of your own, and reckon up through its API what became of every frame.

    Scenarios press a day into the duration (commute), reconnect every vehicle at once (storm), let a fleet plug in
    (night-charging), or take links away and send what they held (outage). A password for MQTT comes from
    NEVSTREAM_LOAD_PASSWORD, a token for the API from NEVSTREAM_TOKEN. Ctrl-C ends it early, with an account of what
    was done. Exit code 1 when something that was acknowledged is missing, or never was answered.
    """
    from services.load import report as reports
    from services.load.reconcile import Api, check_fresh, reconcile
    from services.load.run import Run
    from services.load.settings import LoadSettings, parse_target, processes_for
    from services.load.supply import check_model, make_vins, prefix
    from services.load.worker import part_of

    check_model(model)
    running = _running_system() if target is None else None
    if target is None and running is None:
        raise UsageError(
            "load: no --target, and no system runs from this directory: start `nevstream up` here, or say --target HOST"
        )
    host, ports = _doors(running, tls) if running is not None else parse_target(str(target), protocol)
    settings = LoadSettings(
        vehicles=vehicles, rate=rate, duration_s=_seconds(duration), scenario=scenario, protocol=protocol,
        mqtt_version=mqtt_version, host=host, processes=processes or processes_for(vehicles, rate), window=window,
        seed=int(time.time()) % 10_000_000 if seed is None else seed, model=model, tls=tls,
        ca=None if ca is None else str(ca), mine=mine, **ports,
    )  # fmt: skip
    if report is not None and not report.parent.is_dir():
        raise UsageError(f"load: --report {report}: there is no directory {report.parent}")
    begins = prefix(settings.seed, settings.model)
    desk = Api(api) if api is not None or running is not None else None
    before = check_fresh(desk, begins, settings.seed) if desk is not None else None
    stop = threading.Event()

    def end(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # the processes end with this one
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with _Shown(quiet) as shown, _Lag(desk) as lag:
        account = Run(settings, shown.update, stop, lambda: lag.seconds).run()
        if desk is not None and before is not None:
            vins, _ = make_vins(part_of(settings.vehicles, 1, 0), settings.seed, settings.model)
            account["reconciliation"] = reconcile(desk, begins, vins, before, account, shown.waiting).as_dict()
        else:
            account["reconciliation"] = None
            account["not_reconciled"] = "give --api URL to have it counted what became of the frames"
    del account["by_vehicle"]
    if report is not None:
        report.write_text(json.dumps(account, indent=1) + "\n", "utf-8")
    if as_json:
        print(json.dumps(account))
    else:
        print(reports.text(account), end="")
        if report is not None:
            out.print(f"written to {report}", highlight=False)
    found = account["reconciliation"]
    if not account["complete"] or (found is not None and not found["ok"]):
        raise typer.Exit(1)


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"load: --duration {text!r}: write 90, 90s, 10m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def _running_system() -> Mapping[str, Any] | None:
    """The settings of the system that runs from this directory."""
    file = Settings.read().runtime_dir / "system.json"
    if not file.exists():
        return None
    found: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def _doors(system: Mapping[str, Any], tls: bool) -> tuple[str, dict[str, int]]:
    doors = system["gateway"]
    pick = {"mqtt_port": doors["mqtt"], "gbt_port": doors["gbt32960"]}
    ports = {name: door["tls"]["port"] if tls else door["port"] for name, door in pick.items()}
    host = doors["mqtt"]["host"]
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host, ports


class _Lag:
    """The API's lag, asked beside the load and not by it."""

    def __init__(self, desk: Any) -> None:
        self.seconds: float | None = None
        self._desk = desk
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="load lag", daemon=True)

    def __enter__(self) -> _Lag:
        if self._desk is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()

    def _ask(self) -> None:
        while not self._over.wait(_LAG_EVERY_S):
            try:
                self.seconds = self._desk.lag_s()
            except (Unavailable, NevstreamError):  # it is under load: the next answer will do
                self.seconds = None


class _Shown:
    """What is seen while it runs: a small table in place on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._live = Live(console=err, transient=True, auto_refresh=False) if err.is_terminal and not quiet else None
        self._said = ""
        self._said_at = 0.0

    def __enter__(self) -> _Shown:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*exc)

    def waiting(self, words: str) -> None:
        self.update({"phase": f"reckoning: {words}"})

    def update(self, now: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        if self._live is None:
            self._line(now)
        else:
            self._live.update(_table(now), refresh=True)

    def _line(self, now: Mapping[str, Any]) -> None:
        sending = now["phase"] == "sending"
        phase = str(now["phase"]).split(":")[0]
        if phase == self._said and time.monotonic() - self._said_at < 5.0:
            return
        self._said, self._said_at = phase, time.monotonic()
        if not sending:
            more = f" · {now['connected']:,} of {now['vehicles']:,}" if phase == "connecting" else ""
            err.print(f"  {now['phase']}{more}", highlight=False)
            return
        err.print(
            f"  {now['s']:>6.0f} s · sent {now['sent']:,} ({now['sent_per_s']:,.0f}/s of {now['planned_per_s']:,.0f}) "
            f"· acked {now['acked']:,} ({now['acked_per_s']:,.0f}/s) · in flight {now['in_flight']:,} · behind "
            f"{now['behind_s']:.1f} s · ack p50 {_ms(now['ack_p50_ms'])} p99 {_ms(now['ack_p99_ms'])}"
            + ("" if now["api_lag_s"] is None else f" · lag {now['api_lag_s']:.1f} s")
            + (f" · errors {now['errors']:,}" if now["errors"] else ""),
            highlight=False,
            soft_wrap=True,
        )  # fmt: skip


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _table(now: Mapping[str, Any]) -> Group:
    """The live picture."""
    head = Text(f"load: {now['phase']}", style="bold")
    if "vehicles" not in now:
        return Group(head)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("connected", f"{now['connected']:,}", f"of {now['vehicles']:,}")
    if now["phase"] == "sending":
        head.append(f" · {min(now['s'], now['duration_s']):,.0f} of {now['duration_s']:,.0f} s", style="default")
        late = now["behind_s"] >= 1.0
        table.add_row("sent", f"{now['sent']:,}", f"{now['sent_per_s']:,.0f}/s of {now['planned_per_s']:,.0f}/s due")
        table.add_row("acked", f"{now['acked']:,}", f"{now['acked_per_s']:,.0f}/s")
        table.add_row("in flight", f"{now['in_flight']:,}", "")
        table.add_row(
            "behind plan", f"{now['behind_plan']:,}", Text(f"{now['behind_s']:.1f} s", style="yellow" if late else "")
        )
        table.add_row("ack p50 / p99", _ms(now["ack_p50_ms"]), _ms(now["ack_p99_ms"]))
        if now["api_lag_s"] is not None:
            table.add_row("system's lag", f"{now['api_lag_s']:.1f} s", "")
    elif now.get("sent"):
        table.add_row("acked", f"{now['acked']:,}", f"of {now['sent']:,} sent")
    for kind, count in sorted(now["errors_by_kind"].items(), key=lambda item: -item[1])[:5]:
        table.add_row(Text("error", style="red"), f"{count:,}", Text(kind))
    return Group(head, table)
