"""``nevstream vehicles`` and ``nevstream models`` as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli import app
from services.errors import UsageError

pytestmark = pytest.mark.database


@pytest.fixture
def run(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)

    def call(*words: str, fails: str | None = None, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(app, words, input=stdin)
        if fails is None:
            assert result.exit_code == 0, (result.output, result.exception)
        else:
            assert isinstance(result.exception, UsageError), result.output
            assert fails in str(result.exception)
        return result

    return call


def test_import_show_set_retire_export(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sheet = tmp_path / "fleet.csv"
    sheet.write_text("车架号,车型,用途,电池能量(kWh)\nV1,秦,出租车,57.6\nV2,秦,私家车,\n", "gb18030")
    told = run("vehicles", "import", str(sheet), "--dry-run").output
    assert "would be inserted 2" in told
    assert "nothing was written" in told
    told = run("vehicles", "import", str(sheet)).output
    assert "inserted 2, changed 0, unchanged 0" in told
    assert "not in the catalogue yet: 秦 (2)" in told
    assert json.loads(run("vehicles", "import", str(sheet), "--json").output)["unchanged"] == 2
    assert "秦: added" in run("models", "set", "秦", "battery_ah=150", "powertrain=纯电动").output
    assert "changed plate" in run("vehicles", "set", "V1", "plate=京A1", "usage=taxi").output
    assert "nothing changed" in run("vehicles", "set", "V1", "plate=京A1").output
    shown = run("vehicles", "show", "V1").output
    assert "京A1" in shown
    assert "(150)" in shown
    assert "unknown" in shown
    assert json.loads(run("vehicles", "show", "V1", "--json").output)["effective"]["battery_ah"] == 150
    listed = run("vehicles", "registry", "--usage", "出租车").output
    assert "V1" in listed
    assert "V2" not in listed
    assert "1 retired, 0 had been already" in run("vehicles", "retire", "V2").output
    run("vehicles", "retire", "V9", fails="not known: V9")
    assert "2 vehicles written" in run("vehicles", "export", "out.csv").output
    assert (tmp_path / "out.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    exported = run("vehicles", "export", "--state", "registered").output
    assert exported.splitlines()[0].startswith("vin,model,fleet")
    assert len(exported.splitlines()) == 2
    assert json.loads(run("vehicles", "import", "-", "--json", stdin=exported.encode()).output)["unchanged"] == 1
    assert "150" in run("models", "list").output
    assert "秦 removed" in run("models", "remove", "秦").output
    run("models", "remove", "秦", fails="no model")


def test_models_by_sheet(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "m.csv").write_text("model;kerb mass (kg);energy density\nm1;1500,5;160\nm2;;\n")
    assert "inserted 2" in run("models", "import", "m.csv").output
    assert "2 models written" in run("models", "export", "n.csv").output
    assert "unchanged 2" in run("models", "import", "n.csv").output
    assert [m["kerb_mass_kg"] for m in json.loads(run("models", "list", "--json").output)] == [1500.5, None]


def test_mistakes_are_told_and_bad_lines_can_be_left_out(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "f.csv").write_text("vin,cells\nV1,96\nV2,many\nV 3,1\n")
    result = run("vehicles", "import", "f.csv", fails="f.csv: 2 mistakes")
    assert "line 3, cells: 'many' is not a number" in str(result.exception)
    assert "line 4, vin: 'V 3'" in str(result.exception)
    assert "nothing was imported" in str(result.exception)
    assert run("vehicles", "registry").output.strip() == "no such vehicle"
    told = run("vehicles", "import", "f.csv", "--skip-bad").output
    assert "inserted 1" in told
    assert "2 lines left out" in told
    fixed = (tmp_path / "f.bad.csv").read_text("utf-8-sig").replace("many", "96").replace("V 3", "V3")
    (tmp_path / "f.bad.csv").write_text(fixed)
    assert "inserted 2" in run("vehicles", "import", "f.bad.csv").output


def test_what_is_typed_wrong(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run("vehicles", "import", "nowhere.csv", fails="No such file")
    run("vehicles", "set", "V1", "fleet=f", fails="`nevstream vehicles add` registers it")
    run("vehicles", "add", "V1")
    run("vehicles", "set", "V1", "fleet", fails="write NAME=VALUE")
    run("vehicles", "set", "V1", "flet=f", fails="is not known of a vehicle")
    run("vehicles", "set", "V1", "cells=x", fails="is not a number")
    run("vehicles", "show", "V2", fails="no vehicle V2")
    run("models", "set", "-", "cells=1", fails="cannot be unknown")
    (tmp_path / "f.csv").write_text("vin\nV2\n")
    run("vehicles", "import", "f.csv", "--retire-missing", "--skip-bad", fails="bad lines")
    run("vehicles", "import", "f.csv", "--retire-missing", fails="--retire-most")
    assert "retired 1" in run("vehicles", "import", "f.csv", "--retire-missing", "--retire-most").output
