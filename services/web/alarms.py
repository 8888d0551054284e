"""/v1/alarms: episodes as people use them. Lists, one with its story, acknowledge and close, figures, live news.

An episode is ``active`` until it is over; people take it from open to acknowledged to closed. Changes are taken from
this machine only (``changes.py``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request
from pydantic import AwareDatetime, Field
from starlette.responses import Response, StreamingResponse

from schemas import alarms
from schemas.alarms import AlarmDesk, AlarmFilter, Targets
from services.web.alarm_feed import AlarmFeed, Missed, Told, line
from services.web.alarm_rules import AlarmRules, catalogue, numbered
from services.web.answers import Json
from services.web.changes import changes_allowed
from services.web.exports import FORMATS, FormatQuery, document_answer
from services.web.models import Model
from services.web.parameters import (
    TIME_ALLOWED,
    Context,
    Ctx,
    CursorQuery,
    LimitQuery,
    VinPath,
    checked_vin,
    cursor_numbers,
    cursor_of,
    cursor_time,
    limit_given,
    next_link,
    only_known,
    ordered,
    range_given,
    time_given,
)
from services.web.problems import ProblemError, bad_parameter, nearest
from services.web.vehicles import found

router = APIRouter(tags=["alarms"], dependencies=[Depends(only_known)])

BY_API: Final = "api"  # who acted when the request does not say, until the API knows who asks
SUMMARY_DEFAULT: Final = timedelta(days=30)
KINDS_MAX: Final = 200
_AROUND: Final = timedelta(minutes=5)  # of an episode, for a look at its telemetry


# -- shapes ------------------------------------------------------------------------------------------
class AlarmModel(Model):
    id: int
    vin: str
    model: str | None
    fleet: str | None
    region: str | None
    plate: str | None
    edition: int | None = Field(description="Of GB/T 32960.3, on the day of its start: flags are named by it")
    source: Literal["flag", "rule", "absence"] | str = Field(
        description="flag: general alarm flag of the standard (code = bit). rule: of this platform, by what is "
        "reported. absence: of this platform, by what is not"
    )
    code: int
    name: str
    text: str
    text_zh: str
    level: int = Field(description="Highest in the episode; 3 is the gravest [A]")
    state: Literal["open", "acknowledged", "closed"] = Field(description="What people did about it")
    active: bool = Field(description="It is not over")
    start_at: AwareDatetime
    end_at: AwareDatetime | None
    last_at: AwareDatetime = Field(description="Newest record of it so far")
    duration_s: float | None
    raised_at: AwareDatetime = Field(description="When this platform found it")
    late: bool = Field(description="Found in data that came late or reissued")
    records: int
    quantity: str | None = Field(description="The figure that goes with it")
    unit: str | None
    value_min: float | None
    value_max: float | None
    longitude_deg: float | None
    latitude_deg: float | None
    acknowledged_at: AwareDatetime | None
    acknowledged_by: str | None
    closed_at: AwareDatetime | None
    closed_by: str | None
    note: str | None
    revision: int = Field(description="How often late data have changed it, and 1")


class AlarmPage(Model):
    alarms: list[AlarmModel] = Field(description="The newest start first")
    count: int
    next_cursor: str | None
    next: str | None


class ActionModel(Model):
    action: Literal["acknowledge", "close"]
    at: AwareDatetime
    by: str
    note: str | None
    level: int = Field(description="The episode's level at that moment")


class ToldModel(Model):
    id: str
    event: str
    occurred_at: AwareDatetime
    level: int


class DeliveryModel(Model):
    event_id: str
    hook: str
    state: Literal["waiting", "delivered", "dead"]
    attempts: int
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    status: int | None = Field(description="HTTP status of the last answer")
    error: str | None


class AlarmDetail(AlarmModel):
    acknowledge_due_at: AwareDatetime | None = Field(description="alarms.acknowledge_target_min after the start [C]")
    close_due_at: AwareDatetime | None = Field(description="So many working days after the start [C]")
    acknowledged_in_time: bool | None
    closed_in_time: bool | None
    level_rose_since: bool = Field(description="Its level is higher than when somebody last acted")
    alike_30d: int = Field(description="Episodes of the same kind and vehicle in the 30 days before")
    actions: list[ActionModel]
    events: list[ToldModel]
    deliveries: list[DeliveryModel]
    telemetry: str = Field(description="Path of the telemetry around it")


class Asked(Model):
    by: str = Field(BY_API, min_length=1, max_length=alarms.BY_MAX, description="Who acts")
    note: str | None = Field(None, max_length=alarms.NOTE_MAX)


class AskedOfMany(Asked):
    ids: list[int] = Field(min_length=1, max_length=alarms.AT_ONCE_MAX)


class Done(Model):
    outcome: Literal["done", "repeated"] = Field(description="repeated: somebody had done it; nothing has changed")
    alarm: AlarmModel


class Outcome(Model):
    id: int
    outcome: Literal["done", "repeated", "refused", "missing"]
    state: Literal["open", "acknowledged", "closed"] | None
    why: str | None


class DoneToMany(Model):
    results: list[Outcome]
    done: int
    repeated: int
    refused: int
    missing: int


# -- what a request may say --------------------------------------------------------------------------
StateQuery = Annotated[
    str | None,
    Query(description="open, acknowledged, closed; several with commas between.", examples=["open,acknowledged"]),
]
ActiveQuery = Annotated[bool | None, Query(description="true: going on. false: over.")]
SinceQuery = Annotated[str | None, Query(alias="from", description=f"Began at or after: {TIME_ALLOWED}.")]
UntilQuery = Annotated[str | None, Query(alias="to", description="Began before; written as `from` is.")]
VinQuery = Annotated[str | None, Query(description="Of this vehicle.")]
FactQuery = Annotated[str | None, Query(description="As in the registry; `unknown` for none.", max_length=200)]
LevelQuery = Annotated[int | None, Query(ge=0, le=alarms.LEVEL_MAX, description="This level or higher.")]
SourceQuery = Annotated[
    Literal["flag", "rule", "absence"] | None, Query(description="Standard flag, platform rule, or absence of data.")
]
CodeQuery = Annotated[
    str | None,
    Query(description="Name from /v1/alarms/rules, or a number together with `source`.", examples=["insulation"]),
]
IdPath = Annotated[int, Path(alias="id", ge=1, le=2**63 - 1, description="`id` of an episode")]


def desk_of(ctx: Context) -> AlarmDesk:
    if ctx.alarms is None:
        raise ProblemError(
            403, "changes-off", "This API does not know of alarms", "This process was started without them.",
            "Use the command line: `nevstream alarms`.",
        )  # fmt: skip
    return ctx.alarms


def targets_of(ctx: Context) -> Targets:
    given = ctx.settings.alarms
    return Targets(given.acknowledge_target_min, given.close_target_working_days, ctx.settings.time_zone)


def states_given(text: str | None) -> list[str] | None:
    if text is None:
        return None
    states = [word.strip() for word in text.split(",")]
    for word in states:
        if word not in alarms.STATES:
            raise bad_parameter("state", text, f"{word!r} is not a state", "open, acknowledged, closed, with commas")
    return states


def codes_given(text: str | None, source: str | None) -> list[tuple[int, int]] | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 4:
        if source is None:
            raise bad_parameter(
                "code", text, "is a number of which source?", "a name, or a number with source", "query"
            )
        return [(alarms.SOURCE_CODE[source], int(text))]
    pairs = alarms.codes_named(text)
    if not pairs:
        near = nearest(text, alarms.names())
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise bad_parameter("code", text, f"no flag or rule has this name{hint}", "a name from /v1/alarms/rules")
    return pairs


def filter_given(
    ctx: Context, state: str | None, active: bool | None, since: str | None, until: str | None, vin: str | None,
    model: str | None, fleet: str | None, region: str | None, level: int | None, source: str | None, code: str | None,
) -> AlarmFilter:  # fmt: skip
    start = time_given(since, "from", ctx.zone) if since is not None else None
    end = time_given(until, "to", ctx.zone) if until is not None else None
    if start and end:
        ordered(start, end, since)
    return AlarmFilter(
        states=states_given(state), active=active, since=start, until=end,
        vin=None if vin is None else checked_vin(vin, where="query"),
        model=model, fleet=fleet, region=region, level_min=level,
        source=None if source is None else alarms.SOURCE_CODE[source], codes=codes_given(code, source),
    )  # fmt: skip


async def _page(
    request: Request, ctx: Context, wanted: AlarmFilter, limit: int | None, cursor: str | None, form: str | None
) -> Response:
    most = limit_given(limit, ctx)
    numbers = cursor_numbers(cursor, 2)
    after = (cursor_time(numbers[0]), numbers[1]) if numbers else None
    rows = (await desk_of(ctx).page(wanted, after=after, limit=most + 1)).dicts()
    last = rows[most - 1] if len(rows) > most else None
    following = cursor_of(last["start_at"], last["episode_id"]) if last else None
    page = [alarms.described(row, ctx.local) for row in rows[:most]]
    document = {"alarms": page, "count": len(page), "next_cursor": following, "next": next_link(request, following)}
    return await document_answer(request, form, document, "alarms", zone=ctx.zone, name="alarms")


# -- asking ------------------------------------------------------------------------------------------
@router.get("/v1/alarms", response_model=AlarmPage, summary="Alarm episodes, newest first", responses=FORMATS)
async def list_alarms(
    request: Request,
    ctx: Ctx,
    state: StateQuery = None,
    active: ActiveQuery = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    vin: VinQuery = None,
    model: FactQuery = None,
    fleet: FactQuery = None,
    region: FactQuery = None,
    level: LevelQuery = None,
    source: SourceQuery = None,
    code: CodeQuery = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    form: FormatQuery = None,
) -> Response:
    """An episode is one stretch of a flag or rule: less than 60 s without it do not end it [A]."""
    wanted = filter_given(ctx, state, active, since, until, vin, model, fleet, region, level, source, code)
    return await _page(request, ctx, wanted, limit, cursor, form)


@router.get(
    "/v1/vehicles/{vin}/alarms", response_model=AlarmPage, summary="Alarm episodes of a vehicle", responses=FORMATS
)
async def vehicle_alarms(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    state: StateQuery = None,
    active: ActiveQuery = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    level: LevelQuery = None,
    source: SourceQuery = None,
    code: CodeQuery = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    form: FormatQuery = None,
) -> Response:
    """As /v1/alarms, of one vehicle."""
    await found(ctx, vin)
    wanted = filter_given(ctx, state, active, since, until, vin, None, None, None, level, source, code)
    return await _page(request, ctx, wanted, limit, cursor, form)


@router.get("/v1/alarms/rules", response_model=AlarmRules, summary="Flags and rules: what can be raised, and when")
async def rules(ctx: Ctx) -> Json:
    """The standard's flags by edition, and the rules of this platform with their thresholds and tags."""
    return Json(catalogue(ctx.settings))


@router.get("/v1/alarms/summary", summary="Counts by level, state and kind, and times of handling")
async def summary(
    ctx: Ctx,
    since: SinceQuery = None,
    until: UntilQuery = None,
    vin: VinQuery = None,
    model: FactQuery = None,
    fleet: FactQuery = None,
    region: FactQuery = None,
    level: LevelQuery = None,
    source: SourceQuery = None,
    code: CodeQuery = None,
) -> Json:
    """Of episodes that began in the range (default: 30 days); ``unhandled`` are all that wait, whenever they began.

    Handling (F4): of those that are due, because they were handled or their time is over, the share in time.
    """
    start, end = range_given(since, until, ctx, default=SUMMARY_DEFAULT, most=timedelta(days=366 * 20))
    wanted = filter_given(ctx, None, None, None, None, vin, model, fleet, region, level, source, code)
    wanted = AlarmFilter(
        since=start, until=end, vin=wanted.vin, model=model, fleet=fleet, region=region, level_min=level,
        source=wanted.source, codes=wanted.codes,
    )  # fmt: skip
    targets = targets_of(ctx)
    figures = await desk_of(ctx).summary(wanted, targets, ctx.now(), KINDS_MAX)
    return Json({"from": ctx.local(start), "to": ctx.local(end), **summarised(figures, targets, ctx)})


def summarised(figures: Mapping[str, Any], targets: Targets, ctx: Context) -> dict[str, Any]:
    """The figures of ``AlarmDesk.summary`` as answered."""
    handling = figures["handling"]

    def share(part: str, whole: str) -> float | None:
        return round(handling[part] / handling[whole], 4) if handling[whole] else None

    def quantiles(name: str) -> dict[str, float | None]:
        found = {word: handling[f"{name}_{word}"] for word in ("mean", "p5", "median", "p95")}
        return {word: None if value is None else round(float(value), 2) for word, value in found.items()}

    def named(row: Mapping[str, Any]) -> dict[str, Any]:
        kind = alarms.kind_of(row["source"], row["code"], row["edition"])
        median = row["duration_median_s"]
        return {
            "source": alarms.SOURCES.get(row["source"], str(row["source"])),
            "code": row["code"],
            "name": kind.name,
            "text_zh": kind.zh,
            **{name: row[name] for name in ("episodes", "vehicles", "active", "open", "level_max")},
            "duration_median_s": None if median is None else float(median),
        }

    return {
        "episodes": handling["episodes"],
        "vehicles": handling["vehicles"],
        "unhandled": [{**row, "oldest_at": ctx.local(row["oldest_at"])} for row in figures["unhandled"]],
        "levels": figures["levels"],
        "kinds": [named(row) for row in figures["kinds"]],
        "handling": {
            "acknowledged": handling["acknowledged"],
            "closed": handling["closed"],
            "start_to_acknowledged_min": quantiles("start_to_acknowledged_min"),
            "raised_to_acknowledged_min": quantiles("raised_to_acknowledged_min"),
            "start_to_closed_h": quantiles("start_to_closed_h"),
            "acknowledged_to_closed_h": quantiles("acknowledged_to_closed_h"),
            "acknowledge_target_min": targets.acknowledge_min,
            "acknowledge_due": handling["acknowledge_due"],
            "acknowledged_in_time": handling["acknowledged_in_time"],
            "acknowledged_in_time_share": share("acknowledged_in_time", "acknowledge_due"),
            "close_target_working_days": targets.close_working_days,
            "close_due": handling["close_due"],
            "closed_in_time": handling["closed_in_time"],
            "closed_in_time_share": share("closed_in_time", "close_due"),
            "targets_tag": "[C]",
        },
    }


# -- live --------------------------------------------------------------------------------------------
@router.get("/v1/alarms/stream", summary="News of alarms as they come (server-sent events)", response_class=Response,
            responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}})  # fmt: skip
async def stream(
    request: Request,
    ctx: Ctx,
    vin: VinQuery = None,
    model: FactQuery = None,
    fleet: FactQuery = None,
    region: FactQuery = None,
    level: LevelQuery = None,
    source: SourceQuery = None,
    code: CodeQuery = None,
    after: Annotated[
        int | None,
        Query(ge=0, le=2**63 - 1, description="Begin beyond this event id, as the header Last-Event-ID; 0: with the "
              "oldest that is kept. Default: from now on."),
    ] = None,
    last_event_id: Annotated[str | None, Header(description="Id of the last event that the client has")] = None,
) -> Response:  # fmt: skip
    """Events: raised, changed, ended, withdrawn, acknowledged, closed; data as webhooks get it; `id` to resume with.

    `missed`: the events to resume with are no longer kept, or never were; read /v1/alarms again. A comment every
    15 s keeps the connection.
    """
    desk_of(ctx)
    wanted = filter_given(ctx, None, None, None, None, vin, model, fleet, region, level, source, code)
    resumed = _event_id(last_event_id) if last_event_id else after
    feed: AlarmFeed = request.app.state.alarm_feed
    feed.check()  # a refusal is an answer of its own; the place is taken when the stream begins

    async def lines() -> AsyncIterator[bytes]:
        async with feed.client():
            yield b"retry: 3000\n\n"
            async for news in feed.follow(resumed):
                if isinstance(news, Missed):
                    data = orjson.dumps({"after": news.after, "oldest": news.oldest, "newest": news.newest}).decode()
                    yield f"event: missed\ndata: {data}\n\n".encode()
                elif not news:
                    yield b": nothing new\n\n"
                else:
                    chosen = b"".join(line(told) for told in news if matches(told, wanted))
                    # whoever filters much resumes where the stream is, not at the last event that matched
                    yield chosen or f": seen\nid: {news[-1].event_id}\n\n".encode()

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _event_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise bad_parameter("Last-Event-ID", text, "is not the id of an event", "an id of this stream", "header")
    return int(text)


def matches(told: Told, wanted: AlarmFilter) -> bool:
    """Whether an event's episode is one that the client asked for."""
    alarm = told.document["alarm"]
    kinds = (numbered(alarm["source"]), alarm["code"])
    return (
        (wanted.vin is None or alarm["vin"] == wanted.vin)
        and all(
            getattr(wanted, name) is None or (alarm[name] or "unknown") == getattr(wanted, name)
            for name in ("model", "fleet", "region")
        )
        and (wanted.level_min is None or alarm["level"] >= wanted.level_min)
        and (wanted.source is None or kinds[0] == wanted.source)
        and (wanted.codes is None or kinds in wanted.codes)
    )


# -- one -----------------------------------------------------------------------------------------------
@router.get("/v1/alarms/{id}", response_model=AlarmDetail, summary="One episode with its story")
async def one(ctx: Ctx, number: IdPath) -> Json:
    """What it was, what people did about it, what was told of it and to whom."""
    desk = desk_of(ctx)
    row = await desk.episode(number)
    story = await desk.story(number, targets_of(ctx))
    if row is None:
        raise no_episode(number, ctx.local(story["withdrawn_at"]))
    return Json(told_whole(row, story, ctx))


def told_whole(row: Mapping[str, Any], story: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """An episode with its story as answered."""
    begin, end = ctx.local(row["start_at"] - _AROUND), ctx.local(row["end_at"] + _AROUND)
    assert begin is not None
    assert end is not None
    acted = [action["level"] for action in story["actions"]]
    return {
        **alarms.described(row, ctx.local),
        "acknowledge_due_at": ctx.local(story["acknowledge_due_at"]),
        "close_due_at": ctx.local(story["close_due_at"]),
        "acknowledged_in_time": _in_time(row["acknowledged_at"], story["acknowledge_due_at"], ctx.now()),
        "closed_in_time": _in_time(row["closed_at"], story["close_due_at"], ctx.now()),
        "level_rose_since": bool(acted) and row["level"] > acted[-1],
        "alike_30d": story["alike_30d"],
        "actions": [
            {"action": each["action"], "at": ctx.local(each["acted_at"]), "by": each["acted_by"],
             "note": each["note"], "level": each["level"]}
            for each in story["actions"]
        ],
        "events": [
            {"id": str(each["event_id"]), "event": each["event"], "occurred_at": ctx.local(each["occurred_at"]),
             "level": each["level"]}
            for each in story["events"]
        ],
        "deliveries": [
            {"event_id": str(each["event_id"]), **{key: each[key] for key in ("hook", "state", "attempts")},
             "created_at": ctx.local(each["created_at"]), "finished_at": ctx.local(each["finished_at"]),
             "status": each["status"], "error": each["error"]}
            for each in story["deliveries"]
        ],
        "telemetry": f"/v1/vehicles/{row['vin']}/telemetry?from={_word(begin)}&to={_word(end)}&fields=all",
    }  # fmt: skip


def _in_time(done: datetime | None, due: datetime | None, now: datetime) -> bool | None:
    """None: neither done nor due yet."""
    if due is None:
        return None
    return done <= due if done is not None else (False if now > due else None)


def _word(time: datetime) -> str:
    return time.isoformat().replace("+", "%2B")


def no_episode(number: int, withdrawn_at: datetime | None) -> ProblemError:
    if withdrawn_at is not None:
        return ProblemError(
            404, "alarm-withdrawn", "This alarm was withdrawn",
            f"Late data showed at {withdrawn_at.isoformat(timespec='seconds')} that episode {number} never was.",
            "What was told of it is void; /v1/alarms lists those that stand.",
        )  # fmt: skip
    return ProblemError(404, "no-such-alarm", "No such alarm", f"There is no episode {number}.", "See /v1/alarms.")


# -- doing -------------------------------------------------------------------------------------------
@router.post(
    "/v1/alarms/{id}/acknowledge", response_model=Done, summary="Say that somebody takes care of an episode",
    dependencies=[Depends(changes_allowed)],
)  # fmt: skip
async def acknowledge(ctx: Ctx, number: IdPath, asked: Annotated[Asked, Body()]) -> Json:
    """Once: the first one counts, a repetition changes nothing. 409 when it is closed already."""
    return await _act(ctx, alarms.ACKNOWLEDGE, number, asked)


@router.post(
    "/v1/alarms/{id}/close", response_model=Done, summary="Say that an episode is dealt with",
    dependencies=[Depends(changes_allowed)],
)  # fmt: skip
async def close(ctx: Ctx, number: IdPath, asked: Annotated[Asked, Body()]) -> Json:
    """After it was acknowledged, else 409. It may be active still: what the vehicle reports goes on being told."""
    return await _act(ctx, alarms.CLOSE, number, asked)


@router.post(
    "/v1/alarms/acknowledge", response_model=DoneToMany, summary="Acknowledge several episodes",
    dependencies=[Depends(changes_allowed)],
)  # fmt: skip
async def acknowledge_many(ctx: Ctx, asked: Annotated[AskedOfMany, Body()]) -> Json:
    """Each by itself: what became of each is in the answer, and one that is refused does not stop the others."""
    ids = list(dict.fromkeys(asked.ids))
    if wrong := [number for number in ids if not 1 <= number < 2**63]:
        raise bad_parameter("ids", wrong[0], "is not the id of an episode", "ids from /v1/alarms", "body")
    acted = await desk_of(ctx).act(alarms.ACKNOWLEDGE, ids, by=_by(asked), note=_note(asked))
    return Json(many(acted))


def many(acted: Sequence[alarms.Acted]) -> dict[str, Any]:
    results = [{"id": each.episode_id, "outcome": each.outcome, "state": each.state, "why": each.why} for each in acted]
    counts = {word: sum(each.outcome == word for each in acted) for word in ("done", "repeated", "refused", "missing")}
    return {"results": results, **counts}


async def _act(ctx: Context, action: str, number: int, asked: Asked) -> Json:
    desk = desk_of(ctx)
    (acted,) = await desk.act(action, [number], by=_by(asked), note=_note(asked))
    if acted.outcome == "missing":
        raise no_episode(number, ctx.local((await desk.story(number, targets_of(ctx)))["withdrawn_at"]))
    if acted.outcome == "refused":
        raise ProblemError(
            409, "wrong-order", "An alarm goes from open to acknowledged to closed",
            f"Episode {number} is {acted.state}: {acted.why}.", f"See /v1/alarms/{number}.",
        )  # fmt: skip
    row = await desk.episode(number)
    if row is None:  # withdrawn by late data at this moment
        raise no_episode(number, None)
    return Json({"outcome": acted.outcome, "alarm": alarms.described(row, ctx.local)})


def _by(asked: Asked) -> str:
    return _text("by", asked.by) or BY_API


def _note(asked: Asked) -> str | None:
    return None if asked.note is None else _text("note", asked.note)


def _text(name: str, text: str) -> str:
    if "\0" in text:
        raise bad_parameter(name, text, "has a NUL in it", "text", "body")
    return text.strip()
