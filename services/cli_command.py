"""``nevstream command query|set|control|list VIN …``: a terminal's parameters, its control, and what it answered.

Writes to the database directly; the gateway that holds the vehicle picks the command up.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from services.errors import UsageError
from services.settings import Settings
from services.terminal import ConfigOption, JsonOption, database, out, zone_of

app = typer.Typer(help="Commands to vehicles: parameter query, set, terminal control.", no_args_is_help=True)

_POLL_S: Final = 0.5
_NUMBER: Final = re.compile(r"\d{1,3}|0[xX][0-9a-fA-F]{1,2}", re.ASCII)
# Written out: help must not wait for the modules that hold these names (they bring kernels along).  A test holds
# them against schemas.gbt32960.downlink.
QUERYABLE: Final = (
    "storage_period_ms, report_period, alarm_report_period, platform_domain, platform_port, "
    "hardware_version, firmware_version, heartbeat_period_s, terminal_timeout_s, platform_timeout_s, "
    "login_pause_min, public_domain, public_port, sampling_monitoring"
)
SETTABLE: Final = (
    "storage_period_ms, report_period, alarm_report_period, platform_port, heartbeat_period_s, "
    "terminal_timeout_s, platform_timeout_s, login_pause_min, public_port, sampling_monitoring, "
    "platform_domain, public_domain"
)
CONTROLS: Final = "upgrade, power_off, reset, factory_settings, disconnect, warning, sampling_link"
_DONE: Final = ("answered", "failed", "expired")

VinArgument = Annotated[str, typer.Argument(help="The vehicle.")]
EditionOption = Annotated[
    int | None, typer.Option("--edition", help="2016 or 2025 (default: the one that the vehicle speaks).")
]
WaitOption = Annotated[float, typer.Option("--wait", min=0, help="Wait so many seconds for the answer; 0: do not.")]
ExpiresOption = Annotated[
    float | None, typer.Option("--expires", min=1, help="Seconds after which it is no longer sent.")
]


@app.command()
def query(
    vin: VinArgument,
    params: Annotated[list[str], typer.Argument(help=f"Of {QUERYABLE}; or their numbers, or 128-254.")],
    edition: EditionOption = None,
    wait: WaitOption = 30.0,
    expires: ExpiresOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a terminal for parameters (0x80)."""
    body = {"params": [_param(text) for text in params]}
    _send(config, vin, "query", body, edition, wait, expires, as_json)


@app.command("set")
def set_params(
    vin: VinArgument,
    params: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help=f"Of {SETTABLE}; or their numbers.")],
    edition: EditionOption = None,
    wait: WaitOption = 30.0,
    expires: ExpiresOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set parameters of a terminal (0x81); it takes all of them or none."""
    body = {"params": {_param(name): value for name, value in map(_pair, params)}}
    _send(config, vin, "set", body, edition, wait, expires, as_json)


@app.command()
def control(
    vin: VinArgument,
    what: Annotated[str, typer.Argument(help=f"One of {CONTROLS}; or a number 128-254.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="warning: level, text. upgrade: url, address, … A number: hex."),
    ] = None,
    edition: EditionOption = None,
    wait: WaitOption = 30.0,
    expires: ExpiresOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Control a terminal (0x82): upgrade, reset, warning and so on."""
    number = int(what) if what.isascii() and what.isdigit() else what
    body = {"control": number, **dict(_pair(text, numbers=what in ("warning", "upgrade")) for text in more or ())}
    _send(config, vin, "control", body, edition, wait, expires, as_json)


@app.command("list")
def list_commands(
    vin: VinArgument,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was asked of a vehicle and what it answered, newest first."""
    found = asyncio.run(_list(Settings.read(config), vin, limit))
    if as_json:
        print(json.dumps(found, default=str, ensure_ascii=False))
        return
    if not found:
        out.print(f"no command to {escape(vin)}", highlight=False)
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in ("id", "created", "command", "state", "tries", "door", "answer or error"):
        table.add_column(name, justify="right" if name in ("id", "tries") else "left")
    for one in found:
        table.add_row(
            str(one["id"]), one["created_at"].isoformat(" ", "seconds"), escape(f"{one['kind']} {_short(one['body'])}"),
            one["state"], str(one["attempts"]), one["door"] or "–", escape(one["error"] or _short(one["answer"])),
        )  # fmt: skip
    out.print(table)


# -- inside -------------------------------------------------------------------------------------------
def _param(text: str) -> str | int:
    """A parameter as the standard numbers it (2, 0x02) by its name; a number without a name as it is."""
    if not _NUMBER.fullmatch(text):
        return text
    from schemas.gbt32960.downlink import IDS

    number = int(text, 16 if text[:2].lower() == "0x" else 10)
    return next((name for name, ident in IDS.items() if ident == number), number)


def _pair(text: str, numbers: bool = True) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"{text!r}: write NAME=VALUE")
    is_number = numbers and value.isascii() and value.isdigit() and name not in ("text", "maker")
    return name, int(value) if is_number else value


def _short(value: Any) -> str:
    """A body or an answer in a line."""
    if not value:
        return "–"
    params = value.get("params")
    if isinstance(params, list) and params and isinstance(params[0], dict):
        return ", ".join(f"{one['name']}={one['value']}" for one in params)
    if isinstance(params, dict):
        return ", ".join(f"{name}={item}" for name, item in params.items())
    if isinstance(params, list):
        return ", ".join(map(str, params))
    return ", ".join(f"{name}={item}" for name, item in value.items() if name != "time") or "–"


async def _list(settings: Settings, vin: str, limit: int, number: int | None = None) -> list[dict[str, Any]]:
    from services.store.commands import PostgresCommands
    from services.web.commands import command
    from services.web.parameters import Context

    desk = PostgresCommands(database(settings))
    try:
        table = await desk.commands(vin, before=None if number is None else number + 1, limit=limit)
    finally:
        await desk.close()
    context = Context(settings, None, zone_of(settings), lambda: datetime.now(UTC))  # type: ignore[arg-type]
    return [command(row, context) for row in table.dicts()]


def _send(
    config: Any, vin: str, kind: str, body: dict[str, Any], edition: int | None, wait_s: float,
    expires_s: float | None, as_json: bool,
) -> None:  # fmt: skip
    from schemas.gbt32960.downlink import DownlinkError, check
    from services.store.commands import PostgresCommands
    from services.web.parameters import checked_vin
    from services.web.problems import ProblemError

    settings = Settings.read(config)
    if edition not in (None, 2016, 2025):
        raise UsageError(f"--edition {edition}: give 2016 or 2025")
    try:
        checked_vin(vin)
        check(kind, body, None if edition is None else edition - 2000)
    except ProblemError as error:
        raise UsageError(f"{vin!r} is not a vehicle identification: 1 to 17 printable ASCII characters") from error
    except DownlinkError as error:
        raise UsageError(str(error)) from error

    async def queue() -> int:
        desk = PostgresCommands(database(settings))
        try:
            return await desk.enqueue(
                vin, kind, body, by=getpass.getuser(), edition=None if edition is None else edition - 2000,
                expires_s=expires_s or settings.gateway.commands.expires_s,
            )  # fmt: skip
        finally:
            await desk.close()

    number = asyncio.run(queue())
    until = time.monotonic() + wait_s
    while True:
        (found,) = asyncio.run(_list(settings, vin, 1, number))
        if found["state"] in _DONE or time.monotonic() >= until:
            break
        time.sleep(_POLL_S)
    if as_json:
        print(json.dumps(found, default=str, ensure_ascii=False))
    elif found["state"] == "answered":
        out.print(f"[green]answered[/green]  {escape(_short(found['answer']))}", highlight=False)
    elif found["state"] in _DONE:
        out.print(f"[red]{found['state']}[/red]  {escape(found['error'] or '')}", highlight=False)
    else:
        out.print(f"{found['state']} as {number}; see `nevstream command list {escape(vin)}`", highlight=False)
    if found["state"] in ("failed", "expired"):
        raise typer.Exit(1)
