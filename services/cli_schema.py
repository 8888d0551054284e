"""``nevstream schema``: the JSON Schema documents of what vehicles may publish as JSON."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Topic(StrEnum):
    TELEMETRY = "telemetry"
    BMS = "bms"


def schema(topic: Annotated[Topic, typer.Argument(help="Last level of the topic nev/v1/{vin}/…")]) -> None:
    """Print the JSON Schema (draft 2020-12) of a topic's payload: every field with its unit and range."""
    from schemas.samples.document import text

    typer.echo(text(topic), nl=False)
