"""The vehicles a pipeline knows: VIN → id and newest stored report; and which reports are news to it.

A report is *fast* when it is newer than everything stored of its vehicle (plain COPY), else *late*
(merged by key).  Which of the two depends on the order of arrival; what ends in the database does not.

A million vehicles are looked up at tens of nanoseconds each; a dict of bytes would cost ten times
the memory and an object per frame.  The table is a cache of the store and never ahead of it for
longer than one commit: after any failure the worker throws it away and fills it again.  Vehicles are
never removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I16, I32, I64, U8, VIN_BYTES, Batch
from schemas.jit import compiled, kernel
from schemas.keys import order_key
from schemas.seams import KnownVehicles

UNKNOWN: Final = -1
VIN_OFFSET: Final = 4  # of the identification in a GB/T 32960 frame (table 2)

_FNV_BASIS: Final = 14695981039346656037
_FNV_PRIME: Final = 1099511628211
_MIX: Final = 0x9E3779B97F4A7C15


def _slot_of_twin(data: U8, at: int, mask: int) -> int:
    mixed = _FNV_BASIS
    for byte in bytes(data[at : at + VIN_BYTES]):
        mixed = (mixed ^ byte) * _FNV_PRIME & 0xFFFF_FFFF_FFFF_FFFF
    mixed = (mixed ^ mixed >> 32) * _MIX & 0xFFFF_FFFF_FFFF_FFFF
    return mixed >> 33 & mask


@compiled
def _slot_of(data: U8, at: Any, mask: Any) -> Any:
    # FNV-1a in 64 bits, then one multiply to spread it.  Not schemas.keys.partition_of: a process
    # holds few partitions, so the bits that chose the partition are the same for all its vehicles.
    mixed = np.uint64(_FNV_BASIS)
    for i in range(VIN_BYTES):
        mixed = (mixed ^ np.uint64(data[at + i])) * np.uint64(_FNV_PRIME)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(_MIX)
    return np.int64(mixed >> np.uint64(33)) & mask


@compiled
def _same(data: U8, at: Any, vins: U8, row: Any) -> bool:
    for i in range(VIN_BYTES):  # noqa: SIM110 - numba compiles no generators
        if data[at + i] != vins[row, i]:
            return False
    return True


def _find_twin(data: U8, start: I64, lines: I64, offset: int, slots: I32, vins: U8, out: I64) -> None:
    known = {vins[slot - 1].tobytes(): int(slot) - 1 for slot in slots if slot}
    for k, line in enumerate(lines):
        at = int(start[line]) + offset
        out[k] = known.get(data[at : at + VIN_BYTES].tobytes(), UNKNOWN)


@kernel(twin=_find_twin)
def find(data: U8, start: I64, lines: I64, offset: int, slots: I32, vins: U8, out: I64) -> None:
    """Row in ``vins`` of the VIN at ``data[start[line] + offset:]`` for each of ``lines``, or ``UNKNOWN``.

    slots (power of two,) i32 holds row + 1, 0 = free · vins (rows, 17) u8 · out (len(lines),) i64.
    """
    mask = np.int64(len(slots) - 1)
    for k in range(len(lines)):
        at = start[lines[k]] + offset
        slot = _slot_of(data, at, mask)
        found = np.int64(UNKNOWN)
        while slots[slot] != 0:
            row = np.int64(slots[slot]) - 1
            if _same(data, at, vins, row):
                found = row
                break
            slot = (slot + 1) & mask
        out[k] = found


def _insert_twin(vins: U8, begin: int, end: int, slots: I32) -> int:
    known = {vins[slot - 1].tobytes() for slot in slots if slot}
    flat = vins.reshape(-1)
    for row in range(begin, end):
        vin = vins[row].tobytes()
        if vin in known:
            return row
        known.add(vin)
        slot = _slot_of_twin(flat, row * VIN_BYTES, len(slots) - 1)
        while slots[slot]:
            slot = (slot + 1) % len(slots)
        slots[slot] = row + 1
    return -1


@kernel(twin=_insert_twin)
def insert(vins: U8, begin: int, end: int, slots: I32) -> int:
    """Enter rows ``begin`` to ``end`` of ``vins`` into ``slots``; there must be room.

    Returns -1, or the first row whose VIN is there already (it and those after it are not entered).
    """
    mask = np.int64(len(slots) - 1)
    flat = vins.reshape(-1)
    for row in range(begin, end):
        at = np.int64(row) * VIN_BYTES
        slot = _slot_of(flat, at, mask)
        while slots[slot] != 0:
            if _same(flat, at, vins, np.int64(slots[slot]) - 1):
                return row
            slot = (slot + 1) & mask
        slots[slot] = np.int32(row + 1)
    return -1


class VehicleTable:
    """VIN → row, and per row ``vehicle_id`` and ``last_key`` (``schemas.keys.order_key``; 0 = no report).

    Grows by half when full; never more than half of the slots are taken.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.n = 0
        self.vins: U8 = np.zeros((capacity, VIN_BYTES), np.uint8)
        self.vehicle_id: I64 = np.zeros(capacity, np.int64)
        self.last_key: I64 = np.zeros(capacity, np.int64)
        self.seat: I32 = np.zeros(capacity, np.int32)  # scratch of the classify kernel, all zero between calls
        self._slots: I32 = np.zeros(_slots_for(capacity), np.int32)

    @classmethod
    def of(cls, known: KnownVehicles) -> VehicleTable:
        """A table with every vehicle that the store knows."""
        table = cls(max(1024, len(known.vehicle_id)))
        table.add(known.vin, known.vehicle_id, known.last_key)
        return table

    @property
    def nbytes(self) -> int:
        return self.vins.nbytes + self.vehicle_id.nbytes + self.last_key.nbytes + self.seat.nbytes + self._slots.nbytes

    def add(self, vin: NDArray[np.uint8], vehicle_id: I64, last_key: I64 | None = None) -> I64:
        """Enter vehicles that are not there yet; vin (m, 17) u8 zero padded.  Returns their rows."""
        begin, end = self.n, self.n + len(vehicle_id)
        if end > len(self.vehicle_id):
            self._grow(max(end, len(self.vehicle_id) + len(self.vehicle_id) // 2))
        self.vins[begin:end] = vin
        self.vehicle_id[begin:end] = vehicle_id
        self.last_key[begin:end] = 0 if last_key is None else last_key
        twice = insert(self.vins, begin, end, self._slots)
        assert twice == -1, f"vehicle {self.vins[twice].tobytes()!r} entered twice"
        self.n = end
        return np.arange(begin, end, dtype=np.int64)

    def rows(self, data: U8, start: I64, lines: I64, offset: int = VIN_OFFSET) -> I64:
        """Row of the vehicle of each of ``lines``, ``UNKNOWN`` where there is none."""
        out = np.empty(len(lines), np.int64)
        find(data, start, lines, offset, self._slots, self.vins, out)
        return out

    def _grow(self, capacity: int) -> None:
        vins = np.zeros((capacity, VIN_BYTES), np.uint8)
        vins[: self.n] = self.vins[: self.n]
        self.vins = vins
        for name in ("vehicle_id", "last_key"):
            grown = np.zeros(capacity, np.int64)
            grown[: self.n] = getattr(self, name)[: self.n]
            setattr(self, name, grown)
        self.seat = np.zeros(capacity, np.int32)
        if len(self._slots) < _slots_for(capacity):
            self._slots = np.zeros(_slots_for(capacity), np.int32)
            insert(self.vins, 0, self.n, self._slots)


def _slots_for(capacity: int) -> int:
    return 1 << (2 * capacity - 1).bit_length()


# -- which reports are news ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Classified:
    """Lines and table rows of the reports: fast, late, and the newest of each vehicle with its report count."""

    fast: I64
    fast_row: I64
    late: I64
    late_row: I64
    newest: I64
    newest_row: I64
    reports: I64


def _key_twin(time_s: int, kind: int, part: int) -> int:
    return order_key(int(time_s), int(kind), int(part) & 0xFFFF)


def _classify_twin(
    lines: I64, rows: I64, time_s: I64, kind: U8, part: I16, digest: I64, last_key: I64, seat: I32,  # noqa: ARG001
    fast: I64, late: I64, newest: I64, reports: I64, sizes: I64,
) -> None:  # fmt: skip
    fast_found, late_found = [], []
    best: dict[int, tuple[int, int, int]] = {}  # row → (key, -digest, position), in order of appearance
    count: dict[int, int] = {}
    for position, (line, row) in enumerate(zip(lines.tolist(), rows.tolist(), strict=True)):
        key = _key_twin(time_s[line], kind[line], part[line])
        if key > last_key[row]:
            last_key[row] = key
            fast_found.append(position)
        else:
            late_found.append(position)
        count[row] = count.get(row, 0) + 1
        candidate = (key, -int(digest[line]), position)
        if row not in best or candidate[:2] > best[row][:2]:
            best[row] = candidate
    fast[: len(fast_found)] = fast_found
    late[: len(late_found)] = late_found
    newest[: len(best)] = [position for _, _, position in best.values()]
    reports[: len(best)] = list(count.values())
    sizes[:] = len(fast_found), len(late_found), len(best)


@kernel(twin=_classify_twin)
def _classify(
    lines: I64, rows: I64, time_s: I64, kind: U8, part: I16, digest: I64, last_key: I64, seat: I32,
    fast: I64, late: I64, newest: I64, reports: I64, sizes: I64,
) -> None:  # fmt: skip
    # seat (vehicles,) i32 is 0 on entry and on exit: one-based place of a vehicle in ``newest``.
    n_fast = np.int64(0)
    n_late = np.int64(0)
    n_seen = np.int64(0)
    for position in range(len(lines)):
        line = lines[position]
        row = rows[position]
        key = time_s[line] << 24 | np.int64(kind[line]) << 16 | (np.int64(part[line]) & 0xFFFF)
        if key > last_key[row]:
            last_key[row] = key
            fast[n_fast] = position
            n_fast += 1
        else:
            late[n_late] = position
            n_late += 1
        if seat[row] == 0:
            newest[n_seen] = position
            reports[n_seen] = 1
            n_seen += 1
            seat[row] = np.int32(n_seen)
        else:
            place = np.int64(seat[row]) - 1
            reports[place] += 1
            best = lines[newest[place]]
            best_key = time_s[best] << 24 | np.int64(kind[best]) << 16 | (np.int64(part[best]) & 0xFFFF)
            if key > best_key or (key == best_key and digest[line] < digest[best]):
                newest[place] = position
    for position in range(len(lines)):
        seat[rows[position]] = 0
    sizes[0] = n_fast
    sizes[1] = n_late
    sizes[2] = n_seen


def classify(batch: Batch, lines: I64, rows: I64, table: VehicleTable) -> Classified:
    """Sort the reports ``lines`` (of vehicles ``rows``) into fast and late; moves ``table.last_key`` on."""
    n = len(lines)
    fast, late, newest, reports = (np.empty(n, np.int64) for _ in range(4))
    sizes = np.zeros(3, np.int64)
    _classify(
        lines, rows, batch.time_s, batch.kind, batch.part, batch.digest, table.last_key, table.seat,
        fast, late, newest, reports, sizes,
    )  # fmt: skip
    fast, late, newest = fast[: sizes[0]], late[: sizes[1]], newest[: sizes[2]]
    return Classified(
        lines[fast], rows[fast], lines[late], rows[late], lines[newest], rows[newest], reports[: sizes[2]].copy()
    )


def warm() -> None:
    """Compile this module's kernels."""
    table = VehicleTable(4)
    vin = np.full((1, VIN_BYTES), 65, np.uint8)
    table.add(vin, np.ones(1, np.int64))
    line = np.zeros(1, np.int64)
    classify(Batch.empty(1, 1), line, table.rows(vin.reshape(-1), line, line, 0), table)
