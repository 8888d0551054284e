"""What deploys nevstream names settings, commands and files that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from services.cli import app
from services.settings import PREFIX, Settings, _environment

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
# of the kernel cache and of compose itself, not settings
NOT_SETTINGS = {"NEVSTREAM_KERNEL_CACHE", "NEVSTREAM_DB_PASSWORD"}


def _variables() -> dict[str, str]:
    found = dict(re.findall(rf"({PREFIX}\w+)=(\S+)", DOCKERFILE))
    for service in COMPOSE["services"].values():
        found |= service.get("environment", {})
    return {name: value for name, value in found.items() if name.startswith(PREFIX) and name not in NOT_SETTINGS}


def test_every_variable_is_a_setting() -> None:
    variables = _variables()
    assert {"NEVSTREAM_DATABASE__DSN", "NEVSTREAM_GATEWAY__MQTT__HOST"} <= set(variables)

    for name, value in variables.items():
        Settings.model_validate(_environment({name: value}))
        assert _environment({name: value}), f"{name} is no setting"


def test_the_image_runs_a_command_that_exists() -> None:
    command = re.search(r'^CMD \["(\w+)"\]', DOCKERFILE, re.MULTILINE)
    assert command is not None
    assert command[1] in typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_image_copies_files_that_exist_and_its_ports_are_the_defaults() -> None:
    for copied in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in copied.split():
            assert (ROOT / name).exists(), name
    defaults = Settings()
    exposed = re.search(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
    assert exposed is not None
    assert {*map(int, exposed[1].split())} == {
        defaults.gateway.mqtt.port,
        defaults.gateway.gbt32960.port,
        defaults.web.port,
    }


@pytest.mark.parametrize("name", list(COMPOSE["services"]))
def test_compose_services_have_what_they_depend_on(name: str) -> None:
    service = COMPOSE["services"][name]

    for other, condition in service.get("depends_on", {}).items():
        assert condition["condition"] == "service_healthy"
        assert "healthcheck" in COMPOSE["services"][other]
    for volume in service.get("volumes", []):
        assert volume.split(":")[0] in COMPOSE["volumes"]
    image = service.get("image")
    assert image is None or re.search(r":[\d.]+", image), "images are pinned"
