"""What requests about alarms may say, and how it is read; what every path about alarms has at hand."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query

from schemas import alarms
from schemas.alarms import AlarmDesk, AlarmFilter, Targets
from services.web.parameters import TIME_ALLOWED, Context, checked_vin, ordered, time_given
from services.web.problems import ProblemError, bad_parameter, nearest

StateQuery = Annotated[
    str | None,
    Query(description="open, acknowledged, closed; several with commas between.", examples=["open,acknowledged"]),
]
ActiveQuery = Annotated[bool | None, Query(description="true: going on. false: over.")]
SinceQuery = Annotated[str | None, Query(alias="from", description=f"Began at or after: {TIME_ALLOWED}.")]
UntilQuery = Annotated[str | None, Query(alias="to", description="Began before; written as `from` is.")]
VinQuery = Annotated[str | None, Query(description="Of this vehicle.")]
FactQuery = Annotated[str | None, Query(description="As in the registry; `unknown` for none.", max_length=200)]
LevelQuery = Annotated[int | None, Query(ge=0, le=alarms.LEVEL_MAX, description="This level or higher.")]
SourceQuery = Annotated[
    Literal["flag", "rule", "absence"] | None, Query(description="Standard flag, platform rule, or absence of data.")
]
CodeQuery = Annotated[
    str | None,
    Query(description="Name from /v1/alarms/rules, or a number together with `source`.", examples=["insulation"]),
]
IdPath = Annotated[int, Path(alias="id", ge=1, le=2**63 - 1, description="`id` of an episode")]


def desk_of(ctx: Context) -> AlarmDesk:
    if ctx.alarms is None:
        raise ProblemError(
            403, "changes-off", "This API does not know of alarms", "This process was started without them.",
            "Use the command line: `nevstream alarms`.",
        )  # fmt: skip
    return ctx.alarms


def targets_of(ctx: Context) -> Targets:
    given = ctx.settings.alarms
    return Targets(given.acknowledge_target_min, given.close_target_working_days, ctx.settings.time_zone)


def states_given(text: str | None) -> list[str] | None:
    if text is None:
        return None
    states = [word.strip() for word in text.split(",")]
    for word in states:
        if word not in alarms.STATES:
            raise bad_parameter("state", text, f"{word!r} is not a state", "open, acknowledged, closed, with commas")
    return states


def codes_given(text: str | None, source: str | None) -> list[tuple[int, int]] | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 4:
        if source is None:
            raise bad_parameter(
                "code", text, "is a number of which source?", "a name, or a number with source", "query"
            )
        return [(alarms.SOURCE_CODE[source], int(text))]
    pairs = alarms.codes_named(text)
    if not pairs:
        near = nearest(text, alarms.names())
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise bad_parameter("code", text, f"no flag or rule has this name{hint}", "a name from /v1/alarms/rules")
    return pairs


def filter_given(
    ctx: Context, state: str | None, active: bool | None, since: str | None, until: str | None, vin: str | None,
    model: str | None, fleet: str | None, region: str | None, level: int | None, source: str | None, code: str | None,
) -> AlarmFilter:  # fmt: skip
    start = time_given(since, "from", ctx.zone) if since is not None else None
    end = time_given(until, "to", ctx.zone) if until is not None else None
    if start and end:
        ordered(start, end, since)
    return AlarmFilter(
        states=states_given(state), active=active, since=start, until=end,
        vin=None if vin is None else checked_vin(vin, where="query"),
        model=model, fleet=fleet, region=region, level_min=level,
        source=None if source is None else alarms.SOURCE_CODE[source], codes=codes_given(code, source),
    )  # fmt: skip
