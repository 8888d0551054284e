"""What a request may say, and how it is read: VINs, times, fields, buckets, cursors, limits.

Everything that cannot be read is refused with its name, what was given and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from fastapi import Depends, Path, Query, Request

from schemas.access import AuditDesk, Caller
from schemas.alarms import AlarmDesk
from schemas.credits.rules import RuleTable
from schemas.downlink import CommandDesk
from schemas.registry.desk import RegistryDesk
from schemas.seams import LetterDesk, Queries
from schemas.signals import INDEX, SIGNALS
from services.settings import Settings
from services.web.problems import ProblemError, bad_parameter, nearest

if TYPE_CHECKING:
    from services.web.own import OwnSignals


@dataclass(frozen=True, slots=True)
class Context:
    """What every endpoint has at hand; ``now`` is passed in so that tests own the clock."""

    settings: Settings
    queries: Queries
    zone: ZoneInfo
    now: Callable[[], datetime]
    letters: LetterDesk | None = None
    own: OwnSignals | None = None
    commands: CommandDesk | None = None
    registry: RegistryDesk | None = None
    credits: RuleTable | None = None
    alarms: AlarmDesk | None = None
    audit: AuditDesk | None = None
    caller: Caller | None = None  # None: web.auth = open, so nobody knows

    @property
    def who(self) -> str:
        """Who asks, for what is kept of changes."""
        return self.caller.name if self.caller is not None else "api"

    @property
    def tenant(self) -> tuple[str, ...] | None:
        """The fleets that the caller may see; None: all."""
        return self.caller.fleets if self.caller is not None else None

    def local(self, time: datetime | None) -> datetime | None:
        """``time`` in the fleet's zone, as answers have it."""
        return time.astimezone(self.zone) if time else None


CONTEXT: Final = "nevstream.context"  # key of the ASGI scope; see services/web/access.py


def context(request: Request) -> Context:
    """What the request works with: narrowed to its caller where callers are known."""
    found: Context = request.scope.get(CONTEXT) or request.app.state.context
    return found


Ctx = Annotated[Context, Depends(context)]


# -- parameters as a whole ---------------------------------------------------------------------------
def only_known(request: Request) -> None:
    """Refuse a parameter that the endpoint does not have, and what can be none.

    A misspelt filter must not go unnoticed.
    """
    path = request.scope["route"].path
    described = request.app.openapi()["paths"].get(path, {}).get(request.method.lower(), {}).get("parameters", [])
    known = [parameter["name"] for parameter in described if parameter["in"] == "query"]
    seen = [name for name, _ in request.query_params.multi_items()]
    for name, value in request.query_params.multi_items():
        if "\0" in value:  # no text of the database has one, so it cannot even be compared
            raise bad_parameter(name[:50], value, "has a NUL in it", "text")
    for name in seen:
        if name not in known:
            near = nearest(name, known)
            hint = f"one of: {', '.join(known)}" if known else "nothing: this path takes no parameters"
            wrong = "is not a parameter of this path" + (f"; did you mean {near[0]}?" if near else "")
            raise bad_parameter(name[:50], request.query_params[name], wrong, hint)
        if seen.count(name) > 1:
            raise bad_parameter(name, request.query_params.getlist(name), "is given more than once", "one value")


# -- vehicles ----------------------------------------------------------------------------------------
_VIN: Final = re.compile(r"[!-.0-~]{1,17}", re.ASCII)
VIN_ALLOWED: Final = "1 to 17 printable ASCII characters without space or slash, as the vehicle sends it"
VinPath = Annotated[
    str,
    Path(
        description=f"Identification: {VIN_ALLOWED}.",
        examples=["LTEST000000000001"],
        json_schema_extra={"maxLength": 17},
    ),
]


def checked_vin(text: str, name: str = "vin", where: str = "path") -> str:
    """``text`` if it can be an identification (17 bytes of ASCII, shorter ones zero padded on the wire)."""
    if not _VIN.fullmatch(text):
        raise bad_parameter(name, text, "is not a vehicle identification", VIN_ALLOWED, where)
    return text


def no_vehicle(vin: str) -> ProblemError:
    return ProblemError(
        404, "no-such-vehicle", "No such vehicle", f"No vehicle {vin} is registered or has ever reported.",
        f"List vehicles with /v1/vehicles?vin={vin[:8]}; refused frames are at /v1/dead-letters?vin={vin}.",
    )  # fmt: skip


# -- times -------------------------------------------------------------------------------------------
_EARLIEST, _LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
TIME_ALLOWED: Final = "ISO 8601, such as 2026-11-24T08:00:00+08:00, ...Z, or without offset in the fleet's time zone"
RANGE_MAX: Final = timedelta(days=400)
RANGE_DEFAULT: Final = timedelta(hours=1)
_PLUS_AS_SPACE: Final = re.compile(r"(T.*) (\d\d:?\d\d)$")

FromQuery = Annotated[
    str | None, Query(alias="from", description=f"Start, included: {TIME_ALLOWED}. Default: one hour before `to`.")
]
ToQuery = Annotated[str | None, Query(alias="to", description="End, not included; written as `from` is. Default: now.")]


def time_given(text: str, name: str, zone: ZoneInfo) -> datetime:
    """A point in time, in UTC."""
    try:
        # an offset's + that was not written %2B arrives as a space
        time = datetime.fromisoformat(_PLUS_AS_SPACE.sub(r"\1+\2", text.strip()))
        time = (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise bad_parameter(name, text, "is not a date and time", TIME_ALLOWED) from None
    if not _EARLIEST <= time < _LATEST:
        raise bad_parameter(name, text, "lies outside 1970 to 2199", TIME_ALLOWED)
    return time


def range_given(
    since: str | None,
    until: str | None,
    ctx: Context,
    *,
    default: timedelta = RANGE_DEFAULT,
    most: timedelta = RANGE_MAX,
) -> tuple[datetime, datetime]:
    """The half-open range [from, to) in UTC, with defaults."""
    end = time_given(until, "to", ctx.zone) if until is not None else ctx.now().astimezone(UTC)
    start = time_given(since, "from", ctx.zone) if since is not None else end - default
    ordered(start, end, since)
    if end - start > most:
        raise bad_parameter(
            "from", since, f"to `to` are {(end - start).days} days", f"at most {most.days} days before to"
        )
    return start, end


def ordered(start: datetime, end: datetime, given: object) -> None:
    if start >= end:
        wrong = f"is not before `to` ({end.isoformat()}); the range is half-open, so equal times hold nothing"
        raise bad_parameter("from", given if given is not None else start.isoformat(), wrong, "a time before to")


# -- fields and buckets ------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Field:
    """A column of an answer: ``name`` as answered, ``column`` as stored, ``kind`` as built."""

    name: str
    column: str
    kind: str  # "signal", "text", "time" or the name of a list
    unit: str
    text: str


EXTRA_FIELDS: Final = (
    Field("received_at", "received_at", "time", "", "when the frame arrived"),
    Field("edition", "edition", "edition", "", "edition of GB/T 32960.3: 2016 or 2025; null: a JSON sample"),
    Field("door", "door", "door", "", "where the frame came in: gbt32960, mqtt, mqtt_bridge, requeue"),
    Field("notes", "notes", "notes", "", "what a reader should know of the report, such as truncated_block"),
    Field(
        "flaws", "flaws", "flaws", "", "signals without a trustworthy value: abnormal, invalid, out_of_range, suspect"
    ),
    Field("cells_v", "cells", "cells", "V", "cell voltages, one list per pack in the order sent; null without a value"),
    Field("temps_c", "temps", "temps", "°C", "probe temperatures, one list per pack; null without a value"),
)
FIELDS: Final[dict[str, Field]] = {
    **{signal.name: Field(signal.name, signal.name, "signal", signal.unit, signal.text) for signal in SIGNALS},
    **{field.name: field for field in EXTRA_FIELDS},
}
_ALIASES: Final = {"cells": "cells_v", "temps": "temps_c"}
DEFAULT_FIELDS: Final = (
    "vehicle_state", "charge_state", "speed_kmh", "odometer_km", "total_voltage_v", "total_current_a", "soc_pct",
    "insulation_resistance_kohm", "longitude_deg", "latitude_deg", "alarm_level", "cell_max_v", "cell_min_v",
    "probe_max_c", "probe_min_c", "flaws",
)  # fmt: skip
FieldsQuery = Annotated[
    str | None,
    Query(
        description="Names from /v1/signals, with commas between; `all` for every signal. Default: "
        + ", ".join(DEFAULT_FIELDS),
        examples=["soc_pct,speed_kmh,total_voltage_v"],
    ),
]


def fields_given(text: str | None, bucketed: bool, own: Mapping[str, Field] | None = None) -> list[Field]:
    """The fields asked for, in that order; lists and the like cannot be put into buckets.

    ``own``: the signals of a signals file, by name; ``all`` has them too.
    """
    fields = {**FIELDS, **(own or {})}
    buckets = INDEX.keys() | (own or {}).keys()
    if text is None:
        names: Sequence[str] = DEFAULT_FIELDS
    elif text.strip() == "all":
        names = list(fields)
    else:
        names = list(dict.fromkeys(_ALIASES.get(name, name) for part in text.split(",") if (name := part.strip())))
        if not names:
            raise bad_parameter("fields", text, "names no field", "names from /v1/signals, with commas between")
    for name in names:
        if name not in fields:
            near = nearest(name, fields)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise bad_parameter("fields", name, f"there is no field of this name{hint}", "names from /v1/signals")
    if not bucketed:
        return [fields[name] for name in names]
    if text is not None and text.strip() != "all" and (lists := [name for name in names if name not in buckets]):
        wrong = "has no aggregate, so it cannot be put into buckets"
        raise bad_parameter(
            "fields", lists[0], wrong, "signals, such as cell_max_v or probe_max_c, or leave bucket out"
        )
    return [fields[name] for name in names if name in buckets]


_BUCKET: Final = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BUCKET_ALLOWED: Final = "a whole number with s, m, h or d, from 1s to 366d, such as 30s, 5m, 1h, 1d"
BucketQuery = Annotated[
    str | None,
    Query(
        description=f"Length of a bucket: {BUCKET_ALLOWED}. Buckets begin at local midnight; empty ones are left out. "
        "Leave it out for the rows as they were reported.",
        examples=["5m"],
    ),
]


def bucket_given(text: str | None) -> timedelta | None:
    if text is None:
        return None
    found = _BUCKET.fullmatch(text.strip())
    length = timedelta(seconds=int(found[1]) * _SECONDS[found[2]]) if found else timedelta(0)
    if not timedelta(seconds=1) <= length <= timedelta(days=366):
        raise bad_parameter("bucket", text, "is not a length of time that can be used", BUCKET_ALLOWED)
    return length


# -- pages -------------------------------------------------------------------------------------------
PAGE: Final = 100
LimitQuery = Annotated[
    int | None, Query(ge=1, description="Most rows in this page; bounded by the setting web.rows_max.")
]
CursorQuery = Annotated[
    str | None, Query(description="`next_cursor` of the page before; everything else as it was in that request.")
]


def limit_given(limit: int | None, ctx: Context, default: int = PAGE) -> int:
    most = ctx.settings.web.rows_max
    if limit is None:
        return min(default, most)
    if limit > most:
        raise bad_parameter("limit", limit, f"is more than web.rows_max ({most})", f"a whole number from 1 to {most}")
    return limit


_MICROSECONDS_MAX: Final = 7_258_118_400_000_000  # the year 2200


def cursor_numbers(text: str | None, count: int) -> tuple[int, ...] | None:
    """A cursor of ``count`` whole numbers, the first of them microseconds since 1970."""
    if text is None:
        return None
    numbers = text.split("-")
    good = len(numbers) == count and all(re.fullmatch(r"\d{1,18}", number, re.ASCII) for number in numbers)
    if not good or int(numbers[0]) >= _MICROSECONDS_MAX:
        raise bad_parameter("cursor", text, "is not a cursor of this path", "next_cursor of an answer, unchanged")
    return tuple(map(int, numbers))


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def cursor_of(time: datetime, *rest: int) -> str:
    return "-".join(map(str, ((time - _EPOCH) // timedelta(microseconds=1), *rest)))


def cursor_time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def record_cursor(text: str | None) -> tuple[datetime, int, int, int] | None:
    """(received_at, partition, offset, position) of the last row of the page before."""
    numbers = cursor_numbers(text, 4)
    return (cursor_time(numbers[0]), numbers[1], numbers[2], numbers[3]) if numbers else None


def next_link(request: Request, cursor: str | None, **resolved: Any) -> str | None:
    """Path of the page after this one: the request's own parameters, defaults resolved, and the cursor."""
    if cursor is None:
        return None
    query = {**dict(request.query_params), **{k: v for k, v in resolved.items() if v is not None}, "cursor": cursor}
    return f"{request.url.path}?{urlencode(query)}"
