"""A frame's whole way: socket, gateway, journal, decoder, committed row, every frame acknowledged.

In one run, on the same input: the system over MQTT (QoS 1) and over GB/T 32960 TCP, the obvious program
(``obvious.py``) behind mosquitto, mosquitto alone as a relay (``relay.py``), and a bare COPY of the same rows into an
identical table, which is what the database alone could take.  frames/s is frames ÷ (first byte sent → last row
committed).  Frames are made before the clock starts; generator, system and database share the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from psycopg import sql

from benchmarks import relay
from benchmarks.generator import Generator, Load
from benchmarks.runner import Progress
from services.settings import Settings
from services.topology import System

VEHICLES: Final = 500
WINDOW: Final = 10
_POLL_S: Final = 0.02
_LIMIT_S: Final = 120.0  # no progress for so long: something is wrong
_COPY_BLOCK: Final = 1 << 20


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """The figures, medians over the repeats, and each run by itself."""
    reports, repeats, baseline_reports = (240, 1, 24) if quick else (600, 5, 120)
    notes: list[str] = []
    runs: dict[str, list[dict[str, Any]]] = {"mqtt": [], "gbt32960": [], "baseline": [], "relay": [], "copy": []}
    broker = _mosquitto()
    if broker is None:
        notes.append("mosquitto is not installed (apt install mosquitto): no obvious program, and no relay to compare")
    with running_system(progress) as system, psycopg.connect(system.dsn, autocommit=True) as connection:
        seed = int(time.time()) % 1_000_000 * 10
        for repeat in range(repeats):
            for door, share in (("mqtt", 1.0), ("gbt32960", 0.0)):
                seed += 1
                load = Load(
                    VEHICLES, reports if door == "mqtt" else reports // 2, WINDOW, seed, share,
                    mqtt_port=system.addresses["mqtt"][1], gbt_port=system.addresses["gbt32960"][1],
                )  # fmt: skip
                runs[door].append(_through(connection, load))
                progress(f"{door} {repeat + 1}/{repeats}: {runs[door][-1]['frames_per_s']:,.0f} frames/s committed")
            runs["copy"].append(_bare_copy(connection, system.dsn, runs["mqtt"][-1]["vins"]))
            progress(f"bare COPY: {runs['copy'][-1]['rows_per_s']:,.0f} rows/s")
            seed += 1
            load = Load(VEHICLES, baseline_reports, WINDOW, seed)
            if broker is None:
                continue
            with _broker(broker) as port:
                runs["relay"].append(relay.measure(port, load, lambda: _settle(connection)))
            progress(f"mosquitto alone: {runs['relay'][-1]['frames_per_s']:,.0f} frames/s relayed")
            with _broker(broker) as port:
                runs["baseline"].append(_obvious(connection, system.dsn, replace(load, mqtt_port=port)))
            progress(f"obvious program: {runs['baseline'][-1]['frames_per_s']:,.0f} frames/s")
    settings = {
        "vehicles": VEHICLES, "window": WINDOW, "qos": 1, "reports": reports, "repeats": repeats,
        "baseline_reports": baseline_reports,
    }  # fmt: skip
    return _figures(runs, notes, settings)


def _figures(runs: dict[str, list[dict[str, Any]]], notes: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    def middle(kind: str, name: str) -> float | None:
        values = [one[name] for one in runs[kind]]
        return round(median(values), 1) if values else None

    ours, theirs = middle("mqtt", "frames_per_s"), middle("baseline", "frames_per_s")
    copied, relayed = middle("copy", "rows_per_s"), middle("relay", "frames_per_s")
    for one in runs["mqtt"] + runs["gbt32960"]:
        del one["vins"]
    return {
        "frames_per_s": ours,
        "baseline_frames_per_s": theirs,
        "ratio": round(ours / theirs, 2) if ours and theirs else None,
        "relay_frames_per_s": relayed,
        "relay_ratio": round(ours / relayed, 2) if ours and relayed else None,
        "copy_rows_per_s": copied,
        "copy_ratio": round(ours / copied, 3) if ours and copied else None,
        "lost": sum(one["lost"] for one in runs["mqtt"] + runs["gbt32960"]),
        "duplicated": sum(one["duplicated"] for one in runs["mqtt"] + runs["gbt32960"]),
        "acked_frames_per_s": middle("mqtt", "acked_frames_per_s"),
        "ack_p50_ms": middle("mqtt", "ack_p50_ms"),
        "ack_p99_ms": middle("mqtt", "ack_p99_ms"),
        "gbt32960_frames_per_s": middle("gbt32960", "frames_per_s"),
        "gbt32960_ack_p99_ms": middle("gbt32960", "ack_p99_ms"),
        "frame_bytes": middle("mqtt", "frame_bytes"),
        "notes": notes,
        "settings": settings,
        "runs": runs,
    }


# -- the system under test -----------------------------------------------------------------------------
@contextmanager
def running_system(progress: Progress, **more: Any) -> Iterator[System]:
    """A system of its own, with its own database, on free ports; gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="nevstream-bench-"))
    home.chmod(0o711)  # the database's unprivileged user must reach its directory
    settings = Settings.read(
        overrides={
            "runtime_dir": home / "run",
            "database": {"dsn": None, "data_dir": home / "pg"},
            "gateway": {"mqtt": {"port": 0}, "gbt32960": {"port": 0}} | more.pop("gateway", {}),
            "web": {"port": 0},
        }
        | more
    )
    try:
        with System(settings) as system:
            progress(f"system ready in {system.start_seconds:.1f} s (compiling {system.compile_seconds:.1f} s of it)")
            yield system
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _ledger(connection: psycopg.Connection[Any]) -> int:
    """Reports that the pipeline has committed, in whatever way."""
    row = connection.execute("SELECT coalesce(sum(rows + duplicates + conflicts + rejected), 0) FROM ledger").fetchone()
    assert row is not None
    return int(row[0])


def _settle(connection: psycopg.Connection[Any]) -> None:
    """Write out what earlier parts left dirty: none of them may be paid for by the next one."""
    connection.execute("CHECKPOINT")


def _through(connection: psycopg.Connection[Any], load: Load) -> dict[str, Any]:
    """One load through the system."""
    with Generator(load) as generator:
        ready = generator.ready()
        _settle(connection)
        before = _ledger(connection)
        generator.go()
        done, moved, last = before, time.monotonic(), before
        while done - before < load.frames:
            time.sleep(_POLL_S)
            done = _ledger(connection)
            if done != last:
                last, moved = done, time.monotonic()
            elif time.monotonic() - moved > _LIMIT_S:
                break
        finished = time.monotonic()
        result = generator.result()
    found = connection.execute(
        "SELECT count(*), count(DISTINCT (vehicle_id, time, kind, part)) FROM telemetry"
        " WHERE vehicle_id IN (SELECT vehicle_id FROM vehicles WHERE vin = ANY(%s))",
        (ready["vins"],),
    ).fetchone()
    assert found is not None
    seconds = finished - result["first_sent_monotonic"]
    return {
        "frames": load.frames,
        "seconds": round(seconds, 3),
        "frames_per_s": round(load.frames / seconds, 1),
        "acked_frames_per_s": result["frames_per_s"],
        "ack_p50_ms": result["ack_p50_ms"],
        "ack_p99_ms": result["ack_p99_ms"],
        "sent": result["sent"],
        "resent": result["resent"],
        "acked": result["acked"],
        "lost": load.frames - found[1],
        "duplicated": found[0] - found[1],
        "frame_bytes": ready["frame_bytes"],
        "vins": ready["vins"],
    }


# -- the database alone ----------------------------------------------------------------------------------
def _twin_table(connection: psycopg.Connection[Any], name: str) -> None:
    """An empty table like ``telemetry``: same columns, storage, partitions and index."""
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
    connection.execute(
        sql.SQL(
            "CREATE TABLE {} (LIKE telemetry INCLUDING DEFAULTS INCLUDING STORAGE) PARTITION BY RANGE (time)"
        ).format(sql.Identifier(name))
    )
    parts = connection.execute(
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid), coalesce(array_to_string(c.reloptions, ', '), '')"
        " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'telemetry'::regclass"
    ).fetchall()
    for part, bounds, options in parts:
        connection.execute(
            sql.SQL("CREATE TABLE {} PARTITION OF {} " + bounds + (f" WITH ({options})" if options else "")).format(
                sql.Identifier(f"{name}_{part}"), sql.Identifier(name)
            )
        )
    index = sql.SQL("CREATE UNIQUE INDEX ON {} (vehicle_id, time, kind, part)").format(sql.Identifier(name))
    connection.execute(index)


def _bare_copy(connection: psycopg.Connection[Any], dsn: str, vins: list[str]) -> dict[str, Any]:
    """COPY the rows of ``vins`` once more, from a binary stream in memory, into an identical table."""
    _twin_table(connection, "bench_copy")
    names = [row[0] for row in connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'telemetry'::regclass AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum"
    )]  # fmt: skip
    sample = connection.execute(
        sql.SQL("SELECT {} FROM telemetry JOIN vehicles v USING (vehicle_id) WHERE v.vin = ANY(%s)").format(
            sql.SQL(", ").join(sql.SQL("bool_or({} IS NOT NULL)").format(sql.Identifier("telemetry", n)) for n in names)
        ),
        (vins,),
    ).fetchone()
    assert sample is not None
    # as the pipeline does: only the columns that some row has a value for
    columns = sql.SQL(", ").join(sql.Identifier(n) for n, used in zip(names, sample, strict=True) if used)
    blocks: list[bytes] = []
    # in the order in which they were written, so that the index sees what the system's index saw
    with connection.cursor().copy(
        sql.SQL(
            "COPY (SELECT {} FROM telemetry WHERE vehicle_id IN (SELECT vehicle_id FROM vehicles WHERE vin = ANY({}))"
            " ORDER BY received_at) TO STDOUT (FORMAT BINARY)"
        ).format(columns, sql.Literal(vins))
    ) as copy:
        blocks.extend(bytes(block) for block in copy)
    stream = b"".join(blocks)
    _settle(connection)
    with psycopg.connect(dsn) as other:
        begun = time.monotonic()
        with other.cursor() as cursor:
            statement = sql.SQL("COPY bench_copy ({}) FROM STDIN (FORMAT BINARY)").format(columns)
            with cursor.copy(statement) as target:
                for at in range(0, len(stream), _COPY_BLOCK):
                    target.write(stream[at : at + _COPY_BLOCK])
            rows = cursor.rowcount
        other.commit()
        seconds = time.monotonic() - begun
    connection.execute("DROP TABLE bench_copy")
    return {"rows": rows, "bytes": len(stream), "seconds": round(seconds, 3), "rows_per_s": round(rows / seconds, 1)}


# -- the obvious program ---------------------------------------------------------------------------------
def _mosquitto() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def _broker(program: str) -> Iterator[int]:
    """mosquitto on a free port, without limits that would drop messages."""
    port = _free_port()
    lines = ["allow_anonymous true", f"listener {port} 127.0.0.1", "persistence false", "max_queued_messages 0",
             "max_inflight_messages 0", "log_type error"]  # fmt: skip
    if os.geteuid() == 0:
        lines.append("user root")
    with tempfile.TemporaryDirectory(prefix="nevstream-bench-") as folder:
        config = Path(folder) / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n", "utf-8")
        log = Path(folder) / "log"
        with log.open("wb") as heard:
            broker = subprocess.Popen([program, "-c", str(config)], stdout=heard, stderr=heard)
        try:
            for _ in range(200):
                if broker.poll() is not None:
                    raise RuntimeError(f"mosquitto ended with exit code {broker.returncode}: {log.read_text('utf-8')}")
                try:
                    socket.create_connection(("127.0.0.1", port), 1.0).close()
                    break
                except OSError:
                    time.sleep(0.02)
            yield port
        finally:
            broker.terminate()
            broker.wait(10)


def _obvious(connection: psycopg.Connection[Any], dsn: str, load: Load) -> dict[str, Any]:
    """The baseline's run, behind the broker at the load's port."""
    _twin_table(connection, "bench_obvious")
    argv = [sys.executable, "-m", "benchmarks.obvious", dsn, "bench_obvious", str(load.mqtt_port), str(load.frames)]
    with Generator(load) as generator, subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as obvious:
        try:
            assert obvious.stdout is not None
            generator.ready()
            _settle(connection)
            if obvious.stdout.readline().strip() != "ready":
                raise RuntimeError("the obvious program did not start; its message is above")
            generator.go()
            result = generator.result()
            line = obvious.stdout.readline()
        finally:
            obvious.kill()
    if not line:
        raise RuntimeError("the obvious program ended early; its message is above")
    finished = json.loads(line)
    counted = connection.execute("SELECT count(*) FROM bench_obvious").fetchone()
    assert counted is not None
    connection.execute("DROP TABLE bench_obvious")
    seconds = finished["finished"] - result["first_sent_monotonic"]
    return {
        "frames": load.frames,
        "rows": counted[0],
        "seconds": round(seconds, 3),
        "frames_per_s": round(counted[0] / seconds, 1),
    }
