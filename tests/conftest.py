"""Fixtures by concern, one ``tests/fix_*.py`` each; list a new one here.  Nothing else belongs in this file."""

from __future__ import annotations

from schemas import jit

# Named, not imported: pytest rewrites the assertions of plugins that it imports itself.
pytest_plugins = ["tests.fix_db", "tests.fix_kafka", "tests.fix_timescale"]


def pytest_report_header() -> str:
    return f"nevstream: kernels {jit.MODE}"
