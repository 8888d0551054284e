"""The baseline: the program one would write first.

A paho-mqtt client behind mosquitto takes GB/T 32960 frames at QoS 1, takes them apart with ``struct``, and
COPYs batches of 1,000 rows as text through psycopg.  It does the same as the system under test for a
frame of the 2016 edition: every field, all cells and probes, the same columns, the same index.  It
answers before its rows are durable, keeps no raw frame, and knows no other edition: all in its favour.

``python -m benchmarks.obvious DSN TABLE PORT COUNT`` prints "ready", then one JSON line when it has
committed COUNT rows.
"""

from __future__ import annotations

import json
import struct
import sys
import time
import zlib
from datetime import UTC, datetime, timedelta, timezone
from functools import reduce
from operator import xor
from typing import Any

import paho.mqtt.client as mqtt
import psycopg

BATCH_ROWS = 1000
BEIJING = timezone(timedelta(hours=8))

VEHICLE = struct.Struct(">BBBHIHHBBBHBB")
MOTOR = struct.Struct(">BBBHHBHH")
LOCATION = struct.Struct(">BII")
EXTREMES = struct.Struct(">BBHBBHBBBBBB")
ALARM = struct.Struct(">BI")
PACK = struct.Struct(">BHHHHB")

COLUMNS = (
    "vehicle_id", "time", "received_at", "kind", "part", "edition", "door", "digest",
    "vehicle_state", "charge_state", "run_mode", "speed_kmh", "odometer_km", "total_voltage_v", "total_current_a",
    "soc_pct", "dcdc_state", "gear", "insulation_resistance_kohm", "accelerator_pct", "brake_pct",
    "motor_count", "motor_no", "motor_state", "motor_controller_temp_c", "motor_speed_rpm", "motor_torque_nm",
    "motor_temp_c", "motor_input_voltage_v", "motor_bus_current_a",
    "location_valid", "longitude_deg", "latitude_deg",
    "max_voltage_subsystem", "max_voltage_cell", "max_cell_voltage_v", "min_voltage_subsystem", "min_voltage_cell",
    "min_cell_voltage_v", "max_temp_subsystem", "max_temp_probe", "max_temp_c", "min_temp_subsystem", "min_temp_probe",
    "min_temp_c",
    "alarm_level", "alarm_flags", "pack_fault_count", "motor_fault_count", "engine_fault_count", "other_fault_count",
    "pack_count", "pack_voltage_v", "pack_current_a", "pack_cell_total",
    "cell_count", "cell_max_v", "cell_min_v", "cell_sum_v", "probe_count", "probe_max_c", "probe_min_c",
    "cells", "temps",
)  # fmt: skip


def scaled(raw: int, width: int, scale: float, bias: float = 0) -> float | None:
    """A field's value; the two sentinels are no value."""
    return None if raw >= (1 << 8 * width) - 2 else raw / scale - bias


def whole(raw: int, width: int, bias: int = 0) -> int | None:
    return None if raw >= (1 << 8 * width) - 2 else raw - bias


class Program:
    def __init__(self, dsn: str, table: str, count: int) -> None:
        self.connection = psycopg.connect(dsn)
        self.table = table
        self.count = count
        self.rows: list[tuple[Any, ...]] = []
        self.written = 0
        self.refused = 0
        self.vehicles: dict[str, int] = {}
        self.finished = 0.0

    def row(self, frame: bytes) -> tuple[Any, ...] | None:
        """One report of 2016 as a row; None when it is not whole."""
        if frame[:2] != b"##" or len(frame) != 25 + int.from_bytes(frame[22:24], "big"):
            return None
        if reduce(xor, frame[2:-1]) != frame[-1]:
            return None
        vin = frame[4:21].decode("ascii")
        vehicle = self.vehicles.setdefault(vin, len(self.vehicles) + 1)
        year, month, day, hour, minute, second = frame[24:30]
        collected = datetime(2000 + year, month, day, hour, minute, second, tzinfo=BEIJING)
        found: dict[int, tuple[Any, ...]] = {}
        at, end = 30, len(frame) - 1
        while at < end:
            block = frame[at]
            at += 1
            if block == 0x01:
                f = VEHICLE.unpack_from(frame, at)
                at += VEHICLE.size
                found[1] = (
                    whole(f[0], 1), whole(f[1], 1), whole(f[2], 1), scaled(f[3], 2, 10), scaled(f[4], 4, 10),
                    scaled(f[5], 2, 10), scaled(f[6], 2, 10, 1000), whole(f[7], 1), whole(f[8], 1), f[9], f[10],
                    whole(f[11], 1), whole(f[12], 1),
                )  # fmt: skip
            elif block == 0x02:
                motors = frame[at]
                f = MOTOR.unpack_from(frame, at + 1)
                at += 1 + motors * MOTOR.size
                found[2] = (
                    motors, f[0], whole(f[1], 1), whole(f[2], 1, 40), whole(f[3], 2, 20000), scaled(f[4], 2, 10, 2000),
                    whole(f[5], 1, 40), scaled(f[6], 2, 10), scaled(f[7], 2, 10, 1000),
                )  # fmt: skip
            elif block == 0x05:
                status, east, north = LOCATION.unpack_from(frame, at)
                at += LOCATION.size
                found[5] = (
                    0 if status & 1 else 1,
                    (-east if status & 4 else east) / 1e6,
                    (-north if status & 2 else north) / 1e6,
                )
            elif block == 0x06:
                f = EXTREMES.unpack_from(frame, at)
                at += EXTREMES.size
                found[6] = (
                    f[0], f[1], scaled(f[2], 2, 1000), f[3], f[4], scaled(f[5], 2, 1000),
                    f[6], f[7], whole(f[8], 1, 40), f[9], f[10], whole(f[11], 1, 40),
                )  # fmt: skip
            elif block == 0x07:
                level, flags = ALARM.unpack_from(frame, at)
                at += ALARM.size
                counts = []
                for _ in range(4):
                    counts.append(frame[at])
                    at += 1 + 4 * frame[at]
                found[7] = (whole(level, 1), flags, *counts)
            elif block == 0x08:
                packs = frame[at]
                _, voltage, current, total, _, cells = PACK.unpack_from(frame, at + 1)
                at += 1 + PACK.size
                body = frame[at : at + 2 * cells]
                at += 2 * cells
                values = [v for v in struct.unpack(f">{cells}H", body) if v < 0xFFFE]
                found[8] = (packs, scaled(voltage, 2, 10), scaled(current, 2, 10, 1000), total)
                found[10] = (cells, max(values) / 1000, min(values) / 1000, sum(values) / 1000)
                found[12] = (b"\x01" + body,)
            elif block == 0x09:
                probes = int.from_bytes(frame[at + 2 : at + 4], "big")
                body = frame[at + 4 : at + 4 + probes]
                at += 4 + probes
                temps = [v - 40 for v in body if v < 0xFE]
                found[11] = (probes, max(temps), min(temps))
                found[13] = (body,)
            else:
                return None
        return (
            vehicle, collected, datetime.now(UTC), frame[2], 0, 16, 2, zlib.crc32(frame[24:-1]),
            *found[1], *found[2], *found[5], *found[6], *found[7], *found[8], *found[10], *found[11],
            *found[12], *found[13],
        )  # fmt: skip

    def on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        row = self.row(message.payload)
        if row is None:
            self.refused += 1
            return
        self.rows.append(row)
        if len(self.rows) >= BATCH_ROWS or self.written + len(self.rows) >= self.count:
            self.flush()

    def flush(self) -> None:
        statement = f"COPY {self.table} ({', '.join(COLUMNS)}) FROM STDIN"
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in self.rows:
                copy.write_row(row)
        self.connection.commit()
        self.written += len(self.rows)
        self.rows.clear()
        self.finished = time.monotonic()


def main(dsn: str, table: str, port: str, count: str) -> None:
    program = Program(dsn, table, int(count))
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="obvious", protocol=mqtt.MQTTv311)
    client.on_message = program.on_message
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.on_connect = lambda *_: client.subscribe("nev/v1/+/gbt32960", qos=1)
    client.connect("127.0.0.1", int(port))
    while program.written < program.count:
        client.loop(timeout=1.0)
    client.disconnect()
    print(json.dumps({"rows": program.written, "refused": program.refused, "finished": program.finished}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
