"""``nevstream replay``: decode the journal again, show what would be stored otherwise, and on request store it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.errors import UsageError
from services.settings import Settings
from services.terminal import TIME_HELP, ConfigOption, JsonOption, database, err, moment, out, zone_of

if TYPE_CHECKING:
    from services.replaying import Replayed

_BYTES_SHOWN: Final = 16


def replay(
    since: Annotated[str, typer.Option("--from", help=f"Frames that arrived at or after: {TIME_HELP}.")],
    until: Annotated[str | None, typer.Option("--to", help="Arrived before (default: now).")] = None,
    vin: Annotated[str | None, typer.Option("--vin", help="Only this vehicle.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show what is different; writes nothing (the default).")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Rewrite the rows, one transaction per UTC day.")] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="With --apply: remove rows that moved or no longer decode.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode the journal's frames with the code and settings of now, and compare with what is stored.

    Values may change, dead letters may become rows, rows may no longer decode.  Exit code 1 from
    --diff when something is different.
    """
    if apply and diff:
        raise UsageError("--diff writes nothing and --apply writes: give one of them")
    if delete and not apply:
        raise UsageError("--delete goes with --apply")
    settings = Settings.read(config)
    zone = zone_of(settings)
    start = moment(since, "--from", zone)
    end = moment(until, "--to", zone) if until is not None else datetime.now(UTC)
    if start >= end:
        raise UsageError(f"--from {start.isoformat()} is not before --to {end.isoformat()}")
    if vin is not None and not (vin.isascii() and 1 <= len(vin) <= 17):
        raise UsageError(f"--vin {vin!r} is not a VIN: 1 to 17 ASCII characters")
    from services.replaying import replay as run

    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True,
        disable=as_json or not err.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("beginning", total=1.0)
        result = asyncio.run(
            run(
                settings, database(settings), start, end, vin=vin, apply=apply, delete=delete,
                progress=lambda what, share: bar.update(task, description=what, completed=share),
            )
        )  # fmt: skip
    assert result.diff is not None
    if as_json:
        print(json.dumps(as_document(result), ensure_ascii=False))
    else:
        _print(result, apply=apply, delete=delete)
    if not apply and not result.diff.same:
        raise typer.Exit(1)


def _value(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).hex()
    return value.isoformat() if isinstance(value, (datetime, date)) else value


def as_document(result: Replayed) -> dict[str, Any]:
    """The result as JSON values."""
    from schemas.reasons import reason_name

    diff = result.diff
    assert diff is not None
    names = ("decoded", "compared", "changed", "from_letters", "moved", "restored", "gone")
    return {
        "from": result.since.isoformat(),
        "to": result.until.isoformat(),
        "vin": result.vin,
        "frames": result.frames,
        "refused": result.refused,
        "unreadable": result.unreadable,
        "damaged_records": result.damaged,
        "rows": {name: getattr(diff, name) for name in names},
        "letters": [
            {"reason": reason_name(code), "become": what, "letters": n} for (code, what), n in diff.letters.items()
        ],
        "fields": [
            {
                "field": one.field, "changed": one.changed, "new": one.new, "gone": one.gone,
                "examples": [
                    {"vin": vin, "time": time.isoformat(), "old": _value(old), "new": _value(new)}
                    for vin, time, old, new in one.examples
                ],
            }
            for one in diff.fields
        ],
        "applied": [
            {
                "day": day.day.isoformat(), "updated": day.updated, "inserted": day.inserted, "deleted": day.deleted,
                "letters": day.letters, "duplicates": day.duplicates, "conflicts": day.conflicts,
            }
            for day in result.applied
        ],
    }  # fmt: skip


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    text = str(_value(value))
    return text if len(text) <= 2 * _BYTES_SHOWN else text[: 2 * _BYTES_SHOWN] + "…"


def _print(result: Replayed, *, apply: bool, delete: bool) -> None:
    from schemas.reasons import reason_name

    diff = result.diff
    assert diff is not None
    out.print(
        f"{result.frames:,} frames make {diff.decoded:,} rows; {diff.compared:,} are stored from the same frame, "
        f"[bold]{diff.changed:,}[/bold] of them differ",
        highlight=False,
    )
    for n, what in (
        (diff.restored, "rows are not stored at all"),
        (diff.moved, "rows are stored under another time, kind or part" + ("" if delete else " (moved by --delete)")),
        (diff.gone, "rows come from frames that are refused now" + ("" if delete else " (removed by --delete)")),
        (result.damaged, "journal records cannot be read"),
    ):
        if n:
            out.print(f"[yellow]{n:,}[/yellow] {what}", highlight=False)
    for (code, what), n in diff.letters.items():
        out.print(f"[green]{n:,}[/green] dead letters ({reason_name(code)}) can be read: {what}", highlight=False)
    if diff.fields:
        table = Table(header_style="bold", box=None, pad_edge=False)
        for column in ("field", "changed", "new", "gone", "for example", "time", "stored", "now"):
            table.add_column(column, justify="right" if column in ("changed", "new", "gone") else "left")
        for one in diff.fields:
            for number, (vin, time, old, new) in enumerate(one.examples):
                head = (one.field, f"{one.changed:,}", f"{one.new:,}", f"{one.gone:,}") if not number else ("",) * 4
                table.add_row(*head, escape(vin), time.isoformat(" ", "seconds"), _shown(old), _shown(new))
        out.print(table, highlight=False)
    for day in result.applied:
        out.print(
            f"{day.day}: {day.updated:,} rows rewritten, {day.inserted:,} inserted, {day.deleted:,} deleted, "
            f"{day.letters:,} dead letters read",
            highlight=False,
        )
    if diff.same:
        out.print("nothing is different")
    elif not apply:
        out.print("nothing was written; --apply rewrites it")
