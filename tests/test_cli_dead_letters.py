"""`nevstream dead-letters` and `nevstream replay` as a person types them, on a real database."""

from __future__ import annotations

import asyncio
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result
from typer.testing import CliRunner

from services.cli import app
from services.errors import UsageError
from tests.pipeline.conftest import Sent, report_frame
from tests.pipeline.running import put, settings_of, stored

pytestmark = [pytest.mark.database, pytest.mark.slow]

VIN = "LTEST000000000001"
T0 = int(time.time()) - 600
Run = Callable[..., Result]


@pytest.fixture
def run(dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``run("dead-letters", "list", code=0)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)
    monkeypatch.setenv("NEVSTREAM_JOURNAL__PARTITIONS", "4")
    runner = CliRunner()

    def called(*arguments: str, code: int = 0) -> Result:
        result = runner.invoke(app, [*arguments])
        if isinstance(result.exception, UsageError):
            assert code == 2, result.exception
            return result
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return called


@pytest.fixture
def bad(dsn: str) -> list[str]:
    """Ids of two letters: a report whose clock is ahead, and one with a wrong check byte."""
    broken = bytearray(report_frame(VIN, T0 + 1))
    broken[-1] ^= 1
    sent = [
        Sent(report_frame(VIN, T0), T0 + 1),
        Sent(report_frame(VIN, T0 + 5000), T0 + 2),
        Sent(bytes(broken), T0 + 3, reason=1, detail=len(broken) - 1, source={"peer": "10.0.0.7:5", "vin": VIN}),
    ]

    async def fill() -> None:
        await put(dsn, sent)
        await stored(dsn, settings_of())

    asyncio.run(fill())
    with psycopg.connect(dsn) as db:
        rows = db.execute('SELECT partition, "offset", position FROM dead_letters ORDER BY position').fetchall()
    return ["-".join(map(str, row)) for row in rows]


def test_list_and_counts(run: Run, bad: list[str]) -> None:
    said = run("dead-letters", "list").output
    assert "clock_future" in said
    assert all(key in said for key in bad)
    only = json.loads(run("dead-letters", "list", "--reason", "bad_bcc", "--json").output)
    assert [one["id"] for one in only] == bad[1:]
    counts = json.loads(run("dead-letters", "list", "--by", "vin", "--json").output)
    assert [(one["vin"], one["letters"]) for one in counts] == [(VIN, 2)]
    assert "firmware" not in run("dead-letters", "list", "--by", "firmware").output
    assert "no dead letter" in run("dead-letters", "list", "--from", "1s").output
    assert "bad_bbc" in str(run("dead-letters", "list", "-r", "bad_bbc", code=2).exception)
    assert "is not a time" in str(run("dead-letters", "list", "--from", "yesterday", code=2).exception)


def test_show_marks_the_byte(run: Run, bad: list[str]) -> None:
    said = run("dead-letters", "show", bad[1]).output
    for word in ("bad_bcc", "at byte", "Check the terminal's BCC", "10.0.0.7:5", "check byte", "◀ should be 0x"):
        assert word in said
    found = json.loads(run("dead-letters", "show", bad[1], "--json").output)
    assert [one["field"] for one in found["annotated"] if one["error"]] == ["check byte"]
    assert "there is no dead letter" in str(run("dead-letters", "show", "0-0-0", code=2).exception)
    assert "looks like 3-1042-17" in str(run("dead-letters", "show", "x", code=2).exception)


def test_bad_then_the_setting_is_changed_then_requeued_then_a_row(
    run: Run, bad: list[str], dsn: str, db: psycopg.Connection[Any]
) -> None:
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (1,)
    assert "1 requeued, 0 skipped" in run("dead-letters", "requeue", bad[0], "--by", "anna").output
    assert "the pipeline has not read it yet" in run("dead-letters", "show", bad[0]).output
    asyncio.run(stored(dsn, settings_of()))
    assert "refused again, as" in run("dead-letters", "show", bad[0]).output, "under the old setting it is bad still"

    (again,) = json.loads(run("dead-letters", "list", "--state", "open", "-r", "clock_future", "--json").output)
    assert again["door"] == "requeue"
    assert run("dead-letters", "requeue", "-r", "clock_future").output.startswith("1 requeued, 0 skipped")
    asyncio.run(stored(dsn, settings_of(clock_future_max_s=10_000)))
    assert "accepted by the pipeline" in run("dead-letters", "show", again["id"]).output
    row = db.execute(
        "SELECT extract(epoch FROM received_at)::bigint, door FROM telemetry ORDER BY time DESC"
    ).fetchone()
    assert row == (T0 + 2, 4), "it arrived when it arrived"

    assert "it was requeued at" in run("dead-letters", "requeue", bad[0], code=1).output
    run("dead-letters", "requeue", bad[0], "--again")
    asyncio.run(stored(dsn, settings_of(clock_future_max_s=10_000)))
    booked = db.execute("SELECT sum(frames), sum(rows), sum(duplicates), sum(rejected) FROM ledger").fetchone()
    assert booked == (6, 2, 1, 3)
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (2,)


def test_a_frame_repaired_by_hand(run: Run, bad: list[str], dsn: str, db: psycopg.Connection[Any]) -> None:
    run("dead-letters", "requeue", bad[1], "--frame", report_frame(VIN, T0 + 1).hex(" "))
    asyncio.run(stored(dsn, settings_of()))
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (2,)
    assert "with other bytes: accepted" in run("dead-letters", "show", bad[1]).output
    for arguments in (
        ["--frame", "2323"],
        [bad[0], bad[1], "--frame", "23"],
        [bad[0], "--frame", "xy"],
        [],
        ["--again"],
    ):
        run("dead-letters", "requeue", *arguments, code=2)


def test_export(run: Run, bad: list[str], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run("dead-letters", "export").output.splitlines()]
    assert [line["id"] for line in lines] == bad
    run("dead-letters", "export", "letters.csv", "--format", "csv")
    table = list(csv.DictReader((tmp_path / "letters.csv").read_text().splitlines()))
    assert [line["frame_hex"] for line in table] == [line["frame_hex"] for line in lines]
    run("dead-letters", "export", "letters.bin", "--format", "raw", "--reason", "clock_future")
    assert (tmp_path / "letters.bin").read_bytes() == report_frame(VIN, T0 + 5000)
    assert VIN in run("decode", "letters.bin").output


def test_prune(run: Run, bad: list[str]) -> None:
    assert json.loads(run("dead-letters", "prune", "--json").output) == {"age": 0, "size": 0, "kept": 2}
    assert "1 beyond 1" in run("dead-letters", "prune", "--rows-max", "1").output
    assert json.loads(run("dead-letters", "list", "--json").output)[0]["id"] == bad[1], "the newest stays"


def test_replay(run: Run, bad: list[str], db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing is different" in run("replay", "--from", "1h").output
    db.execute("UPDATE telemetry SET soc_pct = 1, gear = NULL")
    said = run("replay", "--from", "1h", "--diff", code=1).output
    assert all(word in said for word in ("soc_pct", "gear", "nothing was written"))
    found = json.loads(run("replay", "--from", "1h", "--vin", VIN, "--json", code=1).output)
    assert {one["field"]: (one["changed"], one["new"]) for one in found["fields"]} == {
        "soc_pct": (1, 0),
        "gear": (0, 1),
    }
    assert found["fields"][0]["examples"][0] | {"time": ""} == {"vin": VIN, "time": "", "old": 1, "new": 80}

    monkeypatch.setenv("NEVSTREAM_PIPELINE__CLOCK_FUTURE_MAX_S", "10000")
    said = run("replay", "--from", "1h", "--apply").output
    assert "dead letters (clock_future) can be read: rows" in said
    assert "1 inserted" in said
    assert db.execute("SELECT soc_pct, gear FROM telemetry").fetchall() == [(80, 46)] * 2
    assert "nothing is different" in run("replay", "--from", "1h").output
    assert "a replay has made a row of it" in run("dead-letters", "requeue", bad[0], code=1).output
    for wrong in (["--diff", "--apply"], ["--delete"], ["--to", "2h"], ["--vin", "车"]):
        run("replay", "--from", "1h", *wrong, code=2)
