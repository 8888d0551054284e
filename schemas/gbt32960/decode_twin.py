"""The decode kernel's twin: the same lines of a ``Batch``, made from the reference decoder's blocks.

Plain Python, about a thousand times slower; its specification in tests, and the whole system's decoder
under ``NEVSTREAM_KERNELS=reference``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from schemas import batch as b
from schemas.batch import I16, I32, I64, U8, U32
from schemas.gbt32960.commands import BY_ID, EDITION_OF_MARK, Ack, Command, Encryption
from schemas.gbt32960.digest import digest as digest_of
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.frame import AT_UNIT, FRAME_BYTES_MIN, vin_ok
from schemas.gbt32960.layout import Kind
from schemas.gbt32960.reading import Info, Role, Scope, column_readings, count_of, read_infos
from schemas.gbt32960.times import read_time
from schemas.reasons import CODE
from schemas.signals import INDEX, State

_PART_MAX: Final = 32_767


class _Refused(Exception):
    def __init__(self, reason: str, detail: int) -> None:
        super().__init__(reason)
        self.code = CODE[reason]
        self.detail = detail


def decode_reports_twin(
    data: U8, start: I64, length: I32, skip: U8, fields: I64, groups: I64, blocks: I64, derived: I64,
    kind: U8, edition: U8, reason: U8, detail: U32, notes: I16, time_s: I64, part: I16, digest: I64,
    num: I32, state: U8, var: I64, heap: U8,
) -> int:  # fmt: skip
    """As ``decode.decode_reports``; the table arrays are not looked at, the edition tables are."""
    del fields, groups, blocks, derived
    heap_at = 0
    for array in (kind, edition, reason, detail, notes, time_s, part, digest, state, var):
        array[: len(start)] = 0
    for i in range(len(start)):
        if skip[i]:
            continue
        at = int(start[i])
        frame = bytes(data[at : at + int(length[i])]) if at >= 0 else b""
        try:
            when = _check(frame, int(length[i]))
            line = _Line(frame, at)
            if frame[2] in (Command.REALTIME, Command.REISSUE):
                line.read()
        except _Refused as refused:
            reason[i], detail[i] = refused.code, refused.detail
            continue
        kind[i], edition[i], time_s[i] = frame[2], EDITION_OF_MARK[frame[0]], when
        notes[i], part[i] = line.notes, line.part
        digest[i] = digest_of.twin(data, at + AT_UNIT, at + len(frame) - 1)  # type: ignore[attr-defined]
        for signal, (signal_state, signal_num) in line.signals.items():
            state[i, signal] = signal_state
            num[i, signal] = signal_num
        for column, span in line.spans.items():
            var[i, column] = span
        if line.rest:
            var[i, b.REST] = heap_at, len(line.rest)
            heap[heap_at : heap_at + len(line.rest)] = np.frombuffer(line.rest, np.uint8)
            heap_at += len(line.rest)
    return heap_at


def _check(frame: bytes, claimed: int) -> int:
    """Collection time in seconds (0 when the command has none).  Raises :class:`_Refused`."""
    if claimed < FRAME_BYTES_MIN or len(frame) != claimed:
        raise _Refused("bad_length", min(claimed, 22))
    if frame[0] != frame[1] or frame[0] not in EDITION_OF_MARK:
        raise _Refused("garbage", 0)
    if int.from_bytes(frame[22:24], "big") + FRAME_BYTES_MIN != len(frame):
        raise _Refused("bad_length", 22)
    check = 0
    for byte in frame[2:-1]:
        check ^= byte
    if check != frame[-1]:
        raise _Refused("bad_bcc", len(frame) - 1)
    command = BY_ID.get(frame[2])
    if command is None or EDITION_OF_MARK[frame[0]] not in command.editions:
        raise _Refused("unknown_command", 2)
    if frame[3] != Ack.COMMAND and command.id in (Command.REALTIME, Command.REISSUE):
        raise _Refused("unknown_command", 3)
    if not vin_ok.twin(np.frombuffer(frame, np.uint8), 4):  # type: ignore[attr-defined]
        raise _Refused("bad_vin", 4)
    if frame[21] != Encryption.NONE and len(frame) > FRAME_BYTES_MIN:
        raise _Refused("encrypted", 21)
    if not command.has_time:
        return 0
    if len(frame) < FRAME_BYTES_MIN + 6:
        if frame[3] == Ack.COMMAND:
            raise _Refused("structure", AT_UNIT)
        return 0
    when = read_time(frame[AT_UNIT : AT_UNIT + 6])
    if when is None:
        raise _Refused("bad_time", AT_UNIT)
    return int(when.timestamp())


class _Line:
    """One report on its way into a line of the batch; ``base`` is where the frame lies in ``data``."""

    def __init__(self, frame: bytes, base: int) -> None:
        self.frame = frame
        self.base = base
        self.notes = 0
        self.part = 0
        self.signals: dict[int, tuple[State, int]] = {}
        self.spans: dict[int, tuple[int, int]] = {}
        self.rest = b""

    def read(self) -> None:
        table = EDITIONS[EDITION_OF_MARK[self.frame[0]]]
        infos, failed_at = read_infos(table, self.frame, AT_UNIT + 6, len(self.frame) - 1)
        if failed_at is not None:
            raise _Refused("structure", AT_UNIT + 6)
        for info in infos:
            self._place(info)

    def _keep(self, info: Info) -> None:
        body = self.frame[info.body : info.end]
        self.rest += bytes([info.type]) + len(body).to_bytes(2, "big") + body

    def _place(self, info: Info) -> None:
        note = {
            Role.CUSTOM: b.NOTE_CUSTOM_BLOCK,
            Role.SIGNATURE: b.NOTE_SIGNATURE,
            Role.OPAQUE: b.NOTE_UNKNOWN_BLOCK,
            Role.TRUNCATED: b.NOTE_TRUNCATED,
            Role.TRAILING: b.NOTE_TRAILING,
        }.get(info.role, b.NOTE_REPEATED_BLOCK if info.repeated else 0)
        if note:
            self.notes |= note
            self._keep(info)
            return
        assert info.block is not None
        assert info.scope is not None
        for reading in column_readings(info.block, info.scope):
            assert reading.field.signal is not None
            found = reading.field.judge(reading.raw)
            if reading.field.kind is Kind.STATUS:
                found = (State.VALID, 1 - (reading.raw & 1))
            if reading.field.kind is Kind.DEGREES:
                sign_bit = 0x04 if reading.field.raw == "longitude" else 0x02
                if info.scope.raw("status") & sign_bit:
                    found = (found[0], -found[1])
            # DWORDs become i32 by their bits: only alarm flags reach beyond it.
            value = found[1] - (1 << 32) if found[1] >> 31 == 1 else found[1]
            self.signals[INDEX[reading.field.signal]] = (found[0], value)
        self._place_lists(info, info.block.name, info.scope)

    def _span(self, column: int, info: Info, skipped: int = 0) -> None:
        self.spans[column] = (self.base + info.body + skipped, info.end - info.body - skipped)

    def _place_lists(self, info: Info, name: str, scope: Scope) -> None:
        if name == "drive_motor" and len(scope.scopes("motors")) > 1:
            self._span(b.MOTORS, info)
        elif name == "fuel_cell" and "probe_count" in scope and scope.readings("probe_temps_c"):
            self._keep(info)
        elif name == "alarm":
            lists = ("pack_faults", "motor_faults", "engine_faults", "other_faults", "general_faults")
            if any(scope.get(key) for key in lists):
                self._span(b.FAULTS, info, 5)
        elif name in ("fuel_cell_stacks", "supercapacitor"):
            if any(scope.get(key) for key in ("stacks", "cells_v", "temps_c")):
                self._keep(info)
        elif name == "cell_voltages":
            self._span(b.CELLS, info)
            self._derive(scope, "cells_v", 60_000, 0, ("cell_count", "cell_max_v", "cell_min_v", "cell_sum_v"))
            packs = scope.scopes("packs")
            if packs and "first_cell" in packs[0]:
                first = packs[0]["first_cell"]
                assert not isinstance(first, list)
                self.part = min(count_of(first), _PART_MAX) if count_of(first) > 1 else 0
        elif name == "cell_temperatures":
            self._span(b.TEMPS, info)
            self._derive(scope, "temps_c", 250, -40, ("probe_count", "probe_max_c", "probe_min_c"))

    def _derive(self, scope: Scope, key: str, raw_max: int, add: int, names: tuple[str, ...]) -> None:
        """Count, highest, lowest and sum over all packs; 0 and values over ``raw_max`` are no measurements."""
        count = scope["count"]
        assert not isinstance(count, list)
        if count.field.sentinel_of(count.raw) is not None:
            return
        raws = [reading.raw for pack in scope.scopes("packs") for reading in pack.readings(key)]
        good = [raw for raw in raws if 1 <= raw <= raw_max]
        self.signals[INDEX[names[0]]] = (State.VALID, len(raws))
        figures: tuple[Callable[[list[int]], int], ...] = (max, min, sum)
        for name, figure in zip(names[1:], figures, strict=False):
            if good:
                self.signals[INDEX[name]] = (State.VALID, figure(good) + add)
            elif raws:
                self.signals[INDEX[name]] = (State.INVALID, 0)
