"""/v1/vehicles/{vin}/diagnosis: why a vehicle is silent.  The conclusions are drawn in ``doctor.py``."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, Field

from services.web.answers import Json
from services.web.doctor import Finding, diagnose
from services.web.models import Model
from services.web.parameters import Context, Ctx, VinPath, checked_vin, only_known

router = APIRouter(prefix="/v1/vehicles", tags=["vehicles"], dependencies=[Depends(only_known)])


class FindingModel(Model):
    code: str = Field(description="What it is, for programs")
    severity: Literal["ok", "info", "warning", "error"]
    sentence: str
    to_do: str = Field(description="What to do about it")
    evidence: dict[str, Any] = Field(description="Values and times it rests on")


class DiagnosisModel(Model):
    vin: str
    time: AwareDatetime
    verdict: str = Field(description="The most likely cause in a sentence; the first finding's")
    severity: Literal["ok", "info", "warning", "error"] = Field(description="Of the worst finding")
    findings: list[FindingModel]


def document(vin: str, findings: list[Finding], ctx: Context) -> dict[str, Any]:
    """The findings as an answer; times in the fleet's zone."""
    return {
        "vin": vin,
        "time": ctx.local(ctx.now()),
        "verdict": findings[0].sentence,
        "severity": max(one.severity for one in findings).name.lower(),
        "findings": [
            {
                "code": one.code,
                "severity": one.severity.name.lower(),
                "sentence": one.sentence,
                "to_do": one.to_do,
                "evidence": {
                    name: ctx.local(value) if isinstance(value, datetime) else _plain(value)
                    for name, value in one.evidence.items()
                },
            }
            for one in findings
        ],
    }


def _plain(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


@router.get("/{vin}/diagnosis", response_model=DiagnosisModel, summary="Why is it silent?")
async def diagnosis(ctx: Ctx, vin: VinPath) -> Json:
    """Last login, frame and error answer, who replaced it, clock, missing share, dead letters, backlog, registry.

    Findings in plain sentences, the most likely cause first.  A VIN that nobody knows is diagnosed, too.
    """
    checked_vin(vin)
    now = ctx.now()
    facts = await ctx.queries.diagnosis(vin, now=now)
    return Json(document(vin, diagnose(vin, facts, ctx.settings, now), ctx))
