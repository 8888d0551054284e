"""The JSON Schema documents: generated, valid, and of one mind with the decoder; printed and served."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator, FormatChecker
from typer.testing import CliRunner

from schemas.samples.document import FOLDER, NAMES, document, text
from schemas.samples.fields import FIELDS
from services.cli import app
from services.settings import Settings
from services.web.app import create_app
from tests.samples.making import rows

AT = {"time": "2026-05-29T04:26:40+08:00"}


@pytest.mark.parametrize("name", NAMES)
def test_committed_documents_are_what_is_generated(name: str) -> None:
    committed = (FOLDER / f"{name}.schema.json").read_text("utf-8")
    assert committed == text(name), "write them anew: python -m schemas.samples.document"
    Draft202012Validator.check_schema(document(name))


def test_printed() -> None:
    done = CliRunner().invoke(app, ["schema", "bms"])
    assert (done.exit_code, done.output) == (0, text("bms"))


async def test_served() -> None:
    queries: Any = None
    transport = httpx.ASGITransport(create_app(Settings(), queries))
    async with httpx.AsyncClient(transport=transport, base_url="http://nevstream") as client:
        found = await client.get("/v1/schemas/telemetry")
        assert (found.status_code, found.headers["content-type"]) == (200, "application/schema+json")
        assert found.json() == document("telemetry")
        assert (await client.get("/v1/schemas/gbt32960")).status_code == 422


GOOD: list[Any] = [
    AT,
    [AT, AT],
    AT | {"speed_kmh": 65.3, "own": {"a": 1}, "kind": "reissue", "vin": "LNBSCB3F4JW000001"},
    AT | {"cells_v": [3.3, None]},
    AT | {"cells_v": [[3.3], [3.4]], "temps_c": [{"no": 2, "temps_c": [20]}]},
    AT | {"cells_v": [{"no": 1, "cells_v": [3.3], "voltage_v": 350.5, "current_a": -3}]},
    AT | {field.signal.name: field.bounds[0] for field in FIELDS if "cell" not in field.signal.name},
    AT | {field.signal.name: field.bounds[1] for field in FIELDS if "cell" not in field.signal.name},
]
BAD: list[Any] = [
    {},
    [],
    [1],
    {"time": "2026-05-29"},
    {"time": -1},
    AT | {"speed_kmh": "65"},
    AT | {"soc_pct": 101},
    AT | {"run_mode": 1.5},
    AT | {"kind": "x"},
    AT | {"cells_v": [-1]},
    AT | {"cells_v": {"a": 1}},
    AT | {"cells_v": [{"no": 99, "cells_v": [3.3]}]},
    AT | {"temps_c": [[300]]},
    AT | {"cells_v": [{"cells_v": [3.3], "odd": 1}]},
]


@pytest.mark.parametrize("payload", GOOD + BAD, ids=repr)
def test_schema_and_decoder_agree(payload: Any) -> None:
    checker = FormatChecker(())
    checker.checkers = {"date-time": (lambda value: not isinstance(value, str) or "T" in value, ())}
    valid = Draft202012Validator(document("telemetry"), format_checker=checker).is_valid(payload)
    found = rows([payload])
    taken = all("refused" not in row and not row["paths"] for row in found)
    assert valid == taken == (payload in GOOD), json.dumps(payload)
