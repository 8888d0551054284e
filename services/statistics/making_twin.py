"""The plain twin of :mod:`services.statistics.making`: what its kernels must do, with lists and dictionaries."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np

from schemas.statistics import records as r
from schemas.statistics.records import F64, I16, I32, I64, U8

_PACKS_MAX: Final = 64
_VALUES_MAX: Final = 2048


def group(window: I32, time_s: I64, out_window: I32, out_time: I64, record: I64, out_record: I64) -> int:
    rows = list(zip(window.tolist(), time_s.tolist(), strict=True))
    outs = list(zip(out_window.tolist(), out_time.tolist(), strict=True))
    number = {key: n for n, key in enumerate(sorted({*rows, *outs}))}
    record[:] = [number[key] for key in rows]
    told = set(rows)
    for k, key in enumerate(outs):
        out_record[k] = -1 if key in told else number[key]
        told.add(key)
    return len(number)


def _lists(data: U8, span: I64, edition: int, *, cells: bool) -> Iterator[tuple[int, int, int, list[int]]]:
    """(pack, first from 0, total or 0, raw values) of each pack's list."""
    begin, length = (int(value) for value in span)
    body = data[begin : begin + length].tobytes()
    if not body or body[0] >= 254:
        return
    old = edition == 16
    head, width = ((10 if old else 7), 2) if cells else (3, 1)
    at = 1
    for _ in range(body[0]):
        if at + head > len(body):
            return
        pack, first, total = body[at], 0, 0
        if cells and old:
            number = int.from_bytes(body[at + 7 : at + 9], "big")
            first = number - 1 if 1 <= number <= 65531 else 0
            total = int.from_bytes(body[at + 5 : at + 7], "big")
            n = body[at + 9]
        else:
            n = int.from_bytes(body[at + head - 2 : at + head], "big")
        n = 0 if n >= 65534 else min(n, (len(body) - at - head) // width)
        at += head
        values = [int.from_bytes(body[at + width * i : at + width * (i + 1)], "big") for i in range(n)]
        at += width * n
        yield pack, first, total, values


def _sizes(data: U8, lists: I64, edition: U8, rows: list[int], *, cells: bool) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for row in rows:
        for pack, first, total, values in _lists(data, lists[row, 0 if cells else 1], int(edition[row]), cells=cells):
            if pack not in sizes and len(sizes) == _PACKS_MAX:
                continue
            wide = first + len(values)
            if wide < total <= _VALUES_MAX:
                wide = total
            before = sizes.setdefault(pack, 0)
            room = _VALUES_MAX - sum(sizes.values())
            sizes[pack] = before + max(0, min(wide - before, room))
    return sizes


def _by_record(record: I64) -> Iterator[tuple[int, list[int]]]:
    for k, rows in itertools.groupby(range(len(record)), lambda row: int(record[row])):
        yield k, list(rows)


def measure(data: U8, lists: I64, edition: U8, record: I64, sizes: I64) -> None:
    for k, rows in _by_record(record):
        sizes[k, 0] += sum(_sizes(data, lists, edition, rows, cells=True).values())
        sizes[k, 1] += sum(_sizes(data, lists, edition, rows, cells=False).values())
        sizes[k, 2] += sum(int(lists[row, 2, 1]) for row in rows)


def fill(
    data: U8, lists: I64, row_edition: U8, record: I64, row_window: I32, row_time: I64, received_us: I64, row_kind: U8,
    row_x: F64, vehicle: I32, time_s: I64, kind: U8, edition: U8, x: F64, rows: I32, reissued: I32, repeated: I32,
    late: I32, late_us: I64, cell_span: I64, cells: I32, probe_span: I64, probes: I16, flaw_span: I64, flaws: U8,
) -> None:  # fmt: skip
    for k, of in _by_record(record):
        first = of[0]
        vehicle[k], time_s[k], kind[k] = row_window[first], row_time[first], row_kind[first]
        delays = [int(received_us[row]) - int(row_time[row]) * 1_000_000 for row in of]
        late_us[k] = delays[0]
        late[k] += sum(delay > 60_000_000 for delay in delays)
        rows[k] += len(of)
        reissued[k] += sum(int(row_kind[row]) == r.KIND_REISSUE for row in of)
        edition[k] = max(int(row_edition[row]) for row in of)
        flaws[flaw_span[k, 0] : flaw_span[k, 1]] = np.frombuffer(
            b"".join(data[begin : begin + n].tobytes() for begin, n in (lists[row, 2].tolist() for row in of)), np.uint8
        )
        told: list[dict[tuple[int, int], int | None]] = [{}, {}]  # (pack, position) → value, of cells and of probes
        for row in of:
            new = row == first
            for field in range(row_x.shape[1]):
                if np.isnan(x[k, field]) and not np.isnan(row_x[row, field]):
                    x[k, field] = row_x[row, field]
                    new = True
            for which, (most, bias) in enumerate(((60_000, 0), (250, 40))):
                sizes = _sizes(data, lists, row_edition, of, cells=which == 0)
                for pack, begin, _, values in _lists(data, lists[row, which], int(row_edition[row]), cells=which == 0):
                    for i, raw in enumerate(values):
                        key = pack, begin + i
                        if pack not in sizes or begin + i >= sizes[pack] or told[which].get(key) is not None:
                            continue
                        value = raw - bias if 0 < raw <= most else None
                        new = new or value is not None or key not in told[which]
                        told[which][key] = value
            repeated[k] += not new
        _lay_out(_sizes(data, lists, row_edition, of, cells=True), told[0], cells, cell_span[k], r.NO_CELL)
        _lay_out(_sizes(data, lists, row_edition, of, cells=False), told[1], probes, probe_span[k], r.NO_PROBE)
        good = [value for value in told[0].values() if value is not None]
        if cell_span[k, 1] > cell_span[k, 0]:
            x[k, r.CELL_COUNT] = len(told[0])
            x[k, r.CELL_MAX] = max(good) / 1000 if good else np.nan
            x[k, r.CELL_MIN] = min(good) / 1000 if good else np.nan
            x[k, r.CELL_SUM] = sum(good) / 1000 if good else np.nan
        good = [value for value in told[1].values() if value is not None]
        if probe_span[k, 1] > probe_span[k, 0]:
            x[k, r.PROBE_COUNT] = len(told[1])
            x[k, r.PROBE_MAX] = max(good) if good else np.nan
            x[k, r.PROBE_MIN] = min(good) if good else np.nan
        for field, nothing in (
            (r.REPORTED_CELL_MAX, 0), (r.REPORTED_CELL_MIN, 0), (r.REPORTED_TEMP_MAX, -40), (r.REPORTED_TEMP_MIN, -40),
        ):  # fmt: skip
            if x[k, field] == nothing:
                x[k, field] = np.nan


def _lay_out(
    sizes: dict[int, int], told: dict[tuple[int, int], int | None], out: I32 | I16, span: I64, missing: int
) -> None:
    at = int(span[0])
    for pack, size in sizes.items():
        for i in range(size):
            value = told.get((pack, i))
            out[at + i] = missing if value is None else value
        at += size
