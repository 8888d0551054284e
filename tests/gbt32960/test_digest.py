"""The digest is XXH64: vectors published with the algorithm, and the twin on everything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.gbt32960.digest import digest


def unsigned(function, data: bytes, begin: int = 0) -> int:
    array = np.frombuffer(bytearray(b"\x77" * begin + data), np.uint8)
    return int(function(array, begin, begin + len(data))) % (1 << 64)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
    ],
)
def test_published_vectors(data, expected):
    assert unsigned(digest.compiled, data) == expected
    assert unsigned(digest.twin, data) == expected


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.integers(0, 9))
def test_kernel_equals_twin(data, begin):
    assert unsigned(digest.compiled, data, begin) == unsigned(digest.twin, data)
