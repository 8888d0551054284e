"""The worked examples: bytes in hex, and what they mean, worked out by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import schemas
from schemas.custom.jsonfields import JsonFields
from schemas.custom.load import load
from schemas.custom.tables import Compiled, compile_tables

EXAMPLES = Path(schemas.__file__).parent / "examples"


@pytest.fixture(scope="module")
def bus() -> Compiled:
    return compile_tables(load(EXAMPLES / "bus.toml"))


@pytest.fixture(scope="module")
def truck() -> Compiled:
    pytest.importorskip("cantools")
    return compile_tables(load(EXAMPLES / "truck.toml"))


BUS = bytes.fromhex(
    "21"        # 0010 0001: two passenger doors in use (high nibble 2), front door open (bit 0), rear closed (bit 1)
    "01"        # cooling
    "0267"      # 0x0267 = 615; 615 * 0.1 - 40 = 21.5 °C
    "2d"        # 45 * 0.5 = 22.5 °C
    "f9"        # two's complement: 0xF9 - 256 = -7 °C
    "dc05"      # little endian: 0x05DC = 1500; * 2 = 3000 W
    "32831f"    # 24 bits: upper 12 = 0x328 = 808 kPa, lower 12 = 0x31F = 799 kPa
    "c8"        # 200 * 4 = 800 kPa
    "fe"        # abnormal
    "fb"        # 251 * 4 = 1004 kPa: above 1000
    "449a4000"  # IEEE 754: sign 0, exponent 0x89 = 137 - 127 = 10, mantissa 1 + 0x1A4000 / 2**23 = 1.205078125;
                # * 1024 = 1234.0 kg
)  # fmt: skip


def test_the_bus_block(make: SimpleNamespace, bus: Compiled) -> None:
    assert make.decoded(bus, [(0x81, BUS)]) == {
        "front_door": 1, "rear_door": 0, "passenger_door_count": 2, "aircon_mode": 1, "cabin_temp_c": "21.5",
        "aircon_setpoint_c": "22.5", "outside_temp_c": -7, "compressor_power_w": 3000, "air_tank_1_pressure_kpa": 808,
        "air_tank_2_pressure_kpa": 799, "tyre_front_left_pressure_kpa": 800, "roof_load_kg": 1234,
        "_flaws": {"tyre_front_right_pressure_kpa": "abnormal", "tyre_rear_left_pressure_kpa": "out_of_range"},
    }  # fmt: skip


def test_the_bus_block_of_older_terminals_and_other_makers(make: SimpleNamespace, bus: Compiled) -> None:
    # only five bytes: what is not there is absent, neither a value nor a flaw; 0xFF mode and 0xFFFF are "invalid"
    assert make.decoded(bus, [(0x81, bytes.fromhex("10ffffff20"))], vin="LBUS0000000000009") == {
        "front_door": 0, "rear_door": 0, "passenger_door_count": 1, "aircon_setpoint_c": 16,
        "_flaws": {"aircon_mode": "invalid", "cabin_temp_c": "invalid"},
    }  # fmt: skip
    assert make.decoded(bus, [(0x81, BUS)], vin="LOTHER00000000001") is None
    assert make.decoded(bus, [(0x82, BUS)]) is None


def test_the_json_fields_of_the_bus(bus: Compiled) -> None:
    fields = JsonFields(bus.file)
    assert fields.apply({"pax": 23, "cabinTempF": 70.7, "fleetNote": "x"}) == {
        "passenger_count": 23, "cabin_temp_f": 70.7, "fleetNote": "x",
    }  # fmt: skip
    assert fields.apply({"pax": 130, "cabinTempF": "warm"}) == {
        "_flaws": {"passenger_count": "out_of_range", "cabin_temp_f": "invalid"}
    }


FRAMES = bytes.fromhex(
    "01"                    # bus number
    # 0x100 = 256 BatteryHeater, eight bytes, Intel:
    "00000100" "08"
    "01"                    # bits 0-1 = 01: heating
    "78"                    # 120 * 0.5 - 40 = 20 °C
    "9c0f"                  # bits 16-27: 0xF9C = 3996, two's complement of 12 bits: 3996 - 4096 = -100; * 0.1 = -10 A
    "d2040000"              # 0x000004D2 = 1234; * 0.01 = 12.34 kWh
    # DBC id 2566838805 = 0x98FEDA15: bit 31 (extended) and 0x18FEDA15; AxleMotor, Motorola:
    "98feda15" "08"
    "fce0"                  # start bit 7 = the highest of byte 0, 16 bits: 0xFCE0 - 65536 = -800; * 0.25 = -200 Nm
    "03e8"                  # start bit 19 = byte 2 bit 3, 12 bits: low nibble of byte 2, all of byte 3: 0x3E8 = 1000;
                            # * 8 = 8000 rpm
    "6e" "000000"           # start bit 39 = byte 4: 110 - 40 = 70 °C
    # 0x400 Tyres twice, four bytes, the rest of the eight is filling:
    "00000400" "04" "01c80000" "ffffffff"   # axle 1: 200 * 5.5 = 1100 kPa
    "00000400" "04" "0264aaaa" "ffffffff"   # axle 2: 100 * 5.5 = 550 kPa
    "00000555" "08" "ffffffffffffffff"      # no message of the DBC
    "000001"                                # cut off: read no further
)  # fmt: skip


def test_the_truck_frames(make: SimpleNamespace, truck: Compiled) -> None:
    assert make.decoded(truck, [(0x90, FRAMES)], vin="LTRUCK00000000001") == {
        "heater_state": 1, "coolant_temp_c": 20, "heater_current_a": -10, "heater_energy_kwh": "12.34",
        "axle_torque_nm": -200, "axle_speed_rpm": 8000, "winding_temp_c": 70,
        "axle_1_tyre_pressure_kpa": 1100, "axle_2_tyre_pressure_kpa": 550,
    }  # fmt: skip


def test_a_later_frame_overwrites_and_flaws_are_named(make: SimpleNamespace, truck: Compiled) -> None:
    # coolant 0xFF: the sentinel of truck.toml; then the heater again with 0x50: 80 * 0.5 - 40 = 0 °C
    heater = "0000010008" + "00ff0000" + "00000000"
    speed = "98feda1508" + "0000" + "0fff" + "28000000"  # 4095 * 8 = 32760 rpm: over 12000; 0x28 - 40 = 0 °C
    assert make.decoded(truck, [(0x90, bytes.fromhex("01" + heater + speed))], vin="LTRUCK1") == {
        "heater_state": 0, "heater_current_a": 0, "heater_energy_kwh": 0, "axle_torque_nm": 0, "winding_temp_c": 0,
        "_flaws": {"coolant_temp_c": "invalid", "axle_speed_rpm": "out_of_range"},
    }  # fmt: skip
    again = "0000010008" + "00500000" + "00000000"
    later = make.decoded(truck, [(0x90, bytes.fromhex("01" + heater + again))], vin="LTRUCK1")
    assert later["coolant_temp_c"] == 0
    assert "_flaws" not in later
