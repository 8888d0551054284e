"""The scanner: the same frames whatever the cuts, and every refusal by name (clause 6, table 2)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.gbt32960 import frame as fr
from schemas.gbt32960.commands import Command
from schemas.gbt32960.frame import BAD_BCC, FRAME, GARBAGE, NEED_MORE, OVERSIZE, build_frame

GOLDEN = json.loads((Path(__file__).parent / "data" / "frames.json").read_text())
LIMIT = 4096
ONE = bytes.fromhex(next(entry["hex"] for entry in GOLDEN if entry["id"] == "36n-logout"))
TWO = bytes.fromhex(next(entry["hex"] for entry in GOLDEN if entry["id"] == "emqx-vehicle-2025"))
BAD = bytes.fromhex(next(entry["hex"] for entry in GOLDEN if entry["id"] == "36n-platform-logout-bad-bcc"))


def scan(chunks: list[bytes], scanner=fr.next_frame) -> list[tuple[int, bytes]]:
    """Feed ``chunks`` as a reader would; neighbouring garbage is one event, the rest is left over."""
    events: list[tuple[int, bytes]] = []
    held = b""
    for chunk in chunks:
        held += chunk
        data = np.frombuffer(bytearray(held), np.uint8)
        at = 0
        while True:
            kind, start, length = scanner(data, at, len(held), LIMIT)
            assert at <= start <= start + length <= len(held)
            if kind == NEED_MORE:
                break
            assert start == at
            assert length > 0
            piece = held[start : start + length]
            if kind == GARBAGE and events and events[-1][0] == GARBAGE:
                events[-1] = (GARBAGE, events[-1][1] + piece)
            else:
                events.append((int(kind), piece))
            at = start + length
        assert start == at, "bytes before the incomplete frame have been reported"
        held = held[at:]
    return [*events, (NEED_MORE, held)]


def bytes_of(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: entry["id"])
def test_golden_frames_are_found_or_refused(entry):
    data = bytes.fromhex(entry["hex"])
    if entry["valid"]:
        expected = [(FRAME, data), (NEED_MORE, b"")]
    elif entry["id"] == "36n-platform-logout-bad-bcc":
        expected = [(BAD_BCC, data), (NEED_MORE, b"")]
    else:  # declares more bytes than there are: wait for them
        expected = [(NEED_MORE, data)]
    assert scan([data]) == expected
    assert scan(bytes_of(data)) == expected


def test_all_golden_frames_glued():
    frames = [bytes.fromhex(entry["hex"]) for entry in GOLDEN if entry["valid"]]
    assert scan([b"".join(frames)]) == [*((FRAME, frame) for frame in frames), (NEED_MORE, b"")]


def test_bad_check_byte_refuses_one_frame_and_the_rest_lives():
    assert scan([ONE + BAD + TWO]) == [(FRAME, ONE), (BAD_BCC, BAD), (FRAME, TWO), (NEED_MORE, b"")]


@pytest.mark.parametrize("lost", [1, 2, 5, 9])
def test_bytes_lost_in_a_frame_do_not_take_the_next_one_along(lost):
    torn = TWO[:26] + TWO[26 + lost :]
    assert scan([torn + ONE + TWO]) == [(BAD_BCC, torn), (FRAME, ONE), (FRAME, TWO), (NEED_MORE, b"")]


def test_damaged_length_does_not_stall_the_stream():
    """A length far beyond the limit passes over the header only."""
    damaged = ONE[:22] + b"\xf0\x00" + ONE[24:]
    assert scan([damaged + TWO]) == [(OVERSIZE, damaged[:24]), (GARBAGE, damaged[24:]), (FRAME, TWO), (NEED_MORE, b"")]


@pytest.mark.parametrize(
    "garbage",
    [b"\x00", b"#", b"####", b"GET / HTTP/1.1\r\n\r\n", b"##" + b"\xff" * 40, b"$$$" + b"#" * 30, b"\x01" * 23],
)
def test_garbage_between_frames_is_passed_over(garbage):
    whole = scan([ONE + garbage + TWO])
    assert whole == [(FRAME, ONE), (GARBAGE, garbage), (FRAME, TWO), (NEED_MORE, b"")]
    assert scan(bytes_of(ONE + garbage + TWO)) == whole


def test_a_start_mark_in_garbage_does_not_wait_for_what_it_declares():
    """Old bug of such scanners: ``##`` in noise reads a 60 KB length and the link falls silent."""
    noise = b"##" + b"\xf0" * 22
    assert scan([noise]) == [(GARBAGE, noise), (NEED_MORE, b"")]


def test_start_marks_inside_a_data_unit_are_data():
    frame = build_frame(16, Command.REALTIME, 0xFE, "LTEST000000000001", 1, b"####$$##" * 9)
    assert scan([frame + frame]) == [(FRAME, frame), (FRAME, frame), (NEED_MORE, b"")]


@pytest.mark.parametrize(
    "frame",
    [
        build_frame(16, Command.LOGIN, 0xFE, bytes(range(0x80, 0x91)), 1, b"abc"),
        build_frame(25, 0x55, 0xFE, "LTEST000000000001", 1, b"abc"),
        build_frame(25, Command.LOGIN, 0x66, "LTEST000000000001", 1, b"abc"),
        build_frame(25, Command.LOGIN, 0xFE, "LTEST000000000001", 0, b"abc"),
    ],
    ids=["vin", "command", "ack", "encryption"],
)
def test_one_oddity_still_makes_a_frame(frame):
    assert scan([frame]) == [(FRAME, frame), (NEED_MORE, b"")]


PIECES = st.lists(
    st.one_of(
        st.sampled_from([ONE, TWO, BAD, b"##", b"$$", b"#", ONE[:24], TWO[:30], TWO[3:], BAD + b"#"]),
        st.sampled_from([bytes.fromhex(entry["hex"]) for entry in GOLDEN]),
        st.binary(max_size=40),
        st.builds(lambda n: build_frame(16, 2, 0xFE, "V", 1, b"#" * n), st.integers(0, 30)),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(
    PIECES, st.lists(st.integers(0, 600), max_size=12), st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)))
)
@example([TWO[:26] + TWO[27:], ONE], [], [])
@example([BAD[:-1] + b"#", ONE], [], [])
def test_frames_do_not_depend_on_the_cuts(pieces, cuts, flips):
    stream = bytearray(b"".join(pieces))
    for at, value in flips:
        if at < len(stream):
            stream[at] = value
    stream = bytes(stream)
    whole = scan([stream])
    assert scan([stream], fr.next_frame.twin) == whole
    assert scan(bytes_of(stream)) == whole
    at = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert scan([stream[a:b] for a, b in itertools.pairwise(at)]) == whole
    assert b"".join(piece for _, piece in whole) == stream


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=1, max_size=300), st.integers(0, 40), st.integers(0, 40))
def test_bcc_kernel_equals_twin(data, begin, back):
    array = np.frombuffer(bytearray(data), np.uint8)
    begin = min(begin, len(data))
    end = max(begin, len(data) - back)
    assert fr.bcc.compiled(array, begin, end) == fr.bcc.twin(array, begin, end)


def test_building_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="65531"):
        build_frame(16, 2, 0xFE, "V", 1, bytes(65532))
    with pytest.raises(ValueError, match="17"):
        build_frame(16, 2, 0xFE, "V" * 18, 1, b"")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.just(build_frame(16, 2, 0xFE, "LTEST", 1, b"x")), st.binary(max_size=30), st.just(b"##")),
        max_size=6,
    ),
    st.integers(0, 20),
    st.integers(0, 30),
)
def test_next_header_kernel_equals_twin(pieces, at, cut):
    data = np.frombuffer(bytearray(b"".join(pieces) + b"\0"), np.uint8)
    args = (data, min(at, len(data)), max(0, len(data) - cut))
    assert fr.next_header.compiled(*args) == fr.next_header.twin(*args)


def test_a_damaged_length_at_the_end_leaves_the_frames_behind_it():
    good = build_frame(16, 2, 0xFE, "LTEST0000000001", 1, bytes(40))
    grown = bytearray(good)
    grown[22] |= 1
    data = np.frombuffer(grown + good, np.uint8)
    assert fr.next_frame(data, 0, len(data), 65_556)[0] == NEED_MORE
    assert fr.next_header(data, 0, len(data)) == len(good)
    assert fr.next_header(data[: len(good)], 0, len(good)) == len(good)
