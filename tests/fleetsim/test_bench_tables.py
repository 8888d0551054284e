"""The tables of the READMEs are those of the result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import runner, tables
from services.cli import app
from services.errors import UsageError

CASE = {"door": "mqtt", "packet_bytes": 370, "packets_per_s": 3729881.9, "others_packets_per_s": {"python": 90833.0}}
RESULT: dict[str, Any] = {
    "quick": False,
    "at": "2026-11-24T10:00:00+00:00",
    "commit": "abc",
    "machine": {"cores": 2, "cpu": "C", "load_1min": 2},
    "cases": [CASE],
}


@pytest.mark.parametrize("file", tables.FILES, ids=lambda file: file.parent.name or "root")
def test_the_files_are_up_to_date(file: Path) -> None:
    text = file.read_text("utf-8")
    assert tables.rendered(text, links=tables.links_of(file)) == text, "run `nevstream bench --tables`"


def test_every_table_is_of_a_benchmark_and_every_result_has_its_name() -> None:
    assert set(tables.TABLES) <= set(runner.available())
    for file in tables.RESULTS.glob("*.json"):
        found = json.loads(file.read_text("utf-8"))
        assert found.get("benchmark", file.stem) == file.stem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scan.json").write_text(json.dumps(RESULT), "utf-8")
    return tmp_path


def test_a_section_is_made_anew_and_the_rest_left(folder: Path) -> None:
    text = "before\n<!-- bench:scan -->\nold\n<!-- /bench -->\nafter\n"
    made = tables.rendered(text, folder)
    assert made.startswith(
        "before\n<!-- bench:scan -->\n| `nevstream bench scan`, one core | packets/s | plain Python |\n"
    )
    assert "| mqtt, 370 bytes | 3,730,000 | 90,800 |\n" in made
    assert "(benchmarks/results/scan.json)" in made
    assert made.endswith("<!-- /bench -->\nafter\n")
    assert tables.rendered(made, folder) == made
    assert "(results/scan.json)" in tables.rendered(text, folder, links="")


@pytest.mark.parametrize(
    "text",
    [
        "<!-- bench:scan -->\n",
        "<!-- /bench -->\n",
        "<!-- bench:nothing -->\n<!-- /bench -->\n",
        "<!-- bench:journey -->\n<!-- /bench -->\n",  # no result in the folder
    ],
)
def test_what_cannot_be_made_is_told(text: str, folder: Path) -> None:
    with pytest.raises(UsageError):
        tables.rendered(text, folder)


def test_a_row_whose_figure_is_missing_is_left_out(folder: Path) -> None:
    result = RESULT | {"frames_per_s": 122_345.6, "ratio": None, "lost": 0, "duplicated": 0, "settings": {}}
    (folder / "journey.json").write_text(json.dumps(result), "utf-8")
    made = tables.rendered("<!-- bench:journey -->\n<!-- /bench -->", folder)
    assert "| 122,000 frames/s |" in made
    assert "obvious" not in made
    assert "| lost, twice | 0, 0 |" in made


def test_the_command_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "write", lambda: [Path("benchmarks/README.md")])
    done = CliRunner().invoke(app, ["bench", "--tables"])
    assert (done.exit_code, done.output) == (0, "benchmarks/README.md\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (122_345.6, "122,000"),
        (999.4, "999"),
        (10.8, "10.8"),
        (0.687, "0.69"),
        (0, "0"),
        (49.0, "49"),
        ("x", "x"),
        (1.5, "1.5"),
    ],
)
def test_three_figures(value: Any, text: str) -> None:
    assert tables.figure(value) == text
