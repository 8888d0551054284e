"""The table of alarm rules, and what an operator may change of it."""

from __future__ import annotations

import pytest

from schemas.gbt32960.editions import EDITIONS
from schemas.statistics import rules


def test_every_rule_says_what_it_means_in_both_languages() -> None:
    for rule in rules.RULES:
        assert rule.text
        assert rule.zh
        assert rule.source
        assert rule.tag in ("[A]", "[B]", "[C]", "[D]", "[P]")
    assert len({rule.name for rule in rules.RULES}) == len(rules.RULES)


def test_flags_have_names_of_their_edition() -> None:
    assert rules.flag_name(5, 16) == "cell_over_voltage"
    assert rules.flag_name(5, 25) == "min_parallel_unit_over_voltage"
    assert rules.flag_name(23, 16) == "reserved_23"
    assert rules.flag_name(rules.FLAG_THERMAL_EVENT, 25) == "storage_thermal_event"
    assert len(rules.FLAG_TEXT_ZH) == max(len(table.flag_names) for table in EDITIONS.values())


def test_overrides_change_what_they_name_and_nothing_else() -> None:
    plain, changed = rules.rule_array(), rules.rule_array({"thermal_event": {"rise_c": 20, "threshold": 65}})
    assert (plain != changed).sum() == 2
    assert changed[rules.THERMAL_EVENT - 1, rules.R_THRESHOLD] == 65
    assert changed[rules.THERMAL_EVENT - 1, rules.R_MORE + 1] == 20


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"temprature_high": {"threshold": 50}}, "no alarm rule temprature_high"),
        ({"temperature_high": {"limit": 50}}, "has no 'limit': it has threshold, clear"),
        ({"temperature_high": {"threshold": float("nan")}}, "is no threshold"),
        ({"temperature_high": {"threshold": 50}}, "clears above what raises it"),
        ({"insulation_low": {"threshold": 600}}, "clears below what raises it"),
        ({"speed_limit": {"needs_records": 0, "needs_s": 0}}, "would never be raised"),
    ],
)
def test_overrides_that_cannot_be(overrides: dict[str, dict[str, float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rules.rule_array(overrides)
