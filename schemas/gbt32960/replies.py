"""Replies to frames (clause 6.3.2, annex B.2): same start mark, command and identification, another flag.

Short form: the request's time (its first six bytes) and nothing else, N = 6; requests without a leading
time, and encrypted ones (their first bytes are ciphertext), are answered with N = 0.  Long form, annex B
of 2016: the whole data unit comes back.  A time sync is answered with the server's Beijing time.  A
frame whose flag is not 0xFE is itself a reply and must never be answered; the caller sees to that.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,return-value"

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.batch import U8
from schemas.gbt32960.commands import BY_ID, Command, Encryption
from schemas.gbt32960.frame import AT_COMMAND, AT_ENCRYPTION, AT_UNIT, FRAME_BYTES_MIN, bcc_compiled
from schemas.gbt32960.times import time_bytes
from schemas.jit import kernel

TIME_BYTES: Final = 6
REPLY_BYTES_MAX: Final = FRAME_BYTES_MIN + TIME_BYTES  # of a short reply: what to leave room for

# Commands whose data unit starts with something else than a time (clause 6, annex B).
_TIMELESS: Final = tuple(int(info.id) for info in BY_ID.values() if not info.has_time)
assert _TIMELESS == (Command.HEARTBEAT, Command.TIME_SYNC, Command.ACTIVATION_RESULT, Command.KEY_EXCHANGE), (
    "write_reply tests for these four by number"
)


def _close(frame: bytearray) -> bytes:
    """Write the length and the check byte of a frame whose last byte is the check byte's place."""
    frame[22:24] = (len(frame) - FRAME_BYTES_MIN).to_bytes(2, "big")
    check = 0
    for byte in frame[AT_COMMAND:-1]:
        check ^= byte
    frame[-1] = check
    return bytes(frame)


def reply(request: bytes, ack: int, style: str = "short", now_s: int | None = None) -> bytes:
    """The reply to a whole frame ``request``, flag ``ack``.

    ``style`` is "short" (time only) or "long" (the data unit repeated, 2016 annex B).  ``now_s``,
    seconds since 1970 UTC, is the time a time sync is told; without it that reply has no data unit.
    Raises ``ValueError`` when ``request`` is shorter than a frame.
    """
    if len(request) < FRAME_BYTES_MIN:
        raise ValueError(f"request of {len(request)} bytes is no frame: the smallest has {FRAME_BYTES_MIN}")
    if style not in ("short", "long"):
        raise ValueError(f"reply style {style!r}: use short or long")
    unit = request[AT_UNIT:-1]
    if request[AT_COMMAND] == Command.TIME_SYNC and now_s is not None:
        unit = time_bytes(now_s)
    elif style == "short":
        timed = request[AT_COMMAND] not in _TIMELESS and request[AT_ENCRYPTION] == Encryption.NONE
        unit = unit[:TIME_BYTES] if timed and len(unit) >= TIME_BYTES else b""
    header = bytearray(request[:AT_UNIT])
    header[3] = ack
    if style == "short":
        header[AT_ENCRYPTION] = Encryption.NONE
    return _close(header + unit + b"\0")


def time_sync_reply(request: bytes, now_s: int, ack: int = 1) -> bytes:
    """The reply to a time sync (0x08): N = 6, the server's Beijing time at ``now_s`` (seconds since 1970 UTC)."""
    return reply(request, ack, "short", now_s)


def _write_reply_twin(data: U8, start: int, length: int, ack: int, out: U8, at: int) -> int:
    answer = reply(bytes(data[start : start + length]), ack, "short")
    out[at : at + len(answer)] = np.frombuffer(answer, np.uint8)
    return len(answer)


@kernel(twin=_write_reply_twin)
def write_reply(data: U8, start: int, length: int, ack: int, out: U8, at: int) -> int:
    """Write the short reply to the frame ``data[start:start+length]`` to ``out[at:]``; returns its bytes.

    At most ``REPLY_BYTES_MAX``.  Not for a time sync, which needs a clock: see :func:`time_sync_reply`.
    """
    command = data[start + AT_COMMAND]
    timeless = command == 0x07 or command == 0x08 or command == 0x0A or command == 0x0B
    unit = np.int64(0)
    if not timeless and data[start + AT_ENCRYPTION] == 1 and length >= FRAME_BYTES_MIN + TIME_BYTES:
        unit = np.int64(TIME_BYTES)
    for i in range(AT_UNIT + unit):
        out[at + i] = data[start + i]
    out[at + 3] = ack
    out[at + AT_ENCRYPTION] = 1
    out[at + 22] = 0
    out[at + 23] = unit
    total = FRAME_BYTES_MIN + unit
    out[at + total - 1] = bcc_compiled(out, at + AT_COMMAND, at + total - 1)
    return total


def warm() -> None:
    """Compile the kernels of this module with the types they are called with."""
    request = np.zeros(FRAME_BYTES_MIN, np.uint8)
    write_reply(request, 0, FRAME_BYTES_MIN, 1, np.zeros(REPLY_BYTES_MAX, np.uint8), 0)
