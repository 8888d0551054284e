"""One sample, read the plain way: what the batch decoder is held to, and the baseline it is measured against.

``json.loads`` and a loop over the fields, in ``Decimal`` where a double could decide differently.  It must share no
code with ``decode`` and ``lists`` but the table of fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from schemas.samples import fields as f
from schemas.samples.fields import FIELDS
from schemas.signals import SIGNALS

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BY_NAME: Final = {field.signal.name: field for field in FIELDS}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def second_of(moment: Any) -> int | None:
    """Seconds since 1970 of a ``time``, None when it is none."""
    if isinstance(moment, str):
        try:
            parsed = datetime.fromisoformat(moment)
        except ValueError:
            return None
        return None if parsed.tzinfo is None else int((parsed - _EPOCH) // timedelta(seconds=1))
    if _number(moment) and math.isfinite(moment):
        return math.floor(float(moment) / 1000)
    return None


def read_sample(text: bytes | str) -> dict[str, Any] | None:
    """A sample as {"time", "kind", "signals", "flaws", "extra", "lists"}; None when it cannot be read.

    signals: name → (state word, value) · flaws: JSON path → what is wrong · lists: raw values of
    a list of numbers, None for anything else.
    """
    try:
        sample = json.loads(text)
    except ValueError:
        return None
    if not isinstance(sample, dict):
        return None
    second = second_of(sample.pop(f.TIME, None))
    if second is None or not 0 <= second < 7_258_118_400:
        return None
    signals: dict[str, tuple[str, float | None]] = {}
    flaws: dict[str, str] = {}
    extra: dict[str, Any] = {}
    lists: dict[str, Any] = {}
    kind = f.KINDS["realtime"]
    for name, value in sample.items():
        if name == f.KIND:
            if isinstance(value, str) and value in f.KINDS:
                kind = f.KINDS[value]
            elif value is not None:
                flaws["$.kind"] = "unknown_kind" if isinstance(value, str) else "wrong_type"
        elif name in (f.CELLS, f.TEMPS):
            lists[name] = _raw_list(value, name == f.CELLS)
        elif name in _BY_NAME:
            if value is None:
                continue
            word, number = _judged(name, value)
            signals[name] = ("valid", number) if word == "" else (_STATES[word], None)
            if word:
                flaws[f"$.{name}"] = word
        elif name != f.VIN:
            extra[name] = value
    return {"time": second, "kind": kind, "signals": signals, "flaws": flaws, "extra": extra, "lists": lists}


def _raw_list(values: Any, cells: bool) -> list[int] | None:
    """Values of a flat list as the wire has them (2025 tables 12 and 14): 0xFFFD out of range, 0xFFFF none."""
    if not isinstance(values, list) or not values or isinstance(values[0], (list, dict)):
        return None
    div, bias, most, ones = (
        (f.CELL_DIV, 0, f.CELL_RAW_MAX, 0xFFFF) if cells else (1, f.PROBE_BIAS_C, f.PROBE_RAW_MAX, 0xFF)
    )
    found = []
    for value in values:
        if not _number(value) or not math.isfinite(value):
            found.append(ones)
            continue
        raw = round(value * div) + bias if abs(value) < 1e9 else -1
        found.append(raw if 0 <= raw <= most else ones - 2)
    return found


_STATES: Final[Mapping[str, str]] = {
    "wrong_type": "invalid", "not_finite": "invalid", "not_whole": "invalid", "out_of_range": "out_of_range",
}  # fmt: skip


def _judged(name: str, value: Any) -> tuple[str, float | None]:
    """("" or what is wrong, the value as it is kept)."""
    field = _BY_NAME[name]
    if not _number(value):
        return "wrong_type", None
    if not math.isfinite(value):
        return "not_finite", None
    step = round(value * field.signal.div) if abs(value) < 1e15 else value
    if field.whole and step != value:
        return "not_whole", None
    if not field.low <= step <= field.high:
        return "out_of_range", None
    return "", step / field.signal.div


assert len(_BY_NAME) == len(SIGNALS)
