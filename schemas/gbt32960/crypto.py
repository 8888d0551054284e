"""Encrypted data units (table 2): RSA, AES, SM2 and SM4, opened and closed; no I/O.

The header is never encrypted; the check byte covers the ciphertext, so it is verified first and made anew for the
plain frame.  What neither edition says is a :class:`Scheme`.  A key is right when the padding is right *and* the
plain text begins as the command's data unit must (a time; in 0x0B a key): one wrong key in 256 leaves a padding that
looks right, one in about a hundred thousand of those a time as well.

Nothing here puts a key, a plain text or a ciphertext into a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from schemas.gbt32960 import sm2
from schemas.gbt32960.commands import BY_ID, EDITION_OF_MARK, Ack, Command, Edition, Encryption
from schemas.gbt32960.frame import AT_ACK, AT_COMMAND, AT_ENCRYPTION, AT_UNIT, AT_VIN, FRAME_BYTES_MIN, build_frame
from schemas.gbt32960.scheme import BLOCK_BYTES, DEFAULT, CipherMode, KeyExchange, RsaPadding, Scheme, UnitPadding
from schemas.keyring import Key, Purpose, Scope

ALGORITHMS: Final = (Encryption.RSA, Encryption.AES, Encryption.SM2, Encryption.SM4)
KEY_BYTES: Final = {Encryption.AES: (16, 24, 32), Encryption.SM4: (16,)}
_KEYS_MAX: Final = 512  # parsed RSA keys that are kept
_BEIJING: Final = timezone(timedelta(hours=8))
_TIME_BYTES: Final = 6


class CryptoError(ValueError):
    """A data unit that cannot be opened."""


class NoKey(CryptoError):
    """No key is known for the vehicle and the algorithm, at that time."""


class BadKey(CryptoError):
    """A key that is none of its algorithm."""


class BadCiphertext(CryptoError):
    """Bytes that are no ciphertext of the algorithm, whatever the key: the length, or a point off the curve."""


class BadPadding(CryptoError):
    """The padding is wrong: another key, another scheme, or changed bytes."""


class WrongKey(CryptoError):
    """It opened, and what came out is no data unit: another key or another scheme."""


# -- data units -------------------------------------------------------------------------------------


def decrypt_unit(unit: bytes, algorithm: int, key: bytes, scheme: Scheme = DEFAULT) -> bytes:
    """The plain text of ``unit``.  ``key``: AES or SM4 key, or private key (RSA: DER; SM2: 32 bytes or DER).

    Raises :class:`BadKey`, :class:`BadCiphertext`, :class:`BadPadding`, :class:`WrongKey`.
    """
    if algorithm in KEY_BYTES:
        return _open_blocks(unit, algorithm, key, scheme)
    if algorithm == Encryption.RSA:
        return _open_rsa(unit, key, scheme)
    if algorithm == Encryption.SM2:
        try:
            private = sm2.private_scalar(key)
        except sm2.Sm2Error as error:
            raise BadKey(str(error)) from error
        try:
            return sm2.decrypt(private, unit, scheme.sm2)
        except sm2.Sm2Error as error:
            raise WrongKey(str(error)) from error
    raise BadKey(f"encryption 0x{algorithm:02X} is no algorithm of the standard")


def encrypt_unit(unit: bytes, algorithm: int, key: bytes, scheme: Scheme = DEFAULT, iv: bytes | None = None) -> bytes:
    """The ciphertext of ``unit``.  ``key``: AES or SM4 key, or public key (DER; SM2 also the point).

    ``iv``: with ``cbc-iv-first``, the vector of this unit (16 unpredictable bytes).  Raises :class:`BadKey`.
    """
    if algorithm in KEY_BYTES:
        vector = scheme.iv
        if scheme.mode is CipherMode.CBC_IV_FIRST:
            if iv is None or len(iv) != BLOCK_BYTES:
                raise ValueError("mode cbc-iv-first takes an initial vector of 16 bytes for each unit")
            vector = iv
        fill = -len(unit) % BLOCK_BYTES
        if scheme.padding is UnitPadding.PKCS7:
            fill = fill or BLOCK_BYTES
            padded = unit + bytes([fill]) * fill
        else:
            padded = unit + bytes(fill)
        encryptor = _cipher(algorithm, key, scheme.mode, vector).encryptor()
        text = encryptor.update(padded) + encryptor.finalize()
        return vector + text if scheme.mode is CipherMode.CBC_IV_FIRST else text
    if algorithm == Encryption.RSA:
        public = rsa_public(key)
        room = public.key_size // 8 - _overhead(scheme)
        return b"".join(
            public.encrypt(unit[at : at + room], _padding(scheme)) for at in range(0, max(1, len(unit)), room)
        )
    if algorithm == Encryption.SM2:
        try:
            return sm2.encrypt(key, unit, scheme.sm2)
        except sm2.Sm2Error as error:
            raise BadKey(str(error)) from error
    raise BadKey(f"encryption 0x{algorithm:02X} is no algorithm of the standard")


def _cipher(algorithm: int, key: bytes, mode: CipherMode, iv: bytes) -> Cipher[modes.ECB] | Cipher[modes.CBC]:
    if len(key) not in KEY_BYTES[Encryption(algorithm)]:
        sizes = " or ".join(map(str, KEY_BYTES[Encryption(algorithm)]))
        raise BadKey(f"a key of {Encryption(algorithm).name} has {sizes} bytes, this one has {len(key)}")
    block = algorithms.AES(key) if algorithm == Encryption.AES else algorithms.SM4(key)
    if mode is CipherMode.ECB:
        # What the standard leaves open, terminals fill with their library's plainest mode; ours is to read it.
        return Cipher(block, modes.ECB())  # noqa: S305
    return Cipher(block, modes.CBC(iv))


def _open_blocks(unit: bytes, algorithm: int, key: bytes, scheme: Scheme) -> bytes:
    iv, text = scheme.iv, unit
    if scheme.mode is CipherMode.CBC_IV_FIRST:
        iv, text = unit[:BLOCK_BYTES], unit[BLOCK_BYTES:]
    if len(text) == 0 or len(text) % BLOCK_BYTES or len(iv) != BLOCK_BYTES:
        raise BadCiphertext(f"{len(unit)} bytes are not whole blocks of {BLOCK_BYTES}")
    decryptor = _cipher(algorithm, key, scheme.mode, iv).decryptor()
    plain = decryptor.update(text) + decryptor.finalize()
    if scheme.padding is UnitPadding.ZERO:
        return plain
    fill = plain[-1]
    if not 1 <= fill <= BLOCK_BYTES or plain[-fill:] != bytes([fill]) * fill:
        raise BadPadding("the last block is not padded as PKCS#7 has it")
    return plain[:-fill]


def _open_rsa(unit: bytes, key: bytes, scheme: Scheme) -> bytes:
    private = rsa_private(key)
    size = private.key_size // 8
    if not unit or len(unit) % size:
        raise BadCiphertext(f"{len(unit)} bytes are not whole blocks of {size} bytes, the size of the RSA key")
    try:
        blocks = [private.decrypt(unit[at : at + size], _padding(scheme)) for at in range(0, len(unit), size)]
    except ValueError as error:
        raise BadPadding("an RSA block is not padded as it should be") from error
    return b"".join(blocks)


def _padding(scheme: Scheme) -> rsa_padding.AsymmetricPadding:
    if scheme.rsa is RsaPadding.PKCS1:
        return rsa_padding.PKCS1v15()
    hashed = hashes.SHA1() if scheme.rsa is RsaPadding.OAEP_SHA1 else hashes.SHA256()  # noqa: S303
    return rsa_padding.OAEP(rsa_padding.MGF1(hashed), hashed, None)


def _overhead(scheme: Scheme) -> int:
    return {RsaPadding.PKCS1: 11, RsaPadding.OAEP_SHA1: 42, RsaPadding.OAEP_SHA256: 66}[scheme.rsa]


@lru_cache(_KEYS_MAX)
def rsa_private(key: bytes) -> rsa.RSAPrivateKey:
    """The RSA private key in DER.  Raises :class:`BadKey`."""
    try:
        found = serialization.load_der_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKey("not a private key in DER, or one under a password") from error
    if not isinstance(found, rsa.RSAPrivateKey):
        raise BadKey("the private key is not one of RSA")
    return found


@lru_cache(_KEYS_MAX)
def rsa_public(key: bytes) -> rsa.RSAPublicKey:
    """The RSA public key in DER.  Raises :class:`BadKey`."""
    try:
        found = serialization.load_der_public_key(key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey("not a public key in DER") from error
    if not isinstance(found, rsa.RSAPublicKey):
        raise BadKey("the public key is not one of RSA")
    return found


def check_key(key: Key) -> None:
    """Raises :class:`BadKey` when the bytes of a key that decrypts are none of its algorithm."""
    if key.algorithm in KEY_BYTES:
        _cipher(key.algorithm, key.secret, CipherMode.ECB, b"")
    elif key.algorithm == Encryption.RSA:
        rsa_private(key.secret)
    else:
        try:
            sm2.private_scalar(key.secret)
        except sm2.Sm2Error as error:
            raise BadKey(str(error)) from error


# -- frames -----------------------------------------------------------------------------------------


def encrypted(frame: bytes) -> bool:
    """Whether a whole frame has a data unit, and says that it is encrypted."""
    return len(frame) > FRAME_BYTES_MIN and frame[AT_ENCRYPTION] != Encryption.NONE


def decrypt_frame(frame: bytes, keys: Sequence[Key], scheme: Scheme = DEFAULT) -> bytes:
    """The same frame in the clear: encryption 0x01, plain data unit, its length, its check byte.

    ``frame`` is whole and its check byte verified; one in the clear comes back as it is.  ``keys`` of another
    algorithm are passed over, the others tried in turn.  Raises :class:`NoKey`, or what the last key raised.
    """
    if not encrypted(frame):
        return frame
    algorithm, edition = frame[AT_ENCRYPTION], EDITION_OF_MARK[frame[0]]
    if algorithm not in ALGORITHMS:
        raise NoKey(f"encryption 0x{algorithm:02X} names no algorithm")
    failure: CryptoError = NoKey("no key is known for this vehicle, algorithm and time")
    for key in keys:
        if key.algorithm != algorithm:
            continue
        try:
            if algorithm == Encryption.AES and edition == Edition.E2016 and len(key.secret) != BLOCK_BYTES:
                raise BadKey("the edition of 2016 has AES-128 only")
            plain = decrypt_unit(frame[AT_UNIT:-1], algorithm, key.secret, scheme)
            if not _plausible(frame, plain):
                raise WrongKey("what comes out does not begin as the data unit of this command does")
        except CryptoError as error:
            failure = error
        else:
            return _with_unit(frame, Encryption.NONE, plain)
    raise failure


def encrypt_frame(frame: bytes, algorithm: int, key: bytes, scheme: Scheme = DEFAULT, iv: bytes | None = None) -> bytes:
    """A clear frame with its data unit encrypted.  Raises :class:`BadKey`."""
    return _with_unit(frame, algorithm, encrypt_unit(frame[AT_UNIT:-1], algorithm, key, scheme, iv))


def _with_unit(frame: bytes, encryption: int, unit: bytes) -> bytes:
    edition = EDITION_OF_MARK[frame[0]]
    return build_frame(edition, frame[AT_COMMAND], frame[AT_ACK], frame[AT_VIN:AT_ENCRYPTION], encryption, unit)


def _plausible(frame: bytes, plain: bytes) -> bool:
    command = frame[AT_COMMAND]
    if command == Command.KEY_EXCHANGE:
        return key_exchange(plain) is not None
    info = BY_ID.get(command)
    if info is None or not info.has_time or (frame[AT_ACK] != Ack.COMMAND and len(plain) < _TIME_BYTES):
        return True
    return _time(plain[:_TIME_BYTES]) is not None


def _time(raw: bytes) -> datetime | None:
    """Six bytes of Beijing time (clause 6.4), None when they are none."""
    if len(raw) < _TIME_BYTES:
        return None
    year, month, day, hour, minute, second = raw
    try:
        return datetime(2000 + year, month, day, hour, minute, second, tzinfo=_BEIJING).astimezone(UTC)
    except ValueError:
        return None


# -- key exchange 0x0B (2025 table 31) -----------------------------------------------------------------


def key_exchange(unit: bytes) -> tuple[int, bytes, datetime, datetime] | None:
    """(algorithm, key as it travels, start, end) of a plain 0x0B data unit; None when it is none."""
    if len(unit) < 3 or unit[0] not in ALGORITHMS:
        return None
    end = 3 + int.from_bytes(unit[1:3], "big")
    if len(unit) < end + 2 * _TIME_BYTES:
        return None
    begins, ends = _time(unit[end : end + _TIME_BYTES]), _time(unit[end + _TIME_BYTES : end + 2 * _TIME_BYTES])
    if begins is None or ends is None:
        return None
    return unit[0], unit[3:end], begins, ends


def exchanged_key(frame: bytes, platform: Sequence[Key], scheme: Scheme = DEFAULT) -> Key:
    """The key that a clear 0x0B frame brings for its sender; ``platform``: keys that open what protects it.

    Raises :class:`CryptoError` when the data unit is none, the protection cannot be taken off, or the key is no
    key of its algorithm.
    """
    found = key_exchange(frame[AT_UNIT:-1])
    if found is None:
        raise BadCiphertext("the data unit is no key exchange (key type, length, key, start, end)")
    algorithm, secret, begins, ends = found
    key = Key(
        owner=frame[AT_VIN:AT_ENCRYPTION].rstrip(b"\0").decode("ascii", "replace"),
        scope=Scope.VEHICLE,
        purpose=Purpose.DECRYPT,
        algorithm=algorithm,
        secret=secret,
        valid_from=begins,
        valid_to=ends,
    )
    if scheme.key_exchange is KeyExchange.PLAIN:
        check_key(key)
        return key
    wrapped = Encryption.RSA if scheme.key_exchange is KeyExchange.RSA else Encryption.SM2
    failure: CryptoError = NoKey(f"no {wrapped.name} key of the platform is known that opens exchanged keys")
    for opener in platform:
        if opener.algorithm != wrapped:
            continue
        try:
            opened = replace(key, secret=decrypt_unit(secret, wrapped, opener.secret, scheme))
            check_key(opened)
        except CryptoError as error:
            failure = error
        else:
            return opened
    raise failure
