"""Events of connections on their way from journal to store: once each, counted, and never in a report's way."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest

from schemas.batch import Codec, Door
from schemas.journal.record import encode_record
from schemas.link_events import TEXT_MAX, Event, LinkEvent, decode, encode
from schemas.reasons import CODE
from services.journal.memory import MemoryJournal
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.memory import MemorySink
from services.store.postgres import PostgresSink

US = 1_790_000_000_123_456
WHEN = datetime(2026, 9, 21, 14, 13, 20, 123456, tzinfo=UTC)
REFUSED = LinkEvent(
    7, 1, WHEN, Event.REFUSED, Door.MQTT, "bad_password", "LNBSCB3F4JW000001", "10.0.0.9:4711", "c\0lient", times=3
)
CONNECTED = LinkEvent(7, 2, WHEN, Event.CONNECTED, Door.GBT_TCP, vin="LNBSCB3F4JW000001", peer="10.0.0.9:4712")


def record(*payloads: bytes, door: int = Door.MQTT) -> bytes:
    n = len(payloads)
    return encode_record(
        b"".join(payloads),
        np.array([len(one) for one in payloads], np.uint32),
        np.full(n, US, np.int64),
        np.full(n, door, np.uint8),
        np.full(n, Codec.EVENT, np.uint8),
    )


def test_there_and_back() -> None:
    for event in (REFUSED, CONNECTED):
        assert decode(encode(event), US, event.door) == event
    long = LinkEvent(1, 1, WHEN, "closed", 1, detail="x" * 1000)
    assert len(decode(encode(long), US, 1).detail) == TEXT_MAX  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"origin":1,"number":"x","event":"closed"}', b"\xff"])
def test_what_is_no_event(damage: bytes) -> None:
    assert decode(damage, US, 1) is None


async def through(journal: MemoryJournal, sink: Any) -> None:
    settings = Settings.read(overrides={"journal": {"partitions": 2}})
    pipeline = Pipeline(settings, journal, sink, (0, 1))
    stop = asyncio.Event()
    task = asyncio.create_task(pipeline.run(stop))
    await asyncio.wait_for(pipeline.caught_up(), 60)
    stop.set()
    await task


async def test_events_are_stored_once_and_counted_as_other() -> None:
    journal, sink = MemoryJournal(2), MemorySink(2)
    body = record(encode(REFUSED), encode(CONNECTED), b"no event")
    # an append whose outcome was not known is made again: the record lies there twice
    await journal.append([(1, body), (1, body)])
    await through(journal, sink)
    assert list(sink.link_events) == [(7, 1), (7, 2)]
    assert sink.link_events[7, 1].cause == "bad_password"
    assert {k: v for k, v in sink.ledger[1].items() if v} == {"frames": 6, "other": 4, "rejected": 2}
    letters = list(sink.dead_letters.values())
    assert [(letter.reason, letter.codec, letter.frame) for letter in letters] == [
        (CODE["structure"], Codec.EVENT, b"no event")
    ] * 2


async def test_events_in_the_database(dsn: str, db: psycopg.Connection[Any]) -> None:
    journal = MemoryJournal(2)
    body = record(encode(REFUSED))
    await journal.append([(0, body), (0, body)])
    sink = PostgresSink(dsn, Settings.read(overrides={"journal": {"partitions": 2}}))
    await through(journal, sink)
    await sink.close()
    rows = db.execute(
        "SELECT origin, number, occurred_at, event, cause, door, vin, peer, client, by_peer, times FROM link_events"
    ).fetchall()
    assert rows == [
        (7, 1, WHEN, "refused", "bad_password", 2, REFUSED.vin, REFUSED.peer, "c\u2400lient", None, 3)
    ]  # fmt: skip
    assert db.execute("SELECT sum(other) FROM ledger").fetchone() == (2,)
