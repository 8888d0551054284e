"""What the names and codes of a report mean, taken from the signal catalogue's own texts."""

from __future__ import annotations

import re
from typing import Any, Final

from schemas.signals import INDEX, SIGNALS, Signal, aggregates
from services.web.parameters import EXTRA_FIELDS, Field

_CODE: Final = re.compile(r"(\d+) ([^,;(]+)")


def _codes(signal: Signal) -> dict[int, str]:
    """{1: "started", ...} of a text such as "1 started, 2 off, 3 other"; empty for other texts."""
    text = signal.text.rpartition(": ")[2]
    return {int(code): word.strip() for code, word in _CODE.findall(text)} if re.match(r"\d+ [a-zA-Z]", text) else {}


CODES: Final[dict[str, dict[int, str]]] = {s.name: _codes(s) for s in SIGNALS if not s.unit and _codes(s)}


def meaning(name: str, value: Any) -> str | None:
    """What a code means, None when the signal is no code or the code is not known."""
    return CODES.get(name, {}).get(value)


# General alarm flags (clause 7.13 of our reference), bit 0 first; the two editions differ in two names.
_FLAGS_16: Final = (
    "temperature_difference", "battery_high_temperature", "storage_over_voltage", "storage_under_voltage", "soc_low",
    "cell_over_voltage", "cell_under_voltage", "soc_too_high", "soc_jump", "rechargeable_system_mismatch",
    "poor_cell_consistency", "insulation", "dcdc_temperature", "brake_system", "dcdc_status",
    "motor_controller_temperature", "high_voltage_interlock", "motor_temperature", "storage_overcharge",
)  # fmt: skip
_FLAGS_25: Final = (
    *_FLAGS_16, "motor_overspeed", "motor_overcurrent", "supercap_over_temperature", "supercap_over_voltage",
    "thermal_event", "hydrogen_leak", "hydrogen_pressure", "hydrogen_temperature", "stack_over_temperature",
)  # fmt: skip


def alarm_names(flags: int, edition: int) -> list[str]:
    """Names of the alarm flags that are set; a reserved bit reads ``bit_<n>``."""
    names = _FLAGS_25 if edition == 25 else _FLAGS_16
    return [names[bit] if bit < len(names) else f"bit_{bit}" for bit in range(32) if flags >> bit & 1]


def _signal(signal: Signal) -> dict[str, Any]:
    return {
        "name": signal.name,
        "unit": signal.unit,
        "type": signal.sql,
        "resolution": 1 / signal.div if signal.unit else None,
        "text": signal.text,
        "codes": {str(code): word for code, word in CODES.get(signal.name, {}).items()},
        "aggregates": list(aggregates(signal)),
    }


_EXTRA_TYPES: Final = {
    "time": "timestamp with time zone", "edition": "smallint", "door": "text", "notes": "list of text",
    "flaws": "map of text", "cells": "list of list of real", "temps": "list of list of smallint",
}  # fmt: skip


def _extra(field: Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "unit": field.unit,
        "type": _EXTRA_TYPES[field.kind],
        "resolution": {"cells": 0.001, "temps": 1.0}.get(field.kind),
        "text": field.text,
        "codes": {},
        "aggregates": [],
    }


CATALOGUE: Final = [_signal(signal) for signal in SIGNALS] + [_extra(field) for field in EXTRA_FIELDS]
assert len(CATALOGUE) == len(INDEX) + len(EXTRA_FIELDS)
