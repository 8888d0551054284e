"""/v1/vehicles/{vin}/battery: capacity and health, cells, resistance, rests, insulation, with how sure each is.

An indicator, not a warranty figure: the vehicle's own SOC is what capacity is worked out from, and it drifts. Every
figure says from how many values it comes, by which method, and how far it can be off; what cannot be said is null
with the reason.
"""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from schemas.statistics import figures
from services.web.answers import Json
from services.web.battery_parts import (
    INSULATIONS,
    MONTHS,
    OUTLIERS,
    RESISTANCES,
    RESTS,
    SPREADS,
    TABLES,
    insulation_of,
    line_of,
    months_of,
    outliers_of,
    reference_of,
    resistances_of,
    rests_of,
    soh_of,
    window_of,
)
from services.web.exports import FORMATS, Format, FormatQuery, format_wanted, table_answer
from services.web.parameters import Context, Ctx, VinPath, only_known
from services.web.problems import bad_parameter
from services.web.vehicle_answers import (
    DAY_ALLOWED,
    DAYS_FIELDS,
    AsOf,
    ColumnModel,
    Subject,
    ToDayQuery,
    days_given,
    rounded,
    row_model,
    subject,
)

router = APIRouter(prefix="/v1/vehicles/{vin}", tags=["battery"], dependencies=[Depends(only_known)])

DAYS_DEFAULT: Final = 90
ROWS_MAX: Final = 20_000  # charges, findings and days of one vehicle that are looked at


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Line(_Part):
    """Theil-Sen line of the accepted charges against the odometer; null of less than 5 charges or 1,000 km."""

    at_zero_ah: float
    slope_ah_per_10000km: float
    slope_low: float | None = Field(description="95 % bound; null: too few charges for one")
    slope_high: float | None
    charges: int
    odometer_from_km: float
    odometer_to_km: float


class CapacityPart(_Part):
    accepted_charges: int = Field(description="All charges that allow a capacity")
    line: Line | None
    months: list[row_model("CapacityMonth", MONTHS)]  # type: ignore[valid-type]


class Soh(_Part):
    soh_pct: float | None
    error_pct: float | None = Field(description="Half width of about 95 %; the reference is taken as exact")
    method: str | None = Field(description="rated, or baseline_relative: against the vehicle's first ten charges")
    reference_ah: float | None
    month: date | None
    charges: int | None
    why_not: str | None = Field(description="Why there is no figure")


class Cycles(_Part):
    equivalent_cycles: float | None = Field(description="Σ discharge ÷ reference_ah, over covered intervals")
    discharge_ah: float | None
    reference_ah: float | None
    method: str | None
    since: date | None = Field(description="First day with data: what the vehicle did before is not in it")
    days: int
    coverage: float | None


class WindowSpread(_Part):
    p50_mv: float | None
    p95_mv: float | None
    records: int


class Spread(_Part):
    rest: WindowSpread
    driving: WindowSpread
    charge_end: WindowSpread
    days: list[row_model("SpreadDay", SPREADS)]  # type: ignore[valid-type]


class InsulationPart(_Part):
    verdict: str = Field(description="good, warning (< 500 Ω/V), fault (< 100 Ω/V), not_measured, no_data [A]")
    text: str
    lowest_kohm: float | None
    lowest_ohm_per_v: float | None
    held: list[dict[str, Any]] = Field(description="Alarm episodes: a value has to hold for 3 records or 30 s")
    days_with_dips: int = Field(description="Days whose lowest value is below 500 Ω/V without an episode")
    days: list[row_model("InsulationDay", INSULATIONS)]  # type: ignore[valid-type]


class Battery(AsOf):
    from_: date = Field(alias="from", description=DAYS_FIELDS["from_"][1].description)
    to: date
    rated: dict[str, Any] = Field(description="What the registry knows; null: unknown")
    coverage: float | None
    capacity: CapacityPart
    soh: Soh
    cycles: Cycles
    spread: Spread
    outliers: list[row_model("OutlierCell", OUTLIERS)]  # type: ignore[valid-type]
    resistance: list[row_model("ResistanceMonth", RESISTANCES)]  # type: ignore[valid-type]
    self_discharge: list[row_model("RestCell", RESTS)]  # type: ignore[valid-type]
    insulation: InsulationPart
    columns: dict[str, list[ColumnModel]]


# -- the answer --------------------------------------------------------------------------------------
@router.get("/battery", response_model=Battery, responses=FORMATS, summary="Capacity, health, cells, insulation")
async def battery(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    since: Annotated[
        str | None, Query(alias="from", description=f"First day: {DAY_ALLOWED}. Default: {DAYS_DEFAULT} days.")
    ] = None,
    until: ToDayQuery = None,
    table: Annotated[
        str,
        Query(description=f"What a file holds: {', '.join(TABLES)}. JSON has them all.", examples=["capacity"]),
    ] = "capacity",
    kind: FormatQuery = None,
) -> Response:
    """Battery of a vehicle: capacity by month and health over its life; cells, resistance, insulation of [from, to].

    An indicator, not a warranty figure. Certainty of the rules is in their texts: [A] the standard's own text,
    [P] a convention of this project.
    """
    wanted = format_wanted(request, kind)
    if table not in TABLES:
        raise bad_parameter("table", table, "is no table of a battery", ", ".join(TABLES))
    if since is None:
        _, last = days_given(None, until, ctx)
        since = (last - timedelta(days=DAYS_DEFAULT - 1)).isoformat()
    first, last = days_given(since, until, ctx)
    of = await subject(ctx, vin)
    document = await _document(ctx, of, first, last)
    if wanted == Format.JSON:
        return Json({**document, "columns": {name: [c.described() for c in shape] for name, shape in TABLES.items()}})
    part = document[table]
    rows = part if isinstance(part, list) else part["months" if table == "capacity" else "days"]
    about = {name: value for name, value in document.items() if name not in TABLES}
    return await table_answer(
        wanted, TABLES[table], rows, about, key=table, zone=ctx.zone, name=f"battery-{vin}-{table}"
    )


async def _document(ctx: Context, of: Subject, first: date, last: date) -> dict[str, Any]:
    ask, vehicle = ctx.queries, of.vehicle_id
    charges = (await ask.capacities(vehicle, limit=ROWS_MAX)).dicts()
    columns = (
        "covered_s", "gap_s", "cell_range_max_mv", "cell_rows", "insulation_min_kohm", "insulation_min_ohm_per_v",
        "range_rest", "range_driving", "range_charge_end",
        *(f"range_{when}_{q}_mv" for when in ("rest", "driving", "charge_end") for q in ("p50", "p95")),
    )  # fmt: skip
    days = (await ask.vehicle_days(vehicle, first=first, last=last, columns=columns, limit=ROWS_MAX)).dicts()
    found = {
        name: (await ask.findings_by_day(name, vehicle, first=first, last=last, limit=ROWS_MAX)).dicts()
        for name in ("cell_outliers", "dc_resistance", "cell_rests", "alarm_episodes")
    }
    reference, method = reference_of(of, charges)
    months = months_of((await ask.capacity_months(vehicle)).dicts(), charges, reference, ctx)
    through = await ask.throughput(vehicle)
    cycles = figures.ratio(through["discharge_ah"], reference)
    covered = sum(row["covered_s"] or 0.0 for row in days)
    whole = covered + sum(row["gap_s"] or 0.0 for row in days)
    life = (through["covered_s"] or 0.0) + (through["gap_s"] or 0.0)
    # the rest of the world goes on while a thousand charges are paired with each other
    line = await asyncio.to_thread(line_of, charges)
    parts = {
        "from": first,
        "to": last,
        "rated": {
            name: of.fact(name)
            for name in ("battery_ah", "battery_kwh", "chemistry", "battery_supplier", "cells", "probes")
        },
        "coverage": rounded(figures.ratio(covered, whole), 6),
        "capacity": {"accepted_charges": len(charges), "line": line, "months": months},
        "soh": soh_of(months, reference, method),
        "cycles": {
            "equivalent_cycles": rounded(cycles),
            "discharge_ah": rounded(through["discharge_ah"]),
            "reference_ah": rounded(reference),
            "method": method,
            "since": through["first_day"],
            "days": through["days"],
            "coverage": rounded(figures.ratio(through["covered_s"], life), 6),
        },
        "spread": {
            **{when: window_of(days, f"range_{when}") for when in ("rest", "driving", "charge_end")},
            "days": [{column.name: row[column.name] for column in SPREADS} for row in days],
        },
        "outliers": outliers_of(found["cell_outliers"]),
        "resistance": resistances_of(found["dc_resistance"]),
        "self_discharge": rests_of(found["cell_rests"], ctx),
        "insulation": insulation_of(days, found["alarm_episodes"], ctx),
    }
    return {"vin": of.vin, **of.as_of(ctx), **parts}
