"""Readiness that means it: what the processes tell of themselves, and what follows from it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from services import metrics
from services.metrics import LAG_CAUSES
from services.settings import Settings
from services.web import models
from services.web.state import lag_of, listeners_of, not_ready, spread_of, state_of


def told(mqtt: float = 1, gbt: float = 1, paused: float = 0, **lags: tuple[float, str]) -> dict[str, Any]:
    """Samples of one gateway and one pipeline."""
    lag = [
        (
            {"stage": stage, "cause": cause},
            lags.get(stage, (0.0, ""))[0] if lags.get(stage, (0, ""))[1] == cause else 0.0,
        )
        for stage, causes in LAG_CAUSES.items()
        for cause in causes
    ]
    return {
        "nevstream_gateway_accepting": [({"listener": "mqtt"}, mqtt), ({"listener": "gbt32960"}, gbt)],
        "nevstream_gateway_reading_paused": [({}, paused)],
        "nevstream_gateway_limits_reached_total": [
            ({"door": "mqtt", "limit": "frames_per_s_max"}, 3.0),
            ({"door": "gbt32960", "limit": "frames_per_s_max"}, 4.0),
        ],
        "nevstream_lag_seconds": lag,
    }


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (told(), None),
        (told(gateway=(2.0, "journal_slow")), None),
        (told(mqtt=0), "no gateway process takes new connections for mqtt"),
        ({}, "mqtt, gbt32960"),
        (told(gateway=(400.0, "journal_away")), "400 s in the gateway"),
        (told(pipeline=(301.0, "store_away")), "because: store_away"),
    ],
)
def test_when_it_is_not_ready(samples: dict[str, Any], words: str | None) -> None:
    found = not_ready(samples, Settings.read())
    assert (words in found) if words else not found


def test_listeners_are_those_of_the_settings() -> None:
    given = {"mqtt": {"plain": False, "tls": {"cert_file": "x"}}, "gbt32960": {"enabled": False}}
    assert listeners_of(Settings.model_validate({"gateway": given})) == ["mqtt_tls"]


def test_the_cause_comes_with_the_lag() -> None:
    assert lag_of(told(), "gateway") == (0.0, "working")
    assert lag_of(told(pipeline=(7.5, "store_slow")), "pipeline") == (7.5, "store_slow")
    assert lag_of({}, "gateway") is None
    state = state_of(told(paused=1, gateway=(3.0, "journal_away")))
    assert state["gateway"]["paused_because"] == "journal_away"
    assert state["gateway"]["limits_reached"] == {"frames_per_s_max": 7}
    assert state["lag"]["gateway"] == {"seconds": 3.0, "cause": "journal_away"}


ROW, ACK = "nevstream_pipeline_socket_to_row_seconds", "nevstream_gateway_ack_seconds"


def buckets(name: str, counts: dict[str, int], **labels: str) -> dict[str, Any]:
    return {f"{name}_bucket": [({**labels, "le": bound}, float(count)) for bound, count in counts.items()]}


@pytest.mark.parametrize(
    ("counts", "p50_ms", "p99_ms"),
    [
        ({"0.01": 0, "0.02": 100, "+Inf": 100}, 15.0, 19.9),
        ({"0.01": 98, "0.02": 98, "0.05": 100, "+Inf": 100}, 5.1, 35.0),
        ({"0.01": 0, "0.02": 0, "+Inf": 100}, 20.0, 20.0),  # above the last bound: no more is known
    ],
)
def test_percentiles_are_interpolated(counts: dict[str, int], p50_ms: float, p99_ms: float) -> None:
    assert spread_of(buckets(ROW, counts), ROW) == {"count": 100, "p50_ms": p50_ms, "p99_ms": p99_ms}


def test_latencies_are_told_by_door() -> None:
    samples = buckets(ACK, {"0.01": 4, "+Inf": 4}, door="mqtt")
    samples[f"{ACK}_bucket"] += buckets(ACK, {"0.01": 0, "+Inf": 0}, door="gbt32960")[f"{ACK}_bucket"]
    assert state_of(samples)["latency"] == {
        "ack": {"mqtt": {"count": 4, "p50_ms": 5.0, "p99_ms": 9.9}},
        "socket_to_row": None,
    }


async def test_system_tells(client: httpx.AsyncClient) -> None:
    metrics.show_lag("pipeline", 1.5, "store_away")
    found = models.SystemState.model_validate((await client.get("/v1/system")).json())
    assert found.lag["pipeline"] == models.StageLag(seconds=1.5, cause="store_away")
    metrics.show_lag("pipeline", 0.0, "working")


async def test_ready_asks_the_processes(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "shared", lambda: True)
    monkeypatch.setattr(metrics, "samples", lambda: told(gateway=(400.0, "journal_away")))
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert "journal_away" in answer.json()["detail"]
    monkeypatch.setattr(metrics, "samples", told)
    assert (await client.get("/readyz")).status_code == 200
