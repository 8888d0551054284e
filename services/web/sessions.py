"""/v1/vehicles/{vin}/trips and /charges: what a vehicle did, session by session, with what follows from it.

The folds find sessions; what needs the registry (fast or slow, energy by SOC) is worked out here, when asked, so
that a corrected registry needs no new fold. A session is ``settled`` when only late data can change it, and
``in_progress`` while nothing has ended it; its id lasts, its ``revision`` counts how often it was found anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from schemas.statistics import figures
from schemas.statistics.sessions import END_CAUSES, OPEN
from services.web.answers import Json
from services.web.exports import FORMATS, Column, FormatQuery, format_wanted, table_answer
from services.web.parameters import (
    PAGE,
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
from services.web.problems import ProblemError
from services.web.vehicle_answers import (
    RANGE_DEFAULT,
    RANGE_FIELDS,
    RANGE_MAX,
    AsOf,
    SessionFromQuery,
    Subject,
    coverage_of,
    page_model,
    paged,
    rounded,
    row_model,
    subject,
)

router = APIRouter(prefix="/v1/vehicles/{vin}", tags=["sessions"], dependencies=[Depends(only_known)])

_D, _I, _T, _B = "double precision", "bigint", "time", "bool"

_STATE: Final = (
    Column("revision", _I, "", "how often this session was found anew, from 1"),
    Column("day", "date", "", "local day of the start"),
    Column("settled", _B, "", "only late or reissued data can change it"),
    Column("in_progress", _B, "", "nothing has ended it as of newest_data_time"),
    Column("start_at", _T, "", "first record"),
    Column("end_at", _T, "", "last record"),
    Column("end_cause", "text", "", f"what ended it: {', '.join(END_CAUSES)}"),
    Column("duration_s", _D, "s", "last record minus first"),
    Column("records", _I, "", "records in it"),
    Column("covered_s", _D, "s", "time between records no further apart than the gap limit"),
    Column("coverage", _D, "", "covered_s ÷ duration_s, 0 to 1"),
)
TRIP: Final = (
    Column("trip_id", _I, "", "lasts, also when late data change the trip"),
    *_STATE,
    Column("distance_km", _D, "km", "rise of the odometer, untracked_km included"),
    Column("untracked_km", _D, "km", "part of it that lies in gaps"),
    Column("moving_s", _D, "s", "covered time with speed above 0"),
    Column("mean_speed_kmh", _D, "km/h", "distance_km ÷ duration_s, stops included"),
    Column("mean_moving_speed_kmh", _D, "km/h", "covered distance ÷ moving_s, stops left out"),
    Column("speed_max_kmh", _D, "km/h", "highest speed"),
    Column("out_kwh", _D, "kWh", "energy out of the battery while driving"),
    Column("regen_kwh", _D, "kWh", "energy back into it while driving"),
    Column("regen_ratio", _D, "", "regen_kwh ÷ out_kwh [P]"),
    Column("consumption_kwh", _D, "kWh", "net energy out, over the intervals of consumption_km"),
    Column("consumption_km", _D, "km", "distance over which consumption_kwh was used"),
    Column("kwh_per_100km", _D, "kWh/100 km", "net: regeneration subtracted; null below 1 km (4.3)"),
    Column("gross_kwh_per_100km", _D, "kWh/100 km", "the same with regeneration not subtracted"),
    Column("start_soc_pct", _D, "%", "SOC at the start"),
    Column("end_soc_pct", _D, "%", "SOC at the end"),
    Column("soc_used_pct", _D, "%", "fall of SOC, in points"),
    Column("energy_by_soc_kwh", _D, "kWh", "second estimate: soc_used_pct × the battery's energy (4.3)"),
    Column(
        "energy_check", "text", "",
        "agrees, or differs: both estimates lie more than 20 % and one point of SOC apart; null: not known",
    ),
    Column("start_odometer_km", _D, "km", "odometer at the start"),
    Column("end_odometer_km", _D, "km", "odometer at the end"),
    Column("start_longitude_deg", _D, "°", "as the vehicle sent it"),
    Column("start_latitude_deg", _D, "°", "as the vehicle sent it"),
    Column("end_longitude_deg", _D, "°", "as the vehicle sent it"),
    Column("end_latitude_deg", _D, "°", "as the vehicle sent it"),
)  # fmt: skip
CHARGE: Final = (
    Column("charge_id", _I, "", "lasts, also when late data change the charge"),
    *_STATE,
    Column("runs", _I, "", "runs of charging that were joined (pauses up to 600 s)"),
    Column("energy_kwh", _D, "kWh", "into the battery; the charger's loss is not in these data"),
    Column("charge_ah", _D, "Ah", "into the battery"),
    Column("start_soc_pct", _D, "%", "SOC at the start"),
    Column("end_soc_pct", _D, "%", "SOC at the end"),
    Column("soc_rise_pct", _D, "%", "rise of SOC, in points"),
    Column("mean_power_kw", _D, "kW", "mean over covered time"),
    Column("max_power_kw", _D, "kW", "highest power"),
    Column("middle_power_kw", _D, "kW", "mean over the middle half of the charge"),
    Column("middle_coverage", _D, "", "coverage of that half"),
    Column("c_rate_per_h", _D, "1/h", "middle_power_kw ÷ the battery's energy"),
    Column(
        "speed", "text", "",
        "fast: 20 kW or more over the middle half, or 0.3 per hour for batteries under 20 kWh; slow; unknown [P]",
    ),
    Column("speed_unknown_for", "text", "", "what keeps it unknown: coverage (below 50 %), or a registry fact"),
    Column("deep", _B, "", "started below 15 % or ended above 94 % [C]"),
    Column("mean_temp_c", _D, "°C", "mean of the hottest probe"),
    Column("max_temp_c", _D, "°C", "highest probe"),
    Column("capacity_ah", _D, "Ah", "charge_ah ÷ rise of SOC; null unless 30 points, 95 % coverage, 10 °C (4.5) [P]"),
    Column("odometer_km", _D, "km", "odometer"),
    Column("longitude_deg", _D, "°", "as the vehicle sent it"),
    Column("latitude_deg", _D, "°", "as the vehicle sent it"),
)  # fmt: skip

TripPage = page_model("TripPage", "trips", TRIP, **RANGE_FIELDS)
ChargePage = page_model("ChargePage", "charges", CHARGE, **RANGE_FIELDS)
TripDetail = row_model("Trip", TRIP)
ChargeDetail = row_model("Charge", CHARGE)


class OneTrip(AsOf):
    trip: TripDetail  # type: ignore[valid-type]
    units: dict[str, str]


class OneCharge(AsOf):
    charge: ChargeDetail  # type: ignore[valid-type]
    units: dict[str, str]


TripPath = Annotated[int, Path(ge=1, le=2**62, description="Its trip_id.", examples=[1])]
ChargePath = Annotated[int, Path(ge=1, le=2**62, description="Its charge_id.", examples=[1])]


def _state(row: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    duration = (row["end_at"] - row["start_at"]).total_seconds()
    cause = row["end_cause"]
    return {
        "revision": row["revision"],
        "day": row["day"],
        "settled": row["settled_on"] is not None,
        "in_progress": row["settled_on"] is None and (cause is None or cause == OPEN),
        "start_at": ctx.local(row["start_at"]),
        "end_at": ctx.local(row["end_at"]),
        "end_cause": None if cause is None else END_CAUSES[cause],
        "duration_s": duration,
        "records": row["records"],
        "covered_s": row["covered_s"],
        "coverage": rounded(figures.ratio(row["covered_s"], duration), 6),
    }


def trip(row: Mapping[str, Any], of: Subject, ctx: Context) -> dict[str, Any]:
    """A trip as answered, from its row."""
    state = _state(row, ctx)
    used = None
    if row["start_soc_pct"] is not None and row["end_soc_pct"] is not None:
        used = row["start_soc_pct"] - row["end_soc_pct"]
    battery = of.fact("battery_kwh")
    by_soc = figures.energy_by_soc(row["start_soc_pct"], row["end_soc_pct"], battery)
    if battery is None:
        of.lacks("battery_kwh", "energy_by_soc_kwh and energy_check of trips")
    differ = figures.energies_differ(row["consumption_kwh"], by_soc, battery)
    speed = figures.ratio(row["distance_km"], state["duration_s"])
    tracked = None if row["distance_km"] is None else row["distance_km"] - (row["untracked_km"] or 0.0)
    moving = figures.ratio(tracked, row["moving_s"])
    gross = None
    if row["consumption_kwh"] is not None and row["regen_kwh"] is not None:
        gross = row["consumption_kwh"] + row["regen_kwh"]
    return {
        "trip_id": row["trip_id"],
        **state,
        **{name: row[name] for name in ("distance_km", "untracked_km", "moving_s")},
        "mean_speed_kmh": rounded(None if speed is None else speed * 3600, 3),
        "mean_moving_speed_kmh": rounded(None if moving is None else moving * 3600, 3),
        **{name: row[name] for name in ("speed_max_kmh", "out_kwh", "regen_kwh")},
        "regen_ratio": rounded(figures.ratio(row["regen_kwh"], row["out_kwh"]), 6),
        **{name: row[name] for name in ("consumption_kwh", "consumption_km")},
        "kwh_per_100km": rounded(figures.per_100km(row["consumption_kwh"], row["consumption_km"])),
        "gross_kwh_per_100km": rounded(figures.per_100km(gross, row["consumption_km"])),
        **{name: row[name] for name in ("start_soc_pct", "end_soc_pct")},
        "soc_used_pct": used,
        "energy_by_soc_kwh": rounded(by_soc),
        "energy_check": None if differ is None else "differs" if differ else "agrees",
        **{column.name: row[column.name] for column in TRIP[-6:]},
    }


def charge(row: Mapping[str, Any], of: Subject, ctx: Context) -> dict[str, Any]:
    """A charge as answered, from its row."""
    battery = of.fact("battery_kwh")
    speed, unknown_for = figures.charge_speed(row["middle_power_kw"], row["middle_coverage"], battery)
    if unknown_for == "battery_kwh":
        of.lacks("battery_kwh", "speed of charges below 20 kW (small batteries are judged by C-rate)")
    if battery is None:
        of.lacks("battery_kwh", "c_rate_per_h of charges")
    rise = None
    if row["start_soc_pct"] is not None and row["end_soc_pct"] is not None:
        rise = row["end_soc_pct"] - row["start_soc_pct"]
    return {
        "charge_id": row["charge_id"],
        **_state(row, ctx),
        **{name: row[name] for name in ("runs", "energy_kwh", "charge_ah", "start_soc_pct", "end_soc_pct")},
        "soc_rise_pct": rise,
        **{name: row[name] for name in ("mean_power_kw", "max_power_kw", "middle_power_kw", "middle_coverage")},
        "c_rate_per_h": rounded(figures.ratio(row["middle_power_kw"], battery)),
        "speed": speed.value,
        "speed_unknown_for": unknown_for,
        "deep": figures.deep(row["start_soc_pct"], row["end_soc_pct"]),
        **{column.name: row[column.name] for column in CHARGE[-6:]},
    }


async def _page(
    request: Request,
    ctx: Context,
    vin: str,
    table: str,
    given: str | None,
    since: str | None,
    until: str | None,
    limit: int | None,
    cursor: str | None,
) -> Response:
    wanted = format_wanted(request, given)
    start, end = range_given(since, until, ctx, default=RANGE_DEFAULT, most=RANGE_MAX)
    most = limit_given(limit, ctx, PAGE)
    numbers = cursor_numbers(cursor, 2)
    of = await subject(ctx, vin)
    found = (
        await ctx.queries.sessions(
            table, of.vehicle_id, since=start, until=end, limit=most + 1,
            after=(cursor_time(numbers[0]), numbers[1]) if numbers else None,
        )
    ).dicts()  # fmt: skip
    key, shape, answered = _KINDS[table]
    following = cursor_of(found[most - 1]["start_at"], found[most - 1][key]) if len(found) > most else None
    rows = [answered(row, of, ctx) for row in found[:most]]
    local = {"from": ctx.local(start), "to": ctx.local(end)}
    about = {
        "vin": vin,
        **local,
        "count": len(rows),
        "coverage": coverage_of(rows, "covered_s", "duration_s"),
        **of.as_of(ctx),
        **paged(request, following, **{name: time.isoformat() for name, time in local.items() if time}),
    }
    return await table_answer(wanted, shape, rows, about, key=table, zone=ctx.zone, name=f"{table}-{vin}")


_KINDS: Final[Mapping[str, tuple[str, Sequence[Column], Any]]] = {
    "trips": ("trip_id", TRIP, trip),
    "charges": ("charge_id", CHARGE, charge),
}


async def one_session(ctx: Context, table: str, of: Subject, number: int) -> Mapping[str, Any]:
    """The row of a trip or charge, or a problem document that says that this vehicle has none of that id."""
    row = await ctx.queries.session(table, of.vehicle_id, number)
    if row is None:
        word = table.removesuffix("s")
        raise ProblemError(
            404, f"no-such-{word}", f"No such {word}", f"Vehicle {of.vin} has no {word} {number}.",
            f"List its {table} with /v1/vehicles/{of.vin}/{table}; late data may have joined two into one.",
        )  # fmt: skip
    return row


@router.get("/trips", response_model=TripPage, responses=FORMATS, summary="Trips")
async def trips(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    since: SessionFromQuery = None,
    until: ToQuery = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """Trips that start in [from, to), oldest first; without `from`, of 30 days.

    A trip is a run of driving with stops under 300 s; it ends when the vehicle is switched off, charges, or sends
    nothing for 600 s. Kept from 0.5 km or 300 s on; `trips_dropped` of /days counts the others.
    """
    return await _page(request, ctx, vin, "trips", kind, since, until, limit, cursor)


@router.get("/charges", response_model=ChargePage, responses=FORMATS, summary="Charges")
async def charges(
    request: Request,
    ctx: Ctx,
    vin: VinPath,
    since: SessionFromQuery = None,
    until: ToQuery = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    kind: FormatQuery = None,
) -> Response:
    """Charges that start in [from, to), oldest first; without `from`, of 30 days.

    Pauses up to 600 s at the same place are one charge. Kept from 120 s and 1 point of SOC or 0.1 kWh on.
    """
    return await _page(request, ctx, vin, "charges", kind, since, until, limit, cursor)


@router.get("/trips/{trip_id}", response_model=OneTrip, summary="One trip")
async def one_trip(ctx: Ctx, vin: VinPath, trip_id: TripPath) -> Json:
    """The trip, its figures and their units; its way is at `/track`."""
    of = await subject(ctx, vin)
    row = trip(await one_session(ctx, "trips", of, trip_id), of, ctx)
    return Json({"vin": vin, **of.as_of(ctx), "trip": row, "units": _units(TRIP)})


@router.get("/charges/{charge_id}", response_model=OneCharge, summary="One charge")
async def one_charge(ctx: Ctx, vin: VinPath, charge_id: ChargePath) -> Json:
    """The charge, its figures and their units; power and SOC over time are at `/curve`."""
    of = await subject(ctx, vin)
    row = charge(await one_session(ctx, "charges", of, charge_id), of, ctx)
    return Json({"vin": vin, **of.as_of(ctx), "charge": row, "units": _units(CHARGE)})


def _units(columns: Sequence[Column]) -> dict[str, str]:
    return {column.name: column.unit for column in columns if column.unit}
