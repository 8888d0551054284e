"""`nevstream statistics` as a person types it, on a real database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result
from typer.testing import CliRunner

from services.cli import app
from services.errors import UsageError
from tests.statistics.following import follow, send, settings_of
from tests.statistics.lives import DAY_S, MIDNIGHT, life

pytestmark = pytest.mark.database

Run = Callable[..., Result]


@pytest.fixture
def run(dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["statistics", *arguments], catch_exceptions=True)

    return invoke


async def test_status_and_rebuild(run: Run, dsn: str, db: psycopg.Connection[Any]) -> None:
    def told() -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(run("status", "--json").stdout)
        return answer

    assert (told()["changes"], told()["vehicles"], told()["newest_at"]) == (0, 0, None)
    first, second = life(0, 1), life(1, 1)
    await send(dsn, [*first.sent, *second.sent], settings_of())
    assert told()["changes"] > 0
    follow(dsn, settings_of())
    found = told()
    assert (found["changes"], found["vehicles"], found["layouts"]) == (0, 2, 1)
    assert (found["first_day"], found["last_day"]) == ("2026-06-01", "2026-06-02")
    assert "2" in run("status").stdout

    db.execute("UPDATE vehicle_day SET distance_km = 1")
    assert json.loads(run("rebuild", "--vin", first.vin, "--from", "2026-06-02", "--json").stdout) == {"vehicles": 1}
    changed = db.execute("SELECT get_byte(vehicles, 0), encode(from_s, 'hex') FROM statistics_changes").fetchall()
    assert [int.from_bytes(bytes.fromhex(at), "little") for _, at in changed] == [MIDNIGHT + DAY_S]
    follow(dsn, settings_of())
    kept = db.execute("SELECT count(*) FROM vehicle_day WHERE distance_km = 1").fetchone()
    assert kept == (3,), "only the second day of the first vehicle was computed again"
    assert "2 vehicles" in run("rebuild").stdout
    follow(dsn, settings_of())
    assert db.execute("SELECT count(*) FROM vehicle_day WHERE distance_km = 1").fetchone() == (0,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--vin", "LNOBODY0000000001"), "no report of LNOBODY0000000001"),
        (("--from", "yesterday"), "not a day"),
        (("--from", "2999-01-01"), "has not come yet"),
    ],
)
def test_what_cannot_be_rebuilt(run: Run, arguments: tuple[str, ...], said: str) -> None:
    result = run("rebuild", *arguments)
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
