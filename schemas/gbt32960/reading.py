"""A report's data unit, cut into its blocks and fields by the edition tables: slow, and plain to read.

The reference decoder, the kernel's twin and the annotated view all start from here.  Never raises on
bad bytes: what cannot be delimited is one opaque rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from schemas.gbt32960.layout import (
    CUSTOM_FIRST,
    CUSTOM_LAST,
    SIGNATURE_TYPE,
    Block,
    Each,
    EditionTable,
    Field,
    Part,
    Values,
)
from schemas.signals import State


class Torn(Exception):
    """A block needs more bytes than the data unit has left; ``at`` is where they end."""

    def __init__(self, at: int) -> None:
        super().__init__(f"bytes end at offset {at}")
        self.at = at


@dataclass(frozen=True, slots=True)
class Reading:
    """One field as it lies in the frame: ``raw`` at byte ``at``."""

    field: Field
    at: int
    raw: int


class Scope(dict[str, "Reading | list[Reading] | list[Scope]"]):
    """Readings of one block or list item, by raw name, in wire order; lists by their key."""

    def raw(self, name: str) -> int:
        found = self[name]
        assert isinstance(found, Reading)
        return found.raw

    def scopes(self, key: str) -> list[Scope]:
        """The structures of an :class:`Each` list."""
        found = self[key]
        assert isinstance(found, list)
        return [item for item in found if isinstance(item, Scope)]

    def readings(self, key: str) -> list[Reading]:
        """The values of a :class:`Values` list."""
        found = self[key]
        assert isinstance(found, list)
        return [item for item in found if isinstance(item, Reading)]


class Role(Enum):
    """What an :class:`Info` turned out to be."""

    BLOCK = "block"  # a type of the edition's table, fully read
    CUSTOM = "custom"  # 0x80-0xFE with its length
    SIGNATURE = "signature"
    OPAQUE = "opaque"  # the rest from an unknown type on
    TRUNCATED = "truncated"  # the rest from a block on that runs past the data unit
    TRAILING = "trailing"  # bytes after the signature


@dataclass(frozen=True, slots=True)
class Info:
    """One information block: its type byte is at ``at``, its body is ``data[body:end]``.

    ``repeated``: a block of this type came before.  A trailing rest has no type byte (``at == body``).
    """

    role: Role
    type: int
    at: int
    body: int
    end: int
    block: Block | None = None
    scope: Scope | None = None
    repeated: bool = False


def read_field(field: Field, data: bytes, at: int, end: int) -> Reading:
    """One field at ``at``; raises :class:`Torn` when it runs past ``end``."""
    if at + field.width > end:
        raise Torn(end)
    return Reading(field, at, int.from_bytes(data[at : at + field.width], "big"))


def count_of(reading: Reading) -> int:
    """Length of the list that a count announces: none at a sentinel (7.0)."""
    return 0 if reading.field.sentinel_of(reading.raw) else reading.raw


def read_parts(parts: tuple[Part, ...], data: bytes, at: int, end: int) -> tuple[Scope, int]:
    """Read ``parts`` from ``data[at:end]``; returns the scope and where the next byte is.  Raises :class:`Torn`."""
    scope = Scope()
    for part in parts:
        if isinstance(part, Field):
            reading = read_field(part, data, at, end)
            scope[part.raw] = reading
            at += part.width
            continue
        counted = scope[part.count]
        assert isinstance(counted, Reading)
        n = count_of(counted)
        if isinstance(part, Values):
            if at + n * part.item.width > end:
                raise Torn(end)
            scope[part.key] = [read_field(part.item, data, at + i * part.item.width, end) for i in range(n)]
            at += n * part.item.width
        else:
            items: list[Scope] = []
            for _ in range(n):
                item, at = read_parts(part.parts, data, at, end)
                items.append(item)
            scope[part.key] = items
    return scope, at


def column_readings(block: Block, scope: Scope) -> Iterator[Reading]:
    """The readings that become signals: the block's own fields, and those of the first item of each list."""
    yield from _column_readings(block.parts, scope)


def _column_readings(parts: tuple[Part, ...], scope: Scope) -> Iterator[Reading]:
    for part in parts:
        if isinstance(part, Field):
            reading = scope[part.raw]
            assert isinstance(reading, Reading)
            if part.signal is not None:
                yield reading
        elif isinstance(part, Each):
            for item in scope.scopes(part.key)[:1]:
                yield from _column_readings(part.parts, item)


def signature_end(data: bytes, at: int, end: int) -> int:
    """Where the signature whose algorithm byte is at ``at`` ends.  Raises :class:`Torn`."""
    at += 1
    for _ in ("R", "S"):
        if at + 2 > end:
            raise Torn(end)
        at += 2 + int.from_bytes(data[at : at + 2], "big")
        if at > end:
            raise Torn(end)
    return at


def _misled(info: Info) -> bool:
    """Whether a list block's own values are impossible, so that its count cannot be believed either."""
    return (
        info.role is Role.BLOCK
        and not info.repeated
        and info.block is not None
        and info.scope is not None
        and not info.block.fixed
        and any(
            reading.field.judge(reading.raw)[0] is State.OUT_OF_RANGE
            for reading in column_readings(info.block, info.scope)
        )
    )


def read_infos(table: EditionTable, data: bytes, at: int, end: int) -> tuple[list[Info], int | None]:
    """Blocks of ``data[at:end]`` (the data unit after its time), in the order sent.

    Also the offset of the block at which nothing could be read at all, else None.  A block that runs
    past the end takes the list block right before it along when that one holds impossible values: its
    count was no count (a motor block sent without one), and nothing may be invented from it.
    """
    infos: list[Info] = []
    seen: set[int] = set()
    while at < end:
        kind = data[at]
        body = at + 1
        block = table.blocks.get(kind)
        try:
            if block is not None:
                scope, after = read_parts(block.parts, data, body, end)
                infos.append(Info(Role.BLOCK, kind, at, body, after, block, scope, repeated=kind in seen))
                seen.add(kind)
            elif CUSTOM_FIRST <= kind <= CUSTOM_LAST:
                if body + 2 > end:
                    raise Torn(end)
                after = body + 2 + int.from_bytes(data[body : body + 2], "big")
                if after > end:
                    raise Torn(end)
                infos.append(Info(Role.CUSTOM, kind, at, body + 2, after))
            elif kind == SIGNATURE_TYPE and table.has_signature:
                after = signature_end(data, body, end)
                infos.append(Info(Role.SIGNATURE, kind, at, body, after))
                if after < end:
                    infos.append(Info(Role.TRAILING, 0, after, after, end))
                break
            else:
                infos.append(Info(Role.OPAQUE, kind, at, body, end))
                break
        except Torn:
            if CUSTOM_FIRST <= kind <= CUSTOM_LAST:
                infos.append(Info(Role.TRUNCATED, kind, at, body, end))
                break
            if infos and _misled(infos[-1]):
                at = infos.pop().at
            if not infos:
                return [], at
            infos.append(Info(Role.TRUNCATED, data[at], at, at + 1, end))
            break
        at = after
    return infos, (None if infos else at)
