"""Where samples lie in payloads: kernel and twin, and what the bounds refuse."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.samples.split import BAD, COLUMNS, LIMIT, READ, digests, split

VIN = b"LNBSCB3F4JW000001"


def found(which: str, payloads: list[bytes], room: int = 64, limits: tuple[int, int, int] = (4, 5, 9)) -> Any:
    bodies = [VIN + one for one in payloads]
    data = np.frombuffer(bytearray(b"".join(bodies) + b"{"), np.uint8)
    sizes = np.array([len(body) for body in bodies], np.int64)
    end = np.cumsum(sizes)
    start = end - sizes
    out = np.full((room, COLUMNS), -1, np.int64)
    n = int(getattr(split, which)(data, start, end, np.array(limits, np.int64), out))
    return n, out[:n].tolist()


def spans(payload: bytes, **more: Any) -> list[tuple[bytes, int, int]]:
    """(bytes, status, offset in the payload) of each sample."""
    n, table = found("compiled", [payload], **more)
    assert (n, table) == found("twin", [payload], **more)
    return [
        (payload[begin - 17 : end - 17], status, offset - 17 if status else 0)
        for _, begin, end, status, offset in table[:n]
    ]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"a":1}', [(b'{"a":1}', READ, 0)]),
        (b' \n[ {"a":1} , {"b":[]}\t]\r', [(b'{"a":1}', READ, 0), (b'{"b":[]}', READ, 0)]),
        (b'[{"a":"}],{"}]', [(b'{"a":"}],{"}', READ, 0)]),
        (b'[{"a":"\\"]"}]', [(b'{"a":"\\"]"}', READ, 0)]),
        (b"", [(b"", BAD, 0)]),
        (b"  ", [(b"  ", BAD, 2)]),
        (b"[]", [(b"[]", BAD, 1)]),
        (b"[{},]", [(b"[{},]", BAD, 4)]),
        (b"[{}{}]", [(b"[{}{}]", BAD, 3)]),
        (b"{}x", [(b"{}x", BAD, 2)]),
        (b"{", [(b"{", BAD, 1)]),
        (b'{"a', [(b'{"a', BAD, 3)]),
        (b'{"a\\', [(b'{"a\\', BAD, 4)]),
        (b"{]", [(b"{]", BAD, 1)]),
        (b"[{}, 7 ,{}]", [(b"{}", READ, 0), (b"7", BAD, 5), (b"{}", READ, 0)]),
        (b'[[1],"x"]', [(b"[1]", BAD, 1), (b'"x"', BAD, 5)]),
        (b"null", [(b"null", BAD, 0)]),
        (b"[{}" + b",{}" * 4 + b"]", [(b"{}", READ, 0)] * 5),
        (b"[{}" + b",{}" * 5 + b"]", [(b"[{}" + b",{}" * 5 + b"]", LIMIT, 16)]),
        (b'{"a":[[[]]]}', [(b'{"a":[[[]]]}', READ, 0)]),
        (b'{"a":[[[[]]]]}', [(b'{"a":[[[[]]]]}', LIMIT, 8)]),
        (b'{"a":[1,2,3,4,5,6,7,8,9]}', [(b'{"a":[1,2,3,4,5,6,7,8,9]}', READ, 0)]),
        (b'[{},{"a":[1,2,3,4,5,6,7,8,9,0]}]', [(b"{}", READ, 0), (b'{"a":[1,2,3,4,5,6,7,8,9,0]}', LIMIT, 27)]),
    ],
)
def test_samples_of_a_payload(payload: bytes, expected: list[tuple[bytes, int, int]]) -> None:
    assert spans(payload) == expected


TEXT = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"1", b"null", b'"a"', b'{"a":1}', b"\xff"]
    ),
    max_size=30,
).map(b"".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(TEXT, VALUES.map(lambda value: json.dumps(value).encode())), max_size=5), st.integers(0, 8))
@example([b"[1,"], 8)
@example([b'["'], 8)
@example([b"],"], 8)
def test_kernel_and_twin(payloads: list[bytes], room: int) -> None:
    assert found("compiled", payloads, room) == found("twin", payloads, room)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), min_size=1, max_size=5))
def test_samples_are_what_a_parser_finds(samples: list[Any]) -> None:
    payload = json.dumps(samples, indent=1).encode()
    split_up = spans(payload, limits=(60, 500, 1000))
    assert [status for _, status, _ in split_up] == [READ] * len(samples)
    assert [json.loads(text) for text, _, _ in split_up] == samples


def test_ten_megabytes_of_brackets() -> None:
    for opening in (b"[", b"{", b'{"a":', b"[{"):
        n, table = found("compiled", [opening * (10_000_000 // len(opening))])
        assert n == 1
        assert table[0][3] in (BAD, LIMIT)


def test_digests() -> None:
    text = np.frombuffer(bytearray(bytes(range(200))), np.uint8)
    bounds = np.array([0, 0, 7, 50, 200], np.int64)
    ours, twins = np.zeros(4, np.int64), np.zeros(4, np.int64)
    digests.compiled(text, bounds, ours)  # type: ignore[attr-defined]
    digests.twin(text, bounds, twins)  # type: ignore[attr-defined]
    assert ours.tolist() == twins.tolist()
    assert ours[0] == 0xEF46DB3751D8E999 - (1 << 64), "XXH64 of nothing, from its own test vectors"
