"""What a load is asked to do, checked before anything is started.  Every refusal says what to change."""

from __future__ import annotations

import ipaddress
import math
import os
import resource
import socket
from dataclasses import asdict, dataclass
from typing import Any, Final

from services.errors import UsageError
from services.fleetsim.sockets import OTHER_FILES, ports_per_address
from services.load.plans import CATCH_UP, SCENARIOS

PROTOCOLS: Final = ("mqtt", "gbt32960", "mixed")
SOCKETS_MAX: Final = 15_000  # of one process: more, and its loop is late for all of them
VEHICLES_MAX: Final = 1_000_000
PROCESSES_MAX: Final = 64
WINDOW_MAX: Final = 30_000  # or MQTT packet ids would meet themselves
PAST_DAYS_MAX: Final = 29  # a platform refuses older reports (pipeline.clock_past_max_days is 30)
HELD_MAX: Final = 4_000_000  # reports that vehicles without a link keep: about 1.6 GB
_PORTS_USED: Final = 0.8  # of an address: others use some, and closed ones rest for a while
OWN_SYSTEM: Final = "--yes-this-is-my-system"


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """One load.  Raises ``UsageError`` naming the wrong option.

    rate: frames per second of all vehicles, on average · window: un-answered frames a vehicle may have ·
    processes: None: as many as the vehicles need · mqtt_port and gbt_port: those that the protocol needs.
    """

    vehicles: int = 1000
    rate: float = 1000.0
    duration_s: float = 60.0
    scenario: str = "steady"
    protocol: str = "mqtt"
    mqtt_version: str = "3.1.1"
    host: str = "127.0.0.1"
    mqtt_port: int = 1883
    gbt_port: int = 32960
    processes: int = 1
    window: int = 10
    seed: int = 1
    model: str = "sedan-ncm-96"
    tls: bool = False
    ca: str | None = None
    mine: bool = False  # the target may be another machine
    connect_s: float = 120.0  # until all have connected
    drain_s: float = 60.0
    ack_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        checks = (
            (1 <= self.vehicles <= VEHICLES_MAX, "vehicles", f"1 to {VEHICLES_MAX:,}"),
            (math.isfinite(self.rate) and self.rate > 0, "rate", "frames per second, above 0"),
            (1.0 <= self.duration_s <= 7 * 86400, "duration", "1 second to 7 days"),
            (self.scenario in SCENARIOS, "scenario", ", ".join(SCENARIOS)),
            (self.protocol in PROTOCOLS, "protocol", ", ".join(PROTOCOLS)),
            (1 <= self.processes <= PROCESSES_MAX, "processes", f"1 to {PROCESSES_MAX}"),
            (self.processes <= self.vehicles, "processes", "no more than there are vehicles"),
            (1 <= self.window <= WINDOW_MAX, "window", f"1 to {WINDOW_MAX:,}"),
        )
        for good, name, allowed in checks:
            if not good:
                raise UsageError(f"load: --{name} is {getattr(self, name, self.duration_s)}: use {allowed}")
        if not self.tls and self.ca is not None:
            raise UsageError("load: --ca is for --tls")
        self._check_plan()
        self._check_sockets()
        self._check_target()

    @property
    def mqtt_share(self) -> float:
        return {"mqtt": 1.0, "gbt32960": 0.0, "mixed": 0.5}[self.protocol]

    @property
    def per_process(self) -> int:
        """Vehicles of the largest process."""
        return math.ceil(self.vehicles / self.processes)

    @property
    def sources(self) -> tuple[str, ...]:
        """Addresses to connect from: loopback has many; one is enough for as many connections as it has ports."""
        needed = math.ceil(self.vehicles / (ports_per_address() * _PORTS_USED))
        if needed <= 1 or not self._loopback_v4:
            return ()
        return tuple(f"127.0.0.{number + 1}" for number in range(min(needed, 250)))

    @property
    def _loopback_v4(self) -> bool:
        return self.host == "localhost" or self.host.startswith("127.")

    def _check_plan(self) -> None:
        fastest = self.rate / self.vehicles
        if fastest > 1.0 and fastest * self.duration_s > PAST_DAYS_MAX * 86400:
            raise UsageError(
                f"load: {self.rate:g} frames/s over {self.duration_s:g} s are {fastest * self.duration_s:,.0f} reports "
                f"of each of {self.vehicles:,} vehicles. Reports of a vehicle are a second apart and none is of the "
                f"future, so the first would be older than {PAST_DAYS_MAX} days: use more vehicles, or a shorter run"
            )
        held = 0.3 * self.rate * self.duration_s * 0.25 * CATCH_UP / (CATCH_UP - 1)
        if self.scenario == "outage" and held > HELD_MAX:
            raise UsageError(
                f"load: vehicles without a link would hold {held:,.0f} reports, more than {HELD_MAX:,}: use a lower "
                "--rate or a shorter --duration"
            )

    def _check_sockets(self) -> None:
        if self.per_process > SOCKETS_MAX:
            raise UsageError(
                f"load: {self.per_process:,} connections in a process are more than {SOCKETS_MAX:,}, which one loop "
                f"serves in time: use --processes {math.ceil(self.vehicles / SOCKETS_MAX)}"
            )
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = self.per_process + OTHER_FILES
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise UsageError(
                f"load: {self.per_process:,} vehicles in a process need {wanted:,} open files, this system allows "
                f"{hard:,}: raise the limit (ulimit -Hn, then ulimit -n {wanted}), or use more --processes "
                f"({math.ceil(self.vehicles / max(hard - OTHER_FILES, 1))})"
            )
        ports = int(ports_per_address() * _PORTS_USED)
        if self.vehicles > ports and not self._loopback_v4:
            raise UsageError(
                f"load: one address of this machine has ports for about {ports:,} connections to a target "
                f"(net.ipv4.ip_local_port_range), {self.vehicles:,} are wanted: run the rest from other machines, each "
                "with a --seed of its own"
            )

    def _check_target(self) -> None:
        for port in (self.mqtt_port, self.gbt_port):
            if not 1 <= port <= 65_535:
                raise UsageError(f"load: {port} is no port: use 1 to 65535")
        if self.mine:
            return
        for address in addresses_of(self.host):
            if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
                raise UsageError(
                    f"load: {self.host} ({address}) is not this machine. A load is as much as a system can bear, or "
                    f"more: aim it at your own only, and say so with {OWN_SYSTEM}"
                )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def addresses_of(host: str) -> list[str]:
    """Addresses of a name.  Raises ``UsageError`` for one that has none."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except OSError as error:
        raise UsageError(f"load: --target {host!r} has no address: {error}") from error


def processes_for(vehicles: int, rate: float) -> int:
    """How many processes suit: one loop serves 15,000 sockets or some 60,000 frames a second of few vehicles."""
    cores = os.cpu_count() or 1
    wanted = max(math.ceil(rate / 60_000), math.ceil(vehicles / (SOCKETS_MAX // 3)))
    return max(min(wanted, cores, vehicles), math.ceil(vehicles / SOCKETS_MAX), 1)


def parse_target(target: str, protocol: str) -> tuple[str, dict[str, int]]:
    """``HOST``, ``HOST:PORT`` or ``HOST:MQTT,GBT`` as host and ports.  Raises ``UsageError``."""
    host, _, ports = target.rpartition(":") if _has_ports(target) else (target, "", "")
    host = host.removeprefix("[").removesuffix("]")
    names = {"mqtt": ["mqtt_port"], "gbt32960": ["gbt_port"], "mixed": ["mqtt_port", "gbt_port"]}.get(protocol, [])
    given = ports.split(",") if ports else []
    if not host or (given and len(given) != len(names)) or not all(one.isascii() and one.isdigit() for one in given):
        raise UsageError(
            f"load: --target {target!r}: write HOST, HOST:PORT, or for --protocol mixed HOST:MQTTPORT,GBTPORT "
            "([HOST] around an IPv6 address)"
        )
    return host, dict(zip(names, map(int, given), strict=True)) if given else {}


def _has_ports(target: str) -> bool:
    """Is there something after the host: a colon that is not part of an IPv6 address?"""
    return ":" in target.rpartition("]")[2] and (target.startswith("[") or target.count(":") == 1)
