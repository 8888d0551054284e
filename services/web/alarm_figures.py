"""/v1/alarms/rules and /v1/alarms/summary: what can be raised, how much is, and how soon it is dealt with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from fastapi import APIRouter

from schemas import alarms
from schemas.alarms import AlarmFilter, Targets
from services.web.alarm_models import AlarmSummary
from services.web.alarm_parameters import (
    CodeQuery,
    FactQuery,
    LevelQuery,
    SinceQuery,
    SourceQuery,
    UntilQuery,
    VinQuery,
    desk_of,
    filter_given,
    targets_of,
)
from services.web.alarm_rules import AlarmRules, catalogue
from services.web.answers import Json
from services.web.parameters import Context, Ctx, range_given

router = APIRouter()

SUMMARY_DEFAULT: Final = timedelta(days=30)
KINDS_MAX: Final = 200


@router.get("/v1/alarms/rules", response_model=AlarmRules, summary="Flags and rules: what can be raised, and when")
async def rules(ctx: Ctx) -> Json:
    """The standard's flags by edition, and the rules of this platform with their thresholds and tags."""
    return Json(catalogue(ctx.settings))


@router.get(
    "/v1/alarms/summary", response_model=AlarmSummary, summary="Counts by level, state and kind, and times of handling"
)
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
