"""``nevstream certs``: a development authority and certificates for trying TLS out, and a look into certificates.

For production an authority of your own signs; what is made here says so in its name, and its keys lie in plain files.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from services.terminal import JsonOption, out

app = typer.Typer(help="Certificates: a development authority, and what a certificate says.", no_args_is_help=True)


@app.command()
def dev(
    folder: Annotated[Path, typer.Argument(help="Where the files go; made when missing.")] = Path("certs"),
    host: Annotated[list[str] | None, typer.Option(help="Name or address of the server; repeatable.")] = None,
    vin: Annotated[list[str] | None, typer.Option(help="Vehicle that gets a client certificate; repeatable.")] = None,
    days: Annotated[int, typer.Option(min=1, max=825, help="Days that certificates are valid.")] = 90,
    as_json: JsonOption = False,
) -> None:
    """Make a development CA (kept when it is there), a server certificate, and one for each vehicle."""
    from services.issuing import issue_all

    folder.mkdir(parents=True, exist_ok=True)
    written = issue_all(folder, host or ["localhost", "127.0.0.1", "::1"], vin or (), days)
    made = {
        "client_ca_file": str(folder / "ca.pem"),
        "cert_file": str(folder / "server.pem"),
        "key_file": str(folder / "server.key"),
        "vehicles": {one: {"cert": str(folder / f"{one}.pem"), "key": str(folder / f"{one}.key")} for one in vin or ()},
    }
    if as_json:
        print(json.dumps(made, indent=2))
        return
    out.print(f"{written} certificates in {folder}, signed by {folder / 'ca.pem'} (development only)")
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
    from services.issuing import facts_of

    rows: list[dict[str, Any]] = [row for file in files for row in facts_of(file)]
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
