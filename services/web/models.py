"""Shapes of the API's answers, for OpenAPI and for the tests that hold the answers against them.

Answers are built as plain dictionaries and encoded by orjson; these models are not on that path.
Units are in the names; times are ISO 8601 with offset.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

_TIME = "2026-11-24T08:00:00+08:00"
_VIN = "LTEST000000000001"

Activity = Literal["driving", "charging", "parked", "unknown", "never_reported"]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [values]})


# -- problems ----------------------------------------------------------------------------------------
class ParameterError(Model):
    parameter: str
    where: str = Field(description="path or query")
    given: str
    wrong: str
    allowed: str


_PROBLEM = {
    "type": "urn:nevstream:problem:bad-parameter",
    "title": "A parameter cannot be used",
    "status": 422,
    "detail": "bucket: is not a length of time that can be used (given 'often')",
    "how_to_fix": "Give bucket as a whole number with s, m, h or d, from 1s to 366d, such as 30s, 5m, 1h, 1d.",
    "instance": f"/v1/vehicles/{_VIN}/telemetry",
    "errors": [
        {
            "parameter": "bucket",
            "where": "query",
            "given": "often",
            "wrong": "is not a length of time that can be used",
            "allowed": "a whole number with s, m, h or d, from 1s to 366d, such as 30s, 5m, 1h, 1d",
        }
    ],
}


class Problem(Model):
    """RFC 9457 problem document."""

    model_config = _example(**_PROBLEM)

    type: str
    title: str
    status: int
    detail: str
    how_to_fix: str
    instance: str = Field(description="Path of the request")
    errors: list[ParameterError] | None = None


# -- vehicles ----------------------------------------------------------------------------------------
_STATE: dict[str, Any] = {
    "vin": _VIN,
    "registered": False,
    "model": None,
    "fleet": None,
    "region": None,
    "first_seen_at": _TIME,
    "activity": "driving",
    "reporting": True,
    "last_received_at": "2026-11-24T08:00:00.120000+08:00",
    "last_data_time": _TIME,
    "edition": 2016,
    "door": "mqtt",
    "vehicle_state": 1,
    "charge_state": 3,
    "speed_kmh": 65.3,
    "odometer_km": 12345.6,
    "soc_pct": 81,
    "total_voltage_v": 352.4,
    "total_current_a": 21.5,
    "alarm_level": 0,
    "alarm_flags": 0,
    "longitude_deg": 116.407413,
    "latitude_deg": 39.904214,
    "location_valid": 1,
    "reports": 3600,
}


class VehicleSummary(Model):
    """A vehicle and what its newest report says; values it did not carry are null."""

    model_config = _example(**_STATE)

    vin: str
    registered: bool = Field(description="In the registry; false: known from its reports only")
    model: str | None
    fleet: str | None
    region: str | None
    first_seen_at: AwareDatetime | None
    activity: Activity = Field(
        description="What the newest report says: charging = parked and charging, driving = started (standing in "
        "traffic too), parked = off or other, unknown = the report does not say"
    )
    reporting: bool = Field(description="A report arrived within `reporting_within_s`")
    last_received_at: AwareDatetime | None = Field(description="Arrival of the newest report")
    last_data_time: AwareDatetime | None = Field(description="Collection time of the newest report")
    edition: int | None
    door: str | None
    vehicle_state: int | None
    charge_state: int | None
    speed_kmh: float | None
    odometer_km: float | None
    soc_pct: int | None
    total_voltage_v: float | None
    total_current_a: float | None
    alarm_level: int | None
    alarm_flags: int | None
    longitude_deg: float | None
    latitude_deg: float | None
    location_valid: int | None
    reports: int = Field(description="Reports stored")


class VehiclePage(Model):
    model_config = _example(vehicles=[_STATE], count=1, reporting_within_s=300, next_cursor=None, next=None)

    vehicles: list[VehicleSummary]
    count: int = Field(description="Vehicles in this page")
    reporting_within_s: int
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null at the end")
    next: str | None = Field(description="Path of the next page")


class VehicleDetail(VehicleSummary):
    model_config = _example(**_STATE, has_password=False, logins=4, dead_letters=0)

    has_password: bool
    logins: int = Field(description="Logins and logouts stored; 10000 means that many or more")
    dead_letters: int = Field(description="Refused frames that claim this VIN; 10000 means that many or more")


class CellPack(Model):
    no: int
    voltage_v: float | None
    current_a: float | None
    cell_total: int | None = Field(description="Cells that the pack has, by its own account")
    cells_v: list[float | None] = Field(description="Cell 1 first")
    cells_missing: int = Field(description="Cells of the pack that no frame of this report has brought")
    flaws: dict[str, str] = Field(description="Cell number to what its value was: abnormal, invalid, out_of_range")


class TempPack(Model):
    no: int
    temps_c: list[int | None]
    flaws: dict[str, str] = Field(description="Probe number to what its value was")


class ExtraValue(Model):
    value: Any = Field(description="A number; of a JSON field that the signals file does not map, whatever it was")
    unit: str | None = Field(description="null for what the signals file does not know")
    text: str | None
    meaning: str | None = Field(description="What the code means, where it is one")


class Latest(Model):
    """The newest report of a vehicle; a report split over frames is put together."""

    model_config = _example(
        vin=_VIN, time=_TIME, received_at="2026-11-24T08:00:00.120000+08:00", age_s=1.5, kind="realtime", edition=2016,
        door="mqtt", parts=1, notes=[], signals={"speed_kmh": 65.3, "soc_pct": 81, "vehicle_state": 1},
        meanings={"vehicle_state": "started"}, flaws={"insulation_resistance_kohm": "invalid"}, alarms=[],
        packs=[{"no": 1, "voltage_v": 352.4, "current_a": 21.5, "cell_total": 3, "cells_v": [3.671, None, 3.67],
                "cells_missing": 0, "flaws": {"2": "invalid"}}],
        temps=[{"no": 1, "temps_c": [24, 25], "flaws": {}}], motors=[],
        faults={"pack": [], "motor": [], "engine": [], "other": []}, rest_hex=None,
        extra={"cabin_temp_c": {"value": 21.5, "unit": "°C", "text": "at the second door", "meaning": None}},
        extra_flaws={"tyre_rear_left_pressure_kpa": "invalid"},
    )  # fmt: skip

    vin: str
    time: AwareDatetime = Field(description="Collection time")
    received_at: AwareDatetime
    age_s: float = Field(description="Seconds from the collection time to now")
    kind: str = Field(description="realtime (0x02) or reissue (0x03)")
    edition: int | None  # null: a JSON sample, of no edition
    door: str
    parts: int = Field(description="Frames of this collection time")
    notes: list[str]
    signals: dict[str, float | int] = Field(description="Signals with a value; names and units are in /v1/signals")
    meanings: dict[str, str] = Field(description="What the codes among them mean")
    flaws: dict[str, str] = Field(description="abnormal, invalid and out_of_range have no value; suspect has one")
    alarms: list[str] = Field(description="General alarm flags that are set")
    packs: list[CellPack]
    temps: list[TempPack]
    motors: list[dict[str, float | int | None]] = Field(description="Every motor, when there is more than one")
    faults: dict[str, list[Any]] = Field(description="Fault codes (hex) by system; general: flag and level (2025)")
    rest_hex: str | None = Field(description="Blocks kept as they came: type, length (2 bytes), body")
    extra: dict[str, ExtraValue] = Field(description="Signals of the signals file, and JSON fields without a signal")
    extra_flaws: dict[str, str] = Field(description="Of these, the ones without a value: why")


class Login(Model):
    received_at: AwareDatetime
    time: AwareDatetime | None
    event: str
    edition: int
    door: str
    serial: int | None
    iccid: str | None
    pack_codes: list[str]
    username: str | None


class LoginPage(Model):
    model_config = _example(
        vin=_VIN,
        logins=[
            {
                "received_at": _TIME, "time": _TIME, "event": "vehicle_login", "edition": 2016, "door": "gbt32960",
                "serial": 1, "iccid": "89860000000000000001", "pack_codes": ["P1"], "username": None,
            }
        ],
        count=1, next_cursor=None, next=None,
    )  # fmt: skip

    vin: str
    logins: list[Login] = Field(description="Newest first")
    count: int
    next_cursor: str | None
    next: str | None


# -- telemetry ---------------------------------------------------------------------------------------
class Telemetry(Model):
    """Rows of one vehicle in [from, to), oldest first: reports as they were, or buckets."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        json_schema_extra={
            "examples": [
                {
                    "vin": _VIN, "from": _TIME, "to": "2026-11-24T09:00:00+08:00", "bucket_s": None,
                    "fields": ["soc_pct", "speed_kmh"], "count": 1,
                    "rows": [{"time": _TIME, "kind": "realtime", "part": 0, "soc_pct": 81, "speed_kmh": 65.3}],
                    "newest_data_time": "2026-11-24T08:59:50+08:00", "next_cursor": None, "next": None,
                },
                {
                    "vin": _VIN, "from": _TIME, "to": "2026-11-24T09:00:00+08:00", "bucket_s": 300,
                    "fields": ["speed_kmh"], "count": 1,
                    "rows": [{"time": _TIME, "count": 30, "speed_kmh_avg": 61.25, "speed_kmh_min": 40.1,
                              "speed_kmh_max": 72.0, "speed_kmh_count": 29}],
                    "newest_data_time": "2026-11-24T08:59:50+08:00", "next_cursor": None, "next": None,
                },
            ]
        },
    )  # fmt: skip

    vin: str
    from_: AwareDatetime = Field(alias="from")
    to: AwareDatetime
    bucket_s: float | None = Field(description="Length of a bucket; null: rows as reported")
    fields: list[str]
    rows: list[dict[str, Any]] = Field(
        description="Raw: time, kind, part and the fields. Buckets: time (start), count (reports) and per field "
        "_avg with _count (values it is the mean of), _min, _max; codes have _min and _max, flags _any"
    )
    count: int
    newest_data_time: AwareDatetime | None = Field(description="Newest collection time of the vehicle, in any range")
    next_cursor: str | None
    next: str | None


# -- dead letters ------------------------------------------------------------------------------------
_LETTER: dict[str, Any] = {
    "id": "3-1042-17",
    "received_at": _TIME,
    "reason": "bad_bcc",
    "meaning": "The check byte is not the XOR of the bytes from the command id on.",
    "how_to_fix": "Check the terminal's BCC (offsets 2 to 23+N) and the line it is sent over.",
    "error_offset": 58,
    "error": None,
    "door": "gbt32960",
    "codec": "gbt32960",
    "vin": _VIN,
    "peer": "10.0.0.7:50412",
    "client": None,
    "frame_bytes": 326,
    "requeued_by": None,
    "requeued_as": None,
    "requeued_at": None,
    "replayed_at": None,
}


class DeadLetterSummary(Model):
    """A frame that could not become a row, and why."""

    model_config = _example(**_LETTER)

    id: str = Field(description="Where it lies in the journal: partition-offset-position")
    received_at: AwareDatetime
    reason: str
    meaning: str
    how_to_fix: str
    error_offset: int = Field(description="Byte of the frame where the trouble is")
    error: str | None = Field(description="What was raised; of frames that are poison, and of torn records")
    door: str
    codec: str
    vin: str | None = Field(description="As the frame claims; null when it cannot be read")
    peer: str | None
    client: str | None
    frame_bytes: int
    requeued_by: str | None
    requeued_as: str | None = Field(description="Where it lies in the journal the second time")
    requeued_at: AwareDatetime | None
    replayed_at: AwareDatetime | None = Field(description="When a replay could read it and made a row of it")


class DeadLetterPage(Model):
    model_config = _example(dead_letters=[_LETTER], count=1, next_cursor=None, next=None)

    dead_letters: list[DeadLetterSummary] = Field(description="Newest first")
    count: int
    next_cursor: str | None
    next: str | None


class AnnotatedField(Model):
    offset: int
    hex: str
    field: str
    raw: str
    value: str
    unit: str
    clause: str
    problem: str
    error: bool = Field(description="The byte at error_offset is in this field")


class DeadLetterDetail(DeadLetterSummary):
    model_config = _example(
        **{**_LETTER, "frame_bytes": 3}, frame_hex="232302", requeued_frame_hex=None, outcome=None,
        annotated=[{"offset": 0, "hex": "232302", "field": "not a frame", "raw": "", "value": "", "unit": "",
                    "clause": "table 2", "problem": "shorter than 25 bytes", "error": True}],
    )  # fmt: skip

    frame_hex: str = Field(description="The frame, whole")
    requeued_frame_hex: str | None = Field(description="What was requeued instead, when a person changed it")
    outcome: Literal["waiting", "accepted", "refused"] | None = Field(
        description="Of a requeue. waiting: not read yet. refused: requeued_as is the id of a new letter"
    )
    annotated: list[AnnotatedField] = Field(description="Field by field; empty for frames that are not GB/T 32960")


class LetterGroup(Model):
    """One group: the key words of the grouping, and the numbers."""

    reason: str | None = None
    vin: str | None = None
    model: str | None = None
    edition: int | None = Field(None, description="Of the last login; null: no login is known")
    iccid: str | None = Field(None, description="First seven digits: country and issuer of the SIM")
    packs: str | None = Field(None, description="First seven characters of the first pack code")
    letters: int
    vehicles: int = Field(description="Different VINs claimed")
    first: AwareDatetime
    last: AwareDatetime


class DeadLetterCounts(Model):
    model_config = _example(
        by="reason", groups=[{"reason": "bad_bcc", "letters": 12, "vehicles": 1, "first": _TIME, "last": _TIME}],
        count=1,
    )  # fmt: skip

    by: str
    groups: list[LetterGroup]
    count: int


class Nothing(Model):
    """An empty object."""


class RequeueFilter(Model):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"reason": "clock_past", "from": "2026-11-24T00:00:00+08:00"}]},
    )

    reason: str | None = None
    vin: str | None = None
    from_: str | None = Field(None, alias="from", description="Arrived at or after")
    to: str | None = Field(None, description="Arrived before")
    all_: bool = Field(False, alias="all", description="Every open letter; needed when there is no other condition")
    limit: int = Field(10_000, ge=1, le=10_000, description="Most letters of this call; call again for the others")


class RequeuedLetter(Model):
    id: str
    requeued_as: str


class SkippedLetter(Model):
    id: str
    why: str


class Requeue(Model):
    model_config = _example(requeued=[{"id": "3-1042-17", "requeued_as": "3-1100-0"}], skipped=[])

    requeued: list[RequeuedLetter]
    skipped: list[SkippedLetter]


# -- system ------------------------------------------------------------------------------------------
class Reporting(Model):
    total: int
    driving: int
    charging: int
    parked: int
    unknown: int


class Ledger(Model):
    """Frames taken from the journal and what became of them: frames is the sum of the others."""

    frames: int
    rows: int
    duplicates: int
    conflicts: int
    rejected: int
    sessions: int
    other: int


class Overview(Model):
    model_config = _example(
        as_of=_TIME, vehicles=200, ever_reported=198, reporting_within_s=300,
        reporting={"total": 190, "driving": 120, "charging": 30, "parked": 40, "unknown": 0},
        ledger={"frames": 30400, "rows": 30000, "duplicates": 12, "conflicts": 0, "rejected": 3, "sessions": 385,
                "other": 0},
        newest_data_time=_TIME, newest_received_at=_TIME,
    )  # fmt: skip

    as_of: AwareDatetime
    vehicles: int = Field(description="Vehicles known: registered, or seen once")
    ever_reported: int
    reporting_within_s: int
    reporting: Reporting = Field(description="Vehicles whose newest report arrived within `reporting_within_s`")
    ledger: Ledger | None = Field(description="null for a token with fleets: frames are not counted by fleet")
    newest_data_time: AwareDatetime | None
    newest_received_at: AwareDatetime | None


class SignalInfo(Model):
    model_config = _example(
        name="speed_kmh", unit="km/h", type="real", resolution=0.1, text="vehicle speed", codes={},
        aggregates=["avg", "min", "max", "count"],
    )  # fmt: skip

    name: str
    unit: str = Field(description="Empty for codes, counts and numbers")
    type: str = Field(description="SQL type; text, list or map for the fields that are no signals")
    resolution: float | None
    text: str
    codes: dict[str, str] = Field(description="Code to meaning, where the signal is one")
    aggregates: list[str] = Field(description="What a bucket says of it; empty: it cannot be put into buckets")


class Signals(Model):
    signals: list[SignalInfo]
    count: int


class Alive(Model):
    model_config = _example(status="alive", time=_TIME)

    status: Literal["alive"]
    time: datetime


class StageLag(Model):
    seconds: float = Field(description="Age of the oldest frame that waits; 0: none does.")
    cause: str = Field(
        description="Why it waits: working (it is on its way), journal_away, journal_slow, in_flight, "
        "store_away, store_slow, positions_moved, halted."
    )


class GatewayState(Model):
    listeners: dict[str, int] = Field(description="Processes that take new connections, by listener.")
    connections: dict[str, int] = Field(description="Open connections by door.")
    in_flight_bytes: int = Field(description="Received and not yet durable.")
    reading_paused: int = Field(description="Processes that do not read their sockets for now.")
    paused_because: str | None = Field(description="Cause of that: journal_away, journal_slow or in_flight.")
    limits_reached: dict[str, int] = Field(
        description="How often each limit of [gateway.limits] acted since the start."
    )


class Latency(Model):
    count: int = Field(description="Group commits or batches since the start; each counts once, with its oldest frame.")
    p50_ms: float
    p99_ms: float = Field(description="Interpolated within a bucket of the histogram in /metrics.")


class Latencies(Model):
    ack: dict[str, Latency] = Field(description="By door: a frame's arrival to its acknowledgement.")
    socket_to_row: Latency | None = Field(description="A frame's arrival to its row being committed; null: none yet.")


class SystemState(Model):
    model_config = _example(
        as_of=_TIME,
        gateway={"listeners": {"mqtt": 1, "gbt32960": 1}, "connections": {"mqtt": 900, "gbt32960": 80},
                 "in_flight_bytes": 0, "reading_paused": 0, "paused_because": None, "limits_reached": {}},
        lag={"gateway": {"seconds": 0.004, "cause": "working"}, "pipeline": {"seconds": 0.1, "cause": "working"}},
        latency={"ack": {"mqtt": {"count": 52_000, "p50_ms": 8.1, "p99_ms": 31.0}},
                 "socket_to_row": {"count": 9_000, "p50_ms": 60.2, "p99_ms": 180.0}},
    )  # fmt: skip

    as_of: datetime
    gateway: GatewayState
    lag: dict[str, StageLag | None] = Field(description="By stage; null: no process of this machine tells.")
    latency: Latencies


class Ready(Model):
    model_config = _example(status="ready", schema_version="0003_ledger")

    status: Literal["ready"]
    schema_version: str
