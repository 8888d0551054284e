"""Replies: the golden requests get exactly the replies that other implementations sent (clause 6.3.2)."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.replies import REPLY_BYTES_MAX, reply, time_sync_reply, write_reply

GOLDEN = {
    entry["id"]: bytes.fromhex(entry["hex"])
    for entry in json.loads((Path(__file__).parent / "data" / "frames.json").read_text())
}


def kernel_reply(request: bytes, ack: int) -> bytes:
    out = np.zeros(REPLY_BYTES_MAX + 5, np.uint8)
    written = write_reply.compiled(np.frombuffer(bytearray(b"xyz" + request), np.uint8), 3, len(request), ack, out, 5)
    return out[5 : 5 + written].tobytes()


@pytest.mark.parametrize(
    ("request_id", "reply_id"),
    [
        ("36n-logout", "36n-logout-ack"),
        ("36n-heartbeat", "36n-heartbeat-ack"),
    ],
)
def test_short_replies_are_those_of_the_source(request_id, reply_id):
    assert reply(GOLDEN[request_id], 1) == GOLDEN[reply_id]
    assert kernel_reply(GOLDEN[request_id], 1) == GOLDEN[reply_id]


@pytest.mark.parametrize("name", sorted(GOLDEN))
@pytest.mark.parametrize("ack", [1, 2])
def test_kernel_equals_twin(name, ack):
    answer = reply(GOLDEN[name], ack)
    assert kernel_reply(GOLDEN[name], ack) == answer
    assert len(answer) in (25, 31)
    assert answer[3] == ack


def test_encrypted_requests_get_no_ciphertext_as_time():
    assert len(reply(GOLDEN["jtne-login-aes128"], 2)) == 25


def test_long_form_repeats_the_data_unit():
    request = GOLDEN["emqx-engine-2016"]
    answer = reply(request, 1, "long")
    assert len(answer) == len(request)
    assert answer[24:-1] == request[24:-1]
    assert answer[-1] == request[-1] ^ 0xFE ^ 0x01


def test_time_sync_is_told_beijing_time():
    now = int(datetime.fromisoformat("2026-01-01T00:00:00+08:00").timestamp())
    answer = time_sync_reply(GOLDEN["py-timesync"], now)
    assert answer[22:30] == bytes([0, 6, 26, 1, 1, 0, 0, 0])
    assert answer == build_frame(16, 8, 1, "LTEST000000000012", 1, bytes([26, 1, 1, 0, 0, 0]))


def test_a_fragment_is_no_request():
    with pytest.raises(ValueError, match="25"):
        reply(b"##", 1)
