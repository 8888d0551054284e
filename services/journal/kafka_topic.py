"""The topic of the journal: made when it is missing, and checked at every start.

A topic that would lose frames is refused here, before the first vehicle is answered: compacted, of other
partitions, of fewer copies than an acknowledgement needs, or with a retention or a record size below what
the settings promise.  Each refusal names the command that mends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from services.errors import JournalUnavailable, SettingsError
from services.journal.kafka_line import connection_options, speaking
from services.settings import Kafka, TopicPolicy

log = logging.getLogger(__name__)

_DAY_MS: Final = 86_400_000
_LEADERS_WITHIN_S: Final = 10.0
_FOREVER: Final = -1


async def ensure_topic(kafka: Kafka, partitions: int) -> None:
    """Make the topic if the settings say so, and check it.  Raises ``SettingsError``, ``JournalUnavailable``."""
    options = connection_options(kafka, "admin")
    with speaking(kafka, "look at the topic"):
        admin = AIOKafkaAdminClient(**options)
        try:
            await asyncio.wait_for(admin.start(), 2 * kafka.request_timeout_s)
            found = await _described(admin, kafka)
            if found is None:
                if kafka.topic_policy is TopicPolicy.CHECK:
                    raise SettingsError(
                        f'the topic {kafka.topic!r} is not there, and journal.kafka.topic_policy is "check": make it '
                        f'({_command(kafka, partitions)}), or set topic_policy = "create"'
                    )
                await _create(admin, kafka, partitions)
                found = await _with_leaders(admin, kafka, partitions)
            check_layout(kafka, partitions, found)
            check_config(kafka, await _config(admin, kafka), min(copies for copies, _ in found))
        finally:
            await admin.close()


def check_layout(kafka: Kafka, partitions: int, found: list[tuple[int, int]]) -> None:
    """``found``: (copies, leader) of each partition."""
    if len(found) != partitions:
        raise SettingsError(
            f"journal.partitions is {partitions}, but the topic {kafka.topic!r} has {len(found)}, and every vehicle's "
            f"frames lie where that number puts them: set journal.partitions = {len(found)}, or journal.kafka.topic to "
            "another"
        )


def check_config(kafka: Kafka, config: Mapping[str, str], copies: int) -> None:
    """The topic's settings against ours; what a broker does not tell is not checked."""
    wrong: list[str] = []
    alter: list[str] = []

    def number(name: str) -> int | None:
        text = config.get(name)
        return int(text) if text not in (None, "") else None

    if "compact" in config.get("cleanup.policy", ""):
        wrong.append(f"cleanup.policy is {config['cleanup.policy']}: it would remove all but the newest frames")
        alter.append("cleanup.policy=delete")
    insync = number("min.insync.replicas")
    if insync is not None and insync > copies:
        wrong.append(
            f"min.insync.replicas is {insync} and a partition has only {copies} copies: nothing could be appended"
        )
        alter.append(f"min.insync.replicas={min(copies, kafka.min_insync_replicas)}")
    elif insync is not None and insync < kafka.min_insync_replicas:
        wrong.append(
            f"min.insync.replicas is {insync}, journal.kafka.min_insync_replicas {kafka.min_insync_replicas}: what was "
            "acknowledged would be in fewer places than the settings promise"
        )
        alter.append(f"min.insync.replicas={kafka.min_insync_replicas}")
    if copies < kafka.min_insync_replicas:
        wrong.append(
            f"a partition has {copies} copies, journal.kafka.min_insync_replicas is {kafka.min_insync_replicas}: add "
            "copies (kafka-reassign-partitions.sh), or lower the setting"
        )
    keeps_ms = number("retention.ms")
    if keeps_ms is not None and keeps_ms != _FOREVER and keeps_ms < kafka.retention_days * _DAY_MS:
        wrong.append(
            f"retention.ms is {keeps_ms} ({keeps_ms / _DAY_MS:.4g} days), journal.kafka.retention_days "
            f"{kafka.retention_days:g}: frames could go before they are stored"
        )
        alter.append(f"retention.ms={round(kafka.retention_days * _DAY_MS)}")
    largest = number("max.message.bytes")
    if largest is not None and largest < kafka.message_bytes_max:
        wrong.append(
            f"max.message.bytes is {largest}, journal.kafka.message_bytes_max {kafka.message_bytes_max}: large records "
            "would be refused"
        )
        alter.append(f"max.message.bytes={kafka.message_bytes_max}")
    if wrong:
        mend = (
            f"\n  mend it: kafka-configs.sh --bootstrap-server {kafka.brokers} --alter --entity-type topics "
            f"--entity-name {kafka.topic} --add-config {','.join(alter)}\n  or change the settings named"
            if alter
            else ""
        )
        raise SettingsError(f"the topic {kafka.topic!r} does not fit:\n  " + "\n  ".join(wrong) + mend)
    flush = number("flush.messages")
    if copies == 1 and flush is not None and flush > 1:
        log.warning(
            "the topic %r has one copy and flush.messages is %d: an acknowledged frame may be lost with the broker's "
            "power; set flush.messages=1, or have more copies",
            kafka.topic, flush,
        )  # fmt: skip
    bound = number("retention.bytes")
    if bound is not None and bound != _FOREVER:
        log.warning(
            "the topic %r keeps %d bytes a partition at most (retention.bytes): in an outage frames may go before they "
            "are stored, whatever retention.ms says",
            kafka.topic, bound,
        )  # fmt: skip
    for name in ("min.insync.replicas", "retention.ms", "max.message.bytes"):
        if name not in config:
            log.info("the broker does not tell %s of the topic %r: not checked", name, kafka.topic)


def topic_configs(kafka: Kafka) -> dict[str, str]:
    """What a topic is made with."""
    configs = {
        "cleanup.policy": "delete",
        "min.insync.replicas": str(kafka.min_insync_replicas),
        "retention.ms": str(round(kafka.retention_days * _DAY_MS)),
        "retention.bytes": "-1",
        "max.message.bytes": str(kafka.message_bytes_max),
        "unclean.leader.election.enable": "false",
        # The broker's clock: what retention goes by, and the look-up of a time, must not be a gateway's.
        "message.timestamp.type": "LogAppendTime",
    }
    if kafka.replication == 1:
        configs["flush.messages"] = "1"  # no other copy outlives a power cut
    return configs


def _command(kafka: Kafka, partitions: int) -> str:
    configs = " ".join(f"--config {name}={value}" for name, value in topic_configs(kafka).items())
    return (
        f"kafka-topics.sh --bootstrap-server {kafka.brokers} --create --topic {kafka.topic} --partitions {partitions} "
        f"--replication-factor {kafka.replication} {configs}"
    )


async def _described(admin: AIOKafkaAdminClient, kafka: Kafka) -> list[tuple[int, int]] | None:
    """(copies, leader) of each partition; None when there is no such topic."""
    # Not asked for by name at first: brokers that make topics by themselves would make it, in their own way.
    if kafka.topic not in await admin.list_topics():
        return None
    (topic,) = await admin.describe_topics([kafka.topic])
    kind = errors.for_code(topic["error_code"])
    if kind is errors.UnknownTopicOrPartitionError:
        return None
    if kind not in (errors.NoError, errors.LeaderNotAvailableError):
        raise kind(kafka.topic)
    return [(len(one["replicas"]), one["leader"]) for one in topic["partitions"]]


async def _create(admin: AIOKafkaAdminClient, kafka: Kafka, partitions: int) -> None:
    wanted = NewTopic(kafka.topic, partitions, kafka.replication, topic_configs=topic_configs(kafka))
    answer: Any = await admin.create_topics([wanted])
    for row in answer.topic_errors:
        kind, told = errors.for_code(row[1]), row[2] if len(row) > 2 else ""
        if kind is errors.InvalidReplicationFactorError:
            raise SettingsError(
                f"the topic {kafka.topic!r} cannot be made with journal.kafka.replication = {kafka.replication}: "
                f"{told} A single broker needs replication = 1 and min_insync_replicas = 1"
            )
        if kind in (errors.InvalidConfigurationError, errors.InvalidPartitionsError, errors.PolicyViolationError):
            raise SettingsError(f"the topic {kafka.topic!r} cannot be made: {told or kind.__name__}")
        if kind not in (errors.NoError, errors.TopicAlreadyExistsError):  # another process was quicker
            raise kind(told)
        if kind is errors.NoError:
            log.info("made the topic %r with %d partitions", kafka.topic, partitions)


async def _with_leaders(admin: AIOKafkaAdminClient, kafka: Kafka, partitions: int) -> list[tuple[int, int]]:
    """The new topic, once its partitions are led: before that an append would fail."""
    loop = asyncio.get_running_loop()
    by = loop.time() + _LEADERS_WITHIN_S
    while loop.time() < by:
        found = await _described(admin, kafka)
        if found is not None and len(found) >= partitions and all(leader >= 0 for _, leader in found):
            return found
        await asyncio.sleep(0.05)
    raise JournalUnavailable(f"the topic {kafka.topic!r} was made, but after {_LEADERS_WITHIN_S:.0f} s has no leaders")


async def _config(admin: AIOKafkaAdminClient, kafka: Kafka) -> dict[str, str]:
    """The topic's settings; empty when this user may not see them, or the broker has none to show."""
    try:
        answers: Any = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, kafka.topic)])
    except errors.KafkaError as error:
        log.warning("the settings of the topic %r cannot be read (%s): not checked", kafka.topic, error)
        return {}
    found: dict[str, str] = {}
    for answer in answers:
        for code, told, _, name, entries in answer.resources:
            if name != kafka.topic:
                continue
            if errors.for_code(code) is not errors.NoError:
                log.warning("the settings of the topic %r cannot be read (%s): not checked", kafka.topic, told)
                continue
            found |= {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    return found
