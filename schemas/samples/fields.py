"""What a JSON sample may say: every signal of the catalogue with its range, and the lists.

Ranges are those of the standard's tables, of both editions together: a sample has no edition, and what either
can report, a sample can.  Nothing here reads a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.layout import Field as WireField
from schemas.gbt32960.layout import Kind
from schemas.signals import INDEX, SIGNALS, Signal

F64 = NDArray[np.float64]

# Fields of a sample that are no signal.
TIME: Final = "time"
KIND: Final = "kind"
VIN: Final = "vin"
CELLS: Final = "cells_v"
TEMPS: Final = "temps_c"
KINDS: Final = {"realtime": 2, "reissue": 3}

# Lists: what one value may be. As in the blocks of the 2025 edition, whose layout the columns keep.
CELL_DIV: Final = 1000
CELL_RAW_MAX: Final = 60_000
PROBE_BIAS_C: Final = 40
PROBE_RAW_MAX: Final = 250
PACKS_MAX: Final = 50
PACK_VALUES_MAX: Final = 65_531

# Signals that follow from a list: what the sample itself says of them must agree with it.
FROM_CELLS: Final = ("pack_count", "pack_cell_total", "cell_count", "cell_max_v", "cell_min_v", "cell_sum_v")
FROM_TEMPS: Final = ("probe_count", "probe_max_c", "probe_min_c")

# What a battery management system reports; the other signals are taken from its topic as well.
_BATTERY: Final = (
    "total_voltage_v", "total_current_a", "soc_pct", "charge_state", "insulation_resistance_kohm", "alarm_level",
    "alarm_flags", "pack_fault_count", "max_voltage_subsystem", "max_voltage_cell", "max_cell_voltage_v",
    "min_voltage_subsystem", "min_voltage_cell", "min_cell_voltage_v", "max_temp_subsystem", "max_temp_probe",
    "max_temp_c", "min_temp_subsystem", "min_temp_probe", "min_temp_c", "pack_count", "pack_voltage_v",
    "pack_current_a", "pack_cell_total", "cell_count", "cell_max_v", "cell_min_v", "cell_sum_v", "probe_count",
    "probe_max_c", "probe_min_c",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SampleField:
    """A signal as a sample gives it: low..high in steps, ``value = step / div``; a code takes whole numbers only."""

    signal: Signal
    low: int
    high: int
    whole: bool
    codes: tuple[tuple[int, str], ...]

    @property
    def bounds(self) -> tuple[float, float]:
        """The range in the signal's unit; whole numbers stay integers."""
        div = self.signal.div
        return (self.low, self.high) if div == 1 else (self.low / div, self.high / div)


# The decoder's own signals have no field on the wire; what a list can be bounds them.
_DERIVED: Final = {
    "cell_count": (0, PACKS_MAX * PACK_VALUES_MAX),
    "cell_max_v": (0, CELL_RAW_MAX),
    "cell_min_v": (0, CELL_RAW_MAX),
    "cell_sum_v": (0, 2**31 - 1),
    "probe_count": (0, PACKS_MAX * PACK_VALUES_MAX),
    "probe_max_c": (-PROBE_BIAS_C, PROBE_RAW_MAX - PROBE_BIAS_C),
    "probe_min_c": (-PROBE_BIAS_C, PROBE_RAW_MAX - PROBE_BIAS_C),
}


def _on_the_wire() -> Iterator[tuple[str, WireField]]:
    for table in EDITIONS.values():
        for block in table.blocks.values():
            for group in block.groups():
                for field in group:
                    if field.signal is not None:
                        yield field.signal, field


def _span(field: WireField) -> tuple[int, int]:
    low, high = field.lo * field.mul + field.add, field.hi * field.mul + field.add
    if field.kind is Kind.STATUS:
        return 0, 1  # of the status bits only the validity is a signal
    if field.kind is Kind.DEGREES:
        return -high, high  # the sign is the value's own here
    return low, high


def _fields() -> Iterator[SampleField]:
    wire: dict[str, list[WireField]] = {}
    for name, field in _on_the_wire():
        wire.setdefault(name, []).append(field)
    for signal in SIGNALS:
        found = wire.get(signal.name, [])
        spans = [_span(field) for field in found] or [_DERIVED[signal.name]]
        codes = {code: word for field in found for code, word in field.names.items()}
        low, high = min(low for low, _ in spans), max(high for _, high in spans)
        yield SampleField(signal, low, high, not signal.unit, tuple(sorted(codes.items())))


FIELDS: Final[tuple[SampleField, ...]] = tuple(_fields())
BATTERY: Final = frozenset(_BATTERY)

LOW: Final[F64] = np.array([field.low for field in FIELDS], np.float64)
HIGH: Final[F64] = np.array([field.high for field in FIELDS], np.float64)
DIV: Final[F64] = np.array([field.signal.div for field in FIELDS], np.float64)
WHOLE: Final[NDArray[np.bool_]] = np.array([field.whole for field in FIELDS], np.bool_)

# -- names that say another unit -----------------------------------------------------------------------

_SUFFIX: Final = {
    "km/h": "kmh", "km": "km", "V": "v", "A": "a", "%": "pct", "kΩ": "kohm", "°C": "c", "r/min": "rpm", "N·m": "nm",
    "kg/100 km": "kg_per_100km", "mg/kg": "mg_per_kg", "vol%": "vol_pct", "MPa": "mpa", "L/100 km": "l_per_100km",
    "°": "deg", "kPa": "kpa",
}  # fmt: skip

# What people write in their place. A field of any other name is theirs, and kept.
_OTHER_SUFFIXES: Final = frozenset({
    *_SUFFIX.values(), "mph", "mps", "ms", "kph", "kmph", "kn", "m", "mi", "miles", "mile", "ft", "mv", "kv", "uv",
    "volt", "volts", "ma", "ka", "amp", "amps", "percent", "perc", "permille", "ratio", "frac", "ohm", "ohms", "mohm",
    "f", "k", "degc", "degf", "celsius", "fahrenheit", "kelvin", "rps", "radps", "hz", "knm", "lbft", "ftlb", "bar",
    "mbar", "psi", "pa", "hpa", "atm", "ppm", "rad", "dm", "e6", "e7", "kg_per_km", "l_per_km", "mpg", "km_per_l",
    "g_per_km",
})  # fmt: skip


def _bases() -> dict[str, tuple[str, ...]]:
    bases: dict[str, list[str]] = {"cells": [CELLS], "temps": [TEMPS]}
    for signal in SIGNALS:
        if signal.unit:
            base = signal.name.removesuffix("_" + _SUFFIX[signal.unit])
            assert base != signal.name, f"{signal.name} ends in its unit"
            bases.setdefault(base, []).append(signal.name)
    return {base: tuple(names) for base, names in bases.items()}


_BASES: Final = _bases()


def meant_by(name: str) -> tuple[str, ...]:
    """The fields that an unknown ``name`` seems to mean in another unit or without one; () when it is new."""
    if name in _BASES:
        return _BASES[name]
    at = name.find("_")
    while at > 0:
        if name[at + 1 :] in _OTHER_SUFFIXES and name[:at] in _BASES:
            return _BASES[name[:at]]
        at = name.find("_", at + 1)
    return ()


assert len(FIELDS) == len(SIGNALS)
assert set(INDEX) >= BATTERY
