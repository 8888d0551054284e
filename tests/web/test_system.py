"""Overview, catalogue, health, metrics, the landing page, and OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from fastapi.openapi.models import OpenAPI
from pydantic import BaseModel

from schemas.signals import SIGNALS
from services import metrics
from services.store.migrations import newest_migration
from services.store.queries import Queries
from services.web import models
from services.web.app import STATIC
from tests.web import rows
from tests.web.conftest import client_of


async def test_overview(client: httpx.AsyncClient) -> None:
    overview = models.Overview.model_validate((await client.get("/v1/overview")).json())
    assert (overview.vehicles, overview.ever_reported) == (4, 3)
    reporting = overview.reporting
    assert (reporting.total, reporting.driving, reporting.charging, reporting.parked, reporting.unknown) == (
        2,
        1,
        1,
        0,
        0,
    )
    ledger = overview.ledger
    assert (ledger.frames, ledger.rows) == (400, 362)
    assert ledger.frames == sum(getattr(ledger, name) for name in type(ledger).model_fields if name != "frames")
    day = models.Overview.model_validate((await client.get("/v1/overview?reporting_within_s=86400")).json())
    assert (day.reporting.total, day.reporting.parked) == (3, 1)


async def test_overview_and_list_call_a_vehicle_the_same(db: psycopg.Connection[Any], queries: Queries) -> None:
    """One rule in SQL and one in Python: every pair of states, with those the standard does not know."""
    number = 0
    for vehicle_state in (None, 1, 2, 3):
        for charge_state in (None, 1, 2, 3, 4):
            number += 1
            one = rows.vehicle(db, f"LTEST{number:012}")
            rows.state(db, one, rows.NOW, 1, vehicle_state=vehicle_state, charge_state=charge_state)
    async with client_of(queries) as client:
        listed = [v["activity"] for v in (await client.get("/v1/vehicles")).json()["vehicles"]]
        counted = (await client.get("/v1/overview")).json()["reporting"]
    assert counted.pop("total") == len(listed) == number
    assert counted == {name: listed.count(name) for name in counted}


async def test_an_empty_database_is_all_zeroes(queries: Queries) -> None:
    async with client_of(queries) as client:
        overview = models.Overview.model_validate((await client.get("/v1/overview")).json())
        assert (overview.vehicles, overview.ledger.frames, overview.newest_data_time) == (0, 0, None)
        assert (await client.get("/v1/vehicles")).json()["vehicles"] == []
        assert (await client.get("/v1/dead-letters")).json()["dead_letters"] == []


async def test_signals(client: httpx.AsyncClient) -> None:
    signals = {s.name: s for s in models.Signals.model_validate((await client.get("/v1/signals")).json()).signals}
    assert list(signals)[: len(SIGNALS)] == [signal.name for signal in SIGNALS]
    assert signals["speed_kmh"].resolution == 0.1
    assert signals["vehicle_state"].codes == {"1": "started", "2": "off", "3": "other"}
    assert signals["hv_dcdc_state"].codes == {"1": "working", "2": "open"}
    assert signals["alarm_level"].codes == {}
    assert signals["cells_v"].unit == "V"


async def test_health_needs_no_database() -> None:
    async with client_of(Queries("host=127.0.0.1 port=1")) as client:
        assert (await client.get("/healthz")).json()["status"] == "alive"
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/")).status_code == 200


async def test_ready_says_which_schema(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).json() == {"status": "ready", "schema_version": newest_migration()}


async def test_not_ready_before_migration(empty_dsn: str) -> None:
    queries = Queries(empty_dsn)
    async with client_of(queries) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "nevstream migrate" in answer.json()["how_to_fix"]
        answer = await client.get("/v1/vehicles")
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:nevstream:problem:no-schema")
    await queries.close()


async def test_not_ready_with_an_older_schema(db: psycopg.Connection[Any], queries: Queries) -> None:
    db.execute("DELETE FROM schema_migrations WHERE name = %s", [newest_migration()])
    async with client_of(queries) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert newest_migration() in answer.json()["detail"]


async def test_metrics(client: httpx.AsyncClient) -> None:
    metrics.FRAMES_RECEIVED.labels("mqtt").inc(0)
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'nevstream_gateway_frames_received_total{door="mqtt"}' in answer.text


# -- the landing page --------------------------------------------------------------------------------
async def test_landing_page_and_all_that_it_loads(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    loaded = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert len(loaded) == 2
    for path in loaded:
        assert (await client.get(path)).status_code == 200
    assert (await client.get("/static/../app.py")).status_code == 404
    assert (await client.get("/static/none.js")).headers["content-type"] == "application/problem+json"


async def test_the_page_loads_nothing_from_elsewhere_and_its_calls_exist(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for file in STATIC.iterdir():
        text = file.read_text("utf-8")
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), file
        assert "innerHTML" not in text, "a VIN or a peer's text must never become markup"
        for called in re.findall(r"[`\"'](/v1/[^`\"'?]*)", text):
            shape = re.sub(r"\$\{[^}]*\}", "{}", called)
            assert shape in [re.sub(r"\{[^}]*\}", "{}", path) for path in paths], called


async def test_security_headers_everywhere(client: httpx.AsyncClient) -> None:
    for path in ("/", "/v1/vehicles", "/nothing", "/metrics", "/static/style.css"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers


# -- OpenAPI -----------------------------------------------------------------------------------------
def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


async def test_openapi_is_valid_and_says_something_of_everything(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    OpenAPI.model_validate(document)
    for reference in references(document):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    tags = {tag["name"] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
            assert set(operation["tags"]) <= tags, path
            assert all(parameter.get("description") for parameter in operation.get("parameters", [])), path
            assert {"404", "422", "503"} <= set(operation["responses"]), path


MODELS = [
    model
    for model in vars(models).values()
    if isinstance(model, type) and issubclass(model, BaseModel) and (model.model_config.get("json_schema_extra"))
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_examples_are_what_they_are_examples_of(model: type[BaseModel]) -> None:
    extra = model.model_config["json_schema_extra"]
    assert isinstance(extra, dict)
    for example in extra["examples"]:  # type: ignore[union-attr]
        model.model_validate(example)


async def test_not_ready_while_a_pipeline_has_stopped(client: httpx.AsyncClient) -> None:
    metrics.PIPELINE_HALTED.set(1)
    try:
        answer = await client.get("/readyz")
    finally:
        metrics.PIPELINE_HALTED.set(0)
    assert answer.status_code == 503
    assert answer.json()["type"].endswith("pipeline-halted")
