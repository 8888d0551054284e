"""What it costs to know many vehicles: the same work with 1,000, 100,000 and 1,000,000 of them.

*Pipeline*: records in memory → decode, validate, classify, build → one transaction a batch in an embedded PostgreSQL
that holds as many rows of telemetry as the other steps' do.  Once the reports are of 1,000 of the known vehicles
(what knowing the others costs), once of all of them in turn (what it costs that each batch is of other vehicles:
their rows, and their places in the index, lie further apart).  No checkpoint falls into the measured passes.
Beside frames a second, processor time a frame, of this process and of the database: it says the same on a
busy machine.  Also: how long a pipeline takes to be ready, and the memory that its vehicles take.

*Gateway*: an allowlist of so many: verdicts a second, and how long reading it anew holds up the event loop.

Each step is a process of its own (``python -m benchmarks.growth ROLE VEHICLES FRAMES``), which prints a JSON line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import psycopg
import uvloop
from numpy.typing import NDArray

from benchmarks.decode import frame
from benchmarks.runner import Progress
from schemas.journal.record import encode_record
from services.gateway.admission import Admission, Verdict
from services.journal.memory import MemoryJournal
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.directory import PostgresDirectory
from services.store.embedded import EmbeddedServer
from services.store.migrations import migrate
from services.store.postgres import PostgresSink
from services.topology import PIPELINE_KERNELS, warm_steps

STEPS: Final = (1_000, 100_000, 1_000_000)
ROWS_BEFORE: Final = 1_000_000
PASSES: Final = 3
ACTIVE: Final = 1_000
_RECORD_FRAMES: Final = 1_000
_AT_VIN, _AT_TIME = 4, 24
_VIN_BYTES: Final = 17
_VARIANTS: Final = 64
_SECONDS: Final = 3_600  # that a vehicle can report in
_TICK_S: Final = 0.001


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{"known_ratio", "spread_ratio", "cpu_us"..., "pipeline": {vehicles: ...}, "gateway": ...}; ``quick``: fewer.

    A ratio is the lowest rate of all steps ÷ that with 1,000 vehicles, by processor time a frame.
    """
    frames = 60_000 if quick else 200_000
    pipeline: dict[str, dict[str, Any]] = {}
    gateway: dict[str, dict[str, Any]] = {}
    for vehicles in STEPS:
        found = pipeline[str(vehicles)] = _step("pipeline", vehicles, frames)
        progress(
            f"{vehicles:,} vehicles known: {found['known']['frames_per_s']:,.0f} frames/s of {ACTIVE:,} of them "
            f"({found['known']['cpu_us']} µs a frame), {found['spread']['frames_per_s']:,.0f} of all in turn "
            f"({found['spread']['cpu_us']} µs); ready in {found['ready_s']} s, {found['mb']} MB"
        )
        found = gateway[str(vehicles)] = _step("gateway", vehicles, 0)
        progress(
            f"{vehicles:,} in the allowlist: {found['verdicts_per_s']:,.0f} verdicts/s, {found['mb']} MB, "
            f"the loop was held up for {found['held_up_ms']} ms at most"
        )
    base, most = pipeline[str(STEPS[0])], pipeline[str(STEPS[-1])]
    return {
        **{
            f"{kind}_ratio": round(base[kind]["cpu_us"] / max(step[kind]["cpu_us"] for step in pipeline.values()), 3)
            for kind in ("known", "spread")
        },
        "frames_per_s_1k": base["known"]["frames_per_s"],
        "known_frames_per_s_1m": most["known"]["frames_per_s"],
        "spread_frames_per_s_1m": most["spread"]["frames_per_s"],
        "pipeline_ready_s_1m": most["ready_s"],
        "pipeline_mb_1m": most["mb"],
        "gateway_mb_1m": gateway[str(STEPS[-1])]["mb"],
        "gateway_held_up_ms_1m": gateway[str(STEPS[-1])]["held_up_ms"],
        "pipeline": pipeline,
        "gateway": gateway,
        "goals": {"known_ratio": ">= 0.8", "spread_ratio": ">= 0.8", "pipeline_mb_1m": "<= 1000"},
        "settings": {
            "frames": frames, "passes": PASSES, "rows_before": ROWS_BEFORE, "steps": STEPS, "active": ACTIVE,
        },
        "notes": [],
    }  # fmt: skip


def _step(role: str, vehicles: int, frames: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", role, str(vehicles), str(frames)],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# -- a database that knows so many -------------------------------------------------------------------------
@contextlib.contextmanager
def known(vehicles: int, begun: datetime, rows: int) -> Iterator[str]:
    """A database with ``vehicles`` in the registry, each with a newest report, and ``rows`` of telemetry before it."""
    home = Path(tempfile.mkdtemp(prefix="nevstream-bench-"))
    home.chmod(0o711)  # the database's unprivileged user must reach its directory
    server = EmbeddedServer(home / "pg")
    try:
        dsn = server.start()
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("SET synchronous_commit = off")
            db.execute(
                "INSERT INTO vehicles (vin, registered, registered_at, first_seen_at)"
                " SELECT 'LGROW' || lpad(n::text, 12, '0'), true, now(), now() FROM generate_series(0, %s) n",
                [vehicles - 1],
            )
            each = max(1, rows // vehicles)
            if rows:
                db.execute("SELECT ensure_telemetry_days(%s, %s)", [begun.date(), begun.date() + timedelta(days=1)])
                db.execute(
                    "INSERT INTO telemetry (vehicle_id, time, received_at, kind, part, edition, door, digest)"
                    " SELECT v.vehicle_id, %s::timestamptz - make_interval(secs => k), now(), 2, 0, 16, 1, 0"
                    " FROM generate_series(%s, 1, -1) k CROSS JOIN vehicles v",
                    [begun, each],
                )
            db.execute(
                "INSERT INTO vehicle_state (vehicle_id, time, kind, part, received_at, edition, door, speed_kmh,"
                "  odometer_km, soc_pct, longitude_deg, latitude_deg, reports)"
                " SELECT vehicle_id, %s::timestamptz - interval '1 s', 2, 0, now(), 16, 1, 0, 0, 0, 0, 0, %s"
                " FROM vehicles",
                [begun, each],
            )
            db.execute("VACUUM ANALYZE")
        yield dsn
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def cpu_s(dsn: str) -> float:
    """Processor time of this process and of the server behind ``dsn``, its ended children included; seconds."""
    with psycopg.connect(dsn) as db:
        row = db.execute("SELECT pg_read_file('postmaster.pid')").fetchone()
        assert row is not None
        server = int(row[0].split()[0])
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text("ascii", "replace").rsplit(")", 1)[1].split()
            if int(stat.parent.name) == server:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == server:
                ticks += sum(map(int, fields[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def private_mb() -> float:
    """Memory of this process that no other shares."""
    text = Path("/proc/self/smaps_rollup").read_text("ascii")
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Private_", "Swap:"))) / 1024


# -- the pipeline --------------------------------------------------------------------------------------------
class Fleet:
    """Reports of the known vehicles; each of a vehicle's is a second after its last one."""

    def __init__(self, vehicles: int, begun: datetime) -> None:
        rng = random.Random(6)  # noqa: S311 - values of frames
        self._shapes = np.array([list(frame("typical", 16, rng)) for _ in range(_VARIANTS)], np.uint8)
        local = begun.astimezone(UTC) + timedelta(hours=8)  # frames tell Beijing time
        clocks = [local + timedelta(seconds=k) for k in range(_SECONDS)]
        self._clocks = np.array([[t.year - 2000, t.month, t.day, t.hour, t.minute, t.second] for t in clocks], np.uint8)
        self._second = np.zeros(vehicles, np.int64)

    def reports(self, turn: NDArray[np.int64], first: int, count: int) -> NDArray[np.uint8]:
        """Frames ``first`` and on of vehicles that report in the order of ``turn``, again and again; (count, bytes)."""
        number = np.arange(first, first + count)
        vehicle = turn[number % len(turn)]
        second = self._second[vehicle] + number // len(turn) - first // len(turn)
        np.maximum.at(self._second, vehicle, second + 1)
        made = self._shapes[number % _VARIANTS]
        vins = np.array([f"LGROW{n:012d}".encode() for n in vehicle.tolist()], f"S{_VIN_BYTES}")
        made[:, _AT_VIN : _AT_VIN + _VIN_BYTES] = vins.view(np.uint8).reshape(count, _VIN_BYTES)
        made[:, _AT_TIME : _AT_TIME + 6] = self._clocks[second]
        made[:, -1] = np.bitwise_xor.reduce(made[:, 2:-1], axis=1)
        return made


def _records(frames: NDArray[np.uint8]) -> list[tuple[int, bytes]]:
    now, records = int(time.time() * 1e6), []
    for at in range(0, len(frames), _RECORD_FRAMES):
        piece = frames[at : at + _RECORD_FRAMES]
        n = len(piece)
        body = encode_record(
            piece.tobytes(), np.full(n, piece.shape[1], np.uint32), np.full(n, now, np.int64),
            np.ones(n, np.uint8), np.ones(n, np.uint8),
        )  # fmt: skip
        records.append((0, body))
    return records


async def _pipeline(vehicles: int, frames: int) -> dict[str, Any]:
    for group in PIPELINE_KERNELS:
        for _, step in warm_steps(group):
            step()
    begun = (datetime.now(UTC) - timedelta(hours=1)).replace(microsecond=0)
    if begun.hour == 23:  # all of it within one UTC day
        begun -= timedelta(hours=2)
    settings = Settings.read(overrides={"journal": {"partitions": 1}})
    order = np.random.default_rng(6).permutation(vehicles)
    turns = {"spread": order, "known": order[:ACTIVE]}
    fleet = Fleet(vehicles, begun)
    found: dict[str, dict[str, list[float]]] = {kind: {"rates": [], "cpu_us": []} for kind in turns}
    with known(vehicles, begun, ROWS_BEFORE) as dsn, psycopg.connect(dsn, autocommit=True) as db:
        journal, sink, stop = MemoryJournal(1), PostgresSink(dsn, settings), asyncio.Event()
        await sink.open()
        before, at = private_mb(), time.perf_counter()
        pipeline = Pipeline(settings, journal, sink, [0])
        running = asyncio.create_task(pipeline.run(stop))
        await pipeline.caught_up()
        ready, mb, sent = time.perf_counter() - at, private_mb() - before, 0
        for turn in range(PASSES + 1):
            for kind in turns:
                records = _records(fleet.reports(turns[kind], turn * frames, frames))
                sent += frames
                spent, at = cpu_s(dsn), time.perf_counter()
                await journal.append(records)
                await pipeline.caught_up()
                seconds = time.perf_counter() - at
                if turn:  # the first one warms buffers and plans
                    found[kind]["rates"].append(round(frames / seconds))
                    found[kind]["cpu_us"].append(round(1e6 * (cpu_s(dsn) - spent) / frames, 2))
        stop.set()
        await running
        await sink.close()
        row = db.execute(
            "SELECT sum(rows), sum(frames), (SELECT sum(reports) FROM vehicle_state) FROM ledger"
        ).fetchone()
        wanted = (sent, sent, sent + max(1, ROWS_BEFORE // vehicles) * vehicles)
        assert row == wanted, f"{row} where {wanted} should be"
    return {
        **{
            kind: {"frames_per_s": median(one["rates"]), "cpu_us": median(one["cpu_us"]), **one}
            | {"cpu_us": median(one["cpu_us"]), "cpu_us_runs": one["cpu_us"]}
            for kind, one in found.items()
        },
        "ready_s": round(ready, 2),
        "mb": round(mb, 1),
    }


# -- the gateway ---------------------------------------------------------------------------------------------
async def _gateway(vehicles: int) -> dict[str, Any]:
    settings = Settings.read(overrides={"gateway": {"registry": "allowlist", "registry_refresh_s": 1.0}})
    with known(vehicles, datetime.now(UTC), 0) as dsn:
        directory = PostgresDirectory(dsn)
        before, at = private_mb(), time.perf_counter()
        admission = Admission(settings.gateway, directory, lambda: None)
        await admission.start()
        ready = time.perf_counter() - at
        longest, until = 0.0, time.perf_counter() + 5.0
        while (now := time.perf_counter()) < until:  # a frame that came now would wait so long
            await asyncio.sleep(_TICK_S)
            longest = max(longest, time.perf_counter() - now - _TICK_S)
        mb = private_mb() - before
        await admission.stop()
        rng = np.random.default_rng(6)
        names = [f"LGROW{n:012d}" for n in rng.integers(0, vehicles, 100_000).tolist()]
        at = time.perf_counter()
        assert all(admission.verdict(name) is Verdict.ADMITTED for name in names)
        verdicts = len(names) / (time.perf_counter() - at)
        many = np.array([name.encode() for name in names], f"S{_VIN_BYTES}")
        at = time.perf_counter()
        assert admission.known(many).all()
        looked_up = len(names) / (time.perf_counter() - at)
        await directory.close()
    return {
        "verdicts_per_s": round(verdicts),
        "known_per_s": round(looked_up),
        "held_up_ms": round(1000 * longest, 1),
        "ready_s": round(ready, 2),
        "mb": round(mb, 1),
    }


if __name__ == "__main__":
    role, wanted, sent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(uvloop.run(_pipeline(wanted, sent) if role == "pipeline" else _gateway(wanted))))
