"""One frame, annotated byte by byte for a person: every field with its offset, value, unit and clause.

Takes anything: a whole frame, a torn one, garbage.  Every byte of the input is in exactly one row.  For
programs there is ``reference.decode_frame``; text and colours belong to the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.gbt32960 import reference
from schemas.gbt32960.commands import (
    BY_ID,
    EDITION_OF_MARK,
    Ack,
    Command,
    Edition,
    Encryption,
    ack_name,
    command_name,
    encryption_name,
)
from schemas.gbt32960.editions import EDITIONS
from schemas.gbt32960.frame import AT_UNIT, FRAME_BYTES_MIN, HEADER_BYTES
from schemas.gbt32960.layout import EditionTable, Field, Kind, Part, Values
from schemas.gbt32960.reading import Info, Reading, Role, Scope, read_infos
from schemas.gbt32960.times import read_time

_VALUES_SHOWN = 12  # of a long list in one row: first ones, then the count


@dataclass(frozen=True, slots=True)
class Row:
    """One field.  ``raw`` and ``value`` are text; ``problem`` is empty when there is none."""

    offset: int
    bytes_hex: str
    field: str
    raw: str = ""
    value: str = ""
    unit: str = ""
    clause: str = ""
    problem: str = ""


def explain(frame: bytes) -> list[Row]:
    """Rows of ``frame`` from its first byte to its last.  Never raises on bad content."""
    page = _Page(bytes(frame))
    page.header()
    return page.rows


class _Page:
    """Collects rows from left to right; ``at`` is the first byte not yet in a row."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.end = len(data)
        self.rows: list[Row] = []
        self.clause = "table 2"

    def row(
        self, n: int, field: str, *, raw: str = "", value: str = "", unit: str = "", clause: str = "", problem: str = ""
    ) -> bytes:
        """The next ``n`` bytes are ``field``; fewer when they end before, and the row says so."""
        have = self.data[self.at : min(self.at + n, self.end)]
        if len(have) < n:
            problem = f"needs {n} bytes, {len(have)} are left"
        self.rows.append(Row(self.at, have.hex(), field, raw, value, unit, clause or self.clause, problem))
        self.at += len(have)
        return have

    def number(self, n: int, field: str, value: str = "", problem: str = "") -> int:
        raw = int.from_bytes(self.data[self.at : min(self.at + n, self.end)], "big")
        self.row(n, field, raw=str(raw), value=value or str(raw), problem=problem)
        return raw

    def text(self, n: int, field: str) -> None:
        shown = self.data[self.at : min(self.at + n, self.end)].rstrip(b"\0")
        printable = shown.isascii() and shown.decode("ascii").isprintable()
        self.row(n, field, value=shown.decode("ascii") if printable else shown.decode("gb18030", "replace"))

    def time(self, field: str) -> None:
        six = self.data[self.at : self.at + 6]
        when = read_time(six) if self.at + 6 <= self.end else None
        self.row(
            6, field, value=when.isoformat() if when else "", problem="" if when else "is no date and time",
            clause="clause 6.4",
        )  # fmt: skip

    @property
    def left(self) -> int:
        return self.end - self.at

    def rest(self, field: str, problem: str = "") -> None:
        if self.left > 0:
            self.row(self.left, field, problem=problem)

    # --- header ------------------------------------------------------------------------------------

    def header(self) -> None:
        data = self.data
        if len(data) < HEADER_BYTES or data[0] != data[1] or data[0] not in EDITION_OF_MARK:
            why = "no start mark ## or $$" if data[:1] not in (b"#", b"$") else f"shorter than {FRAME_BYTES_MIN} bytes"
            self.rest("not a frame", why)
            return
        edition = EDITION_OF_MARK[data[0]]
        command, ack, encryption = data[2], data[3], data[21]
        self.row(2, "start mark", value=f"{2000 + edition} edition")
        known = command in BY_ID and edition in BY_ID[command].editions
        self.number(
            1, "command", command_name(command), "" if known else f"not a command of the {2000 + edition} edition"
        )
        self.number(1, "response flag", ack_name(ack), "" if ack in set(Ack) else "not a flag of the standard")
        code = data[4:21].rstrip(b"\0")
        fine = bool(code) and all(0x20 <= byte <= 0x7E for byte in code)
        self.row(
            17, "identification", value=code.decode("ascii", "replace"),
            problem="" if fine else "is not printable ASCII, zero padded",
        )  # fmt: skip
        named = encryption_name(edition, encryption)
        self.number(1, "encryption", named, "reserved" if named.startswith("undefined") else "")
        length = int.from_bytes(data[22:24], "big")
        present = len(data) - FRAME_BYTES_MIN
        self.number(
            2,
            "data unit length",
            f"{length} bytes",
            "" if length == present else f"{max(present, 0)} bytes are present",
        )
        self.end = min(AT_UNIT + length, len(data))
        if encryption != Encryption.NONE and length:
            self.rest("data unit", f"encrypted ({named}): it cannot be read without the key")
        else:
            self.body(edition, command, ack)
        self.end = len(data)
        self.clause = "table 2"
        if self.at == AT_UNIT + length and self.left:
            check = 0
            for byte in data[2 : AT_UNIT + length]:
                check ^= byte
            found = data[self.at]
            self.number(1, "check byte", f"0x{found:02x}", "" if found == check else f"should be 0x{check:02x}")
        self.rest("after the frame", "bytes beyond the declared length")

    # --- data unit -----------------------------------------------------------------------------------

    def body(self, edition: Edition, command: int, ack: int) -> None:
        info = BY_ID.get(command)
        self.clause = info.clause if info else ""
        if info is None or edition not in info.editions:
            self.rest("data unit")
            return
        if ack != Ack.COMMAND and self.left <= 6:
            if self.left == 6 and command != Command.ACTIVATION_RESULT:
                self.time("time")
            self.rest("data unit")
            return
        if self.left and (info.has_time or (self.left == 6 and command in (Command.HEARTBEAT, Command.TIME_SYNC))):
            self.time("time")
        if command in (Command.REALTIME, Command.REISSUE):
            self.report(EDITIONS[edition])
        elif command == Command.LOGIN:
            self.login(edition)
        elif command in (Command.LOGOUT, Command.PLATFORM_LOGOUT):
            self.number(2, "login serial")
        elif command == Command.PLATFORM_LOGIN:
            self.number(2, "login serial")
            self.text(12, "user name")
            self.text(20, "password")
            rule = self.data[self.at] if self.left > 0 else 0
            self.number(1, "encryption rule", encryption_name(edition, rule))
        elif command == Command.ACTIVATION:
            self.text(16, "chip id")
            self.row(self.number(2, "public key length"), "public key")
            self.text(17, "VIN")
            self.signature()
        elif command == Command.ACTIVATION_RESULT:
            self.number(1, "status")
            self.number(1, "information")
        elif command == Command.KEY_EXCHANGE:
            self.number(1, "key type")
            self.row(self.number(2, "key length"), "key")
            self.time("start time")
            self.time("end time")
        elif command in (Command.PARAM_QUERY, Command.PARAM_SET):
            self.params(edition, command, ack)
        elif command == Command.CONTROL:
            if self.number(1, "control id") == 0x06:
                self.number(1, "warning level")
                self.text(self.left, "warning text")
            self.rest("parameters")
        self.rest("after the last field", "no field of the standard is here")

    def login(self, edition: Edition) -> None:
        self.number(2, "login serial")
        self.text(20, "ICCID")
        if edition == Edition.E2016:
            count = self.number(1, "subsystems")
            size = self.number(1, "code length")
            for i in range(count if size and max(count, size) < 0xFE else 0):
                if self.left <= 0:
                    break
                self.row(size, f"code {i + 1}", value=_code(self.data[self.at : self.at + size]))
            return
        systems = self.number(1, "battery management systems")
        packs = self.row(0 if systems >= 0xFE else systems, "packs per system")
        for i in range(sum(n for n in packs if n < 0xFE)):
            if self.left <= 0:
                break
            self.row(24, f"pack code {i + 1}", value=_code(self.data[self.at : self.at + 24]))

    def params(self, edition: Edition, command: int, ack: int) -> None:
        count = self.number(1, "parameters")
        if command == Command.PARAM_QUERY and ack == Ack.COMMAND and self.left == count:
            for _ in range(count):
                ident = self.data[self.at]
                self.number(1, "parameter id", reference.PARAMS.get(ident, ("unknown", 0))[0])
            return
        previous = 0
        for _ in range(0 if count >= 0xFE else count):
            if self.left <= 0 or self.data[self.at] not in reference.PARAMS:
                break
            ident = self.data[self.at]
            name = reference.PARAMS[ident][0]
            self.number(1, "parameter id", name)
            width = reference.param_width(edition, ident)
            if isinstance(width, int):
                previous = self.number(width, name)
            else:
                self.text(previous if width is None else reference.VERSION_BYTES, name)

    def signature(self) -> None:
        algorithm = self.data[self.at] if self.left > 0 else 0
        names = reference.SIGNATURE_ALGORITHMS
        self.number(1, "algorithm", names.get(algorithm, f"undefined_{algorithm}"))
        for part in ("R", "S"):
            self.row(self.number(2, f"{part} length"), part)

    # --- blocks of a report ----------------------------------------------------------------------------

    def report(self, table: EditionTable) -> None:
        infos, failed_at = read_infos(table, self.data, self.at, self.end)
        for info in infos:
            if info.role is Role.TRAILING:
                self.rest("after the signature", "kept, but no field of the standard")
                continue
            self.info(table, info)
        if failed_at is not None:
            self.rest("blocks", "the first block needs more bytes than are left" if self.left else "no block")

    def info(self, table: EditionTable, info: Info) -> None:
        self.clause = info.block.table if info.block else ""
        name = info.block.name if info.block else info.role.value
        problem = {
            Role.OPAQUE: "unknown type: nothing from here on can be delimited",
            Role.TRUNCATED: "runs past the data unit",
        }.get(info.role, "a second block of this type" if info.repeated else "")
        self.row(1, "type", raw=str(info.type), value=name, problem=problem)
        if info.role is Role.BLOCK:
            assert info.block is not None
            assert info.scope is not None
            self.parts(table, info.block.parts, info.scope, name)
        elif info.role is Role.SIGNATURE:
            self.signature()
        elif info.role is Role.CUSTOM:
            self.row(self.number(2, "length"), "data")
        else:
            self.row(info.end - self.at, "rest")

    def parts(self, table: EditionTable, parts: tuple[Part, ...], scope: Scope, prefix: str) -> None:
        for part in parts:
            if isinstance(part, Field):
                reading = scope[part.raw]
                assert isinstance(reading, Reading)
                self.field(table, reading, scope, prefix)
            elif isinstance(part, Values):
                readings = scope.readings(part.key)
                if readings:
                    self.values(readings, f"{prefix}.{part.key}")
            else:
                for i, item in enumerate(scope.scopes(part.key)):
                    self.parts(table, part.parts, item, f"{prefix}.{part.key}.{i}")

    def field(self, table: EditionTable, reading: Reading, scope: Scope, prefix: str) -> None:
        field, raw = reading.field, reading.raw
        rendered = reference.render_field(table, reading, scope)
        if field.kind is Kind.STATUS:
            words = ["valid" if rendered["valid"] else "not valid", "S" if raw & 2 else "N", "W" if raw & 4 else "E"]
            value = " ".join(words)
        elif field.kind is Kind.FLAGS:
            value = ", ".join(rendered["flags"]) or "none"
        else:
            value = ", ".join(
                key if found is True else str(found)
                for key, found in rendered.items()
                if found is not False and key != "gear_valid"
            )
        problem = ""
        sentinel = field.sentinel_of(raw)
        if sentinel is None and not field.in_range(raw):
            problem = f"outside the valid range {field.lo}..{field.hi}"
        elif raw & field.invalid_bits:
            problem = "marked as not valid"
        name = field.raw if field.kind in (Kind.GEAR, Kind.FLAGS, Kind.STATUS) else field.name
        self.row(
            field.width,
            f"{prefix}.{name}",
            raw=str(raw),
            value=value,
            unit="" if sentinel else field.unit,
            problem=problem,
        )

    def values(self, readings: list[Reading], field: str) -> None:
        """A whole list in one row."""
        raws = [str(reading.raw) for reading in readings[:_VALUES_SHOWN]]
        values = [str(reference.render_value(reading)) for reading in readings[:_VALUES_SHOWN]]
        more = f" … {len(readings)} in all" if len(readings) > _VALUES_SHOWN else ""
        odd = sum(
            reading.field.sentinel_of(reading.raw) is None and not reading.field.in_range(reading.raw)
            for reading in readings
        )
        item = readings[0].field
        self.row(
            len(readings) * item.width, field, raw=" ".join(raws) + more, value=" ".join(values) + more, unit=item.unit,
            problem=f"{odd} outside the valid range {item.lo}..{item.hi}" if odd else "",
        )  # fmt: skip


def _code(raw: bytes) -> str:
    bare = raw.rstrip(b"\0")
    return bare.decode("ascii") if all(0x20 <= byte <= 0x7E for byte in bare) else raw.hex()
