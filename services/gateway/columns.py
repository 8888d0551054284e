"""Column numbers of the small integer tables that the tick's kernels hand to each other.

Each table is an i64 array, one row per item: a kernel takes few arguments, and a row lies in one
or two cache lines.  Nothing here computes.
"""

from __future__ import annotations

from typing import Final

# Segments: the bytes of one connection that arrived in this tick, as a stretch of the arena.
SEG_SLOT: Final = 0
SEG_AT: Final = 1  # where scanning goes on
SEG_END: Final = 2
SEG_STATE: Final = 3
SEGMENT_COLUMNS: Final = 4

SEG_SCAN: Final = 0  # to be scanned
SEG_DONE: Final = 1  # what is left, if anything, is an incomplete packet or frame
SEG_ASKED: Final = 2  # stopped behind something that Python must handle first

# Frames found in this tick, accepted and refused.
F_START: Final = 0
F_LENGTH: Final = 1
F_SLOT: Final = 2
F_REASON: Final = 3
F_DETAIL: Final = 4
F_PARTITION: Final = 5
F_SOURCE: Final = 6  # one-based index into the group's sources; 0 for accepted frames
F_ACK: Final = 7  # GB/T: response flag to answer with, 0 for no answer
F_CODEC: Final = 8  # schemas.batch.Codec; a JSON payload is journaled behind its VIN
FRAME_COLUMNS: Final = 9

# Acknowledgements of MQTT publishes.
A_SLOT: Final = 0
A_ID: Final = 1
A_CODE: Final = 2
A_FIRST: Final = 3  # first byte of the answer: PUBACK, PUBREC, or PUBCOMP for a PUBREL
ACK_COLUMNS: Final = 4

# What a kernel leaves to Python.
S_KIND: Final = 0
S_SEGMENT: Final = 1
S_START: Final = 2
S_LENGTH: Final = 3
S_CODE: Final = 4
SLOW_COLUMNS: Final = 5

# Frames of a group, one row per frame.
G_START: Final = 0
G_LENGTH: Final = 1
G_RECEIVED: Final = 2
G_DOOR: Final = 3
G_REASON: Final = 4
G_DETAIL: Final = 5
G_PARTITION: Final = 6
G_SOURCE: Final = 7
G_CODEC: Final = 8
GROUP_COLUMNS: Final = 9

# Answers of a group: contiguous bytes for one connection.
SPAN_SLOT: Final = 0
SPAN_SERIAL: Final = 1
SPAN_BEGIN: Final = 2
SPAN_END: Final = 3
SPAN_ACKS: Final = 4
SPAN_COLUMNS: Final = 5

# Of a refused item so much is kept: the largest frame, whole, because one that is cut could not be requeued.
REFUSED_BYTES_MAX: Final = 65_556
