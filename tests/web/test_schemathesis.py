"""The API as it describes itself, asked with whatever that description allows and much that it does not: no 5xx.

schemathesis makes the requests; the API runs on a socket, over a database with a small fleet in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from services.journal.postgres import PostgresJournal
from services.settings import Settings
from services.store.access import PostgresAudit, PostgresTokens
from services.store.alarms import PostgresAlarms
from services.store.commands import PostgresCommands
from services.store.letters import Letters
from services.store.queries import Queries
from services.store.registry import PostgresRegistry
from tests.fix_api import api_on
from tests.fix_db import Databases
from tests.web import rows

pytestmark = [pytest.mark.database, pytest.mark.slow]

EXAMPLES: Final = 8  # of a path and method, of either sort; a number rather than a time, so that every run is the same
_ENDLESS: Final = "/v1/alarms/stream"
_MAY_BE_503: Final = "/readyz"  # when it is not ready, which is what it is asked


@pytest.fixture
def api(databases: Databases) -> Iterator[str]:
    dsn = databases.create(migrated=True)
    with psycopg.connect(dsn) as db:
        rows.fleet(db, step_s=60)
    journal = PostgresJournal(dsn, Settings().journal.partitions)
    seams: dict[str, Any] = {
        "letters": Letters(dsn, journal, Settings()), "commands": PostgresCommands(dsn),
        "registry": PostgresRegistry(dsn), "alarms": PostgresAlarms(dsn), "tokens": PostgresTokens(dsn),
        "audit": PostgresAudit(dsn),
    }  # fmt: skip
    with api_on(lambda: Queries(dsn), lambda: rows.NOW, closing=[journal], **seams) as url:
        yield url
    databases.drop(dsn)


@pytest.mark.timeout(900)
def test_nothing_that_is_asked_for_makes_it_fail(api: str) -> None:
    schema = schemathesis.openapi.from_url(f"{api}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    operations = [one for one in operations if one.path != _ENDLESS]
    asked = 0
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @seed(32960)
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
                derandomize=False,
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                answer = case.call(timeout=20)
                told = f"{case.method} {answer.request.url} {answer.request.body!r}"
                if case.operation.path != _MAY_BE_503:
                    assert answer.status_code < 500, f"{told}: {answer.status_code} {answer.text[:500]}"
                if answer.status_code >= 400:
                    kind = answer.headers.get("content-type", [""])
                    assert "application/problem+json" in str(kind), f"{told}: {answer.status_code} {kind}"

            with contextlib.suppress(Unsatisfiable):  # there is nothing to be wrong with: no parameter, no body
                ask()
    assert asked > 5 * len(operations)
