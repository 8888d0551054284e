"""``nevstream fleet metrics|metric|series|report|offline|frequent-alarms|clusters|outlier-cells|verification``.

The fleet's figures over the HTTP API, as tables with what they are made of, or as JSON, CSV and files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from services.api_client import ask, ask_pages, fetch
from services.errors import UsageError
from services.terminal import ApiOption, JsonOption, out
from services.terminal_tables import (
    NOTHING,
    CsvOption,
    LimitOption,
    OutOption,
    digits_of,
    file_body,
    kind_of,
    moment_shown,
    most_rows,
    number,
    percent,
    show,
    shown,
    write,
)

app = typer.Typer(help="Figures of the whole fleet, and the vehicles to look after.", no_args_is_help=True)
report_app = typer.Typer(help="Reports that a maker owes.", no_args_is_help=True)
app.add_typer(report_app, name="report")

FILTERS: Final = ("model", "fleet", "region", "usage", "battery_supplier", "chemistry", "edition")


class Span(StrEnum):
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="NAME=VALUE", help=f"Only vehicles of this {', '.join(FILTERS)}; repeat for more."),
]
ByOption = Annotated[
    str | None, typer.Option("--by", help=f"Group by one or more, with commas between, of {', '.join(FILTERS)}.")
]
FromOption = Annotated[str | None, typer.Option("--from", help="First day, included: 2026-11-01.")]
ToOption = Annotated[str | None, typer.Option("--to", help="Last day, included. Default: today.")]
MetricArgument = Annotated[str, typer.Argument(metavar="ID", help="A1 to P1, see `nevstream fleet metrics`.")]


def _only(pairs: Sequence[str] | None) -> dict[str, str]:
    """Filters as the API takes them; one name given twice is either of both."""
    found: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or name not in FILTERS or not value:
            raise UsageError(f"--only {pair!r}: give NAME=VALUE, with a NAME of {', '.join(FILTERS)}")
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _file(api: str | None, path: str, file: Path | None, as_csv: bool, **query: Any) -> bool:
    """Have the API make the file, or the CSV; False: neither was asked for."""
    if file is not None:
        kind = kind_of(file)
        body, _ = fetch(api, path, format=kind, **query)
        write(file, body, path.removeprefix("/v1/"))
    elif as_csv:
        body, _ = fetch(api, path, format="csv", **query)
        sys.stdout.write(body.decode())
        sys.stdout.flush()
    return file is not None or as_csv


# -- metrics -------------------------------------------------------------------------------------------
@app.command()
def metrics(as_json: JsonOption = False, api: ApiOption = None) -> None:
    """List the metrics: definition, source, and how sure the definition is."""
    document = ask(api, "/v1/fleet/metrics")
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("id", "metric", "definition", "figures", "sure"):
        table.add_column(name, overflow="fold")
    for one in document["metrics"]:
        figures = ", ".join(f"{f['name']} {f['unit']}".strip() for f in one["figures"])
        table.add_row(
            *map(
                Text, (one["id"], one["name"], one["definition"], figures or (one["elsewhere"] or ""), one["certainty"])
            )
        )
    out.print(table)
    out.print(
        Text("[A] the text was read  [B] two sources agree  [C] one source  [D] common knowledge  [P] a convention"),
        style="dim",
    )


@app.command()
def metric(
    id: MetricArgument,  # noqa: A002 - as the API has it
    window: Annotated[Span | None, typer.Option("--window", "-w", help="Default: month, or what --at names.")] = None,
    at: Annotated[str | None, typer.Option("--at", help="2026, 2026-10, 2026-W41, 2026-10-05. Default: now.")] = None,
    since: FromOption = None,
    until: ToOption = None,
    by: ByOption = None,
    only: OnlyOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Show one metric in a window of time, of the fleet or by groups."""
    path = f"/v1/fleet/metrics/{id.strip().upper()}"
    query = {
        "window": window.value if window else None, "at": at, "from": since, "to": until, "by": by, **_only(only),
    }  # fmt: skip
    if _file(api, path, file, as_csv, **query):
        return
    document = ask(api, path, **query)
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return
    out.print(
        f"[bold]{document['id']} {escape(document['name'])}[/bold]  {_window(document['window'])}", highlight=False
    )
    out.print(Text(f"{document['definition']} {document['certainty']}"), style="dim")
    if document.get("elsewhere"):
        out.print(f"see {document['elsewhere']}", highlight=False)
        return
    _figures(document["figures"], document["by"])
    for row in document["figures"]:
        if row["histogram"]:
            _histogram(row, document["by"])
    if document.get("note"):
        out.print(Text(document["note"]), style="dim")
    _footer(document)


@app.command()
def series(
    id: MetricArgument,  # noqa: A002 - as the API has it
    per: Annotated[Span, typer.Option("--per", help="Length of a period.")] = Span.DAY,
    since: FromOption = None,
    until: ToOption = None,
    by: ByOption = None,
    only: OnlyOption = None,
    figure: Annotated[str | None, typer.Option("--figure", help="Only this one (default: every one).")] = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Show a metric period by period: a row a period, a column a figure."""
    query = {"metric": id.strip().upper(), "per": per.value, "from": since, "to": until, "by": by, **_only(only)}
    if _file(api, "/v1/fleet/series", file, as_csv, **query):
        return
    document = ask(api, "/v1/fleet/series", **query)
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return
    rows = document["figures"]
    names = list(dict.fromkeys(row["figure"] for row in rows))
    if figure is not None:
        if names and figure not in names:
            raise UsageError(f"--figure {figure!r} is not one of {', '.join(names)}")
        names = [figure]
    out.print(f"[bold]{document['id']} {escape(document['name'])}[/bold] per {per.value}", highlight=False)
    # of a single period the rows do not say which
    _pivoted([{"start": document["window"]["first_day"], **row} for row in rows], document["by"], names)
    _footer(document)


def _pivoted(rows: Sequence[Mapping[str, Any]], by: Sequence[str], names: Sequence[str]) -> None:
    """A row a period and group, a column a figure; under it each figure's course of a single group as a line."""
    units = {row["figure"]: row["unit"] for row in rows}
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("start", *by):
        table.add_column(name, vertical="bottom", no_wrap=True)
    for name in names:
        head = Text(_words(name, units.get(name, "")))
        head.append(f"\n{units.get(name, '')}", style="dim")
        table.add_column(head, justify="right", vertical="bottom")
    for name in ("vehicles", "coverage"):
        table.add_column(name, justify="right", vertical="bottom")
    grouped: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["start"], *(str(row[name]) for name in by)), {})[row["figure"]] = row
    digits = _digits({name: [f[name]["value"] for f in grouped.values() if name in f] for name in names})
    for key, figures in grouped.items():
        first = next(iter(figures.values()))
        values = [_value(figures[name]["value"], digits[name]) if name in figures else NOTHING for name in names]
        table.add_row(*map(Text, key), *values, number(first["vehicles"]), percent(first["coverage"]))
    if rows:
        show(table)
    else:
        out.print("no figure in these periods")
    if not by and len(grouped) > 2:
        for name in names:
            course = [figures[name]["value"] if name in figures else None for figures in grouped.values()]
            if any(value is not None for value in course):
                out.print(f"{sparkline(course)}  {_words(name, units[name])}", highlight=False)


_BARS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None]) -> str:
    """The course of values as a line of bars, from their least to their largest; a gap where one is not known."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    step = (high - low) / (len(_BARS) - 1)
    return "".join(
        " " if value is None else _BARS[round((value - low) / step)] if step else _BARS[0] for value in values
    )


def _figures(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> None:
    """A row a figure and group: value with median and p5 to p95, and what it is made of."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in (*by, "figure"):
        table.add_column(name, no_wrap=True)
    for name in ("value", "unit", "p5", "median", "p95", "of", "numerator", "denominator", "vehicles", "coverage", ""):
        table.add_column(name, justify="left" if name in ("unit", "of", "") else "right")
    for row in rows:
        if row["value"] is None and row["numerator"] is None and row["histogram"]:
            continue  # it is its histogram
        table.add_row(
            *(Text(str(row[name])) for name in by), Text(row["figure"]), _value(row["value"]), Text(row["unit"]),
            *(_value(row[name]) for name in ("p5", "median", "p95")), Text(row["quantiles_of"] or ""),
            *(_value(row[name]) for name in ("numerator", "denominator")), number(row["vehicles"]),
            percent(row["coverage"]), Text(row["certainty"]),
        )  # fmt: skip
    if table.row_count:
        show(table)


def _value(value: float | None, digits: int | None = None) -> str:
    return NOTHING if value is None else number(value, digits)


def _digits(columns: Mapping[str, Sequence[float | None]]) -> dict[str, int]:
    return {name: digits_of([value for value in values if value is not None]) for name, values in columns.items()}


_BAR_WIDTH: Final = 40
_HEAT: Final = " ░▒▓█"
_WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_BINS_SHOWN: Final = 40


def _histogram(row: Mapping[str, Any], by: Sequence[str]) -> None:
    """The distribution that a figure is: bars, or of hours and weekdays a map."""
    group = " ".join(str(row[name]) for name in by)
    out.print(f"\n[bold]{escape(row['figure'])}[/bold] {escape(group)}  {escape(row['text'])}", highlight=False)
    bins = row["histogram"]
    most = max((each["share"] or 0.0 for each in bins), default=0.0)
    if "weekday" in bins[0]:
        for day, name in enumerate(_WEEKDAYS, 1):
            shares = [each["share"] or 0.0 for each in bins if each["weekday"] == day]
            out.print(name + "  " + "".join(2 * _HEAT[round(share / most * 4) if most else 0] for share in shares))
        out.print("     " + "".join(f"{hour:<6}" for hour in range(0, 24, 3)) + f" most: {percent(most)}", style="dim")
        return
    table = Table.grid(padding=(0, 2))
    for each in sorted(bins, key=lambda one: -(one["share"] or 0.0))[:_BINS_SHOWN] if "name" in bins[0] else bins:
        if "name" in bins[0] and not each["count"]:
            continue
        bar = "█" * round(_BAR_WIDTH * (each["share"] or 0.0) / most) if most else ""
        table.add_row(Text(_label(each)), Text(number(each["count"]), justify="right"),
                      Text(percent(each["share"]), justify="right"), bar)  # fmt: skip
    out.print(table)


def _label(one: Mapping[str, Any]) -> str:
    if "from" in one:
        return f"{number(one['from'])} to {number(one['to'])}"
    return f"{one['name']} (level {one['level']})" if "level" in one else str(one["name"])


_UNIT_ENDINGS: Final = {
    "km": "_km", "kWh": "_kwh", "%": "_pct", "km/h": "_kmh", "min": "_min", "mV": "_mv", "kΩ": "_kohm", "Ah": "_ah",
    "kWh/100 km": "_kwh_per_100km", "W": "_w", "Ω/V": "_ohm_per_v", "km/d": "_km",
}  # fmt: skip


def _words(name: str, unit: str) -> str:
    return name.removesuffix(_UNIT_ENDINGS.get(unit, "")).replace("_", " ")


def _window(window: Mapping[str, Any]) -> str:
    goes_on = "" if window["over"] else ", goes on"
    if window["first_day"] == window["last_day"]:
        return f"{window['first_day']}{goes_on}"
    return f"{window['first_day']} to {window['last_day']}{goes_on}"


def _footer(document: Mapping[str, Any]) -> None:
    """When the figures were computed, up to when their data are, and whether days have changed since."""
    said = []
    if document.get("newest_data_time"):
        said.append(f"data up to {moment_shown(document['newest_data_time'])}")
    said.append(
        f"computed {moment_shown(document['computed_at'])}" if document.get("computed_at") else "not computed yet"
    )
    if document.get("days_changed_since"):
        said.append(f"{number(document['days_changed_since'])} days have changed since")
    if document.get("complete") is False:
        said.append(f"{number(document['groups'])} groups are more than an answer holds: add --only")
    out.print(escape(" · ".join(said)), style="dim", highlight=False, soft_wrap=True)


# -- the yearly report ---------------------------------------------------------------------------------
@report_app.command("year")
def report_year(
    year: Annotated[int | None, typer.Argument(help="Calendar year; default: the one before.")] = None,
    only: OnlyOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Show the seven figures of a maker's yearly report, from one call."""
    query = {"year": year, **_only(only)}
    if _file(api, "/v1/fleet/report/year", file, as_csv, **query):
        return
    document = ask(api, "/v1/fleet/report/year", **query)
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return
    out.print(f"[bold]{escape(document['title'])}[/bold]  {_window(document['window'])}", highlight=False)
    for section in document["sections"]:
        rows = [row for row in document["figures"] if row["section"] == section["section"]]
        out.print(f"\n[bold]{section['item']}. {escape(section['text'])}[/bold]", highlight=False)
        if section["by"]:
            _by_group(rows, section["by"])
        else:
            _figures([{**row, "figure": f"{row['metric']} {row['figure']}"} for row in rows], ())
            for row in rows:
                if row["histogram"]:
                    _histogram(row, ())
    for note in document["notes"]:
        out.print(Text(note), style="dim")
    _footer(document)


def _by_group(rows: Sequence[Mapping[str, Any]], by: str) -> None:
    """A row a group, a column a figure."""
    named = [{**row, "start": str(row["group"])} for row in rows if row["value"] is not None]
    names = list(dict.fromkeys(row["figure"] for row in named))
    if not named:
        out.print("nothing", style="dim")
        return
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(by, vertical="bottom", no_wrap=True)
    units = {row["figure"]: row["unit"] for row in named}
    for name in names:
        head = Text(_words(name, units[name]))
        head.append(f"\n{units[name]}", style="dim")
        table.add_column(head, justify="right", vertical="bottom")
    groups: dict[str, dict[str, float]] = {}
    for row in named:
        groups.setdefault(row["start"], {})[row["figure"]] = row["value"]
    digits = _digits({name: [values.get(name) for values in groups.values()] for name in names})
    for group, values in groups.items():
        table.add_row(Text(group), *(_value(values.get(name), digits[name]) for name in names))
    show(table)


# -- lists -----------------------------------------------------------------------------------------------
def _list(
    api: str | None,
    path: str,
    key: str,
    names: Mapping[str, str],
    query: Mapping[str, Any],
    *,
    nothing: str,
    limit: int | None,
    file: Path | None,
    as_csv: bool,
    as_json: bool,
) -> dict[str, Any] | None:
    """A list of the API, page by page, as a table of ``names`` (column: its unit); the document when it was shown."""
    if file is not None:
        kind_of(file)  # before anything is asked
    most = most_rows(limit, as_json=as_json, as_csv=as_csv, file=file)
    document = ask_pages(api, path, key, most, **query)
    rows = document[key]
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return None
    if file is not None or as_csv:
        body = _list_body("csv" if file is None else kind_of(file), document, key)
        if file is not None:
            write(file, body, f"{len(rows):,} rows")
        else:
            sys.stdout.write(body.decode())
            sys.stdout.flush()
        return None
    if not rows:
        out.print(nothing, highlight=False)
        return document
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    texts = {name: any(isinstance(row.get(name), (str, list)) for row in rows) for name in names}
    for name, unit in names.items():
        head = Text(_words(name, unit))
        if any(names.values()):
            head.append(f"\n{unit}", style="dim")
        table.add_column(head, justify="left" if texts[name] else "right", vertical="bottom", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(name, row.get(name), unit)) for name, unit in names.items()))
    show(table)
    if document["next"]:
        out.print("there is more: --limit, or --out FILE for all", style="dim", highlight=False)
    return document


def _cell(name: str, value: Any, unit: str) -> str:
    if isinstance(value, str) and name.endswith(("_at", "_time")):
        return moment_shown(value)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(f"{one['name']} × {number(one['episodes'])}" for one in value)
    if isinstance(value, list):
        return " ".join(map(str, value[:5])) + (" …" if len(value) > 5 else "")
    return shown(value, {"name": name, "kind": "text", "unit": unit})


def _list_body(kind: str, document: Mapping[str, Any], key: str) -> bytes:
    """The rows as a file; times and days are typed by their names."""
    from services.web.exports import shape_of

    about = {name: value for name, value in document.items() if name != key}
    if kind == "json":
        return json.dumps(document, ensure_ascii=False).encode()
    rows = [{name: _typed(name, value) for name, value in row.items()} for row in document[key]]
    columns = [column.described() for column in shape_of(rows)]
    return file_body(kind, columns, rows, about)


def _typed(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if name.endswith(("_at", "_time")):
        return datetime.fromisoformat(value)
    return date.fromisoformat(value) if name.endswith("_day") else value


_VEHICLE: Final = {"vin": "", "model": "", "fleet": "", "region": ""}


@app.command()
def offline(
    days: Annotated[int, typer.Option("--days", min=1, max=3660, help="Days without data.")] = 7,
    only: OnlyOption = None,
    limit: LimitOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """List vehicles that have not been heard of for long."""
    names = {**_VEHICLE, "newest_data_time": "", "last_received_at": "", "silent_days": "d", "ever_reported": ""}
    _list(
        api, "/v1/fleet/lists/offline", "vehicles", names, {"days": days, **_only(only)}, limit=limit, file=file,
        as_csv=as_csv, as_json=as_json, nothing=f"no vehicle has been silent for {days} days",
    )  # fmt: skip


@app.command("frequent-alarms")
def frequent_alarms(
    days: Annotated[int | None, typer.Option("--days", min=1, help="Days up to --to. Default: 7.")] = None,
    episodes: Annotated[int | None, typer.Option("--episodes", min=1, help="At least so many. Default: 10.")] = None,
    level: Annotated[int | None, typer.Option("--level", min=0, max=3, help="Of this level or above; 2.")] = None,
    until: ToOption = None,
    only: OnlyOption = None,
    limit: LimitOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """List vehicles with frequent alarms."""
    names = {**_VEHICLE, "episodes": "", "level_3": "", "first_at": "", "last_at": "", "alarms": ""}
    query = {"days": days, "episodes": episodes, "level": level, "to": until, **_only(only)}
    _list(
        api, "/v1/fleet/lists/frequent-alarms", "vehicles", names, query, limit=limit, file=file, as_csv=as_csv,
        as_json=as_json, nothing="no vehicle has frequent alarms",
    )  # fmt: skip


@app.command()
def clusters(
    vehicles: Annotated[int | None, typer.Option("--vehicles", min=2, help="At least so many. Default: 20.")] = None,
    size_m: Annotated[float | None, typer.Option("--size", min=10, help="Side of a cell, m. Default: 200.")] = None,
    days: Annotated[int | None, typer.Option("--days", min=1, help="Positions of so many days. Default: 30.")] = None,
    only: OnlyOption = None,
    limit: LimitOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """List places where many vehicles stand together."""
    names = {
        "cell": "", "vehicles": "", "latitude_deg": "°", "longitude_deg": "°", "with_alarm": "",
        "oldest_data_time": "", "newest_data_time": "", "vins": "",
    }  # fmt: skip
    query = {"vehicles": vehicles, "size_m": size_m, "days": days, **_only(only)}
    _list(
        api, "/v1/fleet/lists/clusters", "clusters", names, query, limit=limit, file=file, as_csv=as_csv,
        as_json=as_json, nothing="nowhere do so many vehicles stand together",
    )  # fmt: skip


@app.command("outlier-cells")
def outlier_cells(
    days: Annotated[int | None, typer.Option("--days", min=1, help="Days up to --to. Default: 30.")] = None,
    until: ToOption = None,
    only: OnlyOption = None,
    limit: LimitOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """List cells that stand out day after day."""
    names = {**_VEHICLE, "cell": "", "days": "", "deviation_mv": "mV", "first_day": "", "last_day": ""}
    _list(
        api, "/v1/fleet/lists/outlier-cells", "vehicles", names, {"days": days, "to": until, **_only(only)},
        limit=limit, file=file, as_csv=as_csv, as_json=as_json, nothing="no cell stands out",
    )  # fmt: skip


@app.command()
def verification(
    week: Annotated[
        str | None, typer.Argument(help="2026-W41, or any day of it; default: the one before this.")
    ] = None,
    only: OnlyOption = None,
    limit: LimitOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Show the weekly verification: pass rate, checks, and the vehicles that failed."""
    names = {**_VEHICLE, "failed_checks": "", "in_a_row": ""}
    document = _list(
        api, "/v1/fleet/verification", "vehicles", names, {"week": week, **_only(only)}, limit=limit, file=file,
        as_csv=as_csv, as_json=as_json, nothing="no vehicle has failed",
    )  # fmt: skip
    if document is None:
        return
    rate = NOTHING if document["pass_rate_pct"] is None else f"{document['pass_rate_pct']:.1f} %"
    out.print(
        f"{document['week']}: {rate} passed, {_value(document['passed'])} of {_value(document['checked'])} vehicles "
        f"{document['certainty']}", highlight=False, markup=False,
    )  # fmt: skip
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("check", "failed", "judged", "good share at least"):
        table.add_column(name, justify="left" if name == "check" else "right")
    for check in document["checks"]:
        table.add_row(
            check["name"], number(check["count"]), number(check["of"]), percent(check["good_share_min"])
        )  # fmt: skip
    out.print(table)
    _footer(document)
