"""The vehicle table and the fast/late split: kernels against twins, growth, a million vehicles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import Batch
from schemas.keys import order_key
from schemas.seams import KnownVehicles
from services.pipeline import vehicles
from services.pipeline.vehicles import UNKNOWN, VehicleTable, classify

QUICK = settings(deadline=None, max_examples=60)
VIN = st.text("ABCDEFGHJKLMNPRSTUVWXYZ0123456789 -", min_size=1, max_size=17)


def packed(vins: list[str]) -> np.ndarray:
    return np.array(vins, "S17").view(np.uint8).reshape(-1, 17).copy()


def rows_of(table: VehicleTable, vins: list[str]) -> list[int]:
    data = packed(vins).reshape(-1)
    n = np.arange(len(vins), dtype=np.int64)
    return table.rows(data, n * 17, n, 0).tolist()


@QUICK
@given(st.lists(VIN, unique=True, max_size=60), st.lists(VIN, min_size=1, max_size=20), st.integers(1, 7))
def test_find_and_insert_agree_with_their_twins(known: list[str], asked: list[str], step: int) -> None:
    table = VehicleTable(2)
    for at in range(0, len(known), step):
        part = known[at : at + step]
        table.add(packed(part), np.arange(at, at + len(part), dtype=np.int64) + 100)
    expected = {vin: row for row, vin in enumerate(known)}
    wanted = [expected.get(vin, UNKNOWN) for vin in known + asked]
    assert rows_of(table, known + asked) == wanted
    assert table.vehicle_id[: table.n].tolist() == [100 + i for i in range(len(known))]

    slots = np.zeros(256, np.int32)
    assert vehicles.insert.twin(table.vins, 0, table.n, slots) == -1
    compiled_slots = np.zeros(256, np.int32)
    assert vehicles.insert.compiled(table.vins, 0, table.n, compiled_slots) == -1
    assert slots.tolist() == compiled_slots.tolist()
    data, n = packed(known + asked).reshape(-1), np.arange(len(known) + len(asked), dtype=np.int64)
    for find in (vehicles.find.twin, vehicles.find.compiled):
        out = np.empty(len(n), np.int64)
        find(data, n * 17, n, 0, slots, table.vins, out)
        assert out.tolist() == wanted
    if known:
        assert vehicles.insert.twin(table.vins, 0, table.n, slots) == 0
        assert vehicles.insert.compiled(table.vins, 0, table.n, compiled_slots) == 0


def test_a_vehicle_is_entered_once() -> None:
    table = VehicleTable(4)
    table.add(packed(["A"]), np.array([1]))
    with pytest.raises(AssertionError, match="entered twice"):
        table.add(packed(["A"]), np.array([2]))


def test_a_million_vehicles_fit_the_memory_that_was_set_aside() -> None:
    n = 1_000_000
    vins = np.char.mod("LTEST%012d", np.arange(n)).astype("S17").view(np.uint8).reshape(n, 17).copy()
    table = VehicleTable.of(KnownVehicles(vins, np.arange(n, dtype=np.int64), np.full(n, 7, np.int64)))
    assert table.nbytes <= 150_000_000
    asked = np.random.default_rng(1).integers(0, n, 10_000)
    assert (table.rows(vins.reshape(-1), asked * 17, np.arange(10_000), 0) == asked).all()
    table.add(packed(["NEW"]), np.array([n + 1]))
    assert table.nbytes <= 150_000_000
    assert rows_of(table, ["NEW", "LTEST000000999999", "LTEST"]) == [n, 999_999, UNKNOWN]
    assert table.last_key[999_999] == 7
    assert table.last_key[n] == 0


REPORTS = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(1, 6), st.sampled_from([2, 3]), st.sampled_from([0, 201, -1]), st.integers(-2, 2)
    ),
    max_size=40,
)  # vehicle, second, kind, part, digest


def reports_batch(reports: list[tuple[int, int, int, int, int]]) -> Batch:
    batch = Batch.empty(len(reports), 1)
    for i, (_, second, kind, part, digest) in enumerate(reports):
        batch.time_s[i], batch.kind[i], batch.part[i], batch.digest[i] = second, kind, part, digest
    return batch


@QUICK
@given(REPORTS, st.integers(0, 4))
def test_fast_is_newer_than_all_before_it(reports: list[tuple[int, int, int, int, int]], stored: int) -> None:
    batch = reports_batch(reports)
    lines = np.arange(len(reports), dtype=np.int64)
    rows = np.array([report[0] for report in reports], np.int64)
    results = []
    for kernel in (vehicles._classify.compiled, vehicles._classify.twin):
        last_key = np.array([0, 0, 0, order_key(stored, 2, 0)], np.int64)
        seat = np.zeros(4, np.int32)
        fast, late, newest, counts = (np.full(len(reports), -9, np.int64) for _ in range(4))
        sizes = np.zeros(3, np.int64)
        kernel(lines, rows, batch.time_s, batch.kind, batch.part, batch.digest, last_key, seat,
               fast, late, newest, counts, sizes)  # fmt: skip
        assert not seat.any()
        results.append([a.tolist() for a in (fast, late, newest, counts, sizes, last_key)])
    assert results[0] == results[1]

    newest_of: dict[int, int] = {3: order_key(stored, 2, 0)}
    fast_wanted = []
    for i, (vehicle, second, kind, part, _) in enumerate(reports):
        key = order_key(second, kind, part & 0xFFFF)
        if key > newest_of.get(vehicle, 0):
            newest_of[vehicle] = key
            fast_wanted.append(i)
    found = results[0]
    assert found[0][: len(fast_wanted)] == fast_wanted
    assert found[4][0] == len(fast_wanted)
    assert found[4][0] + found[4][1] == len(reports)


def test_the_state_of_a_vehicle_is_its_newest_report_whatever_the_order() -> None:
    reports = [(0, 5, 2, 0, 9), (0, 3, 2, 0, 1), (0, 5, 2, 0, 4), (1, 8, 3, 0, 0), (0, 5, 2, 0, 7)]
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        shuffled = [reports[i] for i in order]
        table = VehicleTable(4)
        rows = table.add(packed(["A", "B"]), np.array([10, 11]))
        batch = reports_batch(shuffled)
        sorted_out = classify(batch, np.arange(5), rows[[report[0] for report in shuffled]], table)
        by_vehicle = dict(zip(sorted_out.newest_row.tolist(), sorted_out.newest.tolist(), strict=True))
        # among equal keys the smaller digest: the one that the store keeps
        assert {row: shuffled[line] for row, line in by_vehicle.items()} == {0: (0, 5, 2, 0, 4), 1: (1, 8, 3, 0, 0)}
        assert dict(zip(sorted_out.newest_row.tolist(), sorted_out.reports.tolist(), strict=True)) == {0: 4, 1: 1}
