"""What a load refuses, and how it says so."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from services.errors import UsageError
from services.load import settings as module
from services.load.settings import LoadSettings, parse_target, processes_for


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"vehicles": 0}, "--vehicles is 0"),
        ({"rate": 0.0}, "--rate"),
        ({"rate": float("nan")}, "--rate"),
        ({"duration_s": 0.1}, "--duration is 0.1"),
        ({"scenario": "quiet"}, "steady, commute, storm, night-charging, outage"),
        ({"protocol": "http"}, "mqtt, gbt32960, mixed"),
        ({"window": 40_000}, "30,000"),
        ({"processes": 3, "vehicles": 2}, "no more than there are vehicles"),
        ({"vehicles": 40_000, "processes": 2}, "--processes 3"),
        ({"vehicles": 1, "rate": 500.0, "duration_s": 6000.0}, "older than 29 days"),
        ({"scenario": "outage", "rate": 400_000.0, "duration_s": 600.0, "vehicles": 5000}, "would hold"),
        ({"ca": "ca.pem"}, "--tls"),
        ({"mqtt_port": 0}, "no port"),
        ({"host": "192.0.2.1"}, "--yes-this-is-my-system"),
        ({"host": "0.0.0.0"}, "--yes-this-is-my-system"),
        ({"host": "2001:db8::1"}, "--yes-this-is-my-system"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=r"^load: ") as refused:
        LoadSettings(**given)
    assert said in str(refused.value)


def test_another_machine_is_aimed_at_only_when_one_says_that_it_is_ones_own() -> None:
    assert LoadSettings(host="192.0.2.1", mine=True).sources == ()
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        LoadSettings(host=host)


def test_too_few_files_are_said_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    with pytest.raises(UsageError, match=r"ulimit -n 10064.*--processes .3."):
        LoadSettings(vehicles=10_000)
    LoadSettings(vehicles=10_000, processes=3)


def test_more_connections_than_ports_come_from_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ports_per_address", lambda: 28_232)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    assert LoadSettings(vehicles=20_000, processes=2).sources == ()
    assert LoadSettings(vehicles=50_000, processes=4).sources == ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    with pytest.raises(UsageError, match="ip_local_port_range"):
        LoadSettings(vehicles=50_000, processes=4, host="192.0.2.1", mine=True)


@pytest.mark.parametrize(
    ("target", "protocol", "host", "ports"),
    [
        ("127.0.0.1", "mqtt", "127.0.0.1", {}),
        ("gate.example:1884", "mqtt", "gate.example", {"mqtt_port": 1884}),
        ("gate.example:33000", "gbt32960", "gate.example", {"gbt_port": 33000}),
        ("h:1,2", "mixed", "h", {"mqtt_port": 1, "gbt_port": 2}),
        ("::1", "mqtt", "::1", {}),
        ("[::1]:1883", "mqtt", "::1", {"mqtt_port": 1883}),
        ("[::1]", "mqtt", "::1", {}),
    ],
)
def test_targets(target: str, protocol: str, host: str, ports: dict[str, int]) -> None:
    assert parse_target(target, protocol) == (host, ports)


@pytest.mark.parametrize(
    ("target", "protocol"), [("", "mqtt"), (":1883", "mqtt"), ("h:x", "mqtt"), ("h:1", "mixed"), ("h:1,2", "mqtt")]
)
def test_targets_that_are_none(target: str, protocol: str) -> None:
    with pytest.raises(UsageError, match="write HOST"):
        parse_target(target, protocol)


def test_processes_suit_vehicles_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    assert processes_for(100, 100.0) == 1
    assert processes_for(500, 100_000.0) == 2
    assert processes_for(500, 1e6) == 2  # no more than there are cores
    assert processes_for(100_000, 100.0) == 7  # but for sockets
