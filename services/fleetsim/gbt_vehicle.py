"""A vehicle that speaks GB/T 32960 over TCP: login, reports, heartbeats, logout."""

from __future__ import annotations

from typing import Final

from schemas.gbt32960.commands import EDITION_OF_MARK, Ack, Command, Encryption
from schemas.gbt32960.frame import AT_ACK, AT_COMMAND, AT_LENGTH, AT_UNIT, FRAME_BYTES_MIN, build_frame
from schemas.gbt32960.times import time_bytes
from services.fleetsim.chunks import Segment
from services.fleetsim.client import ClientSettings, Vehicle
from services.fleetsim.stats import Stats
from services.fleetsim.wire import REPLY_BYTES

_REPORTS: Final = (Command.REALTIME, Command.REISSUE)
_SERIALS: Final = 65_531
_BURNT: Final = int(Command.REALTIME) ^ int(Command.REISSUE)  # what the change of command does to the check byte


class GbtVehicle(Vehicle):
    """A terminal of either edition.

    A reply belongs to the first un-answered report of its time.  What was not answered when a
    connection was lost goes out again as it was, or as 0x03 with ``ClientSettings.reissue``.
    """

    answer_bytes = REPLY_BYTES

    def __init__(
        self, index: int, vin: str, settings: ClientSettings, stats: Stats, buffer: bytearray, edition: int
    ) -> None:
        super().__init__(index, vin, settings, stats, buffer)
        self.edition = edition
        self.serial = 0

    @property
    def address(self) -> tuple[str, int]:
        return self.settings.host, self.settings.gbt_port

    def _frame(self, command: int, unit: bytes) -> bytes:
        return build_frame(self.edition, command, Ack.COMMAND, self.vin, Encryption.NONE, unit)

    def _greeting(self) -> bytes:
        self.serial = self.serial % _SERIALS + 1
        iccid = f"898600{self.index:014d}".encode("ascii")
        # one subsystem, one pack; 2016: codes of 24 bytes, 2025: one pack in the one management system
        counts = b"\x01\x18" if self.edition == 16 else b"\x01\x01"
        code = f"NEVSIM{self.index:018d}".encode("ascii")
        unit = time_bytes(int(self.now())) + self.serial.to_bytes(2, "big") + iccid + counts + code
        return self._frame(Command.LOGIN, unit)

    def _farewell(self) -> bytes:
        return self._frame(Command.LOGOUT, time_bytes(int(self.now())) + self.serial.to_bytes(2, "big"))

    def _beat(self) -> bytes:
        return self._frame(Command.HEARTBEAT, b"")

    def _parse(self, data: bytes) -> int:
        at = 0
        while len(data) - at >= FRAME_BYTES_MIN:
            if data[at] != data[at + 1] or data[at] not in EDITION_OF_MARK:
                self._drop(f"{data[at : at + 4].hex()} from the platform begins no frame")
                return len(data)
            length = int.from_bytes(data[at + AT_LENGTH : at + AT_UNIT], "big") + FRAME_BYTES_MIN
            if len(data) - at < length:
                break
            command, flag = data[at + AT_COMMAND], data[at + AT_ACK]
            if command in _REPORTS and flag != Ack.COMMAND:
                self._match(data[at + AT_UNIT : at + AT_UNIT + 6], flag != Ack.SUCCESS)
            elif command == Command.LOGIN:
                if flag != Ack.SUCCESS:
                    self._drop(f"login refused with flag 0x{flag:02X}")
                    return len(data)
                self._welcomed()
            elif command not in (Command.HEARTBEAT, Command.LOGOUT):
                self.stats.unexpected += 1
            at += length
        return at

    def _match(self, time6: bytes, refused: bool) -> None:
        """A report's reply: the first un-answered report of that time, as the expected answers have it."""
        sequence = self.acked
        for segment in self._segments:
            while sequence < min(self.sent, segment.first + segment.count):
                begin = (sequence - segment.first) * REPLY_BYTES + AT_UNIT
                if sequence not in self._early and segment.answers[begin : begin + 6] == time6:
                    self._answered(sequence, refused=refused)
                    return
                sequence += 1
        self.stats.unexpected += 1

    def _repeat(self, segment: Segment, begin: int, end: int) -> bytes | memoryview:
        start = segment.begin(begin)
        same = segment.data[start : segment.ends[end - 1]]
        if not self.settings.reissue:
            return same
        copy = bytearray(same)
        for index in range(begin, end):
            at, last = segment.begin(index) - start, segment.ends[index] - start - 1
            if copy[at + AT_COMMAND] == Command.REALTIME:
                copy[at + AT_COMMAND] = Command.REISSUE
                copy[last] ^= _BURNT
        return bytes(copy)
