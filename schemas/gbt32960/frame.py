"""Frames in a byte stream: start mark, declared length, check byte (clause 6, table 2).

A frame is found by its length.  ``##`` and ``$$`` may occur inside a data unit (nothing is escaped),
so a start mark alone is never trusted: three of these four must hold as well, or the mark is passed
over as garbage without waiting for the bytes it seems to declare:

* the command id is one that the standard defines
* the response flag is one that it defines
* the encryption byte is one that it defines
* the identification is printable ASCII, zero padded on the right

Three of four, so that a frame wrong in one respect (an unknown command, a VIN in another alphabet) still
comes out as a frame, to be refused by name.

Every answer depends on the bytes of the stream alone, never on how they were cut into reads: what
cannot be decided yet is ``NEED_MORE``.  After a wrong check byte the declared length is kept, unless the
frame's own bytes hold the header of another one (all four conditions): then bytes were lost on the way,
the refused frame ends there, and the next one lives.  No Python object is made per frame here.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,return-value"

from __future__ import annotations

from typing import Any, Final

import numpy as np

from schemas.batch import U8, VIN_BYTES
from schemas.gbt32960.commands import MARK, Command
from schemas.jit import compiled, kernel

NEED_MORE: Final = 0  # start is where the incomplete frame begins; call again when there are more bytes
FRAME: Final = 1  # a whole frame, check byte right
BAD_BCC: Final = 2  # a whole frame, check byte wrong (or cut short by bytes lost on the way)
GARBAGE: Final = 3  # bytes of no frame, to be passed over; neighbouring runs belong together
OVERSIZE: Final = 4  # a header that declares more than the limit; its data unit follows as garbage

HEADER_BYTES: Final = 24
FRAME_BYTES_MIN: Final = 25
DATA_UNIT_BYTES_MAX: Final = 65531

# Offsets in a frame.
AT_COMMAND: Final = 2
AT_ACK: Final = 3
AT_VIN: Final = 4
AT_ENCRYPTION: Final = 21
AT_LENGTH: Final = 22
AT_UNIT: Final = 24

_HASH: Final = 0x23
_DOLLAR: Final = 0x24


# --- twins -----------------------------------------------------------------------------------------


def _bcc_twin(data: U8, begin: int, end: int) -> int:
    check = 0
    for byte in bytes(data[begin:end]):
        check ^= byte
    return check


def _vin_ok_twin(data: U8, at: int) -> bool:
    code = bytes(data[at : at + VIN_BYTES]).rstrip(b"\0")
    return len(code) > 0 and all(0x20 <= byte <= 0x7E for byte in code)


def _header_score(header: bytes) -> int:
    """How many of the four conditions a 24-byte header meets; -1 without a start mark."""
    if header[0] != header[1] or header[0] not in MARK.values():
        return -1
    return (
        (header[AT_COMMAND] in set(Command))
        + (header[AT_ACK] in {1, 2, 3, 4, 5, 6, 7, 0xFE})
        + (header[AT_ENCRYPTION] in {1, 2, 3, 4, 5, 0xFE, 0xFF})
        + _vin_ok_twin(np.frombuffer(header, np.uint8), AT_VIN)
    )


def _next_frame_twin(data: U8, at: int, end: int, frame_bytes_max: int) -> tuple[int, int, int]:
    stream = bytes(data[:end])

    def could_be_mark(k: int) -> bool:
        return stream[k : k + 2] in (b"##", b"$$") or (k == end - 1 and stream[k:] in (b"#", b"$"))

    # Where does the next frame begin?  Everything before it is garbage.
    begin = at
    while begin < end:
        if could_be_mark(begin):
            header = stream[begin : begin + HEADER_BYTES]
            if len(header) < HEADER_BYTES or _header_score(header) >= 3:
                break
        begin += 1
    if begin > at:
        return GARBAGE, at, begin - at
    if end - begin < HEADER_BYTES:
        return NEED_MORE, begin, 0

    total = int.from_bytes(stream[begin + AT_LENGTH : begin + AT_UNIT], "big") + FRAME_BYTES_MIN
    if total > frame_bytes_max:
        return OVERSIZE, begin, HEADER_BYTES
    if end - begin < total:
        return NEED_MORE, begin, 0
    if _bcc_twin(data, begin + AT_COMMAND, begin + total - 1) == stream[begin + total - 1]:
        return FRAME, begin, total

    # Refused.  Does another frame's header begin inside it?
    for k in range(begin + 2, begin + total):
        if could_be_mark(k):
            header = stream[k : k + HEADER_BYTES]
            if len(header) < HEADER_BYTES:
                return NEED_MORE, begin, 0
            if _header_score(header) == 4:
                return BAD_BCC, begin, k - begin
    return BAD_BCC, begin, total


# --- kernels ---------------------------------------------------------------------------------------


@kernel(twin=_bcc_twin)
def bcc(data: U8, begin: int, end: int) -> int:
    """XOR of the bytes ``data[begin:end]``, the check byte (table 2: from the command id to the last of the unit)."""
    # Unsigned indices and a u8 accumulator: without the test for negative indices LLVM folds 16
    # bytes at a time, about 10 times the rate of the loop over signed ones.
    check = np.uint8(0)
    for i in range(np.uint64(begin), np.uint64(end)):
        check ^= data[i]
    return np.int64(check)


# What kernels call: under NEVSTREAM_KERNELS=reference the public name is the twin.
bcc_compiled: Any = bcc.compiled  # type: ignore[attr-defined]


@kernel(twin=_vin_ok_twin)
def vin_ok(data: U8, at: int) -> bool:
    """Whether the 17 bytes at ``data[at:]`` are printable ASCII, zero padded on the right and not empty."""
    first = data[at]
    if first < 0x20 or first > 0x7E:
        return False
    ended = False
    for i in range(1, VIN_BYTES):
        byte = data[at + i]
        if byte == 0:
            ended = True
        elif ended or byte < 0x20 or byte > 0x7E:
            return False
    return True


vin_ok_compiled: Any = vin_ok.compiled  # type: ignore[attr-defined]


@compiled
def _score(data: U8, at: int) -> int:
    """How many of the four conditions the header at ``at`` meets; its start mark has been seen."""
    command = data[at + AT_COMMAND]
    ack = data[at + AT_ACK]
    encryption = data[at + AT_ENCRYPTION]
    score = 0
    if (command >= 0x01 and command <= 0x0B) or (command >= 0x80 and command <= 0x82):
        score += 1
    if (ack >= 0x01 and ack <= 0x07) or ack == 0xFE:
        score += 1
    if (encryption >= 0x01 and encryption <= 0x05) or encryption >= 0xFE:
        score += 1
    if score >= 2 and vin_ok_compiled(data, at + AT_VIN):
        score += 1
    return score


@compiled
def _could_be_mark(data: U8, at: int, end: int) -> bool:
    byte = data[at]
    if byte != _HASH and byte != _DOLLAR:
        return False
    return at + 1 >= end or data[at + 1] == byte


@kernel(twin=_next_frame_twin)
def next_frame(data: U8, at: int, end: int, frame_bytes_max: int) -> tuple[int, int, int]:
    """What comes next in ``data[at:end]``: ``(kind, start, length)``, the kinds of this module.

    Go on at ``start + length``.  ``start + length <= end`` always, and ``length > 0`` for every kind
    but ``NEED_MORE``, after which the caller keeps the bytes from ``start`` on and calls again with
    more.  ``OVERSIZE`` covers the 24 header bytes only; what follows is looked at again, so that a
    damaged length does not take the frames behind it along.
    """
    begin = np.int64(at)
    while begin < end:
        if _could_be_mark(data, begin, end) and (end - begin < HEADER_BYTES or _score(data, begin) >= 3):
            break
        begin += 1
    if begin > at:
        return np.int64(GARBAGE), np.int64(at), begin - at
    if end - begin < HEADER_BYTES:
        return np.int64(NEED_MORE), begin, np.int64(0)

    total = (np.int64(data[begin + AT_LENGTH]) << 8 | np.int64(data[begin + AT_LENGTH + 1])) + FRAME_BYTES_MIN
    if total > frame_bytes_max:
        return np.int64(OVERSIZE), begin, np.int64(HEADER_BYTES)
    if end - begin < total:
        return np.int64(NEED_MORE), begin, np.int64(0)
    if bcc_compiled(data, begin + AT_COMMAND, begin + total - 1) == data[begin + total - 1]:
        return np.int64(FRAME), begin, total

    for k in range(begin + 2, begin + total):
        if _could_be_mark(data, k, end):
            if end - k < HEADER_BYTES:
                return np.int64(NEED_MORE), begin, np.int64(0)
            if _score(data, k) == 4:
                return np.int64(BAD_BCC), begin, k - begin
    return np.int64(BAD_BCC), begin, total


def _next_header_twin(data: U8, at: int, end: int) -> int:
    stream = bytes(data[:end])
    for k in range(at + 2, end - HEADER_BYTES + 1):
        if _header_score(stream[k : k + HEADER_BYTES]) == 4:
            return k
    return end


@kernel(twin=_next_header_twin)
def next_header(data: U8, at: int, end: int) -> int:
    """Where in ``data[at + 2:end]`` a header begins that meets all four conditions; ``end`` when none does.

    For whoever knows that no more bytes will come: the frame at ``at`` is incomplete for good, and when its
    declared length is what was damaged, the frames behind it are whole.
    """
    for k in range(at + 2, end - HEADER_BYTES + 1):
        if _could_be_mark(data, k, end) and _score(data, k) == 4:
            return np.int64(k)
    return np.int64(end)


# --- building --------------------------------------------------------------------------------------


def identification(vin: str | bytes) -> bytes:
    """The 17 header bytes of a VIN or platform code: ASCII, zero padded.  Raises ``ValueError``."""
    raw = vin.encode("ascii") if isinstance(vin, str) else bytes(vin)
    if len(raw) > VIN_BYTES:
        raise ValueError(f"identification {vin!r} is {len(raw)} bytes, the header has room for {VIN_BYTES}")
    return raw.ljust(VIN_BYTES, b"\0")


def build_frame(edition: int, command: int, ack: int, vin: str | bytes, encryption: int, unit: bytes) -> bytes:
    """A whole frame around ``unit``.  Raises ``ValueError`` when the unit or the identification is too long."""
    if len(unit) > DATA_UNIT_BYTES_MAX:
        raise ValueError(f"data unit of {len(unit)} bytes, the standard allows {DATA_UNIT_BYTES_MAX}: split the report")
    mark = MARK[edition]
    body = bytes([command, ack]) + identification(vin) + bytes([encryption]) + len(unit).to_bytes(2, "big") + unit
    return bytes([mark, mark]) + body + bytes([_bcc_twin(np.frombuffer(body, np.uint8), 0, len(body))])


def warm() -> None:
    """Compile the kernels of this module with the types they are called with."""
    data = np.frombuffer(bytearray(build_frame(16, Command.HEARTBEAT, 0xFE, "W", 1, b"")), np.uint8)
    next_frame(data, 0, len(data), 4096)
    next_header(data, 0, len(data))
    bcc(data, 2, len(data) - 1)
    vin_ok(data, 4)
