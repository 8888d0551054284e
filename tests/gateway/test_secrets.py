"""No platform's password reaches the journal, by whichever way its login comes."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.batch import Codec
from services.gateway.secrets import blot_passwords

# Platform login 0x05 of the 2016 edition: time, serial 1, user "city", password "secret", no encryption.
HEAD = bytes.fromhex("232305fe") + b"PLATFORM000000001" + bytes.fromhex("010029")
UNIT = bytes.fromhex("1a0b181100000001") + b"city".ljust(12, b"\0") + b"secret".ljust(20, b"\0") + b"\x01"


def _with_check(body: bytes, wrong: int = 0) -> bytes:
    check = wrong
    for byte in body[2:]:
        check ^= byte
    return body + bytes([check])


LOGIN = _with_check(HEAD + UNIT)
BLOTTED = _with_check(HEAD + UNIT.replace(b"secret".ljust(20, b"\0"), b"*" * 20))
REPORT = _with_check(bytes.fromhex("232302fe") + b"LTEST000000000001" + bytes.fromhex("010029") + UNIT)


def _blot(*frames: bytes, codec: Codec = Codec.GBT32960) -> list[bytes]:
    data = np.frombuffer(bytearray(b"".join(frames)), np.uint8)
    length = np.array([len(frame) for frame in frames], np.uint32)
    blot_passwords(data, length, np.full(len(frames), codec, np.uint8))
    ends = np.cumsum(length).tolist()
    return [data[end - len(frame) : end].tobytes() for frame, end in zip(frames, ends, strict=True)]


def test_a_login_among_other_frames() -> None:
    assert _blot(REPORT, LOGIN, REPORT) == [REPORT, BLOTTED, REPORT]


def test_a_wrong_check_byte_stays_as_wrong_as_it_was() -> None:
    assert _blot(_with_check(HEAD + UNIT, wrong=0x40)) == [BLOTTED[:-1] + bytes([BLOTTED[-1] ^ 0x40])]


@pytest.mark.parametrize("cut", range(25, len(LOGIN)))
def test_a_cut_login_keeps_nothing_of_the_password(cut: int) -> None:
    (kept,) = _blot(LOGIN[:cut])

    assert kept == (HEAD + UNIT[:20] + b"*" * 20 + UNIT[40:])[:cut]


def test_what_is_no_login_stays_as_it_is() -> None:
    encrypted = bytearray(LOGIN)
    encrypted[21] = 3

    assert _blot(bytes(encrypted), b"xx" + LOGIN[2:], b"") == [bytes(encrypted), b"xx" + LOGIN[2:], b""]
    assert _blot(LOGIN, codec=Codec.JSON_BMS) == [LOGIN]
