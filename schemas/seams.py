"""The seams between stages.  A stage takes the next one as one of these and knows nothing more of it.

``topology`` joins them.  Each has an in-memory twin that passes the same contract tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.batch import Committed, RowBatch


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A journal record (``schemas.journal.record``) and where it lies."""

    partition: int
    offset: int
    body: bytes


class JournalWriter(Protocol):
    """Where the gateway puts frames before it answers."""

    async def append(self, records: Sequence[tuple[int, bytes]]) -> list[int]:
        """Make (partition, record) pairs durable, all or none; returns their offsets.

        Returns only when the bytes survive a power cut.  Raises ``JournalUnavailable`` when it
        cannot say so: the caller keeps the records, waits, and appends them again (a record may then
        lie there twice; the pipeline drops duplicates).  Offsets of a partition rise in the order in
        which they become visible to readers.
        """
        ...

    async def close(self) -> None: ...


class JournalReader(Protocol):
    """Where the pipeline takes frames from.  Reading changes nothing; positions live in the store."""

    async def read(self, after: Mapping[int, int], bytes_max: int) -> list[StoredRecord]:
        """Records of the partitions in ``after`` beyond the given offsets (-1 = from the start).

        In offset order within a partition, about ``bytes_max`` bytes at most but at least one record
        when there is one; an empty list when there is none (returns at once, the caller sleeps).
        Raises ``JournalUnavailable``.
        """
        ...

    async def ends(self) -> dict[int, int]:
        """Newest offset of each partition that has any record."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class KnownVehicles:
    """Vehicles of a set of partitions, as the store has them.

    vin (n, 17) u8 zero padded · vehicle_id (n,) i64 · last_key (n,) i64: the newest stored report as
    ``schemas.keys.order_key``, 0 when it has none.
    """

    vin: NDArray[np.uint8]
    vehicle_id: NDArray[np.int64]
    last_key: NDArray[np.int64]


class VehicleDirectory(Protocol):
    """What the gateway asks about vehicles before it lets them in."""

    async def registered(self) -> set[str]:
        """VINs in the registry (the allowlist).  Raises ``StoreUnavailable``."""
        ...

    async def password_hash(self, vin: str) -> str | None:
        """Argon2 hash of the vehicle's password, None when it has none.  Raises ``StoreUnavailable``."""
        ...

    async def close(self) -> None: ...


class Sink(Protocol):
    """Where the pipeline puts row batches: PostgreSQL, or memory in tests."""

    async def positions(self, partitions: Sequence[int]) -> dict[int, int]:
        """Journal offset up to which each partition is stored; -1 for nothing yet."""
        ...

    async def known_vehicles(self) -> KnownVehicles:
        """Every known vehicle, to fill the pipeline's table at start and after a failure."""
        ...

    async def register(self, vins: Sequence[str]) -> list[int]:
        """Ids of these VINs, in order; unknown ones become vehicles first (idempotent)."""
        ...

    async def commit(self, batch: RowBatch) -> Committed:
        """Write the batch and its journal positions in one transaction.

        Raises ``PositionsMoved`` when another owner has committed past the batch's previous
        positions (nothing is written; start again from the store), ``StoreUnavailable`` when the
        database is away (nothing is known of the outcome; start again from the store).
        """
        ...

    async def close(self) -> None: ...
