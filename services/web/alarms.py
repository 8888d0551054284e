"""/v1/alarms: episodes as people use them. Lists, one with its story, acknowledge and close.

An episode is ``active`` until it is over; people take it from open to acknowledged to closed. ``changes.py`` says from
whom changes are taken. Figures and live news of alarms: ``alarm_figures.py``, ``alarm_live.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Depends, Request
from starlette.responses import Response

from schemas import alarms
from schemas.alarms import AlarmFilter
from services.web import alarm_figures, alarm_live
from services.web.alarm_models import BY_API, AlarmDetail, AlarmPage, Asked, AskedOfMany, Done, DoneToMany
from services.web.alarm_parameters import (
    ActiveQuery,
    CodeQuery,
    FactQuery,
    IdPath,
    LevelQuery,
    SinceQuery,
    SourceQuery,
    StateQuery,
    UntilQuery,
    VinQuery,
    desk_of,
    filter_given,
    targets_of,
)
from services.web.answers import Json
from services.web.changes import changes_allowed
from services.web.exports import FORMATS, FormatQuery, document_answer
from services.web.parameters import (
    Context,
    Ctx,
    CursorQuery,
    LimitQuery,
    VinPath,
    cursor_numbers,
    cursor_of,
    cursor_time,
    limit_given,
    next_link,
    only_known,
)
from services.web.problems import ProblemError, bad_parameter
from services.web.vehicles import found

router = APIRouter(tags=["alarms"], dependencies=[Depends(only_known)])
for part in (alarm_figures, alarm_live):  # before /v1/alarms/{id}, which would take their names for ids
    router.include_router(part.router)

_AROUND: Final = timedelta(minutes=5)  # of an episode, for a look at its telemetry


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
    acted = await desk_of(ctx).act(alarms.ACKNOWLEDGE, ids, by=_by(ctx, asked), note=_note(asked))
    return Json(many(acted))


def many(acted: Sequence[alarms.Acted]) -> dict[str, Any]:
    results = [{"id": each.episode_id, "outcome": each.outcome, "state": each.state, "why": each.why} for each in acted]
    counts = {word: sum(each.outcome == word for each in acted) for word in ("done", "repeated", "refused", "missing")}
    return {"results": results, **counts}


async def _act(ctx: Context, action: str, number: int, asked: Asked) -> Json:
    desk = desk_of(ctx)
    (acted,) = await desk.act(action, [number], by=_by(ctx, asked), note=_note(asked))
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


def _by(ctx: Context, asked: Asked) -> str:
    """Who acts: the name of the token where there is one, with whom it says it acts for."""
    said = _text("by", asked.by)
    if ctx.caller is None:
        return said or BY_API
    return f"{ctx.who}: {said}"[: alarms.BY_MAX] if said and said != BY_API else ctx.who


def _note(asked: Asked) -> str | None:
    return None if asked.note is None else _text("note", asked.note)


def _text(name: str, text: str) -> str:
    if "\0" in text:
        raise bad_parameter(name, text, "has a NUL in it", "text", "body")
    return text.strip()
