"""/v1/credits and ``nevstream credits``: what-if by counts, the registered fleet, the rules."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from typer.testing import CliRunner, Result

from schemas.credits.rules import built_in_text
from schemas.registry.columns import MODELS, VEHICLES
from schemas.registry.sheet import read_sheet
from services.cli import app as cli
from services.errors import SettingsError, UsageError
from services.settings import Settings
from services.store.queries import Queries
from services.store.registry import PostgresRegistry
from services.web.app import create_app
from services.web.credits import CreditsAnswer, RulesAnswer
from tests.registry.test_web import client_of
from tests.web import rows
from tests.web.test_problems import problem

pytestmark = pytest.mark.database
ZONE = ZoneInfo("Asia/Shanghai")

CATALOGUE = """车型,生产企业,类别,动力类型,续驶里程,整备质量,能量密度,百公里电耗,百公里油耗
秦,甲,passenger,BEV,500,1700,160,13,
宋,甲,passenger,PHEV,60,1800,,,1.5
K8,甲,bus,BEV,400,,,,
MEB,乙,,BEV,300,,,,
X,乙,passenger,,,,,,
"""


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    registry = PostgresRegistry(dsn)
    await registry.load(read_sheet(CATALOGUE.encode(), MODELS, ZONE))
    lines = [f"A{n},秦,2026-03-01" for n in range(5)] + [f"B{n},宋,2026-12-31" for n in range(3)]
    lines += ["C1,K8,2026-01-01", "D1,MEB,2026-01-01", "E1,X,2026-01-01", "F1,nameless,2026-01-01", "G1,,2026-01-01"]
    lines += ["H1,秦,2025-12-31", "I1,秦,2027-01-01"]
    await registry.load(read_sheet("\n".join(["vin,model,registered_at", *lines]).encode(), VEHICLES, ZONE))
    await registry.retire(["A0"])  # it was made, whatever became of it
    await registry.close()
    async with client_of(dsn) as made:
        yield made


async def test_the_registered_fleet_of_a_year(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/credits/fleet", params={"year": 2026})
    assert answer.status_code == 200, answer.text
    found = CreditsAnswer.model_validate(answer.json())
    assert found.label == "estimate"
    by_name = {one.enterprise: one for one in found.enterprises}
    assert [(m.model, m.count, m.credit) for m in by_name["甲"].models] == [("宋", 3, 0.5), ("秦", 5, 1.0)]
    assert by_name["甲"].nev.actual == 6.5
    assert by_name["甲"].cafc is None
    assert [(m.model, m.credit) for m in by_name["乙"].models] == [("MEB", 0.66)]
    assert {(row.model, row.vehicles, row.why.partition(" (")[0]) for row in found.left_out} == {
        ("K8", 1, "no passenger car"), ("X", 1, "the catalogue does not say its powertrain"),
        ("nameless", 1, "the model is not in the catalogue"), (None, 1, "the vehicles have no model"),
    }  # fmt: skip
    assert any("without a category" in note for note in found.notes)
    assert found.totals.nev_positive == 7.16
    assert any(doubt.tag == "C" and doubt.models for doubt in by_name["甲"].unconfirmed)


async def test_conventional_cars_of_the_fleet(client: httpx.AsyncClient) -> None:
    given = {"year": 2026, "conventional_normal": 40_000, "conventional_low": 1000}
    assert "several" in problem(await client.get("/v1/credits/fleet", params=given), 422).detail
    problem(await client.get("/v1/credits/fleet", params=given | {"enterprise": "丙"}), 422)
    found = (await client.get("/v1/credits/fleet", params=given | {"enterprise": "甲"})).json()
    one = next(one for one in found["enterprises"] if one["enterprise"] == "甲")
    assert (one["nev"]["target"], one["nev"]["duty"]) == (0.48 * 40_100, True)
    assert found["totals"]["nev_negative"] == 6.5 - 19_248


async def test_what_if(client: httpx.AsyncClient) -> None:
    asked = {
        "year": 2024,
        "models": [
            {"model": "秦", "count": 10_000}, {"model": "秦", "count": 1, "electric_range_km": 300},
            {"model": "new", "count": 100, "powertrain": "燃料电池", "fuel_cell_kw": 60, "enterprise": "甲"},
        ],
        "conventional": [{"enterprise": "甲", "normal": 30_000}],
    }  # fmt: skip
    answer = await client.post("/v1/credits/estimate", json=asked)
    assert answer.status_code == 200, answer.text
    (one,) = CreditsAnswer.model_validate(answer.json()).enterprises
    assert [(m.powertrain, m.credit, m.tag) for m in one.models] == [
        ("BEV", 1.9, "D"),
        ("BEV", 1.22, "D"),
        ("FCV", 3, "C"),
    ]
    assert one.nev.actual == 19_000 + 1.22 + 300
    assert one.nev.target == 8400
    assert one.cafc is not None
    assert one.cafc.missing
    alone = await client.post("/v1/credits/estimate", json={**asked, "catalogue": False})
    assert "powertrain" in problem(alone, 422).detail


async def test_disputed_and_impossible_credits_are_no_figure(client: httpx.AsyncClient) -> None:
    models = [{"model": "a", "count": 10, "powertrain": "BEV", "electric_range_km": 100}]
    found = (await client.post("/v1/credits/estimate", json={"year": 2022, "models": models})).json()
    (model,) = found["enterprises"][0]["models"]
    assert (model["credit"], model["credit_low"], model["credit_high"], model["tag"]) == (None, 0.67, 1.0, "D")
    assert found["enterprises"][0]["nev"]["actual_low"] == 6.7
    assert found["totals"]["complete"] is False
    models[0]["electric_range_km"] = 250
    found = (await client.post("/v1/credits/estimate", json={"year": 2026, "models": models})).json()
    assert found["enterprises"][0]["models"][0]["credit"] == 0.52  # 0.575 × 0.9 = 0.5175
    models[0] = {"model": "a", "count": 10, "powertrain": "FCV", "fuel_cell_kw": 60}
    found = (await client.post("/v1/credits/estimate", json={"year": 2026, "models": models})).json()
    assert found["enterprises"][0]["models"][0]["credit"] is None
    assert found["enterprises"][0]["nev"]["balance"] is None


@pytest.mark.parametrize("year", [2017, 2028, -1, 2**40])
async def test_a_year_without_a_rule(client: httpx.AsyncClient, year: int) -> None:
    for answer in (
        await client.get("/v1/credits/fleet", params={"year": year}),
        await client.get("/v1/credits/rules", params={"year": year}),
        await client.post("/v1/credits/estimate", json={"year": year}),
    ):
        found = problem(answer, 422)
        assert found.type == "urn:nevstream:problem:no-rule-for-year"
        assert f"no rule for {year}" in found.detail


@pytest.mark.parametrize(
    "body",
    [
        {"models": []}, {"year": 2024, "models": [{"model": "a"}]}, {"year": 2024, "models": [{"count": 1}]},
        {"year": 2024, "models": [{"model": "a", "count": -1}]},
        {"year": 2024, "models": [{"model": "a", "count": 1.5}]},
        {"year": 2024, "models": [{"model": "a", "count": 1, "powertrain": "steam"}]},
        {"year": 2024, "models": [{"model": "a", "count": 1, "kerb_mass_kg": -5}]},
        {"year": 2024, "models": [{"model": "a", "count": 1, "seats": 5}]},
        {"year": 2024, "conventional": [{"normal": -1}]},
    ],
)  # fmt: skip
async def test_what_cannot_be_estimated(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    problem(await client.post("/v1/credits/estimate", json=body), 422)


async def test_the_rules_of_a_year(client: httpx.AsyncClient) -> None:
    found = RulesAnswer.model_validate((await client.get("/v1/credits/rules", params={"year": 2026})).json())
    assert next(cell for cell in found.cells if cell.name == "nev 2026.ratio").value == 0.48
    assert found.not_found == ["fcv", "cafc", "consumption targets"]
    assert {cell.tag for cell in found.cells} <= set(found.tags)
    without = RulesAnswer.model_validate((await client.get("/v1/credits/rules")).json())
    assert (without.years, without.cells) == (list(range(2018, 2028)), [])


async def test_a_table_of_the_operator(dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(built_in_text().replace('name = "built in"', 'name = "ours"'), "utf-8")
    queries = Queries(dsn)
    app = create_app(Settings.read(overrides={"credits": {"rules_file": str(file)}}), queries, now=lambda: rows.NOW)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        assert (await client.get("/v1/credits/rules")).json()["rules"] == "ours"
        asked = {"year": 2024, "models": [{"model": "a", "count": 1, "powertrain": "PHEV"}]}
        answer = await client.post("/v1/credits/estimate", json=asked)  # without a registry, too
        assert answer.json()["enterprises"][0]["nev"]["actual"] == 1
    file.write_text("name = 5")
    with pytest.raises(SettingsError, match="credit rules have mistakes"):
        create_app(Settings.read(overrides={"credits": {"rules_file": str(file)}}), queries)
    await queries.close()


# -- the command line -----------------------------------------------------------------------------------------
SHEET = """车型,数量,动力类型,续驶里程,能量密度,企业,目标值
秦,30000,纯电动,500,160,甲,5
宋,5000,插混,60,,甲,5
"""


def run(*words: str, fails: str | None = None) -> Result:
    result = CliRunner().invoke(cli, words)
    if fails is None:
        assert result.exit_code == 0, (result.output, result.exception)
    else:
        assert isinstance(result.exception, UsageError), result.output
        assert fails in str(result.exception)
    return result


def test_estimate_of_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text(SHEET, "gb18030")
    told = run("credits", "estimate", "m.csv", "--year", "2024", "--conventional", "40000").output
    assert "57,000.00" in told  # 30,000 × 1.90
    assert "balance 50,800.00" in told  # 62,000 - 11,200
    assert "not confirmed" in told
    assert "[C]" in told
    found = json.loads(run("credits", "estimate", "m.csv", "-y", "2026", "--json").output)
    assert found["enterprises"][0]["nev"]["actual"] == 32_500
    run("credits", "estimate", "m.csv", "-y", "2028", fails="no rule for 2028")
    (tmp_path / "m.csv").write_text("model,count,powertrain\na,many,BEV\n")
    run("credits", "estimate", "m.csv", "-y", "2024", fails="line 2, count: 'many'")
    (tmp_path / "m.csv").write_text("model,count\na,5\n")
    run("credits", "estimate", "m.csv", "-y", "2024", fails="--catalogue")
    (tmp_path / "m.csv").write_text("model,powertrain\na,BEV\n")
    run("credits", "estimate", "m.csv", "-y", "2024", fails="line 2, count: is missing")


def test_the_fleet_and_the_catalogue(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)
    (tmp_path / "models.csv").write_text(CATALOGUE, "utf-8")
    run("models", "import", "models.csv")
    (tmp_path / "v.csv").write_text("vin,model,registered_at\nV1,秦,2026-05-05\nV2,MEB,2026-05-05\n")
    run("vehicles", "import", "v.csv")
    told = run("credits", "fleet", "--year", "2026").output
    assert "Together" in told
    assert "1.66" in told
    run("credits", "fleet", "--year", "2026", "--conventional", "5", fails="several")
    run("credits", "fleet", "--year", "2010", fails="no rule for 2010")
    (tmp_path / "m.csv").write_text("model,count\n秦,7\n")
    found = json.loads(run("credits", "estimate", "m.csv", "-y", "2026", "--catalogue", "--json").output)
    assert (found["enterprises"][0]["enterprise"], found["enterprises"][0]["nev"]["actual"]) == ("甲", 7)


def test_rules_are_shown_printed_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = run("credits", "rules", "--year", "2022").output
    assert "0.0056" in told
    assert "[D]" in told
    assert "2018, 2019" in run("credits", "rules").output
    (tmp_path / "mine.toml").write_text(run("credits", "rules", "--toml").output, "utf-8")
    assert "is right" in run("credits", "rules", "--check", "mine.toml").output
    (tmp_path / "mine.toml").write_text("name = 5")
    run("credits", "rules", "--check", "mine.toml", fails="name is missing")
    run("credits", "rules", "--year", "1999", fails="no rule for 1999")
    assert json.loads(run("credits", "rules", "-y", "2024", "--json").output)["year"] == 2024
