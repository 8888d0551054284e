"""What narrows a list or a map to some vehicles: boxes, activities, models, fleets, regions."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import Depends, Query

from schemas.map_view import MAP_DIMENSIONS
from services.web.problems import bad_parameter

WORLD: Final = (-180.0, -90.0, 180.0, 90.0)
BBOX_ALLOWED: Final = "west,south,east,north in degrees, as in 115.4,39.4,117.5,41.1; west > east crosses the date line"
BboxQuery = Annotated[str | None, Query(max_length=200, description=f"Only what lies within: {BBOX_ALLOWED}.")]
ActivityQuery = Annotated[
    str | None,
    Query(
        max_length=100,
        description="Only vehicles that do this by their newest report: driving, charging (while parked), parked, "
        "unknown; several with commas between.",
    ),
]
ReportingQuery = Annotated[
    Literal["true"] | None, Query(description="`true`: only vehicles that reported within `reporting_within_s`.")
]


def _dimension(name: str) -> Any:
    return Query(
        default=None,
        description=f"Only vehicles of this {name}; several with commas between; `unknown`: not in the registry.",
        max_length=2000,
    )


def facts_given(
    model: str | None = _dimension("model"),
    fleet: str | None = _dimension("fleet"),
    region: str | None = _dimension("region"),
) -> dict[str, list[str]]:
    """Values by dimension, of those that a request names."""
    given = zip(MAP_DIMENSIONS, (model, fleet, region), strict=True)
    return {name: words for name, text in given if (words := words_given(text, name)) is not None}


FactsQuery = Annotated[dict[str, list[str]], Depends(facts_given)]


def bbox_given(text: str | None) -> tuple[float, float, float, float] | None:
    """West, south, east, north."""
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise bad_parameter("bbox", text, "is not a box", BBOX_ALLOWED) from None
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90):  # NaN is not either
        raise bad_parameter("bbox", text, "lies outside the world, or south is not below north", BBOX_ALLOWED)
    return west, south, east, north


def words_given(text: str | None, name: str, allowed: tuple[str, ...] | None = None) -> list[str] | None:
    """What is listed with commas between."""
    if text is None:
        return None
    words = [part.strip() for part in text.split(",") if part.strip()]
    if not words:
        raise bad_parameter(name, text, "names nothing", "one value, or several with commas between")
    for word in words:
        if allowed is not None and word not in allowed:
            raise bad_parameter(name, word, "is none of them", ", ".join(allowed))
    return words
