"""What goes wrong is answered with a problem document that says how to fix it, and nothing of the inside."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.errors import QueryTooSlow, SettingsError, StoreUnavailable
from services.settings import Settings
from services.store.queries import Queries
from services.web import models
from services.web.app import create_app
from tests.web import rows
from tests.web.conftest import client_of

TELEMETRY = f"/v1/vehicles/{rows.VIN}/telemetry"


def problem(answer: httpx.Response, status: int) -> models.Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = models.Problem.model_validate(answer.json())
    assert found.status == status
    assert found.how_to_fix
    return found


class Broken:
    """Queries of which every one raises ``error``."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        async def fail(*_: object, **__: object) -> None:
            raise self.error

        return fail


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("from=yesterday", ["from", "yesterday", "ISO 8601"]),
        ("from=2026-13-01", ["2026-13-01"]),
        ("from=2026-11-24T05:00:00Z&to=2026-11-24T05:00:00Z", ["from", "half-open"]),
        ("from=2026-11-25&to=2026-11-24", ["from", "before"]),
        ("from=2020-01-01&to=2026-01-01", ["from", "400 days"]),
        ("from=0001-01-01", ["from"]),
        ("to=9999-12-31T23:59:59-14:00", ["to"]),
        ("fields=speed", ["speed", "did you mean", "speed_kmh"]),
        ("fields=soc_pct,volatge_v", ["volatge_v", "did you mean"]),
        ("fields=", ["fields"]),
        ("fields=soc_pct;drop table telemetry", ["fields"]),
        ("fields=cells&bucket=5m", ["cells_v", "cell_max_v"]),
        ("bucket=often", ["bucket", "often", "5m"]),
        ("bucket=0s", ["bucket"]),
        ("bucket=367d", ["bucket"]),
        ("limit=0", ["limit", "1"]),
        ("limit=many", ["limit", "many", "whole number"]),
        ("limit=10001", ["limit", "web.rows_max", "10000"]),
        ("cursor=abc", ["cursor", "next_cursor"]),
        ("cursor=1-2", ["cursor"]),
        ("cursor=999999999999999999-2-0", ["cursor"]),
        ("format=xml", ["format", "xml", "parquet"]),
        ("feilds=soc_pct", ["feilds", "did you mean fields"]),
        ("limit=1&limit=2", ["limit", "more than once"]),
    ],
)
async def test_parameters_that_cannot_be_used(client: httpx.AsyncClient, query: str, says: list[str]) -> None:
    found = problem(await client.get(f"{TELEMETRY}?{query}"), 422)
    assert found.instance == TELEMETRY
    assert found.errors
    text = found.detail + found.how_to_fix
    assert all(word in text for word in says), text


@pytest.mark.parametrize(
    "vin",
    ["X" * 18, "a b", "%0d%0aSet-Cookie: a=b", "%00", "' OR 1=1 --", "LTEST%E8%BD%A6", "%09", "..%5c%7f", "%ff"],
)
async def test_identifications_that_are_none(client: httpx.AsyncClient, vin: str) -> None:
    for path in (f"/v1/vehicles/{vin}", f"/v1/vehicles/{vin}/latest", f"/v1/vehicles/{vin}/telemetry"):
        answer = await client.get(path)
        found = problem(answer, 422)
        assert found.errors
        assert found.errors[0].parameter == "vin"
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("vin", ["';DROP--", "LTEST%25", "LTEST_", "{0}", "%s", "a'b"])
async def test_odd_identifications_are_just_not_there(client: httpx.AsyncClient, vin: str) -> None:
    problem(await client.get(f"/v1/vehicles/{vin}"), 404)
    assert (await client.get("/v1/vehicles")).json()["count"] == 4


AWAY = create_app(Settings(), Broken(StoreUnavailable("asked")))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    name=st.sampled_from(["from", "to", "fields", "bucket", "limit", "cursor", "format"]), value=st.text(max_size=40)
)
def test_no_text_in_a_parameter_is_an_accident(name: str, value: str) -> None:
    """Whatever is given is answered or refused before it reaches the store, never with a 500."""

    async def ask() -> int:
        transport = httpx.ASGITransport(app=AWAY, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://nevstream") as client:
            return (await client.get(TELEMETRY, params={name: value})).status_code

    assert asyncio.run(ask()) in (422, 503)


async def test_no_such_path_names_the_nearest(client: httpx.AsyncClient) -> None:
    found = problem(await client.get("/v1/vehicle"), 404)
    assert "/v1/vehicles" in found.how_to_fix
    problem(await client.get("/v1/vehicles/"), 404)
    problem(await client.get(f"/v1/vehicles/{rows.VIN}/nothing"), 404)


async def test_method_that_is_not_allowed(client: httpx.AsyncClient) -> None:
    for method in ("POST", "DELETE", "PUT"):
        answer = await client.request(method, "/v1/vehicles")
        problem(answer, 405)
        assert answer.headers["allow"] == "GET"


async def test_unknown_vehicle_says_where_to_look(client: httpx.AsyncClient) -> None:
    found = problem(await client.get("/v1/vehicles/LNOBODY0000000001/telemetry"), 404)
    assert "/v1/dead-letters?vin=LNOBODY0000000001" in found.how_to_fix


async def test_no_format_that_is_accepted(client: httpx.AsyncClient) -> None:
    found = problem(await client.get(TELEMETRY, headers={"Accept": "application/xml"}), 406)
    assert "text/csv" in found.how_to_fix


# -- the database ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    ["/readyz", "/v1/vehicles", "/v1/overview", "/v1/dead-letters", f"/v1/vehicles/{rows.VIN}/latest", TELEMETRY],
)
async def test_database_away(path: str) -> None:
    queries = Queries("host=127.0.0.1 port=1 user=somebody password=hunter2")
    async with client_of(queries) as client:
        answer = await client.get(path)
    problem(answer, 503)
    assert int(answer.headers["retry-after"]) > 0
    assert "hunter2" not in answer.text
    assert "127.0.0.1" not in answer.text


async def test_the_database_comes_back(db: psycopg.Connection[Any], queries: Queries) -> None:
    """Connections that lay idle while the server was restarted are replaced without anyone noticing."""
    rows.vehicle(db, rows.VIN)
    async with client_of(queries) as client:
        assert (await client.get("/v1/vehicles")).json()["count"] == 1
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nevstream web'")
        assert (await client.get("/v1/vehicles")).json()["count"] == 1


async def test_a_query_that_takes_too_long(db: psycopg.Connection[Any], dsn: str) -> None:
    queries = Queries(dsn, statement_timeout_s=0.2)
    async with client_of(queries) as client:
        with db.transaction():
            db.execute("LOCK TABLE vehicles")
            found = problem(await client.get("/v1/vehicles"), 503)
        assert found.type.endswith("query-too-slow")
        assert (await client.get("/v1/vehicles")).status_code == 200
    await queries.close()


async def test_all_connections_busy(dsn: str) -> None:
    queries = Queries(dsn, connections_max=1, connect_timeout_s=0.2)
    async with client_of(queries) as client:
        async with queries._connections._free:  # as a query does while it runs
            problem(await client.get("/readyz"), 503)
        assert (await client.get("/readyz")).status_code == 200
    await queries.close()


async def test_the_api_cannot_write(dsn: str, queries: Queries) -> None:
    await queries.health()
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await queries._connections.run(psycopg.sql.SQL("DELETE FROM vehicles"), {})


async def test_an_accident_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL):
        async with client_of(Broken(RuntimeError("secret column"))) as client:
            answer = await client.get("/v1/vehicles")
    problem(answer, 500)
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_too_slow_is_told_apart() -> None:
    async with client_of(Broken(QueryTooSlow("x"))) as client:
        assert problem(await client.get("/v1/overview"), 503).type.endswith("query-too-slow")


def test_a_time_zone_that_is_none() -> None:
    with pytest.raises(SettingsError, match="Mars/Olympus"):
        create_app(Settings.read(overrides={"time_zone": "Mars/Olympus"}), Broken(RuntimeError()))
