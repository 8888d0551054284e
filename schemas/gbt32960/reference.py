"""The slow decoder that reads like the standard: one frame in, one tree out, as plain JSON values.

It never raises on bad bytes: ``body`` is None when the data unit does not parse, and what can be
decoded is decoded.  Its key paths are those of ``tests/gbt32960/data/README.md``.  ``decode.py`` is
tested against it; nothing in the hot path calls it except for logins, which are rare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

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
from schemas.gbt32960.layout import Each, EditionTable, Field, Kind, Part, Values
from schemas.gbt32960.reading import Info, Reading, Role, Scope, read_infos
from schemas.gbt32960.times import read_time

Tree = dict[str, Any]

SIGNATURE_ALGORITHMS: Final = {1: "sm2", 2: "rsa", 3: "ecc"}
GEARS: Final = {0: "N", 13: "R", 14: "D", 15: "P"}

# Terminal parameters (2016 table B.12, 2025 table B.8): id → (name, width); width None = text whose length
# is the value of the parameter before it, "text" = STRING of five bytes.
PARAMS: Final[dict[int, tuple[str, int | str | None]]] = {
    0x01: ("storage_period_ms", 2),
    0x02: ("report_period", 2),
    0x03: ("alarm_report_period", 2),
    0x04: ("platform_domain_length", 1),
    0x05: ("platform_domain", None),
    0x06: ("platform_port", 2),
    0x07: ("hardware_version", "text"),
    0x08: ("firmware_version", "text"),
    0x09: ("heartbeat_period_s", 1),
    0x0A: ("terminal_timeout_s", 2),
    0x0B: ("platform_timeout_s", 2),
    0x0C: ("login_pause_min", 1),
    0x0D: ("public_domain_length", 1),
    0x0E: ("public_domain", None),
    0x0F: ("public_port", 2),
    0x10: ("sampling_monitoring", 1),
}
VERSION_BYTES: Final = 5


def param_width(edition: int, ident: int) -> int | str | None:
    """Width of a terminal parameter; 0x02 and 0x03 became one byte in 2025."""
    if ident in (0x02, 0x03) and edition == Edition.E2025:
        return 1
    return PARAMS[ident][1]


def decode_frame(frame: bytes | str) -> Tree:
    """The tree of one frame, given as bytes or as hex.  Never raises on bad content.

    Keys: ``edition cmd cmd_name ack ack_name vin encryption length length_ok bcc bcc_ok body``; with
    ``error`` (text) when the body could not be read, and ``data_unit`` (hex) when it is None.  A hex
    string with other characters than hex digits and spaces is the caller's mistake: ``ValueError``.
    """
    data = bytes.fromhex(frame) if isinstance(frame, str) else bytes(frame)
    tree: Tree = dict.fromkeys(
        (
            "edition",
            "cmd",
            "cmd_name",
            "ack",
            "ack_name",
            "vin",
            "encryption",
            "length",
            "length_ok",
            "bcc",
            "bcc_ok",
            "body",
        )
    )
    edition = EDITION_OF_MARK.get(data[0]) if len(data) >= 2 and data[0] == data[1] else None
    if edition is not None:
        tree["edition"] = str(2000 + edition)
    if len(data) < HEADER_BYTES:
        tree |= {"length_ok": False, "bcc_ok": False, "data_unit": data.hex()}
        tree["error"] = f"{len(data)} bytes, shorter than the {HEADER_BYTES}-byte header"
        return tree
    length = int.from_bytes(data[22:24], "big")
    check = 0
    for byte in data[2 : min(len(data) - 1, AT_UNIT + length)]:
        check ^= byte
    has_bcc = len(data) >= FRAME_BYTES_MIN + length
    bcc = data[AT_UNIT + length] if has_bcc else None
    rules = edition if edition is not None else Edition.E2016
    tree |= {
        "cmd": data[2],
        "cmd_name": command_name(data[2]),
        "ack": data[3],
        "ack_name": ack_name(data[3]),
        "vin": _text(data[4:21]),
        "encryption": encryption_name(rules, data[21]),
        "length": length,
        "length_ok": len(data) == FRAME_BYTES_MIN + length,
        "bcc": bcc,
        "bcc_ok": bcc == check,
    }
    unit_end = min(AT_UNIT + length, len(data))
    try:
        if edition is None:
            raise Unreadable(0, f"the frame starts {data[:2].hex()}, neither ## nor $$")
        if data[21] != Encryption.NONE and length > 0:
            raise Unreadable(21, f"the data unit is encrypted ({tree['encryption']})")
        tree["body"] = _body(edition, data, unit_end)
    except Unreadable as error:
        tree["error"] = f"offset {error.at}: {error}"
        tree["data_unit"] = data[AT_UNIT:unit_end].hex()
    return tree


class Unreadable(Exception):
    """The data unit does not parse, from byte ``at`` of the frame on."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at = at


class _Cursor:
    """Reads the data unit from left to right."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    @property
    def left(self) -> int:
        return self.end - self.at

    def take(self, n: int, what: str) -> bytes:
        if n > self.left:
            raise Unreadable(self.at, f"{what} needs {n} bytes, {self.left} are left")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, width: int, what: str) -> int:
        return int.from_bytes(self.take(width, what), "big")

    def time(self, what: str = "time") -> str:
        at = self.at
        when = read_time(self.take(6, what))
        if when is None:
            raise Unreadable(at, f"{what} {self.data[at : at + 6].hex()} is no date and time")
        return when.isoformat()


# --- text ------------------------------------------------------------------------------------------


def _text(raw: bytes) -> str:
    """A STRING: ASCII, or GB 18030 for Chinese text; zero padding on the right is not content."""
    return raw.rstrip(b"\0").decode("gb18030", "replace")


def _text_or_hex(raw: bytes) -> str:
    """A code that may be text or binary: text when printable, else hex of all its bytes."""
    bare = raw.rstrip(b"\0")
    if all(0x20 <= byte <= 0x7E for byte in bare):
        return bare.decode("ascii")
    return raw.hex()


# --- bodies, one function per command --------------------------------------------------------------


def _body(edition: Edition, data: bytes, end: int) -> Tree:
    command, ack = data[2], data[3]
    cursor = _Cursor(data, AT_UNIT, end)
    if ack != Ack.COMMAND and end - AT_UNIT <= 6:
        # A short reply: the time, or nothing (heartbeat).
        if cursor.left == 6 and command != Command.ACTIVATION_RESULT:
            return {"time": cursor.time()}
        return _rest({}, cursor)
    read = _BODIES.get(command)
    if read is None or (edition == Edition.E2016 and Edition.E2016 not in BY_ID[command].editions):
        return {"data": data[AT_UNIT:end].hex()}
    body = read(edition, cursor)
    return _rest(body, cursor)


def _rest(body: Tree, cursor: _Cursor) -> Tree:
    """Bytes that no field accounts for are shown, not dropped."""
    if cursor.left:
        body["trailing"] = cursor.data[cursor.at : cursor.end].hex()
    return body


def _report(edition: Edition, cursor: _Cursor) -> Tree:
    body: Tree = {"time": cursor.time("collection time")}
    table = EDITIONS[edition]
    infos, failed_at = read_infos(table, cursor.data, cursor.at, cursor.end)
    if failed_at is not None and failed_at < cursor.end:
        raise Unreadable(failed_at, f"block of type 0x{cursor.data[failed_at]:02x} needs more bytes than are left")
    cursor.at = cursor.end
    body["infos"] = [render_info(table, cursor.data, info) for info in infos if info.role is not Role.TRAILING]
    for info in infos:
        if info.role is Role.TRAILING:
            body["trailing"] = cursor.data[info.body : info.end].hex()
    return body


def _login(edition: Edition, cursor: _Cursor) -> Tree:
    body: Tree = {
        "time": cursor.time(),
        "serial": cursor.number(2, "login serial"),
        "iccid": _text_or_hex(cursor.take(20, "ICCID")),
    }
    if edition == Edition.E2016:
        count = body["subsystem_count"] = cursor.number(1, "number of subsystems")
        size = body["code_len"] = cursor.number(1, "code length")
        count = 0 if size == 0 or max(count, size) >= 0xFE else count
        body["codes"] = [_text_or_hex(cursor.take(size, "subsystem code")) for _ in range(count)]
        return body
    count = body["bms_count"] = cursor.number(1, "number of battery management systems")
    packs = list(cursor.take(0 if count >= 0xFE else count, "packs per BMS"))
    body["packs_per_bms"] = packs
    body["codes"] = [[_text_or_hex(cursor.take(24, "pack code")) for _ in range(n if n < 0xFE else 0)] for n in packs]
    return body


def _logout(_: Edition, cursor: _Cursor) -> Tree:
    return {"time": cursor.time(), "serial": cursor.number(2, "login serial")}


def _platform_login(edition: Edition, cursor: _Cursor) -> Tree:
    return {
        "time": cursor.time(),
        "serial": cursor.number(2, "login serial"),
        "username": _text(cursor.take(12, "user name")),
        "password": _text(cursor.take(20, "password")),
        "encryption": encryption_name(edition, cursor.number(1, "encryption rule")),
    }


def _empty(_: Edition, cursor: _Cursor) -> Tree:
    # Heartbeat and time sync carry nothing; a reply seen in the field carries a time.
    return {"time": cursor.time()} if cursor.left == 6 else {}


def _signature(cursor: _Cursor) -> Tree:
    algorithm = cursor.number(1, "signature algorithm")
    r = cursor.take(cursor.number(2, "R length"), "R")
    s = cursor.take(cursor.number(2, "S length"), "S")
    return {
        "algorithm": SIGNATURE_ALGORITHMS.get(algorithm, f"undefined_{algorithm}"),
        "r": r.hex(),
        "s": s.hex(),
        "raw": {"algorithm": algorithm, "r_length": len(r), "s_length": len(s)},
    }


def _activation(_: Edition, cursor: _Cursor) -> Tree:
    return {
        "time": cursor.time(),
        "chip_id": _text(cursor.take(16, "chip id")).rstrip(" "),
        "public_key": cursor.take(cursor.number(2, "public key length"), "public key").hex(),
        "vin": _text(cursor.take(17, "VIN")),
        "signature": _signature(cursor),
    }


def _activation_result(_: Edition, cursor: _Cursor) -> Tree:
    return {"status": cursor.number(1, "status"), "info": cursor.number(1, "information")}


def _key_exchange(_: Edition, cursor: _Cursor) -> Tree:
    kind = cursor.number(1, "key type")
    names = {2: "rsa", 3: "aes", 4: "sm2", 5: "sm4"}
    return {
        "key_type": names.get(kind, f"undefined_{kind}"),
        "key": cursor.take(cursor.number(2, "key length"), "key").hex(),
        "starts": cursor.time("start time"),
        "ends": cursor.time("end time"),
    }


def _params(edition: Edition, cursor: _Cursor, count: int) -> list[Tree]:
    """{id, value} items; they have no length of their own, so an unknown id ends the list."""
    items: list[Tree] = []
    previous = 0
    while len(items) < count and cursor.left:
        ident = cursor.data[cursor.at]
        if ident not in PARAMS:
            break
        cursor.at += 1
        width = param_width(edition, ident)
        value: int | str
        if isinstance(width, int):
            value = previous = cursor.number(width, PARAMS[ident][0])
        elif width is None:
            value = _text(cursor.take(previous, PARAMS[ident][0]))
        else:
            value = _text(cursor.take(VERSION_BYTES, PARAMS[ident][0]))
        items.append({"id": ident, "name": PARAMS[ident][0], "value": value})
    return items


def _query(edition: Edition, cursor: _Cursor) -> Tree:
    body: Tree = {"time": cursor.time(), "count": cursor.number(1, "number of parameters")}
    count = 0 if body["count"] >= 0xFE else body["count"]
    # The answer to a query is sent with flag 0xFE by some; a query is exactly as long as its ids.
    if cursor.data[3] == Ack.COMMAND and cursor.left == count:
        body["ids"] = list(cursor.take(count, "parameter ids"))
    else:
        body["params"] = _params(edition, cursor, count)
    return body


def _set(edition: Edition, cursor: _Cursor) -> Tree:
    body: Tree = {"time": cursor.time(), "count": cursor.number(1, "number of parameters")}
    body["params"] = _params(edition, cursor, 0 if body["count"] >= 0xFE else body["count"])
    return body


def _control(_: Edition, cursor: _Cursor) -> Tree:
    body: Tree = {"time": cursor.time(), "control": cursor.number(1, "control id")}
    if body["control"] == 0x06:
        body["level"] = cursor.number(1, "warning level")
        body["message"] = _text(cursor.take(cursor.left, "warning text"))
    elif cursor.left:
        # Remote upgrade: the order of its parameters differs between sources, and binary ones may hold a ";".
        body["param"] = cursor.take(cursor.left, "parameters").hex()
    return body


_BODIES: Final[dict[int, Callable[[Edition, _Cursor], Tree]]] = {
    Command.LOGIN: _login,
    Command.REALTIME: _report,
    Command.REISSUE: _report,
    Command.LOGOUT: _logout,
    Command.PLATFORM_LOGIN: _platform_login,
    Command.PLATFORM_LOGOUT: _logout,
    Command.HEARTBEAT: _empty,
    Command.TIME_SYNC: _empty,
    Command.ACTIVATION: _activation,
    Command.ACTIVATION_RESULT: _activation_result,
    Command.KEY_EXCHANGE: _key_exchange,
    Command.PARAM_QUERY: _query,
    Command.PARAM_SET: _set,
    Command.CONTROL: _control,
}


# --- blocks of a report ----------------------------------------------------------------------------


def render_info(table: EditionTable, data: bytes, info: Info) -> Tree:
    """One block as a tree: ``type``, ``name``, then its fields."""
    tree: Tree = {"type": info.type}
    if info.role is Role.BLOCK:
        assert info.block is not None
        assert info.scope is not None
        tree["name"] = info.block.name
        return tree | _render_parts(table, info.block.parts, info.scope)
    tree["name"] = "opaque" if info.role in (Role.OPAQUE, Role.TRUNCATED) else info.role.value
    if info.role is Role.SIGNATURE:
        return tree | _signature(_Cursor(data, info.body, info.end))
    tree["data"] = data[info.body : info.end].hex()
    tree["raw"] = {"length": info.end - info.body}
    if info.role is Role.TRUNCATED:
        tree["truncated"] = True
    return tree


def _render_parts(table: EditionTable, parts: tuple[Part, ...], scope: Scope) -> Tree:
    tree: Tree = {}
    raws: Tree = {}
    for part in parts:
        if isinstance(part, Field):
            reading = scope[part.raw]
            assert isinstance(reading, Reading)
            raws[part.raw] = reading.raw
            tree |= render_field(table, reading, scope)
        elif isinstance(part, Values):
            tree[part.key] = [render_value(reading) for reading in scope.readings(part.key)]
        else:
            tree[part.key] = [_render_item(table, part, item) for item in scope.scopes(part.key)]
    tree["raw"] = raws
    return tree


def _render_item(table: EditionTable, part: Each, item: Scope) -> Any:
    if part.flat:
        return [item.raw(inner.raw) for inner in part.parts if isinstance(inner, Field)]
    return _render_parts(table, part.parts, item)


def render_field(table: EditionTable, reading: Reading, scope: Scope) -> Tree:
    """The keys that one field becomes; ``scope`` is the block it lies in."""
    field, raw = reading.field, reading.raw
    if field.kind is Kind.GEAR:
        return {
            "gear": GEARS.get(raw & 0x0F, str(raw & 0x0F)),
            "driving_force": bool(raw & 0x20),
            "braking_force": bool(raw & 0x10),
            "gear_valid": not raw & field.invalid_bits,
        }
    if field.kind is Kind.FLAGS:
        return {"flags": flag_names(table, raw)}
    if field.kind is Kind.STATUS:
        return {"valid": not raw & 0x01}
    if field.kind is Kind.DEGREES and field.sentinel_of(raw) is None:
        west_or_south = scope.raw("status") & (0x04 if field.raw == "longitude" else 0x02)
        value = field.scaled(raw)
        return {field.name: -value if west_or_south else value}
    return {field.name: render_value(reading)}


def render_value(reading: Reading) -> int | float | str:
    """The value in its unit, a sentinel's name, or the word of an enumeration."""
    field, raw = reading.field, reading.raw
    sentinel = field.sentinel_of(raw)
    if sentinel is not None:
        return sentinel
    if field.kind is Kind.CODE:
        return field.names.get(raw, f"undefined_{raw}")
    return field.scaled(raw)


def flag_names(table: EditionTable, raw: int) -> list[str]:
    """Names of the alarm bits set, the least significant first; reserved ones by number."""
    return [
        table.flag_names[bit] if bit < len(table.flag_names) else f"reserved_{bit}"
        for bit in range(32)
        if raw >> bit & 1
    ]
