"""The simulated fleet's registry: sheets that import without a mistake, and say what the fleet is."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schemas.registry.columns import MODELS, VEHICLES
from schemas.registry.sheet import read_sheet
from services.cli import app
from services.cli_registry import register_simulated
from services.errors import UsageError
from services.fleetsim.registry_csv import battery_kwh, models_csv, registry_csv
from services.fleetsim.vehicle import CATALOGUE, CITIES, make_fleet


def test_sheets_have_every_vehicle_and_model_and_no_mistake() -> None:
    fleet = make_fleet(50, seed=1)
    vehicles, models = (
        read_sheet(registry_csv(fleet).encode(), VEHICLES, UTC),
        read_sheet(models_csv().encode(), MODELS, UTC),
    )
    assert not vehicles.mistakes
    assert not models.mistakes
    assert [row[2] for row in vehicles.rows] == list(fleet.vins)
    assert [row[2] for row in models.rows] == [line.name for line in CATALOGUE]
    assert registry_csv(fleet) == registry_csv(make_fleet(50, seed=1))
    usages = [row[3:][[c.name for c in VEHICLES.columns].index("usage")] for row in vehicles.rows]
    assert usages == [CATALOGUE[model].usage.name.lower() for model in fleet.model]
    regions = {row[3:][[c.name for c in VEHICLES.columns].index("region")] for row in vehicles.rows}
    assert regions <= {city[0] for city in CITIES}


def test_a_battery_has_the_energy_of_its_cells() -> None:
    sedan = next(line for line in CATALOGUE if line.name == "sedan-ncm-96")
    assert battery_kwh(sedan) == 52.6  # 96 × 3.65 V × 150 Ah


def test_the_sheets_are_written_by_simulate(tmp_path: Path) -> None:
    file = tmp_path / "fleet.csv"
    result = CliRunner().invoke(app, ["simulate", "--vehicles", "5", "--registry", str(file)])
    assert result.exit_code == 0, result.output
    assert len(file.read_text().splitlines()) == 6
    assert (tmp_path / "fleet-models.csv").exists()
    nowhere = ["simulate", "--vehicles", "5", "--registry", str(tmp_path / "no" / "f.csv")]
    assert isinstance(CliRunner().invoke(app, nowhere).exception, UsageError)


@pytest.mark.database
def test_the_demo_registers_its_fleet_once(dsn: str) -> None:
    first = register_simulated(dsn, 20)
    assert (first.inserted, dict(first.unknown_models)) == (20, {})
    again = register_simulated(dsn, 20)
    assert (again.inserted, again.changed) == (0, 0)
