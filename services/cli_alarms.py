"""``nevstream alarms``: episodes on the terminal, acknowledged and closed there; rules, live news, webhooks.

Works on the database directly, so that it works while the API is down; ``watch`` follows the API's stream, and
``webhooks test`` calls the receivers.
"""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from services.errors import UsageError
from services.settings import Settings
from services.terminal import TIME_HELP, ApiOption, ConfigOption, JsonOption, database, err, moment, out, zone_of

if TYPE_CHECKING:
    from schemas.alarms import Acted, AlarmFilter
    from services.store.alarms import PostgresAlarms
    from services.web.parameters import Context

T = TypeVar("T")

app = typer.Typer(help="Alarms: list, show, acknowledge, close; rules, live news, webhooks.", no_args_is_help=False)
webhooks_app = typer.Typer(help="Who is told of alarms: status, a trial, given-up deliveries anew.")
app.add_typer(webhooks_app, name="webhooks")


class Source(StrEnum):
    FLAG = "flag"
    RULE = "rule"
    ABSENCE = "absence"


StateOption = Annotated[
    str | None, typer.Option("--state", "-s", help="open, acknowledged, closed; several with commas.")
]
ActiveOption = Annotated[bool | None, typer.Option("--active/--over", help="Only what goes on, or what is over.")]
FromOption = Annotated[str | None, typer.Option("--from", help=f"Began at or after: {TIME_HELP}.")]
ToOption = Annotated[str | None, typer.Option("--to", help="Began before; written as --from is.")]
VinOption = Annotated[str | None, typer.Option("--vin", help="Of this vehicle.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Of vehicles of this model.")]
FleetOption = Annotated[str | None, typer.Option("--fleet", help="Of vehicles of this fleet.")]
RegionOption = Annotated[str | None, typer.Option("--region", help="Of vehicles of this region.")]
LevelOption = Annotated[int | None, typer.Option("--level", "-l", min=0, max=3, help="This level or higher.")]
SourceOption = Annotated[Source | None, typer.Option("--source", help="Standard flag, platform rule, absence of data.")]
CodeOption = Annotated[str | None, typer.Option("--code", help="Name of a flag or rule (`nevstream alarms rules`).")]
IdsArgument = Annotated[list[int], typer.Argument(metavar="ID...", min=1)]
ByOption = Annotated[str | None, typer.Option("--by", help="Who (default: the user of this machine).")]
NoteOption = Annotated[str | None, typer.Option("--note", "-n", help="What there is to say.")]
_LEVEL_STYLE: Final = {3: "bold red", 2: "yellow"}
_STATE_STYLE: Final = {"open": "bold", "acknowledged": "cyan", "closed": "dim"}


@app.callback(invoke_without_command=True)
def alarms(
    context: typer.Context,
    state: StateOption = None,
    active: ActiveOption = None,
    since: FromOption = None,
    until: ToOption = None,
    vin: VinOption = None,
    model: ModelOption = None,
    fleet: FleetOption = None,
    region: RegionOption = None,
    level: LevelOption = None,
    source: SourceOption = None,
    code: CodeOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Alarm episodes, newest first; without a command: the list."""
    if context.invoked_subcommand is not None:
        return
    from schemas.alarms import described

    settings = Settings.read(config)
    wanted = _filter(settings, state, active, since, until, vin, model, fleet, region, level, source, code)

    async def work(desk: PostgresAlarms, ctx: Context) -> list[dict[str, Any]]:
        return [described(row, ctx.local) for row in (await desk.page(wanted, after=None, limit=limit)).dicts()]

    found = _with_desk(settings, work)
    if as_json:
        _print_json({"alarms": found, "count": len(found)})
        return
    if not found:
        out.print("no alarms", highlight=False)
        return
    table = _table("id", "level", "start", "lasted", "vehicle", "alarm", "figure", "state", "by")
    for one in found:
        table.add_row(
            str(one["id"]), Text(str(one["level"]), style=_LEVEL_STYLE.get(one["level"], "")), _minute(one["start_at"]),
            "goes on" if one["active"] else _duration(one["duration_s"]), escape(one["vin"]), escape(one["name"]),
            _figure(one), Text(one["state"], style=_STATE_STYLE[one["state"]]),
            escape(one["closed_by"] or one["acknowledged_by"] or "–"),
        )  # fmt: skip
    out.print(table)
    if len(found) == limit:
        out.print(f"the newest {limit}; more with --limit", style="dim", highlight=False)


@app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="ID", min=1)],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one episode: what it was, what people did about it, what was told of it."""
    from services.web.alarm_parameters import targets_of
    from services.web.alarms import no_episode, told_whole

    async def work(desk: PostgresAlarms, ctx: Context) -> dict[str, Any]:
        row, story = await desk.episode(number), await desk.story(number, targets_of(ctx))
        if row is None:
            problem = no_episode(number, ctx.local(story["withdrawn_at"]))
            raise UsageError(f"{problem.detail} {problem.how_to_fix}")
        return told_whole(row, story, ctx)

    found = _with_desk(Settings.read(config), work)
    if as_json:
        _print_json(found)
        return
    style = _LEVEL_STYLE.get(found["level"], "bold")
    out.print(Text(f"{found['name']}  level {found['level']}", style=style), Text(f"  {found['text_zh']}", style="dim"))
    grid = Table.grid(padding=(0, 2))
    position = (
        f"{found['longitude_deg']:.5f}, {found['latitude_deg']:.5f}" if found["longitude_deg"] is not None else "–"
    )
    for word, text in (
        ("what", found["text"]), ("vehicle", " · ".join(filter(None, (found["vin"], found["model"], found["fleet"])))),
        ("from", _second(found["start_at"])),
        ("to", "goes on" if found["active"] else f"{_second(found['end_at'])} ({_duration(found['duration_s'])})"),
        ("found", _second(found["raised_at"]) + (", in late data" if found["late"] else "")),
        ("figure", _figure(found)), ("position", position), ("state", found["state"]),
        ("due", f"acknowledge {_second(found['acknowledge_due_at'])}, close {_second(found['close_due_at'])} [C]"),
        ("alike in 30 d", str(found["alike_30d"])),
    ):  # fmt: skip
        grid.add_row(Text(word, style="dim"), Text(text))
    out.print(grid)
    for action in found["actions"]:
        note = f": {action['note']}" if action["note"] else ""
        out.print(Text(f"{_second(action['at'])}  {action['action']} by {action['by']}{note}"))
    for event in found["events"]:
        sent = [each for each in found["deliveries"] if each["event_id"] == event["id"]]
        to = "".join(f"  {each['hook']} {each['state']}" for each in sent)
        out.print(Text(f"{_second(event['occurred_at'])}  {event['event']} (level {event['level']}){to}", style="dim"))


@app.command()
def ack(
    ids: IdsArgument, by: ByOption = None, note: NoteOption = None, config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Acknowledge episodes: somebody takes care of them. Exit code 1 when one cannot be."""
    _act("acknowledge", ids, by, note, config, as_json)


@app.command()
def close(
    ids: IdsArgument, by: ByOption = None, note: NoteOption = None, config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Close acknowledged episodes: they are dealt with. Exit code 1 when one cannot be."""
    _act("close", ids, by, note, config, as_json)


@app.command()
def rules(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Flags of the standard by edition, and rules of the platform with their thresholds."""
    from services.web.alarm_rules import catalogue

    found = catalogue(Settings.read(config))
    if as_json:
        _print_json(found)
        return
    table = _table("bit", "2016", "2025", "", "figure")
    for flag in found["flags"]:
        table.add_row(
            str(flag["code"]), flag["name_2016"] or "–", flag["name_2025"] or "–", flag["text_zh"],
            f"{flag['quantity']} {flag['unit'] or ''}" if flag["quantity"] else "–",
        )  # fmt: skip
    out.print(table)
    out.print()
    table = _table("no", "rule", "level", "raised when", "", "your own values", "tag", "from")
    for rule in found["rules"]:
        own = ", ".join(f"{name} {value:g}" for name, value in rule["own"].items())
        table.add_row(
            str(rule["code"]), rule["name"], str(rule["level"]), escape(rule["text"]), rule["text_zh"], own,
            escape(rule["tag"]), rule["reference"],
        )  # fmt: skip
    out.print(table)


@app.command()
def summary(
    since: FromOption = None,
    until: ToOption = None,
    vin: VinOption = None,
    model: ModelOption = None,
    fleet: FleetOption = None,
    region: RegionOption = None,
    level: LevelOption = None,
    source: SourceOption = None,
    code: CodeOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Counts by level and kind, and times of handling, of episodes that began in a range (default: 30 days)."""
    import dataclasses

    from services.web.alarm_figures import KINDS_MAX, SUMMARY_DEFAULT, summarised
    from services.web.alarm_parameters import targets_of

    settings = Settings.read(config)
    wanted = _filter(settings, None, None, since, until, vin, model, fleet, region, level, source, code)
    end = wanted.until or datetime.now(UTC)
    wanted = dataclasses.replace(wanted, since=wanted.since or end - SUMMARY_DEFAULT, until=end)

    async def work(desk: PostgresAlarms, ctx: Context) -> dict[str, Any]:
        targets = targets_of(ctx)
        figures = await desk.summary(wanted, targets, ctx.now(), KINDS_MAX)
        return {"from": ctx.local(wanted.since), "to": ctx.local(end), **summarised(figures, targets, ctx)}

    found = _with_desk(settings, work)
    if as_json:
        _print_json(found)
        return
    out.print(f"{_minute(found['from'])} to {_minute(found['to'])}: {found['episodes']} episodes of "
              f"{found['vehicles']} vehicles", highlight=False)  # fmt: skip
    for row in found["unhandled"]:
        since_when = _minute(row["oldest_at"])
        out.print(
            f"waiting: level {row['level']}, {row['state']}: {row['episodes']}, since {since_when}", highlight=False
        )
    table = _table("alarm", "", "episodes", "vehicles", "going on", "open", "level", "median")
    for row in found["kinds"]:
        table.add_row(
            row["name"], row["text_zh"], *(str(row[key]) for key in ("episodes", "vehicles", "active", "open")),
            str(row["level_max"]), _duration(row["duration_median_s"]),
        )  # fmt: skip
    out.print(table)
    handling = found["handling"]
    for verb, key, target in (
        ("acknowledged", "start_to_acknowledged_min", f"{handling['acknowledge_target_min']:g} min"),
        ("closed", "start_to_closed_h", f"{handling['close_target_working_days']} working days"),
    ):
        share, unit = handling[f"{verb}_in_time_share"], key.rsplit("_", 1)[1]
        median = handling[key]["median"]
        text = f"{verb}: {handling[verb]}"
        text += "" if median is None else f", median {median:g} {unit} from the start"
        text += "" if share is None else f", {100 * share:.1f} % of those due within {target} [C]"
        out.print(text, highlight=False, markup=False)


@app.command()
def watch(
    vin: VinOption = None,
    model: ModelOption = None,
    fleet: FleetOption = None,
    region: RegionOption = None,
    level: LevelOption = None,
    source: SourceOption = None,
    code: CodeOption = None,
    after: Annotated[int | None, typer.Option(min=0, help="Begin beyond this event; 0: with the oldest.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
    api: ApiOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow the news of alarms (the API's stream); picks up where it was when the connection breaks."""
    from services.alarm_stream import follow

    words = {
        "vin": vin,
        "model": model,
        "fleet": fleet,
        "region": region,
        "level": level,
        "source": source,
        "code": code,
    }
    with suppress(KeyboardInterrupt):
        for seen, event in enumerate(follow(api, after, err.print, **words), 1):
            if as_json:
                print(json.dumps(event, ensure_ascii=False), flush=True)
            else:
                out.print(_news(event))
            if seen == count:
                break


# -- webhooks ----------------------------------------------------------------------------------------
@webhooks_app.command("status")
def webhooks_status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What each webhook was sent, what waits, and what went wrong last."""
    from services.webhooks.sender import masked

    settings = Settings.read(config)
    there = {hook.name: hook for hook in settings.alarms.webhooks}

    async def work(desk: PostgresAlarms, ctx: Context) -> list[dict[str, Any]]:
        rows = {row["hook"]: row for row in (await desk.hooks()).dicts()}
        return [
            {
                "name": name,
                "url": masked(there[name].url.get_secret_value()) if name in there else None,
                "in_settings": name in there,
                **{key: rows.get(name, {}).get(key, 0) for key in ("waiting", "delivered", "dead")},
                **{
                    key: ctx.local(rows.get(name, {}).get(key))
                    for key in ("oldest_waiting_at", "last_delivered_at", "last_error_at")
                },
                **{key: rows.get(name, {}).get(key) for key in ("last_status", "last_error")},
            }
            for name in sorted({*there, *rows})
        ]

    found = _with_desk(settings, work)
    if as_json:
        _print_json({"webhooks": found, "count": len(found)})
        return
    if not found:
        out.print("no webhooks: alarms.webhooks is empty (`nevstream config` shows how to write them)", highlight=False)
        return
    table = _table("webhook", "to", "waiting", "delivered", "given up", "last delivered", "last error")
    for hook in found:
        table.add_row(
            hook["name"], hook["url"] or "not in the settings", str(hook["waiting"]), str(hook["delivered"]),
            Text(str(hook["dead"]), style="red" if hook["dead"] else ""), _minute(hook["last_delivered_at"]),
            escape(f"{_minute(hook['last_error_at'])} {hook['last_error']}") if hook["last_error"] else "–",
        )  # fmt: skip
    out.print(table)


@webhooks_app.command("test")
def webhooks_test(
    name: Annotated[str | None, typer.Argument(help="Of the settings (default: all).")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send an event named test to webhooks, now and once; exit code 1 when one does not take it."""
    from services.webhooks.sender import Untold, Webhooks, masked, named

    settings = Settings.read(config)
    hooks = named(settings.alarms.webhooks, name)
    if not hooks:
        there = ", ".join(hook.name for hook in settings.alarms.webhooks) or "none"
        raise UsageError(f"no webhook {name or ''} in alarms.webhooks of the settings: there is {there}")

    async def run() -> list[dict[str, Any]]:
        desk = Webhooks(settings.alarms, Untold())
        try:
            tried = await asyncio.gather(*(desk.test(hook) for hook in hooks))
        finally:
            await desk.close()
        return [
            {"name": hook.name, "url": masked(hook.url.get_secret_value()), "status": sent.status, "error": sent.error}
            for hook, sent in zip(hooks, tried, strict=True)
        ]

    found = asyncio.run(run())
    if as_json:
        _print_json({"webhooks": found})
    else:
        for hook in found:
            word = f"[red]{escape(hook['error'])}[/red]" if hook["error"] else f"[green]HTTP {hook['status']}[/green]"
            out.print(f"{hook['name']}  {escape(hook['url'])}  {word}", highlight=False)
    if any(hook["error"] for hook in found):
        raise typer.Exit(1)


@webhooks_app.command("retry")
def webhooks_retry(
    name: Annotated[str | None, typer.Argument(help="Webhook (default: all).")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send what was given up anew."""

    async def work(desk: PostgresAlarms, _: Context) -> int:
        return await desk.retry_dead(name)

    count = _with_desk(Settings.read(config), work)
    if as_json:
        _print_json({"retried": count})
    else:
        out.print(f"{count} deliveries are sent anew", highlight=False)


# -- inside ------------------------------------------------------------------------------------------
def _with_desk(settings: Settings, work: Callable[[PostgresAlarms, Context], Awaitable[T]]) -> T:
    from services.store.alarms import PostgresAlarms
    from services.web.parameters import Context

    async def run() -> T:
        desk = PostgresAlarms(database(settings), statement_timeout_s=60.0)
        context = Context(settings, None, zone_of(settings), lambda: datetime.now(UTC))  # type: ignore[arg-type]
        try:
            return await work(desk, context)
        finally:
            await desk.close()

    return asyncio.run(run())


def _filter(
    settings: Settings, state: str | None, active: bool | None, since: str | None, until: str | None, vin: str | None,
    model: str | None, fleet: str | None, region: str | None, level: int | None, source: Source | None,
    code: str | None,
) -> AlarmFilter:  # fmt: skip
    from schemas.alarms import SOURCE_CODE, AlarmFilter
    from services.web.alarm_parameters import codes_given, states_given
    from services.web.problems import ProblemError

    zone = zone_of(settings)
    try:
        return AlarmFilter(
            states=states_given(state), active=active,
            since=moment(since, "--from", zone) if since else None,
            until=moment(until, "--to", zone) if until else None,
            vin=vin, model=model, fleet=fleet, region=region, level_min=level,
            source=None if source is None else SOURCE_CODE[source.value],
            codes=codes_given(code, None if source is None else source.value),
        )  # fmt: skip
    except ProblemError as problem:
        raise UsageError(f"--{problem.detail}. {problem.how_to_fix}") from problem


def _act(action: str, ids: list[int], by: str | None, note: str | None, config: Any, as_json: bool) -> None:
    from schemas.alarms import AT_ONCE_MAX, BY_MAX, NOTE_MAX
    from services.web.alarms import many

    who = (by or getpass.getuser()).strip()
    numbers = list(dict.fromkeys(ids))
    if not who or len(who) > BY_MAX or len(note or "") > NOTE_MAX or "\0" in who + (note or ""):
        raise UsageError(f"--by has 1 to {BY_MAX} characters, --note up to {NOTE_MAX}, and no NUL")
    if len(numbers) > AT_ONCE_MAX or not all(1 <= number < 2**63 for number in numbers):
        raise UsageError(f"give up to {AT_ONCE_MAX} ids, as `nevstream alarms` lists them")

    async def work(desk: PostgresAlarms, _: Context) -> list[Acted]:
        return await desk.act(action, numbers, by=who, note=note)

    acted = _with_desk(Settings.read(config), work)
    if as_json:
        _print_json(many(acted))
    else:
        done = {"acknowledge": "acknowledged", "close": "closed"}[action]
        for each in acted:
            text = {"done": f"[green]{done}[/green]", "repeated": f"was {done} before"}.get(each.outcome)
            out.print(f"{each.episode_id}  {text or f'[red]not {done}[/red]: {each.why}'}", highlight=False)
    if any(each.outcome in ("refused", "missing") for each in acted):
        raise typer.Exit(1)


def _news(event: dict[str, Any]) -> Text:
    """An event in a line."""
    alarm = event.get("alarm")
    if alarm is None:  # events are missing
        return Text(f"{event['event']}: {json.dumps(event)}", style="red")
    line = Text(f"{_second(event['occurred_at'])}  ")
    line.append(f"{event['event']:<12}", style=_LEVEL_STYLE.get(alarm["level"], ""))
    line.append(f"  {alarm['level']}  {alarm['vin']}  {alarm['name']}  #{alarm['id']}")
    if "level" in event.get("changes", {}):
        line.append("  level {} → {}".format(*event["changes"]["level"]))
    if event.get("by"):
        line.append(f"  by {event['by']}")
    return line


def _table(*columns: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    right = ("id", "level", "bit", "no", "episodes", "vehicles", "going on", "open", "waiting", "delivered", "given up")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _figure(one: dict[str, Any]) -> str:
    if one["quantity"] is None or one["value_max"] is None:
        return "–"
    low, high = one["value_min"], one["value_max"]
    values = f"{high:g}" if low is None or low == high else f"{low:g} to {high:g}"
    return f"{values} {one['unit'] or ''}".strip()


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    return (
        f"{minutes} min"
        if minutes < 120
        else (f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.1f} d")
    )


def _minute(time: datetime | str | None) -> str:
    return "–" if time is None else str(time)[:16].replace("T", " ")


def _second(time: datetime | str | None) -> str:
    return "–" if time is None else str(time)[:19].replace("T", " ")


def _print_json(document: Any) -> None:
    print(json.dumps(document, default=lambda value: value.isoformat(), ensure_ascii=False))
