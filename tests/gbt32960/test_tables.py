"""The edition tables against the standard's own figures, and what is made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.gbt32960.commands import BY_ID, Command
from schemas.gbt32960.document import document
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.layout import Field
from schemas.signals import SIGNALS

# Bytes of each block (of its fixed part), as clause 7.2 of each edition gives them.
SIZES = {
    16: {1: 20, 2: 1 + 12, 3: 18, 4: 5, 5: 9, 6: 14, 7: 9, 8: 1 + 10, 9: 1 + 3},
    25: {1: 18, 2: 1 + 10, 3: 12, 4: 2, 5: 10, 6: 10 + 2, 7: 1 + 7, 8: 1 + 3, 0x30: 1 + 12, 0x31: 9, 0x32: 18},
}


@pytest.mark.parametrize("edition", [16, 25])
def test_block_sizes(edition):
    sizes = {
        kind: sum(field.width for group in block.groups() for field in group)
        for kind, block in EDITIONS[edition].blocks.items()
    }
    assert sizes == SIZES[edition]


@pytest.mark.parametrize(
    ("edition", "block", "name", "raw", "value"),
    [
        (16, 1, "total_current", 0, -1000),
        (25, 1, "total_current", 0, -3000),
        (16, 2, "speed", 0, -20000),
        (25, 2, "speed", 0, -32000),
        (16, 2, "torque", 0, -2000),
        (16, 2, "torque", 65531, 4553.1),
        (25, 2, "torque", 0, -20000),
        (16, 3, "h2_max_temp", 2400, 200),
        (25, 3, "h2_max_temp", 250, 210),
        (25, 3, "h2_max_conc", 60000, 6),
        (16, 8, "current", 0, -1000),
        (25, 7, "current", 0, -3000),
        (25, 0x30, "h2_inlet_pressure", 0, -100),
        (25, 0x30, "current", 20000, 2000),
        (25, 0x31, "total_current", 60000, 3000),
        (16, 6, "max_cell_voltage", 15000, 15),
        (16, 4, "consumption", 60000, 600),
        (16, 5, "longitude", 180_000_000, 180),
    ],
)
def test_scales_and_biases(edition, block, name, raw, value):
    field = next(f for group in EDITIONS[edition].blocks[block].groups() for f in group if f.raw == name)
    assert field.scaled(raw) == pytest.approx(value, abs=1e-9)


def test_every_signal_has_a_source():
    derived = {"cell_count", "cell_max_v", "cell_min_v", "cell_sum_v", "probe_count", "probe_max_c", "probe_min_c"}
    mapped = {
        field.signal
        for table in EDITIONS.values()
        for block in table.blocks.values()
        for group in block.groups()
        for field in group
    }
    assert {signal.name for signal in SIGNALS} == (mapped - {None}) | derived


def test_numbers_fit_their_column_type():
    limits = {"smallint": 2**15, "integer": 2**31}
    types = {signal.name: signal.sql for signal in SIGNALS}
    for table in EDITIONS.values():
        for block in table.blocks.values():
            for group in block.groups():
                for field in group:
                    limit = limits.get(types.get(field.signal or "", ""))
                    if limit:
                        assert -limit <= field.lo * field.mul + field.add <= field.hi * field.mul + field.add < limit, (
                            field
                        )


def test_a_range_may_not_reach_into_the_sentinels():
    with pytest.raises(AssertionError, match="sentinels"):
        Field("bad", 1, 0, 254)


def test_field_reference_is_up_to_date():
    path = Path(__file__).parents[2] / "schemas" / "gbt32960" / "FIELDS.md"
    assert path.read_text("utf-8") == document(), "run python -m schemas.gbt32960.document > schemas/gbt32960/FIELDS.md"


def test_every_command_has_a_row():
    assert set(BY_ID) == set(map(int, Command))
