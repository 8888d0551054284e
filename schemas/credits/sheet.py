"""A sheet of models and counts, as the credits of an enterprise are estimated from; and lines of it by name."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from schemas.credits.estimate import COUNT_MAX, ModelLine
from schemas.registry.columns import MODELS, Column, Sheet

# Names in the catalogue of models, and in the arithmetic.
_FIELDS: Final = {
    "electric_range_km": "electric_range_km", "kerb_mass_kg": "kerb_mass_kg",
    "energy_density_wh_per_kg": "energy_density", "certified_kwh_per_100km": "consumption",
    "fuel_l_per_100km": "fuel", "fuel_cell_kw": "fuel_cell_kw", "target_l_per_100km": "target",
}  # fmt: skip
_MANUFACTURER: Final = MODELS.column("manufacturer")
_POWERTRAIN: Final = MODELS.column("powertrain")
_CONVENTIONAL: Final = (
    "ICE",
    "传统",
    "传统燃油",
    "燃油",
    "汽油",
    "柴油",
    "传统能源",
    "hev",
    "普通混动",
    "petrol",
    "diesel",
)

CREDITS: Final = Sheet(
    "credits",
    "model",
    MODELS.key,
    (
        Column("enterprise", "text", "who made or imported it", (*_MANUFACTURER.names, "manufacturer")),
        Column("count", "integer", "how many were made or imported in the year",
               ("数量", "产量", "生产量", "进口量", "销量", "产销量"), least=0, most=COUNT_MAX, clears=False),
        Column("powertrain", "choice", "BEV, PHEV, FCV, or ICE: conventional, hybrids without a plug too",
               _POWERTRAIN.names,
               choices={**_POWERTRAIN.choices, **{word.lower(): "ICE" for word in _CONVENTIONAL}}),
        *(MODELS.column(name) for name in _FIELDS if name != "target_l_per_100km"),
        Column("target_l_per_100km", "number", "the model's target of fuel consumption (GB 27999)",
               ("燃料消耗量目标值", "目标值", "油耗目标值", "target"), "L/100 km", above=0, most=100),
        Column("low_consumption", "flag", "a conventional car of low consumption", ("低油耗", "低油耗车型")),
        Column("conditions_met", "flag", "a PHEV that meets its conditions", ("满足条件", "是否满足条件")),
    ),
)  # fmt: skip


def line_of(values: Mapping[str, Any]) -> ModelLine:
    """A line of the arithmetic from values by the names of ``CREDITS``; numbers are taken as they are written."""
    numbers = {
        ours: None if (value := values.get(name)) is None else Decimal(str(value)) for name, ours in _FIELDS.items()
    }
    return ModelLine(
        model=values["model"],
        count=values["count"],
        powertrain=values["powertrain"],
        low_consumption=values.get("low_consumption"),
        conditions_met=values.get("conditions_met"),
        **numbers,
    )
