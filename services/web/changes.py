"""Who may change something over HTTP.

With ``web.auth = token`` whoever the gate (``access.py``) lets through.  With ``open`` the API does not know who is
asking: this machine only.  Then three things must hold: ``web.allow_changes``, an API that listens on a loopback
address only, and a request that comes from one.  Beyond that a request must not be one that a page of another site
made the browser of somebody on this machine send: its Host and Origin are this machine, and its body is JSON or CSV
(or its method DELETE), which needs a preflight that is never answered.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from fastapi import Request

from services.web.parameters import context
from services.web.problems import ProblemError

_HOW: Final = (
    "Use the command line on the machine itself: `nevstream dead-letters requeue`, `nevstream command`, "
    "`nevstream vehicles`, `nevstream models`, `nevstream alarms`."
)


def loopback(host: str | None) -> bool:
    """Whether ``host`` names this machine and nothing else."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def change_from_here(request: Request) -> None:
    """Refuse a request that changes something unless it comes from this machine.  Raises ``ProblemError``.

    Enough by itself for a method that pages of other sites cannot use without asking, such as DELETE.
    """
    ctx = context(request)
    web = ctx.settings.web
    if not web.allow_changes:
        raise _refused("changes-off", "web.allow_changes is false.", f"Set web.allow_changes = true, or: {_HOW}")
    if ctx.caller is not None:
        return  # the gate has looked at token, role and origin
    if not loopback(web.host):
        raise _refused(
            "changes-off",
            f"The API listens on {web.host}, and it cannot tell who is asking.",
            f"{_HOW} Or let web.host be 127.0.0.1, or set web.auth = token.",
        )
    if not loopback(request.client.host if request.client else None):
        raise _refused("changes-local", "Requests that change something are taken from this machine only.", _HOW)
    if not loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname):
        raise _refused("changes-local", "The request's Host is not this machine.", "Ask 127.0.0.1 or localhost.")
    origin = request.headers.get("origin")
    if origin is not None and not loopback(urlsplit(origin).hostname):
        raise _refused("changes-local", "The request was made by a page of another site.", _HOW)


async def changes_allowed(request: Request) -> None:
    """:func:`change_from_here`, with a body of JSON.  Raises ``ProblemError``."""
    change_from_here(request)
    await readable_json(request)


async def readable_json(request: Request) -> None:
    """Refuse a body that is not JSON, or whose texts no database can keep.  Raises ``ProblemError``."""
    if _media_type(request) != "application/json":
        raise ProblemError(
            415, "not-json", "The body is not JSON", "A request that changes something has a body of JSON.",
            "Send Content-Type: application/json, and {} when there is nothing to say.",
        )  # fmt: skip
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:  # half a surrogate pair, too, which the parser before us lets pass
        raise ProblemError(
            422, "bad-json", "The body is not JSON", f"The body cannot be read: {error}", "Send JSON in UTF-8."
        ) from error
    if _has_nul(body):
        raise ProblemError(
            422, "bad-json", "The body cannot be used", "A text in the body has a NUL (\\u0000) in it.",
            "Leave it out: the database has no such texts.",
        )  # fmt: skip


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(each) for pair in value.items() for each in pair)
    return isinstance(value, list) and any(map(_has_nul, value))


def sheet_allowed(request: Request) -> None:
    """:func:`change_from_here`, with a body of CSV.  Raises ``ProblemError``."""
    change_from_here(request)
    if _media_type(request) != "text/csv":
        raise ProblemError(
            415, "not-csv", "The body is not CSV", "A sheet is sent as it is, not as a form.",
            "Send Content-Type: text/csv; with curl: -H 'Content-Type: text/csv' --data-binary @FILE.csv.",
        )  # fmt: skip


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _refused(kind: str, detail: str, how: str) -> ProblemError:
    return ProblemError(403, kind, "This API does not take changes here", detail, how)
