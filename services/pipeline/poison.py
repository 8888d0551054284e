"""Records of which some cannot be stored: found by halves, put aside, the rest goes on.

Poison is a frame that raises what nobody foresaw: a fault of ours in decode or build, a value that the database does
not take.  Halves are stored one after the other until a single record is left that raises; its frames are then tried
in a transaction that is taken back, and those that raise are put aside with what they raised.

It must never put a frame aside for what is not the frame's doing: the database being away, a table missing
(``NevstreamError``), or a fault that a record without any frame meets as well.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from schemas.journal.record import HEADER
from schemas.seams import StoredRecord
from services.errors import NevstreamError

log = logging.getLogger(__name__)

_ERROR_CHARS: Final = 2000
# A record whose every frame is poison would cost two attempts a frame; past so many the rest is put aside unseen.
_ATTEMPTS_MAX: Final = 400


@dataclass(frozen=True, slots=True)
class Aside:
    """What is put aside of a single record: position of a frame → what it raised; or the ``whole`` record."""

    frames: Mapping[int, str] = field(default_factory=dict)
    whole: str | None = None


# (records, what of the only one is put aside, keep): stores them in one transaction, or tries to. Once ``stop`` is set
# it returns without having done either.
Store = Callable[[Sequence[StoredRecord], Aside | None, bool], Awaitable[None]]


async def store_apart(records: Sequence[StoredRecord], store: Store, stop: asyncio.Event) -> None:
    """Store ``records`` (in offset order within a partition), poison put aside; stops early when told to.

    Raises what ``store`` raises of no frame's doing.
    """
    piles = [list(records)]
    while piles and not stop.is_set():
        pile = piles.pop()
        try:
            await store(pile, None, True)
        except NevstreamError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is: that is the point
            if len(pile) > 1:
                half = len(pile) // 2
                piles += [pile[half:], pile[:half]]
                continue
            aside = await _aside(pile[0], error, store, stop)
            if aside is not None:
                await store(pile, aside, True)


async def _aside(record: StoredRecord, error: Exception, store: Store, stop: asyncio.Event) -> Aside | None:
    """What must be put aside of ``record``, so that the rest of it can be stored; None when told to stop."""
    where = f"journal record at partition {record.partition} offset {record.offset}"

    async def attempt(aside: Aside) -> Exception | None:
        try:
            await store([record], aside, False)
        except NevstreamError:
            raise
        except Exception as raised:  # noqa: BLE001 - see above
            return raised
        return None

    count = HEADER.unpack_from(record.body)[3] if len(record.body) >= HEADER.size else 0
    if not count or await attempt(Aside(dict.fromkeys(range(count), ""))) is not None:
        whole = Aside(whole=told(error))
        if await attempt(whole) is not None:
            raise error  # not this record's doing
        if stop.is_set():
            return None
        log.error("%s: no frame of it can be stored, it is put aside whole: %s", where, whole.whole)
        return whole
    good: set[int] = set()
    bad: dict[int, str] = {}
    untried = [range(count)]
    attempts = 0
    while untried:
        if stop.is_set():
            return None
        chunk = untried.pop()
        if attempts == _ATTEMPTS_MAX:
            bad.update(dict.fromkeys(chunk, f"not tried: {len(bad)} frames of its record are poison: {told(error)}"))
            continue
        attempts += 1
        raised = await attempt(Aside({at: "" for at in range(count) if at not in good and at not in chunk}))
        if raised is None:
            good.update(chunk)
        elif len(chunk) == 1:
            bad[chunk[0]] = told(raised)
            log.error("%s: frame %d of it is poison and is put aside: %s", where, chunk[0], bad[chunk[0]])
        else:
            half = len(chunk) // 2
            untried += [chunk[half:], chunk[:half]]
    if not bad:
        log.warning("%s: it raised and does so no more: %s", where, told(error))
    return Aside(bad)


def told(error: BaseException) -> str:
    """An exception in a line or two: kind, text, and where in the code."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" [{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno} in {frames[-1].name}]" if frames else ""
    return f"{type(error).__name__}: {str(error).strip()[:_ERROR_CHARS]}{at}"
