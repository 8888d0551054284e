"""The rules of the dual credit by accounting year, read from a TOML table.  Computes nothing.

Every figure is a :class:`Cell` with its tag and source.  A year that the table does not have has no rule: nothing
is carried forward.  A table with a mistake is refused as a whole, every mistake with its place.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, Final, TypeVar

T = TypeVar("T")

TAGS: Final[Mapping[str, str]] = {
    "A": "the rule's own text was read, or an official notice",
    "B": "two or more independent sources agree",
    "P": "a convention of this program, where no source fixes one",
    "C": "one secondary source only: unconfirmed",
    "D": "common knowledge of the trade, seen in no source: unconfirmed",
}  # the surest first
UNCONFIRMED: Final = frozenset("CD")
TABLE_BYTES_MAX: Final = 1024 * 1024


class RulesError(ValueError):
    """A table of rules that cannot be used, with every mistake in it."""


class NoRule(LookupError):
    """The year asked for has no rule, and none is made up."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure of the table: where it stands, its value, how sure it is and where it was seen."""

    name: str
    value: Decimal
    tag: str
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Band:
    """A factor for values below ``below`` (None: all that are left)."""

    below: Decimal | None
    factor: Cell


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a line: slope × x + constant, for x below ``below`` or up to and with ``to``."""

    below: Decimal | None
    to: Decimal | None
    slope: Cell
    constant: Cell

    def holds(self, x: Decimal) -> bool:
        return (self.below is None or x < self.below) and (self.to is None or x <= self.to)


@dataclass(frozen=True, slots=True)
class NevRule:
    ratio: Cell
    low_weight: Cell
    duty_from: Cell


@dataclass(frozen=True, slots=True)
class Consumption:
    """``kind`` classes: best, good, poor by the target; ratio: target ÷ actual up to ``most``, else poor."""

    kind: str
    poor: Cell
    targets: tuple[Segment, ...]
    best: Cell | None = None
    best_share: Cell | None = None
    good: Cell | None = None
    most: Cell | None = None


@dataclass(frozen=True, slots=True)
class Disputed:
    """Ranges whose standard credit the sources do not agree on."""

    begin: Decimal
    below: Decimal
    line: Cell
    flat: Cell


@dataclass(frozen=True, slots=True)
class BevRule:
    first_km: Cell
    cap: Cell
    lines: tuple[Segment, ...]
    range_factor: tuple[Band, ...]
    density_factor: tuple[Band, ...]
    consumption: Consumption
    disputed: Disputed | None


@dataclass(frozen=True, slots=True)
class PhevRule:
    standard: Cell
    range_from_km: Cell
    missed: Cell


@dataclass(frozen=True, slots=True)
class FcvRule:
    slope: Cell
    cap: Cell


@dataclass(frozen=True, slots=True)
class VehicleRule:
    """What a vehicle brings; None: no rule was found."""

    bev: BevRule
    phev: PhevRule | None
    fcv: FcvRule | None
    decimals: Cell


@dataclass(frozen=True, slots=True)
class Small:
    """Easing for makers of fewer than ``below`` vehicles: (fall of CAFC, ease), the greatest fall first."""

    below: Cell
    steps: tuple[tuple[Cell, Cell], ...]


@dataclass(frozen=True, slots=True)
class CafcRule:
    nev_fuel: Cell
    nev_weight: Cell
    targets: tuple[Segment, ...]
    factor: Cell | None
    low_weight: Cell | None
    small: Small | None


@dataclass(frozen=True, slots=True)
class YearRules:
    """Everything that holds in an accounting year; ``cafc`` None: no rule for CAFC."""

    year: int
    nev: NevRule
    vehicle: VehicleRule
    cafc: CafcRule | None


@dataclass(frozen=True, slots=True)
class RuleTable:
    """A whole table, and the words of its sources."""

    name: str
    sources: Mapping[str, str]
    years: Mapping[int, YearRules]

    def of(self, year: int) -> YearRules:
        """The rules of ``year``.  Raises ``NoRule``."""
        found = self.years.get(year)
        if found is None:
            known = ", ".join(map(str, sorted(self.years)))
            raise NoRule(f"no rule for {year}: the table has {known}; ratios for later years are not announced")
        return found


@cache
def built_in_text() -> str:
    """The table that comes with the program, as a file to copy and change."""
    return (files("schemas") / "credits" / "rules.toml").read_text("utf-8")


@cache
def built_in() -> RuleTable:
    return read_rules(built_in_text())


def read_rules(text: str) -> RuleTable:
    """A table from TOML.  Raises ``RulesError``."""
    try:
        tables = tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, ArithmeticError) as error:
        raise RulesError(f"not a TOML file: {error}") from error
    reader = _Reader()
    table = reader.table(tables)
    if reader.mistakes or table is None:
        raise RulesError("\n".join(reader.mistakes[:50]))
    return table


def cells(rules: Any) -> list[Cell]:
    """Every cell of a rule, in the order of the table."""
    if isinstance(rules, Cell):
        return [rules]
    if isinstance(rules, tuple):
        return [cell for part in rules for cell in cells(part)]
    if hasattr(rules, "__dataclass_fields__"):
        return [cell for name in rules.__dataclass_fields__ for cell in cells(getattr(rules, name))]
    return []


class _Reader:
    """Walks the parsed TOML; collects mistakes by place instead of stopping at the first."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self.sources: Mapping[str, str] = {}

    def table(self, given: Mapping[str, Any]) -> RuleTable | None:
        self._only(given, "", ("name", "sources", "nev", "vehicle", "cafc"))
        sources = given.get("sources", {})
        if not (isinstance(sources, dict) and all(isinstance(text, str) for text in sources.values())):
            self._wrong("sources", "is not a table of names to texts")
            sources = {}
        self.sources = sources
        name = given.get("name", "")
        if not (isinstance(name, str) and name.strip()):
            self._wrong("name", "is missing: call the table something")
        nev = self._by_year(given, "nev", self._nev)
        vehicle = self._by_year(given, "vehicle", self._vehicle)
        cafc = self._by_year(given, "cafc", self._cafc)
        for year in sorted(set(nev) ^ set(vehicle)):
            self._wrong(f"year {year}", "is in only one of [[nev]] and [[vehicle]]")
        for year in sorted(set(cafc) - set(nev)):
            self._wrong(f"year {year}", "is in [[cafc]] only")
        if not nev and not self.mistakes:
            self._wrong("nev", "is missing: there is no year in the table")
        if self.mistakes:
            return None
        years = {year: YearRules(year, nev[year], vehicle[year], cafc.get(year)) for year in sorted(nev)}
        return RuleTable(str(name).strip(), sources, years)

    # -- parts -------------------------------------------------------------------------------------
    def _nev(self, given: Mapping[str, Any], at: str) -> NevRule:
        self._only(given, at, ("years", "ratio", "low_weight", "duty_from"))
        return NevRule(*(self._cell(given, at, name) for name in ("ratio", "low_weight", "duty_from")))

    def _vehicle(self, given: Mapping[str, Any], at: str) -> VehicleRule:
        self._only(given, at, ("years", "bev", "phev", "fcv", "round"))
        phev, fcv = self._sub(given, at, "phev", optional=True), self._sub(given, at, "fcv", optional=True)
        if phev is not None:
            self._only(phev, f"{at}.phev", ("standard", "range_from_km", "missed"))
        if fcv is not None:
            self._only(fcv, f"{at}.fcv", ("slope", "cap"))
        rounding = self._sub(given, at, "round") or {}
        self._only(rounding, f"{at}.round", ("decimals",))
        decimals = self._cell(rounding, f"{at}.round", "decimals")
        if not (decimals.value == int(decimals.value) and 0 <= decimals.value <= 9):
            self._wrong(f"{at}.round.decimals", "is not a whole number from 0 to 9")
        return VehicleRule(
            self._bev(self._sub(given, at, "bev") or {}, f"{at}.bev"),
            None if phev is None else PhevRule(*(self._cell(phev, f"{at}.phev", n) for n in PhevRule.__slots__)),
            None if fcv is None else FcvRule(*(self._cell(fcv, f"{at}.fcv", n) for n in FcvRule.__slots__)),
            decimals,
        )

    def _bev(self, given: Mapping[str, Any], at: str) -> BevRule:
        self._only(given, at, ("first_km", "cap", "lines", "range_factor", "density_factor", "consumption", "disputed"))
        disputed = self._sub(given, at, "disputed", optional=True)
        lines = self._segments(given, at, "lines")
        if not lines:
            self._wrong(f"{at}.lines", "is empty: a BEV has a standard credit")
        return BevRule(
            self._cell(given, at, "first_km"),
            self._cell(given, at, "cap"),
            lines,
            self._bands(given, at, "range_factor"),
            self._bands(given, at, "density_factor"),
            self._consumption(self._sub(given, at, "consumption") or {}, f"{at}.consumption"),
            None if disputed is None else self._disputed(disputed, f"{at}.disputed"),
        )

    def _disputed(self, given: Mapping[str, Any], at: str) -> Disputed:
        self._only(given, at, ("from", "below", "line", "flat"))
        begin, below = self._number(given, at, "from"), self._number(given, at, "below")
        return Disputed(
            begin or Decimal(0), below or Decimal(0), self._cell(given, at, "line"), self._cell(given, at, "flat")
        )

    def _consumption(self, given: Mapping[str, Any], at: str) -> Consumption:
        parts = {"classes": ("best", "best_share", "good"), "ratio": ("most",)}
        kind = given.get("kind")
        if kind not in parts:
            self._wrong(f"{at}.kind", f"is {kind!r}, not one of {', '.join(parts)}")
            kind = "ratio"
        self._only(given, at, ("kind", "poor", "targets", *parts[kind]))
        named = {name: self._cell(given, at, name) for name in parts[kind]}
        return Consumption(kind, self._cell(given, at, "poor"), self._segments(given, at, "targets"), **named)

    def _cafc(self, given: Mapping[str, Any], at: str) -> CafcRule:
        self._only(given, at, ("years", "factor", "nev_fuel", "nev_weight", "low_weight", "targets", "small"))
        small = self._sub(given, at, "small", optional=True)
        return CafcRule(
            self._cell(given, at, "nev_fuel"),
            self._cell(given, at, "nev_weight"),
            self._segments(given, at, "targets"),
            self._cell(given, at, "factor") if "factor" in given else None,
            self._cell(given, at, "low_weight") if "low_weight" in given else None,
            None if small is None else self._small(small, f"{at}.small"),
        )

    def _small(self, given: Mapping[str, Any], at: str) -> Small:
        self._only(given, at, ("below", "steps"))
        steps = []
        for n, step in enumerate(self._list(given, at, "steps")):
            where = f"{at}.steps[{n}]"
            self._only(step, where, ("fall", "ease"))
            steps.append((self._cell(step, where, "fall"), self._cell(step, where, "ease")))
        return Small(self._cell(given, at, "below"), tuple(sorted(steps, key=lambda step: -step[0].value)))

    # -- shapes ------------------------------------------------------------------------------------
    def _by_year(
        self, given: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], str], T]
    ) -> dict[int, T]:
        found: dict[int, T] = {}
        for n, part in enumerate(self._list(given, "", name, optional=True)):
            years = part.get("years")
            at = f"{name}[{n}]"
            good = isinstance(years, list) and years and all(type(year) is int for year in years)
            if not good:
                self._wrong(f"{at}.years", "is not a list of accounting years")
                continue
            assert isinstance(years, list)
            rule = read(part, f"{name} {years[0]}" + (f"-{years[-1]}" if len(years) > 1 else ""))
            for year in years:
                if not 2016 <= year <= 2100:
                    self._wrong(f"{at}.years", f"has {year}: accounting years are 2016 to 2100")
                if year in found:
                    self._wrong(f"{at}.years", f"has {year}, which is there already")
                found[year] = rule
        return found

    def _bands(self, given: Mapping[str, Any], at: str, name: str) -> tuple[Band, ...]:
        bands = []
        for n, part in enumerate(self._list(given, at, name)):
            where = f"{at}.{name}[{n}]"
            self._only(part, where, ("below", "value", "tag", "source", "note"))
            below = self._number(part, where, "below") if "below" in part else None
            bands.append(Band(below, self._as_cell({k: v for k, v in part.items() if k != "below"}, where)))
        if bands:
            self._ordered([band.below for band in bands], f"{at}.{name}")
        return tuple(bands)

    def _segments(self, given: Mapping[str, Any], at: str, name: str) -> tuple[Segment, ...]:
        segments = []
        for n, part in enumerate(self._list(given, at, name)):
            where = f"{at}.{name}[{n}]"
            self._only(part, where, ("below", "to", "slope", "constant"))
            below = self._number(part, where, "below") if "below" in part else None
            to = self._number(part, where, "to") if "to" in part else None
            segments.append(Segment(below, to, self._cell(part, where, "slope"), self._cell(part, where, "constant")))
        if segments:
            self._ordered([s.below if s.below is not None else s.to for s in segments], f"{at}.{name}")
        return tuple(segments)

    def _ordered(self, edges: Sequence[Decimal | None], at: str) -> None:
        inner = edges[:-1]
        known = [edge for edge in inner if edge is not None]
        if edges[-1] is not None or len(known) != len(inner) or any(a >= b for a, b in pairwise(known)):
            self._wrong(at, "has not rising edges with the last one open, so some value would have no figure")

    def _cell(self, given: Mapping[str, Any], at: str, name: str) -> Cell:
        part = given.get(name)
        if not isinstance(part, dict):
            self._wrong(f"{at}.{name}", "is missing, or not { value = …, tag = …, source = … }")
            return Cell(f"{at}.{name}", Decimal(0), "D", "")
        return self._as_cell(part, f"{at}.{name}")

    def _as_cell(self, part: Mapping[str, Any], at: str) -> Cell:
        self._only(part, at, ("value", "tag", "source", "note"))
        value = self._number(part, at, "value")
        tag, source, note = (part.get(name, "") for name in ("tag", "source", "note"))
        if tag not in TAGS:
            self._wrong(f"{at}.tag", f"is {tag!r}, not one of {', '.join(TAGS)}")
        if not isinstance(source, str) or not source.split():
            self._wrong(f"{at}.source", "is missing: say where the figure was seen")
        elif unknown := [word for word in source.split() if word not in self.sources]:
            self._wrong(f"{at}.source", f"names {', '.join(unknown)}, which [sources] does not have")
        if not isinstance(note, str):
            self._wrong(f"{at}.note", "is not a text")
        return Cell(at, value or Decimal(0), str(tag), str(source), str(note))

    def _number(self, given: Mapping[str, Any], at: str, name: str) -> Decimal | None:
        value = given.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or not -(10**9) <= value <= 10**9:
            self._wrong(f"{at}.{name}", f"is {value!r}, not a number")
            return None
        return Decimal(value)

    def _sub(self, given: Mapping[str, Any], at: str, name: str, optional: bool = False) -> Mapping[str, Any] | None:
        part = given.get(name)
        if part is None and optional:
            return None
        if not isinstance(part, dict):
            self._wrong(f"{at}.{name}", "is missing" if part is None else "is not a table")
            return None
        return part

    def _list(self, given: Mapping[str, Any], at: str, name: str, optional: bool = False) -> list[Mapping[str, Any]]:
        part = given.get(name, [] if optional else None)
        if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
            self._wrong(f"{at}.{name}".lstrip("."), "is missing, or not a list of tables")
            return []
        return part

    def _only(self, given: Mapping[str, Any], at: str, names: Sequence[str]) -> None:
        for name in given:
            if name not in names:
                self._wrong(f"{at}.{name}".lstrip("."), f"is not known here; known are {', '.join(names)}")

    def _wrong(self, at: str, wrong: str) -> None:
        self.mistakes.append(f"{at} {wrong}")
