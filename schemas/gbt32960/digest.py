"""XXH64 with seed 0 over a range of bytes: the content key of a data unit, 8 bytes at a time.

Chosen because it is public, has test vectors, and runs four independent lanes (a byte-wise hash would cost
more than the decoding).  Not a defence against forgery.
"""

# In kernels np.uint64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,return-value,assignment"

from __future__ import annotations

from typing import Any, Final

import numpy as np

from schemas.batch import U8
from schemas.jit import compiled, kernel

_P1: Final = 0x9E3779B185EBCA87
_P2: Final = 0xC2B2AE3D27D4EB4F
_P3: Final = 0x165667B19E3779F9
_P4: Final = 0x85EBCA77C2B2AE63
_P5: Final = 0x27D4EB2F165667C5
_ALL: Final = 0xFFFF_FFFF_FFFF_FFFF

_U1, _U2, _U3, _U4, _U5 = np.uint64(_P1), np.uint64(_P2), np.uint64(_P3), np.uint64(_P4), np.uint64(_P5)


def _digest_twin(data: U8, begin: int, end: int) -> int:
    def rotl(x: int, r: int) -> int:
        return (x << r | x >> 64 - r) & _ALL

    def lane(acc: int, word: int) -> int:
        return rotl((acc + word * _P2) & _ALL, 31) * _P1 & _ALL

    rest = bytes(data[begin:end])
    n = len(rest)
    if n >= 32:
        lanes = [(_P1 + _P2) & _ALL, _P2, 0, -_P1 & _ALL]
        while len(rest) >= 32:
            for i in range(4):
                lanes[i] = lane(lanes[i], int.from_bytes(rest[8 * i : 8 * i + 8], "little"))
            rest = rest[32:]
        h = sum(rotl(lanes[i], r) for i, r in enumerate((1, 7, 12, 18))) & _ALL
        for i in range(4):
            h = ((h ^ lane(0, lanes[i])) * _P1 + _P4) & _ALL
    else:
        h = _P5
    h = (h + n) & _ALL
    while len(rest) >= 8:
        h = (rotl(h ^ lane(0, int.from_bytes(rest[:8], "little")), 27) * _P1 + _P4) & _ALL
        rest = rest[8:]
    if len(rest) >= 4:
        h = (rotl(h ^ int.from_bytes(rest[:4], "little") * _P1 & _ALL, 23) * _P2 + _P3) & _ALL
        rest = rest[4:]
    for byte in rest:
        h = rotl(h ^ byte * _P5 & _ALL, 11) * _P1 & _ALL
    h = (h ^ h >> 33) * _P2 & _ALL
    h = (h ^ h >> 29) * _P3 & _ALL
    h ^= h >> 32
    return h - (1 << 64) if h >> 63 else h


@compiled
def _rotl(x: int, r: int) -> int:
    return (x << np.uint64(r)) | (x >> np.uint64(64 - r))


@compiled
def _lane(acc: int, word: int) -> int:
    return _rotl(acc + word * _U2, 31) * _U1


@compiled
def _word64(data: U8, at: int) -> int:
    # LLVM folds this into one load.
    word = np.uint64(data[at])
    word |= np.uint64(data[at + np.uint64(1)]) << np.uint64(8)
    word |= np.uint64(data[at + np.uint64(2)]) << np.uint64(16)
    word |= np.uint64(data[at + np.uint64(3)]) << np.uint64(24)
    word |= np.uint64(data[at + np.uint64(4)]) << np.uint64(32)
    word |= np.uint64(data[at + np.uint64(5)]) << np.uint64(40)
    word |= np.uint64(data[at + np.uint64(6)]) << np.uint64(48)
    word |= np.uint64(data[at + np.uint64(7)]) << np.uint64(56)
    return word


@kernel(twin=_digest_twin)
def digest(data: U8, begin: int, end: int) -> int:
    """XXH64 of ``data[begin:end]``, as a signed 64-bit integer."""
    at = np.uint64(begin)
    last = np.uint64(end)
    n = last - at
    if n >= np.uint64(32):
        a = _U1 + _U2
        b = _U2
        c = np.uint64(0)
        d = np.uint64(0) - _U1
        while at + np.uint64(32) <= last:
            a = _lane(a, _word64(data, at))
            b = _lane(b, _word64(data, at + np.uint64(8)))
            c = _lane(c, _word64(data, at + np.uint64(16)))
            d = _lane(d, _word64(data, at + np.uint64(24)))
            at += np.uint64(32)
        h = _rotl(a, 1) + _rotl(b, 7) + _rotl(c, 12) + _rotl(d, 18)
        zero = np.uint64(0)
        h = (h ^ _lane(zero, a)) * _U1 + _U4
        h = (h ^ _lane(zero, b)) * _U1 + _U4
        h = (h ^ _lane(zero, c)) * _U1 + _U4
        h = (h ^ _lane(zero, d)) * _U1 + _U4
    else:
        h = _U5
    h += n
    while at + np.uint64(8) <= last:
        h = _rotl(h ^ _lane(np.uint64(0), _word64(data, at)), 27) * _U1 + _U4
        at += np.uint64(8)
    if at + np.uint64(4) <= last:
        word = np.uint64(data[at]) | np.uint64(data[at + np.uint64(1)]) << np.uint64(8)
        word |= np.uint64(data[at + np.uint64(2)]) << np.uint64(16) | np.uint64(data[at + np.uint64(3)]) << np.uint64(
            24
        )
        h = _rotl(h ^ word * _U1, 23) * _U2 + _U3
        at += np.uint64(4)
    while at < last:
        h = _rotl(h ^ np.uint64(data[at]) * _U5, 11) * _U1
        at += np.uint64(1)
    h = (h ^ h >> np.uint64(33)) * _U2
    h = (h ^ h >> np.uint64(29)) * _U3
    h = h ^ h >> np.uint64(32)
    return np.int64(h)


# What kernels call: under NEVSTREAM_KERNELS=reference the public name is the twin.
digest_compiled: Any = digest.compiled  # type: ignore[attr-defined]


def warm() -> None:
    """Compile the kernel of this module with the types it is called with."""
    digest(np.zeros(40, np.uint8), 0, 40)
