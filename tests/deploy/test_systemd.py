"""The unit for systemd: what it names exists, it leaves time to stop in order, and systemd takes it."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from services.cli import app
from services.settings import Settings, _environment
from services.store import embedded
from services.topology import STOP_ORDER, System

UNIT = Path(__file__).parents[2] / "deploy/systemd/nevstream.service"
TEXT = UNIT.read_text("utf-8")
LINES = re.findall(r"^(\w+)=(.*)$", TEXT, re.MULTILINE)
VALUES = dict(LINES)

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def stopping_takes_at_most_s(embedded_too: bool) -> float:
    """What ``nevstream up`` gives its children, and PostgreSQL, before it kills them."""
    grace_s = inspect.signature(System.stop).parameters["grace_s"].default
    return len(STOP_ORDER) * grace_s + (sum(seconds for _, seconds in embedded._STOP_STEPS) if embedded_too else 0)


def test_it_starts_a_command_that_exists() -> None:
    program, *words = VALUES["ExecStart"].split()

    assert Path(program).name == "nevstream"
    assert words[0] in typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_its_variables_are_settings() -> None:
    variables = dict(value.split("=", 1) for name, value in LINES if name == "Environment")

    for name in variables.keys() - {"NEVSTREAM_CONFIG", "NEVSTREAM_KERNEL_CACHE"}:
        assert _environment({name: variables[name]}), f"{name} is no setting"
    settings = Settings.model_validate(_environment(variables))
    # what is written must lie in a directory of the service
    for directory in (settings.runtime_dir, settings.database.data_dir):
        assert directory.is_relative_to(f"/var/lib/{VALUES['StateDirectory']}")
    assert variables["NEVSTREAM_KERNEL_CACHE"] == f"/var/cache/{VALUES['CacheDirectory']}"


def test_it_stops_in_order_and_has_the_time_for_it() -> None:
    # a signal to all of them at once would end pipelines and PostgreSQL while doors still take frames
    assert (VALUES["KillMode"], VALUES["KillSignal"]) == ("mixed", "SIGTERM")
    assert int(VALUES["TimeoutStopSec"]) > stopping_takes_at_most_s(embedded_too=True)


def test_a_process_may_open_as_many_files_as_it_takes_connections() -> None:
    assert int(VALUES["LimitNOFILE"]) > 2 * Settings().gateway.limits.connections_max


def test_it_is_hardened() -> None:
    assert VALUES["User"] == "nevstream"
    assert VALUES["NoNewPrivileges"] == "yes"
    assert VALUES["ProtectSystem"] == "strict"
    assert VALUES["CapabilityBoundingSet"] == ""
    assert "MemoryDenyWriteExecute" not in VALUES  # kernels are compiled at run time


@analyze
def test_systemd_takes_it(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # the program has to be there for the check
    unit.write_text(TEXT.replace("/opt/nevstream/bin/nevstream", sys.executable))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60
    )

    assert unit.name not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


@analyze
def test_systemd_finds_it_hardly_exposed(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(UNIT)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-500:] + done.stderr  # of 100, which is a service without any of it
