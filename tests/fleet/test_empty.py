"""Every metric and list answers on a database with nothing in it: counts are 0, rates are null."""

from __future__ import annotations

import pytest

from schemas.statistics.metrics import METRICS
from services.store.queries import Queries
from tests.web.conftest import client_of

pytestmark = pytest.mark.database


@pytest.mark.parametrize(
    "window", ["window=month", "window=day", "window=week", "window=year", "from=2026-09-28&to=2026-10-05"]
)
async def test_every_metric_of_an_empty_fleet(dsn: str, window: str) -> None:
    queries = Queries(dsn)
    async with client_of(queries) as client:
        for metric in METRICS:
            for by in ("", "&by=model,edition"):
                answer = await client.get(f"/v1/fleet/metrics/{metric.id}?{window}{by}")
                assert answer.status_code == 200, answer.text
                rows = answer.json()["figures"]
                assert len(rows) == (0 if by else len(metric.figures))
                for row in rows:
                    if row["denominator"] is not None:
                        assert row["denominator"] == 0
                        assert row["value"] is None, row
    await queries.close()


LISTS = ("lists/offline", "lists/frequent-alarms", "lists/clusters", "lists/outlier-cells", "verification")


@pytest.mark.parametrize("path", [*LISTS, "report/year", "series?metric=A2", "series?metric=Q4&per=week", "metrics"])
async def test_every_list_of_an_empty_fleet(dsn: str, path: str) -> None:
    queries = Queries(dsn)
    async with client_of(queries) as client:
        answer = await client.get(f"/v1/fleet/{path}")
        assert answer.status_code == 200, answer.text
        assert answer.json().get("count", 0) == len(answer.json().get("vehicles", answer.json().get("figures", [])))
    await queries.close()
