"""The embedded server: starts, stops, survives, and refuses what is not its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from services.errors import DataDirectoryError, PortInUse
from services.store import embedded, places
from services.store.embedded import EmbeddedServer

pytestmark = [pytest.mark.database, pytest.mark.slow]
SMALL = {"shared_buffers": "16MB", "fsync": "off", "min_wal_size": "32MB"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops its privileges")


@pytest.fixture
def data_dir(reachable_dir: Path, tmp_path: Path) -> Path:
    return reachable_dir / tmp_path.name / "pg"


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedServer]:
    made = EmbeddedServer(data_dir, options=SMALL)
    made.start()
    yield made
    made.stop()


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_start_stop_start(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir, options=SMALL)
    dsn = server.start()
    assert server.running()
    assert server.start() == dsn  # once is enough
    assert ask(dsn, "SELECT current_database() || current_user") == "nevstreamnevstream"
    assert ask(dsn, "SELECT current_setting('synchronous_commit')") == "on"
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    pid = server.pid
    assert pid is not None
    server.stop()
    assert not server.running()
    assert server.pid is None
    assert not Path(f"/proc/{pid}").exists()
    server.stop()  # harmless
    assert ask(server.start(), "SELECT n FROM kept") == 7
    server.stop()


def test_private_and_not_root(server: EmbeddedServer) -> None:
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    assert Path(f"/proc/{server.pid}").stat().st_uid == server.data_dir.stat().st_uid != 0
    assert ask(server.dsn, "SELECT current_setting('listen_addresses')") == ""


def test_a_second_server_on_the_same_directory(server: EmbeddedServer) -> None:
    with pytest.raises(DataDirectoryError, match=rf"in use by a running PostgreSQL \(pid {server.pid}\)"):
        EmbeddedServer(server.data_dir).start()
    assert ask(server.dsn, "SELECT 1") == 1


def test_after_a_crash(server: EmbeddedServer) -> None:
    with psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert server.wait_ended(30)
    assert not server.running()
    assert (server.data_dir / "postmaster.pid").exists()
    assert ask(server.start(), "SELECT n FROM kept") == 7


def test_a_lock_file_whose_number_is_somebody_else(data_dir: Path) -> None:
    """As in a container that was killed: the old server's number is another program's now, of the same user."""
    server = EmbeddedServer(data_dir, options=SMALL)
    server.start()
    lock = (data_dir / "postmaster.pid").read_text()
    server.stop()
    owner = data_dir.stat()
    bystander = subprocess.Popen(["sleep", "60"], **({"user": owner.st_uid} if os.geteuid() == 0 else {}))
    try:
        stale = data_dir / "postmaster.pid"
        stale.write_text(lock.replace(lock.split()[0], str(bystander.pid), 1))
        os.chown(stale, owner.st_uid, owner.st_gid)
        assert ask(server.start(), "SELECT 1") == 1
        server.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda path: (path / "PG_VERSION").write_text("15\n"),
            "made by PostgreSQL 15, this nevstream brings PostgreSQL 18",
        ),
        (lambda path: (path / "notes.txt").write_text("mine"), "not empty and not a PostgreSQL data directory"),
    ],
)
def test_a_directory_that_is_not_ours(data_dir: Path, prepare: object, message: str) -> None:
    data_dir.mkdir(parents=True)
    prepare(data_dir)  # type: ignore[operator]
    before = sorted(data_dir.iterdir())
    with pytest.raises(DataDirectoryError, match=message):
        EmbeddedServer(data_dir).start()
    assert sorted(data_dir.iterdir()) == before


def test_a_file_where_the_directory_should_be(data_dir: Path) -> None:
    data_dir.parent.mkdir()
    data_dir.write_text("")
    with pytest.raises(DataDirectoryError, match="is a file"):
        EmbeddedServer(data_dir).start()


def test_an_empty_directory_is_taken(data_dir: Path) -> None:
    data_dir.mkdir(parents=True)
    server = EmbeddedServer(data_dir, options=SMALL)
    assert ask(server.start(), "SELECT 1") == 1
    server.stop()


def test_settings_it_cannot_start_with(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir, options={**SMALL, "shared_buffers": "nonsense"})
    with pytest.raises(DataDirectoryError, match="shared_buffers"):
        server.start()
    assert not server.running()


def test_tcp_asks_for_the_password(data_dir: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = EmbeddedServer(data_dir, port, options=SMALL)
    server.start()
    address = {"host": "127.0.0.1", "port": port, "user": embedded.USER, "dbname": embedded.DATABASE}
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(**address)
    secret = data_dir / embedded.PASSWORD_FILE
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    with psycopg.connect(**address, password=secret.read_text().strip()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    server.stop()


def test_a_port_in_use(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"127.0.0.1:{port}"):
            EmbeddedServer(data_dir, port, options=SMALL).start()


def test_a_path_too_long_for_a_socket(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir / ("deep" * 20) / "pg", options=SMALL)
    assert ask(server.start(), "SELECT 1") == 1
    server.stop()
    directory = Path(psycopg.conninfo.conninfo_to_dict(server.dsn)["host"])
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    directory.rmdir()


CHILD = """
import sys, threading
from pathlib import Path
from services.store.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), options={"shared_buffers": "16MB", "fsync": "off"})
# from a thread that ends at once: the server's life must not hang on it
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_parent(data_dir: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        pid = int(parent.stdout.readline())
        handle = os.pidfd_open(pid)
        parent.send_signal(number)
        parent.wait()
    try:
        # readable once the server has ended
        assert (
            subprocess.run(
                [sys.executable, "-c", _WAIT, str(handle)], pass_fds=[handle], timeout=60, check=False
            ).returncode
            == 0
        )
    finally:
        os.close(handle)
    server = EmbeddedServer(data_dir, options=SMALL)
    server.start()
    server.stop()


_WAIT = "import select, sys; sys.exit(not select.select([int(sys.argv[1])], [], [], 50)[0])"


@as_root
def test_a_home_that_is_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """pytest's own directories have mode 0700, like /root: binaries and data go where they can be reached."""
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    state = Path(tempfile.mkdtemp(prefix="nevstream-test-state-"))
    state.chmod(0o711)
    real = places.reachable
    # the wheel, too, as if it were in that home
    monkeypatch.setattr(places, "reachable", lambda path, uid, gid: path.name != "bin" and real(path, uid, gid))
    monkeypatch.setattr(embedded, "find_places", lambda wanted: places.find_places(wanted, state / "lib"))
    server = EmbeddedServer(closed / "app" / "pg", options=SMALL)
    again = EmbeddedServer(closed / "app" / "pg", options=SMALL)
    try:
        assert ask(server.start(), "SELECT 1") == 1
        assert server.data_dir.parent == state / "lib"
        binary = Path(f"/proc/{server.pid}/exe").readlink()
        assert (state / "lib") in binary.parents
        server.stop()
        assert ask(again.start(), "SELECT 1") == 1
        assert again.data_dir == server.data_dir
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert list(closed.iterdir()) == []
        assert "cannot reach" in caplog.text
    finally:
        server.stop()
        again.stop()
        shutil.rmtree(state)


@as_root
def test_whose_data_it_is(data_dir: Path) -> None:
    """As root it runs as the owner of the data, whoever that is."""
    data_dir.mkdir(parents=True)
    os.chown(data_dir, 12345, 12345)
    (data_dir / "PG_VERSION").write_text("15\n")
    assert places.find_places(data_dir).uid == 12345


def test_reachable(tmp_path: Path) -> None:
    open_, closed = tmp_path / "open", tmp_path / "closed"
    open_.mkdir(mode=0o755)
    closed.mkdir(mode=0o700)
    me, other = os.geteuid(), 65534
    assert places.reachable(closed / "missing", me, os.getegid())
    assert not places._may_enter(closed, other, other)
    assert places._may_enter(open_, other, other)
