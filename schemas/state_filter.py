"""Which vehicles a list shows, by what is known of them and by what their newest report says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class StateFilter:
    """Every condition that is given holds; a value that the newest report did not carry fulfils none.

    ``facts``: of model, fleet, region, values any of which will do ("unknown": not in the registry).
    ``activities``: driving, charging, parked, unknown, never_reported.  ``bbox``: west, south, east, north in degrees,
    west > east crosses the date line.  ``received_since``: the newest report arrived then or later.
    """

    facts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    activities: Sequence[str] | None = None
    soc_below_pct: int | None = None
    alarm_level_min: int | None = None
    bbox: tuple[float, float, float, float] | None = None
    received_since: datetime | None = None
