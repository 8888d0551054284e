"""Whatever the order, repetition, batches and restarts, the same frames end in the same tables.

Frames go through the real pipeline and sink, the worker ends and begins again at any time, with any bounds of memory.
"""

from __future__ import annotations

import random
from typing import Any

import psycopg
import pytest

from services.statistics.visit import Bounds
from tests.fix_db import Databases
from tests.pipeline.conftest import Sent
from tests.statistics.following import assert_same, content, follow, send, settings_of
from tests.statistics.lives import life

pytestmark = pytest.mark.database

DAYS = 3
SETTINGS = settings_of()


def _frames() -> list[Sent]:
    lives = [
        life(0, DAYS),
        life(1, DAYS, outage=(29, 37)),  # an evening and a morning come as reissues
        life(2, DAYS, edition=25, inverted=True),  # the current turns out to be the other way round
    ]
    return sorted((one for of in lives for one in of.sent), key=lambda one: one.received_s)


FRAMES = _frames()


@pytest.fixture(scope="module")
def wanted(databases: Databases) -> Any:
    """All at once, in the order of time."""
    dsn = databases.create(migrated=True)
    import asyncio

    asyncio.run(send(dsn, FRAMES, SETTINGS))
    follow(dsn, SETTINGS)
    with psycopg.connect(dsn) as db:
        tables = content(db)
    databases.drop(dsn)
    assert len(tables["trips"]) > 9 * DAYS
    assert len(tables["charges"]) > 5 * DAYS
    assert len(tables["alarm_episodes"]) > 20
    assert len(tables["battery_capacity"]) > 1
    return tables


def _disordered(rng: random.Random, kind: str) -> list[Sent]:
    frames = list(FRAMES)
    if kind == "as it comes":
        return frames
    if kind == "shuffled":
        rng.shuffle(frames)
    elif kind == "backwards":
        frames.reverse()
    elif kind == "late by hours":
        late = {i: rng.uniform(60, 40_000) for i in range(len(frames)) if rng.random() < 0.05}
        order = sorted(range(len(frames)), key=lambda i: frames[i].received_s + late.get(i, 0.0))
        frames = [frames[i] for i in order]
    repeated = [one for one in frames if rng.random() < 0.05]
    for one in repeated:
        frames.insert(rng.randrange(len(frames)), one)
    return frames


@pytest.mark.parametrize(
    ("kind", "pieces", "seed"),
    [("as it comes", 40, 1), ("late by hours", 25, 2), ("shuffled", 6, 3), ("backwards", 9, 4)],
)
async def test_tables_do_not_depend_on_how_frames_came(
    dsn: str, db: psycopg.Connection[Any], wanted: Any, kind: str, pieces: int, seed: int
) -> None:
    rng = random.Random(seed)
    frames = _disordered(rng, kind)
    cuts = sorted(rng.randrange(len(frames)) for _ in range(pieces - 1))
    for begin, end in zip([0, *cuts], [*cuts, len(frames)], strict=True):
        if begin == end:
            continue
        await send(dsn, frames[begin:end], SETTINGS)
        bounds = Bounds(rng.choice([700, 5000, 60_000]), rng.choice([300, 1000, 20_000]), rng.choice([1, 3, 4000]))
        follow(dsn, SETTINGS, bounds=bounds, cycles=rng.choice([0, 1, 1, 2, 100]))
    follow(dsn, SETTINGS)
    assert_same(content(db), wanted)
