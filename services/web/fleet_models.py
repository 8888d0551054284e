"""Shapes of the fleet's answers, for OpenAPI; answers are built as plain dictionaries."""

from __future__ import annotations

from datetime import date
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class Open(BaseModel):
    """Rows have the columns of their groupings, too."""

    model_config = ConfigDict(extra="allow")


class FigureRow(Open):
    figure: str
    metric: str
    unit: str
    value: float | None = Field(description="null where the denominator is 0 or nothing is known")
    numerator: float | None
    denominator: float | None
    mean_of: str | None = Field(description="What the value is the mean of")
    p5: float | None = Field(description="Quantiles: within 2 %, exact for SOC")
    p25: float | None
    median: float | None
    p75: float | None
    p95: float | None
    quantiles_of: str | None = Field(description="What the quantiles count: trips, vehicle-days, vehicles...")
    counted: int | None = Field(description="How many of these")
    certainty: str = Field(description="[A] the text was read, [B] two sources, [C] one, [D] trade, [P] convention")
    vehicles: int = Field(description="Vehicles with data in the window")
    coverage: float | None = Field(description="Share of the time between records that is covered (3.3)")
    newest_data_time: AwareDatetime | None
    text: str
    histogram: list[dict[str, Any]] | None


class WindowShown(BaseModel):
    kind: str = Field(description="day, week, month, year; days: a window of one's own")
    first_day: date
    last_day: date = Field(description="Included")
    days: int
    over: bool
    time_zone: str


class About(Open):
    window: WindowShown
    filters: dict[str, list[str]]
    computed_at: AwareDatetime | None = Field(description="When its oldest part was made; exact for then")
    days_changed_since: int = Field(description="Days of the window whose data have changed since")
    newest_data_time: AwareDatetime | None


class MetricAnswer(About):
    by: list[str]
    groups: int
    complete: bool
    figures: list[FigureRow]
    count: int


class YearlyReport(About):
    title: str
    year: int
    sections: list[dict[str, Any]] = Field(description="Which of the form's seven items each is")
    figures: list[FigureRow] = Field(description="With section, item and group")
    notes: list[str]
    count: int


class Catalogue(BaseModel):
    metrics: list[dict[str, Any]] = Field(description="id, name, definition, source, certainty, figures")
    by: list[str]
    windows: list[str]


class Page(Open):
    filters: dict[str, list[str]]
    certainty: str
    source: str
    count: int
    next_cursor: str | None
    next: str | None


class ListedVehicle(Open):
    vin: str
    model: str
    fleet: str
    region: str
    usage: str


class VehicleList(Page):
    vehicles: list[ListedVehicle]


class ClusterList(Page):
    clusters: list[dict[str, Any]] = Field(description="cell, vehicles, position, VINs (at most 100)")


class Verification(VehicleList):
    week: str
    pass_rate_pct: float | None
    passed: int
    checked: int
    checks: list[dict[str, Any]] = Field(description="By check: vehicles that failed, of those it could judge")
