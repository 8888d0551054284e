"""Encrypted data units and signatures in a micro-batch: opened before the decoder, verified after it.

The clear path pays for one comparison over the bytes at offset 21.  What is encrypted is a Python object each.  A
frame is decoded as if it had come in the clear; its ciphertext is what the journal has, and what a dead letter of
it shows, so that a requeue begins where the first reading did, with the keys of then.

The digest of a report is that of the *plain* data unit.  One report may come twice under two ciphertexts (another
key, another initial vector; RSA and SM2 never give the same twice) or once in the clear, and which of two readings
wins must depend on what they say, not on how they travelled or on when a key became known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from schemas.batch import (
    I64,
    NOTE_SIGNATURE,
    NOTE_SIGNATURE_BAD,
    NOTE_SIGNATURE_OK,
    REST,
    Batch,
    Codec,
    Frames,
)
from schemas.gbt32960 import check, crypto, signatures
from schemas.gbt32960.check import Secrets
from schemas.gbt32960.commands import MARK, Command, Encryption
from schemas.gbt32960.frame import AT_COMMAND, AT_ENCRYPTION, AT_LENGTH, AT_UNIT, FRAME_BYTES_MIN, bcc
from schemas.keyring import ExchangedKey
from schemas.reasons import CODE
from services.pipeline.sessions import moment

_ENCRYPTED: Final = CODE["encrypted"]
_DECRYPTION: Final = CODE["decryption"]
_SIGNATURE: Final = CODE["signature"]
_SIGNATURE_TAG: Final = 0xFF


@dataclass(slots=True)
class Opened:
    """Frames with the opened ones in place of the encrypted; ``cipher``: line → bytes as they came.

    refused: lines that a known key does not open, or whose exchanged key cannot be used · keys: line → the key that a
    0x0B frame brought.
    """

    frames: Frames
    cipher: dict[int, bytes] = field(default_factory=dict)
    refused: list[int] = field(default_factory=list)
    keys: dict[int, ExchangedKey] = field(default_factory=dict)

    def refuse(self, batch: Batch) -> None:
        """Enter the refused lines into what the decoder found; a reason of its own stays."""
        for line in self.refused:
            if batch.reason[line] in (0, _ENCRYPTED):
                batch.kind[line], batch.reason[line], batch.detail[line] = 0, _DECRYPTION, AT_UNIT


def open_frames(frames: Frames, secrets: Secrets) -> Opened:
    """Open what a key is known for, in the order of arrival: a key exchanged in this batch opens what comes after."""
    opened = Opened(frames)
    plain: dict[int, bytes] = {}
    for line in _closed(frames).tolist():
        frame = frames.frame(line)
        if not _whole(frame):
            continue  # the decoder says what is wrong
        at = moment(int(frames.received_us[line]))
        try:
            clear = check.opened(frame, secrets, at)
        except crypto.NoKey:
            continue  # the decoder refuses it: encrypted
        except crypto.CryptoError:
            opened.refused.append(line)
            continue
        if clear is not frame:
            plain[line], opened.cipher[line] = clear, frame
        try:
            key = check.brought_key(clear, secrets, at)
        except crypto.CryptoError:
            opened.refused.append(line)
            continue
        if key is not None:
            secrets.keyring.add(key)
            place = int(frames.partition[line]), int(frames.offset[line]), int(frames.position[line])
            opened.keys[line] = ExchangedKey(*place, at, key)
    if plain:
        opened.frames = _replaced(frames, plain)
    return opened


def _closed(frames: Frames) -> I64:
    """Lines that are encrypted, or bring a key: one look at two bytes of each frame."""
    data = frames.data
    if not len(data):
        return np.zeros(0, np.int64)
    at = np.minimum(frames.start + AT_ENCRYPTION, len(data) - 1)  # refused frames may be shorter
    wanted = data[at] != Encryption.NONE
    at -= AT_ENCRYPTION - AT_COMMAND
    np.maximum(at, 0, out=at)
    wanted |= data[at] == Command.KEY_EXCHANGE
    wanted &= (frames.codec == Codec.GBT32960) & (frames.reason == 0) & (frames.length > FRAME_BYTES_MIN)
    return np.flatnonzero(wanted)


def _whole(frame: bytes) -> bool:
    """Length and check byte right: what the decoder checks before anything else, here of the ciphertext."""
    raw = np.frombuffer(bytearray(frame), np.uint8)
    if frame[0] != frame[1] or frame[0] not in MARK.values():
        return False
    if int.from_bytes(frame[AT_LENGTH:AT_UNIT], "big") + FRAME_BYTES_MIN != len(frame):
        return False
    return bool(bcc(raw, AT_COMMAND, len(frame) - 1) == frame[-1])


def _replaced(frames: Frames, plain: Mapping[int, bytes]) -> Frames:
    """``frames`` with other bytes in some lines: they are put behind all others, which stay where they are."""
    lines = np.fromiter(plain, np.int64, len(plain))
    length = np.array([len(frame) for frame in plain.values()], np.int64)
    tail = np.frombuffer(b"".join(plain.values()), np.uint8)
    start, lengths = frames.start.copy(), frames.length.copy()
    start[lines] = len(frames.data) + np.cumsum(length) - length
    lengths[lines] = length
    return replace(frames, data=np.concatenate((frames.data, tail)), start=start, length=lengths)


def verify_signatures(frames: Frames, batch: Batch, secrets: Secrets) -> None:
    """Note on reports with a signature whether it is that of a known public key; with ``require`` refuse wrong ones.

    Reports whose vehicle has no public key of the algorithm stay as they are.
    """
    if not secrets.keyring.verifies:
        return
    signed = (batch.notes & NOTE_SIGNATURE != 0) & (batch.reason == 0) & (frames.reason == 0)
    for line in np.flatnonzero(signed).tolist():
        frame = frames.frame(line)
        found = _signature(batch, line, len(frame))
        good = check.verdict(frame, found, secrets, moment(int(frames.received_us[line])))
        if good is None:
            continue
        batch.notes[line] |= NOTE_SIGNATURE_OK if good else NOTE_SIGNATURE_BAD
        if not good and secrets.require:
            batch.reason[line], batch.detail[line] = _SIGNATURE, found.tag_at


def _signature(batch: Batch, line: int, frame_bytes: int) -> signatures.Signature:
    """The signature in a report's ``rest``: the last block there, but for bytes that trail it (type 0)."""
    begin, length = (int(value) for value in batch.var[line, REST])
    rest = batch.heap[begin : begin + length].tobytes()
    at, blocks = 0, []
    while at < len(rest):
        body = rest[at + 3 : at + 3 + int.from_bytes(rest[at + 1 : at + 3], "big")]
        blocks.append((rest[at], body))
        at += 3 + len(body)
    end = frame_bytes - 1
    if blocks[-1][0] != _SIGNATURE_TAG:
        end -= len(blocks.pop()[1])
    kind, body = blocks[-1]
    assert kind == _SIGNATURE_TAG, "the decoder noted a signature and kept none"
    return signatures.parse(body, end - len(body) - 1)
