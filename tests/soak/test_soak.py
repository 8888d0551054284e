"""The quick soak, once: `nevstream soak --quick` as a person runs it, about 70 s on two quiet cores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.soak.faults import FAULTS

pytestmark = [pytest.mark.slow, pytest.mark.database]

PATIENCE_S = 600


def test_nothing_is_lost_and_nothing_is_there_twice(tmp_path: Path) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "services.cli",
            "soak",
            "--quick",
            "--seed",
            "5",
            "--json",
            "--report",
            tmp_path / "report.md",
        ],
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    )
    result = json.loads(run.stdout)
    assert result["problems"] == []
    assert run.returncode == 0
    assert result["complete"]
    assert result["acked"] == result["sent"] > 1000
    assert result["lost"] == result["duplicated"] == 0
    assert result["stored"] == result["expected_stored"] > 1000
    assert result["rejected"] == result["expected_rejected"]
    assert result["statistics_equal"]
    assert result["statistics_rows"]["vehicle_day"] >= 48
    assert sum(result["faults"].values()) + sum(result["faults_missed"].values()) == 30
    assert set(result["faults"]) | set(result["faults_missed"]) == {fault.name for fault in FAULTS}
    assert result["kills"] >= 15
    assert result["ack_p99_ms"] > 0
    assert "memory_slope_mb_per_min" in result
    assert "nevstream soak: passed" in (tmp_path / "report.md").read_text("utf-8")
