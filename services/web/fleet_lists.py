"""/v1/fleet/lists and /v1/fleet/verification: the vehicles behind the counts, as bounded pages.

Vehicles offline for long, with frequent alarms, with outlier cells, parked in clusters, failing the weekly
verification: what an operator has to follow up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from schemas.statistics.cohorts import (
    CHECK_SHARES,
    FREQUENT_DAYS,
    FREQUENT_EPISODES,
    FREQUENT_LEVEL,
    OUTLIER_WINDOW_DAYS,
)
from schemas.statistics.figures import OUTLIER_DAYS
from schemas.statistics.fleet import alarm_name
from schemas.statistics.metrics import METRIC
from schemas.statistics.windows import Window
from services.web import fleet_models as models
from services.web.exports import FORMATS, FormatQuery, document_answer
from services.web.fleet import AT_ALLOWED, DAY_ALLOWED, Filters, answered, day_given, today_of
from services.web.parameters import (
    Context,
    Ctx,
    CursorQuery,
    LimitQuery,
    checked_vin,
    limit_given,
    next_link,
    only_known,
)
from services.web.problems import bad_parameter

router = APIRouter(prefix="/v1/fleet", tags=["fleet"], dependencies=[Depends(only_known)])

LIMITS_DAYS: Final = (90, 30, 7)  # A4: the bands that long-offline vehicles are counted by
CLUSTER_VEHICLES: Final = 20
CLUSTER_M: Final = 200.0
CLUSTER_VINS: Final = 100
_M_PER_DEG: Final = 111_320.0
UntilQuery = Annotated[str | None, Query(alias="to", description=f"Last day, included: {DAY_ALLOWED}. Default: today.")]


def _page(request: Request, rows: Sequence[dict[str, Any]], most: int, cursor: Any, **resolved: Any) -> dict[str, Any]:
    """The last members of a page: ``rows`` are one more than asked for when there is a next one."""
    following = cursor(rows[most - 1]) if len(rows) > most else None
    return {
        "count": min(len(rows), most),
        "next_cursor": following,
        "next": next_link(request, following, **resolved),
    }


def _after(cursor: str | None) -> str:
    return checked_vin(cursor, "cursor", "query") if cursor else ""


def _vin(row: Mapping[str, Any]) -> str:
    return str(row["vin"])


async def _answer(
    request: Request, ctx: Context, given: str | None, name: str, about: Mapping[str, Any], rows: list[dict[str, Any]],
    page: Mapping[str, Any],
) -> Response:  # fmt: skip
    document = {**about, **page, "vehicles": rows}
    return await document_answer(request, given, document, "vehicles", zone=ctx.zone, name=name)


@router.get(
    "/lists/offline",
    response_model=models.VehicleList,
    summary="Vehicles that have not been heard of for long",
    responses=FORMATS,
)
async def offline(
    request: Request,
    ctx: Ctx,
    filters: Filters,
    days: Annotated[int, Query(ge=1, le=3660, description="Days without data; 7, 30 and 90 are usual.")] = 7,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    format: FormatQuery = None,  # noqa: A002 - as in the query
) -> Response:
    """Accessed vehicles whose newest data are older than `days` days, by VIN; ever silent ones included (A4)."""
    now = ctx.now()
    most = limit_given(limit, ctx)
    table = await ctx.queries.offline_vehicles(
        before=now - timedelta(days=days), now=now, filters=filters.values, after=_after(cursor), limit=most + 1
    )
    rows = table.dicts()
    shown = []
    for row in rows[:most]:
        since = row["newest_data_time"]
        silent = (now - since).total_seconds() / 86400 if since else None
        shown.append(
            {
                **{name: value for name, value in row.items() if not name.endswith(("_at", "_time"))},
                "newest_data_time": ctx.local(since),
                "last_received_at": ctx.local(row["last_received_at"]),
                "silent_days": round(silent, 2) if silent is not None else None,
                "offline_days_over": next((d for d in LIMITS_DAYS if silent is None or silent >= d), None),
                "ever_reported": since is not None,
                "registered_at": ctx.local(row["registered_at"] or row["first_seen_at"]),
            }
        )
    about = {"as_of": ctx.local(now), "days": days, "source": "S2", "certainty": METRIC["A4"].tag,
             "filters": dict(filters.values)}  # fmt: skip
    page = _page(request, rows, most, _vin, limit=limit)
    return await _answer(request, ctx, format, f"offline-{days}-days", about, shown, page)


@router.get(
    "/lists/frequent-alarms",
    response_model=models.VehicleList,
    summary="Vehicles with frequent alarms",
    responses=FORMATS,
)
async def frequent_alarms(
    request: Request,
    ctx: Ctx,
    filters: Filters,
    until: UntilQuery = None,
    days: Annotated[int, Query(ge=1, le=400, description="Days up to it.")] = FREQUENT_DAYS,
    episodes: Annotated[int, Query(ge=1, le=100_000, description="At least so many episodes.")] = FREQUENT_EPISODES,
    level: Annotated[int, Query(ge=0, le=3, description="Of this level or a higher one.")] = FREQUENT_LEVEL,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    format: FormatQuery = None,  # noqa: A002 - as in the query
) -> Response:
    """At least 10 episodes of level 2 or 3 in 7 days, unless asked otherwise (F3 [P]); by VIN."""
    last = day_given(until, "to") if until is not None else today_of(ctx)
    first = last - timedelta(days=days - 1)
    most = limit_given(limit, ctx)
    table = await ctx.queries.frequent_alarms(
        first=first, last=last, least=episodes, level=level, filters=filters.values, after=_after(cursor),
        limit=most + 1,
    )  # fmt: skip
    rows = table.dicts()
    shown = [
        {
            **row,
            "first_at": ctx.local(row["first_at"]),
            "last_at": ctx.local(row["last_at"]),
            "alarms": [{"name": alarm_name(source, code), "episodes": n} for source, code, n in row["alarms"]],
        }
        for row in rows[:most]
    ]
    about = {"first_day": first, "last_day": last, "episodes_min": episodes, "level_min": level, "source": "S2",
             "certainty": METRIC["F3"].tag, "filters": dict(filters.values)}  # fmt: skip
    page = _page(request, rows, most, _vin, limit=limit, to=last.isoformat())
    return await _answer(request, ctx, format, f"frequent-alarms-{last}", about, shown, page)


@router.get(
    "/lists/clusters",
    response_model=models.ClusterList,
    summary="Places where many vehicles stand together",
    responses=FORMATS,
)
async def clusters(
    request: Request,
    ctx: Ctx,
    filters: Filters,
    vehicles: Annotated[int, Query(ge=2, le=1_000_000, description="At least so many.")] = CLUSTER_VEHICLES,
    size_m: Annotated[
        float, Query(ge=10, le=100_000, description="Side of a cell of the grid, north to south.")
    ] = CLUSTER_M,
    days: Annotated[int, Query(ge=1, le=3660, description="Positions of the last so many days.")] = 30,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    format: FormatQuery = None,  # noqa: A002 - as in the query
) -> Response:
    """Cells of a grid of positions with at least 20 parked vehicles (S2 [B]; cell and number [P]).

    Parked: the newest report has speed 0, is not charging, and says off or is 10 minutes old. The grid is even in
    degrees, so cells are narrower from west to east away from the equator; a place on a border is two cells.
    """
    now = ctx.now()
    most = limit_given(limit, ctx)
    after = _cell(cursor)
    table = await ctx.queries.clusters(
        size_deg=size_m / _M_PER_DEG, least=vehicles, since=now - timedelta(days=days),
        still=now - timedelta(minutes=10), now=now, filters=filters.values, after=after, vins=CLUSTER_VINS,
        limit=most + 1,
    )  # fmt: skip
    rows = table.dicts()
    shown = [
        {
            "cell": f"{row['row']}.{row['column']}",
            "vehicles": row["vehicles"],
            "latitude_deg": round(row["latitude_deg"], 6),
            "longitude_deg": round(row["longitude_deg"], 6),
            "with_alarm": row["with_alarm"],
            "oldest_data_time": ctx.local(row["oldest_data_time"]),
            "newest_data_time": ctx.local(row["newest_data_time"]),
            "vins": row["vins"],
            "vins_complete": row["vehicles"] <= CLUSTER_VINS,
        }
        for row in rows[:most]
    ]
    about = {"as_of": ctx.local(now), "vehicles_min": vehicles, "size_m": size_m, "days": days, "source": "S2",
             "certainty": "[P]", "filters": dict(filters.values)}  # fmt: skip
    page = _page(request, rows, most, lambda row: f"{row['row']}.{row['column']}", limit=limit)
    document = {**about, **page, "clusters": shown}
    return await document_answer(request, format, document, "clusters", zone=ctx.zone, name="clusters")


def _cell(cursor: str | None) -> tuple[int, int]:
    if not cursor:
        return -(2**30), 0
    row, _, column = cursor.partition(".")
    try:
        numbers = int(row), int(column)
    except ValueError:
        numbers = (2**62, 2**62)
    if max(map(abs, numbers)) > 10**9:
        raise bad_parameter("cursor", cursor, "is not a cursor of this path", "next_cursor of an answer, unchanged")
    return numbers


@router.get(
    "/lists/outlier-cells",
    response_model=models.VehicleList,
    summary="Cells that stand out day after day",
    responses=FORMATS,
)
async def outlier_cells(
    request: Request,
    ctx: Ctx,
    filters: Filters,
    until: UntilQuery = None,
    days: Annotated[int, Query(ge=1, le=400, description="Days up to it.")] = OUTLIER_WINDOW_DAYS,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    format: FormatQuery = None,  # noqa: A002 - as in the query
) -> Response:
    """Persistent outliers (4.7 [P]): |z| > 3 in half of the usable rows of 3 days, and 10 mV off; by VIN and cell."""
    last = day_given(until, "to") if until is not None else today_of(ctx)
    first = last - timedelta(days=days - 1)
    most = limit_given(limit, ctx)
    vin, _, number = (cursor or "").rpartition(".")
    if cursor and not (number.isdecimal() and len(number) < 6):
        raise bad_parameter("cursor", cursor, "is not a cursor of this path", "next_cursor of an answer, unchanged")
    after = (checked_vin(vin, "cursor", "query"), int(number)) if cursor else ("", 0)
    table = await ctx.queries.outlier_cells(
        first=first, last=last, least_days=OUTLIER_DAYS, filters=filters.values, after=after, limit=most + 1
    )
    rows = table.dicts()
    about = {"first_day": first, "last_day": last, "days_min": OUTLIER_DAYS, "source": METRIC["B3"].source,
             "certainty": "[P]", "filters": dict(filters.values)}  # fmt: skip
    page = _page(
        request, rows, most, lambda row: f"{row['vin']}.{row['cell']}", limit=limit, to=last.isoformat()
    )  # fmt: skip
    return await _answer(request, ctx, format, f"outlier-cells-{last}", about, rows[:most], page)


@router.get(
    "/verification",
    response_model=models.Verification,
    summary="Weekly verification: pass rate and failing vehicles",
    responses=FORMATS,
)
async def verification(
    request: Request,
    ctx: Ctx,
    filters: Filters,
    week: Annotated[
        str | None, Query(description=f"Any day of it, or the week: {AT_ALLOWED}. Default: the one before this.")
    ] = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    format: FormatQuery = None,  # noqa: A002 - as in the query
) -> Response:
    """Nine checks per vehicle and ISO week (3.4 [P]); the failing vehicles by VIN, with the checks and their counts.

    No data, no check. `in_a_row`: weeks failed running, up to 3; the official rule knows consequences of three [C].
    """
    day = day_given(week, "week", AT_ALLOWED) if week is not None else today_of(ctx) - timedelta(days=7)
    wanted = Window.of("W", day)
    most = limit_given(limit, ctx)
    summary = await answered(ctx, [METRIC["Q4"]], [wanted], [], filters.values)
    table = await ctx.queries.failing_vehicles(
        wanted.first, filters=filters.values, after=_after(cursor), limit=most + 1
    )
    rows = table.dicts()
    rate, by_check = summary["figures"][:2]
    names = list(CHECK_SHARES)
    shown = []
    for row in rows[:most]:
        failed = row.pop("failed")
        totals, failures = row.pop("totals"), row.pop("failures")
        checks = [
            {"check": name, "looked_at": totals[k], "failed": failures[k], "good_share_min": CHECK_SHARES[name]}
            for k, name in enumerate(names)
            if failed >> k & 1
        ]
        shown.append({**row, "failed_checks": [check["check"] for check in checks], "checks": checks})
    about = {
        "week": f"{wanted.first.isocalendar().year}-W{wanted.first.isocalendar().week:02d}",
        "window": summary["window"],
        "pass_rate_pct": rate["value"], "passed": rate["numerator"], "checked": rate["denominator"],
        "checks": [{**check, "good_share_min": CHECK_SHARES[check["name"]]} for check in by_check["histogram"]],
        "computed_at": summary["computed_at"], "days_changed_since": summary["days_changed_since"],
        "newest_data_time": summary["newest_data_time"], "source": METRIC["Q4"].source,
        "certainty": METRIC["Q4"].tag, "filters": dict(filters.values),
    }  # fmt: skip
    page = _page(request, rows, most, _vin, limit=limit, week=wanted.first.isoformat())
    return await _answer(request, ctx, format, f"verification-{about['week']}", about, shown, page)
