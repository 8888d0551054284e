"""A webhook receiver on loopback that answers as a test tells it to, and keeps what it got."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def status(code: int, *headers: str) -> bytes:
    head = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {code} said\r\n{head}Content-Length: 0\r\n\r\n".encode()


@dataclass(slots=True)
class Got:
    head: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Receiver:
    """``script``: what to answer, in turn, then ``always``. None: nothing, the connection stays open."""

    port: int = 0
    always: bytes | None = OK
    script: list[bytes | None] = field(default_factory=list)
    got: list[Got] = field(default_factory=list)
    at_once: int = 0
    at_once_max: int = 0
    hold: asyncio.Event | None = None  # answers wait for it
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?key=secret-in-the-url"

    async def wait(self, count: int) -> list[Got]:
        """What came, once it is so many."""
        async with asyncio.timeout(60):
            while len(self.got) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.got

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.create_task(self.serve(reader, writer)))

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.got.append(Got(first, headers, body))
                self.at_once += 1
                self.at_once_max = max(self.at_once_max, self.at_once)
                self.arrived.set()
                if self.hold is not None:
                    await self.hold.wait()
                answer = self.script.pop(0) if self.script else self.always
                self.at_once -= 1
                if answer is None:
                    await reader.read()  # until the other side gives up
                    break
                writer.write(answer)
                await writer.drain()
                if b"Content-Length" not in answer:  # no answer at all, or half of one
                    break


@contextlib.asynccontextmanager
async def receiver(port: int = 0, tls: ssl.SSLContext | None = None, **values: Any) -> AsyncIterator[Receiver]:
    made = Receiver(**values)
    server = await asyncio.start_server(made.accept, "127.0.0.1", port, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.end()
