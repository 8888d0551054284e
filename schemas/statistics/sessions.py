"""What folds find: one line per trip, charge, alarm episode..., as a row of numbers on its way to a table.

A fold writes a finding as a row of f64: the columns of :data:`SESSION_HEAD`, then those of its table. NaN is NULL;
``…_s`` columns are seconds since 1970 UTC and become ``…_at`` timestamptz. ``settled_s`` is the record at which the
finding was certain to be over (NaN: still open). The worker adds ``day`` (local date of the start), ``settled_on``
(local date of settled_s), id and revision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SESSION_HEAD: Final = ("job", "table", "settled_s")  # job: position in Jobs; table: position in FINDINGS


@dataclass(frozen=True, slots=True)
class Finding:
    """A table that a fold fills.

    ``id`` names the column of a lasting id (kept when the finding heals, matched by overlap within ``within``
    columns), None for tables whose key is (vehicle, day, ``within``...).
    """

    table: str
    by: str
    id: str | None
    within: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]  # name, SQL type


_D, _I, _S = "double precision", "integer", "smallint"

FINDINGS: Final[tuple[Finding, ...]] = (
    Finding("trips", "drive", "trip_id", (), (
        ("start_s", "timestamptz"), ("end_s", "timestamptz"), ("end_cause", _S), ("records", _I),
        ("distance_km", _D), ("untracked_km", _D), ("covered_s", _D), ("moving_s", _D), ("out_kwh", _D),
        ("regen_kwh", _D), ("consumption_km", _D), ("consumption_kwh", _D), ("start_soc_pct", _D),
        ("end_soc_pct", _D), ("start_odometer_km", _D), ("end_odometer_km", _D), ("speed_max_kmh", _D),
        ("start_longitude_deg", _D), ("start_latitude_deg", _D), ("end_longitude_deg", _D), ("end_latitude_deg", _D),
    )),
    Finding("charges", "drive", "charge_id", (), (
        ("start_s", "timestamptz"), ("end_s", "timestamptz"), ("end_cause", _S), ("records", _I), ("runs", _I),
        ("covered_s", _D), ("energy_kwh", _D), ("charge_ah", _D), ("start_soc_pct", _D), ("end_soc_pct", _D),
        ("mean_power_kw", _D), ("max_power_kw", _D), ("middle_power_kw", _D), ("middle_coverage", _D),
        ("mean_temp_c", _D), ("max_temp_c", _D), ("odometer_km", _D), ("longitude_deg", _D), ("latitude_deg", _D),
        ("capacity_ah", _D),
    )),
    Finding("alarm_episodes", "alarms", "episode_id", ("source", "code"), (
        ("start_s", "timestamptz"), ("end_s", "timestamptz"), ("source", _S), ("code", _S), ("level", _S),
        ("records", _I), ("late", _S), ("value_min", _D), ("value_max", _D), ("longitude_deg", _D),
        ("latitude_deg", _D),
    )),
    Finding("cell_outliers", "battery", None, ("cell",), (
        ("start_s", "timestamptz"), ("cell", _S), ("usable_rows", _I), ("z_rows", _I), ("robust_rows", _I),
        ("deviation_mv", _D),
    )),
    Finding("dc_resistance", "battery", None, ("temp_class_c",), (
        ("start_s", "timestamptz"), ("temp_class_c", _S), ("samples", _I), ("median_mohm", _D), ("soc_mean_pct", _D),
        ("temp_mean_c", _D),
    )),
    Finding("cell_rests", "battery", None, ("start_s",), (
        ("start_s", "timestamptz"), ("end_s", "timestamptz"), ("cell", _S), ("drop_mv_per_day", _D),
        ("median_drop_mv_per_day", _D),
    )),
)  # fmt: skip
TABLE: Final[dict[str, int]] = {finding.table: position for position, finding in enumerate(FINDINGS)}
FINDING_WIDTH: Final = len(SESSION_HEAD) + max(len(finding.columns) for finding in FINDINGS)

# trips.end_cause, charges.end_cause
OPEN, SWITCHED_OFF, STOPPED, STARTED_CHARGING, GAP, STARTED_DRIVING, STOPPED_CHARGING = range(7)
END_CAUSES: Final = ("open", "off", "stop", "charging", "gap", "driving", "ended")
