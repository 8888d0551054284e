"""Are the statistics true?  A simulated fleet that knows the truth, through the whole system, and what it says of it.

The seeded fleet sends days of reports at full speed through the gateway, with loss, duplicates, disorder, and outages
of six hours that are reissued afterwards; weak cells and burning batteries are planted.  When the pipeline and the
statistics have caught up, tables are compared with the truth file (``services/fleetsim/README.md``).  Energy and
distance are compared over the same intervals: the fleet is computed again, second by second, and looked at only at the
seconds that are stored.

``python -m benchmarks.truth '{...}'`` is the fleet's process: it sends and prints the simulation's result.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import orjson
import psycopg
import uvloop

from benchmarks import agreement as agree
from benchmarks.runner import Progress
from schemas.statistics.rules import SOURCE_RULE, THERMAL_EVENT
from services.fleetsim import physics as ph
from services.fleetsim.client import ClientSettings
from services.fleetsim.model import FleetModel
from services.fleetsim.simulation import Simulation, SimulationSettings
from services.fleetsim.vehicle import make_fleet, spread_plants
from services.settings import Settings
from services.topology import System

DAY_S: Final = 86_400
FAULTS: Final = {"loss": 0.02, "duplicate": 0.02, "disorder": 0.05}
BLACKOUTS_PER_DAY: Final = 0.1  # of each vehicle
CHARGES_MIN: Final = 3  # of which a capacity is the median (4.5)
OUTLIER_DAYS: Final = 3  # a cell that stands out on so many days is a weak one (4.7)
THERMAL_LATE_S: Final = 900
_POLL_S: Final = 0.25
_LIMIT_S: Final = 300.0  # no progress for so long: something is wrong
GOALS: Final = {
    "trips.f1": ">= 0.99", "charges.f1": ">= 0.99", "distance_error_pct": "<= 1", "energy_error_pct": "<= 1",
    "capacity_error_pct": "<= 2", "weak_cells.recall": "= 1", "thermal.recall": "= 1", "thermal.false": "= 0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """How much is simulated.  ``until_s`` is the local midnight at which it ends: always the same days."""

    vehicles: int
    days: int
    period_s: int
    weak: int
    thermal: int
    seed: int = 2026
    parked: str = "report"
    blackouts_per_day: float = BLACKOUTS_PER_DAY
    until_s: int = 1_780_243_200  # 2026-06-01 00:00 in China

    @property
    def start_s(self) -> int:
        return self.until_s - self.days * DAY_S

    @property
    def gap_s(self) -> int:
        """Records further apart than this leave a gap (3.3)."""
        return max(60, 4 * self.period_s)

    @property
    def reports(self) -> int:
        return self.days * DAY_S // self.period_s

    @property
    def odds(self) -> dict[str, float]:
        return FAULTS | {"blackout": self.blackouts_per_day * self.period_s / DAY_S}

    def settings(self, truth: Path, mqtt_port: int, gbt_port: int) -> SimulationSettings:
        return SimulationSettings(
            vehicles=self.vehicles, seed=self.seed, period_s=self.period_s, speed=None, reports=self.reports,
            start_s=self.start_s, faults=self.odds, parked=self.parked, weak=self.weak, thermal=self.thermal,
            truth=truth, drain_s=300.0,
            line=ClientSettings(mqtt_port=mqtt_port, gbt_port=gbt_port, window=60, ack_timeout_s=300.0),
        )  # fmt: skip

    def model(self) -> FleetModel:
        """The same fleet again."""
        plants = spread_plants(
            self.vehicles, self.weak, self.thermal, self.parked == "sleep", self.start_s, self.reports * self.period_s
        )
        return FleetModel(make_fleet(self.vehicles, self.seed, None, plants), self.start_s)


QUICK: Final = {"vehicles": 20, "days": 3, "period_s": 10, "weak": 2, "thermal": 1}
# parked vehicles sleep, as real ones do; in the quick run they go on reporting
FULL: Final = {"vehicles": 300, "days": 14, "period_s": 30, "weak": 9, "thermal": 3, "parked": "sleep"}


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """The comparison, and how fast it went."""
    return measure(Size(**(QUICK if quick else FULL)), progress)


def measure(size: Size, progress: Progress) -> dict[str, Any]:
    """As :func:`run`, at any size."""
    with system(progress) as running:
        assert running.dsn is not None
        return through(running.dsn, running.addresses["mqtt"][1], running.addresses["gbt32960"][1], size, progress)


def through(dsn: str, mqtt_port: int, gbt_port: int, size: Size, progress: Progress) -> dict[str, Any]:
    """Drive the fleet against a system, wait for its statistics, compare."""
    with (
        tempfile.TemporaryDirectory(prefix="nevstream-truth-file-") as folder,
        psycopg.connect(dsn, autocommit=True) as db,
    ):
        truth = Path(folder) / "truth.jsonl"
        progress(f"{size.vehicles} vehicles, {size.days} days, a report every {size.period_s} s")
        begun = time.monotonic()
        sent = _send(size, truth, mqtt_port, gbt_port)
        progress(f"{sent['sent']:,} reports sent, {sent['frames_per_s']:,.0f}/s")
        stored_at = _until("rows", lambda: _ledger(db), sent["expected_stored"])
        caught_up_at = _until("statistics", lambda: _pending(db), 0)
        progress(f"statistics caught up {caught_up_at - stored_at:.1f} s after the last row")
        seconds = caught_up_at - begun
        lines = [orjson.loads(line) for line in truth.read_bytes().splitlines()]
        result = compare(db, size, lines, sent)
    return result | {
        "records": sent["expected_stored"],
        "records_per_s": round(sent["expected_stored"] / (stored_at - begun), 1),
        "records_with_statistics_per_s": round(sent["expected_stored"] / seconds, 1),
        "catch_up_s": round(caught_up_at - stored_at, 1),
        "settings": asdict(size) | {"faults": size.odds},
    }


# -- the system under test, and its load ---------------------------------------------------------------
@contextmanager
def system(progress: Progress, **overrides: Any) -> Iterator[System]:
    """A system of its own on free ports, with its own database; gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="nevstream-truth-"))
    home.chmod(0o711)  # the database's unprivileged user must reach its directory
    settings = Settings.read(
        overrides={
            "runtime_dir": home / "run",
            "database": {"dsn": None, "data_dir": home / "pg"},
            "gateway": {"mqtt": {"port": 0}, "gbt32960": {"port": 0}},
            "web": {"port": 0},
            "pipeline": {"clock_past_max_days": 40_000},  # the days are the same whenever this runs
        }
        | overrides
    )
    try:
        with System(settings) as running:
            progress(f"system ready in {running.start_seconds:.1f} s")
            yield running
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _send(size: Size, truth: Path, mqtt_port: int, gbt_port: int) -> dict[str, Any]:
    """The fleet, in a process of its own, until all is answered; the simulation's result."""
    argument = json.dumps(asdict(size) | {"truth": str(truth), "mqtt_port": mqtt_port, "gbt_port": gbt_port})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.truth", argument], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the simulated fleet ended with exit code {done.returncode}; its message is above")
    result: dict[str, Any] = json.loads(done.stdout)
    if not result["complete"]:
        raise RuntimeError(f"the gateway did not answer everything: {result['last_error']}")
    return result


def _until(what: str, value: Callable[[], int], wanted: int) -> float:
    """Wait until ``value()`` is ``wanted``; when that was.  RuntimeError when it stands still for too long."""
    last, moved = value(), time.monotonic()
    while last != wanted:
        time.sleep(_POLL_S)
        now = value()
        if now != last:
            last, moved = now, time.monotonic()
        elif time.monotonic() - moved > _LIMIT_S:
            raise RuntimeError(f"{what}: {last:,} instead of {wanted:,}, and no change for {_LIMIT_S:.0f} s")
    return time.monotonic()


def _ledger(db: psycopg.Connection[Any]) -> int:
    row = db.execute("SELECT coalesce(sum(rows), 0)::bigint FROM ledger").fetchone()
    assert row is not None
    return int(row[0])


def _pending(db: psycopg.Connection[Any]) -> int:
    """Changes of telemetry that the statistics do not tell of yet."""
    row = db.execute("SELECT count(*) FROM statistics_changes").fetchone()
    assert row is not None
    return int(row[0])


# -- the comparison --------------------------------------------------------------------------------------
def compare(
    db: psycopg.Connection[Any], size: Size, truth: list[dict[str, Any]], sent: Mapping[str, Any]
) -> dict[str, Any]:
    """What the tables say against what ``truth`` says."""
    of: dict[str, list[dict[str, Any]]] = {}
    for line in truth:
        of.setdefault(line["what"], []).append(line)
    vin_of = {row[0]: row[1] for row in db.execute("SELECT vehicle_id, vin FROM vehicles")}
    trips = _sessions(db, "trips", vin_of, of.get("trip", []), size, agree.trip_doubt)
    charges = _sessions(db, "charges", vin_of, of.get("charge", []), size, agree.charge_doubt)
    sums = _sums(db, size)
    capacity = _capacity(db, vin_of, of["vehicle"])
    return {
        "trips": trips,
        "charges": charges,
        "distance_error_pct": sums["consumption_km"]["error_pct"],
        "energy_error_pct": max(sums["consumption_kwh"]["error_pct"], sums["charge_kwh"]["error_pct"]),
        "sums": sums,
        "days": _days(db, of["day"]),
        "capacity_error_pct": capacity["error"]["p95_pct"],
        "capacity": capacity,
        "weak_cells": _weak_cells(db, vin_of, of["vehicle"]),
        "thermal": _thermal(db, vin_of, of.get("thermal_event", [])),
        "completeness": _completeness(db, size, of.get("fault", []), sent),
        "goals": dict(GOALS),
    }


def _sessions(
    db: psycopg.Connection[Any], table: str, vin_of: Mapping[int, str], lines: list[dict[str, Any]], size: Size,
    doubt: Callable[[Mapping[str, Any], float], tuple[bool, bool]],
) -> dict[str, Any]:  # fmt: skip
    """Sessions matched one to one, and the errors of those that are over on both sides."""
    energy = "consumption_kwh" if table == "trips" else "energy_kwh"
    length = "distance_km" if table == "trips" else "charge_ah"
    found = [
        agree.Session(vin_of[row[0]], row[1].timestamp(), row[2].timestamp(), False,
                      {"energy": row[3], "length": row[4], "open": row[5]})
        for row in db.execute(
            f"SELECT vehicle_id, start_at, end_at, {energy}, {length}, settled_on IS NULL FROM {table}"
        )
    ]  # fmt: skip
    true = []
    for line in lines:
        possible, doubtful = doubt(line, size.period_s)
        if possible:
            figures = {"energy": line["energy_kwh"], "length": abs(line[length]), "open": line["open"]}
            if table == "trips":
                figures["on_s"] = line["on_s"]
            true.append(agree.Session(line["vin"], line["start_s"], line["end_s"], doubtful, figures))
    matching = agree.match(agree.join_doubtful(true, found, size.period_s), found)
    over = [
        (one.figures, other.figures)
        for one, other in matching.pairs
        if one.figures and other.figures and not one.figures.get("open", True)  # of joined ones there are no figures
    ]
    errors = {
        name: [
            error
            for one, other in over
            if other[key] is not None and (error := agree.error_pct(abs(other[key]), abs(one[key]))) is not None
        ]
        for name, key in (("energy_error", "energy"), (f"{length}_error", "length"))
    }
    edges = [abs(other.start_s - one.start_s) for one, other in matching.pairs]
    ends = [abs(other.end_s - one.end_s) for one, other in matching.pairs if not (one.figures or {}).get("open", False)]
    return (
        matching.as_dict()
        | {name: agree.spread(values) for name, values in errors.items()}
        | {
            "start_off_p95_s": agree.round_(agree.percentile(edges, 95)),
            "end_off_p95_s": agree.round_(agree.percentile(ends, 95)),
            "examples": {
                "missed": [[one.vin, one.start_s, one.end_s] for one in matching.missed[:10]],
                "false": [[one.vin, one.start_s, one.end_s] for one in matching.false[:10]],
            },
        }
    )


_SUMS: Final = ("consumption_km", "distance_km", "consumption_kwh", "charge_kwh", "charge_ah", "covered_s")


def _sums(db: psycopg.Connection[Any], size: Size) -> dict[str, dict[str, Any]]:
    """Days added up, against the fleet computed again and looked at where records are stored.

    As the statistics have it, an interval that begins with the plug in and ends without, or the other way, is neither
    consumption nor charging; what lies in such intervals is ``left_out_kwh``.  ``sampling_pct``: how far the trapezoid
    over the true power at those seconds, without a wire and a system, is from the truth: no statistics can do better.
    ``system_pct``: how far the system is from that trapezoid.
    """
    model = size.model()
    ids = dict(db.execute("SELECT vin, vehicle_id FROM vehicles").fetchall())
    true, said = np.zeros((model.fleet.n, len(_SUMS))), np.zeros((model.fleet.n, len(_SUMS)))
    sampled, left_out = np.zeros((model.fleet.n, 2)), 0.0
    for v, vin in enumerate(model.fleet.vins):
        times = np.array(
            db.execute(
                "SELECT array_agg(DISTINCT extract(epoch FROM time)::bigint) FROM telemetry WHERE vehicle_id = %s",
                (ids[vin],),
            ).fetchone()[0],  # type: ignore[index]
            np.int64,
        )
        times.sort()
        bounds = np.zeros(model.fleet.n + 1, np.int64)
        bounds[v + 1 :] = len(times)
        true[v], sampled[v], out = covered_sums(model.counters_of(bounds, times), times, size.gap_s)
        left_out += out
        row = db.execute(
            f"SELECT {', '.join(f'sum({name})' for name in _SUMS)} FROM vehicle_day WHERE vehicle_id = %s", (ids[vin],)
        ).fetchone()
        assert row is not None
        said[v] = [value or 0.0 for value in row]
    result: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(_SUMS):
        errors = [e for a, b in zip(said[:, i], true[:, i], strict=True) if (e := agree.error_pct(a, b)) is not None]
        result[name] = {
            "said": round(float(said[:, i].sum()), 2),
            "true": round(float(true[:, i].sum()), 2),
            "error_pct": agree.round_(agree.error_pct(said[:, i].sum(), true[:, i].sum()), 4),
            "vehicles": agree.spread(errors),
        }
    for k, name in enumerate(("consumption_kwh", "charge_kwh")):
        i, ideal = _SUMS.index(name), sampled[:, k].sum()
        result[name]["sampling_pct"] = agree.round_(agree.error_pct(ideal, true[:, i].sum()), 4)
        result[name]["system_pct"] = agree.round_(agree.error_pct(said[:, i].sum(), ideal), 4)
    return result | {"left_out_kwh": {"true": round(left_out, 2)}}


def _days(db: psycopg.Connection[Any], days: list[dict[str, Any]]) -> dict[str, Any]:
    """Distance and charged energy of each vehicle's local day, all of it: what lies over midnight is in one of both."""
    said = {
        (vin, day.isoformat()): (distance or 0.0, charge or 0.0)
        for vin, day, distance, charge in db.execute(
            "SELECT vin, day, distance_km, charge_kwh FROM vehicle_day JOIN vehicles USING (vehicle_id)"
        )
    }
    off = [
        (abs(found[0] - line["distance_km"]), abs(found[1] - line["charge_kwh"]))
        for line in days
        if (found := said.get((line["vin"], line["day"]))) is not None
    ]
    return {
        "of": len(off),
        "distance_off_km": {f"p{p}": agree.round_(agree.percentile([km for km, _ in off], p)) for p in (50, 95, 100)},
        "charge_off_kwh": {f"p{p}": agree.round_(agree.percentile([kwh for _, kwh in off], p)) for p in (50, 95, 100)},
    }


def covered_sums(counters: Any, times: Any, gap_s: float) -> tuple[Any, tuple[float, float], float]:
    """``_SUMS`` of one vehicle in truth, the two energies by trapezoid over true power, and the energy left out."""
    dt, step = np.diff(times), np.diff(counters, axis=0)
    plugged = counters[:, ph.C_MODE] == ph.CHARGING
    covered = dt <= gap_s  # 3.3
    charging, other = covered & plugged[1:] & plugged[:-1], covered & ~plugged[1:] & ~plugged[:-1]
    net_j = step[:, ph.C_OUT_J] - step[:, ph.C_BACK_J]
    watts = counters[:, ph.C_POWER_W]
    trapezoid_j = (watts[1:] + watts[:-1]) / 2 * dt
    mixed = covered & ~charging & ~other
    return (
        (
            step[other, ph.C_ODOMETER_M].sum() / 1000,
            (counters[-1, ph.C_ODOMETER_M] - counters[0, ph.C_ODOMETER_M]) / 1000,
            net_j[other].sum() / 3.6e6,
            step[charging, ph.C_CHARGED_J].sum() / 3.6e6,
            step[charging, ph.C_CHARGED_AS].sum() / 3600,
            dt[covered].sum(),
        ),
        (trapezoid_j[other].sum() / 3.6e6, -trapezoid_j[charging].sum() / 3.6e6),
        float((abs(net_j[mixed]) + step[mixed, ph.C_CHARGED_J]).sum() / 3.6e6),
    )


def _capacity(db: psycopg.Connection[Any], vin_of: Mapping[int, str], vehicles: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of each vehicle's accepted charges, where there are enough, against its true capacity."""
    values: dict[str, list[float]] = {}
    for vehicle, capacity in db.execute("SELECT vehicle_id, capacity_ah FROM charges WHERE capacity_ah IS NOT NULL"):
        values.setdefault(vin_of[vehicle], []).append(capacity)
    errors = [
        agree.error_pct(median(values[line["vin"]]), line["capacity_ah"]) or 0.0
        for line in vehicles
        if len(values.get(line["vin"], [])) >= CHARGES_MIN
    ]
    return {"charges": sum(map(len, values.values())), "error": agree.spread(errors)}


def _weak_cells(
    db: psycopg.Connection[Any], vin_of: Mapping[int, str], vehicles: list[dict[str, Any]]
) -> dict[str, Any]:
    rows = db.execute(
        "SELECT vehicle_id, cell FROM cell_outliers"
        " WHERE 2 * z_rows >= usable_rows AND abs(deviation_mv) >= 10 GROUP BY 1, 2 HAVING count(DISTINCT day) >= %s",
        (OUTLIER_DAYS,),
    )
    found = {(vin_of[vehicle], cell) for vehicle, cell in rows}
    return agree.found_of({(line["vin"], line["weak_cell"]) for line in vehicles if line["weak_cell"]}, found)


def _thermal(db: psycopg.Connection[Any], vin_of: Mapping[int, str], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Episodes of the platform's rule, in the quarter of an hour after a fire began or anywhere else."""
    begun = {line["vin"]: line["start_s"] for line in events}
    planted, found = set(begun), set()
    for number, (vehicle, at) in enumerate(
        db.execute(
            "SELECT vehicle_id, start_at FROM alarm_episodes WHERE source = %s AND code = %s",
            (SOURCE_RULE, THERMAL_EVENT),
        )
    ):
        vin = vin_of[vehicle]
        right = vin in begun and 0 <= at.timestamp() - begun[vin] <= THERMAL_LATE_S
        found.add(vin if right else f"{vin} {number} {datetime.fromtimestamp(at.timestamp(), UTC).isoformat()}")
    return agree.found_of(planted, found) | {"examples": sorted(found - planted)[:10]}


def _completeness(
    db: psycopg.Connection[Any], size: Size, faults: list[dict[str, Any]], sent: Mapping[str, Any]
) -> dict[str, Any]:
    """Records, reissues and the missing rate that the hours tell, against what was done to the reports."""
    row = db.execute("SELECT sum(records), sum(expected), sum(reissued), sum(missing_s) FROM vehicle_hour").fetchone()
    assert row is not None
    records, expected, reissued, missing_s = (float(value or 0) for value in row)
    lost = sum(len(line["times_s"]) for line in faults if line["fault"] == "loss")
    held = sum(
        (end - begin) // size.period_s + 1
        for line in faults
        if line["fault"] == "blackout"
        for begin, end in line["spans_s"]
    )
    due = sent["expected_stored"] + lost
    said_pct, true_pct = 100 * (1 - records / expected) if expected else None, 100 * lost / due
    return {
        "records": int(records),
        "records_true": sent["expected_stored"],
        "missing_pct": agree.round_(said_pct),
        "missing_true_pct": agree.round_(true_pct),
        "error_points": None if said_pct is None else agree.round_(abs(said_pct - true_pct), 4),
        "missing_s": round(missing_s),
        "missing_true_s": lost * size.period_s,
        "reissued": int(reissued),
        "reissued_true": held,
    }


def main(argument: str) -> None:
    values = json.loads(argument)
    truth, mqtt_port, gbt_port = Path(values.pop("truth")), values.pop("mqtt_port"), values.pop("gbt_port")
    simulation = Simulation(Size(**values).settings(truth, mqtt_port, gbt_port))
    print(json.dumps(uvloop.run(simulation.run()).as_dict()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
