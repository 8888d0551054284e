"""Pipeline processes in Kafka's consumer group: killed, paused, added under load, with the broker away in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from benchmarks.rows import groups, record_of
from schemas.keys import partition_of_vin
from services.journal.kafka import KafkaJournal
from services.journal.memory import MemoryJournal
from services.pipeline.worker import Pipeline
from services.replaying import replay
from services.settings import Kafka, Settings
from services.store.postgres import PostgresSink
from services.topology import System, plain
from tests.e2e.conftest import Fleet, acked, ledger, until
from tests.fix_db import Databases
from tests.fix_kafka import Broker, make_apache

pytestmark = [pytest.mark.slow, pytest.mark.database]

PARTITIONS = 12
VEHICLES, REPORTS = 60, 240
Records = list[tuple[int, bytes]]


def load() -> list[Records]:
    """What gateways append, group by group; each tenth twice, as vehicles send it that have not seen the answer."""
    made: list[Records] = []
    for number, group in enumerate(groups(VEHICLES, REPORTS, VEHICLES, 7)):
        found: dict[int, list[bytes]] = {}
        for frames in group.by_partition.values():
            for frame in frames:
                vin = frame[4:21].rstrip(b"\0").decode()
                found.setdefault(partition_of_vin(vin, PARTITIONS), []).append(frame)
        records = [
            (partition, record_of(b"".join(frames), np.array([len(one) for one in frames], np.uint32)))
            for partition, frames in found.items()
        ]
        made += [records] * (2 if number % 10 == 0 else 1)
    return made


def content(dsn: str) -> dict[str, list[Any]]:
    """All that was stored, by VIN: ids are of no account."""
    queries = {
        "telemetry": "SELECT v.vin, to_jsonb(t) - 'vehicle_id' FROM telemetry t JOIN vehicles v USING (vehicle_id)",
        "vehicle_state": "SELECT vin, to_jsonb(s) - 'vehicle_id' FROM vehicle_state s JOIN vehicles USING (vehicle_id)",
        "ledger": "SELECT to_jsonb(l) FROM ledger l",
        "dead_letters": "SELECT to_jsonb(d) - 'offset' FROM dead_letters d",
        "logins": "SELECT to_jsonb(l) - 'offset' - 'vehicle_id' FROM logins l",
    }
    with psycopg.connect(dsn) as connection:
        return {
            name: sorted(json.dumps(row, sort_keys=True) for row in connection.execute(query).fetchall())
            for name, query in queries.items()
        }


async def by_memory(dsn: str, made: list[Records]) -> None:
    """The same records, by the journal in memory and one pipeline."""
    settings = Settings.model_validate({"journal": {"partitions": PARTITIONS}, "pipeline": {"idle_sleep_ms": 1.0}})
    journal, sink = MemoryJournal(PARTITIONS), PostgresSink(dsn, settings)
    for records in made:
        await journal.append(records)
    pipeline, stop = Pipeline(settings, journal, sink, range(PARTITIONS)), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline.run(stop))
        await pipeline.caught_up()
        stop.set()
    await sink.close()


class Workers:
    """Pipeline processes of one group, by number."""

    def __init__(self, kafka: Kafka, dsn: str, folder: Path) -> None:
        settings = Settings.model_validate(
            {
                "journal": {"kind": "kafka", "partitions": PARTITIONS, "kafka": plain(kafka.model_dump())},
                "database": {"dsn": dsn}, "runtime_dir": folder, "pipeline": {"processes": 1},
            }
        )  # fmt: skip
        self._folder = folder
        self._file = folder / "system.json"
        self._file.write_text(json.dumps(plain(settings.model_dump())))
        self._dsn = dsn
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int) -> None:
        with (self._folder / f"worker-{number}.log").open("ab") as out:
            self.processes[number] = subprocess.Popen(
                [sys.executable, "-m", "services.topology", "pipeline", str(number), str(self._file)],
                stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, "NEVSTREAM_LOG": "INFO"},
            )  # fmt: skip

    def kill(self, number: int, how: int = signal.SIGKILL) -> None:
        process = self.processes.pop(number)
        process.send_signal(how)
        process.wait(60)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("worker-*.log")))

    def owners(self) -> dict[int, int]:
        """partition → process id that claimed it last."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            rows = connection.execute("SELECT partition, owner FROM partition_owner").fetchall()
        return {partition: int(owner.rsplit(" ", 1)[1]) for partition, owner in rows}

    def wait_dealt(self, numbers: set[int]) -> None:
        """Until each partition is owned by one of these, and each of these owns some."""
        pids = {self.processes[number].pid for number in numbers}

        def dealt() -> bool:
            for number, process in self.processes.items():
                assert process.poll() is None, f"worker {number} ended: {self.logs()[-3000:]}"
            owners = self.owners()
            return len(owners) == PARTITIONS and set(owners.values()) == pids

        until(f"partitions are dealt to workers {sorted(numbers)}", dealt)

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(60)


@pytest.fixture
def workers(apache_kafka: Broker, tmp_path: Path, dsn: str) -> Iterator[Callable[[Kafka], Workers]]:
    made: list[Workers] = []

    def make(kafka: Kafka) -> Workers:
        made.append(Workers(kafka, dsn, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Appending:
    """A gateway's part: appends the load in a thread of its own, one group after the other, until told to hurry."""

    def __init__(self, kafka: Kafka, made: list[Records], pause_s: float) -> None:
        self.hurry = threading.Event()
        self.appended = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(kafka, made, pause_s)))
        self._thread.start()

    async def _run(self, kafka: Kafka, made: list[Records], pause_s: float) -> None:
        journal = KafkaJournal(kafka, PARTITIONS, "appending")
        for records in made:
            while True:
                try:
                    await journal.append(records)
                    break
                except Exception:  # noqa: BLE001 - a gateway goes on for ever; the test's patience ends it
                    await asyncio.sleep(0.1)
            self.appended += 1
            if not self.hurry.is_set():
                await asyncio.sleep(pause_s)
        await journal.close()

    def finish(self) -> None:
        self.hurry.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "the load was not appended"


def stored_all(dsn: str, kafka: Kafka) -> bool:
    async def ends() -> dict[int, int]:
        journal = KafkaJournal(kafka, PARTITIONS, "test")
        found = await journal.ends()
        await journal.close()
        return found

    with psycopg.connect(dsn) as connection:
        positions = dict(connection.execute('SELECT partition, "offset" FROM journal_positions').fetchall())
    return asyncio.run(ends()) == positions


def test_workers_killed_paused_and_added(
    apache_kafka: Broker,
    new_topic: Callable[[], str],
    workers: Callable[[Kafka], Workers],
    databases: Databases,
    dsn: str,
) -> None:
    made = load()
    kafka = apache_kafka.settings(new_topic(), session_timeout_s=2)
    asyncio.run(KafkaJournal(kafka, PARTITIONS, dsn=dsn).open())
    group = workers(kafka)
    for number in range(3):
        group.start(number)
    appending = Appending(kafka, made, 0.1)
    try:
        group.wait_dealt({0, 1, 2})
        # killed: its partitions go to the others when its session ends
        group.kill(0)
        group.wait_dealt({1, 2})
        # paused for longer than its session: the other has everything; then it wakes
        zombie = group.processes[1]
        zombie.send_signal(signal.SIGSTOP)
        until("the zombie has lost its partitions", lambda: set(group.owners().values()) == {group.processes[2].pid})
        before = appending.appended
        until("more was appended meanwhile", lambda: appending.appended > before + 5 or appending.appended == len(made))
        zombie.send_signal(signal.SIGCONT)
        group.wait_dealt({1, 2})
        # one more, and the one that was killed again
        group.start(3)
        group.start(0)
        group.wait_dealt({0, 1, 2, 3})
    finally:
        appending.finish()
    until("all is stored", lambda: stored_all(dsn, kafka))
    reference = databases.create(migrated=True)
    asyncio.run(by_memory(reference, made))
    found, wanted = content(dsn), content(reference)
    databases.drop(reference)
    assert {name: len(rows) for name, rows in found.items()} == {name: len(rows) for name, rows in wanted.items()}
    assert found == wanted
    assert len(found["telemetry"]) == VEHICLES * REPORTS


def test_a_broker_that_is_away(
    apache_kafka: Broker, workers: Callable[[Kafka], Workers], databases: Databases, dsn: str, tmp_path: Path
) -> None:
    """Killed under load and started again after a while: nothing is lost, nothing doubled, and work goes on."""
    (tmp_path / "broker").mkdir()
    broker = make_apache(tmp_path / "broker")
    broker.start()
    try:
        made = load()
        kafka = broker.settings("frames", session_timeout_s=2, request_timeout_s=2)
        asyncio.run(KafkaJournal(kafka, PARTITIONS, dsn=dsn).open())
        group = workers(kafka)
        group.start(0)
        appending = Appending(kafka, made, 0.05)
        try:
            until("some was stored", lambda: bool(group.owners()) and appending.appended > 20)
            broker.stop()
            away = time.monotonic()
            until("the broker was away for a while", lambda: time.monotonic() > away + 8)
            broker.start()
        finally:
            appending.finish()
        until("all is stored", lambda: stored_all(dsn, kafka))
        reference = databases.create(migrated=True)
        asyncio.run(by_memory(reference, made))
        found, wanted = content(dsn), content(reference)
        databases.drop(reference)
        assert found == wanted
    finally:
        broker.close()


def test_the_whole_system_on_kafka(
    apache_kafka: Broker,
    new_topic: Callable[[], str],
    dsn: str,
    db: psycopg.Connection[Any],
    start_system: Callable[..., System],
    start_fleet: Callable[..., Fleet],
) -> None:
    """The same topology as on PostgreSQL: every acknowledged frame is accounted for."""
    kafka = apache_kafka.settings(new_topic(), session_timeout_s=2)
    system = start_system(
        dsn,
        journal={"kind": "kafka", "partitions": PARTITIONS, "kafka": plain(kafka.model_dump())},
        pipeline={"processes": 2},
    )
    fleet = start_fleet(system, "--vehicles", "40", "--reports", "100", "--speed", "0", "--period", "10", "--seed", "3")
    result = fleet.result()
    assert result["acked"] == result["sent"] > 0, result
    assert acked(system) >= result["acked"]
    until("the journal is stored", lambda: stored_all(dsn, kafka))
    found = ledger(db)
    assert found["frames"] == sum(found[name] for name in found if name != "frames")
    assert found["rejected"] == 0
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (40 * 100,)
    assert db.execute("SELECT count(*) FROM journal").fetchone() == (0,)
    # the topic is the archive: read again, it says the same
    now = datetime.now(UTC)
    again = asyncio.run(replay(system.settings, dsn, now - timedelta(hours=1), now + timedelta(hours=1)))
    assert again.frames == found["frames"]
    assert again.damaged == again.unreadable == again.refused == 0
    assert again.diff is not None
    assert again.diff.same
    assert again.diff.decoded == 40 * 100
