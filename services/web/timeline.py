"""/v1/vehicles/{vin}/timeline: a local day of a vehicle, end to end, in pieces of one state each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AwareDatetime
from starlette.responses import Response

from services.web.days import exemption
from services.web.exports import FORMATS, Column, FormatQuery, format_wanted, table_answer
from services.web.parameters import Ctx, VinPath, only_known
from services.web.problems import bad_parameter
from services.web.tracks import gap_limit_s
from services.web.vehicle_answers import DAY_ALLOWED, day_begins, day_given, page_model, subject

router = APIRouter(prefix="/v1/vehicles/{vin}", tags=["days"], dependencies=[Depends(only_known)])

_D = "double precision"
SEGMENT: Final = (
    Column("state", "text", "", "driving, charging, parked, gap (no data), pending (stored, not folded yet)"),
    Column("start_at", "time", "", "begin"),
    Column("end_at", "time", "", "end"),
    Column("duration_s", _D, "s", "its length within the day"),
    Column("trip_id", "bigint", "", "the trip that it is part of"),
    Column("charge_id", "bigint", "", "the charge that it is part of"),
)
SEGMENTS_MAX: Final = 5_000
Timeline = page_model(
    "Timeline", "segments", SEGMENT, day=(date, ...), begins_at=(AwareDatetime, ...), ends_at=(AwareDatetime, ...),
    gap_limit_s=(float, ...), seconds=(dict[str, float], ...), exempt=(str | None, ...), complete=(bool, ...),
)  # fmt: skip


@router.get("/timeline", response_model=Timeline, responses=FORMATS, summary="A day, end to end")
async def timeline(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    day: Annotated[str | None, Query(description=f"{DAY_ALLOWED[0].upper()}{DAY_ALLOWED[1:]}. Default: today.")] = None,
    kind: FormatQuery = None,
) -> Response:
    """What the vehicle did on a local day, without holes: trips, charges, parked, and the gaps without data.

    Runs of driving too short to be a trip read as parked. A gap within a trip cuts it in two parts of the same
    `trip_id`. A day that is not over ends now, or with its newest record while the next one is not overdue.
    """
    wanted = format_wanted(request, kind)
    chosen = day_given(day, "day") if day is not None else ctx.now().astimezone(ctx.zone).date()
    begin = day_begins(chosen, ctx)
    midnight = day_begins(chosen + timedelta(days=1), ctx)
    end = min(midnight, ctx.now().astimezone(ctx.zone))
    if end <= begin:
        raise bad_parameter("day", str(chosen), "has not begun yet", "a local day up to today")
    of = await subject(ctx, vin)
    nominal = (
        await ctx.queries.vehicle_days(of.vehicle_id, first=chosen, last=chosen, columns=("nominal_s",), limit=1)
    ).rows
    gap_s = gap_limit_s(nominal[0][1] if nominal else None)
    beside = timedelta(seconds=gap_s)
    span = await ctx.queries.data_span(of.vehicle_id, since=begin - beside, until=end + beside)
    if span[1] is not None and begin < span[1] < end <= span[1] + beside and end < midnight:
        end = span[1].astimezone(ctx.zone)  # the next record is not overdue: that is no gap yet
    gaps = await ctx.queries.data_gaps(
        of.vehicle_id, since=begin - beside, until=end + beside, gap_s=gap_s, limit=SEGMENTS_MAX + 1
    )
    sessions = {
        name: await ctx.queries.sessions_touching(name, of.vehicle_id, since=begin, until=end, limit=SEGMENTS_MAX)
        for name in ("trips", "charges")
    }
    layers: list[_Layer] = []
    if of.on_change:
        gaps_found: Sequence[tuple[Any, ...]] = ()
    else:
        gaps_found = gaps.rows[:SEGMENTS_MAX]
    if span[0] is not None and span[1] is not None:
        layers.append((span[0], span[1], "parked", None, None))
        layers += [(r["start_at"], r["end_at"], "charging", None, r["charge_id"]) for r in sessions["charges"].dicts()]
        layers += [(r["start_at"], r["end_at"], "driving", r["trip_id"], None) for r in sessions["trips"].dicts()]
        newest = of.fact("newest_at")
        if newest is None or newest < span[1]:
            layers.append((max(newest or span[0], span[0]), span[1], "pending", None, None))
        layers += [(start, stop, "gap", None, None) for start, stop in gaps_found]
    pieces = list(laid(layers, begin, end))
    segments = [
        {
            "state": state,
            "start_at": ctx.local(start),
            "end_at": ctx.local(stop),
            "duration_s": (stop - start).total_seconds(),
            "trip_id": trip_id,
            "charge_id": charge_id,
        }
        for start, stop, state, trip_id, charge_id in pieces
    ]
    seconds: dict[str, float] = {}
    for start, stop, state, *_ in pieces:
        seconds[state] = round(seconds.get(state, 0.0) + (stop - start).total_seconds(), 6)
    about = {
        "vin": vin,
        "day": chosen,
        "begins_at": begin,
        "ends_at": end,
        "gap_limit_s": gap_s,
        "count": len(segments),
        "seconds": seconds,
        "coverage": round(1.0 - seconds.get("gap", 0.0) / (end - begin).total_seconds(), 6),
        "complete": len(gaps.rows) <= SEGMENTS_MAX,
        **exemption(of),
        **of.as_of(ctx),
        "next_cursor": None,
        "next": None,
    }
    return await table_answer(
        wanted, SEGMENT, segments, about, key="segments", zone=ctx.zone, name=f"timeline-{vin}-{chosen}"
    )


_Layer = tuple[datetime, datetime, str, int | None, int | None]  # start, end, state, trip_id, charge_id


def laid(layers: Sequence[_Layer], begin: datetime, end: datetime) -> Iterator[_Layer]:
    """[begin, end) cut into pieces that each have one state: that of the last of ``layers`` there, ``gap`` where none.

    Neighbours of one state and session are joined.
    """
    starts: dict[datetime, list[int]] = {}
    ends: dict[datetime, list[int]] = {}
    for number, (start, stop, *_) in enumerate(layers):
        start, stop = max(start, begin), min(stop, end)
        if start < stop:
            starts.setdefault(start, []).append(number)
            ends.setdefault(stop, []).append(number)
    cuts = sorted({begin, end, *starts, *ends})
    active: set[int] = set()
    before: _Layer | None = None
    for at, until in pairwise(cuts):
        active.difference_update(ends.get(at, ()))
        active.update(starts.get(at, ()))
        state: tuple[str, int | None, int | None] = layers[max(active)][2:] if active else ("gap", None, None)
        if before is not None and before[2:] == state:
            before = (before[0], until, *state)
            continue
        if before is not None:
            yield before
        before = (at, until, *state)
    if before is not None:
        yield before
