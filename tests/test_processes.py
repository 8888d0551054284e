"""How many processes are started on how many cores."""

from __future__ import annotations

from typing import Any

import pytest

from services.settings import Settings
from services.topology import with_processes


@pytest.mark.parametrize(
    ("cores", "gateways", "pipelines"), [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 2), (8, 2, 4), (16, 4, 8), (96, 8, 8)]
)
def test_chosen_from_the_cores(cores: int, gateways: int, pipelines: int) -> None:
    chosen = with_processes(Settings(), cores)
    assert (chosen.gateway.processes, chosen.pipeline.processes) == (gateways, pipelines)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gateway": {"processes": 3}}, (3, 8)),
        ({"pipeline": {"processes": 1}}, (4, 1)),
        ({"pipeline": {"processes": 12}}, (4, 12)),  # somebody's wish is not corrected
        ({"journal": {"partitions": 2}}, (4, 2)),
    ],
)
def test_what_is_set_is_kept(given: dict[str, Any], expected: tuple[int, int]) -> None:
    chosen = with_processes(Settings.read(overrides=given), 16)
    assert (chosen.gateway.processes, chosen.pipeline.processes) == expected
