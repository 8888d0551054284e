"""What a command that needs no kernels may not load: `nevstream --help` is to answer at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from schemas.gbt32960 import downlink
from schemas.mqtt.topics import BMS, json_uplink, uplink
from services import cli_command
from services.settings import BridgeCodec, Settings

HEAVY = ("numba", "numpy", "fastapi", "pandas", "psycopg", "uvicorn", "cryptography", "pyarrow", "zstandard", "orjson")


@pytest.mark.parametrize("code", ["import services.cli", "from services.settings import Settings; Settings()"])
def test_heavy_packages_are_not_imported(code: str) -> None:
    check = f"{code}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_names_written_out_in_the_help_of_commands() -> None:
    assert ", ".join(downlink.QUERYABLE) == cli_command.QUERYABLE
    assert ", ".join(downlink.SETTABLE) == cli_command.SETTABLE
    assert ", ".join(downlink.CONTROLS) == cli_command.CONTROLS


def test_topics_written_out_in_the_settings() -> None:
    assert Settings().gateway.bridge.topics == {
        uplink("{vin}"): BridgeCodec.GBT32960,
        json_uplink("{vin}"): BridgeCodec.TELEMETRY,
        json_uplink("{vin}", BMS): BridgeCodec.BMS,
    }
