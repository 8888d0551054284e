"""`nevstream tokens` and `audit`; which commands write; and that no secret is told, logged or taken from argv."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from typer.testing import CliRunner

from schemas.access import digest_of, well_formed
from services import api_client, cli_audit
from services.cli import app
from services.errors import UsageError

pytestmark = pytest.mark.database
Db = psycopg.connection.Connection[Any]
COMMANDS = cli_audit.commands(typer.main.get_command(app))


@pytest.fixture
def here(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)
    return dsn


def run(*words: str, typed: str | None = None, code: int = 0) -> str:
    """The command as a process of its own would run it, its line in the audit log included."""
    command = typer.main.get_command(app)
    cli_audit.install(command)
    from click.testing import CliRunner as Clicks

    answer = Clicks().invoke(command, words, input=typed)
    assert answer.exit_code == code, (answer.output, answer.exception)
    return answer.stdout


def test_every_command_is_said_to_write_or_not() -> None:
    assert COMMANDS.keys() == cli_audit.WRITES | cli_audit.READS
    assert not cli_audit.WRITES & cli_audit.READS


def test_no_secret_is_a_parameter() -> None:
    names = {(name, each.name) for name, command in COMMANDS.items() for each in command.params}
    told = [pair for pair in names if any(word in str(pair[1]) for word in ("password", "secret", "token", "dsn"))]
    assert told == []


def test_a_tokens_life(here: str) -> None:
    made = json.loads(run("tokens", "add", "acme", "--role", "operate", "--fleet", "a", "-f", "b", "--json"))
    assert well_formed(made["token"])
    assert (made["role"], made["fleets"], made["state"]) == ("operate", ["a", "b"], "valid")
    rotated = json.loads(run("tokens", "rotate", "acme", "--overlap", "0s", "--expires", "never", "--json"))
    assert rotated["expires_at"] is None
    assert [line["id"] for line in json.loads(run("tokens", "list", "--json"))] == [rotated["id"]]
    listed = run("tokens", "list", "--all", "--json")
    assert [line["state"] for line in json.loads(listed)] == ["revoked", "valid"]
    run("tokens", "revoke", "acme")
    with psycopg.connect(here) as db:
        stored = {bytes(row[0]) for row in db.execute("SELECT digest FROM api_tokens").fetchall()}
        everything = str(db.execute("SELECT * FROM audit").fetchall())
    assert stored == {digest_of(made["token"]), digest_of(rotated["token"])}
    for secret in (made["token"], rotated["token"]):
        assert secret not in listed + everything


@pytest.mark.parametrize("words", [["--expires", "2020-01-01"], ["--expires", "soon"], ["--role", "admin", "-f", "a"]])
def test_what_cannot_be_a_token(here: str, words: list[str]) -> None:
    with pytest.raises(UsageError):
        CliRunner().invoke(app, ["tokens", "add", "x", *words], catch_exceptions=False)


def test_commands_that_write_leave_a_line(here: str) -> None:
    run("vehicles", "add", "V1", "V2")
    run("vehicles", "set-password", "V1", typed="hunter2hunter2\n")
    run("vehicles", "set", "V1", "fleet=north")
    lines = json.loads(run("audit", "--json"))
    assert [(line["action"], line["target"], line["outcome"]) for line in lines[::-1]] == [
        ("vehicles add", "V1 V2", "done"),
        ("vehicles set-password", "V1", "done"),
        ("vehicles set", "V1", "done"),
    ]
    assert all(line["who"].startswith("cli:") for line in lines)
    assert "fleet=north" in lines[0]["change"]
    assert "hunter2" not in str(lines)
    assert "vehicles set" in run("audit", "--who", lines[0]["who"])


def test_passwords_and_dsn_are_not_in_the_log(here: str) -> None:
    """Everything that is logged, of libraries too, by a process that sets a password and one that cannot connect."""
    for dsn, code in ((here, 0), ("postgresql://me:hunter3@127.0.0.1:1/x", 3)):
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", "vehicles", "set-password", "V1"],
            input="hunter2hunter2\n", capture_output=True, text=True, timeout=60, check=False,
            cwd=Path(__file__).parents[1],
            env={"NEVSTREAM_DATABASE__DSN": dsn, "NEVSTREAM_LOG": "DEBUG", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "hunter" not in done.stdout + done.stderr


def test_the_token_of_the_command_line_comes_from_environment_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "nst_" + "a" * 43
    assert api_client._who() == {}
    monkeypatch.setenv("NEVSTREAM_TOKEN", secret)
    assert api_client._who() == {"Authorization": f"Bearer {secret}"}
    monkeypatch.setenv("NEVSTREAM_TOKEN", "hunter2")
    with pytest.raises(UsageError) as caught:
        api_client._who()
    assert "hunter2" not in str(caught.value)
    monkeypatch.delenv("NEVSTREAM_TOKEN")
    (tmp_path / "t").write_text(secret + "\n")
    monkeypatch.setenv("NEVSTREAM_TOKEN_FILE", str(tmp_path / "t"))
    assert api_client._who() == {"Authorization": f"Bearer {secret}"}
    assert secret not in caplog.text
