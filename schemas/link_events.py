"""What happens to connections, as it travels in the journal: one JSON object per event, ``Codec.EVENT``.

An event is told by the gateway, stored by the pipeline, read by the doctor.  (origin, number) is unique, so
that an event which lies in the journal twice is stored once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import orjson

TEXT_MAX: Final = 256  # characters of any text in an event; what a peer claims can be long
_BIGINT_MAX: Final = 2**63 - 1
_INT_MAX: Final = 2**31 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Event(StrEnum):
    """What happened.  ``CAUSES`` says why."""

    CONNECTED = "connected"  # MQTT accepted, or GB/T logged in
    REFUSED = "refused"  # not let in
    REPLACED = "replaced"  # the same VIN connected anew (by_peer), this older connection was closed
    CLOSED = "closed"  # ended, by either side
    WILL = "will"  # an MQTT client vanished and had left a will: it is offline
    ERROR = "error"  # frames were answered with an error, or kept as dead letters where there is no such answer
    LIMITED = "limited"  # sends faster than a vehicle may: its socket is not read for a while, nothing is lost
    ACTIVATION = "activation"  # a terminal asked to be activated (0x09), cause = how it was answered


# Causes as people meet them, each with its meaning.  Refusals of frames bear names of ``schemas.reasons`` instead.
CAUSES: Final[dict[str, str]] = {
    "limit": "all connections of the gateway were taken (gateway.limits.connections_max)",
    "bad_password": "wrong user name or password",
    "bad_token": "its token is wrong, for another VIN, or has expired",
    "certificate": "its certificate is for somebody else, or it has none and one is required",
    "bad_login": "wrong user name or password of a platform",
    "unknown_vin": "the VIN is not in the registry, and the registry is an allowlist",
    "store_away": "the registry or the password could not be read",
    "not_a_vehicle": "neither user name nor client identifier is a VIN",
    "auth_method": "an authentication method that is not supported",
    "will_retain": "a will with the retain flag, and nothing is retained here",
    "packet_size": "its maximum packet size is too small for a CONNACK",
    "client_id": "an empty client identifier without clean session",
    "violation": "bytes or packets that the protocol does not allow",
    "foreign_topic": "published under the VIN of another vehicle",
    "vin_in_use": "the VIN is logged in on another connection",
    "timeout": "silent for too long",
    "no_login": "no CONNECT or login in time",
    "memory": "too many incomplete packets were held",
    "address_limit": "its address has all the connections that it may (gateway.limits.connections_per_address_max)",
    "connect_rate": "its address connects too often (gateway.limits.connects_per_address_per_s_max)",
    "handshake": "the TLS handshake failed or was not complete in time (gateway.limits.handshake_timeout_s)",
    "slow_sender": "a packet or frame was not whole in time (gateway.limits.packet_timeout_s)",
    "answers_unread": "the peer did not take its answers (gateway.limits.answer_timeout_s)",
    "bytes_per_s": "more bytes per second than a vehicle may send (gateway.limits.bytes_per_s_max)",
    "frames_per_s": "more frames per second than a vehicle may send (gateway.limits.frames_per_s_max)",
    "refused_in_a_row": "nothing but refused frames for too long (gateway.limits.refused_bytes_max)",
    "not_kept": "more refused frames of strangers came from its address than are kept (strangers_kept_per_s_max)",
    "taken_over": "the same VIN connected anew",
    "logout": "logged out before",
    "peer": "the vehicle or the network ended the connection",
    "goodbye": "the client said DISCONNECT",
    "shutdown": "the gateway was stopped",
    "activated": "the VIN may log in",
    "refused": "activation is refused here, or its certificate is for somebody else",
    "broker_unreachable": "the bridge could not connect to the broker",
    "broker_refused": "the broker did not let the bridge in, or refused its subscription",
    "broker_doubted": "the broker answered as MQTT 3.1.1 has it; whether it speaks 5 is asked once more",
    "broker_version": "the broker does not speak this version of MQTT",
    "broker_no_sharing": "the broker has no shared subscriptions, so only one connection of the bridge takes messages",
    "broker_closed": "the broker or the network ended the bridge's connection",
}


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """One event.  ``vin`` is proven, or what was claimed when it was refused; "" is not known."""

    origin: int
    number: int
    occurred: datetime
    event: str
    door: int
    cause: str = ""
    vin: str = ""
    peer: str = ""
    client: str = ""
    by_peer: str = ""
    detail: str = ""
    times: int = 1


_TEXTS: Final = ("cause", "vin", "peer", "client", "by_peer", "detail")


def encode(event: LinkEvent) -> bytes:
    """The event as JSON, without what it does not have."""
    body: dict[str, Any] = {"origin": event.origin, "number": event.number, "event": event.event}
    body |= {name: text[:TEXT_MAX] for name in _TEXTS if (text := getattr(event, name))}
    if event.times != 1:
        body["times"] = event.times
    return orjson.dumps(body)


def decode(data: bytes, received_us: int, door: int) -> LinkEvent | None:
    """The event in ``data``; None when it is not one."""
    try:
        body = orjson.loads(data)
        texts = {name: str(body.get(name, ""))[:TEXT_MAX] for name in _TEXTS}
        found = LinkEvent(
            int(body["origin"]),
            int(body["number"]),
            _EPOCH + timedelta(microseconds=received_us),
            str(body["event"])[:TEXT_MAX],
            door,
            **texts,
            times=int(body.get("times", 1)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    # numbers that the store has no room for would end the transaction, and every attempt after it
    in_bounds = abs(found.origin) <= _BIGINT_MAX and abs(found.number) <= _BIGINT_MAX and 0 < found.times <= _INT_MAX
    return found if in_bounds else None
