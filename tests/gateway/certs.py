"""Certificates for tests, made once a session by the program's own command."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from services.cli_certs import app
from tests.gateway.playing import OTHER, VIN


def make(folder: Path, *more: str) -> dict[str, Any]:
    """A development authority in ``folder`` with a server's certificate and those of two vehicles."""
    given = ["dev", str(folder), "--vin", VIN, "--vin", OTHER, "--json", *more]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def client_context(
    made: dict[str, Any], vin: str | None = None, highest: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    """A client that believes the authority of ``made``, and shows the certificate of ``vin``."""
    context = ssl.create_default_context(cafile=made["client_ca_file"])
    if vin is not None:
        context.load_cert_chain(made["vehicles"][vin]["cert"], made["vehicles"][vin]["key"])
    if highest is not None:
        context.maximum_version = highest
    return context
