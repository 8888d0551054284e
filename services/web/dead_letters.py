"""/v1/dead-letters: frames that could not become rows, with the reason and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request

from schemas.batch import Codec
from schemas.reasons import BY_CODE, CODE, reason_name
from services.web import models
from services.web.answers import DOORS, Json
from services.web.parameters import (
    TIME_ALLOWED,
    Context,
    Ctx,
    CursorQuery,
    LimitQuery,
    checked_vin,
    cursor_of,
    limit_given,
    next_link,
    only_known,
    ordered,
    record_cursor,
    time_given,
)
from services.web.problems import ProblemError, bad_parameter, nearest

router = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"], dependencies=[Depends(only_known)])

CODECS: Final = {int(codec): codec.name.lower() for codec in Codec}


def letter(row: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    reason = BY_CODE.get(row["reason"])
    return {
        "id": f"{row['partition']}-{row['offset']}-{row['position']}",
        "received_at": ctx.local(row["received_at"]),
        "reason": reason_name(row["reason"]),
        "meaning": reason.meaning if reason else "A reason that this version does not know.",
        "how_to_fix": reason.remedy if reason else "Update the process that serves this API.",
        "error_offset": row["detail"],
        "door": DOORS.get(row["door"], str(row["door"])),
        "codec": CODECS.get(row["codec"], str(row["codec"])),
        **{name: row[name] for name in ("vin", "peer", "client", "frame_bytes")},
    }


@router.get("", response_model=models.DeadLetterPage, summary="Refused frames, newest first")
async def list_dead_letters(
    request: Request,
    ctx: Ctx,
    reason: Annotated[
        str | None, Query(description=f"Only this reason: {', '.join(CODE)}.", examples=["bad_bcc"])
    ] = None,
    vin: Annotated[str | None, Query(description="Only frames that claim this VIN.")] = None,
    since: Annotated[str | None, Query(alias="from", description=f"Arrived at or after: {TIME_ALLOWED}.")] = None,
    until: Annotated[str | None, Query(alias="to", description="Arrived before; written as `from` is.")] = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
) -> Json:
    """Nothing is dropped silently: every frame that is not a row is here, with the reason."""
    if reason is not None and reason not in CODE:
        near = nearest(reason, CODE)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise bad_parameter("reason", reason, f"is not a reason{hint}", f"one of {', '.join(CODE)}")
    if vin is not None:
        checked_vin(vin, where="query")
    start = time_given(since, "from", ctx.zone) if since is not None else None
    end = time_given(until, "to", ctx.zone) if until is not None else None
    if start and end:
        ordered(start, end, since)
    most = limit_given(limit, ctx)
    table = await ctx.queries.dead_letters(
        reason=CODE[reason] if reason else None,
        vin=vin,
        since=start,
        until=end,
        after=record_cursor(cursor),
        limit=most + 1,
    )
    rows = table.dicts()
    following = None
    if len(rows) > most:
        last = rows[most - 1]
        following = cursor_of(last["received_at"], last["partition"], last["offset"], last["position"])
    page = [letter(row, ctx) for row in rows[:most]]
    return Json(
        {"dead_letters": page, "count": len(page), "next_cursor": following, "next": next_link(request, following)}
    )


@router.get("/{id}", response_model=models.DeadLetterDetail, summary="One refused frame, with its bytes")
async def one_dead_letter(
    ctx: Ctx,
    letter_id: Annotated[str, Path(alias="id", description="partition-offset-position", examples=["3-1042-17"])],
) -> Json:
    """The frame as it came, in hex; `nevstream decode` explains it byte by byte."""
    parts = letter_id.split("-")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in parts):
        allowed = "partition-offset-position, three whole numbers, such as 3-1042-17"
        raise bad_parameter("id", letter_id, "is not a dead letter's id", allowed, "path")
    partition, offset, position = map(int, parts)
    row = await ctx.queries.dead_letter(partition, offset, position)
    if row is None:
        raise ProblemError(
            404, "no-such-dead-letter", "No such dead letter", f"There is no dead letter {letter_id}.",
            "List them with /v1/dead-letters; a requeued or expired one is gone.",
        )  # fmt: skip
    return Json(letter(row, ctx) | {"frame_hex": bytes(row["frame"]).hex()})
