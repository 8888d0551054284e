"""/v1/credits: the dual credit (双积分) as an estimate: what it comes to, and what of it is not confirmed.

Counts come from the request or from the registry; telemetry never enters.  Nothing is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Body, Depends, Query
from pydantic import Field, create_model

from schemas.credits.estimate import (
    Doubt,
    Estimate,
    ModelLine,
    VehicleCredit,
    combine,
    estimate,
    half_up,
    part_of,
)
from schemas.credits.rules import TAGS, Cell, NoRule, RuleTable, YearRules, cells
from schemas.credits.sheet import CREDITS, line_of
from schemas.registry.columns import MODELS, CellError
from schemas.registry.desk import RegistryDesk
from services.web.answers import Json
from services.web.changes import readable_json
from services.web.models import Model
from services.web.parameters import Context, Ctx, only_known
from services.web.problems import ProblemError, bad_parameter
from services.web.registry import body_fields, desk

router = APIRouter(prefix="/v1/credits", tags=["credits"], dependencies=[Depends(only_known)])

MODELS_MAX: Final = 5_000
ENTERPRISES_MAX: Final = 500
_CATALOGUE_PAGE: Final = 5_000
_CATALOGUE: Final = frozenset(column.name for column in MODELS.columns) & {column.name for column in CREDITS.columns}

NOTES: Final = (
    "An estimate from type-approval values and counts, not an official figure.",
    "NEV credits may offset an own or bought CAFC deficit 1:1; CAFC credits never offset an NEV deficit [B].",
    "Carrying over, pooling and trading of credits are not in it.",
)

# -- shapes -----------------------------------------------------------------------------------------------------
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Year = Annotated[int, Query(description="Accounting year; one without a rule is refused, not extrapolated.")]

ModelCount = create_model(
    "ModelCount",
    __base__=Model,
    model=(
        str,
        Field(min_length=1, max_length=100, description="Its name; as in the catalogue, to take the rest of it"),
    ),
    **{name: field for name, field in body_fields(CREDITS.columns).items() if name != "count"},
    count=(Count, Field(description="How many were made or imported in the year")),
)


class Conventional(Model):
    enterprise: str | None = Field(None, max_length=100)
    normal: Count = Field(0, description="Conventional cars known by number only")
    low: Count = Field(0, description="Those of low consumption")
    cafc_before: float | None = Field(None, gt=0, le=100, description="CAFC of the year before, L/100 km")


class CreditsAsked(Model):
    year: int
    models: list[ModelCount] = Field([], max_length=MODELS_MAX)
    conventional: list[Conventional] = Field([], max_length=ENTERPRISES_MAX)
    catalogue: bool = Field(True, description="Take what a model does not say from the model catalogue")


class DoubtModel(Model):
    what: str = Field(description="A cell of the rules, or an input")
    why: str
    tag: Literal["C", "D"] | None = Field(description="null: an input that is missing, or a rule that was not found")
    value: float | None
    source: str
    models: list[str] = Field(description="That rest on it; empty: the enterprise")
    models_count: int


class AlternativeModel(Model):
    rule: str
    credit: float
    tag: str
    source: str


class ModelCredit(Model):
    model: str
    count: int
    powertrain: str
    standard: float | None = Field(description="Standard credit, after the cap, not rounded")
    range_factor: float
    density_factor: float
    consumption_factor: float
    condition_factor: float = Field(description="Of a PHEV")
    credit: float | None = Field(description="Per vehicle; null: cannot be told, or the sources differ")
    credit_low: float | None
    credit_high: float | None
    capped: bool
    credits: float | None = Field(description="credit × count")
    tag: str | None = Field(description="Of the least sure figure that it rests on")
    alternatives: list[AlternativeModel]
    unconfirmed: list[str] = Field(description="What of `unconfirmed` below it rests on")


class NevModel(Model):
    """NEV credits; null: not one figure (see low and high), or cannot be told."""

    actual: float | None
    actual_low: float | None
    actual_high: float | None
    ratio: float
    ratio_tag: str
    conventional_normal: int
    conventional_low: int
    low_weight: float
    duty_from: float
    duty: bool = Field(description="Whether the ratio binds: conventional cars >= duty_from")
    target: float
    balance: float | None = Field(description="actual - target; below 0: a deficit")
    balance_low: float | None
    balance_high: float | None


class CafcModel(Model):
    """Average fuel consumption, L/100 km, and its credits; null: cannot be told, `missing` says why."""

    vehicles: int
    fuel_sum: float | None = Field(description="Σ fuel × vehicles: sub-fleets are added up by this and weight_sum")
    weight_sum: float = Field(description="Σ vehicles × weight")
    cafc: float | None
    target: float | None
    factor: float | None
    eased_by: float
    required: float | None = Field(description="factor × target × (1 + eased_by)")
    credit: float | None
    missing: list[str]


class EnterpriseCredits(Model):
    enterprise: str | None
    models: list[ModelCredit]
    nev: NevModel
    cafc: CafcModel | None = Field(description="null: no rule for CAFC in this year")
    unconfirmed: list[DoubtModel]


class Totals(Model):
    """Positive and negative credits apart: they belong to different enterprises and are never netted."""

    vehicles: float
    mass_kg: float | None
    cafc: float | None
    cafc_positive: float
    cafc_negative: float
    nev_positive: float
    nev_negative: float
    complete: bool = Field(description="Every enterprise's credits are one figure, so all are in the sums")


class LeftOut(Model):
    model: str | None
    vehicles: int
    why: str


class CreditsAnswer(Model):
    year: int
    label: Literal["estimate"]
    rules: str = Field(description="Name of the table")
    enterprises: list[EnterpriseCredits]
    totals: Totals
    left_out: list[LeftOut]
    tags: dict[str, str]
    notes: list[str]


class CellModel(Model):
    name: str
    value: float
    tag: str
    source: str
    note: str


class RulesAnswer(Model):
    rules: str
    years: list[int]
    year: int | None
    cells: list[CellModel]
    not_found: list[str] = Field(description="Parts for which there is no rule in this year")
    tags: dict[str, str]
    sources: dict[str, str]


# -- answers ----------------------------------------------------------------------------------------------------
def number(value: Decimal | None) -> float | None:
    """A decimal as JSON has it; its shortest writing is the decimal again (15 digits)."""
    return None if value is None else float(value)


def model_answer(line: ModelLine, made: VehicleCredit) -> dict[str, Any]:
    order = list(TAGS)
    used = [*made.used, *(Cell("", one.credit, one.tag, "") for one in made.alternatives)]
    return {
        "model": line.model,
        "count": line.count,
        "powertrain": line.powertrain,
        "standard": number(made.standard),
        "range_factor": number(made.range_factor),
        "density_factor": number(made.density_factor),
        "consumption_factor": number(half_up(made.consumption_factor, Decimal("1e-6"))),
        "condition_factor": number(made.condition_factor),
        "credit": number(made.credit),
        "credit_low": number(made.low),
        "credit_high": number(made.high),
        "capped": made.capped,
        "credits": None if made.credit is None else number(made.credit * line.count),
        "tag": max((cell.tag for cell in used), key=order.index, default=None),
        "alternatives": [
            {"rule": one.rule, "credit": number(one.credit), "tag": one.tag, "source": one.source}
            for one in made.alternatives
        ],
        "unconfirmed": list(dict.fromkeys(found.what for found in made.unconfirmed)),
    }


def estimate_answer(rules: YearRules, made: Estimate) -> dict[str, Any]:
    """An enterprise as the API answers it."""
    nev, cafc = made.nev, made.cafc
    return {
        "enterprise": made.enterprise,
        "models": [model_answer(line, credit) for line, credit in made.models],
        "nev": {
            **{name: number(getattr(nev, name)) for name in ("actual", "actual_low", "actual_high", "ratio")},
            "ratio_tag": rules.nev.ratio.tag,
            "conventional_normal": nev.normal,
            "conventional_low": nev.low,
            **{name: number(getattr(nev, name)) for name in ("low_weight", "duty_from")},
            "duty": nev.duty,
            **{name: number(getattr(nev, name)) for name in ("target", "balance", "balance_low", "balance_high")},
        },
        "cafc": None if cafc is None else {
            "vehicles": cafc.vehicles,
            "fuel_sum": number(cafc.fuel_sum),
            "weight_sum": number(cafc.weight_sum),
            **{
                name: None if (value := getattr(cafc, name)) is None else number(half_up(value, Decimal("0.0001")))
                for name in ("cafc", "target", "factor", "eased_by", "required")
            },
            "credit": None if cafc.credit is None else number(half_up(cafc.credit)),
            "missing": cafc.missing,
        },
        "unconfirmed": [doubt_answer(found, models) for found, models in made.unconfirmed],
    }  # fmt: skip


def doubt_answer(found: Doubt, models: Sequence[str]) -> dict[str, Any]:
    return {
        "what": found.what, "why": found.why, "tag": found.tag, "value": number(found.value), "source": found.source,
        "models": list(models[:20]), "models_count": len(models),
    }  # fmt: skip


def answer_of(
    table: RuleTable, rules: YearRules, made: Sequence[Estimate], left_out: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The whole answer: enterprises, their sums, tags and notes."""
    total = combine([part_of(one) for one in made])
    whole = all(one.nev.balance is not None and one.cafc is not None and one.cafc.credit is not None for one in made)
    return {
        "year": rules.year,
        "label": "estimate",
        "rules": table.name,
        "enterprises": [estimate_answer(rules, one) for one in made],
        "totals": {
            "vehicles": number(total.vehicles),
            "mass_kg": None if total.mass_kg is None else number(half_up(total.mass_kg, Decimal("0.1"))),
            "cafc": None if total.cafc is None else number(half_up(total.cafc, Decimal("0.0001"))),
            **{
                name: number(half_up(getattr(total, name)))
                for name in ("cafc_positive", "cafc_negative", "nev_positive", "nev_negative")
            },
            "complete": whole,
        },
        "left_out": list(left_out),
        "tags": dict(TAGS),
        "notes": list(NOTES),
    }


def rules_answer(table: RuleTable, year: int | None) -> dict[str, Any]:
    """The table, or the year of it.  Raises ``NoRule``."""
    rules = None if year is None else table.of(year)
    found = [] if rules is None else cells(rules)
    absent = []
    if rules is not None:
        parts = {"phev": rules.vehicle.phev, "fcv": rules.vehicle.fcv, "cafc": rules.cafc}
        parts["consumption targets"] = rules.vehicle.bev.consumption.targets or None  # type: ignore[assignment]
        if rules.cafc is not None:
            parts["cafc factor"] = rules.cafc.factor  # type: ignore[assignment]
            parts["cafc targets by mass"] = rules.cafc.targets or None  # type: ignore[assignment]
        absent = [name for name, part in parts.items() if part is None]
    return {
        "rules": table.name,
        "years": sorted(table.years),
        "year": year,
        "cells": [
            {"name": c.name, "value": number(c.value), "tag": c.tag, "source": c.source, "note": c.note} for c in found
        ],
        "not_found": absent,
        "tags": dict(TAGS),
        "sources": dict(table.sources),
    }


# -- paths ------------------------------------------------------------------------------------------------------
@router.get("/rules", response_model=RulesAnswer, summary="The rules of a year, each figure with tag and source")
async def rules(
    ctx: Ctx, year: Annotated[int | None, Query(description="Accounting year; none: which there are.")] = None
) -> Json:
    """Ratios, standard credits, caps, factors, weights."""
    try:
        return Json(rules_answer(_table(ctx), year))
    except NoRule as error:
        raise no_rule(error) from error


@router.post(
    "/estimate", response_model=CreditsAnswer, summary="Estimate credits from models and counts",
    dependencies=[Depends(readable_json)],
)  # fmt: skip
async def what_if(ctx: Ctx, asked: Annotated[CreditsAsked, Body()]) -> Json:
    """What-if: models with how many, by the catalogue or with their values; conventional cars by number."""
    table = _table(ctx)
    given = [_given(n, body, ctx) for n, body in enumerate(asked.models)]
    known: Mapping[str, Mapping[str, Any]] = {}
    if asked.catalogue and ctx.registry is not None and given:
        known = await catalogue(ctx.registry, {values["model"] for values in given})
    try:
        return Json(credits_of(table, asked.year, given, known, [one.model_dump() for one in asked.conventional]))
    except NoRule as error:
        raise no_rule(error) from error
    except ValueError as error:
        raise bad_parameter(
            "models", str(error).partition(":")[0], str(error), "BEV, PHEV, FCV or ICE", "body"
        ) from error


@router.get("/fleet", response_model=CreditsAnswer, summary="Estimate credits of the vehicles registered in a year")
async def fleet(
    ctx: Ctx,
    year: Year,
    enterprise: Annotated[
        str | None, Query(max_length=100, description="Whose conventional cars follow; when there are several.")
    ] = None,
    conventional_normal: Annotated[int, Query(ge=0, le=1_000_000_000, description="Its conventional cars.")] = 0,
    conventional_low: Annotated[int, Query(ge=0, le=1_000_000_000, description="Those of low consumption.")] = 0,
    cafc_before: Annotated[float | None, Query(gt=0, le=100, description="CAFC of the year before, L/100 km.")] = None,
) -> Json:
    """Counts by model from the registry; passenger cars only, by enterprise (the models' manufacturer)."""
    registry = desk(ctx)
    try:
        conventional = [
            {"enterprise": enterprise, "normal": conventional_normal, "low": conventional_low,
             "cafc_before": cafc_before}
        ]  # fmt: skip
        return Json(await fleet_credits(registry, _table(ctx), year, ctx.zone, conventional))
    except NoRule as error:
        raise no_rule(error) from error
    except LookupError as error:
        raise bad_parameter("enterprise", enterprise, str(error), "one of the enterprises of the fleet") from error


# -- making -----------------------------------------------------------------------------------------------------
def credits_of(
    table: RuleTable,
    year: int,
    given: Sequence[Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    conventional: Iterable[Mapping[str, Any]] = (),
    left_out: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The answer for lines by the names of ``CREDITS``; what they do not say is taken from ``known``, by model.

    ``conventional``: enterprise, normal, low, cafc_before.  Raises ``NoRule``, and ``ValueError`` for a model whose
    powertrain is not known.
    """
    rules = table.of(year)
    by_enterprise: dict[str | None, list[ModelLine]] = {}
    for values in given:
        model = known.get(values["model"], {})
        filled = {name: model.get(name) for name in _CATALOGUE}
        filled["enterprise"] = model.get("manufacturer")
        filled |= {name: value for name, value in values.items() if value is not None}
        if filled.get("powertrain") is None:
            raise ValueError(f"{values['model']}: its powertrain is neither given nor in the catalogue")
        by_enterprise.setdefault(filled.get("enterprise"), []).append(line_of(filled))
    rest: dict[str | None, dict[str, Any]] = {}
    for one in conventional:
        name = one["enterprise"]
        if name is None and len(by_enterprise) == 1:
            (name,) = by_enterprise  # there is no other that it could be
        at = rest.setdefault(name, {"normal": 0, "low": 0, "cafc_before": None})
        at["normal"] += one["normal"]
        at["low"] += one["low"]
        at["cafc_before"] = one["cafc_before"] if one["cafc_before"] is not None else at["cafc_before"]
    made = []
    for name in dict.fromkeys([*by_enterprise, *(n for n, at in rest.items() if at["normal"] or at["low"])]):
        at = rest.get(name, {"normal": 0, "low": 0, "cafc_before": None})
        before = at["cafc_before"]
        made.append(
            estimate(
                rules, by_enterprise.get(name, []), normal=at["normal"], low=at["low"], enterprise=name,
                cafc_before=None if before is None else Decimal(str(before)),
            )
        )  # fmt: skip
    return answer_of(table, rules, made, left_out)


async def catalogue(registry: RegistryDesk, names: set[str]) -> dict[str, Mapping[str, Any]]:
    """The models of these names that the catalogue has."""
    found: dict[str, Mapping[str, Any]] = {}
    after = ""
    while True:
        rows = (await registry.models(prefix="", after=after, limit=_CATALOGUE_PAGE)).dicts()
        found |= {row["model"]: row for row in rows if row["model"] in names}
        if len(rows) < _CATALOGUE_PAGE:
            return found
        after = rows[-1]["model"]


async def fleet_credits(
    registry: RegistryDesk, table: RuleTable, year: int, zone: tzinfo, conventional: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The answer for the vehicles registered in ``year``.  Raises ``NoRule``; ``LookupError``: no such enterprise."""
    table.of(year)
    since, until = datetime(year, 1, 1, tzinfo=zone), datetime(year + 1, 1, 1, tzinfo=zone)
    given, known, left_out = [], {}, []
    for row in (await registry.registrations(since, until)).dicts():
        why = None
        if row["named"] is None:
            why = "the vehicles have no model"
        elif row["model"] is None:
            why = "the model is not in the catalogue"
        elif row["powertrain"] is None:
            why = "the catalogue does not say its powertrain"
        elif row["category"] not in (None, "passenger"):
            why = f"no passenger car ({row['category']})"
        if why is not None:
            left_out.append({"model": row["named"], "vehicles": row["vehicles"], "why": why})
            continue
        given.append({"model": row["named"], "count": row["vehicles"]})
        known[row["named"]] = row
    names = {row["manufacturer"] for row in known.values()}
    for one in conventional:
        numbers = one["normal"] or one["low"] or one["cafc_before"]
        if numbers and one["enterprise"] is None and len(names) > 1:
            raise LookupError(f"there are several: {', '.join(sorted(str(name) for name in names))}")
        if one["enterprise"] is not None and one["enterprise"] not in names:
            raise LookupError("no model of this enterprise was registered in the year")
    answer = credits_of(table, year, given, known, conventional, left_out)
    unknown = sum(row["vehicles"] for row in known.values() if row["category"] is None)
    if unknown:
        answer["notes"].append(
            f"{unknown} vehicles are of models without a category in the catalogue; they count as passenger cars."
        )
    return answer


def no_rule(error: NoRule) -> ProblemError:
    return ProblemError(
        422, "no-rule-for-year", "No rule for this year", str(error),
        "Give a year that the table has (/v1/credits/rules), or add the year in a table of yours (credits.rules_file).",
    )  # fmt: skip


# -- inside -----------------------------------------------------------------------------------------------------
def _table(ctx: Context) -> RuleTable:
    assert ctx.credits is not None, "create_app reads the table"
    return ctx.credits


def _given(n: int, body: Any, ctx: Context) -> dict[str, Any]:
    """A model of a request, read by the columns of the sheet."""
    values = {}
    for name, value in body.model_dump(exclude_none=True).items():
        column = CREDITS.key if name == CREDITS.key.name else CREDITS.column(name)
        try:
            values[name] = column.take(value, ctx.zone)
        except CellError as error:
            raise bad_parameter(f"models.{n}.{name}", value, error.wrong, error.allowed, "body") from error
    return values
