"""The table of statements is whole, what it calls tested has a test, and the page made from it is the one committed."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance import document
from tests.conformance.proofs import PROVED
from tests.conformance.statements import STATEMENTS, Verdict

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "services/gateway/CONFORMANCE.md"

# clause → number of its last statement, counted in the specifications; 5.0 has no 2.2.1-1
LAST = {
    "3.1.1": {
        "1.5.3": 3, "2.2.2": 2, "2.3.1": 7, "3.1.0": 2, "3.1.2": 24, "3.1.3": 11, "3.1.4": 5, "3.2.0": 1, "3.2.2": 6,
        "3.3.1": 12, "3.3.2": 3, "3.3.4": 1, "3.3.5": 2, "3.6.1": 1, "3.8.1": 1, "3.8.3": 4, "3.8.4": 6, "3.9.3": 2,
        "3.10.1": 1, "3.10.3": 2, "3.10.4": 6, "3.12.4": 1, "3.14.1": 1, "3.14.4": 3, "4.1.0": 2, "4.3.1": 1,
        "4.3.2": 2, "4.3.3": 2, "4.4.0": 1, "4.5.0": 2, "4.6.0": 6, "4.7.1": 3, "4.7.2": 1, "4.7.3": 4, "4.8.0": 2,
        "6.0.0": 4, "7.0.0": 2, "7.1.1": 1, "7.1.2": 1,
    },
    "5": {
        "1.5.4": 3, "1.5.5": 1, "1.5.7": 1, "2.1.3": 1, "2.2.1": 6, "2.2.2": 1, "3.1.0": 2, "3.1.2": 30, "3.1.3": 12,
        "3.1.4": 6, "3.2.0": 2, "3.2.2": 22, "3.3.1": 13, "3.3.2": 20, "3.3.4": 10, "3.4.2": 3, "3.5.2": 3, "3.6.1": 1,
        "3.6.2": 3, "3.7.2": 3, "3.8.1": 1, "3.8.3": 5, "3.8.4": 8, "3.9.2": 2, "3.9.3": 2, "3.10.1": 1, "3.10.3": 2,
        "3.10.4": 6, "3.11.2": 2, "3.11.3": 2, "3.12.4": 1, "3.14.0": 1, "3.14.1": 1, "3.14.2": 4, "3.14.4": 3,
        "3.15.1": 1, "3.15.2": 3, "4.1.0": 2, "4.2": 1, "4.3.1": 1, "4.3.2": 5, "4.3.3": 13, "4.4.0": 2, "4.5.0": 2,
        "4.6.0": 6, "4.7.0": 1, "4.7.1": 2, "4.7.2": 1, "4.7.3": 4, "4.8.2": 6, "4.9.0": 3, "4.12.0": 7, "4.12.1": 2,
        "4.13.1": 1, "4.13.2": 1, "6.0.0": 4,
    },
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _all_tests_named() -> None:
    for file in sorted(FOLDER.glob("test_*.py")):
        importlib.import_module(f"tests.conformance.{file.stem}")


@pytest.mark.parametrize("version", LAST)
def test_every_statement_is_there_once(version: str) -> None:
    wanted = [f"{clause}-{k}" for clause, last in LAST[version].items() for k in range(1, last + 1)]
    if version == "5":
        wanted.remove("2.2.1-1")
    found = Counter(one.number for one in STATEMENTS if one.version == version)
    assert [number for number, times in found.items() if times > 1] == []
    assert sorted(found) == sorted(wanted)


def test_tested_means_that_there_is_a_test() -> None:
    tested = {(one.version, one.number) for one in STATEMENTS if one.verdict is Verdict.TESTED}
    assert sorted(tested - PROVED.keys()) == []
    # a deviation may be shown by a test, too; what does not concern us has none
    deviating = {(one.version, one.number) for one in STATEMENTS if one.verdict is Verdict.DEVIATES}
    assert sorted(PROVED.keys() - tested - deviating) == []


def test_everything_else_has_a_reason() -> None:
    assert [one.id for one in STATEMENTS if (one.verdict is Verdict.TESTED) == bool(one.reason)] == []


def test_the_page_is_that_of_the_table() -> None:
    made = document.page(PROVED)
    if os.environ.get("NEVSTREAM_WRITE_CONFORMANCE"):
        PAGE.write_text(made, "utf-8")
    assert PAGE.read_text("utf-8") == made, f"run: {document.HOW}"
