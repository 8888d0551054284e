"""CAN frames carried in a custom block: how the block lays them out, and a DBC that says what is in them.

``cantools`` reads the DBC, at load and only when one is named; decoding is done by our own tables.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final

from schemas.custom.model import (
    EXTENDED,
    Bits,
    CanLayout,
    CanMessage,
    CanRule,
    Condition,
    Field,
    Match,
    Mistake,
    Number,
    Signal,
    bits_of,
)
from schemas.custom.places import Path
from schemas.custom.reader import (
    ORDERS,
    SENTINELS,
    Stop,
    Table,
    choice,
    integer,
    nearest,
    number,
    pair,
    sentinels,
    text_of,
)
from schemas.custom.units import snake, unit_end

if TYPE_CHECKING:
    from cantools.database.can import Message as DbcMessage
    from cantools.database.can import Signal as DbcSignal

Define = Callable[[Path, Signal], bool]

_ID_BITS: Final = 0x1FFF_FFFF
_DATA_MAX: Final = 64  # bytes of a CAN FD frame
_SYNTAX: Final = re.compile(r"line (\d+), column (\d+)")
_PART: Final = re.compile(
    r"id (?:u16|u32)|dlc u8|length (?:u8|u16)|data (?:dlc|length|[1-9]|[1-5]\d|6[0-4])|skip [1-9]\d?", re.ASCII
)
_WIDTH: Final = {"u8": 1, "u16": 2, "u32": 4}
_FRAME: Final = (
    'a list such as ["id u32", "dlc u8", "data 8"] of: id u16|u32, dlc u8 (a code, of which 9 to 15 mean 12 to 64 '
    "bytes) or length u8|u16 (bytes), data N|dlc|length, skip N"
)


def can_rule(table: Table, match: Match, directory: FilePath, define: Define) -> CanRule:
    """The rule of a ``[[can]]`` table.  Raises ``Stop`` when it cannot be read; mistakes are noted in the reader."""
    name = table.take("name", text_of, "a name for people", f"0x{match.block:02X}")
    head = table.take("head", integer(0, 65_535), "how many bytes come before the first frame", 0)
    little = table.take("byte_order", choice(ORDERS), '"big" or "little", of id and length', False)
    mask = table.take("id_mask", integer(1, _ID_BITS), "the bits of an id that count, at most 0x1FFFFFFF", _ID_BITS)
    parts = table.take("frame", _parts, _FRAME, needed=True)
    file = directory / table.take("dbc", text_of, "the DBC file's path, from this file's directory", needed=True)
    encoding = table.take("encoding", _encoding, "an encoding such as gb18030, for a DBC that is not UTF-8", "cp1252")
    prefix = table.take("prefix", text_of, "what the names of signals begin with, such as can_", "")
    chosen = table.tables("signal", "a signal of a can block")
    table.finish()
    layout = _layout(table, parts, head, little, mask)
    source = _Dbc(table, file, encoding)
    found: dict[str, list[Field]] = {}

    def take(message: DbcMessage, signal: Signal, field: Field, where: Path) -> None:
        room = layout.data_bytes if layout.data_bytes >= 0 else _DATA_MAX
        if field.bits.end > room:
            table.wrong("frame", f"{signal.source} is in byte {field.bits.end - 1} of its frame, and data has {room}; "
                        "correct data in frame")  # fmt: skip
        elif define(where, signal):
            found.setdefault(message.name, []).append(field)

    if table.has("signal"):
        for each in chosen:
            try:
                take(*_chosen(each, source, prefix))
            except Stop:
                continue
    else:
        for message in source.messages:
            for each_signal in message.signals:
                try:
                    signal, field = source.field(message, each_signal, table, "dbc")
                except Stop:
                    continue
                name_of = prefix + _auto_name(each_signal.name, signal.unit)
                take(message, replace(signal, name=name_of), replace(field, signal=name_of), (*table.path, "dbc"))
    messages: dict[int, CanMessage] = {}
    for message in source.messages:
        fields = found.get(message.name)
        if not fields:
            continue
        key = message.frame_id & mask | (EXTENDED if message.is_extended_frame else 0)
        if key in messages:
            table.wrong("id_mask", f"{message.name} and {messages[key].name} have one id under the mask, "
                        f"0x{key & _ID_BITS:X}; take one of them, or another id_mask")  # fmt: skip
        messages[key] = CanMessage(key, message.name, tuple(fields))
    return CanRule(match, name, layout, tuple(messages.values()))


def _chosen(table: Table, source: _Dbc, prefix: str) -> tuple[DbcMessage, Signal, Field, Path]:
    """A signal named in the TOML file, with what is said of it there."""
    message_name = table.take("message", text_of, "the message's name in the DBC", needed=True)
    signal_name = table.take("signal", text_of, "the signal's name in the DBC", needed=True)
    name = table.take("name", text_of, "a name such as cabin_temp_c")
    text = table.take("text", text_of, "a text")
    unit = table.take("unit", text_of, 'a unit, such as "°C", when the DBC has none or a wrong one')
    message = source.one("message", message_name, source.messages, table)
    dbc_signal = source.one("signal", signal_name, message.signals, table)
    signal, field = source.field(message, dbc_signal, table, "signal")
    field = replace(
        field,
        sentinels=table.take("sentinels", sentinels(field.bits.count), f"{SENTINELS}, in {field.bits.count} bits", ()),
    )
    bounds = table.take("range", pair, "two numbers in the signal's unit, such as [-40, 120]")
    table.finish()
    unit = signal.unit if unit is None else unit
    name = prefix + (name or _auto_name(signal_name, unit))
    if bounds is not None:
        if bounds[0] > bounds[1]:
            table.wrong("range", f"range = [{bounds[0]}, {bounds[1]}] is empty; the lower bound comes first")
            raise Stop
        field = replace(field, low=bounds[0], high=bounds[1])
        _check_reach(table, field, "range")
    signal = replace(
        signal, name=name, text=signal.text if text is None else text, unit=unit, low=field.low, high=field.high
    )
    where = (*table.path, "name" if table.has("name") else "signal")
    return message, signal, replace(field, signal=name), where


def _check_reach(table: Table, field: Field, key: str) -> None:
    if field.number < Number.FLOAT32 and field.raw_bounds()[0] > field.raw_bounds()[1]:
        table.wrong(key, f"no raw value of {field.bits.count} bits lies in [{field.low}, {field.high}] with factor "
                    f"{field.scale} and offset {field.offset}; give a range that some does")  # fmt: skip
        raise Stop


class _Dbc:
    """A DBC file; what is wrong with it is noted at the TOML key that asked for it, or in the DBC itself."""

    def __init__(self, table: Table, file: FilePath, encoding: str) -> None:
        try:
            import cantools
            from cantools.database.can.database import Database
        except ImportError as error:
            table.wrong(
                "dbc", "reading a DBC needs the package cantools; install it with: pip install 'nevstream[dbc]'"
            )
            raise Stop from error
        self._file = str(file)
        try:
            data = file.read_bytes()
        except OSError as error:
            table.wrong("dbc", f"{file}: {error.strerror}; the path is taken from the signals file's directory")
            raise Stop from error
        try:
            text = _text(data, encoding)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            table.wrong(
                "dbc", f"{file}: line {line} is neither UTF-8 nor {encoding}; name its encoding, such as gb18030"
            )
            raise Stop from error
        try:
            database = cantools.database.load_string(text, "dbc", strict=True)
        except cantools.Error as error:
            what = str(error).removeprefix("DBC: ").strip('"')
            at = _SYNTAX.search(what)
            if at:
                what = what.replace(f" at {at[0]}", "")
                table.reader.mistakes.append(Mistake(int(at[1]), int(at[2]), f"not a DBC: {what}", self._file))
            else:
                line, column = _place_in(text, what)
                table.reader.mistakes.append(Mistake(line, column, f"{what} Correct the DBC", self._file))
            raise Stop from error
        assert isinstance(database, Database), "a DBC is a database of CAN messages"
        self.messages: list[DbcMessage] = list(database.messages)

    def one(self, what: str, name: str, among: Sequence[Any], table: Table) -> Any:
        for each in among:
            if each.name == name:
                return each
        names = [each.name for each in among]
        near = nearest(name, names)
        hint = (
            f"did you mean {near}?" if near else f"it has: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        )
        place = f"{table.values['message']} of {self._file}" if what == "signal" else self._file
        table.wrong(what, f"there is no {what} {name!r} in {place}; {hint}")
        raise Stop

    def field(self, message: DbcMessage, signal: DbcSignal, table: Table, key: str) -> tuple[Signal, Field]:
        """Name still open (the DBC's own)."""
        source = f"{message.name}.{signal.name}"
        kind = Number.SIGNED if signal.is_signed else Number.UNSIGNED
        if signal.conversion.is_float:
            if signal.length not in (32, 64):
                table.wrong(
                    key, f"{source} is a float of {signal.length} bits, and only 32 and 64 can be read; leave it out"
                )
                raise Stop
            kind = Number.FLOAT32 if signal.length == 32 else Number.FLOAT64
        try:
            scale, offset = _exact(signal.conversion.scale), _exact(signal.conversion.offset)
            if not scale:
                raise ValueError
        except ValueError:
            table.wrong(key, f"{source}: no reckoning with factor {signal.conversion.scale} and offset "
                        f"{signal.conversion.offset}; correct the DBC, or leave the signal out")  # fmt: skip
            raise Stop from None
        bounds: list[Decimal] = []
        if signal.minimum is not None and signal.maximum is not None:
            try:
                bounds = [_exact(signal.minimum), _exact(signal.maximum)]
            except ValueError:  # such as 1E38, which bounds nothing
                bounds = []
        low, high = bounds if bounds and bounds[0] < bounds[1] else (None, None)
        codes: dict[int, str] = {}
        if signal.conversion.choices and scale == 1 and offset == 0:
            codes = {int(code): str(word) for code, word in signal.conversion.choices.items()}
        field = Field(
            source, dbc_bits(signal), kind, scale, offset, low, high, (), self._conditions(message, signal), 3
        )
        if field.number < Number.FLOAT32 and field.raw_bounds()[0] > field.raw_bounds()[1]:
            field = replace(field, low=None, high=None)  # a range that was never meant, such as [0|0.5] of counts
        unit = (signal.unit or "").strip()
        comment = signal.comment or source
        return Signal(source, "" if unit == "-" else unit, comment, codes, field.low, field.high, source), field

    def _conditions(self, message: DbcMessage, signal: DbcSignal) -> tuple[Condition, ...]:
        """The multiplexers that must select ``signal``, up to the outermost."""
        found: list[Condition] = []
        each = signal
        while each.multiplexer_ids is not None and each.multiplexer_signal is not None:
            above = message.get_signal_by_name(each.multiplexer_signal)
            found.append(Condition(dbc_bits(above), frozenset(each.multiplexer_ids)))
            each = above
        return tuple(found)


def dbc_bits(signal: DbcSignal) -> Bits:
    """DBC numbers bit b of byte B as 8·B + b.  Intel: from the least significant bit up; Motorola: from the most
    significant bit down, to the next byte's bit 7 after bit 0."""
    byte, bit = divmod(signal.start, 8)
    if signal.byte_order == "little_endian":
        return bits_of(byte, (bit + signal.length + 7) // 8, True, bit, signal.length)
    above = 7 - bit
    size = (above + signal.length + 7) // 8
    return bits_of(byte, size, False, 8 * size - above - signal.length, signal.length)


def _place_in(text: str, what: str) -> tuple[int, int]:
    """Line and column in the DBC of the signal that a message is about, as far as one is named."""
    found = re.search(r"signals? (\w+)", what)
    within = re.search(r"message (\w+)", what)
    begin = re.search(rf"^\s*BO_ \d+ {within[1]}\s*:", text, re.MULTILINE) if within else None
    at = re.compile(rf"^\s*SG_ {found[1]}\b", re.MULTILINE).search(text, begin.end() if begin else 0) if found else None
    if at is None:
        return (text.count("\n", 0, begin.start()) + 1, 1) if begin else (1, 1)
    here = at.start() + len(at[0]) - len(at[0].lstrip())
    return text.count("\n", 0, here) + 1, here - text.rfind("\n", 0, here)


def _exact(value: Any) -> Decimal:
    """A number of the DBC as it was written.  Raises ``ValueError`` for one that no value can be reckoned with."""
    return number(Decimal(repr(float(value))) if isinstance(value, float) else value)


def _text(data: bytes, encoding: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode(encoding)


def _encoding(value: Any) -> str:
    name = text_of(value)
    try:
        codecs.lookup(name)
    except LookupError:
        raise ValueError from None
    return name


def _auto_name(name: str, unit: str) -> str:
    plain, end = snake(name), unit_end(unit)
    return plain if not end or plain == end or plain.endswith("_" + end) else f"{plain}_{end}"


# -- the layout of a block -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    what: str
    at: int
    size: int


def _parts(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError
    if not all(isinstance(part, str) and _PART.fullmatch(part) for part in value):
        raise ValueError
    return [(part.split()[0], part.split()[1]) for part in value]


def _layout(table: Table, parts: list[tuple[str, str]], head: int, little: bool, mask: int) -> CanLayout:
    found: dict[str, _Part] = {}
    at = 0
    for what, how in parts:
        size = _WIDTH.get(how, int(how) if how.isdigit() else 0)
        variable = what == "data" and not size
        wrong = ""
        if what in found or (what in ("dlc", "length") and {"dlc", "length"} & found.keys()):
            wrong = f"{what} {how} comes after another; one id, one dlc or length, and one data"
        elif variable and how not in found:
            wrong = f"data {how} comes before {how}; it must be known by then"
        elif what != "skip" and "data" in found and not found["data"].size:
            wrong = f"{what} {how} comes after data of variable length; put it before"
        if wrong:
            table.wrong("frame", wrong)
            raise Stop
        if what != "skip":
            found[what] = _Part(what, at, size)
        at += size
    if "id" not in found or "data" not in found:
        table.wrong("frame", 'frame needs an id and data, such as ["id u32", "dlc u8", "data 8"]')
        raise Stop
    length = found.get("dlc") or found.get("length") or _Part("", -1, 0)
    data = found["data"]
    return CanLayout(
        head=head,
        id_at=found["id"].at,
        id_bytes=found["id"].size,
        length_at=length.at,
        length_bytes=length.size,
        length_is_code=length.what == "dlc",
        data_at=data.at,
        data_bytes=data.size or -1,
        tail=at - data.at - data.size,
        little=little,
        id_mask=mask,
    )
