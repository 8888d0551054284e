"""Every field of a report of the 2016 edition (clause 7.2, tables 7 to 18; annex B, tables B.3 to B.8).

Columns: raw name, width in bytes, valid raw range, then unit, scale and target signal.  Current and
torque biases are in raw counts here: 2000 N·m at 0.1 N·m is 20000, and motor speed's bias is 20000 r/min.
"""

from __future__ import annotations

from typing import Final

from schemas.gbt32960.commands import Edition
from schemas.gbt32960.layout import Block, Each, EditionTable, Field, Kind, Values, block_table

_RUN: Final = {1: "working", 2: "open"}

VEHICLE: Final = Block(0x01, "vehicle", "table 9, B.4", (
    Field("vehicle_state", 1, 1, 3, signal="vehicle_state", kind=Kind.CODE, names={1: "started", 2: "off", 3: "other"}),
    Field("charge_state", 1, 1, 4, signal="charge_state", kind=Kind.CODE,
          names={1: "parked_charging", 2: "driving_charging", 3: "not_charging", 4: "charge_complete"}),
    Field("run_mode", 1, 1, 3, signal="run_mode", kind=Kind.CODE, names={1: "electric", 2: "hybrid", 3: "fuel"}),
    Field("speed", 2, 0, 2200, "kmh", div=10, signal="speed_kmh"),
    Field("mileage", 4, 0, 9_999_999, "km", div=10, signal="odometer_km"),
    Field("total_voltage", 2, 0, 10_000, "v", div=10, signal="total_voltage_v"),
    Field("total_current", 2, 0, 20_000, "a", add=-10_000, div=10, signal="total_current_a"),
    Field("soc", 1, 0, 100, "pct", signal="soc_pct"),
    Field("dcdc_state", 1, 1, 2, signal="dcdc_state", kind=Kind.CODE, names=_RUN),
    Field("gear", 1, 0, 255, signal="gear", sentinel=False, kind=Kind.GEAR),
    Field("insulation_resistance", 2, 0, 60_000, "kohm", signal="insulation_resistance_kohm", sentinel=False),
    # Table 9 of the platform link has one reserved WORD here; table B.4 defines it as the pedals.
    Field("accelerator", 1, 0, 100, "pct", signal="accelerator_pct"),
    Field("brake", 1, 0, 101, "pct", signal="brake_pct"),  # 101: applied, travel unknown
))  # fmt: skip

DRIVE_MOTOR: Final = Block(0x02, "drive_motor", "tables 10, 11", (
    Field("count", 1, 1, 253, signal="motor_count", sentinel=False, kind=Kind.COUNT),
    Each("motors", "count", (
        Field("no", 1, 1, 253, signal="motor_no", sentinel=False),
        Field("state", 1, 1, 4, signal="motor_state", kind=Kind.CODE,
              names={1: "consuming", 2: "generating", 3: "off", 4: "ready"}),
        Field("controller_temp", 1, 0, 250, "c", add=-40, signal="motor_controller_temp_c"),
        Field("speed", 2, 0, 65_531, "rpm", add=-20_000, signal="motor_speed_rpm"),
        Field("torque", 2, 0, 65_531, "nm", add=-20_000, div=10, signal="motor_torque_nm"),
        Field("motor_temp", 1, 0, 250, "c", add=-40, signal="motor_temp_c"),
        Field("input_voltage", 2, 0, 60_000, "v", div=10, signal="motor_input_voltage_v"),
        Field("bus_current", 2, 0, 20_000, "a", add=-10_000, div=10, signal="motor_bus_current_a"),
    )),
))  # fmt: skip

FUEL_CELL: Final = Block(0x03, "fuel_cell", "table 12", (
    Field("voltage", 2, 0, 20_000, "v", div=10, signal="fuel_cell_voltage_v"),
    Field("current", 2, 0, 20_000, "a", div=10, signal="fuel_cell_current_a"),
    Field("consumption", 2, 0, 60_000, "kg_per_100km", div=100, signal="fuel_cell_consumption_kg_per_100km"),
    Field("probe_count", 2, 0, 65_531, signal="fuel_cell_probe_count", kind=Kind.COUNT),
    Values("probe_temps_c", "probe_count", Field("temp", 1, 0, 240, "c", add=-40, sentinel=False)),
    Field("h2_max_temp", 2, 0, 2400, "c", add=-400, div=10, signal="h2_max_temp_c"),
    Field("h2_max_temp_probe", 1, 1, 252, signal="h2_max_temp_probe"),
    # The standard's 0..60000 "for 0..50000 mg/kg" does not add up; the raw value is taken.
    Field("h2_max_conc", 2, 0, 60_000, "mg_per_kg", signal="h2_max_conc_mg_per_kg"),
    Field("h2_max_conc_sensor", 1, 1, 252, signal="h2_max_conc_sensor"),
    Field("h2_max_pressure", 2, 0, 1000, "mpa", div=10, signal="h2_max_pressure_mpa", sentinel=False),
    Field("h2_max_pressure_sensor", 1, 1, 252, signal="h2_max_pressure_sensor"),
    Field("hv_dcdc_state", 1, 1, 2, signal="hv_dcdc_state", kind=Kind.CODE, names=_RUN),
))  # fmt: skip

ENGINE: Final = Block(0x04, "engine", "table 13", (
    Field("state", 1, 1, 2, signal="engine_state", kind=Kind.CODE, names={1: "started", 2: "off"}),
    Field("crankshaft", 2, 0, 60_000, "rpm", signal="crankshaft_rpm"),
    Field("consumption", 2, 0, 60_000, "l_per_100km", div=100, signal="fuel_consumption_l_per_100km"),
))  # fmt: skip

LOCATION: Final = Block(0x05, "location", "tables 14, 15", (
    Field("status", 1, 0, 255, signal="location_valid", sentinel=False, kind=Kind.STATUS),
    Field("longitude", 4, 0, 180_000_000, "deg", div=1_000_000, signal="longitude_deg", sentinel=False,
          kind=Kind.DEGREES),
    Field("latitude", 4, 0, 90_000_000, "deg", div=1_000_000, signal="latitude_deg", sentinel=False,
          kind=Kind.DEGREES),
))  # fmt: skip

EXTREMES: Final = Block(0x06, "extremes", "table 16", (
    Field("max_voltage_subsystem", 1, 1, 250, signal="max_voltage_subsystem"),
    Field("max_voltage_cell", 1, 1, 250, signal="max_voltage_cell"),
    Field("max_cell_voltage", 2, 0, 15_000, "v", div=1000, signal="max_cell_voltage_v"),
    Field("min_voltage_subsystem", 1, 1, 250, signal="min_voltage_subsystem"),
    Field("min_voltage_cell", 1, 1, 250, signal="min_voltage_cell"),
    Field("min_cell_voltage", 2, 0, 15_000, "v", div=1000, signal="min_cell_voltage_v"),
    Field("max_temp_subsystem", 1, 1, 250, signal="max_temp_subsystem"),
    Field("max_temp_probe", 1, 1, 250, signal="max_temp_probe"),
    Field("max_temp", 1, 0, 250, "c", add=-40, signal="max_temp_c"),
    Field("min_temp_subsystem", 1, 1, 250, signal="min_temp_subsystem"),
    Field("min_temp_probe", 1, 1, 250, signal="min_temp_probe"),
    Field("min_temp", 1, 0, 250, "c", add=-40, signal="min_temp_c"),
))  # fmt: skip

# Fault codes are the maker's own DWORDs: every value is a code, so there is neither range nor sentinel.
_FAULT: Final = Field("code", 4, 0, 0xFFFF_FFFF, sentinel=False, kind=Kind.PLAIN)

ALARM: Final = Block(0x07, "alarm", "table 17", (
    Field("max_level", 1, 0, 3, signal="alarm_level"),
    Field("flags", 4, 0, 0xFFFF_FFFF, signal="alarm_flags", sentinel=False, kind=Kind.FLAGS),
    Field("pack_fault_count", 1, 0, 252, signal="pack_fault_count", kind=Kind.COUNT),
    Values("pack_faults", "pack_fault_count", _FAULT),
    Field("motor_fault_count", 1, 0, 252, signal="motor_fault_count", kind=Kind.COUNT),
    Values("motor_faults", "motor_fault_count", _FAULT),
    Field("engine_fault_count", 1, 0, 252, signal="engine_fault_count", kind=Kind.COUNT),
    Values("engine_faults", "engine_fault_count", _FAULT),
    Field("other_fault_count", 1, 0, 252, signal="other_fault_count", kind=Kind.COUNT),
    Values("other_faults", "other_fault_count", _FAULT),
))  # fmt: skip

CELL_VOLTAGES: Final = Block(0x08, "cell_voltages", "tables B.5, B.6", (
    Field("count", 1, 1, 250, signal="pack_count", kind=Kind.COUNT),
    Each("packs", "count", (
        Field("no", 1, 1, 250, sentinel=False),
        Field("voltage", 2, 0, 10_000, "v", div=10, signal="pack_voltage_v"),
        Field("current", 2, 0, 20_000, "a", add=-10_000, div=10, signal="pack_current_a"),
        Field("cell_total", 2, 1, 65_531, signal="pack_cell_total"),
        Field("first_cell", 2, 1, 65_531, sentinel=False),  # counts from 1
        # The list's length is this byte, never ``cell_total``: packs over 200 cells come in several frames.
        Field("frame_cells", 1, 1, 200, sentinel=False, kind=Kind.COUNT),
        Values("cells_v", "frame_cells", Field("cell", 2, 0, 60_000, "v", div=1000)),
    )),
))  # fmt: skip

CELL_TEMPERATURES: Final = Block(0x09, "cell_temperatures", "tables B.7, B.8", (
    Field("count", 1, 1, 250, kind=Kind.COUNT),
    Each("packs", "count", (
        Field("no", 1, 1, 250, sentinel=False),
        Field("probe_count", 2, 1, 65_531, kind=Kind.COUNT),
        Values("temps_c", "probe_count", Field("temp", 1, 0, 250, "c", add=-40)),
    )),
))  # fmt: skip

FLAG_NAMES: Final = (
    "temperature_difference",
    "battery_high_temperature",
    "storage_over_voltage",
    "storage_under_voltage",
    "soc_low",
    "cell_over_voltage",
    "cell_under_voltage",
    "soc_too_high",
    "soc_jump",
    "rechargeable_system_mismatch",
    "poor_cell_consistency",
    "insulation",
    "dcdc_temperature",
    "brake_system",
    "dcdc_state",
    "motor_controller_temperature",
    "high_voltage_interlock",
    "motor_temperature",
    "storage_overcharge",
)

TABLE: Final = EditionTable(
    edition=Edition.E2016,
    blocks=block_table(
        VEHICLE, DRIVE_MOTOR, FUEL_CELL, ENGINE, LOCATION, EXTREMES, ALARM, CELL_VOLTAGES, CELL_TEMPERATURES
    ),
    flag_names=FLAG_NAMES,
    has_signature=False,
)
