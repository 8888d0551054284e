"""``services/gateway/CONFORMANCE.md``: the table of statements with their verdicts, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from tests.conformance.statements import STATEMENTS, Statement, Verdict

HOW: Final = "NEVSTREAM_WRITE_CONFORMANCE=1 pytest tests/conformance/test_statements.py"
_TITLES: Final = {"3.1.1": "MQTT 3.1.1 (OASIS Standard, 2014-10-29)", "5": "MQTT 5.0 (OASIS Standard, 2019-03-07)"}


def _line(one: Statement, proved: Mapping[tuple[str, str], list[str]]) -> str:
    tests = ", ".join(f"`{name}`" for name in sorted(proved.get((one.version, one.number), ())))
    why = {Verdict.TESTED: tests, Verdict.NO_CONCERN: one.reason, Verdict.DEVIATES: one.reason}[one.verdict]
    if one.verdict is Verdict.DEVIATES and tests:
        why = f"{why} ({tests})"
    return f"| {one.number} | {one.text} | {one.verdict} | {why} |"


def page(proved: Mapping[tuple[str, str], list[str]]) -> str:
    """``proved``: (version, number) → names of the tests that prove it."""
    counts = Counter((one.version, one.verdict) for one in STATEMENTS)
    lines = [
        "# MQTT, statement by statement",
        "",
        f"Made from `tests/conformance/statements.py` (`{HOW}`); do not edit.",
        "",
        "The normative statements `[MQTT-x.y.z-n]` of both specifications in a few words of our own, and what the",
        "MQTT door makes of each. A test runs once for each statement it proves, under its name:",
        "`pytest tests/conformance -k mqtt5_3_1_2_24`.",
        "",
        "| | tested | does not concern us | deviates on purpose |",
        "|---|---|---|---|",
    ]
    for version, title in _TITLES.items():
        lines.append(f"| {title} | {' | '.join(str(counts[version, verdict]) for verdict in Verdict)} |")
    for version, title in _TITLES.items():
        lines += ["", f"## {title}", "", "| | | verdict | |", "|---|---|---|---|"]
        lines += [_line(one, proved) for one in STATEMENTS if one.version == version]
    return "\n".join(lines) + "\n"
