"""/v1/dead-letters: frames that could not become rows, with the reason and what to do about it.

Lists, counts, explains and exports them, and puts them into the journal again (``changes.py`` says for whom).
"""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response

from schemas.batch import VIN_BYTES, Codec
from schemas.reasons import BY_CODE, CODE, reason_name
from schemas.samples.decode import JSON_CODECS
from schemas.seams import LetterDesk, LetterFilter, LetterId
from services.web import models
from services.web.answers import DOORS, EDITIONS, Json
from services.web.changes import changes_allowed
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


def letter_id(row: Mapping[str, Any]) -> str:
    return f"{row['partition']}-{row['offset']}-{row['position']}"


def letter(row: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    reason = BY_CODE.get(row["reason"])
    return {
        "id": letter_id(row),
        "received_at": ctx.local(row["received_at"]),
        "reason": reason_name(row["reason"]),
        "meaning": reason.meaning if reason else "A reason that this version does not know.",
        "how_to_fix": reason.remedy if reason else "Update the process that serves this API.",
        "error_offset": row["detail"],
        "error": row.get("error"),
        "door": DOORS.get(row["door"], str(row["door"])),
        "codec": CODECS.get(row["codec"], str(row["codec"])),
        **{name: row[name] for name in ("vin", "peer", "client", "frame_bytes", "requeued_by", "requeued_as")},
        "requeued_at": ctx.local(row["requeued_at"]),
        "replayed_at": ctx.local(row["replayed_at"]),
    }


def _reason_given(reason: str | None) -> int | None:
    if reason is None:
        return None
    if reason not in CODE:
        near = nearest(reason, CODE)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise bad_parameter("reason", reason, f"is not a reason{hint}", f"one of {', '.join(CODE)}")
    return CODE[reason]


def _filter(
    ctx: Context, reason: str | None, vin: str | None, since: str | None, until: str | None, state: str | None = None
) -> LetterFilter:
    """The conditions of a request, checked."""
    code = _reason_given(reason)
    if vin is not None:
        checked_vin(vin, where="query")
    start = time_given(since, "from", ctx.zone) if since is not None else None
    end = time_given(until, "to", ctx.zone) if until is not None else None
    if start and end:
        ordered(start, end, since)
    return LetterFilter(code, vin, start, end, None if state is None else state == "open")


def parse_id(text: str) -> LetterId:
    parts = text.split("-")
    numbers = all(part.isascii() and part.isdigit() and len(part) <= 18 for part in parts)
    if len(parts) != 3 or not numbers or int(parts[0]) >= 2**31 or int(parts[2]) >= 2**31:
        allowed = "partition-offset-position, three whole numbers, such as 3-1042-17"
        raise bad_parameter("id", text, "is not a dead letter's id", allowed, "path")
    return int(parts[0]), int(parts[1]), int(parts[2])


ReasonQuery = Annotated[
    str | None, Query(alias="reason", description=f"Only this reason: {', '.join(CODE)}.", examples=["bad_bcc"])
]
VinQuery = Annotated[str | None, Query(description="Only frames that claim this VIN.")]
SinceQuery = Annotated[str | None, Query(alias="from", description=f"Arrived at or after: {TIME_ALLOWED}.")]
UntilQuery = Annotated[str | None, Query(alias="to", description="Arrived before; written as `from` is.")]
StateQuery = Annotated[
    Literal["open", "settled"] | None,
    Query(description="open: nothing was done about it yet. settled: requeued, or read by a replay."),
]
IdPath = Annotated[str, Path(alias="id", description="partition-offset-position", examples=["3-1042-17"])]


@router.get("", response_model=models.DeadLetterPage, summary="Refused frames, newest first")
async def list_dead_letters(
    request: Request,
    ctx: Ctx,
    reason: ReasonQuery = None,
    vin: VinQuery = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    state: StateQuery = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
) -> Json:
    """Nothing is dropped silently: every frame that is not a row is here, with the reason."""
    wanted = _filter(ctx, reason, vin, since, until, state)
    most = limit_given(limit, ctx)
    table = await ctx.queries.dead_letter_page(wanted, after=record_cursor(cursor), limit=most + 1)
    rows, following = _page(table.dicts(), most)
    page = [letter(row, ctx) for row in rows]
    return Json(
        {"dead_letters": page, "count": len(page), "next_cursor": following, "next": next_link(request, following)}
    )


def _page(rows: list[dict[str, Any]], most: int) -> tuple[list[dict[str, Any]], str | None]:
    """The page, and the cursor of the one after it; ``rows`` has one more than the page when there is one."""
    if len(rows) <= most:
        return rows, None
    last = rows[most - 1]
    return rows[:most], cursor_of(last["received_at"], last["partition"], last["offset"], last["position"])


@router.get("/counts", response_model=models.DeadLetterCounts, summary="How many, by reason, VIN, model or firmware")
async def count_dead_letters(
    ctx: Ctx,
    by: Annotated[
        Literal["reason", "vin", "model", "firmware"],
        Query(
            description="firmware: edition of the vehicle's last login, the first seven digits of its ICCID and the "
            "first seven characters of its first pack code, which terminals of one build have in common."
        ),
    ] = "reason",
    reason: ReasonQuery = None,
    vin: VinQuery = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    state: StateQuery = None,
    limit: LimitQuery = None,
) -> Json:
    """Where the trouble is: one terminal, one model, one build, or everyone.  Groups of most letters first."""
    table = await ctx.queries.dead_letter_counts(
        _filter(ctx, reason, vin, since, until, state), by=by, limit=limit_given(limit, ctx)
    )
    groups = [group(row, ctx) for row in table.dicts()]
    return Json({"by": by, "groups": groups, "count": len(groups)})


def group(row: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """One line of counts: the key words of the grouping, then the numbers."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, datetime):
            found[name] = ctx.local(value)
        elif name == "reason":
            found[name] = reason_name(value)
        elif name == "edition":
            found[name] = EDITIONS.get(value, value)
        else:
            found[name] = value
    return found


_CSV_COLUMNS: Final = (
    "id", "received_at", "reason", "error_offset", "door", "codec", "vin", "peer", "client", "frame_bytes",
    "error", "requeued_at", "requeued_by", "requeued_as", "replayed_at", "frame_hex",
)  # fmt: skip
EXPORT_TYPES: Final = {"jsonl": "application/x-ndjson", "csv": "text/csv", "raw": "application/octet-stream"}


def export_body(letters: Sequence[dict[str, Any]], frames: Sequence[bytes], form: str, *, head: bool = True) -> bytes:
    """Letters with their frames: JSON lines, CSV, or the frames back to back as a stream has them."""
    if form == "raw":
        return b"".join(frames)
    whole = [one | {"frame_hex": bytes(frame).hex()} for one, frame in zip(letters, frames, strict=True)]
    if form == "jsonl":
        return b"".join(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in whole)
    text = io.StringIO()
    writer = csv.writer(text)
    if head:
        writer.writerow(_CSV_COLUMNS)
    for one in whole:
        values = (one[name] for name in _CSV_COLUMNS)
        writer.writerow(value.isoformat() if isinstance(value, datetime) else value for value in values)
    return text.getvalue().encode()


@router.get(
    "/export",
    summary="Refused frames with their bytes, oldest first: JSON lines, CSV or raw",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in EXPORT_TYPES.values()}}},
)
async def export_dead_letters(
    request: Request,
    ctx: Ctx,
    form: Annotated[
        Literal["jsonl", "csv", "raw"],
        Query(alias="format", description="raw: the frames back to back, as `nevstream decode FILE` reads them."),
    ] = "jsonl",
    reason: ReasonQuery = None,
    vin: VinQuery = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    state: StateQuery = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
) -> Response:
    """A page; the next one is in `Link` and `X-Next-Cursor`, without them it was the last."""
    most = limit_given(limit, ctx)
    wanted = _filter(ctx, reason, vin, since, until, state)
    table = await ctx.queries.dead_letter_frames(wanted, after=record_cursor(cursor), limit=most + 1)
    rows, following = _page(table.dicts(), most)
    letters = [letter(row, ctx) for row in rows]
    body = await asyncio.to_thread(export_body, letters, [row["frame"] for row in rows], form, head=cursor is None)
    headers = {"Content-Disposition": f'attachment; filename="dead-letters.{"bin" if form == "raw" else form}"'}
    if following is not None:
        headers |= {"X-Next-Cursor": following, "Link": f'<{next_link(request, following)}>; rel="next"'}
    return Response(body, media_type=EXPORT_TYPES[form], headers=headers)


_JSON_SHOWN: Final = 4096  # bytes of a payload that are shown
_JSON_PIECE: Final = 64


def _annotated_sample(frame: bytes, detail: int) -> list[dict[str, Any]]:
    """VIN and text of a JSON payload, the text in pieces so that the one with the error can be marked."""
    shown = frame[: VIN_BYTES + _JSON_SHOWN]
    cuts = sorted({0, VIN_BYTES, *range(VIN_BYTES, len(shown), _JSON_PIECE), len(shown)} | {min(detail, len(shown))})
    return [
        {
            "offset": begin, "hex": shown[begin:end].hex(), "field": "JSON" if begin >= VIN_BYTES else "vin", "raw": "",
            "value": shown[begin:end].decode("utf-8", "replace"), "unit": "", "clause": "", "problem": "",
            "error": begin <= detail < end,
        }
        for begin, end in itertools.pairwise(cuts)
    ]  # fmt: skip


def annotated(frame: bytes, detail: int, codec: int) -> list[dict[str, Any]]:
    """The frame field by field; ``error`` marks the one that holds byte ``detail``."""
    if codec in JSON_CODECS:
        return _annotated_sample(frame, detail)
    if codec != Codec.GBT32960:
        return []
    from schemas.gbt32960.explain import explain  # here, because it loads the decoder, and few ask for it

    found = []
    for row in explain(frame):
        size = len(row.bytes_hex) // 2
        found.append(
            {
                "offset": row.offset, "hex": row.bytes_hex, "field": row.field, "raw": row.raw, "value": row.value,
                "unit": row.unit, "clause": row.clause, "problem": row.problem,
                "error": row.offset <= detail < row.offset + size,
            }
        )  # fmt: skip
    return found


@router.get("/{id}", response_model=models.DeadLetterDetail, summary="One refused frame, with its bytes explained")
async def one_dead_letter(ctx: Ctx, key: IdPath) -> Json:
    """The frame as it came, in hex and field by field, and what was done about it."""
    row = await ctx.queries.dead_letter(*parse_id(key))
    if row is None:
        raise _no_such(key)
    frame = bytes(row["frame"])
    edited = row["requeued_frame"]
    return Json(
        letter(row, ctx)
        | {
            "peer": peer_of(row),
            "frame_hex": frame.hex(),
            "requeued_frame_hex": bytes(edited).hex() if edited is not None else None,
            "outcome": row["outcome"],
            "annotated": await asyncio.to_thread(annotated, frame, row["detail"], row["codec"]),
        }
    )


def peer_of(row: Mapping[str, Any]) -> str | None:
    """Where one letter came from.  What the door refused says so itself; a frame that the pipeline refused had been
    accepted, so it came over the connection that its vehicle had then."""
    peer: str | None = row["peer"] or row["connected_from"]
    return peer


def _no_such(key: str) -> ProblemError:
    return ProblemError(
        404, "no-such-dead-letter", "No such dead letter", f"There is no dead letter {key}.",
        "List them with /v1/dead-letters; those that are too old or too many are dropped (dead_letters.age_max_days).",
    )  # fmt: skip


# -- putting them back ---------------------------------------------------------------------------------


def _desk(ctx: Context) -> LetterDesk:
    if ctx.letters is None:
        raise ProblemError(
            403, "changes-off", "This API does not take changes here", "This process was started to read only.",
            "Use the command line: `nevstream dead-letters requeue`.",
        )  # fmt: skip
    return ctx.letters


def _dashed(key: LetterId) -> str:
    return "-".join(map(str, key))


@router.post(
    "/requeue",
    response_model=models.Requeue,
    summary="Put the open letters of a filter into the journal again",
    dependencies=[Depends(changes_allowed)],
)
async def requeue_dead_letters(ctx: Ctx, wanted: Annotated[models.RequeueFilter, Body()]) -> Json:
    """Oldest first.  A filter without a reason leaves out frames that were refused because of who sent them."""
    found = _filter(ctx, wanted.reason, wanted.vin, wanted.from_, wanted.to)
    if not any((wanted.reason, wanted.vin, wanted.from_, wanted.to, wanted.all_)):
        raise bad_parameter("all", wanted.all_, "is needed to requeue every open letter", "true", "body")
    done = await _desk(ctx).requeue_all(found, by=ctx.who, limit=wanted.limit)
    return Json(_requeued(done.frames, done.skipped))


@router.post(
    "/{id}/requeue",
    response_model=models.Requeue,
    summary="Put one letter into the journal again",
    dependencies=[Depends(changes_allowed)],
)
async def requeue_dead_letter(ctx: Ctx, key: IdPath, _: Annotated[models.Nothing, Body()]) -> Json:
    """The same bytes, with the arrival time they had.  What became of it: `outcome` of the letter, a moment later."""
    which = parse_id(key)
    done = await _desk(ctx).requeue([which], by=ctx.who)
    if which in done.skipped:
        if await ctx.queries.dead_letter(*which) is None:
            raise _no_such(key)
        raise ProblemError(
            409, "not-requeued", "The letter was not requeued", f"{key}: {done.skipped[which]}.",
            "Look at the letter's requeued_as and outcome; `nevstream dead-letters requeue --again` insists.",
        )  # fmt: skip
    return Json(_requeued(done.frames, done.skipped))


def _requeued(frames: Mapping[LetterId, LetterId], skipped: Mapping[LetterId, str]) -> dict[str, Any]:
    return {
        "requeued": [{"id": _dashed(key), "requeued_as": _dashed(place)} for key, place in frames.items()],
        "skipped": [{"id": _dashed(key), "why": why} for key, why in skipped.items()],
    }
