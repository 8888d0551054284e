"""What answers about one vehicle's statistics have in common: who it is, how new they are, what the registry lacks.

Statistics are folded behind telemetry. An answer says up to when (``newest_data_time``), what can only be changed by
late data (``settled_through``), and names every registry fact without which one of its figures had to stay empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import Query, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from services.web.exports import Column
from services.web.parameters import TIME_ALLOWED, Context, next_link
from services.web.problems import bad_parameter
from services.web.vehicles import found

RANGE_DEFAULT: Final = timedelta(days=30)
RANGE_MAX: Final = timedelta(days=366 * 20)  # a vehicle's life
DAY_ALLOWED: Final = "a local day, such as 2026-11-24"
SessionFromQuery = Annotated[
    str | None, Query(alias="from", description=f"Start, included: {TIME_ALLOWED}. Default: 30 days before `to`.")
]
FromDayQuery = Annotated[
    str | None, Query(alias="from", description=f"First day, included: {DAY_ALLOWED}. Default: 30 days.")
]
ToDayQuery = Annotated[str | None, Query(alias="to", description="Last day, included. Default: today.")]

_FACTS: Final[Mapping[str, str]] = {
    "battery_kwh": "energy of the battery, kWh",
    "battery_ah": "rated capacity, Ah",
    "cells": "number of cells in series",
    "certified_kwh_per_100km": "certified consumption, kWh/100 km",
}


@dataclass(slots=True)
class Subject:
    """A vehicle, what the registry knows of it, and how far its statistics are."""

    vin: str
    vehicle_id: int
    facts: Mapping[str, Any]
    lacking: dict[str, list[str]] = field(default_factory=dict)

    @property
    def on_change(self) -> bool:
        """The vehicle sends at changes of state only: gaps are normal and nothing is due (3.3 [A])."""
        return bool(self.facts["upload"] == "on_change")

    def fact(self, name: str) -> Any:
        return self.facts[name]

    def lacks(self, name: str, purpose: str) -> None:
        """A figure had to stay empty because the registry does not know ``name``."""
        purposes = self.lacking.setdefault(name, [])
        if purpose not in purposes:
            purposes.append(purpose)

    def settled(self, day: date) -> bool:
        """Whether a local day is folded for good: only late data change it."""
        open_day = self.facts["open_day"]
        return open_day is not None and day < open_day

    def as_of(self, ctx: Context) -> dict[str, Any]:
        """How new, how final, and what is missing from the registry."""
        return {
            "newest_data_time": ctx.local(self.facts["newest_at"]),
            "settled_through": ctx.local(self.facts["through_at"]),
            "telemetry_newest_time": ctx.local(self.facts["telemetry_at"]),
            "time_zone": ctx.zone.key,
            "needs": [
                {
                    "fact": name,
                    "text": _FACTS.get(name, name),
                    "for": purposes,
                    "how_to_fix": f"Tell the registry: nevstream vehicles set {self.vin} {name}=VALUE, or for all of a "
                    f"model nevstream models set MODEL {name}=VALUE.",
                }
                for name, purposes in self.lacking.items()
            ],
        }


async def subject(ctx: Context, vin: str) -> Subject:
    """The vehicle, or a problem document that says that there is none."""
    row = await found(ctx, vin)
    facts = await ctx.queries.vehicle_facts(row["vehicle_id"])
    assert facts is not None, "a vehicle that is known has its row in vehicle_facts"
    return Subject(vin, row["vehicle_id"], facts)


# -- days --------------------------------------------------------------------------------------------
def day_given(text: str, name: str) -> date:
    try:
        day = date.fromisoformat(text.strip())
    except ValueError:
        raise bad_parameter(name, text, "is not a day", DAY_ALLOWED) from None
    if not date(1970, 1, 2) <= day < date(2200, 1, 1):
        raise bad_parameter(name, text, "lies outside 1970 to 2199", DAY_ALLOWED)
    return day


def days_given(since: str | None, until: str | None, ctx: Context) -> tuple[date, date]:
    """Local days, both included."""
    last = day_given(until, "to") if until is not None else ctx.now().astimezone(ctx.zone).date()
    first = day_given(since, "from") if since is not None else last - RANGE_DEFAULT + timedelta(days=1)
    if first > last:
        raise bad_parameter("from", since or first.isoformat(), f"is after `to` ({last})", "a day up to to")
    if (last - first) > RANGE_MAX:
        wrong = f"to `to` are {(last - first).days + 1} days"
        raise bad_parameter("from", since, wrong, f"at most {RANGE_MAX.days} days before to")
    return first, last


def day_begins(day: date, ctx: Context) -> datetime:
    """Local midnight."""
    return datetime(day.year, day.month, day.day, tzinfo=ctx.zone)


def day_cursor(text: str | None) -> date | None:
    """A cursor that is the first day of the page."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise bad_parameter(
            "cursor", text, "is not a cursor of this path", "next_cursor of an answer, unchanged"
        ) from None


def paged(request: Request, following: str | None, **resolved: Any) -> dict[str, Any]:
    return {"next_cursor": following, "next": next_link(request, following, **resolved)}


# -- shapes for OpenAPI ------------------------------------------------------------------------------
_TYPES: Final[Mapping[str, Any]] = {
    "smallint": int, "integer": int, "bigint": int, "real": float, "double precision": float, "text": str,
    "bool": bool, "date": date, "time": AwareDatetime, "integers": list[int], "json": Any,
}  # fmt: skip


class ColumnModel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    kind: str
    unit: str
    text: str


class Need(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    fact: str = Field(description="What the registry does not know")
    text: str
    for_: list[str] = Field(alias="for", description="Figures that had to stay empty without it")
    how_to_fix: str


class AsOf(BaseModel):
    """Of every answer about a vehicle's statistics."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    vin: str
    newest_data_time: AwareDatetime | None = Field(
        description="Newest record that these statistics tell of; null: none are folded yet"
    )
    settled_through: AwareDatetime | None = Field(
        description="What lies before is changed by late or reissued data only"
    )
    telemetry_newest_time: AwareDatetime | None = Field(description="Newest record stored, folded or not")
    time_zone: str = Field(description="In which days begin, and times are given")
    needs: list[Need]


class PageOf(AsOf):
    """Of those that are tables in pages."""

    count: int = Field(description="Rows in this page")
    coverage: float | None = Field(description="Covered time ÷ time, of the rows of this page; 0 to 1")
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null at the end")
    next: str | None = Field(description="Path of the next page")
    columns: list[ColumnModel] = Field(description="Names, units and meanings of the columns, in order")


def row_model(name: str, columns: Iterable[Column]) -> type[BaseModel]:
    """A model of a row from its columns; every value may be null."""
    fields: dict[str, Any] = {
        column.name: (
            _TYPES[column.kind] | None if column.kind != "json" else Any,
            Field(..., description=f"{column.text}{f' ({column.unit})' if column.unit else ''}" or None),
        )
        for column in columns
    }
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def page_model(name: str, key: str, columns: Sequence[Column] | None, **more: Any) -> type[BaseModel]:
    """A model of a page: ``more`` are fields of its own, as for ``pydantic.create_model``.

    ``columns`` None: the request chooses them.
    """
    row: Any = dict[str, Any] if columns is None else row_model(f"{name}Row", columns)
    fields = {key: (list[row], ...), **more}
    return create_model(name, __base__=PageOf, **fields)


RANGE_FIELDS: Final[Mapping[str, Any]] = {
    "from_": (AwareDatetime, Field(alias="from")),
    "to": (AwareDatetime, ...),
}
DAYS_FIELDS: Final[Mapping[str, Any]] = {
    "from_": (date, Field(alias="from", description="First local day")),
    "to": (date, Field(description="Last local day, included")),
}


def coverage_of(rows: Iterable[Mapping[str, Any]], part: str, whole: str) -> float | None:
    """Σ part ÷ Σ whole over rows that know both."""
    pairs = [(row[part], row[whole]) for row in rows if row[part] is not None and row[whole]]
    total = sum(w for _, w in pairs)
    return round(sum(p for p, _ in pairs) / total, 6) if total else None


def rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)
