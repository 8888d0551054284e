"""Topic patterns of the bridge: which of them a topic matches, and which of its levels names the vehicle.

``fleet/{vin}/up`` as tables that the scan kernel walks, and as the filter that the broker is asked for.
Settings have checked the patterns; nothing here reads a packet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from schemas.batch import I64, U8, Codec

# Kinds of a level.
LITERAL: Final = 0
VIN: Final = 1
ONE: Final = 2  # +
REST: Final = 3  # #
_KINDS: Final = {"{vin}": VIN, "+": ONE, "#": REST}

# Columns of ``levels`` and ``patterns``.
LEVEL_KIND: Final = 0
LEVEL_AT: Final = 1  # a literal's bytes in ``text``
LEVEL_BYTES: Final = 2
LEVEL_COLUMNS: Final = 3
PATTERN_AT: Final = 0  # its first level in ``levels``
PATTERN_LEVELS: Final = 1
PATTERN_CODEC: Final = 2
PATTERN_COLUMNS: Final = 3

CODECS: Final = {"gbt32960": Codec.GBT32960, "telemetry": Codec.JSON_TELEMETRY, "bms": Codec.JSON_BMS}


class Patterns:
    """``topics``: pattern → codec name.  ``patterns`` (n, 3), ``levels`` (n, 3) and ``text`` are for the kernel."""

    def __init__(self, topics: Mapping[str, str]) -> None:
        patterns: list[tuple[int, int, int]] = []
        levels: list[tuple[int, int, int]] = []
        text = b""
        for topic, codec in topics.items():
            parts = topic.split("/")
            patterns.append((len(levels), len(parts), CODECS[codec]))
            for part in parts:
                kind = _KINDS.get(part, LITERAL)
                literal = part.encode() if kind == LITERAL else b""
                levels.append((kind, len(text), len(literal)))
                text += literal
        self.patterns: I64 = np.array(patterns, np.int64).reshape(-1, PATTERN_COLUMNS)
        self.levels: I64 = np.array(levels, np.int64).reshape(-1, LEVEL_COLUMNS)
        self.text: U8 = np.frombuffer(text + b"\0", np.uint8).copy()  # never empty
        self.filters = tuple(topic.replace("{vin}", "+") for topic in topics)


def match_twin(topic: bytes, patterns: I64, levels: I64, text: U8) -> tuple[int, int, int]:
    """(index of the first pattern that ``topic`` matches or -1, offset of its VIN level, that level's bytes)."""
    parts = topic.split(b"/")
    for index, (first, count, _) in enumerate(patterns.tolist()):
        wanted = levels[first : first + count].tolist()
        rest = wanted[-1][LEVEL_KIND] == REST
        fixed = wanted[:-1] if rest else wanted
        if len(parts) < len(fixed) or (len(parts) > len(fixed) and not rest):
            continue
        if all(
            kind != LITERAL or part == bytes(text[at : at + size])
            for (kind, at, size), part in zip(fixed, parts, strict=False)
        ):
            level = [kind for kind, _, _ in wanted].index(VIN)
            return index, sum(len(part) + 1 for part in parts[:level]), len(parts[level])
    return -1, 0, 0
