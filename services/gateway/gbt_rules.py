"""What the GB/T 32960 door does with each command in each state of a connection, as a table.

The scan kernel walks the table in its array form; the README's table is this one.  Which bytes are
answered, with which flag, is here too.  Nothing here acts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from schemas.batch import U8
from schemas.gbt32960.commands import Ack, Command
from schemas.reasons import CODE as REASON
from services.gateway.connections import STATES, State

TAKE: Final = 1  # journal it, answer once it is durable; never leaves the kernel
ASK: Final = 2  # Python answers it at once; it changes nothing and is not journaled
ASK_STOP: Final = 3  # Python handles it before another byte is read: it changes the connection's state
BIND: Final = 4  # a report without a login, where that is allowed: Python binds the VIN, then it is read again
REFUSE: Final = 32  # plus a reason code: a dead letter, answered with an error flag

_NOT_LOGGED_IN: Final = REFUSE + REASON["not_logged_in"]
_UNKNOWN_COMMAND: Final = REFUSE + REASON["unknown_command"]

# Commands, then the action in state NEW, VEHICLE and PLATFORM.
# Annex B.2 (vehicles), clause 5 (platforms); 0x09 and 0x0B come before a terminal's first login (2025).
RULES: Final[tuple[tuple[str, Iterable[int], int, int, int], ...]] = (
    ("vehicle login", (Command.LOGIN,), ASK_STOP, ASK_STOP, TAKE),
    ("report, reissue", (Command.REALTIME, Command.REISSUE), _NOT_LOGGED_IN, TAKE, TAKE),
    ("vehicle logout", (Command.LOGOUT,), _NOT_LOGGED_IN, ASK_STOP, TAKE),
    ("platform login", (Command.PLATFORM_LOGIN,), ASK_STOP, ASK_STOP, ASK_STOP),
    ("platform logout", (Command.PLATFORM_LOGOUT,), _NOT_LOGGED_IN, _NOT_LOGGED_IN, ASK_STOP),
    ("heartbeat, time sync", (Command.HEARTBEAT, Command.TIME_SYNC), ASK, ASK, ASK),
    ("activation, key exchange", (Command.ACTIVATION, Command.KEY_EXCHANGE), TAKE, TAKE, TAKE),
    ("platform exchange", range(0xC0, 0xFF), _NOT_LOGGED_IN, TAKE, TAKE),
)


def actions(login_required: bool) -> U8:
    """The table as (STATES, 256) u8.  With the login optional, a report in state NEW binds its VIN instead."""
    table = np.full((STATES, 256), _UNKNOWN_COMMAND, np.uint8)
    for name, commands, new, vehicle, platform in RULES:
        for command in commands:
            binds = not login_required and name in ("report, reissue", "platform exchange")
            table[State.NEW, command] = BIND if binds else new
            table[State.VEHICLE, command] = vehicle
            table[State.PLATFORM, command] = platform
    return table


def success_flags(answer_reports: bool) -> U8:
    """Response flag per command of an accepted frame, 0 for none (annex B.2.1: good reports are not answered)."""
    flags = np.full(256, Ack.SUCCESS, np.uint8)
    if not answer_reports:
        flags[Command.REALTIME] = flags[Command.REISSUE] = 0
    return flags


def error_flags() -> U8:
    """Response flag per reason and edition, (256, 2) u8: 2016 knows only "error", 2025 says more where it is clear."""
    flags = np.full((256, 2), Ack.ERROR, np.uint8)
    flags[REASON["garbage"]] = 0  # there is no frame to answer
    flags[REASON["unknown_vin"], 1] = Ack.VIN_UNKNOWN
    for name in ("bad_length", "oversize", "structure"):
        flags[REASON[name], 1] = Ack.STRUCTURE_ERROR
    return flags
