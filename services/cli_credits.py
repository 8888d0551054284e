"""``nevstream credits``: the dual credit (双积分) as an estimate, from a sheet of models or from the registry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table as Shown

from schemas.credits.rules import TAGS, NoRule, RuleTable, built_in_text
from schemas.credits.sheet import CREDITS
from schemas.registry.sheet import read_sheet
from services.cli_registry import mistakes_text, read_file
from services.credit_rules import rules_of
from services.errors import UsageError
from services.settings import Settings
from services.terminal import ConfigOption, JsonOption, database, out, zone_of

app = typer.Typer(help="Dual credit (双积分): an estimate, and the rules it is made by.", no_args_is_help=True)

YearOption = Annotated[int, typer.Option("--year", "-y", help="Accounting year.")]
NormalOption = Annotated[int, typer.Option("--conventional", min=0, help="Conventional cars known by number only.")]
LowOption = Annotated[int, typer.Option("--low", min=0, help="Conventional cars of low consumption, by number.")]
BeforeOption = Annotated[
    float | None, typer.Option("--cafc-before", min=0.01, max=100, help="CAFC of the year before, L/100 km.")
]
EnterpriseOption = Annotated[
    str | None, typer.Option("--enterprise", help="Whose those are, when there are several enterprises.")
]
RulesOption = Annotated[
    Path | None, typer.Option("--rules", help="A table of rules in place of the one that the settings name.")
]
_DOUBTS_SHOWN: Final = 40


@app.command("estimate")
def estimate_file(
    file: Annotated[str, typer.Argument(metavar="FILE.csv", help="Models and counts, or - for standard input.")],
    year: YearOption,
    normal: NormalOption = 0,
    low: LowOption = 0,
    cafc_before: BeforeOption = None,
    enterprise: EnterpriseOption = None,
    catalogue: Annotated[
        bool, typer.Option("--catalogue", help="Take what a line does not say from the model catalogue.")
    ] = False,
    rules: RulesOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate NEV and CAFC credits of models and counts.

    Columns: model (车型), count (数量), powertrain (BEV, PHEV, FCV, or ICE for conventional cars), enterprise,
    electric_range_km, kerb_mass_kg, energy_density_wh_per_kg, certified_kwh_per_100km, fuel_l_per_100km, fuel_cell_kw,
    target_l_per_100km, low_consumption, conditions_met.  What is missing counts as a factor of 1 and is named.
    """
    from services.web.credits import catalogue as models_of
    from services.web.credits import credits_of

    settings = Settings.read(config)
    table = _table(settings, rules)
    parsed = read_sheet(read_file(file), CREDITS, zone_of(settings))
    if parsed.mistakes:
        raise UsageError(mistakes_text(parsed, file))
    given = []
    for line, _, model, *values in parsed.rows:
        named = dict(zip((column.name for column in CREDITS.columns), values, strict=True))
        if named["count"] is None:
            raise UsageError(f"{file}: line {line}, count: is missing; give {CREDITS.column('count').allowed}")
        given.append({"model": model, **named})
    known: Mapping[str, Mapping[str, Any]] = {}
    if catalogue:
        known = _with(settings, lambda registry: models_of(registry, {one["model"] for one in given}))
    conventional = [{"enterprise": enterprise, "normal": normal, "low": low, "cafc_before": cafc_before}]
    try:
        answer = credits_of(table, year, given, known, conventional)
    except NoRule as error:
        raise UsageError(f"{error}; `nevstream credits rules` shows the table") from error
    except ValueError as error:
        hint = "" if catalogue else ", or --catalogue"
        raise UsageError(f"{file}: {error}; give a column powertrain{hint}") from error
    _tell(answer, as_json)


@app.command("fleet")
def estimate_fleet(
    year: YearOption,
    normal: NormalOption = 0,
    low: LowOption = 0,
    cafc_before: BeforeOption = None,
    enterprise: EnterpriseOption = None,
    rules: RulesOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the credits of the passenger cars that were registered in a year, by the model catalogue."""
    from services.web.credits import fleet_credits

    settings = Settings.read(config)
    table = _table(settings, rules)
    conventional = [{"enterprise": enterprise, "normal": normal, "low": low, "cafc_before": cafc_before}]
    try:
        answer = _with(settings, lambda registry: fleet_credits(registry, table, year, zone_of(settings), conventional))
    except NoRule as error:
        raise UsageError(f"{error}; `nevstream credits rules` shows the table") from error
    except LookupError as error:
        raise UsageError(f"--enterprise {enterprise or ''}: {error}") from error
    _tell(answer, as_json)


@app.command("rules")
def show_rules(
    year: Annotated[int | None, typer.Option("--year", "-y", help="Accounting year; none: which there are.")] = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print the built-in table as a file, to change it.")] = False,
    check: Annotated[Path | None, typer.Option("--check", metavar="FILE", help="Check a table of yours.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the rules of a year: every figure with how sure it is, and where it was seen."""
    from services.web.credits import rules_answer

    if toml:
        print(built_in_text(), end="")
        return
    settings = Settings.read(config)
    table = rules_of(check) if check is not None else _table(settings, None)
    if check is not None and year is None and not as_json:
        years = ", ".join(map(str, sorted(table.years)))
        out.print(f"{escape(str(check))} is right: “{escape(table.name)}”, years {years}", highlight=False)
        return
    try:
        answer = rules_answer(table, year)
    except NoRule as error:
        raise UsageError(str(error)) from error
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    out.print(f"rules “{escape(table.name)}”: {', '.join(map(str, answer['years']))}", highlight=False)
    if year is not None:
        shown = _grid("figure", ">value", "tag", "source", "note")
        for cell in answer["cells"]:
            shown.add_row(cell["name"], f"{cell['value']:g}", _tag(cell["tag"]), cell["source"], escape(cell["note"]))
        out.print(shown)
        if answer["not_found"]:
            out.print(f"not found for {year}: {', '.join(answer['not_found'])}", highlight=False)
        used = {word for cell in answer["cells"] for word in cell["source"].split()}
        for name, text in answer["sources"].items():
            if name in used:
                out.print(f"  [dim]{name}[/dim] {escape(text)}", highlight=False)
    for name, text in TAGS.items():
        out.print(f"  {_tag(name)} {text}", highlight=False)


# -- inside -----------------------------------------------------------------------------------------------------
def _table(settings: Settings, path: Path | None) -> RuleTable:
    return rules_of(path if path is not None else settings.credits.rules_file)


def _with(settings: Settings, run: Any) -> Any:
    from services.store.registry import PostgresRegistry

    async def called() -> Any:
        registry = PostgresRegistry(database(settings))
        try:
            return await run(registry)
        finally:
            await registry.close()

    return asyncio.run(called())


def _grid(*titles: str) -> Shown:
    table = Shown(header_style="bold", box=None, pad_edge=False)
    for title in titles:
        table.add_column(title.lstrip(">"), justify="right" if title.startswith(">") else "left", overflow="fold")
    return table


def _tag(tag: str | None) -> str:
    if tag is None:
        return "\\[–]"
    return f"[yellow]\\[{tag}][/yellow]" if tag in "CD" else f"\\[{tag}]"


def _figure(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is not None:
        return f"{value:,.2f}"
    return "–" if low is None or high is None else f"{low:,.2f} … {high:,.2f}"


def _tell(answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    out.print(f"[bold]Dual credit {answer['year']}[/bold], an estimate by the rules “{escape(answer['rules'])}”")
    for one in answer["enterprises"]:
        _tell_enterprise(one)
    if len(answer["enterprises"]) > 1:
        totals = answer["totals"]
        out.print("[bold]Together[/bold] (positive and negative credits are never netted)")
        shown = _grid("", ">+", ">-")
        for name in ("nev", "cafc"):
            shown.add_row(name.upper(), _figure(totals[f"{name}_positive"]), _figure(totals[f"{name}_negative"]))
        out.print(shown)
        if not totals["complete"]:
            out.print("  [yellow]without what could not be told as one figure[/yellow]")
    for row in answer["left_out"]:
        out.print(
            f"  left out: {row['vehicles']:,} of {escape(str(row['model'] or '–'))}: {row['why']}", highlight=False
        )
    for note in answer["notes"]:
        out.print(f"  [dim]{escape(note)}[/dim]", highlight=False)


def _tell_enterprise(one: Mapping[str, Any]) -> None:
    if one["enterprise"] is not None:
        out.print(f"[bold]{escape(one['enterprise'])}[/bold]")
    shown = _grid(
        "model", "type", ">count", ">standard", ">range", ">density", ">consumption", ">credit", ">credits", "tag"
    )
    for model in one["models"]:
        range_of = (model["credit_low"], model["credit_high"])
        total = [None if value is None else value * model["count"] for value in range_of]
        shown.add_row(
            escape(model["model"]), model["powertrain"], f"{model['count']:,}",
            ("–" if model["standard"] is None else f"{model['standard']:g}") + ("*" if model["capped"] else ""),
            *(f"{model[f'{name}_factor']:.4g}" for name in ("range", "density", "consumption")),
            _figure(model["credit"], *range_of), _figure(model["credits"], *total), _tag(model["tag"]),
        )  # fmt: skip
    if one["models"]:
        out.print(shown)
    nev, cafc = one["nev"], one["cafc"]
    conventional = (
        f"{nev['conventional_normal']:,} conventional cars and {nev['conventional_low']:,} of low consumption"
    )
    out.print(
        f"  NEV: actual {_figure(nev['actual'], nev['actual_low'], nev['actual_high'])}, target {nev['target']:,.2f} "
        f"({nev['ratio']:.0%} {_tag(nev['ratio_tag'])} of {conventional}"
        + ("" if nev["duty"] else f"; not bound below {nev['duty_from']:,.0f}")
        + f"), balance [bold]{_figure(nev['balance'], nev['balance_low'], nev['balance_high'])}[/bold]",
        highlight=False,
    )
    if cafc is not None:
        told = ", ".join(
            f"{title} {'–' if cafc[name] is None else format(cafc[name], '.2f')}"
            for title, name in (("CAFC", "cafc"), ("target", "target"), ("required", "required"))
        )
        out.print(f"  {told} L/100 km, credits [bold]{_figure(cafc['credit'])}[/bold]", highlight=False)
        for missing in cafc["missing"][:10]:
            out.print(f"    missing: {escape(missing)}", highlight=False)
    if one["unconfirmed"]:
        out.print("  [yellow]not confirmed:[/yellow]")
        for found in one["unconfirmed"][:_DOUBTS_SHOWN]:
            value = "" if found["value"] is None else f" = {found['value']:g}"
            source = f" ({found['source']})" if found["source"] else ""
            models = f" – {escape(', '.join(found['models'][:3]))}{'…' if found['models_count'] > 3 else ''}"
            out.print(
                f"    {_tag(found['tag'])} {escape(found['what'])}{value}: {escape(found['why'])}{source}"
                f"{models if found['models'] else ''}",
                highlight=False,
            )
        if (more := len(one["unconfirmed"]) - _DOUBTS_SHOWN) > 0:
            out.print(f"    … and {more} more: --json", highlight=False)
