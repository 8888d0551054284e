"""Brokers that speak Kafka, one of a kind per session: Tansu from its wheel, and Apache Kafka where Maven brings it.

Each is started when a test first asks for it.  The header of pytest says which can run here, the summary which did.
Apache Kafka's jars are kept in ``~/.cache/nevstream-tests``; it is skipped, by name, where there is no Java 17 or
no Maven to fetch them with.  ``NEVSTREAM_TEST_KAFKA=none`` skips both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from benchmarks.brokers import (
    JARS,
    KAFKA_VERSION,
    MAIN_JAR,
    Broker,
    fetch_apache,
    make_apache,
    make_tansu,
    no_apache,
    no_tansu,
)

__all__ = ["Broker", "make_apache", "make_tansu"]

_ran: list[str] = []


def pytest_report_header() -> str:
    tansu, apache = no_tansu(), no_apache()
    fetched = "" if (JARS / MAIN_JAR).exists() else ", to be fetched with Maven"
    return (
        "journals: memory, PostgreSQL, "
        + ("Tansu" if tansu is None else f"no Tansu ({tansu})")
        + ", "
        + (f"Apache Kafka {KAFKA_VERSION}{fetched}" if apache is None else f"no Apache Kafka ({apache})")
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _ran:
        terminalreporter.write_line(f"brokers that ran: {', '.join(_ran)}")


@pytest.fixture(scope="session")
def tansu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if (why := no_tansu()) is not None:
        pytest.skip(f"Tansu: {why}")
    broker = make_tansu(tmp_path_factory.mktemp("tansu"))
    broker.start()
    _ran.append(broker.name)
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if (why := no_apache()) is not None:
        pytest.skip(f"Apache Kafka: {why}")
    if not (JARS / MAIN_JAR).exists() and (why := fetch_apache()) is not None:
        pytest.skip(f"Apache Kafka: {why}")
    broker = make_apache(tmp_path_factory.mktemp("kafka"))
    broker.start()
    _ran.append(broker.name)
    yield broker
    broker.close()


@pytest.fixture
def new_topic(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Names of topics that no other test uses."""
    count = iter(range(1000))
    stem = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:80]
    return lambda: f"{stem}.{time.monotonic_ns()}.{next(count)}"
