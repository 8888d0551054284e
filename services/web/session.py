"""/v1/session: a token kept as a cookie, for browsers and EventSource, which cannot set headers.

The cookie is HttpOnly and SameSite=Strict: no script reads it, and no page of another site makes a browser send it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import AwareDatetime, Field
from starlette.datastructures import Headers
from starlette.responses import Response

from schemas.access import Caller
from services.web.access import COOKIE, TokenBook, same_origin
from services.web.answers import Json
from services.web.models import Model
from services.web.parameters import Context, Ctx, only_known
from services.web.problems import ProblemError
from services.web.registry import body_within

router = APIRouter(prefix="/v1/session", tags=["access"], dependencies=[Depends(only_known)])

_BODY_MAX: Final = 1024
_Token = Annotated[str, Field(description="nst_..., as `nevstream tokens add` showed it")]


class SessionAsked(Model):
    token: _Token


class SessionModel(Model):
    auth: Literal["open", "token"] = Field(description="open: nobody has to say who they are")
    name: str | None = Field(description="Of the token")
    role: Literal["read", "operate", "admin"] | None
    fleets: list[str] | None = Field(description="Only vehicles of these; null: all")
    expires_at: AwareDatetime | None


def _described(caller: Caller | None, ctx: Context) -> dict[str, Any]:
    if caller is None:
        return {"auth": "open", **dict.fromkeys(("name", "role", "fleets", "expires_at"))}
    return {
        "auth": "token", "name": caller.name, "role": caller.role.value,
        "fleets": None if caller.fleets is None else list(caller.fleets), "expires_at": ctx.local(caller.expires_at),
    }  # fmt: skip


_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"token": {"type": "string"}}, "required": ["token"]}
            }
        },
    }
}


@router.post("", response_model=SessionModel, summary="Log in: keep a token as a cookie", openapi_extra=_BODY)
async def log_in(request: Request, ctx: Ctx) -> Json:
    """For pages; programs send `Authorization: Bearer` instead. The cookie ends with the browser, or the token."""
    same_origin(Headers(scope=request.scope))
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ProblemError(
            415, "not-json", "The body is not JSON", "A token is sent as JSON.", 'Send {"token": "nst_..."}.'
        )
    try:  # the body is not told: it is a secret, or near one
        asked = SessionAsked.model_validate(orjson.loads(await body_within(request, _BODY_MAX)))
    except ValueError:
        raise ProblemError(
            422, "bad-parameter", "A parameter cannot be used", "The body is no JSON object with a token.",
            'Send {"token": "nst_..."}.',
        ) from None  # fmt: skip
    book: TokenBook | None = request.app.state.token_book
    if book is None:
        return Json(_described(None, ctx))
    caller = await book.caller(asked.token)
    if caller is None:
        raise ProblemError(
            401, "bad-token", "Who is asking?", "The token is not known, was revoked, or has expired.",
            "Make one with `nevstream tokens add NAME --role read`.",
            headers={"WWW-Authenticate": 'Bearer realm="nevstream"'},
        )  # fmt: skip
    answer = Json(_described(caller, ctx))
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, asked.token, path="/", httponly=True, samesite="strict", secure=secure)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.get("", response_model=SessionModel, summary="Who am I")
async def who_am_i(ctx: Ctx) -> Json:
    """Name, role and fleets of the token that came with the request."""
    return Json(_described(ctx.caller, ctx))


@router.delete("", status_code=204, summary="Log out: forget the cookie")
async def log_out() -> Response:
    """The token itself stays valid: `nevstream tokens revoke` ends it."""
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer
