"""/v1/vehicles/{vin}/completeness: what came of a vehicle's data, and what is missing (3.3).

The ledger fills when reissued data arrive: rates are of what is stored now, and a day says whether it is settled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from schemas.statistics import figures
from services.web.days import derived, exemption
from services.web.exports import FORMATS, Column, FormatQuery, format_wanted, table_answer
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
    only_known,
)
from services.web.problems import bad_parameter
from services.web.vehicle_answers import (
    DAYS_FIELDS,
    FromDayQuery,
    Subject,
    ToDayQuery,
    day_begins,
    day_cursor,
    days_given,
    page_model,
    paged,
    rounded,
    subject,
)

router = APIRouter(prefix="/v1/vehicles/{vin}", tags=["days"], dependencies=[Depends(only_known)])

_D = "double precision"
_LEDGER: Final = (
    "records", "rows", "reissued", "repeated", "late", "expected", "missing_s", "covered_s", "gap_s", "gap_max_s",
)  # fmt: skip
_LEDGER_COLUMNS: Final = (
    Column("state", "text", "", "settled: only late data change it; open; no_data: no record of that day"),
    Column("expected", _D, "", "records due while connected or running, at the nominal interval [P]"),
    Column("received", "bigint", "", "collection seconds with a report, duplicates left out"),
    Column("missing_rate", _D, "", "1 - received ÷ expected, not below 0 (Q1) [P]"),
    Column("missing_s", _D, "s", "time without records in which some were due"),
    Column("covered_s", _D, "s", "time between records no further apart than the gap limit"),
    Column("gap_s", _D, "s", "time between records further apart than that"),
    Column("gap_max_s", _D, "s", "longest of these gaps"),
    Column("coverage", _D, "", "covered_s ÷ (covered_s + gap_s), 0 to 1"),
    Column("rows", "bigint", "", "telemetry rows"),
    Column("reissued", "bigint", "", "of these, sent again with 0x03 after a lost link"),
    Column("late", "bigint", "", "of these, arrived more than 60 s after they were collected"),
    Column("repeated", "bigint", "", "of these, repeat a second that another row told of"),
)
_RESENT: Final = (
    Column("duplicates", "bigint", "", "reports that were stored already, sent again unchanged"),
    Column("conflicts", "bigint", "", "the same with other content"),
    Column("nominal_s", "real", "s", "interval between records that counted as due"),
)
_BY_DAY = (Column("day", "date", "", "local day"), *_LEDGER_COLUMNS, *_RESENT)
_BY_HOUR = (Column("hour", "time", "", "its begin, local"), *_LEDGER_COLUMNS)
DayLedger = page_model(
    "Completeness", "days", _BY_DAY, **DAYS_FIELDS, by=(str, ...), exempt=(str | None, ...), total=(dict[str, Any], ...)
)


@router.get("/completeness", response_model=DayLedger, responses=FORMATS, summary="What came, and what is missing")
async def completeness(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    since: FromDayQuery = None,
    until: ToDayQuery = None,
    by: Annotated[str, Query(description="day or hour; by hour, the rows are under `hours`.")] = "day",
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """The completeness ledger of local days [from, to]: expected, received, reissued, missing, late, duplicates.

    Gaps fill when reissued data arrive. Days without a record, after the first one, read no_data; duplicates are
    counted per day only. A vehicle that sends at changes of state only is exempt, and `exempt` says so.
    """
    wanted = format_wanted(request, kind)
    if by not in ("day", "hour"):
        raise bad_parameter("by", by, "is nothing that completeness is kept by", "day or hour")
    first, last = days_given(since, until, ctx)
    most = limit_given(limit, ctx)
    of = await subject(ctx, vin)
    if by == "day":
        rows, following = await _ledger_days(ctx, of, first, last, most, day_cursor(cursor))
    else:
        rows, following = await _ledger_hours(ctx, of, first, last, most, cursor)
    about = {
        "vin": vin,
        "from": first,
        "to": last,
        "by": by,
        "count": len(rows),
        "total": _total(rows, of),
        "coverage": _total(rows, of)["coverage"],
        **exemption(of),
        **paged(request, following, **{"from": first, "to": last}),
        **of.as_of(ctx),
    }
    shape = _BY_DAY if by == "day" else _BY_HOUR
    return await table_answer(
        wanted, shape, rows, about, key=f"{by}s", zone=ctx.zone, name=f"completeness-{vin}-by-{by}"
    )


async def _ledger_days(
    ctx: Context, of: Subject, first: date, last: date, most: int, cursor: date | None
) -> tuple[list[dict[str, Any]], str | None]:
    # nothing is said of days before the first record, nor of those that have not come
    known = await ctx.queries.throughput(of.vehicle_id)
    if known["first_day"] is None:
        return [], None
    begin = max(first, cursor or first, known["first_day"])
    end = min(last, ctx.now().astimezone(ctx.zone).date())
    final = min(end, begin + timedelta(days=most - 1))
    found = await ctx.queries.vehicle_days(
        of.vehicle_id, first=begin, last=final, columns=(*_LEDGER, "nominal_s"), limit=most
    )
    stored = {row["day"]: row for row in found.dicts()}
    resends = {row["day"]: row for row in (await ctx.queries.resends(of.vehicle_id, first=begin, last=final)).dicts()}
    rows = []
    for number in range((final - begin).days + 1):
        day = begin + timedelta(days=number)
        row = _ledger_row(stored.get(day), of.settled(day), of)
        sent = resends.get(day) or {"duplicates": 0, "conflicts": 0}
        nominal = stored[day]["nominal_s"] if day in stored else None
        rows.append({"day": day, **row, **{n: sent[n] for n in ("duplicates", "conflicts")}, "nominal_s": nominal})
    return rows, (final + timedelta(days=1)).isoformat() if final < end else None


async def _ledger_hours(
    ctx: Context, of: Subject, first: date, last: date, most: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    numbers = cursor_numbers(cursor, 1)
    since = day_begins(first, ctx)
    found = (
        await ctx.queries.vehicle_hours(
            of.vehicle_id, since=max(since, cursor_time(numbers[0])) if numbers else since,
            until=day_begins(last + timedelta(days=1), ctx), columns=_LEDGER, limit=most + 1,
        )
    ).dicts()  # fmt: skip
    rows = [
        {"hour": ctx.local(row["hour"]), **_ledger_row(row, of.settled(row["hour"].astimezone(ctx.zone).date()), of)}
        for row in found[:most]
    ]
    return rows, cursor_of(found[most]["hour"]) if len(found) > most else None


def _ledger_row(row: Mapping[str, Any] | None, settled: bool, of: Subject) -> dict[str, Any]:
    if row is None:
        return {column.name: "no_data" if column.name == "state" else None for column in _LEDGER_COLUMNS} | {
            "received": 0, "rows": 0,
        }  # fmt: skip
    return {
        "state": "settled" if settled else "open",
        "received": row["records"],
        "missing_rate": derived(row, "missing_rate", of),
        "coverage": derived(row, "coverage", of),
        **{name: row[name] for name in _LEDGER if name != "records"},
        **({"expected": None, "missing_s": None} if of.on_change else {}),
    }


def _total(rows: Sequence[Mapping[str, Any]], of: Subject) -> dict[str, Any]:
    """Of the rows of this page: sums, and the rates of the sums."""
    names = ("expected", "received", "missing_s", "covered_s", "gap_s", "rows", "reissued", "late", "repeated")
    extra = ("duplicates", "conflicts") if rows and "duplicates" in rows[0] else ()
    total: dict[str, Any] = {name: sum(row[name] or 0 for row in rows) for name in (*names, *extra)}
    ratios = {
        "coverage": derived(total, "coverage", of),
        "missing_rate": derived({**total, "records": total["received"]}, "missing_rate", of),
        "reissued_rate": rounded(figures.ratio(total["reissued"], total["rows"]), 6),
        "late_rate": rounded(figures.ratio(total["late"], total["rows"]), 6),
    }
    if extra:
        sent = total["rows"] + total["duplicates"]
        ratios["duplicate_rate"] = rounded(figures.ratio(total["duplicates"], sent), 6)
    if of.on_change:
        total |= {"expected": None, "missing_s": None}
    return total | ratios
