"""``nevstream signals``: check a signals file before it is used, and list what can be asked of the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from services.errors import UsageError
from services.settings import Settings
from services.terminal import ConfigOption, JsonOption, out

if TYPE_CHECKING:
    from schemas.custom.model import BlockRule, CanRule, SignalsFile

app = typer.Typer(help="Signals of your own: custom blocks, CAN frames, JSON fields.", no_args_is_help=True)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A signals file (TOML).")], as_json: JsonOption = False) -> None:
    """Read a signals file and the DBC files that it names; every mistake with its line, its column and what to do."""
    from schemas.custom.load import load
    from schemas.custom.model import SignalsFileError

    try:
        loaded = load(file)
    except SignalsFileError as error:
        if as_json:
            mistakes = [
                {"file": m.file or error.path, "line": m.line, "column": m.column, "text": m.text}
                for m in error.mistakes
            ]
            typer.echo(json.dumps({"file": str(file), "mistakes": mistakes}, ensure_ascii=False))
            raise typer.Exit(UsageError.exit_code) from None
        typer.echo(str(error), err=True)  # as compilers print it: a line each, not wrapped, for editors to jump from
        raise typer.Exit(UsageError.exit_code) from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; give the path of a signals file") from error
    if as_json:
        typer.echo(json.dumps({"file": str(file), "mistakes": [], "signals": len(loaded.signals)}))
        return
    parts = [f"{len(loaded.signals)} signals"]
    rules: list[BlockRule | CanRule] = [*loaded.blocks, *loaded.can]
    parts += [f"block 0x{rule.match.block:02X} ({rule.name})" for rule in rules]
    if loaded.json:
        parts.append(f"{len(loaded.json)} JSON fields")
    out.print(f"{file}: good: {', '.join(parts)}", highlight=False, markup=False, soft_wrap=True)


@app.command("list")
def list_signals(
    file: Annotated[
        Path | None, typer.Argument(help="A signals file (default: pipeline.signals_file of the settings).")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Names, units and sources: of a signals file when there is one, and without FILE those of the standard as well."""
    from services.own_signals import signals_of

    if file is not None and not file.exists():
        raise UsageError(f"{file}: no such file; give the path of a signals file")
    loaded = signals_of(file if file is not None else Settings.read(config).pipeline.signals_file)
    found = ([] if file is not None else _catalogue()) + (_own(loaded) if loaded else [])
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "unit", "range", "from", "text"):
        table.add_column(column, overflow="fold")
    for each in found:
        bounds = "" if each["range"] is None else f"{each['range'][0]:g} to {each['range'][1]:g}"
        words = ", ".join(f"{code} {word}" for code, word in each["codes"].items())
        text = each["text"] or words
        table.add_row(each["name"], each["unit"], bounds, escape(each["source"]), escape(text))
    out.print(table)


def _catalogue() -> list[dict[str, Any]]:
    from schemas.signals import SIGNALS

    return [
        {"name": s.name, "unit": s.unit, "range": None, "source": "GB/T 32960", "text": s.text, "codes": {}}
        for s in SIGNALS
    ]


def _own(file: SignalsFile) -> list[dict[str, Any]]:
    return [
        {
            "name": signal.name,
            "unit": signal.unit,
            "range": None if signal.low is None or signal.high is None else [float(signal.low), float(signal.high)],
            "source": signal.source,
            "text": signal.text,
            "codes": {str(code): word for code, word in signal.codes.items()},
        }
        for signal in file.signals.values()
    ]
