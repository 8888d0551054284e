"""Vehicles, their newest report and their logins."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg

from services.store.queries import Queries
from services.web import models
from tests.web import rows
from tests.web.conftest import client_of


async def test_vehicles_by_vin_with_their_state(client: httpx.AsyncClient) -> None:
    page = models.VehiclePage.model_validate((await client.get("/v1/vehicles")).json())
    assert [v.vin for v in page.vehicles] == [rows.VIN, rows.CHARGING, rows.SILENT, rows.IMPORTED]
    assert [v.activity for v in page.vehicles] == ["driving", "charging", "parked", "never_reported"]
    assert [v.reporting for v in page.vehicles] == [True, True, False, False]
    first = page.vehicles[0]
    assert (first.model, first.fleet, first.registered, first.door, first.edition) == (
        "E1",
        "north",
        True,
        "mqtt",
        2016,
    )
    assert first.soc_pct == 90 - 3590 // 300
    assert first.speed_kmh == rows.driven(3590)["speed_kmh"]
    assert first.last_data_time == rows.NOW - timedelta(seconds=10)


async def test_times_carry_the_fleets_offset(client: httpx.AsyncClient) -> None:
    vehicle = (await client.get(f"/v1/vehicles/{rows.VIN}")).json()
    assert vehicle["first_seen_at"] == "2026-11-24T11:00:00+08:00"


async def test_pages_of_vehicles_have_no_holes_and_no_doubles(client: httpx.AsyncClient) -> None:
    seen: list[str] = []
    path: str | None = "/v1/vehicles?limit=1&vin=LTEST"
    while path:
        page = (await client.get(path)).json()
        seen += [v["vin"] for v in page["vehicles"]]
        path = page["next"]
    assert seen == [rows.VIN, rows.CHARGING, rows.SILENT, rows.IMPORTED]


async def test_prefix_takes_percent_and_underscore_literally(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/vehicles", params={"vin": "%"})).json()["count"] == 0
    assert (await client.get("/v1/vehicles", params={"vin": "LTEST_"})).json()["count"] == 0
    assert (await client.get("/v1/vehicles", params={"vin": "LTEST"})).json()["count"] == 4


async def test_one_vehicle_with_its_counts(client: httpx.AsyncClient) -> None:
    vehicle = models.VehicleDetail.model_validate((await client.get(f"/v1/vehicles/{rows.VIN}")).json())
    assert (vehicle.reports, vehicle.logins, vehicle.dead_letters, vehicle.has_password) == (360, 3, 4, False)
    imported = models.VehicleDetail.model_validate((await client.get(f"/v1/vehicles/{rows.IMPORTED}")).json())
    assert (imported.reports, imported.last_data_time, imported.activity) == (0, None, "never_reported")


async def test_the_password_hash_never_leaves(db: psycopg.Connection[Any], queries: Queries) -> None:
    rows.vehicle(db, rows.VIN, password_hash="$argon2id$secret")
    async with client_of(queries) as client:
        answer = await client.get(f"/v1/vehicles/{rows.VIN}")
    assert answer.json()["has_password"] is True
    assert "argon2" not in answer.text


async def test_latest_report_whole(client: httpx.AsyncClient) -> None:
    latest = models.Latest.model_validate((await client.get(f"/v1/vehicles/{rows.VIN}/latest")).json())
    assert latest.time == rows.NOW - timedelta(seconds=10)
    assert latest.age_s == 10.0
    assert latest.signals["speed_kmh"] == rows.driven(3590)["speed_kmh"]
    assert latest.meanings["vehicle_state"] == "started"
    assert latest.meanings["charge_state"] == "not_charging"
    assert latest.flaws == {"insulation_resistance_kohm": "invalid"}
    assert latest.kind == "realtime"
    [pack] = latest.packs
    assert (pack.no, pack.voltage_v, pack.current_a, pack.cell_total, pack.cells_missing) == (1, 400.0, 12.5, 96, 0)
    assert pack.cells_v[0] == (3700 + 359 % 23) / 1000
    [probes] = latest.temps
    assert (probes.temps_c, probes.flaws) == ([24, 25, 26, None], {"4": "abnormal"})


async def test_latest_puts_a_split_report_together(db: psycopg.Connection[Any], queries: Queries) -> None:
    rows.days(db, rows.NOW.date(), rows.NOW.date())
    one = rows.vehicle(db, rows.VIN)
    rows.report(db, one, rows.NOW, soc_pct=50, cells=rows.cells([3700] * 3, total=6), alarm_flags=0b1000000001)
    rows.report(db, one, rows.NOW, part=4, cells=rows.cells([3800, 0xFFFE], first=4, total=6), notes=1)
    rows.report(db, one, rows.NOW - timedelta(seconds=1), soc_pct=51)
    rows.state(db, one, rows.NOW, 3, part=4)
    async with client_of(queries) as client:
        latest = models.Latest.model_validate((await client.get(f"/v1/vehicles/{rows.VIN}/latest")).json())
    assert (latest.parts, latest.signals["soc_pct"], latest.notes) == (2, 50, ["truncated_block"])
    assert latest.alarms == ["temperature_difference", "rechargeable_system_mismatch"]
    [pack] = latest.packs
    assert pack.cells_v == [3.7, 3.7, 3.7, 3.8, None]
    assert (pack.cell_total, pack.cells_missing, pack.flaws) == (6, 1, {"5": "abnormal"})


async def test_a_vehicle_without_report_says_so(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/vehicles/{rows.IMPORTED}/latest")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:nevstream:problem:no-report")


async def test_logins_newest_first_and_in_pages(client: httpx.AsyncClient) -> None:
    path = f"/v1/vehicles/{rows.VIN}/logins"
    page = models.LoginPage.model_validate((await client.get(path)).json())
    assert [login.event for login in page.logins] == ["vehicle_login", "vehicle_logout", "vehicle_login"]
    assert page.logins[0].pack_codes == ["P1", "P2"]
    assert page.next is None
    seen: list[datetime] = []
    following: str | None = f"{path}?limit=2"
    while following:
        part = models.LoginPage.model_validate((await client.get(following)).json())
        seen += [login.received_at for login in part.logins]
        following = part.next
    assert seen == [login.received_at for login in page.logins]
