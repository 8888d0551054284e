"""Passwords of platform logins are blotted out before frames reach the journal: secrets are not kept.

Every frame of a group passes here, whichever door it came in by and whether it was taken or refused.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import U8, U32, Codec
from schemas.gbt32960.commands import Command, Encryption
from schemas.gbt32960.frame import AT_COMMAND, AT_ENCRYPTION, AT_LENGTH, AT_UNIT

PASSWORD: Final = slice(AT_UNIT + 20, AT_UNIT + 40)  # after time, serial and user name (6.3)
_MARKS: Final = (b"##", b"$$")


def blot_passwords(data: U8, length: U32, codec: NDArray[np.uint8]) -> None:
    """Overwrite the passwords in frames that lie back to back in ``data``, in place.

    A right check byte stays right and a wrong one wrong, so what the frame is judged by does not change; where
    the frame is not as long as it says there is no check byte to mend.
    """
    start = np.cumsum(length, dtype=np.int64) - length
    logins = np.flatnonzero((codec == Codec.GBT32960) & (length > PASSWORD.start))
    logins = logins[data[start[logins] + AT_COMMAND] == Command.PLATFORM_LOGIN]
    for line in logins.tolist():
        frame = data[start[line] : start[line] + length[line]]
        if frame[:2].tobytes() not in _MARKS or frame[AT_ENCRYPTION] != Encryption.NONE:
            continue
        whole = len(frame) == AT_UNIT + int(frame[AT_LENGTH]) * 256 + int(frame[AT_LENGTH + 1]) + 1
        password = frame[PASSWORD] if not whole else frame[PASSWORD.start : min(PASSWORD.stop, len(frame) - 1)]
        before = np.bitwise_xor.reduce(password)
        password[:] = ord("*")
        if whole:
            frame[-1] ^= before ^ np.bitwise_xor.reduce(password)
