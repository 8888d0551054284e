"""`nevstream load` against a whole system: frames are accounted for, and Ctrl-C ends with an account."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from services.topology import System
from tests.e2e.conftest import PATIENCE_S


def arguments(system: System, *more: str) -> list[str]:
    mqtt, gbt = (system.addresses[door][1] for door in ("mqtt", "gbt32960"))
    host, port = system.addresses["web"]
    return [
        sys.executable, "-m", "services.cli", "load", "--json", "--protocol", "mixed", "--mqtt-version", "mixed",
        "--target", f"127.0.0.1:{mqtt},{gbt}", "--api", f"http://{host}:{port}", *more,
    ]  # fmt: skip


def result(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    said, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, told
    answer: dict[str, Any] = json.loads(said)
    return answer


def begun(system: System, *more: str, cwd: Path) -> subprocess.Popen[str]:
    here = Path(__file__).parents[2]
    return subprocess.Popen(
        arguments(system, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(here)},
    )  # fmt: skip


def test_a_load_and_what_became_of_it(dsn: str, start_system: Callable[..., System], tmp_path: Path) -> None:
    system = start_system(dsn)
    db = psycopg.connect(dsn, autocommit=True)
    with db:
        # links are cut for a while, by two processes that must agree about it
        options = ["--vehicles", "40", "--rate", "200", "--duration", "4s", "--scenario", "outage", "--processes", "2"]
        options += ["--window", "1000"]
        found = result(begun(system, *options, "--seed", "7", "--report", "r.json", cwd=tmp_path))
        assert found == json.loads((tmp_path / "r.json").read_text())
        assert found["planned"] == 800
        assert 100 < found["sent"] == found["acked"] <= 800  # how much of it in time, is the machine's matter today
        assert found["reconnects"] == 12  # three of ten
        assert found["limited_by"] in ("plan", "generator", "target")
        assert found["reconciliation"]["ok"]
        assert (found["reconciliation"]["stored"], found["reconciliation"]["rejected"]) == (found["sent"], 0)
        assert 0 < found["ack_p50_ms"] <= found["ack_p99_ms"] <= found["ack_max_ms"]
        kinds = dict(db.execute("SELECT kind, count(*) FROM telemetry GROUP BY kind").fetchall())
        assert kinds[2] + kinds[3] == found["sent"]
        assert 0 < kinds[3] < 100  # what the cut links of GB/T held
        assert db.execute("SELECT count(*) FROM telemetry WHERE time > received_at").fetchone() == (0,)
        # the same vehicles again would be the same reports again
        again = begun(system, *options, "--seed", "7", cwd=tmp_path)
        _, told = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 2
        assert f"have {found['sent']} reports there already" in " ".join(told.split())
        # Ctrl-C: nothing new is sent, what was sent is answered and accounted for
        process = begun(system, "--vehicles", "20", "--rate", "40", "--duration", "1h", cwd=tmp_path)
        assert process.stderr is not None
        for line in process.stderr:
            if " sent " in line:
                break
        process.send_signal(signal.SIGINT)
        early = result(process)
        assert early["ended_early"]
        assert 0 < early["sent"] == early["acked"] < 1000
        assert early["reconciliation"]["ok"]
    db.close()
