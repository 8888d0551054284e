"""Logins and logouts as rows: the slow path, one Python object per frame, for what comes once per drive."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from schemas.batch import Batch, Frames, Login
from schemas.gbt32960.reference import decode_frame

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


def moment(us: int) -> datetime:
    """Microseconds since 1970 as an aware time; exact, which ``fromtimestamp`` of a float is not."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).replace(microsecond=us % 1_000_000)
