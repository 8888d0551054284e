"""Rows to :class:`Records`: one per vehicle and second, values cleaned, lists put together.

Of each field the first row of the second that has it wins, in the order (kind, part).  Cell lists are put together by
their first cell number, packs one after the other in the order in which they are named; a 2016 list may be split over
frames (parts), a reissue may repeat it.  Missing by 3.1 [M]: a cell of exactly 0 V, a probe of exactly -40 °C, beside
what the decoder has masked already.  It must never look at another second: then it does not matter where a vehicle's
rows are cut.  (That an odometer of 0 is missing after a larger value is the folds' matter, see ``folds.clean``.)
"""

# mypy: disable-error-code="arg-type,return-value,assignment"

from __future__ import annotations

from typing import Any, Final

import numpy as np

from schemas.jit import compiled, kernel
from schemas.statistics.records import (
    CELL_COUNT,
    CELL_MAX,
    CELL_MIN,
    CELL_SUM,
    F64,
    FIELDS,
    I16,
    I32,
    I64,
    KIND_LOGOUT,
    KIND_REISSUE,
    NO_CELL,
    NO_PROBE,
    PROBE_COUNT,
    PROBE_MAX,
    PROBE_MIN,
    REPORTED_CELL_MAX,
    REPORTED_CELL_MIN,
    REPORTED_TEMP_MAX,
    REPORTED_TEMP_MIN,
    U8,
    Records,
)
from services.statistics import making_twin
from services.statistics.reading import LIST_CELLS, LIST_FLAWS, LIST_PROBES, Rows

LATE_S: Final = 60
# Bounds of what a wrong list can make of a record: beyond them values are left out.
PACKS_MAX: Final = 64
CELLS_MAX: Final = 2048
PROBES_MAX: Final = 2048
_LATE_US: Final = LATE_S * 1_000_000
_CELL_RAW_MAX, _PROBE_RAW_MAX, _PROBE_BIAS = 60_000, 250, 40
_UNSEEN_CELL, _UNSEEN_PROBE = NO_CELL - 1, NO_PROBE + 1  # in work: not in any list of the second


@kernel(twin=making_twin.group)
def group(window: I32, time_s: I64, out_window: I32, out_time: I64, record: I64, out_record: I64) -> int:
    """Number of the record that each row, and each logout, belongs to; returns how many records there are.

    Both are sorted by (window, time).  A logout in a second that has a row is left out (-1): the vehicle reported.
    """
    n, i, k = np.int64(0), np.int64(0), np.int64(0)
    while i < len(window) or k < len(out_window):
        row_first = k >= len(out_window) or (
            i < len(window) and (window[i] < out_window[k] or (window[i] == out_window[k] and time_s[i] <= out_time[k]))
        )
        if row_first:
            of, at = window[i], time_s[i]
            while i < len(window) and window[i] == of and time_s[i] == at:
                record[i] = n
                i += 1
            while k < len(out_window) and out_window[k] == of and out_time[k] == at:
                out_record[k] = -1
                k += 1
        else:
            of, at = out_window[k], out_time[k]
            out_record[k] = n
            k += 1
            while k < len(out_window) and out_window[k] == of and out_time[k] == at:
                out_record[k] = -1
                k += 1
        n += 1
    return n


@compiled
def _u16(data: U8, at: Any) -> Any:
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])


@compiled
def _next_list(data: U8, end: Any, at: Any, old: Any, cells: Any, found: I64) -> Any:
    """Reads the head of a pack's list at ``at``; found := [pack, first (from 0), total or 0, begin, n].

    Returns where the next one begins, -1 at the end.  ``old``: 2016.
    """
    head = (10 if old else 7) if cells else 3
    if at + head > end:
        return np.int64(-1)
    found[0] = data[at]
    found[1] = 0
    found[2] = 0
    width = 1
    if cells:
        width = 2
        if old:
            first = _u16(data, at + 7)
            found[1] = first - 1 if 1 <= first <= 65531 else 0
            found[2] = _u16(data, at + 5)
            n = np.int64(data[at + 9])
        else:
            n = _u16(data, at + 5)
    else:
        n = _u16(data, at + 1)
    if n >= 65534:
        n = np.int64(0)
    found[3] = at + head
    found[4] = min(n, (end - at - head) // width)
    return at + head + width * found[4]


@compiled
def _packs(
    data: U8, lists: I64, edition: U8, begin: Any, end: Any, which: Any, most: Any, found: I64, pack: I64, size: I64
) -> Any:
    """Packs named by the rows [begin, end), in order: number into pack, values into size; returns how many."""
    n = np.int64(0)
    room = most
    for row in range(begin, end):
        at = lists[row, which, 0]
        stop = at + lists[row, which, 1]
        if at == stop or data[at] >= 254:
            continue
        count = np.int64(data[at])
        here = at + 1
        for _ in range(count):
            here = _next_list(data, stop, here, edition[row] == 16, which == LIST_CELLS, found)
            if here < 0:
                break
            wide = found[1] + found[4]
            if found[2] > wide and found[2] <= CELLS_MAX:
                wide = found[2]  # the rest is in another frame of this second, or lost
            place = np.int64(0)
            while place < n and pack[place] != found[0]:
                place += 1
            if place == n:
                if n == PACKS_MAX:
                    continue
                pack[n] = found[0]
                size[n] = 0
                n += 1
            more = min(wide - size[place], room)
            if more > 0:
                size[place] += more
                room -= more
    return n


@kernel(twin=making_twin.measure)
def measure(data: U8, lists: I64, edition: U8, record: I64, sizes: I64) -> None:
    """sizes (n, 3) i64 += cells, probes and bytes of flaws of each record."""
    found, pack, size = np.empty(5, np.int64), np.empty(PACKS_MAX, np.int64), np.empty(PACKS_MAX, np.int64)
    begin = np.int64(0)
    while begin < len(record):
        end = begin
        while end < len(record) and record[end] == record[begin]:
            sizes[record[begin], 2] += lists[end, LIST_FLAWS, 1]
            end += 1
        for which in range(2):
            most = CELLS_MAX if which == LIST_CELLS else PROBES_MAX
            packs = _packs(data, lists, edition, begin, end, which, most, found, pack, size)
            for p in range(packs):
                sizes[record[begin], which] += size[p]
        begin = end


@kernel(twin=making_twin.fill)
def fill(
    data: U8, lists: I64, row_edition: U8, record: I64, row_window: I32, row_time: I64, received_us: I64, row_kind: U8,
    row_x: F64, vehicle: I32, time_s: I64, kind: U8, edition: U8, x: F64, rows: I32, reissued: I32, repeated: I32,
    late: I32, late_us: I64, cell_span: I64, cells: I32, probe_span: I64, probes: I16, flaw_span: I64, flaws: U8,
) -> None:  # fmt: skip
    """Rows into the arrays of :class:`Records`, whose spans are set and whose counts are 0."""
    found, pack, size = np.empty(5, np.int64), np.empty(PACKS_MAX, np.int64), np.empty(PACKS_MAX, np.int64)
    fields = row_x.shape[1]
    begin = np.int64(0)
    while begin < len(record):
        k = record[begin]
        end = begin
        while end < len(record) and record[end] == k:
            end += 1
        vehicle[k] = row_window[begin]
        time_s[k] = row_time[begin]
        kind[k] = row_kind[begin]
        late_us[k] = received_us[begin] - row_time[begin] * 1_000_000
        c0, c1 = cell_span[k, 0], cell_span[k, 1]
        p0, p1 = probe_span[k, 0], probe_span[k, 1]
        for i in range(c0, c1):
            cells[i] = _UNSEEN_CELL
        for i in range(p0, p1):
            probes[i] = _UNSEEN_PROBE
        f = flaw_span[k, 0]
        for which in range(2):
            # where each pack's values begin is known only when all rows were looked at
            if which == LIST_CELLS:
                cell_packs = _packs(data, lists, row_edition, begin, end, which, CELLS_MAX, found, pack, size)
                cell_pack, cell_size = pack[:cell_packs].copy(), size[:cell_packs].copy()
            else:
                probe_packs = _packs(data, lists, row_edition, begin, end, which, PROBES_MAX, found, pack, size)
        for row in range(begin, end):
            new = row == begin
            for field in range(fields):
                if row == begin or np.isnan(x[k, field]):
                    x[k, field] = row_x[row, field]
                    new = new or not np.isnan(row_x[row, field])
            for which in range(2):
                at = lists[row, which, 0]
                stop = at + lists[row, which, 1]
                if at == stop or data[at] >= 254:
                    continue
                here = at + 1
                for _ in range(np.int64(data[at])):
                    here = _next_list(data, stop, here, row_edition[row] == 16, which == LIST_CELLS, found)
                    if here < 0:
                        break
                    into, most = np.int64(0), np.int64(-1)
                    if which == LIST_CELLS:
                        for p in range(cell_packs):
                            if cell_pack[p] == found[0]:
                                most = cell_size[p]
                                break
                            into += cell_size[p]
                        for i in range(min(found[4], most - found[1])):
                            raw = _u16(data, found[3] + 2 * i)
                            slot = c0 + into + found[1] + i
                            if cells[slot] >= 0:
                                continue
                            value = np.int32(raw) if 0 < raw <= _CELL_RAW_MAX else np.int32(NO_CELL)
                            new = new or value >= 0 or cells[slot] == _UNSEEN_CELL
                            cells[slot] = value
                    else:
                        for p in range(probe_packs):
                            if pack[p] == found[0]:
                                most = size[p]
                                break
                            into += size[p]
                        for i in range(min(found[4], most)):
                            raw = np.int64(data[found[3] + i])
                            slot = p0 + into + i
                            if probes[slot] > _UNSEEN_PROBE:
                                continue
                            value = np.int16(raw - _PROBE_BIAS) if 0 < raw <= _PROBE_RAW_MAX else np.int16(NO_PROBE)
                            new = new or value != NO_PROBE or probes[slot] == _UNSEEN_PROBE
                            probes[slot] = value
            for i in range(lists[row, LIST_FLAWS, 1]):
                flaws[f] = data[lists[row, LIST_FLAWS, 0] + i]
                f += 1
            rows[k] += 1
            reissued[k] += row_kind[row] == KIND_REISSUE
            repeated[k] += not new
            late[k] += received_us[row] - row_time[row] * 1_000_000 > _LATE_US
            edition[k] = max(edition[k], row_edition[row])
        _derive(x, k, cells, c0, c1, probes, p0, p1)
        begin = end


@compiled
def _derive(x: F64, k: Any, cells: I32, c0: Any, c1: Any, probes: I16, p0: Any, p1: Any) -> None:
    """What follows from the lists, of the lists as they are put together and cleaned."""
    if c1 > c0:
        count, valid, total = np.int64(0), np.int64(0), np.int64(0)
        low, high = np.int64(1 << 30), np.int64(-1)
        for i in range(c0, c1):
            if cells[i] == _UNSEEN_CELL:
                cells[i] = NO_CELL
                continue
            count += 1
            if cells[i] >= 0:
                valid += 1
                total += cells[i]
                low = min(low, np.int64(cells[i]))
                high = max(high, np.int64(cells[i]))
        x[k, CELL_COUNT] = count
        x[k, CELL_MAX] = high / 1000 if valid else np.nan
        x[k, CELL_MIN] = low / 1000 if valid else np.nan
        x[k, CELL_SUM] = total / 1000 if valid else np.nan
    if p1 > p0:
        count, valid = np.int64(0), np.int64(0)
        low, high = np.int64(1 << 30), np.int64(-(1 << 30))
        for i in range(p0, p1):
            if probes[i] == _UNSEEN_PROBE:
                probes[i] = NO_PROBE
                continue
            count += 1
            if probes[i] != NO_PROBE:
                valid += 1
                low = min(low, np.int64(probes[i]))
                high = max(high, np.int64(probes[i]))
        x[k, PROBE_COUNT] = count
        x[k, PROBE_MAX] = high if valid else np.nan
        x[k, PROBE_MIN] = low if valid else np.nan
    if x[k, REPORTED_CELL_MAX] == 0:
        x[k, REPORTED_CELL_MAX] = np.nan
    if x[k, REPORTED_CELL_MIN] == 0:
        x[k, REPORTED_CELL_MIN] = np.nan
    if x[k, REPORTED_TEMP_MAX] == -_PROBE_BIAS:
        x[k, REPORTED_TEMP_MAX] = np.nan
    if x[k, REPORTED_TEMP_MIN] == -_PROBE_BIAS:
        x[k, REPORTED_TEMP_MIN] = np.nan


def make(rows: Rows, out_window: I32, out_time: I64, out_edition: U8) -> tuple[Records, U8]:
    """Records of ``rows`` and of logouts, both by (window, time), and the edition of each record.

    ``vehicle`` of a record is its window; the current is as reported.
    """
    record, out_record = np.empty(rows.n, np.int64), np.empty(len(out_window), np.int64)
    n = int(group(rows.window, rows.time_s, out_window, out_time, record, out_record))
    sizes = np.zeros((n, 3), np.int64)
    measure(rows.data, rows.lists, rows.edition, record, sizes)
    ends = np.cumsum(sizes, axis=0)
    spans = [np.ascontiguousarray(np.stack([ends[:, i] - sizes[:, i], ends[:, i]], axis=1)) for i in range(3)]
    cells, probes, flaws = (int(ends[-1, i]) if n else 0 for i in range(3))
    records = Records(
        vehicle=np.empty(n, np.int32), time_s=np.empty(n, np.int64), kind=np.empty(n, np.uint8),
        x=np.full((n, len(FIELDS)), np.nan), rows=np.zeros(n, np.int32), reissued=np.zeros(n, np.int32),
        repeated=np.zeros(n, np.int32), late=np.zeros(n, np.int32), late_us=np.zeros(n, np.int64),
        cell_span=spans[LIST_CELLS], cells=np.empty(cells, np.int32), probe_span=spans[LIST_PROBES],
        probes=np.empty(probes, np.int16), flaw_span=spans[LIST_FLAWS], flaws=np.empty(flaws, np.uint8),
    )  # fmt: skip
    edition = np.zeros(n, np.uint8)
    fill(
        rows.data, rows.lists, rows.edition, record, rows.window, rows.time_s, rows.received_us, rows.kind, rows.x,
        records.vehicle, records.time_s, records.kind, edition, records.x, records.rows, records.reissued,
        records.repeated, records.late, records.late_us, records.cell_span, records.cells, records.probe_span,
        records.probes, records.flaw_span, records.flaws,
    )  # fmt: skip
    known = out_record >= 0
    at = out_record[known]
    records.vehicle[at], records.time_s[at] = out_window[known], out_time[known]
    records.kind[at], edition[at] = KIND_LOGOUT, out_edition[known]
    return records, edition


def warm() -> None:
    """Compile this module's kernels."""
    from services.statistics.reading import empty_stream, rows_of

    nothing = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.uint8)
    make(rows_of(empty_stream()), *nothing)
