"""``nevstream keys``: what opens encrypted data units and verifies signatures.

A secret is read from a file or from standard input, never from the command line (which other users of the machine
and the shell's history can see), and never printed.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from services.errors import UsageError
from services.settings import Settings
from services.terminal import TIME_HELP, ConfigOption, JsonOption, database, err, moment, out, zone_of

app = typer.Typer(help="Keys for encrypted data units and for signatures.", no_args_is_help=True)

_SECRET_BYTES_MAX: Final = 65_536


class UnitAlgorithm(StrEnum):
    """What a data unit is encrypted with (table 2)."""

    RSA = "rsa"
    AES = "aes"
    SM2 = "sm2"
    SM4 = "sm4"


class SignatureAlgorithm(StrEnum):
    """What a report is signed with (2025 table 7)."""

    SM2 = "sm2"
    RSA = "rsa"
    ECC = "ecc"


class Form(StrEnum):
    """How a key is written."""

    PEM = "pem"
    HEX = "hex"
    BASE64 = "base64"
    RAW = "raw"


_UNIT: Final = {UnitAlgorithm.RSA: 2, UnitAlgorithm.AES: 3, UnitAlgorithm.SM2: 4, UnitAlgorithm.SM4: 5}
_SIGNATURE: Final = {SignatureAlgorithm.SM2: 1, SignatureAlgorithm.RSA: 2, SignatureAlgorithm.ECC: 3}


@app.command()
def add(
    vin: Annotated[str | None, typer.Option("--vin", help="The vehicle whose key it is.")] = None,
    platform: Annotated[
        str | None, typer.Option("--platform", help="Code of the platform whose key it is; tried on every vehicle.")
    ] = None,
    algorithm: Annotated[
        UnitAlgorithm | None,
        typer.Option("--algorithm", "-a", help="A key that opens data units: AES or SM4 key, RSA or SM2 private key."),
    ] = None,
    signature: Annotated[
        SignatureAlgorithm | None, typer.Option("--signature", "-s", help="A public key that verifies signatures.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read it from here; else standard input.")] = None,
    form: Annotated[Form | None, typer.Option("--format", help="How it is written, when not as it looks.")] = None,
    since: Annotated[str | None, typer.Option("--from", help=f"Valid from: {TIME_HELP}.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Valid to; written as --from is.")] = None,
    config: ConfigOption = None,
) -> None:
    """Add a key: PEM, hex, base64 or bare bytes, from a file or standard input.

    Dead letters that it opens are put back with `nevstream dead-letters requeue --reason encrypted`.
    """
    from schemas.gbt32960 import crypto, signatures
    from schemas.keyring import Key, Purpose, Scope
    from services.store import keys
    from services.store.sealing import Sealer

    if (vin is None) == (platform is None):
        raise UsageError("give either --vin or --platform")
    if (algorithm is None) == (signature is None):
        raise UsageError("give either --algorithm (opens data units) or --signature (verifies reports)")
    owner = vin if platform is None else platform
    assert owner is not None
    if not (owner.isascii() and owner.isprintable() and " " not in owner and 1 <= len(owner) <= 17):
        raise UsageError(f"{owner!r} is not a VIN or platform code: 1 to 17 printable ASCII characters without spaces")
    settings = Settings.read(config)
    zone = zone_of(settings)
    begin = moment(since, "--from", zone) if since is not None else None
    end = moment(until, "--to", zone) if until is not None else None
    if begin is not None and end is not None and end <= begin:
        raise UsageError("--to is not after --from")
    purpose = Purpose.VERIFY if algorithm is None else Purpose.DECRYPT
    sizes: tuple[int, ...]
    if algorithm is not None:
        number, sizes = _UNIT[algorithm], (16, 24, 32)  # an SM2 private key has 32, too
    else:
        assert signature is not None
        number, sizes = _SIGNATURE[signature], (64, 65)
    secret, written = _secret(_read(file), sizes, form)
    scope = Scope.VEHICLE if platform is None else Scope.PLATFORM
    key = Key(owner, scope, purpose, number, secret, begin, end)
    try:
        (signatures if purpose is Purpose.VERIFY else crypto).check_key(key)
    except crypto.BadKey as error:
        raise UsageError(f"{file or 'standard input'} holds no such key: {error}") from error
    added = keys.add(database(settings), settings.encryption, key)
    if added is None:
        out.print("this key is there already; nothing was changed")
        return
    out.print(f"key {added} of {owner} added: {len(secret)} bytes, read as {written}", highlight=False, markup=False)
    if purpose is Purpose.DECRYPT and Sealer.of(settings.encryption).master is None:
        err.print(
            "[yellow]It is stored in the clear: whoever can read the database can read it. To seal keys, make a master "
            "key with `openssl rand -hex 32 > FILE`, set encryption.master_key_file to it, then "
            f"`nevstream keys remove {added}` and add the key again.[/yellow]"
        )


@app.command("list")
def listed(
    vin: Annotated[str | None, typer.Option("--vin", help="Only keys of this vehicle or platform.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the keys: whose, what for, valid when. Secrets are not shown; equal fingerprints are equal keys."""
    from services.store.keys import stored

    settings = Settings.read(config)
    found = stored(database(settings), vin)
    zone = zone_of(settings)

    def local(time: datetime | None) -> str | None:
        return None if time is None else time.astimezone(zone).isoformat(timespec="seconds")

    lines = [
        {
            "id": key.key_id, "owner": key.owner, "scope": str(key.scope), "purpose": str(key.purpose),
            "algorithm": _name(str(key.purpose), key.algorithm), "valid_from": local(key.valid_from),
            "valid_to": local(key.valid_to), "source": key.source, "from_frame": key.from_frame,
            "added_at": local(key.added_at), "sealed": key.sealed_with is not None, "fingerprint": key.fingerprint,
        }
        for key in found
    ]  # fmt: skip
    if as_json:
        print(json.dumps(lines))
        return
    table = Table(box=None, header_style="bold")
    titles = ("id", "owner", "scope", "for", "algorithm", "valid from", "valid to", "source", "at rest", "fingerprint")
    for title in titles:
        table.add_column(title, no_wrap=True)
    for line in lines:
        table.add_row(
            str(line["id"]), str(line["owner"]), str(line["scope"]), str(line["purpose"]), str(line["algorithm"]),
            str(line["valid_from"] or "-"), str(line["valid_to"] or "-"), str(line["source"]),
            "sealed" if line["sealed"] else "in the clear", str(line["fingerprint"]),
        )  # fmt: skip
    if lines:
        out.print(table)
    else:
        out.print("no keys; add one with `nevstream keys add`")


@app.command()
def remove(
    key_ids: Annotated[list[int], typer.Argument(help="Ids, as `nevstream keys list` shows them.", metavar="ID...")],
    config: ConfigOption = None,
) -> None:
    """Remove keys. Frames that only they open are dead letters from then on; rows stay."""
    from services.store.keys import remove as removed

    n = removed(database(Settings.read(config)), key_ids)
    out.print(f"{n} {'key' if n == 1 else 'keys'} removed", highlight=False)


def _name(purpose: str, algorithm: int) -> str:
    names = {"decrypt": {n: str(a) for a, n in _UNIT.items()}, "verify": {n: str(a) for a, n in _SIGNATURE.items()}}
    return names[purpose].get(algorithm, str(algorithm))


def _read(file: Path | None) -> bytes:
    try:
        if file is not None:
            data = file.read_bytes()
        else:
            if sys.stdin.isatty():
                err.print("key (PEM, hex or base64; end with Ctrl-D):")
            data = sys.stdin.buffer.read(_SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"--file {file}: {error.strerror}") from error
    if not data.strip():
        raise UsageError(f"{file or 'standard input'} is empty")
    if len(data) > _SECRET_BYTES_MAX:
        raise UsageError(f"{file or 'standard input'} is longer than {_SECRET_BYTES_MAX} bytes: that is no key")
    return data


def _secret(data: bytes, sizes: tuple[int, ...], form: Form | None) -> tuple[bytes, Form]:
    """The bytes of a key and how they were written: PEM, hex, base64, or bare.

    Unless ``form`` says so, bytes are taken to be hex or base64 when that gives a key's size (or DER): 32 hex digits
    are a key of 16 bytes, not the 32 characters.
    """
    text = data.strip()
    if form is Form.PEM or (form is None and b"-----BEGIN" in text):
        return _of_pem(text), Form.PEM
    readers = {Form.HEX: binascii.unhexlify, Form.BASE64: _base64}
    for name, read in readers.items():
        if form in (None, name):
            try:
                found = read(b"".join(text.split()))
            except (binascii.Error, ValueError):
                continue
            if form is name or len(found) in sizes or found[:1] == b"\x30":
                return found, name
    if form not in (None, Form.RAW):
        raise UsageError(f"what was given is not {form}")
    # An editor's line end after a key that was typed.
    return (text if len(data) not in sizes and len(text) in sizes else data), Form.RAW


def _base64(text: bytes) -> bytes:
    return base64.b64decode(text, validate=True)


def _of_pem(text: bytes) -> bytes:
    """DER of the key in a PEM file; ``openssl ecparam -genkey`` puts the curve's parameters before it."""
    blocks = text.split(b"-----BEGIN ")[1:]
    for block in blocks:
        title, _, rest = block.partition(b"-----")
        body = rest.partition(b"-----END")[0]
        if b"KEY" not in title:
            continue
        if b"ENCRYPTED" in title or b"ENCRYPTED" in body:
            raise UsageError("the key is under a password: take it off with `openssl pkey -in FILE -out NEW`")
        try:
            return base64.b64decode(b"".join(body.split()), validate=True)
        except binascii.Error as error:
            raise UsageError("the PEM text is damaged") from error
    raise UsageError("the PEM file holds no key")
