"""Conditions on vehicles and their newest report, as SQL on ``vehicles v`` and ``vehicle_state s``."""

from __future__ import annotations

from typing import Any, Final, LiteralString

from psycopg import sql

from schemas.state_filter import StateFilter

# As services.web.vehicles.activity has it: charging is charging while parked.
ACTIVITY: Final[dict[str, LiteralString]] = {
    "driving": "s.charge_state IS DISTINCT FROM 1 AND s.vehicle_state = 1",
    "charging": "s.charge_state = 1",
    "parked": "s.charge_state IS DISTINCT FROM 1 AND s.vehicle_state IN (2, 3)",
    "unknown": "s.time IS NOT NULL AND s.charge_state IS DISTINCT FROM 1"
    " AND (s.vehicle_state IS NULL OR s.vehicle_state NOT IN (1, 2, 3))",
    "never_reported": "s.time IS NULL",
}
_BOX: Final[LiteralString] = "s.latitude_deg BETWEEN %(south)s AND %(north)s AND s.longitude_deg BETWEEN"
_FACTS: Final[dict[str, LiteralString]] = {
    "model": "coalesce(v.model, 'unknown') = ANY(%(in_model)s)",
    "fleet": "coalesce(v.fleet, 'unknown') = ANY(%(in_fleet)s)",
    "region": "coalesce(v.region, 'unknown') = ANY(%(in_region)s)",
}


def conditions(wanted: StateFilter) -> tuple[sql.Composable, dict[str, Any]]:
    """What goes after ``WHERE ...``, each with its AND, and its parameters."""
    parts: list[LiteralString] = []
    given: dict[str, Any] = {}
    for name, values in wanted.facts.items():
        parts.append(_FACTS[name])
        given[f"in_{name}"] = list(values)
    if wanted.activities is not None:
        any_of: LiteralString = " OR ".join(ACTIVITY[name] for name in wanted.activities)
        parts.append("(" + any_of + ")")
    if wanted.soc_below_pct is not None:
        parts.append("s.soc_pct < %(soc_below)s")
        given["soc_below"] = wanted.soc_below_pct
    if wanted.alarm_level_min is not None:
        parts.append("s.alarm_level BETWEEN %(alarm_level_min)s AND 3")
        given["alarm_level_min"] = wanted.alarm_level_min
    if wanted.received_since is not None:
        parts.append("s.received_at >= %(received_since)s")
        given["received_since"] = wanted.received_since
    if wanted.bbox is not None:
        west, south, east, north = wanted.bbox
        given |= {"west": west, "south": south, "east": east, "north": north}
        if west <= east:
            parts.append(_BOX + " %(west)s AND %(east)s")
        else:
            parts.append("(" + _BOX + " %(west)s AND 180 OR " + _BOX + " -180 AND %(east)s)")
    return sql.SQL(" ").join(sql.SQL("AND " + part) for part in parts), given
