"""Encrypted data units against published vectors, openssl and cryptography's own ciphers; wrong keys, changed bytes."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.gbt32960 import crypto, sm2
from schemas.gbt32960.check import Secrets, check
from schemas.gbt32960.commands import Ack, Encryption
from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.reference import decode_frame
from schemas.gbt32960.scheme import CipherMode, KeyExchange, RsaPadding, Scheme, Sm2Form, UnitPadding
from schemas.keyring import HELD_MAX, TRIED_MAX, Key, Keyring, Purpose, Scope

VIN = "LTEST000000000001"
AT = datetime(2026, 5, 28, tzinfo=UTC)
UNIT = bytes([26, 5, 28, 8, 0, 0]) + bytes.fromhex("01010301028d0001e2400f0e2904500 12e13881e00".replace(" ", ""))
FRAME = build_frame(25, 2, 0xFE, VIN, 1, UNIT)
ZERO = Scheme(padding=UnitPadding.ZERO)
COUNTING = bytes(range(32))
RSA_KEY = rsa.generate_private_key(65537, 2048)
RSA_PRIVATE = RSA_KEY.private_bytes(
    serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
RSA_PUBLIC = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)


def key_of(algorithm: int, secret: bytes, owner: str = VIN, **more: Any) -> Key:
    return Key(owner, more.pop("scope", Scope.VEHICLE), Purpose.DECRYPT, algorithm, secret, **more)


VECTORS = [
    # FIPS 197, C.1 to C.3
    (Encryption.AES, COUNTING[:16].hex(), "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"),
    (Encryption.AES, COUNTING[:24].hex(), "00112233445566778899aabbccddeeff", "dda97ca4864cdfe06eaf70a0ec0d7191"),
    (Encryption.AES, COUNTING.hex(), "00112233445566778899aabbccddeeff", "8ea2b7ca516745bfeafc49904b496089"),
    # GB/T 32907-2016, A.1
    (Encryption.SM4, "0123456789abcdeffedcba9876543210", "0123456789abcdeffedcba9876543210",
     "681edf34d206965e86b3e94f536e4246"),
]  # fmt: skip


@pytest.mark.parametrize(("algorithm", "key", "plain", "cipher"), VECTORS)
def test_published_blocks(algorithm: int, key: str, plain: str, cipher: str) -> None:
    secret, text, closed = map(bytes.fromhex, (key, plain, cipher))
    assert crypto.encrypt_unit(text, algorithm, secret, ZERO) == closed
    assert crypto.decrypt_unit(closed, algorithm, secret, ZERO) == text


def test_published_cbc() -> None:
    """NIST SP 800-38A, F.2.1: the first two blocks."""
    secret, iv = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"), COUNTING[:16]
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    closed = bytes.fromhex("7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2")
    fixed = Scheme(CipherMode.CBC, iv, UnitPadding.ZERO)
    first = Scheme(CipherMode.CBC_IV_FIRST, padding=UnitPadding.ZERO)
    assert crypto.encrypt_unit(plain, Encryption.AES, secret, fixed) == closed
    assert crypto.decrypt_unit(closed, Encryption.AES, secret, fixed) == plain
    assert crypto.encrypt_unit(plain, Encryption.AES, secret, first, iv) == iv + closed
    assert crypto.decrypt_unit(iv + closed, Encryption.AES, secret, first) == plain


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=700), st.sampled_from((16, 24, 32, -16)), st.booleans(), st.binary(min_size=16, max_size=16))
def test_units_closed_by_another_path(unit: bytes, size: int, chained: bool, iv: bytes) -> None:
    """``cryptography``'s own padder and ciphers close, ours opens; -16 stands for SM4."""
    secret = COUNTING[: abs(size)]
    algorithm = Encryption.SM4 if size < 0 else Encryption.AES
    block = algorithms.SM4(secret) if size < 0 else algorithms.AES(secret)
    padder = padding.PKCS7(128).padder()
    mode = modes.CBC(iv) if chained else modes.ECB()  # noqa: S305
    encryptor = Cipher(block, mode).encryptor()
    closed = encryptor.update(padder.update(unit) + padder.finalize()) + encryptor.finalize()
    scheme = Scheme(CipherMode.CBC if chained else CipherMode.ECB, iv)
    assert crypto.decrypt_unit(closed, algorithm, secret, scheme) == unit
    assert crypto.encrypt_unit(unit, algorithm, secret, scheme) == closed


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
@pytest.mark.parametrize(
    ("cipher", "algorithm", "bits"), [("aes-128", 3, 128), ("aes-192", 3, 192), ("aes-256", 3, 256), ("sm4", 5, 128)]
)
@pytest.mark.parametrize("mode", ["ecb", "cbc"])
def test_openssl_closes_and_ours_opens(cipher: str, algorithm: int, bits: int, mode: str) -> None:
    secret, iv = COUNTING[: bits // 8], COUNTING[16:]
    line = ["openssl", "enc", f"-{cipher}-{mode}", "-K", secret.hex()] + (["-iv", iv.hex()] if mode == "cbc" else [])
    done = subprocess.run(line, input=UNIT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this openssl has no {cipher}-{mode}")
    assert crypto.decrypt_unit(done.stdout, algorithm, secret, Scheme(CipherMode(mode), iv)) == UNIT


@pytest.mark.parametrize("size", [0, 1, 245, 246, 330, 1200])
@pytest.mark.parametrize("kind", RsaPadding)
def test_rsa_is_block_after_block(size: int, kind: RsaPadding) -> None:
    unit, scheme = bytes(i & 0xFF for i in range(size)), Scheme(rsa=kind)
    closed = crypto.encrypt_unit(unit, Encryption.RSA, RSA_PUBLIC, scheme)
    assert len(closed) % 256 == 0
    assert crypto.decrypt_unit(closed, Encryption.RSA, RSA_PRIVATE, scheme) == unit
    # as another would: each block on its own
    pieces = [unit[at : at + 100] for at in range(0, size, 100)]
    by_hand = b"".join(RSA_KEY.public_key().encrypt(piece, rsa_padding.PKCS1v15()) for piece in pieces)
    if pieces and kind is RsaPadding.PKCS1:
        assert crypto.decrypt_unit(by_hand, Encryption.RSA, RSA_PRIVATE, scheme) == unit


def test_the_one_public_frame_has_the_shape_of_our_default() -> None:
    """JTNE: AES-128 of a 42-byte login, 48 bytes. Its key is not published: any other is found to be wrong."""
    file = Path(__file__).parent / "data" / "frames.json"
    entry = next(e for e in json.loads(file.read_text("utf-8")) if e["id"] == "jtne-login-aes128")
    frame = bytes.fromhex(entry["hex"])
    assert crypto.encrypted(frame)
    assert len(crypto.encrypt_unit(bytes(42), Encryption.AES, bytes(16))) == len(frame) - 25 == 48
    with pytest.raises(crypto.NoKey):
        crypto.decrypt_frame(frame, [])
    with pytest.raises((crypto.BadPadding, crypto.WrongKey)):
        crypto.decrypt_frame(frame, [key_of(Encryption.AES, bytes(16), "123456789")])


# -- frames -------------------------------------------------------------------------------------------


def closed_frames() -> list[tuple[bytes, Key]]:
    d = 0x1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF
    return [
        (crypto.encrypt_frame(FRAME, algorithm, public), key_of(algorithm, private))
        for algorithm, public, private in (
            (Encryption.RSA, RSA_PUBLIC, RSA_PRIVATE),
            (Encryption.AES, bytes(16), bytes(16)),
            (Encryption.AES, bytes(32), bytes(32)),
            (Encryption.SM2, sm2.public_of(d), d.to_bytes(32, "big")),
            (Encryption.SM4, bytes(16), bytes(16)),
        )
    ]


@pytest.mark.parametrize(("frame", "key"), closed_frames(), ids=["rsa", "aes128", "aes256", "sm2", "sm4"])
def test_a_frame_comes_back_whole(frame: bytes, key: Key) -> None:
    assert frame != FRAME
    assert decode_frame(frame)["bcc_ok"]
    assert crypto.decrypt_frame(frame, [key]) == FRAME
    assert crypto.decrypt_frame(FRAME, [key]) == FRAME


@pytest.mark.parametrize(("frame", "key"), closed_frames(), ids=["rsa", "aes128", "aes256", "sm2", "sm4"])
def test_a_wrong_key_is_never_taken(frame: bytes, key: Key) -> None:
    secret = {16: b"\1" * 16, 32: b"\1" * 32}.get(len(key.secret))
    if secret is None:
        other = rsa.generate_private_key(65537, 2048)
        secret = other.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    with pytest.raises((crypto.BadPadding, crypto.WrongKey)):
        crypto.decrypt_frame(frame, [key_of(key.algorithm, secret)])
    assert crypto.decrypt_frame(frame, [key_of(key.algorithm, secret), key]) == FRAME


def test_padding_that_looks_right_by_chance_is_not_enough() -> None:
    """One wrong key in 256 leaves such a padding; of these 2,000 none leaves a time as well."""
    frame = crypto.encrypt_frame(FRAME, Encryption.AES, bytes(16))
    padded = 0
    for number in range(1, 2001):
        with pytest.raises((crypto.BadPadding, crypto.WrongKey)) as refused:
            crypto.decrypt_frame(frame, [key_of(Encryption.AES, number.to_bytes(16, "big"))])
        padded += refused.type is crypto.WrongKey
    assert padded > 0


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from((1, 3)))
def test_changed_bytes_are_refused_or_a_frame(at: int, flip: int, which: int) -> None:
    """ECB has no seal: a changed block may pass. What comes out is a whole frame all the same, or a named error."""
    frame, key = closed_frames()[which]
    unit = bytearray(frame[24:-1])
    unit[at % len(unit)] ^= flip
    changed = build_frame(25, 2, 0xFE, VIN, frame[21], bytes(unit))
    try:
        clear = crypto.decrypt_frame(changed, [key])
    except crypto.CryptoError:
        return
    tree = decode_frame(clear)
    assert tree["bcc_ok"]
    assert tree["length_ok"]


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.integers(0, 255), st.integers(0, 255), st.sampled_from((16, 25)))
def test_garbage_is_a_named_error(unit: bytes, encryption: int, command: int, edition: int) -> None:
    keys = [key for _, key in closed_frames()] + [key_of(encryption, b"?")]
    frame = build_frame(edition, command, 0xFE, VIN, encryption, unit)
    for scheme in (Scheme(), ZERO, Scheme(CipherMode.CBC_IV_FIRST), Scheme(sm2=Sm2Form.DER)):
        with contextlib.suppress(crypto.CryptoError):
            assert decode_frame(crypto.decrypt_frame(frame, keys, scheme))["bcc_ok"]


@pytest.mark.parametrize("encryption", [0x00, 0x06, 0xFE, 0xFF])
def test_bytes_that_name_no_algorithm(encryption: int) -> None:
    with pytest.raises(crypto.NoKey, match="names no algorithm"):
        crypto.decrypt_frame(build_frame(25, 2, 0xFE, VIN, encryption, UNIT), [key_of(encryption, bytes(16))])


def test_2016_has_aes_128_only() -> None:
    frame = crypto.encrypt_frame(build_frame(16, 2, 0xFE, VIN, 1, UNIT), Encryption.AES, bytes(32))
    with pytest.raises(crypto.BadKey, match="AES-128"):
        crypto.decrypt_frame(frame, [key_of(Encryption.AES, bytes(32))])


@pytest.mark.parametrize(
    ("algorithm", "secret", "says"),
    [(3, bytes(15), "16 or 24 or 32"), (5, bytes(24), "16 bytes"), (2, b"x", "DER"), (4, bytes(32), "n - 2")],
)
def test_keys_that_are_none(algorithm: int, secret: bytes, says: str) -> None:
    with pytest.raises(crypto.BadKey, match=says):
        crypto.check_key(key_of(algorithm, secret))


def test_zero_padding_is_not_taken_off() -> None:
    """A report may end in zeros of its own: an alarm block without faults has four."""
    unit = bytes([26, 5, 28, 8, 0, 0]) + bytes.fromhex("0700" + "00" * 8)
    frame = crypto.encrypt_frame(build_frame(16, 2, 0xFE, VIN, 1, unit), Encryption.AES, bytes(16), ZERO)
    clear = crypto.decrypt_frame(frame, [key_of(Encryption.AES, bytes(16))], ZERO)
    assert clear[24:-1] == unit + bytes(-len(unit) % 16)


# -- key exchange and choosing ---------------------------------------------------------------------------


def exchange(key: bytes, kind: int = Encryption.SM4) -> bytes:
    """2025 table 31."""
    span = bytes([26, 5, 27, 8, 0, 0]) + bytes([26, 5, 29, 8, 0, 0])
    return build_frame(25, 0x0B, 0xFE, VIN, 1, bytes([kind]) + len(key).to_bytes(2, "big") + key + span)


def test_an_exchanged_key_and_its_time() -> None:
    key = crypto.exchanged_key(exchange(bytes(16)), [])
    assert (key.owner, key.scope, key.algorithm, key.secret) == (VIN, Scope.VEHICLE, Encryption.SM4, bytes(16))
    assert key.valid_from == datetime(2026, 5, 27, tzinfo=UTC)
    assert key.valid_to == datetime(2026, 5, 29, tzinfo=UTC)
    assert key.valid(AT)
    assert not key.valid(AT + timedelta(days=2))
    assert "secret" not in repr(key)


def test_a_protected_key_needs_the_platforms() -> None:
    d = 77777
    for scheme, closed, opener in (
        (Scheme(key_exchange=KeyExchange.RSA), crypto.encrypt_unit(bytes(16), Encryption.RSA, RSA_PUBLIC),
         key_of(Encryption.RSA, RSA_PRIVATE, "CITY", scope=Scope.PLATFORM)),
        (Scheme(key_exchange=KeyExchange.SM2), crypto.encrypt_unit(bytes(16), Encryption.SM2, sm2.public_of(d)),
         key_of(Encryption.SM2, d.to_bytes(32, "big"), "CITY", scope=Scope.PLATFORM)),
    ):  # fmt: skip
        assert crypto.exchanged_key(exchange(closed), [opener], scheme).secret == bytes(16)
        with pytest.raises(crypto.NoKey, match="platform"):
            crypto.exchanged_key(exchange(closed), [], scheme)


@pytest.mark.parametrize(
    "unit", ["", "05", "050010", "0500100000", "05000200000000000000" + "ff" * 12, "09" + "00" * 30]
)
def test_key_exchanges_that_are_none(unit: str) -> None:
    with pytest.raises(crypto.BadCiphertext):
        crypto.exchanged_key(build_frame(25, 0x0B, 0xFE, VIN, 1, bytes.fromhex(unit)), [])


def test_the_newest_valid_key_of_the_owner_comes_first() -> None:
    begins = [AT - timedelta(days=n) for n in range(12)]
    mine = [key_of(3, bytes([n]) * 16, valid_from=begin) for n, begin in enumerate(begins)]
    over = key_of(3, b"x" * 16, valid_to=AT - timedelta(days=1))
    platform = key_of(3, b"p" * 16, "CITY", scope=Scope.PLATFORM)
    ring = Keyring([platform, over, *mine[:3], key_of(5, bytes(16)), key_of(3, bytes(16), "ANOTHER")])
    assert ring.find(Purpose.DECRYPT, VIN, 3, AT) == [*mine[:3], platform]
    assert ring.find(Purpose.VERIFY, VIN, 3, AT) == []
    assert len(Keyring(mine).find(Purpose.DECRYPT, VIN, 3, AT)) == TRIED_MAX


def test_a_ring_is_bounded() -> None:
    ring = Keyring()
    for n in range(3 * HELD_MAX):
        ring.add(key_of(3, n.to_bytes(16, "big"), valid_from=AT + timedelta(seconds=n)))
        ring.add(key_of(3, n.to_bytes(16, "big"), valid_from=AT + timedelta(seconds=n)))
    assert len(ring) == HELD_MAX
    assert ring.find(Purpose.DECRYPT, VIN, 3, AT + timedelta(seconds=500))[0].secret[-1] == (3 * HELD_MAX - 1) & 0xFF


@pytest.mark.parametrize(
    ("frame", "ack"),
    [
        (FRAME, Ack.SUCCESS),
        (closed_frames()[1][0], Ack.SUCCESS),
        (closed_frames()[4][0], Ack.DECRYPTION_ERROR),
        (crypto.encrypt_frame(FRAME, Encryption.AES, b"\1" * 16), Ack.DECRYPTION_ERROR),
        (crypto.encrypt_frame(build_frame(16, 2, 0xFE, VIN, 1, UNIT), Encryption.AES, b"\1" * 16), Ack.ERROR),
        (exchange(bytes(16)), Ack.SUCCESS),
        (exchange(bytes(7)), Ack.DECRYPTION_ERROR),
    ],
)
def test_what_a_gateway_would_answer(frame: bytes, ack: Ack) -> None:
    assert check(frame, Secrets(Keyring([key_of(Encryption.AES, bytes(16))])), AT) == ack
