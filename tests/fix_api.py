"""The HTTP API on a socket, for tests of what asks it from outside: the command line.  Its clock is the tests'."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import uvicorn
from typer.testing import CliRunner

from services.cli import app
from services.settings import Settings
from services.web.app import create_app
from services.web.server import _Server, bind


@contextmanager
def api_on(
    queries: Callable[[], Any], now: Callable[[], datetime], closing: Sequence[Any] = (), **seams: Any
) -> Iterator[str]:
    """Serve ``queries()`` in a thread until the block ends; yields the base URL.

    ``closing``: what the seams use and the API does not close, closed in the API's loop at the end.
    """
    sock = bind("127.0.0.1", 0)
    host, port = sock.getsockname()[:2]
    events: queue.Queue[Callable[[], None] | BaseException] = queue.Queue()

    async def run() -> None:
        served = create_app(Settings(), queries(), now, **seams)
        server = _Server(uvicorn.Config(served, http="httptools", ws="none", log_config=None, access_log=False))
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        await server.answering.wait()
        events.put(lambda: setattr(server, "should_exit", True))
        await serving
        for used in closing:
            await used.close()

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # the test that waits must hear of it
            events.put(error)
            raise

    serving = threading.Thread(target=thread, name="api", daemon=True)
    serving.start()
    started = events.get(timeout=60)
    if isinstance(started, BaseException):
        raise started
    yield f"http://{host}:{port}"
    started()
    serving.join(timeout=60)
    sock.close()
    assert not serving.is_alive()


class Nevstream:
    """``nevstream GROUP ...`` against the API at ``api``."""

    def __init__(self, group: str, api: str) -> None:
        self._group, self._api = group, api

    def __call__(self, *arguments: str) -> str:
        """Standard output; raises what the command raises."""
        done = CliRunner().invoke(app, [self._group, *arguments, "--api", self._api])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout
