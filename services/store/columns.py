"""The columns of the two tables that are written by binary COPY, in the order of their DDL.

The signals come from the catalogue (``schemas.signals``); a test holds the DDL against this list.
"""

from __future__ import annotations

from typing import Final

from schemas.batch import VAR_COLUMNS
from schemas.signals import INDEX, SIGNALS

_TIME: Final = "timestamp with time zone"

KEY: Final = ("vehicle_id", "time", "kind", "part")  # unique in telemetry; the order of a vehicle's reports

TELEMETRY: Final[dict[str, str]] = {
    "vehicle_id": "bigint",
    "time": _TIME,
    "received_at": _TIME,
    "kind": "smallint",
    "part": "smallint",
    "edition": "smallint",
    "door": "smallint",
    "digest": "bigint",
    "notes": "smallint",
    **{signal.name: signal.sql for signal in SIGNALS},
    **dict.fromkeys(VAR_COLUMNS, "bytea"),
    "flaws": "bytea",
    "extra": "jsonb",
}

_STATE_SIGNALS: Final = (
    "speed_kmh", "odometer_km", "soc_pct", "total_voltage_v", "total_current_a", "vehicle_state", "charge_state",
    "alarm_level", "alarm_flags", "longitude_deg", "latitude_deg", "location_valid",
)  # fmt: skip

VEHICLE_STATE: Final[dict[str, str]] = {
    "vehicle_id": "bigint",
    "time": _TIME,
    "kind": "smallint",
    "part": "smallint",
    "received_at": _TIME,
    "edition": "smallint",
    "door": "smallint",
    **{name: SIGNALS[INDEX[name]].sql for name in _STATE_SIGNALS},
    "reports": "bigint",
}

COPIED: Final[dict[str, dict[str, str]]] = {"telemetry": TELEMETRY, "vehicle_state": VEHICLE_STATE}

# What a transaction adds to a partition's ledger.  The caller counts the reports it hands over as
# ``rows``; the sink moves those that turn out to be duplicates or conflicts to their own columns, so
# that frames = rows + duplicates + conflicts + rejected + sessions + other, always.
LEDGER: Final = ("frames", "rows", "duplicates", "conflicts", "rejected", "sessions", "other")
