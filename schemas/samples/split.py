"""Where the samples of JSON payloads lie: one look at every byte, before anything builds an object.

A payload in the journal is the vehicle's 17-byte VIN and then the bytes as they were published: an object, or an
array of objects.  This finds each sample's bytes and bounds what a parser will be asked to do (nesting, samples,
values); it checks brackets, strings and the commas between samples, and leaves the grammar within a sample to
the parser.  It must never recurse: ten megabytes of brackets end at the first one too many.
"""

# In kernels np.int64 pins a width; to callers it is an int, which mypy cannot know.
# mypy: disable-error-code="arg-type,return-value,assignment"

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from schemas.batch import I64, U8, VIN_BYTES
from schemas.gbt32960.digest import digest, digest_compiled
from schemas.jit import compiled, kernel

DEPTH_MAX: Final = 60  # one bit each in a word
SAMPLES_MAX: Final = 500  # of a payload: sample numbers share 31 bits with positions, see ``decode.split_payloads``
VALUES_MAX: Final = 60_000  # of a sample: a list counts itself in 16 bits

# Columns of the table of samples.
PAYLOAD, BEGIN, END, STATUS, OFFSET = range(5)
COLUMNS: Final = 5
# STATUS; OFFSET is where in the data.
READ, BAD, LIMIT = range(3)

_QUOTE, _BACKSLASH, _COMMA = 0x22, 0x5C, 0x2C
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = 0x5B, 0x5D, 0x7B, 0x7D


@dataclass(frozen=True, slots=True)
class Limits:
    """What one payload may ask for: nesting within a sample, samples in a payload, values in a sample."""

    depth_max: int = 8
    samples_max: int = 500
    values_max: int = 10_000

    def __post_init__(self) -> None:
        assert 1 <= self.depth_max <= DEPTH_MAX
        assert 1 <= self.samples_max <= SAMPLES_MAX
        assert 1 <= self.values_max <= VALUES_MAX


# -- twin ------------------------------------------------------------------------------------------

_SPACE: Final = re.compile(rb"[ \t\n\r]*")
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{},]|[^][{},"]+|"', re.DOTALL)
_SCALAR_END: Final = re.compile(rb"[ \t\n\r,\]]")


class _Refused(Exception):
    def __init__(self, status: int, offset: int) -> None:
        self.status, self.offset = status, offset


def _element(text: bytes, at: int, depth_max: int, values_max: int) -> tuple[int, int, int]:
    """(end, status, offset) of the value at ``at``."""
    if text[at] not in b"{[":
        if text[at] == _QUOTE:
            found = _TOKEN.match(text, at)
            assert found is not None
            if found.group() == b'"':
                raise _Refused(BAD, len(text))
            return found.end(), BAD, at
        stop = _SCALAR_END.search(text, at)
        return (stop.start() if stop else len(text)), BAD, at
    status, offset = (READ, 0) if text[at] == _OPEN_OBJECT else (BAD, at)
    opened: list[bytes] = []
    values = 1
    for token in _TOKEN.finditer(text, at):
        word = token.group()
        if word in (b"{", b"["):
            opened.append(word)
            if len(opened) > depth_max:
                raise _Refused(LIMIT, token.start())
        elif word in (b"}", b"]"):
            if opened.pop() + word not in (b"{}", b"[]"):
                raise _Refused(BAD, token.start())
            if not opened:
                return token.end(), status, offset
        elif word == b'"':
            raise _Refused(BAD, len(text))
        elif word == b",":
            values += 1
            if values > values_max and status == READ:
                status, offset = LIMIT, token.start()
    raise _Refused(BAD, len(text))


def _split_twin(data: U8, start: I64, end: I64, limits: I64, out: I64) -> int:
    depth_max, samples_max, values_max = limits.tolist()
    rows: list[list[int]] = []
    for payload, (first, stop) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        begin = min(first + VIN_BYTES, stop)
        text = bytes(data[begin:stop])
        found: list[list[int]] = []

        def blank(at: int, text: bytes = text) -> int:
            space = _SPACE.match(text, at)
            assert space is not None
            return space.end()

        try:
            at = blank(0)
            if at == len(text):
                raise _Refused(BAD, at)
            array = text[at] == _OPEN_LIST
            at += array
            while True:
                at = blank(at)
                if at == len(text) or (array and text[at] in b",]"):
                    raise _Refused(BAD, at)
                if len(found) == samples_max:
                    raise _Refused(LIMIT, at)
                after, status, offset = _element(text, at, depth_max, values_max)
                found.append([payload, begin + at, begin + after, status, begin + offset if status else 0])
                at = blank(after)
                if not array:
                    break
                if at == len(text) or text[at] not in b",]":
                    raise _Refused(BAD, at)
                at += 1
                if text[at - 1] == _CLOSE_LIST:
                    break
            at = blank(at)
            if at != len(text):
                raise _Refused(BAD, at)
        except _Refused as refused:
            found = [[payload, begin, stop, refused.status, begin + refused.offset]]
        rows += found
    for k, row in enumerate(rows[: len(out)]):
        out[k] = row
    return len(rows)


# -- kernels ---------------------------------------------------------------------------------------


@compiled
def _blank(data: U8, at: Any, end: Any) -> Any:
    while at < end and (data[at] == 0x20 or data[at] == 0x0A or data[at] == 0x0D or data[at] == 0x09):
        at += 1
    return at


@compiled
def _string_end(data: U8, at: Any, end: Any) -> Any:
    """Behind the string that begins at ``at``; beyond ``end`` when it does not end."""
    at += 1
    while at < end:
        byte = data[at]
        if byte == _QUOTE:
            return at + 1
        at += 2 if byte == _BACKSLASH else 1
    return end + 1


@compiled
def _split_one(data: U8, payload: Any, begin: Any, end: Any, limits: I64, out: I64, first: Any) -> Any:
    """Rows of one payload, from ``first`` on; returns (rows, status, offset), a status for the whole payload."""
    room = len(out)
    n = np.int64(0)
    bad = np.int64(BAD)
    limit = np.int64(LIMIT)
    at = _blank(data, begin, end)
    if at == end:
        return n, bad, at
    array = data[at] == _OPEN_LIST
    if array:
        at += 1
    while True:
        at = _blank(data, at, end)
        if at == end or (array and (data[at] == _COMMA or data[at] == _CLOSE_LIST)):
            return n, bad, at
        if n == limits[1]:
            return n, limit, at
        sample = at
        status = bad
        offset = at
        opening = data[at]
        if opening == _QUOTE:
            at = _string_end(data, at, end)
            if at > end:
                return n, bad, end
        elif opening != _OPEN_OBJECT and opening != _OPEN_LIST:
            while at < end and data[at] != _COMMA and data[at] != _CLOSE_LIST and _blank(data, at, at + 1) == at:
                at += 1
        else:
            if opening == _OPEN_OBJECT:
                status = np.int64(READ)
                offset = np.int64(0)
            depth = np.int64(0)
            stack = np.uint64(0)  # a bit each, 1 for an object
            values = np.int64(1)
            while True:
                if at >= end:
                    return n, bad, end
                byte = data[at]
                if byte == _QUOTE:
                    at = _string_end(data, at, end)
                    if at > end:
                        return n, bad, end
                    continue
                if byte == _COMMA:
                    values += 1
                    if values > limits[2] and status == READ:
                        status = limit
                        offset = at
                elif byte in (_OPEN_OBJECT, _OPEN_LIST):
                    depth += 1
                    if depth > limits[0]:
                        return n, limit, at
                    stack = (stack << np.uint64(1)) | np.uint64(byte == _OPEN_OBJECT)
                elif byte in (_CLOSE_OBJECT, _CLOSE_LIST):
                    if (stack & np.uint64(1)) != np.uint64(byte == _CLOSE_OBJECT):
                        return n, bad, at
                    stack = stack >> np.uint64(1)
                    depth -= 1
                    if depth == 0:
                        at += 1
                        break
                at += 1
        row = first + n
        if row < room:
            out[row, PAYLOAD] = payload
            out[row, BEGIN] = sample
            out[row, END] = at
            out[row, STATUS] = status
            out[row, OFFSET] = offset
        n += 1
        at = _blank(data, at, end)
        if not array:
            break
        if at == end or (data[at] != _COMMA and data[at] != _CLOSE_LIST):
            return n, bad, at
        at += 1
        if data[at - 1] == _CLOSE_LIST:
            break
    at = _blank(data, at, end)
    if at != end:
        return n, bad, at
    return n, np.int64(READ), at


@kernel(twin=_split_twin)
def split(data: U8, start: I64, end: I64, limits: I64, out: I64) -> int:
    """Find the samples of the payloads ``data[start:end]``, each a VIN and what was published.

    limits (3,) i64: depth, samples, values.  Writes rows (columns PAYLOAD, BEGIN, END, STATUS, OFFSET) of ``out``
    as far as there is room and returns how many there are; what lies behind them is scratch.  A payload that is
    wrong as a whole is one row.
    """
    rows = np.int64(0)
    for payload in range(len(start)):
        begin = min(start[payload] + VIN_BYTES, end[payload])
        n, status, offset = _split_one(data, payload, begin, end[payload], limits, out, rows)
        if status != READ:
            n = np.int64(1)
            if rows < len(out):
                out[rows, PAYLOAD] = payload
                out[rows, BEGIN] = begin
                out[rows, END] = end[payload]
                out[rows, STATUS] = status
                out[rows, OFFSET] = offset
        rows += n
    return rows


def _digests_twin(text: U8, bounds: I64, out: I64) -> None:
    for k in range(len(out)):
        out[k] = digest.twin(text, int(bounds[k]), int(bounds[k + 1]))  # type: ignore[attr-defined]


@kernel(twin=_digests_twin)
def digests(text: U8, bounds: I64, out: I64) -> None:
    """XXH64 of each ``text[bounds[k]:bounds[k + 1]]``."""
    for k in range(len(out)):
        out[k] = digest_compiled(text, bounds[k], bounds[k + 1])


def warm() -> None:
    """Compile this module's kernels."""
    data = np.zeros(VIN_BYTES + 2, np.uint8)
    word = np.zeros(1, np.int64)
    split(data, word, word + len(data), np.array([8, 500, 10_000], np.int64), np.empty((1, COLUMNS), np.int64))
    digests(data, np.zeros(2, np.int64), word)
