"""Counts by the beginning of a VIN: what a sender needs to reckon up."""

from __future__ import annotations

from typing import Any

import httpx
import psycopg

from schemas.reasons import CODE
from services.store.queries import Queries
from services.web.counts import Counts
from tests.web import rows
from tests.web.conftest import client_of


async def asked(client: httpx.AsyncClient, vin: str) -> Counts:
    answer = await client.get("/v1/counts", params={"vin": vin})
    assert answer.status_code == 200, answer.text
    return Counts.model_validate(answer.json())


async def test_counts_of_vins_that_begin_alike(db: psycopg.Connection[Any], queries: Queries) -> None:
    for number, reports in ((1, 10), (2, 20), (3, 0)):
        one = rows.vehicle(db, f"LCOUNTAB{number:09}")
        if reports:
            rows.state(db, one, rows.NOW, reports)
    rows.state(db, rows.vehicle(db, "LCOUNTAC000000001"), rows.NOW, 500)  # the next prefix
    rows.state(db, rows.vehicle(db, "LCOUNTA"), rows.NOW, 7000)  # shorter than the prefix
    for position, (reason, vin) in enumerate(
        (("bad_bcc", "LCOUNTAB000000001"), ("bad_bcc", "LCOUNTABX"), ("clock_past", "LCOUNTAB000000002"))
    ):
        rows.insert(
            db, "dead_letters", partition=0, offset=1, position=position, received_at=rows.NOW, reason=CODE[reason],
            detail=0, door=1, codec=1, vin=vin, peer="p", client="c", frame=b"##",
        )  # fmt: skip
    async with client_of(queries) as client:
        found = await asked(client, "LCOUNTAB")
        assert (found.vehicles, found.ever_reported, found.reports) == (3, 2, 30)
        assert (found.rejected, found.refused) == (3, {"bad_bcc": 2, "clock_past": 1})
        nobody = await asked(client, "LNOBODY")
        assert (nobody.vehicles, nobody.reports, nobody.refused, nobody.newest_data_time) == (0, 0, {}, None)
        assert (await asked(client, "")).reports == 7530
        assert (await client.get("/v1/counts", params={"vin": "no spaces"})).status_code == 422
