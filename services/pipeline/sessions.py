"""Logins, logouts and events of connections: the slow path, a Python object each, for what comes once per drive."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from schemas.batch import U8, Batch, Codec, Frames, Login
from schemas.gbt32960.reference import decode_frame
from schemas.link_events import LinkEvent
from schemas.link_events import decode as decode_event
from schemas.reasons import CODE

VEHICLE_COMMANDS: Final = (0x01, 0x04)  # login, logout: the identification is a VIN
PLATFORM_COMMANDS: Final = (0x05, 0x06)  # the identification is the platform's own code


def session_of(frames: Frames, batch: Batch, line: int) -> Login | None:
    """The login or logout in ``line``, its ``vehicle_id`` not yet looked up; None when its data unit does not parse.

    A platform's password is left out here and never stored.
    """
    tree = decode_frame(frames.frame(line))
    body: dict[str, Any] | None = tree.get("body")
    if body is None:
        return None
    codes: list[str] = []
    for code in body.get("codes") or ():
        codes += code if isinstance(code, list) else [code]
    return Login(
        partition=int(frames.partition[line]),
        offset=int(frames.offset[line]),
        position=int(frames.position[line]),
        received=moment(int(frames.received_us[line])),
        time=datetime.fromtimestamp(int(batch.time_s[line]), UTC),
        command=int(batch.kind[line]),
        edition=int(batch.edition[line]),
        door=int(frames.door[line]),
        vin=tree["vin"],
        vehicle_id=None,
        serial=body.get("serial"),
        iccid=body.get("iccid"),
        pack_codes=codes,
        username=body.get("username"),
    )


def link_events(frames: Frames, why: U8) -> list[LinkEvent]:
    """The events among the frames; what is not one is refused (``why``)."""
    found: list[LinkEvent] = []
    for line in np.flatnonzero((frames.codec == Codec.EVENT) & (why == 0)).tolist():
        event = decode_event(frames.frame(line), int(frames.received_us[line]), int(frames.door[line]))
        if event is None:
            why[line] = CODE["structure"]
        else:
            found.append(event)
    return found


def moment(us: int) -> datetime:
    """Microseconds since 1970 as an aware time; exact, which ``fromtimestamp`` of a float is not."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).replace(microsecond=us % 1_000_000)
