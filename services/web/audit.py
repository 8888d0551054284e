"""/v1/audit: what was changed by whom, over the API and by the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AwareDatetime, Field

from services.web.answers import Json
from services.web.models import Model
from services.web.parameters import (
    TIME_ALLOWED,
    Context,
    Ctx,
    CursorQuery,
    LimitQuery,
    limit_given,
    next_link,
    only_known,
    ordered,
    time_given,
)
from services.web.problems import ProblemError, bad_parameter

router = APIRouter(prefix="/v1/audit", tags=["access"], dependencies=[Depends(only_known)])


class AuditEntry(Model):
    id: int
    at: AwareDatetime
    who: str = Field(description="Name of the token; local: this machine without one; cli:USER")
    token_id: int | None
    origin: str = Field(description="Address of the client, or host of the command line")
    action: str = Field(description="Method and path, or command")
    target: str
    change: str | None = Field(description="In short, secrets left out")
    status: int = Field(description="Of HTTP; of a command 200 or 500")
    outcome: Literal["done", "refused", "failed"]


class AuditPage(Model):
    entries: list[AuditEntry]
    count: int
    next_cursor: str | None
    next: str | None


def entry(row: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """A row of ``AuditDesk.entries`` as answered."""
    told = {name: row[name] for name in AuditEntry.model_fields if name not in ("id", "at")}
    return {"id": row["audit_id"], "at": ctx.local(row["at"]), **told}


@router.get("", response_model=AuditPage, summary="What was changed by whom, newest first")
async def list_entries(
    request: Request,
    ctx: Ctx,
    who: Annotated[str | None, Query(max_length=100, description="Only what this one did.")] = None,
    since: Annotated[str | None, Query(alias="from", description=f"At or after: {TIME_ALLOWED}.")] = None,
    until: Annotated[str | None, Query(alias="to", description="Before; written as `from` is.")] = None,
    limit: LimitQuery = None,
    cursor: CursorQuery = None,
) -> Json:
    """Every change through the API, done or refused, and what commands have written. For admins."""
    if ctx.audit is None:
        raise ProblemError(
            404, "no-audit", "This API keeps no audit log", "This process was started without it.",
            "Use the command line: `nevstream audit`.",
        )  # fmt: skip
    start = time_given(since, "from", ctx.zone) if since is not None else None
    end = time_given(until, "to", ctx.zone) if until is not None else None
    if start and end:
        ordered(start, end, since)
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise bad_parameter("cursor", cursor, "is not a cursor of this list", "next_cursor of the page before")
    if who is not None and "\0" in who:
        raise bad_parameter("who", who, "has a NUL in it", "the name of a token")
    most = limit_given(limit, ctx)
    before = int(cursor) if cursor is not None else None
    rows = (await ctx.audit.entries(who=who, since=start, until=end, before=before, limit=most + 1)).dicts()
    following = str(rows[most - 1]["audit_id"]) if len(rows) > most else None
    page = [entry(row, ctx) for row in rows[:most]]
    return Json({"entries": page, "count": len(page), "next_cursor": following, "next": next_link(request, following)})
