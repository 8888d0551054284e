"""How long a frame takes to its acknowledgement and to its committed row, at 25, 50 and 75 % of capacity.

In one run: first what the system takes at most (as ``journey`` measures it), then the same vehicles at shares of that,
each vehicle sending when its time has come, whether earlier frames were answered or not.  Acknowledgement: written to
the socket until the answer is read, by the generator.  Row: arrival at the gateway until the commit of the row's
transaction, of every row, by PostgreSQL's own commit timestamps (``track_commit_timestamp``, on in this run).  What the
running system says of itself (``/metrics``) stands beside both.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any, Final

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.generator import Generator, Load
from benchmarks.journey import _settle, _through, running_system
from benchmarks.rows import database
from benchmarks.runner import Progress
from services.topology import System
from services.web.state import Samples, spread_of

VEHICLES: Final = 500
SHARES: Final = (25, 50, 75)
PERIOD_S: Final = 10
# Open loop: a vehicle goes on sending while so many are un-answered, half a second's worth and more.
WINDOW: Final = 200
CAPACITY_WINDOW: Final = 10  # as in ``journey``
ACK: Final = "nevstream_gateway_ack_seconds"
ROW: Final = "nevstream_pipeline_socket_to_row_seconds"
_PERCENTS: Final = (0.5, 0.9, 0.99, 0.999, 1.0)


def metrics_of(system: System) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What ``/metrics`` says now: name of each sample → (labels, value)."""
    host, port = system.addresses["web"]
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), float(sample.value)))
    return found


def since(before: Samples, after: Samples) -> Samples:
    """What was added to each sample meanwhile."""
    base = {(name, *sorted(labels.items())): value for name, them in before.items() for labels, value in them}
    return {
        name: [(labels, value - base.get((name, *sorted(labels.items())), 0.0)) for labels, value in them]
        for name, them in after.items()
    }


def rows_ms(connection: psycopg.Connection[Any], vins: list[str]) -> dict[str, float]:
    """Percentiles over the rows of ``vins``: arrival to commit."""
    row = connection.execute(
        "SELECT percentile_disc(%s) WITHIN GROUP (ORDER BY pg_xact_commit_timestamp(xmin) - received_at) FROM telemetry"
        " WHERE vehicle_id IN (SELECT vehicle_id FROM vehicles WHERE vin = ANY(%s))",
        (list(_PERCENTS), vins),
    ).fetchone()
    assert row is not None
    names = ("row_p50_ms", "row_p90_ms", "row_p99_ms", "row_p999_ms", "row_max_ms")
    return {name: round(one.total_seconds() * 1000, 1) for name, one in zip(names, row[0], strict=True)}


def paced(connection: psycopg.Connection[Any], system: System, load: Load) -> dict[str, Any]:
    """One load at its rate, through to the last row."""
    with Generator(load) as generator:
        ready = generator.ready()
        _settle(connection)
        before = metrics_of(system)
        generator.go()
        result = generator.result()
    until = time.monotonic() + 60.0
    while _rows(connection, ready["vins"]) < load.frames and time.monotonic() < until:
        time.sleep(0.05)
    own = since(before, metrics_of(system))
    ack = spread_of(own, ACK)
    row = spread_of(own, ROW)
    assert ack is not None
    assert row is not None
    return {
        "frames": load.frames,
        "frames_per_s": result["frames_per_s"],
        "lost": load.frames - _rows(connection, ready["vins"]),
        "ack_p50_ms": result["ack_p50_ms"],
        "ack_p99_ms": result["ack_p99_ms"],
        **rows_ms(connection, ready["vins"]),
        "system_ack_p50_ms": ack["p50_ms"],
        "system_ack_p99_ms": ack["p99_ms"],
        "system_row_p50_ms": row["p50_ms"],
        "system_row_p99_ms": row["p99_ms"],
    }


def _rows(connection: psycopg.Connection[Any], vins: list[str]) -> int:
    row = connection.execute(
        "SELECT count(*) FROM telemetry WHERE vehicle_id IN (SELECT vehicle_id FROM vehicles WHERE vin = ANY(%s))",
        (vins,),
    ).fetchone()
    assert row is not None
    return int(row[0])


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """{capacity_frames_per_s, ack_p99_ms, row_p99_ms (both at half capacity), shares[]}."""
    reports, tries, seconds, repeats = (120, 1, 2, 1) if quick else (600, 3, 6, 5)
    shares: list[dict[str, Any]] = []
    with (
        database({"track_commit_timestamp": "on"}) as dsn,
        running_system(progress, database={"dsn": dsn}) as system,
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        full = Load(
            VEHICLES, reports, CAPACITY_WINDOW, int(time.time()) % 1_000_000 * 100,
            mqtt_port=system.addresses["mqtt"][1],
        )  # fmt: skip
        capacities = []
        for number in range(tries + 1):  # the first is the warm-up
            found = _through(connection, replace(full, seed=full.seed + number))
            if number:
                capacities.append(found["frames_per_s"])
        capacity = median(capacities)
        progress(f"capacity: {capacity:,.0f} frames/s committed")
        seed = full.seed + 50
        for share in SHARES:
            wanted = capacity * share / 100
            runs = []
            for _ in range(repeats):
                seed += 1
                load = replace(
                    full, seed=seed, window=WINDOW, reports=max(1, round(wanted * seconds / VEHICLES)),
                    period_s=PERIOD_S, speed=wanted * PERIOD_S / VEHICLES,
                )  # fmt: skip
                runs.append(paced(connection, system, load))
            shares.append(_middle(share, wanted, runs))
            one = shares[-1]
            progress(
                f"{share} %, {wanted:,.0f} frames/s: ack p50 {one['ack_p50_ms']} p99 {one['ack_p99_ms']} ms, "
                f"row p50 {one['row_p50_ms']} p99 {one['row_p99_ms']} ms"
            )
        own = _own(system)
    (half,) = (one for one in shares if one["share_pct"] == 50)
    return {
        "capacity_frames_per_s": round(capacity, 1),
        "ack_p50_ms": half["ack_p50_ms"],
        "ack_p99_ms": half["ack_p99_ms"],
        "row_p50_ms": half["row_p50_ms"],
        "row_p99_ms": half["row_p99_ms"],
        "lost": sum(one["lost"] for one in shares),
        "goals": {"ack_p99_ms": "<= 250", "row_p99_ms": "<= 1000", "lost": "0"},
        "shares": shares,
        "v1_system_latency": own,
        "capacity_runs": capacities,
        "notes": [],
        "settings": {
            "vehicles": VEHICLES, "window": WINDOW, "capacity_window": CAPACITY_WINDOW, "seconds": seconds,
            "repeats": repeats, "qos": 1, "track_commit_timestamp": "on",
        },
    }  # fmt: skip


def _middle(share: int, wanted: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs of one share."""
    names = [name for name in runs[0] if name.endswith("_ms") or name == "frames_per_s"]
    return {
        "share_pct": share,
        "wanted_frames_per_s": round(wanted, 1),
        "lost": sum(one["lost"] for one in runs),
        **{name: round(median(one[name] for one in runs), 1) for name in names},
        "runs": runs,
    }


def _own(system: System) -> Mapping[str, Any]:
    """What ``/v1/system`` says of the latencies of the whole run."""
    host, port = system.addresses["web"]
    with urllib.request.urlopen(f"http://{host}:{port}/v1/system", timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())["latency"]
    return found
