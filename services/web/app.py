"""The HTTP API: routers by noun, problem documents, security headers, gzip, and the landing page.

It reads through the ``Queries`` seam and opens no connection of its own.  ``access.py`` says who may ask what, and
``changes.py`` who may change something where nobody knows who is asking.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.access import AuditDesk, Caller, Role, TokenDesk
from schemas.alarms import AlarmDesk
from schemas.downlink import CommandDesk
from schemas.registry.desk import RegistryDesk
from schemas.seams import LetterDesk, Queries
from services.credit_rules import rules_of
from services.errors import SettingsError
from services.own_signals import signals_of
from services.settings import Settings, WebAuth
from services.web import alarms as alarms_router
from services.web import (
    audit as audit_router,
)
from services.web import (
    battery,
    completeness,
    counts,
    data_quality,
    days,
    dead_letters,
    diagnosis,
    fleet,
    fleet_lists,
    models,
    problems,
    session,
    sessions,
    system,
    telemetry,
    timeline,
    tracks,
    vehicles,
)
from services.web import commands as commands_router
from services.web import credits as credits_router
from services.web import map as map_router
from services.web import registry as registry_router
from services.web.access import Gate, TokenBook
from services.web.alarm_feed import AlarmFeed
from services.web.body_limit import BodyLimit
from services.web.own import OwnSignals
from services.web.parameters import Context
from services.web.scope import scoped

_NOBODY: Final = Caller(0, "", Role.READ, (), None)
STATIC: Final = Path(__file__).parent / "static"

_DESCRIPTION: Final = """
Telemetry of connected New Energy Vehicles: who reports, what they said, and which frames were refused.

* Times are ISO 8601 with offset, in the fleet's time zone; a time without offset is read as that zone's.
* Ranges are half-open: `from` is included, `to` is not.
* Units are in the names: `speed_kmh`, `cells_v`. `/v1/signals` lists them all.
* Lists come in pages: follow `next` until it is null.
* With `web.auth = token` requests carry `Authorization: Bearer nst_...`; a token may be for some fleets only.
* Errors are `application/problem+json` and say how to fix them; parameters that a path does not have are refused.
"""
_TAGS: Final = [
    {"name": "vehicles", "description": "Who is known, the newest report of each, and where they are."},
    {"name": "telemetry", "description": "Rows of a vehicle, raw or in buckets, as JSON, CSV, Excel or Parquet."},
    {"name": "sessions", "description": "Trips and charges of a vehicle, the way of a trip, the course of a charge."},
    {"name": "days", "description": "What is kept of a vehicle per local day and hour, and how complete it is."},
    {"name": "battery", "description": "Capacity, health, cells, resistance and insulation of a vehicle."},
    {"name": "registry", "description": "What operators know of vehicles and models."},
    {"name": "credits", "description": "The dual credit (双积分) as an estimate, and its rules by year."},
    {"name": "dead letters", "description": "Refused frames: nothing is dropped silently."},
    {"name": "alarms", "description": "Alarm episodes: what was raised, who took care of it, and news as they come."},
    {"name": "fleet", "description": "Metrics by window and group, the yearly report, lists to follow up."},
    {"name": "data quality", "description": "Signals that are not what they should be, and the checks."},
    {"name": "commands", "description": "What is asked of a terminal, and what it answers."},
    {"name": "access", "description": "Who asks, and what was changed by whom."},
    {"name": "system", "description": "Overview, signal catalogue, health and metrics."},
]
_PROBLEM: Final = {"model": models.Problem}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    401: {**_PROBLEM, "description": "The request needs a token (web.auth = token), and has none that is valid"},
    403: {**_PROBLEM, "description": "The token's role or fleets, or web.allow_changes, do not allow it"},
    404: {**_PROBLEM, "description": "There is no such path, vehicle or dead letter"},
    413: {**_PROBLEM, "description": "The body is longer than web.body_bytes_max"},
    422: {**_PROBLEM, "description": "A parameter cannot be used: which, what was given, what is allowed"},
    503: {**_PROBLEM, "description": "The database is away or too slow; see Retry-After"},
}


class _Headers:
    """Security headers on every answer, and no caching of data that moves."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(problems.SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _now() -> datetime:
    return datetime.now(UTC)


def create_app(
    settings: Settings,
    queries: Queries,
    now: Callable[[], datetime] = _now,
    letters: LetterDesk | None = None,
    commands: CommandDesk | None = None,
    registry: RegistryDesk | None = None,
    alarms: AlarmDesk | None = None,
    tokens: TokenDesk | None = None,
    audit: AuditDesk | None = None,
) -> FastAPI:
    """The ASGI application.  It closes ``queries`` and the desks (``letters`` to ``audit``) when it ends.

    Without desks it only reads; ``tokens`` are needed with ``web.auth = token``.

    Raises ``SettingsError`` when ``time_zone`` is not one that this machine knows, and for files with mistakes.
    """
    try:
        zone = ZoneInfo(settings.time_zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise SettingsError(
            f"time_zone = {settings.time_zone!r} is not a time zone of this machine: "
            "use an IANA name such as Asia/Shanghai, and install the tzdata package if there are none"
        ) from error

    book = None
    if settings.web.auth is WebAuth.TOKEN:
        if tokens is None:
            raise SettingsError("web.auth = token, and this process was started without the table of tokens")
        book = TokenBook(tokens, now)
    own = OwnSignals(signals_of(settings.pipeline.signals_file))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await queries.close()
        if letters is not None:
            await letters.close()
        if commands is not None:
            await commands.close()
        if registry is not None:
            await registry.close()
        if alarms is not None:
            await alarms.close()
        if book is not None:
            await book.close()
        elif tokens is not None:
            await tokens.close()
        if audit is not None:
            await audit.close()

    app = _Api(openapi_url=None, redirect_slashes=False, lifespan=lifespan)  # the URL is one of the described
    whole = Context(
        settings,
        queries,
        zone,
        now,
        letters,
        own,
        commands,
        registry,
        rules_of(settings.credits.rules_file),
        alarms,
        audit,
    )
    # where callers are known, who comes past the gate sees nothing
    app.state.context = whole if book is None else scoped(whole, _NOBODY)
    app.state.token_book = book
    app.state.alarm_feed = None if alarms is None else AlarmFeed(alarms, settings.alarms.stream_clients_max)
    app.router.routes.extend(_described().routes)
    problems.install(app)
    app.add_middleware(BodyLimit, bytes_max=settings.web.body_bytes_max)
    app.add_middleware(Gate, whole=whole, book=book, audit=audit)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=4)
    app.add_middleware(_Headers)
    return app


@cache
def _described() -> FastAPI:
    """Every path with its description: no setting changes them, so a process works them out once for all its apps.

    FastAPI takes 0.7 s for it, at the first request.
    """
    app = FastAPI(
        title="nevstream",
        version=_version(),
        summary="Telemetry of connected New Energy Vehicles",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        docs_url=None,  # Swagger UI and ReDoc come from a CDN, and this must work offline
        redoc_url=None,
        responses=_RESPONSES,
    )
    for module in (
        vehicles, map_router, counts, diagnosis, commands_router, telemetry, sessions, tracks, days, completeness,
        timeline, battery, alarms_router, fleet, fleet_lists, registry_router, credits_router, data_quality,
        dead_letters, session, audit_router, system,
    ):  # fmt: skip
        app.include_router(module.router)

    @app.get("/", include_in_schema=False)
    async def landing_page() -> FileResponse:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        return _described().openapi()


def _version() -> str:
    try:
        return version("nevstream")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0"
