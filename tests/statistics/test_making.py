"""Rows to records: kernels against their twins, and what cleaning and putting together must come to."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.statistics import records as r
from schemas.statistics.columns import COLUMNS, HEAD, TAIL
from schemas.statistics.records import FIELDS, NO_CELL, NO_PROBE, Records
from services.statistics import making, making_twin, reading
from services.statistics.making import make
from services.statistics.reading import Rows, rows_of

T0 = 1_780_000_000
_EPOCH_US = 946_684_800_000_000
_FORMS = {2: ">h", 4: ">i", 8: ">q", 5: ">f", 9: ">d"}


def packed(fields: list[bytes | None]) -> bytes:
    """One tuple of a binary COPY."""
    return struct.pack(">h", len(fields)) + b"".join(
        b"\xff\xff\xff\xff" if field is None else struct.pack(">i", len(field)) + field for field in fields
    )


def row(
    window: int = 0, second: int = 0, kind: int = 2, part: int = 0, edition: int = 16, late_s: float = 0.0,
    cells: bytes | None = None, temps: bytes | None = None, flaws: bytes | None = None, **values: float,
) -> bytes:  # fmt: skip
    """A row as the server sends it."""
    at = (T0 + second) * 1_000_000 - _EPOCH_US
    head = [
        struct.pack(">q", window), struct.pack(">q", at), struct.pack(">q", at + round(late_s * 1e6)),
        struct.pack(">h", kind), struct.pack(">H", part), struct.pack(">h", edition),
    ]  # fmt: skip
    body = []
    for name, (form, _) in zip(FIELDS, reading.FIELD_TYPES.tolist(), strict=True):
        value = values.get(name)
        body.append(None if value is None else struct.pack(_FORMS[form], value if form in (5, 9) else int(value)))
    return packed([*head, *body, cells, temps, flaws])


def stream(rows: list[bytes]) -> bytearray:
    empty = bytes(reading.empty_stream())
    return bytearray(empty[:-2] + b"".join(rows) + empty[-2:])


def made(*rows: bytes, outs: list[tuple[int, int, int]] | None = None) -> tuple[Records, Any]:
    table = np.array(outs or [], np.int64).reshape(-1, 3)
    return make(
        rows_of(stream(list(rows))), table[:, 0].astype(np.int32), table[:, 1] + T0, table[:, 2].astype(np.uint8)
    )


def cells_2016(values: list[int], first: int = 1, total: int | None = None, pack: int = 1) -> bytes:
    """2016 table B.6: number, voltage, current, cells in all, first cell of the frame, cells of the frame."""
    head = struct.pack(">BHHHHB", pack, 3800, 10_000, total or len(values), first, len(values))
    return bytes([1]) + head + struct.pack(f">{len(values)}H", *values)


def cells_2025(packs: list[list[int]]) -> bytes:
    """2025: number, voltage, current, cells."""
    return bytes([len(packs)]) + b"".join(
        struct.pack(">BHHH", k + 1, 3800, 30_000, len(values)) + struct.pack(f">{len(values)}H", *values)
        for k, values in enumerate(packs)
    )


def temps(packs: list[list[int]]) -> bytes:
    return bytes([len(packs)]) + b"".join(
        struct.pack(">BH", k + 1, len(values)) + bytes(values) for k, values in enumerate(packs)
    )


def list_of(records: Records, k: int, what: str) -> list[int]:
    span = getattr(records, f"{what}_span")[k]
    values: list[int] = getattr(records, f"{what}s")[span[0] : span[1]].tolist()
    return values


# -- by hand -------------------------------------------------------------------------------------------


def test_a_row_is_a_record() -> None:
    values = {"speed_kmh": 65.3, "odometer_km": 12345.6, "alarm_flags": 2**31, "total_current_a": -12.3}
    records, edition = made(row(late_s=61, **values))
    assert (records.n, records.time_s.tolist(), records.kind.tolist(), edition.tolist()) == (1, [T0], [2], [16])
    assert records.x[0, r.SPEED] == 65.3  # the real 65.300003 is 653 tenths
    assert (records.x[0, r.ODOMETER], records.x[0, r.CURRENT], records.x[0, r.ALARM_FLAGS]) == (12345.6, -12.3, 2**31)
    assert np.isnan(records.x[0, r.SOC])
    assert (records.rows[0], records.late[0], records.late_us[0]) == (1, 1, 61_000_000)


def test_the_first_row_that_has_a_field_gives_it() -> None:
    records, _ = made(
        row(kind=2, speed_kmh=10.0), row(kind=2, part=201, speed_kmh=20.0, soc_pct=50), row(kind=3, soc_pct=60, gear=1),
        row(kind=3, part=201, gear=2, speed_kmh=30.0),
    )  # fmt: skip
    assert records.n == 1
    assert records.x[0, [r.SPEED, r.SOC, r.GEAR]].tolist() == [10.0, 50.0, 1.0]
    assert (records.rows[0], records.reissued[0], records.repeated[0]) == (4, 2, 1)


def test_cells_split_over_frames_are_put_together() -> None:
    records, _ = made(
        row(cells=cells_2016([3700, 3701], 1, 5)), row(part=3, cells=cells_2016([3702, 3703, 3704], 3, 5)),
    )  # fmt: skip
    assert list_of(records, 0, "cell") == [3700, 3701, 3702, 3703, 3704]
    assert records.x[0, [r.CELL_COUNT, r.CELL_MAX, r.CELL_MIN]].tolist() == [5, 3.704, 3.7]
    assert records.x[0, r.CELL_SUM] == pytest.approx(18.51)


def test_a_frame_that_is_lost_leaves_its_cells_missing() -> None:
    records, _ = made(row(part=3, cells=cells_2016([3702, 3703], 3, 6)))
    assert list_of(records, 0, "cell") == [NO_CELL, NO_CELL, 3702, 3703, NO_CELL, NO_CELL]
    assert records.x[0, r.CELL_COUNT] == 2


def test_packs_come_one_after_the_other_and_a_reissue_fills_gaps() -> None:
    records, _ = made(
        row(edition=25, cells=cells_2025([[3700, 0xFFFF], [3600]])),
        row(edition=25, kind=3, cells=cells_2025([[3999, 3701], [3999]])),
    )
    assert list_of(records, 0, "cell") == [3700, 3701, 3600]
    assert records.repeated[0] == 0


def test_json_lists_are_read_as_those_of_2025() -> None:
    records, _ = made(row(edition=0, cells=cells_2025([[3700]]), temps=temps([[65]])))
    assert (list_of(records, 0, "cell"), list_of(records, 0, "probe")) == ([3700], [25])


@pytest.mark.parametrize(
    ("raw", "cell"), [(0, NO_CELL), (1, 1), (60_000, 60_000), (60_001, NO_CELL), (65_535, NO_CELL)]
)
def test_cells_that_are_no_value(raw: int, cell: int) -> None:
    records, _ = made(row(cells=cells_2016([raw, 3700])))
    assert list_of(records, 0, "cell") == [cell, 3700]


@pytest.mark.parametrize(("raw", "probe"), [(0, NO_PROBE), (1, -39), (250, 210), (251, NO_PROBE), (255, NO_PROBE)])
def test_probes_that_are_no_value(raw: int, probe: int) -> None:
    records, _ = made(row(temps=temps([[raw, 65]])))
    assert list_of(records, 0, "probe") == [probe, 25]
    assert records.x[0, r.PROBE_COUNT] == 2


def test_extremes_that_are_no_value() -> None:
    records, _ = made(row(min_cell_voltage_v=0.0, max_cell_voltage_v=3.7, min_temp_c=-40, max_temp_c=30))
    assert np.isnan(records.x[0, [r.REPORTED_CELL_MIN, r.REPORTED_TEMP_MIN]]).all()
    assert records.x[0, [r.REPORTED_CELL_MAX, r.REPORTED_TEMP_MAX]].tolist() == [3.7, 30.0]


def test_a_logout_is_a_record_where_there_is_no_report() -> None:
    records, edition = made(row(second=0), row(second=5), row(window=1), outs=[(0, 1, 25), (0, 5, 16), (1, 7, 16)])
    assert records.vehicle.tolist() == [0, 0, 0, 1, 1]
    assert (records.time_s - T0).tolist() == [0, 1, 5, 0, 7]
    assert records.kind.tolist() == [2, 4, 2, 2, 4]
    assert edition.tolist() == [16, 25, 16, 16, 16]
    assert np.isnan(records.x[1]).all()


def test_what_is_no_copy_of_these_columns() -> None:
    with pytest.raises(AssertionError, match="not of the columns"):
        rows_of(stream([packed([b"\0" * 8] * 3) + bytes(400)]))


# -- kernels and twins ---------------------------------------------------------------------------------

wild = st.binary(min_size=0, max_size=40)
lists = st.one_of(
    st.none(),
    wild,
    st.builds(
        cells_2016, st.lists(st.sampled_from([0, 3600, 3700, 60_001, 65_535]), max_size=5), st.integers(0, 7),
        st.sampled_from([None, 3, 9, 65_531]), st.integers(0, 2),
    ),
    st.builds(cells_2025, st.lists(st.lists(st.sampled_from([0, 3700, 65_535]), max_size=4), max_size=3)),
)  # fmt: skip
_probe = st.sampled_from([0, 1, 65, 255])
probes = st.one_of(st.none(), wild, st.builds(temps, st.lists(st.lists(_probe, max_size=4), max_size=3)))
one_row = st.builds(
    row, window=st.integers(0, 2), second=st.integers(0, 3), kind=st.sampled_from([2, 3]), part=st.integers(0, 2),
    edition=st.sampled_from([0, 16, 25]), late_s=st.sampled_from([0, 60, 60.000001, 90]), cells=lists, temps=probes,
    flaws=st.sampled_from([None, b"\x01\x02", b"\x01\x02\x07\x05"]), speed_kmh=st.sampled_from([None, 0.0, 65.3]),
    soc_pct=st.sampled_from([None, 50]), min_cell_voltage_v=st.sampled_from([None, 0.0, 3.7]),
    min_temp_c=st.sampled_from([None, -40, 5]),
)  # fmt: skip


def _sorted(rows: Rows) -> Rows:
    return rows.take(np.lexsort((rows.part, rows.kind, rows.time_s, rows.window)))


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(one_row, max_size=8))
def test_parsing_is_its_twin(rows: list[bytes]) -> None:
    data = stream(rows)
    found = []
    for function in (getattr(reading.parse, "compiled", reading.parse), reading._parse_twin):
        n = len(rows)
        out = [np.zeros(n, kind) for kind in (np.int32, np.int64, np.int64, np.uint8, np.int32, np.uint8)]
        x, spans = np.zeros((n, len(FIELDS))), np.zeros((n, 3, 2), np.int64)
        raw = np.frombuffer(data, np.uint8)
        assert function(raw, reading.FIELD_TYPES, *out, x, spans) == n
        spans[spans[:, :, 1] == 0] = 0  # where nothing begins is nobody's business
        found.append([*(column.tolist() for column in out), x.tobytes(), spans.tolist()])
    assert found[0] == found[1]


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(one_row, max_size=8),
    outs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.sampled_from([16, 25])), max_size=4, unique=True),
)
def test_making_is_its_twin(rows: list[bytes], outs: list[tuple[int, int, int]]) -> None:
    given_rows = _sorted(rows_of(stream(rows)))
    table = np.array(sorted(outs), np.int64).reshape(-1, 3)
    arguments = (given_rows, table[:, 0].astype(np.int32), table[:, 1] + T0, table[:, 2].astype(np.uint8))
    fast, fast_edition = make(*arguments)
    kept = making.group, making.measure, making.fill
    making.group, making.measure, making.fill = making_twin.group, making_twin.measure, making_twin.fill  # type: ignore[assignment]
    try:
        slow, slow_edition = make(*arguments)
    finally:
        making.group, making.measure, making.fill = kept
    assert fast_edition.tolist() == slow_edition.tolist()
    for name in Records.__dataclass_fields__:
        a, b = getattr(fast, name), getattr(slow, name)
        if name == "x":
            np.testing.assert_array_equal(a, b)
        else:
            assert a.tolist() == b.tolist(), name


def test_columns_are_those_of_the_parser() -> None:
    assert len(COLUMNS) == len(HEAD) + len(FIELDS) + len(TAIL)
    assert len(HEAD) == 6
    assert len(TAIL) == 3
