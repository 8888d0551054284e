"""How the processes of this machine stand: doors, lag and its cause, from the metrics they share.

Asks nothing of the database.  A machine that runs the API alone knows nothing of gateways and pipelines, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Final

from services.metrics import LAG_CAUSES
from services.settings import Settings

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]

_LAG: Final = "nevstream_lag_seconds"
_ACK: Final = "nevstream_gateway_ack_seconds"
_ROW: Final = "nevstream_pipeline_socket_to_row_seconds"


def total(samples: Samples, name: str) -> float:
    return sum(value for _, value in samples.get(name, ()))


def by(samples: Samples, name: str, label: str) -> dict[str, float]:
    """A sample summed over all labels but one."""
    sums: dict[str, float] = {}
    for labels, value in samples.get(name, ()):
        sums[labels[label]] = sums.get(labels[label], 0.0) + value
    return sums


def lag_of(samples: Samples, stage: str) -> tuple[float, str] | None:
    """(seconds, cause) of a stage; None when no process of this machine tells.

    Several processes: the one that lags most.
    """
    told = {labels["cause"]: value for labels, value in samples.get(_LAG, ()) if labels["stage"] == stage}
    if not told:
        return None
    cause = max(told, key=lambda name: (told[name], -LAG_CAUSES[stage].index(name)))
    return told[cause], cause


def spread_of(samples: Samples, name: str, label: str = "", value: str = "") -> dict[str, Any] | None:
    """Of the histogram ``name`` (seconds): how many, and the 50th and 99th percentile; None when there is nothing.

    Counted are the series with ``label`` = ``value``.  A percentile is interpolated within its bucket; one above the
    last bound is told as that bound.
    """
    counts: dict[float, float] = {}
    for labels, count in samples.get(f"{name}_bucket", ()):
        if not label or labels.get(label) == value:
            bound = float(labels["le"])
            counts[bound] = counts.get(bound, 0.0) + count
    bounds = sorted(counts)
    if not bounds or counts[bounds[-1]] <= 0:
        return None
    total = counts[bounds[-1]]

    def percentile(share: float) -> float:
        below, low = 0.0, 0.0
        for bound in bounds:
            if counts[bound] >= share * total:
                if bound == inf:
                    return low
                return low + (bound - low) * (share * total - below) / (counts[bound] - below)
            below, low = counts[bound], bound
        return low

    return {"count": int(total), "p50_ms": round(percentile(0.5) * 1e3, 1), "p99_ms": round(percentile(0.99) * 1e3, 1)}


def latency_of(samples: Samples) -> dict[str, Any]:
    """Socket to acknowledgement by door, and socket to committed row: since the processes started."""
    doors = sorted({labels["door"] for labels, _ in samples.get(f"{_ACK}_bucket", ())})
    acks = {door: spread_of(samples, _ACK, "door", door) for door in doors}
    return {
        "ack": {door: found for door, found in acks.items() if found is not None},
        "socket_to_row": spread_of(samples, _ROW),
    }


def state_of(samples: Samples) -> dict[str, Any]:
    """What ``/v1/system`` tells."""
    accepting = by(samples, "nevstream_gateway_accepting", "listener")
    limits = by(samples, "nevstream_gateway_limits_reached_total", "limit")
    lags = {}
    for stage in LAG_CAUSES:
        found = lag_of(samples, stage)
        lags[stage] = None if found is None else {"seconds": round(found[0], 3), "cause": found[1]}
    gateway_lag = lags["gateway"]
    paused = int(total(samples, "nevstream_gateway_reading_paused"))
    cause = gateway_lag["cause"] if paused and gateway_lag is not None else None
    return {
        "gateway": {
            "listeners": {name: int(value) for name, value in accepting.items()},
            "connections": {k: int(v) for k, v in by(samples, "nevstream_gateway_connections", "door").items()},
            "in_flight_bytes": int(total(samples, "nevstream_gateway_in_flight_bytes")),
            "reading_paused": paused,
            "paused_because": cause,
            "limits_reached": {name: int(value) for name, value in sorted(limits.items()) if value},
        },
        "lag": lags,
        "latency": latency_of(samples),
    }


def listeners_of(settings: Settings) -> list[str]:
    """Names of the listeners that gateways with these settings open."""
    doors = (("mqtt", settings.gateway.mqtt), ("gbt32960", settings.gateway.gbt32960))
    plain = [name for name, door in doors if door.enabled and door.plain]
    return plain + [f"{name}_tls" for name, door in doors if door.enabled and door.tls.enabled]


def not_ready(samples: Samples, settings: Settings) -> str:
    """Why vehicles or readers are not served as they should be; "" when they are."""
    accepting = by(samples, "nevstream_gateway_accepting", "listener")
    closed = [name for name in listeners_of(settings) if accepting.get(name, 0.0) < 1]
    if closed:
        return f"no gateway process takes new connections for {', '.join(closed)}"
    most_s = settings.web.ready_lag_max_s
    for stage in LAG_CAUSES:
        found = lag_of(samples, stage)
        if found is not None and found[0] > most_s:
            return (
                f"the oldest frame has waited {found[0]:.0f} s in the {stage} (web.ready_lag_max_s is {most_s:.0f} s), "
                f"because: {found[1]}"
            )
    return ""
