"""Decoded reports and a database for benchmarks of single stages: what ``copy`` and ``journal`` begin with.

Reports are the simulator's typical ones (2016 edition, 96 cells, 20 probes, 330 bytes), many vehicles in turn, with
clocks that advance: every row takes the fast path.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.generator import MODEL
from schemas.batch import U32, Codec, Door
from schemas.journal.record import encode_record
from schemas.keys import partition_of
from services.fleetsim import wire
from services.fleetsim.chunks import Chunks
from services.fleetsim.vehicle import make_fleet
from services.store.embedded import EmbeddedServer
from services.store.migrations import migrate

PARTITIONS: Final = 8
PERIOD_S: Final = 10


@contextmanager
def database(options: Mapping[str, str] | None = None) -> Iterator[str]:
    """DSN of a migrated database on a server of its own, with the settings of the embedded one; gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="nevstream-bench-"))
    home.chmod(0o711)  # the database's unprivileged user must reach its directory
    server = EmbeddedServer(home / "pg", options=options)
    try:
        dsn = server.start()
        migrate(dsn)
        yield dsn
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Group:
    """Frames that a gateway would commit together, by partition: one by one, and back to back with their lengths."""

    by_partition: Mapping[int, list[bytes]]
    joined: Mapping[int, tuple[bytes, U32]]

    @property
    def frames(self) -> int:
        return sum(map(len, self.by_partition.values()))

    @property
    def frame_bytes(self) -> int:
        return sum(len(one) for frames in self.by_partition.values() for one in frames)

    def records(self) -> list[tuple[int, bytes]]:
        """One journal record per partition, as the gateway makes them."""
        return [(partition, record_of(frames, length)) for partition, (frames, length) in self.joined.items()]


def record_of(frames: bytes, length: U32) -> bytes:
    """A journal record of frames that arrived just now."""
    n = len(length)
    return encode_record(
        frames,
        length,
        np.full(n, time.time_ns() // 1000, np.int64),
        np.full(n, Door.GBT_TCP, np.uint8),
        np.full(n, Codec.GBT32960, np.uint8),
    )


def groups(vehicles: int, reports: int, per_group: int, seed: int) -> list[Group]:
    """``vehicles`` x ``reports`` frames in groups of about ``per_group``, all vehicles' first reports first."""
    first_s = np.full(vehicles, int(time.time()) - reports * PERIOD_S, np.int64)
    chunks = Chunks(
        make_fleet(vehicles, seed, MODEL), first_s, PERIOD_S, np.full(vehicles, wire.GBT_TCP, np.int64), {}, reports,
        1 << 62,
    )  # fmt: skip
    segments = chunks.make()
    partitions = [
        int(partition_of(np.frombuffer(bytearray(segment.data[4:21].tobytes()), np.uint8), 0, PARTITIONS))
        for segment in segments
    ]
    begins = [[0, *segment.ends[:-1]] for segment in segments]
    per_turn = max(1, per_group // vehicles)
    made = []
    for turn in range(0, reports, per_turn):
        found: dict[int, list[bytes]] = {}
        for report in range(turn, min(turn + per_turn, reports)):
            for segment, begin, partition in zip(segments, begins, partitions, strict=True):
                found.setdefault(partition, []).append(segment.data[begin[report] : segment.ends[report]].tobytes())
        joined = {
            partition: (b"".join(frames), np.array([len(one) for one in frames], np.uint32))
            for partition, frames in found.items()
        }
        made.append(Group(found, joined))
    return made
