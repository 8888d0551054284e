"""Shapes of the answers about alarms, and of what may be asked to be done."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field

from schemas import alarms
from services.web.models import Model

BY_API = "api"  # who acted when the request does not say, until the API knows who asks


class AlarmModel(Model):
    id: int
    vin: str
    model: str | None
    fleet: str | None
    region: str | None
    plate: str | None
    edition: int | None = Field(description="Of GB/T 32960.3, on the day of its start: flags are named by it")
    source: Literal["flag", "rule", "absence"] | str = Field(
        description="flag: general alarm flag of the standard (code = bit). rule: of this platform, by what is "
        "reported. absence: of this platform, by what is not"
    )
    code: int
    name: str
    text: str
    text_zh: str
    level: int = Field(description="Highest in the episode; 3 is the gravest [A]")
    state: Literal["open", "acknowledged", "closed"] = Field(description="What people did about it")
    active: bool = Field(description="It is not over")
    start_at: AwareDatetime
    end_at: AwareDatetime | None
    last_at: AwareDatetime = Field(description="Newest record of it so far")
    duration_s: float | None
    raised_at: AwareDatetime = Field(description="When this platform found it")
    late: bool = Field(description="Found in data that came late or reissued")
    records: int
    quantity: str | None = Field(description="The figure that goes with it")
    unit: str | None
    value_min: float | None
    value_max: float | None
    longitude_deg: float | None
    latitude_deg: float | None
    acknowledged_at: AwareDatetime | None
    acknowledged_by: str | None
    closed_at: AwareDatetime | None
    closed_by: str | None
    note: str | None
    revision: int = Field(description="How often late data have changed it, and 1")


class AlarmPage(Model):
    alarms: list[AlarmModel] = Field(description="The newest start first")
    count: int
    next_cursor: str | None
    next: str | None


class ActionModel(Model):
    action: Literal["acknowledge", "close"]
    at: AwareDatetime
    by: str
    note: str | None
    level: int = Field(description="The episode's level at that moment")


class ToldModel(Model):
    id: str
    event: str
    occurred_at: AwareDatetime
    level: int


class DeliveryModel(Model):
    event_id: str
    hook: str
    state: Literal["waiting", "delivered", "dead"]
    attempts: int
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    status: int | None = Field(description="HTTP status of the last answer")
    error: str | None


class AlarmDetail(AlarmModel):
    acknowledge_due_at: AwareDatetime | None = Field(description="alarms.acknowledge_target_min after the start [C]")
    close_due_at: AwareDatetime | None = Field(description="So many working days after the start [C]")
    acknowledged_in_time: bool | None
    closed_in_time: bool | None
    level_rose_since: bool = Field(description="Its level is higher than when somebody last acted")
    alike_30d: int = Field(description="Episodes of the same kind and vehicle in the 30 days before")
    actions: list[ActionModel]
    events: list[ToldModel]
    deliveries: list[DeliveryModel]
    telemetry: str = Field(description="Path of the telemetry around it")


class Asked(Model):
    by: str = Field(BY_API, min_length=1, max_length=alarms.BY_MAX, description="Who acts")
    note: str | None = Field(None, max_length=alarms.NOTE_MAX)


class AskedOfMany(Asked):
    ids: list[int] = Field(min_length=1, max_length=alarms.AT_ONCE_MAX)


class Done(Model):
    outcome: Literal["done", "repeated"] = Field(description="repeated: somebody had done it; nothing has changed")
    alarm: AlarmModel


class Outcome(Model):
    id: int
    outcome: Literal["done", "repeated", "refused", "missing"]
    state: Literal["open", "acknowledged", "closed"] | None
    why: str | None


class DoneToMany(Model):
    results: list[Outcome]
    done: int
    repeated: int
    refused: int
    missing: int


class Unhandled(Model):
    level: int
    state: Literal["open", "acknowledged"]
    episodes: int
    vehicles: int
    active: int = Field(description="That are not over")
    oldest_at: AwareDatetime


class LevelCount(Model):
    level: int
    state: Literal["open", "acknowledged", "closed"]
    episodes: int
    vehicles: int
    active: int


class KindCount(Model):
    source: str
    code: int
    name: str
    text_zh: str
    episodes: int
    vehicles: int
    active: int
    open: int = Field(description="Not acknowledged")
    level_max: int
    duration_median_s: float | None = Field(description="Of those that are over")


class Spread(Model):
    mean: float | None
    p5: float | None
    median: float | None
    p95: float | None


class Handling(Model):
    acknowledged: int
    closed: int
    start_to_acknowledged_min: Spread
    raised_to_acknowledged_min: Spread = Field(description="From when this platform found it: late data come late")
    start_to_closed_h: Spread
    acknowledged_to_closed_h: Spread
    acknowledge_target_min: float
    acknowledge_due: int = Field(description="Acknowledged, or past the target")
    acknowledged_in_time: int
    acknowledged_in_time_share: float | None = Field(description="Of those that are due; 0 to 1")
    close_target_working_days: int = Field(description="Monday to Friday; public holidays are not known")
    close_due: int
    closed_in_time: int
    closed_in_time_share: float | None
    targets_tag: str = Field(description="How sure the targets are")


class AlarmSummary(Model):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    from_: AwareDatetime = Field(alias="from")
    to: AwareDatetime
    episodes: int
    vehicles: int
    unhandled: list[Unhandled] = Field(description="What waits for somebody, whenever it began")
    levels: list[LevelCount]
    kinds: list[KindCount] = Field(description="The most frequent first, 200 at most")
    handling: Handling
