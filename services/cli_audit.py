"""Which commands change something, and the line that each of them leaves in the audit log when it has.

Every command is in one of the two sets, which a test holds against the commands there are.  A change that cannot be
written down is told on the terminal; it is never undone for that.
"""

from __future__ import annotations

import asyncio
import functools
import getpass
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import typer

from schemas.access import CHANGE_MAX, Entry, without_secrets
from services.errors import NevstreamError
from services.settings import Settings
from services.terminal import database, err

WRITES: Final = frozenset({
    "alarms ack", "alarms close", "alarms webhooks retry", "command control", "command query", "command set",
    "dead-letters prune", "dead-letters requeue", "keys add", "keys remove", "migrate", "models import",
    "models remove", "models set", "replay", "statistics rebuild", "tokens add", "tokens revoke", "tokens rotate",
    "vehicles add", "vehicles import", "vehicles retire", "vehicles set", "vehicles set-password",
})  # fmt: skip
READS: Final = frozenset({
    "alarms rules", "alarms show", "alarms summary", "alarms watch", "alarms webhooks status", "alarms webhooks test",
    "audit", "bench", "certs dev", "certs show", "command list", "config", "credits estimate", "credits fleet",
    "credits rules", "dead-letters export", "dead-letters list", "dead-letters show", "decode", "demo", "doctor",
    "flaws", "fleet clusters", "fleet frequent-alarms", "fleet metric", "fleet metrics", "fleet offline",
    "fleet outlier-cells", "fleet report year", "fleet series", "fleet verification", "keys list", "latest",
    "load", "models export", "models list", "schema", "signals check", "signals list", "simulate", "soak",
    "statistics status", "tokens list", "up", "vehicles battery", "vehicles charges", "vehicles completeness",
    "vehicles curve", "vehicles days", "vehicles export", "vehicles list", "vehicles registry", "vehicles show",
    "vehicles timeline", "vehicles track", "vehicles trips",
})  # fmt: skip
_ABOUT: Final = ("vin", "vins", "name", "names", "key_ids", "model", "models", "ids", "id", "file", "hook")
_HOW: Final = frozenset({"config", "as_json", "api", "wait"})


def commands(group: Any, before: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command by its words, such as ``vehicles set-password``."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        words = (*before, name)
        found |= commands(command, words) if hasattr(command, "commands") else {" ".join(words): command}
    return found


def install(group: Any) -> None:
    """Make the commands of ``WRITES`` leave a line in the audit log."""
    for name, command in commands(group).items():
        if name in WRITES:
            command.callback = audited(name, command.callback)


def audited(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, and a line about it when it has ended: what is refused before it begins has changed nothing."""

    @functools.wraps(run)
    def with_line(**given: Any) -> Any:
        try:
            answer = run(**given)
        except typer.Exit as ended:
            _record(name, given, 500 if ended.exit_code else 200)
            raise
        _record(name, given, 200)
        return answer

    return with_line


def entry(name: str, given: dict[str, Any], status: int) -> Entry:
    target = next((given[word] for word in _ABOUT if given.get(word)), "")
    told = {word: value for word, value in given.items() if word not in _HOW and value not in (None, False, (), [])}
    change = json.dumps(without_secrets(told), ensure_ascii=False, default=str)
    words = " ".join(map(str, target)) if isinstance(target, (list, tuple)) else str(target)
    return Entry(f"cli:{getpass.getuser()}", platform.node(), name, words[:300], status, change[:CHANGE_MAX])


def _record(name: str, given: dict[str, Any], status: int) -> None:
    from services.store.access import PostgresAudit

    async def run() -> None:
        config = given.get("config")
        audit = PostgresAudit(database(Settings.read(None if config is None else Path(config))))
        try:
            await audit.record(entry(name, given, status))
        finally:
            await audit.close()

    try:
        asyncio.run(run())
    except NevstreamError as error:
        err.print(f"nevstream: this is not in the audit log: {error}", highlight=False, markup=False, style="yellow")
