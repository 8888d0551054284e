"""Signatures of 2025 reports: two frames that rtm-con's authors signed, then each algorithm by another library."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import gmssl_pyx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from ecdsa import der

from schemas.gbt32960 import crypto, signatures
from schemas.gbt32960.check import Secrets, check, verdict
from schemas.gbt32960.commands import Ack
from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.scheme import RsaSignature, Scheme, SignatureHash
from schemas.keyring import Key, Keyring, Purpose, Scope

VIN = "LTEST000000000001"
AT = datetime(2026, 5, 28, tzinfo=UTC)
SIGNED = bytes([26, 5, 28, 8, 0, 0]) + bytes.fromhex("0501000010000000100000")  # a time and a place

# rtm-con @f1363de, tests/rtm_con/message_and_data_samples.py: what its RSA samples are signed with.
RTM_KEY = base64.b64decode(
    "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtXpm9jW8fB7n5V6ykPDXWslcLQuTPo/+GB9+PV5/ftXp8ueFiuGW8L6hvf+GzMSM"
    "vIjil8ji7iIwBwFAJc5Mm0QzGDBJ1Ts8vBRLPI4R3XavYa9kESifDyNSbH8Ln3vHjtJEdfB0UZCzFIn9r8zO+Njj7I5YiutaywvJT+UMGahB"
    "exgbJdcdNysECv9cN8mVO/mTSx5bsbh9yMqqu5Z/J97RUXTch/j/wEMcWgitlLmFrRMXRu7aT69My6kGG1lw7z7Ocb+65L9jEygmJcNAwG4c"
    "nq9pwIQBmEN77ZyepIo/8UQRTEFCnEyrd+e+71IbawNW2SHa4c+fa0RfRg6EiwIDAQAB"
)


def key_of(algorithm: int, secret: bytes, owner: str = VIN) -> Key:
    return Key(owner, Scope.VEHICLE, Purpose.VERIFY, algorithm, secret)


def with_block(algorithm: int, r: bytes, s: bytes, signed: bytes = SIGNED, after: bytes = b"") -> bytes:
    block = bytes([0xFF, algorithm]) + len(r).to_bytes(2, "big") + r + len(s).to_bytes(2, "big") + s
    return build_frame(25, 2, 0xFE, VIN, 1, signed + block + after)


def made(algorithm: int) -> tuple[bytes, Key]:
    """A report signed by a new key, by a library that is not under test."""
    if algorithm == signatures.SM2:
        public, private = gmssl_pyx.sm2_key_generate()
        numbers, _ = der.remove_sequence(gmssl_pyx.sm2_sign(private, public, SIGNED))
        r, rest = der.remove_integer(numbers)
        s = der.remove_integer(rest)[0]
        return with_block(1, r.to_bytes(32, "big"), s.to_bytes(32, "big")), key_of(1, public)
    spki = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if algorithm == signatures.RSA:
        secret = rsa.generate_private_key(65537, 2048)
        r_bytes = secret.sign(SIGNED, rsa_padding.PKCS1v15(), hashes.SHA256())
        return with_block(2, r_bytes, b""), key_of(2, secret.public_key().public_bytes(*spki))
    curve = ec.generate_private_key(ec.SECP256R1())
    r, s = decode_dss_signature(curve.sign(SIGNED, ec.ECDSA(hashes.SHA256())))
    return with_block(3, r.to_bytes(32, "big"), s.to_bytes(32, "big")), key_of(
        3, curve.public_key().public_bytes(*spki)
    )


@pytest.mark.parametrize("name", ["rtm-07-data2025-with-only-e-motor-data", "rtm-20-data2025-with-only-probe-oem-data"])
def test_reports_that_others_signed(name: str) -> None:
    """Says which bytes are signed, and that hash and padding of RSA are what the defaults say."""
    file = Path(__file__).parent / "data" / "frames.json"
    frame = bytes.fromhex(next(e for e in json.loads(file.read_text("utf-8")) if e["id"] == name)["hex"])
    found = signatures.find(frame)
    assert found is not None
    assert signatures.verify(frame, found, key_of(signatures.RSA, RTM_KEY))
    for at in range(24, found.tag_at):
        changed = bytearray(frame)
        changed[at] ^= 1
        assert not signatures.verify(bytes(changed), found, key_of(signatures.RSA, RTM_KEY))
    for scheme in (Scheme(signature_hash=SignatureHash.SHA512), Scheme(rsa_signature=RsaSignature.PSS)):
        assert not signatures.verify(frame, found, key_of(signatures.RSA, RTM_KEY), scheme)


@pytest.mark.parametrize("algorithm", signatures.ALGORITHMS)
def test_each_algorithm(algorithm: int) -> None:
    frame, key = made(algorithm)
    found = signatures.find(frame)
    assert found is not None
    assert found.tag_at == 24 + len(SIGNED)
    assert signatures.verify(frame, found, key)
    changed = bytearray(frame)
    changed[26] ^= 1
    assert not signatures.verify(bytes(changed), found, key)
    assert not signatures.verify(frame, found, made(algorithm)[1])
    trailing = with_block(algorithm, found.r, found.s, after=b"\0\0\0")
    again = signatures.find(trailing)
    assert again is not None
    assert signatures.verify(trailing, again, key)


@pytest.mark.parametrize("algorithm", signatures.ALGORITHMS)
@pytest.mark.parametrize(
    ("r", "s"), [(b"", b""), (b"\0" * 32, b"\0" * 32), (b"\xff" * 300, b"\xff"), (b"\1", b"\1" * 900)]
)
def test_numbers_that_are_no_signature(algorithm: int, r: bytes, s: bytes) -> None:
    frame = with_block(algorithm, r, s)
    found = signatures.find(frame)
    assert found is not None
    assert not signatures.verify(frame, found, made(algorithm)[1])


@pytest.mark.parametrize("algorithm", signatures.ALGORITHMS)
@pytest.mark.parametrize("secret", [b"", b"x", bytes(64), b"\4" + bytes(64), b"\x30" * 91])
def test_public_keys_that_are_none(algorithm: int, secret: bytes) -> None:
    with pytest.raises(crypto.BadKey):
        signatures.check_key(key_of(algorithm, secret))


def test_what_is_said_of_it_and_answered() -> None:
    frame, key = made(signatures.SM2)
    found = signatures.find(frame)
    assert found is not None
    other = made(signatures.SM2)[1]
    for keys, good, required in (
        ([], None, Ack.SUCCESS),
        ([key], True, Ack.SUCCESS),
        ([other], False, Ack.SIGNATURE_ERROR),
        ([other, key], True, Ack.SUCCESS),
        ([made(signatures.ECC)[1]], None, Ack.SUCCESS),
        ([key_of(1, bytes(64))], None, Ack.SUCCESS),
    ):
        ring = Keyring(keys)
        assert verdict(frame, found, Secrets(ring), AT) is good
        assert check(frame, Secrets(ring, require=True), AT) == required
        assert check(frame, Secrets(ring), AT) == Ack.SUCCESS


def test_frames_without_a_signature() -> None:
    assert signatures.find(build_frame(25, 2, 0xFE, VIN, 1, SIGNED)) is None
    assert signatures.find(build_frame(25, 7, 0xFE, VIN, 1, b"")) is None
    assert signatures.find(build_frame(16, 2, 0xFE, VIN, 1, SIGNED)) is None
