"""/v1/data-quality: which signals are not what they should be, how often, in which vehicles, and against what.

A flaw never refuses a report: its signal is masked or marked, and counted.  Counts are of whole UTC days, as the
rows of telemetry lie; each answer says of its days when they were counted and whether they have changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from schemas.checks import CHECKS, RATES
from schemas.seams import FlawFilter
from schemas.signals import INDEX, SIGNALS
from services.web.answers import EDITIONS, Json
from services.web.exports import FORMATS, FormatQuery, document_answer
from services.web.parameters import (
    Context,
    Ctx,
    FromQuery,
    LimitQuery,
    ToQuery,
    VinPath,
    checked_vin,
    limit_given,
    no_vehicle,
    only_known,
    range_given,
)
from services.web.problems import bad_parameter

router = APIRouter(tags=["data quality"], dependencies=[Depends(only_known)])

DAYS_MAX: Final = 400
DAYS_DEFAULT: Final = 7
STATES: Final = ("abnormal", "invalid", "out_of_range", "suspect", "rate")
State = Literal["abnormal", "invalid", "out_of_range", "suspect", "rate"]
By = Literal["signal", "model", "firmware", "vin"]
_DAY_ALLOWED: Final = "a UTC day, such as 2026-11-24"


class FlawGroup(BaseModel):
    signal: str
    state: str = Field(description="abnormal, invalid, out_of_range, suspect (contradicted), rate (moved too fast)")
    flaws: int = Field(description="Reports in which the signal is so")
    vehicles: int
    model: str | None = None
    vin: str | None = None
    edition: int | None = Field(None, description="Of the vehicle's last login")
    iccid: str | None = Field(None, description="First seven digits")
    packs: str | None = Field(None, description="First seven characters of the first pack's code")


class FlawDay(BaseModel):
    day: date
    reports: int | None = Field(description="Reports that were counted; null: not counted yet")
    counted_at: datetime | None
    changed_since: bool = Field(description="Reports have come since: what is counted here is behind")


class FlawCounts(BaseModel):
    by: str
    since: date
    until: date
    groups: list[FlawGroup]
    count: int
    days: list[FlawDay]
    reports: int | None = Field(description="null for a token with fleets")


class RateFlaw(BaseModel):
    time: datetime
    kind: str
    part: int
    signal: str
    unit: str
    previous_time: datetime
    previous_value: float
    value: float
    per_s: float


class RateFlaws(BaseModel):
    vin: str
    since: datetime
    until: datetime
    rate_flaws: list[RateFlaw]
    count: int
    complete: bool = Field(description="false: there are more than the limit; ask for a shorter range")


class Checks(BaseModel):
    checks: list[dict[str, Any]]
    rates: list[dict[str, Any]]


def day_given(text: str, name: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise bad_parameter(name, text, "is not a day", _DAY_ALLOWED) from None


def days_given(since: str | None, until: str | None, now: datetime) -> tuple[date, date]:
    """UTC days, both included."""
    last = day_given(until, "to") if until is not None else now.astimezone(UTC).date()
    first = day_given(since, "from") if since is not None else last - timedelta(days=DAYS_DEFAULT - 1)
    if not 0 <= (last - first).days < DAYS_MAX:
        raise bad_parameter("from", since or first.isoformat(), f"to `to` are {(last - first).days + 1} days",
                            f"1 to {DAYS_MAX} days")  # fmt: skip
    return first, last


def flaw_group(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: EDITIONS.get(value, value) if name == "edition" else value for name, value in row.items()}


async def counted(ctx: Context, wanted: FlawFilter, by: str, limit: int) -> dict[str, Any]:
    """The answer, for the API and the command line."""
    groups = [flaw_group(row) for row in (await ctx.queries.flaw_counts(wanted, by=by, limit=limit)).dicts()]
    days = (await ctx.queries.flaw_days(wanted.since, wanted.until)).dicts()
    return {
        "by": by,
        "since": wanted.since,
        "until": wanted.until,
        "groups": groups,
        "count": len(groups),
        "days": [{**day, "counted_at": ctx.local(day["counted_at"])} for day in days],
        "reports": None if ctx.tenant is not None else sum(day["reports"] or 0 for day in days),
    }


@router.get(
    "/v1/data-quality/flaws",
    response_model=FlawCounts,
    responses=FORMATS,
    response_model_exclude_unset=True,
    summary="Flawed signals, by field, model, firmware or vehicle",
)
async def flaws(
    request: Request,
    ctx: Ctx,
    by: Annotated[
        By,
        Query(
            description="firmware: edition of the last login, first seven digits of its ICCID and first seven "
            "characters of its first pack code, which terminals of one build have in common."
        ),
    ] = "signal",
    signal: Annotated[str | None, Query(description="Only this signal.", max_length=64)] = None,
    state: Annotated[State | None, Query(description="Only signals that are so.")] = None,
    vin: Annotated[str | None, Query(description="Only this vehicle.")] = None,
    since: Annotated[
        str | None, Query(alias="from", description=f"First day: {_DAY_ALLOWED}. Default: a week.")
    ] = None,
    until: Annotated[str | None, Query(alias="to", description="Last day, included. Default: today.")] = None,
    limit: LimitQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """How many reports have a signal that is abnormal, invalid, out of range, contradicted, or moved too fast."""
    first, last = days_given(since, until, ctx.now())
    if vin is not None:
        checked_vin(vin, where="query")
    document = await counted(ctx, FlawFilter(first, last, signal, state, vin), by, limit_given(limit, ctx))
    return await document_answer(request, kind, document, "groups", zone=ctx.zone, name=f"flaws-by-{by}")


@router.get("/v1/data-quality/checks", response_model=Checks, summary="What reports are checked against")
async def checks() -> Json:
    """Every threshold, with its source. Ranges of single fields are at /v1/signals and in the standard."""
    return Json(
        {
            "checks": [
                {
                    "name": check.name, "rule": check.rule.name.lower(), "a": check.a, "b": check.b,
                    "threshold": check.threshold, "unit": check.unit, "lists": check.lists.name.lower(),
                    "only_if": dict([check.only_if]) if check.only_if else None, "source": check.source,
                }
                for check in CHECKS
            ],
            "rates": [
                {
                    "signal": rate.signal, "unit": SIGNALS[INDEX[rate.signal]].unit, "rises_per_s": rate.rises_per_s,
                    "falls_per_s": rate.falls_per_s, "slack": rate.slack, "gap_max_s": rate.gap_max_s,
                    "above": rate.above, "source": rate.source,
                }
                for rate in RATES
            ],
        }
    )  # fmt: skip


_KINDS: Final = {2: "report", 3: "reissue"}


@router.get("/v1/vehicles/{vin}/rate-flaws", response_model=RateFlaws, summary="Values that moved too fast")
async def rate_flaws(
    ctx: Ctx, vin: VinPath, since: FromQuery = None, until: ToQuery = None, limit: LimitQuery = None
) -> Json:
    """Against the vehicle's report before, as its rows are now: a report that comes late can change the answer."""
    vehicle = await ctx.queries.vehicle(checked_vin(vin))
    if vehicle is None:
        raise no_vehicle(vin)
    start, end = range_given(since, until, ctx)
    most = limit_given(limit, ctx)
    table = await ctx.queries.rate_flaws(vehicle["vehicle_id"], since=start, until=end, limit=most + 1)
    rows = table.dicts()
    found = [
        {
            **row,
            "time": ctx.local(row["time"]),
            "kind": _KINDS[row["kind"]],
            "previous_time": ctx.local(row["previous_time"]),
            "unit": SIGNALS[INDEX[row["signal"]]].unit,
            "per_s": round(
                (row["value"] - row["previous_value"]) / (row["time"] - row["previous_time"]).total_seconds(), 3
            ),
        }
        for row in rows[:most]
    ]
    return Json(
        {
            "vin": vin, "since": ctx.local(start), "until": ctx.local(end), "rate_flaws": found, "count": len(found),
            "complete": len(rows) <= most,
        }
    )  # fmt: skip
