"""From a client's publish to the answer of the API; and that order and company of messages change nothing."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import httpx
import orjson
import paho.mqtt.client as paho
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import Codec, Door
from schemas.keys import partition_of_vin
from schemas.mqtt.topics import BMS, TELEMETRY, json_uplink
from schemas.reasons import CODE
from services.gateway.server import Gateway
from services.journal.memory import MemoryJournal
from services.journal.postgres import PostgresJournal
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.directory import MemoryDirectory
from services.store.letters import Letters
from services.store.memory import MemorySink
from services.store.postgres import PostgresSink
from services.store.queries import Queries
from services.web.app import create_app
from tests.pipeline.conftest import Sent, record_of, report_frame

VIN, OTHER = "LNBSCB3F4JW000001", "LNBSCB3F4JW000002"
PARTITIONS = 4
PATIENCE_S = 60.0
T = 1_780_000_000


def settings_of(**pipeline: Any) -> Settings:
    return Settings.model_validate(
        {
            "gateway": {"mqtt": {"port": 0}, "gbt32960": {"port": 0}},
            "journal": {"partitions": PARTITIONS},
            "pipeline": {"idle_sleep_ms": 1.0, **pipeline},
        }
    )


async def moved(journal: Any, sink: Any, settings: Settings, clock: Any = time.time) -> None:
    """Everything in the journal to the sink."""
    pipeline, stop = Pipeline(settings, journal, sink, range(PARTITIONS), clock), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline.run(stop), name="pipeline")
        await asyncio.wait_for(pipeline.caught_up(), PATIENCE_S)
        stop.set()


def publish(address: tuple[str, int], vin: str, messages: Sequence[tuple[str, bytes]]) -> None:
    """With paho, QoS 1; returns when all are acknowledged."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, vin, protocol=paho.MQTTv5)
    ready = threading.Event()
    client.on_connect = lambda *_: ready.set()
    client.connect(*address)
    client.loop_start()
    try:
        assert ready.wait(PATIENCE_S)
        sent = [client.publish(topic, payload, qos=1) for topic, payload in messages]
        for one in sent:
            one.wait_for_publish(PATIENCE_S)
            assert one.is_published()
    finally:
        client.disconnect()
        client.loop_stop()


async def test_paho_to_latest(dsn: str) -> None:
    settings = settings_of()
    journal = MemoryJournal(PARTITIONS)
    gateway = Gateway(settings, journal, MemoryDirectory())
    await gateway.start()
    now = int(time.time())
    telemetry, bms = json_uplink(VIN), json_uplink(VIN, BMS)
    messages = [
        (
            telemetry,
            orjson.dumps({"time": now * 1000, "speed_kmh": 65.3, "soc_pct": 80, "alarm_flags": 1, "own": "\0😀"}),
        ),
        (bms, orjson.dumps({"time": now * 1000, "cells_v": [3.301, None, 3.299], "temps_c": [25, 26], "soc_mpct": 1})),
        (telemetry, orjson.dumps([{"time": (now - k) * 1000, "speed_kmh": k} for k in (5, 9, 7)])),
        (telemetry, b'{"speed_kmh": 1}'),
        (telemetry, b'[{"time": 1}, {"time": 17800000'),
        (bms, b"[" * 200_000),
        (telemetry, b"x" * 262_100),
        (json_uplink(OTHER), b"{}"),
    ]
    await asyncio.to_thread(publish, gateway.addresses["mqtt"], VIN, messages)
    await gateway.drain(PATIENCE_S)
    sink = PostgresSink(dsn, settings)
    await sink.open()
    await moved(journal, sink, settings)
    await sink.close()
    queries = Queries(dsn)
    transport = httpx.ASGITransport(create_app(settings, queries))
    async with httpx.AsyncClient(transport=transport, base_url="http://nevstream") as client:
        latest = (await client.get(f"/v1/vehicles/{VIN}/latest")).json()
        assert (latest["edition"], latest["door"], latest["kind"], latest["parts"]) == (None, "mqtt", "realtime", 2)
        assert latest["signals"]["speed_kmh"] == pytest.approx(65.3, abs=1e-5)
        assert latest["signals"]["soc_pct"] == 80
        assert latest["signals"]["cell_max_v"] == pytest.approx(3.301, abs=1e-6)
        assert latest["alarms"] == ["temperature_difference"]
        assert latest["packs"][0]["cells_v"] == [3.301, None, 3.299]
        assert latest["temps"][0]["temps_c"] == [25, 26]
        assert latest["extra"]["own"]["value"] == "\ufffd😀"
        vehicle = (await client.get(f"/v1/vehicles/{VIN}")).json()
        assert (vehicle["edition"], vehicle["reports"]) == (None, 5)
        assert vehicle["speed_kmh"] == pytest.approx(65.3, abs=1e-5), "telemetry is the newest of its second"
        letters = (await client.get(f"/v1/dead-letters?vin={VIN}")).json()["dead_letters"]
        assert sorted(one["reason"] for one in letters) == sorted(
            ["bad_json", "bad_json", "json_limit", "bad_json", "foreign_vin"]
        )
        limit = next(one for one in letters if one["reason"] == "json_limit")
        detail = (await client.get(f"/v1/dead-letters/{limit['id']}")).json()
        assert [row["field"] for row in detail["annotated"]][:2] == ["vin", "JSON"]
        assert [row["offset"] for row in detail["annotated"] if row["error"]] == [17 + 1 + 8]
    await queries.close()
    with psycopg.connect(dsn) as connection:
        (frames, stored, rejected) = connection.execute(
            "SELECT sum(frames - other), sum(rows), sum(rejected) FROM ledger"
        ).fetchone() or (0, 0, 0)
        assert (frames, stored, rejected) == (10, 5, 5), "a payload counts by its samples"
        cells = connection.execute(
            "SELECT cell_voltages(cells, edition), probe_temps(temps, edition) FROM telemetry WHERE cells IS NOT NULL"
        ).fetchone()
        assert cells == ([pytest.approx(3.301), None, pytest.approx(3.299)], [25, 26])


async def test_a_sample_refused_by_a_setting_is_requeued(dsn: str) -> None:
    settings = settings_of(json_values_max=2)
    journal = PostgresJournal(dsn, PARTITIONS)
    await journal.open()
    samples = [{"time": T * 1000}, {"time": T * 1000 + 1000, "cells_v": [3.3] * 5}, {"time": "?"}]
    partition = partition_of_vin(VIN, PARTITIONS)
    await journal.append([(partition, record_of([json_sent(VIN, samples, Codec.JSON_BMS)]))])
    sink = PostgresSink(dsn, settings)
    await sink.open()
    await moved(journal, sink, settings)
    with psycopg.connect(dsn) as connection:
        found = connection.execute('SELECT partition, "offset", position, reason, frame FROM dead_letters ORDER BY 3')
        limited, timeless = found.fetchall()
    assert (limited[3], timeless[3]) == (CODE["json_limit"], CODE["bad_json"])
    assert bytes(timeless[4]) == VIN.encode() + b'{"time":"?"}', "a letter is a payload of the one sample"
    letters = Letters(dsn, journal, settings)
    done = await letters.requeue([limited[:3]], by="test")
    done_edited = await letters.requeue([timeless[:3]], by="test", frame=orjson.dumps({"time": T * 1000 + 2000}))
    assert (len(done.frames), len(done_edited.frames), done.skipped) == (1, 1, {})
    await letters.close()
    await moved(journal, sink, settings_of())
    with psycopg.connect(dsn) as connection:
        times = connection.execute("SELECT extract(epoch FROM time)::bigint FROM telemetry ORDER BY 1").fetchall()
        assert [second for (second,) in times] == [T, T + 1, T + 2]
        ledger = connection.execute("SELECT sum(frames), sum(rows), sum(rejected) FROM ledger").fetchone()
        assert ledger == (5, 3, 2)
    await sink.close()
    await journal.close()


# -- order -------------------------------------------------------------------------------------------------


def json_sent(vin: str, payload: Any, codec: int = Codec.JSON_TELEMETRY, received_s: float = T + 60) -> Sent:
    body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    return Sent(vin.encode() + body, received_s, codec=codec, door=Door.MQTT)


@dataclass(frozen=True)
class Message:
    vin: str
    sent: Sent


def sample(second: int, **more: Any) -> dict[str, Any]:
    return {"time": (T + second) * 1000, **more}


MESSAGES = [
    Message(VIN, json_sent(VIN, [sample(3, speed_kmh=3), sample(1, speed_kmh=1), sample(2, odd={"a": 1})])),
    Message(VIN, json_sent(VIN, sample(2, speed_kmh=2, cells_v=[3.3]), Codec.JSON_BMS)),
    Message(VIN, json_sent(VIN, [sample(1, speed_kmh=1), sample(3, speed_kmh=300), {"no": "time"}])),
    Message(VIN, Sent(report_frame(VIN, T + 2), T + 60)),
    Message(VIN, Sent(report_frame(VIN, T + 9, soc=50), T + 60)),
    Message(OTHER, json_sent(OTHER, [sample(k, soc_pct=k) for k in (5, 4)])),
    Message(OTHER, Sent(report_frame(OTHER, T + 5), T + 60)),
    Message(OTHER, json_sent(OTHER, sample(99_999))),
    Message(OTHER, json_sent(OTHER, b"[{},]")),
]


async def content(records: Sequence[Sequence[Message]]) -> Any:
    """What ends in the store when these messages come in these records."""
    journal, sink, settings = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS), settings_of()
    for record in records:
        by_partition: dict[int, list[Sent]] = {}
        for message in record:
            by_partition.setdefault(partition_of_vin(message.vin, PARTITIONS), []).append(message.sent)
        await journal.append([(partition, record_of(sent)) for partition, sent in by_partition.items()])
    await moved(journal, sink, settings)
    name_of = {vehicle_id: vin for vin, vehicle_id in sink.vehicles.items()}
    total = {name: sum(line[name] for line in sink.ledger.values()) for name in ("frames", "rows", "rejected")}
    total["again"] = sum(line["duplicates"] + line["conflicts"] for line in sink.ledger.values())
    assert total["frames"] == total["rows"] + total["rejected"] + total["again"]
    assert len(sink.dead_letters) == total["rejected"]

    def plain(row: dict[str, Any]) -> Any:
        return repr(sorted((k, v) for k, v in row.items() if k != "vehicle_id" and v is not None))

    telemetry = {(name_of[row["vehicle_id"]], plain(row)) for row in sink.telemetry.values()}
    states = {(name_of[key], plain(row)) for key, row in sink.states.items()}
    return telemetry, states, sorted(letter.frame for letter in sink.dead_letters.values()), total


def frozen(found: Any) -> str:
    telemetry, states, letters, total = found
    return repr((sorted(map(repr, telemetry)), sorted(map(repr, states)), letters, total))


@functools.cache
def _in_order() -> str:
    return frozen(asyncio.run(content([MESSAGES])))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(len(MESSAGES))), st.lists(st.integers(0, len(MESSAGES)), max_size=4))
def test_any_order_ends_in_the_same_content(order: list[int], cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(order)]
    records = [[MESSAGES[i] for i in order[a:b]] for a, b in pairwise(bounds) if a < b]
    assert frozen(asyncio.run(content(records))) == _in_order()


async def test_twice_is_once() -> None:
    once, twice = await content([MESSAGES]), await content([MESSAGES, MESSAGES])
    assert once[0] == twice[0]
    assert once[3]["rows"] == twice[3]["rows"]


async def test_samples_of_an_array_in_any_order_of_time() -> None:
    samples = [sample(k, speed_kmh=k) for k in range(4)]
    found = {frozen(await content([[Message(VIN, json_sent(VIN, list(order)))]])) for order in permutations(samples)}
    assert len(found) == 1


async def test_clock_errors_point_at_the_time() -> None:
    sink, journal = MemorySink(PARTITIONS), MemoryJournal(PARTITIONS)
    await journal.append([(0, record_of([json_sent(VIN, b'{"a": 1, "time": 1}')]))])
    await moved(journal, sink, settings_of())
    (letter,) = sink.dead_letters.values()
    assert (letter.reason, letter.detail, letter.vin) == (CODE["clock_past"], 17 + 9, VIN)


def test_topics() -> None:
    assert json_uplink(VIN, TELEMETRY) == f"nev/v1/{VIN}/telemetry"
    assert json_uplink(VIN, BMS) == f"nev/v1/{VIN}/bms"
