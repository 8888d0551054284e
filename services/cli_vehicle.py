"""``nevstream vehicles trips|charges|battery|completeness|days|timeline|track|curve VIN``: one vehicle's statistics.

Asks the HTTP API; a table on the terminal, JSON, CSV, or a file whose name says its format.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.text import Text

from services.api_client import ask, ask_pages, fetch
from services.errors import UsageError
from services.settings import Settings
from services.terminal import TIME_HELP, ApiOption, JsonOption, moment, out, zone_of
from services.terminal_tables import (
    FILES,
    NOTHING,
    CsvOption,
    LimitOption,
    OutOption,
    deliver,
    duration,
    file_body,
    footer,
    kind_of,
    moment_shown,
    most_rows,
    number,
    percent,
    print_csv,
    show,
    table_of,
    write,
)

VinArgument = Annotated[str, typer.Argument(help="The vehicle, as it names itself.")]
FromOption = Annotated[str | None, typer.Option("--from", help=f"Started at or after: {TIME_HELP}. Default: 30 days.")]
ToOption = Annotated[str | None, typer.Option("--to", help="Started before; written as --from is.")]
DAY_HELP: Final = "a local day, 2026-11-24, or so many days ago: 30d"
FromDayOption = Annotated[str | None, typer.Option("--from", help=f"First day: {DAY_HELP}.")]
ToDayOption = Annotated[str | None, typer.Option("--to", help="Last day, included. Default: today.")]
_DAYS_AGO: Final = re.compile(r"(\d{1,5})d", re.ASCII)


def _path(vin: str, what: str) -> str:
    return f"/v1/vehicles/{urllib.parse.quote(vin, safe='')}/{what}"


def _moments(since: str | None, until: str | None) -> dict[str, str | None]:
    zone = zone_of(Settings.read())
    return {
        name: None if text is None else moment(text, f"--{name}", zone).isoformat()
        for name, text in (("from", since), ("to", until))
    }


def _day(text: str | None, option: str) -> str | None:
    """A day that somebody typed, as the API takes it."""
    if text is None:
        return None
    if ago := _DAYS_AGO.fullmatch(text.strip()):
        return (datetime.now(UTC).astimezone(zone_of(Settings.read())).date() - timedelta(days=int(ago[1]))).isoformat()
    try:
        return date.fromisoformat(text.strip()).isoformat()
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a day: give {DAY_HELP}") from None


# -- sessions ------------------------------------------------------------------------------------------
_TRIP: Final = (
    "trip_id", "start_at", "duration_s", "distance_km", "mean_speed_kmh", "speed_max_kmh", "kwh_per_100km",
    "gross_kwh_per_100km", "start_soc_pct", "end_soc_pct", "coverage", "energy_check", "end_cause",
)  # fmt: skip
_CHARGE: Final = (
    "charge_id", "start_at", "duration_s", "start_soc_pct", "end_soc_pct", "energy_kwh", "charge_ah", "mean_power_kw",
    "max_power_kw", "speed", "deep", "max_temp_c", "capacity_ah", "coverage", "end_cause",
)  # fmt: skip


def trips(
    vin: VinArgument,
    since: FromOption = None,
    until: ToOption = None,
    limit: LimitOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """List a vehicle's trips: distance, speed, consumption, SOC, and how sure they are."""
    _sessions(api, vin, "trips", _TRIP, _moments(since, until), limit, file, as_csv, as_json)


def charges(
    vin: VinArgument,
    since: FromOption = None,
    until: ToOption = None,
    limit: LimitOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """List a vehicle's charges: energy, power, fast or slow, SOC, capacity where one can be told."""
    _sessions(api, vin, "charges", _CHARGE, _moments(since, until), limit, file, as_csv, as_json)


def _sessions(
    api: str | None,
    vin: str,
    key: str,
    names: Sequence[str],
    query: Mapping[str, Any],
    limit: int | None,
    file: Path | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    if file is not None:
        kind_of(file)  # before anything is asked
    most = most_rows(limit, as_json=as_json, as_csv=as_csv, file=file)
    document = ask_pages(api, _path(vin, key), key, most, **query)
    if deliver(document, key, document["columns"], as_json=as_json, as_csv=as_csv, file=file):
        return
    rows = document[key]
    if not rows:
        out.print(f"no {key} of {escape(vin)} from {moment_shown(document['from'])} to {moment_shown(document['to'])}")
    else:
        show(table_of(document["columns"], [_marked(row) for row in rows], names))
    footer(document, more=document["next"] is not None)


def _marked(row: Mapping[str, Any]) -> dict[str, Any]:
    """An open session says so where a settled one has what ended it."""
    return {**row, "end_cause": "in progress" if row["in_progress"] else row["end_cause"]}


TrackOutOption = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FILE", help="Its name says the format: .gpx, .geojson, .csv, .xlsx, .parquet, "
                 ".json."),
]  # fmt: skip
StepOption = Annotated[
    int | None, typer.Option("--step", min=1, max=3600, help="At most one point in so many seconds.")
]


def track(
    vin: VinArgument,
    trip: Annotated[int, typer.Argument(help="A trip_id, see `nevstream vehicles trips`.")],
    file: TrackOutOption,
    step: StepOption = None,
    api: ApiOption = None,
) -> None:
    """Write the way of a trip to a file: GPX or GeoJSON for maps, or a table."""
    kind = kind_of(file, (".gpx", ".geojson", *FILES))
    body, _ = fetch(api, _path(vin, f"trips/{trip}/track"), format=kind, step_s=step)
    write(file, body, f"the way of trip {trip}")


def curve(
    vin: VinArgument,
    charge: Annotated[int, typer.Argument(help="A charge_id, see `nevstream vehicles charges`.")],
    step: Annotated[
        int | None, typer.Option("--step", min=1, max=3600, help="At most one point in so many seconds.")
    ] = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Show the course of a charge: power, SOC, temperature, voltage, current over time."""
    document = ask(api, _path(vin, f"charges/{charge}/curve"), step_s=step)
    if deliver(document, "points", document["columns"], as_json=as_json, as_csv=as_csv, file=file):
        return
    points = document["points"]
    every = -(-len(points) // 50)  # a screenful
    names = ("time", "elapsed_s", "power_kw", "soc_pct", "temp_max_c", "total_voltage_v", "total_current_a")
    show(table_of(document["columns"], points[::every] if points else (), names))
    footer(document, more=every > 1)


# -- days ----------------------------------------------------------------------------------------------
def days(
    vin: VinArgument,
    since: FromDayOption = None,
    until: ToDayOption = None,
    fields: Annotated[
        str | None, typer.Option("--fields", help="Measures with commas between, or all; see /v1/measures.")
    ] = None,
    hours: Annotated[bool, typer.Option("--hours", help="By hour.")] = False,
    limit: LimitOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Show what is kept of a vehicle per local day, or per hour."""
    key = "hours" if hours else "days"
    most = most_rows(limit, as_json=as_json, as_csv=as_csv, file=file)
    last = _day(until, "--to")
    if hours and last is not None:  # ranges of hours are half-open, and a last day is included
        last = (date.fromisoformat(last) + timedelta(days=1)).isoformat()
    query = {"from": _day(since, "--from"), "to": last, "fields": fields}
    document = ask_pages(api, _path(vin, key), key, most, **query)
    if deliver(document, key, document["columns"], as_json=as_json, as_csv=as_csv, file=file):
        return
    rows = document[key]
    known = [column["name"] for column in document["columns"]]
    if rows:
        show(table_of(document["columns"], rows, known if fields else [name for name in _DAY if name in known]))
    else:
        out.print(f"no {key} of {escape(vin)} in this range")
    footer(document, more=document["next"] is not None)


_DAY: Final = (
    "day", "hour", "settled", "coverage", "missing_rate", "distance_km", "driving_s", "charging_s", "parked_s",
    "kwh_per_100km", "charge_kwh", "soc_min_pct", "soc_max_pct", "temp_max_c", "alarm_level_max",
)  # fmt: skip
_LEDGER: Final = (
    "day", "hour", "state", "expected", "received", "missing_rate", "missing_s", "coverage", "gap_max_s", "reissued",
    "late", "duplicates", "nominal_s",
)  # fmt: skip


def completeness(
    vin: VinArgument,
    since: FromDayOption = None,
    until: ToDayOption = None,
    hours: Annotated[bool, typer.Option("--hours", help="By hour.")] = False,
    limit: LimitOption = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Show what came of a vehicle's data and what is missing, by day or hour."""
    key = "hours" if hours else "days"
    most = most_rows(limit, as_json=as_json, as_csv=as_csv, file=file)
    query = {"from": _day(since, "--from"), "to": _day(until, "--to"), "by": key.removesuffix("s")}
    document = ask_pages(api, _path(vin, "completeness"), key, most, **query)
    if deliver(document, key, document["columns"], as_json=as_json, as_csv=as_csv, file=file):
        return
    rows, total = document[key], document["total"]
    known = {column["name"] for column in document["columns"]}
    if not rows:
        out.print(f"no data of {escape(vin)} in this range")
    else:
        show(table_of(document["columns"], rows, [name for name in _LEDGER if name in known]))
        expected = NOTHING if total["expected"] is None else number(round(total["expected"]))
        out.print(
            f"received {number(total['received'])} of {expected} expected, missing {percent(total['missing_rate'])}, "
            f"reissued {percent(total['reissued_rate'])}, late {percent(total['late_rate'])}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    footer(document, more=document["next"] is not None)


_STYLES: Final = {"driving": "green", "charging": "yellow", "parked": "blue", "gap": "red", "pending": "magenta"}
_BAR: Final = 96  # characters of a day: a quarter of an hour each


def timeline(
    vin: VinArgument,
    day: Annotated[str | None, typer.Argument(help=f"{DAY_HELP}; default: today.")] = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Show a vehicle's day end to end: driving, charging, parked, and gaps without data."""
    document = ask(api, _path(vin, "timeline"), day=_day(day, "DAY"))
    if deliver(document, "segments", document["columns"], as_json=as_json, as_csv=as_csv, file=file):
        return
    out.print(_bar(document))
    out.print(Text("".join(f"{hour:<{_BAR // 8}}" for hour in range(0, 24, 3)), style="dim"))
    show(table_of(document["columns"], document["segments"]))
    spent = ", ".join(f"{state} {duration(seconds)}" for state, seconds in document["seconds"].items())
    out.print(f"{document['day']}: {spent}", highlight=False, soft_wrap=True)
    footer(document)


def _bar(document: Mapping[str, Any]) -> Text:
    """The day as a line of blocks, each in the colour of the state that holds in its middle."""
    begin = datetime.fromisoformat(document["begins_at"])
    segments = [
        (datetime.fromisoformat(s["start_at"]), datetime.fromisoformat(s["end_at"]), s["state"])
        for s in document["segments"]
    ]
    bar = Text()
    for block in range(_BAR):
        middle = begin + timedelta(days=(block + 0.5) / _BAR)
        state = next((state for start, end, state in segments if start <= middle < end), None)
        bar.append("█" if state else " ", style=_STYLES.get(state or "", ""))
    return bar


# -- battery -------------------------------------------------------------------------------------------
def battery(
    vin: VinArgument,
    since: FromDayOption = None,
    until: ToDayOption = None,
    table: Annotated[
        str | None,
        typer.Option("--table", help="Only this one: capacity, spread, outliers, resistance, self_discharge, "
                     "insulation; files and CSV hold one (default: capacity)."),
    ] = None,
    file: OutOption = None,
    as_csv: CsvOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:  # fmt: skip
    """Show a vehicle's battery: capacity and health, cycles, cells, resistance, insulation."""
    kind = kind_of(file) if file is not None else None
    document = ask(
        api, _path(vin, "battery"), table=table, **{"from": _day(since, "--from"), "to": _day(until, "--to")}
    )
    chosen = table or "capacity"
    columns, rows = document["columns"][chosen], _rows(document, chosen)
    if file is not None and kind is not None:
        about = {name: value for name, value in document.items() if name not in document["columns"]}
        body = json.dumps(document, ensure_ascii=False).encode() if kind == "json" else None
        write(file, body or file_body(kind, columns, rows, about), f"{len(rows)} rows of {chosen}")
    elif as_json:
        print(json.dumps(document, ensure_ascii=False))
    elif as_csv:
        print_csv(columns, rows)
    elif table is not None:
        if rows:
            show(table_of(columns, rows))
        else:
            out.print(f"nothing of {chosen}")
        footer(document)
    else:
        _battery(document)


def _rows(document: Mapping[str, Any], table: str) -> list[dict[str, Any]]:
    part = document[table]
    found: list[dict[str, Any]] = part if isinstance(part, list) else part["months" if table == "capacity" else "days"]
    return found


def _battery(document: Mapping[str, Any]) -> None:
    soh, cycles, insulation = document["soh"], document["cycles"], document["insulation"]
    line = document["capacity"]["line"]
    said = []
    if soh["soh_pct"] is None:
        said.append(("health", f"{NOTHING}  {soh['why_not']}"))
    else:
        error = "" if soh["error_pct"] is None else f" ± {number(soh['error_pct'], 1)}"
        text = f"{number(soh['soh_pct'], 1)}{error} % of {number(soh['reference_ah'])} Ah ({soh['method']}), "
        text += f"{soh['charges']} charges of {soh['month'][:7]}; an indicator, not a warranty figure"
        said.append(("health", text))
    if line is not None:
        bounds = ""
        if line["slope_low"] is not None and line["slope_high"] is not None:
            bounds = f" ({number(line['slope_low'])} to {number(line['slope_high'])})"
        said.append(
            ("trend", f"{number(line['slope_ah_per_10000km'])} Ah per 10,000 km{bounds}, {line['charges']} charges")
        )
    if cycles["equivalent_cycles"] is not None:
        said.append(("cycles", f"{number(cycles['equivalent_cycles'])} equivalent since {cycles['since']}"))
    said += [
        (f"spread {name}", f"p50 {number(part['p50_mv'])} mV, p95 {number(part['p95_mv'])} mV")
        for name, part in (
            (name.replace("_", " "), document["spread"][name]) for name in ("rest", "driving", "charge_end")
        )
        if part["p50_mv"] is not None
    ]
    lowest = insulation["lowest_ohm_per_v"]
    floor = "" if lowest is None else f"; lowest {number(lowest)} Ω/V"
    said.append(("insulation", f"{insulation['verdict']}: {insulation['text']}{floor}"))
    wide = max(len(name) for name, _ in said)
    for name, text in said:
        out.print(f"[bold]{name:{wide}}[/bold]  {escape(text)}", highlight=False, soft_wrap=True)
    for key, title in (
        ("capacity", "capacity by month"), ("outliers", "outlier cells"), ("resistance", "resistance of the pack"),
        ("self_discharge", "self-discharge"),
    ):  # fmt: skip
        if rows := _rows(document, key):
            out.print(f"\n[bold]{title}[/bold]")
            show(table_of(document["columns"][key], rows))
    out.print()
    footer(document)


def register(app: typer.Typer) -> None:
    """Put these commands under ``nevstream vehicles``."""
    for command in (trips, charges, track, curve, days, completeness, timeline, battery):
        app.command(command.__name__)(command)
