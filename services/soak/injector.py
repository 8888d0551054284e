"""Carries out the schedule: real signals to real processes, and only to children of this one.

What a fault does is taken back by this module, at the latest at its end: nothing stays stopped or slow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from services.soak.faults import BY_NAME, Planned

if TYPE_CHECKING:
    from services.soak.line import Line
    from services.topology import System

log = logging.getLogger(__name__)

_LINE_SHARE: Final = 1 / 3
_PATIENCE_S: Final = 8.0  # for a victim that is just being started again
_SLOW: Final = {"commit_delay": "100000", "commit_siblings": "0"}
_UNDO_PATIENCE_S: Final = 60.0


class Injector:
    """Runs a schedule in a thread.  ``done`` counts faults by name, ``missed`` those without a victim in time."""

    def __init__(self, system: System, line: Line, plan: Sequence[Planned], tell: Callable[[str], None]) -> None:
        self._system, self._line, self._plan, self._tell = system, line, plan, tell
        self.done: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.kills = 0
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="soak faults", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more faults; what was stopped goes on, what was slowed down is quick again."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            for planned in self._plan:
                if not self._wait_until(begun + planned.at_s):
                    return
                self._inject(planned)
        except BaseException as error:  # noqa: BLE001 - raised by stop
            self._failure = error
        finally:
            for _, undo in self._undo:
                undo()

    def _wait_until(self, when: float) -> bool:
        """Wait, taking back what is over; False when told to stop."""
        while True:
            now = time.monotonic()
            for at, undo in list(self._undo):
                if at <= now:
                    self._undo.remove((at, undo))
                    undo()
            if now >= when:
                return not self._stopping.is_set()
            soonest = min([when, *(at for at, _ in self._undo)])
            if self._stopping.wait(max(0.0, min(0.2, soonest - time.monotonic()))):
                return False

    def _inject(self, planned: Planned) -> None:
        what, _, whom = planned.name.partition("_")
        deadline = time.monotonic() + _PATIENCE_S
        while not self._act(planned, what, whom):
            if time.monotonic() > deadline or not self._wait_until(time.monotonic() + 0.2):
                self.missed[planned.name] += 1
                return
        self.done[planned.name] += 1
        self.kills += BY_NAME[planned.name].kill
        self._tell(planned.name)

    def _act(self, planned: Planned, what: str, whom: str) -> bool:
        """Do it; False when there is nobody to do it to just now."""
        if planned.name == "cut_line":
            return self._line.cut(_LINE_SHARE, planned.choice) > 0
        if planned.name == "reconnect_storm":
            return self._line.cut(1.0, planned.choice) > 0
        if planned.name == "cut_database":
            return self._cut_database()
        if planned.name == "slow_disk":
            return self._slow_disk(planned.lasts_s)
        if whom == "backend":
            return self._kill_backend(planned.choice)
        pids = self._postgres() if whom == "postgres" else self._victims(whom, planned.choice)
        if not pids:
            return False
        if what == "pause":
            for pid in pids:
                _signal(pid, signal.SIGSTOP)
            self._undo.append((time.monotonic() + planned.lasts_s, lambda: _resume(pids)))
            return True
        return _signal(pids[0], signal.SIGKILL if what == "kill" else signal.SIGTERM)

    def _victims(self, role: str, choice: int) -> list[int]:
        pids = [pid for name, pid in sorted(self._system.pids.items()) if name.startswith(f"{role}-")]
        return [pids[choice % len(pids)]] if pids else []

    def _postgres(self) -> list[int]:
        """The server's processes, the first one first; empty while there is none."""
        first = self._system.database_pid
        return [] if first is None else [first, *children_of(first)]

    def _kill_backend(self, choice: int) -> bool:
        first = self._system.database_pid
        backends = [] if first is None else [pid for pid in children_of(first) if _serves_a_client(pid)]
        return bool(backends) and _signal(backends[choice % len(backends)], signal.SIGKILL)

    def _cut_database(self) -> bool:
        with contextlib.suppress(psycopg.Error), psycopg.connect(self._system.dsn, connect_timeout=2) as connection:
            found = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'nevstream%'"
            ).fetchone()
            return found is not None and found[0] > 0
        return False

    def _slow_disk(self, seconds: float) -> bool:
        if not self._configure("ALTER SYSTEM SET {name} = {value}"):
            return False
        self._undo.append((time.monotonic() + seconds, self._quick_disk))
        return True

    def _quick_disk(self) -> None:
        deadline = time.monotonic() + _UNDO_PATIENCE_S
        while not self._configure("ALTER SYSTEM RESET {name}"):
            if time.monotonic() > deadline:
                log.warning("PostgreSQL could not be made quick again within %.0f s", _UNDO_PATIENCE_S)
                return
            time.sleep(0.2)

    def _configure(self, statement: str) -> bool:
        try:
            with psycopg.connect(self._system.dsn, autocommit=True, connect_timeout=2) as connection:
                for name, value in _SLOW.items():
                    connection.execute(statement.format(name=name, value=value).encode())
                connection.execute("SELECT pg_reload_conf()")
        except psycopg.OperationalError:
            return False
        return True


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _resume(pids: Sequence[int]) -> None:
    for pid in reversed(pids):  # the first one last: it must not find its children stopped
        _signal(pid, signal.SIGCONT)


def children_of(parent: int) -> list[int]:
    """Processes whose parent is ``parent``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # after the name in parentheses, which may hold anything: state, then parent
                if int((entry / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return sorted(found)


def _serves_a_client(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"postgres: nevstream ")
    return False
