"""``nevstream flaws``: which signals are not what they should be, by field, model, firmware or vehicle.

Works on the database directly, as ``nevstream dead-letters`` does.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from schemas.signals import INDEX
from services.errors import UsageError
from services.settings import Settings
from services.terminal import ConfigOption, JsonOption, database, err, out, zone_of


class By(StrEnum):
    SIGNAL = "signal"
    MODEL = "model"
    FIRMWARE = "firmware"
    VIN = "vin"


class FlawState(StrEnum):
    ABNORMAL = "abnormal"
    INVALID = "invalid"
    OUT_OF_RANGE = "out_of_range"
    SUSPECT = "suspect"
    RATE = "rate"


_DAY: Final = "a UTC day, such as 2026-11-24"


def flaws(
    by: Annotated[By, typer.Option("--by", "-b", help="Count by signal alone, or by this and signal.")] = By.SIGNAL,
    signal: Annotated[str | None, typer.Option("--signal", "-s", help="Only this signal.")] = None,
    state: Annotated[FlawState | None, typer.Option("--state", help="rate: moved faster than it can.")] = None,
    vin: Annotated[str | None, typer.Option("--vin", help="Only this vehicle.")] = None,
    since: Annotated[str | None, typer.Option("--from", help=f"First day: {_DAY}. Default: a week.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Last day, included. Default: today.")] = None,
    now: Annotated[bool, typer.Option("--now", help="Count the days that have changed first.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most lines.")] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Signals that are abnormal, invalid, out of range, contradicted or moved too fast, counted by day.

    The running pipeline counts every quarter of an hour (data_quality.count_every_s).
    """
    from schemas.seams import FlawFilter
    from services.store.flaws import FlawCounter
    from services.store.queries import Queries
    from services.web.answers import Json
    from services.web.data_quality import counted, days_given
    from services.web.parameters import Context, checked_vin
    from services.web.problems import ProblemError

    settings = Settings.read(config)
    try:
        first, last = days_given(since, until, datetime.now(UTC))
        if vin is not None:
            checked_vin(vin)
    except ProblemError as error:
        raise UsageError(str(error)) from None

    async def run() -> dict[str, Any]:
        dsn = database(settings)
        if now:
            counter = FlawCounter(dsn)
            try:
                await counter.count()
            finally:
                await counter.close()
        queries = Queries(dsn, connections_max=1, statement_timeout_s=60.0)
        try:
            context = Context(settings, queries, zone_of(settings), lambda: datetime.now(UTC))
            wanted = FlawFilter(first, last, signal, state.value if state else None, vin)
            return await counted(context, wanted, by.value, limit)
        finally:
            await queries.close()

    found = asyncio.run(run())
    if as_json:
        print(bytes(Json(found).body).decode())
        return
    keys = [name for name in (found["groups"] or [{}])[0] if name not in ("flaws", "vehicles")]
    table = Table(header_style="bold", title=f"{first} to {last}, {found['reports']:,} reports")
    for name in (*keys, "flaws", "vehicles", "of reports"):
        table.add_column(name, justify="left" if name in keys else "right")
    for row in found["groups"]:
        share = f"{100 * row['flaws'] / found['reports']:.3g} %" if found["reports"] else "–"
        words = [Text("–" if row[name] is None else str(row[name])) for name in keys]
        table.add_row(*words, f"{row['flaws']:,}", f"{row['vehicles']:,}", share)
    out.print(table)
    behind = [str(day["day"]) for day in found["days"] if day["changed_since"]]
    if behind:
        err.print(
            f"[yellow]{', '.join(behind)}: changed since they were counted; "
            "`nevstream flaws --now` counts again[/yellow]", highlight=False,
        )  # fmt: skip
    if signal is not None and signal not in INDEX and not found["groups"]:
        err.print(Text(f"{signal} is not in the catalogue; see `nevstream flaws` for what there is"))
