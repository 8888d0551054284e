"""What may be said of one frame with the keys that are known: opened or not, signed by whom it should be or not.

The pipeline asks for the parts; :func:`check` is the whole of it for whoever must answer a frame before it is
decoded (2025 response flags 0x05 and 0x07).  A Python object per frame: ask only for frames that are encrypted
or signed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from schemas.gbt32960 import crypto, signatures
from schemas.gbt32960.commands import EDITION_OF_MARK, Ack, Command, Edition
from schemas.gbt32960.frame import AT_ACK, AT_COMMAND, AT_ENCRYPTION, AT_VIN
from schemas.gbt32960.scheme import DEFAULT, Scheme
from schemas.keyring import Key, Keyring, Purpose


@dataclass(frozen=True, slots=True)
class Secrets:
    """What is known.  ``require``: a report with a wrong signature is refused (else only marked)."""

    keyring: Keyring = field(default_factory=Keyring)
    scheme: Scheme = DEFAULT
    require: bool = False


def owner_of(frame: bytes) -> str:
    """The identification in the header, under which keys are kept."""
    return frame[AT_VIN:AT_ENCRYPTION].rstrip(b"\0").decode("ascii", "replace")


def opened(frame: bytes, secrets: Secrets, at: datetime) -> bytes:
    """A whole frame in the clear, with the keys that are valid ``at``.  Raises ``crypto.CryptoError``."""
    if not crypto.encrypted(frame):
        return frame
    keys = secrets.keyring.find(Purpose.DECRYPT, owner_of(frame), frame[AT_ENCRYPTION], at)
    return crypto.decrypt_frame(frame, keys, secrets.scheme)


def brought_key(frame: bytes, secrets: Secrets, at: datetime) -> Key | None:
    """The key in a clear frame when it is a key exchange sent up, else None.  Raises ``crypto.CryptoError``."""
    if frame[AT_COMMAND] != Command.KEY_EXCHANGE or frame[AT_ACK] != Ack.COMMAND:
        return None
    return crypto.exchanged_key(frame, secrets.keyring.of_platforms(at), secrets.scheme)


def verdict(frame: bytes, found: signatures.Signature, secrets: Secrets, at: datetime) -> bool | None:
    """Whether a clear report's signature is that of a known public key; None when none is known."""
    result: bool | None = None
    for key in secrets.keyring.find(Purpose.VERIFY, owner_of(frame), found.algorithm, at):
        try:
            result = signatures.verify(frame, found, key, secrets.scheme)
        except crypto.BadKey:  # refused when keys are added, so this one came into the database another way
            continue
        if result:
            return True
    return result


def check(frame: bytes, secrets: Secrets, at: datetime) -> Ack:
    """The response flag for a whole frame whose check byte is right: success when nothing speaks against it.

    ``DECRYPTION_ERROR`` when no known key opens it, ``SIGNATURE_ERROR`` when its signature is wrong and
    ``secrets.require``; the edition of 2016 has ``ERROR`` for both.  Pure; up to about 3 ms (RSA, SM2).
    """
    modern = EDITION_OF_MARK[frame[0]] == Edition.E2025
    try:
        clear = opened(frame, secrets, at)
        brought_key(clear, secrets, at)
    except crypto.CryptoError:
        return Ack.DECRYPTION_ERROR if modern else Ack.ERROR
    if secrets.require and secrets.keyring.verifies:
        found = signatures.find(clear)
        if found is not None and verdict(clear, found, secrets, at) is False:
            return Ack.SIGNATURE_ERROR if modern else Ack.ERROR
    return Ack.SUCCESS
