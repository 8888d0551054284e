"""Connections to Kafka: how brokers are reached, and the few requests that the reader makes itself.

aiokafka's consumer reads ahead by its own clock and cannot say "there is nothing more"; the seam asks for just
that.  So the reader sends fetch requests itself, one when it needs one, over aiokafka's client.  It must never
let a library's exception out: what goes wrong becomes ``JournalUnavailable`` or a ``SettingsError``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiokafka import TopicPartition, errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords

from services.errors import JournalUnavailable, SettingsError
from services.settings import Kafka, KafkaSecurity

# A broker that is away is tried ten times a second, and aiokafka tells of each: we tell of it once, ourselves.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

EARLIEST: Final = -2
LATEST: Final = -1

_PROTOCOLS: Final = {
    KafkaSecurity.PLAINTEXT: "PLAINTEXT",
    KafkaSecurity.TLS: "SSL",
    KafkaSecurity.SASL_PLAINTEXT: "SASL_PLAINTEXT",
    KafkaSecurity.SASL_TLS: "SASL_SSL",
}
# What a look at fresh metadata may mend at once.
_MOVED: Final = (
    errors.NotLeaderForPartitionError,
    errors.LeaderNotAvailableError,
    errors.ReplicaNotAvailableError,
    errors.UnknownTopicOrPartitionError,
    errors.NodeNotReadyError,
    errors.StaleMetadata,
)
_TRIES: Final = 3
# A broker may answer a fetch before it has looked, if that may take no time; one that has records and brought
# none is asked again.
_WAITS_MS: Final = (10, 50, 500)
_PAUSE_S: Final = 0.1


def connection_options(kafka: Kafka, client: str) -> dict[str, Any]:
    """What every aiokafka client takes: brokers, client id, time-outs, security.  Raises ``SettingsError``."""
    options: dict[str, Any] = {
        "bootstrap_servers": [broker.strip() for broker in kafka.brokers.split(",") if broker.strip()],
        "client_id": f"{kafka.client_id}-{client}",
        "request_timeout_ms": round(kafka.request_timeout_s * 1000),
        "security_protocol": _PROTOCOLS[kafka.security],
    }
    if kafka.security in (KafkaSecurity.TLS, KafkaSecurity.SASL_TLS):
        options["ssl_context"] = _tls(kafka)
    if kafka.security in (KafkaSecurity.SASL_PLAINTEXT, KafkaSecurity.SASL_TLS):
        options["sasl_mechanism"] = kafka.sasl_mechanism.value
        options["sasl_plain_username"] = kafka.username
        options["sasl_plain_password"] = _password(kafka)
    return options


def _tls(kafka: Kafka) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=kafka.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"journal.kafka.ca_file = {kafka.ca_file!r} cannot be used: {error}") from error
    if kafka.cert_file:
        try:
            context.load_cert_chain(kafka.cert_file, kafka.key_file or None, password="")
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"journal.kafka.cert_file = {kafka.cert_file!r} and key_file = {kafka.key_file!r} "
                f"cannot be used: {error}"
            ) from error
    return context


def _password(kafka: Kafka) -> str:
    if not kafka.password_file:
        return kafka.password.get_secret_value()
    try:
        return Path(kafka.password_file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"journal.kafka.password_file = {kafka.password_file!r} cannot be read: {error}") from error


@contextlib.contextmanager
def speaking(kafka: Kafka, what: str) -> Iterator[None]:
    """Whatever Kafka's client raises within, in our terms."""
    try:
        yield
    except (errors.TopicAuthorizationFailedError, errors.GroupAuthorizationFailedError,
            errors.ClusterAuthorizationFailedError) as error:  # fmt: skip
        raise SettingsError(
            f"Kafka does not allow the user {kafka.username or 'ANONYMOUS'!r} to {what}: {type(error).__name__}; "
            f"grant Read, Write and Describe on topic {kafka.topic!r} and Read on group {kafka.group!r} "
            "(kafka-acls.sh --add --allow-principal User:NAME --operation ...)"
        ) from error
    except (errors.AuthenticationFailedError, errors.UnsupportedSaslMechanismError, errors.IllegalSaslStateError,
            errors.SaslAuthenticationFailed) as error:  # fmt: skip
        raise SettingsError(
            f"Kafka at {kafka.brokers} refuses the user {kafka.username!r} ({kafka.sasl_mechanism.value}): {error}; "
            "see journal.kafka.username, password, sasl_mechanism"
        ) from error
    except (errors.KafkaError, OSError, TimeoutError) as error:
        raise JournalUnavailable(f"Kafka at {kafka.brokers} is away ({what}): {_told(error)}") from error


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Fetched:
    """A record as Kafka has it; ``at_ms`` is the time of its append (or of its producer's clock)."""

    partition: int
    offset: int
    at_ms: int
    body: bytes


@dataclass(slots=True)
class Answer:
    """What a fetch brought of one partition: records from ``begin`` on, and whether the offset exists at all."""

    records: list[Fetched]
    known: bool = True


class KafkaLine:
    """One client connection pool of this process, for ``what``; opened when first needed."""

    def __init__(self, kafka: Kafka, client: str) -> None:
        self._kafka = kafka
        self._name = client
        self._client: AIOKafkaClient | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def fetch(self, begins: Mapping[int, int], bytes_max: int, partition_bytes_max: int) -> dict[int, Answer]:
        """Records of partitions from the offsets in ``begins`` on; at once when there are none."""
        answers: dict[int, Answer] = {}
        for wait_ms in _WAITS_MS:

            def request(partitions: Sequence[int], wait_ms: int = wait_ms) -> FetchRequest:
                wanted = [(partition, begins[partition], partition_bytes_max) for partition in partitions]
                return FetchRequest(wait_ms, 1, bytes_max, 0, [(self._kafka.topic, wanted)])

            waiting = False
            async for partition, error, row in self._ask(list(begins), request, "read"):
                if error is errors.OffsetOutOfRangeError:
                    answers[partition] = Answer([], known=False)
                    continue
                answers[partition] = Answer(_unpacked(partition, begins[partition], row[-1] or b""))
                waiting |= row[2] > begins[partition]  # the end of what may be read
            if not waiting or any(answer.records for answer in answers.values()):
                break
        return answers

    async def offsets(self, partitions: Sequence[int], at_ms: int) -> dict[int, int]:
        """First offset at ``at_ms`` or later by partition, or of ``EARLIEST`` or ``LATEST``; -1 where there is none."""

        def request(some: Sequence[int]) -> OffsetRequest:
            return OffsetRequest(-1, 0, [(self._kafka.topic, [(partition, at_ms) for partition in some])])

        found = {}
        async for partition, _, row in self._ask(partitions, request, "ask for offsets"):
            none = at_ms >= 0 and row[-2] < 0  # told by the time; the offset is 0 with some brokers
            found[partition] = -1 if none else int(row[-1])
        return found

    async def _ask(
        self, partitions: Sequence[int], request: Callable[[Sequence[int]], Any], what: str
    ) -> AsyncIterator[tuple[int, type[Exception] | None, Sequence[Any]]]:
        """(partition, OffsetOutOfRange or None, its row of the answer) for each, from the brokers that lead them.

        ``request`` makes one for some of the partitions.
        """
        with speaking(self._kafka, what):
            client = await self._connected()
            left = list(partitions)
            for attempt in range(_TRIES):
                trouble: Exception | None = None
                by_node = _by_leader(client, self._kafka.topic, left)
                unled = by_node.pop(-1, [])
                if unled:
                    trouble = errors.LeaderNotAvailableError(f"no broker leads partitions {unled}")
                sent = [(some, client.send(node, request(some))) for node, some in by_node.items()]
                done = await asyncio.gather(*(answer for _, answer in sent), return_exceptions=True)
                left = list(unled)
                for (some, _), answer in zip(sent, done, strict=True):
                    if isinstance(answer, _MOVED):
                        trouble, left = answer, left + list(some)
                        continue
                    if isinstance(answer, BaseException):
                        raise answer
                    rows = list(_rows(answer))
                    if missing := set(some) - {partition for partition, _, _ in rows}:
                        trouble, left = errors.KafkaError(f"no answer for partitions {missing}"), left + sorted(missing)
                    for partition, code, row in rows:
                        kind = errors.for_code(code)
                        if issubclass(kind, _MOVED):
                            trouble = kind(f"partition {partition}")
                            left.append(partition)
                        elif kind is errors.NoError or kind is errors.OffsetOutOfRangeError:
                            yield partition, None if kind is errors.NoError else kind, row
                        else:
                            raise kind(f"partition {partition}")
                if not left:
                    return
                assert trouble is not None
                if attempt + 1 == _TRIES:
                    raise trouble
                await _within(client.force_metadata_update(), self._kafka.request_timeout_s)
                await asyncio.sleep(_PAUSE_S)

    async def _connected(self) -> AIOKafkaClient:
        async with self._opening:
            if self._client is None:
                client = AIOKafkaClient(**connection_options(self._kafka, self._name))
                try:
                    await _within(client.bootstrap(), 2 * self._kafka.request_timeout_s)
                    client.set_topics([self._kafka.topic])
                    await _within(client.force_metadata_update(), self._kafka.request_timeout_s)
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client


async def _within(work: Awaitable[Any], seconds: float) -> Any:
    return await asyncio.wait_for(asyncio.shield(work), seconds)


def _by_leader(client: AIOKafkaClient, topic: str, partitions: Sequence[int]) -> dict[int, list[int]]:
    """Partitions by the node that leads them, in the order given; -1 for those without a leader."""
    nodes: dict[int, list[int]] = {}
    for partition in partitions:
        leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        nodes.setdefault(-1 if leader is None else leader, []).append(partition)
    return nodes


def _rows(answer: Any) -> Iterator[tuple[int, int, Sequence[Any]]]:
    for _, rows in answer.topics:
        for row in rows:
            yield row[0], row[1], row


def _unpacked(partition: int, begin: int, data: bytes) -> list[Fetched]:
    """Records of a fetched set from ``begin`` on; a batch that the limit has cut off is left for the next fetch."""
    found: list[Fetched] = []
    batches = MemoryRecords(data)
    while batches.has_next():
        batch = batches.next_batch()
        if batch is None:
            break
        if not batch.validate_crc():
            raise errors.CorruptRecordException(
                f"partition {partition}: a batch from offset {begin} on has a wrong CRC"
            )
        if getattr(batch, "is_control_batch", False):
            continue
        found += [
            Fetched(partition, record.offset, record.timestamp or 0, bytes(record.value or b""))
            for record in batch
            if record.offset >= begin  # a batch may begin before what was asked for
        ]
    return found
