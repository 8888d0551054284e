"""Tables of the API as people read them on a terminal, and as files.

A column comes with its unit; numbers have thousands and few digits; what is not known is a dash, never 0. Under a table
stands how much of the time its data cover, up to when they tell, and what the registry lacks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from services.errors import UsageError
from services.terminal import out

NOTHING: Final = "–"
FILES: Final = (".csv", ".xlsx", ".parquet", ".json")
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="Write to a file: .csv, .xlsx, .parquet or .json."),
]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", "-n", min=1, max=1_000_000, help="Most rows (default: 50 on the terminal, else 100,000)."),
]
ROWS_SHOWN, ROWS_WRITTEN = 50, 100_000


# -- values ------------------------------------------------------------------------------------------
def number(value: float, digits: int | None = None) -> str:
    """Thousands, and as many digits as mean something: 12,345; 97.5; 3.14; 0.0042."""
    if digits is None:
        digits = digits_of([value])
    return f"{value:,.{digits}f}" if digits >= 0 else f"{value:.2g}"


def digits_of(values: Sequence[float]) -> int:
    """Digits after the point for all values of a column, by the largest; -1: two digits that mean something."""
    if all(float(value).is_integer() for value in values):
        return 0
    size = max(abs(value) for value in values)
    return next((digits for least, digits in ((1_000, 0), (10, 1), (1, 2), (0.01, 3)) if size >= least), -1)


def duration(seconds: float) -> str:
    """Hours and minutes, 1:03; under a minute in seconds, 42 s; from 100 h on in days, 4.2 d."""
    if 0 <= seconds < 60:
        return f"{number(round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02}" if minutes < 6_000 else f"{seconds / 86_400:.1f} d"


_SHARES: Final = ("coverage", "missing_rate", "ratio", "share", "_rate")
_TIMES: Final = ("time",)


def shown(value: Any, column: Mapping[str, str], digits: int | None = None) -> str:
    """A cell; ``digits`` as :func:`digits_of` has them for its column."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        name = column["name"]
        if name.endswith("_id"):
            return str(value)
        if column["unit"] == "s" and not name.startswith(("nominal", "gap_limit")):
            return duration(value)
        if column["unit"] in ("", "%") and name.endswith(_SHARES) and not name.endswith("_pct"):
            return percent(value)
        return f"{value:.5f}" if column["unit"] == "°" else number(value, digits)
    if column["kind"] in _TIMES and isinstance(value, str):
        return moment_shown(value)
    if isinstance(value, list):
        return " ".join(str(each) for each in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f} %"


def moment_shown(text: str | None) -> str:
    """A time of the API in the fleet's zone, without the offset and what is below a minute."""
    return NOTHING if text is None else text[:16].replace("T", " ")


_LEFT: Final = ("text", "date", "time", "json")


def table_of(
    columns: Sequence[Mapping[str, str]], rows: Iterable[Mapping[str, Any]], names: Sequence[str] | None = None
) -> Table:
    """A table of ``names`` (default: all columns): heads are the names' words over their unit."""
    known = {column["name"]: column for column in columns}
    chosen = [known[name] for name in names or known]
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in chosen:
        head = Text(_words(column))
        unit = "h:mm" if column["unit"] == "s" and not column["name"].startswith("nominal") else column["unit"]
        head.append(f"\n{unit}", style="dim")
        left = column["kind"] in _LEFT or column["kind"] == "bool"
        table.add_column(head, justify="left" if left else "right", no_wrap=column["kind"] != "json", vertical="bottom")
    listed = list(rows)
    digits = [digits_of(_numbers(listed, column["name"])) for column in chosen]
    for row in listed:
        table.add_row(*(Text(shown(row.get(c["name"]), c, d)) for c, d in zip(chosen, digits, strict=True)))
    return table


def _numbers(rows: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    found = (row.get(name) for row in rows)
    return [value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]


_ENDINGS: Final = (
    "_kwh_per_100km", "_mv_per_day", "_c_per_min", "_ohm_per_v", "_kmh", "_kwh", "_kohm", "_mohm", "_km", "_ah", "_kw",
    "_pct", "_deg", "_mv", "_at", "_s", "_v", "_a", "_c",
)  # fmt: skip


_WORDS: Final = {"kwh_per_100km": "consumption", "gross_kwh_per_100km": "gross"}


def _words(column: Mapping[str, str]) -> str:
    """A column's name as words, without the unit that it ends in."""
    name = column["name"]
    if name in _WORDS:
        return _WORDS[name]
    if column["unit"] or column["kind"] == "time":
        name = next((name.removesuffix(end) for end in _ENDINGS if name.endswith(end) and name != end[1:]), name)
    return name.replace("_", " ")


def show(table: Table) -> None:
    """Print a table, whole: one that is wider than the terminal goes beyond its edge rather than lose its figures."""
    wide = Measurement.get(out, out.options.update(max_width=_WIDEST), table).maximum
    if wide <= out.width:
        out.print(table)
        return
    Console(file=out.file, width=wide).print(table, crop=False)


_WIDEST: Final = 4_000


# -- what stands under a table -------------------------------------------------------------------------
def footer(document: Mapping[str, Any], more: bool = False) -> None:
    """Coverage, how new and how final the figures are, whether there is more, what the registry lacks."""
    said = []
    if document.get("coverage") is not None:
        said.append(f"coverage {percent(document['coverage'])}")
    newest = document.get("newest_data_time")
    said.append(f"data up to {moment_shown(newest)}" if newest else "no statistics yet")
    if document.get("settled_through"):
        said.append(f"final up to {moment_shown(document['settled_through'])} but for late data")
    if document.get("exempt"):
        said.append(str(document["exempt"]))
    if more:
        said.append("there is more: --limit, or --out FILE for all")
    out.print(escape(" · ".join(said)), style="dim", highlight=False, soft_wrap=True)
    for need in document.get("needs") or ():
        out.print(
            escape(f"{need['fact']} is not known: {'; '.join(need['for'])}. {need['how_to_fix']}"),
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip


# -- files -------------------------------------------------------------------------------------------
def kind_of(file: Path, kinds: Sequence[str] = FILES) -> str:
    """The format that a file's name asks for.  Raises ``UsageError``."""
    if file.suffix.lower() not in kinds:
        raise UsageError(f"--out {file}: its name says no format; end it in {', '.join(kinds)}")
    return file.suffix.lower().removeprefix(".")


def write(file: Path, body: bytes, what: str) -> None:
    try:
        file.write_bytes(body)
    except OSError as error:
        raise UsageError(f"--out {file}: {error.strerror}; give a file that can be written") from error
    out.print(f"{what} written to {file}", highlight=False, markup=False, soft_wrap=True)


def file_body(
    kind: str, columns: Sequence[Mapping[str, str]], rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> bytes:
    """Rows of the API as a file of ``kind`` (csv, xlsx, parquet, json), typed as their columns say."""
    from services.web.exports import Column, body_of

    if kind == "json":
        return json.dumps({**about, "rows": rows}, ensure_ascii=False).encode()
    shape = [Column(c["name"], c["kind"], c["unit"], c["text"]) for c in columns]
    values = [[_typed(row.get(column.name), column.kind) for row in rows] for column in shape]
    return body_of(kind, shape, values, _zone(about), about)


def _typed(value: Any, kind: str) -> Any:
    if value is None or not isinstance(value, str):
        return value
    if kind == "time":
        return datetime.fromisoformat(value)
    return date.fromisoformat(value) if kind == "date" else value


def _zone(about: Mapping[str, Any]) -> ZoneInfo:
    """The zone that the answer is in; of answers that do not say, the one of this machine's settings."""
    from services.settings import Settings
    from services.terminal import zone_of

    named = about.get("time_zone")
    return ZoneInfo(named) if named else zone_of(Settings.read())


def print_csv(columns: Sequence[Mapping[str, str]], rows: Sequence[Mapping[str, Any]]) -> None:
    sys.stdout.write(file_body("csv", columns, rows, {}).decode())
    sys.stdout.flush()


def deliver(
    document: Mapping[str, Any],
    key: str,
    columns: Sequence[Mapping[str, str]],
    *,
    as_json: bool,
    as_csv: bool,
    file: Path | None,
) -> bool:
    """Give ``document`` as JSON, CSV or a file when one of them was asked for; False: nothing was."""
    rows = document[key]
    if file is not None:
        about = {name: value for name, value in document.items() if name not in (key, "columns")}
        write(file, file_body(kind_of(file), columns, rows, about), f"{len(rows):,} rows")
    elif as_json:
        print(json.dumps(document, ensure_ascii=False))
    elif as_csv:
        print_csv(columns, rows)
    else:
        return False
    return True


def most_rows(limit: int | None, *, as_json: bool, as_csv: bool, file: Path | None) -> int:
    """How many rows to ask for: a screenful, or all that are written."""
    return limit or (ROWS_WRITTEN if as_json or as_csv or file is not None else ROWS_SHOWN)
