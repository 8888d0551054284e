"""What the names and codes of a report mean: the signal catalogue, and the words of the edition tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from schemas.gbt32960.commands import Edition
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.layout import Field as WireField
from schemas.signals import INDEX, SIGNALS, Signal, aggregates
from services.web.parameters import EXTRA_FIELDS, Field


def _words() -> Iterator[tuple[str, dict[int, str]]]:
    for table in EDITIONS.values():
        for block in table.blocks.values():
            for part in (field for group in block.groups() for field in group):
                assert isinstance(part, WireField)
                if part.signal is not None and part.names:
                    yield part.signal, dict(part.names)


CODES: Final[dict[str, dict[int, str]]] = {}
for _signal_name, _names in _words():
    CODES.setdefault(_signal_name, {}).update(_names)


def meaning(name: str, value: Any) -> str | None:
    """What a code means, None when the signal is no code or the code is not known."""
    return CODES.get(name, {}).get(value)


def alarm_names(flags: int, edition: int) -> list[str]:
    """Names of the general alarm flags that are set; a reserved bit reads ``reserved_<n>``."""
    names = (EDITIONS.get(edition) or EDITIONS[Edition.E2025]).flag_names
    return [names[bit] if bit < len(names) else f"reserved_{bit}" for bit in range(32) if flags >> bit & 1]


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
