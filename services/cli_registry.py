"""``nevstream vehicles import|export|registry|show|set|retire`` and ``nevstream models``: the registry by hand.

Works on the database directly.  A sheet with a mistake changes nothing, unless its bad lines are to be left out.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast

import typer
from rich.markup import escape
from rich.table import Table as Shown

from schemas.registry.columns import MODELS, VEHICLES, CellError, Sheet
from schemas.registry.desk import Imported, VehicleFilter
from schemas.registry.sheet import Parsed, bad_lines, read_sheet, write_sheet
from services.errors import UsageError
from services.settings import Settings
from services.terminal import ConfigOption, JsonOption, database, err, out, zone_of

if TYPE_CHECKING:
    from services.store.registry import PostgresRegistry

T = TypeVar("T")

models_app = typer.Typer(help="The model catalogue: what vehicles of a model have in common.", no_args_is_help=True)

FILE_BYTES_MAX: Final = 512 * 1024 * 1024
_PAGE: Final = 5_000

FileArgument = Annotated[str, typer.Argument(metavar="FILE.csv", help="A CSV file, or - for standard input.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out; they are written to a file.")]
BadFileOption = Annotated[
    Path | None, typer.Option("--bad-file", help="Where --skip-bad writes them (default: FILE.bad.csv).")
]
IgnoreOption = Annotated[
    bool, typer.Option("--ignore-unknown-columns", help="Leave out columns that the registry does not have.")
]
OutputArgument = Annotated[
    str, typer.Argument(metavar="[FILE.csv]", help="Where to; default: standard output.", show_default=False)
]
PairsArgument = Annotated[
    list[str], typer.Argument(metavar="NAME=VALUE...", help="Names as in the CSV; VALUE - for unknown.")
]


class StateChoice(StrEnum):
    REGISTERED = "registered"
    RETIRED = "retired"
    SEEN = "seen"


# -- vehicles ---------------------------------------------------------------------------------------------------
def vehicles_import(
    file: FileArgument,
    dry_run: DryRunOption = False,
    retire_missing: Annotated[
        bool, typer.Option("--retire-missing", help="Retire registered vehicles that the file does not name.")
    ] = False,
    retire_most: Annotated[
        bool, typer.Option("--retire-most", help="Even if that is more than half of the registry.")
    ] = False,
    skip_bad: SkipBadOption = False,
    bad_file: BadFileOption = None,
    ignore: IgnoreOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register vehicles from a CSV file, with what is known of them.

    Columns, in English or Chinese, in any order: vin (车架号), model, fleet, region, usage, battery_kwh, battery_ah,
    chemistry, battery_supplier, cells, probes, certified_kwh_per_100km, plate, upload, registered_at.  An empty cell
    leaves what is known as it is; - says that it is not known.  Nothing is changed when a line is wrong.
    """
    if retire_missing and skip_bad:
        raise UsageError("--retire-missing needs a file without bad lines: a vehicle on a bad line would be retired")
    _import(VEHICLES, file, config, dry_run, skip_bad, bad_file, ignore, as_json, retire_missing, retire_most)


def vehicles_export(
    file: OutputArgument = "-",
    state: Annotated[StateChoice | None, typer.Option("--state", help="Default: all but those only seen.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write the registry as a CSV file that `vehicles import` reads back."""
    settings = Settings.read(config)
    zone = zone_of(settings)

    async def run(registry: PostgresRegistry) -> int:
        after, count = "", 0
        with _output(file) as write:
            write(write_sheet(VEHICLES, [], zone))
            while True:
                wanted = VehicleFilter(state=None if state is None else state.value)
                rows = (await registry.vehicles(wanted, after=after, limit=_PAGE)).dicts()
                kept = [row for row in rows if state is not None or row["registered"] or row["retired_at"] is not None]
                write(write_sheet(VEHICLES, [_cells(VEHICLES, row) for row in kept], zone, header=False))
                count += len(kept)
                if len(rows) < _PAGE:
                    return count
                after = rows[-1]["vin"]

    count = _with(settings, run)
    if file != "-":
        out.print(f"{count:,} vehicles written to {escape(file)}", highlight=False)


def vehicles_registry(
    search: Annotated[str | None, typer.Argument(help="Beginning of the VIN.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    fleet: Annotated[str | None, typer.Option(help="Only this fleet.")] = None,
    region: Annotated[str | None, typer.Option(help="Only this region.")] = None,
    usage: Annotated[str | None, typer.Option(help=f"One of {', '.join(VEHICLES.column('usage').values)}.")] = None,
    state: Annotated[
        StateChoice | None, typer.Option("--state", help="seen: has reported, and is in no registry.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what is known of vehicles: their own figures, else (in brackets) their model's."""
    settings = Settings.read(config)
    wanted = VehicleFilter(
        prefix=search or "", model=model, fleet=fleet, region=region, state=None if state is None else state.value,
        usage=None if usage is None else _value(VEHICLES, "usage", usage, settings),
    )  # fmt: skip
    rows = _with(settings, lambda registry: registry.vehicles(wanted, after="", limit=limit + 1)).dicts()
    from services.web.registry import vehicle_answer

    if as_json:
        print(json.dumps([vehicle_answer(row, zone_of(settings)) for row in rows[:limit]], **_AS_JSON))
        return
    table = Shown(header_style="bold", box=None, pad_edge=False)
    names = ("model", "fleet", "region", "usage", "battery_kwh", "battery_ah", "chemistry", "cells", "plate")
    for title in ("VIN", "state", *names):
        numbers = title in ("battery_kwh", "battery_ah", "cells")
        table.add_column(title.replace("battery_", ""), justify="right" if numbers else "left", no_wrap=True)
    for row in rows[:limit]:
        table.add_row(row["vin"], _state(row), *(_shown(row, name) for name in names))
    out.print(table if rows else "no such vehicle")
    if len(rows) > limit:
        err.print(f"there are more: --limit {limit * 10}, or `nevstream vehicles export`", highlight=False)


def vehicles_show(vin: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what the registry knows of a vehicle, and what is not known."""
    settings = Settings.read(config)
    row = _with(settings, lambda registry: registry.vehicle(vin))
    if row is None:
        raise UsageError(f"no vehicle {vin} is registered or has ever reported")
    from services.web.registry import vehicle_answer

    answer = vehicle_answer(row, zone_of(settings))
    if as_json:
        print(json.dumps(answer, **_AS_JSON))
        return
    table = Shown(box=None, pad_edge=False, show_header=False)
    table.add_row("state", _state(row), "")
    for name in ("first_seen_at", "registered_at", "retired_at"):
        if answer[name] is not None:
            table.add_row(name, str(answer[name]), "")
    for column in VEHICLES.columns:
        if column.name != "registered_at":
            unit = column.unit if _shown(row, column.name) else ""
            table.add_row(column.name, escape(_shown(row, column.name)) or "[dim]unknown[/dim]", unit)
    out.print(f"[bold]{escape(vin)}[/bold]", table)
    if row["model"] and not row["model_known"]:
        out.print(f"model {escape(row['model'])} is not in the catalogue: `nevstream models set`", highlight=False)


def vehicles_set(vin: str, pairs: PairsArgument, config: ConfigOption = None) -> None:
    """Set what is known of a vehicle, for example: set LNEV… usage=taxi battery_kwh=60 plate=-"""
    _set(VEHICLES, vin, pairs, config, "`nevstream vehicles add` registers it")


def vehicles_retire(
    vins: Annotated[list[str], typer.Argument(help="VINs of vehicles that are scrapped or given away.")],
    config: ConfigOption = None,
) -> None:
    """Retire vehicles: their data stay; they are no longer counted, nor let in with registry = "allowlist"."""
    done = _with(Settings.read(config), lambda registry: registry.retire(vins))
    out.print(f"{len(done.retired)} retired, {len(done.already)} had been already", highlight=False)
    if done.unknown:
        raise UsageError(f"not known: {', '.join(done.unknown)}")


# -- models -----------------------------------------------------------------------------------------------------
@models_app.command("import")
def models_import(
    file: FileArgument,
    dry_run: DryRunOption = False,
    skip_bad: SkipBadOption = False,
    bad_file: BadFileOption = None,
    ignore: IgnoreOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put models into the catalogue from a CSV file.

    Columns: model (车型), manufacturer, category, powertrain, battery_kwh, battery_ah, chemistry, battery_supplier,
    cells, probes, certified_kwh_per_100km, electric_range_km, kerb_mass_kg, energy_density_wh_per_kg, fuel_l_per_100km,
    fuel_cell_kw, temp_limit_c, current_inverted.  An empty cell leaves what is known as it is; - says unknown.
    """
    _import(MODELS, file, config, dry_run, skip_bad, bad_file, ignore, as_json)


@models_app.command("export")
def models_export(file: OutputArgument = "-", config: ConfigOption = None) -> None:
    """Write the catalogue as a CSV file that `models import` reads back."""
    settings = Settings.read(config)
    rows = _with(settings, _all_models)
    with _output(file) as write:
        write(write_sheet(MODELS, [_cells(MODELS, row) for row in rows], zone_of(settings)))
    if file != "-":
        out.print(f"{len(rows):,} models written to {escape(file)}", highlight=False)


@models_app.command("list")
def models_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the catalogue, and how many vehicles are registered of each model."""
    settings = Settings.read(config)
    rows = _with(settings, _all_models)
    from services.web.registry import model_answer

    if as_json:
        print(json.dumps([model_answer(row, zone_of(settings)) for row in rows], **_AS_JSON))
        return
    table = Shown(header_style="bold", box=None, pad_edge=False)
    names = (
        "manufacturer", "category", "powertrain", "battery_kwh", "battery_ah", "chemistry", "cells",
        "certified_kwh_per_100km", "electric_range_km",
    )  # fmt: skip
    shown = {"battery_kwh": "kWh", "battery_ah": "Ah", "certified_kwh_per_100km": "kWh/100 km"}
    shown["electric_range_km"] = "range km"
    for title in ("model", "vehicles", *names):
        numbers = title in ("vehicles", "cells", *shown)
        table.add_column(shown.get(title, title), justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        cells = ("–" if row[name] is None else escape(f"{row[name]}") for name in names)
        table.add_row(escape(row["model"]), f"{row['vehicles']:,}", *cells)
    out.print(table if rows else "no model yet: `nevstream models import FILE.csv`, or `models set`")


@models_app.command("set")
def models_set(model: str, pairs: PairsArgument, config: ConfigOption = None) -> None:
    """Set figures of a model (a new one is added), for example: set "秦 PLUS" powertrain=BEV battery_kwh=57.6"""
    _set(MODELS, model, pairs, config, None)


@models_app.command("remove")
def models_remove(model: str, config: ConfigOption = None) -> None:
    """Take a model out of the catalogue; its vehicles keep the name."""
    if not _with(Settings.read(config), lambda registry: registry.drop_model(model)):
        raise UsageError(f"no model {model!r} is in the catalogue: `nevstream models list` shows those that are")
    out.print(f"{escape(model)} removed", highlight=False)


def register_simulated(dsn: str, vehicles: int) -> Imported:
    """Put the fleet that `nevstream simulate` has by default, and its models, into the registry of ``dsn``."""
    from services.fleetsim.registry_csv import models_csv, registry_csv
    from services.fleetsim.vehicle import make_fleet
    from services.store.registry import PostgresRegistry

    async def called() -> Imported:
        registry = PostgresRegistry(dsn)
        try:
            await registry.load(read_sheet(models_csv().encode(), MODELS, UTC))
            sheet = registry_csv(make_fleet(vehicles, seed=1)).encode()
            return await registry.load(read_sheet(sheet, VEHICLES, UTC))
        finally:
            await registry.close()

    return asyncio.run(called())


def write_simulated(file: Path, vehicles: int, seed: int, model: str | None) -> None:
    """Write the registry of a simulated fleet.  Raises ``UsageError``."""
    from services.fleetsim.registry_csv import write_registry
    from services.fleetsim.vehicle import make_fleet

    try:
        models = write_registry(make_fleet(vehicles, seed, model), file)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    out.print(
        f"wrote {escape(str(file))} and {escape(str(models))}: `nevstream models import {escape(str(models))}`, "
        f"`nevstream vehicles import {escape(str(file))}`",
        highlight=False,
    )


def register(app: typer.Typer) -> None:
    """Put the commands for vehicles into the sub-app that has the others."""
    for name, command in (
        ("import", vehicles_import), ("export", vehicles_export), ("registry", vehicles_registry),
        ("show", vehicles_show), ("set", vehicles_set), ("retire", vehicles_retire),
    ):  # fmt: skip
        app.command(name)(command)


# -- inside -----------------------------------------------------------------------------------------------------
_AS_JSON: Final[dict[str, Any]] = {"default": str, "ensure_ascii": False}


def _with(settings: Settings, run: Callable[[PostgresRegistry], Awaitable[T]]) -> T:
    from services.store.registry import PostgresRegistry

    async def called() -> T:
        registry = PostgresRegistry(database(settings))
        try:
            return await run(registry)
        finally:
            await registry.close()

    return asyncio.run(called())


def read_file(file: str) -> bytes:
    """A file, or standard input, of at most ``FILE_BYTES_MAX``.  Raises ``UsageError``."""
    try:
        if file == "-":
            content = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        else:
            with Path(file).open("rb") as opened:
                content = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise UsageError(f"{file} has more than {FILE_BYTES_MAX // 2**20} MiB: split it")
    return content


def mistakes_text(parsed: Parsed, file: str) -> str:
    """What is wrong with a sheet, a mistake a line."""
    lines = [f"{file}: {parsed.mistakes_count:,} mistakes" if parsed.mistakes_count > 1 else f"{file}: a mistake"]
    lines += [f"  {mistake}" for mistake in parsed.mistakes]
    if (more := parsed.mistakes_count - len(parsed.mistakes)) > 0:
        lines.append(f"  … and {more:,} more")
    return "\n".join(lines)


def _import(
    sheet: Sheet, file: str, config: Path | None, dry_run: bool, skip_bad: bool, bad_file: Path | None, ignore: bool,
    as_json: bool, retire_missing: bool = False, retire_most: bool = False,
) -> None:  # fmt: skip
    settings = Settings.read(config)
    parsed = read_sheet(read_file(file), sheet, zone_of(settings), ignore)
    if parsed.mistakes and (parsed.fatal or not skip_bad):
        hint = "" if parsed.fatal else "; --skip-bad imports the other lines and writes these to a file"
        raise UsageError(f"{mistakes_text(parsed, file)}\nnothing was imported{hint}")
    done = _with(
        settings,
        lambda registry: registry.load(parsed, dry_run=dry_run, retire_missing=retire_missing, retire_most=retire_most),
    )
    written = None
    if parsed.bad:
        written = bad_file or Path("stdin.bad.csv" if file == "-" else f"{file.removesuffix('.csv')}.bad.csv")
        try:
            written.write_bytes(bad_lines(parsed))
        except OSError as error:
            raise UsageError(f"the other lines were imported, but {written}: {error.strerror}") from error
    if as_json:
        from services.web.registry import import_answer

        print(json.dumps({**import_answer(done, parsed), "bad_file": None if written is None else str(written)}))
        return
    _tell(done, parsed, file)
    if written is not None:
        out.print(
            f"[yellow]{len(parsed.bad):,} lines left out[/yellow], with what is wrong in {escape(str(written))}: "
            "put them right and import that file",
            highlight=False,
        )


def _tell(done: Imported, parsed: Parsed, file: str) -> None:
    would = "would be " if done.dry_run else ""
    parts = [f"{would}inserted {done.inserted:,}", f"changed {done.changed:,}", f"unchanged {done.unchanged:,}"]
    if done.reinstated:
        parts.append(f"{done.reinstated:,} of the changed had been retired")
    if done.retired or done.dry_run:
        parts.append(f"retired {done.retired:,}")
    out.print(f"{escape(file)} ({parsed.encoding}): {', '.join(parts)}", highlight=False)
    if done.columns:
        told = ", ".join(f"{name} {count:,}" for name, count in done.columns.items())
        out.print(f"  values changed: {told}", highlight=False)
    if parsed.left_out:
        out.print(f"  columns left out: {escape(', '.join(parsed.left_out))}", highlight=False)
    if done.unknown_models:
        told = ", ".join(f"{escape(name)} ({count:,})" for name, count in done.unknown_models.items())
        out.print(f"  models that are not in the catalogue yet: {told}", highlight=False)
    if done.dry_run:
        out.print("  nothing was written (--dry-run)")


def _value(sheet: Sheet, name: str, text: str, settings: Settings) -> Any:
    names = [column.name for column in sheet.columns]
    if name not in names:
        raise UsageError(f"{name!r} is not known of a {sheet.noun}: {', '.join(names)}")
    try:
        return sheet.column(name).read(text.strip() or "-", zone_of(settings))
    except CellError as error:
        raise UsageError(f"{name}: {text!r} {error}") from error


def _set(sheet: Sheet, key: str, pairs: list[str], config: Path | None, unknown: str | None) -> None:
    settings = Settings.read(config)
    values = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise UsageError(f"{pair!r}: write NAME=VALUE, such as {sheet.columns[0].name}=…")
        values[name] = _value(sheet, name, text, settings)
    try:
        sheet.key.read(key, zone_of(settings))
    except CellError as error:
        raise UsageError(f"{key!r} {error}") from error
    done = _with(
        settings, lambda registry: registry.change(sheet, key, values, whole=False, create=sheet is not VEHICLES)
    )
    if done is None:
        raise UsageError(f"there is no {sheet.noun} {key}; {unknown}")
    what = "added" if done.inserted else f"changed {', '.join(done.columns)}" if done.changed else "nothing changed"
    out.print(f"{escape(key)}: {what}", highlight=False)


async def _all_models(registry: PostgresRegistry) -> list[dict[str, Any]]:
    after, found = "", []
    while True:
        rows = (await registry.models(prefix="", after=after, limit=_PAGE)).dicts()
        found += rows
        if len(rows) < _PAGE:
            return found
        after = rows[-1]["model"]


def _cells(sheet: Sheet, row: Mapping[str, Any]) -> list[Any]:
    return [row[column.name] for column in sheet.all]


def _state(row: Mapping[str, Any]) -> str:
    return "registered" if row["registered"] else "retired" if row["retired_at"] is not None else "seen"


def _shown(row: Mapping[str, Any], name: str) -> str:
    """A figure of a vehicle; one of its model in brackets."""
    if row[name] is not None:
        value = row[name]
    elif row.get(f"eff_{name}") is not None:
        return f"({_plain(row[f'eff_{name}'])})"
    else:
        return ""
    return _plain(value)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Output:
    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> Callable[[str], Any]:
        if self._file == "-":
            return cast("Callable[[str], Any]", sys.stdout.write)
        try:
            self._opened = Path(self._file).open("w", encoding="utf-8-sig", newline="")
        except OSError as error:
            raise UsageError(f"{self._file}: {error.strerror}") from error
        return self._opened.write

    def __exit__(self, *_: object) -> None:
        if self._file != "-":
            self._opened.close()


def _output(file: str) -> _Output:
    """A file for people (UTF-8 with the mark that Excel wants), or standard output."""
    return _Output(file)
