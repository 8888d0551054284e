"""JSON Schema (draft 2020-12) of what the topics ``telemetry`` and ``bms`` take, made from the field table.

The committed documents in ``schemas/mqtt`` are what :func:`text` gives; ``nevstream schema NAME`` and
``/v1/schemas/NAME`` print the same.  A schema describes good samples: what is outside of it is not refused whole,
see ``schemas/mqtt/README.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from schemas.samples import fields as f
from schemas.samples.fields import BATTERY, FIELDS, SampleField
from schemas.samples.split import SAMPLES_MAX

NAMES: Final = ("telemetry", "bms")
FOLDER: Final = Path(__file__).parents[1] / "mqtt"

_ABOUT: Final = {
    "telemetry": "Vehicle signals of one moment.",
    "bms": "Battery figures of one moment: cells, probes, packs. The signals of `telemetry` are taken here as well.",
}
_TIME: Final[dict[str, Any]] = {
    "description": "When it was taken: ISO 8601 with offset, or milliseconds since 1970 UTC. Kept to the second.",
    "oneOf": [
        {"type": "string", "format": "date-time"},
        {"type": "integer", "minimum": 0, "exclusiveMaximum": 7_258_118_400_000},
    ],
}
_CELL: Final = {"type": ["number", "null"], "minimum": 0, "maximum": f.CELL_RAW_MAX / f.CELL_DIV}
_PROBE: Final = {
    "type": ["number", "null"], "minimum": -f.PROBE_BIAS_C, "maximum": f.PROBE_RAW_MAX - f.PROBE_BIAS_C,
}  # fmt: skip
_NO: Final = {"type": "integer", "minimum": 1, "maximum": f.PACKS_MAX, "description": "number of the pack"}


def _signal(field: SampleField) -> dict[str, Any]:
    low, high = field.bounds
    text = field.signal.text
    if field.codes:
        text = ", ".join(f"{code} {word}" for code, word in field.codes)
    elif field.signal.unit:
        text = f"{text}; {field.signal.unit}, kept to {1 / field.signal.div:g}"
    kind = "integer" if field.whole else "number"
    return {"type": [kind, "null"], "minimum": low, "maximum": high, "description": text}


def _list(key: str, value: dict[str, Any], pack: dict[str, Any], text: str) -> dict[str, Any]:
    values = {"type": "array", "items": value}
    packs = {
        "type": "object",
        "properties": {"no": _NO, key: values, **pack},
        "required": [key],
        "additionalProperties": False,
    }
    return {
        "description": text,
        "anyOf": [
            values,
            {"type": "array", "items": values, "maxItems": f.PACKS_MAX},
            {"type": "array", "items": packs, "maxItems": f.PACKS_MAX},
            {"type": "null"},
        ],
    }


def document(name: str) -> dict[str, Any]:
    """The schema of one topic's payload."""
    of = {field.signal.name: field for field in FIELDS}
    pack = {
        "voltage_v": {**_signal(of["pack_voltage_v"]), "description": "voltage of the pack; V"},
        "current_a": {**_signal(of["pack_current_a"]), "description": "current of the pack; A, discharge positive"},
    }
    properties: dict[str, Any] = {
        f.TIME: _TIME,
        f.KIND: {"enum": [*f.KINDS, None], "description": "reissue: sent again after an outage. Default realtime."},
        f.VIN: {"type": "string", "description": "May be given, and is that of the topic then."},
        f.CELLS: _list(
            f.CELLS, _CELL, pack, "cell voltages in order, V, kept to 0.001; null: not measured. "
            "One list per pack when there are several."
        ),
        f.TEMPS: _list(f.TEMPS, _PROBE, {}, "probe temperatures in order, °C, kept to 1; null: not measured."),
    }  # fmt: skip
    for field in FIELDS:
        if name == "telemetry" or field.signal.name in BATTERY:
            properties[field.signal.name] = _signal(field)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:nevstream:v1:{name}",
        "title": f"nev/v1/{{vin}}/{name}",
        "description": f"{_ABOUT[name]} One sample, or an array of samples in any order of time.",
        "oneOf": [
            {"$ref": "#/$defs/sample"},
            {"type": "array", "items": {"$ref": "#/$defs/sample"}, "minItems": 1, "maxItems": SAMPLES_MAX},
        ],
        "$defs": {
            "sample": {
                "type": "object",
                "description": "Fields of other names are kept as they are; those that mean a field of this list in "
                "another unit (speed_mph) or without one (speed) are not.",
                "required": [f.TIME],
                "properties": properties,
                "additionalProperties": True,
            }
        },
    }


def text(name: str) -> str:
    """The document as it is committed and printed."""
    return json.dumps(document(name), indent=1, ensure_ascii=False) + "\n"


def write() -> None:
    """Write the committed documents anew: ``python -m schemas.samples.document``."""
    for name in NAMES:
        (FOLDER / f"{name}.schema.json").write_text(text(name), "utf-8")


if __name__ == "__main__":
    write()
