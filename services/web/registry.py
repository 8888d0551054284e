"""/v1/registry: what operators know of vehicles and models, and how they change it.

``changes.py`` says from whom changes are taken.  A sheet with a mistake changes nothing, unless its bad
lines are to be left out; then they are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import tzinfo
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Body, Depends, Path, Query, Request
from pydantic import AwareDatetime, Field, create_model
from starlette.responses import Response

from schemas.registry.columns import MODELS, VEHICLES, CellError, Column, Sheet
from schemas.registry.desk import Imported, RegistryDesk, VehicleFilter
from schemas.registry.sheet import Parsed, read_sheet, write_sheet
from services.errors import UsageError
from services.web.answers import Json
from services.web.changes import change_from_here, changes_allowed, sheet_allowed
from services.web.exports import MEDIA_TYPES, Format, format_wanted
from services.web.models import Model
from services.web.parameters import (
    Context,
    Ctx,
    CursorQuery,
    LimitQuery,
    VinPath,
    checked_vin,
    limit_given,
    next_link,
    no_vehicle,
    only_known,
)
from services.web.problems import ProblemError, bad_parameter

router = APIRouter(prefix="/v1/registry", tags=["registry"], dependencies=[Depends(only_known)])

BODY_BYTES_MAX: Final = 64 * 1024 * 1024
_EFFECTIVE: Final = tuple(c.name for c in VEHICLES.columns if c.name in {m.name for m in MODELS.columns})
_UNKNOWN: Final = ("model", "fleet", "region", "usage", *_EFFECTIVE)

_TYPES: Final[dict[str, Any]] = {
    "text": str, "number": float, "integer": int, "flag": bool, "date": AwareDatetime, "choice": str
}  # fmt: skip


def body_fields(columns: tuple[Column, ...]) -> dict[str, Any]:
    """Fields of a request's body from a table of columns."""
    return _fields(columns, body=True)


def _fields(columns: tuple[Column, ...], *, body: bool) -> dict[str, Any]:
    """Fields of a pydantic model from a table of columns."""
    made = {}
    for column in columns:
        of = Literal[column.values] if column.kind == "choice" and not column.open_choice else _TYPES[column.kind]
        text = f"{column.text[0].upper()}{column.text[1:]}" + (f", {column.unit}" if column.unit else "")
        if body:  # read by the column itself, which knows the words in Chinese, too
            of = {"number": float, "integer": int, "flag": bool}.get(column.kind, str) | str
            made[column.name] = (of | None, Field(None, description=f"{text}: {column.allowed}; null: unknown"))
        else:
            nullable = (column.clears and column.cleared is None) or column.kind == "date"
            made[column.name] = (of | None if nullable else of, Field(description=text))
    return made


VehicleAsked = create_model("VehicleAsked", __base__=Model, **body_fields(VEHICLES.columns))
ModelAsked = create_model("ModelAsked", __base__=Model, **body_fields(MODELS.columns))
Effective = create_model(
    "Effective", __base__=Model, **_fields(tuple(c for c in VEHICLES.columns if c.name in _EFFECTIVE), body=False)
)
State = Literal["registered", "retired", "seen"]
_VEHICLE_FIELDS: Final[dict[str, Any]] = {
    "vin": (str, ...),
    "state": (State, Field(description="seen: it has reported, and is in no registry")),
    "first_seen_at": (AwareDatetime | None, ...),
    "retired_at": (AwareDatetime | None, ...),
    **_fields(VEHICLES.columns, body=False),
    "model_known": (bool, Field(description="Its model is in the catalogue")),
    "effective": (Effective, Field(description="Its own figures, else those of its model")),
    "unknown": (list[str], Field(description="What neither the vehicle nor its model says; statistics name it")),
}
RegistryVehicle = create_model("RegistryVehicle", __base__=Model, **_VEHICLE_FIELDS)
RegistryModel = create_model(
    "RegistryModel",
    __base__=Model,
    model=(str, ...),
    **_fields(MODELS.columns, body=False),
    vehicles=(int, Field(description="Vehicles registered of it")),
    updated_at=(AwareDatetime, ...),
)


class RegistryPage(Model):
    vehicles: list[RegistryVehicle]
    count: int = Field(description="Vehicles in this page")
    next_cursor: str | None
    next: str | None


class ModelPage(Model):
    models: list[RegistryModel]
    count: int
    next_cursor: str | None
    next: str | None


class MistakeModel(Model):
    line: int = Field(description="From 1, the header's")
    column: str = Field(description="Empty: the line as a whole")
    value: str
    wrong: str
    fix: str


class ImportAnswer(Model):
    lines: int = Field(description="Lines that were merged")
    inserted: int
    changed: int
    unchanged: int
    reinstated: int = Field(description="Of the changed: had been retired")
    retired: int
    skipped: int = Field(description="Bad lines left out (skip_bad)")
    dry_run: bool
    columns: dict[str, int] = Field(description="Lines in which each column changes")
    unknown_models: dict[str, int] = Field(description="Models named by vehicles that the catalogue does not have")
    ignored_columns: list[str]
    encoding: str
    mistakes: list[MistakeModel] = Field(description="Of the lines left out; the first hundred")


# -- answers ----------------------------------------------------------------------------------------------------
def vehicle_answer(row: Mapping[str, Any], zone: tzinfo) -> dict[str, Any]:
    """A row of ``RegistryDesk.vehicles`` as the API answers it."""
    effective = {name: row[f"eff_{name}"] for name in _EFFECTIVE}
    known = {**{name: row[name] for name in _UNKNOWN}, **effective}
    return {
        "vin": row["vin"],
        "state": "registered" if row["registered"] else "retired" if row["retired_at"] is not None else "seen",
        **{
            name: row[name].astimezone(zone) if row[name] else None
            for name in ("first_seen_at", "retired_at", "registered_at")
        },
        **{column.name: row[column.name] for column in VEHICLES.columns if column.kind != "date"},
        "model_known": row["model_known"],
        "effective": effective,
        "unknown": [name for name in _UNKNOWN if known[name] is None],
    }


def model_answer(row: Mapping[str, Any], zone: tzinfo) -> dict[str, Any]:
    """A row of ``RegistryDesk.models`` as the API answers it."""
    return {**row, "updated_at": row["updated_at"].astimezone(zone)}


def import_answer(done: Imported, parsed: Parsed) -> dict[str, Any]:
    """What an import did, for the API and the command line."""
    return {
        "lines": done.lines, "inserted": done.inserted, "changed": done.changed, "unchanged": done.unchanged,
        "reinstated": done.reinstated, "retired": done.retired, "skipped": len(parsed.bad), "dry_run": done.dry_run,
        "columns": dict(done.columns), "unknown_models": dict(done.unknown_models),
        "ignored_columns": parsed.left_out, "encoding": parsed.encoding,
    }  # fmt: skip


def desk(ctx: Context) -> RegistryDesk:
    """The registry, or a problem document that says that this process has none."""
    if ctx.registry is None:
        raise ProblemError(
            404, "no-registry", "This API does not know of the registry", "This process was started without it.",
            "Use the command line: `nevstream vehicles`, `nevstream models`.",
        )  # fmt: skip
    return ctx.registry


# -- vehicles ---------------------------------------------------------------------------------------------------
ModelPath = Annotated[str, Path(description="Name of a model, as in the catalogue.", max_length=100)]
FormatQuery = Annotated[str | None, Query(description="json, or csv: as `import` reads it. Default: by Accept.")]


@router.get("/vehicles", response_model=RegistryPage, summary="What is known of vehicles, by VIN")
async def list_vehicles(
    request: Request,
    ctx: Ctx,
    vin: Annotated[str, Query(max_length=17, description="Only VINs that start with this.")] = "",
    model: Annotated[str | None, Query(max_length=100, description="Only this model.")] = None,
    fleet: Annotated[str | None, Query(max_length=100, description="Only this fleet.")] = None,
    region: Annotated[str | None, Query(max_length=100, description="Only this region.")] = None,
    usage: Annotated[str | None, Query(max_length=100, description="Only this usage.")] = None,
    state: Annotated[State | None, Query(description="seen: it has reported, and is in no registry.")] = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    format: FormatQuery = None,  # noqa: A002 - the name of the parameter
) -> Response:
    """Facts of each vehicle: its own, and what its model adds."""
    if vin:
        checked_vin(vin, where="query")
    after = checked_vin(cursor, "cursor", "query") if cursor else ""
    wanted_format = _format(request, format)
    most = limit_given(limit, ctx)
    usage = None if usage is None else _query_value(VEHICLES.column("usage"), usage, ctx)
    wanted = VehicleFilter(prefix=vin, model=model, fleet=fleet, region=region, usage=usage, state=state)
    rows = (await desk(ctx).vehicles(wanted, after=after, limit=most + 1)).dicts()
    following = rows[most - 1]["vin"] if len(rows) > most else None
    link = next_link(request, following)
    if wanted_format == Format.CSV:
        return _csv(VEHICLES, rows[:most], link, ctx)
    page = [vehicle_answer(row, ctx.zone) for row in rows[:most]]
    return Json({"vehicles": page, "count": len(page), "next_cursor": following, "next": link})


@router.get("/vehicles/{vin}", response_model=RegistryVehicle, summary="What is known of a vehicle")
async def one_vehicle(ctx: Ctx, vin: VinPath) -> Json:
    """Its own facts, those of its model, and which are not known."""
    return Json(await _vehicle(ctx, checked_vin(vin)))


@router.put(
    "/vehicles/{vin}", response_model=RegistryVehicle, summary="Register a vehicle with all that is known of it",
    dependencies=[Depends(changes_allowed)],
)  # fmt: skip
async def put_vehicle(ctx: Ctx, vin: VinPath, body: Annotated[VehicleAsked, Body()]) -> Json:
    """What the body does not say becomes unknown; a retired vehicle is registered again."""
    values = _values(VEHICLES, body, ctx)
    done = await desk(ctx).change(VEHICLES, checked_vin(vin), values, whole=True, create=True)
    return Json(await _vehicle(ctx, vin), status_code=201 if done is not None and done.inserted else 200)


@router.patch(
    "/vehicles/{vin}", response_model=RegistryVehicle, summary="Change what is known of a vehicle",
    dependencies=[Depends(changes_allowed)],
)  # fmt: skip
async def patch_vehicle(ctx: Ctx, vin: VinPath, body: Annotated[VehicleAsked, Body()]) -> Json:
    """Only what the body says changes; null makes it unknown."""
    if (
        await desk(ctx).change(VEHICLES, checked_vin(vin), _values(VEHICLES, body, ctx), whole=False, create=False)
        is None
    ):
        raise no_vehicle(vin)
    return Json(await _vehicle(ctx, vin))


@router.delete(
    "/vehicles/{vin}", response_model=RegistryVehicle, summary="Retire a vehicle",
    dependencies=[Depends(change_from_here)],
)  # fmt: skip
async def retire_vehicle(ctx: Ctx, vin: VinPath) -> Json:
    """Its data stay; it is no longer counted, nor let in where only registered vehicles are."""
    if (await desk(ctx).retire([checked_vin(vin)])).unknown:
        raise no_vehicle(vin)
    return Json(await _vehicle(ctx, vin))


# -- models -----------------------------------------------------------------------------------------------------
@router.get("/models", response_model=ModelPage, summary="The model catalogue")
async def list_models(
    request: Request,
    ctx: Ctx,
    model: Annotated[str, Query(max_length=100, description="Only names that start with this.")] = "",
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
    format: FormatQuery = None,  # noqa: A002 - the name of the parameter
) -> Response:
    """What vehicles of a model have in common, and how many are registered."""
    wanted_format = _format(request, format)
    most = limit_given(limit, ctx)
    rows = (await desk(ctx).models(prefix=_clean(model), after=_clean(cursor or ""), limit=most + 1)).dicts()
    following = rows[most - 1]["model"] if len(rows) > most else None
    link = next_link(request, following)
    if wanted_format == Format.CSV:
        return _csv(MODELS, rows[:most], link, ctx)
    page = [model_answer(row, ctx.zone) for row in rows[:most]]
    return Json({"models": page, "count": len(page), "next_cursor": following, "next": link})


@router.get("/models/{model}", response_model=RegistryModel, summary="One model")
async def one_model(ctx: Ctx, model: ModelPath) -> Json:
    """Its figures; null: not known."""
    return Json(await _model(ctx, model))


@router.put(
    "/models/{model}", response_model=RegistryModel, summary="Put a model into the catalogue",
    dependencies=[Depends(changes_allowed)],
)  # fmt: skip
async def put_model(ctx: Ctx, model: ModelPath, body: Annotated[ModelAsked, Body()]) -> Json:
    """What the body does not say becomes unknown."""
    name = _named(model, ctx)
    done = await desk(ctx).change(MODELS, name, _values(MODELS, body, ctx), whole=True, create=True)
    return Json(await _model(ctx, name), status_code=201 if done is not None and done.inserted else 200)


@router.patch(
    "/models/{model}", response_model=RegistryModel, summary="Change what is known of a model",
    dependencies=[Depends(changes_allowed)],
)  # fmt: skip
async def patch_model(ctx: Ctx, model: ModelPath, body: Annotated[ModelAsked, Body()]) -> Json:
    """Only what the body says changes; null makes it unknown."""
    if await desk(ctx).change(MODELS, _clean(model), _values(MODELS, body, ctx), whole=False, create=False) is None:
        raise _no_model(model)
    return Json(await _model(ctx, model))


@router.delete(
    "/models/{model}", status_code=204, summary="Take a model out of the catalogue",
    dependencies=[Depends(change_from_here)],
)  # fmt: skip
async def drop_model(ctx: Ctx, model: ModelPath) -> Response:
    """Its vehicles keep the name."""
    if not await desk(ctx).drop_model(_clean(model)):
        raise _no_model(model)
    return Response(status_code=204)


# -- sheets -----------------------------------------------------------------------------------------------------
DryRunQuery = Annotated[bool, Query(description="Only say what would change.")]
SkipBadQuery = Annotated[bool, Query(description="Leave bad lines out, and tell them.")]
IgnoreQuery = Annotated[bool, Query(description="Leave out columns that the registry does not have.")]
_CSV_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"text/csv": {"schema": {"type": "string"}}},
        "description": "A sheet: UTF-8 or GB18030, with a line of column names, in English or Chinese. An empty cell "
        "leaves what is known as it is; - says that it is not known.",
    }
}


@router.post(
    "/vehicles/import", response_model=ImportAnswer, summary="Register vehicles from CSV",
    dependencies=[Depends(sheet_allowed)], openapi_extra=_CSV_BODY,
)  # fmt: skip
async def import_vehicles(
    request: Request,
    ctx: Ctx,
    dry_run: DryRunQuery = False,
    retire_missing: Annotated[bool, Query(description="Retire registered vehicles that are not in it.")] = False,
    retire_most: Annotated[bool, Query(description="Even if that is more than half of the registry.")] = False,
    skip_bad: SkipBadQuery = False,
    ignore_unknown_columns: IgnoreQuery = False,
) -> Json:
    """One transaction; nothing is changed when a line is wrong, unless `skip_bad`."""
    if retire_missing and skip_bad:
        raise bad_parameter(
            "retire_missing", True, "would retire the vehicles on bad lines", "false, or leave skip_bad out"
        )
    return await _import(
        VEHICLES, request, ctx, ignore_unknown_columns, skip_bad,
        dry_run=dry_run, retire_missing=retire_missing, retire_most=retire_most,
    )  # fmt: skip


@router.post(
    "/models/import", response_model=ImportAnswer, summary="Put models into the catalogue from CSV",
    dependencies=[Depends(sheet_allowed)], openapi_extra=_CSV_BODY,
)  # fmt: skip
async def import_models(
    request: Request, ctx: Ctx, dry_run: DryRunQuery = False, skip_bad: SkipBadQuery = False,
    ignore_unknown_columns: IgnoreQuery = False,
) -> Json:  # fmt: skip
    """One transaction; nothing is changed when a line is wrong, unless `skip_bad`."""
    return await _import(MODELS, request, ctx, ignore_unknown_columns, skip_bad, dry_run=dry_run)


async def body_within(request: Request, bytes_max: int) -> bytes:
    """The body of a request, refused as soon as it is too long."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > bytes_max:
            raise ProblemError(
                413, "too-long", "The body is too long", f"It has more than {bytes_max / 2**20:g} MiB.",
                "Split it, or use the command line on the machine itself.",
            )  # fmt: skip
    return bytes(content)


def mistakes_problem(parsed: Parsed) -> ProblemError:
    """Every mistake of a sheet as a problem document."""
    first, count = parsed.mistakes[0], parsed.mistakes_count
    return ProblemError(
        422, "bad-sheet", "The sheet has mistakes", f"{count} mistakes, nothing was imported; the first: {first}",
        "Put them right and send the sheet again, or leave the bad lines out with skip_bad=true.",
        mistakes_count=count, mistakes=_mistakes(parsed),
    )  # fmt: skip


def _mistakes(parsed: Parsed) -> list[dict[str, Any]]:
    return [{name: getattr(mistake, name) for name in MistakeModel.model_fields} for mistake in parsed.mistakes]


async def _import(sheet: Sheet, request: Request, ctx: Context, ignore: bool, skip_bad: bool, **how: bool) -> Json:
    registry = desk(ctx)
    content = await body_within(request, BODY_BYTES_MAX)
    parsed = await asyncio.to_thread(read_sheet, content, sheet, ctx.zone, ignore)
    if parsed.mistakes and (parsed.fatal or not skip_bad):
        raise mistakes_problem(parsed)
    try:
        done = await registry.load(parsed, **how)
    except UsageError as error:
        raise ProblemError(
            409,
            "retires-too-many",
            "Too many would be retired",
            str(error),
            "Send the whole registry, or retire_most=true.",
        ) from error
    return Json({**import_answer(done, parsed), "mistakes": _mistakes(parsed)})


# -- inside -----------------------------------------------------------------------------------------------------
async def _vehicle(ctx: Context, vin: str) -> dict[str, Any]:
    row = await desk(ctx).vehicle(vin)
    if row is None:
        raise no_vehicle(vin)
    return vehicle_answer(row, ctx.zone)


async def _model(ctx: Context, name: str) -> dict[str, Any]:
    row = await desk(ctx).model(_clean(name))
    if row is None:
        raise _no_model(name)
    return model_answer(row, ctx.zone)


def _no_model(name: str) -> ProblemError:
    return ProblemError(
        404, "no-such-model", "No such model", f"No model {name[:100]!r} is in the catalogue.",
        "List the catalogue with /v1/registry/models.",
    )  # fmt: skip


def _clean(text: str) -> str:
    """A text that PostgreSQL can compare: with a NUL it is nobody's name."""
    return text.replace("\0", "\ufffd")


def _named(model: str, ctx: Context) -> str:
    try:
        name: str = MODELS.key.read(model.strip(), ctx.zone)
    except CellError as error:
        raise bad_parameter("model", model, error.wrong, error.allowed, "path") from error
    return name


def _values(sheet: Sheet, body: Any, ctx: Context) -> dict[str, Any]:
    """What a body of JSON says, read by the columns; every mistake at once."""
    given = body.model_dump(exclude_unset=True)
    values, errors = {}, []
    for name, value in given.items():
        try:
            values[name] = sheet.column(name).take(value, ctx.zone)
        except CellError as error:
            errors.append(bad_parameter(name, value, error.wrong, error.allowed, "body"))
    if errors:
        first = errors[0]
        first.extra["errors"] = [one for error in errors for one in error.extra["errors"]]
        raise first
    return values


def _query_value(column: Column, text: str, ctx: Context) -> Any:
    try:
        return column.read(text.strip() or "-", ctx.zone)
    except CellError as error:
        raise bad_parameter(column.name, text, error.wrong, error.allowed) from error


def _format(request: Request, given: str | None) -> str:
    return format_wanted(request, given, {name: MEDIA_TYPES[name] for name in (Format.JSON, Format.CSV)})


def _csv(sheet: Sheet, rows: list[dict[str, Any]], link: str | None, ctx: Context) -> Response:
    cells = [[row[column.name] for column in sheet.all] for row in rows]
    headers = {"Link": f'<{link}>; rel="next"'} if link else None
    return Response(write_sheet(sheet, cells, ctx.zone), media_type="text/csv", headers=headers)
