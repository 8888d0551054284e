"""The doctor has words for every reason for which a connection or a frame can be refused, and says what to do."""

from __future__ import annotations

import ast
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

import services.gateway
from schemas.link_events import CAUSES
from schemas.reasons import BY_NAME, CODE, REASONS
from services.gateway import mqtt_door
from services.gateway.accepting import SETTING_OF
from services.settings import Settings
from services.web.doctor import Finding, Severity, diagnose
from tests.gateway.playing import VIN

NOW: Final = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
# Who says why, and where in its arguments; ``_disconnect`` of the bridge has another order than MQTT's.
_SAID_AT: Final = {
    "turn_away": 1, "refused": 0, "gone": 1, "end": 1, "dismiss": 1, "tell": 2, "closed_unheard": 0,
    "_turned_away": 0, "_refuse": 3, "farewell": 1,
}  # fmt: skip
_DISCONNECT: Final = {"bridge": 1, "mqtt_door": 3}


def said(refusals_only: bool = False) -> set[str]:
    """Every cause that stands in the gateway's source."""
    found: set[str] = set()
    for file in Path(services.gateway.__path__[0]).glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            name = call.func.attr
            at = _DISCONNECT.get(file.stem) if name == "_disconnect" else _SAID_AT.get(name)
            if at is None or at >= len(call.args):
                continue
            refusal = name in ("turn_away", "closed_unheard", "_turned_away", "_refuse", "dismiss") or (
                name == "tell" and isinstance(call.args[0], ast.Attribute) and call.args[0].attr == "REFUSED"
            )
            if refusals_only and not refusal:
                continue
            words = [part.value for part in ast.walk(call.args[at]) if isinstance(part, ast.Constant)]
            found |= {word for word in words if isinstance(word, str) and word and not word.startswith("_")}
    found |= set(SETTING_OF) | {cause for _, cause, _ in mqtt_door._REFUSAL.values()}
    return found


def facts(event: str = "", cause: str = "", letters: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "event": event, "occurred_at": NOW - timedelta(minutes=1), "cause": cause, "door": 1, "peer": "192.0.2.1:5",
        "client": "", "by_peer": "", "detail": "how it came", "origin": 1, "number": 1, "in_a_day": 1,
    }  # fmt: skip
    return {
        "vehicle": None, "events": {event: told} if event else {}, "letters": letters or [], "last_letter": None,
        "backlog": None, "bridge": [], "last_command": None, "last_login": None, "clock": None, "gaps": None,
    }  # fmt: skip


def first(known: dict[str, Any]) -> Finding:
    return diagnose(VIN, known, Settings(), NOW)[0]


def test_whatever_the_gateway_says_is_in_the_catalogue() -> None:
    assert {"bad_token", "certificate", "packet_size", "not_kept"} <= said()
    assert sorted(said() - set(CAUSES) - set(BY_NAME)) == []


def test_every_limit_is_in_the_catalogue() -> None:
    """A connection that is held back is told of by the setting's name."""
    assert {"bytes_per_s", "frames_per_s"} <= set(CAUSES)


def meaning(cause: str) -> str:
    return BY_NAME[cause].meaning.rstrip(".") if cause in BY_NAME else CAUSES[cause]


_LOGINS: Final = {"bad_login", "bad_vin", "foreign_vin", "vin_in_use", "structure", "encrypted"}


@pytest.mark.parametrize("cause", sorted(said(refusals_only=True) | _LOGINS))
def test_a_refused_connection(cause: str) -> None:
    found = first(facts("refused", cause))
    assert found.severity is Severity.ERROR
    assert f"{VIN} is not let in: {meaning(cause)}. " in found.sentence
    assert "See the gateway's log" not in found.to_do
    assert "{" not in found.to_do
    assert found.evidence["detail"] == "how it came"


@pytest.mark.parametrize("cause", sorted({*CAUSES}))
def test_a_closed_connection(cause: str) -> None:
    found = first(facts("closed", cause))
    assert f"({meaning(cause)})" in found.sentence
    assert found.to_do


@pytest.mark.parametrize("reason", [reason.name for reason in REASONS])
def test_a_refused_frame(reason: str) -> None:
    letter = {
        "reason": CODE[reason], "in_a_day": 2, "last_at": NOW - timedelta(minutes=2), "head": b"", "id": "1-2-3"
    }  # fmt: skip
    found = first(facts("", "", [letter]))
    assert found.code == f"dead_letters_{reason}"
    assert BY_NAME[reason].remedy in found.to_do
    told = first(facts("closed", reason))
    assert BY_NAME[reason].meaning.rstrip(".") in told.sentence
