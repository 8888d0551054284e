"""``nevstream doctor VIN``: why a vehicle is silent.  Asks the database directly, so that it works without the API."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.markup import escape

from services.errors import UsageError
from services.settings import Settings
from services.terminal import ConfigOption, JsonOption, database, out, zone_of

_COLOURS = {"ok": "green", "info": "dim", "warning": "yellow", "error": "bold red"}


def doctor(
    vin: Annotated[str, typer.Argument(help="The vehicle, as it names itself.")],
    evidence: Annotated[bool, typer.Option("--evidence", "-e", help="Values and times under every finding.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a vehicle is silent, in plain sentences, the most likely cause first.

    Exit code 1 when the worst finding is an error.
    """
    from services.store.queries import Queries
    from services.web.answers import Json
    from services.web.diagnosis import document
    from services.web.doctor import diagnose
    from services.web.parameters import Context, checked_vin
    from services.web.problems import ProblemError

    settings = Settings.read(config)
    try:
        checked_vin(vin)
    except ProblemError as error:
        raise UsageError(f"{vin!r} is not a vehicle identification: 1 to 17 printable ASCII characters") from error

    async def run() -> dict[str, Any]:
        queries = Queries(database(settings), connections_max=1, statement_timeout_s=60.0)
        now = datetime.now(UTC)
        try:
            facts = await queries.diagnosis(vin, now=now)
        finally:
            await queries.close()
        context = Context(settings, queries, zone_of(settings), lambda: now)
        return document(vin, diagnose(vin, facts, settings, now), context)

    found = asyncio.run(run())
    if as_json:
        print(bytes(Json(found).body).decode())
    else:
        for number, finding in enumerate(found["findings"]):
            colour = _COLOURS[finding["severity"]]
            out.print(f"[{colour}]{finding['severity']:7}[/{colour}] {escape(finding['sentence'])}", highlight=False)
            if finding["to_do"] != "Nothing.":
                out.print(f"        → {escape(finding['to_do'])}", highlight=False)
            if evidence:
                for name, value in finding["evidence"].items():
                    shown = value.isoformat(" ", "seconds") if isinstance(value, datetime) else value
                    out.print(f"          {name}: {escape(str(shown))}", highlight=False, style="dim")
            if number == 0:
                out.print()
    if found["severity"] == "error":
        raise typer.Exit(1)
