"""Reports that become rows, and what a pipeline makes of all that a gateway has journaled."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

from schemas.gbt32960.frame import build_frame
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.memory import MemorySink
from tests.gateway.playing import PARTITIONS, VIN, Running

EPOCH = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=8)))

# The vehicle block, by hand from table 9 of either edition: started, not charging, electric, 65.3 km/h, 12345.6 km,
# 385.4 V, 50.0 A, 80 %, DC-DC working, gear D, 5000 kΩ; 2016 has two pedals more.
BLOCK = {
    16: bytes.fromhex("01 01 03 01 028d 0001e240 0f0e 2904 50 01 2e 1388 1e 00"),
    25: bytes.fromhex("01 01 03 01 028d 0001e240 0f0e 7724 50 01 2e 1388"),
}


def time_bytes(second: int) -> bytes:
    at = EPOCH + timedelta(seconds=second)
    return bytes((at.year - 2000, at.month, at.day, at.hour, at.minute, at.second))


def dated(second: int, vin: str = VIN, edition: int = 16, command: int = 0x02, more: bytes = b"") -> bytes:
    """A report of the second ``second`` after a fixed moment, which decodes to one row."""
    return build_frame(edition, command, 0xFE, vin, 1, time_bytes(second) + BLOCK[edition] + more)


async def stored(run: Running) -> MemorySink:
    """Everything in the journal, moved to a store in memory; the ledger adds up."""
    settings = Settings.model_validate(
        {"pipeline": {"idle_sleep_ms": 1.0, "clock_past_max_days": 36500, "clock_future_max_s": 10**9}}
    )
    sink = MemorySink(PARTITIONS)
    pipeline, stop = Pipeline(settings, run.journal, sink, range(PARTITIONS)), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline.run(stop), name="pipeline")
        await pipeline.caught_up()
        stop.set()
    for line in sink.ledger.values():
        assert line["frames"] == sum(line[name] for name in line if name != "frames")
    return sink


def ledger(sink: MemorySink, name: str) -> int:
    return sum(line[name] for line in sink.ledger.values())
