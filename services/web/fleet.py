"""/v1/fleet: the metrics A1 to P1 of the fleet, by any window and group, as series, and as the yearly report.

Every figure is a ratio of sums or a distribution over cohorts (``schemas.statistics.cohorts``), made from the vehicles'
days behind the data; each answer says of when they are and how new the data in them.  Telemetry is never read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from schemas.fleet_queries import FleetQueries
from schemas.statistics.cohorts import DIMENSIONS
from schemas.statistics.metrics import METRIC, METRICS, Metric
from schemas.statistics.windows import DAYS_MAX, NAMES, Window, day_at, start_of
from services.web import fleet_models as models
from services.web.answers import Json
from services.web.exports import FORMATS, FormatQuery, document_answer
from services.web.fleet_figures import Asking, rows_of
from services.web.parameters import Context, Ctx, only_known
from services.web.problems import bad_parameter, nearest

router = APIRouter(prefix="/v1/fleet", tags=["fleet"], dependencies=[Depends(only_known)])

Span = Literal["day", "week", "month", "year"]
AT_ALLOWED: Final = "a year, month, ISO week or day, such as 2026, 2026-10, 2026-W41, 2026-10-05"
DAY_ALLOWED: Final = "a local day, such as 2026-11-24"
PARTS_MAX: Final = 400  # of a series
GROUPS_MAX: Final = 10_000
_BY_MAX: Final = 3

WindowQuery = Annotated[
    Span | None, Query(description="A calendar period of the fleet's time zone; `at` says which. Default: month.")
]
AtQuery = Annotated[
    str | None, Query(description=f"Which period: {AT_ALLOWED}, or any day in it. Default: the one that goes on now.")
]
FromQuery = Annotated[
    str | None, Query(alias="from", description=f"First day of a window of its own, included: {DAY_ALLOWED}.")
]
ToQuery = Annotated[str | None, Query(alias="to", description="Its last day, included. Default: today.")]
ByQuery = Annotated[
    str | None,
    Query(
        description=f"Group by these, with commas between, at most {_BY_MAX}: {', '.join(DIMENSIONS)}. "
        "Default: the whole fleet.",
        examples=["model", "model,region"],
    ),
]


def _filter(name: str) -> Any:
    return Query(
        default=None,
        description=f"Only vehicles of this {name}; several with commas between; `unknown`: not in the registry.",
        max_length=2000,
    )


@dataclass(frozen=True, slots=True)
class Filter:
    """Values by dimension, as given."""

    values: Mapping[str, Sequence[str]]


def filters_given(
    model: str | None = _filter("model"),
    fleet: str | None = _filter("fleet"),
    region: str | None = _filter("region"),
    usage: str | None = _filter("usage"),
    battery_supplier: str | None = _filter("battery_supplier"),
    chemistry: str | None = _filter("chemistry"),
    edition: str | None = _filter("edition: 2016, 2025, none (JSON samples)"),
) -> Filter:
    """The filters that a request has."""
    given = dict(zip(DIMENSIONS, (model, fleet, region, usage, battery_supplier, chemistry, edition), strict=True))
    values = {}
    for name, text in given.items():
        if text is None:
            continue
        values[name] = [part.strip() for part in text.split(",") if part.strip()]
        if not values[name] or "\0" in text:
            raise bad_parameter(name, text, "names nothing", "one value, or several with commas between")
    return Filter(values)


Filters = Annotated[Filter, Depends(filters_given)]


def by_given(text: str | None) -> list[str]:
    if text is None:
        return []
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in DIMENSIONS:
            near = nearest(name, DIMENSIONS)
            wrong = "is not what vehicles are grouped by" + (f"; did you mean {near[0]}?" if near else "")
            raise bad_parameter("by", name, wrong, ", ".join(DIMENSIONS))
    if not 1 <= len(names) <= _BY_MAX:
        raise bad_parameter("by", text, f"names {len(names)} groupings", f"1 to {_BY_MAX} of {', '.join(DIMENSIONS)}")
    return names


def day_given(text: str, name: str, allowed: str = DAY_ALLOWED) -> date:
    try:
        day = day_at(text) if allowed is AT_ALLOWED else date.fromisoformat(text.strip())
    except ValueError:
        raise bad_parameter(name, text, "is not a day" if allowed is DAY_ALLOWED else "is no period", allowed) from None
    if not 1970 <= day.year < 2200:
        raise bad_parameter(name, text, "lies outside 1970 to 2199", allowed)
    return day


def today_of(ctx: Context) -> date:
    return ctx.now().astimezone(ctx.zone).date()


def days_given(since: str | None, until: str | None, ctx: Context, default: int) -> tuple[date, date]:
    last = day_given(until, "to") if until is not None else today_of(ctx)
    first = day_given(since, "from") if since is not None else last - timedelta(days=default - 1)
    if not 0 <= (last - first).days < DAYS_MAX:
        wrong = f"to `to` ({last}) are {(last - first).days + 1} days"
        raise bad_parameter("from", since or first.isoformat(), wrong, f"1 to {DAYS_MAX} days, both included")
    return first, last


def window_given(window: str | None, at: str | None, since: str | None, until: str | None, ctx: Context) -> Window:
    """A calendar period (window, at), or days of one's own (from, to)."""
    if since is not None or until is not None:
        if window is not None or at is not None:
            name, given = ("window", window) if window is not None else ("at", at)
            raise bad_parameter(name, given, "cannot go with from and to", "either window and at, or from and to")
        if since is None:
            raise bad_parameter("to", until, "is given without from", "from and to, or window and at")
        return Window.between(*days_given(since, until, ctx, 1))
    if window is None and at is not None and len(at) == 4:
        window = "year"
    elif window is None and at is not None:
        window = "week" if "W" in at else "day" if len(at.strip()) > 7 else "month"
    return Window.of(NAMES[window or "month"], day_given(at, "at", AT_ALLOWED) if at is not None else today_of(ctx))


def metric_given(text: str, where: str) -> Metric:
    metric = METRIC.get(text.strip().upper())
    if metric is None:
        raise bad_parameter("metric" if where == "query" else "id", text, "is not a metric", ", ".join(METRIC), where)
    return metric


def described(metric: Metric) -> dict[str, Any]:
    return {
        "id": metric.id, "name": metric.name, "definition": metric.definition, "source": metric.source,
        "certainty": metric.tag, "note": metric.note, "list": metric.lists, "elsewhere": metric.elsewhere,
        "figures": [
            {"name": f.name, "unit": f.unit, "text": f.text, "formula": f.formula, "certainty": f.tag or metric.tag}
            for f in metric.figures
        ],
    }  # fmt: skip


@router.get(
    "/metrics",
    response_model=models.Catalogue,
    summary="The catalogue: every metric, its definition, formula, source and certainty",
)
async def catalogue() -> Json:
    """Tags: [A] the text was read, [B] two sources agree, [C] one source, [D] common knowledge, [P] convention."""
    return Json({"metrics": [described(metric) for metric in METRICS], "by": DIMENSIONS, "windows": list(NAMES)})


@router.get(
    "/metrics/{id}",
    response_model=models.MetricAnswer,
    summary="One metric in one window, by groups",
    responses=FORMATS,
)
async def one_metric(
    request: Request,
    ctx: Ctx,
    filters: Filters,
    id: Annotated[str, Path(description="As the catalogue has it.", examples=["U1"])],  # noqa: A002 - as in the path
    window: WindowQuery = None,
    at: AtQuery = None,
    since: FromQuery = None,
    until: ToQuery = None,
    by: ByQuery = None,
    format: FormatQuery = None,  # noqa: A002 - as in the query
) -> Response:
    """A row a figure and group: value, numerator, denominator, median and quantiles, vehicles counted, coverage.

    A rate whose denominator is 0 is null.  `mean_of` says what a value is the mean of, `quantiles_of` what the
    quantiles count; these are within 2 %.
    """
    metric = metric_given(id, "path")
    wanted = window_given(window, at, since, until, ctx)
    document = await answered(ctx, [metric], [wanted], by_given(by), filters.values)
    return await document_answer(
        request, format, document, "figures", zone=ctx.zone, name=f"{metric.id}-{wanted.first}-{wanted.last}"
    )


async def answered(
    ctx: Context, metrics: Sequence[Metric], windows: Sequence[Window], by: Sequence[str], filters: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer about ``metrics`` in ``windows`` (one, or several of one kept span)."""
    queries: FleetQueries = ctx.queries
    today = today_of(ctx)
    asking = Asking(queries, metrics, windows, by=by, filters=filters, today=today)
    groups = await asking.gather()
    blocks = [block for window in windows for block in window.blocks()]
    first, last = windows[0].first, windows[-1].last
    computed = await queries.fleet_computed(blocks, first, last)
    series = len(windows) > 1
    keys = sorted(groups)[:GROUPS_MAX]
    figures = []
    for key in keys:
        named = dict(zip(by, key[1:], strict=True))
        for metric in metrics:
            figures += rows_of(metric, {"start": key[0], **named} if series else named, groups[key], ctx.local)
    newest = [group.newest_at for group in groups.values() if group.newest_at is not None]
    metric = metrics[0]
    about = described(metric) if len(metrics) == 1 else {"metrics": [one.id for one in metrics]}
    about.pop("figures", None)
    return {
        **about,
        "window": window_shown(windows, ctx),
        "by": list(by),
        "filters": dict(filters),
        "computed_at": ctx.local(computed["computed_at"]),
        "days_changed_since": computed["days_changed"],
        "newest_data_time": ctx.local(max(newest, default=None)),
        "groups": len(groups),
        "complete": len(groups) <= GROUPS_MAX,
        "figures": figures,
        "count": len(figures),
    }


def window_shown(windows: Sequence[Window], ctx: Context) -> dict[str, Any]:
    names = {span: name for name, span in NAMES.items()}
    first, last = windows[0].first, windows[-1].last
    return {
        "kind": names[windows[0].span] if windows[0].span else "days", "first_day": first, "last_day": last,
        "days": (last - first).days + 1, "over": last < today_of(ctx), "time_zone": ctx.zone.key,
    }  # fmt: skip


@router.get(
    "/series", response_model=models.MetricAnswer, summary="A metric by day, week, month or year", responses=FORMATS
)
async def series(
    request: Request,
    ctx: Ctx,
    filters: Filters,
    metric: Annotated[str, Query(description="As the catalogue has it.", examples=["U1"])],
    per: Annotated[Span, Query(description="Length of a period.")] = "day",
    since: Annotated[
        str | None, Query(alias="from", description=f"A day of the first period: {DAY_ALLOWED}. Default: 30 periods.")
    ] = None,
    until: Annotated[str | None, Query(alias="to", description="A day of the last one. Default: today.")] = None,
    by: ByQuery = None,
    format: FormatQuery = None,  # noqa: A002 - as in the query
) -> Response:
    """As one metric, a row a period, figure and group; whole periods from the one of `from` to that of `to`.

    A period without data has no row where there are groups, and null rates where there are none.
    """
    one = metric_given(metric, "query")
    span = NAMES[per]
    days = {"day": 30, "week": 210, "month": 900, "year": 3650}[per]
    first, last = days_given(since, until, ctx, days)
    windows = Window(start_of(span, first), Window.of(span, last).last).parts(span)
    if len(windows) > PARTS_MAX:
        raise bad_parameter("from", since or first.isoformat(), f"to `to` are {len(windows)} {per}s",
                            f"at most {PARTS_MAX}")  # fmt: skip
    document = await answered(ctx, [one], windows, by_given(by), filters.values)
    return await document_answer(request, format, document, "figures", zone=ctx.zone, name=f"{one.id}-per-{per}")


# -- the yearly report of a maker --------------------------------------------------------------------
_REPORT: Final[tuple[tuple[str, str, str, tuple[str, ...], str | None], ...]] = (
    ("vehicles", "number of vehicles monitored", "1", ("A1", "A2"), None),
    ("vehicles_by_model", "their distribution by model", "2", ("A1",), "model"),
    ("vehicles_by_region", "their distribution by region", "2", ("A1",), "region"),
    ("distance_per_vehicle", "mileage per vehicle", "3", ("U1", "U2"), None),
    ("distance_by_model", "mileage per model", "4", ("U1", "U2"), "model"),
    ("distance", "mileage of the whole product range", "5", ("U1",), None),
    ("energy", "energy consumption", "6", ("E1", "E2", "E3", "C1", "C3"), None),
    ("energy_by_model", "energy consumption by model, against the certified one", "6", ("E1", "E2", "E3"), "model"),
    ("energy_by_region", "energy consumption by region", "6", ("E1",), "region"),
    ("faults", "faults and accidents", "7", ("F1", "F2", "F4"), None),
    ("faults_by_model", "faults by model", "7", ("F1", "F2"), "model"),
)


@router.get(
    "/report/year",
    response_model=models.YearlyReport,
    summary="The yearly report of a maker: its seven figures in one call",
    responses=FORMATS,
)
async def yearly_report(
    request: Request,
    ctx: Ctx,
    filters: Filters,
    year: Annotated[int | None, Query(ge=1970, le=2199, description="Calendar year. Default: the one before.")] = None,
    format: FormatQuery = None,  # noqa: A002 - as in the query
) -> Response:
    """What the ministry's form asks of the monitoring system [A] (S1): vehicles, where, mileage, energy, faults.

    Accidents are not in telemetry: thermal events, among the episodes, are what a platform can see of them.
    """
    wanted = Window.of("Y", date(year or today_of(ctx).year - 1, 1, 1))
    rows: list[dict[str, Any]] = []
    sections = []
    abouts: list[dict[str, Any]] = []
    for name, text, item, ids, by in _REPORT:
        keys = [by] if by else []
        document = await answered(ctx, [METRIC[one] for one in ids], [wanted], keys, filters.values)
        abouts.append(document)
        sections.append({"section": name, "text": text, "item": int(item), "by": by, "metrics": ids})
        rows += [{"section": name, "item": int(item), "group": row.pop(by) if by else None, **row}
                 for row in document["figures"]]  # fmt: skip
    months = Window(wanted.first, wanted.last).parts("M")
    document = await answered(ctx, [METRIC["E1"], METRIC["U1"]], months, [], filters.values)
    sections.append({"section": "by_month", "text": "energy and mileage by month", "item": 6, "by": "month",
                     "metrics": ("E1", "U1")})  # fmt: skip
    rows += [{"section": "by_month", "item": 6, "group": row.pop("start").isoformat()[:7], **row}
             for row in document["figures"]]  # fmt: skip
    whole = abouts[0]
    report = {
        "title": f"Yearly report {wanted.first.year}", "year": wanted.first.year, "source": "S1", "certainty": "[A]",
        **{name: whole[name] for name in ("window", "filters", "computed_at", "days_changed_since",
                                          "newest_data_time")},
        "sections": sections, "figures": rows, "count": len(rows),
        "notes": ["accidents are not in telemetry; thermal events among the episodes are what can be seen of them",
                  "sales, purchases of batteries, recalls and recycling are outside telemetry"],
    }  # fmt: skip
    return await document_answer(
        request, format, report, "figures", zone=ctx.zone, name=f"yearly-report-{wanted.first.year}"
    )
