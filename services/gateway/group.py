"""A group: the frames and answers of some ticks that go to the journal together.

Two of them take turns (one being written, one filling), so their arrays are made once and used
again.  A group knows no sockets and no journal.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.batch import I32, I64, U8, VIN_BYTES, Codec
from schemas.gbt32960.replies import REPLY_BYTES_MAX
from schemas.journal.record import encode_record
from services.gateway.columns import (
    F_CODEC,
    F_LENGTH,
    G_DOOR,
    G_REASON,
    GROUP_COLUMNS,
    SPAN_COLUMNS,
    SPAN_SERIAL,
)
from services.gateway.gather import (
    PUBACK_BYTES_MAX,
    absorb,
    by_partition,
    merge_spans,
    write_pubacks,
    write_replies,
)
from services.gateway.secrets import blot_passwords

_BYTES_MIN: Final = 256 * 1024
_ROWS_MIN: Final = 1024
_NO_VIN: Final[U8] = np.zeros((1, VIN_BYTES), np.uint8)


def _grown(array: np.ndarray, need: int) -> np.ndarray:
    """``array`` when it has ``need`` rows, else a longer copy."""
    if need <= len(array):
        return array
    longer = np.empty((max(need, 2 * len(array)), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


class Group:
    """Frames in arrival order (``rows``, G_*, over ``data``) and answers (``spans``, SPAN_*, over ``answers``)."""

    def __init__(self) -> None:
        self.data: U8 = np.empty(_BYTES_MIN, np.uint8)
        self.rows: I64 = np.empty((_ROWS_MIN, GROUP_COLUMNS), np.int64)
        self.answers: U8 = np.empty(_BYTES_MIN // 8, np.uint8)
        self.spans: I64 = np.empty((_ROWS_MIN, SPAN_COLUMNS), np.int64)
        # what a commit needs besides; made here so that a steady load allocates nothing large
        self._ordered: U8 = np.empty(_BYTES_MIN, np.uint8)
        self._merged_bytes: U8 = np.empty(_BYTES_MIN // 8, np.uint8)
        self.clear()

    def clear(self) -> None:
        self.n = 0
        self.data_bytes = 0
        self.answer_bytes = 0
        self.n_spans = 0
        self.sources: list[dict[str, str]] = []
        self.refused = 0
        self.oldest_s: dict[int, float] = {}  # door → loop time of its oldest frame
        self.events: list[tuple[int, int, int, bytes]] = []  # (partition, received_us, door, payload)
        self.event_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that memory holds for this group (frames and answers, not the spare room)."""
        return self.data_bytes + self.answer_bytes + self.event_bytes

    @property
    def empty(self) -> bool:
        return self.n == 0 and self.n_spans == 0 and not self.events

    def absorb(
        self, arena: U8, frames: I64, n: int, door: int, received_us: int, now_s: float, vin: U8 = _NO_VIN
    ) -> None:
        """Take in the first ``n`` of ``frames`` (columns F_*), whose bytes lie in ``arena``.

        ``vin`` (slots, 17): who the connections speak for; asked for when a payload is JSON.
        """
        more = int(frames[:n, F_LENGTH].sum()) + VIN_BYTES * int((frames[:n, F_CODEC] != Codec.GBT32960).sum())
        self.data = _grown(self.data, self.data_bytes + more)
        self.rows = _grown(self.rows, self.n + n)
        self.data_bytes = int(
            absorb(arena, frames, n, vin, door, received_us, self.data_bytes, self.data, self.rows[self.n :])
        )
        self.n += n
        self.oldest_s.setdefault(door, now_s)

    def answer_publishes(self, acks: I64, n: int, serial: I64, unacked: I32) -> None:
        """PUBACKs for the first ``n`` of ``acks`` (columns A_*)."""
        self.answers = _grown(self.answers, self.answer_bytes + n * PUBACK_BYTES_MAX)
        self.spans = _grown(self.spans, self.n_spans + n)
        self.answer_bytes, self.n_spans = write_pubacks(
            acks, n, serial, self.answer_bytes, self.n_spans, self.answers, self.spans, unacked
        )

    def answer_frames(self, arena: U8, frames: I64, n: int, serial: I64) -> None:
        """GB/T replies that the first ``n`` of ``frames`` ask for (column F_ACK)."""
        self.answers = _grown(self.answers, self.answer_bytes + n * REPLY_BYTES_MAX)
        self.spans = _grown(self.spans, self.n_spans + n)
        self.answer_bytes, self.n_spans = write_replies(
            arena, frames, n, serial, self.answer_bytes, self.n_spans, self.answers, self.spans
        )

    def answer(self, slot: int, serial: int, data: bytes) -> None:
        """Bytes of our own for one connection."""
        end = self.answer_bytes + len(data)
        self.answers = _grown(self.answers, end)
        self.spans = _grown(self.spans, self.n_spans + 1)
        self.answers[self.answer_bytes : end] = np.frombuffer(data, np.uint8)
        self.spans[self.n_spans] = (slot, serial, self.answer_bytes, end, 0)
        self.answer_bytes = end
        self.n_spans += 1

    def records(self, partitions: int) -> list[tuple[int, bytes]]:
        """One journal record per partition that has frames, and one per partition that has events."""
        return [*self._frame_records(partitions), *self._event_records()]

    def _event_records(self) -> list[tuple[int, bytes]]:
        by_partition: dict[int, list[tuple[int, int, int, bytes]]] = {}
        for event in self.events:
            by_partition.setdefault(event[0], []).append(event)
        return [
            (
                partition,
                encode_record(
                    b"".join(payload for *_, payload in events),
                    np.array([len(payload) for *_, payload in events], np.uint32),
                    np.array([received_us for _, received_us, _, _ in events], np.int64),
                    np.array([door for _, _, door, _ in events], np.uint8),
                    np.full(len(events), Codec.EVENT, np.uint8),
                ),
            )
            for partition, events in by_partition.items()
        ]

    def _frame_records(self, partitions: int) -> list[tuple[int, bytes]]:
        n = self.n
        if n == 0:
            return []
        self._ordered = _grown(self._ordered, self.data_bytes)
        ordered = self._ordered
        received = np.empty(n, np.int64)
        small = np.empty((3, n), np.uint8)
        large = np.empty((3, n), np.uint32)
        detail_source, length = large[:2], large[2]
        bounds = np.empty((partitions + 1, 2), np.int64)
        by_partition(self.data, self.rows, n, ordered, length, received, small, detail_source, bounds)
        blot_passwords(ordered, length, small[2])
        view = memoryview(ordered.data)
        made = []
        for partition in range(partitions):
            (first, begin), (last, end) = bounds[partition].tolist(), bounds[partition + 1].tolist()
            if first == last:
                continue
            refused = None
            reason = small[1, first:last]
            if self.refused and reason.any():
                source, sources = self._sources_of(detail_source[1, first:last])
                refused = (reason, detail_source[0, first:last], source, sources)
            made.append(
                (
                    partition,
                    encode_record(
                        view[begin:end],
                        length[first:last],
                        received[first:last],
                        small[0, first:last],
                        small[2, first:last],
                        refused,
                    ),
                )
            )
        return made

    def _sources_of(self, source: np.ndarray) -> tuple[np.ndarray, list[dict[str, str]]]:
        """Source indices renumbered for one record, and the sources it names."""
        used, inverse = np.unique(source, return_inverse=True)
        named = used[used > 0]
        shift = 0 if len(named) < len(used) else 1  # without a 0 among them, the first is number 1
        return (inverse + shift).astype(np.uint32), [self.sources[i - 1] for i in named.tolist()]

    def merged_answers(self, serial: I64, unacked: I32) -> tuple[memoryview, list[list[int]]]:
        """Answers per connection that is still there: bytes, and rows of (slot, serial, begin, end, acks)."""
        n = self.n_spans
        if n == 0:
            return memoryview(b""), []
        self._merged_bytes = _grown(self._merged_bytes, self.answer_bytes)
        merged = np.empty((n, SPAN_COLUMNS), np.int64)
        order = np.argsort(self.spans[:n, SPAN_SERIAL], kind="stable")
        count = merge_spans(self.answers, self.spans, order, serial, self._merged_bytes, merged, unacked)
        return memoryview(self._merged_bytes.data), merged[:count].tolist()

    def counts(self) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
        """Frames accepted per door, and refused per (door, reason)."""
        door_reason = self.rows[: self.n, G_DOOR] * 256 + self.rows[: self.n, G_REASON]
        accepted: dict[int, int] = {}
        refused: dict[tuple[int, int], int] = {}
        for key, count in enumerate(np.bincount(door_reason).tolist() if self.n else ()):
            if count and key % 256:
                refused[key // 256, key % 256] = count
            elif count:
                accepted[key // 256] = count
        return accepted, refused
