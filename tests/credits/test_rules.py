"""The table of rules: complete, tagged, and refused with every mistake when it is wrong."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from schemas.credits.rules import TAGS, RulesError, built_in, built_in_text, cells, read_rules
from services.credit_rules import rules_of
from services.errors import SettingsError


def test_every_cell_has_value_tag_and_source() -> None:
    table = built_in()
    assert sorted(table.years) == list(range(2018, 2028))
    for year in table.years:
        found = cells(table.of(year))
        assert len(found) > 15
        for cell in found:
            assert isinstance(cell.value, Decimal)
            assert cell.tag in TAGS
            assert all(word in table.sources for word in cell.source.split())
            assert cell.source


def test_figures_are_exact_decimals() -> None:
    assert built_in().of(2022).vehicle.bev.lines[0].slope.value == Decimal("0.0056")


@pytest.mark.parametrize(
    ("year", "ratio", "tag", "weight_tag"),
    [(2019, "0.10", "B", "P"), (2021, "0.14", "B", "C"), (2024, "0.28", "A", "A"), (2025, "0.38", "A", "A"),
     (2026, "0.48", "B", "B"), (2027, "0.58", "B", "B")],
)  # fmt: skip
def test_ratios_and_their_tags(year: int, ratio: str, tag: str, weight_tag: str) -> None:
    rule = built_in().of(year).nev
    assert (rule.ratio.value, rule.ratio.tag, rule.low_weight.tag) == (Decimal(ratio), tag, weight_tag)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('tag = "A", source = "S29"', 'tag = "E", source = "S29"', "cafc 2021.factor.tag is 'E'"),
        ('tag = "A", source = "S29"', 'tag = "A", source = "S99"', "cafc 2021.factor.source names S99"),
        ('tag = "A", source = "S29"', 'tag = "A"', "cafc 2021.factor.source is missing"),
        ("value = 1.23", 'value = "1.23"', "cafc 2021.factor.value is '1.23', not a number"),
        ("value = 1.23", "value = true", "cafc 2021.factor.value is True"),
        ("value = 1.23", "value = inf", "cafc 2021.factor.value is Decimal('Infinity')"),
        ("duty_from = { value = 30000", "duty_form = { value = 30000", "nev 2018.duty_form is not known here"),
        ("years = [2019]", "years = [2018]", "nev[1].years has 2018, which is there already"),
        ("years = [2019]", 'years = ["2019"]', "nev[1].years is not a list of accounting years"),
        ("years = [2027]", "years = [2028]", "year 2027 is in only one of [[nev]] and [[vehicle]]"),
        ("{ below = 150, value = 0.7", "{ below = 250, value = 0.7", "range_factor has not rising edges"),
        ('kind = "ratio"', 'kind = "guess"', "consumption.kind is 'guess'"),
        ("[sources]", "[source]", "source is not known here"),
        ('name = "built in"', "", "name is missing"),
        ("decimals = { value = 2,", "decimals = { value = 2.5,", "round.decimals is not a whole number"),
        ("[[nev]]\n", "[[nev]\n", "not a TOML file"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(old: str, new: str, told: str) -> None:
    assert old in built_in_text()
    with pytest.raises(RulesError) as caught:
        read_rules(built_in_text().replace(old, new, 1))
    assert told in str(caught.value)


def test_an_empty_table_and_one_of_rubbish() -> None:
    with pytest.raises(RulesError, match="name is missing"):
        read_rules("")
    with pytest.raises(RulesError, match="no year in the table"):
        read_rules('name = "mine"')
    with pytest.raises(RulesError, match="nev is missing, or not a list of tables"):
        read_rules('name = "mine"\nnev = 5')
    with pytest.raises(RulesError, match=r"nev 2030.ratio is missing"):
        read_rules('name = "mine"\n[[nev]]\nyears = [2030]')


def test_a_table_of_the_operator_replaces_the_built_in_one(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(built_in_text().replace('name = "built in"', 'name = "ours"').replace("[2027]", "[2027, 2028]")
                    .replace("[2026, 2027]", "[2026, 2027, 2028]"), "utf-8")  # fmt: skip
    table = rules_of(file)
    assert (table.name, max(table.years)) == ("ours", 2028)
    assert rules_of(None) is built_in()
    with pytest.raises(SettingsError, match="credits rules --toml"):
        rules_of(tmp_path / "nowhere.toml")
    file.write_text("name = 1")
    with pytest.raises(SettingsError, match=r"credits rules --check .*\n"):
        rules_of(file)
    file.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="mistakes"):
        rules_of(file)
