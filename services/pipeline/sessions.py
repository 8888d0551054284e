"""Logins and logouts as rows: the slow path, one Python object per frame, for what comes once per drive."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from schemas.gbt32960.reference import decode_frame

from schemas.batch import Batch, Frames, Login

VEHICLE_COMMANDS: Final = (0x01, 0x04)  # login, logout: the identification is a VIN
PLATFORM_COMMANDS: Final = (0x05, 0x06)  # the identification is the platform's own code


def session_of(frames: Frames, batch: Batch, line: int, vehicle_id: int | None) -> Login | None:
    """The login or logout in ``line``; None when its data unit does not parse.

    A platform's password is left out here and never stored.
    """
    tree = decode_frame(frames.frame(line))
    body: dict[str, Any] | None = tree.get("body")
    if body is None:
        return None
    codes: list[str] = []
    for code in body.get("codes") or ():
        codes += [clean(part) for part in code] if isinstance(code, list) else [clean(code)]
    serial = body.get("serial")
    iccid, username = body.get("iccid"), body.get("username")
    return Login(
        partition=int(frames.partition[line]),
        offset=int(frames.offset[line]),
        position=int(frames.position[line]),
        received=moment(int(frames.received_us[line])),
        time=datetime.fromtimestamp(int(batch.time_s[line]), UTC),
        command=int(batch.kind[line]),
        edition=int(batch.edition[line]),
        door=int(frames.door[line]),
        vin=clean(tree["vin"]),
        vehicle_id=vehicle_id,
        serial=serial if isinstance(serial, int) else None,
        iccid=clean(iccid) if iccid is not None else None,
        pack_codes=codes,
        username=clean(username) if username is not None else None,
    )


def moment(us: int) -> datetime:
    """Microseconds since 1970 as an aware time; exact, which ``fromtimestamp`` of a float is not."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).replace(microsecond=us % 1_000_000)


def clean(text: str) -> str:
    """``text`` as PostgreSQL can keep it: no NUL, and nothing that UTF-8 cannot hold."""
    return text.rstrip("\0").replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
