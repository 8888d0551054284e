"""/v1/vehicles/{vin}/days and /hours: every measure that is kept of a vehicle, by local day and by hour.

The columns are those of ``schemas.statistics.measures``; a ratio is worked out here from its two parts, and is null,
never 0, when its denominator is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from schemas.statistics import figures
from schemas.statistics.measures import MEASURES, TALLIES
from services.web.answers import EDITIONS, Json
from services.web.exports import FORMATS, Column, FormatQuery, format_wanted, table_answer
from services.web.parameters import (
    Context,
    Ctx,
    CursorQuery,
    LimitQuery,
    ToQuery,
    VinPath,
    cursor_numbers,
    cursor_of,
    cursor_time,
    limit_given,
    only_known,
    range_given,
)
from services.web.problems import bad_parameter, nearest
from services.web.vehicle_answers import (
    DAYS_FIELDS,
    RANGE_FIELDS,
    RANGE_MAX,
    FromDayQuery,
    SessionFromQuery,
    Subject,
    ToDayQuery,
    coverage_of,
    day_cursor,
    days_given,
    page_model,
    paged,
    rounded,
    subject,
)

router = APIRouter(tags=["days"], dependencies=[Depends(only_known)])
_PATH: Final = "/v1/vehicles/{vin}"
HOURS_DEFAULT: Final = timedelta(days=7)

_D = "double precision"
_BY_MEASURE: Final = {
    measure.name: Column(measure.name, "integer" if measure.count else _D, measure.unit, measure.text)
    for measure in MEASURES
}
_DERIVED: Final = {
    "coverage": Column("coverage", _D, "", "covered_s ÷ (covered_s + gap_s), 0 to 1"),
    "missing_rate": Column("missing_rate", _D, "", "1 - records ÷ expected, not below 0 (Q1) [P]"),
    "kwh_per_100km": Column("kwh_per_100km", _D, "kWh/100 km", "net, over consumption_km; null below 1 km (4.3)"),
    "regen_ratio": Column("regen_ratio", _D, "", "regen_kwh ÷ out_kwh (E2) [P]"),
    "standing_kw": Column("standing_kw", _D, "kWh/h", "standing_kwh per hour parked"),
}
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "coverage": ("covered_s", "gap_s"),
    "missing_rate": ("records", "expected"),
    "kwh_per_100km": ("consumption_kwh", "consumption_km"),
    "regen_ratio": ("regen_kwh", "out_kwh"),
    "standing_kw": ("standing_kwh", "standing_s"),
}
_OF_DAYS: Final = {
    "nominal_s": Column("nominal_s", "real", "s", "interval between records that counted as due"),
    **{
        f"range_{when}_{quantile}_mv": Column(
            f"range_{when}_{quantile}_mv", "real", "mV", f"{quantile} of the range between cells {words} (4.7)"
        )
        for when, words in (("rest", "at rest"), ("driving", "while driving"), ("charge_end", "at charge end"))
        for quantile in ("p50", "p95")
    },
    "first_at": Column("first_at", "time", "", "first record"),
    "last_at": Column("last_at", "time", "", "last record"),
    "edition": Column("edition", "edition", "", "edition of GB/T 32960.3 of the last record"),
}
_TALLIES: Final = {tally.name: Column(tally.name, "integers", tally.unit, tally.text) for tally in TALLIES}
HOUR_FIELDS: Final[Mapping[str, Column]] = {**_BY_MEASURE, **_DERIVED}
DAY_FIELDS: Final[Mapping[str, Column]] = {**HOUR_FIELDS, **_OF_DAYS, **_TALLIES}
DEFAULT: Final = (
    "records", "expected", "missing_rate", "coverage", "distance_km", "driving_s", "charging_s", "parked_s",
    "kwh_per_100km", "out_kwh", "regen_kwh", "charge_kwh", "soc_min_pct", "soc_max_pct", "temp_min_c", "temp_max_c",
    "cell_range_max_mv", "insulation_min_kohm", "alarm_s", "alarm_level_max",
)  # fmt: skip
MeasuresQuery = Annotated[
    str | None,
    Query(
        description="Names from /v1/measures, with commas between; `all` for every one, in days without the lists "
        f"(ask for those by name). Default: {', '.join(DEFAULT)}",
        examples=["distance_km,kwh_per_100km,coverage"],
    ),
]


def measures_given(text: str | None, known: Mapping[str, Column]) -> list[str]:
    """The columns asked for, in that order."""
    if text is None:
        return list(DEFAULT)
    if text.strip() == "all":
        return [name for name in known if name not in _TALLIES]
    names = list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    if not names:
        raise bad_parameter("fields", text, "names no measure", "names from /v1/measures, with commas between")
    for name in names:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            if name in DAY_FIELDS:
                hint = "; it is kept per day only, see /days"
            raise bad_parameter("fields", name, f"there is no measure of this name{hint}", "names from /v1/measures")
    return names


def stored_columns(names: Iterable[str]) -> list[str]:
    """What has to be read for these columns."""
    return list(dict.fromkeys(part for name in names for part in _PARTS.get(name, (name,))))


def derived(row: Mapping[str, Any], name: str, of: Subject) -> float | None:
    """A ratio of two measures of ``row``."""
    if name == "coverage":
        return rounded(figures.ratio(row["covered_s"], (row["covered_s"] or 0.0) + (row["gap_s"] or 0.0)), 6)
    if name == "missing_rate":
        received = figures.ratio(row["records"], row["expected"])
        return None if received is None or of.on_change else round(max(0.0, 1.0 - received), 6)
    if name == "kwh_per_100km":
        return rounded(figures.per_100km(row["consumption_kwh"], row["consumption_km"]))
    if name == "standing_kw":
        per_s = figures.ratio(row["standing_kwh"], row["standing_s"])
        return None if per_s is None else round(per_s * 3600.0, 6)
    return rounded(figures.ratio(row["regen_kwh"], row["out_kwh"]), 6)


def _answered(row: Mapping[str, Any], names: Sequence[str], of: Subject, ctx: Context) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for name in names:
        if name in _DERIVED:
            answer[name] = derived(row, name, of)
        elif name in ("expected", "missing_s") and of.on_change:
            answer[name] = None
        elif name in ("first_at", "last_at"):
            answer[name] = ctx.local(row[name])
        else:
            answer[name] = EDITIONS.get(row[name], row[name]) if name == "edition" else row[name]
    return answer


def exemption(of: Subject) -> dict[str, Any]:
    """What is said of a vehicle that sends at changes of state only (3.3 [A])."""
    if not of.on_change:
        return {"exempt": None}
    return {
        "exempt": "on_change: this vehicle sends at changes of state only, so gaps are normal; expected, missing_s "
        "and missing_rate are not worked out"
    }


# -- days and hours ----------------------------------------------------------------------------------
_DAY = (Column("day", "date", "", "local day"), Column("settled", "bool", "", "only late data can change it"))
_HOUR = (Column("hour", "time", "", "its begin, local"), Column("settled", "bool", "", "only late data can change it"))
_OPEN: Final[Mapping[str, Any]] = {"exempt": (str | None, ...), "fields": (list[str], ...)}
DayPage = page_model("DayPage", "days", None, **DAYS_FIELDS, **_OPEN)
HourPage = page_model("HourPage", "hours", None, **RANGE_FIELDS, **_OPEN)


@router.get(f"{_PATH}/days", response_model=DayPage, responses=FORMATS, summary="Measures by day")
async def days(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    since: FromDayQuery = None,
    until: ToDayQuery = None,
    fields: MeasuresQuery = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """Every measure of local days [from, to], both included, oldest first; days without a record are left out."""
    wanted = format_wanted(request, kind)
    names = measures_given(fields, DAY_FIELDS)
    first, last = days_given(since, until, ctx)
    most = limit_given(limit, ctx)
    of = await subject(ctx, vin)
    columns = stored_columns((*names, "coverage"))
    found = (
        await ctx.queries.vehicle_days(
            of.vehicle_id, first=max(first, day_cursor(cursor) or first), last=last, columns=columns, limit=most + 1
        )
    ).dicts()
    following = found[most]["day"].isoformat() if len(found) > most else None
    rows = [
        {"day": row["day"], "settled": of.settled(row["day"]), **_answered(row, names, of, ctx)} for row in found[:most]
    ]
    about = {
        "vin": vin,
        "from": first,
        "to": last,
        "fields": names,
        "count": len(rows),
        **_whole(found[:most], of),
        **paged(request, following, **{"from": first, "to": last}),
    }
    about |= of.as_of(ctx)
    shape = [*_DAY, *(DAY_FIELDS[name] for name in names)]
    return await table_answer(wanted, shape, rows, about, key="days", zone=ctx.zone, name=f"days-{vin}")


@router.get(f"{_PATH}/hours", response_model=HourPage, responses=FORMATS, summary="Measures by hour")
async def hours(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    since: SessionFromQuery = None,
    until: ToQuery = None,
    fields: MeasuresQuery = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """Every measure of hours that begin in [from, to), oldest first; hours without a record are left out.

    An interval between two records belongs to the hour in which it ends. Without `from`: of seven days.
    """
    wanted = format_wanted(request, kind)
    names = measures_given(fields, HOUR_FIELDS)
    start, end = range_given(since, until, ctx, default=HOURS_DEFAULT, most=RANGE_MAX)
    most = limit_given(limit, ctx)
    numbers = cursor_numbers(cursor, 1)
    of = await subject(ctx, vin)
    found = (
        await ctx.queries.vehicle_hours(
            of.vehicle_id, since=max(start, cursor_time(numbers[0])) if numbers else start, until=end,
            columns=stored_columns((*names, "coverage")), limit=most + 1,
        )
    ).dicts()  # fmt: skip
    following = cursor_of(found[most]["hour"]) if len(found) > most else None
    rows = [
        {"hour": ctx.local(row["hour"]), "settled": of.settled(row["hour"].astimezone(ctx.zone).date()),
         **_answered(row, names, of, ctx)}
        for row in found[:most]
    ]  # fmt: skip
    local = {"from": ctx.local(start), "to": ctx.local(end)}
    about = {
        "vin": vin,
        **local,
        "fields": names,
        "count": len(rows),
        **_whole(found[:most], of),
        **paged(request, following, **{name: time.isoformat() for name, time in local.items() if time}),
    }
    about |= of.as_of(ctx)
    shape = [*_HOUR, *(HOUR_FIELDS[name] for name in names)]
    return await table_answer(wanted, shape, rows, about, key="hours", zone=ctx.zone, name=f"hours-{vin}")


def _whole(rows: Sequence[Mapping[str, Any]], of: Subject) -> dict[str, Any]:
    spans = [
        {"covered_s": row["covered_s"], "span_s": (row["covered_s"] or 0.0) + (row["gap_s"] or 0.0)} for row in rows
    ]
    return {"coverage": coverage_of(spans, "covered_s", "span_s"), **exemption(of)}


@router.get("/v1/measures", tags=["days"], summary="What is kept per hour and day")
async def measures() -> Json:
    """Every column that /days and /hours can answer with: name, kind, unit, meaning; `by`: hour, or day only."""
    listed = [
        {**column.described(), "by": "hour" if name in HOUR_FIELDS else "day"} for name, column in DAY_FIELDS.items()
    ]
    return Json({"measures": listed, "count": len(listed)})
