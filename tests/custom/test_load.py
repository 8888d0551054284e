"""What a signals file may not say: one line each, where it is found, and what is said of it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.custom.load import loads
from schemas.custom.model import SignalsFileError
from schemas.custom.places import places
from schemas.custom.units import snake, unit_end
from schemas.signals import SIGNALS

BLOCK = "[[block]]\ntype = 0x81\nbytes = 4\n"  # lines 1-3
SIGNAL = BLOCK + '[[block.signal]]\nname = "own_one"\nbyte = 0\n'  # lines 4-6
CAN = '[[can]]\ntype = 0x90\nframe = ["id u32", "dlc u8", "data 8"]\ndbc = "x.dbc"\n'  # lines 1-4
PICK = '[[can.signal]]\nmessage = "M"\nsignal = "Cold"\n'  # lines 5-7
DBC = 'VERSION ""\nNS_ :\nBS_:\nBU_: A\nBO_ 256 M: 8 A\n SG_ Cold : 0|8@1+ (1,0) [0|100] "V" A\n'
DBC += ' SG_ SOC : 56|8@1+ (1,0) [0|100] "%" A\n'


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        # not TOML at all
        ("[[block]\n", 1, 8, "not TOML"),
        ('a = "x', 1, 7, "not TOML"),
        ("", 1, 1, "defines nothing"),
        ("[[blok]]\ntype = 1\n", 1, 1, "blok is not a key of the file; did you mean block?"),
        ("block = 3\n", 1, 9, "write [[block]]"),
        ("block = [1]\n", 1, 10, "must be a table"),
        # rules
        ("[[block]]\n", 1, 1, "a block has no type; add type = ..."),
        ("[[block]]\ntype = 0x7F\n", 2, 8, "type = 127 cannot be used; give a block type, 0x80 to 0xFE"),
        ("[[block]]\ntype = 0xFF\n", 2, 8, "0x80 to 0xFE"),
        (BLOCK + "naem = 1\n", 4, 1, "did you mean name?"),
        (BLOCK, 1, 1, "has no signals"),
        (BLOCK + 'vin = "L TEST"\n', 4, 7, "VIN prefixes"),
        (BLOCK + "edition = 2020\n", 4, 11, "2016 or 2025"),
        (BLOCK + 'byte_order = "motorola"\n', 4, 14, '"big" or "little"'),
        (SIGNAL + '[[block]]\ntype = 0x81\n[[block.signal]]\nname = "x"\nbyte = 0\n', 8, 8, "is described on line 1"),
        # names and units
        (BLOCK + '[[block.signal]]\nname = "Cabin"\nbyte = 0\n', 5, 8, "lower case"),
        (BLOCK + '[[block.signal]]\nname = "_flaws"\nbyte = 0\n', 5, 8, "lower case"),
        (
            BLOCK + '[[block.signal]]\nname = "soc_pct"\nunit = "%"\nbyte = 0\n',
            5,
            8,
            "a signal of the standard; choose another, such as own_soc_pct",
        ),
        (BLOCK + '[[block.signal]]\nname = "time"\nbyte = 0\n', 5, 8, "a column of every row"),
        (BLOCK + '[[block.signal]]\nname = "cabin_temp"\nunit = "°C"\nbyte = 0\n', 5, 8, "call it cabin_temp_c"),
        (SIGNAL + '[[block.signal]]\nname = "own_one"\nbyte = 1\n', 8, 8, "is used on line 5 already"),
        (
            SIGNAL + '[[block]]\ntype = 0x82\n[[block.signal]]\nname = "own_one"\nbyte = 1\n',
            10,
            8,
            "one report may have both",
        ),
        (
            SIGNAL + '[[json]]\nfield = "x"\nname = "own_one"\n[[json]]\nfield = "y"\nname = "own_one"\n',
            12,
            8,
            "is used on line 9",
        ),
        (
            SIGNAL + '[[json]]\nfield = "x"\nname = "own_a"\n[[json]]\nfield = "x"\nname = "own_b"\n',
            11,
            9,
            "is mapped on line 8",
        ),
        (BLOCK + '[[block.signal]]\nname = "x"\nbyte = 0\nvalue = 1\n', 7, 1, "is not a key of a signal of a block"),
        # places
        (BLOCK + '[[block.signal]]\nname = "x"\n', 4, 1, "has no byte; add byte = ..."),
        (BLOCK + '[[block.signal]]\nname = "x"\nbyte = 4\n', 6, 8, "byte 4 is outside the block, which has 4 bytes"),
        (BLOCK + '[[block.signal]]\nname = "x"\nbyte = 3\nbytes = 2\n', 6, 8, "bytes 3 to 4 are outside"),
        (BLOCK + '[[block.signal]]\nname = "x"\nbyte = -1\n', 6, 8, "offset in the body, from 0"),
        (
            BLOCK + '[[block.signal]]\nname = "x"\nbyte = 0\nbytes = 1\nbit = 5\nbits = 4\n',
            9,
            8,
            "bits 5 to 8 are not in 1 bytes; give bytes = 2",
        ),
        (
            SIGNAL + '[[block.signal]]\nname = "x"\nbyte = 0\nbit = 7\n',
            9,
            8,
            "x and own_one (line 4) overlap at byte 0, bit 7",
        ),
        (
            BLOCK + '[[block.signal]]\nname = "x"\nbyte = 0\nbytes = 3\nnumber = "float"\n',
            8,
            10,
            "bytes = 4 or bytes = 8",
        ),
        (BLOCK + '[[block.signal]]\nname = "x"\nbyte = true\n', 6, 8, "byte = True cannot be used"),
        # values
        (SIGNAL + "scale = 0\n", 7, 9, "not 0"),
        (SIGNAL + "scale = nan\n", 7, 9, "a number"),
        (SIGNAL + 'scale = "0.1"\n', 7, 9, "a number"),
        (SIGNAL + "range = [5, 1]\n", 7, 9, "is empty"),
        (SIGNAL + "range = [1]\n", 7, 9, "two numbers"),
        (SIGNAL + "range = [300, 400]\n", 7, 9, "no raw value of 8 bits lies in range"),
        (SIGNAL + "sentinels = { invalid = 256 }\n", 7, 13, "in 8 bits"),
        (SIGNAL + "sentinels = { invalid = 255, abnormal = -1 }\n", 7, 13, "each once"),
        (SIGNAL + "sentinels = { wrong = 1 }\n", 7, 13, '"standard", or raw values'),
        (SIGNAL + "codes = { off = 0 }\n", 7, 9, "numbers and words"),
        ('[[json]]\nname = "x"\n', 1, 1, "has no field"),
        # CAN
        (CAN.replace('"data 8"', '"data 99"'), 3, 9, "a list such as"),
        (CAN.replace('"id u32", ', ""), 3, 9, "needs an id and data"),
        (CAN.replace('"dlc u8", "data 8"', '"data dlc", "dlc u8"'), 3, 9, "must be known by then"),
        (CAN.replace('"data 8"', '"data dlc", "skip 1", "id u16"'), 3, 9, "comes after another"),
        (CAN.replace("x.dbc", "none.dbc"), 4, 7, "No such file"),
        (CAN, 4, 7, "'soc_pct' of M.SOC is a signal of the standard; choose another, such as own_soc_pct; name it in"),
        (CAN + PICK.replace('"M"', '"N"'), 6, 11, "there is no message 'N'"),
        (CAN + PICK.replace("Cold", "Could"), 7, 10, "there is no signal 'Could' in M of"),
        (CAN + PICK + 'name = "cold"\n', 8, 8, "call it cold_v"),
        (CAN + PICK + "range = [500, 600]\n", 8, 9, "no raw value of 8 bits"),
        (CAN + PICK + PICK, 10, 10, "is used on line 7"),
        (
            CAN.replace("data 8", "data 4") + PICK.replace("Cold", "SOC") + 'name = "own_soc_pct"\n',
            3,
            9,
            "is in byte 7 of its frame, and data has 4",
        ),
        (CAN + 'encoding = "klingon"\n', 5, 12, "an encoding"),
    ],
)
def test_a_mistake_is_found_where_it_is(tmp_path: Path, text: str, line: int, column: int, said: str) -> None:
    if "[[can]]" in text:
        pytest.importorskip("cantools")
    (tmp_path / "x.dbc").write_text(DBC)
    with pytest.raises(SignalsFileError) as caught:
        loads(text, "signals.toml", tmp_path)
    assert any((m.line, m.column) == (line, column) and said in m.text for m in caught.value.mistakes), str(
        caught.value
    )
    assert f"signals.toml:{line}:{column}: " in str(caught.value)


def test_all_mistakes_at_once() -> None:
    text = BLOCK + '[[block.signal]]\nname = "A"\nbyte = 0\n[[block.signal]]\nname = "b"\nbyte = 9\n[[json]]\n'
    with pytest.raises(SignalsFileError) as caught:
        loads(text)
    assert [(m.line, m.column) for m in caught.value.mistakes] == [(5, 8), (9, 8), (10, 1)]


def test_not_utf8() -> None:
    with pytest.raises(SignalsFileError, match=r"signals\.toml:2:8: not UTF-8"):
        loads(b"# x\nname = \xb0C\n")


@pytest.mark.parametrize(
    ("dbc", "line", "column", "said"),
    [
        (DBC.replace("BO_ 256", "BOO 256"), 5, 5, "not a DBC"),
        (DBC.replace("SG_ SOC : 56|8", "SG_ SOC : 60|8"), 7, 2, "The signal SOC does not fit in message M"),
        (DBC.replace("SG_ SOC : 56|8", "SG_ SOC : 4|8"), 7, 2, "are overlapping"),
    ],
)
def test_a_mistake_in_the_dbc(tmp_path: Path, dbc: str, line: int, column: int, said: str) -> None:
    pytest.importorskip("cantools")
    (tmp_path / "x.dbc").write_text(dbc)
    with pytest.raises(SignalsFileError) as caught:
        loads(CAN, "signals.toml", tmp_path)
    (mistake,) = caught.value.mistakes
    assert mistake.file.endswith("x.dbc")
    assert said in mistake.text
    assert (mistake.line, mistake.column) == (line, column)


def test_without_cantools_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cantools", None)
    with pytest.raises(SignalsFileError, match=r"4:7: .*pip install 'nevstream\[dbc\]'"):
        loads(CAN, "signals.toml", tmp_path)


def test_the_same_name_for_other_vehicles_or_editions() -> None:
    parts = [
        ("0x81", 'vin = "LA"'),
        ("0x82", 'vin = "LB"'),
        ("0x83", 'vin = "LC"\nedition = 2016'),
        ("0x84", 'vin = "LC"\nedition = 2025'),
    ]
    text = "".join(
        f'[[block]]\ntype = {kind}\n{who}\n[[block.signal]]\nname = "door_count"\nbyte = {i}\n'
        for i, (kind, who) in enumerate(parts)
    )
    file = loads(text + '[[json]]\nfield = "doors"\nname = "door_count"\n')
    assert list(file.signals) == ["door_count"]


def test_the_catalogue_keeps_the_rule_of_units() -> None:
    odd = {"current"}
    for signal in SIGNALS:
        end = unit_end(signal.unit)
        assert not end or signal.name.endswith("_" + end) or signal.name.split("_")[-1] in odd, signal


@pytest.mark.parametrize(
    ("unit", "end"),
    [
        ("°C", "c"),
        ("degC", "c"),
        ("MΩ", "megohm"),
        ("mΩ", "mohm"),
        ("kWh/100 km", "kwh_per_100km"),
        ("", ""),
        ("l/h", "l_per_h"),
        ("m³", "m3"),
    ],
)
def test_units(unit: str, end: str) -> None:
    assert unit_end(unit) == end


def test_snake() -> None:
    assert [snake(name) for name in ("BattCellTemp_Max", "SOC", "ABSActive", "x1Y2", "__a__")] == [
        "batt_cell_temp_max",
        "soc",
        "abs_active",
        "x1_y2",
        "a",
    ]


# -- places ----------------------------------------------------------------------------------------------

keys = st.one_of(st.from_regex(r"[A-Za-z0-9_-]{1,4}", fullmatch=True), st.sampled_from(['"a b"', "'c.d'", '"\\u00e9"']))
scalars = st.sampled_from(
    ["1", "-0.5", "true", '"x#]}"', "'[\"'", '"""a\n"b""c""""', "'''x\n'y'''", "1979-05-27 07:32:00", "0x81"]
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[ " + ", # c]\n ".join(items) + "\n]"),
    max_leaves=5,
)
lines = st.one_of(
    st.tuples(keys, values).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    st.tuples(keys, keys, scalars).map(lambda t: f"{t[0]} . {t[1]}={t[2]} # x = 1"),
    st.tuples(keys, keys, scalars).map(lambda t: f"{t[0]} = {{ {t[1]} = {t[2]}, zz.y = [1, {{a = 2}}] }}"),
    keys.map(lambda key: f"[{key}]"),
    keys.map(lambda key: f"[[ {key} ]]"),
    st.tuples(keys, keys).map(lambda t: f"[[{t[0]}.{t[1]}]]"),
    st.just("# comment [x]"),
    st.just(""),
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    found = {path}
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= paths(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            found |= paths(inner, (*path, i))
    return found


@settings(deadline=None, max_examples=300)
@given(st.lists(lines, max_size=8).map("\n".join), st.booleans())
def test_every_key_of_a_valid_file_has_its_place(text: str, windows: bool) -> None:
    text = text.replace("\n", "\r\n") if windows else text
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found = places(text)
    assert found.keys() == paths(values)
    rows = text.replace("\r\n", "\n").split("\n")
    for path, place in found.items():
        if path and isinstance(path[-1], str):
            row, column = place.key
            assert rows[row - 1][column - 1] in "[\"'" or rows[row - 1][column - 1 :].startswith(path[-1]), (
                path,
                place,
            )


def test_places_by_hand() -> None:
    found = places('a = 1\n[[block]]\n  name = "x"  # y\nr = [1,\n 22]\n[[block]]\n[block.sub]\nk.l = { m = 3 }\n')
    assert found["a",].value == (1, 5)
    assert found["block", 0, "name"].key == (3, 3)
    assert found["block", 0, "name"].value == (3, 10)
    assert found["block", 0, "r", 1].value == (5, 2)
    assert found["block", 1].key == (6, 1)
    assert found["block", 1, "sub", "k", "l", "m"].value == (8, 13)
