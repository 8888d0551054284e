"""``nevstream tokens`` and ``nevstream audit``: who may use the API, and what was changed by whom.

A token is printed once, when it is made, and is nowhere to be read again.  It is never taken from a command line.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from zoneinfo import ZoneInfo

import typer
from rich.markup import escape
from rich.table import Table

from schemas.access import Role, Token
from services.errors import UsageError
from services.settings import Settings, WebAuth
from services.terminal import TIME_HELP, ConfigOption, JsonOption, database, err, moment, out, zone_of

if TYPE_CHECKING:
    from services.store.access import PostgresTokens

T = TypeVar("T")

app = typer.Typer(help="Tokens of the HTTP API (web.auth = token): who may ask, and for which fleets.",
                  no_args_is_help=True)  # fmt: skip

_AHEAD: Final = re.compile(r"(\d{1,5})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
NEVER: Final = "never"

NameArgument = Annotated[str, typer.Argument(help="Name of the token: who or what uses it.")]
ExpiresOption = Annotated[
    str, typer.Option("--expires", help="When it ends: so long ahead (90d, 12h), ISO 8601, or never.")
]


def ahead(text: str, zone: ZoneInfo, option: str = "--expires") -> datetime | None:
    """A time to come that somebody typed, in UTC; None for never.  Raises ``UsageError``."""
    now = datetime.now(UTC)
    if text.strip() == NEVER:
        return None
    if found := _AHEAD.fullmatch(text.strip()):
        return now + timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    time = moment(text, option, zone)
    if time <= now:
        raise UsageError(f"{option} {text!r} is over already: give a time to come, such as 90d")
    return time


@app.command()
def add(
    name: NameArgument,
    role: Annotated[
        Role,
        typer.Option("--role", "-r", help="read; operate: also acknowledge, requeue, commands, registry; admin: all."),
    ] = Role.READ,
    fleets: Annotated[
        list[str] | None,
        typer.Option("--fleet", "-f", help="Only vehicles of this fleet (repeat it); default: every vehicle."),
    ] = None,
    expires: ExpiresOption = "365d",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token, and show it this once."""
    settings = Settings.read(config)
    until = ahead(expires, zone_of(settings))
    token, secret = _with(settings, lambda desk: desk.add(name, role, fleets or None, until, by=_me()))
    _show_new(settings, token, secret, as_json)


@app.command()
def rotate(
    name: NameArgument,
    overlap: Annotated[str, typer.Option("--overlap", help="How long the old one still works: 0s, 10m, 1d.")] = "1d",
    expires: ExpiresOption = "365d",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new token of the same name, role and fleets; the old one ends after --overlap."""
    settings = Settings.read(config)
    until = ahead(expires, zone_of(settings))
    found = _AHEAD.fullmatch(overlap.strip())
    if not found:
        raise UsageError(f"--overlap {overlap!r} is no length of time: give 0s, 10m, 12h or 1d")
    seconds = int(found[1]) * _SECONDS[found[2]]
    token, secret = _with(settings, lambda desk: desk.rotate(name, overlap_s=seconds, expires_at=until, by=_me()))
    _show_new(settings, token, secret, as_json)


@app.command()
def revoke(
    names: Annotated[list[str], typer.Argument(help="Names, or ids as `nevstream tokens list` shows them.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End tokens; the API knows it within seconds."""
    settings = Settings.read(config)

    async def run(desk: PostgresTokens) -> list[Token]:
        return [token for name in names for token in await desk.revoke(name)]

    ended = _with(settings, run)
    if as_json:
        print(json.dumps({"revoked": [told(token, zone_of(settings)) for token in ended]}))
    else:
        out.print(f"{len(ended)} {'token' if len(ended) == 1 else 'tokens'} revoked", highlight=False)
    if not ended:
        raise UsageError(f"there is no valid token {', '.join(names)}: see `nevstream tokens list`")


@app.command("list")
def listed(
    everything: Annotated[bool, typer.Option("--all", help="Revoked and expired ones, too.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the tokens: whose, what they may, when they were last used. Never the tokens themselves."""
    settings = Settings.read(config)
    zone = zone_of(settings)
    found = [told(token, zone) for token in _with(settings, lambda desk: desk.listed())]
    lines = [line for line in found if everything or line["state"] == "valid"]
    if as_json:
        print(json.dumps(lines, ensure_ascii=False))
        return
    if not lines:
        out.print("no tokens; make one with `nevstream tokens add NAME --role read`")
        return
    table = Table(box=None, header_style="bold")
    for title in ("id", "name", "role", "fleets", "state", "expires", "last used", "made by"):
        table.add_column(title, no_wrap=title != "fleets")
    for line in lines:
        table.add_row(
            str(line["id"]), escape(line["name"]), line["role"],
            "all" if line["fleets"] is None else escape(", ".join(line["fleets"])), line["state"],
            line["expires_at"] or NEVER, line["last_used_at"] or "-", escape(line["created_by"]),
        )  # fmt: skip
    out.print(table)


def told(token: Token, zone: ZoneInfo) -> dict[str, Any]:
    """A token as it is listed."""

    def local(time: datetime | None) -> str | None:
        return None if time is None else time.astimezone(zone).isoformat(timespec="seconds")

    return {
        "id": token.token_id, "name": token.name, "role": token.role.value,
        "fleets": None if token.fleets is None else list(token.fleets), "state": token.state(datetime.now(UTC)),
        "created_at": local(token.created_at), "created_by": token.created_by, "expires_at": local(token.expires_at),
        "last_used_at": local(token.last_used_at), "revoked_at": local(token.revoked_at),
    }  # fmt: skip


def _show_new(settings: Settings, token: Token, secret: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**told(token, zone_of(settings)), "token": secret}, ensure_ascii=False))
    else:
        print(secret)
        err.print(f"[bold]{escape(token.name)}[/bold]: keep it now, it is shown this once.", highlight=False)
    if settings.web.auth is not WebAuth.TOKEN:
        err.print("[yellow]web.auth is not token yet: the API does not ask for tokens.[/yellow]")


def _me() -> str:
    return f"cli:{getpass.getuser()}"


def _with(settings: Settings, work: Callable[[PostgresTokens], Awaitable[T]]) -> T:
    from services.store.access import PostgresTokens

    dsn = database(settings)

    async def run() -> T:
        desk = PostgresTokens(dsn)
        try:
            return await work(desk)
        finally:
            await desk.close()

    return asyncio.run(run())


# -- the audit log -------------------------------------------------------------------------------------
def audit(
    who: Annotated[str | None, typer.Option("--who", help="Only what this one did: a token's name, cli:USER.")] = None,
    since: Annotated[str | None, typer.Option("--from", help=f"At or after: {TIME_HELP}.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before; written as --from is.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was changed by whom, over the API and on the command line, newest first."""
    from services.store.access import PostgresAudit

    settings = Settings.read(config)
    zone = zone_of(settings)
    begin = moment(since, "--from", zone) if since is not None else None
    end = moment(until, "--to", zone) if until is not None else None
    dsn = database(settings)

    async def run() -> list[dict[str, Any]]:
        desk = PostgresAudit(dsn)
        try:
            return (await desk.entries(who=who, since=begin, until=end, before=None, limit=limit)).dicts()
        finally:
            await desk.close()

    rows = [{**row, "at": row["at"].astimezone(zone).isoformat(timespec="seconds")} for row in asyncio.run(run())]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    if not rows:
        out.print("nothing was changed")
        return
    table = Table(box=None, header_style="bold")
    for title in ("when", "who", "from", "what", "target", "change", "outcome"):
        table.add_column(title, no_wrap=title in ("when", "who"), overflow="fold")
    for row in rows:
        table.add_row(
            row["at"], *(escape(row[name] or "") for name in ("who", "origin", "action", "target", "change")),
            f"{row['outcome']} ({row['status']})" if row["status"] != 200 else row["outcome"],
        )  # fmt: skip
    out.print(table)
