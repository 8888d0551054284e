"""Alarm rules as data: what the platform itself watches for, and which figure belongs to a standard flag.

An alarm episode has a source and a code. Source 1 is a general alarm flag of GB/T 32960 (code = bit; names come from
the edition tables). Source 2 is a rule of this table (code = number). The alarms fold walks the table as one array
(:func:`rule_array`), the API and the documentation describe the rules from it. No rule decides in the fold by code
what the table could say.

Tags of certainty as in the project's statistics rules: [A] the standard's text was read, [P] a convention of this
project, to be replaced by an operator's own value (``overrides``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from schemas.gbt32960.editions import EDITIONS
from schemas.statistics.records import F64

SOURCE_FLAG, SOURCE_RULE = 1, 2

# -- what an episode keeps the extremes of ------------------------------------------------------------

QUANTITIES: Final = (
    ("", ""),
    ("temp_max_c", "°C"), ("temp_spread_c", "°C"), ("cell_max_v", "V"), ("cell_min_v", "V"), ("cell_range_mv", "mV"),
    ("cell_deviation_mv", "mV"), ("total_voltage_v", "V"), ("total_current_a", "A"), ("soc_pct", "%"),
    ("insulation_resistance_kohm", "kΩ"), ("insulation_ohm_per_v", "Ω/V"), ("speed_kmh", "km/h"),
    ("dcdc_state", ""), ("alarm_level", ""),
)  # fmt: skip  # name, unit; the first: no figure
(
    Q_NONE, Q_TEMP_MAX, Q_TEMP_SPREAD, Q_CELL_MAX, Q_CELL_MIN, Q_CELL_RANGE, Q_CELL_DEVIATION, Q_VOLTAGE, Q_CURRENT,
    Q_SOC, Q_INSULATION, Q_INSULATION_PER_V, Q_SPEED, Q_DCDC, Q_ALARM_LEVEL,
) = range(len(QUANTITIES))  # fmt: skip

# -- standard flags (gbt32960 7.13) -------------------------------------------------------------------

FLAGS: Final = 32
FLAG_HIGH_TEMPERATURE: Final = 1
FLAG_THERMAL_EVENT: Final = 23  # 2025; reserved in 2016
# The figure that tells how bad it was, by bit; reserved bits and motors, hydrogen, supercapacitor have none here.
FLAG_QUANTITY: Final[tuple[int, ...]] = (
    Q_TEMP_SPREAD, Q_TEMP_MAX, Q_VOLTAGE, Q_VOLTAGE, Q_SOC, Q_CELL_MAX, Q_CELL_MIN, Q_SOC, Q_SOC, Q_NONE,
    Q_CELL_RANGE, Q_INSULATION, Q_NONE, Q_SPEED, Q_DCDC, Q_NONE, Q_VOLTAGE, Q_NONE, Q_SOC, Q_SPEED,
    Q_CURRENT, Q_NONE, Q_NONE, Q_TEMP_MAX, *(Q_NONE,) * 8,
)  # fmt: skip
FLAG_TEXT_ZH: Final = (
    "温度差异报警", "电池高温报警", "车载储能装置类型过压报警", "车载储能装置类型欠压报警",
    "SOC低报警", "单体电池过压报警", "单体电池欠压报警", "SOC过高报警",
    "SOC跳变报警", "可充电储能系统不匹配报警", "电池单体一致性差报警", "绝缘报警",
    "DC-DC温度报警", "制动系统报警", "DC-DC状态报警", "驱动电机控制器温度报警",
    "高压互锁状态报警", "驱动电机温度报警", "车载储能装置类型过充", "驱动电机超速报警",
    "驱动电机过流报警", "超级电容过温报警", "超级电容过压报警", "可充电储能装置热事件报警",
    "氢气泄漏异常报警", "氢系统压力异常报警", "氢系统温度异常报警", "燃料电池电堆超温报警",
)  # fmt: skip
assert len(FLAG_QUANTITY) == FLAGS


def flag_name(bit: int, edition: int) -> str:
    """What a general alarm flag means in ``edition`` (16 or 25); ``reserved_<bit>`` where the standard says nothing."""
    names = EDITIONS[edition].flag_names
    return names[bit] if bit < len(names) else f"reserved_{bit}"


# -- platform rules -----------------------------------------------------------------------------------

AT_LEAST, BELOW, SPECIAL = range(3)  # how the figure is held against the threshold; SPECIAL: the fold's own test


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. It holds at a record when ``quantity`` passes ``threshold``; it is raised when it has held for
    ``needs_records`` records in a row or for ``needs_s`` (0: not by this), from the first of them; it goes on while the
    figure has not passed ``clear``; it ends after ``clear_s`` without.

    ``by_clock``: watched by the platform's clock, not by the fold over records.
    """

    number: int
    name: str
    level: int
    quantity: int
    test: int
    threshold: float
    clear: float
    needs_records: int
    needs_s: float
    clear_s: float
    tag: str
    source: str
    text: str
    zh: str
    more: Mapping[str, float] = field(default_factory=dict)  # further thresholds of a SPECIAL rule
    by_clock: bool = False

    @property
    def unit(self) -> str:
        return QUANTITIES[self.quantity][1]


TEMPERATURE_HIGH, TEMPERATURE_VERY_HIGH, TEMPERATURE_SPREAD, INSULATION_LOW, INSULATION_FAULT = 1, 2, 3, 4, 5
CELL_OUTLIER, THERMAL_EVENT, SPEED_LIMIT, LEVEL_WITHOUT_FLAG, OFFLINE = 6, 7, 8, 9, 20

RULES: Final[tuple[Rule, ...]] = (
    Rule(TEMPERATURE_HIGH, "temperature_high", 1, Q_TEMP_MAX, AT_LEAST, 55, 53, 2, 0, 60, "[P]", "4.8",
         "the hottest probe is at 55 °C or more", "电池最高温度不低于 55 °C"),
    Rule(TEMPERATURE_VERY_HIGH, "temperature_very_high", 2, Q_TEMP_MAX, AT_LEAST, 60, 58, 2, 0, 60, "[P]", "4.8",
         "the hottest probe is at 60 °C or more", "电池最高温度不低于 60 °C"),
    Rule(TEMPERATURE_SPREAD, "temperature_spread", 1, Q_TEMP_SPREAD, AT_LEAST, 15, 13, 2, 0, 60, "[P]", "4.8",
         "probes differ by 15 °C or more", "电池温差不低于 15 °C"),
    Rule(INSULATION_LOW, "insulation_low", 1, Q_INSULATION_PER_V, BELOW, 500, 550, 3, 30, 60, "[A]",
         "4.9; GB 38031-2025 5.2 (circuits joined with AC)",
         "insulation is below 500 Ω per volt of the pack", "绝缘电阻低于 500 Ω/V"),
    Rule(INSULATION_FAULT, "insulation_fault", 2, Q_INSULATION_PER_V, BELOW, 100, 110, 3, 30, 60, "[A]",
         "4.9; GB 38031-2025 5.2 (DC circuits)",
         "insulation is below 100 Ω per volt of the pack", "绝缘电阻低于 100 Ω/V"),
    Rule(CELL_OUTLIER, "cell_outlier", 1, Q_CELL_DEVIATION, SPECIAL, 50, 40, 0, 300, 60, "[P]", "4.7",
         "one cell has been 50 mV or more, and three robust deviations, off the others' median for 300 s",
         "同一单体电压持续 300 s 偏离中位数不低于 50 mV（稳健 z 大于 3）", {"robust_z": 3}),
    Rule(THERMAL_EVENT, "thermal_event", 3, Q_TEMP_MAX, SPECIAL, 60, 55, 1, 0, 600, "[P]",
         "4.10; after GB 38031-2025 C.5.3.7",
         "within 60 s a cell lost 25 % of its voltage or a probe is at 60 °C or more, and the hottest probe rose by "
         "30 °C, or by 3 °C/min for 3 min, or an insulation fault is new; or the vehicle says so at level 3",
         "疑似热失控：60 s 内单体电压下降超过 25 % 或温度不低于 60 °C，且温升不低于 30 °C、或以 3 °C/min 持续 3 min、"
         "或新出现绝缘故障；或车辆以 3 级上报热事件",
         {"cell_drop": 0.25, "rise_c": 30, "rate_c_per_min": 3, "rate_held_s": 180}),
    Rule(SPEED_LIMIT, "speed_limit", 1, Q_SPEED, AT_LEAST, 130, 125, 2, 10, 60, "[P]", "6",
         "faster than the operator allows: 130 km/h or more", "车速不低于 130 km/h"),
    Rule(LEVEL_WITHOUT_FLAG, "level_without_flag", 1, Q_ALARM_LEVEL, SPECIAL, 1, 1, 1, 0, 60, "[P]", "5",
         "the vehicle reports an alarm level, but no standard flag: a fault of the maker's own; the level is the "
         "vehicle's", "车辆上报报警等级但无通用报警标志（厂商自定义故障）"),
    Rule(OFFLINE, "offline", 1, Q_NONE, SPECIAL, 0, 0, 0, 0, 0, "[P]", "1.1 (A4)",
         "nothing has come from the vehicle for long", "车辆长期离线", by_clock=True),
)  # fmt: skip
RULE: Final[dict[int, Rule]] = {rule.number: rule for rule in RULES}
RULE_BY_NAME: Final[dict[str, Rule]] = {rule.name: rule for rule in RULES}
FOLD_RULES: Final = tuple(rule for rule in RULES if not rule.by_clock)  # rule n is row n - 1 of rule_array
assert [rule.number for rule in FOLD_RULES] == list(range(1, len(FOLD_RULES) + 1))

# Columns of rule_array; MORE and on: the values of ``more``, in their order.
R_LEVEL, R_QUANTITY, R_TEST, R_THRESHOLD, R_CLEAR, R_NEEDS_RECORDS, R_NEEDS_S, R_CLEAR_S, R_MORE = range(9)
RULE_WIDTH: Final = R_MORE + 4


def rule_array(overrides: Mapping[str, Mapping[str, float]] | None = None) -> F64:
    """The fold's rules as numbers, (rules, RULE_WIDTH) f64, row ``number - 1``.

    ``overrides``: by rule name, new values of threshold, clear, needs_records, needs_s, clear_s or one of ``more``.
    ValueError names the rule and the key that do not exist, and values that are not finite or negative.
    """
    table = np.zeros((len(FOLD_RULES), RULE_WIDTH), np.float64)
    changes = dict(overrides or {})
    for row, rule in zip(table, FOLD_RULES, strict=True):
        row[[R_LEVEL, R_QUANTITY, R_TEST]] = rule.level, rule.quantity, rule.test
        keys = ("threshold", "clear", "needs_records", "needs_s", "clear_s", *rule.more)
        values = dict(
            zip(keys, (rule.threshold, rule.clear, rule.needs_records, rule.needs_s, rule.clear_s, *rule.more.values()),
                strict=True)
        )  # fmt: skip
        for key, value in changes.pop(rule.name, {}).items():
            if key not in values:
                raise ValueError(f"alarm rule {rule.name!r} has no {key!r}: it has {', '.join(keys)}")
            if not np.isfinite(value) or value < 0:
                raise ValueError(f"alarm rule {rule.name!r}: {key} = {value!r} is no threshold: give 0 or more")
            values[key] = value
        if rule.test == AT_LEAST and values["clear"] > values["threshold"]:
            raise ValueError(f"alarm rule {rule.name!r} clears above what raises it: lower clear or raise threshold")
        if rule.test == BELOW and values["clear"] < values["threshold"]:
            raise ValueError(f"alarm rule {rule.name!r} clears below what raises it: raise clear or lower threshold")
        if values["needs_records"] == 0 and values["needs_s"] == 0:
            raise ValueError(f"alarm rule {rule.name!r} would never be raised: give needs_records or needs_s")
        row[R_THRESHOLD : R_THRESHOLD + len(values)] = list(values.values())
    if changes:
        raise ValueError(f"no alarm rule {', '.join(sorted(changes))}: {', '.join(rule.name for rule in FOLD_RULES)}")
    return table
