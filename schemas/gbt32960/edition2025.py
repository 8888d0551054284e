"""Every field of a report of the 2025 edition (clause 7.2, tables 7 to 26).

The same type number can mean another block than in 2016 (0x06 to 0x08), currents are biased by 3000 A,
motor speed by 32000 r/min and torque, a DWORD now, by 20000 N·m.  Ranges other than the current's rest on
one transcription of the standard; widths and scales do not.
"""

from __future__ import annotations

from typing import Final

from schemas.gbt32960.commands import Edition
from schemas.gbt32960.layout import Block, Each, EditionTable, Field, Kind, Values, block_table

_RUN: Final = {1: "working", 2: "open"}

VEHICLE: Final = Block(0x01, "vehicle", "table 10", (
    Field("vehicle_state", 1, 1, 3, signal="vehicle_state", kind=Kind.CODE, names={1: "started", 2: "off", 3: "other"}),
    Field("charge_state", 1, 1, 4, signal="charge_state", kind=Kind.CODE,
          names={1: "parked_charging", 2: "driving_charging", 3: "not_charging", 4: "charge_complete"}),
    Field("run_mode", 1, 1, 3, signal="run_mode", kind=Kind.CODE, names={1: "electric", 2: "hybrid", 3: "fuel"}),
    Field("speed", 2, 0, 5000, "kmh", div=10, signal="speed_kmh"),
    Field("mileage", 4, 0, 9_999_999, "km", div=10, signal="odometer_km"),
    Field("total_voltage", 2, 0, 60_000, "v", div=10, signal="total_voltage_v"),
    Field("total_current", 2, 0, 60_000, "a", add=-30_000, div=10, signal="total_current_a"),
    Field("soc", 1, 0, 100, "pct", signal="soc_pct"),
    Field("dcdc_state", 1, 1, 2, signal="dcdc_state", kind=Kind.CODE, names=_RUN),
    Field("gear", 1, 0, 255, signal="gear", sentinel=False, kind=Kind.GEAR, invalid_bits=0x80),
    Field("insulation_resistance", 2, 0, 60_000, "kohm", signal="insulation_resistance_kohm"),
))  # fmt: skip

DRIVE_MOTOR: Final = Block(0x02, "drive_motor", "tables 15, 16", (
    Field("count", 1, 1, 253, signal="motor_count", kind=Kind.COUNT),
    Each("motors", "count", (
        Field("no", 1, 1, 253, signal="motor_no"),
        Field("state", 1, 1, 4, signal="motor_state", kind=Kind.CODE,
              names={1: "consuming", 2: "generating", 3: "off", 4: "ready"}),
        Field("controller_temp", 1, 0, 250, "c", add=-40, signal="motor_controller_temp_c"),
        Field("speed", 2, 0, 65_531, "rpm", add=-32_000, signal="motor_speed_rpm"),
        Field("torque", 4, 0, 400_000, "nm", add=-200_000, div=10, signal="motor_torque_nm"),
        Field("motor_temp", 1, 0, 250, "c", add=-40, signal="motor_temp_c"),
    )),
))  # fmt: skip

FUEL_CELL: Final = Block(0x03, "fuel_cell", "table 17", (
    # 1 °C here, 0.1 °C in 2016: ``mul`` brings both to the signal's tenths.
    Field("h2_max_temp", 2, 0, 250, "c", mul=10, add=-400, div=10, signal="h2_max_temp_c"),
    Field("h2_max_temp_probe", 1, 1, 253, signal="h2_max_temp_probe"),
    Field("h2_max_conc", 2, 0, 60_000, "vol_pct", div=10_000, signal="h2_max_conc_vol_pct"),
    Field("h2_max_conc_sensor", 1, 1, 253, signal="h2_max_conc_sensor"),
    Field("h2_max_pressure", 2, 0, 1000, "mpa", div=10, signal="h2_max_pressure_mpa"),
    Field("h2_max_pressure_sensor", 1, 1, 253, signal="h2_max_pressure_sensor"),
    Field("hv_dcdc_state", 1, 1, 2, signal="hv_dcdc_state", kind=Kind.CODE, names=_RUN),
    Field("h2_remaining", 1, 0, 100, "pct", signal="h2_remaining_pct"),
    Field("hv_dcdc_temp", 1, 0, 250, "c", add=-40, signal="hv_dcdc_temp_c"),
))  # fmt: skip

ENGINE: Final = Block(0x04, "engine", "table 20", (
    Field("crankshaft", 2, 0, 60_000, "rpm", signal="crankshaft_rpm"),
))  # fmt: skip

LOCATION: Final = Block(0x05, "location", "tables 21, 22", (
    Field("status", 1, 0, 255, signal="location_valid", sentinel=False, kind=Kind.STATUS),
    Field("coord_sys", 1, 1, 3, signal="coord_sys", sentinel=False, kind=Kind.CODE,
          names={1: "wgs84", 2: "gcj02", 3: "other"}),
    Field("longitude", 4, 0, 180_000_000, "deg", div=1_000_000, signal="longitude_deg", sentinel=False,
          kind=Kind.DEGREES),
    Field("latitude", 4, 0, 90_000_000, "deg", div=1_000_000, signal="latitude_deg", sentinel=False,
          kind=Kind.DEGREES),
))  # fmt: skip

# Fault codes are the maker's own DWORDs: every value is a code, so there is neither range nor sentinel.
_FAULT: Final = Field("code", 4, 0, 0xFFFF_FFFF, sentinel=False, kind=Kind.PLAIN)

ALARM: Final = Block(0x06, "alarm", "table 23", (
    Field("max_level", 1, 0, 4, signal="alarm_level"),
    Field("flags", 4, 0, 0xFFFF_FFFF, signal="alarm_flags", sentinel=False, kind=Kind.FLAGS),
    Field("pack_fault_count", 1, 0, 253, signal="pack_fault_count", kind=Kind.COUNT),
    Values("pack_faults", "pack_fault_count", _FAULT),
    Field("motor_fault_count", 1, 0, 253, signal="motor_fault_count", kind=Kind.COUNT),
    Values("motor_faults", "motor_fault_count", _FAULT),
    Field("engine_fault_count", 1, 0, 253, signal="engine_fault_count", kind=Kind.COUNT),
    Values("engine_faults", "engine_fault_count", _FAULT),
    Field("other_fault_count", 1, 0, 253, signal="other_fault_count", kind=Kind.COUNT),
    Values("other_faults", "other_fault_count", _FAULT),
    Field("general_fault_count", 1, 0, 253, signal="general_fault_count", kind=Kind.COUNT),
    Each("general_faults", "general_fault_count", (
        Field("bit", 1, 0, 255, sentinel=False, kind=Kind.PLAIN),
        Field("level", 1, 0, 255, sentinel=False, kind=Kind.PLAIN),
    ), flat=True),
))  # fmt: skip

CELL_VOLTAGES: Final = Block(0x07, "cell_voltages", "tables 11, 12", (
    Field("count", 1, 0, 50, signal="pack_count", kind=Kind.COUNT),
    Each("packs", "count", (
        Field("no", 1, 1, 50),
        Field("voltage", 2, 0, 60_000, "v", div=10, signal="pack_voltage_v"),
        Field("current", 2, 0, 60_000, "a", add=-30_000, div=10, signal="pack_current_a"),
        Field("cell_total", 2, 1, 65_531, signal="pack_cell_total", kind=Kind.COUNT),
        Values("cells_v", "cell_total", Field("cell", 2, 0, 60_000, "v", div=1000)),
    )),
))  # fmt: skip

CELL_TEMPERATURES: Final = Block(0x08, "cell_temperatures", "tables 13, 14", (
    Field("count", 1, 0, 50, kind=Kind.COUNT),
    Each("packs", "count", (
        Field("no", 1, 1, 50),
        Field("probe_count", 2, 1, 65_531, kind=Kind.COUNT),
        Values("temps_c", "probe_count", Field("temp", 1, 0, 250, "c", add=-40)),
    )),
))  # fmt: skip

FUEL_CELL_STACKS: Final = Block(0x30, "fuel_cell_stacks", "tables 18, 19", (
    Field("count", 1, 1, 253, signal="stack_count", kind=Kind.COUNT),
    Each("stacks", "count", (
        Field("no", 1, 1, 253, signal="stack_no"),
        Field("voltage", 2, 0, 20_000, "v", div=10, signal="stack_voltage_v"),
        Field("current", 2, 0, 20_000, "a", div=10, signal="stack_current_a"),
        Field("h2_inlet_pressure", 2, 0, 5000, "kpa", add=-1000, div=10, signal="stack_h2_inlet_pressure_kpa"),
        Field("air_inlet_pressure", 2, 0, 5000, "kpa", add=-1000, div=10, signal="stack_air_inlet_pressure_kpa"),
        Field("air_inlet_temp", 1, 0, 250, "c", add=-40, signal="stack_air_inlet_temp_c"),
        Field("probe_count", 2, 0, 65_531, signal="stack_probe_count", kind=Kind.COUNT),
        Values("coolant_temps_c", "probe_count", Field("temp", 1, 0, 250, "c", add=-40)),
    )),
))  # fmt: skip

SUPERCAPACITOR: Final = Block(0x31, "supercapacitor", "table 25", (
    Field("system_no", 1, 1, 253, signal="supercap_system_no"),
    Field("total_voltage", 2, 0, 10_000, "v", div=10, signal="supercap_voltage_v"),
    Field("total_current", 2, 0, 60_000, "a", add=-30_000, div=10, signal="supercap_current_a"),
    Field("cell_count", 2, 1, 65_531, signal="supercap_cell_count", kind=Kind.COUNT),
    Values("cells_v", "cell_count", Field("cell", 2, 0, 60_000, "v", div=1000)),
    Field("probe_count", 2, 1, 65_531, signal="supercap_probe_count", kind=Kind.COUNT),
    Values("temps_c", "probe_count", Field("temp", 1, 0, 250, "c", add=-40)),
))  # fmt: skip

SUPERCAPACITOR_EXTREMES: Final = Block(0x32, "supercapacitor_extremes", "table 26", (
    Field("max_voltage_system", 1, 1, 253, signal="supercap_max_voltage_system"),
    Field("max_voltage_cell", 2, 1, 65_531, signal="supercap_max_voltage_cell", sentinel=False),
    Field("max_cell_voltage", 2, 0, 60_000, "v", div=1000, signal="supercap_max_cell_voltage_v"),
    Field("min_voltage_system", 1, 1, 253, signal="supercap_min_voltage_system"),
    Field("min_voltage_cell", 2, 1, 65_531, signal="supercap_min_voltage_cell", sentinel=False),
    Field("min_cell_voltage", 2, 0, 60_000, "v", div=1000, signal="supercap_min_cell_voltage_v"),
    Field("max_temp_system", 1, 1, 253, signal="supercap_max_temp_system"),
    Field("max_temp_probe", 2, 1, 65_531, signal="supercap_max_temp_probe", sentinel=False),
    Field("max_temp", 1, 0, 250, "c", add=-40, signal="supercap_max_temp_c"),
    Field("min_temp_system", 1, 1, 253, signal="supercap_min_temp_system"),
    Field("min_temp_probe", 2, 1, 65_531, signal="supercap_min_temp_probe", sentinel=False),
    Field("min_temp", 1, 0, 250, "c", add=-40, signal="supercap_min_temp_c"),
))  # fmt: skip

FLAG_NAMES: Final = (
    "temperature_difference",
    "battery_high_temperature",
    "storage_over_voltage",
    "storage_under_voltage",
    "soc_low",
    "min_parallel_unit_over_voltage",
    "min_parallel_unit_under_voltage",
    "soc_too_high",
    "soc_jump",
    "rechargeable_system_mismatch",
    "poor_min_parallel_unit_consistency",
    "insulation",
    "dcdc_temperature",
    "brake_system",
    "dcdc_state",
    "motor_controller_temperature",
    "high_voltage_interlock",
    "motor_temperature",
    "storage_overcharge",
    "motor_overspeed",
    "motor_overcurrent",
    "supercapacitor_over_temperature",
    "supercapacitor_over_voltage",
    "storage_thermal_event",
    "hydrogen_leak",
    "hydrogen_pressure",
    "hydrogen_temperature",
    "fuel_cell_stack_over_temperature",
)

TABLE: Final = EditionTable(
    edition=Edition.E2025,
    blocks=block_table(
        VEHICLE,
        DRIVE_MOTOR,
        FUEL_CELL,
        ENGINE,
        LOCATION,
        ALARM,
        CELL_VOLTAGES,
        CELL_TEMPERATURES,
        FUEL_CELL_STACKS,
        SUPERCAPACITOR,
        SUPERCAPACITOR_EXTREMES,
    ),
    flag_names=FLAG_NAMES,
    has_signature=True,
)
