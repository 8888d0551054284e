"""How long until it works: `nevstream up` from nothing, and again; and how long a small command takes.

*First*: no compiled kernels, no data directory: kernels compile, PostgreSQL is made and migrated.  The statistics'
kernels are not waited for, they compile afterwards (``statistics_s``).  *Later*: once more, all compiled.  Both are
from the start of the command until the API says that it is ready and has answered a first question.  Commands are
those that ask nothing of the system.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.runner import Progress

COMMANDS: Final = {"help": ("--help",), "config": ("config",), "schema": ("schema", "--help")}
_LIMIT_S: Final = 300.0
_POLL_S: Final = 0.01


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{"first_s", "later_s", "first_request_ms", "help_s", ...}; ``quick``: fewer repeats, none of the first."""
    later, firsts, repeats = (2, 1, 3) if quick else (5, 2, 9)
    first_runs, later_runs, asked, statistics, spents = [], [], [], [], []
    for _ in range(firsts):
        home = Path(tempfile.mkdtemp(prefix="nevstream-bench-"))
        home.chmod(0o711)  # the database's unprivileged user must reach its directory
        try:
            file, port = _settings(home)
            seconds, _, compiled = _up(file, port, home, wait_statistics=True)
            first_runs.append(seconds)
            statistics.append(compiled)
            progress(f"first start: {seconds:.1f} s; the statistics' kernels were there after {compiled:.1f} s")
            for _ in range(later):
                spent = _cpu_s()
                seconds, request, _ = _up(file, port, home)
                spents.append(_cpu_s() - spent)
                later_runs.append(seconds)
                asked.append(request)
                progress(f"later: {seconds:.2f} s, then the first question {1000 * request:.0f} ms")
        finally:
            shutil.rmtree(home, ignore_errors=True)
    commands = {name: _command(words, repeats) for name, words in COMMANDS.items()}
    bare = _timed([sys.executable, "-c", "pass"], repeats)
    progress(f"nevstream --help: {commands['help']:.2f} s; python alone {bare:.2f} s")
    return {
        "first_s": round(median(first_runs), 2),
        "later_s": round(median(later_runs), 2),
        "later_cpu_s": round(median(spents), 2),  # with stopping
        "statistics_s": round(median(statistics), 2),
        "first_request_ms": round(1000 * median(asked), 1),
        "help_s": commands["help"],
        "python_s": bare,
        "commands_s": commands,
        "runs": {"first_s": [round(s, 2) for s in first_runs], "later_s": [round(s, 2) for s in later_runs]},
        "goals": {"first_s": "<= 30", "later_s": "<= 3"},
        "settings": {"processes": "chosen from the cores", "database": "embedded", "later": later, "first": firsts},
        "notes": [],
    }


def _cpu_s() -> float:
    """Processor time of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _settings(home: Path) -> tuple[Path, int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    file = home / "nevstream.toml"
    file.write_text(
        f'runtime_dir = "{home}/run"\n[database]\ndata_dir = "{home}/pg"\n[gateway.mqtt]\nport = 0\n'
        f"[gateway.gbt32960]\nport = 0\n[web]\nport = {port}\n",
        "utf-8",
    )
    return file, port


def _up(file: Path, port: int, home: Path, wait_statistics: bool = False) -> tuple[float, float, float]:
    """Start, ask, stop: seconds until it was ready and had answered; of the answer alone; until the last kernel."""
    log = home / "log"
    with log.open("wb") as heard:
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--config", str(file)],
            stdout=heard, stderr=heard, env={**os.environ, "NEVSTREAM_KERNEL_CACHE": str(home / "kernels")},
        )  # fmt: skip
    try:
        while not _answers(port, "/readyz"):
            if process.poll() is not None or time.monotonic() - begun > _LIMIT_S:
                raise RuntimeError(f"it did not start; it said: {log.read_text('utf-8')[-2000:]}")
            time.sleep(_POLL_S)
        at = time.monotonic()
        if not _answers(port, "/v1/vehicles"):
            raise RuntimeError("it is ready, and does not answer /v1/vehicles")
        ended = time.monotonic()
        while wait_statistics and not list((home / "kernels").glob("*/warm-statistics")):
            if time.monotonic() - begun > _LIMIT_S:
                raise RuntimeError("the statistics' kernels do not come")
            time.sleep(_POLL_S)
        compiled = time.monotonic()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    return ended - begun, ended - at, compiled - begun


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _command(words: tuple[str, ...], repeats: int) -> float:
    return _timed([sys.executable, "-m", "services.cli", *words], repeats)


def _timed(argv: list[str], repeats: int) -> float:
    """Seconds, the median of ``repeats``; once before, for the files to be in memory."""
    taken = []
    for _ in range(repeats + 1):
        begun = time.monotonic()
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
        taken.append(time.monotonic() - begun)
    return round(median(taken[1:]), 3)
