"""`bench decode` measures three decoders on frames that all three read, and read alike."""

from __future__ import annotations

import sys
from random import Random
from typing import Any

import pytest

from benchmarks import decode
from benchmarks.runner import run
from schemas.gbt32960.reference import decode_frame
from schemas.signals import INDEX, SIGNALS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _modules_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rtm_con.msg_to_gui", "rtm_con.msg_to_excel"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, None)  # put back, hence removed, at the end
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("size", decode.SIZES)
@pytest.mark.parametrize("edition", decode.EDITIONS)
def test_all_read_the_same(size: str, edition: int) -> None:
    rng = Random(1)
    frames = [decode.frame(size, edition, rng) for _ in range(5)]
    work, out = decode.kernels(frames)
    work()
    decode.twin(frames)()
    judge = decode.rtm_con()
    for line, one in enumerate(frames):
        tree, theirs = decode_frame(one), judge.parse(one)
        names = [info["name"] for info in tree["body"]["infos"] if info["name"] != "signature"]
        assert len(theirs.payload.data_list) == len(names)
        vehicle: Any = theirs.payload.data_list[0].data_content
        speed = INDEX["speed_kmh"]
        assert out.num[line, speed] / SIGNALS[speed].div == pytest.approx(vehicle["vehicle_speed"].value)
        if size != "small":
            packs = theirs.payload.data_list[names.index("cell_voltages")].data_content
            assert sum(len(pack.cell_volts) for pack in packs) == out.num[line, INDEX["cell_count"]]
    lengths = {"small": (55, 65), "typical": (310, 340), "large": (1100, 1300)}[size]
    assert lengths[0] <= len(frames[0]) <= lengths[1]


def test_the_result_has_what_the_document_says() -> None:
    result = run("decode", quick=True)
    assert len(result["cases"]) == 6
    assert result["ratio"] == pytest.approx(result["frames_per_s"] / result["baseline_frames_per_s"], rel=0.01)
