"""From a journal to rows and to answers: a signals file at work in the pipeline, both sinks and the API."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import reduce
from operator import xor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest

import schemas
from schemas.journal.record import encode_record
from schemas.keys import partition_of_vin
from services.errors import SettingsError
from services.journal.memory import MemoryJournal
from services.own_signals import signals_of
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.memory import MemorySink
from services.store.postgres import PostgresSink
from services.store.queries import Queries
from services.web.app import create_app

pytestmark = pytest.mark.slow

BUS_FILE = Path(schemas.__file__).parent / "examples" / "bus.toml"
VIN = "LTEST000000000001"
PARTITIONS = 2
T0 = 1_780_000_000


def frame(block: bytes, second: int = T0, vin: str = VIN, speed: int = 653) -> bytes:
    """A 2016 report: the vehicle block (table 9), then a custom block 0x81."""
    at = datetime.fromtimestamp(second, timezone(timedelta(hours=8)))
    unit = bytes([at.year - 2000, at.month, at.day, at.hour, at.minute, at.second])
    unit += bytes([1, 1, 3, 1]) + speed.to_bytes(2, "big") + bytes.fromhex("0001e2400f0e290450012e13881e00")
    if block:
        unit += b"\x81" + len(block).to_bytes(2, "big") + block
    body = b"\x02\xfe" + vin.encode() + b"\x01" + len(unit).to_bytes(2, "big") + unit
    return b"##" + body + bytes([reduce(xor, body)])


async def journal_of(frames: Sequence[bytes]) -> MemoryJournal:
    journal = MemoryJournal(PARTITIONS)
    for one in frames:
        record = encode_record(
            one, np.array([len(one)], np.uint32), np.array([(T0 + 60) * 1_000_000], np.int64),
            np.ones(1, np.uint8), np.ones(1, np.uint8), None,
        )  # fmt: skip
        await journal.append([(partition_of_vin(VIN, PARTITIONS), record)])
    return journal


async def drained(journal: MemoryJournal, sink: Any, signals_file: Path | None, **changes: Any) -> None:
    given = {"idle_sleep_ms": 1.0, "signals_file": signals_file, **changes}
    config = Settings.model_validate({"pipeline": given})
    pipeline = Pipeline(config, journal, sink, range(PARTITIONS), clock=lambda: T0 + 100.0)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline.run(stop), name="pipeline")
        await pipeline.caught_up()
        stop.set()


# front door open, 2 passenger doors; mode invalid; 21.5 °C; 22.5 °C (see test_examples.py)
WARM = bytes.fromhex("21ff02672d")
COLD = bytes.fromhex("20010000")  # doors shut, cooling, -40 °C
WARM_EXTRA = {
    "front_door": 1, "rear_door": 0, "passenger_door_count": 2, "cabin_temp_c": 21.5, "aircon_setpoint_c": 22.5,
    "_flaws": {"aircon_mode": "invalid"},
}  # fmt: skip
COLD_EXTRA = {"front_door": 0, "rear_door": 0, "passenger_door_count": 2, "aircon_mode": 1, "cabin_temp_c": -40}


async def test_into_memory_and_only_where_there_is_something() -> None:
    frames = [frame(WARM), frame(b"", T0 + 1), frame(COLD, T0 + 2)]
    sink = MemorySink(PARTITIONS)
    await drained(await journal_of(frames), sink, BUS_FILE)
    rows = sorted(sink.telemetry.values(), key=lambda row: row["time"])
    assert [row.get("extra") for row in rows] == [WARM_EXTRA, None, COLD_EXTRA]
    assert [row["speed_kmh"] for row in rows] == [pytest.approx(65.3)] * 3
    assert rows[0]["rest"] == b"\x81\x00\x05" + WARM  # as it came, with and without a file


async def test_without_a_file_nothing_changes() -> None:
    sink = MemorySink(PARTITIONS)
    await drained(await journal_of([frame(WARM)]), sink, None)
    assert all("extra" not in row for row in sink.telemetry.values())


async def test_the_order_of_arrival_does_not_matter() -> None:
    # a late one, a resend, and two that contradict each other: every order leaves the same rows
    frames = [frame(WARM, T0), frame(COLD, T0 + 5), frame(COLD, T0, speed=100), frame(WARM, T0)]
    seen = set()
    for order in itertools.permutations(frames):
        sink = MemorySink(PARTITIONS)
        await drained(await journal_of(order), sink, BUS_FILE, batch_frames_max=1)
        seen.add(
            repr(sorted((str(row["time"]), row["digest"], repr(row.get("extra"))) for row in sink.telemetry.values()))
        )
    assert len(seen) == 1


async def test_into_postgresql_and_out_of_the_api(dsn: str, tmp_path: Path) -> None:
    # the second batch is late: it goes through the merge
    frames = [frame(WARM, T0 + 10), frame(COLD, T0), frame(COLD, T0), frame(b"", T0 - 10)]
    sink = PostgresSink(dsn, Settings())
    await sink.open()
    await drained(await journal_of(frames), sink, BUS_FILE, batch_frames_max=1)
    await sink.close()
    with psycopg.connect(dsn) as connection:
        stored = [row[0] for row in connection.execute("SELECT extra FROM telemetry ORDER BY time")]
        text = connection.execute("SELECT extra ->> 'cabin_temp_c' FROM telemetry ORDER BY time DESC").fetchone()
    assert stored == [None, COLD_EXTRA, WARM_EXTRA]
    assert text == ("21.5",)

    async with api(dsn, BUS_FILE) as client:
        latest = (await client.get(f"/v1/vehicles/{VIN}/latest")).json()
        assert latest["extra"]["cabin_temp_c"] == {
            "value": 21.5, "unit": "°C", "text": "air temperature at the second door", "meaning": None,
        }  # fmt: skip
        assert latest["extra"]["front_door"]["meaning"] == "open"
        assert latest["extra_flaws"] == {"aircon_mode": "invalid"}
        signals = {each["name"]: each for each in (await client.get("/v1/signals")).json()["signals"]}
        assert signals["cabin_temp_c"]["unit"] == "°C"
        assert signals["aircon_mode"]["codes"]["1"] == "cooling"

        query = {"from": "2026-05-28T00:00:00Z", "to": "2026-05-30T00:00:00Z"}
        fields = {"fields": "cabin_temp_c,soc_pct,aircon_mode", **query}
        rows = (await client.get(f"/v1/vehicles/{VIN}/telemetry", params=fields)).json()["rows"]
        assert [(row["cabin_temp_c"], row["soc_pct"], row["aircon_mode"]) for row in rows] == [
            (None, 80, None), (-40, 80, 1), (21.5, 80, None),
        ]  # fmt: skip
        bucket = {"fields": "cabin_temp_c,soc_pct", "bucket": "1d", **query}
        rows = (await client.get(f"/v1/vehicles/{VIN}/telemetry", params=bucket)).json()["rows"]
        assert (rows[0]["cabin_temp_c_avg"], rows[0]["cabin_temp_c_min"], rows[0]["cabin_temp_c_count"]) == (
            -9.25,
            -40,
            2,
        )
        for form in ("csv", "parquet"):
            answer = await client.get(f"/v1/vehicles/{VIN}/telemetry", params={**fields, "format": form})
            assert answer.status_code == 200
        wrong = await client.get(f"/v1/vehicles/{VIN}/telemetry", params={"fields": "cabin_tmp_c"})
        assert "cabin_temp_c" in wrong.text

    # a changed file: what is stored stays readable, under the names of now; what is not named is shown without a unit
    changed = tmp_path / "changed.toml"
    changed.write_text(BUS_FILE.read_text("utf-8").replace("cabin_temp_c", "saloon_temp_c"), "utf-8")
    late = await journal_of([*frames, frame(WARM, T0 + 20)])
    sink = PostgresSink(dsn, Settings())
    await sink.open()
    await drained(late, sink, changed)
    await sink.close()
    async with api(dsn, changed) as client:
        rows = (await client.get(f"/v1/vehicles/{VIN}/telemetry", params={"fields": "saloon_temp_c", **query})).json()[
            "rows"
        ]
        assert [row["saloon_temp_c"] for row in rows] == [None, None, None, 21.5]
    async with api(dsn, None) as client:
        latest = (await client.get(f"/v1/vehicles/{VIN}/latest")).json()
        assert latest["extra"]["saloon_temp_c"] == {"value": 21.5, "unit": None, "text": None, "meaning": None}


@contextlib.asynccontextmanager
async def api(dsn: str, signals_file: Path | None) -> Any:
    settings = Settings.model_validate({"pipeline": {"signals_file": signals_file}})
    app = create_app(settings, Queries(dsn), now=lambda: datetime.fromtimestamp(T0 + 60, UTC))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://nevstream") as client,
    ):
        yield client


async def test_a_wrong_file_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "signals.toml"
    file.write_text('[[block]]\ntype = 0x81\n[[block.signal]]\nname = "soc_pct"\nbyte = 0\n')
    with pytest.raises(SettingsError, match=r"signals.toml:4:8: name 'soc_pct' is a signal of the standard"):
        signals_of(file)
    with pytest.raises(SettingsError, match="No such file"):
        Pipeline(
            Settings.model_validate({"pipeline": {"signals_file": tmp_path / "none"}}),
            MemoryJournal(1),
            MemorySink(1),
            [0],
        )
