"""Keys at rest: sealed with a master key that the database never sees.

AES-256-GCM, a nonce of 12 random bytes each, bound to whose key it is and what for: a sealed key that is moved to
another row does not open.  Without a master key the bytes are stored as they are; whoever can read the database
can then read them, and is told so where keys are added.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from schemas.keyring import Key
from services.errors import SettingsError
from services.settings import Encryption

MASTER_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_FINGERPRINT_BYTES: Final = 8


class CannotOpen(ValueError):
    """A sealed key and a master key that do not belong together; the message says which is missing."""


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals and opens; without ``master`` it leaves bytes as they are."""

    master: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Encryption) -> Sealer:
        """With the master key of the settings.  Raises ``SettingsError``."""
        given, name = settings.master_key.get_secret_value().strip(), "encryption.master_key"
        if not given and settings.master_key_file:
            name = f"encryption.master_key_file = {settings.master_key_file!r}"
            try:
                given = Path(settings.master_key_file).read_text("ascii").strip()
            except UnicodeDecodeError:
                given = "?"
            except OSError as error:
                raise SettingsError(f"{name}: {error.strerror}; make one with `openssl rand -hex 32`") from error
            if not given:
                given = "?"
        if not given:
            return cls()
        try:
            master = binascii.unhexlify(given)
        except binascii.Error:
            master = b""
        if len(master) != MASTER_BYTES:
            raise SettingsError(f"{name}: not 64 hex digits; make a master key with `openssl rand -hex 32`")
        return cls(master)

    @property
    def name(self) -> str | None:
        """Fingerprint of the master key, None without one."""
        return None if self.master is None else hashlib.sha256(b"nevstream master " + self.master).hexdigest()[:16]

    def fingerprint(self, key: Key) -> bytes:
        """The same for the same secret and master key; nothing can be tried against it without the master key."""
        return hmac.digest(self.master or b"", b"fingerprint" + key.secret, "sha256")[:_FINGERPRINT_BYTES]

    def seal(self, key: Key) -> bytes:
        """The secret as it is stored."""
        if self.master is None:
            return key.secret
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self.master).encrypt(nonce, key.secret, _bound_to(key))

    def open(self, key: Key, stored: bytes, sealed_with: str | None) -> bytes:
        """The secret of ``key`` from what is stored.  Raises :class:`CannotOpen`."""
        if sealed_with is None:
            return stored
        if self.master is None:
            raise CannotOpen("it is sealed, and neither encryption.master_key nor encryption.master_key_file is set")
        if sealed_with != self.name:
            raise CannotOpen(f"it is sealed with master key {sealed_with}, and the settings have {self.name}")
        try:
            return AESGCM(self.master).decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], _bound_to(key))
        except (InvalidTag, ValueError) as error:
            raise CannotOpen("its bytes or its owner were changed in the database") from error


def _bound_to(key: Key) -> bytes:
    return "\0".join((key.owner, key.scope, key.purpose, str(key.algorithm))).encode()
