"""The registry in PostgreSQL: merges, single changes, retiring, lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from schemas.registry.columns import MODELS, VEHICLES
from schemas.registry.desk import Imported, VehicleFilter
from schemas.registry.sheet import Parsed, read_sheet
from services.errors import SchemaMissing, UsageError
from services.store.directory import add_vehicles, set_password
from services.store.registry import PostgresRegistry

pytestmark = pytest.mark.database
ZONE = ZoneInfo("Asia/Shanghai")
Db = psycopg.Connection[Any]


@pytest.fixture
async def registry(dsn: str) -> AsyncIterator[PostgresRegistry]:
    made = PostgresRegistry(dsn)
    yield made
    await made.close()


def parsed(text: str, sheet: object = VEHICLES) -> Parsed:
    found = read_sheet(text.encode(), sheet, ZONE)  # type: ignore[arg-type]
    assert not found.mistakes
    return found


def counts(done: Imported) -> tuple[int, int, int]:
    return done.inserted, done.changed, done.unchanged


def all_of(db: Db, table: str = "vehicles") -> list[Any]:
    return db.execute(f"SELECT to_jsonb(t) FROM {table} t ORDER BY 1").fetchall()


SHEET = "vin,model,fleet,battery_kwh,cells,upload\nV1,m1,east,60,96,\nV2,m1,west,,,on_change\nV3,,,,,\n"


async def test_a_sheet_is_merged_and_the_same_again_changes_nothing(registry: PostgresRegistry, db: Db) -> None:
    assert counts(await registry.load(parsed(SHEET))) == (3, 0, 0)
    before = all_of(db)
    again = await registry.load(parsed(SHEET))
    assert (counts(again), dict(again.columns)) == ((0, 0, 3), {})
    assert all_of(db) == before
    assert before[0][0]["registered"] is True
    assert before[0][0]["upload"] == "periodic"


async def test_empty_leaves_and_a_dash_clears(registry: PostgresRegistry) -> None:
    await registry.load(parsed(SHEET))
    done = await registry.load(parsed("vin,model,battery_kwh,upload\nV1,,-,\nV2,m2,70,-\n"))
    assert counts(done) == (0, 2, 0)
    assert dict(done.columns) == {"model": 1, "battery_kwh": 2, "upload": 1}
    one, two = await registry.vehicle("V1"), await registry.vehicle("V2")
    assert one is not None
    assert two is not None
    assert (one["model"], one["fleet"], one["battery_kwh"], one["cells"]) == ("m1", "east", None, 96)
    assert (two["model"], two["fleet"], two["battery_kwh"], two["upload"]) == ("m2", "west", 70, "periodic")


async def test_a_dry_run_tells_the_same_and_writes_nothing(registry: PostgresRegistry, db: Db) -> None:
    await registry.load(parsed("vin,model\nV1,m9\nV9,m9\n"))
    before = all_of(db)
    told = await registry.load(parsed(SHEET), dry_run=True, retire_missing=True)
    assert all_of(db) == before
    done = await registry.load(parsed(SHEET), retire_missing=True)
    assert (counts(told), told.retired, told.columns) == (counts(done), done.retired, done.columns)
    assert (counts(done), done.retired) == ((2, 1, 0), 1)


async def test_a_vehicle_known_from_its_reports_becomes_registered(registry: PostgresRegistry, db: Db) -> None:
    db.execute("INSERT INTO vehicles (vin, first_seen_at) VALUES ('V1', now())")
    assert [
        row["vin"] for row in (await registry.vehicles(VehicleFilter(state="seen"), after="", limit=9)).dicts()
    ] == ["V1"]
    assert counts(await registry.load(parsed("vin,model\nV1,\n"))) == (0, 1, 0)
    row = await registry.vehicle("V1")
    assert row is not None
    assert row["registered"]
    assert row["registered_at"] is not None


async def test_retire_missing_and_coming_back(registry: PostgresRegistry) -> None:
    await registry.load(parsed(SHEET))
    done = await registry.load(parsed("vin,fleet\nV1,north\nV2,\n"), retire_missing=True)
    assert (counts(done), done.retired) == ((0, 1, 1), 1)
    gone = await registry.vehicle("V3")
    assert gone is not None
    assert (gone["registered"], gone["retired_at"] is None) == (False, False)
    back = await registry.load(parsed("vin\nV3\n"))
    assert (counts(back), back.reinstated) == ((0, 1, 0), 1)
    again = await registry.vehicle("V3")
    assert again is not None
    assert (again["registered"], again["retired_at"], again["registered_at"]) == (True, None, gone["registered_at"])


async def test_most_of_the_registry_is_retired_only_when_it_is_said(registry: PostgresRegistry, db: Db) -> None:
    await registry.load(parsed(SHEET))
    before = all_of(db)
    with pytest.raises(UsageError, match=r"2 of 3 registered vehicles .* --retire-most"):
        await registry.load(parsed("vin,fleet\nV1,north\n"), retire_missing=True)
    assert all_of(db) == before
    with pytest.raises(UsageError, match="names no vehicle"):
        await registry.load(parsed("vin\n"), retire_missing=True, retire_most=True)
    assert (await registry.load(parsed("vin\nV1\n"), retire_missing=True, retire_most=True)).retired == 2


async def test_models_that_the_catalogue_does_not_have_are_named(registry: PostgresRegistry) -> None:
    models = parsed("model,battery_ah,cells,current_inverted\nm1,150,96,\n", MODELS)
    assert counts(await registry.load(models)) == (1, 0, 0)
    assert counts(await registry.load(models)) == (0, 0, 1)
    done = await registry.load(parsed("vin,model,cells\nV1,m1,\nV2,m2,90\nV3,m2,\n"))
    assert dict(done.unknown_models) == {"m2": 2}
    rows = (await registry.vehicles(VehicleFilter(), after="", limit=9)).dicts()
    assert [(r["model_known"], r["eff_cells"], r["eff_battery_ah"]) for r in rows] == [
        (True, 96, 150), (False, 90, None), (False, None, None)
    ]  # fmt: skip
    assert [(m["model"], m["vehicles"], m["current_inverted"]) for m in (
        await registry.models(prefix="", after="", limit=9)
    ).dicts()] == [("m1", 1, False)]  # fmt: skip


async def test_one_vehicle(registry: PostgresRegistry) -> None:
    assert await registry.change(VEHICLES, "V1", {"model": "m"}, whole=False, create=False) is None
    assert counts(await registry.change(VEHICLES, "V1", {"model": "m", "cells": 9}, whole=True, create=True)) == (
        1,
        0,
        0,
    )  # type: ignore[arg-type]
    done = await registry.change(VEHICLES, "V1", {"fleet": "f"}, whole=False, create=False)
    assert done is not None
    assert dict(done.columns) == {"fleet": 1}
    done = await registry.change(VEHICLES, "V1", {"fleet": "f"}, whole=True, create=True)
    assert done is not None
    assert dict(done.columns) == {"model": 1, "cells": 1}


async def test_what_is_patched_is_not_registered_by_it(registry: PostgresRegistry, db: Db) -> None:
    db.execute("INSERT INTO vehicles (vin, first_seen_at) VALUES ('V1', now())")
    done = await registry.change(VEHICLES, "V1", {"fleet": "f"}, whole=False, create=False)
    assert done is not None
    assert done.changed == 1
    row = await registry.vehicle("V1")
    assert row is not None
    assert (row["fleet"], row["registered"], row["registered_at"]) == ("f", False, None)


async def test_retire(registry: PostgresRegistry) -> None:
    await registry.load(parsed(SHEET))
    done = await registry.retire(["V1", "V2", "V9"])
    assert (done.retired, done.already, done.unknown) == (("V1", "V2"), (), ("V9",))
    assert (await registry.retire(["V1"])).already == ("V1",)
    table = await registry.vehicles(VehicleFilter(state="registered"), after="", limit=9)
    assert [row["vin"] for row in table.dicts()] == ["V3"]


async def test_added_and_retired_by_hand_and_back(registry: PostgresRegistry, dsn: str) -> None:
    add_vehicles(dsn, ["V1"])
    first = await registry.vehicle("V1")
    assert first is not None
    assert first["registered_at"] is not None
    await registry.retire(["V1"])
    assert add_vehicles(dsn, ["V1"]) == 1
    back = await registry.vehicle("V1")
    assert back is not None
    assert (back["registered"], back["retired_at"], back["registered_at"]) == (True, None, first["registered_at"])
    set_password(dsn, "V2", "x")
    made = await registry.vehicle("V2")
    assert made is not None
    assert made["registered_at"] is not None


async def test_lists_filter_and_page(registry: PostgresRegistry) -> None:
    text = "vin,model,fleet,region,usage\n" + "".join(
        f"{'AB'[n % 2]}{n:03},m{n % 3},f{n % 2},r{n % 5},{'taxi' if n % 4 else 'bus'}\n" for n in range(40)
    )
    await registry.load(parsed(text))

    async def vins(after: str = "", limit: int = 99, **wanted: Any) -> list[str]:
        return [
            row["vin"] for row in (await registry.vehicles(VehicleFilter(**wanted), after=after, limit=limit)).dicts()
        ]

    assert len(await vins()) == 40
    assert await vins(limit=3) == ["A000", "A002", "A004"]
    assert await vins(after="A004", limit=1) == ["A006"]
    assert len(await vins(prefix="B")) == 20
    assert len(await vins(model="m1", region="r2")) == 3
    assert len(await vins(usage="bus", fleet="f0")) == 10
    assert await vins(state="retired") == []


async def test_vehicles_registered_in_a_year_by_model(registry: PostgresRegistry) -> None:
    await registry.load(parsed("model,powertrain\nm1,BEV\n", MODELS))
    lines = ("V1,m1,2025-12-31", "V2,m1,2026-01-01", "V3,m1,2026-12-31T23:59:59", "V4,x,2026/6/1", "V5,,2026-06-01")
    await registry.load(parsed("\n".join(("vin,model,registered_at", *lines))))
    since = datetime(2026, 1, 1, tzinfo=ZONE)
    rows = (await registry.registrations(since, datetime(2027, 1, 1, tzinfo=ZONE))).dicts()
    assert [(r["named"], r["vehicles"], r["powertrain"]) for r in rows] == [
        ("m1", 2, "BEV"), ("x", 1, None), (None, 1, None)
    ]  # fmt: skip


async def test_a_registration_without_a_date_counts_from_the_first_report(registry: PostgresRegistry, db: Db) -> None:
    """Registered by a version that kept no date; one that was never registered does not count."""
    db.execute(
        "INSERT INTO vehicles (vin, registered, first_seen_at, model) VALUES"
        " ('V1', true, '2025-05-05', 'm'), ('V2', false, '2025-05-05', 'm')"
    )
    since, until = datetime(2025, 1, 1, tzinfo=ZONE), datetime(2026, 1, 1, tzinfo=ZONE)
    assert [row["vehicles"] for row in (await registry.registrations(since, until)).dicts()] == [1]
    await registry.load(parsed("vin,fleet\nV1,f\n"))
    row = await registry.vehicle("V1")
    assert row is not None
    assert row["registered_at"] == row["first_seen_at"]


async def test_dropping_a_model_keeps_its_vehicles(registry: PostgresRegistry) -> None:
    await registry.load(parsed("model\nm1\n", MODELS))
    await registry.load(parsed("vin,model\nV1,m1\n"))
    assert await registry.drop_model("m1")
    assert not await registry.drop_model("m1")
    row = await registry.vehicle("V1")
    assert row is not None
    assert (row["model"], row["model_known"]) == ("m1", False)


async def test_statistics_hear_of_changed_facts(registry: PostgresRegistry, db: Db, dsn: str) -> None:
    await registry.load(parsed(SHEET))
    db.execute("CREATE TABLE touched (vehicle_id bigint)")
    db.execute("DROP FUNCTION IF EXISTS statistics_touch_days(bigint[])")
    db.execute(
        "CREATE FUNCTION statistics_touch_days(vehicle_ids bigint[]) RETURNS void LANGUAGE sql AS"
        " 'INSERT INTO touched SELECT unnest(vehicle_ids)'"
    )
    ids = dict(db.execute("SELECT vin, vehicle_id FROM vehicles").fetchall())

    def touched() -> set[str]:
        rows = {number for (number,) in db.execute("DELETE FROM touched RETURNING vehicle_id").fetchall()}
        return {vin for vin, number in ids.items() if number in rows}

    await registry.load(parsed("vin,fleet\nV1,east\nV2,south\n"))
    assert touched() == {"V2"}
    await registry.load(parsed("vin,fleet\nV3,x\n"), dry_run=True)
    assert touched() == set()
    await registry.load(parsed("model,battery_ah\nm1,150\nm7,1\n", MODELS))
    assert touched() == {"V1", "V2"}
    await registry.retire(["V3"])
    assert touched() == {"V3"}
    await registry.load(parsed("vin\nV1\nV2\n"), retire_missing=True)
    assert touched() == set()
    await registry.drop_model("m1")
    assert touched() == {"V1", "V2"}
    add_vehicles(dsn, ["V2", "V3"])
    assert touched() == {"V3"}


async def test_a_hundred_thousand_lines_in_one_go(registry: PostgresRegistry) -> None:
    text = "车架号,车型,车队,电池能量,单体数\n" + "".join(
        f"LNEVA000XSA{n:06d},m{n % 20},车队{n % 300},60.{n % 10},96\n" for n in range(100_000)
    )
    sheet = parsed(text)
    began = datetime.now(UTC)
    assert counts(await registry.load(sheet)) == (100_000, 0, 0)
    assert counts(await registry.load(sheet)) == (0, 0, 100_000)
    print("two merges of 100,000 lines:", datetime.now(UTC) - began)


async def test_a_database_without_the_schema_says_so(empty_dsn: str) -> None:
    registry = PostgresRegistry(empty_dsn)
    with pytest.raises(SchemaMissing, match="nevstream migrate"):
        await registry.vehicle("V1")
    await registry.close()


async def test_it_does_not_wait_in_a_circle_with_who_registers_the_same_vehicles(
    registry: PostgresRegistry, dsn: str
) -> None:
    """The pipeline holds a known vehicle and then wants a new one; the sheet has both, and takes them in that order."""
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    await registry.load(parsed("vin,fleet\nV1,old\n"))
    async with (
        await psycopg.AsyncConnection.connect(dsn) as pipeline,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as looking,
    ):
        await pipeline.execute("UPDATE vehicles SET first_seen_at = now() WHERE vin = 'V1'")
        loading = asyncio.create_task(registry.load(parsed("vin,fleet\nV1,new\nV5,new\n")))
        while not await (await looking.execute(waiting)).fetchall():  # noqa: ASYNC110 - no event tells of a lock
            await asyncio.sleep(0.01)
        await pipeline.execute("SET lock_timeout = '5s'")
        await pipeline.execute("INSERT INTO vehicles (vin, first_seen_at) VALUES ('V5', now())")
        await pipeline.commit()
        done = await loading
    assert (done.inserted, done.changed) == (0, 2)
    row = await registry.vehicle("V5")
    assert row is not None
    assert (row["fleet"], row["registered"], row["first_seen_at"] is None) == ("new", True, False)
