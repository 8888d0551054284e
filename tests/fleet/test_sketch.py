"""Distributions: the parts' sum is the whole, quantiles are within the promised error, SQL bins as Python does."""

from __future__ import annotations

import math
from collections import Counter
from datetime import date, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.statistics import sketch
from schemas.statistics.windows import Window, day_at, end_of

VALUES = st.one_of(
    st.floats(1e-3, 1e9), st.floats(-1e9, -1e-3), st.just(0.0), st.floats(0.5, 2.0), st.integers(0, 100).map(float)
)


def stored(values: list[float]) -> bytes:
    return sketch.counted(Counter(map(sketch.bin_of, values)))


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=60), st.integers(0, 60), st.sampled_from([0.05, 0.25, 0.5, 0.75, 0.95]))
@example([1.0] * 20 + [2.0] * 380, 3, 0.05)
def test_quantiles_of_parts_put_together(values: list[float], cut: int, share: float) -> None:
    whole = stored(values)
    parts = stored(values[:cut]) + stored(values[cut:])
    assert sketch.merged(parts) == whole == sketch.merged(whole)
    bins, counts = sketch.unpacked(parts)
    assert counts.sum() == len(values)
    position = sketch.ranked(bins, counts, share)
    assert position is not None
    wanted = sorted(values)[max(1, math.ceil(round(share * len(values), 6))) - 1]
    assert sketch.value_of(position) == pytest.approx(wanted, rel=sketch.ERROR * (1 + 1e-9), abs=sketch.LEAST)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.lists(VALUES, max_size=20)), max_size=12), st.booleans())
def test_grouped_is_the_sum_of_each_group(parts: list[tuple[int, list[float]]], huge: bool) -> None:
    extra = sketch.counted({7: 2**53}) if huge else b""
    distributions = [stored(values) + extra for _, values in parts]
    found = sketch.grouped(distributions, np.array([group for group, _ in parts], np.int64), 4)
    for group in range(4):
        mine = b"".join(each for (of, _), each in zip(parts, distributions, strict=True) if of == group)
        assert found[group] == sketch.merged(mine)


def test_counts_beyond_what_a_double_holds() -> None:
    bins, counts = sketch.unpacked(sketch.counted({1: 2**53, 2: 1}) + sketch.counted({1: 1, 2: 0}))
    assert (bins.tolist(), counts.tolist()) == ([1, 2], [2**53 + 1, 1])


def test_nothing() -> None:
    assert sketch.merged(b"") == b""
    assert sketch.ranked(*sketch.unpacked(b""), 0.5) is None
    assert sketch.merged(sketch.counted({5: 0})) == b""


@pytest.mark.database
def test_sql_bins_as_python_does(read_db: psycopg.Connection[Any]) -> None:
    values = [0.0, 0.000999, 0.001, -0.001, 0.05, 1.0, 2.5, 11.667, 137.0, 1e5, 1e9, -42.0, -1e-9]
    values += [1.37**k for k in range(-20, 60)]
    for text in (sketch.BIN_SQL.format(x="x"), "sketch_bin(x)"):
        rows = read_db.execute(f"SELECT x, {text} FROM unnest(%s::float8[]) AS x", [values]).fetchall()
        assert [found for _, found in rows] == [sketch.bin_of(value) for value in values]
    stored_by_sql = read_db.execute(
        "SELECT string_agg(int2send(b::smallint) || int8send(n), ''::bytea ORDER BY b) FROM"
        " (VALUES (-3, 7::bigint), (0, 1), (173, 4294967296)) AS v (b, n)"
    ).fetchone()
    assert stored_by_sql == (sketch.counted({173: 2**32, 0: 1, -3: 7}),)


DAYS = st.dates(date(2019, 12, 1), date(2027, 2, 1))


@settings(max_examples=300, deadline=None)
@given(DAYS, st.integers(0, 1200), st.sampled_from("DWMY"))
def test_windows_are_cut_without_hole_or_double(first: date, length: int, span: str) -> None:
    window = Window.between(first, first + timedelta(days=length))
    for blocks in (window.blocks(), window.vehicle_blocks()):
        day = window.first
        for kind, start in blocks:
            assert start == day
            day = end_of(kind, start) + timedelta(days=1)
        assert day == window.last + timedelta(days=1)
    assert {kind for kind, _ in window.vehicle_blocks()} <= {"D", "M"}
    parts = window.parts(span)
    assert [part.first for part in parts[1:]] == [part.last + timedelta(days=1) for part in parts[:-1]]
    assert (parts[0].first, parts[-1].last) == (window.first, window.last)
    assert Window.of(span, first) == Window.between(Window.of(span, first).first, Window.of(span, first).last)


def test_iso_weeks() -> None:
    assert Window.of("W", day_at("2026-W53")).first == date(2026, 12, 28)
    assert Window.of("W", date(2027, 1, 3)).first == date(2026, 12, 28)
    assert Window.of("M", day_at("2026-10")).weeks() == [date(2026, 9, 28) + timedelta(7 * k) for k in range(4)]
    with pytest.raises(ValueError, match="Invalid week"):
        day_at("2025-W53")
