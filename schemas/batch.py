"""The arrays that pass between stages: frames on their way to the journal, rows on theirs to the store.

Structure of arrays throughout; past the gateway there is no Python object per frame.

==================  ===============================  =============================================
:class:`Frames`     gateway → journal → pipeline     raw frames, accepted and refused
:class:`Batch`      decoder → validator → store      signals of reports, one line per report
:class:`RowBatch`   pipeline → store                 what one transaction writes
==================  ===============================  =============================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.keyring import ExchangedKey
from schemas.link_events import LinkEvent
from schemas.signals import SIGNAL_COUNT

VIN_BYTES: Final = 17

U8 = NDArray[np.uint8]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]


class Door(IntEnum):
    """Where a frame came in."""

    GBT_TCP = 1
    MQTT = 2
    MQTT_BRIDGE = 3
    REQUEUE = 4  # a dead letter put back by an operator


class Codec(IntEnum):
    """How to read a frame's bytes."""

    GBT32960 = 1
    JSON_TELEMETRY = 2
    JSON_BMS = 3
    EVENT = 9  # no frame: what happened to a connection (``schemas.link_events``)


@dataclass(slots=True)
class Frames:
    """``n`` raw frames, back to back in ``data`` or anywhere in it.

    data (bytes,) u8 · start (n,) i64 byte offsets · length (n,) i32 bytes · received_us (n,) i64
    microseconds since 1970 UTC · door, codec, reason (n,) u8 (``schemas.reasons``; 0 = accepted) ·
    detail (n,) u32 byte offset of the error in a refused frame, else 0 · source (n,) u32 one-based
    index into ``sources``, 0 = not recorded (accepted frames).  ``sources`` say where refused frames
    came from: {"peer": "ip:port", "vin": claimed VIN or "", "client": MQTT client id or ""}.
    partition (n,) i32, offset (n,) i64 and position (n,) i32 are where the frame lies in the journal,
    once it does: which record, and which frame of it.
    """

    data: U8
    start: I64
    length: I32
    received_us: I64
    door: U8
    codec: U8
    reason: U8
    detail: U32
    source: U32
    partition: I32
    offset: I64
    position: I32
    sources: list[dict[str, str]] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.start)

    def frame(self, i: int) -> bytes:
        """Bytes of frame ``i`` (a copy)."""
        begin = int(self.start[i])
        return self.data[begin : begin + int(self.length[i])].tobytes()


# Variable-length columns of a report, kept as the wire has them: (offset, length) spans.
# CELLS..FAULTS lie in the frames' ``data``; REST lies in ``Batch.heap``, blocks one after the other
# as {type u8, length u16 big-endian, body}, because it may gather several blocks of one report.
VAR_COLUMNS: Final = ("cells", "temps", "motors", "faults", "rest")
CELLS, TEMPS, MOTORS, FAULTS, REST = range(5)

# Bits of ``Batch.notes``: what a report's reader should know, none of it a reason to refuse the report.
NOTE_TRUNCATED: Final = 1  # a block runs past the data unit; the blocks before it were read, the bytes kept in rest
NOTE_UNKNOWN_BLOCK: Final = 2  # a block type that cannot be delimited; the bytes from it on are kept in rest
NOTE_CUSTOM_BLOCK: Final = 4  # custom blocks 0x80-0xFE are in rest
NOTE_REPEATED_BLOCK: Final = 8  # a block type came twice; the second is in rest
NOTE_SIGNATURE: Final = 16  # a signature block is in rest; verified when one of the two below is set, too
NOTE_TRAILING: Final = 32  # bytes after the signature, kept in rest
NOTE_SIGNATURE_OK: Final = 64  # the signature is that of a public key known for the vehicle
NOTE_SIGNATURE_BAD: Final = 128  # it is of none of them
NOTES: Final[tuple[tuple[int, str], ...]] = (
    (NOTE_TRUNCATED, "truncated_block"),
    (NOTE_UNKNOWN_BLOCK, "unknown_block"),
    (NOTE_CUSTOM_BLOCK, "custom_block"),
    (NOTE_REPEATED_BLOCK, "repeated_block"),
    (NOTE_SIGNATURE, "signature"),
    (NOTE_TRAILING, "trailing_bytes"),
    (NOTE_SIGNATURE_OK, "signature_ok"),
    (NOTE_SIGNATURE_BAD, "signature_bad"),
)


@dataclass(slots=True)
class Batch:
    """Decoded frames, one line per frame of a :class:`Frames` (line i is frame i).

    kind (n,) u8: the command id (0x02 report, 0x03 reissue, 0x01 login, ...); lines other than
    reports carry only key, time and command · edition (n,) u8 16 or 25 · reason (n,) u8 and detail
    (n,) u32: why the decoder refuses the frame and at which byte of it (0 = it does not) · notes (n,)
    i16 · time_s (n,) i64 seconds since 1970 UTC · part (n,) i16: 0, or the first cell number where a
    pack's cell list is split over frames of one second · digest (n,) i64: 64-bit hash of the data
    unit · num (n, SIGNAL_COUNT) i32 and state (n, SIGNAL_COUNT) u8 (``schemas.signals``; num is 0
    unless VALID or SUSPECT, and undefined where ABSENT) · var (n, 5, 2) i64 spans of the
    variable-length columns, length 0 = absent · heap (bytes,) u8 · extra (n, 2) i64 spans of the signals
    that the catalogue does not have, as the text of one JSON object each in extra_text (bytes,) u8; length
    0 = none (column ``extra``, written by ``schemas.custom`` and the JSON door).
    ``alarm_flags`` is the one unsigned signal: its num is the DWORD reinterpreted as i32.
    """

    kind: U8
    edition: U8
    reason: U8
    detail: U32
    notes: I16
    time_s: I64
    part: I16
    digest: I64
    num: I32
    state: U8
    var: I64
    heap: U8
    extra: I64 = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    extra_text: U8 = field(default_factory=lambda: np.zeros(0, np.uint8))

    @classmethod
    def empty(cls, n: int, data_bytes: int) -> Batch:
        """Arrays for ``n`` frames of ``data_bytes`` bytes in all; contents undefined until decoded."""
        return cls(
            kind=np.empty(n, np.uint8),
            edition=np.empty(n, np.uint8),
            reason=np.empty(n, np.uint8),
            detail=np.empty(n, np.uint32),
            notes=np.empty(n, np.int16),
            time_s=np.empty(n, np.int64),
            part=np.empty(n, np.int16),
            digest=np.empty(n, np.int64),
            num=np.empty((n, SIGNAL_COUNT), np.int32),
            state=np.empty((n, SIGNAL_COUNT), np.uint8),
            var=np.empty((n, len(VAR_COLUMNS), 2), np.int64),
            # a block of one byte costs type + body on the wire and three more in the heap
            heap=np.empty(2 * data_bytes + 64, np.uint8),
            extra=np.zeros((n, 2), np.int64),
        )


@dataclass(frozen=True, slots=True)
class CopyStream:
    """A PostgreSQL binary COPY body: ``columns`` in order, ``rows`` tuples, header and trailer included."""

    table: str
    columns: tuple[str, ...]
    rows: int
    data: memoryview | bytes


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A frame that could not become a row, with all that is needed to explain and requeue it."""

    partition: int
    offset: int
    position: int  # index of the frame in its journal record
    received: datetime
    reason: int
    detail: int  # byte offset of the error in ``frame``
    door: int
    codec: int
    vin: str | None  # as claimed; None when unreadable
    peer: str | None
    client: str | None
    frame: bytes
    error: str | None = None  # what was raised, of a frame that is poison or a record that is torn


@dataclass(frozen=True, slots=True)
class Login:
    """A session event of a vehicle or platform: login 0x01/0x05, logout 0x04/0x06, in the clear."""

    partition: int
    offset: int
    position: int
    received: datetime
    time: datetime
    command: int
    edition: int
    door: int
    vin: str
    vehicle_id: int | None  # None for a platform's own code
    serial: int | None
    iccid: str | None
    pack_codes: list[str] = field(default_factory=list)
    username: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What the plain COPY of a batch changes, for the statistics: one line per vehicle, in no order.

    vehicle_id (v,) i64 · from_s, to_s (v,) i64 earliest and latest collection second of its fast rows · urgent (v,)
    u8: a row that may raise an alarm is among them · late_urgent (u,) i64: vehicles with such a row among the late
    ones, whose seconds the sink learns when it merges them.
    """

    vehicle_id: I64
    from_s: I64
    to_s: I64
    urgent: U8
    late_urgent: I64


@dataclass(frozen=True, slots=True)
class RowBatch:
    """What one transaction writes.  ``positions`` maps partition → (previous, new) journal offset.

    ``telemetry`` holds rows newer than anything stored of their vehicle (plain COPY); ``late`` rows
    go through a merge that drops duplicates.  ``states`` is one row per vehicle seen; its ``reports`` is how
    many rows of the vehicle are in ``telemetry`` and ``late`` together.  ``counts`` are per partition, by the
    ledger's column names, with every row handed over under ``rows``.  In both the sink takes back what turns
    out to be a duplicate or a conflict.
    """

    telemetry: CopyStream | None
    late: CopyStream | None
    states: CopyStream | None
    days: Sequence[int]  # UTC days (days since 1970) that the telemetry touches: partitions must exist
    logins: Sequence[Login]
    dead_letters: Sequence[DeadLetter]
    positions: Mapping[int, tuple[int, int]]
    counts: Mapping[int, Mapping[str, int]]  # partition → frames, rejected, sessions... (see store ledger)
    link_events: Sequence[LinkEvent] = ()  # counted under ``other``
    keys: Sequence[ExchangedKey] = ()  # from frames counted under ``other``
    changes: Changes | None = None  # of ``telemetry``; None: nothing of it is news to the statistics


@dataclass(frozen=True, slots=True)
class Committed:
    """What the transaction found: late rows that were new, identical, or in conflict with a stored row."""

    rows: int
    duplicates: int
    conflicts: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
