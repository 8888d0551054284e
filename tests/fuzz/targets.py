"""What is fuzzed: one function a target, bytes in, nothing out.

A target returns for every input, having checked what must hold of any bytes: refused with the error that is
meant for it, or accepted.  Anything else it lets through (another exception, an answer that breaks an
invariant) is a finding.  Used by pytest (corpus, hypothesis) and by ``harness.py`` (atheris).
"""

from __future__ import annotations

import contextlib
import functools
import struct
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np

from schemas.batch import Batch, Codec
from schemas.batch import Door as DoorNumber
from schemas.gbt32960.decode import decode_frames
from schemas.gbt32960.explain import explain
from schemas.gbt32960.frame import BAD_BCC, FRAME, GARBAGE, NEED_MORE, OVERSIZE, build_frame, next_frame
from schemas.gbt32960.reference import decode_frame
from schemas.journal.record import HEADER, RecordError, decode_records, encode_record
from schemas.link_events import decode as decode_event
from schemas.mqtt import packets, scan
from schemas.mqtt.wire import V5, V311, MqttError
from schemas.seams import StoredRecord
from schemas.signals import State
from services.pipeline.batching import Streams, build, decode
from services.pipeline.vehicles import VehicleTable

FRAME_MAX: Final = 4096
VIN: Final = "LNBSCB3F4JW000001"
EDITIONS: Final = (16, 25)


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data), np.uint8)


# -- the scanner -------------------------------------------------------------------------------------
def _stream(data: bytes, ends: list[int]) -> list[tuple[int, int, int]]:
    """What the scanner finds when the stream is known up to each of ``ends`` in turn; garbage runs joined."""
    bytes_ = array(data)
    found: list[tuple[int, int, int]] = []
    at = 0
    for end in ends:
        while True:
            kind, start, length = next_frame(bytes_, at, end, FRAME_MAX)
            assert at <= start <= start + length <= end, (kind, start, length)
            assert start == at, "bytes passed over in silence"
            if kind == NEED_MORE:
                break
            assert length > 0, "no progress"
            assert kind in (FRAME, BAD_BCC, GARBAGE, OVERSIZE)
            if kind == GARBAGE and found and found[-1][0] == GARBAGE:
                found[-1] = (GARBAGE, found[-1][1], found[-1][2] + length)
            else:
                found.append((int(kind), int(start), int(length)))
            at = start + length
    return found


def scanner(data: bytes) -> None:
    """Every byte is accounted for, in order, and the same however the stream was cut."""
    if not data:
        return
    whole = _stream(data, [len(data)])
    step = 1 + data[0] % 31
    assert _stream(data, [*range(step, len(data), step), len(data)]) == whole


# -- the decoder -------------------------------------------------------------------------------------
def decoder(data: bytes) -> None:
    """Any bytes as a frame, and as the data unit of a frame that is right otherwise."""
    frames = [data]
    if data:
        command, unit = data[0], data[1:65532]
        frames += [build_frame(edition, command, 0xFE, VIN, 1, unit) for edition in EDITIONS]
        if command > 0x82:
            frames += [build_frame(edition, 2 + (command & 1), 0xFE, VIN, 1, unit) for edition in EDITIONS]
    heap = array(b"".join(frames))
    length = np.array([len(frame) for frame in frames], np.int32)
    start = np.zeros(len(frames), np.int64)
    np.cumsum(length[:-1], out=start[1:])
    out = Batch.empty(len(frames), len(heap))
    decode_frames(
        heap, start, length, np.full(len(frames), Codec.GBT32960, np.uint8), np.zeros(len(frames), np.uint8), out
    )
    for line, frame in enumerate(frames):
        assert out.reason[line] == 0 or out.kind[line] == 0
        assert out.detail[line] <= max(len(frame), 24), "an error beyond the frame"
        if out.kind[line] in (2, 3):
            assert (out.state[line] <= State.SUSPECT).all()
            spans = out.var[line]
            assert (spans >= 0).all()
            assert (spans[:4].sum(axis=1) <= len(heap)).all()
            assert spans[4].sum() <= len(out.heap)
        decode_frame(frame)
        explain(frame)


# -- MQTT --------------------------------------------------------------------------------------------
_PARSERS: Final[tuple[Callable[[bytes], object], ...]] = (
    packets.parse_connect,
    *(
        functools.partial(parse, version=version)
        for parse in (
            packets.parse_connack, packets.parse_puback, packets.parse_subscribe, packets.parse_suback,
            packets.parse_unsubscribe, packets.parse_unsuback, packets.parse_disconnect,
        )
        for version in (V311, V5)
    ),
)  # fmt: skip


def mqtt(data: bytes) -> None:
    """Every parser on the bytes; the scan kernels against them."""
    packets.connect_version(data)
    with contextlib.suppress(MqttError):
        packets.split(data)
    for parse in _PARSERS:
        with contextlib.suppress(MqttError):
            parse(data)
    if not data:
        return
    raw = array(data)
    status, body, after = scan.next_packet(raw, 0, len(data), 1 << 20)
    for five in (False, True):
        plain: packets.Publish | None = None
        with contextlib.suppress(MqttError):
            plain = packets.parse_publish(data[0], data[1:], V5 if five else V311)
        code, topic, topic_bytes, packet_id, payload, _ = scan.publish_at(raw, data[0], 1, len(data), five)
        assert (code == 0) == (plain is not None), (code, plain)
        if plain is not None:
            assert data[topic : topic + topic_bytes].decode() == plain.topic
            assert (packet_id, data[payload:]) == (plain.packet_id, plain.payload)
        if status == scan.PACKET:
            assert 0 < body <= after <= len(data)
            scan.publish_at(raw, data[0], body, after, five)
        ids, codes = np.zeros(4, np.int32), np.zeros(4, np.uint8)
        n, at, _ = scan.scan_acks(raw, 0, len(data), five, ids, codes)
        assert 0 <= n <= 4
        assert 0 <= at <= len(data)


# -- the journal record, and all that the pipeline does with one -----------------------------------------
def record(data: bytes) -> None:
    """Bytes as a record; as the body of one whose header and check sum are right; as a frame of one."""
    bodies = [data]
    if len(data) >= 5:
        flags, count = data[0], int.from_bytes(data[1:3], "little")
        body = data[5:]
        size = len(body) if flags & 0x80 else int.from_bytes(data[3:5], "little")
        bodies.append(HEADER.pack(b"NJ", 1, flags & 0x7F, count, size, zlib.crc32(body)) + body)
    for body in bodies:
        try:
            frames = decode_records([StoredRecord(0, 1, body)])
        except RecordError:
            continue
        assert int(frames.length.sum()) == len(frames.data)
        assert len(frames.source) == frames.n
        assert not frames.n or frames.source.max() <= len(frames.sources)
        _through_the_pipeline(body)
    if len(data) > 3:
        door, codec, reason = data[0], data[1] % 10, data[2] % 20
        n = np.ones(1, np.uint32)
        refused = (np.array([reason], np.uint8), n, n, [{"peer": "1.2.3.4:5", "vin": VIN, "client": ""}])
        rest = data[3:]
        for frame in (rest, build_frame(16 + 9 * (door & 1), rest[0], 0xFE, VIN, 1, rest[1:60000])):
            _through_the_pipeline(
                encode_record(
                    frame, np.array([len(frame)], np.uint32), np.array([1_780_000_000_000_000], np.int64),
                    np.array([door], np.uint8), np.array([codec], np.uint8), refused if reason else None,
                )
            )  # fmt: skip


def _through_the_pipeline(body: bytes) -> None:
    """A record that nothing is wrong with may hold any frames: the pipeline must not stop at one."""
    table = VehicleTable(4)
    decoded = decode([StoredRecord(0, 1, body)], table, 300, 30)
    ids = list(range(1, len(decoded.new_vins) + 1))
    prepared = build(decoded, ids, table, {0: (-1, 1)}, Streams())
    counts = prepared.rows.counts[0]
    assert counts["frames"] == prepared.frames == sum(counts[name] for name in counts if name != "frames")


# -- JSON samples -----------------------------------------------------------------------------------------
def json(data: bytes) -> None:
    """Bytes as the payload of either JSON topic, as the door journals it: VIN, then what was published."""
    frame = VIN.encode() + data
    for codec in (Codec.JSON_TELEMETRY, Codec.JSON_BMS):
        _through_the_pipeline(
            encode_record(
                frame, np.array([len(frame)], np.uint32), np.array([1_780_000_000_000_000], np.int64),
                np.array([DoorNumber.MQTT], np.uint8), np.array([codec], np.uint8),
            )
        )  # fmt: skip


# -- events of connections -------------------------------------------------------------------------------
def event(data: bytes) -> None:
    """Bytes as an event: one that the store can hold, or none."""
    received = struct.unpack("<q", data[:8])[0] if len(data) >= 8 else 0
    for body in (data, data[8:]):
        found = decode_event(body, received, DoorNumber.MQTT)
        if found is not None:
            assert abs(found.origin) < 2**63
            assert abs(found.number) < 2**63
            assert abs(found.times) < 2**31


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "scanner": scanner,
    "decoder": decoder,
    "mqtt": mqtt,
    "record": record,
    "json": json,
    "event": event,
}
