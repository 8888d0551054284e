"""Dead letters over HTTP: counted, explained, exported; put back, and by whom not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest

from services.journal.memory import MemoryJournal
from services.settings import Settings
from services.store.letters import Letters
from services.store.queries import Queries
from services.web import models
from services.web.app import create_app
from services.web.changes import loopback
from tests.web import rows
from tests.web.test_problems import problem

JSON = {"Content-Type": "application/json"}


# -- counts ----------------------------------------------------------------------------------------------


async def test_counts_by_reason(client: httpx.AsyncClient) -> None:
    found = models.DeadLetterCounts.model_validate((await client.get("/v1/dead-letters/counts")).json())
    assert [(one.reason, one.letters, one.vehicles) for one in found.groups] == [
        ("bad_bcc", 4, 1),
        ("clock_future", 3, 1),
    ]
    assert found.groups[0].last == rows.NOW


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("vin", [{"vin": rows.VIN, "letters": 4}, {"vin": None, "letters": 3}]),
        ("model", [{"model": "E1", "letters": 4}, {"model": None, "letters": 3}]),
        ("firmware", [
            {"edition": 2016, "iccid": "8986000", "packs": "P1", "letters": 4},
            {"edition": None, "iccid": None, "packs": None, "letters": 3},
        ]),
    ],
)  # fmt: skip
async def test_counts_by_who_sent_them(client: httpx.AsyncClient, by: str, expected: list[dict[str, Any]]) -> None:
    found = (await client.get("/v1/dead-letters/counts", params={"by": by})).json()
    models.DeadLetterCounts.model_validate(found)
    wanted = set(expected[0])
    assert [{name: one[name] for name in wanted} for one in found["groups"]] == expected


async def test_counts_take_the_filters(client: httpx.AsyncClient) -> None:
    query = {"reason": "bad_bcc", "vin": rows.VIN, "state": "open"}
    assert [one["letters"] for one in (await client.get("/v1/dead-letters/counts", params=query)).json()["groups"]] == [
        2
    ]
    assert (await client.get("/v1/dead-letters/counts", params={"state": "settled"})).json()["groups"] == []
    problem(await client.get("/v1/dead-letters/counts", params={"by": "weather"}), 422)


# -- one, explained --------------------------------------------------------------------------------------


async def test_the_error_is_marked_in_the_field_that_holds_it(
    dsn: str, db: psycopg.Connection[Any], desk: httpx.AsyncClient
) -> None:
    frame = bytes.fromhex("232307fe4c54455354303030303030303030303039010000ac")
    rows.insert(
        db, "dead_letters", partition=1, offset=5, position=0, received_at=rows.NOW, reason=1, detail=24, door=1,
        codec=1, vin="LTEST000000000009", peer="127.0.0.1:5", client=None, frame=frame,
    )  # fmt: skip
    answer = (await desk.get("/v1/dead-letters/1-5-0")).json()
    letter = models.DeadLetterDetail.model_validate(answer)
    assert [(one.offset, one.hex, one.field, one.problem) for one in letter.annotated if one.error] == [
        (24, "ac", "check byte", "should be 0xab")
    ]
    assert "".join(one.hex for one in letter.annotated) == letter.frame_hex
    assert (letter.outcome, letter.requeued_frame_hex) == (None, None)


async def test_a_frame_that_the_pipeline_refused_came_over_its_vehicles_connection(
    dsn: str, db: psycopg.Connection[Any], desk: httpx.AsyncClient
) -> None:
    rows.insert(
        db, "dead_letters", partition=1, offset=5, position=0, received_at=rows.NOW, reason=10, detail=24, door=1,
        codec=1, vin=rows.VIN, peer=None, client=None, frame=b"##",
    )  # fmt: skip
    for number, (minutes, door, event) in enumerate(
        [(-9, 1, "connected"), (-5, 1, "connected"), (-4, 2, "connected"), (-3, 1, "refused"), (1, 1, "connected")]
    ):
        rows.insert(
            db, "link_events", origin=1, number=number, occurred_at=rows.NOW + timedelta(minutes=minutes), event=event,
            door=door, vin=rows.VIN, peer=f"10.0.0.{number}:1",
        )  # fmt: skip
    assert (await desk.get("/v1/dead-letters/1-5-0")).json()["peer"] == "10.0.0.1:1"


# -- export ----------------------------------------------------------------------------------------------


async def test_export_in_three_forms(client: httpx.AsyncClient) -> None:
    lines = (await client.get("/v1/dead-letters/export")).text.splitlines()
    letters = [json.loads(line) for line in lines]
    assert [one["received_at"] for one in letters] == sorted(one["received_at"] for one in letters)
    table = list(csv.DictReader(io.StringIO((await client.get("/v1/dead-letters/export?format=csv")).text)))
    assert [one["id"] for one in table] == [one["id"] for one in letters]
    assert table[0]["frame_hex"] == letters[0]["frame_hex"]
    raw = await client.get("/v1/dead-letters/export?format=raw")
    assert raw.content.hex() == "".join(one["frame_hex"] for one in letters)
    assert raw.headers["content-disposition"] == 'attachment; filename="dead-letters.bin"'


@pytest.mark.parametrize("form", ["jsonl", "csv"])
async def test_export_pages_join(client: httpx.AsyncClient, form: str) -> None:
    whole = (await client.get("/v1/dead-letters/export", params={"format": form})).text
    path, joined = f"/v1/dead-letters/export?format={form}&limit=2", ""
    while path:
        page = await client.get(path)
        joined += page.text
        path = page.headers["link"].split(">")[0][1:] if "link" in page.headers else ""
    assert joined == whole


# -- putting back ----------------------------------------------------------------------------------------


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal(8)


def requests_of(
    dsn: str, journal: MemoryJournal, client: tuple[str, int] = ("127.0.0.1", 5000), **web: Any
) -> httpx.AsyncClient:
    settings = Settings.read(overrides={"web": web})
    app = create_app(settings, Queries(dsn), lambda: rows.NOW, Letters(dsn, journal, settings))
    transport = httpx.ASGITransport(app=app, client=client, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080")


@pytest.fixture
async def desk(dsn: str, db: psycopg.Connection[Any], journal: MemoryJournal) -> AsyncIterator[httpx.AsyncClient]:
    """The API with a journal, on a database of its own with seven letters."""
    rows.fleet(db)
    async with requests_of(dsn, journal) as made:
        yield made
        context = made._transport.app.state.context  # type: ignore[attr-defined]
        await context.queries.close()
        await context.letters.close()


async def test_one_is_put_back(desk: httpx.AsyncClient, journal: MemoryJournal) -> None:
    answer = await desk.post("/v1/dead-letters/1-100-1/requeue", json={})
    done = models.Requeue.model_validate(answer.json())
    assert [one.id for one in done.requeued] == ["1-100-1"]
    assert len(await journal.ends()) == 1
    letter = models.DeadLetterDetail.model_validate((await desk.get("/v1/dead-letters/1-100-1")).json())
    assert (letter.requeued_by, letter.requeued_as, letter.outcome) == ("api", done.requeued[0].requeued_as, "waiting")
    again = problem(await desk.post("/v1/dead-letters/1-100-1/requeue", json={}), 409)
    assert "it was requeued at" in again.detail
    problem(await desk.post("/v1/dead-letters/1-100-9/requeue", json={}), 404)


async def test_many_are_put_back(desk: httpx.AsyncClient) -> None:
    first = (await desk.post("/v1/dead-letters/requeue", json={"reason": "bad_bcc", "limit": 3})).json()
    assert len(first["requeued"]) == 3
    assert len((await desk.post("/v1/dead-letters/requeue", json={"reason": "bad_bcc"})).json()["requeued"]) == 1
    problem(await desk.post("/v1/dead-letters/requeue", json={}), 422)
    assert len((await desk.post("/v1/dead-letters/requeue", json={"all": True})).json()["requeued"]) == 3
    problem(await desk.post("/v1/dead-letters/requeue", json={"reason": "none"}), 422)
    problem(await desk.post("/v1/dead-letters/requeue", json={"raeson": "bad_bcc"}), 422)
    counts = (await desk.get("/v1/dead-letters/counts?state=settled")).json()
    assert [one["letters"] for one in counts["groups"]] == [4, 3]
    assert (await desk.get("/v1/dead-letters?state=settled")).json()["count"] == 7
    assert (await desk.get("/v1/dead-letters?state=open")).json()["count"] == 0


async def test_the_journal_is_away(desk: httpx.AsyncClient, journal: MemoryJournal) -> None:
    journal.away = True
    answer = await desk.post("/v1/dead-letters/1-100-1/requeue", json={})
    assert "journal" in problem(answer, 503).title
    assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("client", "web", "headers"),
    [
        (("127.0.0.1", 1), {"allow_changes": False}, {}),
        (("127.0.0.1", 1), {"host": "0.0.0.0"}, {}),
        (("10.0.0.7", 1), {}, {}),
        (("127.0.0.1", 1), {}, {"Host": "evil.example"}),
        (("127.0.0.1", 1), {}, {"Origin": "https://evil.example"}),
        (("127.0.0.1", 1), {}, {"Origin": "null"}),
    ],
)
async def test_changes_are_refused_to_everyone_else(
    dsn: str, journal: MemoryJournal, client: tuple[str, int], web: dict[str, Any], headers: dict[str, str]
) -> None:
    async with requests_of(dsn, journal, client, **web) as asking:
        for path, body in (("1-1-1/requeue", b"{}"), ("requeue", b'{"all": true}')):
            answer = await asking.post(f"/v1/dead-letters/{path}", content=body, headers=JSON | headers)
            assert problem(answer, 403).how_to_fix
    assert await journal.ends() == {}


async def test_a_form_of_another_site_is_not_json(desk: httpx.AsyncClient, journal: MemoryJournal) -> None:
    answer = await desk.post(
        "/v1/dead-letters/requeue", content=b'{"all": true}', headers={"Content-Type": "text/plain"}
    )
    problem(answer, 415)
    assert await journal.ends() == {}


async def test_an_api_without_a_desk_only_reads(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/dead-letters/1-100-1/requeue", json={}, headers={"Host": "localhost"})
    problem(answer, 403)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
     ("[::1]", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.example", False),
     ("127.0.0.1.example", False), ("", False), (None, False)],
)  # fmt: skip
def test_loopback(host: str | None, expected: bool) -> None:
    assert loopback(host) is expected
