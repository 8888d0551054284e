"""The signal catalogue: every scalar that a report can carry, once, with its unit and its SQL type.

A signal is an integer on the way (``num``) and ``num / div`` in its unit: 65.3 km/h travels as 653
with div 10, so nothing is ever off by a rounding of 0.1.  Both editions of GB/T 32960 map into the
same signals (``schemas/gbt32960/edition*.py`` hold the maps).

The order is append-only: a row's ``flaws`` name a signal by its position here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class State(IntEnum):
    """What is known of one signal in one report (``Batch.state``)."""

    ABSENT = 0  # not in the report
    VALID = 1
    ABNORMAL = 2  # all ones minus one at the field's width (0xFE, 0xFFFE, ...)
    INVALID = 3  # all ones at the field's width
    OUT_OF_RANGE = 4  # neither in the standard's range nor a sentinel; the value is masked
    SUSPECT = 5  # in range, but another field of the same report contradicts it; the value is kept


@dataclass(frozen=True, slots=True)
class Signal:
    """One column: ``name`` ends in its unit, ``value = num / div``, ``sql`` is its column type."""

    name: str
    unit: str
    sql: str
    div: int
    text: str


_SMALL, _INT, _BIG, _REAL, _DOUBLE = "smallint", "integer", "bigint", "real", "double precision"

SIGNALS: Final[tuple[Signal, ...]] = (
    # vehicle (7.1)
    Signal("vehicle_state", "", _SMALL, 1, "1 started, 2 off, 3 other"),
    Signal("charge_state", "", _SMALL, 1, "1 parked charging, 2 charging while driving, 3 not charging, 4 complete"),
    Signal("run_mode", "", _SMALL, 1, "1 electric, 2 hybrid, 3 fuel"),
    Signal("speed_kmh", "km/h", _REAL, 10, "vehicle speed"),
    Signal("odometer_km", "km", _DOUBLE, 10, "accumulated mileage"),
    Signal("total_voltage_v", "V", _REAL, 10, "pack voltage"),
    Signal("total_current_a", "A", _REAL, 10, "pack current, discharge positive"),
    Signal("soc_pct", "%", _SMALL, 1, "state of charge"),
    Signal("dcdc_state", "", _SMALL, 1, "1 working, 2 open"),
    Signal("gear", "", _SMALL, 1, "gear bit field (7.12): low nibble gear, bit 4 braking, bit 5 driving"),
    Signal("insulation_resistance_kohm", "kΩ", _INT, 1, "insulation resistance"),
    Signal("accelerator_pct", "%", _SMALL, 1, "accelerator pedal travel (2016)"),
    Signal("brake_pct", "%", _SMALL, 1, "brake pedal travel, 101 = applied, travel unknown (2016)"),
    # drive motors (7.2): the first motor listed; all of them are in the column ``motors`` when there are more
    Signal("motor_count", "", _SMALL, 1, "drive motors in the report"),
    Signal("motor_no", "", _SMALL, 1, "number of the first motor listed"),
    Signal("motor_state", "", _SMALL, 1, "1 consuming, 2 generating, 3 off, 4 ready"),
    Signal("motor_controller_temp_c", "°C", _SMALL, 1, "motor controller temperature"),
    Signal("motor_speed_rpm", "r/min", _INT, 1, "motor speed"),
    Signal("motor_torque_nm", "N·m", _REAL, 10, "motor torque"),
    Signal("motor_temp_c", "°C", _SMALL, 1, "motor temperature"),
    Signal("motor_input_voltage_v", "V", _REAL, 10, "controller input voltage (2016)"),
    Signal("motor_bus_current_a", "A", _REAL, 10, "controller DC bus current (2016)"),
    # fuel cell and hydrogen system (7.3)
    Signal("fuel_cell_voltage_v", "V", _REAL, 10, "fuel-cell voltage (2016)"),
    Signal("fuel_cell_current_a", "A", _REAL, 10, "fuel-cell current (2016)"),
    Signal("fuel_cell_consumption_kg_per_100km", "kg/100 km", _REAL, 100, "hydrogen consumption (2016)"),
    Signal("fuel_cell_probe_count", "", _INT, 1, "fuel-cell temperature probes (2016)"),
    Signal("h2_max_temp_c", "°C", _REAL, 10, "highest temperature in the hydrogen system"),
    Signal("h2_max_temp_probe", "", _SMALL, 1, "its probe"),
    Signal("h2_max_conc_mg_per_kg", "mg/kg", _INT, 1, "highest hydrogen concentration (2016)"),
    Signal("h2_max_conc_vol_pct", "vol%", _REAL, 10000, "highest hydrogen concentration (2025)"),
    Signal("h2_max_conc_sensor", "", _SMALL, 1, "its sensor"),
    Signal("h2_max_pressure_mpa", "MPa", _REAL, 10, "highest hydrogen pressure"),
    Signal("h2_max_pressure_sensor", "", _SMALL, 1, "its sensor"),
    Signal("hv_dcdc_state", "", _SMALL, 1, "high-voltage DC/DC: 1 working, 2 open"),
    Signal("h2_remaining_pct", "%", _SMALL, 1, "remaining hydrogen (2025)"),
    Signal("hv_dcdc_temp_c", "°C", _SMALL, 1, "DC/DC controller temperature (2025)"),
    # engine (7.4)
    Signal("engine_state", "", _SMALL, 1, "1 started, 2 off (2016)"),
    Signal("crankshaft_rpm", "r/min", _INT, 1, "crankshaft speed"),
    Signal("fuel_consumption_l_per_100km", "L/100 km", _REAL, 100, "fuel consumption (2016)"),
    # location (7.5): longitude and latitude carry their sign; west and south are negative
    Signal("location_valid", "", _SMALL, 1, "1 the fix is valid, 0 the last good position is repeated"),
    Signal("coord_sys", "", _SMALL, 1, "1 WGS84, 2 GCJ02, 3 other (2025)"),
    Signal("longitude_deg", "°", _DOUBLE, 1_000_000, "longitude, east positive"),
    Signal("latitude_deg", "°", _DOUBLE, 1_000_000, "latitude, north positive"),
    # extremes (7.6, 2016 only)
    Signal("max_voltage_subsystem", "", _SMALL, 1, "subsystem of the highest cell voltage (2016)"),
    Signal("max_voltage_cell", "", _SMALL, 1, "its cell"),
    Signal("max_cell_voltage_v", "V", _REAL, 1000, "highest cell voltage as reported (2016)"),
    Signal("min_voltage_subsystem", "", _SMALL, 1, "subsystem of the lowest cell voltage (2016)"),
    Signal("min_voltage_cell", "", _SMALL, 1, "its cell"),
    Signal("min_cell_voltage_v", "V", _REAL, 1000, "lowest cell voltage as reported (2016)"),
    Signal("max_temp_subsystem", "", _SMALL, 1, "subsystem of the highest temperature (2016)"),
    Signal("max_temp_probe", "", _SMALL, 1, "its probe"),
    Signal("max_temp_c", "°C", _SMALL, 1, "highest probe temperature as reported (2016)"),
    Signal("min_temp_subsystem", "", _SMALL, 1, "subsystem of the lowest temperature (2016)"),
    Signal("min_temp_probe", "", _SMALL, 1, "its probe"),
    Signal("min_temp_c", "°C", _SMALL, 1, "lowest probe temperature as reported (2016)"),
    # alarm (7.7)
    Signal("alarm_level", "", _SMALL, 1, "highest alarm level now, 0..3, 2025 0..4"),
    Signal("alarm_flags", "", _BIG, 1, "general alarm flags (7.13), bit 0 the least significant"),
    Signal("pack_fault_count", "", _SMALL, 1, "storage-device fault codes"),
    Signal("motor_fault_count", "", _SMALL, 1, "drive-motor fault codes"),
    Signal("engine_fault_count", "", _SMALL, 1, "engine fault codes"),
    Signal("other_fault_count", "", _SMALL, 1, "other fault codes"),
    Signal("general_fault_count", "", _SMALL, 1, "general-alarm levels (2025)"),
    # packs (7.8, 7.9, 7.10): the first pack's own figures; every value is in ``cells`` and ``temps``
    Signal("pack_count", "", _SMALL, 1, "packs in the cell-voltage block"),
    Signal("pack_voltage_v", "V", _REAL, 10, "voltage of the first pack listed"),
    Signal("pack_current_a", "A", _REAL, 10, "current of the first pack listed"),
    Signal("pack_cell_total", "", _INT, 1, "cells of the first pack listed, those in other frames included"),
    # derived from the lists by the decoder
    Signal("cell_count", "", _INT, 1, "cell voltages in this report, valid or not (derived)"),
    Signal("cell_max_v", "V", _REAL, 1000, "highest valid cell voltage of the list (derived)"),
    Signal("cell_min_v", "V", _REAL, 1000, "lowest valid cell voltage of the list (derived)"),
    Signal("cell_sum_v", "V", _REAL, 1000, "sum of the valid cell voltages of the list (derived)"),
    Signal("probe_count", "", _INT, 1, "temperature probes in this report, valid or not (derived)"),
    Signal("probe_max_c", "°C", _SMALL, 1, "highest valid probe temperature of the list (derived)"),
    Signal("probe_min_c", "°C", _SMALL, 1, "lowest valid probe temperature of the list (derived)"),
    # fuel-cell stacks (7.11, 2025): the first stack; all are in ``rest``
    Signal("stack_count", "", _SMALL, 1, "fuel-cell stacks (2025)"),
    Signal("stack_no", "", _SMALL, 1, "number of the first stack listed"),
    Signal("stack_voltage_v", "V", _REAL, 10, "stack voltage"),
    Signal("stack_current_a", "A", _REAL, 10, "stack current"),
    Signal("stack_h2_inlet_pressure_kpa", "kPa", _REAL, 10, "hydrogen inlet pressure"),
    Signal("stack_air_inlet_pressure_kpa", "kPa", _REAL, 10, "air inlet pressure"),
    Signal("stack_air_inlet_temp_c", "°C", _SMALL, 1, "air inlet temperature"),
    Signal("stack_probe_count", "", _INT, 1, "coolant-outlet probes"),
    # supercapacitor (7.11, 2025); its lists are in ``rest``
    Signal("supercap_system_no", "", _SMALL, 1, "supercapacitor system number (2025)"),
    Signal("supercap_voltage_v", "V", _REAL, 10, "supercapacitor voltage"),
    Signal("supercap_current_a", "A", _REAL, 10, "supercapacitor current"),
    Signal("supercap_cell_count", "", _INT, 1, "supercapacitor cells"),
    Signal("supercap_probe_count", "", _INT, 1, "supercapacitor probes"),
    # supercapacitor extremes (7.11, 2025)
    Signal("supercap_max_voltage_system", "", _SMALL, 1, "system of the highest cell voltage"),
    Signal("supercap_max_voltage_cell", "", _INT, 1, "its cell"),
    Signal("supercap_max_cell_voltage_v", "V", _REAL, 1000, "highest supercapacitor cell voltage"),
    Signal("supercap_min_voltage_system", "", _SMALL, 1, "system of the lowest cell voltage"),
    Signal("supercap_min_voltage_cell", "", _INT, 1, "its cell"),
    Signal("supercap_min_cell_voltage_v", "V", _REAL, 1000, "lowest supercapacitor cell voltage"),
    Signal("supercap_max_temp_system", "", _SMALL, 1, "system of the highest temperature"),
    Signal("supercap_max_temp_probe", "", _INT, 1, "its probe"),
    Signal("supercap_max_temp_c", "°C", _SMALL, 1, "highest supercapacitor temperature"),
    Signal("supercap_min_temp_system", "", _SMALL, 1, "system of the lowest temperature"),
    Signal("supercap_min_temp_probe", "", _INT, 1, "its probe"),
    Signal("supercap_min_temp_c", "°C", _SMALL, 1, "lowest supercapacitor temperature"),
)  # fmt: skip

INDEX: Final[dict[str, int]] = {signal.name: position for position, signal in enumerate(SIGNALS)}
SIGNAL_COUNT: Final = len(SIGNALS)

assert len(INDEX) == SIGNAL_COUNT < 256, "names are unique, and a flaw names its signal in one byte"


def aggregates(signal: Signal) -> tuple[str, ...]:
    """What a time bucket may say of a signal: ``<name>_<aggregate>`` is the answer's field.

    A quantity has its mean with the count of values it is the mean of; a code, number or count has
    no meaningful mean; flags are joined bit by bit (a bit is set when any report had it).
    """
    if signal.name == "alarm_flags":
        return ("any",)
    return ("avg", "min", "max", "count") if signal.unit else ("min", "max")
