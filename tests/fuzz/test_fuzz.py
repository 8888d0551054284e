"""Garbage is accepted or refused: the corpus and random bytes through every target, once with bounds checking.

The corpus holds one file an input, by target: seeds from the recordings of other projects, what atheris found to
reach code that nothing else reached, and every input that once failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.batch import Door
from schemas.journal.record import RecordError, decode_records, encode_record
from schemas.link_events import decode
from schemas.seams import StoredRecord
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.slow

CORPUS = Path(__file__).parent / "corpus"
NOW_US = 1_780_000_000_000_000

# Bytes that get far: start marks, commands, counts and sentinels are not hit by chance.
PIECES = [
    b"##", b"$$", b"##\x02\xfe", b"$$\x02\xfe", b"LNBSCB3F4JW000001", b"\x01", b"\x00\x00", b"\xff\xff", b"\xfe",
    b"\x1a\x03\x04\x05\x06\x07", b"\x30\x00", b"\x08\x01\x01", b"\x09\x01\x01", b"\x00\x04MQTT", b"\xff\xff\xff\x7f",
    b'{"origin":1,"number":2,"event":"x"}', b"NJ\x01\x02",
]  # fmt: skip
garbage = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=24)), max_size=12).map(b"".join)


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for one in inputs:
        try:
            TARGETS[target](one.read_bytes())
        except BaseException as error:
            error.add_note(f"input: {one}")
            raise


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=150, deadline=None)
@given(data=garbage)
@example(data=b"")
def test_garbage(target: str, data: bytes) -> None:
    TARGETS[target](data)


@pytest.mark.skipif(os.environ.get("NEVSTREAM_KERNELS") == "bounds", reason="this is that run")
def test_no_kernel_reads_outside_its_arrays() -> None:
    """The same in a process whose kernels check every index: compiled ones do not, and would read on."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "NEVSTREAM_KERNELS": "bounds"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]


# -- what was found, each by name ------------------------------------------------------------------------
def one_frame(frame: bytes, **changed: object) -> bytes:
    given_ = {"received": NOW_US, "reason": 0, "source": 0, "sources": [], **changed}
    u32 = lambda value: np.array([value], np.uint32)  # noqa: E731
    return encode_record(
        frame,
        u32(len(frame)),
        np.array([given_["received"]], np.int64),
        np.array([Door.GBT_TCP], np.uint8),
        np.array([1], np.uint8),
        (np.array([1], np.uint8), u32(0), u32(given_["source"]), given_["sources"]),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"received": -(2**63)}, "arrival times"),
        ({"received": 2**62}, "arrival times"),
        ({"source": 2, "sources": [{"peer": "a"}]}, "source 2 of 1"),
        ({"sources": {"peer": "a"}}, "table of sources"),
        ({"sources": [7]}, "table of sources"),
        ({"sources": [{"vin": None}]}, "table of sources"),
    ],
)
def test_a_record_with_a_right_check_sum_and_wrong_contents_is_damaged(changed: dict[str, object], told: str) -> None:
    """Found by atheris: these passed, and the pipeline stopped at them for ever."""
    with pytest.raises(RecordError, match=told):
        decode_records([StoredRecord(0, 1, one_frame(b"x", **changed))])


@pytest.mark.parametrize("wrong", [{"origin": 1e300}, {"number": 2**64 - 1}, {"times": 2**31}, {"times": 0}])
def test_an_event_that_the_store_has_no_room_for_is_none(wrong: dict[str, float]) -> None:
    good = {"origin": 1, "number": 2, "event": "closed"}
    assert decode(orjson.dumps(good), NOW_US, 1) is not None
    assert decode(orjson.dumps({**good, **wrong}), NOW_US, 1) is None


def test_an_event_outside_of_all_dates_is_none() -> None:
    assert decode(b'{"origin":1,"number":2,"event":"x"}', -(2**62), 1) is None
