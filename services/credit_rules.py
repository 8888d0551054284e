"""The table of dual-credit rules that the settings name, read and checked; else the built-in one."""

from __future__ import annotations

from pathlib import Path

from schemas.credits.rules import TABLE_BYTES_MAX, RulesError, RuleTable, built_in, read_rules
from services.errors import SettingsError


def rules_of(path: Path | None) -> RuleTable:
    """The table at ``path``; the built-in one for None.  Raises ``SettingsError`` with every mistake in it."""
    if path is None:
        return built_in()
    try:
        with path.open("rb") as file:
            content = file.read(TABLE_BYTES_MAX + 1)
        if len(content) > TABLE_BYTES_MAX:
            raise SettingsError(f"credits.rules_file = {str(path)!r} has more than {TABLE_BYTES_MAX // 1024} KiB")
        return read_rules(content.decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(
            f"credits.rules_file = {str(path)!r}: {error.strerror}; `nevstream credits rules --toml` prints a table"
        ) from error
    except (UnicodeDecodeError, RulesError) as error:
        raise SettingsError(
            f"the credit rules have mistakes (check them with `nevstream credits rules --check {path}`):\n{error}"
        ) from error
