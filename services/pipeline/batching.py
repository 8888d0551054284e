"""One micro-batch: journal records in, a :class:`RowBatch` out.  No I/O; runs in the pipeline's thread.

Every frame of a record ends in exactly one of: row (a report), rejected (dead letter), session (login
or logout), other (events of connections, and commands whose frame in the journal is all there is to
keep).  The counts say so per partition, and are checked here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I64, U8, U32, VIN_BYTES, Batch, Codec, CopyStream, DeadLetter, Door, Frames, Login, RowBatch
from schemas.custom.extract import Extractor
from schemas.gbt32960.check import Secrets
from schemas.gbt32960.commands import Ack
from schemas.gbt32960.decode import decode_frames
from schemas.gbt32960.frame import AT_ACK, AT_UNIT, AT_VIN, vin_ok
from schemas.journal.record import HEADER, RecordError, decode_records
from schemas.keyring import ExchangedKey
from schemas.link_events import LinkEvent
from schemas.reasons import CODE
from schemas.samples.decode import JSON_CODECS, Decoder, letter_frame, point_at_time, split_payloads
from schemas.seams import StoredRecord
from services.pipeline.changes import changes_of
from services.pipeline.poison import Aside
from services.pipeline.rows import TELEMETRY, VEHICLE_STATE, StreamBuffer
from services.pipeline.secrets import Opened, open_frames, verify_signatures
from services.pipeline.sessions import PLATFORM_COMMANDS, VEHICLE_COMMANDS, link_events, moment, session_of
from services.pipeline.validate import REISSUE, REPORT, validate
from services.pipeline.vehicles import UNKNOWN, VehicleTable, classify

log = logging.getLogger(__name__)

_ROWS, _REJECTED, _SESSIONS, _OTHER = range(4)
_CLASSES: Final = ("rows", "rejected", "sessions", "other")
REPLY: Final = 0xFF  # no command has this id
_SECONDS_PER_DAY: Final = 86_400
_STRUCTURE: Final = CODE["structure"]
_BAD_VIN: Final = CODE["bad_vin"]
_UNKNOWN_TOPIC: Final = CODE["unknown_topic"]
_POISON: Final = CODE["poison"]
_TORN: Final = CODE["torn_record"]


def bounded(
    records: Sequence[StoredRecord], frames_max: int, bytes_max: int
) -> tuple[list[StoredRecord], list[StoredRecord]]:
    """``records`` split in (this batch, the rest): at most so many frames and uncompressed bytes, but one record.

    Read off the record headers, before anything is decompressed: a small record can hold very much.
    """
    frames = size = 0
    for i, record in enumerate(records):
        if len(record.body) >= HEADER.size:
            _, _, _, n, body_bytes, _ = HEADER.unpack_from(record.body)
            frames += n
            size += body_bytes
        if i and (frames > frames_max or size > bytes_max):
            return list(records[:i]), list(records[i:])
    return list(records), []


def read_frames(records: Sequence[StoredRecord], aside: Aside | None = None) -> tuple[Frames, list[DeadLetter]]:
    """Frames of all readable records, and a dead letter for each torn one (its bytes, whole).

    ``aside``: what to refuse of a single record as poison.
    """
    if aside is not None and aside.whole is not None:
        return decode_records([]), [_whole(record, _POISON, aside.whole) for record in records]
    damaged: list[DeadLetter] = []
    try:
        frames = decode_records(records)
    except RecordError:
        frames, damaged = _read_one_by_one(records)
    if aside is not None and frames.n:
        lines = list(aside.frames)
        frames.reason[lines], frames.detail[lines] = _POISON, 0
    return frames, damaged


def _read_one_by_one(records: Sequence[StoredRecord]) -> tuple[Frames, list[DeadLetter]]:
    good: list[StoredRecord] = []
    damaged: list[DeadLetter] = []
    for record in records:
        try:
            decode_records([record])
        except RecordError as error:
            log.error("%s; it is put aside whole as a dead letter and the reading goes on", error)
            damaged.append(_whole(record, _TORN, str(error)))
        else:
            good.append(record)
    return decode_records(good), damaged


def _whole(record: StoredRecord, reason: int, error: str) -> DeadLetter:
    """A dead letter of a whole record."""
    return DeadLetter(
        partition=record.partition, offset=record.offset, position=0, received=datetime.now(UTC), reason=reason,
        detail=0, door=0, codec=0, vin=None, peer=None, client=None, frame=record.body, error=error,
    )  # fmt: skip


@dataclass(slots=True)
class Decoded:
    """A batch that is decoded and checked, its vehicles looked up but not yet all known.

    why (n,) u8, detail (n,) u32: the reason a line is refused, 0 = it is not · lines, rows: reports and
    the vehicles' logins and logouts in arrival order, with their table rows (``UNKNOWN`` = to be registered) ·
    sessions: line → login or logout, its vehicle's id still open · new_vins: what is to be registered, sorted ·
    new_of (len(lines),): index into ``new_vins``, or -1.
    """

    frames: Frames
    batch: Batch
    damaged: list[DeadLetter]
    why: U8
    detail: U32
    lines: I64
    rows: I64
    sessions: dict[int, Login]
    new_vins: list[str]
    new_of: I64
    flaws: I64
    events: list[LinkEvent] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    own_flaws: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (signal of a signals file, state) → times
    cipher: Mapping[int, bytes] = field(default_factory=dict)  # line → bytes as they came, of frames opened here
    keys: Sequence[ExchangedKey] = ()
    vin_at: I64 = field(default_factory=lambda: np.zeros(0, np.int64))  # (n,) byte of each line's VIN in the data
    errors: Mapping[int, str] = field(default_factory=dict)  # position → what was raised, of frames that are poison


@dataclass(frozen=True, slots=True)
class Prepared:
    """A row batch ready to commit, and what the metrics say once it is committed."""

    rows: RowBatch
    frames: int
    reports: int
    oldest_us: int | None  # arrival of the oldest frame that came from a vehicle just now
    kinds: Mapping[int, int]  # command id → accepted frames
    reasons: Mapping[int, int]  # reason code → dead letters
    flaws: I64
    seconds: Mapping[str, float]
    own_flaws: Mapping[tuple[str, str], int] = field(default_factory=dict)
    offered: int = 0  # frames that a door has let in just now; events of connections are none
    refused: Mapping[bytes, int] = field(default_factory=dict)  # VIN as claimed → how many of them are refused here
    good: I64 = field(default_factory=lambda: np.zeros(0, np.int64))  # ids of vehicles with reports that are stored
    wrong: I64 = field(default_factory=lambda: np.zeros(0, np.int64))  # ids of the known vehicles in ``refused``


def decode(
    records: Sequence[StoredRecord],
    table: VehicleTable,
    clock_future_max_s: int,
    clock_past_max_days: int,
    own_signals: Extractor | None = None,
    secrets: Secrets | None = None,
    json: Decoder | None = None,
    aside: Aside | None = None,
) -> Decoded:
    """Frames to checked signals, with the vehicles that ``table`` knows; ``own_signals``: those of a signals file.

    ``secrets``: keys; those that vehicles exchange in this batch are added to its ring.  ``json``: decodes JSON
    samples, each of which is a line from here on.  ``aside``: see :func:`read_frames`.
    """
    json = json or Decoder()
    begun = time.perf_counter()
    frames, damaged = read_frames(records, aside)
    unpacked = time.perf_counter()
    frames, samples = split_payloads(frames, json.limits, AT_VIN)
    opened = Opened(frames) if secrets is None else open_frames(frames, secrets)
    frames = opened.frames
    batch = Batch.empty(frames.n, len(frames.data))
    decode_frames(frames.data, frames.start, frames.length, frames.codec, frames.reason, batch)
    opened.refuse(batch)
    json_flaws = json.decode(frames, samples, batch)
    flaws = validate(frames, batch, clock_future_max_s, clock_past_max_days)
    point_at_time(frames, samples, batch)
    if secrets is not None:
        verify_signatures(frames, batch, secrets)

    known_codec = np.isin(frames.codec, (Codec.GBT32960, Codec.EVENT, *JSON_CODECS))
    refused_here = np.where(known_codec, batch.reason, np.uint8(_UNKNOWN_TOPIC))
    why = np.where(frames.reason != 0, frames.reason, refused_here).astype(np.uint8, copy=False)
    detail = np.where(frames.reason != 0, frames.detail, np.where(known_codec, batch.detail, 0)).astype(np.uint32)

    sessions = _sessions(frames, batch, why, detail)
    events = link_events(frames, why)
    lines = np.flatnonzero(np.isin(batch.kind, (REPORT, REISSUE, *VEHICLE_COMMANDS)) & (why == 0))
    rows = table.rows(frames.data, samples.vin_at, lines, 0)
    decoded = Decoded(
        frames,
        batch,
        damaged,
        why,
        detail,
        lines,
        rows,
        sessions,
        [],
        np.full(len(lines), -1, np.int64),
        flaws,
        events,
        cipher=opened.cipher,
        keys=[key for line, key in opened.keys.items() if not why[line]],
        vin_at=samples.vin_at,
        own_flaws=json_flaws,
        errors=aside.frames if aside is not None else {},
    )
    if (rows == UNKNOWN).any():
        _find_new(decoded)
    if own_signals is not None:
        reports = decoded.lines[np.isin(batch.kind[decoded.lines], (REPORT, REISSUE))]
        decoded.own_flaws = own_signals.add_extra(frames, batch, reports).named_flaws() | json_flaws
    decoded.seconds = {"unpack": unpacked - begun, "decode": time.perf_counter() - unpacked}
    return decoded


def _sessions(frames: Frames, batch: Batch, why: U8, detail: U32) -> dict[int, Login]:
    """Line → login or logout; one whose data unit does not parse is refused (``why``, ``detail``).

    A reply that came up, to a command sent down or by mistake, opens no session: its kind becomes ``REPLY``.
    """
    found: dict[int, Login] = {}
    for line in np.flatnonzero(np.isin(batch.kind, (*VEHICLE_COMMANDS, *PLATFORM_COMMANDS)) & (why == 0)).tolist():
        if frames.data[frames.start[line] + AT_ACK] != Ack.COMMAND:
            batch.kind[line] = REPLY
        elif login := session_of(frames, batch, line):
            found[line] = login
        else:
            why[line], detail[line] = _STRUCTURE, AT_UNIT
    return found


def _find_new(decoded: Decoded) -> None:
    """Fill ``new_vins`` and ``new_of``; refuse the lines whose identification cannot be a VIN."""
    strangers = np.flatnonzero(decoded.rows == UNKNOWN)
    at = decoded.vin_at[decoded.lines[strangers]]
    vins = np.ascontiguousarray(decoded.frames.data[at[:, None] + np.arange(VIN_BYTES)])
    unique, inverse = np.unique(vins.view(f"S{VIN_BYTES}").reshape(-1), return_inverse=True)
    raw = np.frombuffer(bytearray(unique.tobytes()), np.uint8)
    good = np.array([bool(vin_ok(raw, k * VIN_BYTES)) for k in range(len(unique))])
    index = np.where(good, np.cumsum(good) - 1, -1)
    decoded.new_vins = [vin.decode("ascii") for vin, well in zip(unique.tolist(), good, strict=True) if well]
    decoded.new_of[strangers] = index[inverse]
    bad = strangers[~good[inverse]]
    if len(bad):
        decoded.why[decoded.lines[bad]] = _BAD_VIN
        decoded.detail[decoded.lines[bad]] = np.where(
            decoded.frames.codec[decoded.lines[bad]] == Codec.GBT32960, AT_VIN, 0
        )
        keep = np.ones(len(decoded.lines), bool)
        keep[bad] = False
        decoded.lines, decoded.rows, decoded.new_of = decoded.lines[keep], decoded.rows[keep], decoded.new_of[keep]


class Streams:
    """The three COPY streams of one batch; two sets take turns, one being committed, one being written."""

    def __init__(self) -> None:
        self.telemetry = StreamBuffer("telemetry", TELEMETRY, sparse=True)
        self.late = StreamBuffer("telemetry", TELEMETRY, sparse=True)
        self.states = StreamBuffer("vehicle_state", VEHICLE_STATE, sparse=False)


def build(
    decoded: Decoded,
    new_ids: Sequence[int],
    table: VehicleTable,
    positions: Mapping[int, tuple[int, int]],
    streams: Streams,
) -> Prepared:
    """The row batch of ``decoded``, once its new VINs have ids (``new_ids``, in the order of ``new_vins``).

    Enters the new vehicles in ``table`` and moves its newest keys on.  ``positions``: partition → (previous,
    new) offset.
    """
    begun = time.perf_counter()
    frames, batch = decoded.frames, decoded.batch
    if len(decoded.new_vins):
        vins = np.array(decoded.new_vins, f"S{VIN_BYTES}").view(np.uint8).reshape(-1, VIN_BYTES)
        added = table.add(vins, np.array(new_ids, np.int64))
        fresh = decoded.rows == UNKNOWN
        decoded.rows[fresh] = added[decoded.new_of[fresh]]
    reporting = np.isin(batch.kind[decoded.lines], (REPORT, REISSUE))
    sorted_out = classify(batch, decoded.lines[reporting], decoded.rows[reporting], table)

    def written(buffer: StreamBuffer, lines: I64, rows: I64, reports: I64 | None = None) -> CopyStream | None:
        return buffer.write(frames, batch, lines, table.vehicle_id[rows], reports)

    # By vehicle, each one's in order: neighbours in the index are then inserted one after the other, and a vehicle's
    # rows lie together. Of a million vehicles that report in turn it is what a frame costs the database least by.
    by_vehicle = np.argsort(table.vehicle_id[sorted_out.fast_row], kind="stable")
    telemetry = written(streams.telemetry, sorted_out.fast[by_vehicle], sorted_out.fast_row[by_vehicle])
    late = written(streams.late, sorted_out.late, sorted_out.late_row)
    states = written(streams.states, sorted_out.newest, sorted_out.newest_row, sorted_out.reports)

    report_lines = decoded.lines[reporting]
    speakers = zip(decoded.lines[~reporting].tolist(), decoded.rows[~reporting].tolist(), strict=True)
    id_of = {line: int(table.vehicle_id[row]) for line, row in speakers}
    logins = [
        replace(login, vehicle_id=id_of.get(line)) for line, login in decoded.sessions.items() if not decoded.why[line]
    ]
    letters = decoded.damaged + [dead_letter(decoded, line) for line in np.flatnonzero(decoded.why).tolist()]
    counts = _counts(decoded, report_lines, logins, positions)
    accepted = decoded.why == 0
    kinds = np.bincount(batch.kind[accepted], minlength=1) if frames.n else np.zeros(1, np.int64)
    reasons = np.bincount(decoded.why)
    by_reason = {code: int(n) for code, n in enumerate(reasons) if code and n}
    for letter in decoded.damaged:
        by_reason[letter.reason] = by_reason.get(letter.reason, 0) + 1
    offered, refused, wrong = _offered(decoded, table)
    return Prepared(
        rows=RowBatch(
            telemetry=telemetry,
            late=late,
            states=states,
            days=np.unique(batch.time_s[report_lines] // _SECONDS_PER_DAY).tolist(),
            logins=logins,
            dead_letters=letters,
            positions=positions,
            counts=counts,
            link_events=decoded.events,
            keys=decoded.keys,
            changes=changes_of(batch, sorted_out, table),
        ),
        frames=frames.n + len(decoded.damaged),
        reports=len(report_lines),
        oldest_us=_oldest(frames),
        kinds={kind: int(n) for kind, n in enumerate(kinds) if n},
        reasons=by_reason,
        flaws=decoded.flaws,
        seconds={**decoded.seconds, "build": time.perf_counter() - begun},
        own_flaws=decoded.own_flaws,
        offered=offered,
        refused=refused,
        good=np.unique(table.vehicle_id[decoded.rows[reporting]]),
        wrong=wrong,
    )


def _offered(decoded: Decoded, table: VehicleTable) -> tuple[int, Mapping[bytes, int], I64]:
    """Frames that a door has let in, by VIN how many of them are refused here, and the ids of those VINs that have one.

    Requeued frames are not counted.
    """
    frames = decoded.frames
    let_in = (frames.reason == 0) | (frames.reason == _POISON)
    let_in &= (frames.door != Door.REQUEUE) & (frames.codec != Codec.EVENT)
    lines = np.flatnonzero(let_in & (decoded.why != 0))
    refused: dict[bytes, int] = {}
    wrong = np.zeros(0, np.int64)
    if len(lines):
        whole = lines[decoded.vin_at[lines] + VIN_BYTES <= len(frames.data)]
        rows = table.rows(frames.data, decoded.vin_at, whole, 0)
        wrong = np.unique(table.vehicle_id[rows[rows != UNKNOWN]])
        at = np.minimum(decoded.vin_at[lines, None] + np.arange(VIN_BYTES), len(frames.data) - 1)
        vins, n = np.unique(frames.data[at].view(f"S{VIN_BYTES}").reshape(-1), return_counts=True)
        refused = dict(zip(vins.tolist(), n.tolist(), strict=True))
    return int(let_in.sum()), refused, wrong


def _oldest(frames: Frames) -> int | None:
    """Arrival of the oldest frame; one that was requeued keeps its arrival of long ago, and is no delay of ours."""
    fresh = frames.received_us[frames.door != Door.REQUEUE]
    return int(fresh.min()) if len(fresh) else None


def dead_letter(decoded: Decoded, line: int) -> DeadLetter:
    """The refused frame in ``line``, with where it came from."""
    frames = decoded.frames
    source: Mapping[str, str] = {}
    index = int(frames.source[line])
    if 0 < index <= len(frames.sources):
        source = frames.sources[index - 1]
    return DeadLetter(
        partition=int(frames.partition[line]),
        offset=int(frames.offset[line]),
        position=int(frames.position[line]),
        received=moment(int(frames.received_us[line])),
        reason=int(decoded.why[line]),
        detail=int(decoded.detail[line]),
        door=int(frames.door[line]),
        codec=int(frames.codec[line]),
        vin=source.get("vin") or _claimed_vin(decoded, line),
        peer=source.get("peer") or None,
        client=source.get("client") or None,
        frame=decoded.cipher.get(line) or _frame(decoded, line),
        error=decoded.errors.get(int(frames.position[line])),
    )


def _frame(decoded: Decoded, line: int) -> bytes:
    """What a dead letter keeps: the frame as it came; of a JSON sample, the VIN and the sample alone."""
    if decoded.frames.codec[line] in JSON_CODECS and not decoded.frames.reason[line]:
        return letter_frame(decoded.frames, int(decoded.vin_at[line]), line)
    return decoded.frames.frame(line)


def _claimed_vin(decoded: Decoded, line: int) -> str | None:
    """The identification in the frame's header when it has one that can be read."""
    at = {Codec.GBT32960: AT_VIN, Codec.JSON_TELEMETRY: 0, Codec.JSON_BMS: 0}.get(int(decoded.frames.codec[line]))  # type: ignore[call-overload]
    if at is None:
        return None
    frame = _frame(decoded, line)
    if len(frame) < at + VIN_BYTES:
        return None
    code = frame[at : at + VIN_BYTES].rstrip(b"\0")
    return code.decode("ascii") if code and all(0x20 <= byte <= 0x7E for byte in code) else None


def _counts(
    decoded: Decoded, report_lines: I64, logins: Sequence[Login], positions: Mapping[int, tuple[int, int]]
) -> dict[int, dict[str, int]]:
    """Partition → frames and what became of them, for the ledger."""
    what: NDArray[np.int64] = np.full(decoded.frames.n, _OTHER, np.int64)
    what[np.isin(decoded.batch.kind, (*VEHICLE_COMMANDS, *PLATFORM_COMMANDS))] = _SESSIONS
    what[report_lines] = _ROWS
    what[decoded.why != 0] = _REJECTED
    table = np.bincount(decoded.frames.partition.astype(np.int64) * len(_CLASSES) + what, minlength=len(_CLASSES))
    counts = {partition: dict.fromkeys(("frames", *_CLASSES), 0) for partition in positions}
    for key in np.flatnonzero(table).tolist():
        partition, kind = divmod(key, len(_CLASSES))
        counts[partition][_CLASSES[kind]] += int(table[key])
    for letter in decoded.damaged:
        counts[letter.partition]["rejected"] += 1
    for line in counts.values():
        line["frames"] = sum(line[name] for name in _CLASSES)
    total = sum(line["frames"] for line in counts.values())
    assert total == decoded.frames.n + len(decoded.damaged), f"{decoded.frames.n} frames, {total} accounted for"
    assert sum(line["sessions"] for line in counts.values()) == len(logins)
    return counts
