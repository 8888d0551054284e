"""/v1/vehicles: who is known, what they last said, when they logged in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from schemas.gbt32960.commands import command_name
from schemas.map_view import ACTIVITIES
from schemas.signals import INDEX
from schemas.state_filter import StateFilter
from services.web import blocks, models
from services.web.answers import DOORS, EDITIONS, KINDS, Json
from services.web.catalogue import alarm_names, meaning
from services.web.exports import FORMATS, FormatQuery, document_answer
from services.web.own import OwnSignals
from services.web.parameters import (
    Context,
    Ctx,
    CursorQuery,
    LimitQuery,
    VinPath,
    checked_vin,
    cursor_of,
    limit_given,
    next_link,
    no_vehicle,
    only_known,
    record_cursor,
)
from services.web.problems import ProblemError
from services.web.where import ActivityQuery, BboxQuery, FactsQuery, ReportingQuery, bbox_given, words_given

router = APIRouter(prefix="/v1/vehicles", tags=["vehicles"], dependencies=[Depends(only_known)])

REPORTING_WITHIN_S: Final = 300
WithinQuery = Annotated[
    int,
    Query(
        ge=1, le=86_400, description="A vehicle is reporting when its newest report arrived within this many seconds."
    ),
]
_STATE: Final = (
    "vehicle_state", "charge_state", "speed_kmh", "odometer_km", "soc_pct", "total_voltage_v", "total_current_a",
    "alarm_level", "alarm_flags", "longitude_deg", "latitude_deg", "location_valid",
)  # fmt: skip


async def found(ctx: Context, vin: str) -> Mapping[str, Any]:
    """The vehicle's row, or a problem document that says that there is none."""
    row = await ctx.queries.vehicle(checked_vin(vin))
    if row is None:
        raise no_vehicle(vin)
    return row


def activity(row: Mapping[str, Any]) -> str:
    """What the newest report says that the vehicle does; ``Queries.overview`` counts by the same rule."""
    if row["time"] is None:
        return "never_reported"
    if row["charge_state"] == 1:
        return "charging"
    return {1: "driving", 2: "parked", 3: "parked"}.get(row["vehicle_state"], "unknown")


def summary(row: Mapping[str, Any], ctx: Context, within_s: int) -> dict[str, Any]:
    received = row["received_at"]
    return {
        **{name: row[name] for name in ("vin", "registered", "model", "fleet", "region")},
        "first_seen_at": ctx.local(row["first_seen_at"]),
        "activity": activity(row),
        "reporting": received is not None and received >= ctx.now() - timedelta(seconds=within_s),
        "last_received_at": ctx.local(received),
        "last_data_time": ctx.local(row["time"]),
        "edition": EDITIONS.get(row["edition"], row["edition"]),
        "door": DOORS.get(row["door"]),
        **{name: row[name] for name in _STATE},
        "reports": row["reports"] or 0,
    }


@router.get("", response_model=models.VehiclePage, responses=FORMATS, summary="Vehicles by VIN")
async def list_vehicles(
    request: Request,
    ctx: Ctx,
    facts: FactsQuery,
    vin: Annotated[str, Query(max_length=17, description="Only VINs that start with this.")] = "",
    activity: ActivityQuery = None,
    soc_below: Annotated[
        int | None, Query(ge=0, le=101, description="Only vehicles whose SOC is below this, in %.")
    ] = None,
    alarm_level_min: Annotated[
        int | None, Query(ge=0, le=3, description="Only vehicles with this alarm level or a higher one.")
    ] = None,
    bbox: BboxQuery = None,
    reporting: ReportingQuery = None,
    reporting_within_s: WithinQuery = REPORTING_WITHIN_S,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """Every vehicle that is registered or has ever reported, with the main values of its newest report.

    The filters look at these values; a vehicle whose newest report does not have one is not in the list.
    """
    doing = words_given(activity, "activity", ACTIVITIES)
    since = ctx.now() - timedelta(seconds=reporting_within_s)
    wanted = StateFilter(
        facts, doing, soc_below, alarm_level_min, bbox_given(bbox), since if reporting is not None else None
    )
    if vin:
        checked_vin(vin, where="query")
    after = checked_vin(cursor, "cursor", "query") if cursor else ""
    most = limit_given(limit, ctx)
    rows = (await ctx.queries.vehicles(prefix=vin, after=after, limit=most + 1, wanted=wanted)).dicts()
    following = rows[most - 1]["vin"] if len(rows) > most else None
    page = [summary(row, ctx, reporting_within_s) for row in rows[:most]]
    document = {
        "vehicles": page,
        "count": len(page),
        "reporting_within_s": reporting_within_s,
        "next_cursor": following,
        "next": next_link(request, following),
    }
    return await document_answer(request, kind, document, "vehicles", zone=ctx.zone, name="vehicles")


@router.get("/{vin}", response_model=models.VehicleDetail, summary="One vehicle")
async def one_vehicle(ctx: Ctx, vin: VinPath, reporting_within_s: WithinQuery = REPORTING_WITHIN_S) -> Json:
    """Registry entry, newest report in short, and how much is stored of the vehicle."""
    row = await found(ctx, vin)
    counts = await ctx.queries.vehicle_counts(row["vehicle_id"], vin)
    return Json(summary(row, ctx, reporting_within_s) | {"has_password": row["has_password"], **counts})


@router.get("/{vin}/latest", response_model=models.Latest, summary="Newest report, whole")
async def latest(ctx: Ctx, vin: VinPath) -> Json:
    """All signals, cell voltages, temperatures, motors and faults of the newest report.

    A report that the terminal split over frames of one second (long cell lists) is put together.
    """
    vehicle = await found(ctx, vin)
    rows = (await ctx.queries.report(vehicle["vehicle_id"], vehicle["time"])).dicts() if vehicle["time"] else []
    if not rows:
        raise ProblemError(
            404, "no-report", "No report yet", f"Vehicle {vin} is known, but no report of it is stored.",
            f"See /v1/vehicles/{vin}/logins for its logins and /v1/dead-letters?vin={vin} for refused frames.",
        )  # fmt: skip
    # A reissue of the same second says later what the report has said: the report goes first.
    kind = rows[0]["kind"]
    return Json({"vin": vin, **report([row for row in rows if row["kind"] == kind], ctx)})


def report(rows: list[dict[str, Any]], ctx: Context) -> dict[str, Any]:
    """One report from its parts, in order: a signal's value is that of the first part that has it."""
    first = rows[0]
    edition = first["edition"]
    signals: dict[str, Any] = {}
    for row in reversed(rows):
        signals |= {name: row[name] for name in INDEX if row[name] is not None}
    flaws: dict[str, str] = {}
    for row in reversed(rows):
        flaws |= blocks.flaws(row["flaws"])
    faults: dict[str, list[Any]] = {}
    for row in rows:
        for group, codes in blocks.faults(row["faults"], edition).items():
            faults.setdefault(group, []).extend(codes)
    rest = b"".join(row["rest"] or b"" for row in rows)
    extra, extra_flaws = (ctx.own or OwnSignals(None)).latest(rows)
    return {
        "time": ctx.local(first["time"]),
        "received_at": ctx.local(max(row["received_at"] for row in rows)),
        "age_s": round((ctx.now() - first["time"]).total_seconds(), 3),
        "kind": KINDS.get(first["kind"], str(first["kind"])),
        "edition": EDITIONS.get(edition, edition),
        "door": DOORS.get(first["door"], str(first["door"])),
        "parts": len(rows),
        "notes": sorted({note for row in rows for note in blocks.notes(row["notes"])}),
        "signals": {name: signals[name] for name in INDEX if name in signals},
        "meanings": {name: text for name, value in signals.items() if (text := meaning(name, value))},
        "flaws": flaws,
        "alarms": alarm_names(signals.get("alarm_flags") or 0, edition),
        "packs": blocks.merged(pack for row in rows for pack in blocks.cell_packs(row["cells"], edition)),
        "temps": [
            {"no": pack.no, "temps_c": pack.values(), "flaws": {str(n): state for n, state in pack.flaws().items()}}
            for row in rows
            for pack in blocks.temp_packs(row["temps"], edition)
        ],
        "motors": [motor for row in rows for motor in blocks.motors(row["motors"], edition)],
        "faults": faults,
        "rest_hex": rest.hex() if rest else None,
        "extra": extra,
        "extra_flaws": extra_flaws,
    }


@router.get("/{vin}/logins", response_model=models.LoginPage, responses=FORMATS, summary="Logins and logouts")
async def logins(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """Session events of a vehicle, newest first."""
    vehicle = await found(ctx, vin)
    most = limit_given(limit, ctx)
    after = record_cursor(cursor)
    rows = (await ctx.queries.logins(vehicle["vehicle_id"], after=after, limit=most + 1)).dicts()
    following = None
    if len(rows) > most:
        last = rows[most - 1]
        following = cursor_of(last["received_at"], last["partition"], last["offset"], last["position"])
    page = [
        {
            "received_at": ctx.local(row["received_at"]),
            "time": ctx.local(row["time"]),
            "event": command_name(row["command"]),
            "edition": EDITIONS.get(row["edition"], row["edition"]),
            "door": DOORS.get(row["door"], str(row["door"])),
            "serial": row["serial"],
            "iccid": row["iccid"],
            "pack_codes": row["pack_codes"] or [],
            "username": row["username"],
        }
        for row in rows[:most]
    ]
    document = {
        "vin": vin,
        "logins": page,
        "count": len(page),
        "next_cursor": following,
        "next": next_link(request, following),
    }
    return await document_answer(request, kind, document, "logins", zone=ctx.zone, name=f"logins-{vin}")
