"""CAN decoding held to cantools on random databases and random frames, value by value."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schemas
from schemas.custom.load import loads
from schemas.custom.tables import compile_tables

pytestmark = pytest.mark.slow

cantools = pytest.importorskip("cantools")

EXAMPLES = Path(schemas.__file__).parent / "examples"
TOML = '[[can]]\ntype = 0x90\nframe = ["id u32", "dlc u8", "data 8"]\ndbc = "x.dbc"\nprefix = "can_"\n'
HEAD = 'VERSION ""\nNS_ :\nBS_:\nBU_: A\n'
QUICK = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def file_of(tmp_path: Path, dbc: str, toml: str = TOML) -> Any:
    (tmp_path / "x.dbc").write_text(dbc, "utf-8")
    return loads(toml, "signals.toml", tmp_path)


def bits_taken(start: int, length: int, little: bool) -> set[int]:
    """DBC bit numbers of a signal: up from the least significant, or down from the most significant."""
    if little:
        return set(range(start, start + length))
    first = start // 8 * 8 + 7 - start % 8  # counted from byte 0 bit 7 down
    return {i // 8 * 8 + 7 - i % 8 for i in range(first, first + length)}


@st.composite
def signal(draw: st.DrawFn, name: str, used: set[int], mux: str = "") -> str | None:
    """One line of a DBC, or None where its bits are taken."""
    length = draw(st.integers(1, 20))
    little = draw(st.booleans())
    start = draw(st.integers(0, 64 - length))
    if not little:
        start = start // 8 * 8 + 7 - start % 8
    if bits_taken(start, length, little) & used:
        return None
    if not mux:
        used |= bits_taken(start, length, little)
    factor = draw(st.sampled_from(["1", "0.1", "0.25", "-2", "0.0078125", "1E-05", "100"]))
    offset = draw(st.sampled_from(["0", "-40", "0.5", "1000"]))
    sign = draw(st.sampled_from("+-"))
    return f' SG_ {name}{mux} : {start}|{length}@{int(little)}{sign} ({factor},{offset}) [0|0] "" A'


@st.composite
def database(draw: st.DrawFn) -> str:
    lines: list[str | None] = [HEAD]
    for can_id in (0x100, 0x7FF, 0x80000000 | 0x18FF1234):
        used: set[int] = {63}
        lines += [f"BO_ {can_id} M{can_id & 0xFFFF}: 8 A", f' SG_ Last{can_id & 0xFFFF} : 63|1@1+ (1,0) [0|0] "" A']
        lines += [draw(signal(f"Sig{can_id & 0xFFFF}x{i}", used)) for i in range(5)]
    lines.append('BO_ 291 Mux: 8 A\n SG_ Which M : 0|2@1+ (1,0) [0|0] "" A')
    lines += [draw(signal(f"Muxed{i}", {0, 1}, f" m{i}")) for i in range(4)]
    return "\n".join(line for line in lines if line) + "\n"


frames = st.lists(
    st.tuples(st.sampled_from([0x100, 0x7FF, 0x98FF1234, 291, 0x18FF1234, 5]), st.binary(min_size=8, max_size=8)),
    min_size=1,
    max_size=6,
)


@QUICK
@given(database(), frames)
def test_values_are_those_of_cantools(make: SimpleNamespace, tmp_path: Path, dbc: str, sent: Any) -> None:
    judge = cantools.database.load_string(dbc, "dbc", strict=True)
    compared = compare(make, file_of(tmp_path, dbc), judge, sent)
    assert compared or all(can_id == 5 for can_id, _ in sent)


def compare(make: SimpleNamespace, file: Any, judge: Any, sent: Any, **rest: Any) -> int:
    block = b"".join(can_id.to_bytes(4, "big") + b"\x08" + data for can_id, data in sent)
    found = make.decoded(compile_tables(file), [(0x90, block)], **rest) or {}
    expected: dict[str, Any] = {}
    for can_id, data in sent:
        plain = can_id & 0x1FFFFFFF
        try:
            message = judge.get_message_by_frame_id(plain, force_extended_id=plain > 0x7FF)
        except KeyError:
            continue
        try:
            expected |= {
                f"{message.name}.{n}": v
                for n, v in message.decode(data, decode_choices=False, allow_truncated=True).items()
            }
        except cantools.database.errors.DecodeError:  # a selector that no signal has: cantools gives up on all of it
            tree = message.get_signal_by_name("Which")
            expected[f"{message.name}.Which"] = data[0] & 3
            assert tree.is_multiplexer
    by_source = {signal.source: signal for signal in file.signals.values()}
    flaws = found.pop("_flaws", {})
    assert not flaws
    assert found.keys() == {by_source[source].name for source in expected}
    for source, value in expected.items():
        ours = float(found[by_source[source].name])
        assert math.isclose(ours, float(value), rel_tol=1e-12, abs_tol=1e-9), (source, ours, value)
    return len(expected)


@pytest.mark.parametrize("seed", range(20))
def test_a_dense_database(make: SimpleNamespace, tmp_path: Path, seed: int) -> None:
    """Signals packed without gaps, both orders, floats, a multiplexer inside a multiplexed message."""
    import random

    rng = random.Random(seed)
    dbc = (
        HEAD
        + "\n".join(
            [
                "BO_ 256 Packed: 8 A",
                ' SG_ A : 0|3@1+ (1,0) [0|0] "" A',
                ' SG_ B : 3|11@1- (0.1,-5) [0|0] "" A',
                ' SG_ C : 14|1@1- (1,0) [0|0] "" A',
                ' SG_ D : 23|13@0- (0.25,0) [0|0] "" A',
                ' SG_ E : 26|19@0+ (1,0) [0|0] "" A',
                ' SG_ F : 48|16@1+ (0.00001,0) [0|0] "" A',
                "BO_ 257 Floats: 8 A",
                ' SG_ G : 0|32@1- (1,0) [0|0] "" A',
                ' SG_ H : 39|32@0- (1,0) [0|0] "" A',
                "BO_ 258 Wide: 8 A",
                ' SG_ I : 7|64@0- (1,0) [0|0] "" A',
                "BO_ 259 Nested: 8 A",
                ' SG_ M1 M : 0|2@1+ (1,0) [0|0] "" A',
                ' SG_ M2 m1M : 2|2@1+ (1,0) [0|0] "" A',
                ' SG_ N0 m0 : 8|8@1+ (1,0) [0|0] "" A',
                ' SG_ N1 m1 : 8|8@1- (1,0) [0|0] "" A',
                ' SG_ N2 m2 : 15|16@0- (1,0) [0|0] "" A',
                "SIG_VALTYPE_ 257 G : 1;",
                "SIG_VALTYPE_ 257 H : 1;",
                "SG_MUL_VAL_ 259 M2 M1 1-1;",
                "SG_MUL_VAL_ 259 N0 M1 0-0, 3-3;",
                "SG_MUL_VAL_ 259 N1 M2 0-2;",
                "SG_MUL_VAL_ 259 N2 M2 3-3;",
            ]
        )
        + "\n"
    )
    judge = cantools.database.load_string(dbc, "dbc", strict=True)
    file = file_of(tmp_path, dbc)
    import struct

    for _ in range(20):
        floats = struct.pack("<f", rng.randint(-9999, 9999) / 8) + struct.pack(">f", rng.randint(-9999, 9999) / 8)
        sent = [(256, rng.randbytes(8)), (257, floats), (258, rng.randbytes(8)), (259, rng.randbytes(8))]
        rng.shuffle(sent)
        if 259 in dict(sent) and not decodable(judge, dict(sent)[259]):
            sent = [pair for pair in sent if pair[0] != 259]
        assert compare(make, file, judge, sent) >= 9


def decodable(judge: Any, data: bytes) -> bool:
    try:
        judge.get_message_by_name("Nested").decode(data)
    except cantools.database.errors.DecodeError:
        return False
    return True


def test_the_example_against_cantools(make: SimpleNamespace) -> None:
    from schemas.custom.load import load

    judge = cantools.database.load_file(EXAMPLES / "truck.dbc")
    values = {
        "HeaterState": 2,
        "CoolantTemp": Decimal("65.5"),
        "HeaterCurrent": Decimal("-12.5"),
        "HeaterEnergy": Decimal("9.87"),
    }
    data = judge.encode_message("BatteryHeater", {name: float(value) for name, value in values.items()})
    found = make.decoded(
        compile_tables(load(EXAMPLES / "truck.toml")), [(0x90, b"\1\0\0\1\0\x08" + data)], vin="LTRUCK1"
    )
    assert found == {
        "heater_state": 2,
        "coolant_temp_c": "65.5",
        "heater_current_a": "-12.5",
        "heater_energy_kwh": "9.87",
    }


VARIABLE = '[[can]]\ntype = 0x90\nframe = ["skip 2", "id u16", "{length}", "data {length_name}"]\ndbc = "x.dbc"\n'
SMALL = HEAD + 'BO_ 256 M: 8 A\n SG_ Cold : 0|8@1+ (1,0) [0|0] "V" A\n SG_ Hot : 56|8@1+ (1,0) [0|0] "kPa" A\n'


@pytest.mark.parametrize(
    ("length", "name", "block", "found"),
    [
        # two bytes to skip, id, length, as many bytes: the second frame has no byte 7
        ("dlc u8", "dlc", "aaaa 0100 08 1100000000000022  bbbb 0100 01 33", {"cold_v": 0x33, "hot_kpa": 0x22}),
        # a length code of 9 is twelve bytes
        ("dlc u8", "dlc", "aaaa 0100 09 110000000000002200000000  bbbb 0100 01 33", {"cold_v": 0x33, "hot_kpa": 0x22}),
        (
            "length u16",
            "length",
            "aaaa 0100 0009 110000000000002200  bbbb 0100 0001 33",
            {"cold_v": 0x33, "hot_kpa": 0x22},
        ),
        # cut off: one byte less than announced
        ("length u8", "length", "aaaa 0100 02 11", None),
    ],
)
def test_layouts(make: SimpleNamespace, tmp_path: Path, length: str, name: str, block: str, found: Any) -> None:
    file = file_of(tmp_path, SMALL, VARIABLE.replace("{length}", length).replace("{length_name}", name))
    assert make.decoded(compile_tables(file), [(0x90, bytes.fromhex(block))]) == found


def test_masked_ids(make: SimpleNamespace, tmp_path: Path) -> None:
    # J1939: priority and source address differ, the parameter group counts
    dbc = HEAD + f'BO_ {0x80000000 | 0x18FEF100} Speed: 8 A\n SG_ Wheel : 8|16@1+ (0.00390625,0) [0|250.996] "km/h" A\n'
    file = file_of(tmp_path, dbc, TOML + "id_mask = 0x03FFFF00\n")
    block = bytes.fromhex("8CFEF127 08 00 0032 ffffffffff")
    assert make.decoded(compile_tables(file), [(0x90, block)]) == {"can_wheel_kmh": 50}  # 0x3200 / 256


def test_gb18030_and_utf8(tmp_path: Path) -> None:
    dbc = SMALL.replace("VERSION", "VERSION") + 'CM_ SG_ 256 Cold "冷却液温度";\n'
    for encoding, toml in (("utf-8", TOML), ("gb18030", TOML + 'encoding = "gb18030"\n')):
        (tmp_path / "x.dbc").write_text(dbc, encoding)
        assert loads(toml, "s.toml", tmp_path).signals["can_cold_v"].text == "冷却液温度"
