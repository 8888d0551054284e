"""TLS for whoever listens: one context per listener, its files read again when they change.

A new certificate serves the next handshake; connections that are open stay. When the new files cannot be
used the old ones still hold, and the log says why. Private keys are read, never shown.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any, Final

from services.errors import SettingsError
from services.settings import ClientCertificate, Tls

log = logging.getLogger("nevstream.tls")

_LOOK_EVERY_S: Final = 5.0
_WHERE_OF_URI: Final = ("urn:vin:", "urn:nev:vin:")


class Certificates:
    """The TLS of one listener.  ``context`` is given to the server once; raises ``SettingsError`` at first.

    ``protocols`` are offered by ALPN.  ``where`` names the settings section in messages.
    """

    def __init__(self, tls: Tls, where: str, protocols: tuple[str, ...] = ()) -> None:
        self._tls = tls
        self._where = where
        self._protocols = protocols
        self._seen = self._stamps()
        self.context = self._current = self._load()
        # Called in every handshake, whether or not the client names a server: the newest context takes over.
        self.context.sni_callback = self._newest

    def _newest(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        stamps = []
        for name in (self._tls.cert_file, self._tls.key_file, self._tls.client_ca_file):
            try:
                found = Path(name).stat() if name else None
            except OSError:
                found = None
            stamps.append((found.st_mtime_ns, found.st_ino) if found else (0, 0))
        return tuple(stamps)

    def _load(self) -> ssl.SSLContext:
        tls = self._tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.minimum == "1.3" else ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file or None, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"{self._where}: the certificate {tls.cert_file} and key {tls.key_file or '(in the same file)'} cannot "
                f"be used ({_reason(error)}): both must be PEM, readable, without a passphrase, and belong together"
            ) from error
        if tls.client_certificate is not ClientCertificate.NONE:
            if not tls.client_ca_file:
                raise SettingsError(
                    f"{self._where}.client_ca_file is empty: client_certificate = {tls.client_certificate} needs the "
                    "certificates of the authorities that vehicles' certificates are signed by (PEM)"
                )
            try:
                context.load_verify_locations(tls.client_ca_file)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(
                    f"{self._where}.client_ca_file: {tls.client_ca_file} cannot be used ({_reason(error)})"
                ) from error
            required = tls.client_certificate is ClientCertificate.REQUIRED
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        if self._protocols:
            context.set_alpn_protocols(list(self._protocols))
        return context

    def look(self) -> bool:
        """Read the files again if they have changed; returns whether new ones serve now."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            self._current = self._load()
        except SettingsError as error:
            log.error("%s; the certificate read before still serves", error)
            return False
        log.info("%s: new certificate files serve from now on", self._where)
        return True

    async def keep_fresh(self) -> None:
        """Look at the files every few seconds, for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.look()


def _no_password() -> bytes:
    """OpenSSL would ask on the terminal for the passphrase of an encrypted key: a service has nobody to answer."""
    raise ValueError("the private key is encrypted")


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


def names_of(certificate: dict[str, Any] | None) -> frozenset[str]:
    """Whom a verified peer certificate is for: its subject's CN and its alternative names.

    ``certificate`` as ``SSLObject.getpeercert`` gives it; None or empty (none was presented) has no names.
    Alternative names may be DNS names or URIs ``urn:vin:LNEV...``. Upper case, as VINs are.
    """
    if not certificate:
        return frozenset()
    names = {value.upper() for part in certificate.get("subject", ()) for key, value in part if key == "commonName"}
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "DNS":
            names.add(value.upper())
        elif kind == "URI":
            names.update(value[len(head) :].upper() for head in _WHERE_OF_URI if value.lower().startswith(head))
    return frozenset(names)
