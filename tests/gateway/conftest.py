"""A gateway on free ports with journal and directory in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvloop

from schemas.keyring import MemoryKeys
from services.gateway.server import Gateway, warm
from services.journal.memory import MemoryJournal
from services.settings import Settings
from services.store.commands import MemoryCommands
from services.store.directory import MemoryDirectory
from tests.gateway.playing import PARTITIONS, Running, Start


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    warm()


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of production, and Python's own, which cuts reads and orders callbacks differently."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start gateways with settings of the [gateway] section as mqtt={...}, ...; they are drained at the end."""
    running: list[Running] = []

    async def begin(
        directory: MemoryDirectory | None = None,
        queue: MemoryCommands | None = None,
        keys: MemoryKeys | None = None,
        encryption: dict[str, Any] | None = None,
        **section: Any,
    ) -> Running:
        for door in ("mqtt", "gbt32960"):
            section.setdefault(door, {}).setdefault("port", 0)
        settings = Settings.read(
            overrides={"gateway": section, "journal": {"partitions": PARTITIONS}, "encryption": encryption or {}}
        )
        journal, directory = MemoryJournal(PARTITIONS), directory or MemoryDirectory()
        made = Running(Gateway(settings, journal, directory, queue, keys), journal, directory)
        await made.gateway.start()
        running.append(made)
        return made

    yield begin
    for one in running:
        one.journal.away = False
        one.journal.gate.set()
        for client in one.clients:
            client.close()
        await one.gateway.drain(5.0)
        for client in one.clients:
            await asyncio.gather(client.writer.wait_closed(), return_exceptions=True)
