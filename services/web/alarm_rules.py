"""What can be raised, as a catalogue: the standard's flags by edition, and the platform's rules with thresholds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas import alarms
from schemas.statistics import rules
from services.settings import Settings
from services.web.models import Model


class FlagModel(Model):
    source: Literal["flag"]
    code: int = Field(description="Bit of the general alarm flags")
    name_2016: str | None = Field(description="null: reserved in this edition")
    name_2025: str | None
    text_zh: str
    quantity: str | None = Field(description="The figure whose extremes an episode keeps")
    unit: str | None
    tag: str
    reference: str


class RuleModel(Model):
    source: Literal["rule", "absence"]
    code: int
    name: str
    level: int
    text: str
    text_zh: str
    quantity: str | None
    unit: str | None
    values: dict[str, float] = Field(description="Thresholds and durations in force")
    own: dict[str, float] = Field(description="Those of them that the operator has set (statistics.alarm_rules)")
    tag: str = Field(description="[A] standard, [P] convention of this project, to be replaced by your own")
    reference: str


class AlarmRules(Model):
    flags: list[FlagModel]
    rules: list[RuleModel]


def numbered(source: str) -> int:
    return alarms.SOURCE_CODE.get(source, 0)


def catalogue(settings: Settings) -> dict[str, Any]:
    """Flags that either edition names, and every rule."""
    flags = []
    for bit in range(rules.FLAGS):
        names = {edition: rules.flag_name(bit, edition) for edition in (16, 25)}
        kind = alarms.kind_of(alarms.SOURCE_FLAG, bit, 25)
        if all(name.startswith("reserved_") for name in names.values()):
            continue
        flags.append(
            {
                "source": "flag",
                "code": bit,
                **{f"name_20{edition}": None if name.startswith("reserved_") else name
                   for edition, name in names.items()},
                "text_zh": kind.zh,
                "quantity": kind.quantity or None,
                "unit": kind.unit or None,
                "tag": kind.tag,
                "reference": kind.reference,
            }
        )  # fmt: skip
    return {"flags": flags, "rules": [_rule(rule, settings) for rule in rules.RULES]}


def _rule(rule: rules.Rule, settings: Settings) -> dict[str, Any]:
    quantity, unit = rules.QUANTITIES[rule.quantity]
    values: dict[str, float] = {
        name: getattr(rule, name) for name in ("threshold", "clear", "needs_records", "needs_s", "clear_s")
    } | dict(rule.more)
    own = dict(settings.statistics.alarm_rules.get(rule.name, {}))
    values |= own
    if rule.number == rules.OFFLINE:
        values = {"after_h": settings.alarms.offline_after_h}
    return {
        "source": alarms.SOURCES[alarms.source_of_rule(rule)],
        "code": rule.number,
        "name": rule.name,
        "level": rule.level,
        "text": rule.text,
        "text_zh": rule.zh,
        "quantity": quantity or None,
        "unit": unit or None,
        "values": values,
        "own": own,
        "tag": rule.tag,
        "reference": rule.source,
    }
