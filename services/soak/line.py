"""The line between the vehicles and the doors: a relay that can be cut.

Forwards bytes as they come, changes none, and resets connections when told to.  Runs an event loop in a thread of its
own.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, cast

_CONNECT_TIMEOUT_S: Final = 5.0
_PENDING_BYTES: Final = 256 * 1024
Address = tuple[str, int]


class _End(asyncio.Protocol):
    """One of a relayed connection's two ends."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_PENDING_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            if exc is None:
                self.other.transport.close()
            else:
                self.other.transport.abort()
        self.transport = None


class _Outer(_End):
    """The vehicle's end: nothing is read before the door's end is there."""

    def __init__(self, line: Line, door: Address) -> None:
        super().__init__()
        self._line, self._door = line, door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self._line.open.add(self)
        self._line.spawn(self._join())

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, inner = await loop.create_connection(_End, *self._door)
        except (OSError, TimeoutError):
            if self.transport is not None:
                self.transport.abort()
            return
        if self.transport is None:  # the vehicle has gone meanwhile
            if inner.transport is not None:
                inner.transport.abort()
            return
        self.other, inner.other = inner, self
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._line.open.discard(self)


class Line:
    """Relays to each door of ``doors``; ``addresses`` are where vehicles connect to instead."""

    def __init__(self, doors: Mapping[str, Address]) -> None:
        self._doors = dict(doors)
        self.addresses: dict[str, Address] = {}
        self.open: set[_Outer] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="soak line", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._up.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def cut(self, share: float, choice: int) -> int:
        """Reset ``share`` of the open connections; returns how many that were."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._cut(share, choice), self._loop).result()

    async def _cut(self, share: float, choice: int) -> int:
        ends = sorted(self.open, key=id)
        chosen = random.Random(choice).sample(ends, round(share * len(ends)))  # noqa: S311 - a schedule, no secret
        for end in chosen:
            for one in (end, end.other):
                if one is not None and one.transport is not None:
                    one.transport.abort()
        return len(chosen)

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._failure = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        servers = []
        for name, door in self._doors.items():
            server = await self._loop.create_server(partial(_Outer, self, door), "127.0.0.1", 0, backlog=4096)
            servers.append(server)
            host, port = server.sockets[0].getsockname()[:2]
            self.addresses[name] = (host, port)
        self._up.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        await self._cut(1.0, 0)
        for task in list(self._tasks):
            task.cancel()
