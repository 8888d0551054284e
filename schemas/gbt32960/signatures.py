"""Signatures of 2025 reports (table 7): block 0xFF, last in the data unit, over everything before its tag.

What is signed: the data unit from the first byte of the collection time to the byte before the tag 0xFF, in the
clear (whether a terminal signs before it encrypts is unconfirmed; here the signature is inside).  R and S are the
two numbers of SM2 and ECDSA, big-endian; RSA has the whole signature in R.  Hash and padding: ``Scheme``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from schemas.gbt32960 import sm2
from schemas.gbt32960.commands import MARK, Command, Edition
from schemas.gbt32960.crypto import BadKey, rsa_public
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.frame import AT_COMMAND, AT_UNIT, FRAME_BYTES_MIN
from schemas.gbt32960.reading import Role, read_infos
from schemas.gbt32960.scheme import DEFAULT, RsaSignature, Scheme, SignatureHash
from schemas.keyring import Key

SM2, RSA, ECC = 1, 2, 3
ALGORITHMS: Final = {SM2: "sm2", RSA: "rsa", ECC: "ecc"}
_KEYS_MAX: Final = 512
_HASHES: Final[dict[SignatureHash, hashes.HashAlgorithm]] = {
    SignatureHash.SHA256: hashes.SHA256(),
    SignatureHash.SHA384: hashes.SHA384(),
    SignatureHash.SHA512: hashes.SHA512(),
}


@dataclass(frozen=True, slots=True)
class Signature:
    """``tag_at``: offset of the tag 0xFF in the frame; the signed bytes end there."""

    tag_at: int
    algorithm: int
    r: bytes
    s: bytes


def parse(body: bytes, tag_at: int) -> Signature:
    """The block's body (without tag), which the decoder has found whole."""
    middle = 3 + int.from_bytes(body[1:3], "big")
    return Signature(tag_at, body[0], body[3:middle], body[middle + 2 :])


def find(frame: bytes) -> Signature | None:
    """The signature of a clear 2025 report, None when there is none; slow (the reading decoder)."""
    reports = (Command.REALTIME, Command.REISSUE)
    if len(frame) <= FRAME_BYTES_MIN or frame[0] != MARK[Edition.E2025] or frame[AT_COMMAND] not in reports:
        return None
    infos, _ = read_infos(EDITIONS[Edition.E2025], frame, AT_UNIT + 6, len(frame) - 1)
    for info in infos:
        if info.role is Role.SIGNATURE:
            return parse(frame[info.body : info.end], info.body - 1)
    return None


def verify(frame: bytes, found: Signature, key: Key, scheme: Scheme = DEFAULT) -> bool:
    """Whether ``found`` is the key's signature of the clear ``frame``.  Raises :class:`BadKey`."""
    signed = frame[AT_UNIT : found.tag_at]
    if found.algorithm != key.algorithm:
        return False
    if found.algorithm == SM2:
        try:
            numbers = int.from_bytes(found.r, "big"), int.from_bytes(found.s, "big")
            return sm2.verify(key.secret, signed, *numbers, scheme.sm2_id)
        except sm2.Sm2Error as error:
            raise BadKey(str(error)) from error
    hashed = _HASHES[scheme.signature_hash]
    try:
        if found.algorithm == RSA:
            rsa_public(key.secret).verify(found.r, signed, _rsa_padding(scheme), hashed)
        elif found.algorithm == ECC:
            both = encode_dss_signature(int.from_bytes(found.r, "big"), int.from_bytes(found.s, "big"))
            ecc_public(key.secret).verify(both, signed, ec.ECDSA(hashed))
        else:
            return False
    except InvalidSignature:
        return False
    return True


def check_key(key: Key) -> None:
    """Raises :class:`BadKey` when the bytes of a key that verifies are none of its algorithm."""
    if key.algorithm == RSA:
        rsa_public(key.secret)
    elif key.algorithm == ECC:
        ecc_public(key.secret)
    else:
        try:
            sm2.public_bytes(key.secret)
        except sm2.Sm2Error as error:
            raise BadKey(str(error)) from error


@lru_cache(_KEYS_MAX)
def ecc_public(key: bytes) -> ec.EllipticCurvePublicKey:
    """An ECDSA public key: DER, or a point of P-256 (64 bytes, or 65 with 0x04).  Raises :class:`BadKey`."""
    try:
        if len(key) in (64, 65):
            point = key if len(key) == 65 else b"\x04" + key
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        found = serialization.load_der_public_key(key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey("not a public key of ECDSA: DER, or a point of P-256") from error
    if not isinstance(found, ec.EllipticCurvePublicKey):
        raise BadKey("the public key is not one of an elliptic curve")
    return found


def _rsa_padding(scheme: Scheme) -> rsa_padding.AsymmetricPadding:
    if scheme.rsa_signature is RsaSignature.PKCS1:
        return rsa_padding.PKCS1v15()
    return rsa_padding.PSS(rsa_padding.MGF1(_HASHES[scheme.signature_hash]), rsa_padding.PSS.AUTO)
