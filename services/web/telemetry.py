"""/v1/vehicles/{vin}/telemetry: rows of one vehicle, as reported or in buckets of time."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from schemas.seams import Table
from services.web import models
from services.web.answers import answered, columns, isoformat, json_rows
from services.web.exports import (
    FORMATS,
    XLSX_CELLS_MAX,
    Column,
    Format,
    FormatQuery,
    body_of,
    file_headers,
    format_wanted,
    media_type_of,
)
from services.web.parameters import (
    FIELDS,
    BucketQuery,
    Context,
    Ctx,
    CursorQuery,
    Field,
    FieldsQuery,
    FromQuery,
    LimitQuery,
    ToQuery,
    VinPath,
    bucket_given,
    cursor_numbers,
    cursor_of,
    cursor_time,
    fields_given,
    limit_given,
    next_link,
    only_known,
    range_given,
)
from services.web.vehicles import found

router = APIRouter(prefix="/v1/vehicles/{vin}", tags=["telemetry"], dependencies=[Depends(only_known)])

ROWS: Final = 1000  # in a page, when the request does not say


@router.get("/telemetry", response_model=models.Telemetry, responses=FORMATS, summary="Rows in a time range")
async def telemetry(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    since: FromQuery = None,
    until: ToQuery = None,
    fields: FieldsQuery = None,
    bucket: BucketQuery = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """Reports of a vehicle in [from, to), oldest first, or their aggregates per bucket.

    A value that the vehicle marked abnormal or invalid, or that lies outside the standard's range, is
    null; the field `flaws` says which. Follow `next` until it is null for the whole range: no row is
    left out or comes twice, while reports that arrive late may still fill in behind you.
    """
    wanted = format_wanted(request, kind)
    length = bucket_given(bucket)
    own = ctx.own.fields if ctx.own is not None else {}
    chosen = fields_given(fields, bucketed=length is not None, own=own)
    start, end = range_given(since, until, ctx)
    most = limit_given(limit, ctx, ROWS)
    vehicle = await found(ctx, vin)
    shape = columns(chosen, bucketed=length is not None)
    if length is None:
        table, following = await _raw(ctx, vehicle["vehicle_id"], start, end, chosen, most, cursor)
    else:
        table, following = await _bucketed(ctx, vehicle["vehicle_id"], start, end, length, chosen, most, cursor)
    link = next_link(request, following, **{"from": isoformat(ctx.local(start)), "to": isoformat(ctx.local(end))})
    about = {
        "vin": vin,
        "from": ctx.local(start),
        "to": ctx.local(end),
        "bucket_s": length.total_seconds() if length else None,
        "fields": [field.name for field in chosen],
        "count": len(table.rows),
        "newest_data_time": ctx.local(vehicle["time"]),
        "next_cursor": following,
        "next": link,
    }
    body = await asyncio.to_thread(_body, wanted, shape, table, about, ctx)
    headers = file_headers(about, f"telemetry-{vin}.{wanted}")
    if wanted == Format.JSON:
        del headers["Content-Disposition"]
    return Response(body, media_type=media_type_of(wanted), headers=headers)


async def _raw(
    ctx: Context, vehicle_id: int, start: datetime, end: datetime, chosen: list[Field], most: int, cursor: str | None
) -> tuple[Table, str | None]:
    numbers = cursor_numbers(cursor, 3)
    after = (cursor_time(numbers[0]), numbers[1], numbers[2]) if numbers else None
    # the edition says how a cell list is laid out, so it always comes along
    names = ["edition", *(field.column for field in chosen if field.column != "edition")]
    table = await ctx.queries.telemetry(vehicle_id, since=start, until=end, columns=names, after=after, limit=most + 1)
    following = None
    if len(table.rows) > most:
        following = cursor_of(*table.rows[most - 1][:3])
    return Table(table.columns, table.rows[:most]), following


async def _bucketed(
    ctx: Context,
    vehicle_id: int,
    start: datetime,
    end: datetime,
    length: timedelta,
    chosen: list[Field],
    most: int,
    cursor: str | None,
) -> tuple[Table, str | None]:
    numbers = cursor_numbers(cursor, 1)
    # a page ends where a bucket begins, so that no bucket is cut in two
    since = max(start, cursor_time(numbers[0])) if numbers else start
    table = await ctx.queries.buckets(
        vehicle_id,
        since=since,
        until=end,
        bucket=length,
        time_zone=ctx.zone.key,
        columns=[field.column for field in chosen],
        limit=most + 1,
    )
    following = cursor_of(table.rows[most][0]) if len(table.rows) > most else None
    return Table(table.columns, table.rows[:most]), following


def _body(wanted: str, shape: list[Column], table: Table, about: dict[str, Any], ctx: Context) -> bytes:
    bucketed = about["bucket_s"] is not None
    rows = table.rows
    editions = [0] * len(rows)
    if not bucketed:
        # (time, kind, part, edition, others...) as stored → the order that was asked for
        place = {name: i for i, name in enumerate(table.columns)}
        known = {**FIELDS, **(ctx.own.fields if ctx.own is not None else {})}
        order = [place[name] for name in ("time", "kind", "part", *(known[name].column for name in about["fields"]))]
        editions = [row[place["edition"]] for row in rows]
        rows = [tuple(row[i] for i in order) for row in rows]
    values = answered(rows, shape, ctx.zone, editions)
    if wanted == Format.JSON:
        return orjson.dumps({**about, "rows": json_rows(shape, values)})
    return body_of(wanted, shape, values, ctx.zone, about, xlsx_cells_max=XLSX_CELLS_MAX)
