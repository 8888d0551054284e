"""Frames of the journal, decoded again by the code and the settings of now.  No I/O but the journal's reader.

The same functions as the pipeline's own (``batching.decode``), so that what a replay says is what the pipeline
would store.  It must never register a vehicle or move a position: strangers get provisional ids below zero.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import VIN_BYTES, Codec, Frames
from schemas.gbt32960.check import Secrets
from schemas.gbt32960.digest import digest
from schemas.gbt32960.frame import AT_UNIT
from schemas.replayed import Readable, Redecoded, Unreadable
from schemas.samples.decode import JSON_CODECS
from schemas.seams import JournalReader, KnownVehicles, LetterId, StoredRecord
from services.own_signals import extractor_of, samples_of
from services.pipeline.batching import Decoded, bounded, dead_letter, decode
from services.pipeline.rows import TELEMETRY, StreamBuffer
from services.pipeline.sessions import moment
from services.pipeline.validate import REISSUE, REPORT
from services.pipeline.vehicles import UNKNOWN, VehicleTable
from services.settings import Pipeline as Bounds

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNPACKED_FACTOR: Final = 4  # as in the worker


def microseconds(time: datetime) -> int:
    """Microseconds since 1970; exact."""
    return (time - _EPOCH) // timedelta(microseconds=1)


async def records_between(
    journal: JournalReader, after: Mapping[int, int], ends: Mapping[int, int], bounds: Bounds
) -> AsyncIterator[list[StoredRecord]]:
    """Records beyond ``after`` up to and with ``ends``, in batches that the pipeline would take."""
    reached = {partition: offset for partition, offset in after.items() if offset < ends.get(partition, -1)}
    while reached:
        unread = await journal.read(reached, bounds.batch_bytes_max)
        if not unread:
            return
        for record in unread:
            reached[record.partition] = record.offset
        unread = [record for record in unread if record.offset <= ends[record.partition]]
        while unread:
            records, unread = bounded(unread, bounds.batch_frames_max, _UNPACKED_FACTOR * bounds.batch_bytes_max)
            yield records
        reached = {partition: offset for partition, offset in reached.items() if offset < ends[partition]}


class Redecoder:
    """Decodes batches of records; keeps only the vehicles it has seen.

    ``letters``: the dead letters of the range → whether nothing was done about them yet.  ``since`` and ``until``
    bound the arrival of frames, ``vin`` the vehicle.
    """

    def __init__(
        self,
        bounds: Bounds,
        known: KnownVehicles,
        letters: Mapping[LetterId, bool],
        since: datetime,
        until: datetime,
        vin: str | None = None,
        secrets: Secrets | None = None,
    ) -> None:
        self._bounds = bounds
        self._secrets = secrets
        self._own_signals = extractor_of(bounds.signals_file)
        self._json = samples_of(bounds.signals_file, bounds.json_limits())
        self._table = VehicleTable.of(known)
        self._letters = letters
        self._letter_offsets = np.array(sorted({offset for _, offset, _ in letters}), np.int64)
        self._since, self._until = microseconds(since), microseconds(until)
        self._vin = vin
        self._strangers = 0
        self._buffer = StreamBuffer("telemetry", TELEMETRY, sparse=True)

    def batch(self, records: Sequence[StoredRecord]) -> Redecoded:
        """What these records are now."""
        bounds = self._bounds
        decoded = decode(
            records,
            self._table,
            bounds.clock_future_max_s,
            bounds.clock_past_max_days,
            self._own_signals,
            self._secrets,
            self._json,
        )
        frames, batch = decoded.frames, decoded.batch
        new = self._add_strangers(decoded)
        inside = (frames.received_us >= self._since) & (frames.received_us < self._until)
        if self._vin is not None:
            inside &= self._of_vehicle(decoded, self._vin)
        reporting = np.isin(batch.kind[decoded.lines], (REPORT, REISSUE)) & (decoded.why[decoded.lines] == 0)
        chosen = reporting & inside[decoded.lines]
        lines, rows = decoded.lines[chosen], decoded.rows[chosen]
        readable = self._readable(decoded, inside)
        unreadable, refused = self._unreadable(decoded, inside)
        used = set(self._table.vehicle_id[rows].tolist()) | {one.vehicle_id for one in readable}
        return Redecoded(
            rows=self._buffer.write(frames, batch, lines, self._table.vehicle_id[rows]),
            new={key: vin for key, vin in new.items() if key in used} | self._known_strangers(used, new),
            readable=readable,
            unreadable=unreadable,
            frames=int(inside.sum()),
            refused=refused,
            damaged=len(decoded.damaged),
            upto=int(frames.received_us.max()) if frames.n else 0,
        )

    def _add_strangers(self, decoded: Decoded) -> dict[int, str]:
        """Provisional ids for the vehicles that the store does not know; fills the open rows of ``decoded``."""
        if not decoded.new_vins:
            return {}
        ids = -np.arange(1, len(decoded.new_vins) + 1, dtype=np.int64) - self._strangers
        self._strangers += len(ids)
        vins = np.array(decoded.new_vins, f"S{VIN_BYTES}").view(np.uint8).reshape(-1, VIN_BYTES)
        added = self._table.add(vins, ids)
        fresh = decoded.rows == UNKNOWN
        decoded.rows[fresh] = added[decoded.new_of[fresh]]
        return dict(zip(ids.tolist(), decoded.new_vins, strict=True))

    def _known_strangers(self, used: set[int | None], new: Mapping[int, str]) -> dict[int, str]:
        """Strangers of earlier batches, who may be used for the first time now."""
        earlier = {key for key in used if key is not None and key < 0 and key not in new}
        if not earlier:
            return {}
        ids = self._table.vehicle_id[: self._table.n]
        return {
            int(ids[row]): self._table.vins[row].tobytes().rstrip(b"\0").decode("ascii")
            for row in np.flatnonzero(np.isin(ids, list(earlier))).tolist()
        }

    def _of_vehicle(self, decoded: Decoded, vin: str) -> NDArray[np.bool_]:
        frames = decoded.frames
        mask = np.zeros(frames.n, bool)
        wanted = np.frombuffer(vin.encode("ascii").ljust(VIN_BYTES, b"\0"), np.uint8)
        mask[decoded.lines] = (self._table.vins[decoded.rows] == wanted).all(axis=1)
        for line in np.flatnonzero(decoded.why).tolist():
            mask[line] = dead_letter(decoded, line).vin == vin
        return mask

    def _place(self, frames: Frames, line: int) -> LetterId:
        return int(frames.partition[line]), int(frames.offset[line]), int(frames.position[line])

    def _readable(self, decoded: Decoded, inside: NDArray[np.bool_]) -> list[Readable]:
        """Open dead letters among the frames that are accepted now."""
        frames, batch = decoded.frames, decoded.batch
        found: list[Readable] = []
        row_of: dict[int, int] | None = None
        candidates = inside & (decoded.why == 0) & np.isin(frames.offset, self._letter_offsets)
        for line in np.flatnonzero(candidates).tolist():
            place = self._place(frames, line)
            if not self._letters.get(place, False):
                continue
            if row_of is None:
                row_of = dict(zip(decoded.lines.tolist(), decoded.rows.tolist(), strict=True))
            row = row_of.get(line)
            report = row is not None and int(batch.kind[line]) in (REPORT, REISSUE)
            login = decoded.sessions.get(line)
            found.append(
                Readable(
                    letter=place,
                    became="rows" if report else "sessions" if login else "other",
                    received=moment(int(frames.received_us[line])),
                    vehicle_id=None if row is None else int(self._table.vehicle_id[row]),
                    key=(int(batch.time_s[line]), int(batch.kind[line]), int(batch.part[line])) if report else None,
                    digest=int(batch.digest[line]) if report else 0,
                    login=login,
                )
            )
        return found

    def _unreadable(self, decoded: Decoded, inside: NDArray[np.bool_]) -> tuple[list[Unreadable], int]:
        """Frames that are refused and are no dead letter; and how many are one still.

        What the gateway refused was never a row: it is left out, also when its letter was pruned.
        """
        frames = decoded.frames
        found: list[Unreadable] = []
        refused = 0
        for line in np.flatnonzero(inside & (decoded.why != 0)).tolist():
            if frames.reason[line] or self._place(frames, line) in self._letters:
                refused += 1
            else:
                found.append(Unreadable(dead_letter(decoded, line), _digest(decoded, line)))
        return found, refused


def _digest(decoded: Decoded, line: int) -> int:
    """The content key of a frame's data unit or of a sample, as the decoder has it; 0 when there is none."""
    frames = decoded.frames
    if frames.codec[line] in JSON_CODECS:
        return int(decoded.batch.digest[line])
    begin, length = int(frames.start[line]), int(frames.length[line])
    if frames.codec[line] != Codec.GBT32960 or length <= AT_UNIT + 1:
        return 0
    return int(digest(frames.data, begin + AT_UNIT, begin + length - 1))
