"""A signals file in TOML, checked: every mistake at once, with its line, its column and what to do.

Reads files and nothing else; it must never hand out half a file.  README.md says what the keys mean.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Any, Final, TypeVar

from schemas.custom import dbc
from schemas.custom.model import (
    CUSTOM_TYPES,
    SIGNALS_MAX,
    BlockRule,
    CanRule,
    Field,
    JsonField,
    Match,
    Mistake,
    Number,
    Signal,
    SignalsFile,
    SignalsFileError,
    bits_of,
)
from schemas.custom.places import Path
from schemas.custom.reader import (
    FEW_DECIMALS,
    ORDERS,
    SENTINELS,
    Reader,
    Stop,
    Table,
    choice,
    code_names,
    flag,
    integer,
    number,
    pair,
    scale_of,
    sentinels,
    text_of,
    vins_of,
)
from schemas.custom.units import unit_end
from schemas.signals import INDEX

T = TypeVar("T")

_MISTAKES_MAX: Final = 50
_BODY_MAX: Final = 65_535
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*", re.ASCII)
_NAME_MAX: Final = 60
_EDITIONS: Final = {2016: 16, 2025: 25}
_NUMBERS: Final = {"unsigned": Number.UNSIGNED, "signed": Number.SIGNED, "float": Number.FLOAT32}
# Row columns and words of the API that a signal's name would hide.
_TAKEN: Final = frozenset(
    {
        "time", "received_at", "kind", "part", "edition", "door", "digest", "notes", "flaws", "extra", "cells", "temps",
        "motors", "faults", "rest", "cells_v", "temps_c", "vin", "vehicle_id", "count", "all",
    }
)  # fmt: skip
_AT: Final = re.compile(r"\(at (?:line (\d+), column (\d+)|end of document)\)$")


def load(path: FilePath | str) -> SignalsFile:
    """The signals file at ``path``.  Raises ``SignalsFileError`` with every mistake (at most 50), or ``OSError``."""
    file = FilePath(path)
    return loads(file.read_bytes(), str(file), file.parent)


def loads(data: bytes | str, name: str = "signals.toml", directory: FilePath | None = None) -> SignalsFile:
    """As :func:`load`, of text at hand; a DBC is looked for in ``directory``."""
    text = data if isinstance(data, str) else _decoded(data, name)
    text = text.removeprefix("\ufeff")
    try:
        values = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        found = _AT.search(str(error))
        lines = text.split("\n")
        line, column = (int(found[1]), int(found[2])) if found and found[1] else (len(lines), len(lines[-1]) + 1)
        what = _AT.sub("", str(error)).strip()
        raise SignalsFileError(name, [Mistake(line, column, f"not TOML: {what}; see https://toml.io")]) from error
    reader = Reader(text)
    loaded = Loading(reader, name, directory or FilePath()).run(values)
    if reader.mistakes:
        raise SignalsFileError(name, sorted(reader.mistakes)[:_MISTAKES_MAX])
    return loaded


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        raise SignalsFileError(name, [Mistake(line, column, "not UTF-8; save the file as UTF-8")]) from error


class Loading:
    """One file being read: the signals so far, and who uses each name where."""

    def __init__(self, reader: Reader, name: str, directory: FilePath) -> None:
        self.reader, self.name, self.directory = reader, name, directory
        self.signals: dict[str, Signal] = {}
        self._uses: dict[str, list[tuple[Match | None, Path, Path]]] = {}  # signal → (match, rule, where)

    def run(self, values: dict[str, Any]) -> SignalsFile:
        top = Table(self.reader, (), values, "the file")
        blocks = _each(top.tables("block", "a block"), self._block)
        can = _each(top.tables("can", "a can block"), self._can)
        json = _each(top.tables("json", "a json field"), self._json)
        top.finish()
        if not values:
            self.reader.wrong((), "the file defines nothing; add a [[block]], [[can]] or [[json]] table")
        if len(self.signals) > SIGNALS_MAX:
            self.reader.wrong(
                (), f"{len(self.signals)} signals and a file may have {SIGNALS_MAX}; name only those that you need"
            )
        self._check_matches([*blocks, *can])
        self._check_sources(json)
        return SignalsFile(
            self.name, self.signals, tuple(r for r, _ in blocks), tuple(r for r, _ in can), tuple(f for f, _ in json)
        )

    def _check_matches(self, rules: list[tuple[BlockRule, Path] | tuple[CanRule, Path]]) -> None:
        for i, (rule, path) in enumerate(rules):
            for other, at in rules[:i]:
                a, b = rule.match, other.match
                if (a.block, a.edition) == (b.block, b.edition) and set(a.vins or ("",)) & set(b.vins or ("",)):
                    self.reader.wrong(
                        (*path, "type"),
                        f"block 0x{a.block:02X} is described on line {self.reader.line(at)} for the same vehicles and "
                        "edition; tell them apart with vin or edition, or join them",
                    )

    def _check_sources(self, fields: list[tuple[JsonField, Path]]) -> None:
        seen: dict[str, Path] = {}
        for field, path in fields:
            if field.source in seen:
                at = self.reader.line((*seen[field.source], "field"))
                self.reader.wrong((*path, "field"), f"field {field.source!r} is mapped on line {at} already; keep one")
            seen.setdefault(field.source, path)

    # -- what all rules have -----------------------------------------------------------------------------

    def _match(self, table: Table) -> Match:
        kind = integer(CUSTOM_TYPES.start, CUSTOM_TYPES.stop - 1)
        block = table.take("type", kind, "a block type, 0x80 to 0xFE", needed=True)
        vins = table.take("vin", vins_of, 'VIN prefixes, such as "LTEST" or ["LTEST", "LABC"]', ())
        edition = table.take("edition", choice(_EDITIONS), "2016 or 2025; leave it out for both", 0)
        return Match(block, vins, edition)

    def define(self, where: Path, signal: Signal, match: Match | None, rule: Path) -> bool:
        """Take ``signal`` into the file's catalogue; False when it cannot be (then it is noted at ``where``)."""
        problem = self._name_problem(signal) or self._clash(signal, match, rule)
        if problem:
            of = f" of {signal.source}" if where[-1] == "dbc" else ""
            fix = "; name it in a [[can.signal]] table, or give a prefix" if of else ""
            self.reader.wrong(where, f"name {signal.name!r}{of} {problem}{fix}")
            return False
        self.signals.setdefault(signal.name, signal)
        self._uses.setdefault(signal.name, []).append((match, rule, where))
        return True

    def _name_problem(self, signal: Signal) -> str | None:
        name, end = signal.name, unit_end(signal.unit)
        if not _NAME.fullmatch(name) or len(name) > _NAME_MAX:
            return (
                "cannot be used: lower case letters, digits and single underscores, a letter first, at most "
                f"{_NAME_MAX} characters, such as cabin_temp_c"
            )
        if name in INDEX or name in _TAKEN:
            what = "a signal of the standard" if name in INDEX else "a column of every row"
            return f"is {what}; choose another, such as own_{name}"
        if end and name != end and not name.endswith("_" + end):
            return f"does not end in its unit {signal.unit!r}; call it {name}_{end}"
        return None

    def _clash(self, signal: Signal, match: Match | None, rule: Path) -> str | None:
        for other, where, seen in self._uses.get(signal.name, []):
            line = self.reader.line(seen)
            if where == rule or _both(match, other):
                return (
                    f"is used on line {line} already, and one report may have both; rename one, or tell them apart "
                    "with vin or edition"
                )
            unit = self.signals[signal.name].unit
            if unit != signal.unit:
                return f"has unit {signal.unit!r} here and {unit!r} on line {line}; a name has one unit"
        return None

    def _described(self, table: Table, source: str) -> tuple[Signal, Decimal, Decimal]:
        """A signal (with its range), its scale and its offset."""
        name = table.take("name", text_of, "a name such as cabin_temp_c", needed=True)
        unit = table.take("unit", text_of, 'a unit, such as "°C"', "")
        text = table.take("text", text_of, "a text", "")
        codes = table.take("codes", code_names, 'a table of numbers and words, such as {0 = "off", 1 = "on"}', {})
        scale = table.take("scale", scale_of, f"{FEW_DECIMALS}, not 0", Decimal(1))
        offset = table.take("offset", number, FEW_DECIMALS, Decimal(0))
        low, high = range_of(table)
        return Signal(name, unit, text, codes, low, high, source), scale, offset

    # -- custom blocks -----------------------------------------------------------------------------------

    def _block(self, table: Table) -> BlockRule:
        match = self._match(table)
        name = table.take("name", text_of, "a name for people", f"0x{match.block:02X}")
        size = table.take("bytes", integer(1, _BODY_MAX), f"the body's length in bytes, 1 to {_BODY_MAX}", _BODY_MAX)
        little = table.take("byte_order", choice(ORDERS), '"big" or "little"', False)
        fields: list[Field] = []
        taken: dict[tuple[int, int], tuple[str, Path]] = {}

        def read(each: Table) -> None:
            signal, field, shared = self._block_signal(each, size, little, f"block 0x{match.block:02X} {name}")
            if not shared:
                self._check_overlap(each, field, taken)
            taken.update((bit, (signal.name, each.path)) for bit in field.bits.positions())
            if self.define((*each.path, "name"), signal, match, table.path):
                fields.append(field)

        _each(table.tables("signal", "a signal of a block"), read)
        if not table.has("signal"):
            self.reader.wrong(table.path, "the block has no signals; add [[block.signal]] tables", key=True)
        table.finish()
        return BlockRule(match, name, tuple(fields))

    def _check_overlap(self, table: Table, field: Field, taken: dict[tuple[int, int], tuple[str, Path]]) -> None:
        twice = sorted(field.bits.positions() & taken.keys())
        if twice:
            (byte, bit), (other, path) = twice[0], taken[twice[0]]
            table.wrong(
                "byte",
                f"{field.signal} and {other} (line {self.reader.line(path)}) overlap at byte {byte}, bit {bit}; "
                "correct one, or say shared = true",
            )

    def _block_signal(self, table: Table, size: int, order: bool, source: str) -> tuple[Signal, Field, bool]:
        signal, scale, offset = self._described(table, source)
        byte = table.take("byte", integer(0, _BODY_MAX), "the first byte's offset in the body, from 0", needed=True)
        little = table.take("byte_order", choice(ORDERS), '"big" or "little"', order)
        kind = table.take("number", choice(_NUMBERS), '"unsigned", "signed" or "float"', Number.UNSIGNED)
        decimals = table.take("decimals", integer(0, 9), "0 to 9, how many decimals of a float are kept", 3)
        bit = table.take("bit", integer(0, 63), "0 to 63, 0 the least significant")
        count = table.take("bits", integer(1, 64), "1 to 64")
        width = table.take("bytes", integer(1, 8), "1 to 8")
        shared = table.take("shared", flag, "true or false", False)
        if count is None:
            count = 1 if bit is not None else 8 * (width or 1)
        first = bit or 0
        need = (first + count + 7) // 8
        width = need if width is None else width
        found = table.take("sentinels", sentinels(count), f"{SENTINELS}, each once and in {count} bits", ())
        table.finish()
        if need > min(width, 8):
            fix = f"give bytes = {need}, or other bits" if need <= 8 else "a field has at most 8 bytes"
            at = "bits" if table.has("bits") else "bit"
            table.wrong(at, f"bits {first} to {first + count - 1} are not in {min(width, 8)} bytes; {fix}")
            raise Stop
        if kind is Number.FLOAT32:
            if count not in (32, 64) or first:
                table.wrong("number", "a float has bytes = 4 or bytes = 8, and neither bit nor bits")
                raise Stop
            kind = Number.FLOAT32 if count == 32 else Number.FLOAT64
        if byte + width > size:
            what = f"bytes {byte} to {byte + width - 1} are" if width > 1 else f"byte {byte} is"
            table.wrong("byte", f"{what} outside the block, which has {size} bytes; correct the offset, the width or "
                        "the block's bytes")  # fmt: skip
            raise Stop
        field = Field(signal.name, bits_of(byte, width, little, first, count), kind, scale, offset,
                      signal.low, signal.high, found, (), decimals)  # fmt: skip
        check_reach(table, field)
        return signal, field, shared

    # -- CAN frames, JSON fields ---------------------------------------------------------------------------

    def _can(self, table: Table) -> CanRule:
        match = self._match(table)
        return dbc.can_rule(table, match, self.directory, lambda at, signal: self.define(at, signal, match, table.path))

    def _json(self, table: Table) -> JsonField:
        source = table.take("field", text_of, "the field's name in the sample", needed=True)
        signal, scale, offset = self._described(table, f"JSON field {source}")
        table.finish()
        if not self.define((*table.path, "name"), signal, None, table.path):
            raise Stop
        return JsonField(source, signal.name, scale, offset, signal.low, signal.high)


def _both(match: Match | None, other: Match | None) -> bool:
    """Whether one report may have what two rules describe; None: a JSON sample."""
    if match is None or other is None:
        return match is other
    return match.block != other.block and match.meets(other)


def _each(tables: list[Table], read: Callable[[Table], T]) -> list[tuple[T, Path]]:
    """What could be read, with where it stands."""
    found = []
    for table in tables:
        try:
            found.append((read(table), table.path))
        except Stop:  # noted already
            continue
    return found


def range_of(table: Table) -> tuple[Decimal | None, Decimal | None]:
    low, high = table.take("range", pair, "two numbers in the signal's unit, such as [-40, 120]", (None, None))
    if low is not None and low > high:
        table.wrong("range", f"range = [{low}, {high}] is empty; the lower bound comes first")
        return None, None
    return low, high


def check_reach(table: Table, field: Field) -> None:
    """Note a range that no raw value can lie in."""
    if field.number < Number.FLOAT32 and field.raw_bounds()[0] > field.raw_bounds()[1]:
        table.wrong(
            "range",
            f"no raw value of {field.bits.count} bits lies in range = [{field.low}, {field.high}] with scale "
            f"{field.scale} and offset {field.offset}; correct one of them",
        )
