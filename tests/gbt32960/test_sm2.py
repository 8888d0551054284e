"""SM2 against the vectors of its standard, the openssl command line and GmSSL; and what it must refuse."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import gmssl_pyx
import pytest
from ecdsa import der
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.gbt32960 import sm2
from schemas.gbt32960.scheme import Sm2Form

# GB/T 32918.5-2017, annexes A and C: the recommended curve.
D = 0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8
PUBLIC = bytes.fromhex(
    "09f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020"
    "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"
)
K = 0x59276E27D506861A16680F3AD9C02DCCEF3CC1FA3CDBE4CE6D54B80DEAC1BC21
R = 0xF5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3
S = 0xB1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA
C1 = (
    "04ebfc718e8d1798620432268e77feb6415e2ede0e073c0f4f640ecd2e149a73"
    "e858f9d81e5430a57b36daab8f950a3c64e6ee6a63094d99283aff767e124df0"
)
C2 = "21886ca989ca9c7d58087307ca93092d651efa"
C3 = "59983c18f809e262923c53aec295d30383b54e39d609d160afcb1908d0bd8766"
PLAIN = b"encryption standard"
DER = bytes.fromhex(f"307c0220{C1[:64]}022100{C1[64:]}0420{C3}0413{C2}")
CIPHERS = {
    Sm2Form.C1C3C2: bytes.fromhex("04" + C1 + C3 + C2),
    Sm2Form.C1C2C3: bytes.fromhex("04" + C1 + C2 + C3),
    Sm2Form.DER: DER,
}


def fixed(_: int) -> int:
    return K - 1


def test_the_standards_signature() -> None:
    assert sm2.public_of(D) == PUBLIC
    assert sm2.verify(PUBLIC, b"message digest", R, S)
    assert sm2.sign(D, b"message digest", random=fixed) == (R, S)


@pytest.mark.parametrize("form", Sm2Form)
def test_the_standards_ciphertext(form: Sm2Form) -> None:
    assert sm2.decrypt(D, CIPHERS[form], form) == PLAIN
    assert sm2.encrypt(PUBLIC, PLAIN, form, random=fixed) == CIPHERS[form]


@pytest.mark.parametrize("form", [Sm2Form.C1C3C2, Sm2Form.C1C2C3])
def test_a_ciphertext_without_the_point_s_first_byte(form: Sm2Form) -> None:
    """The vector's x begins with 0x04 as well: only one reading lies on the curve."""
    assert sm2.decrypt(D, CIPHERS[form][1:], form) == PLAIN


@pytest.mark.parametrize("form", Sm2Form)
def test_every_changed_byte_is_found(form: Sm2Form) -> None:
    for at in range(len(CIPHERS[form])):
        changed = bytearray(CIPHERS[form])
        changed[at] ^= 0x10
        with pytest.raises(sm2.Sm2Error):
            sm2.decrypt(D, bytes(changed), form)
    for end in range(len(CIPHERS[form])):
        with pytest.raises(sm2.Sm2Error):
            sm2.decrypt(D, CIPHERS[form][:end], form)


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(sm2.Sm2Error, match="C3"):
        sm2.decrypt(D + 1, CIPHERS[Sm2Form.C1C3C2])


def test_a_point_off_the_curve_is_refused() -> None:
    """Its multiple would tell about the private key (an invalid curve attack)."""
    off = bytearray(PUBLIC)
    off[-1] ^= 1
    with pytest.raises(sm2.Sm2Error, match="curve"):
        sm2.public_bytes(bytes(off))
    with pytest.raises(sm2.Sm2Error, match="begin with a point"):
        sm2.decrypt(D, b"\x04" + bytes(off) + bytes(60))


@pytest.mark.parametrize(
    ("r", "s"), [(0, S), (R, 0), (sm2.N + R, S), (R, S + sm2.N), (R, sm2.N - R), (R ^ 1, S), (R, S ^ 1)]
)
def test_wrong_signatures(r: int, s: int) -> None:
    assert not sm2.verify(PUBLIC, b"message digest", r, s)


def test_another_message_or_identity() -> None:
    assert not sm2.verify(PUBLIC, b"message digesT", R, S)
    assert not sm2.verify(PUBLIC, b"message digest", R, S, b"somebody else")


@pytest.mark.parametrize("key", [b"", bytes(32), b"\xff" * 32, b"0" * 31, b"\x30\x03\x02\x01\x01", b"\x30" * 200])
def test_private_keys_that_are_none(key: bytes) -> None:
    with pytest.raises(sm2.Sm2Error):
        sm2.private_scalar(key)


@pytest.mark.parametrize(
    "key", [b"", b"\x02" + PUBLIC[:32], PUBLIC[:63], b"\x05" + PUBLIC, b"\x30\x03\x02\x01\x01", DER]
)
def test_public_keys_that_are_none(key: bytes) -> None:
    with pytest.raises(sm2.Sm2Error):
        sm2.public_bytes(key)


@settings(deadline=None, max_examples=25)
@given(st.binary(min_size=1, max_size=1200), st.sampled_from(Sm2Form), st.integers(1, sm2.N - 2))
def test_round_trip(plain: bytes, form: Sm2Form, private: int) -> None:
    assert sm2.decrypt(private, sm2.encrypt(sm2.public_of(private), plain, form), form) == plain


@settings(deadline=None, max_examples=15)
@given(st.binary(min_size=1, max_size=255))
def test_gmssl_agrees(text: bytes) -> None:
    public, private = gmssl_pyx.sm2_key_generate()
    scalar = sm2.private_scalar(private)
    assert sm2.public_of(scalar) == public
    assert sm2.decrypt(scalar, gmssl_pyx.sm2_encrypt(public, text), Sm2Form.DER) == text
    assert gmssl_pyx.sm2_decrypt(private, sm2.encrypt(public, text, Sm2Form.DER)) == text
    numbers, _ = der.remove_sequence(gmssl_pyx.sm2_sign(private, public, text))
    r, rest = der.remove_integer(numbers)
    s, _ = der.remove_integer(rest)
    assert sm2.verify(public, text, r, s)
    mine = [der.encode_integer(number) for number in sm2.sign(scalar, text)]
    assert gmssl_pyx.sm2_verify(public, text, der.encode_sequence(*mine))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
def test_openssl_agrees_and_its_key_files_are_read(tmp_path: Path) -> None:
    def openssl(*arguments: str) -> bytes:
        done = subprocess.run(["openssl", *arguments], capture_output=True, cwd=tmp_path, check=False)
        if done.returncode:
            pytest.skip(f"this openssl has no SM2: {done.stderr.decode()[:200]}")
        return done.stdout

    def read(name: str) -> bytes:
        return base64.b64decode("".join((tmp_path / name).read_text().split("\n")[1:-2]))

    openssl("genpkey", "-algorithm", "SM2", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "public.pem")
    private, public = sm2.private_scalar(read("key.pem")), sm2.public_bytes(read("public.pem"))
    assert sm2.public_of(private) == public
    message = bytes(range(256)) * 3  # more than GmSSL takes
    (tmp_path / "message").write_bytes(message)
    openssl("pkeyutl", "-encrypt", "-pubin", "-inkey", "public.pem", "-in", "message", "-out", "cipher")
    assert sm2.decrypt(private, (tmp_path / "cipher").read_bytes(), Sm2Form.DER) == message
    openssl("dgst", "-sm3", "-sign", "key.pem", "-sigopt", "distid:1234567812345678", "-out", "signature", "message")
    numbers, _ = der.remove_sequence((tmp_path / "signature").read_bytes())
    r, rest = der.remove_integer(numbers)
    assert sm2.verify(public, message, r, der.remove_integer(rest)[0])
