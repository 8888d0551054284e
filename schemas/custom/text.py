"""Values to the text of ``extra``: one JSON object a row, numbers printed digit by digit from whole numbers.

{"door_count":4,"cabin_temp_c":21.5,"_flaws":{"tyre_1_pressure_kpa":"invalid"}}
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from schemas.batch import I64, U8
from schemas.custom.model import FLAWS_KEY
from schemas.jit import compiled, kernel
from schemas.signals import State

_STATE_WORDS: Final = tuple(f'"{state.name.lower()}"'.encode() for state in State)
_ABSENT, _VALID = int(State.ABSENT), int(State.VALID)
_WORDS: Final = b"".join(_STATE_WORDS)
_WORD_AT: Final = tuple(int(at) for at in np.cumsum([0, *map(len, _STATE_WORDS)]))
_FLAWS_LABEL: Final = f'"{FLAWS_KEY}":{{'.encode()

VALUE_BYTES: Final = 24  # most that a value takes beside its label: sign, 19 digits, point, comma; or a state and comma
FLAWS_BYTES: Final = len(_FLAWS_LABEL) + 4  # and braces


def write_text_twin(num: I64, digits: U8, state: U8, labels: U8, label_at: I64, out: U8, span: I64) -> int:
    at = 0
    for line in range(len(num)):
        values, flaws = [], []
        for slot in range(num.shape[1]):
            label = labels[label_at[slot] : label_at[slot + 1]].tobytes()
            if state[line, slot] == State.VALID:
                values.append(label + _decimal_twin(int(num[line, slot]), int(digits[line, slot])))
            elif state[line, slot] != State.ABSENT:
                flaws.append(label + _STATE_WORDS[state[line, slot]])
        if flaws:
            values.append(_FLAWS_LABEL + b",".join(flaws) + b"}")
        text = b"{" + b",".join(values) + b"}" if values else b""
        out[at : at + len(text)] = np.frombuffer(text, np.uint8)
        span[line] = at, len(text)
        at += len(text)
    return at


def _decimal_twin(num: int, digits: int) -> bytes:
    whole, part = divmod(abs(num), 10**digits)
    fraction = f".{part:0{digits}d}".rstrip("0").rstrip(".") if digits else ""
    return f"{'-' if num < 0 else ''}{whole}{fraction}".encode()


@compiled
def _put(out: U8, at: Any, source: U8, begin: Any, end: Any) -> Any:
    for i in range(begin, end):
        out[at + i - begin] = source[i]
    return at + end - begin


@compiled
def _put_decimal(out: U8, at: Any, num: Any, digits: Any) -> Any:
    """num / 10**digits, without zeros at the end: the digits are written backwards into their place."""
    rest = np.uint64(num)
    if num < 0:
        out[at] = 45  # -
        at += 1
        rest = np.uint64(0) - rest
    ten = np.uint64(10)
    places = np.int64(digits)
    while places > 0 and rest % ten == 0:
        rest //= ten
        places -= 1
    count = np.int64(1)
    more = rest // ten
    while more:
        count += 1
        more //= ten
    count = max(count, places + 1)  # 0.05: a zero before the point
    end = at + count + (1 if places else 0)
    for i in range(count):
        here = end - 1 - i
        if places and i >= places:
            here -= 1
        out[here] = np.uint8(np.uint64(48) + rest % ten)
        rest //= ten
    if places:
        out[end - 1 - places] = 46  # .
    return end


@kernel(twin=write_text_twin)
def write_text(num: I64, digits: U8, state: U8, labels: U8, label_at: I64, out: U8, span: I64) -> int:
    """The JSON objects of ``n`` lines into ``out``, their (begin, length) into span (n, 2); returns the bytes used."""
    at = np.int64(0)
    for line in range(len(num)):
        first = at
        flawed = False
        for slot in range(num.shape[1]):
            known = state[line, slot]
            if known == _VALID:
                out[at] = 123 if at == first else 44  # { or ,
                at = _put(out, at + 1, labels, label_at[slot], label_at[slot + 1])
                at = _put_decimal(out, at, num[line, slot], digits[line, slot])
            elif known != _ABSENT:
                flawed = True
        if flawed:
            out[at] = 123 if at == first else 44
            at += 1
            for i in range(len(_FLAWS_LABEL)):
                out[at + i] = _FLAWS_LABEL[i]
            at += len(_FLAWS_LABEL)
            for slot in range(num.shape[1]):
                known = np.int64(state[line, slot])
                if known != _ABSENT and known != _VALID:
                    at = _put(out, at, labels, label_at[slot], label_at[slot + 1])
                    for i in range(_WORD_AT[known], _WORD_AT[known + 1]):
                        out[at] = _WORDS[i]
                        at += 1
                    out[at] = 44
                    at += 1
            out[at - 1] = 125  # } in the last comma's place
        if at > first:
            out[at] = 125
            at += 1
        span[line, 0] = first
        span[line, 1] = at - first
    return at  # type: ignore[return-value]
