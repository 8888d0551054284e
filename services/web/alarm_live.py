"""/v1/alarms/stream: news of alarms as server-sent events, for pages and programs that want to know at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from schemas.alarms import AlarmFilter
from services.web.alarm_feed import AlarmFeed, Missed, Told, line
from services.web.alarm_parameters import (
    CodeQuery,
    FactQuery,
    LevelQuery,
    SourceQuery,
    VinQuery,
    desk_of,
    filter_given,
)
from services.web.alarm_rules import numbered
from services.web.parameters import Ctx
from services.web.problems import bad_parameter

router = APIRouter()


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
            async for news in feed.follow(resumed, ctx.tenant):
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
