"""Alarm episodes as people use them: names, what may be done in which state, events, and the seams around them.

An episode is *active* until it is over (the fold or the offline rule says so), whatever people do with it; people take
it from ``open`` to ``acknowledged`` to ``closed``.  Names come from the edition tables and the rule table, never from
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from schemas.seams import Table
from schemas.statistics import rules

SOURCE_FLAG, SOURCE_RULE, SOURCE_ABSENCE = rules.SOURCE_FLAG, rules.SOURCE_RULE, 3
SOURCES: Final[Mapping[int, str]] = {SOURCE_FLAG: "flag", SOURCE_RULE: "rule", SOURCE_ABSENCE: "absence"}
SOURCE_CODE: Final[Mapping[str, int]] = {name: number for number, name in SOURCES.items()}
LEVEL_MAX: Final = 3

# -- what people do ------------------------------------------------------------------------------------
OPEN, ACKNOWLEDGED, CLOSED = "open", "acknowledged", "closed"
STATES: Final = (OPEN, ACKNOWLEDGED, CLOSED)
ACKNOWLEDGE, CLOSE = "acknowledge", "close"
# (state, action): the state after it; the same state: it was done before, nothing happens; None: refused.
MOVES: Final[Mapping[tuple[str, str], str | None]] = {
    (OPEN, ACKNOWLEDGE): ACKNOWLEDGED,
    (OPEN, CLOSE): None,
    (ACKNOWLEDGED, ACKNOWLEDGE): ACKNOWLEDGED,
    (ACKNOWLEDGED, CLOSE): CLOSED,
    (CLOSED, ACKNOWLEDGE): None,
    (CLOSED, CLOSE): CLOSED,
}
WHY_NOT: Final[Mapping[tuple[str, str], str]] = {
    (OPEN, CLOSE): "it was not acknowledged yet: acknowledge it first",
    (CLOSED, ACKNOWLEDGE): "it is closed already",
}
BY_MAX, NOTE_MAX = 100, 2000  # characters of who acted, and of what they say
AT_ONCE_MAX: Final = 1000  # episodes of one bulk action


def state_of(row: Mapping[str, Any]) -> str:
    if row["closed_at"] is not None:
        return CLOSED
    return OPEN if row["acknowledged_at"] is None else ACKNOWLEDGED


@dataclass(frozen=True, slots=True)
class Acted:
    """What became of one episode of an action.  ``why``: of a refused one, for people."""

    episode_id: int
    outcome: str  # "done", "repeated", "refused", "missing"
    state: str | None = None
    why: str | None = None


# -- what they are called ------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Kind:
    """A flag in an edition, or a rule: its name in code, what it means, and the figure that belongs to it."""

    source: int
    code: int
    name: str
    text: str
    zh: str
    quantity: str
    unit: str
    level: int | None = None  # of a rule; a flag's level is what the vehicle reports with it
    tag: str | None = None
    reference: str | None = None


def kind_of(source: int, code: int, edition: int | None) -> Kind:
    """Name and meaning; ``edition`` 16, 25 or None (unknown: as in 2025, whose flags are a superset by position).

    A code that this version does not know has a name made of its number: an answer never fails on one.
    """
    if source == SOURCE_FLAG:
        quantity, unit = rules.QUANTITIES[rules.FLAG_QUANTITY[code]] if 0 <= code < rules.FLAGS else ("", "")
        name = rules.flag_name(code, 16 if edition == 16 else 25)
        known = not name.startswith("reserved_")
        zh = rules.FLAG_TEXT_ZH[code] if known and code < len(rules.FLAG_TEXT_ZH) else f"预留位 {code}"
        return Kind(source, code, name, name.replace("_", " "), zh, quantity, unit, None, "[A]", "GB/T 32960.3 7.13")
    rule = rules.RULE.get(code)
    if rule is None:
        return Kind(
            source, code, f"{SOURCES.get(source, 'source')}_{code}", "a rule of another version", "未知规则", "", ""
        )
    quantity, unit = rules.QUANTITIES[rule.quantity]
    return Kind(source, code, rule.name, rule.text, rule.zh, quantity, unit, rule.level, rule.tag, rule.source)


def source_of_rule(rule: rules.Rule) -> int:
    return SOURCE_ABSENCE if rule.by_clock else SOURCE_RULE


def codes_named(name: str) -> list[tuple[int, int]]:
    """(source, code) of every flag (in either edition) and rule of this name; [] when there is none."""
    flags = [
        (SOURCE_FLAG, bit) for bit in range(rules.FLAGS) if name in (rules.flag_name(bit, 16), rules.flag_name(bit, 25))
    ]
    return flags + [(source_of_rule(rule), rule.number) for rule in rules.RULES if rule.name == name]


def names() -> list[str]:
    """Every name that :func:`codes_named` knows, without those of reserved bits."""
    found = {rules.flag_name(bit, edition) for bit in range(rules.FLAGS) for edition in (16, 25)}
    return sorted({name for name in found if not name.startswith("reserved_")} | {rule.name for rule in rules.RULES})


# -- an episode and its events, as told ----------------------------------------------------------------
EPISODE_COLUMNS: Final = (
    "episode_id", "vehicle_id", "vin", "model", "fleet", "region", "plate", "edition", "revision", "source", "code",
    "level", "day", "start_at", "end_at", "settled_on", "records", "late", "value_min", "value_max",
    "longitude_deg", "latitude_deg", "raised_at", "acknowledged_at", "acknowledged_by", "closed_at", "closed_by",
    "note",
)  # fmt: skip
_EDITIONS: Final[Mapping[int | None, int]] = {16: 2016, 25: 2025}


def described(row: Mapping[str, Any], local: Callable[[datetime | None], datetime | None]) -> dict[str, Any]:
    """A row of EPISODE_COLUMNS as the API, webhooks and the stream tell it; ``local`` puts times into the zone."""
    kind = kind_of(row["source"], row["code"], row["edition"])
    active = row["settled_on"] is None
    return {
        "id": row["episode_id"],
        **{name: row[name] for name in ("vin", "model", "fleet", "region", "plate")},
        "edition": _EDITIONS.get(row["edition"]),
        "source": SOURCES.get(row["source"], str(row["source"])),
        "code": row["code"],
        "name": kind.name,
        "text": kind.text,
        "text_zh": kind.zh,
        "level": row["level"],
        "state": state_of(row),
        "active": active,
        "start_at": local(row["start_at"]),
        "end_at": None if active else local(row["end_at"]),
        "last_at": local(row["end_at"]),
        "duration_s": None if active else (row["end_at"] - row["start_at"]).total_seconds(),
        "raised_at": local(row["raised_at"]),
        "late": bool(row["late"]),
        "records": row["records"],
        "quantity": kind.quantity or None,
        "unit": kind.unit or None,
        "value_min": row["value_min"],
        "value_max": row["value_max"],
        "longitude_deg": row["longitude_deg"],
        "latitude_deg": row["latitude_deg"],
        "acknowledged_at": local(row["acknowledged_at"]),
        "acknowledged_by": row["acknowledged_by"],
        "closed_at": local(row["closed_at"]),
        "closed_by": row["closed_by"],
        "note": row["note"],
        "revision": row["revision"],
    }


RAISED, CHANGED, ENDED, WITHDRAWN = "raised", "changed", "ended", "withdrawn"
EVENTS: Final[Mapping[str, str]] = {
    RAISED: "an episode is there that was not",
    CHANGED: "its level has changed, or it goes on after it had seemed over",
    ENDED: "it is over",
    WITHDRAWN: "late data showed that it never was; what was told of it is void",
    ACKNOWLEDGED: "a person acknowledged it",
    CLOSED: "a person closed it",
}


def event_document(event_id: int, occurred_at: str, event: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """An event as webhooks and the stream tell it; ``id`` is the same at every repetition."""
    return {"id": str(event_id), "event": event, "occurred_at": occurred_at, **body}


# -- seams ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class AlarmFilter:
    """Which episodes; None leaves a condition out.  ``since`` ≤ start < ``until``."""

    states: Sequence[str] | None = None
    active: bool | None = None
    since: datetime | None = None
    until: datetime | None = None
    vehicle_id: int | None = None
    vin: str | None = None
    model: str | None = None
    fleet: str | None = None
    region: str | None = None
    fleets: Sequence[str] | None = None  # of vehicles that are in one of them now
    level_min: int | None = None
    source: int | None = None
    codes: Sequence[tuple[int, int]] | None = None  # (source, code)


@dataclass(frozen=True, slots=True)
class Targets:
    """How soon an episode is to be acknowledged (minutes) and closed (working days)."""

    acknowledge_min: float
    close_working_days: int
    time_zone: str


class AlarmDesk(Protocol):
    """What the API and the command line ask and do.  Every method raises ``StoreUnavailable``."""

    async def page(self, wanted: AlarmFilter, *, after: tuple[datetime, int] | None, limit: int) -> Table:
        """Episodes, the newest start first, beyond ``after`` (start, id): EPISODE_COLUMNS."""
        ...

    async def episode(self, episode_id: int) -> Mapping[str, Any] | None:
        """One episode (EPISODE_COLUMNS), None when there is none."""
        ...

    async def story(self, episode_id: int, targets: Targets) -> Mapping[str, Any]:
        """``withdrawn_at``, and lists ``actions``, ``events``, ``deliveries``; what is due: ``acknowledge_due_at``,
        ``close_due_at``; ``alike_30d``: episodes of the same kind and vehicle in the 30 days before it."""
        ...

    async def summary(self, wanted: AlarmFilter, targets: Targets, now: datetime, limit: int) -> Mapping[str, Any]:
        """``unhandled`` (level, state, episodes, oldest_at), ``levels`` (level, state, ...), ``kinds`` (source,
        code, edition, ...) and ``handling``, of episodes that match."""
        ...

    async def events(self, after: int, limit: int) -> Table:
        """event_id, occurred_at, event, body, fleet (the vehicle's, now) of events beyond ``after``, in order."""
        ...

    async def event_bounds(self) -> tuple[int, int]:
        """The oldest and the newest event that is kept; (0, 0) when there is none."""
        ...

    async def act(self, action: str, episodes: Sequence[int], *, by: str, note: str | None = None) -> list[Acted]:
        """Acknowledge or close episodes, each by itself; what became of each, in the order given.

        Two who do the same at once do it once: the first is the one who did it.
        """
        ...

    async def hooks(self) -> Table:
        """Of every webhook that has deliveries: hook, waiting, delivered, dead, oldest_waiting_at,
        last_delivered_at, last_status, last_error, last_error_at."""
        ...

    async def retry_dead(self, hook: str | None) -> int:
        """Send dead deliveries anew; returns how many."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Hook:
    """Whom to tell, as far as the outbox needs it."""

    name: str
    level_min: int
    events: frozenset[str]
    fleets: frozenset[str] = frozenset()  # empty: all
    models: frozenset[str] = frozenset()

    def wants(self, event: str, episode: Mapping[str, Any]) -> bool:
        return (
            event in self.events
            and episode["level"] >= self.level_min
            and (not self.fleets or episode["fleet"] in self.fleets)
            and (not self.models or episode["model"] in self.models)
        )


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that is to be sent to a hook, claimed by the caller."""

    event_id: int
    hook: str
    attempts: int  # with the one that is due now
    created_at: datetime
    occurred_at: datetime
    event: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a claimed delivery.  ``retry_s`` None: delivered, or dead when there is an error."""

    event_id: int
    hook: str
    attempts: int
    status: int | None
    error: str | None
    retry_s: float | None = field(default=None)


class Outbox(Protocol):
    """Where the webhook sender takes from.  Every method raises ``StoreUnavailable``."""

    async def claim(self, hook: str, most: int, lease_s: float) -> list[Delivery]:
        """Deliveries that are due, the oldest first, at most one per episode; they come back after ``lease_s``."""
        ...

    async def record(self, sent: Sequence[Sent]) -> None:
        """Write what became of them; one that was claimed again meanwhile is left to its new owner."""
        ...

    async def close(self) -> None: ...
