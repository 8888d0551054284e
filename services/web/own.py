"""Signals beyond the catalogue in answers: those of the signals file, and unknown fields of JSON samples.

They live in the column ``extra``; a field of an answer names one of them as column ``extra.<name>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from schemas.custom.model import FLAWS_KEY, Signal, SignalsFile
from services.web.parameters import Field

KIND: Final = "extra"  # of a Field, and of an answer's column
PREFIX: Final = "extra."
AGGREGATES: Final = ("avg", "min", "max", "count")


class OwnSignals:
    """What the API knows of the signals file; without one, nothing."""

    def __init__(self, file: SignalsFile | None) -> None:
        self.signals: Mapping[str, Signal] = file.signals if file is not None else {}
        self.fields: Mapping[str, Field] = {
            name: Field(name, PREFIX + name, KIND, signal.unit, signal.text or signal.source)
            for name, signal in self.signals.items()
        }

    def catalogue(self) -> list[dict[str, Any]]:
        """Entries of /v1/signals."""
        return [
            {
                "name": signal.name,
                "unit": signal.unit,
                "type": "double precision",
                "resolution": None,
                "text": signal.text or signal.source,
                "codes": {str(code): word for code, word in signal.codes.items()},
                "aggregates": list(AGGREGATES),
            }
            for signal in self.signals.values()
        ]

    def latest(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
        """(name → value, unit, text, meaning) and (name → flaw) of a report's parts: the first that has it."""
        values: dict[str, Any] = {}
        flaws: dict[str, str] = {}
        for row in reversed(rows):
            extra = dict(row["extra"] or {})
            wrong = extra.pop(FLAWS_KEY, None)
            flaws |= wrong if isinstance(wrong, dict) else {}
            values |= extra
        return {name: self._described(name, value) for name, value in values.items()}, flaws

    def _described(self, name: str, value: Any) -> dict[str, Any]:
        signal = self.signals.get(name)
        if signal is None:
            return {"value": value, "unit": None, "text": None, "meaning": None}
        meaning = signal.codes.get(int(value)) if isinstance(value, (int, float)) and value == int(value) else None
        return {"value": value, "unit": signal.unit, "text": signal.text or signal.source, "meaning": meaning}
