"""``nevstream statistics``: how far the statistics are behind, and computing them again.

Works on the database directly, as ``nevstream flaws`` does.  A rebuild only tells the running system that everything
has changed: what comes out as it was is not written.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from services.errors import UsageError
from services.settings import Settings
from services.terminal import ConfigOption, JsonOption, database, out, zone_of

app = typer.Typer(help="How far the statistics are; computing them again.", no_args_is_help=True)


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What waits for the statistics, and what they tell of."""
    from services.store.statistics import PostgresStatistics

    settings = Settings.read(config)
    store = PostgresStatistics(database(settings), settings)
    try:
        found = store.status()
    finally:
        store.close()
    if as_json:
        print(json.dumps(found, default=lambda value: value.isoformat()))
        return
    zone = zone_of(settings)
    newest: datetime | None = found["newest_at"]
    lines: list[tuple[str, Any]] = [
        ("changes waiting", f"{found['changes']:,} ({found['urgent']:,} urgent)"),
        ("the oldest of them", "–" if found["oldest_s"] is None else f"{found['oldest_s']:.0f} s ago"),
        ("vehicles with statistics", f"{found['vehicles']:,}"),
        ("newest record told of", "–" if newest is None else newest.astimezone(zone).isoformat(" ", "seconds")),
        ("days", "–" if found["first_day"] is None else f"{found['first_day']} to {found['last_day']}"),
    ]
    if found["layouts"] > 1:
        lines.append(("being computed again", "some are still of an earlier version"))
    table = Table.grid(padding=(0, 2))
    for name, value in lines:
        table.add_row(name, str(value))
    out.print(table, highlight=False)


@app.command()
def rebuild(
    vin: Annotated[str | None, typer.Option("--vin", help="Only this vehicle; default: all.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="First local day, such as 2026-11-24; default: the vehicle's first.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute statistics again from telemetry; the running system does it, the newest data in between."""
    from schemas.statistics.work import FIRST_S
    from services.store.statistics import PostgresStatistics

    settings = Settings.read(config)
    from_s = FIRST_S
    if since is not None:
        try:
            day = date.fromisoformat(since)
        except ValueError:
            raise UsageError(f"--from {since!r} is not a day: give it as 2026-11-24") from None
        from_s = max(FIRST_S, int(datetime(day.year, day.month, day.day, tzinfo=zone_of(settings)).timestamp()))
        if from_s > datetime.now(UTC).timestamp():
            raise UsageError(f"--from {since} has not come yet")
    store = PostgresStatistics(database(settings), settings)
    try:
        vehicles = store.rebuild(vin, from_s)
    finally:
        store.close()
    if vin is not None and not vehicles:
        raise UsageError(f"no report of {vin} is stored; `nevstream vehicles list` shows those that have some")
    if as_json:
        print(json.dumps({"vehicles": vehicles}))
        return
    out.print(
        f"{vehicles:,} vehicle{'s' * (vehicles != 1)} to be computed again: see `nevstream statistics status`",
        highlight=False,
    )
