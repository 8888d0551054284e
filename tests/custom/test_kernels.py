"""Kernels against their twins, over layouts and bytes at random; numbers printed exactly."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.batch import NOTE_CUSTOM_BLOCK, NOTE_TRUNCATED
from schemas.custom import extract, text
from schemas.custom.extract import Extractor
from schemas.custom.model import (
    EXTENDED,
    BlockRule,
    CanLayout,
    CanMessage,
    CanRule,
    Condition,
    Field,
    Match,
    Number,
    Signal,
    SignalsFile,
    bits_of,
)
from schemas.custom.tables import compile_tables
from schemas.signals import State

pytestmark = pytest.mark.slow

QUICK = settings(deadline=None, max_examples=200)
VINS = ("LTEST000000000001", "LABC0000000000002", "")
NAMES = [f"s{i}" for i in range(6)]
decimals = st.decimals(-1000, 1000, allow_nan=False, places=3)


@st.composite
def bits(draw: st.DrawFn) -> Any:
    size = draw(st.sampled_from([1, 1, 2, 3, 4, 8, 9]))
    bit = draw(st.integers(0, 8 * size - 1))
    count = draw(st.integers(1, min(64, 8 * size - bit)))
    return bits_of(draw(st.integers(0, 5)), size, draw(st.booleans()), bit, count)


@st.composite
def field(draw: st.DrawFn, name: str) -> Field:
    number = draw(st.sampled_from(Number))
    place = draw(bits())
    if number >= Number.FLOAT32:
        size = 4 if number is Number.FLOAT32 else 8
        place = bits_of(draw(st.integers(0, 6)), size, draw(st.booleans()), 0, 8 * size)
    low, high = None, None
    if draw(st.integers(0, 2)) == 0:
        low, high = sorted(draw(st.tuples(decimals, decimals)))
    patterns = st.integers(0, 2**place.count - 1)
    sentinels = draw(st.dictionaries(patterns, st.sampled_from([State.ABNORMAL, State.INVALID]), max_size=2))
    # selectors of one or two bits, so that they often hold
    one = st.builds(lambda byte, little: bits_of(byte, 1, little, 2, 2), st.integers(0, 9), st.booleans())
    condition = st.builds(Condition, one, st.frozensets(st.integers(0, 3), min_size=1))
    conditions = draw(st.lists(condition, max_size=2)) if draw(st.booleans()) else []
    scale = draw(st.one_of(st.just(Decimal(1)), decimals.filter(bool), st.just(Decimal(1) / 2**16)))
    return Field(
        name,
        place,
        number,
        scale,
        draw(decimals),
        low,
        high,
        () if number >= Number.FLOAT32 else tuple(sentinels.items()),
        tuple(conditions),
        draw(st.integers(0, 6)),
    )


def fields() -> Any:
    return st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True).flatmap(
        lambda names: st.tuples(*[field(name) for name in names])
    )


vins = st.one_of(
    st.just(()),
    st.lists(st.sampled_from(["L", "LTEST", "LABC", "LTEST000000000001"]), max_size=2, unique=True).map(tuple),
)
match = st.builds(Match, st.sampled_from([0x80, 0x80, 0x81]), vins, st.sampled_from([0, 0, 16, 25]))
layouts = st.builds(
    CanLayout,
    head=st.integers(0, 3),
    id_at=st.just(0),
    id_bytes=st.sampled_from([2, 4]),
    length_at=st.sampled_from([-1, 4]),
    length_bytes=st.integers(1, 2),
    length_is_code=st.booleans(),
    data_at=st.integers(6, 7),
    data_bytes=st.sampled_from([1, 8, 12]),
    tail=st.integers(0, 2),
    little=st.booleans(),
    id_mask=st.sampled_from([0x1FFF_FFFF, 0xFF00]),
)
messages = st.lists(
    st.builds(CanMessage, st.sampled_from([0, 1, 0x100, 0xFF00, EXTENDED, EXTENDED | 0x1234]), st.just("m"), fields()),
    max_size=4,
    unique_by=lambda message: message.key,
).map(tuple)


@st.composite
def layout(draw: st.DrawFn) -> CanLayout:
    made = draw(layouts)
    if made.length_at >= 0 and draw(st.booleans()):
        return CanLayout(**{**{name: getattr(made, name) for name in CanLayout.__slots__}, "data_bytes": -1, "tail": 0})
    return made


files = st.builds(
    SignalsFile,
    st.just("x"),
    st.just({name: Signal(name, "", "") for name in NAMES}),
    st.lists(st.builds(BlockRule, match, st.just("b"), fields()), min_size=1, max_size=3).map(tuple),
    st.lists(st.builds(CanRule, match, st.just("c"), layout(), messages), max_size=2).map(tuple),
    st.just(()),
)
# ids and lengths that mean something are rare among random bytes
known_frames = st.sampled_from(
    [b"\0\0\1\0\x08\x08", b"\1\0\0\0\x08\0", b"\x80\0\x12\x34\x0f\0", b"\0\0\0\0\x08\0", b"\0\1\0\0"]
)
framed = st.lists(st.tuples(known_frames, st.binary(min_size=8, max_size=12)).map(b"".join), min_size=1, max_size=3)
bodies = st.one_of(st.binary(max_size=6), st.binary(min_size=8, max_size=20), framed.map(b"".join), st.just(bytes(14)))
blocks = st.lists(st.tuples(st.sampled_from([0x80, 0x80, 0x80, 0x81, 0xFE, 0, 0xFF]), bodies), min_size=1, max_size=4)
rows = st.lists(st.tuples(st.sampled_from(VINS), st.sampled_from([16, 25]), blocks), min_size=1, max_size=5)


@QUICK
@given(files, rows, st.sampled_from([NOTE_CUSTOM_BLOCK, NOTE_CUSTOM_BLOCK | NOTE_TRUNCATED]))
def test_kernel_and_twin_find_the_same(make: SimpleNamespace, file: SignalsFile, given_rows: Any, notes: int) -> None:
    extractor = Extractor(compile_tables(file))
    frames, batch = make.batch(given_rows, notes)
    lines = np.arange(len(given_rows))
    fast = extractor.values(frames, batch, lines)
    chosen = extract._extract
    extract._extract = chosen.twin
    try:
        slow = extractor.values(frames, batch, lines)
    finally:
        extract._extract = chosen
    for name, a, b in zip(("num", "digits", "state"), fast, slow, strict=True):
        assert (a == b).all(), (name, a, b)


cells = st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 18), st.sampled_from([0, 1, 1, 1, 2, 3, 4]))


@QUICK
@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=6))
@example([[(5, 2, 1), (-5, 18, 1), (-(2**63), 3, 1)]])
@example([[(0, 18, 1), (100, 2, 1), (1500, 3, 0)], [(0, 0, 4), (0, 0, 3), (0, 0, 2)], [(0, 0, 0)] * 3])
def test_text_is_the_twins_and_exact(given_cells: Any) -> None:
    num, digits, state = (
        np.array([[cell[i] for cell in row] for row in given_cells], kind)
        for i, kind in enumerate((np.int64, np.uint8, np.uint8))
    )
    labels = b'"a":"bb":"c_kpa":'
    at = np.array([0, 4, 9, len(labels)], np.int64)
    room = len(given_cells) * (len(labels) + 3 * text.VALUE_BYTES + text.FLAWS_BYTES)
    written = []
    for write in (text.write_text, text.write_text.twin):
        out, span = np.zeros(room, np.uint8), np.zeros((len(num), 2), np.int64)
        used = int(write(num, digits, state, np.frombuffer(bytearray(labels), np.uint8), at, out, span))
        assert used <= room
        written.append((out[:used].tobytes(), span.tolist()))
    assert written[0] == written[1]
    import json

    for row, (begin, length) in zip(given_cells, written[0][1], strict=True):
        found = json.loads(written[0][0][begin : begin + length] or b"{}", parse_float=Decimal, parse_int=Decimal)
        flaws = found.pop("_flaws", {})
        names = ["a", "bb", "c_kpa"]
        assert found == {n: Decimal(v).scaleb(-d) for n, (v, d, s) in zip(names, row, strict=True) if s == State.VALID}
        assert flaws == {n: State(s).name.lower() for n, (_, _, s) in zip(names, row, strict=True) if s > State.VALID}


NARROW = '[[block]]\ntype = 0x81\nvin = "LTEST"\n[[block.signal]]\nname = "door_count"\nbyte = 0\n'
WIDE = '[[block]]\ntype = 0x81\n[[block.signal]]\nname = "door_count"\nbyte = 1\n'
NEWER = '[[block]]\ntype = 0x81\nedition = 2025\n[[block.signal]]\nname = "door_count"\nbyte = 2\n'


@pytest.mark.parametrize(
    ("vin", "edition", "found"),
    [
        ("LTEST000000000001", 16, 1),  # the longer prefix first
        ("LTEST000000000001", 25, 1),  # and before a named edition
        ("LOTHER00000000001", 25, 3),  # a named edition before none
        ("LOTHER00000000001", 16, 2),
    ],
)
@pytest.mark.parametrize("order", [NARROW + WIDE + NEWER, NEWER + WIDE + NARROW])
def test_the_most_particular_rule_is_taken(
    make: SimpleNamespace, vin: str, edition: int, found: int, order: str
) -> None:
    assert make.decoded(order, [(0x81, b"\1\2\3")], vin=vin, edition=edition) == {"door_count": found}


def test_a_cut_off_block_is_not_read(make: SimpleNamespace) -> None:
    # a truncated custom block is kept with its length word: read as a body it would give the length's first byte
    notes = NOTE_CUSTOM_BLOCK | NOTE_TRUNCATED
    assert make.decoded(WIDE, [(0x81, b"\1\2\3"), (0x81, b"\x00\x09\x05")], notes=notes) == {"door_count": 2}
    assert make.decoded(WIDE, [(0x81, b"\x00\x09\x05")], notes=notes) is None


def test_a_later_block_overwrites_and_other_rows_stay(make: SimpleNamespace) -> None:
    tables = compile_tables(__import__("schemas.custom.load", fromlist=["loads"]).loads(WIDE))
    frames, batch = make.batch(
        [(make.VIN, 16, [(0x81, b"\0\5"), (0x81, b"\0\6")]), (make.VIN, 16, []), (make.VIN, 16, [(0x81, b"\0")])]
    )
    batch.extra_text = np.frombuffer(bytearray(b'{"json":1}'), np.uint8)  # what the JSON door has put there
    batch.extra[1] = 0, 10
    found = Extractor(tables).add_extra(frames, batch, np.array([0, 2]))
    assert make.column(batch) == [{"door_count": 6}, {"json": 1}, None]
    assert found.rows == 1


def test_every_row_in_chunks(make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from schemas.custom.load import loads

    monkeypatch.setattr(extract, "_CELLS", 3)
    frames, batch = make.batch([(make.VIN, 16, [(0x81, bytes([0, i]))]) for i in range(8)])
    found = Extractor(compile_tables(loads(WIDE + "range = [0, 5]\n"))).add_extra(frames, batch, np.arange(8))
    expected = [{"door_count": i} for i in range(6)] + [{"_flaws": {"door_count": "out_of_range"}}] * 2
    assert make.column(batch) == expected
    assert found.rows == 8
    assert found.flaws[0, State.OUT_OF_RANGE] == 2


@pytest.mark.parametrize(
    ("lines", "body", "found"),
    [
        # sixteen-bit steps of 2**-16, exact to the last digit
        ("bytes = 2\nscale = 0.0000152587890625", "0001", "0.0000152587890625"),
        # too fine for 32 bits of it: rounded to what a double holds (65535.9999847)
        ("bytes = 4\nscale = 0.0000152587890625", "ffffffff", "65535.999984741"),
        ("bytes = 8", "7fffffffffffffff", 2**63 - 1),
        ("bytes = 8", "8000000000000000", None),  # beyond a signed 64-bit number
        ('bytes = 8\nnumber = "signed"', "8000000000000001", -(2**63) + 1),
        ("bytes = 2\nscale = -0.5\noffset = 10", "0015", "-0.5"),
        ('bytes = 4\nnumber = "float"', "7fc00000", None),
        ('bytes = 8\nnumber = "float"\ndecimals = 9', "400921fb54442d18", "3.141592654"),
        ('bytes = 4\nnumber = "float"', "7f7fffff", None),  # 3.4e38
    ],
)
def test_numbers(make: SimpleNamespace, lines: str, body: str, found: Any) -> None:
    decoded = make.decoded(
        f'[[block]]\ntype = 0x81\n[[block.signal]]\nname = "x"\nbyte = 0\n{lines}\n', [(0x81, bytes.fromhex(body))]
    )
    if found is None:
        assert set(decoded) == {"_flaws"}
    else:
        assert decoded == {"x": found}
