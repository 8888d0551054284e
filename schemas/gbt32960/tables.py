"""The edition tables as integer arrays, for kernels.

They are passed to kernels as arguments, never read as globals: numba would freeze a global's contents
into its on-disk cache, and a change to a table would not be seen.

``fields`` (F, 8) i64, one row per field that is a signal: SIGNAL (position in the catalogue), BACK (offset
in its group of the four bytes that *end* with the field), MASK (all ones at its width), LO and SPAN (valid
raw range), MUL, ADD, INVALID_BITS.
``groups`` (G, 3) i64: first row of ``fields``, number of rows, bytes of the group on the wire.
``blocks`` (2, 256, 5) i64 by edition and type: LAYOUT, first group, and for lists of structures the bytes
of an item's fixed part, the width of the count that ends it (0: no inner list), bytes of an inner value; for
an alarm block the number of its lists in the place of the first of these.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from schemas.batch import I64
from schemas.gbt32960.commands import Edition
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.layout import CUSTOM_FIRST, CUSTOM_LAST, SIGNATURE_TYPE, Block, Each, Field, Kind, Values
from schemas.signals import INDEX

SIGNAL, BACK, MASK, LO, SPAN, MUL, ADD, INVALID_BITS = range(8)
FIELD_COLUMNS: Final = 8
LAYOUT, GROUP, ITEM_BYTES, INNER_WIDTH, VALUE_BYTES = range(5)

# Layouts: how the kernel walks a block.
UNKNOWN: Final = 0
FIXED: Final = 1
LOCATION: Final = 2  # fixed; the signs and the validity are in the status bits
MOTORS: Final = 3
CELLS: Final = 4
TEMPS: Final = 5
STACKS: Final = 6
FUEL_CELL: Final = 7  # 2016: fields, probes, fields
ALARM: Final = 8
SUPERCAP: Final = 9
CUSTOM: Final = 10
SIGNATURE: Final = 11
EACH_LAYOUTS: Final = (MOTORS, CELLS, TEMPS, STACKS)

_LAYOUT_OF: Final = {
    "location": LOCATION,
    "drive_motor": MOTORS,
    "cell_voltages": CELLS,
    "cell_temperatures": TEMPS,
    "fuel_cell_stacks": STACKS,
    "fuel_cell": FUEL_CELL,
    "alarm": ALARM,
    "supercapacitor": SUPERCAP,
}

# Signals that the decoder derives from lists, and those it treats apart, in the order of ``derived``.
DERIVED_SIGNALS: Final = (
    "cell_count", "cell_max_v", "cell_min_v", "cell_sum_v", "probe_count", "probe_max_c", "probe_min_c",
    "location_valid", "longitude_deg", "latitude_deg",
)  # fmt: skip
CELL_COUNT, CELL_MAX, CELL_MIN, CELL_SUM, PROBE_COUNT, PROBE_MAX, PROBE_MIN, FIX, LONGITUDE, LATITUDE = range(10)

# A list item counts for the derived signals in these raw ranges; a cell of exactly 0 V and a probe of
# exactly -40 °C are fillers, not measurements.
CELL_RAW_MAX: Final = 60_000
PROBE_RAW_MAX: Final = 250
PROBE_BIAS_C: Final = 40


class Tables(NamedTuple):
    """The arrays described at the top of this module; ``derived`` (10,) i64: positions of DERIVED_SIGNALS."""

    fields: I64
    groups: I64
    blocks: I64
    derived: I64


def edition_index(edition: int) -> int:
    """Row of ``blocks``: 0 for 2016, 1 for 2025."""
    return 1 if edition == Edition.E2025 else 0


def layout_of(block: Block) -> int:
    """How the kernel walks ``block``; a block without lists is FIXED whatever its name."""
    if block.name == "location":
        return LOCATION
    return FIXED if block.fixed else _LAYOUT_OF[block.name]


def _item_shape(block: Block) -> tuple[int, int, int]:
    each = block.parts[-1]
    assert isinstance(each, Each)
    head = [part for part in each.parts if isinstance(part, Field)]
    inner = each.parts[-1]
    if not isinstance(inner, Values):
        return sum(part.width for part in head), 0, 0
    assert inner.count == head[-1].raw, "the kernel finds an inner list's count at the end of the fixed part"
    return sum(part.width for part in head), head[-1].width, inner.item.width


def build() -> Tables:
    """The arrays of both editions."""
    fields: list[list[int]] = []
    groups: list[list[int]] = []
    blocks = np.zeros((len(EDITIONS), 256, 5), np.int64)
    for edition, table in EDITIONS.items():
        rows = blocks[edition_index(edition)]
        rows[CUSTOM_FIRST : CUSTOM_LAST + 1, LAYOUT] = CUSTOM
        if table.has_signature:
            rows[SIGNATURE_TYPE, LAYOUT] = SIGNATURE
        for kind, block in table.blocks.items():
            assert kind < 64, "the kernel remembers the types it has seen in 64 bits"
            layout = layout_of(block)
            shape = _item_shape(block) if layout in EACH_LAYOUTS else (0, 0, 0)
            if layout == ALARM:
                shape = sum(not isinstance(part, Field) for part in block.parts), 0, 0
                counts = [part for part in block.parts if isinstance(part, Field) and part.kind is Kind.COUNT]
                assert all(part.lo == 0 for part in counts), "the kernel takes an alarm count of 0 as valid unseen"
            rows[kind] = layout, len(groups), *shape
            for group in block.groups():
                first, offset = len(fields), 0
                for field in group:
                    if field.signal is not None:
                        assert field.lo <= field.hi
                        fields.append([
                            INDEX[field.signal], offset + field.width - 4, field.ones, field.lo,
                            field.hi - field.lo, field.mul, field.add, field.invalid_bits,
                        ])  # fmt: skip
                    offset += field.width
                groups.append([first, len(fields) - first, offset])
    return Tables(
        np.array(fields, np.int64),
        np.array(groups, np.int64),
        blocks,
        np.array([INDEX[name] for name in DERIVED_SIGNALS], np.int64),
    )


TABLES: Final = build()
