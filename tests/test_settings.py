"""Settings: the sample is the defaults, and every mistake is named."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest

from services.errors import SettingsError
from services.settings import Settings, sample
from services.topology import plain


def test_the_sample_uncommented_is_the_defaults(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=\w+ = )", "", sample(), flags=re.MULTILINE)
    values = tomllib.loads(text)
    assert values["database"].pop("dsn") == "postgresql://nevstream@db.example/nevstream", "an example, not a default"
    assert values["pipeline"].pop("signals_file") == "signals.toml", "as well"
    assert values["credits"].pop("rules_file") == "credit-rules.toml", "as well"

    expected = plain(Settings().model_dump())
    assert expected["database"].pop("dsn") is None
    assert expected["pipeline"].pop("signals_file") is None
    assert expected["credits"].pop("rules_file") is None
    assert values == expected


def test_the_sample_as_printed_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "nevstream.toml"
    file.write_text(sample())

    assert Settings.read(file) == Settings()


def test_every_option_has_a_description() -> None:
    lines = sample().splitlines()
    bare = [
        line for before, line in itertools.pairwise(lines) if re.match(r"#\w+ = ", line) and not before.startswith("# ")
    ]

    assert bare == []


def test_environment_beats_file_and_override_beats_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "nevstream.toml"
    file.write_text("[web]\nport = 1\n[gateway.mqtt]\nport = 1\nhost = '0.0.0.0'\n")
    monkeypatch.setenv("NEVSTREAM_GATEWAY__MQTT__PORT", "2")

    settings = Settings.read(file, {"web": {"port": 3}})

    assert (settings.web.port, settings.gateway.mqtt.port, settings.gateway.mqtt.host) == (3, 2, "0.0.0.0")
    assert Settings.read(file, {"gateway": {"mqtt": {"port": 4}}}).gateway.mqtt.port == 4


def test_a_table_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEVSTREAM_GATEWAY__GBT32960__PLATFORM_USERS", '{"City": "secret"}')

    users = Settings.read().gateway.gbt32960.platform_users

    assert {name: secret.get_secret_value() for name, secret in users.items()} == {"City": "secret"}


def test_a_mistyped_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEVSTREAM_WEB__PROT", "1")

    with pytest.raises(SettingsError, match=r"web\.prot"):
        Settings.read()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[web]\nport = 99999\n", "web.port"),
        ("[web]\nprot = 1\n", "web.prot"),
        ("[gateway]\nregistry = 'closed'\n", "gateway.registry"),
        (
            "[statistics.alarm_rules.temperature_hgih]\nthreshold = 50\n",
            "statistics.alarm_rules: Value error, no alarm",
        ),
        ("[statistics.alarm_rules.temperature_high]\nclear = 70\n", "clears above what raises it"),
        ("[gateway\n", "nevstream.toml"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "nevstream.toml"
    file.write_text(text)

    with pytest.raises(SettingsError, match=re.escape(named)):
        Settings.read(file)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nevstream config >"):
        Settings.read(tmp_path / "none.toml")


def test_secrets_do_not_show(tmp_path: Path) -> None:
    settings = Settings.read(overrides={"database": {"dsn": "postgresql://u:hunter2@h/d"}})

    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_a_wrong_secret_is_not_repeated_in_the_message() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.read(overrides={"gateway": {"gbt32960": {"platform_users": ["hunter2"]}}})

    assert "platform_users" in str(caught.value)
    assert "hunter2" not in str(caught.value)
