"""``nevstream signals`` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import schemas

pytestmark = pytest.mark.slow

EXAMPLES = Path(schemas.__file__).parent / "examples"


def nevstream(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", "signals", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=EXAMPLES.parents[1],
    )  # fmt: skip


def test_check_and_list(tmp_path: Path) -> None:
    good = nevstream("check", EXAMPLES / "bus.toml")
    assert (good.returncode, "16 signals, block 0x81 (bus body), 2 JSON fields" in good.stdout) == (0, True), good

    bad = tmp_path / "bad.toml"
    bad.write_text("[[block]]\ntype = 0x81\nnaem = 1\n")
    told = nevstream("check", bad)
    assert told.returncode == 2
    assert told.stderr.splitlines() == [
        f"{bad}:1:1: the block has no signals; add [[block.signal]] tables",
        f"{bad}:3:1: naem is not a key of a block; did you mean name?",
    ]
    found = json.loads(nevstream("check", "--json", bad).stdout)["mistakes"]
    assert (found[1]["line"], found[1]["column"]) == (3, 1)

    listed = json.loads(nevstream("list", "--json", EXAMPLES / "bus.toml").stdout)
    assert listed[4]["name"] == "cabin_temp_c"
    assert listed[4]["range"] == [-40, 85]
    assert nevstream("list", tmp_path / "none.toml").returncode == 2
