"""What a database fixes of its journal when it is first set up: kind, partitions, topic.

Positions in the database are offsets of that journal, and of no other; a change is refused before anything is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import psycopg

from services.database import Connection, Line
from services.errors import SettingsError, UsageError

_WHY: Final = {
    "journal.kind": "how far its frames are stored is told in offsets of that journal",
    "journal.partitions": "every vehicle's frames lie where that number put them",
    "journal.kafka.topic": "how far its frames are stored is told in offsets of that topic",
}


async def fix(line: Line, settings: Mapping[str, str]) -> None:
    """Fix ``settings`` by name, or see that the database has the same.

    Raises ``SettingsError`` when it has another, ``UsageError`` when it was never migrated, and what ``line`` raises.
    """

    async def run(connection: Connection) -> tuple[str, str] | None:
        """The first that differs: with another kind of journal, the rest is of another journal, too."""
        for name, value in settings.items():
            await connection.execute(
                "INSERT INTO settings_fixed (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING", [name, value]
            )
            cursor = await connection.execute("SELECT value FROM settings_fixed WHERE name = %s", [name])
            row = await cursor.fetchone()
            assert row is not None
            if row[0] != value:
                return name, row[0]
        return None

    try:
        found = await line.call(run)
    except psycopg.errors.UndefinedTable as error:
        raise UsageError("the database has no journal yet: run `nevstream migrate`") from error
    if found is not None:
        name, value = found
        shown = value if value.isdigit() else f'"{value}"'
        raise SettingsError(
            f"{name} is {settings[name]}, but this database was set up with {value}, and {_WHY[name]}: "
            f"set {name} = {shown}, or start with a new database"
        )
