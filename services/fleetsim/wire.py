"""Samples to bytes: GB/T 32960 frames, and the streams of packets that go down a socket.

Kernels only; whole chunks at a time, ahead of sending.  What a vehicle transmits here is chosen by
the simulator (which blocks, in which order); how a field is coded is the standard's.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.batch import I32, I64, U8, VIN_BYTES
from schemas.gbt32960.commands import MARK, Ack, Command, Encryption
from schemas.gbt32960.frame import AT_UNIT, FRAME_BYTES_MIN, bcc
from schemas.gbt32960.replies import REPLY_BYTES_MAX, write_reply
from schemas.gbt32960.times import BEIJING_OFFSET_S
from schemas.jit import compiled
from schemas.mqtt.topics import GBT32960, PREFIX, UPLINK_BYTES
from schemas.signals import INDEX
from services.fleetsim.model import U16, Samples

# Operations of a report's table: a signal's index, or one of these.
_LITERAL, _LOCATION, _CELLS, _TEMPS = -1, -2, -3, -4


def _field(name: str, width: int, bias: int = 0) -> tuple[int, int, int]:
    return INDEX[name], width, bias


def _block(number: int) -> tuple[int, int, int]:
    return _LITERAL, 1, number


_EXTREMES = tuple(
    _field(name, width, bias)
    for end in ("max", "min")
    for name, width, bias in (
        (f"{end}_voltage_subsystem", 1, 0),
        (f"{end}_voltage_cell", 1, 0),
        (f"{end}_cell_voltage_v", 2, 0),
    )
) + tuple(
    _field(name, 1, bias)
    for end in ("max", "min")
    for name, bias in ((f"{end}_temp_subsystem", 0), (f"{end}_temp_probe", 0), (f"{end}_temp_c", 40))
)
_HEAD = (
    _block(1), _field("vehicle_state", 1), _field("charge_state", 1), _field("run_mode", 1), _field("speed_kmh", 2),
    _field("odometer_km", 4), _field("total_voltage_v", 2),
)  # fmt: skip
_TAIL = (_field("soc_pct", 1), _field("dcdc_state", 1), _field("gear", 1), _field("insulation_resistance_kohm", 2))
_ALARM = (
    _field("alarm_level", 1), _field("alarm_flags", 4), _field("pack_fault_count", 1), _field("motor_fault_count", 1),
    _field("engine_fault_count", 1), _field("other_fault_count", 1),
)  # fmt: skip
_MOTOR = (_block(2), _field("motor_count", 1), _field("motor_no", 1), _field("motor_state", 1),
          _field("motor_controller_temp_c", 1, 40))  # fmt: skip

# (operation, width, bias in raw counts) in the order of transmission; clauses 7.1 to 7.10 of each edition.
_TABLES: Final = {
    16: (
        *_HEAD, _field("total_current_a", 2, 10_000), *_TAIL, _field("accelerator_pct", 1), _field("brake_pct", 1),
        *_MOTOR, _field("motor_speed_rpm", 2, 20_000), _field("motor_torque_nm", 2, 20_000),
        _field("motor_temp_c", 1, 40),
        _field("motor_input_voltage_v", 2), _field("motor_bus_current_a", 2, 10_000),
        _block(5), (_LOCATION, 9, 16), _block(6), *_EXTREMES, _block(7), *_ALARM,
        _block(8), (_CELLS, 0, 16), _block(9), (_TEMPS, 0, 16),
    ),
    25: (
        *_HEAD, _field("total_current_a", 2, 30_000), *_TAIL,
        *_MOTOR, _field("motor_speed_rpm", 2, 32_000), _field("motor_torque_nm", 4, 200_000),
        _field("motor_temp_c", 1, 40),
        _block(5), (_LOCATION, 10, 25), _block(6), *_ALARM, _field("general_fault_count", 1),
        _block(7), (_CELLS, 0, 25), _block(8), (_TEMPS, 0, 25),
    ),
}  # fmt: skip
_OPS16: Final = np.array(_TABLES[16], np.int64)
_OPS25: Final = np.array(_TABLES[25], np.int64)
_FIXED: Final = {edition: sum(width for _, width, _ in table) for edition, table in _TABLES.items()}
_LIST_HEAD: Final = {16: 1 + 10 + 1 + 3, 25: 1 + 7 + 1 + 3}  # counts, numbers, voltage, current before the two lists
_ABNORMAL, _INVALID = 2, 3  # schemas.signals.State
_I_LON, _I_LAT = INDEX["longitude_deg"], INDEX["latitude_deg"]
_I_VALID, _I_COORD = INDEX["location_valid"], INDEX["coord_sys"]
_I_VOLT, _I_AMP, _I_TOTAL = INDEX["pack_voltage_v"], INDEX["pack_current_a"], INDEX["pack_cell_total"]
_COMMAND_FLAG: Final = int(Ack.COMMAND)
_NO_ENCRYPTION: Final = int(Encryption.NONE)
_MARK16, _MARK25 = MARK[16], MARK[25]


@compiled
def _put(out: U8, at: int, width: int, value: int) -> int:
    for i in range(width):
        out[at + i] = (value >> (8 * (width - 1 - i))) & 0xFF
    return at + width


@compiled
def _put_signal(out: U8, at: int, width: int, bias: int, num: I32, state: U8, signal: int) -> int:
    if state[signal] == _ABNORMAL:
        return _put(out, at, width, (1 << (8 * width)) - 2)
    if state[signal] == _INVALID:
        return _put(out, at, width, (1 << (8 * width)) - 1)
    return _put(out, at, width, num[signal] + bias)


@compiled
def put_time(out: U8, at: int, time_s: int) -> int:
    """Six binary bytes of Beijing time (clause 6.4); the year's last two digits."""
    local = time_s + BEIJING_OFFSET_S
    days, second = local // 86400, local % 86400
    # civil date from days since 1970 (Howard Hinnant, chrono-compatible low-level date algorithms)
    z = days + 719468
    era = z // 146097
    doe = z - era * 146097
    yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    day = doy - (153 * mp + 2) // 5 + 1
    month = mp + 3 if mp < 10 else mp - 9
    year = yoe + era * 400 + (1 if month <= 2 else 0)
    out[at] = year % 100
    out[at + 1] = month
    out[at + 2] = day
    out[at + 3] = second // 3600
    out[at + 4] = second // 60 % 60
    out[at + 5] = second % 60
    return at + 6


@compiled
def _put_cells(out: U8, at: int, edition: int, num: I32, state: U8, cells: U16, count: int) -> int:
    bias = 10_000 if edition == 16 else 30_000
    at = _put(out, at, 1, 1)  # one subsystem or pack
    at = _put(out, at, 1, 1)  # its number
    at = _put_signal(out, at, 2, 0, num, state, _I_VOLT)
    at = _put_signal(out, at, 2, bias, num, state, _I_AMP)
    at = _put_signal(out, at, 2, 0, num, state, _I_TOTAL)
    if edition == 16:
        at = _put(out, at, 2, 1)  # number of the first cell
        at = _put(out, at, 1, count)
    for c in range(count):
        out[at] = cells[c] >> 8
        out[at + 1] = cells[c] & 0xFF
        at += 2
    return at


@compiled
def _put_report(
    out: U8, at: int, edition: int, command: int, vin: U8, time_s: int, num: I32, state: U8,
    cells: U16, cell_count: int, temps: U8, probe_count: int, ops: I64,
) -> int:  # fmt: skip
    begin = at
    mark = _MARK16 if edition == 16 else _MARK25
    out[at] = mark
    out[at + 1] = mark
    out[at + 2] = command
    out[at + 3] = _COMMAND_FLAG
    for i in range(VIN_BYTES):
        out[at + 4 + i] = vin[i]
    out[at + 21] = _NO_ENCRYPTION
    at = put_time(out, at + AT_UNIT, time_s)
    for k in range(len(ops)):
        signal, width, bias = ops[k, 0], ops[k, 1], ops[k, 2]
        if signal >= 0:
            at = _put_signal(out, at, width, bias, num, state, signal)
        elif signal == _LITERAL:
            at = _put(out, at, 1, bias)
        elif signal == _LOCATION:
            east, north = num[_I_LON], num[_I_LAT]
            status = (0 if num[_I_VALID] == 1 else 1) | (2 if north < 0 else 0) | (4 if east < 0 else 0)
            at = _put(out, at, 1, status)
            if edition == 25:
                at = _put_signal(out, at, 1, 0, num, state, _I_COORD)
            at = _put(out, at, 4, abs(east))
            at = _put(out, at, 4, abs(north))
        elif signal == _CELLS:
            at = _put_cells(out, at, edition, num, state, cells, cell_count)
        else:
            at = _put(out, at, 1, 1)
            at = _put(out, at, 1, 1)
            at = _put(out, at, 2, probe_count)
            for t in range(probe_count):
                out[at + t] = temps[t]
            at += probe_count
    _put(out, begin + 22, 2, at - begin - AT_UNIT)
    out[at] = bcc(out, begin + 2, at)
    return at + 1


@compiled
def _put_reports(
    vehicle: I64, editions: I64, vins: U8, command: U8, time_s: I64, num: I32, state: U8, cells: U16, cell_count: I64,
    temps: U8, probe_count: I64, start: I64, out: U8,
) -> int:  # fmt: skip
    at = 0
    for row in range(len(time_s)):
        v = vehicle[row]
        at = start[row]
        ops = _OPS16 if editions[v] == 16 else _OPS25
        at = _put_report(
            out, at, editions[v], command[row], vins[v], time_s[row], num[row], state[row],
            cells[row], cell_count[row], temps[row], probe_count[row], ops,
        )  # fmt: skip
    return at


def encode_samples(samples: Samples, editions: I64, vins: U8, command: U8, time_s: I64) -> tuple[U8, I64]:
    """Frames of ``samples``, back to back: (bytes, start (n + 1,) offsets).

    editions (vehicles,) 16 or 25 · vins (vehicles, 17) · command (n,) 0x02 or 0x03 · time_s (n,) the
    time written into the frame (a wrong clock differs from ``samples.time_s``).
    """
    edition = editions[samples.vehicle]
    fixed = np.where(edition == 16, _FIXED[16] + _LIST_HEAD[16], _FIXED[25] + _LIST_HEAD[25])
    length = FRAME_BYTES_MIN + 6 + fixed + 2 * samples.cell_count + samples.probe_count
    start = np.zeros(samples.n + 1, np.int64)
    np.cumsum(length, out=start[1:])
    out = np.empty(int(start[-1]), np.uint8)
    end = _put_reports(
        samples.vehicle, editions, vins, command, time_s, samples.num, samples.state, samples.cells, samples.cell_count,
        samples.temps, samples.probe_count, start, out,
    )  # fmt: skip
    assert samples.n == 0 or end == start[-1], "the length of a report was reckoned wrongly"
    return out, start


# -- streams ---------------------------------------------------------------------------------------
_PREFIX: Final = np.frombuffer(bytearray(PREFIX), np.uint8)
_SUFFIX: Final = np.frombuffer(bytearray(GBT32960), np.uint8)
PUBLISH_QOS1: Final = 0x32
DUP: Final = 0x08
PUBACK_BYTES: Final = 4
REPLY_BYTES: Final = REPLY_BYTES_MAX
_TOPIC: Final = UPLINK_BYTES
PACKET_IDS: Final = 65_535
MQTT_311, MQTT_5, GBT_TCP = 0, 1, 2  # how a vehicle speaks


@compiled
def _put_publish(
    frames: U8, begin: int, length: int, vin: U8, packet_id: int, five: bool, out: U8, at: int
) -> int:  # fmt: skip
    size = 2 + _TOPIC + 2 + (1 if five else 0) + length
    out[at] = PUBLISH_QOS1
    at += 1
    while True:  # remaining length, a variable byte integer (MQTT clause 1.5.5)
        byte = size & 0x7F
        size >>= 7
        out[at] = byte | (0x80 if size else 0)
        at += 1
        if size == 0:
            break
    at = _put(out, at, 2, _TOPIC)
    for i in range(len(_PREFIX)):
        out[at + i] = _PREFIX[i]
    at += len(_PREFIX)
    for i in range(VIN_BYTES):
        out[at + i] = vin[i]
    at += VIN_BYTES
    for i in range(len(_SUFFIX)):
        out[at + i] = _SUFFIX[i]
    at += len(_SUFFIX)
    at = _put(out, at, 2, packet_id)
    if five:
        out[at] = 0
        at += 1
    out[at : at + length] = frames[begin : begin + length]
    return at + length


@compiled
def _put_streams(
    frames: U8, start: I64, bounds: I64, emitted: I64, speech: I64, sequence: I64, vins: U8, out: U8, ends: I64,
    answers: U8, answer_at: I64,
) -> int:  # fmt: skip
    at, answer = 0, 0
    for v in range(len(speech)):
        answer_at[v] = answer
        for k in range(bounds[v], bounds[v + 1]):
            row = emitted[k]
            length = start[row + 1] - start[row]
            if speech[v] == GBT_TCP:
                out[at : at + length] = frames[start[row] : start[row + 1]]
                at += length
                write_reply(frames, start[row], length, 1, answers, answer)
                answer += REPLY_BYTES
            else:
                packet_id = (sequence[v] + k - bounds[v]) % PACKET_IDS + 1
                at = _put_publish(frames, start[row], length, vins[v], packet_id, speech[v] == MQTT_5, out, at)
                _put(answers, answer, 1, 0x40)
                _put(answers, answer + 1, 1, 2)
                _put(answers, answer + 2, 2, packet_id)
                answer += PUBACK_BYTES
            ends[k] = at
    answer_at[len(speech)] = answer
    return at


def encode_streams(
    frames: U8, start: I64, bounds: I64, emitted: I64, speech: I64, sequence: I64, vins: U8
) -> tuple[U8, I64, U8, I64]:
    """What each vehicle sends, and what it expects in answer.

    bounds (vehicles + 1,) into ``emitted`` (k,), rows of ``start`` in the order of sending · speech (vehicles,)
    ``MQTT_311``, ``MQTT_5``, ``GBT_TCP`` · sequence (vehicles,) messages already sent (packet ids go on from there).

    Returns (bytes, ends (k,) offset after each message, answers, answer_at (vehicles + 1,) offsets into
    answers): PUBACKs of success of 4 bytes, or short success replies of 31, in the order of sending.
    """
    length = start[emitted + 1] - start[emitted]
    spoken = np.repeat(speech, np.diff(bounds))
    over = np.where(spoken == GBT_TCP, 0, 1 + 4 + 2 + UPLINK_BYTES + 2 + 1)
    out = np.empty(int((length + over).sum()), np.uint8)
    ends = np.empty(len(emitted), np.int64)
    answers = np.empty(int(np.where(spoken == GBT_TCP, REPLY_BYTES, PUBACK_BYTES).sum()), np.uint8)
    answer_at = np.empty(len(speech) + 1, np.int64)
    size = _put_streams(frames, start, bounds, emitted, speech, sequence, vins, out, ends, answers, answer_at)
    return out[:size], ends, answers, answer_at


def report_command(reissue: bool) -> int:
    """0x02, or 0x03 for data that comes late."""
    return int(Command.REISSUE if reissue else Command.REALTIME)
