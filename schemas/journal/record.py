"""The journal record, version 1: many raw frames of one partition in one block of bytes.

============  =====  =============================================================
offset        bytes  content (little-endian)
============  =====  =============================================================
0             2      ``NJ``
2             1      version, 1
3             1      flags: bit 0 body compressed with zstd, bit 1 the record holds refused frames
4             4      frames ``n``
8             4      bytes of the body before compression
12            4      CRC-32 of the body as stored
16            …      body
============  =====  =============================================================

Body: received_us i64[n], length u32[n], door u8[n], codec u8[n]; with flag bit 1 also reason u8[n],
detail u32[n], source u32[n], and a u32 size with that many bytes of JSON (``Frames.sources``); then
the frames back to back.  An unknown version or a wrong CRC is an error, never a guess.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import orjson
import zstandard
from numpy.typing import NDArray

from schemas.batch import I32, I64, U8, U32, Frames
from schemas.seams import StoredRecord

MAGIC: Final = b"NJ"
VERSION: Final = 1
COMPRESSED: Final = 1
HAS_REFUSED: Final = 2
HEADER: Final = struct.Struct("<2sBBIII")

# Level 1: 96-cell reports shrink to about a third at several hundred MB/s; level 3 gains a tenth
# and costs twice the time.  Bodies below 256 bytes do not gain enough to be worth the call.
_LEVEL: Final = 1
_COMPRESS_FROM: Final = 256

# A body that claims more than this is damage or an attack, not a record we wrote.
BODY_BYTES_MAX: Final = 256 * 1024 * 1024
# Arrival times lie between 1970 and 2200: everything after this module makes dates of them.
_RECEIVED_US_MAX: Final = 7_258_118_400_000_000


class _Zstd(threading.local):
    """Contexts that are used again: making one costs 8 µs, as much as compressing ten frames.  One a thread."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd: Final = _Zstd()


class RecordError(ValueError):
    """The bytes are not a journal record of a version this program reads."""


def encode_record(
    frames: bytes | memoryview,
    length: NDArray[np.uint32],
    received_us: I64,
    door: U8,
    codec: U8,
    refused: tuple[U8, U32, U32, list[dict[str, str]]] | None = None,
) -> bytes:
    """One record from frames that lie back to back in ``frames``; all arrays have one item per frame.

    ``refused`` is (reason, detail, source, sources) when any frame was refused, else None.
    """
    flags = 0
    parts: list[bytes | memoryview] = [
        received_us.astype("<i8", copy=False).tobytes(),
        length.astype("<u4", copy=False).tobytes(),
        door.tobytes(),
        codec.tobytes(),
    ]
    if refused is not None:
        flags |= HAS_REFUSED
        reason, detail, source, sources = refused
        table = orjson.dumps(sources)
        parts += [
            reason.tobytes(),
            detail.astype("<u4", copy=False).tobytes(),
            source.astype("<u4", copy=False).tobytes(),
            struct.pack("<I", len(table)),
            table,
        ]
    parts.append(frames)
    body = b"".join(parts)
    size = len(body)
    if size >= _COMPRESS_FROM:
        packed = _zstd.compressor.compress(body)
        if len(packed) < size:
            body = packed
            flags |= COMPRESSED
    return HEADER.pack(MAGIC, VERSION, flags, len(length), size, zlib.crc32(body)) + body


def _body_of(record: StoredRecord) -> tuple[int, int, bytes]:
    """(frames, flags, raw body) of a record, checked."""
    where = f"journal record at partition {record.partition} offset {record.offset}"
    if len(record.body) < HEADER.size:
        raise RecordError(f"{where}: {len(record.body)} bytes, shorter than its {HEADER.size}-byte header")
    magic, version, flags, count, size, crc = HEADER.unpack_from(record.body)
    if magic != MAGIC or version != VERSION:
        raise RecordError(
            f"{where}: starts {magic!r} version {version}; this program reads {MAGIC!r} version {VERSION}"
        )
    body = record.body[HEADER.size :]
    if zlib.crc32(body) != crc:
        raise RecordError(f"{where}: the CRC-32 of its {len(body)} bytes is wrong, the record is damaged")
    if flags & COMPRESSED:
        if size > BODY_BYTES_MAX:
            raise RecordError(f"{where}: claims {size} bytes, more than the {BODY_BYTES_MAX} allowed")
        try:
            # the frame's own size outranks max_output_size, and is allocated before a byte is unpacked
            if (inside := zstandard.frame_content_size(body)) not in (-1, size):
                raise RecordError(f"{where}: {inside} bytes inside where its header says {size}")
            body = _zstd.decompressor.decompress(body, max_output_size=size)
        except zstandard.ZstdError as error:
            raise RecordError(f"{where}: {error}") from error
    if len(body) != size:
        raise RecordError(f"{where}: {len(body)} bytes where its header says {size}")
    return count, flags, body


def _sources_in(text: bytes) -> list[dict[str, str]]:
    table = orjson.loads(text)
    if not isinstance(table, list) or not all(
        isinstance(one, dict) and all(isinstance(value, str) for value in one.values()) for one in table
    ):
        raise ValueError("the table of sources is not a list of objects of texts")
    return table


def decode_records(records: Sequence[StoredRecord]) -> Frames:
    """All frames of ``records``, in order, as one :class:`Frames`.  Raises :class:`RecordError`."""
    columns: dict[str, list[NDArray[np.generic]]] = {
        name: []
        for name in (
            "received_us",
            "length",
            "door",
            "codec",
            "reason",
            "detail",
            "source",
            "partition",
            "offset",
            "position",
        )
    }
    chunks: list[U8] = []
    sources: list[dict[str, str]] = []
    for record in records:
        n, flags, body = _body_of(record)
        at = 0

        def take(dtype: str, count: int = n, body: bytes = body) -> NDArray[np.generic]:
            nonlocal at
            array: NDArray[np.generic] = np.frombuffer(body, dtype, count, at)
            at += array.nbytes
            return array

        try:
            received = take("<i8")
            if n and not 0 <= int(received.min()) <= int(received.max()) < _RECEIVED_US_MAX:
                raise ValueError("arrival times outside 1970 to 2199")
            columns["received_us"].append(received)
            columns["length"].append(take("<u4"))
            columns["door"].append(take("u1"))
            columns["codec"].append(take("u1"))
            if flags & HAS_REFUSED:
                columns["reason"].append(take("u1"))
                columns["detail"].append(take("<u4"))
                source = take("<u4").astype(np.uint32)
                (table_bytes,) = struct.unpack_from("<I", body, at)
                at += 4
                table = _sources_in(body[at : at + table_bytes])
                at += table_bytes
                if n and int(source.max()) > len(table):
                    raise ValueError(f"source {int(source.max())} of {len(table)}")
                columns["source"].append(np.where(source > 0, source + np.uint32(len(sources)), 0))
                sources += table
            else:
                columns["reason"].append(np.zeros(n, np.uint8))
                columns["detail"].append(np.zeros(n, np.uint32))
                columns["source"].append(np.zeros(n, np.uint32))
        except (ValueError, struct.error) as error:
            raise RecordError(
                f"journal record at partition {record.partition} offset {record.offset}: {n} frames do not fit "
                f"its body of {len(body)} bytes ({error})"
            ) from error
        frames = np.frombuffer(body, np.uint8, -1, at) if at < len(body) else np.empty(0, np.uint8)
        if int(columns["length"][-1].astype(np.int64).sum()) != len(frames):
            raise RecordError(
                f"journal record at partition {record.partition} offset {record.offset}: frame lengths add up to "
                f"{int(columns['length'][-1].astype(np.int64).sum())} bytes, the record holds {len(frames)}"
            )
        chunks.append(frames)
        columns["partition"].append(np.full(n, record.partition, np.int32))
        columns["offset"].append(np.full(n, record.offset, np.int64))
        columns["position"].append(np.arange(n, dtype=np.int32))

    def joined(name: str, dtype: type[np.generic]) -> NDArray[np.generic]:
        found = columns[name]
        return np.concatenate(found).astype(dtype, copy=False) if found else np.empty(0, dtype)

    length: I32 = joined("length", np.int32)  # type: ignore[assignment]
    start = np.zeros(len(length), np.int64)
    np.cumsum(length[:-1], out=start[1:])
    return Frames(
        data=np.concatenate(chunks) if chunks else np.empty(0, np.uint8),
        start=start,
        length=length,
        received_us=joined("received_us", np.int64),  # type: ignore[arg-type]
        door=joined("door", np.uint8),  # type: ignore[arg-type]
        codec=joined("codec", np.uint8),  # type: ignore[arg-type]
        reason=joined("reason", np.uint8),  # type: ignore[arg-type]
        detail=joined("detail", np.uint32),  # type: ignore[arg-type]
        source=joined("source", np.uint32),  # type: ignore[arg-type]
        partition=joined("partition", np.int32),  # type: ignore[arg-type]
        offset=joined("offset", np.int64),  # type: ignore[arg-type]
        position=joined("position", np.int32),  # type: ignore[arg-type]
        sources=sources,
    )


def check_partitions(records: Sequence[tuple[int, bytes]], partitions: int) -> None:
    """Raise ``ValueError`` when one of (partition, record) is for a partition that a journal of so many has not."""
    for partition, _ in records:
        if not 0 <= partition < partitions:
            raise ValueError(f"partition {partition} is not one of the journal's {partitions}")


def split_record(body: bytes, bytes_max: int) -> list[bytes]:
    """The frames of a record as several of at most ``bytes_max`` bytes, in their order; no frame is divided.

    A single frame that is larger stays a record of its own.  Raises :class:`RecordError`.
    """
    frames = decode_records([StoredRecord(0, 0, body)])
    refused = bool(frames.sources) or bool(frames.reason.any()) or bool(frames.detail.any())

    def encoded(first: int, last: int) -> list[bytes]:
        part = slice(first, last)
        begin = int(frames.start[first])
        made = encode_record(
            frames.data[begin : int(frames.start[last - 1] + frames.length[last - 1])].tobytes(),
            frames.length[part].astype(np.uint32),
            frames.received_us[part],
            frames.door[part],
            frames.codec[part],
            (frames.reason[part], frames.detail[part], frames.source[part], frames.sources) if refused else None,
        )
        if len(made) <= bytes_max or last - first == 1:
            return [made]
        middle = (first + last) // 2
        return encoded(first, middle) + encoded(middle, last)

    return encoded(0, frames.n) if frames.n else [body]
