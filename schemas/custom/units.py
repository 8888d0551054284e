"""How a unit is written at the end of a signal's name, as the catalogue has it: °C → temp_c, km/h → speed_kmh."""

from __future__ import annotations

import re
from typing import Final

_ENDS: Final = {
    "%": "pct", "vol%": "vol_pct", "°c": "c", "degc": "c", "deg c": "c", "℃": "c", "c": "c", "°f": "f", "°": "deg",
    "km/h": "kmh", "kph": "kmh", "kmph": "kmh", "m/s²": "m_per_s2", "m/s^2": "m_per_s2", "r/min": "rpm",
    "1/min": "rpm", "n·m": "nm", "n.m": "nm", "n*m": "nm", "n-m": "nm", "kω": "kohm", "mω": "mohm", "ω": "ohm",
}  # fmt: skip


def unit_end(unit: str) -> str:
    """What a name ends in, after an underscore; "" for no unit.

    Unknown units are spelled out: letters and digits stay, ``/`` becomes ``per``.
    """
    text = unit.strip()
    if text == "MΩ":  # mega and milli differ in case alone
        return "megohm"
    known = _ENDS.get(text.lower())
    if known is not None:
        return known
    plain = text.lower().replace("/", "_per_").replace("°", "deg").replace("%", "pct").replace("ω", "ohm")
    plain = re.sub(r"(?<=\d) +(?=[a-z])", "", plain)  # kg/100 km: kg_per_100km
    plain = plain.replace("²", "2").replace("³", "3").replace("µ", "u")
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def snake(name: str) -> str:
    """BattCellTemp_Max → batt_cell_temp_max."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", apart.lower()).strip("_")
