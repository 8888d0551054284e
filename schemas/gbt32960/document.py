"""The field reference in Markdown, made from the edition tables.

``python -m schemas.gbt32960.document`` prints it; ``FIELDS.md`` beside this file is its output, and a test
keeps the two equal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.layout import BIT_KINDS, Each, Field, Kind, Part, Values

_HEAD = "| field | bytes | raw range | value | unit | sentinels | signal |\n|---|---|---|---|---|---|---|\n"


_INTRODUCTION = """\
# Fields of GB/T 32960.3 reports

Made from the edition tables by `python -m schemas.gbt32960.document`; do not edit.

*value* is what the raw number stands for in *unit*. *sentinels*: `given` when the standard defines the all-ones
(invalid) and all-ones-minus-one (abnormal) codes for the field, `read so` when it does not and senders use them
all the same, `none` in bit fields and makers' codes. *signal* is the column that carries the field; of list
items the first one's fields have columns, all of them are kept as bytes.
"""


def document() -> str:
    """Every block and field of both editions."""
    out = [_INTRODUCTION]
    for edition, table in EDITIONS.items():
        out.append(f"## {2000 + edition} edition\n")
        for kind, block in table.blocks.items():
            out.append(f"### 0x{kind:02X} {block.name} ({block.table})\n")
            out.append(_HEAD + "".join(_rows(block.parts, "")))
        out.append("### Alarm bits\n")
        out.append(
            "| bit | name |\n|---|---|\n" + "".join(f"| {i} | {name} |\n" for i, name in enumerate(table.flag_names))
        )
    return "\n".join(out)


def _rows(parts: tuple[Part, ...], prefix: str) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Field):
            yield _row(part, prefix + part.name)
        elif isinstance(part, Values):
            yield _row(part.item, f"{prefix}{part.key}[{part.count}]")
        else:
            assert isinstance(part, Each)
            yield from _rows(part.parts, f"{prefix}{part.key}[{part.count}].")


def _row(field: Field, name: str) -> str:
    sentinels = "none" if field.kind in BIT_KINDS else "given" if field.sentinel else "read so"
    signal = f"`{field.signal}`" if field.signal else ""
    cells = (name, str(field.width), f"{field.lo}..{field.hi}", _value(field), field.unit, sentinels, signal)
    return f"| {' | '.join(cells)} |\n"


def _value(field: Field) -> str:
    if field.kind is Kind.CODE:
        return ", ".join(f"{raw} {word}" for raw, word in field.names.items())
    if field.kind in BIT_KINDS:
        return str(field.kind.value)
    scale = field.mul / field.div
    bias = field.add / field.div
    value = "raw" if scale == 1 else f"raw × {scale:g}"
    return value if bias == 0 else f"{value} − {-bias:g}"


if __name__ == "__main__":
    sys.stdout.write(document())
