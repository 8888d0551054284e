"""Cross-field checks and clocks: one row per fact, and the kernel against its twin."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import CELLS, TEMPS, Batch, Frames
from schemas.reasons import CODE
from schemas.signals import INDEX, SIGNAL_COUNT, SIGNALS, State
from services.pipeline import validate as module
from services.pipeline.validate import CHECKS, STATES, check_table, validate

QUICK = settings(deadline=None, max_examples=100)
DAY = 86_400
NOW_S = 1_780_000_000
MakeBatch = Callable[..., tuple[Frames, Batch]]


def cells_2016(
    cells_mv: list[int], pack_v: float = 0, total: int | None = None, first: int = 1, packs: int = 1
) -> bytes:
    pack = bytes([1]) + round(pack_v * 10).to_bytes(2, "big") + bytes.fromhex("2710")
    pack += (len(cells_mv) if total is None else total).to_bytes(2, "big") + first.to_bytes(2, "big")
    pack += bytes([len(cells_mv)]) + b"".join(cell.to_bytes(2, "big") for cell in cells_mv)
    return bytes([packs]) + pack * packs


def cells_2025(cells_mv: list[int], packs: int = 1) -> bytes:
    pack = bytes.fromhex("01 0fa0 7530") + len(cells_mv).to_bytes(2, "big")
    return bytes([packs]) + (pack + b"".join(cell.to_bytes(2, "big") for cell in cells_mv)) * packs


def temps(raw: list[int]) -> bytes:
    return bytes([1, 1]) + len(raw).to_bytes(2, "big") + bytes(raw)


def report(
    make_batch: MakeBatch,
    values: dict[str, float],
    cells: bytes = b"",
    probes: bytes = b"",
    edition: int = 16,
    part: int = 0,
) -> tuple[Frames, Batch]:
    """One report with these signals and nothing else."""
    frames, batch = make_batch(1, 0, 0)
    batch.kind[0], batch.edition[0], batch.part[0], batch.time_s[0] = 2, edition, part, NOW_S
    batch.var[:] = 0
    for name, value in values.items():
        batch.num[0, INDEX[name]] = round(value * SIGNALS[INDEX[name]].div)
        batch.state[0, INDEX[name]] = State.VALID
    frames.data = np.frombuffer(bytearray(b"\xff\xff" + cells + probes + b"\xff"), np.uint8)
    batch.var[0, CELLS] = 2, len(cells)
    batch.var[0, TEMPS] = 2 + len(cells), len(probes)
    frames.received_us[:] = NOW_S * 1_000_000
    return frames, batch


GOOD = [3300, 3301, 3299, 3300]  # 13.2 V
LIST = {
    "pack_count": 1,
    "cell_count": 4,
    "pack_cell_total": 4,
    "cell_sum_v": 13.2,
    "cell_max_v": 3.301,
    "cell_min_v": 3.299,
}


@pytest.mark.parametrize("mode", ["compiled", "twin"])
@pytest.mark.parametrize(
    ("what", "values", "lists", "suspects"),
    [
        ("2 % of the sum is allowed", {**LIST, "pack_voltage_v": 13.4}, cells_2016(GOOD), []),
        ("more than 2 % is not", {**LIST, "pack_voltage_v": 13.5}, cells_2016(GOOD), ["pack_voltage_v"]),
        ("below as above", {**LIST, "pack_voltage_v": 12.9}, cells_2016(GOOD), ["pack_voltage_v"]),
        ("2025 list", {**LIST, "pack_voltage_v": 13.5}, cells_2025(GOOD), ["pack_voltage_v"]),
        ("two packs: no sum to compare with", {**LIST, "pack_voltage_v": 99.0}, cells_2016(GOOD, packs=2), []),
        ("cells in other frames", {**LIST, "pack_voltage_v": 99.0}, cells_2016(GOOD, total=204), []),
        ("the second part", {**LIST, "pack_voltage_v": 99.0}, cells_2016(GOOD, total=4, first=201), []),
        ("an invalid cell", {**LIST, "pack_voltage_v": 99.0}, cells_2016([3300, 0xFFFF, 3300, 3300]), []),
        ("no list", {"pack_voltage_v": 99.0, "cell_sum_v": 13.2}, b"", []),
        ("5 mV off is allowed", {**LIST, "max_cell_voltage_v": 3.306, "min_cell_voltage_v": 3.294},
         cells_2016(GOOD), []),
        ("6 mV is not", {**LIST, "max_cell_voltage_v": 3.307}, cells_2016(GOOD), ["max_cell_voltage_v"]),
        ("lowest 6 mV off", {**LIST, "min_cell_voltage_v": 3.305}, cells_2016(GOOD), ["min_cell_voltage_v"]),
        ("extremes over two whole packs", {**LIST, "max_cell_voltage_v": 3.4}, cells_2016(GOOD, packs=2),
         ["max_cell_voltage_v"]),
        ("extremes, list not whole", {**LIST, "max_cell_voltage_v": 3.4}, cells_2016(GOOD, total=204), []),
        ("min above max", {"min_cell_voltage_v": 3.31, "max_cell_voltage_v": 3.3}, b"",
         ["max_cell_voltage_v", "min_cell_voltage_v"]),
        ("equal extremes", {"min_cell_voltage_v": 3.3, "max_cell_voltage_v": 3.3, "min_temp_c": 5, "max_temp_c": 5},
         b"", []),
        ("min temperature above max", {"min_temp_c": 31, "max_temp_c": 30}, b"", ["max_temp_c", "min_temp_c"]),
        ("supercapacitor", {"supercap_min_temp_c": 31, "supercap_max_temp_c": 30}, b"",
         ["supercap_max_temp_c", "supercap_min_temp_c"]),
        ("charging current is negative", {"charge_state": 1, "total_current_a": -80.0}, b"", []),
        ("1 A of offset", {"charge_state": 1, "total_current_a": 1.0}, b"", []),
        ("discharging while charging", {"charge_state": 1, "total_current_a": 1.1}, b"",
         ["charge_state", "total_current_a"]),
        ("charging while driving may discharge", {"charge_state": 2, "total_current_a": 90.0, "speed_kmh": 50.0},
         b"", []),
        ("moving while parked", {"charge_state": 1, "speed_kmh": 0.1}, b"", ["charge_state", "speed_kmh"]),
        ("standing while parked", {"charge_state": 1, "speed_kmh": 0.0}, b"", []),
        ("charge state not known", {"speed_kmh": 60.0, "total_current_a": 60.0}, b"", []),
    ],
)  # fmt: skip
def test_cross_field(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, mode: str, what: str, values: dict[str, float],
    lists: bytes, suspects: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "_validate", getattr(module._validate, mode))
    edition = 25 if what == "2025 list" else 16
    frames, batch = report(make_batch, values, lists, edition=edition)
    kept = batch.num.copy()
    counts = validate(frames, batch, 300, 30)
    assert sorted(signal.name for i, signal in enumerate(SIGNALS) if batch.state[0, i] == State.SUSPECT) == sorted(
        suspects
    )
    assert (batch.num == kept).all(), "a suspect value is kept"
    assert batch.reason[0] == 0
    assert counts[:, State.SUSPECT].sum() == len(suspects)
    assert counts[:, State.VALID].sum() == len(values) - len(suspects)
    assert counts.sum() == SIGNAL_COUNT


@pytest.mark.parametrize("mode", ["compiled", "twin"])
@pytest.mark.parametrize(
    ("raw", "highest", "suspect"),
    [([60, 65], 26, False), ([60, 65], 27, True), ([60, 0xFF], 27, False), ([60, 0xFE], 27, False), ([], 99, False)],
)
def test_probes(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, mode: str, raw: list[int], highest: int, suspect: bool
) -> None:
    monkeypatch.setattr(module, "_validate", getattr(module._validate, mode))
    frames, batch = report(make_batch, {"max_temp_c": highest, "probe_max_c": 25}, probes=temps(raw) if raw else b"")
    validate(frames, batch, 300, 30)
    assert (batch.state[0, INDEX["max_temp_c"]] == State.SUSPECT) == suspect
    assert batch.state[0, INDEX["probe_max_c"]] == State.VALID


@pytest.mark.parametrize("mode", ["compiled", "twin"])
@pytest.mark.parametrize(
    ("ahead_s", "reason"),
    [(0, 0), (300, 0), (301, CODE["clock_future"]), (-30 * DAY, 0), (-30 * DAY - 1, CODE["clock_past"]),
     (946_684_800 - NOW_S, CODE["clock_past"]), (4_070_908_800 - NOW_S, CODE["clock_future"])],
)  # fmt: skip
def test_clock(make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, mode: str, ahead_s: int, reason: int) -> None:
    monkeypatch.setattr(module, "_validate", getattr(module._validate, mode))
    frames, batch = report(make_batch, {"speed_kmh": 1})
    batch.time_s[0] += ahead_s
    counts = validate(frames, batch, 300, 30)
    assert (batch.reason[0], batch.detail[0]) == (reason, 24 if reason else 0)
    assert counts.sum() == (0 if reason else SIGNAL_COUNT), "what is refused has no say in the counts"


def test_only_accepted_reports_are_looked_at(make_batch: MakeBatch) -> None:
    for kind, refused in ((1, 0), (7, 0), (0, 0), (2, CODE["structure"])):
        frames, batch = report(make_batch, {"charge_state": 1, "speed_kmh": 9})
        batch.kind[0], batch.reason[0], batch.time_s[0] = kind, refused, 0
        assert validate(frames, batch, 300, 30).sum() == 0
        assert batch.reason[0] == refused
        assert (batch.state != State.SUSPECT).all()


@QUICK
@given(seed=st.integers(0, 2**32), n=st.integers(1, 8))
def test_kernel_and_twin_agree(make_batch: MakeBatch, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    frames, batch = make_batch(n, seed)
    # near the thresholds, lists of all shapes, clocks on both sides
    involved = sorted(
        {INDEX[name] for check in CHECKS for name in (check.a, check.b) if name} | {INDEX["charge_state"]}
    )
    batch.num[:, involved] = rng.integers(0, 4, (n, len(involved))) * np.array([SIGNALS[i].div for i in involved]) // 2
    blocks = [cells_2016(GOOD), cells_2016([1, 65535]), cells_2016(GOOD, 9, 204), cells_2025(GOOD), temps([60, 250]),
              temps([251]), b"\x00", b"\xff", b"\x01\x01", b"\x01\x01\x00\x00\x00\x00\xff\xff\x00"]  # fmt: skip
    chunks = [blocks[rng.integers(len(blocks))] for _ in range(2 * n)]
    starts = np.cumsum([0] + [len(chunk) for chunk in chunks])
    frames.data = np.frombuffer(bytearray(b"".join(chunks)), np.uint8)
    batch.var[:, [CELLS, TEMPS], 0] = starts[:-1].reshape(n, 2)
    batch.var[:, [CELLS, TEMPS], 1] = np.diff(starts).reshape(n, 2) * rng.integers(0, 2, (n, 2))
    batch.kind[:] = rng.integers(1, 4, n)
    batch.reason[:] = rng.choice([0, 0, 0, 9], n)
    batch.time_s[:] = NOW_S + rng.choice([0, 400, -40 * DAY], n)
    frames.received_us[:] = NOW_S * 1_000_000
    results = []
    for kernel in (module._validate.compiled, module._validate.twin):
        reason, detail, state = batch.reason.copy(), batch.detail.copy(), batch.state.copy()
        counts = np.zeros((SIGNAL_COUNT, STATES), np.int64)
        kernel(frames.data, frames.received_us, check_table(), 300_000_000, 30 * DAY * 1_000_000, batch.kind,
               batch.edition, reason, detail, batch.time_s, batch.part, batch.num, state, batch.var,
               counts)  # fmt: skip
        results.append([array.tolist() for array in (reason, detail, state, counts)])
    assert results[0] == results[1]


def test_every_check_names_signals_of_one_unit() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        if check.b is not None:
            assert SIGNALS[INDEX[check.a]].unit == SIGNALS[INDEX[check.b]].unit, check.name
