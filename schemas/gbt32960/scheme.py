"""How data units are encrypted and signed where the standard does not say: the choices, and their defaults.

Part 3 of both editions names the algorithms (table 2) and nothing else: mode, padding, initial vector, the blocks
of RSA, the order of an SM2 ciphertext, how a key travels in 0x0B, and the hash and identity under a signature are
**unconfirmed**.  Each default is what a terminal's crypto library does when nothing is asked of it.  No cipher is
imported here, so that settings can name these choices at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

BLOCK_BYTES: Final = 16  # of AES and of SM4
SM2_ID: Final = "1234567812345678"  # GM/T 0009 clause 10: the signer's identity when none was agreed


class CipherMode(StrEnum):
    """Mode of AES and SM4.  ``cbc-iv-first``: the data unit begins with the initial vector."""

    ECB = "ecb"
    CBC = "cbc"
    CBC_IV_FIRST = "cbc-iv-first"


class UnitPadding(StrEnum):
    """What fills the last block of AES and SM4.

    ``zero`` is written and never taken off: a data unit may end in zeros of its own (an alarm block without
    faults does), and bytes after the last field are kept without harm.
    """

    PKCS7 = "pkcs7"
    ZERO = "zero"


class RsaPadding(StrEnum):
    PKCS1 = "pkcs1"
    OAEP_SHA1 = "oaep-sha1"
    OAEP_SHA256 = "oaep-sha256"


class Sm2Form(StrEnum):
    """Order of an SM2 ciphertext: point, hash, text as GM/T 0009 has it; the order of 2010; or its DER form."""

    C1C3C2 = "c1c3c2"
    C1C2C3 = "c1c2c3"
    DER = "der"


class KeyExchange(StrEnum):
    """What protects the key in a 0x0B frame: nothing, or the platform's RSA or SM2 key."""

    PLAIN = "plain"
    RSA = "rsa"
    SM2 = "sm2"


class RsaSignature(StrEnum):
    PKCS1 = "pkcs1"
    PSS = "pss"


class SignatureHash(StrEnum):
    """Hash under a signature by RSA or ECC (SM2 is always with SM3)."""

    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"


@dataclass(frozen=True, slots=True)
class Scheme:
    """One set of choices; the defaults are those of the settings."""

    mode: CipherMode = CipherMode.ECB
    iv: bytes = bytes(BLOCK_BYTES)
    padding: UnitPadding = UnitPadding.PKCS7
    rsa: RsaPadding = RsaPadding.PKCS1
    sm2: Sm2Form = Sm2Form.C1C3C2
    key_exchange: KeyExchange = KeyExchange.PLAIN
    sm2_id: bytes = SM2_ID.encode()
    rsa_signature: RsaSignature = RsaSignature.PKCS1
    signature_hash: SignatureHash = SignatureHash.SHA256


DEFAULT: Final = Scheme()
