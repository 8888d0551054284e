"""The annotated view: every byte once, nothing raises, and it says what is wrong and where."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.gbt32960.commands import Command
from schemas.gbt32960.explain import explain
from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.reference import decode_frame
from tests.gbt32960.making import report

GOLDEN = {entry["id"]: entry for entry in json.loads((Path(__file__).parent / "data" / "frames.json").read_text())}


def rows_of(name: str):
    return explain(bytes.fromhex(GOLDEN[name]["hex"]))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_rows_hold_every_byte_once(name):
    rows = rows_of(name)
    assert "".join(row.bytes_hex for row in rows) == GOLDEN[name]["hex"]
    at = 0
    for row in rows:
        assert row.offset == at
        at += len(row.bytes_hex) // 2


@pytest.mark.parametrize("name", sorted(n for n, entry in GOLDEN.items() if entry["valid"] and entry["conforms"]))
def test_conforming_frames_have_no_structural_problem(name):
    for row in rows_of(name):
        allowed = ("outside the valid range", "encrypted", "reserved", "marked as not valid", "a second block")
        assert not row.problem or any(word in row.problem for word in allowed), row


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=80), st.integers(0, 2**32), st.integers(0, 400), st.booleans())
def test_anything_can_be_explained(garbage, seed, cut, is_report):
    data = report(Random(seed), 25 if seed % 2 else 16) if is_report else b"##" + garbage
    data = data[: max(0, len(data) - cut)] if is_report else data
    assert "".join(row.bytes_hex for row in explain(data)) == data.hex()


@settings(deadline=None, max_examples=150)
@given(
    st.binary(max_size=90), st.sampled_from([*map(int, Command), 0x40, 0xC0]), st.sampled_from([16, 25]),
    st.sampled_from([0xFE, 1]),
)  # fmt: skip
def test_every_command_with_any_data_unit(unit, command, edition, ack):
    frame = build_frame(edition, command, ack, "LTEST000000000001", 1, unit)
    assert "".join(row.bytes_hex for row in explain(frame)) == frame.hex()
    json.dumps(decode_frame(frame))
    timed = build_frame(edition, command, ack, "LTEST000000000001", 1, bytes([26, 1, 1, 1, 1, 1]) + unit)
    assert "".join(row.bytes_hex for row in explain(timed)) == timed.hex()
    json.dumps(decode_frame(timed))


def test_a_field_reads_like_the_table():
    row = next(row for row in rows_of("36n-doc-realtime") if row.field == "vehicle.mileage_km")
    assert (row.offset, row.bytes_hex, row.raw, row.value, row.unit) == (36, "001b390b", "1784075", "178407.5", "km")
    assert row.clause == "table 9, B.4"


@pytest.mark.parametrize(
    ("name", "field", "problem"),
    [
        ("36n-platform-logout-bad-bcc", "check byte", "should be 0xf9"),
        ("gk-platform-login", "data unit length", "41 bytes are present"),
        ("jtne-login-aes128", "data unit", "encrypted"),
        ("0bit-motor-no-count", "blocks", "first block"),
        ("emqx-custom-nolen", "type", "runs past"),
        ("emqx-fuelcell-2025", "fuel_cell.h2_max_temp_c", "outside the valid range 0..250"),
    ],
)
def test_it_says_what_is_wrong(name, field, problem):
    assert any(row.field == field and problem in row.problem for row in rows_of(name))
