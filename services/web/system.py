"""The system itself: overview, signal catalogue, health, readiness, metrics."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from schemas.samples import document
from services import metrics
from services.web import models
from services.web.answers import Json
from services.web.catalogue import CATALOGUE
from services.web.parameters import Ctx, only_known
from services.web.problems import RETRY_AFTER_S, ProblemError
from services.web.state import not_ready, state_of
from services.web.vehicles import REPORTING_WITHIN_S, WithinQuery

_Topic = Annotated[Literal["telemetry", "bms"], Path(description="Last level of the topic nev/v1/{vin}/…")]

router = APIRouter(tags=["system"])  # probes and scrapers may bring parameters of their own
_STRICT = [Depends(only_known)]


@router.get(
    "/v1/overview", response_model=models.Overview, summary="The fleet and the ledger in numbers", dependencies=_STRICT
)
async def overview(ctx: Ctx, reporting_within_s: WithinQuery = REPORTING_WITHIN_S) -> Json:
    """Vehicles by what they do now, and what became of every frame. Two answers give the rates between them."""
    now = ctx.now()
    row = await ctx.queries.overview(reporting_since=now - timedelta(seconds=reporting_within_s))
    doing = {name: row[name] for name in ("driving", "charging", "parked")}
    return Json(
        {
            "as_of": ctx.local(now),
            "vehicles": row["vehicles"],
            "ever_reported": row["ever_reported"],
            "reporting_within_s": reporting_within_s,
            "reporting": {"total": row["reporting"], **doing, "unknown": row["reporting"] - sum(doing.values())},
            "ledger": row["ledger"],
            "newest_data_time": ctx.local(row["newest_data_time"]),
            "newest_received_at": ctx.local(row["newest_received_at"]),
        }
    )


@router.get("/v1/signals", response_model=models.Signals, summary="Every field of a report", dependencies=_STRICT)
async def signals(ctx: Ctx) -> Json:
    """Names, units and codes of the fields that telemetry can be asked for; those of the signals file last."""
    known = [*CATALOGUE, *(ctx.own.catalogue() if ctx.own is not None else [])]
    return Json({"signals": known, "count": len(known)})


@router.get("/v1/schemas/{name}", summary="JSON Schema of a topic's payload", dependencies=_STRICT)
async def schema(name: _Topic) -> Response:
    """What vehicles may publish to nev/v1/{vin}/telemetry and nev/v1/{vin}/bms: every field, unit and range."""
    return Response(document.text(name), media_type="application/schema+json")


@router.get("/healthz", response_model=models.Alive, summary="Is this process alive")
async def healthz(ctx: Ctx) -> Json:
    """Answers as long as the process does; it asks nothing of the database."""
    return Json({"status": "alive", "time": ctx.local(ctx.now())})


@router.get("/readyz", response_model=models.Ready, summary="Can this process answer")
async def readyz(ctx: Ctx) -> Json:
    """Whether vehicles and readers are served as they should be; 503 says what is not.

    The database answers, its schema is this version's, no pipeline has stopped by itself, a gateway process takes
    connections at every listener, and no frame has waited longer than `web.ready_lag_max_s`.
    """
    if await asyncio.to_thread(metrics.halted_pipelines):
        raise ProblemError(
            503, "pipeline-halted", "The pipeline has stopped because too many frames are refused",
            "More than pipeline.reject_share_max of the newest frames were refused; nothing is lost, frames wait in "
            "the journal.",
            "See why with `nevstream dead-letters list` and the pipeline's log, put it right, restart the pipeline.",
        )  # fmt: skip
    health = await ctx.queries.health()
    if not health.current:
        raise ProblemError(
            503, "schema-not-current", "The database schema is not this version's",
            f"The newest migration applied is {health.schema_applied or 'none'}, "
            f"this version needs {health.schema_expected}.",
            "Run `nevstream migrate` with this version; when the schema is the newer one, update this process.",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )  # fmt: skip
    because = ""
    if metrics.shared():
        because = not_ready(await asyncio.to_thread(metrics.samples), ctx.settings)
    if because:
        raise ProblemError(
            503, "not-ready", "Frames are not taken or stored as they should be", f"{because[0].upper()}{because[1:]}.",
            "See GET /v1/system and the gateways' and pipelines' logs.",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )  # fmt: skip
    return Json({"status": "ready", "schema_version": health.schema_applied})


@router.get("/v1/system", response_model=models.SystemState, summary="How the processes stand", dependencies=_STRICT)
async def system_state(ctx: Ctx) -> Json:
    """Listeners, connections, what is held back and why, and the lag of each stage with its cause."""
    state = state_of(await asyncio.to_thread(metrics.samples))
    return Json({"as_of": ctx.local(ctx.now()), **state})


@router.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
async def prometheus() -> Response:
    """Counters and gauges of every process on this machine, in Prometheus' text format."""
    return Response(await asyncio.to_thread(metrics.exposition), media_type=CONTENT_TYPE_LATEST)
