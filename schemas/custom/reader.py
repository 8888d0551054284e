"""Reading a checked TOML file: every key is taken by name and kind, every mistake keeps its line and column."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from schemas.custom.model import DIGITS_MAX, Mistake
from schemas.custom.places import Path, Place, places
from schemas.signals import State

_VIN: Final = re.compile(r"[!-.0-~]{1,17}", re.ASCII)
_STATES: Final = {"invalid": State.INVALID, "abnormal": State.ABNORMAL}


class Stop(Exception):
    """A mistake was noted, and what it is in cannot be read further."""


class Reader:
    """The file while it is read: where everything stands, and what was wrong so far."""

    def __init__(self, text: str) -> None:
        self.places: dict[Path, Place] = places(text)
        self.mistakes: list[Mistake] = []

    def place(self, path: Path) -> Place:
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def wrong(self, path: Path, text: str, *, key: bool = False) -> None:
        place = self.place(path)
        self.mistakes.append(Mistake(*(place.key if key else place.value), text))

    def line(self, path: Path) -> int:
        return self.place(path).key[0]


class Table:
    """One table of the file: keys are taken by name and kind, and those left over are mistakes."""

    def __init__(self, reader: Reader, path: Path, values: Any, what: str) -> None:
        self.reader, self.path, self.what = reader, path, what
        self.known: list[str] = []
        if not isinstance(values, dict):
            reader.wrong(path, f"{what} is {shown(values)}; it must be a table of keys and values")
            raise Stop
        self.values: Mapping[str, Any] = values

    def has(self, key: str) -> bool:
        return key in self.values

    def wrong(self, key: str, text: str) -> None:
        self.reader.wrong((*self.path, key) if key in self.values else self.path, text)

    def take(
        self, key: str, kind: Callable[[Any], Any], allowed: str, default: Any = None, *, needed: bool = False
    ) -> Any:
        """The value of ``key`` through ``kind``, which raises ``ValueError`` for one that is not ``allowed``."""
        self.known.append(key)
        if key not in self.values:
            if needed:
                self.reader.wrong(self.path, f"{self.what} has no {key}; add {key} = ... ({allowed})", key=True)
                raise Stop
            return default
        value = self.values[key]
        try:
            return kind(value)
        except (ValueError, InvalidOperation):
            self.wrong(key, f"{key} = {shown(value)} cannot be used; give {allowed}")
            if needed:
                raise Stop from None
            return default

    def tables(self, key: str, what: str) -> list[Table]:
        """The tables of an array of tables; those that are none are noted and left out."""
        self.known.append(key)
        values = self.values.get(key, [])
        if not isinstance(values, list):
            self.wrong(key, f"{key} must be an array of tables: write [[{key}]]")
            return []
        found = []
        for i, value in enumerate(values):
            try:
                found.append(Table(self.reader, (*self.path, key, i), value, what))
            except Stop:
                continue
        return found

    def finish(self) -> None:
        for key in self.values:
            if key not in self.known:
                near = nearest(key, self.known)
                hint = f"did you mean {near}?" if near else f"{self.what} takes: {', '.join(self.known)}"
                self.reader.wrong((*self.path, key), f"{key} is not a key of {self.what}; {hint}", key=True)


# -- kinds of values -------------------------------------------------------------------------------------


def integer(low: int, high: int) -> Callable[[Any], int]:
    def kind(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return kind


def choice(values: Mapping[Any, Any]) -> Callable[[Any], Any]:
    def kind(value: Any) -> Any:
        if isinstance(value, (list, dict)) or value not in values:
            raise ValueError
        return values[value]

    return kind


def text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def number(value: Any) -> Decimal:
    """A decimal number, finite and with at most ``DIGITS_MAX`` decimals."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise ValueError
    exact = Decimal(value)
    if not exact.is_finite() or abs(exact) >= 10**18 or decimals_of(exact) > DIGITS_MAX:
        raise ValueError
    return exact


def decimals_of(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def scale_of(value: Any) -> Decimal:
    exact = number(value)
    if not exact:
        raise ValueError
    return exact


def pair(value: Any) -> tuple[Decimal, Decimal]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError
    return number(value[0]), number(value[1])


def vins_of(value: Any) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    if not given or not all(isinstance(vin, str) and _VIN.fullmatch(vin) for vin in given):
        raise ValueError
    return tuple(dict.fromkeys(given))


def code_names(value: Any) -> dict[int, str]:
    if not isinstance(value, dict) or not all(isinstance(word, str) for word in value.values()):
        raise ValueError
    return {int(code): word for code, word in value.items()}


def nearest(name: str, known: Sequence[str]) -> str | None:
    found = difflib.get_close_matches(name, known, 1)
    return found[0] if found else None


def shown(value: Any) -> str:
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


ORDERS: Final = {"big": False, "little": True}
FEW_DECIMALS: Final = f"a number with at most {DIGITS_MAX} decimals"
SENTINELS: Final = '"standard", or raw values such as {invalid = 0xFF, abnormal = [0xFE]}'


def sentinels(bits: int) -> Callable[[Any], tuple[tuple[int, State], ...]]:
    """Raw patterns in ``bits`` bits; ``"standard"`` is all ones for invalid and one less for abnormal."""

    def kind(value: Any) -> tuple[tuple[int, State], ...]:
        if value == "standard" and bits > 1:
            return ((1 << bits) - 1, State.INVALID), ((1 << bits) - 2, State.ABNORMAL)
        if not isinstance(value, dict) or set(value) - set(_STATES):
            raise ValueError
        found = [
            (integer(-(1 << bits - 1), (1 << bits) - 1)(one) % (1 << bits), _STATES[name])
            for name, raw in value.items()
            for one in (raw if isinstance(raw, list) else [raw])
        ]
        if len({raw for raw, _ in found}) < len(found):
            raise ValueError
        return tuple(found)

    return kind
