"""An embedded PostgreSQL that ended and does not start yet, as on a full disk, is tried again; nothing else ends."""

from __future__ import annotations

from typing import Any

import pytest

from services import topology
from services.errors import DataDirectoryError
from services.settings import Settings
from services.topology import System


class Server:
    """Ended; ``start`` raises what it was given, one after the other, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.up = False
        self.pid = None

    def running(self) -> bool:
        return self.up

    def start(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        self.up = True
        return "dsn"


def test_a_server_that_does_not_start_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(topology.time, "monotonic", lambda: now[0])
    heard: list[tuple[str, dict[str, Any]]] = []
    system = System(Settings(), on_event=lambda name, facts: heard.append((name, facts)))
    server = Server(DataDirectoryError("could not write: no space left"), OSError(28, "No space left on device"))
    system._server = server
    system._keep_database()
    system._keep_database()  # not at once
    assert len(server.errors) == 1
    assert "no space left; trying again in 5 s" in caplog.text
    now[0] += 6.0
    system._keep_database()
    now[0] += 6.0
    system._keep_database()
    assert server.up
    assert heard == [("exited", {"child": "postgres"})]
    server.up = False
    system._keep_database()
    assert server.up
    assert len(heard) == 2
