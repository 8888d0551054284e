"""Lists as on the wire: frames that other projects published, with what they must read as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.web import blocks

FRAMES = {
    frame["id"]: frame
    for frame in json.loads((Path(__file__).parents[1] / "gbt32960" / "data" / "frames.json").read_text("utf-8"))
}


def body(name: str) -> bytes:
    """Body of the only block of a frame: header (24), time (6), type (1), body, check byte."""
    return bytes.fromhex(FRAMES[name]["hex"])[31:-1]


def expected(name: str, path: str) -> Any:
    return FRAMES[name]["expect"][f"body.infos.0.{path}"]


def test_cells_2016() -> None:
    name = "emqx-cells-2016"
    packs = blocks.cell_packs(body(name), 16)
    assert [pack.values() for pack in packs] == [expected(name, f"packs.{i}.cells_v") for i in (0, 1)]
    assert [pack.current_a for pack in packs] == [expected(name, f"packs.{i}.current_a") for i in (0, 1)]
    assert [pack.no for pack in packs] == [1, 2]
    assert packs[0].voltage_v == 500.0


def test_cells_2025() -> None:
    name = "emqx-cells-2025"
    packs = blocks.cell_packs(body(name), 25)
    assert [pack.values() for pack in packs] == [expected(name, f"packs.{i}.cells_v") for i in (0, 1)]
    assert (packs[0].voltage_v, packs[0].current_a) == (300, -2900)


def test_temperatures() -> None:
    name = "emqx-temps-2025"
    packs = blocks.temp_packs(body(name), 25)
    assert [pack.values() for pack in packs] == [expected(name, f"packs.{i}.temps_c") for i in (0, 1)]


def test_motors_2025() -> None:
    name = "emqx-motor-2025"
    first, second = blocks.motors(body(name), 25)
    assert (first["speed_rpm"], first["torque_nm"]) == (-2000, -17500)
    assert second["motor_temp_c"] == expected(name, "motors.1.motor_temp_c")


def test_faults_of_both_editions() -> None:
    # the alarm block's level and flags (5 bytes) are signals, so the list begins after them
    found = blocks.faults(body("emqx-alarm-2025")[5:], 25)
    for group in blocks.FAULT_GROUPS:
        assert [int(code, 16) for code in found[group]] == expected("emqx-alarm-2025", f"{group}_faults")
    assert [[g["flag"], g["level"]] for g in found["general"]] == expected("emqx-alarm-2025", "general_faults")
    found = blocks.faults(body("emqx-alarm-reissue-2016")[5:], 16)
    for group in blocks.FAULT_GROUPS:
        assert [int(code, 16) for code in found[group]] == expected("emqx-alarm-reissue-2016", f"{group}_faults")


def test_sentinels_have_no_value_and_keep_their_names() -> None:
    frame = bytes.fromhex(FRAMES["bcd-reissue-invalid"]["hex"])
    at = frame.index(bytes.fromhex("0801010ee5"))  # the cell block
    [pack] = blocks.cell_packs(frame[at + 1 :], 16)
    assert (len(pack.values()), set(pack.values()), pack.voltage_v, pack.current_a) == (96, {None}, 381.3, 0)
    assert pack.flaws()[96] == "invalid"
    [probes] = blocks.temp_packs(frame[at + 1 + 11 + 2 * 96 + 1 : -1], 16)
    assert probes.values() == [-26] + [None] * 23


def test_flaws_and_notes() -> None:
    assert blocks.flaws(bytes([3, 2, 7, 3, 0, 4, 1, 5])) == {
        "speed_kmh": "abnormal", "soc_pct": "invalid", "vehicle_state": "out_of_range", "charge_state": "suspect",
    }  # fmt: skip
    assert blocks.flaws(None) == {}
    assert blocks.notes(5) == ["truncated_block", "custom_block"]


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=80), edition=st.sampled_from([16, 25]))
def test_no_stored_bytes_make_it_fail(data: bytes, edition: int) -> None:
    for pack in blocks.merged(blocks.cell_packs(data, edition)):
        assert len(pack["cells_v"]) <= 65_531 + 255
    for pack in (*blocks.cell_packs(data, edition), *blocks.temp_packs(data, edition)):
        assert len(pack.values()) == len(pack.raw)
        pack.flaws()
    blocks.motors(data, edition)
    blocks.faults(data, edition)
    blocks.flaws(data)
