"""The sign of the current: told by parked charging, per model, and what it does to what was computed before (3.2)."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.statistics.following import follow, send, settings_of
from tests.statistics.lives import life

pytestmark = pytest.mark.database

SETTINGS = settings_of()


def _charges(db: psycopg.Connection[Any]) -> dict[str, float]:
    rows = db.execute(
        "SELECT v.vin, sum(c.energy_kwh) FROM charges c JOIN vehicles v USING (vehicle_id) GROUP BY 1"
    ).fetchall()
    return dict(rows)


async def test_a_model_is_turned_as_a_whole_and_back(dsn: str, db: psycopg.Connection[Any]) -> None:
    lives = [life(0, 1, inverted=True), life(1, 1, inverted=True), life(2, 1)]
    # the first two are of one model; the second has too few records of charging to tell by itself
    db.execute("INSERT INTO models (model) VALUES ('X1')")
    for number, one in enumerate(lives):
        db.execute("INSERT INTO vehicles (vin, model) VALUES (%s, %s)", [one.vin, "X1" if number < 2 else None])
    few = lives[1].sent[: len(lives[1].sent) // 3]
    await send(dsn, [*lives[0].sent, *few, *lives[2].sent], SETTINGS)
    follow(dsn, SETTINGS)

    assert db.execute("SELECT current_inverted FROM models WHERE model = 'X1'").fetchone() == (True,)
    assert db.execute("SELECT count(*) FROM vehicles WHERE current_inverted").fetchone() == (0,)
    assert db.execute("SELECT array_agg(inverted ORDER BY vehicle_id) FROM statistics_checkpoints").fetchone() == (
        [True, True, False],
    )
    energy = _charges(db)
    assert energy[lives[0].vin] > 10
    assert energy[lives[0].vin] == pytest.approx(energy[lives[2].vin], rel=0.1)

    # without a model it has to tell by itself, and can
    db.execute("UPDATE vehicles SET model = NULL WHERE vin = %s", [lives[0].vin])
    await send(dsn, life(0, 2, inverted=True).sent[-40:], SETTINGS)
    follow(dsn, SETTINGS)
    assert db.execute("SELECT current_inverted FROM vehicles WHERE vin = %s", [lives[0].vin]).fetchone() == (True,)
    assert _charges(db)[lives[0].vin] > 10
