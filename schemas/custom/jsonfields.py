"""Fields of JSON samples that the catalogue does not have, to named, scaled, ranged signals.

Runs per sample, on the few fields that are left over; never on a sample that has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from schemas.custom.model import FLAWS_KEY, JsonField, SignalsFile
from schemas.signals import State


class JsonFields:
    """The ``[[json]]`` tables of a signals file at work."""

    def __init__(self, file: SignalsFile) -> None:
        self._fields = {field.source: field for field in file.json}

    def __bool__(self) -> bool:
        return bool(self._fields)

    def apply(self, unknown: Mapping[str, Any]) -> dict[str, Any]:
        """What goes into ``extra`` for the ``unknown`` fields of a sample.

        A mapped field becomes its signal, or a flaw: out_of_range, or invalid when it is no number; null is
        absent.  Others stay as they are.  A sample's own ``_flaws`` field is dropped, the name is reserved.
        """
        extra: dict[str, Any] = {}
        flaws: dict[str, str] = {}
        for name, value in unknown.items():
            field = self._fields.get(name)
            if field is None:
                if name != FLAWS_KEY:
                    extra.setdefault(name, value)
                continue
            if value is None:
                continue
            state, number = _judged(field, value)
            if state is State.VALID:
                extra[field.signal] = number
            else:
                extra.pop(field.signal, None)
                flaws[field.signal] = state.name.lower()
        if flaws:
            extra[FLAWS_KEY] = flaws
        return extra


def _judged(field: JsonField, value: Any) -> tuple[State, float | int]:
    if not isinstance(value, (int, float)):
        return State.INVALID, 0
    exact = Decimal(int(value)) if isinstance(value, int) else Decimal(repr(value))
    if not exact.is_finite():
        return State.INVALID, 0
    result = exact * field.scale + field.offset
    if field.low is not None and field.high is not None and not field.low <= result <= field.high:
        return State.OUT_OF_RANGE, 0
    if result == result.to_integral_value() and abs(result) < 2**63:
        return State.VALID, int(result)
    return State.VALID, float(result)
