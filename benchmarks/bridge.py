"""Through somebody else's broker: mosquitto → bridge → durable, against the subscriber one would write first.

In one run, on the same input, broker settings and database: the gateway with its bridge, which acknowledges each
message once it is durable, and a subscriber with aiomqtt that COPYs frames in batches and acknowledges them when they
arrive (in its favour).  Live: first byte published → last frame durable, with the publishers on the same machine, who
are most of the work.  Backlog: the broker holds everything, the subscriber connects and takes it: its own pace.

``python -m benchmarks.bridge bridge|obvious PORT DSN COUNT`` is one subscriber: prints a line when it is
subscribed, another with the time when COUNT frames are durable; COUNT 0 subscribes and leaves.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from prometheus_client import REGISTRY

from benchmarks.generator import Generator, Load
from benchmarks.journey import _broker, _mosquitto
from benchmarks.runner import Progress
from services.errors import UsageError

VEHICLES: Final = 500
WINDOW: Final = 20
TOPIC: Final = "nev/v1/+/gbt32960"
BATCH_ROWS: Final = 1000
BATCH_S: Final = 0.05
KINDS: Final = ("bridge", "obvious")


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """The figures, medians over the repeats, and each run by itself."""
    program = _mosquitto()
    if program is None:
        raise UsageError("mosquitto is not installed (apt install mosquitto): there is no broker to bridge to")
    # the obvious subscriber gets fewer frames, or most of the time would be its
    reports, slow_reports, repeats = (100, 40, 1) if quick else (200, 40, 3)
    runs: dict[str, list[dict[str, Any]]] = {f"{kind}_{way}": [] for kind in KINDS for way in ("live", "backlog")}
    with _database(progress) as dsn:
        seed = int(time.time()) % 1_000_000 * 10
        for repeat in range(repeats):
            for kind, per_vehicle in zip(KINDS, (reports, slow_reports), strict=True):
                for way, measured in (("live", _live), ("backlog", _backlog)):
                    seed += 1
                    with _broker(program) as port:
                        load = Load(VEHICLES, per_vehicle, WINDOW, seed, mqtt_port=port)
                        found = measured(kind, dsn, load)
                    runs[f"{kind}_{way}"].append(found)
                    progress(f"{kind} {way} {repeat + 1}/{repeats}: {found['frames_per_s']:,.0f} frames/s durable")

    def middle(name: str) -> float:
        return round(median(one["frames_per_s"] for one in runs[name]), 1)

    live, backlog, obvious_live, obvious_backlog = (
        middle(f"{kind}_{way}") for kind in KINDS for way in ("live", "backlog")
    )
    return {
        "frames_per_s": live,
        "baseline_frames_per_s": obvious_live,
        "ratio": round(live / obvious_live, 2),
        "backlog_frames_per_s": backlog,
        "baseline_backlog_frames_per_s": obvious_backlog,
        "backlog_ratio": round(backlog / obvious_backlog, 2),
        "published_frames_per_s": round(median(one["published_frames_per_s"] for one in runs["bridge_live"]), 1),
        "lost": sum(one["lost"] for one in runs["bridge_live"] + runs["bridge_backlog"]),
        "frame_bytes": runs["bridge_live"][0]["frame_bytes"],
        "settings": {
            "vehicles": VEHICLES, "window": WINDOW, "qos": 1, "reports": reports, "baseline_reports": slow_reports,
            "repeats": repeats, "baseline_batch_rows": BATCH_ROWS,
        },
        "runs": runs,
    }  # fmt: skip


@contextmanager
def _database(progress: Progress) -> Iterator[str]:
    """A database of its own with our tables; gone afterwards."""
    from services.store.embedded import EmbeddedServer
    from services.store.migrations import migrate

    home = Path(tempfile.mkdtemp(prefix="nevstream-bench-"))
    home.chmod(0o711)  # the database's unprivileged user must reach its directory
    server = EmbeddedServer(home / "pg", 0)
    try:
        dsn = server.start()
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE bench_bridge (vin text, received_at timestamptz, frame bytea)")
        progress("database ready")
        yield dsn
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


class _Subscriber:
    """One of the two programs, as a process."""

    def __init__(self, kind: str, dsn: str, port: int, count: int) -> None:
        self.argv = [sys.executable, "-m", "benchmarks.bridge", kind, str(port), dsn, str(count)]

    def __enter__(self) -> _Subscriber:
        self.process = subprocess.Popen(self.argv, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the subscriber ended with exit code {self.process.wait()}; its message is above")
        found: dict[str, Any] = json.loads(line)
        return found


def _live(kind: str, dsn: str, load: Load) -> dict[str, Any]:
    with Generator(load) as generator, _Subscriber(kind, dsn, load.mqtt_port, load.frames) as subscriber:
        ready = generator.ready()
        subscriber.line()
        _settle(dsn)
        generator.go()
        result = generator.result()
        done = subscriber.line()
    seconds = done["finished"] - result["first_sent_monotonic"]
    return _outcome(load, ready, seconds, done) | {"published_frames_per_s": result["frames_per_s"]}


def _backlog(kind: str, dsn: str, load: Load) -> dict[str, Any]:
    with Generator(load) as generator:
        with _Subscriber(kind, dsn, load.mqtt_port, 0) as subscriber:
            subscriber.line()
            subscriber.process.wait(30)
        ready = generator.ready()
        generator.go()
        generator.result()
    _settle(dsn)
    with _Subscriber(kind, dsn, load.mqtt_port, load.frames) as subscriber:
        begun = subscriber.line()
        done = subscriber.line()
    return _outcome(load, ready, done["finished"] - begun["connecting"], done)


def _outcome(load: Load, ready: dict[str, Any], seconds: float, done: dict[str, Any]) -> dict[str, Any]:
    return {
        "frames": load.frames,
        "seconds": round(seconds, 3),
        "frames_per_s": round(load.frames / seconds, 1),
        "frame_bytes": ready["frame_bytes"],
        "lost": load.frames - done["frames"],
        "cpu_seconds": done["cpu_seconds"],
    }


def _settle(dsn: str) -> None:
    """Write out what earlier parts left dirty, and free it: none may be paid for by the next one."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE bench_bridge")
        connection.execute("CHECKPOINT")


# -- the subscribers, each in a process of its own --------------------------------------------------
def _say(**facts: float) -> None:
    print(json.dumps(facts), flush=True)


def _durable() -> float:
    name, labels = "nevstream_gateway_frames_acked_total", {"door": "mqtt_bridge"}
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a counter tells nobody when it moves
        await asyncio.sleep(0.01)


async def _bridge(port: int, dsn: str, count: int) -> None:
    from services.gateway.server import Gateway, warm
    from services.journal.postgres import PostgresJournal
    from services.settings import Settings
    from services.store.directory import MemoryDirectory

    warm()
    settings = Settings.model_validate(
        {
            "gateway": {
                "mqtt": {"enabled": False},
                "gbt32960": {"enabled": False},
                "bridge": {"url": f"mqtt://127.0.0.1:{port}"},
            }
        }
    )
    journal = PostgresJournal(dsn, settings.journal.partitions)
    await journal.open()
    gateway = Gateway(settings, journal, MemoryDirectory())
    connecting = time.monotonic()
    await gateway.start()
    assert gateway.bridge is not None
    await _until(lambda: gateway.bridge.lines[0].established)  # type: ignore[union-attr]
    _say(connecting=connecting)
    await _until(lambda: _durable() >= count)
    finished = time.monotonic()
    await gateway.drain(10.0)
    await journal.close()
    if count:
        _say(finished=finished, frames=_durable(), cpu_seconds=round(time.process_time(), 2))


async def _obvious(port: int, dsn: str, count: int) -> None:
    import aiomqtt

    kept = 0
    rows: list[tuple[str, Any, bytes]] = []
    connection = await psycopg.AsyncConnection.connect(dsn)

    async def flush() -> None:
        nonlocal kept
        async with (
            connection.cursor() as cursor,
            cursor.copy("COPY bench_bridge (vin, received_at, frame) FROM STDIN") as copy,
        ):
            for row in rows:
                await copy.write_row(row)
        await connection.commit()
        kept += len(rows)
        rows.clear()

    connecting = time.monotonic()
    async with aiomqtt.Client("127.0.0.1", port, identifier="obvious", clean_session=False) as client:
        await client.subscribe(TOPIC, qos=1, timeout=120.0)  # its answer may come behind the backlog
        _say(connecting=connecting)
        if count:
            flushed = time.monotonic()
            async for message in client.messages:
                rows.append((str(message.topic).split("/")[2], datetime.now(UTC), bytes(message.payload)))
                late = time.monotonic() - flushed > BATCH_S
                if len(rows) >= BATCH_ROWS or late or kept + len(rows) >= count:
                    await flush()
                    flushed = time.monotonic()
                    if kept >= count:
                        break
    finished = time.monotonic()
    await connection.close()
    if count:
        _say(finished=finished, frames=kept, cpu_seconds=round(time.process_time(), 2))


if __name__ == "__main__":
    _kind, _port, _dsn, _count = sys.argv[1:]
    import uvloop

    uvloop.run((_bridge if _kind == "bridge" else _obvious)(int(_port), _dsn, int(_count)))
