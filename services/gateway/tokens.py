"""Tokens of vehicles: a JWT in the place of the MQTT password, judged by keys from a file.

``sub`` is the VIN and ``exp`` has to be there; ``aud`` is looked at where ``tokens_audience`` says whose it must be.  A
key has one algorithm, by its kind, whatever a token's head says.  It must never log a token.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from services.errors import SettingsError
from services.settings import MqttDoor

log = logging.getLogger("nevstream.gateway")

BYTES_MAX: Final = 8192  # of a token
KEYS_MAX: Final = 32
_LOOK_EVERY_S: Final = 5.0
_SECRET_BYTES_MIN: Final = 32  # of HS256: RFC 7518, 3.2
_RSA_BITS_MIN: Final = 2048
_ODD: Final = (ValueError, TypeError, OverflowError, RecursionError)  # JSON made to be unpleasant


class BadToken(Exception):
    """Why a token is refused, in words for the vehicle's maker."""


@dataclass(frozen=True, slots=True)
class TokenKey:
    kid: str | None
    algorithm: str
    key: Any


class VehicleTokens:
    """The keys of ``gateway.mqtt.tokens_file``, read again when the file has changed.

    Raises ``SettingsError`` when made; later a file that cannot be used is logged and the keys read before hold.
    """

    def __init__(self, settings: MqttDoor) -> None:
        self._file = settings.tokens_file
        self._audience = settings.tokens_audience or None
        self._leeway_s = settings.tokens_leeway_s
        if not self._file:
            raise SettingsError("gateway.mqtt.tokens_file is empty: auth = token needs the keys that sign tokens")
        self._seen = self._stamp()
        self._keys = read_keys(self._file)
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        self._verifying = asyncio.Semaphore(2)

    async def verify(self, vin: str, token: bytes | None) -> float:
        """When the token of ``vin`` ends, in Unix time.  Raises ``BadToken``."""
        async with self._verifying:
            return await asyncio.to_thread(self.judge, vin, token)

    def judge(self, vin: str, token: bytes | None) -> float:
        self._look()
        if not token:
            raise BadToken("there is no token in the password")
        if len(token) > BYTES_MAX:
            raise BadToken(f"the token is longer than {BYTES_MAX} bytes")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except (jwt.InvalidTokenError, *_ODD):
            raise BadToken("the password is not a JWT") from None
        for one in self._keys:
            if kid is not None and one.kid is not None and one.kid != kid:
                continue
            try:
                claims = jwt.decode(
                    token, one.key, algorithms=[one.algorithm], audience=self._audience, leeway=self._leeway_s,
                    options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
                )  # fmt: skip
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                continue  # another key's
            except jwt.ExpiredSignatureError:
                raise BadToken("the token has expired") from None
            except (jwt.InvalidTokenError, *_ODD) as error:
                raise BadToken(f"the token cannot be used: {error}"[:200]) from None
            if claims["sub"] != vin:
                raise BadToken("the token is another vehicle's")
            return float(claims["exp"]) + self._leeway_s
        raise BadToken("the token is signed by none of the keys that are known")

    def _stamp(self) -> tuple[int, int]:
        try:
            found = Path(self._file).stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino

    def _look(self) -> None:
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = read_keys(self._file)
        except SettingsError as error:
            log.error("%s; the keys read before still hold", error)
            return
        log.info("gateway.mqtt.tokens_file: %d keys hold from now on", len(self._keys))


def read_keys(file: str) -> tuple[TokenKey, ...]:
    """The keys of a JWKS, or of public keys and certificates in PEM.  Raises ``SettingsError``."""
    where = f"gateway.mqtt.tokens_file: {file}"
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}") from error
    try:
        keys = _of_pem(data) if b"-----BEGIN" in data else _of_jwks(data)
    except (ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
        raise SettingsError(f"{where} is neither a JWKS nor public keys in PEM ({type(error).__name__})") from None
    if not 1 <= len(keys) <= KEYS_MAX:
        raise SettingsError(f"{where} has {len(keys)} keys for HS256, RS256 or ES256: 1 to {KEYS_MAX} are needed")
    for one in keys:
        weak = (one.algorithm == "HS256" and len(one.key) < _SECRET_BYTES_MIN) or (
            one.algorithm == "RS256" and one.key.key_size < _RSA_BITS_MIN
        )
        if weak:
            least = f"{_SECRET_BYTES_MIN} bytes (HS256) or {_RSA_BITS_MIN} bits (RSA)"
            raise SettingsError(f"{where}: a key is too short, it needs {least}")
    return keys


def _of_jwks(data: bytes) -> tuple[TokenKey, ...]:
    found = []
    document = json.loads(data)
    for entry in document.get("keys", [document]):
        if entry.get("use", "sig") != "sig":
            continue
        public = {name: value for name, value in entry.items() if name not in ("d", "p", "q", "dp", "dq", "qi")}
        algorithm = _algorithm(public)
        if algorithm is not None and entry.get("alg", algorithm) == algorithm:
            found.append(TokenKey(entry.get("kid"), algorithm, jwt.PyJWK(public, algorithm).key))
    return tuple(found)


def _algorithm(entry: dict[str, Any]) -> str | None:
    if entry.get("kty") == "EC":
        return "ES256" if entry.get("crv") == "P-256" else None
    return {"oct": "HS256", "RSA": "RS256"}.get(str(entry.get("kty")))


def _of_pem(data: bytes) -> tuple[TokenKey, ...]:
    found = []
    for part in data.split(b"-----BEGIN ")[1:]:
        text = b"-----BEGIN " + part
        certificate = part.startswith(b"CERTIFICATE-----")
        key: Any = x509.load_pem_x509_certificate(text).public_key() if certificate else load_pem_public_key(text)
        if isinstance(key, rsa.RSAPublicKey):
            found.append(TokenKey(None, "RS256", key))
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            found.append(TokenKey(None, "ES256", key))
    return tuple(found)
