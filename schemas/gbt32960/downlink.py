"""Commands that go down to a terminal (annex B): query 0x80, set 0x81 and control 0x82, from names to bytes.

What is asked for is a plain object, so that it travels as JSON and reads well in a table::

    query    {"params": ["report_period", "platform_domain"]}
    set      {"params": {"report_period": 10, "platform_domain": "tsp.example"}}
    control  {"control": "reset"}
             {"control": "warning", "level": 2, "text": "停车检查"}
             {"control": "upgrade", "url": "ftp://...", "minutes": 60, ...}
             {"control": 128, "hex": "0102"}      user defined, 0x80 to 0xFE

:func:`check` says what is wrong with one before anything is sent.  Answers are read by ``reference.decode_frame``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from schemas.gbt32960.commands import Ack, Command, Edition, Encryption
from schemas.gbt32960.frame import build_frame
from schemas.gbt32960.reference import PARAMS, VERSION_BYTES, param_width
from schemas.gbt32960.times import time_bytes

KINDS: Final[dict[str, Command]] = {
    "query": Command.PARAM_QUERY,
    "set": Command.PARAM_SET,
    "control": Command.CONTROL,
}
KIND_OF: Final = {int(command): kind for kind, command in KINDS.items()}

PARAMS_MAX: Final = 252
TEXT_BYTES_MAX: Final = 1024  # of a warning or a custom control: what a terminal can be expected to hold
_DOMAIN_BYTES_MAX: Final = 255

IDS: Final = {name: ident for ident, (name, _) in PARAMS.items()}
# A domain has its length in a parameter of its own, right before it; people name the domain only.
_LENGTH_OF: Final = {"platform_domain": "platform_domain_length", "public_domain": "public_domain_length"}
# Units differ by edition: 2016 counts an alarm's report period in milliseconds, 2025 in seconds.
_RANGES: Final[dict[str, tuple[tuple[int, int], tuple[int, int]]]] = {  # name → 2016, 2025
    "storage_period_ms": ((0, 60_000), (0, 60_000)),
    "report_period": ((1, 600), (1, 30)),
    "alarm_report_period": ((0, 60_000), (0, 1)),
    "platform_port": ((0, 65_531), (0, 65_531)),
    "heartbeat_period_s": ((1, 240), (1, 240)),
    "terminal_timeout_s": ((1, 600), (1, 600)),
    "platform_timeout_s": ((1, 600), (1, 600)),
    "login_pause_min": ((1, 240), (1, 240)),
    "public_port": ((0, 65_531), (0, 65_531)),
    "sampling_monitoring": ((1, 2), (1, 2)),
}
SETTABLE: Final = (*_RANGES, *_LENGTH_OF)
QUERYABLE: Final = tuple(name for name in IDS if name not in _LENGTH_OF.values())

CONTROLS: Final = {
    "upgrade": 0x01,
    "power_off": 0x02,
    "reset": 0x03,
    "factory_settings": 0x04,
    "disconnect": 0x05,
    "warning": 0x06,
    "sampling_link": 0x07,
}


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the upgrade's parameters; ``width`` None is text of any length."""

    name: str
    width: int | None = None
    text: bool = True


# Table B.16 and EMQX put the URL ninth; the prose puts it first (as JTNE does), which is not followed.
_UPGRADE: Final = (
    _Part("dial_name"),
    _Part("dial_user"),
    _Part("dial_password"),
    _Part("address", 6, text=False),
    _Part("port", 2, text=False),
    _Part("maker", 4),
    _Part("hardware_version", 5),
    _Part("firmware_version", 5),
    _Part("url"),
    _Part("minutes", 2, text=False),
)


class DownlinkError(ValueError):
    """What is asked for cannot be sent: which part, what was given, what is allowed."""


def check(kind: str, body: Mapping[str, Any], edition: int | None = None) -> None:
    """Raise :class:`DownlinkError` unless ``body`` can be sent; without an edition, in at least one of the two."""
    if kind not in KINDS:
        raise DownlinkError(f"command {kind!r} is not one of {', '.join(KINDS)}")
    if edition is not None:
        _parts(kind, body, edition)
        return
    try:
        _parts(kind, body, Edition.E2016)
    except DownlinkError:
        _parts(kind, body, Edition.E2025)


def build_command(kind: str, body: Mapping[str, Any], edition: int, vin: str, now_s: int) -> bytes:
    """The whole frame, dated ``now_s`` (seconds since 1970 UTC), not encrypted.  Raises :class:`DownlinkError`."""
    unit = time_bytes(now_s) + _parts(kind, body, edition)
    return build_frame(edition, KINDS[kind], Ack.COMMAND, vin, Encryption.NONE, unit)


def _parts(kind: str, body: Mapping[str, Any], edition: int) -> bytes:
    """The data unit behind its time."""
    return {"query": _query, "set": _set, "control": _control}[kind](body, edition)


# -- parameters ---------------------------------------------------------------------------------------
def _only(body: Mapping[str, Any], *names: str) -> None:
    if unknown := [name for name in body if name not in names]:
        raise DownlinkError(f"{unknown[0]!r} is not part of this command: use {', '.join(names)}")


def _query(body: Mapping[str, Any], _: int) -> bytes:
    _only(body, "params")
    wanted = body.get("params")
    if not isinstance(wanted, list) or not wanted:
        raise DownlinkError(f"params is a list of names, one or more of {', '.join(QUERYABLE)}")
    idents: list[int] = []
    for name in wanted:
        if isinstance(name, int) and not isinstance(name, bool) and 0x80 <= name <= 0xFE:
            idents.append(name)  # user defined: the answer's bytes behind it are kept as they are
            continue
        if name not in QUERYABLE:
            raise DownlinkError(f"params: {name!r} is not a parameter; use {', '.join(QUERYABLE)}, or a number 128-254")
        idents += [IDS[_LENGTH_OF[name]]] if name in _LENGTH_OF else []
        idents.append(IDS[name])
    if len(idents) > PARAMS_MAX:
        raise DownlinkError(f"params: {len(idents)} of them, a query holds {PARAMS_MAX}")
    return bytes((len(idents), *idents))


def _set(body: Mapping[str, Any], edition: int) -> bytes:
    _only(body, "params")
    wanted = body.get("params")
    if not isinstance(wanted, Mapping) or not wanted:
        raise DownlinkError(f"params is an object, name to value, of {', '.join(SETTABLE)}")
    items: list[tuple[str, int | str]] = []
    for name, value in wanted.items():
        if name not in SETTABLE:
            raise DownlinkError(f"params: {name!r} cannot be set; use {', '.join(SETTABLE)}")
        if name in _LENGTH_OF:
            _no_nul(value, name)
            if not isinstance(value, str) or not 1 <= len(value.encode("ascii", "replace")) <= _DOMAIN_BYTES_MAX:
                raise DownlinkError(f"params: {name} is a text of 1 to {_DOMAIN_BYTES_MAX} ASCII characters")
            items.append((_LENGTH_OF[name], len(value)))
        else:
            low, high = _RANGES[name][edition == Edition.E2025]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise DownlinkError(f"params: {name} = {value!r} is not {low} to {high} (edition {2000 + edition})")
        items.append((name, value))
    return encode_params(edition, items)


def encode_params(edition: int, items: list[tuple[str, int | str]]) -> bytes:
    """Count and {id, value} of ``items``, by the widths of the edition; ranges are the caller's part."""
    out = bytearray((len(items),))
    for name, value in items:
        width = param_width(edition, IDS[name])
        out.append(IDS[name])
        if isinstance(width, int):
            out += int(value).to_bytes(width, "big")
        else:
            text = _ascii(str(value), name)
            out += text if width is None else text.ljust(VERSION_BYTES, b"\0")[:VERSION_BYTES]
    return bytes(out)


def _no_nul(value: Any, name: str) -> None:
    """A terminal reads NUL as padding, and a table of texts cannot keep it."""
    if isinstance(value, str) and "\0" in value:
        raise DownlinkError(f"{name}: {value!r} has a NUL character: leave it out")


def _ascii(text: str, name: str) -> bytes:
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as error:
        raise DownlinkError(f"{name}: {text!r} is not ASCII") from error


# -- control ------------------------------------------------------------------------------------------
def _control(body: Mapping[str, Any], edition: int) -> bytes:
    control = body.get("control")
    if isinstance(control, int) and not isinstance(control, bool) and 0x80 <= control <= 0xFE:
        _only(body, "control", "hex")
        try:
            custom = bytes.fromhex(str(body.get("hex", "")))
        except ValueError as error:
            raise DownlinkError(f"hex: {body.get('hex')!r} is not hex digits") from error
        if len(custom) > TEXT_BYTES_MAX:
            raise DownlinkError(f"hex: {len(custom)} bytes, at most {TEXT_BYTES_MAX}")
        return bytes((control,)) + custom
    if not isinstance(control, str) or control not in CONTROLS:
        raise DownlinkError(f"control: {control!r} is not one of {', '.join(CONTROLS)}, or a number 128-254 with hex")
    head = bytes((CONTROLS[control],))
    if control == "warning":
        _only(body, "control", "level", "text")
        return head + _warning(body.get("level", 0), body.get("text", ""), edition)
    if control == "upgrade":
        _only(body, "control", *(part.name for part in _UPGRADE))
        return head + b";".join(_upgrade_part(part, body.get(part.name)) for part in _UPGRADE)
    _only(body, "control")
    return head


def _warning(level: Any, text: Any, edition: int) -> bytes:
    most = 4 if edition == Edition.E2025 else 3
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= most:
        raise DownlinkError(f"level: {level!r} is not 0 to {most} (edition {2000 + edition})")
    if not isinstance(text, str):
        raise DownlinkError(f"text: {text!r} is not a text")
    _no_nul(text, "text")
    try:
        encoded = text.encode("gb18030")
    except UnicodeEncodeError as error:
        raise DownlinkError("text: has characters that GB 18030 cannot say") from error
    if len(encoded) > TEXT_BYTES_MAX:
        raise DownlinkError(f"text: {len(encoded)} bytes in GB 18030, at most {TEXT_BYTES_MAX}")
    return bytes((level,)) + encoded


def _upgrade_part(part: _Part, value: Any) -> bytes:
    if value is None:
        return b""
    if part.name == "address":
        try:
            return bytes(2) + ipaddress.IPv4Address(value).packed
        except (ipaddress.AddressValueError, ValueError) as error:
            raise DownlinkError(f"address: {value!r} is not an IPv4 address") from error
    if not part.text:
        assert part.width is not None
        most = 256**part.width - 1
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise DownlinkError(f"{part.name}: {value!r} is not 0 to {most}")
        return value.to_bytes(part.width, "big")
    if not isinstance(value, str) or ";" in value:
        raise DownlinkError(f"{part.name}: {value!r} is not a text without a semicolon")
    _no_nul(value, part.name)
    text = _ascii(value, part.name)
    if len(text) > (part.width or TEXT_BYTES_MAX):
        raise DownlinkError(f"{part.name}: {len(text)} characters, at most {part.width or TEXT_BYTES_MAX}")
    return text
