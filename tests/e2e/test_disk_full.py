"""The database's disk fills up: reading stops, nothing acknowledged is lost, and emptying it is enough."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.topology import System
from tests.e2e.conftest import Fleet, acked, caught_up, ledger, until

pytestmark = [pytest.mark.slow, pytest.mark.database]

VEHICLES, REPORTS = 60, 400
SIZE_MB = 400


@pytest.fixture
def small_disk(reachable_dir: Path) -> Iterator[Path]:
    """A file system of ``SIZE_MB`` of its own; needs the right to mount one."""
    where = reachable_dir / "small"
    where.mkdir(mode=0o711)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=0711", "tmpfs", str(where)], capture_output=True
    )
    if mounted.returncode != 0:
        where.rmdir()
        pytest.skip("a tmpfs cannot be mounted here (root may)")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)
    where.rmdir()


def fill(path: Path) -> None:
    """A file that leaves no block of its file system free, whoever else takes some meanwhile."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    at, step = 0, 64 << 20
    try:
        while step >= 4096:
            try:
                os.posix_fallocate(descriptor, at, step)
                at += step
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
    finally:
        os.close(descriptor)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount")
def test_a_full_disk_holds_the_vehicles_back_and_costs_no_frame(
    small_disk: Path, start_system: Callable[..., System], start_fleet: Callable[..., Fleet]
) -> None:
    system = start_system(None, database={"data_dir": small_disk / "pg"})
    gateway = system.pids["gateway-0"]
    fleet = start_fleet(system, "--vehicles", str(VEHICLES), "--reports", str(REPORTS), "--speed", "0", "--window", "2")
    until("the fleet is under way", lambda: acked(system) > 0.1 * VEHICLES * REPORTS)

    ballast = small_disk / "ballast"
    fill(ballast)

    def stands_still() -> bool:
        fill_again = shutil.disk_usage(small_disk).free > 1 << 20
        if fill_again:  # PostgreSQL has recycled or removed files of its log
            fill(small_disk / f"ballast-{time.monotonic_ns()}")
        before = acked(system)
        time.sleep(1.5)
        return acked(system) == before < VEHICLES * REPORTS and fleet.process.poll() is None

    until("nothing more is acknowledged", stands_still)
    held = acked(system)
    assert system.pids["gateway-0"] == gateway, "the gateway keeps what it has"

    for file in small_disk.glob("ballast*"):
        file.unlink()
    until("it goes on", lambda: acked(system) > held)
    account = fleet.result()
    until("all is up", lambda: system.children_ready and system.database_pid is not None)

    def stored() -> bool:
        try:
            with psycopg.connect(system.dsn, autocommit=True) as db:
                return caught_up(db)
        except psycopg.OperationalError:
            return False

    until("the journal is stored", stored)
    assert (account["sent"], account["acked"], account["complete"]) == (VEHICLES * REPORTS, VEHICLES * REPORTS, True)
    with psycopg.connect(system.dsn, autocommit=True) as db:
        row: Any = db.execute("SELECT count(*), count(DISTINCT (vehicle_id, time)) FROM telemetry").fetchone()
        booked = ledger(db)
    assert row == (VEHICLES * REPORTS, VEHICLES * REPORTS)
    assert booked["rows"] == VEHICLES * REPORTS
    assert booked["rejected"] == booked["conflicts"] == 0
    assert system.pids["gateway-0"] == gateway
