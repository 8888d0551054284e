"""What the parts of the command line share: consoles, options, the database to use, times as people write them.

Knows no stage.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from rich.console import Console

from services.errors import SettingsError, UsageError
from services.settings import Settings

# Into a pipe or a file a table is as wide as it needs; on a terminal, as wide as that.
out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file (default: nevstream.toml when it is there).")
]
ApiOption = Annotated[
    str | None, typer.Option("--api", help="Base URL of the HTTP API (default: from the settings).", metavar="URL")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

TIME_HELP: Final = "ISO 8601 (without offset: the fleet's time zone), or so long ago: 90m, 6h, 2d"
_AGO: Final = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def database(settings: Settings) -> str:
    """The database of these settings, or of the system that runs from this directory.  Raises ``UsageError``."""
    if settings.database.dsn is not None:
        return settings.database.dsn.get_secret_value()
    running = settings.runtime_dir / "system.json"
    if running.exists():
        return str(json.loads(running.read_text("utf-8"))["database"]["dsn"])
    raise UsageError(
        "no database: set database.dsn (NEVSTREAM_DATABASE__DSN), or start `nevstream up` in this directory"
    )


def zone_of(settings: Settings) -> ZoneInfo:
    """The fleet's time zone.  Raises ``SettingsError``."""
    try:
        return ZoneInfo(settings.time_zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise SettingsError(
            f"time_zone = {settings.time_zone!r} is not a time zone of this machine: use an IANA name such as "
            "Asia/Shanghai, and install the tzdata package if there are none"
        ) from error


def moment(text: str, option: str, zone: ZoneInfo, now: datetime | None = None) -> datetime:
    """A point in time that somebody typed, in UTC.  Raises ``UsageError``."""
    if ago := _AGO.fullmatch(text.strip()):
        return (now or datetime.now(UTC)) - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
    try:
        time = datetime.fromisoformat(text.strip())
        return (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{option} {text!r} is not a time: give {TIME_HELP}") from None
