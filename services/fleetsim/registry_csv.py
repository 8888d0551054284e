"""What an operator would know of the simulated fleet, as the registry's sheets: vehicles and the model catalogue.

The same seed gives the same sheets.  Type-approval values are invented but fit the physics: certified consumption
lies 10-15 % below what the simulated vehicles use.  It sends nothing and knows no database.
"""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import Any, Final, NamedTuple

from schemas.registry.columns import MODELS, VEHICLES
from schemas.registry.sheet import write_sheet
from services.fleetsim.vehicle import CATALOGUE, CITIES, Chemistry, Fleet, Usage, VehicleModel


class Approval(NamedTuple):
    """Type approval of a model: what its physics does not say."""

    manufacturer: str
    supplier: str
    certified_kwh_per_100km: float
    energy_density_wh_per_kg: float
    laden_kg: float  # of the simulated mass, what is not kerb mass


_APPROVALS: Final[dict[str, Approval]] = {
    "sedan-ncm-96": Approval("Northern Motors", "East Cell", 14.2, 161, 150),
    "hatch-lfp-104": Approval("Southern Motors", "West Cell", 12.2, 128, 150),
    "taxi-ncm-90": Approval("Northern Motors", "East Cell", 12.6, 155, 150),
    "taxi-lfp-108": Approval("Southern Motors", "West Cell", 12.7, 130, 150),
    "bus-lfp-168": Approval("River Bus", "West Cell", 64.0, 140, 2500),
    "bus-lfp-180": Approval("River Bus", "Lake Cell", 61.0, 142, 2500),
    "van-lfp-100": Approval("Harbour Vans", "West Cell", 16.3, 126, 500),
    "van-ncm-96": Approval("Harbour Vans", "Lake Cell", 16.8, 150, 500),
}
_NOMINAL_V: Final = {Chemistry.LFP: 3.2, Chemistry.NCM: 3.65}
_CATEGORIES: Final = {Usage.BUS: "bus", Usage.LOGISTICS: "special"}
_PLATES: Final = {
    "Beijing": "京A", "Shanghai": "沪A", "Guangzhou": "粤A", "Shenzhen": "粤B", "Chengdu": "川A", "Hangzhou": "浙A",
    "Hefei": "皖A", "Xi'an": "陕A",
}  # fmt: skip


def battery_kwh(model: VehicleModel) -> float:
    """Nominal energy of a model's battery."""
    return round(model.cells * _NOMINAL_V[model.chemistry] * model.capacity_ah / 1000, 1)


def models_csv() -> str:
    """The simulator's model catalogue as a sheet for ``nevstream models import``."""
    rows = []
    for model in CATALOGUE:
        approval, energy = _APPROVALS[model.name], battery_kwh(model)
        values: dict[str, Any] = {
            "model": model.name,
            "manufacturer": approval.manufacturer,
            "category": _CATEGORIES.get(model.usage, "passenger"),
            "powertrain": "BEV",
            "battery_kwh": energy,
            "battery_ah": model.capacity_ah,
            "chemistry": model.chemistry.name,
            "battery_supplier": approval.supplier,
            "cells": model.cells,
            "probes": model.probes,
            "certified_kwh_per_100km": approval.certified_kwh_per_100km,
            "electric_range_km": round(100 * energy / approval.certified_kwh_per_100km),
            "kerb_mass_kg": model.mass_kg - approval.laden_kg,
            "energy_density_wh_per_kg": approval.energy_density_wh_per_kg,
            "temp_limit_c": 60.0,
            "current_inverted": False,
        }
        rows.append([values.get(column.name) for column in MODELS.all])
    return write_sheet(MODELS, rows, UTC)


def registry_csv(fleet: Fleet) -> str:
    """The vehicles of ``fleet`` as a sheet for ``nevstream vehicles import``; their batteries are the models'."""
    rows = []
    for index, vin in enumerate(fleet.vins):
        model, city = CATALOGUE[fleet.model[index]], CITIES[fleet.city[index]][0]
        usage = model.usage.name.lower()
        values = {
            "vin": vin,
            "model": model.name,
            "fleet": f"{city} {usage}",
            "region": city,
            "usage": usage,
            "plate": f"{_PLATES[city]}D{index % 100_000:05}",
            "upload": "periodic",
        }
        rows.append([values.get(column.name) for column in VEHICLES.all])
    return write_sheet(VEHICLES, rows, UTC, unknown="")  # what it does not know is left as it is, not cleared


def write_registry(fleet: Fleet, vehicles: Path) -> Path:
    """Write the fleet to ``vehicles`` and its models beside it (``…-models.csv``); returns that path."""
    models = vehicles.with_name(f"{vehicles.stem}-models.csv")
    models.write_text(models_csv(), "utf-8")
    vehicles.write_text(registry_csv(fleet), "utf-8")
    return models
