"""How long a request's body may be: answered 413 before anything is made of it.

The body is read here, up to the limit, and handed on whole; so a client that announces no length (chunked), or another
one than it sends, is held to it as well.  Sheets of vehicles and models have a limit of their own, and are
read by their paths.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.web import problems
from services.web.problems import ProblemError
from services.web.registry import BODY_BYTES_MAX as SHEET_BYTES_MAX

SHEETS: Final = frozenset({"/v1/registry/vehicles/import", "/v1/registry/models/import"})
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class BodyLimit:
    """ASGI middleware.  ``bytes_max``: of any body but a sheet's."""

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self._app, self._bytes_max = app, bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = SHEET_BYTES_MAX if scope["path"] in SHEETS else self._bytes_max
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > most:
            await _refuse(scope, receive, send, most)
        elif scope["method"] in _WITHOUT_BODY or most is SHEET_BYTES_MAX:
            await self._app(scope, receive, send)
        else:
            body = bytearray()
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return  # gone before it had said what it wants
                body += message.get("body", b"")
                if len(body) > most:
                    await _refuse(scope, receive, send, most)
                    return
                if not message.get("more_body", False):
                    break
            await self._app(scope, _Whole(bytes(body), receive), send)


class _Whole:
    """Gives the body once, then what else comes of the client."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _refuse(scope: Scope, receive: Receive, send: Send, most: int) -> None:
    problem = ProblemError(
        413, "too-long", "The body is too long", f"It has more than {most:,} bytes.",
        "Ask for less at once, or raise web.body_bytes_max."
        if scope["path"] not in SHEETS
        else "Split the sheet, or use the command line on the machine itself.",
        headers={"Connection": "close"},  # what else is on its way is not read
    )  # fmt: skip
    await problems.response(Request(scope), problem)(scope, receive, send)
