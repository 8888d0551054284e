"""``nevstream certs``: a development authority and certificates for trying TLS out, and a look into certificates.

For production an authority of your own signs; what is made here says so in its name, and its keys lie in plain files.
"""

from __future__ import annotations

import ipaddress
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from rich.table import Table

from services.errors import UsageError
from services.terminal import JsonOption, out

app = typer.Typer(help="Certificates: a development authority, and what a certificate says.", no_args_is_help=True)

_AUTHORITY: Final = "nevstream development authority, not for production"
_BACKDATED: Final = timedelta(hours=1)  # clocks of other machines


@app.command()
def dev(
    folder: Annotated[Path, typer.Argument(help="Where the files go; made when missing.")] = Path("certs"),
    host: Annotated[list[str] | None, typer.Option(help="Name or address of the server; repeatable.")] = None,
    vin: Annotated[list[str] | None, typer.Option(help="Vehicle that gets a client certificate; repeatable.")] = None,
    days: Annotated[int, typer.Option(min=1, max=825, help="Days that certificates are valid.")] = 90,
    as_json: JsonOption = False,
) -> None:
    """Make a development CA (kept when it is there), a server certificate, and one for each vehicle."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, ca = _authority(folder, days)
    names = host or ["localhost", "127.0.0.1", "::1"]
    written = [
        _issue(folder, "server", names[0], _server_names(names), ExtendedKeyUsageOID.SERVER_AUTH, ca_key, ca, days)
    ]
    for one in vin or ():
        if not (len(one) == 17 and one.isascii() and one.isalnum()):
            raise UsageError(f"{one!r} is not a VIN: 17 letters and digits")
        alternative: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"urn:vin:{one}")]
        written.append(_issue(folder, one, one, alternative, ExtendedKeyUsageOID.CLIENT_AUTH, ca_key, ca, days))
    made = {
        "client_ca_file": str(folder / "ca.pem"),
        "cert_file": str(folder / "server.pem"),
        "key_file": str(folder / "server.key"),
        "vehicles": {one: {"cert": str(folder / f"{one}.pem"), "key": str(folder / f"{one}.key")} for one in vin or ()},
    }
    if as_json:
        print(json.dumps(made, indent=2))
        return
    out.print(f"{len(written)} certificates in {folder}, signed by {folder / 'ca.pem'} (development only)")
    out.print("Settings that use them:", highlight=False)
    for section in ("gateway.mqtt.tls", "gateway.gbt32960.tls"):
        out.print(
            f'\n\\[{section}]\ncert_file = "{made["cert_file"]}"\nkey_file = "{made["key_file"]}"', highlight=False
        )
        out.print(f'client_ca_file = "{made["client_ca_file"]}"\nclient_certificate = "optional"', highlight=False)


@app.command()
def show(
    files: Annotated[list[Path], typer.Argument(help="Certificate files, PEM.")],
    as_json: JsonOption = False,
) -> None:
    """Whom certificates are for, who signed them, and how long they last."""
    rows = []
    for file in files:
        try:
            chain = x509.load_pem_x509_certificates(file.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{file}: no certificate in PEM can be read from it ({error})") from error
        rows += [_facts(file, one) for one in chain]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("file", "for", "signed by", "valid until", "days left")
    now = datetime.now(UTC)
    for row in rows:
        until = datetime.fromisoformat(str(row["not_after"]))
        table.add_row(
            str(row["file"]), ", ".join(row["names"]), str(row["issuer"]), f"{until:%Y-%m-%d %H:%M} UTC",
            str((until - now).days),
        )  # fmt: skip
    out.print(table)


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


def _server_names(hosts: list[str]) -> list[x509.GeneralName]:
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
