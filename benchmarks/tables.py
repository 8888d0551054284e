"""The tables of the READMEs, made from ``results/*.json``: no figure there is typed by hand.

A section ``<!-- bench:NAME -->`` … ``<!-- /bench -->`` holds the table of ``results/NAME.json``; ``nevstream bench
--tables`` (or ``python -m benchmarks.tables``) writes them anew, and a test holds the files against the results.  Rates
are given in three figures: machines vary by more than that.  Text outside sections is never touched.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.errors import UsageError

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE / "results"
FILES: Final = (HERE / "README.md", HERE.parent / "README.md")

_SECTION: Final = re.compile(r"^<!-- bench:([\w-]+) -->\n(.*?)^<!-- /bench -->", re.DOTALL | re.MULTILINE)
_MARK: Final = re.compile(r"^<!-- (?:bench:[\w-]+|/bench) -->", re.MULTILINE)
_FIELD: Final = re.compile(r"\{([\w.-]+)\}")


@dataclass(frozen=True, slots=True)
class Facts:
    """One row per text: (what, figures).  ``{dotted.name}`` is a figure of the result; without it, no row."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Each:
    """One row per item of the list ``of``: (heading, text with ``{name}`` of the item); a dash where it has none."""

    of: str
    columns: tuple[tuple[str, str], ...]


Table = Facts | Each

TABLES: Final[Mapping[str, tuple[Table, ...]]] = {
    "journey": (
        Facts(
            "`nevstream bench journey`: {frame_bytes}-byte reports, {settings.vehicles} connections, window "
            "{settings.window}, medians of {settings.repeats}",
            (
                ("MQTT QoS 1: socket → decoded row committed, every frame acked durable", "{frames_per_s} frames/s"),
                ("acknowledgement, p50 and p99, at that load", "{ack_p50_ms} ms, {ack_p99_ms} ms"),
                ("GB/T 32960 TCP, the same", "{gbt32960_frames_per_s} frames/s"),
                ("a bare COPY of the same rows", "{copy_rows_per_s} rows/s; the journey reaches {copy_ratio} of it"),
                (
                    "mosquitto alone, relaying to one subscriber that only acknowledges",
                    "{relay_frames_per_s} frames/s: {relay_ratio} times slower",
                ),
                ("the obvious program behind mosquitto", "{baseline_frames_per_s} frames/s: {ratio} times slower"),
                ("lost, twice", "{lost}, {duplicated}"),
            ),
        ),
    ),
    "scan": (
        Each(
            "cases",
            (
                ("`nevstream bench scan`, one core", "{door}, {packet_bytes} bytes"),
                ("packets/s", "{packets_per_s}"),
                ("with copies and answers", "{tick_packets_per_s}"),
                ("plain Python", "{others_packets_per_s.python}"),
                ("paho-mqtt", "{others_packets_per_s.paho-mqtt}"),
                ("gmqtt", "{others_packets_per_s.gmqtt}"),
                ("rtm-con", "{others_packets_per_s.rtm-con}"),
            ),
        ),
    ),
    "json": (
        Each(
            "cases",
            (
                ("`nevstream bench json`, one core", "{case}, {sample_bytes} bytes"),
                ("samples/s", "{samples_per_s}"),
                ("a loop with the same checks", "{checked_per_s}"),
                ("`json.loads` and a loop, unchecked", "{json_per_s}"),
                ("`orjson.loads` and a loop, unchecked", "{orjson_per_s}"),
                ("`orjson.loads` alone", "{parse_per_s}"),
            ),
        ),
    ),
    "journal": (
        Each(
            "cases",
            (
                ("`nevstream bench journal`", "{journal}, {way}"),
                ("frames/s durable", "{append_frames_per_s}"),
                ("frames/s read and unpacked", "{read_frames_per_s}"),
                ("an append, p50", "{append_p50_ms} ms"),
                ("p99", "{append_p99_ms} ms"),
                ("bytes a frame", "{stored_bytes_per_frame}"),
            ),
        ),
    ),
    "copy": (
        Facts(
            "`nevstream bench copy`: {rows} rows of {columns} columns and {row_bytes} bytes, medians of "
            "{settings.repeats}",
            (
                ("encoding alone, one core", "{encode_rows_per_s} rows/s: {encode_share} of the time below"),
                ("encoding and the sink's COPY, a transaction per batch", "{rows_per_s} rows/s"),
                ("the sink's whole transaction: states, ledger, changes, positions", "{commit_rows_per_s} rows/s"),
                ("one bare COPY of the same bytes", "{copy_rows_per_s} rows/s"),
                ("of which the sink's COPY reaches, its whole transaction", "{copy_ratio}, {commit_ratio}"),
            ),
        ),
    ),
    "latency": (
        Each(
            "shares",
            (
                ("`nevstream bench latency`", "{share_pct} % of capacity, {frames_per_s} frames/s"),
                ("ack p50", "{ack_p50_ms} ms"),
                ("ack p99", "{ack_p99_ms} ms"),
                ("socket → row p50", "{row_p50_ms} ms"),
                ("p99", "{row_p99_ms} ms"),
                ("p99.9", "{row_p999_ms} ms"),
                ("`/metrics` says: ack p99", "{system_ack_p99_ms} ms"),
                ("row p99", "{system_row_p99_ms} ms"),
            ),
        ),
    ),
}


def figure(value: Any) -> str:
    """A figure as the READMEs give it: three figures, thousands apart; texts as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    rounded = float(f"{value:.3g}") if abs(value) >= 1000 else value
    if rounded == int(rounded):
        return f"{int(rounded):,}"
    return f"{rounded:,.3g}" if abs(rounded) >= 1 else f"{rounded:.2g}"


def _at(result: Mapping[str, Any], name: str) -> Any:
    value: Any = result
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _filled(text: str, result: Mapping[str, Any]) -> str | None:
    """``text`` with its figures; None when one of them is not there."""
    names = _FIELD.findall(text)
    if any(_at(result, name) is None for name in names):
        return None
    return _FIELD.sub(lambda found: figure(_at(result, found[1])), text)


def _lines(table: Table, result: Mapping[str, Any]) -> list[str]:
    if isinstance(table, Facts):
        rows = [(text, _filled(cell, result)) for text, cell in table.rows]
        return [
            f"| {_filled(table.title, result)} | |",
            "|---|---|",
            *(f"| {text} | {cell} |" for text, cell in rows if cell is not None),
        ]
    items: Sequence[Mapping[str, Any]] = _at(result, table.of) or ()
    cells = [[_filled(text, item) for _, text in table.columns] for item in items]
    kept = [at for at in range(len(table.columns)) if any(row[at] is not None for row in cells)]
    return [
        "| " + " | ".join(table.columns[at][0] for at in kept) + " |",
        "|---" * len(kept) + "|",
        *("| " + " | ".join(row[at] or "-" for at in kept) + " |" for row in cells),
    ]


def table_of(name: str, result: Mapping[str, Any]) -> str:
    """The Markdown of a benchmark's tables and of what they were measured on."""
    made = ["\n".join(_lines(table, result)) + "\n" for table in TABLES[name]]
    machine = result["machine"]
    made.append(
        f"{'`--quick`, ' if result['quick'] else ''}{result['at'][:10]}, commit {result['commit']}, {machine['cores']} "
        f"cores of {machine['cpu']}, load {figure(machine['load_1min'])} at the end; "
        f"[results/{name}.json](benchmarks/results/{name}.json).\n"
    )
    return "\n".join(made)


def result_of(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """The stored result, None when there is none."""
    file = folder / f"{name}.json"
    if not file.exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def rendered(text: str, folder: Path = RESULTS, links: str = "benchmarks/") -> str:
    """``text`` with every section made anew.  Raises ``UsageError`` for an unknown name or a section without end.

    ``links``: where results lie, seen from the file.
    """
    names = _SECTION.findall(text)
    if 2 * len(names) != len(_MARK.findall(text)):
        raise UsageError("a section <!-- bench:NAME --> has no <!-- /bench -->, or the other way round")

    def anew(found: re.Match[str]) -> str:
        name = found[1]
        if name not in TABLES:
            raise UsageError(f"there is no table for {name!r}, only for {', '.join(TABLES)}")
        result = result_of(name, folder)
        if result is None:
            raise UsageError(f"benchmarks/results/{name}.json is missing: nevstream bench {name} --json > it")
        table = table_of(name, result).replace("](benchmarks/", f"]({links}")
        return f"<!-- bench:{name} -->\n{table}<!-- /bench -->"

    return _SECTION.sub(anew, text)


def links_of(file: Path) -> str:
    """Where ``benchmarks/`` is, seen from ``file``."""
    return "" if file.parent == HERE else "benchmarks/"


def write() -> list[Path]:
    """Make all sections anew; the files that changed."""
    changed = []
    for file in FILES:
        text = file.read_text("utf-8")
        made = rendered(text, links=links_of(file))
        if made != text:
            file.write_text(made, "utf-8")
            changed.append(file)
    return changed


if __name__ == "__main__":
    for changed_file in write():
        sys.stdout.write(f"{changed_file}\n")
