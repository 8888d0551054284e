"""Frames into a real journal and from there into a real store, by a pipeline of one go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from schemas.keys import partition_of_vin
from services.journal.postgres import PostgresJournal
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.postgres import PostgresSink
from tests.pipeline.conftest import record_of


def settings_of(**pipeline: Any) -> Settings:
    return Settings.model_validate({"pipeline": {"idle_sleep_ms": 1.0, **pipeline}, "journal": {"partitions": 4}})


async def put(dsn: str, sent: Sequence[Any]) -> None:
    """Into the journal, a record a partition."""
    journal = PostgresJournal(dsn, 4)
    await journal.open()
    by_partition: dict[int, list[Any]] = {}
    for one in sent:
        vin = one.frame[4:21].rstrip(b"\0").decode("ascii")
        by_partition.setdefault(partition_of_vin(vin, 4), []).append(one)
    await journal.append([(partition, record_of(frames)) for partition, frames in by_partition.items()])
    await journal.close()


async def stored(dsn: str, settings: Settings) -> None:
    """Everything in the journal, moved to the store."""
    journal, sink = PostgresJournal(dsn, 4), PostgresSink(dsn, settings)
    await sink.open()
    pipeline, stop = Pipeline(settings, journal, sink, range(4)), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline.run(stop), name="pipeline")
        await pipeline.caught_up()
        stop.set()
    await sink.close()
    await journal.close()
