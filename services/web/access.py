"""Who may ask what: the classification of every path, and the gate in front of all of them.

With ``web.auth = token`` a request is looked at before anything of it is read: no token, or one that is revoked or
expired, is 401; a role that is too low, or a tenant where the whole platform is meant, is 403.  A path that is not
classified here is not there.  Every change, tried or done, goes into the audit log.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.access import (
    CHANGE_MAX,
    LOCAL,
    AuditDesk,
    Caller,
    Entry,
    Role,
    Token,
    TokenDesk,
    digest_of,
    well_formed,
    without_secrets,
)
from services import metrics
from services.errors import StoreUnavailable
from services.web import problems
from services.web.parameters import CONTEXT, Context
from services.web.problems import ProblemError
from services.web.scope import scoped, whole_only

log = logging.getLogger(__name__)

COOKIE: Final = "nevstream"
CALLER: Final = "nevstream.caller"  # key of the ASGI scope, as CONTEXT
FRESH_S: Final = 5.0  # a revoked token is known as such after so long at most
_USED_EVERY: Final = timedelta(minutes=1)
_BODY_KEPT: Final = 16_384  # bytes of a body that are looked at for the audit log
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


# -- what there is -----------------------------------------------------------------------------------
class Reach(StrEnum):
    """What a path tells of, which decides what a tenant gets from it."""

    PUBLIC = "public"  # nothing that is worth a token
    COMMON = "common"  # the same for everybody who has one
    VEHICLE = "vehicle"  # one vehicle or what belongs to one: found through the scope, else not there
    SCOPED = "scoped"  # lists and figures, of the tenant's vehicles only
    WHOLE = "whole"  # the platform as a whole: not for tenants


@dataclass(frozen=True, slots=True)
class Access:
    role: Role
    reach: Reach


def _table() -> dict[tuple[str, str], Access]:
    found: dict[tuple[str, str], Access] = {}

    def put(reach: Reach, role: Role, method: str, *paths: str) -> None:
        for path in paths:
            found[method, path] = Access(role, reach)

    read, operate, admin = Role.READ, Role.OPERATE, Role.ADMIN
    put(Reach.PUBLIC, read, "GET", "/", "/healthz", "/readyz", "/openapi.json")
    put(Reach.PUBLIC, read, "POST", "/v1/session")
    put(Reach.PUBLIC, read, "DELETE", "/v1/session")  # to forget a cookie needs no right
    put(
        Reach.COMMON, read, "GET", "/v1/session", "/v1/signals", "/v1/schemas/{name}", "/v1/measures",
        "/v1/data-quality/checks", "/v1/fleet/metrics", "/v1/alarms/rules", "/v1/credits/rules",
    )  # fmt: skip
    vehicle = "/v1/vehicles/{vin}"
    put(
        Reach.VEHICLE, read, "GET", vehicle,
        *(f"{vehicle}/{part}" for part in (
            "latest", "logins", "telemetry", "diagnosis", "commands", "trips", "trips/{trip_id}",
            "trips/{trip_id}/track", "charges", "charges/{charge_id}", "charges/{charge_id}/curve", "days", "hours",
            "completeness", "timeline", "battery", "alarms", "rate-flaws",
        )),
        "/v1/registry/vehicles/{vin}", "/v1/alarms/{id}", "/v1/dead-letters/{id}",
    )  # fmt: skip
    put(
        Reach.SCOPED, read, "GET", "/v1/vehicles", "/v1/map", "/v1/counts", "/v1/overview", "/v1/alarms",
        "/v1/alarms/summary", "/v1/alarms/stream", "/v1/fleet/metrics/{id}", "/v1/fleet/series",
        "/v1/fleet/report/year", "/v1/fleet/lists/offline", "/v1/fleet/lists/frequent-alarms",
        "/v1/fleet/lists/clusters", "/v1/fleet/lists/outlier-cells", "/v1/fleet/verification",
        "/v1/registry/vehicles", "/v1/registry/models", "/v1/registry/models/{model}", "/v1/credits/fleet",
        "/v1/dead-letters", "/v1/dead-letters/counts", "/v1/dead-letters/export", "/v1/data-quality/flaws",
    )  # fmt: skip
    put(Reach.SCOPED, read, "POST", "/v1/credits/estimate")  # it works something out and changes nothing
    put(Reach.WHOLE, read, "GET", "/metrics", "/v1/system")
    put(
        Reach.VEHICLE, operate, "POST", f"{vehicle}/commands", "/v1/alarms/{id}/acknowledge", "/v1/alarms/{id}/close",
        "/v1/dead-letters/{id}/requeue",
    )  # fmt: skip
    put(Reach.SCOPED, operate, "POST", "/v1/alarms/acknowledge", "/v1/dead-letters/requeue")
    for method in ("PUT", "PATCH", "DELETE"):
        put(Reach.VEHICLE, operate, method, "/v1/registry/vehicles/{vin}")
        put(Reach.WHOLE, operate, method, "/v1/registry/models/{model}")
    put(Reach.WHOLE, operate, "POST", "/v1/registry/vehicles/import", "/v1/registry/models/import")
    put(Reach.WHOLE, admin, "GET", "/v1/audit")
    return found


TABLE: Final[Mapping[tuple[str, str], Access]] = _table()


_PATTERNS: Final = [
    (method, re.compile("".join("[^/]+" if part[0] == "{" else re.escape(part) for part in parts)), path)
    for method, path in TABLE
    if (parts := [part for part in re.split(r"({\w+})", path) if part]) and "{" in path
]


def classified(method: str, path: str) -> str | None:
    """The path as :data:`TABLE` has it, of what somebody asks for; None: there is no such thing.

    It does not ask the router: what is not in the table is not there, whatever a router may have.
    """
    if (method, path) in TABLE:
        return path
    if not path.isprintable():
        return None
    return next((known for each, form, known in _PATTERNS if each == method and form.fullmatch(path)), None)


# -- tokens that are known ---------------------------------------------------------------------------
class TokenBook:
    """The valid tokens, read whole and at most :data:`FRESH_S` old, so that guessing costs the database nothing."""

    def __init__(self, desk: TokenDesk, now: Callable[[], datetime]) -> None:
        self._desk, self._now = desk, now
        self._by_digest: dict[bytes, Token] = {}
        self._ids: frozenset[int] = frozenset()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._used: dict[int, datetime] = {}

    async def caller(self, secret: str) -> Caller | None:
        """Whose token it is; None when it is nobody's, or no longer valid.  Raises ``StoreUnavailable``."""
        if not well_formed(secret):
            return None
        await self._fresh()
        digest = digest_of(secret)
        token = self._by_digest.get(digest)
        # the look-up compares digests of what was sent, which tell nothing of a token that is close to it
        if token is None or not hmac.compare_digest(token.digest, digest):
            return None
        now = self._now()
        if token.state(now) != "valid":
            return None
        if token.last_used_at is None or now - token.last_used_at > _USED_EVERY:
            self._used[token.token_id] = now
        return Caller(token.token_id, token.name, token.role, token.fleets, token.expires_at)

    async def holds(self, caller: Caller) -> bool:
        """Whether a caller that was let in once still is."""
        await self._fresh()
        expired = caller.expires_at is not None and caller.expires_at <= self._now()
        return caller.token_id in self._ids and not expired

    async def close(self) -> None:
        if self._used:
            try:
                await self._desk.used(self._used)
            except StoreUnavailable as error:
                log.warning("when tokens were last used could not be written: %s", error)
        await self._desk.close()

    async def _fresh(self) -> None:
        if time.monotonic() - self._read_at < FRESH_S:
            return
        async with self._reading:
            if time.monotonic() - self._read_at < FRESH_S:
                return
            begun = time.monotonic()
            if self._used:
                used, self._used = self._used, {}
                await self._desk.used(used)
            found = await self._desk.tokens()
            self._by_digest = {token.digest: token for token in found}
            self._ids = frozenset(token.token_id for token in found)
            self._read_at = begun


# -- the gate ----------------------------------------------------------------------------------------
class Gate:
    """ASGI middleware.  ``book`` None: ``web.auth = open``, and only the audit log is kept (where there is one).

    ``whole`` is what requests get to work with, narrowed to their caller.
    """

    def __init__(self, app: ASGIApp, whole: Context, book: TokenBook | None, audit: AuditDesk | None) -> None:
        self._app, self._whole, self._book, self._audit = app, whole, book, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, asked = scope["method"], scope["path"]
        path = classified(method, asked)
        access = TABLE[method, path] if path is not None else None
        if asked in ("/", "/openapi.json") or asked.startswith("/static/"):
            access = Access(Role.READ, Reach.PUBLIC)
        ear = _Ear(receive, send, listening=self._audit is not None and _is_change(scope, access))
        try:
            if self._book is not None and (access is None or access.reach is not Reach.PUBLIC):
                caller = await self._admitted(scope, path, access, self._book)
                if access is None:
                    raise _nothing_there(method, asked)
                scope[CONTEXT] = scoped(self._whole, caller)
                ear.still = partial(self._book.holds, caller)
            await self._app(scope, ear.receive, ear.send)
        except (ProblemError, StoreUnavailable) as error:
            if ear.status:
                raise
            problem = error if isinstance(error, ProblemError) else problems.from_store(error)
            await problems.response(Request(scope), problem)(scope, receive, ear.send)
        finally:
            known: Caller | None = scope.get(CALLER)
            # what comes from nobody that is known is counted and not kept: it would fill the table
            if ear.listening and (known is not None or self._book is None):
                await self._record(scope, f"{method} {path}", known, ear)

    async def _admitted(self, scope: Scope, path: str | None, access: Access | None, book: TokenBook) -> Caller:
        """Who asks.  Raises ``ProblemError`` (401, 403)."""
        headers = Headers(scope=scope)
        secret, by_cookie = _secret_of(headers)
        if secret is None:
            raise _unknown("no-token", "The request has no token.")
        caller = await book.caller(secret)
        if caller is None:
            raise _unknown("bad-token", "The token is not known, was revoked, or has expired.")
        scope[CALLER] = caller
        if by_cookie and scope["method"] not in _READING:
            same_origin(headers)
        if access is None:
            return caller  # who asks for nothing needs no right
        if not caller.role.covers(access.role):
            metrics.API_REFUSED.labels("role").inc()
            raise ProblemError(
                403, "role", "The token's role does not allow this",
                f"{scope['method']} {path} needs the role {access.role}; the token {caller.name} has {caller.role}.",
                f"Use a token of that role: `nevstream tokens add NAME --role {access.role}`.",
            )  # fmt: skip
        if access.reach is Reach.WHOLE and caller.fleets is not None:
            metrics.API_REFUSED.labels("tenant").inc()
            whole_only()
        return caller

    async def _record(self, scope: Scope, action: str, caller: Caller | None, ear: _Ear) -> None:
        assert self._audit is not None
        client = scope.get("client")
        who = caller.name if caller is not None else LOCAL
        entry = Entry(
            who, client[0] if client else "", action, scope["path"][:300], ear.status or 500,
            change_of(ear.heard, Headers(scope=scope), scope.get("query_string", b"").decode("latin-1")),
            None if caller is None else caller.token_id,
        )  # fmt: skip
        try:
            await asyncio.shield(self._audit.record(entry))
        except StoreUnavailable as error:
            metrics.AUDIT_LOST.inc()
            log.error("not in the audit log (%s): %s %s by %s: %d", error, entry.action, entry.target, who, ear.status)


def _nothing_there(method: str, path: str) -> ProblemError:
    allowed = sorted({each for each, _ in TABLE if classified(each, path) is not None})
    if not allowed:
        return ProblemError(
            404, "no-such-path", "No such path", f"There is nothing at {path[:200]}.", "/openapi.json lists every path."
        )
    return ProblemError(
        405, "method-not-allowed", "Method not allowed", f"{path[:200]} does not take {method[:20]}.",
        f"Use {', '.join(allowed)}.", headers={"Allow": ", ".join(allowed)},
    )  # fmt: skip


def _is_change(scope: Scope, access: Access | None) -> bool:
    return scope["method"] not in _READING and access is not None and access.role is not Role.READ


def _unknown(kind: str, detail: str) -> ProblemError:
    metrics.API_REFUSED.labels(kind).inc()
    return ProblemError(
        401, kind, "Who is asking?", detail,
        "Send Authorization: Bearer nst_... (make a token with `nevstream tokens add NAME --role read`); "
        "in a browser, POST it to /v1/session.",
        headers={"WWW-Authenticate": 'Bearer realm="nevstream"'},
    )  # fmt: skip


def _secret_of(headers: Headers) -> tuple[str | None, bool]:
    """The token that a request brings, and whether a browser brought it by itself (a cookie)."""
    given = headers.getlist("authorization")
    if given:
        scheme, _, secret = given[0].partition(" ")
        return (secret.strip() if len(given) == 1 and scheme.lower() == "bearer" else ""), False
    for line in headers.getlist("cookie"):
        try:
            cookie = SimpleCookie(line).get(COOKIE)
        except CookieError:
            continue
        if cookie is not None:
            return cookie.value, True
    return None, False


def same_origin(headers: Headers) -> None:
    """Refuse what a page of another site made the browser send.  Raises ``ProblemError`` (403).

    The cookie is SameSite=Strict, so such a request has none; this is for browsers that do not keep to it.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if foreign or site not in (None, "same-origin", "none"):
        raise ProblemError(
            403, "cross-site", "The request was made by a page of another site",
            "A cookie counts only for requests of this API's own pages.", "Send the token as Authorization: Bearer.",
        )  # fmt: skip


def change_of(body: bytes, headers: Headers, query: str) -> str | None:
    """What a request was to change, in short and without secrets."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    told = ""
    if body and kind == "application/json":
        try:
            told = orjson.dumps(without_secrets(orjson.loads(body))).decode()
        except orjson.JSONDecodeError:
            told = f"{headers.get('content-length', 'many')} bytes of JSON"
    elif body:
        told = f"{headers.get('content-length', 'many')} bytes of {kind[:50] or 'no type'}"
    return " ".join(part for part in (f"?{query}" if query else "", told) if part)[:CHANGE_MAX] or None


class _Ear:
    """Hears what passes between client and application: the status, and the begin of the body where that is kept."""

    def __init__(self, receive: Receive, send: Send, *, listening: bool) -> None:
        self._receive, self._send = receive, send
        self.listening = listening
        self.status = 0
        self._heard = bytearray()
        self._streams = False
        self._ended = False
        self.still: Callable[[], Any] | None = None

    @property
    def heard(self) -> bytes:
        return bytes(self._heard)

    async def receive(self) -> Message:
        message = await self._receive()
        if self.listening and message["type"] == "http.request" and len(self._heard) < _BODY_KEPT:
            self._heard += message.get("body", b"")[: _BODY_KEPT - len(self._heard)]
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._streams = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
        elif self._streams and self.still is not None and not self._ended and not await self.still():
            # a stream may outlive the right to it
            self._ended = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if not self._ended:
            await self._send(message)
