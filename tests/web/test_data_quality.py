"""/v1/data-quality and /v1/vehicles/{vin}/rate-flaws, and the same as a person types it."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import httpx
import psycopg
import pytest
from typer.testing import CliRunner

from schemas.checks import CHECKS, RATES
from services.cli import app
from services.store.flaws import FlawCounter
from services.store.queries import Queries
from tests.web import rows
from tests.web.conftest import client_of

pytestmark = pytest.mark.database
A, B = "LTEST00000000000A", "LTEST00000000000B"
DAY = date(2026, 11, 23)
AT = datetime(2026, 11, 23, 2, tzinfo=UTC)
SPEED, SOC = bytes([3, 3]), bytes([3, 3, 7, 2])  # positions and states of schemas.signals: invalid; and abnormal


@pytest.fixture
async def client(dsn: str, db: psycopg.Connection, queries: Queries) -> httpx.AsyncClient:
    """Two vehicles of two models and builds; one has 3 invalid speeds and a jump, the other 1 and an abnormal SOC."""
    rows.days(db, DAY, DAY)
    for vin, model, edition, iccid in ((A, "sedan", 16, "8986001"), (B, "van", 25, "8986004")):
        key = rows.vehicle(db, vin, model=model)
        rows.insert(
            db, "logins", partition=0, offset=key, position=0, received_at=AT, time=AT, command=1, edition=edition,
            door=1, vin=vin, vehicle_id=key, serial=1, iccid=iccid + "0000000000001", pack_codes=["LT001ABCDE"],
        )  # fmt: skip
    ids = dict(db.execute("SELECT vin, vehicle_id FROM vehicles").fetchall())
    for second in range(3):
        rows.report(db, ids[A], AT + timedelta(seconds=second), flaws=SPEED)
    rows.report(db, ids[A], AT + timedelta(seconds=10), speed_kmh=0)
    rows.report(db, ids[A], AT + timedelta(seconds=11), speed_kmh=120)
    rows.report(db, ids[B], AT, flaws=SOC)
    rows.insert(db, "telemetry_days", day=DAY, partition=0, changes=1)
    counter = FlawCounter(dsn)
    await counter.count()
    await counter.close()
    return client_of(queries)


async def groups(client: httpx.AsyncClient, query: str) -> list[tuple]:
    answer = await client.get(f"/v1/data-quality/flaws?from=2026-11-20&to=2026-11-24&{query}")
    assert answer.status_code == 200, answer.text
    return [tuple(group.values()) for group in answer.json()["groups"]]


async def test_by_signal_model_firmware_and_vehicle(client: httpx.AsyncClient) -> None:
    assert await groups(client, "") == [
        ("speed_kmh", "invalid", 4, 2), ("soc_pct", "abnormal", 1, 1), ("speed_kmh", "rate", 1, 1),
    ]  # fmt: skip
    assert await groups(client, "by=model&state=invalid") == [
        ("sedan", "speed_kmh", "invalid", 3, 1), ("van", "speed_kmh", "invalid", 1, 1),
    ]  # fmt: skip
    assert await groups(client, "by=firmware&signal=soc_pct") == [
        (2025, "8986004", "LT001AB", "soc_pct", "abnormal", 1, 1)
    ]
    assert await groups(client, f"by=vin&vin={B}") == [
        (B, "soc_pct", "abnormal", 1, 1), (B, "speed_kmh", "invalid", 1, 1),
    ]  # fmt: skip
    assert len(await groups(client, "limit=1")) == 1


async def test_the_days_say_how_current_they_are(client: httpx.AsyncClient, db: psycopg.Connection) -> None:
    url = "/v1/data-quality/flaws?from=2026-11-23&to=2026-11-23"
    found = (await client.get(url)).json()
    assert (found["reports"], [day["changed_since"] for day in found["days"]]) == (6, [False])
    db.execute("UPDATE telemetry_days SET changes = 2")
    found = (await client.get(url)).json()
    assert [(day["reports"], day["changed_since"]) for day in found["days"]] == [(6, True)]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("from=yesterday", "is not a day"),
        ("from=2026-11-24&to=2026-11-23", "0 days"),
        ("from=2020-01-01", "days"),
        ("vin=a%20b", "vehicle identification"),
        ("by=colour", "colour"),
        ("state=odd", "odd"),
        ("signals=soc_pct", "did you mean signal?"),
    ],
)
async def test_what_is_refused(client: httpx.AsyncClient, query: str, told: str) -> None:
    answer = await client.get(f"/v1/data-quality/flaws?{query}")
    assert answer.status_code == 422
    assert told in answer.text


async def test_rate_flaws_of_a_vehicle(client: httpx.AsyncClient) -> None:
    url = f"/v1/vehicles/{A}/rate-flaws?from=2026-11-23T00:00:00Z&to=2026-11-24T00:00:00Z"
    found = (await client.get(url)).json()
    assert (found["count"], found["complete"]) == (1, True)
    (one,) = found["rate_flaws"]
    assert one["time"] == "2026-11-23T10:00:11+08:00"
    assert (one["signal"], one["previous_value"], one["value"], one["per_s"]) == ("speed_kmh", 0, 120, 120)
    assert (await client.get("/v1/vehicles/NOBODY/rate-flaws")).status_code == 404


async def test_the_checks_are_the_table(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/data-quality/checks")).json()
    assert [check["name"] for check in found["checks"]] == [check.name for check in CHECKS]
    assert [rate["signal"] for rate in found["rates"]] == [rate.signal for rate in RATES]


async def test_answers_have_no_more_than_the_document_says(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()["components"]["schemas"]
    found = (await client.get("/v1/data-quality/flaws?from=2026-11-23&by=firmware")).json()
    assert set(found) == set(document["FlawCounts"]["properties"])
    assert set(found["groups"][0]) <= set(document["FlawGroup"]["properties"])
    assert set(found["days"][0]) == set(document["FlawDay"]["properties"])


def test_on_the_command_line(client: httpx.AsyncClient, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)
    run = CliRunner()
    asked = ["flaws", "--from", "2026-11-20", "--to", "2026-11-24"]
    told = run.invoke(app, [*asked, "--by", "model"])
    assert told.exit_code == 0, told.output
    assert "sedan" in told.output
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("UPDATE telemetry_days SET changes = 2")
    assert "nevstream flaws --now" in run.invoke(app, asked).output
    found = json.loads(run.invoke(app, [*asked, "--now", "--json", "--state", "invalid"]).output)
    assert [(group["signal"], group["flaws"]) for group in found["groups"]] == [("speed_kmh", 4)]
    assert not found["days"][0]["changed_since"]
