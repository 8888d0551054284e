"""The Kafka journal where the contract has no say: topics, brokers that go away, retention, what a broker cannot do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete

from schemas.journal.record import decode_records, encode_record, split_record
from schemas.keys import partition_of_vin
from schemas.seams import StoredRecord
from services import metrics
from services.errors import JournalUnavailable, SettingsError, UsageError
from services.journal.kafka import KafkaJournal
from services.journal.kafka_line import connection_options
from services.journal.kafka_topic import check_config, check_layout
from services.journal.postgres import PostgresJournal
from services.settings import Kafka, Settings
from services.store.queries import Queries
from tests.fix_kafka import Broker, make_apache

DAY_MS = 86_400_000
GOOD = {
    "cleanup.policy": "delete", "min.insync.replicas": "2", "retention.ms": str(7 * DAY_MS),
    "max.message.bytes": str(8 * 1024 * 1024), "retention.bytes": "-1",
}  # fmt: skip


# -- the topic -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"cleanup.policy": "compact"}, "--add-config cleanup.policy=delete"),
        ({"cleanup.policy": "compact,delete"}, "it would remove all but the newest frames"),
        ({"min.insync.replicas": "1"}, "--add-config min.insync.replicas=2"),
        ({"min.insync.replicas": "4"}, "a partition has only 3 copies: nothing could be appended"),
        ({"retention.ms": str(DAY_MS)}, rf"retention.ms is {DAY_MS} \(1 days\).*7: frames could go before"),
        ({"retention.ms": str(DAY_MS)}, f"--add-config retention.ms={7 * DAY_MS}"),
        ({"max.message.bytes": "1048588"}, f"--add-config max.message.bytes={8 * 1024 * 1024}"),
    ],
)
def test_a_topic_that_does_not_fit(config: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=f"(?s){said}"):
        check_config(Kafka(), GOOD | config, 3)


def test_a_topic_that_fits() -> None:
    check_config(Kafka(), GOOD, 3)
    check_config(Kafka(), GOOD | {"retention.ms": "-1", "min.insync.replicas": "3"}, 3)
    check_config(Kafka(), {}, 3)  # a broker that tells nothing
    check_layout(Kafka(), 2, [(3, 1), (3, 2)])


def test_a_topic_with_too_few_copies() -> None:
    with pytest.raises(SettingsError, match=r"has 1 copies, .*min_insync_replicas is 2.*kafka-reassign-partitions"):
        check_config(Kafka(), {}, 1)


def test_what_may_lose_frames_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    one = Kafka(replication=1, min_insync_replicas=1)
    config = GOOD | {"min.insync.replicas": "1", "flush.messages": "9223372036854775807", "retention.bytes": "1000"}
    check_config(one, config, 1)
    assert "lost with the broker's power" in caplog.text
    assert "keeps 1000 bytes a partition" in caplog.text


async def test_a_topic_of_other_partitions(apache_kafka: Broker, new_topic: Callable[[], str]) -> None:
    kafka = apache_kafka.settings(new_topic())
    first = KafkaJournal(kafka, 3)
    await first.open()
    await first.open()
    with pytest.raises(
        SettingsError, match=r"journal.partitions is 5, but the topic .* has 3.*set journal.partitions = 3"
    ):
        await KafkaJournal(kafka, 5).open()


async def test_a_topic_is_not_made_where_it_may_only_be_checked(
    apache_kafka: Broker, new_topic: Callable[[], str]
) -> None:
    kafka = apache_kafka.settings(new_topic(), topic_policy="check")
    with pytest.raises(SettingsError, match=r"kafka-topics.sh .* --partitions 3 .*--config flush.messages=1"):
        await KafkaJournal(kafka, 3).open()


async def test_more_copies_than_brokers(apache_kafka: Broker, new_topic: Callable[[], str]) -> None:
    kafka = apache_kafka.settings(new_topic(), replication=3, min_insync_replicas=2)
    with pytest.raises(SettingsError, match="A single broker needs replication = 1 and min_insync_replicas = 1"):
        await KafkaJournal(kafka, 3).open()


async def test_a_topic_somebody_else_made(apache_kafka: Broker, new_topic: Callable[[], str]) -> None:
    kafka = apache_kafka.settings(new_topic())
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.brokers)
    await admin.start()
    await admin.create_topics([NewTopic(kafka.topic, 3, 1, topic_configs={"cleanup.policy": "compact"})])
    await admin.close()
    with pytest.raises(SettingsError, match=r"(?s)cleanup.policy is compact.*max.message.bytes is 1048588") as raised:
        await KafkaJournal(kafka, 3).open()
    assert f"--entity-name {kafka.topic} --add-config cleanup.policy=delete,max.message.bytes=8388608" in str(
        raised.value
    )


# -- what brokers can ------------------------------------------------------------------------------


async def test_a_broker_without_idempotent_producers(
    tansu: Broker, new_topic: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic()
    journal = KafkaJournal(tansu.settings(topic), 2)
    await journal.open()
    await journal.append([(0, b"a")])
    assert journal.idempotent is False
    assert "has no idempotent producers" in caplog.text
    await journal.close()
    strict = KafkaJournal(tansu.settings(topic, idempotence="required"), 2)
    with pytest.raises(SettingsError, match='idempotence is "required"'):
        await strict.append([(0, b"a")])
    await strict.close()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
async def test_idempotent_and_compressed(
    apache_kafka: Broker, new_topic: Callable[[], str], compression: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = KafkaJournal(apache_kafka.settings(new_topic(), compression=compression, idempotence="required"), 2)
    await journal.open()
    await journal.append([(0, b"a" * 10_000), (1, b"b")])
    assert journal.idempotent is True
    assert [record.body for record in await journal.read({0: -1, 1: -1}, 1 << 20)] == [b"a" * 10_000, b"b"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    await journal.close()


async def test_nobody_listens() -> None:
    journal = KafkaJournal(Kafka(brokers="127.0.0.1:1", request_timeout_s=1), 2)
    for call in (journal.open(), journal.append([(0, b"a")]), journal.read({0: -1}, 10), journal.ends()):
        with pytest.raises(JournalUnavailable, match=r"Kafka at 127.0.0.1:1 is away"):
            await call
    await journal.close()


# -- large records ---------------------------------------------------------------------------------


def record_of(lengths: list[int], seed: int = 1, refused: bool = False) -> bytes:
    n, rng = len(lengths), np.random.default_rng(seed)
    return encode_record(
        rng.bytes(sum(lengths)),
        np.array(lengths, np.uint32),
        np.arange(n, dtype=np.int64),
        np.full(n, 2, np.uint8),
        np.ones(n, np.uint8),
        (
            (np.arange(n) % 2).astype(np.uint8), np.arange(n, dtype=np.uint32), np.ones(n, np.uint32),
            [{"peer": "10.0.0.1:1"}],
        )
        if refused
        else None,
    )  # fmt: skip


@pytest.mark.parametrize("refused", [False, True])
def test_a_record_in_parts_holds_the_same_frames(refused: bool) -> None:
    whole = record_of([300, 5000, 0, 1, 40_000, 300] * 5, refused=refused)
    parts = split_record(whole, 50_000)
    assert len(parts) > 4
    assert all(len(part) <= 50_000 for part in parts)
    before = decode_records([StoredRecord(0, 0, whole)])
    after = decode_records([StoredRecord(0, n, part) for n, part in enumerate(parts)])
    for name in ("data", "length", "received_us", "door", "codec", "reason", "detail"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert {str(after.sources[i - 1]) for i in after.source if i} == {
        str(before.sources[i - 1]) for i in before.source if i
    }
    assert len(split_record(record_of([60_000]), 50_000)) == 1  # a frame is not divided


async def test_a_record_larger_than_a_message_may_be(apache_kafka: Broker, new_topic: Callable[[], str]) -> None:
    journal = KafkaJournal(apache_kafka.settings(new_topic(), message_bytes_max=1024 * 1024), 2)
    await journal.open()
    large, small = record_of([60_000] * 60), record_of([100])
    offsets = await journal.append([(0, small), (1, large), (1, small)])
    assert offsets[:2] == [0, 0]
    assert offsets[2] > 3
    frames = decode_records(await journal.read({1: -1}, 1 << 26))
    assert list(frames.length) == [60_000] * 60 + [100]
    await journal.close()


# -- brokers that go away --------------------------------------------------------------------------


@pytest.fixture
async def own_broker(apache_kafka: Broker, tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker of this test's own, which may be paused and killed."""
    assert apache_kafka.process is not None  # there are jars
    broker = make_apache(tmp_path)
    broker.start()
    yield broker
    broker.close()


@pytest.mark.slow
async def test_a_broker_away_loses_nothing_and_doubles_nothing(own_broker: Broker) -> None:
    """Paused in the middle, then killed and started again: each record is there once, in its order."""
    journal = KafkaJournal(own_broker.settings("frames", request_timeout_s=1), 2)
    await journal.open()
    sent: list[list[tuple[int, bytes]]] = []
    offsets: list[list[int]] = []
    failures = 0

    async def write(number: int) -> None:
        nonlocal failures
        records = [(partition, b"%d/%d" % (number, partition)) for partition in (0, 1)]
        sent.append(records)
        while True:
            try:
                offsets.append(await journal.append(records))
                return
            except JournalUnavailable:
                failures += 1

    for number in range(3):
        await write(number)
    own_broker.pause()
    writing = asyncio.ensure_future(write(3))
    while failures < 2:  # noqa: ASYNC110 - what it waits for is a time-out
        await asyncio.sleep(0.05)
    own_broker.resume()
    await writing
    own_broker.stop()
    writing = asyncio.ensure_future(write(4))
    before = failures
    while failures < before + 2:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.to_thread(own_broker.start)
    await writing
    await write(5)
    found = await journal.read({0: -1, 1: -1}, 1 << 20)
    stored = {(record.partition, record.offset): record.body for record in found}
    assert len(found) == 12
    for records, of in zip(sent, offsets, strict=True):
        for (partition, body), offset in zip(records, of, strict=True):
            assert stored[partition, offset] == body
    for partition in (0, 1):
        assert [body for (one, _), body in sorted(stored.items()) if one == partition] == [
            b"%d/%d" % (number, partition) for number in range(6)
        ]
    # one that is given up while the broker is away does not keep the process from ending
    own_broker.stop()
    with pytest.raises(JournalUnavailable):
        await journal.append([(0, b"given up")])
    await asyncio.wait_for(journal.close(), 10)


# -- what retention took ---------------------------------------------------------------------------


async def delete_before(kafka: Kafka, partition: int, offset: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.brokers)
    await admin.start()
    await admin.delete_records({TopicPartition(kafka.topic, partition): RecordsToDelete(before_offset=offset)})
    await admin.close()


async def test_records_that_went_before_they_were_read(
    apache_kafka: Broker, new_topic: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    kafka = apache_kafka.settings(new_topic())
    journal = KafkaJournal(kafka, 2)
    await journal.open()
    for number in range(6):
        await journal.append([(0, b"%d" % number), (1, b"%d" % number)])
    await delete_before(kafka, 0, 4)
    lost = metrics.JOURNAL_LOST._value.get()
    # of a new database nothing is missed: it begins where the topic does
    assert [record.body for record in await journal.read({0: -1}, 1000)] == [b"4", b"5"]
    assert not caplog.records
    found = await journal.read({0: 1, 1: 4}, 1000)
    assert [(record.partition, record.body) for record in found] == [(0, b"4"), (0, b"5"), (1, b"5")]
    assert "begins at offset 4, and what lies before 2 is stored: 2 records went by Kafka's retention" in caplog.text
    assert metrics.JOURNAL_LOST._value.get() - lost == 2
    assert await journal.ends() == {0: 5, 1: 5}
    await delete_before(kafka, 0, 6)
    assert await journal.ends() == {1: 5}
    await journal.close()


async def test_a_topic_made_anew_is_not_read(apache_kafka: Broker, new_topic: Callable[[], str]) -> None:
    journal = KafkaJournal(apache_kafka.settings(new_topic()), 1)
    await journal.open()
    await journal.append([(0, b"a")])
    with pytest.raises(JournalUnavailable, match="ends at offset 1, but what lies before 10 is stored already"):
        await journal.read({0: 9}, 1000)
    await journal.close()


# -- who may speak, and with which database --------------------------------------------------------


def test_passwords_stay_where_they_are(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret \n")
    kafka = Kafka(security="sasl-plaintext", username="nev", password_file=str(file))
    assert connection_options(kafka, "x")["sasl_plain_password"] == "s3cret"
    given = Kafka(security="sasl-plaintext", username="nev", password="s3cret")
    assert "s3cret" not in repr(given)
    assert "s3cret" not in str(given.model_dump())
    with pytest.raises(SettingsError, match=r"password_file = .* cannot be read"):
        connection_options(Kafka(security="sasl-plaintext", username="nev", password_file=str(tmp_path / "no")), "x")
    with pytest.raises(SettingsError, match=r"ca_file = .* cannot be used"):
        connection_options(Kafka(security="tls", ca_file=str(file)), "x")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"security": "sasl-tls"}, "needs a username"),
        ({"security": "sasl-tls", "username": "a"}, "needs one of password and password_file"),
        ({"min_insync_replicas": 3, "replication": 2}, "nothing could be appended"),
        ({"key_file": "a"}, "key_file belongs to a cert_file"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as raised:
        Settings.read(overrides={"journal": {"kafka": {"password": "", "client_id": "s3cret", **given}}})
    assert "s3cret" not in str(raised.value)


async def test_a_user_that_is_refused(apache_kafka: Broker) -> None:
    """A door without SASL: said in words, with the settings to look at, and without the password."""
    kafka = apache_kafka.settings(
        "x", security="sasl-plaintext", username="nev", password="s3cret", request_timeout_s=2
    )
    with pytest.raises((SettingsError, JournalUnavailable)) as raised:
        await KafkaJournal(kafka, 1).open()
    assert "s3cret" not in str(raised.value)
    assert apache_kafka.address in str(raised.value)


@pytest.mark.database
async def test_a_database_of_another_journal(tansu: Broker, new_topic: Callable[[], str], dsn: str) -> None:
    kafka = tansu.settings(new_topic())
    journal = KafkaJournal(kafka, 2, dsn=dsn)
    await journal.open()
    await journal.open()
    other = PostgresJournal(dsn, 2)
    with pytest.raises(SettingsError, match=r'kind is postgres, .* set up with kafka, .* journal.kind = "kafka"'):
        await other.open()
    await other.close()
    with pytest.raises(SettingsError, match=r"journal.partitions is 3, but this database was set up with 2"):
        await KafkaJournal(kafka, 3, dsn=dsn).open()
    with pytest.raises(SettingsError, match=r"set journal.kafka.topic = "):
        await KafkaJournal(tansu.settings("another"), 2, dsn=dsn).open()


@pytest.mark.database
async def test_a_database_that_was_never_migrated(tansu: Broker, empty_dsn: str) -> None:
    with pytest.raises(UsageError, match="nevstream migrate"):
        await KafkaJournal(tansu.settings("x"), 2, dsn=empty_dsn).open()


@pytest.mark.database
async def test_what_waits_of_a_vehicle(
    apache_kafka: Broker, new_topic: Callable[[], str], dsn: str, db: psycopg.Connection[Any]
) -> None:
    journal = KafkaJournal(apache_kafka.settings(new_topic()), 2, dsn=dsn)
    await journal.open()
    vin = "LTEST000000000001"
    mine = partition_of_vin(vin, 2)
    assert await journal.backlog(vin) == {"records": 0, "oldest": None}
    for _ in range(3):
        await journal.append([(mine, b"a"), (1 - mine, b"b")])
    before = datetime.now(UTC) - timedelta(minutes=1)
    found = await journal.backlog(vin)
    assert found["records"] == 3
    assert before < found["oldest"] < before + timedelta(minutes=2)
    db.execute('INSERT INTO journal_positions (partition, "offset") VALUES (%s, 1)', [mine])
    assert (await journal.backlog(vin))["records"] == 1
    queries = Queries(dsn, backlog=journal.backlog)
    assert (await queries.diagnosis(vin, now=datetime.now(UTC)))["backlog"]["records"] == 1
    await queries.close()
    await journal.close()
