"""Partitions dealt by Kafka's consumer group: each to one, to others when one goes, back to one that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from services.journal.kafka import KafkaJournal
from services.journal.kafka_group import KafkaGroup, member_name
from services.settings import Kafka
from tests.fix_kafka import Broker

PARTITIONS = 6


@pytest.fixture
async def kafka(apache_kafka: Broker, new_topic: Callable[[], str]) -> Kafka:
    made = apache_kafka.settings(new_topic(), session_timeout_s=1)
    await KafkaJournal(made, PARTITIONS).open()
    return made


class Members:
    """Members of a group, each followed as a pipeline would; ``shares`` by name, while they hold."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        self.groups: dict[str, KafkaGroup] = {}
        self.shares: dict[str, list[int]] = {}
        self.given: dict[str, int] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._stop = asyncio.Event()

    async def add(self, name: str) -> None:
        self.groups[name] = KafkaGroup(self.kafka, name)
        await self.groups[name].open()
        self._following[name] = asyncio.create_task(self._follow(name))

    async def end(self, name: str) -> None:
        self._following.pop(name).cancel()
        await self.groups.pop(name).close()
        self.shares.pop(name, None)

    async def close(self) -> None:
        for name in list(self.groups):
            await self.end(name)

    async def _follow(self, name: str) -> None:
        group = self.groups[name]
        while True:
            self.shares[name] = list(await group.next(self._stop))
            self.given[name] = self.given.get(name, 0) + 1
            while not group.moved:  # noqa: ASYNC110 - asked as the pipeline asks
                await asyncio.sleep(0.01)
            del self.shares[name]

    async def dealt(self, *sizes: int) -> None:
        """Wait until each partition has one owner, in shares of these sizes."""
        async with asyncio.timeout(30):
            while True:
                held = sorted(partition for share in self.shares.values() for partition in share)
                if held == list(range(PARTITIONS)) and tuple(sorted(map(len, self.shares.values()))) == sizes:
                    return
                await asyncio.sleep(0.01)


@pytest.fixture
async def members(kafka: Kafka) -> AsyncIterator[Members]:
    made = Members(kafka)
    yield made
    await made.close()


async def test_partitions_go_to_those_who_are_there(members: Members) -> None:
    await members.add("a")
    await members.dealt(6)
    await members.add("b")
    await members.dealt(3, 3)
    await members.add("c")
    await members.dealt(2, 2, 2)
    await members.end("a")  # without a word: noticed when its session is over
    await members.dealt(3, 3)


async def test_who_comes_back_in_time_disturbs_nobody(members: Members) -> None:
    members.kafka = members.kafka.model_copy(update={"session_timeout_s": 30.0})
    for name in "ab":
        await members.add(name)
    await members.dealt(3, 3)
    before, share = members.given["a"], members.shares["b"]
    await members.end("b")
    await members.add("b")
    await members.dealt(3, 3)
    assert members.given["a"] == before
    assert members.shares["b"] == share


async def test_what_the_store_refuses_is_dealt_again(members: Members) -> None:
    for name in "ab":
        await members.add(name)
    await members.dealt(3, 3)
    given = members.given["a"]
    members.groups["a"].refused()
    assert members.groups["a"].moved
    async with asyncio.timeout(30):
        while members.given["a"] == given:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await members.dealt(3, 3)


async def test_a_group_of_one_on_another_broker(tansu: Broker, new_topic: Callable[[], str]) -> None:
    kafka = tansu.settings(new_topic(), session_timeout_s=10)
    await KafkaJournal(kafka, PARTITIONS).open()
    members = Members(kafka)
    await members.add("alone")
    await members.dealt(PARTITIONS)
    await members.close()


async def test_nothing_to_wait_for_at_a_stop() -> None:
    stop = asyncio.Event()
    group = KafkaGroup(Kafka(), "alone")
    waiting = asyncio.ensure_future(group.next(stop))
    await asyncio.sleep(0)
    stop.set()
    assert list(await waiting) == []
    await group.close()


def test_a_member_has_the_name_of_its_machine() -> None:
    assert member_name(Kafka(member="box-1"), 2) == "box-1-pipeline-2"
    assert member_name(Kafka(), 0).endswith("-pipeline-0")
    assert len(member_name(Kafka(), 0)) > len("-pipeline-0")
