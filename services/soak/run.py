"""One soak from beginning to end: start, fleet, faults, calm, reckoning.

Works on a data directory of its own that is removed afterwards, or on an empty database that is given; it must never
touch one that holds vehicles.  What is asserted is in ``account`` alone: the rest only makes trouble.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from schemas import kernel_cache
from services.errors import NevstreamError, UsageError
from services.settings import Settings
from services.soak import faults
from services.soak.fleet import FleetProcess
from services.soak.injector import Injector
from services.soak.line import Line
from services.soak.memory import MemoryWatch
from services.soak.reckoning import (
    Content,
    Stored,
    aggregate,
    caught_up,
    content,
    differences,
    recompute,
    stored,
    told_of,
    wait_for,
)
from services.topology import System

QUICK_MINUTES: Final = 0.8
QUICK_VEHICLES: Final = 48
QUICK_FAULTS: Final = 30
FAULTS_PER_MINUTE: Final = 27  # two thirds of them kill
_CALM: Final = 0.12  # of the time, at the end, without faults
_CALM_MIN_S: Final = 5.0
_PERIOD_S: Final = 10
_SPEED_MAX: Final = 60.0  # data seconds per second
_DATA_SPAN_S: Final = 20 * 3600  # the data clock begins a day ago and must not catch up
_WINDOW: Final = 4
_ACK_TIMEOUT_S: Final = 8.0  # a vehicle reconnects when a gateway stands still for longer
_DRAIN_S: Final = 120.0
_PATIENCE_S: Final = 300.0  # for the journal, then for the statistics, to be followed up
_TICK_S: Final = 0.5

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class SoakSettings:
    """What to do.  ``dsn``: an empty database instead of an embedded PostgreSQL; its server is not killed then."""

    vehicles: int = 200
    minutes: float = 10.0
    seed: int = 1
    quick: bool = False
    faults: int | None = None  # None: FAULTS_PER_MINUTE
    gateways: int = 2
    pipelines: int = 2
    dsn: str | None = None

    @classmethod
    def short(cls, seed: int = 1, dsn: str | None = None) -> SoakSettings:
        """What ``--quick`` does."""
        return cls(QUICK_VEHICLES, QUICK_MINUTES, seed, True, QUICK_FAULTS, dsn=dsn)

    @property
    def seconds(self) -> float:
        return 60 * self.minutes

    @property
    def planned(self) -> int:
        return round(FAULTS_PER_MINUTE * self.minutes) if self.faults is None else self.faults


def soak(
    settings: SoakSettings, progress: Progress = lambda now: None, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Run it; the account as plain JSON values.  ``stop`` ends the faults early, and the reckoning comes all the same.

    ``progress`` hears of {"phase": ..., and counts}.  Raises ``NevstreamError`` when it cannot be carried out.
    """
    stop = stop or threading.Event()
    begun = time.monotonic()
    laps: dict[str, float] = {}

    def lap(phase: str) -> None:
        laps[phase] = round(time.monotonic() - begun - sum(laps.values()), 1)

    with _home() as home:
        system = System(_system_settings(settings, home), ready_timeout_s=300.0, cancel=stop)
        if settings.dsn is not None:
            _refuse_used(settings.dsn)
        progress({"phase": "starting"})
        _warm()
        system.start()
        line = Line({name: system.addresses[name] for name in ("mqtt", "gbt32960")})
        watch = MemoryWatch(lambda: system.pids)
        fleet: FleetProcess | None = None
        try:
            missing = _cannot(system)
            line.start()
            watch.start()
            lap("start")
            fleet = FleetProcess(_fleet_arguments(settings, line))
            injector = _faults(settings, system, line, fleet, missing, progress, stop)
            lap("faults")
            progress({"phase": "waiting for answers"})
            sent = fleet.finish(_DRAIN_S + 30.0)
            lap("answers")
            progress({"phase": "waiting for the statistics"})
            dsn = system.dsn
            _wait(dsn, caught_up, "the journal is not stored", fleet)
            _wait(dsn, told_of, "the statistics do not follow", fleet)
            _wait(dsn, lambda _: system.children_ready and _answers(system), "the system is not ready again", fleet)
            lap("followed up")
            with psycopg.connect(dsn, autocommit=True) as connection:
                found = stored(connection)
        finally:
            if fleet is not None:
                fleet.kill()
            line.stop()
            watch.stop()
            system.stop()
        progress({"phase": "computing the statistics again"})
        with _database(settings, home) as again:
            aggregate(again, _system_settings(settings, home))  # what the last round of it had not seen yet
            with psycopg.connect(again, autocommit=True) as connection:
                told = content(connection)
            anew = recompute(again, _system_settings(settings, home), lambda: None)
        lap("computed again")
    return account(settings, sent, found, told, anew) | {
        "faults": dict(sorted(injector.done.items())),
        "faults_missed": dict(sorted(injector.missed.items())),
        "faults_left_out": {name: faults.BY_NAME[name].needs for name in sorted(missing)},
        "kills": injector.kills,
        "memory_slope_mb_per_min": watch.slope("gateway", "pipeline"),
        "memory_slope_by_role": {role: watch.slope(role) for role in ("gateway", "pipeline", "statistics", "web")},
        "memory_most_mb": watch.most_mb(),
        "stopped_early": stop.is_set(),
        "seconds": laps | {"all": round(time.monotonic() - begun, 1)},
    }


def account(
    settings: SoakSettings, sent: dict[str, Any], found: Stored, told: Content, anew: Content
) -> dict[str, Any]:
    """Frames and rows against each other, and what is wrong with them (``problems``, empty when all is well)."""
    lost = max(0, sent["expected_stored"] - found.keys) + max(0, sent["expected_rejected"] - found.rejected)
    lost += max(0, found.rows - found.day_rows)
    duplicated = (found.rows - found.keys) + max(0, found.ledger["rows"] - max(found.rows, sent["expected_stored"]))
    duplicated += max(0, found.day_rows - found.rows) + max(0, found.reports - found.rows)
    problems: list[str] = []

    def expect(good: bool, what: str) -> None:
        if not good:
            problems.append(what)

    stored_wanted, rejected_wanted = sent["expected_stored"], sent["expected_rejected"]
    expect(bool(sent["complete"]), f"not everything sent was answered: {sent['last_error']}")
    if sent["complete"]:
        expect(found.keys == stored_wanted, f"{found.keys:,} reports are stored, {stored_wanted:,} were acknowledged")
        expect(found.rejected == rejected_wanted, f"{found.rejected} frames refused, {rejected_wanted} were planted")
    expect(found.unplanted == 0, f"{found.unplanted} frames refused that were sound: {found.letters}")
    booked = found.ledger
    parts = sum(booked[name] for name in ("rows", "duplicates", "conflicts", "rejected", "sessions", "other"))
    expect(booked["frames"] == parts, f"the ledger does not add up: {booked}")
    expect(booked["rows"] == found.rows, f"the ledger has {booked['rows']:,} rows, telemetry {found.rows:,}")
    expect(booked["conflicts"] == 0, f"{booked['conflicts']} conflicts")
    expect(booked["rejected"] == sum(found.letters.values()), "the ledger's rejected are not the dead letters")
    expect(found.reports == found.rows, f"vehicle_state counts {found.reports:,} reports, telemetry {found.rows:,}")
    expect(found.day_rows == found.rows, f"vehicle_day counts {found.day_rows:,} rows, telemetry {found.rows:,}")
    unequal = differences(told, anew)
    problems += [f"statistics: {line}" for line in unequal]
    expect(lost == 0, f"{lost} lost")
    expect(duplicated == 0, f"{duplicated} stored twice")
    return {
        "sent": sent["sent"],
        "acked": sent["acked"],
        "stored": found.keys,
        "rejected": found.rejected,
        "lost": lost,
        "duplicated": duplicated,
        "complete": sent["complete"],
        "expected_stored": stored_wanted,
        "expected_rejected": rejected_wanted,
        "resent": sent["resent"],
        "connects": sent["connects"],
        "drops": sent["drops"],
        "ack_p50_ms": sent["ack_p50_ms"],
        "ack_p99_ms": sent["ack_p99_ms"],
        "planted": {name: n for name, n in sent["planned"].items() if n},
        "dead_letters": found.letters,
        "ledger": booked,
        "statistics_equal": not unequal,
        "statistics_rows": {table: len(rows) - 1 for table, rows in told.items()},
        "problems": problems,
        "settings": asdict(settings) | {"dsn": None if settings.dsn is None else "given"},
    }


# -- parts ---------------------------------------------------------------------------------------------


@contextmanager
def _home() -> Iterator[Path]:
    """A directory that also the database's unprivileged user can enter; gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="nevstream-soak-"))
    home.chmod(0o711)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _system_settings(settings: SoakSettings, home: Path) -> Settings:
    database = {"data_dir": home / "pg"} if settings.dsn is None else {"dsn": settings.dsn}
    return Settings.model_validate(
        {
            "runtime_dir": home / "run",
            "database": database,
            "gateway": {
                "mqtt": {"port": 0},
                "gbt32960": {"port": 0},
                "processes": settings.gateways,
                "limits": {"unlimited_addresses": ["127.0.0.1/32"]},  # all vehicles come from here
            },
            "pipeline": {"processes": settings.pipelines},
            "statistics": {"every_s": 0.5},
            "web": {"port": 0},
        }
    )


def _refuse_used(dsn: str) -> None:
    from services.store.migrations import migrate

    migrate(dsn)
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT (SELECT count(*) FROM vehicles), (SELECT count(*) FROM telemetry)").fetchone()
    if row != (0, 0):
        raise UsageError(
            "the database given is in use: it holds vehicles. A soak wants an empty one, which is useless afterwards: "
            "CREATE DATABASE nevstream_soak"
        )


def _warm() -> None:
    """Compile what is not waited for by a start: a kill would only ever meet the compiler."""
    groups = [name for name in ("statistics", "fleetsim") if not kernel_cache.is_warm(kernel_cache.mode(), name)]
    if groups:
        warm = [sys.executable, "-m", "services.topology", "warm", "common", *groups]
        subprocess.run(warm, check=True, stdout=subprocess.DEVNULL)


def _cannot(system: System) -> set[str]:
    """Faults that cannot be with this database."""
    needs = {"server": system.database_pid is None}
    with psycopg.connect(system.dsn) as connection:
        row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
        needs["superuser"] = row is None or not row[0]
    return {fault.name for fault in faults.FAULTS if needs.get(fault.needs, False)}


def _fleet_arguments(settings: SoakSettings, line: Line) -> dict[str, Any]:
    return {
        "mqtt_port": line.addresses["mqtt"][1],
        "gbt_port": line.addresses["gbt32960"][1],
        "vehicles": settings.vehicles,
        "seed": settings.seed,
        "period_s": _PERIOD_S,
        "speed": min(_SPEED_MAX, _DATA_SPAN_S / settings.seconds),
        "window": _WINDOW,
        "faults": "dirty",
        "ack_timeout_s": _ACK_TIMEOUT_S,
        "drain_s": _DRAIN_S,
    }


def _faults(
    settings: SoakSettings, system: System, line: Line, fleet: FleetProcess, missing: set[str], progress: Progress,
    stop: threading.Event,
) -> Injector:  # fmt: skip
    """The time of the faults, and the calm after them; everything goes on as it should when this returns."""
    while not fleet.now.get("acked"):
        fleet.check()
        if stop.wait(0.1):
            break
    calm_s = max(_CALM_MIN_S, _CALM * settings.seconds)
    plan = faults.schedule(settings.seed, settings.seconds - calm_s, settings.planned, missing)
    newest = [""]
    injector = Injector(system, line, plan, lambda name: newest.__setitem__(0, name))
    injector.start()
    begun = time.monotonic()
    try:
        while (passed := time.monotonic() - begun) < settings.seconds and not stop.wait(_TICK_S):
            fleet.check()
            done = sum(injector.done.values())
            progress(
                {
                    "phase": "faults",
                    "share": passed / settings.seconds,
                    "done": done,
                    "planned": len(plan),
                    "newest": newest[0],
                    "kills": injector.kills,
                    "acked": fleet.now.get("acked", 0),
                    "connected": fleet.now.get("connected", 0),
                }
            )
    finally:
        injector.stop()
    return injector


def _answers(system: System) -> bool:
    """Does the API say that it is ready?"""
    host, port = system.addresses["web"]
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait(dsn: str, condition: Any, otherwise: str, fleet: FleetProcess) -> None:
    if not wait_for(dsn, condition, _PATIENCE_S, fleet.check):
        raise NevstreamError(f"{otherwise} {_PATIENCE_S:.0f} s after the last frame; the log above may say why")


@contextmanager
def _database(settings: SoakSettings, home: Path) -> Iterator[str]:
    """The database once more, without the system."""
    if settings.dsn is not None:
        yield settings.dsn
        return
    from services.store.embedded import EmbeddedServer

    server = EmbeddedServer(home / "pg")
    try:
        yield server.start()
    finally:
        server.stop()
