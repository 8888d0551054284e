"""TSBS's iot questions and their NEV twins: plain SQL over telemetry, ours, and a count with NumPy agree.

The fleet's frames come late, twice and as reissues, through journal, pipeline and statistics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from benchmarks import questions_data as data
from benchmarks.questions_oracle import Oracle, answers, differences, parameters
from benchmarks.questions_sql import QUESTIONS, Question
from services.journal.postgres import PostgresJournal
from tests.fix_db import Databases
from tests.pipeline.running import stored
from tests.statistics.following import follow, settings_of

pytestmark = pytest.mark.database
SETTINGS = settings_of()
SEEDS = (1, 2)
ASKED = 4  # sets of parameters a fleet


@dataclass
class World:
    db: psycopg.Connection[Any]
    fleet: data.Fleet
    seed: int


async def _journaled(dsn: str, records: list[tuple[int, bytes]]) -> None:
    journal = PostgresJournal(dsn, 4)
    await journal.open()
    await journal.append(records)
    await journal.close()


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"seed {seed}")
def world(databases: Databases, request: pytest.FixtureRequest) -> Iterator[World]:
    dsn = databases.create(migrated=True)
    fleet = data.make(vehicles=8, days=2, period_s=30, seed=request.param)
    with psycopg.connect(dsn, autocommit=True) as db:
        data.register(db, fleet)
        for piece, records in enumerate(data.frames(fleet, request.param, pieces=2)):
            asyncio.run(_journaled(dsn, records))
            asyncio.run(stored(dsn, SETTINGS))
            if piece:  # the statistics follow while more is to come
                follow(dsn, SETTINGS)
        yield World(db, fleet, request.param)
    databases.drop(dsn)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_all_three_agree(world: World, question: Question) -> None:
    found = 0
    for asked in range(ASKED):
        given = parameters(world.fleet, 10 * world.seed + asked)
        truth = Oracle(world.fleet, given).answer(question.name)
        plain = answers(world.db.execute(question.plain.encode(), given).fetchall(), question.keys)
        assert not differences(plain, truth, ours=False), given
        ours = answers(world.db.execute(question.ours.encode(), given).fetchall(), question.keys)
        assert not differences(ours, truth, ours=True), given
        found += len(truth.rows)
    if question.name not in ("low-fuel", "high-load", "low-soc", "stationary-trucks", "long-driving-sessions"):
        assert found


def test_every_question_finds_something(world: World) -> None:
    """Of the questions that a few vehicles may answer with nothing: not for all sets of parameters."""
    counts = dict.fromkeys((question.name for question in QUESTIONS), 0)
    for asked in range(40):
        oracle = Oracle(world.fleet, parameters(world.fleet, asked))
        for name in counts:
            counts[name] += len(oracle.answer(name).rows)
    empty = {name for name, count in counts.items() if not count}
    assert empty <= {"low-fuel", "high-load"}, empty


def test_what_was_sent_is_stored_once(world: World) -> None:
    assert world.db.execute("SELECT count(*) FROM telemetry").fetchone() == (len(world.fleet.time),)
    late = world.db.execute("SELECT count(*) FROM telemetry WHERE kind = 3").fetchone()
    assert late is not None
    assert late[0] > 0
