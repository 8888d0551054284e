"""Processes: how children are started, say they are ready, are watched, and end with their parent.

Knows nothing of stages.  A child is an argv; it reports through one inherited pipe, a JSON object a
line (``{"event": "ready", ...}``).  All children are started by one thread that lives as long as
they do, because Linux ties the parent-death signal to the *thread* that forked.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Final

from services.errors import NevstreamError, PortInUse, UsageError

log = logging.getLogger(__name__)

REPORT_FD_VARIABLE: Final = "NEVSTREAM_REPORT_FD"
_PR_SET_PDEATHSIG: Final = 1

# A child that keeps dying is started again ever more slowly: 0.2 s, 0.4 s ... 5 s. One that has run
# for a minute counts as well again.
_BACKOFF_FIRST_S: Final = 0.2
_BACKOFF_MAX_S: Final = 5.0
_WELL_AFTER_S: Final = 60.0


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to send this process ``number`` when the thread that started it ends.

    Call first thing in a child; ends the process at once when the parent is already gone.
    """
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def report(event: str, **facts: Any) -> None:
    """Tell the parent something; silently nothing when this process has no parent that listens."""
    descriptor = os.environ.get(REPORT_FD_VARIABLE)
    if descriptor is None:
        return
    try:
        os.write(int(descriptor), json.dumps({"event": event, **facts}).encode() + b"\n")
    except (BrokenPipeError, OSError) as error:
        log.debug("the parent no longer listens: %s", error)


def share_port(host: str, port: int) -> socket.socket:
    """A socket bound to an address that other processes of ours may share (SO_REUSEPORT), not yet listening."""
    shared = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((host, port))
    except OSError:
        shared.close()
        raise
    return shared


def reserve_port(host: str, port: int, what: str) -> socket.socket:
    """Hold an address without listening on it, so that children can share it with SO_REUSEPORT.

    Port 0 takes a free one.  Raises ``PortInUse`` when somebody listens there already: without this
    check a second nevstream would quietly share the first one's port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = f"{host}:{port}"
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        held = share_port(host, port)
    except PermissionError as error:
        raise UsageError(f"{what}: not allowed to listen on {where}; ports below 1024 need the right to") from error
    except socket.gaierror as error:
        raise UsageError(f"{what}: {host!r} is not an address of this machine ({error.strerror})") from error
    except OSError as error:
        raise PortInUse(
            f"{what}: cannot listen on {where} ({error.strerror}). Stop the program that uses it "
            f"(`ss -ltnp 'sport = :{port}'` names it) or set another port."
        ) from error
    return held


@dataclass(slots=True)
class Child:
    """One supervised process; ``facts`` are those of its newest ``ready`` report."""

    name: str
    argv: list[str]
    process: subprocess.Popen[bytes] | None = None
    pipe: IO[bytes] | None = None
    ready: threading.Event = field(default_factory=threading.Event)
    facts: dict[str, Any] = field(default_factory=dict)
    buffer: bytes = b""
    started: float = 0.0
    restarts: int = 0
    failures: int = 0
    start_at: float | None = 0.0  # monotonic time of the next start; None = not to be started
    fatal: str | None = None  # the child said that trying again is useless

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.poll() is None else None


class Supervisor:
    """Starts children, starts them again when they die, and stops them in a given order.

    ``on_event(child, event, facts)`` is called from the supervisor's thread for every report and for
    ``exited``.  ``keep`` is called twice a second in that thread (the embedded database is watched
    there, for the same reason of thread and parent-death signal).
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        on_event: Callable[[str, str, dict[str, Any]], None] | None = None,
        before: Callable[[], None] | None = None,
        keep: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._environment = dict(environment)
        self._on_event = on_event or (lambda child, event, facts: None)
        self._before, self._keep, self._after = before, keep, after
        self._children: dict[str, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._stop_order: list[str] = []
        self._grace_s = 15.0
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    @property
    def children(self) -> Mapping[str, Child]:
        return self._children

    def begin(self) -> None:
        """Start the thread and wait until ``before`` has run; raises what it raised."""
        self._thread.start()
        self._begun.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def add(self, name: str, argv: list[str]) -> Child:
        child = Child(name, argv)
        self._children[name] = child
        return child

    def wait_ready(self, timeout_s: float, cancel: threading.Event | None = None) -> None:
        """Wait for every child's ``ready``; raises when one says it cannot, time runs out, or ``cancel`` is set."""
        deadline = time.monotonic() + timeout_s
        for child in list(self._children.values()):
            while not child.ready.wait(0.05):
                if self._failure is not None:
                    raise self._failure
                if child.fatal is not None:
                    raise NevstreamError(f"{child.name} cannot start: {child.fatal}")
                if cancel is not None and cancel.is_set():
                    raise NevstreamError("stopped while starting")
                if time.monotonic() > deadline:
                    raise NevstreamError(f"{child.name} is not ready after {timeout_s:.0f} s; its log above says why")

    def stop(self, order: list[str], grace_s: float = 15.0) -> None:
        """SIGTERM the children, one name prefix of ``order`` after the other; SIGKILL after ``grace_s`` each."""
        self._stop_order, self._grace_s = order, grace_s
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._before:
                self._before()
            self._begun.set()
            kept = 0.0
            while not self._stopping.is_set():
                now = time.monotonic()
                for child in list(self._children.values()):
                    if child.process is None and child.start_at is not None and now >= child.start_at:
                        self._start(child)
                    elif child.process is not None and child.process.poll() is not None:
                        self._exited(child)
                if self._keep and now - kept > 0.5:
                    self._keep()
                    kept = now
                self._listen(0.05)
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread, which raises it
            self._failure = error
        finally:
            try:
                self._end_children()
            finally:
                if self._after:
                    self._after()
                self._begun.set()

    def _start(self, child: Child) -> None:
        reading, writing = os.pipe()
        try:
            child.process = subprocess.Popen(
                child.argv,
                env={**os.environ, **self._environment, REPORT_FD_VARIABLE: str(writing)},
                pass_fds=[writing],
                stdin=subprocess.DEVNULL,
                # a session of its own: Ctrl-C reaches the parent alone, which then stops children in order
                start_new_session=True,
            )
        finally:
            os.close(writing)
        child.pipe = os.fdopen(reading, "rb", buffering=0)
        child.buffer = b""
        child.started = time.monotonic()
        child.start_at = None
        self._selector.register(child.pipe, selectors.EVENT_READ, child)

    def _listen(self, timeout_s: float) -> None:
        if not self._selector.get_map():
            time.sleep(timeout_s)
            return
        for key, _ in self._selector.select(timeout_s):
            self._read(key.data)

    def _read(self, child: Child) -> None:
        if child.pipe is None:
            return
        chunk = child.pipe.read(65536)
        if not chunk:
            self._selector.unregister(child.pipe)
            child.pipe.close()
            child.pipe = None
            return
        *lines, child.buffer = (child.buffer + chunk).split(b"\n")
        for line in lines:
            facts = json.loads(line)
            event = facts.pop("event")
            if event == "ready":
                child.facts = facts
                child.failures = 0
                child.ready.set()
            elif event == "halted":  # it lives, and does not do its work
                child.ready.clear()
            elif event == "fatal":
                child.fatal = facts.get("message", "")
            self._on_event(child.name, event, facts)

    def _exited(self, child: Child) -> None:
        assert child.process is not None
        while child.pipe is not None:
            self._read(child)
        code, pid = child.process.returncode, child.process.pid
        child.process = None
        child.ready.clear()
        if time.monotonic() - child.started > _WELL_AFTER_S:
            child.failures = 0
        pause = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2**child.failures)
        child.failures += 1
        child.restarts += 1
        child.start_at = None if child.fatal else time.monotonic() + pause
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        log.warning("%s (pid %d) ended with %s; starting it again in %.1f s", child.name, pid, how, pause)
        self._on_event(child.name, "exited", {"pid": pid, "code": code})

    def _end_children(self) -> None:
        order = [*self._stop_order, ""]
        for prefix in order:
            group = [c for c in self._children.values() if c.process is not None and c.name.startswith(prefix)]
            for child in group:
                assert child.process is not None
                if child.process.poll() is None:
                    child.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + self._grace_s
            for child in group:
                assert child.process is not None
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    log.warning("%s did not stop within %.0f s and is killed", child.name, self._grace_s)
                    child.process.kill()
                    child.process.wait()
                while child.pipe is not None:
                    self._read(child)
                child.process = None
        self._selector.close()
