"""Runs the API inside an event loop that is already there: uvicorn without its process handling.

The address is bound before anything starts, so that a taken port is one clear error.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Message, Scope

from schemas.access import AuditDesk, TokenDesk
from schemas.alarms import AlarmDesk
from schemas.downlink import CommandDesk
from schemas.registry.desk import RegistryDesk
from schemas.seams import LetterDesk, Queries
from services.certificates import Certificates
from services.errors import PortInUse, UsageError
from services.settings import Settings
from services.web.app import create_app

BACKLOG: Final = 512
REQUESTS_MAX: Final = 512  # connections and requests at once; more get 503 from uvicorn
GRACE_S: Final = 5.0  # for requests under way when the process stops


class _Server(uvicorn.Server):
    """uvicorn's server with signals left to the process that runs us, and an event for having started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.answering.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.  Port 0 takes a free one.

    Raises ``PortInUse`` when the address is taken, ``UsageError`` when it is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(
            f"web.host = {host!r} is not an address: {error}; use 127.0.0.1, or 0.0.0.0 for all"
        ) from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"the API cannot listen on {host}:{port}: another program does. "
                "Stop it, or choose another port with web.port (0 takes a free one)"
            ) from error
        raise UsageError(
            f"the API cannot listen on {host}:{port}: {error.strerror}; check web.host and web.port"
        ) from error
    return sock


async def first_request(app: ASGIApp) -> None:
    """Ask ``app`` something that needs no database: at its first request FastAPI works its routes out, for 0.7 s."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Message) -> None:
        """Nobody hears the answer."""

    scope: Scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": "/healthz", "raw_path": b"/healthz", "query_string": b"", "root_path": "", "headers": [],
        "client": None, "server": None,
    }  # fmt: skip
    await app(scope, receive, send)


async def serve(
    settings: Settings,
    queries: Queries,
    stop: asyncio.Event,
    *,
    sock: socket.socket | None = None,
    host: str | None = None,
    port: int | None = None,
    started: Callable[[tuple[str, int]], None] | None = None,
    letters: LetterDesk | None = None,
    commands: CommandDesk | None = None,
    registry: RegistryDesk | None = None,
    alarms: AlarmDesk | None = None,
    tokens: TokenDesk | None = None,
    audit: AuditDesk | None = None,
) -> None:
    """Answer requests until ``stop`` is set, then finish those under way (``GRACE_S`` at most).

    Listens on ``sock``, or on ``host`` and ``port`` (default: those of ``settings.web``).  ``started``
    is called with the address once requests are answered.  Closes the seams at the end.  Raises
    ``PortInUse`` before anything is started.
    """
    listening = sock or bind(settings.web.host if host is None else host, settings.web.port if port is None else port)
    address = listening.getsockname()[:2]
    certificates = None
    if settings.web.tls.enabled:
        certificates = Certificates(settings.web.tls, "web.tls", ("http/1.1",))
    app = create_app(
        settings, queries, letters=letters, commands=commands, registry=registry, alarms=alarms, tokens=tokens,
        audit=audit,
    )  # fmt: skip
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=REQUESTS_MAX,
        timeout_graceful_shutdown=round(GRACE_S),
        ssl_context_factory=(lambda _config, _default: certificates.context) if certificates is not None else None,
    )
    server = _Server(config)

    async def watch() -> None:
        await server.answering.wait()
        await first_request(app)
        if started is not None:
            started(address)
        await stop.wait()
        if app.state.alarm_feed is not None:
            app.state.alarm_feed.close()  # else its clients would be waited for
        server.should_exit = True

    try:
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(watch(), name="web-stop")]
            if certificates is not None:
                watching.append(group.create_task(certificates.keep_fresh(), name="web-certificates"))
            await group.create_task(server.serve(sockets=[listening]), name="web-serve")
            for task in watching:
                task.cancel()
    finally:
        listening.close()
