"""Making and reading certificates, for ``nevstream certs``; apart, so that ``nevstream --help`` loads none of it.

For production an authority of your own signs; what is made here says so in its name, and its keys lie in plain files.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.errors import UsageError

_AUTHORITY: Final = "nevstream development authority, not for production"
_BACKDATED: Final = timedelta(hours=1)  # clocks of other machines


def issue_all(folder: Path, hosts: Sequence[str], vins: Sequence[str], days: int) -> int:
    """Make the authority when it is missing, a server certificate, and one for each of ``vins``; returns how many.

    Raises ``UsageError`` for what is no VIN, and for an authority that does not fit.
    """
    ca_key, ca = _authority(folder, days)
    _issue(folder, "server", hosts[0], _server_names(hosts), ExtendedKeyUsageOID.SERVER_AUTH, ca_key, ca, days)
    for one in vins:
        if not (len(one) == 17 and one.isascii() and one.isalnum()):
            raise UsageError(f"{one!r} is not a VIN: 17 letters and digits")
        alternative: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"urn:vin:{one}")]
        _issue(folder, one, one, alternative, ExtendedKeyUsageOID.CLIENT_AUTH, ca_key, ca, days)
    return 1 + len(vins)


def facts_of(file: Path) -> list[dict[str, Any]]:
    """What each certificate of a PEM file says.  Raises ``UsageError``."""
    try:
        chain = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: no certificate in PEM can be read from it ({error})") from error
    return [_facts(file, one) for one in chain]


def _facts(file: Path, certificate: x509.Certificate) -> dict[str, Any]:
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        others = [str(name.value) for name in alternative]
    except x509.ExtensionNotFound:
        others = []
    subject = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return {
        "file": str(file),
        "names": list(dict.fromkeys(subject + others)),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "serial": f"{certificate.serial_number:x}",
    }


def _authority(folder: Path, days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_file, cert_file = folder / "ca.key", folder / "ca.pem"
    if key_file.exists() and cert_file.exists():
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise UsageError(f"{key_file} is not the key of {cert_file}: remove both, and new ones are made")
        if certificate.not_valid_after_utc < datetime.now(UTC) + timedelta(days=days):
            raise UsageError(f"{cert_file} ends before {days} days have passed: remove it and {key_file.name}")
        return key, certificate
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _AUTHORITY)])
    certificate = (
        _begun(name, name, key.public_key(), 3650)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(folder, "ca", key, certificate)
    return key, certificate


def _issue(
    folder: Path, file: str, name: str, alternative: list[x509.GeneralName], use: x509.ObjectIdentifier,
    ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, days: int,
) -> Path:  # fmt: skip
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _begun(subject, ca.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _write(folder, file, key, certificate)


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _server_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _write(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Path:
    """``name``.key, readable by the owner only, and ``name``.pem; each put in place whole."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for suffix, data, mode in (
        (".key", private, 0o600),
        (".pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644),
    ):
        new = folder / f".{name}{suffix}.new"
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        new.replace(folder / f"{name}{suffix}")
    return folder / f"{name}.pem"
