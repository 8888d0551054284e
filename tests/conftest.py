"""Fixtures by concern, one ``tests/fix_*.py`` each; list a new one here.  Nothing else belongs in this file but how
hypothesis works: the same examples in every run, whatever the machine's load, so that nothing fails by chance.

``pytest --hypothesis-profile=explore`` looks for new ones.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from schemas import jit

# Named, not imported: pytest rewrites the assertions of plugins that it imports itself.
pytest_plugins = ["tests.fix_db", "tests.fix_kafka", "tests.fix_leaks", "tests.fix_timescale"]

settings.register_profile("explore", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")


def pytest_report_header() -> str:
    return f"nevstream: kernels {jit.MODE}"
