"""``nevstream vehicles list`` with filters, against the API on a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from services.store.queries import Queries
from tests.fix_api import Nevstream, api_on
from tests.fix_db import Databases
from tests.web import rows

pytestmark = pytest.mark.database


@pytest.fixture(scope="module")
def vehicles(databases: Databases) -> Iterator[Nevstream]:
    with (
        databases.filled(lambda db: rows.fleet(db, step_s=300)) as dsn,
        api_on(lambda: Queries(dsn), lambda: rows.NOW) as api,
    ):
        yield Nevstream("vehicles", api)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], [rows.VIN, rows.CHARGING, rows.SILENT, rows.IMPORTED]),
        (["--soc-below", "50"], [rows.CHARGING]),
        (["--activity", "charging,driving"], [rows.VIN, rows.CHARGING]),
        (["--reporting", "--fleet", "north"], [rows.VIN]),
        (["--reporting"], [rows.VIN, rows.CHARGING]),
        (["--model", "E1,E2"], [rows.VIN, rows.IMPORTED]),
        (["--bbox", "116,39,117,40"], [rows.VIN]),
        (["--alarm-level", "1"], []),
        (["LTEST", "--alarm-level", "0"], [rows.VIN]),
    ],
)
def test_the_list_can_be_narrowed(vehicles: Nevstream, options: list[str], wanted: list[str]) -> None:
    found = json.loads(vehicles("list", *options, "--json"))["vehicles"]
    assert [one["vin"] for one in found] == wanted
    shown = vehicles("list", *options)
    assert all(vin in shown for vin in wanted)
    assert wanted or "no such vehicle" in shown
