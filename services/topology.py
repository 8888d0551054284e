"""Which stage feeds which: the only module that knows all of them.

``vehicle ⇢ gateway → journal ⇢ pipeline → store ⇢ web``, and ``store ⇢ statistics → store``

:class:`System` is the one-machine form: the embedded PostgreSQL (unless a DSN is given) and one
process per gateway, pipeline, statistics and web, started, watched and stopped together.  Each process is
``python -m services.topology ROLE INDEX SETTINGS_FILE`` and joins just the stages it needs; those are
imported inside its role so that no process carries another's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from schemas import kernel_cache
from services.errors import NevstreamError, Unavailable, UsageError
from services.lifecycle import Supervisor, end_with_parent, report, reserve_port, share_port
from services.settings import JournalKind, Settings

if TYPE_CHECKING:
    from schemas.seams import JournalWriter
    from services.journal.kafka_group import KafkaGroup

log = logging.getLogger(__name__)

# Groups of kernels, see `warm_steps`: of about one size, because they compile side by side.
GATEWAY_KERNELS: Final = ("gateway",)
PIPELINE_KERNELS: Final = ("decode", "rows")
# Not waited for at a start: the statistics may come a minute later, frames may not wait for them.
STATISTICS_KERNELS: Final = ("statistics",)
STOP_ORDER: Final = ["gateway", "pipeline", "statistics", "web"]
READY_TIMEOUT_S: Final = 120.0

# Waiting for a database that is away at start: from 0.2 s up to 5 s between attempts, for ever; the
# log says so each time the wait grows.
_RETRY_FIRST_S: Final = 0.2
_RETRY_MAX_S: Final = 5.0
_REST: Final = 4.0  # times what it took: counting takes a fifth of the time at most


# A pipeline and the PostgreSQL process that it COPYs to take about 1.3 cores when they are busy, a gateway that feeds
# two of them less than one: so one pipeline for two cores, one gateway for four. More than 8 wait for each other at
# PostgreSQL's log. What PostgreSQL's own background work, statistics and API need fits in between.
_CORES_PER_PIPELINE: Final = 2
_CORES_PER_GATEWAY: Final = 4
_CHOSEN_MAX: Final = 8


def with_processes(settings: Settings, cores: int | None = None) -> Settings:
    """Settings whose numbers of processes are chosen where they say 0; ``cores``: those that this process may use."""
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    gateways = settings.gateway.processes or min(_CHOSEN_MAX, max(1, cores // _CORES_PER_GATEWAY))
    pipelines = settings.pipeline.processes or min(
        _CHOSEN_MAX, settings.journal.partitions, max(1, cores // _CORES_PER_PIPELINE)
    )
    return settings.model_copy(
        update={
            "gateway": settings.gateway.model_copy(update={"processes": gateways}),
            "pipeline": settings.pipeline.model_copy(update={"processes": pipelines}),
        }
    )


def plain(value: Any) -> Any:
    """Settings as JSON values, secrets in the clear: for a file that only this user can read."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return value


class System:
    """Everything on one machine, as processes.

    ``on_event(name, facts)`` hears of: ``compiling`` (step, seconds), ``database``, ``migrated``,
    ``started`` (child), ``exited``, ``halted`` (child, message: a pipeline refuses too much), ``ready``.
    Use as a context manager, or ``start`` and ``stop``.
    After ``start``: ``addresses`` {"mqtt": (host, port), "gbt32960": ..., "web": ...}, ``dsn``,
    ``pids`` {"gateway-0": pid, ...}, ``start_seconds``, ``compile_seconds``.
    """

    def __init__(
        self,
        settings: Settings,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
        cancel: threading.Event | None = None,
    ) -> None:
        if settings.journal.kind is JournalKind.MEMORY:
            raise UsageError(
                'journal.kind = "memory" cannot join processes (gateway and pipeline are two); set it to "postgres" or '
                '"kafka"'
            )
        self.settings = with_processes(settings)
        self.addresses: dict[str, tuple[str, int]] = {}
        self.dsn = ""
        self.start_seconds = 0.0
        self.compile_seconds = 0.0
        self._on_event = on_event or (lambda name, facts: None)
        self._ready_timeout_s = ready_timeout_s
        self._cancel = cancel
        self._held: list[socket.socket] = []
        self._server: Any = None
        self._database_due_s = 0.0  # when the server that does not start is tried again
        self._supervisor: Supervisor | None = None
        self.runtime_dir = settings.runtime_dir.absolute()
        self.metrics_dir = self.runtime_dir / "metrics"

    def __enter__(self) -> System:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the children that are running now."""
        children = self._supervisor.children.values() if self._supervisor else ()
        return {child.name: child.pid for child in children if child.pid is not None}

    @property
    def database_pid(self) -> int | None:
        """Process id of the embedded PostgreSQL; None when it is not running, or another server is used."""
        server = self._server
        return None if server is None else server.pid

    @property
    def children_ready(self) -> bool:
        children = self._supervisor.children.values() if self._supervisor else ()
        return bool(children) and all(child.ready.is_set() for child in children)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until every child is up (again)."""
        assert self._supervisor is not None
        self._supervisor.wait_ready(timeout_s)

    def start(self) -> None:
        """Start everything and return when every process is ready; on any failure nothing is left running."""
        begun = time.monotonic()
        if self.settings.pipeline.signals_file is not None:
            from services.own_signals import signals_of

            signals_of(self.settings.pipeline.signals_file)  # its mistakes are told here, once, before anything runs
        self.runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(self.metrics_dir, ignore_errors=True)
        self.metrics_dir.mkdir(mode=0o700)
        try:
            self._reserve()
            supervisor = Supervisor(
                {"PROMETHEUS_MULTIPROC_DIR": str(self.metrics_dir), **_thread_limits()},
                on_event=self._child_event,
                before=self._prepare,
                keep=self._keep_database,
                after=self._stop_database,
            )
            self._supervisor = supervisor
            # Compiling and starting PostgreSQL take a second or more each and do not need each other.
            supervisor.begin()
            file = self._write_settings()
            for role, count in (
                ("gateway", self.settings.gateway.processes),
                ("pipeline", self.settings.pipeline.processes),
                ("statistics", self.settings.statistics.processes),
                ("web", 1),
            ):
                for index in range(count):
                    argv = [sys.executable, "-m", "services.topology", role, str(index), str(file)]
                    supervisor.add(f"{role}-{index}", argv)
            supervisor.wait_ready(self._ready_timeout_s, self._cancel)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - begun
        self._on_event("ready", {"seconds": self.start_seconds})

    def stop(self, grace_s: float = 15.0) -> None:
        """Stop in order (doors, then pipeline, web, database); returns when no process is left."""
        if self._supervisor is not None:
            self._supervisor.stop(STOP_ORDER, grace_s)
            self._supervisor = None
        for held in self._held:
            held.close()
        self._held.clear()
        (self.runtime_dir / "system.json").unlink(missing_ok=True)

    # -- parts of start --------------------------------------------------------------------------

    def _reserve(self) -> None:
        doors = self.settings.gateway
        wanted = [("web", self.settings.web.host, self.settings.web.port, "web.port")]
        for name, door in (("mqtt", doors.mqtt), ("gbt32960", doors.gbt32960)):
            if door.enabled and door.plain:
                wanted.append((name, door.host, door.port, f"gateway.{name}.port"))
            if door.enabled and door.tls.enabled:
                wanted.append((f"{name}_tls", door.host, door.tls.port, f"gateway.{name}.tls.port"))
        for name, host, port, setting in wanted:
            held = reserve_port(host, port, setting)
            self._held.append(held)
            self.addresses[name] = (host, held.getsockname()[1])

    def _prepare(self) -> None:
        """In the supervisor's thread: compile kernels (a process of its own), meanwhile start the database."""
        warming = _Warming((*GATEWAY_KERNELS, *pipeline_kernels(self.settings)), self._on_event)
        try:
            self._start_database()
            from services.store.migrations import migrate

            applied = migrate(self.dsn)
            self._on_event("migrated", {"applied": applied})
        finally:
            self.compile_seconds = warming.finish()

    def _start_database(self) -> None:
        database = self.settings.database
        if database.dsn is not None:
            self.dsn = database.dsn.get_secret_value()
            return
        from services.store.embedded import EmbeddedServer

        begun = time.monotonic()
        self._server = EmbeddedServer(database.data_dir.absolute(), database.port)
        self.dsn = self._server.start()
        self._on_event("database", {"seconds": time.monotonic() - begun})

    def _keep_database(self) -> None:
        if self._server is None or self._server.running() or time.monotonic() < self._database_due_s:
            return
        if not self._database_due_s:
            self._on_event("exited", {"child": "postgres"})
        log.error("the embedded PostgreSQL has ended; starting it again")
        try:
            self._server.start()
        except (NevstreamError, OSError) as error:  # such as a full disk; gateways keep what they have meanwhile
            log.error("it does not start: %s; trying again in %.0f s", error, _RETRY_MAX_S)
            self._database_due_s = time.monotonic() + _RETRY_MAX_S
            return
        self._database_due_s = 0.0

    def _stop_database(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _write_settings(self) -> Path:
        """Settings for the children, secrets included, in a file only this user can read."""
        values = plain(self.settings.model_dump())
        values["database"]["dsn"] = self.dsn
        for door in ("mqtt", "gbt32960"):
            if door in self.addresses:
                values["gateway"][door]["port"] = self.addresses[door][1]
            if f"{door}_tls" in self.addresses:
                values["gateway"][door]["tls"]["port"] = self.addresses[f"{door}_tls"][1]
        values["web"]["port"] = self.addresses["web"][1]
        file = self.runtime_dir / "system.json"
        file.unlink(missing_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            json.dump(values, out)
        return file

    def _child_event(self, child: str, event: str, facts: dict[str, Any]) -> None:
        if event == "exited":
            from services.metrics import forget_process

            forget_process(facts["pid"], self.metrics_dir)
        self._on_event(event, {"child": child, **facts})


def _thread_limits() -> dict[str, str]:
    """One BLAS thread per child: no stage multiplies matrices, and idle thread pools cost memory."""
    return {name: os.environ.get(name, "1") for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


class _Warming:
    """Compiles what is not in the kernel cache yet, in processes of their own; workers then only load.

    ``common`` goes first, because the others inline its kernels and numba's cache does not bear two writers
    of one entry; then all groups side by side.
    """

    def __init__(self, groups: Sequence[str], on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._on_event = on_event
        self._begun = time.monotonic()
        self._groups = [group for group in groups if not kernel_cache.is_warm(kernel_cache.mode(), group)]
        self._common = self._start("common") if self._groups else None

    def _start(self, group: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "services.topology", "warm", group],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_thread_limits()},
            start_new_session=True,
        )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._on_event("compiling", json.loads(line))
        if process.wait() != 0:
            raise NevstreamError("compiling the kernels failed; the traceback above says where")

    def finish(self) -> float:
        """Report each step, wait for the end; returns seconds, 0 when all was there.  Raises when a kernel fails."""
        if self._common is None:
            return 0.0
        self._end(self._common)
        for process in [self._start(group) for group in self._groups]:
            self._end(process)
        return time.monotonic() - self._begun


def pipeline_kernels(settings: Settings) -> tuple[str, ...]:
    """The groups that a pipeline with these settings runs."""
    return PIPELINE_KERNELS if settings.pipeline.signals_file is None else (*PIPELINE_KERNELS, "custom")


def _load(groups: Sequence[str]) -> None:
    """Load this process's kernels from the cache before it says that it is ready."""
    for group in groups:
        for _, step in warm_steps(group):
            step()


def warm_steps(group: str) -> list[tuple[str, Callable[[], None]]]:
    """The modules with kernels of one group: ``common`` to all, or those of a stage."""
    modules: list[Any] = []
    if group == "common":
        from schemas import keys
        from schemas.gbt32960 import digest, frame, replies, times

        modules = [keys, times, digest, frame, replies]
    elif group == "gateway":
        from schemas.mqtt import scan
        from services.gateway import bridge_scan, gather, scan_gbt, scan_mqtt

        modules = [scan, scan_mqtt, scan_gbt, gather, bridge_scan]
    elif group == "decode":
        from schemas.gbt32960 import decode

        modules = [decode]
    elif group == "rows":
        from schemas.samples import split
        from services.pipeline import changes, rows, validate, vehicles

        modules = [validate, vehicles, rows, split, changes]
    elif group == "statistics":
        from services.statistics import alarms, battery, drive, folds, making, quality, reading

        modules = [reading, making, folds, quality, drive, battery, alarms]
    elif group == "custom":
        from schemas.custom import extract

        modules = [extract]
    elif group == "fleetsim":
        from services.fleetsim import chunks

        modules = [chunks]
    return [(module.__name__.removeprefix("schemas.").removeprefix("services."), module.warm) for module in modules]


# -- roles: what runs inside a child ---------------------------------------------------------------


async def _until_available(what: str, attempt: Callable[[], Any], stop: asyncio.Event) -> Any:
    """Call ``attempt`` until it does not raise ``Unavailable``, ever more slowly, or ``stop`` is set."""
    pause = _RETRY_FIRST_S
    while not stop.is_set():
        try:
            return await attempt()
        except Unavailable as error:
            log.warning("%s: %s; trying again in %.1f s", what, error, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
            pause = min(_RETRY_MAX_S, pause * 2)
    return None


def _dsn(settings: Settings) -> str:
    assert settings.database.dsn is not None, "a worker is given its database"
    return settings.database.dsn.get_secret_value()


async def run_gateway(settings: Settings, index: int, stop: asyncio.Event) -> None:
    """The doors of one process: sockets in, journal out, acks back."""
    from services.gateway.server import Gateway
    from services.journal.choice import journal_of
    from services.store.commands import PostgresCommands
    from services.store.directory import PostgresDirectory
    from services.store.keys import PostgresKeys

    _load(GATEWAY_KERNELS)
    dsn = _dsn(settings)
    journal = journal_of(settings, dsn, f"gateway-{index}")
    directory = PostgresDirectory(dsn)
    commands = PostgresCommands(dsn)
    keys = PostgresKeys(dsn, settings.encryption)
    try:
        await _until_available("journal", journal.open, stop)
        if stop.is_set():
            return
        gateway = Gateway(settings, journal, directory, commands, keys, index)
        await gateway.start()
        # What is here now stays: a full collection over it would stop every socket for a tenth of a second and more.
        gc.collect()
        gc.freeze()
        report("ready", addresses=gateway.addresses, index=index)
        stopped, broken = asyncio.create_task(stop.wait()), asyncio.create_task(gateway.wait())
        done, _ = await asyncio.wait((stopped, broken), return_when=asyncio.FIRST_COMPLETED)
        if broken in done:
            stopped.cancel()
            broken.result()  # raises: this process ends loudly and is started again
        else:
            await gateway.drain(10.0)
            await broken
    finally:
        await keys.close()
        await commands.close()
        await directory.close()
        await journal.close()


async def run_pipeline(settings: Settings, index: int, stop: asyncio.Event) -> None:
    """Journal to rows, for this process's share of the partitions."""
    from services.journal.choice import journal_of
    from services.pipeline.worker import Pipeline
    from services.store.keys import PostgresKeys
    from services.store.postgres import PostgresSink

    _load(pipeline_kernels(settings))
    dsn = _dsn(settings)
    shares = _shares(settings, index)
    mine = (
        [p for p in range(settings.journal.partitions) if p % settings.pipeline.processes == index]
        if not shares
        else []
    )
    journal = journal_of(settings, dsn, f"pipeline-{index}")
    sink = PostgresSink(dsn, settings)
    keys = PostgresKeys(dsn, settings.encryption)
    pruning: list[asyncio.Task[None]] = []
    if settings.alarms.webhooks:
        from services.webhooks.sender import trusted

        trusted(settings.alarms.webhook_ca_file)  # its mistakes are told before anything runs
    try:
        await _until_available("journal", journal.open, stop)
        await _until_available("store", sink.open, stop)
        if shares is not None:
            await _until_available("group", shares.open, stop)
        if stop.is_set():
            return
        report("ready", partitions=mine)
        if index == 0:
            pruning = [
                asyncio.create_task(_prune_letters(settings, dsn, journal, stop), name="prune dead letters"),
                asyncio.create_task(_prune_link_events(settings, dsn, stop), name="prune link events"),
                asyncio.create_task(_count_flaws(settings, dsn, stop), name="count flawed signals"),
                asyncio.create_task(_watch_offline(settings, dsn, stop), name="offline rule"),
                asyncio.create_task(_tell_alarms(settings, dsn, stop), name="tell of alarms"),
            ]
            if settings.alarms.webhooks:
                pruning.append(asyncio.create_task(_send_webhooks(settings, dsn, stop), name="webhooks"))
        pipeline = Pipeline(
            settings, journal, sink, mine, keys=keys, on_halt=lambda why: report("halted", message=why), shares=shares
        )
        await pipeline.run(stop)
    finally:
        for task in pruning:
            task.cancel()
        if pruning:
            await asyncio.wait(pruning)
        if shares is not None:
            await shares.close()
        await keys.close()
        await sink.close()
        await journal.close()


def _shares(settings: Settings, index: int) -> KafkaGroup | None:
    """Where partitions move between machines: this process's place in the group that they are dealt to."""
    if settings.journal.kind is not JournalKind.KAFKA:
        return None
    from services.journal.kafka_group import KafkaGroup, member_name

    return KafkaGroup(settings.journal.kafka, member_name(settings.journal.kafka, index))


async def _every(
    every_s: float, work: Callable[[], Awaitable[object]], failed: str, stop: asyncio.Event, rest: float = 0.0
) -> None:
    """Do ``work`` now and then every so often, until ``stop``; what it meets is logged as ``failed``, and it goes on.

    ``rest``: the pause is at least so many times as long as the work took.
    """
    import psycopg

    loop = asyncio.get_running_loop()
    while not stop.is_set():
        begun = loop.time()
        try:
            await work()
        except Unavailable as error:
            log.warning("%s: %s; trying again in %.0f s", failed, error, every_s)
        except psycopg.Error:  # ours to repair, and no reason to stop what else this process does
            log.exception("%s", failed)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(every_s, rest * (loop.time() - begun)))


async def _prune_letters(settings: Settings, dsn: str, journal: JournalWriter, stop: asyncio.Event) -> None:
    """Keep the dead letters within their bounds; in one pipeline process, at its start and then every so often."""
    from services.store.letters import Letters

    letters = Letters(dsn, journal, settings)
    bounds = settings.dead_letters

    async def prune() -> None:
        await letters.prune(bounds.age_max_days, bounds.rows_max)

    try:
        await _every(bounds.prune_every_s, prune, "dead letters were not pruned", stop)
    finally:
        await letters.close()


async def _prune_link_events(settings: Settings, dsn: str, stop: asyncio.Event) -> None:
    """Keep events of connections, ended commands and the audit log within their age; as :func:`_prune_letters`."""
    from services.store.access import PostgresAudit
    from services.store.commands import PostgresCommands
    from services.store.link_events import LinkEventsKept

    kept, commands, audit = LinkEventsKept(dsn), PostgresCommands(dsn), PostgresAudit(dsn)

    async def prune() -> None:
        await kept.prune(settings.link_events.age_max_days)
        await commands.prune(settings.gateway.commands.age_max_days)
        await audit.prune(settings.web.audit_age_max_days)

    try:
        await _every(settings.link_events.prune_every_s, prune, "events of connections were not pruned", stop)
    finally:
        await kept.close()
        await commands.close()
        await audit.close()


async def _count_flaws(settings: Settings, dsn: str, stop: asyncio.Event) -> None:
    """Count the flawed signals of days that have changed; as :func:`_prune_letters`."""
    from services.store.flaws import FlawCounter

    counter = FlawCounter(dsn)
    every_s = settings.data_quality.count_every_s
    try:
        await _every(every_s, counter.count, "flawed signals were not counted", stop, rest=_REST)
    finally:
        await counter.close()


async def run_statistics(settings: Settings, index: int, stop: asyncio.Event) -> None:
    """Trips, charges, battery, alarms and days of this process's shares of the vehicles."""
    from services.store.statistics import PostgresStatistics
    from services.terminal import zone_of

    zone_of(settings)  # its mistake is told before anything is compiled
    os.nice(5)  # on a busy machine frames go first
    report("ready", index=index)
    await _warm_statistics(index, stop)
    if stop.is_set():
        return
    from services.statistics.folds import folds
    from services.statistics.worker import Statistics

    _load(STATISTICS_KERNELS)
    dsn = _dsn(settings)
    store = PostgresStatistics(dsn, settings)
    aggregating: list[asyncio.Task[None]] = []
    if index == 0:
        aggregating = [asyncio.create_task(_aggregate_cohorts(settings, dsn, stop), name="aggregate cohorts")]
    try:
        await Statistics(settings, store, folds(settings.statistics.alarm_rules), index).run(stop)
    finally:
        for task in aggregating:
            task.cancel()
        if aggregating:
            await asyncio.wait(aggregating)
        store.close()


async def _aggregate_cohorts(settings: Settings, dsn: str, stop: asyncio.Event) -> None:
    """Keep the fleet's figures in step with the vehicles' days; in one statistics process, every so often."""
    from services.store.cohorts import Cohorts

    cohorts = Cohorts(dsn, settings.time_zone)
    every_s = settings.statistics.fleet_every_s
    try:
        await _every(every_s, cohorts.aggregate, "the fleet's figures were not made", stop, rest=_REST)
    finally:
        await cohorts.close()


async def _warm_statistics(index: int, stop: asyncio.Event) -> None:
    """The first of these processes has the kernels compiled, at the lowest priority; the others wait for it."""
    (group,) = STATISTICS_KERNELS
    if kernel_cache.is_warm(kernel_cache.mode(), group):
        return
    if index:
        begun = time.monotonic()
        while not (stop.is_set() or kernel_cache.is_warm(kernel_cache.mode(), group)):
            if time.monotonic() - begun > READY_TIMEOUT_S:
                return  # no place to keep them: every process compiles for itself
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.topology", "warm", group,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=_give_way,
    )  # fmt: skip
    ended, stopped = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if process.returncode is None:
            process.kill()
        await ended
        stopped.cancel()
    if process.returncode != 0 and not stop.is_set():
        raise NevstreamError("compiling the kernels of the statistics failed; the traceback above says where")


def _give_way() -> None:
    os.nice(10)


async def _watch_offline(settings: Settings, dsn: str, stop: asyncio.Event) -> None:
    """Raise and end the episodes of vehicles that are offline; as :func:`_prune_letters`."""
    from services import metrics
    from services.store.offline import OfflineRule

    rule, alarms = OfflineRule(dsn, settings.time_zone), settings.alarms
    every_s = alarms.offline_check_every_s

    async def look() -> None:
        looked = await rule.look(
            alarms.offline_after_h, grace_s=alarms.offline_grace_s, pause_s=max(900.0, 3 * every_s)
        )
        metrics.ALARMS_OFFLINE.labels("raised").inc(looked.raised)
        metrics.ALARMS_OFFLINE.labels("ended").inc(looked.ended)

    try:
        await _every(every_s, look, "vehicles that are offline were not looked for", stop)
    finally:
        await rule.close()


async def _tell_alarms(settings: Settings, dsn: str, stop: asyncio.Event) -> None:
    """Find what is new about alarms, for stream and webhooks, and drop what is old; as :func:`_prune_letters`."""
    from zoneinfo import ZoneInfo

    import psycopg

    from services.store.alarm_events import AlarmEvents
    from services.store.alarm_outbox import PostgresOutbox

    alarms, loop = settings.alarms, asyncio.get_running_loop()
    events = AlarmEvents(dsn, ZoneInfo(settings.time_zone), alarms.hooks(), alarms.webhook_news_max_h)
    outbox = PostgresOutbox(dsn)
    away, tidy_at = False, 0.0
    try:
        while not stop.is_set():
            try:
                await events.publish()
                if loop.time() >= tidy_at:
                    await events.prune(alarms.events_age_max_days)
                    await outbox.give_up(alarms.webhook_age_max_h * 3600)
                    tidy_at = loop.time() + settings.link_events.prune_every_s
                away = False
            except Unavailable as error:
                if not away:
                    log.warning("nothing is told of alarms: %s; trying on", error)
                away = True
            except psycopg.Error:  # ours to repair, and no reason to stop storing reports
                log.exception("nothing is told of alarms")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), alarms.publish_every_s)
    finally:
        await outbox.close()
        await events.close()


async def _send_webhooks(settings: Settings, dsn: str, stop: asyncio.Event) -> None:
    """Send what the outbox holds, begun again should it fail; as :func:`_prune_letters`."""
    from services.store.alarm_outbox import PostgresOutbox
    from services.webhooks.sender import Webhooks

    while not stop.is_set():
        outbox = PostgresOutbox(dsn)
        webhooks = Webhooks(settings.alarms, outbox)
        try:
            await webhooks.run(stop)
        except* Exception:  # ours to repair, and no reason to stop storing reports
            log.exception("the webhooks have ended; they are started again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _RETRY_MAX_S)
        finally:
            await webhooks.close()
            await outbox.close()


async def run_web(settings: Settings, _index: int, stop: asyncio.Event) -> None:
    """The HTTP API."""
    from services.journal.choice import journal_of
    from services.journal.postgres import PostgresJournal
    from services.store.access import PostgresAudit, PostgresTokens
    from services.store.alarms import PostgresAlarms
    from services.store.commands import PostgresCommands
    from services.store.letters import Letters
    from services.store.queries import Queries
    from services.store.registry import PostgresRegistry
    from services.web.server import BACKLOG, serve

    sock = share_port(settings.web.host, settings.web.port)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    dsn = _dsn(settings)
    journal = journal_of(settings, dsn, "web")
    try:
        await serve(
            settings,
            Queries(dsn, backlog=None if isinstance(journal, PostgresJournal) else journal.backlog),
            stop,
            sock=sock,
            started=lambda address: report("ready", address=address),
            letters=Letters(dsn, journal, settings),
            commands=PostgresCommands(dsn),
            registry=PostgresRegistry(dsn),
            alarms=PostgresAlarms(dsn),
            tokens=PostgresTokens(dsn),
            audit=PostgresAudit(dsn),
        )
    finally:
        await journal.close()


ROLES: Final = {
    "gateway": run_gateway,
    "pipeline": run_pipeline,
    "statistics": run_statistics,
    "web": run_web,
}


async def _run_role(role: str, index: int, settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await ROLES[role](settings, index, stop)


def _warm(group: str) -> None:
    from schemas.jit import MODE, warm

    warm(warm_steps(group), lambda step, seconds: print(json.dumps({"step": step, "seconds": seconds}), flush=True))
    kernel_cache.mark_warm(MODE, group)


def child_main(argv: list[str]) -> int:
    """Entry of a child process: ``warm GROUP...``, or ``ROLE INDEX SETTINGS_FILE``."""
    logging.basicConfig(
        level=os.environ.get("NEVSTREAM_LOG", "WARNING"),
        format=f"%(asctime)s %(levelname)s {'-'.join(argv[:2])} %(name)s: %(message)s",
    )
    end_with_parent()
    if argv[0] == "warm":
        for group in argv[1:]:
            _warm(group)
        return 0
    role, index, file = argv
    import uvloop

    settings = Settings.model_validate_json(Path(file).read_bytes())
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run_role(role, int(index), settings))
    except NevstreamError as error:
        log.error("%s", error)
        if not isinstance(error, Unavailable):
            report("fatal", message=str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(child_main(sys.argv[1:]))
