"""Command ids, response flags and encryption rules of the frame header (clause 6, tables 2 to 5; annex B).

One table says what each command is; nothing here reads a data unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Edition(IntEnum):
    """Which rule set a frame follows; the start mark alone says so, frame by frame."""

    E2016 = 16
    E2025 = 25


MARK: Final[dict[int, int]] = {Edition.E2016: 0x23, Edition.E2025: 0x24}
EDITION_OF_MARK: Final[dict[int, Edition]] = {0x23: Edition.E2016, 0x24: Edition.E2025}


class Command(IntEnum):
    """Command ids (table 3, table B.2)."""

    LOGIN = 0x01
    REALTIME = 0x02
    REISSUE = 0x03
    LOGOUT = 0x04
    PLATFORM_LOGIN = 0x05
    PLATFORM_LOGOUT = 0x06
    HEARTBEAT = 0x07
    TIME_SYNC = 0x08
    ACTIVATION = 0x09
    ACTIVATION_RESULT = 0x0A
    KEY_EXCHANGE = 0x0B
    PARAM_QUERY = 0x80
    PARAM_SET = 0x81
    CONTROL = 0x82


class Ack(IntEnum):
    """Response flags (table 4); 0x04 to 0x07 are of the 2025 edition."""

    SUCCESS = 0x01
    ERROR = 0x02
    VIN_DUPLICATE = 0x03
    VIN_UNKNOWN = 0x04
    SIGNATURE_ERROR = 0x05
    STRUCTURE_ERROR = 0x06
    DECRYPTION_ERROR = 0x07
    COMMAND = 0xFE


class Encryption(IntEnum):
    """Encryption of the data unit (table 2); 0x04 and 0x05 are of the 2025 edition."""

    NONE = 0x01
    RSA = 0x02
    AES = 0x03
    SM2 = 0x04
    SM4 = 0x05
    ABNORMAL = 0xFE
    INVALID = 0xFF


class Direction(IntEnum):
    UP = 1
    DOWN = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class CommandInfo:
    """One row of the command table.  ``has_time``: the data unit starts with a six-byte time."""

    id: Command
    name: str
    direction: Direction
    editions: tuple[Edition, ...]
    has_time: bool
    clause: str


_BOTH = (Edition.E2016, Edition.E2025)
_NEW = (Edition.E2025,)

COMMANDS: Final[tuple[CommandInfo, ...]] = (
    CommandInfo(Command.LOGIN, "vehicle_login", Direction.UP, _BOTH, True, "table 6"),
    CommandInfo(Command.REALTIME, "realtime", Direction.UP, _BOTH, True, "2016 table 8, 2025 table 9"),
    CommandInfo(Command.REISSUE, "reissue", Direction.UP, _BOTH, True, "2016 table 8, 2025 table 9"),
    CommandInfo(Command.LOGOUT, "vehicle_logout", Direction.UP, _BOTH, True, "clause 7"),
    CommandInfo(Command.PLATFORM_LOGIN, "platform_login", Direction.UP, _BOTH, True, "2016 table 21, 2025 table 29"),
    CommandInfo(Command.PLATFORM_LOGOUT, "platform_logout", Direction.UP, _BOTH, True, "clause 7"),
    CommandInfo(Command.HEARTBEAT, "heartbeat", Direction.UP, _BOTH, False, "annex B"),
    CommandInfo(Command.TIME_SYNC, "time_sync", Direction.UP, _BOTH, False, "annex B.2.5"),
    CommandInfo(Command.ACTIVATION, "activation", Direction.UP, _NEW, True, "2025 table B.3"),
    CommandInfo(Command.ACTIVATION_RESULT, "activation_result", Direction.DOWN, _NEW, False, "2025 table B.4"),
    CommandInfo(Command.KEY_EXCHANGE, "key_exchange", Direction.BOTH, _NEW, False, "2025 table 31"),
    CommandInfo(Command.PARAM_QUERY, "param_query", Direction.DOWN, _BOTH, True, "2016 table B.12, 2025 table B.8"),
    CommandInfo(Command.PARAM_SET, "param_set", Direction.DOWN, _BOTH, True, "2016 table B.12, 2025 table B.8"),
    CommandInfo(Command.CONTROL, "terminal_control", Direction.DOWN, _BOTH, True, "2016 table B.14, 2025 table B.10"),
)  # fmt: skip

BY_ID: Final[dict[int, CommandInfo]] = {int(info.id): info for info in COMMANDS}

ACK_NAMES: Final[dict[int, str]] = {int(ack): ack.name.lower() for ack in Ack}


def command_name(command: int) -> str:
    """Name of a command id; ids without a row of their own read by their reserved range (table 3)."""
    info = BY_ID.get(command)
    if info is not None:
        return info.name
    if 0xC0 <= command <= 0xFE:
        return f"platform_exchange_{command}"
    return f"undefined_{command}"


def ack_name(ack: int) -> str:
    """Name of a response flag."""
    return ACK_NAMES.get(ack, f"undefined_{ack}")


def encryption_name(edition: int, value: int) -> str:
    """Name of an encryption rule in an edition (2016 knows neither SM2 nor SM4, and says AES128)."""
    if value == Encryption.AES:
        return "aes128" if edition == Edition.E2016 else "aes"
    if value in (Encryption.SM2, Encryption.SM4) and edition == Edition.E2016:
        return f"undefined_{value}"
    try:
        return Encryption(value).name.lower()
    except ValueError:
        return f"undefined_{value}"
