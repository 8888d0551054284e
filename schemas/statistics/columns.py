"""The columns that the statistics read of telemetry, in the order of their COPY."""

from __future__ import annotations

from typing import Final

from schemas.statistics.records import FIELDS

# The first is not the vehicle's id but the number of its window, counted from 0.
HEAD: Final = ("window", "time", "received_at", "kind", "part", "edition")
TAIL: Final = ("cells", "temps", "flaws")
COLUMNS: Final = (*HEAD, *FIELDS, *TAIL)
