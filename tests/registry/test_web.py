"""The registry over HTTP: asked, changed, imported; and who may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from services.settings import Settings
from services.store.queries import Queries
from services.store.registry import PostgresRegistry
from services.web.app import create_app
from services.web.registry import BODY_BYTES_MAX, ImportAnswer, ModelPage, RegistryModel, RegistryPage, RegistryVehicle
from tests.web import rows
from tests.web.test_problems import problem

pytestmark = pytest.mark.database
CSV = {"Content-Type": "text/csv"}
VEHICLES, MODELS = "/v1/registry/vehicles", "/v1/registry/models"


@asynccontextmanager
async def client_of(dsn: str, peer: str = "127.0.0.1", **web: Any) -> AsyncIterator[httpx.AsyncClient]:
    queries, registry = Queries(dsn), PostgresRegistry(dsn)
    app = create_app(Settings.read(overrides={"web": web}), queries, now=lambda: rows.NOW, registry=registry)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as made:
        yield made
    await queries.close()
    await registry.close()


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(dsn) as made:
        yield made


async def send(client: httpx.AsyncClient, text: str | bytes, path: str = VEHICLES, **query: Any) -> httpx.Response:
    content = text.encode() if isinstance(text, str) else text
    return await client.post(f"{path}/import", content=content, headers=CSV, params=query)


async def test_put_patch_and_retire(client: httpx.AsyncClient) -> None:
    made = await client.put(f"{VEHICLES}/V1", json={"model": "m1", "usage": "出租车", "battery_kwh": 60, "cells": 96})
    assert made.status_code == 201, made.text
    row = made.json()
    RegistryVehicle.model_validate(row)
    assert (row["state"], row["usage"], row["battery_kwh"], row["upload"]) == ("registered", "taxi", 60, "periodic")
    assert row["unknown"] == [
        "fleet", "region", "battery_ah", "chemistry", "battery_supplier", "probes", "certified_kwh_per_100km"
    ]  # fmt: skip
    changed = (await client.patch(f"{VEHICLES}/V1", json={"cells": None, "upload": "on_change"})).json()
    assert (changed["cells"], changed["upload"], changed["model"]) == (None, "on_change", "m1")
    whole = await client.put(f"{VEHICLES}/V1", json={"fleet": "f"})
    assert whole.status_code == 200
    assert (whole.json()["model"], whole.json()["fleet"], whole.json()["upload"]) == (None, "f", "periodic")
    assert whole.json()["registered_at"] == row["registered_at"]
    gone = (await client.delete(f"{VEHICLES}/V1")).json()
    assert gone["state"] == "retired"
    assert (await client.put(f"{VEHICLES}/V1", json={})).json()["state"] == "registered"


async def test_what_cannot_be_set_is_told_all_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.put(
        f"{VEHICLES}/V1", json={"cells": 0, "usage": "tank", "battery_kwh": "much", "plate": "京A1"}
    )
    found = problem(answer, 422)
    assert found.errors is not None
    assert {error.parameter for error in found.errors} == {"cells", "usage", "battery_kwh"}
    problem(await client.put(f"{VEHICLES}/V1", json={"owner": "me"}), 422)
    problem(await client.put(f"{VEHICLES}/V 1", json={}), 422)
    problem(await client.patch(f"{VEHICLES}/V1", json={}), 404)
    problem(await client.delete(f"{VEHICLES}/V1"), 404)
    problem(await client.get(f"{VEHICLES}/V1"), 404)


async def test_a_vehicle_has_what_its_model_says(client: httpx.AsyncClient) -> None:
    made = await client.put(f"{MODELS}/秦 PLUS", json={"powertrain": "纯电动", "battery_ah": 150, "cells": 96})
    assert made.status_code == 201, made.text
    await client.put(f"{VEHICLES}/V1", json={"model": "秦 PLUS", "cells": 90})
    row = (await client.get(f"{VEHICLES}/V1")).json()
    assert row["model_known"]
    assert (row["battery_ah"], row["effective"]["battery_ah"], row["effective"]["cells"]) == (None, 150, 90)
    assert "battery_ah" not in row["unknown"]
    model = RegistryModel.model_validate((await client.get(f"{MODELS}/秦 PLUS")).json()).model_dump()
    assert (model["powertrain"], model["vehicles"], model["current_inverted"]) == ("BEV", 1, False)
    assert (await client.patch(f"{MODELS}/秦 PLUS", json={"current_inverted": True})).json()["current_inverted"] is True
    assert (await client.delete(f"{MODELS}/秦 PLUS")).status_code == 204
    for method in ("GET", "DELETE"):
        problem(await client.request(method, f"{MODELS}/秦 PLUS"), 404)
    problem(await client.patch(f"{MODELS}/秦 PLUS", json={}), 404)


async def test_a_sheet_is_imported_and_listed_in_pages(client: httpx.AsyncClient) -> None:
    text = "车架号,车型,用途\r\n" + "".join(f"V{n:03},车{n % 2},出租车\r\n" for n in range(25))
    done = await send(client, text.encode("gb18030"))
    answer = ImportAnswer.model_validate(done.json())
    assert (answer.inserted, answer.encoding, answer.unknown_models) == (25, "gb18030", {"车0": 13, "车1": 12})
    assert (await send(client, text)).json()["unchanged"] == 25
    page = (await client.get(VEHICLES, params={"limit": 10, "usage": "taxi"})).json()
    RegistryPage.model_validate(page)
    seen = [row["vin"] for row in page["vehicles"]]
    while page["next"]:
        page = (await client.get(page["next"])).json()
        seen += [row["vin"] for row in page["vehicles"]]
    assert seen == [f"V{n:03}" for n in range(25)]
    assert (await client.get(VEHICLES, params={"model": "车1"})).json()["count"] == 12
    assert (await client.get(VEHICLES, params={"state": "retired"})).json()["count"] == 0


async def test_a_page_as_csv_can_be_sent_back(client: httpx.AsyncClient) -> None:
    await send(client, "vin,model,battery_kwh\nV1,m,60\nV2,,\n")
    page = await client.get(VEHICLES, params={"format": "csv", "limit": 1})
    assert page.headers["content-type"].startswith("text/csv")
    assert 'rel="next"' in page.headers["link"]
    whole = await client.get(VEHICLES, headers={"Accept": "text/csv"})
    assert (await send(client, whole.content)).json()["unchanged"] == 2
    problem(await client.get(VEHICLES, params={"format": "parquet"}), 422)
    await send(client, "model,cells\nm,96\n", MODELS)
    models = await client.get(MODELS, params={"format": "csv"})
    assert (await send(client, models.content, MODELS)).json()["unchanged"] == 1


async def test_models_are_listed(client: httpx.AsyncClient) -> None:
    await send(client, "model,battery_kwh\nm1,60\nm2,70\nn1,80\n", MODELS)
    page = ModelPage.model_validate((await client.get(MODELS, params={"limit": 2})).json())
    assert [row.model_dump()["model"] for row in page.models] == ["m1", "m2"]
    assert page.next is not None
    assert [row["model"] for row in (await client.get(page.next)).json()["models"]] == ["n1"]
    assert (await client.get(MODELS, params={"model": "n"})).json()["count"] == 1
    problem(await client.get(MODELS, params={"model": "\0"}), 422)


async def test_a_sheet_with_mistakes_changes_nothing(client: httpx.AsyncClient) -> None:
    text = "vin,cells\nV1,96\nV2,many\nV 3,1\n"
    answer = await send(client, text)
    assert answer.status_code == 422
    told = answer.json()
    assert told["type"] == "urn:nevstream:problem:bad-sheet"
    assert [(m["line"], m["column"]) for m in told["mistakes"]] == [(3, "cells"), (4, "vin")]
    assert (await client.get(VEHICLES)).json()["count"] == 0
    done = (await send(client, text, skip_bad=True)).json()
    assert (done["inserted"], done["skipped"], len(done["mistakes"])) == (1, 2, 2)
    assert (await send(client, "vin,nothing\n", skip_bad=True)).status_code == 422


async def test_dry_run_and_retire_missing(client: httpx.AsyncClient) -> None:
    await send(client, "vin\nV1\nV2\nV3\n")
    assert (await send(client, "vin\nV1\nV2\n", dry_run=True, retire_missing=True)).json()["retired"] == 1
    assert (await client.get(f"{VEHICLES}/V3")).json()["state"] == "registered"
    assert (await send(client, "vin\nV1\nV2\n", retire_missing=True)).json()["retired"] == 1
    assert (await client.get(f"{VEHICLES}/V3")).json()["state"] == "retired"
    problem(await send(client, "vin\nV9\n", retire_missing=True), 409)
    problem(await send(client, "vin\nV9\n", retire_missing=True, skip_bad=True), 422)
    problem(await send(client, "vin\n", retire_missing=True), 409)


async def test_a_body_that_is_too_long(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"vin\n"
        while True:
            yield b"V" * 1_000_000

    answer = await client.post(f"{VEHICLES}/import", content=chunks(), headers=CSV)
    problem(answer, 413)
    assert BODY_BYTES_MAX < 2**27


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", f"{VEHICLES}/V1", b"{}"), ("PATCH", f"{VEHICLES}/V1", b"{}"), ("DELETE", f"{VEHICLES}/V1", b""),
        ("PUT", f"{MODELS}/m", b"{}"), ("PATCH", f"{MODELS}/m", b"{}"), ("DELETE", f"{MODELS}/m", b""),
        ("POST", f"{VEHICLES}/import", b"vin\nV1\n"), ("POST", f"{MODELS}/import", b"model\nm\n"),
    ],
)  # fmt: skip
async def test_changes_are_taken_from_this_machine_only(dsn: str, method: str, path: str, body: bytes) -> None:
    kind = {"Content-Type": "text/csv" if method == "POST" else "application/json"}
    for peer, web, headers in (
        ("10.0.0.5", {}, {}), ("127.0.0.1", {"allow_changes": False}, {}), ("127.0.0.1", {"host": "0.0.0.0"}, {}),
        ("127.0.0.1", {}, {"Origin": "https://evil.example"}), ("127.0.0.1", {}, {"Host": "evil.example"}),
    ):  # fmt: skip
        async with client_of(dsn, peer, **web) as client:  # type: ignore[arg-type]
            problem(await client.request(method, path, content=body, headers=kind | headers), 403)
    async with client_of(dsn) as client:
        if method != "DELETE":
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            problem(await client.request(method, path, content=body, headers=form), 415)
        assert (await client.get(VEHICLES)).json()["count"] == 0
        assert (await client.get(MODELS)).json()["count"] == 0


async def test_asking_is_taken_from_everywhere(dsn: str) -> None:
    async with client_of(dsn, "10.0.0.5") as client:
        assert (await client.get(VEHICLES)).status_code == 200
        problem(await client.get(VEHICLES, params={"modle": "m"}), 422)


async def test_without_a_registry_it_says_so(dsn: str) -> None:
    queries = Queries(dsn)
    transport = httpx.ASGITransport(app=create_app(Settings(), queries), client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        assert "nevstream vehicles" in problem(await client.get(VEHICLES), 404).how_to_fix
    await queries.close()
