"""The decode kernel: equal to its twin on anything, and the golden frames' values in its columns."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields as dataclass_fields
from datetime import datetime
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import batch as b
from schemas.batch import Batch, Frames
from schemas.gbt32960.decode import decode, decode_frames, decode_reports
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.reading import read_parts
from schemas.gbt32960.reference import _render_parts, decode_frame
from schemas.reasons import CODE, reason_name
from schemas.signals import INDEX, SIGNALS, State
from tests.gbt32960.making import codec_column, decoded, rechecked, report, time_bytes
from tests.gbt32960.test_golden import same, walk

GOLDEN = json.loads((Path(__file__).parent / "data" / "frames.json").read_text())
BY_ID = {entry["id"]: entry for entry in GOLDEN}


def frame_of(name: str) -> bytes:
    return bytes.fromhex(BY_ID[name]["hex"])


def one(frame: bytes) -> tuple[Batch, np.ndarray]:
    return decoded([frame], decode_reports.compiled)


def value(out: Batch, name: str, line: int = 0):
    """A signal as a person reads it: number in its unit, None when absent, else the state's name."""
    position = INDEX[name]
    state = State(out.state[line, position])
    if state is State.ABSENT:
        return None
    if state is not State.VALID:
        assert out.num[line, position] == 0
        return state.name.lower()
    num = int(out.num[line, position])
    return num / SIGNALS[position].div if SIGNALS[position].div != 1 else num


def span(out: Batch, data: np.ndarray, column: int, line: int = 0) -> bytes:
    at, n = out.var[line, column]
    return (out.heap if column == b.REST else data)[at : at + n].tobytes()


def rest_blocks(out: Batch, data: np.ndarray) -> list[tuple[int, bytes]]:
    rest, blocks = span(out, data, b.REST), []
    while rest:
        n = int.from_bytes(rest[1:3], "big")
        blocks.append((rest[0], rest[3 : 3 + n]))
        rest = rest[3 + n :]
    return blocks


def assert_same(frames: list[bytes]) -> Batch:
    fast, _ = decoded(frames, decode_reports.compiled)
    slow, _ = decoded(frames, decode_reports.twin)
    for field in dataclass_fields(Batch):
        left, right = getattr(fast, field.name), getattr(slow, field.name)
        if field.name == "num":
            known = fast.state != State.ABSENT
            left, right = np.where(known, left, 0), np.where(known, right, 0)
        np.testing.assert_array_equal(left, right, err_msg=field.name)
    return fast


# --- kernel against twin -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=120)
@given(st.integers(0, 2**32), st.sampled_from([16, 25]), st.sampled_from([0.0, 0.1, 0.5]))
def test_kernel_equals_twin_on_random_reports(seed, edition, wild):
    rng = Random(seed)
    assert_same([report(rng, edition, wild) for _ in range(4)])


@settings(deadline=None, max_examples=120)
@given(
    st.integers(0, 2**32),
    st.sampled_from([16, 25]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
    st.integers(0, 300),
    st.booleans(),
)
def test_kernel_equals_twin_on_damaged_reports(seed, edition, flips, cut, mend):
    frame = bytearray(report(Random(seed), edition))
    if cut < len(frame) - 31:
        del frame[len(frame) - 1 - cut : len(frame) - 1]
    for at, byte in flips:
        frame[(at if mend else 30 + at) % len(frame)] ^= byte
    assert_same([rechecked(bytes(frame)) if mend else bytes(frame)])


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=120), st.sampled_from([16, 25]), st.sampled_from([1, 2, 3, 9, 0x0B, 0x80, 0x40]))
def test_kernel_equals_twin_on_any_data_unit(unit, edition, command):
    frame = build_frame(edition, command, 0xFE, "LTEST000000000001", 1, bytes([26, 1, 1, 1, 1, 1]) + unit)
    assert_same([frame, build_frame(edition, command, 0xFE, "LTEST000000000001", 1, unit)])
    decode_frame(frame)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=60), max_size=3))
def test_kernel_equals_twin_on_garbage(pieces):
    assert_same(pieces)
    for piece in pieces:
        json.dumps(decode_frame(piece))


def test_kernel_equals_twin_on_the_golden_frames():
    assert_same([bytes.fromhex(entry["hex"]) for entry in GOLDEN])


# --- golden frames through the kernel ------------------------------------------------------------------


def lists_of(cells: bytes, temps: bytes, edition: str) -> tuple[list[list[int]], list[list[int]]]:
    """Raw lists per pack from the ``cells`` and ``temps`` columns, read by hand."""
    voltages: list[list[int]] = []
    at, head, width = 1, (10 if edition == "2016" else 7), (1 if edition == "2016" else 2)
    for _ in range(cells[0] if cells else 0):
        at += head
        n = int.from_bytes(cells[at - width : at], "big")
        voltages.append([int.from_bytes(cells[k : k + 2], "big") for k in range(at, at + 2 * n, 2)])
        at += 2 * n
    probes: list[list[int]] = []
    at = 1
    for _ in range(temps[0] if temps else 0):
        n = int.from_bytes(temps[at + 1 : at + 3], "big")
        probes.append(list(temps[at + 3 : at + 3 + n]))
        at += 3 + n
    return voltages, probes


def field_at(edition: str, kind: int, key: str):
    """The field of a block that a key path's last step names, scaled or raw."""
    block = EDITIONS[int(edition) - 2000].blocks.get(kind)
    found = [field for group in (block.groups() if block else ()) for field in group if key in (field.name, field.raw)]
    return found[0] if found and found[0].signal else None


def rebuilt(out: Batch, data: np.ndarray, edition: int) -> dict[int, dict]:
    """Blocks by type, read again from the bytes that the batch keeps: nothing of a list may be lost."""
    table = EDITIONS[edition]
    kinds = {block.name: kind for kind, block in table.blocks.items()}
    bodies = {
        kinds["drive_motor"]: span(out, data, b.MOTORS),
        kinds["cell_voltages"]: span(out, data, b.CELLS),
        kinds["cell_temperatures"]: span(out, data, b.TEMPS),
        kinds["alarm"]: span(out, data, b.FAULTS) and bytes(5) + span(out, data, b.FAULTS),
    } | {kind: body for kind, body in rest_blocks(out, data) if kind in table.blocks}
    trees = {}
    for kind, body in bodies.items():
        if body:
            scope, end = read_parts(table.blocks[kind].parts, body, 0, len(body))
            assert end == len(body)
            trees[kind] = _render_parts(table, table.blocks[kind].parts, scope)
    return trees


GOLDEN_REPORTS = [
    entry
    for entry in GOLDEN
    if entry["kind"] in ("realtime", "reissue") and entry["valid"] and entry["expect"].get("body", 1) is not None
]


@pytest.mark.parametrize("entry", GOLDEN_REPORTS, ids=lambda entry: entry["id"])
def test_every_expectation_is_met_in_the_columns(entry):
    """Each key path that names a signal, or an item of a list, is compared with what its source says."""
    out, data = one(bytes.fromhex(entry["hex"]))
    expect = entry["expect"]
    assert (out.reason[0], out.kind[0]) == (0, {"realtime": 2, "reissue": 3}[entry["kind"]])
    assert out.edition[0] == int(entry["edition"]) - 2000
    kinds = [info["type"] for info in decode_frame(entry["hex"])["body"]["infos"]]
    kept = [kind for kind, _ in rest_blocks(out, data)]
    cells, temps = lists_of(span(out, data, b.CELLS), span(out, data, b.TEMPS), entry["edition"])
    kept_trees = rebuilt(out, data, int(entry["edition"]) - 2000)
    met = 0
    for path, expected in expect.items():
        if path == "body.time":
            assert out.time_s[0] == datetime.fromisoformat(expected).timestamp()
        match = re.fullmatch(r"body\.infos\.(\d+)\.(?:(?:motors|stacks|packs)\.0\.)?(raw\.)?(\w+)", path)
        if match and (field := field_at(entry["edition"], kinds[int(match[1])], match[3])):
            position = INDEX[field.signal]
            state, num = State(out.state[0, position]), int(out.num[0, position])
            if match[2]:
                assert field.judge(expected)[0] is state or field.signal == "location_valid"
                if state is State.VALID and field.signal != "location_valid":
                    assert (num - field.add) / field.mul == expected
            elif expected in ("abnormal", "invalid"):
                assert state.name.lower() == expected
            elif isinstance(expected, str) and field.names:
                assert field.names[num] == expected
            elif isinstance(expected, int | float) and state is State.VALID:
                assert num / field.div == pytest.approx(expected, abs=1e-9)
            met += 1
        match = re.fullmatch(r"body\.infos\.\d+\.packs\.(\d+)\.(cells_v|temps_c)(?:\.(len|-?\d+))?", path)
        if match:
            raws = (cells if match[2] == "cells_v" else temps)[int(match[1])]
            texts = {0xFFFF: "invalid"} if match[2] == "cells_v" else {0xFF: "invalid"}
            values = [texts.get(raw, raw / 1000 if match[2] == "cells_v" else raw - 40) for raw in raws]
            assert (
                len(values) if match[3] == "len" else values[int(match[3])] if match[3] else values
            ) == pytest.approx(expected, abs=1e-9)
            met += 1
        match = re.fullmatch(r"body\.infos\.(\d+)\.((?:motors|stacks|packs|cells_v|temps_c|probe|\w+_faults).*)", path)
        if match and kinds[int(match[1])] in kept_trees:
            tree = kept_trees[kinds[int(match[1])]]
            assert same(walk(tree, match[2]), expected), path
            met += 1
        match = re.fullmatch(r"body\.infos\.(\d+)\.(?:type|name)", path)
        if match and (kinds[int(match[1])] >= 0x80 or expected == "opaque"):
            assert kinds[int(match[1])] in kept
            met += 1
    assert met


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("36n-platform-logout-bad-bcc", "bad_bcc", 32),
        ("gk-platform-login", "bad_length", 22),
        ("0bit-motor-no-count", "structure", 30),
        ("jtne-login-aes128", "encrypted", 21),
        ("36n-doc-realtime-ack", "unknown_command", 3),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name, reason, detail):
    out, _ = one(frame_of(name))
    assert (reason_name(out.reason[0]), out.detail[0], out.kind[0]) == (reason, detail, 0)
    assert not out.state.any()


@pytest.mark.parametrize(
    ("frame", "reason", "detail"),
    [
        (build_frame(16, 2, 0xFE, bytes(range(0x80, 0x91)), 1, bytes([26, 1, 1, 0, 0, 0])), "bad_vin", 4),
        (build_frame(16, 2, 0xFE, "V", 1, bytes([26, 2, 30, 0, 0, 0, 4, 0, 0])), "bad_time", 24),
        (build_frame(25, 2, 0xFE, "V", 1, bytes([0x26, 0x13, 1, 0, 0, 0, 4, 0, 0])), "bad_time", 24),
        (build_frame(16, 9, 0xFE, "V", 1, b""), "unknown_command", 2),
        (build_frame(16, 2, 0xFE, "V", 1, b"\x1a\x01"), "structure", 24),
        (build_frame(16, 2, 0xFE, "V", 1, bytes([26, 1, 1, 0, 0, 0])), "structure", 30),
        (build_frame(16, 2, 0xFE, "V", 1, bytes([26, 1, 1, 0, 0, 0, 4, 1])), "structure", 30),
        (b"$#" + build_frame(16, 7, 0xFE, "V", 1, b"")[2:], "garbage", 0),
        (b"##", "bad_length", 2),
    ],
)
def test_made_up_troubles(frame, reason, detail):
    out, _ = one(frame)
    assert (reason_name(out.reason[0]), out.detail[0]) == (reason, detail)


# --- single facts ----------------------------------------------------------------------------------------


def report_2016(hex_blocks: str) -> bytes:
    return build_frame(16, 2, 0xFE, "LTEST000000000001", 1, bytes.fromhex("1a0101000000" + hex_blocks))


def report_2025(hex_blocks: str) -> bytes:
    return build_frame(25, 2, 0xFE, "LTEST000000000001", 1, bytes.fromhex("1a0101000000" + hex_blocks))


def test_position_sign_and_validity():
    """Status bit 0: 0 valid; bit 1 south; bit 2 west; longitude first; all ones is invalid."""
    out, _ = one(report_2016("05 07 00989680 01312D00"))
    assert (value(out, "location_valid"), value(out, "longitude_deg"), value(out, "latitude_deg")) == (0, -10.0, -20.0)
    out, _ = one(report_2016("05 00 FFFFFFFF 0ABA9501"))
    assert (value(out, "location_valid"), value(out, "longitude_deg")) == (1, "invalid")
    assert value(out, "latitude_deg") == "out_of_range"


def test_torque_bias_is_in_counts_in_2016_and_in_nm_in_2025():
    out, _ = one(report_2016("02 01 01 01 28 4E20 4E20 28 0000 2710"))
    assert (value(out, "motor_speed_rpm"), value(out, "motor_torque_nm"), value(out, "motor_bus_current_a")) == (
        0,
        0,
        0,
    )
    out, _ = one(report_2025("02 01 01 01 28 7D00 00030D40 28"))
    assert (value(out, "motor_speed_rpm"), value(out, "motor_torque_nm")) == (0, 0)


def test_sentinels_stay_apart_and_are_compared_at_the_field_width():
    out, _ = one(report_2016("01 FE FF 01 FFFE FFFFFFFF FFFF FFFE FE FF 0F FFFE 65 66"))
    assert value(out, "vehicle_state") == "abnormal"
    assert value(out, "charge_state") == "invalid"
    assert value(out, "speed_kmh") == "abnormal"
    assert value(out, "odometer_km") == "invalid"
    assert value(out, "total_voltage_v") == "invalid"
    assert value(out, "total_current_a") == "abnormal"
    assert value(out, "insulation_resistance_kohm") == "abnormal"  # the standard gives none here; senders use it
    assert value(out, "accelerator_pct") == "out_of_range"
    assert value(out, "brake_pct") == "out_of_range"


def test_brake_101_is_a_value_and_gear_a_bit_field():
    out, _ = one(report_2016("01 01 03 01 0000 00000000 0000 2710 64 01 FF 0000 64 65"))
    assert (value(out, "brake_pct"), value(out, "gear")) == (101, 255)
    out, _ = one(report_2025("01 01 03 01 0000 00000000 0000 7530 64 01 8E 0000"))
    assert (value(out, "gear"), value(out, "total_current_a")) == ("invalid", 0)  # bit 7: gear not valid


def test_split_cell_list_has_its_part():
    """The second part of a 384-cell pack: first cell 201, 184 of them; the total is not the list's length."""
    cells = "0F A0" * 184
    out, data = one(report_2016(f"08 01 01 0F A0 27 10 01 80 00 C9 B8 {cells}"))
    assert (out.part[0], value(out, "cell_count"), value(out, "pack_cell_total")) == (201, 184, 384)
    assert value(out, "cell_sum_v") == pytest.approx(4.0 * 184)
    assert span(out, data, b.CELLS) == bytes.fromhex(f"01 01 0FA0 2710 0180 00C9 B8 {cells}")


def test_fillers_are_no_measurements():
    """Cells of 0 and 0xFFFF, probes of 0, 0xFE and 0xFF (-40 °C and 255) are left out of the derived figures."""
    out, _ = one(report_2016("08 01 01 0FA0 2710 0005 0001 05 0000 FFFF 0FA1 0FA2 EA61 09 01 01 0005 00 FF FE 32 33"))
    assert [value(out, n) for n in ("cell_count", "cell_max_v", "cell_min_v", "cell_sum_v")] == [5, 4.002, 4.001, 8.003]
    assert [value(out, n) for n in ("probe_count", "probe_max_c", "probe_min_c")] == [5, 11, 10]


def test_count_at_a_sentinel_has_no_list():
    out, data = one(report_2025("02 FF 07 FE 08 FF 06 00 00000000 FF FE FF FE FF 04 0BB8"))
    assert value(out, "motor_count") == "invalid"
    assert value(out, "pack_count") == "abnormal"
    assert value(out, "cell_count") is None
    assert value(out, "motor_fault_count") == "abnormal"
    assert value(out, "crankshaft_rpm") == 3000
    assert span(out, data, b.FAULTS) == b""
    assert span(out, data, b.CELLS) == b"\xfe"


def test_several_motors_and_faults_are_kept_as_on_the_wire():
    motors = "02 01 01 28 4E20 4E20 28 0000 2710 02 02 29 4E20 4E20 29 0000 2710"
    faults = "01 000000C8 00 01 0000006F 00"
    out, data = one(report_2016(f"02 {motors} 07 01 80000003 {faults}"))
    assert span(out, data, b.MOTORS) == bytes.fromhex(motors)
    assert span(out, data, b.FAULTS) == bytes.fromhex(faults)
    assert int(out.num[0, INDEX["alarm_flags"]]) & 0xFFFFFFFF == 0x80000003
    assert (value(out, "pack_fault_count"), value(out, "motor_fault_count"), value(out, "engine_fault_count")) == (
        1,
        0,
        1,
    )


def test_nothing_is_lost_of_custom_repeated_and_torn_blocks():
    out, data = one(report_2016("04 01 07D0 00C8 81 0003 AABBCC 04 02 0001 0001 05 00 0001"))
    assert rest_blocks(out, data) == [(0x81, b"\xaa\xbb\xcc"), (4, bytes.fromhex("0200010001")), (5, b"\x00\x00\x01")]
    assert out.notes[0] == b.NOTE_CUSTOM_BLOCK | b.NOTE_REPEATED_BLOCK | b.NOTE_TRUNCATED
    assert value(out, "crankshaft_rpm") == 2000
    assert value(out, "location_valid") is None


def test_unknown_block_keeps_the_rest():
    out, data = one(report_2016("04 01 07D0 00C8 0A 01 02 03"))
    assert rest_blocks(out, data) == [(0x0A, b"\x01\x02\x03")]
    assert out.notes[0] == b.NOTE_UNKNOWN_BLOCK


def test_signature_and_what_follows_it():
    out, data = one(report_2025("04 0BB8 FF 01 0002 AABB 0001 CC 99"))
    assert rest_blocks(out, data) == [(0xFF, bytes.fromhex("010002AABB0001CC")), (0, b"\x99")]
    assert out.notes[0] == b.NOTE_SIGNATURE | b.NOTE_TRAILING


def test_the_same_type_is_another_block_in_the_other_edition():
    extremes = "06 01 03 0FAA 01 32 0F96 01 02 46 01 09 3C"
    assert value(one(report_2016(extremes))[0], "max_cell_voltage_v") == 4.01
    assert value(one(report_2025(extremes))[0], "max_cell_voltage_v") is None


def test_other_commands_carry_key_and_time_only():
    out, _ = one(frame_of("36n-logout"))
    assert (out.kind[0], out.edition[0], out.reason[0]) == (4, 16, 0)
    assert out.time_s[0] == datetime.fromisoformat("2018-06-22T16:21:21+08:00").timestamp()
    out, _ = one(frame_of("36n-heartbeat"))
    assert (out.kind[0], out.time_s[0]) == (7, 0)


def test_lines_to_skip_are_left_alone():
    frame = frame_of("36n-doc-realtime")
    data = np.frombuffer(bytearray(frame * 3), np.uint8)
    start = np.arange(3, dtype=np.int64) * len(frame)
    frames = Frames(
        data=data, start=start, length=np.full(3, len(frame), np.int32), received_us=np.zeros(3, np.int64),
        door=np.ones(3, np.uint8), codec=np.array([1, 2, 1], np.uint8),
        reason=np.array([0, 0, CODE["foreign_vin"]], np.uint8), detail=np.zeros(3, np.uint32),
        source=np.zeros(3, np.uint32), partition=np.zeros(3, np.int32), offset=np.zeros(3, np.int64),
        position=np.zeros(3, np.int32),
    )  # fmt: skip
    out = decode(frames)
    assert out.kind.tolist() == [2, 0, 0]
    assert out.reason.tolist() == [0, 0, 0]
    assert not out.state[1:].any()


def test_frames_anywhere_in_the_data():
    """Spans are offsets in ``data``; a frame outside it is refused, not read."""
    frame = frame_of("emqx-cells-2016")
    data = np.frombuffer(bytearray(b"\xee" * 7 + frame), np.uint8)
    out = Batch.empty(2, len(data))
    decode_frames(
        data, np.array([7, 8], np.int64), np.full(2, len(frame), np.int32), codec_column(2), np.zeros(2, np.uint8), out
    )
    assert out.reason.tolist() == [0, CODE["bad_length"]]
    assert span(out, data, b.CELLS) == frame[31:-1]


def test_bounds_mode_runs_clean_on_garbage(tmp_path):
    """The kernels with bounds checking, on random and damaged frames: any stray read would be an IndexError."""
    root = Path(__file__).parents[2]
    environment = dict(os.environ, NEVSTREAM_KERNELS="bounds", NUMBA_CACHE_DIR=str(tmp_path), PYTHONPATH=str(root))
    command = [sys.executable, str(Path(__file__).parent / "making.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "clean\n", done.stderr


def test_time_is_beijing_and_binary():
    rng = Random(3)
    for _ in range(50):
        six = time_bytes(rng)
        frame = build_frame(16, 2, 0xFE, "V", 1, six + bytes.fromhex("040107D000C8"))
        expected = datetime(2000 + six[0], *six[1:]).timestamp() - datetime(1970, 1, 1).timestamp() - 8 * 3600
        out, _ = one(frame)
        assert out.time_s[0] == expected
