"""Children are started again when they die, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.errors import NevstreamError, PortInUse, UsageError
from services.lifecycle import Supervisor, reserve_port

READY_THEN_WAIT = """
import signal
from services.lifecycle import end_with_parent, report
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
end_with_parent()
report("ready", said="hello")
signal.sigwait([signal.SIGTERM])
"""


class Events:
    """Collects what the supervisor reports; ``wait`` until one of a kind has come ``count`` times."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        self._changed = threading.Condition()

    def __call__(self, child: str, event: str, facts: dict[str, Any]) -> None:
        with self._changed:
            self.seen.append((child, event, facts))
            self._changed.notify_all()

    def wait(self, event: str, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: [e for _, e, _ in self.seen].count(event) >= count, 60)


@pytest.fixture
def supervisor() -> Iterator[tuple[Supervisor, Events]]:
    events = Events()
    made = Supervisor({}, on_event=events)
    made.begin()
    yield made, events
    made.stop([])


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter when it ends between opening and reading
        return True


def _until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while not _gone(pid):
        assert time.monotonic() < deadline, f"process {pid} outlived its parent"
        time.sleep(0.02)


def test_a_killed_child_comes_back(supervisor: tuple[Supervisor, Events]) -> None:
    made, events = supervisor
    child = made.add("worker-0", [sys.executable, "-c", READY_THEN_WAIT])
    made.wait_ready(60)
    assert child.facts == {"said": "hello"}
    first = child.pid
    assert first is not None

    os.kill(first, signal.SIGKILL)
    events.wait("ready", 2)

    assert child.restarts == 1
    assert child.pid not in (None, first)


def test_a_child_that_cannot_start_says_why_and_is_not_tried_again(supervisor: tuple[Supervisor, Events]) -> None:
    made, _ = supervisor
    child = made.add(
        "worker-0",
        [sys.executable, "-c", "from services.lifecycle import report; report('fatal', message='no such door')"],
    )

    with pytest.raises(NevstreamError, match="worker-0 cannot start: no such door"):
        made.wait_ready(60)

    assert child.restarts <= 1


def test_stop_goes_in_order_and_leaves_nothing() -> None:
    events = Events()
    made = Supervisor({}, on_event=events)
    made.begin()
    told = READY_THEN_WAIT + "report('stopping')\n"
    for name in ("web-0", "pipeline-0", "gateway-0"):
        made.add(name, [sys.executable, "-c", told])
    made.wait_ready(60)
    pids = [child.pid for child in made.children.values()]

    made.stop(["gateway", "pipeline", "web"])

    assert [child for child, event, _ in events.seen if event == "stopping"] == ["gateway-0", "pipeline-0", "web-0"]
    assert all(pid is not None and _gone(pid) for pid in pids)


def test_children_end_when_the_parent_is_killed() -> None:
    program = (
        "import sys, time\nfrom services.lifecycle import Supervisor\n"
        "s = Supervisor({}); s.begin()\n"
        f"c = s.add('worker-0', [sys.executable, '-c', {READY_THEN_WAIT!r}])\n"
        "s.wait_ready(60); print(c.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())

    parent.kill()
    parent.wait()
    parent.stdout.close()

    _until_gone(child)


def test_a_failing_preparation_reaches_the_caller() -> None:
    def before() -> None:
        raise UsageError("nothing to prepare")

    with pytest.raises(UsageError, match="nothing to prepare"):
        Supervisor({}, before=before).begin()


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(PortInUse, match=rf"gateway.mqtt.port: cannot listen on 127.0.0.1:{port}.*another port"):
            reserve_port("127.0.0.1", port, "gateway.mqtt.port")


def test_a_reserved_port_can_be_listened_on_by_children() -> None:
    with reserve_port("127.0.0.1", 0, "web.port") as held, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(held.getsockname())
        listener.listen()
        with socket.create_connection(held.getsockname(), 5):
            pass


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(UsageError, match=r"web.port: 'no.such.host.invalid' is not an address"):
        reserve_port("no.such.host.invalid", 0, "web.port")
