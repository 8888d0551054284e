"""Every panel of the Grafana dashboards asks for what is there, and gets an answer.

PromQL is held against services/metrics.py (and judged by promtool, where it is installed).  SQL runs on a database
with a vehicle's life in it, under the role of deploy/grafana/reader.sql, with macros and variables put in as Grafana
does; each panel must return rows.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from schemas.reasons import REASONS
from services.settings import Settings
from tests import statistics_rows as statistics
from tests.deploy.promql import mistakes
from tests.fix_db import Databases
from tests.web import rows

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text("utf-8")) for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
SOURCES = "".join(path.read_text("utf-8") for path in (ROOT / "services").rglob("*.py"))
UIDS = {"nevstream-prometheus", "nevstream-postgres"}


def _asked(key: str) -> list[Any]:
    """(dashboard, what) of every target that has this key."""
    return [
        pytest.param(board, target[key], id=f"{name}: {panel['title']}: {target['refId']}")
        for name, board in BOARDS.items()
        for panel in board["panels"]
        for target in panel.get("targets", ())
        if key in target
    ]


# -- as Grafana reads it ------------------------------------------------------------------------------


def test_the_dashboards_are_these() -> None:
    assert set(BOARDS) == {"pipeline", "fleet", "vehicle", "battery", "charging", "data-quality"}
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)


@pytest.mark.parametrize("name", list(BOARDS))
def test_panels_do_not_overlap_and_know_their_source(name: str) -> None:
    panels = BOARDS[name]["panels"]
    taken: set[tuple[int, int]] = set()

    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} <= UIDS


@pytest.mark.parametrize("name", list(BOARDS))
def test_variables_and_links_exist(name: str) -> None:
    known = {variable["name"] for variable in BOARDS[name]["templating"]["list"]}
    text = json.dumps(BOARDS[name]["panels"])

    used = set(re.findall(r"\$\{(\w+):sqlstring\}", text)) | set(re.findall(r"\$(instance)\b", text))
    assert used == known
    for uid in re.findall(r"/d/([\w-]+)", text):
        assert uid in {board["uid"] for board in BOARDS.values()}


def test_provisioning_names_the_same_sources() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/nevstream.yml").read_text("utf-8"))
    role = re.search(r"CREATE ROLE (\w+)", (GRAFANA / "reader.sql").read_text("utf-8"))

    assert {source["uid"] for source in provisioned["datasources"]} == UIDS
    assert role is not None
    assert role[1] in {source.get("user") for source in provisioned["datasources"]}


def test_reasons_have_their_names() -> None:
    for _, sql in (parameter.values for parameter in _asked("rawSql") if "CASE reason" in parameter.values[1]):
        assert [(int(code), name) for code, name in re.findall(r"WHEN (\d+) THEN '(\w+)'", sql)] == [
            (reason.code, reason.name) for reason in REASONS
        ]


# -- PromQL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("board", "expression"), _asked("expr"))
def test_metrics_exist(board: dict[str, Any], expression: str) -> None:
    assert mistakes(expression, SOURCES) == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_takes_the_expressions(tmp_path: Path) -> None:
    asked = [parameter.values[1] for parameter in _asked("expr")]
    file = tmp_path / "panels.yml"
    recorded = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(asked)
    ]
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))

    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr


# -- SQL ---------------------------------------------------------------------------------------------

BEGIN, END = rows.NOW - timedelta(days=60), rows.NOW + timedelta(hours=1)


def _life(db: psycopg.Connection[Any]) -> None:
    """The fleet of the API's tests, and of its first vehicle something in every table that a panel reads."""
    rows.fleet(db)
    db.execute("UPDATE vehicles SET battery_ah = 150, fleet = 'north', model = 'E1' WHERE vin = %s", [rows.VIN])
    row = db.execute("SELECT vehicle_id FROM vehicles WHERE vin = %s", [rows.VIN]).fetchone()
    assert row is not None
    one, today = row[0], statistics.local_day(rows.NOW)
    # those who look at this moment look at the clock of the database
    rows.state(db, rows.vehicle(db, "LTEST000000000005", fleet="north", model="E1"), rows.NOW, 1)
    start = rows.NOW - timedelta(hours=2)
    statistics.trip(db, one, start, start + timedelta(minutes=20), distance_km=12.0, consumption_kwh=2.0)
    statistics.charge(db, one, start, start + timedelta(hours=1), energy_kwh=20.0, max_power_kw=45.0,
                      start_soc_pct=20.0, end_soc_pct=80.0)  # fmt: skip
    statistics.episode(db, one, start, start + timedelta(minutes=1), 1, 3, level=2)
    statistics.capacity(db, one, today.replace(day=1), 5, 140.0)
    for back in range(4):
        when = today - timedelta(days=back)
        statistics.day(db, one, when, records=8000, covered_s=80000.0, gap_s=900.0, gap_max_s=600.0, temp_max_c=41.0,
                       range_rest_p50_mv=8.0, range_rest_p95_mv=15.0)  # fmt: skip
        statistics.finding(db, "cell_outliers", one, when, cell=7, usable_rows=100, z_rows=90, robust_rows=80,
                           deviation_mv=-25.0)  # fmt: skip
        night = {"end_at": rows.NOW - timedelta(days=back), "drop_mv_per_day": 9.0, "median_drop_mv_per_day": 1.0}
        statistics.finding(db, "cell_rests", one, when, cell=7, **night)
        statistics.finding(db, "dc_resistance", one, when, temp_class_c=20, samples=9, median_mohm=80.0)
    statistics.insert(db, "signal_flaws", day=today, vehicle_id=one, signal="speed_kmh", state="invalid", count=12)
    statistics.insert(db, "link_events", origin=1, number=1, occurred_at=start, event="connected", door=1, vin=rows.VIN)
    facts = statistics.insert(
        db, "cohort_facts", "facts_id", model="E1", fleet="north", region="BJ", usage="taxi",
        battery_supplier="unknown", chemistry="unknown",
    )  # fmt: skip
    for span, first in (("D", today), ("W", today - timedelta(days=today.weekday()))):
        statistics.insert(db, "cohort_period", span=span, start=first, cohort_id=facts * 4 + 1, vehicles=1,
                          checked_vehicles=1, passed_vehicles=1)  # fmt: skip


@pytest.fixture(scope="module")
def reader(databases: Databases) -> Iterator[psycopg.Connection[Any]]:
    """A connection as Grafana's role; that is made in a transaction which is rolled back, and so leaves no trace."""
    with databases.filled(_life) as dsn, psycopg.connect(dsn) as db:
        db.execute((GRAFANA / "reader.sql").read_text("utf-8"))
        db.execute("SET LOCAL ROLE nevstream_grafana")
        yield db
        db.rollback()


def as_sent(sql: str, values: dict[str, str]) -> str:
    """The statement as Grafana's PostgreSQL source sends it."""
    moments = {"From": f"'{BEGIN:%Y-%m-%dT%H:%M:%SZ}'", "To": f"'{END:%Y-%m-%dT%H:%M:%SZ}'"}
    sql = re.sub(r"\$\{(\w+):sqlstring\}", lambda found: values[found[1]], sql)
    sql = sql.replace("$__interval", "'5m'")
    sql = re.sub(r"\$__time(From|To)\(\)", lambda found: moments[found[1]], sql)
    sql = re.sub(r"\$__timeFilter\(([\w.]+)\)", rf"\1 BETWEEN {moments['From']} AND {moments['To']}", sql)
    sql = re.sub(r"\$__timeGroupAlias\(([\w.]+), ?'5m'\)", r'floor(extract(epoch from \1) / 300) * 300 AS "time"', sql)
    assert "$" not in sql, sql
    return sql


VALUES = {"vin": f"'{rows.VIN}'", "fleet": "'north','south'", "model": "'E1','E2'", "zone": "'Asia/Shanghai'"}


@pytest.mark.parametrize(("board", "sql"), _asked("rawSql"))
def test_sql_returns_rows(reader: psycopg.Connection[Any], board: dict[str, Any], sql: str) -> None:
    with reader.transaction(force_rollback=True):
        cursor = reader.execute(as_sent(sql, VALUES))
        found = cursor.fetchall()

    assert found
    assert len({column.name for column in cursor.description or ()}) == len(cursor.description or ())
    if "$__timeGroupAlias" in sql or " AS time," in sql:
        assert cursor.description is not None
        assert cursor.description[0].name == "time"


@pytest.mark.parametrize("name", list(BOARDS))
def test_variables_can_be_asked_for(reader: psycopg.Connection[Any], name: str) -> None:
    for variable in BOARDS[name]["templating"]["list"]:
        if variable["name"] in {"fleet", "model"}:
            with reader.transaction(force_rollback=True):
                assert reader.execute(variable["query"]).fetchall()
        if variable["name"] == "zone":
            assert variable["query"] == Settings().time_zone


@pytest.mark.parametrize("table", ["vehicles", "vehicle_keys", "journal", "api_tokens", "audit"])
def test_the_role_does_not_read_secrets(reader: psycopg.Connection[Any], table: str) -> None:
    with reader.transaction(force_rollback=True), pytest.raises(psycopg.errors.InsufficientPrivilege):
        reader.execute(f"SELECT * FROM {table}")


def test_the_role_changes_nothing(reader: psycopg.Connection[Any]) -> None:
    with reader.transaction(force_rollback=True), pytest.raises(psycopg.errors.InsufficientPrivilege):
        reader.execute("DELETE FROM dead_letters")
