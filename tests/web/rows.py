"""Rows put into a database with SQL, as the pipeline would have left them, for the API to answer from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

NOW = datetime(2026, 11, 24, 4, 0, 0, tzinfo=UTC)  # noon in Shanghai
VIN = "LTEST000000000001"
CHARGING, SILENT, IMPORTED = "LTEST000000000002", "LTEST000000000003", "LTEST000000000004"

# Blocks of frames that other projects published (see tests/gbt32960/data/README.md), from the count byte on.
CELLS_2016 = "02011388271000020000011388021389271100020001011389"  # emqx-cells-2016


def insert(db: psycopg.Connection[Any], table: str, **values: Any) -> None:
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(sql.Placeholder() * len(values)),
    )
    db.execute(statement, list(values.values()))


def vehicle(db: psycopg.Connection[Any], vin: str, **values: Any) -> int:
    insert(db, "vehicles", vin=vin, **values)
    row = db.execute("SELECT vehicle_id FROM vehicles WHERE vin = %s", [vin]).fetchone()
    assert row is not None
    return int(row[0])


def report(db: psycopg.Connection[Any], vehicle_id: int, time: datetime, **values: Any) -> None:
    given: dict[str, Any] = {
        "received_at": time + timedelta(milliseconds=120), "kind": 2, "part": 0, "edition": 16, "door": 2, "digest": 1,
    }  # fmt: skip
    insert(db, "telemetry", vehicle_id=vehicle_id, time=time, **given | values)


def state(db: psycopg.Connection[Any], vehicle_id: int, time: datetime, reports: int, **values: Any) -> None:
    given: dict[str, Any] = {
        "received_at": time + timedelta(milliseconds=120), "kind": 2, "part": 0, "edition": 16, "door": 2,
    }  # fmt: skip
    insert(db, "vehicle_state", vehicle_id=vehicle_id, time=time, reports=reports, **given | values)


def days(db: psycopg.Connection[Any], first: date, last: date) -> None:
    db.execute("SELECT ensure_telemetry_days(%s, %s)", [first, last])


def cells(voltages_mv: list[int], *, pack: int = 1, first: int = 1, total: int | None = None) -> bytes:
    """A cell-voltage block of the 2016 edition with one pack of 400.0 V and 12.5 A."""
    head = bytes([1, pack]) + (4000).to_bytes(2, "big") + (10_125).to_bytes(2, "big")
    head += (total or len(voltages_mv)).to_bytes(2, "big") + first.to_bytes(2, "big") + bytes([len(voltages_mv)])
    return head + b"".join(v.to_bytes(2, "big") for v in voltages_mv)


def driven(second: int) -> Mapping[str, Any]:
    """What the driving vehicle says at a second of its hour; every seventh speed is missing."""
    speed = round(60 + 40 * math.sin(second / 240), 1)
    return {
        "vehicle_state": 1,
        "charge_state": 3,
        "speed_kmh": None if second % 70 == 0 else speed,
        "odometer_km": round(12_345.6 + second / 60, 1),
        "total_voltage_v": round(401.5 - second / 600 + math.sin(second / 90), 1),
        "total_current_a": round(20 + speed / 4, 1),
        "soc_pct": 90 - second // 300,
        "alarm_level": 0,
        "alarm_flags": 0,
        "longitude_deg": 116.4 + second * 1e-5,
        "latitude_deg": 39.9,
        "location_valid": 1,
    }


def fleet(db: psycopg.Connection[Any], now: datetime = NOW, step_s: int = 10) -> None:
    """Four vehicles: driving for an hour, charging, silent since yesterday, imported only; and dead letters."""
    with db.transaction():
        _fleet(db, now, step_s)


def _fleet(db: psycopg.Connection[Any], now: datetime, step_s: int) -> None:
    days(db, (now - timedelta(days=2)).date(), (now + timedelta(days=1)).date())
    one = vehicle(
        db, VIN, first_seen_at=now - timedelta(hours=1), model="E1", fleet="north", region="BJ", registered=True
    )
    seconds = range(0, 3600, step_s)
    for second in seconds:
        time = now - timedelta(hours=1) + timedelta(seconds=second)
        volts = [3700 + (cell * 7 + second // 10) % 23 for cell in range(96)]
        temps = bytes([1, 1, 0, 4, 64, 65, 66, 0xFE])
        flaws = bytes([10, 3, 3, 3]) if second % 70 == 0 else bytes([10, 3])  # insulation invalid, speed too
        report(
            db, one, time, **driven(second), cells=cells(volts), temps=temps, flaws=flaws,
            cell_max_v=max(volts) / 1000, cell_min_v=min(volts) / 1000,
        )  # fmt: skip
    last = seconds[-1]
    state(db, one, now - timedelta(seconds=3600 - last), len(seconds), **driven(last))
    two = vehicle(db, CHARGING, first_seen_at=now - timedelta(minutes=5))
    standing = {"vehicle_state": 2, "charge_state": 1, "speed_kmh": 0.0, "soc_pct": 40, "total_voltage_v": 380.2}
    report(db, two, now - timedelta(seconds=20), edition=25, door=1, **standing)
    state(db, two, now - timedelta(seconds=20), 1, edition=25, door=1, total_current_a=-60.5, **standing)
    three = vehicle(db, SILENT, first_seen_at=now - timedelta(days=30))
    report(db, three, now - timedelta(days=1), vehicle_state=2, charge_state=3, soc_pct=55)
    state(db, three, now - timedelta(days=1), 1, vehicle_state=2, charge_state=3, soc_pct=55)
    vehicle(db, IMPORTED, registered=True, model="E2")
    for number in range(7):
        insert(
            db, "dead_letters", partition=number % 2, offset=100 + number // 2, position=number,
            received_at=now - timedelta(minutes=number // 2), reason=(1, 10)[number % 2], detail=number,
            door=1 + number % 2, codec=1, vin=VIN if number % 3 else None, peer="127.0.0.1:5000", client=None,
            frame=b"##\x02" + bytes([number]),
        )  # fmt: skip
    for number, command in enumerate((1, 4, 1)):
        insert(
            db, "logins", partition=0, offset=number, position=0, received_at=now - timedelta(hours=3 - number),
            time=now - timedelta(hours=3 - number), command=command, edition=16, door=1, vin=VIN, vehicle_id=one,
            serial=number, iccid="89860000000000000001", pack_codes=["P1", "P2"], username=None,
        )  # fmt: skip
    for partition in (0, 1):
        insert(
            db,
            "ledger",
            partition=partition,
            frames=200,
            rows=181,
            duplicates=3,
            conflicts=1,
            rejected=4,
            sessions=9,
            other=2,
        )
