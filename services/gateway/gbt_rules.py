"""What the GB/T 32960 door does with a command in each state of a connection, and where that leads, as tables.

The scan kernel walks the table in its array form; ``SESSION.md`` beside this file is made from it
(``python -m services.gateway.gbt_rules > services/gateway/SESSION.md``).  Which bytes are answered, with
which flag, is here too.  Nothing here acts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from schemas.batch import U8
from schemas.gbt32960.commands import Ack, Command, Edition
from schemas.reasons import CODE as REASON
from schemas.reasons import reason_name
from services.gateway.connections import STATES, State

TAKE: Final = 1  # journal it, answer once it is durable; never leaves the kernel
ASK: Final = 2  # Python answers it at once; it changes nothing and is not journaled
ASK_STOP: Final = 3  # Python handles it before another byte is read: it changes the connection's state
BIND: Final = 4  # a report without a login, where that is allowed: Python binds the VIN, then it is read again
LOOK: Final = 5  # Python takes it and gives the answer before another byte is read, so that frames keep their order
ANSWER: Final = 6  # a terminal's answer to a command that was sent down: Python matches the two, in order as well
REFUSE: Final = 32  # plus a reason code: a dead letter, answered with an error flag

_NOT_LOGGED_IN: Final = REFUSE + REASON["not_logged_in"]
_UNKNOWN_COMMAND: Final = REFUSE + REASON["unknown_command"]

# The table in its array form has 2016's commands in columns 0 to 255 and 2025's in the 256 behind them.
EDITIONS: Final = (Edition.E2016, Edition.E2025)
COLUMNS: Final = 256 * len(EDITIONS)


@dataclass(frozen=True, slots=True)
class Rule:
    """Some commands, and the action in each state in which bytes are read."""

    name: str
    commands: Iterable[int]
    new: int
    vehicle: int
    platform: int
    editions: tuple[Edition, ...] = EDITIONS
    binds: bool = False  # with the login optional, a frame in state NEW binds its VIN

    def action(self, state: State) -> int:
        return {State.NEW: self.new, State.VEHICLE: self.vehicle, State.PLATFORM: self.platform}[state]


# Annex B.2 (vehicles), clause 5 (platforms); 0x09 and 0x0B come before a terminal's first login (2025).
# Some terminals answer a query with flag 0xFE instead of 0x01, hence 0x80 to 0x82 going up.
RULES: Final[tuple[Rule, ...]] = (
    Rule("vehicle login", (Command.LOGIN,), ASK_STOP, ASK_STOP, TAKE),
    Rule("report, reissue", (Command.REALTIME, Command.REISSUE), _NOT_LOGGED_IN, TAKE, TAKE, binds=True),
    Rule("vehicle logout", (Command.LOGOUT,), _NOT_LOGGED_IN, ASK_STOP, TAKE),
    Rule("platform login", (Command.PLATFORM_LOGIN,), ASK_STOP, ASK_STOP, ASK_STOP),
    Rule("platform logout", (Command.PLATFORM_LOGOUT,), _NOT_LOGGED_IN, _NOT_LOGGED_IN, ASK_STOP),
    Rule("heartbeat, time sync", (Command.HEARTBEAT, Command.TIME_SYNC), ASK, ASK, ASK),
    Rule("activation (2025)", (Command.ACTIVATION,), LOOK, LOOK, LOOK, (Edition.E2025,)),
    Rule("key exchange (2025)", (Command.KEY_EXCHANGE,), TAKE, TAKE, TAKE, (Edition.E2025,)),
    Rule(
        "parameter query, set, control",
        (Command.PARAM_QUERY, Command.PARAM_SET, Command.CONTROL),
        _UNKNOWN_COMMAND,
        ANSWER,
        _UNKNOWN_COMMAND,
    ),
    Rule("custom 0xC0-0xFE", range(0xC0, 0xFF), _NOT_LOGGED_IN, TAKE, TAKE, binds=True),
)


# Commands handled under ASK_STOP, and the state of the connection once that has gone well.  All else leaves it.
@dataclass(frozen=True, slots=True)
class Transition:
    command: Command
    to: State
    when: str  # what "well" means


TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition(Command.LOGIN, State.VEHICLE, "VIN admitted, unit whole"),
    Transition(Command.LOGOUT, State.NEW, "own VIN"),
    Transition(Command.PLATFORM_LOGIN, State.PLATFORM, "user and password right"),
    Transition(Command.PLATFORM_LOGOUT, State.NEW, ""),
)
NEXT: Final = {transition.command: transition.to for transition in TRANSITIONS}


def actions(login_required: bool) -> U8:
    """The table as (STATES, COLUMNS) u8.  With the login optional, a report in state NEW binds its VIN instead."""
    table = np.full((STATES, COLUMNS), _UNKNOWN_COMMAND, np.uint8)
    for rule in RULES:
        for half, edition in enumerate(EDITIONS):
            if edition not in rule.editions:
                continue
            columns = [256 * half + command for command in rule.commands]
            for state in (State.NEW, State.VEHICLE, State.PLATFORM):
                table[state, columns] = rule.action(state)
            if rule.binds and not login_required:
                table[State.NEW, columns] = BIND
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
    flags[REASON["vin_in_use"]] = Ack.VIN_DUPLICATE
    for name, flag in (
        ("unknown_vin", Ack.VIN_UNKNOWN),
        ("bad_bcc", Ack.STRUCTURE_ERROR),
        ("bad_length", Ack.STRUCTURE_ERROR),
        ("oversize", Ack.STRUCTURE_ERROR),
        ("structure", Ack.STRUCTURE_ERROR),
        ("encrypted", Ack.DECRYPTION_ERROR),
        ("decryption", Ack.DECRYPTION_ERROR),
        ("signature", Ack.SIGNATURE_ERROR),
    ):
        flags[REASON[name], 1] = flag
    return flags


# -- the document -----------------------------------------------------------------------------------

_STATE_TEXT: Final = {
    State.NEW: "before login",
    State.VEHICLE: "vehicle logged in",
    State.PLATFORM: "platform logged in",
}
_ACTION_TEXT: Final = {
    TAKE: "take",
    ASK: "answer at once",
    ASK_STOP: "handle",
    LOOK: "take, answer with 0x0A",
    ANSWER: "match",
}


def _text(action: int) -> str:
    return reason_name(action - REFUSE) if action >= REFUSE else _ACTION_TEXT[action]


def diagram() -> str:
    """The state machine as a Mermaid state diagram (``stateDiagram-v2``)."""
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{text}" as {state.name}' for state, text in _STATE_TEXT.items()]
    lines.append("    [*] --> NEW: TCP connection")
    by_command = {command: rule for rule in RULES for command in rule.commands}
    for state in _STATE_TEXT:
        for change in TRANSITIONS:
            if by_command[change.command].action(state) == ASK_STOP:
                when = f" ({change.when})" if change.when else ""
                lines.append(f"    {state.name} --> {change.to.name}: 0x{change.command:02X}{when}")
        stays = [
            rule.name.replace(" (2025)", "")
            for rule in RULES
            if rule.action(state) in (TAKE, ASK, LOOK, ANSWER) and not rule.name.startswith("heartbeat")
        ]
        lines.append(f"    {state.name} --> {state.name}: {', '.join(stays)}, heartbeat, time sync")
    lines.append("    NEW --> [*]: no login in first_packet_timeout_s")
    lines.append("    VEHICLE --> [*]: silent, replaced, out of the registry")
    lines.append("    PLATFORM --> [*]: silent")
    return "\n".join(lines) + "\n"


def table() -> str:
    """The rules as a Markdown table."""
    lines = [f"| command | {' | '.join(_STATE_TEXT.values())} |", "|---|---|---|---|"]
    lines += [f"| {rule.name} | {' | '.join(_text(rule.action(state)) for state in _STATE_TEXT)} |" for rule in RULES]
    unknown = _text(_UNKNOWN_COMMAND)
    lines.append(f"| anything else | {unknown} | {unknown} | {unknown} |")
    return "\n".join(lines) + "\n"


def document() -> str:
    """``SESSION.md``: diagram, table and error flags.  A test holds the committed file to this."""
    flags = error_flags()
    told = []
    for name, code in REASON.items():
        in_2016, in_2025 = (f"0x{flag:02X}" if flag else "none" for flag in flags[code].tolist())
        if (in_2016, in_2025) != ("0x02", "0x02"):
            told.append(f"| {name} | {in_2016} | {in_2025} |")
    return f"""# A GB/T 32960 connection, state by state

Made from `gbt_rules.py` by `python -m services.gateway.gbt_rules`; do not edit.

```mermaid
{diagram()}```

What is done with a command (flag 0xFE) in each state:

{table()}
*take*: journal, then answer with 0x01. *handle*: the same, and the connection's state changes as drawn; when it does
not go well the frame is refused and the state stays. *match*: the answer to a command that was sent down, else
`unknown_command`. A name: refused with that reason, kept as a dead letter. With `login = "optional"` reports and custom
commands before the login bind their VIN.

Refused frames are answered with 0x02, but for:

| reason | `##` (2016) | `$$` (2025) |
|---|---|---|
{chr(10).join(told)}
"""


if __name__ == "__main__":
    print(document(), end="")
