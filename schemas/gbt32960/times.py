"""The six time bytes (clause 6.4): plain binary, years from 2000, Beijing time (UTC+8, no DST)."""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,return-value"

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Final

import numpy as np

from schemas.batch import U8
from schemas.jit import kernel

BEIJING: Final = timezone(timedelta(hours=8))
BEIJING_OFFSET_S: Final = 8 * 3600
BAD_TIME: Final = -(1 << 62)  # what the kernels return for six bytes that are no date and time


def time_bytes(time_s: int) -> bytes:
    """Six bytes of ``time_s`` (seconds since 1970 UTC).  Raises ``ValueError`` outside the years 2000 to 2099."""
    when = datetime.fromtimestamp(time_s, BEIJING)
    if not 2000 <= when.year <= 2099:
        raise ValueError(f"{when.isoformat()} cannot be written: the year is one byte counted from 2000, up to 2099")
    return bytes([when.year - 2000, when.month, when.day, when.hour, when.minute, when.second])


def read_time(six: bytes) -> datetime | None:
    """The Beijing time in six bytes, None when they are no date and time."""
    year, month, day, hour, minute, second = six
    if year > 99:
        return None
    try:
        return datetime(2000 + year, month, day, hour, minute, second, tzinfo=BEIJING)
    except ValueError:
        return None


def _time_s_twin(data: U8, at: int) -> int:
    when = read_time(bytes(data[at : at + 6]))
    return BAD_TIME if when is None else int(when.timestamp())


@kernel(twin=_time_s_twin)
def time_s_of(data: U8, at: int) -> int:
    """Seconds since 1970 UTC of the six bytes at ``data[at:]``; ``BAD_TIME`` when they are no date and time."""
    year = np.int64(data[at])
    month = np.int64(data[at + 1])
    day = np.int64(data[at + 2])
    hour = np.int64(data[at + 3])
    minute = np.int64(data[at + 4])
    second = np.int64(data[at + 5])
    if year > 99 or month < 1 or month > 12 or day < 1 or hour > 23 or minute > 59 or second > 59:
        return np.int64(BAD_TIME)
    long_month = month == 4 or month == 6 or month == 9 or month == 11
    days_in_month = np.int64(30) if long_month else np.int64(31)
    if month == 2:
        # 2000 to 2099: every fourth year, 2000 included, is a leap year.
        days_in_month = np.int64(29) if year % 4 == 0 else np.int64(28)
    if day > days_in_month:
        return np.int64(BAD_TIME)
    # Days since 1970 with the year begun in March, so that the leap day comes last.
    shifted_year = year + 2000 - (1 if month <= 2 else 0)
    shifted_month = month + (9 if month <= 2 else -3)
    days = shifted_year * 365 + shifted_year // 4 - shifted_year // 100 + shifted_year // 400
    days += (153 * shifted_month + 2) // 5 + day - 1 - 719468
    return days * 86400 + hour * 3600 + minute * 60 + second - BEIJING_OFFSET_S


# What kernels call: under NEVSTREAM_KERNELS=reference the public name is the twin.
time_s_of_compiled: Any = time_s_of.compiled  # type: ignore[attr-defined]


def warm() -> None:
    """Compile the kernels of this module with the types they are called with."""
    time_s_of(np.array([25, 1, 1, 0, 0, 0], np.uint8), 0)
