"""One row per open connection, as arrays that kernels can read.

A row is a *slot*; slots are used again, so whoever keeps a slot over an await keeps the row's
``serial`` with it and compares before acting.  Nothing here touches a socket.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.batch import I32, I64, U8, VIN_BYTES
from schemas.keys import partition_of

if TYPE_CHECKING:
    from services.gateway.link import Link

_FIRST_ROWS: Final = 1024
_NO_LINK: Final = -1


class State(IntEnum):
    """What a connection may do.  The scan kernels read these numbers."""

    NEW = 0  # nothing proven yet
    VEHICLE = 1  # MQTT connected, or GB/T vehicle logged in: speaks for ``vin``
    PLATFORM = 2  # GB/T platform logged in: speaks for any vehicle
    WAITING = 3  # a password is being verified; bytes wait
    CLOSING = 4  # what still comes in is thrown away


STATES: Final = len(State)
ALIASES: Final = 16  # topic alias maximum: a vehicle has three topics


class Connections:
    """The rows; they grow by doubling up to ``rows_max``.

    state u8 · five u8 (MQTT 5) · vin (rows, 17) u8 zero padded · partition i32 · unacked i32 (QoS 1
    and 2 messages of an MQTT connection that are not yet durable) · aliases (rows, ALIASES) u8 (what an MQTT 5 topic
    alias stands for: the class of its topic plus one, 0 for nothing yet) · serial i64 (unique per connection) ·
    last_seen_s f64 and timeout_s f64 on the loop's clock.
    """

    def __init__(self, rows_max: int, partitions: int) -> None:
        rows = min(_FIRST_ROWS, rows_max)
        self.rows_max = rows_max
        self.partitions = partitions
        self.state: U8 = np.zeros(rows, np.uint8)
        self.five: U8 = np.zeros(rows, np.uint8)
        self.vin: U8 = np.zeros((rows, VIN_BYTES), np.uint8)
        self.partition: I32 = np.zeros(rows, np.int32)
        self.unacked: I32 = np.zeros(rows, np.int32)
        self.aliases: U8 = np.zeros((rows, ALIASES), np.uint8)
        self.serial: I64 = np.full(rows, _NO_LINK, np.int64)
        self.last_seen_s = np.zeros(rows, np.float64)
        self.timeout_s = np.full(rows, np.inf)
        self.links: list[Link | None] = [None] * rows
        self._free = list(range(rows - 1, -1, -1))
        self._next_serial = 0

    @property
    def count(self) -> int:
        return len(self.links) - len(self._free)

    def open(self, link: Link, now_s: float, timeout_s: float) -> int | None:
        """A fresh row for ``link``, None when ``rows_max`` are open."""
        if not self._free:
            if len(self.links) >= self.rows_max:
                return None
            self._grow(min(self.rows_max, 2 * len(self.links)))
        slot = self._free.pop()
        self.state[slot] = State.NEW
        self.five[slot] = 0
        self.vin[slot] = 0
        self.partition[slot] = 0
        self.unacked[slot] = 0
        self.aliases[slot] = 0
        self.serial[slot] = self._next_serial
        self._next_serial += 1
        self.last_seen_s[slot] = now_s
        self.timeout_s[slot] = timeout_s
        self.links[slot] = link
        return slot

    def close(self, slot: int) -> None:
        self.links[slot] = None
        self.serial[slot] = _NO_LINK
        self.state[slot] = State.CLOSING
        self.timeout_s[slot] = np.inf
        self._free.append(slot)

    def bind(self, slot: int, state: State, vin: bytes) -> None:
        """The row speaks for ``vin`` (17 bytes, zero padded) from now on."""
        self.state[slot] = state
        self.vin[slot] = np.frombuffer(vin, np.uint8)
        self.partition[slot] = partition_of(self.vin[slot], 0, self.partitions)

    def overdue(self, now_s: float) -> list[Link]:
        """Connections that have been silent for longer than their timeout."""
        late = np.flatnonzero(now_s - self.last_seen_s > self.timeout_s)
        return [link for slot in late.tolist() if (link := self.links[slot]) is not None]

    def all(self) -> list[Link]:
        return [link for link in self.links if link is not None]

    def _grow(self, rows: int) -> None:
        old = len(self.links)
        more = rows - old

        def longer(array: np.ndarray, fill: float) -> np.ndarray:
            return np.concatenate([array, np.full((more, *array.shape[1:]), fill, array.dtype)])

        self.state = longer(self.state, 0)
        self.five = longer(self.five, 0)
        self.vin = longer(self.vin, 0)
        self.partition = longer(self.partition, 0)
        self.unacked = longer(self.unacked, 0)
        self.aliases = longer(self.aliases, 0)
        self.serial = longer(self.serial, _NO_LINK)
        self.last_seen_s = longer(self.last_seen_s, 0)
        self.timeout_s = longer(self.timeout_s, np.inf)
        self.links += [None] * more
        self._free += range(rows - 1, old - 1, -1)
