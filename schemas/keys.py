"""Keys: which partition a vehicle's frames go to, and how reports of a vehicle are ordered."""

from __future__ import annotations

import numpy as np

from schemas.batch import U8, VIN_BYTES
from schemas.jit import kernel

ORDER_BITS = 24  # kind (8) and part (16) below the seconds


def order_key(time_s: int, kind: int, part: int) -> int:
    """One integer that orders a vehicle's reports: by time, then kind, then part of a split list."""
    return time_s << ORDER_BITS | kind << 16 | part


def _partition_twin(data: U8, start: int, partitions: int) -> int:
    mixed = 2166136261
    for byte in bytes(data[start : start + VIN_BYTES]):
        mixed = (mixed ^ byte) * 16777619 & 0xFFFFFFFF
    return (mixed ^ mixed >> 16) % partitions


@kernel(twin=_partition_twin)
def partition_of(data: U8, start: int, partitions: int) -> int:
    """Partition of the 17-byte identification at ``data[start:]``: FNV-1a folded, modulo ``partitions``."""
    mixed = np.uint32(2166136261)
    for i in range(VIN_BYTES):
        mixed = np.uint32((mixed ^ np.uint32(data[start + i])) * np.uint32(16777619))
    return int(mixed ^ (mixed >> np.uint32(16))) % partitions


def partition_of_vin(vin: str, partitions: int) -> int:
    """Partition of a VIN given as text (zero padded on the right to 17 bytes)."""
    padded = np.frombuffer(vin.encode("ascii").ljust(VIN_BYTES, b"\0"), np.uint8)
    return int(partition_of(padded, 0, partitions))


def warm() -> None:
    """Compile this module's kernel."""
    partition_of(np.zeros(VIN_BYTES, np.uint8), 0, 1)
