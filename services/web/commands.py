"""/v1/vehicles/{vin}/commands: parameter query, set and terminal control, on their way down to a vehicle.

``changes.py`` says from whom asking is taken.  The gateway that holds the vehicle sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Request
from pydantic import AwareDatetime, Field

from schemas.downlink import CommandDesk
from schemas.gbt32960.commands import ack_name
from schemas.gbt32960.downlink import KIND_OF, DownlinkError, check
from services.errors import UsageError
from services.web.answers import DOORS, EDITIONS, Json
from services.web.changes import changes_allowed
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
    only_known,
)
from services.web.problems import ProblemError, bad_parameter

router = APIRouter(prefix="/v1/vehicles", tags=["commands"], dependencies=[Depends(only_known)])

Kind = Literal["query", "set", "control"]


class CommandAsked(Model):
    kind: Kind
    body: dict[str, Any] = Field(
        description="query: {params: [names]}. set: {params: {name: value}}. control: {control: name, ...}.",
        examples=[{"params": ["report_period", "platform_domain"]}],
    )
    edition: Literal[2016, 2025] | None = Field(None, description="Default: the one that the vehicle speaks")
    expires_s: float | None = Field(None, gt=0, le=366 * 86_400, description="Default: gateway.commands.expires_s")


class CommandQueued(Model):
    id: int
    vin: str
    state: Literal["queued"]


class CommandModel(Model):
    id: int
    vin: str
    kind: Kind
    body: dict[str, Any]
    edition: int | None
    state: Literal["queued", "sent", "answered", "failed", "expired"]
    attempts: int
    created_at: AwareDatetime
    created_by: str
    expires_at: AwareDatetime
    sent_at: AwareDatetime | None
    delivered_at: AwareDatetime | None = Field(description="MQTT: the client's PUBACK")
    finished_at: AwareDatetime | None
    door: str | None
    ack: str | None = Field(description="Response flag of the answer")
    answer: dict[str, Any] | None = Field(description="The answer's data unit; of a query, params with their values")
    error: str | None
    frame_hex: str | None
    answer_hex: str | None


class CommandPage(Model):
    vin: str
    commands: list[CommandModel]
    count: int
    next_cursor: str | None
    next: str | None


def command(row: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """A row of ``CommandDesk.commands`` as the API answers it."""
    return {
        "id": row["command_id"],
        "vin": row["vin"],
        "kind": KIND_OF[row["command"]],
        "edition": EDITIONS.get(row["edition"]),
        **{name: row[name] for name in ("body", "state", "attempts", "created_by", "answer", "error")},
        **{
            name: ctx.local(row[name])
            for name in ("created_at", "expires_at", "sent_at", "delivered_at", "finished_at")
        },
        "door": DOORS.get(row["door"]),
        "ack": None if row["ack"] is None else ack_name(row["ack"]),
        "frame_hex": None if row["frame"] is None else bytes(row["frame"]).hex(),
        "answer_hex": None if row["answer_frame"] is None else bytes(row["answer_frame"]).hex(),
    }  # fmt: skip


def _desk(ctx: Context) -> CommandDesk:
    if ctx.commands is None:
        raise ProblemError(
            403, "changes-off", "This API does not know of commands", "This process was started without them.",
            "Use the command line: `nevstream command`.",
        )  # fmt: skip
    return ctx.commands


@router.post(
    "/{vin}/commands",
    response_model=CommandQueued,
    status_code=202,
    summary="Queue a command for a vehicle",
    dependencies=[Depends(changes_allowed)],
)
async def ask(ctx: Ctx, vin: VinPath, wanted: Annotated[CommandAsked, Body()]) -> Json:
    """It goes out when the vehicle is connected: over GB/T 32960 TCP, or over MQTT to subscribers of its downlink."""
    checked_vin(vin)
    edition = None if wanted.edition is None else wanted.edition - 2000
    try:
        check(wanted.kind, wanted.body, edition)
    except DownlinkError as error:
        raise bad_parameter(
            "body", wanted.body, str(error), "a command as the API description has it", "body"
        ) from error
    expires_s = wanted.expires_s or ctx.settings.gateway.commands.expires_s
    try:
        number = await _desk(ctx).enqueue(
            vin, wanted.kind, wanted.body, by=ctx.who, expires_s=expires_s, edition=edition
        )
    except UsageError as error:
        raise ProblemError(
            409, "too-many-commands", "Too many commands wait", str(error), f"See /v1/vehicles/{vin}/commands."
        ) from error
    return Json({"id": number, "vin": vin, "state": "queued"}, status_code=202)


@router.get("/{vin}/commands", response_model=CommandPage, summary="Commands and their answers, newest first")
async def list_commands(
    request: Request, ctx: Ctx, vin: VinPath, limit: LimitQuery = None, cursor: CursorQuery = None
) -> Json:
    """What was asked of the vehicle, what became of it, and what it answered."""
    checked_vin(vin)
    most = limit_given(limit, ctx)
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise bad_parameter("cursor", cursor, "is not a cursor of this list", "next_cursor of the page before")
    before = int(cursor) if cursor is not None else None
    rows = (await _desk(ctx).commands(vin, before=before, limit=most + 1)).dicts()
    following = str(rows[most - 1]["command_id"]) if len(rows) > most else None
    page = [command(row, ctx) for row in rows[:most]]
    return Json(
        {"vin": vin, "commands": page, "count": len(page), "next_cursor": following,
         "next": next_link(request, following)}
    )  # fmt: skip
