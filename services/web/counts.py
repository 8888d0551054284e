"""/v1/counts: how much is stored, and how much was refused, of all vehicles whose VINs begin alike.

For reckoning up: whoever sends knows how many frames were acknowledged, and asks once instead of once per vehicle.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, ConfigDict, Field

from schemas.reasons import reason_name
from services.web.answers import Json
from services.web.models import Model
from services.web.parameters import Ctx, checked_vin, only_known

router = APIRouter(prefix="/v1/counts", tags=["vehicles"], dependencies=[Depends(only_known)])


class Counts(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "vin": "LNEVA1RR", "vehicles": 1000, "ever_reported": 1000, "reports": 60000, "rejected": 2,
                    "refused": {"bad_bcc": 2}, "newest_data_time": "2026-11-24T16:00:00+08:00",
                }
            ]
        }
    )  # fmt: skip

    vin: str
    vehicles: int = Field(description="Vehicles known whose VIN begins so")
    ever_reported: int
    reports: int = Field(description="Reports stored; one that came twice counts once")
    rejected: int = Field(description="Refused frames that claim such a VIN (dead letters), in all")
    refused: dict[str, int] = Field(description="The same by reason")
    newest_data_time: AwareDatetime | None


@router.get("", response_model=Counts, summary="Reports stored and frames refused, of VINs that begin alike")
async def counts(
    ctx: Ctx,
    vin: Annotated[str, Query(max_length=17, description="Beginning of the VINs; empty: all.")] = "",
) -> Json:
    """What became of everything that these vehicles sent and the platform has worked off."""
    if vin:
        checked_vin(vin, where="query")
    found = await ctx.queries.prefix_counts(vin)
    refused = {reason_name(reason): count for reason, count in found["refused"].items()}
    return Json(
        {
            "vin": vin,
            "vehicles": found["vehicles"],
            "ever_reported": found["ever_reported"],
            "reports": found["reports"],
            "rejected": sum(refused.values()),
            "refused": refused,
            "newest_data_time": ctx.local(found["newest_data_time"]),
        }
    )
