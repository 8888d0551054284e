"""Alert rules name metrics, labels and runbook entries that exist, and fire when they should.

The last is asked of promtool (Debian: ``prometheus``), with series made up here; without it those tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from services.cli import app
from services.settings import Settings
from tests.deploy.promql import exported, mistakes, named

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/alerts.yml"
CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
RUNBOOKS = (ROOT / "docs/runbooks.md").read_text("utf-8")
ENTRIES: dict[str, str] = {
    heading.lower().replace(" ", "-"): text
    for heading, text in re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", RUNBOOKS, re.MULTILINE)
}
SOURCES = "".join(path.read_text("utf-8") for path in (ROOT / "services").rglob("*.py"))

every_alert = pytest.mark.parametrize("name", list(ALERTS))


# -- what they name ---------------------------------------------------------------------------------


def test_the_walker_sees_what_is_wrong() -> None:
    wrong = mistakes(
        'sum by (door, color) (rate(nevstream_lag_seconds{stage="gatway", kind="such"}[5m])) > 0.8 * 60000 or foo',
        SOURCES,
    )

    assert wrong == [
        "nevstream_lag_seconds has no label kind",
        "nothing sets stage of nevstream_lag_seconds to 'gatway'",
        "nothing sets kind of nevstream_lag_seconds to 'such'",
        "no metric foo",
        "grouped by color, which no metric in it has",
        "grouped by door, which no metric in it has",
    ]


def test_names_are_single() -> None:
    assert len(ALERTS) == sum(len(group["rules"]) for group in GROUPS)
    assert len({group["name"] for group in GROUPS}) == len(GROUPS)


@every_alert
def test_metrics_and_labels_exist(name: str) -> None:
    assert named(ALERTS[name]["expr"]).selectors
    assert mistakes(ALERTS[name]["expr"], SOURCES) == []


@every_alert
def test_it_says_what_it_is(name: str) -> None:
    rule = ALERTS[name]

    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    # labels that a text shows are there when the rule fires
    found = named(rule["expr"])
    known = exported() | {"up": frozenset()}
    left = found.grouped or set().union(*(known[metric] for metric, _ in found.selectors))
    shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert shown <= left | {"instance"}


@every_alert
def test_its_runbook_entry_exists(name: str) -> None:
    file, _, anchor = ALERTS[name]["annotations"]["runbook_url"].partition("#")

    assert file == "docs/runbooks.md"
    assert anchor in ENTRIES
    for part in ("Means", "Vehicles feel", "Look", "Mend"):
        assert f"**{part}" in ENTRIES[anchor], f"{anchor} does not say: {part}"


def test_numbers_repeated_from_the_settings_are_the_defaults() -> None:
    limits, letters = Settings().gateway.limits, Settings().dead_letters

    assert f"* {limits.connections_max} *" in ALERTS["NevstreamConnectionsNearLimit"]["expr"]
    assert ALERTS["NevstreamDeadLettersGrowing"]["expr"].count(str(letters.rows_max)) == 2
    assert Settings().web.ready_lag_max_s < 600


def test_prometheus_loads_them_and_scrapes_under_the_name_that_they_know() -> None:
    config = yaml.safe_load(CONFIG.read_text("utf-8"))

    assert config["rule_files"] == [RULES.name]
    assert [job["job_name"] for job in config["scrape_configs"]] == ["nevstream"]


# -- the runbooks ------------------------------------------------------------------------------------


def test_every_entry_has_an_alert() -> None:
    anchors = {rule["annotations"]["runbook_url"].partition("#")[2] for rule in ALERTS.values()}

    assert set(ENTRIES) - anchors == {"certificates"}


def test_links_within_the_runbooks_hold() -> None:
    assert set(re.findall(r"\]\(#([\w-]+)\)", RUNBOOKS)) <= set(ENTRIES)
    for path in re.findall(r"\]\((\.\./[\w./-]+)\)", RUNBOOKS):
        assert (ROOT / "docs" / path).exists(), path


def test_commands_of_the_runbooks_exist() -> None:
    asked = sorted(set(re.findall(r"`nevstream ([^`|]+)`", RUNBOOKS)))
    assert len(asked) > 20

    for line in asked:
        command: Any = typer.main.get_command(app)
        words = line.split()
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, f"nevstream {line}"
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, f"nevstream {line}"


def test_metrics_and_settings_of_the_runbooks_exist() -> None:
    known = exported()
    for metric in re.findall(r"nevstream_\w+", RUNBOOKS):
        assert metric in known or f"{metric}_count" in known, metric
    for setting in re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)+)(?: = [^`]+)?`", RUNBOOKS):
        value: Any = Settings()
        if hasattr(value, setting.split(".")[0]):
            for part in setting.split("."):
                value = getattr(value, part)
        else:
            assert setting in {"min.insync.replicas", "retention.ms", "retention.bytes", "nevstream.frames"}, setting


def test_sql_of_the_runbooks_runs(read_db: Any) -> None:
    statements = re.findall(r"```sql\n(.*?)```", RUNBOOKS, re.DOTALL) + re.findall(r"`(SELECT [^`]+)`", RUNBOOKS)
    assert len(statements) > 6

    for statement in statements:
        read_db.execute(statement).fetchall()


# -- when they fire ----------------------------------------------------------------------------------

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
UP = ("up", {"job": "nevstream"}, "1x520")
LISTENING = ("nevstream_gateway_accepting", {"listener": "mqtt"}, "2x520")
# name → (series of a minute's step, minute at which it fires, labels beyond instance and severity)
FIRES: dict[str, tuple[list[tuple[str, dict[str, str], str]], int, dict[str, str]]] = {
    "NevstreamDown": ([("up", {"job": "nevstream"}, "1 0x9")], 4, {"job": "nevstream"}),
    "NevstreamNotListening": (
        [UP, LISTENING, ("nevstream_gateway_accepting", {"listener": "gbt32960"}, "2 0x9")], 4,
        {"listener": "gbt32960"},
    ),
    "NevstreamReadingPaused": ([("nevstream_gateway_reading_paused", {}, "1x9")], 4, {}),
    "NevstreamConnectionsNearLimit": (
        [LISTENING, ("nevstream_gateway_connections", {"door": "mqtt"}, "60000x30"),
         ("nevstream_gateway_connections", {"door": "gbt32960"}, "40000x30")], 15, {},
    ),
    "NevstreamConnectionsRefused": (
        [("nevstream_gateway_connections_refused_total", {"door": "mqtt", "cause": "limit"}, "0+60x9")],
        8, {"door": "mqtt"},
    ),
    "NevstreamConnectionsFell": (
        [("nevstream_gateway_connections", {"door": "mqtt"}, "1000x70 300x9")], 78, {},
    ),
    "NevstreamAcksSlow": (
        [("nevstream_gateway_ack_seconds_bucket", {"door": "mqtt", "le": "1"}, "0+10x30"),
         ("nevstream_gateway_ack_seconds_bucket", {"door": "mqtt", "le": "2.5"}, "0+100x30"),
         ("nevstream_gateway_ack_seconds_bucket", {"door": "mqtt", "le": "+Inf"}, "0+100x30")], 20, {"door": "mqtt"},
    ),
    "NevstreamRejectsAtTheDoor": (
        [("nevstream_gateway_frames_refused_total", {"door": "mqtt", "reason": "garbage"}, "0+5x40"),
         ("nevstream_gateway_frames_acked_total", {"door": "mqtt"}, "0+100x40")], 35, {"door": "mqtt"},
    ),
    "NevstreamBridgeAway": (
        [("nevstream_gateway_bridge_connections", {}, "0x20"),
         ("nevstream_gateway_bridge_reconnects_total", {"cause": "refused"}, "0+2x20")], 15, {},
    ),
    "NevstreamJournalAway": (
        [("nevstream_lag_seconds", {"stage": "gateway", "cause": "journal_away"}, "0+20x9")], 4,
        {"stage": "gateway", "cause": "journal_away"},
    ),
    "NevstreamJournalSlow": (
        [("nevstream_lag_seconds", {"stage": "gateway", "cause": "in_flight"}, "3x9")], 6,
        {"stage": "gateway", "cause": "in_flight"},
    ),
    "NevstreamAppendFailures": ([("nevstream_journal_append_failures_total", {}, "0+30x9")], 8, {}),
    # there at the first look, and for hours
    "NevstreamJournalLostRecords": ([("nevstream_journal_lost_records_total", {}, "_ _ 12x300")], 200, {}),
    "NevstreamDatabaseAway": (
        [("nevstream_lag_seconds", {"stage": "pipeline", "cause": "store_away"}, "0+60x9")], 6,
        {"stage": "pipeline", "cause": "store_away"},
    ),
    "NevstreamLag": (
        [("nevstream_lag_seconds", {"stage": "pipeline", "cause": "store_slow"}, "90x9")], 6,
        {"stage": "pipeline", "cause": "store_slow"},
    ),
    "NevstreamLagHigh": ([("nevstream_pipeline_lag_seconds", {}, "900x9")], 8, {}),
    "NevstreamPipelineHalted": ([("nevstream_pipeline_halted", {}, "1x9")], 2, {}),
    "NevstreamPipelineRestarts": (
        [("nevstream_pipeline_restarts_total", {"cause": "store_unavailable"}, "0+1x30")], 25,
        {"cause": "store_unavailable"},
    ),
    "NevstreamRejects": (
        [("nevstream_pipeline_frames_total", {"command": "refused"}, "0+5x40"),
         ("nevstream_pipeline_frames_total", {"command": "realtime"}, "0+100x40")], 35, {},
    ),
    "NevstreamConflicts": (
        [("nevstream_pipeline_conflicts_total", {}, "0+5x140"),
         ("nevstream_pipeline_rows_total", {"path": "fast"}, "0+100x140")], 130, {},
    ),
    "NevstreamDeadLettersGrowing": ([("nevstream_dead_letters_kept", {}, "250000+200x500")], 480, {}),
    "NevstreamDeadLettersDropped": ([("nevstream_dead_letters_pruned_total", {"cause": "size"}, "0+5x90")], 60,
                                    {"cause": "size"}),
    "NevstreamStatisticsBehind": ([("nevstream_statistics_lag_seconds", {}, "1000x30")], 20, {}),
    "NevstreamWebhookGivesUp": (
        [("nevstream_webhook_attempts_total", {"hook": "duty", "outcome": "dead"}, "0 0 1x9")], 5, {"hook": "duty"},
    ),
    "NevstreamAuditLost": ([("nevstream_audit_lost_total", {}, "0 0 1x9")], 5, {}),
    "NevstreamApiRefuses": ([("nevstream_api_refused_total", {"cause": "bad-token"}, "0+300x30")], 20,
                            {"cause": "bad-token"}),
}  # fmt: skip


def _labels(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def _case(name: str, series: Any, minute: int, labels: dict[str, str] | None) -> dict[str, Any]:
    """One of promtool's: at that minute this alert fires with these labels; None: no alert does."""
    fired = {"alertname": name, "alertstate": "firing", "instance": "a:8080"} | (labels or {})
    if labels is not None:
        fired["severity"] = ALERTS[name]["labels"]["severity"]
    which = _labels({"alertname": name, "alertstate": "firing"}) if labels is not None else '{alertstate="firing"}'
    return {
        "name": name,
        "interval": "1m",
        "input_series": [
            {"series": metric + _labels({"instance": "a:8080"} | given), "values": values}
            for metric, given, values in series
        ],
        "promql_expr_test": [
            {
                "expr": f"ALERTS{which}",
                "eval_time": f"{minute}m",
                "exp_samples": [] if labels is None else [{"labels": f"ALERTS{_labels(fired)}", "value": 1}],
            }
        ],
    }


def _judge(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    file = tmp_path / "cases.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case() -> None:
    assert set(FIRES) == set(ALERTS)


@promtool
def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@promtool
def test_promtool_takes_the_configuration() -> None:
    done = subprocess.run(["promtool", "check", "config", str(CONFIG)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_they_fire(tmp_path: Path) -> None:
    _judge(tmp_path, [_case(name, *case) for name, case in FIRES.items()])


@promtool
def test_a_gateway_that_is_gone_is_not_listening(tmp_path: Path) -> None:
    # with the last process its figures go away
    _judge(tmp_path, [_case("NevstreamNotListening", [UP], 4, {"job": "nevstream"})])


@promtool
def test_none_fires_while_all_is_well(tmp_path: Path) -> None:
    well = [
        UP, LISTENING,
        ("nevstream_gateway_connections", {"door": "mqtt"}, "1000x520"),
        ("nevstream_gateway_reading_paused", {}, "0x520"),
        ("nevstream_gateway_bridge_connections", {}, "0x520"),  # there is no broker
        ("nevstream_gateway_connections_refused_total", {"door": "mqtt", "cause": "bad_password"}, "0+1x520"),
        ("nevstream_gateway_frames_acked_total", {"door": "mqtt"}, "0+60000x520"),
        ("nevstream_gateway_frames_refused_total", {"door": "mqtt", "reason": "garbage"}, "0+60x520"),
        ("nevstream_gateway_ack_seconds_bucket", {"door": "mqtt", "le": "1"}, "0+600x520"),
        ("nevstream_gateway_ack_seconds_bucket", {"door": "mqtt", "le": "+Inf"}, "0+600x520"),
        ("nevstream_lag_seconds", {"stage": "gateway", "cause": "working"}, "0.1x520"),
        ("nevstream_lag_seconds", {"stage": "pipeline", "cause": "working"}, "0.1x520"),
        ("nevstream_journal_append_failures_total", {}, "0x100 1x420"),
        ("nevstream_journal_lost_records_total", {}, "0x520"),
        ("nevstream_pipeline_lag_seconds", {}, "0.1x520"),
        ("nevstream_pipeline_halted", {}, "0x520"),
        ("nevstream_pipeline_restarts_total", {"cause": "store_unavailable"}, "0x100 1x420"),
        ("nevstream_pipeline_frames_total", {"command": "realtime"}, "0+60000x520"),
        ("nevstream_pipeline_frames_total", {"command": "refused"}, "0+60x520"),
        ("nevstream_pipeline_rows_total", {"path": "fast"}, "0+60000x520"),
        ("nevstream_pipeline_conflicts_total", {}, "0+6x520"),
        ("nevstream_dead_letters_kept", {}, "100+60x520"),
        ("nevstream_dead_letters_pruned_total", {"cause": "age"}, "0+6x520"),
        ("nevstream_statistics_lag_seconds", {}, "60x520"),
        ("nevstream_webhook_attempts_total", {"hook": "duty", "outcome": "retried"}, "0+1x520"),
        ("nevstream_audit_lost_total", {}, "0x520"),
        ("nevstream_api_refused_total", {"cause": "no-token"}, "0+6x520"),
    ]  # fmt: skip
    _judge(tmp_path, [_case("well", well, 500, None)])
