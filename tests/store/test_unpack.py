"""The SQL functions that read the lists.  Blocks from frames that others wrote (tests/gbt32960/data), and edges."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from schemas.signals import INDEX, State

pytestmark = pytest.mark.database

# (edition, block from its count byte on, (pack, cell, voltage, state) in order)
CELLS = [
    pytest.param(  # emqx-cells-2016; the first cell numbered 0 there, which counts from 1
        16, "02 01 1388 2710 0002 0000 01 1388  02 1389 2711 0002 0001 01 1389",
        [(1, 1, 5.0, "valid"), (2, 1, 5.001, "valid")], id="emqx-cells-2016",
    ),
    pytest.param(
        25, "02 01 0bb8 03e8 0002 04b0 04b1  02 0c1c 044c 0002 0514 0515",
        [(1, 1, 1.2, "valid"), (1, 2, 1.201, "valid"), (2, 1, 1.3, "valid"), (2, 2, 1.301, "valid")],
        id="emqx-cells-2025",
    ),
    pytest.param(
        16, "01 01 0e74 2710 0180 00c9 05 0000 ea60 ea61 fffe ffff",
        [(1, 201, 0.0, "valid"), (1, 202, 60.0, "valid"), (1, 203, None, "out_of_range"), (1, 204, None, "abnormal"),
         (1, 205, None, "invalid")], id="second part of a split list, every state",
    ),
    pytest.param(16, "", [], id="empty"),
    pytest.param(16, "ff", [], id="count invalid"),
    pytest.param(16, "00", [], id="no pack"),
    pytest.param(25, "01 01 0bb8 03e8 ffff", [], id="units invalid"),
    pytest.param(25, "01 01 0bb8 03e8 0003 04b0 04", [(1, 1, 1.2, "valid")], id="cut in the list"),
    pytest.param(16, "02 01 1388 2710 0002 0001 01 1388 02 13", [(1, 1, 5.0, "valid")], id="cut in a header"),
]  # fmt: skip


@pytest.mark.parametrize(("edition", "block", "expected"), CELLS)
def test_cells(read_db: psycopg.Connection[Any], edition: int, block: str, expected: list[tuple[Any, ...]]) -> None:
    arguments = (bytes.fromhex(block), edition)
    assert read_db.execute("SELECT * FROM unpack_cells(%s, %s::smallint)", arguments, binary=True).fetchall() == [
        (pack, cell, None if volts is None else pytest.approx(volts, abs=1e-6), state)
        for pack, cell, volts, state in expected
    ]
    found = read_db.execute("SELECT cell_voltages(%s, %s::smallint)", arguments).fetchone()
    assert found == ([volts for _, _, volts, _ in expected],)


TEMPS = [
    pytest.param(
        25, "02 01 0005 78797a7b7c 02 0003 828384",
        [(1, 1, 80), (1, 2, 81), (1, 3, 82), (1, 4, 83), (1, 5, 84), (2, 1, 90), (2, 2, 91), (2, 3, 92)],
        id="emqx-temps-2025",
    ),
    pytest.param(16, "01 01 0003 00 fa 28", [(1, 1, -40), (1, 2, 210), (1, 3, 0)], id="range"),
    pytest.param(16, "01 01 0003 fb fe ff", [(1, 1, None), (1, 2, None), (1, 3, None)], id="no values"),
    pytest.param(16, "01 01 ffff 28", [], id="count invalid"),
    pytest.param(16, "01 01 0003 28", [(1, 1, 0)], id="cut"),
    pytest.param(16, "", [], id="empty"),
]  # fmt: skip


@pytest.mark.parametrize(("edition", "block", "expected"), TEMPS)
def test_temps(read_db: psycopg.Connection[Any], edition: int, block: str, expected: list[tuple[Any, ...]]) -> None:
    arguments = (bytes.fromhex(block), edition)
    found = read_db.execute("SELECT pack, probe, temp_c FROM unpack_temps(%s, %s::smallint)", arguments).fetchall()
    assert found == expected
    assert read_db.execute("SELECT probe_temps(%s, %s::smallint)", arguments).fetchone() == (
        [temp for *_, temp in expected],
    )


def test_temp_states(read_db: psycopg.Connection[Any]) -> None:
    found = read_db.execute(
        "SELECT state FROM unpack_temps(%s, 16::smallint)", [bytes.fromhex("01 01 0004 fb fe ff fa")]
    )
    assert [state for (state,) in found] == ["out_of_range", "abnormal", "invalid", "valid"]


MOTORS = [
    pytest.param(  # 36n-doc-realtime
        16, "01 01 04 28 4e20 4e20 28 0000 2710", [(1, 4, 0, 0, 0, 0, 0, 0)], id="36n-doc-realtime"
    ),
    pytest.param(
        16, "01 01 03 42 4e1e 4e20 45 ffff 2710", [(1, 3, 26, -2, 0, 29, None, 0)], id="bcd-reissue-invalid"
    ),
    pytest.param(
        25, "02 01 01 7d 7530 000061a8 7d 02 01 7d 75f8 000062d4 91",
        [(1, 1, 85, -2000, -17500, 85, None, None), (2, 1, 85, -1800, -17470, 105, None, None)], id="emqx-motor-2025",
    ),
    pytest.param(
        25, "02 ffffffffffffffffffff fefefefefefefefefefe",
        [(None,) * 8, (None, None, None, 33278, None, None, None, None)], id="rtm-07",
    ),
    pytest.param(25, "fe", [], id="count abnormal"),
    pytest.param(16, "02 01 04 28 4e20 4e20 28 0000 2710 02", [(1, 4, 0, 0, 0, 0, 0, 0)], id="cut"),
]  # fmt: skip


@pytest.mark.parametrize(("edition", "block", "expected"), MOTORS)
def test_motors(read_db: psycopg.Connection[Any], edition: int, block: str, expected: list[tuple[Any, ...]]) -> None:
    found = read_db.execute("SELECT * FROM unpack_motors(%s, %s::smallint)", (bytes.fromhex(block), edition)).fetchall()
    assert found == expected


FAULTS = [
    pytest.param(
        16, "01 000000c8 00 01 0000006f 00", [("pack", 200, None), ("engine", 111, None)], id="emqx-alarm-reissue-2016"
    ),
    pytest.param(
        25, "01 1234abcd 02 2345bcde 3456cdef 01 4567defa 01 5678efab 02 00ff 08ff",
        [("pack", 305441741, None), ("motor", 591772894, None), ("motor", 878104047, None),
         ("engine", 1164435194, None), ("other", 1450766251, None), ("general", 0, 255), ("general", 8, 255)],
        id="emqx-alarm-2025",
    ),
    pytest.param(16, "00 00 00 00", [], id="none"),
    pytest.param(16, "01 ffffffff ff fe 01 0000", [("pack", 4294967295, None)], id="sentinels, cut"),
    pytest.param(25, "", [], id="empty"),
]  # fmt: skip


@pytest.mark.parametrize(("edition", "block", "expected"), FAULTS)
def test_faults(read_db: psycopg.Connection[Any], edition: int, block: str, expected: list[tuple[Any, ...]]) -> None:
    found = read_db.execute("SELECT * FROM fault_codes(%s, %s::smallint)", (bytes.fromhex(block), edition)).fetchall()
    assert found == expected


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("30 0003 010203 80 0000 ff 0001 09", [(0x30, b"\1\2\3"), (0x80, b""), (0xFF, b"\x09")]),
        ("", []),
        ("30 0003 01", [(0x30, b"\1")]),
    ],
)
def test_rest(read_db: psycopg.Connection[Any], rest: str, expected: list[tuple[int, bytes]]) -> None:
    assert read_db.execute("SELECT * FROM unpack_rest(%s)", [bytes.fromhex(rest)]).fetchall() == expected


def test_flaws(read_db: psycopg.Connection[Any]) -> None:
    expected = {
        "soc_pct": State.ABNORMAL,
        "speed_kmh": State.INVALID,
        "probe_min_c": State.OUT_OF_RANGE,
        "total_voltage_v": State.SUSPECT,
    }
    flaws = bytes(byte for name, state in expected.items() for byte in (INDEX[name], state))
    found = read_db.execute("SELECT * FROM flaws(%s)", [flaws]).fetchall()
    assert found == [(name, state.name.lower()) for name, state in expected.items()]


def test_an_absent_list_is_null_or_no_rows(read_db: psycopg.Connection[Any]) -> None:
    assert read_db.execute("SELECT cell_voltages(NULL, 16::smallint), probe_temps(NULL, 16::smallint)").fetchone() == (
        None,
        None,
    )
    assert read_db.execute("SELECT count(*) FROM unpack_cells(NULL, 16::smallint)").fetchone() == (0,)
