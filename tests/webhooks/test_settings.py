"""What may be written under alarms.webhooks, and what is told of mistakes without telling secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.errors import SettingsError
from services.settings import Settings, sample
from services.topology import plain

GOOD = {"name": "desk", "url": "https://hooks.example.org/x?token=in-the-url", "secret": "0123456789abcdef"}


def read(*hooks: dict[str, Any]) -> Settings:
    return Settings.read(overrides={"alarms": {"webhooks": list(hooks)}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "ftp://hooks.example.org/"}, "http:// or https://"),
        ({"url": "hooks.example.org"}, "http:// or https://"),
        ({"url": "https:///x"}, "http:// or https://"),
        ({"url": "https://hooks.example.org:0/"}, "http:// or https://"),
        ({"url": "https://hooks.example.org:99999/"}, "http:// or https://"),
        ({"url": "https://li:in-the-url@hooks.example.org/"}, "without user"),
        ({"url": "https://hooks.example.org/#in-the-url"}, "without user"),
        ({"secret": "too-short-key"}, "16 characters or more"),
        ({"name": "Duty Desk"}, "name"),
        ({"min_level": 4}, "min_level"),
        ({"events": ["opened"]}, "events"),
        ({"events": []}, "events"),
        ({"fleet": "north"}, "fleet"),
    ],
)
def test_mistakes(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(GOOD | change)
    assert said in str(error.value)
    assert "in-the-url" not in str(error.value)
    assert "too-short-key" not in str(error.value)


def test_names_are_their_own() -> None:
    with pytest.raises(SettingsError, match="two webhooks are named desk"):
        read(GOOD, GOOD)
    assert [hook.name for hook in read(GOOD, GOOD | {"name": "other"}).alarms.webhooks] == ["desk", "other"]


def test_they_come_from_the_environment_and_reach_the_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEVSTREAM_ALARMS__WEBHOOKS", json.dumps([GOOD | {"fleets": ["north"], "events": ["raised"]}]))
    settings = Settings.read()
    (hook,) = settings.alarms.hooks()
    assert (hook.name, hook.level_min, hook.events, hook.fleets) == ("desk", 1, {"raised"}, {"north"})
    assert Settings.model_validate_json(json.dumps(plain(settings.model_dump()))).alarms == settings.alarms


def test_they_are_masked() -> None:
    shown = read(GOOD).model_dump_json()
    assert "in-the-url" not in shown
    assert GOOD["secret"] not in shown
    assert "#webhooks = []" in sample()
