"""``nevstream dead-letters``: look at refused frames, put them into the journal again, export and prune them.

Works on the database directly, so that it works while the API is down, and says what it did.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from schemas.reasons import CODE
from services.errors import UsageError
from services.settings import Settings
from services.terminal import TIME_HELP, ConfigOption, JsonOption, database, err, moment, out, zone_of

if TYPE_CHECKING:
    from schemas.seams import LetterFilter, LetterId, Requeued
    from services.store.letters import Letters
    from services.store.queries import Queries
    from services.web.parameters import Context

T = TypeVar("T")

app = typer.Typer(help="Frames that could not become rows: why, and what to do about them.", no_args_is_help=True)

_PAGE: Final = 1_000
_BYTES_SHOWN: Final = 12  # of a long field, around the error when there is one


class By(StrEnum):
    REASON = "reason"
    VIN = "vin"
    MODEL = "model"
    FIRMWARE = "firmware"


class State(StrEnum):
    OPEN = "open"
    SETTLED = "settled"


class Form(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"
    RAW = "raw"


ReasonOption = Annotated[str | None, typer.Option("--reason", "-r", help="Only this reason, such as bad_bcc.")]
VinOption = Annotated[str | None, typer.Option("--vin", help="Only frames that claim this VIN.")]
FromOption = Annotated[str | None, typer.Option("--from", help=f"Arrived at or after: {TIME_HELP}.")]
ToOption = Annotated[str | None, typer.Option("--to", help="Arrived before; written as --from is.")]
StateOption = Annotated[
    State | None, typer.Option("--state", help="open: nothing was done about it. settled: requeued or replayed.")
]


def _filter(
    settings: Settings, reason: str | None, vin: str | None, since: str | None, until: str | None, state: State | None
) -> LetterFilter:
    from schemas.seams import LetterFilter

    if reason is not None and reason not in CODE:
        raise UsageError(f"--reason {reason!r} is not one of: {', '.join(CODE)}")
    zone = zone_of(settings)
    return LetterFilter(
        CODE[reason] if reason else None,
        vin,
        moment(since, "--from", zone) if since else None,
        moment(until, "--to", zone) if until else None,
        None if state is None else state is State.OPEN,
    )


def _id(text: str) -> LetterId:
    if not re.fullmatch(r"\d{1,9}-\d{1,18}-\d{1,9}", text, re.ASCII):
        raise UsageError(
            f"{text!r} is not the id of a dead letter: it looks like 3-1042-17; see `nevstream dead-letters list`"
        )
    partition, offset, position = map(int, text.split("-"))
    return partition, offset, position


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Queries, Context]]:
    from services.store.queries import Queries
    from services.web.parameters import Context

    queries = Queries(database(settings), connections_max=1, statement_timeout_s=60.0)
    try:
        yield queries, Context(settings, queries, zone_of(settings), lambda: datetime.now(UTC))
    finally:
        await queries.close()


def _with_letters(settings: Settings, work: Callable[[Letters], Awaitable[T]]) -> T:
    """Run ``work`` with the desk and the journal that it appends to."""
    from services.journal.choice import journal_of
    from services.store.letters import Letters

    async def run() -> T:
        dsn = database(settings)
        journal = journal_of(settings, dsn, "dead-letters")
        letters = Letters(dsn, journal, settings)
        try:
            await journal.open()
            return await work(letters)
        finally:
            await letters.close()
            await journal.close()

    return asyncio.run(run())


@app.command("list")
def list_letters(
    reason: ReasonOption = None,
    vin: VinOption = None,
    since: FromOption = None,
    until: ToOption = None,
    state: StateOption = None,
    by: Annotated[By | None, typer.Option("--by", help="Count them by reason, VIN, model or firmware.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, newest first, or count them (--by)."""
    from services.web.answers import Json
    from services.web.dead_letters import group, letter

    settings = Settings.read(config)
    wanted = _filter(settings, reason, vin, since, until, state)

    async def run() -> list[dict[str, Any]]:
        async with _opened(settings) as (queries, context):
            if by is not None:
                counts = await queries.dead_letter_counts(wanted, by=by.value, limit=limit)
                return [group(row, context) for row in counts.dicts()]
            table = await queries.dead_letter_page(wanted, after=None, limit=limit)
            return [letter(row, context) for row in table.dicts()]

    found = asyncio.run(run())
    if as_json:
        print(bytes(Json(found).body).decode())
        return
    if not found:
        out.print("no dead letter")
        return
    shown = (
        list(found[0]) if by else ["id", "received_at", "reason", "error_offset", "vin", "door", "peer", "frame_bytes"]
    )
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in [*shown, *([] if by else ["done"])]:
        table.add_column(
            {"error_offset": "at byte", "frame_bytes": "bytes", "received_at": "received"}.get(name, name),
            justify="right" if name in ("error_offset", "frame_bytes", "letters", "vehicles") else "left",
            no_wrap=True,
        )
    for one in found:
        done = "requeued" if one.get("requeued_at") else "replayed" if one.get("replayed_at") else ""
        table.add_row(*(escape(_text(one[name])) for name in shown), *([] if by else [done]))
    out.print(table)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return value.isoformat(" ", "seconds") if isinstance(value, datetime) else str(value)


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="partition-offset-position, as `list` prints it.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one: reason, remedy, where it came from, and its bytes with the error marked."""
    from services.web.answers import Json
    from services.web.dead_letters import annotated, letter, peer_of

    settings = Settings.read(config)
    key = _id(letter_id)

    async def run() -> tuple[dict[str, Any], bytes, bytes | None, list[dict[str, Any]]]:
        async with _opened(settings) as (queries, context):
            row = await queries.dead_letter(*key)
            if row is None:
                raise UsageError(f"there is no dead letter {letter_id}; see `nevstream dead-letters list`")
            frame = bytes(row["frame"])
            fields = annotated(frame, row["detail"], row["codec"])
            return (
                letter(row, context) | {"outcome": row["outcome"], "peer": peer_of(row)},
                frame,
                row["requeued_frame"],
                fields,
            )

    found, frame, edited, fields = asyncio.run(run())
    if as_json:
        hexed = {"frame_hex": frame.hex(), "requeued_frame_hex": bytes(edited).hex() if edited else None}
        print(bytes(Json(found | hexed | {"annotated": fields}).body).decode())
        return
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("reason", f"[bold red]{found['reason']}[/bold red] at byte {found['error_offset']}"),
        ("meaning", escape(found["meaning"])),
        ("remedy", escape(found["how_to_fix"])),
        *([("error", escape(found["error"]))] if found["error"] else []),
        ("received", _text(found["received_at"])),
        ("door", found["door"]),
        ("peer", escape(_text(found["peer"]))),
        ("client", escape(_text(found["client"]))),
        ("VIN claimed", escape(_text(found["vin"]))),
        ("frame", f"{len(frame)} bytes, {found['codec']}"),
        ("requeued", _requeue_told(found, edited)),
        ("replayed", _text(found["replayed_at"])),
    ):
        facts.add_row(f"[bold]{name}[/bold]", value)
    out.print(facts, highlight=False)
    if not fields:
        out.print(Text(frame[:512].hex(" ") + (" …" if len(frame) > 512 else "")))
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("offset", "bytes", "field", "value", "unit", "clause", ""):
        table.add_column(column, justify="right" if column in ("offset", "value") else "left", overflow="fold")
    for row in fields:
        mark = Text("◀ " if row["error"] else "", style="bold red") + Text(row["problem"], style="red")
        offset = Text(str(row["offset"]), style="bold red" if row["error"] else "")
        table.add_row(
            offset, _bytes(row, found["error_offset"]), Text(row["field"]), Text(row["value"]), row["unit"],
            row["clause"], mark,
        )  # fmt: skip
    out.print(table)
    if not any(row["error"] for row in fields):
        out.print(f"[red]◀ byte {found['error_offset']} lies beyond the frame's {len(frame)} bytes[/red]")


def _requeue_told(found: dict[str, Any], edited: bytes | None) -> str:
    if found["requeued_at"] is None:
        return "–"
    changed = ", with other bytes" if edited is not None else ""
    outcome = {
        "waiting": "the pipeline has not read it yet",
        "accepted": "accepted by the pipeline",
        "refused": f"refused again, as {found['requeued_as']}",
    }[found["outcome"]]
    return f"{_text(found['requeued_at'])} by {escape(found['requeued_by'])}{changed}: {outcome}"


def _bytes(row: dict[str, Any], detail: int) -> Text:
    """The field's bytes, a long one cut to those around the error, which is marked."""
    pairs = [row["hex"][i : i + 2] for i in range(0, len(row["hex"]), 2)]
    marked = detail - row["offset"] if row["error"] else -1
    first = max(0, min(marked - _BYTES_SHOWN // 2, len(pairs) - _BYTES_SHOWN)) if marked >= 0 else 0
    last = min(first + _BYTES_SHOWN, len(pairs))
    text = Text("… " if first else "")
    for at in range(first, last):
        text.append(pairs[at], style="bold white on red" if at == marked else "")
        text.append(" " if at + 1 < last else "")
    return text.append(" …" if last < len(pairs) else "")


@app.command()
def requeue(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Letters; none: those of a filter.")
    ] = None,
    reason: ReasonOption = None,
    vin: VinOption = None,
    since: FromOption = None,
    until: ToOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every open letter.")] = False,
    frame: Annotated[
        str | None,
        typer.Option("--frame", metavar="HEX", help="Put these bytes there instead (one ID); both are kept."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also what was requeued or replayed before (by ID).")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Most letters of a filter.")] = 100_000,
    by: Annotated[str | None, typer.Option("--by", help="Who does this (default: your user name).")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put letters into the journal again, with the arrival times they had.

    After a fix: a setting, a key, a decoder.  A filter takes the open ones, oldest first, and without a reason
    leaves out frames that were refused because of who sent them (foreign_vin, unknown_vin, not_logged_in).
    """
    settings = Settings.read(config)
    who = by or getpass.getuser()
    filtered = any((reason, vin, since, until))
    if bool(ids) + (filtered or everything) != 1:
        raise UsageError("say which: IDs, or a filter (--reason, --vin, --from, --to), or --all")
    edited = None
    if frame is not None:
        try:
            edited = bytes.fromhex(re.sub(r"[\s:]|^0x", "", frame))
        except ValueError as error:
            raise UsageError(f"--frame is not hex: {error}") from error
        if not ids or len(ids) != 1:
            raise UsageError("--frame replaces the bytes of one letter: give one ID")
    if again and not ids:
        raise UsageError("--again goes with IDs: a filter takes only open letters")
    keys = [_id(text) for text in ids or ()]

    async def work(letters: Letters) -> Requeued:
        if keys:
            return await letters.requeue(keys, by=who, frame=edited, again=again)
        return await letters.requeue_all(_filter(settings, reason, vin, since, until, None), by=who, limit=limit)

    done = _with_letters(settings, work)
    moved = {"-".join(map(str, key)): "-".join(map(str, place)) for key, place in done.frames.items()}
    skipped = {"-".join(map(str, key)): why for key, why in done.skipped.items()}
    if as_json:
        print(json.dumps({"requeued": moved, "skipped": skipped}))
    else:
        out.print(f"{len(moved)} requeued, {len(skipped)} skipped", highlight=False)
        for key, why in list(skipped.items())[:20]:
            err.print(f"  [yellow]{key}[/yellow]: {escape(why)}", highlight=False)
        if moved:
            first = next(iter(moved))
            out.print(f"what became of one: nevstream dead-letters show {first}", highlight=False)
    if keys and skipped:
        raise typer.Exit(1)


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="Where to (default: standard output).")] = None,
    form: Annotated[Form, typer.Option("--format", "-f", help="raw: frames back to back.")] = Form.JSONL,
    reason: ReasonOption = None,
    vin: VinOption = None,
    since: FromOption = None,
    until: ToOption = None,
    state: StateOption = None,
    config: ConfigOption = None,
) -> None:
    """Write letters with their bytes, oldest first, as JSON lines, CSV, or raw frames for `nevstream decode`."""
    from services.web.dead_letters import export_body, letter

    settings = Settings.read(config)
    wanted = _filter(settings, reason, vin, since, until, state)

    async def run(write: Callable[[bytes], Any]) -> int:
        count, after = 0, None
        async with _opened(settings) as (queries, context):
            while True:
                rows = (await queries.dead_letter_frames(wanted, after=after, limit=_PAGE)).dicts()
                page = [letter(row, context) for row in rows]
                write(export_body(page, [bytes(row["frame"]) for row in rows], form.value, head=count == 0))
                count += len(rows)
                if len(rows) < _PAGE:
                    return count
                last = rows[-1]
                after = (last["received_at"], last["partition"], last["offset"], last["position"])

    if file is None:
        asyncio.run(run(sys.stdout.buffer.write))
        sys.stdout.buffer.flush()
        return
    with file.open("wb") as target:
        count = asyncio.run(run(target.write))
    out.print(f"{count} dead letters written to {file}", highlight=False)


@app.command()
def prune(
    age_max_days: Annotated[int | None, typer.Option(min=0, help="Default: dead_letters.age_max_days.")] = None,
    rows_max: Annotated[int | None, typer.Option(min=0, help="Default: dead_letters.rows_max.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop letters that are too old or too many; the running pipeline does this by itself."""
    settings = Settings.read(config)
    days = settings.dead_letters.age_max_days if age_max_days is None else age_max_days
    most = settings.dead_letters.rows_max if rows_max is None else rows_max
    done = _with_letters(settings, lambda letters: letters.prune(days, most))
    if as_json:
        print(json.dumps({"age": done.age, "size": done.size, "kept": done.kept}))
        return
    out.print(
        f"dropped {done.age} older than {days} days and {done.size} beyond {most:,}; {done.kept} are kept",
        highlight=False,
    )
