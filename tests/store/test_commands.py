"""Commands in the store: one contract for PostgreSQL and memory, and what only the table can show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from schemas.downlink import OPEN_MAX, Outcome
from services.errors import StoreUnavailable, UsageError
from services.store.commands import MemoryCommands, PostgresCommands

VIN, OTHER = "LNBSCB3F4JW000001", "LNBSCB3F4JW000002"
QUERY = {"params": ["report_period"]}
Desk = PostgresCommands | MemoryCommands


@pytest.fixture(params=["postgres", "memory"])
async def desk(request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    made: Desk = PostgresCommands(request.getfixturevalue("dsn")) if request.param == "postgres" else MemoryCommands()
    yield made
    await made.close()


async def ask(desk: Desk, vin: str = VIN, expires_s: float = 60, **more: Any) -> int:
    return await desk.enqueue(vin, "query", QUERY, by="test", expires_s=expires_s, **more)


async def row(desk: Desk, number: int, vin: str = VIN) -> dict[str, Any]:
    found = await desk.commands(vin, before=number + 1, limit=1)
    return found.dicts()[0]


# -- the contract ----------------------------------------------------------------------------------
async def test_queued_claimed_answered(desk: Desk) -> None:
    number = await ask(desk, edition=25)
    assert await desk.queued(0, 10) == [(number, VIN)]
    assert await desk.queued(number, 10) == []
    (claimed,) = await desk.claim([number], 7)
    assert (claimed.command_id, claimed.vin, claimed.kind, claimed.body) == (number, VIN, "query", QUERY)
    assert (claimed.edition, claimed.attempts) == (25, 1)
    assert await desk.queued(0, 10) == []
    assert await desk.claim([number], 8) == []
    answer = {"params": [{"id": 2, "name": "report_period", "value": 10}]}
    await desk.record([Outcome(number, "sent", 1, 1, b"##"), Outcome(number, "answered", 1, ack=1, answer=answer)], 7)
    found = await row(desk, number)
    assert (found["state"], found["ack"], found["answer"], found["attempts"]) == ("answered", 1, answer, 1)
    # what has ended stays as it is
    await desk.record([Outcome(number, "failed", 3)], 7)
    assert (await row(desk, number))["state"] == "answered"


async def test_one_in_flight_per_vehicle(desk: Desk) -> None:
    first, second, third = await ask(desk), await ask(desk), await ask(desk, OTHER)
    assert sorted(one.command_id for one in await desk.claim([first, second, third], 7)) == [first, third]
    assert await desk.claim([second], 8) == []
    await desk.record([Outcome(first, "failed", 1, error="no")], 7)
    assert [one.command_id for one in await desk.claim([second], 8)] == [second]


async def test_only_its_gateway_writes(desk: Desk) -> None:
    number = await ask(desk)
    await desk.claim([number], 7)
    await desk.record([Outcome(number, "answered", 1)], 8)
    assert (await row(desk, number))["state"] == "sent"
    await desk.record([Outcome(number, "queued", 1, error="the connection broke")], 7)
    (again,) = await desk.claim([number], 8)
    assert again.attempts == 2


async def test_so_many_may_be_open(desk: Desk) -> None:
    for _ in range(OPEN_MAX):
        await ask(desk)
    with pytest.raises(UsageError, match="100 commands"):
        await ask(desk)
    await ask(desk, OTHER)


async def test_pages(desk: Desk) -> None:
    numbers = [await ask(desk) for _ in range(5)]
    first = (await desk.commands(VIN, before=None, limit=2)).dicts()
    assert [one["command_id"] for one in first] == [numbers[4], numbers[3]]
    rest = (await desk.commands(VIN, before=numbers[3], limit=10)).dicts()
    assert [one["command_id"] for one in rest] == [numbers[2], numbers[1], numbers[0]]
    assert (await desk.commands(OTHER, before=None, limit=2)).rows == []
    assert await desk.queued(numbers[1], 2) == [(numbers[2], VIN), (numbers[3], VIN)]


# -- the table -------------------------------------------------------------------------------------
async def test_expiry_rescue_and_retention(dsn: str, db: psycopg.Connection[Any]) -> None:
    desk = PostgresCommands(dsn)
    over, tired, stuck, fresh = [await ask(desk, f"V{k}") for k in range(4)]
    await desk.claim([tired, stuck, fresh], 7)
    db.execute("UPDATE commands SET expires_at = now() WHERE command_id = %s", [over])
    db.execute("UPDATE commands SET sent_at = now() - interval '1 hour' WHERE command_id = ANY (%s)", [[tired, stuck]])
    db.execute("UPDATE commands SET attempts = 3 WHERE command_id = %s", [tired])
    assert await desk.queued(0, 10) == []  # what has expired is not offered
    await desk.tidy(180, 3)
    states = dict(db.execute("SELECT command_id, state FROM commands").fetchall())
    assert states == {over: "expired", tired: "failed", stuck: "queued", fresh: "sent"}
    assert (await row(desk, stuck, "V2"))["error"] == "the gateway that had sent it is gone"
    db.execute("UPDATE commands SET created_at = now() - interval '91 days'")
    assert await desk.prune(90) == 2  # what is open stays
    await desk.close()


async def test_the_edition_is_that_of_the_newest_report(dsn: str, db: psycopg.Connection[Any]) -> None:
    db.execute("INSERT INTO vehicles (vin) VALUES (%s)", [VIN])
    db.execute(
        "INSERT INTO vehicle_state (vehicle_id, time, kind, part, received_at, edition, door, reports) "
        "SELECT vehicle_id, now(), 2, 0, now(), 25, 2, 1 FROM vehicles"
    )
    desk = PostgresCommands(dsn)
    (claimed,) = await desk.claim([await ask(desk)], 7)
    assert claimed.edition == 25
    await desk.close()


async def test_whatever_a_terminal_says_can_be_stored(dsn: str) -> None:
    desk = PostgresCommands(dsn)
    number = await ask(desk)
    await desk.claim([number], 7)
    answer = {"params": [{"value": "a\0b"}], "trailing": "00"}
    await desk.record([Outcome(number, "answered", 1, ack=1, answer=answer, answer_frame=b"\0\xff")], 7)
    found = await row(desk, number)
    assert found["answer"]["params"] == [{"value": "a\u2400b"}]
    assert found["answer_frame"] == b"\0\xff"
    await desk.close()


async def test_away() -> None:
    desk = PostgresCommands("postgresql://127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable):
        await desk.queued(0, 1)
    await desk.close()
